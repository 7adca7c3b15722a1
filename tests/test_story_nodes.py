"""Two nodes on one database: whatever both of them look at in the same millisecond, everybody is paged once."""

import json
import threading
import time
from collections import Counter
from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction
from django.test import Client

from channels_app import http, outbox, policy
from channels_app.book import Book
from channels_app.models import Channel, Delivery
from escalation import engine, intake, lifecycle
from escalation.ids import hex_id
from escalation.models import Event, Incident, Run, TimelineEntry
from mapping.clock import db_now
from mapping.models import ApiKey
from tests.fakes.server import Reply, Seen, Server
from tests.test_drain import Running
from tests.world import START, World, layer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def stage(client: Client, monkeypatch: pytest.MonkeyPatch):
    # What waited a second for its turn, as two nodes in one busy process do, is sent all the same.
    monkeypatch.setattr(policy, "STALE", policy.STALEST)
    return World(client)


def hook(server: Server) -> Channel:
    return Channel.objects.create(kind="webhook", name="hook", settings={"url": server.url}, allowed_hosts=[server.host])


def wait_for_ever(limit: str = "0") -> None:
    """From now on who waits for a lock on this thread's connection, and did not say how long, does so for ever (`DEFAULT`: as usual)."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET lock_timeout = {limit}")


def is_waited_for() -> bool:
    """Whether anybody waits for what this thread's session has locked."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))")
        return cursor.fetchone()[0]


