"""Several vendors behind one kind, and people's own accounts: which channel is asked first, which next, and who is told by nothing."""

import threading
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from channels_app import addresses, outbox, policy, transport
from channels_app.addresses import Missing, Target
from channels_app.book import Book
from channels_app.compose import Claimed, Result
from channels_app.http import DeliveryError
from channels_app.models import Account, Channel, ChannelHealth, Delivery, Notification
from channels_app.transport import Limit, Receipt
from mapping.models import ContactPoint, Member, Team
from tests.test_addresses import NOW, style
from tests.test_outbox import BUSY, GONE, LOST, Provider, Scene, claim, scene

__all__ = ["scene"]  # the fixture

CHINA, AMERICA = "+8613800138000", "+14155552671"


@pytest.fixture
def lee(db: None, monkeypatch: pytest.MonkeyPatch) -> Member:
    for kind, family in (("twilio_voice", "voice"), ("aliyun_voice", "voice"), ("smtp", "email")):
        monkeypatch.setitem(transport.transports(), kind, style(kind, "email" if family == "email" else "phone", family=family))
    for kind in ("chat", "talk"):  # bots that write to groups, and to one person who has started them
        made = style(kind, "group", family="im", personal=True, fallback_kinds=("sms", "email"))
        monkeypatch.setitem(transport.transports(), kind, made)
    return Member.objects.create_user("lee@example.com", "Lee")


def channel(kind: str, name: str = "", **fields: Any) -> Channel:
    return Channel.objects.create(kind=kind, name=name or kind, **fields)


def phone(member: Member, value: str = CHINA, **fields: Any) -> ContactPoint:
    return ContactPoint.objects.create(member=member, kind="phone", value=value, **({"verified_at": NOW} | fields))


def ways(member: Member, *kinds: str, severity: str = "Critical", now: datetime = NOW) -> list[Target | Missing]:
    return addresses.reach([member.id], severity, now, kinds=kinds or None)[member.id]


def by(found: list[Target | Missing]) -> list[int]:
    return [item.channel_id for item in found if isinstance(item, Target)]


def why(found: list[Target | Missing]) -> str:
    assert len(found) == 1 and isinstance(found[0], Missing), found
    return found[0].reason


def test_a_family_is_its_first_vendor_and_a_kind_is_only_itself(lee):
    phone(lee)
    second, first = channel("twilio_voice", position=2), channel("aliyun_voice", position=1)
    assert ways(lee, "voice") == [Target(first.id, CHINA, 0, "aliyun_voice")]
    assert by(ways(lee, "twilio_voice")) == [second.id]
    assert by(ways(lee)) == [first.id]  # without a preference, too, one call and not one of each vendor


def test_the_channel_that_names_the_region_of_the_phone_goes_first_and_one_that_names_others_not_at_all(lee):
    anywhere = channel("twilio_voice", position=1)
    china = channel("aliyun_voice", position=5, regions=["CN", "HK"])
    phone(lee)
    assert by(ways(lee, "voice")) == [china.id]
    ContactPoint.objects.update(value=AMERICA)
    assert by(ways(lee, "voice")) == [anywhere.id]
    anywhere.delete()
    assert "region" in why(ways(lee, "voice"))
    phone(lee, position=3)  # the second phone of the person can be called
    assert ways(lee, "voice") == [Target(china.id, CHINA, 0, "aliyun_voice")]


def test_shares_are_kept_and_who_asks_within_the_minute_gets_the_same_answer(lee):
    phone(lee)
    large, small, none = channel("twilio_voice", weight=3), channel("twilio_voice", "b", weight=1), channel("aliyun_voice")
    rows = list(Channel.objects.all())
    minutes = [NOW + timedelta(minutes=count) for count in range(2000)]
    orders = [[row.id for row in addresses.vendors(rows, "voice", now, member=lee.id, phone=CHINA)] for now in minutes]
    firsts = Counter(order[0] for order in orders)
    assert 0.7 < firsts[large.id] / 2000 < 0.8 and firsts[large.id] + firsts[small.id] == 2000
    assert {order[2] for order in orders} == {none.id}
    assert by(ways(lee, "voice")) == by(ways(lee, "voice", now=NOW + timedelta(seconds=59))) == [orders[0][0]]
    channel("twilio_voice", "ahead", position=0, weight=1)
    Channel.objects.filter(name__in=["twilio_voice", "b"]).update(position=1)
    assert by(ways(lee, "voice")) != [large.id]  # position before share


