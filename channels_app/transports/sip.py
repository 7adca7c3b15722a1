"""A phone call through one's own SIP trunk or PBX: a real call with sound, for who has no cloud telephony account.

We are a caller and nothing else: INVITE, ring, answer, speak, BYE, in plain Python, so that every packet goes through the same guard as all our
traffic (a SIP program would look up and connect for itself, and would be a daemon to keep). Speech comes from Debian's espeak-ng and
goes out as G.711, twice. `send` waits until the far end rings; how the call ended is told by `poll`, from `outcomes`, since a call outlives the
drain that began it.

Sources: RFC 3261 (SIP), 3581 (rport), 3264 and 4566 (SDP), 3550 and 3551 (RTP), 7616 and 8760 (digest); ITU-T G.711."""

import array
import hashlib
import itertools
import logging
import re
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import phonenumbers
from django import forms
from django.core.exceptions import ValidationError
from django.core.validators import validate_ipv46_address
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import http, speech, transport
from channels_app.outcomes import Outcomes
from channels_app.transport import DeliveryError, Http, Limit, Message, Receipt, Transport, Update

log = logging.getLogger(__name__)

T1, T2 = 0.5, 4.0  # RFC 3261: the first and longest wait before a request is sent again over UDP
AFTER_CANCEL = 5.0
LARGEST = 65_535
ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, INFO, NOTIFY"
NAMES = {"v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact", "l": "content-length", "c": "content-type"}

_WRONG_NUMBER = gettext_lazy("there is no such number: look at the phone number, and at how the channel writes numbers for the trunk")
_NOT_ALLOWED = gettext_lazy(
    "the trunk does not allow the call: look at user name and password, at whether our number may be shown, and at the countries it may call"
)
_DECLINED = gettext_lazy("the call was declined")
_BUSY = gettext_lazy("the line was busy")
_UNREACHABLE = gettext_lazy("the phone cannot be reached (switched off, no network, or not registered)")
# final status: (sentence, permanent, config)
ENDS: Mapping[int, tuple[Any, bool, bool]] = {
    401: (_NOT_ALLOWED, True, True),
    402: (gettext_lazy("the trunk wants to be paid first"), True, True),
    403: (_NOT_ALLOWED, True, True),
    404: (_WRONG_NUMBER, True, False),
    407: (_NOT_ALLOWED, True, True),
    408: (gettext_lazy("nobody answered"), True, False),
    410: (_WRONG_NUMBER, True, False),
    480: (_UNREACHABLE, True, False),
    484: (_WRONG_NUMBER, True, False),
    485: (_WRONG_NUMBER, True, False),
    486: (_BUSY, True, False),
    487: (gettext_lazy("nobody answered"), True, False),
    488: (gettext_lazy("the trunk takes no G.711 sound: allow PCMA or PCMU on it"), True, True),
    600: (_BUSY, True, False),
    603: (_DECLINED, True, False),
    604: (_WRONG_NUMBER, True, False),
    606: (gettext_lazy("the trunk takes no G.711 sound: allow PCMA or PCMU on it"), True, True),
    607: (_DECLINED, True, False),
    608: (gettext_lazy("a filter on the way took the call for spam: register our number with the provider"), True, False),
}


