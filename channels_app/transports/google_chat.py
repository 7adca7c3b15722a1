"""A Google Chat space through its incoming webhook: one text message, the messages of an incident in one thread.

Text and not cards: a card's words are HTML and cannot mention anybody, and a phone's notification shows only the text. Sources: Google Workspace,
"Build a Google Chat app as a webhook", "Format messages", spaces.messages.create, "Usage limits" (one write a second and space, shared by all apps
in it). The same requestId gives the message that is there already instead of a second one, so a repeat after an unknown outcome is none."""

import re
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

MAX_TEXT = (
    4096  # characters; the API refuses more in 400 ("Maximum length of the field is 4096"), though the whole message may have 32,000 bytes
)
RATE_WAIT = 30.0  # seconds after a 429 that names none
_PATH = re.compile(r"/v1/spaces/[A-Za-z0-9_-]+/messages/?")
_USER = re.compile(r"(users/)?(all|\d{5,30}|[^\s<>|/@]{1,64}@[^\s<>|/@]{1,190})")
_HALF = re.compile(r"(<[^<>]{0,2000})$")

# google.rpc status: (what it means and what to do, permanent, whether an operator must act)
STATUSES = {
    "INVALID_ARGUMENT": (gettext_lazy("the message is malformed or too long"), True, False),
    "FAILED_PRECONDITION": (gettext_lazy("the space does not take messages from apps any more"), True, True),
    "UNAUTHENTICATED": (gettext_lazy("the key or token in the address is not valid: paste the webhook's address again"), True, True),
    "PERMISSION_DENIED": (
        gettext_lazy(
            "the token in the address is not valid (any more), or the organisation has switched incoming webhooks off: "
            "add a webhook to the space again and paste its address"
        ),
        True,
        True,
    ),
    "NOT_FOUND": (gettext_lazy("the space or its webhook was deleted: add a webhook to a space and paste its address"), True, True),
    "RESOURCE_EXHAUSTED": (gettext_lazy("too many messages for this space (one a second for all apps in it)"), False, False),
    "ABORTED": (gettext_lazy("Google Chat asks to try again"), False, False),
    "UNAVAILABLE": (gettext_lazy("Google Chat is not available at the moment"), False, False),
    "INTERNAL": (gettext_lazy("Google Chat has an error of its own"), False, False),
}
_KEY = gettext_lazy("the key in the address is not valid: paste the whole address of the webhook again")


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=1000,
        help_text=gettext_lazy(
            "The whole address as the space's page “Apps & integrations” shows it: https://chat.googleapis.com/v1/spaces/…"
        ),
    )
    threads = forms.BooleanField(
        label=gettext_lazy("one thread for each incident"),
        required=False,
        initial=True,
        help_text=gettext_lazy("All messages of an incident are replies in one thread. Spaces without threads ignore it."),
    )

    def clean_url(self) -> str:
        url, parts = chat.webhook(
            self.cleaned_data["url"],
            _("Paste the whole webhook address; it begins with https://chat.googleapis.com/."),
            ("googleapis.com",),
        )
        if not _PATH.fullmatch(parts.path):
            raise ValidationError(_("A space's webhook has the form https://chat.googleapis.com/v1/spaces/…/messages?key=…&token=…"))
        if "key=" not in parts.query or "token=" not in parts.query:
            raise ValidationError(_("The address must end with ?key=…&token=…: paste the whole address."))
        return url


class GoogleChat(Transport):
    kind = "google_chat"
    label = gettext_lazy("Google Chat")
    family = "im"
    reach = "group"
    group = True
    mentions_by = ("table",)
    format = "google_chat"
    limits = (Limit(1, 1), Limit(60, 60))
    concurrency = 1
    max_chars = 3_700  # of the text: mentions and the link to the rest follow it, and a bundle must not be cut
    secret = frozenset({"url"})
    Settings = Settings

    def send(self, message: Message, address: str) -> Receipt:
        text, detail = self.compose(message)
        body: dict[str, Any] = {"text": text}
        query = {"requestId": message.idempotency_key or message.delivery_id}
        if self.settings.get("threads", True) and message.incident_id and len(message.incidents) <= 1:
            body["thread"] = {"threadKey": f"incident-{message.incident_id}"}
            query["messageReplyOption"] = "REPLY_MESSAGE_FALLBACK_TO_NEW_THREAD"
        url = str(self.settings["url"])
        answer = self.http.post(f"{url}&{urlencode(query)}", json=body)
        if answer.status >= 300:
            _judge(answer)  # says more than the status, where it is there
        http.by_status(answer)
        _judge(answer)
        name = answer.json().get("name")
        if not isinstance(name, str) or not name.startswith("spaces/"):
            raise DeliveryError(
                _("%(host)s answered without a message's name: %(body)s") % {"host": answer.host, "body": answer.quote()},
                permanent=False,
                left=True,
            )
        return Receipt(name, detail=detail)

    def compose(self, message: Message) -> tuple[str, str]:
        """The text within 4,096 characters, and one line on what could not be kept ("" if all was)."""
        named = [f"<users/{name.removeprefix('users/')}>" for name in message.mentions if _USER.fullmatch(name)]
        mentions, more = transport.as_many(named, MAX_TEXT - self.max_chars - 1)
        unknown = [name for name in message.mentions if not _USER.fullmatch(name)]
        text, detail = message.text, ""
        with translation.override(message.language):
            tail = f"\n{' '.join(mentions)}" if mentions else ""
            if len(text) + len(tail) > MAX_TEXT:
                rest = "\n" + _("… shortened") + (f" <{message.url}|{_('Detail')}>" if message.url and len(message.url) < 1500 else "")
                text = cut(text, MAX_TEXT - len(rest) - len(tail)) + rest
        if text != message.text:
            detail = _("shortened to 4,096 characters")
        if more:
            detail = "; ".join(filter(None, [detail, _("not mentioned: %(names)s") % {"names": ", ".join(more)}]))
        if unknown:
            names = _("not mentioned (no Google Chat user id): %(names)s") % {"names": ", ".join(unknown)}
            detail = "; ".join(filter(None, [detail, names]))
        return (text or " ") + tail, detail


def _judge(answer: http.Answer) -> None:
    """Raise what the error object of the body means, whatever the HTTP status; nothing where there is none that is known."""
    try:
        error = answer.json()["error"]
        sentence, permanent, config = STATUSES[error["status"]]
        if any(isinstance(item, dict) and item.get("reason") == "API_KEY_INVALID" for item in error.get("details") or ()):
            sentence, config = _KEY, True
    except (DeliveryError, KeyError, TypeError, AttributeError):
        return
    wait = answer.retry_after()
    raise DeliveryError(
        _("Google Chat refused the message (%(status)s): %(why)s.") % {"status": error["status"], "why": sentence},
        permanent=permanent,
        retry_after=wait,
        blocked=(wait or RATE_WAIT) if error["status"] == "RESOURCE_EXHAUSTED" else None,
        config=config,
    )


def cut(text: str, size: int) -> str:
    """The beginning of a message with at most `size` characters."""
    return chat.cut_markdown(text, size - 1, len, _HALF, bold="*")
