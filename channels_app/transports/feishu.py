"""A Feishu or Lark group bot (custom bot): a card by webhook, with links only; the bot tells no message id and cannot edit or recall.

Source: Feishu Open Platform, "Custom bot usage guide". A refusal comes as HTTP 200 with a code, so the status alone says nothing."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

MAX_BODY = 20_000  # the provider's 20 KB, in the smaller reading
MAX_NAMES = 1_000  # characters of those who are mentioned, so that they never push an incident out of a bundle
HOSTS = ("feishu.cn", "larksuite.com", "larkoffice.com")
_PATH = re.compile(r"/open-apis/bot/v2/hook/[A-Za-z0-9_-]{8,}/?")
_ID = re.compile(r"all|[A-Za-z0-9_\-]{1,80}")
_ENTITY = re.compile(r"&#?\w+;")
_HALF = re.compile(r"(&#?\w{0,8}|<[^<>]{0,200}|\[[^\[\]]*(\](\([^()]*)?)?)$")
_COLOURS = {"Critical": "red", "Warning": "orange", "Info": "blue", "Ok": "green"}

# code: (sentence, permanent, seconds to wait)
CODES = {
    11232: (gettext_lazy("too many messages for this bot (100 a minute, 5 a second)"), False, 60.0),
    9499: (gettext_lazy("the message is malformed or larger than 20 KB"), True, None),
    19001: (
        gettext_lazy("the webhook address is not valid, or the bot was removed from the group: add it again and paste the new address"),
        True,
        None,
    ),
    19021: (gettext_lazy("the signature does not match: check the sign secret and this machine's clock"), True, None),
    19022: (gettext_lazy("this machine's address is not in the bot's IP list: add it there"), True, None),
    19024: (gettext_lazy("the message does not contain the bot's keyword: enter the keyword in the channel's settings"), True, None),
}
_CONFIG = {19001, 19021, 19022, 19024}
_TOO_LONG = 9499


class _TooLong(DeliveryError):
    """Refused, perhaps for its size, so nothing arrived: it may go again, shorter."""


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=500,
        help_text=gettext_lazy(
            "The whole address as the group bot's page shows it: https://open.feishu.cn/open-apis/bot/v2/hook/… (Lark: open.larksuite.com)."
        ),
    )
    keyword = forms.CharField(
        label=gettext_lazy("keyword"),
        required=False,
        initial="#",
        max_length=50,
        help_text=gettext_lazy(
            "The custom keyword of the bot's security settings. It is added to a message that does not have it. Default: #."
        ),
    )
    secret = forms.CharField(
        label=gettext_lazy("sign secret"),
        required=False,
        max_length=200,
        help_text=gettext_lazy("Only if “Signature verification” is on in the bot's security settings."),
    )

    def clean_url(self) -> str:
        url, parts = chat.webhook(
            self.cleaned_data["url"],
            _("Paste the whole webhook address; it begins with https://open.feishu.cn/ or https://open.larksuite.com/."),
            HOSTS,
        )
        if parts.path.startswith("/open-apis/bot/hook/"):
            raise ValidationError(_("This is an address of the old kind of bot; add a custom bot to the group and paste its address."))
        if not _PATH.fullmatch(parts.path):
            raise ValidationError(_("A group bot's address has the form https://open.feishu.cn/open-apis/bot/v2/hook/ and a long key."))
        return url

    def clean_keyword(self) -> str:
        return str(self.cleaned_data["keyword"] or "").strip() or "#"


class Feishu(Transport):
    kind = "feishu"
    label = gettext_lazy("Feishu/Lark group bot")
    family = "im"
    reach = "group"
    group = True
    mentions_by = ("table",)
    format = "feishu"
    # Of 100 and 5: a request that was slow to arrive is nearer to the next ones for the provider than it was for us.
    limits = (Limit(95, 60), Limit(4, 1))
    concurrency = 1
    max_bytes = 16_000  # of the text: the card around it and the escapes of JSON need the rest, and a bundle must not be cut
    secret = frozenset({"url", "secret"})
    Settings = Settings

    def holds(self, text: str) -> bool:
        return chat.json_size(text) <= self.max_bytes  # backslashes and quotes take two bytes in JSON

    def send(self, message: Message, address: str) -> Receipt:
        body, detail = self.compose(message)
        try:
            self._hand_over(body, message)
        except _TooLong:
            # One code stands for a message that is too long and for one it cannot read: a short one is worth a try.
            if chat.json_size(body) <= MAX_BODY // 4:
                raise
            body, detail = self.compose(message, MAX_BODY // 2)
            self._hand_over(body, message)
        return Receipt(detail=detail)

    def _hand_over(self, body: dict[str, Any], message: Message) -> None:
        if self.settings.get("secret"):
            timestamp = str(int(message.sent_at.timestamp()))
            body = body | {"timestamp": timestamp, "sign": sign(timestamp, str(self.settings["secret"]))}
        answer = self.http.post(self.settings["url"], json=body)
        if chat.code_of(answer, _judge_code, _code):
            raise DeliveryError(_("Feishu refused the message: %(body)s") % {"body": answer.quote()}, permanent=False)

    def compose(self, message: Message, most: int = MAX_BODY) -> tuple[dict[str, Any], str]:
        """The request's body of at most `most` bytes, unsigned, and one line on what could not be kept ("" if all was)."""
        mentions, more = transport.as_many([name for name in message.mentions if _ID.fullmatch(name)], MAX_NAMES)
        unknown = [name for name in message.mentions if not _ID.fullmatch(name)]
        with translation.override(message.language):
            tail = "".join(f"<at id={name}></at>" for name in mentions)
            keyword = self.settings.get("keyword") or "#"
            title = " ".join((message.subject or message.title).split())[:200]
            if keyword not in _ENTITY.sub("", title + message.text):
                tail = f"{tail} {keyword}".strip()
            card = {
                "config": {"wide_screen_mode": True},
                "header": {"template": _colour(message), "title": {"tag": "plain_text", "content": title or keyword}},
                "elements": [{"tag": "div", "text": {"tag": "lark_md", "content": ""}}, *_buttons(message)],
            }
            room = most - 200 - chat.json_size(card) - chat.json_size(tail)  # 200: the frame, signature and timestamp
            text, is_cut = message.text, False
            if chat.json_size(text) > room:
                # Each of these takes two bytes in JSON; with a look-alike of one byte everything may still be said.
                text = text.replace('"', "'")
            if chat.json_size(text) > room:
                # A keyword further down would be cut away with it.
                tail = tail if keyword in tail else f"{tail} {keyword}".strip()
                text, is_cut = cut(text, room - chat.json_size(keyword) - 60) + "\n" + _("… shortened"), True
        card["elements"][0]["text"]["content"] = f"{text}\n{tail}" if tail else text  # type: ignore[index]
        detail = _("shortened to %(size)s bytes") % {"size": f"{most:,}"} if is_cut else ""
        if more:
            detail = "; ".join(filter(None, [detail, _("not mentioned: %(names)s") % {"names": ", ".join(more)}]))
        if unknown:
            detail = "; ".join(filter(None, [detail, _("not mentioned (no Feishu id): %(names)s") % {"names": ", ".join(unknown)}]))
        return {"msg_type": "interactive", "card": card}, detail


