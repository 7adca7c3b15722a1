"""Another way to the same person: when a budget is spent, a deadline would pass, or a channel is known not to reach them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import connection, transaction

from channels_app import addresses, policy
from channels_app.book import Book
from channels_app.models import Delivery
from channels_app.outbox.posting import Row, find_addresses, insert
from channels_app.outbox.recording import exhaust
from mapping.clock import wake


def fallbacks(now: datetime, notes: Book, *, limit: int = 200) -> int:
    """Starts the fallbacks that are due: budgets that are spent, deadlines that would pass, evidence that a channel does not reach the
    person. How many were due.

    For a person: the channel's fallback kinds, each channel once per person and notification. For a group: the channel that is named.
    """
    due = list(
        Delivery.objects.filter(fallback_at__lte=now)
        .order_by("fallback_at")
        .values("id", "notification_id", "notification__severity", "channel_id", "member_id", "topic", "priority", "survives_ack", "give_up_at")[:limit]
    )  # fmt: skip
    if not due:
        return 0
    with transaction.atomic(), connection.cursor() as cursor:
        rows = _replacements(due, now, notes)
        if rows:
            find_addresses(rows)
        cursor.execute(
            """UPDATE channels_app_delivery d SET fallback_at = NULL WHERE d.id IN (
                 SELECT id FROM channels_app_delivery WHERE id = ANY(%s) AND fallback_at <= %s ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
               RETURNING d.id, d.withdrawn""",
            [[row["id"] for row in due], now],
        )
        mine = {pk for pk, withdrawn in cursor.fetchall() if not withdrawn}
        fresh = [row for row in rows if row.fallback_of in mine]
        if fresh:
            insert(fresh, now)
            wake("drain")
        exhaust(cursor, {row["notification_id"] for row in due if row["id"] in mine}, now)
    return len(due)


def _replacements(due: Sequence[Mapping[str, Any]], now: datetime, notes: Book) -> list[Row]:
    tried = {
        tuple(row)
        for row in Delivery.objects.filter(notification_id__in={row["notification_id"] for row in due}).values_list(
            "notification_id", "member_id", "channel_id"
        )
    }
    ways: dict[tuple[str, tuple[str, ...]], dict[int, list[addresses.Target | addresses.Missing]]] = {}
    people: dict[tuple[str, tuple[str, ...]], set[int]] = defaultdict(set)
    for row in due:
        channel = notes.channels.get(row["channel_id"])
        if channel is not None and row["member_id"] is not None and channel.fallback_kinds:
            people[row["notification__severity"], channel.fallback_kinds].add(row["member_id"])
    for (severity, kinds), members in people.items():
        ways[severity, kinds] = addresses.reach(members, severity, now, kinds=kinds)
    made = []
    for row in due:
        channel = notes.channels.get(row["channel_id"])
        if channel is None:
            continue
        severity, member = row["notification__severity"], row["member_id"]
        to: list[tuple[int, str]] = []
        if member is not None and channel.fallback_kinds:
            found = ways[severity, channel.fallback_kinds].get(member, ())
            to = [(item.channel_id, item.target) for item in found if isinstance(item, addresses.Target)]
        elif member is None and channel.fallback_channel is not None:
            other = notes.channels.get(channel.fallback_channel)
            to = [(other.id, "")] if other is not None and other.transport is not None else []
        to = [place for place in to if (row["notification_id"], member, place[0]) not in tried]
        tried |= {(row["notification_id"], member, place[0]) for place in to}
        made += [
            Row(
                row["notification_id"], row["topic"], place[0], place[1], member, row["priority"], True, row["survives_ack"], (), now,
                now + policy.deadline(severity), row["give_up_at"], fallback_of=row["id"],
            )
            for place in to
        ]  # fmt: skip
    return made
