"""Telegram's Bot API as strict as the real one: it reads HTML as TDLib does, knows its chats, counts characters and messages, and refuses alike.

Reasons are those of tdlib/telegram-bot-api; the reader of HTML is held against cases of TDLib's own tests (test/message_entities.cpp) in
tests/transports/test_transport_telegram.py."""

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.server import Reply, Seen, Server

TOKEN = "6453328900:AAFxCAdxx_xssbnSxE6Y8mTcOBT5rDemoDemo"


@dataclass
class Chat:
    id: int
    type: str = "supergroup"
    title: str = "ops"
    members: set[int] = field(default_factory=set)
    topics: set[int] = field(default_factory=set)
    migrated: int | None = None  # a basic group that has become this supergroup
    refuses: tuple[int, str] | None = None  # (error code, description) for every message
    taken_at: list[float] = field(default_factory=list)


@dataclass
class Said:
    chat: Chat
    thread: int | None
    text: str  # as people read it
    entities: list[dict[str, Any]]
    buttons: list[dict[str, str]]

    def mentions(self) -> list[str]:
        """Who is notified."""
        named = [self.text[m.start() : m.end()] for m in re.finditer(r"(?<![\w/@])@[A-Za-z]\w{3,31}", self.text)]
        return named + [str(e["user"]["id"]) for e in self.entities if e["type"] == "text_mention"]


class TelegramApi(Server):
    """One bot. `now` (Unix seconds) is Telegram's clock, `chats` what the bot knows, `updates` what getUpdates gives, `said` what was taken."""

    def __init__(self, *chats: Chat, token: str = TOKEN, now: float = 0) -> None:
        super().__init__(self._judge)
        self.token, self.now = token, now
        self.chats = {chat.id: chat for chat in chats}
        self.updates: list[dict[str, Any]] = []
        self.webhook = ""
        self.said: list[Said] = []

    def _judge(self, seen: Seen) -> Reply:
        match = re.fullmatch(r"/bot([^/]*)/(\w+)", urlsplit(seen.path).path)
        if not match:
            return _no(404, "Not Found")
        if match[1] != self.token:
            return _no(401, "Unauthorized")
        method = {"sendmessage": self._send, "getupdates": self._get_updates, "getme": self._me}.get(match[2].lower())
        if method is None:
            return _no(404, "Not Found")
        if seen.headers.get("content-type", "").startswith("application/json"):
            try:
                body = json.loads(seen.body or b"{}")
            except ValueError:
                return _no(400, "Bad Request: can't parse JSON object")
        else:
            body = {name: _loose(value) for name, value in parse_qsl(seen.body.decode())}
        return method(body)

    def _me(self, body: dict[str, Any]) -> Reply:
        return _yes({"id": 6453328900, "is_bot": True, "first_name": "Pager", "username": "pager_bot"})

    def _send(self, body: dict[str, Any]) -> Reply:
        try:
            text, entities = (
                parse_html(str(body.get("text") or "")) if body.get("parse_mode") == "HTML" else (str(body.get("text") or ""), [])
            )
        except BadHtml as error:
            return _no(400, f"Bad Request: can't parse entities: {error}")
        if body.get("parse_mode") not in (None, "HTML"):
            return _no(400, "Bad Request: unsupported parse_mode")
        if not text.strip():
            return _no(400, "Bad Request: message text is empty")
        buttons = [button for row in (body.get("reply_markup") or {}).get("inline_keyboard", []) for button in row]
        for button in buttons:
            if not button.get("text") or _bad_url(button.get("url", "")):
                return _no(
                    400, f"Bad Request: inline keyboard button URL '{button.get('url')}' is invalid: {_bad_url(button.get('url', ''))}"
                )
        if not body.get("chat_id"):
            return _no(400, "Bad Request: chat_id is empty")
        chat = self.chats.get(body["chat_id"]) or next((c for c in self.chats.values() if f"@{c.title}" == body["chat_id"]), None)
        if chat is None:
            return _no(400, "Bad Request: chat not found")
        if chat.migrated:
            return _no(400, "Bad Request: group chat was upgraded to a supergroup chat", {"migrate_to_chat_id": chat.migrated})
        if chat.refuses:
            return _no(*chat.refuses)
        thread = body.get("message_thread_id")
        if thread is not None and thread not in chat.topics:
            return _no(400, "Bad Request: message thread not found")
        if len(text.encode("utf-16-le")) // 2 > 4096:
            return _no(400, "Bad Request: message is too long")
        for wait, full in (
            (1, sum(self.now - at < 1 for at in chat.taken_at) >= 1),
            (30, chat.type != "private" and sum(self.now - at < 60 for at in chat.taken_at) >= 20),
            (1, sum(self.now - at < 1 for other in self.chats.values() for at in other.taken_at) >= 30),
        ):
            if full:
                return _no(429, f"Too Many Requests: retry after {wait}", {"retry_after": wait})
        chat.taken_at.append(self.now)
        kept = []
        for entity in entities:
            user = re.fullmatch(r"tg://user\?id=(\d+)", entity.get("url", ""))
            if user and int(user[1]) in chat.members:
                kept.append({"type": "text_mention", "user": {"id": int(user[1])}, **{key: entity[key] for key in ("offset", "length")}})
            elif not user and not (entity["type"] == "text_link" and _bad_url(entity["url"])):
                kept.append(entity)
        self.said.append(Said(chat, thread, text, kept, buttons))
        return _yes({
            "message_id": len(self.said), "date": int(self.now), "text": text, "chat": {"id": chat.id, "type": chat.type, "title": chat.title},
        })  # fmt: skip

    def _get_updates(self, body: dict[str, Any]) -> Reply:
        if self.webhook:
            return _no(409, "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first")
        offset, limit = int(body.get("offset") or 0), int(body.get("limit") or 100)
        if offset < 0:
            self.updates = self.updates[offset:]  # all before are forgotten
        elif offset:
            self.updates = [update for update in self.updates if update["update_id"] >= offset]
        return _yes(self.updates[: min(limit, 100)])


