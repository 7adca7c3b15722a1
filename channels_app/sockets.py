"""Sockets under our rules: which addresses may be connected to, and one deadline for all that happens on a connection.

- Where to: the address really connected to is judged, not the name (a name can change between check and use, and 2130706433, 0x7f.1 and
  ::ffff:127.0.0.1 are all the same place). Link-local, metadata and multicast addresses are refused always; private ones unless the
  channel's `allowed_hosts` holds exactly that host:port.
- How long: each read and write is given what is left of the request's time, where an ordinary time-out starts anew with each byte; a server
  that drips one byte a second ends on time all the same, and no thread of ours watches another."""

import contextlib
import functools
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import certifi
from django.utils.translation import gettext as _

CONNECT_SECONDS = 3.0

# The cloud's own machine descriptions, wherever they are not link-local: Alibaba, Azure, AWS and Google over IPv6.
_METADATA = frozenset(ipaddress.ip_address(ip) for ip in ("100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_TRANSLATED = ipaddress.ip_network("::ffff:0:0:0/96")  # RFC 6145
# Private as well, whatever the list of this Python's version says: site-local, NAT64 of one's own, reserved, segment routing, documentation.
_PRIVATE = tuple(map(ipaddress.ip_network, ("fec0::/10", "64:ff9b:1::/48", "192.0.0.0/24", "192.88.99.0/24", "5f00::/16", "3fff::/20")))
_V4_COMPATIBLE = ipaddress.ip_network("::/96")


class DeliveryError(Exception):
    """A message was not accepted. `str()` is a sentence for the operator, without secrets.

    permanent    another try of the same cannot help
    retry_after  seconds the provider asked us to wait
    left         the request may have arrived, and no answer that could be understood came back: nobody can know the outcome
    blocked      the whole address takes nothing for so many seconds
    is_network   it failed on our side of the line: name resolution, connecting, our proxy
    config       nothing can go through this channel until somebody changes its settings (a wrong password, a removed bot)
    """

    def __init__(
        self,
        text: str,
        *,
        permanent: bool,
        retry_after: float | None = None,
        left: bool = False,
        blocked: float | None = None,
        is_network: bool = False,
        config: bool = False,
    ) -> None:
        super().__init__(text)
        self.text = text
        self.permanent = permanent
        self.retry_after = retry_after
        self.left = left
        self.blocked = blocked
        self.is_network = is_network
        self.config = config


# --- where to ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Guard:
    """Which addresses a channel may connect to."""

    allowed: frozenset[str] = frozenset()  # "host:port", lower case
    allow_private: bool = False

    def judge(self, host: str, ip: str, port: int) -> None:
        """Raise DeliveryError unless `ip` may be connected to; `host` is what it was called."""
        address = _real_address(ip)
        place = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
        if address.is_link_local or address.is_multicast or address in _METADATA:
            text = _("%(host)s is %(place)s, an address that is never reached from here (link-local, cloud metadata or multicast).")
        elif (
            (address.is_global and not any(address in net for net in _PRIVATE))
            or self.allow_private
            or place in self.allowed
            or f"{host.lower()}:{port}" in self.allowed
        ):
            return
        else:
            text = _(
                "%(host)s is %(place)s, a private address that this channel may not reach; an administrator can allow %(place)s on it."
            )
        raise DeliveryError(text % {"host": host, "place": place}, permanent=True, config=True)

    def judge_literal(self, host: str, port: int) -> None:
        """As `judge`, where `host` is an address in any notation; a name is not looked up."""
        with contextlib.suppress(OSError, UnicodeError):
            for *_rest, sockaddr in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST):
                self.judge(host, str(sockaddr[0]), port)


def _real_address(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address that packets to `ip` end at: IPv6 notations that carry an IPv4 address are unwrapped."""
    address = ipaddress.ip_address(ip.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and (address in _NAT64 or address in _TRANSLATED or (address in _V4_COMPATIBLE and int(address) > 0xFFFF)):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


_lookups = threading.BoundedSemaphore(64)


def _resolve(host: str, port: int, seconds: float) -> list[Any]:
    """getaddrinfo within `seconds`: the resolver itself has no limit that a caller could set, so it gets a thread of its own."""
    with contextlib.suppress(OSError, UnicodeError):
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    found: list[Any] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            failed.append(error)
        finally:
            _lookups.release()
            done.set()

    until = time.monotonic() + seconds
    if _lookups.acquire(timeout=seconds):
        threading.Thread(target=look_up, name="name lookup", daemon=True).start()
        done.wait(max(0.0, until - time.monotonic()))
    if not found:
        why = failed[0].strerror if failed and isinstance(failed[0], OSError) else ""
        raise DeliveryError(
            (_("The name %(host)s cannot be found: %(why)s.") if failed else _("The name server did not answer for %(host)s."))
            % {"host": host, "why": why or _("it is not a name")},
            permanent=False,
            is_network=True,
        )
    return found


def connect(guard: Guard, host: str, port: int) -> socket.socket:
    until = min(trip.deadline, time.monotonic() + CONNECT_SECONDS)
    addresses = _resolve(host, port, max(0.0, until - time.monotonic()))
    for *_rest, sockaddr in addresses:  # before any packet: an open and a closed private port must not look different from outside
        guard.judge(host, str(sockaddr[0]), port)
    why = ""
    for position, (family, kind, protocol, _name, sockaddr) in enumerate(addresses):
        share = (until - time.monotonic()) / (len(addresses) - position)  # a dead first address leaves time for the second
        if share <= 0:
            break
        sock = _Socket(family, kind, protocol)
        try:
            sock.settimeout(share)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.connect(sockaddr)
            guard.judge(host, str(sock.getpeername()[0]), port)  # what we really talk to has the last word
        except OSError as error:
            why = _("it does not answer") if isinstance(error, TimeoutError) else error.strerror or str(error)
            sock.close()
            continue
        except BaseException:
            sock.close()
            raise
        sock.settimeout(max(0.1, min(CONNECT_SECONDS, trip.deadline - time.monotonic())))  # for the TLS handshake
        return sock
    raise DeliveryError(
        _("Cannot connect to %(host)s:%(port)d: %(why)s.") % {"host": host, "port": port, "why": why or _("it does not answer")},
        permanent=False,
        is_network=True,
    )


def datagram(guard: Guard, host: str, port: int) -> socket.socket:
    addresses = _resolve(host, port, max(0.0, min(CONNECT_SECONDS, trip.deadline - time.monotonic())))
    for *_rest, sockaddr in addresses:
        guard.judge(host, str(sockaddr[0]), port)
    family, _kind, _protocol, _name, sockaddr = addresses[0]
    sock = _Socket(family, socket.SOCK_DGRAM)
    try:
        sock.connect(sockaddr)  # from now on it hears nobody else
    except OSError as error:
        sock.close()
        raise DeliveryError(
            _("Cannot connect to %(host)s:%(port)d: %(why)s.") % {"host": host, "port": port, "why": error.strerror or str(error)},
            permanent=False,
            is_network=True,
        ) from None
    return sock


def available(sock: socket.socket, size: int) -> bytes | None:
    """What has come on a connection by now, without waiting, at most `size` bytes; b"" at its end, None where there is nothing to read yet (as
    with half a record of TLS, or one of its own: `select` calls that readable). For a thread that reads what others write to."""
    sock.settimeout(0)
    try:
        if isinstance(sock, ssl.SSLSocket):
            return ssl.SSLSocket.recv(sock, size)
        return socket.socket.recv(sock, size)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None


# --- how long ------------------------------------------------------------------------------------------------------------------


class Trip(threading.local):
    """The request this thread is on: one thread carries one request from beginning to end."""

    deadline = float("inf")
    left = False


trip = Trip()


@contextlib.contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Within it, this thread's sockets from this module give up `seconds` from now, however the time was spent. One within another never
    lengthens it: so several requests can be given one time for all of them."""
    before = trip.deadline
    trip.deadline, trip.left = min(before, time.monotonic() + seconds), False
    try:
        yield
    finally:
        trip.deadline = before


def _pace(sock: socket.socket) -> None:
    seconds = trip.deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(None if seconds == float("inf") else seconds)


class _Socket(socket.socket):
    """A socket whose every operation has what is left of the deadline, where an ordinary time-out starts anew with each byte."""

    def recv(self, *args: Any) -> bytes:
        _pace(self)
        return super().recv(*args)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _pace(self)
        return super().recv_into(*args, **kwargs)

    def send(self, *args: Any) -> int:
        _pace(self)
        return super().send(*args)

    def sendall(self, *args: Any) -> None:
        _pace(self)
        super().sendall(*args)


class _TlsSocket(ssl.SSLSocket):
    def recv(self, *args: Any) -> bytes:
        _pace(self)
        return super().recv(*args)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        _pace(self)
        return super().recv_into(*args, **kwargs)

    def send(self, *args: Any) -> int:  # sendall of a TLS socket is a loop over it
        _pace(self)
        return super().send(*args)


@functools.lru_cache(maxsize=64)
def ssl_context(ca_bundle: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # a bare machine may have no list of its own
    if ca_bundle:
        try:
            context.load_verify_locations(cadata=ca_bundle)
        except (ssl.SSLError, ValueError):
            raise DeliveryError(_("The CA certificates of the channel cannot be read."), permanent=True, config=True) from None
        # Python 3.13 began to insist on extensions that many a company's own authority does not write.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", ssl.VerifyFlags(0))
    context.sslsocket_class = _TlsSocket
    return context
