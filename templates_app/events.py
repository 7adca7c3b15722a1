"""The contract of every text: which events are told, and the plain values (the Context) a template may use.

A Context is a dict of plain JSON values, frozen once on a Notification and rendered later, perhaps hours later and on another
machine. So it holds no object, no lazy text and no time object (times are Unix seconds, 0 = not set), and it is bounded: at most
20 alerts and 32 kB of JSON. What differs from one recipient to the next (name, language, links that carry identity) is not frozen
but laid over it when a message is made, by `addressed`.

| event | told when | shape |
| --- | --- | --- |
| triggered | first page of an incident, also after reopen and wake | Context |
| refire | a loop within a layer | Context |
| escalated | first page of a later layer | Context |
| acknowledged, closed | status notices to groups that were told | Context |
| bundle | several pages to one address in one message | BundleContext |
| code | a verification code | CodeContext |
| test | somebody pressed "send a test" | TestContext |
| numbers | other numbers call the person than they were told | NumbersContext |
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, TypedDict, cast

TRIGGERED: Final = "triggered"
REFIRE: Final = "refire"
ESCALATED: Final = "escalated"
ACKNOWLEDGED: Final = "acknowledged"
CLOSED: Final = "closed"
BUNDLE: Final = "bundle"
CODE: Final = "code"
TEST: Final = "test"
NUMBERS: Final = "numbers"

INCIDENT_EVENTS: Final = (TRIGGERED, REFIRE, ESCALATED, ACKNOWLEDGED, CLOSED)
EVENTS: Final = (*INCIDENT_EVENTS, BUNDLE, CODE, TEST, NUMBERS)

MAX_ALERTS: Final = 20
MAX_BYTES: Final = 32_768
MAX_URL: Final = 2_048

Language = Literal["zh-hans", "en"]
LANGUAGES: Final = ("zh-hans", "en")


class Person(TypedDict):
    id: int
    name: str
    email: str


class Responder(Person):
    assigned_at: int
    acknowledged_at: int  # 0 = has not acknowledged


class AssignedTo(TypedDict):
    rule_name: str  # empty when people were assigned directly
    layer_idx: int
    type: str  # assign | reassign | escalate | reopen


class WorkspaceRef(TypedDict):
    id: int
    name: str


class AlertContext(TypedDict):
    title: str
    description: str
    severity: str
    status: str
    start_time: int
    last_time: int
    end_time: int
    labels: dict[str, str]


class Image(TypedDict):
    src: str
    alt: str
    href: str


class Link(TypedDict):
    title: str
    url: str


class Happened(TypedDict):
    at: int
    texts: dict[str, str]  # in each of LANGUAGES; `addressed` adds the reader's as `text`


class Told(TypedDict):
    at: int
    name: str  # a person, a group's name, or a masked address
    by: str  # the channel's name; empty where the channel is who was told
    state: str  # of the delivery: sent, delivered, answered, failed, ...


class Planned(TypedDict):
    at: int
    event: str  # triggered, escalated, refire, or catch_all
    layer_idx: int


class Recipient(TypedDict):
    name: str
    language: str
    time_zone: str


class Context(TypedDict):
    """Everything a text about one incident may use; the reference product's root object under Jinja names."""

    event: str
    id: str  # the API's id (24 hex digits)
    num: str  # short code people say aloud
    title: str  # one line
    description: str
    detail_url: str
    actions_url: str  # the recipient's own signed page; empty in group messages
    severity: str  # Critical | Warning | Info
    status: str  # the three, or Ok
    progress: str  # Triggered | Processing | Closed
    start_time: int
    last_time: int
    end_time: int
    ack_time: int
    close_time: int
    snoozed_before: int
    creator: Person | None
    closer: Person | None
    acknowledger: Person | None
    assigned_to: AssignedTo | None
    responders: list[Responder]
    workspace: WorkspaceRef
    labels: dict[str, str]
    alert_count: int
    alerts: list[AlertContext]
    alerts_left_out: int
    fire_type: str  # fire | refire
    layer_idx: int
    possible_repeat: bool
    is_flapping: bool
    impact: str
    root_cause: str
    resolution: str
    images: list[Image]
    links: list[Link]
    timeline: list[Happened]  # the last of what happened, oldest first; these three only where somebody is told by e-mail
    told: list[Told]
    plan: list[Planned]  # what comes next if nobody reacts
    recipient: Recipient | None


