"""E-mail against a real SMTP server, and against servers that refuse, hang up and hang at each step."""

import socket
import time

import pytest

from channels_app import http
from channels_app.http import DeliveryError, Http
from channels_app.transports.email import Email
from tests.fakes.message import page
from tests.fakes.smtp import Mailbox, Script
from tests.fakes.tls import authority

LI = "li@example.com"


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def mailbox():
    with Mailbox() as running:
        yield running


def transport(server, *, ca_bundle="", **settings) -> Email:
    settings = {
        "host": "127.0.0.1",
        "port": server.port,
        "security": "none",
        "from_email": "On-call 值班 <oncall@mail.example.com>",
        **settings,
    }
    return Email(settings, Http("", ca_bundle, [server.host]))


def refused(server, message=None, address=LI, **settings) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(server, **settings).send(message or page(), address)
    return caught.value


# --- the mail ------------------------------------------------------------------------------------------------------------------------


def test_a_page_is_text_and_html_to_one_recipient(mailbox):
    receipt = transport(mailbox, reply_to="answers@example.com").send(page(html="<b>Database is down</b> 数据库"), LI)
    mail, envelope = mailbox.mails[0], mailbox.envelopes[0]
    assert receipt.state == "sent" and receipt.message_id == mail["Message-ID"]
    assert (envelope.mail_from, envelope.rcpt_tos) == ("oncall@mail.example.com", [LI])
    assert (mail["From"], mail["To"], mail["Reply-To"]) == ("On-call 值班 <oncall@mail.example.com>", LI, "answers@example.com")
    assert mail["Subject"] == "Database is down"
    assert mail.get_body(("plain",)).get_content().splitlines() == ["**Database is down**", "#A1B2C3 Critical"]
    assert mail.get_body(("html",)).get_content().strip() == "<b>Database is down</b> 数据库"


def test_machines_do_not_answer_it(mailbox):
    transport(mailbox).send(page(), LI)
    mail = mailbox.mails[0]
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["X-Auto-Response-Suppress"] == "All"
    assert mail["List-Id"] == "<incidents.mail.example.com>"
    assert mail["X-Flashduty-Incident"] == "6553f0c00000000000000001"


def test_only_critical_pages_are_marked_important(mailbox):
    channel = transport(mailbox)
    channel.send(page(), LI)
    channel.send(page(severity="Warning"), LI)
    channel.send(page(event="closed"), LI)
    assert [(mail["Importance"], mail["X-Priority"]) for mail in mailbox.mails] == [("high", "1"), (None, None), (None, None)]


def test_an_incident_is_one_thread_for_each_recipient(mailbox):
    channel = transport(mailbox)
    for number, event in enumerate(["triggered", "refire", "closed", "triggered"]):
        channel.send(page(event=event, delivery_id=f"d-{number}"), LI)
    channel.send(page(delivery_id="d-9"), "wang@example.com")
    channel.send(page(delivery_id="d-10", incident_id="6553f0c00000000000000002"), LI)
    roots = [mail["References"] for mail in mailbox.mails]
    assert all(mail["In-Reply-To"] == mail["References"] for mail in mailbox.mails)
    assert len(set(roots[:4])) == 1 and len(set(roots)) == 3
    ids = [mail["Message-ID"] for mail in mailbox.mails]
    assert len(set(ids)) == 6 and not set(ids) & set(roots), "a page after a reopening is no copy of the first"


def test_a_repeat_has_the_same_id(mailbox):
    channel = transport(mailbox)
    channel.send(page(), LI)
    channel.send(page(attempt=2, possible_repeat=True), LI)
    assert mailbox.mails[0]["Message-ID"] == mailbox.mails[1]["Message-ID"]


def test_what_belongs_to_no_single_incident_is_in_no_thread(mailbox):
    channel = transport(mailbox)
    channel.send(page(incidents=page().incidents * 2), LI)
    channel.send(page(incident_id="", event="code"), LI)
    assert [mail["References"] for mail in mailbox.mails] == [None, None]


def test_a_title_cannot_write_headers(mailbox):
    transport(mailbox).send(page(subject="down\r\nBcc: all@example.com\n\nbody"), LI)
    assert mailbox.mails[0]["Subject"] == "down Bcc: all@example.com body"
    assert mailbox.mails[0]["Bcc"] is None and mailbox.envelopes[0].rcpt_tos == [LI]


@pytest.mark.parametrize(
    "address", ["", "li", "li@", "a@example.com, b@example.com", "a@example.com\r\nRCPT TO:<b@example.com>", "Li <li@example.com>"]
)
def test_what_is_no_address(mailbox, address):
    assert refused(mailbox, address=address).permanent
    assert mailbox.mails == []


# --- the connection --------------------------------------------------------------------------------------------------------------------


def test_a_connection_serves_many_mails(mailbox):
    channel = transport(mailbox)
    for number in range(3):
        channel.send(page(delivery_id=f"d-{number}"), LI)
    assert len({id(session) for session in mailbox.sessions}) == 1


def test_a_kept_connection_that_died_is_replaced(mailbox):
    channel = transport(mailbox)
    channel.send(page(), LI)
    channel._idle[0][1].connection.sock.shutdown(socket.SHUT_RDWR)
    channel.send(page(delivery_id="d-2"), LI)
    assert len(mailbox.mails) == 2


