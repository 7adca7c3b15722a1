"""Tencent Cloud's SMS and voice services as strict as the real ones: they check signature, clock, template, variables and frequency.

Written from the documentation: "Signature v3", SendSms, SendTtsVoice, PullSmsSendStatus, the error codes and default frequencies of both
services. Every refusal comes in a 200. The signature is judged by the documentation's recipe with the parts taken apart again, not with the
transport's code; a test lets the vendor's own client call this fake."""

import hashlib
import hmac
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.fakes.server import Reply, Seen, Server

ID, KEY = "AKIDdemoOfATest0123456789", "demoSecretKeyOfATest01"
REQUEST_ID = "ed93f3cb-f35e-473f-b9f3-0d451b8b79c6"
_HEADER = re.compile(
    r"TC3-HMAC-SHA256 Credential=([^/]+)/(\d{4}-\d\d-\d\d)/([a-z]+)/tc3_request, SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)


@dataclass
class Template:
    variables: int
    longest: int = 500
    elsewhere: bool = False
    is_code: bool = False


@dataclass
class Sent:
    action: str
    phone: str
    template: str
    values: list[str]
    body: dict[str, Any]
    message_id: str
    at: float


@dataclass
class _No(Exception):
    code: str
    message: str


@dataclass
class Account:
    app: str = "1400006666"
    signs: set[str] = field(default_factory=lambda: {"演示"})
    templates: dict[str, Template] = field(
        default_factory=lambda: {
            "1001": Template(3), "1100": Template(1, is_code=True), "2002": Template(3, elsewhere=True),
            "4356": Template(2), "4400": Template(1, is_code=True),
        }
    )  # fmt: skip
    package: int = 1_000_000


class TencentCloud(Server):
    """`now` (Unix seconds) is the vendor's clock; `sent` holds what it took; `states` what is to be fetched with PullSmsSendStatus."""

    def __init__(self, now: float) -> None:
        super().__init__(self._answer)
        self.now = now
        self.account = Account()
        self.sent: list[Sent] = []
        self.states: list[dict[str, Any]] = []

    def _answer(self, seen: Seen) -> Reply:
        try:
            service = self._authentic(seen)
            body = json.loads(seen.body)
            response = self._do(service, seen.headers.get("x-tc-action", ""), seen.headers.get("x-tc-version", ""), body)
        except _No as no:
            response = {"Error": {"Code": no.code, "Message": no.message}}
        except (ValueError, KeyError, TypeError, AttributeError):
            response = {"Error": {"Code": "FailedOperation.FailResolvePacket", "Message": "request packet resolve fail"}}
        return Reply(200, {"Response": {**response, "RequestId": REQUEST_ID}})

    def _authentic(self, seen: Seen) -> str:
        said = _HEADER.fullmatch(seen.headers.get("authorization", ""))
        if said is None:
            raise _No("AuthFailure.InvalidAuthorization", "The Authorization header is invalid.")
        identity, date, service, names, signature = said.groups()
        stamp = seen.headers.get("x-tc-timestamp", "")
        if not stamp.isdigit() or abs(int(stamp) - self.now) > 300:
            raise _No("AuthFailure.SignatureExpire", "The provided signature has expired.")
        if identity != ID:
            raise _No("AuthFailure.SecretIdNotFound", "The SecretId is not found, please ensure that your SecretId is correct.")
        signed = names.split(";")
        right = ""
        if {"content-type", "host"} <= set(signed) <= set(seen.headers) and date == datetime.fromtimestamp(int(stamp), UTC).strftime(
            "%Y-%m-%d"
        ):
            lines = ["POST", seen.path.partition("?")[0], seen.path.partition("?")[2]]
            lines += [f"{name}:{seen.headers[name].strip().lower()}" for name in signed]
            lines += ["", names, hashlib.sha256(seen.body).hexdigest()]
            digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
            key = b"TC3" + KEY.encode()
            for part in (date, service, "tc3_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            text = "\n".join(["TC3-HMAC-SHA256", stamp, f"{date}/{service}/tc3_request", digest])
            right = hmac.digest(key, text.encode(), "sha256").hex()
        if right != signature or seen.headers["host"] != self.host or seen.method != "POST":
            raise _No(
                "AuthFailure.SignatureFailure", "The provided credentials could not be validated. Please check your signature is correct."
            )
        return service

    def _do(self, service: str, action: str, version: str, body: dict[str, Any]) -> dict[str, Any]:
        if (service, action, version) == ("sms", "SendSms", "2021-01-11"):
            return self._sms(body)
        if (service, action, version) == ("vms", "SendTtsVoice", "2020-09-02"):
            return self._call(body)
        if (service, action, version) == ("sms", "PullSmsSendStatus", "2021-01-11"):
            if body["SmsSdkAppId"] != self.account.app or not 1 <= body["Limit"] <= 100:
                raise _No("InvalidParameterValue.LimitVerifyFail", "limit verify fail")
            given, self.states = self.states[: body["Limit"]], self.states[body["Limit"] :]
            return {"PullSmsSendStatusSet": given}
        raise _No("InvalidAction", "The action does not exist.")

    def _sms(self, body: dict[str, Any]) -> dict[str, Any]:
        phones = body["PhoneNumberSet"]
        if body["SmsSdkAppId"] != self.account.app:
            raise _No("UnauthorizedOperation.SmsSdkAppIdVerifyFail", "SmsSdkAppId verify fail")
        if not set(body) <= {"PhoneNumberSet", "SmsSdkAppId", "TemplateId", "TemplateParamSet", "SignName", "SessionContext"}:
            raise _No("UnknownParameter", "The parameter is not recognized.")
        if len(phones) != 1 or len(body.get("SessionContext", "").encode()) >= 512:
            raise _No("InvalidParameterValue", "one phone at a time here")
        try:
            sent = self._sent("SendSms", phones[0], body)
        except _No as no:
            if no.code.startswith(("UnauthorizedOperation", "FailedOperation.Insufficient")):
                raise
            state = {
                "SerialNo": "",
                "PhoneNumber": phones[0],
                "Fee": 0,
                "SessionContext": "",
                "Code": no.code,
                "Message": no.message,
                "IsoCode": "",
            }
            return {"SendStatusSet": [state]}
        state = {
            "SerialNo": sent.message_id, "PhoneNumber": sent.phone, "Fee": 1, "SessionContext": body.get("SessionContext", ""), "Code": "Ok",
            "Message": "send success", "IsoCode": "CN",
        }  # fmt: skip
        return {"SendStatusSet": [state]}

    def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["VoiceSdkAppid"] != self.account.app:
            raise _No("UnauthorizedOperation.VoiceSdkAppidVerifyFail", "VoiceSdkAppid verify fail")
        if not set(body) <= {"TemplateId", "TemplateParamSet", "CalledNumber", "VoiceSdkAppid", "PlayTimes", "SessionContext"}:
            raise _No("UnknownParameter", "The parameter is not recognized.")
        if body.get("PlayTimes", 2) not in (1, 2, 3):
            raise _No("FailedOperation.InvalidParameters", "PlayTimes")
        if sum(map(len, body["TemplateParamSet"])) > 350:
            raise _No("InvalidParameterValue.ContentLengthLimit", "content length limit")
        sent = self._sent("SendTtsVoice", body["CalledNumber"], body)
        return {"SendStatus": {"CallId": sent.message_id, "SessionContext": body.get("SessionContext", "")}}

    def _sent(self, action: str, phone: str, body: dict[str, Any]) -> Sent:
        voice = action == "SendTtsVoice"
        if self.account.package <= 0:
            kind = "Voice" if voice else "Sms"
            raise _No(f"FailedOperation.InsufficientBalanceIn{kind}Package", f"insufficient balance in {kind.lower()} package")
        if not re.fullmatch(r"\+(861\d{10}|(?!86)[1-9]\d{7,14})", phone):
            wrong = "CalledNumberVerifyFail" if voice else "IncorrectPhoneNumber"
            raise _No(f"InvalidParameterValue.{wrong}", "incorrect phone number")
        mainland, values = phone.startswith("+86"), body["TemplateParamSet"]
        template = self.account.templates.get(body["TemplateId"])
        if template is None or not isinstance(values, list) or len(values) != template.variables:
            raise _No("FailedOperation.TemplateIncorrectOrUnapproved", "template is not approved or request content does not match")
        if template.elsewhere is mainland:
            which = "GlobalTemplateToChineseMainlandPhone" if mainland else "ChineseMainlandTemplateToGlobalPhone"
            raise _No(f"UnsupportedOperation.{which}", "template does not fit the phone")
        if not voice and mainland and body.get("SignName") not in self.account.signs:
            raise _No("FailedOperation.SignatureIncorrectOrUnapproved", "signature is not approved")
        for value in values:
            if not isinstance(value, str) or not value:
                raise _No("FailedOperation.TemplateIncorrectOrUnapproved", "an empty variable")
            if template.is_code and not re.fullmatch(r"\d{1,6}", value):
                raise _No("InvalidParameterValue.TemplateParameterFormatError", "verification code template parameter format error")
            if len(value) > template.longest:
                raise _No("InvalidParameterValue.TemplateParameterLengthLimit", "template parameter length limit")
            if mainland and re.search(r"https?:|www\.|\d+\.\d+\.\d+\.\d+|[A-Za-z0-9-]\.[A-Za-z]{2,}", value, re.IGNORECASE):
                raise _No("InvalidParameterValue.ProhibitedUseUrlInTemplateParameter", "prohibited use url in template parameter")
            if re.search(r"[【】\[\]]", value) or any(ord(char) > 0xFFFF or ord(char) < 32 for char in value):
                raise _No("FailedOperation.ContainSensitiveWord", "contains a sensitive word")
        self._often(action, phone, values)
        number = len(self.sent) + 1
        message_id = f"12582bce-403c-11eb-96b8-{number:012d}" if voice else f"5000:10457106691570536578{number:08d}"
        self.sent.append(Sent(action, phone, body["TemplateId"], values, body, message_id, self.now))
        return self.sent[-1]

    def _often(self, action: str, phone: str, values: list[str]) -> None:
        def count(seconds: float, same: bool = False) -> int:
            return sum(
                one.action == action and one.phone == phone and self.now - one.at < seconds and (not same or one.values == values)
                for one in self.sent
            )

        if action == "SendTtsVoice":
            if count(30) >= 1 or count(600) >= 2 or count(86_400) >= 3:
                raise _No("LimitExceeded.DeliveryFrequencyLimit", "delivery frequency limit")
        elif count(30, same=True) >= 1:
            raise _No(
                "LimitExceeded.PhoneNumberThirtySecondLimit",
                "the number of sms messages sent to this number in 30 seconds exceeds the limit",
            )
        elif count(86_400) >= 10:
            raise _No("LimitExceeded.PhoneNumberDailyLimit", "the number of sms messages sent to this number today exceeds the limit")
