"""Erases a person: where they were reached, how they signed in, what was sent to them; the history keeps their id and says "former member 7".

What cannot be undone happens in short transactions, in the lock order of all others, and may be run again: `forget` finds what is left."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.db import connection, transaction
from django.db.models import F, Q
from django.utils.translation import gettext_noop

from channels_app.models import Account, Address, Channel, Delivery, Preference
from channels_app.models.channel import new_callback_key
from escalation import rules
from escalation.models import Layer
from mapping.clock import wake
from mapping.models import ApiKey, ContactPoint, Device, Installation, MappingEntry, Member
from mapping.visibility import Role, Status

WINDOW: Final = 1000
GONE: Final = gettext_noop("the person is no longer a member")


class LastAdministrator(Exception):
    """Nobody could configure the installation any more."""


@dataclass(frozen=True)
class _Erased:
    """What stands for the person in the database's texts."""

    member_id: int
    name: str  # as it was
    stands: str  # what is written instead
    values: tuple[str, ...]  # addresses: unique enough to be replaced wherever they stand

    def patterns(self) -> list[str]:
        """Which JSON may hold something of it: addresses as they are written there, and people as {"id": 7, ...}."""
        quoted = [json.dumps(value, ensure_ascii=False)[1:-1] for value in self.values]
        escaped = [re.sub(r"([\\%_])", r"\\\1", value) for value in quoted]
        return [f"%{value}%" for value in escaped] + [f'%"id": {self.member_id}{end}%' for end in ",}"]

    def plain(self, text: str) -> str:
        for value in self.values:
            text = re.sub(re.escape(value), lambda _found: self.stands, text, flags=re.IGNORECASE)
        return text

    def words(self, text: str) -> str:
        """Of a text that is known to name the person."""
        text = self.plain(text)
        return re.sub(rf"(?<!\w){re.escape(self.name)}(?!\w)", lambda _found: self.stands, text) if self.name else text

    def of(self, value: Any) -> Any:
        """The same JSON without them."""
        if isinstance(value, str):
            return self.plain(value)
        if isinstance(value, list):
            return [self.of(item) for item in value if not (isinstance(item, str) and item.lower() in self.values)]
        if isinstance(value, dict):
            found = {key: self.of(item) for key, item in value.items()}
            if found.get("id") == self.member_id and "email" in found and "name" in found:
                found |= {"name": self.stands, "email": ""}
            return found
        return value


def forget(member: Member, now: datetime) -> Counter[str]:
    """Erases `member` and deactivates them: what was erased, and under "in flight" how many messages were on their way and want another run.

    Pages that waited for them take their fallback at once. LastAdministrator for the only active one.
    """
    gone, erased = _person(member, now)
    ids = _addresses(member, erased)
    known = tuple(dict.fromkeys((*erased.values, *(target.lower() for target in ids.values()))))
    erased = _Erased(erased.member_id, erased.name, erased.stands, known)
    gone["addresses"] = len(ids)
    gone["messages"] = _messages(member, list(ids), erased)
    gone["texts"] = _texts(erased)
    Installation.objects.update(erasures=F("erasures") + 1)  # after the snapshots: whoever reads one from now on reads the new text
    gone["in flight"] = Delivery.objects.filter(member=member, state=Delivery.State.SENDING).count()
    wake("drain")
    return +gone


