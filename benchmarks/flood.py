"""The limit proof: far more alerts than a provider takes, to bots that count, refuse and fall silent as the real ones do. Nothing is taken from
our own word: what was said is read from the bots' ledgers, and our records are held against them.

What is proven of each bot: every incident is named in a message that it took; it never had to refuse one for flooding; what is more severe is named
first; what is named after its deadline has a fallback that started by then; and the messages of our records are those of the ledger, one for one.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.fakes.dingtalk import DingTalkBot
from tests.fakes.feishu import FeishuBot
from tests.fakes.wecom import WeComBot

# Every page of some channels: with what it named, when it was due, when it went, inside which other one, and when its fallback began.
RECORDS: Final = """
SELECT d.id, d.channel_id, n.context ->> 'title', n.severity, extract(epoch FROM d.created_at)::float8, extract(epoch FROM d.deadline_at)::float8,
       extract(epoch FROM d.sent_at)::float8, d.state, d.bundled_by_id,
       (SELECT extract(epoch FROM min(f.created_at))::float8 FROM channels_app_delivery f WHERE f.fallback_of_id = d.id)
FROM channels_app_delivery d JOIN channels_app_notification n ON n.id = d.notification_id WHERE d.channel_id = ANY(%s) AND d.is_page
"""
_NUMBER: Final = re.compile(r"bench (\d+)")
_RANK: Final = {"Critical": 0, "Warning": 1, "Info": 2}


@dataclass(frozen=True, slots=True)
class Page:
    """One row of RECORDS."""

    id: int
    channel: int
    title: str
    severity: str
    created_at: float
    deadline_at: float
    sent_at: float | None
    state: str
    carrier: int | None
    fallback_at: float | None

    @property
    def number(self) -> int:
        return numbers(self.title).pop()


@dataclass(frozen=True, slots=True)
class Taken:
    """One message in a bot's ledger."""

    at: float
    numbers: frozenset[int]


def severity(number: int) -> str:
    """One in ten is critical, three are warnings."""
    return "Critical" if number % 10 == 7 else "Warning" if number % 10 in (2, 4, 6) else "Info"


def real(kind: str) -> Any:
    """A bot of a kind, to be entered: as strict as the real one (tests/fakes), by the clock on the wall."""
    style = {"dingtalk": DingTalkBot, "feishu": FeishuBot, "wecom": WeComBot}[kind]
    return type("Bot", (style,), {"kind": kind, "now": property(lambda self: time.time(), lambda self, value: None)})()


def numbers(text: str) -> set[int]:
    """The alerts that a text names."""
    return {int(found) for found in _NUMBER.findall(text)}


def ledger(bot: Any) -> list[Taken]:
    """What a fake bot took, in order."""
    return [Taken(at, frozenset(numbers(bot.words(body)))) for at, body in zip(list(bot.taken_at), list(bot.said), strict=False)]


@dataclass(slots=True)
class Verdict:
    """What is wrong, a sentence each: all empty when the proof holds."""

    not_named: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    out_of_order: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    not_as_recorded: list[str] = field(default_factory=list)

    def count(self) -> int:
        return sum(len(lines) for lines in self.plain().values())

    def plain(self) -> dict[str, list[str]]:
        return {
            "not named": self.not_named, "blocked": self.blocked, "out of order": self.out_of_order, "late without a fallback": self.late,
            "records and ledger differ": self.not_as_recorded,
        }  # fmt: skip


def judge(pages: Iterable[Page], bots: Mapping[int, tuple[Sequence[Taken], int]], *, grace: float = 0, apart: float = 0) -> Verdict:
    """Holds records against ledgers: `bots` has for each channel what its bot took and how often it refused for flooding.

    `grace`: seconds that a message needs from us to the bot, and a fallback from its instant to its row. `apart`: how long a severe page must
    have been waiting to be missed in a message; its row carries the instant at which the engine began to write it, and not that of its commit.
    """
    found = Verdict()
    by_channel: dict[int, list[Page]] = {channel: [] for channel in bots}
    for page in pages:
        by_channel[page.channel].append(page)
    for channel, (taken, refusals) in bots.items():
        mine = by_channel[channel]
        named: dict[int, float] = {}
        for message in taken:
            for number in message.numbers:
                named.setdefault(number, message.at)
        if refusals:
            found.blocked.append(f"channel {channel} was refused {refusals} times")
        if not mine:
            found.not_named.append(f"channel {channel} has no page at all")
        found.not_named += [f"{page.title} at channel {channel} ({page.state})" for page in mine if page.number not in named]
        found.out_of_order += _out_of_order(mine, taken, named, apart)
        for page in mine:
            told = named.get(page.number, float("inf"))
            if told > page.deadline_at + grace and (page.fallback_at is None or page.fallback_at > page.deadline_at + grace):
                found.late.append(f"{page.title}: {told - page.created_at:.1f} s, fallback {page.fallback_at}")
        found.not_as_recorded += _differences(mine, taken)
    return found


def _out_of_order(mine: Sequence[Page], taken: Sequence[Taken], named: Mapping[int, float], apart: float) -> list[str]:
    """Messages that named something less severe while something more severe had long been waiting."""
    rank = {page.number: _RANK[page.severity] for page in mine}
    found = []
    for message in taken:
        least = max((rank[number] for number in message.numbers if number in rank), default=0)
        waiting = [
            page for page in mine
            if _RANK[page.severity] < least and page.created_at + apart < message.at < named.get(page.number, float("inf"))
        ]  # fmt: skip
        if waiting:
            oldest = min(waiting, key=lambda page: page.created_at)
            found.append(
                f"{len(waiting)} more severe than a part of a message, such as {oldest.title} after {message.at - oldest.created_at:.1f} s"
            )
    return found


def _differences(mine: Sequence[Page], taken: Sequence[Taken]) -> list[str]:
    """Messages of which the other side does not know, by the alerts they name."""
    inside: dict[int, set[int]] = {}
    for page in mine:
        if page.state == "bundled" and page.carrier is not None:
            inside.setdefault(page.carrier, set()).add(page.number)
    ours = Counter(frozenset({page.number, *inside.get(page.id, ())}) for page in mine if page.state in ("sent", "delivered", "answered"))
    theirs = Counter(message.numbers for message in taken)
    found = [f"recorded and not taken: {sorted(names)[:5]}…" for names in (ours - theirs).elements()]
    found += [f"taken and not recorded: {sorted(names)[:5]}…" for names in (theirs - ours).elements()]
    carriers = {page.id for page in mine if page.state in ("sent", "delivered", "answered")}
    return found + [
        f"{page.title} went inside a message that did not go" for page in mine if page.state == "bundled" and page.carrier not in carriers
    ]
