"""The functions a template may use besides Jinja's own: the reference product's helpers under Jinja names, and the marks of a format.

| name | gives |
| --- | --- |
| `date(ts, "%Y-%m-%d %H:%M:%S")` | a moment in the reader's time zone; Go layouts (`2006-01-02 15:04`) work too; "" for 0 |
| `ago(ts)`, `duration(seconds)` | how long ago, how long, in words |
| `fire_reason()` | why this message comes: `[Triggered]`, `[Reminder]`, `[Escalated, level 2]`, with `possible repeat` |
| `severity_name(x)`, `progress_name(x)`, `event_name(x)` | the word in the reader's language |
| `color_severity(x)`, `severity_color(x)` | the coloured word; the colour alone (`#d93026`) |
| `alert_labels("key")`, `join_alert_labels("key", ", ")` | the different values of a label over incident and alerts, in order |
| `json_get(text, "a.0.b")` | a value out of JSON text; `#`, `#.x`, `#(k==v).x`, `#(k==v)#.x` as in gjson |
| `in_list(x, "a", "b")` | whether x is one of them |
| `to_html(a, b)` | the first of its arguments that is not empty |
| `truncate_bytes(text, 200)` | shortened to bytes of UTF-8, for providers that count bytes |
| `one_line(text)` | line breaks and runs of spaces as one space |
| `bold(x)`, `link(words, url)`, `url(x)` | in the format's own markup; a link that is not http(s) is only its words |
| `ack_url()` | the page on which Acknowledge is preselected |
| `tojson(x)` | JSON; in the json format it is written as it is |

All of them are filters as well (`start_time|date`), but those that read the whole incident.
"""

import functools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from django.utils.translation import gettext as _
from jinja2 import pass_context
from jinja2.runtime import Context, Undefined
from markupsafe import Markup

from templates_app.formats import SEVERITY_COLORS, safe_url
from templates_app.meter import MAX_ITEMS, Refused, escaped, meter, safe, short, text_of, weight
from templates_app.sandbox import ENVIRONMENT as ENVIRONMENT  # with the helpers in it: what render.py uses
from templates_app.vocabulary import is_no_number
from templates_app.wording import ago_text, duration_text, word

_DAYS: Final = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_MONTHS: Final = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
# strftime itself is not asked: glibc takes a width (%999999999Y) and fills it.
_FIELDS: Final[dict[str, Callable[[datetime], str]]] = {
    "Y": lambda t: f"{t.year:04}",
    "y": lambda t: f"{t.year % 100:02}",
    "m": lambda t: f"{t.month:02}",
    "d": lambda t: f"{t.day:02}",
    "H": lambda t: f"{t.hour:02}",
    "I": lambda t: f"{t.hour % 12 or 12:02}",
    "M": lambda t: f"{t.minute:02}",
    "S": lambda t: f"{t.second:02}",
    "p": lambda t: "AM" if t.hour < 12 else "PM",
    "j": lambda t: f"{t.timetuple().tm_yday:03}",
    "a": lambda t: _DAYS[t.weekday()][:3],
    "A": lambda t: _DAYS[t.weekday()],
    "b": lambda t: _MONTHS[t.month - 1][:3],
    "B": lambda t: _MONTHS[t.month - 1],
    "z": lambda t: t.strftime("%z"),
    "Z": lambda t: t.tzname() or "",
    "F": lambda t: f"{t.year:04}-{t.month:02}-{t.day:02}",
    "T": lambda t: f"{t.hour:02}:{t.minute:02}:{t.second:02}",
    "%": lambda t: "%",
}
_FIELD: Final = re.compile(r"%(.)", re.DOTALL)
_GO: Final = re.compile(r"2006|01|02|15|04|05|Jan|Monday|Mon|MST|-0700|PM|03")
_GO_FIELDS: Final = {
    "2006": "%Y",
    "01": "%m",
    "02": "%d",
    "15": "%H",
    "03": "%I",
    "04": "%M",
    "05": "%S",
    "Jan": "%b",
    "Mon": "%a",
    "Monday": "%A",
    "MST": "%Z",
    "-0700": "%z",
    "PM": "%p",
}


@functools.lru_cache(128)
def _layout(layout: str) -> str:
    return layout if "%" in layout else _GO.sub(lambda m: _GO_FIELDS[m[0]], layout)


