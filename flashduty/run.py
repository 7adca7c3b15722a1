"""`make run`: the whole product in one terminal. `python -m flashduty.run HOST PORT DATA`; `--remove DATA` deletes the demo.

Two processes. The upper one (standard library only) owns the data folder, the keys and the embedded PostgreSQL, which it starts first,
starts again when it dies, and stops last. The lower one migrates, seeds the demo and then is the supervisor of web and workers; it
works in a session of its own, so that Ctrl-C reaches only the upper one, and is started again when it dies."""

import base64
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from typing import NoReturn

from flashduty import postgres

PREPARATION_FAILED = 78  # EX_CONFIG: the lower process said what is wrong, and trying again would not help
SECONDS_TO_STOP = 2.8
LONG_LIVED = 10.0  # a supervisor that ends after so many seconds did not fail at its start
LONGEST_PAUSE = 10.0
# The environment of the product: what `make`, or a shell in which another instance is configured, must not decide.
OURS = (
    "BASE_URL",
    "DATABASE_URL",
    "FLASHDUTY_SECRET_KEY",
    "FLASHDUTY_ENCRYPTION_KEYS",
    "FLASHDUTY_LINK_KEYS",
    "FLASHDUTY_MODE",
    "FLASHDUTY_DATA",
)
# Commands of manage.py that may be meant for a demo: they ask a product that runs. None that serves, migrates or rotates keys.
FOR_A_DEMO = ("changepassword", "createsuperuser", "doctor", "explain", "forget_member", "prune", "send_test", "shell")
FOREIGN = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKE_TERMOUT", "MAKE_TERMERR", "FLASHDUTY_RUN_DIR", "FLASHDUTY_RESIDENT", "PYTHONHOME")


# How PostgreSQL tells of sessions that ended because we did.
_GOODBYES = r"due to administrator command|connection to client lost"


class Wrong(Exception):
    """One sentence for whoever typed the command."""


def say(line: str, source: str = "run") -> None:
    with contextlib.suppress(OSError):  # a log file on a full disk, a terminal that is gone: no reason to stop paging
        print(f"{source:<9}| {line}", flush=True)


@dataclasses.dataclass(frozen=True)
class Where:
    """What the command line chose. `base_url` is what people open: never 0.0.0.0."""

    host: str
    port: int
    data: pathlib.Path

    @property
    def base_url(self) -> str:
        host = self.host
        if host in ("0.0.0.0", "::", ""):
            host = _outward_address()
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def probe_url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/readyz"


