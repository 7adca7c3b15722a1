"""A Feishu group bot as strict as the real one: it checks key, size, shape, signature, clock, keyword and rate, and refuses with HTTP 200.

Codes and what they mean are from the "Custom bot usage guide". The body of 19001 is a captured one; the wording of the other refusals is ours,
so nothing may depend on it. This fake was written from the same reading of the guide as the transport: it is no proof against the real one."""

import base64
import hashlib
import hmac
import html
import json
import re
from typing import Any

import jsonschema

from tests.fakes.server import Reply, Seen, Server

# The elements and colours of a card as the vendor's own SDK for Go has them (larksuite/oapi-sdk-go, card/model.go), as far as we use any.
_PLAIN = {
    "type": "object",
    "required": ["tag", "content"],
    "additionalProperties": False,
    "properties": {"tag": {"const": "plain_text"}, "content": {"type": "string", "minLength": 1}, "lines": {"type": "integer"}},
}
_MARKED = {
    "type": "object",
    "required": ["tag", "content"],
    "additionalProperties": False,
    "properties": {"tag": {"const": "lark_md"}, "content": {"type": "string", "minLength": 1}},
}
_BUTTON = {
    "type": "object",
    "required": ["tag", "text", "url"],
    "additionalProperties": False,
    "properties": {
        "tag": {"const": "button"},
        "text": {"anyOf": [_PLAIN, _MARKED]},
        "url": {"type": "string", "pattern": "^https?://"},
        "type": {"enum": ["default", "primary", "danger"]},
    },
}
CARD = {
    "type": "object", "required": ["header", "elements"], "additionalProperties": False,
    "properties": {
        "config": {
            "type": "object", "additionalProperties": False,
            "properties": {name: {"type": "boolean"} for name in ("enable_forward", "update_multi", "wide_screen_mode")},
        },
        "header": {
            "type": "object", "required": ["title"], "additionalProperties": False,
            "properties": {
                "title": _PLAIN,
                "template": {
                    "enum": ["blue", "wathet", "turquoise", "green", "yellow", "orange", "red", "carmine", "violet", "purple", "indigo", "grey"]
                },
            },
        },
        "elements": {
            "type": "array", "minItems": 1,
            "items": {
                "oneOf": [
                    {"type": "object", "required": ["tag", "text"], "additionalProperties": False,
                     "properties": {"tag": {"const": "div"}, "text": {"anyOf": [_PLAIN, _MARKED]}}},
                    {"type": "object", "required": ["tag", "actions"], "additionalProperties": False,
                     "properties": {"tag": {"const": "action"}, "actions": {"type": "array", "minItems": 1, "items": _BUTTON}}},
                ]
            },
        },
    },
}  # fmt: skip

OK = {"StatusCode": 0, "StatusMessage": "success", "code": 0, "data": {}, "msg": "success"}


class FeishuBot(Server):
    """One bot in one group. `now` (Unix seconds) is the provider's clock; `said` holds the cards it took, `blocks` when it had too many."""

    def __init__(self, *, key: str = "c0ffee00-1234-5678-9abc-def012345678", secret: str = "", keyword: str = "", now: float = 0) -> None:
        super().__init__(self._judge)
        self.key, self.secret, self.keyword, self.now = key, secret, keyword, now
        self.said: list[dict[str, Any]] = []
        self.taken_at: list[float] = []
        self.blocks: list[float] = []
        self.whitelisted = True
        self.hook = f"{self.url}/open-apis/bot/v2/hook/{key}"

    def _judge(self, seen: Seen) -> Reply:
        if seen.path != f"/open-apis/bot/v2/hook/{self.key}":
            return _no(19001, "param invalid: incoming webhook access token invalid")
        if len(seen.body) > 20 * 1024:
            return _no(9499, "Bad Request: body too large")
        try:
            body = json.loads(seen.body)
            card = body["card"]
            assert body["msg_type"] == "interactive" and seen.headers["content-type"].startswith("application/json")
            jsonschema.validate(card, CARD)
        except (ValueError, KeyError, TypeError, AssertionError, jsonschema.ValidationError):
            return _no(9499, "Bad Request")
        if not self.whitelisted:
            return _no(19022, "Ip Not Allowed")
        if self.secret:
            timestamp = body.get("timestamp", "")
            key = f"{timestamp}\n{self.secret}".encode()
            expected = base64.b64encode(hmac.new(key, digestmod=hashlib.sha256).digest()).decode()
            if body.get("sign") != expected or not timestamp.isdigit() or abs(self.now - int(timestamp)) > 3600:
                return _no(19021, "sign match fail or timestamp is not within one hour from current time")
        if self.keyword and self.keyword not in self.words(card):
            return _no(19024, "Key Words Not Found")
        now = self.now
        if sum(now - at < 1 for at in self.taken_at) >= 5 or sum(now - at < 60 for at in self.taken_at) >= 100:
            self.blocks.append(now)
            return _no(11232, "frequency limited psm[lark.oapi.app_platform_runtime]appID[1500]")
        self.taken_at.append(now)
        self.said.append(card)
        return Reply(200, OK)

    @staticmethod
    def words(card: dict[str, Any]) -> str:
        """What a reader of the card sees: entities decoded, tags gone."""
        text = card["header"]["title"]["content"] + "\n" + "\n".join(e["text"]["content"] for e in card["elements"] if e["tag"] == "div")
        return html.unescape(re.sub(r"<[^>]*>", "", text))


def _no(code: int, message: str) -> Reply:
    return Reply(200, {"code": code, "data": {}, "msg": message})
