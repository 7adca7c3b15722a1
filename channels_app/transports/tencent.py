"""Tencent Cloud: calls that read an approved template out (vms) and SMS from approved templates (sms), with their reports.

Sources: Tencent Cloud documentation, "Signature v3" (TC3-HMAC-SHA256), SendTtsVoice (1128/51558), SendSms (382/55981), PullSmsSendStatus
(382/55977), their error codes, voice callbacks (1128/51534, 51535, 37727) and the codes in them (1128/37531), SMS status callback (382/43547).
A refusal comes as HTTP 200: in Response.Error, or in the state of the one phone that was written to.

Reports are not signed, and a call's gives nothing of ours back. What proves them: the channel's unguessable callback address, and the id of a
message that this channel sent."""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import approved, http, transport
from channels_app.approved import No
from channels_app.transport import Callback, DeliveryError, Heard, Limit, Message, Receipt, Update

CONTENT_TYPE = "application/json; charset=utf-8"
_TAKEN = b'{"result":0,"errmsg":"OK"}'

_BALANCE = No(gettext_lazy("the package is used up: buy another in the vendor's console"), config=True)
_ARREARS = No(gettext_lazy("the account is in arrears and the service suspended: pay in the vendor's console"), config=True)
_KEY = No(gettext_lazy("the key does not exist or is disabled: enter the present SecretId and SecretKey"), config=True)
_CLOCK = No(gettext_lazy("this machine's clock is more than five minutes off: set it by NTP"), config=True)
_APP = No(
    gettext_lazy("the application does not exist, is disabled or belongs to another account: compare its SdkAppId with the console"),
    config=True,
)
_TEMPLATE = No(
    gettext_lazy("the template was not approved, or has other variables than this channel fills: compare it with the console"), config=True
)
_RIGHTS = No(gettext_lazy("the key's user may not do this: grant QcloudSMSFullAccess or QcloudVMSFullAccess to it"), config=True)
_SIGN = No(gettext_lazy("the signature is not approved: compare it with the console"), config=True)
_NUMBER = No(gettext_lazy("the vendor does not take this phone number: correct it in the member's contact details"))
_BLOCKED = No(gettext_lazy("the phone is on a block list: its owner has to ask the vendor or the carrier to take it off"))
_WORD = No(gettext_lazy("the vendor found a forbidden word in a variable"))
_LONG = No(gettext_lazy("a variable or the whole text is longer than the vendor takes: lower “longest variable”"), length=True)
_TO_ELSEWHERE = No(gettext_lazy("a template for the mainland was used for a phone elsewhere: compare the two in the settings"), config=True)
_TO_MAINLAND = No(
    gettext_lazy("a template for elsewhere was used for a phone of the mainland: compare the two in the settings"), config=True
)
_FAULT = No(gettext_lazy("a fault at the vendor's"), permanent=False)
# The vendor lost the answer of the carrier: the message may be on its way.
_UNKNOWN = No(gettext_lazy("the vendor got no answer in time; the message may have been sent"), permanent=False, left=True)
_BUSY = No(gettext_lazy("too many requests at once"), permanent=False, wait=5)
_MALFORMED = No(gettext_lazy("the vendor could not read the request"))
_PER_DAY = No(gettext_lazy("too many messages for this phone in a day; the limit can be raised in the vendor's console"))

