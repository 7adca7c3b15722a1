"""Quiet hours by a person's own clock: property tests over zones and the days on which clocks change."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mapping.quiet import Quiet

ZONES = (
    "UTC",
    "Asia/Shanghai",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Asia/Kolkata",
    "America/Santiago",
    "Pacific/Apia",
)


def at(zone: str, *when: int, fold: int = 0) -> datetime:
    return datetime(*when, tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def night(**changed) -> Quiet:
    zone = ZoneInfo(changed.pop("zone", "Asia/Shanghai"))
    return Quiet(**({"start": time(22), "end": time(7), "zone": zone} | changed))


@pytest.mark.parametrize(
    ("hour", "minute", "end_day"),
    [(21, 59, None), (22, 0, 3), (23, 30, 3), (6, 59, 2), (7, 0, None), (12, 0, None), (0, 0, 2)],
)
def test_a_night_in_shanghai(hour, minute, end_day):
    now = at("Asia/Shanghai", 2026, 3, 2, hour, minute)
    assert night().until("Warning", now) == (at("Asia/Shanghai", 2026, 3, end_day, 7) if end_day else None)


def test_what_breaks_through_is_never_held_back():
    now = at("Asia/Shanghai", 2026, 3, 2, 3)
    assert night().until("Critical", now) is None
    assert night(breaks=()).until("Critical", now) == at("Asia/Shanghai", 2026, 3, 2, 7)
    assert night(breaks=("Critical", "Warning")).until("Warning", now) is None


def test_weekdays_are_those_on_which_it_begins():
    workdays = night(days=(0, 1, 2, 3))  # Monday to Thursday: Friday's night is free
    friday, saturday = (2026, 3, 6), (2026, 3, 7)
    assert workdays.until("Info", at("Asia/Shanghai", *friday, 3)) == at("Asia/Shanghai", *friday, 7)  # began on Thursday
    assert workdays.until("Info", at("Asia/Shanghai", *friday, 23)) is None
    assert workdays.until("Info", at("Asia/Shanghai", *saturday, 3)) is None


def test_within_a_day():
    lunch = night(start=time(12), end=time(13, 30))
    assert lunch.until("Info", at("Asia/Shanghai", 2026, 3, 2, 12, 45)) == at("Asia/Shanghai", 2026, 3, 2, 13, 30)
    assert lunch.until("Info", at("Asia/Shanghai", 2026, 3, 2, 13, 30)) is None


def test_an_end_that_the_clock_jumps_over_comes_after_the_jump():
    # Berlin, 29 March 2026: 02:00 is 03:00.
    quiet = night(zone="Europe/Berlin", end=time(2, 30))
    assert quiet.until("Info", at("Europe/Berlin", 2026, 3, 29, 1, 0)) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)  # 03:30 summer time
    # The next quiet hours have begun by then: one wait, not two.
    all_day = night(zone="Europe/Berlin", start=time(3), end=time(2, 30))
    assert all_day.until("Info", at("Europe/Berlin", 2026, 3, 29, 1, 0)) == at("Europe/Berlin", 2026, 3, 30, 2, 30)


def test_an_end_that_comes_twice_is_its_first():
    # Berlin, 25 October 2026: 03:00 is 02:00 again.
    quiet = night(zone="Europe/Berlin", end=time(2, 30))
    assert quiet.until("Info", at("Europe/Berlin", 2026, 10, 25, 1, 0)) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert quiet.until("Info", at("Europe/Berlin", 2026, 10, 25, 2, 15, fold=1)) is None


def test_the_order_of_the_channels_is_kept_after_the_night():
    asleep, awake = at("Asia/Shanghai", 2026, 3, 2, 2), at("Asia/Shanghai", 2026, 3, 2, 12)
    morning = at("Asia/Shanghai", 2026, 3, 2, 7)
    assert [night().earliest("Info", asleep, delay) for delay in (0, 120, 300)] == [
        morning, morning + timedelta(minutes=2), morning + timedelta(minutes=5)
    ]  # fmt: skip
    assert night().earliest("Info", awake, 120) == awake + timedelta(minutes=2)
    assert night().earliest("Critical", asleep, 120) == asleep + timedelta(minutes=2)
    # What a delay carries into the night waits for the morning, too.
    assert night().earliest("Info", at("Asia/Shanghai", 2026, 3, 2, 21, 58), 300) == at("Asia/Shanghai", 2026, 3, 3, 7)


minutes = st.integers(0, 24 * 60 - 1).map(lambda n: time(n // 60, n % 60))
hours = (
    st.tuples(minutes, minutes, st.sampled_from(ZONES).map(ZoneInfo), st.sets(st.integers(0, 6)))
    .filter(lambda drawn: drawn[0] != drawn[1])
    .map(lambda drawn: Quiet(*drawn))
)
instants = st.datetimes(datetime(2025, 1, 1), datetime(2027, 12, 31)).map(lambda naive: naive.replace(tzinfo=UTC))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hours, instants)
def test_it_ends_and_when_it_has_ended_it_is_over(quiet, now):
    over = quiet.until("Info", now)
    if over is not None:
        assert now < over < now + timedelta(hours=48)
        assert quiet.until("Info", over) is None
        # Whoever asks again on the way hears the same.
        assert quiet.until("Info", now + (over - now) / 2) == over


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hours, instants, st.integers(0, 86400))
def test_nothing_is_early_nothing_is_lost_and_nothing_arrives_in_quiet_hours(quiet, now, delay):
    when = quiet.earliest("Info", now, delay)
    assert now + timedelta(seconds=delay) <= when < now + timedelta(seconds=delay) + timedelta(hours=96)
    assert quiet.until("Info", when) is None
    assert quiet.earliest("Critical", now, delay) == now + timedelta(seconds=delay)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(hours, instants)
def test_on_ordinary_days_it_is_what_the_clock_on_the_wall_says(quiet, now):
    zone = quiet.zone
    offsets = {(now + timedelta(hours=h)).astimezone(zone).utcoffset() for h in range(-48, 49, 1)}
    if len(offsets) > 1:
        return  # a day on which the clock changes: see above
    local = now.astimezone(zone)
    clock, day = local.time(), local.weekday()
    over_midnight = quiet.end < quiet.start
    begun_today = clock >= quiet.start and (over_midnight or clock < quiet.end)
    begun_yesterday = over_midnight and clock < quiet.end
    on = lambda weekday: not quiet.days or weekday in quiet.days  # noqa: E731
    assert (quiet.until("Info", now) is not None) == ((begun_today and on(day)) or (begun_yesterday and on((day - 1) % 7)))
