"""Tencent Cloud voice and SMS against services as strict as the real ones, which the vendor's own client calls as well."""

import json
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
from tencentcloud.common.common_client import CommonClient
from tencentcloud.common.credential import Credential
from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile

from channels_app.http import DeliveryError, Http
from channels_app.transport import Callback, Polls, Receives
from channels_app.transports.tencent import CODES, ENDED, TencentSms, TencentVoice, authorization
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply, Server
from tests.fakes.tencent import ID, KEY, Template, TencentCloud
from tests.transports.test_transport_aliyun import HOSTILE

PHONE, ABROAD = "+8613800000000", "+85291234567"


def sms_settings(base: str, **changes) -> dict:
    return {
        "secret_id": ID, "secret_key": KEY, "app_id": "1400006666", "sign_name": "演示", "template": "1001", "code_template": "1100",
        "variables": ["title", "severity_name", "num"], "variable_limit": 35, "api_base": base, **changes,
    }  # fmt: skip


def voice_settings(base: str, **changes) -> dict:
    return {
        "secret_id": ID, "secret_key": KEY, "app_id": "1400006666", "template": "4356", "code_template": "4400",
        "variables": ["title", "severity_name"], "variable_limit": 100, "api_base": base, **changes,
    }  # fmt: skip


def state(code: str) -> dict:
    return {
        "Response": {
            "SendStatusSet": [{"SerialNo": "5000:1", "PhoneNumber": PHONE, "Fee": 0, "Code": code, "Message": ""}],
            "RequestId": "R",
        }
    }


def error(code: str) -> dict:
    return {"Response": {"Error": {"Code": code, "Message": ""}, "RequestId": "R"}}


CONTRACT = {
    "tencent_sms": SimpleNamespace(
        stage=sms_settings, ACCEPTED=Reply(200, state("Ok")), NEEDS_THE_BODY=True, ADDRESS=PHONE,
        REFUSED_IN_200=Reply(200, state("FailedOperation.InsufficientBalanceInSmsPackage")),
    ),
    "tencent_voice": SimpleNamespace(
        stage=voice_settings, NEEDS_THE_BODY=True, ADDRESS=PHONE,
        ACCEPTED=Reply(200, {"Response": {"SendStatus": {"CallId": "1-2", "SessionContext": ""}, "RequestId": "R"}}),
        REFUSED_IN_200=Reply(200, error("FailedOperation.InsufficientBalanceInVoicePackage")),
    ),
}  # fmt: skip


@pytest.fixture
def cloud():
    with TencentCloud(now=SENT_AT.timestamp()) as running:
        yield running


@pytest.fixture(scope="module")
def wire():
    """A server for long tables: one for all of their rows."""
    with Server() as running:
        yield running


def sms(cloud, **changes) -> TencentSms:
    return TencentSms(sms_settings(cloud.url, **changes), Http(allowed_hosts=[cloud.host]))


def voice(cloud, **changes) -> TencentVoice:
    return TencentVoice(voice_settings(cloud.url, **changes), Http(allowed_hosts=[cloud.host]))


def refused(channel, message=None, address=PHONE) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        channel.send(message or page(), address)
    assert KEY not in caught.value.text
    return caught.value


def push(body, method="POST") -> Callback:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Callback(method, "https://oncall.example.com/callback/k3y/", {}, {"content-type": "application/json"}, raw, SENT_AT)


# --- the signature -------------------------------------------------------------------------------------------------------------------------


def test_the_signature_is_the_vendors():
    body = (
        b'{"PhoneNumberSet":["+8613800000000"],"SmsSdkAppId":"1400000000","SignName":"Demo","TemplateId":"1","TemplateParamSet":["INC-1"]}'
    )
    assert authorization("AKIDdemo", "demoSecretKey", "sms", "sms.tencentcloudapi.com", 1_700_000_000, body) == (
        "TC3-HMAC-SHA256 Credential=AKIDdemo/2023-11-14/sms/tc3_request, SignedHeaders=content-type;host, "
        "Signature=0b572d790c0f3e028eaa3698d2d91db8714689a4a543e3b7b5e0a70de7516f93"
    )


