"""The outbox: what is to be said becomes rows, rows become requests, and every answer becomes a row again.

Above it: `post` and `cancel` in the transaction of whoever decides, `receipt` and `answered` when the world answers. Below it, the parts
the drain is made of: `claim`, `record`, `take_over`, `fallbacks`; `run_once` is all of them without a thread, so that a test plays a story.

What holds at every line, whatever dies:
- A request leaves only after its row was set to `sending` in the statement that re-read its state, so after an acknowledgement was
  answered nothing new leaves. A result is written only where the row is still `sending` for this attempt and this holder.
- The lease of an address is the leases of its deliveries in flight: where a transport takes one request at a time, an address with a row
  in `sending` (of any drain on any node) is left alone. No row lock is held while a request is out.
- Lock order: Address, then Delivery, each by id. `claim` and `fallbacks` never wait for a lock on a Delivery. Whoever calls `post` and
  `cancel` in one transaction calls `post` first.
- `Address.next_at` is never later than the earliest `not_before` of what is queued there, unless the provider makes it wait.
"""

import contextlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import psycopg
from django.db import connection, transaction
from django.utils.translation import gettext_noop

from channels_app import addresses, book, compose, limits, policy
from channels_app.book import Book, Open
from channels_app.compose import Claimed, Result, Said
from channels_app.models import ChannelHealth, Delivery, Notification, Pulse
from channels_app.transport import DeliveryError
from mapping.clock import wake
from mapping.crypto import decrypt
from mapping.models import ContactPoint, Installation
from templates_app.models import report_failure

log = logging.getLogger(__name__)

MOST_IN_A_BUNDLE: Final = 200
# While nothing has left the house by any channel for so long, failures to connect are ours and not the providers'.
NETWORK_SECONDS: Final = 60
PULSE: Final = timedelta(seconds=3)
AWAY: Final = timedelta(seconds=15)  # so long without a drain was an outage of ours
NETWORK_ALARM: Final = gettext_noop(
    "No channel can be reached from here: name resolution, connections or the proxy fail for all of them. Pages wait and are tried again."
)


# ---- what is to be said --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class To:
    """One address to tell. `target` is "" where the channel itself is the address; `delay` in seconds."""

    channel_id: int
    target: str
    member_id: int | None = None
    delay: float = 0
    mentions: tuple[str, ...] = ()


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
class _Row:
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


def post(notices: Sequence[Notice], now: datetime) -> list[int]:
    """Writes notifications and their deliveries in the caller's transaction, set-based, and wakes the drain after it; the notifications' ids."""
    if not notices:
        return []
    secret = Notification._meta.get_field("secret_context")
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT nextval(pg_get_serial_sequence('channels_app_notification', 'id')) FROM generate_series(1, %s)", [len(notices)]
        )
        ids = [int(row[0]) for row in cursor.fetchall()]
        # One JSON value for all: an array of JSON texts costs ten times as much to quote.
        cursor.execute(
            """INSERT INTO channels_app_notification (id, event, is_page, severity, topic, run, layer_idx, context, secret_context,
                   template_set, survives_ack, created_at, exhausted_at)
               SELECT id, event, is_page, severity, topic, run, layer_idx, context, secret, template_set, survives_ack, %(now)s,
                   CASE WHEN nobody THEN %(now)s END
               FROM jsonb_to_recordset(%(rows)s::jsonb)
                 AS n(id bigint, event text, is_page bool, severity text, topic bigint, run bigint, layer_idx smallint, context jsonb,
                   secret text, template_set bigint, survives_ack bool, nobody bool)""",
            {
                "now": now,
                "rows": json.dumps(
                    [
                        {
                            "id": pk, "event": n.event, "is_page": n.is_page, "severity": n.severity, "topic": n.topic, "run": n.run,
                            "layer_idx": n.layer_idx, "context": n.context, "secret": secret.get_prep_value(dict(n.secret_context)),
                            "template_set": n.template_set, "survives_ack": n.survives_ack, "nobody": n.is_page and not n.to,
                        }
                        for pk, n in zip(ids, notices, strict=True)
                    ],
                    ensure_ascii=False,
                ),
            },
        )  # fmt: skip
        rows = []
        for pk, notice in zip(ids, notices, strict=True):
            for to in {(to.channel_id, to.target): to for to in reversed(notice.to)}.values():
                at = now + timedelta(seconds=to.delay)
                rows.append(
                    _Row(
                        pk, notice.topic, to.channel_id, to.target, to.member_id, policy.priority(notice.severity, notice.rank),
                        notice.is_page, notice.survives_ack, to.mentions, at, at + policy.deadline(notice.severity),
                        at + (policy.GIVE_UP if notice.is_page else policy.GIVE_UP_NOTICE),
                    )
                )  # fmt: skip
        if rows:
            _find_addresses(rows)
            _insert(rows, now)
    wake("drain")
    return ids


