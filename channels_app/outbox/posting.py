"""What is to be said becomes rows, in the transaction of whoever decides; and what waits is stopped in theirs, too."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connection, transaction
from django.utils.translation import gettext_noop

from channels_app import addresses, policy, transport
from channels_app.models import Notification
from channels_app.outbox.statements import planned_once
from mapping.clock import wake

# Stored as the reason of what was not sent.
LATER_PAGE: Final = gettext_noop("a later page about the same takes its place")
OVERTAKEN: Final = gettext_noop("another channel has sent it to the same address meanwhile")
# What these ended only gave way to another message, so that the end of an attempt that was out then is an end like any other.
GAVE_WAY: Final = [LATER_PAGE, OVERTAKEN]
# Of a delivery d: it waits, or a request of it is out.
IS_OPEN: Final = "(d.state IN ('queued', 'sending') OR d.state = 'bundled' AND d.ended_at IS NULL)"


@dataclass(frozen=True, slots=True)
class To:
    """One address to tell. `target` is "" where the channel itself is the address; `delay` in seconds."""

    channel_id: int
    target: str
    member_id: int | None = None
    delay: float = 0
    mentions: tuple[str, ...] = ()
    reason: str = ""  # why it waits, where that is not its own delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One occasion to tell somebody something. `rank`: 0 first page, 1 escalation, 2 loop, 3 status notice."""

    event: str
    severity: str
    context: Mapping[str, Any]
    to: tuple[To, ...]
    is_page: bool
    topic: int | None = None
    run: int | None = None
    layer_idx: int | None = None
    survives_ack: bool = False
    template_set: int | None = None
    rank: int = 0
    secret_context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """A delivery to be written."""

    notification: int
    topic: int | None
    channel: int
    target: str
    member: int | None
    priority: int
    is_page: bool
    survives_ack: bool
    mentions: tuple[str, ...]
    not_before: datetime
    deadline_at: datetime
    give_up_at: datetime
    fallback_of: int | None = None
    address: int = 0
    reason: str = ""
    tries: int = 0


def post(notices: Sequence[Notice], now: datetime) -> list[int]:
    """Writes notifications and their deliveries in the caller's transaction, set-based, and wakes the drain after it; the notifications' ids."""
    if not notices:
        return []
    secret = Notification._meta.get_field("secret_context")
    # No savepoint: whoever posts has a transaction of its own, and what fails here fails all of it.
    with transaction.atomic(savepoint=False), planned_once() as cursor:
        # One JSON value for all: an array of JSON texts costs ten times as much to quote.
        cursor.execute(
            """INSERT INTO channels_app_notification (event, is_page, severity, topic, run, layer_idx, context, secret_context,
                   template_set, survives_ack, created_at, exhausted_at)
               SELECT event, is_page, severity, topic, run, layer_idx, context, secret, template_set, survives_ack, %(now)s,
                   CASE WHEN nobody THEN %(now)s END
               FROM jsonb_to_recordset(%(rows)s::jsonb)
                 AS n(n int, event text, is_page bool, severity text, topic bigint, run bigint, layer_idx smallint, context jsonb,
                   secret text, template_set bigint, survives_ack bool, nobody bool) ORDER BY n RETURNING id""",
            {
                "now": now,
                "rows": json.dumps(
                    [
                        {
                            "n": number, "event": n.event, "is_page": n.is_page, "severity": n.severity, "topic": n.topic, "run": n.run,
                            "layer_idx": n.layer_idx, "context": n.context, "secret": secret.get_prep_value(dict(n.secret_context)),
                            "template_set": n.template_set, "survives_ack": n.survives_ack, "nobody": n.is_page and not n.to,
                        }
                        for number, n in enumerate(notices)
                    ],
                    ensure_ascii=False,
                ),
            },
        )  # fmt: skip
        ids = sorted(int(pk) for (pk,) in cursor.fetchall())  # they are drawn in the order of the rows
        rows = []
        for pk, notice in zip(ids, notices, strict=True):
            for to in {(to.channel_id, to.target): to for to in reversed(notice.to)}.values():
                at = now + timedelta(seconds=to.delay)
                rows.append(
                    Row(
                        pk, notice.topic, to.channel_id, to.target, to.member_id, policy.priority(notice.severity, notice.rank),
                        notice.is_page, notice.survives_ack, to.mentions, at, at + policy.deadline(notice.severity),
                        at + (policy.GIVE_UP if notice.is_page else policy.GIVE_UP_NOTICE), reason=to.reason,
                    )
                )  # fmt: skip
        if rows:
            find_addresses(rows)
            replace_earlier(rows, now)
            insert(rows, now)
    wake("drain")
    return ids


