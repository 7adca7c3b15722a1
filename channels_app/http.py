"""The one door to the internet: who may be reached, how long it may take, how much may come back, and what a failure means.

Every request of every transport passes `Http`; SMTP gets its socket from `Http.connect`, so the same rules hold there.

- Where to: sockets.py judges the connected address. With a proxy it is the proxy that we connect to, so the proxy is judged.
- How long: 3 s to connect, 8 s in all, headers and body included, kept by the sockets themselves.
- How much: 256 kB, after decompression. No redirect is followed, no proxy or password is taken from the environment.
- What it means: everything is a DeliveryError; `left` says whether the request may have arrived although no answer came. Errors name the
  host and never the path or query, where most providers have their secret."""

import functools
import ipaddress
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from django.utils.translation import gettext as _
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from channels_app import sockets
from channels_app.sockets import DeliveryError, Guard, available, deadline, trip

__all__ = [
    "Answer", "DeliveryError", "Guard", "Http", "available", "by_status", "deadline", "is_public", "redact", "sendable_header", "split_url", "tls_failure",
]  # fmt: skip

TOTAL_SECONDS = 8.0
STATUS_SECONDS = 1.0  # for the rest of a body that nobody needs: the status has said it all, but reading it out keeps the connection
MAX_BODY = 256 * 1024
# Servers close idle connections after 5 s (Apache, Node) to 75 s (nginx). A request that meets the close is lost, and nobody can know
# whether it was read; so a connection that idled longer than this is replaced instead.
IDLE_SECONDS = 4.0
USER_AGENT = "flashduty-self-hosted"
# A gateway (520 and 524: Cloudflare's) that got no usable answer from the server behind it knows as little as we: it may have the message.
NOBODY_KNOWS = frozenset({502, 504, 520, 524})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said. `body` is at most 256 kB; it may be cut where only the status was asked for, or where the status is 300 or more."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes
    host: str = ""
    hidden: frozenset[str] = field(default=frozenset(), repr=False)

    def json(self) -> dict[str, Any]:
        """The body as a JSON object. Anything else in its place (a captive portal, half an answer) is an unknown outcome, never success."""
        try:
            value = json.loads(self.body)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DeliveryError(
                _("%(host)s answered %(status)d with something that is not a JSON object: %(body)s")
                % {"host": self.host, "status": self.status, "body": self.quote()},
                permanent=False,
                left=True,
            )
        return value

    def quote(self, limit: int = 200) -> str:
        """The beginning of the body on one line, for an error; the secrets of the request are cut out, should the server repeat them."""
        text = redact(self.body[:4096].decode("utf-8", "replace"), self.hidden)
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= limit else text[: limit - 1] + "…"

    def retry_after(self) -> float | None:
        """Retry-After in seconds (a number, or a date against the server's own Date), at most a day; None where it is not given."""
        return _retry_after(self.headers.get("Retry-After"), self.headers.get("Date"))


