"""A SIP trunk with one phone behind it, over real UDP, TCP or TLS: strict about what RFC 3261 says of each request, and it records what it hears.

Written from RFC 3261, 2617/7616, 3264 and 3550 and from G.711's decoding table; tests/outside/test_sipp.py has the same calls with sipp."""

import contextlib
import hashlib
import re
import secrets
import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field
from typing import Any, Self

NEEDED = ("via", "max-forwards", "from", "to", "call-id", "cseq", "content-length")


@dataclass
class Request:
    method: str
    uri: str
    headers: list[tuple[str, str]]
    body: str

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name]

    def get(self, name: str) -> str:
        return next(iter(self.all(name)), "")

    @property
    def branch(self) -> str:
        match = re.search(r";branch=([^;,\s]+)", self.get("via"))
        return match[1] if match else ""


@dataclass
class Heard:
    """The sound of one call."""

    packets: list[bytes] = field(default_factory=list)

    @property
    def samples(self) -> list[int]:
        return [_decoded(packet[1] & 0x7F, octet) for packet in self.packets for octet in packet[12:]]

    def faults(self) -> list[str]:
        """What RTP does not allow."""
        found = []
        for number, packet in enumerate(self.packets):
            first, second, sequence, stamp, source = struct.unpack_from(">BBHLL", packet)
            if first != 0x80 or second & 0x7F not in (0, 8) or len(packet) != 172 or bool(second & 0x80) != (number == 0):
                found.append(f"packet {number}: {packet[:12].hex()} {len(packet)}")
            if number:
                _f, _s, before, earlier, same = struct.unpack_from(">BBHLL", self.packets[number - 1])
                if (sequence - before) & 0xFFFF != 1 or (stamp - earlier) & 0xFFFFFFFF != 160 or source != same:
                    found.append(f"packet {number}: sequence, time or source")
        return found


