"""A Microsoft Teams channel or chat through a Power Automate flow: an adaptive card posted to the flow's webhook, with links only.

Source: Microsoft Learn, "Create incoming webhooks with Workflows for Microsoft Teams", the Teams connector's limits, and the schema of Adaptive
Cards 1.4. The flow only says that it took the message (202): what becomes of the card stands in its run history. A card that it cannot post
(too large, no attachment) is answered with 202 as well, so the card is built and measured here."""

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

MAX_BODY = 26_000  # Teams drops cards above "approximately 28 KB"; how its gateway counts is not said
MAX_NAMES = (
    1_000  # characters of those who are mentioned: each stands five times in the card, which must not push an incident out of a bundle
)
RATE_WAIT = 30.0  # seconds after a 429 that names none
HOSTS = (".microsoft.com", ".powerplatform.com", ".azure.com", ".azure.cn", ".azure.us")
_PATH = re.compile(r".*/workflows/[A-Za-z0-9]+/triggers/[^/]+/paths/invoke/?")
_PERSON = re.compile(r"[^\s@<>&]{1,64}@[^\s@<>&]{1,190}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_COLOURS = {"Critical": "Attention", "Warning": "Warning", "Info": "Accent", "Ok": "Good"}
_HALF = re.compile(r"(\\+|\[[^\[\]]*(\](\([^()\s]*)?)?)$")

# status: (what it means and what to do, permanent)
STATUSES = {
    400: (
        gettext_lazy("the flow does not take it: it is switched off, or its trigger was changed. Switch it on in Power Automate"),
        True,
    ),
    401: (
        gettext_lazy(
            "the signature in the address is missing or has expired, or the flow's trigger is not open to “Anyone”: "
            "check the trigger and paste the address that the flow shows now"
        ),
        True,
    ),
    403: (
        gettext_lazy("the signature in the address is not valid (any more): paste the address that the flow shows now"),
        True,
    ),
    404: (gettext_lazy("the flow does not exist any more: make a new one and paste its address"), True),
    410: (gettext_lazy("the flow does not exist any more: make a new one and paste its address"), True),
    413: (gettext_lazy("the message is too large for the flow"), True),
    429: (gettext_lazy("too many messages for this flow (4 a second), or its owner's daily quota is used up"), False),
}
_CONFIG = {400, 401, 403, 404, 410}


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=1000,
        help_text=gettext_lazy(
            "The whole address of the flow “Post to a channel when a webhook request is received”, "
            "as the Workflows app shows it: https://….api.powerplatform.com/…&sig=…"
        ),
    )

    def clean_url(self) -> str:
        url, parts = chat.webhook(
            self.cleaned_data["url"], _("Paste the whole webhook address of the flow; it begins with https://."), HOSTS
        )
        host = str(parts.hostname)
        if host.endswith((".webhook.office.com", "outlook.office.com")):
            raise ValidationError(
                _("This is the address of an Office connector; Microsoft has retired them. Make a flow in the Workflows app.")
            )
        if host.endswith(".logic.azure.com"):
            raise ValidationError(
                _("Addresses at logic.azure.com have stopped working: open the flow in Power Automate and paste the new address it shows.")
            )
        if not _PATH.fullmatch(parts.path):
            raise ValidationError(
                _("A flow's address has the form https://….api.powerplatform.com/…/workflows/…/triggers/manual/paths/invoke?…")
            )
        if "sig=" not in parts.query:
            raise ValidationError(_("The signature (&sig=…) at the end of the address is missing: paste the whole address."))
        return url


