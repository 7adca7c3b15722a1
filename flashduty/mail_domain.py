"""Why a receiver would doubt our mail: SPF, DKIM and DMARC of the sending domain, asked of DNS, each with the record to publish.

The rules are those of RFC 7208 (SPF), RFC 6376 (DKIM) and RFC 7489 (DMARC), as far as they can be checked without sending a mail: macros are
not expanded, and a relay may send from other addresses than it takes mail at, so what is said of its addresses is a "may"."""

import base64
import ipaddress
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import dns.exception
import dns.name
import dns.resolver
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from django.utils.translation import gettext as _

SECONDS: Final = 3.0  # for one question
ALL_SECONDS: Final = 10.0  # for all about one sender
LOOKUPS, VOID_LOOKUPS = 10, 2  # RFC 7208, 4.6.4
WEAK, USUAL = 1024, 2048  # bits of an RSA key: less than the first is not accepted by large receivers

T = TypeVar("T")
IP = ipaddress.IPv4Address | ipaddress.IPv6Address


class NoAnswer(Exception):
    """DNS could not be asked, which says nothing of the domain."""


class PermError(Exception):
    """An SPF record that no receiver can evaluate; `str()` says why."""


@dataclass(frozen=True, slots=True)
class Problem:
    what: str
    fix: str


@dataclass(slots=True)
class Dns:
    """Questions to DNS within a time limit. `resolver`: None for that of this machine."""

    resolver: dns.resolver.Resolver | None = None
    until: float = field(default_factory=lambda: time.monotonic() + ALL_SECONDS)

    def ask(self, name: str, kind: str) -> list[str]:
        """The records of a name as text, TXT ones whole; [] where there are none. Raises NoAnswer."""
        left = min(SECONDS, self.until - time.monotonic())
        if left <= 0:
            raise NoAnswer(_("it takes too long"))
        try:
            self.resolver = self.resolver or dns.resolver.Resolver()
            found = self.resolver.resolve(name, kind, lifetime=left, search=False, raise_on_no_answer=False)
        except (dns.resolver.NXDOMAIN, dns.name.LabelTooLong, dns.name.EmptyLabel, dns.name.NameTooLong):
            return []
        except dns.exception.Timeout:
            raise NoAnswer(_("the name server did not answer")) from None
        except dns.resolver.NoNameservers:
            raise NoAnswer(_("the name server refused or failed")) from None
        except (dns.exception.DNSException, OSError, UnicodeError) as error:
            raise NoAnswer(type(error).__name__) from None
        if kind == "TXT":
            return sorted(b"".join(record.strings).decode("utf-8", "replace") for record in found)
        if kind == "MX":
            return [str(record.exchange).rstrip(".") for record in found]
        return [record.to_text() for record in found]

    def addresses(self, name: str) -> list[IP]:
        return [ipaddress.ip_address(text) for kind in ("A", "AAAA") for text in self.ask(name, kind)]


def problems(domain: str, *, envelope: str, relay: str, selector: str, dns_: Dns) -> Iterator[Problem]:
    """What is wrong with the domain of the sender; `envelope` is the domain of the Return-Path, `relay` the SMTP server's name."""
    try:
        top = domain.rpartition(".")[2]
        if not dns_.ask(top, "NS"):  # it would deny the records of everybody
            raise NoAnswer(_("the name server does not know .%(top)s, so it serves this network only") % {"top": top})
        known = _public(relay, dns_)
        found = [*_spf(envelope, known, relay, dns_)]
        if selector:
            found += _dkim(domain, selector, dns_)
        found += _dmarc(domain, envelope, selector, dns_)
    except NoAnswer as error:
        yield Problem(
            _("SPF, DKIM and DMARC of %(domain)s could not be checked: DNS cannot be asked from here (%(why)s).") % {"domain": domain, "why": error},
            _("Let this machine ask a name server, or look at the records from another one: dig +short TXT %(domain)s; dig +short TXT _dmarc.%(domain)s")
            % {"domain": domain},
        )  # fmt: skip
        return
    yield from found


def record(name: str, text: str) -> str:
    """A TXT record as a zone has it."""
    return f'{name}. IN TXT "{text}"'


