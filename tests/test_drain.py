"""The drain as it lives: threads, real connections, lock files, a provider that hangs, a drain that dies."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from django.db import OperationalError, connection

from channels_app import http, outbox, policy, resident, tasks, transport
from channels_app.http import DeliveryError
from channels_app.models import Channel, Delivery
from mapping.clock import db_now
from tests.fakes.server import until
from tests.test_outbox import BUSY, Chat, Provider, Scene, Second

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def scene(transactional_db: None, monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path) -> Scene:
    settings.RUN_DIR = tmp_path
    for style in (Provider, Second, Chat):
        monkeypatch.setitem(transport.transports(), style.kind, style)
    monkeypatch.setattr(Provider, "plan", defaultdict(list))
    monkeypatch.setattr(Provider, "got", [])
    scene = Scene()
    scene.now = db_now()
    return scene


# What hangs hangs for LONG, and what does not wait for it is done well before SOON on any machine.
SOON, LONG = 20.0, 60.0


class Running:
    """A drain whose ticks this test gives, as the resident's shell does."""

    def __init__(self, slot: str, threads: int = 16) -> None:
        self.drain = tasks.Drain(slot, threads)
        self.drain.prepare()
        self.ticks: list[float] = []

    def until(self, true: Callable[[], bool], seconds: float = SOON) -> None:
        """Ticks until something is true."""
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < seconds, "it did not happen"
            tick = time.monotonic()
            pause = self.drain.tick(db_now())
            self.ticks.append(time.monotonic() - tick)
            time.sleep(min(0.01, 0.01 if pause is None else pause))

    def end(self, seconds: float = LONG) -> float:
        began = time.monotonic()
        self.drain.finish(lambda: max(0.0, began + seconds - time.monotonic()))
        self.drain.close()
        return time.monotonic() - began


@pytest.fixture
def hang() -> Iterator[threading.Event]:
    """Requests that wait for it hang until the test is over."""
    event = threading.Event()
    yield event
    event.set()
    time.sleep(0.05)


def sent(count: int) -> Callable[[], bool]:
    return lambda: Delivery.objects.filter(state="sent").count() == count


def test_it_sends_what_is_posted_and_ends_with_nothing_in_flight(scene):
    channel = scene.channel("a")
    running = Running("drain-0")
    for topic in range(50):
        scene.page(outbox.To(channel.id, f"t{topic}"), topic=topic)
    running.until(sent(50))
    assert running.end() < SOON
    assert not list(Path(resident.path("x").parent).glob("*.holder"))


def test_a_provider_that_hangs_delays_no_other_channel_and_no_tick(scene, hang):
    bad, good = scene.channel("bad"), scene.channel("good")
    scene.plan("bad", lambda message: (hang.wait(LONG) and None) or BUSY)
    running = Running("drain-0", threads=8)
    for topic in range(40):
        scene.page(outbox.To(bad.id, f"t{topic}"), topic=topic)
    running.until(lambda: "bad" in scene.names())
    for topic in range(10):
        scene.page(outbox.To(good.id, f"t{topic}"), topic=topic)
    running.until(lambda: sent(10)() and len(running.ticks) > 20)
    assert median(running.ticks) < 0.3 and max(running.ticks) < SOON
    assert running.end(0.3) < SOON
    assert not Delivery.objects.filter(state="sending").exists()
    assert Delivery.objects.filter(channel=bad, possible_repeat=True, state="queued").exists()


def test_a_drain_that_died_is_found_by_its_free_lock_and_not_by_its_lease(scene, hang):
    channel = scene.channel("a")
    scene.plan("a", lambda message: (hang.wait(LONG) and None) or transport.Receipt() if message.attempt == 1 else transport.Receipt())
    scene.page(scene.person(channel))
    dead = Running("drain-0")
    dead.until(lambda: len(Provider.got) == 1)
    Delivery.objects.update(lease_until=scene.now + timedelta(hours=1))
    alive = Running("drain-1")
    alive.drain.tick(db_now())
    assert Delivery.objects.get().state == "sending"  # its lock is held: it lives
    dead.drain.lock.free()  # what the kernel does when a process dies
    alive.until(sent(1))
    assert [(m.attempt, m.possible_repeat) for _n, m, _a in Provider.got] == [(1, False), (2, True)]
    hang.set()
    assert until(lambda: not dead.drain._open())  # what it was told is too late
    row = Delivery.objects.get()
    assert (row.state, row.attempts, [line[3] for line in row.log]) == ("sent", 2, ["unknown", "sent"])
    alive.end()
    dead.end()


