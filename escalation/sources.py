"""What alert sources send, read into one shape. To add a source: write one function with `@source("name")` and put payloads, as the
source really sends them, into tests/payloads/name/.

A source function gets the parsed JSON body and the query parameters and answers with a list, one item for each alert in the body:
`Parsed`, or `BadEvent` for an alert that cannot be used (the others are taken all the same). It raises BadEvent if the whole body is
of no use. It never touches the database, and whatever the bytes, nothing but BadEvent comes out of `loads` and `parse`.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.utils.translation import gettext as _

STATUSES = ("Critical", "Warning", "Info", "Ok")

MAX_LABELS = 50
MAX_LABEL_KEY = 128
MAX_LABEL_VALUE = 2048
MAX_TITLE = 512
MAX_DESCRIPTION = 2048
MAX_ALERT_KEY = 255
MAX_IMAGES = 20
MAX_IMAGE_TEXT = 128
MAX_IMAGE_URL = 256
MAX_LINKS = 20
MAX_LINK_URL = 2048
MAX_LIST = 500  # events in one POST of the standard door
MAX_ALERTS = 20_000  # alerts in one webhook: more than 16 MiB of real ones hold
MAX_DEPTH = 100
MAX_CONTAINERS = 500_000  # lists and objects in one body, seven times what 16 MiB of real alerts have: empty ones take 30 times their bytes
MAX_MEMBERS = 16  # of one gzip body: each costs a copy of the rest


class BadEvent(ValueError):
    """An event that cannot be taken: `field` names the place in the body, `message` what is wrong and how to mend it.

    `index` is the place in a list of events, None for a body that is one event or is unusable as a whole.
    """

    def __init__(self, field: str, message: str, index: int | None = None) -> None:
        self.field = field
        self.message = message
        self.index = index
        super().__init__(f"{field} {message}")


class BodyTooLarge(BadEvent):
    """The body is over the cap, packed or unpacked; doors answer 413."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """One event as every source is read into it: cleaned, within the caps, nothing of the source left to know."""

    event_status: str
    title_rule: str
    alert_key: str = ""  # "" if the source gave none: the door makes one up and returns it
    description: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    images: list[dict[str, str]] = field(default_factory=list)  # {src, alt?, href?}
    links: list[dict[str, str]] = field(default_factory=list)  # {href, title?}


Item = Parsed | BadEvent
SourceFunction = Callable[[Any, Mapping[str, str]], list[Item]]
SOURCES: dict[str, SourceFunction] = {}
OVER_LIMIT: dict[str, int] = {}  # the status that makes this sender try again later instead of dropping the alert


def source(name: str, *, over_limit: int = 429) -> Callable[[SourceFunction], SourceFunction]:
    """Register a source under the name that its push URL ends with, which makes its door; a name taken twice stops the program at start."""

    def register(function: SourceFunction) -> SourceFunction:
        if name in SOURCES:
            raise RuntimeError(f"the source {name!r} is registered twice")
        SOURCES[name], OVER_LIMIT[name] = function, over_limit
        return function

    return register


def parse(name: str, payload: Any, query: Mapping[str, str]) -> list[Item]:
    """The events in one body of the source `name`, at least one; raises BadEvent if the whole body is unusable, KeyError for no such source."""
    return SOURCES[name](payload, query)


# --- Bytes to JSON ---------------------------------------------------------------------------------------------------------

_BRACKETS_ONLY = bytes(set(range(256)) - set(b"[]{}"))
_SQUARE = bytes.maketrans(b"{}", b"[]")


def loads(body: bytes, content_encoding: str = "", cap: int = 1 << 20) -> Any:
    """A request body as JSON: gzip or deflate undone, at most `cap` bytes, UTF-8, at most 100 levels deep.

    NaN and the infinities, which Python's own senders write, are read as the texts "NaN", "Infinity" and "-Infinity"; an integer of
    more than 300 digits is read as text. Raises BodyTooLarge over the cap and BadEvent for everything else.
    """
    data = _unpack(body, content_encoding.strip().lower(), cap)
    if not data.strip():
        raise BadEvent("body", _("is empty: send the event as JSON"))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadEvent("body", _("is not UTF-8 (byte %(at)d): send JSON encoded as UTF-8") % {"at": error.start}) from None
    _check_nesting(data)
    try:
        return json.loads(text, parse_constant=str, parse_int=_integer)
    except json.JSONDecodeError as error:
        reason = {"msg": error.msg, "line": error.lineno, "column": error.colno}
        raise BadEvent("body", _("is not JSON (%(msg)s, line %(line)d, column %(column)d): send one JSON object") % reason) from None


def _unpack(body: bytes, encoding: str, cap: int) -> bytes:
    too_large = _("is larger than %(most)d bytes: send less in one request") % {"most": cap}
    if len(body) > cap:
        raise BodyTooLarge("body", too_large)
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise BadEvent("Content-Encoding", _("must be gzip, deflate or absent"))
    broken = BadEvent("body", _("is not the %(encoding)s data that Content-Encoding says it is") % {"encoding": encoding})
    unpacked = bytearray()
    try:
        for _member in range(MAX_MEMBERS):  # gzip allows several, one after the other
            if not body:
                break
            unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, told by the header
            unpacked += unpacker.decompress(body, cap + 1 - len(unpacked))  # bounded: a bomb costs no more than the cap
            if len(unpacked) > cap:
                raise BodyTooLarge("body", too_large)
            if not unpacker.eof:
                raise broken
            body = unpacker.unused_data
    except zlib.error:
        raise broken from None
    if body:
        raise broken
    return bytes(unpacked)


def _check_nesting(data: bytes) -> None:
    """Raise BadEvent for JSON that is too deep or all brackets; at C speed, and before the parser, whose recursion is on the C stack.

    Broken JSON is judged by what stands before the break, as the parser reads it, or taken for deeper than it is.
    """
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    # Without escaped backslashes and then escaped quotes, every second piece between quotes is outside of texts.
    outside = b"".join(data.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    brackets = outside.translate(_SQUARE, _BRACKETS_ONLY)
    if len(brackets) > 2 * MAX_CONTAINERS:
        raise BadEvent("body", _("holds over %(most)d lists and objects: send less in one request") % {"most": MAX_CONTAINERS})
    for _level in range(MAX_DEPTH):
        inner_gone = brackets.replace(b"[]", b"")  # takes away exactly the innermost level
        if len(inner_gone) == len(brackets):
            if len(brackets) <= MAX_DEPTH:  # nothing left, or what is never closed
                return
            break
        brackets = inner_gone
    if brackets:
        raise BadEvent("body", _("is nested deeper than %(most)d levels: flatten it") % {"most": MAX_DEPTH})


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= 300 else digits


# --- Pieces that every source uses -----------------------------------------------------------------------------------------

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_WEB_ADDRESS = re.compile(r"https?://[^\s<>\"]+", re.IGNORECASE)
_IMAGE_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


def clean(text: str) -> str:
    """The text as PostgreSQL can hold it: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\ufffd", text)


