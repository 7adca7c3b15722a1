"""How often something was tried lately: sign-ins per account and address, codes per member, target and installation."""

from datetime import datetime, timedelta

from django.db import connection, models


class Throttle(models.Model):
    key = models.CharField(max_length=100, primary_key=True)
    count = models.PositiveIntegerField(default=0)
    window_end = models.DateTimeField(db_index=True)

    @classmethod
    def hit(cls, key: str, most: int, window: timedelta, now: datetime) -> bool:
        """Counts one try of `key`; False when there were `most` already in this window. One statement, so two processes cannot both be the last."""
        with connection.cursor() as cursor:
            cursor.execute(
                """INSERT INTO mapping_throttle AS t (key, count, window_end) VALUES (%(key)s, 1, %(end)s)
                   ON CONFLICT (key) DO UPDATE SET
                     count = CASE WHEN t.window_end <= %(now)s THEN 1 ELSE t.count + 1 END,
                     window_end = CASE WHEN t.window_end <= %(now)s THEN %(end)s ELSE t.window_end END
                   RETURNING count""",
                {"key": key[:100], "now": now, "end": now + window},
            )
            return cursor.fetchone()[0] <= most

    @classmethod
    def clear(cls, key: str) -> None:
        """Forgets the tries of `key` (after a success)."""
        cls.objects.filter(key=key[:100]).delete()
