"""Where a person is reached, by which channels, and why not: one answer for the engine, for explain and for every page that shows it.

A wish names a kind, or a family of kinds that do the same (voice, sms, email). Of the channels that answer to it one is taken, the first in
the order of `vendors`; at IM platforms every account of the person that is verified is told. Only channels count that are shared, belong to a
team of the person or to the person: another team's channel would show that team's provider what is written to people it knows nothing of. Who
has set no preference is told by what suits the severity, as far as there are channels and the person has what it takes: see DEFAULTS."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

import phonenumbers
from django.utils.translation import gettext_noop, pgettext_lazy

from channels_app import limits, policy, transport
from channels_app.models import Account, Channel, ChannelHealth, Preference
from mapping.models import ContactPoint, Device, Member, Team
from mapping.quiet import Quiet

# Without a preference: by families of kinds. Critical rings wherever it can.
DEFAULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "Critical": ("app", "push", "voice", "sms", "email", "im"),
    "Warning": ("app", "push", "email", "im"),
    "Info": ("email",),
}

# What people call a family of channels, whoever the vendor is, in the order in which it is offered.
FAMILIES: Final = {
    "app": pgettext_lazy("by which somebody is told", "app"),
    "push": pgettext_lazy("by which somebody is told", "push"),
    "voice": pgettext_lazy("by which somebody is told", "voice call"),
    "sms": pgettext_lazy("by which somebody is told", "SMS"),
    "email": pgettext_lazy("by which somebody is told", "e-mail"),
    "im": pgettext_lazy("by which somebody is told", "IM message"),
}

# What wakes nobody: it is not held back in quiet hours.
SILENT: Final = frozenset({"email"})
# Stored as the reason why something waits.
QUIET: Final = gettext_noop("quiet hours until %(name)s")


@dataclass(frozen=True, slots=True)
class Target:
    """One way to a person: `target` is the address at the channel, `delay` in seconds, `kind` the channel's, `reason` why it waits longer than
    the person asked for (English, for gettext)."""

    channel_id: int
    target: str
    delay: float
    kind: str
    reason: str = ""


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


@dataclass(frozen=True, slots=True)
class _Person:
    """What one of those who are asked about has."""

    id: int
    teams: Collection[int]
    points: Sequence[ContactPoint]
    devices: Sequence[Device]
    accounts: Sequence[Account]


# Of a channel; its secrets are nobody's business here.
FIELDS: Final = ("id", "kind", "name", "status", "position", "team_id", "regions", "weight", "owner_id", "monthly_quota", "targets")


@dataclass(frozen=True, slots=True)
class _House:
    """What there is for everybody: all channels, and which of them would only make somebody wait now."""

    channels: Mapping[int, Channel]
    resting: Collection[int]
    now: datetime


def reach(
    member_ids: Iterable[int], severity: str, now: datetime, *, kinds: Sequence[str] | None = None, hush: bool | None = None
) -> dict[int, list[Target | Missing]]:
    """For each member the ways to reach them now, in order: by `kinds` (or families), or (None) by their own preference for the severity.

    `hush`: what falls into their quiet hours waits; None: by their own preference it does, by `kinds` it does not.

    Every wish ends in a Target or in a Missing that says why; a member for whom nothing at all can be said has one Missing.
    """
    ids = sorted(set(member_ids))
    if not ids:
        return {}
    hush = kinds is None if hush is None else hush
    clocks = ("time_zone", "quiet_start", "quiet_end", "quiet_days", "quiet_breaks")
    active = {row.id: row.quiet for row in Member.objects.filter(id__in=ids, is_active=True).only("id", *clocks)}
    house = _House({row.id: row for row in Channel.objects.only(*FIELDS)}, set(), now)
    usable = [row for row in house.channels.values() if row.status == "enabled" and is_for_people(row.kind)]
    if len({family(row.kind) for row in usable}) < len(usable):  # a choice somewhere
        house = _House(house.channels, resting(usable, severity, now), now)
    teams = _teams(ids) if any(row.team_id is not None for row in usable) else {}
    preferred: dict[int, list[_Wish]] = defaultdict(list)
    if kinds is None:
        for member, kind, channel, delay in (
            Preference.objects.filter(member_id__in=ids, severity=severity)
            .order_by("member_id", "position", "id")
            .values_list("member_id", "kind", "channel_id", "delay")
        ):
            preferred[member].append(_Wish(kind, channel, delay))
    points, devices = _points(ids), _devices(ids)
    accounts = _accounts(ids) if any(_by_account(row.kind) for row in usable) else {}
    result: dict[int, list[Target | Missing]] = {}
    for member in ids:
        if member not in active:
            result[member] = [Missing("", gettext_noop("The person is not active."))]
            continue
        person = _Person(member, teams.get(member, ()), points.get(member, ()), devices.get(member, ()), accounts.get(member, ()))
        by_default = kinds is None and not preferred[member]
        wishes = [_Wish(kind) for kind in kinds] if kinds is not None else preferred[member] or _default(severity, person, usable)
        found = [item for wish in wishes for item in _ways(wish, person, house)]
        if by_default:
            # Nobody asked for these: the ones that are not there are worth a word only when none is.
            found = [item for item in found if isinstance(item, Target)] or found
        if hush and (quiet := active[member]) is not None:
            found = [_hushed(item, quiet, severity, now) if isinstance(item, Target) else item for item in found]
        result[member] = _once(found) or [Missing("", gettext_noop("No channel is set up that reaches a person for this severity."))]
    return result


def is_silent(kind: str) -> bool:
    """Whether a message of this kind of channel wakes nobody."""
    return family(kind) in SILENT


def _hushed(item: Target, quiet: Quiet, severity: str, now: datetime) -> Target:
    wait = 0.0 if is_silent(item.kind) else (quiet.earliest(severity, now, item.delay) - now).total_seconds()
    return replace(item, delay=wait, reason=quiet_words(quiet)) if wait > item.delay else item


def quiet_words(quiet: Quiet) -> str:
    """Why something waits for the end of these quiet hours, as it is stored."""
    return QUIET % {"name": f"{quiet.end:%H:%M} {quiet.zone.key}"}


def vendors(
    channels: Iterable[Channel],
    wanted: str,
    now: datetime,
    *,
    member: int,
    teams: Collection[int] = (),
    phone: str = "",
    resting: Collection[int] = (),
) -> list[Channel]:
    """The channels that answer to `wanted`, a kind or a family, for this member, in the order in which they are tried. Pure.

    Those of `resting` go last: their circuit breaker is open, or their month's messages are used up. Sandbox kinds stand behind all real ones.
    For a phone the channels that name its region go before those that name none, and those that name only others are left out. Then by
    position. Channels of one position that have a share (`weight`) are drawn in its proportion, by member and minute of `now`: a storm in one
    minute goes to one address, where it can be bundled; the next loop may try another vendor; and whoever asks within the minute (explain,
    the console) is told what really happens. Channels without a share follow by age.
    """
    known = transport.transports()
    fitting = [row for row in channels if _may(row, member, teams) and wanted in (row.kind, family(row.kind)) and is_for_people(row.kind)]
    region = _region(phone) if phone and any(row.regions for row in fitting) else ""
    if phone:
        fitting = [row for row in fitting if not row.regions or known[row.kind].reach != "phone" or region in row.regions]
    minute = int(now.timestamp() // 60)
    return sorted(
        fitting,
        key=lambda row: (
            known[row.kind].demo, row.id in resting, not row.regions, row.position, _draw(row, member, minute), row.id,
        ),
    )  # fmt: skip


def stand_ins(asked: Collection[tuple[int, int, str, str]], now: datetime) -> dict[tuple[int, int, str, str], list[int]]:
    """For each (member, channel, target, severity) the ids of the other channels that reach the same phone or mailbox, in the order in which
    they are tried; none for a channel whose addresses no other one reaches."""
    if not asked:
        return {}
    channels = list(Channel.objects.only(*FIELDS))
    by_id = {row.id: row for row in channels}
    teams = _teams(sorted({member for member, _channel, _target, _severity in asked}))
    waiting: dict[str, set[int]] = {}
    found = {}
    for one in asked:
        member, pk, target, severity = one
        failed = by_id.get(pk)
        if failed is None or not has_vendors(failed.kind):
            continue
        reach = transport.get(failed.kind).reach
        others = [row for row in channels if row.id != pk and has_vendors(row.kind) and transport.get(row.kind).reach == reach]
        if severity not in waiting:
            waiting[severity] = resting(channels, severity, now)
        found[one] = [row.id for row in vendors(
            others, family(failed.kind), now, member=member, teams=teams.get(member, ()), phone=target if reach == "phone" else "",
            resting=waiting[severity],
        )]  # fmt: skip
    return found


Backing = Literal["all", "some", "none"]


def backing() -> dict[int, Backing]:
    """For each channel, by its id, whether another one takes over the pages that it cannot deliver: all, some (of those to persons and those to
    groups only one kind) or none. Which persons have what the other one needs shows only then. One query, and no secret is opened."""
    rows = list(Channel.objects.only(*FIELDS, "fallback_kinds", "fallback_channel_id").order_by("id"))
    enabled = [row for row in rows if row.status == "enabled"]
    groups = {row.id for row in enabled if row.targets}
    found: dict[int, Backing] = {}
    for row in rows:
        style = transport.transports().get(row.kind)
        if style is None:
            continue
        covered: list[bool] = []
        if style.group and row.owner_id is None and row.targets:
            covered.append(row.fallback_channel_id in groups)
        # Where the only address is the group's own, a person is written to only by a channel that belongs to them.
        if style.person or (style.personal and (row.owner_id is not None or "" not in row.targets)):
            kinds = row.fallback_kinds if isinstance(row.fallback_kinds, list) else style.fallback_kinds
            covered.append(any(_stands_in(other, row, kinds) for other in enabled if other.id != row.id))
        found[row.id] = "all" if covered and all(covered) else "some" if any(covered) else "none"
    return found


def _stands_in(other: Channel, failed: Channel, kinds: Collection[str]) -> bool:
    if not is_for_people(other.kind) or other.owner_id not in (None, failed.owner_id):
        return False
    asked = other.kind in kinds or family(other.kind) in kinds
    return asked or (has_vendors(failed.kind) and has_vendors(other.kind) and family(other.kind) == family(failed.kind))


def kinds_for_people() -> list[str]:
    """The kinds that may be chosen to reach a person, in the order of their names."""
    return [kind for kind in transport.transports() if is_for_people(kind)]


def label(name: str) -> str:
    """What people call a family or a kind, in the language that is active; the name itself where nothing answers to it any more."""
    if name in FAMILIES:
        words = str(FAMILIES[name])
        return words[:1].upper() + words[1:]
    style = transport.transports().get(name)
    return str(style.label) if style is not None else name


def choices_for_people() -> list[tuple[str, str]]:
    """What may be named where people are told by kinds of channels, as (name, label): the families there are, then the kinds."""
    kinds = kinds_for_people()
    there = {family(kind) for kind in kinds}
    families = [name for name in FAMILIES if name in there] + sorted(there - FAMILIES.keys() - set(kinds))
    return [(name, label(name)) for name in dict.fromkeys([*families, *kinds])]


def is_for_people(kind: str) -> bool:
    """Whether a channel of this kind can reach a person: each of them, or those who have an account of their own there."""
    style = transport.transports().get(kind)
    return style is not None and (style.person or style.personal)


def has_vendors(kind: str) -> bool:
    """Whether another channel of the kind's family reaches the very same place, so that it can stand in: a phone or a mailbox."""
    style = transport.transports().get(kind)
    return style is not None and style.reach in ("phone", "email")


