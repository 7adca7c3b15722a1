"""A DingTalk group bot (custom robot): markdown or a card with link buttons, @ by phone; it tells no message id and cannot edit or recall.

Source: DingTalk Open Platform, "Custom robot access" and its table of error codes. A refusal comes as HTTP 200 with an errcode, and one code
(310000) has four causes that only its errmsg tells apart. Who sends more than 20 messages in a minute is silenced for ten minutes."""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import phonenumbers
from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

MAX_BODY = 20_000  # bytes of the whole request
MOST_MENTIONS = 50  # more than that no message may name
BLOCKED = 600.0
HOSTS = ("dingtalk.com", "dingtalk.io")
_HALF = re.compile(r"(<[^<>]{0,200}|\[[^\[\]]*(\](\([^()]*)?)?)$")
_UNSEEN = re.compile(r"<[^<>]*>|\]\([^()]*\)")
_ADDRESS = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])|(?:[0-9a-f]{1,4}:){2,7}[0-9a-f:]{0,9}", re.IGNORECASE)

# errcode: (sentence, permanent, seconds to wait). 90030 is not in the provider's table: users report it for a used-up allowance.
CODES = {
    130101: (gettext_lazy("more than 20 messages in a minute: DingTalk takes nothing from this bot for ten minutes"), False, BLOCKED),
    410100: (gettext_lazy("DingTalk slows this bot down"), False, 60.0),
    660026: (gettext_lazy("too many messages in a minute"), False, 60.0),
    90030: (gettext_lazy("the organisation's allowance of bot messages is used up: see the DingTalk admin console"), False, 3600.0),
    -1: (gettext_lazy("DingTalk is busy"), False, None),
    400101: (gettext_lazy("the bot does not exist: add it to the group again and paste the new webhook address"), True, None),
    300001: (gettext_lazy("the bot does not exist: add it to the group again and paste the new webhook address"), True, None),
    300005: (gettext_lazy("the bot does not exist: add it to the group again and paste the new webhook address"), True, None),
    40035: (gettext_lazy("a parameter is missing: paste the whole webhook address, with its access_token"), True, None),
    43002: (gettext_lazy("the request did not arrive as a POST: check the proxy and the webhook address"), True, None),
    400102: (gettext_lazy("the bot is switched off: switch it on in the group's settings"), True, None),
    400106: (gettext_lazy("the bot is not in the group any more: add it again and paste the new webhook address"), True, None),
    400013: (gettext_lazy("the group was dissolved: add a bot to another group and paste its webhook address"), True, None),
    400105: (gettext_lazy("this kind of message is not supported for the bot"), True, None),
    460101: (gettext_lazy("the message is longer than 20,000 bytes: shorten the template"), True, None),
    430101: (
        gettext_lazy("DingTalk takes a link in the message for unsafe: look at the links in the template and in the alert"),
        True,
        None,
    ),
    430102: (
        gettext_lazy("DingTalk takes a text in the message for unsafe: look at the words in the template and in the alert"),
        True,
        None,
    ),
    430103: (gettext_lazy("DingTalk takes a picture in the message for unsafe"), True, None),
    430104: (gettext_lazy("DingTalk takes the message for unsafe: look at the words in the template and in the alert"), True, None),
}
SECURITY = 310000  # the bot's security settings refuse the message
_CONFIG = {400101, 300001, 300005, 40035, 43002, 400102, 400106, 400013, SECURITY}
_TOO_LONG = 460101


class _TooLong(DeliveryError):
    """Refused for its size, so nothing arrived: it may go again, shorter."""


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=500,
        help_text=gettext_lazy("The whole address as the bot's page shows it: https://oapi.dingtalk.com/robot/send?access_token=…"),
    )
    keyword = forms.CharField(
        label=gettext_lazy("keyword"),
        required=False,
        initial="#",
        max_length=50,
        help_text=gettext_lazy(
            "A custom keyword of the bot's security settings. It is added to a message that does not have it. Default: #."
        ),
    )
    secret = forms.CharField(
        label=gettext_lazy("sign secret"),
        required=False,
        max_length=200,
        help_text=gettext_lazy("Only if “Additional signature” is on in the bot's security settings. It begins with SEC."),
    )

    def clean_url(self) -> str:
        _url, parts = chat.webhook(
            self.cleaned_data["url"], _("Paste the whole webhook address; it begins with https://oapi.dingtalk.com/robot/send."), HOSTS
        )
        if parts.path.rstrip("/") != "/robot/send":
            raise ValidationError(
                _("A group bot's address has the form https://oapi.dingtalk.com/robot/send?access_token= and a long key.")
            )
        token = dict(parse_qsl(parts.query)).get("access_token", "").strip()
        if not re.fullmatch(r"[A-Za-z0-9_-]{8,}", token):
            raise ValidationError(_("The key is missing: the address ends with access_token= and a long row of letters and digits."))
        # A timestamp and a signature that were pasted along would be found before ours, and are old.
        return f"{parts.scheme}://{parts.netloc}/robot/send?{urlencode({'access_token': token})}"

    def clean_keyword(self) -> str:
        return str(self.cleaned_data["keyword"] or "").strip() or "#"

    def clean_secret(self) -> str:
        secret = str(self.cleaned_data["secret"] or "").strip()
        if secret and not secret.startswith("SEC"):
            raise ValidationError(_("The sign secret begins with SEC; copy it from “Additional signature” in the bot's security settings."))
        return secret


