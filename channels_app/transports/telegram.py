"""A Telegram bot: HTML messages to groups, channels, topics and private chats, with link buttons.

Source: Telegram Bot API (core.telegram.org/bots/api), its server's texts (tdlib/telegram-bot-api) and TDLib's parser of HTML."""

import html
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

API = "https://api.telegram.org"
MAX_TEXT = 4096  # UTF-16 units after the tags are read; Telegram counts no more than that
LESS = 2000  # where it says "too long" all the same

_TOKEN = re.compile(r"\d{5,20}:[A-Za-z0-9_-]{30,100}")
_CHAT = re.compile(r"(-?\d{1,19}|@[A-Za-z][A-Za-z0-9_]{3,31})(?::(\d{1,10}))?")
# What "copy link" gives: of a message in a private group (with a topic, where it has them), and of a public group or channel.
_PRIVATE_LINK = re.compile(r"https?://t\.me/c/(\d{5,16})(?:/(\d{1,10})(?=/\d))?(?:/\d*)?/?")
_PUBLIC_LINK = re.compile(r"https?://t\.me/([A-Za-z][A-Za-z0-9_]{3,31})(?:/\d*)?/?")

# Part of the reason, in lower case: what it means and what to do. The first that is found counts.
REASONS = (
    ("bot was blocked by the user", gettext_lazy("the person has blocked the bot: they have to unblock it and press Start in the chat with it")),
    ("user is deactivated", gettext_lazy("the person's Telegram account was deleted: remove this address")),
    ("bot can't initiate conversation", gettext_lazy("the person has not pressed Start in the chat with the bot yet")),
    ("bot can't send messages to bots", gettext_lazy("this is the id of a bot: enter the id of a group or of a person")),
    ("bot was kicked", gettext_lazy("the bot was removed from the group: add it again, or remove this chat from the channel's settings")),
    ("bot is not a member", gettext_lazy("the bot is not in the group or channel: add it (to a channel as an administrator)")),
    ("group chat was deleted", gettext_lazy("the group was deleted: remove this chat from the channel's settings")),
    ("chat was upgraded", gettext_lazy("the group has become a supergroup with another id: find the chat again and enter the new id")),
    ("chat not found", gettext_lazy("there is no such chat, or the bot is not in it: check the id and add the bot; a person has to press Start first")),
    ("peer_id_invalid", gettext_lazy("there is no such chat, or the bot is not in it: check the id and add the bot; a person has to press Start first")),
    ("chat_id is empty", gettext_lazy("the chat id is not valid: check it")),
    ("topic_closed", gettext_lazy("the topic is closed: open it again, or give the bot the right to manage topics")),
    ("topic_deleted", gettext_lazy("the topic was deleted: enter another one")),
    ("not enough rights", gettext_lazy("the bot may not write here: give it the right to send messages")),
    ("have no write access", gettext_lazy("the bot may not write here: give it the right to send messages")),
    ("chat_write_forbidden", gettext_lazy("the bot may not write here: give it the right to send messages")),
    ("chat_restricted", gettext_lazy("the bot may not write here: give it the right to send messages")),
    ("need administrator rights", gettext_lazy("the bot may not write in this channel: make it an administrator with the right to post")),
)  # fmt: skip


class Settings(transport.Settings):
    token = forms.CharField(
        label=gettext_lazy("bot token"),
        required=False,
        max_length=300,
        help_text=gettext_lazy(
            "What @BotFather gave you, such as 6453328900:AAFxCAdxx…; or the whole address of a proxy that ends in /bot and the token."
        ),
    )
    chats = forms.CharField(
        label=gettext_lazy("chats"),
        required=False,
        max_length=4000,
        widget=forms.Textarea,
        help_text=gettext_lazy(
            "The groups and channels it writes to, one a line: the id (-1001234567890), the id and a topic (-1001234567890:45), "
            "a public name (@name), or a link to a message there. Add the bot first. Empty: it only writes to people who link their own chat."
        ),
    )
    api_base = forms.CharField(
        label=gettext_lazy("API address"),
        required=False,
        initial=API,
        max_length=300,
        help_text=gettext_lazy(
            "Where api.telegram.org cannot be reached: the address of your proxy or Bot API server. A proxy that adds the token needs no token above."
        ),
    )

    def clean_token(self) -> str:
        token = str(self.cleaned_data["token"] or "").strip()
        if token and not token.startswith(("http://", "https://")) and not _TOKEN.fullmatch(token):
            raise ValidationError(_("This is not a bot token: it is a number, a colon and 35 letters, as @BotFather shows it."))
        return token

    def clean_chats(self) -> str:
        words = [word for word in re.split(r"[\s,;，；、]+", str(self.cleaned_data["chats"] or "")) if word]
        return "\n".join(dict.fromkeys(_chat(word) for word in words))

    def clean_api_base(self) -> str:
        base = str(self.cleaned_data["api_base"] or "").strip().rstrip("/") or API
        parts = http.split_url(base)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValidationError(_("Enter the address as https://host or https://host/path, without anything behind a question mark."))
        if parts.scheme == "http" and parts.hostname.endswith("telegram.org"):
            raise ValidationError(_("The address must begin with https://."))
        return base

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        token = values.get("token", "")
        if token.startswith(("http://", "https://")):
            base, _slash, rest = token.partition("/bot")
            rest = rest.split("/")[0]
            if not _TOKEN.fullmatch(rest):
                self.add_error("token", _("A proxy's address must end in /bot and the token; one without a token goes into “API address”."))
            else:
                values |= {"token": rest, "api_base": base}
        elif not token and "token" not in self.errors and values.get("api_base", API) == API:
            self.add_error("token", _("Enter the token that @BotFather gave you."))
        return values


