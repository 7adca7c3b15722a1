"""What the ledger proves: pure functions of what was accepted, what arrived, what was killed and what was acknowledged.

A message is known by its delivery. Whatever comes a second time must say so and must have a kill between its two arrivals."""

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .ledger import PAGES, Arrival
from .matrix import ITSELF

EARLY = 0.5  # a process that killed itself after its request left did so before the ledger had read all of it
# So long after a kill its work goes on: a tree that is replaced ends 5 s after the new one stands in line, with what it has out by then; and
# what stood still before its request may send it while the database, which should hear of it, is still down.
AFTERMATH = 15.0
AFTER_ACK = 2.0  # a request that had started when the acknowledgement was answered is here by then
LOOP = 20.0  # the demo rule's loops are 30 s apart
RECOVERY = 2.0  # seconds until the next page after a kill of a process of ours
CEILING = 10.0  # and what no kill may cost where the machine was calm, whether or not times are judged


WEB = ("web worker", "web parent", "whole web")


@dataclass(slots=True)
class Kill:
    """`kind` is a kind of process, or "itself": whoever passed `site`. Where there is a `site`, somebody stood there while it was killed.

    `alone`: everything was whole before it and was let become whole again after it."""

    at: float
    kind: str
    site: str = ""
    alone: bool = True
    until: float = 0.0  # when the next one was
    ours: bool = True  # a process of the product, as opposed to PostgreSQL or the machine

    @property
    def name(self) -> str:
        return f"{self.kind} at {self.site}" if self.site else self.kind

    def spans(self, first: float, second: float) -> bool:
        """Whether it, or what it led to, was between two arrivals."""
        return first <= self.at + (0.0 if self.kind in WEB else AFTERMATH) + EARLY and self.at <= second

    def may_repeat(self) -> bool:
        """Whether it can end a process that has requests out, or the record of them."""
        if self.kind == ITSELF:
            return "| work |" in self.site
        return self.kind in (
            "busy drain",
            "the supervisor's own",
            "whole tree",
            "supervisor, web and tree",
            "postgres backend",
            "postmaster",
            "machine",
        )


@dataclass(slots=True)
class Verdict:
    lost: list[str] = field(default_factory=list)
    explained: dict[str, str] = field(default_factory=dict)  # not paged, and the timeline says why
    unlabelled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # labels without a reason, more repeats than kills
    after_ack: list[str] = field(default_factory=list)  # pages that came well after the acknowledgement was answered
    labelled: int = 0
    repeats: dict[int, int] = field(default_factory=dict)  # index of the kill -> repeats it caused at the one address
    unexpected: list[str] = field(default_factory=list)  # labelled repeats after a kill that should not cause any
    paged: int = 0
    delays: list[float] = field(default_factory=list)  # accepted -> first arrival, sorted

    @property
    def good(self) -> bool:
        return not (self.lost or self.unlabelled or self.wrong or self.after_ack)


def judge(
    accepted: Mapping[str, float], arrivals: Sequence[Arrival], kills: Sequence[Kill], acknowledged: Mapping[str, float],
    why_not: Callable[[str], str],
) -> Verdict:  # fmt: skip
    """`accepted`: key -> instant of the 200. `kills` in order of time. `why_not(key)` asks the product's timeline, "" when it says nothing."""
    verdict = Verdict()
    _paged(verdict, accepted, arrivals, why_not)
    _repeats(verdict, arrivals, kills)
    _twice(verdict, arrivals)
    for arrival in arrivals:
        for one in arrival.incidents:
            if one.event in PAGES and arrival.at > acknowledged.get(one.id, float("inf")) + AFTER_ACK:
                verdict.after_ack.append(
                    f"{one.event} for {one.title} came {arrival.at - acknowledged[one.id]:.1f} s after its acknowledgement was answered"
                )
    return verdict


def _paged(verdict: Verdict, accepted: Mapping[str, float], arrivals: Sequence[Arrival], why_not: Callable[[str], str]) -> None:
    first: dict[str, float] = {}
    for arrival in arrivals:
        for one in arrival.incidents:
            if one.event in PAGES:
                first.setdefault(one.title, arrival.at)
    for key, at in accepted.items():
        if key in first:
            verdict.paged += 1
            verdict.delays.append(first[key] - at)
        elif reason := why_not(key):
            verdict.explained[key] = reason
        else:
            verdict.lost.append(key)
    verdict.delays.sort()