def test_a_vendor_whose_breaker_is_open_or_whose_month_is_used_up_is_passed_over_while_there_is_another(lee):
    phone(lee)
    first, second = channel("twilio_voice", position=0, monthly_quota=100), channel("aliyun_voice", position=1)
    health = ChannelHealth.objects.create(channel=first, failures=5, open_until=NOW + timedelta(seconds=30))
    assert by(ways(lee, "voice")) == [second.id]
    assert by(ways(lee, "voice", now=NOW + timedelta(seconds=31))) == [first.id]
    health.failures, health.month, health.month_count = 0, NOW.date().replace(day=1), 95
    health.save()
    assert by(ways(lee, "voice", severity="Critical")) == [first.id] and by(ways(lee, "voice", severity="Info")) == [second.id]
    ChannelHealth.objects.update(month_count=100)
    assert by(ways(lee, "voice")) == [second.id]
    second.delete()
    assert by(ways(lee, "voice")) == [first.id]  # there is no other: it waits, and takes its fallback


def test_a_sandbox_never_stands_before_a_real_vendor_that_reaches_the_person(lee):
    play, real = channel("sandbox_voice", position=0), channel("twilio_voice", position=9)
    assert by(ways(lee, "voice")) == [play.id]  # no phone: the sandbox plays it
    phone(lee)
    assert by(ways(lee, "voice")) == [real.id]


def test_a_person_is_reached_at_every_account_that_is_verified_and_told_why_not_at_others(lee):
    chat, talk = channel("chat"), channel("talk")
    assert "not linked" in why(ways(lee, "chat"))
    mine = Account.objects.create(member=lee, channel=chat, target="100")
    assert "not verified" in why(ways(lee, "chat")) and "not verified" in why(ways(lee, "im"))
    Account.objects.update(verified_at=NOW)
    Account.objects.create(member=lee, channel=talk, target="200", verified_at=NOW)
    Account.objects.create(member=Member.objects.create_user("kim@example.com"), channel=chat, target="300", verified_at=NOW)
    assert ways(lee, "chat") == [Target(chat.id, mine.target, 0, "chat")]
    assert [item.target for item in ways(lee, "im") if isinstance(item, Target)] == ["100", "200"]
    assert [item.target for item in ways(lee, severity="Warning") if isinstance(item, Target)] == ["100", "200"]


def test_where_a_group_reads_nobody_has_an_account(lee):
    chat = channel("chat")
    Channel.objects.filter(id=chat.id).update(targets=["-5"])
    for target in ("", "-5"):
        Account.objects.create(member=lee, channel=chat, target=target, verified_at=NOW)
    assert "not linked" in why(ways(lee, "chat"))


def test_a_channel_of_one_person_tells_them_and_nobody_else(lee):
    kim = Member.objects.create_user("kim@example.com", "Kim")
    own = channel("chat", owner=lee)
    for member in (lee, kim):
        Account.objects.create(member=member, channel=own, verified_at=NOW)
    assert by(ways(lee, "chat")) == by(ways(lee, severity="Warning")) == [own.id]
    assert "no enabled channel" in why(ways(kim, "chat"))
    kim.preferences.create(severity="Critical", kind="chat", channel=own)
    assert "switched off" in why(ways(kim))
    lee.preferences.create(severity="Critical", kind="chat", channel=own)
    assert by(ways(lee)) == [own.id]


def test_a_preference_names_no_channel_of_a_team_that_the_person_has_left(lee):
    phone(lee)
    ours = Team.objects.create(name="X")
    ours.members.add(lee)
    gateway = channel("twilio_voice", team=ours)
    lee.preferences.create(severity="Critical", kind="twilio_voice", channel=gateway, delay=30)
    assert by(ways(lee)) == [gateway.id]
    ours.members.remove(lee)
    assert "team that the person is not in" in why(ways(lee))
    shared = channel("aliyun_voice")
    assert ways(lee) == [Target(shared.id, CHINA, 30, "aliyun_voice")]
    # One call, by the vendor that was asked for where there is a channel of it.
    same = channel("twilio_voice", "shared", position=9)
    assert ways(lee) == [Target(same.id, CHINA, 30, "twilio_voice")]


