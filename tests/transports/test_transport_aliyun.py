"""Alibaba Cloud voice and SMS against services as strict as the real ones, and the signature against the vendor's own signer."""

import json
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from alibabacloud_openapi_util.client import Client as Official

from channels_app import approved, http
from channels_app.http import DeliveryError, Http
from channels_app.transport import Callback, Polls, Receives
from channels_app.transports import aliyun
from channels_app.transports.aliyun import CODES, ENDED, AliyunSms, AliyunVoice, authorization, canonical_query
from tests.fakes.aliyun import KEY, SECRET, AliyunCloud, Template
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply, Server

PHONE, ABROAD = "+8613800000000", "+85291234567"
ACCEPTED = Reply(200, {"Code": "OK", "Message": "OK", "BizId": "9^0", "CallId": "1^2", "RequestId": "R"})
REFUSED = Reply(200, {"Code": "isv.AMOUNT_NOT_ENOUGH", "Message": "账户余额不足", "RequestId": "R"})
HOSTILE = "<@U1> @everyone <at id=all></at> *_[x](https://evil.example/a)_* 【仿冒】 🔥 ‮gnp.exe 10.0.0.5 db01.example.com:9090 93.5% $¥"


def sms_settings(base: str, **changes) -> dict:
    return {
        "access_key_id": KEY, "access_key_secret": SECRET, "sign_name": "演示", "template": "SMS_1001", "code_template": "SMS_CODE",
        "variables": {"title": "title", "level": "severity_name", "num": "num"}, "variable_limit": 35, "api_base": base, **changes,
    }  # fmt: skip


def voice_settings(base: str, **changes) -> dict:
    return {
        "access_key_id": KEY, "access_key_secret": SECRET, "template": "TTS_1001", "code_template": "TTS_CODE", "numbers": "+86 571 8888 1234",
        "variables": {"title": "title", "level": "severity_name"}, "variable_limit": 100, "api_base": base, **changes,
    }  # fmt: skip


CONTRACT = {
    kind: SimpleNamespace(stage=stage, ACCEPTED=ACCEPTED, REFUSED_IN_200=REFUSED, NEEDS_THE_BODY=True, ADDRESS=PHONE)
    for kind, stage in (("aliyun_sms", sms_settings), ("aliyun_voice", voice_settings))
}


@pytest.fixture
def cloud():
    with AliyunCloud(now=SENT_AT.timestamp()) as running:
        yield running


@pytest.fixture(scope="module")
def wire():
    """A server for long tables: one for all of their rows."""
    with Server() as running:
        yield running


def sms(cloud, **changes) -> AliyunSms:
    return AliyunSms(sms_settings(cloud.url, **changes), Http(allowed_hosts=[cloud.host]), "https://oncall.example.com/callback/k3y/")


def voice(cloud, **changes) -> AliyunVoice:
    return AliyunVoice(voice_settings(cloud.url, **changes), Http(allowed_hosts=[cloud.host]), "https://oncall.example.com/callback/k3y/")


def refused(channel, message=None, address=PHONE) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        channel.send(message or page(), address)
    assert SECRET not in caught.value.text
    return caught.value


def push(body: bytes, method="POST") -> Callback:
    return Callback(method, "https://oncall.example.com/callback/k3y/", {}, {"content-type": "application/json"}, body, SENT_AT)


# --- the signature -------------------------------------------------------------------------------------------------------------------------

VECTOR = {"PhoneNumbers": "13800000000", "SignName": "演示", "TemplateCode": "SMS_1", "TemplateParam": '{"code":"INC 1"}'}
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HEADERS = {
    "host": "dysmsapi.aliyuncs.com", "x-acs-action": "SendSms", "x-acs-version": "2017-05-25", "x-acs-date": "2023-11-14T22:13:20Z",
    "x-acs-signature-nonce": "demo-nonce-0001", "x-acs-content-sha256": EMPTY,
}  # fmt: skip


