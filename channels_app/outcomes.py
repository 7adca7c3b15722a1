"""What became of messages, for transports that hear it on a connection of their own (SMPP, SIP): written by the process that heard it, told by
whichever process polls.

Drains move from worker to worker every few seconds, while a receipt or the end of a call comes when it comes, to the process that holds the
connection. So an outcome is a small file in the run folder of the node, until a drain has told it and asked again."""

import contextlib
import hashlib
import json
import os
import threading
import time
from pathlib import Path

from django.conf import settings

from channels_app.transport import Update

KEEP = 86_400.0  # seconds that something nobody asks for is kept
SWEEP = 600.0


class Outcomes:
    """The outcomes at one provider's account; `name` is any text that tells it from others. Thread-safe, and across the node's processes."""

    def __init__(self, name: str) -> None:
        self.folder = Path(settings.RUN_DIR) / "outcomes" / _digest(name)
        self._told: dict[Path, int] = {}  # when each file was written that the last `take` told
        self._sweep_at = 0.0
        self._lock = threading.Lock()

    def write(self, message_id: str, state: str, reason: str = "", *, not_before: float = 0.0) -> None:
        """Keeps what became of a message, instead of what was kept of it before. It is told from `not_before` on (Unix seconds): so a
        transport says ahead what is to be told if nothing is heard by then. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = self.folder / _digest(message_id)
        fresh = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        fresh.write_text(json.dumps([message_id, state, reason, not_before]))
        os.replace(fresh, place)

    def take(self) -> list[Update]:
        """Everything that is known by now, of whatever message. What the call before this one told is gone: whoever asks again has kept it.
        Two that ask may both be told."""
        with self._lock, contextlib.suppress(FileNotFoundError):
            for place, written in self._told.items():
                with contextlib.suppress(FileNotFoundError):
                    if place.stat().st_mtime_ns == written:
                        place.unlink()
            self._told = {}
            self._sweep()
            found = []
            for place in self.folder.iterdir():
                if place.suffix:
                    continue  # half written
                with contextlib.suppress(FileNotFoundError, ValueError):
                    written = place.stat().st_mtime_ns
                    message_id, state, reason, not_before = json.loads(place.read_text())
                    if not_before <= time.time():
                        found.append(Update(message_id, state, reason))
                        self._told[place] = written
            return found
        return []

    def _sweep(self) -> None:
        if time.monotonic() < self._sweep_at:
            return
        self._sweep_at = time.monotonic() + SWEEP
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - file.stat().st_mtime > KEEP:
                    file.unlink()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]
