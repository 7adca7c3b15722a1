"""HTTP 200 but no: every refusal that a provider hides in a success, of all kinds in one table, and what must become of the message.

Whoever takes one of these for a success loses pages without a trace, as most tools in this field do. To add a kind, add its rows to ROWS:
(kind, what the provider answers with its 200, what must follow, words that the sentence for the operator must have). What may follow:

    RETRY       it goes again after a while, by itself
    wait(n)     it goes again in n seconds and not before
    SPLIT       it goes again at once, shorter; when that is refused too it has failed for good
    ADVICE      it has failed for good, and an operator must do what the sentence says
    STOP        it has failed for good: this message, or this address, will never be taken

The answer may be a dict (JSON), bytes, or a whole Reply. A kind whose test module says that its provider refuses in a 200 (REFUSED_IN_200, see
tests/test_transport_contract.py) and that has no row here fails the last test."""

import importlib
import json
from dataclasses import dataclass
from typing import Any

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transport import get, transports
from tests.fakes.dingtalk import SECURITY
from tests.fakes.message import page
from tests.fakes.server import Reply, Server


@dataclass(frozen=True)
class Then:
    """What must follow a refusal."""

    permanent: bool
    config: bool = False
    seconds: float | None = None
    again: bool = False  # at once, shorter

    def __str__(self) -> str:
        return next((name for name, value in NAMES.items() if value == self), f"wait {self.seconds:g} s" if self.seconds else "?")


RETRY = Then(permanent=False)
SPLIT = Then(permanent=True, again=True)
ADVICE = Then(permanent=True, config=True)
STOP = Then(permanent=True)
NAMES = {"retry": RETRY, "split": SPLIT, "advice": ADVICE, "stop": STOP}


def wait(seconds: float) -> Then:
    return Then(permanent=False, seconds=seconds)


def dingtalk(code: int, said: str = "whatever it says") -> dict[str, Any]:
    return {"errcode": code, "errmsg": said}


def wecom(code: int, said: str = "whatever it says") -> dict[str, Any]:
    return {"errcode": code, "errmsg": f"{said}, hint: [1647424338252370220001484], from ip: 203.0.113.7"}


def feishu(code: int, said: str = "whatever it says") -> dict[str, Any]:
    return {"code": code, "data": {}, "msg": said}


def aliyun(code: str, said: str = "whatever it says") -> dict[str, Any]:
    return {"Code": code, "Message": said, "RequestId": "CC89A90C-978F-46AC-B80D-54738371E7CA"}


def tencent(code: str) -> dict[str, Any]:
    return {"Response": {"Error": {"Code": code, "Message": "whatever it says"}, "RequestId": "ed93f3cb-f35e-473f-b9f3-0d451b8b79c6"}}


def tencent_state(code: str) -> dict[str, Any]:
    """The API took the request, and the one phone in it was refused."""
    state = {"SerialNo": "", "PhoneNumber": "+8613800000000", "Fee": 0, "SessionContext": "", "Code": code, "Message": "whatever it says"}
    return {"Response": {"SendStatusSet": [state], "RequestId": "ed93f3cb-f35e-473f-b9f3-0d451b8b79c6"}}


def telegram(code: int, said: str, **parameters: int) -> dict[str, Any]:
    return {"ok": False, "error_code": code, "description": said} | ({"parameters": parameters} if parameters else {})


def discord(code: int) -> dict[str, Any]:
    return {"message": "whatever it says", "code": code}


def google(status: str) -> dict[str, Any]:
    return {"error": {"code": 400, "message": "whatever it says", "status": status}}


def mattermost(code: str) -> dict[str, Any]:
    return {"id": code, "message": "whatever it says", "detailed_error": "", "request_id": "ig3n7qehnbdwtpdcpezotaspwc", "status_code": 400}


def twilio(code: int) -> dict[str, Any]:
    return {"code": code, "message": "whatever it says", "status": 400}


