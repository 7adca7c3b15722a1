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
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import InterfaceError, OperationalError, connection, transaction
from django.db.models import F, Q
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from psycopg.errors import DeadlockDetected, LockNotAvailable

from channels_app import outbox
from channels_app.models import Delivery, Notification
from channels_app.outbox.statements import planned_once
from escalation import lifecycle, match, plan, rules, targets
from escalation.ids import hex_id
from escalation.models import Alert, Event, Incident, Responder, Run, TimelineEntry, Workspace
from escalation.rows import read
from mapping.models import Installation, Member
from templates_app import events

log = logging.getLogger(__name__)

BATCH = 300
LEAST = 64
CLOCK_BACK = timedelta(seconds=5)
ISOLATED_SECONDS = 1.0  # a pass that takes rows one by one; the supervisor thinks us dead after five
LOCK_WAIT_MS = 200
STUCK_SECONDS = 5.0
FAILED = gettext_noop("the engine could not go on with it")
BACKLOG_FIRST = timedelta(seconds=10)  # after an outage of ours intake gets so long to catch up before late runs page

# How urgent among pages of one severity (outbox.Notice.rank).
FIRST, ESCALATION, LOOP, STATUS = 0, 1, 2, 3

# Moves that groups which were paged are told of. What a due entry's detail holds is written at the top of lifecycle.py.
STATUS_EVENTS = {"i_ack": events.ACKNOWLEDGED, "i_snooze": events.ACKNOWLEDGED, "i_rslv": events.CLOSED}


@dataclass(slots=True, eq=False)
class Live:
    """A run in this pass: the row, what it follows and what has been decided."""

    run: Run
    incident: Incident
    follows: rules.Frozen
    state: plan.State
    told: targets.Told = field(default_factory=targets.Told)
    new: bool = False
    step: plan.Step | None = None
    end: str = ""


@dataclass(slots=True)
class Batch:
    """What a pass writes at its end, all at once."""

    now: datetime
    entries: list[TimelineEntry] = field(default_factory=list)
    notices: list[outbox.Notice] = field(default_factory=list)
    saved: dict[int, Live] = field(default_factory=dict)
    touched: dict[int, Incident] = field(default_factory=dict)
    responders: list[tuple[int, int]] = field(default_factory=list)
    handled: list[int] = field(default_factory=list)  # timeline entries that were acted on
    alarms: list[str] = field(default_factory=list)
    known: "_Contexts" = field(default_factory=lambda: _Contexts())

    def note(self, incident: Incident, kind: str, detail: dict[str, Any]) -> None:
        """A line of the timeline that needs no further work."""
        self.entries.append(
            TimelineEntry(incident=incident, type=kind, via="system", detail=detail, created_at=self.now, handled_at=self.now)
        )


def run_once(now: datetime, *, limit: int = BATCH, budget_ms: float | None = None) -> int:
    """Does what is due at `now`, at most `limit` rows of each kind; how many rows were consumed.

    With `budget_ms` each kind takes about as many rows as it did in so many milliseconds lately, and never fewer than `LEAST`: a pass that
    gave up because its time was over would never get to its end on a machine that is busy, and no timer would ever fire there.
    """
    done, due = _due(now)
    for kind, take in _KINDS.items():
        if kind not in due:
            continue
        room = limit if budget_ms is None else max(min(LEAST, limit), min(limit, int(budget_ms / _pace.get(kind, 1.0))))
        started = time.perf_counter()
        try:
            # While something is stuck a batch would wait for it again, and everybody else with it.
            rows = _isolate(kind, now, room) if _stuck else take(now, room)
        except (OperationalError, InterfaceError) as error:
            rules.forget()
            if not _waited(error):
                raise  # no connection, a statement that took too long: no row's fault, all of it is tried again
            rows = _isolate(kind, now, room)
        except Exception:
            # A snapshot remembered from a transaction that is rolled back now does not exist.
            rules.forget()
            log.exception("a batch of %s failed; its rows are taken one by one", kind)
            rows = _isolate(kind, now, room)
        done += rows
        if rows >= LEAST:
            _pace[kind] = 0.7 * _pace.get(kind, 1.0) + 0.3 * (time.perf_counter() - started) * 1000 / rows
        if rows and kind in ("wakes", "auto_resolves"):
            due.add("timeline")  # they have just written to it
    return done


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
                done += _KINDS[kind](now, limit, incident_id)
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
                    _advance(_catch_all([incident], FAILED, batch), batch)
                    _write(batch)
            except (OperationalError, InterfaceError):
                raise
            except Exception:
                rules.forget()
                log.exception("incident %d: the catch-all could not be told either", incident_id)
        # Not why: `/readyz` says this to everybody, and an error quotes what it stumbled over. The timeline says it to those who may see it.
        alarm(_("The engine could not go on with incident %(id)s; its timeline says why.") % {"id": incident_id}, now)
        return 1


