"""Trying a channel out: a real message by it as it stands in a form or in the database, the provider's own answer in words, and chats to find.

Two ways. `connection` asks the provider at once and keeps nothing: for settings that are not saved yet, and beside a channel in a rule.
`send_test` goes through the outbox like every page, so it tries the workers as well; its delivery says what became of it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _

from channels_app import addresses, outbox, transport, trial
from channels_app.models import Account, Channel, Delivery
from channels_app.transport import DeliveryError, Receipt
from escalation.targets import in_words
from mapping.clock import db_now
from mapping.models import ContactPoint, Member, Throttle
from mapping.visibility import Role
from templates_app.events import build_test

MOST: Final = 20  # tests of one member
WINDOW: Final = timedelta(minutes=5)
MOST_CHATS: Final = 5  # of one channel in one test
PATIENCE: Final = 10.0  # seconds; after these no further chat is begun
_IP: Final = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_LISTED: Final = ("IP list", "allow list", "白名单")  # how a refusal of where we call from is worded, in both languages


@dataclass(frozen=True, slots=True)
class Said:
    """What the provider answered for one place. `place` is "" for the channel itself."""

    place: str
    accepted: bool
    text: str  # what happened and what to do; for what was accepted: what the provider adds
    details: tuple[str, ...] = ()


def may_test(member: Any, channel: Channel) -> bool:
    """Whether `member` may send a test by this channel: it is their teams' or shared, and they configure things at all."""
    if not isinstance(member, Member) or member.role not in (Role.ADMINISTRATOR, Role.MANAGER):
        return False
    return Channel.objects.filter(Channel.usable_q(member), pk=channel.pk).exists()


def connection(channel: Channel, member: Member, now: datetime, *, to: str = "") -> list[Said]:
    """Sends a test by `channel` as it stands, saved or not, and returns what the provider said of each place.

    `to`: a phone or mailbox for kinds that reach one; "" is the member's own, and only administrators name somebody else's. Raises
    ValidationError with a sentence where there is nowhere to send to, or where too much was tested lately. Whoever calls has asked whether
    the member may."""
    targets = _targets(channel, member, to.strip())
    if not Throttle.hit(f"connection {member.pk}", MOST, WINDOW, now):
        raise ValidationError(_("Too many tests were sent. Try again in a few minutes."), code="too_many")
    until = time.monotonic() + PATIENCE
    found: list[Said] = []
    for target, is_own in targets[:MOST_CHATS]:
        if found and time.monotonic() > until:
            break
        result = trial.send(channel, target, member, now, to_sender=is_own)
        found.append(said("" if target.startswith("member:") else target, result.said, result.seconds))
    return found


def takes_address(style: type[transport.Transport]) -> bool:
    """Whether a test by this kind can be sent to a phone or mailbox that is typed in."""
    return style.reach in ("phone", "email")


def own_address(style: type[transport.Transport], member: Any) -> str:
    """The member's own verified phone or mailbox for this kind; "" where there is none."""
    return next(iter(_own(style, member)), "")


def _own(style: type[transport.Transport], member: Any) -> list[str]:
    points = ContactPoint.objects.filter(member=member, kind=style.reach).order_by("position", "id")
    return [point.value for point in points if point.is_usable]


def _targets(channel: Channel, member: Member, to: str) -> list[tuple[str, bool]]:
    """Where a test goes, and whether that is the member's own."""
    style = transport.get(channel.kind)
    if style.reach == "member":
        return [(f"member:{member.pk}", True)]
    if takes_address(style):
        own = _own(style, member)
        if not to and not own:
            raise ValidationError(
                _("Enter a phone number to send to: you have none that is verified.")
                if style.reach == "phone"
                else _("Enter an e-mail address to send to: you have none that is verified.")
            )
        point = ContactPoint(kind=style.reach, value=to or own[0])
        try:
            point.clean()
        except ValidationError as error:
            raise ValidationError(error.messages) from None
        if point.value not in own and not member.is_administrator:
            raise ValidationError(_("A test goes to your own verified address. Only an administrator sends one to somebody else."))
        return [(point.value, point.value in own)]
    chats = [target for target in style.targets(channel.settings) if target or style.reach == "group"] if style.group else []
    if chats:
        return [(chat, False) for chat in chats]
    if channel.pk:
        own = list(Account.objects.filter(channel=channel.pk, member=member, verified_at__isnull=False).values_list("target", flat=True))
        if own:
            return [(target, True) for target in own]
    raise ValidationError(_("There is nobody to send to: enter a chat, or add and verify your own account on this platform first."))


def said(place: str, outcome: Receipt | DeliveryError, seconds: float) -> Said:
    """What came of one message, in words: what the provider said, and what else is worth knowing before the next try."""
    took = _("%(seconds).1f s") % {"seconds": seconds}
    if isinstance(outcome, Receipt):
        words = _("The message has been delivered.") if outcome.state == "delivered" else _("The provider has taken the message.")
        details = [took, _("message %(id)s") % {"id": outcome.message_id[:80]} if outcome.message_id else "", outcome.detail]
        if outcome.moved:
            details.append(_("The address is now %(address)s: enter that one.") % {"address": outcome.moved})
        return Said(place, True, words, tuple(filter(None, details)))
    details = [took]
    if outcome.left:
        details.append(_("It may have arrived all the same: look before you try again."))
    if outcome.retry_after and not outcome.blocked:
        details.append(_("The provider asks to wait %(seconds)d seconds.") % {"seconds": round(outcome.retry_after)})
    if outcome.blocked:
        details.append(_("It takes nothing more for %(seconds)d seconds.") % {"seconds": round(outcome.blocked)})
    if outcome.config and any(word in outcome.text for word in _LISTED) and not _IP.search(outcome.text):
        details.append(
            _("Which address this installation calls from is said by: curl https://ifconfig.me, on its machine (or its proxy's).")
        )
    return Said(place, False, outcome.text, tuple(details))


