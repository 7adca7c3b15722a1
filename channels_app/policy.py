"""When a message is tried again, when the fallback starts and when it is given up: the numbers, and the one decision after each attempt.

Pure: rows and clocks stay outside. A page is never waited for silently, and a deadline never ends it: both start the fallback only."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal

from django.utils.translation import gettext_noop

from channels_app.http import DeliveryError
from channels_app.transport import Receipt

# Every wait of a page counts: a provider's limit, a block, a quota, a retry. What would end after it takes the fallback now.
DEADLINES: Final = {"Critical": timedelta(seconds=60), "Warning": timedelta(minutes=5), "Info": timedelta(hours=1)}
BUDGET: Final = timedelta(seconds=10)  # from the first request; then the fallback starts and the original goes on
TRIES: Final = 3
HANGS: Final = 2.5  # seconds of one failed attempt that leave no time for another within the budget: http.py waits 3 s for a connection
GIVE_UP: Final = timedelta(hours=24)
GIVE_UP_NOTICE: Final = timedelta(hours=1)  # an acknowledged or closed notice is of no use to anybody later
LEASE: Final = timedelta(seconds=30)  # longer than any request lasts: http.py ends them at 8 s
BACKOFF: Final = (1, 3, 10, 30, 60, 120, 300)  # seconds after the first, second, ... try
BREAKER_FAILURES: Final = 5
BREAKER_SECONDS: Final = (30, 60, 120, 300)
SILENCE: Final = timedelta(minutes=3)  # a call of whose end nobody tells us has reached nobody
POLL: Final = timedelta(seconds=3)  # until the first question what became of a message, and between two; then a fifth of its age
POLL_LATER: Final = timedelta(seconds=15)  # who can call us is asked only about what it has kept silent about for so long
POLL_UNTIL: Final = timedelta(minutes=15)
EARLY: Final = timedelta(minutes=10)  # how long a receipt is kept for a message that we do not know (yet)
# A relay that refuses everybody must not end everybody's address: no more than so many mailboxes are taken for dead within this time.
BOUNCES: Final = 5
BOUNCES_WITHIN: Final = timedelta(minutes=10)
PROBE_SECONDS: Final = 10  # how long a probe has before the next one goes

MONTH_LOOK: Final = timedelta(minutes=5)  # what waits for the next month is looked at again so often: somebody may have raised the quota
MONTH_USED_UP: Final = gettext_noop("the month's messages of this channel are used up")
# What waits for a limit or a block past its deadline says so: of a page, that is no trying any more.
TAKES_NO_MORE: Final = gettext_noop("the provider takes no more messages to this address for now; it leaves as soon as it may")

# What was claimed so long ago and is not under way is looked at again: somebody may have acknowledged meanwhile. Longer with each attempt, so
# that a machine that is always late sends all the same, and always shorter than the lease.
STALE: Final = 1.0
STALEST: Final = 16.0

Outcome = Literal["sent", "delivered", "failed", "network", "unknown", "late"]


class NotBegun(DeliveryError):
    """No request left: it had been claimed too long ago."""

    def __init__(self, text: str) -> None:
        super().__init__(text, permanent=False)


def stale_after(attempt: int) -> float:
    """How many seconds after its claim an attempt (1, 2, ...) may still begin."""
    return float(min(STALE * 2 ** min(attempt - 1, 10), STALEST))  # 2**1024 is no float


def deadline(severity: str) -> timedelta:
    """How long a page of this severity may wait before its fallback starts."""
    return DEADLINES.get(severity, DEADLINES["Info"])


def priority(severity: str, rank: int) -> int:
    """Lower goes first: the most severe, then first pages, escalations, loops and status notices (rank 0 to 3)."""
    return {"Critical": 0, "Warning": 1}.get(severity, 2) * 4 + rank


def is_first(priority: int) -> bool:
    """Whether a `priority` is that of an incident's first page."""
    return priority % 4 == 0


def is_critical(priority: int) -> bool:
    """Whether a `priority` is that of something critical."""
    return priority < 4


def backoff(tries: int, seed: int) -> timedelta:
    """How long to wait after `tries` counted tries, spread by +-20 % over deliveries (`seed`) so that they do not come back together."""
    spread = 0.8 + 0.4 * ((seed * 2654435761 + tries * 40503) % 1000) / 1000
    return timedelta(seconds=BACKOFF[min(max(tries, 1), len(BACKOFF)) - 1] * spread)


def open_for(failures: int) -> timedelta | None:
    """How long a channel is left alone after so many failures in a row; None while it is not."""
    if failures < BREAKER_FAILURES:
        return None
    return timedelta(seconds=BREAKER_SECONDS[min(failures - BREAKER_FAILURES, len(BREAKER_SECONDS) - 1)])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a delivery after an attempt."""

    outcome: Outcome  # of the attempt, for its log line
    state: Literal["sent", "delivered", "queued", "failed", "unknown"]  # of the delivery
    reason: str = ""
    not_before: datetime | None = None  # of the next try, where state is queued
    fallback: bool = False  # evidence that this channel does not reach the person: the fallback starts now
    provider_failed: bool = False  # counts for the channel's circuit breaker


def judge(
    said: Receipt | DeliveryError,
    *,
    tries: int,
    seed: int,
    is_page: bool,
    deadline_at: datetime,
    give_up_at: datetime,
    now: datetime,
    seconds: float = 0,
) -> Verdict:
    """Decides after an attempt that took `seconds` and ended at `now`; `tries` includes it."""
    if isinstance(said, Receipt):
        return Verdict(said.state, said.state)
    if isinstance(said, NotBegun):
        return Verdict("late", "queued", said.text, now)
    outcome: Outcome = "unknown" if said.left else "network" if said.is_network else "failed"
    reason = said.text[:500]
    if said.permanent:
        return Verdict(outcome, "failed", reason, fallback=is_page)
    wait = max(backoff(tries, seed), timedelta(seconds=max(said.retry_after or 0, said.blocked or 0)))
    asked_to_wait = said.retry_after is not None or said.blocked is not None
    at = now + wait
    if at >= give_up_at:
        return Verdict(outcome, "unknown" if said.left else "failed", reason, fallback=is_page, provider_failed=not asked_to_wait)
    spent = tries >= TRIES or at >= deadline_at or seconds >= HANGS
    return Verdict(outcome, "queued", reason, at, fallback=is_page and spent, provider_failed=not asked_to_wait)