def _find_addresses(rows: Sequence[_Row]) -> None:
    """Locks the address of each row (by id), making those that are new, and writes their ids into the rows."""
    first: dict[tuple[int, str], tuple[datetime, int]] = {}
    for row in rows:
        at, priority = first.get((row.channel, row.target), (row.not_before, row.priority))
        first[row.channel, row.target] = (min(at, row.not_before), min(priority, row.priority))
    places = sorted(first)
    found: dict[tuple[int, str], int] = {}
    with connection.cursor() as cursor:
        # Existing ones by id, then new ones in one order everywhere: two posts can wait for each other, but never in a circle.
        cursor.execute(
            """SELECT a.id, a.channel_id, a.target FROM unnest(%s::bigint[], %s::text[]) AS w(channel, target)
               JOIN channels_app_address a ON a.channel_id = w.channel AND a.target = w.target ORDER BY a.id FOR NO KEY UPDATE OF a""",
            [[channel for channel, _target in places], [target for _channel, target in places]],
        )
        found = {(channel, target): pk for pk, channel, target in cursor.fetchall()}
        new = [place for place in places if place not in found]
        if found:
            known = [(pk, *first[place]) for place, pk in found.items()]
            cursor.execute(
                """UPDATE channels_app_address a SET next_at = LEAST(a.next_at, w.at),
                       priority = CASE WHEN a.next_at IS NULL THEN w.priority ELSE LEAST(a.priority, w.priority) END
                   FROM unnest(%s::bigint[], %s::timestamptz[], %s::smallint[]) AS w(id, at, priority)
                   WHERE a.id = w.id AND (a.next_at IS NULL OR a.next_at > w.at OR a.priority > w.priority)""",
                [[k[0] for k in known], [k[1] for k in known], [k[2] for k in known]],
            )
        if new:
            cursor.execute(
                """INSERT INTO channels_app_address AS a (channel_id, target, buckets, blocked_reason, next_at, priority)
                   SELECT channel, target, '{}', '', at, priority
                   FROM unnest(%s::bigint[], %s::text[], %s::timestamptz[], %s::smallint[]) AS w(channel, target, at, priority)
                   ON CONFLICT (channel_id, target) DO UPDATE
                     SET next_at = LEAST(a.next_at, excluded.next_at), priority = LEAST(a.priority, excluded.priority)
                   RETURNING id, channel_id, target""",
                [[p[0] for p in new], [p[1] for p in new], [first[p][0] for p in new], [first[p][1] for p in new]],
            )
            found |= {(channel, target): pk for pk, channel, target in cursor.fetchall()}
    for row in rows:
        row.address = found[row.channel, row.target]


def _insert(rows: Sequence[_Row], now: datetime) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """INSERT INTO channels_app_delivery (uid, notification_id, topic, channel_id, address_id, member_id, state, reason, priority,
                   is_page, survives_ack, withdrawn, mentions, created_at, not_before, deadline_at, give_up_at, fallback_at, fallback_of_id,
                   attempts, tries, possible_repeat, holder, message_id, subject, text, log)
               SELECT gen_random_uuid(), notification, topic, channel, address, member, 'queued', '', priority, is_page, survives_ack, false,
                   mentions::jsonb, %s, not_before, deadline, give_up, CASE WHEN is_page THEN deadline END, fallback_of,
                   0, 0, false, '', '', '', '', '[]'
               FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::smallint[], %s::bool[], %s::bool[],
                   %s::text[], %s::timestamptz[], %s::timestamptz[], %s::timestamptz[], %s::bigint[])
                 AS w(notification, topic, channel, address, member, priority, is_page, survives_ack, mentions, not_before, deadline, give_up,
                   fallback_of)""",
            [
                now, [r.notification for r in rows], [r.topic for r in rows], [r.channel for r in rows], [r.address for r in rows],
                [r.member for r in rows], [r.priority for r in rows], [r.is_page for r in rows], [r.survives_ack for r in rows],
                [json.dumps(r.mentions) for r in rows], [r.not_before for r in rows], [r.deadline_at for r in rows],
                [r.give_up_at for r in rows], [r.fallback_of for r in rows],
            ],
        )  # fmt: skip


def cancel(topics: Sequence[int], reason: str, now: datetime, *, keep_forced: bool = True, pages_only: bool = True) -> int:
    """Nothing more leaves about these topics: what is queued is cancelled with `reason` (an English sentence or word), in the caller's transaction.

    What is out stays out, but is not tried again and starts no fallback. `keep_forced` leaves the pages of layers that escalate even if
    acknowledged, `pages_only` the status notices. Returns how many messages were stopped.
    """
    if not topics:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            f"""WITH mine AS (
                  SELECT id FROM channels_app_delivery WHERE topic = ANY(%(topics)s) AND NOT withdrawn
                    {"AND is_page" if pages_only else ""} {"AND NOT survives_ack" if keep_forced else ""} ORDER BY id FOR NO KEY UPDATE)
                UPDATE channels_app_delivery d SET withdrawn = true, fallback_at = NULL,
                  -- Nobody can know whether an earlier attempt of it arrived: that stays the last word.
                  state = CASE WHEN d.state <> 'queued' THEN d.state WHEN d.possible_repeat THEN 'unknown' ELSE 'cancelled' END,
                  reason = CASE WHEN d.state IN ('queued', 'sending') THEN %(reason)s ELSE d.reason END,
                  ended_at = CASE WHEN d.state = 'queued' THEN %(now)s ELSE d.ended_at END
                FROM mine, channels_app_delivery before WHERE d.id = mine.id AND before.id = d.id
                RETURNING before.state""",
            {"topics": list(topics), "reason": reason[:500], "now": now},
        )
        return sum(state == "queued" for (state,) in cursor.fetchall())


