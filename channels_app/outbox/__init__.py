"""The outbox: what is to be said becomes rows, rows become requests, and every answer becomes a row again.

Above it: `post` and `cancel` in the transaction of whoever decides, `receipt` and `answered` when the world answers. Below it, the parts
the drain is made of: `claim`, `record`, `early`, `to_ask`, `silences`, `fallbacks`, `take_over`; `run_once` is all of them (but for asking providers) without a thread, so that a test plays a story.

What holds at every line, whatever dies:
- A request leaves only after its row was set to `sending` in the statement that re-read its state, so after an acknowledgement was
  answered nothing new leaves. A result is written only where the row is still `sending` for this attempt and this holder.
- A lease is for a node that vanished. On one's own node the holder's lock tells who lives, and who lives may hold results that wait for the
  database: they are never thrown away (`tasks.Drain._bury`; after an outage `repair.pulse` gives other nodes time to write theirs).
- The lease of an address is the leases of its deliveries in flight: where a transport takes one request at a time, an address with a row
  in `sending` (of any drain on any node) is left alone. No row lock is held while a request is out.
- Lock order: Address, then Delivery, then ChannelHealth, each by id. `claim` and `fallbacks` never wait for a lock on a Delivery, so `claim`
  may lock the ChannelHealth of what is limited as a whole or probed before it takes deliveries. Whoever calls `post` and `cancel` in one transaction
  calls `post` first.
- What a sender comes to only long after its claim is not sent but looked at again (`policy.stale_after`): somebody may have acknowledged.
- `Address.next_at` is never later than the earliest `not_before` of what is queued there, unless the provider makes it wait.
"""

from datetime import datetime

from channels_app import compose
from channels_app.book import Book
from channels_app.outbox.answers import answered, early, receipt, retry, silences, to_ask
from channels_app.outbox.claiming import Room, claim
from channels_app.outbox.fallback import fallbacks
from channels_app.outbox.posting import Notice, To, cancel, post
from channels_app.outbox.recording import record
from channels_app.outbox.repair import After, pulse, take_over, turned_back

__all__ = [
    "After", "Notice", "Room", "To", "answered", "cancel", "claim", "early", "fallbacks", "post", "pulse", "receipt", "record", "retry", "run_once",
    "silences", "take_over", "to_ask", "turned_back",
]  # fmt: skip


def run_once(now: datetime, *, limit: int = 500) -> int:
    """Sends what is due at `now`, in this thread and on Django's own connection; how many rows were consumed."""
    notes = Book()
    notes.refresh(now)
    holder = "run_once"
    done = take_over(None, now)
    while done < limit * 20:
        claimed = claim(holder, now, Room(limit), notes)
        record(holder, [compose.send(one, now) for one in claimed], now)
        early(now)
        silences(now)
        # A claim starts the fallbacks of what it has to leave waiting, so they come after it.
        started = fallbacks(now, notes)
        done += len(claimed) + started
        if not claimed and not started:
            break
    return done
