"""Who is calling: an alert source by its integration key, a client by a member's APP key. Never a session cookie; keys are never logged.

Keys are long random secrets and are found by a keyed hash of them, so the time that takes tells nothing about any key.
"""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import connection
from django.db.models import Q
from django.http import HttpRequest
from django.utils.translation import gettext as _

from flashduty.api.envelope import ApiError, Door
from mapping.clock import db_now
from mapping.crypto import fingerprint
from mapping.models import ApiKey, Member
from mapping.visibility import Role, Status

REMEMBER = 2.0  # seconds a process may go on with what it knew of a key: disabling one takes so long to reach all of them
MOST_REMEMBERED = 2000
USED_STEP = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Caller:
    """What a door needs to know of an integration."""

    id: int
    kind: str
    status: str
    per_second: int | None
    per_minute: int | None


_known: dict[str, tuple[float, Caller]] = {}
_known_lock = threading.Lock()


def integration(key: str) -> Caller:
    """The integration with this key, or with a replaced one in its grace period. Raises 401 for no such key, 403 for a disabled one."""
    if not key:
        raise ApiError("Unauthorized", _("integration_key is missing: copy the push URL from the integration's page."))
    hashed = fingerprint(key)
    known = _known.get(hashed)
    if known is None or known[0] < time.monotonic():
        caller = _look_up(hashed)
        if caller is None:
            raise ApiError("Unauthorized", _("integration_key is not valid: copy the push URL from the integration's page again."))
        with _known_lock:
            if len(_known) >= MOST_REMEMBERED:
                _known.clear()
            _known[hashed] = (time.monotonic() + REMEMBER, caller)
    else:
        caller = known[1]
    if caller.status != Status.ENABLED:
        raise ApiError("AccessDenied", _("This integration is disabled: enable it in the console."))
    return caller


def forget() -> None:
    """Forget what this process knows of integration keys."""
    with _known_lock:
        _known.clear()


def _look_up(hashed: str) -> Caller | None:
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT id, kind, status, limit_per_second, limit_per_minute FROM escalation_integration
               WHERE status <> 'deleted' AND (key_hash = %s OR (old_key_hash = %s AND old_key_until > statement_timestamp()))""",
            [hashed, hashed],
        )
        row = cursor.fetchone()
    return Caller(*row) if row else None


class KeyedDoor(Door):
    """A door of the Open API: `self.member` is whose APP key came with the request. `writes` says whether a read-only key is refused."""

    writes = True
    member: Member

    def initial(self, request: Any, *args: Any, **kwargs: Any) -> None:
        self.member = app_key(request._request, writes=self.writes)


def app_key(request: HttpRequest, *, writes: bool) -> Member:
    """The member whose APP key is in the query (`app_key`) or in a header (`App-Key`, `Authorization: Bearer`); 401 or 403 if it will not do."""
    secret = request.GET.get("app_key") or request.headers.get("App-Key") or ""
    scheme, _space, token = request.headers.get("Authorization", "").partition(" ")
    if not secret and scheme.lower() == "bearer":
        secret = token.strip()
    if not secret:
        raise ApiError("Unauthorized", _("app_key is missing: send it in the query or in the App-Key header."))
    now = db_now()
    key = ApiKey.find(secret, now)
    if key is None:
        raise ApiError("Unauthorized", _("app_key is not valid, or it has expired."))
    if key.last_used_at is None or key.last_used_at <= now - USED_STEP:
        ApiKey.objects.filter(Q(last_used_at=None) | Q(last_used_at__lte=now - USED_STEP), pk=key.pk).update(last_used_at=now)
    if writes and key.read_only:
        raise ApiError("AccessDenied", _("This app_key is read-only."))
    if writes and key.member.role == Role.VIEWER:  # a key carries the rights of its member and no more
        raise ApiError("AccessDenied", _("You may look at incidents, but not change them: your role is viewer."))
    return key.member
