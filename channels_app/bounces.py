"""What mail servers say of a mail afterwards: reading their reports (RFC 3464, "delivery status notifications"), and the mailbox they come to.

A report is about one of our mails when it names its Message-ID, which nobody can guess who has not seen the mail. So a forged report cannot
silence somebody, and whatever else is in the mailbox is left alone."""

import contextlib
import email
import imaplib
import poplib
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.message import Message as Mail
from typing import Any, Final, Protocol

from django.utils.translation import gettext as _

from channels_app import http
from channels_app.transport import DeliveryError, Http, Update
from mapping.models.contact_point import mask

MOST_BYTES: Final = 256 * 1024  # of one report: the rest of it is our own mail, sent back
MOST_MAILS: Final = 200  # read at once; the others the next time
INTERVAL: Final = 30.0  # seconds between two looks into a mailbox, in each process
LOOK_SECONDS: Final = 20.0
_BREAKS: Final = (imaplib.IMAP4.error, poplib.error_proto, OSError, EOFError, ValueError)  # what a look can end with

_ID = re.compile(r"<[^<>\s]{1,300}>")
_ADDRESS = re.compile(r"[^\s<>()\[\]:;,\"']+@[\w.-]+\w")
_UNKNOWN = re.compile(
    r"\b(?:no such|unknown|invalid|non-?existent)\s+(?:\w+\s+)?(?:user|mailbox|recipient|account)\b|\bunroute?able address\b"
    r"|\b(?:user|mailbox|recipient|account)\b.{0,40}\b(?:unknown|not found|not exist|doesn't exist)\b",
    re.IGNORECASE | re.DOTALL,
)
_STATUS = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b")


# ---- reports -------------------------------------------------------------------------------------------------------------------------


def read(raw: bytes) -> list[Update]:
    """What a report says of the mails it is about; empty for a mail that is none, that says "delayed", or that cannot be read.

    `bounced`: the address takes no mail and is not to be used again; `failed`: this mail did not arrive (a full mailbox, a filter, a server
    that was away for days), and the next may; `delivered`: a mailbox has it. The Message-ID is as it stands there, with its brackets, and "" in
    a report that does not name it: then `returned_to` may.
    """
    try:
        return _read(email.message_from_bytes(raw[:MOST_BYTES]))
    except (RecursionError, ValueError, LookupError, TypeError, AttributeError):  # the parser on hostile mails: depth, charsets, headers
        return []


def returned_to(raw: bytes) -> list[str]:
    """The addresses that a report was sent to, lower case: with an own one for each mail (VERP) they say which mail it is about."""
    head = email.message_from_bytes(re.split(rb"\r?\n\r?\n", raw[:MOST_BYTES], maxsplit=1)[0] + b"\n\n")
    found = [str(value) for name in ("Delivered-To", "X-Original-To", "To", "Envelope-To") for value in head.get_all(name, ())]
    return [address.lower() for value in found for address in _ADDRESS.findall(value)]


def _read(mail: Mail) -> list[Update]:
    status: list[Mail] = []
    original: Mail | None = None
    for part in _parts(mail):
        kind = part.get_content_type()
        if kind in ("message/delivery-status", "message/global-delivery-status") and not status:
            blocks = part.get_payload()
            status = [block for block in blocks if isinstance(block, Mail)] if isinstance(blocks, list) else []
        elif kind in ("message/rfc822", "message/global") and original is None and isinstance(part.get_payload(), list):
            original = part.get_payload()[0]  # type: ignore[assignment, index]
        elif kind in ("text/rfc822-headers", "message/global-headers") and original is None:
            payload = part.get_payload(decode=True)
            original = email.message_from_bytes(payload if isinstance(payload, bytes) else str(part.get_payload()).encode())
    if not status:
        return []
    message_id = _first_id(original, "Message-ID") or _first_id(mail, "In-Reply-To")  # Exchange names it there
    written_to = _addresses(original, "To")
    server = _typed(status[0].get("Reporting-MTA"))
    updates = []
    for block in status[1:50]:
        action = str(block.get("Action", "")).strip().lower()
        if action == "delivered":
            updates.append(Update(message_id, "delivered"))
        elif action == "failed":
            said = _typed(block.get("Diagnostic-Code"))
            code = code_in(str(block.get("Status", "")), said)
            asked = {address for name in ("Original-Recipient", "Final-Recipient") for address in _addresses(block, name)}
            # Behind a list or a forward another address may be dead than the one we wrote to.
            gone = is_gone(code) and (not written_to or not asked or bool(written_to & asked))
            updates.append(Update(message_id, "bounced" if gone else "failed", reason(server, code, said)))
    return updates


def _parts(mail: Mail) -> Iterator[Mail]:
    """The parts of a report, without looking into the mail that is returned in it (it may be a report itself)."""
    yield mail
    if mail.get_content_maintype() == "multipart" and isinstance(mail.get_payload(), list):
        for part in mail.get_payload():
            if isinstance(part, Mail):
                yield from _parts(part)


