"""A Mattermost server's incoming webhook: what it refuses, how it translates Slack's markup, whom a post mentions.

Written from the server's own behaviour (HandleIncomingWebhook, its mention parser): `mentioned` splits words as it does, `words` is the text after
Slack's <!channel>, <@user> and <address|words> were translated. Error objects have its form and ids; their messages are English and shortened."""

import json
import re
from typing import Any

from tests.fakes.server import Reply, Seen, Server

PUNCTUATION = ".-_:@"


class MattermostServer(Server):
    """`posts`: the texts of the channel. `now` is the server's clock (Unix seconds), `per_second` its rate limit."""

    def __init__(self, *, key: str = "xc0ffee01234567890123456ab", now: float = 0) -> None:
        super().__init__(self._judge)
        self.key, self.now, self.per_second = key, now, 10
        self.enabled = True
        self.channel_deleted = False
        self.owner_left = False
        self.posts: list[str] = []
        self.taken_at: list[float] = []
        self.hook = f"{self.url}/hooks/{key}"

    def _judge(self, seen: Seen) -> Reply:
        if sum(self.now - at < 1 for at in self.taken_at) >= self.per_second:
            return Reply(
                429, b"limit exceeded\n", {"Content-Type": "text/plain; charset=utf-8", "Retry-After": "1", "X-RateLimit-Reset": "1"}
            )
        if seen.method != "POST" or not re.fullmatch(r"/hooks/[A-Za-z0-9]+", seen.path):
            return no(404, "api.context.404.app_error", "Sorry, we could not find the page.")
        if not self.enabled:
            return no(501, "web.incoming_webhook.disabled.app_error", "Incoming webhooks have been disabled by the system admin.")
        try:
            body = json.loads(seen.body)
        except ValueError:
            return no(400, "web.incoming_webhook.parse.app_error", "Unable to parse incoming data.")
        if set(body) - {
            "text",
            "channel",
            "username",
            "icon_url",
            "icon_emoji",
            "attachments",
            "type",
            "props",
            "priority",
        } or not body.get("text"):
            return no(400, "web.incoming_webhook.text.app_error", "No text specified.")
        if seen.path != f"/hooks/{self.key}":
            return no(400, "web.incoming_webhook.invalid.app_error", "Invalid webhook.")
        if self.channel_deleted:
            return no(404, "web.incoming_webhook.channel.app_error", "Couldn't find the channel.")
        if self.owner_left:
            return no(403, "web.incoming_webhook.permissions.app_error", "Inappropriate channel permissions.")
        self.taken_at.append(self.now)
        text = self.translated(body["text"])
        self.posts += [text[start : start + 16_383] for start in range(0, len(text), 16_383)]
        return Reply(200, b"ok", {"Content-Type": "text/plain"})

    @staticmethod
    def translated(text: str) -> str:
        """What becomes of Slack's own markup, before Markdown is read."""
        text = re.sub(r"<!(channel|here|all)>", r"@\1", text)
        text = re.sub(r"<@(\w+)>", r"@\1", text)
        return re.sub(r"<([^\n<|>]+)\|([^|\n>]+)>", r"[\2](\1)", text)

    @staticmethod
    def mentioned(text: str) -> list[str]:
        """Every @name that the server would look up: users, groups, and channel, here and all."""
        found = []
        for word in re.split(rf"[^\w{re.escape(PUNCTUATION)}]+", text):
            word = word.lstrip(":.-_").rstrip(".-:_")
            parts = [word] if re.fullmatch(r"@[\w.-]+", word) else re.split(r"[.:-]", word)
            found += [part[1:] for part in parts if re.fullmatch(r"@[\w.-]+", part)]
        return list(dict.fromkeys(found))


def no(status: int, code: str, message: str) -> Reply:
    body: dict[str, Any] = {
        "id": code,
        "message": message,
        "detailed_error": "",
        "request_id": "ig3n7qehnbdwtpdcpezotaspwc",
        "status_code": status,
    }
    return Reply(status, body)
