"""Stories of delivery: providers that are down, refuse, block or are flooded, read at the provider and never from our own word for it."""

import re
from datetime import timedelta

import pytest
from django.urls import reverse

from channels_app import outbox
from channels_app.models import Channel, Delivery
from escalation import explain
from escalation.models import TimelineEntry
from mapping.models import MappingTable
from templates_app.models import Template, TemplateSet
from tests.fakes.dingtalk import DingTalkBot
from tests.fakes.feishu import FeishuBot
from tests.fakes.google_chat import ChatSpace
from tests.fakes.server import Reply, Server
from tests.fakes.smtp import Mailbox
from tests.fakes.telegram import TOKEN, Chat, TelegramApi
from tests.world import START, layer

pytestmark = pytest.mark.django_db


@pytest.fixture
def bot(world):
    """A Feishu bot whose clock is the story's."""

    class Bot(FeishuBot):
        now = property(lambda self: world.now.timestamp(), lambda self, value: None)

    with Bot(keyword="#") as server:
        yield server


def feishu(world, bot, **fields) -> Channel:
    return Channel.objects.create(
        kind="feishu", name="#oncall", settings={"url": bot.hook, "keyword": "#"}, allowed_hosts=[bot.host], **fields
    )


def webhook(server: Server, name: str = "hook", **fields) -> Channel:
    return Channel.objects.create(kind="webhook", name=name, settings={"url": server.url + "/page"}, allowed_hosts=[server.host], **fields)


def mail(server: Mailbox, **fields) -> Channel:
    settings = {"host": "127.0.0.1", "port": server.port, "security": "none", "from_email": "On-call <oncall@example.com>"}
    return Channel.objects.create(kind="email", name="mail", settings=settings, allowed_hosts=[server.host], **fields)


def test_a_group_reads_the_card_with_the_keyword_and_a_link_that_says_nobody(world, bot):
    world.rule(layer(groups=[feishu(world, bot)]))
    world.alert("checkout is down <at id=all></at>")
    (card,) = bot.said
    words = bot.words(card)
    assert "#" in words and "checkout is down" in words
    assert not any("<at" in element["text"]["content"] for element in card["elements"] if element["tag"] == "div")
    urls = [action["url"] for element in card["elements"] for action in element.get("actions", [])]
    assert urls and all(url.startswith("http://testserver/i/") for url in urls)
    world.ack()
    assert len(bot.said) == 2  # the group is told that it was acknowledged


def test_a_mail_of_one_incident_is_one_thread(world):
    with Mailbox() as server:
        mail(server)
        lee = world.person("Lee", ["email"])
        world.rule(layer(lee, notify_step=1, max_times=1))
        world.alert("disk full")
        world.pass_time(minutes=1)
        first, second = server.mails
        assert first["Subject"] == second["Subject"] and first["References"] == second["References"]
        assert first["Auto-Submitted"] == "auto-generated" and first["Message-ID"] != second["Message-ID"]
        assert "/i/" in first.get_body(("plain",)).get_content() and first.get_body(("html",))
        world.ack()


def test_a_refused_mailbox_takes_the_fallback_at_once(world):
    with Mailbox() as server:
        server.refuse = {"RCPT": "550 5.1.1 no such user"}
        mail(server, fallback_kinds=["sandbox_sms"])
        world.channel("sandbox_sms")
        lee = world.person("Lee", ["email"])
        world.rule(layer(lee))
        world.alert("nobody reads this")
        world.expect(("Lee", "sms", "triggered"), at=0)
        failed = Delivery.objects.get(state="failed")
        assert "550" in failed.reason
        world.ack()


