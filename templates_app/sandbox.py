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
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from django.utils.translation import gettext as _
from jinja2 import nodes, pass_context
from jinja2.exceptions import TemplateAssertionError, TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.lexer import Token, TokenStream
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import ChainableUndefined, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from templates_app.meter import (
    MAX_BITS,
    MAX_DEPTH,
    MAX_ITEMS,
    MAX_SOURCE,
    MAX_TEXT,
    MAX_TOKENS,
    Meter,
    Refused,
    enter,
    escaped,
    joined,
    meter,
    short,
    tick,
    too_long,
    too_many,
    weighed,
    weight,
    within,
)
from templates_app.vocabulary import FILTERS, LOOP_ATTRIBUTES, METHODS, TESTS, Method, bare, bounded_range

# No template can write these names: they are not names.
_INSIDE: Final = {"~tick": tick, "~enter": enter, "~weigh": weighed, "~within": within, "~concat": joined}

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
            raise too_long()
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
        for kind, methods in METHODS.items():
            if isinstance(obj, kind) and attribute in methods:
                return Method(methods[attribute], str(obj) if isinstance(obj, Markup) else obj)
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        if isinstance(obj, tuple) and attribute in getattr(obj, "_fields", ()):  # what groupby makes
            return getattr(obj, attribute)
        if isinstance(obj, LoopContext) and attribute in LOOP_ATTRIBUTES:
            found = getattr(obj, attribute)
            return Method(lambda loop, *args: getattr(loop, attribute)(*map(weighed, args)), obj) if callable(found) else found
        if isinstance(obj, Namespace):
            return getattr(obj, attribute, None)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`x["key"]`, `x[0]`; what is not there is undefined."""
        meter().pay(1)  # Jinja's own filters ask here once for each item and each part of an `attribute`, whatever they find
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
        if not isinstance(__obj, (Method, Macro, LoopContext)) and id(__obj) not in __self.callables:
            raise Refused(_("%(kind)s cannot be called from a template") % {"kind": type(__obj).__name__})
        now.pay(10 + (sum(map(weight, args)) + sum(map(weight, kwargs.values())) >> 1))
        now.depth += 1
        try:
            if now.depth > MAX_DEPTH:
                raise Refused(_("macros call each other more than %(limit)d deep") % {"limit": MAX_DEPTH})
            return __context.call(__obj, *args, **kwargs)
        finally:
            now.depth -= 1

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """A filter named by a text, as in `map("upper")`; the meter's own cannot be named."""
        if name.startswith("~"):
            raise Refused(_("No filter named %(name)r.") % {"name": name})
        return super().call_filter(name, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic with small numbers; texts are joined and repeated within their limit."""
        meter().pay(3)
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return self.binop_table[operator](left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return joined([left, right])
        if operator == "*" and isinstance(left, int) and isinstance(right, (str, list, tuple)):
            left, right = right, left
        if isinstance(left, (str, list, tuple)) and operator == "*" and isinstance(right, int):
            if len(left) * right > (MAX_TEXT if isinstance(left, str) else MAX_ITEMS):
                raise too_long() if isinstance(left, str) else too_many()
            return weighed(bare(left) * right)
        if isinstance(left, (list, tuple)) and operator == "+":
            if len(left) + len(right) > MAX_ITEMS:
                raise too_many()
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

    callables: frozenset[int] = frozenset()

    def offer(self, functions: Mapping[str, Callable[..., Any]], filters: Mapping[str, Callable[..., Any]]) -> None:
        """Adds the house's helpers."""
        self.globals.update(functions)
        self.filters.update(filters)
        self.callables = frozenset(id(value) for value in self.globals.values() if callable(value))


@pass_context
def _finalize(context: Context, value: Any) -> Markup:
    # With the context asked for, Jinja cannot run this (and the filters before it) already while it compiles.
    now: Meter = meter()
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
    environment.filters.update({**FILTERS, **_INSIDE})
    environment.tests.clear()
    environment.tests.update(TESTS)
    environment.globals.clear()
    environment.globals.update({"range": bounded_range, "namespace": Namespace})
    return environment


ENVIRONMENT: Final = _environment()


@functools.lru_cache(256)
def names_asked(source: str) -> Mapping[str, int]:
    """The values that a template (one that compiles) expects from outside, each with the line in which it asks for it first."""
    tree = ENVIRONMENT.parse(source)
    free = find_undeclared_variables(tree) - set(ENVIRONMENT.globals)
    lines: dict[str, int] = {}
    for node in tree.find_all(nodes.Name):
        if node.name in free:
            lines[node.name] = min(node.lineno, lines.get(node.name, node.lineno))
    return lines
