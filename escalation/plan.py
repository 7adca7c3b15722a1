"""The timing rules of escalation, pure: a frozen rule, where a run stands and the time in; what to do now and when to look again out.

A run walks through its layers. Layer `i` starts at `t0`, pages at `t0`, `t0 + notify_step`, ... at most `max_times` repeats, and
gives way to layer `i + 1` at `t0 + escalate_window`. Every instant is computed from `t0`, never from "now", so that a pass that
comes some seconds late does not push what follows. Nothing else in the product may know these rules: the engine, the incident
page and `explain` all ask here, and `future` runs `step` itself, so that what is foretold cannot differ from what happens.

- The last layer has nobody behind it, so its window cuts no loop: it is exhausted when its window is over, or one `notify_step`
  after its last loop if that is later (`_over`).
- `escalate_window` 0 means "at once": the next layer is paged by the following pass.
- Acknowledged ends a run, except in a `force_escalate` layer (before the first page: when layer 0 is one), whose loops and
  escalation stop for nothing but a close. Snooze pauses every layer. Layer `i` being forced brings layer `i + 1` its first page;
  whether that one goes on is its own setting.
- A run found more than `LATE` after its instant was found after an outage of ours: what was due is done now and `t0` moves by the
  delay. So the loops that were missed are one page, none of them is used up, and no layer loses a second of its window.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal

Fire = Literal["fire", "refire"]
Why = Literal["first", "loop", "escalated", "unreachable", "severity", "wake", "unacknowledged", "manual", "reopen"]
End = Literal["acknowledged", "closed", "exhausted", "unreachable"]

LATE = timedelta(seconds=60)
DELAY = -1  # State.layer while the delay window runs


@dataclass(frozen=True, slots=True)
class Layer:
    """One level of a rule; times in seconds, `max_times` counts the repeats after the first page."""

    escalate_window: float = 30 * 60.0
    force_escalate: bool = False
    notify_step: float = 10 * 60.0
    max_times: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """What of an escalation rule is about time; `delay` is `aggr_window` in seconds, there is at least one layer."""

    delay: float
    layers: tuple[Layer, ...]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Rule:
        """Read a rule as it is on the wire and in a snapshot (`aggr_window` s, `escalate_window` and `notify_step` min); ValueError names the field."""
        layers = body.get("layers")
        if not isinstance(layers, list | tuple) or not layers:
            raise ValueError("layers: at least one layer is needed")
        return cls(_number(body, "aggr_window", 0), tuple(_layer(layer, f"layers[{i}].") for i, layer in enumerate(layers)))

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`, without what is not about time."""
        return {
            "aggr_window": _plain(self.delay),
            "layers": [
                {
                    "escalate_window": _plain(layer.escalate_window / 60),
                    "force_escalate": layer.force_escalate,
                    "notify_step": _plain(layer.notify_step / 60),
                    "max_times": layer.max_times,
                }
                for layer in self.layers
            ],
        }


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands: what its row stores."""

    layer: int  # DELAY (-1) while the delay window runs and nothing was paged
    t0: datetime  # start of the layer, or of the delay window
    sent: int  # pages sent in this layer that count: 0 = its first page is still due, 1 = no loop yet
    due: datetime | None  # when to look again (Run.next_at); None = the run is over
    why: Why = "first"  # why the layer's first page goes out
    repage_at: datetime | None = None  # since when an extra page to the current layer is wanted (the severity rose)

    @classmethod
    def from_json(cls, body: Mapping[str, Any], due: datetime | None) -> State:
        """The inverse of `to_json`; `due` has a column of its own, since the engine finds the row by it."""
        repage_at = body["repage_at"]
        return cls(
            body["layer"],
            datetime.fromisoformat(body["t0"]),
            body["sent"],
            due,
            body["why"],
            datetime.fromisoformat(repage_at) if repage_at else None,
        )

    def to_json(self) -> dict[str, Any]:
        """All but `due`."""
        return {
            "layer": self.layer,
            "t0": self.t0.isoformat(),
            "sent": self.sent,
            "why": self.why,
            "repage_at": self.repage_at.isoformat() if self.repage_at else None,
        }


@dataclass(frozen=True, slots=True)
class Facts:
    """The incident as this pass has just re-read it; `snoozed_until` counts only while it is Processing."""

    progress: str  # Triggered | Processing | Closed
    snoozed_until: datetime | None = None
    recovered: bool = False  # every alert is Ok and the incident is open only because its workspace keeps it open


@dataclass(frozen=True, slots=True)
class Page:
    """One occasion to tell the targets of a layer."""

    layer: int
    fire: Fire
    repeat: int  # 0 = not a loop, 1 = the first loop
    why: Why

    @property
    def event(self) -> str:
        """The event's name in texts and webhooks: triggered, escalated or refire."""
        if self.fire == "refire":
            return "refire"
        later = self.why in ("escalated", "unreachable") or (self.why == "manual" and self.layer > 0)
        return "escalated" if later else "triggered"

    @property
    def chosen(self) -> frozenset[str]:
        """The events of which a group of the layer must have chosen one to be told. Whoever is told when a layer begins is told as well when it
        begins again, or when the severity rises, whatever that is called in texts. A later layer begins with an escalation, and that is its
        first page."""
        if self.fire == "refire":
            return frozenset({"refire"})
        return frozenset({"triggered", "escalated"} if self.layer > 0 else {"triggered"})


