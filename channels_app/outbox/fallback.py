"""Another way to the same person: when a budget is spent, a deadline would pass, or a channel is known not to reach them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from channels_app import addresses, policy
from channels_app.book import Book
from channels_app.models import Delivery
from channels_app.outbox.posting import IS_OPEN, OVERTAKEN, Row, find_addresses, insert, replace_earlier
from channels_app.outbox.recording import exhaust
from mapping.clock import wake

# A severity, fallback kinds, and whether quiet hours hold for them.
_Wanted = tuple[str, tuple[str, ...], bool]


def fallbacks(now: datetime, notes: Book, *, limit: int = 200) -> int:
    """Starts the fallbacks that are due: budgets that are spent, deadlines that would pass, evidence that a channel does not reach the
    person. How many were due.

    For a person: the next vendor that reaches the same phone or mailbox; after the last of them the channel's fallback kinds, all at once; each
    channel once per person and notification. For a group: the channel that is named.
    """
    due = list(
        Delivery.objects.filter(fallback_at__lte=now)
        .order_by("fallback_at")
        .values("id", "notification_id", "notification__severity", "state", "channel_id", "member_id", "address__target", "topic", "priority", "survives_ack", "give_up_at", "fallback_of_id")[:limit]
    )  # fmt: skip
    if not due:
        return 0
    with transaction.atomic(), connection.cursor() as cursor:
        rows, early, known = _replacements(due, now, notes)
        back = _overtaken(due, now)
        if rows or back:
            find_addresses([*rows, *(row for row, _pk, _of in back)])
            rows = _still_missing(rows, known, notes)
        cursor.execute(
            """UPDATE channels_app_delivery d SET fallback_at = NULL WHERE d.id IN (
                 SELECT id FROM channels_app_delivery WHERE id = ANY(%s) AND fallback_at <= %s ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
               RETURNING d.id, d.withdrawn""",
            [[row["id"] for row in due], now],
        )
        mine = {pk for pk, withdrawn in cursor.fetchall() if not withdrawn}
        fresh = [row for row in rows if row.fallback_of in mine]
        if fresh:
            replace_earlier(fresh, now)
            insert(fresh, now)
        forward = [pk for pk, of in early if of in mine]
        if forward:
            _bring_forward(cursor, forward, now)
        again = [pk for _row, pk, of in back if of in mine]
        if again:
            _go_on(cursor, again, now)
        if fresh or forward or again:
            wake("drain")
        exhaust(cursor, {row["notification_id"] for row in due if row["id"] in mine}, now)
    return len(due)


def _overtaken(due: Sequence[Mapping[str, Any]], now: datetime) -> list[tuple[Row, int, int]]:
    """What was no longer tried because a message among `due` had taken its place, which now turns out to have failed: (as a row for its
    address, its id, the id of what has failed)."""
    failed = {
        (row["notification_id"], row["member_id"], row["address__target"]): row["id"]
        for row in due
        if row["fallback_of_id"] is not None and row["state"] in (Delivery.State.FAILED, Delivery.State.UNKNOWN)
    }
    if not failed:
        return []
    found = []
    for pk, notification, member, target, channel, topic, priority, survives, until in Delivery.objects.filter(
        notification_id__in={key[0] for key in failed}, withdrawn=True, reason=OVERTAKEN, give_up_at__gt=now
    ).values_list(
        "id", "notification_id", "member_id", "address__target", "channel_id", "topic", "priority", "survives_ack", "give_up_at"
    ):  # fmt: skip
        if (of := failed.get((notification, member, target))) is not None:
            place = Row(notification, topic, channel, target, member, priority, True, survives, (), now, until, until)
            found.append((place, pk, of))
    return found


def _go_on(cursor: Any, ids: Sequence[int], now: datetime) -> None:
    """These are tried again with back-off, as if nothing had taken their place; those that are out, once they have failed. Their addresses are
    locked and due."""
    cursor.execute(
        f"""UPDATE channels_app_delivery d SET state = CASE WHEN {IS_OPEN} THEN d.state ELSE 'queued' END, withdrawn = false, reason = '',
              ended_at = NULL, not_before = %(now)s
            WHERE d.id IN (SELECT d.id FROM channels_app_delivery d WHERE d.id = ANY(%(ids)s) AND d.withdrawn AND d.reason = %(why)s
                             AND (d.state IN ('cancelled', 'unknown') OR {IS_OPEN}) ORDER BY d.id FOR NO KEY UPDATE SKIP LOCKED)""",
        {"ids": list(ids), "now": now, "why": OVERTAKEN},
    )


def _bring_forward(cursor: Any, ids: Sequence[int], now: datetime) -> None:
    """What a person wanted only some time later leaves now, since it is the fallback of what has failed. What an address that is locked has
    waiting comes in its time."""
    cursor.execute(
        """WITH place AS (
             SELECT id FROM channels_app_address WHERE id IN (SELECT address_id FROM channels_app_delivery WHERE id = ANY(%(ids)s))
             ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
           mine AS (
             SELECT d.id FROM channels_app_delivery d JOIN place p ON p.id = d.address_id
             WHERE d.id = ANY(%(ids)s) AND d.state = 'queued' AND d.attempts = 0 AND d.not_before > %(now)s
             ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED)
           UPDATE channels_app_delivery d SET not_before = %(now)s, deadline_at = d.deadline_at - (d.not_before - %(now)s),
             fallback_at = d.fallback_at - (d.not_before - %(now)s)
           FROM mine WHERE d.id = mine.id RETURNING d.address_id""",
        {"ids": list(ids), "now": now},
    )
    places = sorted({pk for (pk,) in cursor.fetchall()})
    cursor.execute("UPDATE channels_app_address SET next_at = LEAST(next_at, %s) WHERE id = ANY(%s)", [now, places])


def _replacements(due: Sequence[Mapping[str, Any]], now: datetime, notes: Book) -> tuple[list[Row], list[tuple[int, int]], set[int]]:
    """The messages that take over; what waits already and is to leave now instead: (its id, the id of what has failed); and the ids of all
    messages that were looked at."""
    tried: dict[tuple[int, int | None], list[int]] = defaultdict(list)
    waiting: dict[tuple[int, int | None], list[tuple[int, int]]] = defaultdict(list)
    rung: set[tuple[int, int | None]] = set()
    known: set[int] = set()
    for notification, member, pk, channel, state, attempts, not_before, reason in (
        Delivery.objects.filter(notification_id__in={row["notification_id"] for row in due})
        .order_by("id")
        .values_list("notification_id", "member_id", "id", "channel_id", "state", "attempts", "not_before", "reason")
    ):
        known.add(pk)
        tried[notification, member].append(channel)
        if attempts and channel in notes.channels and not addresses.is_silent(notes.channels[channel].kind):
            rung.add((notification, member))
        # A reason that is there already is one to wait all the same: quiet hours.
        if member is not None and state == Delivery.State.QUEUED and not attempts and not_before > now and not reason:
            waiting[notification, member].append((pk, channel))
    people = [row for row in due if row["member_id"] is not None and row["channel_id"] in notes.channels]
    others = addresses.stand_ins({_asked(row) for row in people}, now)
    kinds: dict[int, _Wanted] = {}
    by_kinds: dict[_Wanted, set[int]] = defaultdict(set)
    for row in people:
        wanted = _kinds(row["channel_id"], tried[row["notification_id"], row["member_id"]], notes)
        # In place of what wakes nobody nothing rings either, unless it has rung for them already.
        hush = addresses.is_silent(notes.channels[row["channel_id"]].kind) and (row["notification_id"], row["member_id"]) not in rung
        kinds[row["id"]] = key = row["notification__severity"], wanted, hush
        if wanted:
            by_kinds[key].add(row["member_id"])
    ways = {key: addresses.reach(members, key[0], now, kinds=key[1], hush=key[2]) for key, members in by_kinds.items()}
    made: list[Row] = []
    early: list[tuple[int, int]] = []
    for row in due:
        if row["channel_id"] not in notes.channels:
            continue
        severity, member = row["notification__severity"], row["member_id"]
        told = tried[row["notification_id"], member]
        to: list[tuple[int, str]]
        held: dict[tuple[int, str], addresses.Target] = {}
        if member is None:
            to = _other_group(row["channel_id"], notes)
        else:
            to = [(pk, row["address__target"]) for pk in others.get(_asked(row), ()) if pk not in told][:1]
            if not to or _is_refused_mailbox(row, notes):
                found = ways[kinds[row["id"]]].get(member, ()) if kinds.get(row["id"]) in ways else ()
                held = {(item.channel_id, item.target): item for item in found if isinstance(item, addresses.Target)}
                ways_left = list(held)
                families = {addresses.family(notes.channels[pk].kind) for pk, _target in ways_left if pk in notes.channels}
                early += [
                    (pk, row["id"])
                    for pk, channel in waiting[row["notification_id"], member]
                    if channel in notes.channels and addresses.family(notes.channels[channel].kind) in families
                ]
                to += [place for place in ways_left if not _asked_already(place[0], told, notes)]
        to = [place for place in to if place[0] not in told]
        told += [pk for pk, _target in to]
        for place in to:
            way = held.get(place)
            at = now + timedelta(seconds=way.delay if way is not None else 0)
            made.append(
                Row(
                    row["notification_id"], row["topic"], place[0], place[1], member, row["priority"], True, row["survives_ack"], (), at,
                    at + policy.deadline(severity), row["give_up_at"], fallback_of=row["id"], reason=way.reason if way is not None else "",
                )
            )  # fmt: skip
    return made, early, known


def _still_missing(rows: Sequence[Row], known: Set[int], notes: Book) -> list[Row]:
    """Of the messages that are to take over, those that no other drain has made since we looked. Who starts the same fallback locks the same
    addresses, so now that we have them its messages are there."""
    if not rows:
        return []
    told: set[tuple[int, int | None, int | str]] = set()
    for notification, member, channel in (
        Delivery.objects.filter(notification_id__in={row.notification for row in rows})
        .exclude(id__in=known)
        .values_list("notification_id", "member_id", "channel_id")
    ):
        told.add((notification, member, channel))
        if member is not None and channel in notes.channels:
            told.add((notification, member, addresses.family(notes.channels[channel].kind)))
    return [
        row
        for row in rows
        if (row.notification, row.member, row.channel) not in told
        and (row.notification, row.member, addresses.family(notes.channels[row.channel].kind) if row.channel in notes.channels else "")
        not in told
    ]


def _is_refused_mailbox(row: Mapping[str, Any], notes: Book) -> bool:
    """What one relay refuses for good another one will hardly take, so it is not waited for."""
    return row["state"] == Delivery.State.FAILED and notes.channels[row["channel_id"]].style.reach == "email"


def _asked(row: Mapping[str, Any]) -> tuple[int, int, str, str]:
    return row["member_id"], row["channel_id"], row["address__target"], row["notification__severity"]


def _kinds(channel: int, told: Sequence[int], notes: Book) -> tuple[str, ...]:
    """The fallback kinds of a channel, and of those of its family for which it stood in."""
    family = addresses.family(notes.channels[channel].kind)
    chain = [channel, *(pk for pk in told if pk in notes.channels and addresses.family(notes.channels[pk].kind) == family)]
    return tuple(dict.fromkeys(kind for pk in chain for kind in notes.channels[pk].fallback_kinds))


def _asked_already(channel: int, told: Sequence[int], notes: Book) -> bool:
    """Whether another vendor does already what this channel would do: it has vendors of its own to follow it."""
    kind = notes.channels[channel].kind if channel in notes.channels else ""
    if not addresses.has_vendors(kind):
        return False
    known = [notes.channels[pk].kind for pk in told if pk in notes.channels]
    return any(addresses.has_vendors(other) and addresses.family(other) == addresses.family(kind) for other in known)


def _other_group(channel: int, notes: Book) -> list[tuple[int, str]]:
    """For a group only the channel that is named takes over, with all its addresses."""
    failed = notes.channels.get(channel)
    other = notes.channels.get(failed.fallback_channel) if failed is not None and failed.fallback_channel is not None else None
    return [(other.id, target) for target in other.targets] if other is not None and other.transport is not None else []
