"""Every transport, whatever it speaks: what it declares, and what each HTTP transport makes of a network that fails in every known way.

A new channel is one file and one test: for an HTTP transport its test module tells how to point it at a server (`stage`), what a success
looks like (`ACCEPTED`), what a refusal in a 200 looks like (`REFUSED_IN_200`, or None where a 200 is success whatever it says), whether
a 2xx without its body is an answer (`NEEDS_THE_BODY`; `KNOWS_A_PAGE`: but a web page is none), and an address of the kind where it has any (`ADDRESS`). A file with several kinds
says so for each: `CONTRACT = {kind: SimpleNamespace(stage=..., ...)}`. This file then runs the whole table."""

import importlib
import socket
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from django import forms
from django.core.exceptions import ImproperlyConfigured

from channels_app import http, transport
from channels_app import transports as package
from channels_app.http import DeliveryError, Http
from channels_app.transport import Receipt, get, transports
from tests.fakes.message import page
from tests.fakes.server import Reply, Server
from tests.fakes.tls import authority

KINDS = list(transports())


def test_of(kind: str) -> Any:
    """What the test module of a transport says of the kind; that there is one is part of the contract."""
    module = importlib.import_module(f"tests.transports.test_transport_{get(kind).__module__.rpartition('.')[2]}")
    return getattr(module, "CONTRACT", {}).get(kind, module)


test_of.__test__ = False  # type: ignore[attr-defined]
HTTP_KINDS = [kind for kind in KINDS if hasattr(test_of(kind), "stage")]


# --- what a transport declares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_transport_declares_what_it_is(kind):
    cls = get(kind)
    assert cls.kind == kind and str(cls.label)
    assert cls.person or cls.group, "nobody could choose it"
    assert cls.group == (cls.reach == "group") or cls.person
    assert cls.concurrency >= 1 and all(limit.count > 0 and limit.seconds > 0 for limit in cls.limits)
    assert cls.secret <= set(cls.Settings.base_fields)
    assert set(cls.fallback_kinds) <= set(KINDS) | {get(other).family for other in KINDS}, "a fallback that does not exist"
    if cls.family in ("voice", "sms", "im") and (cls.person or cls.personal) and not cls.demo:
        assert cls.fallback_kinds, "nobody would hear of a page that it fails to deliver"
    for field in cls.Settings.base_fields.values():
        assert str(field.label), "a setting needs a name people can read"


@pytest.mark.parametrize("kind", KINDS)
def test_bad_settings_are_sentences_and_not_exceptions(kind):
    cls = get(kind)
    for junk in (
        "",
        "\x00",
        "中" * 5000,
        "²",
        "１２",
        " x\r\ny: 1",
        "\ud800",
        "https://[::1",
        "https://a:²/b",
        "[" * 5000,
        -1,
        [],
        {},
        None,
        True,
    ):
        errors = cls.check(dict.fromkeys(cls.Settings.base_fields, junk))
        assert all(isinstance(line, str) and line for lines in errors.values() for line in lines)
    required = {name for name, field in cls.Settings.base_fields.items() if field.required}
    assert required <= set(cls.check({}))


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(LookupError, match="feishu"):
        get("pager")


# --- the table: what happened -> (permanent, left, is_network) -------------------------------------------------------------------------

TABLE = {
    "400": (Reply(400), (True, False, False)),
    "401": (Reply(401), (True, False, False)),
    "403": (Reply(403), (True, False, False)),
    "404": (Reply(404), (True, False, False)),
    "408": (Reply(408), (False, False, False)),
    "413": (Reply(413), (True, False, False)),
    "425": (Reply(425), (False, False, False)),
    "429": (Reply(429), (False, False, False)),
    "500": (Reply(500), (False, False, False)),
    "502": (Reply(502), (False, True, False)),
    "503": (Reply(503), (False, False, False)),
    "504": (Reply(504), (False, True, False)),
    "520": (Reply(520, b"<html>cloudflare</html>", {"Content-Type": "text/html"}), (False, True, False)),
    "redirect": (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), (True, False, False)),
    "permanent redirect": (Reply(308, headers={"Location": "http://127.0.0.1:1/"}), (True, False, False)),
    "4xx with half a body": (Reply(400, b"half", claims=9, end="close"), (True, False, False)),
    "5xx page of a proxy": (Reply(503, b"<html>maintenance</html>", {"Content-Type": "text/html"}), (False, False, False)),
    "reset": (Reply(raw=b"", end="reset"), (False, True, False)),
    "closed": (Reply(raw=b"", end="close"), (False, True, False)),
    "half a status line": (Reply(raw=b"HTTP/1.", end="close"), (False, True, False)),
    "not HTTP": (Reply(raw=b"SSH-2.0-OpenSSH_9.9\r\n", end="close"), (False, True, False)),
    "silence": (Reply(raw=b"", end="hang"), (False, True, False)),
    "headers drip": (Reply(raw=b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 400, drip=0.02), (False, True, False)),
}
# A 2xx whose body is not what the provider sends: success only for those that do not read it.
BODIES = {
    "login page": Reply(200, b"<html>log in</html>", {"Content-Type": "text/html"}),
    "empty": Reply(200),
    "half a body": Reply(200, b'{"code":', claims=20, end="close"),
    "body drips": Reply(200, b" " * 400, drip=0.02),
    "huge": Reply(200, b"x" * 300_000),
    "binary": Reply(200, bytes(range(256))),
}


