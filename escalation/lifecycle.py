"""The state machine of an incident: one table of moves, one function that makes them, and a verb for each thing a person can say.

    Triggered --acknowledge, snooze--> Processing --close, recover, timeout--> Closed --reopen--> Triggered
    Processing --last unacknowledge, wake, escalate, assign to people who have not acknowledged--> Triggered

Always true: whoever is recorded as having acknowledged, and a snooze, exist only while an incident is Processing; a closed incident
has no open alert, no live run and no queued page. So what brings an incident back to Triggered forgets both, and the same person
acknowledges anew. `ack_time` is the first acknowledgement since the incident began or was reopened, unless it was taken back.

Each move locks the incident (then runs, then deliveries: the order of locks everywhere), looks again, writes the incident, its timeline
entry and what follows at once in one transaction, and leaves the rest to the engine as an entry that is not handled yet.

What an entry's `detail` holds, and what the engine does about one that is due (`handled_at` NULL). "live run" = the Run with `ended_at` NULL:

    i_new         {title, severity}                       due unless people were named: match a rule, open a Run
    i_assign      {type: assign|reassign, person_ids, kinds?, template_set?}   due: open a Run of kind ASSIGN for these people (the old run has
                                                          ended), which tells nobody while all of them have acknowledged but is there for a
                                                          wake to take up, instead of the rule; `kinds` of channels instead of preferences
    i_a_rspd      {person_ids}                            due: page these people once; the live run goes on
    i_ack         {progress?: note, as?: "…"}             due when it was Triggered before: group channels that were told get "acknowledged"
    i_unack       {last: bool}                            due when last: restart the current layer (plan.restart_layer, "unacknowledged")
    i_snooze      {minutes, until: Unix s, acknowledged}  due when `acknowledged` (it was Triggered before): as i_ack; pausing itself is plan.step's
    i_wake        {snoozed_before: Unix s}                due: restart the current layer ("wake"), also of a run that has ended
    i_escalate    {layer_idx, snapshot_id|rule_id}        due: plan.escalate_to that layer; `snapshot_id` is the frozen rule that worked last (end a live run
                                                          of another kind, go on with this snapshot), `rule_id` a rule that was named: freeze it anew
    i_rslv        {from: event|timeout|<via>}             due: group channels that were told get "closed"; run and pages have ended already
    i_reopen      {reason, person_ids}                    due: a Run for these people (ASSIGN), or as i_new ("reopen") when nobody had it directly
    i_r_severity  {from, to}                              due when it rose and nobody has it in hand: plan.repage the live run
    i_r_title i_r_desc i_r_impact i_r_rc i_r_rsltn {from, to};  i_comm {comment}        never due
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Case, F, Value, When
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from channels_app import outbox
from escalation.ids import num
from escalation.models import EscalationRule, Incident, Responder, Run, TimelineEntry, Workspace
from escalation.models.alert import Alert
from escalation.sources import clean
from mapping.clock import wake as wake_resident
from mapping.models import Member
from mapping.visibility import Status

TRIGGERED, PROCESSING, CLOSED = "Triggered", "Processing", "Closed"
OPEN = frozenset({TRIGGERED, PROCESSING})
ANY = OPEN | {CLOSED}
RANK = {"Ok": 0, "Info": 1, "Warning": 2, "Critical": 3}

MAX_TITLE = 512
MAX_TEXT = 4096
MAX_PEOPLE = 100
LONGEST_SNOOZE = timedelta(hours=24)


class Refused(Exception):
    """A move that cannot be made. `code`: not_found | closed | not_closed | not_acknowledged | not_snoozed | no_rule | invalid; `field` names the
    argument at fault, `incident_id` the incident of which it is true (None: of any)."""

    def __init__(self, code: str, message: str, field: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.incident_id: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """From where to where, and what goes with it."""

    entry: str  # the timeline's type
    starts: frozenset[str]  # progress it can be made from
    to: str = ""  # progress afterwards; "" = as before
    again: bool = False  # made already: answered as done, without a second entry
    run_ends: str = ""  # why the live run ends
    cancels: str = ""  # why queued pages are cancelled
    cancels_forced: bool = True  # those of layers that page in spite of an acknowledgement too


MOVES: dict[str, Move] = {
    "acknowledge": Move("i_ack", OPEN, PROCESSING, cancels=gettext_noop("acknowledged"), cancels_forced=False),
    "snooze": Move("i_snooze", OPEN, PROCESSING, cancels=gettext_noop("acknowledged")),
    "unacknowledge": Move("i_unack", frozenset({PROCESSING}), TRIGGERED),
    "wake": Move("i_wake", frozenset({PROCESSING}), TRIGGERED),
    "assign": Move("i_assign", OPEN, TRIGGERED, run_ends=gettext_noop("assigned"), cancels=gettext_noop("superseded")),
    "reassign": Move("i_assign", OPEN, TRIGGERED, run_ends=gettext_noop("reassigned"), cancels=gettext_noop("superseded")),
    "escalate": Move("i_escalate", OPEN, TRIGGERED),
    "add_responder": Move("i_a_rspd", OPEN),
    "comment": Move("i_comm", ANY),
    "edit": Move("", ANY),
    "close": Move("i_rslv", OPEN, CLOSED, again=True, run_ends=gettext_noop("closed"), cancels=gettext_noop("closed")),
    "recover": Move("i_rslv", OPEN, CLOSED, again=True, run_ends=gettext_noop("closed"), cancels=gettext_noop("closed")),
    "timeout": Move("i_rslv", OPEN, CLOSED, again=True, run_ends=gettext_noop("closed"), cancels=gettext_noop("closed")),
    "reopen": Move("i_reopen", frozenset({CLOSED}), TRIGGERED, run_ends=gettext_noop("reopened")),
}


@dataclass(slots=True)
class _Change:
    """What a verb found under the lock: the fields to write and the entry's detail."""

    detail: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)
    stays: bool = False  # the progress stays as it is, and so does what would go with its change
    holds: bool = False  # the actor is recorded among those who acknowledged
    theirs: bool = False  # only the actor's queued pages are cancelled
    due: bool = True
    entries: list[tuple[str, dict[str, Any], bool]] | None = None  # instead of the one entry: type, detail, due


