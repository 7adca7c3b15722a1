"""A Discord webhook as strict as the real one: address, query, shape and sizes, who may be called, both rates; it answers in Discord's bodies.

Codes, sizes and rates are of discord-api-docs and what Discord's engineers say there (issue 367: 5 in 2 s of a webhook, 30 a minute of a channel)."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import Reply, Seen, Server

PATH = "/api/webhooks/1174022233344455566/demo_Discord-Secret_demo_Discord-Secret_demo_Discord-Secret"


class DiscordHook(Server):
    """One webhook. `now` is Discord's clock, `threads` what it may write into, `is_forum` that it must; `said` holds the bodies it saved."""

    def __init__(self, now: float = 0) -> None:
        super().__init__(self._judge)
        self.now, self.hook, self.is_forum = now, self.url + PATH, False
        self.threads: set[str] = set()
        self.said: list[dict[str, Any]] = []
        self.taken_at: list[float] = []

    def _judge(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        given, real = parts.path.split("/"), PATH.split("/")
        if given[:4] != real[:4]:
            return no(404, 10015, "Unknown Webhook")
        if given != real:
            return no(401, 50027, "Invalid Webhook Token")
        thread = query.get("thread_id")
        if thread and thread not in self.threads:
            return no(404, 10003, "Unknown Channel")
        if self.is_forum and not thread:
            return no(400, 220001, "Webhooks posted to forum channels must have a thread_name or thread_id")
        for seconds, most in ((2, 5), (60, 30)):
            times = [at for at in self.taken_at if self.now - at < seconds]
            if len(times) >= most:
                wait = round(seconds - (self.now - times[0]), 3)
                headers = {"Retry-After": str(int(wait) + 1), "X-RateLimit-Remaining": "0", "X-RateLimit-Reset-After": str(wait)}
                body = {"message": "You are being rate limited.", "retry_after": wait, "global": False}
                return Reply(429, body, {**headers, "X-RateLimit-Scope": "user"})
        self.taken_at.append(self.now)
        try:
            body = json.loads(seen.body)
            wrong = problems(body, query.get("with_components") == "true")
        except (ValueError, KeyError, TypeError, AttributeError):
            wrong = {"_errors": [{"code": "INVALID", "message": "malformed"}]}
        if wrong:
            return Reply(400, {"message": "Invalid Form Body", "code": 50035, "errors": wrong})
        if not body.get("content") and not body.get("embeds"):
            return no(400, 50006, "Cannot send an empty message")
        self.said.append({**body, "thread": thread})
        if query.get("wait") != "true":
            return Reply(204)
        return Reply(
            200, {"id": str(1174000000000000000 + len(self.said)), "type": 0, "content": body.get("content", ""), "webhook_id": given[3]}
        )

    @staticmethod
    def called(body: dict[str, Any]) -> list[str]:
        """Who is notified: what the content names and allowed_mentions permits. Embeds notify nobody."""
        allowed = body.get("allowed_mentions", {})
        content = re.sub(r"\\.", "", body["content"])
        found = [
            i for i in re.findall(r"<@!?(\d+)>", content) if i in allowed.get("users", ()) or "users" in allowed.get("parse", ["users"])
        ]
        found += ["&" + i for i in re.findall(r"<@&(\d+)>", content) if i in allowed.get("roles", ())]
        return found + [w for w in re.findall(r"@(?:everyone|here)", content) if "everyone" in allowed.get("parse", ())]


def no(status: int, code: int, message: str) -> Reply:
    return Reply(status, {"message": message, "code": code})


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def problems(body: dict[str, Any], with_components: bool) -> dict[str, Any]:
    """What Discord would have against the body, by field."""
    wrong: dict[str, Any] = {}
    if _units(body.get("content", "")) > 2000:
        wrong["content"] = "BASE_TYPE_BAD_LENGTH"
    embeds = body.get("embeds", [])
    sizes = [_units(embed.get("title", "")) + _units(embed.get("description", "")) for embed in embeds]
    if len(embeds) > 10 or sum(sizes) > 6000 or not all(sizes):
        wrong["embeds"] = "BASE_TYPE_BAD_LENGTH"
    for embed in embeds:
        if (
            _units(embed.get("description", "")) > 4096
            or not 0 <= embed.get("color", 0) <= 0xFFFFFF
            or set(embed) - {"title", "description", "color", "url"}
        ):
            wrong["embeds"] = "BASE_TYPE_BAD"
    rows = body.get("components", []) if with_components else []
    for row in rows:
        buttons = row["components"]
        if row["type"] != 1 or not 1 <= len(buttons) <= 5 or len({button["url"] for button in buttons}) < len(buttons):
            wrong["components"] = "BASE_TYPE_BAD_LENGTH"
        for button in buttons:
            host = urlsplit(button["url"]).hostname or ""
            if button["type"] != 2 or button["style"] != 5 or not 1 <= len(button["label"]) <= 80 or len(button["url"]) > 512:
                wrong["components"] = "BASE_TYPE_BAD"
            if not button["url"].startswith(("http://", "https://")) or "." not in host:
                wrong["components"] = "URL_TYPE_INVALID_URL"
    allowed = body.get("allowed_mentions", {})
    if set(allowed) - {"parse", "users", "roles", "replied_user"} or any(len(allowed.get(kind, ())) > 100 for kind in ("users", "roles")):
        wrong["allowed_mentions"] = "BASE_TYPE_BAD"
    return wrong