def _outward_address() -> str:
    """The address of the interface that leads out (no packet is sent); the loopback one without a network."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect(("192.0.2.1", 9))
        return str(s.getsockname()[0])
    return "127.0.0.1"


# ---------------------------------------------------------------- the upper process


class Run:
    """One `make run`, from the lock on its data folder to the last process gone."""

    def __init__(self, where: Where) -> None:
        self.where = where
        self.id = secrets.token_hex(8)  # in the environment of everything below us
        self.own_database = not os.environ.get("DATABASE_URL")
        self.server: postgres.Server | None = None
        self.child: subprocess.Popen | None = None
        self.born = 0.0  # when it was started
        self.environment: dict[str, str] = {}
        self.stopping = self.started = self.ready = False
        self.journal_read = 0
        self.wake_read, self.wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(self.wake_write, False)

    def main(self) -> int:
        """Exit code 0 after Ctrl-C or SIGTERM, 1 when something was wrong."""
        check_variables()
        with self._locked_data():
            check_port(self.where)
            (self.where.data / "demo.json").unlink(missing_ok=True)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, self._asked_to_stop)
            signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
            try:
                self._start()
                code = self._watch()
            except KeyboardInterrupt:
                code = 0
            finally:
                self.stopping = True
                self._stop(time.monotonic())
            return code

    @contextlib.contextmanager
    def _locked_data(self):
        """Two of us on one data folder would be two supervisors over one set of workers."""
        data = self.where.data
        try:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = open(data / "run.lock", "a+")  # noqa: SIM115
        except OSError as e:
            raise Wrong(f"The data folder {data} cannot be written: {e.strerror}.") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise Wrong(
                    f"Another `make run` (process {handle.read().strip() or '?'}) uses {data}: stop it or choose another folder with DATA=."
                ) from None
            with contextlib.suppress(OSError):  # a full disk: the lock holds without our number in it
                handle.truncate(0)
                handle.write(f"{os.getpid()}\n")
                handle.flush()
            yield

    def _asked_to_stop(self, number: int, frame: object) -> None:
        if not self.stopping:
            self.stopping = True
            if not self.started:
                raise KeyboardInterrupt

    def _start(self) -> None:
        where = self.where
        settings = product_settings(where.data) | {
            "BASE_URL": where.base_url, "FLASHDUTY_MODE": "demo", "FLASHDUTY_DATA": str(where.data), "DJANGO_SETTINGS_MODULE": "flashduty.settings",
        }  # fmt: skip
        if self.own_database:
            self.journal_read = self._journal_size()
            try:
                self.server = postgres.start(where.data, say)
            except postgres.PostgresError:
                self.own_database = False  # what runs in that folder, if anything does, is not ours to stop
                raise
            settings["DATABASE_URL"] = self.server.url
        else:
            settings["DATABASE_URL"] = os.environ["DATABASE_URL"]
        kept = {
            k: v for k, v in os.environ.items() if k not in FOREIGN and k.removesuffix("_FILE") not in OURS and not k.startswith("GRANIAN_")
        }
        if self.own_database:
            kept.pop("DATABASE_DIRECT_URL", None)
        self.environment = kept | settings | {"FLASHDUTY_RUN_ID": self.id, "PYTHONUNBUFFERED": "1"}
        self._start_child()
        self.started = True
        threading.Thread(target=self._announce, daemon=True).start()

    def _start_child(self) -> None:
        command = [sys.executable, "-m", "flashduty.run", "--child", self.where.host, str(self.where.port), str(self.where.data)]
        self.born = time.monotonic()
        self.child = subprocess.Popen(
            [*command, "again"] if self.ready else command, env=self.environment, cwd=pathlib.Path(__file__).resolve().parent.parent,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def _watch(self) -> int:
        """Sleeps until a signal, the end of the supervisor or the end of PostgreSQL."""
        failures = 0
        while not self.stopping:
            self._show_journal()
            if self.server and not self.server.alive():
                say("the server has ended: starting it again", "postgres")
                try:
                    self.server = postgres.start(self.where.data, lambda line: say(line, "postgres"))
                except postgres.PostgresError as e:
                    say(f"{e} Trying again in 2 s.", "postgres")
                    self._sleep(2.0)
                    continue
            code = self.child.poll() if self.child else None
            if code is not None:
                if code == PREPARATION_FAILED:
                    return 1
                failures = 0 if self.ready and time.monotonic() - self.born > LONG_LIVED else failures + 1
                if not self.ready and failures >= 3:
                    say(f"the supervisor has ended with code {code} for the third time before the product was ready: giving up")
                    return 1
                say(f"the supervisor has ended with code {code}: starting it again")
                if failures > 1:  # each start makes a whole tree of workers: what dies at once must not do so twice a second
                    self._sleep(min(0.1 * 2 ** min(failures, 10), LONGEST_PAUSE))  # 2**1024 is no float
                if not self.stopping:
                    self._start_child()
                continue
            self._sleep(0.5)
        return 0

    def _sleep(self, seconds: float) -> None:
        handles = [self.wake_read]
        try:
            for pid in (self.child.pid if self.child and self.child.poll() is None else None, self.server.pid if self.server else None):
                if pid is not None:
                    with contextlib.suppress(OSError):  # gone already, or a kernel without pidfd: the next look finds it
                        handles.append(os.pidfd_open(pid))
            select.select(handles, [], [], seconds)
            with contextlib.suppress(BlockingIOError):
                os.read(self.wake_read, 4096)
        finally:
            for handle in handles[1:]:
                os.close(handle)

    def _stop(self, begun: float) -> None:
        """Supervisor first (it winds web and workers down), PostgreSQL last; what is still there after that is killed."""
        if self.ready:
            say("stopping")
        child = self.child
        if child and child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(SECONDS_TO_STOP - 0.5)
            if child.poll() is None:
                say("the supervisor does not end: killing it and what is below it")
                child.kill()
                child.wait()
        self._kill_what_is_left()
        if self.own_database:
            with contextlib.suppress(postgres.PostgresError):
                postgres.stop(self.where.data, patience=max(0.2, begun + SECONDS_TO_STOP - time.monotonic()))
            self._show_journal()

    def _kill_what_is_left(self) -> None:
        """Whatever has our id in its environment: a supervisor that was killed could not wind its workers down."""
        mark = f"FLASHDUTY_RUN_ID={self.id}".encode()
        for _ in range(3):
            found = []
            for name in os.listdir("/proc"):
                if name.isdigit() and int(name) != os.getpid():
                    with contextlib.suppress(OSError):
                        if mark in pathlib.Path("/proc", name, "environ").read_bytes().split(b"\0"):
                            found.append(int(name))
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return
            time.sleep(0.05)

    def _journal_size(self) -> int:
        try:
            return postgres.log_file(self.where.data).stat().st_size
        except OSError:
            return 0

    def _show_journal(self) -> None:
        """New lines of PostgreSQL's own log, without its small talk. Ends of sessions that we ended ourselves are not worth a line."""
        if not self.own_database:
            return
        size = self._journal_size()
        if size < self.journal_read:
            self.journal_read = 0  # a new file
        if size == self.journal_read:
            return
        with contextlib.suppress(OSError), open(postgres.log_file(self.where.data), "rb") as f:
            f.seek(self.journal_read)
            new = f.read(64_000)
            new = new[: new.rfind(b"\n") + 1]
            self.journal_read += len(new)
            for line in new.decode(errors="replace").splitlines():
                if re.search(r"\b(WARNING|ERROR|FATAL|PANIC):", line) and not re.search(_GOODBYES, line):
                    say(line.split("] ", 1)[-1], "postgres")

    def _announce(self) -> None:
        """Says what to open, once /readyz answers 200."""
        begun = told = time.monotonic()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self.stopping:
            with contextlib.suppress(OSError, ValueError):
                with opener.open(self.where.probe_url, timeout=2) as answer:
                    if answer.status == 200:
                        demo = json.loads((self.where.data / "demo.json").read_text())
                        self.ready = True
                        print(welcome(demo), flush=True)
                        return
            if time.monotonic() - told > 2:
                told = time.monotonic()
                say(f"starting, {told - begun:.0f} s")
            time.sleep(0.05)