Look = Callable[[Incident], _Change | None]


# --- What people say -------------------------------------------------------------------------------------------------------


def acknowledge(incident_id: int, *, actor: Member | None, via: str, now: datetime, note: str = "", by: str = "") -> Incident:
    """`actor` has it in hand: Processing. Each responder is recorded once; a second time changes nothing. `by`: words for an actor without an account."""
    return acknowledge_all([incident_id], actor=actor, via=via, now=now, note=note, by=by)[0]


def acknowledge_all(
    incident_ids: Collection[int], *, actor: Member | None, via: str, now: datetime, note: str = "", by: str = ""
) -> list[Incident]:
    """`acknowledge` of all these or of none (see `_all`)."""
    said = {name: value for name, value in (("progress", _text(note, "note")), ("as", by)) if value}

    def look(incident: Incident) -> _Change | None:
        held = incident.progress == PROCESSING
        if held and (actor is None or _acknowledgers(incident).filter(member=actor).exists()):
            return None
        # Where somebody had it already, what is still queued is for those who were asked to help: it ends for whoever answers.
        return _Change(said, _first_ack(incident, now), stays=held, due=not held, holds=True, theirs=held)

    return _all("acknowledge", incident_ids, actor, via, now, look)


def unacknowledge(incident_id: int, *, actor: Member | None, via: str, now: datetime, note: str = "") -> Incident:
    """Takes `actor`'s acknowledgement back; when it was the last, the incident is Triggered and its layer starts again."""
    return unacknowledge_all([incident_id], actor=actor, via=via, now=now, note=note)[0]


