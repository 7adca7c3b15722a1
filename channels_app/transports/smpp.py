"""SMS over SMPP 3.4 to an SMS centre: one bound session a process and account, shared by all sender threads, with delivery receipts.

smpplib writes and reads the PDUs; connection, deadlines and threads are ours, since its client knows one thread and waits for ever. Texts
go in the GSM alphabet where they fit it, else in UCS-2; long ones in parts that the phone joins (a header in the text, SAR parameters, or
the whole text as message_payload: centres differ). A message's reference comes from its id, so parts of a second try complete the first.

Receipts come on whichever session the centre chooses, perhaps in another process of ours and hours later: they are kept in `outcomes` before
they are acknowledged, and `poll` reads them there. Source: SMPP Protocol Specification 3.4, issue 1.2; 3GPP TS 23.038 and 23.040."""

import itertools
import logging
import os
import re
import select
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from smpplib import exceptions as smpp_exceptions
from smpplib import smpp

from channels_app import http, sms, transport
from channels_app.outcomes import Outcomes
from channels_app.transport import DeliveryError, Http, Message, Receipt, Transport, Update

logging.getLogger("smpplib").setLevel(logging.ERROR)  # vendors' own parameters, with which each bind is answered, are no news

IDLE = 10.0  # a session that nobody has used for so long is unbound: other processes of ours may need its place at the centre
ENQUIRE, SILENT = 10.0, 25.0  # after so long without a word we ask; after so long we give up on the connection
WINDOW = 10  # requests without an answer yet; what centres commonly allow
SHARED_REFUSAL = 1.0  # threads that waited for a bind which failed fail with it instead of asking again one after the other
LARGEST = 65_536

GSM = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENSION = {"\f": 0x0A, "^": 0x14, "{": 0x28, "}": 0x29, "\\": 0x2F, "[": 0x3C, "~": 0x3D, "]": 0x3E, "|": 0x40, "€": 0x65}

RECEIPT, INTERMEDIATE = 0x04, 0x20  # esm_class of deliver_sm
UDHI = 0x40
STATES = {2: "DELIVRD", 3: "EXPIRED", 4: "DELETED", 5: "UNDELIV", 8: "REJECTD"}  # message_state, as the texts name it
FAILED = {
    "EXPIRED": gettext_lazy("the phone was switched off or out of reach until the message ran out of time"),
    "UNDELIV": gettext_lazy("the network could not deliver it; the number may be wrong, ported or barred"),
    "REJECTD": gettext_lazy("the SMS centre or the network rejected it: a content filter, a sender that is not registered, or no credit"),
    "DELETED": gettext_lazy("the SMS centre deleted it"),
}
_WRONG_SENDER = gettext_lazy("the sender is not accepted: enter one that the provider has released for you, and its type")
_WRONG_NUMBER = gettext_lazy("the phone number is not accepted")
_WRONG_BIND = gettext_lazy("it refuses system id or password")