def official(cloud, service: str, version: str, key: str = KEY) -> CommonClient:
    profile = ClientProfile(httpProfile=HttpProfile(protocol="http", endpoint=cloud.host, reqTimeout=5))
    return CommonClient(service, version, Credential(ID, key), "ap-guangzhou", profile=profile)


def test_the_fake_takes_what_the_vendors_own_client_sends(cloud):
    """Else a transport and a fake with the same mistake would agree with each other."""
    cloud.now = time.time()
    body = {
        "PhoneNumberSet": [PHONE],
        "SmsSdkAppId": "1400006666",
        "SignName": "演示",
        "TemplateId": "1001",
        "TemplateParamSet": ["a", "b", "c"],
    }
    answer = official(cloud, "sms", "2021-01-11").call_json("SendSms", body)
    assert answer["Response"]["SendStatusSet"][0]["Code"] == "Ok"
    call = {"TemplateId": "4356", "TemplateParamSet": ["x", "y"], "CalledNumber": PHONE, "VoiceSdkAppid": "1400006666"}
    assert official(cloud, "vms", "2020-09-02").call_json("SendTtsVoice", call)["Response"]["SendStatus"]["CallId"]
    with pytest.raises(TencentCloudSDKException, match="SignatureFailure"):
        official(cloud, "sms", "2021-01-11", key="another").call_json("SendSms", body)


# --- what is sent ---------------------------------------------------------------------------------------------------------------------------


def test_an_sms_fills_the_template_in_order(cloud):
    receipt = sms(cloud).send(page(), PHONE)
    (sent,) = cloud.sent
    assert (sent.action, sent.phone, sent.template) == ("SendSms", PHONE, "1001")
    assert sent.values == ["Database is down", "严重", "A1B2C3"], "templates for the mainland are Chinese, whatever the reader's language"
    assert sent.body["SessionContext"] == page().delivery_id
    assert (receipt.message_id, receipt.state, receipt.detail) == (sent.message_id, "sent", "")


def test_a_call_is_read_out_twice(cloud):
    receipt = voice(cloud).send(page(), PHONE)
    (sent,) = cloud.sent
    assert (sent.phone, sent.values, sent.body["PlayTimes"], receipt.message_id) == (
        PHONE,
        ["Database is down", "严重"],
        2,
        sent.message_id,
    )


def test_phones_elsewhere_have_a_template_and_a_signature_of_their_own(cloud):
    assert "outside of the mainland" in refused(sms(cloud), address=ABROAD).text
    sms(cloud, template_elsewhere="2002", variables_elsewhere=["title", "severity", "url"]).send(page(), ABROAD)
    (sent,) = cloud.sent
    assert (sent.phone, sent.template, "SignName" in sent.body) == (ABROAD, "2002", False)
    assert sent.values == ["Database is down", "Critical", "https://oncall.example.com/i/a1b2c3"]
    mixed = refused(sms(cloud, template="2002"))
    assert mixed.config and "elsewhere was used for a phone of the mainland" in mixed.text


def test_a_code_is_sent_alone(cloud):
    code = page(event="code", title="", subject="", text="", num="", incidents=(), severity="", context={"event": "code", "code": "314159"})
    sms(cloud).send(code, PHONE)
    voice(cloud).send(code, PHONE)
    assert [(one.template, one.values) for one in cloud.sent] == [("1100", ["314159"]), ("4400", ["314159"])]
    assert "template for verification codes" in refused(voice(cloud, code_template=""), code).text
    assert refused(sms(cloud), page(event="code", context={})).permanent
    wrong = refused(sms(cloud, template="1100", variables=["title"]))
    assert wrong.config and "verification codes" in wrong.text


