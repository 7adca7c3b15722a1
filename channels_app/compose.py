"""A claimed delivery becomes a Message, and the attempt becomes a Result: what a sender thread does. No database here."""

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

from django.utils.translation import gettext as _

from channels_app import http, links, policy
from channels_app.book import Open, Person
from channels_app.transport import DeliveryError, Message, Receipt
from mapping.models.contact_point import mask
from templates_app.choose import Rendered, TemplateRow, render_bundle, render_or_default
from templates_app.events import BUNDLE, CODE, addressed
from templates_app.render import TemplateFailed, render

log = logging.getLogger(__name__)

_TOKEN: Final = re.compile(r"(/i/)[^\s/\"'<>)\]]+")
_HIDDEN_CODE: Final = "******"
# A bundle for a transport without a length limit of its own.
_ROOM: Final = 20_000


@dataclass(frozen=True, slots=True)
class Said:
    """A notification as plain values."""

    id: int
    event: str
    severity: str
    topic: int | None
    layer_idx: int | None
    context: Mapping[str, Any]
    texts: Sequence[TemplateRow]
    has_secret: bool
    lost: bool = False  # what it has to say was encrypted with a key that is gone


@dataclass(slots=True)
class Claimed:
    """A delivery that is ours to send. `bundle`: the other deliveries that go out inside its message."""

    id: int
    uid: UUID
    attempt: int
    tries: int
    possible_repeat: bool
    is_page: bool
    said: Said
    channel: Open
    address_id: int
    target: str
    member: Person | None
    mentions: tuple[str, ...]
    language: str
    deadline_at: datetime
    give_up_at: datetime
    bundle: tuple["Claimed", ...] = ()
    left_over: int = 0
    at: datetime = field(kw_only=True)

    @property
    def reader(self) -> dict[str, str] | None:
        person = self.member
        return None if person is None else {"name": person.name, "language": person.language, "time_zone": person.time_zone}

    @property
    def url(self) -> str:
        """Where the reader of this delivery opens its incident: a signed page for a person, one without identity for everybody else."""
        if self.member is not None and self.said.topic is not None:
            return links.person_link(self.said.topic, self.member.id, self.at)
        return str(self.said.context.get("detail_url") or "")

    @property
    def key(self) -> str:
        """By what a provider knows a repeat: the same only for the same deliveries. With the carrier's alone, a message that was lost and is repeated
        with others inside would be answered with the old one, and nobody would read of the others."""
        if not self.bundle:
            return str(self.uid)
        return str(uuid5(self.uid, ",".join(sorted(str(one.uid) for one in self.bundle))))

    def incident(self, url: str) -> dict[str, Any]:
        context = self.said.context
        return {
            "id": context.get("id", ""), "num": context.get("num", ""), "title": context.get("title", ""), "event": self.said.event,
            "severity": self.said.severity, "url": url, "possible_repeat": self.possible_repeat,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """An attempt that ended."""

    claimed: Claimed
    started: datetime
    seconds: float
    said: Receipt | DeliveryError
    subject: str = ""
    text: str = ""
    failed_template: tuple[int, str] | None = None


# A render is processor time alone: with all senders at it at once the thread that claims and beats gets the interpreter once in a third of
# a second, and a starved machine's supervisor takes it for dead (5 s of silence were seen).
_RENDERING = threading.BoundedSemaphore(4)


def send(claimed: Claimed, now: datetime) -> Result:
    """Renders and sends one message; whatever goes wrong is in the Result. `now`: when the attempt began."""
    began = time.monotonic()
    rendered = Rendered("", "")
    shown: tuple[str, str] = ("", "")
    said: Receipt | DeliveryError
    try:
        opened = claimed.channel.transport
        if opened is None:
            raise DeliveryError(claimed.channel.trouble, permanent=True, config=True)
        if claimed.said.lost:
            raise DeliveryError(_("What it says was encrypted with a key that is not there any more."), permanent=True)
        with _RENDERING:
            message, rendered = compose(claimed, now)
            shown = _shown(claimed, rendered, message)
        if (now - claimed.at).total_seconds() + time.monotonic() - began > policy.stale_after(claimed.attempt):
            raise policy.NotBegun(_("This machine was too busy to send it in time: it is looked at again first."))
        with http.deadline(http.TOTAL_SECONDS):  # for all requests of it: the lease and the page's budget count on it
            said = opened.send(message, claimed.target)
    except DeliveryError as error:
        said = error
    except Exception as error:
        # A fault of ours in a transport or in a text. Whether a request left is anybody's guess, so it counts as if it had.
        log.exception("sending by channel %s (%s) failed", claimed.channel.id, claimed.channel.kind)
        said = DeliveryError(_("Internal error: %(kind)s.") % {"kind": type(error).__name__}, permanent=False, left=True)
    if isinstance(said, DeliveryError):
        said.text = without_address(said.text, claimed.target)
        said.args = (said.text,)
    failed = (rendered.template_id, rendered.error) if rendered.error and rendered.template_id is not None else None
    return Result(claimed, now, round(time.monotonic() - began, 3), said, shown[0], shown[1], failed)


def without_address(text: str, target: str) -> str:
    """A reason as everybody may read it who sees the incident: servers repeat the address they refuse, phones with and without the plus."""
    if len(target) < 6 or target.startswith(("member:", "device:")):
        return text
    known = rf"\+?{re.escape(target[1:])}" if target.startswith("+") else re.escape(target)
    return re.sub(known, lambda _found: mask(target), text, flags=re.IGNORECASE)


def compose(claimed: Claimed, now: datetime) -> tuple[Message, Rendered]:
    """The message of one attempt, in the transport's own format and the reader's language."""
    said, url = claimed.said, claimed.url
    style = claimed.channel.style
    if claimed.bundle:
        everybody = (claimed, *claimed.bundle)
        incidents = tuple(one.incident(one.url) for one in everybody)
        rendered, _count = bundled(everybody, now)
        context: Mapping[str, Any] = {"event": BUNDLE, "incidents": incidents, "left": claimed.left_over}
    else:
        context = addressed(
            said.context,
            recipient=claimed.reader,  # type: ignore[arg-type]
            actions_url=url if claimed.member is not None else "",
            possible_repeat=claimed.possible_repeat,
        )
        incidents = (claimed.incident(url),) if said.context.get("id") else ()
        if style.format == "webhook":
            rendered = _own_body(claimed, context, now)
        else:
            rendered = render_or_default(
                said.texts, said.event, context, kind=claimed.channel.kind, family=style.family, fmt=style.format, language=claimed.language,
                time_zone=claimed.member.time_zone if claimed.member else "UTC", default=style.default_texts or None, now=now.timestamp(),
            )  # fmt: skip
    message = Message(
        delivery_id=str(claimed.uid), attempt=claimed.attempt, possible_repeat=claimed.possible_repeat, event=said.event,
        severity=said.severity, subject=rendered.subject, text=rendered.text, html=rendered.html, sent_at=now,
        title=str(said.context.get("title") or ""), url=url, incident_id=str(said.context.get("id") or ""),
        num=str(said.context.get("num") or ""), layer_idx=said.layer_idx, incidents=incidents,
        mentions=tuple(dict.fromkeys(who for one in (claimed, *claimed.bundle) for who in one.mentions)),
        language=claimed.language, idempotency_key=claimed.key, context=context,
    )  # fmt: skip
    return message, rendered


def bundled(everybody: Sequence[Claimed], now: datetime) -> tuple[Rendered, int]:
    """One message for as many of these deliveries (to one address, in this order) as fit its length, and how many these are."""
    first, style = everybody[0], everybody[0].channel.style
    room = style.max_bytes or (None if style.max_chars else _ROOM)
    incidents = [one.incident(one.url) for one in everybody]
    if style.format == "webhook":
        return _own_body(first, {"event": BUNDLE, "incidents": incidents, "left": 0}, now), min(len(everybody), 200)
    return render_bundle(
        incidents, kind=first.channel.kind, fmt=style.format, language=first.language, limit=room, max_chars=style.max_chars,
        time_zone=first.member.time_zone if first.member else "UTC", default=style.default_texts or None, recipient=first.reader,
        now=now.timestamp(), holds=lambda text: _holds(first, text),
    )  # fmt: skip


def _holds(claimed: Claimed, text: str) -> bool:
    """What the transport says; where it breaks on its settings the message is one incident's, and the other channels are claimed for all the same."""
    opened = claimed.channel.transport
    try:
        return opened is None or opened.holds(text)
    except Exception as error:
        log.warning("channel %s cannot say what it holds: %s", claimed.channel.id, type(error).__name__)
        return False


def _own_body(claimed: Claimed, context: Mapping[str, Any], now: datetime) -> Rendered:
    """A webhook's text is its whole body, from the channel's own template; empty asks the transport for its default body."""
    opened = claimed.channel.transport
    source = str(opened.settings.get("body") or "") if opened is not None else ""
    subject = str(context.get("title") or "")[:300]
    if not source:
        return Rendered(subject, "")
    try:
        return Rendered(subject, render(source, context, fmt="webhook", language=claimed.language, now=now.timestamp()))
    except TemplateFailed as error:
        log.warning("the body of channel %s cannot be made, its default is sent: %s", claimed.channel.id, error)
        return Rendered(subject, "")


def _shown(claimed: Claimed, rendered: Rendered, message: Message) -> tuple[str, str]:
    """Subject and text as they are kept: without what would let a reader of our records act as the person."""
    subject, text = rendered.subject[:300], rendered.text or rendered.html or message.title
    # The sandbox's row is the message itself: who may open the sandbox is meant to read it there.
    if claimed.said.event == CODE and not claimed.channel.style.demo and (code := str(claimed.said.context.get("code") or "")):
        subject, text = subject.replace(code, _HIDDEN_CODE), text.replace(code, _HIDDEN_CODE)
        spaced = " ".join(code)
        text = text.replace(spaced, _HIDDEN_CODE)
    if claimed.member is not None:
        subject, text = _TOKEN.sub(r"\1…", subject), _TOKEN.sub(r"\1…", text)
    return subject[:300], text
