"""Mails that come back: what reports of several mail servers say, read from a mailbox over IMAP and POP3 or posted, and what follows in the outbox."""

import base64
import hashlib
import hmac
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.test import Client

from channels_app import bounces, outbox
from channels_app.http import DeliveryError, Http
from channels_app.models import Channel, Delivery, EarlyReceipt
from channels_app.transport import Callback, Update
from channels_app.transports.email import Email
from mapping.models import ContactPoint
from tests.fakes.mailbox import Store
from tests.fakes.message import page
from tests.fakes.smtp import Mailbox
from tests.fakes.tls import authority
from tests.test_outbox import Scene, scene  # noqa: F401  (a fixture)

SAMPLES = Path(__file__).parent / "payloads" / "dsn"
UID = "0d0f1b5e-5a43-4b52-9f0c-2f1d2a0c9f11"
OURS = f"<{UID}@mail.example.com>"
TOKEN = "a password for reports"
NOW = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def no_memory():
    bounces._watches.clear()


def sample(name: str, message_id: str = OURS) -> bytes:
    return (SAMPLES / f"{name}.eml").read_bytes().replace(b"@@ID@@", message_id.encode())


def transport(**settings) -> Email:
    return Email({"host": "127.0.0.1", "port": 25, "from_email": "On-call <oncall@mail.example.com>", **settings}, Http(allow_private=True))


def callback(body: bytes, method: str = "POST", **headers: str) -> Callback:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Callback(method, "https://oncall.example.com/callback/k/", {}, named, body, NOW)


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"postfix:{password}".encode()).decode()


# ---- reports -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("postfix_unknown_user", "bounced", "the address takes no mail. mx1.mail.example.com: 550 5.1.1 <l***@example.net>"),
        ("exim_no_such_domain", "bounced", "the address takes no mail"),
        ("exchange_unknown", "bounced", "550 5.1.10 RESOLVER.ADR.RecipientNotFound"),
        ("exchange_full", "failed", "the mailbox is full"),
        ("gmail_spam", "failed", "publish SPF, DKIM and DMARC"),
        ("postfix_expired", "failed", "did not take it in time"),
        ("exim_no_reason", "failed", "did not take it"),
        ("sendmail_general", "bounced", "550 5.1.1"),
        ("forwarded", "failed", "the address takes no mail"),
    ],
)
def test_reports_that_say_failed(name, state, words):
    (update,) = bounces.read(sample(name))
    assert (update.message_id, update.state) == (OURS, state)
    assert update.reason.startswith("The mail came back, ") and words in update.reason
    assert "li@example.net" not in update.reason


def test_what_is_on_its_way_or_there_is_no_bounce():
    assert bounces.read(sample("postfix_delayed")) == []
    assert bounces.read(sample("postfix_delivered")) == [Update(OURS, "delivered")]


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\x00\xff\xfe", b"Subject: out of office\n\nI am away until Monday", b"Content-Type: multipart/report; boundary=x\n\n--x\n",
        b"Content-Type: multipart/report; boundary=x\n\n--x\nContent-Type: message/delivery-status\n\nAction: failed\n\n--x--\n",
        b"Content-Type: message/delivery-status\nContent-Transfer-Encoding: base64\n\n!!!!", b"Content-Type: multipart/mixed; boundary=a\n\n" + b"--a\nContent-Type: multipart/mixed; boundary=a\n\n" * 5000,
        b"Content-Type: multipart/mixed; boundary=\xff\xfe; charset=nonsense\n\n" + b"x" * 300_000,
    ],
)  # fmt: skip
def test_what_is_no_report_says_nothing(raw):
    assert bounces.read(raw) == [] and bounces.returned_to(raw) == []


