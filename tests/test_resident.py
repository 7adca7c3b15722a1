"""The residents' shell: one at a time in a slot, awake when told, and a change-over without a gap. Threads stand for processes: an flock
belongs to an open file, so two threads that open a slot's file compete as two processes do."""

import itertools
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from django.db import OperationalError, connection

from channels_app import resident

# Committed rows, seen by other connections; only the one table that is written is flushed, since flushing all costs a second.
pytestmark = pytest.mark.django_db(transaction=True, available_apps=["django_q"])


@pytest.fixture
def run_dir(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settings.RUN_DIR = tmp_path / "run"
    monkeypatch.setenv("FLASHDUTY_TREE", "0-tree")
    settings.RUN_DIR.mkdir()
    return settings.RUN_DIR


@pytest.fixture
def place(run_dir: Path):
    """`place(one_pass, **how)` serves in a thread; at the end all are told to stop."""
    threads: list[threading.Thread] = []

    def start(one_pass: Callable[[datetime], float | None], **how) -> threading.Thread:
        thread = threading.Thread(target=resident.serve, args=("slot", one_pass, "flashduty_slot"), kwargs={"stint": 60.0} | how)
        thread.start()
        threads.append(thread)
        return thread

    yield start
    (run_dir / "stop.0-tree").write_text("0.5")
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def until(what: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.002)


def notify() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify('flashduty_slot', '')")


def test_a_pass_gets_the_database_clock_and_runs_again_when_told(place) -> None:
    seen: list[tuple[float, datetime]] = []
    place(lambda now: seen.append((time.monotonic(), now)))
    until(lambda: seen)
    assert abs(seen[0][1] - datetime.now(UTC)) < timedelta(seconds=5)
    assert seen[0][1].utcoffset() == timedelta(0)
    time.sleep(0.1)
    count, told = len(seen), time.monotonic()
    notify()
    until(lambda: len(seen) > count)
    assert seen[count][0] - told < 0.3  # without being told it would look within a second


def test_a_notify_during_a_pass_is_not_lost(place) -> None:
    begun = []

    def one_pass(_now: datetime) -> None:
        begun.append(time.monotonic())
        if len(begun) == 1:
            notify()

    place(one_pass)
    until(lambda: len(begun) > 1)
    assert begun[1] - begun[0] < 0.3


def test_it_wakes_at_the_next_due_instant_counted_from_now_of_the_pass(place) -> None:
    begun = []

    def one_pass(_now: datetime) -> float:
        begun.append(time.monotonic())
        time.sleep(0.03)
        return 0.08

    place(one_pass)
    until(lambda: len(begun) >= 4)
    pauses = sorted(b - a for a, b in itertools.pairwise(begun))
    assert pauses[0] > 0.075 and pauses[1] < 0.1


def test_another_thread_can_wake_it(place) -> None:
    begun: list[float] = []
    waker = resident.Waker()
    place(lambda _now: begun.append(time.monotonic()), waker=waker)
    until(lambda: begun)
    time.sleep(0.05)
    count = len(begun)
    for _ in range(100_000):
        waker.set()
    until(lambda: len(begun) > count, 0.5)


def test_a_successor_takes_over_without_a_gap_and_never_beside(place, run_dir: Path) -> None:
    seen: list[tuple[float, str]] = []
    inside = threading.Lock()

    def work(name: str) -> Callable[[datetime], float]:
        def one_pass(_now: datetime) -> float:
            assert inside.acquire(blocking=False), "two at once"
            seen.append((time.monotonic(), name))
            inside.release()
            return 0.005

        return one_pass

    first = place(work("first"), stint=1.0)
    until(lambda: (run_dir / "slot.want").exists(), 3)
    assert resident.held("slot.slot")
    place(work("second"))
    first.join(3)
    until(lambda: seen[-1][1] == "second")
    last_of_first = max(at for at, name in seen if name == "first")
    gap = min(at for at, name in seen if name == "second") - last_of_first
    assert gap < 0.1, gap
    assert resident.holder("slot") == (os.getpid(), "0-tree")
    assert not (run_dir / "slot.want").exists()


def test_without_a_successor_it_stays_past_its_stint(place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "OVERTIME", 0.5)
    begun = time.monotonic()
    place(lambda _now: None, stint=0.1).join(3)
    assert 0.5 < time.monotonic() - begun < 1.5


def test_one_waits_in_line_and_the_next_leaves(place) -> None:
    place(lambda _now: None)
    until(lambda: resident.held("slot.slot"))
    place(lambda _now: None)
    until(lambda: resident.held("slot.next"))
    third = place(lambda _now: None)
    third.join(2)
    assert not third.is_alive()


def test_a_stop_frees_the_slot_before_it_finishes(place, run_dir: Path) -> None:
    told: list[tuple[bool, float]] = []
    place(lambda _now: None, finish=lambda left: told.append((resident.held("slot.slot"), left())))
    until(lambda: resident.held("slot.slot"))
    (run_dir / "stop.0-tree").write_text("2.0")
    until(lambda: told, 0.5)
    held, left = told[0]
    assert not held
    assert 1.5 < left <= 2.0


def test_a_failing_pass_is_tried_again_while_the_heart_beats(place, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    tries: list[float] = []

    def one_pass(_now: datetime) -> None:
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise OperationalError("the database is away")

    place(one_pass)
    until(lambda: len(tries) >= 4)
    assert tries[3] - tries[0] < 1.5
    assert time.time() - (run_dir / "slot.slot").stat().st_mtime < 0.3
    assert 1 <= caplog.text.count("pass failed") <= 2


def test_the_end_of_its_connection_is_noticed_at_once(place) -> None:
    begun: list[float] = []
    place(lambda _now: begun.append(time.monotonic()))
    until(lambda: begun)
    until(lambda: _listeners() == 1)  # the server may still be ending the line of the story before this one
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'flashduty slot'")
        assert cursor.fetchone()[0] == 1
    count = len(begun)
    until(lambda: len(begun) > count, 0.9)
    until(lambda: _listeners() == 1)
    count = len(begun)
    notify()
    until(lambda: len(begun) > count, 0.9)


def _listeners() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flashduty slot'")
        return cursor.fetchone()[0]


def test_the_slot_is_taken_and_beats_although_there_is_no_database(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object, **_how: object) -> None:
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setattr(resident.psycopg, "connect", refused)
    thread = threading.Thread(target=resident.serve, args=("slot", lambda _now: None, "flashduty_slot"))
    thread.start()
    until(lambda: resident.held("slot.slot"))
    first = (run_dir / "slot.slot").stat().st_mtime_ns
    until(lambda: (run_dir / "slot.slot").stat().st_mtime_ns > first, 1)
    (run_dir / "stop.0-tree").write_text("0")
    thread.join(3)
    assert not thread.is_alive()


def test_what_a_resident_starts_does_not_inherit_its_slot(run_dir: Path) -> None:
    lock = resident.Lock("slot.slot")
    assert lock.take()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        lock.close()
        assert not resident.held("slot.slot")
        child.communicate(b"\n")


def test_a_stop_file_written_anew_sets_a_new_deadline(run_dir: Path) -> None:
    stop = resident.Stop("0-tree")
    assert stop.left() is None
    assert not resident.stopping()
    (run_dir / "stop.0-tree").write_text("5.0")
    assert 4.5 < (stop.left() or 0) <= 5
    (run_dir / "new").write_text("2.0")
    (run_dir / "new").rename(run_dir / "stop.0-tree")
    assert 1.5 < (stop.left() or 0) <= 2
    assert resident.stopping()


def test_on_a_full_disk_the_slot_goes_on_from_hand_to_hand(run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    """Its file has the bytes that the next name needs: were it cut first, every change-over would end there."""
    first, second = (resident._Place("slot", resident.Stop()) for _ in range(2))
    assert first.wait()
    first.free()
    monkeypatch.setenv("FLASHDUTY_TREE", "1-a-later-tree")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resident.path("slot.slot").stat().st_size, before[1]))
    try:
        assert second.wait() and resident.holder("slot") == (os.getpid(), "1-a-later-tree")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    first.close()
    second.close()
