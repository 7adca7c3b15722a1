"""Vonage's Voice API as strict as the real one: the token is read by PyJWT, and so are the tokens of its events written.

It checks token (algorithm, claims, life, never used twice), body, numbers, NCCO and the event address. Statuses are those of the Voice API
reference; the bodies of refusals are close to the real ones, and nothing may depend on them."""

import hashlib
import ipaddress
import json
import re
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.fakes.server import Reply, Seen, Server

APPLICATION = "00000000-0000-0000-0000-000000000000"
SECRET = "demo_vonage_signature_secret_32b"
KEY = rsa.generate_private_key(65537, 2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()  # fmt: skip
DIGITS = re.compile(r"[1-9]\d{6,14}")


class FakeVonage(Server):
    """One application. `calls` holds the bodies that were taken; `states` what the API says of them, by uuid."""

    def __init__(self, *, now: float) -> None:
        super().__init__(self._judge)
        self.now: float | None = now  # the provider's clock; None: the real one
        self.numbers = {"14155550100", "8657188881234"}
        self.blocked = {"999"}  # destinations that are not allowed
        self.used: set[str] = set()
        self.calls: list[dict[str, Any]] = []
        self.states: dict[str, str] = {}

    def _judge(self, seen: Seen) -> Reply:
        try:
            scheme, token = seen.headers.get("authorization", " ").split(" ")
            claims = jwt.decode(token, KEY.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False})
            assert scheme == "Bearer" and claims["application_id"] == APPLICATION and claims["jti"] not in self.used
            assert 0 < claims["exp"] - claims["iat"] <= 86_400
            assert self.now is None or claims["iat"] - 60 <= self.now < claims["exp"] or seen.method == "GET"
            self.used.add(claims["jti"])
        except (jwt.PyJWTError, AssertionError, KeyError, ValueError):
            return _no(401, "Unauthorized", "You did not provide correct credentials.")
        if seen.method == "GET":
            uuid = seen.path.rpartition("/")[2]
            if seen.path != f"/v1/calls/{uuid}" or uuid not in self.states:
                return _no(404, "Not found", "Call does not exist, or you do not have access")
            return Reply(200, {"uuid": uuid, "status": self.states[uuid], "direction": "outbound"})
        if seen.path != "/v1/calls" or seen.method != "POST":
            return _no(404, "Not found", "no such path")
        try:
            body = json.loads(seen.body)
            assert seen.headers["content-type"].startswith("application/json")
            assert set(body) <= {"to", "from", "ncco", "event_url", "event_method", "machine_detection", "ringing_timer"}
            ((to,), sender, (talk,)) = body["to"], body["from"], body["ncco"]
            assert to["type"] == sender["type"] == "phone" and DIGITS.fullmatch(to["number"])
            assert (
                talk["action"] == "talk" and 0 < len(talk["text"]) <= 1500 and talk["language"] in ("en-US", "cmn-CN") and talk["loop"] >= 0
            )
            assert "<" not in talk["text"]
            assert 1 <= body["ringing_timer"] <= 120 and body.get("machine_detection", "continue") in ("continue", "hangup")
            for url in body.get("event_url", []):
                assert _callable(url) and body["event_method"] in ("GET", "POST")
            assert sender["number"] in self.numbers
        except (ValueError, KeyError, TypeError, AssertionError):
            return Reply(
                400,
                {
                    "type": "https://developer.vonage.com/api-errors",
                    "error_title": "Bad Request",
                    "invalid_parameters": {"from": "Is invalid"},
                },
            )
        if any(to["number"].startswith(code) for code in self.blocked):
            return _no(403, "Forbidden", "Destination is not permitted")
        uuid = f"63f61863-4a51-4f6b-86e1-{len(self.calls) + 1:012d}"
        self.calls.append(body)
        self.states[uuid] = "started"
        return Reply(201, {"uuid": uuid, "status": "started", "direction": "outbound", "conversation_uuid": f"CON-{uuid}"})

    @staticmethod
    def event(url: str, at: float, secret: str = SECRET, **fields: Any) -> dict[str, Any]:
        """An event as arguments for Django's test client, signed by PyJWT."""
        body = json.dumps(fields).encode()
        return {
            "path": urlsplit(url).path,
            "data": body,
            "content_type": "application/json",
            "headers": {"Authorization": f"Bearer {token_for(body, at, secret)}"},
        }


def token_for(body: bytes, at: float, secret: str = SECRET, **claims: Any) -> str:
    said = {
        "iat": int(at),
        "jti": "j1",
        "iss": "Vonage",
        "payload_hash": hashlib.sha256(body).hexdigest(),
        "api_key": "abcd1234",
        "application_id": APPLICATION,
    }
    return jwt.encode({**said, **claims}, secret, algorithm="HS256")


def _callable(url: str) -> bool:
    parts = urlsplit(url)
    try:
        return parts.scheme == "https" and ipaddress.ip_address(parts.hostname or "").is_global
    except ValueError:
        return "." in (parts.hostname or "")


def _no(status: int, title: str, detail: str) -> Reply:
    return Reply(
        status, {"type": "https://developer.vonage.com/api-errors", "title": title, "detail": detail, "instance": "ec04bca9-3cb0-4d6e-8e5b"}
    )