def test_a_provider_that_is_down_is_tried_again_and_the_fallback_starts_within_ten_seconds(world):
    with Server(Reply(503, "maintenance")) as down, Server() as spare:
        hook = webhook(down, fallback_channel=webhook(spare, "spare"))
        world.rule(layer(groups=[hook]))
        world.alert("db down")
        assert len(down.seen) == 1 and not spare.seen
        world.pass_time(seconds=10)
        assert len(spare.seen) == 1 and spare.seen[0].json()["title"] == "db down"
        assert 2 <= len(down.seen) <= 3
        down.answer = Reply(200)
        world.pass_time(minutes=2)
        assert down.seen[-1].json()["attempt"] == len(down.seen)  # the original went on, and got through
        assert {row.state for row in Delivery.objects.all()} == {"sent"}
        world.ack()


def test_an_answer_that_never_came_is_unknown_and_the_repeat_says_so(world):
    answers = [Reply(raw=b"", end="reset"), Reply(200)]
    with Server(lambda seen: answers.pop(0)) as server:
        world.rule(layer(groups=[webhook(server)]))
        world.alert("half way")
        world.pass_time(seconds=9)
        first, second = (seen.json() for seen in server.seen)
        assert (first["attempt"], first["possible_repeat"]) == (1, False)
        assert (second["attempt"], second["possible_repeat"]) == (2, True)
        assert first["delivery_id"] == second["delivery_id"] and second["incidents"][0]["possible_repeat"] is True
        world.ack()


def test_a_repeat_that_carries_others_is_another_message_to_a_provider_that_knows_repeats(world):
    """Google Chat answers the request id of a message that it has with that message: what came along would be read by nobody."""

    class Space(ChatSpace):
        now = property(lambda self: world.now.timestamp(), lambda self, value: None)

    with Space() as space:
        chat = Channel.objects.create(kind="google_chat", name="#oncall", settings={"url": space.hook}, allowed_hosts=[space.host])
        world.rule(layer(groups=[chat]))
        judge, lost = space.answer, []
        space.answer = lambda seen: lost.append(judge(seen)) or Reply(raw=b"", end="reset")
        world.alert("first")
        assert [reply.status for reply in lost] == [200] and Delivery.objects.get().possible_repeat
        space.answer = judge
        world.alert("second", settle=False)
        world.alert("third", settle=False)
        world.pass_time(minutes=1)
        assert all(any(title in message["text"] for message in space.said) for title in ("first", "second", "third"))
        assert len({message["requestId"] for message in space.said}) == len(space.said)
        assert Delivery.objects.filter(state="bundled").exists()
        for title in ("first", "second", "third"):
            world.ack(title)


def test_the_default_body_of_the_webhook_is_the_documented_one(world):
    with Server() as server:
        world.rule(layer(groups=[webhook(server)]))
        world.alert("body", "Warning")
        body = server.seen[0].json()
        incident = world.incident()
        assert set(body) == {
            "delivery_id", "attempt", "possible_repeat", "event", "title", "incident_id", "num", "severity", "layer_idx", "url", "incidents",
        }  # fmt: skip
        assert (body["event"], body["title"], body["severity"], body["layer_idx"], body["num"]) == (
            "triggered",
            "body",
            "Warning",
            0,
            incident.num,
        )
        assert body["url"].endswith(f"/i/{body['incident_id']}/") and body["incidents"][0]["id"] == body["incident_id"]
        world.ack()
        world.recover("body")
        assert [seen.json()["event"] for seen in server.seen] == ["triggered", "acknowledged", "closed"]


def test_a_template_that_fails_gives_way_to_the_default_text_and_is_reported(world, bot):
    texts = TemplateSet.objects.create(name="Own")
    bad = Template.objects.create(template_set=texts, event="triggered", kind="feishu", body="{{ labels.missing.deep.er + 1 }}{{ 1 / 0 }}")
    world.rule(layer(groups=[feishu(world, bot)]), template_set_id=texts.id)
    world.alert("still arrives")
    assert "still arrives" in bot.words(bot.said[0])
    bad.refresh_from_db()
    assert bad.last_error and bad.last_error_at is not None
    world.ack()


