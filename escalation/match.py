"""Filters and time windows against plain values: which rule is meant for this alert, and is it this rule's hour?

Pure: no models, no database, no clock. The same code serves the engine, the dry run and the forms that save rules.

The language (the reference's, one everywhere): a filter is a list of groups, any of which may hold (OR); a group is a list of
conditions `{key, oper, vals}`, all of which must hold (AND). `oper` is IN (some value matches) or NOTIN (no value matches).
The form of a value chooses how it matches:

    /text/              RE2 regular expression, found anywhere in the subject's value
    cidr:10.0.0.0/24    the subject's value is an address in that range
    num:ge:90           the subject's value is a number and compares so (gt, ge, lt, le)
    disk*, node-??      wildcard over the whole value: * any number of characters, ? exactly one
    anything else       equal, case included

What the reference leaves open, decided here:
- A label that is not there, or an attribute that is empty, matches no value at all: IN is false and NOTIN is true, whatever the
  values. So `IN *` asks whether it is there and `NOTIN *` whether it is not. A label sent with the value "" is there.
- A value that cannot be read as an address or a number does not match `cidr:` or `num:` (and so satisfies NOTIN).
- An empty group is as good as absent; a filter without conditions matches everything.
- One flat list of conditions is read as one group: an older client sends pipelines so.
- `cidr:` and `num:` win over the wildcard, so that `cidr:10.0.0.*` is an error to mend and not a text that never occurs.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, tzinfo
from decimal import Decimal
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import re2
from django.utils.translation import gettext as _

MAX_GROUPS = 50
MAX_CONDITIONS = 50
MAX_VALUES = 500
MAX_ALL_VALUES = 2000
MAX_VALUE_LENGTH = 2048
MAX_REGEX_LENGTH = 1000
MAX_WINDOWS = 50
REGEX_MEMORY = 1 << 20  # bytes one expression may take in RE2, its lazily built automaton included

ATTRIBUTES = ("title", "description", "severity", "data_source_id")
_LEGACY_KEYS = {"alert_severity": "severity", "incident_severity": "severity"}

Calendar = Callable[[str, date], bool]
"""A service calendar: (cal_id, day) -> is that day a working day?"""


class FilterError(ValueError):
    """A filter that cannot be used: `path` names the place (`filters[0][1].vals[2]`), `message` what is wrong and how to mend it."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{path}: {message}")


@dataclass(frozen=True, slots=True)
class Subject:
    """What a filter is held against: an alert or an incident as plain values."""

    title: str = ""
    description: str = ""
    severity: str = ""
    data_source_id: str | int = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def value(self, key: str) -> str | None:
        """The value behind a condition's key, None if the label is not there or the attribute is empty (an id of 0 is "not set")."""
        if key.startswith("labels."):
            return self.labels.get(key[7:])
        if key == "title":
            return self.title or None
        if key == "severity":
            return self.severity or None
        if key == "description":
            return self.description or None
        return str(self.data_source_id) if self.data_source_id not in (0, "", "0") else None


# --- One value -------------------------------------------------------------------------------------------------------------

_Test = Callable[[str], bool]
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # NUL and lone surrogates: PostgreSQL's texts and JSON hold neither
_INFINITY = re.compile(r"([+-]?)inf(?:inity)?", re.IGNORECASE)


@lru_cache(maxsize=1024)
def _test(value: str) -> _Test | None:
    """The test that one filter value stands for, None for plain equality; raises ValueError with the message for the user."""
    if len(value) > 1 and value[0] == value[-1] == "/":
        return _regex(value[1:-1])
    if value.startswith("cidr:"):
        return _cidr(value[5:])
    if value.startswith("num:"):
        return _comparison(value)
    if "*" in value or "?" in value:
        return _wildcard(value)
    return None


def _compile_re2(pattern: str, meant_as: str) -> _Test:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True  # only whether it matches is asked, and that is faster
    options.max_mem = REGEX_MEMORY
    try:
        # Bytes on both sides: with text the library also translates offsets that nobody asks for.
        search = re2.compile(pattern.encode(), options).search
    except re2.error as error:
        reason = error.args[0] if error.args else ""
        reason = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(
            _("is not %(what)s that RE2 can run (%(reason)s): mend the expression; RE2 has no look-around and no back-references")
            % {"what": meant_as, "reason": reason}
        ) from None

    def found(text: str) -> bool:
        return search(text.encode("utf-8", "replace")) is not None  # a lone surrogate has no UTF-8 and must not raise in here

    return found


def _regex(pattern: str) -> _Test:
    if not pattern:
        raise ValueError(_("is an empty regular expression, which matches everything: write * if that is meant"))
    if len(pattern) > MAX_REGEX_LENGTH:
        raise ValueError(
            _("is a regular expression of %(length)d characters, at most %(most)d are allowed: split it into several values")
            % {"length": len(pattern), "most": MAX_REGEX_LENGTH}
        )
    return _compile_re2(pattern, _("a regular expression"))