def alarm(text: str, now: datetime) -> None:
    """What `/readyz` and the console raise until somebody has looked."""
    Installation.get()
    Installation.objects.filter(id=1).update(alarm=text[:2000], alarm_at=now)


# ---- the clock -----------------------------------------------------------------------------------------------------------------------


_LOOK = """
SELECT (SELECT last_pass_at FROM mapping_installation WHERE id = 1),
  EXISTS (SELECT FROM escalation_incident WHERE wake_at <= %(now)s),
  EXISTS (SELECT FROM escalation_incident WHERE auto_resolve_at <= %(now)s),
  EXISTS (SELECT FROM escalation_timelineentry WHERE handled_at IS NULL),
  EXISTS (SELECT FROM escalation_run WHERE ended_at IS NULL AND next_at <= %(now)s),
  EXISTS (SELECT FROM channels_app_notification WHERE exhausted_at IS NOT NULL AND exhausted_handled_at IS NULL)
"""


def _due(now: datetime) -> tuple[int, set[str]]:
    """Which kinds have rows that are due, in one statement (most passes have one kind or none); 1 if the clock had to be corrected first."""
    corrected = 0
    while True:
        with planned_once() as cursor:
            cursor.execute(_LOOK, {"now": now})
            last, *found = cursor.fetchone()
        if corrected or not (corrected := _clock(last, now)):
            return corrected, {kind for kind, one in zip(_KINDS, found, strict=True) if one}


# Every instant of what waits goes back with the clock: what was due before is due now. A few statements, however many runs: with one for
# each, 20,000 live runs took 31 s, and the supervisor takes an engine for dead after five.
_TURN_BACK = (
    """SELECT FROM escalation_incident WHERE progress <> 'Closed' AND (wake_at IS NOT NULL OR auto_resolve_at IS NOT NULL
         OR id IN (SELECT incident_id FROM escalation_run WHERE ended_at IS NULL AND next_at IS NOT NULL)) ORDER BY id FOR NO KEY UPDATE""",
    """UPDATE escalation_incident SET wake_at = wake_at - %(lost)s, auto_resolve_at = auto_resolve_at - %(lost)s,
         snoozed_until = snoozed_until - %(lost)s
       WHERE progress <> 'Closed' AND (wake_at IS NOT NULL OR auto_resolve_at IS NOT NULL)""",
    """WITH moved AS (
         UPDATE escalation_run SET next_at = next_at - %(lost)s, state = state || jsonb_build_object(
           't0', (state ->> 't0')::timestamptz - %(lost)s, 'repage_at', (state ->> 'repage_at')::timestamptz - %(lost)s)
         WHERE ended_at IS NULL AND next_at IS NOT NULL RETURNING incident_id)
       INSERT INTO escalation_timelineentry (incident_id, type, via, detail, created_at, handled_at)
       SELECT incident_id, 'i_clock', 'system', %(detail)s::jsonb, %(now)s, %(now)s FROM moved ORDER BY incident_id""",
)


def _clock(last: datetime | None, now: datetime) -> int:
    """Notice a database clock that went back, and keep the latest instant seen (once a second at most)."""
    if last is None:
        last = Installation.get().last_pass_at
    if last is None or now - last >= timedelta(seconds=1):
        with transaction.atomic():
            first = Installation.objects.filter(id=1).filter(Q(last_pass_at=None) | Q(last_pass_at=last)).update(last_pass_at=now)
            if first and last is not None and now - last > plan.LATE:
                # Nobody could see an incident while we were down: its time to be resolved by itself moves by the outage.
                Incident.objects.filter(auto_resolve_at__gt=last).update(auto_resolve_at=F("auto_resolve_at") + (now - last))
        return 0
    if last - now <= CLOCK_BACK:
        return 0
    with transaction.atomic():
        # Whoever changes the row first moves the runs; a second engine finds the new value and does nothing.
        if not Installation.objects.filter(id=1, last_pass_at=last).update(last_pass_at=now):
            return 0
        lost = last - now
        values: dict[str, Any] = {"lost": lost, "now": now, "detail": json.dumps({"from": last.isoformat(), "to": now.isoformat()})}
        with connection.cursor() as cursor:
            for statement in _TURN_BACK:
                cursor.execute(statement, values)
        outbox.turned_back(lost, now)
        text = _("The database's clock went back by %(seconds).0f s; timers were moved along, so that nothing is late.")
        alarm(text % {"seconds": lost.total_seconds()}, now)
        return 1


