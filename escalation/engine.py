"""Timers and pages: takes what is due of timeline, incidents and runs, and writes what must be said to whom. `run_once(now)` is one pass.

Due rows, in the order a pass takes them:
- incidents whose snooze or auto-resolve time has come (they become timeline entries),
- timeline entries nobody has acted on: a new incident gets a rule and a run, an acknowledgement is told to the groups that were paged,
- runs whose `next_at` has come,
- pages that reached nobody although every fallback was tried.

Each pass is one transaction: it locks the incidents first and only then touches runs (see the lock order in the design), consumes the
due rows and writes the next ones. Killed at any line it leaves everything due. All timing is `plan`'s; who is meant is `targets`'.
"""

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F, Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from psycopg.errors import DeadlockDetected, LockNotAvailable

from channels_app import outbox
from channels_app.models import Delivery, Notification
from channels_app.outbox.statements import planned_once
from escalation import lifecycle, match, plan, rules
from escalation.models import Event, Incident, Run, TimelineEntry, Workspace
from escalation.notices import status_notices, tell_people
from escalation.rows import read, read_also
from escalation.running import Batch, Live, advance, alarm, catch_all, facts_of, live_of, new_live, write
from mapping.models import Installation
from templates_app import events

log = logging.getLogger(__name__)

BATCH = 300
LEAST = 64
CLOCK_BACK = timedelta(seconds=5)
SOON = timedelta(seconds=1)  # how far ahead a pass looks for the next timer
ISOLATED_SECONDS = 1.0  # a pass that takes rows one by one; the supervisor thinks us dead after five
LOCK_WAIT_MS = 200
STUCK_SECONDS = 5.0
FAILED = gettext_noop("the engine could not go on with it")
BACKLOG_FIRST = timedelta(seconds=10)  # after an outage of ours intake gets so long to catch up before late runs page


# Moves that groups which were paged are told of. What a due entry's detail holds is written at the top of lifecycle.py.
STATUS_EVENTS = {"i_ack": events.ACKNOWLEDGED, "i_snooze": events.ACKNOWLEDGED, "i_rslv": events.CLOSED}


def run_once(now: datetime, *, limit: int = BATCH, budget_ms: float | None = None) -> int:
    """Does what is due at `now`, at most `limit` rows of each kind; how many rows were consumed."""
    return one_pass(now, limit=limit, budget_ms=budget_ms)[0]


def one_pass(now: datetime, *, limit: int = BATCH, budget_ms: float | None = None) -> tuple[int, datetime | None]:
    """As `run_once`; and the next instant at which something will be due, if one is known within SOON (`now`: there may be more at once).

    With `budget_ms` each kind takes about as many rows as it did in so many milliseconds lately, and never fewer than `LEAST`: a pass that
    gave up because its time was over would never get to its end on a machine that is busy, and no timer would ever fire there.
    """
    done, due, ahead = _due(now)
    instants = {ahead, now if done else None}
    for kind, take in _KINDS.items():
        if kind not in due:
            continue
        room = limit if budget_ms is None else max(min(LEAST, limit), min(limit, int(budget_ms / _pace.get(kind, 1.0))))
        started = time.perf_counter()
        try:
            # While something is stuck a batch would wait for it again, and everybody else with it.
            rows, then = (_isolate(kind, now, room), now) if _stuck else take(now, room)
        except (OperationalError, InterfaceError) as error:
            rules.forget()
            if not _waited(error):
                raise  # no connection, a statement that took too long: no row's fault, all of it is tried again
            rows, then = _isolate(kind, now, room), now
        except Exception:
            # A snapshot remembered from a transaction that is rolled back now does not exist.
            rules.forget()
            log.exception("a batch of %s failed; its rows are taken one by one", kind)
            rows, then = _isolate(kind, now, room), now
        done += rows
        if rows:
            instants.add(now if rows >= min(room, LEAST) else then)
        if rows >= LEAST:
            _pace[kind] = 0.7 * _pace.get(kind, 1.0) + 0.3 * (time.perf_counter() - started) * 1000 / rows
        if rows and kind in ("wakes", "auto_resolves"):
            due.add("timeline")  # they have just written to it
    return done, min((at for at in instants if at is not None), default=None)


# How many rows of a kind were consumed, and the first instant at which something that was written for them will be due.
Taken = tuple[int, datetime | None]