def test_a_channel_of_one_person_is_listed_for_them_and_chosen_in_no_rule(lee):
    kim = Member.objects.create_user("kim@example.com", "Kim", role="manager")
    team = Team.objects.create(name="Ops")
    team.members.add(kim, lee)
    channel("chat", "own", owner=lee, team=team)
    root = Member.objects.create_superuser("root@example.com")
    shared = channel("chat", "shared")

    def names(rule: Any) -> set[str]:
        return {row.name for row in Channel.objects.filter(rule)}

    assert names(Channel.usable_q(lee)) == {"own", "shared"} and names(Channel.usable_q(kim)) == {"shared"}
    assert [names(Channel.for_groups_q(who)) for who in (lee, kim, root)] == [{"shared"}] * 3
    assert {row.name for row in Channel.objects.visible_to(lee)} == {"own"} and not Channel.objects.visible_to(kim)
    assert Channel.objects.visible_to(root).count() == 2 and not Channel.objects.changeable_by(kim).exists()
    assert shared.owner_id is None


# ---- when one fails ------------------------------------------------------------------------------------------------------------------


class Voice(Provider):
    kind = "voice_one"
    family = "voice"
    reach = "phone"


class OtherVoice(Voice):
    kind = "voice_two"


class Sms(Voice):
    kind = "sms_one"
    family = "sms"


class OtherSms(Sms):
    kind = "sms_two"


class Mail(Voice):
    kind = "mail"
    family = "email"
    reach = "email"


class Bot(Provider):
    kind = "bot"
    family = "im"
    reach = "group"
    personal = True
    fallback_kinds = ("sms", "email")