def _wildcard(value: str) -> _Test:
    if not value.strip("*"):
        return lambda text: True
    pieces = re.sub(r"\*+", "*", value)  # neighbouring stars say the same as one, and each would cost a state
    pattern = "".join(".*" if c == "*" else "." if c == "?" else re2.escape(c) for c in pieces)
    return _compile_re2(rf"(?s)\A{pattern}\z", _("a wildcard"))


def _cidr(text: str) -> _Test:
    problem = _('must be cidr: with an address and a prefix length, like "cidr:10.0.0.0/24" or "cidr:2001:db8::/32"')
    address, slash, prefix = text.partition("/")
    if not slash or not re.fullmatch("[0-9]{1,3}", prefix) or "%" in address:
        raise ValueError(problem)  # ip_network alone would also take masks (/255.255.255.0) and a single address
    try:
        network = ipaddress.ip_network(text, strict=False)  # host bits may be set, as in the reference's own example
    except ValueError:
        raise ValueError(problem) from None

    def inside(text: str) -> bool:
        if "%" in text:
            return False
        try:
            ip = ipaddress.ip_address(text.strip())
        except ValueError:
            return False
        if ip in network:
            return True
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None  # ::ffff:10.0.0.1 is 10.0.0.1
        return mapped is not None and mapped in network

    return inside


def _number(text: str) -> Decimal | None:
    """A decimal number as monitoring systems write one (infinities too, Prometheus has them), exactly; None for anything else."""
    text = text.strip()
    if len(text) <= 64 and _NUMBER.fullmatch(text):
        return Decimal(text)
    if infinity := _INFINITY.fullmatch(text):
        return Decimal(infinity[1] + "Infinity")
    return None


def _comparison(value: str) -> _Test:
    oper, _colon, text = value[4:].partition(":")
    bound = _number(text)
    if oper not in ("gt", "ge", "lt", "le") or bound is None or bound.is_infinite():
        raise ValueError(
            _('must be num:gt:, num:ge:, num:lt: or num:le: and a number, like "num:ge:90"; for equality write the number alone')
        )

    def compares(text: str) -> bool:
        number = _number(text)
        if number is None:
            return False
        if oper == "gt":
            return number > bound
        if oper == "ge":
            return number >= bound
        if oper == "lt":
            return number < bound
        return number <= bound

    return compares


# --- A filter --------------------------------------------------------------------------------------------------------------

_Frozen = tuple[str, str, tuple[str, ...]]
_Report = Callable[[FilterError], None]


@dataclass(frozen=True, slots=True)
class _Condition:
    key: str
    wanted: bool  # IN; else NOTIN
    exact: frozenset[str]
    tests: tuple[_Test, ...]

    def holds(self, subject: Subject) -> bool:
        value = subject.value(self.key)
        if value is None:
            return not self.wanted
        hit = value in self.exact or any(test(value) for test in self.tests)
        return hit is self.wanted


@dataclass(frozen=True, slots=True)
class Compiled:
    """A filter ready for use; one that has no conditions matches everything."""

    groups: tuple[tuple[_Condition, ...], ...]

    def matches(self, subject: Subject) -> bool:
        """Whether some group has all its conditions met by the subject."""
        return not self.groups or any(all(condition.holds(subject) for condition in group) for group in self.groups)


def compile(filters: Any, field: str = "filters") -> Compiled:
    """The filter in a form that can be held against many subjects; equal filters share one. Raises FilterError, the first one found."""
    groups = tuple(_read(filters, field, _raise))
    return _build(groups)


def matches(filters: Any, subject: Subject) -> bool:
    """Whether the subject meets the filter (None and [] match everything); raises FilterError for what `check` refuses.

    The compiled filter is cached by content; a loop over many subjects does best to call `compile` once itself.
    """
    return compile(filters).matches(subject)


def check(filters: Any, field: str = "filters") -> list[FilterError]:
    """Everything that keeps the filter from being used, each with its path below `field`; empty if it is good."""
    found: list[FilterError] = []
    for _group in _read(filters, field, found.append):
        pass
    return found


@lru_cache(maxsize=1024)
def _build(groups: tuple[tuple[_Frozen, ...], ...]) -> Compiled:
    return Compiled(tuple(tuple(_condition(*condition) for condition in group) for group in groups))


def _condition(key: str, oper: str, vals: tuple[str, ...]) -> _Condition:
    tests = [(value, _test(value)) for value in vals]
    return _Condition(
        key=key,
        wanted=oper == "IN",
        exact=frozenset(value for value, test in tests if test is None),
        tests=tuple(test for _value, test in tests if test is not None),
    )


