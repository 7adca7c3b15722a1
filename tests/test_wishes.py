"""How a person is told and when not: the sentences about it, quiet hours, and accounts of one's own, on the page of one's own."""

from datetime import time
from zoneinfo import ZoneInfo

import pytest
from django.test import Client
from django.utils.translation import override

from channels_app import addresses
from channels_app.models import Account, Channel, Delivery, Notification
from flashduty.web.wishes import Step, hours, sentence
from mapping.clock import db_now
from mapping.models import ContactPoint, Member, Team
from mapping.quiet import Quiet
from tests.fakes.server import Reply, Server

NIGHT = Quiet(time(22), time(7), ZoneInfo("Asia/Shanghai"))

# ---- sentences -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "severity", "quiet", "text"),
    [
        ([], "Critical", None, ""),
        ([Step("push")], "Critical", None, "Push at once."),
        ([Step("push"), Step("SMS")], "Critical", None, "Push, SMS at once."),
        (
            [Step("push"), Step("voice call", 300), Step("SMS", 120)], "Critical", None,
            "Push at once, SMS after 2 minutes, voice call after 5 minutes, until somebody has acknowledged.",
        ),
        ([Step("SMS", 90)], "Critical", None, "SMS after 90 seconds, until somebody has acknowledged."),
        ([Step("push")], "Critical", NIGHT, "Push at once; in your quiet hours (22:00 to 07:00), too."),
        ([Step("push")], "Warning", NIGHT, "Push at once; in your quiet hours (22:00 to 07:00) it waits until they are over."),
        (
            [Step("push"), Step("e-mail", 0, True)], "Warning", NIGHT,
            "Push, e-mail at once; in your quiet hours (22:00 to 07:00) only e-mail, and the rest when they are over.",
        ),
        ([Step("e-mail", 0, True)], "Info", NIGHT, "E-mail at once."),
    ],
)  # fmt: skip
def test_one_sentence_says_what_happens(steps, severity, quiet, text):
    with override("en"):
        assert sentence(steps, severity, quiet) == text


def test_the_sentence_in_chinese_names_the_same_things_in_the_order_of_its_grammar():
    with override("zh-hans"):
        text = sentence([Step("推送"), Step("短信", 120), Step("语音电话", 300)], "Warning", NIGHT)
    assert text.index("推送") < text.index("短信") < text.index("语音电话")
    assert "22:00" in text and "07:00" in text and "2" in text and "5" in text


def test_quiet_hours_in_words():
    with override("en"):
        assert hours(NIGHT) == "22:00 to 07:00"
        assert hours(Quiet(time(22), time(7), ZoneInfo("UTC"), days=(0, 4))) == "22:00 to 07:00 on Monday, Friday"
        assert hours(Quiet(time(22), time(7), ZoneInfo("UTC"), days=range(7))) == "22:00 to 07:00"


# ---- the page ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lee(db, client):
    lee = Member.objects.create_user("lee@example.com", "Lee", "correct horse battery")
    client.force_login(lee)
    return lee


def do(client, verb, **fields):
    answer = client.post("/me/", {"do": verb, **fields})
    assert answer.status_code in (200, 302), answer.content.decode()[:2000]
    return (client.get("/me/") if answer.status_code == 302 else answer).content.decode()


def test_quiet_hours_are_set_changed_and_switched_off(lee, client):
    Channel.objects.create(kind="sandbox_app", name="App")
    text = do(client, "quiet", quiet_start="22:00", quiet_end="07:00", quiet_days=["0", "1"], quiet_breaks=["Critical", "Warning"])
    lee.refresh_from_db()
    assert (lee.quiet_start, lee.quiet_end, lee.quiet_days, lee.quiet_breaks) == (time(22), time(7), [0, 1], ["Critical", "Warning"])
    assert "App at once; in your quiet hours (22:00 to 07:00 on Monday, Tuesday), too." in text
    assert 'value="22:00"' in text
    do(client, "quiet_off")
    lee.refresh_from_db()
    assert lee.quiet is None and lee.quiet_days == [0, 1]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"quiet_start": "22:00", "quiet_end": ""}, "both a beginning and an end"),
        ({"quiet_start": "22:00", "quiet_end": "22:00"}, "would never end"),
        ({"quiet_start": "25:00", "quiet_end": "07:00"}, "Enter a valid time"),
        ({"quiet_start": "22:00", "quiet_end": "07:00", "quiet_days": "7"}, "Select a valid choice"),
        ({"quiet_start": "22:00", "quiet_end": "07:00", "quiet_breaks": "Ok"}, "Select a valid choice"),
    ],
)
def test_quiet_hours_that_make_no_sense_are_refused(lee, client, fields, why):
    assert why in do(client, "quiet", **fields)
    lee.refresh_from_db()
    assert lee.quiet is None


