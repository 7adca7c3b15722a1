"""What django-q2's pusher asks for work: a resident whose slot is empty first, then at most one coarse job from django-q2's own table.

Nothing a user waits for is queued here: the residents find their work in the rows. A coarse job (`async_task`, `Schedule`: prune,
canary, shift notices) is a row of OrmQ, leased while it runs; while one lease is alive no second job starts in the installation.
"""

import contextlib
import fcntl
import gc
import logging
import os
import time
from datetime import timedelta

from django.conf import settings
from django.db import Error, connection, connections
from django.db.models.functions import Now
from django.utils import timezone
from django.utils.module_loading import import_string
from django_q.brokers import Broker
from django_q.conf import Conf
from django_q.models import OrmQ
from django_q.signals import post_execute_in_worker, pre_execute
from django_q.signing import BadSignature, SignedPackage

from channels_app import resident

log = logging.getLogger(__name__)

POLL = 0.1  # how long an empty slot stays empty
AGAIN = 1.0  # a resident that was sent has so long to take its slot before another is sent
JOBS_EVERY = 0.5  # seconds between two looks for coarse jobs

TAKE = """
UPDATE django_q_ormq SET lock = statement_timestamp() + %(lease)s * interval '1 second'
WHERE id = (SELECT id FROM django_q_ormq WHERE key = %(key)s AND lock <= statement_timestamp() ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)
  AND NOT EXISTS (SELECT FROM django_q_ormq WHERE key = %(key)s AND lock > statement_timestamp())
RETURNING id, payload
"""


def preload() -> None:
    """To be called before the first fork: what is imported here is shared by all processes of a tree, and its workers start warm."""
    for func, _args in settings.RESIDENTS.values():
        try:
            import_string(func)
        except Exception:
            log.exception("%s cannot be loaded", func)  # the others work; this slot stays empty, which the supervisor notices
    gc.collect()
    gc.freeze()  # the collector would otherwise write to, and so copy, every shared page


class RowsBroker(Broker):
    def __init__(self, list_key: str | None = None):
        super().__init__(list_key)
        self.stop = resident.Stop()
        self.sent: dict[str, tuple[float, tuple[int, str] | None]] = {}  # slot -> when, and who held it then
        self.jobs_at = 0.0

    # A broker travels to the pusher by fork; under another start method only its key does.
    def __getstate__(self):
        return self.list_key

    def __setstate__(self, state):
        self.__init__(state)  # type: ignore[misc]  # no subclass has another one

    def ping(self) -> bool:
        return True

    def info(self) -> str:
        return "rows"

    def dequeue(self) -> list[tuple[int | None, str]] | None:
        """A package for an empty slot or a coarse job, as django-q2 wants it; None after a short sleep. Raises nothing: that would cost 10 s."""
        try:
            if self.stop.left() is None:
                for slot, (func, args) in settings.RESIDENTS.items():
                    if self._wanted(slot):
                        self.sent[slot] = time.monotonic(), resident.holder(slot)
                        return [(None, package(slot, func, args))]
                if time.monotonic() >= self.jobs_at:
                    self.jobs_at = time.monotonic() + JOBS_EVERY
                    if job := self._job():
                        return [job]
        except Error as error:
            connections.close_all()
            log.warning("no look at the coarse jobs: %s", error)
            self.jobs_at = time.monotonic() + 5
        except Exception:
            log.exception("nothing handed out")
        time.sleep(POLL)
        return None

    def _wanted(self, slot: str) -> bool:
        """Whether to send a resident: its holder asks for a successor, or is of an older tree (which is about to go), or there is none."""
        with contextlib.suppress(FileNotFoundError):
            resident.path(f"{slot}.want").unlink()  # who removes it answers it
            return True
        holder = resident.holder(slot)
        sent_at, holder_then = self.sent.get(slot, (-60.0, None))
        if time.monotonic() - sent_at < AGAIN and holder == holder_then:
            return False  # whom we sent is on the way; had it arrived and died, the file would name it
        if not resident.held(f"{slot}.slot"):
            return True
        return (holder or (0, ""))[1] < resident.tree_id() and not resident.held(f"{slot}.next")

    def _job(self) -> tuple[int, str] | None:
        with connection.cursor() as cursor:
            cursor.execute(TAKE, {"lease": Conf.RETRY, "key": self.list_key})
            row = cursor.fetchone()
        if row is None:
            return None
        with contextlib.suppress(TypeError, BadSignature):  # the pusher will say so, and fail() removes it
            longest = SignedPackage.loads(row[1]).get("timeout") or 0
            if longest + 30 > Conf.RETRY:
                OrmQ.objects.filter(pk=row[0]).update(lock=Now() + timedelta(seconds=longest + 30))
        return row

    def enqueue(self, task: str) -> int:
        return OrmQ.objects.create(key=self.list_key, payload=task, lock=Now()).pk

    def acknowledge(self, task_id: int) -> None:
        OrmQ.objects.filter(pk=task_id).delete()

    delete = fail = acknowledge

    def queue_size(self) -> int:
        return OrmQ.objects.filter(key=self.list_key, lock__lte=Now()).count()

    def lock_size(self) -> int:
        return OrmQ.objects.filter(key=self.list_key, lock__gt=Now()).count()

    def purge_queue(self) -> None:
        OrmQ.objects.filter(key=self.list_key).delete()

    delete_queue = purge_queue


def package(slot: str, func: str, args: tuple) -> str:
    """A signed task that no table knows: a resident for this slot.

    Without `started` saving a failure would raise. The id is the slot's, so that failures are one row with a count and not one a second.
    """
    return SignedPackage.dumps(
        {
            "id": f"resident-{slot}", "name": slot, "func": func, "args": args, "kwargs": {}, "started": timezone.now(),
            "ack_failure": True, "save": False,
        }
    )  # fmt: skip


# ---- "at work": a shared lock on the tree's file while a worker executes anything, so that a wind-down ends when the last one is done ----

_at_work: tuple[int, int] | None = None  # (pid, handle): a forked handle would share its lock with the parent


def _begin(**_kwargs) -> None:
    global _at_work
    if not resident.tree_id():
        return
    if _at_work is None or _at_work[0] != os.getpid():
        _at_work = (os.getpid(), os.open(resident.path(f"tree.{resident.tree_id()}"), os.O_RDWR | os.O_CREAT, 0o600))
    fcntl.flock(_at_work[1], fcntl.LOCK_SH)


def _end(**_kwargs) -> None:
    if _at_work is not None and _at_work[0] == os.getpid():
        fcntl.flock(_at_work[1], fcntl.LOCK_UN)


pre_execute.connect(_begin)
post_execute_in_worker.connect(_end)