def replace_earlier(rows: Sequence[Row], now: datetime) -> None:
    """Earlier pages give way to these, which are about to be written, where both would only say the same twice. Addresses are locked already;
    nothing waits for a delivery here."""
    _replace_held(rows, now)
    _replace_tried(rows, now)


def _replace_held(rows: Sequence[Row], now: datetime) -> None:
    """What waits for the end of the same quiet hours gives way to a later page about the same: a night of loops is one message in the morning."""
    held = [row for row in rows if row.reason and row.is_page and row.topic is not None]
    if not held:
        return
    _withdraw(
        """SELECT d.id, d.state FROM channels_app_delivery d
           JOIN unnest(%(addresses)s::bigint[], %(topics)s::bigint[], %(reasons)s::text[], %(survive)s::bool[]) AS w(address, topic, reason, survives)
             ON d.address_id = w.address AND d.topic = w.topic AND d.reason = w.reason AND d.survives_ack <= w.survives
           WHERE d.state = 'queued' AND d.is_page AND d.attempts = 0 AND d.not_before > %(now)s
           ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED""",
        {
            "addresses": [row.address for row in held],
            "topics": [row.topic for row in held],
            "reasons": [row.reason for row in held],
            "survive": [row.survives_ack for row in held],
        },
        LATER_PAGE,
        now,
    )


def _replace_tried(rows: Sequence[Row], now: datetime) -> None:
    """Earlier pages about the same, at the same address, that are still being tried although their fallback has started give way to later ones:
    a provider that comes back after hours sends one page of an incident and not every loop of its outage.

    A later one goes on where the earlier one was: it leaves no later than that would have, its tries are counted on and it calls whom that was
    to call. An earlier one that is out may yet arrive, so that nothing is hurried for it. First pages have no earlier ones, so a storm asks nothing.
    """
    later = {
        (row.topic, row.address, row.member): row
        for row in rows
        if row.is_page and row.topic is not None and not row.reason and not policy.is_first(row.priority)
    }
    if not later:
        return
    replaced = _withdraw(
        f"""SELECT d.id, d.state FROM channels_app_delivery d
            JOIN unnest(%(notifications)s::bigint[], %(topics)s::bigint[], %(addresses)s::bigint[], %(members)s::bigint[], %(survive)s::bool[])
              AS w(notification, topic, address, member, survives)
              ON d.topic = w.topic AND d.address_id = w.address AND d.member_id IS NOT DISTINCT FROM w.member
                AND d.notification_id < w.notification AND d.survives_ack <= w.survives
            WHERE d.topic = ANY(%(topics)s) AND {IS_OPEN} AND d.is_page AND d.fallback_at IS NULL AND NOT d.withdrawn
            ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED""",
        {
            "notifications": [row.notification for row in later.values()],
            "topics": [row.topic for row in later.values()],
            "addresses": [row.address for row in later.values()],
            "members": [row.member for row in later.values()],
            "survive": [row.survives_ack for row in later.values()],
        },
        LATER_PAGE,
        now,
    )
    for state, topic, address, member, again_at, tries, mentions in replaced:
        row = later[topic, address, member]
        row.tries = max(row.tries, tries)
        row.mentions = tuple(dict.fromkeys((*row.mentions, *json.loads(mentions))))
        if state == "queued" and (sooner := row.not_before - max(again_at, now)) > timedelta(0):
            row.not_before, row.deadline_at, row.give_up_at = row.not_before - sooner, row.deadline_at - sooner, row.give_up_at - sooner


