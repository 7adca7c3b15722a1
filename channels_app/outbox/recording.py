"""What became of an attempt: the delivery's state, the address's next try, the channel's circuit breaker, and word of pages nobody got."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import connection, transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop

from channels_app import policy
from channels_app.compose import Claimed, Result
from channels_app.models import ChannelHealth
from channels_app.outbox.moving import move
from channels_app.outbox.posting import GAVE_WAY, overtake
from channels_app.outbox.statements import dicts, planned_once
from channels_app.transport import DeliveryError, Polls, Receipt, Receives
from mapping.clock import wake
from mapping.models import Installation
from templates_app.models import report_failure

log = logging.getLogger(__name__)

# While nothing has left the house by any channel for so long, failures to connect are ours and not the providers'.
NETWORK_SECONDS: Final = 60
NETWORK_ALARM: Final = gettext_noop(
    "No channel can be reached from here: name resolution, connections or the proxy fail for all of them. Pages wait and are tried again."
)

# Of a page that waits for such a channel. `exhaust` asks the breaker itself: once it is closed the page is tried again.
KEEPS_FAILING: Final = gettext_noop("its channel keeps failing; it leaves as soon as the channel works again")


def record(holder: str, results: Sequence[Result], now: datetime) -> int:
    """Writes the results of attempts, in one statement for all deliveries; only where the row is still ours and in that attempt. How many were."""
    if not results:
        return 0
    verdicts = [(one, result, policy.judge(
        result.said, tries=one.tries, seed=one.id, is_page=one.is_page, deadline_at=one.deadline_at, give_up_at=one.give_up_at, now=now,
        seconds=result.seconds,
    )) for result in results for one in (result.claimed, *result.claimed.bundle)]  # fmt: skip
    again = {
        one.address_id
        for one, result, verdict in verdicts
        if verdict.state == "queued" or (isinstance(result.said, DeliveryError) and result.said.blocked)
    }
    with transaction.atomic(), connection.cursor() as cursor:
        if again:
            cursor.execute("SELECT id FROM channels_app_address WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE", [list(again)])
        with planned_once() as planned:
            written = _write(planned, holder, verdicts, now)
        if again:
            _come_back(cursor, written, results, now)
        _note_health(cursor, results, verdicts, now)
        wipe_secrets(cursor, [one.said.id for one, _result, _verdict in verdicts if one.said.has_secret])
        evidence = {row["notification"] for row in written if row["is_page"] and row["evidence"]}
        overtake([row["id"] for row in written if row["took_over"] and row["state"] in ("sent", "delivered", "bundled")], now)
        exhaust(cursor, evidence, now)
        for template, error in {result.failed_template for result in results if result.failed_template is not None}:
            report_failure(template, error, now)
    for channel, old, new in sorted(_moved(results)):
        move(channel, old, new, now)
    return len(written)


def _moved(results: Sequence[Result]) -> set[tuple[int, str, str]]:
    return {
        (result.claimed.channel.id, result.claimed.target, result.said.moved[:300])
        for result in results
        if isinstance(result.said, Receipt) and result.said.moved and result.said.moved[:300] != result.claimed.target
    }


def _write(cursor: Any, holder: str, verdicts: Sequence[tuple[Claimed, Result, policy.Verdict]], now: datetime) -> list[dict[str, Any]]:
    rows = []
    for one, result, verdict in verdicts:
        message_id, detail = (
            ("", verdict.reason) if isinstance(result.said, DeliveryError) else (result.said.message_id, result.said.detail)
        )
        if isinstance(result.said, Receipt) and result.said.moved and not detail:
            detail = _("the provider says that this address has become %(new)s, which is used from now on") % {"new": result.said.moved}
        line = [one.attempt, round(result.started.timestamp(), 3), result.seconds, verdict.outcome, detail[:500]]
        silent_at, poll_at = _to_be_heard(one, result, now)
        rows.append((
            one.id, one.attempt, verdict, message_id[:200], result.subject, result.text, json.dumps([line], ensure_ascii=False), silent_at, poll_at,
            int(not isinstance(result.said, policy.NotBegun)),
        ))  # fmt: skip
    cursor.execute(
        """WITH r AS (
             SELECT * FROM unnest(%(ids)s::bigint[], %(attempts)s::int[], %(states)s::text[], %(reasons)s::text[], %(at)s::timestamptz[],
               %(falls)s::bool[], %(repeats)s::bool[], %(messages)s::text[], %(subjects)s::text[], %(texts)s::text[], %(lines)s::text[],
               %(silences)s::timestamptz[], %(polls)s::timestamptz[], %(counts)s::int[])
               AS r(id, attempt, state, reason, not_before, fall, repeat, message_id, subject, text, line, silent_at, poll_at, counts)),
           mine AS (
             -- What gave way to another message while it was out, and has an end of its own, is withdrawn no more.
             SELECT d.id AS pk, r.*, d.withdrawn AND (r.state = 'queued' OR d.reason <> ALL(%(gave_way)s::text[])) AS withdrawn
             FROM channels_app_delivery d JOIN r ON r.id = d.id
             WHERE d.holder = %(holder)s AND d.attempts = r.attempt AND d.state IN ('sending', 'bundled') AND d.ended_at IS NULL
             ORDER BY d.id FOR NO KEY UPDATE OF d)
           UPDATE channels_app_delivery d SET
             withdrawn = r.withdrawn,
             state = CASE WHEN r.state = 'queued' AND r.withdrawn AND (r.repeat OR d.possible_repeat) THEN 'unknown'
                          WHEN r.state = 'queued' AND r.withdrawn THEN 'cancelled'
                          WHEN r.state IN ('sent', 'delivered') AND d.state = 'bundled' THEN 'bundled' ELSE r.state END,
             bundled_by_id = CASE WHEN r.state IN ('sent', 'delivered') THEN d.bundled_by_id END,
             reason = CASE WHEN r.state IN ('sent', 'delivered') THEN '' WHEN r.state = 'queued' AND r.withdrawn THEN d.reason ELSE r.reason END,
             not_before = COALESCE(r.not_before, d.not_before), tries = d.tries - 1 + r.counts,
             possible_repeat = d.possible_repeat OR r.repeat,
             sent_at = CASE WHEN r.state IN ('sent', 'delivered') THEN %(now)s ELSE d.sent_at END,
             delivered_at = CASE WHEN r.state = 'delivered' THEN %(now)s ELSE d.delivered_at END,
             ended_at = CASE WHEN r.state = 'queued' AND NOT r.withdrawn THEN NULL ELSE %(now)s END,
             fallback_at = CASE WHEN r.withdrawn THEN NULL WHEN r.state IN ('sent', 'delivered') THEN r.silent_at
                                WHEN r.fall AND d.fallback_at IS NOT NULL THEN %(now)s ELSE d.fallback_at END,
             poll_at = r.poll_at,
             message_id = CASE WHEN r.message_id = '' THEN d.message_id ELSE r.message_id END,
             subject = CASE WHEN r.text = '' AND r.subject = '' THEN d.subject ELSE r.subject END,
             text = CASE WHEN r.text = '' THEN d.text ELSE r.text END,
             log = d.log || r.line::jsonb, holder = '', lease_until = NULL
           FROM mine r WHERE d.id = r.pk AND d.holder = %(holder)s AND d.attempts = r.attempt AND d.state IN ('sending', 'bundled')
           RETURNING d.id, d.state, d.address_id AS address, d.not_before, d.priority, d.notification_id AS notification, d.is_page,
             (r.fall OR d.state = 'failed') AS evidence, d.fallback_of_id IS NOT NULL AS took_over""",
        {
            "holder": holder,
            "now": now,
            "gave_way": GAVE_WAY,
            "ids": [row[0] for row in rows],
            "attempts": [row[1] for row in rows],
            "states": [row[2].state for row in rows],
            "reasons": [row[2].reason for row in rows],
            "at": [row[2].not_before for row in rows],
            "falls": [row[2].fallback for row in rows],
            "repeats": [row[2].outcome == "unknown" for row in rows],
            "messages": [row[3].replace("\x00", "") for row in rows],
            "subjects": [row[4].replace("\x00", "") for row in rows],
            "texts": [row[5].replace("\x00", "") for row in rows],
            "lines": [row[6].replace("\\u0000", "") for row in rows],
            "silences": [row[7] for row in rows],
            "polls": [row[8] for row in rows],
            "counts": [row[9] for row in rows],
        },
    )
    return dicts(cursor)


def _to_be_heard(one: Claimed, result: Result, now: datetime) -> tuple[datetime | None, datetime | None]:
    """When the fallback of a message starts that was sent unless its provider reports, and when to ask the provider; None: not at all."""
    if isinstance(result.said, DeliveryError) or result.said.state != "sent" or not result.said.message_id:
        return None, None
    provider = one.channel.transport
    calls_us, answers_us = isinstance(provider, Receives), isinstance(provider, Polls) and one.channel.style.asks_each
    silent_at = now + policy.SILENCE if one.is_page and one.channel.style.family == "voice" and (calls_us or answers_us) else None
    return silent_at, now + (policy.POLL_LATER if calls_us else policy.POLL) if answers_us else None


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
    if not at and not blocked:
        return
    places = sorted(at.keys() | blocked.keys())
    cursor.execute(
        """UPDATE channels_app_address a SET
             -- NULL: nothing waits there, as where the message that met a block was acknowledged meanwhile.
             next_at = CASE WHEN w.blocked IS NULL OR COALESCE(a.next_at, w.at) IS NULL THEN LEAST(a.next_at, w.at)
                            ELSE GREATEST(w.blocked, LEAST(a.next_at, w.at)) END,
             blocked_until = COALESCE(w.blocked, a.blocked_until), blocked_reason = COALESCE(w.reason, a.blocked_reason)
           FROM unnest(%s::bigint[], %s::timestamptz[], %s::timestamptz[], %s::text[]) AS w(id, at, blocked, reason) WHERE a.id = w.id""",
        [
            places,
            [at.get(pk) for pk in places],
            [blocked[pk][0] if pk in blocked else None for pk in places],
            [blocked[pk][1] if pk in blocked else None for pk in places],
        ],
    )
    if blocked:
        # What else waits there is late too.
        fall_back(cursor, [(pk, until, False) for pk, (until, _reason) in blocked.items()], now)


def fall_back(cursor: Any, waits: Sequence[tuple[int, datetime, bool]], now: datetime) -> None:
    """Of addresses that send nothing until then (id, until, whether the channel keeps failing: then everybody's fallback starts): the fallbacks of
    the pages that are late by it, and why these wait.

    One whose fallback had started already, when it was still being tried, is looked at once more: it may be that nobody is left now. What
    waits for a reason of its own, such as quiet hours, keeps that one.
    """
    cursor.execute(
        """WITH late AS (
             SELECT d.id, CASE WHEN own_reason THEN d.reason ELSE word END AS reason
             FROM unnest(%(ids)s::bigint[], %(untils)s::timestamptz[], %(all)s::bool[]) AS w(id, until, everybody)
             JOIN channels_app_delivery d ON d.address_id = w.id AND d.state = 'queued' AND d.is_page
             CROSS JOIN LATERAL (SELECT d.deadline_at <= w.until AS is_late,
               d.reason <> '' AND d.attempts = 0 AND d.not_before > %(now)s AS own_reason,
               CASE WHEN w.everybody THEN %(failing)s ELSE %(full)s END AS word) l
             WHERE CASE WHEN d.fallback_at IS NULL THEN is_late AND NOT own_reason AND d.reason NOT IN (word, %(month)s)
                        ELSE d.fallback_at > %(now)s AND (is_late OR w.everybody AND d.not_before <= %(now)s) END
             ORDER BY d.id FOR NO KEY UPDATE OF d SKIP LOCKED)
           UPDATE channels_app_delivery d SET fallback_at = %(now)s, reason = late.reason FROM late WHERE d.id = late.id""",
        {
            "ids": [w[0] for w in waits], "untils": [w[1] for w in waits], "all": [w[2] for w in waits], "now": now,
            "failing": KEEPS_FAILING, "full": policy.TAKES_NO_MORE, "month": policy.MONTH_USED_UP,
        },
    )  # fmt: skip


def _note_health(cursor: Any, results: Sequence[Result], verdicts: Sequence[tuple[Claimed, Result, policy.Verdict]], now: datetime) -> None:
    """The circuit breaker: failures in a row of the provider itself, not of one message."""
    failed = {id(result): verdict.provider_failed for one, result, verdict in verdicts if one is result.claimed}
    streaks: dict[int, list[Any]] = {}  # channel -> [failures after the last success, was there a success, last error, Open, on our side]
    for result in results:
        opened = result.claimed.channel
        if opened.style.demo or opened.transport is None:
            continue
        if failed[id(result)] and isinstance(result.said, DeliveryError):
            streak = streaks.setdefault(opened.id, [0, False, "", opened, False])
            streak[0], streak[2], streak[4] = streak[0] + 1, result.said.text[:500], result.said.is_network
        elif not isinstance(result.said, DeliveryError):
            recently = opened.last_success_at is not None and now - opened.last_success_at < timedelta(seconds=10)
            if opened.failures or not recently or opened.id in streaks:
                streak = streaks.setdefault(opened.id, [0, False, "", opened, False])
                streak[0], streak[1] = 0, True
    for channel, (count, success, error, opened, network) in sorted(streaks.items()):
        cursor.execute(
            """INSERT INTO channels_app_channelhealth AS h (channel_id, failures, is_network, last_error, last_error_at, last_success_at)
               SELECT id, LEAST(%(count)s, %(most)s), %(network)s, %(error)s, %(failed)s, %(worked)s FROM channels_app_channel WHERE id = %(channel)s
               ON CONFLICT (channel_id) DO UPDATE SET
                 -- Requests that were out when it opened do not make it longer; a probe that fails does.
                 failures = CASE WHEN %(success)s THEN LEAST(%(count)s, %(most)s) WHEN h.open_until > %(probe)s THEN h.failures
                                 WHEN h.failures >= %(most)s THEN h.failures + 1 ELSE LEAST(h.failures + %(count)s, %(most)s) END,
                 is_network = CASE WHEN %(error)s = '' THEN h.is_network ELSE %(network)s END,
                 last_error = CASE WHEN %(error)s = '' THEN h.last_error ELSE %(error)s END,
                 last_error_at = COALESCE(%(failed)s, h.last_error_at), last_success_at = COALESCE(%(worked)s, h.last_success_at)
               RETURNING failures, open_until""",
            {
                "channel": channel, "count": count, "most": policy.BREAKER_FAILURES, "error": error, "success": success, "network": network,
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
            Installation.objects.filter(id=1, alarm=NETWORK_ALARM).update(alarm="", alarm_at=None)


def wipe_secrets(cursor: Any, ids: Sequence[int]) -> None:
    """A code's Context is gone as soon as nothing can send it any more."""
    if ids:
        cursor.execute(
            """UPDATE channels_app_notification n SET secret_context = '' WHERE n.id = ANY(%s) AND NOT EXISTS (
                 SELECT 1 FROM channels_app_delivery d WHERE d.notification_id = n.id AND d.state IN ('queued', 'sending'))""",
            [list(ids)],
        )


def exhaust(cursor: Any, ids: Iterable[int], now: datetime) -> None:
    """Tells the house above of pages that reach nobody: each message has failed, has an end that nobody knows, has used up its tries, waits
    at a channel that keeps failing or waits past its deadline for what its provider allows, and no fallback is left.

    What can still be tried is tried with back-off; only waiting for it would be silence. While every channel fails before a request leaves it
    is our network that is broken, not theirs: nothing is exhausted then, and the alarm is raised instead.
    """
    wanted = list(ids)
    if not wanted:
        return
    cursor.execute(
        """SELECT n.id, bool_and(CASE WHEN d.attempts = 0 THEN COALESCE(h.is_network, false) ELSE d.log -> -1 ->> 3 = 'network' END)
           FROM channels_app_notification n JOIN channels_app_delivery d ON d.notification_id = n.id
           LEFT JOIN channels_app_channelhealth h ON h.channel_id = d.channel_id
           WHERE n.id = ANY(%s) AND n.is_page AND n.exhausted_at IS NULL GROUP BY n.id
           HAVING bool_and(d.fallback_at IS NULL AND NOT d.withdrawn
             AND (d.state IN ('failed', 'unknown')
                  OR (d.state = 'queued' AND (d.tries >= %s OR COALESCE(h.failures, 0) >= %s OR d.reason IN (%s, %s)
                                              OR (d.attempts > 0 AND d.not_before > d.deadline_at)))))""",
        [wanted, policy.TRIES, policy.BREAKER_FAILURES, policy.MONTH_USED_UP, policy.TAKES_NO_MORE],
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