CODES: Mapping[str, No] = {
    "AuthFailure.SecretIdNotFound": _KEY,
    "AuthFailure.InvalidSecretId": _KEY,
    "AuthFailure.TokenFailure": _KEY,
    "AuthFailure.MFAFailure": _KEY,
    "AuthFailure.SignatureFailure": No(gettext_lazy("the signature does not match: enter the SecretKey anew"), config=True),
    "AuthFailure.InvalidAuthorization": No(gettext_lazy("the signature does not match: enter the SecretKey anew"), config=True),
    "AuthFailure.SignatureExpire": _CLOCK,
    "AuthFailure.UnauthorizedOperation": _RIGHTS,
    "InternalError.RequestTimeException": _CLOCK,
    "InternalError.SigVerificationFail": _FAULT,
    "InternalError.SigFieldMissing": _FAULT,
    "InternalError.JsonParseFail": _MALFORMED,
    "InternalError.OtherError": _FAULT,
    "InternalError.UnknownError": _FAULT,
    "InternalError.RestApiInterfaceNotExist": _FAULT,
    "InternalError.UpstreamError": _FAULT,
    "InternalError.Timeout": _UNKNOWN,
    "InternalError.SendAndRecvFail": _UNKNOWN,
    "InternalError.SsoSendRecvFail": _UNKNOWN,
    "InternalError.AccessUpstreamTimeout": _UNKNOWN,
    "FailedOperation.AccessUpstreamTimeout": _UNKNOWN,
    "FailedOperation.InsufficientBalanceInSmsPackage": _BALANCE,
    "FailedOperation.InsufficientBalanceInVoicePackage": _BALANCE,
    "FailedOperation.SignatureIncorrectOrUnapproved": _SIGN,
    "FailedOperation.MissingSignature": _SIGN,
    "FailedOperation.TemplateIncorrectOrUnapproved": _TEMPLATE,
    "FailedOperation.TemplateUnapprovedOrNotExist": _TEMPLATE,
    "FailedOperation.TemplateParamSetNotMatchApprovedTemplate": _TEMPLATE,
    "FailedOperation.PhoneNumberInBlacklist": _BLOCKED,
    "FailedOperation.PhoneNumberOnBlacklist": _BLOCKED,
    "FailedOperation.ContainSensitiveWord": _WORD,
    "FailedOperation.PhonenumberUnappliedOrExpired": No(
        gettext_lazy("the account has no number to call from, or it has expired: buy or renew one in the vendor's console"), config=True
    ),
    "FailedOperation.MarketingSendTimeConstraint": No(
        gettext_lazy("the template is for advertising, which is sent in the daytime only: have one approved for notifications"), config=True
    ),
    "FailedOperation.FailResolvePacket": _MALFORMED,
    "FailedOperation.JsonParseFail": _MALFORMED,
    "FailedOperation.InvalidJsonParameters": _MALFORMED,
    "FailedOperation.InvalidParameters": _MALFORMED,
    "FailedOperation.OtherError": _FAULT,
    "FailedOperation.ParametersOtherError": _FAULT,
    "InvalidParameter.DirtyWordFound": _WORD,
    "InvalidParameter.AppidAndBizId": _APP,
    "InvalidParameterValue.IncorrectPhoneNumber": _NUMBER,
    "InvalidParameterValue.CalledNumberVerifyFail": _NUMBER,
    "InvalidParameterValue.SdkAppIdNotExist": _APP,
    "InvalidParameterValue.SdkAppidNotExist": _APP,
    "InvalidParameterValue.ProhibitedUseUrlInTemplateParameter": No(gettext_lazy("a variable holds what the vendor takes for a link")),
    "InvalidParameterValue.TemplateParameterLengthLimit": _LONG,
    "InvalidParameterValue.ContentLengthLimit": _LONG,
    "InvalidParameterValue.TemplateParameterFormatError": No(
        gettext_lazy("the template is one for verification codes and takes six digits only: enter one for notifications"), config=True
    ),
    "LimitExceeded.DeliveryFrequencyLimit": No(
        gettext_lazy("too many messages for this phone; the limit can be raised in the vendor's console"),
        permanent=False,
        wait=60,
        blocked=60,
    ),
    "LimitExceeded.PhoneNumberThirtySecondLimit": No(
        gettext_lazy("too many messages for this phone in 30 seconds"), permanent=False, wait=30, blocked=30
    ),
    "LimitExceeded.PhoneNumberOneHourLimit": No(
        gettext_lazy("too many messages for this phone in an hour; the limit can be raised in the vendor's console"),
        permanent=False,
        wait=3600,
        blocked=3600,
    ),
    "LimitExceeded.PhoneNumberDailyLimit": _PER_DAY,
    "LimitExceeded.PhoneNumberSameContentDailyLimit": No(
        gettext_lazy("the same text was sent to this phone too often today; the limit can be raised in the vendor's console")
    ),
    "LimitExceeded.AppDailyLimit": No(
        gettext_lazy("the application's daily limit is reached: raise it in the vendor's console"), config=True
    ),
    "LimitExceeded.DailyLimit": No(
        gettext_lazy("the daily limit for phones elsewhere is reached: ask the vendor to raise it"), config=True
    ),
    "LimitExceeded.AppCountryOrRegionDailyLimit": No(
        gettext_lazy("the daily limit for this country is reached: raise it in the vendor's console")
    ),
    "LimitExceeded.AppCountryOrRegionInBlacklist": No(
        gettext_lazy("the application does not send to this country: allow it in the vendor's console")
    ),
    "LimitExceeded.PhoneNumberCountLimit": _MALFORMED,
    "MissingParameter.EmptyPhoneNumberSet": _MALFORMED,
    "UnauthorizedOperation.RequestIpNotInWhitelist": No(
        gettext_lazy("this machine's address is not on the application's allow list: add it in the vendor's console"), config=True
    ),
    "IpNotInWhitelist": No(
        gettext_lazy("this machine's address is not on the key's allow list: add it in the vendor's console"), config=True
    ),
    "IpInBlacklist": No(
        gettext_lazy("this machine's address is on the key's block list: take it off in the vendor's console"), config=True
    ),
    "UnauthorizedOperation.RequestPermissionDeny": _RIGHTS,
    "UnauthorizedOperation.SdkAppIdIsDisabled": _APP,
    "UnauthorizedOperation.SdkAppidIsDisabled": _APP,
    "UnauthorizedOperation.SmsSdkAppIdVerifyFail": _APP,
    "UnauthorizedOperation.VoiceSdkAppidVerifyFail": _APP,
    "UnauthorizedOperation.ServiceSuspendDueToArrears": _ARREARS,
    "UnauthorizedOperation.SerivceSuspendDueToArrears": _ARREARS,  # as the vendor writes it
    "UnauthorizedOperation.IndividualUserMarketingSmsPermissionDeny": No(
        gettext_lazy("a personal account may not send advertising: have a template approved for notifications"), config=True
    ),
    "UnsupportedOperation.ChineseMainlandTemplateToGlobalPhone": _TO_ELSEWHERE,
    "UnsupportedOperation.GlobalTemplateToChineseMainlandPhone": _TO_MAINLAND,
    "UnsupportedOperation.ContainDomesticAndInternationalPhoneNumber": _TO_ELSEWHERE,
    "UnsupportedOperation.UnsupportedRegion": No(gettext_lazy("the vendor does not send to this country")),
    "UnsupportedOperation.UnsuportedRegion": No(gettext_lazy("the vendor does not send to this country")),  # as the vendor writes it
}
# Whatever else these say: (beginning, meaning).
FAMILIES = (
    ("RequestLimitExceeded", _BUSY),
    ("LimitExceeded", No(gettext_lazy("one of the vendor's limits is reached"), permanent=False, wait=60)),
    ("AuthFailure", _KEY),
    ("UnauthorizedOperation", _RIGHTS),
    ("InternalError", _FAULT),
)

