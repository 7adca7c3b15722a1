"""What people do to an incident, each verb as a short play: what it changes, what it refuses, what it leaves to the engine."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connections
from django.utils import timezone

from channels_app.models import Address, Channel, Delivery, Notification
from escalation import lifecycle
from escalation.lifecycle import Refused
from escalation.models import Alert, EscalationRule, Incident, Integration, Layer, Responder, Run, TimelineEntry, Workspace
from escalation.models.rule import RuleSnapshot
from mapping.models import Member

T0 = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


class Stage:
    """An incident with a run and a queued page, two people who may act, and a clock."""

    def __init__(self) -> None:
        self.now = T0
        self.ann = Member.objects.create_user("ann@example.com", "Ann")
        self.bo = Member.objects.create_user("bo@example.com", "Bo")
        self.workspace = Workspace.objects.create(name="payments")
        self.pk = lifecycle.create(actor=None, via="api", now=T0, workspace_id=self.workspace.pk, title="slow", severity="Warning").pk
        TimelineEntry.objects.update(handled_at=T0)
        body = {"layers": [{}, {}, {}]}
        self.snapshot = RuleSnapshot.objects.create(version=1, body=body, body_hash="h", created_at=T0)
        self.run = Run.objects.create(incident_id=self.pk, snapshot=self.snapshot, layer_idx=0, next_at=T0, started_at=T0)

    def do(self, verb: str, actor: Member | None = None, **args):
        self.now += timedelta(minutes=1)
        return getattr(lifecycle, verb)(self.pk, actor=actor, via="console", now=self.now, **args)

    @property
    def incident(self) -> Incident:
        return Incident.objects.get(pk=self.pk)

    def acknowledged(self) -> dict[str, datetime]:
        rows = self.incident.responders.filter(acknowledged_at__isnull=False).select_related("member")
        return {row.member.name: row.acknowledged_at for row in rows}

    def assigned(self) -> set[str]:
        return set(self.incident.responders.filter(assigned_at__isnull=False).values_list("member__name", flat=True))

    def entries(self) -> list[tuple[str, bool]]:
        """Type and whether the engine has to act, without i_new."""
        rows = TimelineEntry.objects.filter(incident_id=self.pk).exclude(type="i_new").order_by("id")
        return [(row.type, row.handled_at is None) for row in rows]

    def live_run(self) -> bool:
        return Run.objects.filter(incident_id=self.pk, ended_at__isnull=True).exists()

    def page(self, *, forced: bool = False, notice: bool = False) -> Delivery:
        channel = Channel.objects.create(name=f"c{Channel.objects.count()}", kind="sandbox_app")
        address = Address.objects.create(channel=channel, target="member:1")
        notification = Notification.objects.create(
            event="triggered", severity="Warning", topic=self.pk, is_page=not notice, survives_ack=forced, created_at=T0
        )
        return Delivery.objects.create(
            notification=notification, topic=self.pk, channel=channel, address=address, is_page=not notice, survives_ack=forced,
            created_at=T0, not_before=T0, deadline_at=T0, give_up_at=T0,
        )  # fmt: skip


@pytest.fixture
def stage(db):
    return Stage()


def refusal(call, *args, **kwargs) -> Refused:
    with pytest.raises(Refused) as caught:
        call(*args, **kwargs)
    assert str(caught.value)
    return caught.value


def test_acknowledge_records_each_responder_once_and_the_earliest_time(stage):
    incident = stage.do("acknowledge", stage.ann)
    first = stage.now
    assert (incident.progress, incident.ack_time, incident.version) == ("Processing", first, 1)
    assert stage.entries() == [("i_ack", True)]
    stage.do("acknowledge", stage.ann)
    assert stage.entries() == [("i_ack", True)] and stage.incident.version == 1
    stage.do("acknowledge", stage.bo)
    assert stage.entries() == [("i_ack", True), ("i_ack", False)]
    assert stage.acknowledged() == {"Ann": first, "Bo": stage.now} and stage.incident.ack_time == first
    assert stage.live_run()  # the engine's pass lets it stop


def test_acknowledging_cancels_queued_pages_but_not_forced_ones_nor_notices(stage):
    page, forced, notice = stage.page(), stage.page(forced=True), stage.page(notice=True)
    stage.do("acknowledge", stage.ann)
    states = [Delivery.objects.get(pk=d.pk) for d in (page, forced, notice)]
    assert [d.state for d in states] == ["cancelled", "queued", "queued"] and states[0].reason == "acknowledged"
    stage.do("close", stage.ann)
    assert [Delivery.objects.get(pk=d.pk).state for d in (forced, notice)] == ["cancelled", "queued"]


def test_somebody_without_an_account_acknowledges(stage):
    stage.do("acknowledge", None, by="somebody in #ops")
    assert stage.incident.progress == "Processing" and stage.acknowledged() == {}
    entry = TimelineEntry.objects.get(type="i_ack")
    assert (entry.actor, entry.detail) == (None, {"as": "somebody in #ops"})
    stage.do("unacknowledge", stage.ann)
    assert stage.incident.progress == "Triggered"


def test_only_the_last_one_to_unacknowledge_triggers_again(stage):
    stage.do("acknowledge", stage.ann)
    stage.do("acknowledge", stage.bo)
    second = stage.now
    stage.do("unacknowledge", stage.ann)
    assert stage.incident.progress == "Processing" and stage.incident.ack_time == second
    assert refusal(stage.do, "unacknowledge", stage.ann).code == "not_acknowledged"
    stage.do("unacknowledge", stage.bo)
    assert (stage.incident.progress, stage.incident.ack_time, stage.acknowledged()) == ("Triggered", None, {})
    assert not stage.incident.responders.exists()  # nobody was given it, and nobody has it in hand
    assert stage.entries()[2:] == [("i_unack", False), ("i_unack", True)]
    assert refusal(stage.do, "unacknowledge", stage.bo).code == "not_acknowledged"


def test_close_ends_everything_and_twice_is_once(stage):
    stage.do("snooze", stage.ann, minutes=30)
    page = stage.page()
    incident = stage.do("close", stage.bo, resolution="restarted")
    closed = stage.now
    assert (incident.progress, incident.status, incident.closed_by, incident.closer) == ("Closed", "Warning", "manually", stage.bo)
    assert (incident.close_time, incident.wake_at, incident.snoozed_until, incident.resolution) == (closed, None, None, "restarted")
    assert (stage.run.__class__.objects.get().end_reason, stage.live_run()) == ("closed", False)
    assert Delivery.objects.get(pk=page.pk).reason == "closed"
    stage.do("close", stage.ann)
    assert stage.entries() == [("i_snooze", True), ("i_rslv", True)] and stage.incident.closer == stage.bo
    assert refusal(stage.do, "acknowledge", stage.ann).code == "closed"


def test_reopen_needs_a_reason_and_starts_over(stage):
    assert refusal(stage.do, "reopen", stage.ann, reason="again").code == "not_closed"
    stage.do("acknowledge", stage.ann)
    stage.do("close", stage.ann)
    refused = refusal(stage.do, "reopen", stage.ann, reason="  ")
    assert (refused.code, refused.field) == ("invalid", "reason")
    incident = stage.do("reopen", stage.ann, reason="it is back")
    assert (incident.progress, incident.closed_by, incident.close_time, incident.ack_time, incident.assigned_type) == (
        "Triggered", "", None, None, "reopen",
    )  # fmt: skip
    entry = TimelineEntry.objects.get(type="i_reopen")
    assert (entry.detail, entry.handled_at) == ({"reason": "it is back", "person_ids": []}, None)


def test_reopening_gives_it_back_to_the_people_who_had_it(stage):
    stage.do("assign", None, member_ids=[stage.bo.pk])
    for _time in range(2):
        stage.do("close", stage.ann)
        stage.do("reopen", stage.ann, reason="no")
        assert TimelineEntry.objects.filter(type="i_reopen").last().detail["person_ids"] == [stage.bo.pk]
        Run.objects.create(incident_id=stage.pk, snapshot=stage.snapshot, kind="assign", started_at=T0)


def test_reopened_the_timeout_counts_anew(stage):
    Workspace.objects.update(auto_resolve_timeout=600)
    stage.do("close")
    assert stage.incident.auto_resolve_at is None
    stage.do("reopen", reason="no")
    assert stage.incident.auto_resolve_at == stage.now + timedelta(seconds=600)


def test_snooze_acknowledges_and_its_end_triggers_again(stage):
    incident = stage.do("snooze", stage.ann, minutes=90)
    until = stage.now + timedelta(minutes=90)
    assert (incident.progress, incident.wake_at, incident.snoozed_until) == ("Processing", until, until)
    assert set(stage.acknowledged()) == {"Ann"} and stage.live_run()
    assert lifecycle.wakes([stage.pk], until - timedelta(seconds=1)) == []
    assert lifecycle.wakes([stage.pk], until) == [stage.pk]
    incident = stage.incident
    assert (incident.progress, incident.wake_at, incident.snoozed_until, stage.acknowledged()) == ("Triggered", None, None, {})
    assert incident.ack_time is not None  # the first acknowledgement stays on record
    assert stage.entries() == [("i_snooze", True), ("i_wake", True)]
    assert lifecycle.wakes([stage.pk], until) == []


@pytest.mark.parametrize("minutes", [0, -1, 1441, "5", None, True, float("nan"), float("inf")])
def test_a_snooze_lasts_at_most_a_day(stage, minutes):
    assert refusal(stage.do, "snooze", stage.ann, minutes=minutes).field == "minutes"


def test_wake_needs_a_snooze(stage):
    assert refusal(stage.do, "wake", stage.ann).code == "not_acknowledged"
    stage.do("acknowledge", stage.ann)
    assert refusal(stage.do, "wake", stage.ann).code == "not_snoozed"
    stage.do("snooze", stage.ann, minutes=5)
    assert stage.do("wake", stage.bo).progress == "Triggered"


def test_assign_leaves_the_rule(stage):
    Incident.objects.update(layer_idx=1)
    page = stage.page(forced=True)
    incident = stage.do("assign", stage.ann, member_ids=[stage.bo.pk, stage.bo.pk])
    assert (incident.assigned_type, incident.rule, incident.layer_idx, stage.assigned()) == ("assign", None, None, {"Bo"})
    assert Run.objects.get().end_reason == "assigned" and Delivery.objects.get(pk=page.pk).reason == "superseded"
    assert TimelineEntry.objects.get(type="i_assign").detail == {"type": "assign", "person_ids": [stage.bo.pk]}


def test_reassigning_to_people_who_have_not_acknowledged_triggers_again(stage):
    stage.do("acknowledge", stage.ann)
    stage.do("reassign", stage.ann, member_ids=[stage.ann.pk])
    assert (stage.incident.progress, stage.entries()[-1], stage.live_run()) == ("Processing", ("i_assign", True), False)
    stage.do("reassign", stage.ann, member_ids=[stage.bo.pk])
    assert (stage.incident.progress, stage.acknowledged(), stage.assigned()) == ("Triggered", {}, {"Bo"})
    assert not stage.incident.responders.filter(member=stage.ann).exists()


def test_only_active_members_can_be_given_an_incident(stage):
    Member.objects.filter(pk=stage.bo.pk).update(is_active=False)
    for people in ([stage.bo.pk], [stage.ann.pk, 999999], [], list(range(101))):
        assert refusal(stage.do, "assign", stage.ann, member_ids=people).field == "member_ids"
    assert stage.entries() == [] and stage.live_run()


def test_more_responders_join_without_ending_the_rule(stage):
    stage.do("acknowledge", stage.ann)
    stage.do("add_responder", stage.ann, member_ids=[stage.ann.pk, stage.bo.pk])
    assert (stage.incident.progress, stage.assigned(), stage.live_run()) == ("Processing", {"Ann", "Bo"}, True)
    stage.do("add_responder", stage.ann, member_ids=[stage.bo.pk])
    assert stage.entries()[1:] == [("i_a_rspd", True)]


def test_escalating_by_hand_goes_to_the_next_or_the_named_layer(stage):
    stage.do("acknowledge", stage.ann)
    incident = stage.do("escalate", stage.ann)
    assert (incident.progress, incident.assigned_type, stage.acknowledged(), stage.live_run()) == ("Triggered", "escalate", {}, True)
    stage.do("escalate", stage.ann, layer_idx=2)
    details = list(TimelineEntry.objects.filter(type="i_escalate").order_by("id").values_list("detail", flat=True))
    assert details == [{"layer_idx": 1, "snapshot_id": stage.snapshot.pk}, {"layer_idx": 2, "snapshot_id": stage.snapshot.pk}]
    for wrong in (3, -1, True, "1"):
        assert refusal(stage.do, "escalate", stage.ann, layer_idx=wrong).field == "layer_idx"
    Run.objects.update(layer_idx=2)
    assert refusal(stage.do, "escalate", stage.ann).field == "layer_idx"


def test_escalating_needs_a_rule_or_names_one(stage):
    Run.objects.all().delete()
    assert refusal(stage.do, "escalate", stage.ann).code == "no_rule"
    rule = EscalationRule.objects.create(workspace=stage.workspace, name="r")
    Layer.objects.create(rule=rule, idx=0)
    stage.do("escalate", stage.ann, rule_id=rule.pk)
    assert TimelineEntry.objects.get(type="i_escalate").detail == {"layer_idx": 0, "rule_id": rule.pk}
    assert refusal(stage.do, "escalate", stage.ann, rule_id=rule.pk, layer_idx=1).field == "layer_idx"
    assert refusal(stage.do, "escalate", stage.ann, rule_id=rule.pk + 1).code == "no_rule"


def test_comments_and_edits_are_possible_in_any_state(stage):
    stage.do("close")
    stage.do("comment", stage.ann, text="looked at it\x00")
    assert TimelineEntry.objects.get(type="i_comm").detail == {"comment": "looked at it\ufffd"}
    assert refusal(stage.do, "comment", stage.ann, text=" ").field == "comment"
    incident = stage.do("edit", stage.ann, title=" slower ", impact="all of it", root_cause="", description="")
    assert (incident.title, incident.impact, incident.manual_overrides) == ("slower", "all of it", ["title", "description"])
    assert stage.entries()[2:] == [("i_r_title", False), ("i_r_impact", False)]
    before = stage.incident.version
    stage.do("edit", stage.ann, title="slower")
    assert stage.incident.version == before
    for field, value in {"title": "", "severity": "Ok", "colour": "red", "impact": 5, "description": "x" * 5000}.items():
        assert refusal(stage.do, "edit", stage.ann, **{field: value}).field == field


def test_a_severity_raised_by_hand_is_due_only_while_nobody_has_it(stage):
    stage.do("edit", stage.ann, severity="Critical")
    stage.do("edit", stage.ann, severity="Info")
    stage.do("acknowledge", stage.ann)
    stage.do("edit", stage.ann, severity="Critical")
    assert [entry for entry in stage.entries() if entry[0] == "i_r_severity"] == [
        ("i_r_severity", True), ("i_r_severity", False), ("i_r_severity", False),
    ]  # fmt: skip


def test_an_incident_by_hand_goes_to_the_named_people_or_to_the_rules(stage):
    new = lifecycle.create(
        actor=stage.ann, via="console", now=T0, workspace_id=stage.workspace.pk, title="odd", severity="Info", member_ids=[stage.bo.pk]
    )
    stage.pk = new.pk
    assert (new.creator, new.status, new.assigned_type, stage.assigned()) == (stage.ann, "Info", "assign", {"Bo"})
    kinds = TimelineEntry.objects.filter(incident=new).order_by("id").values_list("type", "handled_at")
    assert list(kinds) == [("i_new", T0), ("i_assign", None)]
    Workspace.objects.update(status="disabled")
    args = {"actor": None, "via": "api", "now": T0, "title": "t", "severity": "Info"}
    assert refusal(lifecycle.create, workspace_id=stage.workspace.pk, **args).field == "workspace_id"
    assert refusal(lifecycle.create, workspace_id=0, **args).code == "not_found"


def test_what_does_not_exist_is_said_so(db):
    assert refusal(lifecycle.acknowledge, 12345, actor=None, via="api", now=T0).code == "not_found"


def test_many_close_in_a_few_statements(stage, django_assert_max_num_queries):
    integration = Integration.objects.create(workspace=stage.workspace, name="i")
    pks = [
        lifecycle.create(actor=None, via="api", now=T0, workspace_id=stage.workspace.pk, title=f"n{n}", severity="Info").pk
        for n in range(40)
    ]
    Alert.objects.bulk_create(
        Alert(workspace=stage.workspace, integration=integration, incident_id=pk, alert_key=str(pk), title="t", severity="Info", status="Ok",
              start_time=T0, last_time=T0)
        for pk in pks
    )  # fmt: skip
    with django_assert_max_num_queries(20):
        assert lifecycle.recover([*pks, 10**9], T0) == pks
    assert not Alert.objects.filter(is_open=True).exists()
    assert TimelineEntry.objects.filter(type="i_rslv", via="event").count() == 40
    assert lifecycle.recover(pks, T0) == []


def test_many_are_acknowledged_in_a_few_statements_and_closed_or_none_of_them(stage, django_assert_max_num_queries):
    """One move: every statement more is one in which intake waits for what is held."""
    named = {"actor": stage.ann, "via": "api", "now": T0}
    pks = [lifecycle.create(**named, workspace_id=stage.workspace.pk, title=f"n{n}", severity="Info").pk for n in range(40)]
    with django_assert_max_num_queries(12):
        assert [incident.pk for incident in lifecycle.acknowledge_all(pks[::-1], **named)] == pks
    assert {incident.progress for incident in Incident.objects.filter(pk__in=pks)} == {"Processing"}
    assert set(Responder.objects.filter(member=stage.ann).values_list("incident_id", "acknowledged_at")) == {(pk, T0) for pk in pks}
    lifecycle.close(pks[7], **named)
    for refuses in (lifecycle.acknowledge_all, lifecycle.unacknowledge_all):
        refused = refusal(refuses, pks, **named)
        assert (refused.code, refused.incident_id) == ("closed", pks[7])
    refused = refusal(lifecycle.close_all, [*pks, 10**9], **named)
    assert (refused.code, refused.incident_id) == ("not_found", 10**9)
    assert Incident.objects.filter(pk__in=pks, progress="Processing").count() == 39
    with django_assert_max_num_queries(20):
        assert lifecycle.close_all(pks, **named)[7].pk == pks[7]
    assert not Incident.objects.filter(pk__in=pks).exclude(progress="Closed").exists()
    assert TimelineEntry.objects.filter(incident_id=pks[7], type="i_rslv").count() == 1  # closed already: twice is once


@pytest.mark.django_db(transaction=True)
def test_two_people_acting_in_the_same_millisecond_leave_one_truth():
    stage = Stage()
    for first, second in (("acknowledge", "close"), ("acknowledge", "acknowledge"), ("close", "close"), ("snooze", "escalate")):
        stage.pk = lifecycle.create(actor=None, via="api", now=T0, workspace_id=stage.workspace.pk, title="race", severity="Info").pk
        Run.objects.create(incident_id=stage.pk, snapshot=stage.snapshot, started_at=T0)
        gate = threading.Barrier(2)
        results: list[str] = []

        def act(verb, who, pk=stage.pk, gate=gate, results=results):
            gate.wait()
            try:
                args = {"minutes": 5} if verb == "snooze" else {}
                getattr(lifecycle, verb)(pk, actor=who, via="console", now=timezone.now(), **args)
                results.append(verb)
            except Refused as refused:
                results.append(refused.code)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=act, args=pair) for pair in ((first, stage.ann), (second, stage.bo))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        incident, kinds = stage.incident, [kind for kind, _due in stage.entries()]
        assert incident.version == len(kinds)
        if (first, second) == ("acknowledge", "close"):
            assert incident.progress == "Closed" and kinds in (["i_ack", "i_rslv"], ["i_rslv"])
            assert len(results) == 2 and ("closed" in results) == (kinds == ["i_rslv"])
        elif first == second == "acknowledge":
            assert set(stage.acknowledged()) == {"Ann", "Bo"} and incident.ack_time == min(stage.acknowledged().values())
        elif first == second == "close":
            assert kinds == ["i_rslv"] and results == ["close", "close"]
        else:
            last = {"i_snooze": "Processing", "i_escalate": "Triggered"}[kinds[-1]]
            assert incident.progress == last and (incident.wake_at is None) == (last == "Triggered")
