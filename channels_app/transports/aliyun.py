"""Alibaba Cloud: calls that read an approved template out (dyvmsapi) and SMS from approved templates (dysmsapi), with their receipts.

Sources: Alibaba Cloud help centre, "V3 request body and signature" (ACS3-HMAC-SHA256), SingleCallByTts, SendSms, QueryCallDetailByCallId,
VoiceReport, VoiceCallReport, SmsReport, "API error codes" and "call status codes" of both services. A refusal comes as HTTP 200 with a Code.

Receipts are pushed without a signature. What proves them: the channel's unguessable callback address, and `OutId`, which is made with our
secret and which nobody but the vendor gives back."""

import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import phonenumbers
from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import approved, http, transport
from channels_app.approved import No
from channels_app.transport import Callback, DeliveryError, Heard, Limit, Message, Receipt, Update

VERSION = "2017-05-25"  # of both services
VOICE_NOTICE = "11000000300006"  # the product number of voice notices, for the query
_TAKEN = json.dumps({"code": 0, "msg": "接收成功"}, ensure_ascii=False).encode()
_OUT_ID = re.compile(r"[0-9a-f]{8}[0-9a-f]{7}")  # the provider takes 15 bytes: seconds, and a proof that they are ours

_BALANCE = No(gettext_lazy("the account's balance is used up: top it up in the vendor's console"), config=True)
_ACCOUNT = No(gettext_lazy("the account is suspended or in arrears: look at the vendor's console"), config=True)
_NOT_OPEN = No(gettext_lazy("the account has not activated this service: activate it in the vendor's console"), config=True)
_KEY = No(gettext_lazy("the access key does not exist or is disabled: enter the present one"), config=True)
_CLOCK = No(gettext_lazy("this machine's clock is more than 15 minutes off: set it by NTP"), config=True)
_TEMPLATE = No(gettext_lazy("the template does not exist or was not approved: compare its code with the console"), config=True)
_VARIABLES = No(gettext_lazy("the template has other variables than this channel fills: compare their names with the console"), config=True)
_SIGN = No(gettext_lazy("the signature name is not approved or does not fit the template's type: compare it with the console"), config=True)
_NUMBER = No(gettext_lazy("the vendor does not take this phone number: correct it in the member's contact details"))
_WORD = No(gettext_lazy("the vendor found a forbidden word or sign in a variable"))
_LIMITED = No(gettext_lazy("too many messages for this phone in a minute"), permanent=False, wait=60, blocked=60)
_BUSY = No(gettext_lazy("too many requests at once"), permanent=False, wait=5)
_FAULT = No(gettext_lazy("a fault at the vendor's"), permanent=False)

# BUSINESS_LIMIT_CONTROL tells in its Message which limit it was. A day is too long to wait for: the message goes another way at once.
_PER_HOUR = No(gettext_lazy("too many messages for this phone in an hour"), permanent=False, wait=3600, blocked=3600)
_PER_DAY = No(gettext_lazy("too many messages for this phone in a day; the limit can be raised in the vendor's console"))
LIMITED = (("小时", _PER_HOUR), ("hour", _PER_HOUR), ("天级", _PER_DAY), ("day", _PER_DAY))