def _public(relay: str, dns_: Dns) -> list[IP]:
    """The relay's addresses where the world could see them; a relay in a private network sends from another one."""
    try:
        known: list[IP] = [ipaddress.ip_address(relay.strip("[]"))]
    except ValueError:
        known = dns_.addresses(relay) if "." in relay else []
    return [ip for ip in known if ip.is_global]


# ---- SPF -----------------------------------------------------------------------------------------------------------------------------


def _spf(domain: str, known: Sequence[IP], relay: str, dns_: Dns) -> Iterator[Problem]:
    by_ip = [f"ip{ip.version}:{ip}" for ip in known]
    wanted = " ".join(["v=spf1", *(by_ip or ["mx"]), "-all"])
    texts = _records(domain, dns_)
    if not texts:
        yield Problem(
            _("%(domain)s has no SPF record, so receivers cannot tell our mail from forged mail.") % {"domain": domain},
            _("Publish %(record)s, or what the operator of the relay %(relay)s says to include.") % {"record": record(domain, wanted), "relay": relay},
        )  # fmt: skip
        return
    if len(texts) > 1:
        merged = " ".join(
            ["v=spf1", *dict.fromkeys(term for text in texts for term in text.split()[1:] if not term.endswith("all")), "-all"]
        )
        yield Problem(
            _("%(domain)s has %(count)d SPF records; with more than one all of them are void.") % {"domain": domain, "count": len(texts)},
            _("Publish exactly one, such as %(record)s") % {"record": record(domain, merged)},
        )
        return
    check = _Spf(dns_)
    try:
        result = check.evaluate(domain, None)
        verdicts = {ip: _Spf(dns_).evaluate(domain, ip) for ip in known} if not check.unsure else {}
    except PermError as error:
        yield Problem(
            _("The SPF record of %(domain)s is invalid, so receivers ignore it: %(why)s.") % {"domain": domain, "why": error},
            _("Mend it: it is %(now)s; %(record)s would do for the relay alone.")
            % {"now": f'"{texts[0]}"', "record": record(domain, wanted)},
        )
        return
    if result == "pass":
        yield Problem(
            _("The SPF record of %(domain)s lets everybody send as it (+all).") % {"domain": domain},
            _("Publish %(record)s") % {"record": record(domain, re.sub(r"(?<=\s)\+?all\b", "-all", texts[0]))},
        )
        return
    outside = [str(ip) for ip, verdict in verdicts.items() if verdict != "pass"]
    if outside and len(outside) == len(verdicts):
        terms = texts[0].split()
        fixed = " ".join([terms[0], *by_ip, *terms[1:]])
        yield Problem(
            _("The SPF record of %(domain)s does not name the relay's addresses (%(addresses)s); if it sends from them, its mail may be refused.")
            % {"domain": domain, "addresses": ", ".join(outside)},
            _("Publish %(record)s, or what the operator of the relay %(relay)s says to include; nothing is to be done if it sends from other addresses.")
            % {"record": record(domain, fixed), "relay": relay},
        )  # fmt: skip


def _records(domain: str, dns_: Dns) -> list[str]:
    return [text for text in dns_.ask(domain, "TXT") if re.match(r"v=spf1(?: |$)", text, re.IGNORECASE)]