class Settings(transport.Settings):
    host = forms.CharField(
        label=gettext_lazy("SIP server"),
        max_length=253,
        help_text=gettext_lazy(
            "Of the trunk or PBX. One in a private network must be among the channel's allowed private addresses, as host:port."
        ),
    )
    port = forms.IntegerField(
        label=gettext_lazy("port"), initial=5060, min_value=1, max_value=65535, help_text=gettext_lazy("5061 with TLS.")
    )
    protocol = forms.ChoiceField(
        label=gettext_lazy("protocol"), required=False, choices=[("udp", "UDP"), ("tcp", "TCP"), ("tls", "TLS")], initial="udp",
        help_text=gettext_lazy("Of the signalling. The sound itself is plain RTP."),
    )  # fmt: skip
    domain = forms.CharField(
        label=gettext_lazy("domain"), required=False, max_length=253, help_text=gettext_lazy("Behind the @ of addresses. Empty: the server.")
    )  # fmt: skip
    username = forms.CharField(
        label=gettext_lazy("user name"), required=False, max_length=100, help_text=gettext_lazy("Empty where the trunk knows us by our address.")
    )  # fmt: skip
    password = forms.CharField(label=gettext_lazy("password"), required=False, max_length=200, strip=False)
    register = forms.BooleanField(
        label=gettext_lazy("register before each call"), required=False,
        help_text=gettext_lazy("Only if the PBX takes calls from registered extensions alone."),
    )  # fmt: skip
    numbers = transport.NumbersField(required=False)
    number_format = forms.ChoiceField(
        label=gettext_lazy("dialled numbers"),
        required=False,
        choices=[
            ("plus", "+8613800000000"),
            ("digits", "8613800000000"),
            ("zeros", "008613800000000"),
            ("national", gettext_lazy("as dialled in the country of our number, 00… elsewhere")),
        ],
        help_text=gettext_lazy("How the trunk wants the number that is called."),
    )
    dial_prefix = forms.RegexField(
        r"\A[0-9*#]{0,6}\Z", strip=True, label=gettext_lazy("prefix"), required=False, help_text=gettext_lazy("Dialled before the number, such as 9 for an outside line.")
    )  # fmt: skip
    ring_seconds = forms.IntegerField(
        label=gettext_lazy("seconds to ring"), required=False, min_value=10, max_value=120,
        help_text=gettext_lazy("Then we hang up. Default: 45; less than the time until a mailbox answers is better."),
    )  # fmt: skip
    public_address = forms.CharField(
        label=gettext_lazy("our public address"),
        required=False,
        max_length=45,
        help_text=gettext_lazy("Only behind NAT, if the trunk does not find out by itself: the address it sees us from."),
    )  # fmt: skip
    voice_zh = forms.RegexField(r"\A[a-z0-9][A-Za-z0-9+-]{0,39}\Z", strip=True, label=gettext_lazy("Chinese voice"), required=False, help_text=gettext_lazy("A voice of espeak-ng. Default: cmn."))  # fmt: skip
    voice_en = forms.RegexField(r"\A[a-z0-9][A-Za-z0-9+-]{0,39}\Z", strip=True, label=gettext_lazy("English voice"), required=False, help_text=gettext_lazy("A voice of espeak-ng. Default: en-us."))  # fmt: skip
    speed = forms.IntegerField(
        label=gettext_lazy("words a minute"), required=False, min_value=80, max_value=300, help_text=gettext_lazy("Default: 150.")
    )  # fmt: skip

    def clean_host(self) -> str:
        host = str(self.cleaned_data["host"]).strip()
        if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", host):
            raise ValidationError(_("Enter only the name or address of the server, without sip: and without a port."))
        return host

    def clean_domain(self) -> str:
        domain = str(self.cleaned_data["domain"] or "").strip()
        if not re.fullmatch(r"[A-Za-z0-9._-]*", domain):
            raise ValidationError(_("Enter a domain such as sip.example.com."))
        return domain

    def clean_public_address(self) -> str:
        address = str(self.cleaned_data["public_address"] or "").strip()
        if address:
            validate_ipv46_address(address)
        return address

    def clean_username(self) -> str:
        name = str(self.cleaned_data["username"] or "").strip()
        if not re.fullmatch(r"[A-Za-z0-9._!~*'()&=+$,;?/-]*", name):
            raise ValidationError(_("Enter the user name without @ and what follows it."))
        return name

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("username") and not data.get("password"):
            self.add_error("password", _("A user name needs a password."))
        if data.get("register") and not data.get("username"):
            self.add_error("username", _("Registering needs a user name."))
        if not data.get("numbers") and not data.get("username"):
            self.add_error("numbers", _("Enter the number that calls come from."))
        if missing := speech.missing():
            raise ValidationError(missing)
        return data


