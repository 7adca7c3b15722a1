"""SPF, DKIM and DMARC of the sending domain, asked of a real name server on loopback: what is wrong is found, with the record to publish."""

import base64
import time

import dns.exception
import dns.resolver
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from channels_app.models import Channel
from flashduty import doctor, mail_domain
from mapping.clock import db_now
from tests.fakes.dns import Names

RELAY = {"relay.example.net": {"A": ["8.8.4.4"], "AAAA": ["2001:4860:4860::8844"]}}
DMARC = {"_dmarc.example.com": {"TXT": ["v=DMARC1; p=reject"]}}


def public(key) -> str:
    der = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(der).decode()


@pytest.fixture(scope="module")
def keys():
    return {bits: public(rsa.generate_private_key(65537, bits)) for bits in (1024, 2048)}


def look(zone, *, domain="example.com", envelope="", selector="", relay="relay.example.net") -> list[tuple[str, str]]:
    with Names({"com": {"NS": ["a.gtld-servers.net."]}, **zone}) as names:
        found = mail_domain.problems(
            domain, envelope=envelope or domain, relay=relay, selector=selector, dns_=mail_domain.Dns(names.resolver)
        )
        return [(problem.what, problem.fix) for problem in found]


def spf(text: str, relay="relay.example.net", **more) -> list[tuple[str, str]]:
    return look({"example.com": {"TXT": ["a=1", text]}, **RELAY, **DMARC, **more}, relay=relay)


# ---- SPF -----------------------------------------------------------------------------------------------------------------------------

INCLUDED = {"_spf.example.net": {"TXT": ["v=spf1 ip4:8.8.4.0/24 ip6:2001:4860::/32 ~all"]}}


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("v=spf1 ip4:8.8.4.4 -all", {}), ("v=spf1 ip6:2001:4860:4860::8844 ~all", {}), ("v=spf1 a:relay.example.net -all", {}),
        ("v=spf1 include:_spf.example.net -all", INCLUDED), ("v=spf1 redirect=_spf.example.net", INCLUDED), ("V=SPF1 INCLUDE:_spf.example.net ?all", INCLUDED),
        ("v=spf1 mx//48 -all", {"example.com": {"TXT": ["v=spf1 mx//48 -all"], "MX": ["10 relay.example.net."]}}),
        ("v=spf1 a:relay.example.net/24//64 exp=why.example.com -all", {}), ("v=spf1 exists:%{i}.list.example.net -all", {}), ("v=spf1 ptr ~all", {}),
    ],
)  # fmt: skip
def test_spf_that_names_the_relay(text, more):
    assert spf(text, **more) == []


def test_no_spf_record():
    ((what, fix),) = look({"example.com": {"TXT": ["google-site-verification=x", "v=spf10 x"]}, **RELAY, **DMARC})
    assert "example.com has no SPF record" in what
    assert 'example.com. IN TXT "v=spf1 ip4:8.8.4.4 ip6:2001:4860:4860::8844 -all"' in fix
    ((_what, fix),) = look(DMARC, relay="10.0.0.5")
    assert 'example.com. IN TXT "v=spf1 mx -all"' in fix


def test_two_spf_records_are_merged():
    ((what, fix),) = look({"example.com": {"TXT": ["v=spf1 mx -all", "v=spf1 ip4:8.8.4.4 mx ~all"]}, **RELAY, **DMARC})
    assert "2 SPF records" in what and '"v=spf1 ip4:8.8.4.4 mx -all"' in fix


def test_spf_that_names_other_addresses():
    ((what, fix),) = spf("v=spf1 ip4:9.9.9.9 -all")
    assert "8.8.4.4" in what and '"v=spf1 ip4:8.8.4.4 ip6:2001:4860:4860::8844 ip4:9.9.9.9 -all"' in fix
    assert spf("v=spf1 ip4:9.9.9.9 -all", relay="10.0.0.5") == [], "where it sends from cannot be known"


def test_spf_that_lets_everybody_in():
    ((what, fix),) = spf("v=spf1 mx +all", **{"example.com": {"TXT": ["v=spf1 mx +all"], "MX": ["1 relay.example.net."]}})
    assert "+all" in what and '"v=spf1 mx -all"' in fix