def test_a_family_is_chosen_whoever_the_vendor_is(lee, client):
    ContactPoint.objects.create(member=lee, kind="phone", value="+8613800138000", verified_at=db_now())
    Channel.objects.create(kind="aliyun_voice", name="Ali")
    Channel.objects.create(kind="tencent_voice", name="Tencent")
    text = do(client, "ways:save", severity="Critical", way=["voice"], delay=["0"])
    assert lee.preferences.get().kind == "voice" and "Voice call at once." in text
    assert '<option value="tencent_voice">' in text


def test_at_night_the_page_still_says_what_happens_by_day(lee, client):
    Channel.objects.create(kind="sandbox_app", name="App")
    now = db_now()
    lee.quiet_start, lee.quiet_end = time((now.hour - 1) % 24), time((now.hour + 2) % 24)
    lee.save()
    assert addresses.reach([lee.pk], "Warning", now)[lee.pk][0].reason.startswith("quiet hours until")
    assert "App at once; in your quiet hours" in client.get("/me/").content.decode()


# ---- numbers -------------------------------------------------------------------------------------------------------------------------


def test_the_numbers_that_call_can_be_imported(lee, client):
    ContactPoint.objects.create(member=lee, kind="phone", value="+8613800138000", verified_at=db_now())
    assert client.get("/me/contacts.vcf").status_code == 404 and "contacts.vcf" not in client.get("/me/").content.decode()
    Channel.objects.create(kind="aliyun_voice", name="Ali", settings={"numbers": "+86 571 8888 1234"})
    text = client.get("/me/").content.decode()
    assert "+86 571 8888 1234" in text and 'href="/me/contacts.vcf"' in text
    answer = client.get("/me/contacts.vcf")
    assert answer["Content-Type"] == "text/vcard; charset=utf-8" and "attachment" in answer["Content-Disposition"]
    assert 'TEL;TYPE="voice,work";PREF=1:+8657188881234' in answer.content.decode()
    assert Client().get("/me/contacts.vcf").status_code == 302 and client.post("/me/contacts.vcf").status_code == 405


# ---- accounts of one's own -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def bot(db):
    return Channel.objects.create(kind="telegram", name="Ops bot", settings={"token": "1:topsecret", "chats": ""})


def test_a_private_chat_is_added_proved_and_told(lee, client, bot):
    text = do(client, "account_add", channel=bot.pk, target="123456789", label="Lee at home")
    account = Account.objects.get()
    assert (account.member, account.channel, account.target, account.verified_at) == (lee, bot, "123456789", None)
    assert "Lee at home" in text and "not verified" in text and "topsecret" not in text
    text = do(client, "account_code", account=account.pk)
    assert 'name="code"' in text
    code = Notification.objects.get().secret_context["code"]
    assert Delivery.objects.get().address.target == "123456789"
    assert "not the code" in do(client, "account_verify", account=account.pk, code="000000" if code != "000000" else "111111")
    do(client, "account_verify", account=account.pk, code=code)
    account.refresh_from_db()
    assert account.verified_at is not None
    text = do(client, "ways:save", severity="Critical", way=["im"], delay=["0"])
    assert "Telegram bot at once." in text
    do(client, "account_remove", account=account.pk)
    assert not Account.objects.exists() and Channel.objects.filter(pk=bot.pk, status="enabled").exists()


@pytest.mark.parametrize("target", ["-100123", "@everybody", "", "0", "12 34", "x" * 301])
def test_a_group_or_nonsense_is_nobodys_own_chat(lee, client, bot, target):
    assert "note bad" in do(client, "account_add", channel=bot.pk, target=target)
    assert not Account.objects.exists()


