"""Peers beside the product: the same generator, the same sink, the same measures in the same run. `python -m benchmarks peers`.

Ours is measured first and ended; then each peer has the machine to itself, as ours had it. Alerta, from PyPI in a virtualenv of its own, keeps its
alerts in a PostgreSQL that our own code starts, with the settings that ours has, and tells the sink from a plugin: its documented way to notify.
Alertmanager, from Debian, keeps them in memory and tells a webhook. Where a choice is ours it is the one that makes the peer faster: a resource of
its own for each alert, a connection to the sink that is kept, no authentication, no access log, no proxy before it.
"""

import asyncio
import contextlib
import http.client
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import psycopg

from benchmarks.measures import Bench, Row, latency, sustained
from benchmarks.product import Broken, Processes
from benchmarks.wire import Provider, Source
from flashduty import postgres

MEASURES: Final = {"latency": latency, "sustained": sustained}
TWICE: Final = ("Alerta", "accepted and paged, sustained")  # of this one we want to be twice as fast, and never less
START_SECONDS: Final = 60
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashduty-bench"

ALERTA: Final = ("alerta-server==9.1.0", "gunicorn==27.0.1", "psycopg2-binary==2.9.13")
ALERTA_SETTINGS: Final = """\
from alerta import settings
DATABASE_URL = {database!r}
SECRET_KEY = {secret!r}
PLUGINS = [*settings.PLUGINS, "bench_sink"]
"""
ALERTA_PLUGIN: Final = '''\
"""Tells the sink of each new alert, and nothing of its repetitions."""
import os

import requests
from alerta.plugins import PluginBase


class Sink(PluginBase):
    def __init__(self, name=None):
        super().__init__(name)
        self.session = requests.Session()

    def pre_receive(self, alert, **kwargs):
        return alert

    def post_receive(self, alert, **kwargs):
        if not alert.repeat:
            said = {"title": alert.event, "severity": alert.severity, "text": alert.text, "service": alert.service, "resource": alert.resource}
            self.session.post(os.environ["BENCH_SINK"], json=said, timeout=5).raise_for_status()

    def status_change(self, alert, status, text, **kwargs):
        return None
'''
# Every alert is a group of its own and goes at once, and only once while this lasts.
ALERTMANAGER: Final = """\
route: {{receiver: sink, group_by: ["..."], group_wait: 0s}}
receivers:
  - name: sink
    webhook_configs: [{{url: "{sink}", send_resolved: false}}]
"""