# ---- claiming ------------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Room:
    """How much a drain can take now: `total` senders are free, of `threads`; what it has in flight already, by channel and by address."""

    total: int
    threads: int = 0
    by_channel: Mapping[int, int] = field(default_factory=dict)
    by_address: Mapping[int, int] = field(default_factory=dict)

    def of_channel(self, channel: int) -> int:
        """How many more one channel may have. It never takes the last quarter of the senders that others leave, so that a provider that
        hangs finds no channel without a free sender."""
        if not self.threads:
            return self.total
        mine = self.by_channel.get(channel, 0)
        others = sum(self.by_channel.values()) - mine
        return max(0, min(self.total, max(1, (self.threads - others) * 3 // 4) - mine))


@dataclass(slots=True)
class _Place:
    """An address in a claim."""

    id: int
    channel: Open | None
    target: str
    log: Mapping[str, Sequence[float]]
    want: int = 0
    got: int = 0
    free: int = 0  # what its limits allow
    wait: datetime | None = None  # not before, whatever is queued
    everybody_falls_back: bool = False
    bundles: bool = False
    probe: bool = False


def claim(holder: str, now: datetime, room: Room, notes: Book) -> list[Claimed]:
    """Takes what is due and fits `room`, most severe first, in one short transaction; from then on requests may leave. `notes` is refreshed
    by the caller."""
    full = [pk for pk, count in room.by_channel.items() if count and not room.of_channel(pk)]
    busy = [pk for pk, _count in room.by_address.items()]
    with transaction.atomic(), _planned_once() as cursor:
        # Addresses are looked at in the order in which they became due, but of the first thousand the most severe go first.
        cursor.execute(
            """SELECT a.id, a.channel_id, a.target, a.buckets, a.blocked_until, a.priority
               FROM (SELECT id FROM channels_app_address
                     WHERE next_at <= %(now)s AND channel_id <> ALL(%(full)s) AND id <> ALL(%(busy)s)
                     ORDER BY next_at LIMIT 1000) f
               JOIN channels_app_address a ON a.id = f.id
               WHERE a.next_at <= %(now)s ORDER BY a.priority, a.next_at LIMIT %(room)s FOR NO KEY UPDATE OF a SKIP LOCKED""",
            {"now": now, "full": full, "busy": _full_addresses(busy, room, notes), "room": room.total},
        )
        found = cursor.fetchall()
        if not found:
            return []
        places = _plan(found, now, room, notes)
        rows = _take(cursor, [place for place in places.values() if place.want and not place.bundles], holder, now)
        for place in places.values():
            if place.want and place.bundles:
                rows += _take_limited(cursor, place, holder, now, notes)
        for row in rows:
            if row["bundled_by"] is None:
                places[row["address"]].got += 1
        _leave(cursor, places.values(), now)
        _probe(cursor, places.values(), now)
        said = _said(cursor, {row["notification"] for row in rows}, notes)
    # Whatever takes longer than a statement happens after the commit.
    return _claimed(rows, places, said, notes, now)


def _full_addresses(busy: Sequence[int], room: Room, notes: Book) -> list[int]:
    """Addresses where we have as much in flight as their transport takes; another drain's requests are counted in `_take`."""
    return [pk for pk in busy if room.by_address[pk] >= _IN_FLIGHT.get(pk, 1)] if busy else []


# What each address of this process takes at once, remembered from its last claim.
_IN_FLIGHT: dict[int, int] = {}


def _plan(found: Sequence[tuple[Any, ...]], now: datetime, room: Room, notes: Book) -> dict[int, _Place]:
    """How much of each address may leave now, or until when it waits."""
    places: dict[int, _Place] = {}
    left = room.total
    by_channel: dict[int, int] = {}
    probing: set[int] = set()
    for pk, channel_id, target, buckets, blocked_until, _priority in found:
        channel = notes.channels.get(channel_id)
        place = places[pk] = _Place(pk, channel, target, json.loads(buckets) if isinstance(buckets, str) else buckets)
        if channel is None:  # made after we last looked
            place.wait = now + timedelta(seconds=0.2)
            continue
        if blocked_until is not None and blocked_until > now:
            place.wait = blocked_until
            continue
        share = by_channel.setdefault(channel_id, min(left, room.of_channel(channel_id)))
        if channel.transport is not None and channel.open_until is not None and channel.failures >= policy.BREAKER_FAILURES:
            if channel.open_until > now or channel_id in probing:
                place.wait = max(channel.open_until, now + timedelta(seconds=policy.PROBE_SECONDS))
                place.wait = channel.open_until if channel.open_until > now else place.wait
                place.everybody_falls_back = True
                continue
            place.probe = True
            share = min(share, 1)
            probing.add(channel_id)
        place.free, place.wait = limits.look(place.log, channel.limits, now)
        if place.wait is not None:
            continue
        _IN_FLIGHT[pk] = channel.concurrency
        place.want = max(0, min(share, left, channel.concurrency - room.by_address.get(pk, 0), place.free))
        place.bundles = bool(channel.limits) and channel.transport is not None
        left -= place.want
        by_channel[channel_id] = share - place.want
    return places


_COLUMNS: Final = """d.id, d.uid, d.notification_id AS notification, d.address_id AS address, d.channel_id AS channel, d.member_id AS member,
    d.attempts, d.tries, d.possible_repeat, d.is_page, d.mentions, d.deadline_at, d.give_up_at, d.bundled_by_id AS bundled_by"""
_START: Final = """attempts = d.attempts + 1, tries = d.tries + 1, holder = %(holder)s, lease_until = %(lease)s,
    first_request_at = COALESCE(d.first_request_at, %(now)s), reason = '',
    fallback_at = CASE WHEN d.fallback_at IS NULL THEN NULL
                       ELSE LEAST(d.fallback_at, COALESCE(d.first_request_at, %(now)s) + %(budget)s) END"""


def _take(cursor: Any, places: Sequence[_Place], holder: str, now: datetime) -> list[dict[str, Any]]:
    """The statement after which requests may leave: it re-reads the state, counts the attempt and takes the lease."""
    if not places:
        return []
    cursor.execute(
        f"""WITH picked AS (
              SELECT p.id FROM unnest(%(ids)s::bigint[], %(wants)s::int[], %(single)s::bool[]) AS w(id, want, single)
              CROSS JOIN LATERAL (
                SELECT d.id FROM channels_app_delivery d
                WHERE d.address_id = w.id AND d.state = 'queued' AND d.not_before <= %(now)s
                  AND NOT (w.single AND EXISTS (SELECT 1 FROM channels_app_delivery s WHERE s.address_id = w.id AND s.state = 'sending'))
                ORDER BY d.priority, d.id LIMIT w.want FOR NO KEY UPDATE SKIP LOCKED) p)
            UPDATE channels_app_delivery d SET state = 'sending', {_START} WHERE d.id = ANY(ARRAY(SELECT id FROM picked))
            RETURNING {_COLUMNS}, d.priority""",
        {
            "ids": [place.id for place in places],
            "wants": [place.want for place in places],
            "single": [place.channel is not None and place.channel.concurrency == 1 for place in places],
            **_lease(holder, now),
        },
    )
    return sorted(_dicts(cursor), key=lambda row: (row["priority"], row["id"]))


def _lease(holder: str, now: datetime) -> dict[str, Any]:
    return {"holder": holder, "lease": now + policy.LEASE, "now": now, "budget": policy.BUDGET}


def _take_limited(cursor: Any, place: _Place, holder: str, now: datetime, notes: Book) -> list[dict[str, Any]]:
    """An address whose provider limits it: single messages while they last; when more pages wait than may leave, one of them carries the others.

    It takes what fits the length of a message. Status notices are never mixed in. What was acknowledged meanwhile is not queued any more.
    """
    assert place.channel is not None
    cursor.execute(
        f"""SELECT {_COLUMNS}, d.priority FROM channels_app_delivery d
            WHERE d.address_id = %(id)s AND d.state = 'queued' AND d.not_before <= %(now)s
              AND NOT (%(single)s AND EXISTS (SELECT 1 FROM channels_app_delivery s WHERE s.address_id = %(id)s AND s.state = 'sending'))
            ORDER BY d.priority, d.id LIMIT %(most)s FOR NO KEY UPDATE SKIP LOCKED""",
        {"id": place.id, "now": now, "most": MOST_IN_A_BUNDLE, "single": place.channel.concurrency == 1},
    )
    rows = _dicts(cursor)
    pages = [row for row in rows if row["is_page"]]
    chosen: list[dict[str, Any]] = rows[: place.want]
    inside: list[dict[str, Any]] = []
    if len(pages) > max(1, place.free) and rows[0]["is_page"]:
        said = _said(cursor, {row["notification"] for row in pages}, notes)
        waiting = _claimed(pages, {place.id: place}, said, notes, now)
        _rendered, count = compose.bundled(waiting, now)
        chosen, inside = pages[:1], pages[1:count]
    if not chosen:
        return []
    cursor.execute(
        f"""UPDATE channels_app_delivery d SET state = CASE WHEN w.carrier IS NULL THEN 'sending' ELSE 'bundled' END,
                bundled_by_id = w.carrier, {_START}
            FROM unnest(%(ids)s::bigint[], %(carriers)s::bigint[]) AS w(id, carrier) WHERE d.id = w.id
            RETURNING {_COLUMNS}, d.priority""",
        {
            "ids": [row["id"] for row in chosen + inside],
            "carriers": [None] * len(chosen) + [chosen[0]["id"]] * len(inside),
            **_lease(holder, now),
        },
    )
    place.want = len(chosen)
    return sorted(_dicts(cursor), key=lambda row: (row["priority"], row["id"]))


def _leave(cursor: Any, places: Iterable[_Place], now: datetime) -> None:
    """Says of each address when to look at it again, and starts the fallback of what would wait there past its deadline."""
    changed: list[tuple[int, str | None, datetime | None, bool]] = []
    waits: list[tuple[int, datetime, bool]] = []
    for place in places:
        until = place.wait
        log_of: str | None = None
        if place.got and place.channel is not None and place.channel.limits:
            marks = limits.taken(place.log, place.channel.limits, now, place.got)
            log_of = json.dumps(marks)
            _free, until = limits.look(marks, place.channel.limits, now)
        if until is not None:
            waits.append((place.id, until, place.everybody_falls_back))
        # Where we got all we wanted there is probably more; else what is left lies in the future.
        changed.append((place.id, log_of, until, place.wait is None and place.want > 0 and place.got >= place.want))
    cursor.execute(
        """UPDATE channels_app_address a SET buckets = COALESCE(w.buckets::jsonb, a.buckets),
             next_at = CASE WHEN w.more THEN GREATEST(w.until, %(now)s) WHEN q.at IS NULL THEN NULL ELSE GREATEST(w.until, q.at) END,
             priority = COALESCE(q.priority, a.priority)
           FROM unnest(%(ids)s::bigint[], %(logs)s::text[], %(untils)s::timestamptz[], %(more)s::bool[]) AS w(id, buckets, until, more)
           LEFT JOIN LATERAL (SELECT min(d.not_before) AS at, min(d.priority) AS priority FROM channels_app_delivery d
             WHERE NOT w.more AND d.address_id = w.id AND d.state = 'queued') q ON true
           WHERE a.id = w.id""",
        {
            "ids": [c[0] for c in changed],
            "logs": [c[1] for c in changed],
            "untils": [c[2] for c in changed],
            "more": [c[3] for c in changed],
            "now": now,
        },
    )
    if waits:
        cursor.execute(
            """UPDATE channels_app_delivery SET fallback_at = %(now)s WHERE id IN (
                 SELECT d.id FROM unnest(%(ids)s::bigint[], %(untils)s::timestamptz[], %(all)s::bool[]) AS w(id, until, everybody)
                 JOIN channels_app_delivery d ON d.address_id = w.id AND d.state = 'queued' AND d.fallback_at > %(now)s
                   AND (d.deadline_at <= w.until OR (w.everybody AND d.not_before <= %(now)s))
                 ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED)""",
            {"ids": [w[0] for w in waits], "untils": [w[1] for w in waits], "all": [w[2] for w in waits], "now": now},
        )


def _probe(cursor: Any, places: Iterable[_Place], now: datetime) -> None:
    """One request finds out whether a channel that kept failing works again; until it is back, the others leave it alone."""
    probed = [place.channel.id for place in places if place.probe and place.got and place.channel is not None]
    if probed:
        ChannelHealth.objects.filter(channel_id__in=probed).update(open_until=now + timedelta(seconds=policy.PROBE_SECONDS))


def _said(cursor: Any, ids: Iterable[int], notes: Book) -> dict[int, Said]:
    cursor.execute(
        """SELECT id, event, severity, topic, layer_idx, context, secret_context, template_set FROM channels_app_notification
           WHERE id = ANY(%s)""",
        [list(ids)],
    )
    rows = cursor.fetchall()
    notes.add_texts(row[7] for row in rows if row[7] is not None)
    return {
        pk: Said(
            pk, event, severity, topic, layer, json.loads(context) | (json.loads(decrypt(secret)) if secret else {}),
            notes.texts.get(texts, ()) if texts is not None else (), bool(secret),
        )
        for pk, event, severity, topic, layer, context, secret, texts in rows
    }  # fmt: skip


def _claimed(
    rows: Sequence[Mapping[str, Any]], places: Mapping[int, _Place], said: Mapping[int, Said], notes: Book, now: datetime
) -> list[Claimed]:
    people = book.people(row["member"] for row in rows if row["member"] is not None)
    found: dict[int, Claimed] = {}
    inside: dict[int, list[Claimed]] = defaultdict(list)
    for row in rows:
        place = places[row["address"]]
        assert place.channel is not None
        person = people.get(row["member"]) if row["member"] is not None else None
        one = Claimed(
            id=row["id"], uid=row["uid"], attempt=row["attempts"], tries=row["tries"], possible_repeat=row["possible_repeat"],
            is_page=row["is_page"], said=said[row["notification"]], channel=place.channel, address_id=place.id, target=place.target,
            member=person, mentions=tuple(json.loads(row["mentions"])), language=person.language if person else notes.language,
            deadline_at=row["deadline_at"], give_up_at=row["give_up_at"], at=now,
        )  # fmt: skip
        if row["bundled_by"] is None:
            found[one.id] = one
        else:
            inside[row["bundled_by"]].append(one)
    for carrier, others in inside.items():
        found[carrier].bundle = tuple(others)
    return list(found.values())


@contextlib.contextmanager
def _planned_once() -> Iterator[Any]:
    """A cursor whose statements the server plans once for a connection. Django's binds on the client's side, so each is planned anew: half
    of the work of a claim. Parameters have the types of their Python values."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield cursor


def _dicts(cursor: Any) -> list[dict[str, Any]]:
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


# ---- what became of it ---------------------------------------------------------------------------------------------------------------


def record(holder: str, results: Sequence[Result], now: datetime) -> int:
    """Writes the results of attempts, in one statement for all deliveries; only where the row is still ours and in that attempt. How many were."""
    if not results:
        return 0
    verdicts = [(one, result, policy.judge(
        result.said, tries=one.tries, seed=one.id, is_page=one.is_page, deadline_at=one.deadline_at, give_up_at=one.give_up_at, now=now,
    )) for result in results for one in (result.claimed, *result.claimed.bundle)]  # fmt: skip
    again = {one.address_id for one, _result, verdict in verdicts if verdict.state == "queued"}
    with transaction.atomic(), connection.cursor() as cursor:
        if again:
            cursor.execute("SELECT id FROM channels_app_address WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", [list(again)])
        with _planned_once() as planned:
            written = _write(planned, holder, verdicts, now)
        if again:
            _come_back(cursor, written, results, now)
        _note_health(cursor, results, verdicts, now)
        _wipe_secrets(cursor, [one.said.id for one, _result, _verdict in verdicts if one.said.has_secret])
        evidence = {row["notification"] for row in written if row["is_page"] and row["evidence"]}
        _exhaust(cursor, evidence, now)
        for template, error in {result.failed_template for result in results if result.failed_template is not None}:
            report_failure(template, error, now)
    return len(written)


def _write(cursor: Any, holder: str, verdicts: Sequence[tuple[Claimed, Result, policy.Verdict]], now: datetime) -> list[dict[str, Any]]:
    rows = []
    for one, result, verdict in verdicts:
        message_id, detail = (
            ("", verdict.reason) if isinstance(result.said, DeliveryError) else (result.said.message_id, result.said.detail)
        )
        line = [one.attempt, round(result.started.timestamp(), 3), result.seconds, verdict.outcome, detail[:500]]
        rows.append((one.id, one.attempt, verdict, message_id[:200], result.subject, result.text, json.dumps([line], ensure_ascii=False)))
    cursor.execute(
        """WITH r AS (
             SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::int[], %(states)s::text[], %(reasons)s::text[], %(at)s::timestamptz[],
               %(falls)s::bool[], %(repeats)s::bool[], %(messages)s::text[], %(subjects)s::text[], %(texts)s::text[], %(lines)s::text[])
               AS r(id, attempt, state, reason, not_before, fall, repeat, message_id, subject, text, line)),
           mine AS (
             SELECT d.id AS pk, r.* FROM channels_app_delivery d JOIN r ON r.id = d.id
             WHERE d.holder = %(holder)s AND d.attempts = r.attempt AND d.state IN ('sending', 'bundled') AND d.ended_at IS NULL
             ORDER BY d.id FOR NO KEY UPDATE OF d)
           UPDATE channels_app_delivery d SET
             state = CASE WHEN r.state = 'queued' AND d.withdrawn AND (r.repeat OR d.possible_repeat) THEN 'unknown'
                          WHEN r.state = 'queued' AND d.withdrawn THEN 'cancelled'
                          WHEN r.state IN ('sent', 'delivered') AND d.state = 'bundled' THEN 'bundled' ELSE r.state END,
             bundled_by_id = CASE WHEN r.state IN ('sent', 'delivered') THEN d.bundled_by_id END,
             reason = CASE WHEN r.state IN ('sent', 'delivered') THEN '' WHEN r.state = 'queued' AND d.withdrawn THEN d.reason ELSE r.reason END,
             not_before = COALESCE(r.not_before, d.not_before),
             possible_repeat = d.possible_repeat OR r.repeat,
             sent_at = CASE WHEN r.state IN ('sent', 'delivered') THEN %(now)s ELSE d.sent_at END,
             delivered_at = CASE WHEN r.state = 'delivered' THEN %(now)s ELSE d.delivered_at END,
             ended_at = CASE WHEN r.state = 'queued' AND NOT d.withdrawn THEN NULL ELSE %(now)s END,
             fallback_at = CASE WHEN d.withdrawn OR r.state IN ('sent', 'delivered') THEN NULL
                                WHEN r.fall AND d.fallback_at IS NOT NULL THEN %(now)s ELSE d.fallback_at END,
             message_id = CASE WHEN r.message_id = '' THEN d.message_id ELSE r.message_id END,
             subject = CASE WHEN r.text = '' AND r.subject = '' THEN d.subject ELSE r.subject END,
             text = CASE WHEN r.text = '' THEN d.text ELSE r.text END,
             log = d.log || r.line::jsonb, holder = '', lease_until = NULL
           FROM mine r WHERE d.id = r.pk AND d.holder = %(holder)s AND d.attempts = r.attempt AND d.state IN ('sending', 'bundled')
           RETURNING d.id, d.state, d.address_id AS address, d.not_before, d.priority, d.notification_id AS notification, d.is_page,
             (r.fall OR d.state = 'failed') AS evidence""",
        {
            "holder": holder,
            "now": now,
            "ids": [row[0] for row in rows],
            "attempts": [row[1] for row in rows],
            "states": [row[2].state for row in rows],
            "reasons": [row[2].reason for row in rows],
            "at": [row[2].not_before for row in rows],
            "falls": [row[2].fallback for row in rows],
            "repeats": [row[2].outcome == "unknown" for row in rows],
            "messages": [row[3] for row in rows],
            "subjects": [row[4].replace("\x00", "") for row in rows],
            "texts": [row[5].replace("\x00", "") for row in rows],
            "lines": [row[6].replace("\\u0000", "") for row in rows],
        },
    )
    return _dicts(cursor)


def _come_back(cursor: Any, written: Sequence[Mapping[str, Any]], results: Sequence[Result], now: datetime) -> None:
    """Addresses that have something to try again, and those their provider has blocked; they are locked already."""
    at: dict[int, datetime] = {}
    for row in written:
        if row["state"] == "queued":
            at[row["address"]] = min(row["not_before"], at.get(row["address"], row["not_before"]))
    blocked = {
        result.claimed.address_id: (now + timedelta(seconds=result.said.blocked), result.said.text[:300])
        for result in results
        if isinstance(result.said, DeliveryError) and result.said.blocked
    }
    if not at:
        return
    cursor.execute(
        """UPDATE channels_app_address a SET
             next_at = CASE WHEN w.blocked IS NULL THEN LEAST(a.next_at, w.at) ELSE GREATEST(w.blocked, LEAST(a.next_at, w.at)) END,
             blocked_until = COALESCE(w.blocked, a.blocked_until), blocked_reason = COALESCE(w.reason, a.blocked_reason)
           FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::text[]) AS w(id, at, blocked, reason) WHERE a.id = w.id""",
        [
            list(at),
            list(at.values()),
            [blocked[pk][0] if pk in blocked else None for pk in at],
            [blocked[pk][1] if pk in blocked else None for pk in at],
        ],
    )
    if blocked:
        # What else waits there is late too.
        cursor.execute(
            """UPDATE channels_app_delivery SET fallback_at = %s WHERE id IN (
                 SELECT d.id FROM unnest(%s::bigint[], %s::timestamptz[]) AS w(id, until)
                 JOIN channels_app_delivery d ON d.address_id = w.id AND d.state = 'queued' AND d.fallback_at > %s AND d.deadline_at <= w.until
                 ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED)""",
            [now, list(blocked), [until for until, _reason in blocked.values()], now],
        )


def _note_health(cursor: Any, results: Sequence[Result], verdicts: Sequence[tuple[Claimed, Result, policy.Verdict]], now: datetime) -> None:
    """The circuit breaker: failures in a row of the provider itself, not of one message."""
    failed = {id(result): verdict.provider_failed for one, result, verdict in verdicts if one is result.claimed}
    streaks: dict[int, list[Any]] = {}  # channel -> [failures after the last success, was there a success, last error, Open]
    for result in results:
        opened = result.claimed.channel
        if opened.style.demo or opened.transport is None:
            continue
        if failed[id(result)] and isinstance(result.said, DeliveryError):
            streak = streaks.setdefault(opened.id, [0, False, "", opened])
            streak[0], streak[2] = streak[0] + 1, result.said.text[:500]
        elif not isinstance(result.said, DeliveryError):
            recently = opened.last_success_at is not None and now - opened.last_success_at < timedelta(seconds=10)
            if opened.failures or not recently or opened.id in streaks:
                streak = streaks.setdefault(opened.id, [0, False, "", opened])
                streak[0], streak[1] = 0, True
    for channel, (count, success, error, opened) in sorted(streaks.items()):
        cursor.execute(
            """INSERT INTO channels_app_channelhealth AS h (channel_id, failures, last_error, last_error_at, last_success_at)
               SELECT id, LEAST(%(count)s, %(most)s), %(error)s, %(failed)s, %(worked)s FROM channels_app_channel WHERE id = %(channel)s
               ON CONFLICT (channel_id) DO UPDATE SET
                 -- Requests that were out when it opened do not make it longer; a probe that fails does.
                 failures = CASE WHEN %(success)s THEN LEAST(%(count)s, %(most)s) WHEN h.open_until > %(probe)s THEN h.failures
                                 WHEN h.failures >= %(most)s THEN h.failures + 1 ELSE LEAST(h.failures + %(count)s, %(most)s) END,
                 last_error = CASE WHEN %(error)s = '' THEN h.last_error ELSE %(error)s END,
                 last_error_at = COALESCE(%(failed)s, h.last_error_at), last_success_at = COALESCE(%(worked)s, h.last_success_at)
               RETURNING failures, open_until""",
            {
                "channel": channel, "count": count, "most": policy.BREAKER_FAILURES, "error": error, "success": success,
                "failed": now if error else None, "worked": now if success else None,
                "probe": now + timedelta(seconds=policy.PROBE_SECONDS),
            },
        )  # fmt: skip
        for failures, until in cursor.fetchall():
            length = policy.open_for(failures)
            still = until is not None and until > now + timedelta(seconds=policy.PROBE_SECONDS)
            until = None if length is None else until if still else now + length
            cursor.execute("UPDATE channels_app_channelhealth SET open_until = %s WHERE channel_id = %s", [until, channel])
            opened.failures, opened.open_until = failures, until
        if success:
            opened.last_success_at = now


def _wipe_secrets(cursor: Any, ids: Sequence[int]) -> None:
    """A code's Context is gone as soon as nothing can send it any more."""
    if ids:
        cursor.execute(
            """UPDATE channels_app_notification n SET secret_context = '' WHERE n.id = ANY(%s) AND NOT EXISTS (
                 SELECT 1 FROM channels_app_delivery d WHERE d.notification_id = n.id AND d.state IN ('queued', 'sending'))""",
            [list(ids)],
        )


def _exhaust(cursor: Any, ids: Iterable[int], now: datetime) -> None:
    """Tells the house above of pages that reach nobody: each message has failed or used up its tries, and no fallback is left.

    What used up its tries is still tried with back-off; only waiting for it would be silence. While every channel fails before a request
    leaves it is our network that is broken, not theirs: nothing is exhausted then, and the alarm is raised instead.
    """
    wanted = list(ids)
    if not wanted:
        return
    cursor.execute(
        """SELECT n.id, bool_and(COALESCE(d.log -> -1 ->> 3, '') = 'network')
           FROM channels_app_notification n JOIN channels_app_delivery d ON d.notification_id = n.id
           WHERE n.id = ANY(%s) AND n.is_page AND n.exhausted_at IS NULL GROUP BY n.id
           HAVING bool_and(d.fallback_at IS NULL AND NOT d.withdrawn AND (d.state = 'failed' OR (d.state = 'queued' AND d.tries >= %s)))""",
        [wanted, policy.TRIES],
    )
    found = cursor.fetchall()
    held = [pk for pk, network in found if network] if any(network for _pk, network in found) and _our_network(now) else []
    if held:
        Installation.objects.filter(id=1).exclude(alarm=NETWORK_ALARM).update(alarm=NETWORK_ALARM, alarm_at=now)
        log.error("%d pages wait: %s", len(held), NETWORK_ALARM)
    given_up = [pk for pk, _network in found if pk not in held]
    if given_up:
        cursor.execute(
            "UPDATE channels_app_notification SET exhausted_at = %s WHERE id = ANY(%s) AND exhausted_at IS NULL", [now, given_up]
        )
        wake("engine")


def _our_network(now: datetime) -> bool:
    """Whether no channel at all got through lately. (Sandbox kinds never count: nothing of theirs leaves the house.)"""
    return not ChannelHealth.objects.filter(last_success_at__gt=now - timedelta(seconds=NETWORK_SECONDS)).exists()


def take_over(holder: str | None, now: datetime) -> int:
    """The messages a dead drain had out become unknown, and are queued again as possible repeats; None: those whose lease has run out.

    The attempt that we broke off counts against neither the tries nor the deadline.
    """
    which = "holder = %(holder)s" if holder is not None else "lease_until < %(now)s"
    values: dict[str, Any] = {"holder": holder, "now": now, "lease": policy.LEASE}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SELECT DISTINCT address_id FROM channels_app_delivery WHERE state = 'sending' AND {which}", values)
        places = [pk for (pk,) in cursor.fetchall()]
        if not places:
            return 0
        cursor.execute("SELECT id FROM channels_app_address WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", [places])
        cursor.execute(
            f"""WITH dead AS (
                  SELECT id FROM channels_app_delivery WHERE state = 'sending' AND {which} AND address_id = ANY(%(places)s)),
                mine AS (
                  SELECT d.id FROM channels_app_delivery d
                  WHERE (d.id IN (SELECT id FROM dead) OR d.bundled_by_id IN (SELECT id FROM dead) AND d.ended_at IS NULL)
                    AND (d.state = 'sending' AND {which} OR d.state = 'bundled') ORDER BY d.id FOR NO KEY UPDATE)
                UPDATE channels_app_delivery d SET
                  state = CASE WHEN d.withdrawn THEN 'unknown' ELSE 'queued' END, ended_at = CASE WHEN d.withdrawn THEN %(now)s END,
                  reason = CASE WHEN d.withdrawn THEN d.reason ELSE %(reason)s END,
                  possible_repeat = true, tries = GREATEST(d.tries - 1, 0), not_before = %(now)s, bundled_by_id = NULL,
                  deadline_at = d.deadline_at + (%(now)s - (d.lease_until - %(lease)s)),
                  fallback_at = d.fallback_at + (%(now)s - (d.lease_until - %(lease)s)),
                  log = d.log || jsonb_build_array(jsonb_build_array(d.attempts, extract(epoch FROM d.lease_until - %(lease)s),
                    extract(epoch FROM %(now)s - (d.lease_until - %(lease)s)), 'unknown', %(reason)s::text)),
                  holder = '', lease_until = NULL
                FROM mine WHERE d.id = mine.id RETURNING d.id""",
            values | {"places": places, "reason": "the process that sent it ended before it knew the outcome"},
        )
        count = len(cursor.fetchall())
        cursor.execute("UPDATE channels_app_address SET next_at = LEAST(next_at, %s) WHERE id = ANY(%s)", [now, places])
    if count:
        log.warning("%d messages of %s are unknown and are sent again", count, holder or "drains that vanished")
        wake("drain")
    return count


# ---- fallbacks -----------------------------------------------------------------------------------------------------------------------


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
            _find_addresses(rows)
        cursor.execute(
            """UPDATE channels_app_delivery d SET fallback_at = NULL WHERE d.id IN (
                 SELECT id FROM channels_app_delivery WHERE id = ANY(%s) AND fallback_at <= %s ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
               RETURNING d.id, d.withdrawn""",
            [[row["id"] for row in due], now],
        )
        mine = {pk for pk, withdrawn in cursor.fetchall() if not withdrawn}
        fresh = [row for row in rows if row.fallback_of in mine]
        if fresh:
            _insert(fresh, now)
            wake("drain")
        _exhaust(cursor, {row["notification_id"] for row in due if row["id"] in mine}, now)
    return len(due)


def _replacements(due: Sequence[Mapping[str, Any]], now: datetime, notes: Book) -> list[_Row]:
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
            _Row(
                row["notification_id"], row["topic"], place[0], place[1], member, row["priority"], True, row["survives_ack"], (), now,
                now + policy.deadline(severity), row["give_up_at"], fallback_of=row["id"],
            )
            for place in to
        ]  # fmt: skip
    return made