def welcome(demo: dict[str, str]) -> str:
    """What a newcomer does next: where to look, how to get in, one line to paste. What the demo no longer has is left out."""
    event = '{"event_status": "Critical", "title_rule": "Checkout is down", "alert_key": "checkout", "labels": {"service": "checkout"}}'
    lines = ["", "  Flashduty is ready.", f"    Console        {demo['base_url']}/admin/"]
    if "admin_email" in demo:
        lines.append(f"                   {demo['admin_email']}   {demo['admin_password']}")
    lines.append(f"    Sandbox phone  {demo['base_url']}/sandbox/")
    if "push_url" in demo:
        lines += ["    Send an alert and watch it arrive there:", ""]
        lines += [f"curl -X POST -H 'Content-Type: application/json' '{demo['push_url']}' -d '{event}'", ""]
    return "\n".join([*lines, "    Ctrl-C ends everything.", ""])


def listening(host: str, port: int) -> tuple[socket.AddressFamily, tuple]:
    """Where to listen when `host` is asked for: the web server takes numbers only. Of a name (localhost) the IPv4 address, if it has one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise Wrong(f"HOST={host} is not an address of this machine.") from None
    family, _, _, _, address = min(found, key=lambda item: item[0] != socket.AF_INET)
    return family, address


def check_port(where: Where) -> None:
    """Raises Wrong unless the web server will be able to listen there."""
    family, address = listening(where.host, where.port)
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(address)
            s.listen(1)
        except PermissionError:
            raise Wrong(f"Port {where.port} is only for root: choose one above 1023 with PORT=.") from None
        except OSError as e:
            if e.errno == 98:  # EADDRINUSE
                raise Wrong(f"Port {where.port} on {where.host} is taken by another program: choose another one with PORT=.") from None
            raise Wrong(f"HOST={where.host} is not an address of this machine ({e.strerror}).") from None


def check_variables() -> None:
    """Raises Wrong when DATABASE_URL, DEMO_WEBHOOK or DEMO_SMTP cannot be what they should be; quotes none of them (passwords)."""
    try:
        parts = urllib.parse.urlsplit(os.environ.get("DATABASE_URL", "postgresql:///x") or "postgresql:///x")
        if parts.scheme not in ("postgres", "postgresql") or not parts.path.strip("/") or parts.port == 0:
            raise ValueError
    except ValueError:
        raise Wrong("DATABASE_URL must look like postgresql://user:password@host:5432/name.") from None
    hook, mail = os.environ.get("DEMO_WEBHOOK", ""), os.environ.get("DEMO_SMTP", "")
    try:
        parts = urllib.parse.urlsplit(hook)
        if hook and not (parts.scheme in ("http", "https") and parts.hostname and parts.port != 0):
            raise ValueError
    except ValueError:
        raise Wrong("DEMO_WEBHOOK must look like http://127.0.0.1:9000/page.") from None
    if mail and not (re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):\d{1,5}", mail) and 0 < int(mail.rpartition(":")[2]) < 65536):
        raise Wrong("DEMO_SMTP must look like 127.0.0.1:1025.")


def product_settings(data: pathlib.Path) -> dict[str, str]:
    """The keys of this data folder, made once and kept in secrets.json (mode 0600): {environment variable: value}."""
    path = data / "secrets.json"
    try:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or not all(
            isinstance(found.get(name), str) for name in ("secret_key", "encryption_key", "link_key")
        ):
            raise ValueError
    except FileNotFoundError:
        found = {
            "secret_key": secrets.token_urlsafe(48),
            "encryption_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),  # as Fernet wants it
            "link_key": secrets.token_urlsafe(32),
        }
        write_private(path, found)
    except (OSError, ValueError):
        raise Wrong(
            f"{path} cannot be read; without its keys the database of this folder is of no use: bring it back, or remove the folder {data}."
        ) from None
    return {
        "FLASHDUTY_SECRET_KEY": found["secret_key"],
        "FLASHDUTY_ENCRYPTION_KEYS": found["encryption_key"],
        "FLASHDUTY_LINK_KEYS": found["link_key"],
    }


def demo_environment(command: list[str]) -> dict[str, str]:
    """What `manage.py` needs to ask the demo beside it, {} where it is not meant: the command is for an operator of something else, a variable
    of the product is set, or there was no `make run` here. Wrong when there was one and its database does not answer.

    A demo on a server of yours: FLASHDUTY_MODE=demo DATABASE_URL=... manage.py.
    """
    told = {name for name in OURS if os.environ.get(name) or os.environ.get(f"{name}_FILE")} - {"FLASHDUTY_DATA"}
    if os.environ.get("FLASHDUTY_MODE") == "demo":
        told -= {"FLASHDUTY_MODE", "DATABASE_URL"}
    if told or not command or command[0] not in FOR_A_DEMO:
        return {}
    tree = pathlib.Path(__file__).resolve().parent.parent
    data = pathlib.Path(os.path.abspath(os.environ.get("DATA") or os.environ.get("FLASHDUTY_DATA") or tree / ".data"))
    try:
        base_url = json.loads((data / "demo.json").read_text())["base_url"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    url = os.environ.get("DATABASE_URL")
    if not url and (server := postgres.status(data)) is not None:
        url = server.url
    if not url:
        raise Wrong(
            f"The demo of {data} does not run: start it with `make run`, or set the variables of your installation (docs/operations.md)."
        )
    return product_settings(data) | {"BASE_URL": base_url, "DATABASE_URL": url, "FLASHDUTY_MODE": "demo", "FLASHDUTY_DATA": str(data)}


def write_private(path: pathlib.Path, content: dict) -> None:
    """JSON that only its owner can read, by rename: a reader sees the old file or the new one. Wrong when that cannot be."""
    fresh = path.with_name(path.name + ".new")
    try:
        fresh.unlink(missing_ok=True)
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as f:
            json.dump(content, f, indent=2, ensure_ascii=False)
            f.write("\n")
        fresh.replace(path)
    except OSError as e:
        raise Wrong(f"{path} cannot be written: {e.strerror}.") from None


def remove(data: pathlib.Path) -> None:
    """Deletes the database, the keys and the notes of a data folder that nobody uses; other people's files in it stay."""
    run = Run(Where("127.0.0.1", 0, data))
    with run._locked_data():
        postgres.remove(data)
        for name in ("secrets.json", "demo.json", "demo-login.json", "postgres.log.old"):
            (data / name).unlink(missing_ok=True)
        shutil.rmtree(data / "run", ignore_errors=True)
    for name in ("run.lock", "postgres.lock"):
        (data / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        data.rmdir()


# ---------------------------------------------------------------- the lower process: Django is imported here and not above


def child(where: Where, *, again: bool) -> NoReturn:
    """Migrations and demo data (not when started `again`), then this process becomes the supervisor, which needs none of the applications
    (32 MB less than to go on with them loaded)."""
    if not again:
        import django
        from django.core.exceptions import ImproperlyConfigured
        from django.db import connection

        try:
            django.setup()
            _check_database()
            _migrate()
            _seed(where)
        except ImproperlyConfigured as e:
            raise Wrong(str(e)) from None
        connection.close()
    address = listening(where.host, where.port)[1][0]
    os.execv(sys.executable, [sys.executable, "-m", "flashduty.supervisor", "--host", address, "--port", str(where.port)])


def _check_database() -> None:
    from django.db import connection
    from django.db.utils import OperationalError

    password = connection.settings_dict["PASSWORD"]
    try:
        connection.ensure_connection()
    except (OperationalError, UnicodeError) as e:
        lines = [line.strip(" -") for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        told = next((line for line in reversed(lines) if "failed" in line or "error" in line.lower()), lines[-1])
        if password:
            told = told.replace(password, "***")
        raise Wrong(f"DATABASE_URL cannot be used: {told.removesuffix('.')}.") from None
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_encoding'), has_schema_privilege('public', 'CREATE'), current_user"
        )
        major, encoding, may_create, user = cursor.fetchone()
    if major < postgres.OLDEST_MAJOR:
        raise Wrong(f"DATABASE_URL leads to PostgreSQL {major}, and Flashduty needs {postgres.OLDEST_MAJOR} or later.")
    if encoding != "UTF8":
        raise Wrong(f"DATABASE_URL leads to a database in {encoding}, and Flashduty needs UTF8.")
    if not may_create:
        raise Wrong(f"DATABASE_URL leads to a database in which {user} may not create tables.")


def _migrate() -> None:
    """Nothing when every migration on disk is applied, which costs a few milliseconds instead of Django's half second."""
    from django.apps import apps
    from django.core.management import call_command
    from django.db import connection

    on_disk = {
        (app.label, path.stem)
        for app in apps.get_app_configs()
        for path in pathlib.Path(app.path, "migrations").glob("*.py")
        if path.stem != "__init__"
    }
    applied: set = set()
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('django_migrations') IS NOT NULL")
        if cursor.fetchone()[0]:
            cursor.execute("SELECT app, name FROM django_migrations")
            applied = set(cursor.fetchall())
    if on_disk <= applied:
        return
    say(f"migrating the database ({len(on_disk - applied)} migrations)")
    call_command("migrate", interactive=False, verbosity=1 if applied else 0)


def _seed(where: Where) -> None:
    from flashduty import demo

    kept = where.data / "demo-login.json"
    try:
        login = json.loads(kept.read_text())
    except (OSError, ValueError):
        login = {}  # the first start, or a file that was removed or broken: seed() makes a new login
    done = demo.seed(
        login if isinstance(login, dict) else {}, where.base_url, os.environ.get("DEMO_WEBHOOK", ""), os.environ.get("DEMO_SMTP", "")
    )
    if done.login != login:
        write_private(kept, done.login)
    write_private(where.data / "demo.json", done.shown)
    for note in done.notes:
        say(note)


def main(arguments: list[str]) -> int:
    """Exit code 1 and one sentence when something is wrong with what was asked."""
    role = arguments[0] if arguments and arguments[0].startswith("--") else ""
    try:
        if role == "--remove":
            remove(pathlib.Path(os.path.abspath(arguments[1])))
            return 0
        host, port, data = arguments[1:4] if role else arguments[:3]
        if not port.isdigit() or not 0 < int(port) < 65536:
            raise Wrong(f"PORT={port} is not a port number: it must be from 1 to 65535.")
        where = Where(host.removeprefix("[").removesuffix("]"), int(port), pathlib.Path(os.path.abspath(data)))
        if role == "--child":
            child(where, again="again" in arguments[4:])
        return Run(where).main()
    except (Wrong, postgres.PostgresError) as e:
        print(e, file=sys.stderr, flush=True)
        return PREPARATION_FAILED if role == "--child" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