# ---- incidents that wake or close by themselves --------------------------------------------------------------------------------------


_LOCKED = "FROM escalation_incident t WHERE t.id = ANY(%s) ORDER BY t.id FOR NO KEY UPDATE OF t SKIP LOCKED"


def _locked_incidents(ids: Iterable[int]) -> dict[int, Incident]:
    """Those of the incidents that nobody else works on, locked, by id, with their workspaces."""
    found = {row.id: row for row in read(Incident, _LOCKED, [list(set(ids))])}
    spaces = read(Workspace, "FROM escalation_workspace t WHERE t.id = ANY(%s)", [list({row.workspace_id for row in found.values()})])
    by_id = {space.id: space for space in spaces}
    for row in found.values():
        row.workspace = by_id[row.workspace_id]  # one object for all: a join would make one for each
    return found


def _wakes(now: datetime, limit: int, only: int | None = None) -> int:
    due = Incident.objects.filter(wake_at__lte=now).order_by("wake_at").values_list("id", flat=True)
    return len(lifecycle.wakes(list(due[:limit]) if only is None else [only], now))


def _auto_resolves(now: datetime, limit: int, only: int | None = None) -> int:
    due = Incident.objects.filter(auto_resolve_at__lte=now).order_by("auto_resolve_at").values_list("id", flat=True)
    return len(lifecycle.timeouts(list(due[:limit]) if only is None else [only], now))


# ---- timeline entries ----------------------------------------------------------------------------------------------------------------


@transaction.atomic
def _timeline(now: datetime, limit: int, only: int | None = None) -> int:
    ids = set() if only is None else {only}
    if only is None:
        with planned_once() as cursor:
            cursor.execute("SELECT incident_id FROM escalation_timelineentry WHERE handled_at IS NULL ORDER BY id LIMIT %s", [limit])
            ids = {pk for (pk,) in cursor.fetchall()}
    if not ids:
        return 0
    incidents = _locked_incidents(ids)
    if not incidents:
        return 0
    entries = read(
        TimelineEntry,
        "FROM escalation_timelineentry t WHERE t.handled_at IS NULL AND t.incident_id = ANY(%s) ORDER BY t.id",
        [list(incidents)],
    )
    batch = Batch(now)
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
                    live = _new_live(incident, rules.freeze(rules.people_body("assigned", people), now), Run.Kind.ASSIGN, now, "manual")
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
                    batch.notices += _tell_people(batch, incident, people, now)
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
    _advance(lives + opened, batch)
    batch.notices += _status_notices(told, batch)
    batch.handled = [entry.id for entry in entries]
    _write(batch)
    return len(entries)


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
        live = _new_live(incident, follows, Run.Kind.RULE, now, "manual")
    live.state = plan.escalate_to(follows.timing, live.state, layer, now)
    return live


def _last_runs(incident_ids: Sequence[int], incidents: dict[int, Incident]) -> dict[int, Live]:
    """The run of each locked incident that lives, or else the last that did (a wake or an unacknowledgement takes it up again)."""
    if not incident_ids:
        return {}
    latest = {run.incident_id: run for run in Run.objects.select_for_update().filter(incident_id__in=incident_ids).order_by("id")}
    known = rules.frozen(run.snapshot_id for run in latest.values())
    return {pk: _live(run, incidents[pk], known[run.snapshot_id]) for pk, run in latest.items()}


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
            lives.append(_new_live(incident, follows, Run.Kind.RULE, now, why))
    return lives + _catch_all(nobody, gettext_noop("no escalation rule of the workspace matches"), batch)


