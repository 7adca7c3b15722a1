"""A name server on loopback that answers from a zone a test writes: `with Names({"example.com": {"TXT": ["v=spf1 -all"]}}) as names`."""

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import dns.exception
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import dns.rrset

Zone = Mapping[str, Mapping[str, Sequence[str]] | str]


class _Patient(dns.resolver.Resolver):
    """Waits as long as it is told for a name that is silent, and long for any other: a busy machine is no name server that is away."""

    def __init__(self, zone: Zone) -> None:
        super().__init__(configure=False)
        self.zone = zone

    def resolve(self, qname: Any, *args: Any, lifetime: float | None = None, **options: Any) -> dns.resolver.Answer:
        if self.zone.get(str(qname).rstrip(".").lower()) != "SILENT":
            lifetime = self.lifetime
        return super().resolve(qname, *args, lifetime=lifetime, **options)


class Names:
    """A name whose records are "SERVFAIL" or "SILENT" fails so; any other name that is not there does not exist (NXDOMAIN)."""

    def __init__(self, zone: Zone) -> None:
        self.zone = dict(zone)
        self.asked: list[str] = []
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))

    @property
    def resolver(self) -> dns.resolver.Resolver:
        made = _Patient(self.zone)
        made.nameservers, made.port = ["127.0.0.1"], self._socket.getsockname()[1]
        made.timeout = made.lifetime = 60.0  # whoever asks says how long he waits; nothing is asked twice
        return made

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                wire, peer = self._socket.recvfrom(4096)
            except OSError:
                return
            with contextlib.suppress(OSError, dns.exception.DNSException):  # the shutdown comes as an empty packet
                if (answer := self._answer(dns.message.from_wire(wire))) is not None:
                    self._socket.sendto(answer.to_wire(max_size=65_535), peer)

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{kind} {name}")
        answer = dns.message.make_response(query, recursion_available=True)
        records = self.zone.get(name)
        if records == "SILENT":
            return None
        if records == "SERVFAIL":
            answer.set_rcode(dns.rcode.SERVFAIL)
        elif records is None:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif not isinstance(records, str) and (texts := records.get(kind)):
            quoted = (
                ['"' + '" "'.join(text[at : at + 250] for at in range(0, len(text), 250)) + '"' for text in texts]
                if kind == "TXT"
                else texts
            )
            answer.answer.append(dns.rrset.from_text_list(question.name, 60, dns.rdataclass.IN, question.rdtype, list(quoted)))
        return answer