@pytest.mark.parametrize(
    ("code", "gone"),
    [
        ("5.1.1", True), ("5.1.2", True), ("5.1.10", True), ("5.2.1", True), ("5.4.4", True), ("5.0.0", False), ("5.2.2", False), ("5.7.1", False),
        ("5.1.0", False), ("5.1.8", False), ("4.1.1", False), ("4.4.7", False), ("5.4.7", False), ("5.3.4", False), ("", False),
    ],
)  # fmt: skip
def test_which_codes_end_an_address(code, gone):
    assert bounces.is_gone(code) is gone
    assert bounces.reason("mx", code, "no").startswith("The mail came back, ")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (("5.0.0", "550 5.1.1 no"), "5.1.1"), (("5.0.0", "550 User unknown"), "5.1.1"), (("5.0.0", "550 rejected as spam"), "5.0.0"),
        (("", "550 No such user here"), "5.1.1"), (("", "550 mailbox <l@e.com> does not exist"), "5.1.1"), (("", "550 blocked"), ""), (("", "550 sender address invalid"), ""),
        (("5.7.1", "550 5.7.1 unknown user of a list"), "5.7.1"), (("4.0.0", "450 unknown user"), "4.0.0"), (("5.0.0", ""), "5.0.0"), (("", ""), ""),
        (("5.5.0", "552 5.2.2 full"), "5.2.2"), (("5.0.0", "Unrouteable address"), "5.1.1"),
        (("5.1.0", "550 5.1.0 Sender denied"), "5.1.0"), (("5.1.0", "550 5.1.0 User unknown"), "5.1.1"), (("", "550 unknown sender mailbox"), ""),
    ],
)  # fmt: skip
def test_the_most_telling_code_counts(said, code):
    assert bounces.code_in(*said) == code


def test_a_report_that_does_not_name_the_mail_is_known_by_its_own_return_path():
    raw = sample("exim_no_such_domain", "").replace(
        b"bounces@mail.example.com", f"bounces+{UID.replace('-', '')}@mail.example.com".encode()
    )
    assert transport(bounce_token=TOKEN).receive(callback(raw, authorization=basic(TOKEN))).said == ()
    heard = transport(bounce_token=TOKEN, envelope_from="bounces+{id}@mail.example.com").receive(callback(raw, authorization=basic(TOKEN)))
    assert [(update.message_id, update.state) for update in heard.said] == [(OURS, "bounced")]


def test_reports_about_mails_of_others_are_none_of_ours():
    for other in ("<1@mail.example.com.evil.example>", "<x y@mail.example.com>", "<1@other.example.com>", ""):
        heard = transport(bounce_token=TOKEN).receive(callback(sample("postfix_unknown_user", other), authorization=basic(TOKEN)))
        assert heard.said == () and heard.status == 200


# ---- the mailbox ---------------------------------------------------------------------------------------------------------------------


def box(store: Store, protocol: str, port: int, **settings) -> Email:
    return transport(
        bounce_protocol=protocol, bounce_host="127.0.0.1", bounce_port=port, bounce_security="none", bounce_username=store.username,
        bounce_password=store.password, **settings,
    )  # fmt: skip


def later(monkeypatch) -> None:
    """The next look is due."""
    for watch in bounces._watches.values():
        watch.next_at = 0.0


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_a_mailbox_is_read_and_marked_the_next_time(protocol, monkeypatch):
    store = Store()
    for name in ("postfix_unknown_user", "postfix_delayed", "exchange_full"):
        store.add(sample(name))
    store.add(b"Subject: hello\r\n\r\n.a line with a dot\r\n")
    with store.serve(protocol) as port:
        channel = box(store, protocol, port)
        assert [update.state for update in channel.poll([])] == ["bounced", "failed"]
        assert len(store.mails) == 4 and not any(mail.seen for mail in store.mails), "what it said may not be written down yet"
        said = len(store.heard)
        assert channel.poll([]) == [] and len(store.heard) == said, "not every few seconds"
        later(monkeypatch)
        store.add(sample("postfix_unknown_user"))
        assert [update.state for update in channel.poll([])] == ["bounced"], "the new one only"
        later(monkeypatch)
        assert channel.poll([]) == []
    if protocol == "imap":
        assert all(mail.seen for mail in store.mails) and len(store.mails) == 5
    else:
        assert store.mails == []


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_a_mailbox_that_breaks_off_loses_nothing(protocol, monkeypatch):
    store = Store(breaks_at=3)
    ids = [f"<{UID[:-1]}{number}@mail.example.com>" for number in range(5)]
    for message_id in ids:
        store.add(sample("postfix_unknown_user", message_id))
    with store.serve(protocol) as port:
        channel = box(store, protocol, port)
        assert [update.message_id for update in channel.poll([])] == ids[:2]
        with pytest.raises(DeliveryError):
            channel.poll([])
        later(monkeypatch)
        assert [update.message_id for update in channel.poll([])] == ids[2:]
        store.breaks_at = 1
        store.add(sample("postfix_unknown_user", OURS))
        later(monkeypatch)
        with pytest.raises(DeliveryError):
            channel.poll([])
        later(monkeypatch)
        assert OURS in [update.message_id for update in channel.poll([])]


