"""The page behind the link of a message: what happened, who was told, what comes next, and the buttons that answer it. No password.

Two ways in. `/i/<token>/` carries a signed token for one person and one incident, and acts as that person. `/i/<incident id>/` is what group
messages carry: it says nothing about who reads it, so it shows the incident to whoever is signed in and may see it, and, only where the
workspace allows it, a summary to everybody else.

Mail scanners and chat previews open every link they see: a GET never changes anything, and `?ack=1` only puts a button forward.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.utils import timezone, translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.csrf import csrf_exempt, csrf_protect
from django.views.decorators.http import require_http_methods

from channels_app import links
from channels_app.models import Channel, Delivery
from escalation import lifecycle
from escalation.explain import A_GROUP, SOMEBODY_IN, Told, explain
from escalation.ids import hex_id, parse_hex
from escalation.models import Incident, Run
from flashduty.web.login import address_of
from mapping.clock import db_now
from mapping.models import Member, Throttle
from mapping.visibility import Role

AFTER_CLOSE = timedelta(days=1)
SNOOZES = (30, 60, 120, 240, 480, 1440)
MOST_LOOKS, LOOKS_IN = 120, timedelta(minutes=10)

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

View = Callable[..., HttpResponse]


def guarded(referrer: str = "same-origin") -> Callable[[View], View]:
    """Headers of every page here: nothing inline, nothing from elsewhere, not framed, not kept, not indexed, and how much Referer tells."""

    def wrap(view: View) -> View:
        @functools.wraps(view)
        def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
            response = view(request, *args, **kwargs)
            response["Content-Security-Policy"] = _POLICY
            response["Referrer-Policy"] = referrer
            response["Cache-Control"] = "no-store"
            response["X-Robots-Tag"] = "noindex, nofollow"
            response["X-Frame-Options"] = "DENY"
            return response

        return inner

    return wrap


def in_words_of(member: Member) -> Any:
    """A context in which texts are in `member`'s language and times in `member`'s zone."""
    return _Words(member.language, member.time_zone)


@dataclass
class _Words:
    language: str
    zone: str

    def __enter__(self) -> None:
        self.before = translation.get_language()
        try:
            zone = ZoneInfo(self.zone)
        except (ZoneInfoNotFoundError, ValueError):
            zone = ZoneInfo("UTC")  # this machine's list lacks it; a page must open all the same
        self.times = timezone.override(zone)
        translation.activate(self.language)
        self.times.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.times.__exit__(*error)
        translation.activate(self.before or settings.LANGUAGE_CODE)


def home(request: HttpRequest) -> HttpResponse:
    """`/`: to the console, which asks for a sign-in where there is none."""
    return HttpResponseRedirect(settings.LOGIN_REDIRECT_URL)


# ---- the two ways in -----------------------------------------------------------------------------------------------------------------


class Dead(Exception):
    """A link that opens nothing any more, and why, as a sentence."""


def holder_of(token: str, now: datetime) -> tuple[Incident, Member]:
    """The incident and the member of a signed link that is still good at `now`; Dead says why it is not."""
    try:
        link = links.read(token)
    except ValueError:
        raise Dead(_("This link is not valid. Perhaps it was cut when it was copied.")) from None
    member = Member.objects.filter(pk=link.member_id, is_active=True).first()
    if member is None:
        raise Dead(_("This link belongs to somebody who is not active here any more."))
    if member.links_valid_from is not None and link.issued < member.links_valid_from:
        raise Dead(_("This link was revoked by the person it belongs to."))
    incident = Incident.objects.select_related("workspace", "closer").filter(pk=link.topic).first()
    if incident is None:
        raise Dead(_("The incident of this link does not exist any more."))
    if incident.close_time is not None and now >= incident.close_time + AFTER_CLOSE:
        raise Dead(_("This incident was closed more than a day ago, and its links ended with that."))
    return incident, member


# The token is the secret that a forged form cannot know, and `no-referrer` makes browsers send "Origin: null", which Django's check refuses.
@csrf_exempt
@guarded("no-referrer")
@require_http_methods(["GET", "HEAD", "POST"])
def personal(request: HttpRequest, token: str) -> HttpResponse:
    """`/i/<token>/`: the page of one person about one incident."""
    now = db_now()
    try:
        incident, member = holder_of(token, now)
    except Dead as dead:
        return render(request, "web/dead.html", {"why": str(dead)}, status=410)
    with in_words_of(member):
        return _page(request, incident, member, "link", now)


@csrf_protect
@guarded()
@require_http_methods(["GET", "HEAD", "POST"])
def shared(request: HttpRequest, wire_id: str) -> HttpResponse:
    """`/i/<24 hex>/`: what a group message links to. It carries no identity: one signs in, or the workspace allows a group to act."""
    now = db_now()
    incident = Incident.objects.select_related("workspace", "closer").filter(pk=parse_hex(wire_id) or 0).first()
    if incident is not None and hex_id(incident.created_at, incident.pk) != wire_id:
        incident = None
    reader = request.user
    if isinstance(reader, Member) and reader.is_active:
        if incident is None or not Incident.objects.visible_to(reader).filter(pk=incident.pk).exists():
            return render(request, "web/dead.html", {"why": _("There is no such incident, or you may not see it.")}, status=404)
        with in_words_of(reader):
            return _page(request, incident, reader, "console", now)
    # Ids can be guessed one by one, and nobody may try many: wrong ones count too, and who is over the limit is answered alike for all.
    if not Throttle.hit(f"group-link:{address_of(request)}", MOST_LOOKS, LOOKS_IN, now):
        return _not_now(request)
    if incident is not None and incident.workspace.group_may_act and not _over(incident, now):
        return _summary(request, incident, now)
    # The same answer whether or not there is such an incident.
    return HttpResponseRedirect(_sign_in(request))


def _over(incident: Incident, now: datetime) -> bool:
    return incident.close_time is not None and now >= incident.close_time + AFTER_CLOSE


# ---- what the buttons do -------------------------------------------------------------------------------------------------------------


def act(verb: str, incident_id: int, member: Member, via: str, now: datetime, fields: Mapping[str, Any]) -> None:
    """Makes the move a button stands for, as `member`; lifecycle.Refused when it cannot be made."""
    if member.role == Role.VIEWER:
        raise lifecycle.Refused("invalid", _("You may look at incidents, but not change them: your role is viewer."))
    who: dict[str, Any] = {"actor": member, "via": via, "now": now}
    match verb:
        case "acknowledge" | "unacknowledge" | "close" | "escalate" | "wake":
            getattr(lifecycle, verb)(incident_id, **who)
        case "snooze":
            minutes = str(fields.get("minutes", ""))
            lifecycle.snooze(incident_id, minutes=int(minutes) if minutes.isdecimal() and len(minutes) < 6 else 0, **who)
        case "reopen":
            lifecycle.reopen(incident_id, reason=str(fields.get("reason", "")), **who)
        case "comment":
            lifecycle.comment(incident_id, text=str(fields.get("text", "")), **who)
        case _:
            raise lifecycle.Refused("invalid", _("There is no such button."))


# What a button leaves in the timeline: after it the page says that it was done, if it was.
_ENTRIES = {
    "acknowledge": ("i_ack", gettext_lazy("Acknowledged. It is yours.")),
    "unacknowledge": ("i_unack", gettext_lazy("Your acknowledgement is taken back.")),
    "close": ("i_rslv", gettext_lazy("Closed.")),
    "escalate": ("i_escalate", gettext_lazy("Escalated: the next layer is being told.")),
    "snooze": ("i_snooze", gettext_lazy("Snoozed. It comes back by itself.")),
    "wake": ("i_wake", gettext_lazy("The snooze is over, and the layer starts again.")),
    "reopen": ("i_reopen", gettext_lazy("Reopened.")),
    "comment": ("i_comm", gettext_lazy("Your comment is in the timeline.")),
}


def _done(incident: Incident, verb: str, member: Member | None, now: datetime) -> str:
    """The sentence after a button, from the timeline and not from the address, which anybody can write."""
    if verb not in _ENTRIES:
        return ""
    kind, words = _ENTRIES[verb]
    lately = incident.timeline.filter(type=kind, actor=member, created_at__gte=now - timedelta(minutes=1))
    return str(words) if lately.exists() else ""


def _page(request: HttpRequest, incident: Incident, member: Member, via: str, now: datetime) -> HttpResponse:
    refused, status = "", 200
    if request.method == "POST":
        verb = request.POST.get("do", "")
        try:
            act(verb, incident.pk, member, via, now, request.POST)
            return HttpResponseRedirect(f"{request.path}?done={verb}")
        except lifecycle.Refused as error:
            refused, status = error.message, 409
            incident.refresh_from_db()
    story = explain(incident, now, member)
    story.happened.reverse()
    acknowledged = list(
        incident.responders.filter(acknowledged_at__isnull=False).select_related("member").order_by("acknowledged_at", "id")
    )
    assigned = list(incident.responders.filter(assigned_at__isnull=False).select_related("member").order_by("assigned_at", "id"))
    # Pages look again every few seconds; what they show has not changed when this has not.
    seen = repr(
        (
            incident.version,
            incident.alert_count,
            story.happened,
            story.told,
            story.not_told,
            [item.text for item in story.ahead],
            translation.get_language(),
        )
    )
    tag = f'"{hashlib.sha256(seen.encode("utf-8", "replace")).hexdigest()[:32]}"'
    if request.method == "GET" and request.headers.get("If-None-Match") == tag:
        response = HttpResponse(status=304)
        response["ETag"] = tag
        return response
    context = {
        "incident": incident,
        "story": story,
        "told": _told(story.told),
        "member": member,
        "now": now,
        "refused": refused,
        "done": _done(incident, request.GET.get("done", ""), member, now),
        "focus": "ack" in request.GET,
        "may_act": member.role != Role.VIEWER,
        "has_next_layer": _has_next_layer(incident),
        "acknowledged": acknowledged,
        "mine": any(responder.member_id == member.pk for responder in acknowledged),
        "assigned": assigned,
        "alerts": list(incident.alerts.order_by("-last_time")[:20]),
        "snoozes": SNOOZES,
        "signed_in": via == "console",
    }
    response = render(request, "web/incident.html", context, status=status)
    response["ETag"] = tag
    return response


@dataclass(slots=True)
class _Way:
    """All messages to one person by one channel, as one line."""

    who: str
    channel: str
    address: str
    count: int
    last: Told

    @property
    def state_words(self) -> str:
        return str(Delivery.State(self.last.state).label)


def _told(rows: Sequence[Told]) -> list[_Way]:
    ways: dict[tuple[str, str, str], _Way] = {}
    for row in rows:
        way = ways.setdefault((row.who, row.channel, row.address), _Way(row.who, row.channel, row.address, 0, row))
        way.count += 1
        way.last = row
    return list(ways.values())


def _has_next_layer(incident: Incident) -> bool:
    run = Run.objects.select_related("snapshot").filter(incident=incident, kind=Run.Kind.RULE).order_by("-pk").first()
    return run is not None and max(run.layer_idx, -1) + 1 < len(run.snapshot.body["layers"])


def _sign_in(request: HttpRequest) -> str:
    return f"{settings.LOGIN_URL}?{urlencode({'next': request.path})}"


def _not_now(request: HttpRequest) -> HttpResponse:
    """To somebody without a sign-in whose address opened too many of these pages; those who have an account go on with it."""
    why = _("Too many pages were opened from your address. Try again in ten minutes.")
    response = render(request, "web/dead.html", {"why": why, "title": _("Not now"), "login": _sign_in(request)}, status=429)
    response["Retry-After"] = str(int(LOOKS_IN.total_seconds()))
    return response


def _summary(request: HttpRequest, incident: Incident, now: datetime) -> HttpResponse:
    """What a group may see without signing in, and the one thing it may do."""
    refused, status = "", 200
    if request.method == "POST":
        try:
            if request.POST.get("do") != "acknowledge":
                raise lifecycle.Refused("invalid", _("A group can only acknowledge. Sign in to do more."))
            who = SOMEBODY_IN % {"group": _groups_told(incident) or A_GROUP}
            lifecycle.acknowledge(incident.pk, actor=None, via="group", now=now, by=who)
            return HttpResponseRedirect(f"{request.path}?done=acknowledge")
        except lifecycle.Refused as error:
            refused, status = error.message, 409
            incident.refresh_from_db()
    context = {
        "incident": incident,
        "now": now,
        "refused": refused,
        "done": _done(incident, request.GET.get("done", ""), None, now) and _("Acknowledged for your group."),
        "groups": _groups_told(incident) or _(A_GROUP),
        "focus": "ack" in request.GET,
        "login": _sign_in(request),
    }
    return render(request, "web/summary.html", context, status=status)


def _groups_told(incident: Incident) -> str:
    """The groups that were told of it, by name: one of them holds the link. "" where none of them is known."""
    told = Delivery.objects.filter(topic=incident.pk, member=None, address__target="").values("channel_id")
    return " / ".join(Channel.objects.filter(id__in=told).order_by("name").values_list("name", flat=True))