def family(kind: str) -> str:
    """What people ask for when they mean this kind: its family, or the kind itself where it has none."""
    style = transport.transports().get(kind)
    return (style.family if style is not None else "") or kind


def is_private(channel: Channel, account: Account) -> bool:
    """Whether only the account's person reads what goes there: their own channel, or a place that is none of those its groups read."""
    return channel.owner_id == account.member_id or account.target not in ("", *channel.targets)


def _by_account(kind: str) -> bool:
    style = transport.transports().get(kind)
    return style is not None and (style.reach == "account" or (style.personal and style.reach == "group"))


def _may(row: Channel, member: int, teams: Collection[int]) -> bool:
    if row.status != "enabled":
        return False
    return row.owner_id == member if row.owner_id is not None else row.team_id is None or row.team_id in teams


def _draw(row: Channel, member: int, minute: int) -> float:
    """Lower goes first. An exponential variable with the share as its rate: which of several is the least falls in proportion to the shares."""
    if not row.weight:
        return math.inf
    digest = hashlib.blake2b(f"{member} {minute} {row.id}".encode(), digest_size=8).digest()
    return -math.log((int.from_bytes(digest, "big") + 1) / 2**64) / row.weight


def _region(phone: str) -> str:
    """The region of a number in E.164, such as "CN"; "" where libphonenumber knows none."""
    try:
        return phonenumbers.region_code_for_number(phonenumbers.parse(phone)) or ""
    except phonenumbers.NumberParseException:
        return ""