class BundledIncident(TypedDict):
    id: str
    num: str
    title: str
    severity: str
    event: str
    url: str
    possible_repeat: bool


class BundleContext(TypedDict):
    event: str
    incidents: list[BundledIncident]
    left: int  # how many more wait for the next message
    recipient: Recipient | None


class CodeContext(TypedDict):
    event: str
    code: str
    minutes: int
    recipient: Recipient | None


class TestContext(TypedDict):
    event: str
    channel_name: str
    sender_name: str
    sent_at: int
    recipient: Recipient | None


class NumbersContext(TypedDict):
    event: str
    numbers: list[str]  # as people read them
    card_url: str
    recipient: Recipient | None


AnyContext = Context | BundleContext | CodeContext | TestContext | NumbersContext | Mapping[str, Any]

# Values that are useless when shortened: left out whole when they are too long, never cut.
_WHOLE: Final = frozenset({"detail_url", "actions_url", "url", "src", "href"})
# Tightened one after the other until the Context fits: (own texts, texts of alerts and labels, items of a list, labels), in characters.
# The last step fits whatever came in: 30 texts of 128 characters at six bytes a character, and two addresses of 2 kB.
_STEPS: Final = (
    (2_048, 2_048, MAX_ALERTS, 50),
    (2_048, 512, MAX_ALERTS, 50),
    (1_024, 256, MAX_ALERTS, 30),
    (1_024, 128, 10, 20),
    (512, 64, 5, 10),
    (256, 32, 1, 5),
    (128, 16, 0, 2),
)
_TITLE: Final = 512
_KEY: Final = 128


def language_of(code: str | None) -> Language:
    """The language we have texts in for any language code: every Chinese is `zh-hans`, everything else `en`."""
    return "zh-hans" if (code or "").lower().startswith("zh") else "en"


def build(
    event: str,
    *,
    id: str,
    num: str,
    title: str,
    severity: str,
    progress: str,
    detail_url: str,
    start_time: datetime | int,
    status: str = "",
    description: str = "",
    last_time: datetime | int | None = None,
    end_time: datetime | int | None = None,
    ack_time: datetime | int | None = None,
    close_time: datetime | int | None = None,
    snoozed_before: datetime | int | None = None,
    creator: Mapping[str, Any] | None = None,
    closer: Mapping[str, Any] | None = None,
    acknowledger: Mapping[str, Any] | None = None,
    assigned_to: Mapping[str, Any] | None = None,
    responders: Iterable[Mapping[str, Any]] = (),
    workspace: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    alerts: Iterable[Mapping[str, Any]] = (),
    alert_count: int | None = None,
    layer_idx: int = 0,
    is_flapping: bool = False,
    impact: str = "",
    root_cause: str = "",
    resolution: str = "",
    images: Iterable[Mapping[str, Any]] = (),
    links: Iterable[Mapping[str, Any]] = (),
    timeline: Sequence[Happened] = (),
    told: Sequence[Told] = (),
    plan: Sequence[Planned] = (),
) -> Context:
    """A whole, bounded Context; times may be aware datetimes or Unix seconds, absent values get their empty form.

    `alert_count` is how many alerts the incident has when `alerts` is only the first of them. Raises ValueError for an unknown event.
    """
    if event not in INCIDENT_EVENTS:
        raise ValueError(f"unknown event {event!r}; known are {', '.join(INCIDENT_EVENTS)}")
    given = [_alert(alert) for alert in alerts]
    context: Context = {
        "event": event,
        "id": id,
        "num": num,
        "title": title,
        "description": description,
        "detail_url": detail_url,
        "actions_url": "",
        "severity": severity,
        "status": status or severity,
        "progress": progress,
        "start_time": _seconds(start_time),
        "last_time": _seconds(last_time),
        "end_time": _seconds(end_time),
        "ack_time": _seconds(ack_time),
        "close_time": _seconds(close_time),
        "snoozed_before": _seconds(snoozed_before),
        "creator": _person(creator),
        "closer": _person(closer),
        "acknowledger": _person(acknowledger),
        "assigned_to": None
        if assigned_to is None
        else {
            "rule_name": str(assigned_to.get("rule_name") or ""),
            "layer_idx": int(assigned_to.get("layer_idx") or 0),
            "type": str(assigned_to.get("type") or "assign"),
        },
        "responders": [_responder(person) for person in responders],
        "workspace": {"id": int((workspace or {}).get("id") or 0), "name": str((workspace or {}).get("name") or "")},
        "labels": {str(key): str(value) for key, value in (labels or {}).items()},
        "alert_count": max(len(given), alert_count or 0),
        "alerts": given,
        "alerts_left_out": 0,
        "fire_type": "refire" if event == REFIRE else "fire",
        "layer_idx": layer_idx,
        "possible_repeat": False,
        "is_flapping": is_flapping,
        "impact": impact,
        "root_cause": root_cause,
        "resolution": resolution,
        "images": [{"src": str(i.get("src") or ""), "alt": str(i.get("alt") or ""), "href": str(i.get("href") or "")} for i in images],
        "links": [{"title": str(link.get("title") or ""), "url": str(link.get("url") or "")} for link in links],
        "timeline": list(timeline),
        "told": list(told),
        "plan": list(plan),
        "recipient": None,
    }
    return bounded(context)


