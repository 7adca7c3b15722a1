"""Where a person is reached, by which channels, and why not: one answer for the engine, for explain and for every page that shows it.

A kind means its first enabled channel (by position) of those that are shared or belong to a team of the person: another team's channel would
show that team's provider what is written to people it knows nothing of. Who has set no preference is told by what suits the severity, as far
as there are channels and the person has what it takes: see DEFAULTS."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from django.utils.translation import gettext_noop

from channels_app import transport
from channels_app.models import Channel, Preference
from mapping.models import ContactPoint, Device, Member, Team

# Without a preference: by families of kinds. Critical rings wherever it can.
DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "Critical": ("app", "push", "voice", "sms", "email", "im"),
    "Warning": ("app", "push", "email", "im"),
    "Info": ("email",),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One way to a person: `target` is the address at the channel, `delay` in seconds."""

    channel_id: int
    target: str
    delay: float
    kind: str


@dataclass(frozen=True, slots=True)
class Missing:
    """A way that is not there; `reason` is an English sentence for gettext."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Wish:
    kind: str
    channel: int | None = None
    delay: float = 0


def reach(
    member_ids: Iterable[int], severity: str, now: datetime, *, kinds: Sequence[str] | None = None
) -> dict[int, list[Target | Missing]]:
    """For each member the ways to reach them now, in order: by `kinds`, or (None) by their own preference for the severity.

    Every wish ends in a Target or in a Missing that says why; a member for whom nothing at all can be said has one Missing.
    """
    ids = sorted(set(member_ids))
    if not ids:
        return {}
    active = set(Member.objects.filter(id__in=ids, is_active=True).values_list("id", flat=True))
    channels = {
        row.id: row for row in Channel.objects.only("id", "kind", "name", "status", "position", "team_id").order_by("position", "id")
    }
    enabled = [row for row in channels.values() if row.status == "enabled"]
    teams = _teams(ids) if any(row.team_id is not None for row in enabled) else {}
    shared = _first(enabled, set())
    preferred: dict[int, list[_Wish]] = defaultdict(list)
    if kinds is None:
        for member, kind, channel, delay in (
            Preference.objects.filter(member_id__in=ids, severity=severity)
            .order_by("member_id", "position", "id")
            .values_list("member_id", "kind", "channel_id", "delay")
        ):
            preferred[member].append(_Wish(kind, channel, delay))
    points, devices = _points(ids), _devices(ids)
    result: dict[int, list[Target | Missing]] = {}
    for member in ids:
        if member not in active:
            result[member] = [Missing("", gettext_noop("The person is not active."))]
            continue
        first = _first(enabled, teams[member]) if member in teams else shared
        by_default = kinds is None and not preferred[member]
        wishes = [_Wish(kind) for kind in kinds] if kinds is not None else preferred[member] or _default(severity, first)
        found = [item for wish in wishes for item in _ways(wish, member, channels, first, points.get(member, []), devices.get(member, []))]
        if by_default:
            # Nobody asked for these: the ones that are not there are worth a word only when none is.
            found = [item for item in found if isinstance(item, Target)] or found
        result[member] = _once(found) or [Missing("", gettext_noop("No channel is set up that reaches a person for this severity."))]
    return result


def kinds_for_people() -> list[str]:
    """The kinds that may be chosen to reach a person, in the order of their names."""
    return [kind for kind, style in transport.transports().items() if style.person]


def _default(severity: str, first: Mapping[str, Channel]) -> list[_Wish]:
    known = transport.transports()
    wanted = DEFAULTS.get(severity, DEFAULTS["Info"])
    people = [kind for kind in first if kind in known and known[kind].person]
    chosen = [kind for family in wanted for kind in people if family in (kind, known[kind].family)]
    # An installation that has nothing of the sort still tells people by what it has.
    return [_Wish(kind) for kind in dict.fromkeys(chosen or people)]


def _ways(
    wish: _Wish,
    member: int,
    channels: Mapping[int, Channel],
    first: Mapping[str, Channel],
    points: Sequence[ContactPoint],
    devices: Sequence[Device],
) -> list[Target | Missing]:
    kind = wish.kind
    if wish.channel is not None:
        channel = channels.get(wish.channel)
        if channel is None or channel.status != "enabled":
            return [Missing(kind, gettext_noop("The channel of the preference is switched off."))]
    elif (channel := first.get(kind)) is None:
        known = transport.transports()
        if kind not in known and all(style.family != kind for style in known.values()):
            return [Missing(kind, gettext_noop("This kind of channel does not exist any more."))]
        return [Missing(kind, gettext_noop("There is no enabled channel of this kind."))]
    try:
        style = transport.get(channel.kind)
    except LookupError:
        return [Missing(kind, gettext_noop("This kind of channel does not exist any more."))]
    if not style.person:
        return [Missing(kind, gettext_noop("Channels of this kind reach groups and not persons."))]
    if style.reach == "member":
        return [Target(channel.id, f"member:{member}", wish.delay, kind)]
    if style.reach in ("phone", "email"):
        return [_point(wish, channel.id, style.reach, points)]
    if style.reach == "device":
        usable = [device for device in devices if device.enabled and device.push_token]
        if not usable:
            return [
                Missing(kind, gettext_noop("No device is linked.") if not devices else gettext_noop("No linked device is switched on."))
            ]
        return [Target(channel.id, f"device:{device.id}", wish.delay, kind) for device in usable]
    return [Missing(kind, gettext_noop("The person's account on this platform is not linked."))]


def _point(wish: _Wish, channel: int, reach: str, points: Sequence[ContactPoint]) -> Target | Missing:
    mine = [point for point in points if point.kind == reach]
    for point in mine:
        if point.is_usable:
            return Target(channel, point.value, wish.delay, wish.kind)
    phone = reach == "phone"
    if any(point.verified_at is not None for point in mine):
        return Missing(
            wish.kind,
            gettext_noop("Messages to the e-mail address came back.")
            if not phone
            else gettext_noop("Messages to the phone number came back."),
        )
    if mine:
        return Missing(
            wish.kind, gettext_noop("The phone number is not verified.") if phone else gettext_noop("The e-mail address is not verified.")
        )
    return Missing(
        wish.kind, gettext_noop("The person has no phone number.") if phone else gettext_noop("The person has no e-mail address.")
    )


def _once(found: Sequence[Target | Missing]) -> list[Target | Missing]:
    """The same place at the same channel is told once, at the shortest delay that was asked for, in the order of the first mention."""
    best: dict[tuple[int, str], Target] = {}
    for item in found:
        if isinstance(item, Target):
            known = best.get((item.channel_id, item.target))
            if known is None or item.delay < known.delay:
                best[item.channel_id, item.target] = item
    result: list[Target | Missing] = []
    for item in found:
        if isinstance(item, Missing):
            result.append(item)
        elif (kept := best.pop((item.channel_id, item.target), None)) is not None:
            result.append(kept)
    return result


def _first(enabled: Iterable[Channel], teams: set[int]) -> dict[str, Channel]:
    """Of each kind and of each family the first channel that is shared or of one of these teams."""
    first: dict[str, Channel] = {}
    known = transport.transports()
    for row in enabled:
        if row.team_id is None or row.team_id in teams:
            first.setdefault(row.kind, row)
            if row.kind in known and known[row.kind].family:
                first.setdefault(known[row.kind].family, row)
    return first


def _teams(ids: Sequence[int]) -> dict[int, set[int]]:
    by: dict[int, set[int]] = defaultdict(set)
    for team, member in (
        Team.members.through.objects.filter(member_id__in=ids).exclude(team__status="deleted").values_list("team_id", "member_id")
    ):
        by[member].add(team)
    return dict(by)


def _points(ids: Sequence[int]) -> dict[int, list[ContactPoint]]:
    by: dict[int, list[ContactPoint]] = defaultdict(list)
    for point in ContactPoint.objects.filter(member_id__in=ids).order_by("member_id", "kind", "position", "id"):
        by[point.member_id].append(point)
    return by


def _devices(ids: Sequence[int]) -> dict[int, list[Device]]:
    by: dict[int, list[Device]] = defaultdict(list)
    for device in Device.objects.filter(member_id__in=ids).order_by("member_id", "id"):
        by[device.member_id].append(device)
    return by