def as_text(value: Any) -> str:
    """Any JSON value as a label's text: texts cleaned, true, false and numbers as JSON writes them, null as "", the rest as compact JSON."""
    if isinstance(value, str):
        return clean(value)
    if value is None:
        return ""
    if isinstance(value, float) and value in (float("inf"), float("-inf")):  # 1e999
        return "Infinity" if value > 0 else "-Infinity"
    return clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def key_of(text: str) -> str:
    """An alert key within 255 characters: a longer one, or one with characters that cannot be kept, gets a hash for what is lost.

    The same text always gives the same key and different texts give different keys.
    """
    kept = clean(text)
    if kept == text and len(text) <= MAX_ALERT_KEY:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{kept[: MAX_ALERT_KEY - 33]}~{digest}"


def labels_of(value: Any, field: str = "labels") -> dict[str, str]:
    """Labels from a JSON object, at most 50, cut to their caps; null values and empty names are left out.

    An empty list is no labels: languages without a type for empty maps write one. Any other list or a scalar raises BadEvent.
    """
    if value is None or value == [] or value == "":
        return {}
    if not isinstance(value, Mapping):
        raise BadEvent(field, _('must be an object of texts, like {"service": "engine"}'))
    labels: dict[str, str] = {}
    for name, content in value.items():
        name = clean(name)[:MAX_LABEL_KEY]
        if content is None or not name or name in labels:
            continue
        labels[name] = as_text(content)[:MAX_LABEL_VALUE]
        if len(labels) == MAX_LABELS:
            break
    return labels


