"""Two nodes on one database: whatever both of them look at in the same millisecond, everybody is paged once."""

import json
import threading
from collections import Counter
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.test import Client

from channels_app import outbox
from channels_app.models import Channel, Delivery
from escalation import engine, intake, lifecycle
from escalation.models import Event, Incident, Run, TimelineEntry
from tests.fakes.server import Server
from tests.world import START, World, layer

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def stage(client: Client):
    return World(client)


def hook(server: Server) -> Channel:
    return Channel.objects.create(kind="webhook", name="hook", settings={"url": server.url}, allowed_hosts=[server.host])


def node(now: datetime, start: threading.Barrier, failures: list[BaseException]) -> None:
    """One node's workers: passes over everything that is due, until there is nothing left to do."""
    try:
        start.wait(5)
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
    for thread in threads:
        thread.join(60)
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
                start.wait(5)
                lifecycle.acknowledge(incident.id, actor=member, via="api", now=START)
            finally:
                connection.close()

        threads = [threading.Thread(target=acknowledge, args=(member,)) for member in people]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
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