# ---- what the world answers ----------------------------------------------------------------------------------------------------------


def receipt(channel_id: int, message_id: str, state: str, reason: str, now: datetime) -> bool:
    """A provider says what became of a message: `state` is delivered, answered or failed (then the fallback starts). False: no such message."""
    if not message_id:
        return False
    with transaction.atomic():
        found = list(
            Delivery.objects.select_for_update(no_key=True)
            .filter(channel_id=channel_id, message_id=message_id[:200])
            .exclude(state__in=[Delivery.State.CANCELLED, Delivery.State.BUNDLED])
            .order_by("id")
        )
        for row in found:
            if state == Delivery.State.ANSWERED:
                _answered(row, now)
            elif state == Delivery.State.DELIVERED and row.state in (Delivery.State.SENT, Delivery.State.SENDING, Delivery.State.UNKNOWN):
                row.state, row.delivered_at, row.ended_at, row.reason = state, now, row.ended_at or now, ""
                row.save(update_fields=["state", "delivered_at", "ended_at", "reason"])
            elif state == Delivery.State.FAILED and row.state in (Delivery.State.SENT, Delivery.State.DELIVERED):
                row.state, row.reason, row.ended_at = Delivery.State.FAILED, reason[:500], now
                row.log = [*row.log, [row.attempts, now.timestamp(), 0, "failed", reason[:500]]]
                row.fallback_at = now if row.is_page and not row.withdrawn else None
                row.save(update_fields=["state", "reason", "ended_at", "log", "fallback_at"])
        if state == Delivery.State.FAILED:
            _bounced(found, reason, now)
    wake("drain")
    return bool(found)


