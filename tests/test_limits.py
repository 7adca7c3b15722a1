"""What a provider allows: at one address, of a whole account, and in a month. Over it messages wait, are bundled and fall back; none is dropped."""

import logging
import threading
import time
from datetime import UTC, date, datetime, timedelta

import pytest
from django.db import connection

from channels_app import compose, limits, outbox, policy
from channels_app.book import Book
from channels_app.models import Address, Channel, ChannelHealth, Delivery, Notification
from channels_app.outbox import claiming
from channels_app.transport import Limit, Receipt
from escalation.ids import hex_id
from tests.test_outbox import NOW, Provider, Scene, scene
from tests.world import layer

__all__ = ["scene"]  # the fixture


def test_own_limits_stand_in_for_those_of_the_same_scope():
    declared = (Limit(1, 1), Limit(20, 60), Limit(30, 1, "channel"))
    assert limits.own(None, declared) == declared
    assert limits.own({}, declared) == ()
    assert limits.own({"per_minute": 100}, declared) == (Limit(100, 60), Limit(30, 1, "channel"))
    assert limits.own({"total_per_second": 5}, declared) == (Limit(1, 1), Limit(20, 60), Limit(5, 1, "channel"))
    assert limits.own({"per_second": "many", "total_per_day": 0}, declared) == declared
    assert limits.own({"per_second": 2, "total_per_hour": 9}, ()) == (Limit(2, 1), Limit(9, 3600, "channel"))


# ---- of a whole account --------------------------------------------------------------------------------------------------------------


def sends(scene: Scene, name: str = "a") -> list[datetime]:
    at: list[datetime] = []
    scene.plan(name, lambda message: at.append(scene.now) or Receipt())
    return at


def test_the_limit_of_an_account_holds_over_all_its_addresses_and_the_most_severe_go_first(scene):
    channel = scene.channel("a", limits={"total_per_second": 3})
    for topic in range(1, 13):
        severity = "Critical" if topic > 9 else "Warning"
        scene.page(outbox.To(channel.id, f"t{topic}"), topic=topic, severity=severity)
    at = sends(scene)
    scene.pass_time(30)
    assert len(at) == 12 and {row.state for row in Delivery.objects.all()} == {"sent"}
    assert all((later - earlier).total_seconds() > 1 for earlier, later in zip(at, at[3:], strict=False))
    assert [message.severity for _n, message, _a in Provider.got[:3]] == ["Critical"] * 3
    assert at[-1] - at[0] < timedelta(seconds=4)  # and it is used up to the full


def test_pages_to_one_address_of_a_limited_account_are_bundled(scene):
    channel = scene.channel("chat", "chat", limits={"total_per_minute": 2})
    scene.page(outbox.To(channel.id, "other"), topic=500)
    for topic in range(1, 21):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    at = sends(scene, "chat")
    scene.pass_time(130)
    assert all((later - earlier).total_seconds() > 60 for earlier, later in zip(at, at[2:], strict=False))
    named = {one["id"] for _n, message, _a in Provider.got for one in message.incidents}
    assert named == {hex_id(NOW, topic) for topic in (500, *range(1, 21))} and len(at) < 6


def test_what_waits_for_an_account_past_its_deadline_takes_the_fallback(scene):
    channel = scene.channel("a", limits={"total_per_hour": 1}, fallback_kinds=["second"])
    scene.channel("b", "second")
    scene.page(scene.person(channel))
    scene.run()
    scene.page(scene.person(channel), topic=2)
    scene.run(1)
    assert scene.names() == ["a", "b"]


def test_who_is_out_of_calls_for_today_is_passed_over_and_called_when_there_are_some(world):
    lee, sue = world.person("Lee", ["sandbox_voice"]), world.person("Sue")
    Channel.objects.filter(kind="sandbox_voice").update(limits={"per_day": 3})
    world.rule(layer(lee), layer(sue))
    for number in range(3):
        world.alert(f"alert {number}")
        world.ack(f"alert {number}", sue)
    world.expect(*[("Lee", "voice", "triggered")] * 3)
    world.alert("db down")
    world.expect(("Sue", "app", "escalated"), at=0)
    world.alert("disk full")
    world.expect(("Sue", "app", "escalated"), at=0)
    world.ack("disk full", sue)
    world.pass_time(hours=25)
    called = [one.text for one in world.fresh() if one.who == "Lee"]
    assert [text for text in called if "db down" in text] and not [text for text in called if "disk full" in text]


