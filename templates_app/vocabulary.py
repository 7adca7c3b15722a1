"""The words of the template language: the filters, tests and methods a template may use, each paying for what it handles.

This is a list of what is allowed, not of what is forbidden: what Jinja or Python add tomorrow is not reachable until somebody adds it here.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from urllib.parse import quote

from django.utils.translation import gettext as _
from jinja2 import Environment, pass_environment
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.runtime import Undefined
from markupsafe import Markup

from templates_app.meter import MAX_ITEMS, MAX_TEXT, Refused, escaped, joined, meter, short, text_of, too_long, too_many, weighed, weight


def bare(value: Any) -> Any:
    """The plain words of a value."""
    # What is escaped already and changed again is words again: it is escaped once more rather than not at all.
    return str(value) if isinstance(value, Markup) else value


def _paid(function: Callable[..., Any], *, deep: bool = False, letters: bool = False) -> Callable[..., Any]:
    """A filter or test of Jinja's that pays for what it is given and what it makes.

    `deep` ones look into every level of a list, `letters` ones take a text letter by letter, like any list.
    """

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = meter()
        plain = [bare(arg) for arg in args]
        for arg in (*plain, *kwargs.values()):
            if isinstance(arg, str):
                given.pay(1 + (len(arg) if letters else len(arg) >> 6))
            elif isinstance(arg, (list, tuple, dict)):
                given.pay(weight(arg) if deep else 1 + len(arg))
        result = function(*plain, **{key: bare(value) for key, value in kwargs.items()})
        return weighed(_listed(result) if isinstance(result, Iterator) else result)

    return wrapper


def _listed(items: Iterable[Any]) -> list[Any]:
    result = []
    for item in items:
        meter().pay(1)
        result.append(item)
        if len(result) > MAX_ITEMS:
            raise too_many()
    return result


def _wide(width: Any) -> int:
    columns = int(width)
    if abs(columns) > MAX_TEXT:
        raise Refused(_("a width is beyond %(limit)d") % {"limit": MAX_TEXT})
    return columns


def _center(value: Any, width: Any = 80) -> str:
    return short(text_of(value).center(_wide(width)))


def _indent(value: Any, width: Any = 4, first: bool = False) -> str:
    lines = text_of(value).splitlines()
    margin = " " * _wide(width)
    meter().pay(len(lines))
    if len(margin) * len(lines) > MAX_TEXT:
        raise too_long()
    return short("\n".join(margin + line if line and (index or first) else line for index, line in enumerate(lines)))


def _replace(value: Any, old: Any, new: Any, count: Any = -1) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    meter().pay(2 + (len(text) >> 5))
    found = text.count(old) if old else len(text) + 1
    if len(text) + found * max(0, len(new) - len(old)) > MAX_TEXT:
        raise too_long()
    return short(text.replace(old, new, -1 if count is None else int(count)))


def _truncate(value: Any, length: Any = 255, end: Any = "…") -> str:
    text, end, length = text_of(value), text_of(end), int(length)
    return short(text if len(text) <= length else text[: max(0, length - len(end))] + end)


def is_no_number(value: Any) -> bool:
    """Whether it is a text that is not even read: thousands of digits take quadratic time, other signs linear, and nobody writes so long a number."""
    return isinstance(value, str) and len(value) > 100


def _number(kind: str) -> Callable[..., Any]:
    function: Any = DEFAULT_FILTERS[kind]

    def convert(value: Any, default: Any = 0, *base: Any) -> Any:
        text = bare(value)
        return default if is_no_number(text) else function(text, default, *base)

    return convert


def _title(value: Any) -> str:
    return short(text_of(value).title())


def _urlencode(value: Any) -> str:
    text = text_of(value)
    meter().pay(len(text))
    return short(quote(text, safe="/"))


@pass_environment
def _join(environment: Environment, value: Any, between: Any = "", attribute: Any = None) -> str:
    items = [] if value is None or isinstance(value, Undefined) else _listed(value)
    if attribute is not None:
        items = [environment.getitem(item, attribute) for item in items]
    return joined(items, between)


def _round(value: Any, precision: Any = 0, method: str = "common") -> Any:
    precision = int(precision)
    if not -10 <= precision <= 20:
        raise Refused(_("round takes a precision of -10 to 20"))
    return DEFAULT_FILTERS["round"](0.0 if is_no_number(value) else float(value), precision, method)  # type: ignore[no-any-return]


@pass_environment
def _sum(environment: Environment, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    items = _listed(value)
    if attribute is not None:
        items = [environment.getitem(item, attribute) for item in items]
    items = [item for item in items if not isinstance(item, Undefined)]
    if not all(isinstance(item, (int, float)) for item in (*items, start)):
        raise Refused(_("sum adds numbers only"))
    return sum(items, start)


def _escape(value: Any) -> Markup:
    return escaped(value)


def _string(value: Any) -> str:
    return text_of(value)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict)) else 0


_TEXT: Final = "capitalize default d lower trim upper"
_ITEMS: Final = "abs first items last list map reject rejectattr reverse select selectattr"
_DEEP: Final = "dictsort groupby max min sort unique"
FILTERS: Final[dict[str, Callable[..., Any]]] = {
    **{name: _paid(DEFAULT_FILTERS[name]) for name in _TEXT.split()},
    **{name: _paid(DEFAULT_FILTERS[name], letters=True) for name in _ITEMS.split()},
    **{name: _paid(DEFAULT_FILTERS[name], deep=True, letters=True) for name in _DEEP.split()},
    "center": _center,
    "count": _length,
    "e": _escape,
    "escape": _escape,
    "float": _number("float"),
    "int": _number("int"),
    "indent": _indent,
    "join": _join,
    "length": _length,
    "replace": _replace,
    "round": _round,
    "string": _string,
    "sum": _sum,
    "title": _title,
    "truncate": _truncate,
    "urlencode": _urlencode,
}
_JINJA_TESTS: Final[dict[str, Any]] = dict(DEFAULT_TESTS)
TESTS: Final = {
    name: _paid(function, deep=True)
    for name, function in _JINJA_TESTS.items()
    if name not in {"callable", "escaped", "filter", "test", "sameas", "iterable"}
}


def _text_method(name: str) -> Callable[..., Any]:
    def method(text: str, *args: Any) -> Any:
        meter().pay(2 + (len(text) >> 5))
        return getattr(text, name)(*(bare(arg) for arg in args))

    return method


def _split(text: str, between: Any = None, most: Any = -1) -> list[str]:
    meter().pay(1 + (len(text) >> 6))
    most = int(most)
    return _listed(text.split(None if between is None else text_of(between), min(most, MAX_ITEMS) if most >= 0 else MAX_ITEMS))


METHODS: Final[dict[type, dict[str, Callable[..., Any]]]] = {
    str: {
        **{
            name: _text_method(name)
            for name in [
                "upper",
                "lower",
                "title",
                "capitalize",
                "strip",
                "lstrip",
                "rstrip",
                "startswith",
                "endswith",
                "find",
                "count",
                "isdigit",
                "isalpha",
                "isupper",
                "islower",
                "removeprefix",
                "removesuffix",
            ]
        },
        "split": _split,
        "splitlines": lambda text: _listed(text.splitlines()),
        "replace": _replace,
        "join": lambda text, items: joined(_listed(items), text),
    },
    dict: {
        "items": lambda mapping: _listed(mapping.items()),
        "keys": lambda mapping: _listed(mapping.keys()),
        "values": lambda mapping: _listed(mapping.values()),
        "get": lambda mapping, key, default=None: mapping.get(weighed(key), default),
    },
    list: {},
    tuple: {},
}
LOOP_ATTRIBUTES: Final = frozenset(
    ["index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem", "cycle", "changed"]
)


class Method:
    """A method of a value, reached through the list above."""

    __slots__ = ("function", "value")

    def __init__(self, function: Callable[..., Any], value: Any) -> None:
        self.function = function
        self.value = value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.value, *args, **kwargs)


def bounded_range(*args: Any) -> list[int]:
    """`range` as a list of at most 10,000 numbers."""
    numbers = range(*(int(arg) for arg in args))
    # len() of a huge range overflows; a slice of one does not.
    few = numbers[: MAX_ITEMS + 1]
    if len(few) > MAX_ITEMS:
        raise Refused(_("range makes at most %(limit)d numbers") % {"limit": MAX_ITEMS})
    meter().pay(len(few) >> 3)
    return list(few)
