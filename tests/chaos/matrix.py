"""Which cell of sites x kinds is next, and how often each was visited. Pure: no clock, no process."""

import random
from collections import defaultdict
from collections.abc import Iterable

ITSELF = "itself"
# Who dies while a process stands still at a site; where a column has several kinds, one of them by chance. "busy" and "idle" are never
# the process that stands there: that is "itself".
COLUMNS: dict[str, tuple[str, ...]] = {
    ITSELF: (ITSELF,),
    "web": ("web worker", "web parent", "whole web"),
    "supervisor": ("supervisor",),
    "sentinel": ("sentinel",),
    "pusher": ("pusher",),
    "monitor": ("monitor",),
    "busy": ("busy intake", "busy engine", "busy drain"),
    "idle": ("idle worker",),
    "tree": ("tree parent", "whole tree"),
    "all": ("supervisor, web and tree",),
    "postgres": ("postgres session", "postgres backend", "postmaster"),
}
ANYWHERE = "(any instant)"  # the row of kills that wait for no site
HEADS = ("self", "web", "supv", "sent", "push", "mon", "busy", "idle", "tree", "all", "pg")


def starting(site: str) -> bool:
    """Sites of the start are passed while nothing but the starting process is there: only it can be killed."""
    return "| start |" in site


class Matrix:
    """`only`: cells whose names contain this ("" is all of them); `choice` breaks ties."""

    def __init__(self, choice: random.Random, only: str = "") -> None:
        self.choice, self.only = choice, only
        self.visits: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.misses: defaultdict[tuple[str, str], int] = defaultdict(int)

    def cells(self, sites: Iterable[str]) -> list[tuple[str, str]]:
        """Every (site, column) that can be visited at all."""
        every = [(site, column) for site in sites for column in ([ITSELF] if starting(site) else COLUMNS)]
        return [cell for cell in every if self.only in " x ".join(cell)]

    def next(self, sites: Iterable[str]) -> tuple[str, str] | None:
        """The least visited cell; None when no site is left that is passed now and then."""
        cells = self.cells(site for site in sites if not starting(site) and self.is_alive(site))
        return min(cells, key=lambda cell: self.visits[cell] + self.misses[cell] + self.choice.random(), default=None)

    def next_start(self, sites: Iterable[str]) -> str | None:
        cells = self.cells(site for site in sites if starting(site) and self.is_alive(site))
        found = min(cells, key=lambda cell: self.visits[cell] + self.misses[cell] + self.choice.random(), default=None)
        return found[0] if found else None

    def is_alive(self, site: str) -> bool:
        """A site that was waited for in vain more often than not is left alone."""
        rows = [(site, column) for column in COLUMNS]
        return sum(self.misses[cell] for cell in rows) <= sum(self.visits[cell] for cell in rows) + 1

    def table(self, sites: Iterable[str]) -> list[str]:
        """One line for each site, one number for each column, and what they add up to."""
        order = sorted(sites)
        lines = [" " * 66 + "".join(f"{head:>5}" for head in HEADS) + "  missed"]
        for site in order:
            counts = [f"{self.visits[site, c]:>5}" if (site, c) in set(self.cells([site])) else "    -" for c in COLUMNS]
            lines.append(f"{_short(site, 65):<66}{''.join(counts)}{sum(self.misses[site, c] for c in COLUMNS):>8}")
        cells = self.cells(order)
        visited = [self.visits[cell] for cell in cells]
        lines.append(
            f"{len(order)} sites x {len(COLUMNS)} kinds: {len(cells)} cells, {sum(visited)} visits, at least {min(visited, default=0)} "
            f"and at most {max(visited, default=0)} each; {visited.count(0)} cells were not visited"
        )
        return lines


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}..{name[len(name) - most // 2 + 1 :]}"