def resting(usable: Sequence[Channel], severity: str, now: datetime) -> set[int]:
    """The ids of those that only make a message of this severity wait now: their breaker is open, or their month is used up."""
    quotas = {row.id: row.monthly_quota for row in usable}
    found = set()
    for row in ChannelHealth.objects.filter(channel_id__in=quotas):
        quota = limits.quota(quotas[row.channel_id], row.month, row.month_count, now)
        broken = row.failures >= policy.BREAKER_FAILURES and row.open_until is not None and row.open_until > now
        if broken or (quota is not None and not quota.left(reserve=severity == "Critical")):
            found.add(row.channel_id)
    return found


def _default(severity: str, person: _Person, usable: Iterable[Channel]) -> list[_Wish]:
    wanted = DEFAULTS.get(severity, DEFAULTS["Info"])
    mine = [row.kind for row in sorted(usable, key=lambda row: (row.position, row.id)) if _may(row, person.id, person.teams)]
    there = {name for kind in mine for name in (kind, family(kind))}
    # An installation that has nothing of the sort still tells people by what it has.
    return [_Wish(name) for name in wanted if name in there] or [_Wish(name) for name in dict.fromkeys(map(family, mine))]


def _ways(wish: _Wish, person: _Person, house: _House) -> list[Target | Missing]:
    kind, known = wish.kind, transport.transports()
    if wish.channel is not None:
        channel = house.channels.get(wish.channel)
        if channel is None or channel.status != "enabled" or channel.owner_id not in (None, person.id):
            return [Missing(kind, gettext_noop("The channel of the preference is switched off."))]
        if not _may(channel, person.id, person.teams):
            # Its team, which the person has left, would be given links that act as them: another channel does the same.
            for name in dict.fromkeys((kind, family(channel.kind))):
                other = _ways(replace(wish, kind=name, channel=None), person, house)
                if any(isinstance(item, Target) for item in other):
                    return other
            return [Missing(kind, gettext_noop("The channel of the preference belongs to a team that the person is not in."))]
        if channel.kind not in known:
            return [Missing(kind, gettext_noop("This kind of channel does not exist any more."))]
        if not is_for_people(channel.kind):
            return [Missing(kind, gettext_noop("Channels of this kind reach groups and not persons."))]

        def ordered(phone: str) -> list[Channel]:
            return [channel]
    else:
        if all(kind not in (name, style.family) for name, style in known.items()):
            return [Missing(kind, gettext_noop("This kind of channel does not exist any more."))]

        def ordered(phone: str) -> list[Channel]:
            return vendors(
                house.channels.values(), kind, house.now, member=person.id, teams=person.teams, phone=phone, resting=house.resting
            )

    rows = ordered("")
    if not rows:
        group_only = any(_may(row, person.id, person.teams) and kind in (row.kind, family(row.kind)) for row in house.channels.values())
        if group_only:
            return [Missing(kind, gettext_noop("Channels of this kind reach groups and not persons."))]
        return [Missing(kind, gettext_noop("There is no enabled channel of this kind."))]
    # Accounts are places of their own and not vendors of one: all of them are told.
    linked = [item for row in rows if _by_account(row.kind) for item in _account_ways(wish, row, person)]
    if any(isinstance(item, Target) for item in linked):
        return [item for item in linked if isinstance(item, Target)]
    missing: list[Missing] = [item for item in linked if isinstance(item, Missing)]
    phones = [point.value for point in person.points if point.kind == "phone" and point.is_usable]
    for phone in phones or [""]:
        for row in ordered(phone):
            if _by_account(row.kind):
                continue
            found = _one_way(wish, row, person, phone)
            if any(isinstance(item, Target) for item in found):
                return found
            missing += [item for item in found if isinstance(item, Missing)]
    if not missing:
        return [Missing(kind, gettext_noop("No channel of this kind is for the region of the phone number."))]
    # That an account is not verified says more than that another is not linked.
    return [next((item for item in missing if item.reason == _NOT_VERIFIED), missing[0])]


