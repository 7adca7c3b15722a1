"""Twilio: a call that is spoken twice, and an SMS; what became of them comes by callback, or is asked for where Twilio cannot call us.

Sources: Twilio's API reference (Calls, Messages, TwiML <Say>, answering machine detection, "Security" for X-Twilio-Signature) and its error
dictionary. Callbacks carry no time, so one may be repeated; each says where a message stands, and what came to its end does not change by it."""

import base64
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode
from xml.sax.saxutils import escape

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import http, sms, transport
from channels_app.transport import Callback, DeliveryError, Heard, Limit, Message, Receipt, Transport, Update

API = "https://api.twilio.com"
RING_SECONDS = 45  # Twilio's own default is 60; a mailbox takes over earlier on most networks
MOST_TWIML = 4000
MOST_BODY = 1600
MOST_PARTS = 6
MOST_ASKED = 100  # messages in one poll; the others are asked about in the next
_LANGUAGES = {"zh-hans": "zh-CN", "en": "en-US"}
_E164 = re.compile(r"\+[1-9][0-9]{6,14}")
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# code: (sentence, permanent, config). What is temporary is tried again; 429 and 5xx without a code are, too.
CODES: Mapping[int, tuple[Any, bool, bool]] = {
    20003: (gettext_lazy("account SID and auth token do not belong together: copy both anew from the Twilio console"), True, True),
    20005: (gettext_lazy("the account is suspended: see the Twilio console"), True, True),
    20404: (gettext_lazy("there is no such account: check the account SID"), True, True),
    20429: (gettext_lazy("too many requests at once"), False, False),
    10001: (gettext_lazy("the account is not active: see the Twilio console"), True, True),
    13223: (gettext_lazy("this is not a phone number that can be called"), True, False),
    13224: (gettext_lazy("this is not a phone number that can be called"), True, False),
    13225: (gettext_lazy("Twilio does not call this number (it is on its block list)"), True, False),
    13227: (
        gettext_lazy("calls to this country are not switched on: Twilio console, Voice, Settings, Geo permissions"), True, True,
    ),
    21210: (gettext_lazy("our number is not one of this account: check the channel's numbers"), True, True),
    21211: (gettext_lazy("this is not a phone number"), True, False),
    21212: (gettext_lazy("our number is not valid: check the channel's numbers"), True, True),
    21214: (gettext_lazy("the phone cannot be reached from Twilio"), True, False),
    21215: (
        gettext_lazy("calls to this country are not switched on: Twilio console, Voice, Settings, Geo permissions"), True, True,
    ),
    21216: (gettext_lazy("the account may not call this number"), True, True),
    21217: (gettext_lazy("this is not a phone number that can be called"), True, False),
    21219: (gettext_lazy("a trial account reaches only numbers that were verified in the Twilio console"), True, True),
    21408: (
        gettext_lazy("SMS to this country are not switched on: Twilio console, Messaging, Settings, Geo permissions"), True, True,
    ),
    21603: (gettext_lazy("there is no number to write from: check the channel's numbers"), True, True),
    21606: (gettext_lazy("our number cannot send SMS to this phone: check the channel's numbers"), True, True),
    21608: (gettext_lazy("a trial account reaches only numbers that were verified in the Twilio console"), True, True),
    21610: (gettext_lazy("this phone has answered STOP: its owner has to send START to our number before anything is delivered again"), True, False),
    21611: (gettext_lazy("our number has too many messages waiting at Twilio"), False, False),
    21612: (gettext_lazy("our number cannot send SMS to this phone: check the channel's numbers"), True, True),
    21614: (gettext_lazy("this is not a mobile phone"), True, False),
    21617: (gettext_lazy("the message is too long for Twilio"), True, False),
    21659: (gettext_lazy("our number is not one of this account: check the channel's numbers"), True, True),
    21703: (gettext_lazy("the messaging service has no number that can write to this phone"), True, True),
    30001: (gettext_lazy("Twilio's queue is full"), False, False),
    30002: (gettext_lazy("the account is suspended: see the Twilio console"), True, True),
    30003: (gettext_lazy("the phone is switched off or out of reach"), False, False),
    30004: (gettext_lazy("the phone's network does not deliver this message (it may be blocked by its owner)"), True, False),
    30005: (gettext_lazy("the phone's network does not know the number"), False, False),
    30006: (gettext_lazy("this is a landline, or its network takes no SMS"), True, False),
    30007: (gettext_lazy("the phone's network took it for spam: register the sender with Twilio"), True, True),
    30008: (gettext_lazy("the phone's network gave no reason"), False, False),
    30034: (gettext_lazy("our number is not registered for messages to the United States (A2P 10DLC)"), True, True),
    30410: (gettext_lazy("the phone's network did not answer Twilio"), False, False),
    32017: (gettext_lazy("the phone's network refuses calls from our number: register it with Twilio or use another one"), True, True),
}  # fmt: skip
_BAD_CALLBACK = 21609  # Twilio cannot use the address for reports: the message matters more than they do


