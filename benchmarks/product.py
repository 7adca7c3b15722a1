"""The real product as one `make run` starts it, and what the kernel says about its processes: processor time and memory."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

TREE = Path(__file__).resolve().parent.parent
TICK = os.sysconf("SC_CLK_TCK")
START_SECONDS = 120


class Broken(Exception):
    """The product, or the machine, does not do what a measurement needs; one sentence."""


class Processes:
    """All processes of something that was started here, and what the kernel says of them.

    They are found by `mark`, which stands in the environment that they were started with, and as children of `roots`.
    """

    def __init__(self) -> None:
        self.mark = f"FLASHDUTY_BENCH={secrets.token_hex(8)}"
        self.roots: set[int] = set()

    def kill(self) -> None:
        """Ends at once whatever is left of it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """Every process of it by pid: `postgres`, `web`, `workers` or `run`. PostgreSQL's write over their environment: found by parent."""
        table = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    stat = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                    if stat[0] not in "ZX":
                        table[int(entry)] = int(stat[1])
        name, _, value = self.mark.partition("=")
        ours = {pid for pid in table if _environment(pid).get(name) == value}
        ours |= self.roots
        grown = True
        while grown:
            more = {pid for pid, parent in table.items() if parent in ours} - ours
            ours |= more
            grown = bool(more)
        return {pid: _role(pid) for pid in ours if pid in table}

    def cpu(self) -> dict[str, float]:
        """Seconds of processor time used so far, by role and in all. Children that ended and were waited for are in their parents' numbers."""
        used: dict[str, float] = {"postgres": 0, "web": 0, "workers": 0, "run": 0}
        for pid, role in self.processes().items():
            with contextlib.suppress(OSError, IndexError):
                stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                used[role] += sum(map(int, stat[11:15])) / TICK
        return used | {"all": sum(used.values())}

    def memory(self) -> dict[str, int]:
        """Proportional set size in bytes by role."""
        used: dict[str, int] = {}
        for pid, role in self.processes().items():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        used[role] = used.get(role, 0) + int(line.split()[1]) * 1024
        return used


