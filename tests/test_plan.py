"""The timing rules of escalation: each rule as a short play, then random lives against a naive second-by-second simulator."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from escalation import plan
from escalation.plan import DELAY, Facts, Layer, Page, Rule, State, Step

ZERO = datetime(2026, 3, 1, 8, 0, tzinfo=UTC)

Paged = tuple[int, int, str, int, str]  # second, layer, fire, repeat, why
Action = tuple[str, int]  # what a person, the source or a provider does, and its number


def at(second: float) -> datetime:
    return ZERO + timedelta(seconds=second)


def second(instant: datetime) -> int:
    return int((instant - ZERO).total_seconds())


class Desk:
    """The engine's part, without a database: looks at the run when `due` says so and never else, and does what `step` says."""

    def __init__(self, rule: Rule, unreachable: frozenset[int] = frozenset()) -> None:
        self.rule, self.unreachable = rule, unreachable
        self.state = plan.begin(rule, ZERO)
        self.facts = Facts("Triggered")
        self.pages: list[Paged] = []
        self.ends: list[tuple[int, str]] = []
        self.outages: list[tuple[int, int]] = []
        self.steps: list[Step] = []

    def act(self, now: int, what: str, number: int = 0) -> None:
        if self.facts.progress == "Closed":
            if what == "reopen":
                self.facts, self.state = Facts("Triggered"), plan.begin(self.rule, at(now), "reopen")
            return
        match what:
            case "ack":
                self.facts = replace(self.facts, progress="Processing")
            case "close":
                self.facts = Facts("Closed")
            case "unack" if self.facts.progress == "Processing":
                self.facts, self.state = Facts("Triggered"), plan.restart_layer(self.rule, self.state, at(now), "unacknowledged")
            case "snooze" if self.state.due is not None:
                until = at(now + number)
                self.facts, self.state = Facts("Processing", until), plan.pause(self.state, until)
            case "escalate":
                self.facts, self.state = (
                    Facts("Triggered"),
                    plan.escalate_to(self.rule, self.state, number % len(self.rule.layers), at(now)),
                )
            case "severity":
                self.state = plan.repage(self.state, at(now))
            case "failed":
                self.take(now, plan.failed_later(self.rule, self.state, number % len(self.rule.layers), self.facts, at(now)))

    def tick(self, now: int) -> None:
        while self.state.due is not None and self.state.due <= at(now):
            done = plan.step(self.rule, self.state, self.facts, at(now))
            self.steps.append(done)
            self.take(now, done)

    def take(self, now: int, done: Step) -> None:
        if done.woke:
            self.facts = Facts("Triggered")
        if done.outage:
            self.outages.append((second(done.outage[0]), second(done.outage[1])))
        while done.page is not None and done.page.layer in self.unreachable:
            done = plan.unreachable(self.rule, done.state, self.facts, at(now))
        if done.page is not None:
            self.pages.append((now, done.page.layer, done.page.fire, done.page.repeat, done.page.why))
        if done.end is not None:
            self.ends.append((now, done.end))
        self.state = done.state


def live(
    desk: Any, until: int, acts: dict[int, list[Action]] | None = None, down: list[tuple[int, int]] | None = None, start: int = 0
) -> None:
    """Second by second; in [a, b) of `down` nobody looks at runs."""
    for now in range(start, until + 1):
        for what, number in (acts or {}).get(now, []):
            desk.act(now, what, number)
        if not any(a <= now < b for a, b in down or []):
            desk.tick(now)


def play(rule: Rule, until: int, *, unreachable: frozenset[int] = frozenset(), down: Any = None, **acts: Any) -> Desk:
    """`play(rule, 900, t120="ack", t300=("snooze", 60))`"""
    desk = Desk(rule, unreachable)
    said = {int(name[1:]): [(what, 0) if isinstance(what, str) else what] for name, what in acts.items()}
    live(desk, until, said, down)
    return desk


def told(desk: Desk) -> list[str]:
    return [f"{now} L{layer} {why}{repeat or ''}" for now, layer, _fire, repeat, why in desk.pages]