def test_the_signature_is_the_vendors():
    query = canonical_query(VECTOR)
    assert query == (
        "PhoneNumbers=13800000000&SignName=%E6%BC%94%E7%A4%BA&TemplateCode=SMS_1&TemplateParam=%7B%22code%22%3A%22INC%201%22%7D"
    )
    signed = "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version"
    signature = "8f2f0989201bdd75a24d786c4f2e0322d75fc347b2b522db9db016ec05d4647a"
    assert authorization("LTAIdemo", "demoAliSecret", query, HEADERS) == (
        f"ACS3-HMAC-SHA256 Credential=LTAIdemo,SignedHeaders={signed},Signature={signature}"
    )


@pytest.mark.parametrize("value", ["~-_.", "a b+c*d/e", "演示 100% &=?#", "(')!"])
def test_the_vendors_own_signer_says_the_same(value):
    request = SimpleNamespace(method="POST", pathname="/", query={**VECTOR, "TemplateParam": value}, headers=HEADERS)
    theirs = Official.get_authorization(request, "ACS3-HMAC-SHA256", EMPTY, KEY, SECRET)
    assert authorization(KEY, SECRET, canonical_query(request.query), HEADERS) == theirs


def test_the_fake_takes_what_the_vendors_own_signer_signs(cloud):
    """Else a transport and a fake with the same mistake would agree with each other."""
    params = {
        "PhoneNumbers": "13800000000",
        "SignName": "演示",
        "TemplateCode": "SMS_1001",
        "TemplateParam": '{"title":"a b~*","level":"x","num":"1"}',
    }
    headers = {**HEADERS, "host": cloud.host, "x-acs-date": SENT_AT.strftime("%Y-%m-%dT%H:%M:%SZ")}
    request = SimpleNamespace(method="POST", pathname="/", query=params, headers=headers)
    headers = {**headers, "Authorization": Official.get_authorization(request, "ACS3-HMAC-SHA256", EMPTY, KEY, SECRET)}
    assert requests.post(f"{cloud.url}/", params=params, headers=headers, timeout=5).json()["Code"] == "OK"
    again = requests.post(f"{cloud.url}/", params=params, headers=headers, timeout=5)
    assert (again.status_code, again.json()["Code"]) == (400, "SignatureNonceUsed")
    tampered = requests.post(f"{cloud.url}/", params={**params, "PhoneNumbers": "13900000000"}, headers=headers, timeout=5)
    assert tampered.json()["Code"] == "SignatureDoesNotMatch"


# --- what is sent ---------------------------------------------------------------------------------------------------------------------------


def test_an_sms_fills_the_template(cloud):
    receipt = sms(cloud).send(page(), PHONE)
    (sent,) = cloud.sent
    assert (sent.action, sent.phone, sent.template) == ("SendSms", "13800000000", "SMS_1001")
    assert (sent.values["title"], sent.values["num"]) == ("Database is down", "A1B2C3")
    assert sent.values["level"] == "严重", "templates for the mainland are Chinese, whatever the reader's language"
    assert (receipt.message_id, receipt.state, receipt.detail) == (sent.message_id, "sent", "")


def test_a_call_is_read_out_twice_and_shows_our_number(cloud):
    receipt = voice(cloud).send(page(), PHONE)
    (sent,) = cloud.sent
    assert (sent.action, sent.phone, sent.params["PlayTimes"], sent.params["CalledShowNumber"]) == (
        "SingleCallByTts",
        "13800000000",
        "2",
        "057188881234",
    )
    assert receipt.message_id == f"{sent.message_id}/{int(SENT_AT.timestamp()):08x}"
    voice(cloud, numbers="").send(page(), "+8613900000000")
    assert "CalledShowNumber" not in cloud.sent[1].params, "the vendor's public pool"


def test_phones_elsewhere_have_a_template_of_their_own(cloud):
    assert "outside of the mainland" in refused(sms(cloud), address=ABROAD).text
    sms(cloud, template_elsewhere="SMS_2002").send(page(language="en"), ABROAD)
    assert (cloud.sent[0].phone, cloud.sent[0].template, cloud.sent[0].values["level"]) == ("85291234567", "SMS_2002", "Critical")
    error = refused(sms(cloud, template="SMS_2002"))
    assert error.config and "exchange the two" in error.text
    assert "mainland (+86)" in refused(sms(cloud, template="", template_elsewhere="SMS_2002")).text


