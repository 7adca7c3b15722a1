"""Trying a channel out in the console before it is saved: what the provider answers is shown in words, and no secret ever comes back."""

import json
import re
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation

import flashduty.urls  # noqa: F401  the console is loaded with them
from channels_app import addresses, limits, transport
from channels_app.http import DeliveryError
from channels_app.models import Address, Channel, ChannelHealth, Delivery, Notification
from flashduty.console import channels, rules, testing
from flashduty.management.commands import send_test
from flashduty.models import Classic, Hook, ImApp, ImBot, Play
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
    assert "this installation calls from 203.0.113.7" in words and "curl" not in words
    # A provider that does not say which address it saw.
    refusal = DeliveryError("this machine's address is not on the application's allow list", permanent=True, config=True)
    assert "curl" in testing.said("", refusal, 0.1).details[-1]


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


def test_tests_count_for_the_limits_of_a_saved_channel_and_wait_where_these_are_full(desk: Desk, bot: DingTalkBot):
    stored = {"url": bot.hook, "secret": SECRET, "keyword": "alarm"}
    channel = Channel.objects.create(kind="dingtalk", name="Ops", team=desk.team, settings=stored, allowed_hosts=[bot.host])
    form = {"set_keyword": "alarm"}
    assert desk.ask(desk.manager, "imbot", "dingtalk", channel, **form).startswith("Accepted")
    address = Address.objects.get()
    assert (len(address.buckets["18/60"]), address.next_at, address.target) == (1, None, "")
    Address.objects.update(buckets={"18/60": [db_now().timestamp() + 8] * 18})
    # Seconds are counted down while the request runs: from 68 and from 680.
    assert "just been sent to it. Try again in 6" in desk.ask(desk.manager, "imbot", "dingtalk", channel, **form)
    Address.objects.update(buckets={}, blocked_until=db_now() + timedelta(seconds=680))
    assert "Try again in 6" in desk.ask(desk.manager, "imbot", "dingtalk", channel, **form) and len(bot.said) == 1


def test_a_webhook_belongs_to_one_channel(desk: Desk, bot: DingTalkBot):
    stored = {"url": bot.hook, "secret": SECRET, "keyword": "alarm"}
    channel = Channel.objects.create(kind="dingtalk", name="Theirs", team=desk.other, settings=stored, allowed_hosts=[bot.host])
    typed = {"set_url": bot.hook, "set_secret": SECRET, "set_keyword": "alarm", "allowed_hosts": bot.host}
    words = desk.ask(desk.administrator, "imbot", "dingtalk", **typed)
    assert "Another channel writes to this address already" in words and "Theirs" not in words and not bot.seen
    assert desk.ask(desk.administrator, "imbot", "dingtalk", channel, set_keyword="alarm").startswith("Accepted")  # it is its own
    Channel.objects.update(status="disabled")
    assert desk.ask(desk.administrator, "imbot", "dingtalk", **typed).startswith("Accepted")
    # Nor by the way around: one that was saved while it was switched off.
    second = Channel.objects.create(kind="dingtalk", name="Ours", settings=stored, allowed_hosts=[bot.host], status="disabled")
    Channel.objects.filter(id=channel.id).update(status="enabled")
    asked = {"set_keyword": "alarm", "allowed_hosts": bot.host}
    assert "Another channel writes to this address already" in desk.ask(desk.administrator, "imbot", "dingtalk", second, **asked)
    assert desk.ask(desk.administrator, "imbot", "dingtalk", second, status="disabled", **asked).startswith("Accepted")


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


# ---- from a rule, from the shell, and texts -------------------------------------------------------------------------------------------


