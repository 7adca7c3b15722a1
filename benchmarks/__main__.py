"""`python -m benchmarks [name ...]`: starts the product, measures, prints a table beside the goals, writes JSON outside the tree, cleans up.

Names: idle latency people sustained deliveries storm timers flood slow-flush peers; none: all but peers. Only 127.0.0.1 is touched. A quarter of an
hour for all; most of it is the flood's, since its bots take 20 messages in a real minute. `peers`: latency and sustained, then the same of Alerta and
Alertmanager (benchmarks/peers.py), which takes five minutes, and on its first run fetches Alerta from PyPI.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks import peers
from benchmarks.measures import ALL, SLOW_FLUSH, Bench, Row
from benchmarks.product import Broken, Product
from benchmarks.wire import Provider, Source


async def measure(names: list[str], options: argparse.Namespace, slow_flush: int = 0) -> list[Row]:
    """The rows of these measurements on one product; what cannot be measured is said and left out."""
    rows: list[Row] = []
    extra = dict(pair.split("=", 1) for pair in options.env)
    async with Provider() as provider:
        with Product(options.port, provider.port, provider.mail_port, slow_flush=slow_flush, extra=extra) as product:
            say(
                f"ready after {product.started_in:.1f} s on {product.version()}"
                + (f", every flush {slow_flush} µs slower" if slow_flush else "")
            )
            bench = Bench(product, provider, Source(), scale=options.scale)
            try:
                urls = await asyncio.to_thread(product.django, "make", json.dumps({"provider": provider.port, "mail": provider.mail_port}))
                bench.urls = urls
                await asyncio.sleep(1.5)  # the drain looks for new channels about once a second
                for name in names:
                    say(f"measuring: {name}")
                    try:
                        found = await ALL[name](bench)
                    except Broken as error:
                        say(f"{name}: {error}")
                        continue
                    for row in found:
                        row.name = f"{row.name}, flush +{slow_flush / 1000:g} ms" if slow_flush else row.name
                        print(line(row), flush=True)
                    rows += found
                if options.keep:
                    say(f"kept running: {product.environment['BASE_URL']}, {product.url}; Ctrl-C ends it")
                    await asyncio.Event().wait()
            finally:
                bench.source.close()
                log = product.log.read_text(errors="replace")
                if trouble := [
                    text for text in log.splitlines() if any(word in text for word in ("ERROR", "Traceback", "CRITICAL", "pass failed"))
                ]:
                    say(f"the product's log has {len(trouble)} lines of trouble; the first: {trouble[0][:300]}")
                    if options.log:
                        Path(options.log).write_text(log)
    return rows


def say(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


def line(row: Row) -> str:
    goal = "" if row.goal is None else f"{'<=' if row.most else '>='} {row.goal:g} {row.unit}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    strangers = f"  (others {row.seen['strangers'] * 100:.0f} %)" if "strangers" in row.seen else ""
    return f"{row.name:<58} {row.value:>10.2f} {row.unit:<11} {goal:<14} {ratio:>6}{strangers}"


def main() -> int:
    """0 when everything that was asked for was measured; the numbers are for people, they never make it fail."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ALL, "slow-flush", "peers", []], help="what to measure; nothing: all but peers")
    parser.add_argument("--port", type=int, default=8470)
    parser.add_argument("--scale", type=float, default=1.0, help="of the measured time, and of the flood's alerts: 0.2 for a quick look")
    parser.add_argument("--json", default=f"/var/tmp/flashduty-bench-{time.strftime('%Y%m%d-%H%M%S')}.json")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for the product, such as FLASHDUTY_DRAIN_THREADS=128"
    )
    parser.add_argument("--log", help="where to keep the product's log when there is trouble in it")
    parser.add_argument("--keep", action="store_true", help="leave the product running after the measurements, for a profiler")
    options = parser.parse_args()
    names = list(options.names) or [*ALL, "slow-flush"]
    rows: list[Row] = []
    gc.disable()  # a collection would be read as a late page
    print(f"{'':<58} {'ours':>10} {'':<11} {'goal':<14} {'ratio':>6}")
    code = 0
    with contextlib.suppress(KeyboardInterrupt):
        try:
            beside = peers.prepare(say) if "peers" in names else []
            if "peers" in names:
                names += peers.MEASURES
            if plain := [name for name in ALL if name in names]:
                rows += asyncio.run(measure(plain, options))
            for peer in beside:
                try:
                    found = asyncio.run(peers.measure(peer, rows, options.port, options.scale, say))
                except Broken as error:
                    say(str(error))
                    continue
                print(*map(line, found), sep="\n", flush=True)
                rows += found
            if "slow-flush" in names:
                rows += asyncio.run(measure(list(SLOW_FLUSH), options, slow_flush=1000))
        except Broken as error:
            say(str(error))
            code = 1
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": platform.platform(), "cores": os.cpu_count(),
        "python": platform.python_version(), "load": os.getloadavg(), "rows": [row.plain() for row in rows],
    }  # fmt: skip
    Path(options.json).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    say(f"ratio over 1: better than the goal, which beside a peer is the peer's number. In full: {options.json}")
    return code


if __name__ == "__main__":
    sys.exit(main())