def _catch_all(incidents: Sequence[Incident], why: str, batch: Batch) -> list[Live]:
    """Runs of the catch-all; where nobody is named either, the alarm is raised: the last thing that is left to do."""
    if not incidents:
        return []
    bodies = rules.catch_all_bodies(sorted({incident.workspace_id for incident in incidents}))
    lives = []
    for incident in incidents:
        body = bodies.get(incident.workspace_id)
        if body is None:
            batch.note(
                incident, "i_layer", {"result": "nobody", "reason": why, "text": gettext_noop("nobody is named as catch-all either")}
            )
            text = _("Incident #%(num)s could not be told to anybody: %(why)s, and no catch-all is named.")
            batch.alarms.append(text % {"num": incident.num, "why": targets.in_words(why)})
            continue
        batch.note(incident, "i_layer", {"result": "catch_all", "reason": why})
        lives.append(_new_live(incident, rules.freeze(body, batch.now), Run.Kind.CATCH_ALL, batch.now, "first"))
    return lives


# ---- runs ----------------------------------------------------------------------------------------------------------------------------


@transaction.atomic
def _runs(now: datetime, limit: int, only: int | None = None) -> int:
    with planned_once() as cursor:
        which = "" if only is None else "AND incident_id = %s"
        cursor.execute(
            f"SELECT incident_id, next_at FROM escalation_run WHERE ended_at IS NULL AND next_at <= %s {which} ORDER BY next_at LIMIT %s",
            [now, limit] if only is None else [now, only, limit],
        )
        due = cursor.fetchall()
    if not due or _backlog_first(due[0][1], now):
        return 0
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
        lives.append(_live(run, incident, known[run.snapshot_id]))
    _advance(lives, batch)
    _write(batch)
    return len(lives)


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
    rules.forget()


def _advance(lives: list[Live], batch: Batch) -> None:
    """Let every run take its step; a layer that reaches nobody gives way to the next at once, a rule without a next one to the catch-all."""
    now, turn = batch.now, list(lives)
    while turn:
        _number([live for live in turn if live.run.id is None])
        for live in turn:
            if live.step is None:
                live.step = plan.step(live.follows.timing, live.state, _facts(live.incident), now)
                if live.step.outage is not None:
                    down_from, down_to = live.step.outage
                    batch.note(live.incident, "i_outage", {"from": int(down_from.timestamp()), "to": int(down_to.timestamp())})
        again: list[Live] = []
        batch.known.look([live.incident.id for live in turn if live.step and live.step.page])
        for group in _groups([live for live in turn if live.step and live.step.page]).values():
            first = group[0]
            page = _page(first)
            audience = targets.resolve(
                first.follows.layer(page.layer),
                severity=first.incident.severity,
                event=page.event,
                told=first.told.until(page.layer),
                now=now,
            )
            # A layer whose groups were told and want no loops is not one that reaches nobody.
            content = not audience.to and page.fire == "refire" and _reaches(first, page.layer, now)
            for live in group:
                page = _page(live)
                if content:
                    assert live.step is not None
                    live.step = replace(live.step, page=None)
                    continue
                if not audience.to:
                    batch.note(live.incident, "i_layer", {"result": "unreachable", "layer_idx": page.layer, "reason": audience.reason()})
                    assert live.step is not None
                    live.step = plan.unreachable(live.follows.timing, live.step.state, now)
                    again.append(live)
                    continue
                _page_now(live, page, audience, batch)
        ended: list[Incident] = []
        for live in turn:
            if live in again:
                continue
            assert live.step is not None
            live.state = live.step.state
            batch.saved[id(live)] = live
            if live.step.end is not None:
                live.end = _end_reason(live)
                if live.step.end == "exhausted" and live.run.kind == Run.Kind.CATCH_ALL:
                    batch.alarms.append(_("Incident #%(num)s: nobody answered, the catch-all included.") % {"num": live.incident.num})
                elif live.step.end == "exhausted" and (live.run.kind == Run.Kind.RULE or not live.step.state.sent):
                    ended.append(live.incident)
        again = [live for live in again if not _gave_up(live, ended, batch)]
        turn = again + _catch_all(ended, gettext_noop("the last layer has passed without an answer"), batch)


def _reaches(live: Live, layer: int, now: datetime) -> bool:
    """Whether a layer has somebody to tell at its start."""
    body, severity = live.follows.layer(layer), live.incident.severity
    firsts = (events.TRIGGERED, events.ESCALATED)
    return any(targets.resolve(body, severity=severity, event=event, told=live.told.until(layer), now=now).to for event in firsts)


