"""The shell in which intake, engine and drain live: a slot of this node, a clock, a wait, and a change-over that nobody notices.

In settings.RUN_DIR each slot has `<slot>.slot` (an flock that the kernel frees when its holder dies; mtime = heartbeat; content = pid and
tree), `<slot>.next` (an flock of the successor that is ready and waits) and, for a moment, `<slot>.want` (the holder asks for a
successor). `stop.<tree>` tells all residents of one tree to end; only the supervisor writes and removes it. Lock files are never removed:
two processes could then hold "the same" lock on two files.
"""

import contextlib
import fcntl
import logging
import os
import select
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from django.conf import settings
from django.db import Error as DatabaseError
from django.db import connection, connections

log = logging.getLogger(__name__)

LOOK = 0.1  # seconds between two looks at the stop file, at most
LONGEST_SLEEP = 1.0
ASK = 1.0  # seconds between two questions for the database's clock
STAGGER = 0.004  # seconds that each further resident of a kind lets the one before it look first
ASK_BEFORE = 1.0  # a successor is asked for so long before the stint ends
OVERTIME = 5.0  # a resident without a successor goes on so long past its stint: late beats absent
PATIENCE = 8.0  # a successor waits so long for the slot
FINISH = 9.0  # what is in flight at the end of a stint may take so long: a provider's 8 s and its record


def tree_id() -> str:
    """Which tree of processes this is: ids of later trees sort later. Empty in a cluster that was started by hand."""
    return os.environ.get("FLASHDUTY_TREE", "")


def path(name: str) -> Path:
    return Path(settings.RUN_DIR) / name