def _bounced(rows: Sequence[Delivery], reason: str, now: datetime) -> None:
    """A mailbox whose messages come back is not used again until it is verified anew."""
    for row in rows:
        if row.member_id is not None:
            ContactPoint.objects.filter(member_id=row.member_id, kind="email", value=row.address.target, bounced_at=None).update(
                bounced_at=now, bounce_reason=reason[:300]
            )


def answered(delivery_id: int, now: datetime) -> None:
    """A person reacted to this message: it needs no fallback, whatever its provider says of it."""
    with transaction.atomic():
        row = Delivery.objects.select_for_update(no_key=True).filter(id=delivery_id).first()
        if row is not None:
            _answered(row, now)


def _answered(row: Delivery, now: datetime) -> None:
    row.answered_at = row.answered_at or now
    row.fallback_at = None
    if row.state in (Delivery.State.SENT, Delivery.State.DELIVERED, Delivery.State.UNKNOWN):
        row.state, row.ended_at = Delivery.State.ANSWERED, row.ended_at or now
    row.save(update_fields=["answered_at", "fallback_at", "state", "ended_at"])


def retry(delivery_id: int, now: datetime) -> bool:
    """Queues a message again that failed or ended unknown, by hand; False where there is nothing to try again (sent, cancelled, still trying)."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """UPDATE channels_app_address SET next_at = LEAST(next_at, %s)
               WHERE id = (SELECT address_id FROM channels_app_delivery WHERE id = %s)""",
            [now, delivery_id],
        )
        cursor.execute(
            """UPDATE channels_app_delivery SET state = 'queued', not_before = %(now)s, tries = 0, first_request_at = NULL, ended_at = NULL,
                 reason = '', deadline_at = %(now)s, give_up_at = %(until)s WHERE id = %(id)s AND state IN ('failed', 'unknown') AND NOT withdrawn""",
            {"now": now, "id": delivery_id, "until": now + policy.GIVE_UP_NOTICE},
        )
        found = bool(cursor.rowcount)
    wake("drain")
    return found


# ---- the clock -----------------------------------------------------------------------------------------------------------------------


def turned_back(lost: timedelta, now: datetime) -> None:
    """The database's clock went back by `lost`: what was to happen later happens that much earlier, so that nothing waits twice."""
    with transaction.atomic(), connection.cursor() as cursor:
        values: dict[str, Any] = {"now": now, "lost": lost}
        cursor.execute(
            """UPDATE channels_app_address SET next_at = GREATEST(next_at - %(lost)s, LEAST(next_at, %(now)s)),
                 blocked_until = GREATEST(blocked_until - %(lost)s, LEAST(blocked_until, %(now)s))
               WHERE next_at > %(now)s OR blocked_until > %(now)s""",
            values,
        )
        cursor.execute(
            """UPDATE channels_app_delivery SET not_before = not_before - %(lost)s, deadline_at = deadline_at - %(lost)s,
                 give_up_at = give_up_at - %(lost)s, fallback_at = fallback_at - %(lost)s, lease_until = lease_until - %(lost)s
               WHERE state IN ('queued', 'sending')""",
            values,
        )
        cursor.execute("UPDATE channels_app_channelhealth SET open_until = open_until - %(lost)s WHERE open_until > %(now)s", values)


