"""The drain: the django-q2 task that lives in a slot and empties the outbox, and its sender threads.

One thread claims (the resident's own), one records, each on its own connection; the senders in between never touch the database, nor do
the threads that ask providers what became of messages (a thread for each channel whose transport `Polls`, for as long as one question takes). What is
claimed goes to a sender that is free, so that nothing lies here after an acknowledgement.

The slot's lock says who claims. What is in flight belongs to a holder with a lock file of its own, taken before the first claim: a stint
that ends gives its slot back at once and finishes under the holder's lock, and whoever finds that lock free knows that its owner is dead.
While the database is away, or a question is out, its recorder outlives the stint, and keeps that lock until what it knows is written.
"""

import contextlib
import fcntl
import itertools
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.db import Error as DatabaseError
from django.db import InterfaceError, OperationalError, connection

from channels_app import compose, outbox, policy, resident
from channels_app.book import Book
from channels_app.compose import Claimed, Result
from channels_app.http import DeliveryError, deadline
from channels_app.models import Delivery
from channels_app.outbox.statements import planned_once
from channels_app.transport import Polls, Update
from mapping.clock import wake
from mapping.crypto import new_secret

log = logging.getLogger(__name__)

REFRESH = timedelta(seconds=1)  # how old what we know of channels may be
CHORES = 1.0  # seconds between two looks for drains that died and for receipts that were early
ASKING = (
    20.0  # for one such question, however many requests it takes: a thread of a provider that hangs must not outlive its stint for long
)
POLLS = 3.0  # between two questions to providers that do not call us
FALLBACKS = 0.05
LOCKED = 0.005  # until the second look at what others work on; twice as long each time, up to FALLBACKS
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
LITTER = 3600.0  # seconds
BATCH = 256  # most messages in one claim
# With so many in flight we claim at most once in so many seconds: a claim for each sender that becomes free would be most of the work.
CROWD, PACE = 16, 0.015
# A record is held back so long for others that end with it: a transaction for each of them would be most of the work.
GATHER = 0.003
AFTER = 0.02  # from a small claim to the next look: what became due through it alone, by a limit that ends soon, can wait so long


def drain(slot: str) -> None:
    """One stint of the drain in this slot ("drain-0")."""
    work = Drain(slot)
    try:
        resident.serve(slot, work.tick, "flashduty_drain", prepare=work.prepare, finish=work.finish, waker=work.waker)
    finally:
        work.close()


@dataclass(frozen=True, slots=True)
class Told:
    """What the provider of a channel answered when it was asked."""

    channel: int
    updates: tuple[Update, ...]