class Product(Processes):
    """`with Product(port, hook) as p:` runs it on 127.0.0.1 with a data folder of its own, which is gone afterwards.

    `slow_flush`: microseconds that every flush of PostgreSQL takes longer (needs a C compiler). `extra`: environment variables.
    """

    def __init__(self, port: int, provider_port: int, mail_port: int, *, slow_flush: int = 0, extra: dict[str, str] | None = None) -> None:
        self.port, self.provider_port, self.mail_port, self.slow_flush = port, provider_port, mail_port, slow_flush
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="flashduty-bench-", dir="/var/tmp"))
        self.folder.chmod(0o755)  # PostgreSQL may run as another account, and loads the flush shim from here
        self.data = self.folder / "data"
        self.extra = extra or {}
        self.run: subprocess.Popen[bytes] | None = None
        self.log = self.folder / "log"
        self.environment: dict[str, str] = {}
        self.url = ""
        self.started_in = 0.0

    # ---- its life ----

    def __enter__(self) -> "Product":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        name, _, value = self.mark.partition("=")
        environment = os.environ | self.extra | {
            name: value,
            "DEMO_WEBHOOK": f"http://127.0.0.1:{self.provider_port}/fast",
        }  # fmt: skip
        for other in ("DATABASE_URL", "DATABASE_DIRECT_URL", "DJANGO_SETTINGS_MODULE"):
            environment.pop(other, None)
        if self.slow_flush:
            environment |= {"LD_PRELOAD": str(self._shim()), "SLOW_FLUSH_US": str(self.slow_flush)}
        begun = time.monotonic()
        with self.log.open("wb") as log:
            self.run = subprocess.Popen(
                [sys.executable, "-m", "flashduty.run", "127.0.0.1", str(self.port), str(self.data)],
                cwd=TREE, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.roots = {self.run.pid}
        while b"Flashduty is ready" not in self.log.read_bytes():
            if self.run.poll() is not None or time.monotonic() - begun > START_SECONDS:
                raise Broken(f"the product did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        self.started_in = time.monotonic() - begun
        for pid in self.processes():
            found = _environment(pid)
            if found.get("DJANGO_SETTINGS_MODULE") and found.get("DATABASE_URL"):
                self.environment = {k: v for k, v in found.items() if k not in ("LD_PRELOAD", "FLASHDUTY_TREE", name)}
                self.url = found["DATABASE_URL"]
                break
        else:
            raise Broken("no process of the product knows its database")
        if self.slow_flush and not any(self._has_shim(pid) for pid, role in self.processes().items() if role == "postgres"):
            raise Broken("PostgreSQL runs without the slower flushes: its account or its launcher drops LD_PRELOAD")

    @staticmethod
    def _has_shim(pid: int) -> bool:
        try:
            return "slow_flush.so" in Path(f"/proc/{pid}/maps").read_text()
        except OSError:
            return False

    def _shim(self) -> Path:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise Broken("slower flushes need a C compiler (cc or gcc), and there is none here")
        shim = self.folder / "slow_flush.so"
        made = subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", shim, Path(__file__).with_name("slow_flush.c"), "-ldl"],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            raise Broken(f"slow_flush.c does not compile here: {made.stderr.strip()[-300:]}")
        return shim

    def __exit__(self, *_: object) -> None:
        if self.run is not None:
            if self.run.poll() is None:
                self.run.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.run.wait(10)
            self.kill()
            self.run.wait(5)
            time.sleep(0.2)
            subprocess.run(
                [sys.executable, "-m", "flashduty.run", "--remove", str(self.data)], cwd=TREE, capture_output=True, timeout=60, check=False
            )
        shutil.rmtree(self.folder, ignore_errors=True)

    def django(self, *arguments: str) -> Any:
        """Runs `benchmarks.world` with the product's environment; what it printed, read as JSON."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.world", *arguments],
            cwd=TREE,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise Broken(f"benchmarks.world {' '.join(arguments)} failed: {done.stderr.strip()[-2000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])

    def sql(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement on a connection of its own; its rows."""
        with psycopg.connect(self.url, autocommit=True, application_name="bench") as connection:
            cursor = connection.execute(statement, values)  # type: ignore[arg-type]  # our own constant statements
            return cursor.fetchall() if cursor.description else []

    def version(self) -> str:
        return str(self.sql("SELECT version()")[0][0]).split(" on ")[0]


class Busy:
    """How much of the machine neither the product (or a peer) nor this process used: what makes a measurement doubtful."""

    def __init__(self, product: Processes) -> None:
        self.product = product
        self.before = self._look()

    def _look(self) -> tuple[float, float, dict[str, float], float]:
        fields = [int(field) / TICK for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return time.monotonic(), sum(fields) - fields[3] - fields[4], self.product.cpu(), time.process_time()

    def since(self) -> dict[str, Any]:
        """Since this was made: seconds, the product's processor time by role, ours, and the share of all cores that strangers had."""
        (at, machine, cpu, mine), (at0, machine0, cpu0, mine0) = self._look(), self.before
        seconds = at - at0
        used = {role: round(cpu[role] - cpu0[role], 2) for role in cpu}
        strangers = max(0.0, machine - machine0 - used["all"] - (mine - mine0)) / seconds / (os.cpu_count() or 1)
        return {"seconds": seconds, "cpu": used, "generator_cpu": round(mine - mine0, 2), "strangers": round(strangers, 2)}


def _environment(pid: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(pair.decode(errors="replace").split("=", 1) for pair in pairs if b"=" in pair)


def _role(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
    except OSError:
        return "run"
    if b"postgres" in line.split(b" ", 1)[0]:
        return "postgres"
    if b"granian" in line:
        return "web"
    return "workers" if "FLASHDUTY_TREE" in _environment(pid) else "run"
