"""Residents that leave a trace of each pass in the run folder, and what a test can make of the trace."""

import itertools
import os
import time
from pathlib import Path

from channels_app import resident

PASS_EVERY = 0.01  # seconds


def work(slot: str) -> None:
    resident.serve(slot, lambda now: _trace(slot), f"flashduty_{slot}")


def drain(slot: str) -> None:
    """With DUMMY_HANGS in the environment its provider never answers: what is in flight at the end takes all the time there is."""
    waker = resident.Waker()

    def finish(left) -> None:
        while os.environ.get("DUMMY_HANGS") and left() > 0:
            time.sleep(0.02)

    try:
        resident.serve(slot, lambda now: _trace(slot), "flashduty_drain", finish=finish, waker=waker)
    finally:
        waker.close()


def job(seconds: float) -> None:
    """A coarse job: says when it begins and ends."""
    _write("job", "begin")
    time.sleep(seconds)
    _write("job", "end")


def _trace(slot: str) -> float | None:
    _write(slot, "pass")
    return None if os.environ.get("DUMMY_QUIET") else PASS_EVERY


def _write(name: str, what: str) -> None:
    with open(resident.path(f"trace-{name}"), "a") as trace:
        trace.write(f"{time.monotonic():.6f} {os.getpid()} {what}\n")


def passes(run_dir: Path, slot: str) -> list[tuple[float, int]]:
    """(monotonic instant, pid) of each pass so far."""
    try:
        lines = (run_dir / f"trace-{slot}").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(float(at), int(pid)) for at, pid, _what in (line.split() for line in lines)]


def longest_gap(run_dir: Path, slot: str, since: float) -> float:
    """The longest time between two passes after `since`, up to now."""
    instants = [since, *(at for at, _pid in passes(run_dir, slot) if at > since), time.monotonic()]
    return max(b - a for a, b in itertools.pairwise(instants))