# voice_failure_callback.failure_code -> a reason that somebody can act on.
ENDED: Mapping[str, Any] = {
    "1": gettext_lazy("the phone was switched off"),
    "2": gettext_lazy("the line was busy"),
    "3": gettext_lazy("the phone was out of reach"),
    "4": gettext_lazy("the number is suspended; its bill may be unpaid"),
    "5": gettext_lazy("it rang and nobody answered"),
    "6": gettext_lazy("the call could not be put through"),
    "7": gettext_lazy("the number is suspended; its bill may be unpaid"),
    "8": gettext_lazy("the number does not exist: correct it in the member's contact details"),
    "9": gettext_lazy("the carrier's network was overloaded"),
    "10": gettext_lazy("the line was busy"),
    "11": gettext_lazy("the call could not be put through"),
    "12": gettext_lazy("the phone may not be called; it refuses calls from outside"),
    "13": gettext_lazy("the number is suspended; its bill may be unpaid"),
    "15": gettext_lazy("the number does not exist: correct it in the member's contact details"),
    "16": gettext_lazy("the call went to a missed-call service, and nobody heard it"),
    "17": gettext_lazy("the number does not exist any more: correct it in the member's contact details"),
    "18": gettext_lazy("the carrier's network was overloaded"),
    "19": gettext_lazy("the number takes no calls"),
    "20": gettext_lazy("it rang and nobody answered"),
}