class Settings(transport.Settings):
    account_sid = forms.CharField(
        label=gettext_lazy("account SID"), max_length=34, help_text=gettext_lazy("On the first page of the Twilio console; it begins with AC.")
    )  # fmt: skip
    auth_token = forms.CharField(
        label=gettext_lazy("auth token"),
        max_length=100,
        help_text=gettext_lazy("Beside the account SID. It also proves that reports are Twilio's; an API key cannot do that."),
    )
    numbers = transport.NumbersField()
    api_base = forms.CharField(
        label=gettext_lazy("API address"),
        required=False,
        max_length=200,
        help_text=gettext_lazy("Only for another region (https://api.dublin.ie1.twilio.com) or a proxy of yours. Default: https://api.twilio.com."),
    )  # fmt: skip

    def clean_account_sid(self) -> str:
        sid = str(self.cleaned_data["account_sid"]).strip()
        if not re.fullmatch(r"AC[0-9a-f]{32}", sid):
            raise ValidationError(_("An account SID is AC and 32 digits or letters a to f. SK… is an API key: it is not used here."))
        return sid

    def clean_auth_token(self) -> str:
        token = str(self.cleaned_data["auth_token"]).strip()
        if not re.fullmatch(r"[!-~]{16,}", token):
            raise ValidationError(_("Copy the whole auth token from the Twilio console: 32 digits and letters."))
        return token

    def clean_api_base(self) -> str:
        base = str(self.cleaned_data["api_base"] or "").strip().rstrip("/") or API
        parts = http.split_url(base)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValidationError(_("Enter the address as https://api.twilio.com."))
        if parts.scheme == "http" and parts.hostname.endswith("twilio.com"):
            raise ValidationError(_("The address must begin with https://."))
        return base


class VoiceSettings(Settings):
    machine_detection = forms.BooleanField(
        label=gettext_lazy("notice voice mail"),
        required=False,
        help_text=gettext_lazy(
            "Twilio listens whether a machine has picked up; such a call counts as not answered. It costs a little for each call, and may "
            "take a quiet person for a machine. Off: whatever picks up counts as answered."
        ),
    )


class SmsSettings(Settings):
    numbers = transport.NumbersField(required=False)
    messaging_service = forms.CharField(
        label=gettext_lazy("messaging service SID"),
        required=False,
        max_length=34,
        help_text=gettext_lazy("Instead of numbers: Twilio chooses the sender from this service's pool. It begins with MG."),
    )
    most_parts = forms.IntegerField(
        label=gettext_lazy("most parts of a message"),
        required=False,
        min_value=1,
        max_value=10,
        help_text=gettext_lazy("A longer text is shortened, the link to the rest kept. Default: 6."),
    )

    def clean_messaging_service(self) -> str:
        sid = str(self.cleaned_data["messaging_service"] or "").strip()
        if sid and not re.fullmatch(r"MG[0-9a-f]{32}", sid):
            raise ValidationError(_("A messaging service SID is MG and 32 digits or letters a to f."))
        return sid

    def clean_most_parts(self) -> int:
        return int(self.cleaned_data["most_parts"] or MOST_PARTS)

    def clean(self) -> dict[str, Any]:
        data = dict(super().clean() or {})
        if not self.errors and not data.get("numbers") and not data.get("messaging_service"):
            raise ValidationError(_("Enter our numbers, or a messaging service."))
        return data