def _number(lives: Sequence[Live]) -> None:
    """New runs get their ids before they are written, because what they post names them."""
    if lives:
        with planned_once() as cursor:
            cursor.execute("SELECT nextval(pg_get_serial_sequence('escalation_run', 'id')) FROM generate_series(1, %s)", [len(lives)])
            for live, (pk,) in zip(lives, cursor.fetchall(), strict=True):
                live.run.id = pk


def _gave_up(live: Live, ended: list[Incident], batch: Batch) -> bool:
    """Whether a run whose layer reaches nobody has no next layer either."""
    assert live.step is not None
    if live.step.page is not None:
        return False
    live.state, live.end = live.step.state, gettext_noop("nobody could be reached")
    batch.saved[id(live)] = live
    if live.run.kind == Run.Kind.CATCH_ALL:
        batch.alarms.append(_("Incident #%(num)s could not be told to anybody, the catch-all included.") % {"num": live.incident.num})
    else:
        ended.append(live.incident)
    return True


def _page(live: Live) -> plan.Page:
    assert live.step is not None and live.step.page is not None
    return live.step.page


def _groups(lives: Sequence[Live]) -> dict[tuple[Any, ...], list[Live]]:
    """Runs that page the same people by the same channels: their targets are resolved once."""
    groups: dict[tuple[Any, ...], list[Live]] = defaultdict(list)
    for live in lives:
        page = _page(live)
        told = live.told.until(page.layer) if live.follows.layer(page.layer)["supervisors"] else ()
        groups[live.follows.id, page.layer, live.incident.severity, page.event, told].append(live)
    return groups


def _page_now(live: Live, page: plan.Page, audience: targets.Audience, batch: Batch) -> None:
    layer = live.follows.layer(page.layer)
    live.incident.layer_idx = page.layer
    context = batch.known.build(live, page.event, page.layer)
    batch.notices.append(
        outbox.Notice(
            event=page.event,
            severity=live.incident.severity,
            context=context,
            to=audience.to,
            is_page=True,
            topic=live.incident.id,
            run=live.run.id,
            layer_idx=page.layer,
            survives_ack=bool(layer["force_escalate"]),
            template_set=live.follows.body["template_set"],
            rank={"triggered": FIRST, "escalated": ESCALATION}.get(page.event, LOOP),
        )
    )
    live.told = live.told.and_now(page.layer, audience.members)
    if audience.missing:
        batch.note(
            live.incident,
            "i_layer",
            {"result": "partly", "layer_idx": page.layer, "missing": [item.plain() for item in audience.missing[:50]]},
        )
    if page.repeat == 0 and page.why != "severity":
        # Who has it now: the rule's layer, and the people in it.
        if live.run.kind != Run.Kind.ASSIGN:
            live.incident.rule_id, live.incident.assigned_type = (
                live.follows.rule_id,
                "escalate" if page.layer else live.incident.assigned_type or "assign",
            )
            detail = {
                "type": live.incident.assigned_type,
                "why": page.why,
                "layer_idx": page.layer,
                "escalate_rule_id": hex_id(live.incident.created_at, live.follows.rule_id) if live.follows.rule_id else "",
                "escalate_rule_name": live.follows.body["name"],
                "person_ids": list(audience.members),
            }
            batch.note(live.incident, "i_layer" if live.follows.rule_id is None else "i_assign", detail)
        batch.responders += [(live.incident.id, member) for member in audience.members]
        batch.touched[live.incident.id] = live.incident


def _end_reason(live: Live) -> str:
    assert live.step is not None
    if live.step.end == "exhausted":
        assigned = live.run.kind == Run.Kind.ASSIGN
        return gettext_noop("assigned directly: no further escalation") if assigned else gettext_noop("the last layer has passed")
    return str(live.step.end)


def _facts(incident: Incident) -> plan.Facts:
    return plan.Facts(incident.progress, incident.snoozed_until, incident.status == "Ok")


# ---- pages that reached nobody -------------------------------------------------------------------------------------------------------