# ---- what the pages show -------------------------------------------------------------------------------------------------------------


def answer_test(request: HttpRequest, channel: Channel, to: str = "") -> HttpResponse:
    """The part of a page that says how a test went."""
    found: Sequence[Said] = ()
    problems: list[str] = []
    try:
        found = connection(channel, request.user, db_now(), to=to)  # type: ignore[arg-type]
    except ValidationError as error:
        problems = error.messages
    style = transport.get(channel.kind)
    later = any(one.accepted for one in found) and issubclass(style, transport.Receives | transport.Polls)
    return _part(request, "tested", {"said": found, "problems": problems, "later": later, "voice": style.family == "voice"})


def answer_problems(request: HttpRequest, form: forms.BaseForm, besides: Sequence[str] = ()) -> HttpResponse | None:
    """The part of a page that says what to mend in a form first; None where nothing but `besides` is wrong."""
    wrong = {name: lines for name, lines in form.errors.items() if name not in besides}
    if not wrong:
        return None
    problems = [
        f"{form.fields[name].label}: {line}" if name in form.fields else str(line) for name, lines in wrong.items() for line in lines
    ]
    return _part(request, "tested", {"problems": problems})


def answer_sentence(request: HttpRequest, sentence: str) -> HttpResponse:
    """The part of a page that says why nothing was tried."""
    return _part(request, "tested", {"problems": [sentence]})


def answer_chats(request: HttpRequest, channel: Channel, field: str) -> HttpResponse:
    """The part of a page that lists the addresses a provider knows, each to be added to the form's `field`."""
    member: Any = request.user
    style = transport.get(channel.kind)
    problems: list[str] = []
    found: Sequence[tuple[str, str]] = ()
    if not Throttle.hit(f"connection {member.pk}", MOST, WINDOW, db_now()):
        problems = [_("Too many tests were sent. Try again in a few minutes.")]
    else:
        opened = trial.opened(channel)
        try:
            found = opened.suggest("") if isinstance(opened, transport.Suggests) else ()
        except DeliveryError as error:
            problems = [trial.redact(error.text, trial.secrets(style, channel.settings))]
    return _part(request, "chats", {"found": found[:50], "problems": problems, "field": field})


def _part(request: HttpRequest, name: str, context: Mapping[str, Any]) -> HttpResponse:
    answer = render(request, f"admin/console/{name}.html", dict(context))
    answer["Cache-Control"] = "no-store"
    return answer


# ---- through the outbox --------------------------------------------------------------------------------------------------------------


def send_test(channel: Channel, member: Any) -> int:
    """Posts a test by `channel`, to the channel itself or to `member`; the id of the delivery that shows what becomes of it."""
    now = db_now()
    style = transport.get(channel.kind)
    if channel.status != "enabled":
        raise ValidationError(_("The channel is not enabled: enable it first."))
    if style.group and any(channel.targets or [""]):
        to = outbox.To(channel_id=channel.pk, target=channel.targets[0])
    elif style.group and style.reach == "group":
        to = outbox.To(channel_id=channel.pk, target="")
    else:
        to = outbox.To(channel_id=channel.pk, target=_own_target(style, member, now), member_id=member.pk)
    with transaction.atomic():
        notice = outbox.Notice(
            event="test", severity="Info", context=build_test(channel.name, member.name, now), to=(to,), is_page=False, rank=0
        )  # fmt: skip
        (posted,) = outbox.post([notice], now)
        return Delivery.objects.filter(notification=posted).values_list("pk", flat=True).get()


def attempts(row: Delivery) -> list[str]:
    """What became of a delivery: a line for each attempt, and for what the provider reported afterwards, by the viewer's clock."""
    names = {str(value): str(label) for value, label in Delivery.State.choices}
    lines = []
    for number, started, seconds, result, text in row.log:
        # What took no time was no attempt of ours: somebody told us, or nobody did.
        took = f"{seconds:.3f} s" if seconds else _("reported")
        lines.append((datetime.fromtimestamp(started, UTC), str(number), took, names.get(str(result), str(result)), in_words(str(text))))
    told = {str(entry[3]) for entry in row.log}
    for state, moment in (("delivered", row.delivered_at), ("answered", row.answered_at)):
        if moment is not None and state not in told:
            lines.append((moment, "", _("reported"), names[state], ""))
    lines.sort(key=lambda line: line[0])
    return [
        " · ".join(filter(None, (number, timezone.localtime(at).strftime("%H:%M:%S"), took, result, text)))
        for at, number, took, result, text in lines
    ]


def _own_target(style: type[transport.Transport], member: Any, now: datetime) -> str:
    """Where `member` is reached by this kind; ValidationError with the reason when they cannot be."""
    ways = addresses.reach([member.pk], "Info", now, kinds=[style.kind])[member.pk]
    for way in ways:
        if isinstance(way, addresses.Target):
            return way.target
    reasons = [_(way.reason) for way in ways if isinstance(way, addresses.Missing)]
    raise ValidationError(
        _("A test by this channel goes to you, and you cannot be reached by it: %(reason)s") % {"reason": " ".join(reasons)}
    )