def test_only_bots_that_are_there_for_this_person(lee, client):
    other = Channel.objects.create(kind="telegram", name="Other", team=Team.objects.create(name="Other"))
    group = Channel.objects.create(kind="slack", name="Group")
    for channel in (other.pk, group.pk, 0):
        assert "There is no such bot." in do(client, "account_add", channel=channel, target="123")
    assert not Account.objects.exists()


def test_nobody_touches_another_persons_account(lee, client, bot):
    kim = Member.objects.create_user("kim@example.com", "Kim")
    theirs = Account.objects.create(member=kim, channel=bot, target="42")
    for verb in ("account_code", "account_verify", "account_remove"):
        assert "You have no such account." in do(client, verb, account=theirs.pk, code="123456")
    assert Account.objects.filter(pk=theirs.pk, verified_at=None).exists()


SLACK = {"kind": "slack", "set-url": "https://hooks.slack.com/services/T00000000/B00000000/aaaaaaaaaaaaaaaaaaaaaaaa"}


def test_a_webhook_of_ones_own_is_a_channel_that_only_its_owner_uses(lee, client):
    text = client.get("/me/?own=slack").content.decode()
    assert 'name="set-url"' in text
    text = do(client, "own_add", label="My DM", **SLACK)
    channel = Channel.objects.get()
    assert (channel.owner, channel.team, channel.kind, channel.name) == (lee, None, "slack", "My DM")
    assert channel.settings["url"].endswith("aaaa") and "aaaaaaaa" not in text
    account = Account.objects.get()
    assert (account.channel, account.target, account.verified_at) == (channel, "", None)
    kim = Member.objects.create_user("kim@example.com", "Kim", role="administrator")
    assert not Channel.objects.filter(Channel.for_groups_q(kim)).exists()
    assert f'value="slack:{channel.pk}"' in text  # in the preferences of its owner
    browser = Client()
    browser.force_login(kim)
    assert f'value="slack:{channel.pk}"' not in browser.get("/me/").content.decode()
    do(client, "account_remove", account=account.pk)
    channel.refresh_from_db()
    assert (channel.status, channel.settings) == ("deleted", {}) and not Account.objects.exists()


def test_what_is_wrong_with_a_webhook_is_said_and_five_are_enough(lee, client):
    typed = {"kind": "slack", "label": "My own DM", "set-url": "https://evil.example.com/hook"}
    text = client.post("/me/", {"do": "own_add", **typed}).content.decode()
    assert "note bad" in text and all(f'value="{value}"' in text for value in typed.values()) and "<details open>" in text
    assert "There is no such kind" in do(client, "own_add", kind="webhook", **{"set-url": "https://example.com"})
    assert "There is no such kind" in do(client, "own_add", kind="telegram")
    assert client.get("/me/?own=webhook").status_code == 200
    assert not Channel.objects.exists()
    for _turn in range(6):
        text = do(client, "own_add", **SLACK)
    assert "You have 5 webhooks of your own already" in text and Channel.objects.count() == 5


def test_find_my_chats(lee, client, bot):
    people = [(7, "private", {"first_name": "Lee"}), (8, "private", {"first_name": "Kim"}), (-9, "group", {"title": "Lee's team"})]
    updates = [
        {"update_id": n, "message": {"message_id": n, "date": 1, "text": "hi", "chat": {"id": pk, "type": kind, **names}}}
        for n, (pk, kind, names) in enumerate(people)
    ]
    with Server(Reply(body={"ok": True, "result": updates})) as server:
        bot.settings = {"token": "1:topsecret", "api_base": server.url, "chats": ""}
        bot.allowed_hosts = [server.host]
        bot.save()
        answer = client.post("/me/", {"do": "chats", "channel": bot.pk, "text": "lee"})
        assert answer.status_code == 200
        text = answer.content.decode()
        assert (
            'name="target" value="7"' in text and 'value="8"' not in text and 'value="-9"' not in text
        )  # Kim is another, the team a group
        assert "at least 3 letters" in do(client, "chats", channel=bot.pk, text="l")
        assert "knows no such chat" in do(client, "chats", channel=bot.pk, text="nobody")
        for _turn in range(12):
            text = do(client, "chats", channel=bot.pk, text="nobody")
        assert "often enough" in text