@pytest.mark.parametrize(
    ("text", "why", "more"),
    [
        ("v=spf1 ipv4:8.8.4.4 -all", "“ipv4:8.8.4.4” is not understood", {}),
        ("v=spf1 ip4:8.8.4.4.4 -all", "is not an address", {}),
        ("v=spf1 ip4:2001:db8::1 -all", "is not an address", {}),
        ("v=spf1 include: -all", "names no domain", {}),
        ("v=spf1 a:relay.example.net/64 -all", "is not understood", {}),
        ("v=spf1 include:nothing.example.net -all", "nothing.example.net, which it includes, has no SPF record", {}),
        ("v=spf1 redirect=nothing.example.net", "which it redirects to, has no SPF record", {}),
        ("v=spf1 include:example.com -all", "more than 10 questions", {}),
        ("v=spf1 " + " ".join(f"a:h{n}.example.net" for n in range(11)) + " -all", "more than 10 questions", {f"h{n}.example.net": {"A": ["9.9.9.9"]} for n in range(11)}),
        ("v=spf1 a:x1.example.net a:x2.example.net a:x3.example.net -all", "do not exist", {}),
        ("v=spf1 include:two.example.net -all", "2 SPF records", {"two.example.net": {"TXT": ["v=spf1 -all", "v=spf1 ~all"]}}),
    ],
)  # fmt: skip
def test_spf_that_no_receiver_can_evaluate(text, why, more):
    ((what, fix),) = spf(text, **more)
    assert "is invalid" in what and why in what and text in fix and "ip4:8.8.4.4" in fix


def test_ten_questions_are_allowed():
    hosts = {f"h{n}.example.net": {"A": ["8.8.4.4"]} for n in range(10)}
    assert spf("v=spf1 " + " ".join(f"a:{host}" for host in hosts) + " -all", **hosts) == []


# ---- DKIM ----------------------------------------------------------------------------------------------------------------------------


def dkim(*texts: str) -> list[tuple[str, str]]:
    zone = {"example.com": {"TXT": ["v=spf1 ip4:8.8.4.4 -all"]}, **RELAY, **DMARC}
    return look({**zone, **({"s1._domainkey.example.com": {"TXT": list(texts)}} if texts else {})}, selector="s1")