def test_a_group_channel_is_tried_from_the_rule_that_uses_it(desk: Desk, bot: DingTalkBot):
    url = reverse("admin:escalation_escalationrule_try")
    shared = Channel.objects.create(
        kind="dingtalk", name="Shared", settings={"url": bot.hook, "secret": SECRET, "keyword": "alarm"}, allowed_hosts=[bot.host]
    )
    assert "Accepted" in desk.post(desk.manager, url, channel=shared.pk).content.decode() and len(bot.said) == 1
    assert "Choose a channel" in desk.post(desk.manager, url, channel="").content.decode()
    theirs = Channel.objects.create(kind="sandbox_group", name="Theirs", team=desk.other)
    assert desk.post(desk.manager, url, channel=theirs.pk).status_code == 403
    person = Channel.objects.create(kind="sandbox_app", name="App")
    assert desk.post(desk.manager, url, channel=person.pk).status_code == 404
    assert desk.post(Member.objects.create_user("m@example.com", "M"), url, channel=shared.pk).status_code == 403


def test_a_layer_offers_families_and_calls_only_where_that_can_be_done(desk: Desk):
    Channel.objects.create(kind="twilio_sms", name="A", settings={})
    Channel.objects.create(kind="http_sms", name="B", settings={})
    choices = dict(rules.person_choices())
    assert choices["sms"] == "SMS" and {"twilio_sms", "http_sms"} <= choices.keys() and not {"smpp_sms", "vonage_voice"} & choices.keys()
    assert next(iter(choices)) in addresses.FAMILIES and dict(addresses.choices_for_people())["im"] == "IM message"

    def errors(kind: str, **data: Any) -> dict[str, Any]:
        channel = Channel.objects.create(kind=kind, name=kind, settings={})
        form = rules.LayerChannelForm({"channel": channel.pk, "severities": ["Critical"], "events": ["closed"], **data})
        return {name: lines for name, lines in form.errors.items() if name in ("mention", "mapping_table", "severities", "events")}

    assert not errors("webhook", mention="on") and "cannot @" in rules.mention_words(transport.get("webhook"))
    assert "choose one" in str(errors("feishu", mention="on")["mapping_table"])
    assert not errors("dingtalk", mention="on") and not errors("wecom", mention="on")


def shell(*args: str) -> str:
    out = StringIO()
    call_command("send_test", *args, stdout=out)
    return out.getvalue()


def test_the_shell_tries_a_channel_that_is_not_saved(desk: Desk, bot: DingTalkBot, tmp_path):
    me = ["--as", "boss@example.com", "--allow", bot.host]
    given = tmp_path / "settings.json"
    given.write_text(json.dumps({"url": bot.hook, "secret": SECRET}))
    assert shell("--kind", "dingtalk", "--from", str(given), "--set", "keyword=alarm", *me).startswith("Accepted")
    with pytest.raises(CommandError, match="Not accepted"):
        shell("--kind", "dingtalk", "--from", str(given), "--set", "keyword=other", *me)
    for args, says in (
        (["--kind", "dingtalk", "--set", "colour=red"], "no setting colour"),
        (["--kind", "dingtalk"], "url: This field is required"),
        (["--kind", "fax"], "no channel kind"),
        ([], "Give the id"),
    ):
        with pytest.raises(CommandError, match=says):
            shell(*args, *me)
    channel = Channel.objects.create(
        kind="dingtalk", name="Ops", settings={"url": bot.hook, "secret": SECRET, "keyword": "alarm"}, allowed_hosts=[bot.host]
    )
    assert shell("Ops", "--now", "--as", "manager@example.com").startswith("Accepted") and channel.pk


