"""The callback door and what it leads to: real signatures in, rows out, and the fallback where nobody picked up."""

import hashlib
import logging
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.urls import reverse

from channels_app import book, outbox, policy, transport
from channels_app.models import Channel, ChannelHealth, Delivery, EarlyReceipt
from channels_app.outbox.answers import SILENT
from channels_app.transport import Callback, Command, Heard, Message, Receipt, Transport, Update
from flashduty.web import callbacks
from mapping.clock import db_now
from mapping.models import ContactPoint
from tests.fakes.twilio import SID, TOKEN, FakeTwilio
from tests.test_outbox import Scene, scene  # noqa: F401  (a fixture)

PHONE = "+15005550006"
BASE = "https://oncall.example.com"


@pytest.fixture(scope="module")
def running():
    with FakeTwilio() as account:
        yield account


class Phones:
    """A person with a phone, called through Twilio, whose SMS is the fallback."""

    def __init__(self, play: Scene, account: FakeTwilio, client: Client) -> None:
        self.scene, self.account, self.client = play, account, client
        settings = {"account_sid": SID, "auth_token": TOKEN, "numbers": "+14155550100", "api_base": account.url}
        self.voice = Channel.objects.create(
            kind="twilio_voice", name="calls", settings=settings, allowed_hosts=[account.host], fallback_kinds=["sms"]
        )
        self.sms = Channel.objects.create(kind="twilio_sms", name="texts", settings=settings, allowed_hosts=[account.host])
        ContactPoint.objects.create(member=play.lee, kind="phone", value=PHONE, verified_at=play.now)

    def page(self) -> None:
        self.scene.page(outbox.To(self.voice.id, PHONE, self.scene.lee.id))

    def hook(self, channel: Channel, rest: str = "") -> str:
        return f"{BASE}/callback/{channel.callback_key}/{rest}"

    def tell(self, status: str, channel: Channel | None = None, rest: str = "", **fields: str) -> int:
        channel = channel or self.voice
        said = {"CallSid": self.account.calls[-1]["sid"], "CallStatus": status} if channel == self.voice else {"MessageSid": self.account.messages[-1]["sid"], "MessageStatus": status}  # fmt: skip
        report = self.account.report(self.hook(channel, rest), **{**said, **fields})
        return self.client.post(report.pop("path"), **report).status_code

    @property
    def call(self) -> Delivery:
        return Delivery.objects.get(channel=self.voice)


@pytest.fixture
def phones(scene, running, client, settings) -> Phones:  # noqa: F811
    settings.BASE_URL = BASE
    scene.now = db_now()  # the door reads the real clock
    running.__dict__.update(calls=[], messages=[], forms=[], seen=[], token=TOKEN)
    client.raise_request_exception = True
    callbacks._said.clear()
    return Phones(scene, running, client)


# ---- from the call to the row --------------------------------------------------------------------------------------------------------------


def test_a_call_that_is_picked_up_is_delivered_and_nothing_falls_back(phones):
    phones.page()
    phones.scene.run()
    assert (phones.call.state, phones.call.fallback_at) == ("sent", phones.scene.now + policy.SILENCE)
    assert phones.tell("ringing") == 204 and phones.call.state == "sent"
    assert phones.tell("in-progress") == 204
    assert (phones.call.state, phones.call.fallback_at, phones.call.poll_at) == ("delivered", None, None)
    assert phones.tell("completed") == 204
    phones.scene.pass_time(600)
    assert phones.account.messages == [] and phones.call.state == "delivered"


@pytest.mark.parametrize(
    ("status", "fields", "words"),
    [("busy", {}, "busy"), ("no-answer", {}, "Nobody answered"), ("completed", {"AnsweredBy": "machine_start"}, "Voice mail"), ("failed", {"SipResponseCode": "404"}, "404")],
)  # fmt: skip
def test_a_call_that_reaches_nobody_is_followed_by_an_sms(phones, status, fields, words):
    phones.page()
    phones.scene.run()
    assert phones.tell(status, **fields) == 204
    assert phones.call.state == "failed" and words in phones.call.reason
    phones.scene.run(60)
    assert [message["to"] for message in phones.account.messages] == [PHONE]
    assert phones.tell("completed") == 204
    assert phones.call.state == "failed", "what came to its end does not change"


def test_an_sms_that_is_not_delivered_says_why(phones):
    phones.scene.page(outbox.To(phones.sms.id, PHONE, phones.scene.lee.id))
    phones.scene.run()
    assert phones.tell("sent", phones.sms) == 204
    assert phones.tell("undelivered", phones.sms, ErrorCode="30007") == 204
    row = Delivery.objects.get(channel=phones.sms)
    assert row.state == "failed" and "spam" in row.reason


