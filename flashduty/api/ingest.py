"""Where alert sources push events. An event is durable before it is answered with 200; whatever the bytes, the answer is never a 5xx of ours.

Rate limits are off unless an integration has them, and a request is taken whole while a token is left and puts its bucket into debt:
most senders drop an alert on 429 for good, so slowing down beats refusing.
"""

import re
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import translation
from django.utils.translation import gettext as _

from escalation import intake, sources
from flashduty.api import auth, schema
from flashduty.api.envelope import ApiError, Door, body_of, route, success

MOST_ONE = 1 << 20
MOST_MANY = 16 << 20
_NOT_JSON = ("multipart/", "text/xml", "application/xml")


@schema.push
class Push(Door):
    """`POST /event/push/alert/<source>`: the events of one body, parsed by the source's function."""

    source = "standard"
    over_limit = 429

    def post(self, request: Any) -> HttpResponse:
        return take(request._request, self.source, self.over_limit)


_DOORS = {name: Push.as_view(source=name, over_limit=sources.OVER_LIMIT[name]) for name in sources.SOURCES}
urls = [route(f"event/push/alert/{name}", door, f"push_{name}") for name, door in _DOORS.items()]
_PATH = re.compile(r"/*event/push/alert/(\w+)/?")


def lane(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """The outermost middleware: pushes pass the rest by. They use none of it, it is a fifth of what an accept costs, and it would refuse
    an alert for the name by which its sender knows this host (ALLOWED_HOSTS protects pages and links, and a push has neither)."""

    def respond(request: HttpRequest) -> HttpResponse:
        found = _PATH.fullmatch(request.path_info)
        door = _DOORS.get(found[1]) if found else None
        if door is None:
            return get_response(request)
        translation.activate(settings.LANGUAGE_CODE)  # senders read these messages: not in whose language this thread spoke last
        return door(request)

    return respond


def take(request: HttpRequest, source: str, over_limit: int = 429) -> HttpResponse:
    """Authenticates, reads, checks the limit, parses, stores and answers: one statement where nothing has to be looked up."""
    body = body_of(request, MOST_MANY)
    key = request.GET.get("integration_key", "")
    # A key that comes in the query is checked before the body is parsed; one that comes in the body can only be checked after.
    caller = auth.integration(key) if key else None
    many = source != "standard" or _begins(request, body) == b"["
    payload = _parse(request, body, MOST_MANY if many else MOST_ONE)
    said = payload.get("integration_key") if isinstance(payload, dict) else None
    said = said if isinstance(said, str) else ""
    if caller is None:
        caller = auth.integration(said)
    bucket = _bucket(caller)
    if bucket is not None and (wait := bucket.wait()) > 0:
        raise ApiError(
            "RequestTooFrequently", _("This integration is over its rate limit: send again later."), status=over_limit, retry_after=wait
        )
    try:
        items = sources.parse(source, payload, request.GET)
    except sources.BadEvent as error:
        raise _bad(error) from None
    good = [item for item in items if isinstance(item, sources.Parsed)]
    bad = [item for item in items if isinstance(item, sources.BadEvent)]
    if not good:
        raise _bad(bad[0])
    if bucket is not None:
        bucket.spend(len(good))
    keys = iter(intake.accept(caller.id, good, _to_keep(body, said) if len(items) == 1 else None))
    if not many:
        return success({"alert_key": next(keys)})
    return success(
        {
            "items": [
                {"alert_key": next(keys)} if isinstance(item, sources.Parsed) else {"index": item.index, "error": _words(item)}
                for item in items
            ]
        }
    )


def _to_keep(body: bytes, key: str) -> bytes | None:
    """The body as everybody may see it who sees the event: without the key that was in it, or not at all where the key is not to be found."""
    if not key:
        return body
    cut = body.replace(key.encode("utf-8", "surrogatepass"), b"***")
    return cut if cut != body else None


def _words(error: sources.BadEvent) -> str:
    return f"{error.field} {error.message}"


def _bad(error: sources.BadEvent) -> ApiError:
    if isinstance(error, sources.BodyTooLarge):
        return ApiError("RequestEntityTooLarge", _words(error))
    where = "" if error.index is None else f"[{error.index}] "
    return ApiError("InvalidParameter", where + _words(error))


# --- Reading the body ------------------------------------------------------------------------------------------------------


def _begins(request: HttpRequest, body: bytes) -> bytes:
    """The first byte that says something, as it decides which cap holds; b"" where there is none among the first few hundred."""
    if request.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        try:
            body = zlib.decompressobj(wbits=47).decompress(body[: 1 << 16], 512)
        except zlib.error:
            return b""
    return body[:512].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def _parse(request: HttpRequest, body: bytes, most: int) -> Any:
    content_type = request.content_type or ""
    try:
        return sources.loads(body, request.headers.get("Content-Encoding", ""), most)
    except sources.BadEvent as error:
        if content_type.startswith(_NOT_JSON) and not isinstance(error, sources.BodyTooLarge):
            message = _("Content-Type is %(type)s: send JSON as application/json.") % {"type": content_type[:80]}
            raise ApiError("InvalidContentType", message) from None
        raise _bad(error) from None


# --- Limits ----------------------------------------------------------------------------------------------------------------


_A_TOKEN = 1e-6  # anything of one: what is taken beyond it is paid back before the next request


class Bucket:
    """Token buckets of one integration in this process, one a second and one a minute wide, with the process's share of the limit."""

    def __init__(self, per_second: float | None, per_minute: float | None) -> None:
        self.limits = (per_second, per_minute)
        now = time.monotonic()
        # [capacity, tokens per second, tokens, when]
        self._buckets = [[most, most / span, most, now] for most, span in ((per_second, 1.0), (per_minute, 60.0)) if most]
        self._lock = threading.Lock()

    def wait(self) -> float:
        """Seconds until a token is left; 0: now."""
        with self._lock:
            self._refill()
            return max((max(-b[2], 0.0) / b[1] + 0.001 if b[2] < _A_TOKEN else 0.0) for b in self._buckets)

    def spend(self, events: int) -> None:
        with self._lock:
            self._refill()
            for bucket in self._buckets:
                bucket[2] -= events

    def _refill(self) -> None:
        now = time.monotonic()
        for bucket in self._buckets:
            bucket[2] = min(bucket[0], bucket[2] + (now - bucket[3]) * bucket[1])
            bucket[3] = now


_buckets: dict[int, Bucket] = {}


def _bucket(caller: auth.Caller) -> Bucket | None:
    if not caller.per_second and not caller.per_minute:
        return None
    share = settings.WEB_PROCESSES
    limits = (caller.per_second / share if caller.per_second else None, caller.per_minute / share if caller.per_minute else None)
    bucket = _buckets.get(caller.id)
    if bucket is None or bucket.limits != limits:
        bucket = _buckets[caller.id] = Bucket(*limits)
    return bucket