ROWS: list[tuple[str, Any, Then, str]] = [
    # DingTalk group bot. The second wording of each cause of 310000 is today's.
    *[("dingtalk", dingtalk(310000, said), ADVICE, "keyword in the channel's settings") for said in SECURITY["keyword"]],
    *[("dingtalk", dingtalk(310000, said), ADVICE, "clock") for said in SECURITY["timestamp"]],
    *[("dingtalk", dingtalk(310000, said), ADVICE, "sign secret") for said in SECURITY["sign"]],
    *[("dingtalk", dingtalk(310000, said), ADVICE, "calls from 203.0.113.7") for said in SECURITY["ip"]],
    ("dingtalk", dingtalk(310000, "something new"), ADVICE, "compare keyword, sign secret and IP list"),
    ("dingtalk", {"errcode": "310000", "errmsg": "keywords not in content"}, ADVICE, "keyword"),
    ("dingtalk", dingtalk(130101, "send too fast, exceed 20 times per minute"), wait(600), "ten minutes"),
    ("dingtalk", {"status": 1111, "wait": 5, "source": "x5", "punish": "deny", "uuid": "24ce64f68ff5dc05"}, wait(600), "ten minutes"),
    ("dingtalk", dingtalk(410100), wait(60), "slows this bot down"),
    ("dingtalk", dingtalk(660026, "sending too many messages per minute"), wait(60), "too many messages"),
    ("dingtalk", dingtalk(90030, "webhook over limit"), wait(3600), "allowance"),
    ("dingtalk", dingtalk(-1), RETRY, "busy"),
    ("dingtalk", dingtalk(460101, "message too long, exceed 20000 bytes"), SPLIT, "20,000 bytes"),
    ("dingtalk", dingtalk(400101), ADVICE, "paste the new webhook address"),
    ("dingtalk", dingtalk(300001, "token is not exist"), ADVICE, "paste the new webhook address"),
    ("dingtalk", dingtalk(300005, "token is not exist"), ADVICE, "paste the new webhook address"),
    ("dingtalk", dingtalk(40035, "缺少参数 access_token"), ADVICE, "access_token"),
    ("dingtalk", dingtalk(43002), ADVICE, "POST"),
    ("dingtalk", dingtalk(400102), ADVICE, "switch it on"),
    ("dingtalk", dingtalk(400106), ADVICE, "add it again"),
    ("dingtalk", dingtalk(400013), ADVICE, "another group"),
    ("dingtalk", dingtalk(400105), STOP, "kind of message"),
    ("dingtalk", dingtalk(430101), STOP, "link"),
    ("dingtalk", dingtalk(430102), STOP, "text"),
    ("dingtalk", dingtalk(430103), STOP, "picture"),
    ("dingtalk", dingtalk(430104), STOP, "unsafe"),
    ("dingtalk", dingtalk(987654, "a code of tomorrow"), RETRY, "a code of tomorrow"),
    # Feishu and Lark group bot. Older installations answer with StatusCode alone.
    ("feishu", feishu(11232, "frequency limited psm[lark.oapi.app_platform_runtime]appID[1500]"), wait(60), "too many messages"),
    ("feishu", feishu(9499, "Bad Request"), SPLIT, "larger than 20 KB"),
    ("feishu", feishu(19001, "param invalid: incoming webhook access token invalid"), ADVICE, "paste the new address"),
    ("feishu", feishu(19021, "sign match fail or timestamp is not within one hour from current time"), ADVICE, "clock"),
    ("feishu", feishu(19022, "Ip Not Allowed"), ADVICE, "IP list"),
    ("feishu", feishu(19024, "Key Words Not Found"), ADVICE, "keyword"),
    ("feishu", {"StatusCode": 19024, "StatusMessage": "Key Words Not Found"}, ADVICE, "keyword"),
    ("feishu", feishu(987654, "a code of tomorrow"), RETRY, "a code of tomorrow"),
    # WeCom group bot. Three codes may mean that it is too long.
    ("wecom", wecom(45009, "api freq out of limit"), wait(60), "20 messages in a minute"),
    ("wecom", wecom(45033), wait(5), "same moment"),
    ("wecom", wecom(-1, "system busy"), RETRY, "busy"),
    ("wecom", wecom(6000), RETRY, "busy"),
    ("wecom", wecom(93000, "invalid webhook url"), ADVICE, "paste the new address"),
    ("wecom", wecom(93000, "Invalid input : content exceed max length. invalid Request Parameter"), SPLIT, "4,096 bytes"),
    ("wecom", wecom(93004), ADVICE, "switch it on"),
    ("wecom", wecom(93008), ADVICE, "add it again"),
    ("wecom", wecom(40008), STOP, "kind of message"),
    ("wecom", wecom(40058), STOP, "not as WeCom wants it"),
    ("wecom", wecom(40058, "markdown.content exceed max length 4096. Invalid input invalid Request Parameter"), SPLIT, "4,096 bytes"),
    ("wecom", wecom(44004, "empty content"), STOP, "template"),
    ("wecom", wecom(45002), SPLIT, "4,096 bytes"),
    ("wecom", wecom(40058, "markdown.content is invalid. Warning: wrong json format"), STOP, "not as WeCom wants it"),
    ("wecom", wecom(987654, "a code of tomorrow"), RETRY, "a code of tomorrow"),
    # Alibaba Cloud: the frequency limit tells in its words which one it is. The tests of the transport go through all of its codes.
    ("aliyun_sms", aliyun("isv.BUSINESS_LIMIT_CONTROL", "触发分钟级流控Permits:1"), wait(60), "in a minute"),
    ("aliyun_sms", aliyun("isv.BUSINESS_LIMIT_CONTROL", "触发小时级流控Permits:5"), wait(3600), "in an hour"),
    ("aliyun_sms", aliyun("isv.BUSINESS_LIMIT_CONTROL", "触发天级流控Permits:40"), STOP, "in a day"),
    ("aliyun_sms", aliyun("isp.SYSTEM_ERROR"), RETRY, "a fault at the vendor's"),
    ("aliyun_sms", aliyun("isv.MOBILE_NUMBER_ILLEGAL"), STOP, "correct it in the member's contact details"),
    ("aliyun_sms", aliyun("isv.TEMPLATE_MISSING_PARAMETERS"), ADVICE, "compare their names"),
    ("aliyun_sms", aliyun("isv.SMS_TEMPLATE_ILLEGAL"), ADVICE, "compare its code"),
    ("aliyun_sms", aliyun("isv.SMS_SIGNATURE_ILLEGAL"), ADVICE, "signature name"),
    ("aliyun_sms", aliyun("isv.PARAM_LENGTH_LIMIT"), STOP, "longest variable"),
    ("aliyun_sms", aliyun("isv.PARAM_NOT_SUPPORT_URL"), STOP, "link"),
    ("aliyun_sms", aliyun("isv.BLACK_KEY_CONTROL_LIMIT"), STOP, "forbidden word"),
    ("aliyun_sms", aliyun("isv.AMOUNT_NOT_ENOUGH"), ADVICE, "top it up"),
    ("aliyun_sms", aliyun("isv.DAY_LIMIT_CONTROL"), ADVICE, "raise it there"),
    ("aliyun_sms", aliyun("isv.SOMETHING_OF_TOMORROW"), STOP, "SOMETHING_OF_TOMORROW"),
    ("aliyun_voice", aliyun("isv.BUSINESS_LIMIT_CONTROL", "业务级流控,partnerId=1,prodId=2"), wait(60), "in a minute"),
    ("aliyun_voice", aliyun("isv.CALLED_NUMBER_ONCE_BUSY"), wait(60), "another call"),
    ("aliyun_voice", aliyun("isv.OUT_OF_SERVICE"), ADVICE, "top it up"),
    ("aliyun_voice", aliyun("isv.TTS_TEMPLATE_ILLEGAL"), ADVICE, "compare its code"),
    ("aliyun_voice", aliyun("isv.DISPLAY_NUMBER_ILLEGAL"), ADVICE, "public pool"),
    ("aliyun_voice", aliyun("isp.SOMETHING_OF_TOMORROW"), RETRY, "SOMETHING_OF_TOMORROW"),
    # Tencent Cloud refuses the request, or the phone in a request that it took. The tests of the transport go through all of its codes.
    ("tencent_sms", tencent_state("LimitExceeded.PhoneNumberThirtySecondLimit"), wait(30), "30 seconds"),
    ("tencent_sms", tencent_state("LimitExceeded.PhoneNumberOneHourLimit"), wait(3600), "in an hour"),
    ("tencent_sms", tencent_state("LimitExceeded.PhoneNumberDailyLimit"), STOP, "in a day"),
    ("tencent_sms", tencent_state("LimitExceeded.AppDailyLimit"), ADVICE, "raise it"),
    ("tencent_sms", tencent_state("FailedOperation.InsufficientBalanceInSmsPackage"), ADVICE, "buy another"),
    ("tencent_sms", tencent_state("FailedOperation.SignatureIncorrectOrUnapproved"), ADVICE, "signature is not approved"),
    ("tencent_sms", tencent_state("FailedOperation.TemplateIncorrectOrUnapproved"), ADVICE, "compare it with the console"),
    ("tencent_sms", tencent_state("FailedOperation.PhoneNumberInBlacklist"), STOP, "block list"),
    ("tencent_sms", tencent_state("FailedOperation.ContainSensitiveWord"), STOP, "forbidden word"),
    ("tencent_sms", tencent_state("InvalidParameterValue.IncorrectPhoneNumber"), STOP, "correct it in the member's contact details"),
    ("tencent_sms", tencent_state("InvalidParameterValue.TemplateParameterLengthLimit"), STOP, "longest variable"),
    ("tencent_sms", tencent_state("InvalidParameterValue.ProhibitedUseUrlInTemplateParameter"), STOP, "link"),
    ("tencent_sms", tencent("UnauthorizedOperation.RequestIpNotInWhitelist"), ADVICE, "allow list"),
    ("tencent_sms", tencent("AuthFailure.SignatureFailure"), ADVICE, "SecretKey anew"),
    ("tencent_sms", tencent("InternalError.RequestTimeException"), ADVICE, "clock"),
    ("tencent_sms", tencent("InternalError.OtherError"), RETRY, "a fault at the vendor's"),
    ("tencent_sms", tencent("InvalidParameterValue.SomethingOfTomorrow"), STOP, "SomethingOfTomorrow"),
    ("tencent_voice", tencent("LimitExceeded.DeliveryFrequencyLimit"), wait(60), "limit can be raised"),
    ("tencent_voice", tencent("RequestLimitExceeded"), wait(5), "too many requests"),
    ("tencent_voice", tencent("FailedOperation.InsufficientBalanceInVoicePackage"), ADVICE, "buy another"),
    ("tencent_voice", tencent("FailedOperation.PhonenumberUnappliedOrExpired"), ADVICE, "buy or renew"),
    ("tencent_voice", tencent("UnauthorizedOperation.ServiceSuspendDueToArrears"), ADVICE, "in arrears"),
    # Telegram says no with a status of its own; a proxy may make a 200 of it.
    ("telegram", telegram(429, "Too Many Requests: retry after 35", retry_after=35), wait(35), "no more messages"),
    ("telegram", telegram(500, "Internal Server Error"), RETRY, "fault of its own"),
    ("telegram", telegram(400, "Bad Request: message is too long"), SPLIT, "too long"),
    ("telegram", telegram(403, "Forbidden: bot was kicked from the supergroup chat"), ADVICE, "add it again"),
    ("telegram", telegram(403, "Forbidden: bot is not a member of the channel chat"), ADVICE, "as an administrator"),
    ("telegram", telegram(403, "Forbidden: the group chat was deleted"), ADVICE, "remove this chat"),
    ("telegram", telegram(400, "Bad Request: chat not found"), ADVICE, "check the id"),
    ("telegram", telegram(400, "Bad Request: group chat was upgraded to a supergroup chat"), ADVICE, "new id"),
    ("telegram", telegram(400, "Bad Request: not enough rights to send text messages to the chat"), ADVICE, "right to send"),
    ("telegram", telegram(400, "Bad Request: TOPIC_CLOSED"), ADVICE, "topic is closed"),
    ("telegram", telegram(401, "Unauthorized"), ADVICE, "check the token"),
    ("telegram", telegram(404, "Not Found"), ADVICE, "check the token"),
    ("telegram", telegram(400, "Bad Request: something of tomorrow"), STOP, "something of tomorrow"),
    # Slack answers with one word; whatever is not "ok" is no success.
    *[("slack", word.encode(), SPLIT, word) for word in ("invalid_payload", "invalid_blocks", "msg_blocks_too_long", "no_text")],
    *[
        ("slack", word.encode(), ADVICE, "paste its address")
        for word in ("invalid_token", "no_service", "no_service_id", "no_active_hooks")
    ],
    *[
        ("slack", word.encode(), ADVICE, "paste its address")
        for word in ("channel_not_found", "user_not_found", "no_team", "team_disabled")
    ],
    *[("slack", word.encode(), ADVICE, "ask a Slack administrator") for word in ("action_prohibited", "posting_to_general_channel_denied")],
    ("slack", b"channel_is_archived", ADVICE, "unarchive it"),
    ("slack", {"ok": False, "error": "no_service"}, ADVICE, "paste its address"),
    ("slack", b"rollup_error", RETRY, "for now"),
    ("slack", Reply(200, "rate_limited", {"Retry-After": "7"}), wait(7), "for now"),
    ("slack", b"word_of_tomorrow", RETRY, "word_of_tomorrow"),
    # Zoom documents none; should its API's errors come in a 200, they are none the less refusals.
    ("zoom", {"result": False, "code": 7010, "message": "can not find any user"}, RETRY, "can not find any user"),
    ("zoom", {"code": 401, "message": "Invalid authorization"}, STOP, "Invalid authorization"),
    # Discord says no with a status of its own; a proxy may make a 200 of it.
    ("discord", discord(10015), ADVICE, "make a new one"),
    ("discord", discord(50027), ADVICE, "copy it again"),
    ("discord", discord(10003), ADVICE, "enter another thread"),
    ("discord", discord(10004), ADVICE, "on another one"),
    *[("discord", discord(code), ADVICE, "permissions") for code in (50001, 50013)],
    ("discord", discord(50083), ADVICE, "archived"),
    ("discord", discord(160005), ADVICE, "unlock it"),
    *[("discord", discord(code), ADVICE, "id of one of its posts") for code in (220001, 40067)],
    ("discord", discord(220003), ADVICE, "leave the thread empty"),
    *[("discord", discord(code), ADVICE, "AutoMod") for code in (200000, 200001)],
    ("discord", discord(20009), STOP, "explicit"),
    ("discord", discord(240000), STOP, "harmful"),
    ("discord", discord(50006), SPLIT, "empty"),
    ("discord", discord(50035), SPLIT, "malformed"),
    ("discord", discord(20016), RETRY, "slow mode"),
    *[("discord", discord(code), RETRY, "too many") for code in (20028, 40062)],
    ("discord", discord(130000), RETRY, "overloaded"),
    ("discord", discord(987654), RETRY, "whatever it says"),
    # Google Chat and Mattermost refuse with a status of their own; where a proxy makes a 200 of it, the body still says it.
    ("google_chat", google("INVALID_ARGUMENT"), STOP, "malformed or too long"),
    ("google_chat", google("FAILED_PRECONDITION"), ADVICE, "does not take messages"),
    ("google_chat", google("UNAUTHENTICATED"), ADVICE, "paste the webhook's address again"),
    ("google_chat", google("PERMISSION_DENIED"), ADVICE, "add a webhook to the space again"),
    ("google_chat", google("NOT_FOUND"), ADVICE, "deleted"),
    ("google_chat", google("RESOURCE_EXHAUSTED"), wait(30), "too many messages"),
    ("google_chat", google("ABORTED"), RETRY, "try again"),
    ("mattermost", mattermost("web.incoming_webhook.invalid.app_error"), ADVICE, "paste the webhook's address again"),
    ("mattermost", mattermost("web.incoming_webhook.disabled.app_error"), ADVICE, "System Console"),
    ("mattermost", mattermost("web.incoming_webhook.channel.app_error"), ADVICE, "choose another one"),
    ("mattermost", mattermost("app.channel.get.existing.app_error"), ADVICE, "choose another one"),
    ("mattermost", mattermost("web.incoming_webhook.channel_locked.app_error"), ADVICE, "locked"),
    ("mattermost", mattermost("web.incoming_webhook.permissions.app_error"), ADVICE, "owner"),
    ("mattermost", mattermost("web.incoming_webhook.user.app_error"), ADVICE, "make a new webhook"),
    # Twilio and Vonage, likewise.
    *[(kind, twilio(20003), ADVICE, "auth token") for kind in ("twilio_sms", "twilio_voice")],
    *[(kind, twilio(20429), RETRY, "too many requests") for kind in ("twilio_sms", "twilio_voice")],
    *[(kind, twilio(21211), STOP, "not a phone number") for kind in ("twilio_sms", "twilio_voice")],
    ("twilio_sms", twilio(21408), ADVICE, "Geo permissions"),
    ("twilio_sms", twilio(21610), STOP, "STOP"),
    ("twilio_sms", twilio(30001), RETRY, "queue is full"),
    ("twilio_voice", twilio(21215), ADVICE, "Geo permissions"),
    ("twilio_voice", twilio(13225), STOP, "block list"),
    ("vonage_voice", {"title": "Unauthorized", "detail": "You did not provide correct credentials."}, RETRY, "Unauthorized"),
    # An HTTP gateway's success is what the channel's rule says.
    ("http_sms", {"status": "error", "text": "no credit"}, RETRY, "no credit"),
    ("http_sms", {"messages": [{"id": "m-17", "status": 5, "text": "invalid number"}]}, STOP, "invalid number"),
]