def _raise(error: FilterError) -> None:
    raise error


def _read(filters: Any, field: str, report: _Report) -> Iterator[tuple[_Frozen, ...]]:
    """The groups of a filter as hashable values, every problem reported on the way."""
    if filters is None:
        return
    if not isinstance(filters, (list, tuple)):
        report(FilterError(field, _("must be a list of groups, each a list of conditions {key, oper, vals}")))
        return
    if filters and all(isinstance(item, Mapping) for item in filters):
        nested, path = [filters], field  # the flat form: paths name the condition where the sender wrote it
    else:
        nested, path = list(filters), field + "[%d]"
    if len(nested) > MAX_GROUPS:
        report(FilterError(field, _("has %(n)d groups, at most %(most)d are allowed") % {"n": len(nested), "most": MAX_GROUPS}))
        return
    values = 0
    for index, group in enumerate(nested):
        here = path % index if "%d" in path else path
        if not isinstance(group, (list, tuple)):
            report(FilterError(here, _("must be a list of conditions {key, oper, vals}")))
            continue
        if len(group) > MAX_CONDITIONS:
            report(FilterError(here, _("has %(n)d conditions, at most %(most)d are allowed") % {"n": len(group), "most": MAX_CONDITIONS}))
            continue
        conditions = [_read_condition(condition, f"{here}[{number}]", report) for number, condition in enumerate(group)]
        frozen = tuple(condition for condition in conditions if condition is not None)
        values += sum(len(condition[2]) for condition in frozen)
        if values > MAX_ALL_VALUES:
            report(
                FilterError(field, _("has over %(most)d values in all: use wildcards or regular expressions") % {"most": MAX_ALL_VALUES})
            )
            return
        if frozen:
            yield frozen


def _read_condition(condition: Any, path: str, report: _Report) -> _Frozen | None:
    if not isinstance(condition, Mapping):
        report(FilterError(path, _("must be a condition {key, oper, vals}")))
        return None
    key, oper, vals = condition.get("key"), condition.get("oper"), condition.get("vals")
    good = True
    if isinstance(key, str):
        key = _LEGACY_KEYS.get(key, key)
    if not isinstance(key, str) or _UNSTORABLE.search(key) or not (key in ATTRIBUTES or (key.startswith("labels.") and len(key) > 7)):
        report(FilterError(f"{path}.key", _("must be title, description, severity, data_source_id or labels.<name>")))
        good = False
    if oper not in ("IN", "NOTIN"):
        report(FilterError(f"{path}.oper", _("must be IN or NOTIN")))
        good = False
    if not isinstance(vals, (list, tuple)) or not vals:
        report(FilterError(f"{path}.vals", _('must be a list of at least one text; ["*"] asks whether the value is there at all')))
        return None
    if len(vals) > MAX_VALUES:
        message = _("has %(n)d values, at most %(most)d are allowed: use wildcards or regular expressions")
        report(FilterError(f"{path}.vals", message % {"n": len(vals), "most": MAX_VALUES}))
        return None
    texts = []
    for index, value in enumerate(vals):
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value) if abs(value) < 1 << 64 else None  # an integration's id, sent as the number it is
        if not isinstance(value, str):
            problem: str | None = _("must be a text")
        elif len(value) > MAX_VALUE_LENGTH:
            problem = _("is longer than %(most)d characters") % {"most": MAX_VALUE_LENGTH}
        elif _UNSTORABLE.search(value):
            problem = _("holds a NUL or half of a surrogate pair, which no text can: leave the character out")
        else:
            problem = _problem(value)
            texts.append(value)
        if problem:
            report(FilterError(f"{path}.vals[{index}]", problem))
            good = False
    return (str(key), str(oper), tuple(texts)) if good else None


def _problem(value: str) -> str | None:
    try:
        _test(value)
    except ValueError as error:
        return str(error)
    return None


# --- Time windows ----------------------------------------------------------------------------------------------------------

_CLOCK = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")
_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class _Window:
    """Minutes of the wall clock on certain days; `end` <= `start` means that it ends on the day after the one it belongs to."""

    start: int
    end: int
    days: frozenset[int]  # 0 = Sunday; empty = every day
    cal_id: str
    is_off: bool

    def holds(self, local: datetime, calendar: Calendar | None) -> bool:
        minute = local.hour * 60 + local.minute
        day = local.date()
        if self.start < self.end:
            if not self.start <= minute < self.end:
                return False
        elif minute < self.start:
            if minute >= self.end:
                return False
            day -= timedelta(days=1)
        if self.days and day.isoweekday() % 7 not in self.days:
            return False
        return calendar is None or not self.cal_id or calendar(self.cal_id, day) is not self.is_off


