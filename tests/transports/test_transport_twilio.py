"""Twilio against an account as strict as the real one, and its signatures against Twilio's own library."""

import hashlib
from datetime import UTC, datetime
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlencode

import pytest
from twilio.request_validator import RequestValidator

from channels_app import sms
from channels_app.http import DeliveryError, Http, is_public
from channels_app.transport import Callback, Polls, Receives, Update
from channels_app.transports.twilio import CODES, TwilioSms, TwilioVoice, signature_holds, spoken
from tests.fakes.message import page
from tests.fakes.server import Reply, Server
from tests.fakes.twilio import SID, TOKEN, FakeTwilio

PHONE = "+15005550006"
HOOK = "https://oncall.example.com/callback/Zm9vYmFyYmF6cXV4/"
SETTINGS = {"account_sid": SID, "auth_token": TOKEN, "numbers": "+1 415 555 0100\nCN: +86 571 8888 1234"}


def stage(base: str) -> dict:
    return {**SETTINGS, "api_base": base}


CONTRACT = {
    kind: SimpleNamespace(
        stage=stage,
        ADDRESS=PHONE,
        ACCEPTED=Reply(201, {"sid": "CA1", "status": "queued", "error_code": None}),
        REFUSED_IN_200=Reply(200, {"code": 21211, "message": "Invalid 'To' Phone Number", "status": 400}),
        NEEDS_THE_BODY=True,
    )
    for kind in ("twilio_voice", "twilio_sms")
}


@pytest.fixture(scope="module")
def running():
    with FakeTwilio() as account:
        yield account


@pytest.fixture
def account(running):
    running.__dict__.update(stopped=set(), calls=[], messages=[], forms=[], seen=[], token=TOKEN, answer=running._judge, numbers=("+14155550100", "+8657188881234"))  # fmt: skip
    return running


def voice(account, hook=HOOK, **settings) -> TwilioVoice:
    return TwilioVoice({**stage(account.url), **settings}, Http(allowed_hosts=[account.host]), hook)


def text(account, hook=HOOK, **settings) -> TwilioSms:
    return TwilioSms({**stage(account.url), **settings}, Http(allowed_hosts=[account.host]), hook)


def refused(channel, message=None, to=PHONE) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        channel.send(message or page(), to)
    assert TOKEN not in caught.value.text and to not in caught.value.text
    return caught.value


# ---- a call ----------------------------------------------------------------------------------------------------------------------------


def test_a_call_says_its_text_twice_in_the_persons_language(account):
    receipt = voice(account).send(page(text="您有一个严重故障", language="zh-hans"), PHONE)
    assert (receipt.state, receipt.message_id) == ("sent", account.calls[0]["sid"])
    assert account.words() == [("zh-CN", "您有一个严重故障")] * 2
    form = account.forms[0]
    assert [value for name, value in form if name == "StatusCallbackEvent"] == ["answered", "completed"]
    assert dict(form)["StatusCallback"] == HOOK and "MachineDetection" not in dict(form)


def test_each_region_is_called_from_its_number(account):
    voice(account).send(page(), "+8613800000000")
    voice(account).send(page(), PHONE)
    assert [call["from"] for call in account.calls] == ["+8657188881234", "+14155550100"]
    error = refused(voice(account, numbers="CN: +86 571 8888 1234"))
    assert error.permanent and error.config and "no number" in error.text


@pytest.mark.parametrize(
    "words",
    ["<Say>&amp; \"quotes\" 'x' ]]> </Say><Hangup/>", "a\x00b\x0bc\ud800d\ufffe", "😀 \u202e RTL", "字" * 10_000, "<" * 10_000, "word & " * 2_000, ""],
    ids=["markup", "control", "unicode", "long", "all escaped", "words", "empty"],
)  # fmt: skip
def test_any_text_is_spoken_as_words(account, words):
    voice(account).send(page(text=words, subject="Database is down"), PHONE)
    first, second = account.words()
    assert first == second and first[1]
    if "Hangup" in words:
        assert first[1] == words


def test_a_long_text_ends_at_a_word():
    tree = spoken("alarm number one " * 500, "en")
    assert 3900 < len(tree) <= 4000 and tree.endswith(("alarm</Say></Response>", "number</Say></Response>", "one</Say></Response>"))


def test_twilio_is_given_no_address_it_cannot_call(account):
    for hook in ("http://oncall.example.com/callback/x/", "https://localhost/callback/x/", "https://10.0.0.5/callback/x/", "https://oncall.lan/callback/x/", ""):  # fmt: skip
        voice(account, hook).send(page(), PHONE)
        assert "StatusCallback" not in dict(account.forms[-1])
    assert is_public("https://8.8.8.8:8443/x") and not is_public("https://[fd00::1]/x")


