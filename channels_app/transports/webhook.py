"""A webhook of one's own: any URL, method and headers; a documented JSON body, or one written as a Jinja2 template.

The default body is one JSON object with the fields of `default_body`. Every request carries

    Idempotency-Key          the same for every attempt that carries the same: the delivery id, or an id of its own where it names several incidents
    X-Flashduty-Delivery     the delivery id
    X-Flashduty-Attempt      counts from 1
    X-Flashduty-Timestamp    Unix seconds when it was sent            } where the channel has a secret
    X-Flashduty-Signature    v1=<hex HMAC-SHA256 of the next line>    }

The signature is over `<timestamp>.<raw body>` with the secret's UTF-8 bytes as key. A receiver computes it over the bytes it got, compares in
constant time, and refuses a timestamp more than five minutes off. Any 2xx is success, whatever its body."""

import hashlib
import hmac
import json
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import http, transport
from channels_app.transport import Message, Receipt, Transport

METHODS = ("POST", "PUT", "PATCH")
# They would break the request itself, or pretend to be our signature.
RESERVED = ("host", "content-length", "transfer-encoding", "connection", "idempotency-key", "x-flashduty-")


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("URL"),
        max_length=2048,
        help_text=gettext_lazy("The final address: redirects are not followed. Private addresses must be allowed on the channel."),
    )
    method = forms.ChoiceField(label=gettext_lazy("method"), choices=[(name, name) for name in METHODS], initial="POST", required=False)
    headers = transport.HeadersField(
        reserved=RESERVED, label=gettext_lazy("headers"), required=False, initial=dict,
        help_text=gettext_lazy('A JSON object, such as {"Authorization": "Bearer …"}.')
    )  # fmt: skip
    body = forms.CharField(
        label=gettext_lazy("body"),
        required=False,
        widget=forms.Textarea,
        help_text=gettext_lazy("A Jinja2 template of the whole body. Empty: the default JSON object, see the documentation."),
    )
    secret = forms.CharField(
        label=gettext_lazy("signing secret"),
        required=False,
        max_length=200,
        help_text=gettext_lazy("Signs each request with HMAC-SHA256 in X-Flashduty-Signature. Empty: not signed."),
    )

    def clean_url(self) -> str:
        url = str(self.cleaned_data["url"]).strip()
        # Hosts without a dot (a container's name) are common here; Django's own check refuses them, so only the form is checked.
        parts = http.split_url(url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or any(char.isspace() for char in url):
            raise ValidationError(_("The address must begin with http:// or https:// and name a host."))
        return url

    def clean_method(self) -> str:
        return str(self.cleaned_data["method"] or "POST")


class Webhook(Transport):
    kind = "webhook"
    label = gettext_lazy("Webhook")
    reach = "group"
    group = True
    format = "webhook"  # the text is the whole body, rendered from the setting `body`; "" asks for the default body
    concurrency = 128
    secret = frozenset({"url", "headers", "secret"})
    Settings = Settings

    def send(self, message: Message, address: str) -> Receipt:
        body = (message.text or json.dumps(default_body(message), ensure_ascii=False)).encode("utf-8", "replace")
        headers = {"Content-Type": _content_type(message.text), **(self.settings.get("headers") or {})}
        headers |= {
            "Idempotency-Key": message.idempotency_key or message.delivery_id,
            "X-Flashduty-Delivery": message.delivery_id,
            "X-Flashduty-Attempt": str(message.attempt),
        }
        if self.settings.get("secret"):
            headers |= signed(str(self.settings["secret"]), int(message.sent_at.timestamp()), body)
        answer = self.http.request(
            self.settings.get("method") or "POST", self.settings["url"], data=body, headers=headers, status_only=True
        )  # fmt: skip
        http.by_status(answer)
        return Receipt(detail=f"{answer.status}")


def default_body(message: Message) -> dict[str, Any]:
    """The JSON object that is sent where the channel has no template of its own; `url` is "" where there is nothing to open."""
    return {
        "delivery_id": message.delivery_id,
        "attempt": message.attempt,  # from 1
        "possible_repeat": message.possible_repeat,  # an earlier attempt of this delivery ended unknown
        "event": message.event,  # triggered, escalated, refire, acknowledged, closed; code, test
        "title": message.title,
        "incident_id": message.incident_id,
        "num": message.num,
        "severity": message.severity,
        "layer_idx": message.layer_idx,
        "url": message.url,
        "incidents": [
            {name: one.get(name) for name in ("id", "title", "severity", "event", "possible_repeat")} for one in message.incidents
        ],
    }


def signed(secret: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The two signature headers for `body` sent at `timestamp` (Unix seconds)."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"X-Flashduty-Timestamp": str(timestamp), "X-Flashduty-Signature": f"v1={digest}"}


def _content_type(text: str) -> str:
    try:
        if text:
            json.loads(text)
    except ValueError:
        return "text/plain; charset=utf-8"
    return "application/json; charset=utf-8"