CODES: Mapping[str, No] = {
    "isv.BUSINESS_LIMIT_CONTROL": _LIMITED,
    "isv.DAY_LIMIT_CONTROL": No(
        gettext_lazy("the daily limit set in the vendor's console is reached: raise it there (general settings, security)"), config=True
    ),
    "isv.MONTH_LIMIT_CONTROL": No(
        gettext_lazy("the monthly limit set in the vendor's console is reached: raise it there (general settings, security)"), config=True
    ),
    "isv.OUT_OF_SERVICE": _BALANCE,
    "isv.AMOUNT_NOT_ENOUGH": _BALANCE,
    "isv.ACCOUNT_ABNORMAL": _ACCOUNT,
    "isv.ACCOUNT_NOT_EXISTS": _KEY,
    "isv.BILLID_NOT_EXIST": _ACCOUNT,
    "isv.PRODUCT_UN_SUBSCRIPT": _NOT_OPEN,
    "isv.PRODUCT_UNSUBSCRIBE": _NOT_OPEN,
    "isp.RAM_PERMISSION_DENY": No(
        gettext_lazy("the access key's user may not do this: grant AliyunDysmsFullAccess (SMS) or AliyunDyvmsFullAccess (voice)"),
        config=True,
    ),
    "isv.DENY_IP_RANGE": No(
        gettext_lazy("SMS to the mainland are refused for requests from abroad: use a proxy in the mainland, or another API address"),
        config=True,
    ),
    "isv.MOBILE_NUMBER_ILLEGAL": _NUMBER,
    "isv.MOBILE_COUNT_OVER_LIMIT": _NUMBER,
    "isv.CALLED_NUMBER_ERROR": _NUMBER,
    "isv.DOMESTIC_NUMBER_NOT_SUPPORTED": No(
        gettext_lazy("a template for elsewhere was used for a phone of the mainland: exchange the two in the settings"), config=True
    ),
    "isv.SMS_TEMPLATE_ILLEGAL": _TEMPLATE,
    "isv.TTS_TEMPLATE_ILLEGAL": _TEMPLATE,
    "isv.TEMPLATE_ILLEGAL": _TEMPLATE,
    "isv.TEMPLATE_MISSING_PARAMETERS": _VARIABLES,
    "isv.TEMPLATE_PARAMS_ILLEGAL": _WORD,
    "isv.SMS_SIGNATURE_ILLEGAL": _SIGN,
    "isv.SMS_SIGN_ILLEGAL": _SIGN,
    "isv.SIGN_STATE_ILLEGAL": _SIGN,
    "isv.SMS_SIGNATURE_SCENE_ILLEGAL": _SIGN,
    "isv.INVALID_JSON_PARAM": _VARIABLES,
    "isv.INVALID_PARAMETERS": No(
        gettext_lazy("a parameter is not what the vendor expects: compare the template, its variables and the signature name"), config=True
    ),
    "isv.PARAM_LENGTH_LIMIT": No(gettext_lazy("a variable is longer than the vendor takes: lower “longest variable”"), length=True),
    "isv.PARAM_NOT_SUPPORT_URL": No(gettext_lazy("a variable holds what the vendor takes for a link")),
    "isv.BLACK_KEY_CONTROL_LIMIT": _WORD,
    "isv.SMS_CONTENT_ILLEGAL": _WORD,
    "isv.BLACK_LIST": No(gettext_lazy("the phone is on the vendor's block list: its owner has to ask the vendor to take it off")),
    "isv.EXTEND_CODE_ERROR": No(gettext_lazy("the vendor refused the extension code"), config=True),
    "isv.DISPLAY_NUMBER_ILLEGAL": No(
        gettext_lazy(
            "the number shown to the called is not one of the account: enter one bought there, or leave it empty for the public pool"
        ),
        config=True,
    ),
    "isv.COMPLAINT_REJECT": No(gettext_lazy("somebody complained about calls from this number; calls to this phone are refused for now")),
    "isv.VOICE_CALL_FAIL": No(gettext_lazy("the call could not be started"), permanent=False),
    "isv.VOICE_CALL_PERIOD_ERROR": No(gettext_lazy("the vendor does not call at this time of day")),
    "isv.VOICE_ROBOT_NOT_PERIOD": No(gettext_lazy("the vendor does not call at this time of day")),
    "isv.CALLED_NUMBER_ONCE_BUSY": No(gettext_lazy("the phone is in another call"), permanent=False, wait=60),
    "isp.SYSTEM_ERROR": _FAULT,
    "isp.UNKNOWN_ERR_CODE": _FAULT,
    "ServiceUnavailable": _FAULT,
    "InternalError": _FAULT,
    "SignatureNonceUsed": _FAULT,  # the next attempt has a new nonce
    "SignatureDoesNotMatch": No(gettext_lazy("the signature does not match: enter the access key secret anew"), config=True),
    "InvalidAccessKeyId.NotFound": _KEY,
    "InvalidAccessKeyId.Inactive": _KEY,
    "InvalidTimeStamp.Expired": _CLOCK,
    "Forbidden.RAM": No(gettext_lazy("the access key's user may not do this: grant the service's rights to it"), config=True),
}