def rule(*layers: Layer, delay: float = 0) -> Rule:
    return Rule(delay, layers)


TWO = rule(Layer(300, False, 60, 2), Layer(600, False, 120, 1))


# ---------------------------------------------------------------- rules as plays


def test_loops_then_the_next_layer_then_nobody_is_left() -> None:
    desk = play(TWO, 2000)
    assert told(desk) == ["0 L0 first", "60 L0 loop1", "120 L0 loop2", "300 L1 escalated", "420 L1 loop1"]
    assert desk.ends == [(900, "exhausted")]
    assert [p[2] for p in desk.pages] == ["fire", "refire", "refire", "fire", "refire"]
    assert desk.outages == []


@pytest.mark.parametrize(
    ("layer", "pages", "end"),
    [
        (Layer(300, False, 600, 0), [0], 300),
        (Layer(300, False, 60, 2), [0, 60, 120], 300),
        (Layer(300, False, 100, 3), [0, 100, 200, 300], 400),  # the last layer's window cuts no loop
        (Layer(0, False, 60, 2), [0, 60, 120], 180),
        (Layer(0, False, 60, 0), [0], 60),
    ],
)
def test_the_last_layer_lasts_for_its_window_and_for_all_its_loops(layer: Layer, pages: list[int], end: int) -> None:
    desk = play(rule(layer), 2000)
    assert [p[0] for p in desk.pages] == pages
    assert desk.ends == [(end, "exhausted")]


@pytest.mark.parametrize(
    ("window", "step", "times", "pages"),
    [
        (300, 100, 6, ["0 L0 first", "100 L0 loop1", "200 L0 loop2", "300 L1 escalated"]),  # same instant: the next layer wins
        (301, 100, 6, ["0 L0 first", "100 L0 loop1", "200 L0 loop2", "300 L0 loop3", "301 L1 escalated"]),
        (250, 100, 6, ["0 L0 first", "100 L0 loop1", "200 L0 loop2", "250 L1 escalated"]),
        (0, 100, 6, ["0 L0 first", "0 L1 escalated"]),
    ],
)
def test_the_window_of_a_layer_cuts_its_loops(window: float, step: float, times: int, pages: list[str]) -> None:
    assert told(play(rule(Layer(window, False, step, times), Layer(600, False, 600, 0)), 500)) == pages


def test_layers_with_window_zero_are_paged_in_one_second_but_not_in_one_pass() -> None:
    both = rule(Layer(0), Layer(600))
    first = plan.step(both, plan.begin(both, ZERO), Facts("Triggered"), ZERO)
    assert first.page == Page(0, "fire", 0, "first") and first.state.due == ZERO
    assert plan.step(both, first.state, Facts("Triggered"), ZERO).page == Page(1, "fire", 0, "escalated")


def test_delay_window() -> None:
    delayed = rule(Layer(300), delay=45)
    assert told(play(delayed, 200)) == ["45 L0 first"]
    assert play(delayed, 1000, t44="close").pages == []
    assert play(delayed, 1000, t44="ack").ends == [(45, "acknowledged")]
    assert told(play(delayed, 200, t10="ack", t100="unack")) == ["100 L0 unacknowledged"]
    assert told(play(delayed, 200, t10=("snooze", 50))) == ["60 L0 wake"]
    assert told(play(delayed, 40, t30=("escalate", 0))) == ["30 L0 manual"]
    assert told(play(delayed, 200, t30="severity")) == ["45 L0 first"]  # the first page goes by the new severity anyway


def test_acknowledged_stops_and_says_so() -> None:
    desk = play(TWO, 2000, t61="ack")
    assert told(desk) == ["0 L0 first", "60 L0 loop1"]
    assert desk.ends == [(120, "acknowledged")]


@pytest.mark.parametrize("moment", [0, 59, 60, 299, 300, 500])
def test_closed_stops_everything(moment: int) -> None:
    forced = rule(Layer(300, True, 60, 2), Layer(600, True, 120, 1))
    acts: dict[str, Any] = {f"t{moment}": "close"}
    desk = play(forced, 3000, **acts)
    assert all(p[0] < moment for p in desk.pages)
    assert [reason for _, reason in desk.ends] == ["closed"]


