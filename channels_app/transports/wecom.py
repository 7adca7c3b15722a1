"""A WeCom (企业微信) group bot: markdown, @ by user id within it and by phone in a short second message; it tells no message id.

Source: WeCom developer documentation, "Group bot" (path/99110) and "Global error codes" (path/90455). A refusal comes as HTTP 200 with an
errcode; errmsg is not to be relied on, but for one thing: a message that is too long has three codes, and only the errmsg says which is which.

Phones can be called only by a message of the kind `text`, and markdown is what people read: so whoever the mapping table does not know is
called by a second message. When that one fails the page itself has arrived: it is not sent again, and the delivery says who was not called."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

MAX_CONTENT = 4096  # bytes of the markdown
MAX_CALLS = 500  # bytes of it for mentions, so that they never push an incident out of a bundle
WAIT = 60.0
HOSTS = ("weixin.qq.com",)
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PHONE = re.compile(r"\+\d{6,15}")
_HALF = re.compile(r"(<[^<>]{0,200}|\[[^\[\]]*(\](\([^()]*)?)?)$")

# errcode: (sentence, permanent, seconds to wait)
CODES = {
    -1: (gettext_lazy("WeCom is busy"), False, None),
    6000: (gettext_lazy("WeCom is busy with another change of the same data"), False, None),
    45009: (gettext_lazy("more than 20 messages in a minute: WeCom takes nothing from this bot for a minute"), False, WAIT),
    45033: (gettext_lazy("too many requests at the same moment"), False, 5.0),
    93000: (gettext_lazy("the webhook address is not valid, or the bot was removed from the group: add it again and paste the new address"), True, None),
    93004: (gettext_lazy("the bot is switched off: switch it on in the group's settings"), True, None),
    93008: (gettext_lazy("the bot is not in the group any more: add it again and paste the new webhook address"), True, None),
    40008: (gettext_lazy("this kind of message is not supported for the bot"), True, None),
    40058: (gettext_lazy("a part of the message is not as WeCom wants it"), True, None),
    44004: (gettext_lazy("the message is empty: look at the template"), True, None),
    45002: (gettext_lazy("the message is longer than 4,096 bytes: shorten the template"), True, None),
}  # fmt: skip
_CONFIG = {93000, 93004, 93008}
_TOO_LONG = {45002, 40058, 93000}  # the last two only where the errmsg says so


class _TooLong(DeliveryError):
    """Refused for its size, so nothing arrived: it may go again, shorter."""


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=500,
        help_text=gettext_lazy(
            "The whole address as the group bot's page shows it: https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=…"
        ),
    )
    by_phone = forms.BooleanField(
        label=gettext_lazy("also call by phone number"),
        required=False,
        help_text=gettext_lazy(
            "Whom the mapping table does not know is called by phone number, in a second short message. The bot may send 20 messages a "
            "minute, so it then sends half as many pages."
        ),
    )

    def clean_url(self) -> str:
        _url, parts = chat.webhook(
            self.cleaned_data["url"],
            _("Paste the whole webhook address; it begins with https://qyapi.weixin.qq.com/cgi-bin/webhook/send."),
            HOSTS,
        )
        if not parts.path.rstrip("/").endswith("/cgi-bin/webhook/send"):
            raise ValidationError(
                _("A group bot's address has the form https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key= and a long key.")
            )
        key = dict(parse_qsl(parts.query)).get("key", "").strip()
        if not re.fullmatch(r"[A-Za-z0-9_-]{8,}", key):
            raise ValidationError(_("The key is missing: the address ends with key= and a long row of letters and digits."))
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}?{urlencode({'key': key})}"


class WeCom(Transport):
    kind = "wecom"
    label = gettext_lazy("WeCom group bot")
    family = "im"
    reach = "group"
    group = True
    mentions_by = ("table", "phone")
    format = "wecom"
    limits = (Limit(18, 60),)  # of 20: what the provider counts and we cannot see, such as a test by hand
    concurrency = 1
    max_bytes = MAX_CONTENT - MAX_CALLS - 96  # a bundle must not be cut
    secret = frozenset({"url"})
    Settings = Settings

    @classmethod
    def limits_of(cls, settings: Mapping[str, Any]) -> tuple[Limit, ...]:
        return (Limit(9, 60),) if settings.get("by_phone") else cls.limits

    def send(self, message: Message, address: str) -> Receipt:
        content, phones, detail = self.compose(message)
        try:
            warning = self._hand_over({"msgtype": "markdown", "markdown": {"content": content}})
        except _TooLong:
            content, phones, detail = self.compose(message, MAX_CONTENT // 2)
            warning = self._hand_over({"msgtype": "markdown", "markdown": {"content": content}})
        detail += [warning, self._call(phones, message)]
        return Receipt(detail="; ".join(filter(None, detail)))

    def _call(self, phones: list[str], message: Message) -> str:
        """Calls people by phone under a message that has arrived; what went wrong with that, in a few words."""
        if not phones:
            return ""
        with translation.override(message.language):
            # Fixed words: a title could hold <@all>, and this kind of message has no escape.
            words = _("%(num)s: please look at the message above.") % {"num": f"#{message.num}" if message.num.isalnum() else "#"}
        text = {"content": words, "mentioned_mobile_list": [phone.removeprefix("+86") for phone in phones]}
        try:
            return self._hand_over({"msgtype": "text", "text": text}, timeout=4)
        except DeliveryError as error:
            return _("nobody was called by phone: %(why)s") % {"why": error.text}

    def _hand_over(self, body: dict[str, Any], timeout: float | None = None) -> str:
        """Sends one message; "" or what WeCom remarked although it took it."""
        answer = self.http.post(str(self.settings["url"]), json=body, timeout=timeout)
        if chat.code_of(answer, _judge_code, _code):
            raise DeliveryError(_("WeCom refused the message: %(body)s") % {"body": answer.quote()}, permanent=False)
        return _("WeCom left out a part of the message") if "wrong json format" in str(answer.json().get("errmsg")).lower() else ""

    def compose(self, message: Message, room: int = MAX_CONTENT) -> tuple[str, list[str], list[str]]:
        """The markdown in at most `room` bytes, the phones to call after it, and what could not be kept, a line each."""
        names = [name for name in message.mentions if _USER.fullmatch(name)]
        phones = [name for name in message.mentions if _PHONE.fullmatch(name)] if self.settings.get("by_phone") else []
        called = names[: len(transport.as_many([f"<@{name}>" for name in names], MAX_CALLS)[0])]
        nobody = [f"…{name[-4:]}" if _PHONE.fullmatch(name) else name for name in message.mentions if name not in (*called, *phones)]
        calls = " ".join(f"<@{name}>" for name in called)
        with translation.override(message.language):
            # A bundle has a link for each incident in its text.
            links = chat.links(message) if len(message.incidents) <= 1 else []
            text, is_cut = message.text, False
            left = room - len("\n".join([calls, chat.line(links), ""]).encode()) - 1
            if _length(text) > left:
                words = "\n" + _("… shortened")
                text, is_cut = cut(text, left - _length(words) - 10) + words, True  # 10: what closes a colour and a bold word
            links = [(label, url) for label, url in links if f"({url})" not in text]  # most templates have them
            detail = [_("shortened to %(size)s bytes") % {"size": f"{room:,}"}] if is_cut else []
            if nobody:
                detail.append(_("not mentioned: %(names)s") % {"names": ", ".join(nobody)})
        return "\n".join(filter(None, [text, chat.line(links), calls])), phones, detail


def _judge_code(answer: http.Answer) -> None:
    """Raise what a code of the provider's table means; nothing where there is no code of it."""
    try:
        reply = answer.json()
        code = reply["errcode"]
        sentence, permanent, wait = CODES[code]
    except (DeliveryError, KeyError, TypeError):
        return
    long = code == 45002 or (code in _TOO_LONG and "exceed max length" in str(reply.get("errmsg")).lower())
    raise (_TooLong if long else DeliveryError)(
        _("WeCom refused the message (code %(code)d): %(why)s.") % {"code": code, "why": CODES[45002][0] if long else sentence},
        permanent=permanent,
        retry_after=wait,
        blocked=wait if code == 45009 else None,
        config=code in _CONFIG and not long,
    )


def _code(reply: Mapping[str, Any]) -> int | None:
    code = reply.get("errcode")
    return code if isinstance(code, int) and not isinstance(code, bool) else None


def cut(text: str, size: int) -> str:
    """The beginning of a markdown text in at most `size` bytes."""
    return chat.cut_markdown(text, size, _length, _HALF, tags=("font",))


def _length(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