class DingTalk(Transport):
    kind = "dingtalk"
    label = gettext_lazy("DingTalk group bot")
    family = "im"
    reach = "group"
    group = True
    mentions_by = ("phone",)
    format = "dingtalk"
    limits = (
        Limit(18, 60),
    )  # of 20: what the provider counts and we cannot see (a test by hand, another sender) must not cost ten minutes
    concurrency = 1
    max_bytes = 16_000  # of the text: the frame around it and the escapes of JSON need the rest, and a bundle must not be cut
    secret = frozenset({"url", "secret"})
    Settings = Settings

    def send(self, message: Message, address: str) -> Receipt:
        body, detail = self.compose(message)
        try:
            self._hand_over(body, message)
        except _TooLong:
            body, detail = self.compose(message, MAX_BODY // 2)
            self._hand_over(body, message)
        return Receipt(detail=detail)

    def _hand_over(self, body: dict[str, Any], message: Message) -> None:
        url = str(self.settings["url"])
        if self.settings.get("secret"):
            timestamp = str(int(message.sent_at.timestamp() * 1000))
            url += f"&timestamp={timestamp}&sign={quote(sign(timestamp, str(self.settings['secret'])), safe='')}"
        answer = self.http.post(url, json=body)
        if chat.code_of(answer, _judge_code, _code):
            raise DeliveryError(_("DingTalk refused the message: %(body)s") % {"body": answer.quote()}, permanent=False)

    def compose(self, message: Message, room: int = MAX_BODY) -> tuple[dict[str, Any], str]:
        """The request's body of at most `room` bytes, and one line on what could not be kept ("" if all was)."""
        mobiles, nobody = _mobiles(message.mentions)
        keyword = str(self.settings.get("keyword") or "#")
        with translation.override(message.language):
            title = " ".join((message.subject or message.title).split())[:200] or keyword
            # Only markdown is known to call people by phone, and a bundle has a link for each incident.
            single = len(message.incidents) <= 1
            buttons = chat.links(message) if single and not mobiles else []
            links = chat.links(message) if single and not buttons else []
            calls = " ".join(f"@{mobile}" for mobile in mobiles)
            text, is_cut = _within(
                message.text, room - chat.json_size(_body(title, "", [chat.line(links), calls, keyword], buttons, mobiles))
            )
            links = [(label, url) for label, url in links if f"({url})" not in text]  # most templates have them
            # The # of a colour is no keyword that anybody reads.
            tail = [chat.line(links), calls, keyword if keyword not in _UNSEEN.sub("", text) else ""]
            detail = [_("shortened to %(size)s bytes") % {"size": f"{room:,}"}] if is_cut else []
            if nobody:
                detail.append(_("not mentioned: %(names)s") % {"names": ", ".join(nobody)})
        return _body(title, text, tail, buttons, mobiles), "; ".join(detail)


def _within(text: str, room: int) -> tuple[str, bool]:
    """`text` in at most `room` bytes of JSON, and whether it had to be cut."""
    if chat.json_size(text) <= room:
        return text, False
    # Each of these takes two bytes in JSON; with look-alikes of one byte everything may still be said.
    text = text.translate({ord('"'): "'", ord("\\"): "/"})
    if chat.json_size(text) <= room:
        return text, False
    words = "\n\n" + _("… shortened")
    return cut(text, room - chat.json_size(words) - 20) + words, True  # 20: what closes a colour and a bold word


def _body(title: str, text: str, tail: list[str], buttons: list[tuple[str, str]], mobiles: list[str]) -> dict[str, Any]:
    words = "\n\n".join(filter(None, [text, *tail]))
    if not buttons:
        body: dict[str, Any] = {"msgtype": "markdown", "markdown": {"title": title, "text": words}}
        return body | {"at": {"atMobiles": mobiles, "isAtAll": False}} if mobiles else body
    card: dict[str, Any] = {"title": title, "text": words}
    if len(buttons) == 1:
        card |= {"singleTitle": buttons[0][0], "singleURL": buttons[0][1]}
    else:
        card |= {"btnOrientation": "1", "btns": [{"title": label, "actionURL": url} for label, url in buttons]}
    return {"msgtype": "actionCard", "actionCard": card}


def _judge_code(answer: http.Answer) -> None:
    """Raise what a code of the provider's table means; nothing where there is no code of it."""
    try:
        reply = answer.json()
    except DeliveryError:
        return
    code = _code(reply)
    if code is None and reply.get("punish"):
        code = 130101  # the throttle in front of the API answers in its own way: {"status": 1111, "wait": 5, "punish": "deny"}
    said = str(reply.get("errmsg") or "")
    if code == SECURITY:
        sentence, permanent, wait = security(said), True, None
    elif code in CODES:
        sentence, permanent, wait = str(CODES[code][0]), *CODES[code][1:]
    else:
        return
    kind = _TooLong if code == _TOO_LONG else DeliveryError
    raise kind(
        _("DingTalk refused the message (code %(code)d): %(why)s.") % {"code": code, "why": sentence},
        permanent=permanent,
        retry_after=wait,
        blocked=wait,
        config=code in _CONFIG,
    )


def security(said: str) -> str:
    """What to do about a 310000, from its errmsg, which has been English and is Chinese now."""
    low = said.lower()
    if "keyword" in low or "关键词" in said:
        return _("the message does not contain the bot's keyword: enter the keyword in the channel's settings as the bot's page shows it")
    if "whitelist" in low or "白名单" in said or re.search(r"\bip\b|ip地址", low):
        found = _ADDRESS.search(said)
        if found:
            return _("this machine's address is not in the bot's IP list: this installation calls from %(ip)s, add it there") % {
                "ip": found[0]
            }
        return _("this machine's address is not in the bot's IP list: add it there")
    if "invalid timestamp" in low or "过期" in said:
        return _("the signature is too old or from the future: set this machine's clock")
    if "sign" in low or "签名" in said:
        return _("the signature does not match: copy the sign secret from the bot's security settings anew")
    if "timestamp" in low:
        return _("the signature is too old or from the future: set this machine's clock")
    return _("its security settings refuse the message: compare keyword, sign secret and IP list with the bot's page")


def sign(timestamp: str, secret: str) -> str:
    """The bot's signature: HMAC-SHA256 of "timestamp\\nsecret" with the secret as the key, base64 (not yet encoded for an address).

    `timestamp` is Unix milliseconds, at most an hour from the server's clock. Source: "Custom robot access", security settings.
    """
    return base64.b64encode(hmac.new(secret.encode(), f"{timestamp}\n{secret}".encode(), hashlib.sha256).digest()).decode()


def mobile(phone: str) -> str:
    """A phone in E.164 as DingTalk names its owner: without +86 in mainland China, else as +852-61234567; "" where it is none."""
    try:
        number = phonenumbers.parse(phone)
    except phonenumbers.NumberParseException:
        return ""
    national = phonenumbers.national_significant_number(number)
    return national if number.country_code == 86 else f"+{number.country_code}-{national}"


def _mobiles(mentions: tuple[str, ...]) -> tuple[list[str], list[str]]:
    named = {name: mobile(name) for name in mentions}
    known = [found for found in dict.fromkeys(named.values()) if found]
    # Phones of others stay out of what everybody reads: the last digits tell which.
    nobody = [f"…{name[-4:]}" for name, found in named.items() if not found or found in known[MOST_MENTIONS:]]
    return known[:MOST_MENTIONS], nobody


def cut(text: str, size: int) -> str:
    """The beginning of a markdown text that takes at most `size` bytes of JSON."""
    return chat.cut_markdown(text, size, chat.json_size, _HALF, tags=("font",))


def _code(reply: Mapping[str, Any]) -> int | None:
    code = reply.get("errcode")  # a number; the documentation's own example has it as text
    if isinstance(code, str) and re.fullmatch(r"-?\d{1,9}", code):
        return int(code)
    return code if isinstance(code, int) and not isinstance(code, bool) else None