def is_gone(code: str) -> bool:
    """Whether an enhanced status code (RFC 3463) says of the address itself that it takes no mail, now or later.

    5.1.x but for 5.1.0 (some address, which may be ours) and 5.1.7 to 5.1.9 (there the sender is wrong), 5.2.1 (disabled), 5.4.1 and 5.4.4
    (nobody answers for the domain).
    Not: a full mailbox (5.2.2), a mail too large, a filter or a policy (5.7.x), time that ran out (4.4.7, 5.4.7).
    """
    if code.startswith("5.1."):
        return code not in ("5.1.0", "5.1.7", "5.1.8", "5.1.9")
    return code in ("5.2.1", "5.4.1", "5.4.4")


def reason(server: str, code: str, said: str) -> str:
    """A sentence for people: what it means, and the server's own words, whose addresses are masked (everybody reads it who sees the incident)."""
    subject, detail = code[2:].split(".") if code else ("", "")
    if is_gone(code):
        words = _("the address takes no mail")
    elif (subject, detail) == ("2", "2"):
        words = _("the mailbox is full")
    elif subject == "7":
        words = _("it was refused as unwanted or not allowed: publish SPF, DKIM and DMARC, and ask for the sender to be let in")
    elif (subject, detail) in (("3", "4"), ("2", "3")):
        words = _("it is too large for the mailbox")
    elif code.startswith("4.") or (subject, detail) == ("4", "7"):
        words = _("the receiving server did not take it in time")
    elif subject == "1" and detail != "0":
        words = _("the receiving server does not take mail from this sender")
    else:
        words = _("the receiving server did not take it")
    said = _ADDRESS.sub(lambda found: mask(found.group()), " ".join(said.split()))[:200] or code
    values = {"words": words, "said": said, "server": server}
    return (_("The mail came back, %(words)s. %(server)s: %(said)s") if server else _("The mail came back, %(words)s: %(said)s")) % values


def code_in(*said: str) -> str:
    """The enhanced code (RFC 3463) in what a server said, the first that is telling. Some say 5.0.0 or 5.1.0 of everything, or no code at all:
    then words that can only mean an unknown mailbox count as 5.1.1. "" where nothing is known."""
    codes = [found.group() for text in said if (found := _STATUS.search(text))]
    telling = [code for code in codes if code[2:] not in ("0.0", "5.0", "1.0")]
    if telling:
        return telling[0]
    failed = not codes or codes[0].startswith("5")
    unknown = any(_UNKNOWN.search(text) and "sender" not in text.lower() for text in said)
    return "5.1.1" if failed and unknown else codes[0] if codes else ""


def _typed(value: Any) -> str:
    """`dns; mx.example.com` and `smtp; 550 no`: what stands after the type."""
    kind, semicolon, rest = str(value or "").partition(";")
    return " ".join((rest if semicolon else kind).split())[:500]


def _first_id(mail: Mail | None, name: str) -> str:
    found = _ID.search(str(mail.get(name, ""))) if mail is not None else None
    return found.group() if found else ""


def _addresses(mail: Mail | None, name: str) -> set[str]:
    return {address.lower() for address in _ADDRESS.findall(str(mail.get(name, "")))} if mail is not None else set()


# ---- the mailbox ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """A mailbox: `protocol` is imap or pop3, `security` tls, starttls or none; `port` 0 is the protocol's own."""

    protocol: str
    host: str
    port: int
    security: str
    username: str
    password: str = field(repr=False)
    folder: str = "INBOX"

    @property
    def number(self) -> int:
        return self.port or {("imap", True): 993, ("imap", False): 143, ("pop3", True): 995}.get(
            (self.protocol, self.security == "tls"), 110
        )


class _Box(Protocol):
    def enter(self) -> None: ...
    def done(self, keys: list[str]) -> None: ...
    def new(self) -> Iterator[tuple[str, bytes]]: ...
    def leave(self) -> None: ...


