"""What became of messages, for transports that hear it on a connection of their own (SMPP, SIP): written by the process that heard it, read
by whichever process polls.

Drains move from worker to worker every few seconds, while a receipt or the end of a call comes when it comes, to the process that holds the
connection. So an outcome is a small file in the run folder of the node, one for each message, until it is an hour old."""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from django.conf import settings

from channels_app.transport import Update

KEEP = 3600.0  # seconds
SWEEP = 60.0


class Outcomes:
    """The outcomes at one provider's account; `name` is any text that tells it from others. Thread-safe, and across the node's processes."""

    def __init__(self, name: str) -> None:
        self.folder = Path(settings.RUN_DIR) / "outcomes" / _digest(name)
        self._sweep_at = 0.0
        self._lock = threading.Lock()

    def write(self, message_id: str, state: str, reason: str = "", *, not_before: float = 0.0) -> None:
        """Keeps what became of a message instead of what was kept before. It is told from `not_before` on (Unix seconds): what is to be
        said should nothing be heard by then. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()
        place = self.folder / _digest(message_id)
        fresh = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        fresh.write_text(json.dumps([message_id, state, reason, not_before]))
        os.replace(fresh, place)

    def read(self, message_ids: Iterable[str]) -> dict[str, Update]:
        """What is known of these messages by now: {message id: Update}. Reading it again says the same: who was told may have forgotten."""
        found: dict[str, Update] = {}
        for message_id in message_ids:
            with contextlib.suppress(FileNotFoundError, ValueError):
                kept, state, reason, not_before = json.loads((self.folder / _digest(message_id)).read_text())
                if kept == message_id and not_before <= time.time():
                    found[message_id] = Update(message_id, state, reason)
        return found

    def _sweep(self) -> None:
        with self._lock:
            if time.monotonic() < self._sweep_at:
                return
            self._sweep_at = time.monotonic() + SWEEP
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > KEEP:
                    file.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]