class Trunk:
    """`with Trunk() as trunk:`. `plan` says what becomes of a call: "answer", "ring", "trying", "silent", or a status with its reason."""

    def __init__(self, protocol: str = "udp", *, user: str = "", password: str = "", context: ssl.SSLContext | None = None) -> None:
        self.protocol, self.user, self.password, self.context = protocol, user, password, context
        self.carrier = "TLS" if context is not None else protocol.upper()
        self.plan: str = "answer"
        self.deaf = 0  # so many requests are lost on the way (UDP)
        self.algorithm, self.qop, self.challenge = "MD5", True, 401
        self.payloads = "0 8 101"
        self.media_host = "127.0.0.1"
        self.hangs_up_after = 0  # packets of sound; 0: never
        self.early = False  # its SDP comes with 183 only
        self.loses_ack = False
        self.extra: list[str] = []  # headers of the 200
        self.requests: list[Request] = []
        self.faults: list[str] = []
        self.heard = Heard()
        self.answered = threading.Event()
        self.ended = threading.Event()
        self.acks = 0
        self.responses: list[str] = []  # start lines of answers to our requests
        self.nonces: set[str] = set()
        self._answer_to: dict[str, list[str]] = {}
        self._call: Request | None = None
        self._say: Any = None
        self._tag = secrets.token_hex(4)
        self._stop = threading.Event()
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        self._sock = socket.socket(socket.AF_INET, kind)
        self._sock.bind(("127.0.0.1", 0))
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind(("127.0.0.1", 0))
        self.port = self._sock.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._sock.settimeout(0.05)
        self._rtp.settimeout(0.05)
        if self.protocol != "udp":
            self._sock.listen()
        threading.Thread(target=self._packets if self.protocol == "udp" else self._connections, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self._stop.set()
        if self.protocol != "udp":
            self._sock.shutdown(socket.SHUT_RDWR)  # a thread in `accept` would keep the port open
        self._sock.close()
        self._rtp.close()

    # ---- carrying ----

    def _packets(self) -> None:
        while not self._stop.is_set():
            try:
                data, address = self._sock.recvfrom(65_535)
            except TimeoutError:
                continue
            except OSError:
                return
            if self.deaf:
                self.deaf -= 1
                continue
            with contextlib.suppress(OSError):  # the test is over
                self._hear(data, lambda answer, address=address: self._sock.sendto(answer, address))

    def _connections(self) -> None:
        while not self._stop.is_set():
            try:
                sock, _address = self._sock.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock: socket.socket) -> None:
        buffer = b""
        try:
            sock.settimeout(None)
            if self.context is not None:
                sock = self.context.wrap_socket(sock, server_side=True)
            while data := sock.recv(65_535):
                buffer += data
                while b"\r\n\r\n" in buffer:
                    head, _blank, rest = buffer.partition(b"\r\n\r\n")
                    length = int(re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)[1])  # type: ignore[index]
                    if len(rest) < length:
                        break
                    buffer = rest[length:]
                    # In pieces, as TCP may bring them.
                    self._hear(
                        head + b"\r\n\r\n" + rest[:length], lambda answer: [sock.sendall(part) for part in (answer[:50], answer[50:])]
                    )
        except OSError:
            pass

    # ---- judging ----

    def _hear(self, data: bytes, say: Any) -> None:
        text = data.decode("utf-8")
        head, blank, body = text.partition("\r\n\r\n")
        lines = head.split("\r\n")
        if lines[0].startswith("SIP/2.0 "):
            self.responses.append(lines[0])
            return
        match = re.fullmatch(r"([A-Z]+) (sips?:\S+) SIP/2\.0", lines[0])
        headers = [(name.strip().lower(), value.strip()) for name, _colon, value in (line.partition(":") for line in lines[1:])]
        if match is None or not blank:
            self.faults.append(f"not a request: {lines[0]}")
            return
        request = Request(match[1], match[2], headers, body)
        self.requests.append(request)
        if fault := self._fault(request):
            self.faults.append(f"{request.method}: {fault}")
            self._reply(say, request, "400 Bad Request")
            return
        self._say = say
        getattr(self, f"_{request.method.lower()}", self._other)(say, request)

    def _fault(self, request: Request) -> str:
        for name in NEEDED:
            if len(request.all(name)) != 1:
                return f"{name} stands there {len(request.all(name))} times"
        if not request.branch.startswith("z9hG4bK") or ";rport" not in request.get("via"):
            return "no branch or no rport"
        if not re.match(rf"SIP/2\.0/{self.carrier} 127\.0\.0\.1:\d+;", request.get("via")):
            return f"Via of another transport: {request.get('via')}"
        if not re.fullmatch(r"\d+ " + request.method, request.get("cseq")):
            return "CSeq of another method"
        if int(request.get("content-length")) != len(request.body.encode()):
            return "Content-Length is wrong"
        if not re.fullmatch(r"<sips?:[^<>]+>;tag=\S+", request.get("from")):
            return f"From: {request.get('from')}"
        if (request.method in ("BYE", "ACK")) != (f";tag={self._tag}" in request.get("to")):
            return f"To: {request.get('to')}"
        if request.method == "INVITE" and (not request.get("contact") or request.get("content-type") != "application/sdp"):
            return "no Contact or no SDP"
        if request.method == "INVITE" and not re.search(r"^v=0\r\no=- \d+ \d+ IN IP4 \S+\r\ns=\S.*\r\nc=IN IP4 [\d.]+\r\nt=0 0\r\nm=audio \d+ RTP/AVP 8 0\r\n", request.body):  # fmt: skip
            return "SDP"
        if self._call is not None and request.method in ("ACK", "CANCEL", "BYE"):
            number, before = int(request.get("cseq").split()[0]), int(self._call.get("cseq").split()[0])
            if request.get("call-id") != self._call.get("call-id") or (number <= before if request.method == "BYE" else number != before):
                return "another call, or CSeq"
            same = request.branch == self._call.branch
            accepted = self._answer_to.get(self._call.branch, [""])[-1].startswith("200")
            if same != (request.method == "CANCEL" or (request.method == "ACK" and not accepted)):
                return "branch"
        return ""

    def _authorized(self, request: Request) -> bool:
        if not self.user:
            return True
        value = request.get("authorization" if self.challenge == 401 else "proxy-authorization")
        given = dict(re.findall(r'(\w+)="?([^",]+)"?', value.removeprefix("Digest ")))
        if given.get("nonce") not in self.nonces or given.get("uri") != request.uri or given.get("realm") != "fake trunk":
            return False

        def digest(text: str) -> str:
            return (hashlib.sha256 if self.algorithm == "SHA-256" else hashlib.md5)(text.encode()).hexdigest()

        inner, outer = digest(f"{self.user}:fake trunk:{self.password}"), digest(f"{request.method}:{request.uri}")
        middle = f"{given['nonce']}:{given['nc']}:{given['cnonce']}:auth" if self.qop else given["nonce"]
        return given.get("username") == self.user and given.get("response") == digest(f"{inner}:{middle}:{outer}")

    def _ask_who(self, say: Any, request: Request) -> None:
        nonce = secrets.token_hex(8)
        self.nonces.add(nonce)
        name = "WWW-Authenticate" if self.challenge == 401 else "Proxy-Authenticate"
        qop = ', qop="auth,auth-int"' if self.qop else ""
        challenge = f'{name}: Digest realm="fake trunk", nonce="{nonce}", algorithm={self.algorithm}{qop}'
        self._reply(
            say, request, f"{self.challenge} Who are you", [f'{name}: Digest realm="x", nonce="y", algorithm=SHA-512-256', challenge]
        )

    # ---- answering ----

    def _reply(self, say: Any, request: Request, status: str, more: list[str] | None = None, body: str = "") -> None:
        self._answer_to.setdefault(request.branch, []).append(status)
        to = request.get("to")
        to = to if ";tag=" in to or status.startswith("100") else f"{to};tag={self._tag}"
        lines = [f"SIP/2.0 {status}", f"v: {request.get('via')};received=127.0.0.1", f"From: {request.get('from')}", f"t: {to}"]
        lines += [f"i: {request.get('call-id')}", f"CSeq: {request.get('cseq')}", "Subject: folded", " over two lines", *(more or [])]
        lines += [*(["c: application/sdp"] if body else []), f"Content-Length: {len(body)}"]
        say(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _sdp(self) -> str:
        return (
            f"v=0\r\no=trunk 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 {self.media_host}\r\nt=0 0\r\n"
            f"m=audio {self._rtp.getsockname()[1]} RTP/AVP {self.payloads}\r\na=rtpmap:0 PCMU/8000\r\nm=video 0 RTP/AVP 99\r\nc=IN IP4 1.1.1.1\r\n"
        )

    def _contact(self) -> str:
        return f"m: <sip:phone@127.0.0.1:{self.port};ob>;expires=60"

    def _accept(self, say: Any, request: Request) -> None:
        self._reply(say, request, "200 OK", [self._contact(), *self.extra], "" if self.early else self._sdp())

    def _register(self, say: Any, request: Request) -> None:
        if self._authorized(request):
            self._reply(say, request, "200 OK")
        else:
            self._ask_who(say, request)

    def _other(self, say: Any, request: Request) -> None:
        self._reply(say, request, "405 Method Not Allowed")

    def _invite(self, say: Any, request: Request) -> None:
        if self._call is not None and request.branch == self._call.branch:
            return  # sent again: what we said is on its way
        self._call = request
        if self.plan == "silent":
            return
        self._reply(say, request, "100 Trying")
        if not self._authorized(request):
            self._ask_who(say, request)
            return
        if re.match(r"\d", self.plan):
            self._reply(say, request, self.plan, ["Retry-After: 7 (busy)"])
        elif self.plan != "trying":
            self._reply(
                say, request, "183 Session Progress" if self.early else "180 Ringing", [self._contact()], self._sdp() if self.early else ""
            )
            if self.plan == "answer":
                self.heard = Heard()
                self.answered.set()
                self._accept(say, request)

    def _ack(self, say: Any, request: Request) -> None:
        self.acks += 1
        if self.loses_ack and self.acks == 1:
            assert self._call is not None
            self._accept(say, self._call)

    def _cancel(self, say: Any, request: Request) -> None:
        assert self._call is not None
        self._reply(say, request, "200 OK")
        self._reply(say, self._call, "487 Request Terminated")
        self.ended.set()

    def _bye(self, say: Any, request: Request) -> None:
        if request.uri != f"sip:phone@127.0.0.1:{self.port};ob":
            self.faults.append(f"BYE to {request.uri} and not to our Contact")
        self._reply(say, request, "200 OK")
        self.ended.set()

    def ask(self, method: str, body: str = "", *, call_id: str = "") -> None:
        """A request of ours within the call, such as BYE."""
        assert self._call is not None
        contact = re.search(r"<([^>]+)>", self._call.get("contact"))
        lines = [
            f"{method} {contact[1] if contact else ''} SIP/2.0", f"Via: SIP/2.0/{self.carrier} {self.host};branch=z9hG4bK{secrets.token_hex(4)}",
            "Max-Forwards: 70", f"From: {self._call.get('to')};tag={self._tag}", f"To: {self._call.get('from')}",
            f"Call-ID: {call_id or self._call.get('call-id')}", f"CSeq: 77 {method}", *(["Content-Type: application/sdp"] if body else []),
            f"Content-Length: {len(body)}",
        ]  # fmt: skip
        self._say(("\r\n".join(lines) + "\r\n\r\n" + body).encode())

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                packet, address = self._rtp.recvfrom(4096)
            except TimeoutError:
                continue
            except OSError:
                return
            self.heard.packets.append(packet)
            self._rtp.sendto(packet, address)  # somebody breathes at the other end
            if self.hangs_up_after and len(self.heard.packets) == self.hangs_up_after:
                self.ask("BYE")
                self.ended.set()


def settings_for(trunk: Trunk, **changes: Any) -> dict[str, Any]:
    """Settings of our channel that lead to this trunk."""
    return {
        "host": "127.0.0.1", "port": trunk.port, "protocol": trunk.protocol if trunk.context is None else "tls", "numbers": "+86 571 8888 1234",
        "username": trunk.user, "password": trunk.password, **changes,
    }  # fmt: skip


def _decoded(payload: int, octet: int) -> int:
    """G.711: a sample of 16 bits."""
    if payload == 0:
        octet = ~octet & 0xFF
        size = (((octet & 0x0F) << 3) + 0x84 << (octet >> 4 & 7)) - 0x84
        return -size if octet & 0x80 else size
    octet ^= 0x55
    segment, size = octet >> 4 & 7, (octet & 0x0F) << 4
    size = size + 8 if segment == 0 else size + 0x108 << segment - 1
    return size if octet & 0x80 else -size
