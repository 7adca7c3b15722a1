"""`/healthz` and `/readyz`: what makes this node unfit to take alerts, and what is only said."""

import os
import re
import time
from pathlib import Path

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client

from channels_app import resident
from flashduty import health
from mapping.models import Installation
from tests.fakes.server import until

pytestmark = pytest.mark.django_db


@pytest.fixture
def node(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node whose supervisor lives and whose slots all beat."""
    settings.RUN_DIR = tmp_path
    settings.RESIDENTS = {"intake": ("", ()), "drain-0": ("", ())}
    monkeypatch.setattr(health, "_migrated", False)
    monkeypatch.setattr(health, "FRESH", 25.0)  # the beats below are those of the beginning of the test
    monkeypatch.setattr(health, "ANSWER_MS", 30_000)
    for name in ("supervisor.lock", "intake.slot", "drain-0.slot"):
        assert resident.Lock(name).take()
    (tmp_path / "supervisor.json").write_text('{"slots": ["intake", "drain-0"], "failed_starts": 0, "reason": ""}')
    return tmp_path


def ready(client: Client) -> tuple[int, dict]:
    answer = client.get("/readyz")
    return answer.status_code, answer.json()


def test_healthz_needs_nothing(client: Client) -> None:
    assert client.get("/healthz").content == b"ok\n"


def test_all_is_well(client: Client, node: Path) -> None:
    status, told = ready(client)
    assert (status, told["ready"], told["reasons"], told["alarms"]) == (200, True, [], [])
    assert set(told["workers"]) == {"intake", "drain-0"}


def test_a_silent_resident_is_a_reason(client: Client, node: Path) -> None:
    old = time.time() - 30
    os.utime(node / "drain-0.slot", (old, old))
    status, told = ready(client)
    assert status == 503
    (reason,) = told["reasons"]
    silent = re.fullmatch(r"drain-0: silent for (\d+) s", reason)
    assert silent and 30 <= int(silent[1]) <= time.time() - old + 1


def test_an_empty_slot_is_a_reason(client: Client, node: Path) -> None:
    (node / "intake.slot").unlink()
    assert ready(client)[1]["reasons"] == ["intake: nobody works"]


def test_a_migration_that_is_missing_is_a_reason_until_it_is_applied(client: Client, node: Path) -> None:
    row = MigrationRecorder.Migration.objects.get(app="mapping", name="0001_initial")
    row.delete()
    status, told = ready(client)
    assert status == 503
    assert "mapping.0001_initial" in told["reasons"][0]
    MigrationRecorder(connection).record_applied("mapping", "0001_initial")
    assert ready(client)[0] == 200


def test_alarms_and_failing_starts_are_said_and_keep_the_node_in_service(client: Client, node: Path) -> None:
    Installation.get()
    Installation.objects.update(alarm="Incident #3f2a1c could not be told to anybody.")
    (node / "supervisor.json").write_text('{"slots": ["intake", "drain-0"], "failed_starts": 3, "reason": "process 7 has ended"}')
    status, told = ready(client)
    assert status == 200
    assert told["alarms"] == ["Incident #3f2a1c could not be told to anybody.", "workers: 3 starts failed (process 7 has ended)"]


def test_a_node_of_web_servers_only_asks_whether_anybody_works_anywhere(client: Client, node: Path, settings) -> None:
    settings.RUN_DIR = node / "elsewhere"

    def named() -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_stat_clear_snapshot()")  # a transaction is shown what it saw first
            cursor.execute(
                "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'flashduty %' AND datname = current_database()"
            )
            found = [name for (name,) in cursor.fetchall()]
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            return found

    assert until(lambda: not named())  # the server may still be ending the residents of the test before
    line = resident._Line("drain-3", "flashduty_drain", None)
    line.open()
    assert ready(client)[1]["reasons"] == ["intake: nobody works"]
    line.close()