def test_a_forced_layer_loops_and_escalates_when_acknowledged_and_the_next_one_obeys_its_own_setting() -> None:
    mixed = rule(Layer(300, True, 100, 1), Layer(300, False, 100, 2), Layer(300))
    desk = play(mixed, 3000, t10="ack")
    assert told(desk) == ["0 L0 first", "100 L0 loop1", "300 L1 escalated"]
    assert desk.ends == [(400, "acknowledged")]
    assert told(play(rule(Layer(300, True), delay=45), 100, t10="ack")) == ["45 L0 first"]


def test_the_catch_all_is_not_told_of_a_forced_rule_that_ran_out_when_somebody_had_answered() -> None:
    assert play(rule(Layer(300, True)), 1000, t10="ack").ends == [(300, "acknowledged")]
    assert play(rule(Layer(300, True)), 1000).ends == [(300, "exhausted")]


def test_nor_is_it_told_where_the_layer_behind_an_acknowledged_one_reaches_nobody() -> None:
    forced = rule(Layer(300, True), Layer(300))
    assert play(forced, 1000, unreachable=frozenset({1}), t10="ack").ends == [(300, "acknowledged")]
    assert play(forced, 1000, t10="ack", t400=("failed", 1)).ends == [(600, "acknowledged")]


def test_snooze_pauses_also_a_forced_layer_and_its_end_starts_the_layer_again() -> None:
    for force in (False, True):
        snoozed = rule(Layer(300, force, 60, 2), Layer(600, force, 120, 1))
        desk = play(snoozed, 1100, t70=("snooze", 530))
        assert told(desk) == [
            "0 L0 first",
            "60 L0 loop1",
            "600 L0 wake",
            "660 L0 loop1",
            "720 L0 loop2",
            "900 L1 escalated",
            "1020 L1 loop1",
        ]
        assert desk.facts == Facts("Triggered")


def test_a_snooze_that_was_made_longer() -> None:
    assert told(play(TWO, 500, t10=("snooze", 100), t90=("snooze", 310))) == ["0 L0 first", "400 L0 wake", "460 L0 loop1"]


def test_a_snooze_that_ended_while_the_platform_was_down() -> None:
    desk = play(TWO, 5100, t10=("snooze", 100), down=[(50, 5000)])
    assert told(desk) == ["0 L0 first", "5000 L0 wake", "5060 L0 loop1"]
    assert desk.outages == []  # nothing of the rule was late: the snooze's end is wall clock


def test_a_snooze_wakes_a_run_once() -> None:
    """Who acknowledges after the wake is not woken by the old snooze, even where its time still stands on the incident."""
    woken = plan.restart_layer(TWO, State(0, ZERO, 1, at(60)), at(100), "wake")
    assert plan.step(TWO, woken, Facts("Processing", at(100)), at(100)).end == "acknowledged"


def test_unacknowledge_starts_the_current_layer_again() -> None:
    assert told(play(TWO, 800, t310="ack", t500="unack"))[3:] == ["300 L1 escalated", "500 L1 unacknowledged", "620 L1 loop1"]


def test_manual_escalation_jumps_and_goes_on_from_there() -> None:
    three = rule(Layer(300), Layer(300), Layer(300, False, 100, 1))
    assert told(play(three, 2000, t10=("escalate", 2))) == ["0 L0 first", "10 L2 manual", "110 L2 loop1"]
    assert told(play(three, 700, t10="ack", t20=("escalate", 1), t100="ack")) == ["0 L0 first", "20 L1 manual"]
    with pytest.raises(IndexError, match="layer 3 of 3"):
        plan.escalate_to(three, plan.begin(three, ZERO), 3, ZERO)


def test_reopen_pages_at_once_without_the_delay_window() -> None:
    assert told(play(rule(Layer(300), delay=45), 200, t60="close", t100="reopen")) == ["45 L0 first", "100 L0 reopen"]