@pytest.mark.parametrize("title", [HOSTILE, "长" * 5000, "word " * 2000, "\x00\n\t", "[P1] cpu@db-1 {load}"])
def test_any_title_becomes_a_variable_that_is_taken(cloud, title):
    sms(cloud).send(page(title=title), PHONE)
    voice(cloud, variable_limit=300).send(page(title=title), PHONE)
    assert all(value.strip() for one in cloud.sent for value in one.values) and len(cloud.sent) == 2


def test_a_personal_account_takes_twelve_characters(cloud):
    cloud.account.templates["1001"].longest = 12
    receipt = sms(cloud).send(page(title="Payments gateway answers 503"), PHONE)
    assert cloud.sent[0].values[0] == "Payments…" and receipt.detail == "shortened: title"


def test_all_variables_together_stay_below_the_limit_of_the_text(cloud):
    cloud.account.templates["4357"] = Template(2)
    receipt = voice(cloud, template="4357", variables=["title", "text"], variable_limit=300).send(
        page(title="长" * 300, text="文" * 300), PHONE
    )
    assert sum(map(len, cloud.sent[0].values)) <= 250 and receipt.detail == "shortened: title, text"


# --- refusals --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_advice_and_never_success(wire, code):
    no = CODES[code]
    for channel, body in ((sms(wire), state(code)), (sms(wire), error(code)), (voice(wire), error(code))):
        wire.answer = Reply(200, body)
        said = refused(channel)
        assert (said.permanent, said.config, said.retry_after, said.blocked, said.left) == (
            no.permanent,
            no.config,
            no.wait,
            no.blocked,
            no.left,
        )
        assert str(no.text) in said.text and code in said.text


@pytest.mark.parametrize(
    ("code", "permanent", "config", "wait"),
    [
        ("RequestLimitExceeded", False, False, 5),
        ("RequestLimitExceeded.UinLimitExceeded", False, False, 5),
        ("LimitExceeded", False, False, 60),
        ("LimitExceeded.SomethingNew", False, False, 60),
        ("AuthFailure.SomethingNew", True, True, None),
        ("UnauthorizedOperation.SomethingNew", True, True, None),
        ("InternalError", False, False, None),
        ("InvalidParameterValue.SomethingNew", True, False, None),
        ("UnsupportedOperation", True, False, None),
        ("", False, False, None),
    ],
)
def test_codes_of_a_family(wire, code, permanent, config, wait):
    wire.answer = Reply(200, error(code))
    said = refused(voice(wire))
    assert (said.permanent, said.config, said.retry_after, said.left) == (permanent, config, wait, False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret_key": "another-secret"}, "SecretKey anew"),
        ({"secret_id": "AKIDnobody"}, "key does not exist"),
        ({"app_id": "1400000001"}, "SdkAppId"),
        ({"template": "404"}, "template was not approved"),
        ({"sign_name": "别家"}, "signature is not approved"),
        ({"variables": ["title"]}, "other variables"),
    ],
)
def test_what_an_operator_must_mend(cloud, change, words):
    said = refused(sms(cloud, **change))
    assert said.permanent and said.config and words in said.text and cloud.sent == []


def test_a_wrong_clock_and_a_package_that_is_used_up(cloud):
    cloud.now += 301
    assert "clock" in refused(voice(cloud)).text
    cloud.now -= 301
    cloud.account.package = 0
    for channel in (sms(cloud), voice(cloud)):
        said = refused(channel)
        assert said.config and "package is used up" in said.text


def test_frequency_limits_wait_or_go_another_way(cloud):
    voice(cloud).send(page(), PHONE)
    assert (refused(voice(cloud)).blocked, TencentVoice.limits[0].count, TencentVoice.limits[0].seconds) == (60, 1, 30)
    sms(cloud).send(page(), PHONE)
    again = refused(sms(cloud))
    assert (again.permanent, again.retry_after, again.blocked) == (False, 30, 30)
    for number in range(2, 11):
        cloud.now += 30
        sms(cloud).send(page(num=str(number), sent_at=SENT_AT + timedelta(seconds=30 * (number - 1))), PHONE)
    full = refused(sms(cloud), page(num="11", sent_at=SENT_AT + timedelta(seconds=270)))
    assert full.permanent and "raised in the vendor's console" in full.text
    assert [(limit.count, limit.seconds) for limit in TencentSms.limits] == [(10, 86_400)]


