"""Alibaba Cloud's SMS and voice services as strict as the real ones: they check signature, clock, nonce, template, variables and frequency.

Written from the help centre: "V3 request body and signature", SendSms, SingleCallByTts, QueryCallDetailByCallId, "voice template
specifications", frequency limits. A gateway refusal has status 4xx, a business refusal comes in a 200; both as the vendor words them. The
signature is judged by the recipe of the documentation with the parts taken apart again, not with the transport's code; tests also hold it
against the vendor's own signer."""

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.server import Reply, Seen, Server

KEY, SECRET = "LTAI5tDemoKeyOfATest", "demoAliSecretOfATest01"
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~")


@dataclass
class Template:
    variables: tuple[str, ...]
    longest: int = 35
    elsewhere: bool = False
    is_code: bool = False


@dataclass
class Sent:
    action: str
    phone: str
    template: str
    values: dict[str, str]
    params: dict[str, str]
    message_id: str
    at: float = 0.0


@dataclass
class _No(Exception):
    code: str
    message: str
    status: int = 200


@dataclass
class Account:
    signs: set[str] = field(default_factory=lambda: {"演示"})
    numbers: set[str] = field(default_factory=lambda: {"057188881234"})
    templates: dict[str, Template] = field(
        default_factory=lambda: {
            "SMS_1001": Template(("title", "level", "num")),
            "SMS_CODE": Template(("code",), longest=6, is_code=True),
            "SMS_2002": Template(("title", "level", "num"), elsewhere=True),
            "TTS_1001": Template(("title", "level"), longest=100),
            "TTS_CODE": Template(("code",), longest=6, is_code=True),
        }
    )
    balance: int = 1_000_000