class Drain:
    """The core, driven by the resident's shell: `prepare`, then `tick` whenever something may be due, then `finish`."""

    def __init__(self, slot: str, threads: int | None = None):
        self.threads = threads or settings.DRAIN_THREADS
        self.holder = f"{node()}.{slot[-8:]}.{os.getpid()}.{new_secret(6)}"
        self.lock = resident.Lock(f"{self.holder}.holder")
        self.waker = resident.Waker()
        self.book = Book()
        self.jobs: queue.SimpleQueue[Claimed | None] = queue.SimpleQueue()
        self.results: queue.SimpleQueue[Result | Told | None] = queue.SimpleQueue()
        self.asking: set[int] = set()  # channels whose provider is being asked
        self.troubles: dict[int, str] = {}  # the last failure of a question, by channel: said once in the log
        self.guard = threading.Lock()  # of the counts below
        self.sending = 0
        self.out: dict[tuple[int, int], float] = {}  # (delivery, attempt) whose outcome nobody knows yet: when it was claimed (monotonic)
        self.by_channel: Counter[int] = Counter()
        self.by_address: Counter[int] = Counter()
        self.takes: dict[int, int] = {}  # by address: how many requests at once
        self.unrecorded = 0
        self.absence: outbox.After = ""  # what is to be left alone after an absence of ours
        self.hungry = False  # something was left because a sender, a channel or an address was busy: the next that ends makes us look
        self.workers = 0
        self.recorder: threading.Thread | None = None
        self.rest = LOCKED  # after the next claim that finds nothing to take
        self.finishing = False
        self.closing = self.recorded = False  # whether the shell, and whether the recorder, has nothing to do any more
        self.offset = (LONG_AGO, 0.0)  # the database's clock at an instant of our monotonic one
        self.next_chores = self.next_polls = self.next_fallbacks = self.last_claim = 0.0

    # ---- the three calls of the shell ----

    def prepare(self) -> None:
        """Everything that takes time before the slot is ours: threads, connections, the lock of what we shall have in flight."""
        if not self.lock.take():
            raise RuntimeError(f"somebody else holds {self.lock.path}")
        _sweep()
        self.recorder = threading.Thread(target=self._record, name=f"{self.holder} recorder", daemon=True)
        self.recorder.start()
        with contextlib.suppress(DatabaseError):
            connection.ensure_connection()
            self.book.refresh(LONG_AGO)

    def tick(self, now: datetime) -> float | None:
        """Does what is due at `now` in a bounded batch; seconds until the next thing known to be due, 0 for more now, None for nothing."""
        moment = time.monotonic()
        self.offset = (now, moment)
        if self.book.read_at is None or not timedelta(0) <= now - self.book.read_at < REFRESH:
            self.book.refresh(now)
        if moment >= self.next_chores:
            self.absence = outbox.pulse(now)
            if self.absence == "moving":
                return LOCKED
            self.next_chores = moment + CHORES
            outbox.early(now)
            self._bury(now)
        if moment >= self.next_polls:
            self.next_polls = moment + POLLS
            self._ask(now)
        room = self._room()
        due, late, ahead = self._look(now, room)
        started = 0
        if late and moment >= self.next_fallbacks and not self.absence:
            self.next_fallbacks = moment + FALLBACKS
            outbox.silences(now)
            started = outbox.fallbacks(now, self.book)
        if not room.total:
            return None  # a sender that becomes free wakes us
        if self.threads - room.total >= CROWD and (rest := self.last_claim + PACE - moment) > 0:
            return rest
        if not due and not started:
            self.rest = LOCKED
            return FALLBACKS if late else ahead
        self.last_claim = moment
        claimed = outbox.claim(self.holder, now, room, self.book)
        if claimed:
            self.rest = LOCKED
            self._start(claimed)
        if started or len(claimed) >= CROWD:
            return 0 if len(claimed) < room.total else None
        if claimed:
            return AFTER if ahead is None else min(AFTER, ahead)
        # It was told to wait, and the next look knows until when; or somebody else works on it, and looks himself as soon as he may.
        rest, self.rest = self.rest, min(FALLBACKS, 2 * self.rest)
        return rest if ahead is None else min(rest, ahead)

    def finish(self, left: Callable[[], float]) -> None:
        """Waits for what is in flight, as long as `left()` says; what is still out then becomes unknown, and others send it again. What is known
        and waits for the database stays with the recorder, and so does what a provider is still to tell."""
        self.finishing = True
        while self._open() and left() > 0:
            time.sleep(0.01)
        for _worker in range(self.workers):
            self.jobs.put(None)
        self.results.put(None)
        if self.recorder is not None:
            self.recorder.join(max(0.2, left()))
        with self.guard:
            out = [pk for pk, _attempt in self.out]
        if out:
            outbox.take_over(self.holder, self.clock(), only=out)
        wake("drain")

    def close(self) -> None:
        """Gives up the holder's lock; where the recorder is not done yet (see `_record`), it does so when it is."""
        with self.guard:
            self.closing = True
            if self.recorder is not None and not self.recorded:
                return
        self._release()

    def _release(self) -> None:
        """The last one out; the lock's file goes only with nothing in flight, since others tell the dead by it."""
        if self.lock.mine and not self._open():
            with contextlib.suppress(OSError):
                self.lock.path.unlink()
        self.lock.free()
        self.lock.close()
        self.waker.close()

    # ---- claiming ----

    def clock(self) -> datetime:
        """The database's clock, as far as we can tell without asking."""
        now, moment = self.offset
        return now + timedelta(seconds=time.monotonic() - moment)

    def _room(self) -> outbox.Room:
        with self.guard:
            free = min(BATCH, self.threads - self.sending)
            full = [pk for pk, count in self.by_address.items() if count >= self.takes[pk]]
            room = outbox.Room(max(0, free), self.threads, dict(+self.by_channel), dict(self.by_address), full)
            self.hungry = not room.total or self.sending >= CROWD or bool(full) or bool(room.full_channels())
        return room

    def _start(self, claimed: list[Claimed]) -> None:
        with self.guard:
            self.sending += len(claimed)
            self.unrecorded += len(claimed)
            self.out |= {(one.id, one.attempt): time.monotonic() for one in claimed}
            self.by_channel.update(one.channel.id for one in claimed)
            self.by_address.update(one.address_id for one in claimed)
            self.takes |= {one.address_id: one.channel.concurrency for one in claimed}
            missing = min(self.threads, self.sending) - self.workers
            self.workers += max(0, missing)
        self._room()  # before anything of this can end
        for number in range(max(0, missing)):
            threading.Thread(target=self._send, name=f"{self.holder} {number}", daemon=True).start()
        for one in claimed:
            self.jobs.put(one)

    def _open(self) -> int:
        with self.guard:
            return self.unrecorded

    def _look(self, now: datetime, room: outbox.Room) -> tuple[bool, bool, float | None]:
        """Is there something to claim, is a fallback due, and the seconds to what lies ahead: most ticks end with this one statement."""
        with planned_once() as cursor:
            cursor.execute(
                """SELECT EXISTS (SELECT FROM channels_app_address
                                  WHERE next_at <= %(now)s AND channel_id <> ALL(%(full)s::bigint[]) AND id <> ALL(%(busy)s::bigint[])),
                          EXISTS (SELECT FROM channels_app_delivery WHERE fallback_at <= %(now)s),
                          LEAST((SELECT min(next_at) FROM channels_app_address WHERE next_at > %(now)s AND next_at < %(soon)s),
                                (SELECT min(fallback_at) FROM channels_app_delivery WHERE fallback_at > %(now)s AND fallback_at < %(soon)s))""",
                {
                    "now": now, "soon": now + timedelta(seconds=resident.LONGEST_SLEEP), "full": room.full_channels(), "busy": list(room.full),
                },
            )  # fmt: skip
            due, late, at = cursor.fetchone()
        return due, late, None if at is None else max(0.001, (at - now).total_seconds())

    def _bury(self, now: datetime) -> None:
        """Takes over from the holders of this node whose lock is free, from requests of ours that never end, and from nodes that vanished.

        On this node a lease says nothing: who holds his lock lives, and may hold results that wait for the database.
        """
        ours = f"{node()}."
        alive = [self.holder]
        for holder in Delivery.objects.filter(state="sending", holder__startswith=ours).values_list("holder", flat=True).distinct():
            if holder == self.holder:
                continue
            if resident.held(f"{holder}.holder"):
                alive.append(holder)
                continue
            outbox.take_over(holder, now)
            resident.path(f"{holder}.holder").unlink(missing_ok=True)
        with self.guard:
            lost = [key for key, since in self.out.items() if time.monotonic() - since > policy.LEASE.total_seconds()]
        if lost:
            outbox.take_over(self.holder, now, only=[pk for pk, _attempt in lost])
            with self.guard:
                for key in lost:
                    self.out.pop(key, None)
        if not self.absence:
            outbox.take_over(None, now, besides=alive)

    # ---- sending ----

    def _send(self) -> None:
        while (claimed := self.jobs.get()) is not None:
            result = compose.send(claimed, self.clock())
            with self.guard:
                self.sending -= 1
                self.out.pop((claimed.id, claimed.attempt), None)
                self.by_channel[claimed.channel.id] -= 1
                self.by_address[claimed.address_id] -= 1
                if not self.by_address[claimed.address_id]:
                    del self.by_address[claimed.address_id], self.takes[claimed.address_id]
            self.results.put(result)

    # ---- asking what became of messages ----

    def _ask(self, now: datetime) -> None:
        """Asks each channel whose transport `Polls` about its messages, unless its last question is still out; one that `listens`, without any too."""
        with self.guard:
            able = {pk: one.transport for pk, one in self.book.channels.items() if one.transport is not None and pk not in self.asking}
        polled = {pk: provider for pk, provider in able.items() if isinstance(provider, Polls)}
        if not polled:
            return
        messages = outbox.to_ask(polled, now)
        wanted = {pk: provider for pk, provider in polled.items() if provider.listens or messages.get(pk)}
        with self.guard:
            self.asking |= wanted.keys()
            self.unrecorded += len(wanted)  # what a provider told once is not told again: we do not end before it is written
        for channel, provider in wanted.items():
            name = f"{self.holder} asks {channel}"
            threading.Thread(target=self._poll, args=(channel, provider, messages.get(channel, [])), name=name, daemon=True).start()

    def _poll(self, channel: int, provider: Polls, messages: Sequence[str]) -> None:
        updates: Sequence[Update] = ()
        trouble = ""
        try:
            with deadline(ASKING):
                updates = provider.poll(messages)
        except DeliveryError as error:
            trouble = error.text
        except Exception as error:
            trouble = type(error).__name__
            log.exception("channel %s: its transport broke when asked what became of messages", channel)
        with self.guard:
            if trouble and self.troubles.get(channel) != trouble:
                log.warning("channel %s does not say what became of its messages: %s", channel, trouble)
            self.troubles[channel] = trouble
            self.asking.discard(channel)
            self.results.put(Told(channel, tuple(updates)))  # in one with the line above, see `_awaits`

    # ---- recording ----

    def _awaits(self) -> bool:
        """Whether a question is out, or something waits to be written: what a provider told once is not told again."""
        with self.guard:
            return bool(self.asking) or not self.results.empty()

    def _record(self) -> None:
        """Writes what comes, until the stint is over and every question has been answered (see ASKING)."""
        over = False
        try:
            while not over or self._awaits():
                first = self.results.get()
                if first is None:
                    over = True
                    continue
                batch = [first]
                time.sleep(PACE if self.sending >= CROWD else GATHER)
                with contextlib.suppress(queue.Empty):
                    for _turn in range(BATCH):
                        more = self.results.get_nowait()
                        if more is None:
                            over = True
                            break
                        batch.append(more)
                if results := [one for one in batch if isinstance(one, Result)]:
                    self._write(results)
                for told in (one for one in batch if isinstance(one, Told)):
                    self._write_told(told)
                with self.guard:
                    self.unrecorded -= len(batch)
                if self.finishing:
                    # A chat takes one message at a time: what waited for ours there is for others to send now.
                    with contextlib.suppress(DatabaseError):
                        wake("drain")
                elif self.hungry or len(results) < len(batch) or any(isinstance(one.said, DeliveryError) for one in results):
                    self.waker.set()
        finally:
            connection.close()
            with self.guard:
                self.recorded, last = True, self.closing
            if last:
                self._release()

    def _write(self, batch: list[Result]) -> None:
        """Until it is written: a result we forget is a page sent twice."""
        for turn in itertools.count():
            try:
                outbox.record(self.holder, batch, self.clock())
                return
            except (OperationalError, InterfaceError) as error:
                log.warning("%d results wait for the database: %s", len(batch), error)
                with contextlib.suppress(DatabaseError):
                    connection.close()
                time.sleep(min(1.0, 0.05 * 2 ** min(turn, 5)))
            except Exception:
                log.exception("a batch of %d results cannot be written", len(batch))
                if len(batch) == 1:
                    self._write_plainly(batch[0])
                    return
                for one in batch:
                    self._write([one])
                return

    def _write_told(self, told: "Told") -> None:
        for update in told.updates:
            for turn in itertools.count():
                try:
                    outbox.receipt(told.channel, update.message_id, update.state, update.reason, self.clock())
                    break
                except (OperationalError, InterfaceError) as error:
                    log.warning("what channel %s told waits for the database: %s", told.channel, error)
                    with contextlib.suppress(DatabaseError):
                        connection.close()
                    time.sleep(min(1.0, 0.05 * 2 ** min(turn, 5)))
                except Exception:
                    log.exception("channel %s: what it told of a message cannot be written", told.channel)
                    break

    def _write_plainly(self, result: Result) -> None:
        """A result that cannot be written as it is (a text the database refuses): without the texts."""
        said = result.said
        if isinstance(said, DeliveryError):
            said = DeliveryError("the error could not be stored", permanent=said.permanent, left=said.left)
        try:
            outbox.record(self.holder, [Result(result.claimed, result.started, result.seconds, said)], self.clock())
        except Exception:
            log.exception("delivery %s: the result cannot be written; its lease will end", result.claimed.id)
            with self.guard:
                self.out[result.claimed.id, result.claimed.attempt] = time.monotonic() - result.seconds


def _sweep() -> None:
    """Lock files of holders that died long ago with nothing in flight. Their names are never used again, so they may go."""
    for file in resident.path("").glob("*.holder"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - file.stat().st_mtime > LITTER and not resident.held(file.name):
                file.unlink()


def node() -> str:
    """A short name of this node, the same for all its processes: a node is one run folder."""
    file: Path = resident.path("node")
    with contextlib.suppress(FileNotFoundError):
        if name := file.read_text().strip():
            return name
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(file, "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        name = handle.read().strip()
        if not name:
            name = os.urandom(4).hex()
            handle.write(name)
            handle.flush()
    return name