@transaction.atomic
def _exhausted(now: datetime, limit: int, only: int | None = None) -> int:
    pages = Notification.objects.filter(exhausted_at__isnull=False, exhausted_handled_at=None)
    if only is not None:
        pages = pages.filter(topic=only)
    due = list(pages.order_by("exhausted_at").values_list("id", "topic", "run", "layer_idx")[:limit])
    if not due:
        return 0
    incidents = _locked_incidents(topic for _id, topic, _run, _layer in due if topic is not None)
    mine = [row for row in due if row[1] in incidents or row[1] is None]
    last = _last_runs([topic for _id, topic, _run, _layer in mine if topic is not None], incidents)
    batch, lives, nobody = Batch(now), [], []
    seen: set[int] = set()
    for _pk, topic, run_id, layer in mine:
        if topic is None:
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
            live.step = plan.failed_later(live.follows.timing, live.state, layer, _facts(live.incident), now)
            lives.append(live)
    _advance(lives + _catch_all(nobody, gettext_noop("the people it was assigned to could not be reached"), batch), batch)
    _write(batch)
    Notification.objects.filter(id__in=[row[0] for row in mine]).update(exhausted_handled_at=now)
    return len(mine)


# In the order of a pass, and of the columns of `_LOOK`.
_KINDS: dict[str, Callable[..., int]] = {
    "wakes": _wakes,
    "auto_resolves": _auto_resolves,
    "timeline": _timeline,
    "runs": _runs,
    "exhausted": _exhausted,
}


# ---- notices that are no pages -------------------------------------------------------------------------------------------------------


def _status_notices(told: Sequence[tuple[Incident, str, TimelineEntry]], batch: Batch) -> list[outbox.Notice]:
    """Acknowledged and closed go to the group channels that were told and chose them, not to persons."""
    ids = sorted({incident.id for incident, _event, _entry in told})
    groups: dict[int, set[tuple[int, str]]] = defaultdict(set)
    for topic, channel, target in (
        Delivery.objects.filter(topic__in=ids, member=None, is_page=True)
        .exclude(state__in=(Delivery.State.CANCELLED, Delivery.State.FAILED), attempts=0)  # it was never told
        .values_list("topic", "channel_id", "address__target")
        .distinct()
        if ids
        else ()
    ):
        groups[int(topic or 0)].add((channel, target))
    if not groups:
        return []
    followed: dict[int, list[int]] = defaultdict(list)
    for incident_id, snapshot_id in Run.objects.filter(incident_id__in=groups).order_by("id").values_list("incident_id", "snapshot_id"):
        followed[incident_id].append(snapshot_id)
    known = rules.frozen(pk for pks in followed.values() for pk in pks)
    lives = {
        incident.id: Live(Run(), incident, known[followed[incident.id][-1]], plan.State(0, incident.created_at, 0, None))
        for incident, _event, _entry in told
        if incident.id in followed
    }
    batch.known.look(list(lives))
    people = Member.objects.in_bulk({entry.actor_id for _incident, _event, entry in told if entry.actor_id is not None})
    notices = []
    for incident, event, entry in told:
        if incident.id not in lives:
            continue
        uses = {use["channel"]: use for pk in followed[incident.id] for layer in known[pk].body["layers"] for use in layer["channels"]}
        to = tuple(
            outbox.To(channel_id=channel, target=target)
            for channel, target in sorted(groups[incident.id])
            if channel in uses and targets.wants(uses[channel], incident.severity, event)
        )
        if not to:
            continue
        live = lives[incident.id]
        context = batch.known.build(live, event, incident.layer_idx or 0)
        if (actor := people.get(entry.actor_id or 0)) is not None:
            who = {"id": actor.id, "name": actor.name, "email": actor.email}
            context["acknowledger" if event == events.ACKNOWLEDGED else "closer"] = who
        notices.append(
            outbox.Notice(
                event=event, severity=incident.severity, context=context, to=to, is_page=False, topic=incident.id, run=None,
                layer_idx=incident.layer_idx, survives_ack=True, template_set=live.follows.body["template_set"], rank=STATUS,
            )
        )  # fmt: skip
    return notices


def _tell_people(batch: Batch, incident: Incident, people: list[int], now: datetime) -> list[outbox.Notice]:
    """A page to responders who were added, by their own preferences; the rule goes on for the others."""
    body = rules.people_body("added", people)
    audience = targets.resolve(body["layers"][0], severity=incident.severity, event=events.TRIGGERED, told=(), now=now)
    if audience.missing:
        batch.note(
            incident,
            "i_layer",
            {
                "result": "partly" if audience.to else "unreachable",
                "reason": audience.reason(),
                "missing": [item.plain() for item in audience.missing[:50]],
            },
        )
    if not audience.to:
        return []
    live = Live(Run(), incident, rules.freeze(body, now), plan.begin(plan.Rule.from_json(body), now))
    batch.known.look([incident.id])
    context = batch.known.build(live, events.TRIGGERED, incident.layer_idx or 0)
    return [
        outbox.Notice(
            event=events.TRIGGERED, severity=incident.severity, context=context, to=audience.to, is_page=True, topic=incident.id, run=None,
            layer_idx=incident.layer_idx, survives_ack=False, template_set=None, rank=FIRST,
        )
    ]  # fmt: skip


