"""One run: start, load, kill after kill, settle, judge, report. Bounded in time and traffic; nothing of it is left behind."""

import argparse
import itertools
import os
import random
import re
import secrets
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

from . import verdict as judging
from .ledger import Ledger
from .load import Load, why_not
from .matrix import ANYWHERE, COLUMNS, ITSELF, Matrix
from .product import KINDS, NOT_OURS, SLOTS, Product
from .verdict import RECOVERY, Kill, Verdict

PATIENCE = 120.0  # after so long without becoming whole the product is taken for dead: a finding, and a fresh start
ON_A_CALM_MACHINE = 40.0  # and after so long it is one, too, where the machine was calm
MOST_DEAD = 3  # then the run ends: it would only say the same again
SETTLE, LONGEST_SETTLE = 60.0, 300.0  # after the last kill we wait until everything arrived, or nothing did for a minute
UNDISTURBED = 8.0  # seconds before the first kill: sites list themselves, and this is what a silence is compared with
FIRST_PAGE = 120.0  # so long the first page may take on a machine that is busy
LAST_ACCEPTED, PROMPTLY_ACCEPTED = 120.0, 30.0  # and the last alerts after the last kill; where the machine was calm
SITE_WAIT = 5.0  # a site that nobody passes within so long is not visited this time
HALT = 2.0  # a process stands still at a site for so long at most: under half of what makes the supervisor take a resident for dead
NO_SITE = 0.15  # so many kills come at any instant, as long as there are cells to visit
# After some kills the next one waits only until a page arrives (the old tree may still wind down), after some not even for that.
AT_ONCE, AT_THE_NEXT_PAGE = 0.15, 0.30
CALM = RECOVERY / 4  # undisturbed silences longer than this say that the machine is too busy to judge a recovery
STOLEN = 0.05  # so does this share of the processors' time, if other machines on the same metal had it during the run
ALARMS = re.compile(r"Traceback|deadlock detected|PANIC:|IntegrityError|nothing handed out")


