"""Shows that each check can fail: doctored ledgers, each with one thing wrong, and the verdict must name exactly that."""

import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from .ledger import Arrival, Ledger, Named
from .matrix import COLUMNS, Matrix
from .verdict import Kill, Verdict, judge, silences, times


def _arrival(at: float, number: int, *, attempt: int = 1, repeat: bool = False, event: str = "triggered", delivery: str = "") -> Arrival:
    named = Named(f"incident-{number}", f"key-{number}", event, repeat)
    return Arrival(at, delivery or f"delivery-{number}-{event}", attempt, repeat, event, (named,))


ACCEPTED = {f"key-{number}": number / 10 for number in range(20)}
GOOD = [_arrival(number / 10 + 0.02, number) for number in range(20)]
DRAIN = Kill(1.03, "busy drain")
AGAIN = _arrival(1.5, 10, attempt=2, repeat=True)  # the page of 1.02 once more, after the kill at 1.03


def _verdict(
    arrivals: list[Arrival], kills: list[Kill], acknowledged: dict[str, float] | None = None, why: Callable[[str], str] = lambda key: ""
) -> Verdict:
    return judge(ACCEPTED, sorted(arrivals, key=lambda arrival: arrival.at), kills, acknowledged or {}, why)


def _same_number() -> list[Arrival]:
    return [*GOOD, AGAIN, dataclasses.replace(AGAIN, at=1.6)]


CASES: list[tuple[str, Callable[[], Verdict], Callable[[Verdict], bool]]] = [
    ("a clean ledger", lambda: _verdict(GOOD, []), lambda v: v.good and v.paged == 20 and v.labelled == 0),
    ("a labelled repeat after a kill", lambda: _verdict([*GOOD, AGAIN], [DRAIN]), lambda v: v.good and v.labelled == 1 and v.repeats == {0: 1}),
    ("a lost page", lambda: _verdict(GOOD[1:], []), lambda v: v.lost == ["key-0"]),
    ("a page that the timeline explains", lambda: _verdict(GOOD[1:], [], why=lambda key: "failed: said no"), lambda v: v.good and len(v.explained) == 1),
    ("an unlabelled repeat", lambda: _verdict([*GOOD, _arrival(1.5, 10, attempt=2)], [DRAIN]), lambda v: len(v.unlabelled) == 1),
    ("a repeat labelled as attempt 1", lambda: _verdict([*GOOD, _arrival(1.5, 10, repeat=True)], [DRAIN]), lambda v: len(v.unlabelled) == 1),
    (
        "a bundle that labels itself and not the incident",
        lambda: _verdict([*GOOD, dataclasses.replace(AGAIN, incidents=GOOD[10].incidents)], [DRAIN]),
        lambda v: len(v.unlabelled) == 1,
    ),
    ("one attempt twice", lambda: _verdict(_same_number(), [DRAIN, Kill(1.55, "busy drain")]), lambda v: len(v.unlabelled) == 1),
    ("a repeat without a kill", lambda: _verdict([*GOOD, AGAIN], []), lambda v: not v.unlabelled and len(v.wrong) == 2),
    ("a repeat in the aftermath of a kill", lambda: _verdict([*GOOD, AGAIN], [Kill(0.1, "sentinel")]), lambda v: v.good and len(v.unexpected) == 1),
    (
        "a repeat long after a kill",
        lambda: _verdict([*GOOD, _arrival(20, 3, event="refire"), _arrival(21, 3, attempt=2, repeat=True, event="refire")], [DRAIN]),
        lambda v: any("nothing was killed between" in text for text in v.wrong),
    ),
    (
        "two repeats after one kill",
        lambda: _verdict([*GOOD, AGAIN, dataclasses.replace(AGAIN, at=1.7, attempt=3)], [DRAIN]),
        lambda v: any("3 times with 1 kill" in text for text in v.wrong),
    ),
    ("a label on a first attempt", lambda: _verdict([*GOOD[:-1], _arrival(1.92, 19, repeat=True)], [DRAIN]), lambda v: len(v.wrong) == 1),
    ("a repeat after a kill of the web", lambda: _verdict([*GOOD, AGAIN], [Kill(1.03, "web worker")]), lambda v: v.good and len(v.unexpected) == 1),
    ("one incident paged by two deliveries", lambda: _verdict([*GOOD, _arrival(1.5, 10, delivery="other")], [DRAIN]), lambda v: len(v.unlabelled) == 1),
    (
        "one alert that became two incidents",
        lambda: _verdict([*GOOD, dataclasses.replace(_arrival(1.5, 99), incidents=(Named("incident-99", "key-10", "triggered", False),))], [DRAIN]),
        lambda v: any("2 incidents" in text for text in v.unlabelled),
    ),
    (
        "two loops at once",
        lambda: _verdict([*GOOD, _arrival(31, 3, event="refire", delivery="a"), _arrival(32, 3, event="refire", delivery="b")], []),
        lambda v: any("two loops" in text for text in v.unlabelled),
    ),
    ("loops 30 s apart", lambda: _verdict([*GOOD, _arrival(31, 3, event="refire", delivery="a"), _arrival(61, 3, event="refire", delivery="b")], []), lambda v: v.good),
    ("a page after its acknowledgement", lambda: _verdict([*GOOD, _arrival(31, 3, event="refire")], [], {"incident-3": 5.0}), lambda v: len(v.after_ack) == 1),
]  # fmt: skip