# command_status: (sentence, permanent, config, seconds to wait)
STATUS: dict[int, tuple[Any, bool, bool, float | None]] = {
    0x01: (gettext_lazy("the message is too long for it: choose another way for long messages"), True, True, None),
    0x04: (gettext_lazy("it does not know our session any more"), False, False, 1.0),
    0x05: (
        gettext_lazy("it has as many sessions of this system id as it allows: ask for more binds, or run fewer drains"),
        False,
        False,
        3.0,
    ),
    0x07: (gettext_lazy("it does not allow delivery receipts: switch them off in the settings"), True, True, None),
    0x08: (gettext_lazy("it has a system error"), False, False, None),
    0x0A: (_WRONG_SENDER, True, True, None),
    0x0B: (_WRONG_NUMBER, True, False, None),
    0x0D: (
        gettext_lazy("it refuses the session: wrong system id or password, too many binds, or an address that it does not know"),
        False,
        True,
        3.0,
    ),
    0x0E: (_WRONG_BIND, True, True, None),
    0x0F: (_WRONG_BIND, True, True, None),
    0x14: (gettext_lazy("its queue is full"), False, False, 5.0),
    0x15: (gettext_lazy("it does not know the service type"), True, True, None),
    0x33: (_WRONG_NUMBER, True, False, None),
    0x40: (_WRONG_NUMBER, True, False, None),
    0x43: (gettext_lazy("it does not take messages in parts with a header: choose another way for long messages"), True, True, None),
    0x45: (gettext_lazy("it could not take the message"), False, False, None),
    0x48: (_WRONG_SENDER, True, True, None),
    0x49: (_WRONG_SENDER, True, True, None),
    0x50: (gettext_lazy("it wants another type of number for the phone"), True, True, None),
    0x51: (gettext_lazy("it wants another numbering plan for the phone"), True, True, None),
    0x53: (gettext_lazy("it does not know the system type"), True, True, None),
    0x58: (gettext_lazy("too many messages at once: set the channel's limit to what the provider allows"), False, False, 2.0),
    0x62: (gettext_lazy("it does not take the time of validity"), True, True, None),
    0x64: (gettext_lazy("it cannot take the message now"), False, False, None),
    0x65: (gettext_lazy("it will not take this message"), True, False, None),
    0x66: (gettext_lazy("it rejected the message"), True, False, None),
    0xC0: (gettext_lazy("it does not know an optional parameter: choose another way for long messages"), True, True, None),
    0xC1: (gettext_lazy("it does not allow an optional parameter: choose another way for long messages"), True, True, None),
    0xFE: (gettext_lazy("the delivery failed"), False, False, None),
}


class Settings(transport.Settings):
    host = forms.CharField(
        label=gettext_lazy("SMS centre"),
        max_length=253,
        help_text=gettext_lazy(
            "Its name or address. One in a private network must be among the channel's allowed private addresses, as host:port."
        ),
    )
    port = forms.IntegerField(label=gettext_lazy("port"), initial=2775, min_value=1, max_value=65535)
    tls = forms.BooleanField(
        label=gettext_lazy("TLS"), required=False, help_text=gettext_lazy("From the first byte; many centres use port 3550 for it.")
    )
    system_id = forms.CharField(label=gettext_lazy("system id"), max_length=15)
    password = forms.CharField(
        label=gettext_lazy("password"), required=False, max_length=8, strip=False, help_text=gettext_lazy("SMPP allows eight characters.")
    )  # fmt: skip
    system_type = forms.CharField(
        label=gettext_lazy("system type"), required=False, max_length=12, help_text=gettext_lazy("Only if the provider names one.")
    )  # fmt: skip
    service_type = forms.CharField(label=gettext_lazy("service type"), required=False, max_length=5)
    bind = forms.ChoiceField(
        label=gettext_lazy("session"),
        required=False,
        choices=[
            ("transceiver", gettext_lazy("both ways (transceiver)")),
            ("transmitter", gettext_lazy("sending only (transmitter): no receipts")),
        ],
    )
    sender = forms.CharField(
        label=gettext_lazy("sender"),
        max_length=20,
        help_text=gettext_lazy(
            "A number (+8613800000000), a short code (10690), or a name of at most eleven letters; as the provider released it."
        ),
    )
    source_ton = forms.IntegerField(
        label=gettext_lazy("sender: type of number"), required=False, min_value=0, max_value=6,
        help_text=gettext_lazy("Empty: 5 for a name, 1 for a number with +, else 0."),
    )  # fmt: skip
    source_npi = forms.IntegerField(label=gettext_lazy("sender: numbering plan"), required=False, min_value=0, max_value=18)
    dest_ton = forms.IntegerField(
        label=gettext_lazy("phone: type of number"), required=False, min_value=0, max_value=6, help_text=gettext_lazy("Empty: 1 (international).")
    )  # fmt: skip
    dest_npi = forms.IntegerField(label=gettext_lazy("phone: numbering plan"), required=False, min_value=0, max_value=18)
    alphabet = forms.ChoiceField(
        label=gettext_lazy("alphabet"),
        required=False,
        choices=[
            ("gsm", gettext_lazy("GSM (data_coding 0) where it suffices, else Unicode")),
            ("latin1", gettext_lazy("Latin-1 (data_coding 3) where it suffices, else Unicode")),
            ("ucs2", gettext_lazy("always Unicode")),
        ],
        help_text=gettext_lazy("If @, $ or _ arrive as other letters, the centre's own alphabet is not GSM: take Latin-1."),
    )
    long_messages = forms.ChoiceField(
        label=gettext_lazy("long messages"),
        required=False,
        choices=[
            ("udh", gettext_lazy("in parts with a header (UDH)")),
            ("sar", gettext_lazy("in parts with SAR parameters")),
            ("payload", gettext_lazy("whole, as message_payload")),
        ],
    )
    most_parts = forms.IntegerField(
        label=gettext_lazy("most parts of a message"), required=False, min_value=1, max_value=20,
        help_text=gettext_lazy("A longer text is shortened, the link to the rest kept. Default: 6."),
    )  # fmt: skip
    valid_minutes = forms.IntegerField(
        label=gettext_lazy("minutes of validity"), required=False, min_value=1, max_value=10_080,
        help_text=gettext_lazy("How long the centre tries to reach a phone that is off. Empty: as the centre does, often days."),
    )  # fmt: skip
    no_receipts = forms.BooleanField(label=gettext_lazy("ask for no delivery receipts"), required=False)
    receipt_ids = forms.ChoiceField(
        label=gettext_lazy("ids in receipts"),
        required=False,
        choices=[
            ("", gettext_lazy("as in the answer to the message")),
            ("hex_answer", gettext_lazy("decimal, while the answer has them hexadecimal")),
            ("hex_receipt", gettext_lazy("hexadecimal, while the answer has them decimal")),
        ],
        help_text=gettext_lazy("If messages arrive and stay “sent” here, this is the setting to try."),
    )

    def clean_host(self) -> str:
        host = str(self.cleaned_data["host"]).strip()
        if not re.fullmatch(r"[A-Za-z0-9._:-]+", host):
            raise ValidationError(_("Enter only the name or address of the centre, without smpp:// and without a port."))
        return host

    def clean_sender(self) -> str:
        sender = str(self.cleaned_data["sender"]).strip()
        if not re.fullmatch(r"\+?[0-9]{1,19}|[ -~]{1,11}", sender):
            raise ValidationError(
                _("Enter a number of digits, with or without +, or a name of at most eleven letters of the Latin alphabet.")
            )
        return sender

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        for name in ("system_id", "password", "system_type", "service_type"):
            if not str(data.get(name) or "").isascii():
                self.add_error(name, _("SMPP takes letters of ASCII only here."))
        return data


