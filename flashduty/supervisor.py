"""Keeps the web server and one tree of django-q2 processes alive, and replaces a tree without a gap in the paging.

SIGKILL of one idle django-q2 worker can freeze its whole cluster while everything looks healthy (the dead one held the queue's read
lock), so a tree is never repaired: any death in it, or a resident that stopped beating, gets a new tree beside it, and the old one is
told to wind down once the new one stands in line for its slots. It is run without django.setup(), which saves 35 MB. Trees live in sessions of their own, so that a signal to our group, or
our own death, does not touch them; the next supervisor finds them by the tree id in their environment.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psycopg
from django.conf import settings
from django.db import connections

from channels_app import resident

RESTART_SECONDS = 5.0  # what a tree that is replaced gets to finish what is in flight
STOP_SECONDS = 2.0  # what everything gets on Ctrl-C
STALE = 5.0  # a resident silent for so long is dead on its feet...
YOUNG = 10.0  # ...but a tree of this age may still be starting
STAND_IN_LINE = 1.0  # a complete tree gets so long to put successors in line before the old one is told to go
LONGEST_BACKOFF = 60.0
ANSWER = 2.0  # the database answers within so many seconds or does not answer
STEADY, BUSY = 0.5, 0.03  # seconds between two looks when nothing happens, and while something does

Log = Callable[[str, str], None]


def supervise(*, host: str, port: int, web: bool = True, on_ready: Callable[[], None] | None = None, log: Log | None = None) -> int:
    """Runs web and workers until SIGTERM or SIGINT; 0 when everything is gone, 1 when another supervisor has this run folder.

    `log(line, source)` gets our own lines and the children's (sources: web, work, watch). `on_ready()` is called once, when every resident
    works and the web answers. To be called from the main thread; the previous signal handlers are put back.
    """
    lock = resident.Lock("supervisor.lock")
    log = log or _print
    try:
        if not lock.take():
            log(f"another supervisor works in {settings.RUN_DIR}", "watch")
            return 1
        return _Supervisor(host, port, web, on_ready, log).run()
    finally:
        lock.close()


def _print(line: str, source: str) -> None:
    with contextlib.suppress(OSError):  # a log file on a full disk, a terminal that is gone: no reason to stop paging
        print(f"{source:<9}| {line}", flush=True)


# ---------------------------------------------------------------- processes


@dataclasses.dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    parent: int
    session: int
    zombie: bool


def _processes() -> dict[int, _Process]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                found[int(name)] = _process(int(name))
    return found


def _process(pid: int) -> _Process:
    # The name, in parentheses, may hold blanks and parentheses of its own.
    state, parent, _group, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    return _Process(pid, int(parent), int(session), state in "ZX")


def _environment(pid: int) -> dict[str, str]:
    """What the process was started with; empty for a zombie, a stranger's process and one that is gone."""
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)


def _alive(pid: int) -> bool:
    try:
        return not _process(pid).zombie
    except (OSError, IndexError, ValueError):
        return False