def test_a_code_is_sent_alone(cloud):
    code = page(event="code", title="", subject="", text="", num="", incidents=(), severity="", context={"event": "code", "code": "314159"})
    sms(cloud).send(code, PHONE)
    voice(cloud).send(code, PHONE)
    assert [(one.template, one.values) for one in cloud.sent] == [("SMS_CODE", {"code": "314159"}), ("TTS_CODE", {"code": "314159"})]
    error = refused(sms(cloud, code_template=""), code)
    assert error.permanent and "template for verification codes" in error.text


def test_several_incidents_are_named_in_one_message(cloud):
    one = page().incidents[0]
    two = page(incidents=(one, {**one, "title": "Disk full", "num": "D4E5F6"}), context={"event": "bundle", "left": 1})
    sms(cloud, variables={"title": "title:60", "level": "count", "num": "num"}).send(two, PHONE)
    values = cloud.sent[0].values
    assert (values["level"], values["num"]) == ("3", "A1B2C3, D4E5F6") and "Database is down" in values["title"]


def test_words_of_the_context(cloud):
    context = {
        "workspace": {"id": 1, "name": "支付"}, "recipient": {"name": "Li", "language": "zh-hans", "time_zone": "Asia/Shanghai"},
        "start_time": int(SENT_AT.timestamp()), "alert_count": 4,
    }  # fmt: skip
    cloud.account.templates["SMS_3"] = Template(("a", "b", "c", "d", "e", "f"), longest=40)
    words = {"a": "workspace", "b": "name", "c": "time", "d": "count", "e": "path", "f": "event"}
    sms(cloud, template="SMS_3", variables=words).send(page(context=context), PHONE)
    values = cloud.sent[0].values
    assert [values[name] for name in "abcde"] == ["支付", "Li", "2023-11-15 06:13", "4", "i/a1b2c3"] and values["f"]
    sms(cloud, template="SMS_3", variables=words).send(page(url="https://oncall.example.com/i/" + "x" * 90), PHONE)
    assert cloud.sent[1].values["e"] == "-", "half a link leads nowhere"


@pytest.mark.parametrize("title", [HOSTILE, "长" * 5000, "word " * 2000, "\x00\n\t", "[P1] cpu@db-1 {load}", "é" * 40])
def test_any_title_becomes_a_variable_that_is_taken(cloud, title):
    sms(cloud).send(page(title=title), PHONE)
    voice(cloud).send(page(title=title), PHONE)
    for one in cloud.sent:
        assert one.values["title"].strip()


def test_hostile_words_stay_words():
    assert approved.clean(HOSTILE, "sms") == "(@U1) @everyone (at id=all)(/at) _(x)( (仿冒) gnp-exe 10-0-0-5 db01-example-com:9090 93.5%"
    spoken = approved.clean(HOSTILE, "voice")
    assert not set(spoken) & set("#/:-%$¥[]【】@<>*_()") and "10 0 0 5 db01 example com 9090 93.5 percent" in spoken


@pytest.mark.parametrize(
    ("text", "sms_words", "spoken"),
    [
        ("请看example.com挂了", "请看example-com挂了", "请看example com挂了"),
        ("10.0.0.5.", "10-0-0-5.", "10 0 0 5."),
        ("主机10.0.0.5宕机 93.5%", "主机10-0-0-5宕机 93.5%", "主机10 0 0 5宕机 93.5 percent"),
        ("li@example.com v1.2.3", "li@example-com v1.2.3", "li example com v1.2.3"),
        ("HTTPS://Evil.Example/x?y#z done www.evil.example/a", "done", "done"),
        ("a-" * 200_000, "a-" * 2500, " ".join("a" * 2500)),
        ("\u202etxt.exe\u2066 \u200b\ufe0f", "txt-exe", "txt exe"),
    ],
)
def test_what_vendors_take_for_a_link_is_taken_apart(text, sms_words, spoken):
    began = time.thread_time()
    assert (approved.clean(text, "sms"), approved.clean(text, "voice")) == (sms_words, spoken)
    assert time.thread_time() - began < 0.5


