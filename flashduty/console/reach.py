"""Who of the people that somebody chooses cannot be reached, said where they are chosen and not first at night."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.db.models import Count, Q
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _

from channels_app import addresses
from escalation import rules, targets
from escalation.models.workspace import SEVERITIES
from mapping.models import Installation, Member, Team
from mapping.visibility import Status

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


def unreached_by(layers: Sequence[Mapping[str, Any]], now: datetime) -> list[list[str] | None]:
    """For each layer of a rule, as `rules.rule_body` has it, a sentence for everybody and everything that keeps people whom it names from
    being told now; None where there is nobody of whom to say anything: it names nobody, or only supervisors, who are not known before.

    Members are asked about although they are not active, for here they are named; of a team only those count who are."""
    people = [{*layer["members"], *targets.people(layer, (), now)} for layer in layers]
    by_preference = {member for layer, ids in zip(layers, people, strict=True) if layer["follow_preference"] for member in ids}
    preferred = unreached(by_preference, now)
    teams = _teams_of_nobody({team for layer in layers for team in layer["teams"]})
    found: list[list[str] | None] = []
    for layer, ids in zip(layers, people, strict=True):
        chosen = {severity: kinds for severity, kinds in layer["by"].items() if kinds}
        said = preferred if layer["follow_preference"] else unreached(ids, now, chosen)
        lines = [words for member, words in said.items() if member in ids]
        lines += [words for team, words in teams.items() if team in layer["teams"]]
        if (ids or layer["supervisors"]) and not layer["follow_preference"]:
            left = [str(label) for severity, label in SEVERITIES if severity not in chosen]
            if left:
                words = _("The layer chooses no way for %(severities)s: then its people are not told.")
                lines.append(words % {"severities": ", ".join(left)})
        found.append(lines if lines or layer["members"] or layer["teams"] else None)
    return found


def _teams_of_nobody(ids: Collection[int]) -> dict[int, str]:
    """Of these teams those by which nobody is told, in the order of their names, and why."""
    found = {}
    active = Count("members", filter=Q(members__is_active=True))
    for team in Team.objects.filter(id__in=ids).annotate(active=active).order_by("name", "id"):
        if team.status != Status.ENABLED:
            found[team.pk] = _("%(name)s: the team is not enabled, so nobody in it is told.") % {"name": team.name}
        elif not team.active:
            found[team.pk] = _("%(name)s: nobody in the team is active.") % {"name": team.name}
    return found


def unreached_of(rule_id: int, now: datetime) -> list[list[str] | None]:
    """`unreached_by` of a rule as it is configured now, for each layer in its order."""
    return unreached_by(rules.current_body(rule_id)["layers"], now)


def unreached_by_catch_all(workspace_id: int, now: datetime) -> list[str] | None:
    """What `unreached_by` says of the catch-all of a workspace and the installation's after it, each once; None where they name nobody."""
    body = rules.catch_all_bodies([workspace_id])[workspace_id]
    said = [lines for lines in unreached_by(body["layers"], now) if lines is not None] if body else []
    return list(dict.fromkeys(words for lines in said for words in lines)) if said else None


def unreached_by_installation(now: datetime) -> list[str] | None:
    """What `unreached_by` says of the installation's catch-all."""
    site = Installation.get()
    members, teams = (list(rows.values_list("id", flat=True)) for rows in (site.catch_all_members, site.catch_all_teams))
    return unreached_by([{"members": members, "teams": teams, "supervisors": False, "follow_preference": True, "by": {}}], now)[0]


def shown(lines: Iterable[str] | None) -> str:
    """The sentences one below the other, for a field of a page; None: there is nobody of whom to say anything."""
    if lines is None:
        return "-"
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
