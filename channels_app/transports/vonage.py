"""Vonage: a call that is spoken twice; what became of it comes as a signed event, or is asked for where Vonage cannot call us.

Sources: Vonage's Voice API reference (calls, NCCO "talk"), "Voice API Webhooks Reference", and "Signed webhooks" for the token of an event."""

import base64
import functools
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import http, transport
from channels_app.transport import Callback, DeliveryError, Heard, Limit, Message, Receipt, Transport, Update

API = "https://api.nexmo.com"
RING_SECONDS = 45
MOST_TEXT = 1500
MOST_ASKED = 100  # calls in one poll; the others are asked about in the next
TOKEN_SECONDS = 300  # how long a token of ours holds: a machine's clock may be wrong by as much
FRESH_SECONDS = 300  # how old an event may be: an older one is somebody's copy
_LANGUAGES = {"zh-hans": "cmn-CN", "en": "en-US"}
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Control characters; and < >, since a text in <speak> would be read as markup.
_UNSPOKEN = re.compile("[\x00-\x1f\x7f<>\ud800-\udfff\ufffe\uffff]")

REFUSALS: Mapping[int, Any] = {
    400: gettext_lazy("it does not understand the request; check the channel's numbers: they must be rented from Vonage"),
    401: gettext_lazy("application ID and private key do not belong together, or this machine's clock is wrong by minutes"),
    402: gettext_lazy("the account has no credit left"),
    403: gettext_lazy("the account may not call this country, or not from our number: see the Vonage dashboard"),
    404: gettext_lazy("there is no such application: check the application ID"),
    429: gettext_lazy("too many calls at once"),
}
_ENDS: Mapping[str, Any] = {
    "machine": gettext_lazy("Voice mail or another machine picked up."),
    "busy": gettext_lazy("The line was busy."),
    "rejected": gettext_lazy("The call was rejected."),
    "unanswered": gettext_lazy("Nobody answered."),
    "timeout": gettext_lazy("Nobody answered."),
    "cancelled": gettext_lazy("The call was cancelled before anybody answered."),
    "failed": gettext_lazy("The call could not be put through."),
}


class Settings(transport.Settings):
    application_id = forms.CharField(
        label=gettext_lazy("application ID"),
        max_length=36,
        help_text=gettext_lazy("Of an application with the Voice capability: Vonage dashboard, Build, Applications."),
    )
    private_key = forms.CharField(
        label=gettext_lazy("private key"),
        max_length=10_000,
        widget=forms.Textarea(attrs={"rows": 6}),
        help_text=gettext_lazy("The whole file private.key that the dashboard offers for the application, from -----BEGIN to -----END."),
    )
    signature_secret = forms.CharField(
        label=gettext_lazy("signature secret"),
        required=False,
        max_length=200,
        help_text=gettext_lazy(
            "Vonage dashboard, API settings. It proves that reports are Vonage's. Empty: Vonage is asked every few seconds instead."
        ),
    )
    numbers = transport.NumbersField()
    machine_detection = forms.BooleanField(
        label=gettext_lazy("notice voice mail"),
        required=False,
        help_text=gettext_lazy(
            "Vonage listens whether a machine has picked up; such a call counts as not answered. Off: whatever picks up counts as answered."
        ),
    )
    api_base = forms.CharField(
        label=gettext_lazy("API address"),
        required=False,
        max_length=200,
        help_text=gettext_lazy(
            "Only for another region (https://api-eu-3.vonage.com) or a proxy of yours. Default: https://api.nexmo.com."
        ),
    )

    def clean_application_id(self) -> str:
        found = str(self.cleaned_data["application_id"]).strip().lower()
        if not _UUID.fullmatch(found):
            raise ValidationError(_("An application ID looks like 78d335fa-323d-0114-9c3d-d6f0d48968cf. The API key is something else."))
        return found

    def clean_private_key(self) -> str:
        text = str(self.cleaned_data["private_key"]).strip() + "\n"
        try:
            load_key(text)
        except ValueError:
            raise ValidationError(
                _("Paste the whole file private.key, from -----BEGIN PRIVATE KEY----- to -----END PRIVATE KEY-----, without a password.")
            ) from None
        return text

    def clean_signature_secret(self) -> str:
        return str(self.cleaned_data["signature_secret"] or "").strip()

    def clean_api_base(self) -> str:
        base = str(self.cleaned_data["api_base"] or "").strip().rstrip("/") or API
        parts = http.split_url(base)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ValidationError(_("Enter the address as https://api.nexmo.com."))
        if parts.scheme == "http" and parts.hostname.endswith(("nexmo.com", "vonage.com")):
            raise ValidationError(_("The address must begin with https://."))
        return base