def test_a_stint_that_ends_finishes_what_is_out_while_the_next_one_works(scene, hang):
    channel = scene.channel("a", kind="chat")
    other = scene.channel("b")
    scene.plan("a", lambda message: (hang.wait(LONG) and None) or transport.Receipt())
    scene.page(outbox.To(channel.id, ""), topic=1)
    old = Running("drain-0")
    old.until(lambda: len(Provider.got) == 1)
    scene.page(outbox.To(channel.id, ""), topic=2)
    scene.page(scene.person(other), topic=3)
    successor = Running("drain-0")
    successor.until(lambda: Delivery.objects.filter(channel=other, state="sent").exists())
    assert scene.names().count("a") == 1  # one at a time to a chat, whoever sends
    threading.Timer(0.2, hang.set).start()
    old.end()
    successor.until(sent(3))
    assert not Delivery.objects.filter(possible_repeat=True).exists()
    successor.end()


def test_who_waits_for_the_chat_of_another_looks_less_and_less_often_and_writes_nothing(scene, hang):
    channel = scene.channel("a", kind="chat")
    scene.plan("a", lambda message: (hang.wait(LONG) and None) or transport.Receipt())
    for topic in (1, 2):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    first, second = Running("drain-0"), Running("drain-1")
    first.until(lambda: len(Provider.got) == 1)
    with connection.cursor() as cursor:
        assert second.drain.tick(db_now()) == tasks.LOCKED
        cursor.execute("SELECT xmin::text FROM channels_app_address")
        before = cursor.fetchone()
        assert [second.drain.tick(db_now()) for _turn in range(4)] == [0.01, 0.02, 0.04, tasks.FALLBACKS]
        cursor.execute("SELECT xmin::text FROM channels_app_address")
        assert cursor.fetchone() == before
    hang.set()
    first.until(sent(2))  # whoever was first there goes on himself
    first.end()
    second.end()


def test_a_record_waits_for_a_database_that_is_away_and_loses_nothing(scene, monkeypatch):
    failures = iter([OperationalError("gone")] * 3)
    record = outbox.record

    def flaky(*args: Any) -> int:
        for error in failures:
            raise error
        return record(*args)

    monkeypatch.setattr(outbox, "record", flaky)
    scene.page(scene.person(scene.channel("a")))
    running = Running("drain-0")
    running.until(sent(1))
    running.end()
    assert len(Provider.got) == 1


def test_results_that_wait_for_the_database_outlive_their_stint_and_their_lease(scene, monkeypatch):
    record, away = outbox.record, threading.Event()

    def flaky(*args: Any) -> int:
        if not away.is_set():
            raise OperationalError("gone")
        return record(*args)

    monkeypatch.setattr(outbox, "record", flaky)
    monkeypatch.setattr(tasks, "CHORES", 0.01)
    for topic in range(3):
        scene.page(outbox.To(scene.channel(f"c{topic}").id, ""), topic=topic)
    old = Running("drain-0")
    old.until(lambda: len(Provider.got) == 3 and not old.drain.out)
    Delivery.objects.update(lease_until=scene.now - timedelta(seconds=1))
    time.sleep(0.01)  # until it looks for those who died
    old.drain.tick(db_now())
    old.end(0.1)
    old.drain.waker.set()  # it is the recorder's now
    successor = Running("drain-0")
    began = time.monotonic()
    successor.until(lambda: time.monotonic() - began > 0.1)
    assert Delivery.objects.filter(state="sending").count() == 3
    away.set()
    successor.until(sent(3))
    successor.until(lambda: not old.drain.lock.path.exists() and not resident.held(old.drain.lock.path.name))
    assert len(Provider.got) == 3 and not Delivery.objects.filter(possible_repeat=True).exists()
    successor.end()