class _Settings(approved.Settings):
    official = ".tencentcloudapi.com"
    named = False

    secret_id = forms.CharField(
        label=gettext_lazy("SecretId"),
        max_length=128,
        help_text=gettext_lazy("Of a sub-account that may use this service only: Cloud Access Management, API keys."),
    )
    secret_key = forms.CharField(
        label=gettext_lazy("SecretKey"), max_length=128, help_text=gettext_lazy("Shown once, when the key is made.")
    )
    app_id = forms.RegexField(
        r"\A[0-9]{6,20}\Z",  # Django searches
        strip=True,
        label=gettext_lazy("SdkAppId"),
        error_messages={"invalid": gettext_lazy("Enter the digits alone, such as 1400006666.")},
        help_text=gettext_lazy("Of the application in the service's console, such as 1400006666; not the account's APPID."),
    )
    region = forms.RegexField(
        r"\A[a-z]{2}(-[a-z0-9]+)+\Z",
        strip=True,
        label=gettext_lazy("region"),
        required=False,
        initial="ap-guangzhou",
        error_messages={"invalid": gettext_lazy("Enter the region's name, such as ap-guangzhou.")},
        help_text=gettext_lazy("Which of the vendor's regions takes the requests. Default: ap-guangzhou."),
    )

    def clean_region(self) -> str:
        return str(self.cleaned_data["region"] or "ap-guangzhou")