def test_marks_are_for_one_life_of_a_folder(monkeypatch):
    store = Store()
    store.add(sample("postfix_unknown_user"))
    with store.serve("imap") as port:
        channel = box(store, "imap", port)
        assert len(channel.poll([])) == 1
        store.life += 1  # restored from a backup: other mails have these numbers now
        later(monkeypatch)
        assert len(channel.poll([])) == 1
        assert not any("STORE" in line for line in store.heard)


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
@pytest.mark.parametrize("security", ["tls", "starttls"])
def test_a_mailbox_behind_tls(protocol, security, tmp_path):
    ca = authority(tmp_path)
    store = Store(**{security: ca.server})
    store.add(sample("postfix_unknown_user"))
    with store.serve(protocol) as port:
        settings = box(store, protocol, port).settings | {"bounce_security": security}
        assert len(Email(settings, Http("", ca.pem, [f"127.0.0.1:{port}"])).poll([])) == 1
        bounces._watches.clear()
        with pytest.raises(DeliveryError, match="not trusted"):
            Email(settings, Http("", "", [f"127.0.0.1:{port}"])).poll([])


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_a_mailbox_that_cannot_be_read_says_why(protocol):
    store = Store()
    with store.serve(protocol) as port:
        wrong = box(store, protocol, port)
        wrong.settings = wrong.settings | {"bounce_password": "wrong password"}
        for _turn in range(2):  # within its interval, too: or it would look mended
            with pytest.raises(DeliveryError, match="check its user name, password and folder") as caught:
                wrong.poll([])
            assert caught.value.config and "wrong password" not in caught.value.text
        private = Email(box(store, protocol, port).settings, Http())
        with pytest.raises(DeliveryError, match="private address"):
            private.poll([])
        if protocol == "imap":
            with pytest.raises(DeliveryError, match="Mailbox does not exist"):
                box(store, protocol, port, bounce_folder='Bounces" (x').poll([])
    with pytest.raises(DeliveryError) as caught:
        box(store, protocol, port, bounce_folder="INBOX2").poll([])
    assert caught.value.is_network


def test_a_mailbox_that_hangs_takes_no_longer_than_it_may(monkeypatch):
    monkeypatch.setattr(bounces, "LOOK_SECONDS", 1.0)
    store, over = Store(), threading.Event()
    monkeypatch.setattr(store, "_imap", lambda line: over.wait(60))
    with store.serve("imap") as port, pytest.raises(DeliveryError, match="does not answer"):
        began = time.monotonic()
        try:
            box(store, "imap", port).poll([])
        finally:
            assert time.monotonic() - began < 30
            over.set()


def test_without_a_mailbox_nothing_is_read():
    assert transport().poll(["x"]) == ()


# ---- posted --------------------------------------------------------------------------------------------------------------------------


def test_a_posted_report_needs_the_password():
    raw, channel = sample("postfix_unknown_user"), transport(bounce_token=TOKEN)
    for good in (basic(TOKEN), f"Bearer {TOKEN}"):
        (update,) = channel.receive(callback(raw, authorization=good, content_type="message/rfc822")).said
        assert (update.message_id, update.state) == (OURS, "bounced")
    for bad in ("", basic("wrong"), "Bearer ", "Basic !!", "Basic \u00e9", f"Basic {TOKEN}"):
        with pytest.raises(PermissionError):
            channel.receive(callback(raw, authorization=bad))
    with pytest.raises(PermissionError):
        transport().receive(callback(raw, authorization=basic("")))
    with pytest.raises(ValueError, match="posted"):
        channel.receive(callback(raw, "GET", authorization=basic(TOKEN)))