@dataclass(slots=True)
class _Watch:
    """What this process knows of a mailbox."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    next_at: float = 0.0
    told: list[str] = field(default_factory=list)  # read last time, and not yet marked
    trouble: DeliveryError | None = None


_watches: dict[Place, _Watch] = {}
_guard = threading.Lock()


def collect(place: Place, door: Http) -> list[bytes]:
    """The mails that came to a mailbox since the last time, at most MOST_MAILS; [] within 30 seconds of it. Raises DeliveryError.

    What was read is marked (IMAP: as read; POP3, which knows no marks: deleted) only the next time: by then what it said is written down, and
    a process that died in between has lost nothing. So a mail may be read twice.
    """
    with _guard:
        watch = _watches.setdefault(place, _Watch())
    if not watch.lock.acquire(blocking=False):
        return []
    try:
        if time.monotonic() < watch.next_at:
            if watch.trouble is not None:
                raise watch.trouble  # it still is so: silence would read as mended
            return []
        watch.next_at = time.monotonic() + INTERVAL
        watch.trouble = None
        try:
            with http.deadline(LOOK_SECONDS):
                return _look(place, door, watch)
        except DeliveryError as error:
            watch.trouble = error
            raise
        except _BREAKS as error:
            watch.trouble = _explain(place, door, error)
            raise watch.trouble from None
    finally:
        watch.lock.release()


def _look(place: Place, door: Http, watch: _Watch) -> list[bytes]:
    box: _Box = (_ImapBox if place.protocol == "imap" else _PopBox)(place, door)
    found: dict[str, bytes] = {}
    try:
        box.enter()
        box.done(watch.told)
        watch.told = []
        for key, raw in box.new():
            found[key] = raw
    except _BREAKS as error:
        if not found:
            raise
        watch.trouble = _explain(place, door, error)  # told the next time: first what was read
    finally:
        with contextlib.suppress(*_BREAKS):
            box.leave()
    watch.told = list(found)  # only what is handed on is marked
    return list(found.values())


def _explain(place: Place, door: Http, error: Exception) -> DeliveryError:
    host = f"{place.host}:{place.number}"
    if isinstance(error, ssl.SSLError):
        return DeliveryError(http.tls_failure(host, error), permanent=False)
    if isinstance(error, (TimeoutError, OSError, EOFError)):
        return DeliveryError(_("The mailbox for returned mail at %(host)s does not answer.") % {"host": host}, permanent=False)
    said = error.args[0] if error.args else ""
    text = door.clean(" ".join((said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)).split())[:200])
    return DeliveryError(
        _("The mailbox for returned mail at %(host)s cannot be read, check its user name, password and folder: %(said)s") % {"host": host, "said": text},
        permanent=True,
        config=True,
    )  # fmt: skip


class _Imap(imaplib.IMAP4):
    """imaplib over a socket from our door."""

    def __init__(self, place: Place, door: Http) -> None:
        self.place, self.door = place, door
        super().__init__(place.host, place.number)

    def _create_socket(self, timeout: float | None) -> Any:
        sock = self.door.connect(self.place.host, self.place.number)
        return self.door.ssl_context().wrap_socket(sock, server_hostname=self.place.host) if self.place.security == "tls" else sock


class _ImapBox:
    def __init__(self, place: Place, door: Http) -> None:
        self.place, self.imap = place, _Imap(place, door)

    def enter(self) -> None:
        place = self.place
        if place.security == "starttls":
            self.imap.starttls(self.imap.door.ssl_context())
        self.imap.login(place.username, place.password)
        folder = place.folder.replace("\\", "\\\\").replace('"', '\\"')
        state, said = self.imap.select(f'"{folder}"')
        if state != "OK":
            raise imaplib.IMAP4.error(said[0] or b"")
        # Numbers of mails are good for one life of the folder.
        self.life = (self.imap.response("UIDVALIDITY")[1][0] or b"").decode()

    def done(self, keys: list[str]) -> None:
        numbers = [number for life, number in (key.split() for key in keys) if life == self.life]
        if numbers:
            self.imap.uid("STORE", ",".join(numbers), "+FLAGS.SILENT", r"(\Seen)")

    def new(self) -> Iterator[tuple[str, bytes]]:
        state, said = self.imap.uid("SEARCH", "UNSEEN")
        if state != "OK":
            raise imaplib.IMAP4.error(said[0] or b"")
        for number in (said[0] or b"").split()[:MOST_MAILS]:
            state, parts = self.imap.uid("FETCH", number.decode(), f"(BODY.PEEK[]<0.{MOST_BYTES}>)")
            raw = next((part[1] for part in parts if isinstance(part, tuple)), None)
            if state == "OK" and isinstance(raw, bytes):
                yield f"{self.life} {number.decode()}", raw

    def leave(self) -> None:
        self.imap.logout()


class _Pop(poplib.POP3):
    """poplib over a socket from our door."""

    def __init__(self, place: Place, door: Http) -> None:
        self.place, self.door = place, door
        super().__init__(place.host, place.number)

    def _create_socket(self, timeout: Any) -> Any:
        sock = self.door.connect(self.place.host, self.place.number)
        return self.door.ssl_context().wrap_socket(sock, server_hostname=self.place.host) if self.place.security == "tls" else sock


class _PopBox:
    def __init__(self, place: Place, door: Http) -> None:
        self.place, self.pop = place, _Pop(place, door)

    def enter(self) -> None:
        if self.place.security == "starttls":
            self.pop.stls(self.pop.door.ssl_context())
        self.pop.user(self.place.username)
        self.pop.pass_(self.place.password)
        self.names: Mapping[str, int] = {
            name.decode("latin-1"): int(number) for number, _space, name in (line.partition(b" ") for line in self.pop.uidl()[1])
        }

    def done(self, keys: list[str]) -> None:
        for name in keys:
            if name in self.names:
                self.pop.dele(self.names[name])
        self.names = {name: number for name, number in self.names.items() if name not in keys}

    def new(self) -> Iterator[tuple[str, bytes]]:
        for name, number in list(self.names.items())[:MOST_MAILS]:
            yield name, b"\r\n".join(self.pop.top(number, 3000)[1])

    def leave(self) -> None:
        self.pop.quit()  # only now are the deleted ones gone
