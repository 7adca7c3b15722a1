"""A DingTalk group bot as strict as the real one: token, method, parameters, size, signature, clock, keyword, and 20 messages a minute, after
which it is silent for ten minutes. It refuses with HTTP 200.

The bodies of 310000 (both wordings), 130101, 300005, 460101 and 660026 are captured ones; the wording of the other refusals is ours, so nothing
may depend on it."""

import base64
import hashlib
import hmac
import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import Reply, Seen, Server

OK = {"errcode": 0, "errmsg": "ok"}
TOKEN = "6ec79e7aae3c8bc111c5936dd533531750f098e9c0ffee00aabbccddeeff0011"
SECRET = "SECdemo" + "0" * 60

# The errmsg of 310000 in the two languages in which it was seen.
SECURITY = {
    "keyword": ("keywords not in content", "description:关键词不匹配;solution:请联系群管理员查看此机器人的关键词，并在发送的信息中包含此关键词;"),
    "timestamp": ("invalid timestamp", "description:机器人发送签名过期;solution:签名生成时间和发送时间请保持在 timestampms 以内;"),
    "sign": (
        "sign not match",
        "description:机器人发送签名不匹配;solution:请确认签名和生成签名的时间戳必须都放在调用的网址中，请确认机器人的密钥加密和填写正确;",
    ),
    "ip": ("ip 203.0.113.7 not in whitelist", "description:不合法的IP地址203.0.113.7;solution:请将该IP加入机器人的IP白名单;"),
}  # fmt: skip


class DingTalkBot(Server):
    """One bot in one group. `now` (Unix seconds) is the provider's clock; `said` holds the messages it took, `blocks` when it fell silent."""

    def __init__(
        self, *, token: str = TOKEN, secret: str = "", keywords: tuple[str, ...] = (), whitelist: bool = True, now: float = 0
    ) -> None:
        super().__init__(self._judge)
        self.token, self.secret, self.keywords, self.whitelisted, self.now = token, secret, keywords, whitelist, now
        self.chinese = False
        self.said: list[dict[str, Any]] = []
        self.taken_at: list[float] = []
        self.blocks: list[float] = []
        self.hook = f"{self.url}/robot/send?access_token={token}"

    def _judge(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        query = parse_qs(parts.query)
        if parts.path != "/robot/send":
            return Reply(404, b"Not Found", {"Content-Type": "text/plain"})
        if seen.method != "POST":
            return _no(43002, "需要POST请求")
        if "access_token" not in query:
            return _no(40035, "缺少参数 access_token")
        if query["access_token"] != [self.token]:
            return _no(300005, "token is not exist")
        now = self.now
        if self.blocks and now - self.blocks[-1] < 600:
            return _no(130101, "send too fast, exceed 20 times per minute")
        if not seen.headers.get("content-type", "").startswith("application/json"):
            return _no(43004, "无效的HTTP HEADER Content-Type")
        if len(seen.body) > 20_000:
            return _no(460101, "message too long, exceed 20000 bytes")
        try:
            body = json.loads(seen.body)
            words = self.words(body)
        except (ValueError, KeyError, TypeError, AssertionError, AttributeError):
            return _no(40035, "缺少参数 json")
        if body["msgtype"] not in ("text", "markdown", "actionCard"):
            return _no(400105, "msgtype not support")
        if not self.whitelisted:
            return self._insecure("ip")
        if self.secret:
            [timestamp], [signature] = query.get("timestamp", [""]), query.get("sign", [""])
            if not timestamp.isdigit() or abs(now * 1000 - int(timestamp)) > 3_600_000:
                return self._insecure("timestamp")
            string = f"{timestamp}\n{self.secret}".encode()
            if signature != base64.b64encode(hmac.digest(self.secret.encode(), string, hashlib.sha256)).decode():
                return self._insecure("sign")
        seen_words = re.sub(r"<[^>]*>", "", re.sub(r"\]\([^)]*\)", "]", words))  # whether tags count is not known: the stricter reading
        if self.keywords and not any(word in seen_words for word in self.keywords):
            return self._insecure("keyword")
        if sum(now - at < 60 for at in self.taken_at) >= 20:
            self.blocks.append(now)
            return _no(130101, "send too fast, exceed 20 times per minute")
        self.taken_at.append(now)
        self.said.append(body)
        return Reply(200, OK)

    def _insecure(self, why: str) -> Reply:
        return _no(310000, SECURITY[why][self.chinese])

    @staticmethod
    def words(body: dict[str, Any]) -> str:
        """The text of a message; an AssertionError or KeyError where the message is not of the documented form."""
        kind = body["msgtype"]
        if kind == "text":
            assert isinstance(body["text"]["content"], str) and body["text"]["content"]
            return str(body["text"]["content"])
        if kind not in ("markdown", "actionCard"):
            return ""
        part = body[kind]
        assert isinstance(part["title"], str) and part["title"] and isinstance(part["text"], str) and part["text"]
        if kind == "actionCard":
            buttons = part.get("btns") or [{"title": part["singleTitle"], "actionURL": part["singleURL"]}]
            assert all(button["title"] and button["actionURL"].startswith(("http", "dingtalk:")) for button in buttons)
            assert part.get("btnOrientation", "0") in ("0", "1")
        return str(part["text"])

    @staticmethod
    def called(body: dict[str, Any]) -> list[str]:
        """Whose phones ring: those that `at` lists and the text names."""
        at = body.get("at", {})
        assert isinstance(at.get("isAtAll", False), bool)
        return [mobile for mobile in at.get("atMobiles", [])[:50] if f"@{mobile}" in DingTalkBot.words(body)]


def _no(code: int, message: str) -> Reply:
    return Reply(200, {"errcode": code, "errmsg": message})