def _judge_code(answer: http.Answer) -> None:
    """Raise what a code of the provider's table means; nothing where there is no code of it."""
    try:
        sentence, permanent, wait = CODES[code := _code(answer.json()) or 0]
    except (DeliveryError, KeyError):
        return
    raise (_TooLong if code == _TOO_LONG else DeliveryError)(
        _("Feishu refused the message (code %(code)d): %(why)s.") % {"code": code, "why": sentence},
        permanent=permanent,
        retry_after=wait,
        blocked=wait,
        config=code in _CONFIG,
    )


def sign(timestamp: str, secret: str) -> str:
    """The bot's signature: HMAC-SHA256 over nothing, with "timestamp\\nsecret" as the key (not the other way round), base64.

    `timestamp` is Unix seconds, at most an hour from the server's clock. Source: "Custom bot usage guide", signature verification.
    """
    return base64.b64encode(hmac.new(f"{timestamp}\n{secret}".encode(), b"", hashlib.sha256).digest()).decode()


def cut(text: str, size: int) -> str:
    """The beginning of a lark_md text that takes at most `size` bytes of JSON."""
    return chat.cut_markdown(text, size, chat.json_size, _HALF)


def _code(reply: Mapping[str, Any]) -> int | None:
    code = reply.get("code", reply.get("StatusCode"))  # older installations have the second only
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def _colour(message: Message) -> str:
    if message.event == "closed":
        return "green"
    return "turquoise" if message.event == "acknowledged" else _COLOURS.get(message.severity, "grey")


def _buttons(message: Message) -> list[dict[str, Any]]:
    buttons = [
        {
            "tag": "button",
            "type": "default" if url == message.url else "primary",
            "text": {"tag": "plain_text", "content": label},
            "url": url,
        }
        for label, url in chat.links(message)
    ]
    return [{"tag": "action", "actions": buttons}] if buttons else []