def unacknowledge_all(incident_ids: Collection[int], *, actor: Member | None, via: str, now: datetime, note: str = "") -> list[Incident]:
    """`unacknowledge` of all these or of none (see `_all`)."""
    said = {"progress": text} if (text := _text(note, "note")) else {}

    def look(incident: Incident) -> _Change | None:
        acknowledgers = {r.member_id: r.acknowledged_at for r in _acknowledgers(incident)}
        mine = acknowledgers.pop(actor.pk if actor else None, None)  # type: ignore[arg-type]
        if mine is None and acknowledgers:
            raise Refused("not_acknowledged", _("You have not acknowledged this incident, so there is nothing to take back."))
        last = not acknowledgers
        sets: dict[str, Any] = {}
        if last:
            sets["ack_time"] = None
        elif mine == incident.ack_time:
            sets["ack_time"] = min(at for at in acknowledgers.values() if at)
        if mine is not None and actor is not None:
            _forget_acks(incident, actor)
        return _Change({"last": last, **said}, sets, stays=not last, due=last)

    return _all("unacknowledge", incident_ids, actor, via, now, look)


def snooze(incident_id: int, *, actor: Member | None, via: str, now: datetime, minutes: float) -> Incident:
    """Acknowledges and is quiet for `minutes` (at most 24 hours); then the same layer starts again."""
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 < minutes <= LONGEST_SNOOZE.total_seconds() / 60:
        raise Refused("invalid", _("minutes must be more than 0 and at most 1440 (24 hours)."), "minutes")
    until = now + timedelta(minutes=minutes)

    def look(incident: Incident) -> _Change:
        held = incident.progress == PROCESSING
        sets = {**_first_ack(incident, now), "snoozed_until": until, "wake_at": until}
        return _Change({"minutes": minutes, "until": int(until.timestamp()), "acknowledged": not held}, sets, due=not held, holds=True)

    return _one("snooze", incident_id, actor, via, now, look)


def wake(incident_id: int, *, actor: Member | None, via: str, now: datetime) -> Incident:
    """Ends a snooze before its time: Triggered, the same layer starts again now."""

    def look(incident: Incident) -> _Change:
        if incident.snoozed_until is None:
            raise Refused("not_snoozed", _("This incident is not snoozed."))
        return _Change({"snoozed_before": int(incident.snoozed_until.timestamp())})

    return _one("wake", incident_id, actor, via, now, look)


def close(
    incident_id: int,
    *,
    actor: Member | None,
    via: str,
    now: datetime,
    root_cause: str | None = None,
    resolution: str | None = None,
    by: str = "",
) -> Incident:
    """People are done: Closed by hand. Its status stays; its alerts let go of their keys, so the next event opens a new incident. Twice is once."""
    return close_all([incident_id], actor=actor, via=via, now=now, root_cause=root_cause, resolution=resolution, by=by)[0]


def close_all(
    incident_ids: Collection[int],
    *,
    actor: Member | None,
    via: str,
    now: datetime,
    root_cause: str | None = None,
    resolution: str | None = None,
    by: str = "",
) -> list[Incident]:
    """`close` of all these or of none (see `_all`)."""
    texts = {name: _text(value, name) for name, value in (("root_cause", root_cause), ("resolution", resolution)) if value is not None}

    def look(incident: Incident) -> _Change:
        return _Change({"from": via, **({"as": by} if by else {})}, {"closed_by": "manually", "closer": actor, **texts})

    return _all("close", incident_ids, actor, via, now, look)


def reopen(incident_id: int, *, actor: Member | None, via: str, now: datetime, reason: str) -> Incident:
    """Closed was wrong: Triggered, and the assignment starts again. Its alerts stay detached, so only people or the timeout close it."""
    reason = _text(reason, "reason", needed=True)

    def look(incident: Incident) -> _Change:
        if Incident.objects.filter(num=incident.num).exclude(progress=CLOSED).exists():
            raise Refused(
                "invalid", _("Another open incident has the number %(num)s by now: create a new incident instead.") % {"num": incident.num}
            )
        people: list[int] = []
        if _directly_assigned(incident):
            people = list(incident.responders.filter(assigned_at__isnull=False).order_by("member_id").values_list("member_id", flat=True))
        timeout = incident.workspace.auto_resolve_timeout
        return _Change(
            {"reason": reason, "person_ids": people},
            {
                "close_time": None,
                "closed_by": "",
                "closer": None,
                "ack_time": None,
                "assigned_type": "reopen",
                "layer_idx": None,
                "rule": None,
                # From now on, whatever the mode: counted from its start the incident would be closed again at once.
                "auto_resolve_at": now + timedelta(seconds=timeout) if timeout else None,
            },
        )

    return _one("reopen", incident_id, actor, via, now, look)


