"""The sandbox: phones, mailboxes and group chats of people, played by a page. What arrives here left through the same outbox as a real page.

It shows other people's messages and presses keys as them, so: only where it is switched on, only for members with that permission, and
only messages of channels that play inside the product; a real phone's message is never shown and never answered from here.
"""

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db.models import Exists, OuterRef, Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_GET, require_POST

from channels_app import links, outbox
from channels_app.models import Channel, Delivery, Preference
from channels_app.transport import transports
from escalation import intake, lifecycle, sources
from escalation.ids import hex_id
from escalation.models import Incident, Integration
from escalation.models.workspace import SEVERITIES
from flashduty.templatetags.web import calm
from flashduty.web import pages
from mapping.clock import db_now
from mapping.models import Member
from mapping.visibility import Role, Status

ARRIVED = (Delivery.State.SENT, Delivery.State.DELIVERED, Delivery.State.ANSWERED)
MOST = 200
# What changed just before the reader's last look may have been committed just after it.
OVERLAP = timedelta(seconds=15)
KEYS = {"1": "acknowledge", "2": "escalate", "3": "close"}
SNOOZE_MINUTES = 30


@functools.cache
def demo_kinds() -> list[str]:
    """Kinds of channels that play inside the product."""
    return [kind for kind, transport in transports().items() if transport.demo]