class Smpp(Transport):
    kind = "smpp_sms"
    label = gettext_lazy("SMS over SMPP")
    family = "sms"
    reach = "phone"
    person = True
    format = "plain"
    concurrency = 1
    listens = True  # receipts come on sessions of ours, for a message or not
    secret = frozenset({"password"})
    Settings = Settings

    def __init__(self, settings: Mapping[str, Any], http: Http, callback_url: str = "") -> None:
        super().__init__(settings, http, callback_url)
        self.outcomes = Outcomes(f"smpp {settings['host']}:{settings['port']} {settings['system_id']}")

    def holds(self, text: str) -> bool:
        return self._count(sms.simplify(text)) <= int(self.settings.get("most_parts") or 6)

    @classmethod
    def measure(cls, text: str) -> str:
        return sms.measure(sms.simplify(text))

    def send(self, message: Message, address: str) -> Receipt:
        """`sent` once the centre took every part; the id is that of the last one, whose receipt speaks for the message."""
        fields, detail = self.compose(message, address)
        message_id = ""
        with http.deadline(http.TOTAL_SECONDS):
            until = time.monotonic() + http.TOTAL_SECONDS
            for number, one in enumerate(fields):
                message_id = self._submit(one, until, begun=number > 0)
        return Receipt(message_id, detail=detail)

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """Receipts that came on any session of this node. Keeps one bound while there is something to wait for, or they would never come."""
        found = self.outcomes.take()
        if self._wants_receipts() and set(message_ids) - {update.message_id for update in found}:
            try:
                with http.deadline(http.TOTAL_SECONDS):
                    self._session(time.monotonic() + http.TOTAL_SECONDS)
            except DeliveryError:
                if not found:
                    raise
        return found

    def compose(self, message: Message, address: str) -> tuple[list[dict[str, Any]], str]:
        """The fields of each submit_sm, and one line on what could not be kept ("" if all was)."""
        number = address.lstrip("+")
        if not re.fullmatch(r"[0-9]{3,20}", number):
            raise DeliveryError(_("“%(address)s” is not a phone number.") % {"address": address}, permanent=True)
        settings = self.settings
        most = int(settings.get("most_parts") or 6)
        text = sms.fit(simple := sms.simplify(message.text), most, message.url, self._count)
        parts, coding = self._encoded(text)
        sender = str(settings["sender"])
        common = {
            "service_type": str(settings.get("service_type") or ""),
            "source_addr_ton": _number(settings.get("source_ton"), _ton(sender)),
            "source_addr_npi": _number(settings.get("source_npi"), 1 if sender.startswith("+") else 0),
            "source_addr": sender.lstrip("+"),
            "dest_addr_ton": _number(settings.get("dest_ton"), 1),
            "dest_addr_npi": _number(settings.get("dest_npi"), 1),
            "destination_addr": number,
            "validity_period": _period(settings.get("valid_minutes")),
            "data_coding": coding,
            "esm_class": 0,
        }
        detail = "" if text == simple else _("shortened to %(count)d parts") % {"count": most}
        reference = zlib.crc32((message.idempotency_key or message.delivery_id).encode()) & 0xFF
        fields = [common | part for part in _laid_out(parts, reference, str(settings.get("long_messages") or "udh"))]
        fields[-1]["registered_delivery"] = int(self._wants_receipts())
        return fields, detail

    def _encoded(self, text: str) -> tuple[list[bytes], int]:
        return encoded(text, str(self.settings.get("alphabet") or "gsm"))

    def _count(self, text: str) -> int:
        """The parts of `text` in the alphabet it is sent in here, which may be UCS-2 for a text that GSM could hold."""
        return len(self._encoded(text)[0])

    def _wants_receipts(self) -> bool:
        return not self.settings.get("no_receipts") and self.settings.get("bind") != "transmitter"

    def _submit(self, fields: Mapping[str, Any], until: float, *, begun: bool) -> str:
        """The centre's id of one part. Throttled in the middle of a message we wait: half of one is worse than one that is late."""
        while True:
            answer = self._session(until).ask("submit_sm", until, **fields)
            try:
                self._judge(int(answer.status))
            except DeliveryError as error:
                if not begun or error.retry_after is None or time.monotonic() + 1.5 > until:
                    raise
                time.sleep(0.5)
                continue
            return self._key(_words(answer.message_id), "hex_answer")

    def _session(self, until: float) -> "_Session":
        settings = self.settings
        names = ("host", "port", "tls", "system_id", "password", "system_type", "bind", "receipt_ids")
        key = (*(str(settings.get(name) or "") for name in names), self.http.ca_bundle, self.http.guard)
        with _registry:
            door = _doors.setdefault(key, threading.Lock())
        if not door.acquire(timeout=max(0.0, until - time.monotonic())):
            raise DeliveryError(self._text(_("no session could be opened in time")), permanent=False)
        try:
            session = _sessions.get(key)
            if session is not None and session.use():
                return session
            refused_at, refusal = _refusals.get(key, (0.0, None))
            if refusal is not None and time.monotonic() - refused_at < SHARED_REFUSAL:
                raise refusal.with_traceback(None)
            try:
                session = _sessions[key] = self._bound(until)
            except DeliveryError as error:
                _refusals[key] = (time.monotonic(), error)
                raise
            _refusals.pop(key, None)
            return session
        finally:
            door.release()

    def _bound(self, until: float) -> "_Session":
        settings = self.settings
        host, port = str(settings["host"]), int(settings["port"])
        sock = self.http.connect(host, port)
        if settings.get("tls"):
            try:
                sock = self.http.ssl_context().wrap_socket(sock, server_hostname=host)
            except OSError as error:
                sock.close()
                raise DeliveryError(http.tls_failure(f"{host}:{port}", error), permanent=False) from None
        session = _Session(sock, f"{host}:{port}", self._heard)
        bind = "bind_transmitter" if settings.get("bind") == "transmitter" else "bind_transceiver"
        try:
            answer = session.ask(
                bind,
                until,
                system_id=str(settings["system_id"]),
                password=str(settings.get("password") or ""),
                system_type=str(settings.get("system_type") or ""),
            )
            self._judge(int(answer.status))
        except DeliveryError as error:
            session.close()
            error.left = False  # it was no message
            raise
        return session

    def _judge(self, status: int) -> None:
        """Raise what a command_status other than 0 means."""
        if not status:
            return
        why, permanent, config, wait = STATUS.get(
            status, (_("it gave a reason of its own; the provider can tell what it means"), False, False, None)
        )
        raise DeliveryError(self._text(f"{why} ({status:#x})"), permanent=permanent, config=config, retry_after=wait)

    def _text(self, why: str) -> str:
        return _("The SMS centre %(host)s did not take the message: %(why)s.") % {"host": self.settings["host"], "why": why}

    def _heard(self, pdu: Any) -> None:
        """A deliver_sm. Only what ends a message is kept; what people answer by SMS is taken and dropped."""
        if pdu.esm_class & 0x3C != RECEIPT:
            return
        said = _words(pdu.short_message or getattr(pdu, "message_payload", None))
        known = dict(re.findall(r"\b(id|stat|err):\s*([^\s:]+)", said, re.IGNORECASE))
        known = {name.lower(): value for name, value in known.items()}
        exact = _words(getattr(pdu, "receipted_message_id", None))
        message_id = self._key(exact, "hex_answer") if exact else self._key(known.get("id", ""), "hex_receipt")
        word = (STATES.get(getattr(pdu, "message_state", None) or 0, "") or known.get("stat", "")).upper()[:7]
        if not message_id:
            return
        if word == "DELIVRD":
            self.outcomes.write(message_id, "delivered")
        elif word in FAILED:
            values = {"why": FAILED[word], "word": word, "code": known.get("err", "?")[:20]}
            self.outcomes.write(message_id, "failed", _("The SMS did not arrive: %(why)s (%(word)s, error %(code)s).") % values)

    def _key(self, message_id: str, hexadecimal: str) -> str:
        """An id in the one form that answers and receipts have in common."""
        if self.settings.get("receipt_ids") == hexadecimal and re.fullmatch(r"[0-9A-Fa-f]{1,32}", message_id):
            return str(int(message_id, 16))
        if self.settings.get("receipt_ids") and message_id.isdecimal() and message_id.isascii():
            return str(int(message_id))
        return message_id


