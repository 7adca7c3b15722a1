"""What is older than the installation keeps goes, all of it and nothing else; killed anywhere, the next run goes on."""

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils.module_loading import import_string

from channels_app import resident
from channels_app.models import Delivery, EarlyReceipt, Notification
from escalation import lifecycle, retention, tasks
from escalation.models import Alert, Event, Incident, Responder, RuleSnapshot, Run, TimelineEntry
from mapping.models import Installation, Throttle
from tests.world import START, Stranger, World, layer

pytestmark = pytest.mark.django_db

OF_INCIDENTS = (Incident, Alert, Event, Run, TimelineEntry, Responder, Notification, Delivery)
KEPT = timedelta(days=180)


def counts() -> dict[str, int]:
    return {model.__name__: model.objects.count() for model in OF_INCIDENTS}


def at(world: World, title: str, when, *, close: bool = True) -> Incident:
    """An incident with a page and an acknowledgement, at that instant."""
    world.now = when
    Installation.objects.update(last_pass_at=None)
    world.alert(title)
    world.ack(title)
    if close:
        world.do("close", title)
    world.fresh()
    Incident.objects.filter(title=title).update(created_at=when)
    return world.incident(title)


@pytest.fixture
def played(world: World) -> World:
    """Two old incidents, one that is younger, one that is old and open, and a test message that is old."""
    lee = world.person("Lee", ["sandbox_voice"])
    world.rule(layer(lee))
    at(world, "old", START)
    at(world, "open", START, close=False)
    at(world, "old too", START)
    world.alert("nobody knows it", "Ok")
    Notification.objects.create(event="test", severity="Info", created_at=START)
    at(world, "younger", START + timedelta(days=2))
    world.now = START + KEPT + timedelta(days=1)
    return world


def test_old_closed_incidents_go_with_all_that_belongs_to_them(played):
    before, young = counts(), Incident.objects.get(title="younger").id
    kept = {model: set(model.objects.filter(incident_id=young).values_list("id", flat=True)) for model in (Alert, Run, TimelineEntry)}
    would, _whole = retention.prune(played.now, dry=True)
    assert counts() == before, "a dry run removes nothing"
    gone, whole = retention.prune(played.now)
    assert whole and gone == would and gone["incidents"] == 2 and gone["alerts"] == 2 and gone["deliveries"] >= 2
    assert set(Incident.objects.values_list("title", flat=True)) == {"open", "younger"}
    assert sum(before.values()) - sum(counts().values()) == sum(gone.values())
    for model, ids in kept.items():
        assert ids and ids == set(model.objects.filter(incident_id=young).values_list("id", flat=True))
    assert not Event.objects.filter(alert=None).exists(), "what opened nothing is old, too"
    assert not Notification.objects.filter(event="test").exists()
    assert set(Notification.objects.values_list("topic", flat=True)) == set(Incident.objects.values_list("id", flat=True))
    assert retention.prune(played.now) == ({}, True), "a second run finds nothing"


def test_killed_at_any_statement_the_database_is_whole_and_the_next_run_goes_on(played):
    class Killed(BaseException):
        pass

    expected, _whole = retention.prune(played.now, dry=True)
    kills, before = 0, counts()
    for fatal in range(200):
        left = fatal

        def kill(execute, sql, params, many, context):
            nonlocal left
            if not sql.startswith(("SAVEPOINT", "RELEASE", "ROLLBACK", "SET")):
                left -= 1
                if left < 0:
                    raise Killed
            return execute(sql, params, many, context)

        try:
            with connection.execute_wrapper(kill):
                retention.prune(played.now)
        except Killed:
            kills += 1
        with connection.cursor() as cursor:
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for title in ("old", "old too"):  # all of it is there but its events, or nothing
            if incident := Incident.objects.filter(title=title).first():
                assert incident.alerts.exists() and incident.runs.exists() and Delivery.objects.filter(topic=incident.id).exists()
        if left >= 0:
            break
    assert kills > 15
    assert sum(before.values()) - sum(counts().values()) == sum(expected.values())