def in_time(time_filters: Any, now: datetime, tz: str | tzinfo, calendar: Calendar | None = None) -> bool:
    """Whether `now` (aware) lies in one of the weekly windows, by the wall clock of `tz` (IANA name); None and [] mean always.

    A window is `{start: "HH:MM", end: "HH:MM", repeat: [0..6], cal_id, is_off}`: from `start` on and before `end`, to the minute.
    An `end` of 23:59 or 24:00 is midnight: the reference's pages write a whole day as 00:00-23:59, and taken by the letter that is
    a hole of a minute every night. An `end` before `start` is on the next day, and the whole window belongs to the day it began:
    Friday 22:00-06:00 holds on Saturday at 05:00. Equal times are 24 hours. With `cal_id` the day must also be a working day of
    that calendar, or with `is_off` a day of rest. When clocks go back an hour, the doubled hour counts both times.

    Raises FilterError for what `check_time` refuses and for an unknown zone.
    """
    if now.tzinfo is None:
        raise ValueError("now must carry a time zone")
    windows = _compile_windows(time_filters, "time_filters", calendar is not None)
    if not windows:
        return True
    local = now.astimezone(zone(tz))
    return any(window.holds(local, calendar) for window in windows)


def check_time(time_filters: Any, field: str = "time_filters", *, calendars: bool = False) -> list[FilterError]:
    """Everything that keeps the windows from being used; `calendars` says whether the caller can answer for a `cal_id`."""
    found: list[FilterError] = []
    for _window in _read_windows(time_filters, field, calendars, found.append):
        pass
    return found


def zone(tz: str | tzinfo, field: str = "time_zone") -> tzinfo:
    """The zone behind an IANA name; raises FilterError for a name that is not one."""
    if isinstance(tz, tzinfo):
        return tz
    try:
        return ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):  # a folder's name or an odd path is not "not found" everywhere
        raise FilterError(field, _('must be the name of a time zone, like "Asia/Shanghai" or "Europe/Berlin"')) from None


def _compile_windows(time_filters: Any, field: str, calendars: bool) -> tuple[_Window, ...]:
    return tuple(_read_windows(time_filters, field, calendars, _raise))


def _read_windows(time_filters: Any, field: str, calendars: bool, report: _Report) -> Iterator[_Window]:
    if time_filters is None:
        return
    if not isinstance(time_filters, (list, tuple)):
        report(FilterError(field, _('must be a list of windows like {"start": "09:00", "end": "18:00", "repeat": [1, 2, 3, 4, 5]}')))
        return
    if len(time_filters) > MAX_WINDOWS:
        report(FilterError(field, _("has %(n)d windows, at most %(most)d are allowed") % {"n": len(time_filters), "most": MAX_WINDOWS}))
        return
    for index, entry in enumerate(time_filters):
        window = _read_window(entry, f"{field}[{index}]", calendars, report)
        if window:
            yield window


def _read_window(entry: Any, path: str, calendars: bool, report: _Report) -> _Window | None:
    if not isinstance(entry, Mapping):
        report(FilterError(path, _('must be a window like {"start": "09:00", "end": "18:00", "repeat": [1, 2, 3, 4, 5]}')))
        return None
    good = True
    minutes: dict[str, int] = {}
    for name in ("start", "end"):
        text = entry.get(name)
        clock = _CLOCK.fullmatch(text) if isinstance(text, str) else None
        if clock:
            minutes[name] = int(clock[1]) * 60 + int(clock[2])
        elif name == "end" and text == "24:00":
            minutes[name] = _DAY
        else:
            report(FilterError(f"{path}.{name}", _('must be a time of day as HH:MM, like "09:00"')))
            good = False
    repeat = entry.get("repeat") or []
    if not isinstance(repeat, (list, tuple)) or not all(type(day) is int and 0 <= day <= 6 for day in repeat):
        report(FilterError(f"{path}.repeat", _("must be a list of weekdays from 0 (Sunday) to 6 (Saturday); empty means every day")))
        good = False
    cal_id = entry.get("cal_id") or ""
    is_off = entry.get("is_off") or False
    if not isinstance(cal_id, str):
        report(FilterError(f"{path}.cal_id", _("must be the id of a service calendar")))
        good = False
    elif cal_id and not calendars:
        report(FilterError(f"{path}.cal_id", _("names a service calendar, and none is available here: leave it out and use repeat")))
        good = False
    if not isinstance(is_off, bool):
        report(FilterError(f"{path}.is_off", _("must be true or false")))
        good = False
    if not good:
        return None
    start, end = minutes["start"], minutes["end"]
    if end == _DAY - 1 and start != end:
        end = _DAY
    return _Window(start, end, frozenset(repeat), cal_id, is_off)