def assign(incident_id: int, *, actor: Member | None, via: str, now: datetime, member_ids: Sequence[int]) -> Incident:
    """Gives the incident to these people and to nobody else; it leaves its rule. Triggered, unless each of them has acknowledged already."""
    return _assign("assign", incident_id, actor, via, now, member_ids)


def reassign(incident_id: int, *, actor: Member | None, via: str, now: datetime, member_ids: Sequence[int]) -> Incident:
    """`assign`, said of an incident that somebody has already."""
    return _assign("reassign", incident_id, actor, via, now, member_ids)


def add_responder(incident_id: int, *, actor: Member | None, via: str, now: datetime, member_ids: Sequence[int]) -> Incident:
    """More people beside those who have it; the rule goes on. Whoever has it already is not told twice."""
    people = _people(member_ids)

    def look(incident: Incident) -> _Change | None:
        here = set(incident.responders.filter(member_id__in=people, assigned_at__isnull=False).values_list("member_id", flat=True))
        new = [pk for pk in people if pk not in here]
        if not new:
            return None
        _record_assigned(incident, new, now)
        return _Change({"person_ids": new})

    return _one("add_responder", incident_id, actor, via, now, look)


def escalate(
    incident_id: int, *, actor: Member | None, via: str, now: datetime, layer_idx: int | None = None, rule_id: int | None = None
) -> Incident:
    """Goes to a layer of its rule now (None: the next one), or of the named rule of its workspace: Triggered, and that layer is paged."""

    def look(incident: Incident) -> _Change:
        sets: dict[str, Any] = {"assigned_type": "escalate"}
        if rule_id is not None:
            return _Change(_named_layer(rule_id, incident.workspace_id, 0 if layer_idx is None else layer_idx), sets)
        run = Run.objects.select_related("snapshot").filter(incident=incident, kind=Run.Kind.RULE).order_by("-pk").first()
        if run is None:
            raise Refused("no_rule", _("No escalation rule is at work on this incident: assign it to people instead."))
        wanted = layer_idx if layer_idx is not None else max(run.layer_idx, -1) + 1
        if layer_idx is None and wanted >= len(run.snapshot.body["layers"]):
            raise Refused("invalid", _("The last layer of the rule is at work already."), "layer_idx")
        return _Change({"layer_idx": _layer(wanted, len(run.snapshot.body["layers"])), "snapshot_id": run.snapshot_id}, sets)

    return _one("escalate", incident_id, actor, via, now, look)


def _named_layer(rule_id: int, workspace_id: int, layer_idx: int) -> dict[str, Any]:
    """The detail of an escalation to a layer of a rule that somebody named."""
    rule = EscalationRule.objects.filter(pk=rule_id, workspace_id=workspace_id, status=Status.ENABLED).first()
    if rule is None:
        raise Refused("no_rule", _("There is no such enabled escalation rule in this workspace."), "rule_id")
    return {"layer_idx": _layer(layer_idx, rule.layers.count()), "rule_id": rule.pk}


def _layer(wanted: object, layers: int) -> int:
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted < layers:
        raise Refused("invalid", _("The rule has no such layer: it has %(count)d.") % {"count": layers}, "layer_idx")
    return wanted


def comment(incident_id: int, *, actor: Member | None, via: str, now: datetime, text: str) -> Incident:
    """Writes a sentence into the timeline."""
    said = _text(text, "comment", needed=True)
    return _one("comment", incident_id, actor, via, now, lambda incident: _Change({"comment": said}, due=False))


