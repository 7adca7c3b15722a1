"""The people and machines around the product: a sender of alerts that repeats what was not answered with 200, and somebody who acknowledges."""

import http.client
import json
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from .ledger import PAGES, Ledger

SENDERS = 24
ANSWER = 10.0  # a sender waits so long for an answer


class Unanswered(Exception):
    """No answer, or one that says: later."""


class Client:
    """A connection that is opened again whenever it broke. One thread uses it."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.wire: http.client.HTTPConnection | None = None

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        """(status, JSON); raises Unanswered for a broken connection, a 5xx, a 429 and an answer that is not JSON."""
        try:
            if self.wire is None:
                self.wire = http.client.HTTPConnection(self.host, self.port, timeout=ANSWER)
            self.wire.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = self.wire.getresponse()
            text = answer.read()
            if answer.status >= 500 or answer.status == 429:
                raise Unanswered(f"status {answer.status}: {text[:200]!r}")
            return answer.status, json.loads(text)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Unanswered(repr(error)) from None

    def close(self) -> None:
        if self.wire is not None:
            self.wire.close()
            self.wire = None


class Load:
    """Alerts with unique keys at a steady rate. `accepted` holds the instant of the 200 for each key; the title of an alert is its key."""

    def __init__(self, demo: Callable[[], dict[str, str]], ledger: Ledger, rate: float, run: str, seed: int) -> None:
        self.demo, self.ledger, self.rate, self.run = demo, ledger, rate, run
        self.random = random.Random(seed)
        self.accepted: dict[str, float] = {}
        self.acknowledged: dict[str, float] = {}  # incident -> when the 200 was here
        self.refused: list[str] = []  # answers that a correct alert, or a correct acknowledgement, must never get
        self.retries = 0
        self.sending = True
        self.living = True
        self._todo: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._open = 0
        self._lock = threading.Lock()
        self.push = urlsplit(demo()["push_url"])
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(SENDERS)]
        self._threads += [threading.Thread(target=self._clock, daemon=True), threading.Thread(target=self._answer, daemon=True)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop_sending(self, patience: float) -> int:
        """No new alerts; waits until what is on its way was accepted. Returns how many were not."""
        self.sending = False
        until = time.monotonic() + patience
        while self._open and time.monotonic() < until:
            time.sleep(0.05)
        return self._open

    def close(self) -> None:
        self.sending = self.living = False

    @property
    def push_path(self) -> str:
        return f"{self.push.path}?{self.push.query}"

    def _clock(self) -> None:
        number, at = 0, time.monotonic()
        while self.sending:
            number += 1
            with self._lock:
                self._open += 1
            self._todo.put(f"chaos-{self.run}-{number:06d}")
            at += self.random.uniform(0.5, 1.5) / self.rate
            time.sleep(max(0.0, at - time.monotonic()))

    def _send(self) -> None:
        client = Client(self.demo()["base_url"])
        while self.living:
            try:
                key = self._todo.get(timeout=0.5)
            except queue.Empty:
                continue
            body = {"event_status": "Critical", "title_rule": key, "alert_key": key, "labels": {"service": "chaos"}}
            while self.living:
                try:
                    status, said = client.post(self.push_path, body)
                except Unanswered:
                    self.retries += 1
                    time.sleep(0.1)
                    continue
                if status == 200 and said.get("data", {}).get("alert_key") == key:
                    self.accepted[key] = time.monotonic()
                else:
                    self.refused.append(f"push: {status} {str(said)[:300]}")
                break
            with self._lock:
                self._open -= 1

    def _answer(self) -> None:
        """Acknowledges whatever was paged (loops and later layers must not drown the ledger) and lets two thirds of it recover."""
        client = Client(self.demo()["base_url"])
        path = f"/incident/ack?app_key={self.demo()['app_key']}"
        read = 0
        waiting: dict[str, str] = {}  # incident -> key
        recovered: list[str] = []
        while self.living:
            time.sleep(0.3)
            arrivals = self.ledger.arrivals
            for arrival in arrivals[read:]:
                read += 1
                for one in arrival.incidents:
                    if one.event in PAGES and one.id not in self.acknowledged:
                        waiting[one.id] = one.title
            batch = list(waiting)[:100]
            try:
                if batch:
                    status, said = client.post(path, {"incident_ids": batch})
                    if status != 200:
                        self.refused.append(f"ack: {status} {str(said)[:300]}")
                    at = time.monotonic()
                    for incident in batch:
                        key = waiting.pop(incident)
                        if status == 200:
                            self.acknowledged[incident] = at
                            if self.random.random() < 0.67:
                                recovered.append(key)
                while recovered:
                    body = [{"event_status": "Ok", "title_rule": key, "alert_key": key} for key in recovered[:100]]
                    status, said = client.post(self.push_path, body)
                    if status != 200:
                        self.refused.append(f"recovery: {status} {str(said)[:300]}")
                    del recovered[:100]
            except Unanswered:
                continue


def why_not(demo: dict[str, str], key: str, tries: int = 5) -> str:
    """What the product's own timeline says about an alert that never arrived; empty when it does not say why."""
    client = Client(demo["base_url"])
    query = f"?app_key={demo['app_key']}"
    now = int(time.time())
    try:
        _status, found = client.post(f"/incident/list{query}", {"start_time": now - 86_000, "end_time": now + 60, "query": key})
        items = found.get("data", {}).get("items") or []
        if not items:
            return ""
        _status, feed = client.post(f"/incident/feed{query}", {"incident_id": items[0]["incident_id"], "limit": 100})
    except Unanswered:
        return why_not(demo, key, tries - 1) if tries > 1 else ""
    finally:
        client.close()
    for item in feed.get("data", {}).get("items") or []:
        for robot in item["detail"].get("robots", ()) if item["type"] == "i_notify" else ():
            if robot["by"] == "webhook" and robot["state"] in ("failed", "cancelled", "unknown") and robot["failed_reason"]:
                return f"{robot['state']}: {robot['failed_reason']}"
    return ""