# Milliseconds that a row of each kind took lately.
_pace: dict[str, float] = {}


# Incidents that could not be had because of somebody's lock, and until when (of our own monotonic clock) they are left alone.
_stuck: dict[int, float] = {}


def _waited(error: Exception) -> bool:
    """Whether a statement ended because of somebody else's lock, and not because of the connection."""
    return isinstance(error.__cause__, LockNotAvailable | DeadlockDetected)


# Incidents with due rows of a kind, the first of them first.
_WHOSE = {
    "wakes": "SELECT id FROM escalation_incident WHERE wake_at <= %(now)s AND id <> ALL(%(stuck)s) ORDER BY wake_at LIMIT %(limit)s",
    "auto_resolves": """SELECT id FROM escalation_incident WHERE auto_resolve_at <= %(now)s AND id <> ALL(%(stuck)s)
        ORDER BY auto_resolve_at LIMIT %(limit)s""",
    "timeline": "SELECT incident_id FROM escalation_timelineentry WHERE handled_at IS NULL AND incident_id <> ALL(%(stuck)s) ORDER BY id LIMIT %(limit)s",
    "runs": """SELECT incident_id FROM escalation_run WHERE ended_at IS NULL AND next_at <= %(now)s AND incident_id <> ALL(%(stuck)s)
        ORDER BY next_at LIMIT %(limit)s""",
    "exhausted": """SELECT topic FROM channels_app_notification WHERE exhausted_at IS NOT NULL AND exhausted_handled_at IS NULL
        AND topic <> ALL(%(stuck)s) ORDER BY exhausted_at LIMIT %(limit)s""",
}


