"""Turning a template and a Context into a message: one function, safe to call from any thread, bounded in time and memory.

A failure is one error with a sentence for the author and the line it happened in; what to send instead is decided in `choose.py`.
"""

import difflib
import functools
import re
import time
from collections.abc import Mapping
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.utils.translation import gettext as _
from jinja2 import Template, TemplateError, TemplateSyntaxError

from templates_app import helpers
from templates_app.events import Recipient, addressed, language_of
from templates_app.formats import format_named
from templates_app.meter import MAX_OUTPUT, Meter, metered
from templates_app.samples import SAMPLE_NOW, sample
from templates_app.sandbox import names_asked

_ENVIRONMENT: Final = helpers.ENVIRONMENT
_EMPTY_LINES: Final = re.compile(r"\n{3,}")
_SINGLE_BREAK: Final = re.compile(r"(?<!\n)\n(?!\n)")


class TemplateFailed(Exception):
    """A template that could not be compiled or rendered: `str(error)` is the sentence, `line` counts from 1 (0 = unknown), `always` says that it
    fails whatever the data."""

    def __init__(self, text: str, line: int = 0, *, always: bool = False) -> None:
        super().__init__(_("line %(line)d: %(text)s") % {"line": line, "text": text} if line else text)
        self.text = text
        self.line = line
        self.always = always


def render(
    source: str,
    context: Mapping[str, Any],
    *,
    fmt: str,
    language: str = "en",
    time_zone: str = "UTC",
    now: float | None = None,
) -> str:
    """The message a template makes of a Context in a format; raises TemplateFailed. `now` (Unix seconds) is what `ago` counts from.

    Cut at 256 kB. Except in html and json, runs of empty lines (labels that were not there) become one.
    """
    template = compiled(source)
    style = format_named(fmt)
    given = Meter(style, language_of(language), zone(time_zone), time.time() if now is None else now)
    with metered(given):
        try:
            text = _written(template, context)
        except Exception as error:
            # Whatever an author wrote, the caller gets one kind of error: a page must not die of a type error in a template.
            raise TemplateFailed(_sentence(error), _line(template, error)) from error
    if style.base in ("html", "json"):
        return text
    # Line by line: a regular expression for trailing spaces takes quadratic time (ten seconds for 60,000 spaces).
    text = _EMPTY_LINES.sub("\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()
    return text if style.newline == "\n" else _SINGLE_BREAK.sub(style.newline, text)


def compiled(source: str) -> Template:
    """The template of a source text, from the cache where it was compiled before (failures are remembered too); raises TemplateFailed."""
    found = _compiled(source)
    if isinstance(found, Template):
        return found
    raise TemplateFailed(*found, always=True)


@functools.lru_cache(256)
def _compiled(source: str) -> Template | tuple[str, int]:
    try:
        return _ENVIRONMENT.from_string(source)
    except TemplateSyntaxError as error:
        return str(error.message), error.lineno
    except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError, TemplateError) as error:
        # Jinja accepts some sources Python's own compiler does not, such as an expression nested two hundred deep.
        return _("the template cannot be compiled (%(kind)s); make it simpler") % {"kind": type(error).__name__}, 0


@functools.lru_cache(256)
def zone(name: str) -> ZoneInfo:
    """The time zone of that name; an unknown one is UTC."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        return ZoneInfo("UTC")


def preview(
    source: str, *, fmt: str, language: str = "en", variant: str = "critical", event: str = "triggered", time_zone: str = "UTC"
) -> str:
    """What a template makes of sample data (`samples.VARIANTS`); raises TemplateFailed, also where it asks for a value that no message has: sent,
    that would be an empty place in a sentence."""
    person: Recipient = {"name": "李雷" if language_of(language) == "zh-hans" else "Li Lei", "language": language, "time_zone": time_zone}
    context = addressed(sample(language, variant, event), recipient=person, actions_url="https://flashduty.example.com/i/sample/")
    text = render(source, context, fmt=fmt, language=language, time_zone=time_zone, now=SAMPLE_NOW)
    for name, line in names_asked(source).items():
        if name not in context:
            near = difflib.get_close_matches(name.lower(), context, 1)
            advice = (
                _("did you mean %(name)s?") % {"name": near[0]}
                if near
                else _("there are: %(names)s") % {"names": ", ".join(sorted(context))}
            )
            sentence = _("no message of this event has a value named %(name)s; %(advice)s")
            raise TemplateFailed(sentence % {"name": name, "advice": advice}, line, always=True)
    return text


def _written(template: Template, context: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    room = MAX_OUTPUT
    for piece in template.root_render_func(template.new_context(dict(context))):
        size = len(piece) if piece.isascii() else len(piece.encode())
        if size > room:
            pieces.append(piece.encode()[:room].decode("utf-8", "ignore"))
            break
        room -= size
        pieces.append(piece)
    return "".join(pieces)


def _sentence(error: Exception) -> str:
    if isinstance(error, TemplateError):
        return str(error.message or error)
    if isinstance(error, RecursionError):
        return _("the template is nested too deeply")
    return f"{type(error).__name__}: {error}"[:500]


def _line(template: Template, error: Exception) -> int:
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__jinja_template__") is template or trace.tb_frame.f_code.co_filename == "<template>":
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line
