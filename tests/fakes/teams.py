"""A Power Automate flow that posts to Teams, as strict as the real one: it answers 202 to whatever passes the door, and drops bad cards later.

At the door: path, api-version and signature of the address, JSON, the trigger's state, four requests a second. Behind it, without a word to
the sender: the attachment must be there, the message at most 28 KB, the card must hold to version 1.4, and each <at>…</at> needs its entity. The
bodies of 401 (DirectApiAuthorizationRequired) are captured ones; the others follow Azure Logic Apps' documented form. The schema is
Microsoft's (github.com/microsoft/AdaptiveCards, MIT); the test also reads the cards with Microsoft's own classes."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema

from tests.fakes.server import Reply, Seen, Server

ENVIRONMENT = "3f1c0ffee0000000000000000000000a"
_SCHEMA = Path(__file__).parent.parent / "schemas" / "teams" / "adaptive-card-1.4.0.json"
_CARD = jsonschema.Draft6Validator(json.loads(_SCHEMA.read_text()))


def check_card(card: dict[str, Any]) -> None:
    """AssertionError unless the card holds to Microsoft's schema of Adaptive Cards 1.4 and to what Teams asks beyond it."""
    wrong = [error.message for error in _CARD.iter_errors({key: value for key, value in card.items() if key != "msteams"})]  # Teams' own
    assert not wrong, wrong
    assert card["version"] == "1.4"
    for block in card["body"]:
        assert block["type"] != "TextBlock" or block["text"], "an empty TextBlock is not shown"
    for action in card.get("actions", []):
        assert action["title"] and action["url"].startswith(("http://", "https://"))


class TeamsFlow(Server):
    """`posted`: the cards that reached Teams; `failed`: (why, body) of runs that failed after the 202. `now` is the flow's clock (Unix seconds)."""

    def __init__(self, *, sig: str = "mUE0ffee-0123456789_abcdefghijklmnopqrstuv", enabled: bool = True, now: float = 0) -> None:
        super().__init__(self._judge)
        self.sig, self.enabled, self.now = sig, enabled, now
        self.anyone = True
        self.deleted = False
        self.posted: list[dict[str, Any]] = []
        self.failed: list[tuple[str, bytes]] = []
        self.taken_at: list[float] = []
        self.path = f"/powerautomate/automations/direct/workflows/{ENVIRONMENT}/triggers/manual/paths/invoke"
        self.hook = f"{self.url}{self.path}?api-version=1&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig={sig}"

    def _judge(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        query = parse_qs(parts.query)
        if seen.method != "POST" or parts.path != self.path or self.deleted:
            return no(404, "WorkflowNotFound", "The workflow could not be found.")
        if query.get("api-version") != ["1"]:
            return no(400, "MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
        if not self.anyone or "sig" not in query:
            return no(401, "DirectApiAuthorizationRequired", "The request must be authenticated only by Shared Access scheme.")
        if query != {"api-version": ["1"], "sp": ["/triggers/manual/run"], "sv": ["1.0"], "sig": [self.sig]} or "%2F" not in parts.query:
            return no(401, "AuthorizationFailed", "The authentication credentials are not valid.")
        if not self.enabled:
            return no(
                400,
                "WorkflowTriggerIsNotEnabled",
                "Could not execute workflow trigger 'manual' with state 'Disabled': trigger is not enabled.",
            )
        if sum(self.now - at < 1 for at in self.taken_at) >= 4:
            return no(429, "TooManyRequests", "Rate limit is exceeded. Try again in 5 seconds.", {"Retry-After": "5"})
        if not seen.headers["content-type"].startswith("application/json"):
            return no(400, "InvalidRequestContent", "The request content is not valid.")
        try:
            body = json.loads(seen.body)
        except ValueError:
            return no(400, "InvalidRequestContent", "The request content is not valid and could not be deserialized.")
        self.taken_at.append(self.now)
        try:
            self._run(body, seen.body)
        except (AssertionError, KeyError, TypeError) as error:
            self.failed.append((f"{type(error).__name__}: {error}", seen.body))
        return Reply(202, headers={"x-ms-workflow-run-id": "08584"})

    def _run(self, body: dict[str, Any], raw: bytes) -> None:
        assert len(raw) <= 28 * 1024, "Request Entity too large"
        (attachment,) = body["attachments"]
        assert body["type"] == "message" and attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
        card = attachment["content"]
        check_card(card)
        named = {entity["text"]: entity["mentioned"] for entity in card["msteams"]["entities"]}
        found = [at for block in card["body"] if block["type"] == "TextBlock" for at in re.findall(r"<at>.*?</at>", block["text"])]
        assert sorted(found) == sorted(named), "mentions and entities differ"
        assert all(person["id"] and person["name"] for person in named.values())
        self.posted.append(card)

    @staticmethod
    def mentioned(card: dict[str, Any]) -> list[str]:
        return [entity["mentioned"]["id"] for entity in card["msteams"]["entities"]]


def no(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    return Reply(status, {"error": {"code": code, "message": message}}, headers or {})