DELIVERED = frozenset({"200000", "200001", "200008", "200102"})  # heard to the end, hung up early, no key pressed, picked up (under way)
UNDER_WAY = frozenset({"200100", "200101", "200103", "200201", "300000"})
# What a call ended with: a reason that somebody can act on.
ENDED: Mapping[str, Any] = {
    "200002": gettext_lazy("the line was busy"),
    "200003": gettext_lazy("it rang and nobody answered"),
    "200004": gettext_lazy("the number does not exist: correct it in the member's contact details"),
    "200005": gettext_lazy("the call was rejected or could not be put through; a call blocker of the phone or carrier may have stopped it"),
    "200006": gettext_lazy("the vendor could not read the template out: look at it in the console"),
    "200007": gettext_lazy("the phone was out of reach"),
    "200010": gettext_lazy("the phone was switched off"),
    "200011": gettext_lazy("the number is suspended; its bill may be unpaid"),
    "200012": gettext_lazy("the phone may not be called; it refuses calls from outside"),
    "200104": gettext_lazy("our number may not call: look at it in the vendor's console"),
    "200105": gettext_lazy("the phone may not be called; it refuses calls from outside"),
    "200117": gettext_lazy("the number shown to the called is not allowed: look at it in the vendor's console"),
    "200118": gettext_lazy("the vendor does not call at this time of day"),
    "200119": gettext_lazy("too many calls: to this phone, or from our number"),
    "200121": gettext_lazy("too many calls at once for the account"),
    "200130": gettext_lazy("the call could not be put through"),
    "400": gettext_lazy("the carrier's network was overloaded"),
    "476": gettext_lazy("our number was withdrawn: replace it in the vendor's console and in the settings"),
    "482": gettext_lazy("the number cannot be called"),
    "500": gettext_lazy("a fault at the carrier's"),
    "502": gettext_lazy("the call could not be put through"),
    "999999": gettext_lazy("a fault at the vendor's"),
}


class _Settings(approved.Settings):
    official = ".aliyuncs.com"

    access_key_id = forms.CharField(
        label=gettext_lazy("AccessKey ID"),
        max_length=128,
        help_text=gettext_lazy("Of a RAM user that may use this service only: Resource Access Management, Users, Create AccessKey."),
    )
    access_key_secret = forms.CharField(
        label=gettext_lazy("AccessKey secret"), max_length=128, help_text=gettext_lazy("Shown once, when the AccessKey is made.")
    )
    code_variable = forms.CharField(
        label=gettext_lazy("variable of the code"),
        required=False,
        initial="code",
        max_length=50,
        help_text=gettext_lazy("The name of the only variable in the templates for codes."),
    )

    def clean_code_variable(self) -> str:
        name = str(self.cleaned_data["code_variable"] or "code").strip()
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ValidationError(_("Enter the variable's name alone, as it stands between the braces: code for ${code}."))
        return name