def test_a_request_that_never_ends_is_sent_again_by_who_waits_for_it(scene, hang, monkeypatch):
    monkeypatch.setattr(tasks, "CHORES", 0.05)
    lease = policy.LEASE
    monkeypatch.setattr(policy, "LEASE", timedelta(seconds=0.2))
    scene.plan("a", lambda message: (message.attempt == 1 and hang.wait(LONG) and None) or transport.Receipt())
    scene.page(scene.person(scene.channel("a")))
    running = Running("drain-0")
    running.until(lambda: "unknown" in [line[3] for line in Delivery.objects.get().log])
    monkeypatch.setattr(policy, "LEASE", lease)  # on a busy machine 0.2 s can be too short for the second, which answers at once
    running.until(sent(1))
    hang.set()
    running.end()
    row = Delivery.objects.get()
    assert (row.state, row.attempts, [line[3] for line in row.log]) == ("sent", 2, ["unknown", "sent"])


def test_a_text_the_database_refuses_does_not_stop_the_others(scene, monkeypatch):
    from django.db import DataError

    record = outbox.record

    def picky(holder: str, results: Any, now: Any) -> int:
        if any("poison" in result.text for result in results):
            raise DataError("no")
        return record(holder, results, now)

    monkeypatch.setattr(outbox, "record", picky)
    channel = scene.channel("a")
    for topic in range(5):
        scene.page(outbox.To(channel.id, f"t{topic}"), topic=topic, title="poison" if topic == 2 else "db down")
    running = Running("drain-0")
    running.until(sent(5))
    running.end()
    assert len(Provider.got) == 5


def test_the_shell_runs_it(scene, settings):
    scene.page(scene.person(scene.channel("a")))
    settings.STINT = LONG

    def look() -> None:
        try:
            began = time.monotonic()
            while not Delivery.objects.filter(state="sent").exists() and time.monotonic() - began < SOON:
                time.sleep(0.02)
            resident.path("stop.").write_text(str(SOON))
        finally:
            connection.close()

    looker = threading.Thread(target=look)
    looker.start()
    tasks.drain("drain-0")
    looker.join()
    assert Delivery.objects.get().state == "sent" and Channel.objects.count() == 1


class Asked(Provider):
    """Cannot call us: it is asked, and tells of messages that nobody asked about, too."""

    kind = "asked"
    family = "voice"
    listens = True
    questions: list[tuple[str, list[str]]] = []
    hangs: threading.Event | None = None

    def poll(self, message_ids: Sequence[str]) -> Sequence[transport.Update]:
        Asked.questions.append((threading.current_thread().name, list(message_ids)))
        if Asked.hangs is not None:
            Asked.hangs.wait(LONG)
        if "refuse" in self.settings["name"]:
            raise DeliveryError("ask me later", permanent=False)
        return [transport.Update("m2", "failed", "the line was busy"), *(transport.Update(one, "delivered") for one in message_ids)]


@pytest.fixture
def asked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setitem(transport.transports(), "asked", Asked)
    monkeypatch.setattr(Asked, "questions", [])
    monkeypatch.setattr(Asked, "hangs", None)
    monkeypatch.setattr(tasks, "POLLS", 0.02)
    monkeypatch.setattr(policy, "POLL", timedelta(seconds=0))
    return scene


def test_who_cannot_call_us_is_asked_what_became_of_its_messages(asked):
    channel, refusing = asked.channel("a", kind="asked"), asked.channel("refuse", kind="asked")
    asked.plan("a", transport.Receipt("m1"), transport.Receipt("m2"))
    asked.page(asked.person(channel))
    asked.page(outbox.To(channel.id, "t2"), topic=2)
    asked.plan("refuse", transport.Receipt("m3"))
    asked.page(outbox.To(refusing.id, "t3"), topic=3)
    running = Running("drain-0")
    running.until(lambda: set(Delivery.objects.values_list("state", flat=True)) == {"delivered", "failed", "sent"})
    by = {row.message_id: row for row in Delivery.objects.filter(channel=channel)}
    assert by["m1"].state == "delivered" and (by["m2"].state, by["m2"].reason) == ("failed", "the line was busy")
    running.until(lambda: [] in [ids for _thread, ids in Asked.questions])  # without messages, too
    assert Delivery.objects.get(channel=refusing).state == "sent"
    assert running.end() < SOON
    assert not {name for name, _ids in Asked.questions} & {threading.current_thread().name}


