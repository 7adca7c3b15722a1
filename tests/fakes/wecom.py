"""A WeCom group bot as strict as the real one: key, kinds, shapes, sizes, and 20 messages a minute. It refuses with HTTP 200.

The bodies of 93000, 45009, 44004 and 40058 are captured ones (with another hint and address); the wording of the others is ours, so nothing may
depend on it."""

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import Reply, Seen, Server

OK = {"errcode": 0, "errmsg": "ok"}
KEY = "73febdcb-1b38-4d1b-a994-790f21fc8d30"
_HINT = "hint: [1647424338252370220001484], from ip: 203.0.113.7, more info at https://open.work.weixin.qq.com/devtool/query?e="


class WeComBot(Server):
    """One bot in one group. `now` (Unix seconds) is the provider's clock; `said` holds the messages it took, `blocks` when it had too many."""

    def __init__(self, *, key: str = KEY, now: float = 0) -> None:
        super().__init__(self._judge)
        self.key, self.now = key, now
        self.said: list[dict[str, Any]] = []
        self.taken_at: list[float] = []
        self.blocks: list[float] = []
        self.hook = f"{self.url}/cgi-bin/webhook/send?key={key}"

    def _judge(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        if parts.path != "/cgi-bin/webhook/send":
            return Reply(404, b"", {"Content-Type": "text/plain"})
        if seen.method != "POST":
            return no(43002, "require POST method")
        if parse_qs(parts.query).get("key") != [self.key]:
            return no(93000, "invalid webhook url")
        try:
            body = json.loads(seen.body)
        except ValueError:
            return no(47001, "data format error")
        kind = body.get("msgtype") if isinstance(body, dict) else None
        if kind not in ("text", "markdown", "markdown_v2"):
            return no(40008, "invalid message type")
        part = body.get(kind)
        content = part.get("content") if isinstance(part, dict) else None
        if not isinstance(content, str) or not content.strip():
            return no(44004, "empty content")
        if len(content.encode()) > (most := 2048 if kind == "text" else 4096):
            return no(40058, f"{kind}.content exceed max length {most}. Invalid input invalid Request Parameter")
        for name in ("mentioned_list", "mentioned_mobile_list"):
            if name in part and not (isinstance(part[name], list) and all(isinstance(one, str) for one in part[name])):
                return no(40058, f"text.{name} is invalid. Invalid input invalid Request Parameter")
        now = self.now
        if sum(now - at < 60 for at in self.taken_at) >= 20:
            self.blocks.append(now)
            return no(45009, "api freq out of limit")
        self.taken_at.append(now)
        self.said.append(body)
        return Reply(200, OK)

    @staticmethod
    def words(body: dict[str, Any]) -> str:
        """The text of a message as it was sent."""
        return str(body[body["msgtype"]]["content"])

    @staticmethod
    def called(body: dict[str, Any]) -> list[str]:
        """Who is called: ids within the text, and where the kind is text those of its two lists."""
        kind = body["msgtype"]
        inline = [] if kind == "markdown_v2" else re.findall(r"<@([^<>]+)>", body[kind]["content"])
        lists = [*body[kind].get("mentioned_list", []), *body[kind].get("mentioned_mobile_list", [])] if kind == "text" else []
        return inline + lists


def no(code: int, message: str) -> Reply:
    """A refusal as WeCom words it."""
    return Reply(200, {"errcode": code, "errmsg": f"{message}, {_HINT}{code}"})