def test_shortened_where_a_word_ends(cloud):
    receipt = sms(cloud).send(page(title="Payments gateway answers 503 to every second request"), PHONE)
    assert cloud.sent[0].values["title"] == "Payments gateway answers 503 to…" and receipt.detail == "shortened: title"
    assert approved.shorten("abcdefghij", 6, "sms") == "abcdef" and approved.shorten("a" * 40, 35, "voice") == "a" * 35


def test_a_variable_that_the_account_may_not_have_so_long_is_tried_shorter(cloud):
    cloud.account.templates["SMS_1001"].longest = 12
    receipt = sms(cloud).send(page(title="Payments gateway answers 503"), PHONE)
    assert len(cloud.sent[0].values["title"]) <= 12 and receipt.detail == "shortened: title"
    cloud.account.templates["SMS_1001"].longest = 3
    assert "longest variable" in refused(sms(cloud)).text


# --- refusals --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_advice_and_never_success(wire, code):
    no = CODES[code]
    for status, kind in ((200, sms), (200, voice), (400, sms)):
        wire.answer = Reply(status, {"Code": code, "Message": "", "RequestId": "R"})
        error = refused(kind(wire))
        assert (error.permanent, error.config, error.retry_after, error.blocked, error.left) == (
            no.permanent,
            no.config,
            no.wait,
            no.blocked,
            False,
        )
        assert str(no.text) in error.text and code in error.text


@pytest.mark.parametrize(
    ("said", "permanent", "wait", "blocked"),
    [("触发分钟级流控Permits:1", False, 60, 60), ("触发小时级流控Permits:5", False, 3600, 3600), ("触发天级流控Permits:40", True, None, None), ("业务级流控,partnerId=1", False, 60, 60)],
)  # fmt: skip
def test_a_frequency_limit_waits_or_goes_another_way(wire, said, permanent, wait, blocked):
    wire.answer = Reply(200, {"Code": "isv.BUSINESS_LIMIT_CONTROL", "Message": said})
    error = refused(voice(wire))
    assert (error.permanent, error.retry_after, error.blocked) == (permanent, wait, blocked)


def test_a_second_call_within_a_minute_waits(cloud):
    voice(cloud).send(page(), PHONE)
    assert refused(voice(cloud)).blocked == 60
    cloud.now += 60
    voice(cloud).send(page(sent_at=SENT_AT + timedelta(seconds=60)), PHONE)
    assert [(limit.count, limit.seconds, limit.scope) for limit in AliyunVoice.limits] == [
        (1, 60, "address"),
        (5, 3600, "address"),
        (20, 86400, "address"),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"access_key_secret": "another-secret"}, "secret anew"),
        ({"access_key_id": "LTAInobody"}, "access key does not exist"),
        ({"template": "SMS_404"}, "template does not exist"),
        ({"sign_name": "别家"}, "signature name"),
        ({"variables": {"title": "title"}}, "other variables"),
    ],
)
def test_what_an_operator_must_mend(cloud, change, words):
    error = refused(sms(cloud, **change))
    assert error.permanent and error.config and words in error.text and cloud.sent == []


def test_a_wrong_clock_and_an_empty_account(cloud):
    cloud.now += 16 * 60
    assert "clock" in refused(sms(cloud)).text
    cloud.now -= 16 * 60
    cloud.account.balance = 0
    error = refused(voice(cloud))
    assert error.config and "top it up" in error.text