def _yes(result: Any) -> Reply:
    return Reply(200, {"ok": True, "result": result})


def _no(code: int, description: str, parameters: dict[str, Any] | None = None) -> Reply:
    body: dict[str, Any] = {"ok": False, "error_code": code, "description": description}
    return Reply(code, body | ({"parameters": parameters} if parameters else {}))


def _loose(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _bad_url(url: str) -> str:
    """What Telegram has against an address; "" for nothing. A host without a dot is none."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https", "tg", "ton"):
        return "Unsupported URL protocol"
    return "Wrong HTTP URL" if parts.scheme in ("http", "https") and "." not in (parts.hostname or "").strip(".") else ""


# --- HTML ---------------------------------------------------------------------------------------------------------------------------

KINDS = {
    "b": "bold", "strong": "bold", "i": "italic", "em": "italic", "u": "underline", "ins": "underline", "s": "strikethrough",
    "strike": "strikethrough", "del": "strikethrough", "code": "code", "pre": "pre", "blockquote": "blockquote", "tg-spoiler": "spoiler",
    "span": "spoiler", "a": "text_link",
}  # fmt: skip


class BadHtml(Exception):
    pass


def parse_html(source: str) -> tuple[str, list[dict[str, Any]]]:
    """(text, entities with offsets in UTF-16 units), or BadHtml in TDLib's words. (tg-emoji and tg-time are not among its tags here.)"""
    out: list[str] = []
    entities: list[dict[str, Any]] = []
    stack: list[tuple[str, dict[str, str], int]] = []
    at = 0

    def here(place: int) -> int:
        return len(source[:place].encode("utf-8", "surrogatepass"))

    def written() -> int:
        return len("".join(out).encode("utf-16-le", "surrogatepass")) // 2

    while at < len(source):
        begin = at
        if source[at] == "&" and (found := _entity(source, at)):
            char, at = found
            out.append(char)
        elif source[at] != "<":
            out.append(source[at])
            at += 1
        elif source.startswith("</", at):
            if not stack:
                raise BadHtml(f"Unexpected end tag at byte offset {here(begin)}")
            name = re.compile(r"[^\s>]*").match(source, at + 2)[0]  # type: ignore[index]
            close = re.compile(r"\s*>").match(source, at + 2 + len(name))
            if not close:
                raise BadHtml(f"Unclosed end tag at byte offset {here(begin)}")
            tag, attributes, start = stack.pop()
            if name and name.lower() != tag:
                raise BadHtml(f'Unmatched end tag at byte offset {here(begin)}, expected "</{tag}>", found "</{name}>"')
            at = close.end()
            if (length := written() - start) > 0:
                inside = "".join(out).encode("utf-16-le", "surrogatepass")[start * 2 :].decode("utf-16-le", "replace")
                entity = {"type": KINDS[tag], "offset": start, "length": length}
                if tag == "a":
                    entity["url"] = attributes.get("href") or inside
                entities.append(entity)
        else:
            name = re.compile(r"[^\s>]*").match(source, at + 1)[0]  # type: ignore[index]
            at += 1 + len(name)
            if at >= len(source):
                raise BadHtml(f"Unclosed start tag at byte offset {here(begin)}")
            tag = name.lower()
            if tag not in KINDS:
                raise BadHtml(f'Unsupported start tag "{tag}" at byte offset {here(begin)}')
            attributes, at = _attributes(source, at, tag, here, begin)
            if tag == "span" and attributes.get("class") != "tg-spoiler":
                raise BadHtml(f'Tag "span" must have class "tg-spoiler" at byte offset {here(begin)}')
            stack.append((tag, attributes, written()))
    if stack:
        raise BadHtml(f'Can\'t find end tag corresponding to start tag "{stack[-1][0]}"')
    text = "".join(out)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadHtml(
            "Text contains invalid Unicode characters after decoding HTML entities, check for unmatched surrogate code units"
        ) from None
    return text, sorted(entities, key=lambda entity: (entity["offset"], -entity["length"]))


def _entity(source: str, at: int) -> tuple[str, int] | None:
    match = re.compile(r"&(?:#x([0-9a-fA-F]+)|#(\d+)|(lt|gt|amp|quot)(?![a-zA-Z]));?").match(source, at)
    if not match:
        return None
    if match[3]:
        return {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[match[3]], match.end()
    code = int(match[1], 16) if match[1] else int(match[2])
    return (chr(code), match.end()) if 0 < code < 0x10FFFF else None


def _attributes(source: str, at: int, tag: str, here: Any, begin: int) -> tuple[dict[str, str], int]:
    found: dict[str, str] = {}

    def spaces(at: int) -> int:
        while at < len(source) and source[at].isspace():
            at += 1
        return at

    while True:
        at = spaces(at)
        if at >= len(source):
            raise BadHtml(f'Unclosed start tag "{tag}" at byte offset {here(begin)}')
        if source[at] == ">":
            return found, at + 1
        name = re.compile(r"[^\s=>]*").match(source, at)[0]  # type: ignore[index]
        if not name:
            raise BadHtml(f'Empty attribute name in the tag "{tag}" at byte offset {here(begin)}')
        at = spaces(at + len(name))
        if at >= len(source):
            raise BadHtml(f'Unclosed start tag "{tag}" at byte offset {here(begin)}')
        if source[at] != "=":
            continue
        at = spaces(at + 1)
        if at >= len(source):
            raise BadHtml(f'Unclosed start tag "{tag}" at byte offset {here(begin)}')
        if source[at] in "\"'":
            quote, value, at = source[at], "", at + 1
            while at < len(source) and source[at] != quote:
                if source[at] == "&" and (entity := _entity(source, at)):
                    value, at = value + entity[0], entity[1]
                else:
                    value, at = value + source[at], at + 1
            if at >= len(source):
                raise BadHtml(f"Unclosed start tag at byte offset {here(begin)}")
            at += 1
        else:
            value = re.compile(r"[a-zA-Z0-9.-]*").match(source, at)[0]  # type: ignore[index]
            at += len(value)
            if at < len(source) and not source[at].isspace() and source[at] != ">":
                raise BadHtml(f"Unexpected end of name token at byte offset {here(at - len(value))}")
        found[name.lower()] = value
