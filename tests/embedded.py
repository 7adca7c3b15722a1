"""Gives a test run its database: DATABASE_URL if it is set, else an embedded server with fsync off, shared by all runs in this tree.

Loaded by `-p tests.embedded` (pyproject.toml) because that is the only place before pytest-django reads the settings; a conftest.py
comes after. Processes of pytest-xdist inherit the address from the one that started them."""

import fcntl
import os
import pathlib

import pytest

from flashduty import postgres

DATA = pathlib.Path(__file__).resolve().parent.parent / ".data" / "test-postgres"

os.environ.setdefault("FLASHDUTY_MODE", "test")


class _Shared:
    """Our share of the server: whoever lets go last stops it and deletes its files, so that each run begins with a sound database."""

    def __init__(self) -> None:
        DATA.mkdir(parents=True, exist_ok=True)
        self.handle = os.open(DATA.with_suffix(".users"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.handle, fcntl.LOCK_SH)
        self.url = postgres.start(DATA, print, fsync=False).url

    def release(self) -> None:
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            postgres.remove(DATA)
        finally:
            os.close(self.handle)


_shared: _Shared | None = None
if not os.environ.get("DATABASE_URL"):
    try:
        _shared = _Shared()
    except (OSError, postgres.PostgresError) as error:
        raise pytest.UsageError(f"No database for the tests: {error}") from error
    os.environ["DATABASE_URL"] = _shared.url


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest-django dropped its databases."""
    global _shared
    if _shared is not None:
        _shared.release()
        _shared = None


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """With FLASHDUTY_NO_SKIP=1 (.ci/run, make test-outside) a skipped test fails the run: there everything it needs was installed."""
    if os.environ.get("FLASHDUTY_NO_SKIP") != "1" or exitstatus != pytest.ExitCode.OK:
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("A test was skipped, and FLASHDUTY_NO_SKIP=1 does not allow that.", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
