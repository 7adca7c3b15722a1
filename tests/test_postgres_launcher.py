"""The embedded PostgreSQL launcher against real servers in folders of its own: start, crash, take-over, refusal. No Django here."""

import concurrent.futures
import os
import pathlib
import re
import signal
import stat
import subprocess
import sys
import time

import psycopg
import pytest

from flashduty import postgres

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def data(tmp_path):
    """A data folder whose server is gone afterwards, root's databases below /var/lib included."""
    folder = tmp_path / "data"
    yield folder
    try:
        postgres.remove(folder)
    except postgres.PostgresError:
        # what the test broke on purpose; nothing of ours may be left running
        assert not left_over(folder)


def left_over(folder):
    out = subprocess.run(["ps", "-eo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if str(folder) in line and "Z" not in line.split()[1] and "ps -eo" not in line]


def start(folder, log=lambda line: None):
    return postgres.start(folder, log, fsync=False)


def ask(server, sql):
    with psycopg.connect(server.url, connect_timeout=60, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def gone(pid):
    return postgres._state(pid) is None


def test_a_new_folder_becomes_a_server_that_stores_any_text_and_listens_on_a_socket_only(data):
    lines = []
    server = start(data, lines.append)
    assert any("making" in line for line in lines)
    assert ask(server, "SELECT current_database()") == "flashduty"
    assert ask(server, "SHOW server_encoding") == "UTF8"
    assert ask(server, "SELECT datcollate FROM pg_database WHERE datname = 'flashduty'") == "C"
    assert ask(server, "SHOW listen_addresses") == ""
    folder = pathlib.Path(ask(server, "SHOW unix_socket_directories").strip('"'))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.getsid(server.pid) == server.pid  # Ctrl-C in our terminal does not reach it


@pytest.mark.slow
def test_start_again_finds_the_running_server_and_stop_ends_it_quickly(data):
    server = start(data)
    assert start(data) == server
    assert postgres.status(data) == server
    session = psycopg.connect(server.url)  # an open transaction does not hold it up
    session.execute("SELECT 1")
    begun = time.monotonic()
    assert postgres.stop(data, patience=300) is True
    assert time.monotonic() - begun < 100  # it would wait for the session as long as it has patience
    assert gone(server.pid) and not server.alive()
    assert postgres.status(data) is None
    assert postgres.stop(data) is False
    session.close()


@pytest.mark.slow
def test_what_was_committed_is_there_after_a_restart(data):
    server = start(data)
    ask(server, "CREATE TABLE kept AS SELECT 42 AS n")
    server.stop()
    again = start(data)
    assert again.url == server.url  # workers that lived on find it at the same address
    assert ask(again, "SELECT n FROM kept") == 42


@pytest.mark.slow
def test_a_killed_postmaster_is_recognised_even_as_a_zombie_with_a_busy_backend_left(data):
    server = start(data)
    ask(server, "CREATE TABLE kept AS SELECT 42 AS n")
    busy = psycopg.connect(server.url)
    backend = busy.execute("SELECT pg_backend_pid()").fetchone()[0]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # a query that never looks whether the postmaster lives
        query = pool.submit(busy.execute, "DO $$ BEGIN FOR i IN 1..2000000000 LOOP PERFORM 1; END LOOP; END $$")
        deadline = time.monotonic() + 60
        while ask(server, f"SELECT state FROM pg_stat_activity WHERE pid = {backend}") != "active":
            assert time.monotonic() < deadline
        os.kill(server.pid, signal.SIGKILL)
        again = start(data)
        assert again.pid != server.pid
        assert gone(backend)
        assert isinstance(query.exception(60), psycopg.OperationalError)
    busy.close()
    assert ask(again, "SELECT n FROM kept") == 42


@pytest.mark.slow
def test_a_lock_file_whose_number_now_belongs_to_another_process_is_removed(data):
    server = start(data)
    cluster = server.cluster
    before = (cluster / "postmaster.pid").read_text()
    server.stop()
    (cluster / "postmaster.pid").write_text(before.replace(str(server.pid), str(os.getpid()), 1))
    (cluster / f".s.PGSQL.{postgres.PORT}.lock").write_text(before.replace(str(server.pid), str(os.getpid()), 1))
    assert postgres.status(data) is None
    again = start(data)
    assert again.pid != os.getpid()
    assert ask(again, "SELECT 1") == 1


@pytest.mark.slow
def test_a_path_too_long_for_a_socket_gets_a_private_folder_elsewhere(tmp_path):
    folder = tmp_path / ("long-" * 20) / "data with 'quotes' and spaces"
    try:
        server = start(folder)
        if os.geteuid() != 0:  # root's databases lie below /var/lib, where the path is short
            assert len(os.fsencode(server.cluster)) > postgres.LONGEST_SOCKET_FOLDER
            assert "host=/tmp/flashduty-" in server.url
        assert ask(server, "SELECT 1") == 1
        sockets = pathlib.Path(re.search("host=([^&]*)", server.url)[1])
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
        server.stop()
        assert sockets == server.cluster or not sockets.exists()
    finally:
        postgres.remove(folder)


def test_a_socket_folder_in_tmp_that_others_can_enter_is_refused(tmp_path, monkeypatch):
    cluster = tmp_path / ("x" * 100)
    name = postgres._socket_folder(cluster, None)
    try:
        assert stat.S_IMODE(name.stat().st_mode) == 0o700
        name.chmod(0o777)
        with pytest.raises(postgres.PostgresError, match=str(name)):
            postgres._socket_folder(cluster, None)
    finally:
        name.rmdir()


@pytest.mark.slow
def test_a_folder_of_another_major_is_refused_with_the_commands_that_help(data):
    server = start(data)
    server.stop()
    version = server.cluster / "PG_VERSION"
    real = version.read_text()
    version.write_text("14\n")
    with pytest.raises(postgres.PostgresError) as refused:
        start(data)
    text = str(refused.value)
    assert "was made by PostgreSQL 14" in text and "nothing was changed" in text
    assert "pg_dump" in text and "psql" in text and str(server.cluster) in text
    assert postgres.status(data) is None
    version.write_text(real)
    assert ask(start(data), "SELECT 1") == 1


OTHER = [p for p in pathlib.Path("/usr/lib/postgresql").glob("*/bin/pg_dump") if (p.parent / "postgres").exists()]


@pytest.mark.slow
@pytest.mark.skipif(not OTHER, reason="no second PostgreSQL in /usr/lib/postgresql on this machine")
def test_the_commands_for_another_major_carry_the_data_over(data, monkeypatch):
    older = OTHER[0].parent
    if older.parent.name == str(postgres._programs(None if os.geteuid() else postgres._unprivileged_account()).major):
        pytest.skip("the second PostgreSQL is of our own major")
    with monkeypatch.context() as only_the_older:
        only_the_older.setattr(postgres, "_candidates", lambda: iter([older]))
        server = start(data)
        ask(server, "CREATE TABLE kept AS SELECT '你好'::text AS said")
        server.stop()
    with pytest.raises(postgres.PostgresError) as refused:
        start(data)
    commands = [line for line in str(refused.value).splitlines() if line.startswith("  ")]
    old_cluster = server.cluster
    done = subprocess.run(["sh", "-eux", "-c", "\n".join(commands)], capture_output=True, text=True)
    try:
        assert done.returncode == 0, done.stderr
        assert ask(start(data), "SELECT said FROM kept") == "你好"
    finally:
        if os.geteuid() == 0:
            subprocess.run(["rm", "-r", str(old_cluster)], check=True)


@pytest.mark.slow
def test_two_callers_at_once_get_one_server(data):
    command = [sys.executable, "-m", "flashduty.postgres", "start", "--no-fsync", str(data)]
    callers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    urls = set()
    for caller in callers:
        out, err = caller.communicate(timeout=300)
        assert caller.returncode == 0, err
        urls.add(out.strip())
    assert urls == {postgres.status(data).url}


def test_the_command_line_says_what_is_wrong_in_one_sentence(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")

    def command(what, folder):
        return subprocess.run([sys.executable, "-m", "flashduty.postgres", what, str(folder)], cwd=ROOT, capture_output=True, text=True)

    done = command("start", blocked / "data")
    assert done.returncode == 1
    assert done.stderr == f"The data folder {blocked}/data cannot be written: Not a directory.\n"
    done = command("status", tmp_path / "nothing")
    assert done.returncode == 3 and done.stderr == "not running\n"
    assert not (tmp_path / "nothing").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_one_sentence(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(postgres.PostgresError, match=r"data cannot be written: Permission denied\.$"):
            start(tmp_path / "data")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's databases lie elsewhere")
def test_a_deleted_data_folder_never_revives_roots_old_database(data):
    server = start(data)
    ask(server, "CREATE TABLE old AS SELECT 1 AS n")
    server.stop()
    (data / "postgres").unlink()
    again = start(data)
    assert again.cluster != server.cluster
    assert ask(again, "SELECT to_regclass('old')") is None
    subprocess.run(["rm", "-r", str(server.cluster)], check=True)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root's databases lie elsewhere")
def test_root_keeps_the_modes_of_folders_that_others_cannot_enter(data, tmp_path):
    tmp_path.chmod(0o700)
    before = {p: p.stat().st_mode for p in (tmp_path, *tmp_path.parents, ROOT)}
    server = start(data)
    assert ask(server, "SELECT 1") == 1
    assert {p: p.stat().st_mode for p in before} == before
    assert pathlib.Path(f"/proc/{server.pid}").stat().st_uid != 0
