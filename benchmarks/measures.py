"""The measurements. Each takes the running product and returns rows: what was measured, our number, the goal, and what else was seen."""

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import flood as proof
from benchmarks.product import Broken, Busy, Product
from benchmarks.wire import Provider, Source, percentile


@dataclass(slots=True)
class Row:
    """One number beside its goal. `most`: the goal is a ceiling. `ratio` over 1 is better than the goal."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    most: bool = True
    seen: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        if self.goal is None or not self.value:
            return None
        return self.goal / self.value if self.most else self.value / self.goal

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}


@dataclass(slots=True)
class Bench:
    """One run of the product with both ends of the wire."""

    product: Product
    provider: Provider
    source: Source
    urls: dict[str, str] = field(default_factory=dict)
    scale: float = 1.0  # of the time that is measured: below 1 for a quick look

    async def settle(self, seconds: float = 60) -> None:
        """Waits until nothing is due, so that one measurement does not pay for the one before; then forgets what was seen."""
        until = time.monotonic() + seconds
        while left := await self.left():
            if time.monotonic() > until:
                raise Broken(f"the product still has work after {seconds:.0f} s: {left}")
            await asyncio.sleep(0.2)
        self.provider.clear()
        self.source.sent.clear()
        self.source.answered.clear()
        self.source.refused.clear()
        await asyncio.sleep(1)

    async def left(self) -> dict[str, int]:
        """Rows that are due and nobody has acted on, by queue."""
        [row] = await asyncio.to_thread(
            self.product.sql,
            "SELECT (SELECT count(*) FROM escalation_event WHERE outcome IS NULL),"
            " (SELECT count(*) FROM escalation_timelineentry WHERE handled_at IS NULL),"
            " (SELECT count(*) FROM escalation_run WHERE ended_at IS NULL AND next_at <= statement_timestamp()),"
            " (SELECT count(*) FROM channels_app_delivery d JOIN channels_app_channel c ON c.id = d.channel_id"
            "   WHERE d.state IN ('queued', 'sending') AND d.not_before <= statement_timestamp())",
        )
        return {name: count for name, count in zip(("events", "timeline", "runs", "deliveries"), row, strict=True) if count}

    async def wait_for(self, done: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                return False
            await asyncio.sleep(0.02)
        return True

    def seconds(self, wanted: float) -> float:
        return max(3.0, wanted * self.scale)


def _latencies(bench: Bench, numbers: list[int]) -> tuple[list[float], list[float], int]:
    """Milliseconds from the POST to the request at the provider, from the answer to it, and how many never came."""
    pages, source = bench.provider.pages, bench.source
    came = [n for n in numbers if n in pages]
    sent = [(pages[n] - source.sent[n]) * 1000 for n in came]
    answered = [(pages[n] - source.answered[n]) * 1000 for n in came if n in source.answered]
    return sent, answered, len(numbers) - len(came)


async def idle(bench: Bench) -> list[Row]:
    """Memory and processor time of a product that has nothing to do."""
    await asyncio.sleep(3)
    memory = bench.product.memory()
    busy = Busy(bench.product)
    await asyncio.sleep(bench.seconds(10))
    seen = busy.since()
    megabytes = {role: round(size / 1e6, 1) for role, size in memory.items()}
    ours = sum(size for role, size in memory.items() if role != "postgres") / 1e6
    return [
        Row("memory, idle, all but PostgreSQL (PSS)", ours, "MB", 320, seen=megabytes),
        Row("processor time, idle", seen["cpu"]["all"] / seen["seconds"] * 100, "% of a core", seen=seen),
    ]


async def latency(bench: Bench) -> list[Row]:
    """POST to the provider at 20 alerts a second, and what one alert costs then."""
    await bench.source.steady(bench.urls["fast"], 20, 2)  # warm
    await bench.settle()
    busy = Busy(bench.product)
    numbers = await bench.source.steady(bench.urls["fast"], 20, bench.seconds(30))
    await bench.wait_for(lambda: len(bench.provider.pages) >= len(numbers), 10)
    seen = busy.since()
    sent, answered, lost = _latencies(bench, numbers)
    if not sent:
        raise Broken("no page arrived at the provider")
    seen |= {
        "alerts": len(numbers), "lost": lost, "repeats": bench.provider.repeats, "refused": len(bench.source.refused), "max_ms": max(sent),
        "after_answer_p50_ms": percentile(answered, 0.5), "after_answer_p99_ms": percentile(answered, 0.99),
    }  # fmt: skip
    return [
        Row("POST -> provider at 20/s, p50", percentile(sent, 0.5), "ms", 10, seen=seen),
        Row("POST -> provider at 20/s, p99", percentile(sent, 0.99), "ms", 30),
        Row("CPU per alert at 20/s", seen["cpu"]["all"] / len(numbers) * 1000, "ms", 8),
    ]


async def sustained(bench: Bench) -> list[Row]:
    """Accepted and paged a second: a closed loop whose window was chosen by trying, so that no backlog can grow."""
    best, rate = 64, 0.0
    tried = {}
    for window in (32, 128, 512):
        await bench.settle()
        begun = time.monotonic()
        await bench.source.closed(bench.urls["fast"], bench.provider, window=window, connections=min(window, 32), seconds=bench.seconds(5))
        found = len(bench.provider.pages) / (time.monotonic() - begun)
        tried[window] = round(found)
        if found > rate:
            best, rate = window, found
    await bench.settle()
    busy = Busy(bench.product)
    begun = time.time()
    await bench.source.closed(bench.urls["fast"], bench.provider, window=best, connections=min(best, 32), seconds=bench.seconds(30))
    ended = time.time()
    seen = busy.since()
    pages = bench.provider.pages
    count = sum(at <= ended for at in pages.values())
    sent = [(at - bench.source.sent[n]) * 1000 for n, at in pages.items() if n in bench.source.sent]
    accepted = len(bench.source.answered)
    await bench.wait_for(lambda: len(pages) >= accepted, 20)
    seen |= {
        "window": best, "tried": tried, "accepted": accepted, "paged": len(pages), "refused": bench.source.refused[:3],
        "repeats": bench.provider.repeats, "p50_ms": percentile(sent, 0.5), "p99_ms": percentile(sent, 0.99),
        "cpu_per_alert_ms": {role: round(used / max(1, count) * 1000, 2) for role, used in seen["cpu"].items()},
    }  # fmt: skip
    return [
        Row("accepted and paged, sustained", count / (ended - begun), "/s", 800, most=False, seen=seen),
        Row("CPU per alert at the maximum", seen["cpu"]["all"] / max(1, count) * 1000, "ms", 2.3),
    ]


async def people(bench: Bench) -> list[Row]:
    """One alert to 20 people, by e-mail: the last told after the first. The median of five alerts."""
    spans, all_told = [], []
    for _turn in range(5):
        await bench.settle()
        number = await bench.source.post(bench.urls["people"])
        await bench.wait_for(lambda: len(bench.provider.mails) >= 20, 10)
        at = [instant for instant, _to in bench.provider.mails]
        if len(at) < 20:
            raise Broken(f"{len(at)} of 20 people were told")
        spans.append(max(at) - min(at))
        all_told.append(max(at) - bench.source.sent[number])
    return [
        Row("one alert to 20 people: last after first", percentile(spans, 0.5), "s", 1, seen={"spans": spans, "post_to_last": all_told}),
    ]


async def deliveries(bench: Bench) -> list[Row]:
    """A backlog to a provider that answers after 50 ms: requests a second between the first tenth and the last."""
    await bench.settle()
    busy = Busy(bench.product)
    count = int(15_000 * min(1.0, max(0.3, bench.scale)))
    await asyncio.to_thread(bench.product.django, "backlog", f'{{"count": {count}}}')
    await bench.wait_for(lambda: len(bench.provider.arrivals) >= count, 120)
    seen = busy.since()
    at = sorted(bench.provider.arrivals)
    if len(at) < count:
        raise Broken(f"{len(at)} of {count} deliveries left")
    low, high = at[count // 5], at[count * 9 // 10]
    return [Row("deliveries to a provider of 50 ms", (count * 9 // 10 - count // 5) / (high - low), "/s", 1500, most=False, seen=seen)]


async def storm(bench: Bench) -> list[Row]:
    """10,000 events in 10 s from one source."""
    await bench.settle()
    busy = Busy(bench.product)
    count = int(10_000 * min(1.0, max(0.1, bench.scale)))
    [(last_event,)] = await asyncio.to_thread(bench.product.sql, "SELECT COALESCE(max(id), 0) FROM escalation_event")
    begun = time.time()
    numbers = await bench.source.steady(bench.urls["fast"], 1000, count / 1000)
    answered = time.time()
    await bench.wait_for(lambda: len(bench.provider.pages) >= len(numbers), 90)
    seen = busy.since()
    sent, after, lost = _latencies(bench, numbers)
    [(events, dull, unexplained)] = await asyncio.to_thread(
        bench.product.sql,
        "SELECT count(*), count(*) FILTER (WHERE e.outcome IS NULL),"
        " count(*) FILTER (WHERE NOT EXISTS (SELECT FROM channels_app_delivery d WHERE d.topic = a.incident_id AND d.state IN ('sent', 'delivered')))"
        " FROM escalation_event e LEFT JOIN escalation_alert a ON a.id = e.alert_id WHERE e.id > %s",
        [last_event],
    )
    seen |= {"refused": bench.source.refused[:3], "lost": lost, "all_answered_s": answered - begun, "events": events, "without_outcome": dull,
             "without_delivery": unexplained, "after_answer_p50_ms": percentile(after, 0.5), "repeats": bench.provider.repeats}  # fmt: skip
    pages = [bench.provider.pages[n] - begun for n in numbers if n in bench.provider.pages]
    return [
        Row("storm of 10,000 in 10 s: first page", min(pages), "s", 1, seen=seen),
        Row("storm: POST -> provider, median", percentile(sent, 0.5) / 1000, "s", 1),
        Row("storm: last page", max(pages), "s", 13),
        Row("storm: not accepted, lost or unexplained", len(bench.source.refused) + lost + dull + unexplained, "", 0),
    ]


async def timers(bench: Bench) -> list[Row]:
    """100,000 live runs, of which 1,000 a second come due; then 20,000 more at one instant. Late: commit of the fired run, and the provider."""
    await bench.settle()
    rows = []
    live, due = 100_000, int(1000 * bench.seconds(15))
    rows += await _fire(bench, live, due, 1 / 1000)
    await bench.settle(120)
    rows += await _fire(bench, 20_000, 20_000, 0)
    return rows


async def _fire(bench: Bench, live: int, due: int, step: float) -> list[Row]:
    first = time.time() + 25 + live / 10_000
    began = time.time()
    made = await asyncio.to_thread(bench.product.django, "timers", f'{{"live": {live}, "due": {due}, "first": {first}, "step": {step}}}')
    seeded = time.time() - began
    await asyncio.to_thread(bench.product.sql, "ANALYZE")
    if time.time() > first - 2:
        raise Broken(f"seeding took {seeded:.0f} s: the first timers came due meanwhile")
    bench.provider.clear()
    await asyncio.sleep(first - 1 - time.time())
    busy = Busy(bench.product)
    fired_at: list[float] = []

    def watch() -> None:
        # When the last of them is seen to be fired by somebody else, that is: committed.
        until = time.time() + 120
        while time.time() < until:
            [(left,)] = bench.product.sql(
                "SELECT count(*) FROM escalation_run WHERE ended_at IS NULL AND next_at <= to_timestamp(%s)", [first + due * step + 0.001]
            )
            if not left:
                fired_at.append(time.time())
                return
            time.sleep(0.02 if time.time() > first + due * step - 0.1 else 0.5)

    await asyncio.to_thread(watch)
    await bench.wait_for(lambda: len(bench.provider.pages) >= due, 90)
    seen = busy.since() | {"live": live, "due": due, "seeded_s": round(seeded, 1)}
    base = 10_000_000 + made["first_incident"]
    late = [(at - (first + (n - base) * step)) * 1000 for n, at in bench.provider.pages.items()]
    engine = await asyncio.to_thread(
        bench.product.sql,
        "SELECT extract(epoch FROM n.created_at)::float8 - %s - (n.topic - %s) * %s FROM channels_app_notification n WHERE n.run >= %s AND n.run < %s",
        [first, made["first_incident"], step, made["first_run"], made["first_run"] + live],
    )
    at_engine = [value * 1000 for (value,) in engine]
    if not late or not at_engine or not fired_at:
        raise Broken(f"timers did not fire: {len(at_engine)} of {due} in the database, {len(late)} at the provider")
    seen |= {
        "at_provider": len(late), "in_database": len(at_engine), "provider_p50_ms": percentile(late, 0.5), "provider_p99_ms": percentile(late, 0.99),
        "provider_last_s": max(bench.provider.pages.values()) - first,
    }  # fmt: skip
    if step:
        return [
            Row("timers at 1,000/s, 100,000 live: picked up late, p50", percentile(at_engine, 0.5), "ms", seen=seen),
            Row("timers at 1,000/s, 100,000 live: picked up late, p99", percentile(at_engine, 0.99), "ms", 20),
            Row("... and at the provider, p50", percentile(late, 0.5), "ms"),
            Row("... and at the provider, p99", percentile(late, 0.99), "ms"),
        ]
    return [
        Row("20,000 due at one instant: all fired after", fired_at[0] - first, "s", 1, seen=seen),
        Row("... and at the provider", seen["provider_last_s"], "s"),
    ]


async def flood(bench: Bench) -> list[Row]:
    """The limit proof (benchmarks/flood.py): 10,000 alerts in 10 s to one DingTalk bot, then to six bots of three kinds."""
    return [
        row
        for name, kinds in (("one DingTalk bot", ["dingtalk"]), ("six bots", ["dingtalk", "feishu", "wecom"] * 2))
        for row in await _flood(bench, name, kinds)
    ]


async def _flood(bench: Bench, name: str, kinds: list[str], most: float = 1200) -> list[Row]:
    await bench.settle()
    count = max(60, int(10_000 * min(1.0, bench.scale)))
    with contextlib.ExitStack() as running:
        bots = [running.enter_context(proof.real(kind)) for kind in kinds]
        made = await asyncio.to_thread(bench.product.django, "bots", json.dumps({"bots": [[bot.kind, bot.hook, bot.host] for bot in bots]}))
        await asyncio.sleep(1.5)  # the drain looks for new channels about once a second
        bench.source.severity = proof.severity
        busy, begun = Busy(bench.product), time.time()
        try:
            numbers = set(await bench.source.steady(made["urls"], count / 10, 10))
        finally:
            bench.source.severity = lambda number: "Critical"
        named: set[int] = set()

        def all_named() -> bool:
            named.update(*(message.numbers for bot in bots for message in proof.ledger(bot)))
            return named >= numbers

        while not all_named() and time.time() < begun + most:
            await asyncio.sleep(0.5)
        done = time.time() - begun
        await asyncio.sleep(3)  # until the last answers are rows, too
        ledgers = {channel: (proof.ledger(bot), len(bot.blocks)) for channel, bot in zip(made["channels"], bots, strict=True)}
        pages = [proof.Page(*row) for row in await asyncio.to_thread(bench.product.sql, proof.RECORDS, [made["channels"]])]
    verdict = proof.judge(pages, ledgers, grace=2, apart=5)
    wrong: dict[str, list[Any]] = {
        **verdict.plain(),
        "not accepted": bench.source.refused,
        "accepted and no page": sorted(numbers - {page.number for page in pages}),
    }
    seen: dict[str, Any] = busy.since() | {
        "alerts": count, "messages": {str(pk): len(taken) for pk, (taken, _refusals) in ledgers.items()},
        "fallbacks": sum(page.fallback_at is not None for page in pages),
        "last_critical_s": max(((page.sent_at or time.time()) - page.created_at for page in pages if page.severity == "Critical"), default=0.0),
        "wrong": {what: [len(lines), *lines[:3]] for what, lines in wrong.items() if lines},
    }  # fmt: skip
    return [
        Row(f"flood to {name}: all named after", done, "s", seen=seen),
        Row(f"flood to {name}: named last of the critical", seen["last_critical_s"], "s"),
        Row(f"flood to {name}: wrong", sum(len(lines) for lines in wrong.values()), "", 0, seen=seen["wrong"]),
    ]


# In the order in which they disturb each other least.
ALL: dict[str, Callable[[Bench], Awaitable[list[Row]]]] = {
    "idle": idle,
    "latency": latency,
    "people": people,
    "sustained": sustained,
    "deliveries": deliveries,
    "storm": storm,
    "timers": timers,
    "flood": flood,
}
SLOW_FLUSH = ("latency", "sustained")
