"""Which text is sent: the template somebody wrote for this event and channel, else the default; and never none at all.

Pure: template rows come in as plain values, so that a sender thread needs no database. What failed goes out in `Rendered.error` with
the id of the template, for the outbox to report on the row (`models.report_failure`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypedDict

from django.utils.translation import gettext as _

from templates_app.defaults import default_source, default_subject
from templates_app.events import BUNDLE, ESCALATED, REFIRE, TRIGGERED, build_bundle, language_of
from templates_app.formats import format_named
from templates_app.render import TemplateFailed, render

# A page is a page: who wrote a text for the first one means the later ones too, unless they have one of their own.
_STANDS_IN: Final = {REFIRE: TRIGGERED, ESCALATED: TRIGGERED}


class TemplateRow(TypedDict):
    """One Template as plain values, the way `TemplateSet.rows()` gives it."""

    id: int
    event: str
    kind: str
    language: str
    subject: str
    body: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A message ready to send; `html` only in the html format (then `text` is its plain part).

    `error` says why the text of template `template_id` (None: a text the channel brings along) was not used; the default text stands
    in its place. In formats of the json family `text` is "" where nobody wrote a body: the sender makes its own.
    """

    subject: str
    text: str
    html: str | None = None
    template_id: int | None = None
    error: str | None = None


def choose(rows: Sequence[TemplateRow], event: str, kind: str, fmt: str, language: str, family: str = "") -> TemplateRow | None:
    """The row for an event: the channel's kind before its family ("sms" for all that send SMS; "" where it has none) before its format,
    the language before "any"; loops and escalations use the text of the first page where they have none of their own."""
    code = language_of(language)
    for wanted in (event, _STANDS_IN.get(event)):
        for spoken in filter(None, dict.fromkeys((kind, family, fmt))):
            for tongue in (code, ""):
                for row in rows:
                    if row["event"] == wanted and row["kind"] == spoken and row["language"] == tongue:
                        return row
    return None


def render_or_default(
    rows: Sequence[TemplateRow],
    event: str,
    context: Mapping[str, Any],
    *,
    kind: str,
    fmt: str,
    language: str,
    time_zone: str = "UTC",
    default: Mapping[Any, str] | None = None,
    now: float | None = None,
    family: str = "",
) -> Rendered:
    """The message for one delivery; never raises, and (but for json, see Rendered) never is empty.

    `default` are texts a transport brings along (see `defaults`), `now` is what "5 minutes ago" counts from (Unix seconds). `family`: see `choose`.
    """

    def made(source: str, style: str) -> str:
        return render(source, context, fmt=style, language=language, time_zone=time_zone, now=now)

    error: str | None = None

    def standard(style: str, extra: Mapping[Any, str] | None = None) -> str:
        nonlocal error
        for texts in (extra, None):
            try:
                source = default_source(event, style, language, texts)
                if not source or (words := made(source, style)):
                    return words if source else ""
            except KeyError:
                continue
            except TemplateFailed as failed:
                error = error or str(failed)
        return "" if format_named(style).base == "json" else _last_words(context, style)

    row = choose(rows, event, kind, fmt, language, family)
    body = subject = ""
    if row is not None:
        try:
            body = made(row["body"], fmt)
            if not body.strip():
                raise TemplateFailed(_("the text came out empty"))
            subject = made(row["subject"], "plain") if row["subject"] else ""
        except TemplateFailed as failed:
            body, error = "", str(failed)
    body = body or standard(fmt, default)
    if not subject:
        try:
            subject = made(default_subject(event, language), "plain")
        except (TemplateFailed, KeyError):
            subject = ""
    subject = " ".join(subject.split()) or _last_words(context, "plain").split("\n")[0]
    used = row["id"] if row is not None else None
    if format_named(fmt).base == "html":
        return Rendered(subject, standard("mail_text"), body, used, error)
    return Rendered(subject, body, None, used, error)


def render_bundle(
    incidents: Sequence[Mapping[str, Any]],
    *,
    kind: str,
    fmt: str,
    language: str,
    limit: int | None,
    max_chars: int | None = None,
    rows: Sequence[TemplateRow] = (),
    time_zone: str = "UTC",
    default: Mapping[Any, str] | None = None,
    recipient: Mapping[str, Any] | None = None,
    now: float | None = None,
    family: str = "",
    holds: Callable[[str], bool] | None = None,
) -> tuple[Rendered, int]:
    """One message for as many of the incidents (in the order given) as fit `limit` bytes of UTF-8 and `max_chars` characters, and how many
    these are. `holds`: whether a text goes out whole, where a provider counts in another way than by bytes or characters.

    At least one is taken, whatever its length: the transport shortens. `incidents` must not be empty.
    """

    def message(count: int) -> Rendered:
        context = {**build_bundle(incidents[:count], left=len(incidents) - count), "recipient": recipient}
        return render_or_default(
            rows, BUNDLE, context, kind=kind, family=family, fmt=fmt, language=language, time_zone=time_zone, default=default, now=now
        )

    def fits(rendered: Rendered) -> bool:
        text = rendered.html or rendered.text
        if (limit is not None and len(text.encode()) > limit) or (max_chars is not None and len(text) > max_chars):
            return False
        return holds is None or holds(rendered.text)

    # More than this no provider takes in one message, and a render has its bounds.
    low, high = 1, min(len(incidents), 200)
    best = message(high)
    if fits(best):
        return best, high
    best, high = message(low), high - 1
    while low < high:
        middle = (low + high + 1) // 2
        tried = message(middle)
        if fits(tried):
            low, best = middle, tried
        else:
            high = middle - 1
    return best, low


def _last_words(context: Mapping[str, Any], fmt: str) -> str:
    """What is left when even a default text fails: title and address, escaped. Ugly, but somebody is woken."""
    escape = format_named(fmt).escape
    title = context.get("title") or context.get("code") or context.get("event") or "Flashduty"
    return escape("\n".join(filter(None, (f"#{context.get('num', '')} {title}", str(context.get("detail_url") or "")))))