def test_a_risen_severity_pages_once_more_and_moves_nothing() -> None:
    desk = play(TWO, 420, t70="severity")
    assert told(desk) == ["0 L0 first", "60 L0 loop1", "70 L0 severity", "120 L0 loop2", "300 L1 escalated", "420 L1 loop1"]
    assert desk.pages[2][2] == "fire"
    assert told(play(TWO, 130, t60="severity")) == ["0 L0 first", "60 L0 loop1", "120 L0 loop2"]  # one page, not two in a second
    assert told(play(TWO, 310, t300="severity"))[2:] == ["120 L0 loop2", "300 L1 escalated"]
    assert told(play(TWO, 500, t70="ack", t80="severity")) == ["0 L0 first", "60 L0 loop1"]


def test_a_layer_nobody_can_be_reached_on_starts_the_next_one_now() -> None:
    three = rule(Layer(300), Layer(300), Layer(300))
    desk = play(three, 1000, unreachable=frozenset({0, 1}))
    assert told(desk) == ["0 L2 unreachable"] and desk.ends == [(300, "exhausted")]
    assert told(play(three, 1000, unreachable=frozenset({1}))) == ["0 L0 first", "300 L2 unreachable"]
    desk = play(three, 1000, unreachable=frozenset({0, 1, 2}))
    assert desk.pages == [] and desk.ends == [(0, "unreachable")]


def test_a_page_whose_every_fallback_failed_later() -> None:
    assert told(play(TWO, 100, t20=("failed", 0))) == ["0 L0 first", "20 L1 unreachable"]
    assert play(TWO, 2000, t400=("failed", 1)).ends == [(400, "unreachable")]
    assert told(play(TWO, 100, t20=("failed", 1))) == ["0 L0 first", "60 L0 loop1"]  # not the layer the run is in
    assert told(play(TWO, 100, t10="ack", t20=("failed", 0))) == ["0 L0 first"]
    assert told(play(TWO, 100, t10="close", t20=("failed", 0))) == ["0 L0 first"]
    assert told(play(TWO, 200, t10=("snooze", 100), t20=("failed", 0))) == ["0 L0 first", "110 L0 wake", "170 L0 loop1"]


def test_lateness_under_a_minute_does_not_add_up() -> None:
    steady = rule(Layer(1000, False, 100, 4), Layer(600))
    late = [(100, 155), (200, 201), (300, 359), (1000, 1060)]
    assert [p[0] for p in play(steady, 1700, down=late).pages] == [0, 155, 201, 359, 400, 1060]
    assert play(steady, 1700, down=late).ends == [(1600, "exhausted")]
    assert play(steady, 1700, down=late).outages == []


def test_after_an_outage_missed_loops_are_one_page_and_the_layer_keeps_its_window() -> None:
    desk = play(TWO, 9000, down=[(50, 7260)])
    #           loop 1 was due at 60 and comes 7200 s late: everything after it moves by that
    assert told(desk) == ["0 L0 first", "7260 L0 loop1", "7320 L0 loop2", "7500 L1 escalated", "7620 L1 loop1"]
    assert desk.outages == [(60, 7260)]
    assert desk.ends == [(8100, "exhausted")]


def test_after_an_outage_over_all_layers_one_layer_is_called() -> None:
    chain = rule(Layer(300), Layer(300), Layer(300))
    desk = play(chain, 9000, down=[(100, 7500)])
    assert told(desk) == ["0 L0 first", "7500 L1 escalated", "7800 L2 escalated"]
    assert desk.outages == [(300, 7500)]


def test_a_delay_window_that_ended_in_an_outage_ends_now() -> None:
    delayed = rule(Layer(300, False, 60, 1), Layer(300), delay=45)
    desk = play(delayed, 4000, down=[(1, 3000)])
    assert told(desk) == ["3000 L0 first", "3060 L0 loop1", "3300 L1 escalated"]
    assert desk.outages == [(45, 3000)]
    ended = play(rule(Layer(300)), 4000, down=[(1, 3000)])
    assert ended.ends == [(3000, "exhausted")] and ended.outages == [(300, 3000)]


