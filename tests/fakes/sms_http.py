"""Kannel's sendsms as strict as smsbox: user and password, needed variables, coding and charset; and its own words for each refusal.

The answers are those of smsbox 1.4 (202 with "0: Accepted for delivery" or "3: Queued for later delivery", 403, 400, 503);
tests/outside/test_kannel.py has the same conversation with the real one."""

from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import Reply, Seen, Server

PLAIN = {"Content-Type": "text/html"}


class Sendsms(Server):
    """`said` holds what was taken, as dicts of the variables; `queued` makes it answer as with a connection to the centre that is down."""

    def __init__(self, *, user: str = "flashduty", password: str = "s3cret&+ 中") -> None:
        super().__init__(self._judge)
        self.user, self.password = user, password
        self.queued = self.full = False
        self.said: list[dict[str, str]] = []
        self.place = f"{self.url}/cgi-bin/sendsms"

    def _judge(self, seen: Seen) -> Reply:
        parts = urlsplit(seen.path)
        given = parse_qs(parts.query, keep_blank_values=True, strict_parsing=True, errors="strict")
        if parts.path != "/cgi-bin/sendsms" or seen.method != "GET":
            return Reply(404, "", PLAIN)
        if any(len(values) > 1 for values in given.values()):
            return Reply(400, "a variable stands there twice", PLAIN)
        said = {name: values[0] for name, values in given.items()}
        if (said.get("username"), said.get("password")) != (self.user, self.password):
            return Reply(403, "Authorization failed for sendsms", PLAIN)
        if not said.get("to", "").strip("+ "):
            return Reply(400, "Missing receiver number, rejected", PLAIN)
        if said.get("charset", "").upper() != "UTF-8" or said.get("coding") not in ("0", "2"):
            return Reply(400, "Coding or charset is not as agreed", PLAIN)
        if self.full:
            return Reply(503, "Temporal failure, try again later.", PLAIN)
        self.said.append(said)
        return Reply(202, "3: Queued for later delivery" if self.queued else "0: Accepted for delivery", PLAIN)
