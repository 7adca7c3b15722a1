"""Shows that each check can fail: doctored ledgers, each with one thing wrong, and the verdict must name exactly that."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

from .ledger import Arrival, Ledger, Named
from .verdict import Kill, Verdict, judge, silences


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
    checks += [("the ledger keeps whole bodies only", _ledger()), ("the switch kills at a site and lists it", _switch())]
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
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ledger.url, body.encode(), timeout=5).close()
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


def _switch() -> bool:
    """A process that posts five times is killed before the third answer is read: three pages are in the ledger, and four sites are listed."""
    ledger = Ledger(0.0, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sites").mkdir()
        (folder / "who").mkdir()
        environment = os.environ | {
            "CHAOS_DIR": name, "CHAOS_ROOT": name, "CHAOS_LEDGER_PORT": str(ledger.port), "PYTHONPATH": str(Path(__file__).parent / "switch"),
        }  # fmt: skip
        (folder / "plan.json").write_text(json.dumps({"id": 7, "site": "after send | start | ledger", "n": 3}))
        try:
            ended = subprocess.run([sys.executable, "-c", CHILD, str(ledger.port), json.dumps(BODY)], env=environment, timeout=20)
            arrived = threading.Event()
            for _ in range(100):
                if len(ledger.arrivals) >= 3 or arrived.wait(0.02):
                    break
            sites = {path.read_text() for path in (folder / "sites").iterdir()}
            steps = {f"{step} | start | ledger" for step in ("before send", "amid send", "after send", "after answer")}
            fired = list(folder.glob("fired.7.*"))
            return ended.returncode == -signal.SIGKILL and len(ledger.arrivals) == 3 and sites == steps and len(fired) == 1
        finally:
            ledger.close()
