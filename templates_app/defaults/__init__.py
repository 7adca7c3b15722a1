"""The default texts: what is said when nobody has written a template.

One text for each language, event and shape ("mail_text" is the plain part of a mail, where that says more than other plain texts). A format uses the shape of its own name where there is one, then that of its family
(`Format.base`), then plain; formats of the json family have none ("": the sender makes its own body). The markdown dialects share one text, since bold, links and colours come from the format. A transport
may bring texts of its own: a mapping whose keys are `(language, event)`, `event` or "" (any event), looked up in this order.
"""

from collections.abc import Mapping
from typing import Any, Final

from templates_app.defaults import en, zh_hans
from templates_app.events import language_of
from templates_app.formats import format_named

_TEXTS: Final[dict[str, dict[str, dict[str, str]]]] = {"zh-hans": zh_hans.TEXTS, "en": en.TEXTS}


def default_source(event: str, fmt: str, language: str, extra: Mapping[Any, str] | None = None) -> str:
    """The default template of an event in a format; raises KeyError for an event that has no text."""
    code = language_of(language)
    for key in ((code, event), event, ""):
        if extra and key in extra:
            return extra[key]
    shapes = _TEXTS[code][event]
    if format_named(fmt).base == "json":
        return shapes.get(fmt, "")
    return shapes.get(fmt) or shapes.get(format_named(fmt).base) or shapes["plain"]


def default_subject(event: str, language: str) -> str:
    """The default subject (e-mail subject, push title, preview of a chat message) of an event."""
    return _TEXTS[language_of(language)][event]["subject"]