def test_a_trailing_path_and_a_query_are_part_of_what_is_signed(phones):
    phones.page()
    phones.scene.run()
    assert phones.tell("busy", rest="a%20b/%C3%A9?x=1&y=%20") == 204
    assert phones.call.state == "failed"


def test_a_channel_that_is_switched_off_still_hears(phones):
    phones.page()
    phones.scene.run()
    Channel.objects.update(status="disabled")
    assert phones.tell("busy") == 204 and phones.call.state == "failed"


def test_after_the_acknowledgement_nobody_is_woken_by_silence_or_by_a_busy_line(phones):
    phones.page()
    phones.scene.run()
    outbox.cancel([1], "acknowledged", phones.scene.now)
    phones.scene.pass_time(600)
    assert phones.tell("busy") == 204
    phones.scene.run(60)
    assert phones.account.messages == []


# ---- the receipt that comes first ------------------------------------------------------------------------------------------------------------


def test_a_receipt_that_comes_before_the_record_of_its_message_is_not_lost(phones):
    phones.page()
    notes = book.Book()
    notes.refresh(phones.scene.now)
    claimed = outbox.claim("me", phones.scene.now, outbox.Room(10), notes)
    results = [outbox.compose.send(one, phones.scene.now) for one in claimed]
    assert phones.tell("busy") == 204  # the call is busy, and we have not written yet that it was placed
    assert phones.call.state == "sending" and EarlyReceipt.objects.count() == 1
    assert outbox.early(phones.scene.now) == 0
    outbox.record("me", results, phones.scene.now)
    assert outbox.early(phones.scene.now) == 1
    assert phones.call.state == "failed" and "busy" in phones.call.reason
    assert not EarlyReceipt.objects.exists()
    phones.scene.run(1)
    assert len(phones.account.messages) == 1


def test_a_receipt_about_nobodys_message_goes_after_ten_minutes(phones):
    now = phones.scene.now
    assert not outbox.receipt(phones.voice.id, "CAforeign", "delivered", "", now)
    outbox.early(now + timedelta(minutes=9))
    assert EarlyReceipt.objects.count() == 1
    outbox.early(now + timedelta(minutes=11))
    assert not EarlyReceipt.objects.exists()


def test_a_provider_may_say_anything_in_its_reason(phones):
    phones.page()
    phones.scene.run()
    assert outbox.receipt(phones.voice.id, phones.account.calls[0]["sid"], "failed", "a\x00b\ud800" + "x" * 900, phones.scene.now)
    assert phones.call.reason.startswith("ab?xxx")
    with pytest.raises(ValueError, match="cannot say"):
        outbox.receipt(phones.voice.id, "x", "exploded", "", phones.scene.now)


def test_a_number_that_a_carrier_repeats_is_nobody_elses_to_read(phones):
    phones.page()
    phones.scene.run()
    reason = f"NACK/1280/+{PHONE[1:]} and {PHONE[1:]} are barred"
    assert outbox.receipt(phones.voice.id, phones.account.calls[0]["sid"], "failed", reason, phones.scene.now)
    kept = f"{phones.call.reason} {phones.call.log}"
    assert PHONE[1:] not in kept and "+150****0006" in kept


# ---- silence -----------------------------------------------------------------------------------------------------------------------------------


def test_a_call_of_which_nothing_is_heard_falls_back_after_three_minutes(phones):
    phones.page()
    phones.scene.run()
    phones.scene.pass_time(179)
    assert phones.account.messages == [] and phones.call.state == "sent"
    phones.scene.pass_time(2)
    assert (phones.call.state, phones.call.reason) == ("unknown", SILENT)
    assert len(phones.account.messages) == 1
    assert phones.tell("completed") == 204
    assert phones.call.state == "delivered", "late is better than never"


def test_a_clock_that_is_set_back_makes_no_silence_longer(phones):
    phones.page()
    phones.scene.run()
    sent = phones.scene.now
    back = timedelta(hours=1)
    outbox.turned_back(back, sent - back)
    assert (phones.call.fallback_at, phones.call.poll_at) == (sent + policy.SILENCE - back, sent + policy.POLL_LATER - back)