# ---- rows to plain values and back ---------------------------------------------------------------------------------------------------


class _Contexts:
    """What texts may say about the incidents of a batch, read in two queries for all that are looked up together."""

    def __init__(self) -> None:
        self.alerts: dict[int, list[Alert]] = {}
        self.responders: dict[int, list[Responder]] = {}

    def look(self, incident_ids: Iterable[int]) -> None:
        """Reads what is not known yet of these incidents."""
        ids = sorted(set(incident_ids) - self.alerts.keys())
        if not ids:
            return
        self.alerts |= {pk: [] for pk in ids}
        self.responders |= {pk: [] for pk in ids}
        # The first twenty of each; an incident with thousands must not be read whole.
        first = """FROM unnest(%s::bigint[]) AS i (id) CROSS JOIN LATERAL
            (SELECT * FROM escalation_alert WHERE incident_id = i.id ORDER BY id LIMIT %s) AS t ORDER BY t.id"""
        for alert in read(Alert, first, [ids, events.MAX_ALERTS]):
            self.alerts[alert.incident_id or 0].append(alert)
        rows = read(Responder, "FROM escalation_responder t WHERE t.incident_id = ANY(%s) ORDER BY t.id LIMIT 5000", [ids])
        people = Member.objects.in_bulk({row.member_id for row in rows}) if rows else {}
        for row in rows:
            row.member = people[row.member_id]
            self.responders[row.incident_id].append(row)

    def source(self, incident_id: int) -> str:
        """The integration of the incident's first alert; "" for one that was opened by hand."""
        alerts = self.alerts[incident_id]
        return str(alerts[0].integration_id) if alerts else ""

    def build(self, live: Live, event: str, layer: int) -> dict[str, Any]:
        incident = live.incident
        alerts = self.alerts.get(incident.id, [])
        wire = hex_id(incident.created_at, incident.id)
        return dict(
            events.build(
                event,
                id=wire,
                num=incident.num,
                title=incident.title,
                description=incident.description,
                severity=incident.severity,
                status=incident.status,
                progress=incident.progress,
                detail_url=f"{settings.BASE_URL}/i/{wire}/",
                start_time=incident.start_time,
                last_time=incident.last_time,
                end_time=incident.end_time,
                ack_time=incident.ack_time,
                close_time=incident.close_time,
                snoozed_before=incident.snoozed_until,
                assigned_to={
                    "rule_name": live.follows.body["name"] if live.follows.rule_id else "",
                    "layer_idx": layer,
                    "type": incident.assigned_type or "assign",
                },
                responders=[
                    {
                        "id": row.member_id,
                        "name": row.member.name,
                        "email": row.member.email,
                        "assigned_at": row.assigned_at,
                        "acknowledged_at": row.acknowledged_at,
                    }
                    for row in self.responders.get(incident.id, ())
                ],
                workspace={"id": incident.workspace_id, "name": incident.workspace.name},
                labels=incident.labels,
                alerts=[
                    {
                        "title": alert.title,
                        "description": alert.description,
                        "severity": alert.severity,
                        "status": alert.status,
                        "start_time": alert.start_time,
                        "last_time": alert.last_time,
                        "end_time": alert.end_time,
                        "labels": alert.labels,
                    }
                    for alert in alerts
                ],
                alert_count=incident.alert_count,
                layer_idx=layer,
                impact=incident.impact,
                root_cause=incident.root_cause,
                resolution=incident.resolution,
                images=alerts[0].images if alerts else (),
                links=[{"title": link.get("title", ""), "url": link["href"]} for link in alerts[0].links] if alerts else (),
            )
        )


def _new_live(incident: Incident, follows: rules.Frozen, kind: str, now: datetime, why: plan.Why) -> Live:
    run = Run(incident=incident, snapshot_id=follows.id, kind=kind, started_at=now)
    return Live(run, incident, follows, plan.begin(follows.timing, now, why), new=True)


