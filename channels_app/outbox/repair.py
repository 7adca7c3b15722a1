"""What was interrupted: a drain that died, all of them away for a while, a clock that was set back."""

import logging
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

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

# "moving": deadlines of what waited are being moved; nothing may be claimed, and no fallback may start.
# "settling": whoever holds results of before may still write them; no fallback may start, and nobody's lease has run out.
After = Literal["moving", "settling", ""]


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


def pulse(now: datetime) -> After:
    """Says that a drain works (called about once a second, before anything else). After a time without any, that time counts against no deadline
    and no budget, so that fallbacks are not started by our own absence; and where it was the database that was away, whoever holds results is
    given the time to write them before their leases count.

    What a drain has to leave alone for now; while it is "moving" each call moves a batch.
    """
    row = Pulse.objects.filter(id=1).first()
    if row is None:
        Pulse.objects.bulk_create([Pulse(id=1, seen_at=now)], ignore_conflicts=True)
        return ""
    phase = _phase(row.absences, now)
    if timedelta(0) <= now - row.seen_at < PULSE and phase != "moving" and bool(phase) == bool(row.absences):
        return phase
    with transaction.atomic():
        mine = Pulse.objects.select_for_update(no_key=True, skip_locked=True).filter(id=1).first()
        if mine is None:  # another drain is at it
            return "moving" if phase == "moving" or now - row.seen_at > AWAY else phase
        away = now - mine.seen_at
        if away >= PULSE or away < timedelta(0):
            mine.seen_at = now
        if away > AWAY:
            log.warning("no drain was running for %.0f s; deadlines of what waited are moved", away.total_seconds())
            mine.absences.append([(now - away).timestamp(), now.timestamp(), [0, 0, 0]])
        for absence in mine.absences:
            since, until, after = absence
            if after is not None:
                absence[2] = _forgive(datetime.fromtimestamp(since, UTC), datetime.fromtimestamp(until, UTC), after)
                break
        phase = _phase(mine.absences, now)
        if not phase:
            mine.absences = []
        mine.save(update_fields=["seen_at", "absences"])
        return phase


def _phase(absences: Sequence[Sequence[Any]], now: datetime) -> After:
    """What is to be left alone at `now` after these absences ([from, to, the last row that was moved, or None after the last of all])."""
    if any(after is not None for _since, _until, after in absences):
        return "moving"
    # An end that lies ahead is one of before the clock was set back.
    return "settling" if any(0 <= now.timestamp() - until < WRITING.total_seconds() for _since, until, _after in absences) else ""


def _forgive(since: datetime, until: datetime, after: Sequence[int]) -> Sequence[int] | None:
    """Moves the deadlines of the next of what was queued before `until`, by no more than the time each has waited; the last row it saw, None when
    there are no more.

    In the order of the index of what is queued: a backlog of 100,000 rows in one statement took longer than a drain may be silent, so that each
    was ended in the middle of it, and the next began anew. What was under way and is queued again since then is left out: `take_over` has moved
    it, or an answer came.
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
            """UPDATE channels_app_delivery SET deadline_at = deadline_at + LEAST(%(lost)s, %(until)s - created_at),
                 fallback_at = fallback_at + LEAST(%(lost)s, %(until)s - created_at)
               WHERE id IN (SELECT id FROM channels_app_delivery WHERE id = ANY(%(ids)s) AND state = 'queued' AND created_at < %(until)s
                              AND COALESCE((log -> -1 ->> 1)::float8 + (log -> -1 ->> 2)::float8, 0) < extract(epoch FROM %(until)s)
                            ORDER BY id FOR NO KEY UPDATE)""",
            values,
        )
    return found[-1] if len(found) == FORGIVEN else None
