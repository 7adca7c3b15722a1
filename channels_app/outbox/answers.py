"""What the world says of messages that left: receipts, bounces, a person who answered, a provider that stays silent, an operator who tries again.

A receipt may be here before the record of the attempt whose message it is about. It is then kept as a row and applied by `early`, which the
drain calls all the time, so neither of the two has to come first."""

import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime

from django.db import connection, transaction
from django.utils.translation import gettext_noop

from channels_app import policy
from channels_app.compose import without_address
from channels_app.models import Channel, Delivery, EarlyReceipt
from channels_app.transport import transports
from mapping.clock import wake
from mapping.models import ContactPoint

log = logging.getLogger(__name__)

SILENT = gettext_noop("the provider did not report what became of the call")
BOUNCED = "bounced"  # failed, and the address takes nothing any more
_STATES = (Delivery.State.DELIVERED, Delivery.State.ANSWERED, Delivery.State.FAILED, BOUNCED)


def receipt(channel_id: int, message_id: str, state: str, reason: str, now: datetime) -> bool:
    """A provider says what became of a message: `state` is delivered, answered, failed or bounced (then the fallback starts).

    False: we know no such message (yet); it is kept for ten minutes, see `early`. ValueError: no such state.
    """
    if state not in _STATES:
        raise ValueError(f"a receipt cannot say {state!r}")
    message_id, reason = _plain(message_id, 200), _plain(reason, 500)
    if not message_id:
        return False
    with transaction.atomic():
        found = _apply(channel_id, message_id, state, reason, now)
        if not found:
            EarlyReceipt.objects.create(channel_id=channel_id, message_id=message_id, state=state, reason=reason, received_at=now)
    wake("drain")
    return found


def early(now: datetime) -> int:
    """Applies the receipts that came before the record of their message, and drops those whose message never came. How many were applied."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("DELETE FROM channels_app_earlyreceipt WHERE received_at < %s RETURNING channel_id", [now - policy.EARLY])
        if lost := len(cursor.fetchall()):
            log.info("%d receipts were about messages that are not ours", lost)
        cursor.execute(
            """DELETE FROM channels_app_earlyreceipt WHERE id IN (
                 SELECT e.id FROM channels_app_earlyreceipt e JOIN channels_app_channel c ON c.id = e.channel_id WHERE EXISTS (
                   SELECT FROM channels_app_delivery d WHERE d.message_id = e.message_id AND d.message_id <> '' AND (d.channel_id = e.channel_id
                     OR c.kind = ANY(%s) AND EXISTS (SELECT FROM channels_app_channel o WHERE o.id = d.channel_id AND o.kind = c.kind)))
                 ORDER BY e.id LIMIT 500 FOR UPDATE OF e SKIP LOCKED)
               RETURNING id, channel_id, message_id, state, reason""",
            [_kinds_with_unique_ids()],
        )
        ready = sorted(cursor.fetchall())
        for _id, channel, message, state, reason in ready:
            _apply(channel, message, state, reason, now)
    if ready:
        wake("drain")
    return len(ready)


def _apply(channel_id: int, message_id: str, state: str, reason: str, now: datetime) -> bool:
    """Whether the message is ours, whatever has become of it meanwhile. A bundle is one message of several deliveries."""
    named = Delivery.objects.select_for_update(no_key=True, of=("self",)).filter(message_id=message_id).order_by("id")
    rows = list(named.filter(channel_id=channel_id))
    if not rows:  # two channels of one account: the vendor tells either of them
        kind = Channel.objects.filter(id=channel_id, kind__in=_kinds_with_unique_ids()).values_list("kind", flat=True).first()
        rows = list(named.filter(channel__kind=kind)) if kind else []
    sent = (Delivery.State.SENT, Delivery.State.BUNDLED)
    for row in rows:
        if row.state == Delivery.State.CANCELLED:
            continue
        if state == Delivery.State.ANSWERED:
            _answered(row, now)
        elif state == Delivery.State.DELIVERED and row.state in (*sent, Delivery.State.SENDING, Delivery.State.UNKNOWN):
            if row.state != Delivery.State.BUNDLED:
                row.state, row.reason = state, ""
            row.delivered_at, row.ended_at, row.fallback_at, row.poll_at = now, row.ended_at or now, None, None
            row.save(update_fields=["state", "delivered_at", "ended_at", "reason", "fallback_at", "poll_at"])
        elif state in (Delivery.State.FAILED, BOUNCED) and row.state in (*sent, Delivery.State.DELIVERED) and row.ended_at is not None:
            why = without_address(reason, row.address.target)  # carriers repeat the number, and everybody reads it who sees the incident
            row.state, row.reason, row.ended_at = Delivery.State.FAILED, why, now
            row.log = [*row.log, [row.attempts, now.timestamp(), 0, "failed", why]]
            row.fallback_at, row.poll_at = (now if row.is_page and not row.withdrawn else None), None
            row.save(update_fields=["state", "reason", "ended_at", "log", "fallback_at", "poll_at"])
    if state == BOUNCED:
        _bounced(rows, reason, now)
    return bool(rows)


def _kinds_with_unique_ids() -> list[str]:
    return [kind for kind, style in transports().items() if style.unique_ids]


def _plain(text: str, most: int) -> str:
    """As the database can keep it: a provider may say anything."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:most]


