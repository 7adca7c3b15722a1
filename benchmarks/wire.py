"""Both ends of the wire: a client that posts alerts and a provider that writes down when each page arrived. Nothing but asyncio.

They run in the bench's own process, so one clock (`time.time()`, which is PostgreSQL's clock on this machine) times both ends. Both are
protocols without streams, because they share two cores with what they measure.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"transfer-encoding:\s*chunked", re.IGNORECASE)
_LAST = re.compile(rb"connection:\s*close", re.IGNORECASE)
_TITLE = re.compile(rb'"title": ?"bench (\d+)"')


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class _Messages(asyncio.Protocol):
    """HTTP messages, whole, one after another."""

    def __init__(self) -> None:
        self.rest = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.rest += data
        while (end := self.rest.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.rest, 0, end)
            if length is None and _CHUNKED.search(self.rest, 0, end):
                whole = self.rest.find(b"\r\n0\r\n\r\n", end + 4) + 7  # the few bytes of an answer: its content holds no such line
                if whole < 7:
                    return
            else:
                whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.rest) < whole:
                return
            head, body, self.rest = self.rest[:end], self.rest[end + 4 : whole], self.rest[whole:]
            self.message(head, body)

    def message(self, head: bytes, body: bytes) -> None:
        raise NotImplementedError


class _Answer(_Messages):
    def __init__(self, provider: "Provider") -> None:
        super().__init__()
        self.provider = provider

    def message(self, head: bytes, body: bytes) -> None:
        delay = self.provider.take(head, body)
        if delay:
            asyncio.get_running_loop().call_later(delay, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")


class _Mailbox(asyncio.Protocol):
    """As much of an SMTP server as a mail needs; the instant that counts is the end of DATA."""

    def __init__(self, provider: "Provider") -> None:
        self.provider, self.rest, self.to, self.in_data = provider, b"", "", False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"220 bench\r\n")

    def data_received(self, data: bytes) -> None:
        assert self.transport is not None
        self.rest += data
        while True:
            end = self.rest.find(b"\r\n.\r\n" if self.in_data else b"\r\n")
            if end < 0:
                return
            line, self.rest = self.rest[:end], self.rest[end + (5 if self.in_data else 2) :]
            verb = line[:4].upper()
            if self.in_data:
                self.in_data = False
                self.provider.mails.append((time.time(), self.to))
                self.transport.write(b"250 taken\r\n")
            elif verb == b"EHLO":
                self.transport.write(b"250-bench\r\n250 SMTPUTF8\r\n")
            elif verb == b"DATA":
                self.in_data = True
                self.transport.write(b"354 go on\r\n")
            elif verb == b"QUIT":
                self.transport.write(b"221 bye\r\n")
                self.transport.close()
            else:
                if verb == b"RCPT":
                    self.to = line.decode("latin-1").partition("<")[2].partition(">")[0]
                self.transport.write(b"250 ok\r\n")


class Provider:
    """Takes pages on `/fast` (answers at once) and `/slow` (answers after 50 ms), and mails. What arrived is in `pages`, `arrivals`, `mails`."""

    def __init__(self) -> None:
        self.pages: dict[int, float] = {}  # the number in an alert's title -> when its first page was complete here
        self.arrivals: list[float] = []  # of every request
        self.repeats = 0
        self.mails: list[tuple[float, str]] = []
        self.told: Callable[[int], None] = lambda number: None
        self.port = self.mail_port = 0
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> "Provider":
        loop = asyncio.get_running_loop()
        for made in (lambda: _Answer(self), lambda: _Mailbox(self)):
            self._servers.append(await loop.create_server(made, "127.0.0.1", 0, backlog=1024))
        self.port, self.mail_port = (server.sockets[0].getsockname()[1] for server in self._servers)
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()

    def take(self, head: bytes, body: bytes) -> float:
        """A request has arrived; how long to wait with the answer, in seconds."""
        now = time.time()
        self.arrivals.append(now)
        for number in {int(found) for found in _TITLE.findall(body)}:
            if number in self.pages:
                self.repeats += 1
            else:
                self.pages[number] = now
                self.told(number)
        return 0.05 if head.startswith(b"POST /slow") else 0.0

    def clear(self) -> None:
        self.pages.clear()
        self.arrivals.clear()
        self.mails.clear()
        self.repeats = 0


class _Connection(_Messages):
    """One keep-alive connection with at most one request out."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: asyncio.Future[int] | None = None

    def message(self, head: bytes, body: bytes) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(int(head[9:12]))
        if self.transport is not None and _LAST.search(head):
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_exception(exc or ConnectionResetError("the server closed the connection"))