def _chat(word: str) -> str:
    """A chat as it is kept; ValidationError when it is none."""
    if link := _PRIVATE_LINK.fullmatch(word):
        return f"-100{link[1]}" + (f":{link[2]}" if link[2] else "")
    if link := _PUBLIC_LINK.fullmatch(word):
        return f"@{link[1]}"
    if not (match := _CHAT.fullmatch(word)):
        raise ValidationError(
            _("“%(word)s” is no chat: enter an id such as -1001234567890, with a topic -1001234567890:45, or @name.") % {"word": word[:60]}
        )
    # Topic 1 is "General": Telegram wants it left out.
    return match[1] if match[2] in (None, "1") else word


class Telegram(Transport):
    kind = "telegram"
    label = gettext_lazy("Telegram bot")
    family = "im"
    reach = "account"
    person = True
    group = True
    personal = True
    mentions_by = ("table",)
    format = "telegram"
    # Per chat, per group, and of the whole bot. A private chat has no limit a minute, but nobody reads 20 a minute either.
    limits = (Limit(1, 1), Limit(20, 60), Limit(30, 1, "channel"))
    concurrency = 1
    max_chars = 3800  # of the text: mentions, notice and link need the rest, and a bundle must not be cut
    secret = frozenset({"token"})
    suggested = "chats"
    Settings = Settings

    @classmethod
    def targets(cls, settings: Mapping[str, Any]) -> Sequence[str]:
        return str(settings.get("chats") or "").split() or [""]

    @classmethod
    def check_account(cls, address: str) -> str:
        # Groups and channels have negative ids or names; a private chat has its person's id.
        return (
            "" if re.fullmatch(r"[1-9]\d{0,18}", address) else _("The id of a private chat is a number without a sign, such as 123456789.")
        )

    @classmethod
    def moved(cls, settings: Mapping[str, Any], old: str, new: str) -> Mapping[str, Any]:
        chats = cls.targets(settings)
        old = old or (chats[0] if len(chats) == 1 else "")  # "" was the only chat
        chats = [new if chat == old else chat for chat in chats]
        return {**settings, "chats": "\n".join(dict.fromkeys(chats))}

    def send(self, message: Message, address: str) -> Receipt:
        """Sends to a chat ("-100123", "-100123:45", "@name"); "" is the channel's only chat. Raises DeliveryError.

        What Telegram refuses for a reason that is mended by leaving something out, or by another id, is sent again at once, mended: a
        refused message has gone nowhere. `Receipt.moved` is the new id of a group that became a supergroup.
        """
        address = address or self._only_chat()
        match = _CHAT.fullmatch(address)
        if match is None:
            raise DeliveryError(_("“%(chat)s” is no Telegram chat: check the id.") % {"chat": address[:60]}, permanent=True, config=True)
        place: dict[str, Any] = {"chat_id": match[1] if match[1].startswith("@") else int(match[1])}
        if match[2]:
            place["message_thread_id"] = int(match[2])
        content, detail = compose(message)
        notes, mended, moved = [detail], set[str](), ""
        began, left = time.monotonic(), None
        while True:
            reply = self._call("sendMessage", {**place, **content}, timeout=left)
            if reply.get("ok") is True:
                break
            ill = _ailment(reply)
            left = round(http.TOTAL_SECONDS - (time.monotonic() - began), 1)
            if not ill or ill in mended or left < 1:
                error = _refusal(reply, private=str(place["chat_id"]).isdigit())
                error.permanent = error.permanent and (not ill or ill in mended)  # what time alone forbids is for the next attempt
                raise error
            mended.add(ill)
            if ill == "moved":
                place["chat_id"] = reply["parameters"]["migrate_to_chat_id"]
                moved = str(place["chat_id"]) + (f":{match[2]}" if match[2] else "")
                notes.append(_("the group has the new id %(id)s") % {"id": place["chat_id"]})
            elif ill == "thread":
                place.pop("message_thread_id", None)
                notes.append(_("the topic is gone, so it went to the group itself"))
            else:
                content, _detail = compose(
                    message, room=LESS if "long" in mended else MAX_TEXT, markup="markup" not in mended, buttons="button" not in mended
                )
                notes.append({
                    "long": _("shortened to %(count)d characters") % {"count": LESS},
                    "markup": _("sent without markup, which Telegram could not read"),
                    "button": _("sent without buttons: Telegram does not take their address"),
                }[ill])  # fmt: skip
        result = reply.get("result")
        number = result.get("message_id") if isinstance(result, dict) else None
        return Receipt(str(number or ""), detail="; ".join(filter(None, notes)), moved=moved)

    def suggest(self, text: str) -> Sequence[tuple[str, str]]:
        """The chats that the bot has heard of lately, as (address, name), where `text` is part of either; raises DeliveryError.

        Telegram keeps what happened for a day: add the bot, or write something in the chat, and ask again.
        """
        reply = self._call("getUpdates", {"limit": 100, "timeout": 0})
        if reply.get("ok") is True and len(_list(reply.get("result"))) >= 100:
            # The oldest come first, and these may be stale: the last hundred instead.
            reply = self._call("getUpdates", {"offset": -100, "limit": 100, "timeout": 0})
        if reply.get("ok") is not True:
            raise _refusal(reply, private=False)
        wanted = text.strip().casefold()
        found = _chats(update for update in _list(reply.get("result")) if isinstance(update, dict))
        return [(chat, name) for chat, name in found.items() if wanted in f"{chat} {name}".casefold()]

    def _only_chat(self) -> str:
        chats = [chat for chat in self.targets(self.settings) if chat]
        if len(chats) == 1:
            return chats[0]
        raise DeliveryError(
            _("The channel has several chats, and none was named.")
            if chats
            else _("No chat is set: enter the ids in the channel's settings."),
            permanent=True,
            config=True,
        )

    def _call(self, method: str, body: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """What the API says, yes or no; DeliveryError where it says neither."""
        token = str(self.settings.get("token") or "")
        url = (self.settings.get("api_base") or API) + (f"/bot{token}" if token else "")
        answer = self.http.post(f"{url}/{method}", json=body, timeout=timeout)
        try:
            reply = answer.json()
        except DeliveryError:
            http.by_status(answer)  # says more than "no JSON", where the status is bad
            raise
        if reply.get("ok") is True and answer.status < 300:
            return reply
        if reply.get("ok") is False and isinstance(reply.get("description"), str):
            reply["description"] = (
                answer.quote(1000) if not reply["description"] else http.redact(reply["description"], answer.hidden)[:300]
            )
            reply["wait"] = answer.retry_after()
            if not isinstance(reply.get("error_code"), int):
                reply["error_code"] = answer.status
            return reply
        http.by_status(answer)
        raise DeliveryError(
            _("%(host)s answered neither yes nor no: %(body)s") % {"host": answer.host, "body": answer.quote()}, permanent=False, left=True
        )


def _parameters(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    found = reply.get("parameters")
    return found if isinstance(found, dict) else {}


def _ailment(reply: Mapping[str, Any]) -> str:
    """What of the request has to change for it to be taken: "moved", "thread", "markup", "long", "button"; "" where nothing of ours helps."""
    if reply["error_code"] != 400:
        return ""
    if isinstance(_parameters(reply).get("migrate_to_chat_id"), int):
        return "moved"
    said = reply["description"].lower()
    for words, ill in (
        ("message thread not found", "thread"),
        ("can't parse entities", "markup"),
        ("message is too long", "long"),
        ("message_too_long", "long"),
        ("inline keyboard button", "button"),
        ("button_url_invalid", "button"),
    ):
        if words in said:
            return ill
    return ""


def _refusal(reply: Mapping[str, Any], private: bool) -> DeliveryError:
    """The error that a "no" means. `private`: the chat is a person's, so it is they who must act, not the operator."""
    code, said = reply["error_code"], reply["description"]
    values: dict[str, Any] = {"said": said, "code": code}
    if code == 429 or "retry_after" in _parameters(reply):
        given = _parameters(reply).get("retry_after")
        wait = min(float(given), 86_400.0) if isinstance(given, (int, float)) and given >= 0 else reply["wait"]
        return DeliveryError(
            _("Telegram takes no more messages for now (%(said)s).") % values, permanent=False, retry_after=wait, blocked=wait
        )
    if code >= 500:
        return DeliveryError(
            _("Telegram has a fault of its own (%(code)d: %(said)s).") % values, permanent=False, left=code in http.NOBODY_KNOWS
        )
    if code in (401, 404, 421):
        return DeliveryError(
            _("Telegram does not know this bot (%(said)s): check the token, or the API address if there is one.") % values,
            permanent=True,
            config=True,
        )
    if code == 409:
        return DeliveryError(
            _("Another program reads this bot's messages (%(said)s): stop it or remove its webhook, or enter the ids by hand.") % values,
            permanent=True,
        )
    for words, advice in REASONS:
        if words in said.lower():
            return DeliveryError(
                _("Telegram refused the message (%(said)s): %(why)s.") % {"said": said, "why": advice}, permanent=True, config=not private
            )
    return DeliveryError(
        _("Telegram refused the message (%(code)d: %(said)s).") % values, permanent=code not in (408, 425), config=code == 403
    )


# --- the message --------------------------------------------------------------------------------------------------------------------


def compose(message: Message, room: int = MAX_TEXT, markup: bool = True, buttons: bool = True) -> tuple[dict[str, Any], str]:
    """What sendMessage takes besides the chat, with a text of at most `room` characters, and one line on what could not be kept."""
    pieces = _pieces(message.text) or _pieces(html.escape(message.subject or message.title or "-"))
    mentions = [mention for name in message.mentions if (mention := _mention(name))][:50]
    unknown = [name for name in message.mentions if not _mention(name)]
    keyboard = _keyboard(message) if buttons else []
    detail = ""
    with translation.override(message.language):
        # Without buttons the address stands there to be read: as a link it would be dropped for the reason the buttons were.
        end = [" ".join(mentions), "" if keyboard else html.escape(message.url)]
        if _length(pieces) + _length(_pieces("\n".join(end))) + 2 > room:
            end.insert(0, _("… shortened"))
            detail = _("shortened to %(count)d characters") % {"count": room}
            pieces = _beginning(pieces, room - _length(_pieces("\n".join(end))) - 2)
        text = "\n".join(filter(None, [_written(pieces), *end]))
        if unknown:
            detail = "; ".join(
                filter(None, [detail, _("not mentioned (no Telegram name or id): %(names)s") % {"names": ", ".join(unknown)}])
            )
    body: dict[str, Any] = {"text": text, "parse_mode": "HTML", "link_preview_options": {"is_disabled": True}}
    if not markup:
        body["text"] = "".join(words for kind, words in _pieces(text) if kind == "text")
        del body["parse_mode"]
    if keyboard:
        body["reply_markup"] = {"inline_keyboard": [keyboard]}
    return body, detail


def _mention(name: str) -> str:
    """A person as Telegram notifies them: by @name, or by number where they are in the chat; "" for what is neither."""
    if re.fullmatch(r"\d{1,19}", name):
        return f'<a href="tg://user?id={name}">@{name}</a>'
    return f"@{name.removeprefix('@')}" if re.fullmatch(r"@?[A-Za-z][A-Za-z0-9_]{3,31}", name) else ""


def _keyboard(message: Message) -> list[dict[str, str]]:
    """Link buttons; none where Telegram would refuse the whole message for the address ("Wrong HTTP URL": a host without a dot)."""
    parts = http.split_url(message.url)
    if parts is None or "." not in (parts.hostname or ""):
        return []
    with translation.override(message.language):
        return [{"text": label, "url": url} for label, url in chat.links(message)]


# --- HTML as Telegram reads it ------------------------------------------------------------------------------------------------------
#
# A text is a list of pieces: ("open", tag), ("close", tag) and ("text", words), where every tag is one Telegram knows and all are closed in
# order. Whoever wrote a template may have forgotten a tag or used one that only browsers know: it still arrives, as words.

_Piece = tuple[str, str]
_TAGS = frozenset({
    "b", "strong", "i", "em", "u", "ins", "s", "strike", "del", "code", "pre", "blockquote", "tg-spoiler", "a",
})  # fmt: skip
_PART = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9-]*)(\s[^<>]*)?>|&(?:lt|gt|amp|quot|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});|[^<&]+|[<&]")
_HREF = re.compile(r"""\shref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)


def _pieces(text: str) -> list[_Piece]:
    found: list[_Piece] = []
    stack: list[str] = []
    for part in _PART.finditer(text):
        closes, tag, more = part[1], (part[2] or "").lower(), part[3] or ""
        href = _HREF.search(more)
        if tag == "br" and not closes:
            found.append(("text", "\n"))
        elif tag not in _TAGS or (tag == "a" and not closes and not href):
            # html.unescape knows more entities than Telegram, but only those of _PART come here alone.
            found.append(("text", html.unescape(part[0]) if part[0].startswith("&") else part[0]))
        elif not closes:
            stack.append(tag)
            address = html.unescape(next(filter(None, href.groups()), "")) if href else ""
            found.append(("open", f'a href="{html.escape(address)}"' if tag == "a" else tag))
        elif tag in stack:
            while (last := stack.pop()) != tag:
                found.append(("close", last))
            found.append(("close", tag))
    found += [("close", tag) for tag in reversed(stack)]
    return found if any(words.strip() for kind, words in found if kind == "text") else []


def _written(pieces: Sequence[_Piece]) -> str:
    form = {"open": "<{}>", "close": "</{}>"}
    return "".join(html.escape(words) if kind == "text" else form[kind].format(words) for kind, words in pieces)


def _units(text: str) -> int:
    return len(text) + sum(char > "\uffff" for char in text)


def _length(pieces: Sequence[_Piece]) -> int:
    """Characters as Telegram counts them: UTF-16 units of what is left when the tags are read."""
    return sum(_units(words) for kind, words in pieces if kind == "text")


def _beginning(pieces: Sequence[_Piece], room: int) -> list[_Piece]:
    """The pieces up to `room` characters, to the end of a line or a word where that costs little; every tag is closed."""
    plain = "".join(words for kind, words in pieces if kind == "text")
    end = used = 0
    while end < len(plain) and (used := used + _units(plain[end])) <= room:
        end += 1
    for mark in ("\n", " "):
        if (place := plain.rfind(mark, end - max(end // 4, 1), end)) > 0:
            end = place
            break
    kept: list[_Piece] = []
    stack: list[str] = []
    for kind, words in pieces:
        if kind == "text":
            kept.append((kind, words[:end]))
            end -= len(words)
            if end <= 0:
                break
        else:
            kept.append((kind, words))
            if kind == "open":
                stack.append(words.split()[0])
            else:
                stack.pop()
    return kept + [("close", tag) for tag in reversed(stack)]


# --- finding chats ------------------------------------------------------------------------------------------------------------------


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _chats(updates: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The chats that appear in updates, without those the bot has left or that have moved: {address: name}."""
    found: dict[str, str] = {}
    for update in updates:
        for kind, event in update.items():
            if kind == "callback_query" and isinstance(event, dict):
                event = event.get("message")
            chat = event.get("chat") if isinstance(event, dict) else None
            if not isinstance(chat, dict) or not isinstance(chat.get("id"), int):
                continue
            address, name = str(chat["id"]), _name(chat)
            status = (event.get("new_chat_member") or {}).get("status") if kind == "my_chat_member" else ""
            if status in ("left", "kicked") or "migrate_to_chat_id" in event:
                found = {known: label for known, label in found.items() if known.split(":")[0] != address}
                continue
            found[address] = name
            if event.get("is_topic_message") and isinstance(event.get("message_thread_id"), int):
                made = event.get("forum_topic_created") or (event.get("reply_to_message") or {}).get("forum_topic_created") or {}
                topic = f"{address}:{event['message_thread_id']}"
                if made.get("name") or topic not in found:
                    found[topic] = f"{name} › {made.get('name') or event['message_thread_id']}"
    return found


def _name(chat: Mapping[str, Any]) -> str:
    whole = " ".join(str(chat[part]) for part in ("first_name", "last_name") if chat.get(part))
    name = str(chat.get("title") or whole or chat["id"]) + (f" @{chat['username']}" if chat.get("username") else "")
    kinds = {"private": _("private chat"), "group": _("group"), "supergroup": _("group"), "channel": _("channel")}
    return f"{name} ({kinds.get(str(chat.get('type')), str(chat.get('type')))})"