def link(href: Any, title: str = "") -> list[dict[str, str]]:
    """A list of the one link, or of none if `href` is no http(s) address that fits; the title is left out where empty."""
    if not isinstance(href, str) or len(href) > MAX_LINK_URL or not _WEB_ADDRESS.fullmatch(clean(href)):
        return []
    return [{"href": clean(href), **({"title": clean(title)[:MAX_IMAGE_TEXT]} if title else {})}]


def _scalar(payload: Mapping[str, Any], field: str) -> str:
    """A text field; numbers are taken for their text, null and absence for ""."""
    value = payload.get(field)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return as_text(value)
    raise BadEvent(field, _("must be a text"))


# --- The standard event ----------------------------------------------------------------------------------------------------


@source("standard")
def standard(payload: Any, query: Mapping[str, str]) -> list[Item]:
    """The reference's standard event, one object or a list of 1 to 500.

    Read more widely than its page says, as its senders need: `title` for `title_rule`, nulls and empty values as absent, labels
    that are no texts. Unknown fields are ignored (the integration key may be one of them).
    """
    if isinstance(payload, list):
        return parse_list(payload)
    return [_standard_event(payload)]


def parse_list(items: list[Any]) -> list[Item]:
    """The events of a list, each read alone; a bad one stands in its place as a BadEvent with its index. Raises BadEvent for 0 or over 500."""
    if not 1 <= len(items) <= MAX_LIST:
        raise BadEvent("body", _("holds %(n)d events: send 1 to %(most)d in one request") % {"n": len(items), "most": MAX_LIST})
    return [_item(_standard_event, item, index) for index, item in enumerate(items)]


def _item(read: Callable[[Any], Parsed], value: Any, index: int) -> Item:
    try:
        return read(value)
    except BadEvent as error:
        return BadEvent(error.field, error.message, index)


def _standard_event(payload: Any) -> Parsed:
    if not isinstance(payload, Mapping):
        raise BadEvent("body", _("must be a JSON object with title_rule and event_status"))
    title = _scalar(payload, "title_rule").strip() or _scalar(payload, "title").strip()
    if not title:
        raise BadEvent("title_rule", _("is required: send the alert's title in it"))
    status = _status(payload)
    key = _scalar(payload, "alert_key")
    if status == "Ok" and not key:
        raise BadEvent("alert_key", _("is required when event_status is Ok: send the key that the alert was opened with"))
    return Parsed(
        event_status=status,
        title_rule=clean(title)[:MAX_TITLE],
        alert_key=key_of(key),
        description=clean(_scalar(payload, "description"))[:MAX_DESCRIPTION],
        labels=labels_of(payload.get("labels")),
        images=_images(payload.get("images")),
    )


def _status(payload: Mapping[str, Any]) -> str:
    value = payload.get("event_status")
    if isinstance(value, str) and value in STATUSES:
        return value
    if value in (None, ""):
        raise BadEvent("event_status", _("is required: send Critical, Warning, Info or Ok"))
    meant = value.strip().capitalize() if isinstance(value, str) else ""
    if meant in STATUSES:
        raise BadEvent("event_status", _('must be written exactly "%(meant)s": the case counts') % {"meant": meant})
    raise BadEvent("event_status", _("must be Critical, Warning, Info or Ok"))


def _images(value: Any) -> list[dict[str, str]]:
    """Images by the reference's page: of equal `alt` (without one: of equal `src`) the last is kept, a `src` that is too long or no address is dropped, at most 20."""
    if not value:
        return []
    if not isinstance(value, list):
        raise BadEvent("images", _('must be a list of images, like [{"src": "https://..."}]'))
    kept: dict[str, dict[str, str]] = {}
    for index, item in enumerate(value):
        if not isinstance(item, Mapping) or not item.get("src") or not isinstance(item["src"], str):
            raise BadEvent(f"images[{index}].src", _("is required: send an http or https address, or an image key"))
        if image := image_of(item["src"], item.get("alt"), item.get("href")):
            kept[image.get("alt") or image["src"]] = image
    return list(kept.values())[:MAX_IMAGES]


def image_of(src: str, alt: Any = None, href: Any = None) -> dict[str, str]:
    """One image as it is kept, {} if its `src` is over 256 characters or neither an http(s) address nor a plain key (data:, javascript:)."""
    src = clean(src)
    if len(src) > MAX_IMAGE_URL or not (_WEB_ADDRESS.fullmatch(src) or _IMAGE_KEY.fullmatch(src)):
        return {}
    image = {"src": src}
    if alt := as_text(alt)[:MAX_IMAGE_TEXT]:
        image["alt"] = alt
    href = as_text(href)[:MAX_IMAGE_URL]
    if _WEB_ADDRESS.fullmatch(href):
        image["href"] = href
    return image


