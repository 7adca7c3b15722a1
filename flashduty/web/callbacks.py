"""Where providers report what became of our messages: `/callback/<key of the channel>/...`, whatever the method, without a session.

The key only finds the channel; whether a request really is the provider's is for the transport to say, over the raw bytes and the public
address. What it said is a row before it is answered. Whatever the bytes, the answer is never a failure of ours (5xx): providers take those for
an outage and call again and again. Only where our database is away do we ask for exactly that."""

import logging
import time
from datetime import datetime

from django.conf import settings
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from django.utils.encoding import escape_uri_path
from django.views.decorators.csrf import csrf_exempt

from channels_app import book, outbox
from channels_app.transport import Callback, Command, Heard, Receives
from flashduty import body
from mapping.clock import db_now

log = logging.getLogger(__name__)

MOST = 256 * 1024
QUIET = 60.0  # seconds between two lines about requests to one channel that were refused
_said: dict[int, tuple[float, int]] = {}  # by channel: when the last line was written, and how many were refused since


@csrf_exempt
def callback(request: HttpRequest, key: str) -> HttpResponse:
    """404 unknown key, or a channel that is not reported to; 403 not the provider; 400 not understood; 413 over 256 kB; 503 no database;
    501 for a person's press on a message, which nothing here carries out yet; else what the transport answers."""
    try:
        return _hear(request, key)
    except DatabaseError as error:
        log.warning("a provider's callback has to wait for the database: %s", type(error).__name__)
        answer = _answer(503)
        answer["Retry-After"] = "5"
        return answer


def _hear(request: HttpRequest, key: str) -> HttpResponse:
    channel = book.by_callback_key(key)
    if channel is None or not isinstance(channel.transport, Receives):
        return _answer(404)
    try:
        raw = body.read(request, MOST)
    except body.TooLarge:
        return _answer(413)
    except OSError:
        return _answer(400)
    now = db_now()
    try:
        heard = channel.transport.receive(Callback(
            method=request.method or "", url=_public(request), query=request.GET.dict(),
            headers={name.lower(): value for name, value in request.headers.items()}, body=raw, received_at=now,
        ))  # fmt: skip
    except PermissionError as error:
        _refused(channel.id, error)
        return _answer(403)
    except ValueError as error:
        log.info("channel %s: a callback that makes no sense (%s)", channel.id, type(error).__name__)
        return _answer(400)
    except Exception:
        log.exception("channel %s: its transport broke on a callback of %d bytes", channel.id, len(raw))
        return _answer(400)
    return _apply(channel.id, heard, now)


def _apply(channel_id: int, heard: Heard, now: datetime) -> HttpResponse:
    pressed = False
    for said in heard.said:
        if isinstance(said, Command):
            pressed = True
            log.warning("channel %s: somebody pressed %s on a message, and buttons are not carried out yet", channel_id, said.verb)
        else:
            outbox.receipt(channel_id, said.message_id, said.state, said.reason, now)
    if pressed:
        return _answer(501)  # whoever pressed must not be told that it worked
    return HttpResponse(heard.body, status=heard.status, content_type=heard.content_type)


def _answer(status: int) -> HttpResponse:
    """Empty: a stranger learns nothing from it."""
    return HttpResponse(b"", status=status, content_type="text/plain; charset=utf-8")


def _public(request: HttpRequest) -> str:
    """The address as the provider called it, whatever the proxy in front made of scheme, host and port."""
    query = request.META.get("QUERY_STRING", "")
    return f"{settings.BASE_URL}{escape_uri_path(request.path_info)}{'?' if query else ''}{query}"


def _refused(channel_id: int, error: PermissionError) -> None:
    """One line a minute for each channel: a wrong secret shows, and a stranger cannot fill the log."""
    at, count = _said.get(channel_id, (float("-inf"), 0))
    if time.monotonic() - at < QUIET:
        _said[channel_id] = (at, count + 1)
        return
    log.warning("channel %s: a callback was refused (%s); %d more since the last line", channel_id, error, count)
    _said[channel_id] = (time.monotonic(), 0)