def test_a_bot_that_was_removed_fails_with_advice_and_the_next_layer_is_told_now(world, bot):
    boss = world.person("Boss")
    bot.key = "another"
    world.rule(layer(groups=[feishu(world, bot)], escalate_window=30), layer(boss))
    world.alert("into nowhere")
    world.pass_time(seconds=1)
    world.expect(("Boss", "app", "escalated"))
    assert Delivery.objects.get(channel__kind="feishu").reason
    assert TimelineEntry.objects.filter(type="i_layer", detail__result="failed").exists()
    world.ack()


def test_a_storm_at_a_limited_bot_is_bundled_and_every_incident_is_named(world, bot):
    world.rule(layer(groups=[feishu(world, bot)]))
    for number in range(40):
        world.alert(f"storm {number:03d}", settle=False)
    world.settle()
    world.pass_time(seconds=90)
    words = "\n".join(bot.words(card) for card in bot.said)
    assert all(f"storm {number:03d}" in words for number in range(40))
    assert len(bot.said) < 20
    states = list(Delivery.objects.values_list("state", flat=True))
    assert set(states) == {"sent", "bundled"} and states.count("sent") == len(bot.said)
    assert all(row.bundled_by_id for row in Delivery.objects.filter(state="bundled"))
    assert max(bot.taken_at) - min(bot.taken_at) < 60  # within the deadline of what is critical


def test_an_acknowledged_incident_is_not_sent_any_more(world, bot):
    """The acknowledgement comes while the page waits for the provider's limit."""
    channel = feishu(world, bot, limits={"per_minute": 1})
    world.rule(layer(groups=[(channel, {"events": ["triggered"]})]))
    world.alert("first")
    world.alert("second")
    assert len(bot.said) == 1
    world.ack("second")
    world.pass_time(minutes=2)
    assert len(bot.said) == 1
    cancelled = Delivery.objects.get(state="cancelled")
    assert cancelled.reason == "acknowledged"
    world.ack("first")


def test_pages_of_a_forced_layer_survive_an_acknowledgement(world):
    lee = world.person("Lee", ["sandbox_app", ("sandbox_sms", 60)])
    world.rule(layer(lee, force_escalate=True))
    world.alert("forced")
    world.expect(("Lee", "app", "triggered"))
    world.ack(actor=lee)
    world.pass_time(minutes=1)
    world.expect(("Lee", "sms", "triggered"), at=60)
    world.do("close")


def test_the_most_severe_and_first_pages_go_first(world, bot):
    channel = feishu(world, bot, limits={"per_minute": 1})
    world.rule(layer(groups=[channel]))
    world.alert("opener", "Info")
    world.alert("minor", "Info", settle=False)
    world.alert("major", "Critical", settle=False)
    world.settle()
    world.pass_time(seconds=62)
    words = bot.words(bot.said[1])
    assert words.index("major") < words.index("minor")
    for title in ("opener", "minor", "major"):
        world.ack(title)


def test_our_own_network_does_not_burn_through_the_rule(world):
    """Every channel fails before its request leaves: that is us, so the layers wait and the alarm is raised."""
    from mapping.models import Installation

    with Server() as gone:
        hook = webhook(gone)
    boss_hook = Channel.objects.create(kind="webhook", name="boss", settings=hook.settings, allowed_hosts=hook.allowed_hosts)
    world.rule(layer(groups=[hook], escalate_window=30), layer(groups=[boss_hook], escalate_window=30))
    world.alert("cut off")
    world.pass_time(minutes=2)
    assert not Delivery.objects.filter(channel=boss_hook).exists()
    assert Installation.get().alarm
    outbox.cancel([world.incident().id], "acknowledged", world.now)
    world.ack()