@pytest.mark.parametrize("how", ["told", "silent"])
def test_a_call_that_carried_several_pages_and_reached_nobody_falls_back_for_each(phones, how):
    Channel.objects.filter(id=phones.voice.id).update(limits={"per_minute": 1})
    for topic in (1, 2, 3):
        phones.scene.page(outbox.To(phones.voice.id, PHONE, phones.scene.lee.id), topic=topic, title=f"Incident {topic}")
        if topic == 1:
            phones.scene.run()
    phones.tell("completed")
    phones.scene.pass_time(75)
    assert len(phones.account.calls) == 2 and phones.account.words(-1)[0][1].startswith("2 incidents are waiting")
    calls = Delivery.objects.filter(channel=phones.voice, message_id=phones.account.calls[1]["sid"])
    assert sorted(row.state for row in calls) == ["bundled", "sent"]
    Delivery.objects.filter(fallback_of__isnull=False).delete()  # those of the minute's wait
    phones.account.messages.clear()
    if how == "told":
        phones.tell("no-answer")
        phones.scene.run(60)
    else:
        phones.scene.pass_time(182)
    assert {row.state for row in calls.all()} == {"failed" if how == "told" else "unknown"}
    assert Delivery.objects.filter(fallback_of__in=calls, channel=phones.sms).count() == 2


def test_silence_on_the_only_way_is_reported_upward(phones):
    Channel.objects.filter(id=phones.voice.id).update(fallback_kinds=[])
    ChannelHealth.objects.create(channel=phones.sms, last_success_at=phones.scene.now)
    phones.page()
    phones.scene.run()
    phones.scene.pass_time(181)
    assert phones.call.notification.exhausted_at is not None


def test_the_sandbox_rings_as_long_as_nobody_picks_up(phones):
    channel = Channel.objects.create(kind="sandbox_voice", name="play", fallback_kinds=["sms"])
    phones.scene.page(outbox.To(channel.id, f"member:{phones.scene.lee.id}", phones.scene.lee.id))
    phones.scene.pass_time(600)
    row = Delivery.objects.get(channel=channel)
    assert (row.state, row.fallback_at, row.poll_at) == ("sent", None, None)


def test_a_notice_by_phone_is_no_page_and_has_no_fallback(phones):
    phones.scene.page(outbox.To(phones.voice.id, PHONE, phones.scene.lee.id), event="closed", is_page=False)
    phones.scene.pass_time(600)
    assert phones.call.state == "sent" and phones.account.messages == []


# ---- asking ------------------------------------------------------------------------------------------------------------------------------------


def test_who_is_silent_is_asked_and_less_often_as_time_goes(phones):
    phones.page()
    phones.scene.run()
    sent, sid = phones.scene.now, phones.account.calls[0]["sid"]
    channels = [phones.voice.id, phones.sms.id]
    assert outbox.to_ask(channels, sent + policy.POLL_LATER - timedelta(seconds=1)) == {}
    asked = []
    while (at := phones.call.poll_at) is not None:
        assert outbox.to_ask(channels, at) == {phones.voice.id: [sid]}
        asked.append(round((at - sent).total_seconds()))
    assert asked[:4] == [15, 18, 22, 26] and 900 <= asked[-1] < 1200 and len(asked) < 30


def test_nobody_asks_about_what_was_reported(phones):
    phones.page()
    phones.scene.run()
    phones.tell("busy")
    assert outbox.to_ask([phones.voice.id], phones.scene.now + timedelta(seconds=60)) == {}


# ---- the door ----------------------------------------------------------------------------------------------------------------------------------


class Bell(Transport):
    """Says and answers what the play tells it to."""

    kind = "bell"
    label = "Bell"
    group = True
    plan: Any = None
    got: list[Callback] = []

    def send(self, message: Message, address: str) -> Receipt:
        return Receipt()

    def receive(self, callback: Callback) -> Heard:
        Bell.got.append(callback)
        if isinstance(Bell.plan, Exception):
            raise Bell.plan
        return Bell.plan


@pytest.fixture
def bell(db, monkeypatch) -> str:
    monkeypatch.setitem(transport.transports(), "bell", Bell)
    monkeypatch.setattr(Bell, "got", [])
    monkeypatch.setattr(Bell, "plan", Heard())
    callbacks._said.clear()
    return reverse("callback", args=[Channel.objects.create(kind="bell", name="b").callback_key])


def test_the_transport_sees_the_request_as_it_was_called(bell, client, settings):
    settings.BASE_URL = "https://oncall.example.com:8443"
    Bell.plan = Heard(status=202, body=b"<ok/>", content_type="text/xml")
    answer = client.put(bell + "/x/y?b=2&a=1", b"\xff\x00raw", content_type="application/octet-stream", headers={"X-Sign": "abc"})
    assert (answer.status_code, answer.content, answer["Content-Type"]) == (202, b"<ok/>", "text/xml")
    (got,) = Bell.got
    assert (got.method, got.url, got.body) == ("PUT", f"https://oncall.example.com:8443{bell}/x/y?b=2&a=1", b"\xff\x00raw")
    assert got.query == {"a": "1", "b": "2"} and got.headers["x-sign"] == "abc" and got.received_at.tzinfo is not None


