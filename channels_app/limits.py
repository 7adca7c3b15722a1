"""A provider's limits at one address, kept exactly: never more than `count` messages in any `seconds`. Pure.

A bucket that refills evenly lets nearly twice the count through within a window that begins with a burst, and providers block for that.
So the instants of the last messages are remembered, at most `count` of them for each limit."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from channels_app.transport import Limit

Log = dict[str, list[float]]  # {"20/60": [Unix seconds, oldest first]}

# What leaves in order may arrive closer together than it left: the window is held a little longer than the provider's.
_SLACK: Final = 1.02
_MARGIN: Final = 0.2


def own(settings: Mapping[str, Any] | None, declared: Sequence[Limit]) -> tuple[Limit, ...]:
    """A channel's limits: its own {"per_second": 5, "per_minute": 100, "per_hour": ...} where it has any, else its transport's."""
    seconds = {"per_second": 1.0, "per_minute": 60.0, "per_hour": 3600.0, "per_day": 86400.0}
    wanted = {name: settings.get(name) for name in seconds} if isinstance(settings, Mapping) else None
    if wanted is None or any(count and not (isinstance(count, int | float) and count >= 1) for count in wanted.values()):
        return tuple(declared)  # none of its own, or ones that no form would have let in
    return tuple(Limit(int(count), seconds[name]) for name, count in wanted.items() if count)


def look(log: Mapping[str, Sequence[float]], limits: Sequence[Limit], now: datetime) -> tuple[int, datetime | None]:
    """How many messages may leave at `now`, and when the next one may if none does (None where some may). Without limits: a large number."""
    free, at = 1_000_000, now.timestamp()
    wait = at
    for limit in limits:
        inside = _inside(log, limit, at)
        free = min(free, limit.count - len(inside))
        if len(inside) >= limit.count:
            wait = max(wait, inside[len(inside) - limit.count] + _span(limit))
    # A millisecond more, so that rounding never says "now".
    return (free, None) if free > 0 else (0, datetime.fromtimestamp(wait + 0.001, UTC))


def taken(log: Mapping[str, Sequence[float]], limits: Sequence[Limit], now: datetime, count: int) -> Log:
    """The log after `count` more messages left at `now`; what no limit asks about any more is forgotten."""
    at = now.timestamp()
    return {_name(limit): [*_inside(log, limit, at), *[round(at, 3)] * count][-limit.count :] for limit in limits}


def _inside(log: Mapping[str, Sequence[float]], limit: Limit, at: float) -> list[float]:
    # An instant in the future is one from before the clock was set back: it counts as now.
    return [min(then, at) for then in log.get(_name(limit), ()) if then > at - _span(limit)]


def _span(limit: Limit) -> float:
    return limit.seconds * _SLACK + _MARGIN


def _name(limit: Limit) -> str:
    return f"{limit.count}/{limit.seconds:g}"