@transaction.atomic
def _person(member: Member, now: datetime) -> tuple[Counter[str], _Erased]:
    if Member.lock_administrators() <= {member.pk} and member.is_administrator:
        raise LastAdministrator
    member = Member.objects.select_for_update(no_key=True).get(pk=member.pk)
    stands = f"former member {member.pk}"
    own = Channel.objects.filter(owner=member)
    tables = MappingEntry.objects.filter(email__iexact=member.email)
    values = [
        member.email,
        *ContactPoint.objects.filter(member=member).values_list("value", flat=True),
        *(target for target in Account.objects.filter(member=member).values_list("target", flat=True) if len(target) > 3),
        *(external for external in tables.values_list("external_id", flat=True) if len(external) > 3),
    ]
    # Of a mailbox or a phone that somebody else has, too, nothing is known to be this person's.
    shared = ContactPoint.objects.exclude(member=member).filter(value__in=values).values_list("value", flat=True)
    unique = {value.lower() for value in values} - {value.lower() for value in shared}
    erased = _Erased(member.pk, "" if member.name == stands else member.name, stands, tuple(sorted(unique, key=len, reverse=True)))

    gone: Counter[str] = Counter()
    for name, rows in (
        ("contact points", ContactPoint.objects.filter(member=member)),
        ("devices", Device.objects.filter(member=member)),
        ("accounts", Account.objects.filter(Q(member=member) | Q(channel__owner=member))),
        ("keys", ApiKey.objects.filter(member=member)),
        ("preferences", Preference.objects.filter(Q(member=member) | Q(channel__owner=member))),
        ("entries of mapping tables", tables),
    ):
        gone[name] = rows.count()
        rows.delete()
    gone["own channels"] = own.exclude(status=Status.DELETED).count()
    for channel_id in own.order_by("id").values_list("id", flat=True):
        Channel.objects.filter(id=channel_id).update(
            name=f"{stands}, {channel_id}", status=Status.DELETED, settings={}, proxy="", ca_bundle="", allowed_hosts=[], targets=[],
            callback_key=new_callback_key(),
        )  # fmt: skip
    member.teams.clear()
    _log_entries(member, stands)
    _layers(erased)

    member.name, member.email = stands, f"former-member-{member.pk}@invalid.invalid"
    member.is_active, member.role, member.may_use_sandbox = False, Role.VIEWER, False
    member.ref_id, member.time_zone, member.supervisor, member.numbers_told = "", "UTC", None, None
    member.quiet_start = member.quiet_end = None
    member.quiet_days = []
    member.links_valid_from, member.last_login = now, None
    member.set_unusable_password()
    member.save()
    # What waits for them fails now, so that a page takes its fallback and, where there is none, whoever comes next is told.
    mine = Delivery.objects.select_for_update(no_key=True).filter(member=member, state=Delivery.State.QUEUED).order_by("id")
    pages = {row.pk: now if row.is_page and not row.withdrawn else None for row in mine}
    for fallback_at in set(pages.values()):
        Delivery.objects.filter(id__in=[pk for pk, at in pages.items() if at == fallback_at]).update(
            state=Delivery.State.FAILED, reason=GONE, ended_at=now, fallback_at=fallback_at
        )
    return gone, erased


def _log_entries(member: Member, stands: str) -> None:
    """The console's log of changes to this person and to what was theirs (before and after: addresses, names)."""
    theirs = Q(content_type=ContentType.objects.get_for_model(Member), object_id=str(member.pk))
    LogEntry.objects.filter(theirs).update(object_repr=stands, change_message="")
    named = Q(change_message__icontains=member.email) | Q(object_repr__icontains=member.email)
    LogEntry.objects.filter(named).update(object_repr=stands, change_message="")


def _layers(erased: _Erased) -> None:
    changed = []
    for layer in Layer.objects.exclude(emails=[]).order_by("id"):
        kept = [email for email in layer.emails if email.lower() not in erased.values]
        if kept != layer.emails:
            Layer.objects.filter(pk=layer.pk).update(emails=kept)
            changed.append(layer.rule_id)
    if changed:
        rules.changed(changed)