def _live(run: Run, incident: Incident, follows: rules.Frozen) -> Live:
    return Live(run, incident, follows, _state(run), targets.Told.of(run.state.get("told")))


def _state(run: Run) -> plan.State:
    """The plan's state as the row keeps it."""
    return plan.State.from_json(run.state, run.next_at)


def _packed(state: plan.State, told: targets.Told) -> dict[str, Any]:
    return state.to_json() | {"told": told.plain()}


# One JSON value for a whole batch: half the time of arrays, a tenth of what the ORM takes to build a row's CASE and VALUES.
_SAVE_RUNS = """
UPDATE escalation_run r SET state = w.state, layer_idx = w.layer_idx, next_at = w.next_at, ended_at = w.ended_at, end_reason = w.end_reason
FROM jsonb_to_recordset(%s::jsonb)
  AS w(id bigint, state jsonb, layer_idx smallint, next_at timestamptz, ended_at timestamptz, end_reason text) WHERE r.id = w.id
"""
_REST = """
WITH runs AS (
  INSERT INTO escalation_run (id, incident_id, snapshot_id, kind, state, layer_idx, next_at, started_at, ended_at, end_reason)
  SELECT id, incident, snapshot, kind, state, layer_idx, next_at, started_at, ended_at, end_reason FROM jsonb_to_recordset(%(runs)s::jsonb)
    AS w(id bigint, incident bigint, snapshot bigint, kind text, state jsonb, layer_idx smallint, next_at timestamptz, started_at timestamptz,
      ended_at timestamptz, end_reason text) ORDER BY id
), entries AS (
  INSERT INTO escalation_timelineentry (incident_id, type, via, detail, created_at, handled_at)
  SELECT w.incident, w.type, 'system', w.detail, %(now)s, %(now)s FROM jsonb_to_recordset(%(entries)s::jsonb)
    AS w(n int, incident bigint, type text, detail jsonb) ORDER BY n
), incidents AS (
  UPDATE escalation_incident i SET rule_id = w.rule, layer_idx = w.layer_idx, assigned_type = w.assigned_type, updated_at = %(now)s
  FROM jsonb_to_recordset(%(incidents)s::jsonb) AS w(id bigint, rule bigint, layer_idx smallint, assigned_type text) WHERE i.id = w.id
) UPDATE escalation_timelineentry SET handled_at = %(now)s WHERE id = ANY(%(handled)s::bigint[])
"""


def _write(batch: Batch) -> None:
    """Everything a pass has decided, set-based. Runs that end are written before those that begin: an incident has one live run."""
    now = batch.now
    _number([live for live in batch.saved.values() if live.run.id is None])
    old: list[dict[str, Any]] = []
    new: list[dict[str, Any]] = []
    for live in batch.saved.values():
        run, over = live.run, bool(live.end) or live.state.due is None
        row = {
            "id": run.id, "state": _packed(live.state, live.told), "layer_idx": live.state.layer,
            "next_at": None if over or live.state.due is None else live.state.due.isoformat(),
            "ended_at": now.isoformat() if over else None, "end_reason": (live.end or "done")[:200] if over else "",
        }  # fmt: skip
        if live.new:
            row |= {
                "incident": live.incident.id, "snapshot": live.follows.id, "kind": run.kind, "started_at": run.started_at.isoformat(),
            }  # fmt: skip
        (new if live.new else old).append(row)
    entries = [{"n": n, "incident": e.incident_id, "type": e.type, "detail": e.detail} for n, e in enumerate(batch.entries)]
    touched = [{"id": i.id, "rule": i.rule_id, "layer_idx": i.layer_idx, "assigned_type": i.assigned_type} for i in batch.touched.values()]
    with planned_once() as cursor:
        if old:
            cursor.execute(_SAVE_RUNS, [json.dumps(old)])
        cursor.execute(
            _REST,
            {
                "now": now, "runs": json.dumps(new), "entries": json.dumps(entries), "incidents": json.dumps(touched), "handled": batch.handled,
            },
        )  # fmt: skip
    if batch.responders:
        Responder.objects.bulk_create(
            [Responder(incident_id=incident, member_id=member, assigned_at=now) for incident, member in sorted(set(batch.responders))],
            ignore_conflicts=True,
        )
    if batch.notices:
        outbox.post(batch.notices, now)
    # Last: the drain locks addresses before it raises an alarm of its own.
    for text in batch.alarms:
        alarm(text, now)