@dataclass(frozen=True, slots=True)
class Step:
    """What this pass has to do for a run: at most one page."""

    state: State  # to be stored, whatever else happens
    page: Page | None = None
    end: End | None = (
        None  # the run is over, and why; tell the catch-all when it is "exhausted" (nobody answered) or "unreachable" (the last layer)
    )
    outage: tuple[datetime, datetime] | None = None  # what was due at A is done only now, at B
    woke: bool = False  # the snooze is over: the incident goes back to Triggered


@dataclass(frozen=True, slots=True)
class Planned:
    """One thing that will happen if nobody reacts."""

    at: datetime
    layer: int
    what: Literal["page", "exhausted", "unreachable"]  # a page, or how the run ends (Step.end)
    page: Page | None


def catch_all_rule() -> Rule:
    """The rule that a catch-all follows: one page and a loop every ten minutes, six times; ten minutes later the next one's turn has come."""
    return Rule(0.0, (Layer(escalate_window=70 * 60.0, notify_step=10 * 60.0, max_times=6),))


def begin(rule: Rule, now: datetime, why: Why = "first") -> State:
    """A new run. The delay window is for alerts that recover by themselves: a run that a person started (`why` other than first) has none."""
    if why == "first":
        return State(DELAY, now, 0, now + timedelta(seconds=rule.delay))
    return State(0, now, 0, now, why)


def step(rule: Rule, state: State, facts: Facts, now: datetime, late_after: timedelta = LATE) -> Step:
    """What to do now; called before anything is due it changes nothing but `due`."""
    if state.due is None:
        return Step(state)
    if facts.progress == "Closed":
        return Step(replace(state, due=None), end="closed")
    woke = False
    if facts.progress == "Processing":
        snooze = facts.snoozed_until
        if snooze is not None and now < snooze:
            return Step(replace(state, due=snooze))
        # A layer that started after the snooze was over has had its wake already: whoever acknowledged since then did so anew.
        woke = snooze is not None and state.t0 < snooze
        if woke:
            state = restart_layer(rule, state, now, "wake")
        elif not rule.layers[max(state.layer, 0)].force_escalate:
            return Step(replace(state, due=None), end="acknowledged")

    at, what = _next(rule, state)
    if state.repage_at is not None and state.repage_at <= now and (now < at or (what == "leave" and state.repage_at < at)):
        moved = _delay(state.repage_at, now, late_after)
        after = replace(state, t0=state.t0 + moved, repage_at=None)
        return _paged(rule, after, Page(state.layer, "fire", 0, "severity"), (state.repage_at, now) if moved else None)
    if now < at:
        return Step(replace(state, due=_due(rule, state)))
    if state.layer == DELAY and facts.recovered and rule.delay:
        # Nobody is told of what recovers within the window; should it fire again, the page is due at the end of one more window.
        return Step(replace(state, t0=now, due=now + max(timedelta(seconds=rule.delay), LATE)))

    # What is due pages by the severity of now, so a page that was wanted for the severity is not sent beside it.
    moved = _delay(at, now, late_after)
    outage = (at, now) if moved else None
    if what == "loop":
        after = replace(state, t0=state.t0 + moved, sent=state.sent + 1, repage_at=None)
        return _paged(rule, after, Page(state.layer, "refire", state.sent, "loop"), outage)
    if what == "leave":
        if state.layer + 1 == len(rule.layers):
            return Step(replace(state, due=None), end=_last(facts, "exhausted"), outage=outage)
        return _enter(rule, state.layer + 1, at + moved, "escalated", outage)
    return _enter(rule, max(state.layer, 0), at + moved, state.why, outage, woke)


def unreachable(rule: Rule, state: State, facts: Facts, now: datetime) -> Step:
    """The page that this very pass decided on can reach nobody: the next layer starts now, or the run is over. Call again with the result's state."""
    if state.layer + 1 >= len(rule.layers):
        return Step(replace(state, due=None), end=_last(facts, "unreachable"))
    return _enter(rule, state.layer + 1, now, "unreachable")


def failed_later(rule: Rule, state: State, layer: int, facts: Facts, now: datetime) -> Step:
    """Every delivery of `layer`'s page and all their fallbacks failed: as `unreachable`, unless the run has gone on or somebody answered."""
    over = state.due is None or state.layer != layer or state.sent == 0 or facts.progress == "Closed"
    if facts.progress == "Processing":
        snoozed = facts.snoozed_until is not None and state.t0 < facts.snoozed_until
        over = over or snoozed or not rule.layers[layer].force_escalate
    return Step(state) if over else unreachable(rule, state, facts, now)