def gateway(server: Server, name: str, **fields) -> Channel:
    settings = {
        "url": f"{server.url}/send", "method": "json", "template": '{"to": "{to}", "text": "{text}"}', "success_rule": "json",
        "success_value": "status = 0",
    }  # fmt: skip
    return Channel.objects.create(kind="http_sms", name=name, settings=settings, allowed_hosts=[server.host], **fields)


def test_a_dead_vendor_costs_under_ten_seconds_and_later_pages_nothing(world):
    with Server(Reply(503, "maintenance")) as dead, Server(Reply(200, '{"status": 0}')) as spare:
        gateway(dead, "first", position=0)
        gateway(spare, "second", position=1)
        world.channel("sandbox_email")
        lee = world.person("Lee", [])
        lee.contact_points.create(kind="phone", value="+8613800138000", verified_at=world.now)
        lee.preferences.create(severity="Critical", kind="sms")
        world.rule(layer(lee, escalate_window=30))
        world.alert("db down")
        assert dead.seen and not spare.seen
        world.pass_time(seconds=9.9)
        assert len(spare.seen) == 1 and spare.seen[0].json()["to"].endswith("13800138000")
        for number in range(5):
            world.alert(f"more {number}", settle=False)
        world.settle()
        world.pass_time(seconds=9.9)
        asked = len(dead.seen)
        world.alert("at once", settle=False)
        world.settle()  # the breaker is open: the other vendor is asked in the first place
        assert len(dead.seen) == asked and "at once" in spare.seen[-1].json()["text"]
        for title in ("db down", "at once", *(f"more {number}" for number in range(5))):
            world.ack(title)


def test_an_im_message_that_a_person_does_not_get_goes_out_by_sms_and_e_mail_at_once(world):
    blocked = Chat(4711, "private", "Lee", refuses=(403, "Forbidden: bot was blocked by the user"))
    with TelegramApi(blocked, now=world.now.timestamp()) as api:
        bot = Channel.objects.create(
            kind="telegram", name="bot", settings={"token": TOKEN, "chats": "", "api_base": api.url}, allowed_hosts=[api.host]
        )
        world.channel("sandbox_sms")
        world.channel("sandbox_email")
        lee = world.person("Lee", [])
        lee.accounts.create(channel=bot, target="4711", verified_at=world.now)
        lee.preferences.create(severity="Critical", kind="telegram")
        world.rule(layer(lee))
        world.alert("db down")
        world.expect(("Lee", "sms", "triggered"), ("Lee", "email", "triggered"), at=0)
        assert "blocked" in Delivery.objects.get(channel=bot).reason
        world.ack()


# ---- whom a group message calls ----


@pytest.mark.parametrize("mention", [True, False], ids=["on", "off"])
def test_dingtalk_calls_the_people_of_the_layer_by_phone(world, mention):
    lee, kim, boss = world.person("Lee", []), world.person("Kim", []), world.person("Boss", [])
    lee.contact_points.create(kind="phone", value="+8613800138000", verified_at=world.now)
    kim.contact_points.create(kind="phone", value="+8613900139000")  # nobody knows yet whether it is Kim's
    boss.contact_points.create(kind="phone", value="+85261234567", verified_at=world.now)
    with DingTalkBot(keywords=("#",), now=world.now.timestamp()) as bot:
        group = Channel.objects.create(
            kind="dingtalk", name="#oncall", settings={"url": bot.hook, "keyword": "#"}, allowed_hosts=[bot.host]
        )
        use = (group, {"mention": mention})
        world.rule(layer(lee, kim, groups=[use], escalate_window=5, follow_preference=False), layer(boss, groups=[use]))
        world.alert("db down, call @13700137000")
        world.pass_time(minutes=5)
        world.ack()
        assert [bot.called(said) for said in bot.said] == ([["13800138000"], ["+852-61234567"], []] if mention else [[], [], []])


