"""An SMS centre that speaks SMPP 3.4 over real TCP, as strict as the specification: every field is read byte by byte and must be well formed.

Written from the SMPP Protocol Specification 3.4 (issue 1.2), 3GPP TS 23.038 and 23.040, with no code of any SMPP library, so that it can
contradict the one we use. Debian's Kannel has been bound to it as well (tests/outside/test_kannel.py)."""

import contextlib
import itertools
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.fakes.server import until

BIND_RECEIVER, BIND_TRANSMITTER, SUBMIT_SM, DELIVER_SM, UNBIND, BIND_TRANSCEIVER, ENQUIRE_LINK = 0x1, 0x2, 0x4, 0x5, 0x6, 0x9, 0x15
GENERIC_NACK, RESP = 0x80000000, 0x80000000
OK, INVMSGLEN, INVCMDLEN, INVCMDID, INVBNDSTS, ALYBND, INVSRCADR, INVDSTADR, INVPASWD, INVSYSID, INVESMCLASS, THROTTLED, INVTLV = (
    0x0, 0x1, 0x2, 0x3, 0x4, 0x5, 0xA, 0xB, 0xE, 0xF, 0x43, 0x58, 0xC2,
)  # fmt: skip
# TLVs of submit_sm that we know, with the length they must have (None: any).
TLVS = {0x020C: 2, 0x020E: 1, 0x020F: 1, 0x0424: None, 0x0204: 2, 0x0426: 1, 0x0019: 1}

_SEPTETS = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞ\x1bÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?"
    "¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)  # fmt: skip
_ESCAPED = {10: "\f", 20: "^", 40: "{", 41: "}", 47: "\\", 60: "[", 61: "~", 62: "]", 64: "|", 101: "€"}


class Malformed(Exception):
    """The status to answer with."""


@dataclass
class Submitted:
    """One submit_sm that was taken."""

    message_id: str
    source: str
    source_ton: int
    source_npi: int
    dest: str
    dest_ton: int
    dest_npi: int
    esm_class: int
    data_coding: int
    registered: int
    validity: str
    service_type: str
    octets: bytes  # the text without its header
    part: tuple[int, int, int] | None  # reference, total, number: from UDH or SAR
    tlvs: dict[int, bytes] = field(default_factory=dict)
    session: "_Bound | None" = None

    @property
    def text(self) -> str:
        if self.data_coding == 8:
            return self.octets.decode("utf-16-be")
        if self.data_coding == 3:
            return self.octets.decode("latin-1")
        text, escaped = "", False
        for septet in self.octets:
            if escaped:
                text, escaped = text + _ESCAPED[septet], False
            elif septet == 0x1B:
                escaped = True
            else:
                text += _SEPTETS[septet]
        assert not escaped, "an escape at the end of a part"
        return text