def test_a_claim_at_channels_that_are_not_limited_as_a_whole_asks_nothing_more(scene):
    scene.page(scene.person(scene.channel("a")), outbox.To(scene.channel("c", "chat", limits={"per_minute": 5}).id, ""))
    book = Book()
    book.refresh(NOW)
    rows = [(pk, channel, "", {}, None, 0) for pk, channel in Address.objects.values_list("id", "channel_id")]
    places = claiming._plan(rows, NOW, outbox.Room(10), book)
    assert all(place.want for place in places.values())
    assert claiming._lock_channels(None, places.values(), NOW) == {}  # no cursor: a statement would fail


@pytest.mark.django_db(transaction=True)
def test_two_nodes_never_exceed_the_limit_of_an_account_together(transactional_db, scene):
    channel = scene.channel("a", limits={"total_per_minute": 7})
    for topic in range(40):
        scene.page(outbox.To(channel.id, f"t{topic}"), topic=topic)
    taken: list[int] = []

    def work(name: str) -> None:
        try:
            book = Book()
            book.refresh(scene.now)
            turn, end = 0, time.monotonic() + 60
            while turn < 6 or (len(taken) < 7 and time.monotonic() < end):  # a turn is empty while another node is at the channel
                turn += 1
                taken.extend(one.id for one in outbox.claim(name, scene.now, outbox.Room(5), book))
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "three")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 7
    assert len(ChannelHealth.objects.get().buckets["7/60"]) == 7


# ---- a month -------------------------------------------------------------------------------------------------------------------------


def used(channel: Channel, count: int, month: date = NOW.date().replace(day=1)) -> None:
    ChannelHealth.objects.update_or_create(channel=channel, defaults={"month": month, "month_count": count})


def test_a_month_is_counted_as_it_is_claimed_and_begins_anew(scene):
    channel = scene.channel("a", monthly_quota=100)
    used(channel, 99, date(2026, 2, 1))
    scene.page(scene.person(channel), topic=1)
    scene.page(outbox.To(channel.id, "t2"), topic=2, severity="Info")
    scene.run()
    health = ChannelHealth.objects.get()
    assert (health.month, health.month_count) == (date(2026, 3, 1), 2)


def test_the_last_tenth_of_a_month_is_for_what_is_critical_and_the_others_fall_back(scene):
    channel = scene.channel("a", monthly_quota=20, fallback_kinds=["second"])
    scene.channel("b", "second")
    used(channel, 17)
    for topic, severity in ((1, "Warning"), (2, "Warning"), (3, "Critical"), (4, "Info")):
        scene.page(outbox.To(channel.id, f"t{topic}", scene.lee.id), topic=topic, severity=severity)
    scene.run()
    assert scene.row(topic=3, channel=channel).state == "sent"
    assert sorted((row.topic, row.state) for row in Delivery.objects.filter(channel=channel).exclude(topic=3)) == [
        (1, "queued"), (2, "queued"), (4, "queued"),
    ]  # fmt: skip
    assert sorted(row.topic for row in Delivery.objects.filter(channel__name="b", state="sent")) == [1, 2, 4]
    assert scene.row(topic=1, channel=channel).reason == policy.MONTH_USED_UP
    for topic in (5, 6, 7):
        scene.page(outbox.To(channel.id, f"t{topic}", scene.lee.id), topic=topic)
    scene.pass_time(30)
    assert ChannelHealth.objects.get(channel=channel).month_count == 20
    assert sorted(row.topic for row in Delivery.objects.filter(channel__name="b", state="sent")) == [1, 2, 4, 7]


def test_a_quota_that_is_raised_lets_go_what_waits(scene):
    channel = scene.channel("a", monthly_quota=10)
    used(channel, 10)
    scene.page(scene.person(channel))
    scene.pass_time(600)
    assert not Provider.got and scene.row().state == "queued"
    Channel.objects.update(monthly_quota=50)
    scene.pass_time(301)
    assert scene.row().state == "sent"


@pytest.mark.slow
def test_a_page_that_waits_for_a_month_and_has_no_fallback_is_reported_upward_and_ends_after_a_day(scene):
    channel = scene.channel("a", monthly_quota=10)
    used(channel, 10)
    scene.page(scene.person(channel))
    scene.run()
    assert Notification.objects.get().exhausted_at == NOW
    scene.pass_time(25 * 3600)
    assert scene.row().state == "failed" and scene.row().reason == policy.MONTH_USED_UP and not Provider.got


