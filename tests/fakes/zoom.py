"""A Zoom incoming webhook: bare token, format in the query, the shape of a card, length and rate.

Zoom documents neither its answers nor its limits: statuses are those other programs' authors report, the wording is partly ours, so nothing may
depend on it. This fake was written from the same reading as the transport: it is no proof against the real one."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import Reply, Seen, Server


class ZoomHook(Server):
    """One connection. `now` is Zoom's clock, `signed` that it was made with -s, `orphan` that its maker has left; `said` the cards it took."""

    def __init__(self, token: str = "demoZoomTokenABC123", now: float = 0) -> None:
        super().__init__(self._judge)
        self.path = "/chat/webhooks/incomingwebhook/demoZoomEndpointKey01"
        self.hook = self.url + self.path
        self.token, self.now, self.signed, self.orphan = token, now, False, False
        self.said: list[dict[str, Any]] = []
        self.taken_at: list[float] = []

    def _judge(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        query = parse_qs(parts.query)
        if parts.path != self.path:
            return Reply(404, {"status": False, "message": "Not Found"})
        if self.signed and "timestamp" not in query:
            return Reply(400, {"status": False, "message": "Missed timestamp"})
        if seen.headers.get("authorization") != self.token:
            return Reply(401, {"status": False, "message": "Invalid authorization"})
        if self.orphan:
            return Reply(400, {"status": False, "message": "Failed to send bot message"})
        try:
            assert query["format"] == ["full"] and seen.headers["content-type"].startswith("application/json")
            content = json.loads(seen.body)["content"]
            assert 1 <= len(content.get("head", {"text": "-"})["text"]) <= 250 and content["body"]
            assert content["settings"]["default_sidebar_color"].startswith("#")
            for item in content["body"]:
                assert item["type"] == "message" and 1 <= len(item["text"]) <= 4000
                assert item.get("is_markdown_support") in (None, True)
                assert "link" not in item or (item["link"].startswith("http") and "is_markdown_support" not in item)
        except (ValueError, KeyError, TypeError, AssertionError):
            return Reply(400, {"status": False, "message": "Invalid request body format"})
        if sum(self.now - at < 1 for at in self.taken_at) >= 1:
            return Reply(429, {"status": False, "message": "Too many requests"})
        self.taken_at.append(self.now)
        self.said.append(content)
        return Reply(200, {"status": True, "message": "success"})
