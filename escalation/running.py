"""A run in a pass of the engine: what its step decides, whom its pages tell, what happens when nobody can be told, and the one write of it all."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from channels_app import outbox
from channels_app.outbox.statements import planned_once
from escalation import plan, rules, targets
from escalation.contexts import Contexts, ahead
from escalation.ids import hex_id
from escalation.models import Incident, Responder, Run, TimelineEntry
from mapping.models import Installation

# How urgent among pages of one severity (outbox.Notice.rank).
FIRST, ESCALATION, LOOP, STATUS = 0, 1, 2, 3


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
    known: Contexts = field(default_factory=Contexts)
    numbers: list[int] = field(default_factory=list)  # ids for new runs, drawn already

    def note(self, incident: Incident, kind: str, detail: dict[str, Any]) -> None:
        """A line of the timeline that needs no further work."""
        self.entries.append(
            TimelineEntry(incident=incident, type=kind, via="system", detail=detail, created_at=self.now, handled_at=self.now)
        )


def alarm(text: str, now: datetime) -> None:
    """What `/readyz` and the console raise until somebody has looked."""
    Installation.get()
    Installation.objects.filter(id=1).update(alarm=text[:2000], alarm_at=now)


def advance(lives: list[Live], batch: Batch) -> None:
    """Let every run take its step; a layer that reaches nobody gives way to the next at once, a rule without a next one to the catch-all."""
    now, turn = batch.now, list(lives)
    while turn:
        _number([live for live in turn if live.run.id is None], batch.numbers)
        for live in turn:
            if live.step is None:
                live.step = plan.step(live.follows.timing, live.state, facts_of(live.incident), now)
                if live.step.outage is not None:
                    due, done = live.step.outage
                    batch.note(live.incident, "i_outage", {"from": int(due.timestamp()), "to": int(done.timestamp())})
        again: list[Live] = []
        batch.known.look([live.incident.id for live in turn if live.step and live.step.page])
        for group in _groups([live for live in turn if live.step and live.step.page]).values():
            first = group[0]
            page = _page(first)
            audience = targets.resolve(
                first.follows.layer(page.layer),
                severity=first.incident.severity,
                events=page.chosen,
                told=first.told.until(page.layer),
                now=now,
            )
            # A layer whose groups were told and want no loops is not one that reaches nobody.
            content = not audience.to and page.fire == "refire" and _reaches(first, page.layer, now)
            by_mail = batch.known.mails(audience.to)
            if by_mail:
                batch.known.recall([live.incident.id for live in group if _page(live).why != "first" or _page(live).repeat])
            for live in group:
                page = _page(live)
                if content:
                    assert live.step is not None
                    live.step = replace(live.step, page=None)
                    continue
                if not audience.to:
                    batch.note(live.incident, "i_layer", {"result": "unreachable", "layer_idx": page.layer, "reason": audience.reason()})
                    assert live.step is not None
                    live.step = plan.unreachable(live.follows.timing, live.step.state, facts_of(live.incident), now)
                    if live.step.page is not None:
                        again.append(live)
                    continue
                _page_now(live, page, audience, batch, by_mail=by_mail)
        silent: dict[str, list[Incident]] = defaultdict(list)
        for live in turn:
            if live in again:
                continue
            assert live.step is not None
            live.state = live.step.state
            batch.saved[id(live)] = live
            if live.step.end is not None:
                live.end = _end_reason(live)
                if live.step.end == "unreachable":
                    if live.run.kind == Run.Kind.CATCH_ALL:
                        text = _("Incident #%(num)s could not be told to anybody, the catch-all included.")
                        batch.alarms.append(text % {"num": live.incident.num})
                    elif live.run.kind == Run.Kind.ASSIGN:
                        silent[gettext_noop("the people it was assigned to could not be reached")].append(live.incident)
                    else:
                        silent[gettext_noop("the last layer could reach nobody")].append(live.incident)
                elif live.step.end == "exhausted":
                    if live.run.kind == Run.Kind.CATCH_ALL:
                        batch.alarms.append(_("Incident #%(num)s: nobody answered, the catch-all included.") % {"num": live.incident.num})
                    elif live.run.kind == Run.Kind.RULE:  # assigned directly: nobody comes after them
                        silent[gettext_noop("the last layer has passed without an answer")].append(live.incident)
        turn = again + [live for why, incidents in silent.items() for live in catch_all(incidents, why, batch)]


def _reaches(live: Live, layer: int, now: datetime) -> bool:
    """Whether a layer has somebody to tell at its start."""
    chosen = plan.Page(layer, "fire", 0, "loop").chosen
    body, severity = live.follows.layer(layer), live.incident.severity
    return bool(targets.resolve(body, severity=severity, events=chosen, told=live.told.until(layer), now=now).to)


def _number(lives: Sequence[Live], drawn: list[int]) -> None:
    """New runs get their ids before they are written, because what they post names them."""
    if len(drawn) < len(lives):
        with planned_once() as cursor:
            more = "SELECT nextval(pg_get_serial_sequence('escalation_run', 'id')) FROM generate_series(1, %s)"
            cursor.execute(more, [len(lives) - len(drawn)])
            drawn += [pk for (pk,) in cursor.fetchall()]
    for live in lives:
        live.run.id = drawn.pop(0)


def catch_all(incidents: Sequence[Incident], why: str, batch: Batch) -> list[Live]:
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
        lives.append(new_live(incident, rules.freeze(body, batch.now), Run.Kind.CATCH_ALL, batch.now, "first"))
    return lives


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


def _page_now(live: Live, page: plan.Page, audience: targets.Audience, batch: Batch, *, by_mail: bool) -> None:
    assert live.step is not None
    layer = live.follows.layer(page.layer)
    live.incident.layer_idx = page.layer
    # Assigned directly: nobody comes after them.
    coming = (
        ahead(live.follows, live.step.state, facts_of(live.incident), batch.now) if by_mail and live.run.kind != Run.Kind.ASSIGN else ()
    )
    context = batch.known.build(live.incident, live.follows, page.event, page.layer, coming)
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
    if live.step.end == "unreachable":
        return gettext_noop("nobody could be reached")
    if live.step.end == "exhausted":
        assigned = live.run.kind == Run.Kind.ASSIGN
        return gettext_noop("assigned directly: no further escalation") if assigned else gettext_noop("the last layer has passed")
    return str(live.step.end)


def facts_of(incident: Incident) -> plan.Facts:
    return plan.Facts(incident.progress, incident.snoozed_until, incident.status == "Ok")


def new_live(incident: Incident, follows: rules.Frozen, kind: str, now: datetime, why: plan.Why) -> Live:
    run = Run(incident=incident, snapshot_id=follows.id, kind=kind, started_at=now)
    return Live(run, incident, follows, plan.begin(follows.timing, now, why), new=True)


def live_of(run: Run, incident: Incident, follows: rules.Frozen) -> Live:
    return Live(run, incident, follows, state_of(run), targets.Told.of(run.state.get("told")))


def state_of(run: Run) -> plan.State:
    """The plan's state as the row keeps it."""
    return plan.State.from_json(run.state, run.next_at)


def packed(state: plan.State, told: targets.Told) -> dict[str, Any]:
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


def write(batch: Batch) -> datetime | None:
    """Everything a pass has decided, set-based; the instant at which the first of its runs is due again.

    Runs that end are written before those that begin: an incident has one live run.
    """
    now, first = batch.now, None
    _number([live for live in batch.saved.values() if live.run.id is None], batch.numbers)
    old: list[dict[str, Any]] = []
    new: list[dict[str, Any]] = []
    for live in batch.saved.values():
        run, over = live.run, bool(live.end) or live.state.due is None
        row = {
            "id": run.id, "state": packed(live.state, live.told), "layer_idx": live.state.layer,
            "next_at": None if over or live.state.due is None else live.state.due.isoformat(),
            "ended_at": now.isoformat() if over else None, "end_reason": (live.end or "done")[:200] if over else "",
        }  # fmt: skip
        if live.new:
            row |= {
                "incident": live.incident.id, "snapshot": live.follows.id, "kind": run.kind, "started_at": run.started_at.isoformat(),
            }  # fmt: skip
        if not over and live.state.due is not None:
            first = live.state.due if first is None else min(first, live.state.due)
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
    return first