@transaction.atomic
def _addresses(member: Member, erased: _Erased) -> dict[int, str]:
    """Rubs out the targets that are this person's alone: {address: target as it was}."""
    rows = (
        Address.objects.select_for_update(no_key=True, of=("self",))
        .filter(Q(pk__in=Delivery.objects.filter(member=member).values("address_id")) | Q(target__in=erased.values))
        .exclude(Q(target="") | Q(target__startswith="member:") | Q(target__startswith=erased.stands))
        .order_by("id")
    )
    found = {row.pk: row.target for row in rows}
    others = set(
        Delivery.objects.filter(address_id__in=found).exclude(member=member).exclude(member=None).values_list("address_id", flat=True)
    )
    for of, name in ((ContactPoint, "value"), (Account, "target")):
        taken = set(of.objects.exclude(member=member).filter(**{f"{name}__in": list(found.values())}).values_list(name, flat=True))
        others |= {pk for pk, target in found.items() if target in taken}
    mine = {pk: target for pk, target in found.items() if pk not in others}
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE channels_app_address SET target = %s || ', ' || id, blocked_reason = '' WHERE id = ANY(%s)", [erased.stands, list(mine)]
        )
    return mine


def _messages(member: Member, addresses: Sequence[int], erased: _Erased) -> int:
    """Rubs out the texts of messages to this person; their states and times stay."""
    ids = list(
        Delivery.objects.filter(Q(member=member) | Q(member=None, address_id__in=addresses)).order_by("id").values_list("id", flat=True)
    )
    for some in _chunks(ids):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT FROM channels_app_delivery WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", [some])
            cursor.execute(
                """UPDATE channels_app_delivery SET text = '', subject = '', mentions = '[]',
                     reason = CASE WHEN reason ILIKE ANY(%s) THEN '' ELSE reason END,
                     log = (SELECT COALESCE(jsonb_agg(jsonb_set(line, '{4}', '""') ORDER BY n), '[]') FROM jsonb_array_elements(log) WITH ORDINALITY AS l(line, n))
                   WHERE id = ANY(%s)""",
                [erased.patterns(), some],
            )
    return len(ids)


def _texts(erased: _Erased) -> int:
    """Writes the stand-in for the person into what was said to others about them."""
    changed = 0
    for table, column in (
        ("channels_app_notification", "context"), ("escalation_timelineentry", "detail"), ("escalation_rulesnapshot", "body"),
    ):  # fmt: skip
        for low, high in _windows(table):
            with connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT id, {column}::text FROM {table} WHERE id > %s AND id <= %s AND {column}::text ILIKE ANY(%s)",
                    [low, high, erased.patterns()],
                )
                before = {pk: json.loads(text) for pk, text in cursor.fetchall()}
            fresh = {pk: made for pk, value in before.items() if (made := erased.of(value)) != value}
            if not fresh:
                continue
            with transaction.atomic(), connection.cursor() as cursor:
                for pk, value in sorted(fresh.items()):
                    cursor.execute(f"UPDATE {table} SET {column} = %s::jsonb WHERE id = %s", [json.dumps(value, ensure_ascii=False), pk])
                if column == "context":
                    _said(list(fresh), erased)
            changed += len(fresh)
    for low, high in _windows("channels_app_delivery"):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(
                """UPDATE channels_app_delivery SET mentions = mentions - %(values)s::text[]
                   WHERE id IN (SELECT id FROM channels_app_delivery WHERE id > %(low)s AND id <= %(high)s AND mentions ?| %(values)s::text[]
                                ORDER BY id FOR NO KEY UPDATE)""",
                {"values": list(erased.values), "low": low, "high": high},
            )
    return changed


def _said(notifications: list[int], erased: _Erased) -> None:
    rows = Delivery.objects.select_for_update(no_key=True).filter(notification_id__in=notifications).exclude(text="", subject="")
    for row in rows.order_by("id").only("id", "text", "subject"):
        text, subject = erased.words(row.text), erased.words(row.subject)
        if (text, subject) != (row.text, row.subject):
            Delivery.objects.filter(pk=row.pk).update(text=text, subject=subject[:300])


def _chunks(ids: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(ids), WINDOW):
        yield list(ids[start : start + WINDOW])


def _windows(table: str) -> Iterator[tuple[int, int]]:
    """Bounds (from, to] of the ids that are there, WINDOW rows at a time."""
    last = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT max(id) FROM (SELECT id FROM {table} WHERE id > %s ORDER BY id LIMIT {WINDOW}) w", [last])
            high = cursor.fetchone()[0]
        if high is None:
            return
        yield last, high
        last = high