def test_a_callback_address_that_twilio_refuses_does_not_stop_the_call(account):
    hook = "https://oncall.example.com/callback/x/#rc=9&a=b"
    assert voice(account, hook).send(page(), PHONE).message_id
    assert len(account.seen) == 2 and "StatusCallback" not in dict(account.forms[-1])


def test_machine_detection_reports_to_the_same_door(account):
    voice(account, machine_detection=True).send(page(), PHONE)
    form = dict(account.forms[0])
    assert (form["MachineDetection"], form["AsyncAmd"], form["AsyncAmdStatusCallback"]) == ("Enable", "true", HOOK)


# ---- an SMS ----------------------------------------------------------------------------------------------------------------------------


def test_an_sms_is_plain_and_knows_its_parts(account):
    receipt = text(account).send(page(text="“Disk” – 95 % full…"), PHONE)
    assert account.messages[0]["body"] == '"Disk" - 95 % full...' and receipt.detail == ""
    assert TwilioSms.measure("“Disk”").startswith("1 SMS part (GSM-7, 6 of 160")


@pytest.mark.parametrize("words", ["disk full " * 1000, "磁盘已满" * 2500, "😀" * 3000, "€" * 3000])
def test_a_long_sms_is_shortened_and_keeps_its_link(account, words):
    receipt = text(account).send(page(text=words), PHONE)
    body = account.messages[0]["body"]
    assert body.endswith("... https://oncall.example.com/i/a1b2c3") and sms.segments(body).count == 6
    assert receipt.detail == "shortened to 6 parts"
    text(account, most_parts=10).send(page(text=words), PHONE)
    assert sms.segments(account.messages[1]["body"]).count == 10


def test_a_messaging_service_chooses_the_sender(account):
    service = "MG" + "a" * 32
    text(account, numbers="", messaging_service=service).send(page(), PHONE)
    assert dict(account.forms[0])["MessagingServiceSid"] == service
    assert refused(text(account, numbers="")).config


# ---- refusals --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "channel", "to", "config", "words"),
    [
        ({"token": "another_token_0123456789"}, voice, PHONE, True, "do not belong together"),
        ({"numbers": ()}, voice, PHONE, True, "check the channel's numbers"),
        ({}, voice, "+99912345678", True, "Geo permissions"),
        ({}, text, "+99912345678", True, "Geo permissions"),
        ({"stopped": {PHONE}}, text, PHONE, False, "START"),
        ({"numbers": ()}, text, PHONE, True, "not one of this account"),
    ],
)
def test_what_the_account_refuses_comes_with_advice(account, change, channel, to, config, words):
    account.__dict__.update(change)
    error = refused(channel(account), to=to)
    assert (error.permanent, error.config, error.left) == (True, config, False)
    assert words in error.text
    assert account.calls == account.messages == []


@pytest.mark.parametrize("status", [200, 201, 400])
@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_is_a_refusal_whatever_the_status(account, code, status):
    account.answer = Reply(status, {"code": code, "message": f"To: {PHONE}, token {TOKEN}", "status": 400})
    error = refused(text(account))
    sentence, permanent, config = CODES[code]
    assert (error.permanent, error.config, error.left) == (permanent, config, False)
    assert str(sentence) in error.text and str(code) in error.text


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(400, {"code": 99999, "message": "new"}), True, False),
        (Reply(500, {"code": 20500, "message": "internal"}), False, False),
        (Reply(429, {"code": 99999, "message": "slow"}, {"Retry-After": "3"}), False, False),
        (Reply(201, {"status": "queued"}), False, True),
        (Reply(201, {"sid": 7}), False, True),
    ],
)  # fmt: skip
def test_answers_nobody_expected(account, reply, permanent, left):
    account.answer = reply
    error = refused(voice(account))
    assert (error.permanent, error.left) == (permanent, left)
    assert error.retry_after == (3 if reply.status == 429 else None)


def test_a_phone_is_e164(account):
    for to in ("5005550006", "+0123456789", "+1", "+1500 555 0006", "", "+١٢٣٤٥٦٧٨٩"):
        with pytest.raises(DeliveryError) as caught:
            voice(account).send(page(), to)
        assert caught.value.permanent
    assert account.seen == []


# ---- signatures ------------------------------------------------------------------------------------------------------------------------


