"""A Mattermost channel through an incoming webhook: one Markdown message. The server is the company's own, so any host will do.

Sources: Mattermost, "Incoming webhooks", and the server's own handling of them (HandleIncomingWebhook: the ids of its errors; a text longer than
a post, 16,383 characters, is split there into several; Slack's <!channel>, <@user> and <address|words> are translated first). The answer to a
message that was taken is the two letters `ok`."""

import json
import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

MAX_TEXT = 16_383  # characters of one post
RATE_WAIT = 10.0  # seconds after a 429 that names none: the limit is the server's own (10 a second by default)
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)*/hooks/[A-Za-z0-9]+/?")
_USER = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HALF = re.compile(r"(\\+|\[[^\[\]]*(\](\([^()\s]*)?)?)$")

# id of the server's error: what it means and what to do; each needs an operator
IDS = {
    "web.incoming_webhook.invalid.app_error": gettext_lazy(
        "the webhook was deleted, or the address is wrong: paste the webhook's address again"
    ),
    "web.incoming_webhook.disabled.app_error": gettext_lazy(
        "incoming webhooks are switched off on the server: a system administrator can allow them (System Console, Integrations)"
    ),
    "web.incoming_webhook.channel.app_error": gettext_lazy(
        "the webhook's channel does not exist any more: choose another one for the webhook"
    ),
    "app.channel.get.existing.app_error": gettext_lazy("the webhook's channel does not exist any more: choose another one for the webhook"),
    "web.incoming_webhook.channel_locked.app_error": gettext_lazy("the webhook is locked to another channel"),
    "web.incoming_webhook.permissions.app_error": gettext_lazy(
        "the webhook's owner may not write to the channel (any more): make the owner a member of it, or make a new webhook"
    ),
    "web.incoming_webhook.user.app_error": gettext_lazy("the webhook's owner does not exist any more: make a new webhook"),
}


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=500,
        help_text=gettext_lazy("The whole address as Mattermost shows it: https://mattermost.example.com/hooks/…"),
    )

    def clean_url(self) -> str:
        url, parts = chat.webhook(
            self.cleaned_data["url"], _("Paste the whole webhook address; it begins with https:// and the name of your Mattermost server.")
        )
        if not _PATH.fullmatch(parts.path):
            raise ValidationError(_("An incoming webhook has the form https://mattermost.example.com/hooks/ and a long key."))
        return url


class Mattermost(Transport):
    kind = "mattermost"
    label = gettext_lazy("Mattermost")
    family = "im"
    reach = "group"
    group = True
    mentions_by = ("table",)
    format = "mattermost"
    limits = (Limit(5, 1),)
    concurrency = 1
    max_chars = 15_000  # of the text: mentions and the link to the rest follow it, and a bundle must not be cut
    secret = frozenset({"url"})
    Settings = Settings

    def send(self, message: Message, address: str) -> Receipt:
        text, detail = self.compose(message)
        answer = self.http.post(self.settings["url"], json={"text": text})
        _judge(answer)
        http.by_status(answer)
        if answer.body.strip() != b"ok":
            raise DeliveryError(
                _("%(host)s answered something else than “ok”: %(body)s") % {"host": answer.host, "body": answer.quote()},
                permanent=False,
                left=True,
            )
        return Receipt(detail=detail)

    def compose(self, message: Message) -> tuple[str, str]:
        """The text within one post, and one line on what could not be kept ("" if all was)."""
        named = [f"@{name.removeprefix('@').lower()}" for name in message.mentions if _USER.fullmatch(name)]
        mentions, more = transport.as_many(named, MAX_TEXT - self.max_chars - 2)
        unknown = [name for name in message.mentions if not _USER.fullmatch(name)]
        text, detail = message.text, ""
        with translation.override(message.language):
            tail = f"\n\n{' '.join(mentions)}" if mentions else ""
            if len(text) + len(tail) > MAX_TEXT:
                rest = "\n\n" + _("… shortened") + (f" [{_('Detail')}]({message.url})" if message.url and len(message.url) < 2000 else "")
                text = cut(text, MAX_TEXT - len(rest) - len(tail)) + rest
        if text != message.text:
            detail = _("shortened to 16,383 characters")
        if more:
            detail = "; ".join(filter(None, [detail, _("not mentioned: %(names)s") % {"names": ", ".join(more)}]))
        if unknown:
            names = _("not mentioned (no Mattermost user name): %(names)s") % {"names": ", ".join(unknown)}
            detail = "; ".join(filter(None, [detail, names]))
        return (text or " ") + tail, detail


def _judge(answer: http.Answer) -> None:
    """Raise what the server's error object means, and what a 429 does; nothing where there is neither."""
    wait = answer.retry_after()
    if answer.status == 429:
        raise DeliveryError(
            _("Mattermost takes no more messages at the moment: its rate limit is reached."),
            permanent=False,
            retry_after=wait,
            blocked=wait or RATE_WAIT,
        )
    code = _id(answer)
    if code in IDS:
        raise DeliveryError(
            _("Mattermost refused the message (%(code)s): %(why)s.") % {"code": code, "why": IDS[code]}, permanent=True, config=True
        )


def _id(answer: http.Answer) -> str:
    """The id in {"id", "message", "status_code"}; "" where there is none."""
    try:
        found: Any = json.loads(answer.body)["id"]
    except (ValueError, KeyError, TypeError):
        return ""
    return found if isinstance(found, str) else ""


def cut(text: str, size: int) -> str:
    """The beginning of a message with at most `size` characters."""
    return chat.cut_markdown(text, size - 2, len, _HALF, escapes=True)
