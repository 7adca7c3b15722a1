"""A Slack incoming webhook as strict as the real one: address, JSON, blocks and their sizes, rate; it says "ok" or one word of refusal.

Words and statuses are of docs.slack.dev and captures (providers' table of this project); sizes are those of the Block Kit reference."""

import json
import re
from typing import Any

from tests.fakes.server import Reply, Seen, Server

STATUS = {
    "invalid_payload": 400, "invalid_blocks": 400, "msg_blocks_too_long": 400, "too_many_attachments": 400, "no_text": 400, "no_team": 404,
    "invalid_token": 403, "action_prohibited": 403, "posting_to_general_channel_denied": 403, "team_disabled": 403, "no_service": 404,
    "no_service_id": 404, "no_active_hooks": 404, "channel_not_found": 404, "user_not_found": 400, "channel_is_archived": 410,
    "rollup_error": 500,
}  # fmt: skip


class SlackHook(Server):
    """One webhook. `now` is Slack's clock, `state` a word it refuses everything with, `said` the bodies it took."""

    def __init__(self, path: str = "/services/T0DEMO/B0DEMO/XXdemoSecretXXdemoSecret", now: float = 0) -> None:
        super().__init__(self._judge)
        self.path, self.now, self.state = path, now, ""
        self.hook = self.url + path
        self.said: list[dict[str, Any]] = []
        self.taken_at: list[float] = []

    def _judge(self, seen: Seen) -> Reply:
        if seen.path != self.path:
            return word("no_service")
        if self.state:
            return word(self.state)
        try:
            body = json.loads(seen.body)
            assert isinstance(body, dict) and seen.headers["content-type"].startswith("application/json")
        except (ValueError, AssertionError):
            return word("invalid_payload")
        if not body.get("text") and not body.get("blocks"):
            return word("no_text")
        if not _sound(body.get("blocks", [])):
            return word("invalid_blocks")
        if sum(len(block["text"]["text"]) for block in body.get("blocks", []) if "text" in block) > 13_200:
            return word("msg_blocks_too_long")
        if sum(self.now - at < 1 for at in self.taken_at) >= 1:
            return Reply(429, "rate_limited", {"Retry-After": "1", "Content-Type": "text/plain"})
        self.taken_at.append(self.now)
        self.said.append(body)
        return Reply(200, "ok", {"Content-Type": "text/html"})

    @staticmethod
    def calls(body: dict[str, Any]) -> list[str]:
        """Whom the message calls, and where its links lead: all that is between angle brackets in mrkdwn."""
        marked = [body["text"], *(b["text"]["text"] for b in body.get("blocks", []) if b["type"] == "section")]
        return [found for text in marked for found in re.findall(r"<([^<>]*)>", text)]


def word(said: str) -> Reply:
    return Reply(STATUS[said], said, {"Content-Type": "text/html"})


def _sound(blocks: Any) -> bool:
    try:
        assert isinstance(blocks, list) and len(blocks) <= 50
        ids: list[str] = []
        for block in blocks:
            if block["type"] == "header":
                assert block["text"]["type"] == "plain_text" and 1 <= len(block["text"]["text"]) <= 150
            elif block["type"] == "section":
                assert block["text"]["type"] == "mrkdwn" and 1 <= len(block["text"]["text"]) <= 3000
                assert block["text"].get("verbatim") in (None, True, False)
            else:
                assert block["type"] == "actions" and 1 <= len(block["elements"]) <= 25
                for element in block["elements"]:
                    assert (
                        element["type"] == "button" and element["text"]["type"] == "plain_text" and 1 <= len(element["text"]["text"]) <= 75
                    )
                    assert re.match(r"https?://[^\s]+$", element["url"]) and len(element["url"]) <= 3000
                    assert element.get("style") in (None, "primary", "danger")
                    ids.append(element["action_id"])
        assert len(ids) == len(set(ids))
    except (KeyError, TypeError, AssertionError):
        return False
    return True