def mailgun(event: dict, key: str = "key-of-mailgun-webhooks", at: float | None = None) -> Callback:
    stamp, token = str(int(NOW.timestamp() if at is None else at)), "t" * 50
    signature = hmac.new(key.encode(), f"{stamp}{token}".encode(), hashlib.sha256).hexdigest()
    body = {"signature": {"timestamp": stamp, "token": token, "signature": signature}, "event-data": event}
    return callback(json.dumps(body).encode(), content_type="application/json; charset=utf-8")


def failed(**changes) -> dict:
    return {
        "event": "failed", "severity": "permanent", "reason": "bounce", "recipient": "li@example.net",
        "delivery-status": {"code": 550, "enhanced-code": "5.1.1", "message": "5.1.1 <li@example.net> no such user"},
        "message": {"headers": {"message-id": OURS.strip("<>"), "to": "li@example.net"}}, **changes,
    }  # fmt: skip


def test_mailgun():
    channel = transport(bounce_key="key-of-mailgun-webhooks")

    def said(event):
        return [(update.message_id, update.state) for update in channel.receive(mailgun(event)).said]

    assert said(failed()) == [(OURS, "bounced")]
    assert "li@example.net" not in channel.receive(mailgun(failed())).said[0].reason
    assert said(failed(severity="temporary")) == []
    assert said(failed(**{"delivery-status": {"code": 552, "message": "5.2.2 mailbox full"}})) == [(OURS, "failed")]
    assert said(failed(**{"delivery-status": {"code": 550, "message": "550 no such user here"}})) == [(OURS, "bounced")]
    assert said(failed(reason="suppress-bounce", **{"delivery-status": {"code": 605, "message": "Not delivering to previously bounced address"}})) == [(OURS, "bounced")]  # fmt: skip
    assert said(failed(event="delivered")) == [(OURS, "delivered")]
    assert said(failed(event="opened")) == [] and said(failed(message={"headers": {"message-id": "x@other.example"}})) == []
    assert said(failed(message=[], **{"delivery-status": 7})) == []
    for wrong in (
        mailgun(failed(), key="another"),
        mailgun(failed(), at=NOW.timestamp() - 27 * 3600),
        mailgun(failed(), at=NOW.timestamp() + 600),
    ):
        with pytest.raises(PermissionError):
            channel.receive(wrong)
    with pytest.raises(PermissionError):
        transport().receive(mailgun(failed(), key=""))
    for junk in (b"", b"[]", b'{"signature": 1}', b'{"signature": {"timestamp": [], "token": {}}}', b"\xff"):
        with pytest.raises((PermissionError, ValueError)):
            channel.receive(callback(junk, content_type="application/json"))


@pytest.fixture(scope="module")
def key():
    return ec.generate_private_key(ec.SECP256R1())


def sendgrid(key, events, stamp: str | None = None) -> Callback:
    stamp = stamp or str(int(NOW.timestamp()))
    body = json.dumps(events).encode()
    signature = base64.b64encode(key.sign(stamp.encode() + body, ec.ECDSA(hashes.SHA256()))).decode()
    return callback(body, content_type="application/json", x_twilio_email_event_webhook_signature=signature, x_twilio_email_event_webhook_timestamp=stamp)  # fmt: skip


def test_sendgrid(key):
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    channel = transport(bounce_key=base64.b64encode(public).decode())
    event = {"email": "li@example.net", "smtp-id": OURS, "sg_event_id": "x"}
    events = [
        {**event, "event": "bounce", "type": "bounce", "status": "5.1.1", "reason": "550 5.1.1 no such user"},
        {**event, "event": "bounce", "type": "blocked", "status": "5.1.1", "reason": "550 5.1.1 blocked by a list"},
        {**event, "event": "dropped", "reason": "Bounced Address"},
        {**event, "event": "dropped", "reason": "Spam Content"},
        {**event, "event": "deferred", "response": "451 later"},
        {**event, "event": "delivered", "response": "250 ok"},
        {**event, "smtp-id": "<x@other.example>", "event": "bounce", "status": "5.1.1"},
        "junk",
    ]
    heard = channel.receive(sendgrid(key, events))
    assert [update.state for update in heard.said] == ["bounced", "failed", "bounced", "failed", "delivered"]
    good = sendgrid(key, events)
    for wrong in (
        callback(good.body + b" ", **{name.replace("-", "_"): value for name, value in good.headers.items()}),
        sendgrid(ec.generate_private_key(ec.SECP256R1()), events), sendgrid(key, events, "yesterday"),
        sendgrid(key, events, str(int(NOW.timestamp() - 27 * 3600))),
    ):  # fmt: skip
        with pytest.raises(PermissionError):
            channel.receive(wrong)
    for no_key in ("", "key-of-mailgun", "AAAA"):
        with pytest.raises(PermissionError):
            transport(bounce_key=no_key).receive(good)