def date(ts: Any, layout: Any = "%Y-%m-%d %H:%M:%S") -> str:
    """A moment (Unix seconds) in the reader's time zone; arguments in the reference's order (layout first) are understood."""
    if isinstance(ts, str) and not isinstance(layout, str):
        ts, layout = layout, ts
    seconds = _number(ts)
    if not seconds:
        return ""
    layout = text_of(layout)
    if len(layout) > 200:
        raise Refused(_("the layout of a date has at most 200 characters"))
    meter().pay(8 + (len(layout) >> 1))
    try:
        moment = datetime.fromtimestamp(seconds, UTC).astimezone(meter().zone)
    except (OverflowError, ValueError, OSError):
        return ""
    return _FIELD.sub(lambda m: _FIELDS[m[1]](moment) if m[1] in _FIELDS else m[0], _layout(layout))


def ago(ts: Any) -> str:
    """How long ago a moment (Unix seconds) was, in the reader's language; "" for 0."""
    seconds = _number(ts)
    return ago_text(int(meter().now - seconds), meter().language) if seconds else ""


def duration(seconds: Any) -> str:
    """A length of time in seconds, in the reader's language."""
    return duration_text(int(_number(seconds)), meter().language)


def name(key: Any) -> str:
    """The word for a severity, progress, event or state of a message in the reader's language."""
    return word(text_of(key), meter().language)


@pass_context
def fire_reason(context: Context, *ignored: Any) -> str:
    """Why this message comes, in brackets."""
    meter().pay(8)
    language = meter().language
    event = text_of(context.get("event"))
    parts = [word(event, language)]
    if event == "escalated":
        level = int(_number(context.get("layer_idx"))) + 1
        parts[0] += f"到第 {level} 层" if language == "zh-hans" else f" to level {level}"
    if context.get("possible_repeat"):
        parts.append(word("possible_repeat", language))
    return f"【{'，'.join(parts)}】" if language == "zh-hans" else f"[{', '.join(parts)}]"


def color_severity(severity: Any) -> Markup:
    """The severity's word in its colour, where the format has colours."""
    key = text_of(severity)
    return safe(meter().format.color(escaped(word(key, meter().language)), key))


def severity_color(severity: Any) -> str:
    """The colour of a severity as `#rrggbb`."""
    return SEVERITY_COLORS.get(text_of(severity), "#5f6368")


@pass_context
def alert_labels(context: Context, *args: Any) -> list[str]:
    """The different values of one label over the alerts and the incident, in the order they came."""
    key = text_of(args[-1] if args else "")
    sources = [alert.get("labels") for alert in context.get("alerts") or () if isinstance(alert, dict)]
    found: dict[str, None] = {}
    for labels in [*sources, context.get("labels")]:
        meter().pay(2)
        if isinstance(labels, dict) and labels.get(key) not in (None, ""):
            found[text_of(labels[key])] = None
    return list(found)


@pass_context
def join_alert_labels(context: Context, key: Any, between: Any = ", ") -> str:
    """The values of `alert_labels` as one text."""
    return short(text_of(between).join(alert_labels(context, key)))


def json_get(text: Any, path: Any) -> Any:
    """A value out of JSON text by a path as in gjson; "" where the text is not JSON or the path leads nowhere."""
    source = text if isinstance(text, (dict, list)) else short(text_of(text))
    meter().pay(len(source) >> 3 if isinstance(source, str) else weight(source))
    try:
        value = json.loads(source) if isinstance(source, str) else source
    except (ValueError, RecursionError):
        return ""
    weight(value)
    found = _walk(value, _path(text_of(path)))
    return "" if found is None else found


def _path(path: str) -> list[str]:
    """The parts of a path; a query in parentheses keeps its dots."""
    if len(path) > 1_000:
        raise Refused(_("a path has at most 1,000 characters"))
    parts = [""]
    inside = 0
    for char in path:
        inside += (char == "(") - (char == ")")
        if char == "." and inside <= 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _walk(value: Any, parts: list[str]) -> Any:
    for index, part in enumerate(parts):
        meter().pay(1)
        if isinstance(value, dict):
            value = value.get(part)
        elif not isinstance(value, list):
            return None
        elif part == "#":
            rest = parts[index + 1 :]
            return len(value) if not rest else _each(value, rest)
        elif part.startswith("#("):
            hits = _hits(value, part)
            if part.endswith("#"):
                return _each(hits, parts[index + 1 :])
            value = hits[0] if hits else None
        else:
            value = value[int(part)] if part.isdecimal() and len(part) < 6 and int(part) < len(value) else None
        if value is None:
            return None
    return value


