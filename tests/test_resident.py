"""The residents' shell: one at a time in a slot, awake when told, and a change-over without a gap. Threads stand for processes: an flock
belongs to an open file, so two threads that open a slot's file compete as two processes do."""

import collections
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
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def sound_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between passes nothing wakes a resident but what is meant to: a test need not ask how soon it came."""
    monkeypatch.setattr(resident, "LONGEST_SLEEP", 3600.0)


def until(what: Callable[[], object], seconds: float = 60.0) -> None:
    """The limit is for a machine that does ten other things: no test waits for it to pass."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.002)


def notify() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify('flashduty_slot', '')")


def test_a_pass_gets_the_database_clock_and_runs_again_when_told(place, sound_asleep) -> None:
    seen: list[datetime] = []
    place(lambda now: seen.append(now))
    until(lambda: seen)
    assert abs(seen[0] - datetime.now(UTC)) < timedelta(seconds=60)
    assert seen[0].utcoffset() == timedelta(0)
    count = len(seen)
    notify()
    until(lambda: len(seen) > count)


def test_a_notify_during_a_pass_is_not_lost(place, sound_asleep) -> None:
    begun = []

    def one_pass(_now: datetime) -> None:
        begun.append(time.monotonic())
        if len(begun) == 1:
            notify()

    place(one_pass)
    until(lambda: len(begun) > 1)


def test_it_wakes_at_the_next_due_instant_counted_from_now_of_the_pass(place) -> None:
    begun, ended = [], []

    def one_pass(_now: datetime) -> float:
        begun.append(time.monotonic())
        time.sleep(0.06)
        ended.append(time.monotonic())
        return 0.08

    place(one_pass)
    until(lambda: len(begun) >= 7)
    assert begun[6] - ended[0] >= 5 * 0.08  # the second pass begins after the end of the first, each further one 0.08 s later at least
    # Counted from the end of a pass, no pause at all could be shorter than 0.14 s.
    until(lambda: any(b - a < 0.13 for a, b in itertools.pairwise(begun)))


def test_another_thread_can_wake_it(place, sound_asleep) -> None:
    begun: list[float] = []
    waker = resident.Waker()
    place(lambda _now: begun.append(time.monotonic()), waker=waker)
    until(lambda: begun)
    count = len(begun)
    for _ in range(100_000):
        waker.set()
    until(lambda: len(begun) > count)


def test_a_successor_takes_over_without_a_gap_and_never_beside(place, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "OVERTIME", 60.0)  # each leaves because it is followed
    seen: list[tuple[float, int]] = []
    gaps: list[float] = []
    inside, beside = threading.Lock(), []

    def work(number: int) -> Callable[[datetime], float]:
        def one_pass(_now: datetime) -> float:
            if not inside.acquire(blocking=False):
                beside.append(number)
                return 0.005
            seen.append((time.monotonic(), number))
            inside.release()
            return 0.005

        return one_pass

    before = place(work(0), stint=1.0)
    for number in range(1, 6):
        until((run_dir / "slot.want").exists)
        assert resident.held("slot.slot")
        after = place(work(number), stint=1.0)
        before.join(60)
        until(lambda number=number: seen[-1][1] == number)
        gaps.append(min(at for at, who in seen if who == number) - max(at for at, who in seen if who == number - 1))
        before = after
        # What a successor still had to do after it has the slot, it would have to do each time; a machine that is busy, only now and then.
        if gaps[-1] < 0.1:
            break
    assert min(gaps) < 0.1, gaps
    assert not beside
    assert resident.holder("slot") == (os.getpid(), "0-tree")


def test_without_a_successor_it_stays_past_its_stint(place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "OVERTIME", 0.5)
    begun = time.monotonic()
    thread = place(lambda _now: None, stint=0.1)
    thread.join(60)
    assert not thread.is_alive() and time.monotonic() - begun > 0.5


