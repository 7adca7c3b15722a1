"""What a load balancer and an operator ask: `/healthz` (this process answers) and `/readyz` (a page sent now would travel)."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from django.apps import apps
from django.conf import settings
from django.db import Error, connection, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.utils import translation
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache

from channels_app import resident
from channels_app.models import ChannelHealth
from mapping.models import Installation

FRESH = 5.0  # seconds a heartbeat counts
ANSWER_MS = 2000  # the database answers within so many milliseconds or does not answer

_migrated = False  # once true it stays true for the life of this process


def healthz(_request: HttpRequest) -> HttpResponse:
    """200 as long as this process answers."""
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
def readyz(_request: HttpRequest) -> JsonResponse:
    """200 when the database answers, its tables are ours and every resident beats; else 503 with the reasons. Alarms are listed either way."""
    reasons: list[str] = []
    alarms: list[str] = []
    workers: dict[str, float | None] = {}
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [str(ANSWER_MS)])
            if missing := _missing_migrations():
                reasons.append(
                    _("%(count)d migrations are not applied, the first is %(name)s") % {"count": len(missing), "name": missing[0]}
                )
            else:
                alarms += [text for text in Installation.objects.values_list("alarm", flat=True) if text]
                if short := len(ChannelHealth.short_of_messages(datetime.now(UTC))):  # which ones is for the console, behind its door
                    alarms.append(_("channels that have used most of their month's messages: %(count)d") % {"count": short})
                if not _own_workers():
                    workers = _workers_anywhere()
    except Error as error:
        reasons.append(_("the database does not answer: %(error)s") % {"error": type(error).__name__})
    if _own_workers():
        workers = _workers_here(alarms)
    for slot, age in workers.items():
        if age is None or age > FRESH:
            silent = _("nobody works") if age is None else _("silent for %(seconds)d s") % {"seconds": age}
            reasons.append(f"{slot}: {silent}")
    answer = JsonResponse(
        {"ready": not reasons, "reasons": reasons, "alarms": alarms, "workers": workers}, status=503 if reasons else 200
    )  # fmt: skip
    answer._has_been_logged = True  # type: ignore[attr-defined]  # Django would write an error a second while a load balancer waits for us
    return answer


def _own_workers() -> bool:
    """Whether a supervisor with workers runs on this node. A node of web servers only has none."""
    return resident.held("supervisor.lock")


def _workers_here(alarms: list[str]) -> dict[str, float | None]:
    """Slot -> age of its heartbeat in seconds, None when its lock is free. Adds an alarm when new workers fail to start."""
    try:
        state = json.loads(resident.path("supervisor.json").read_text())
    except (OSError, ValueError):
        state = {"slots": list(settings.RESIDENTS), "failed_starts": 0}
    if state["failed_starts"]:
        alarms.append(_("workers: %(count)d starts failed (%(reason)s)") % {"count": state["failed_starts"], "reason": state["reason"]})
    ages: dict[str, float | None] = {}
    for slot in state["slots"]:
        try:
            age = max(0.0, time.time() - resident.path(f"{slot}.slot").stat().st_mtime)
            # Between two stints the lock is free for a few milliseconds: a beat of just now says as much as a lock.
            ages[slot] = round(age, 1) if age < 1 or resident.held(f"{slot}.slot") else None
        except FileNotFoundError:
            ages[slot] = None
    return ages


def _workers_anywhere() -> dict[str, float | None]:
    """The same from a node without workers: a resident anywhere is known by the name of its connection."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT DISTINCT application_name FROM pg_stat_activity WHERE application_name LIKE 'flashduty %' AND datname = current_database()"
        )
        names = {name.removeprefix("flashduty ").split("-")[0] for (name,) in cursor.fetchall()}
    return {kind: 0.0 if kind in names else None for kind in dict.fromkeys(slot.split("-")[0] for slot in settings.RESIDENTS)}


def _missing_migrations() -> list[str]:
    """Migrations on disk that the database does not know. By file name: the executor would import every migration into the web server."""
    global _migrated
    if _migrated:
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('django_migrations') IS NOT NULL")
        known: set[tuple[str, str]] = set()
        if cursor.fetchone()[0]:
            cursor.execute("SELECT app, name FROM django_migrations")
            known = set(cursor.fetchall())
    missing = [
        f"{app.label}.{file.stem}"
        for app in apps.get_app_configs()
        for file in sorted(Path(app.path, "migrations").glob("[0-9a-z]*.py"))
        if (app.label, file.stem) not in known
    ]
    _migrated = not missing
    return missing


urls = [path("healthz", healthz), path("readyz", readyz)]


def lane(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """A middleware outside all others: whoever probes us knows an address and not our name, and ALLOWED_HOSTS would refuse him."""
    doors = {"/healthz": healthz, "/readyz": readyz}

    def respond(request: HttpRequest) -> HttpResponse:
        door = doors.get(request.path_info)
        if door is None:
            return get_response(request)
        translation.activate(settings.LANGUAGE_CODE)
        return door(request)

    return respond