# --- Alertmanager's webhook ------------------------------------------------------------------------------------------------

# The reference's table (its Prometheus page: critical, warning, warn, info, acknowledged, unknown, unk, ok), and the words that rule
# sets in use have for the same: those that wake people are Critical, as the reference's pages for other sources have them.
_SEVERITIES = {
    **dict.fromkeys(
        ("critical", "crit", "page", "emergency", "emerg", "fatal", "disaster", "high", "p0", "p1", "sev0", "sev1"),
        "Critical",
    ),
    **dict.fromkeys(
        ("warning", "warn", "error", "err", "major", "minor", "average", "medium", "ticket", "p2", "p3", "sev2", "sev3"),
        "Warning",
    ),
    **dict.fromkeys(
        (
            "info",
            "information",
            "informational",
            "notice",
            "low",
            "debug",
            "none",
            "acknowledged",
            "unknown",
            "unk",
            "p4",
            "p5",
            "sev4",
        ),
        "Info",
    ),
    "ok": "Ok",
}
# Grafana's alerting sends Alertmanager's webhook with these beside it.
_ALERT_LINKS = (
    ("generatorURL", "Source"),
    ("silenceURL", "Silence"),
    ("dashboardURL", "Dashboard"),
    ("panelURL", "Panel"),
)
_TITLE_ANNOTATIONS = ("summary", "title")
_TEXT_ANNOTATIONS = ("description", "message")


@source("prometheus", over_limit=503)  # Alertmanager retries 5xx, and drops the alert on 429
def prometheus(payload: Any, query: Mapping[str, str]) -> list[Item]:
    """Alertmanager's webhook, version 4 (https://prometheus.io/docs/alerting/latest/configuration/#webhook_config), one event an alert.

    Key: the alert's fingerprint, else a hash of its labels. Severity: the first of the labels `severity`, `priority` and `level` that
    holds a known word, else Warning; resolved is Ok. Title: the annotation summary or title, else alertname and instance. The
    annotation description or message comes first in the description, the other annotations follow as lines "name: text"; those
    that are addresses become links, with the addresses of the rule and of Alertmanager.
    """
    if not isinstance(payload, Mapping) or not isinstance(payload.get("alerts"), list):
        raise BadEvent("alerts", _("must be a list of alerts: point an Alertmanager webhook receiver (version 4) at this address"))
    alerts = payload["alerts"]
    if not 1 <= len(alerts) <= MAX_ALERTS:
        raise BadEvent("alerts", _("holds %(n)d alerts: send 1 to %(most)d in one request") % {"n": len(alerts), "most": MAX_ALERTS})

    def read(alert: Any) -> Parsed:
        return _prometheus_alert(alert, payload)

    return [_item(read, alert, index) for index, alert in enumerate(alerts)]


def _prometheus_alert(alert: Any, group: Mapping[str, Any]) -> Parsed:
    if not isinstance(alert, Mapping):
        raise BadEvent("alerts", _("must hold objects, as Alertmanager's webhook sends them"))
    status = alert.get("status") or group.get("status")
    if status not in ("firing", "resolved"):
        raise BadEvent("status", _("must be firing or resolved"))
    labels = labels_of(alert.get("labels"))
    annotations = {name: text.strip() for name, text in labels_of(alert.get("annotations"), "annotations").items()}
    links = [found for name, title in _ALERT_LINKS for found in link(alert.get(name), title)]
    links += [found for name, text in annotations.items() for found in link(text, name)]
    links += link(group.get("externalURL"), "Grafana" if "orgId" in group else "Alertmanager")
    by_address: dict[str, dict[str, str]] = {}
    for found in links:
        by_address.setdefault(found["href"], found)
    image = image_of(alert["imageURL"]) if isinstance(alert.get("imageURL"), str) else {}
    return Parsed(
        event_status="Ok" if status == "resolved" else _severity(labels),
        title_rule=_prometheus_title(labels, annotations)[:MAX_TITLE],
        alert_key=_prometheus_key(alert, group),
        description=_prometheus_text(annotations, group)[:MAX_DESCRIPTION],
        labels=labels,
        images=[image] if image else [],
        links=list(by_address.values())[:MAX_LINKS],
    )