class Driver:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = random.Random(options.seed)
        self.run = secrets.token_hex(3)
        self.ledger = Ledger(options.slowest, options.seed)
        self.product = Product(Path(tempfile.mkdtemp(prefix="flashduty-chaos-")), self.ledger.url, self.ledger.port)
        self.kills: list[Kill] = []
        self.matrix = Matrix(self.random, options.only)
        self.visits: defaultdict[str, int] = defaultdict(int)  # kind -> kills of it, at a site or at any instant
        self.misses: defaultdict[str, int] = defaultdict(int)
        self.dead: list[str] = []  # what the product did not recover from
        self.slow_stop: list[str] = []
        self.late: list[str] = []  # what fails a run on a calm machine, whether or not times are judged
        self.number = 0
        self.settled = True
        self.told = 0.0
        self.unaccepted = 0
        self.living = True
        self.own_kills: list[Kill] = []  # the supervisor ends what it takes for dead: that is a kill too, though not one of ours
        self.ticks_before = ticks()
        self.load_before = os.getloadavg()[0] / (os.cpu_count() or 1)

    def main(self) -> int:
        """0 when nothing was lost or repeated without a label and everything recovered."""
        threading.Thread(target=self._read_log, daemon=True).start()
        begun = time.monotonic()
        load: Load | None = None
        try:
            took = self.product.start()
            print(
                f"The product is ready after {took:.1f} s on port {self.product.port}; {self.options.rate:g} alerts/s; seed {self.options.seed}.",
                flush=True,
            )
            load = Load(self.product.demo, self.ledger, self.options.rate, self.run, self.options.seed)
            load.start()
            time.sleep(UNDISTURBED)
            while not self.ledger.arrivals and time.monotonic() < begun + took + FIRST_PAGE:
                time.sleep(0.1)
            calm = judging.silences(self.ledger.arrivals, begun + took + 2, time.monotonic())[1]
            if not self.ledger.arrivals:
                raise RuntimeError(f"no page came in {FIRST_PAGE:.0f} s, and nothing was killed yet:\n{self.product.tail()}")
            begun_kills = time.monotonic()
            while len(self.kills) < self.options.kills and time.monotonic() - begun < self.options.seconds:
                self._round()
                self._tell(load)
            lasted = time.monotonic() - begun_kills
            self.product.disarm()
            self._recover()
            ended = time.monotonic()
            self.unaccepted = load.stop_sending(LAST_ACCEPTED)
            if (wait := time.monotonic() - ended) > PROMPTLY_ACCEPTED:
                self.late.append(f"slow: the last alerts were accepted {wait:.0f} s after the last kill")
            self._wait_for_the_rest(load)
            kills = self._with_ends()
            verdict = judging.judge(
                dict(load.accepted),
                list(self.ledger.arrivals),
                kills,
                dict(load.acknowledged),
                lambda key: why_not(self.product.demo(), key),
            )
            load.close()
            self._end()
            return self._report(verdict, kills, load, calm, lasted)
        except RuntimeError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
        finally:
            self.living = False
            if load is not None:
                load.close()
            if self.options.keep:
                self.product.kill_everything()
                print(f"kept: {self.product.folder}")
            else:
                self.product.remove()
            self.ledger.close()

    def _read_log(self) -> None:
        """The instants at which the supervisor says that it ends a resident which fell silent: not before our last look, when it had not."""
        position, looked, before = 0, time.monotonic(), 0.0
        while self.living:
            time.sleep(0.1)
            before, looked = looked, time.monotonic()
            if not self.product.log.exists():
                continue
            with open(self.product.log, "rb") as file:
                file.seek(position)
                new = file.read()
            new = new[: new.rfind(b"\n") + 1]
            position += len(new)
            self.own_kills += [Kill(before - 0.2, "the supervisor's own", alone=False) for _ in range(new.count(b"has been silent for"))]

    # ---- one kill

    def _round(self) -> None:
        """One kill in the least visited cell, or now and then at any instant."""
        cell = None if self.random.random() < NO_SITE else self.matrix.next(self.product.sites())
        kinds = [kind for kind in KINDS if self.options.only in f"{ANYWHERE} x {kind}"]
        if cell is None and not kinds:
            cell = self.matrix.next(self.product.sites())
        if cell is None and not kinds:
            raise RuntimeError(f"nothing to kill is called {self.options.only!r}")
        if cell is not None:
            kill = self._in_cell(*cell)
        else:
            # A start of everything takes seconds: it comes a third as often as the others.
            weights = {kind: (self.visits[kind] + self.misses[kind]) * (3 if kind == "machine" else 1) for kind in kinds}
            kill = self._at_any_instant(min(kinds, key=lambda kind: weights[kind] + self.random.random()))
        if kill is None:
            time.sleep(0.1)
            return
        kill.alone = self.settled
        self._count(kill)
        patience = self.random.random()
        if patience < AT_ONCE:
            kill.alone = self.settled = False
            time.sleep(self.random.uniform(0.02, 0.8))
        else:
            self._recover(whole=patience >= AT_ONCE + AT_THE_NEXT_PAGE)
            time.sleep(self.random.uniform(0.1, 0.6))

    def _count(self, kill: Kill) -> None:
        self.kills.append(kill)
        self.visits[kill.kind] += 1
        for column, kinds in COLUMNS.items():
            if kill.kind in kinds:
                self.matrix.visits[kill.site or ANYWHERE, column] += 1

    def _in_cell(self, site: str, column: str) -> Kill | None:
        """Somebody comes to the site and stands still; the victim dies; whoever stood there, if it still lives, goes on."""
        self.number += 1
        self.product.arm(self.number, site, self.random.choice((1, 1, 2, 3, 7)), 0.0 if column == ITSELF else HALT)
        until = time.monotonic() + SITE_WAIT
        while (fired := self.product.fired(self.number)) is None and time.monotonic() < until:
            time.sleep(0.01)
        if fired is None:
            self.product.disarm()
            fired = self.product.fired(self.number)  # somebody may have come at this very moment
        if fired is None:
            self.matrix.misses[site, column] += 1
            return None
        pid, at = fired
        if column == ITSELF:
            return Kill(at, ITSELF, site)
        try:
            for kind in self.random.sample(COLUMNS[column], len(COLUMNS[column])):
                if pids := self.product.victims(kind, self.random, spared=pid):
                    kill = self._kill(kind, pids)
                    self.product.wait_for_the_end(pids, until=at + HALT)
                    break
            else:
                self.matrix.misses[site, column] += 1
                return None
        finally:
            self.product.go(self.number)
        if time.monotonic() < at + HALT:
            kill.site = site
        return kill  # otherwise it had gone on by then: a kill at any instant

    def _kill(self, kind: str, pids: list[int]) -> Kill:
        number = signal.SIGTERM if kind == "postgres session" else signal.SIGKILL
        return Kill(self.product.kill(pids, number), kind, ours=kind not in NOT_OURS)

    def _at_any_instant(self, kind: str) -> Kill | None:
        pids = self.product.victims(kind, self.random)
        if not pids:
            self.misses[kind] += 1
            return None
        kill = self._kill(kind, pids)
        if kind == "machine":
            self.product.kill_everything()
            self._start_again()
        return kill

    def _start_again(self) -> None:
        """As a person types `make run` again, sometimes dying once more on the way (the sites of the start)."""
        site = self.matrix.next_start(self.product.sites())
        if site:
            self.number += 1
            self.product.arm(self.number, site, 1)
        self.product.start()
        if site:
            self.product.disarm()
            if (fired := self.product.fired(self.number)) is not None:
                self._count(Kill(fired[1], ITSELF, site, alone=False, ours=False))
            else:
                self.matrix.misses[site, ITSELF] += 1

    def _recover(self, *, whole: bool = True) -> None:
        """Waits until a page arrives and every resident works, and if `whole` until every process is there exactly once."""
        begun = time.monotonic()
        arrived = len(self.ledger.arrivals)
        while time.monotonic() - begun < PATIENCE:
            if len(self.ledger.arrivals) > arrived and set(self.product.holders()) == set(SLOTS):
                self.settled = self.product.whole()
                if self.settled or not whole:
                    if (took := time.monotonic() - begun) > ON_A_CALM_MACHINE:
                        self.late.append(f"slow: whole {took:.0f} s after {self.kills[-1].name if self.kills else 'the start'}")
                    return
            time.sleep(0.05)
        last = self.kills[-1].name if self.kills else "the start"
        here = ", ".join(sorted(process.role for process in self.product.processes()))
        self.dead.append(f"not whole {PATIENCE:.0f} s after {last}: {here}; slots {self.product.holders()}\n{self.product.tail(15)}")
        print(f"NOT WHOLE after {last}; everything is started again", flush=True)
        if len(self.dead) >= MOST_DEAD:
            raise RuntimeError("\n".join(self.dead))
        self.product.kill_everything()
        self.product.start()
        self.kills.append(Kill(time.monotonic(), "machine", alone=False, ours=False))
        self.settled = True

    def _wait_for_the_rest(self, load: Load) -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < LONGEST_SETTLE:
            arrivals = list(self.ledger.arrivals)
            if {one.title for arrival in arrivals for one in arrival.incidents}.issuperset(dict(load.accepted)):
                break
            if time.monotonic() - max(begun, arrivals[-1].at if arrivals else 0.0) > SETTLE:
                break
            time.sleep(0.5)
        time.sleep(1.0)  # a repeat that is on its way is part of the judgement

    def _end(self) -> None:
        took, left = self.product.stop()
        if left:
            self.dead.append(f"Ctrl-C left {len(left)} processes: {left[:5]}")
        if took >= judging.CEILING:
            self.late.append(f"slow: Ctrl-C took {took:.1f} s")
        elif took > 3:
            self.slow_stop.append(f"Ctrl-C took {took:.1f} s")

    # ---- words

    def _tell(self, load: Load) -> None:
        if time.monotonic() - self.told > 15:
            self.told = time.monotonic()
            print(
                f"  {len(self.kills)} kills, {len(load.accepted)} accepted, {len(self.ledger.arrivals)} arrived, {len(self.product.sites())} sites, "
                f"{load.retries} sends tried again, {len(self.dead)} not whole",
                flush=True,
            )

    def _with_ends(self) -> list[Kill]:
        kills = sorted([*self.kills, *self.own_kills], key=lambda kill: kill.at)
        for kill, following in itertools.pairwise(kills):
            kill.until = following.at
        if kills:
            kills[-1].until = min(time.monotonic(), kills[-1].at + 10)
        return kills

    def _report(self, verdict: Verdict, kills: list[Kill], load: Load, calm: float, lasted: float) -> int:
        arrivals = list(self.ledger.arrivals)
        waits: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        repeats: defaultdict[str, list[int]] = defaultdict(list)
        nexts: list[float] = []
        ours: list[float] = []
        for index, kill in enumerate(kills):
            repeats[kill.kind].append(verdict.repeats.get(index, 0))
            if kill.alone and kill.until > kill.at:
                waits[kill.kind].append(judging.silences(arrivals, kill.at, kill.until))
                if kill.ours:
                    nexts.append(waits[kill.kind][-1][0])
                    ours.append(waits[kill.kind][-1][1])
        sites = {site for site in self.product.sites() if self.matrix.cells([site])} | {kill.site for kill in kills if kill.site}
        print("\nWhere somebody stood still or ended, and who was killed meanwhile:")
        print("\n".join(self.matrix.table([ANYWHERE, *sites])))
        print("\nwho was killed              visits missed | next page  longest silence (s) | repeats")
        print("                                          |   median   median      max     | all  most")
        for kind in [ITSELF, *KINDS]:
            seen, many = waits[kind], repeats[kind]
            numbers = (
                f"{statistics.median(w[0] for w in seen):8.2f} {statistics.median(w[1] for w in seen):8.2f} {max(w[1] for w in seen):8.2f}"
                if seen
                else " " * 26
            )
            print(f"{kind:<26} {self.visits[kind]:>7} {self.misses[kind]:>6} | {numbers}     | {sum(many):>3} {max(many, default=0):>5}")
        at_sites = [kill for kill in self.kills if kill.site]
        late = [wait for wait in ours if wait >= RECOVERY]
        share = 1 - len(late) / len(ours) if ours else 1.0
        prompt = sum(first < RECOVERY for first in nexts) / len(nexts) if nexts else 1.0
        delays = verdict.delays
        print(
            f"""
{len(self.kills)} kills in {lasted:.0f} s: {len(at_sites)} at {len({kill.site for kill in at_sites})} of {len(sites)} sites, {len(self.kills) - len(at_sites)} at any instant; {len(self.own_kills)} by the supervisor, for silence
{len(load.accepted)} accepted ({load.retries} sends tried again, {self.unaccepted} never accepted), {verdict.paged} paged, {len(arrivals)} messages, {self.ledger.torn} torn
lost: {len(verdict.lost)}   unlabelled repeats: {len(verdict.unlabelled)}   labelled repeats: {verdict.labelled}   not paged and explained: {len(verdict.explained)}   other wrongs: {len(verdict.wrong)}   after an acknowledgement: {len(verdict.after_ack)}
next page after a kill of a process of ours (alone, {len(ours)} kills): median {statistics.median(nexts) if nexts else 0:.2f} s, max {max(nexts, default=0):.2f} s, under {RECOVERY:g} s in {prompt:.1%}
longest silence after it: median {statistics.median(ours) if ours else 0:.2f} s, max {max(ours, default=0):.2f} s, under {RECOVERY:g} s in {share:.1%}; undisturbed {calm:.2f} s
accepted -> paged: median {delays[len(delays) // 2] * 1000 if delays else 0:.0f} ms, p99 {delays[int(len(delays) * 0.99)] * 1000 if delays else 0:.0f} ms, max {delays[-1] if delays else 0:.2f} s"""
        )
        problems: list[str] = []
        problems += [f"lost: {key}" for key in verdict.lost]
        problems += [f"unlabelled: {text}" for text in verdict.unlabelled]
        problems += [f"wrong: {text}" for text in verdict.wrong]
        problems += [f"refused: {text}" for text in load.refused]
        problems += [f"strange: {text}" for text in self.ledger.strange]
        problems += self.dead
        if self.unaccepted:
            problems.append(f"{self.unaccepted} alerts were not accepted within {LAST_ACCEPTED:.0f} s of the last kill")
        if not self.kills or not load.accepted:
            problems.append("nothing was killed, or nothing accepted: this proves nothing")
        if len(self.kills) < self.options.kills // 2:
            problems.append(f"only {len(self.kills)} of {self.options.kills} kills in the time that was given")
        always, strict = judging.times(ours)
        always += [f"after its acknowledgement: {text}" for text in verdict.after_ack]
        always += self.late
        strict += self.slow_stop
        if self.own_kills:
            strict.append(f"{len(self.own_kills)} residents were ended for their silence")
        notes = [f"explained: {key}: {reason}" for key, reason in verdict.explained.items()]
        stolen = [after - before for before, after in zip(self.ticks_before, ticks(), strict=True)]
        share = stolen[0] / max(1, stolen[1])
        if calm > CALM or self.load_before > 1 or share > STOLEN:
            print(
                f"TIMES NOT JUDGED: the machine is too busy: a load of {self.load_before:.1f} a core before we began, "
                f"{calm:.2f} s without a page where nothing was killed, {share:.1%} of the processors given to other machines"
            )
            notes += always + strict
        elif self.options.times:
            problems += always + strict
        else:
            print("TIMES JUDGED BY THEIR CEILING ONLY: what is slower than the goal is a number to read (--times makes it a failure)")
            problems += always
            notes += strict
        notes += [f"repeat where none was expected: {text}" for text in verdict.unexpected]
        alarms: defaultdict[str, int] = defaultdict(int)
        for line in self.product.log.read_text(errors="replace").splitlines():
            if found := ALARMS.search(line):
                alarms[found[0]] += 1
        notes += [f"in the product's log: {word}: {count} times" for word, count in alarms.items()]
        for line in [*_few(notes), *(f"FAILED {problem}" for problem in _few(problems))]:
            print(line)
        if problems:
            kept = Path(tempfile.gettempdir()) / f"flashduty-chaos-{self.run}.log"
            kept.write_bytes(self.product.log.read_bytes())
            print(f"{len(problems)} problems; the product's log is {kept}")
        return 1 if problems else 0


def ticks() -> tuple[int, int]:
    """(time that other machines had of our processors, all time) since the machine was started."""
    words = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return words[7], sum(words)


def _few(lines: list[str], most: int = 8) -> list[str]:
    """At most so many of each sort (what stands before the first colon), and how many more there are."""
    sorts: defaultdict[str, list[str]] = defaultdict(list)
    for line in lines:
        sorts[line.partition(":")[0]].append(line)
    few = []
    for sort, theirs in sorts.items():
        few += theirs[:most] + ([f"{sort}: {len(theirs) - most} more"] if len(theirs) > most else [])
    return few
