"""The real product as `make run` starts it, in a folder of its own, and who is who among its processes."""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from flashduty import postgres

ROOT = Path(__file__).resolve().parent.parent.parent
SLOTS = ("intake", "engine", "drain-0", "drain-1")
# What each kind of kill ends. "postgres session" ends politely (SIGTERM) and alone, as in a failover; a "postgres backend" takes the whole
# server through its recovery; "machine" is a machine that lost its power: everything at once, and the driver starts it again.
KINDS = (
    "web parent", "web worker", "whole web", "supervisor", "tree parent", "sentinel", "pusher", "monitor", "busy intake", "busy engine",
    "busy drain", "idle worker", "whole tree", "supervisor, web and tree", "postgres session", "postgres backend", "postmaster", "machine",
)  # fmt: skip
NOT_OURS = frozenset({"postgres session", "postgres backend", "postmaster", "machine"})


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    parent: int
    session: int
    role: str  # run, supervisor, web parent, web worker, tree parent, sentinel, pusher, monitor, worker, other


class Product:
    """`start`, then `processes` and `kill`, then `stop`, which leaves nothing behind."""

    def __init__(self, folder: Path, ledger_url: str, ledger_port: int) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.chaos = folder / "chaos"
        for name in ("sites", "who"):
            (self.chaos / name).mkdir(parents=True)
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.mark = f"CHAOS_DIR={self.chaos}".encode()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLASHDUTY_", "DEMO_", "GRANIAN_", "DJANGO_", "DATABASE_"))}
        kept = {k: v for k, v in kept.items() if k not in ("BASE_URL", "PYTHONPATH")}
        self.environment = kept | {
            "DEMO_WEBHOOK": ledger_url, "CHAOS_DIR": str(self.chaos), "CHAOS_ROOT": str(ROOT), "CHAOS_LEDGER_PORT": str(ledger_port),
            "PYTHONPATH": str(Path(__file__).parent / "switch"),
        }  # fmt: skip
        self.log = folder / "product.log"
        self.child: subprocess.Popen[bytes] | None = None

    # ---- beginning and end

    def start(self, patience: float = 180) -> float:
        """Starts it and waits until /readyz says 200; the seconds that took. Raises RuntimeError with the end of its log."""
        begun = time.monotonic()
        with open(self.log, "ab") as log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "flashduty.run", "127.0.0.1", str(self.port), str(self.data)],
                cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        while time.monotonic() - begun < patience:
            if self.child.poll() is not None:
                raise RuntimeError(f"the product ended with code {self.child.returncode}:\n{self.tail()}")
            if (self.data / "demo.json").exists() and self.ready():
                return time.monotonic() - begun
            time.sleep(0.1)
        raise RuntimeError(f"the product was not ready in {patience:.0f} s:\n{self.tail()}")

    def ready(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError):
            with opener.open(f"http://127.0.0.1:{self.port}/readyz", timeout=10) as answer:
                return bool(answer.status == 200)
        return False

    def demo(self) -> dict[str, str]:
        return json.loads((self.data / "demo.json").read_text())  # type: ignore[no-any-return]

    def stop(self) -> tuple[float, list[str]]:
        """Ctrl-C as a person gives it: (seconds until the command ended, what it left behind). Whatever is left is killed."""
        begun = time.monotonic()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(60)
        took = time.monotonic() - begun
        grace = time.monotonic() + 5
        while self._marked() and time.monotonic() < grace:
            time.sleep(0.05)  # what was killed at the very end may not have been taken off the list yet
        left = [self._words(pid) for pid in self._marked()]
        self.kill_everything()
        return took, left

    def remove(self) -> None:
        """Deletes the database, wherever it lies, and the folder."""
        self.kill_everything()
        with contextlib.suppress(postgres.PostgresError, OSError):
            postgres.remove(self.data)
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill_everything(self) -> None:
        """Everything at once, PostgreSQL too, as when the power goes."""
        for _ in range(100):
            pids = self._marked() + self.postgres_pids()
            for pid in pids:
                _kill(pid)
            if self.child is not None:
                self.child.poll()
            if not pids:
                break
            time.sleep(0.02)

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    # ---- who is who

    def _marked(self) -> list[int]:
        """Living processes that have our folder in their environment (PostgreSQL's overwrite theirs)."""
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError):
                    if self.mark in Path("/proc", name, "environ").read_bytes().split(b"\0") and _stat(int(name))[0] not in "ZX":
                        found.append(int(name))
        return found

    def _words(self, pid: int) -> str:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
        return str(pid)

    def processes(self) -> list[Process]:
        found: list[Process] = []
        raw: dict[int, tuple[int, int, str, str, str]] = {}
        for pid in self._marked():
            with contextlib.suppress(OSError):
                _state, parent, session, born = _stat(pid)
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                part = "web" if b"FLASHDUTY_WEB=1" in environment else "tree" if b"FLASHDUTY_TREE=" in environment else ""
                raw[pid] = (parent, session, part, self._words(pid), self._forked_for(pid, born))
        for pid, (parent, session, part, words, forked_for) in raw.items():
            above = raw.get(parent)
            if part == "web":
                role = "web worker" if above is not None and above[2] == "web" else "web parent"
            elif part == "tree":
                role = {"Sentinel": "sentinel", "pusher": "pusher", "monitor": "monitor", "worker": "worker"}.get(forked_for, "other")
                role = "tree parent" if pid == session else role
            else:
                role = "supervisor" if "--child" in words or "supervis" in words else "run" if "flashduty.run" in words else "other"
            found.append(Process(pid, parent, session, role))
        return found

    def _forked_for(self, pid: int, born: str) -> str:
        with contextlib.suppress(OSError, ValueError):
            target, then = (self.chaos / "who" / str(pid)).read_text().split()
            return target if then == born else ""
        return ""

    def holders(self) -> dict[str, int]:
        """Which process holds which resident's slot, from the kernel's own list of locks."""
        inodes = {}
        for slot in SLOTS:
            with contextlib.suppress(OSError):
                inodes[(self.data / "run" / f"{slot}.slot").stat().st_ino] = slot
        held = {}
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if "->" not in words and words[1] == "FLOCK" and words[3] == "WRITE":
                inode = int(words[5].split(":")[2])
                if inode in inodes:
                    held[inodes[inode]] = int(words[4])
        return held

    def postgres_pids(self, *, backends: bool = False) -> list[int]:
        """The postmaster first, then its children; with `backends` only the sessions of the product."""
        try:
            server = postgres.status(self.data)
        except (postgres.PostgresError, OSError):
            return []
        if server is None:
            return []
        children = [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent(int(name)) == server.pid]
        if backends:
            return [pid for pid in children if f" {postgres.DATABASE} " in self._words(pid)]
        return [server.pid, *children]

    def whole(self) -> bool:
        """Whether everything is there once: one web, one tree that is complete, and a holder for each slot."""
        count: defaultdict[str, int] = defaultdict(int)
        processes = self.processes()
        for process in processes:
            count[process.role] += 1
        alive = {process.pid for process in processes}
        held = self.holders()
        once = all(count[role] == 1 for role in ("run", "supervisor", "web parent", "tree parent", "sentinel", "pusher", "monitor"))
        return (
            once
            and count["worker"] >= len(SLOTS) + 2
            and count["web worker"] >= 1
            and set(held) == set(SLOTS)
            and set(held.values()) <= alive
        )

    # ---- killing

    def victims(self, kind: str, choice: random.Random, spared: int = 0) -> list[int]:
        """The pids a kill of this kind ends, in the order in which they get it; empty when there is nobody of that kind now.

        `spared`: never this one, where the kind is of single processes (it stands at a site, and another one is meant)."""
        processes = self.processes()
        by: defaultdict[str, list[int]] = defaultdict(list)
        for process in processes:
            by[process.role].append(process.pid)
        single = {role: [pid for pid in pids if pid != spared] for role, pids in by.items()}
        tree = [p.pid for p in sorted(processes, key=lambda p: p.role != "tree parent") if p.role in (
            "tree parent", "sentinel", "pusher", "monitor", "worker")]  # fmt: skip
        web = by["web parent"] + by["web worker"]
        held = self.holders()
        if kind in ("web parent", "web worker", "supervisor", "tree parent", "sentinel", "pusher", "monitor"):
            return [choice.choice(single[kind])] if single.get(kind) else []
        if kind.startswith("busy "):
            name = kind.removeprefix("busy ")
            here = [pid for slot, pid in held.items() if slot.partition("-")[0] == name and pid != spared]
            return [choice.choice(here)] if here else []
        if kind == "idle worker":
            idle = [pid for pid in single.get("worker", []) if pid not in held.values()]
            return [choice.choice(idle)] if idle else []
        if kind == "whole web":
            return web
        if kind == "whole tree":
            return tree
        if kind == "supervisor, web and tree":
            return by["supervisor"] + web + tree
        if kind in ("postgres session", "postgres backend"):
            backends = self.postgres_pids(backends=True)
            return [choice.choice(backends)] if backends else []
        if kind == "postmaster":
            return self.postgres_pids()[:1]
        assert kind == "machine"
        return by["run"] + by["supervisor"] + web + tree + by["other"] + self.postgres_pids()

    def kill(self, pids: list[int], number: int = signal.SIGKILL) -> float:
        """The signal to each; when the first one was sent."""
        at = time.monotonic()
        for pid in pids:
            _kill(pid, number)
        return at

    def wait_for_the_end(self, pids: list[int], until: float) -> None:
        """Until none of them lives, or the monotonic clock says `until`."""
        while time.monotonic() < until and any(_lives(pid) for pid in pids):
            time.sleep(0.002)

    # ---- sites

    def sites(self) -> set[str]:
        found = set()
        for path in (self.chaos / "sites").iterdir():
            if path.suffix != ".new":
                with contextlib.suppress(OSError):
                    found.add(path.read_text())
        return found

    def arm(self, number: int, site: str, visit: int, halt: float = 0.0) -> None:
        """At its `visit`-th pass of `site` a process ends itself, or stands still for `halt` seconds or until `go`."""
        draft = self.chaos / "plan.new"
        draft.write_text(json.dumps({"id": number, "site": site, "n": visit, "halt": halt}))
        draft.rename(self.chaos / "plan.json")

    def disarm(self) -> None:
        (self.chaos / "plan.json").unlink(missing_ok=True)

    def go(self, number: int) -> None:
        """Whoever stands still for plan `number` goes on."""
        (self.chaos / f"go.{number}").touch()

    def fired(self, number: int) -> tuple[int, float] | None:
        """(pid, when) of the process that plan `number` ended or stopped."""
        for path in self.chaos.glob(f"fired.{number}.*"):
            _fired, _number, pid, at = path.name.split(".")
            return int(pid), int(at) / 1e9
        return None


def _stat(pid: int) -> tuple[str, int, int, str]:
    """(state, parent, session, when it was born); OSError when it is gone."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return words[0], int(words[1]), int(words[3]), words[19]


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return _stat(pid)[1]
    return 0


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return _stat(pid)[0] not in "ZX"
    return False


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