def _isolate(kind: str, now: datetime, limit: int) -> int:
    """Takes what is due incident by incident, for a second at most, so that neither a bad row nor somebody's lock stops the others."""
    began, done = time.monotonic(), 0
    for pk in [pk for pk, until in _stuck.items() if until < began]:
        del _stuck[pk]
    with connection.cursor() as cursor:
        cursor.execute(_WHOSE[kind], {"now": now, "limit": limit, "stuck": list(_stuck)})
        whose = dict.fromkeys(pk for (pk,) in cursor.fetchall())
    for incident_id in whose:
        if time.monotonic() - began > ISOLATED_SECONDS:
            break
        try:
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
                done += _KINDS[kind](now, limit, incident_id)[0]
        except (OperationalError, InterfaceError) as error:
            rules.forget()
            if not _waited(error):
                raise
            log.warning("%s of incident %d wait for somebody's lock", kind, incident_id)
            _stuck[incident_id] = time.monotonic() + STUCK_SECONDS
        except Exception as error:
            rules.forget()
            log.exception("%s of incident %d failed", kind, incident_id)
            done += _set_aside(kind, incident_id, now, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return done


def _set_aside(kind: str, incident_id: int, now: datetime, why: str) -> int:
    """Due rows of an incident cannot be acted on: they are moved out of the way, its timeline says so, the catch-all is told instead if nothing
    else goes on, and the alarm is raised."""
    later = now + timedelta(seconds=30)
    with transaction.atomic():
        incident = _locked_incidents([incident_id]).get(incident_id)
        if incident is None:
            return 0
        if kind == "wakes":
            Incident.objects.filter(id=incident_id).update(wake_at=later)
        elif kind == "auto_resolves":
            Incident.objects.filter(id=incident_id).update(auto_resolve_at=later)
        elif kind == "timeline":
            TimelineEntry.objects.filter(incident_id=incident_id, handled_at=None).update(handled_at=now)
        elif kind == "exhausted":
            Notification.objects.filter(topic=incident_id, exhausted_at__isnull=False, exhausted_handled_at=None).update(
                exhausted_handled_at=now
            )
        else:
            runs = Run.objects.filter(incident_id=incident_id, ended_at=None)
            # A catch-all has no catch-all: it is tried again.
            runs.filter(kind=Run.Kind.CATCH_ALL).update(next_at=later)
            runs.exclude(kind=Run.Kind.CATCH_ALL).update(ended_at=now, next_at=None, end_reason=FAILED)
        text = _("The engine could not go on with this incident: %(why)s") % {"why": why[:300]}
        TimelineEntry.objects.create(
            incident_id=incident_id, type="i_failed", via="system", detail={"text": text}, created_at=now, handled_at=now
        )
        live = Run.objects.filter(incident_id=incident_id, ended_at=None).exists()
        if kind not in ("wakes", "auto_resolves") and incident.progress == Incident.Progress.TRIGGERED and not live:
            try:
                with transaction.atomic():
                    batch = Batch(now)
                    advance(catch_all([incident], FAILED, batch), batch)
                    write(batch)
            except (OperationalError, InterfaceError):
                raise
            except Exception:
                rules.forget()
                log.exception("incident %d: the catch-all could not be told either", incident_id)
        # Not why: `/readyz` says this to everybody, and an error quotes what it stumbled over. The timeline says it to those who may see it.
        alarm(_("The engine could not go on with incident %(id)s; its timeline says why.") % {"id": incident_id}, now)
        return 1


# ---- the clock -----------------------------------------------------------------------------------------------------------------------


_LOOK = """
SELECT (SELECT last_pass_at FROM mapping_installation WHERE id = 1), (SELECT erasures FROM mapping_installation WHERE id = 1),
  -- The first instant that lies ahead, from the three partial indexes of timers.
  least(
    (SELECT min(next_at) FROM escalation_run WHERE ended_at IS NULL AND next_at > %(now)s AND next_at < %(soon)s),
    (SELECT min(wake_at) FROM escalation_incident WHERE wake_at > %(now)s AND wake_at < %(soon)s),
    (SELECT min(auto_resolve_at) FROM escalation_incident WHERE auto_resolve_at > %(now)s AND auto_resolve_at < %(soon)s)),
  EXISTS (SELECT FROM escalation_incident WHERE wake_at <= %(now)s),
  EXISTS (SELECT FROM escalation_incident WHERE auto_resolve_at <= %(now)s),
  EXISTS (SELECT FROM escalation_timelineentry WHERE handled_at IS NULL),
  EXISTS (SELECT FROM escalation_run WHERE ended_at IS NULL AND next_at <= %(now)s),
  EXISTS (SELECT FROM channels_app_notification WHERE exhausted_at IS NOT NULL AND exhausted_handled_at IS NULL)
"""


def _due(now: datetime) -> tuple[int, set[str], datetime | None]:
    """Which kinds have rows that are due, in one statement (most passes have one kind or none); 1 if the clock had to be corrected first;
    and the next instant at which something will be due, if that is within SOON."""
    last, ahead, kinds = _look(now)
    corrected = _clock(last, now)
    if corrected:
        _last, ahead, kinds = _look(now)
    elif corrected is None:
        kinds.discard("auto_resolves")  # theirs is a time at which nobody could see them
    return corrected or 0, kinds, ahead


def _look(now: datetime) -> tuple[datetime | None, datetime | None, set[str]]:
    with planned_once() as cursor:
        cursor.execute(_LOOK, {"now": now, "soon": now + SOON})
        last, erasures, ahead, *found = cursor.fetchone()
    rules.as_of(erasures)
    return last, ahead, {kind for kind, one in zip(_KINDS, found, strict=True) if one}


# Every instant of what waits goes back with the clock: what was due before is due now. A few statements, however many runs: with one for
# each, 20,000 live runs took 31 s, and the supervisor takes an engine for dead after five.
_TURN_BACK = (
    """UPDATE escalation_incident SET wake_at = wake_at - %(lost)s, auto_resolve_at = auto_resolve_at - %(lost)s,
         snoozed_until = snoozed_until - %(lost)s
       WHERE id = ANY(%(ids)s) AND progress <> 'Closed' AND (wake_at IS NOT NULL OR auto_resolve_at IS NOT NULL)""",
    """WITH moved AS (
         UPDATE escalation_run SET next_at = next_at - %(lost)s, state = state || jsonb_build_object(
           't0', (state ->> 't0')::timestamptz - %(lost)s, 'repage_at', (state ->> 'repage_at')::timestamptz - %(lost)s)
         WHERE incident_id = ANY(%(ids)s) AND ended_at IS NULL AND next_at IS NOT NULL RETURNING incident_id)
       INSERT INTO escalation_timelineentry (incident_id, type, via, detail, created_at, handled_at)
       SELECT incident_id, 'i_clock', 'system', %(detail)s::jsonb, %(now)s, %(now)s FROM moved ORDER BY incident_id""",
)
_TIMED = """progress <> 'Closed' AND (wake_at IS NOT NULL OR auto_resolve_at IS NOT NULL
  OR id IN (SELECT incident_id FROM escalation_run WHERE ended_at IS NULL AND next_at IS NOT NULL))"""


def _clock(last: datetime | None, now: datetime) -> int | None:
    """Notices an outage of ours and a database clock that went back, and keeps the latest instant seen (once a second at most).

    1: timers were moved back with the clock. None: somebody's lock is in the way; nothing was changed, and it is tried again in a second.
    """
    if last is None:
        last = Installation.get().last_pass_at
    away = timedelta(0) if last is None else now - last
    if last is not None and -CLOCK_BACK <= away < timedelta(seconds=1):
        return 0
    if _resting.get("until", 0.0) > time.monotonic():
        return None
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(f"SET LOCAL lock_timeout = {LOCK_WAIT_MS}")
            # The row of the installation comes last, as everywhere, and its old value is what one of several engines finds.
            seen = Installation.objects.filter(id=1).filter(Q(last_pass_at=None) | Q(last_pass_at=last))
            if last is not None and away < timedelta(0):
                moved = _turn_back(last, now)
            else:
                moved = False
                if last is not None and away > plan.LATE:
                    # Nobody could see an incident while we were down: its time to be resolved by itself moves by the outage.
                    ids = _lock("auto_resolve_at > %(last)s", {"last": last})
                    Incident.objects.filter(id__in=ids).update(auto_resolve_at=F("auto_resolve_at") + away)
            if not seen.update(last_pass_at=now):
                transaction.set_rollback(True)  # another engine was faster
                return 0
            if moved:
                text = _("The database's clock went back by %(seconds).0f s; timers were moved along, so that nothing is late.")
                alarm(text % {"seconds": -away.total_seconds()}, now)
            return int(moved)
    except OperationalError as error:
        if not _waited(error):
            raise
        log.warning("timers cannot be moved by %.0f s yet: somebody's lock is in the way", away.total_seconds())
        _resting["until"] = time.monotonic() + 1
        return None


# Until when, by our own monotonic clock, nobody tries again to move the timers.
_resting: dict[str, float] = {}


def _lock(which: str, values: dict[str, Any]) -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT id FROM escalation_incident WHERE {which} ORDER BY id FOR NO KEY UPDATE", values)
        return [pk for (pk,) in cursor.fetchall()]


def _turn_back(last: datetime, now: datetime) -> bool:
    ids = _lock(_TIMED, {})
    if not Installation.objects.filter(id=1, last_pass_at=last).exists():
        return False  # another engine has done it while we waited for its locks
    lost = last - now
    values: dict[str, Any] = {"ids": ids, "lost": lost, "now": now, "detail": json.dumps({"from": last.isoformat(), "to": now.isoformat()})}
    with connection.cursor() as cursor:
        for statement in _TURN_BACK:
            cursor.execute(statement, values)
    outbox.turned_back(lost, now)
    return True


# ---- incidents that wake or close by themselves --------------------------------------------------------------------------------------


_LOCKED = """FROM escalation_incident t JOIN escalation_workspace w ON w.id = t.workspace_id
    WHERE t.id = ANY({which}) ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED"""
_NAMED = _LOCKED.format(which="%s")
_OF_TIMELINE = _LOCKED.format(which="ARRAY(SELECT incident_id FROM escalation_timelineentry WHERE handled_at IS NULL ORDER BY id LIMIT %s)")


def _locked_incidents(ids: Iterable[int]) -> dict[int, Incident]:
    """Those of the incidents that nobody else works on, locked, by id, with the names of their workspaces."""
    return _locked(_NAMED, [list(set(ids))])


def _locked(which: str, values: Sequence[Any]) -> dict[int, Incident]:
    found, spaces = {}, dict[int, Workspace]()
    for row, name in read_also(Incident, "w.name", which, values):
        # One object for all, and of it what texts say.
        row.workspace = spaces.get(row.workspace_id) or spaces.setdefault(
            row.workspace_id, Workspace.from_db("default", ["id", "name"], [row.workspace_id, name])
        )
        found[row.id] = row
    return found


def _wakes(now: datetime, limit: int, only: int | None = None) -> Taken:
    due = Incident.objects.filter(wake_at__lte=now).order_by("wake_at").values_list("id", flat=True)
    return len(lifecycle.wakes(list(due[:limit]) if only is None else [only], now)), now


def _auto_resolves(now: datetime, limit: int, only: int | None = None) -> Taken:
    due = Incident.objects.filter(auto_resolve_at__lte=now).order_by("auto_resolve_at").values_list("id", flat=True)
    return len(lifecycle.timeouts(list(due[:limit]) if only is None else [only], now)), now


# ---- timeline entries ----------------------------------------------------------------------------------------------------------------


@transaction.atomic
def _timeline(now: datetime, limit: int, only: int | None = None) -> Taken:
    incidents = _locked(_OF_TIMELINE, [limit]) if only is None else _locked_incidents([only])
    if not incidents:
        return 0, None
    batch = Batch(now)
    # Seen only now, under the locks. A new incident's run gets its number in passing.
    entries = []
    for entry, number in read_also(
        TimelineEntry,
        "CASE WHEN t.type = 'i_new' THEN nextval(pg_get_serial_sequence('escalation_run', 'id')) END",
        "FROM escalation_timelineentry t WHERE t.handled_at IS NULL AND t.incident_id = ANY(%s) ORDER BY t.id",
        [list(incidents)],
    ):
        entries.append(entry)
        if number is not None:
            batch.numbers.append(number)
    lives: list[Live] = []
    by_incident: dict[int, list[TimelineEntry]] = defaultdict(list)
    for entry in entries:
        by_incident[entry.incident_id].append(entry)

    last_runs = _last_runs([pk for pk, rows in by_incident.items() if any(row.type != "i_new" for row in rows)], incidents)
    opening: dict[int, plan.Why] = {}
    told: list[tuple[Incident, str, TimelineEntry]] = []
    for pk, rows in by_incident.items():
        incident, live = incidents[pk], last_runs.get(pk)
        for entry in rows:
            people = [int(member) for member in entry.detail.get("person_ids", ())]
            if entry.type == "i_assign" or (entry.type == "i_reopen" and people):
                opening.pop(pk, None)
                if incident.progress != Incident.Progress.CLOSED and people:
                    live = new_live(
                        incident,
                        rules.freeze(
                            rules.people_body("assigned", people, entry.detail.get("template_set"), entry.detail.get("kinds", ())), now
                        ),
                        Run.Kind.ASSIGN,
                        now,
                        "manual",
                    )
                    lives = [other for other in lives if other.incident is not incident] + [live]
            elif entry.type in ("i_new", "i_reopen"):
                if incident.progress == Incident.Progress.TRIGGERED and (live is None or live.run.ended_at is not None):
                    opening[pk] = "first" if entry.type == "i_new" else "reopen"
            elif entry.type == "i_escalate":
                opening.pop(pk, None)
                if incident.progress == Incident.Progress.TRIGGERED:
                    live = _escalated(live, incident, entry.detail, batch, now)
                    lives = [other for other in lives if other.incident is not incident] + [live]
            elif entry.type == "i_a_rspd":
                if incident.progress != Incident.Progress.CLOSED:
                    batch.notices += tell_people(batch, incident, people, now)
            elif entry.type == "i_rslv":
                # The move has ended the run, and with it whatever was to be done before; a reopening begins anew.
                opening.pop(pk, None)
                lives, live = [other for other in lives if other.incident is not incident], last_runs.get(pk)
            elif live is not None and pk not in opening:
                _redirect(live, entry, now)
                if live.state.due is not None and live not in lives:
                    lives.append(live)
            elif entry.type in ("i_unack", "i_wake") and incident.progress == Incident.Progress.TRIGGERED:
                # It was acknowledged before it ever had a run.
                opening[pk] = "unacknowledged" if entry.type == "i_unack" else "wake"
            if (event := STATUS_EVENTS.get(entry.type)) is not None:
                told.append((incident, event, entry))
    opened = _open_runs([(incidents[pk], why) for pk, why in opening.items()], now, batch)
    advance(lives + opened, batch)
    batch.notices += status_notices(told, batch)
    batch.handled = [entry.id for entry in entries]
    return len(entries), write(batch)


def _redirect(live: Live, entry: TimelineEntry, now: datetime) -> None:
    """What a person's move means for the run that follows the incident."""
    timing, state = live.follows.timing, live.state
    if entry.type == "i_wake":
        live.state = plan.restart_layer(timing, state, now, "wake")
    elif entry.type == "i_unack":
        live.state = plan.restart_layer(timing, state, now, "unacknowledged")
    elif entry.type == "i_r_severity":
        over = state.due is None and live.incident.progress == Incident.Progress.TRIGGERED
        # Nobody answered and the run had come to its end: what got worse since is paged all the same.
        live.state = plan.restart_layer(timing, state, now, "severity") if over else plan.repage(state, now)
    elif entry.type == "i_snooze" and live.incident.snoozed_until is not None:
        live.state = plan.pause(state, live.incident.snoozed_until)
    else:  # i_ack: let the plan see what has become of the incident, now rather than at the next loop
        live.state = replace(state, due=now) if state.due is not None and live.run.ended_at is None else state


def _escalated(live: Live | None, incident: Incident, detail: dict[str, Any], batch: Batch, now: datetime) -> Live:
    """The run that pages the layer somebody asked for: the same rule's, taken up again if it had ended, or a new one of the rule that was named."""
    if "snapshot_id" in detail:
        follows = rules.frozen([int(detail["snapshot_id"])])[int(detail["snapshot_id"])]
    else:
        follows = rules.freeze(rules.current_body(int(detail["rule_id"])), now)
    layer = min(int(detail["layer_idx"]), len(follows.timing.layers) - 1)
    if live is None or live.follows.id != follows.id or live.run.kind != Run.Kind.RULE:
        if live is not None and live.run.ended_at is None:
            live.state, live.end = replace(live.state, due=None), gettext_noop("escalated by hand")
            batch.saved[id(live)] = live
        live = new_live(incident, follows, Run.Kind.RULE, now, "manual")
    live.state = plan.escalate_to(follows.timing, live.state, layer, now)
    return live


def _last_runs(incident_ids: Sequence[int], incidents: dict[int, Incident]) -> dict[int, Live]:
    """The run of each locked incident that lives, or else the last that did (a wake or an unacknowledgement takes it up again)."""
    if not incident_ids:
        return {}
    latest = {run.incident_id: run for run in Run.objects.select_for_update().filter(incident_id__in=incident_ids).order_by("id")}
    known = rules.frozen(run.snapshot_id for run in latest.values())
    return {pk: live_of(run, incidents[pk], known[run.snapshot_id]) for pk, run in latest.items()}


def _open_runs(opening: Sequence[tuple[Incident, plan.Why]], now: datetime, batch: Batch) -> list[Live]:
    """A run for each incident that needs one: by the first rule that matches, or by the catch-all."""
    if not opening:
        return []
    matcher = rules.Matcher(sorted({incident.workspace_id for incident, _why in opening}), now)
    batch.known.look([incident.id for incident, _why in opening])
    lives, nobody = [], []
    for incident, why in opening:
        subject = match.Subject(
            title=incident.title,
            description=incident.description,
            severity=incident.severity,
            data_source_id=batch.known.source(incident.id),
            labels=incident.labels,
        )
        follows = matcher.find(incident, subject)
        if follows is None:
            nobody.append(incident)
        else:
            lives.append(new_live(incident, follows, Run.Kind.RULE, now, why))
    return lives + catch_all(nobody, gettext_noop("no escalation rule of the workspace matches"), batch)


# ---- runs ----------------------------------------------------------------------------------------------------------------------------


@transaction.atomic
def _runs(now: datetime, limit: int, only: int | None = None) -> Taken:
    with planned_once() as cursor:
        which = "" if only is None else "AND incident_id = %s"
        cursor.execute(
            f"SELECT incident_id, next_at FROM escalation_run WHERE ended_at IS NULL AND next_at <= %s {which} ORDER BY next_at LIMIT %s",
            [now, limit] if only is None else [now, only, limit],
        )
        due = cursor.fetchall()
    if not due or _backlog_first(due[0][1], now):
        return 0, None
    incidents = _locked_incidents(incident_id for incident_id, _at in due)
    rows = read(
        Run,
        "FROM escalation_run t WHERE t.incident_id = ANY(%s) AND t.ended_at IS NULL AND t.next_at <= %s ORDER BY t.id FOR UPDATE OF t",
        [list(incidents), now],
    )
    known = rules.frozen(run.snapshot_id for run in rows)
    # A move that nobody has acted on yet (made since this pass looked at the timeline) decides first what the run does.
    moved = set(TimelineEntry.objects.filter(incident_id__in=incidents, handled_at=None).values_list("incident_id", flat=True))
    batch = Batch(now)
    lives = []
    for run in rows:
        incident = incidents[run.incident_id]
        if run.incident_id in moved or (incident.wake_at is not None and incident.wake_at <= now):
            continue  # its snooze is over: the wake, which writes to the timeline, comes first
        lives.append(live_of(run, incident, known[run.snapshot_id]))
    advance(lives, batch)
    return len(lives), write(batch)


def _backlog_first(oldest: datetime, now: datetime) -> bool:
    """After an outage: events that waited are taken in before anybody is paged late, so that a recovery among them stops its page."""
    if now - oldest <= plan.LATE:
        _waiting.clear()
        return False
    waiting = Event.objects.filter(outcome=None, received_at__lte=now).exists() or Incident.objects.filter(wake_at__lte=now).exists()
    since = _waiting.setdefault("since", now)
    return waiting and timedelta(0) <= now - since < BACKLOG_FIRST  # the clock may have been set back since


# When this process began to wait for intake after an outage.
_waiting: dict[str, datetime] = {}


def fresh() -> None:
    """As a process that has just started: nothing remembered."""
    _waiting.clear()
    _stuck.clear()
    _resting.clear()
    rules.forget()


# ---- pages that reached nobody -------------------------------------------------------------------------------------------------------


@transaction.atomic
def _exhausted(now: datetime, limit: int, only: int | None = None) -> Taken:
    pages = Notification.objects.filter(exhausted_at__isnull=False, exhausted_handled_at=None)
    if only is not None:
        pages = pages.filter(topic=only)
    due = list(pages.order_by("exhausted_at").values_list("id", "topic", "run", "layer_idx")[:limit])
    if not due:
        return 0, None
    incidents = _locked_incidents(topic for _id, topic, _run, _layer in due if topic is not None)
    mine = [row for row in due if row[1] in incidents or row[1] is None]
    last = _last_runs([topic for _id, topic, _run, _layer in mine if topic is not None], incidents)
    batch, lives, nobody = Batch(now), [], []
    seen: set[int] = set()
    people = _added([pk for pk, topic, run_id, _layer in mine if topic is not None and run_id is None])
    for pk, topic, run_id, layer in mine:
        if topic is None:
            continue
        if run_id is None:  # a page to people who were added, beside the layers
            reason = gettext_noop("no message could be delivered, by any channel")
            batch.note(
                incidents[topic],
                "i_layer",
                {"result": "unreachable", "layer_idx": None, "reason": reason, "person_ids": sorted(people[pk])},
            )
            continue
        reason = gettext_noop("no message of this layer could be delivered, by any channel")
        batch.note(incidents[topic], "i_layer", {"result": "failed", "layer_idx": layer, "reason": reason})
        live = last.get(topic)
        if live is None or live.run.id != run_id or topic in seen:
            continue
        if live.run.kind == Run.Kind.ASSIGN and live.incident.progress == Incident.Progress.TRIGGERED:
            seen.add(topic)
            if live.run.ended_at is None:  # an incident has one live run, and the catch-all's begins
                live.state, live.end = replace(live.state, due=None), gettext_noop("nobody could be reached")
                batch.saved[id(live)] = live
            nobody.append(live.incident)
        elif live.run.ended_at is None and live.state.layer == layer:  # a page of a layer that is over by now changes nothing
            seen.add(topic)
            live.step = plan.failed_later(live.follows.timing, live.state, layer, facts_of(live.incident), now)
            lives.append(live)
    advance(lives + catch_all(nobody, gettext_noop("the people it was assigned to could not be reached"), batch), batch)
    write(batch)
    Notification.objects.filter(id__in=[row[0] for row in mine]).update(exhausted_handled_at=now)
    return len(mine), now


def _added(notification_ids: Sequence[int]) -> dict[int, set[int]]:
    """Whom these pages to people who were added were for."""
    found: dict[int, set[int]] = {pk: set() for pk in notification_ids}
    if notification_ids:
        rows = Delivery.objects.filter(notification_id__in=notification_ids, member__isnull=False)
        for pk, member in rows.values_list("notification_id", "member_id"):
            found[pk].add(member)
    return found


# In the order of a pass, and of the columns of `_LOOK`.
_KINDS: dict[str, Callable[..., Taken]] = {
    "wakes": _wakes,
    "auto_resolves": _auto_resolves,
    "timeline": _timeline,
    "runs": _runs,
    "exhausted": _exhausted,
}