class Sip(Transport):
    kind = "sip_voice"
    label = gettext_lazy("Phone call over SIP (own trunk or PBX)")
    family = "voice"
    reach = "phone"
    person = True
    format = "voice"
    # A second page would run into the call that still rings at the same phone: it waits, and takes along what comes meanwhile. Two new calls
    # a second is what trunks take that say nothing of it.
    limits = (Limit(1, 30), Limit(2, 1, "channel"))
    concurrency = 1
    listens = True  # how a call of this node ended may be known after nobody asks about it any more
    max_chars = 600
    secret = frozenset({"password"})
    Settings = Settings

    def __init__(self, settings: Mapping[str, Any], http: Http, callback_url: str = "") -> None:
        super().__init__(settings, http, callback_url)
        self.outcomes = Outcomes(f"sip {settings['host']}:{settings['port']} {settings.get('username') or ''} {callback_url}")

    def send(self, message: Message, address: str) -> Receipt:
        """`sent` when the phone rings, or the trunk works on it for longer than we wait; what the trunk refuses before that raises."""
        with http.deadline(http.TOTAL_SECONDS):
            until = time.monotonic() + http.TOTAL_SECONDS
            settings = self.settings
            number, caller = self._numbers(address)
            chinese = message.language.lower().startswith("zh")
            voice = str(settings.get("voice_zh") or "cmn") if chinese else str(settings.get("voice_en") or "en-us")
            sound = speech.spoken(message.text[: self.max_chars], voice, int(settings.get("speed") or 150))
            call = _Call(settings, self.http, number, caller, sound)
        threading.Thread(target=call.run, args=(until - 0.5, self.outcomes), name=f"call {call.call_id[:8]}", daemon=True).start()
        call.progress.wait(max(0.0, until - time.monotonic()))
        with call.lock:
            if call.error is not None:
                raise call.error
            # Should our process end in the middle of the call, nobody else would ever hear of it.
            lost = _("The call was cut off by an end of our own program; nobody knows what was heard.")
            self.outcomes.write(call.call_id, "failed", lost, not_before=time.time() + call.longest())
            call.handed_over = True
            if call.outcome is not None:
                self.outcomes.write(*call.outcome)
        return Receipt(call.call_id)

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """How calls of this node have ended."""
        return self.outcomes.take()

    def _numbers(self, address: str) -> tuple[str, str]:
        """(what is dialled, whom the call comes from: a number, or the extension)."""
        digits = address.lstrip("+")
        if not re.fullmatch(r"[1-9][0-9]{2,14}", digits):
            raise DeliveryError(_("“%(address)s” is not a phone number.") % {"address": address}, permanent=True)
        form = str(self.settings.get("number_format") or "plus")
        own = transport.number_for(transport.parse_numbers(str(self.settings.get("numbers") or "")), f"+{digits}")
        dialled = {"plus": f"+{digits}", "digits": digits}.get(form, f"00{digits}")
        if form == "national" and own:
            there, here = phonenumbers.parse(f"+{digits}"), phonenumbers.parse(own)
            if there.country_code == here.country_code:
                dialled = re.sub(r"\D", "", phonenumbers.format_number(there, phonenumbers.PhoneNumberFormat.NATIONAL))
        caller = own if form == "plus" or not own else own.lstrip("+")
        return f"{self.settings.get('dial_prefix') or ''}{dialled}", caller or str(self.settings.get("username") or "")


# --- messages ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Packet:
    """A request or response of SIP."""

    start: str
    headers: tuple[tuple[str, str], ...]  # names in lower case, in full
    body: bytes

    @property
    def status(self) -> int:
        """Of a response; 0 for a request."""
        return int(self.start[8:11]) if re.match(r"SIP/2\.0 [1-6]\d\d\b", self.start) else 0

    @property
    def method(self) -> str:
        """Of a request; of a response, the method that it answers."""
        return (self.get("cseq").partition(" ")[2] if self.status else self.start.partition(" ")[0]).strip().upper()

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name]

    def get(self, name: str) -> str:
        return next(iter(self.all(name)), "")