def build_bundle(incidents: Sequence[Mapping[str, Any]], left: int = 0) -> BundleContext:
    """The Context of one message that carries several pages; each incident needs id, num, title, severity, event, url, possible_repeat.

    Titles are shortened to 160 characters; how many incidents fit one message is decided where the text is made (`choose.render_bundle`).
    """
    return {
        "event": BUNDLE,
        "incidents": [
            {
                "id": _clean(str(i["id"])),
                "num": _clean(str(i["num"])),
                "title": _cut(" ".join(_clean(str(i["title"])).split()), 160),
                "severity": _clean(str(i["severity"])),
                "event": _clean(str(i["event"])),
                "url": _whole(_clean(str(i["url"]))),
                "possible_repeat": bool(i.get("possible_repeat")),
            }
            for i in incidents
        ],
        "left": left,
        "recipient": None,
    }


def build_code(code: str, minutes: int = 10) -> CodeContext:
    """The Context of a verification code that is good for `minutes`."""
    return {"event": CODE, "code": code, "minutes": minutes, "recipient": None}


def build_test(channel_name: str, sender_name: str, sent_at: datetime | int) -> TestContext:
    """The Context of a test message: which channel, who pressed the button, when."""
    return {
        "event": TEST,
        "channel_name": _cut(_clean(channel_name), 200),
        "sender_name": _cut(_clean(sender_name), 200),
        "sent_at": _seconds(sent_at),
        "recipient": None,
    }


def build_numbers(numbers: Sequence[str], card_url: str) -> NumbersContext:
    """The Context of the word that these numbers call somebody from now on, and where their contact card is."""
    return {
        "event": NUMBERS,
        "numbers": [_cut(_clean(number), 40) for number in numbers[:100]],
        "card_url": _whole(card_url),
        "recipient": None,
    }


def addressed(
    context: Mapping[str, Any], *, recipient: Recipient | None = None, actions_url: str = "", possible_repeat: bool = False
) -> dict[str, Any]:
    """A copy of a frozen Context for one message: who reads it, the reader's own link, and whether an earlier try may have arrived."""
    result = dict(context, recipient=recipient)
    if actions_url:
        result["actions_url"] = actions_url
    if context.get("timeline"):
        language = language_of(recipient["language"] if recipient else "")
        result["timeline"] = [{**line, "text": line["texts"].get(language, "")} for line in context["timeline"]]
    if "possible_repeat" in context:
        result["possible_repeat"] = bool(context["possible_repeat"]) or possible_repeat
    return result