class VonageVoice(Transport):
    kind = "vonage_voice"
    family = "voice"
    label = gettext_lazy("Voice call (Vonage)")
    reach = "phone"
    person = True
    format = "voice"
    # A second page would run into the call that still rings at the same phone: it waits, and takes along what comes meanwhile.
    limits = (Limit(1, 30), Limit(3, 1, "channel"))
    max_chars = MOST_TEXT
    secret = frozenset({"private_key", "signature_secret"})
    unsent = frozenset({"signature_secret"})
    Settings = Settings

    def send(self, message: Message, address: str) -> Receipt:
        if not re.fullmatch(r"\+[1-9][0-9]{6,14}", address):
            raise DeliveryError(_("The phone number must be written with + and the country code."), permanent=True)
        number = transport.number_for(transport.parse_numbers(str(self.settings.get("numbers") or "")), address)
        if not number:
            raise DeliveryError(
                _("This channel has no number to call %(address)s from: add one for its region, or one for all, to the channel's numbers.")
                % {"address": f"{address[:4]}…"},
                permanent=True,
                config=True,
            )
        talk = {
            "action": "talk", "text": spoken(message.text or message.subject), "language": _LANGUAGES.get(message.language, "en-US"), "loop": 2,
        }  # fmt: skip
        call: dict[str, Any] = {
            "to": [{"type": "phone", "number": address[1:]}],
            "from": {"type": "phone", "number": number[1:]},
            "ncco": [talk],
            "ringing_timer": RING_SECONDS,
        }
        if self.settings.get("machine_detection"):
            call["machine_detection"] = "continue"
        if self.settings.get("signature_secret") and http.is_public(self.callback_url):
            call |= {"event_url": [self.callback_url], "event_method": "POST"}
        answer = self.http.post(f"{self._address()}/v1/calls", json=call, headers=self._who(message.sent_at.timestamp()))
        _judge(answer)
        said = answer.json()
        uuid = said.get("uuid")
        if not isinstance(uuid, str) or not uuid:
            if said.get("title") or said.get("error_title"):  # a refusal, whatever a proxy made of its status
                raise DeliveryError(_("Vonage refused the call: %(body)s") % {"body": answer.quote()}, permanent=False)
            raise DeliveryError(
                _("%(host)s answered without an id of the call: %(body)s") % {"host": answer.host, "body": answer.quote()},
                permanent=False,
                left=True,
            )
        return Receipt(message_id=uuid)

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """Asks for each of them, a request each; what is unknown at Vonage has no answer."""
        found: list[Update] = []
        try:
            for uuid in message_ids[:MOST_ASKED]:
                answer = self.http.request("GET", f"{self._address()}/v1/calls/{quote(uuid, safe='')}", headers=self._who(time.time()))
                if answer.status == 404:
                    continue
                _judge(answer)
                status = str(answer.json().get("status"))
                # Of a call that is over nobody will say more: it was picked up, by whomever.
                found += [Update(uuid, "delivered")] if status == "completed" else self._became(uuid, status)
        except DeliveryError:
            if not found:
                raise
        return found

    def receive(self, callback: Callback) -> Heard:
        """One event, in a token that covers its body and is at most five minutes old; what has no end yet says nothing."""
        check_token(callback, str(self.settings.get("signature_secret") or ""), str(self.settings["application_id"]))
        try:
            said = json.loads(callback.body)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if not isinstance(said, dict) or not isinstance(said.get("uuid"), str) or not isinstance(said.get("status"), str):
            raise ValueError("no event of a call")
        return Heard(tuple(self._became(said["uuid"], said["status"])), status=204)

    def _became(self, uuid: str, status: str) -> Iterator[Update]:
        if status in _ENDS:
            yield Update(uuid, "failed", str(_ENDS[status]))
        elif status == "human" or (status in ("answered", "completed") and not self.settings.get("machine_detection")):
            yield Update(uuid, "delivered")

    def _address(self) -> str:
        return str(self.settings.get("api_base") or API)

    def _who(self, now: float) -> dict[str, str]:
        claims = {"application_id": self.settings["application_id"], "iat": int(now), "exp": int(now) + TOKEN_SECONDS, "jti": str(uuid4())}
        return {"Authorization": f"Bearer {signed(claims, str(self.settings['private_key']))}"}


