"""Who a layer means at this instant, and by which channels: one answer for the engine, the plan ahead and "why was I not paged?".

A layer's people are its members, the members of its teams and the supervisors of whoever the run told before. A schedule will be one more
line of `people`: it answers "who, at this instant", which is why `now` is passed.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from django.db.models.functions import Lower
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from channels_app import addresses, outbox, transport
from channels_app.models import Channel
from channels_app.outbox.statements import planned_once
from mapping.models import ContactPoint, MappingEntry, Member

# Stored reasons that name something.
NOT_ENABLED = gettext_noop("channel %(name)s is not enabled")
NOT_THIS_SEVERITY = gettext_noop("channel %(name)s does not take this severity")
NOT_THIS_EVENT = gettext_noop("channel %(name)s does not take this kind of message")
CANCELLED_BY = gettext_noop("cancelled by %(name)s")


@dataclass(frozen=True, slots=True)
class Missing:
    """Somebody or something a layer names and cannot reach, and why."""

    reason: str
    member: int | None = None
    kind: str = ""
    channel: int | None = None

    def plain(self) -> dict[str, Any]:
        """The form it has on the timeline."""
        return {"person_id": self.member, "kind": self.kind, "channel_id": self.channel, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Told:
    """Whom a run told: the members of the layer it reached last, and those it had told before that layer. A layer that says "their
    supervisors" means the latter each time it pages, or its own loop would go to the supervisors of the supervisors."""

    layer: int = -1
    here: tuple[int, ...] = ()
    before: tuple[int, ...] = ()

    def until(self, layer: int) -> tuple[int, ...]:
        """The members told before `layer`."""
        return self.before if layer == self.layer else self.here

    def and_now(self, layer: int, members: Sequence[int]) -> "Told":
        """The same after `layer` has told `members`; where it told groups only, the people stay those of before."""
        before = self.until(layer)
        return Told(layer, tuple(members) or before, before)

    def plain(self) -> list[Any]:
        return [self.layer, list(self.here), list(self.before)]

    @classmethod
    def of(cls, plain: Sequence[Any] | None) -> "Told":
        """The inverse of `plain`; nobody where nothing is kept yet."""
        return cls(plain[0], tuple(plain[1]), tuple(plain[2])) if plain else cls()


@dataclass(frozen=True, slots=True)
class Audience:
    """Where a page goes, whom it is meant for, and what is missing."""

    to: tuple[outbox.To, ...]
    members: tuple[int, ...]
    missing: tuple[Missing, ...]

    def reason(self) -> str:
        """One sentence that says why nobody was reached."""
        if not self.missing:
            return gettext_noop("the layer names nobody")
        return "; ".join(dict.fromkeys(item.reason for item in self.missing[:5]))


def in_words(reason: str) -> str:
    """A stored reason (English, of this module, the engine or the outbox) in the language that is active; what a provider said stays as it is."""

    def one(part: str) -> str:
        for pattern in (NOT_ENABLED, NOT_THIS_SEVERITY, NOT_THIS_EVENT, CANCELLED_BY, addresses.QUIET):
            before, after = pattern.split("%(name)s")
            if part.startswith(before) and part.endswith(after):
                return _(pattern) % {"name": part.removeprefix(before).removesuffix(after)}
        return _(part) if part else ""

    return "; ".join(map(one, reason.split("; ")))


def people(layer: Mapping[str, Any], told: Sequence[int], now: datetime) -> list[int]:
    """Ids of the active members a layer means at `now`; `told` are those the run told before."""
    ids: set[int] = set(layer["members"])
    if layer["teams"]:
        ids |= set(Member.objects.filter(teams__in=layer["teams"], teams__status="enabled").values_list("id", flat=True))
    if layer["supervisors"] and told:
        ids |= set(Member.objects.filter(supervises__in=list(told)).values_list("id", flat=True))
    return sorted(Member.objects.filter(id__in=ids, is_active=True).values_list("id", flat=True)) if ids else []


def wants(use: Mapping[str, Any], severity: str, events: Collection[str]) -> bool:
    """Does a group channel of a layer take this severity and one of these events? Empty lists take all."""
    return (not use["severities"] or severity in use["severities"]) and chose(use, events)


def chose(use: Mapping[str, Any], events: Collection[str]) -> bool:
    """As `wants`, of what a group was told already, at a severity that it took."""
    return not use["events"] or any(event in use["events"] for event in events)