def heard(url: str, body: bytes, signature: str) -> Callback:
    query = dict(parse_qsl(url.partition("?")[2]))
    return Callback("POST", url, query, {"x-twilio-signature": signature}, body, datetime(2023, 11, 14, tzinfo=UTC))


def holds(callback: Callback, token: str) -> bool:
    return signature_holds(callback, parse_qsl(callback.body.decode(), keep_blank_values=True), token)


def test_the_signature_is_twilios():
    # Computed with another implementation from invented keys (the recipe of Twilio's "Security" page).
    fields = {"CallSid": "CA00000000000000000000000000000001", "Digits": "1", "From": "+15005550006", "To": "+8613800000000"}
    url = "https://oncall.example.com/twilio/gather?n=42"
    assert holds(heard(url, urlencode(fields).encode(), "9mPbyemUrK5FrT3eBgu5GWR0nzw="), "demo_auth_token")
    assert not holds(heard(url + "1", urlencode(fields).encode(), "9mPbyemUrK5FrT3eBgu5GWR0nzw="), "demo_auth_token")
    body = b'{"a":1}'
    url = f"https://oncall.example.com/twilio/json?bodySHA256={hashlib.sha256(body).hexdigest()}"
    assert holds(heard(url, body, "+BfgpVnNzs3yU1YRFdnZo3UWmQA="), "demo_auth_token")
    assert not holds(heard(url, b'{"a":2}', "+BfgpVnNzs3yU1YRFdnZo3UWmQA="), "demo_auth_token")


@pytest.mark.parametrize(
    "url", [HOOK, HOOK + "?a=b&c=%20d", "https://oncall.example.com:8443/callback/x/", "https://oncall.example.com:443/callback/x/"]
)
@pytest.mark.parametrize(
    "fields", [{}, {"CallSid": "CA1", "Caller": "+1 (5)", "空": "é&=+", "Empty": ""}, {"To": ["b", "a", "b"], "A": ["1"]}]
)
def test_twilios_own_library_and_ours_agree(url, fields):
    class Many(dict):
        def getlist(self, name):
            return self[name] if isinstance(self[name], list) else [self[name]]

    validator = RequestValidator(TOKEN)
    signature = validator.compute_signature(url, Many(fields))
    callback = heard(url, urlencode(fields, doseq=True).encode(), signature)
    assert holds(callback, TOKEN)
    assert not holds(callback, "another")
    assert not holds(heard(url, callback.body + b"&More=1", signature), TOKEN)
    assert not holds(heard(url, callback.body, ""), TOKEN) and not holds(heard(url, callback.body, "é"), TOKEN)


# ---- what became of it -----------------------------------------------------------------------------------------------------------------


def report(channel, url=HOOK, token=TOKEN, **fields) -> list[Update]:
    signature = RequestValidator(token).compute_signature(url, fields)
    answer = channel.receive(heard(url, urlencode(fields).encode(), signature))
    assert (answer.status, answer.body) == (204, b"")
    return list(answer.said)


@pytest.mark.parametrize(
    ("status", "extra", "state", "words"),
    [
        ("queued", {}, None, ""), ("ringing", {}, None, ""), ("initiated", {}, None, ""), ("something-new", {}, None, ""),
        ("in-progress", {}, "delivered", ""), ("completed", {}, "delivered", ""), ("completed", {"AnsweredBy": "human"}, "delivered", ""),
        ("completed", {"AnsweredBy": "machine_start"}, "failed", "Voice mail"), ("completed", {"AnsweredBy": "fax"}, "failed", "machine"),
        ("busy", {}, "failed", "busy"), ("no-answer", {}, "failed", "Nobody answered"), ("canceled", {}, "failed", "cancelled"),
        ("failed", {}, "failed", "could not be put through"), ("failed", {"SipResponseCode": "404"}, "failed", "404"),
        ("failed", {"ErrorCode": "32017"}, "failed", "refuses calls from our number"),
    ],
)  # fmt: skip
def test_what_became_of_a_call(account, status, extra, state, words):
    said = report(voice(account), CallSid="CA7", CallStatus=status, **extra)
    assert [(update.message_id, update.state) for update in said] == ([("CA7", state)] if state else [])
    assert not said or words in said[0].reason


def test_with_machine_detection_a_call_is_judged_by_who_picked_up(account):
    channel = voice(account, machine_detection=True)
    assert report(channel, CallSid="CA7", CallStatus="in-progress") == []
    assert report(channel, CallSid="CA7", CallStatus="completed") == []
    for by, state in (("human", "delivered"), ("unknown", "delivered"), ("machine_start", "failed"), ("machine_end_beep", "failed")):
        assert [one.state for one in report(channel, CallSid="CA7", AccountSid=SID, AnsweredBy=by)] == [state]