_EDITS = {
    "title": "i_r_title",
    "description": "i_r_desc",
    "severity": "i_r_severity",
    "impact": "i_r_impact",
    "root_cause": "i_r_rc",
    "resolution": "i_r_rsltn",
}
_OVERRIDES = ("title", "severity", "description")


def edit(incident_id: int, *, actor: Member | None, via: str, now: datetime, **fields: str) -> Incident:
    """Sets any of title, severity, description, impact, root_cause and resolution; an entry for each that changes. The first three stick: alerts no longer change them."""
    if unknown := set(fields) - set(_EDITS):
        raise Refused("invalid", _("There is no field %(name)s to edit.") % {"name": sorted(unknown)[0]}, sorted(unknown)[0])
    values = {
        name: _severity(value)
        if name == "severity"
        else _text(value, name, needed=name == "title", most=MAX_TITLE if name == "title" else MAX_TEXT)
        for name, value in fields.items()
    }

    def look(incident: Incident) -> _Change | None:
        changed = {name: value for name, value in values.items() if getattr(incident, name) != value}
        overrides = [name for name in _OVERRIDES if name in values or name in incident.manual_overrides]
        if not changed and overrides == incident.manual_overrides:
            return None
        rose = "severity" in changed and RANK[changed["severity"]] > RANK[incident.severity] and incident.progress == TRIGGERED
        entries = [
            (_EDITS[name], {"from": getattr(incident, name), "to": value}, name == "severity" and rose) for name, value in changed.items()
        ]
        return _Change(sets={**changed, "manual_overrides": overrides}, entries=entries)

    return _one("edit", incident_id, actor, via, now, look)


def create(
    *,
    actor: Member | None,
    via: str,
    now: datetime,
    workspace_id: int,
    title: str,
    severity: str,
    description: str = "",
    labels: dict[str, str] | None = None,
    member_ids: Sequence[int] = (),
    kinds: Sequence[str] = (),
    template_set: int | None = None,
    rule_id: int | None = None,
    layer_idx: int = 0,
) -> Incident:
    """An incident made by hand; given to people directly, or to a layer of a rule of its workspace, or else the workspace's rules decide.

    `kinds` (of channels or their families) tell the people instead of their own preferences, with the texts of `template_set`.
    """
    title, severity, description = (
        _text(title, "title", needed=True, most=MAX_TITLE),
        _severity(severity),
        _text(description, "description"),
    )
    people = _people(member_ids) if member_ids else []
    workspace = Workspace.objects.filter(pk=workspace_id).exclude(status=Status.DELETED).first()
    if workspace is None:
        raise Refused("not_found", _("There is no such workspace."), "workspace_id")
    if workspace.status == Status.DISABLED:
        raise Refused("invalid", _("This workspace is disabled: enable it, or choose another."), "workspace_id")
    if people and rule_id is not None:
        raise Refused("invalid", _("Assign it to people or to an escalation rule, not to both."), "rule_id")
    escalated = None if rule_id is None else _named_layer(rule_id, workspace_id, layer_idx)
    with transaction.atomic():
        pk = take_ids(1)[0]
        timeout = workspace.auto_resolve_timeout
        incident = Incident.objects.create(
            pk=pk,
            num=num(pk),
            workspace=workspace,
            title=title,
            description=description,
            severity=severity,
            status=severity,
            labels=labels or {},
            manual_overrides=[],
            start_time=now,
            last_time=now,
            creator=actor,
            assigned_type="assign" if people else "escalate" if escalated else "",
            auto_resolve_at=now + timedelta(seconds=timeout) if timeout else None,
            created_at=now,
            updated_at=now,
        )
        entries: list[tuple[str, dict[str, Any], bool]] = [
            ("i_new", {"title": title, "severity": severity}, not people and escalated is None)
        ]
        if people:
            _record_assigned(incident, people, now)
            how: dict[str, Any] = {"kinds": list(kinds)} if kinds else {}
            if template_set is not None:
                how["template_set"] = template_set
            entries.append(("i_assign", {"type": "assign", "person_ids": people, **how}, True))
        elif escalated is not None:
            entries.append(("i_escalate", escalated, True))
        _write_entries([(incident.pk, *entry) for entry in entries], actor, via, now)
    wake_resident("engine")
    return incident