def test_sixty_seconds_is_not_an_outage_and_sixty_one_is() -> None:
    assert [p[0] for p in play(TWO, 130, down=[(1, 120)]).pages] == [0, 120, 120]
    assert [p[0] for p in play(TWO, 190, down=[(1, 121)]).pages] == [0, 121, 181]


def test_a_severity_that_rose_in_an_outage_is_one_page_for_one_layer() -> None:
    single = rule(Layer(300), Layer(300))
    desk = play(single, 5000, t100="severity", down=[(50, 4000)])
    assert told(desk) == ["0 L0 first", "4000 L0 severity", "4200 L1 escalated"]
    assert told(play(single, 5000, t100="severity", t200="severity", down=[(50, 4000)])) == told(desk)
    assert told(play(TWO, 4010, t100="severity", down=[(50, 4000)])) == ["0 L0 first", "4000 L0 loop1"]


def test_acknowledged_or_closed_in_an_outage_pages_nobody() -> None:
    assert told(play(TWO, 9000, t100="ack", down=[(50, 7260)])) == ["0 L0 first"]
    assert told(play(TWO, 9000, t100="close", down=[(50, 7260)])) == ["0 L0 first"]


def test_a_pushed_back_look_is_measured_by_the_plan_and_not_by_the_look() -> None:
    """The engine may look later (every channel is down, a bad row): the page is as late as it is."""
    state = replace(State(0, ZERO, 1, at(60)), due=at(500))
    done = plan.step(TWO, state, Facts("Triggered"), at(500))
    assert done.page == Page(0, "refire", 1, "loop") and done.outage == (at(60), at(500)) and done.state.due == at(560)


def test_a_look_before_anything_is_due_changes_nothing() -> None:
    state = State(0, ZERO, 1, at(10))
    assert plan.step(TWO, state, Facts("Triggered"), at(10)) == Step(replace(state, due=at(60)))
    wanted = replace(state, repage_at=at(20))
    assert plan.step(TWO, wanted, Facts("Triggered"), at(10)) == Step(replace(wanted, due=at(20)))


def test_a_run_that_is_over_stays_over() -> None:
    for progress in ("Triggered", "Processing", "Closed"):
        over = State(0, ZERO, 1, None)
        assert plan.step(TWO, over, Facts(progress, at(5)), at(9000)) == Step(over)
        assert plan.repage(over, ZERO) == plan.pause(over, ZERO) == over


def test_catch_all() -> None:
    desk = play(plan.catch_all_rule(), 10_000)
    assert [p[0] for p in desk.pages] == [0, 600, 1200, 1800, 2400, 3000, 3600]
    assert desk.ends == [(4200, "exhausted")]


@pytest.mark.parametrize(
    ("page", "event"),
    [
        (Page(0, "fire", 0, "first"), "triggered"),
        (Page(1, "fire", 0, "wake"), "triggered"),
        (Page(0, "fire", 0, "reopen"), "triggered"),
        (Page(1, "fire", 0, "severity"), "triggered"),
        (Page(1, "fire", 0, "escalated"), "escalated"),
        (Page(1, "fire", 0, "unreachable"), "escalated"),
        (Page(2, "fire", 0, "manual"), "escalated"),
        (Page(0, "fire", 0, "manual"), "triggered"),
        (Page(2, "refire", 3, "loop"), "refire"),
    ],
)
def test_the_event_a_page_is_told_as(page: Page, event: str) -> None:
    assert page.event == event
    # Of a later layer the first page is the escalation: whoever chose the one or the other hears it.
    assert page.chosen == ({"refire"} if event == "refire" else {"triggered", "escalated"} if page.layer else {"triggered"})
    assert event in page.chosen


# ---------------------------------------------------------------- JSON


def test_a_state_survives_its_row() -> None:
    for state in (plan.begin(TWO, ZERO), State(1, at(0.000001), 3, None, "manual", at(0.5))):
        assert State.from_json(json.loads(json.dumps(state.to_json())), state.due) == state


