"""The filter language and the weekly windows: examples from the reference's pages, and a second reading of the rules to compare with."""

import re
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.utils import translation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from escalation.match import (
    FilterError,
    Subject,
    check,
    check_time,
    compile,
    in_time,
    matches,
)

DISK = Subject(
    title="Disk full on db-3",
    description="97 % used",
    severity="Critical",
    data_source_id=2551,
    labels={"check": "disk.used", "host": "10.0.0.7", "value": "97", "note": "", "a.b": "dotted", "region::zone": "eu"},
)


@pytest.fixture(autouse=True, scope="module")
def english():
    with translation.override("en"):
        yield


def one(key, oper, *vals):
    return [[{"key": key, "oper": oper, "vals": list(vals)}]]


# --- By example ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value, hit",
    [
        ("title", "Disk full on db-3", True),
        ("title", "disk full on db-3", False),  # case matters
        ("title", "Disk", False),  # equal, not contained
        ("title", "/full/", True),  # unanchored
        ("title", "/^full/", False),
        ("title", "/(?i)DISK FULL/", True),
        ("title", "/db-\\d+$/", True),
        ("title", "Disk*", True),
        ("title", "*db-?", True),
        ("title", "full", False),
        ("title", "*full", False),  # a wildcard covers the whole value
        ("title", "Disk?full*", True),
        ("description", "*%*", True),
        ("severity", "Critical", True),
        ("severity", "Warning", False),
        ("alert_severity", "Critical", True),
        ("incident_severity", "Critical", True),
        ("data_source_id", "2551", True),
        ("data_source_id", 2551, True),
        ("data_source_id", "25*", True),
        ("labels.check", "disk.used", True),
        ("labels.check", "disk?used", True),
        ("labels.check", "/disk,used/", False),
        ("labels.check", "diskxused", False),  # a dot is a dot
        ("labels.a.b", "dotted", True),
        ("labels.region::zone", "eu", True),
        ("labels.host", "cidr:10.0.0.0/24", True),
        ("labels.host", "cidr:10.0.0.206/24", True),  # the reference's own example has host bits set
        ("labels.host", "cidr:10.0.1.0/24", False),
        ("labels.host", "cidr:2001:db8::/32", False),
        ("labels.host", "cidr:0.0.0.0/0", True),
        ("labels.check", "cidr:10.0.0.0/24", False),  # not an address
        ("labels.value", "num:gt:90", True),
        ("labels.value", "num:gt:97", False),
        ("labels.value", "num:ge:97.0", True),
        ("labels.value", "num:lt:9.8e1", True),
        ("labels.value", "num:le:96.999", False),
        ("labels.check", "num:ge:0", False),  # not a number
        ("labels.note", "", True),
        ("labels.note", "*", True),  # there, with nothing in it
        ("labels.nope", "*", False),
        ("labels.nope", "", False),
    ],
)
def test_one_value(key, value, hit):
    assert matches(one(key, "IN", value), DISK) is hit
    assert matches(one(key, "NOTIN", value), DISK) is not hit


def test_the_example_of_the_reference():
    filters = [
        [
            {"key": "severity", "oper": "IN", "vals": ["Critical", "Warning"]},
            {"key": "labels.check", "oper": "IN", "vals": ["Binlog Sync Delay"]},
        ],
        [
            {"key": "labels.check", "oper": "IN", "vals": ["/cpu/", "/io/", "/disk/"]},
            {"key": "labels.value", "oper": "IN", "vals": ["num:gt:90"]},
        ],
    ]
    ready = compile(filters)
    assert ready.matches(DISK)
    assert ready.matches(Subject(severity="Warning", labels={"check": "Binlog Sync Delay"}))
    assert not ready.matches(Subject(severity="Info", labels={"check": "Binlog Sync Delay"}))
    assert not ready.matches(Subject(severity="Critical", labels={"check": "disk", "value": "90"}))


def test_no_condition_matches_everything():
    for nothing in (None, [], (), [[]], [[], []]):
        assert check(nothing) == []
        assert matches(nothing, Subject())
    assert not matches([[], *one("title", "IN", "x")], DISK)  # an empty group does not open the filter