class _Aliyun(approved.Approved):
    """What both services share: the signature, the table of refusals, the templates."""

    secret = frozenset({"access_key_secret"})
    unique_ids = True  # one account may have one callback address
    Settings: ClassVar[type[_Settings]]
    total = 400  # characters of all variables: the vendor's 500 or 1,000 are of the whole text

    def _deliver(self, message: Message, address: str) -> Receipt:
        phone = approved.phone(address)
        template, variables, mainland = approved.choose(self.settings, phone, message.event)
        if message.event == "code":
            name = str(self.settings.get("code_variable") or "code")
            return self._hand_over(message, phone, template, {name: approved.verification_code(message)}, [])

        def attempt(limit: int) -> Receipt:
            values, cut = approved.fill(list(variables.values()), message, self.style, limit=limit, total=self.total, mainland=mainland)
            return self._hand_over(message, phone, template, dict(zip(variables, values, strict=True)), cut)

        return approved.until_it_fits(int(self.settings.get("variable_limit") or self.Settings.starts["variable_limit"]), attempt)

    def _hand_over(self, message: Message, phone: str, template: str, values: Mapping[str, str], cut: Sequence[str]) -> Receipt:
        raise NotImplementedError

    def _call(self, action: str, params: Mapping[str, str], now: datetime) -> dict[str, Any]:
        """The answer to one action, a JSON object whose Code is OK; whatever else raises DeliveryError."""
        base = str(self.settings.get("api_base") or self.Settings.starts["api_base"])
        headers = {
            "Host": urlsplit(base).netloc,
            "x-acs-action": action,
            "x-acs-version": VERSION,
            "x-acs-date": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "x-acs-signature-nonce": uuid.uuid4().hex,
            "x-acs-content-sha256": hashlib.sha256(b"").hexdigest(),
        }
        query = canonical_query(params)
        key, secret = str(self.settings["access_key_id"]), str(self.settings["access_key_secret"])
        answer = self.http.post(f"{base}/?{query}", headers={**headers, "Authorization": authorization(key, secret, query, headers)})
        return _judged(answer)

    def _out_id(self, now: datetime) -> str:
        seconds = f"{int(now.timestamp()):08x}"
        return seconds + _proof(str(self.settings["access_key_secret"]), self.kind, seconds)

    def _is_ours(self, out_id: Any) -> bool:
        if not isinstance(out_id, str) or not _OUT_ID.fullmatch(out_id):
            return False
        return hmac.compare_digest(out_id[8:], _proof(str(self.settings["access_key_secret"]), self.kind, out_id[:8]))

    def receive(self, callback: Callback) -> Heard:
        """A push of receipts. It may hold those of other programs of the account, too, which are passed over."""
        reports = _reports(callback)
        ours = [report for report in reports if self._is_ours(report.get("out_id"))]
        if reports and not ours:
            raise PermissionError("no receipt of a message that this channel sent")
        said = tuple(update for report in ours if (update := self._update(report)) is not None)
        return Heard(said, body=_TAKEN, content_type="application/json; charset=utf-8")

    def _update(self, report: Mapping[str, Any]) -> Update | None:
        raise NotImplementedError


class VoiceSettings(_Settings):
    starts = {"variables": {"title": "title", "level": "severity_name"}, "variable_limit": 100, "api_base": "https://dyvmsapi.aliyuncs.com"}

    numbers = transport.NumbersField(
        required=False,
        help_text=gettext_lazy(
            "Numbers bought in the vendor's console, one in each line; the first is shown to the called. Empty: the vendor's public pool. "
            "Contact cards for members hold exactly these."
        ),
    )
    field_order = (
        "access_key_id", "access_key_secret", "numbers", "template", "variables", "code_template", "template_elsewhere", "variables_elsewhere",
        "code_template_elsewhere", "code_variable", "variable_limit", "api_base",
    )  # fmt: skip