def test_wire_units() -> None:
    body = {
        "aggr_window": 90,
        "template_id": "x",
        "layers": [{"escalate_window": 5, "force_escalate": True, "notify_step": 0.5, "max_times": 6, "target": {}}, {"max_times": None}],
    }
    read = Rule.from_json(body)
    assert read == Rule(90, (Layer(300, True, 30, 6), Layer(1800, False, 600, 0)))
    assert json.dumps(read.to_json()["layers"][0]) == '{"escalate_window": 5, "force_escalate": true, "notify_step": 0.5, "max_times": 6}'
    assert Rule.from_json(json.loads(json.dumps(read.to_json()))) == read


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "layers: at least one"),
        ({"layers": []}, "layers: at least one"),
        ({"layers": "ab"}, "layers: at least one"),
        ({"layers": [1]}, r"layers\[0\]: must be an object"),
        ({"layers": [{}], "aggr_window": -1}, "aggr_window: must be a number"),
        ({"layers": [{}, {"escalate_window": "5"}]}, r"layers\[1\].escalate_window: must be a number"),
        ({"layers": [{"notify_step": 0}]}, r"layers\[0\].notify_step: must be more than 0"),
        ({"layers": [{"max_times": 1.5}]}, r"layers\[0\].max_times: must be a whole number"),
        ({"layers": [{"max_times": True}]}, r"layers\[0\].max_times: must be a number"),
        ({"layers": [{"escalate_window": float("nan")}]}, "escalate_window: must be a number"),
    ],
)
def test_a_wrong_rule_names_the_field(body: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rule.from_json(body)


# ---------------------------------------------------------------- random lives against a naive simulator


@dataclass
class Naive:
    """The rules written down again, the slow way: a layer is a list of appointments made when it starts; no closed form, no `due`."""

    rule: Rule
    unreachable: frozenset[int]
    layer: int = DELAY
    appointments: list[list[Any]] = field(default_factory=list)  # [second, "page" | "loop" | "leave", number]
    why: str = "first"
    severity: int | None = None
    acked: bool = False
    closed: bool = False
    asleep_until: int | None = None
    over: bool = False
    pages: list[Paged] = field(default_factory=list)
    ends: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.appointments = [[int(self.rule.delay), "page", 0]]

    def start(self, layer: int, when: int, why: str) -> None:
        spec = self.rule.layers[layer]
        loops = [when + int(spec.notify_step) * n for n in range(1, spec.max_times + 1)]
        leave = when + int(spec.escalate_window)
        if layer < len(self.rule.layers) - 1:
            loops = [loop for loop in loops if loop < leave]
        elif max([when, *loops]) >= leave:
            leave = max([when, *loops]) + int(spec.notify_step)
        self.layer, self.why, self.over, self.severity, self.asleep_until = layer, why, False, None, None
        self.appointments = [[when, "page", 0], *([loop, "loop", n] for n, loop in enumerate(loops, 1)), [leave, "leave", 0]]

    def act(self, now: int, what: str, number: int = 0) -> None:
        layers = self.rule.layers
        if what == "reopen" and self.closed:
            self.closed = self.acked = False
            self.start(0, now, "reopen")
        elif self.closed:
            pass
        elif what == "close":
            self.closed = True
        elif what == "ack":
            self.acked = True
        elif what == "unack" and self.acked:
            self.acked = False
            self.start(max(self.layer, 0), now, "unacknowledged")
        elif what == "snooze" and not self.over:
            self.acked, self.asleep_until = True, now + number
        elif what == "escalate":
            self.acked = False
            self.start(number % len(layers), now, "manual")
        elif what == "severity" and not self.over and self.layer != DELAY and self.appointments[0][1] != "page":
            self.severity = now if self.severity is None else self.severity
        elif what == "failed" and not self.over and self.layer == number % len(layers) and self.appointments[0][1] != "page":
            answered = self.acked and (not layers[self.layer].force_escalate or self.asleep_until is not None)
            if not answered:
                self.next_reachable(now)

    def next_reachable(self, now: int) -> None:
        for layer in range(self.layer + 1, len(self.rule.layers)):
            if layer not in self.unreachable:
                self.start(layer, now, "unreachable")
                self.appointments.pop(0)
                self.pages.append((now, layer, "fire", 0, "unreachable"))
                return
        self.layer = len(self.rule.layers) - 1
        self.finish(now, "acknowledged" if self.acked else "unreachable")

    def finish(self, now: int, reason: str) -> None:
        self.over = True
        self.ends.append((now, reason))

    def move(self, when: int, now: int) -> None:
        """After an outage whatever is still to come moves by the delay."""
        if now - when > 60:
            for appointment in self.appointments:
                appointment[0] += now - when

    def tell(self, now: int, fire: str, repeat: int, why: str) -> None:
        if self.layer in self.unreachable:
            self.next_reachable(now)
        else:
            self.pages.append((now, self.layer, fire, repeat, why))

    def tick(self, now: int) -> None:
        while self.one_pass(now):
            pass

    def one_pass(self, now: int) -> bool:
        """True if something happened, so that the next pass looks again."""
        if self.over:
            return False
        if self.asleep_until is not None and not self.closed:
            if now < self.asleep_until:
                return False
            self.acked = False
            self.start(max(self.layer, 0), now, "wake")
        if self.severity is None and self.appointments[0][0] > now:
            return False
        if self.closed:
            self.finish(now, "closed")
            return True
        if self.acked and not self.rule.layers[max(self.layer, 0)].force_escalate:
            self.finish(now, "acknowledged")
            return True
        when, what, number = self.appointments[0]
        if self.severity is not None and (when > now or (what == "leave" and self.severity < when)):
            self.move(self.severity, now)
            self.severity = None
            self.tell(now, "fire", 0, "severity")
            return True
        self.severity = None
        if what == "loop":
            self.appointments.pop(0)
            self.move(when, now)
            self.tell(now, "refire", number, "loop")
        elif what == "page":
            self.start(max(self.layer, 0), now if now - when > 60 else when, self.why)
            self.appointments.pop(0)
            self.tell(now, "fire", 0, self.why)
        elif self.layer == len(self.rule.layers) - 1:
            self.finish(now, "acknowledged" if self.acked else "exhausted")
        else:
            self.start(self.layer + 1, now if now - when > 60 else when, "escalated")
            self.appointments.pop(0)
            self.tell(now, "fire", 0, "escalated")
        return True


layers = st.builds(
    Layer,
    escalate_window=st.sampled_from([0, 1, 20, 60, 61, 90, 120, 200, 300]),
    force_escalate=st.booleans(),
    notify_step=st.sampled_from([1, 10, 30, 50, 60, 70, 100]),
    max_times=st.integers(0, 6),
)
rules = st.builds(Rule, delay=st.sampled_from([0, 1, 30, 61, 100]), layers=st.lists(layers, min_size=1, max_size=4).map(tuple))
END = 1500
SILENT = ("exhausted", "unreachable")  # the ends that the catch-all is told of
seconds = st.one_of(st.integers(0, 70).map(lambda n: n * 10), st.integers(0, 700))  # most rules act at whole tens: meet them there
actions = st.one_of(
    st.tuples(st.sampled_from(["ack", "ack", "close", "unack", "severity", "severity", "reopen"]), st.just(0)),
    st.tuples(st.sampled_from(["escalate", "failed"]), st.integers(0, 3)),
    st.tuples(st.just("snooze"), st.sampled_from([1, 5, 60, 100, 250, 400])),
)
# A person's and a source's moves; a stall is short, an outage long, and people act in both.
acted = st.dictionaries(seconds, st.lists(actions, min_size=1, max_size=2), max_size=6)
downs = st.lists(
    st.tuples(seconds, st.one_of(st.integers(1, 59), st.integers(55, 65), st.integers(61, 500))).map(lambda d: (d[0], d[0] + d[1])),
    max_size=3,
)
deaf = st.frozensets(st.integers(0, 3), max_size=2)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules, acted, downs, deaf)
def test_random_lives_page_exactly_as_the_naive_simulator(
    rule: Rule, acts: dict[int, list[Action]], down: list[tuple[int, int]], unreachable: frozenset[int]
) -> None:
    desk, naive = Desk(rule, unreachable), Naive(rule, unreachable)
    live(desk, END, acts, down)
    live(naive, END, acts, down)
    assert desk.pages == naive.pages
    # Each end's reason and instant too; a run that a person's move ended is only looked at when it was due, so that instant is the plan's own.
    assert [e for e in desk.ends if e[1] in SILENT] == [e for e in naive.ends if e[1] in SILENT]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules, acted, downs, deaf)