@pytest.mark.parametrize("phone", ["13800000000", "+0123456789", "li@example.com", ""])
def test_what_is_no_phone_is_refused_before_anything_leaves(wire, phone):
    wire.seen.clear()
    assert refused(sms(wire), address=phone).permanent and wire.seen == []


@pytest.mark.parametrize(
    "body", [{}, {"Response": []}, {"Response": {}}, {"Response": {"SendStatusSet": []}}, {"Response": {"SendStatusSet": [{}]}}, {"Response": {"SendStatusSet": [1]}}]
)  # fmt: skip
def test_an_answer_without_a_result_is_never_success(wire, body):
    wire.answer = Reply(200, body)
    for channel in (sms(wire), voice(wire)):
        said = refused(channel)
        assert (said.permanent, said.left) == (False, True)


# --- reports ---------------------------------------------------------------------------------------------------------------------------------


def prompt(result: str, call="c-1") -> dict:
    times = {"accept_time": "1470197211", "end_calltime": "1470197221", "start_calltime": "1470197196"}
    return {
        "voiceprompt_callback": {
            "result": result,
            "call_from": "",
            "callid": call,
            "fee": "1",
            "mobile": "13800000000",
            "nationcode": "86",
            **times,
        }
    }


def failure(code, reason="空号") -> dict:
    said = {
        "call_from": "075583763333",
        "callid": "c-1",
        "failure_code": code,
        "failure_reason": reason,
        "mobile": "13800000000",
        "nationcode": "86",
    }
    return {"voice_failure_callback": said}


def test_a_call_that_was_picked_up_is_delivered(wire):
    key = {"voicekey_callback": {"callid": "c-1", "keypress": "1", "mobile": "13800000000", "nationcode": "86", "call_from": ""}}
    for body in (prompt("0"), key, {"voicecode_callback": prompt("0")["voiceprompt_callback"]}):
        heard = voice(wire).receive(push(body))
        assert [(one.message_id, one.state) for one in heard.said] == [("c-1", "delivered")]
        assert (heard.status, json.loads(heard.body)) == (200, {"result": 0, "errmsg": "OK"}) and heard.content_type.startswith(
            "application/json"
        )


@pytest.mark.parametrize("code", [*ENDED, "99"])
def test_a_call_that_was_not_says_why(wire, code):
    (update,) = voice(wire).receive(push(failure(int(code), "其他【原因】"))).said
    assert update.state == "failed" and str(ENDED.get(code, "其他(原因)")) in update.reason and f"({code})" in update.reason


def test_a_call_that_ended_without_a_reason(wire):
    (one,), (two,) = voice(wire).receive(push(prompt("1"))).said, voice(wire).receive(push(prompt("2"))).said
    assert (one.state, two.state) == ("failed", "failed") and "nobody answered" in one.reason and "failed" in two.reason


def test_an_sms_that_arrived_and_one_that_did_not(cloud):
    channel = sms(cloud)
    receipt = channel.send(page(), PHONE)
    report = {"user_receive_time": "2015-10-17 08:03:04", "nationcode": "86", "mobile": "13800000000", "sid": receipt.message_id}
    heard = channel.receive(
        push([{**report, "report_status": "SUCCESS", "errmsg": "DELIVRD", "description": "用户短信送达成功"},
              {**report, "report_status": "FAIL", "errmsg": "MK:0001", "description": "空号"},
              {**report, "report_status": "FAIL", "errmsg": "ZZ:9", "description": "黑名单"}])
    )  # fmt: skip
    assert [(one.message_id, one.state) for one in heard.said] == [
        (receipt.message_id, state) for state in ("delivered", "failed", "failed")
    ]
    assert [one.reason for one in heard.said] == ["", "the number does not exist (MK:0001)", "黑名单 (ZZ:9)"]
    assert json.loads(heard.body) == {"result": 0, "errmsg": "OK"}