def test_what_is_closed_and_not_finished_stays(played):
    pk = Incident.objects.get(title="old").id
    for of, change in (
        (TimelineEntry.objects.filter(incident_id=pk), {"handled_at": None}),
        (Run.objects.filter(incident_id=pk), {"ended_at": None}),
        (Alert.objects.filter(incident_id=pk), {"is_open": True}),
        (Notification.objects.filter(topic=pk), {"exhausted_at": played.now}),
        (Delivery.objects.filter(topic=pk), {"state": "queued"}),
        (Delivery.objects.filter(topic=pk), {"fallback_at": played.now}),
    ):
        with transaction.atomic():
            of.update(**change)
            assert retention.prune(played.now)[0]["incidents"] == 1, change
            assert Incident.objects.filter(id=pk).exists() and Delivery.objects.filter(topic=pk).exists()
            transaction.set_rollback(True)


def test_a_message_that_went_out_inside_one_that_goes_stays(played):
    old = Delivery.objects.filter(topic=Incident.objects.get(title="old").id).first()
    young = Delivery.objects.filter(topic=Incident.objects.get(title="younger").id).first()
    Delivery.objects.filter(id=young.id).update(bundled_by=old, fallback_of=old)
    retention.prune(played.now)
    young.refresh_from_db()
    assert young.bundled_by is None and young.fallback_of is None


def test_leftovers_of_machines_go_and_a_rules_newest_copy_stays(played):
    rule = RuleSnapshot.objects.get()
    fields = {"rule": rule.rule, "version": rule.version - 1, "body": {}, "created_at": START}
    RuleSnapshot.objects.create(body_hash="old", **fields)
    RuleSnapshot.objects.create(body_hash="young", **fields | {"created_at": played.now})
    Throttle.objects.create(key="login:a", window_end=START)
    Throttle.objects.create(key="login:b", window_end=played.now)
    EarlyReceipt.objects.create(channel=played.channel("sandbox_voice"), message_id="x", state="failed", received_at=START)
    Run.objects.exclude(incident__title="open").delete()
    Run.objects.all().delete()
    gone, _whole = retention.prune(played.now)
    assert set(RuleSnapshot.objects.values_list("body_hash", flat=True)) == {rule.body_hash, "young"}
    assert Throttle.objects.get().key == "login:b" and not EarlyReceipt.objects.exists()
    assert gone["rule snapshots"] == gone["limits that were met"] == gone["early receipts"] == 1


def test_the_daily_job_ends_with_its_tree_and_takes_its_turn_again(played, monkeypatch, settings, tmp_path):
    settings.RUN_DIR = tmp_path
    monkeypatch.setenv("FLASHDUTY_TREE", "1-tree")
    (tmp_path / "stop.1-tree").write_text("5")
    monkeypatch.setattr(tasks, "db_now", lambda: played.now)
    again: list[str] = []
    monkeypatch.setattr(tasks, "async_task", lambda func, **_options: again.append(func))
    assert resident.stopping()
    tasks.prune()
    assert [import_string(func) for func in again] == [tasks.prune] and Incident.objects.count() > 2, "one step at most"
    (tmp_path / "stop.1-tree").unlink()
    tasks.prune()
    assert len(again) == 1 and Incident.objects.count() == 2


def test_the_command_says_what_it_removed(played):
    def said(*options: str) -> str:
        out = StringIO()
        call_command("prune", *options, stdout=out)
        return out.getvalue().strip()

    Installation.objects.update(retention_days=36500)
    assert said() == "Nothing is older than 36500 days."
    Installation.objects.update(retention_days=180)
    Incident.objects.exclude(title="open").update(created_at=START - KEPT * 2, close_time=START - KEPT * 2)
    assert said("--dry-run").startswith("Would be removed: 3 incidents, 3 alerts, ") and Incident.objects.count() == 4
    assert said().startswith("Removed: 3 incidents, 3 alerts, ") and Incident.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_what_somebody_holds_is_left_for_the_next_time(world):
    world.rule(layer(world.person("Lee", ["sandbox_voice"])))
    held, message = at(world, "held", START), at(world, "its message is held", START)
    at(world, "free", START)
    world.now += KEPT + timedelta(days=1)
    delivery = Delivery.objects.filter(topic=message.id).first()
    with Stranger("escalation_incident", held.id):
        with Stranger("channels_app_delivery", delivery.id):
            assert retention.prune(world.now)[1]
        assert Incident.objects.filter(title="held").exists() and Incident.objects.filter(id=message.id).exists()
        retention.prune(world.now)
        assert list(Incident.objects.values_list("title", flat=True)) == ["held"]
        with pytest.raises(lifecycle.Refused):
            lifecycle.reopen(message.id, actor=None, via="api", now=world.now, reason="too late")
    retention.prune(world.now)
    assert not any(counts().values())