class AliyunVoice(_Aliyun):
    kind = "aliyun_voice"
    label = gettext_lazy("Alibaba Cloud voice call")
    family = "voice"
    format = "voice"
    # To one phone from numbers of one purpose, answered or not.
    limits = (Limit(1, 60), Limit(5, 3600), Limit(20, 86_400))
    max_chars = 200  # of a text that names several incidents: as many as somebody listens to
    Settings = VoiceSettings
    style = "voice"

    def send(self, message: Message, address: str) -> Receipt:
        return self._deliver(message, address)

    def _hand_over(self, message: Message, phone: str, template: str, values: Mapping[str, str], cut: Sequence[str]) -> Receipt:
        out_id = self._out_id(message.sent_at)
        params = {
            "CalledNumber": _local(phone),
            "TtsCode": template,
            "TtsParam": json.dumps(values, ensure_ascii=False, separators=(",", ":")),
            "PlayTimes": "2",
            "OutId": out_id,
        }
        number = transport.number_for(transport.parse_numbers(str(self.settings.get("numbers") or "")), phone)
        if number:
            params["CalledShowNumber"] = _local(number)
        call = self._call("SingleCallByTts", params, message.sent_at).get("CallId")
        # The seconds are for the query, which wants to know when the call was; the receipt has them in its out_id.
        return Receipt(f"{call}/{out_id[:8]}" if call else "", detail=approved.shortened(cut))

    def _update(self, report: Mapping[str, Any]) -> Update | None:
        call, status = report.get("call_id"), str(report.get("status_code") or "")
        if not isinstance(call, str) or not call or not status:
            raise ValueError("a receipt without call_id or status_code")
        heard = str(report.get("early_media_code") or "")  # what the network's announcement said; more exact than the generic states
        status = heard if status in ("200005", "200130") and heard in ENDED else status
        return ended(f"{call}/{str(report['out_id'])[:8]}", status, str(report.get("status_msg") or ""))

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """What became of calls, a request each; the vendor knows it three to five minutes after their end, and says nothing before."""
        found: list[Update] = []
        for message_id in message_ids:
            call, _slash, began = message_id.rpartition("/")
            if not call or not re.fullmatch(r"[0-9a-f]{8}", began):
                continue
            params = {"CallId": call, "ProdId": VOICE_NOTICE, "QueryDate": str(int(began, 16) * 1000)}
            try:
                detail = _object(self._call("QueryCallDetailByCallId", params, datetime.now(UTC)).get("Data"))
            except DeliveryError:
                if found:
                    break  # what is known already counts; the rest is asked again
                raise
            update = ended(message_id, str(detail.get("state") or ""), str(detail.get("stateDesc") or "")) if detail.get("state") else None
            found += [update] if update else []
        return found


class SmsSettings(approved.SignedSettings, _Settings):
    starts = {
        "variables": {"title": "title", "level": "severity_name", "num": "num"}, "variable_limit": 35, "api_base": "https://dysmsapi.aliyuncs.com",
    }  # fmt: skip

    sign_name = forms.CharField(
        label=gettext_lazy("signature name"),
        required=False,
        max_length=40,
        help_text=gettext_lazy("The approved signature that stands before each message, without 【】. Needed for the mainland."),
    )
    sign_name_elsewhere = forms.CharField(
        label=gettext_lazy("signature name, elsewhere"),
        required=False,
        max_length=40,
        help_text=gettext_lazy("Empty: the same as for the mainland."),
    )
    field_order = (
        "access_key_id", "access_key_secret", "sign_name", "template", "variables", "code_template", "sign_name_elsewhere", "template_elsewhere",
        "variables_elsewhere", "code_template_elsewhere", "code_variable", "variable_limit", "api_base",
    )  # fmt: skip


class AliyunSms(_Aliyun):
    kind = "aliyun_sms"
    label = gettext_lazy("Alibaba Cloud SMS")
    family = "sms"
    # Of one signature and template to one phone. Codes have narrower ones (1 a minute, 5 an hour, 10 a day); ours are sent more rarely.
    limits = (Limit(50, 86_400),)
    max_chars = 200  # of a text that names several incidents: there is no more room in the variables
    Settings = SmsSettings

    def send(self, message: Message, address: str) -> Receipt:
        return self._deliver(message, address)

    def _hand_over(self, message: Message, phone: str, template: str, values: Mapping[str, str], cut: Sequence[str]) -> Receipt:
        sign = str(self.settings.get("sign_name") or "")
        if not approved.is_mainland(phone):
            sign = str(self.settings.get("sign_name_elsewhere") or "") or sign
        params = {
            "PhoneNumbers": _local(phone),
            "TemplateCode": template,
            "TemplateParam": json.dumps(values, ensure_ascii=False, separators=(",", ":")),
            "OutId": self._out_id(message.sent_at),
            **({"SignName": sign} if sign else {}),
        }
        biz = self._call("SendSms", params, message.sent_at).get("BizId")
        return Receipt(str(biz or ""), detail=approved.shortened(cut))

    def _update(self, report: Mapping[str, Any]) -> Update | None:
        biz, success = report.get("biz_id"), report.get("success")
        if not isinstance(biz, str) or not biz or not isinstance(success, bool):
            raise ValueError("a receipt without biz_id or success")
        if success:
            return Update(biz, "delivered")
        return Update(biz, "failed", approved.carrier(str(report.get("err_code") or ""), str(report.get("err_msg") or "")))