class _Watch:
    """Notices the end of one process at once, a zombie's too, and never mistakes a later process with its number for it."""

    def __init__(self, pid: int):
        self.pid = pid
        self.handle: int | None = None
        with contextlib.suppress(OSError, AttributeError):  # an old kernel or another system: /proc is looked at instead
            self.handle = os.pidfd_open(pid)

    def ended(self) -> bool:
        if self.handle is not None:
            look = select.poll()
            look.register(self.handle, select.POLLIN)
            return bool(look.poll(0))
        return not _alive(self.pid)

    def close(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def _write(name: str, text: str) -> None:
    """A file of the run folder, by rename: a reader sees all of it."""
    draft = resident.path(f"{name}.new")
    draft.write_text(text)
    draft.rename(resident.path(name))


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


class _Family:
    """The processes of one session, which we or an earlier supervisor made for them; its number is not used again while one of them lives."""

    def __init__(self, leader: int):
        self.leader = leader
        self.born = time.monotonic()
        self.pids: set[int] = {leader}
        self.output: int | None = None
        self.rest = b""

    def members(self, table: dict[int, _Process]) -> list[_Process]:
        """Who lives. Parents before children, or the sentinel would make new workers of those that are killed."""
        here = [p for p in table.values() if p.session == self.leader and not p.zombie]
        self.pids |= {p.pid for p in here}
        children = [p.parent for p in here]
        return sorted(here, key=lambda p: (p.pid != self.leader, -children.count(p.pid), p.pid))

    def read(self, log: Log, source: str) -> None:
        """Whatever they wrote, line by line."""
        while self.output is not None:
            try:
                data = os.read(self.output, 65536)
            except BlockingIOError:
                return
            *lines, self.rest = (self.rest + data).split(b"\n")
            if not data or len(self.rest) > 65536:
                lines, self.rest = [*lines, self.rest], b""
            for line in lines:
                if line:
                    log(line.decode(errors="replace"), source)
            if not data:
                self.close()

    def close(self) -> None:
        if self.output is not None:
            os.close(self.output)
            self.output = None


class _Tree(_Family):
    """One `qcluster`: parent, sentinel, workers, pusher, monitor."""

    def __init__(self, leader: int, tree: str):
        super().__init__(leader)
        self.id = tree
        self.watches: dict[int, _Watch] = {}
        self.complete_at: float | None = None
        self.beaten: set[str] = set()
        self.damaged = ""
        self.stop_at: float | None = None
        self.stop_told = False
        self.work = resident.Lock(f"tree.{tree}")

    def look(self, table: dict[int, _Process], workers: int) -> None:
        """Records whom we see while the tree grows. Children of workers do not count: a job may start what it likes."""
        children = {p.pid: p.parent for p in self.members(table)}
        sentinels = {pid for pid, parent in children.items() if parent == self.leader}
        theirs = {pid for pid, parent in children.items() if parent in sentinels}
        for pid in ({self.leader} & children.keys()) | sentinels | theirs:
            if pid not in self.watches:
                self.watches[pid] = _Watch(pid)
        if self.complete_at is None and len(theirs) >= workers + 2:  # + pusher, monitor
            self.complete_at = time.monotonic()

    def dead(self) -> int | None:
        return next((pid for pid, watch in self.watches.items() if watch.ended()), None)

    def tell_to_stop(self, seconds: float) -> None:
        """Ends at `stop_at` at the latest, whoever heard of it: where the disk is full nobody can be told, and they are killed at that time."""
        now = time.monotonic()
        if self.stop_at is None or now + seconds < self.stop_at:
            self.stop_at, self.stop_told = now + seconds, False
        if not self.stop_told:
            with contextlib.suppress(OSError):
                _write(f"stop.{self.id}", f"{max(0.0, self.stop_at - now):.1f}")
                self.stop_told = True

    def forget(self) -> None:
        for watch in self.watches.values():
            watch.close()
        self.close()
        self.work.close()
        for name in (f"stop.{self.id}", f"tree.{self.id}"):
            resident.path(name).unlink(missing_ok=True)


class _Probe:
    """Asks a question that may hang, in a thread of its own: our loop never waits for anybody."""

    def __init__(self, question: Callable[[], None]):
        self.question = question
        self.thread: threading.Thread | None = None
        self.asked = 0.0
        self.answered = 0.0  # when the last good answer came

    def ask(self) -> None:
        if self.thread is None or not self.thread.is_alive():
            self.asked = time.monotonic()
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()

    def _run(self) -> None:
        with contextlib.suppress(Exception):
            self.question()
            if time.monotonic() - self.asked <= ANSWER:
                self.answered = time.monotonic()

    def good(self, within: float) -> bool:
        return self.answered > 0 and time.monotonic() - self.answered <= within


def _ask_database() -> None:
    wanted = connections["default"].get_connection_params()
    known = {name: value for name, value in wanted.items() if name not in ("context", "cursor_factory", "server_side_binding")}
    with psycopg.connect(**known | {"connect_timeout": 2, "autocommit": True, "application_name": "flashduty supervisor"}) as line:
        line.execute("SELECT 1")


# ---------------------------------------------------------------- the supervisor

# The web server must die with us, or the next one finds the port taken. Set in the child, where it survives the exec.
DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15, 0, 0, 0); os.getppid() == int(sys.argv[1]) or os._exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


