"""Other services through Apprise: which plugins are let in, that none gets past the guard, and what its answers mean here."""

import logging
import sys
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
import requests
from apprise.manager_plugins import NotificationManager

from channels_app import http
from channels_app.http import DeliveryError, Http
from channels_app.transports import apprise_url
from channels_app.transports.apprise_url import AppriseUrl
from tests.fakes.message import page
from tests.fakes.server import Reply, Server

LOCAL = ["syslog://", "rsyslog://localhost", "dbus://", "kde://", "gnome://", "glib://", "windows://", "macosx://", "blink1://"]
BESIDE_HTTP = [
    "mailto://u:p@example.com",
    "irc://h/#c",
    "mqtt://h/t",
    "xmpp://u:p@h",
    "smpp://u:p@h/1/2",
    "growl://h",
    "amqp://u:p@h/q",
    "aprs://u:p@X0ABC",
]


def stage(base: str) -> dict:
    parts = urlsplit(base)
    return {"url": f"{'jsons' if parts.scheme == 'https' else 'json'}://user:s3cretpass@{parts.netloc}/notify/k3y-0123456789"}


# json:// is the plainest of the plugins: a 2xx is success to it, whatever its body.
CONTRACT = {"apprise": SimpleNamespace(stage=stage, ACCEPTED=Reply(200), REFUSED_IN_200=None, NEEDS_THE_BODY=False)}


@pytest.fixture
def server():
    with Server(Reply(200, {"status": "ok", "retcode": 0})) as running:
        yield running


def transport(server, url: str, allowed: bool = True) -> AppriseUrl:
    return AppriseUrl({"url": url.replace("HOST", server.host)}, Http(allowed_hosts=[server.host] if allowed else []))


def refused(server, url: str, message=None, **kwargs) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(server, url, **kwargs).send(message or page(), "")
    return caught.value


def test_a_message_arrives(server):
    receipt = transport(server, "json://HOST/x").send(page(), "")
    assert (receipt.state, receipt.detail) == ("sent", "JSON")
    assert server.seen[0].json() | {"version": ""} == {
        "version": "", "title": "A1B2C3 Critical", "message": page().text, "attachments": [], "type": "failure",
    }  # fmt: skip


def test_the_event_and_severity_have_their_type(server):
    for change, kind in (
        ({"severity": "Warning"}, "warning"),
        ({"severity": "Info"}, "info"),
        ({"event": "closed"}, "success"),
        ({"severity": ""}, "info"),
    ):
        transport(server, "json://HOST/x").send(page(**change), "")
        assert server.seen[-1].json()["type"] == kind


# --- who is let in -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", LOCAL + BESIDE_HTTP)
def test_what_reaches_this_machine_or_goes_beside_http_is_refused(url):
    assert "is not allowed" in AppriseUrl.check({"url": url})["url"][0]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "exec://ls", "nothing://x", "/etc/apprise.yml", "http://example.com/config", "include://x"]
)
def test_what_is_no_service_is_refused(url):
    assert AppriseUrl.check({"url": url})["url"]


@pytest.mark.parametrize(
    "url",
    ["ntfys://topic", "gotifys://example.com/Axxxxxxxxxxxxxx", "jsons://example.com/x", "tgram://123456789:AABBCCDDEEFFGGHHIIJJKKLLMMNNOOPPQQR/12315544/",
     "https://discord.com/api/webhooks/123456789012345678/AbCdEfGhIjKlMnOpQrStUvWxYz0123456789AbCdEfGhIjKlMnOpQrStUvWxYz012345"],
)  # fmt: skip
def test_services_by_http_are_taken(url):
    assert AppriseUrl.check({"url": url}) == {}


def test_an_incomplete_address_shows_the_form():
    assert "{schema}://{host}/{token}" in AppriseUrl.check({"url": "gotify://example.com"})["url"][0]
    assert "one address" in AppriseUrl.check({"url": "json://a json://b"})["url"][0]


def let_in(step: int) -> int:
    """How many of every `step`-th plugin are let in; none of these has another way out."""
    manager = NotificationManager()
    classes = sorted({manager[scheme] for scheme in manager.schemas()}, key=lambda cls: cls.__name__)
    admitted = [cls for cls in classes[::step] if apprise_url._admit(cls)]
    for cls in admitted:
        names = vars(sys.modules[cls.__module__])
        assert all(value is not requests for value in names.values()), cls
        assert not {"socket", "subprocess", "ssl", "smtplib", "asyncio", "ctypes", "threading"} & set(names), cls
    return len(admitted)


@pytest.mark.parametrize(("step", "count"), [(12, 12), pytest.param(1, 150, marks=pytest.mark.slow)])
def test_nearly_all_services_are_let_in_and_none_of_them_has_another_way_out(step, count):
    assert let_in(step) >= count


SNEAKS = {
    "a socket": "import socket\nimport requests\n",
    "a shell": "import requests\nfrom os import system\n",
    "requests by another name": "import requests as r\n",
    "requests, later": "import requests\ndef f():\n    import requests\n    return requests\n",
    "a function of requests": "import requests\nfrom requests import post\n",
    "a session": "import requests\ns = requests.Session\n",
    "urllib": "import requests\nfrom urllib.request import urlopen\n",
    "import by name": "import requests\nx = __import__('json')\n",
    "the environment": "import os\nimport requests\nx = os.environ\n",
    "everything": "import requests\nfrom json import *\n",
}