def _packet(data: bytes) -> _Packet | None:
    """What a datagram or a part of a stream says; None for what is no SIP, such as a keep-alive."""
    head, _blank, body = data.partition(b"\r\n\r\n")
    lines = re.sub(r"\r\n[ \t]+", " ", head.decode("utf-8", "replace").lstrip("\r\n")).split("\r\n")
    pairs = [line.partition(":") for line in lines[1:] if ":" in line]
    headers = tuple((NAMES.get(name.strip().lower(), name.strip().lower()), value.strip()) for name, _colon, value in pairs)
    return _Packet(lines[0], headers, body) if "SIP/2.0" in lines[0] and headers else None


def _tag(value: str) -> str:
    match = re.search(r";\s*tag=([^;\s]+)", value.rpartition(">")[2] if ">" in value else value)
    return match[1] if match else ""


def _uri(value: str) -> str:
    match = re.search(r"<([^>]*)>", value)
    return match[1] if match else value.partition(";")[0].strip()


@dataclass(frozen=True, slots=True)
class _Media:
    """Where the far end wants the sound, and as what."""

    host: str
    port: int
    payload: int


def _media(body: bytes) -> _Media | None:
    """What an SDP answer says of the first sound; None where it wants none that we have."""
    host, found = "", None
    for line in body.decode("utf-8", "replace").splitlines():
        if line.startswith("c=IN IP") and (found is None or not found[2]):
            host = line.split()[-1].partition("/")[0]
            found = (found[0], found[1], True) if found else None
        elif line.startswith("m=") and found is not None:
            break
        elif match := re.fullmatch(r"m=audio (\d+)(?:/\d+)? RTP/AVP ([\d ]+)\s*", line):
            payload = next((int(kind) for kind in match[2].split() if kind in ("0", "8")), -1)
            found = (int(match[1]), payload, False)
    if not host or found is None or not 0 < found[0] < 65536 or found[1] < 0:
        return None
    return _Media(host, found[0], found[1])


def _credentials(challenges: Sequence[str], user: str, password: str, method: str, uri: str) -> str:
    """The answer to the first challenge that we can answer; "" where there is none."""
    for challenge in challenges:
        scheme, _space, rest = challenge.partition(" ")
        given = {name.lower(): quoted or bare for name, quoted, bare in re.findall(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))', rest)}
        algorithm = given.get("algorithm", "MD5").upper()
        qops = [qop.strip().lower() for qop in given.get("qop", "").split(",") if qop.strip()]
        if scheme.lower() != "digest" or algorithm not in ("MD5", "SHA-256") or (qops and "auth" not in qops):
            continue

        def digest(text: str, algorithm: str = algorithm) -> str:
            data = text.encode()
            return (hashlib.sha256(data) if algorithm == "SHA-256" else hashlib.md5(data, usedforsecurity=False)).hexdigest()

        realm, nonce, cnonce = given.get("realm", ""), given.get("nonce", ""), secrets.token_hex(8)
        inner, outer = digest(f"{user}:{realm}:{password}"), digest(f"{method}:{uri}")
        response = digest(f"{inner}:{nonce}:00000001:{cnonce}:auth:{outer}" if qops else f"{inner}:{nonce}:{outer}")
        parts = [
            f'username="{user}"',
            f'realm="{realm}"',
            f'nonce="{nonce}"',
            f'uri="{uri}"',
            f'response="{response}"',
            f"algorithm={algorithm}",
        ]
        parts += ["qop=auth", "nc=00000001", f'cnonce="{cnonce}"'] if qops else []
        parts += [f'opaque="{given["opaque"]}"'] if "opaque" in given else []
        return "Digest " + ", ".join(parts)
    return ""


# --- the call ----------------------------------------------------------------------------------------------------------------------