# Where a transport has a table of codes, each of them stands here: kind -> the field of the answer that has the code.
CODES = {"dingtalk": "errcode", "discord": "code", "feishu": "code", "wecom": "errcode"}


def test_of(kind: str) -> Any:
    """What the test module of a kind says of it; None where there is no such module (the contract test says so)."""
    try:
        module = importlib.import_module(f"tests.transports.test_transport_{get(kind).__module__.rpartition('.')[2]}")
    except ModuleNotFoundError:
        return None
    return getattr(module, "CONTRACT", {}).get(kind, module)


test_of.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "answer", "then", "words"), [pytest.param(*row, id=f"{row[0]}-{number}-{row[2]}") for number, row in enumerate(ROWS)]
)
def test_a_refusal_is_never_a_success(kind, answer, then, words):
    about = test_of(kind)
    message = page(text="One line of a long message.\n" * 2000 if then.again else page().text)
    with Server(answer if isinstance(answer, Reply) else Reply(200, answer)) as server:
        channel = get(kind)(about.stage(server.url), Http(allowed_hosts=[server.host]))
        with pytest.raises(DeliveryError) as caught:
            channel.send(message, getattr(about, "ADDRESS", ""))
    error = caught.value
    assert words in error.text
    waits = max(error.retry_after or 0, error.blocked or 0)
    assert (error.permanent, error.config, waits, error.left) == (then.permanent, then.config, then.seconds or 0, False)
    lengths = [len(seen.body) for seen in server.seen]
    assert len(lengths) == 1 + then.again or kind not in CODES, "nobody but the outbox tries again"
    assert not then.again or lengths[-1] < lengths[0]


@pytest.mark.parametrize("kind", CODES)
def test_every_code_that_a_transport_knows_stands_in_the_table(kind):
    known = set(importlib.import_module(get(kind).__module__).CODES)
    assert known <= {answer.get(CODES[kind]) for other, answer, _then, _words in ROWS if other == kind}


def test_every_kind_that_refuses_in_a_200_stands_in_the_table():
    rows = {kind for kind, _answer, _then, _words in ROWS}
    refuses = {kind for kind in transports() if getattr(test_of(kind), "REFUSED_IN_200", None) is not None}
    assert refuses <= rows, "add the refusals of these kinds, each with what must follow it"
    assert rows <= set(transports())


def test_the_rows_are_told_apart():
    """A row twice is one that somebody meant to change."""
    seen = [(kind, repr(answer) if isinstance(answer, Reply) else json.dumps(answer, default=str)) for kind, answer, _then, _words in ROWS]
    assert len(seen) == len(set(seen))
