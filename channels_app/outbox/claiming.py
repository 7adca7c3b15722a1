"""Which messages leave now: most severe first, within what senders, addresses and providers can take; what has to wait falls back."""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import transaction

from channels_app import book, compose, limits, policy
from channels_app.book import Book, Open
from channels_app.compose import Claimed, Said
from channels_app.models import ChannelHealth
from channels_app.outbox.recording import fall_back, wipe_secrets
from channels_app.outbox.statements import dicts, planned_once
from mapping.crypto import decrypt

log = logging.getLogger(__name__)

MOST_IN_A_BUNDLE: Final = 200


@dataclass(slots=True)
class Room:
    """How much a drain can take now: `total` senders are free, of `threads`; what it has in flight already, by channel and by address."""

    total: int
    threads: int = 0
    by_channel: Mapping[int, int] = field(default_factory=dict)
    by_address: Mapping[int, int] = field(default_factory=dict)
    full: Sequence[int] = ()  # addresses that take no more

    def of_channel(self, channel: int) -> int:
        """How many more one channel may have. It never takes the last quarter of the senders that others leave, so that a provider that
        hangs finds no channel without a free sender."""
        if not self.threads:
            return self.total
        mine = self.by_channel.get(channel, 0)
        others = sum(self.by_channel.values()) - mine
        return max(0, min(self.total, max(1, (self.threads - others) * 3 // 4) - mine))

    def full_channels(self) -> list[int]:
        """Those that may have no more."""
        return [pk for pk, count in self.by_channel.items() if count and not self.of_channel(pk)]


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


@dataclass(slots=True)
class _Account:
    """A channel in a claim whose provider limits all of it, or sells it by the month. Its row is locked: all nodes share it."""

    channel: Open
    log: Mapping[str, Sequence[float]]
    quota: limits.Quota | None
    got: int = 0

    def look(self, now: datetime) -> tuple[int, datetime | None]:
        """How many more may leave by its limits, and when the next may if none does."""
        return limits.look(self.marks(now), self.channel.shared_limits, now)

    def marks(self, now: datetime) -> limits.Log:
        return limits.taken(self.log, self.channel.shared_limits, now, self.got)


def claim(holder: str, now: datetime, room: Room, notes: Book) -> list[Claimed]:
    """Takes what is due and fits `room`, most severe first, in one short transaction; from then on requests may leave. `notes` is refreshed
    by the caller."""
    full = room.full_channels()
    with transaction.atomic(), planned_once() as cursor:
        # Addresses are looked at in the order in which they became due, but of the first thousand the most severe go first.
        cursor.execute(
            """SELECT a.id, a.channel_id, a.target, a.buckets, a.blocked_until, a.priority
               FROM (SELECT id FROM channels_app_address
                     WHERE next_at <= %(now)s AND channel_id <> ALL(%(full)s) AND id <> ALL(%(busy)s)
                     ORDER BY next_at LIMIT 1000) f
               JOIN channels_app_address a ON a.id = f.id
               WHERE a.next_at <= %(now)s ORDER BY a.priority, a.next_at LIMIT %(room)s FOR NO KEY UPDATE OF a SKIP LOCKED""",
            {"now": now, "full": full, "busy": list(room.full), "room": room.total},
        )
        found = cursor.fetchall()
        if not found:
            return []
        places = _plan(found, now, room, notes)
        accounts = _lock_channels(cursor, places.values(), now)
        rows = _take(cursor, [place for place in places.values() if place.want and not place.bundles], holder, now)
        for place in places.values():
            if place.want and place.bundles:
                rows += _take_limited(cursor, place, accounts.get(place.channel.id) if place.channel else None, holder, now, notes)
        for row in rows:
            if row["bundled_by"] is None:
                places[row["address"]].got += 1
        _leave(cursor, places.values(), now)
        _count(cursor, accounts.values(), now)
        _probe(cursor, places.values(), now)
        said = _said(cursor, {row["notification"] for row in rows}, notes)
    # Whatever takes longer than a statement happens after the commit.
    return _claimed(rows, places, said, notes, now)


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
                place.wait = max(channel.open_until, now + timedelta(seconds=policy.PROBE_SECONDS) if channel_id in probing else now)
                place.everybody_falls_back = True
                continue
            place.probe = True
            share = min(share, 1)
            probing.add(channel_id)
        place.free, place.wait = limits.look(place.log, channel.limits, now)
        if place.wait is not None:
            continue
        place.want = max(0, min(share, left, channel.concurrency - room.by_address.get(pk, 0), place.free))
        place.bundles = channel.transport is not None and bool(channel.limits or _is_shared(channel))
        left -= place.want
        by_channel[channel_id] = share - place.want
    return places


def _is_shared(channel: Open) -> bool:
    return channel.transport is not None and (bool(channel.shared_limits) or channel.monthly_quota is not None)


def _lock_channels(cursor: Any, places: Iterable[_Place], now: datetime) -> dict[int, _Account]:
    """The channels among these that are limited as a whole; where one is to be probed that another drain probes already, the probe is given up.
    A claim without either asks nothing.

    Whoever records holds deliveries while it waits for such a row; we hold it and never wait for a delivery, so nobody waits in a circle.
    """
    wanted = [(place, place.channel) for place in places if place.want and place.channel is not None]
    channels = {channel.id: channel for place, channel in wanted if place.probe or _is_shared(channel)}
    if not channels:
        return {}
    query = """SELECT channel_id, buckets, month, month_count, open_until FROM channels_app_channelhealth
               WHERE channel_id = ANY(%s) ORDER BY channel_id FOR NO KEY UPDATE"""
    cursor.execute(query, [list(channels)])
    found = cursor.fetchall()
    if len(found) < len(channels):
        cursor.execute(
            """INSERT INTO channels_app_channelhealth (channel_id, failures, is_network, last_error)
               SELECT id, 0, false, '' FROM channels_app_channel WHERE id = ANY(%s) ORDER BY id ON CONFLICT DO NOTHING""",
            [list(channels)],
        )
        cursor.execute(query, [list(channels)])
        found = cursor.fetchall()
    probed = {pk: until for pk, _buckets, _month, _count, until in found if until is not None and until > now}
    for place, channel in wanted:
        if place.probe and channel.id in probed:
            place.probe, place.want, place.wait, place.everybody_falls_back = False, 0, probed[channel.id], True
    return {
        pk: _Account(
            channels[pk], json.loads(buckets) if isinstance(buckets, str) else buckets,
            limits.quota(channels[pk].monthly_quota, month, count, now),
        )
        for pk, buckets, month, count, _until in found if _is_shared(channels[pk])
    }  # fmt: skip


def _count(cursor: Any, accounts: Iterable[_Account], now: datetime) -> None:
    """What left by channels that are limited as a whole; a request counts when it is claimed, whatever becomes of it."""
    for account in accounts:
        if not account.got:
            continue
        cursor.execute(
            """UPDATE channels_app_channelhealth SET buckets = %(buckets)s::jsonb, month = %(month)s,
                 month_count = CASE WHEN month = %(month)s THEN month_count ELSE 0 END + %(got)s WHERE channel_id = %(channel)s""",
            {
                "buckets": json.dumps(account.marks(now)), "month": limits.month_of(now), "got": account.got, "channel": account.channel.id,
            },
        )  # fmt: skip
        before = account.quota
        after = before and limits.quota(before.most, limits.month_of(now), before.used + account.got, now)
        if before is not None and after is not None and after.level != before.level:
            log.warning(
                "channel %s has used %d of the %d messages of its month (forecast: %d)",
                account.channel.id, after.used, after.most, after.forecast,
            )  # fmt: skip


_COLUMNS: Final = """d.id, d.uid, d.notification_id AS notification, d.address_id AS address, d.channel_id AS channel, d.member_id AS member,
    d.attempts, d.tries, d.possible_repeat, d.is_page, d.mentions, d.deadline_at, d.give_up_at, d.bundled_by_id AS bundled_by"""
_START: Final = """attempts = d.attempts + 1, tries = d.tries + 1, holder = %(holder)s, lease_until = %(lease)s,
    first_request_at = COALESCE(d.first_request_at, %(now)s), reason = '',
    fallback_at = CASE WHEN d.fallback_at IS NULL OR d.first_request_at IS NOT NULL THEN d.fallback_at
                       ELSE LEAST(d.fallback_at, %(now)s + %(budget)s) END"""


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
    return sorted(dicts(cursor), key=lambda row: (row["priority"], row["id"]))


def _lease(holder: str, now: datetime) -> dict[str, Any]:
    return {"holder": holder, "lease": now + policy.LEASE, "now": now, "budget": policy.BUDGET}


def _take_limited(cursor: Any, place: _Place, account: _Account | None, holder: str, now: datetime, notes: Book) -> list[dict[str, Any]]:
    """An address whose provider limits it: single messages while they last; when more pages wait than may leave, one of them carries the others.

    It takes what fits the length of a message. Status notices are never mixed in. What was acknowledged meanwhile is not queued any more.
    """
    assert place.channel is not None
    if account is not None:
        free, wait = account.look(now)
        place.want, place.free = min(place.want, free), min(place.free, free)
        if not free:
            place.wait = wait
            return []
    cursor.execute(
        f"""SELECT {_COLUMNS}, d.priority FROM channels_app_delivery d
            WHERE d.address_id = %(id)s AND d.state = 'queued' AND d.not_before <= %(now)s
              AND NOT (%(single)s AND EXISTS (SELECT 1 FROM channels_app_delivery s WHERE s.address_id = %(id)s AND s.state = 'sending'))
            ORDER BY d.priority, d.id LIMIT %(most)s FOR NO KEY UPDATE SKIP LOCKED""",
        {"id": place.id, "now": now, "most": MOST_IN_A_BUNDLE, "single": place.channel.concurrency == 1},
    )
    rows = dicts(cursor)
    if account is not None and rows:
        rows = _within_month(cursor, place, rows, account, now)
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
    if account is not None:
        account.got += len(chosen)
    return sorted(dicts(cursor), key=lambda row: (row["priority"], row["id"]))


def _within_month(cursor: Any, place: _Place, rows: list[dict[str, Any]], account: _Account, now: datetime) -> list[dict[str, Any]]:
    """Those of the waiting messages for which the month has room, the most severe first; the others are told to wait.

    They wait no longer than until we look again, since a quota may be raised, and take their fallback now. What is too old by then fails.
    """
    quota = account.quota
    if quota is None:
        return rows
    everything, rest = (max(0, quota.left(reserve=mine) - account.got) for mine in (True, False))
    critical = [row for row in rows if policy.is_critical(row["priority"])]
    others = [row for row in rows if not policy.is_critical(row["priority"])]
    over = rows if not everything else others if not rest else []
    if over:
        cursor.execute(
            """UPDATE channels_app_delivery d SET
                 state = CASE WHEN d.give_up_at <= %(now)s THEN 'failed' ELSE 'queued' END,
                 ended_at = CASE WHEN d.give_up_at <= %(now)s THEN %(now)s END,
                 reason = %(reason)s, not_before = LEAST(%(again)s, GREATEST(d.give_up_at, %(now)s)),
                 fallback_at = CASE WHEN d.deadline_at <= %(month)s THEN LEAST(d.fallback_at, %(now)s) ELSE d.fallback_at END
               WHERE d.id = ANY(%(ids)s) RETURNING d.state, d.notification_id""",
            {
                "ids": [row["id"] for row in over], "now": now, "month": limits.next_month(now), "reason": policy.MONTH_USED_UP,
                "again": min(limits.next_month(now), now + policy.MONTH_LOOK),
            },
        )  # fmt: skip
        wipe_secrets(cursor, [notification for state, notification in cursor.fetchall() if state == "failed"])
    if over:
        good = critical if everything else []
    else:
        # Beside what is critical the others keep their share; alone they may be bundled.
        good = critical + others[: max(0, rest - len(critical))] if critical else others
    if good:
        room = everything if policy.is_critical(good[0]["priority"]) else rest
        place.want, place.free = min(place.want, room), min(place.free, room)
    return good


def _leave(cursor: Any, places: Iterable[_Place], now: datetime) -> None:
    """Says of each address when to look at it again, and starts the fallback of what would wait there past its deadline."""
    changed: list[tuple[int, str | None, datetime | None, bool]] = []
    waits: list[tuple[int, datetime, bool]] = []
    for place in places:
        if place.wait is None and not place.want:
            continue  # no sender was left for it: it stays due
        until = place.wait
        log_of: str | None = None
        if place.got and place.channel is not None and place.channel.limits:
            marks = limits.taken(place.log, place.channel.limits, now, place.got)
            log_of = json.dumps(marks)
            _free, until = limits.look(marks, place.channel.limits, now)
        if until is not None:
            waits.append((place.id, until, place.everybody_falls_back))
        # Where we got all we wanted there may be more; else what is left lies in the future.
        changed.append((place.id, log_of, until, place.wait is None and place.want > 0 and place.got >= place.want))
    cursor.execute(
        """UPDATE channels_app_address a SET buckets = COALESCE(w.buckets::jsonb, a.buckets),
             next_at = CASE WHEN w.more AND EXISTS (SELECT FROM channels_app_delivery d WHERE d.address_id = w.id AND d.state = 'queued')
                              THEN GREATEST(w.until, %(now)s)
                            ELSE q.at END,
             priority = COALESCE(q.priority, a.priority)
           FROM unnest(%(ids)s::bigint[], %(logs)s::text[], %(untils)s::timestamptz[], %(more)s::bool[]) AS w(id, buckets, until, more)
           LEFT JOIN LATERAL (
             SELECT CASE WHEN count(*) > 0 THEN GREATEST(w.until, min(d.not_before)) END AS at, min(d.priority) AS priority
             FROM channels_app_delivery d WHERE NOT w.more AND d.address_id = w.id AND d.state = 'queued') q ON true
           -- Where another drain talks to a chat, we look again and again and change nothing.
           WHERE a.id = w.id AND (w.more OR w.buckets IS NOT NULL OR a.next_at IS DISTINCT FROM q.at OR a.priority <> q.priority)""",
        {
            "ids": [c[0] for c in changed],
            "logs": [c[1] for c in changed],
            "untils": [c[2] for c in changed],
            "more": [c[3] for c in changed],
            "now": now,
        },
    )
    if waits:
        fall_back(cursor, waits, now)


def _probe(cursor: Any, places: Iterable[_Place], now: datetime) -> None:
    """One request finds out whether a channel that kept failing works again; until it is back, everybody leaves it alone, we ourselves too."""
    probed = {place.channel.id: place.channel for place in places if place.probe and place.got and place.channel is not None}
    if probed:
        until = now + timedelta(seconds=policy.PROBE_SECONDS)
        ChannelHealth.objects.filter(channel_id__in=list(probed)).update(open_until=until)
        for channel in probed.values():
            channel.open_until = until


def _said(cursor: Any, ids: Iterable[int], notes: Book) -> dict[int, Said]:
    cursor.execute(
        """SELECT id, event, severity, topic, layer_idx, context, secret_context, template_set FROM channels_app_notification
           WHERE id = ANY(%s)""",
        [list(ids)],
    )
    rows = cursor.fetchall()
    notes.add_texts(row[7] for row in rows if row[7] is not None)
    said = {}
    for pk, event, severity, topic, layer, context, secret, texts in rows:
        lost, hidden = False, dict[str, Any]()
        try:
            hidden = json.loads(decrypt(secret)) if secret else {}
        except ValueError:
            lost = True  # no key opens it: this message fails, and the others go
        said[pk] = Said(
            pk, event, severity, topic, layer, json.loads(context) | hidden, notes.texts.get(texts, ()) if texts is not None else (),
            bool(secret), lost,
        )  # fmt: skip
    return said


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