_NOT_VERIFIED: Final = gettext_noop("The person's account on this platform is not verified.")


def _account_ways(wish: _Wish, channel: Channel, person: _Person) -> list[Target | Missing]:
    mine = [account for account in person.accounts if account.channel_id == channel.id and is_private(channel, account)]
    found: list[Target | Missing] = [
        Target(channel.id, account.target, wish.delay, channel.kind) for account in mine if account.verified_at is not None
    ]
    if found:
        return found
    return [Missing(wish.kind, _NOT_VERIFIED if mine else gettext_noop("The person's account on this platform is not linked."))]


def _one_way(wish: _Wish, channel: Channel, person: _Person, phone: str) -> list[Target | Missing]:
    reach = transport.transports()[channel.kind].reach
    if reach == "member":
        return [Target(channel.id, f"member:{person.id}", wish.delay, channel.kind)]
    if reach == "phone" and phone:
        return [Target(channel.id, phone, wish.delay, channel.kind)]
    if reach in ("phone", "email"):
        return [_point(wish, channel, reach, person.points)]
    if reach == "device":
        usable = [device for device in person.devices if device.enabled and device.push_token]
        if not usable:
            words = gettext_noop("No linked device is switched on.") if person.devices else gettext_noop("No device is linked.")
            return [Missing(wish.kind, words)]
        return [Target(channel.id, f"device:{device.id}", wish.delay, channel.kind) for device in usable]
    return [Missing(wish.kind, gettext_noop("Channels of this kind reach groups and not persons."))]


def _point(wish: _Wish, channel: Channel, reach: str, points: Sequence[ContactPoint]) -> Target | Missing:
    mine = [point for point in points if point.kind == reach]
    for point in mine:
        if point.is_usable:
            return Target(channel.id, point.value, wish.delay, channel.kind)
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


def _accounts(ids: Sequence[int]) -> dict[int, list[Account]]:
    by: dict[int, list[Account]] = defaultdict(list)
    for account in Account.objects.filter(member_id__in=ids).order_by("member_id", "id"):
        by[account.member_id].append(account)
    return by
