"""What the pusher is handed: residents for empty slots, successors, and coarse jobs one at a time."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from django.db.models import F
from django.db.models.functions import Now
from django_q.conf import Conf
from django_q.models import OrmQ
from django_q.signing import SignedPackage
from django_q.tasks import async_task

from channels_app import resident
from flashduty import broker as module
from flashduty.broker import RowsBroker

# Committed rows, seen by other connections; only the one table that is written is flushed, since flushing all costs a second.
pytestmark = pytest.mark.django_db(transaction=True, available_apps=["django_q"])


@pytest.fixture
def broker(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RowsBroker:
    settings.RUN_DIR = tmp_path
    settings.RESIDENTS = {"a": ("tests.residents_dummy.work", ("a",)), "b": ("tests.residents_dummy.work", ("b",))}
    monkeypatch.setenv("FLASHDUTY_TREE", "2-tree")
    monkeypatch.setattr(module, "POLL", 0.001)
    monkeypatch.setattr(module, "JOBS_EVERY", 0.0)
    monkeypatch.setattr(module, "AGAIN", 60.0)  # on a busy machine a second can pass between two looks
    return RowsBroker("flashduty")


def handed(broker: RowsBroker) -> str | None:
    """The name of what is handed out now."""
    found = broker.dequeue()
    return SignedPackage.loads(found[0][1])["name"] if found else None


def hold(slot: str, tree: str = "2-tree", pid: int | None = None) -> resident.Lock:
    lock = resident.Lock(f"{slot}.slot")
    assert lock.take()
    lock.path.write_text(f"{pid or os.getpid()} {tree}")
    return lock


def test_each_empty_slot_gets_one_resident(broker: RowsBroker) -> None:
    assert [handed(broker) for _ in range(4)] == ["a", "b", None, None]


def test_the_package_has_what_worker_and_monitor_need(broker: RowsBroker) -> None:
    ack_id, text = broker.dequeue()[0]
    task = SignedPackage.loads(text)
    assert ack_id is None
    assert {"id", "name", "func", "args", "kwargs", "started"} <= task.keys()
    assert len(task["id"]) <= 32
    assert (task["func"], task["args"]) == ("tests.residents_dummy.work", ("a",))


def test_a_slot_that_is_held_gets_none_until_its_holder_asks(broker: RowsBroker, tmp_path: Path) -> None:
    hold("a"), hold("b")
    assert handed(broker) is None
    (tmp_path / "b.want").touch()
    assert [handed(broker), handed(broker)] == ["b", None]
    assert not (tmp_path / "b.want").exists()


def test_one_that_arrived_and_died_is_replaced_at_once_and_one_on_its_way_is_waited_for(broker: RowsBroker) -> None:
    hold("b")
    assert [handed(broker), handed(broker)] == ["a", None]
    hold("a", pid=4711).free()
    assert handed(broker) == "a"


def test_a_newer_tree_stands_in_line_behind_an_older_one_and_never_the_other_way(broker: RowsBroker) -> None:
    hold("a", tree="1-tree"), hold("b", tree="3-tree")
    assert [handed(broker), handed(broker)] == ["a", None]
    line = resident.Lock("a.next")
    assert line.take()
    broker.sent.clear()
    assert handed(broker) is None  # one in line is enough


def test_a_tree_that_was_told_to_stop_hands_out_nothing(broker: RowsBroker, tmp_path: Path) -> None:
    async_task("math.sqrt", 4, broker=broker)
    (tmp_path / "stop.2-tree").write_text("5.0")
    assert handed(broker) is None


def test_coarse_jobs_are_taken_one_at_a_time_and_again_when_a_lease_ran_out(broker: RowsBroker) -> None:
    hold("a"), hold("b")
    for number in (1, 2):
        async_task("math.sqrt", number, task_name=f"job {number}", broker=broker)
    OrmQ.objects.update(lock=F("lock") - timedelta(seconds=1))
    taken = broker.dequeue()
    assert SignedPackage.loads(taken[0][1])["name"] == "job 1"
    assert handed(broker) is None
    OrmQ.objects.filter(pk=taken[0][0]).update(lock=Now() - timedelta(seconds=1))  # its worker died long ago
    taken = broker.dequeue()
    assert SignedPackage.loads(taken[0][1])["name"] == "job 1"
    broker.acknowledge(taken[0][0])
    assert handed(broker) == "job 2"


def test_a_long_job_is_leased_for_longer_than_it_may_take(broker: RowsBroker) -> None:
    hold("a"), hold("b")
    async_task("math.sqrt", 4, timeout=3600, broker=broker)
    assert broker.dequeue()
    assert OrmQ.objects.filter(lock__gt=Now() + timedelta(seconds=3600)).exists()
    assert Conf.RETRY > Conf.TIMEOUT


def test_no_exception_leaves_dequeue(broker: RowsBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    hold("a"), hold("b")
    monkeypatch.setattr(module, "TAKE", "SELECT 1/0")
    assert handed(broker) is None
    monkeypatch.undo()
    broker.stop.path.mkdir()  # a stop file that cannot be read
    assert broker.dequeue() is None