@pytest.fixture
def story(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    for made in (Voice, OtherVoice, Sms, OtherSms, Mail, Bot):
        monkeypatch.setitem(transport.transports(), made.kind, made)
    phone(scene.lee)
    ContactPoint.objects.create(member=scene.lee, kind="email", value="lee@example.com", verified_at=NOW)
    return scene


def page(scene: Scene, *kinds: str, **fields: Any) -> None:
    found = addresses.reach([scene.lee.id], "Critical", scene.now, kinds=kinds)[scene.lee.id]
    scene.page(*(outbox.To(item.channel_id, item.target, scene.lee.id) for item in found if isinstance(item, Target)), **fields)


def test_when_a_vendor_fails_the_next_one_of_the_family_is_tried_before_the_fallback_kinds(story):
    story.channel("one", "voice_one", position=0, fallback_kinds=["sms"])
    story.channel("two", "voice_two", position=1)
    story.channel("three", "voice_two", position=2)
    story.channel("sms", "sms_one")
    for name in ("one", "two", "three"):
        story.plan(name, GONE)
    page(story, "voice")
    story.run()
    assert story.names() == ["one", "two", "three", "sms"]
    assert {address for _n, _m, address in Provider.got} == {CHINA}
    chain = {row.channel.name: row.fallback_of and row.fallback_of.channel.name for row in Delivery.objects.all()}
    assert chain == {"one": None, "two": "one", "three": "two", "sms": "three"}
    story.pass_time(60)
    assert len(Provider.got) == 4


def test_the_next_vendor_calls_within_ten_seconds_of_the_first_failure(story):
    story.channel("one", "voice_one", position=0)
    story.channel("two", "voice_two", position=1)
    story.plan("one", BUSY)
    at = []
    story.plan("two", lambda message: at.append(story.now) or Receipt())
    page(story, "voice")
    story.pass_time(60)
    assert len(at) == 1 and at[0] - NOW < timedelta(seconds=10)


def test_what_another_vendor_delivered_to_the_same_phone_is_not_sent_again_by_the_one_that_comes_back(story):
    story.channel("one", "sms_one", position=0)
    story.channel("two", "sms_two", position=1)
    story.plan("one", BUSY)
    page(story, "sms")
    story.pass_time(60)
    assert story.names().count("two") == 1 and story.row(channel__name="two").state == "sent"
    assert (story.row(channel__name="one").state, story.row(channel__name="one").reason) == ("cancelled", outbox.posting.OVERTAKEN)
    before = len(Provider.got)
    story.plan("one", Receipt())
    story.pass_time(3600)
    assert len(Provider.got) == before and Notification.objects.get().exhausted_at is None


@pytest.fixture
def hangs(story: Scene) -> Claimed:
    """The third try of vendor one hangs, and at the end of the budget vendor two has sent the page to the same phone."""
    story.channel("one", "sms_one", position=0)
    story.channel("two", "sms_two", position=1)
    page(story, "sms")
    for _turn in range(2):
        [one] = claim(story, "h")[1]
        outbox.record("h", [Result(one, story.now, 0.1, BUSY)], story.now)
        story.now = story.row(channel__name="one").not_before
    [one] = claim(story, "h")[1]
    story.now = NOW + timedelta(seconds=10.1)
    story.run()
    assert story.names() == ["two"] and story.row(channel__name="one").state == "sending"
    story.now += timedelta(seconds=2)
    return one


def ended(scene: Scene) -> tuple[str, bool]:
    row = scene.row(channel__name="one")
    return row.state, row.withdrawn


@pytest.mark.parametrize(("said", "end"), [(BUSY, "cancelled"), (LOST, "unknown")])
def test_a_vendor_that_hung_while_another_one_delivered_is_not_tried_again(story, hangs, said, end):
    outbox.record("h", [Result(hangs, story.now, 8, said)], story.now)
    assert ended(story) == (end, True) and story.row(channel__name="one").reason == outbox.posting.OVERTAKEN
    story.pass_time(3600)
    assert story.names() == ["two"] and Notification.objects.get().exhausted_at is None


def test_a_vendor_that_hung_and_whose_drain_died_is_not_tried_again_where_another_one_delivered(story, hangs):
    assert outbox.take_over("h", story.now) == 1
    assert ended(story) == ("unknown", True)
    story.pass_time(3600)
    assert story.names() == ["two"]


def test_what_a_vendor_sent_after_all_is_said_to_be_sent_and_what_it_refused_to_have_failed(story, hangs):
    outbox.record("h", [Result(hangs, story.now, 8, Receipt(message_id="late"))], story.now)
    assert ended(story) == ("sent", False) and story.row(channel__name="one").reason == ""
    for name in ("two", "one"):  # each is reported to have failed: now the page has reached nobody
        row = story.row(channel__name=name)
        assert Notification.objects.get().exhausted_at is None
        outbox.receipt(row.channel_id, row.message_id, "failed", "switched off", story.now)
        story.pass_time(5)
    assert Notification.objects.get().exhausted_at is not None


def test_a_vendor_that_hung_and_refuses_leaves_the_page_to_the_other_whose_failure_is_then_the_last(story, hangs):
    outbox.record("h", [Result(hangs, story.now, 8, GONE)], story.now)
    assert ended(story) == ("failed", False)
    two = story.row(channel__name="two")
    outbox.receipt(two.channel_id, two.message_id, "failed", "switched off", story.now)
    story.run()
    assert Notification.objects.get().exhausted_at is not None


def test_a_vendor_that_hangs_is_tried_again_when_the_one_that_took_over_is_reported_to_have_failed_meanwhile(story, hangs):
    two = story.row(channel__name="two")
    outbox.receipt(two.channel_id, two.message_id, "failed", "switched off", story.now)
    story.run()
    assert ended(story) == ("sending", False) and Notification.objects.get().exhausted_at is None
    outbox.record("h", [Result(hangs, story.now, 8, LOST)], story.now)
    story.pass_time(60)
    assert story.names() == ["two", "one"] and ended(story) == ("sent", False)


def test_what_is_acknowledged_while_a_vendor_hangs_stays_so_whatever_becomes_of_it(story, hangs):
    assert outbox.cancel([1], "acknowledged", story.now) == 0
    outbox.record("h", [Result(hangs, story.now, 8, Receipt(message_id="late"))], story.now)
    assert ended(story) == ("sent", True)
    outbox.receipt(hangs.channel.id, "late", "failed", "switched off", story.now)
    story.pass_time(3600)
    assert story.names() == ["two"] and Notification.objects.get().exhausted_at is None


@pytest.mark.parametrize("dies", [False, True])
def test_what_hung_inside_a_bundle_while_another_vendor_delivered_it_is_not_tried_again(story, monkeypatch, dies):
    monkeypatch.setattr(Sms, "limits", (Limit(1, 5),))
    story.channel("one", "sms_one", position=0)
    two = story.channel("two", "sms_two", position=1)
    for topic in (1, 2, 3):
        page(story, "sms", topic=topic)
    [bundle] = claim(story, "h")[1]
    assert len(bundle.bundle) == 2
    story.now += timedelta(seconds=10.1)
    story.pass_time(12)
    assert set(story.names()) == {"two"} and Delivery.objects.filter(channel=two, ended_at=None).count() == 0
    if dies:
        assert outbox.take_over("h", story.now) == 3
    else:
        outbox.record("h", [Result(bundle, story.now, 8, LOST)], story.now)
    rows = Delivery.objects.filter(channel__name="one").values_list("state", "withdrawn", "reason")
    assert set(rows) == {("unknown", True, outbox.posting.OVERTAKEN)}
    story.pass_time(600)
    assert set(story.names()) == {"two"}


def test_an_original_goes_on_when_the_vendor_that_took_over_is_reported_to_have_failed(story):
    one, two = story.channel("one", "voice_one", position=0), story.channel("two", "voice_two", position=1)
    story.plan("one", BUSY)
    page(story, "voice")
    story.pass_time(30)
    call = story.row(channel=two)
    assert (call.state, story.row(channel=one).state) == ("sent", "cancelled")
    story.plan("one", Receipt())
    outbox.receipt(two.id, call.message_id, "failed", "busy", story.now)
    story.pass_time(10)
    assert (story.row(channel=two).state, story.row(channel=one).state) == ("failed", "sent")


def test_another_kind_of_message_ends_no_original(story):
    bot = story.channel("bot", "bot", fallback_kinds=["email"])
    story.channel("mail", "mail")
    Account.objects.create(member=story.lee, channel=bot, target="100", verified_at=NOW)
    story.plan("bot", BUSY)
    page(story, "im")
    story.pass_time(60)
    assert story.row(channel__name="mail").state == "sent" and story.row(channel=bot).state == "queued"


def test_a_vendor_that_hangs_has_used_up_the_budget_with_one_attempt():
    said = DeliveryError("no answer came", permanent=False, left=True)
    until = NOW + timedelta(hours=1)
    verdict = policy.judge(said, tries=1, seed=1, is_page=True, deadline_at=until, give_up_at=until, now=NOW, seconds=8)
    assert verdict.fallback and verdict.state == "queued"
    assert not policy.judge(said, tries=1, seed=1, is_page=True, deadline_at=until, give_up_at=until, now=NOW, seconds=0.2).fallback


def test_a_dead_vendor_costs_nothing_any_more_once_its_breaker_is_open(story):
    story.channel("one", "voice_one", position=0)
    two = story.channel("two", "voice_two", position=1)
    story.plan("one", BUSY)
    for topic in range(1, 7):
        page(story, "voice", topic=topic)
    story.run()
    before = story.names().count("one")
    story.now += timedelta(seconds=1)
    page(story, "voice", topic=50)
    story.run()
    assert story.names().count("one") == before and story.row(topic=50).channel == two and story.row(topic=50).state == "sent"


def test_an_im_message_that_fails_goes_out_by_sms_and_e_mail_at_once(story):
    bot = story.channel("bot", "bot")
    story.channel("sms", "sms_one")
    story.channel("mail", "mail")
    Account.objects.create(member=story.lee, channel=bot, target="100", verified_at=NOW)
    story.plan("bot", GONE)
    page(story, "im")
    story.run()
    assert story.names() == ["bot", "sms", "mail"]
    Channel.objects.filter(id=bot.id).update(fallback_kinds=["email"])  # configurable for each channel
    page(story, "im", topic=2)
    story.run()
    assert story.names()[3:] == ["bot", "mail"]
    Channel.objects.filter(id=bot.id).update(fallback_kinds=[])
    page(story, "im", topic=3)
    story.run()
    assert story.names()[5:] == ["bot"]


def test_what_a_person_wanted_later_leaves_now_as_the_fallback_of_what_has_failed_unless_it_is_night(story):
    bot = story.channel("bot", "bot")
    sms, mail = story.channel("sms", "sms_one"), story.channel("mail", "mail")
    story.plan("bot", GONE)
    to = outbox.To(bot.id, "100", story.lee.id)
    story.page(to, outbox.To(sms.id, CHINA, story.lee.id, delay=120), outbox.To(mail.id, "lee@example.com", story.lee.id, delay=300))
    story.run()
    assert sorted(story.names()) == ["bot", "mail", "sms"]
    story.page(to, outbox.To(sms.id, CHINA, story.lee.id, delay=3600, reason="quiet hours"), topic=2)
    story.run()
    assert sorted(story.names()[3:]) == ["bot", "mail"]
    story.pass_time(3600)
    assert len(Provider.got) == 6


def test_in_place_of_a_silent_message_nothing_rings_in_quiet_hours(story):
    Member.objects.filter(id=story.lee.id).update(quiet_start="22:00", quiet_end="07:00", time_zone="UTC")
    bot, mail = story.channel("bot", "bot"), story.channel("mail", "mail", fallback_kinds=["sms"])
    sms = story.channel("sms", "sms_one")
    story.plan("mail", GONE)
    letter = outbox.To(mail.id, "lee@example.com", story.lee.id)
    for loop in range(3):
        story.page(letter, severity="Warning", rank=2 if loop else 0)
        story.pass_time(600)
    held = Delivery.objects.get(channel=sms, state="queued")
    assert (held.not_before, held.reason) == (NOW + timedelta(hours=4), "quiet hours until 07:00 UTC") and "sms" not in story.names()
    story.page(letter, topic=2)  # Critical breaks quiet hours
    story.plan("bot", GONE)
    story.page(outbox.To(bot.id, "100", story.lee.id), letter, topic=3, severity="Warning")  # it rang for them, or was to
    story.run()
    assert story.names().count("sms") == 2
    story.pass_time(4 * 3600)
    assert story.names().count("sms") == 3


@pytest.mark.django_db(transaction=True)
def test_two_messages_that_fail_together_start_one_fallback(transactional_db, story):
    bots = [story.channel(name, "bot", fallback_kinds=["sms"]) for name in ("one", "two")]
    story.channel("sms", "sms_one")
    story.page(*(outbox.To(bot.id, "100", story.lee.id) for bot in bots))
    one, two = Delivery.objects.order_by("id")
    Delivery.objects.filter(id=one.id).update(fallback_at=NOW)
    book = Book()
    book.refresh(NOW)

    def other() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = 0")
            # Another drain writes what it knew a little before.
            Delivery.objects.filter(id=two.id).update(fallback_at=NOW - timedelta(milliseconds=9))
            outbox.fallbacks(NOW, book)
        finally:
            connection.close()

    with transaction.atomic():
        outbox.fallbacks(NOW, book)
        thread = threading.Thread(target=other)
        thread.start()
        with connection.cursor() as cursor:
            while thread.is_alive():
                cursor.execute("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid)))")
                if cursor.fetchone()[0]:
                    break  # it waits for the address
    thread.join(60)
    assert not thread.is_alive()
    assert Delivery.objects.filter(fallback_of__isnull=False).count() == 1
    assert outbox.fallbacks(NOW, book) <= 1 and not Delivery.objects.filter(channel__in=bots, fallback_at__isnull=False).exists()


def test_a_mailbox_that_one_relay_refuses_for_good_is_not_waited_for(story):
    story.channel("relay", "mail", position=0, fallback_kinds=["sms"])
    story.channel("spare", "mail", position=1)
    story.channel("sms", "sms_one")
    story.plan("relay", BUSY)
    page(story, "email")
    story.pass_time(9)
    assert story.names() == ["relay"] * 3 + ["spare"]  # it does not answer: the other relay
    story.plan("relay", GONE)
    story.plan("spare", GONE)
    page(story, "email", topic=2)
    story.run()
    assert sorted(story.names()[4:]) == ["relay", "sms", "spare"]


def test_who_was_told_by_one_vendor_is_not_told_again_by_another_of_the_family(story):
    bot = story.channel("bot", "bot", fallback_kinds=["sms"])
    first = story.channel("sms", "sms_one")
    story.channel("sms two", "sms_two", position=1)
    Account.objects.create(member=story.lee, channel=bot, target="100", verified_at=NOW)
    story.plan("bot", GONE)
    page(story, "im", "sms")
    ChannelHealth.objects.create(channel=first, failures=5, open_until=NOW - timedelta(seconds=1))
    story.run()
    assert sorted(story.names()) == ["bot", "sms"]


def test_all_addresses_of_a_group_fall_back_to_all_of_the_other_once(story):
    other = story.channel("other", "chat")
    Channel.objects.filter(id=other.id).update(targets=["x", "y"])
    bot = story.channel("chat", "chat", fallback_channel=other)
    story.plan("chat", GONE)
    story.page(outbox.To(bot.id, "a"), outbox.To(bot.id, "b"))
    story.run()
    assert sorted((name, address) for name, _m, address in Provider.got) == [("chat", "a"), ("chat", "b"), ("other", "x"), ("other", "y")]
