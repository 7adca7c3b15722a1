"""Trying a channel out in the console before it is saved: what the provider answers is shown in words, and no secret ever comes back."""

import re
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse

import flashduty.urls  # noqa: F401  the console is loaded with them
from channels_app.models import Channel, Delivery
from flashduty.console import testing
from mapping.clock import db_now
from mapping.models import ContactPoint, Member, Team
from tests.fakes.dingtalk import SECRET, TOKEN, DingTalkBot
from tests.fakes.smtp import Mailbox
from tests.fakes.telegram import TOKEN as BOT
from tests.fakes.telegram import TelegramApi

pytestmark = pytest.mark.django_db


class Desk:
    """A manager with a team, an administrator, and a browser of each."""

    def __init__(self) -> None:
        self.manager = Member.objects.create_user("manager@example.com", "Manager", role="manager")
        self.administrator = Member.objects.create_user("boss@example.com", "Boss", role="administrator")
        self.team, self.other = Team.objects.create(name="Own"), Team.objects.create(name="Other")
        self.team.members.set([self.manager])

    def post(self, who: Member, url: str, **data: Any) -> Any:
        client = Client()
        client.force_login(who)
        return client.post(url, data)

    def ask(self, who: Member, group: str, kind: str, channel: Channel | None = None, view: str = "try", **data: Any) -> str:
        """The words of the answer to a press of the button; `data`: what stands in the form."""
        saved = "_saved" if channel else ""
        url = reverse(f"admin:flashduty_{group}_{view}{saved}", args=[channel.pk] if channel else [])
        answer = self.post(who, f"{url}?kind={kind}", **{"name": "Ops", "team": self.team.pk, "status": "enabled", "position": 0} | data)
        assert answer.status_code == 200, answer.status_code
        self.html = answer.content.decode()
        return " ".join(re.sub(r"<[^>]+>", " ", self.html).split())


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def bot():
    with DingTalkBot(secret=SECRET, keywords=("alarm",), now=db_now().timestamp()) as running:
        yield running


def test_an_unsaved_channel_is_tried_and_nothing_is_kept(desk: Desk, bot: DingTalkBot):
    typed = {"set_url": bot.hook, "set_secret": SECRET, "set_keyword": "alarm", "allowed_hosts": bot.host}
    words = desk.ask(desk.administrator, "imbot", "dingtalk", **typed)
    assert words.startswith("Accepted"), words
    assert len(bot.said) == 1 and "Ops" in bot.words(bot.said[0])
    assert not Channel.objects.exists() and not Delivery.objects.exists()


def test_a_refusal_is_said_with_what_to_do_and_without_a_secret(desk: Desk, bot: DingTalkBot):
    typed = {"set_url": bot.hook, "set_secret": "SECanother" + "1" * 60, "allowed_hosts": bot.host}
    words = desk.ask(desk.administrator, "imbot", "dingtalk", **typed)
    assert words.startswith("Refused") and "sign" in words and not bot.said
    assert TOKEN not in desk.html and "SECanother" not in desk.html
    words = desk.ask(desk.administrator, "imbot", "dingtalk", **typed | {"set_secret": SECRET, "set_keyword": "other"})
    assert words.startswith("Refused") and "keyword" in words
    bot.whitelisted = False
    words = desk.ask(desk.administrator, "imbot", "dingtalk", **typed | {"set_secret": SECRET, "set_keyword": "alarm"})
    assert "this installation calls from 203.0.113.7" in words


def test_what_the_form_lacks_is_said_and_nothing_leaves(desk: Desk, bot: DingTalkBot):
    words = desk.ask(desk.administrator, "imbot", "dingtalk", set_url="", allowed_hosts=bot.host)
    assert words == "Webhook address: This field is required."
    # A manager opens no private network, neither by a form of their own making.
    words = desk.ask(desk.manager, "imbot", "dingtalk", set_url=bot.hook, allowed_hosts=bot.host)
    assert words.startswith("Refused") and not bot.seen


