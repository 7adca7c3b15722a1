"""Twilio's API as strict as the real one, and its callbacks signed by Twilio's own library.

It checks account, form fields, phone numbers, whose number it is, countries, TwiML (read by an XML parser), length and the callback's address,
and refuses with Twilio's error bodies. Codes are those of Twilio's error dictionary; the wording of the messages is close to the real one, and
nothing may depend on it. The signature of callbacks is computed by the `twilio` package, so that one is proof; the rest is our reading."""

import base64
import ipaddress
import re
import xml.etree.ElementTree as xml
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

from twilio.request_validator import RequestValidator

from tests.fakes.server import Reply, Seen, Server

SID = "AC" + "0" * 31 + "1"
TOKEN = "demo_auth_token_0123456789abcdef"
E164 = re.compile(r"\+[1-9]\d{6,14}")
EVENTS = {"initiated", "ringing", "answered", "completed"}


class FakeTwilio(Server):
    """One account. `calls` and `messages` hold what was taken, as the API gives it back."""

    def __init__(self, *, numbers: tuple[str, ...] = ("+14155550100", "+8657188881234"), token: str = TOKEN) -> None:
        super().__init__(self._judge)
        self.numbers, self.token = numbers, token
        self.countries = {"+1", "+86", "+44"}  # geo permissions
        self.stopped: set[str] = set()  # phones that answered STOP
        self.calls: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.forms: list[list[tuple[str, str]]] = []

    def _judge(self, seen: Seen) -> Reply:
        expected = "Basic " + base64.b64encode(f"{SID}:{self.token}".encode()).decode()
        if seen.headers.get("authorization") != expected:
            return _no(401, 20003, "Authenticate")
        found = re.fullmatch(rf"/2010-04-01/Accounts/{SID}/(Calls|Messages)(?:/(\w+))?\.json", seen.path)
        if not found:
            return _no(404, 20404, f"The requested resource {seen.path} was not found")
        things = self.calls if found[1] == "Calls" else self.messages
        if found[2]:
            one = next((thing for thing in things if thing["sid"] == found[2]), None)
            return Reply(200, one) if one and seen.method == "GET" else _no(404, 20404, f"The requested resource {seen.path} was not found")
        if seen.method != "POST" or seen.headers.get("content-type") != "application/x-www-form-urlencoded":
            return _no(400, 20001, "Bad request")
        fields = parse_qsl(seen.body.decode("ascii"), keep_blank_values=True, strict_parsing=True)
        form = dict(fields)
        to, sender = form.get("To", ""), form.get("From", "")
        if not E164.fullmatch(to):
            return _no(400, 21211, f"Invalid 'To' Phone Number: {to[:5]}XXXX")
        if "StatusCallback" in form and not _callable(form["StatusCallback"]):
            return _no(400, 21609, f"Invalid 'StatusCallback' URL: {form['StatusCallback']}")
        answer = self._call(fields, form, to, sender) if found[1] == "Calls" else self._message(form, to, sender)
        if answer.status == 201:
            self.forms.append(fields)
        return answer

    def _call(self, fields: list[tuple[str, str]], form: dict[str, str], to: str, sender: str) -> Reply:
        known = {
            "To", "From", "Twiml", "Timeout", "StatusCallback", "StatusCallbackMethod", "StatusCallbackEvent", "MachineDetection", "AsyncAmd",
            "AsyncAmdStatusCallback", "AsyncAmdStatusCallbackMethod",
        }  # fmt: skip
        assert set(form) <= known, f"not of the API: {set(form) - known}"
        if sender not in self.numbers:
            return _no(400, 21210, f"Source phone number not yet verified for your account: {sender}")
        if not any(to.startswith(code) for code in self.countries):
            return _no(400, 21215, "Account not authorized to call. Perhaps you need to enable some international permissions")
        if len(form["Twiml"]) > 4000:
            return _no(400, 21218, "Invalid Twiml: too long")
        tree = xml.fromstring(form["Twiml"])
        assert tree.tag == "Response" and {verb.tag for verb in tree} <= {"Say", "Pause"}
        assert 1 <= int(form["Timeout"]) <= 600
        assert {value for name, value in fields if name == "StatusCallbackEvent"} <= EVENTS
        assert form.get("MachineDetection", "Enable") in ("Enable", "DetectMessageEnd") and form.get("AsyncAmd", "true") in (
            "true",
            "false",
        )
        assert "AsyncAmdStatusCallback" not in form or "MachineDetection" in form
        call = {
            "sid": f"CA{len(self.calls) + 1:032x}",
            "status": "queued",
            "to": to,
            "from": sender,
            "answered_by": None,
            "direction": "outbound-api",
        }
        self.calls.append(call)
        return Reply(201, call)

    def _message(self, form: dict[str, str], to: str, sender: str) -> Reply:
        assert set(form) <= {"To", "From", "MessagingServiceSid", "Body", "StatusCallback"}
        if not form.get("MessagingServiceSid") and sender not in self.numbers:
            return _no(400, 21659, f"'{sender}' is not a Twilio phone number or short code")
        if not any(to.startswith(code) for code in self.countries):
            return _no(400, 21408, f"Permission to send an SMS has not been enabled for the region indicated by the 'To' number: {to}")
        if to in self.stopped:
            return _no(400, 21610, "Attempt to send to unsubscribed recipient")
        if not form.get("Body"):
            return _no(400, 21602, "Message body is required")
        if len(form["Body"]) > 1600:
            return _no(400, 21617, "The concatenated message body exceeds the 1600 character limit")
        message = {
            "sid": f"SM{len(self.messages) + 1:032x}",
            "status": "queued",
            "to": to,
            "body": form["Body"],
            "error_code": None,
            "error_message": None,
        }
        self.messages.append(message)
        return Reply(201, message)

    # ---- what Twilio says later ----

    def words(self, number: int = -1) -> list[tuple[str, str]]:
        """What a call says, in order: (language, text)."""
        tree = xml.fromstring(dict(self.forms[number])["Twiml"])
        return [(verb.get("language") or "", verb.text or "") for verb in tree if verb.tag == "Say"]

    def report(self, url: str, **fields: str) -> dict[str, Any]:
        """The callback as arguments for Django's test client: a form, signed by Twilio's own library over the public address."""
        signature = RequestValidator(self.token).compute_signature(url, fields)
        return {
            "path": urlsplit(url).path + ("?" + urlsplit(url).query if urlsplit(url).query else ""),
            "data": urlencode(fields),
            "content_type": "application/x-www-form-urlencoded",
            "headers": {"X-Twilio-Signature": signature},
        }


def _callable(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parse_qs(parts.fragment):
        return False
    try:
        return ipaddress.ip_address(parts.hostname).is_global
    except ValueError:
        return "." in parts.hostname


def _no(status: int, code: int, message: str) -> Reply:
    return Reply(status, {"code": code, "message": message, "more_info": f"https://www.twilio.com/docs/errors/{code}", "status": status})