# --- What happens by itself, to many at once -------------------------------------------------------------------------------


def recover(incident_ids: Collection[int], now: datetime) -> list[int]:
    """Closes incidents whose alerts have all recovered; the ids that were open. The caller has written status and end_time."""
    moved = _move("recover", incident_ids, None, "event", now, lambda i: _Change({"from": "event"}, {"closed_by": "auto"}))
    return [incident.pk for incident in moved]


def timeouts(incident_ids: Collection[int], now: datetime) -> list[int]:
    """Closes incidents whose auto_resolve_at has come (looked at again under the lock); the ids that were closed. Their alerts let go of their keys."""

    def look(incident: Incident) -> _Change | None:
        due = incident.auto_resolve_at is not None and incident.auto_resolve_at <= now
        return _Change({"from": "timeout"}, {"closed_by": "timeout"}) if due else None

    return [incident.pk for incident in _move("timeout", incident_ids, None, "timeout", now, look)]


def wakes(incident_ids: Collection[int], now: datetime) -> list[int]:
    """Ends snoozes whose time has come (looked at again under the lock); the ids that are Triggered again."""

    def look(incident: Incident) -> _Change | None:
        if incident.wake_at is None or incident.wake_at > now:
            return None
        return _Change({"snoozed_before": int(incident.wake_at.timestamp())})

    return [incident.pk for incident in _move("wake", incident_ids, None, "system", now, look)]


def take_ids(count: int) -> list[int]:
    """Ids for new incidents, passing over those whose short number an open incident has (one in sixteen million wraps round)."""
    ids: list[int] = []
    with connection.cursor() as cursor:
        while len(ids) < count:
            cursor.execute(
                """SELECT n.id FROM (SELECT nextval(pg_get_serial_sequence('escalation_incident', 'id')) AS id FROM generate_series(1, %s)) n
                   WHERE NOT EXISTS (SELECT FROM escalation_incident i WHERE i.num = lpad(to_hex(n.id & 16777215), 6, '0') AND i.progress <> 'Closed')
                   ORDER BY n.id""",
                [count - len(ids)],
            )
            ids += [row[0] for row in cursor.fetchall()]
    return ids


# --- The one move ----------------------------------------------------------------------------------------------------------


def _one(verb: str, incident_id: int, actor: Member | None, via: str, now: datetime, look: Look) -> Incident:
    """The move of a single incident."""
    return _all(verb, [incident_id], actor, via, now, look)[0]


def _all(verb: str, incident_ids: Collection[int], actor: Member | None, via: str, now: datetime, look: Look) -> list[Incident]:
    """The move of all these incidents, or of none of them where one refuses what a batch passes over (the first by id, after those that are not
    there); as they are afterwards, by id."""
    move = MOVES[verb]
    found: list[Incident] = []

    def checked(incident: Incident) -> _Change | None:
        found.append(incident)
        if incident.progress == move.to and move.again:
            return None
        try:
            if incident.progress not in move.starts:
                raise _refusal(move, incident)
            return look(incident)
        except Refused as refused:
            refused.incident_id = incident.pk
            raise

    _move(verb, incident_ids, actor, via, now, checked, checks=False)
    return found


def _refusal(move: Move, incident: Incident) -> Refused:
    if incident.progress == CLOSED:
        return Refused("closed", _("This incident is closed: reopen it first."))
    if move.starts == {CLOSED}:
        return Refused("not_closed", _("This incident is not closed."))
    return Refused("not_acknowledged", _("Nobody has acknowledged this incident."))


