"""What the world says of messages that left: receipts, bounces, a person who answered, an operator who tries again."""

from collections.abc import Sequence
from datetime import datetime

from django.db import connection, transaction

from channels_app import policy
from channels_app.models import Delivery
from mapping.clock import wake
from mapping.models import ContactPoint


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