class _Tencent(approved.Approved):
    """What both services share: the signature, the table of refusals, the templates."""

    secret = frozenset({"secret_key"})
    unique_ids = True  # one application has one callback address, and hands its states out once
    Settings: ClassVar[type[_Settings]]
    total: ClassVar[int] = 400  # characters of all variables: the vendor's 500 or 350 are of the whole text
    service: ClassVar[str] = ""
    version: ClassVar[str] = ""

    def send(self, message: Message, address: str) -> Receipt:
        phone = approved.phone(address)
        template, variables, mainland = approved.choose(self.settings, phone, message.event)
        if message.event == "code":
            return self._hand_over(message, phone, template, [approved.verification_code(message)], [])

        def attempt(limit: int) -> Receipt:
            values, cut = approved.fill(variables, message, self.style, limit=limit, total=self.total, mainland=mainland)
            return self._hand_over(message, phone, template, values, cut)

        return approved.until_it_fits(int(self.settings.get("variable_limit") or self.Settings.starts["variable_limit"]), attempt)

    def _hand_over(self, message: Message, phone: str, template: str, values: Sequence[str], cut: Sequence[str]) -> Receipt:
        raise NotImplementedError

    def _call(self, action: str, params: Mapping[str, Any], now: datetime) -> tuple[dict[str, Any], http.Answer]:
        """The Response of one action without an Error in it; whatever else raises DeliveryError."""
        base = str(self.settings.get("api_base") or self.Settings.starts["api_base"])
        host, timestamp = urlsplit(base).netloc, int(now.timestamp())
        body = json.dumps(params, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        headers = {
            "Host": host,
            "Content-Type": CONTENT_TYPE,
            "X-TC-Action": action,
            "X-TC-Version": self.version,
            "X-TC-Timestamp": str(timestamp),
            "X-TC-Region": str(self.settings.get("region") or "ap-guangzhou"),
            "Authorization": authorization(
                str(self.settings["secret_id"]), str(self.settings["secret_key"]), self.service, host, timestamp, body
            ),
        }
        answer = self.http.post(f"{base}/", data=body, headers=headers)
        http.by_status(answer)
        response = answer.json().get("Response")
        if not isinstance(response, dict):
            raise _unreadable(answer)
        error = response.get("Error")
        if isinstance(error, dict):
            raise refusal(str(error.get("Code") or ""), answer)
        return response, answer


class VoiceSettings(_Settings):
    starts = {"variables": ["title", "severity_name"], "variable_limit": 100, "api_base": "https://vms.tencentcloudapi.com"}

    numbers = transport.NumbersField(
        required=False,
        help_text=gettext_lazy(
            "Numbers bought in the vendor's console, one in each line. The vendor chooses among the application's; these are for the contact cards "
            "of members, which hold exactly these."
        ),
    )
    field_order = (
        "secret_id", "secret_key", "app_id", "numbers", "template", "variables", "code_template", "template_elsewhere", "variables_elsewhere",
        "code_template_elsewhere", "variable_limit", "region", "api_base",
    )  # fmt: skip


class TencentVoice(_Tencent):
    kind = "tencent_voice"
    label = gettext_lazy("Tencent Cloud voice call")
    family = "voice"
    format = "voice"
    # The defaults; the vendor raises them on request, and the channel's own limits then say so.
    limits = (Limit(1, 30), Limit(2, 600), Limit(3, 86_400), Limit(5, 1, "channel"))
    max_chars = 200  # of a text that names several incidents: as many as somebody listens to
    Settings = VoiceSettings
    style = "voice"
    total = 250
    service = "vms"
    version = "2020-09-02"

    def _hand_over(self, message: Message, phone: str, template: str, values: Sequence[str], cut: Sequence[str]) -> Receipt:
        params = {
            "TemplateId": template, "TemplateParamSet": list(values), "CalledNumber": phone, "VoiceSdkAppid": str(self.settings["app_id"]),
            "PlayTimes": 2, "SessionContext": message.delivery_id,
        }  # fmt: skip
        response, answer = self._call("SendTtsVoice", params, message.sent_at)
        status = response.get("SendStatus")
        if not isinstance(status, dict) or not status.get("CallId"):
            raise _unreadable(answer)
        return Receipt(str(status["CallId"]), detail=approved.shortened(cut))

    def receive(self, callback: Callback) -> Heard:
        """A report of one call: its end, why it failed, or a key that was pressed (then somebody had picked up)."""
        report = _read(callback)
        if not isinstance(report, dict):
            raise ValueError("the body is not a report of a call")
        for name in ("voiceprompt_callback", "voicecode_callback", "voice_failure_callback", "voicekey_callback"):
            said = report.get(name)
            if isinstance(said, dict) and isinstance(said.get("callid"), str) and said["callid"]:
                return Heard((_call_update(name, said),), body=_TAKEN, content_type=CONTENT_TYPE)
        raise ValueError("the body is not a report of a call")


class SmsSettings(approved.SignedSettings, _Settings):
    starts = {"variables": ["title", "severity_name", "num"], "variable_limit": 35, "api_base": "https://sms.tencentcloudapi.com"}

    sign_name = forms.CharField(
        label=gettext_lazy("signature"),
        required=False,
        max_length=40,
        help_text=gettext_lazy("The approved signature that stands before each message, without 【】. Needed for the mainland."),
    )
    sign_name_elsewhere = forms.CharField(
        label=gettext_lazy("signature, elsewhere"),
        required=False,
        max_length=40,
        help_text=gettext_lazy("One approved for messages to elsewhere; empty: none is sent there, as most countries have none."),
    )
    pull = forms.BooleanField(
        label=gettext_lazy("ask for states"),
        required=False,
        help_text=gettext_lazy(
            "For an installation that the vendor cannot call. The vendor has to activate PullSmsSendStatus for the account first (SMS helper)."
        ),
    )
    field_order = (
        "secret_id", "secret_key", "app_id", "sign_name", "template", "variables", "code_template", "sign_name_elsewhere", "template_elsewhere",
        "variables_elsewhere", "code_template_elsewhere", "variable_limit", "pull", "region", "api_base",
    )  # fmt: skip


class TencentSms(_Tencent):
    kind = "tencent_sms"
    label = gettext_lazy("Tencent Cloud SMS")
    family = "sms"
    # The default; it can be raised in the console, and the channel's own limits then say so. (The same text to one phone: once in 30 s.)
    limits = (Limit(10, 86_400),)
    max_chars = 200  # of a text that names several incidents: there is no more room in the variables
    Settings = SmsSettings
    service = "sms"
    version = "2021-01-11"

    def _hand_over(self, message: Message, phone: str, template: str, values: Sequence[str], cut: Sequence[str]) -> Receipt:
        sign = str(self.settings.get("sign_name" if approved.is_mainland(phone) else "sign_name_elsewhere") or "")
        params = {
            "PhoneNumberSet": [phone], "SmsSdkAppId": str(self.settings["app_id"]), "TemplateId": template, "TemplateParamSet": list(values),
            "SessionContext": message.delivery_id, **({"SignName": sign} if sign else {}),
        }  # fmt: skip
        response, answer = self._call("SendSms", params, message.sent_at)
        states = response.get("SendStatusSet")
        if (
            not isinstance(states, list)
            or len(states) != 1
            or not isinstance(states[0], dict)
            or not isinstance(states[0].get("Code"), str)
        ):
            raise _unreadable(answer)
        if states[0]["Code"] != "Ok":
            raise refusal(states[0]["Code"], answer)
        return Receipt(str(states[0].get("SerialNo") or ""), detail=approved.shortened(cut))

    def receive(self, callback: Callback) -> Heard:
        """A push of states, a list. What members write back arrives at the same address and is none."""
        reports = _read(callback)
        if isinstance(reports, dict) and "text" in reports and "mobile" in reports:
            return Heard(body=_TAKEN, content_type=CONTENT_TYPE)
        if not isinstance(reports, list) or not all(
            isinstance(one, dict) and isinstance(one.get("sid"), str) and one["sid"] for one in reports
        ):
            raise ValueError("the body is not a list of states")
        said = tuple(
            _sms_update(one["sid"], str(one.get("report_status") or ""), str(one.get("errmsg") or ""), str(one.get("description") or ""))
            for one in reports
        )
        return Heard(said, body=_TAKEN, content_type=CONTENT_TYPE)

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """The states that the vendor keeps for the application until they are fetched, at most a hundred at once, whose ever they are."""
        if not self.settings.get("pull") or not message_ids:
            return ()
        params = {"Limit": 100, "SmsSdkAppId": str(self.settings["app_id"])}
        response, answer = self._call("PullSmsSendStatus", params, datetime.now(UTC))
        states = response.get("PullSmsSendStatusSet") or []
        if not isinstance(states, list):
            raise _unreadable(answer)
        found = []
        for one in states:
            if isinstance(one, dict) and one.get("SerialNo"):
                why = str(one.get("Description") or "")  # the carrier's code, or words
                found.append(_sms_update(str(one["SerialNo"]), str(one.get("ReportStatus") or ""), why, why))
        return found


# --- the signature ---------------------------------------------------------------------------------------------------------------------


def authorization(secret_id: str, secret_key: str, service: str, host: str, timestamp: int, body: bytes) -> str:
    """The header Authorization of a POST of `body` to / of `host`, with CONTENT_TYPE and `timestamp` (Unix seconds) in its headers.

    Source: "Signature v3". The key is derived from the UTC date and the service; the vendor allows five minutes between the clocks.
    """
    date = datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d")
    scope = f"{date}/{service}/tc3_request"
    canonical = f"POST\n/\n\ncontent-type:{CONTENT_TYPE}\nhost:{host}\n\ncontent-type;host\n{hashlib.sha256(body).hexdigest()}"
    text = f"TC3-HMAC-SHA256\n{timestamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"TC3{secret_key}".encode()
    for part in (date, service, "tc3_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return f"TC3-HMAC-SHA256 Credential={secret_id}/{scope}, SignedHeaders=content-type;host, Signature={signature}"


# --- reading -----------------------------------------------------------------------------------------------------------------------------


def refusal(code: str, answer: http.Answer) -> DeliveryError:
    """What a code of the vendor's means; one that nobody knows is the customer's fault, as all are but InternalError and the limits."""
    known = CODES.get(code) or next((no for beginning, no in FAMILIES if code.startswith(beginning)), None)
    if known is not None:
        return known.error(code, "Tencent Cloud")
    return DeliveryError(_("Tencent Cloud refused the message: %(body)s") % {"body": answer.quote()}, permanent=bool(code))


def _unreadable(answer: http.Answer) -> DeliveryError:
    return DeliveryError(
        _("%(host)s answered without a result: %(body)s") % {"host": answer.host, "body": answer.quote()}, permanent=False, left=True
    )


def _read(callback: Callback) -> Any:
    if callback.method != "POST":
        raise ValueError("reports are posted")
    try:
        return json.loads(callback.body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None


def _call_update(name: str, said: Mapping[str, Any]) -> Update:
    call, result = str(said["callid"]), str(said.get("result", ""))
    if name == "voicekey_callback" or (name in ("voiceprompt_callback", "voicecode_callback") and result == "0"):
        return Update(call, "delivered")
    if name == "voice_failure_callback":
        code = str(said.get("failure_code", ""))
        known = ENDED.get(code)
        why = str(known) if known else approved.clean(str(said.get("failure_reason") or ""), "sms")[:100] or _("the call failed")
        return Update(call, "failed", f"{why} ({code[:20]})")
    return Update(call, "failed", _("nobody answered the call") if result == "1" else _("the call failed"))


def _sms_update(serial: str, state: str, code: str, said: str) -> Update:
    return Update(serial, "delivered") if state == "SUCCESS" else Update(serial, "failed", approved.carrier(code, said))
