"""How a person wants to be told, as one sentence for each severity. Pure: what is chosen and what is there come in as plain values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, pgettext

from flashduty.templatetags.web import short
from mapping.quiet import Quiet

DAYS: Final = (
    gettext_lazy("Monday"), gettext_lazy("Tuesday"), gettext_lazy("Wednesday"), gettext_lazy("Thursday"), gettext_lazy("Friday"),
    gettext_lazy("Saturday"), gettext_lazy("Sunday"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Step:
    """One way to a person: in words, how many seconds later, and whether it wakes nobody."""

    words: str
    delay: float = 0
    silent: bool = False


def sentence(steps: Sequence[Step], severity: str, quiet: Quiet | None = None) -> str:
    """What happens for something of this severity, as one sentence in the language that is active; "" without steps."""
    if not steps:
        return ""
    parts = []
    for delay in sorted({step.delay for step in steps}):
        ways = _listed(step.words for step in steps if step.delay == delay)
        if delay:
            parts.append(_("%(ways)s after %(delay)s") % {"ways": ways, "delay": short(delay)})
        else:
            parts.append(_("%(ways)s at once") % {"ways": ways})
    text = pgettext("between the steps of how somebody is told", ", ").join(parts)
    if any(step.delay for step in steps):
        text = _("%(steps)s, until somebody has acknowledged") % {"steps": text}
    if quiet is not None:
        text = _with_quiet(text, steps, severity, quiet)
    return text[:1].upper() + text[1:] + pgettext("end of a sentence", ".")


def _with_quiet(text: str, steps: Sequence[Step], severity: str, quiet: Quiet) -> str:
    silent = [step.words for step in steps if step.silent]
    values = {"told": text, "hours": hours(quiet), "ways": _listed(silent)}
    if severity in quiet.breaks:
        return _("%(told)s; in your quiet hours (%(hours)s), too") % values
    if len(silent) == len(steps):
        return text
    if silent:
        return _("%(told)s; in your quiet hours (%(hours)s) only %(ways)s, and the rest when they are over") % values
    return _("%(told)s; in your quiet hours (%(hours)s) it waits until they are over") % values


def hours(quiet: Quiet) -> str:
    """Quiet hours in words: "22:00 to 07:00", with the weekdays on which they begin where these are not all."""
    text = _("%(start)s to %(end)s") % {"start": f"{quiet.start:%H:%M}", "end": f"{quiet.end:%H:%M}"}
    if not quiet.days or len(set(quiet.days)) == len(DAYS):
        return text
    return _("%(hours)s on %(days)s") % {"hours": text, "days": _listed(str(DAYS[day]) for day in sorted(quiet.days))}


def _listed(words: Iterable[str]) -> str:
    return pgettext("between channels", ", ").join(dict.fromkeys(words))