def test_a_new_month_lets_go_what_waits(scene):
    scene.now = datetime(2026, 2, 28, 23, 0, tzinfo=UTC)
    channel = scene.channel("a", monthly_quota=10)
    used(channel, 10, date(2026, 2, 1))
    scene.page(scene.person(channel))
    scene.pass_time(3599)
    assert not Provider.got
    scene.pass_time(2)
    assert scene.row().state == "sent" and ChannelHealth.objects.get().month_count == 1


def test_a_month_that_runs_out_at_one_address_is_bundled(scene):
    channel = scene.channel("chat", "chat", monthly_quota=100)
    used(channel, 98)
    for topic in range(1, 31):
        scene.page(outbox.To(channel.id, ""), topic=topic)
    scene.run()
    named = {one["id"] for _n, message, _a in Provider.got for one in message.incidents}
    assert len(named) == 30 and len(Provider.got) <= 2


def test_it_is_logged_when_a_month_has_gone_to_four_fifths(scene, caplog):
    channel = scene.channel("a", monthly_quota=100)
    used(channel, 79)
    with caplog.at_level(logging.WARNING):
        scene.page(scene.person(channel))
        scene.run()
    assert [record.getMessage() for record in caplog.records if "80 of the 100" in record.getMessage()]


def test_a_month_that_comes_to_its_end_is_shown_to_whoever_keeps_the_channels(scene, client):
    scarce, plenty = scene.channel("Scarce", monthly_quota=100), scene.channel("Plenty", monthly_quota=1000)
    now = datetime.now(UTC)
    month = limits.month_of(now)
    for channel in (scarce, plenty):
        used(channel, 81, month)
    (line,) = ChannelHealth.short_of_messages(now)
    assert line.startswith("Scarce: 81 of the month's 100 messages are used already")
    alarms = client.get("/readyz").json()["alarms"]
    assert any("month's messages: 1" in text for text in alarms) and not any("Scarce" in text for text in alarms)
    assert ChannelHealth.short_of_messages(limits.next_month(now)) == []


@pytest.mark.parametrize(
    ("count", "level", "critical", "others"),
    [(0, "", 100, 90), (79, "", 21, 11), (80, "warning", 20, 10), (90, "reserve", 10, 0), (100, "over", 0, 0), (120, "over", 0, 0)],
)
def test_the_levels_of_a_quota(count, level, critical, others):
    quota = limits.quota(100, date(2026, 3, 1), count, NOW)
    assert quota is not None
    assert (quota.level, quota.left(reserve=True), quota.left(reserve=False)) == (level, critical, others)
    assert limits.quota(None, None, count, NOW) is None
    assert limits.quota(100, date(2026, 2, 1), count, NOW).used == 0


def test_the_forecast_is_linear_and_a_first_day_says_little():
    assert limits.forecast(100, datetime(2026, 3, 11, tzinfo=UTC)) == 310
    assert limits.forecast(100, datetime(2026, 3, 1, 0, 5, tzinfo=UTC)) == 3100
    assert limits.forecast(100, datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC)) == 100
    assert limits.next_month(datetime(2026, 12, 31, 23, tzinfo=UTC)) == datetime(2027, 1, 1, tzinfo=UTC)


# ---- length --------------------------------------------------------------------------------------------------------------------------


def test_a_bundle_is_measured_in_what_the_provider_counts(scene, monkeypatch):
    from tests.test_outbox import Chat

    channel = scene.channel("chat", "chat")
    book = Book()
    for topic in range(1, 61):
        scene.page(outbox.To(channel.id, ""), topic=topic, title="数据库主库复制延迟超过阈值，请立即处理")
    counts = {}
    for name, chars, size in (("characters", 4000, None), ("bytes", None, 4000), ("both", 4000, 6000)):
        monkeypatch.setattr(Chat, "max_chars", chars)
        monkeypatch.setattr(Chat, "max_bytes", size)
        book.refresh(NOW)
        one = outbox.claim("x", NOW, outbox.Room(1), book)[0]
        everybody = [one] * 60
        rendered, counts[name] = compose.bundled(everybody, NOW)
        assert len(rendered.text) <= (chars or 10**6) and len(rendered.text.encode()) <= (size or 10**6)
        outbox.take_over("x", NOW)
    assert counts["bytes"] < counts["both"] < counts["characters"]