def test_the_shell_says_what_the_console_says_of_a_message_by_the_outbox(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    Channel.objects.create(kind="sandbox_app", name="App")
    now = db_now()

    def told(state: str, reason: str, log: list[Any]):
        def workers(_command: Any, pk: int, _seconds: float) -> Delivery:
            Delivery.objects.filter(pk=pk).update(state=state, reason=reason, attempts=1, log=log)
            return Delivery.objects.get(pk=pk)

        monkeypatch.setattr(send_test.Command, "_result", workers)

    at = timezone.localtime(now).strftime("%H:%M:%S")
    told("delivered", "", [[1, now.timestamp(), 0.031, "sent", "CA123"], [1, now.timestamp() + 1, 0, "delivered", ""]])
    with translation.override("zh-hans"):
        said = shell("App", "--as", "boss@example.com")
    assert f"\n  1 · {at} · 0.031 s · 已发送 · CA123\n" in said and "[1," not in said
    told("failed", "refused", [[1, now.timestamp(), 0.031, "failed", "the bot was removed"]])
    with pytest.raises(CommandError, match=rf"^failed refused\n  1 · {at} · 0.031 s · failed · the bot was removed$"):
        shell("App", "--as", "boss@example.com")


def test_a_text_is_shown_with_sample_data_and_its_length_for_each_kind(desk: Desk):
    url = reverse("admin:templates_app_template_preview")

    def shown(**data: str) -> str:
        return desk.post(desk.manager, url, **{"event": "triggered", "language": "en", "body": "{{ title }}"} | data).content.decode()

    sms = shown(kind="sms", body="x" * 200)
    assert sms.count("2 SMS parts (GSM-7") >= 2 and "Twilio" in sms and "Sandbox" not in sms
    assert "UCS-2" in shown(kind="smpp_sms", body="数据库 " * 5)
    bots = shown(kind="im")
    assert "of 3800 characters" in bots and "of 16000 bytes" in bots
    assert "It is shortened" in shown(kind="telegram", body="word " * 1000)
    assert "<iframe sandbox srcdoc=" in shown(kind="email", body="<b>{{ title }}</b>")
    assert "&lt;script&gt;" in shown(kind="plain", body="<script>") and "text-red-600" in shown(kind="sms", body="{{ title")
    assert desk.post(Member.objects.create_user("m@example.com", "M"), url, kind="sms").status_code == 403


def test_every_kind_is_offered_in_one_section_of_one_menu_group_with_a_line_about_it():
    groups = [ImApp, ImBot, Classic, Hook, Play]
    for kind, style in transport.transports().items():
        assert [kind in channels.kinds_of(group) for group in groups].count(True) == 1, kind
        assert channels.section_of(style) in channels.SECTIONS and len(channels.about(style)) > 15
    assert channels.section_of(transport.get("discord")) == channels.section_of(transport.get("telegram")) == "im_bot"
    assert (channels.section_of(transport.get("apprise")), channels.section_of(transport.get("webhook"))) == ("other", "webhook")
    assert channels.limit_words(transport.get("telegram").limits, transport.get("telegram")) == (
        "1 a second, 20 a minute to each chat; 30 a second altogether"
    )


def test_a_month_that_runs_out_is_said_on_the_channel(desk: Desk):
    channel = Channel.objects.create(kind="http_sms", name="S", team=desk.team, settings={}, monthly_quota=100)
    now = db_now()
    ChannelHealth.objects.create(channel=channel, month=limits.month_of(now), month_count=85)
    client = Client()
    client.force_login(desk.manager)
    body = client.get(reverse("admin:flashduty_classic_change", args=[channel.pk])).content.decode()
    assert "85 of 100" in body and "More than 80 % are used" in body and f"/callback/{channel.callback_key}/" in body


def test_a_delivery_shows_its_attempts_and_what_was_reported_afterwards(desk: Desk):
    channel = Channel.objects.create(kind="twilio_voice", name="Calls", settings={})
    now = db_now()
    said = Notification.objects.create(event="triggered", is_page=True, severity="Critical", created_at=now)
    place = Address.objects.create(channel=channel, target="+8613800138000")

    def shown(state: str, **fields: Any) -> str:
        row = Delivery.objects.create(
            notification=said, channel=channel, address=place, member=desk.manager, state=state, is_page=True, created_at=now, not_before=now,
            deadline_at=now, give_up_at=now, sent_at=now, **fields,
        )  # fmt: skip
        client = Client()
        client.force_login(desk.administrator)
        return client.get(reverse("admin:channels_app_delivery_change", args=[row.pk])).content.decode()

    sent = [1, now.timestamp(), 0.2, "sent", "CA123"]
    failed = shown("failed", reason="busy", log=[sent, [1, now.timestamp() + 20, 0, "failed", "busy"]])
    assert "0.200 s · sent · CA123" in failed and "reported · failed · busy" in failed
    assert "Why a call may not have reached the phone" in failed
    picked_up = shown("delivered", log=[sent], delivered_at=now)
    assert "reported · delivered" in picked_up and "Why a call may not" not in picked_up
