"""The Jinja2 sandbox in which every text is made, with bounds of our own: a sender thread has no alarm, so the work is counted.

Jinja's own sandbox keeps a template away from Python's insides; it does not keep it from taking all time and all memory
(`'x' * 2000000000` is 2 GB, three nested `range` run for ever). Everything a template does is therefore paid from a meter:

* **steps**: one for every round of a loop, 10,000 a render.
* **work**: each round and each macro call pays for the number of nodes in its body, each filter, comparison and concatenation for
  the size of what it handles. So no statement is free, however it is nested.
* **size**: text made on the way stays under 64 kB, lists under 10,000 items counted through all their levels (a list of lists that
  doubles thirty times is refused when it is built); the message itself is cut at 256 kB while it is made.
* **depth**: macros and recursive loops, 20.

What is reachable is a list, not a ban: filters, tests, functions and methods named here and nothing else. Values come out
escaped for the format that is rendered (`finalize`); Markup marks what is in that format already. There is no `|safe`: a label
that somebody's monitoring sends may never write markup.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from django.utils.translation import gettext as _
from jinja2 import nodes, pass_context
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.exceptions import SecurityError, TemplateAssertionError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.runtime import ChainableUndefined, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from templates_app.formats import Format

MAX_SOURCE: Final = 65_536
MAX_TOKENS: Final = 3_000
MAX_STEPS: Final = 10_000
MAX_WORK: Final = 60_000
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


# --- sizes and texts of values -----------------------------------------------------------------------------------------------------


def weight(value: Any) -> int:
    """How many things a value is made of, through all its levels (64 characters count as one); Refused beyond 10,000."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise _too_long()
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
                raise _too_many()
            waiting.extend(item)
        elif isinstance(item, dict):
            if total + len(waiting) + 2 * len(item) > MAX_ITEMS:
                raise _too_many()
            waiting.extend(item.keys())
            waiting.extend(item.values())
        if total + len(waiting) > MAX_ITEMS:
            raise _too_many()
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
        raise _too_long()
    meter().pay(len(text) >> 6)
    return text


def safe(text: str) -> Markup:
    """Marks text that is in the rendered format already."""
    return Markup(short(text))


def escaped(value: Any) -> Markup:
    """The words of a value, escaped for the format being rendered."""
    if isinstance(value, Markup):
        return value
    return Markup(meter().format.escape(text_of(value)))


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
        raise _too_long()
    text = short(str(between).join(words))
    return Markup(text) if isinstance(between, Markup) else text


def _too_long() -> Refused:
    return Refused(_("a text on the way grows beyond %(limit)d characters") % {"limit": MAX_TEXT})


def _too_many() -> Refused:
    return Refused(_("a list on the way grows beyond %(limit)d items") % {"limit": MAX_ITEMS})


# --- filters, tests, methods: only what is named here --------------------------------------------------------------------------------


def _bare(value: Any) -> Any:
    # What is escaped already and changed again is words again: it is escaped once more rather than not at all.
    return str(value) if isinstance(value, Markup) else value