def redact(text: str, hidden: Iterable[str]) -> str:
    """`text` with each of `hidden` replaced by ***, the longest first."""
    for secret in sorted(hidden, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def by_status(answer: Answer) -> None:
    """Raise DeliveryError unless the status is 2xx: 4xx is permanent except 408, 425 and 429; 5xx is not; a redirect is a wrong address.

    An answer that refuses is a known outcome, so `left` is False, but for those of NOBODY_KNOWS.
    """
    status = answer.status
    if 200 <= status < 300:
        return
    said = answer.quote()
    values = {"host": answer.host, "status": status, "body": said}
    if 300 <= status < 400:
        raise DeliveryError(
            _("%(host)s answered with a redirect (status %(status)d), which is not followed: enter the final address.") % values,
            permanent=True,
            config=True,
        )
    if status == 407:
        raise DeliveryError(_("The proxy wants another user name or password."), permanent=False, is_network=True, config=True)
    text = (_("%(host)s answered %(status)d: %(body)s") if said else _("%(host)s answered %(status)d.")) % values
    raise DeliveryError(
        text,
        permanent=400 <= status < 500 and status not in (408, 425, 429),
        retry_after=answer.retry_after(),
        left=status in NOBODY_KNOWS or not 300 <= status < 600,
        config=status in (401, 403),
    )


class Http:
    """The door for one channel. Cheap to make; connections are kept and shared by all that have the same proxy, CA and allowed hosts.

    Thread-safe. `proxy`: an http:// or https:// address; `ca_bundle`: PEM text trusted besides the usual authorities; `allowed_hosts`:
    "host:port" in private ranges that may be reached; `allow_private`: the installation permits all of them.
    """

    def __init__(self, proxy: str = "", ca_bundle: str = "", allowed_hosts: Iterable[str] = (), *, allow_private: bool = False) -> None:
        self.proxy = proxy.strip()
        self.guard = Guard(frozenset(host.strip().lower() for host in allowed_hosts), allow_private)
        self.ca_bundle = ca_bundle.strip()
        self._hidden: frozenset[str] = frozenset(_hidden_in_url(self.proxy)[1:]) if self.proxy else frozenset()

    def hide(self, secrets: Iterable[str]) -> None:
        """Never quote these, should a server send them back."""
        self._hidden |= {secret for secret in secrets if len(secret) >= 4}

    def clean(self, text: str) -> str:
        """`text` without the channel's secrets, for what a provider said by another way than HTTP."""
        return redact(text, self._hidden)

    def post(
        self,
        url: str,
        *,
        json: Any = None,
        data: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        status_only: bool = False,
    ) -> Answer:
        """POST `json` (compact UTF-8) or `data` and return the answer, whatever its status; raises DeliveryError when there is none."""
        return self.request("POST", url, json=json, data=data, headers=headers, timeout=timeout, status_only=status_only)

    def request(
        self,
        method: str,
        url: str,
        *,
        json: Any = None,
        data: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        status_only: bool = False,
    ) -> Answer:
        """As `post`, with any method. `timeout` is for everything, in seconds (8). `status_only`: a body that breaks off is no error."""
        timeout = TOTAL_SECONDS if timeout is None else timeout
        host, request = self._prepared(method, url, json, data, headers)
        hidden = self._hidden | {
            *_hidden_in_url(url),
            *(value for name, value in request.headers.items() if _is_secret_header(name, value)),
        }
        proxies = {"http": self.proxy, "https": self.proxy} if self.proxy else None
        with deadline(timeout):
            if trip.deadline <= time.monotonic():  # of several requests with one time for all: the others took it
                raise DeliveryError(_("There was no time left to ask %(host)s again.") % {"host": host}, permanent=False)
            try:
                adapter = _adapter(self.proxy, self.ca_bundle, self.guard)
                response = adapter.send(request, stream=True, timeout=timeout, proxies=proxies)
            except DeliveryError:
                raise
            except _FAILURES as error:
                raise self._explain(host, error, timeout) from None  # the original quotes the whole URL
            with response:
                body = self._body(response.raw, host, status_only or response.status_code >= 300, timeout)
        return Answer(response.status_code, response.headers, body, host, hidden)

    def connect(self, host: str, port: int) -> socket.socket:
        """A connected socket to host:port under the same rules, for what is not HTTP (no proxy is used); raises DeliveryError.

        Its reads and writes, also after TLS with `ssl_context`, end at the `deadline` of the thread that uses it.
        """
        return sockets.connect(self.guard, host, port)

    def datagram(self, host: str, port: int) -> socket.socket:
        """A UDP socket that speaks with host:port and nobody else, under the same rules as `connect`; raises DeliveryError."""
        return sockets.datagram(self.guard, host, port)

    def ssl_context(self) -> ssl.SSLContext:
        """The TLS settings of the channel: the usual authorities and its own."""
        return sockets.ssl_context(self.ca_bundle)

    @staticmethod
    def check(proxy: str = "", ca_bundle: str = "", allowed_hosts: Any = ()) -> dict[str, list[str]]:
        """What is wrong with these settings of a channel, as sentences per field; empty when they can be used."""
        errors: dict[str, list[str]] = {}
        if proxy.strip():
            parts = split_url(proxy.strip())
            if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
                errors["proxy"] = [_("Enter the proxy as http://host:port or https://host:port.")]
        if ca_bundle.strip():
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=ca_bundle)
            except (ssl.SSLError, ValueError):
                errors["ca_bundle"] = [_("This is not a list of certificates in PEM form (-----BEGIN CERTIFICATE----- …).")]
        if not isinstance(allowed_hosts, (list, tuple)) or not all(isinstance(item, str) and _host_port(item) for item in allowed_hosts):
            errors["allowed_hosts"] = [_('Enter a list of "host:port", such as ["10.0.0.5:8443"].')]
        return errors

    def _prepared(
        self, method: str, url: str, value: Any, data: bytes | str | None, headers: Mapping[str, str] | None
    ) -> tuple[str, requests.PreparedRequest]:
        parts = split_url(url)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
            raise DeliveryError(_("The address must begin with http:// or https:// and name a host."), permanent=True, config=True)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        host = f"{host}:{parts.port}" if parts.port else host
        if self.proxy:
            # The proxy would resolve and connect for us; what is plainly written in the address is judged here all the same.
            self.guard.judge_literal(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
        all_headers = {"User-Agent": USER_AGENT, "Accept": "*/*", **(headers or {})}
        if value is not None:
            data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            all_headers.setdefault("Content-Type", "application/json; charset=utf-8")
        if isinstance(data, str):
            data = data.encode("utf-8", "replace")
        try:
            for name, text in all_headers.items():
                if not sendable_header(name, text):
                    raise ValueError(name)
            return host, requests.Request(method.upper(), url, headers=all_headers, data=data).prepare()
        except (requests.RequestException, ValueError):
            raise DeliveryError(
                _("The address or a header for %(host)s has characters that HTTP does not allow.") % {"host": host},
                permanent=True,
                config=True,
            ) from None

    def _body(self, raw: urllib3.HTTPResponse, host: str, status_suffices: bool, timeout: float) -> bytes:
        if status_suffices:
            trip.deadline = min(trip.deadline, time.monotonic() + STATUS_SECONDS)
        body = bytearray()
        problem = ""
        try:
            while chunk := raw.read(65_536, decode_content=True):
                body += chunk
                if len(body) > MAX_BODY:
                    problem = _("%(host)s sent more than 256 kB.") % {"host": host}
                    break
        except _FAILURES as error:
            problem = (
                _("%(host)s did not finish its answer within %(seconds)g s.")
                if _is_timeout(error)
                else _("The answer of %(host)s broke off before its end.")
            ) % {"host": host, "seconds": timeout}
        if problem:
            raw.close()  # what is left of the body must not become the next answer's beginning
            if not status_suffices:
                raise DeliveryError(problem, permanent=False, left=True)
        return bytes(body[:MAX_BODY])

    def _explain(self, host: str, error: BaseException, timeout: float) -> DeliveryError:
        chain = list(_chain(error))
        if trip.left:
            text = (
                _("%(host)s did not answer within %(seconds)g s; it may have received the message.")
                if any(_is_timeout(one) for one in chain)
                else _("%(host)s closed the connection without an answer; it may have received the message.")
            )
            return DeliveryError(text % {"host": host, "seconds": timeout}, permanent=False, left=True)
        tunnel = next((str(one) for one in chain if type(one) is OSError and str(one).startswith("Tunnel connection failed")), "")
        if tunnel or any(isinstance(one, requests.exceptions.ProxyError) for one in chain):
            said = redact(tunnel.partition(": ")[2], self._hidden) or _("no usable answer")
            return DeliveryError(
                _("The proxy would not connect to %(host)s: %(said)s.") % {"host": host, "said": said}, permanent=False, is_network=True
            )
        return DeliveryError(tls_failure(host, error), permanent=False)


def tls_failure(host: str, error: BaseException) -> str:
    """One sentence on why TLS with `host` failed, from the innermost error of the chain."""
    for one in _chain(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            return _("The certificate of %(host)s is not trusted: %(why)s.") % {"host": host, "why": one.verify_message}
    for one in _chain(error):
        if isinstance(one, ssl.SSLError) and one.reason:
            return _("No secure connection to %(host)s: %(why)s.") % {"host": host, "why": one.reason.replace("_", " ").lower()}
    return _("No secure connection to %(host)s: it broke off or timed out.") % {"host": host}


# --- connections ---------------------------------------------------------------------------------------------------------------


class _Leaves:
    """Notes on the trip that the request has begun to leave; a proxy's CONNECT and the TLS handshake are not the request."""

    _connecting = False
    _held: bytes | None = None  # the beginning of a request that has not left yet; None outside of a request
    guard: Guard
    sock: Any

    def _new_conn(self) -> socket.socket:
        return sockets.connect(self.guard, self._dns_host, self.port)  # type: ignore[attr-defined,no-any-return]

    def connect(self) -> None:
        self._connecting = True
        try:
            super().connect()  # type: ignore[misc]
        finally:
            self._connecting = False

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._held = b""
        try:
            super().request(*args, **kwargs)  # type: ignore[misc]
            if self._held:
                self._leave(b"")
        finally:
            self._held = None

    def send(self, data: Any) -> None:
        if self._connecting or not isinstance(data, bytes) or self._held is None:
            self._leave(data)
        elif not self._held:
            self._held = data  # the head waits for its body: one packet and one wake-up of the other side instead of two
        else:
            self._leave(data)

    def _leave(self, data: Any) -> None:
        if not self._connecting:
            if self.sock is None:
                self.connect()
            trip.left = True
        if self._held:
            held, self._held = self._held, b""
            if isinstance(data, bytes):
                data = held + data
            else:
                super().send(held)  # type: ignore[misc]
        super().send(data)  # type: ignore[misc]


class _Fresh:
    """A pool that does not trust a connection which idled too long."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        conn = super()._get_conn(timeout)  # type: ignore[misc]
        if time.monotonic() - getattr(conn, "idle_since", float("inf")) > IDLE_SECONDS:
            conn.close()
        return conn

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.idle_since = time.monotonic()
        super()._put_conn(conn)  # type: ignore[misc]


class _Adapter(HTTPAdapter):
    """requests' own adapter with our connections in it. It is used without a Session, which would bring cookies, redirects and a lock."""

    def __init__(self, ca_bundle: str, guard: Guard) -> None:
        self._context = sockets.ssl_context(ca_bundle)
        plain = type("Connection", (_Leaves, HTTPConnection), {"guard": guard})
        secure = type("SecureConnection", (_Leaves, HTTPSConnection), {"guard": guard})
        self._pools: dict[str, type[Any]] = {
            "http": type("Pool", (_Fresh, HTTPConnectionPool), {"ConnectionCls": plain}),
            "https": type("SecurePool", (_Fresh, HTTPSConnectionPool), {"ConnectionCls": secure}),
        }
        super().__init__(pool_connections=256, pool_maxsize=128, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, proxy_ssl_context=self._context, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def build_connection_pool_key_attributes(self, request: Any, verify: Any, cert: Any = None) -> Any:
        where, _tls = super().build_connection_pool_key_attributes(request, verify, cert)
        return where, {}  # the context has the authorities; a path to them here would be read again for each connection

    def cert_verify(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the context verifies."""


@functools.lru_cache(maxsize=256)
def _adapter(proxy: str, ca_bundle: str, guard: Guard) -> _Adapter:
    return _Adapter(ca_bundle, guard)


os.register_at_fork(after_in_child=_adapter.cache_clear)  # two processes on one connection would read each other's answers


# --- small print ---------------------------------------------------------------------------------------------------------------

_FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and all it was made of, however requests and urllib3 have wrapped it."""
    seen: set[int] = set()
    todo: list[Any] = [error]
    while todo:
        one = todo.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            todo += [getattr(one, "reason", None), one.__cause__, one.__context__, *one.args]


def _is_timeout(error: BaseException) -> bool:
    return any(isinstance(one, (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)) for one in _chain(error))


def sendable_header(name: str, value: str) -> bool:
    """Whether HTTP/1.1 can carry it: a name that is a token, a value in Latin-1 on one line."""
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return bool(_HEADER_NAME.fullmatch(name)) and value == value.strip() and not any(char in value for char in "\r\n\0")


def split_url(url: str) -> Any:
    """urllib's parts of an address, or None where it is none (a port that is no number, a broken IPv6 host)."""
    try:
        parts = urlsplit(url)
        _port = parts.port  # raises when it is no number
    except ValueError:
        return None
    return parts


def is_public(url: str) -> bool:
    """Whether somebody on the internet could call this address: https, and neither a private address nor a name without a domain."""
    parts = split_url(url)
    if parts is None or parts.scheme != "https" or not parts.hostname:
        return False
    try:
        return ipaddress.ip_address(parts.hostname).is_global
    except ValueError:
        return "." in parts.hostname and not parts.hostname.endswith((".local", ".lan", ".internal", ".localhost", ".localdomain"))


def _host_port(text: str) -> bool:
    host, colon, port = text.strip().rpartition(":")
    return bool(colon and host and re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536 and "/" not in host and "@" not in host)


def _hidden_in_url(url: str) -> list[str]:
    """The whole address first, then the parts of it that may be the key: user, password, long path segments, values of the query."""
    parts = split_url(url)
    if parts is None:
        return [url]
    pieces = [parts.username or "", parts.password or "", *parts.path.split("/")]
    pieces += [pair.partition("=")[2] for pair in parts.query.split("&")]
    return [url, *{form for piece in pieces if len(piece) >= 8 for form in (piece, unquote(piece))}]


def _is_secret_header(name: str, value: str) -> bool:
    return len(value) >= 8 and name.lower() not in ("content-type", "user-agent", "accept")


def _retry_after(value: str | None, date: str | None) -> float | None:
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
            since = parsedate_to_datetime(date) if date else datetime.now(UTC)
            seconds = (until - since).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), 86_400.0) if seconds == seconds else None