SLOW = {"silence", "headers drip", "body drips"}


@pytest.fixture(autouse=True)
def short_times(request, monkeypatch):
    """What never ends, ends soon (but not before the request has left); everything else has the time that a busy machine may need."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("case") in SLOW:
        monkeypatch.setattr(http, "TOTAL_SECONDS", 0.6)
        monkeypatch.setattr(http, "STATUS_SECONDS", 0.05)


def attempt(kind: str, base: str, **door) -> Receipt:
    place = urlsplit(base)
    cls, settings = get(kind), test_of(kind).stage(base)
    try:
        return cls(settings, Http(allowed_hosts=[f"{place.hostname}:{place.port or 80}"], **door)).send(page(), address_of(kind))
    except DeliveryError as error:
        for secret in secrets_of(cls, settings):
            assert secret not in error.text, "a secret in the error"
        assert page().text not in error.text
        raise


def address_of(kind: str) -> str:
    return getattr(test_of(kind), "ADDRESS", "")


def secrets_of(cls, settings) -> set[str]:
    found = set()
    for name in cls.secret:
        value = settings[name]
        for text in value.values() if isinstance(value, dict) else [value]:
            found.add(text)
            if text.startswith("http"):
                parts = urlsplit(text)
                keys = {
                    piece for piece in parts.path.split("/") if len(piece) > 12
                }  # without one the path is the provider's, as in its manual
                found |= {*keys, *(pair.partition("=")[2] for pair in parts.query.split("&")), *([parts.path] if keys else [])}
    return found - {""}


def failure(kind: str, base: str, **door) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        attempt(kind, base, **door)
    return caught.value


def said(error: DeliveryError) -> tuple[bool, bool, bool]:
    return error.permanent, error.left, error.is_network


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in TABLE])
def test_failures(kind, case):
    reply, expected = TABLE[case]

    def echo(seen):
        # A server that repeats what it got, secrets included, is the worst case for the error's text.
        if reply.status >= 400 and not reply.body:
            return Reply(reply.status, f"{seen.path} {seen.headers} ".encode() + seen.body, reply.headers)
        return reply

    with Server(echo) as server:
        assert said(failure(kind, server.url)) == expected


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in BODIES])
def test_bodies(kind, case):
    with Server(BODIES[case]) as server:
        if test_of(kind).NEEDS_THE_BODY or (case == "login page" and getattr(test_of(kind), "KNOWS_A_PAGE", False)):
            assert said(failure(kind, server.url)) == (False, True, False)
        else:
            assert attempt(kind, server.url).state == "sent"


@pytest.mark.parametrize("kind", HTTP_KINDS)
def test_success_and_the_error_that_looks_like_it(kind):
    with Server(test_of(kind).ACCEPTED) as server:
        assert attempt(kind, server.url).state in ("sent", "delivered")
        assert len(server.seen) == 1, "nobody but the outbox tries again"
        if test_of(kind).REFUSED_IN_200 is not None:
            server.answer = test_of(kind).REFUSED_IN_200
            assert not failure(kind, server.url).left
        assert test_of(kind).REFUSED_IN_200 is not None or not test_of(kind).NEEDS_THE_BODY


@pytest.mark.parametrize("kind", HTTP_KINDS)
@pytest.mark.parametrize(
    ("headers", "wait"),
    [({}, None), ({"Retry-After": "7"}, 7.0), ({"Retry-After": "Wed, 21 Oct 2015 07:28:30 GMT"}, 0.0), ({"Retry-After": "soon"}, None)],
)  # fmt: skip
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(kind, headers, wait, status):
    with Server(Reply(status, headers=headers)) as server:
        assert failure(kind, server.url).retry_after == wait


@pytest.mark.parametrize("kind", HTTP_KINDS)
def test_a_request_that_never_left(kind, tmp_path):
    assert said(failure(kind, "http://nowhere.invalid")) == (False, False, True)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert said(failure(kind, f"http://127.0.0.1:{sock.getsockname()[1]}")) == (False, False, True)
    with Server(test_of(kind).ACCEPTED) as server:
        assert said(failure(kind, server.url.replace("http:", "https:"))) == (False, False, False)
        assert said(failure(kind, server.url, proxy="http://127.0.0.1:1")) == (True, False, False), "a private proxy that nobody allowed"
        assert server.seen == []
    ca = authority(tmp_path)
    with Server(test_of(kind).ACCEPTED, ca.server) as server:
        assert said(failure(kind, server.url)) == (False, False, False)
        assert server.seen == []
        attempt(kind, server.url, ca_bundle=ca.pem)


@pytest.mark.parametrize("kind", HTTP_KINDS)
def test_private_and_metadata_addresses(kind):
    with Server(test_of(kind).ACCEPTED) as server:
        settings = test_of(kind).stage(server.url)
        with pytest.raises(DeliveryError) as caught:
            get(kind)(settings, Http()).send(page(), address_of(kind))
        assert caught.value.permanent and caught.value.config and server.connections == 0
    assert failure(kind, "http://169.254.169.254").permanent


# --- a channel is one file ---------------------------------------------------------------------------------------------------------------

PIGEON = '''
"""Carrier pigeons: a loft takes a note by HTTP."""

from django import forms
from django.utils.translation import gettext_lazy as _

from channels_app import http, transport


class Settings(transport.Settings):
    loft = forms.CharField(label=_("loft"))
    ring = forms.CharField(label=_("ring number"))


class Pigeon(transport.Transport):
    kind = "pigeon"
    label = _("Carrier pigeon")
    group = True
    limits = (transport.Limit(1, 3600),)
    secret = frozenset({"ring"})
    Settings = Settings

    def send(self, message, address):
        http.by_status(self.http.post(self.settings["loft"], json={"note": message.text, "ring": self.settings["ring"]}))
        return transport.Receipt("coo")
'''


@pytest.fixture
def aviary(tmp_path, monkeypatch):
    """A folder whose files are transports too, for the time of a test."""
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    transports.cache_clear()
    yield tmp_path
    transports.cache_clear()
    for name in [name for name in sys.modules if name.startswith("channels_app.transports.") and name.endswith(("pigeon", "dove"))]:
        del sys.modules[name]


def test_a_new_channel_is_one_file(aviary):
    (aviary / "pigeon.py").write_text(PIGEON)
    assert list(transports()) == sorted([*KINDS, "pigeon"])
    pigeon = get("pigeon")
    assert pigeon.check({"loft": "https://loft.example/"}) == {"ring": ["This field is required."]}
    with Server() as server:
        bird = pigeon({"loft": server.url, "ring": "CN-2026-001"}, Http(allowed_hosts=[server.host]))
        assert bird.send(page(), "").message_id == "coo"
        assert server.seen[0].json() == {"note": page().text, "ring": "CN-2026-001"}
        server.answer = Reply(400, b"ring CN-2026-001 is not known")
        with pytest.raises(DeliveryError, match=r"ring \*\*\* is not known") as caught:
            bird.send(page(), "")
        assert caught.value.permanent
    assert not isinstance(bird, transport.Receives), "an ability it does not have"


def test_twins_stop_the_program(aviary):
    (aviary / "pigeon.py").write_text(PIGEON)
    (aviary / "dove.py").write_text(PIGEON.replace("class Pigeon", "class Dove"))
    with pytest.raises(ImproperlyConfigured, match=r"dove\.Dove and .*pigeon\.Pigeon"):
        transports()


def test_a_file_that_cannot_be_imported_stops_the_program(aviary):
    (aviary / "pigeon.py").write_text("import nothing_of_that_name")
    with pytest.raises(ModuleNotFoundError):
        transports()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pattern_is_of_the_whole_setting(kind):
    """Django's RegexField searches, and keeps line breaks: a header's end would get through it."""
    for name, field in get(kind).Settings.base_fields.items():
        if isinstance(field, forms.RegexField):
            assert field.regex.pattern.startswith(r"\A") and field.regex.pattern.endswith(r"\Z") and field.strip, name


# --- what comes in ---------------------------------------------------------------------------------------------------------------------

JUNK = (
    b"", b"null", b"[]", b"{}", b"[[]]", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5_000, b"\xff\xfe\x00", b"a=1&" * 500, b'[{"out_id":[]}]',
    b'{"signature":{"timestamp":"x","token":1,"signature":"\xc3\xbf"}}', b'{"voicekey_callback":[]}', b'[{"sid":{},"report_status":[]}]',
)  # fmt: skip
HEADS = (
    {}, {"content-type": "application/json"}, {"authorization": "Basic !!!"}, {"authorization": "Bearer \xff.\xff.\xff"}, {"authorization": "Bearer a.b.c"},
    {"x-twilio-signature": "\xff\udc80"}, {"x-twilio-email-event-webhook-signature": "\xff", "x-twilio-email-event-webhook-timestamp": "\xff"},
)  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in KINDS if hasattr(get(kind), "receive")])
def test_a_stranger_who_calls_is_refused_without_a_fault_of_ours(kind):
    """A fault is a page of the log for each call, and a stranger can call as often as they like."""
    mail = {"host": "h", "port": 25, "security": "none", "from_email": "a@b.example", "bounce_token": "t" * 16, "bounce_key": "k" * 20}
    channel = get(kind)(mail if kind == "email" else test_of(kind).stage("https://example.com"), Http())
    for body in JUNK:
        for head in HEADS:
            for query in ({}, {"bodySHA256": "١"}):
                call = transport.Callback("POST", "https://oncall.example.com/callback/k/", query, head, body, page().sent_at)
                try:
                    heard = channel.receive(call)
                except (PermissionError, ValueError):
                    continue
                assert not heard.said