def pulse(now: datetime) -> None:
    """Says that a drain works (called about once a second). After a time without any, that time counts against no deadline and no budget,
    so that fallbacks are not started by our own absence."""
    seen = Pulse.objects.filter(id=1).values_list("seen_at", flat=True).first()
    if seen is None:
        Pulse.objects.bulk_create([Pulse(id=1, seen_at=now)], ignore_conflicts=True)
    elif now - seen >= PULSE or seen > now:
        with transaction.atomic():
            # Of several drains one finds the old value.
            if Pulse.objects.filter(id=1, seen_at=seen).update(seen_at=now) and now - seen > AWAY:
                _forgive(now - seen, now)


def _forgive(lost: timedelta, now: datetime) -> None:
    log.warning("no drain was running for %.0f s; deadlines of what waited are moved", lost.total_seconds())
    values: dict[str, Any] = {"lost": lost, "now": now}
    with connection.cursor() as cursor:
        cursor.execute(
            """UPDATE channels_app_delivery SET deadline_at = deadline_at + LEAST(%(lost)s, %(now)s - created_at),
                 fallback_at = fallback_at + LEAST(%(lost)s, %(now)s - created_at)
               WHERE id IN (SELECT id FROM channels_app_delivery WHERE state IN ('queued', 'sending') ORDER BY id FOR NO KEY UPDATE)""",
            values,
        )


# ---- all of it, without a thread -------------------------------------------------------------------------------------------------------


def run_once(now: datetime, *, limit: int = 500) -> int:
    """Sends what is due at `now`, in this thread and on Django's own connection; how many rows were consumed."""
    notes = Book()
    notes.refresh(now)
    holder = "run_once"
    done = take_over(None, now)
    while done < limit * 20:
        claimed = claim(holder, now, Room(limit), notes)
        record(holder, [compose.send(one, now) for one in claimed], now)
        # A claim starts the fallbacks of what it has to leave waiting, so they come after it.
        started = fallbacks(now, notes)
        done += len(claimed) + started
        if not claimed and not started:
            break
    return done
