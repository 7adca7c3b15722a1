"""What is kept, and for how long: closed incidents with all that belongs to them go `retention_days` after they were closed.

Short transactions, one after the other, each of which leaves a database that is whole: killed anywhere, the next run goes on. Nothing of an
incident goes that is open, or closed and not finished: a move nobody has acted on, a message that may still leave. Locks are taken in the
order of all others (Incident, Run, Address, Delivery), and what somebody else holds is left for the next run.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import IntegrityError, OperationalError, connection, transaction
from django.utils.translation import gettext as _

from channels_app import resident
from channels_app import retention as messages
from mapping.models import Installation

log = logging.getLogger(__name__)

WINDOW: Final = 2000  # rows that one statement looks at, or deletes where they are alone
SECONDS: Final = 0.2  # about what one transaction may take
MOST: Final = 500  # incidents in one
LOCK_WAIT_MS: Final = 500

# Finished for good.
_OVER = """progress = 'Closed' AND close_time < %(before)s
  AND NOT EXISTS (SELECT FROM escalation_timelineentry t WHERE t.incident_id = i.id AND t.handled_at IS NULL)
  AND NOT EXISTS (SELECT FROM escalation_run r WHERE r.incident_id = i.id AND r.ended_at IS NULL)
  AND NOT EXISTS (SELECT FROM escalation_alert a WHERE a.incident_id = i.id AND a.is_open)
  AND NOT EXISTS (SELECT FROM channels_app_delivery d WHERE d.topic = i.id AND (d.state IN ('queued', 'sending') OR d.fallback_at IS NOT NULL))
  AND NOT EXISTS (SELECT FROM channels_app_notification n WHERE n.topic = i.id AND n.exhausted_at IS NOT NULL AND n.exhausted_handled_at IS NULL)"""

_CHILDREN = {
    "runs": "escalation_run WHERE incident_id = ANY(%(ids)s)",
    "timeline entries": "escalation_timelineentry WHERE incident_id = ANY(%(ids)s)",
    "responders": "escalation_responder WHERE incident_id = ANY(%(ids)s)",
}
_EVENTS = "escalation_event WHERE alert_id IN (SELECT id FROM escalation_alert WHERE incident_id = ANY(%(ids)s))"
_ALERTS = "escalation_alert WHERE incident_id = ANY(%(ids)s)"
_INCIDENTS = "escalation_incident WHERE id = ANY(%(ids)s)"

# Machine rows that nobody else removes: what they are -> table, key, which.
_LEFTOVERS = {
    "limits that were met": ("mapping_throttle", "key", "window_end < %(day_ago)s"),
    "sessions": ("django_session", "session_key", "expire_date < %(now)s"),
    "failed jobs": ("django_q_task", "id", "stopped < %(before)s"),
    # A rule's newest stays, and a catch-all's or an assignment's as long as a run names it: engines remember them.
    "rule snapshots": ("escalation_rulesnapshot", "id", """created_at < %(before)s
        AND NOT EXISTS (SELECT FROM escalation_run r WHERE r.snapshot_id = t.id)
        AND NOT EXISTS (SELECT FROM escalation_escalationrule e WHERE e.id = t.rule_id AND e.version <= t.version)"""),
}  # fmt: skip


def prune(now: datetime, *, dry: bool = False, seconds: float | None = None) -> tuple[Counter[str], bool]:
    """Deletes what is older than the installation keeps (`dry`: only counts it): how much of what, and whether that was all.

    It stops early, between two transactions, after `seconds` or when this tree of processes is told to end.
    """
    before = now - timedelta(days=max(1, Installation.get().retention_days))  # links in messages live a day after their incident
    gone: Counter[str] = Counter()
    began = time.monotonic()
    for step in (
        _incidents(before, dry),
        _alerts_alone(before, dry),
        _events_alone(before, dry),
        messages.without_topic(before, dry=dry),
        _leftovers(now, before, dry),
    ):
        for some in step:
            gone.update(some)
            if resident.stopping() or (seconds is not None and time.monotonic() - began > seconds):
                return +gone, False
    return +gone, True


def in_words(gone: Counter[str]) -> str:
    """What was removed, as people read it: 20 incidents, 31 alerts; "" for nothing."""
    names = {
        "incidents": _("incidents"), "alerts": _("alerts"), "events": _("events"), "runs": _("runs"), "timeline entries": _("timeline entries"),
        "responders": _("responders"), "notifications": _("notifications"), "deliveries": _("messages"), "limits that were met": _("limits that were met"),
        "sessions": _("sessions"), "failed jobs": _("failed jobs"), "rule snapshots": _("copies of rules"), "early receipts": _("early receipts"),
    }  # fmt: skip
    return ", ".join(f"{gone[name]} {word}" for name, word in names.items() if gone[name])


def _incidents(before: datetime, dry: bool) -> Iterator[Counter[str]]:
    size = MOST if dry else 50
    for ids in _older("escalation_incident", "created_at", before):
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT id FROM escalation_incident i WHERE id = ANY(%(ids)s) AND {_OVER} ORDER BY id", {"ids": ids, "before": before}
            )
            over = [pk for (pk,) in cursor.fetchall()]
        while over:
            some, over = over[:size], over[size:]
            if dry:
                yield _counted(some)
                continue
            # Of a source that repeats itself there may be a hundred thousand: they go first, by themselves.
            yield from _in_turns("events", _EVENTS, {"ids": some})
            started = time.perf_counter()
            try:
                yield _removed(some, before)
            except (OperationalError, IntegrityError) as error:
                if not connection.is_usable():
                    raise
                log.info("%d incidents are left for the next time: %s", len(some), type(error.__cause__ or error).__name__)
                yield Counter()
            took = time.perf_counter() - started
            size = max(1, min(MOST, int(size * min(2.0, SECONDS / took))))


@transaction.atomic
def _removed(ids: list[int], before: datetime) -> Counter[str]:
    gone: Counter[str] = Counter()
    with connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
        cursor.execute(
            f"SELECT id FROM escalation_incident i WHERE id = ANY(%(ids)s) AND {_OVER} ORDER BY id FOR UPDATE SKIP LOCKED",
            {"ids": ids, "before": before},
        )
        mine = {pk for (pk,) in cursor.fetchall()}
        values = {"ids": sorted(mine)}
        cursor.execute("SELECT FROM escalation_run WHERE incident_id = ANY(%(ids)s) ORDER BY id FOR UPDATE", values)
        # Somebody may have sent one of them again while we waited for its row.
        values["ids"] = ids = sorted(mine - messages.busy(values["ids"]))
        gone.update(messages.drop(ids))
        for name, table in (*_CHILDREN.items(), ("events", _EVENTS), ("alerts", _ALERTS), ("incidents", _INCIDENTS)):
            cursor.execute(f"DELETE FROM {table}", values)
            gone[name] += cursor.rowcount
    return gone


def _counted(ids: list[int]) -> Counter[str]:
    gone = messages.count(ids)
    with connection.cursor() as cursor:
        for name, table in (*_CHILDREN.items(), ("events", _EVENTS), ("alerts", _ALERTS), ("incidents", _INCIDENTS)):
            cursor.execute(f"SELECT count(*) FROM {table}", {"ids": ids})
            gone[name] += cursor.fetchone()[0]
    return gone


def _alerts_alone(before: datetime, dry: bool) -> Iterator[Counter[str]]:
    """Alerts without an incident, and their events."""
    alone = "escalation_alert WHERE incident_id IS NULL AND NOT is_open AND last_time < %(before)s"
    for name, which in (("events", f"escalation_event WHERE alert_id IN (SELECT id FROM {alone})"), ("alerts", alone)):
        yield from _in_turns(name, which, {"before": before}, dry=dry)


def _events_alone(before: datetime, dry: bool) -> Iterator[Counter[str]]:
    """Events that opened nothing: nothing to recover, not taken, failed."""
    verb = "SELECT FROM" if dry else "DELETE FROM"
    for ids in _older("escalation_event", "received_at", before):
        with connection.cursor() as cursor:
            cursor.execute(f"{verb} escalation_event WHERE id = ANY(%s) AND alert_id IS NULL AND outcome IS NOT NULL", [ids])
            yield Counter(events=cursor.rowcount)


def _leftovers(now: datetime, before: datetime, dry: bool) -> Iterator[Counter[str]]:
    values = {"now": now, "before": before, "day_ago": now - timedelta(days=1)}
    for name, (table, key, which) in _LEFTOVERS.items():
        yield from _in_turns(name, f"{table} t WHERE {which}", values, key, dry=dry)
    if not dry:
        yield Counter({"early receipts": messages.early_receipts(now)})


def _in_turns(name: str, rows: str, values: dict[str, Any], key: str = "id", *, dry: bool = False) -> Iterator[Counter[str]]:
    """Deletes rows (a table and which of its rows) WINDOW at a time, each time in a statement of its own; what somebody holds stays."""
    table = rows.split(maxsplit=1)[0]
    with connection.cursor() as cursor:
        if dry:
            cursor.execute(f"SELECT count(*) FROM {rows}", values)
            yield Counter({name: cursor.fetchone()[0]})
            return
        while True:
            cursor.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT {key} FROM {rows} LIMIT {WINDOW} FOR UPDATE SKIP LOCKED)", values)
            found = cursor.rowcount
            yield Counter({name: found})
            if found < WINDOW:
                return


def _older(table: str, dated: str, before: datetime) -> Iterator[list[int]]:
    """Ids of the rows from before that instant, WINDOW at a time. Ids are given in the order of time, or nearly so: the walk along the primary
    key ends where a window begins with a row that is younger."""
    last = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT id, {dated} FROM {table} WHERE id > %s ORDER BY id LIMIT {WINDOW}", [last])
            rows = cursor.fetchall()
        if not rows or rows[0][1] >= before:
            return
        last = rows[-1][0]
        yield [pk for pk, at in rows if at < before]