def _hits(items: list[Any], query: str) -> list[Any]:
    """The objects of a list that `#(key==value)` or `#(key!=value)` asks for; taken apart by hand, for no regular expression does it
    in linear time."""
    inner = query[2:].rstrip("#").removesuffix(")")
    equal = "!=" not in inner
    key, _sign, wanted = inner.partition("==" if equal else "!=")
    path, wanted = key.strip().split("."), wanted.strip().strip('"')
    meter().pay(len(items) * len(path))
    return [item for item in items if isinstance(item, dict) and (text_of(_walk(item, path)) == wanted) is equal]


def _each(items: list[Any], rest: list[str]) -> list[Any]:
    if not rest:
        return items
    meter().pay(len(items))
    found = (_walk(item, rest) for item in items[:MAX_ITEMS])
    return [item for item in found if item is not None]


def in_list(value: Any, *choices: Any) -> bool:
    """Whether the value is one of the choices (given one by one or as a list)."""
    meter().pay(sum(len(choice) if isinstance(choice, (list, tuple)) else 1 for choice in choices))
    flat = [item for choice in choices for item in (choice if isinstance(choice, (list, tuple)) else (choice,))]
    return text_of(value) in [text_of(item) for item in flat]


def to_html(*values: Any) -> Any:
    """The first value that is not empty. It is escaped like any other: the reference needs this function for that, here nothing does."""
    return next((value for value in values if value is not None and not isinstance(value, Undefined) and value != ""), "")


def truncate_bytes(text: Any, limit: Any, end: Any = "…") -> str:
    """The text within `limit` bytes of UTF-8, never cutting a character in two."""
    words, end = text_of(text), text_of(end)
    meter().pay(2 + (len(words) + len(end) >> 5))
    data = words.encode()
    room = max(0, int(limit) - len(end.encode()))
    return words if len(data) <= int(limit) else data[:room].decode("utf-8", "ignore") + end


def one_line(text: Any) -> str:
    """The text on one line."""
    return " ".join(short(text_of(text)).split())


def bold(words: Any) -> Markup:
    """The words in the format's bold; empty stays empty."""
    inner = escaped(words).strip()
    return safe(meter().format.bold(inner)) if inner else safe("")


def link(words: Any, address: Any) -> Markup:
    """A link in the format's markup, only the words where the address is not http(s)."""
    target = _target(address)
    inner = safe(" ".join(escaped(words).split()))  # in no dialect does a link go over the end of a line
    return safe(meter().format.link(inner, target)) if target else inner


def url(address: Any) -> Markup:
    """The address, encoded so that it can stand in any link or attribute; empty where it is not http(s)."""
    target = _target(address)
    return safe(escaped(target) if meter().format.base in ("html", "json") else target)


def _target(address: Any) -> str:
    text = text_of(address)
    meter().pay(1 + (len(text) >> 2))
    return safe_url(text)


@pass_context
def ack_url(context: Context) -> str:
    """The page on which Acknowledge is preselected: the reader's own, else the incident's."""
    target = text_of(context.get("actions_url")) or text_of(context.get("detail_url"))
    return f"{target}{'&' if '?' in target else '?'}ack=1" if target else ""


def tojson(value: Any) -> Any:
    """The value as JSON; in the json format it is written as it is, elsewhere it is words like any other."""
    meter().pay(weight(value))
    text = short(json.dumps(None if isinstance(value, Undefined) else value, ensure_ascii=False, default=text_of))
    return safe(text) if meter().format.base == "json" else text


def _number(value: Any) -> float:
    try:
        return 0.0 if isinstance(value, Undefined) or is_no_number(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return 0.0


_PURE: Final[dict[str, Callable[..., Any]]] = {
    "date": date,
    "ago": ago,
    "duration": duration,
    "severity_name": name,
    "progress_name": name,
    "event_name": name,
    "state_name": name,
    "color_severity": color_severity,
    "severity_color": severity_color,
    "json_get": json_get,
    "in_list": in_list,
    "to_html": to_html,
    "truncate_bytes": truncate_bytes,
    "one_line": one_line,
    "bold": bold,
    "link": link,
    "url": url,
    "tojson": tojson,
}
HELPERS: Final[dict[str, Callable[..., Any]]] = {
    **_PURE,
    "fire_reason": fire_reason,
    "alert_labels": alert_labels,
    "join_alert_labels": join_alert_labels,
    "ack_url": ack_url,
}
ENVIRONMENT.offer(HELPERS, _PURE)
