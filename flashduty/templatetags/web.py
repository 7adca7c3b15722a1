"""Filters of the web pages: texts that strangers wrote, and instants as people say them."""

from datetime import datetime

from django import template
from django.utils import formats, timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

register = template.Library()

# Characters that turn the direction of what follows. In a title from outside they can make a page read as something it is not.
_TURNS = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C])


@register.filter
def calm(text: object) -> str:
    """A text from outside without characters that change the writing direction; escaping is the template's."""
    return str(text).translate(_TURNS)


@register.filter
def clock(moment: datetime | None) -> str:
    """Time of day with seconds in the reader's zone, with the date before it unless it is today."""
    if moment is None:
        return ""
    local = timezone.localtime(moment)
    time = formats.date_format(local, "H:i:s")
    return time if local.date() == timezone.localdate() else f"{formats.date_format(local, 'Y-m-d')} {time}"


@register.filter
def short(seconds: int | float) -> str:
    """90 -> "90 seconds", 120 -> "2 minutes", 7200 -> "2 hours"."""
    seconds = int(seconds)
    if seconds and seconds % 3600 == 0:
        return ngettext("%(n)d hour", "%(n)d hours", seconds // 3600) % {"n": seconds // 3600}
    if seconds and seconds % 60 == 0:
        return ngettext("%(n)d minute", "%(n)d minutes", seconds // 60) % {"n": seconds // 60}
    return ngettext("%(n)d second", "%(n)d seconds", seconds) % {"n": seconds}


@register.filter
def since(moment: datetime, now: datetime) -> str:
    """How long ago, in the largest unit that says something."""
    seconds = max(int((now - moment).total_seconds()), 0)
    for size, words in ((86400, lambda n: ngettext("%(n)d day ago", "%(n)d days ago", n)),
                        (3600, lambda n: ngettext("%(n)d hour ago", "%(n)d hours ago", n)),
                        (60, lambda n: ngettext("%(n)d minute ago", "%(n)d minutes ago", n))):  # fmt: skip
        if seconds >= size:
            return words(seconds // size) % {"n": seconds // size}
    return _("just now")