def _repeats(verdict: Verdict, arrivals: Sequence[Arrival], kills: Sequence[Kill]) -> None:
    by_delivery: defaultdict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        by_delivery[arrival.delivery].append(arrival)
    for delivery, came in by_delivery.items():
        if came[0].possible_repeat and (came[0].attempt < 2 or not any(kill.at < came[0].at for kill in kills)):
            verdict.wrong.append(
                f"delivery {delivery} is called a possible repeat at attempt {came[0].attempt} and nothing was there to repeat"
            )
        told: set[str] = {one.id for one in came[0].incidents}
        for before, again in itertools.pairwise(came):
            what = (
                f"delivery {delivery} ({again.event}, attempt {again.attempt} after {before.attempt}, {again.at - before.at:.2f} s later)"
            )
            silent = [one.title for one in again.incidents if one.id in told and not one.possible_repeat]
            told |= {one.id for one in again.incidents}
            if not again.possible_repeat or silent or again.attempt < 2:
                verdict.unlabelled.append(f"{what} came again without saying so")
                continue
            if again.attempt <= before.attempt:
                verdict.unlabelled.append(f"{what} came again under the same number")
                continue
            verdict.labelled += 1
            between = [index for index, kill in enumerate(kills) if kill.spans(before.at, again.at)]
            if not between:
                verdict.wrong.append(f"{what} came again, and nothing was killed between")
                continue
            cause = next((index for index in reversed(between) if kills[index].may_repeat()), between[-1])
            verdict.repeats[cause] = verdict.repeats.get(cause, 0) + 1
            if not kills[cause].may_repeat():
                verdict.unexpected.append(f"{what} after a kill of {kills[cause].name}")
        most = sum(kill.spans(came[0].at, came[-1].at) for kill in kills)
        if len(came) - 1 > most:
            verdict.wrong.append(f"delivery {delivery} came {len(came)} times with {most} kills between")


def _twice(verdict: Verdict, arrivals: Sequence[Arrival]) -> None:
    """One occasion told by two deliveries is a repeat that no label could mark."""
    last: dict[tuple[str, str], tuple[str, float]] = {}
    seen: set[tuple[str, str, str]] = set()
    incidents: defaultdict[str, set[str]] = defaultdict(set)
    for arrival in arrivals:
        for one in arrival.incidents:
            incidents[one.title].add(one.id)
            if (one.id, one.event, arrival.delivery) in seen:
                continue  # a repeat of its own, judged by its label
            seen.add((one.id, one.event, arrival.delivery))
            earlier = last.get((one.id, one.event))
            last[one.id, one.event] = (arrival.delivery, arrival.at)
            if earlier is None:
                continue
            if one.event in ("triggered", "acknowledged", "closed"):
                verdict.unlabelled.append(f"{one.event} for {one.title} came by two deliveries, {earlier[0]} and {arrival.delivery}")
            elif one.event == "refire" and arrival.at - earlier[1] < LOOP:
                verdict.unlabelled.append(f"two loops of {one.title} came {arrival.at - earlier[1]:.1f} s apart")
    verdict.unlabelled += [f"alert {title} became {len(ids)} incidents" for title, ids in incidents.items() if len(ids) > 1]


def silences(arrivals: Sequence[Arrival], begin: float, end: float) -> tuple[float, float]:
    """(seconds from `begin` to the next first page, longest time without one until `end`)."""
    points = [
        arrival.at for arrival in arrivals if begin < arrival.at <= end and arrival.event == "triggered" and not arrival.possible_repeat
    ]
    gaps = [later - earlier for earlier, later in zip([begin, *points], [*points, end], strict=True)]
    return gaps[0], max(gaps)


def times(silent: Sequence[float]) -> tuple[list[str], list[str]]:
    """(what fails a run on a calm machine in any case, what fails one that judges times) of the longest silence after each kill."""
    if not silent:
        return [], []
    always, strict = [], []
    if (median := statistics.median(silent)) >= RECOVERY:
        always.append(f"slow: half of the kills were followed by {median:.2f} s or more without a page")
    if (longest := max(silent)) >= CEILING:
        always.append(f"slow: a kill was followed by {longest:.2f} s without a page")
    late = sum(wait >= RECOVERY for wait in silent)
    # A shared machine has its own hiccups: one kill in fifty may be slower than the goal before the run fails.
    if late > max(1, len(silent) // 50):
        strict.append(f"slow: {late} of {len(silent)} kills of our own processes were followed by {RECOVERY:g} s or more without a page")
    return always, strict