def test_a_kept_connection_that_is_told_to_go_is_replaced():
    with Script(("MAIL", "250 ok")) as server:
        channel = transport(server)
        channel.send(page(), LI)
        kept = channel._idle[0][1].connection
        server.lines["MAIL"] = "421 too many messages on one connection"
        with pytest.raises(DeliveryError) as caught:
            channel.send(page(), LI)
        assert not caught.value.permanent and not caught.value.left
        assert channel._idle == [] and kept.sock is None
        assert sum(line.upper().startswith("MAIL") for line in server.heard) == 3, "the kept connection, then a new one"


def test_starttls_with_a_password(ca):
    with Mailbox(login=("oncall", "s3cret-password"), starttls=ca.server) as server:
        channel = transport(server, ca_bundle=ca.pem, security="starttls", username="oncall", password="s3cret-password")
        channel.send(page(), LI)
        assert server.sessions[0].ssl and server.sessions[0].authenticated
        error = refused(server, ca_bundle=ca.pem, security="starttls", username="oncall", password="wrong-password")
        assert (error.permanent, error.config, error.left) == (True, True, False) and "wrong-password" not in error.text
        error = refused(server, security="starttls", username="oncall", password="s3cret-password")
        assert (error.permanent, error.left) == (False, False) and "not trusted" in error.text
        assert len(server.mails) == 1


def test_tls_from_the_first_byte(ca):
    with Mailbox(tls=ca.server) as server:
        transport(server, ca_bundle=ca.pem, security="tls").send(page(), LI)
        assert len(server.mails) == 1
        assert "not trusted" in refused(server, security="tls").text


def test_a_server_without_starttls_is_not_spoken_to_in_the_clear(mailbox):
    error = refused(mailbox, security="starttls", username="a", password="s3cret-password")
    assert error.permanent and error.config and mailbox.mails == []


def test_a_private_relay_must_be_allowed(mailbox):
    channel = Email(transport(mailbox).settings, Http())
    with pytest.raises(DeliveryError) as caught:
        channel.send(page(), LI)
    assert caught.value.config and "private address" in caught.value.text


def test_a_relay_that_is_not_there_is_our_network(mailbox):
    closed = Script()
    closed._socket.close()
    error = refused(closed)
    assert (error.permanent, error.left, error.is_network) == (False, False, True)


# --- what a refusal means (RFC 5321, providers.md 6) -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "answer", "permanent", "config", "retry_after"),
    [
        ("RCPT", "550 5.1.1 no such user", True, False, None),
        ("RCPT", "552 5.2.2 mailbox full", True, False, None),
        ("RCPT", "450 4.2.0 greylisted", False, False, 60),
        ("RCPT", "451 4.3.0 try again", False, False, 60),
        ("MAIL", "553 5.7.1 not your address", True, True, None),
        ("MAIL", "421 4.7.0 too many connections", False, False, None),
        ("DATA", "554 5.7.1 spam", True, False, None),
        ("DATA", "452 4.3.1 no space", False, False, 60),
    ],
)
def test_refusals(mailbox, step, answer, permanent, config, retry_after):
    mailbox.refuse = {step: answer}
    error = refused(mailbox)
    assert (error.permanent, error.config, error.left, error.retry_after) == (permanent, config, False, retry_after)
    assert answer in error.text


def test_a_greeting_that_refuses():
    with Script(("", "554 5.7.1 you are on a list")) as server:
        assert refused(server).permanent
    with Script(("", "421 4.3.2 shutting down")) as server:
        assert not refused(server).permanent


@pytest.mark.parametrize("end", ["HANG", "CLOSE"])
@pytest.mark.parametrize(("step", "left"), [("", False), ("EHLO", False), ("MAIL", False), ("RCPT", False), ("DATA", False), (".", True)])
def test_silence_is_unknown_only_after_the_text_has_left(step, left, end, monkeypatch):
    if end == "HANG":
        monkeypatch.setattr(http, "TOTAL_SECONDS", 2.0 if left else 0.3)  # it has to come so far, on a busy machine too
    with Script((step, end)) as server:
        started = time.monotonic()
        error = refused(server)
        assert time.monotonic() - started < 20  # the server hangs for thirty
    assert (error.permanent, error.left, error.is_network) == (False, left, False)


# --- settings ---------------------------------------------------------------------------------------------------------------------------


def test_settings():
    good = {"host": "relay.example", "port": 587, "security": "starttls", "from_email": "On-call <oncall@example.com>"}
    assert Email.check(good) == {}
    assert Email.check({**good, "username": "a", "password": "b", "reply_to": "x@example.com"}) == {}
    for change, name in [
        ({"host": "smtp://relay.example"}, "host"), ({"port": 70000}, "port"), ({"security": "ssl3"}, "security"),
        ({"from_email": "On-call"}, "from_email"), ({"username": "a"}, "password"), ({"reply_to": "x"}, "reply_to"),
        ({"username": "a", "password": "schlüssel"}, "password"), ({"username": "jürgen", "password": "b"}, "username"),
    ]:  # fmt: skip
        assert list(Email.check({**good, **change})) == [name]