class _Call:
    """One call, on sockets of its own and, once `run`, a thread of its own."""

    def __init__(self, settings: Mapping[str, Any], door: Http, number: str, caller: str, sound: "array.array[int]") -> None:
        self.settings, self.door, self.sound = settings, door, sound
        self.ring_seconds = float(settings.get("ring_seconds") or 45)
        self.call_id = secrets.token_hex(16)
        self.progress = threading.Event()  # it rings, or it ended
        self.lock = threading.Lock()  # of what `send` and the thread tell each other
        self.error: DeliveryError | None = None
        self.outcome: tuple[str, str, str] | None = None
        self.handed_over = False
        host, port, protocol = str(settings["host"]), int(settings["port"]), str(settings.get("protocol") or "udp")
        self.place, self.protocol = f"{host}:{port}", protocol
        if protocol == "udp":
            self.sock = door.datagram(host, port)
        else:
            self.sock = door.connect(host, port)
            if protocol == "tls":
                try:
                    self.sock = door.ssl_context().wrap_socket(self.sock, server_hostname=host)
                except OSError as error:
                    self.sock.close()
                    raise DeliveryError(http.tls_failure(self.place, error), permanent=False) from None
        self.domain = str(settings.get("domain") or "") or _bracketed(host)
        address, local_port = self.sock.getsockname()[:2]
        self.local = address
        self.shown = str(settings.get("public_address") or "") or address
        self.here = f"{_bracketed(self.shown)}:{local_port}"
        self.rtp = _bound(self.sock.family, self.local)
        self.from_ = f"<sip:{caller}@{self.domain}>;tag={secrets.token_hex(6)}"
        self.contact = f"<sip:{caller}@{self.here};transport={protocol}>"
        self.target = f"sip:{number}@{self.domain}"
        self.to = f"<{self.target}>"
        self.routes: list[str] = []
        self.cseq = 0
        self.authorization: tuple[str, ...] = ()
        self.invited = b""  # the INVITE as it was sent last
        self.media: _Media | None = None
        self._buffer = b""

    def longest(self) -> float:
        """Seconds after which it has ended, however it went."""
        return self.ring_seconds + speech.seconds(self.sound) + 30

    def run(self, until: float, outcomes: Outcomes) -> None:
        """The whole call. `until`: how long the trunk may take for its first word (monotonic)."""
        error: DeliveryError | None = None
        try:
            if self.settings.get("register"):
                self._register(until)
            answer = self._invite(until)
            self._speak(answer)
        except DeliveryError as problem:
            error = problem
        except ConnectionRefusedError:
            error = DeliveryError(_("Nothing answers at %(place)s: the SIP server is not there.") % {"place": self.place}, permanent=False)
        except (OSError, ValueError):
            text = _("The connection to %(place)s broke off during the call; the phone may have rung.")
            error = DeliveryError(text % {"place": self.place}, permanent=False, left=True)
        except Exception as problem:  # a fault of ours, or something nobody has thought of that the far end said: `send` must hear of it
            log.exception("a call at %s broke off", self.place)
            error = DeliveryError(_("Internal error: %(kind)s.") % {"kind": type(problem).__name__}, permanent=False, left=True)
        finally:
            self.sock.close()
            self.rtp.close()
        with self.lock:
            self.outcome = (self.call_id, "failed", error.text) if error else (self.call_id, "delivered", "")
            if self.handed_over:
                outcomes.write(*self.outcome)
            elif not self.progress.is_set():  # else it rang: `send` says so, and is told of the end beside it
                self.error = error
        self.progress.set()

    # ---- its three acts ----

    def _register(self, until: float) -> None:
        user = f"<sip:{self.settings['username']}@{self.domain}>"
        answer = self._transact(
            "REGISTER", f"sip:{self.domain}", until, to=user, from_=f"{user};tag={secrets.token_hex(6)}", more=("Expires: 60",)
        )
        if answer is None:
            raise DeliveryError(_("The SIP server %(place)s did not answer.") % {"place": self.place}, permanent=False)
        if answer.status >= 300:
            raise self._refusal(answer)

    def _invite(self, until: float) -> _Packet:
        """The 200 of the call, acknowledged; DeliveryError where it ends otherwise."""
        self.authorization = ()
        for attempt in itertools.count():
            answer = self._ask_for_the_call(until)
            if 200 <= answer.status < 300:
                self.to, self.target = answer.get("to"), _uri(answer.get("contact")) or self.target
                self.routes = [part.strip() for value in answer.all("record-route") for part in value.split(",")][::-1]
                self.media = _media(answer.body) or self.media
                self._acknowledge()
                self.progress.set()
                return answer
            stale = "stale=true" in (answer.get("www-authenticate") + answer.get("proxy-authenticate")).lower()
            if (
                answer.status in (401, 407)
                and (attempt == 0 or (stale and attempt == 1))
                and self._authorize(answer, "INVITE", self.target)
            ):
                continue
            raise self._refusal(answer)
        raise AssertionError("unreachable")

    def _ask_for_the_call(self, until: float) -> _Packet:
        """Sends INVITE and returns its final answer; hangs up where nobody answers in time."""
        self.cseq += 1
        branch = _branch()
        self.invited = self._request("INVITE", self.target, self.cseq, branch, body=self._offer(), more=self.authorization)
        self._write(self.invited)
        heard, cancelled = False, False
        interval, again = T1, time.monotonic() + T1
        limit = until
        while True:
            packet = self._read(min(limit, again) if self.protocol == "udp" and not heard else limit)
            now = time.monotonic()
            if packet is None:
                if now >= limit and cancelled:
                    raise self._no_answer()
                if now >= limit and heard:
                    self._write(self._request("CANCEL", self.target, self.cseq, branch))
                    cancelled, limit = True, now + AFTER_CANCEL
                elif now >= limit:
                    raise DeliveryError(
                        _("The SIP server %(place)s did not answer; the call may have gone through.") % {"place": self.place},
                        permanent=False,
                        left=True,
                    )
                elif now >= again and not heard:
                    self._write(self.invited)
                    interval = min(2 * interval, T2)
                    again = now + interval
                continue
            if not packet.status:
                self._answer(packet)
            elif packet.method == "INVITE" and branch in packet.get("via"):
                if packet.status < 200:
                    limit = limit if heard else now + self.ring_seconds
                    heard = True
                    self.media = _media(packet.body) or self.media  # early media: some give their answer here and not again
                    if packet.status > 100:
                        self.progress.set()
                    continue
                if packet.status >= 300:
                    self._write(self._request("ACK", self.target, self.cseq, branch, to=packet.get("to")))
                    if cancelled:
                        raise self._no_answer()
                return packet

    def _speak(self, answer: _Packet) -> None:
        """The text twice, unless the far end hangs up before."""
        sent, hung_up, failures = 0, False, 0
        try:
            if self.media is None:
                raise DeliveryError(
                    _("The phone was answered, but the trunk takes no G.711 sound: allow PCMA or PCMU on it."), permanent=True, config=True
                )
            self._connect_sound()
            sequence, stamp, source = secrets.randbits(15), secrets.randbits(31), secrets.randbits(32)
            due = time.monotonic()
            for frame in speech.frames(self.sound, self.media.payload):
                while not hung_up and (wait := due - time.monotonic()) > 0:
                    hung_up = self._listen(wait, answer)
                if hung_up:
                    break
                marker = 0x80 if not sent and not failures else 0
                head = struct.pack(">BBHLL", 0x80, marker | self.media.payload, sequence & 0xFFFF, stamp & 0xFFFFFFFF, source)
                try:
                    self.rtp.send(head + frame)
                    sent += 1
                except OSError:  # the port was closed a moment ago: what counts is whether any got through
                    failures += 1
                sequence, stamp = sequence + 1, stamp + speech.FRAME
                due = max(due + speech.FRAME / speech.RATE, time.monotonic() - 0.2)  # after a long wait of the machine: go on, do not rush
        finally:
            if not hung_up:
                self._transact("BYE", self.target, time.monotonic() + 2, to=self.to, more=tuple(f"Route: {route}" for route in self.routes))
        if failures > sent:
            raise DeliveryError(_("The phone was answered, but the sound did not get through: a firewall, or wrong media settings of the trunk."), permanent=True)  # fmt: skip

    # ---- what it is made of ----

    def _connect_sound(self) -> None:
        """Sound goes to the SIP server's own address, or wherever else the guard lets us: an answer could name any machine of our network."""
        assert self.media is not None
        if self.media.host != self.sock.getpeername()[0]:
            try:
                self.door.guard.judge(self.media.host, self.media.host, self.media.port)
            except ValueError:
                raise DeliveryError(
                    _("The trunk wants the sound sent to a name instead of an address."), permanent=True, config=True
                ) from None
        self.rtp.connect((self.media.host, self.media.port))

    def _listen(self, wait: float, answer: _Packet) -> bool:
        """Whether the far end has hung up; hears for so many seconds at most."""
        readable, _writable, _broken = select.select([self.sock, self.rtp], [], [], wait)
        if self.rtp in readable:
            try:
                self.rtp.recv(LARGEST, socket.MSG_DONTWAIT)
            except OSError:
                pass
        if self.sock not in readable:
            return False
        packet = self._read(time.monotonic())
        if packet is None:
            return False
        if packet.status:
            if packet.method == "INVITE" and 200 <= packet.status < 300:
                self._acknowledge()  # our first one was lost
            return False
        self._answer(packet)
        return packet.method == "BYE"

    def _answer(self, packet: _Packet) -> None:
        """What the far end asks of us during the call."""
        status, body = "200 OK", b""
        if packet.method == "ACK":
            return
        if packet.get("call-id") != self.call_id:
            status = "481 Call/Transaction Does Not Exist"
        elif packet.method in ("INVITE", "UPDATE"):
            # It moves the sound elsewhere, or asks whether we are still there.
            if (moved := _media(packet.body)) is not None and self.media is not None:
                self.media = moved
                self._connect_sound()
            body = self._offer() if packet.body or packet.method == "INVITE" else b""
        elif packet.method not in ("BYE", "OPTIONS", "INFO", "NOTIFY"):
            status = "405 Method Not Allowed"
        lines = [f"SIP/2.0 {status}"]
        lines += [f"{name}: {value}" for key, name in (("via", "Via"), ("record-route", "Record-Route"), ("from", "From"), ("to", "To"), ("call-id", "Call-ID"), ("cseq", "CSeq")) for value in packet.all(key)]  # fmt: skip
        lines += [f"Contact: {self.contact}", f"Allow: {ALLOW}"]
        self._write(_written(lines, body))

    def _acknowledge(self) -> None:
        more = (*self.authorization, *(f"Route: {route}" for route in self.routes))
        self._write(self._request("ACK", self.target, self.cseq, _branch(), to=self.to, more=more))

    def _transact(self, method: str, uri: str, until: float, *, to: str, from_: str = "", more: tuple[str, ...] = ()) -> _Packet | None:
        """The final answer to a request that is no INVITE, authorized where that is asked for; None where none came in time."""
        self.authorization = ()
        answer: _Packet | None = None
        for _attempt in range(2):
            if method == "REGISTER":
                cseq = _attempt + 1
            else:
                self.cseq += 1
                cseq = self.cseq
            branch = _branch()
            data = self._request(method, uri, cseq, branch, to=to, from_=from_, more=(*self.authorization, *more))
            self._write(data)
            interval, again = T1, time.monotonic() + T1
            answer = None
            while time.monotonic() < until:
                packet = self._read(min(until, again) if self.protocol == "udp" else until)
                if packet is None and time.monotonic() >= again and self.protocol == "udp":
                    self._write(data)
                    interval = min(2 * interval, T2)
                    again = time.monotonic() + interval
                elif packet is not None and not packet.status:
                    self._answer(packet)
                elif packet is not None and packet.status >= 200 and branch in packet.get("via"):
                    answer = packet
                    break
            if answer is None or answer.status not in (401, 407) or not self._authorize(answer, method, uri):
                break
        return answer

    def _authorize(self, answer: _Packet, method: str, uri: str) -> bool:
        """Whether we can answer its challenge; the next request carries the answer."""
        name, header = ("www-authenticate", "Authorization") if answer.status == 401 else ("proxy-authenticate", "Proxy-Authorization")
        user, password = str(self.settings.get("username") or ""), str(self.settings.get("password") or "")
        credentials = _credentials(answer.all(name), user, password, method, uri) if user else ""
        self.authorization = (f"{header}: {credentials}",) if credentials else ()
        return bool(credentials)

    def _request(
        self, method: str, uri: str, cseq: int, branch: str, *, to: str = "", from_: str = "", body: bytes = b"", more: tuple[str, ...] = ()
    ) -> bytes:
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/{self.protocol.upper()} {self.here};branch={branch};rport",
            "Max-Forwards: 70",
            f"From: {from_ or self.from_}",
            f"To: {to or self.to}",
            f"Call-ID: {self.call_id}{'-register' if method == 'REGISTER' else ''}",
            f"CSeq: {cseq} {method}",
        ]
        lines += [f"Contact: {self.contact}"] if method in ("INVITE", "REGISTER") else []
        return _written([*lines, *more, f"User-Agent: {http.USER_AGENT}", f"Allow: {ALLOW}"], body)

    def _offer(self) -> bytes:
        family = "IP6" if ":" in self.shown else "IP4"
        lines = [
            "v=0", f"o=- {int(self.call_id[:8], 16)} 1 IN {family} {self.shown}", "s=call", f"c=IN {family} {self.shown}", "t=0 0",
            f"m=audio {self.rtp.getsockname()[1]} RTP/AVP 8 0", "a=rtpmap:8 PCMA/8000", "a=rtpmap:0 PCMU/8000", "a=ptime:20", "a=sendrecv",
        ]  # fmt: skip
        return "".join(f"{line}\r\n" for line in lines).encode()

    def _write(self, data: bytes) -> None:
        with http.deadline(2.0):
            self.sock.sendall(data)

    def _read(self, until: float) -> _Packet | None:
        """The next message before `until` (monotonic), or None; OSError when the connection ended."""
        while True:
            if self.protocol != "udp" and (whole := self._cut()) is not None:
                return whole
            readable, _writable, _broken = select.select([self.sock], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                return None
            data = http.available(self.sock, LARGEST)
            if data is None:
                continue
            if self.protocol == "udp":
                if (packet := _packet(data)) is not None:
                    return packet
                continue
            if not data or len(self._buffer) > LARGEST:
                raise ConnectionResetError
            self._buffer += data

    def _cut(self) -> _Packet | None:
        """The first whole message of the stream."""
        self._buffer = self._buffer.lstrip(b"\r\n")
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return None
        packet = _packet(head + blank)
        length = packet.get("content-length") if packet else ""
        if packet is None or not re.fullmatch(r"[0-9]{1,5}", length):
            raise ConnectionResetError
        if len(rest) < int(length):
            return None
        self._buffer = rest[int(length) :]
        return _Packet(packet.start, packet.headers, rest[: int(length)])

    def _no_answer(self) -> DeliveryError:
        return DeliveryError(_("Nobody answered the phone within %(seconds)d s.") % {"seconds": self.ring_seconds}, permanent=True)

    def _refusal(self, answer: _Packet) -> DeliveryError:
        """What a final answer other than 2xx means."""
        status = answer.status
        if 300 <= status < 400:
            why, permanent, config = _("it points to another server, which is not followed: enter that one"), True, True
        else:
            otherwise = (_("the trunk could not put it through"), status >= 600 or 400 <= status < 500, False)
            why, permanent, config = ENDS.get(status, otherwise)
        wait = re.match(r"\d{1,5}", answer.get("retry-after"))
        said = self.door.clean(" ".join(answer.start[12:].split())[:80])
        return DeliveryError(
            _("The call did not get through: %(why)s (SIP %(status)d %(said)s).") % {"why": why, "status": status, "said": said},
            permanent=permanent,
            config=config,
            retry_after=float(wait[0]) if wait and not permanent else None,
        )


def _written(lines: Sequence[str], body: bytes) -> bytes:
    lines = [*lines, *(["Content-Type: application/sdp"] if body else []), f"Content-Length: {len(body)}"]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


def _branch() -> str:
    return f"z9hG4bK{secrets.token_hex(10)}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bound(family: int, address: str) -> socket.socket:
    """A socket for sound, on an even port as RTP has it."""
    for last in (False, False, False, False, False, False, True):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((address, 0))
        if last or sock.getsockname()[1] % 2 == 0:
            return sock
        sock.close()
    raise AssertionError("unreachable")