class AliyunCloud(Server):
    """`now` (Unix seconds) is the vendor's clock; `sent` holds what it took; `calls` what its query tells of a call: {CallId: state}."""

    def __init__(self, now: float) -> None:
        super().__init__(self._answer)
        self.now = now
        self.account = Account()
        self.sent: list[Sent] = []
        self.calls: dict[str, str] = {}
        self._nonces: set[str] = set()

    def _answer(self, seen: Seen) -> Reply:
        try:
            action = self._authentic(seen)
            params = dict(parse_qsl(urlsplit(seen.path).query, keep_blank_values=True))
            return Reply(
                200, {"RequestId": "CC89A90C-978F-46AC-B80D-54738371E7CA", "Code": "OK", "Message": "OK", **self._do(action, params)}
            )
        except _No as no:
            body = {"RequestId": "B7AB8A2C-C0BD-57C8-8BC0-4B37B9F6A123", "Code": no.code, "Message": no.message}
            if no.status != 200:
                body |= {"HostId": seen.headers.get("host", ""), "Recommend": f"https://api.aliyun.com/troubleshoot?q={no.code}"}
            return Reply(no.status, body)

    # --- the gateway ---

    def _authentic(self, seen: Seen) -> str:
        said = re.fullmatch(
            r"ACS3-HMAC-SHA256 Credential=([^,]+),SignedHeaders=([a-z0-9;-]+),Signature=([0-9a-f]{64})",
            seen.headers.get("authorization", ""),
        )
        if said is None:
            raise _No("InvalidAuthorization", "Specified authorization is not valid.", 400)
        names = said[2].split(";")
        needed = {"host", *(name for name in seen.headers if name.startswith("x-acs-")), *({"content-type"} & set(seen.headers))}
        if names != sorted(names) or not needed <= set(names) or not set(names) <= set(seen.headers):
            raise _No("SignatureDoesNotMatch", "Specified signature is not matched with our calculation.", 400)
        if said[1] != KEY:
            raise _No("InvalidAccessKeyId.NotFound", "Specified access key is not found.", 404)
        if seen.headers["host"] != self.host:
            raise _No("InvalidProduct.NotFound", "Cannot find product according to your specified domain.", 404)
        if seen.headers.get("x-acs-content-sha256") != hashlib.sha256(seen.body).hexdigest() or not _signed_right(seen, names, said[3]):
            raise _No("SignatureDoesNotMatch", "Specified signature is not matched with our calculation.", 400)
        try:
            date = datetime.strptime(seen.headers["x-acs-date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
        except (KeyError, ValueError):
            raise _No("InvalidTimeStamp.Format", "Specified time stamp or date value is not well formatted.", 400) from None
        if abs(date - self.now) > 15 * 60:
            raise _No("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.", 400)
        nonce = seen.headers.get("x-acs-signature-nonce", "")
        if not nonce or nonce in self._nonces:
            raise _No("SignatureNonceUsed", "Specified signature nonce was used already.", 400)
        self._nonces.add(nonce)
        if seen.headers.get("x-acs-version") != "2017-05-25" or urlsplit(seen.path).path != "/" or seen.method != "POST":
            raise _No("InvalidVersion", "Specified parameter Version is not valid.", 404)
        return seen.headers.get("x-acs-action", "")

    # --- the services ---

    def _do(self, action: str, params: dict[str, str]) -> dict[str, Any]:
        if action == "QueryCallDetailByCallId":
            return self._query(params)
        if action == "SendSms":
            known = {"PhoneNumbers", "SignName", "TemplateCode", "TemplateParam", "OutId"}
            phone, template, values = params.get("PhoneNumbers", ""), params.get("TemplateCode", ""), params.get("TemplateParam", "")
        elif action == "SingleCallByTts":
            known = {"CalledNumber", "CalledShowNumber", "TtsCode", "TtsParam", "PlayTimes", "OutId"}
            phone, template, values = params.get("CalledNumber", ""), params.get("TtsCode", ""), params.get("TtsParam", "")
        else:
            raise _No("InvalidAction.NotFound", "Specified api is not found, please check your url and method.", 404)
        if not set(params) <= known or len(params.get("OutId", "").encode()) > 15:
            raise _No("isv.INVALID_PARAMETERS", "参数异常")
        if self.account.balance <= 0:
            raise _No("isv.AMOUNT_NOT_ENOUGH", "账户余额不足")
        mainland = bool(re.fullmatch(r"1\d{10}|0\d{9,11}", phone))
        if not mainland and not re.fullmatch(r"(?!86)[1-9]\d{7,14}", phone):
            raise _No("isv.MOBILE_NUMBER_ILLEGAL", f"{phone[:3]}****invalid mobile number")
        filled = self._filled(action, template, values, mainland)
        if action == "SendSms":
            if (mainland or "SignName" in params) and params.get("SignName") not in self.account.signs:
                raise _No("isv.SMS_SIGNATURE_ILLEGAL", "该账号下找不到对应签名")
        else:
            if params.get("PlayTimes") not in ("1", "2", "3"):
                raise _No("isv.INVALID_PARAMETERS", "参数异常")
            if "CalledShowNumber" in params and params["CalledShowNumber"] not in self.account.numbers:
                raise _No("isv.DISPLAY_NUMBER_ILLEGAL", "号显不合法")
        self._often(action, phone, template)
        number = len(self.sent) + 1
        message_id = f"{900000000000 + number}^0" if action == "SendSms" else f"{116000000000 + number}^{102816000000 + number}"
        self.sent.append(Sent(action, phone, template, filled, params, message_id, self.now))
        return {"BizId": message_id} if action == "SendSms" else {"CallId": message_id}

    def _filled(self, action: str, code: str, text: str, mainland: bool) -> dict[str, str]:
        template = self.account.templates.get(code)
        if template is None or code[:4] != ("SMS_" if action == "SendSms" else "TTS_"):
            raise _No(
                *(
                    ("isv.SMS_TEMPLATE_ILLEGAL", "该账号下找不到对应模板")
                    if action == "SendSms"
                    else ("isv.TTS_TEMPLATE_ILLEGAL", "TTS模板不合法")
                )
            )
        if mainland and template.elsewhere:
            raise _No("isv.DOMESTIC_NUMBER_NOT_SUPPORTED", "国际/港澳台消息模板不支持发送境内号码")
        try:
            values = json.loads(text)
            assert isinstance(values, dict) and all(isinstance(value, str) for value in values.values())
        except (ValueError, AssertionError):
            raise _No("isv.INVALID_JSON_PARAM", "参数格式错误，请修改为字符串值") from None
        if missing := [name for name in template.variables if not values.get(name)]:
            raise _No("isv.TEMPLATE_MISSING_PARAMETERS", f"模板变量缺少对应参数值: {missing[0]}")
        for value in values.values():
            if len(value) > template.longest:
                raise _No("isv.PARAM_LENGTH_LIMIT", "参数超过长度限制")
            if re.search(r"https?:|www\.|\d+\.\d+\.\d+\.\d+|[A-Za-z0-9-]\.[A-Za-z]{2,}", value, re.IGNORECASE):
                raise _No("isv.PARAM_NOT_SUPPORT_URL", "变量不支持传入URL")
            signs = r"[#/:\-%$¥\[\]【】]" if action == "SingleCallByTts" else r"[【】\[\]{}$¥★]"
            if re.search(signs, value) or any(ord(char) > 0xFFFF or ord(char) < 32 for char in value):
                raise _No("isv.BLACK_KEY_CONTROL_LIMIT", "变量中传入了黑名单关键字")
            if template.is_code and not re.fullmatch(r"[A-Za-z0-9]{4,6}", value):
                raise _No("isv.INVALID_PARAMETERS", "参数异常")
        return values

    def _often(self, action: str, phone: str, template: str) -> None:
        before = [
            one.at for one in self.sent if one.action == action and one.phone == phone and (action != "SendSms" or one.template == template)
        ]
        if action == "SendSms" and not self.account.templates[template].is_code:
            limits = [(50, 86_400, "天级")]
        elif action == "SendSms":
            limits = [(1, 60, "分钟级"), (5, 3600, "小时级"), (10, 86_400, "天级")]
        else:
            limits = [(1, 60, "分钟级"), (5, 3600, "小时级"), (20, 86_400, "天级")]
        for count, seconds, name in limits:
            if sum(self.now - at < seconds for at in before) >= count:
                raise _No("isv.BUSINESS_LIMIT_CONTROL", f"触发{name}流控Permits:{count}")

    def _query(self, params: dict[str, str]) -> dict[str, Any]:
        call = next((one for one in self.sent if one.message_id == params.get("CallId")), None)
        if params.get("ProdId") != "11000000300006" or not params.get("QueryDate", "").isdigit():
            raise _No("isv.INVALID_PARAMETERS", "参数异常")
        asked = int(params["QueryDate"]) / 1000
        # Only calls within 24 hours from the asked time on, and of its day.
        if call is None or call.message_id not in self.calls or not 0 <= call.at - asked < 86_400:
            return {"Data": ""}
        state = self.calls[call.message_id]
        return {
            "Data": json.dumps({"callee": call.phone, "state": state, "stateDesc": state, "duration": 0, "startDate": "", "endDate": ""})
        }

    # --- what it pushes ---

    def voice_report(self, one: Sent, status: str, **more: Any) -> bytes:
        """The body of a VoiceReport: a call has ended."""
        report = {
            "call_id": one.message_id, "out_id": one.params.get("OutId", ""), "status_code": status, "status_msg": "", "callee": one.phone,
            "caller": "057188881234", "duration": "0", "start_time": "", "end_time": "", "hangup_direction": "用户", "voice_type": "voice",
        }  # fmt: skip
        return json.dumps([{**report, **more}], ensure_ascii=False).encode()

    def call_report(self, one: Sent, status: str) -> bytes:
        """The body of a VoiceCallReport: a call goes on."""
        report = {"call_id": one.message_id, "out_id": one.params["OutId"], "status_code": status, "status_time": "2023-11-15 06:13:25"}
        return json.dumps([report]).encode()

    def sms_report(self, one: Sent, *, success: bool, err_code: str = "DELIVERED", err_msg: str = "用户接收成功") -> bytes:
        report = {
            "phone_number": one.phone, "send_time": "2023-11-15 06:13:20", "report_time": "2023-11-15 06:13:25", "success": success,
            "err_code": err_code, "err_msg": err_msg, "sms_size": "1", "biz_id": one.message_id, "out_id": one.params["OutId"],
        }  # fmt: skip
        return json.dumps([report], ensure_ascii=False).encode()


def _signed_right(seen: Seen, names: list[str], signature: str) -> bool:
    pairs = sorted(parse_qsl(urlsplit(seen.path).query, keep_blank_values=True))
    lines = ["POST", urlsplit(seen.path).path, "&".join(f"{_encoded(name)}={_encoded(value)}" for name, value in pairs)]
    lines += [*(f"{name}:{seen.headers[name].strip()}" for name in names), "", ";".join(names), hashlib.sha256(seen.body).hexdigest()]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    right = hmac.digest(SECRET.encode(), f"ACS3-HMAC-SHA256\n{digest}".encode(), "sha256").hex()
    return hmac.compare_digest(right, signature)


def _encoded(text: str) -> str:
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())