def _move(
    verb: str, ids: Collection[int], actor: Member | None, via: str, now: datetime, look: Look, *, checks: bool = True
) -> list[Incident]:
    """Makes one move of the table for all these incidents that it can be made for; those moved, as they are afterwards.

    `look` sees each under its lock and says what to write, or None for nothing. Writes are a few statements, however many incidents, and take
    the messages of all of them in the order of ids: whoever records what became of messages does so, too. Without `checks` it is `_all`'s.
    """
    move = MOVES[verb]
    moved: list[Incident] = []
    entries: list[tuple[int, str, dict[str, Any], bool]] = []
    by_sets: dict[str, tuple[dict[str, Any], list[int]]] = {}
    changed: list[Incident] = []
    held: list[int] = []
    theirs: list[int] = []
    # A batch that fails takes its caller's transaction with it; only a refusal must leave that whole.
    with transaction.atomic(savepoint=not checks):
        # A batch leaves what somebody else works on for its next turn: one lock that is held must not stop everybody's timers.
        rows = list(Incident.objects.select_for_update(no_key=True, skip_locked=checks).filter(pk__in=list(ids)).order_by("pk"))
        if not checks and (missing := set(ids).difference(row.pk for row in rows)):
            refused = Refused("not_found", _("There is no such incident."), "incident_id")
            refused.incident_id = min(missing)
            raise refused
        for incident in rows:
            if checks and incident.progress not in move.starts:
                continue
            change = look(incident)
            if change is None:
                continue
            sets = dict(change.sets)
            if move.to and not change.stays:
                changed.append(incident)
                sets |= _with_progress(move.to, now)
            for name, value in sets.items():
                setattr(incident, name, value)
            incident.version += 1
            incident.updated_at = now
            by_sets.setdefault(repr(sets), (sets, []))[1].append(incident.pk)
            found = change.entries if change.entries is not None else [(move.entry, change.detail, change.due)]
            entries += [(incident.pk, *entry) for entry in found]
            if change.holds:
                held.append(incident.pk)
            if change.theirs:
                theirs.append(incident.pk)
            moved.append(incident)
        for sets, pks in by_sets.values():
            Incident.objects.filter(pk__in=pks).update(**sets, version=F("version") + 1, updated_at=now)
        if held and actor is not None:
            Responder.objects.bulk_create([Responder(incident_id=pk, member=actor) for pk in held], ignore_conflicts=True)
            Responder.objects.filter(incident_id__in=held, member=actor, acknowledged_at__isnull=True).update(acknowledged_at=now)
        if changed:
            _follow(move, [incident.pk for incident in changed], now)
        if move.cancels:
            pks, member = [incident.pk for incident in moved], actor.pk if actor is not None else None
            outbox.cancel(pks, move.cancels, now, keep_forced=not move.cancels_forced, theirs=theirs, member=member)
        _write_entries(entries, actor, via, now)
    if any(due for *_rest, due in entries):
        wake_resident("engine")
    return moved


def _with_progress(to: str, now: datetime) -> dict[str, Any]:
    """The fields that go with a progress."""
    if to == PROCESSING:
        return {"progress": to}
    awake = {"progress": to, "snoozed_until": None, "wake_at": None}
    return awake if to == TRIGGERED else awake | {"close_time": now, "auto_resolve_at": None}


def _follow(move: Move, pks: list[int], now: datetime) -> None:
    """What a change of progress does to the rows around the incident, in the order of locks."""
    if move.to == CLOSED:
        # Recovered alerts were closed by their source; the others are let go of, so that the key opens a new alert.
        let_go = Case(When(status="Ok", then=F("close_time")), default=Value(now))
        Alert.objects.filter(incident_id__in=pks, is_open=True).update(is_open=False, close_time=let_go)
    if move.to == TRIGGERED:
        Responder.objects.filter(incident_id__in=pks, acknowledged_at__isnull=False, assigned_at__isnull=True).delete()
        Responder.objects.filter(incident_id__in=pks, acknowledged_at__isnull=False).update(acknowledged_at=None)
    if move.run_ends:
        Run.objects.filter(incident_id__in=pks, ended_at__isnull=True).update(ended_at=now, next_at=None, end_reason=move.run_ends)


def _write_entries(entries: Iterable[tuple[int, str, dict[str, Any], bool]], actor: Member | None, via: str, now: datetime) -> None:
    TimelineEntry.objects.bulk_create(
        TimelineEntry(incident_id=pk, type=kind, actor=actor, via=via, detail=detail, created_at=now, handled_at=None if due else now)
        for pk, kind, detail, due in entries
    )


