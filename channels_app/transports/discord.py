"""A Discord webhook: headline and mentions as content, the text as an embed in the colour of the severity, link buttons.

Source: discord-api-docs, "Webhook Resource", "Message Components", "Rate Limits" and the table of JSON error codes. Mentions count in the content only,
and phones show it in their notifications; an embed holds 4,096 characters where the content holds 2,000."""

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

CONTENT = 2000
EMBED = 4096
BUTTON_URL = 512
HOSTS = ("discord.com", "discordapp.com")

_PATH = re.compile(r"((?:/[^?#]*)?/api(?:/v\d{1,2})?/webhooks/\d{5,25}/[A-Za-z0-9_-]{20,})(?:/(?:slack|github))?/?")
_ID = re.compile(r"\d{15,22}")
_ESCAPED = {ord(char): f"\\{char}" for char in "\\`*_{}[]()<>#+!|~-"}
_AT = re.compile(r"@(?=\w)")
_HALF = re.compile(r"(\\+|(?<!\\)\[(?:[^\[\]\\]|\\.){0,3000}(?:\](?:\([^()]{0,3000})?)?)$")
_COLOURS = {"Critical": 0xD93026, "Warning": 0xE8710A, "Info": 0x1A73E8, "Ok": 0x188038}

# What Discord has against the body: the same words as content alone are tried at once.
BODY = frozenset({50035, 50006})
# JSON error code: (sentence with advice, permanent, an operator must act)
CODES = {
    10015: (gettext_lazy("the webhook was deleted: make a new one in the channel's settings and paste its address"), True, True),
    50027: (gettext_lazy("the address is not right or not whole: copy it again in the channel's settings under Integrations"), True, True),
    10003: (gettext_lazy("the channel or thread was deleted: make a new webhook, or enter another thread"), True, True),
    10004: (gettext_lazy("the server was deleted: make a webhook on another one"), True, True),
    50001: (gettext_lazy("the webhook may not write here: check the channel's permissions"), True, True),
    50013: (gettext_lazy("the webhook may not write here: check the channel's permissions"), True, True),
    50083: (gettext_lazy("the thread is archived: open it again, or enter another one"), True, True),
    160005: (gettext_lazy("the thread is locked: unlock it, or enter another one"), True, True),
    220001: (gettext_lazy("this is a forum channel: enter the id of one of its posts as thread"), True, True),
    220003: (gettext_lazy("only forum channels take a new thread: leave the thread empty"), True, True),
    40067: (gettext_lazy("this is a forum channel: enter the id of one of its posts as thread"), True, True),
    200000: (gettext_lazy("the server's AutoMod blocked the words: exempt the channel in Server Settings, AutoMod"), True, True),
    200001: (gettext_lazy("the server's AutoMod blocked the words: exempt the channel in Server Settings, AutoMod"), True, True),
    20009: (gettext_lazy("Discord takes the words for explicit"), True, False),
    240000: (gettext_lazy("Discord takes a link in it for harmful"), True, False),
    50006: (gettext_lazy("the message is empty"), True, False),
    50035: (gettext_lazy("the message is malformed"), True, False),
    20016: (gettext_lazy("the channel is in slow mode"), False, False),
    20028: (gettext_lazy("too many messages for this channel"), False, False),
    40062: (gettext_lazy("too many messages for this channel"), False, False),
    130000: (gettext_lazy("Discord is overloaded"), False, False),
}


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=500,
        help_text=gettext_lazy("What “Copy Webhook URL” in the channel's settings gives: https://discord.com/api/webhooks/…"),
    )
    thread = forms.CharField(
        label=gettext_lazy("thread"),
        required=False,
        max_length=30,
        help_text=gettext_lazy(
            "The id of a thread or of a forum's post to write into (Copy Thread ID, in developer mode). A forum needs one."
        ),
    )

    def clean_url(self) -> str:
        _url, parts = chat.webhook(
            self.cleaned_data["url"], _("Paste the whole webhook address; it begins with https://discord.com/api/webhooks/."), HOSTS
        )
        if not (match := _PATH.fullmatch(parts.path)):
            raise ValidationError(_("A webhook's address has the form https://discord.com/api/webhooks/, a number, and a long key."))
        thread = re.search(r"(?:^|&)thread_id=(\d+)", parts.query)
        host = "discord.com" if parts.hostname == "discordapp.com" else parts.netloc  # the old name only redirects
        return f"{parts.scheme}://{host}{match[1]}" + (f"?thread_id={thread[1]}" if thread else "")

    def clean_thread(self) -> str:
        thread = str(self.cleaned_data["thread"] or "").strip()
        if thread and not _ID.fullmatch(thread):
            raise ValidationError(_("A thread's id is a number of about 19 digits."))
        return thread

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        url, _mark, query = values.get("url", "").partition("?thread_id=")
        if query:
            values |= {"url": url, "thread": values.get("thread") or query}
        return values