def _bounced(rows: Sequence[Delivery], reason: str, now: datetime) -> None:
    """A mailbox that is no more is not used again until it is verified anew; one that was verified after the message left is. Where many are
    said to be no more at once, whoever says so is at fault, and the pages' fallbacks are enough."""
    if ContactPoint.objects.filter(kind="email", bounced_at__gt=now - policy.BOUNCES_WITHIN).count() >= policy.BOUNCES:
        log.warning(
            "more than %d mailboxes came back within %s: look at the mail relay; no more are taken for dead",
            policy.BOUNCES,
            policy.BOUNCES_WITHIN,
        )
        return
    for row in rows:
        if row.member_id is not None:
            points = ContactPoint.objects.filter(member_id=row.member_id, kind="email", value=row.address.target, bounced_at=None)
            points.exclude(verified_at__gt=row.sent_at or now).update(bounced_at=now, bounce_reason=reason[:300])


def silences(now: datetime) -> int:
    """Calls that the provider took and of whose end it has said nothing for too long: nobody can know, and their fallback (due already) says why."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """UPDATE channels_app_delivery d SET state = 'unknown', reason = %(why)s, poll_at = NULL,
                 log = d.log || jsonb_build_array(jsonb_build_array(d.attempts, extract(epoch FROM %(now)s), 0, 'unknown', %(why)s::text))
               WHERE d.id IN (
                 SELECT id FROM channels_app_delivery WHERE fallback_at <= %(now)s AND (state = 'sent' OR state = 'bundled' AND sent_at IS NOT NULL)
                 ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)""",
            {"why": SILENT, "now": now},
        )
        return int(cursor.rowcount)


def to_ask(channels: Collection[int], now: datetime) -> dict[int, list[str]]:
    """The messages of these channels whose end is not known and whose provider is to be asked now, {channel: ids}; each is due again later."""
    asked: dict[int, list[str]] = defaultdict(list)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """UPDATE channels_app_delivery d SET poll_at = CASE WHEN d.sent_at > %(old)s THEN GREATEST(%(again)s, %(now)s + (%(now)s - d.sent_at) / 5) END
               WHERE d.id IN (
                 SELECT id FROM channels_app_delivery WHERE poll_at <= %(now)s AND channel_id = ANY(%(channels)s)
                 ORDER BY id LIMIT 500 FOR NO KEY UPDATE SKIP LOCKED)
               RETURNING d.channel_id, d.message_id, d.state""",
            {"now": now, "again": now + policy.POLL, "old": now - policy.POLL_UNTIL, "channels": list(channels)},
        )
        for channel, message, state in cursor.fetchall():
            if state == Delivery.State.SENT and message not in asked[channel]:
                asked[channel].append(message)
    return dict(asked)


def answered(delivery_id: int, now: datetime) -> None:
    """A person reacted to this message: it needs no fallback, whatever its provider says of it."""
    with transaction.atomic():
        row = Delivery.objects.select_for_update(no_key=True).filter(id=delivery_id).first()
        if row is not None:
            _answered(row, now)


def _answered(row: Delivery, now: datetime) -> None:
    row.answered_at = row.answered_at or now
    row.fallback_at = row.poll_at = None
    if row.state in (Delivery.State.SENT, Delivery.State.DELIVERED, Delivery.State.UNKNOWN):
        row.state, row.ended_at = Delivery.State.ANSWERED, row.ended_at or now
    row.save(update_fields=["answered_at", "fallback_at", "poll_at", "state", "ended_at"])


def retry(delivery_id: int, now: datetime) -> bool:
    """Queues a message again that failed or ended unknown, by hand; False where there is nothing to try again (sent, cancelled, still trying)."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            """UPDATE channels_app_address SET next_at = LEAST(next_at, %s)
               WHERE id = (SELECT address_id FROM channels_app_delivery WHERE id = %s)""",
            [now, delivery_id],
        )
        cursor.execute(
            """UPDATE channels_app_delivery SET state = 'queued', not_before = %(now)s, tries = 0, first_request_at = NULL, ended_at = NULL, poll_at = NULL,
                 reason = '', deadline_at = %(now)s, give_up_at = %(until)s WHERE id = %(id)s AND state IN ('failed', 'unknown') AND NOT withdrawn""",
            {"now": now, "id": delivery_id, "until": now + policy.GIVE_UP_NOTICE},
        )
        found = bool(cursor.rowcount)
    wake("drain")
    return found