# --- texts -------------------------------------------------------------------------------------------------------------------------


def encoded(text: str, alphabet: str = "gsm") -> tuple[list[bytes], int]:
    """The parts of `text` as octets, and their data_coding: 0 (GSM, a septet in each octet), 3 (Latin-1) or 8 (UCS-2, as UTF-16 BE)."""
    found = sms.segments(text)
    if alphabet == "latin1" and found.encoding == "GSM-7" and all(ord(char) < 256 for char in text):
        return [part.encode("latin-1") for part in _divided(text, "GSM-7")], 3
    if alphabet == "gsm" and found.encoding == "GSM-7":
        return [b"".join(map(_septets, part)) for part in _divided(text, "GSM-7")], 0
    return [part.encode("utf-16-be", "replace") for part in _divided(text, "UCS-2")], 8


def _divided(text: str, encoding: str) -> list[str]:
    """`text` in parts as a phone joins them; neither an escaped character nor a surrogate pair is divided."""

    def size(char: str) -> int:
        return 1 + (char in EXTENSION if encoding == "GSM-7" else ord(char) > 0xFFFF)

    if sum(map(size, text)) <= sms.SINGLE[encoding]:
        return [text]
    parts, used = [""], 0
    for char in text:
        if used + size(char) > sms.PART[encoding]:
            parts, used = [*parts, ""], 0
        parts[-1] += char
        used += size(char)
    return parts