def test_what_is_missing_matches_no_value():
    bare = Subject(data_source_id=0)
    for key in ("title", "description", "severity", "data_source_id", "labels.host"):
        for value in ("*", "", "0", "/.*/", "cidr:0.0.0.0/0", "num:le:0"):
            assert not matches(one(key, "IN", value), bare)
            assert matches(one(key, "NOTIN", value), bare)


def test_the_flat_form_is_one_group():
    flat = [{"key": "severity", "oper": "IN", "vals": ["Critical"]}, {"key": "labels.host", "oper": "NOTIN", "vals": ["10.0.0.8"]}]
    assert matches(flat, DISK)
    assert not matches(flat, Subject(severity="Critical", labels={"host": "10.0.0.8"}))
    assert [error.path for error in check([{"key": "x", "oper": "IN", "vals": ["a"]}], "if")] == ["if[0].key"]


def test_numbers_are_exact_and_infinite_ones_compare():
    big = Subject(labels={"v": "9007199254740993"})
    assert matches(one("labels.v", "IN", "num:gt:9007199254740992"), big)
    assert matches(one("labels.v", "IN", "num:gt:1e999"), Subject(labels={"v": "+Inf"}))
    assert matches(one("labels.v", "IN", "num:lt:-1"), Subject(labels={"v": "-Inf"}))
    for odd in ("NaN", "0x10", "1_000", "٣", "1e9999", "", "95%", "9" * 100):
        assert not matches(one("labels.v", "IN", "num:ge:0", "num:lt:0"), Subject(labels={"v": odd})), odd


def test_addresses_in_other_clothes():
    assert matches(one("labels.ip", "IN", "cidr:10.0.0.0/8"), Subject(labels={"ip": "::ffff:10.1.2.3"}))
    assert matches(one("labels.ip", "IN", "cidr:2001:db8::/32"), Subject(labels={"ip": "2001:DB8:0:0::1"}))
    for odd in ("10.0.0.1:9100", "010.0.0.1", "fe80::1%eth0", "10.0.0", "", "167772161"):
        assert not matches(one("labels.ip", "IN", "cidr:0.0.0.0/0", "cidr:::/0"), Subject(labels={"ip": odd})), odd


def test_a_lone_surrogate_neither_raises_nor_hides_the_rest():
    odd = Subject(title="disk \ud800 full")
    assert matches(one("title", "IN", "/full/"), odd)
    assert matches(one("title", "IN", "disk ? full"), odd)


def test_an_expression_that_is_dear_elsewhere_is_cheap_here():
    assert not matches(one("title", "IN", "/(a+)+$/", "*a*a*a*a*a*a*a*b"), Subject(title="a" * 2000 + "c"))


def test_equal_filters_share_one_compiled_form():
    assert compile(one("title", "IN", "/x/")) is compile([({"key": "title", "oper": "IN", "vals": ("/x/",), "other": 1},)])