def overtake(ids: Sequence[int], now: datetime) -> None:
    """These messages stood in for others and were sent: what another vendor was still trying at the same phone or mailbox about it ends, and
    what is out there is not tried again. Should they be reported as failed later, it goes on: see `fallbacks`."""
    if not ids:
        return
    kinds = [kind for kind in transport.transports() if addresses.has_vendors(kind)]
    _withdraw(
        f"""SELECT d.id, d.state
            FROM unnest(%(kinds)s::text[], %(families)s::text[]) AS does(kind, family)
            JOIN channels_app_channel c ON c.kind = does.kind
            JOIN channels_app_delivery s ON s.channel_id = c.id
            JOIN channels_app_address a ON a.id = s.address_id
            JOIN channels_app_delivery d ON d.notification_id = s.notification_id AND d.member_id = s.member_id AND d.id < s.id
            JOIN channels_app_address b ON b.id = d.address_id AND b.target = a.target
            JOIN channels_app_channel other ON other.id = d.channel_id
            JOIN unnest(%(kinds)s::text[], %(families)s::text[]) AS did(kind, family) ON did.kind = other.kind AND did.family = does.family
            WHERE s.id = ANY(%(ids)s) AND {IS_OPEN} AND d.is_page AND (d.attempts > 0 OR d.fallback_at IS NULL) AND NOT d.withdrawn
            ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED""",
        {"ids": list(ids), "kinds": kinds, "families": [addresses.family(kind) for kind in kinds]},
        OVERTAKEN,
        now,
    )


def find_addresses(rows: Sequence[Row]) -> None:
    """Locks the address of each row (by id), making those that are new, and writes their ids into the rows."""
    first: dict[tuple[int, str], tuple[datetime, int]] = {}
    for row in rows:
        at, priority = first.get((row.channel, row.target), (row.not_before, row.priority))
        first[row.channel, row.target] = (min(at, row.not_before), min(priority, row.priority))
    places = sorted(first)

    def columns(of: Sequence[tuple[int, str]]) -> list[Any]:
        return [[p[0] for p in of], [p[1] for p in of], [first[p][0] for p in of], [first[p][1] for p in of]]

    with planned_once() as cursor:
        # Existing ones by id, then new ones in one order everywhere: two posts can wait for each other, but never in a circle. What was
        # locked is compared as it was once we had the lock: the drain may have emptied an address while we waited for it.
        cursor.execute(
            """WITH mine AS MATERIALIZED (
                 SELECT a.id, a.channel_id, a.target, a.next_at, a.priority AS was, w.at, w.priority
                 FROM unnest(%s::bigint[], %s::text[], %s::timestamptz[], %s::smallint[]) AS w(channel, target, at, priority)
                 JOIN channels_app_address a ON a.channel_id = w.channel AND a.target = w.target ORDER BY a.id FOR NO KEY UPDATE OF a),
               due AS (
                 UPDATE channels_app_address a SET next_at = LEAST(m.next_at, m.at),
                   priority = CASE WHEN m.next_at IS NULL THEN m.priority ELSE LEAST(m.was, m.priority) END
                 FROM mine m WHERE a.id = m.id AND (m.next_at IS NULL OR m.next_at > m.at OR m.was > m.priority))
               SELECT id, channel_id, target FROM mine""",
            columns(places),
        )
        found = {(channel, target): pk for pk, channel, target in cursor.fetchall()}
        new = [place for place in places if place not in found]
        if new:
            cursor.execute(
                """INSERT INTO channels_app_address AS a (channel_id, target, buckets, blocked_reason, next_at, priority)
                   SELECT channel, target, '{}', '', at, priority
                   FROM unnest(%s::bigint[], %s::text[], %s::timestamptz[], %s::smallint[]) AS w(channel, target, at, priority)
                   ON CONFLICT (channel_id, target) DO UPDATE
                     SET next_at = LEAST(a.next_at, excluded.next_at), priority = LEAST(a.priority, excluded.priority)
                   RETURNING id, channel_id, target""",
                columns(new),
            )
            found |= {(channel, target): pk for pk, channel, target in cursor.fetchall()}
    for row in rows:
        row.address = found[row.channel, row.target]


