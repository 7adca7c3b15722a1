"""What `make run` says where it cannot start: one sentence, and an exit code that is not 0."""

import fcntl
import os
import pathlib
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import psycopg
import pytest

from flashduty import postgres, run

TREE = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_that_cannot_make_a_virtualenv_says_what_to_install(tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise ImportError('not on this machine')")
    done = subprocess.run(
        [sys.executable, "flashduty/bootstrap.py", str(tmp_path / "made")], cwd=TREE, capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1 and not (tmp_path / "made").exists()
    said = done.stderr.strip().splitlines()
    assert len(said) == 1 and f"comes without {module}" in said[0] and "apt-get install python3." in said[0]


def refused(data, **variables):
    """The one sentence with which `make run` ends there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "flashduty.run", "127.0.0.1", variables.pop("PORT", port), str(data)]
    done = subprocess.run(
        command, cwd=TREE, capture_output=True, text=True, check=False, timeout=300, env={"PATH": os.environ["PATH"], "HOME": str(TREE)} | variables
    )  # fmt: skip
    progress = "".join(line for line in done.stdout.splitlines(True) if "| starting, " not in line)  # on a slow machine
    assert done.returncode == 1 and not progress, done
    (said,) = done.stderr.splitlines()
    assert said.endswith(".") and "hunter2" not in said
    return said


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"DATABASE_URL": "mysql://me:hunter2@db/mine"}, "DATABASE_URL must look like"),
        ({"DATABASE_URL": "postgresql://me:hunter2@db:port/mine"}, "DATABASE_URL must look like"),
        ({"DEMO_WEBHOOK": "ftp://me:hunter2@files/"}, "DEMO_WEBHOOK must look like"),
        ({"DEMO_WEBHOOK": "127.0.0.1:9000"}, "DEMO_WEBHOOK must look like"),
        ({"DEMO_SMTP": "::1:25"}, "DEMO_SMTP must look like"),
        ({"DEMO_SMTP": "127.0.0.1:99999"}, "DEMO_SMTP must look like"),
        ({"PORT": "80x"}, "PORT=80x is not a port number"),
    ],
)
def test_a_variable_that_cannot_be_is_refused_in_one_sentence(tmp_path, variables, said):
    assert refused(tmp_path / "data", **variables).startswith(said)
    assert not (tmp_path / "data").exists()


def test_a_data_folder_that_cannot_be_used_is_refused_in_one_sentence(tmp_path):
    nowhere = {"DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/mine"}  # of these none gets as far as asking it
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file" / "data", **nowhere) == f"The data folder {tmp_path}/file/data cannot be written: Not a directory."
    with open(tmp_path / "run.lock", "w") as held:
        held.write("4711\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert refused(tmp_path, **nowhere).startswith(f"Another `make run` (process 4711) uses {tmp_path}: stop it or")
    (tmp_path / "secrets.json").write_text('{"secret_key": "hunter2"')
    assert refused(tmp_path, **nowhere).startswith(f"{tmp_path}/secrets.json cannot be read; without its keys the database")
    (tmp_path / "secrets.json").unlink()
    (tmp_path / "secrets.json.new").mkdir()
    assert refused(tmp_path, **nowhere) == f"{tmp_path}/secrets.json cannot be written: Is a directory."


@pytest.mark.slow
def test_a_database_that_cannot_be_used_is_refused_in_one_sentence(tmp_path):
    data = tmp_path / "data"
    said = refused(data, DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/mine")
    assert said.startswith("DATABASE_URL cannot be used: ") and "efused" in said
    server = postgres.start(tmp_path / "server", lambda line: None, fsync=False)
    try:
        with psycopg.connect(server.url, autocommit=True) as boss:
            boss.execute("CREATE ROLE guest LOGIN PASSWORD 'hunter2'")
            boss.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
            hba = pathlib.Path(boss.execute("SHOW hba_file").fetchone()[0])
            hba.write_text("local all guest scram-sha-256\n" + hba.read_text())
            boss.execute("SELECT pg_reload_conf()")
        as_guest = server.url.replace(urlsplit(server.url).netloc, "guest:%s@")
        assert "assword authentication failed" in refused(data, DATABASE_URL=as_guest % "hunter2-no")
        assert "guest may not create tables" in refused(data, DATABASE_URL=as_guest % "hunter2")
        assert "LATIN1, and Flashduty needs UTF8" in refused(data, DATABASE_URL=server.url.replace(f"/{postgres.DATABASE}?", "/latin?"))
    finally:
        postgres.remove(tmp_path / "server")


@pytest.mark.parametrize(
    ("host", "listens", "opens"),
    [("localhost", "127.0.0.1", "http://localhost:8041"), ("::1", "::1", "http://[::1]:8041"), ("127.0.0.1", "127.0.0.1", "http://127.0.0.1:8041")],
)  # fmt: skip
def test_a_host_is_a_number_to_the_web_server_and_what_was_typed_to_people(tmp_path, host, listens, opens):
    assert run.listening(host, 8041)[1][0] == listens
    assert run.Where(host, 8041, tmp_path).base_url == opens


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_host_that_means_all_is_opened_at_an_address_that_leads_here(tmp_path, host):
    where = run.Where(host, 8041, tmp_path)
    assert host not in where.base_url and run.listening(host, 8041)[1][0] == host
    assert where.probe_url in ("http://127.0.0.1:8041/readyz", "http://[::1]:8041/readyz")


@pytest.mark.parametrize("host", ["nowhere.invalid", "", "192.0.2.250"])
def test_a_host_that_is_not_ours_is_refused_in_one_sentence(tmp_path, host):
    with pytest.raises(run.Wrong, match=f"^HOST={host} is not an address of this machine"):
        run.check_port(run.Where(host, 8041, tmp_path))


def test_a_port_that_is_taken_is_refused_by_name_too(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(run.Wrong, match=f"^Port {port} on localhost is taken"):
            run.check_port(run.Where("localhost", port, tmp_path))


def test_a_supervisor_that_dies_again_and_again_is_started_more_and_more_rarely(tmp_path, monkeypatch):
    """Once the product was ready, too: each start makes a whole tree of workers. Its earlier workers page all the while, so for ever."""
    pauses = []
    ended = subprocess.Popen(["false"])
    ended.wait()

    class Dying(run.Run):
        def _start_child(self):
            self.born, self.child = time.monotonic(), ended

        def _sleep(self, seconds):
            pauses.append(seconds)
            if len(pauses) == 1100:  # three hours
                self.stopping = True

    one = Dying(run.Where("127.0.0.1", 0, tmp_path))
    one.own_database, one.ready = False, True
    one._start_child()
    one.born -= run.LONG_LIVED  # it worked for a while
    assert one._watch() == 0
    assert pauses[:3] == [0.4, 0.8, 1.6] and pauses[-1] == run.LONGEST_PAUSE


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A data folder that `make run` left; and a shell in which nothing is configured."""
    for name in (*run.OURS, "DATA"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
    run.product_settings(tmp_path)
    run.write_private(tmp_path / "demo.json", {"base_url": "http://127.0.0.1:8041"})
    monkeypatch.setenv("DATA", str(tmp_path))
    return tmp_path


def test_a_command_beside_make_run_finds_its_demo(demo, monkeypatch):
    with pytest.raises(run.Wrong, match="does not run: start it with `make run`"):
        run.demo_environment(["explain", "3f2a1c"])
    monkeypatch.setattr(run.postgres, "status", lambda data: SimpleNamespace(url=f"postgresql:///of-{data.name}"))
    found = run.demo_environment(["explain", "3f2a1c"])
    assert found == run.product_settings(demo) | {
        "BASE_URL": "http://127.0.0.1:8041", "DATABASE_URL": f"postgresql:///of-{demo.name}", "FLASHDUTY_MODE": "demo", "FLASHDUTY_DATA": str(demo),
    }  # fmt: skip
    monkeypatch.setenv("FLASHDUTY_MODE", "demo")
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@db/mine")
    assert run.demo_environment(["explain", "3f2a1c"]) == found | {"DATABASE_URL": "postgresql://me@db/mine"}


@pytest.mark.parametrize("name", ["BASE_URL", "DATABASE_URL", "FLASHDUTY_SECRET_KEY", "FLASHDUTY_LINK_KEYS_FILE", "FLASHDUTY_MODE"])
def test_a_shell_in_which_something_is_configured_never_means_the_demo(demo, monkeypatch, name):
    monkeypatch.setenv(name, "production")
    assert run.demo_environment(["explain", "3f2a1c"]) == {}


def test_what_serves_or_migrates_never_means_the_demo_and_neither_does_a_tree_without_one(demo, monkeypatch):
    for command in ([], ["supervise"], ["runserver"], ["test"], ["migrate"], ["rotate_secrets"]):
        assert run.demo_environment(command) == {}
    (demo / "demo.json").unlink()
    assert run.demo_environment(["explain", "3f2a1c"]) == {}