def _severity(labels: Mapping[str, str]) -> str:
    for name in ("severity", "priority", "level"):
        if severity := _SEVERITIES.get(labels.get(name, "").strip().lower()):
            return severity
    return "Warning"


def _prometheus_title(labels: Mapping[str, str], annotations: Mapping[str, str]) -> str:
    for name in _TITLE_ANNOTATIONS:
        if title := annotations.get(name):
            return title
    named = [text for text in (labels.get("alertname", "").strip(), labels.get("instance", "").strip()) if text]
    return " / ".join(named) or _("Alert without a name")


def _prometheus_text(annotations: Mapping[str, str], group: Mapping[str, Any]) -> str:
    title = next((name for name in _TITLE_ANNOTATIONS if annotations.get(name)), None)
    first = next((name for name in _TEXT_ANNOTATIONS if annotations.get(name)), None)
    lines = [annotations[first]] if first else []
    lines += [
        f"{name}: {text}"
        for name, text in annotations.items()
        if text and not _unsaid(name) and name not in (title, first) and not link(text)
    ]
    cut = group.get("truncatedAlerts")
    if isinstance(cut, int) and cut > 0:
        # Said with the alerts that came, since of the others nothing is known but their number.
        lines.insert(0, _("Alertmanager left out %(n)d more alerts of this group (its max_alerts).") % {"n": cut})
    return "\n".join(lines)


def _unsaid(annotation: str) -> bool:
    """Grafana's internals, and the time that the reference's page has one add: it changes with every evaluation."""
    return annotation.startswith("__") or annotation == "timestamp"


def _prometheus_key(alert: Mapping[str, Any], group: Mapping[str, Any]) -> str:
    fingerprint = alert.get("fingerprint")
    if isinstance(fingerprint, str) and fingerprint:
        return key_of(fingerprint)
    # All labels count, those beyond the caps too. Without any, what else stays the same from firing to resolved.
    identity = alert.get("labels") or [group.get("groupKey"), alert.get("generatorURL"), alert.get("startsAt")]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


# --- Reference variables ---------------------------------------------------------------------------------------------------

TEMPLATE_PREFIX = "[TPL]"
_VARIABLE = re.compile(r"\$\{(?P<label>[^{}]+)\}|\{\{\s*\.(?:Labels\.(?P<name>\w+)|(?P<field>(?!Labels\b)[^\W\d]\w*))\s*\}\}")


def variables(event: Parsed, *, title: str = "", integration_type: str = "", integration_name: str = "") -> dict[str, Any]:
    """The fields that reference variables may name, by the reference's names; `title` is the resolved one, where there is one yet."""
    return {
        "Title": title,
        "Description": event.description,
        "EventSeverity": event.event_status,
        "EventStatus": event.event_status,
        "AlertKey": event.alert_key,
        "TitleRule": event.title_rule,
        "IntegrationType": integration_type,
        "IntegrationName": integration_name,
        "Labels": event.labels,
    }


def resolve(text: str, event: Mapping[str, Any]) -> str:
    """The text with its reference variables filled in from `event` (see `variables`) if it begins with [TPL]; else as it is.

    `${label}` is that label, "<no value>" if it is not there; `{{ .Labels.name }}` is the same, empty if not there; `{{ .Field }}`
    is that field of the event, empty if there is none of the name. All else stays as it stands, and what was filled in is not read
    again. Only texts that begin with [TPL] are templates (the reference says so for titles, descriptions and labels alike): a title
    "rm -rf ${HOME}" without it is somebody's title.
    """
    if not text.startswith(TEMPLATE_PREFIX):
        return text
    labels: Mapping[str, str] = event.get("Labels") or {}

    def fill(found: re.Match[str]) -> str:
        if found["label"] is not None:
            return labels.get(found["label"], "<no value>")
        if found["name"] is not None:
            return labels.get(found["name"], "")
        return as_text(event.get(found["field"]))

    return _VARIABLE.sub(fill, text[len(TEMPLATE_PREFIX) :])


def resolve_title(event: Parsed, *, integration_type: str = "", integration_name: str = "") -> str:
    """The title of an event from its title rule, at most 512 characters; the rule itself where its variables leave nothing."""
    fields = variables(event, integration_type=integration_type, integration_name=integration_name)
    return resolve(event.title_rule, fields).strip()[:MAX_TITLE] or event.title_rule