def players_only(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """404 where the sandbox is off, 403 for members without the permission; nobody signed in: to the sign-in page, or 403 for its data."""

    @functools.wraps(view)
    def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not settings.SANDBOX:
            raise Http404
        member = request.user
        if not member.is_authenticated:
            if view.__name__ == "sandbox":
                return HttpResponseRedirect(f"{settings.LOGIN_URL}?{urlencode({'next': request.path})}")
            return JsonResponse({"error": _("Sign in first.")}, status=403)
        if not (isinstance(member, Member) and member.is_active and member.may_use_sandbox):
            why = _(
                "The sandbox shows messages of other people and presses keys as them. An administrator can allow it on your member page."
            )
            return render(request, "web/dead.html", {"why": why, "title": _("The sandbox is not open to you")}, status=403)
        return view(request, *args, **kwargs)

    return inner


def reader(request: HttpRequest) -> Member:
    """Who looks, after `players_only` let them in."""
    assert isinstance(request.user, Member)
    return request.user


@ensure_csrf_cookie
@pages.guarded()
@players_only
@require_GET
def sandbox(request: HttpRequest) -> HttpResponse:
    """The page: a phone for everybody who may be paged through the sandbox, and its group chats."""
    preferred = Preference.objects.filter(member=OuterRef("pk"), kind__in=demo_kinds())
    told = Delivery.objects.filter(member=OuterRef("pk"), channel__kind__in=demo_kinds())
    people = Member.objects.filter(Q(is_active=True) & (Q(Exists(preferred)) | Q(Exists(told)))).order_by("id")[:12]
    # Whoever answers first stands first: those with a supervisor, then the supervisors, then administrators.
    people = sorted(people, key=lambda member: (member.role == Role.ADMINISTRATOR, member.supervisor_id is None, member.pk))
    groups = Channel.objects.filter(kind__in=[kind for kind in demo_kinds() if transports()[kind].group]).exclude(status=Status.DELETED)
    with pages.in_words_of(reader(request)):
        words = _words()
        context = {
            "people": people,
            "groups": groups.order_by("id")[:6],
            "words": words,
            "apps": [{"kind": kind, "label": words[kind]} for kind in ("app", "voice", "sms", "im", "email")],
            "sources": _sources(reader(request)).exists(),
            "severities": SEVERITIES,
        }
        return render(request, "web/sandbox.html", context)


def _sources(member: Member) -> Any:
    """Where the page's own alert may be sent from: only beside a demo, and only what the member may configure and could POST to anyway."""
    if settings.MODE == "production":
        return Integration.objects.none()
    return Integration.objects.changeable_by(member).filter(kind="standard", status=Status.ENABLED, workspace__status=Status.ENABLED)


def _words() -> dict[str, str]:
    """What the page's script says."""
    return {
        "now": _("now"), "minute": _("%s min ago"), "calling": _("Incoming call"), "pickUp": _("Answer"), "hangUp": _("Hang up"),
        "inCall": _("On the phone"), "missed": _("Missed call"), "called": _("Call"), "keys": _("1 acknowledge · 2 escalate · 3 close"),
        "details": pgettext("look at", "Open"), "empty": _("Nothing has arrived yet."), "offline": _("The server does not answer; trying again."),
        "repeat": _("may be a repeat"), "app": _("Flashduty"), "voice": _("Phone"), "sms": _("Messages"), "email": _("Mail"),
        "im": _("Chat"), "acknowledge": _("Acknowledge"), "snooze": _("Snooze 30 min"), "escalate": _("Escalate"), "close": _("Close"),
        "failed": _("That did not work. Try again."), "live": _("live"), "bot": _("Flashduty bot"), "signIn": _("You are signed out: load the page again."),
    }  # fmt: skip


@pages.guarded()
@players_only
@require_GET
def messages(request: HttpRequest) -> HttpResponse:
    """`{now, cursor, messages: [...]}` of what arrived or changed since `after` (a cursor; empty = everything lately); 304 when nothing did.

    Asked once a second by every open page: three small queries, and the texts are read only for what is new.
    """
    now = db_now()
    rows = list(
        Delivery.objects.filter(channel__kind__in=demo_kinds())
        .filter(Q(state__in=ARRIVED) | Q(state=Delivery.State.FAILED, sent_at__isnull=False))
        .order_by("-id")
        .values("id", "state", "topic", "sent_at", "delivered_at", "answered_at", "ended_at")[:MOST]
    )
    bundled = defaultdict(list)
    for carrier, topic in (
        Delivery.objects.filter(bundled_by__in=[row["id"] for row in rows]).order_by("id").values_list("bundled_by", "topic")
    ):
        bundled[carrier].append(topic)
    about = {row["id"]: [topic for topic in dict.fromkeys([row["topic"], *bundled[row["id"]]]) if topic] for row in rows}
    incidents = {
        incident.pk: incident
        for incident in Incident.objects.filter(pk__in={topic for topics in about.values() for topic in topics}).only(
            "title", "num", "severity", "progress", "version", "created_at", "updated_at"
        )
    }
    seen = repr([(row["id"], row["state"], [(t, incidents[t].version) for t in about[row["id"]] if t in incidents]) for row in rows])
    tag = f'"{hashlib.sha256(seen.encode()).hexdigest()[:32]}"'
    if request.headers.get("If-None-Match") == tag:
        response = HttpResponse(status=304)
        response["ETag"] = tag
        return response

    def changed(row: Any) -> datetime:
        own = [row[name] for name in ("sent_at", "delivered_at", "answered_at", "ended_at")]
        return max([at for at in (*own, *(incidents[t].updated_at for t in about[row["id"]] if t in incidents)) if at], default=now)

    cursor = max((changed(row) for row in rows), default=now)
    after = _instant(request.GET.get("after", ""))
    wanted = [row["id"] for row in rows if after is None or changed(row) + OVERLAP >= after]
    texts = Delivery.objects.filter(id__in=wanted).order_by("id").values(
        "id", "member_id", "channel_id", "channel__kind", "subject", "text", "state", "sent_at", "possible_repeat", "is_page",
        "notification__event", "notification__severity", "reason",
    )  # fmt: skip
    with pages.in_words_of(reader(request)):
        body = {
            "now": _ms(now),
            "cursor": cursor.isoformat(),
            "messages": [_shown(row, [incidents[t] for t in about[row["id"]] if t in incidents], now) for row in texts],
        }
    response = JsonResponse(body)
    response["ETag"] = tag
    return response


def _instant(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _ms(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment else 0


def _shown(row: Mapping[str, Any], incidents: list[Incident], now: datetime) -> dict[str, Any]:
    """One message as the page shows it. In a person's hands it has buttons and that person's own links; in a group it has neither."""
    kind, member_id = row["channel__kind"].removeprefix("sandbox_"), row["member_id"]
    open_ones = [incident for incident in incidents if incident.progress != lifecycle.CLOSED]
    buttons: list[str] = []
    if member_id is not None and row["is_page"] and open_ones and kind in ("app", "im", "voice"):
        waiting = any(incident.progress == lifecycle.TRIGGERED for incident in open_ones)
        buttons = [*(["acknowledge"] if waiting else []), "snooze", "escalate", "close"]

    def path(incident: Incident) -> str:
        url = links.group_link(hex_id(incident.created_at, incident.pk))
        if member_id is not None:
            url = links.person_link(incident.pk, member_id, now)
        return url.removeprefix(settings.BASE_URL)  # on the host this page was opened at

    return {
        "id": row["id"],
        "member": member_id,
        "channel": row["channel_id"],
        "kind": kind,
        "event": row["notification__event"],
        "severity": row["notification__severity"],
        "subject": calm(row["subject"]),
        "text": _with_links(calm(row["text"]), path(incidents[0]) if len(incidents) == 1 else ""),
        "state": row["state"],
        "reason": row["reason"],
        "at": _ms(row["sent_at"]),
        "repeat": row["possible_repeat"],
        "buttons": buttons,
        "incidents": [
            {
                "num": incident.num,
                "title": calm(incident.title),
                "severity": incident.severity,
                "progress": incident.progress,
                "progress_words": incident.get_progress_display(),
                "url": path(incident),
            }
            for incident in incidents[:30]
        ],
    }


# A person's link as the outbox keeps it: without its token (channels_app.compose), so the reader of a record cannot act as that person.
_CUT_LINK = re.compile(r"https?://[^\s/]+/i/…(/\S*)?")


def _with_links(text: str, path: str) -> str:
    """The text with its person's link made anew (as a path on this host); without it where one link cannot stand for several incidents."""
    return _CUT_LINK.sub(lambda found: f"{path.rstrip('/')}{found[1] or '/'}" if path else "", text)


@pages.guarded()
@players_only
@require_POST
def press(request: HttpRequest) -> HttpResponse:
    """Somebody presses `do` (a button's verb, a key 1-3, pick_up, hang_up) on the message `delivery`, as the member it was sent to."""
    now = db_now()
    number = request.POST.get("delivery", "")
    delivery = (
        Delivery.objects.select_related("channel", "member")
        .filter(pk=int(number) if number.isdecimal() and len(number) < 19 else 0, channel__kind__in=demo_kinds(), member__is_active=True)
        .filter(state__in=ARRIVED)
        .first()
    )
    if delivery is None or delivery.member is None:
        return JsonResponse({"error": _("There is no such message in the sandbox.")}, status=404)
    do = request.POST.get("do", "")
    if do in ("pick_up", "hang_up"):
        if delivery.state == Delivery.State.SENT and transports()[delivery.channel.kind].format == "voice":
            state, why = (Delivery.State.DELIVERED, "") if do == "pick_up" else (Delivery.State.FAILED, _("the call was declined"))
            outbox.receipt(delivery.channel_id, delivery.message_id, state, why, now)
        return JsonResponse({"ok": True})
    verb = KEYS.get(do, do)
    if verb not in ("acknowledge", "snooze", "escalate", "close"):
        return JsonResponse({"error": _("This key does nothing.")}, status=400)
    via = "voice" if transports()[delivery.channel.kind].format == "voice" else "card"
    topics = [delivery.topic, *delivery.bundled.order_by("id").values_list("topic", flat=True)]
    refused = ""
    for topic in sorted({topic for topic in topics if topic}):
        try:
            pages.act(verb, topic, delivery.member, via, now, {"minutes": str(SNOOZE_MINUTES)})
        except lifecycle.Refused as error:
            refused = error.message
    outbox.answered(delivery.pk, now)
    return JsonResponse({"error": refused}, status=409) if refused else JsonResponse({"ok": True})


@pages.guarded()
@players_only
@require_POST
def alert(request: HttpRequest) -> HttpResponse:
    """Sends an alert (or, with `status` Ok, its recovery) to the demo's first source, exactly as a POST of an alert source would."""
    source = _sources(reader(request)).order_by("id").first()
    if source is None:
        return JsonResponse({"error": _("There is no alert source that you may configure.")}, status=404)
    title = request.POST.get("title", "")
    payload = {"title_rule": title, "event_status": request.POST.get("status", ""), "alert_key": f"sandbox:{sources.key_of(title)}"}
    try:
        parsed = sources.parse("standard", payload | {"description": _("Sent from the sandbox page.")}, {})
    except sources.BadEvent as error:
        return JsonResponse({"error": f"{error.field} {error.message}"}, status=400)
    intake.accept(source.pk, [event for event in parsed if isinstance(event, sources.Parsed)])
    return JsonResponse({"ok": True})