@dataclass(slots=True)
class _Spf:
    """One evaluation, which has its own count of questions."""

    dns: Dns
    lookups: int = 0
    voids: int = 0
    unsure: bool = False  # a macro, or ptr: what it matches is not known here

    def evaluate(self, domain: str, ip: IP | None) -> str:
        """pass, fail, softfail, neutral or none for mail from `ip`; None matches nothing, so that every term is looked at. Raises PermError."""
        texts = _records(domain, self.dns)
        if len(texts) != 1:
            if texts:
                raise PermError(_("%(domain)s has %(count)d SPF records") % {"domain": domain, "count": len(texts)})
            return "none"
        redirect = ""
        for term in texts[0].split()[1:]:
            if modifier := re.fullmatch(r"([A-Za-z][\w.-]*)=(.*)", term):
                if modifier[1].lower() == "redirect":
                    redirect = modifier[2]
                continue
            found = re.fullmatch(r"([+?~-]?)([A-Za-z0-9]+)(?::([^/\s]*(?:/\S*)?)|(/\S*))?", term)
            if found is None:
                raise PermError(_("“%(term)s” is not understood") % {"term": term})
            if self._matches(found[2].lower(), (found[3] or "") if found[3] is not None else (found[4] or ""), domain, ip, term):
                return {"": "pass", "+": "pass", "-": "fail", "~": "softfail", "?": "neutral"}[found[1]]
        if redirect:
            self._count()
            if "%" in redirect:
                self.unsure = True
                return "neutral"
            if (result := self.evaluate(redirect, ip)) == "none":
                raise PermError(_("%(domain)s, which it redirects to, has no SPF record") % {"domain": redirect})
            return result
        return "neutral"

    def _matches(self, name: str, value: str, domain: str, ip: IP | None, term: str) -> bool:
        if name == "all" and not value:
            return True
        if name in ("ip4", "ip6"):
            try:
                network = ipaddress.ip_network(value, strict=False)
            except ValueError:
                network = None
            if network is None or network.version != int(name[2]):
                raise PermError(_("“%(term)s” is not an address") % {"term": term})
            return ip is not None and ip in network
        if name not in ("include", "a", "mx", "ptr", "exists"):
            raise PermError(_("“%(term)s” is not understood") % {"term": term})
        self._count()
        if "%" in value or name == "ptr":
            self.unsure = True
            return False
        target, _slash, size = value.partition("/")
        if name in ("include", "exists") and not target:
            raise PermError(_("“%(term)s” names no domain") % {"term": term})
        if name == "include":
            result = self.evaluate(target, ip)
            if result == "none":
                raise PermError(_("%(domain)s, which it includes, has no SPF record") % {"domain": target})
            return result == "pass"
        hosts = [target or domain]
        if name == "mx":
            hosts = self._void(self.dns.ask(hosts[0], "MX"))[:10]
        found = [address for host in hosts for address in self.dns.addresses(host)]
        if name == "exists":
            return bool(self._void(found)) and ip is not None
        if name == "a":
            self._void(found)
        return ip is not None and any(_within(ip, address, size, term) for address in found)

    def _count(self) -> None:
        self.lookups += 1
        if self.lookups > LOOKUPS:
            raise PermError(_("it takes more than %(count)d questions to DNS") % {"count": LOOKUPS})

    def _void(self, found: list[T]) -> list[T]:
        self.voids += not found
        if self.voids > VOID_LOOKUPS:
            raise PermError(_("it names more than %(count)d hosts that do not exist") % {"count": VOID_LOOKUPS})
        return found


def _within(ip: IP, address: IP, size: str, term: str) -> bool:
    """Whether `ip` is in the network around an address: /24, /24//64 or //64 after a and mx."""
    four, _slashes, six = size.partition("//") if not size.startswith("/") else ("", "", size[1:])
    bits = (four if address.version == 4 else six) or str(address.max_prefixlen)
    try:
        return ip.version == address.version and ip in ipaddress.ip_network(f"{address}/{bits}", strict=False)
    except ValueError:
        raise PermError(_("“%(term)s” is not understood") % {"term": term}) from None


# ---- DKIM ----------------------------------------------------------------------------------------------------------------------------