# --- Errors that a person can act on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "filters, path, says",
    [
        ("x", "f", "list of groups"),
        ({"key": "title"}, "f", "list of groups"),
        ([5], "f[0]", "list of conditions"),
        ([[5]], "f[0][0]", "condition"),
        (
            [[], [{"key": "title", "oper": "IN", "vals": ["a"]}, {"key": "titel", "oper": "IN", "vals": ["a"]}]],
            "f[1][1].key",
            "labels.<name>",
        ),
        (one("labels.", "IN", "a"), "f[0][0].key", "labels.<name>"),
        ([[{"oper": "IN", "vals": ["a"]}]], "f[0][0].key", "labels.<name>"),
        (one("title", "in", "a"), "f[0][0].oper", "IN or NOTIN"),
        (one("title", ["IN"], "a"), "f[0][0].oper", "IN or NOTIN"),
        ([[{"key": "title", "oper": "IN", "vals": "a"}]], "f[0][0].vals", "list"),
        (one("title", "IN"), "f[0][0].vals", "at least one"),
        (one("title", "IN", "a", None), "f[0][0].vals[1]", "text"),
        (one("title", "IN", True), "f[0][0].vals[0]", "text"),
        (one("title", "IN", "x" * 2049), "f[0][0].vals[0]", "2048"),
        (one("title", "IN", "/a(/"), "f[0][0].vals[0]", "missing )"),
        (one("title", "IN", "/(?=a)/"), "f[0][0].vals[0]", "look-around"),
        (one("title", "IN", "/(a)\\1/"), "f[0][0].vals[0]", "RE2"),
        (one("title", "IN", "//"), "f[0][0].vals[0]", "write *"),
        (one("title", "IN", "/" + "a" * 1001 + "/"), "f[0][0].vals[0]", "1000"),
        (one("title", "IN", "/((a{100}){100}){10}/"), "f[0][0].vals[0]", "RE2"),
        (one("title", "IN", "cidr:10.0.0.1"), "f[0][0].vals[0]", "10.0.0.0/24"),
        (one("title", "IN", "cidr:10.0.0.0/33"), "f[0][0].vals[0]", "prefix"),
        (one("title", "IN", "cidr:10.0.0.0/255.0.0.0"), "f[0][0].vals[0]", "prefix"),
        (one("title", "IN", "cidr:10.0.0.*"), "f[0][0].vals[0]", "prefix"),
        (one("title", "IN", "num:eq:1"), "f[0][0].vals[0]", "num:ge:90"),
        (one("title", "IN", "num:gt:many"), "f[0][0].vals[0]", "num:ge:90"),
        (one("title", "IN", "num:gt:inf"), "f[0][0].vals[0]", "num:ge:90"),
        (one("title", "IN", "num:gt"), "f[0][0].vals[0]", "num:ge:90"),
        (one("title", "IN", "/a\ud800/"), "f[0][0].vals[0]", "surrogate"),
        (one("title", "IN", "a\0b"), "f[0][0].vals[0]", "NUL"),
        (one("labels.\0", "IN", "a"), "f[0][0].key", "labels.<name>"),
        (one("title", "IN", 10**5000), "f[0][0].vals[0]", "text"),
        (one("title", "IN", *["a"] * 501), "f[0][0].vals", "500"),
        ([one("title", "IN", "a")[0]] * 51, "f", "50"),
        ([one("title", "IN", "a")[0] * 51], "f[0]", "50"),
        ([one("title", "IN", *["a"] * 500)[0]] * 5, "f", "2000"),
    ],
)
def test_a_bad_filter_says_where_and_what(filters, path, says):
    (error,) = check(filters, "f")
    assert error.path == path
    assert says in error.message
    with pytest.raises(FilterError) as raised:
        compile(filters, "f")
    assert str(raised.value) == str(error)


def test_all_problems_are_told_at_once():
    bad = [[{"key": "nope", "oper": "IS", "vals": ["/a(/", "ok", "cidr:x"]}], "x"]
    assert [error.path for error in check(bad)] == [
        "filters[0][0].key",
        "filters[0][0].oper",
        "filters[0][0].vals[0]",
        "filters[0][0].vals[2]",
        "filters[1]",
    ]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["title", "IN", "/(/", "num:gt:1", "*"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["key", "oper", "vals", "start", "end", "repeat", "cal_id", "is_off"]) | st.text(max_size=3), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_either_checked_or_refused(value):
    for errors, use in (
        (check(value), lambda: matches(value, DISK)),
        (check_time(value), lambda: in_time(value, datetime(2026, 3, 1, tzinfo=UTC), "UTC")),
    ):
        if errors:
            with pytest.raises(FilterError):
                use()
        else:
            assert use() in (True, False)


# --- A second reading of the filter language, in another style --------------------------------------------------------------