def bounded(context: Context) -> Context:
    """The same Context within its limits: 20 alerts, 32 kB of JSON, no NUL and no lone surrogate; `alerts_left_out` says what is missing.

    Long texts of alerts and labels are shortened first, then the number of alerts, and the incident's own texts last.
    """
    result = context
    for texts, small, items, labels in _STEPS:
        result = _shortened(context, texts, small, items, labels)
        if size_of(result) <= MAX_BYTES:
            break
    return result


def size_of(context: Mapping[str, Any]) -> int:
    """How many bytes a Context takes as JSON in UTF-8, the way it is stored."""
    text = _encode(context)
    return len(text) if text.isascii() else len(text.encode())


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _shortened(context: Context, texts: int, small: int, items: int, labels: int) -> Context:
    given, result = cast(Mapping[str, Any], context), dict[str, Any]()
    for key in Context.__annotations__:
        value = given[key]
        if key == "title":
            result[key] = _cut(" ".join(_clean(value).split()), min(_TITLE, texts))  # one line: a heading in a title is a forged heading
        elif isinstance(value, str):
            result[key] = _whole(_clean(value)) if key in _WHOLE else _cut(_clean(value), texts)
        elif key == "labels":
            result[key] = _labels(value, small, labels)
        else:
            result[key] = _nested(value, small, items, labels)
    result["alerts_left_out"] = result["alert_count"] - len(result["alerts"])
    # A link or an image without its address is of no use to anybody.
    result["links"] = [link for link in result["links"] if link["url"]]
    result["images"] = [image for image in result["images"] if image["src"]]
    return cast(Context, result)


def _nested(value: Any, small: int, items: int, labels: int) -> Any:
    if value is None or type(value) is int:  # most are
        return value
    if isinstance(value, str):
        return _cut(_clean(value), small)
    if isinstance(value, list):
        return [_nested(item, small, items, labels) for item in value[: min(items, MAX_ALERTS)]]
    if isinstance(value, dict):
        return {
            key: _labels(item, small, labels)
            if key == "labels"
            else _whole(_clean(item))
            if key in _WHOLE
            else _nested(item, small, items, labels)
            for key, item in value.items()
        }
    return value


def _labels(labels: Mapping[str, str], small: int, count: int) -> dict[str, str]:
    return {_cut(_clean(key), min(_KEY, small)): _cut(_clean(value), small) for key, value in list(labels.items())[:count]}


def _clean(text: str) -> str:
    """Text that PostgreSQL and every provider take: no NUL, no half of a surrogate pair."""
    text = text.replace("\x00", "")
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _whole(url: str) -> str:
    return url if len(url if url.isascii() else url.encode()) <= MAX_URL else ""


def _seconds(moment: datetime | int | None) -> int:
    if moment is None:
        return 0
    return int(moment.timestamp()) if isinstance(moment, datetime) else int(moment)


def _person(person: Mapping[str, Any] | None) -> Person | None:
    if person is None:
        return None
    return {"id": int(person.get("id") or 0), "name": str(person.get("name") or ""), "email": str(person.get("email") or "")}


def _responder(person: Mapping[str, Any]) -> Responder:
    return {
        "id": int(person.get("id") or 0),
        "name": str(person.get("name") or ""),
        "email": str(person.get("email") or ""),
        "assigned_at": _seconds(person.get("assigned_at")),
        "acknowledged_at": _seconds(person.get("acknowledged_at")),
    }


def _alert(alert: Mapping[str, Any]) -> AlertContext:
    return {
        "title": str(alert.get("title") or ""),
        "description": str(alert.get("description") or ""),
        "severity": str(alert.get("severity") or ""),
        "status": str(alert.get("status") or alert.get("severity") or ""),
        "start_time": _seconds(alert.get("start_time")),
        "last_time": _seconds(alert.get("last_time")),
        "end_time": _seconds(alert.get("end_time")),
        "labels": {str(key): str(value) for key, value in (alert.get("labels") or {}).items()},
    }
