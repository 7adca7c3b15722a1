"""What one render may spend: a meter that is charged for every round, value and character, and the texts of values under it.

The limits and what they are counted in are described in `sandbox.py`.
"""

import threading
from collections.abc import Iterable
from typing import Any, Final

from django.utils.translation import gettext as _
from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from markupsafe import Markup

from templates_app.formats import Format

MAX_SOURCE: Final = 65_536
MAX_TOKENS: Final = 2_000
MAX_STEPS: Final = 10_000
MAX_WORK: Final = 45_000
MAX_TEXT: Final = 65_536
MAX_ITEMS: Final = 10_000
MAX_DEPTH: Final = 20
MAX_BITS: Final = 1_024
MAX_OUTPUT: Final = 262_144


class Refused(SecurityError):
    """A template asked for something the sandbox does not give, or for too much of it; the text says what, for the author."""


class Meter:
    """What one render may still spend, and in which format, language and zone it writes."""

    __slots__ = ("depth", "format", "language", "now", "steps", "work", "zone")

    def __init__(self, fmt: Format, language: str, zone: Any, now: float) -> None:
        self.format = fmt
        self.language = language
        self.zone = zone
        self.now = now
        self.steps = MAX_STEPS
        self.work = MAX_WORK
        self.depth = 0

    def pay(self, work: int) -> None:
        self.work -= work
        if self.work < 0:
            raise Refused(_("the template does too much work for one message; use fewer or shorter loops and smaller values"))


_thread = threading.local()


def meter() -> Meter:
    """The meter of the render this thread is in."""
    found: Meter = _thread.meter
    return found


class metered:
    """`with metered(meter):` makes it the one the sandbox charges in this thread."""

    def __init__(self, value: Meter) -> None:
        self.value = value

    def __enter__(self) -> Meter:
        self.before = getattr(_thread, "meter", None)
        _thread.meter = self.value
        return self.value

    def __exit__(self, *exc: object) -> None:
        _thread.meter = self.before


def weight(value: Any) -> int:
    """How many things a value is made of, through all its levels (64 characters count as one); Refused beyond 10,000."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise too_long()
        return 1 + (len(value) >> 6)
    if not isinstance(value, (list, tuple, dict)):
        return 1
    total = 0
    waiting: list[Any] = [value]
    while waiting:
        item = waiting.pop()
        total += 1
        if isinstance(item, str):
            total += len(item) >> 6
        elif isinstance(item, (list, tuple)):
            if total + len(waiting) + len(item) > MAX_ITEMS:
                raise too_many()
            waiting.extend(item)
        elif isinstance(item, dict):
            if total + len(waiting) + 2 * len(item) > MAX_ITEMS:
                raise too_many()
            waiting.extend(item.keys())
            waiting.extend(item.values())
        if total + len(waiting) > MAX_ITEMS:
            raise too_many()
    return total


def weighed(value: Any) -> Any:
    """The value itself, paid for by its size."""
    if isinstance(value, (str, list, tuple, dict)):
        meter().pay(1 + (weight(value) >> 1))
    return value


def within(value: Any) -> Any:
    """The right side of `in`, paid for by what looking into it costs: nothing for a dict, all of a list or text."""
    return value if isinstance(value, dict) else weighed(value)


def text_of(value: Any) -> str:
    """The words of any value a template can hold: lists joined by commas, nothing for None and undefined."""
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, Undefined):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (list, tuple, dict)):
        meter().pay(weight(value))
        return short(_joined(value))
    raise Refused(_("%(kind)s cannot be written into a message") % {"kind": type(value).__name__})


def _joined(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_joined(key)}={_joined(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_joined(item) for item in value)
    return text_of(value)


def short(text: str) -> str:
    """The text, paid for by its length; Refused beyond 64 kB."""
    if len(text) > MAX_TEXT:
        raise too_long()
    meter().pay(len(text) >> 6)
    return text


def safe(text: str) -> Markup:
    """Marks text that is in the rendered format already."""
    return Markup(short(text))


def escaped(value: Any) -> Markup:
    """The words of a value, escaped for the format being rendered."""
    if isinstance(value, Markup):
        return value
    text = text_of(value)
    given = meter()
    given.pay(1 + (len(text) >> 2))
    return Markup(given.format.escape(text))


def joined(parts: Iterable[Any], between: Any = "") -> str:
    """Parts as one text; when one of them is in the rendered format already, the others are escaped. Refused beyond 64 kB."""
    parts = list(parts)
    words: list[str]
    if isinstance(between, Markup) or any(isinstance(part, Markup) for part in parts):
        words = [escaped(part) for part in parts]
        between = escaped(between)
    else:
        words = [text_of(part) for part in parts]
        between = text_of(between)
    meter().pay(len(words))
    if sum(map(len, words)) + len(between) * len(words) > MAX_TEXT:
        raise too_long()
    text = short(str(between).join(words))
    return Markup(text) if isinstance(between, Markup) else text


def too_long() -> Refused:
    """The error for a text beyond its limit."""
    return Refused(_("a text on the way grows beyond %(limit)d characters") % {"limit": MAX_TEXT})


def too_many() -> Refused:
    """The error for a list beyond its limit."""
    return Refused(_("a list on the way grows beyond %(limit)d items") % {"limit": MAX_ITEMS})


def tick(cost: int) -> bool:
    """Pays for one round of a loop; always true, so that it can stand in a condition."""
    now = _thread.meter
    now.steps -= 1
    if now.steps < 0:
        raise Refused(_("the loops take more than %(limit)d rounds") % {"limit": MAX_STEPS})
    now.pay(cost)
    return True


def enter(cost: int) -> bool:
    """Pays for one run of a macro's body."""
    meter().pay(cost)
    return True