def insert(rows: Sequence[Row], now: datetime) -> None:
    with planned_once() as cursor:
        cursor.execute(
            """INSERT INTO channels_app_delivery (uid, notification_id, topic, channel_id, address_id, member_id, state, reason, priority,
                   is_page, survives_ack, withdrawn, mentions, created_at, not_before, deadline_at, give_up_at, fallback_at, fallback_of_id,
                   attempts, tries, possible_repeat, holder, message_id, subject, text, log)
               SELECT gen_random_uuid(), notification, topic, channel, address, member, 'queued', reason, priority, is_page, survives_ack, false,
                   mentions::jsonb, %s, not_before, deadline, give_up, CASE WHEN is_page THEN deadline END, fallback_of,
                   0, tries, false, '', '', '', '', '[]'
               FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::smallint[], %s::bool[], %s::bool[],
                   %s::text[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::bigint[], %s::text[], %s::smallint[])
                 AS w(notification, topic, channel, address, member, priority, is_page, survives_ack, mentions, not_before, deadline, give_up,
                   fallback_of, reason, tries)""",
            [
                now, [r.notification for r in rows], [r.topic for r in rows], [r.channel for r in rows], [r.address for r in rows],
                [r.member for r in rows], [r.priority for r in rows], [r.is_page for r in rows], [r.survives_ack for r in rows],
                [json.dumps(r.mentions) for r in rows], [r.not_before for r in rows], [r.deadline_at for r in rows],
                [r.give_up_at for r in rows], [r.fallback_of for r in rows], [r.reason for r in rows],
                [r.tries for r in rows],
            ],
        )  # fmt: skip


def cancel(
    topics: Sequence[int],
    reason: str,
    now: datetime,
    *,
    keep_forced: bool = True,
    pages_only: bool = True,
    theirs: Sequence[int] = (),
    member: int | None = None,
) -> int:
    """Nothing more leaves about these topics: what is queued is cancelled with `reason` (an English sentence or word), in the caller's transaction.

    What is out stays out, but is not tried again and starts no fallback. `keep_forced` leaves the pages of layers that escalate even if
    acknowledged, `pages_only` the status notices; about the topics that stand in `theirs`, too, it is only what is for `member`. All of it in
    the order of ids, so once for all topics of a transaction. Returns how many messages were stopped.
    """
    if not topics:
        return 0
    stopped = 0
    # Again until there is nothing left: a statement that had to wait for a fallback to start does not see the message which that made.
    # What only gave way to another message and is out still is ours from now on: see GAVE_WAY.
    which = f"""SELECT d.id, d.state FROM channels_app_delivery d
                WHERE d.topic = ANY(%(topics)s) AND (NOT d.withdrawn OR d.reason = ANY(%(gave_way)s) AND {IS_OPEN})
                  {"AND d.is_page" if pages_only else ""} {"AND NOT d.survives_ack" if keep_forced else ""}
                  {"AND (d.member_id = %(member)s OR d.topic <> ALL(%(theirs)s))" if theirs else ""} ORDER BY d.id FOR NO KEY UPDATE"""
    values = {"topics": list(topics), "theirs": list(theirs), "member": member, "gave_way": GAVE_WAY}
    while found := _withdraw(which, values, reason[:500], now):
        stopped += sum(row[0] == "queued" for row in found)
    return stopped


def _withdraw(which: str, values: Mapping[str, Any], reason: str, now: datetime) -> list[tuple[Any, ...]]:
    """Nothing more leaves on account of the messages that `which` finds, a SELECT of their ids and states that locks them. What is out stays out
    and what becomes of it is still written, but it is not tried again and starts no fallback. What they were: (state, topic, address, member,
    not_before, tries, mentions) of each."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""WITH mine AS ({which})
                UPDATE channels_app_delivery d SET withdrawn = true, fallback_at = NULL,
                  -- Nobody can know whether an earlier attempt of it arrived: that stays the last word.
                  state = CASE WHEN d.state <> 'queued' THEN d.state WHEN d.possible_repeat THEN 'unknown' ELSE 'cancelled' END,
                  reason = CASE WHEN {IS_OPEN} THEN %(reason)s ELSE d.reason END,
                  ended_at = CASE WHEN d.state = 'queued' THEN %(now)s ELSE d.ended_at END
                FROM mine WHERE d.id = mine.id
                RETURNING mine.state, d.topic, d.address_id, d.member_id, d.not_before, d.tries, d.mentions::text""",
            dict(values) | {"reason": reason, "now": now},
        )
        return list(cursor.fetchall())