def resolve(layer: Mapping[str, Any], *, severity: str, events: Collection[str], told: Sequence[int], now: datetime) -> Audience:
    """Everything a layer tells at `now` about something of this severity that goes by any of these events. `told`: members told before, for
    the supervisors."""
    members = people(layer, told, now)
    to: list[outbox.To] = []
    missing: list[Missing] = []
    if members:
        kinds = None if layer["follow_preference"] else tuple(layer["by"].get(severity, ()))
        for member, reached in addresses.reach(members, severity, now, kinds=kinds).items():
            for item in reached:
                if isinstance(item, addresses.Missing):
                    missing.append(Missing(item.reason, member, item.kind))
                else:
                    to.append(
                        outbox.To(channel_id=item.channel_id, target=item.target, member_id=member, delay=item.delay, reason=item.reason)
                    )
    elif layer["members"] or layer["teams"]:
        missing.append(Missing(gettext_noop("none of the people it names is active")))
    elif layer["supervisors"]:
        missing.append(Missing(gettext_noop("nobody told before has a supervisor who is active")))
    mail, refused = _emails(layer["emails"], now)
    groups, gone = _groups(layer["channels"], members, severity, events)
    told_now = (*to, *mail, *groups)
    # What groups do not want by their own choice is missed only where nobody else hears of it.
    unwanted = () if told_now else _unwanted(layer["channels"], severity, events)
    return Audience(told_now, tuple(members), (*missing, *refused, *gone, *unwanted))


def _emails(emails: Sequence[str], now: datetime) -> tuple[tuple[outbox.To, ...], tuple[Missing, ...]]:
    """Plain addresses travel by the first enabled e-mail channel that no team owns: it is not for one team's server to read another's pages."""
    if not emails:
        return (), ()
    channel = (
        Channel.objects.filter(kind="email", status="enabled", team=None).order_by("position", "id").values_list("id", flat=True).first()
    )
    if channel is None:
        return (), (Missing(gettext_noop("there is no enabled e-mail channel for the addresses of the layer"), kind="email"),)
    return tuple(outbox.To(channel_id=channel, target=address) for address in dict.fromkeys(emails)), ()


class _Group(NamedTuple):
    """What matters here of a channel. To make a model of it took longer than to read it."""

    id: int
    name: str
    kind: str
    status: str
    targets: str  # as JSON


def _groups(
    uses: Sequence[Mapping[str, Any]], members: Sequence[int], severity: str, events: Collection[str]
) -> tuple[tuple[outbox.To, ...], tuple[Missing, ...]]:
    uses = [use for use in uses if wants(use, severity, events)]
    if not uses:
        return (), ()
    with planned_once() as cursor:  # once a pass and more, and the rest of a channel is to be decrypted
        cursor.execute(
            "SELECT id, name, kind, status, targets FROM channels_app_channel WHERE id = ANY(%s::bigint[]) AND owner_id IS NULL",
            [[use["channel"] for use in uses]],
        )
        channels = {row[0]: _Group(*row) for row in cursor.fetchall()}
    to, missing = [], []
    for use in uses:
        channel = channels.get(use["channel"])
        if channel is None or channel.status != "enabled":
            missing.append(Missing(NOT_ENABLED % {"name": channel.name if channel else use["channel"]}, channel=use["channel"]))
            continue
        mentions = _mentions(use, channel, members)
        to += [outbox.To(channel_id=channel.id, target=target, mentions=mentions) for target in json.loads(channel.targets) or [""]]
    return tuple(to), tuple(missing)


def _unwanted(uses: Sequence[Mapping[str, Any]], severity: str, events: Collection[str]) -> tuple[Missing, ...]:
    """The groups that chose not to hear of this, and which of their choices it was."""
    uses = [use for use in uses if not wants(use, severity, events)]
    names = dict(Channel.objects.filter(id__in=[use["channel"] for use in uses]).values_list("id", "name")) if uses else {}
    return tuple(
        Missing(
            (NOT_THIS_SEVERITY if use["severities"] and severity not in use["severities"] else NOT_THIS_EVENT)
            % {"name": names.get(use["channel"], use["channel"])},
            channel=use["channel"],
        )
        for use in uses
    )


def _mentions(use: Mapping[str, Any], channel: _Group, members: Sequence[int]) -> tuple[str, ...]:
    """Whom to @ in the group, as the platform names them: by a mapping table, or by phone where the platform matches phones."""
    if not use["mention"] or not members:
        return ()
    by = transport.get(channel.kind).mentions_by
    known: dict[int, str] = {}
    if "table" in by and use["mapping_table"] is not None:
        rows = (
            MappingEntry.objects.filter(table_id=use["mapping_table"])
            .annotate(lower=Lower("email"))
            .values_list("lower", "external_id", "id")
        )
        people = {email.lower(): pk for pk, email in Member.objects.filter(id__in=members).values_list("id", "email")}
        known = {people[email]: external for email, external, _pk in rows.filter(lower__in=people)}
    phones: dict[int, str] = {}
    if "phone" in by:
        verified = ContactPoint.objects.filter(member_id__in=members, kind="phone", verified_at__isnull=False)
        for member, value in verified.order_by("member_id", "-position", "-id").values_list("member_id", "value"):
            phones[member] = value
    return tuple(dict.fromkeys(known.get(member) or phones[member] for member in members if member in known or member in phones))
