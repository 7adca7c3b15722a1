"""Who of the people that somebody chooses cannot be reached, said where they are chosen and not first at night."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _

from channels_app import addresses
from escalation import rules, targets
from escalation.models.workspace import SEVERITIES
from mapping.models import Installation, Member

MOST = 5
Wishes = Mapping[str, Sequence[str] | None]  # severity -> kinds; None: each person's own preference
PREFERRED: Wishes = dict.fromkeys(dict(SEVERITIES))


def unreached(members: Collection[int], now: datetime, wishes: Wishes = PREFERRED) -> dict[int, str]:
    """For each of `members` whom a way that is wanted does not reach: who it is, for which severities nothing does, and why."""
    silent: dict[int, list[str]] = {}
    reasons: dict[int, dict[str, None]] = {}
    for severity, kinds in wishes.items():
        for member, ways in addresses.reach(members, severity, now, kinds=kinds).items():
            missing = [way for way in ways if isinstance(way, addresses.Missing)]
            if len(missing) == len(ways):
                silent.setdefault(member, []).append(str(dict(SEVERITIES)[severity]))
            for way in missing:
                why = _(way.reason)
                reasons.setdefault(member, {})[f"{addresses.label(way.kind)}: {why}" if way.kind else why] = None
    found = {}
    for member, name in Member.objects.filter(id__in=reasons).order_by("name", "id").values_list("id", "name"):
        lost = silent.get(member, [])
        if len(lost) == len(wishes):
            said = _("%(name)s cannot be reached.") % {"name": name}
        elif lost:
            said = _("%(name)s cannot be reached for %(severities)s.") % {"name": name, "severities": ", ".join(lost)}
        else:
            said = _("%(name)s is not reached in every way that is wanted.") % {"name": name}
        found[member] = " ".join([said, *reasons[member]])
    return found


def unreached_by(layers: Sequence[Mapping[str, Any]], now: datetime) -> list[list[str]]:
    """For each layer of a rule, as `rules.rule_body` has it, what `unreached` says of the people whom it names now."""
    people = [targets.people(layer, (), now) for layer in layers]
    by_preference = {member for layer, ids in zip(layers, people, strict=True) if layer["follow_preference"] for member in ids}
    preferred = unreached(by_preference, now)
    found = []
    for layer, ids in zip(layers, people, strict=True):
        chosen = {severity: kinds for severity, kinds in layer["by"].items() if kinds}
        said = preferred if layer["follow_preference"] else unreached(ids, now, chosen)
        found.append([words for member, words in said.items() if member in ids])
    return found


def unreached_of(rule_id: int, now: datetime) -> list[list[str]]:
    """`unreached_by` of a rule as it is configured now, for each layer in its order."""
    return unreached_by(rules.current_body(rule_id)["layers"], now)


def unreached_by_catch_all(workspace_id: int, now: datetime) -> list[str]:
    """What `unreached` says of the people whom the catch-all of a workspace, and the installation's after it, name now."""
    body = rules.catch_all_bodies([workspace_id])[workspace_id]
    return list(dict.fromkeys(words for layer in unreached_by(body["layers"], now) for words in layer)) if body else []


def unreached_by_installation(now: datetime) -> list[str]:
    """What `unreached` says of the people whom the installation's catch-all names now."""
    site = Installation.get()
    ids = [list(rows.values_list("id", flat=True)) for rows in (site.catch_all_members, site.catch_all_teams)]
    return list(unreached(targets.people({"members": ids[0], "teams": ids[1], "supervisors": False}, (), now), now).values())


def shown(lines: Iterable[str]) -> str:
    """The sentences one below the other, for a field of a page."""
    return format_html_join(
        mark_safe("<br>"), '<span class="text-orange-700 dark:text-orange-400">{}</span>', ((line,) for line in lines)
    ) or _("nobody of those who are named here")


def warn(request: HttpRequest, lines: Iterable[str]) -> None:
    """The sentences above the next page, each once; of many the first ones."""
    once = list(dict.fromkeys(lines))
    for line in once[:MOST]:
        messages.warning(request, line)
    if len(once) > MOST:
        messages.warning(request, _("So it is with %(count)d more.") % {"count": len(once) - MOST})