def test_what_members_write_back_is_no_state(wire):
    reply = {"extend": "1", "mobile": "13800000000", "nationcode": "86", "sign": "演示", "text": "T", "time": 1457336869}
    assert sms(wire).receive(push(reply)).said == ()


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[1]", b'"x"', b"[" * 100_000, b'[{"sid":""}]', b'{"voiceprompt_callback":{}}'])
def test_a_push_that_makes_no_sense(wire, body):
    for channel in (sms(wire), voice(wire)):
        with pytest.raises(ValueError):
            channel.receive(push(body))
        with pytest.raises(ValueError):
            channel.receive(push(prompt("0"), method="GET"))


def test_without_a_callback_states_are_fetched(cloud):
    cloud.now = time.time()
    one = {
        "CountryCode": "86",
        "SubscriberNumber": "13800000000",
        "PhoneNumber": PHONE,
        "UserReceiveTime": 1620734188,
        "SessionContext": "",
    }
    cloud.states = [
        {**one, "SerialNo": "5000:1", "ReportStatus": "SUCCESS", "Description": "DELIVRD"},
        {**one, "SerialNo": "5000:2", "ReportStatus": "FAIL", "Description": "UNDELIV"},
        {**one, "SerialNo": "5000:3", "ReportStatus": "FAIL", "Description": "内容拦截"},
    ]
    assert sms(cloud).poll(["5000:1"]) == () and cloud.seen == [], "only where the vendor has activated it"
    found = sms(cloud, pull=True).poll(["5000:1"])
    assert [(update.message_id, update.state) for update in found] == [("5000:1", "delivered"), ("5000:2", "failed"), ("5000:3", "failed")]
    assert "switched off" in found[1].reason and found[2].reason == "内容拦截"
    assert list(sms(cloud, pull=True).poll(["5000:1"])) == []
    assert isinstance(sms(cloud), Polls) and isinstance(sms(cloud), Receives) and not isinstance(voice(cloud), Polls)


# --- settings --------------------------------------------------------------------------------------------------------------------------------


def test_settings_that_are_taken():
    form = TencentSms.Settings(data={**sms_settings(""), "sign_name": "【演示】", "variable_limit": "", "region": ""})
    assert form.is_valid(), form.errors
    cleaned = form.cleaned_data
    assert (cleaned["sign_name"], cleaned["variable_limit"], cleaned["region"], cleaned["pull"]) == ("演示", 35, "ap-guangzhou", False)
    assert cleaned["api_base"] == "https://sms.tencentcloudapi.com"
    assert TencentVoice.check({**voice_settings("https://vms.intl.tencentcloudapi.com"), "numbers": "+86 755 8376 3333"}) == {}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"variables": {"1": "title"}}, "variables", "in the order"),
        ({"variables": ["headline"]}, "variables", "none of our words"),
        ({"variables": ["title"] * 21}, "variables", "at most twenty"),
        ({"variables": ["url"]}, "variables", "write path"),
        ({"app_id": "AKID"}, "app_id", "digits alone"),
        ({"region": "Guangzhou!"}, "region", "ap-guangzhou"),
        ({"sign_name": ""}, "sign_name", "approved signature"),
        ({"api_base": "http://sms.tencentcloudapi.com"}, "api_base", "https"),
        ({"variable_limit": 3}, "variable_limit", "4"),
    ],
)
def test_settings_that_are_not(change, field, words):
    errors = TencentSms.check({**sms_settings(""), **change})
    assert words in " ".join(errors[field])


def test_a_preview_says_that_the_text_is_not_sent_as_it_stands():
    assert "approved template" in TencentVoice.measure("x")
