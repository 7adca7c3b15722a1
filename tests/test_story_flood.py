"""Stories of a flood: more alerts than bots take, on the story's clock. The proof at full size and in real time is `python -m benchmarks flood`."""

import itertools
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import connection

from benchmarks.flood import RECORDS, Page, Taken, judge, ledger, severity
from channels_app import limits, outbox
from channels_app.book import Book
from channels_app.models import Channel, Delivery
from channels_app.transport import Limit
from escalation.ids import hex_id
from templates_app import events
from tests.fakes.dingtalk import DingTalkBot
from tests.fakes.feishu import FeishuBot
from tests.fakes.server import Server
from tests.fakes.wecom import WeComBot
from tests.world import START

pytestmark = pytest.mark.django_db
KINDS = {"dingtalk": DingTalkBot, "feishu": FeishuBot, "wecom": WeComBot}


def on_the_clock(world, kind: str, **options):
    """A bot whose clock is the story's."""
    style = KINDS[kind]
    return type("Bot", (style,), {"now": property(lambda self: world.now.timestamp(), lambda self, value: None)})(**options)


def flood(world, channels: list[int], first: int, count: int) -> None:
    """Pages as the engine posts them, spread over the channels."""
    outbox.post(
        [
            outbox.Notice(
                event="triggered", severity=severity(number), is_page=True, topic=number, layer_idx=0,
                context=events.build(
                    "triggered", id=hex_id(START, number), num=f"{number:06X}", title=f'bench {number} "quoted" <@all> **x**',
                    severity=severity(number), progress="Triggered", detail_url=f"http://testserver/i/{hex_id(START, number)}/", start_time=START,
                ),
                to=(outbox.To(channels[number % len(channels)], ""),),
            )
            for number in range(first, first + count)
        ],
        world.now,
    )  # fmt: skip


def records(channels: list[int]) -> list[Page]:
    with connection.cursor() as cursor:
        cursor.execute(RECORDS, [channels])
        return [Page(*row) for row in cursor.fetchall()]


@pytest.mark.parametrize("kinds", [["dingtalk"], ["feishu", "dingtalk", "wecom"]], ids="-".join)
def test_a_flood_names_every_incident_and_never_annoys_a_bot(world, kinds):
    bots = [on_the_clock(world, kind) for kind in kinds]
    with Server() as spare:
        other = Channel.objects.create(kind="webhook", name="spare", settings={"url": spare.url}, allowed_hosts=[spare.host])
        for bot in bots:
            bot.__enter__()
        channels = [
            Channel.objects.create(kind=kind, name=kind, settings={"url": bot.hook, "keyword": "#"}, allowed_hosts=[bot.host], fallback_channel=other).id
            for kind, bot in zip(kinds, bots, strict=True)
        ]  # fmt: skip
        for turn in range(20):  # 160 in less than half a second, while the first of them leave; what waits must not wait for a whole window
            flood(world, channels, turn * 8, 8)
            outbox.run_once(world.now)
            world.now += timedelta(seconds=0.02)
        while Delivery.objects.filter(channel__in=channels, state="queued").exists():
            world.pass_time(seconds=10)
            assert (world.now - START).total_seconds() < 600
        for bot in bots:
            bot.__exit__()
    ledgers = {channel: (ledger(bot), len(bot.blocks)) for channel, bot in zip(channels, bots, strict=True)}
    pages = records(channels)
    assert len(pages) == 160
    verdict = judge(pages, ledgers)
    assert verdict.count() == 0, verdict.plain()
    called = [name for bot in bots if hasattr(bot, "called") for body in bot.said for name in bot.called(body)]
    assert called == [], "a title that wants to call everybody"
    critical = [page for page in pages if page.severity == "Critical"]
    assert all(page.sent_at is not None and page.sent_at < page.deadline_at for page in critical), "none of them needed its fallback"
    assert sum(len(taken) for taken, _refusals in ledgers.values()) < 60, "bundled"


@pytest.mark.parametrize(("count", "gap"), [(18, 7), (9, 14), (95, 2)])
def test_a_minutes_messages_are_spread_and_all_used(count, gap):
    """Under a demand that never ends: never more than the count in a minute, never a long silence, and over ten minutes nearly all of them."""
    [limit] = spread = (Limit(count, 60),)
    log, at, now = {}, [], START
    while now < START + timedelta(minutes=10):
        free, wait = limits.look(log, spread, now)
        if free:
            at.append(now)
            log = limits.taken(log, spread, now, 1)
        now = max(wait or now, now + timedelta(milliseconds=20))
    seconds = [(then - START).total_seconds() for then in at]
    assert all(later - earlier > 60 for earlier, later in zip(seconds, seconds[limit.count :], strict=False))
    assert max(later - earlier for earlier, later in itertools.pairwise(seconds)) < gap
    assert sum(then < 1 for then in seconds) >= count // 2 and len(at) > count * 9.2


def test_short_windows_and_few_messages_are_not_spread():
    for limit in (Limit(4, 1), Limit(5, 60), Limit(100, 3600)):
        log = limits.taken({}, [limit], START, limit.count - 1)
        assert limits.look(log, [limit], START) == (1, None)


def test_a_channel_that_sends_two_messages_a_page_sends_half_as_many(db):
    settings = {"url": "https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key=c0ffee00-1234"}
    rows = [Channel.objects.create(kind="wecom", name="x", settings=settings | {"by_phone": by_phone}) for by_phone in (False, True)]
    book = Book()
    book.refresh(START)
    assert [book.channels[row.id].limits for row in rows] == [(Limit(18, 60),), (Limit(9, 60),)]


PAGES = [Page(1, 5, "bench 1", "Info", 0, 60, 2, "sent", None, None), Page(2, 5, "bench 2", "Info", 0, 60, 2, "bundled", 1, None)]
LEDGER = [Taken(2, frozenset({1, 2}))]


@pytest.mark.parametrize(
    ("pages", "taken", "refusals", "wrong"),
    [
        (PAGES, LEDGER, 0, []),
        (PAGES, [], 0, ["not_named", "late", "not_as_recorded"]),
        (PAGES, [Taken(2, frozenset({1}))], 0, ["not_named", "late", "not_as_recorded"]),
        (PAGES, LEDGER * 2, 0, ["not_as_recorded"]),
        (PAGES, LEDGER, 1, ["blocked"]),
        (PAGES, [Taken(61, frozenset({1, 2}))], 0, ["late"]),
        ([replace(page, fallback_at=60) for page in PAGES], [Taken(61, frozenset({1, 2}))], 0, []),
        ([replace(page, fallback_at=61) for page in PAGES], [Taken(62, frozenset({1, 2}))], 0, ["late"]),
        (
            [*PAGES, Page(3, 5, "bench 3", "Critical", 1, 60, 3, "sent", None, None)],
            [*LEDGER, Taken(3, frozenset({3}))],
            0,
            ["out_of_order"],
        ),
        ([*PAGES, Page(3, 5, "bench 3", "Critical", 2, 60, 3, "sent", None, None)], [*LEDGER, Taken(3, frozenset({3}))], 0, []),
        ([PAGES[0], replace(PAGES[1], carrier=9)], LEDGER, 0, ["not_as_recorded"]),
        ([], [], 0, ["not_named"]),
    ],
)
def test_the_judge_sees_what_is_wrong(pages, taken, refusals, wrong):
    verdict = judge(pages, {5: (taken, refusals)})
    assert [name for name in ("not_named", "blocked", "out_of_order", "late", "not_as_recorded") if getattr(verdict, name)] == wrong