class Smsc:
    """`with Smsc() as centre:`. `said` holds what was taken; `refuse` statuses for the next submit_sm; `most` binds at once.

    `mute` commands get no answer, `cut` closes the connection instead of answering; `answer_id` makes ids.
    """

    def __init__(self, *, system_id: str = "flashduty", password: str = "s3cret!", context: ssl.SSLContext | None = None) -> None:
        self.system_id, self.password, self.context = system_id, password, context
        self.said: list[Submitted] = []
        self.binds: list[int] = []
        self.unbinds = 0
        self.enquiries = 0
        self.refuse: list[int] = []
        self.most = 100
        self.mute: set[int] = set()
        self.cut: set[int] = set()
        self.connections: list[_Bound] = []
        self.acks: list[tuple[int, int]] = []  # sequence and status of each deliver_sm_resp
        self.nacks = 0
        self.answer_id: Callable[[int], str] = lambda number: f"mid-{number}"
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.refuse_connections()
        for one in list(self.connections):
            one.close()

    def refuse_connections(self) -> None:
        """From now on nobody connects; a thread in `accept` would keep the port open beyond a mere close."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _address = self._listener.accept()
            except OSError:
                return
            one = _Bound(self, sock)
            self.connections.append(one)
            threading.Thread(target=one.run, daemon=True).start()

    @property
    def bound(self) -> list["_Bound"]:
        return [one for one in self.connections if one.mode and one.open]

    def texts(self) -> list[str]:
        """Whole messages as the phones show them: parts joined by their reference."""
        whole, joining = [], {}
        for one in self.said:
            if one.part is None:
                whole.append(one.text)
                continue
            reference, total, number = one.part
            parts = joining.setdefault((one.dest, reference, total), {})
            parts[number] = one.text
            if len(parts) == total:
                whole.append("".join(parts[index] for index in range(1, total + 1)))
                del joining[one.dest, reference, total]
        return whole

    def receipt(self, message_id: str, stat: str = "DELIVRD", err: str = "000", *, tlvs: dict[int, bytes] | None = None, esm_class: int = 4, text: str | None = None) -> tuple[int, int]:  # fmt: skip
        """Sends a delivery receipt on any session that receives, and waits for its deliver_sm_resp: (sequence, status)."""
        assert until(lambda: any(one.mode in (BIND_RECEIVER, BIND_TRANSCEIVER) for one in self.bound)), "nobody is bound to hear it"
        session = next(one for one in self.bound if one.mode in (BIND_RECEIVER, BIND_TRANSCEIVER))
        said = text if text is not None else f"id:{message_id} sub:001 dlvrd:001 submit date:2601010300 done date:2601010301 stat:{stat} err:{err} text:Database is"  # fmt: skip
        return session.deliver(said.encode("latin-1"), esm_class, tlvs or {})


class _Bound:
    def __init__(self, centre: Smsc, sock: socket.socket) -> None:
        self.centre, self.sock = centre, sock
        self.mode = 0
        self.open = True
        self.sequence = 0
        self.last = 0
        self.lock = threading.Lock()

    def close(self) -> None:
        self.open = False
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    def run(self) -> None:
        try:
            if self.centre.context is not None:
                self.sock = self.centre.context.wrap_socket(self.sock, server_side=True)
            while self.open:
                head = self._exactly(16)
                length, command, status, sequence = struct.unpack(">LLLL", head)
                assert 16 <= length < 70_000, "a PDU of an impossible length"
                self._one(command, status, sequence, self._exactly(length - 16))
        except (OSError, EOFError, ssl.SSLError):
            pass
        finally:
            self.close()

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def send(self, command: int, status: int, sequence: int, body: bytes = b"") -> None:
        with self.lock:
            self.sock.sendall(struct.pack(">LLLL", 16 + len(body), command, status, sequence) + body)

    def deliver(self, text: bytes, esm_class: int, tlvs: dict[int, bytes]) -> tuple[int, int]:
        with self.lock:
            self.sequence += 1
            sequence = self.sequence
        body = b"\0" + b"\1\1" + b"8613800000000\0" + b"\0\0" + b"10690\0" + bytes([esm_class, 0, 0]) + b"\0\0" + bytes([0, 0, 0, 0, len(text)]) + text  # fmt: skip
        body += b"".join(struct.pack(">HH", tag, len(value)) + value for tag, value in tlvs.items())
        self.send(DELIVER_SM, 0, sequence, body)
        assert until(lambda: any(number == sequence for number, _status in self.centre.acks)), "no deliver_sm_resp"
        return next(pair for pair in self.centre.acks if pair[0] == sequence)

    def _one(self, command: int, status: int, sequence: int, body: bytes) -> None:
        if command & RESP:
            if command == GENERIC_NACK:
                self.centre.nacks += 1
            elif command == DELIVER_SM | RESP:
                assert body.count(b"\0") == 1 and body.endswith(b"\0"), "deliver_sm_resp has one empty string"
                self.centre.acks.append((sequence, status))
            return
        assert status == 0, "command_status of a request is 0"
        assert sequence == 0 or sequence > self.last, "sequence numbers go up"
        self.last = sequence
        if command in self.centre.mute:
            return
        if command in self.centre.cut:
            raise EOFError
        try:
            answer = self._answer(command, body)
        except Malformed as error:
            self.send(command | RESP, int(error.args[0]), sequence)
            return
        if answer is None:
            self.send(GENERIC_NACK, INVCMDID, sequence)
            return
        self.send(command | RESP, 0, sequence, answer)
        if command == UNBIND:
            self.centre.unbinds += 1
            raise EOFError

    def _answer(self, command: int, body: bytes) -> bytes | None:
        if command in (BIND_RECEIVER, BIND_TRANSMITTER, BIND_TRANSCEIVER):
            return self._bind(command, body)
        if command == ENQUIRE_LINK:
            self.centre.enquiries += 1
            return b""
        if command == UNBIND:
            return b""
        if command != SUBMIT_SM:
            return None
        if self.mode not in (BIND_TRANSMITTER, BIND_TRANSCEIVER):
            raise Malformed(INVBNDSTS)
        with self.centre.lock:
            if self.centre.refuse and (status := self.centre.refuse.pop(0)):
                raise Malformed(status)
            one = self._submitted(_Reader(body))
            one.message_id, one.session = self.centre.answer_id(next(self.centre.numbers)), self
            self.centre.said.append(one)
        return one.message_id.encode() + b"\0"

    def _bind(self, command: int, body: bytes) -> bytes:
        read = _Reader(body)
        system_id, password, _type = read.string(16), read.string(9), read.string(13)
        version, _ton, _npi = read.byte(), read.byte(), read.byte()
        read.string(41)
        read.end(INVCMDLEN)
        if version != 0x34 or self.mode:
            raise Malformed(INVBNDSTS)
        if system_id != self.centre.system_id:
            raise Malformed(INVSYSID)
        if password != self.centre.password:
            raise Malformed(INVPASWD)
        if len(self.centre.bound) >= self.centre.most:
            raise Malformed(ALYBND)
        self.mode = command
        self.centre.binds.append(command)
        return b"fake-smsc\0" + struct.pack(">HHB", 0x0210, 1, 0x34) + struct.pack(">HHH", 0x1401, 2, 7)  # the last one is a vendor's own

    @staticmethod
    def _submitted(read: "_Reader") -> Submitted:
        service = read.string(6)
        source_ton, source_npi, source = read.byte(), read.byte(), read.string(21)
        dest_ton, dest_npi, dest = read.byte(), read.byte(), read.string(21)
        esm_class, _protocol, _priority = read.byte(), read.byte(), read.byte()
        if read.string(17):
            raise Malformed(0x61)
        validity = read.string(17)
        if validity and (len(validity) != 16 or not validity[:15].isdecimal() or validity[15] not in "R+-"):
            raise Malformed(0x62)
        registered, _replace, coding, _canned = read.byte(), read.byte(), read.byte(), read.byte()
        octets = read.octets(read.byte())
        tlvs = read.tlvs()
        if not source or (source_ton == 5) == source.isdecimal() or (source_ton == 5 and len(source) > 11):
            raise Malformed(INVSRCADR)
        if not dest.isdecimal() or not 5 <= len(dest) <= 15 or dest_ton != 1 or dest_npi != 1:
            raise Malformed(INVDSTADR)
        if len(octets) > 254 or bool(octets) == (0x0424 in tlvs):
            raise Malformed(INVMSGLEN)
        part: tuple[int, int, int] | None = None
        if esm_class & 0x40:
            if len(octets) < 6 or octets[0] != 5 or octets[1:3] != b"\0\3":
                raise Malformed(INVESMCLASS)
            part = (octets[3], octets[4], octets[5])
            octets = octets[6:]
        if esm_class & ~0x43 or esm_class & 3 in (1, 2):  # mode: as the centre does by itself, or store and forward
            raise Malformed(INVESMCLASS)
        if (sar := {0x020C, 0x020E, 0x020F} & tlvs.keys()) and len(sar) < 3:
            raise Malformed(INVTLV)
        if sar:
            part = (int.from_bytes(tlvs[0x020C], "big"), tlvs[0x020E][0], tlvs[0x020F][0])
        if part is not None and not 1 <= part[2] <= part[1]:
            raise Malformed(INVESMCLASS)
        octets = octets or tlvs.get(0x0424, b"")
        room = {0: (160, 153), 3: (160, 153), 8: (140, 134)}[coding][part is not None]
        if len(octets) > room and 0x0424 not in tlvs:
            raise Malformed(INVMSGLEN)
        if (coding == 0 and any(octet > 0x7F for octet in octets)) or (coding == 8 and len(octets) % 2):
            raise Malformed(INVMSGLEN)
        return Submitted(
            "",
            source,
            source_ton,
            source_npi,
            dest,
            dest_ton,
            dest_npi,
            esm_class,
            coding,
            registered,
            validity,
            service,
            octets,
            part,
            tlvs,
        )


class _Reader:
    """The body of a PDU, field by field."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise Malformed(INVCMDLEN)
        self.at += 1
        return self.data[self.at - 1]

    def string(self, most: int) -> str:
        """A C-octet string of at most `most` octets, its end included."""
        end = self.data.find(b"\0", self.at)
        if end < 0 or end - self.at >= most:
            raise Malformed(INVCMDLEN)
        text = self.data[self.at : end].decode("ascii")
        self.at = end + 1
        return text

    def octets(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise Malformed(INVCMDLEN)
        self.at += count
        return self.data[self.at - count : self.at]

    def tlvs(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        while self.at < len(self.data):
            tag, length = struct.unpack(">HH", self.octets(4))
            if tag not in TLVS or tag in found or (TLVS[tag] is not None and TLVS[tag] != length):
                raise Malformed(INVTLV)
            found[tag] = self.octets(length)
        return found

    def end(self, status: int) -> None:
        if self.at != len(self.data):
            raise Malformed(status)


def settings_for(centre: Smsc, **changes: Any) -> dict[str, Any]:
    """Settings of our channel that lead to this centre."""
    host, _colon, port = centre.host.rpartition(":")
    return {"host": host, "port": int(port), "system_id": centre.system_id, "password": centre.password, "sender": "10690", **changes}