def held(name: str) -> bool:
    """Whether somebody holds the lock of this file in the run folder (`drain-0.slot`). A file that is not there is held by nobody."""
    try:
        handle = os.open(path(name), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def holder(slot: str) -> tuple[int, str] | None:
    """(pid, tree) that took this slot last. It says who is meant when the slot is held, and nothing when it is free."""
    try:
        pid, _, tree = path(f"{slot}.slot").read_text().partition(" ")
        return int(pid), tree.strip()
    except (FileNotFoundError, ValueError):
        return None


class Lock:
    """An flock on a file of the run folder. O_CLOEXEC (Python's default) keeps it from whatever we start."""

    def __init__(self, name: str):
        self.path = path(name)
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        self.mine = False

    def take(self) -> bool:
        """Whether the lock is ours now. Never waits."""
        if not self.mine:
            try:
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.mine = True
            except BlockingIOError:
                pass
        return self.mine

    def free(self) -> None:
        if self.mine:
            fcntl.flock(self.handle, fcntl.LOCK_UN)
            self.mine = False

    def close(self) -> None:
        os.close(self.handle)


class Stop:
    """Whether a tree was told to end, and how long it may still take."""

    def __init__(self, tree: str | None = None):
        self.path = path(f"stop.{tree_id() if tree is None else tree}")
        self.stamp = 0
        self.deadline = 0.0

    def left(self) -> float | None:
        """Seconds left, never below 0; None while nobody asked. A file written anew (Ctrl-C during a restart) sets a new deadline."""
        try:
            stamp = self.path.stat().st_mtime_ns
            if stamp != self.stamp:
                self.deadline = time.monotonic() + float(self.path.read_text())
                self.stamp = stamp
        except FileNotFoundError:
            return None
        return max(0.0, self.deadline - time.monotonic())


def stopping() -> bool:
    """For a long job between two of its steps: whether its tree was told to end."""
    return Stop().left() is not None


class Waker:
    """What another thread of a resident uses to end its wait: `set()` from any thread, any number of times."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.set_blocking(self.writer, False)

    def fileno(self) -> int:
        return self.reader

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes as well as one byte does
            os.write(self.writer, b".")

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.reader, 4096)) == 4096:
                pass

    def close(self) -> None:
        os.close(self.reader)
        os.close(self.writer)


class _Line:
    """The resident's own connection: it listens, tells the time, and is what a wait waits on."""

    def __init__(self, slot: str, channel: str, waker: Waker | None):
        self.name, self.channel, self.waker = f"flashduty {slot}", channel, waker
        # All drains hear of everything: the second one looks a moment later and finds nothing, instead of fighting with the first for it.
        self.stagger = STAGGER * int(number) if (number := slot.rpartition("-")[2]).isdigit() else 0.0
        self.connection: psycopg.Connection | None = None
        self.told = False  # a NOTIFY that arrives during a query never shows on the socket again
        self._offset, self._sure = 0.0, 0.0  # the database's clock minus our monotonic one, and how well that is known (seconds)
        self._ask_at = 0.0

    def open(self) -> psycopg.Connection:
        if self.connection is None:
            wanted = {
                name: value
                for name, value in connection.get_connection_params().items()
                if name not in ("context", "cursor_factory", "server_side_binding")
            }
            line = psycopg.connect(**wanted | {"autocommit": True, "application_name": self.name})
            try:
                line.add_notify_handler(self._heard)
                line.execute(f'LISTEN "{self.channel}"')
            except BaseException:
                line.close()
                raise
            self.connection = line
        return self.connection

    def _heard(self, _notify: psycopg.Notify) -> None:
        self.told = True

    def now(self) -> datetime:
        """The database's clock, aware UTC. What was told before is forgotten: the look that follows sees it.

        It is asked every ASK seconds; in between our monotonic clock carries it on: asked before each look it was a seventh of all statements.
        """
        line = self.open()
        self.told = False
        before = time.monotonic()
        if before >= self._ask_at:
            (now,) = line.execute("SELECT statement_timestamp()").fetchone() or ()
            after = time.monotonic()
            self._ask_at = after + ASK
            # The server looked at its clock between `before` and `after`: the quicker the answer, the surer we are. A slow answer (a busy
            # machine) changes nothing unless the clock was really set.
            least, most = now.timestamp() - after, now.timestamp() - before
            if not least <= self._offset <= most or most - least <= self._sure:
                self._offset, self._sure = (least + most) / 2, most - least
        return datetime.fromtimestamp(time.monotonic() + self._offset, UTC)

    def wait(self, seconds: float) -> bool:
        """Whether somebody told us to look, within so many seconds."""
        if self.told:
            return True
        watch = select.poll()
        if self.connection is not None:
            watch.register(self.connection.fileno(), select.POLLIN)
        if self.waker is not None:
            watch.register(self.waker.fileno(), select.POLLIN)
        told = watch.poll(max(0, seconds * 1000))
        if self.stagger and any(self.connection is not None and handle == self.connection.fileno() for handle, _event in told):
            time.sleep(self.stagger)
        for handle, _event in told:
            if self.waker is not None and handle == self.waker.fileno():
                self.waker.clear()
                self.told = True
            elif self.connection is not None:
                wire = self.connection.pgconn
                wire.consume_input()
                while wire.notifies():
                    self.told = True
        return self.told

    def close(self) -> None:
        if self.connection is not None:
            with contextlib.suppress(psycopg.Error):
                self.connection.close()
            self.connection = None


class _Place:
    """A slot: standing in line for it, keeping it with a beat, and handing it over."""

    def __init__(self, slot: str, stop: Stop):
        self.slot, self.stop = slot, stop
        self.lock, self.line = Lock(f"{slot}.slot"), Lock(f"{slot}.next")
        self.want = path(f"{slot}.want")
        self.asked = 0.0

    def wait(self) -> bool:
        """Whether the slot is ours. One waits at a time; who comes second, is told to stop or waits too long, leaves."""
        until = time.monotonic() + PATIENCE
        if not self.line.take():
            time.sleep(0.005)  # it may have been the holder who looked
            if not self.line.take():
                return False
        try:
            while not self.lock.take():
                if time.monotonic() > until or self.stop.left() is not None:
                    return False
                time.sleep(0.002)
        finally:
            self.line.free()
        # Over what stands there and cut afterwards: on a full disk the file's own bytes are the only ones there are.
        os.ftruncate(self.lock.handle, os.pwrite(self.lock.handle, f"{os.getpid()} {tree_id()}".ljust(48).encode(), 0))
        self.want.unlink(missing_ok=True)  # a question to us, not to who comes after us
        return True

    def beat(self) -> None:
        os.utime(self.lock.handle)

    def followed(self) -> bool:
        """Asks for a successor once a second; whether one stands ready."""
        if held(self.line.path.name):
            return True
        now = time.monotonic()
        if now - self.asked >= 1:
            with contextlib.suppress(OSError):  # a full disk: we are followed when our overtime ends
                self.want.touch()
            self.asked = now
        return False

    def free(self) -> None:
        self.lock.free()

    def close(self) -> None:
        self.lock.close()
        self.line.close()


def serve(
    slot: str,
    one_pass: Callable[[datetime], float | None],
    channel: str,
    *,
    prepare: Callable[[], None] | None = None,
    finish: Callable[[Callable[[], float]], None] | None = None,
    waker: Waker | None = None,
    stint: float | None = None,
) -> bool:
    """Holds the slot for one stint and calls `one_pass(now)` whenever something may be due; False when the slot was not to be had.

    `one_pass` does what is due in a bounded batch (its time is the longest silence of the heartbeat: 0.2 s) and returns the seconds from
    `now` to the next thing known to be due, 0 for "there is more now", None for "I know of nothing". Between passes we sleep until then, at most a
    second, or until NOTIFY on `channel` or `waker.set()`. What it raises is logged, and it is called again after 0.05 to 1 s.
    `prepare()` runs while the predecessor still works (start threads); nothing may be claimed in it. `finish(left)` runs after the slot
    was freed and the successor works already: end what is in flight, asking `left()` for the seconds it may still take (it shrinks when
    a stop file appears). Raises nothing of its own; the Django connection is closed at the end.
    """
    stop = Stop()
    place = _Place(slot, stop)
    line = _Line(slot, channel, waker)
    try:
        try:
            line.open()
            connection.ensure_connection()
        except (psycopg.Error, DatabaseError):
            log.warning("%s: no database yet", slot)  # the slot is taken all the same: its beat says that we live and try
        if prepare:
            prepare()
        if not place.wait():
            return False
        stint = settings.STINT if stint is None else stint
        # Stints differ, so that the residents of a node do not all change over in one moment.
        _work(slot, one_pass, line, place, stop, stint * (0.85 + 0.15 * (zlib.crc32(slot.encode()) % 101) / 100))
        return True
    except Exception:
        log.exception("%s: ended early", slot)
        return place.lock.mine
    finally:
        place.free()
        try:
            if finish:
                until = time.monotonic() + FINISH

                def left() -> float:
                    told = stop.left()
                    mine = max(0.0, until - time.monotonic())
                    return mine if told is None else min(mine, told)

                finish(left)
        except Exception:
            log.exception("%s: could not finish", slot)
        finally:
            line.close()
            place.close()
            connections.close_all()


def _work(slot: str, one_pass: Callable[[datetime], float | None], line: _Line, place: _Place, stop: Stop, stint: float) -> None:
    ends = time.monotonic() + stint
    failures = 0

    def over() -> bool:
        """Looked at between passes and at least every 0.1 s of a wait."""
        place.beat()
        now = time.monotonic()
        if stop.left() is not None or now >= ends + OVERTIME:
            return True
        return now >= ends - ASK_BEFORE and place.followed()

    while not over():
        began = time.monotonic()
        try:
            pause = one_pass(line.now())
            pause = LONGEST_SLEEP if pause is None else min(LONGEST_SLEEP, pause)
            failures = 0
        except Exception as error:
            failures += 1
            began = time.monotonic()
            pause = min(1.0, 0.05 * 2 ** min(failures, 5))
            _report(slot, error, failures)
            line.close()
            connections.close_all()
        due = began + pause
        while (rest := due - time.monotonic()) > 0 and not over():
            look = min(rest, LOOK if time.monotonic() < ends - ASK_BEFORE else LOOK / 5)
            if failures:
                time.sleep(look)  # a stream of NOTIFY must not turn a back-off into a busy loop
                continue
            try:
                if line.wait(look):
                    break
            except (psycopg.Error, OSError) as error:
                failures = 1
                _report(slot, error, failures)
                line.close()
                connections.close_all()
                break


def _report(slot: str, error: Exception, failures: int) -> None:
    """The first failure in a row in full, then each time their number doubles: an outage of an hour is a dozen lines."""
    if failures & (failures - 1) == 0:
        known = isinstance(error, (psycopg.Error, DatabaseError))
        log.warning("%s: pass failed (%d in a row): %s", slot, failures, error, exc_info=None if known else error)