# ---- end to end ----------------------------------------------------------------------------------------------------------------------


def report_by_hand(mail: EmailMessage, recipient: str, status: str, said: str) -> bytes:
    """What a mail server writes about a mail that it could not hand on (RFC 3464), from the mail as it came."""
    head = "".join(f"{name}: {value}\r\n" for name, value in mail.items())
    return (
        "Return-Path: <>\r\nFrom: MAILER-DAEMON@relay.example.com\r\nTo: bounces@mail.example.com\r\nSubject: Undelivered Mail\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="R"\r\n\r\n--R\r\n\r\nIt failed.\r\n'
        "--R\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; relay.example.com\r\n\r\n"
        f"Final-Recipient: rfc822; {recipient}\r\nAction: failed\r\nStatus: {status}\r\nDiagnostic-Code: smtp; {said}\r\n\r\n"
        f"--R\r\nContent-Type: text/rfc822-headers\r\n\r\n{head}\r\n--R--\r\n"
    ).encode()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("status", "said", "usable"), [("5.1.1", "550 5.1.1 no such user", False), ("5.2.2", "552 5.2.2 full", True)])
def test_a_page_that_comes_back_takes_its_fallback_and_ends_a_dead_address(scene, status, said, usable):  # noqa: F811
    store = Store()
    with Mailbox() as relay, store.serve("imap") as port:
        settings = {
            "host": "127.0.0.1", "port": relay.port, "security": "none", "from_email": "oncall@mail.example.com", "envelope_from": "bounces@mail.example.com",
            "bounce_protocol": "imap", "bounce_host": "127.0.0.1", "bounce_port": port, "bounce_security": "none", "bounce_username": store.username,
            "bounce_password": store.password,
        }  # fmt: skip
        assert Email.check(settings) == {}
        mail = Channel.objects.create(
            kind="email", name="mail", settings=settings, allowed_hosts=[relay.host, f"127.0.0.1:{port}"], fallback_kinds=["dummy"]
        )
        point = ContactPoint.objects.create(
            member=scene.lee, kind="email", value="lee@example.com", verified_at=scene.now - timedelta(days=1)
        )
        scene.page(outbox.To(mail.id, "lee@example.com", scene.lee.id))
        scene.run()
        row = Delivery.objects.get(channel=mail)
        assert row.state == "sent" and row.poll_at is None
        assert relay.envelopes[0].mail_from == "bounces@mail.example.com" and relay.mails[0]["From"] == "oncall@mail.example.com"
        store.add(report_by_hand(relay.mails[0], "lee@example.com", status, said))
        for update in Email(settings, Http(allow_private=True)).poll([]):
            assert outbox.receipt(mail.id, update.message_id, update.state, update.reason, scene.now)
    row.refresh_from_db()
    point.refresh_from_db()
    assert row.state == "failed" and said in row.reason and row.fallback_at == scene.now
    assert (point.bounced_at is None) is usable


@pytest.mark.django_db(transaction=True)
def test_a_relay_that_refuses_everybody_does_not_end_everybodys_address(scene):  # noqa: F811
    with Mailbox() as relay:
        settings = {"host": "127.0.0.1", "port": relay.port, "security": "none", "from_email": "oncall@mail.example.com"}
        mail = Channel.objects.create(kind="email", name="mail", settings=settings, allowed_hosts=[relay.host])
        addresses = [f"lee{number}@example.com" for number in range(8)]
        for address in addresses:
            ContactPoint.objects.create(member=scene.lee, kind="email", value=address, verified_at=scene.now - timedelta(days=1))
        scene.page(*(outbox.To(mail.id, address, scene.lee.id) for address in addresses))
        scene.run()
    rows = list(Delivery.objects.filter(channel=mail, state="sent"))
    assert len(rows) == 8
    for row in rows:
        outbox.receipt(mail.id, row.message_id, "bounced", "550 5.1.1 user unknown", scene.now)
    assert Delivery.objects.filter(channel=mail, state="failed", fallback_at=scene.now).count() == 8
    assert ContactPoint.objects.filter(bounced_at=scene.now).count() == 5