# --- Pieces of verbs -------------------------------------------------------------------------------------------------------


def _assign(verb: str, incident_id: int, actor: Member | None, via: str, now: datetime, member_ids: Sequence[int]) -> Incident:
    people = _people(member_ids)

    def look(incident: Incident) -> _Change:
        held = set(_acknowledgers(incident).values_list("member_id", flat=True)).issuperset(people)
        rows = incident.responders.exclude(member_id__in=people)
        rows.filter(acknowledged_at__isnull=True).delete()
        rows.update(assigned_at=None)
        _record_assigned(incident, people, now)
        if held:
            # Nobody is left to be told; the rule ends all the same, and is not what an end of their acknowledgement takes up again.
            Run.objects.filter(incident=incident, ended_at__isnull=True).update(ended_at=now, next_at=None, end_reason=MOVES[verb].run_ends)
        sets = {"assigned_type": verb, "rule": None, "layer_idx": None}
        return _Change({"type": verb, "person_ids": people}, sets, stays=held)

    return _one(verb, incident_id, actor, via, now, look)


def _directly_assigned(incident: Incident) -> bool:
    """Whether people have it because somebody said so, and not because a rule told them (which writes assigned_type, too)."""
    if incident.assigned_type in ("assign", "reassign") and incident.rule_id is None and incident.layer_idx is None:
        return True  # no run of it has begun yet
    if incident.assigned_type == "escalate":
        return False  # somebody sent it to a layer, whether or not that run has begun
    last = Run.objects.filter(incident=incident).order_by("-pk").first()
    return last is not None and last.kind == Run.Kind.ASSIGN


def _acknowledgers(incident: Incident) -> Any:
    return incident.responders.filter(acknowledged_at__isnull=False)


def _first_ack(incident: Incident, now: datetime) -> dict[str, Any]:
    """The incident's fields that change with an acknowledgement."""
    # The lock was not given in the order in which the clock was read.
    return {"ack_time": now} if incident.ack_time is None or now < incident.ack_time else {}


def _forget_acks(incident: Incident, member: Member) -> None:
    rows = Responder.objects.filter(incident=incident, member=member)
    rows.filter(assigned_at__isnull=True).delete()
    rows.update(acknowledged_at=None)


def _record_assigned(incident: Incident, member_ids: Sequence[int], now: datetime) -> None:
    Responder.objects.bulk_create(
        [Responder(incident=incident, member_id=pk, assigned_at=now) for pk in member_ids],
        update_conflicts=True,
        unique_fields=["incident", "member"],
        update_fields=["assigned_at"],
    )


def _people(member_ids: Sequence[int]) -> list[int]:
    """The ids, sorted and once each, of members who can be given something."""
    wanted = sorted(set(member_ids))
    if not 1 <= len(wanted) <= MAX_PEOPLE:
        raise Refused("invalid", _("Name 1 to %(most)d people.") % {"most": MAX_PEOPLE}, "member_ids")
    known = set(Member.objects.filter(pk__in=wanted, is_active=True).values_list("pk", flat=True))
    if missing := [str(pk) for pk in wanted if pk not in known]:
        raise Refused("invalid", _("There is no active member with the id %(ids)s.") % {"ids": ", ".join(missing)}, "member_ids")
    return wanted


def _severity(value: object) -> str:
    if value not in ("Critical", "Warning", "Info"):
        raise Refused("invalid", _("severity must be Critical, Warning or Info."), "severity")
    return str(value)


def _text(value: object, field: str, *, needed: bool = False, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise Refused("invalid", _("%(field)s must be a text.") % {"field": field}, field)
    text = clean(value).strip()
    if needed and not text:
        raise Refused("invalid", _("%(field)s is required.") % {"field": field}, field)
    if len(text) > most:
        raise Refused("invalid", _("%(field)s is longer than %(most)d characters.") % {"field": field, "most": most}, field)
    return text