def run() -> int:
    """0 when every check finds what was doctored; prints each."""
    failed = 0
    checks: list[tuple[str, bool]] = [(name, fits(make())) for name, make, fits in CASES]
    gaps = silences([_arrival(1.0, 1), _arrival(1.1, 2), _arrival(3.0, 3), _arrival(3.2, 4, repeat=True)], 0.9, 3.5)
    checks.append(("the longest silence", [round(gap, 6) for gap in gaps] == [0.1, 1.9]))
    checks += [
        ("slow recoveries, and the ceiling of all", _times()),
        ("every cell of sites x kinds in its turn", _matrix()),
        ("the ledger keeps whole bodies only", _ledger()),
        ("the switch kills at a site and lists it", _switch()),
        ("the switch stands still at a site until it is told to go on", _halt()),
    ]
    for name, good in checks:
        print(f"{'ok' if good else 'FAILED':<7}{name}")
        failed += not good
    return 1 if failed else 0


BODY = {
    "delivery_id": "d", "attempt": 1, "possible_repeat": False, "event": "triggered",
    "incidents": [{"id": "i", "title": "t", "severity": "Critical", "event": "triggered", "possible_repeat": False}],
}  # fmt: skip


def _ledger() -> bool:
    ledger = Ledger(0.0, 1)
    try:
        for body in (json.dumps(BODY), '{"title": "something else"}'):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ledger.url, body.encode(), timeout=60).close()
        return len(ledger.arrivals) == 1 and len(ledger.strange) == 1
    finally:
        ledger.close()


CHILD = """
import http.client, sys
for _ in range(5):
    wire = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    wire.request("POST", "/page", sys.argv[2])
    wire.getresponse().read()
    wire.close()
"""


def _times() -> bool:
    quick, one_late, many_late = times([0.4] * 100), times([0.4] * 98 + [3.0] * 2), times([0.4] * 97 + [3.0] * 3)
    fine = [len(sort) for outcome in (quick, one_late, many_late) for sort in outcome] == [0, 0, 0, 0, 0, 1]
    return fine and len(times([0.4] * 99 + [10.5])[0]) == 1 and len(times([2.5] * 3)[0]) == 1 and times([]) == ([], [])


def _matrix() -> bool:
    """Two sites and a third that nobody passes; the third is given up, the cells of the others fill evenly, and what was not visited is counted."""
    matrix = Matrix(random.Random(1))
    sites = ["before commit | work | a:b:1", "after commit | web | c:d:2", "after commit | work | never:3", "after commit | start | e:4"]
    for _ in range(2 * 2 * len(COLUMNS) + 2):
        cell = matrix.next(sites)
        assert cell is not None
        (matrix.misses if "never" in cell[0] else matrix.visits)[cell] += 1
    even = [matrix.visits[site, column] for site in sites[:2] for column in COLUMNS]
    said = matrix.table(sites)[-1]
    empty = f"{len(COLUMNS) + 1} cells were not visited"
    return set(even) == {2} and matrix.next_start(sites) == sites[3] and f"{3 * len(COLUMNS) + 1} cells" in said and said.endswith(empty)


def _switch() -> bool:
    """A process that posts five times is killed before the third answer is read: three pages are in the ledger, and four sites are listed."""
    with _staged(halt=0.0) as (folder, ledger, process):
        process.wait(120)
        for _ in range(3000):
            if len(ledger.arrivals) >= 3:
                break
            time.sleep(0.02)
        sites = {path.read_text() for path in (folder / "sites").iterdir()}
        steps = {f"{step} | start | ledger" for step in ("before send", "amid send", "after send", "after answer")}
        fired = list(folder.glob("fired.7.*"))
        return process.returncode == -signal.SIGKILL and len(ledger.arrivals) == 3 and sites == steps and len(fired) == 1


def _halt() -> bool:
    """The same process stands still there, goes on when it is told to, and (the second time) when nobody tells it."""
    with _staged(halt=300.0) as (folder, ledger, process):
        for _ in range(3000):
            if list(folder.glob(f"fired.7.{process.pid}.*")) and len(ledger.arrivals) == 3:
                break
            time.sleep(0.02)
        time.sleep(0.3)
        stood = process.poll() is None and len(ledger.arrivals) == 3
        (folder / "go.7").touch()
        told = process.wait(120) == 0 and len(ledger.arrivals) == 5
    with _staged(halt=0.3) as (_folder, ledger, process):
        return stood and told and process.wait(120) == 0 and len(ledger.arrivals) == 5


@contextlib.contextmanager
def _staged(halt: float) -> Iterator[tuple[Path, Ledger, subprocess.Popen[bytes]]]:
    """A process that posts five times, with a plan for it after its third request has left."""
    ledger = Ledger(0.0, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sites").mkdir()
        (folder / "who").mkdir()
        environment = os.environ | {
            "CHAOS_DIR": name, "CHAOS_ROOT": name, "CHAOS_LEDGER_PORT": str(ledger.port), "PYTHONPATH": str(Path(__file__).parent / "switch"),
        }  # fmt: skip
        (folder / "plan.json").write_text(json.dumps({"id": 7, "site": "after send | start | ledger", "n": 3, "halt": halt}))
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(ledger.port), json.dumps(BODY)], env=environment)
        try:
            yield folder, ledger, process
        finally:
            process.kill()
            process.wait()
            ledger.close()