def restart_layer(rule: Rule, state: State, now: datetime, why: Why) -> State:
    """Start the current layer again now (wake, unacknowledge), also of a run that has ended; in the delay window: start layer 0."""
    return State(max(state.layer, 0), now, 0, now, why)


def escalate_to(rule: Rule, state: State, layer: int, now: datetime, why: Why = "manual") -> State:
    """Go to a layer by hand, also of a run that has ended; IndexError if the rule has no such layer."""
    if not 0 <= layer < len(rule.layers):
        raise IndexError(f"layer {layer} of {len(rule.layers)}")
    return State(layer, now, 0, now, why)


def repage(state: State, now: datetime) -> State:
    """The severity rose: the current layer is paged once more, by the new severity's channels, and `t0` stays."""
    if state.due is None or state.sent == 0 or state.repage_at is not None:
        return state
    return replace(state, repage_at=now, due=min(now, state.due))


def pause(state: State, until: datetime) -> State:
    """The incident was snoozed: look again when that ends (a longer snooze is noticed then). A run that has ended stays so: start its layer again at the wake."""
    return replace(state, due=until) if state.due is not None else state


def future(
    rule: Rule,
    state: State,
    facts: Facts,
    now: datetime,
    *,
    unreachable_layers: Collection[int] = (),
    horizon: timedelta = timedelta(hours=24),
    limit: int = 50,
) -> list[Planned]:
    """What will happen at which instant if nobody reacts, oldest first, by running `step` forward."""
    planned: list[Planned] = []
    while state.due is not None and state.due <= now + horizon and len(planned) < limit:
        at = max(state.due, now)
        done = step(rule, state, facts, at)
        if done.woke:
            facts = Facts("Triggered")
        while done.page is not None and done.page.layer in unreachable_layers:
            done = unreachable(rule, done.state, facts, at)
        if done.page is not None:
            planned.append(Planned(at, done.page.layer, "page", done.page))
        elif done.end in ("exhausted", "unreachable"):
            planned.append(Planned(at, done.state.layer, done.end, None))
        state = done.state
    return planned


def _next(rule: Rule, state: State) -> tuple[datetime, Literal["first", "loop", "leave"]]:
    """What the run does next by its rule, and when."""
    if state.layer == DELAY:
        return state.t0 + timedelta(seconds=rule.delay), "first"
    if state.sent == 0:
        return state.t0, "first"
    layer = rule.layers[state.layer]
    over = _over(rule, state.layer)
    loop = state.sent * layer.notify_step
    # At the same instant the next layer wins: to page both would tell the same people twice in one second.
    if state.sent <= layer.max_times and loop < over:
        return state.t0 + timedelta(seconds=loop), "loop"
    return state.t0 + timedelta(seconds=over), "leave"


def _last(facts: Facts, end: End) -> End:
    """How a run is over whose last layer has been. The catch-all is against silence; where a forced layer was acknowledged there is none."""
    return "acknowledged" if facts.progress == "Processing" else end


def _over(rule: Rule, index: int) -> float:
    """Seconds from a layer's start to its end."""
    layer = rule.layers[index]
    last_loop = layer.max_times * layer.notify_step
    if index + 1 < len(rule.layers) or last_loop < layer.escalate_window:
        return layer.escalate_window
    return last_loop + layer.notify_step


def _due(rule: Rule, state: State) -> datetime:
    at, _ = _next(rule, state)
    return at if state.repage_at is None else min(at, state.repage_at)


def _delay(at: datetime, now: datetime, late_after: timedelta) -> timedelta:
    """By how much what follows has to move: nothing, unless we were down at the time."""
    return now - at if now - at > late_after else timedelta(0)


def _enter(rule: Rule, layer: int, t0: datetime, why: Why, outage: tuple[datetime, datetime] | None = None, woke: bool = False) -> Step:
    """The first page of a layer that starts at `t0`."""
    return _paged(rule, State(layer, t0, 1, None, why), Page(layer, "fire", 0, why), outage, woke)


def _paged(rule: Rule, state: State, page: Page, outage: tuple[datetime, datetime] | None, woke: bool = False) -> Step:
    return Step(replace(state, due=_due(rule, state)), page, None, outage, woke)


def _layer(body: Any, where: str) -> Layer:
    if not isinstance(body, Mapping):
        raise ValueError(f"{where.removesuffix('.')}: must be an object")
    window = _number(body, "escalate_window", 30, where)
    repeat = _number(body, "notify_step", 10, where)
    times = _number(body, "max_times", 0, where)
    if not repeat:
        raise ValueError(f"{where}notify_step: must be more than 0")
    if times != int(times):
        raise ValueError(f"{where}max_times: must be a whole number")
    return Layer(window * 60, bool(body.get("force_escalate")), repeat * 60, int(times))


def _number(body: Mapping[str, Any], name: str, default: float, where: str = "") -> float:
    value = body.get(name)
    if value is None:
        return float(default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 100_000:
        raise ValueError(f"{where}{name}: must be a number from 0 to 100000, not {value!r:.40}")
    return float(value)


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value