class Twilio(Transport):
    """What calls and messages share. `things` is the API's word for them."""

    things = ""
    reach = "phone"
    person = True
    concurrency = 4
    secret = frozenset({"auth_token"})

    def _create(self, form: list[tuple[str, str]], reports: list[tuple[str, str]]) -> Receipt:
        answer = self._post(form + reports)
        try:
            return self._taken(answer)
        except DeliveryError:
            if not reports or _code(answer) != _BAD_CALLBACK:
                raise
        return self._taken(self._post(form))

    def _post(self, form: list[tuple[str, str]]) -> http.Answer:
        return self.http.post(
            f"{self._address()}.json", data=urlencode(form), headers={**self._who(), "Content-Type": "application/x-www-form-urlencoded"}
        )

    def _taken(self, answer: http.Answer) -> Receipt:
        _judge(answer)
        http.by_status(answer)
        said = answer.json()
        sid = said.get("sid")
        if not isinstance(sid, str) or not sid:
            raise DeliveryError(
                _("%(host)s answered without an id of the message: %(body)s") % {"host": answer.host, "body": answer.quote()},
                permanent=False,
                left=True,
            )
        return Receipt(message_id=sid)

    def _address(self) -> str:
        base = str(self.settings.get("api_base") or API)
        return f"{base}/2010-04-01/Accounts/{quote(str(self.settings['account_sid']), safe='')}/{self.things}"

    def _who(self) -> dict[str, str]:
        pair = f"{self.settings['account_sid']}:{self.settings['auth_token']}".encode()
        return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}

    def _from(self, address: str) -> str:
        return transport.number_for(transport.parse_numbers(str(self.settings.get("numbers") or "")), address)

    def _reports(self) -> str:
        """Where Twilio can report to; "" where our address is not on the internet: Twilio is asked then (poll)."""
        return self.callback_url if http.is_public(self.callback_url) else ""

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """Asks for each of them, a request each; what is unknown at Twilio has no answer."""
        found: list[Update] = []
        try:
            for sid in message_ids[:MOST_ASKED]:
                answer = self.http.request("GET", f"{self._address()}/{quote(sid, safe='')}.json", headers=self._who())
                if answer.status == 404:
                    continue
                if answer.status >= 300:
                    _judge(answer)
                http.by_status(answer)
                found += self._state(sid, answer.json())
        except DeliveryError:
            if not found:
                raise
        return found

    def _state(self, sid: str, said: Mapping[str, Any]) -> Iterator[Update]:
        raise NotImplementedError

    def receive(self, callback: Callback) -> Heard:
        """One report, a form whose signature covers address and fields; what has no end yet says nothing."""
        fields = parse_qsl(callback.body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=200)
        token = str(self.settings.get("auth_token") or "")
        if not token or not signature_holds(callback, fields, token):
            raise PermissionError(
                "X-Twilio-Signature does not hold: another account's auth token, or BASE_URL is not the address Twilio calls"
            )
        return Heard(tuple(self._reported(dict(fields))), status=204)

    def _reported(self, fields: Mapping[str, str]) -> Iterator[Update]:
        raise NotImplementedError