@pytest.mark.parametrize("case", SNEAKS)
def test_a_plugin_that_could_go_another_way_is_not_let_in(case, tmp_path, monkeypatch):
    (tmp_path / "sneak.py").write_text("class Sneak:\n    pass\n" + SNEAKS[case])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sneak", raising=False)
    import sneak

    for name, admitted in (("apprise.plugins.sneak", False), ("sneak", False)):
        sneak.__name__ = sneak.Sneak.__module__ = name
        monkeypatch.setitem(sys.modules, name, sneak)
        apprise_url._admit.cache_clear()
        assert apprise_url._admit(sneak.Sneak) is admitted
    (tmp_path / "sneak.py").write_text("class Sneak:\n    pass\nimport json\nimport requests\n")


# --- the guard -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["json://HOST/x", "xml://HOST/x", "form://HOST/x", "gotify://HOST/Axxxxxxxxxxxxxx", "ntfy://HOST/topic", "rocket://u:p@HOST/#c"]
)
def test_a_private_address_gets_not_a_byte(server, url):
    error = refused(server, url, allowed=False)
    assert (error.permanent, error.config, error.left) == (True, True, False)
    assert "private address" in error.text and server.connections == 0


def test_the_clouds_own_address_is_never_reached(server):
    for host in ("169.254.169.254", "2852039166", "[::ffff:169.254.169.254]"):
        assert "never reached" in refused(server, f"json://{host}/latest/meta-data").text or host.startswith("[")
    assert server.connections == 0


def test_a_redirect_is_not_followed(server):
    with Server() as inside:
        server.answer = Reply(302, headers={"Location": f"{inside.url}/"})
        assert "redirect" in refused(server, "json://HOST/x?redirect=yes").text
        assert inside.connections == 0


def test_a_plugin_has_no_door_outside_of_a_delivery(server):
    plugin = apprise_url._opened(f"json://{server.host}/x")
    assert plugin.notify(body="x") is False and server.connections == 0


def test_files_are_not_read(server, tmp_path):
    secret = tmp_path / "template.json"
    secret.write_text('{"text": "from a file"}')
    for url in (
        f"workflow://HOST/{'a' * 32}/{'b' * 40}",
        "tgram://123456789:AABBCCDDEEFFGGHHIIJJKKLLMMNNOOPPQQR/12315544",
        "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ",
    ):
        assert AppriseUrl.check({"url": url.replace("HOST", "example.com")}) == {}, "it is the file alone that is in the way"
        error = refused(server, f"{url}?template={secret}")
        assert not error.left and "from a file" not in error.text
        assert server.connections == 0


def test_certificates_are_verified_whatever_the_address_says(server, tmp_path):
    from tests.fakes.tls import authority

    with Server(Reply(200), authority(tmp_path).server) as secure:
        error = refused(secure, "jsons://HOST/x?verify=no")
        assert "certificate" in error.text.lower() and secure.seen == []


def test_all_requests_of_a_message_have_eight_seconds_together(server, monkeypatch):
    monkeypatch.setattr(http, "TOTAL_SECONDS", 2.0)

    def slow(seen):
        time.sleep(1.2)
        return Reply(200, {"status": "success", "data": {"authToken": "t", "userId": "u"}})

    server.answer = slow
    error = refused(server, "rocket://user:pass@HOST/#one/#two/#three")
    assert len(server.seen) <= 2 and not error.permanent and error.left


# --- what an answer means ------------------------------------------------------------------------------------------------------------


def test_a_refusal_in_a_200_is_a_refusal_with_the_plugins_reason(server):
    server.answer = Reply(200, {"status": "failed", "retcode": 100, "wording": "no such group"})
    error = refused(server, "onebot://t0ken-0123456789@HOST/#123456")
    assert (error.permanent, error.left) == (False, False)
    assert "no such group" in error.text and "t0ken" not in error.text


def test_one_of_two_receivers_may_have_it(server):
    server.answer = lambda seen: Reply(500) if len(server.seen) > 1 else Reply(200, {"status": "ok", "retcode": 0})
    error = refused(server, "onebot://HOST/#123456/#654321")
    assert (error.permanent, error.left) == (False, True)


def test_a_wait_that_is_asked_for_is_kept(server):
    server.answer = Reply(429, headers={"Retry-After": "7"})
    assert refused(server, "gotify://HOST/Axxxxxxxxxxxxxx").retry_after == 7


def test_secrets_are_nowhere(server, caplog):
    server.answer = lambda seen: Reply(400, f"{seen.path} {seen.headers}".encode())
    with caplog.at_level(logging.DEBUG):
        error = refused(server, "gotify://HOST/AvErYsEcReTtOkEn")
    assert "AvErYsEcReTtOkEn" not in error.text + caplog.text


@pytest.mark.parametrize("size", [160, 2000])
def test_long_texts_are_shortened_with_the_link_to_the_rest(size):
    text, detail = apprise_url.shortened(page(text="eine Zeile mit Wörtern\n" * 500), size)
    assert len(text) <= size and detail == f"shortened to {size} characters"
    assert text.endswith(f"… shortened\n{page().url}")
    assert apprise_url.shortened(page(), size) == (page().text, "")
    assert len(apprise_url.shortened(page(text="x" * 999), 20)[0]) == 20


def test_what_grows_by_escapes_is_not_lost(server):
    """A text of stars doubles when it becomes Markdown; what is too long then comes as a second message."""
    transport(server, "gotify://HOST/Axxxxxxxxxxxxxx?format=markdown").send(page(text="*" * 30_000), "")
    assert sum(seen.json()["message"].count("*") for seen in server.seen) >= 30_000