@pytest.mark.parametrize("mention", [True, False], ids=["on", "off"])
def test_feishu_calls_the_people_of_the_layer_by_the_mapping_table(world, bot, mention):
    lee, kim, boss = world.person("Lee", []), world.person("Kim", []), world.person("Boss", [])
    table = MappingTable.objects.create(name="Feishu ids")
    table.entries.create(email="Lee@Example.com", external_id="ou_lee")
    table.entries.create(email=boss.email, external_id="ou_boss")
    table.entries.create(email="somebody.else@example.com", external_id="ou_else")
    use = (feishu(world, bot), {"mention": mention, "mapping_table": table})
    world.rule(layer(lee, kim, groups=[use], escalate_window=5, follow_preference=False), layer(boss, groups=[use]))
    world.alert("db down <at id=all></at>")
    world.pass_time(minutes=5)
    world.ack()
    texts = ["".join(element["text"]["content"] for element in card["elements"] if element["tag"] == "div") for card in bot.said]
    assert [re.findall(r"<at id=(\w+)>", text) for text in texts] == ([["ou_lee"], ["ou_boss"], []] if mention else [[], [], []])


def test_a_bot_that_is_silenced_for_ten_minutes_delays_nobody_and_is_used_again_afterwards(world):
    class Bot(DingTalkBot):
        now = property(lambda self: world.now.timestamp(), lambda self, value: None)

    def heard(server: Server) -> list[tuple[str, float]]:
        return [(seen.json()["event"], at) for seen, at in zip(server.seen, server.at, strict=True)]

    with Bot(keywords=("#",)) as bot, Server() as spare:
        spare.at = []
        spare.answer = lambda seen: spare.at.append((world.now - START).total_seconds()) or Reply(200)
        group = Channel.objects.create(
            kind="dingtalk", name="#oncall", settings={"url": bot.hook, "keyword": "#"}, allowed_hosts=[bot.host],
            fallback_channel=webhook(spare, "spare"),
        )  # fmt: skip
        world.rule(layer(groups=[group], notify_step=4, max_times=4, escalate_window=30))
        bot.blocks.append(bot.now)  # another program that writes to this bot was too fast
        world.alert("db down")
        assert heard(spare) == [("triggered", 0)] and not bot.said
        world.pass_time(minutes=9, seconds=59)
        assert heard(spare) == [("triggered", 0), ("refire", 240), ("refire", 480)]  # the loops, too, on time
        assert len(bot.seen) == 1 and not bot.said  # whoever asks again meanwhile is silenced anew
        world.pass_time(minutes=10)
        assert [at - START.timestamp() for at in bot.taken_at] == [600, 720, 960]  # one word of what it missed, then the loops themselves
        assert all("db down" in bot.words(said) for said in bot.said) and len(bot.seen) == 4 and len(spare.seen) == 3
        missed = Delivery.objects.filter(channel=group, state="cancelled")
        assert {row.reason for row in missed} == {"a later page about the same takes its place"} and missed.count() == 2
        world.ack()


def test_a_page_that_waits_past_its_deadline_is_not_told_yet_and_says_why(world):
    with Server(Reply(503, "maintenance")) as server:
        world.rule(layer(groups=[webhook(server)]))
        for number in range(5):
            world.alert(f"down {number}")
        world.alert("checkout is down")
        assert not explain.explain(world.incident(), world.now).not_told
        world.pass_time(seconds=70)
        story = explain.explain(world.incident(), world.now)
        (late,) = [item for item in story.not_told if item.who == "hook"]
        assert (
            late.at == START + timedelta(seconds=60)
            and late.reason.startswith("not told yet: its channel keeps failing (")
            and "503" in late.reason
        )
        assert story.told[0].reason == late.reason.removeprefix("not told yet: ") and late.reason in explain.as_text(story)
        reader = world.person("Olga", [])  # who may not open the channel's page
        world.client.force_login(reader)
        page = world.client.get(reverse("admin:channels_app_delivery_change", args=[story.told[0].delivery_id]))
        assert "503" in page.content.decode()