def test_dkim_keys(keys):
    edward = base64.b64encode(ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
    assert (
        dkim(f"v=DKIM1; k=rsa; p={keys[2048]}")
        == dkim(f"p={keys[2048][:200]} {keys[2048][200:]}")
        == dkim(f"v=DKIM1; k=ed25519; p={edward}")
        == []
    )
    for texts, word in [
        ((), "no DKIM key at s1._domainkey.example.com"), (("v=DKIM1; p=",), "revoked"), (("v=DKIM1; p=AAAA",), "cannot be read"),
        (("v=DKIM1; p=!",), "cannot be read"), (("hello",), "not a DKIM key"), (("v=DKIM2; p=x",), "not a DKIM key"),
        ((f"p={keys[2048]}", "p="), "2 records"), ((f"p={keys[1024]}",), "1024 bits: 2048 are usual"),
    ]:  # fmt: skip
        ((what, fix),) = dkim(*texts)
        assert word in what and 's1._domainkey.example.com. IN TXT "v=DKIM1; k=rsa; p=…"' in fix
    ((what, fix),) = dkim(f"v=DKIM1; t=y:s; p={keys[2048]}")
    assert "t=y" in what and f'"v=DKIM1; p={keys[2048]}"' in fix


# ---- DMARC ---------------------------------------------------------------------------------------------------------------------------


def dmarc(where: str, *texts: str, **more) -> list[tuple[str, str]]:
    zone = {
        name: {"TXT": ["v=spf1 ip4:8.8.4.4 -all"]}
        for name in ("example.com", "mail.example.com", "bounces.example.org", "bounce.mail.example.com")
    }
    return look({**zone, **RELAY, f"_dmarc.{where}": {"TXT": list(texts)}}, domain="mail.example.com", **more)


def test_dmarc():
    assert dmarc("mail.example.com", "x", "v=DMARC1; p=none") == dmarc("example.com", "v=DMARC1; p=Reject; sp=none") == []
    ((what, fix),) = dmarc("example.org", "v=DMARC1; p=none")
    assert "mail.example.com has no DMARC record" in what
    assert '_dmarc.mail.example.com. IN TXT "v=DMARC1; p=none; rua=mailto:postmaster@mail.example.com"' in fix
    ((what, fix),) = dmarc("example.com", "v=DMARC1; p=none", "v=DMARC1; p=reject")
    assert "2 DMARC records" in what and '_dmarc.example.com. IN TXT "v=DMARC1; p=none"' in fix
    ((what, _fix),) = dmarc("example.com", "v=DMARC1; p=often")
    assert "no valid policy" in what


def test_a_return_path_elsewhere_needs_a_signature(keys):
    assert dmarc("example.com", "v=DMARC1; p=none", envelope="bounce.mail.example.com") == []
    ((what, _fix),) = dmarc("example.com", "v=DMARC1; p=none; aspf=s", envelope="bounce.mail.example.com")
    assert "does not count for DMARC" in what or "SPF then does not count" in what
    ((what, fix),) = dmarc("example.com", "v=DMARC1; p=none", envelope="bounces.example.org")
    assert "bounces.example.org" in what and "selector" in fix


# ---- DNS that does not answer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["SERVFAIL", "SILENT"])
@pytest.mark.parametrize("name", ["relay.example.net", "example.com", "_dmarc.example.com"])
def test_dns_that_does_not_answer_is_said_so(broken, name, monkeypatch):
    monkeypatch.setattr(mail_domain, "SECONDS", 0.15)
    monkeypatch.setattr(mail_domain, "ALL_SECONDS", 120.0)
    began = time.monotonic()
    ((what, fix),) = look({"example.com": {"TXT": ["v=spf1 ip4:8.8.4.4 -all"]}, **RELAY, **DMARC, name: broken})
    assert "could not be checked" in what and "DNS cannot be asked" in what and "dig +short TXT example.com" in fix
    assert time.monotonic() - began < 30  # and neither the resolver's own 60 s nor all that there are


def test_a_name_server_of_this_network_only_says_nothing_of_the_world():
    ((what, _fix),) = look({"com": {"TXT": []}})
    assert "could not be checked" in what and "does not know .com" in what


def test_a_machine_without_a_name_server(monkeypatch):
    def none():
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.resolver, "Resolver", none)
    ((what, _fix),) = [(one.what, one.fix) for one in mail_domain.problems("example.com", envelope="example.com", relay="r.example.com", selector="", dns_=mail_domain.Dns())]  # fmt: skip
    assert "NoResolverConfiguration" in what


def test_all_questions_together_have_an_end():
    with Names({}) as names, pytest.raises(mail_domain.NoAnswer, match="too long"):
        mail_domain.Dns(names.resolver, until=time.monotonic() - 1).ask("example.com", "TXT")


# ---- the doctor ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_the_doctor_looks_once_at_each_sender(monkeypatch):
    base = {"host": "relay.example.net", "from_email": "On-call <oncall@example.com>"}
    Channel.objects.create(kind="email", name="Mail", settings=base)
    Channel.objects.create(kind="email", name="Mail again", settings=base)
    Channel.objects.create(kind="email", name="At home", settings={"host": "mail", "from_email": "oncall@corp.internal"})
    Channel.objects.create(kind="email", name="Off", settings=base, status="disabled")
    zone = {"com": {"NS": ["a.gtld-servers.net."]}, "example.com": {"TXT": ["v=spf1 ip4:8.8.4.4 -all"]}}
    with Names({**zone, **RELAY}) as names:
        ours = names.resolver
        monkeypatch.setattr(dns.resolver, "Resolver", lambda: ours)
        (finding,) = doctor.mail_domains(db_now())
    assert finding.level == "warning" and finding.what.startswith("E-mail channel “Mail”: example.com has no DMARC record")
    assert '_dmarc.example.com. IN TXT "v=DMARC1' in finding.fix