@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "patch", "head", "options"])
@pytest.mark.parametrize(
    "path", ["/callback/nobodys-key-0000000000/", "/callback/nobodys-key-0000000000", "/callback/nobodys-key-0000000000/a/b?c=d"]
)
def test_an_unknown_key_is_always_answered_alike(db, client, method, path):
    answer = getattr(client, method)(path)
    assert (answer.status_code, answer.content) == (404, b"") and "Set-Cookie" not in answer


def test_a_channel_that_is_not_reported_to_is_like_an_unknown_one(db, client):
    channel = Channel.objects.create(kind="sandbox_group", name="g")
    answer = client.post(f"/callback/{channel.callback_key}/")
    assert (answer.status_code, answer.content) == (404, b"")
    Channel.objects.filter(id=channel.id).update(kind="gone")
    assert client.post(f"/callback/{channel.callback_key}/").status_code == 404


def test_csrf_and_sessions_are_none_of_its_business(bell):
    client = Client(enforce_csrf_checks=True)
    answer = client.post(bell, {"a": "b"})
    assert answer.status_code == 200 and not answer.cookies


@pytest.mark.parametrize(
    ("plan", "status"),
    [
        (PermissionError("wrong secret"), 403), (ValueError("secret detail"), 400), (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), 400),
        (KeyError("secret detail"), 400), (RecursionError(), 400),
    ],
)  # fmt: skip
def test_whatever_goes_wrong_is_no_failure_of_ours_and_says_nothing(bell, client, plan, status):
    Bell.plan = plan
    answer = client.post(bell, b"x", content_type="text/plain")
    assert (answer.status_code, answer.content) == (status, b"")


def test_refusals_are_a_line_a_minute(bell, client, caplog, monkeypatch):
    def said() -> list[str]:
        return [line.message for line in caplog.records if "refused" in line.message]

    Bell.plan = PermissionError("the signature does not hold")
    assert callbacks.QUIET == 60.0
    monkeypatch.setattr(callbacks, "QUIET", 3600.0)  # the 50 may take longer than a minute
    for _turn in range(50):
        client.post(bell)
    lines = said()
    assert len(lines) == 1 and "the signature does not hold" in lines[0] and bell not in caplog.text
    monkeypatch.setattr(callbacks, "QUIET", 0.0)
    client.post(bell)
    assert "49 more" in said()[-1]


def test_a_body_over_the_cap_is_not_read_and_one_at_it_is(bell, client):
    assert client.post(bell, b"x" * callbacks.MOST, content_type="text/plain").status_code == 200
    assert client.post(bell, b"x" * (callbacks.MOST + 1), content_type="text/plain").status_code == 413
    assert len(Bell.got) == 1


@pytest.mark.parametrize(
    "body", [b"", b"\x00" * 5000, b"\xff\xfe\xfd", b"[" * 100_000, b"a=1&" * 60_000, hashlib.sha512(b"x").digest() * 500]
)
@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", "text/plain; charset=klingon", ""]
)
def test_whatever_the_bytes_a_stranger_is_refused(phones, body, kind):
    for rest in ("", "%00/%ff/../?%00=%ff&" + "a=1&" * 500):
        answer = phones.client.generic("POST", f"/callback/{phones.voice.callback_key}/{rest}", body, content_type=kind)
        assert answer.status_code in (400, 403) and answer.content == b""


def test_a_press_on_a_message_is_not_told_that_it_worked(bell, client, caplog):
    Bell.plan = Heard((Command("ack", "ou_1"), Update("m1", "delivered")), body=b"done")
    answer = client.post(bell)
    assert (answer.status_code, answer.content) == (501, b"")
    assert "pressed ack" in caplog.text and "ou_1" not in caplog.text
    assert EarlyReceipt.objects.get().message_id == "m1", "what else it said counts"
    assert bell.split("/")[2] not in caplog.text


def test_without_a_database_the_provider_is_asked_to_come_again(bell, client, caplog, monkeypatch):
    def away(key: str) -> None:
        raise OperationalError("connection refused")

    monkeypatch.setattr(book, "by_callback_key", away)
    answer = client.post(bell)
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    assert bell.split("/")[2] not in caplog.text


def test_the_log_of_a_failed_request_does_not_hold_the_key(caplog):
    from flashduty.logs import WithoutLinks

    record = logging.LogRecord("django.request", logging.ERROR, "", 0, "%s: %s", ("Not Implemented", "/callback/Zm9vYmFyYmF6/x?y"), None)
    WithoutLinks().filter(record)
    assert record.getMessage() == "Not Implemented: /callback/…/x?y"