class TwilioVoice(Twilio):
    kind = "twilio_voice"
    family = "voice"
    label = gettext_lazy("Voice call (Twilio)")
    things = "Calls"
    format = "voice"
    # A new account starts one call a second. Twilio would keep the others in a queue that nobody sees; ours has deadlines.
    # And a second page would run into the call that still rings at the same phone: it waits, and takes along what comes meanwhile.
    limits = (Limit(1, 30), Limit(1, 1, "channel"))
    concurrency = 1
    max_chars = 1500  # the text stands in the TwiML twice, and & or < take four or five of its 4000 characters
    Settings = VoiceSettings

    def send(self, message: Message, address: str) -> Receipt:
        number = self._from(address)
        if not number:
            raise DeliveryError(
                _("This channel has no number to call %(address)s from: add one for its region, or one for all, to the channel's numbers.")
                % {"address": _region(address)},
                permanent=True,
                config=True,
            )
        form = [("To", _phone(address)), ("From", number), ("Twiml", spoken(message.text or message.subject, message.language)), ("Timeout", str(RING_SECONDS))]  # fmt: skip
        if self.settings.get("machine_detection"):
            form += [("MachineDetection", "Enable"), ("AsyncAmd", "true")]
        reports: list[tuple[str, str]] = []
        if url := self._reports():
            reports = [("StatusCallback", url), ("StatusCallbackMethod", "POST"), ("StatusCallbackEvent", "answered"), ("StatusCallbackEvent", "completed")]  # fmt: skip
            if self.settings.get("machine_detection"):
                reports += [("AsyncAmdStatusCallback", url), ("AsyncAmdStatusCallbackMethod", "POST")]
        return self._create(form, reports)

    def _state(self, sid: str, said: Mapping[str, Any]) -> Iterator[Update]:
        status, by = str(said.get("status")), str(said.get("answered_by") or "")
        if status == "completed" and not by:
            by = "unknown"  # the call is over: nobody will say more
        yield from self._became(sid, status, by, "")

    def _reported(self, fields: Mapping[str, str]) -> Iterator[Update]:
        if not (sid := fields.get("CallSid", "")):
            raise ValueError("no CallSid")
        if "CallStatus" not in fields and "AnsweredBy" in fields:  # what the machine detection found
            yield from self._became(sid, "in-progress", fields["AnsweredBy"], "")
        else:
            yield from self._became(
                sid,
                fields.get("CallStatus", ""),
                fields.get("AnsweredBy", ""),
                fields.get("ErrorCode", "") or fields.get("SipResponseCode", ""),
            )

    def _became(self, sid: str, status: str, by: str, code: str) -> Iterator[Update]:
        if status in ("in-progress", "completed"):
            if by.startswith("machine") or by == "fax":
                yield Update(sid, "failed", _("Voice mail or another machine picked up."))
            elif by or not self.settings.get("machine_detection"):
                yield Update(sid, "delivered")
        elif status == "busy":
            yield Update(sid, "failed", _("The line was busy, or the call was rejected."))
        elif status == "no-answer":
            yield Update(sid, "failed", _("Nobody answered."))
        elif status == "canceled":
            yield Update(sid, "failed", _("The call was cancelled before anybody answered."))
        elif status == "failed":
            sentence = _why(code)
            if sentence:
                yield Update(sid, "failed", _("The call could not be put through: %(why)s.") % {"why": sentence})
            elif code:
                yield Update(sid, "failed", _("The call could not be put through (code %(code)s).") % {"code": code[:20]})
            else:
                yield Update(sid, "failed", _("The call could not be put through; the Twilio console's call log says why."))


class TwilioSms(Twilio):
    kind = "twilio_sms"
    family = "sms"
    label = gettext_lazy("SMS (Twilio)")
    things = "Messages"
    format = "plain"
    limits = (Limit(1, 1),)
    max_chars = MOST_BODY
    Settings = SmsSettings

    def send(self, message: Message, address: str) -> Receipt:
        text = sms.simplify(_NOT_XML.sub("", message.text or message.subject))
        body = sms.fit(text, int(self.settings.get("most_parts") or MOST_PARTS), message.url)
        form = [("To", _phone(address)), ("Body", body)]
        if number := self._from(address):
            form.append(("From", number))
        elif service := self.settings.get("messaging_service"):
            form.append(("MessagingServiceSid", str(service)))
        else:
            raise DeliveryError(
                _(
                    "This channel has no number to write to %(address)s from: add one for its region, or one for all, to the channel's numbers."
                )
                % {"address": _region(address)},
                permanent=True,
                config=True,
            )
        url = self._reports()
        receipt = self._create(form, [("StatusCallback", url)] if url else [])
        return (
            receipt
            if body == text
            else Receipt(receipt.message_id, detail=_("shortened to %(count)d parts") % {"count": sms.segments(body).count})
        )

    def holds(self, text: str) -> bool:
        return sms.segments(sms.simplify(text)).count <= int(self.settings.get("most_parts") or MOST_PARTS)

    @classmethod
    def measure(cls, text: str) -> str:
        return sms.measure(sms.simplify(text))

    def _state(self, sid: str, said: Mapping[str, Any]) -> Iterator[Update]:
        yield from self._became(sid, str(said.get("status")), str(said.get("error_code") or ""))

    def _reported(self, fields: Mapping[str, str]) -> Iterator[Update]:
        if not (sid := fields.get("MessageSid") or fields.get("SmsSid", "")):
            raise ValueError("no MessageSid")
        yield from self._became(sid, fields.get("MessageStatus", ""), fields.get("ErrorCode", ""))

    def _became(self, sid: str, status: str, code: str) -> Iterator[Update]:
        if status in ("delivered", "read"):
            yield Update(sid, "delivered")
        elif status in ("undelivered", "failed", "canceled"):
            sentence = _why(code)
            if sentence:
                yield Update(sid, "failed", _("The SMS was not delivered: %(why)s.") % {"why": sentence})
            else:
                yield Update(sid, "failed", _("The SMS was not delivered (Twilio code %(code)s).") % {"code": code[:20] or "?"})