def test_who_has_nothing_to_tell_on_its_own_is_asked_about_messages_only(asked, monkeypatch):
    monkeypatch.setattr(Asked, "listens", False)
    channel = asked.channel("a", kind="asked")
    running = Running("drain-0")
    running.drain.tick(db_now())
    assert not running.drain.asking and not running.drain._open()
    asked.plan("a", transport.Receipt("m1"))
    asked.page(asked.person(channel))
    running.until(lambda: Delivery.objects.filter(state="delivered").exists())
    running.end()
    assert [] not in [ids for _thread, ids in Asked.questions]


def test_a_provider_that_calls_us_before_we_have_written_is_heard(asked, monkeypatch):
    monkeypatch.setattr(tasks, "CHORES", 0.05)
    channel = asked.channel("a", kind="asked")

    def answer(message: transport.Message) -> transport.Receipt:
        assert not outbox.receipt(channel.id, "m9", "failed", "nobody answered", db_now())
        connection.close()  # this thread's
        return transport.Receipt("m9")

    asked.plan("a", answer)
    asked.page(asked.person(channel))
    running = Running("drain-0")
    running.until(lambda: Delivery.objects.filter(message_id="m9", state="failed", reason="nobody answered").exists())
    running.end()


def test_what_a_provider_tells_when_the_stint_is_over_already_is_written_down(asked, monkeypatch, hang):
    """A mailbox that was read is marked as read by the next look, so that what it said is said once."""
    monkeypatch.setattr(Asked, "hangs", hang)
    channel = asked.channel("a", kind="asked")
    asked.plan("a", transport.Receipt("m1"))
    asked.page(asked.person(channel))
    running = Running("drain-0")
    running.until(lambda: sent(1)() and bool(Asked.questions))
    assert running.end(0.1) < SOON
    assert running.drain.lock.mine and resident.held(f"{running.drain.holder}.holder")  # it is the recorder's now
    Delivery.objects.update(message_id="m2")  # of which the question tells in any case
    hang.set()
    assert running.drain.recorder is not None
    running.drain.recorder.join(SOON)
    assert Delivery.objects.get().reason == "the line was busy"
    assert not list(Path(resident.path("x").parent).glob("*.holder"))


def test_a_message_and_a_question_have_one_time_each_however_many_requests_they_take(asked, monkeypatch):
    left: dict[str, float] = {}

    def poll(self: Asked, message_ids: Sequence[str]) -> Sequence[transport.Update]:
        left["question"] = http.trip.deadline - time.monotonic()
        return ()

    def answer(message: transport.Message) -> transport.Receipt:
        left["message"] = http.trip.deadline - time.monotonic()
        return transport.Receipt("m1")

    monkeypatch.setattr(Asked, "poll", poll)
    channel = asked.channel("a", kind="asked")
    asked.plan("a", answer)
    asked.page(asked.person(channel))
    running = Running("drain-0")
    running.until(lambda: len(left) == 2)
    running.end()
    assert 0 < left["message"] <= http.TOTAL_SECONDS < policy.BUDGET.total_seconds() and 0 < left["question"] <= tasks.ASKING


def test_a_provider_that_hangs_when_asked_blocks_neither_pages_nor_other_channels(asked, hang, monkeypatch):
    monkeypatch.setattr(Asked, "hangs", hang)
    asked.channel("a", kind="asked")
    good = asked.channel("b")
    running = Running("drain-0")
    running.until(lambda: bool(Asked.questions))
    asked.page(outbox.To(good.id, "t1"))
    running.until(lambda: sent(1)() and len(running.ticks) > 20)
    assert median(running.ticks) < 0.3 and max(running.ticks) < SOON
    assert len(Asked.questions) == 1, "one question at a time"
    hang.set()
    running.until(lambda: len(Asked.questions) > 1)
    running.end()
