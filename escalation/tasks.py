"""The django-q2 tasks of this house: the residents intake and engine, each one stint long, and the daily prune."""

import logging
import time
from datetime import datetime

from django_q.tasks import async_task

from channels_app import resident
from escalation import engine as engine_
from escalation import intake as intake_
from escalation import retention
from mapping.clock import db_now

log = logging.getLogger(__name__)

PRUNE_SECONDS = 15  # one coarse job works at a time: the others get their turn, and it ends well before django-q2 kills it
INTAKE_BATCH = 500
INTAKE_TIMED = 50  # past so many events a batch may have ended because its time was up
# Where alerts come one upon the other a pass for each four of them was two thirds of what intake costs. The first one never waits.
GATHER_SECONDS = 0.01
ENGINE_BUDGET_MS = 50  # of each kind of row; about a hundred rows, and a pass that takes less than that is no longer for it


def intake() -> None:
    """Events become alerts and incidents. Its work only ever arrives, so between NOTIFYs there is nothing to wait for."""
    resident.serve("intake", _intake, "flashduty_intake")


def engine() -> None:
    """Rules are matched and timers fire, at the instant they are due."""
    resident.serve("engine", _engine, "flashduty_engine")


def _intake(now: datetime) -> float | None:
    handled = intake_.run_once(now, limit=INTAKE_BATCH)
    if handled >= INTAKE_TIMED:
        return 0
    if handled:
        time.sleep(GATHER_SECONDS)
    return None


def _engine(now: datetime) -> float | None:
    _done, ahead = engine_.one_pass(now, budget_ms=ENGINE_BUDGET_MS)
    return None if ahead is None else max(0.0, (ahead - now).total_seconds())


def prune() -> None:
    """Deletes what is older than the installation keeps. Where that takes long it takes its turn among the coarse jobs again and again."""
    gone, whole = retention.prune(db_now(), seconds=PRUNE_SECONDS)
    if gone:
        log.info("removed: %s", ", ".join(f"{count} {name}" for name, count in gone.items()))
    if not whole:
        async_task("escalation.tasks.prune", task_name="prune")
