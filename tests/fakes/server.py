"""A provider that is really there: an HTTP server on loopback that says, breaks off, drips or hangs as a test tells it, and keeps what it saw."""

import http.server
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    connection: int  # which connection it came on, from 1

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    """What the server does: an ordinary answer, or `raw` bytes instead of it; then `end`.

    end: "keep" the connection, "close", "reset" (RST), or "hang" until the server stops. `drip`: seconds between single bytes of the body.
    """

    status: int = 200
    body: bytes | str | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    end: str = "keep"
    drip: float = 0
    claims: int = 0  # Content-Length says so many bytes more than are sent


class Server:
    """`with Server(answer) as server:`; `answer` is a Reply, or a function from Seen to Reply, and may be replaced at any time."""

    def __init__(self, answer: "Reply | Callable[[Seen], Reply]" = Reply(), context: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._httpd = _Httpd(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self.context = context
        if context is not None:
            self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self._httpd.server_port
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if context else 'http'}://{self.host}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.stopping.set()
        self._httpd.socket.shutdown(socket.SHUT_RDWR)  # ends the wait at once; serve_forever would look up only every so often
        self._thread.join()
        self._httpd.server_close()

    def _serve(self) -> None:
        while not self.stopping.is_set():
            self._httpd.handle_request()

    def reply(self, seen: Seen) -> Reply:
        self.seen.append(seen)
        return self.answer if isinstance(self.answer, Reply) else self.answer(seen)


class _Httpd(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256  # with the usual 5, many clients at once are connected by the kernel and then reset

    def handle_error(self, *args: Any) -> None:
        """A client that went away is what some tests are about."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait 40 ms for an acknowledgement of the first
    fake: Server

    def setup(self) -> None:
        super().setup()
        self.fake.connections += 1
        self.number = self.fake.connections

    def log_message(self, *args: Any) -> None:
        pass

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.fake.reply(Seen(self.command, self.path, headers, body, self.number))
        content = reply.body if isinstance(reply.body, bytes) else reply.body.encode() if isinstance(reply.body, str) else b""
        if isinstance(reply.body, dict):
            content = json.dumps(reply.body).encode()
        if reply.raw is not None:
            self._write(reply.raw, reply.drip)
        else:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) + reply.claims))
            self.end_headers()
            self._write(content, reply.drip)
        if reply.end != "keep":
            self.close_connection = True
        if reply.end == "hang":
            self.fake.stopping.wait(30)
        if reply.end == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_POST = do_PUT = do_PATCH = do_GET = _any

    def _write(self, data: bytes, drip: float) -> None:
        if not drip:
            self.wfile.write(data)
            return
        for byte in data:
            if self.fake.stopping.wait(drip):
                return
            self.wfile.write(bytes([byte]))


def until(true: Callable[[], Any], seconds: float = 30) -> bool:
    """Whether `true()` comes to hold in time: for what a server's thread does after its answer."""
    end = time.monotonic() + seconds
    while not (held := true()) and time.monotonic() < end:
        threading.Event().wait(0.005)
    return bool(held)