def _paid(function: Callable[..., Any], deep: bool = False) -> Callable[..., Any]:
    """A filter or test of Jinja's that pays for what it is given and what it makes; `deep` ones look into every level."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = meter()
        plain = [_bare(arg) for arg in args]
        for arg in (*plain, *kwargs.values()):
            if isinstance(arg, str):
                given.pay(1 + (len(arg) >> 6))
            elif isinstance(arg, (list, tuple, dict)):
                given.pay(weight(arg) if deep else 1 + len(arg))
        result = function(*plain, **{key: _bare(value) for key, value in kwargs.items()})
        if isinstance(result, Iterator):
            result = _listed(result)
        if isinstance(result, (str, list, tuple, dict)) and not isinstance(result, Markup):
            weight(result)
        return result

    return wrapper


def _listed(items: Iterable[Any]) -> list[Any]:
    result = []
    for item in items:
        meter().pay(1)
        result.append(item)
        if len(result) > MAX_ITEMS:
            raise _too_many()
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
    if len(margin) * len(lines) > MAX_TEXT:
        raise _too_long()
    return short("\n".join(margin + line if line and (index or first) else line for index, line in enumerate(lines)))


def _replace(value: Any, old: Any, new: Any, count: Any = -1) -> str:
    text, old, new = text_of(value), text_of(old), text_of(new)
    found = text.count(old) if old else len(text) + 1
    if len(text) + found * max(0, len(new) - len(old)) > MAX_TEXT:
        raise _too_long()
    return short(text.replace(old, new, -1 if count is None else int(count)))


def _truncate(value: Any, length: Any = 255, end: Any = "…") -> str:
    text, end, length = text_of(value), text_of(end), int(length)
    return short(text if len(text) <= length else text[: max(0, length - len(end))] + end)


def _join(value: Any, between: Any = "", attribute: Any = None) -> str:
    items = [] if value is None or isinstance(value, Undefined) else _listed(value)
    if attribute is not None:
        environment = ENVIRONMENT
        items = [environment.getitem(item, attribute) for item in items]
    return joined(items, between)


def _round(value: Any, precision: Any = 0, method: str = "common") -> Any:
    precision = int(precision)
    if not -10 <= precision <= 20:
        raise Refused(_("round takes a precision of -10 to 20"))
    return DEFAULT_FILTERS["round"](float(value), precision, method)  # type: ignore[no-any-return]


def _sum(value: Any, attribute: Any = None, start: Any = 0) -> Any:
    items = _listed(value)
    if attribute is not None:
        items = [ENVIRONMENT.getitem(item, attribute) for item in items]
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


_SHALLOW = "abs capitalize default d first float int items last list lower map reject rejectattr reverse select selectattr title trim upper urlencode wordcount"
_DEEP = "dictsort groupby max min sort unique"
_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    **{name: _paid(DEFAULT_FILTERS[name]) for name in _SHALLOW.split()},
    **{name: _paid(DEFAULT_FILTERS[name], deep=True) for name in _DEEP.split()},
    "center": _center,
    "count": _length,
    "e": _escape,
    "escape": _escape,
    "indent": _indent,
    "join": _join,
    "length": _length,
    "replace": _replace,
    "round": _round,
    "string": _string,
    "sum": _sum,
    "truncate": _truncate,
}
_JINJA_TESTS: Final[dict[str, Any]] = dict(DEFAULT_TESTS)
_TESTS: Final = {
    name: _paid(function, deep=True)
    for name, function in _JINJA_TESTS.items()
    if name not in {"callable", "escaped", "filter", "test", "sameas", "iterable"}
}


def _text_method(name: str) -> Callable[..., Any]:
    def method(text: str, *args: Any) -> Any:
        meter().pay(2 + (len(text) >> 6))
        return getattr(text, name)(*(_bare(arg) for arg in args))

    return method


def _split(text: str, between: Any = None, most: Any = -1) -> list[str]:
    meter().pay(1 + (len(text) >> 6))
    most = int(most)
    return _listed(text.split(None if between is None else text_of(between), min(most, MAX_ITEMS) if most >= 0 else MAX_ITEMS))


_METHODS: Final[dict[type, dict[str, Callable[..., Any]]]] = {
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
_LOOP: Final = frozenset(
    ["index", "index0", "revindex", "revindex0", "first", "last", "length", "depth", "depth0", "previtem", "nextitem", "cycle", "changed"]
)


class _Method:
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


# --- what is written into the syntax tree --------------------------------------------------------------------------------------------


def _tick(cost: int) -> bool:
    now = _thread.meter
    now.steps -= 1
    if now.steps < 0:
        raise Refused(_("the loops take more than %(limit)d rounds") % {"limit": MAX_STEPS})
    now.pay(cost)
    return True


def _enter(cost: int) -> bool:
    meter().pay(cost)
    return True


# No template can write these names: they are not names.
_FILTERS.update({"~tick": _tick, "~enter": _enter, "~weigh": weighed, "~within": within, "~concat": joined})

_UNAVAILABLE: Final = (
    nodes.Extends,
    nodes.Block,
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.FilterBlock,
    nodes.EvalContextModifier,
)


class _Charged(NodeTransformer):
    """Puts the meter into loops, macros, comparisons, concatenations and literals."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        cost = _cost(node.body)
        test = _cost([node.test]) if node.test is not None else 0
        self.generic_visit(node)
        node.body.insert(0, _statement("~tick", cost, node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call("~tick", nodes.Const(test), node.lineno), node.test, lineno=node.lineno)
        return node

    def _visit_called(self, node: Any) -> nodes.Node:
        cost = _cost(node.body)
        self.generic_visit(node)
        node.body.insert(0, _statement("~enter", 5 + cost, node.lineno))
        result: nodes.Node = node
        return result

    visit_Macro = _visit_called
    visit_CallBlock = _visit_called

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("~concat", nodes.List(node.nodes, lineno=node.lineno), node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _weigh(node.expr)
        for operand in node.ops:
            operand.expr = _weigh(operand.expr, "~within" if operand.op in ("in", "notin") else "~weigh")
        return node

    def _visit_literal(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _call("~weigh", node, node.lineno)

    visit_List = _visit_literal
    visit_Tuple = _visit_literal
    visit_Dict = _visit_literal


def _cost(body: list[nodes.Node]) -> int:
    """How many nodes one round runs; the bodies of loops and macros inside pay for themselves."""
    total = 0
    waiting: list[nodes.Node] = list(body)
    while waiting:
        node = waiting.pop()
        total += 1
        for name, value in node.iter_fields():
            if name in ("body", "test") and isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
                continue
            if isinstance(value, list):
                waiting.extend(item for item in value if isinstance(item, nodes.Node))
            elif isinstance(value, nodes.Node):
                waiting.append(value)
    return total


def _call(name: str, node: nodes.Expr, lineno: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=lineno)


def _statement(name: str, cost: int, lineno: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_call(name, nodes.Const(cost, lineno=lineno), lineno), lineno=lineno)


def _weigh(node: nodes.Expr, name: str = "~weigh") -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _call(name, node, node.lineno)


class _Counted(Extension):
    """Refuses a template of too many tokens while it is read, before anything large is built of it."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:  # type: ignore[override]
        count = 0
        for token in stream:
            count += token.type != "data"
            if count > MAX_TOKENS:
                message = _("the template has more than %(limit)d words and signs of code; make it shorter") % {"limit": MAX_TOKENS}
                raise TemplateSyntaxError(message, token.lineno, stream.name, stream.filename)
            yield token


# --- the environment -------------------------------------------------------------------------------------------------------------------


class _Empty(ChainableUndefined):
    """What is not there writes nothing, and what is asked of it is not there either."""

    __slots__ = ()


class Sandbox(ImmutableSandboxedEnvironment):
    """The one environment; formats differ in the meter, so a template is compiled once for all of them."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise TemplateSyntaxError(_("the template is longer than %(limit)d characters") % {"limit": MAX_SOURCE}, 1)
        try:
            tree = super()._parse(source, name, filename)
            for node in tree.find_all(_UNAVAILABLE):
                raise TemplateSyntaxError(
                    _("the tag for %(tag)s is not available here") % {"tag": type(node).__name__.lower()}, node.lineno
                )
            for wanted in tree.find_all(nodes.Filter):
                if wanted.name in ("safe", "forceescape"):
                    raise TemplateAssertionError(
                        _("|safe is not available: values are always written as plain words; write markup into the template itself"),
                        wanted.lineno,
                    )
            charged: nodes.Template = _Charged().visit(tree)
        except RecursionError:
            raise TemplateSyntaxError(_("expressions are nested too deeply"), 1) from None
        return charged.set_environment(self)  # type: ignore[return-value]

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """What Jinja joins the output of macros and `set` blocks with."""
        pieces = list(parts)
        if sum(map(len, pieces)) > MAX_TEXT:
            raise _too_long()
        meter().pay(len(pieces) >> 2)
        return short("".join(pieces))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Methods from the list first, then the items of a dict; nothing else of a value can be reached."""
        if isinstance(obj, Undefined):
            return obj
        if attribute.startswith("_"):
            if isinstance(obj, dict) and attribute in obj:
                return obj[attribute]
            raise Refused(_("%(name)s cannot be reached from a template") % {"name": attribute})
        for kind, methods in _METHODS.items():
            if isinstance(obj, kind) and attribute in methods:
                return _Method(methods[attribute], str(obj) if isinstance(obj, Markup) else obj)
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        if isinstance(obj, tuple) and attribute in getattr(obj, "_fields", ()):  # what groupby makes
            return getattr(obj, attribute)
        if isinstance(obj, LoopContext) and attribute in _LOOP:
            found = getattr(obj, attribute)
            return _Method(lambda loop, *args: getattr(loop, attribute)(*map(weighed, args)), obj) if callable(found) else found
        if isinstance(obj, Namespace):
            return getattr(obj, attribute, None)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`x["key"]`, `x[0]`; what is not there is undefined."""
        if isinstance(obj, Undefined):
            return obj
        if isinstance(obj, (dict, list, tuple, str)):
            try:
                return obj[weighed(argument)]
            except (LookupError, TypeError):
                pass
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        now = meter()
        if isinstance(__obj, Undefined):
            return __context.call(__obj)  # raises what is missing by its name
        if not isinstance(__obj, (_Method, Macro, LoopContext)) and __obj not in __self.functions:
            raise Refused(_("%(kind)s cannot be called from a template") % {"kind": type(__obj).__name__})
        now.pay(2 + (sum(map(weight, args)) + sum(map(weight, kwargs.values())) >> 1))
        now.depth += 1
        try:
            if now.depth > MAX_DEPTH:
                raise Refused(_("macros call each other more than %(limit)d deep") % {"limit": MAX_DEPTH})
            return __context.call(__obj, *args, **kwargs)
        finally:
            now.depth -= 1

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic with small numbers; texts are joined and repeated within their limit."""
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return self.binop_table[operator](left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return joined([left, right])
        if operator == "*" and isinstance(left, int) and isinstance(right, (str, list, tuple)):
            left, right = right, left
        if isinstance(left, (str, list, tuple)) and operator == "*" and isinstance(right, int):
            if len(left) * right > (MAX_TEXT if isinstance(left, str) else MAX_ITEMS):
                raise _too_long() if isinstance(left, str) else _too_many()
            return weighed(_bare(left) * right)
        if isinstance(left, (list, tuple)) and operator == "+":
            if len(left) + len(right) > MAX_ITEMS:
                raise _too_many()
            return weighed(left + right)
        if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
            raise Refused(
                _("%(operator)s does not work on %(left)s and %(right)s; texts are joined with ~")
                % {"operator": operator, "left": type(left).__name__, "right": type(right).__name__}
            )
        if isinstance(left, int) and isinstance(right, int):
            bits = int(left).bit_length()
            if operator == "**" and right > 0 and bits * right > MAX_BITS:
                raise Refused(_("a number on the way gets too large"))
            if bits + int(right).bit_length() > MAX_BITS:
                raise Refused(_("a number on the way gets too large"))
        result = self.binop_table[operator](left, right)
        if isinstance(result, complex):
            raise Refused(_("the root of a negative number is no number"))
        return result

    functions: frozenset[Any] = frozenset()

    def offer(self, functions: Mapping[str, Callable[..., Any]], filters: Mapping[str, Callable[..., Any]]) -> None:
        """Adds the house's helpers."""
        self.globals.update(functions)
        self.filters.update(filters)
        self.functions = frozenset(value for value in self.globals.values() if callable(value))


@pass_context
def _finalize(context: Context, value: Any) -> Markup:
    # With the context asked for, Jinja cannot run this (and the filters before it) already while it compiles.
    now: Meter = _thread.meter
    now.pay(2)
    if type(value) is Markup:
        return value
    if type(value) is str and len(value) < 64:
        return Markup(now.format.escape(value))
    return escaped(weighed(value))


def _environment() -> Sandbox:
    environment = Sandbox(
        autoescape=True,
        optimized=False,
        undefined=_Empty,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        cache_size=0,
        extensions=[_Counted],
    )
    environment.filters.clear()
    environment.filters.update(_FILTERS)
    environment.tests.clear()
    environment.tests.update(_TESTS)
    environment.globals.clear()
    environment.globals.update({"range": bounded_range, "namespace": Namespace})
    return environment


ENVIRONMENT: Final = _environment()
