"""What `make run` says where it cannot start: one sentence, and an exit code that is not 0."""

import os
import pathlib
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from flashduty import run

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
    """Once the product was ready, too: each start makes a whole tree of workers."""
    pauses = []

    class Dying(run.Run):
        def _start_child(self):
            self.born = time.monotonic()
            self.child = subprocess.Popen(["false"])
            self.child.wait()

        def _sleep(self, seconds):
            pauses.append(seconds)
            if len(pauses) == 8:
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