# --- the signature ---------------------------------------------------------------------------------------------------------------------


def canonical_query(params: Mapping[str, str]) -> str:
    """The query as it is signed and sent: sorted by name, encoded by RFC 3986 (a space is %20, ~ stays)."""
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in sorted(params.items()))


def authorization(key: str, secret: str, query: str, headers: Mapping[str, str]) -> str:
    """The header Authorization of a POST to / with an empty body: ACS3-HMAC-SHA256 over all of `headers` (x-acs-content-sha256 among them).

    Source: "V3 request body and signature". The secret is the HMAC's key as it is, without any derivation.
    """
    lines = sorted((name.lower(), value.strip()) for name, value in headers.items())
    signed = ";".join(name for name, _value in lines)
    block = "".join(f"{name}:{value}\n" for name, value in lines)
    canonical = f"POST\n/\n{query}\n{block}\n{signed}\n{dict(lines)['x-acs-content-sha256']}"
    text = f"ACS3-HMAC-SHA256\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return f"ACS3-HMAC-SHA256 Credential={key},SignedHeaders={signed},Signature={signature}"


# --- reading -----------------------------------------------------------------------------------------------------------------------------


def _judged(answer: http.Answer) -> dict[str, Any]:
    try:
        reply = answer.json()
    except DeliveryError:
        http.by_status(answer)
        raise
    code = reply.get("Code")
    if not isinstance(code, str) or not code:
        http.by_status(answer)
        raise DeliveryError(
            _("%(host)s answered without a code: %(body)s") % {"host": answer.host, "body": answer.quote()}, permanent=False, left=True
        )
    if code == "OK" and 200 <= answer.status < 300:
        return reply
    known = _known(code, str(reply.get("Message") or ""))
    if known is not None:
        raise known.error(code, "Alibaba Cloud")
    http.by_status(answer)
    # The vendor's own word for whose fault it is: isv, the customer's; isp, its own.
    raise DeliveryError(_("Alibaba Cloud refused the message: %(body)s") % {"body": answer.quote()}, permanent=code.startswith("isv."))


def _known(code: str, said: str) -> No | None:
    if code == "isv.BUSINESS_LIMIT_CONTROL":
        return next((no for word, no in LIMITED if word in said.lower()), _LIMITED)
    return _BUSY if code.startswith("Throttling") else CODES.get(code)


def ended(message_id: str, status: str, said: str) -> Update | None:
    """What a call's `status` means; None while it is under way."""
    if status in UNDER_WAY:
        return None
    if status in DELIVERED:
        return Update(message_id, "delivered")
    known = ENDED.get(status)
    why = str(known) if known else approved.clean(said, "sms")[:100] or _("the call failed")
    return Update(message_id, "failed", f"{why} ({status[:20]})")


def _reports(callback: Callback) -> list[dict[str, Any]]:
    if callback.method != "POST":
        raise ValueError("receipts are posted")
    try:
        reports = json.loads(callback.body)
    except (ValueError, RecursionError):
        raise ValueError("the body is not JSON") from None
    if not isinstance(reports, list) or not all(isinstance(report, dict) for report in reports):
        raise ValueError("the body is not a list of receipts")
    return reports


def _object(text: Any) -> dict[str, Any]:
    try:
        value = json.loads(text) if isinstance(text, str) and text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _local(phone: str) -> str:
    """As the vendor writes numbers: those of the mainland as one dials them there (13800000000, 057188881234), others with the country code alone."""
    if not approved.is_mainland(phone):
        return phone[1:]
    national = phonenumbers.format_number(phonenumbers.parse(phone), phonenumbers.PhoneNumberFormat.NATIONAL)
    return re.sub(r"\D", "", national)


def _proof(secret: str, kind: str, seconds: str) -> str:
    return hmac.new(secret.encode(), f"{kind} {seconds}".encode(), hashlib.sha256).hexdigest()[:7]