@pytest.mark.parametrize("phone", ["13800000000", "+0123456789", "li@example.com", ""])
def test_what_is_no_phone_is_refused_before_anything_leaves(wire, phone):
    wire.seen.clear()
    assert refused(sms(wire), address=phone).permanent and wire.seen == []


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(200, {"Code": "isv.SOMETHING_NEW"}), True, False),
        (Reply(200, {"Code": "isp.SOMETHING_NEW"}), False, False),
        (Reply(200, {"Code": "Throttling.Api"}), False, False),
        (Reply(503, {"Code": "Throttling.User"}), False, False),
        (Reply(200, {"Message": "OK"}), False, True),
        (Reply(200, b"[]"), False, True),
        (Reply(404, {"Code": "InvalidAction.NotFound"}), True, False),
        (Reply(500, {"Code": "OK"}), False, False),
    ],
)
def test_answers_nobody_expected(wire, reply, permanent, left):
    wire.answer = reply
    error = refused(sms(wire))
    assert (error.permanent, error.left) == (permanent, left)


# --- receipts --------------------------------------------------------------------------------------------------------------------------------


def test_a_call_that_was_picked_up_is_delivered(cloud):
    channel = voice(cloud)
    receipt = channel.send(page(), PHONE)
    (sent,) = cloud.sent
    for body in (cloud.call_report(sent, "200102"), cloud.voice_report(sent, "200000"), cloud.voice_report(sent, "200001")):
        heard = channel.receive(push(body))
        assert [(one.message_id, one.state) for one in heard.said] == [(receipt.message_id, "delivered")]
        assert (heard.status, json.loads(heard.body)["code"]) == (200, 0) and heard.content_type.startswith("application/json")
    assert channel.receive(push(cloud.call_report(sent, "200201"))).said == (), "it rings"


@pytest.mark.parametrize("status", [*ENDED, "299999"])
def test_a_call_that_was_not_says_why(wire, status):
    wire.answer = ACCEPTED
    channel = voice(wire)
    receipt = channel.send(page(), PHONE)
    out_id = parse_qs(urlsplit(wire.seen[-1].path).query)["OutId"][0]
    body = json.dumps([{"call_id": "1^2", "out_id": out_id, "status_code": status, "status_msg": ""}]).encode()
    (update,) = channel.receive(push(body)).said
    assert update.message_id == receipt.message_id
    assert update.state == "failed" and status in update.reason and str(ENDED.get(status, "the call failed")) in update.reason


def test_the_networks_announcement_says_more_than_the_state(cloud):
    channel = voice(cloud)
    channel.send(page(), PHONE)
    (update,) = channel.receive(push(cloud.voice_report(cloud.sent[0], "200005", early_media_code="200010"))).said
    assert "switched off" in update.reason


def test_an_sms_that_arrived_and_one_that_did_not(cloud):
    channel = sms(cloud)
    receipt = channel.send(page(), PHONE)
    (sent,) = cloud.sent
    (update,) = channel.receive(push(cloud.sms_report(sent, success=True))).said
    assert (update.message_id, update.state) == (receipt.message_id, "delivered")
    (update,) = channel.receive(push(cloud.sms_report(sent, success=False, err_code="MK:0005", err_msg="停机"))).said
    assert update.state == "failed" and "suspended" in update.reason
    (update,) = channel.receive(push(cloud.sms_report(sent, success=False, err_code="XX:1", err_msg="黑名单【x】"))).said
    assert update.reason == "黑名单(x) (XX:1)"


