"""A Google Chat space as strict as the real one: key, token, JSON names, 4,096 characters, one write a second, request ids that repeat nothing.

Error bodies of 400 (too long, bad key) and 403 (no valid token) are captured ones from public reports; the others have google.rpc's documented
form. `mentioned` reads what the documentation calls a mention: <users/ID> and <users/all>, in the text only."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import Reply, Seen, Server

CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}
KNOWN = {"text", "thread", "cardsV2", "fallbackText"}


class ChatSpace(Server):
    """`said`: the messages of the space, {"name", "text", "thread"}; `now` is Google's clock (Unix seconds)."""

    def __init__(
        self, *, space: str = "AAAAc0ffee0", key: str = "AIzaSyC0ffee-0123456789", token: str = "t0kenC0ffee_0123456789=", now: float = 0
    ) -> None:
        super().__init__(self._judge)
        self.space, self.key, self.token, self.now = space, key, token, now
        self.said: list[dict[str, Any]] = []
        self.taken_at: list[float] = []
        self.hook = f"{self.url}/v1/spaces/{space}/messages?key={key}&token={token.replace('=', '%3D')}"

    def _judge(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if seen.method != "POST" or parts.path != f"/v1/spaces/{self.space}/messages":
            return no(404, "Space not found.")
        if query.get("key") != self.key:
            details = [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}]
            return no(400, "API key not valid. Please pass a valid API key.", details)
        if query.get("token") != self.token:
            return no(403, "The API is called without a valid token. Instructions on how to use incoming webhooks can be found at …")
        if set(query) - {"key", "token", "requestId", "messageReplyOption", "threadKey", "messageId"}:
            return no(400, "Invalid JSON payload received. Unknown name: Cannot bind query parameter.")
        try:
            body = json.loads(seen.body)
        except ValueError:
            return no(400, "Invalid JSON payload received.")
        if set(body) - KNOWN or set(body.get("thread", {})) - {"threadKey", "name"}:
            return no(400, "Invalid JSON payload received. Unknown name")
        if not body.get("text", "").strip() and "cardsV2" not in body:
            return no(400, "Message cannot be empty.")
        if len(body["text"]) > 4096:
            return no(400, "Maximum length of the field is 4096. Field: apps.dynamite.CreateMessageInfo.text_body")
        if len(seen.body) > 32_000:
            return no(400, "The message is too large.")
        for old in self.said:
            if query.get("requestId") and old["requestId"] == query["requestId"]:
                return Reply(200, {"name": old["name"], "thread": old["thread"]})
        if sum(self.now - at < 1 for at in self.taken_at) >= 1:
            return no(429, "Resource has been exhausted (e.g. check quota).")
        self.taken_at.append(self.now)
        wanted = body.get("thread", {}).get("threadKey")
        thread = f"spaces/{self.space}/threads/new{len(self.said)}"
        if wanted and query.get("messageReplyOption", "").startswith("REPLY_MESSAGE"):
            thread = f"spaces/{self.space}/threads/{wanted}"
        self.said.append(
            {
                "name": f"spaces/{self.space}/messages/m{len(self.said)}",
                "text": body["text"],
                "thread": {"name": thread},
                "requestId": query.get("requestId"),
            }
        )
        return Reply(200, {"name": self.said[-1]["name"], "thread": {"name": thread}})

    @staticmethod
    def mentioned(text: str) -> list[str]:
        return re.findall(r"<users/([^<>]+)>", text)


def no(status: int, message: str, details: list[dict[str, Any]] | None = None) -> Reply:
    error = {"code": status, "message": message, "status": CODES[status]} | ({"details": details} if details else {})
    return Reply(status, {"error": error})