def test_what_holds_in_every_life(
    rule: Rule, acts: dict[int, list[Action]], down: list[tuple[int, int]], unreachable: frozenset[int]
) -> None:
    desk = Desk(rule, unreachable)
    live(desk, END, acts, down)
    for done in desk.steps:
        assert done.end is None or done.page is None
        assert (done.state.due is None) == (done.end is not None)
        if done.outage:
            assert done.outage[1] - done.outage[0] > timedelta(seconds=60)
    for (_, before, *_a), (_, layer, _fire, repeat, why) in pairwise(desk.pages):
        if why == "escalated":
            assert layer == before + 1 or before + 1 in unreachable
        elif why in ("loop", "severity"):
            assert layer == before
        assert 0 <= repeat <= rule.layers[layer].max_times
    if not any(what == "reopen" for done in acts.values() for what, _ in done):
        closed = [now for now, done in acts.items() if any(what == "close" for what, _ in done)]
        assert not closed or all(now <= min(closed) for now, *_ in desk.pages)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules, downs)
def test_every_layer_keeps_its_window_whatever_the_outages(rule: Rule, down: list[tuple[int, int]]) -> None:
    """From a layer's first page to the next layer's there is its window, less the minute by which a page may be late without moving what follows."""
    desk = Desk(rule)
    live(desk, END, down=down)
    firsts = [(now, layer) for now, layer, fire, *_ in desk.pages if fire == "fire"]
    assert [layer for _, layer in firsts] == list(range(len(firsts)))
    for (one, layer), (two, _) in pairwise(firsts):
        assert two - one >= rule.layers[layer].escalate_window - 60
    # Nothing missed is used up: a run that has come to its end made every page that it makes without an outage.
    undisturbed = Desk(rule)
    live(undisturbed, END)
    if desk.ends:
        assert [p[1:] for p in desk.pages] == [p[1:] for p in undisturbed.pages]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rules, acted, downs, deaf, st.integers(0, 700))