class Peer(Processes):
    """`with Alerta(port, sink, say) as peer:` runs it on 127.0.0.1 with a folder of its own, which is gone afterwards. `sink`: where it notifies."""

    name: ClassVar[str]
    ready: ClassVar[str]  # a path that answers once it works
    door: ClassVar[str]  # the path to which alerts are posted

    def __init__(self, port: int, sink: str, say: Callable[[str], None]) -> None:
        super().__init__()
        self.port, self.sink, self.say = port, sink, say
        self.url = f"http://127.0.0.1:{port}{self.door}"
        self.folder = Path(tempfile.mkdtemp(prefix="flashduty-bench-", dir="/var/tmp"))
        self.log = self.folder / "log"
        self.run: subprocess.Popen[bytes] | None = None

    @classmethod
    def prepare(cls, say: Callable[[str], None]) -> None:
        """Installs what is missing; Broken with a sentence when it cannot be had."""
        raise NotImplementedError

    @staticmethod
    def alert(number: int) -> Any:
        """One that is like no other, in the peer's own format; as much is in it as in ours."""
        raise NotImplementedError

    def start(self) -> None:
        """Calls `launch`."""
        raise NotImplementedError

    def launch(self, arguments: Sequence[str | Path], **environment: str) -> None:
        """Starts it without anything of our environment, such as a proxy, and returns once it answers."""
        name, _, value = self.mark.partition("=")
        with self.log.open("wb") as log:
            self.run = subprocess.Popen(
                list(arguments), cwd=self.folder, env={"PATH": os.environ["PATH"], name: value, **environment},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.roots.add(self.run.pid)
        begun = time.monotonic()
        while not self._answers():
            if self.run.poll() is not None or time.monotonic() - begun > START_SECONDS:
                raise Broken(f"{self.name} did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", self.ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def __enter__(self) -> "Peer":
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.run is not None:
            self.run.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.run.wait(5)
        self.end()
        self.kill()
        if self.run is not None:
            self.run.wait(5)
        shutil.rmtree(self.folder, ignore_errors=True)

    def end(self) -> None:
        """What else was started for it."""


class Alerta(Peer):
    name, ready, door = "Alerta", "/management/healthcheck", "/alert"
    home = CACHE / f"{ALERTA[0].replace('==', '-')}-py{sys.version_info[0]}.{sys.version_info[1]}"

    @classmethod
    def prepare(cls, say: Callable[[str], None]) -> None:
        done = cls.home / "done"  # says what is installed: without it somebody pressed Ctrl-C
        if done.exists() and done.read_text() == " ".join(ALERTA):
            return
        say(f"making a virtualenv in {cls.home}, once: half a minute")
        shutil.rmtree(cls.home, ignore_errors=True)
        cls.home.parent.mkdir(parents=True, exist_ok=True)
        for step in (
            [sys.executable, "-m", "venv", str(cls.home)],
            [f"{cls.home}/bin/pip", "install", "--disable-pip-version-check", "--progress-bar=off", *ALERTA],
        ):
            if subprocess.run(step, stdin=subprocess.DEVNULL, stdout=sys.stderr).returncode:
                raise Broken(f"{step[0]} could not make its virtualenv, for what is said above")
        done.write_text(" ".join(ALERTA))

    @staticmethod
    def alert(number: int) -> Any:
        return {
            "environment": "Production", "resource": f"h{number}", "event": f"bench {number}", "severity": "critical", "service": ["bench"],
            "text": "A benchmark's alert: nothing is wrong.", "attributes": {"host": f"h{number % 50}", "check": "load"},
        }  # fmt: skip

    def start(self) -> None:
        server = postgres.start(self.folder / "data", self.say)
        self.roots.add(server.pid)
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE alerta")
        settings = self.folder / "alertad.conf"
        database = urlsplit(server.url)._replace(path="/alerta").geturl()
        settings.write_text(ALERTA_SETTINGS.format(database=database, secret=secrets.token_hex(32)))
        (self.folder / "bench_sink.py").write_text(ALERTA_PLUGIN)
        entry = self.folder / "bench_sink-1.dist-info"  # how Alerta finds its plugins: the entry points of what is installed
        entry.mkdir()
        (entry / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-sink\nVersion: 1\n")
        (entry / "entry_points.txt").write_text("[alerta.plugins]\nbench_sink = bench_sink:Sink\n")
        # As many workers as gunicorn's documentation asks for; preloaded, for they cannot all make the tables at once.
        workers = 2 * (os.cpu_count() or 1) + 1
        self.launch(
            [self.home / "bin/gunicorn", f"--bind=127.0.0.1:{self.port}", f"--workers={workers}", "--preload", "--no-control-socket",
             "alerta:create_app()"],
            ALERTA_SVR_CONF_FILE=str(settings), PYTHONPATH=str(self.folder), BENCH_SINK=self.sink,
        )  # fmt: skip
        self.say(f"{ALERTA[0]} is ready with {workers} workers of {ALERTA[1]}")

    def end(self) -> None:
        postgres.remove(self.folder / "data")


class Alertmanager(Peer):
    name, ready, door = "Alertmanager", "/-/ready", "/api/v2/alerts"
    program = "prometheus-alertmanager"

    @classmethod
    def prepare(cls, say: Callable[[str], None]) -> None:
        if shutil.which(cls.program) is None:
            raise Broken(f"there is no {cls.program} here (apt-get install {cls.program})")

    @staticmethod
    def alert(number: int) -> Any:
        labels = {"alertname": f"bench-{number}", "severity": "critical", "service": "bench", "host": f"h{number % 50}", "check": "load"}
        return [{"labels": labels, "annotations": {"title": f"bench {number}", "description": "A benchmark's alert: nothing is wrong."}}]

    def start(self) -> None:
        (self.folder / "alertmanager.yml").write_text(ALERTMANAGER.format(sink=self.sink))
        self.launch(
            [self.program, f"--config.file={self.folder}/alertmanager.yml", f"--storage.path={self.folder}/data", "--cluster.listen-address=",
             f"--web.listen-address=127.0.0.1:{self.port}"],
        )  # fmt: skip
        said = subprocess.run([self.program, "--version"], capture_output=True, text=True)
        self.say(f"{(said.stdout + said.stderr).partition(' (')[0]} is ready")


class _Beside(Bench):
    """A peer in the product's place."""

    async def left(self) -> dict[str, int]:
        """Nobody can look into a peer's queues: what it has accepted and the sink has not seen."""
        waiting = len(self.source.answered.keys() - self.provider.pages.keys())
        return {"accepted and not notified": waiting} if waiting else {}


def prepare(say: Callable[[str], None]) -> list[type[Peer]]:
    """The peers that can be had here; of the others it says why not. Before anything is measured: pip is no quiet neighbour."""
    there: list[type[Peer]] = []
    for peer in (Alerta, Alertmanager):
        try:
            peer.prepare(say)
            there.append(peer)
        except Broken as error:
            say(f"{peer.name} is left out: {error}")
    return there


async def measure(kind: type[Peer], ours: Iterable[Row], port: int, scale: float, say: Callable[[str], None]) -> list[Row]:
    """Our numbers with the peer's as their goals, so that a ratio over 1 is ours being better; `seen` is the peer's."""
    mine = {row.name: row for row in ours}
    rows = []
    try:
        async with Provider() as provider:
            with kind(port, f"http://127.0.0.1:{provider.port}/fast", say) as peer:
                # The two measures ask their product for nothing but its processes.
                bench = _Beside(peer, provider, Source(peer.alert), {"fast": peer.url}, scale)  # type: ignore[arg-type]
                with contextlib.closing(bench.source):
                    for name, of in MEASURES.items():
                        say(f"measuring: {name} of {kind.name}")
                        for row in await of(bench):
                            rows += _beside(kind.name, mine.get(row.name), row)
    except (Broken, postgres.PostgresError) as error:
        await asyncio.sleep(0)  # a Ctrl-C may be why it failed, and then it is Ctrl-C that counts
        raise Broken(f"{kind.name} is left out: {error}") from error
    return rows


def _beside(peer: str, ours: Row | None, theirs: Row) -> list[Row]:
    if ours is None:
        return [Row(f"{theirs.name}: {peer} alone", theirs.value, theirs.unit, seen=theirs.seen)]
    rows = [Row(f"{ours.name}: beside {peer}", ours.value, ours.unit, round(theirs.value, 3), ours.most, theirs.seen)]
    if (peer, ours.name) == TWICE and theirs.value:
        rows.append(Row(f"{ours.name}: times {peer}", ours.value / theirs.value, "", 2, most=False))
    return rows