def signed(claims: Mapping[str, Any], private_key: str) -> str:
    """A JWT with `claims`, signed by RS256. Source: RFC 7515 and 7518, section 3.3."""
    head = ".".join(_b64(json.dumps(part, separators=(",", ":")).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
    try:
        key = load_key(private_key)
    except ValueError:
        raise DeliveryError(_("The private key of the channel cannot be read: paste it anew."), permanent=True, config=True) from None
    return f"{head}.{_b64(key.sign(head.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


@functools.lru_cache(maxsize=64)
def load_key(text: str) -> rsa.RSAPrivateKey:
    """An RSA key in PEM without a password; ValueError where it is anything else."""
    try:
        key = serialization.load_pem_private_key(text.encode(), None)
    except (TypeError, UnsupportedAlgorithm) as error:
        raise ValueError("not a key that we can read") from error
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("not an RSA key")
    return key


def check_token(callback: Callback, secret: str, application_id: str) -> None:
    """PermissionError unless the Authorization header holds a JWT (HS256 with the account's signature secret) over exactly this body, of this
    application, issued within five minutes of `received_at`. Source: "Signed webhooks", Validating."""
    scheme, _space, token = callback.headers.get("authorization", "").partition(" ")
    head, _dot, tail = token.strip().rpartition(".")
    digest = hmac.new(secret.encode(), head.encode("utf-8", "replace"), hashlib.sha256).digest()
    if not secret or scheme.lower() != "bearer" or not hmac.compare_digest(_b64(digest).encode(), tail.encode("utf-8", "replace")):
        raise PermissionError("the event's signature does not hold: check the signature secret")
    try:
        header, claims = (json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in head.split("."))
        algorithm, issued = header["alg"], float(claims["iat"])
        covers, application = str(claims.get("payload_hash", "")), str(claims.get("application_id", application_id))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PermissionError("the event's token is malformed") from None
    if algorithm != "HS256":
        raise PermissionError("the event's token is signed by another algorithm")
    if not abs(callback.received_at.timestamp() - issued) <= FRESH_SECONDS:
        raise PermissionError("the event is not of the last five minutes: a copy, or this machine's clock is wrong")
    if application.lower() != application_id.lower():
        raise PermissionError("the event is of another application")
    if not hmac.compare_digest(hashlib.sha256(callback.body).hexdigest().encode(), covers.lower().encode("utf-8", "replace")):
        raise PermissionError("the event's token is of another body")


def spoken(text: str) -> str:
    """`text` as one line of at most 1500 characters without anything that would be read as markup; what is too long ends at a word."""
    words = " ".join(_UNSPOKEN.sub(" ", text).split())
    if len(words) <= MOST_TEXT:
        return words
    words = words[:MOST_TEXT]
    cut = max(words.rfind(mark) for mark in " 。，；、")
    return words[:cut] if cut > MOST_TEXT * 3 // 4 else words


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _judge(answer: http.Answer) -> None:
    """Raise what a refusal means; its status says it."""
    why = REFUSALS.get(answer.status)
    if why is None:
        http.by_status(answer)
        return
    raise DeliveryError(
        _("Vonage refused the call (%(status)d): %(why)s. It said: %(body)s")
        % {"status": answer.status, "why": why, "body": answer.quote() or "-"},
        permanent=answer.status != 429,
        retry_after=answer.retry_after(),
        config=answer.status in (401, 402, 403, 404),
    )