def _septets(char: str) -> bytes:
    return bytes([0x1B, EXTENSION[char]]) if char in EXTENSION else bytes([GSM.index(char)])


def _laid_out(parts: Sequence[bytes], reference: int, way: str) -> list[dict[str, Any]]:
    """The fields of submit_sm that hold the text, for each part."""
    if len(parts) == 1:
        return [{"short_message": parts[0]}]
    if way == "payload":
        return [{"message_payload": b"".join(parts)}]
    if way == "sar":
        return [
            {"short_message": part, "sar_msg_ref_num": reference, "sar_total_segments": len(parts), "sar_segment_seqnum": number}
            for number, part in enumerate(parts, 1)
        ]
    return [
        {"short_message": bytes([5, 0, 3, reference, len(parts), number]) + part, "esm_class": UDHI} for number, part in enumerate(parts, 1)
    ]


def _ton(sender: str) -> int:
    if sender.startswith("+"):
        return 1
    return 0 if sender.isdecimal() else 5


def _number(value: Any, otherwise: int) -> int:
    return otherwise if value in (None, "") else int(value)


def _period(minutes: Any) -> str:
    """A relative time of SMPP, YYMMDDhhmmss000R; "" leaves it to the centre."""
    if not minutes:
        return ""
    days, rest = divmod(int(minutes), 1440)
    return f"0000{days:02d}{rest // 60:02d}{rest % 60:02d}00000R"


