"""A page of one's own: where I am reached, by which channels for which severity, my APP keys, devices, language, and how to cut every link.

Everything here is about the member who is signed in; rows of others are looked up as if they did not exist. Changes are POSTs.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar
from zoneinfo import available_timezones

from django import forms
from django.conf import settings
from django.contrib import messages
from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.decorators import login_required
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound, HttpResponseRedirect
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_http_methods, require_safe

from channels_app import addresses, numbers, verification
from channels_app.models import Account, Channel, Preference, Verification
from channels_app.transport import transports
from escalation.models.workspace import SEVERITIES
from flashduty.web import accounts, wishes
from flashduty.web.pages import guarded, in_words_of
from mapping.clock import db_now
from mapping.models import ApiKey, ContactPoint, Device, Member
from mapping.models.api_key import MOST_KEYS
from mapping.visibility import Status

MOST_POINTS = 10
MOST_WAYS = 8
DELAYS = (0, 30, 60, 120, 180, 300, 600, 900, 1800, 3600)
EXPIRIES = (30, 90, 365, 0)


class Wrong(Exception):
    """What was asked for cannot be done; the sentence says why."""


class ProfileForm(forms.ModelForm):
    class Meta:
        model = Member
        fields = ("name", "language", "time_zone")


class PointForm(forms.ModelForm):
    class Meta:
        model = ContactPoint
        fields = ("kind", "value")


class QuietForm(forms.ModelForm):
    quiet_days = forms.TypedMultipleChoiceField(
        label=gettext_lazy("quiet on"), choices=list(enumerate(wishes.DAYS)), coerce=int, required=False
    )
    quiet_breaks = forms.MultipleChoiceField(label=gettext_lazy("breaks through"), choices=SEVERITIES, required=False)

    class Meta:
        model = Member
        fields = ("quiet_start", "quiet_end", "quiet_days", "quiet_breaks")
        widgets: ClassVar = {
            name: forms.TimeInput(format="%H:%M", attrs={"type": "time", "required": True}) for name in ("quiet_start", "quiet_end")
        }


class KeyForm(forms.Form):
    name = forms.CharField(max_length=100, label=gettext_lazy("Name"))
    read_only = forms.BooleanField(required=False, label=gettext_lazy("read only"))
    days = forms.TypedChoiceField(choices=[(n, n) for n in EXPIRIES], coerce=int)


@csrf_protect
@guarded()
@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def me(request: HttpRequest) -> HttpResponse:
    """`/me/`; a POST names what to do in `do`."""
    member = Member.objects.get(pk=request.user.pk)
    now = db_now()
    with in_words_of(member):
        if request.method != "POST":
            return _page(request, member, now)
        do = ACTIONS.get(request.POST.get("do", "").partition(":")[0])
        try:
            if do is None:
                raise Wrong(_("There is no such button."))
            shown = do(request, member, now)
        except Wrong as wrong:
            messages.error(request, str(wrong))
        except ValidationError as error:
            messages.error(request, " ".join(error.messages))
        else:
            # A form comes back as it was typed; a new key is seen once, on the answer itself, and stored nowhere to be shown again.
            if shown is not None:
                return _page(request, member, now, **shown)
        return HttpResponseRedirect(f"{request.path}#{request.POST.get('at', '')[:20]}")


# ---- what the buttons do -------------------------------------------------------------------------------------------------------------

Done = dict[str, Any] | None


def _alone(member: Member) -> None:
    """Locks the member's row, so that two tabs do one thing after the other. Not around a code's check: a wrong try is refused and yet counted."""
    Member.objects.select_for_update(no_key=True).get(pk=member.pk)


def _save_profile(request: HttpRequest, member: Member, now: datetime) -> Done:
    form = ProfileForm(request.POST, instance=member)
    if not form.is_valid():
        member.refresh_from_db()  # what is valid of the form stands in it already
        return {"profile": form}
    form.save()
    with in_words_of(member):
        messages.success(request, _("Saved."))
    return None


@transaction.atomic
def _add_point(request: HttpRequest, member: Member, now: datetime) -> Done:
    _alone(member)
    if member.contact_points.count() >= MOST_POINTS:
        raise Wrong(_("You have %(most)d numbers and addresses already: remove one first.") % {"most": MOST_POINTS})
    form = PointForm(request.POST, instance=ContactPoint(member=member, position=member.contact_points.count()))
    if form.is_valid() and member.contact_points.filter(kind=form.instance.kind, value=form.instance.value).exists():
        form.add_error("value", _("You have added this one already."))
    if form.errors:
        return {"new_point": form}
    point = form.save()
    messages.info(request, _("%(value)s is added. It is not paged until it is verified.") % {"value": point.value})
    return None


def _send_code(request: HttpRequest, member: Member, now: datetime) -> Done:
    point = _point(request, member)
    verification.send_code(point, now)
    messages.success(request, _("A code is on its way to %(value)s. It is good for ten minutes.") % {"value": point.value})
    return None


def _verify(request: HttpRequest, member: Member, now: datetime) -> Done:
    point = _point(request, member)
    verification.verify(point, request.POST.get("code", "").strip(), now)
    messages.success(request, _("%(value)s is verified and can be paged.") % {"value": point.value})
    if point.kind == ContactPoint.Kind.PHONE and numbers.calling([member.pk])[member.pk]:
        messages.info(request, _("Add the numbers that call you to your contacts now, so that your phone does not block them: see below."))
    return None


@transaction.atomic
def _first_point(request: HttpRequest, member: Member, now: datetime) -> Done:
    point = _point(request, member)
    others = list(member.contact_points.exclude(pk=point.pk).order_by("position", "id"))
    for position, one in enumerate([point, *others]):
        ContactPoint.objects.filter(pk=one.pk).update(position=position)
    messages.success(request, _("%(value)s is used first.") % {"value": point.value})
    return None


def _remove_point(request: HttpRequest, member: Member, now: datetime) -> Done:
    point = _point(request, member)
    point.delete()
    messages.success(request, _("%(value)s is removed.") % {"value": point.value})
    return None


def _point(request: HttpRequest, member: Member) -> ContactPoint:
    point = member.contact_points.filter(pk=_number(request.POST.get("point", ""))).first()
    if point is None:
        raise Wrong(_("You have no such number or address."))
    return point


@transaction.atomic
def _save_ways(request: HttpRequest, member: Member, now: datetime) -> Done:
    """The ways of one severity, in the order of the form; `up:<n>` puts one before its neighbour, `remove:<n>` takes it out."""
    _alone(member)
    severity = request.POST.get("severity", "")
    if severity not in dict(SEVERITIES):
        raise Wrong(_("There is no such severity."))
    known = _may_choose(member) | {_way_of(p) for p in member.preferences.filter(severity=severity)}
    ways: list[tuple[str, int] | None] = []
    for value, delay in zip(request.POST.getlist("way"), request.POST.getlist("delay"), strict=False):
        if not value:
            ways.append(None)
            continue
        if value not in known:
            raise Wrong(_("You cannot choose this channel."))
        ways.append((value, min(_number(delay), 86400)))
    move, _sep, index = request.POST.get("do", "").removeprefix("ways:").partition(":")
    if move in ("up", "remove") and 0 <= _number(index) < len(ways):
        at = _number(index)
        if move == "remove":
            del ways[at]
        elif at > 0:
            ways[at - 1], ways[at] = ways[at], ways[at - 1]
    member.preferences.filter(severity=severity).delete()
    rows = []
    for value, seconds in dict(reversed([way for way in ways if way])).items():  # the first of a kind counts
        kind, _sep, channel = value.partition(":")
        rows.append(Preference(member=member, severity=severity, kind=kind, channel_id=_number(channel) or None, delay=seconds))
    order = list(dict.fromkeys(way[0] for way in ways if way))
    rows.sort(key=lambda row: order.index(_way_of(row)))
    for position, row in enumerate(rows[:MOST_WAYS]):
        row.position = position
    Preference.objects.bulk_create(rows[:MOST_WAYS])
    messages.success(request, _("Saved: what happens is written below."))
    return None


def _save_quiet(request: HttpRequest, member: Member, now: datetime) -> Done:
    form = QuietForm(request.POST, instance=member)
    if not form.is_valid():
        member.refresh_from_db()
        return {"quiet": form}
    form.save()
    messages.success(request, _("Saved: what happens is written below.") if member.quiet else _("You have no quiet hours."))
    return None


def _no_quiet(request: HttpRequest, member: Member, now: datetime) -> Done:
    member.quiet_start = member.quiet_end = None
    member.save(update_fields=["quiet_start", "quiet_end"])
    messages.success(request, _("You have no quiet hours."))
    return None


def _find_chats(request: HttpRequest, member: Member, now: datetime) -> Done:
    channel, text = _number(request.POST.get("channel", "")), request.POST.get("text", "")
    return {"chats": accounts.search(member, channel, text, now), "chats_of": channel}


def _add_account(request: HttpRequest, member: Member, now: datetime) -> Done:
    account = accounts.add(member, request.POST)
    messages.info(request, _("%(name)s is added. It is told nothing until it is verified: send a code to it.") % {"name": account})
    return None


def _add_own(request: HttpRequest, member: Member, now: datetime) -> Done:
    kind = request.POST.get("kind", "")
    try:
        account = accounts.add_own(member, kind, request.POST)
    except ValidationError:
        own = accounts.own_form(kind, request.POST)
        if own is None or own.form.is_valid():
            raise
        return {"own": own, "own_label": request.POST.get("label", "")[:100]}  # as it was typed; each field says what is wrong with it
    messages.info(request, _("%(name)s is added. It is told nothing until it is verified: send a code to it.") % {"name": account})
    return None


def _send_account_code(request: HttpRequest, member: Member, now: datetime) -> Done:
    account = _account(request, member)
    verification.send_code(account, now)
    messages.success(request, _("A code is on its way to %(value)s. It is good for ten minutes.") % {"value": account})
    return None


def _verify_account(request: HttpRequest, member: Member, now: datetime) -> Done:
    account = _account(request, member)
    verification.verify(account, request.POST.get("code", "").strip(), now)
    messages.success(request, _("%(value)s is verified. Choose it below for the severities it is for.") % {"value": account})
    return None


def _remove_account(request: HttpRequest, member: Member, now: datetime) -> Done:
    account = _account(request, member)
    accounts.remove(account)
    messages.success(request, _("%(value)s is removed.") % {"value": account})
    return None


def _account(request: HttpRequest, member: Member) -> Account:
    rows = member.accounts.select_related("channel").defer("channel__settings", "channel__proxy")
    account = rows.filter(pk=_number(request.POST.get("account", ""))).first()
    if account is None:
        raise Wrong(_("You have no such account."))
    return account


@transaction.atomic
def _add_key(request: HttpRequest, member: Member, now: datetime) -> Done:
    form = KeyForm(request.POST)
    if not form.is_valid():
        raise Wrong(_errors(form))
    days = form.cleaned_data["days"]
    key, secret = ApiKey.issue(
        member,
        form.cleaned_data["name"],
        read_only=form.cleaned_data["read_only"],
        expires_at=now + timedelta(days=days) if days else None,
    )
    return {"new_key": key, "secret": secret}


def _revoke_key(request: HttpRequest, member: Member, now: datetime) -> Done:
    if not member.api_keys.filter(pk=_number(request.POST.get("key", ""))).delete()[0]:
        raise Wrong(_("You have no such key."))
    messages.success(request, _("The key is revoked: programs that use it are refused from now on."))
    return None


def _switch_device(request: HttpRequest, member: Member, now: datetime) -> Done:
    device = _device(request, member)
    device.enabled = not device.enabled
    device.save(update_fields=["enabled"])
    return None


def _remove_device(request: HttpRequest, member: Member, now: datetime) -> Done:
    _device(request, member).delete()
    messages.success(request, _("The device is unlinked."))
    return None


def _device(request: HttpRequest, member: Member) -> Device:
    device = member.devices.filter(pk=_number(request.POST.get("device", ""))).first()
    if device is None:
        raise Wrong(_("You have no such device."))
    return device


def _cut_links(request: HttpRequest, member: Member, now: datetime) -> Done:
    member.links_valid_from = now
    member.save(update_fields=["links_valid_from"])
    update_session_auth_hash(request, member)  # this browser stays signed in
    messages.success(request, _("Every link you were sent is dead, and other browsers are signed out."))
    return None


ACTIONS: dict[str, Callable[[HttpRequest, Member, datetime], Done]] = {
    "profile": _save_profile,
    "point_add": _add_point,
    "point_code": _send_code,
    "point_verify": _verify,
    "point_first": _first_point,
    "point_remove": _remove_point,
    "ways": _save_ways,
    "quiet": _save_quiet,
    "quiet_off": _no_quiet,
    "chats": _find_chats,
    "account_add": _add_account,
    "own_add": _add_own,
    "account_code": _send_account_code,
    "account_verify": _verify_account,
    "account_remove": _remove_account,
    "key_add": _add_key,
    "key_revoke": _revoke_key,
    "device_switch": _switch_device,
    "device_remove": _remove_device,
    "cut_links": _cut_links,
}


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def _errors(form: forms.BaseForm) -> str:
    """What is wrong, in one line that names the fields."""
    return " ".join(
        f"{form.fields[name].label}: {' '.join(map(str, errors))}" if name in form.fields else " ".join(map(str, errors))
        for name, errors in form.errors.items()
    )


# ---- what the page shows -------------------------------------------------------------------------------------------------------------


def _page(request: HttpRequest, member: Member, now: datetime, **shown: Any) -> HttpResponse:
    points = list(member.contact_points.order_by("position", "id"))
    linked = list(member.accounts.select_related("channel").defer("channel__settings", "channel__proxy").order_by("id"))
    waiting = Verification.objects.filter(expires_at__gt=now)
    first: dict[str, ContactPoint] = {}
    for point in points:
        if point.is_usable:
            first.setdefault(point.kind, point)
    bots = accounts.bots(member)
    choices = _choices(member)
    suggested = "" if any(point.value.lower() == member.email.lower() for point in points) else member.email
    first_kind = ContactPoint.Kind.EMAIL if suggested else ContactPoint.Kind.PHONE
    quiet: QuietForm = shown.get("quiet") or QuietForm(instance=member)
    days, breaks = ({str(value) for value in quiet[name].value() or ()} for name in ("quiet_days", "quiet_breaks"))
    context = {
        "member": member,
        "now": now,
        "points": points,
        "waiting_ids": set(waiting.filter(contact_point__in=points).values_list("contact_point_id", flat=True)),
        "first_ids": {point.pk for point in first.values()},
        "point_kinds": ContactPoint.Kind.choices,
        "new_point": PointForm(initial={"kind": first_kind, "value": suggested}),
        "numbers": [numbers.shown(number) for number in numbers.calling([member.pk])[member.pk]],
        "accounts": [(account, account.channel.owner_id is not None, addresses.label(account.channel.kind)) for account in linked],
        "waiting_accounts": set(waiting.filter(account__in=linked).values_list("account_id", flat=True)),
        "bots": bots,
        "searchable": [bot for bot in bots if hasattr(transports()[bot.kind], "suggest")],
        "own_kinds": accounts.own_kinds(),
        "own": accounts.own_form(request.GET.get("own", "")),
        "most_own": accounts.MOST_OWN,
        "severities": [_severity(member, severity, words, now, choices) for severity, words in SEVERITIES],
        "delays": DELAYS,
        "quiet": quiet,
        "days": [(day, words, str(day) in days) for day, words in enumerate(wishes.DAYS)],
        "breaks": [(severity, words, severity in breaks) for severity, words in SEVERITIES],
        "keys": list(member.api_keys.order_by("id")),
        "most_keys": MOST_KEYS,
        "expiries": EXPIRIES,
        "devices": list(member.devices.order_by("id")),
        "profile": ProfileForm(instance=member),
        "languages": settings.LANGUAGES,
        "zones": sorted(available_timezones()),
        "sandbox": settings.SANDBOX and member.may_use_sandbox,
        **shown,
    }
    return render(request, "web/me.html", context)


@guarded()
@login_required
@require_safe
def contacts(request: HttpRequest) -> HttpResponse:
    """`/me/contacts.vcf`: the contact card of the numbers that call whoever is signed in; 404 where there are none."""
    return card_response(Member.objects.get(pk=request.user.pk), db_now())


def card_response(member: Member, now: datetime) -> HttpResponse:
    """The contact card for `member` as a file to import."""
    card = numbers.card_of(member, now)
    if not card:
        return HttpResponseNotFound(_("No number calls you yet."), content_type="text/plain; charset=utf-8")
    return HttpResponse(
        card, content_type="text/vcard; charset=utf-8", headers={"Content-Disposition": 'attachment; filename="flashduty.vcf"'}
    )


def _usable(member: Member) -> list[Channel]:
    """The channels by which this member could be reached: shared, of their teams, their own."""
    rows = Channel.objects.filter(Channel.usable_q(member), status=Status.ENABLED, kind__in=addresses.kinds_for_people())
    return list(rows.only("id", "name", "kind", "owner_id").order_by("position", "id").distinct())


def _may_choose(member: Member) -> set[str]:
    """What a preference may name: a family (whichever vendor), a kind, or one channel."""
    return {way for row in _usable(member) for way in (addresses.family(row.kind), row.kind, f"{row.kind}:{row.pk}")}


def _choices(member: Member) -> list[tuple[str, str]]:
    """What the page offers of that, as (value, label): families, within them kinds where there are several, and channels where a kind has several
    or they are somebody's own."""
    families: dict[str, dict[str, list[Channel]]] = {}
    for channel in _usable(member):
        families.setdefault(addresses.family(channel.kind), {}).setdefault(channel.kind, []).append(channel)
    order = [*addresses.FAMILIES, *sorted(families.keys() - addresses.FAMILIES.keys())]
    choices = []
    for family in filter(families.__contains__, order):
        kinds = families[family]
        choices.append((family, addresses.label(family)))
        for kind, channels in sorted(kinds.items()):
            if len(kinds) > 1:
                choices.append((kind, f"{addresses.label(family)}: {addresses.label(kind)}"))
            if len(channels) > 1 or any(channel.owner_id for channel in channels):
                choices += [(f"{kind}:{channel.pk}", f"{addresses.label(family)}: {channel.name}") for channel in channels]
    return choices