def ended(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def node(now: datetime, start: threading.Barrier, failures: list[BaseException]) -> None:
    """One node's workers: passes over everything that is due, until there is nothing left to do."""
    try:
        start.wait(60)
        wait_for_ever()  # on a busy machine the other node may sleep for seconds with a lock in its hand
        idle = 0
        while idle < 3:
            done = intake.run_once(now) + engine.run_once(now) + outbox.run_once(now)
            idle = 0 if done else idle + 1
    except BaseException as error:
        failures.append(error)
    finally:
        connection.close()


def both_nodes(now: datetime) -> None:
    failures: list[BaseException] = []
    start = threading.Barrier(2)
    threads = [threading.Thread(target=node, args=(now, start, failures)) for _node in range(2)]
    for thread in threads:
        thread.start()
    ended(*threads)
    assert not failures, failures


def test_every_alert_is_paged_once_and_every_timer_fires_once(stage):
    with Server() as sink:
        stage.rule(layer(groups=[hook(sink)], notify_step=1, max_times=1))
        events = [{"title_rule": f"alert {n}", "event_status": "Critical", "alert_key": str(n % 20)} for n in range(40)]
        answer = stage.client.post(
            f"/event/push/alert/standard?integration_key={stage.integration.key}", json.dumps(events), content_type="application/json"
        )
        assert answer.status_code == 200
        Event.objects.update(received_at=START)
        both_nodes(START)
        assert not Event.objects.filter(outcome=None).exists()
        assert Incident.objects.count() == 20 and Run.objects.count() == 20
        pages = Counter(seen.json()["incident_id"] for seen in sink.seen)
        assert len(pages) == 20 and set(pages.values()) == {1}
        sink.seen.clear()
        both_nodes(START + timedelta(minutes=1))
        loops = Counter((seen.json()["incident_id"], seen.json()["event"]) for seen in sink.seen)
        assert len(loops) == 20 and set(loops.values()) == {1} and {event for _pk, event in loops} == {"refire"}
        assert set(Delivery.objects.values_list("state", "attempts")) == {("sent", 1)}


def test_two_people_acknowledge_in_the_same_millisecond(stage):
    with Server() as sink:
        stage.rule(layer(groups=[hook(sink)]))
        stage.alert("contended")
        people = [stage.person("Lee", []), stage.person("Kim", [])]
        incident, start = stage.incident(), threading.Barrier(2)

        def acknowledge(member) -> None:
            try:
                start.wait(60)
                wait_for_ever()
                lifecycle.acknowledge(incident.id, actor=member, via="api", now=START)
            finally:
                connection.close()

        threads = [threading.Thread(target=acknowledge, args=(member,)) for member in people]
        for thread in threads:
            thread.start()
        ended(*threads)
        stage.settle()
        assert stage.incident().progress == "Processing"
        assert TimelineEntry.objects.filter(type="i_ack").count() == 2  # each of them has it in hand, and each is recorded once
        assert [seen.json()["event"] for seen in sink.seen] == ["triggered", "acknowledged"]  # the group is told once


def test_no_request_starts_after_an_acknowledgement_was_answered(stage):
    """The page waits in the queue while somebody acknowledges; whoever comes to send it finds it cancelled."""
    with Server() as sink:
        stage.rule(layer(groups=[hook(sink)]))
        stage.alert("race", settle=False)
        intake.run_once(stage.now)
        engine.run_once(stage.now)
        assert Delivery.objects.get().state == "queued"
        lifecycle.acknowledge(stage.incident().id, actor=None, via="api", now=stage.now)
        stage.settle()
        assert sink.seen == []
        assert Delivery.objects.get().reason == "acknowledged"
        assert not outbox.run_once(stage.now)


class Holding:
    """Somebody else's transaction that holds the rows of a query. Whoever waited for it until it gave up fails the test."""

    def __init__(self, query: str, *values: object) -> None:
        self.query, self.values = query, values
        self.held, self.let_go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(self.query, self.values)
                self.held.set()
                self.given_up = not self.let_go.wait(20)  # as a session that idles: the server would end it after thirty
        finally:
            connection.close()

    def __enter__(self) -> "Holding":
        self.thread.start()
        assert self.held.wait(60)
        return self

    def __exit__(self, *_error: object) -> None:
        self.let_go.set()
        ended(self.thread)
        assert not self.given_up, "somebody waited for it"


def test_an_incident_that_somebody_holds_stops_no_other_timer(stage):
    lee = stage.person("Lee")
    stage.rule(layer(lee))
    for title in ("held", "free"):
        stage.alert(title)
        stage.do("snooze", title, actor=lee, minutes=1)
    stage.fresh()
    stage.now += timedelta(minutes=1)
    wait_for_ever()
    with Holding("SELECT FROM escalation_incident WHERE id = %s FOR UPDATE", stage.incident("held").id):
        stage.settle()
        assert [heard.text.count("free") > 0 for heard in stage.fresh()] == [True]
    wait_for_ever("DEFAULT")
    stage.settle()
    assert [heard.text.count("held") > 0 for heard in stage.fresh()] == [True]


@pytest.mark.slow
def test_an_address_that_somebody_holds_delays_no_other_page_and_loses_none(stage, monkeypatch):
    with connection.cursor() as cursor:
        cursor.execute("SELECT setting::int FROM pg_settings WHERE name = 'lock_timeout'")
        longest = cursor.fetchone()[0] + engine.LOCK_WAIT_MS  # of a batch, and of the last incident that is tried alone
    assert longest / 1000 + engine.ISOLATED_SECONDS < 4.8  # the supervisor takes an engine for dead after five
    monkeypatch.setattr(engine, "ISOLATED_SECONDS", 60.0)
    monkeypatch.setattr(engine, "STUCK_SECONDS", 3600.0)
    waits: list[BaseException] = []
    waited = engine._waited
    monkeypatch.setattr(engine, "_waited", lambda error: waits.append(error) or waited(error))
    lee, kim = stage.person("Lee"), stage.person("Kim")
    stage.rule(layer(lee), filters=[[{"key": "severity", "oper": "IN", "vals": ["Critical"]}]])
    stage.rule(layer(kim))
    stage.alert("first")
    stage.fresh()
    for title, severity in (("held", "Critical"), ("free", "Warning"), ("held too", "Critical")):
        stage.alert(title, severity, settle=False)
    intake.run_once(stage.now)
    with Holding("SELECT FROM channels_app_address WHERE target = %s FOR UPDATE", f"member:{lee.id}"):
        engine.run_once(stage.now)
        assert len(waits) == 3  # the batch, and each of the two that are held
        wait_for_ever()
        engine.run_once(stage.now)
        outbox.run_once(stage.now)
        assert len(waits) == 3  # what is known to be held is not waited for again
        assert [(heard.who, heard.event) for heard in stage.fresh()] == [("Kim", "triggered")]
        assert TimelineEntry.objects.filter(handled_at=None).count() == 2
    wait_for_ever("DEFAULT")
    engine.fresh()
    stage.settle()
    assert [(heard.who, heard.event) for heard in stage.fresh()] == [("Lee", "triggered")] * 2
    assert not TimelineEntry.objects.filter(type="i_failed").exists()


def test_a_fallback_that_starts_while_somebody_acknowledges_is_cancelled_with_the_rest(stage):
    lee = stage.person("Lee", ["sandbox_im"])
    stage.channel("sandbox_sms")
    Channel.objects.filter(kind="sandbox_im").update(fallback_kinds=["sandbox_sms"])
    stage.rule(layer(lee))
    stage.alert("photo finish", settle=False)
    intake.run_once(stage.now)
    engine.run_once(stage.now)
    Delivery.objects.update(fallback_at=stage.now)
    notes, failures = Book(), []
    notes.refresh(stage.now)

    def acknowledge() -> None:
        try:
            wait_for_ever()
            lifecycle.acknowledge(stage.incident().id, actor=lee, via="api", now=stage.now)
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    person = threading.Thread(target=acknowledge)
    with transaction.atomic():
        outbox.fallbacks(stage.now, notes)
        person.start()
        until = time.monotonic() + 20
        while not is_waited_for():
            assert time.monotonic() < until and person.is_alive(), failures
            time.sleep(0.005)
    ended(person)
    assert not failures
    assert set(Delivery.objects.values_list("channel__kind", "state")) == {("sandbox_im", "cancelled"), ("sandbox_sms", "cancelled")}
    assert not outbox.run_once(stage.now)


@pytest.mark.parametrize("helping", [False, True])
def test_a_batch_of_acknowledgements_takes_the_messages_of_all_its_incidents_in_the_order_of_ids(stage, helping):
    """As whoever records what became of them does: the last message is the first incident's, and the second incident's is held."""
    lee, sue = stage.person("Lee"), stage.person("Sue", role="administrator")
    stage.rule(layer(lee, notify_step=1, max_times=1))
    stage.alert("one")
    if helping:  # somebody has it already, and of the messages about it only those of whoever was asked to help end
        stage.ack("one", lee)
    stage.alert("two")
    if helping:
        stage.do("add_responder", "one", member_ids=[sue.id])
    else:
        stage.pass_time(minutes=1)
    held, last = Delivery.objects.order_by("id").values_list("id", flat=True)[1:3]
    ids = [hex_id(row.created_at, row.id) for row in Incident.objects.order_by("id")]
    assert Delivery.objects.get(id=last).topic < Delivery.objects.get(id=held).topic
    with transaction.atomic():
        _key, secret = ApiKey.issue(sue, "test")
    answers: list[int] = []

    def acknowledge() -> None:
        try:
            wait_for_ever()
            body = {"incident_ids": ids}
            answers.append(Client().post(f"/incident/ack?app_key={secret}", body, content_type="application/json").status_code)
        finally:
            connection.close()

    client = threading.Thread(target=acknowledge)
    with transaction.atomic():
        list(Delivery.objects.select_for_update(no_key=True).filter(id=held))
        client.start()
        until = time.monotonic() + 20
        while not is_waited_for():
            assert time.monotonic() < until and client.is_alive(), answers
            time.sleep(0.005)
        list(Delivery.objects.select_for_update(no_key=True, nowait=True).filter(id=last))
    ended(client)
    assert answers == [200] and not Delivery.objects.filter(id__in=[held, last], withdrawn=False).exists()


def test_an_alarm_of_the_engine_and_one_of_the_drain_do_not_wait_for_each_other(stage):
    lee = stage.person("Lee")
    stage.rule(layer(lee), filters=[[{"key": "severity", "oper": "IN", "vals": ["Critical"]}]])
    stage.alert("first")
    for title, severity in (("nobody is named for it", "Info"), ("second", "Critical")):
        stage.alert(title, severity, settle=False)
    intake.run_once(stage.now)
    failures: list[BaseException] = []
    held, waited_for, over = threading.Event(), threading.Event(), threading.Event()

    def drain() -> None:
        try:
            wait_for_ever()
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT FROM channels_app_address FOR NO KEY UPDATE")
                held.set()
                while not over.wait(0.005):
                    if is_waited_for():
                        waited_for.set()
                        break
                cursor.execute("UPDATE mapping_installation SET alarm = 'no network' WHERE id = 1")
        except BaseException as error:
            failures.append(error)
        finally:
            connection.close()

    other = threading.Thread(target=drain)
    other.start()
    assert held.wait(60)
    wait_for_ever()
    try:
        engine.run_once(stage.now)
    finally:
        over.set()
        wait_for_ever("DEFAULT")
    ended(other)
    assert not failures and waited_for.is_set()


# ---- the database restarts while a provider holds a request ----


class Slow(Server):
    """A provider that holds one request, the first or a later one, until it is let go; `at` is the story's clock when each came."""

    def __init__(self, stage: World, holds: int = 1) -> None:
        super().__init__(self._take)
        self.stage, self.holds, self.at = stage, holds, []
        self.held, self.let_go = threading.Event(), threading.Event()

    def _take(self, seen: Seen) -> Reply:
        self.at.append(self.stage.now)
        if len(self.seen) == self.holds:
            self.held.set()
            assert self.let_go.wait(60)
        return Reply(200)


def restart_the_database() -> None:
    """Every session of everybody ends, as with a failover or a restart; new ones are taken at once."""
    connection.close()
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            assert cursor.rowcount >= 1
    finally:
        other.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may take so long that a busy machine gets through its story meanwhile, and still less than a lease."""
    monkeypatch.setattr(http, "TOTAL_SECONDS", 25.0)


def told(server: Server) -> list[tuple[str, int, bool]]:
    return [(body["event"], body["attempt"], body["possible_repeat"]) for body in (seen.json() for seen in server.seen)]


def test_the_database_restarts_in_mid_flight_and_the_drain_records_what_it_knows(stage, settings, tmp_path, patient):
    settings.RUN_DIR = tmp_path
    stage.now = db_now()
    with Slow(stage, holds=2) as sink:
        stage.rule(layer(groups=[hook(sink)], notify_step=1, max_times=1))
        running = Running("drain-0")
        for number, title in enumerate(("recorded before", "mid-flight")):
            stage.alert(title, settle=False)
            intake.run_once(stage.now)
            engine.run_once(stage.now)
            running.until(sink.held.is_set if number else lambda: Delivery.objects.filter(state="sent").exists(), 60)
        restart_the_database()  # the recorder's session, too
        sink.let_go.set()
        running.until(lambda: Delivery.objects.filter(state="sent").count() == 2, 60)
        running.end(60)
        assert told(sink) == [("triggered", 1, False)] * 2  # nothing was asked for twice
        began = stage.now
        stage.pass_time(minutes=1)
        assert told(sink)[2:] == [("refire", 1, False)] * 2 and set(sink.at[2:]) == {began + timedelta(minutes=1)}
        assert set(Delivery.objects.values_list("state", "attempts")) == {("sent", 1)}


def test_the_database_restarts_in_mid_flight_and_a_node_that_dies_of_it_leaves_a_labelled_repeat(stage, patient):
    with Slow(stage) as sink:
        stage.rule(layer(groups=[hook(sink)], notify_step=2, max_times=1))
        stage.alert("mid-flight", settle=False)
        failures: list[BaseException] = []
        worker = threading.Thread(target=node, args=(stage.now, threading.Barrier(1), failures))
        worker.start()
        assert sink.held.wait(60)
        restart_the_database()
        sink.let_go.set()
        ended(worker)
        assert failures and Delivery.objects.get().state == "sending"  # it knew, and could not write it down
        stage.settle()
        assert len(sink.seen) == 1  # whoever sent it may be alive
        stage.pass_time(seconds=policy.LEASE.total_seconds() + 1)
        assert told(sink) == [("triggered", 1, False), ("triggered", 2, True)]
        stage.pass_time(minutes=2)
        assert told(sink)[2:] == [("refire", 1, False)] and sink.at[2] - START == timedelta(minutes=2)
        assert set(Delivery.objects.values_list("state", "attempts")) == {("sent", 1), ("sent", 2)}
