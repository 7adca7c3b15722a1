"""The provider: an HTTP server on loopback that answers 200 after a while and writes down what arrived when. Only whole bodies count."""

import http.server
import json
import random
import threading
import time
from dataclasses import dataclass
from typing import Any

PAGES = frozenset({"triggered", "escalated", "refire"})


@dataclass(frozen=True, slots=True)
class Named:
    """An incident that a message names."""

    id: str
    title: str
    event: str
    possible_repeat: bool


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message as it came in. `at` is the monotonic clock when its last byte was here."""

    at: float
    delivery: str
    attempt: int
    possible_repeat: bool
    event: str
    incidents: tuple[Named, ...]


def read(body: bytes, at: float) -> Arrival:
    """The documented default JSON of the webhook; raises ValueError for anything else."""
    said: Any = json.loads(body)
    try:
        named = tuple(Named(one["id"], one["title"], one["event"], one["possible_repeat"]) for one in said["incidents"])
        arrival = Arrival(at, said["delivery_id"], said["attempt"], said["possible_repeat"], said["event"], named)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the documented body: {error!r}") from None
    if not named or not isinstance(arrival.attempt, int) or not isinstance(arrival.possible_repeat, bool):
        raise ValueError("not the documented body")
    return arrival


class Ledger:
    """`arrivals` grows while it runs; `slowest` is the longest time an answer may take, in seconds."""

    def __init__(self, slowest: float, seed: int) -> None:
        self.slowest = slowest
        self.random = random.Random(seed)
        self.arrivals: list[Arrival] = []
        self.strange: list[str] = []  # bodies that were not the documented one
        self.torn = 0  # requests whose sender died in the middle
        self._httpd = _Httpd(("127.0.0.1", 0), type("Handler", (_Handler,), {"ledger": self}))
        self.port: int = self._httpd.server_port
        self.url = f"http://127.0.0.1:{self.port}/page"
        threading.Thread(target=self._httpd.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()

    def take(self, body: bytes) -> None:
        at = time.monotonic()
        try:
            self.arrivals.append(read(body, at))
        except ValueError as error:
            self.strange.append(f"{error}: {body[:300]!r}")
        time.sleep(self.random.uniform(0, self.slowest))


class _Httpd(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that was killed resets its connection: that is what this is for."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    ledger: Ledger

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length)
        if len(body) < length:
            self.ledger.torn += 1
            self.close_connection = True
            return
        self.ledger.take(body)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *args: Any) -> None:
        """Nothing: the arrivals are the log."""