def _way_of(preference: Preference) -> str:
    return f"{preference.kind}:{preference.channel_id}" if preference.channel_id else preference.kind


def _severity(member: Member, severity: str, words: Any, now: datetime, choices: list[tuple[str, str]]) -> dict[str, Any]:
    """One severity's ways as the form shows them, and a sentence about what really happens: what is missing is not passed over."""
    chosen = list(member.preferences.filter(severity=severity).select_related("channel").order_by("position", "id"))
    found = addresses.reach([member.pk], severity, now, hush=False)[member.pk]
    targets = [item for item in found if isinstance(item, addresses.Target)]
    named = {preference.channel_id for preference in chosen}
    names = dict(Channel.objects.filter(pk__in={target.channel_id for target in targets}).values_list("pk", "name"))
    steps = []
    for target in targets:
        family = addresses.family(target.kind)
        told = str(addresses.FAMILIES[family]) if family in addresses.FAMILIES and family != "im" else addresses.label(target.kind)
        if target.channel_id in named:
            told = _("%(what)s (%(channel)s)") % {"what": told, "channel": names[target.channel_id]}
        steps.append(wishes.Step(told, target.delay, addresses.is_silent(target.kind)))
    rows = []
    for preference in chosen:
        way = _way_of(preference)
        label = preference.channel.name if preference.channel else addresses.label(preference.kind)
        rows.append({"value": way, "delay": preference.delay, "choices": choices if way in dict(choices) else [(way, label), *choices]})
    return {
        "value": severity,
        "words": words,
        "rows": rows,
        "choices": choices,
        "by_default": not chosen,
        "sentence": wishes.sentence(steps, severity, member.quiet),
        "missing": [
            (addresses.label(item.kind) if item.kind else "", _(item.reason)) for item in found if isinstance(item, addresses.Missing)
        ],
        "full": len(chosen) >= MOST_WAYS,
    }