class _Supervisor:
    def __init__(self, host: str, port: int, web: bool, on_ready: Callable[[], None] | None, log: Log):
        self.host, self.port, self.with_web, self.on_ready, self.log = host, port, web, on_ready, log
        self.slots = list(settings.RESIDENTS)
        self.workers: int = settings.Q_CLUSTER["workers"]  # type: ignore[assignment]  # a dict of many types
        self.trees: list[_Tree] = []  # the last is the one that shall work
        self.failures, self.start_at = 0, 0.0
        self.beats: dict[str, tuple[int, float]] = {}  # slot -> (mtime, when we saw it change)
        self.web: _Family | None = None
        self.web_watch: _Watch | None = None
        self.web_failures, self.web_at, self.web_kill_at = 0, 0.0, 0.0
        self.asked_to_stop = 0
        self.to_reap: dict[int, float] = {}  # pid -> when its family still lived
        self.scan_at = 0.0
        self.told, self.untold = "", ""
        address = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
        self.url = f"http://{f'[{address}]' if ':' in address else address}:{port}/healthz"
        self.database, self.answers = _Probe(_ask_database), _Probe(self._ask_web)

    def say(self, line: str) -> None:
        self.log(line, "watch")

    # ---- the loop

    def run(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        before = {number: signal.signal(number, self._signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        _become_reaper()
        self._adopt()
        try:
            while True:
                self._look()
                if self.asked_to_stop and not self.trees and self.web is None:
                    return 0
                self._wait(reader)
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _signal(self, _number: int, _frame: object) -> None:
        self.asked_to_stop += 1

    def _wait(self, reader: int) -> None:
        watch = select.poll()
        watch.register(reader, select.POLLIN)
        handles = [tree.output for tree in self.trees] + ([self.web.output] if self.web else [])
        handles += [w.handle for tree in self.trees if not tree.damaged and tree.stop_at is None for w in tree.watches.values()]
        handles += [self.web_watch.handle] if self.web_watch and not self.web_kill_at else []
        for handle in handles:
            if handle is not None:
                watch.register(handle, select.POLLIN)
        watch.poll((BUSY if self._busy() else STEADY) * 1000)
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 4096)

    def _busy(self) -> bool:
        starting = len(self.trees) != 1 or self.trees[0].complete_at is None or len(self.trees[0].beaten) < len(self.slots)
        waiting = self.start_at > time.monotonic() + STEADY and len(self.trees) < 2
        return bool(self.asked_to_stop) or self.on_ready is not None or bool(self.web_kill_at) or (starting and not waiting)

    def _look(self) -> None:
        for family in [*self.trees, *([self.web] if self.web else [])]:
            family.read(self.log, "web" if family is self.web else "work")
            self.to_reap |= dict.fromkeys(family.pids, time.monotonic())
        self._reap()
        self._look_at_trees()
        if not self.asked_to_stop:
            self._look_at_beats()
        self._look_at_web()
        if self.asked_to_stop:
            for tree in self.trees:
                tree.tell_to_stop(STOP_SECONDS if self.asked_to_stop == 1 else 0)
        elif self.on_ready is not None:
            self._look_whether_ready()
        self._tell()

    def _reap(self) -> None:
        """We are the reaper of whoever lost its parent, since an init may not reap; as init, of everybody.

        A process whose first thread is a zombie may keep its children for another moment: the dead are looked for a while longer.
        """
        with contextlib.suppress(ChildProcessError):
            while os.getpid() == 1 and os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        for pid, seen in list(self.to_reap.items()):
            try:
                reaped = os.waitpid(pid, os.WNOHANG) != (0, 0)
            except ChildProcessError:
                reaped = time.monotonic() - seen > 5
            if reaped:
                del self.to_reap[pid]

    # ---- trees

    def _look_at_trees(self) -> None:
        now = time.monotonic()
        table: dict[int, _Process] | None = None
        growing = [tree for tree in self.trees if tree.complete_at is None or tree.stop_at is not None]
        if growing and now >= self.scan_at:
            table, self.scan_at = _processes(), now + BUSY
        for tree in list(self.trees):
            if table is not None and tree.complete_at is None:
                tree.look(table, self.workers)
            if not tree.damaged and tree.stop_at is None and (dead := tree.dead()) is not None:
                tree.damaged = f"process {dead} has ended"
            if tree.stop_at is not None and table is not None:
                self._wind_down(tree, table)
        if self.asked_to_stop:
            return
        current = self.trees[-1] if self.trees else None
        if current is not None and not current.damaged:
            for slot in set(self.slots) - current.beaten:
                if (resident.holder(slot) or (0, ""))[1] == current.id:
                    current.beaten.add(slot)
            if len(self.trees) > 1 and self._stands_in_line(current):
                for tree in self.trees[:-1]:
                    tree.tell_to_stop(RESTART_SECONDS)
            return
        if current is not None and current.stop_at is None and current.complete_at is None:
            # It never grew up: whatever is left of it is in the way. An older tree, if there is one, works on.
            current.tell_to_stop(0)
        if not self.start_at:
            ours = current is not None and current.watches
            self.failures = self.failures + 1 if ours and current and len(current.beaten) < len(self.slots) else 0
            pause = _pause(self.failures)
            self.start_at = now + pause
            if current is not None and ours:
                self.say(f"workers: {current.damaged}; a new tree starts {f'in {pause:.1f} s' if pause else 'now'}")
        if now >= self.start_at:
            self.start_at = 0.0
            self._start_tree()

    def _stands_in_line(self, tree: _Tree) -> bool:
        """Whether the old ones can be told to go: all processes are there and each slot has somebody waiting for it, or a second has passed."""
        if tree.complete_at is None:
            return False
        if time.monotonic() - tree.complete_at > STAND_IN_LINE:
            return True
        return all(slot in tree.beaten or resident.held(f"{slot}.next") or not resident.held(f"{slot}.slot") for slot in self.slots)

    def _start_tree(self) -> None:
        tree = f"{time.time_ns():020d}-{os.getpid()}"  # a later tree sorts later: its residents stand in line behind an older one's
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "workers"]
        try:
            resident.Lock(f"tree.{tree}").close()  # first: a tree whose lock cannot be made could not be ended in peace
            pid, output = self._spawn(command, {"FLASHDUTY_TREE": tree, "FLASHDUTY_RESIDENT": "True"})
        except OSError as error:
            self.failures += 1
            self.start_at = time.monotonic() + _pause(self.failures)
            self.say(f"workers: they cannot be started ({error}); trying again in {_pause(self.failures):.1f} s")
            return
        self.trees.append(_Tree(pid, tree))
        self.trees[-1].output = output
        self.trees[-1].watches[pid] = _Watch(pid)

    def _spawn(self, command: list[str], more: dict[str, str]) -> tuple[int, int]:
        """(pid, the reading end of its output). A session of its own; what it reads is nothing."""
        environment = {k: v for k, v in os.environ.items() if k not in ("FLASHDUTY_TREE", "FLASHDUTY_WEB", "FLASHDUTY_RESIDENT")}
        environment |= {"FLASHDUTY_RUN_DIR": str(settings.RUN_DIR), "PYTHONUNBUFFERED": "1"} | more
        environment.setdefault("MALLOC_ARENA_MAX", "2")
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        try:
            child = subprocess.Popen(
                command, env=environment, cwd=settings.BASE_DIR, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer, start_new_session=True
            )  # fmt: skip
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        child.returncode = 0  # we reap by number; Popen must not wait for it too
        return child.pid, reader

    def _wind_down(self, tree: _Tree, table: dict[int, _Process]) -> None:
        """Ends the tree once nobody is at work in it (the lock stays ours, so nobody begins) or its time is up."""
        if tree.stop_at is None or not (tree.work.take() or time.monotonic() >= tree.stop_at):
            return
        members = tree.members(table)
        for process in members:
            _kill(process.pid)
        if not members:
            tree.read(self.log, "work")
            tree.forget()
            self.trees.remove(tree)

    def _adopt(self) -> None:
        """Trees and web servers of a supervisor that died. The trees work on until ours stands in line."""
        here = str(settings.RUN_DIR)
        table = _processes()
        trees: dict[tuple[str, int], None] = {}
        for process in table.values():
            about = _environment(process.pid) if not process.zombie and process.pid != os.getpid() else {}
            if about.get("FLASHDUTY_RUN_DIR") != here:
                continue
            if about.get("FLASHDUTY_WEB"):
                _kill(process.pid)
            elif about.get("FLASHDUTY_TREE"):
                trees[about["FLASHDUTY_TREE"], process.session] = None
        for tree, session in sorted(trees):
            self.say(f"workers of an earlier supervisor (session {session}) work on until the new ones are ready")
            self.trees.append(_Tree(session, tree))
            self.trees[-1].complete_at = time.monotonic()
            self.trees[-1].damaged = "its supervisor has ended"
        for name in os.listdir(settings.RUN_DIR):
            kind, _, tree = name.partition(".")
            if kind in ("stop", "tree") and tree.removesuffix(".new") not in {known for known, _session in trees}:
                resident.path(name).unlink(missing_ok=True)

    # ---- heartbeats

    def _look_at_beats(self) -> None:
        now = time.monotonic()
        stale = []
        for slot in self.slots:
            try:
                beat = resident.path(f"{slot}.slot").stat().st_mtime_ns
            except FileNotFoundError:
                beat = 0
            if self.beats.get(slot, (-1, 0.0))[0] != beat:
                self.beats[slot] = (beat, now)
            if now - self.beats[slot][1] >= STALE:
                stale.append(slot)
        if not stale:
            return
        if not self.database.good(STALE):  # an outage of the database is waited for
            self.database.ask()
            return
        for slot in stale:
            pid, tree_id = resident.holder(slot) or (0, "")
            if resident.held(f"{slot}.slot"):
                guilty = next((tree for tree in self.trees if tree.id == tree_id), None)
                if guilty is None or _environment(pid).get("FLASHDUTY_TREE") != tree_id:
                    continue
            else:
                guilty, pid = self.trees[-1] if self.trees else None, 0
            if guilty is None or now - guilty.born < YOUNG:
                continue
            if pid:
                _kill(pid)  # it would keep its slot through the whole wind-down
            self.beats[slot] = (self.beats[slot][0], now)
            if not guilty.damaged:
                guilty.damaged = f"resident {slot} has been silent for {STALE:.0f} s"

    # ---- the web server

    def _web_command(self) -> list[str]:
        # Without --respawn-failed-workers one dead worker would end the server. No --backpressure: it counts open connections, so that
        # as many idle keep-alive senders would shut everybody else out. Log level: a warning about the number of threads at each start.
        return [
            sys.executable, "-m", "granian", "flashduty.wsgi:application", "--interface", "wsgi", "--host", self.host, "--port", str(self.port),
            "--workers", "1", "--blocking-threads", str(settings.WEB_THREADS), "--backlog", "2048", "--http", "1", "--no-ws",
            "--respawn-failed-workers", "--respawn-interval", "0.1", "--workers-kill-timeout", "1", "--log-level", "error", "--no-access-log",
        ]  # fmt: skip

    def _look_at_web(self) -> None:
        now = time.monotonic()
        if self.web is None:
            if self.with_web and not self.asked_to_stop and now >= self.web_at:
                shim = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid())]
                try:
                    pid, output = self._spawn(shim + self._web_command(), {"FLASHDUTY_WEB": "1"})
                except OSError as error:
                    self.web_failures += 1
                    self.web_at = now + _pause(self.web_failures)
                    self.say(f"the web server cannot be started ({error}); trying again in {_pause(self.web_failures):.1f} s")
                    return
                self.web, self.web_watch = _Family(pid), _Watch(pid)
                self.web.output = output
            return
        ended = self.web_watch is None or self.web_watch.ended()
        if self.asked_to_stop and not self.web_kill_at:
            _kill(self.web.leader, signal.SIGTERM)
            self.web_kill_at = now + STOP_SECONDS * 0.75
        if ended and not self.web_kill_at:
            self.web_failures = 0 if now - self.web.born > YOUNG else self.web_failures + 1
            pause = _pause(self.web_failures, 0.2)
            self.say(f"the web server has ended; it starts again {f'in {pause:.1f} s' if pause else 'now'}")
            self.web_at, self.web_kill_at = now + pause, now
        if ended or (self.web_kill_at and now >= self.web_kill_at) or self.asked_to_stop > 1:
            left = self.web.members(_processes())  # workers outlive their parent, and keep the port
            for process in left:
                _kill(process.pid)
            if not left and (self.web_watch is None or self.web_watch.ended()):
                self.web.read(self.log, "web")
                self.web.close()
                if self.web_watch:
                    self.web_watch.close()
                self.web, self.web_watch, self.web_kill_at = None, None, 0.0

    def _ask_web(self) -> None:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(self.url, timeout=ANSWER):
            pass

    # ---- what we tell others

    def _look_whether_ready(self) -> None:
        if not self.trees or len(self.trees[-1].beaten) < len(self.slots):
            return
        if self.with_web and not self.answers.good(60):
            self.answers.ask()
            return
        if self.on_ready is not None:
            self.on_ready()
            self.on_ready = None

    def _tell(self) -> None:
        """supervisor.json, for /readyz: written only when it changes, and tried again at the next look where it cannot be written."""
        current = self.trees[-1] if self.trees else None
        state = {
            "pid": os.getpid(),
            "slots": self.slots,
            "tree": current.id if current else "",
            "failed_starts": self.failures,
            "reason": current.damaged if current and self.failures else "",
        }
        if (text := json.dumps(state)) != self.told:
            try:
                _write("supervisor.json", text)
                self.told, self.untold = text, ""
            except OSError as error:
                if str(error) != self.untold:
                    self.untold = str(error)
                    self.say(f"{settings.RUN_DIR} cannot be written ({error}): /readyz tells what was before")


def _pause(failures: int, first: float = 0.5) -> float:
    """Seconds before the next start after so many that failed in a row: `first`, and twice as long each time."""
    return min(LONGEST_BACKOFF, first * 2 ** min(failures - 1, 10)) if failures else 0.0  # 2**1024 is no float


def _become_reaper() -> None:
    """Orphans of our trees become our children (PR_SET_CHILD_SUBREAPER), wherever the system can do that."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def main(arguments: list[str] | None = None) -> int:
    """`python -m flashduty.supervisor --host HOST --port PORT [--no-web]`."""
    parser = argparse.ArgumentParser(prog="supervisor", description=main.__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--no-web", action="store_true")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flashduty.settings")
    return supervise(host=chosen.host, port=chosen.port, web=not chosen.no_web)


if __name__ == "__main__":
    sys.exit(main())