def test_one_waits_in_line_and_the_next_leaves(place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "PATIENCE", 3600.0)  # who leaves does not leave because it has waited
    taken: set[str] = set()
    take = resident.Lock.take

    def noted(lock: resident.Lock) -> bool:
        if take(lock):
            taken.add(lock.path.name)
        return lock.mine

    monkeypatch.setattr(resident.Lock, "take", noted)
    place(lambda _now: None)
    until(lambda: "slot.slot" in taken)
    taken.clear()
    place(lambda _now: None)
    until(lambda: "slot.next" in taken)  # `held` would take the lock for a moment, and twice in its way the second one would leave
    third = place(lambda _now: None)
    third.join(60)
    assert not third.is_alive()
    assert resident.held("slot.slot") and resident.held("slot.next")


def test_a_stop_frees_the_slot_before_it_finishes(place, sound_asleep, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "FINISH", 3600.0)
    told: list[tuple[bool, float]] = []
    place(lambda _now: None, finish=lambda left: told.append((resident.held("slot.slot"), left())))
    until(lambda: resident.held("slot.slot"))
    (run_dir / "new").write_text("1000.0")
    (run_dir / "new").rename(run_dir / "stop.0-tree")
    until(lambda: told)
    held, left = told[0]
    assert not held
    assert 900 < left <= 1000


def test_a_failing_pass_is_tried_again_while_the_heart_beats(
    place, run_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "LOOK", 0.02)
    tries: list[float] = []
    failures = 0
    beats: dict[int, set[int]] = collections.defaultdict(set)  # after so many tries: what the file said of the last beat
    beaten, worked = threading.Event(), threading.Event()

    def one_pass(_now: datetime) -> None:
        nonlocal failures
        tries.append(time.monotonic())
        if len(tries) < 4 or not beaten.is_set():
            failures += 1
            raise OperationalError("the database is away")
        worked.set()

    def beats_on() -> bool:
        beats[len(tries)].add((run_dir / "slot.slot").stat().st_mtime_ns)
        return max(len(instants) for instants in beats.values()) > 5  # a pass alone beats before and after, and so does the one after it

    place(one_pass)
    until(lambda: tries)
    until(beats_on)
    beaten.set()
    until(worked.is_set)
    assert failures >= 3 and tries[3] - tries[0] >= 0.1 + 0.2 + 0.4
    assert caplog.text.count("pass failed") == failures.bit_length()  # the first, and each time their number doubles


def test_the_end_of_its_connection_is_noticed_at_once(place, sound_asleep) -> None:
    begun: list[float] = []
    place(lambda _now: begun.append(time.monotonic()))
    until(lambda: begun)
    until(lambda: _listeners() == 1)  # the server may still be ending the line of the story before this one
    count = len(begun)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(pg_terminate_backend(pid)) {LISTENERS}")
        assert cursor.fetchone()[0] == 1
    until(lambda: len(begun) > count)
    until(lambda: _listeners() == 1)
    count = len(begun)
    notify()
    until(lambda: len(begun) > count)


# The server is shared: beside us other tests run in databases of their own, with the same names.
LISTENERS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'flashduty slot'"


def _listeners() -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) {LISTENERS}")
        return cursor.fetchone()[0]


def test_the_slot_is_taken_and_beats_although_there_is_no_database(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_args: object, **_how: object) -> None:
        raise psycopg.OperationalError("connection refused")

    monkeypatch.setattr(resident.psycopg, "connect", refused)
    thread = threading.Thread(target=resident.serve, args=("slot", lambda _now: None, "flashduty_slot"))
    thread.start()
    until(lambda: resident.held("slot.slot"))
    first = (run_dir / "slot.slot").stat().st_mtime_ns
    until(lambda: (run_dir / "slot.slot").stat().st_mtime_ns > first)
    (run_dir / "stop.0-tree").write_text("0")
    thread.join(60)
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
    (run_dir / "stop.0-tree").write_text("500.0")
    assert 400 < (stop.left() or 0) <= 500
    (run_dir / "new").write_text("200.0")
    os.utime(run_dir / "new", (0, 0))  # clocks of file systems are coarse: two that are written at once may bear one instant
    (run_dir / "new").rename(run_dir / "stop.0-tree")
    assert 100 < (stop.left() or 0) <= 200
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