def _words(value: Any) -> str:
    return (value.decode("latin-1") if isinstance(value, bytes) else str(value or "")).strip("\0 \r\n")


# --- the session -------------------------------------------------------------------------------------------------------------------

_registry = threading.Lock()
_doors: dict[Any, threading.Lock] = {}  # who looks for a session, or binds one, holds the door of its account
_sessions: dict[Any, "_Session"] = {}
_refusals: dict[Any, tuple[float, DeliveryError]] = {}


def _forget() -> None:
    """Two processes on one session would read each other's answers."""
    global _registry
    _registry = threading.Lock()
    _doors.clear()
    _sessions.clear()
    _refusals.clear()


os.register_at_fork(after_in_child=_forget)


class _Sequence:
    """What smpplib asks for the numbers of PDUs."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self.sequence = 0

    def next_sequence(self) -> int:
        self.sequence = next(self._numbers) & 0x7FFFFFFF
        return self.sequence


class _Waiting:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.answer: Any = None


class _Session:
    """One connection to the centre. Any thread asks; one thread of its own reads, answers the centre, and ends it when it is idle or dead."""

    def __init__(self, sock: socket.socket, place: str, heard: Callable[[Any], None]) -> None:
        self.place, self._sock, self._heard = place, sock, heard
        self._io = threading.Lock()  # of the socket: a TLS connection must not be read and written at once
        self._state = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._window = threading.BoundedSemaphore(WINDOW)
        self._numbers = _Sequence()
        self._open = True
        self._used = self._heard_at = self._asked = time.monotonic()
        threading.Thread(target=self._read, name=f"smpp {place}", daemon=True).start()

    def use(self) -> bool:
        """Whether it still stands; then it does not end for being idle just now."""
        with self._state:
            self._used = time.monotonic()
            return self._open

    def ask(self, command: str, until: float, **fields: Any) -> Any:
        """The centre's answer, whatever its status; DeliveryError with `left` when the request went out and none came."""
        if not self._window.acquire(timeout=max(0.0, until - time.monotonic())):
            raise DeliveryError(
                _("The SMS centre %(host)s is slow: %(count)d messages wait for its answer.") % {"host": self.place, "count": WINDOW},
                permanent=False,
                retry_after=1.0,
            )
        try:
            waiting = _Waiting()
            with self._io:  # numbered and written as one: the centre may insist on numbers that go up
                pdu = smpp.make_pdu(command, client=self._numbers, **fields)
                with self._state:
                    is_open = self._open
                    self._waiting[pdu.sequence] = waiting
                left = is_open and self._write(bytes(pdu.generate()))
            answered = left and waiting.done.wait(max(0.0, until - time.monotonic()))
            with self._state:
                self._waiting.pop(pdu.sequence, None)
                self._used = time.monotonic()
            if waiting.answer is None:
                raise DeliveryError(self._why(left, answered), permanent=False, left=left)
            return waiting.answer
        finally:
            self._window.release()

    def close(self) -> None:
        """Ends the connection; whoever waits for an answer learns that none will come."""
        with self._state:
            self._open = False
            waiting, self._waiting = list(self._waiting.values()), {}
        for one in waiting:
            one.done.set()

    def _why(self, left: bool, closed: bool) -> str:
        if not left:
            text = _("The SMS centre %(host)s closed the session; the message was not handed over.")
        elif closed:
            text = _("The SMS centre %(host)s closed the session without an answer; it may have received the message.")
        else:
            text = _("The SMS centre %(host)s did not answer in time; it may have received the message.")
        return text % {"host": self.place}

    def _write(self, data: bytes) -> bool:
        """Whether it went out; the caller has the socket. A connection that takes only half of a PDU is of no use any more."""
        try:
            self._sock.sendall(data)
        except OSError:
            self.close()
            return False
        return True

    def _read(self) -> None:
        """The thread of the session: until it is closed, idle or silent."""
        buffer = bytearray()
        try:
            while self._open:
                readable = bool(getattr(self._sock, "pending", int)()) or bool(select.select([self._sock], [], [], 0.25)[0])
                now = time.monotonic()
                if readable and not self._take(buffer):
                    break
                if not readable and not self._is_wanted(now):
                    break
        except (
            OSError,
            ValueError,
            struct.error,
            smpp_exceptions.PDUError,
            smpp_exceptions.UnknownCommandError,
            AttributeError,
            TypeError,
        ):
            pass  # a connection that broke, or a centre that speaks another language: whoever waits is told by `close`
        finally:
            self.close()
            with self._io:
                self._sock.close()

    def _take(self, buffer: bytearray) -> bool:
        """Reads what is there and acts on each whole PDU; False at the end of the connection."""
        with self._io:
            data = http.available(self._sock, LARGEST)
        if data is None:
            return True
        self._heard_at = time.monotonic()
        buffer += data
        while len(buffer) >= 16:
            (length,) = struct.unpack_from(">L", buffer)
            if not 16 <= length <= LARGEST:
                raise ValueError("a PDU of an impossible length")
            if len(buffer) < length:
                break
            raw = bytes(buffer[:length])
            del buffer[:length]
            self._act(raw)
        return bool(data)

    def _is_wanted(self, now: float) -> bool:
        """Whether a session without news goes on; asks the centre for a sign of life when it is due."""
        with self._state:
            idle = now - self._used > IDLE and not self._waiting
            self._open = self._open and not idle
        if idle:
            self._send("unbind")
            return False
        silence = now - self._heard_at
        if min(silence, now - self._asked) > ENQUIRE:
            self._asked = now
            self._send("enquire_link")
        return silence < SILENT

    def _send(self, command: str, *, sequence: int | None = None, status: int = 0) -> bool:
        with http.deadline(2.0), self._io:
            return self._write(_pdu(command, self._numbers, sequence=sequence, status=status))

    def _act(self, raw: bytes) -> None:
        command, status, sequence = struct.unpack_from(">LLL", raw, 4)
        if command & 0x80000000:
            with self._state:
                waiting = self._waiting.get(sequence)
            if waiting is not None:
                waiting.answer = _parsed(raw) if not status and command != 0x80000000 else _Refusal(status or 0x08)
                waiting.done.set()
            return
        if command == 0x05:  # deliver_sm
            try:
                self._heard(_parsed(raw))
                status = 0
            except OSError:
                status = 0x64  # we could not keep it: the centre shall bring it again
            self._send("deliver_sm_resp", sequence=sequence, status=status)
        elif command == 0x15:
            self._send("enquire_link_resp", sequence=sequence)
        elif command == 0x06:
            self._send("unbind_resp", sequence=sequence)
            self.close()
        else:
            self._send("generic_nack", sequence=sequence, status=0x03)


class _Refusal:
    """An answer that is only its status: its body, if it has any, means nothing."""

    def __init__(self, status: int) -> None:
        self.status, self.message_id = status, b""


def _pdu(command: str, numbers: _Sequence, *, sequence: int | None = None, status: int = 0) -> bytes:
    pdu = smpp.make_pdu(command, client=numbers)
    pdu.status = status
    if sequence is not None:
        pdu.sequence = sequence
    return bytes(pdu.generate())


def _parsed(raw: bytes) -> Any:
    return smpp.parse_pdu(raw, client=_Sequence(), allow_unknown_opt_params=True)