class Discord(Transport):
    kind = "discord"
    label = gettext_lazy("Discord webhook")
    family = "im"
    reach = "group"
    group = True
    mentions_by = ("table",)
    format = "discord"
    limits = (Limit(5, 2), Limit(30, 60))  # 30 a minute is the channel's, all its webhooks together
    concurrency = 1
    max_chars = EMBED - 40  # of the text: a bundle must not be cut
    secret = frozenset({"url"})
    Settings = Settings

    def holds(self, text: str) -> bool:
        return _units(text) <= self.max_chars  # Discord counts emoji as two

    def send(self, message: Message, address: str) -> Receipt:
        body, detail = compose(message)
        reply = self._post(body)
        if reply.get("code") in BODY:
            # A refused message has gone nowhere: the words alone say what matters.
            reply = self._post(plain(message))
            detail = _("sent without embed and buttons, which Discord did not take")
            if reply.get("code") in BODY:
                raise _refusal(reply)
        return Receipt(str(reply["id"]), detail=detail)

    def _post(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The message as Discord saved it, or its refusal of the body (see BODY); DeliveryError for everything else."""
        # Without wait=true a message that cannot be saved is answered with success; without with_components buttons vanish.
        query = "?wait=true&with_components=true" + (f"&thread_id={self.settings['thread']}" if self.settings.get("thread") else "")
        answer = self.http.post(f"{self.settings['url']}{query}", json=body)
        try:
            reply = answer.json()
        except DeliveryError:
            if answer.status == 429:
                raise _too_many(answer, {}) from None
            http.by_status(answer)  # says more than "no JSON", where the status is bad
            raise
        if answer.status == 429:
            raise _too_many(answer, reply)
        code = found if isinstance(found := reply.get("code"), int) else None
        if code in BODY and answer.status in (200, 400):
            return {**reply, "quoted": answer.quote()}
        if code in CODES:
            raise _refusal({**reply, "quoted": answer.quote()}, answer.retry_after())
        http.by_status(answer)
        if isinstance(reply.get("id"), str) and reply["id"]:
            return reply
        if code:  # a refusal that nobody has heard of, in a 200
            raise DeliveryError(_("Discord refused the message: %(body)s") % {"body": answer.quote()}, permanent=False)
        raise DeliveryError(
            _("%(host)s answered without a message: %(body)s") % {"host": answer.host, "body": answer.quote()}, permanent=False, left=True
        )


def _refusal(reply: Mapping[str, Any], wait: float | None = None) -> DeliveryError:
    why, permanent, config = CODES[reply["code"]]
    text = _("Discord refused the message (code %(code)d): %(why)s.") % {"code": reply["code"], "why": why}
    if reply["code"] in BODY:
        text += " " + str(reply.get("quoted", ""))
    return DeliveryError(text, permanent=permanent, config=config, retry_after=wait, blocked=None if permanent else wait)


def _too_many(answer: http.Answer, reply: Mapping[str, Any]) -> DeliveryError:
    """429: how long to wait stands in the body (seconds, with fractions), or in the headers; an HTML page is the edge's ban of our address."""
    wait = reply.get("retry_after")
    if isinstance(wait, bool) or not isinstance(wait, (int, float)) or not 0 <= wait <= 86_400:
        wait = answer.retry_after()
    if wait is None and re.fullmatch(r"\d{1,5}(\.\d+)?", reset := answer.headers.get("X-RateLimit-Reset-After", "")):
        wait = float(reset)
    if reply.get("global") or not reply:
        text = _("Discord takes nothing from this installation's address for now (%(said)s).")
    else:
        text = _("Discord takes no more messages in this channel for now (%(said)s).")
    return DeliveryError(text % {"said": answer.quote(80) or "429"}, permanent=False, retry_after=wait, blocked=wait)


# --- the message --------------------------------------------------------------------------------------------------------------------


def compose(message: Message) -> tuple[dict[str, Any], str]:
    """The body, and one line on what could not be kept."""
    users, roles, calls, unknown = _mentions(message)
    detail = ""
    with translation.override(message.language):
        text = message.text.strip() or _headline(message)
        if _units(text) > EMBED:
            text = cut(text, EMBED - 40) + "\n" + _("… shortened")
            detail = _("shortened to %(count)d characters") % {"count": EMBED}
        buttons = [{"type": 2, "style": 5, "label": label[:80], "url": url} for label, url in chat.links(message) if len(url) <= BUTTON_URL]
        link = f"<{message.url}>" if message.url and not buttons and len(message.url) < 1000 else ""
        if unknown:
            detail = "; ".join(filter(None, [detail, _("not mentioned (no Discord id): %(names)s") % {"names": ", ".join(unknown)}]))
    body: dict[str, Any] = {
        "content": "\n".join(filter(None, [calls, _headline(message), link])),
        "embeds": [{"description": text, "color": _colour(message)}],
        "allowed_mentions": {"parse": [], "users": users, "roles": roles},
    }
    if buttons:
        body["components"] = [{"type": 1, "components": buttons}]
    return body, detail


def plain(message: Message) -> dict[str, Any]:
    """The same as content alone, shortened to 2,000 characters with its link."""
    users, roles, calls, _unknown = _mentions(message)
    with translation.override(message.language):
        end = "\n".join(filter(None, [calls, f"<{message.url}>" if message.url and len(message.url) < 1000 else ""]))
        text = message.text.strip() or _headline(message)
        room = CONTENT - _units(end) - 20
        if _units(text) > room:
            text = cut(text, room - 20) + "\n" + _("… shortened")
    return {"content": f"{text}\n{end}", "allowed_mentions": {"parse": [], "users": users, "roles": roles}}


def cut(text: str, size: int) -> str:
    """The beginning of a Discord markdown text with at most `size` characters as Discord counts them."""
    return chat.cut_markdown(text, size - 2, _units, _HALF, escapes=True)


def _units(text: str) -> int:
    return len(text) + sum(char > "\uffff" for char in text)


def _headline(message: Message) -> str:
    """The title in plain words, escaped: what a phone's notification shows."""
    title = " ".join((message.subject or message.title).split())[:250]
    return _AT.sub("@\u2060", title.translate(_ESCAPED)) or "-"


def _mentions(message: Message) -> tuple[list[str], list[str], str, list[str]]:
    """(users, roles, the words that call them, who is neither). A role stands in the table as & and its number."""
    users: list[str] = []
    roles: list[str] = []
    calls: list[str] = []
    unknown: list[str] = []
    for name in dict.fromkeys(message.mentions):
        if _ID.fullmatch(name) and len(users) < 40:
            users.append(name)
            calls.append(f"<@{name}>")
        elif name.startswith("&") and _ID.fullmatch(name[1:]) and len(roles) < 10:
            roles.append(name[1:])
            calls.append(f"<@{name}>")
        else:
            unknown.append(name)
    return users, roles, " ".join(calls), unknown


def _colour(message: Message) -> int:
    return _COLOURS["Ok"] if message.event == "closed" else _COLOURS.get(message.severity, 0x5F6368)