def test_a_receipt_that_is_not_of_ours_is_not_heard(cloud):
    channel = voice(cloud)
    channel.send(page(), PHONE)
    (sent,) = cloud.sent
    ours, theirs = cloud.voice_report(sent, "200002"), cloud.voice_report(sent, "200002", out_id="6553f0c0abcdef0")
    with pytest.raises(PermissionError):
        channel.receive(push(theirs))
    both = json.dumps(json.loads(ours) + json.loads(theirs)).encode()
    assert len(channel.receive(push(both)).said) == 1, "the push is of the whole account"
    with pytest.raises(PermissionError):
        sms(cloud).receive(push(ours))
    assert channel.receive(push(b"[]")).said == (), "the console's test of the address"


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[1]", b'"x"', b"[" * 100_000])
def test_a_push_that_makes_no_sense(wire, body):
    with pytest.raises(ValueError):
        voice(wire).receive(push(body))
    with pytest.raises(ValueError):
        voice(wire).receive(push(b"[]", method="GET"))


def test_without_a_callback_calls_are_asked_for(cloud):
    cloud.now = time.time()
    channel = voice(cloud)
    now = datetime.fromtimestamp(cloud.now, UTC)
    receipts = [channel.send(page(sent_at=now), phone) for phone in (PHONE, "+8613900000000", "+8613700000000")]
    cloud.calls = {cloud.sent[0].message_id: "200003", cloud.sent[1].message_id: "200001"}
    found = channel.poll([*(receipt.message_id for receipt in receipts), "junk", "a/b"])
    assert [(one.message_id, one.state) for one in found] == [(receipts[0].message_id, "failed"), (receipts[1].message_id, "delivered")]
    assert "nobody answered" in found[0].reason
    answers = [cloud.answer]
    cloud.answer = lambda seen: answers.pop()(seen) if answers else Reply(503)
    assert len(channel.poll([receipt.message_id for receipt in receipts])) == 1, "what one question brought is not lost by the next"
    with pytest.raises(DeliveryError):
        channel.poll([receipts[0].message_id])
    assert isinstance(channel, Polls) and isinstance(channel, Receives) and not isinstance(sms(cloud), Polls)


# --- settings --------------------------------------------------------------------------------------------------------------------------------


def test_settings_that_are_taken():
    form = AliyunSms.Settings(data={**sms_settings(""), "sign_name": "【演示】", "variable_limit": ""})
    assert form.is_valid(), form.errors
    assert (form.cleaned_data["sign_name"], form.cleaned_data["variable_limit"], form.cleaned_data["api_base"]) == (
        "演示",
        35,
        "https://dysmsapi.aliyuncs.com",
    )
    form = AliyunVoice.Settings(data=voice_settings(""))
    assert (
        form.is_valid()
        and form.cleaned_data["api_base"] == "https://dyvmsapi.aliyuncs.com"
        and form.cleaned_data["code_variable"] == "code"
    )
    assert AliyunVoice.Settings().fields["variables"].initial != AliyunSms.Settings().fields["variables"].initial


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"variables": ["title"]}, "variables", "names of the template's variables"),
        ({"variables": {"1": "title"}}, "variables", "names of the template's variables"),
        ({"variables": {"a": "headline"}}, "variables", "none of our words"),
        ({"variables": {"a": 1}}, "variables", "none of our words"),
        ({"variables": {"a": "title:0"}}, "variables", "none of our words"),
        ({"variables": {"a": "url"}}, "variables", "write path"),
        ({"variables_elsewhere": {"a": "x"}}, "variables_elsewhere", "none of our words"),
        ({"template": "", "code_template": ""}, "template", "Enter a template"),
        ({"sign_name": ""}, "sign_name", "approved signature"),
        ({"code_variable": "${code}"}, "code_variable", "name alone"),
        ({"api_base": "http://dysmsapi.aliyuncs.com"}, "api_base", "https"),
        ({"api_base": "dysmsapi.aliyuncs.com"}, "api_base", "without a path"),
    ],
)
def test_settings_that_are_not(change, field, words):
    errors = AliyunSms.check({**sms_settings(""), **change})
    assert field in errors and words in " ".join(errors[field])
    assert AliyunSms.check({**sms_settings(""), "variables_elsewhere": {"a": "url"}}) == {}


def test_a_preview_says_that_the_text_is_not_sent_as_it_stands():
    assert "approved template" in AliyunSms.measure("x") and aliyun.VERSION == "2017-05-25"


def test_a_vendor_that_is_slow_to_find_variables_too_long_does_not_get_five_times_the_time(wire):
    wire.answer = lambda _seen: (time.sleep(0.2), Reply(200, {"Code": "isv.PARAM_LENGTH_LIMIT", "Message": "too long"}))[1]
    channel = AliyunSms(sms_settings(wire.url, variable_limit=100), Http(allowed_hosts=[wire.host]))
    began, asked = time.monotonic(), len(wire.seen)
    with http.deadline(0.5):  # as the outbox sets it, of 8 s
        error = refused(channel)
    assert time.monotonic() - began < 5 and len(wire.seen) - asked <= 3 and not error.permanent