def oracle_wildcard(pattern, text):
    """By recursion on the first character of the pattern."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return any(oracle_wildcard(pattern[1:], text[skipped:]) for skipped in range(len(text) + 1))
    return bool(text) and pattern[0] in ("?", text[0]) and oracle_wildcard(pattern[1:], text[1:])


def oracle_ipv4(text):
    parts = text.split(".")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and str(int(part)) == part and int(part) < 256 for part in parts):
        return None
    return sum(int(part) << shift for part, shift in zip(parts, (24, 16, 8, 0), strict=True))


def oracle_value(form, text):
    """`form` is what the generator meant, not its spelling."""
    kind, *meant = form
    if kind == "exact":
        return meant[0] == text
    if kind == "wild":
        return oracle_wildcard(meant[0], text)
    if kind == "regex":
        return re.search(meant[0], text) is not None
    if kind == "cidr":
        address = oracle_ipv4(text)
        return address is not None and address >> (32 - meant[1]) == meant[0] >> (32 - meant[1])
    try:
        number = float(text)
    except ValueError:
        return False
    return {"gt": number > meant[1], "ge": number >= meant[1], "lt": number < meant[1], "le": number <= meant[1]}[meant[0]]


def spelled(form):
    kind, *meant = form
    if kind == "regex":
        return f"/{meant[0]}/"
    if kind == "cidr":
        return f"cidr:{'.'.join(str(meant[0] >> shift & 255) for shift in (24, 16, 8, 0))}/{meant[1]}"
    if kind == "num":
        return f"num:{meant[0]}:{meant[1]}"
    return meant[0]


WORDS = st.text("abé.", max_size=4)
ADDRESSES = st.sampled_from([0, 0x0A000001, 0x0A000080, 0x0A0000FF, 0x0A010000, 0xC0A80101, 0xFFFFFFFF])
DOTTED = ADDRESSES.map(lambda n: f"{n >> 24}.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}")
VALUES = WORDS | DOTTED | st.integers(-3, 3).map(str) | st.sampled_from(["-0.5", "1.0", "2.5e0", "x\ny"])
# A part of the syntax that RE2 and Python's re read alike.
REGEXES = st.recursive(
    st.sampled_from(["a", "b", "é", "[ab]", "[^a]", r"\.", "^", r"\d", "."]),
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})")
        | inner.map(lambda piece: f"(?:{piece})*")
        | inner.map(lambda piece: f"(?:{piece})?")
    ),
    max_leaves=6,
)
FORMS = st.one_of(
    VALUES.map(lambda word: ("exact", word)),
    st.text("ab.*?", min_size=1, max_size=6).filter(lambda p: "*" in p or "?" in p).map(lambda p: ("wild", p)),
    REGEXES.map(lambda p: ("regex", p)),
    st.tuples(st.just("cidr"), ADDRESSES, st.integers(0, 32)),
    st.tuples(st.just("num"), st.sampled_from(["gt", "ge", "lt", "le"]), st.sampled_from([-2, -0.5, 0, 1, 1.0, 2.5, 3])),
)
KEYS = ["title", "description", "severity", "alert_severity", "incident_severity", "data_source_id", "labels.a", "labels.b", "labels.c.d"]
CONDITIONS = st.tuples(st.sampled_from(KEYS), st.booleans(), st.lists(FORMS, min_size=1, max_size=3))
SUBJECTS = st.builds(
    Subject,
    title=VALUES,
    description=VALUES,
    severity=st.sampled_from(["Critical", "Warning", "Info", ""]),
    data_source_id=st.integers(0, 3) | st.sampled_from(["", "1"]),
    labels=st.dictionaries(st.sampled_from(["a", "b", "c.d"]), VALUES),
)


def oracle(groups, subject):
    if not any(groups):
        return True
    facts = {"title": subject.title, "description": subject.description, "severity": subject.severity}
    facts |= {
        "alert_severity": subject.severity,
        "incident_severity": subject.severity,
        "data_source_id": str(subject.data_source_id or ""),
    }
    facts = {key: value for key, value in facts.items() if value != ""}
    facts |= {f"labels.{name}": value for name, value in subject.labels.items()}
    for group in groups:
        met = 0
        for key, wanted, forms in group:
            hits = [key in facts and oracle_value(form, facts[key]) for form in forms]
            met += any(hits) if wanted else not any(hits)
        if group and met == len(group):
            return True
    return False


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(st.lists(st.lists(CONDITIONS, max_size=3), max_size=3), SUBJECTS)
@example([[("labels.a", True, [("wild", "*")])]], Subject(labels={"a": ""}))
def test_filters_agree_with_the_oracle(groups, subject):
    filters = [
        [{"key": key, "oper": "IN" if wanted else "NOTIN", "vals": [spelled(form) for form in forms]} for key, wanted, forms in group]
        for group in groups
    ]
    assert check(filters) == []
    assert matches(filters, subject) is oracle(groups, subject)


# --- Time windows ----------------------------------------------------------------------------------------------------------


def at(text, zone="Asia/Shanghai"):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone))


OFFICE = [{"start": "09:00", "end": "18:00", "repeat": [1, 2, 3, 4, 5]}]
NIGHT = [{"start": "22:00", "end": "06:00", "repeat": [5]}]


@pytest.mark.parametrize(
    "windows, when, holds",
    [
        (None, "2026-03-04 03:00", True),
        ([], "2026-03-04 03:00", True),
        (OFFICE, "2026-03-04 08:59:59", False),  # a Wednesday
        (OFFICE, "2026-03-04 09:00", True),
        (OFFICE, "2026-03-04 17:59:59", True),
        (OFFICE, "2026-03-04 18:00", False),
        (OFFICE, "2026-03-07 12:00", False),  # Saturday
        (NIGHT, "2026-03-06 22:00", True),  # Friday evening
        (NIGHT, "2026-03-07 05:59", True),  # still Friday's night
        (NIGHT, "2026-03-07 06:00", False),
        (NIGHT, "2026-03-06 05:00", False),  # Thursday's night
        (NIGHT, "2026-03-07 23:00", False),
        ([{"start": "00:00", "end": "23:59"}], "2026-03-04 23:59:30", True),
        ([{"start": "00:00", "end": "24:00", "repeat": None}], "2026-03-04 23:59:30", True),
        ([{"start": "12:00", "end": "12:00", "repeat": [0]}], "2026-03-02 11:59", True),  # 24 hours from Sunday noon
        ([{"start": "12:00", "end": "12:00", "repeat": [0]}], "2026-03-02 12:00", False),
        ([{"start": "12:00", "end": "12:00", "repeat": [0]}], "2026-03-01 11:59", False),
        ([{"start": "23:59", "end": "23:59", "repeat": [0]}], "2026-03-02 23:58", True),
        ([*OFFICE, *NIGHT], "2026-03-06 23:00", True),
    ],
)
def test_windows(windows, when, holds):
    assert check_time(windows) == []
    assert in_time(windows, at(when).astimezone(UTC), "Asia/Shanghai") is holds
    assert in_time(windows, at(when), ZoneInfo("Asia/Shanghai")) is holds


def test_clock_changes_follow_the_wall():
    early = [{"start": "02:00", "end": "03:00"}]
    berlin = "Europe/Berlin"
    # 29 March 2026: 02:00-03:00 does not exist. 25 October: it happens twice.
    spring = [datetime(2026, 3, 28, 23, tzinfo=UTC) + timedelta(minutes=m) for m in range(24 * 60)]
    autumn = [datetime(2026, 10, 24, 22, tzinfo=UTC) + timedelta(minutes=m) for m in range(25 * 60)]
    assert sum(in_time(early, now, berlin) for now in spring) == 0
    assert sum(in_time(early, now, berlin) for now in autumn) == 120


def test_a_service_calendar_takes_the_day():
    def calendar(cal_id, day):
        assert cal_id == "cn"
        return day not in (date(2026, 10, 1), date(2026, 10, 2))

    def window(**more):
        return [{"start": "20:00", "end": "08:00", "cal_id": "cn", **more}]

    assert not in_time(window(), at("2026-10-01 21:00"), "Asia/Shanghai", calendar)
    assert in_time(window(is_off=True), at("2026-10-01 21:00"), "Asia/Shanghai", calendar)
    assert in_time(window(is_off=True), at("2026-10-03 07:00"), "Asia/Shanghai", calendar)  # the night of the 2nd
    assert not in_time(window(is_off=True), at("2026-10-03 21:00"), "Asia/Shanghai", calendar)
    assert not in_time(window(is_off=True, repeat=[5]), at("2026-10-01 21:00"), "Asia/Shanghai", calendar)  # a Thursday
    (error,) = check_time(window(), "rule.time_filters")
    assert error.path == "rule.time_filters[0].cal_id"
    assert check_time(window(), calendars=True) == []
    with pytest.raises(FilterError):
        in_time(window(), at("2026-10-01 21:00"), "Asia/Shanghai")


@pytest.mark.parametrize(
    "windows, path",
    [
        ({"start": "09:00", "end": "10:00"}, "t"),
        ([5], "t[0]"),
        ([{"end": "10:00"}], "t[0].start"),
        ([{"start": "24:00", "end": "10:00"}], "t[0].start"),
        ([{"start": "09:00", "end": "25:00"}], "t[0].end"),
        ([{"start": "09:00", "end": "9.30"}], "t[0].end"),
        ([{"start": "09:00", "end": "10:00:00"}], "t[0].end"),
        ([{"start": "09:00", "end": 600}], "t[0].end"),
        ([{"start": "09:00", "end": "10:00", "repeat": [7]}], "t[0].repeat"),
        ([{"start": "09:00", "end": "10:00", "repeat": ["1"]}], "t[0].repeat"),
        ([{"start": "09:00", "end": "10:00", "repeat": [True]}], "t[0].repeat"),
        ([{"start": "09:00", "end": "10:00", "repeat": 1}], "t[0].repeat"),
        ([{"start": "09:00", "end": "10:00", "is_off": "yes"}], "t[0].is_off"),
        ([{"start": "09:00", "end": "10:00", "cal_id": 5}], "t[0].cal_id"),
        ([{"start": "09:00", "end": "10:00"}] * 51, "t"),
    ],
)
def test_a_bad_window_says_where(windows, path):
    assert [error.path for error in check_time(windows, "t")] == [path]


@pytest.mark.parametrize("name", ["Mars/Base", "", "../etc/passwd", "Europe", "Asia/Shanghai\0", None, 8, "/usr"])
def test_an_unknown_zone_is_named(name):
    with pytest.raises(FilterError, match="time_zone"):
        in_time(OFFICE, datetime(2026, 3, 4, tzinfo=UTC), name)


def test_a_time_without_a_zone_is_a_programming_error():
    with pytest.raises(ValueError, match="time zone"):
        in_time(OFFICE, datetime(2026, 3, 4), "UTC")


CLOCKS = st.sampled_from(["00:00", "00:01", "02:30", "09:00", "18:00", "22:00", "23:58", "23:59"]) | st.tuples(
    st.integers(0, 23), st.integers(0, 59)
).map(lambda hm: f"{hm[0]:02}:{hm[1]:02}")
WINDOW = st.fixed_dictionaries({"start": CLOCKS, "end": CLOCKS, "repeat": st.lists(st.integers(0, 6), max_size=3)})
ZONES = ["UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]


def oracle_table(windows):
    """Every minute of a week, Sunday 00:00 first, filled in by walking through each window from the day it begins."""
    table = [False] * (7 * 1440)
    for window in windows:
        begin, until = (int(window[name][:2]) * 60 + int(window[name][3:]) for name in ("start", "end"))
        length = (until - begin) % 1440 or 1440
        if window["end"] == "23:59" and length != 1440:
            length += 1
        for weekday in window["repeat"] or range(7):
            for minute in range(length):
                table[(weekday * 1440 + begin + minute) % len(table)] = True
    return table


@settings(max_examples=300, deadline=None)
@given(
    st.lists(WINDOW, min_size=1, max_size=3),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
    st.lists(st.integers(0, 14 * 1440), min_size=5, max_size=25),
)
def test_windows_agree_with_the_table(windows, zone, start, steps):
    table = oracle_table(windows)
    for step in steps:
        now = start.replace(tzinfo=UTC) + timedelta(minutes=step)
        wall = now.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
        since_a_sunday = wall - datetime(2023, 1, 1)
        assert in_time(windows, now, zone) is table[int(since_a_sunday.total_seconds() // 60) % len(table)]