def _dkim(domain: str, selector: str, dns_: Dns) -> Iterator[Problem]:
    name = f"{selector}._domainkey.{domain}"
    wanted = record(name, "v=DKIM1; k=rsa; p=…")
    fix = _(
        "Publish %(record)s with the public key that your relay signs with in place of the dots, or correct the selector on the channel's page."
    )
    texts = dns_.ask(name, "TXT")
    if not texts:
        yield Problem(_("There is no DKIM key at %(name)s: the relay's signatures are void.") % {"name": name}, fix % {"record": wanted})
        return
    if len(texts) > 1:
        yield Problem(_("There are %(count)d records at %(name)s, where one DKIM key has to be.") % {"count": len(texts), "name": name}, fix % {"record": wanted})  # fmt: skip
        return
    tags = _tags(texts[0])
    if "p" not in tags or tags.get("v", "DKIM1") != "DKIM1":
        yield Problem(
            _("What is at %(name)s is not a DKIM key: %(text)s") % {"name": name, "text": texts[0][:100]}, fix % {"record": wanted}
        )
        return
    if not tags["p"]:
        yield Problem(_("The DKIM key at %(name)s is revoked (p= is empty).") % {"name": name}, fix % {"record": wanted})
        return
    if tags.get("k", "rsa") == "ed25519":
        return
    try:
        key = load_der_public_key(base64.b64decode("".join(tags["p"].split()), validate=True))
    except ValueError:
        key = None
    if not isinstance(key, rsa.RSAPublicKey):
        yield Problem(_("The DKIM key at %(name)s cannot be read.") % {"name": name}, fix % {"record": wanted})
    elif key.key_size < USUAL:
        words = _("receivers do not accept it") if key.key_size < WEAK else _("%(bits)d are usual by now") % {"bits": USUAL}
        yield Problem(
            _("The DKIM key at %(name)s has %(bits)d bits: %(words)s.") % {"name": name, "bits": key.key_size, "words": words},
            _("Let the relay make a key of %(bits)d bits and publish %(record)s with it.") % {"bits": USUAL, "record": wanted},
        )
    if "y" in tags.get("t", "").split(":"):
        yield Problem(
            _("The DKIM key at %(name)s is marked as a test (t=y), so receivers treat our mail as unsigned.") % {"name": name},
            _("Publish it without t=y: %(record)s")
            % {"record": record(name, "; ".join(f"{tag}={value}" for tag, value in tags.items() if tag != "t"))},
        )


# ---- DMARC ---------------------------------------------------------------------------------------------------------------------------


def _dmarc(domain: str, envelope: str, selector: str, dns_: Dns) -> Iterator[Problem]:
    where, texts = domain, list[str]()
    while where.count(".") and not texts:  # the domain itself, else the organisation's above it
        texts = [text for text in dns_.ask(f"_dmarc.{where}", "TXT") if re.match(r"v=DMARC1\s*(?:;|$)", text)]
        where = where if texts else where.partition(".")[2]
    wanted = "v=DMARC1; p=none; rua=mailto:postmaster@" + domain
    if not texts:
        yield Problem(
            _("%(domain)s has no DMARC record; large receivers ask for one.") % {"domain": domain},
            _("Publish %(record)s, read the reports that come, and change p to quarantine or reject when all your mail passes.")
            % {"record": record(f"_dmarc.{domain}", wanted)},
        )
        return
    if len(texts) > 1:
        yield Problem(
            _("%(domain)s has %(count)d DMARC records; with more than one all of them are void.") % {"domain": where, "count": len(texts)},
            _("Publish exactly one, such as %(record)s") % {"record": record(f"_dmarc.{where}", texts[0])},
        )
        return
    tags = _tags(texts[0])
    if tags.get("p", "").lower() not in ("none", "quarantine", "reject"):
        yield Problem(
            _("The DMARC record of %(domain)s has no valid policy (p=), so receivers ignore it.") % {"domain": where},
            _("Publish %(record)s") % {"record": record(f"_dmarc.{where}", wanted)},
        )
        return
    strict = tags.get("aspf", "r").lower() == "s"
    aligned = envelope == domain or (not strict and (_ends_in(envelope, domain) or _ends_in(domain, envelope) or _ends_in(envelope, where)))
    if not aligned and not selector:
        yield Problem(
            _("Returned mail goes to %(envelope)s, which is not %(domain)s: SPF then does not count for DMARC, and no DKIM selector is known here.")
            % {"envelope": envelope, "domain": domain},
            _("Let the relay sign with a key of %(domain)s and enter its selector on the channel's page, or use an address of %(domain)s for returned mail.")
            % {"domain": domain},
        )  # fmt: skip


def _ends_in(name: str, domain: str) -> bool:
    return name == domain or name.endswith("." + domain)


def _tags(text: str) -> dict[str, str]:
    """`v=DKIM1; k=rsa; p=...` as a mapping."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): value.strip() for name, equals, value in pairs if equals}
