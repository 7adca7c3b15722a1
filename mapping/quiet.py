"""When a person does not want to be woken: quiet hours by their own clock, and when a page that falls into them may reach them. Pure.

Nothing is lost in quiet hours: what they hold back is sent at their end, and the escalation goes on meanwhile. They are wall-clock hours in an
IANA zone. On the day the clock jumps ahead, an end that does not exist is the same distance after the jump; on the day it falls back, a time
that comes twice means its first coming, so that an hour too little is quiet rather than an hour too much."""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Quiet:
    """Quiet hours from `start` to `end`, over midnight where the end is not later; `end` must not be `start`.

    `days` are the weekdays on which they begin (0 is Monday; none: every day); `breaks` are the severities that reach the person all the same.
    """

    start: time
    end: time
    zone: ZoneInfo
    days: Collection[int] = field(default=())
    breaks: Collection[str] = field(default=("Critical",))

    def until(self, severity: str, now: datetime) -> datetime | None:
        """When the quiet hours that hold something of this severity back at `now` are over (UTC); None where none do. Never 48 hours away."""
        if severity in self.breaks:
            return None
        over = None
        # Twice at most: where the clock jumps over an end, the next quiet hours may have begun before it.
        for _turn in range(3):
            end = self._end(over or now)
            if end is None:
                break
            over = end
        return over

    def _end(self, now: datetime) -> datetime | None:
        today = now.astimezone(self.zone).date()
        for day in (today - timedelta(days=1), today):
            if self.days and day.weekday() not in self.days:
                continue
            ends_on = day if self.end > self.start else day + timedelta(days=1)
            end = self._instant(ends_on, self.end)
            if self._instant(day, self.start) <= now < end:
                return end
        return None

    def _instant(self, day: date, clock: time) -> datetime:
        return datetime.combine(day, clock, self.zone).astimezone(UTC)

    def earliest(self, severity: str, now: datetime, delay: float) -> datetime:
        """When something that is decided at `now` may reach the person, who asked for it `delay` seconds later.

        Within quiet hours the whole sequence (push, then SMS, then a call) begins at their end; what would fall into later ones waits for theirs.
        """
        at = (self.until(severity, now) or now) + timedelta(seconds=delay)
        return self.until(severity, at) or at