def test_a_saved_channel_is_tried_with_its_stored_secrets_and_the_form_as_it_stands(desk: Desk, bot: DingTalkBot):
    stored = {"url": bot.hook, "secret": SECRET, "keyword": "alarm"}
    channel = Channel.objects.create(kind="dingtalk", name="Ops", team=desk.team, settings=stored, allowed_hosts=[bot.host])
    assert desk.ask(desk.manager, "imbot", "dingtalk", channel, set_keyword="alarm").startswith("Accepted")
    assert "keyword" in desk.ask(desk.manager, "imbot", "dingtalk", channel, set_keyword="other")
    assert TOKEN not in desk.html and SECRET not in desk.html
    with DingTalkBot() as thief:
        words = desk.ask(desk.manager, "imbot", "dingtalk", channel, set_url=thief.hook, set_keyword="alarm")
        assert "enter it again" in words and not thief.seen
    channel.refresh_from_db()
    assert channel.settings == stored and LogEntry.objects.filter(change_message__contains="test of the connection").count() == 2


def test_who_may_not_configure_a_channel_can_neither_try_nor_read_it(desk: Desk, bot: DingTalkBot):
    stored = {"url": bot.hook, "secret": SECRET}
    for team in (desk.other, None):
        channel = Channel.objects.create(kind="dingtalk", name="Theirs", team=team, settings=stored, allowed_hosts=[bot.host])
        for view in ("try_saved", "chats_saved", "test"):
            answer = desk.post(desk.manager, reverse(f"admin:flashduty_imbot_{view}", args=[channel.pk]), name="x", set_keyword="alarm")
            assert answer.status_code == 404 and TOKEN not in answer.content.decode()
    member = Member.objects.create_user("member@example.com", "Member")
    desk.team.members.add(member)
    channel = Channel.objects.create(kind="dingtalk", name="Own", team=desk.team, settings=stored, allowed_hosts=[bot.host])
    assert desk.post(member, reverse("admin:flashduty_imbot_try_saved", args=[channel.pk])).status_code == 403
    assert desk.post(member, reverse("admin:flashduty_imbot_try") + "?kind=dingtalk").status_code == 403
    client = Client()
    client.force_login(desk.manager)
    assert client.get(reverse("admin:flashduty_imbot_try_saved", args=[channel.pk])).status_code == 405
    assert not bot.seen


def test_tests_are_counted(desk: Desk, bot: DingTalkBot):
    channel = Channel.objects.create(kind="sandbox_group", name="Play", team=desk.team)
    for _turn in range(testing.MOST):
        assert testing.connection(channel, desk.manager, db_now())[0].accepted
    assert "Too many tests" in desk.ask(desk.manager, "play", "sandbox_group", channel)


def test_a_mail_goes_to_ones_own_verified_address_and_only_administrators_name_another(desk: Desk):
    with Mailbox() as server:
        channel = Channel.objects.create(
            kind="email", name="Mail", team=desk.team, allowed_hosts=[f"127.0.0.1:{server.port}"],
            settings={"host": "127.0.0.1", "port": server.port, "security": "none", "from_email": "a@example.com"},
        )  # fmt: skip
        form = {"set_host": "127.0.0.1", "set_port": server.port, "set_security": "none", "set_from_email": "a@example.com"}
        words = desk.ask(desk.manager, "classic", "email", channel, **form)
        assert "you have none that is verified" in words
        ContactPoint.objects.create(member=desk.manager, kind="email", value="own@example.com", verified_at=db_now())
        assert desk.ask(desk.manager, "classic", "email", channel, **form).startswith("Accepted")
        assert "Only an administrator" in desk.ask(desk.manager, "classic", "email", channel, test_to="x@example.com", **form)
        form["allowed_hosts"] = f"127.0.0.1:{server.port}"
        assert desk.ask(desk.administrator, "classic", "email", channel, test_to="x@example.com", **form).startswith("Accepted")
        assert "valid email" in desk.ask(desk.administrator, "classic", "email", channel, test_to="nobody", **form)
        assert [envelope.rcpt_tos for envelope in server.envelopes] == [["own@example.com"], ["x@example.com"]]


def test_chats_are_found_offered_and_each_is_tried(desk: Desk):
    with TelegramApi() as server:
        typed = {"set_token": BOT, "set_api_base": server.url, "allowed_hosts": server.host}
        words = desk.ask(desk.administrator, "imbot", "telegram", view="chats", **typed)
        assert "no chats yet" in words, words
        server.updates.append({"update_id": 1, "message": {"chat": {"id": -100200300, "type": "supergroup", "title": "<b>Ops</b>"}}})
        words = desk.ask(desk.administrator, "imbot", "telegram", view="chats", **typed)
        assert 'data-add="-100200300"' in desk.html and "&lt;b&gt;Ops" in desk.html and 'data-into="id_set_chats"' in desk.html
        assert BOT not in desk.html