def test_the_future_is_what_then_happens(
    rule: Rule, acts: dict[int, list[Action]], down: list[tuple[int, int]], unreachable: frozenset[int], now: int
) -> None:
    desk = Desk(rule, unreachable)
    live(desk, now, acts, down)
    planned = plan.future(rule, desk.state, desk.facts, at(now), unreachable_layers=unreachable, limit=100)
    said = [(second(p.at), p.page.layer, p.page.fire, p.page.repeat, p.page.why) if p.page else (second(p.at), p.what) for p in planned]
    pages, ends = len(desk.pages), len(desk.ends)
    live(desk, now + 6000, start=now)
    happened = [*desk.pages[pages:], *((now, end) for now, end in desk.ends[ends:] if end in SILENT)]
    assert said == happened


def test_the_future_has_an_end() -> None:
    start = plan.begin(TWO, ZERO)
    in_five_minutes = plan.future(TWO, start, Facts("Triggered"), ZERO, horizon=timedelta(minutes=5))
    assert [(second(p.at), p.layer, p.what) for p in in_five_minutes] == [
        (0, 0, "page"),
        (60, 0, "page"),
        (120, 0, "page"),
        (300, 1, "page"),
    ]
    assert len(plan.future(TWO, start, Facts("Triggered"), ZERO, limit=2)) == 2
    assert plan.future(TWO, start, Facts("Processing"), ZERO) == []
    snoozed = plan.future(TWO, State(1, ZERO, 1, at(120)), Facts("Processing", at(7200)), at(10))
    assert [(second(p.at), p.layer, p.what) for p in snoozed] == [(7200, 1, "page"), (7320, 1, "page"), (7800, 1, "exhausted")]