class Source:
    """Posts one alert a request. `sent` and `answered` hold the instants by the number in the alert's title; what is not 2xx is in `refused`.

    `alert`: what is posted, as JSON, by the alert's number; the product's own format unless a peer wants another.
    """

    def __init__(self, alert: Callable[[int], Any] | None = None) -> None:
        self.alert = alert or self._standard
        self.sent: dict[int, float] = {}
        self.answered: dict[int, float] = {}
        self.refused: list[str] = []
        self.number = 0
        self.severity: Callable[[int], str] = lambda number: "Critical"
        self._idle: dict[str, list[_Connection]] = {}

    async def post(self, push_url: str) -> int:
        """One alert that opens an incident of its own; its number once it was answered."""
        self.number += 1
        number = self.number
        url = urlsplit(push_url)
        body = json.dumps(self.alert(number)).encode()
        request = (
            f"POST {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        connection = await self._connection(url.hostname or "", url.port or 80)
        assert connection.transport is not None
        connection.waiting = asyncio.get_running_loop().create_future()
        self.sent[number] = time.time()
        try:
            connection.transport.write(request)
            status = await connection.waiting
        except OSError as error:
            self.refused.append(f"{number}: {error}")
            return number
        if status // 100 == 2:
            self.answered[number] = time.time()
        else:
            self.refused.append(f"{number}: {status}")
        self._idle.setdefault(url.netloc, []).append(connection)
        return number

    def _standard(self, number: int) -> dict[str, Any]:
        return {
            "event_status": self.severity(number), "title_rule": f"bench {number}", "alert_key": f"bench-{number}",
            "description": "A benchmark's alert: nothing is wrong.", "labels": {"service": "bench", "host": f"h{number % 50}", "check": "load"},
        }  # fmt: skip

    async def _connection(self, host: str, port: int) -> _Connection:
        idle = self._idle.setdefault(f"{host}:{port}", [])
        while idle:
            connection = idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        _transport, connection = await asyncio.get_running_loop().create_connection(_Connection, host, port)
        return connection

    async def steady(self, push_url: str | Sequence[str], rate: float, seconds: float) -> list[int]:
        """An open loop: `rate` posts a second whatever the answers do, to several addresses in turn. The numbers of the alerts."""
        urls = [push_url] if isinstance(push_url, str) else push_url
        loop = asyncio.get_running_loop()
        begun = loop.time()
        posts = []
        for turn in range(int(rate * seconds)):
            if (pause := begun + turn / rate - loop.time()) > 0:
                await asyncio.sleep(pause)
            posts.append(asyncio.ensure_future(self.post(urls[turn % len(urls)])))
        return list(await asyncio.gather(*posts))

    async def closed(self, push_url: str, provider: Provider, *, window: int, connections: int, seconds: float) -> None:
        """A closed loop: at most `window` alerts posted and not paged yet, so that the product sets the pace."""
        room = asyncio.Semaphore(window)
        provider.told = lambda number: room.release()
        clock = asyncio.get_running_loop().time
        until = clock() + seconds

        async def one() -> None:
            while clock() < until:  # no time-out ends an acquire that need not wait, and a page may be there before its answer
                try:
                    async with asyncio.timeout_at(until):
                        await room.acquire()
                except TimeoutError:
                    return
                before = len(self.refused)
                await self.post(push_url)
                if len(self.refused) > before:
                    room.release()

        await asyncio.gather(*(one() for _ in range(connections)))
        provider.told = lambda number: None

    def close(self) -> None:
        for connections in self._idle.values():
            for connection in connections:
                if connection.transport is not None:
                    connection.transport.close()
        self._idle.clear()
