"""What was interrupted: a drain that died, all of them away for a while, a clock that was set back."""

import logging
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db import connection, transaction
from django.utils.translation import gettext_noop

from channels_app import policy
from channels_app.models import Pulse
from mapping.clock import wake

log = logging.getLogger(__name__)

PULSE: Final = timedelta(seconds=3)
AWAY: Final = timedelta(seconds=15)  # so long without a drain was an outage of ours
FORGIVEN: Final = 1000  # deliveries whose deadlines are moved in one transaction
WRITING: Final = timedelta(seconds=5)  # who waits for the database asks for it once a second
# What an absence of `lost` that ended at `until` takes off the deadlines of a delivery: no more than the time it has waited.
_MOVED: Final = """deadline_at = deadline_at + LEAST(%(lost)s, %(until)s - created_at),
    fallback_at = fallback_at + LEAST(%(lost)s, %(until)s - created_at)"""


def take_over(holder: str | None, now: datetime, *, only: Collection[int] | None = None, besides: Collection[str] = ()) -> int:
    """The messages a dead drain had out become unknown, and are queued again as possible repeats (`only` these of them); None: those whose lease
    has run out, but for those of the holders in `besides`, who are known to live.

    The attempt that we broke off counts against neither the tries nor the deadline.
    """
    which = "lease_until < %(now)s AND holder <> ALL(%(besides)s)" if holder is None else "holder = %(holder)s"
    if only is not None:
        which += " AND id = ANY(%(only)s)"
    values: dict[str, Any] = {"holder": holder, "now": now, "lease": policy.LEASE, "only": list(only or ()), "besides": list(besides)}
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
            values | {"places": places, "reason": gettext_noop("the process that sent it ended before it knew the outcome")},
        )
        count = len(cursor.fetchall())
        cursor.execute("UPDATE channels_app_address SET next_at = LEAST(next_at, %s) WHERE id = ANY(%s)", [now, places])
    if count:
        log.warning("%d messages of %s are unknown and are sent again", count, holder or "drains that vanished")
        wake("drain")
    return count


def turned_back(lost: timedelta, now: datetime) -> None:
    """The database's clock went back by `lost`: what was to happen later happens that much earlier, so that nothing waits twice."""
    with transaction.atomic(), connection.cursor() as cursor:
        values: dict[str, Any] = {"now": now, "lost": lost}
        # Addresses, then deliveries, each in the order of their ids: as everybody else locks them.
        cursor.execute(
            "SELECT id FROM channels_app_address WHERE next_at > %(now)s OR blocked_until > %(now)s ORDER BY id FOR NO KEY UPDATE", values
        )
        cursor.execute(
            """UPDATE channels_app_address SET next_at = GREATEST(next_at - %(lost)s, LEAST(next_at, %(now)s)),
                 blocked_until = GREATEST(blocked_until - %(lost)s, LEAST(blocked_until, %(now)s))
               WHERE id = ANY(%(ids)s)""",
            values | {"ids": [pk for (pk,) in cursor.fetchall()]},
        )
        cursor.execute(
            """SELECT id FROM channels_app_delivery WHERE state IN ('queued', 'sending') OR fallback_at > %(now)s OR poll_at > %(now)s
               ORDER BY id FOR NO KEY UPDATE""",
            values,
        )
        values["ids"] = [pk for (pk,) in cursor.fetchall()]
        cursor.execute(
            """UPDATE channels_app_delivery SET not_before = not_before - %(lost)s, deadline_at = deadline_at - %(lost)s,
                 give_up_at = give_up_at - %(lost)s, fallback_at = fallback_at - %(lost)s, lease_until = lease_until - %(lost)s
               WHERE id = ANY(%(ids)s) AND state IN ('queued', 'sending')""",
            values,
        )
        # Calls that were sent and of which nothing was heard.
        cursor.execute(
            """UPDATE channels_app_delivery SET fallback_at = fallback_at - %(lost)s, poll_at = poll_at - %(lost)s
               WHERE id = ANY(%(ids)s) AND (fallback_at > %(now)s OR poll_at > %(now)s) AND state NOT IN ('queued', 'sending')""",
            values,
        )
        cursor.execute("UPDATE channels_app_channelhealth SET open_until = open_until - %(lost)s WHERE open_until > %(now)s", values)


def pulse(now: datetime) -> bool:
    """Says that a drain works (called about once a second, before `take_over`). After a time without any, that time counts against no deadline and
    no budget, so that fallbacks are not started by our own absence; and where it was the database that was away, whoever holds results is given
    the time to write them before their leases end.

    True while deadlines are still to be moved, a batch with each call: until then no fallback may start.
    """
    row = Pulse.objects.filter(id=1).first()
    if row is None:
        Pulse.objects.bulk_create([Pulse(id=1, seen_at=now)], ignore_conflicts=True)
        return False
    if not row.absences and timedelta(0) <= now - row.seen_at < PULSE:
        return False
    with transaction.atomic():
        mine = Pulse.objects.select_for_update(no_key=True, skip_locked=True).filter(id=1).first()
        if mine is None:
            return True  # another drain is at it
        away = now - mine.seen_at
        if away >= PULSE or away < timedelta(0):
            mine.seen_at = now
        if away > AWAY:
            log.warning("no drain was running for %.0f s; deadlines of what waited are moved", away.total_seconds())
            mine.absences.append([(now - away).timestamp(), now.timestamp(), [0, 0, 0]])
            _back(away, now)
        if mine.absences:
            since, until, after = mine.absences[0]
            after = _forgive(datetime.fromtimestamp(since, UTC), datetime.fromtimestamp(until, UTC), after)
            mine.absences[0:1] = [[since, until, after]] if after else []
        mine.save(update_fields=["seen_at", "absences"])
        return bool(mine.absences)


def _back(away: timedelta, now: datetime) -> None:
    """What was under way when everybody went away: few rows."""
    values: dict[str, Any] = {"lost": away, "until": now, "writing": WRITING}
    with connection.cursor() as cursor:
        cursor.execute(
            f"""UPDATE channels_app_delivery SET {_MOVED}, lease_until = GREATEST(lease_until, %(until)s + %(writing)s)
               WHERE id IN (SELECT id FROM channels_app_delivery WHERE state = 'sending' ORDER BY id FOR NO KEY UPDATE)""",
            values,
        )


def _forgive(since: datetime, until: datetime, after: Sequence[int]) -> Sequence[int] | None:
    """Moves the deadlines of the next of what was queued before `until`; the last row it saw, None when there are no more.

    In the order of the index of what is queued: a backlog of 100,000 rows in one statement took longer than a drain may be silent, so that each
    was ended in the middle of it, and the next began anew.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """SELECT address_id, priority, id FROM channels_app_delivery WHERE state = 'queued' AND (address_id, priority, id) > (%s, %s, %s)
               ORDER BY address_id, priority, id LIMIT %s""",
            [*after, FORGIVEN],
        )
        found = cursor.fetchall()
        values: dict[str, Any] = {"lost": until - since, "until": until, "ids": [pk for _address, _priority, pk in found]}
        cursor.execute(
            f"""UPDATE channels_app_delivery SET {_MOVED}
               WHERE id IN (SELECT id FROM channels_app_delivery WHERE id = ANY(%(ids)s) AND state = 'queued' AND created_at < %(until)s
                            ORDER BY id FOR NO KEY UPDATE)""",
            values,
        )
    return found[-1] if len(found) == FORGIVEN else None
