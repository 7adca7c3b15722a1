"""A provider's limits at one address or of one account, kept exactly: never more than `count` messages in any `seconds`; and quotas of a
month. Pure.

A bucket that refills evenly lets nearly twice the count through within a window that begins with a burst, and providers block for that.
So the instants of the last messages are remembered, at most `count` of them for each limit."""

import calendar
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Final, Literal

from django.utils.translation import gettext as _

from channels_app.transport import Limit

Log = dict[str, list[float]]  # {"20/60": [Unix seconds, oldest first]}

# What leaves in order may arrive closer together than it left: the window is held a little longer than the provider's.
_SLACK: Final = 1.02
_MARGIN: Final = 0.2


def own(settings: Mapping[str, Any] | None, declared: Sequence[Limit]) -> tuple[Limit, ...]:
    """A channel's limits: its transport's, or its own where it has any.

    {"per_second": 5, "per_minute": 100, "per_hour": ..., "per_day": ...} are those of one address and stand in for the transport's of an
    address; {"total_per_second": 30, ...} are those of the channel as a whole and stand in for those. {}: no limits at all.
    """
    seconds = {"per_second": 1.0, "per_minute": 60.0, "per_hour": 3600.0, "per_day": 86400.0}
    if not isinstance(settings, Mapping):
        return tuple(declared)
    if not settings:
        return ()
    found: list[Limit] = []
    for scope, prefix in _SCOPES:
        wanted = {span: settings[prefix + name] for name, span in seconds.items() if settings.get(prefix + name)}
        if wanted and all(isinstance(count, int | float) and count >= 1 for count in wanted.values()):
            found += [Limit(int(count), span, scope) for span, count in wanted.items()]
        else:  # none of its own, or ones that no form would have let in
            found += [limit for limit in declared if limit.scope == scope]
    return tuple(found)


_SCOPES: Final[tuple[tuple[Literal["address", "channel"], str], ...]] = (("address", ""), ("channel", "total_"))


def look(log: Mapping[str, Sequence[float]], limits: Sequence[Limit], now: datetime) -> tuple[int, datetime | None]:
    """How many messages may leave at `now`, and when the next one may if none does (None where some may). Without limits: a large number."""
    free, at = 1_000_000, now.timestamp()
    wait = at
    for limit in limits:
        inside = _inside(log, limit, at)
        left = limit.count - len(inside)
        if left <= 0:
            wait = max(wait, inside[len(inside) - limit.count] + _span(limit))
        elif _is_paced(limit) and (burst := limit.count - limit.count // 2 - len(inside)) <= 0:
            # Half of a minute's messages leave as they come. In a storm the other half would be gone a second later, and what is critical would
            # wait for a minute; so they are spread over the time until the next one comes back, and each carries what waits.
            ready = inside[-1] + (inside[0] + _span(limit) - inside[-1]) / (left + 1)
            left, wait = (1, wait) if ready <= at else (0, max(wait, ready))
        elif _is_paced(limit):
            left = burst
        free = min(free, left)
    # A millisecond more, so that rounding never says "now".
    return (free, None) if free > 0 else (0, datetime.fromtimestamp(wait + 0.001, UTC))


def taken(log: Mapping[str, Sequence[float]], limits: Sequence[Limit], now: datetime, count: int) -> Log:
    """The log after `count` more messages left at `now`; what no limit asks about any more is forgotten."""
    at = now.timestamp()
    return {_name(limit): [*_inside(log, limit, at), *[round(at, 3)] * count][-limit.count :] for limit in limits}


def _inside(log: Mapping[str, Sequence[float]], limit: Limit, at: float) -> list[float]:
    # An instant in the future is one from before the clock was set back: it counts as now.
    return [min(then, at) for then in log.get(_name(limit), ()) if then > at - _span(limit)]


def _is_paced(limit: Limit) -> bool:
    """Windows in which a wait for their end is a long one, and that have messages enough to be spread."""
    return 10 <= limit.seconds <= 120 and limit.count >= 8


def _span(limit: Limit) -> float:
    return limit.seconds * _SLACK + _MARGIN


def _name(limit: Limit) -> str:
    return f"{limit.count}/{limit.seconds:g}"


# ---- a month's messages --------------------------------------------------------------------------------------------------------------

RESERVE: Final = 0.10  # of a quota: for Critical only
WARN: Final = 0.80


@dataclass(frozen=True, slots=True)
class Quota:
    """How far a channel is through its month: `used` of `most` messages; `forecast` for the whole month, as it went so far."""

    most: int
    used: int
    forecast: int

    @property
    def level(self) -> Literal["", "warning", "reserve", "over"]:
        """ "warning" from 80 % on, "reserve" when only Critical may still leave, "over" when nothing may."""
        if not self.left(reserve=True):
            return "over"
        if not self.left(reserve=False):
            return "reserve"
        return "warning" if self.used >= self.most * WARN else ""

    def words(self) -> str:
        """One sentence for whoever keeps the channel, in the language that is active."""
        text = {
            "": _("%(used)d of the month's %(most)d messages are used; the month will come to about %(forecast)d."),
            "warning": _("%(used)d of the month's %(most)d messages are used already; the month would come to about %(forecast)d."),
            "reserve": _("%(used)d of the month's %(most)d messages are used: the rest is kept for Critical, everything else takes its fallback."),
            "over": _("All %(most)d messages of the month are used: until the next month everything takes its fallback."),
        }[self.level]  # fmt: skip
        return text % {"used": self.used, "most": self.most, "forecast": self.forecast}

    def left(self, *, reserve: bool) -> int:
        """How many more may leave; `reserve`: for Critical, which may use the last tenth as well."""
        kept = 0 if reserve else math.ceil(self.most * RESERVE)
        return max(0, self.most - kept - self.used)


def quota(most: int | None, month: date | None, count: int, now: datetime) -> Quota | None:
    """The quota of a channel at `now`: `count` messages were taken in `month` (its first day). None where it has none."""
    if most is None:
        return None
    used = count if month == month_of(now) else 0
    return Quota(most, used, forecast(used, now))


def forecast(used: int, now: datetime) -> int:
    """How many messages the whole calendar month (UTC) will have had if it goes on as it went so far; the first day counts as a whole one."""
    first = datetime.combine(month_of(now), datetime.min.time(), UTC)
    days = calendar.monthrange(first.year, first.month)[1]
    passed = max(1.0, (now - first).total_seconds() / 86400)
    return max(used, round(used * days / passed))


def month_of(now: datetime) -> date:
    """The first day of the calendar month (UTC)."""
    return now.astimezone(UTC).date().replace(day=1)


def next_month(now: datetime) -> datetime:
    """When the next calendar month (UTC) begins."""
    first = month_of(now)
    year, month = (first.year + 1, 1) if first.month == 12 else (first.year, first.month + 1)
    return datetime(year, month, 1, tzinfo=UTC)