def signature_holds(callback: Callback, fields: Sequence[tuple[str, str]], token: str) -> bool:
    """Whether X-Twilio-Signature is that of the account: base64 of HMAC-SHA1 with the auth token over the address and, sorted by name, each
    field's name and value (of a repeated name each value once, sorted). A body that is no form is covered by its hash in the address.

    Twilio signs the address with or without the standard port, so both are tried. Source: "Security", Validating Signatures.
    """
    given = callback.headers.get("x-twilio-signature", "").encode()
    if "bodySHA256" in callback.query:
        if not hmac.compare_digest(hashlib.sha256(callback.body).hexdigest().encode(), callback.query["bodySHA256"].encode()):
            return False
        fields = ()
    tail = "".join(name + value for name, value in sorted(set(fields)))
    held = False
    for url in _with_and_without_port(callback.url):
        digest = hmac.new(token.encode(), (url + tail).encode("utf-8", "replace"), hashlib.sha1).digest()
        held |= hmac.compare_digest(base64.b64encode(digest), given)
    return held


def _with_and_without_port(url: str) -> list[str]:
    parts = http.split_url(url)
    if parts is None or not parts.hostname:
        return [url]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return [parts._replace(netloc=host).geturl(), parts._replace(netloc=f"{host}:{port}").geturl()]


def spoken(text: str, language: str) -> str:
    """TwiML that says `text` twice in the person's language, at most 4000 characters; what is too long ends at a word."""
    frame = '<Response><Say language="{0}">{1}</Say><Pause length="1"/><Say language="{0}">{1}</Say></Response>'
    speech = _LANGUAGES.get(language, "en-US")
    words = " ".join(_NOT_XML.sub(" ", text).split())
    room = (MOST_TWIML - len(frame.format(speech, ""))) // 2
    if len(escape(words)) > room:
        while len(escape(words)) > room:
            words = words[: len(words) - max(1, (len(escape(words)) - room) // 5)]
        cut = max(words.rfind(mark) for mark in " 。，；、")
        words = words[:cut] if cut > len(words) * 3 // 4 else words
    return frame.format(speech, escape(words))


def _phone(address: str) -> str:
    if not _E164.fullmatch(address):
        raise DeliveryError(_("The phone number must be written with + and the country code."), permanent=True)
    return address


def _region(address: str) -> str:
    """The beginning of a number: enough to find its region, and nobody's phone."""
    return f"{address[:4]}…"


def _why(code: str) -> str:
    """What an error code of a report means; "" where we do not know it."""
    return str(CODES[int(code)][0]) if re.fullmatch("[0-9]{5}", code) and int(code) in CODES else ""


def _code(answer: http.Answer) -> int | None:
    try:
        said = answer.json()
    except DeliveryError:
        return None
    code = said.get("code") or said.get("error_code")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _judge(answer: http.Answer) -> None:
    """Raise what the code of a refusal means, whatever its HTTP status; nothing where there is no code (of a message that was taken it is null)."""
    code = _code(answer)
    if code is None:
        return
    sentence, permanent, config = CODES.get(code, ("", 400 <= answer.status < 500 and answer.status != 429, False))
    if not sentence:
        text = _("Twilio refused the message (code %(code)d): %(body)s") % {"code": code, "body": answer.quote()}
    else:
        text = _("Twilio refused the message (code %(code)d): %(why)s.") % {"code": code, "why": sentence}
    raise DeliveryError(text, permanent=permanent, retry_after=answer.retry_after(), left=answer.status in http.NOBODY_KNOWS, config=config)