class Teams(Transport):
    kind = "teams"
    label = gettext_lazy("Microsoft Teams (Workflows)")
    family = "im"
    reach = "group"
    group = True
    mentions_by = ("table",)
    format = "teams"
    limits = (Limit(4, 1),)
    concurrency = 1
    max_bytes = 18_000  # of the text: the card around it and the escapes of JSON need the rest, and a bundle must not be cut
    secret = frozenset({"url"})
    Settings = Settings

    def holds(self, text: str) -> bool:
        return chat.json_size(text) <= self.max_bytes  # the backslashes of its escapes take two bytes each in JSON

    def send(self, message: Message, address: str) -> Receipt:
        body, detail = self.compose(message)
        answer = self.http.post(self.settings["url"], json=body, status_only=True)
        _judge(answer)
        taken = _("taken by the flow; if no card appears, its run history in Power Automate says why")
        return Receipt(detail="; ".join(filter(None, [detail, taken])))

    def compose(self, message: Message) -> tuple[dict[str, Any], str]:
        """The request's body within MAX_BODY bytes, and one line on what could not be kept ("" if all was)."""
        mentions, more = transport.as_many([name for name in message.mentions if _PERSON.fullmatch(name)], MAX_NAMES)
        unknown = [name for name in message.mentions if not _PERSON.fullmatch(name)]
        with translation.override(message.language):
            elements: list[dict[str, Any]] = []
            if title := " ".join((message.subject or message.title).split())[:300]:
                # A TextRun is never read as Markdown nor searched for mentions: plain words stay plain words.
                look = {"size": "Large", "weight": "Bolder", "color": _colour(message)}
                elements.append({"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": title, **look}]})
            text_block = {"type": "TextBlock", "wrap": True, "text": ""}
            elements.append(text_block)
            if mentions:
                elements.append({"type": "TextBlock", "wrap": True, "text": " ".join(f"<at>{name}</at>" for name in mentions)})
            card: dict[str, Any] = {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.4",
                "body": elements,
                "actions": [{"type": "Action.OpenUrl", "title": label, "url": url} for label, url in chat.links(message)],
                "msteams": {
                    "width": "full",
                    "entities": [
                        {"type": "mention", "text": f"<at>{name}</at>", "mentioned": {"id": name, "name": name}} for name in mentions
                    ],
                },
            }
            envelope = {
                "type": "message",
                "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}],
            }
            room = MAX_BODY - chat.json_size(envelope)
            text = message.text
            if chat.json_size(text) > room:
                text = cut(text, room - 60) + "\n\n" + _("… shortened")
        text_block["text"] = text or " "
        detail = "" if text == message.text else _("shortened to 28 KB")
        if more:
            detail = "; ".join(filter(None, [detail, _("not mentioned: %(names)s") % {"names": ", ".join(more)}]))
        if unknown:
            names = _("not mentioned (neither a user name nor an Entra id): %(names)s") % {"names": ", ".join(unknown)}
            detail = "; ".join(filter(None, [detail, names]))
        return envelope, detail


def _judge(answer: http.Answer) -> None:
    if answer.status not in STATUSES:
        http.by_status(answer)
        if answer.body.lstrip().startswith(b"<"):  # a page: of a proxy or a portal on the way, or of another address
            raise DeliveryError(
                _("%(host)s answered with a page, so it was no flow: check the address, and the proxy if there is one.")
                % {"host": answer.host},
                permanent=False,
                left=True,
            )
        if _code(answer):
            raise DeliveryError(_("Teams' flow refused the message: %(body)s") % {"body": answer.quote()}, permanent=False)
        return
    sentence, permanent = STATUSES[answer.status]
    raise DeliveryError(
        _("Teams' flow refused the message (%(status)d%(code)s): %(why)s.")
        % {"status": answer.status, "code": _code(answer), "why": sentence},
        permanent=permanent,
        # Only a wait that was asked for is one; without it the address rests, and the outbox's own steps decide.
        retry_after=answer.retry_after(),
        blocked=(answer.retry_after() or RATE_WAIT) if answer.status == 429 else None,
        config=answer.status in _CONFIG,
    )


def _code(answer: http.Answer) -> str:
    """The code in {"error": {"code", "message"}}, for the sentence; "" where there is none."""
    try:
        code = answer.json()["error"]["code"]
    except (DeliveryError, KeyError, TypeError):
        return ""
    return f", {code}" if isinstance(code, str) and re.fullmatch(r"\w{1,60}", code) else ""


def cut(text: str, size: int) -> str:
    """The beginning of a Markdown text that takes at most `size` bytes of JSON."""
    return chat.cut_markdown(text, size, chat.json_size, _HALF, escapes=True)


def _colour(message: Message) -> str:
    return "Good" if message.event == "closed" else _COLOURS.get(message.severity, "Default")
