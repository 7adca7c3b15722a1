"""Intake as short plays: events come in, alerts and incidents come out, and every event ends with an outcome a person can read."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections, transaction
from django.utils.translation import override

from escalation import explain, intake, lifecycle
from escalation.models import Alert, Event, Incident, Integration, Run, TimelineEntry, Workspace
from escalation.models.rule import RuleSnapshot
from escalation.sources import Parsed
from tests.fakes.server import until
from tests.world import Stranger

T0 = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)


class Stage:
    """A workspace with one integration, and a clock that only moves when the play says so."""

    def __init__(self, **workspace) -> None:
        self.workspace = Workspace.objects.create(name="payments", **workspace)
        self.integration = Integration.objects.create(workspace=self.workspace, name="zabbix")
        self.now = T0

    def after(self, **delta) -> "Stage":
        self.now += timedelta(**delta)
        return self

    def send(self, status="Critical", key="disk", title="disk full", description="", **labels) -> "Stage":
        intake.accept(self.integration.pk, [Parsed(status, title, key, description, labels)], b"{}", self.now)
        return self

    def take(self) -> "Stage":
        while intake.run_once(self.now):
            pass
        return self

    def outcomes(self) -> list[str]:
        return list(Event.objects.order_by("id").values_list("outcome", flat=True))

    def timeline(self, incident=None) -> list[str]:
        entries = TimelineEntry.objects.order_by("id")
        return list((entries.filter(incident=incident) if incident else entries).values_list("type", flat=True))


@pytest.fixture
def stage(db):
    return Stage()


def test_an_alert_opens_an_incident_that_the_engine_has_to_act_on(stage):
    stage.send(service="engine").take()
    incident, alert, event = Incident.objects.get(), Alert.objects.get(), Event.objects.get()
    assert (incident.title, incident.severity, incident.status, incident.progress) == ("disk full", "Critical", "Critical", "Triggered")
    assert incident.num == f"{incident.pk & 0xFFFFFF:06x}" and incident.labels == {"service": "engine"} and incident.alert_count == 1
    assert (alert.incident, alert.alert_key, alert.is_open, alert.start_time) == (incident, "disk", True, T0)
    assert (event.outcome, event.alert, event.processed_at) == ("created", alert, T0)
    entry = TimelineEntry.objects.get()
    assert (entry.type, entry.via, entry.handled_at, entry.detail) == (
        "i_new",
        "event",
        None,
        {"title": "disk full", "severity": "Critical"},
    )
    stage.integration.refresh_from_db()
    assert (stage.integration.event_count, stage.integration.last_event_at) == (1, T0)


def test_an_event_without_a_key_gets_one(stage):
    keys = intake.accept(stage.integration.pk, [Parsed("Info", "a"), Parsed("Info", "b", "given"), Parsed("Info", "c")], None, T0)
    assert keys[1] == "given" and keys[0] != keys[2] and all(keys)
    assert list(Event.objects.order_by("id").values_list("alert_key", flat=True)) == keys


def test_reference_variables_make_the_title(stage):
    stage.send(title="[TPL]${service} on {{ .Labels.host }} is {{ .EventSeverity }}, ${gone}", service="db", host="h1").take()
    assert Incident.objects.get().title == "db on h1 is Critical, <no value>"


def test_identical_repeats_are_counted_and_discarded(stage):
    stage.send(host="a").after(minutes=5).send(host="a").take()
    assert stage.outcomes() == ["created", "duplicate"]
    assert (Alert.objects.get().event_count, Alert.objects.get().last_time, Incident.objects.get().last_time) == (2, stage.now, stage.now)


def test_labels_follow_the_latest_event_and_a_recovery_only_adds(stage):
    stage.send(host="a", rack="1").send(host="b").take()
    assert stage.outcomes() == ["created", "merged"]
    assert Alert.objects.get().labels == Incident.objects.get().labels == {"host": "b"}
    stage.send("Ok", host="c", fixed="yes").take()
    assert Alert.objects.get().labels == Incident.objects.get().labels == {"host": "b", "fixed": "yes"}


def test_severity_is_the_highest_of_the_events_and_its_rise_is_due(stage):
    stage.send("Warning").take().send("Critical").take().send("Info").take()
    alert, incident = Alert.objects.get(), Incident.objects.get()
    assert (alert.severity, alert.status, incident.severity, incident.status) == ("Critical", "Info", "Critical", "Info")
    rise = TimelineEntry.objects.get(type="i_r_severity")
    assert (rise.detail, rise.handled_at) == ({"from": "Warning", "to": "Critical"}, None)


def test_what_a_person_edited_stays(stage):
    stage.send("Info").take()
    pk = Incident.objects.get().pk
    lifecycle.edit(pk, actor=None, via="console", now=T0, title="by hand", severity="Warning")
    stage.send("Critical", title="from the source", description="new").take()
    incident = Incident.objects.get()
    assert (incident.title, incident.severity, incident.description, incident.status) == ("by hand", "Warning", "new", "Critical")


def test_a_recovery_closes_the_incident_and_the_same_key_opens_a_new_one(stage):
    stage.send().take().after(minutes=1).send("Ok").take()
    incident, alert = Incident.objects.get(), Alert.objects.get()
    assert (incident.progress, incident.status, incident.closed_by, incident.end_time) == ("Closed", "Ok", "auto", stage.now)
    assert (alert.status, alert.end_time, alert.is_open, alert.close_time) == ("Ok", stage.now, False, None)
    assert stage.timeline() == ["i_new", "i_rslv"]
    stage.send().take()
    assert Incident.objects.count() == 2 and stage.outcomes() == ["created", "recovered", "created"]


def test_a_recovery_ends_the_run(stage):
    stage.send().take()
    snapshot = RuleSnapshot.objects.create(version=1, body={"layers": [{}]}, body_hash="x", created_at=T0)
    run = Run.objects.create(incident=Incident.objects.get(), snapshot=snapshot, next_at=T0, started_at=T0)
    stage.after(seconds=5).send("Ok").take()
    run.refresh_from_db()
    assert (run.ended_at, run.end_reason, run.next_at) == (stage.now, "closed", None)


def test_a_recovery_without_an_open_alert_is_nothing(stage):
    stage.send("Ok").take()
    assert stage.outcomes() == ["nothing"] and not Incident.objects.exists()


def test_several_events_of_one_key_in_one_batch_keep_their_order(stage):
    stage.send("Warning").send("Ok").send("Critical", title="again").send("Ok").send("Info", title="third").send("Ok", key="other").take()
    assert stage.outcomes() == ["created", "recovered", "created", "recovered", "created", "nothing"]
    assert list(Incident.objects.order_by("id").values_list("title", "progress")) == [
        ("disk full", "Closed"), ("again", "Closed"), ("third", "Triggered"),
    ]  # fmt: skip
    assert Alert.objects.filter(is_open=True).count() == 1


def test_kept_open_after_recovery_the_same_incident_goes_on(db):
    stage = Stage(disable_auto_close=True)
    stage.send().take().send("Ok").take()
    incident, alert = Incident.objects.get(), Alert.objects.get()
    assert (incident.progress, incident.status, alert.is_open) == ("Triggered", "Ok", True)
    stage.send("Ok").send("Critical").take()
    incident.refresh_from_db()
    assert (incident.status, incident.end_time, stage.outcomes()) == ("Critical", None, ["created", "recovered", "duplicate", "merged"])
    assert stage.timeline() == ["i_new"]


def test_closed_by_hand_the_key_is_let_go(stage):
    stage.send().take()
    first = Incident.objects.get()
    lifecycle.close(first.pk, actor=None, via="console", now=stage.now)
    alert = Alert.objects.get()
    assert (alert.is_open, alert.close_time, alert.status) == (False, stage.now, "Critical")
    stage.send("Ok").send("Warning").take()
    assert stage.outcomes() == ["created", "nothing", "created"]
    first.refresh_from_db()
    assert (first.status, first.progress, first.closed_by) == ("Critical", "Closed", "manually")
    assert Incident.objects.exclude(pk=first.pk).get().severity == "Warning"


@pytest.mark.parametrize(("mode", "due"), [("trigger", T0 + timedelta(seconds=600)), ("update", T0 + timedelta(seconds=700))])
def test_auto_resolve_counts_from_the_start_or_from_the_last_event(db, mode, due):
    stage = Stage(auto_resolve_timeout=600, auto_resolve_mode=mode)
    stage.send().take().after(seconds=100).send().take()
    incident = Incident.objects.get()
    assert incident.auto_resolve_at == due
    assert lifecycle.timeouts([incident.pk], due - timedelta(seconds=1)) == []
    assert lifecycle.timeouts([incident.pk], due) == [incident.pk]
    incident.refresh_from_db()
    assert (incident.closed_by, incident.status, Alert.objects.get().is_open) == ("timeout", "Critical", False)


@override("zh-hans")
def test_a_disabled_workspace_takes_no_new_alert_and_still_sees_a_recovery(stage):
    stage.send().take()
    Workspace.objects.update(status="disabled")
    stage.send(key="new").send("Ok").take()
    assert stage.outcomes() == ["created", "dropped", "recovered"]
    event = Event.objects.get(alert_key="new")
    assert event.outcome_detail == "The workspace is disabled."  # in the language of none: each reader reads it in theirs
    assert "disabled" not in explain.explain_event(event)


def test_a_bad_event_is_found_told_and_passed_over(stage):
    for n in range(7):
        stage.send(key=f"k{n}")
    Event.objects.filter(alert_key="k2").update(payload={"title_rule": "x"})
    # Longer than the column: this one only breaks the writing.
    Event.objects.filter(alert_key="k5").update(
        payload={"title_rule": "t", "description": "", "labels": {}, "images": [], "links": []}, status="Enormous!!"
    )
    stage.take()
    assert stage.outcomes() == ["created", "created", "failed", "created", "created", "failed", "created"]
    assert Event.objects.get(alert_key="k2").outcome_detail == "KeyError: 'description'"
    assert Incident.objects.count() == 5


def test_the_grouping_seam_joins_an_open_incident(stage, monkeypatch):
    monkeypatch.setattr(intake, "group_key", lambda alert: alert.labels.get("service"))
    stage.send("Warning", key="a", service="db").send("Critical", key="b", service="db").send(key="c", service="web").take()
    stage.send("Info", key="d", service="db").take()
    db = Incident.objects.get(group_key="db")
    assert (db.alert_count, db.severity, db.title, db.alerts.count()) == (3, "Critical", "disk full", 3)
    stage.send("Ok", key="b").send("Ok", key="d").take()
    db.refresh_from_db()
    assert (db.progress, db.status) == ("Triggered", "Warning")
    stage.send("Info", key="b", service="db").take()  # while its incident is open a recovered alert goes on
    assert db.alerts.count() == 3
    stage.send("Ok", key="b").send("Ok", key="a").send("Info", key="a", service="db").take()
    db.refresh_from_db()
    assert (db.progress, db.status, db.alerts.filter(is_open=True).count()) == ("Closed", "Ok", 0)
    assert Incident.objects.filter(group_key="db", progress="Triggered").count() == 1


def test_numbers_of_open_incidents_are_passed_over(stage):
    stage.send().take()
    first = Incident.objects.get()
    with connection.cursor() as cursor:
        cursor.execute("SELECT setval(pg_get_serial_sequence('escalation_incident', 'id'), %s)", [first.pk + 2**24 - 1])
    stage.send(key="other").take()
    assert Incident.objects.latest("id").pk == first.pk + 2**24 + 1


def test_a_batch_ends_when_its_time_is_up_and_the_rest_stays_due(stage):
    for n in range(120):
        stage.send(key=f"k{n}")
    assert intake.run_once(stage.now, budget_ms=0) == intake.SMALLEST_BATCH
    assert intake.run_once(stage.now, limit=30) == 30
    assert Event.objects.filter(outcome=None).count() == 40


def test_the_mark_never_passes_a_row_that_commits_late(stage, monkeypatch):
    mark = intake._Mark()
    monkeypatch.setattr(intake, "_mark", mark)
    stage.send(key="early").send(key="late")
    early = Event.objects.get(alert_key="early")
    Event.objects.filter(pk=early.pk).update(outcome="merged")  # not visible yet
    stage.take()
    stage.after(seconds=10)
    Event.objects.filter(pk=early.pk).update(outcome=None)
    stage.take()
    assert stage.outcomes() == ["created", "created"] and mark.id == 0
    stage.after(seconds=16).send(key="third").take()
    assert mark.id >= early.pk


@pytest.mark.django_db(transaction=True)
def test_only_one_process_takes_events_at_a_time():
    stage = Stage()
    stage.send()
    seen = []

    def other():
        seen.append(intake.run_once(T0))
        connections.close_all()

    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [intake.LOCK])
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [0]
    assert intake.run_once(T0) == 1


@pytest.mark.django_db(transaction=True)
def test_an_incident_that_somebody_holds_makes_only_its_own_events_wait():
    stage = Stage()
    stage.send(key="held").send(key="free").take()
    stage.send("Ok", key="held").send("Ok", key="free").send("Info", key="held").send(key="third")
    counts = []

    def other():
        counts.append(intake.run_once(T0))
        connections.close_all()

    with transaction.atomic():
        Incident.objects.select_for_update(no_key=True).get(alerts__alert_key="held")
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert counts == [4], "those that were passed over count: there may be more behind them"
    assert stage.outcomes() == ["created", "created", None, "recovered", None, "created"]
    stage.after(seconds=2).take()
    assert stage.outcomes() == ["created", "created", "recovered", "recovered", "created", "created"]


@pytest.mark.django_db(transaction=True)
def test_a_noisy_key_whose_incident_somebody_holds_stops_nobody_else():
    stage = Stage()
    stage.send(key="held").take()
    for _n in range(4):
        stage.send(key="held")
    stage.send(key="free").send("Ok", key="held")
    with Stranger("escalation_incident", Incident.objects.get().pk):
        assert [intake.run_once(stage.now, limit=2) for _n in range(3)] == [2, 1, 0]
        assert stage.outcomes() == ["created", None, None, None, None, "created", None]
    stage.after(seconds=2).take()
    assert stage.outcomes() == ["created", *["duplicate"] * 4, "created", "recovered"]
    assert intake._stuck == {}


@pytest.mark.django_db(transaction=True)
def test_a_database_that_was_restarted_costs_no_event():
    stage = Stage()
    stage.send(key="before")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        pid = cursor.fetchone()[0]

    killed = []

    def kill():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])

            def gone():
                cursor.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid])
                return not cursor.rowcount

            assert until(gone)
            killed.append(pid)
        connections.close_all()

    thread = threading.Thread(target=kill)
    thread.start()
    thread.join()
    assert killed == [pid]
    stage.send(key="after").take()
    assert stage.outcomes() == ["created", "created"]
