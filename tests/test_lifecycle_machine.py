"""The lifecycle against a second description of it: a model that knows an incident only as a few plain values is told the same things in
any order and has to agree with the rows after each of them."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from escalation import lifecycle
from escalation.lifecycle import Refused
from escalation.models import Alert, Incident, Integration, Run, TimelineEntry, Workspace
from escalation.models.rule import RuleSnapshot
from mapping.models import Member

T0 = datetime(2026, 3, 1, tzinfo=UTC)
NAMES = ("ann", "bo", "cy")
RANKS = ["Info", "Warning", "Critical"]


class Machine(RuleBasedStateMachine):
    """Times are minutes since T0. `self.acks` and `self.given` are who acknowledged and who was named, by name."""

    seen: Counter[str] = Counter()
    people: dict[str, Member]
    workspace: Workspace
    integration: Integration
    snapshot: RuleSnapshot

    @initialize(named=st.sets(st.sampled_from(NAMES), max_size=2), severity=st.sampled_from(RANKS))
    def begin(self, named, severity):
        self.minute = 0
        made = lifecycle.create(
            actor=None, via="api", now=T0, workspace_id=self.workspace.pk, title="t", severity=severity, member_ids=self.ids(named)
        )
        self.pk = made.pk
        Run.objects.create(incident_id=self.pk, snapshot=self.snapshot, layer_idx=0, started_at=T0)
        self.alert = Alert.objects.create(
            workspace=self.workspace, integration=self.integration, incident_id=self.pk, alert_key=f"k{self.pk}", title="t",
            severity=severity, status=severity, start_time=T0, last_time=T0,
        )  # fmt: skip
        self.state = "new"  # new | held | over
        self.acks: dict[str, int] = {}
        self.nameless = False  # acknowledged by somebody without an account
        self.given = set(named)
        self.directly = bool(named)
        self.first_ack: int | None = None
        self.quiet_until: float | None = None
        self.severity = severity
        self.overrides: set[str] = set()
        self.live = True
        self.attached = True
        self.said: list[str] = ["i_new", "i_assign"] if named else ["i_new"]
        self.moves = 0

    def ids(self, names) -> list[int]:
        return [self.people[name].pk for name in names]

    def do(self, verb, who=None, *, works: bool, **args):
        """Says `verb`; the model says whether it must work."""
        self.minute += 1
        try:
            getattr(lifecycle, verb)(self.pk, actor=self.people.get(who), via="api", now=T0 + timedelta(minutes=self.minute), **args)
        except Refused as refused:
            assert not works, f"{verb} was refused: {refused.code}"
        else:
            assert works, f"{verb} was not refused"

    def wrote(self, kind):
        self.said.append(kind)
        self.moves += 1

    def back_to_new(self):
        self.state, self.acks, self.nameless, self.quiet_until = "new", {}, False, None

    def hold(self, who):
        if who is None:
            self.nameless = self.nameless or not self.acks
        else:
            self.acks.setdefault(who, self.minute)
        self.state = "held"
        self.first_ack = self.minute if self.first_ack is None else self.first_ack

    @rule(who=st.sampled_from((*NAMES, None)))
    def acknowledge(self, who):
        self.do("acknowledge", who, works=self.state != "over")
        if self.state == "new" or (self.state == "held" and who is not None and who not in self.acks):
            self.hold(who)
            self.wrote("i_ack")

    @precondition(lambda self: self.state == "held")
    @rule(data=st.data())
    def unacknowledge(self, data):
        who = data.draw(st.sampled_from([*sorted(self.acks)] * 2 + [*NAMES, None]))
        works = self.state == "held" and (who in self.acks or not self.acks)
        self.do("unacknowledge", who, works=works)
        if not works:
            return
        taken_back = self.acks.pop(who, None)
        if not self.acks:
            self.back_to_new()
            self.first_ack = None
        elif taken_back == self.first_ack:
            self.first_ack = min(self.acks.values())
        self.wrote("i_unack")

    @rule(who=st.sampled_from((*NAMES, None)), minutes=st.sampled_from([3, 0.5, 6, 1440, 0, 1441]))
    def snooze(self, who, minutes):
        works = self.state != "over" and 0 < minutes <= 1440
        self.do("snooze", who, works=works, minutes=minutes)
        if works:
            self.hold(who)
            self.quiet_until = self.minute + minutes
            self.wrote("i_snooze")

    @precondition(lambda self: self.state == "held")
    @rule(who=st.sampled_from(NAMES))
    def wake(self, who):
        works = self.state == "held" and self.quiet_until is not None
        self.do("wake", who, works=works)
        if works:
            self.back_to_new()
            self.wrote("i_wake")

    @precondition(lambda self: self.quiet_until is not None)
    @rule(minutes=st.integers(0, 10))
    def time_passes(self, minutes):
        self.minute += minutes
        due = self.quiet_until is not None and self.quiet_until <= self.minute
        assert lifecycle.wakes([self.pk], T0 + timedelta(minutes=self.minute)) == ([self.pk] if due else [])
        if due:
            self.back_to_new()
            self.wrote("i_wake")

    @rule(
        who=st.sampled_from(NAMES),
        names=st.sampled_from([{"ann"}, {"bo"}, {"cy"}, {"ann", "bo"}, {"bo", "cy"}, set()]),
        verb=st.sampled_from(["assign", "reassign"]),
    )
    def assign(self, who, names, verb):
        works = self.state != "over" and bool(names)
        self.do(verb, who, works=works, member_ids=self.ids(names))
        if works:
            if not names <= set(self.acks):
                self.back_to_new()
            self.given, self.directly, self.live = set(names), True, False
            self.wrote("i_assign")

    @rule(who=st.sampled_from(NAMES), names=st.sets(st.sampled_from(NAMES), min_size=1))
    def add_responder(self, who, names):
        self.do("add_responder", who, works=self.state != "over", member_ids=self.ids(names))
        if self.state != "over" and names - self.given:
            self.given |= names
            self.wrote("i_a_rspd")

    @rule(who=st.sampled_from(NAMES), layer=st.sampled_from([None, 0, 1, 2]))
    def escalate(self, who, layer):
        works = self.state != "over" and layer != 2
        self.do("escalate", who, works=works, layer_idx=layer)
        if works:
            self.back_to_new()
            self.directly = False
            self.wrote("i_escalate")

    # Not at once: what is closed early has lived through little.
    @precondition(lambda self: self.state == "over" or self.moves >= 8)
    @rule(who=st.sampled_from((*NAMES, None)))
    def close(self, who):
        self.do("close", who, works=True)
        self.end("i_rslv")

    @precondition(lambda self: self.state == "over" or self.moves >= 8)
    @rule(by=st.sampled_from(["recover", "timeouts"]))
    def ends_by_itself(self, by):
        if by == "timeouts":
            Incident.objects.filter(pk=self.pk).update(auto_resolve_at=T0)
        now = T0 + timedelta(minutes=self.minute)
        assert getattr(lifecycle, by)([self.pk], now) == ([] if self.state == "over" else [self.pk])
        self.end("i_rslv")

    def end(self, kind):
        if self.state != "over":
            self.state, self.quiet_until, self.live, self.attached = "over", None, False, False
            self.wrote(kind)

    @precondition(lambda self: self.state == "over" or self.moves % 4 == 0)
    @rule(who=st.sampled_from(NAMES), reason=st.sampled_from(["again", ""]))
    def reopen(self, who, reason):
        works = self.state == "over" and bool(reason)
        self.do("reopen", who, works=works, reason=reason)
        if works:
            self.back_to_new()
            self.first_ack = None
            self.wrote("i_reopen")
            named = TimelineEntry.objects.filter(incident_id=self.pk, type="i_reopen").latest("pk").detail["person_ids"]
            assert sorted(named) == sorted(self.ids(self.given) if self.directly else [])
            # What the engine does about it, so that the next reopening finds a run to look at.
            kind = Run.Kind.ASSIGN if named else Run.Kind.RULE
            Run.objects.create(incident_id=self.pk, snapshot=self.snapshot, kind=kind, layer_idx=0, started_at=T0)
            self.live = True

    @rule(who=st.sampled_from(NAMES), severity=st.sampled_from([*RANKS, "Ok"]))
    def edit(self, who, severity):
        self.do("edit", who, works=severity != "Ok", severity=severity)
        if severity == "Ok":
            return
        if severity != self.severity:
            rose = RANKS.index(severity) > RANKS.index(self.severity)
            due = TimelineEntry.objects.filter(incident_id=self.pk).latest("pk").handled_at is None
            assert due == (rose and self.state == "new")
            self.wrote("i_r_severity")
        elif "severity" not in self.overrides:
            self.moves += 1  # it sticks from now on, which no entry needs to say
        self.severity = severity
        self.overrides.add("severity")

    @precondition(lambda self: self.state == "over")  # in the others it only takes the place of a move
    @rule(who=st.sampled_from((*NAMES, None)))
    def comment(self, who):
        self.do("comment", who, works=True, text="hm")
        self.wrote("i_comm")

    def teardown(self):
        self.seen.update(getattr(self, "said", ()))

    @invariant()
    def agrees(self):
        if not hasattr(self, "pk"):
            return
        incident = Incident.objects.get(pk=self.pk)
        assert incident.progress == {"new": "Triggered", "held": "Processing", "over": "Closed"}[self.state]
        responders = list(incident.responders.select_related("member"))
        assert all(r.assigned_at or r.acknowledged_at for r in responders)
        recorded = {r.member.name: int((r.acknowledged_at - T0).total_seconds() // 60) for r in responders if r.acknowledged_at}
        assert recorded == self.acks
        assert {r.member.name for r in responders if r.assigned_at} == self.given
        assert incident.ack_time == (None if self.first_ack is None else T0 + timedelta(minutes=self.first_ack))
        until = None if self.quiet_until is None else T0 + timedelta(minutes=self.quiet_until)
        assert incident.snoozed_until == incident.wake_at == until
        assert incident.severity == self.severity and set(incident.manual_overrides) == self.overrides
        assert (incident.close_time is not None) == (incident.closed_by != "") == (self.state == "over")
        assert Run.objects.filter(incident=incident, ended_at__isnull=True).exists() == self.live
        self.alert.refresh_from_db()
        assert self.alert.is_open == self.attached
        assert list(incident.timeline.order_by("id").values_list("type", flat=True)) == self.said
        assert incident.version == self.moves


@pytest.mark.slow
def test_any_order_of_what_people_do_agrees_with_the_model(db):
    Machine.people = {name: Member.objects.create_user(f"{name}@example.com", name) for name in NAMES}
    Machine.workspace = Workspace.objects.create(name="w")
    Machine.integration = Integration.objects.create(workspace=Machine.workspace, name="i")
    Machine.snapshot = RuleSnapshot.objects.create(version=1, body={"layers": [{}, {}]}, body_hash="m", created_at=T0)
    wanted = {move.entry for move in lifecycle.MOVES.values()} - {""}
    for _walk in range(5):  # walks are random: a rare move may be missing in one
        run_state_machine_as_test(
            Machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
        )
        if wanted <= set(Machine.seen):
            break
    assert wanted <= set(Machine.seen), Machine.seen  # a walk that never gets anywhere agrees with everything