@pytest.mark.django_db(transaction=True)
def test_two_channels_with_one_mailbox_hear_of_each_others_mails(scene):  # noqa: F811
    with Mailbox() as relay:
        settings = {"host": "127.0.0.1", "port": relay.port, "security": "none", "from_email": "oncall@mail.example.com"}
        one, other = (
            Channel.objects.create(kind="email", name=name, settings=settings, allowed_hosts=[relay.host]) for name in ("one", "other")
        )
        scene.page(outbox.To(one.id, "lee@example.com", scene.lee.id), outbox.To(one.id, "wang@example.com", scene.lee.id))
        scene.run()
    first, second = Delivery.objects.filter(channel=one, state="sent").order_by("id")
    assert outbox.receipt(other.id, first.message_id, "failed", "552 5.2.2 full", scene.now)
    EarlyReceipt.objects.create(channel=other, message_id=second.message_id, state="failed", reason="full", received_at=scene.now)
    assert outbox.early(scene.now) == 1
    assert Delivery.objects.filter(channel=one, state="failed", fallback_at=scene.now).count() == 2
    # A gateway's ids are its own: another one may have given the same to another message.
    gateways = [Channel.objects.create(kind="http_sms", name=name) for name in ("here", "there")]
    Delivery.objects.filter(id=first.id).update(channel=gateways[0], state="sent")
    assert not outbox.receipt(gateways[1].id, first.message_id, "failed", "", scene.now)


@pytest.mark.django_db
def test_a_posted_report_comes_through_the_door(client: Client):
    channel = Channel.objects.create(kind="email", name="mail", settings={"from_email": "oncall@mail.example.com", "bounce_token": TOKEN})
    where = f"/callback/{channel.callback_key}/"
    assert (
        client.post(
            where, sample("postfix_unknown_user"), content_type="message/rfc822", headers={"authorization": basic(TOKEN)}
        ).status_code
        == 200
    )
    assert client.post(where, sample("postfix_unknown_user"), content_type="message/rfc822").status_code == 403
    assert client.get(where).status_code == 400


def test_the_return_path_of_each_mail():
    with Mailbox() as relay:
        channel = transport(port=relay.port, security="none", envelope_from="bounces+{id}@mail.example.com")
        channel.send(page(), "li@example.com")
        assert relay.envelopes[0].mail_from == f"bounces+{UID.replace('-', '')}@mail.example.com"
        assert relay.mails[0]["From"] == "On-call <oncall@mail.example.com>"


def test_settings_of_returned_mail():
    good = {"host": "relay.example", "port": 587, "security": "starttls", "from_email": "oncall@example.com"}
    box = {
        "bounce_protocol": "imap",
        "bounce_host": "imap.example.com",
        "bounce_security": "tls",
        "bounce_username": "b",
        "bounce_password": "c",
    }
    assert Email.check(good | box) == {} and Email.check(good | {"envelope_from": "b+{id}@example.com", "dkim_selector": "s1.mail"}) == {}
    for change, name in [
        ({**box, "bounce_password": ""}, "bounce_password"), ({**box, "bounce_host": ""}, "bounce_host"), ({"bounce_protocol": "mbox"}, "bounce_protocol"),
        ({"envelope_from": "b{x}"}, "envelope_from"), ({"dkim_selector": "s1._domainkey.example.com"}, "dkim_selector"), ({"bounce_token": "short"}, "bounce_token"),
        ({**box, "bounce_password": "schlüssel"}, "bounce_password"), ({**box, "bounce_folder": "退信"}, "bounce_folder"),
    ]:  # fmt: skip
        assert list(Email.check({**good, **change})) == [name]
