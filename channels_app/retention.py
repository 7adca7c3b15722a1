"""What is kept of messages: deletes those of a topic that is over, and those of no topic (codes, tests) after their time."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from django.db import connection, transaction

from channels_app import policy

WINDOW: Final = 2000  # rows that one statement looks at


def busy(topics: Sequence[int]) -> set[int]:
    """Locks the messages of these topics (the caller, in whose transaction this is, has locked what they are about) and returns the topics
    of which something may still leave: a message waits, is out, or has a fallback to start."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT topic, state IN ('queued', 'sending') OR fallback_at IS NOT NULL FROM channels_app_delivery
               WHERE topic = ANY(%s) ORDER BY id FOR UPDATE""",
            [list(topics)],
        )
        return {topic for topic, is_busy in cursor.fetchall() if is_busy}


def drop(topics: Sequence[int]) -> Counter[str]:
    """Deletes everything that was said about these topics (see `busy`); how much that was."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM channels_app_notification WHERE topic = ANY(%s)", [list(topics)])
        return _drop([pk for (pk,) in cursor.fetchall()])


def _drop(notifications: list[int]) -> Counter[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT id FROM channels_app_delivery WHERE notification_id = ANY(%s) ORDER BY id FOR UPDATE", [notifications])
        values = {"mine": [pk for (pk,) in cursor.fetchall()]}
        # A message that went out inside one of these, or instead of it, and is about something that stays.
        cursor.execute(
            """UPDATE channels_app_delivery SET
                 bundled_by_id = CASE WHEN bundled_by_id = ANY(%(mine)s) THEN NULL ELSE bundled_by_id END,
                 fallback_of_id = CASE WHEN fallback_of_id = ANY(%(mine)s) THEN NULL ELSE fallback_of_id END
               WHERE id IN (
                 SELECT id FROM channels_app_delivery WHERE (bundled_by_id = ANY(%(mine)s) OR fallback_of_id = ANY(%(mine)s))
                   AND NOT id = ANY(%(mine)s) ORDER BY id FOR NO KEY UPDATE)""",
            values,
        )
        cursor.execute("DELETE FROM channels_app_delivery WHERE id = ANY(%(mine)s)", values)
        gone = Counter(deliveries=cursor.rowcount)
        cursor.execute("DELETE FROM channels_app_notification WHERE id = ANY(%s)", [notifications])
        gone["notifications"] = cursor.rowcount
    return gone


def count(topics: Sequence[int]) -> Counter[str]:
    """What `drop` would delete."""
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT count(*), COALESCE(sum((SELECT count(*) FROM channels_app_delivery d WHERE d.notification_id = n.id)), 0)
               FROM channels_app_notification n WHERE topic = ANY(%s)""",
            [list(topics)],
        )
        notifications, deliveries = cursor.fetchone()
    return Counter(notifications=notifications, deliveries=int(deliveries))


def without_topic(before: datetime, *, dry: bool = False) -> Iterator[Counter[str]]:
    """Deletes (`dry`: counts) codes, tests and announcements from before that instant; after each short transaction, how many."""
    last = 0
    while True:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT id, created_at, topic FROM channels_app_notification WHERE id > %s ORDER BY id LIMIT %s", [last, WINDOW])
            rows = cursor.fetchall()
            if not rows or rows[0][1] >= before:
                return
            last = rows[-1][0]
            cursor.execute(
                """SELECT id FROM channels_app_notification n WHERE id = ANY(%s) AND NOT EXISTS (
                     SELECT FROM channels_app_delivery d WHERE d.notification_id = n.id
                       AND (d.state IN ('queued', 'sending') OR d.fallback_at IS NOT NULL))""",
                [[pk for pk, at, topic in rows if topic is None and at < before]],
            )
            old = [pk for (pk,) in cursor.fetchall()]
            gone = Counter(notifications=len(old)) if dry else _drop(old)
        yield gone


def early_receipts(now: datetime) -> int:
    """Deletes what providers said of messages that are not ours, where no drain was there to do it."""
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM channels_app_earlyreceipt WHERE received_at < %s", [now - policy.EARLY])
        return int(cursor.rowcount)