@pytest.mark.parametrize(
    ("status", "code", "state", "words"),
    [
        ("sent", "", None, ""), ("queued", "", None, ""), ("delivered", "", "delivered", ""), ("read", "", "delivered", ""),
        ("undelivered", "30003", "failed", "switched off"), ("failed", "30007", "failed", "spam"), ("failed", "4242", "failed", "4242"),
        ("undelivered", "", "failed", "not delivered"), ("failed", "9" * 5000, "failed", "not delivered"),
    ],
)  # fmt: skip
def test_what_became_of_an_sms(account, status, code, state, words):
    said = report(text(account), MessageSid="SM7", MessageStatus=status, ErrorCode=code)
    assert [(update.message_id, update.state) for update in said] == ([("SM7", state)] if state else [])
    assert not said or words in said[0].reason


@pytest.mark.parametrize("channel", [voice, text])
def test_a_stranger_says_nothing_and_nonsense_makes_no_sense(account, channel):
    with pytest.raises(PermissionError):
        report(channel(account), token="another_token", CallSid="CA7", CallStatus="completed")
    for body in (b"", b"\xff\xfe", b"a" * 1000, b"=&=&%zz"):
        with pytest.raises(PermissionError):
            channel(account).receive(heard(HOOK, body, "x"))
    with pytest.raises(ValueError):
        report(channel(account), Hello="world")
    with pytest.raises(ValueError):
        channel(account).receive(heard(HOOK, b"a=1&" * 5000, "x"))


def test_twilio_is_asked_where_it_cannot_call(account):
    channel = voice(account, machine_detection=True)
    for _turn in range(4):
        channel.send(page(), PHONE)
    ids = [call["sid"] for call in account.calls]
    for call, status, by in zip(
        account.calls, ("ringing", "completed", "completed", "busy"), (None, "machine_start", None, None), strict=True
    ):
        call.update(status=status, answered_by=by)
    said = channel.poll([*ids, "CAunknown"])
    assert [(update.message_id, update.state) for update in said] == [(ids[1], "failed"), (ids[2], "delivered"), (ids[3], "failed")]
    text(account).send(page(), PHONE)
    account.messages[0].update(status="undelivered", error_code=30005)
    assert [(update.state, "does not know" in update.reason) for update in text(account).poll([account.messages[0]["sid"]])] == [
        ("failed", True)
    ]
    account.token = "another_token_0123456789"
    with pytest.raises(DeliveryError, match="do not belong together"):
        channel.poll(ids)
    before = len(account.seen)
    assert channel.poll([]) == [] and len(account.seen) == before
    assert isinstance(channel, Polls) and isinstance(channel, Receives)


# ---- settings --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"account_sid": "SK" + "a" * 32}, "account_sid", "API key"),
        ({"auth_token": "short"}, "auth_token", "whole auth token"),
        ({"numbers": ""}, "numbers", "required"),
        ({"numbers": "415 555 0100"}, "numbers", "country code"),
        ({"api_base": "http://api.twilio.com"}, "api_base", "https"),
        ({"api_base": "ftp://x"}, "api_base", "https://api.twilio.com"),
    ],
)
def test_settings_that_cannot_work_say_what_to_enter(change, field, words):
    assert words in " ".join(TwilioVoice.check({**SETTINGS, **change})[field])


def test_settings_that_work():
    form = TwilioVoice.Settings(data={**SETTINGS, "account_sid": f" {SID} "})
    assert form.is_valid() and form.cleaned_data["api_base"] == "https://api.twilio.com" and form.cleaned_data["account_sid"] == SID
    assert "messaging service" in " ".join(TwilioSms.check({**SETTINGS, "numbers": ""})["__all__"])
    assert TwilioSms.check({**SETTINGS, "numbers": "", "messaging_service": "MG" + "0" * 32}) == {}


def test_without_a_token_nobody_is_twilio(account):
    """The key of a signature that anybody can make."""
    for token in ("", None):
        with pytest.raises(PermissionError):
            report(text(account, auth_token=token), token="", MessageSid="SM1", MessageStatus="delivered")


def test_a_time_out_of_twilios_own_is_an_unknown_end():
    with Server(Reply(504, {"code": 20504, "message": "gateway timeout", "status": 504})) as server:
        assert refused(TwilioSms(stage(server.url) | {"api_base": server.url}, Http(allowed_hosts=[server.host]))).left
