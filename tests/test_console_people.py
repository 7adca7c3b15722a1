"""Console pages of people and of the channels that call them: regions and shares, the numbers that call, and why a call may not be answered."""

import json
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.views.defaults import server_error

from channels_app import links
from channels_app.models import Account, Address, Channel, ChannelHealth, Delivery, Notification
from escalation import explain
from flashduty.console import reach
from mapping.clock import db_now
from mapping.models import ContactPoint, Installation, Member, Team
from tests.world import layer

pytestmark = pytest.mark.django_db


@pytest.fixture
def boss(client: Client) -> Member:
    boss = Member.objects.create_user("boss@example.com", "Boss", role="administrator")
    client.force_login(boss)
    return boss


def edit(client: Client, channel: Channel, **fields: Any) -> str:
    """Saves the page of a phone channel with these fields; what it says when they are wrong."""
    url = reverse("admin:flashduty_classic_change", args=[channel.pk])
    data = {"name": channel.name, "status": "enabled", "position": 0, "weight": 0, "set_numbers": "+1 415 555 0100", **fields}
    answer = client.post(url, data)
    channel.refresh_from_db()
    return answer.content.decode() if answer.status_code == 200 else ""


def test_regions_share_and_quota_of_a_phone_channel(boss, client):
    channel = Channel.objects.create(kind="aliyun_voice", name="Ali", settings=ALI)
    page = client.get(reverse("admin:flashduty_classic_change", args=[channel.pk])).content.decode()
    assert 'name="regions"' in page and 'name="weight"' in page and 'name="monthly_quota"' in page
    shown = {f"set_{name}": value for name, value in ALI.items()}
    assert edit(client, channel, **shown, regions="cn\nHK\ncn", weight=3, monthly_quota=500) == ""
    assert (channel.regions, channel.weight, channel.monthly_quota) == (["CN", "HK"], 3, 500)
    assert "is not a region" in edit(client, channel, **shown, regions="China")
    assert channel.regions == ["CN", "HK"]


ALI = {
    "access_key_id": "LTAI00000000000000000000", "access_key_secret": "topsecret", "numbers": "+86 571 8888 1234", "template": "TTS_100000000",
    "variables": '{"title": "title"}', "variable_limit": 100, "api_base": "https://dyvmsapi.aliyuncs.com",
}  # fmt: skip


def test_a_failing_channel_says_whether_its_pages_wait(boss, client):
    def look() -> tuple[str, int]:
        with CaptureQueriesContext(connection) as asked:
            page = client.get(reverse("admin:flashduty_classic_changelist")).content.decode()
        return page, len(asked)

    def fails(name: str) -> None:
        channel = Channel.objects.create(kind="email", name=name)
        ChannelHealth.objects.create(channel=channel, failures=9, open_until=db_now(), last_error="refused")

    fails("Mail 1")
    look()
    page, asked = look()
    assert "failing; it has no fallback, so its pages wait: refused" in page and "failing, its pages" not in page
    fails("Mail 2")
    fails("Mail 3")
    page, more = look()
    assert page.count("failing, its pages take the fallback: refused") == 3 and more == asked


def test_a_channels_fallback_is_the_usual_one_or_a_chosen_one_or_none(boss, client):
    channel = Channel.objects.create(kind="aliyun_voice", name="Ali", settings=ALI)
    shown = {f"set_{name}": value for name, value in ALI.items()}
    for chosen, kept in (([], None), (["email"], ["email"]), (["-"], [])):
        assert edit(client, channel, **shown, fallback_kinds=chosen) == ""
        assert channel.fallback_kinds == kept
    assert "either" in edit(client, channel, **shown, fallback_kinds=["email", "-"]) and channel.fallback_kinds == []
    page = client.get(reverse("admin:flashduty_classic_change", args=[channel.pk]))
    assert page.context["adminform"].form["fallback_kinds"].value() == ["-"]


def test_the_history_tells_no_fallback_from_the_usual_one(boss, client):
    channel = Channel.objects.create(kind="aliyun_voice", name="Ali", settings=ALI)
    shown = {f"set_{name}": value for name, value in ALI.items()}
    assert edit(client, channel, **shown) == ""  # what saving the form fills in besides
    LogEntry.objects.all().delete()
    for chosen in (["-"], ["email"], ["-"], []):
        assert edit(client, channel, **shown, fallback_kinds=chosen) == ""
    said = [json.loads(entry.change_message)[0]["changed"]["fields"] for entry in LogEntry.objects.order_by("id")]
    changes = ("- → no fallback", 'no fallback → ["email"]', '["email"] → no fallback', "no fallback → -")
    assert said == [[f"fallback kinds: {change}"] for change in changes]


def test_a_mail_channel_has_a_share_and_no_regions_a_bot_neither(boss, client):
    mail = Channel.objects.create(kind="email", name="Mail", settings={"host": "mail.example.com"})
    page = client.get(reverse("admin:flashduty_classic_change", args=[mail.pk])).content.decode()
    assert 'name="weight"' in page and 'name="regions"' not in page
    bot = Channel.objects.create(kind="slack", name="Bot")
    page = client.get(reverse("admin:flashduty_imbot_change", args=[bot.pk])).content.decode()
    assert 'name="weight"' not in page and 'name="regions"' not in page


def test_a_members_page_has_the_numbers_that_call_them_and_their_card(boss, client):
    lee = Member.objects.create_user("lee@example.com", "Lee")
    url, card = reverse("admin:mapping_member_change", args=[lee.pk]), reverse("admin:mapping_member_contacts", args=[lee.pk])
    assert card not in client.get(url).content.decode() and client.get(card).status_code == 404
    ContactPoint.objects.create(member=lee, kind="phone", value="+8613800138000", verified_at=db_now())
    Channel.objects.create(kind="aliyun_voice", name="Ali", settings={"numbers": "+86 571 8888 1234"})
    page = client.get(url).content.decode()
    assert "+86 571 8888 1234" in page and card in page
    assert client.get(card).content.startswith(b"BEGIN:VCARD\r\nVERSION:4.0\r\n")
    assert Client().get(card).status_code == 302


def test_an_account_is_seen_and_unlinked_by_administrators_and_added_by_nobody(boss, client):
    lee = Member.objects.create_user("lee@example.com", "Lee")
    account = Account.objects.create(member=lee, channel=Channel.objects.create(kind="telegram", name="Bot"), target="42")
    assert "not verified" in client.get(reverse("admin:channels_app_account_change", args=[account.pk])).content.decode()
    assert client.get(reverse("admin:channels_app_account_add")).status_code == 403
    browser = Client()
    browser.force_login(Member.objects.create_user("m@example.com", "Manager", role="manager"))
    assert browser.post(reverse("admin:channels_app_account_delete", args=[account.pk]), {"post": "yes"}).status_code in (302, 403)
    assert Account.objects.exists()
    assert client.post(reverse("admin:channels_app_account_delete", args=[account.pk]), {"post": "yes"}).status_code == 302
    assert not Account.objects.exists()


def member_form(member: Member, **changes: str) -> dict[str, str]:
    return {
        "name": member.name, "email": member.email, "role": member.role, "time_zone": "UTC", "language": "en", "is_active": "on", **changes,
    }  # fmt: skip


def test_one_administrator_always_remains(boss, client):
    url = reverse("admin:mapping_member_change", args=[boss.pk])
    for change in ({"role": "manager"}, {"is_active": ""}):
        answer = client.post(url, member_form(boss, **change))
        assert answer.status_code == 200 and "the last administrator" in answer.content.decode()
    assert client.post(url, member_form(boss, name="Boss II")).status_code == 302
    Member.objects.create_user("deputy@example.com", "Deputy", role="administrator", is_active=False)
    assert client.post(url, member_form(boss, role="manager")).status_code == 200  # who is not active cannot sign in
    Member.objects.filter(name="Deputy").update(is_active=True)
    assert client.post(url, member_form(boss, role="manager")).status_code == 302
    boss.refresh_from_db()
    assert (boss.role, boss.is_active) == ("manager", True)


def test_deactivating_is_offered_to_administrators_alone(boss, client):
    url = reverse("admin:mapping_member_changelist")
    assert 'value="deactivate"' in client.get(url).content.decode()
    lee = Member.objects.create_user("lee@example.com", "Lee", role="manager")
    team = Team.objects.create(name="Web")
    team.members.add(lee, Member.objects.create_user("kim@example.com", "Kim"))
    client.force_login(lee)
    assert 'value="deactivate"' not in client.get(url).content.decode()
    client.post(url, {"action": "deactivate", "_selected_action": [row.pk for row in team.members.all()]})
    assert all(row.is_active for row in team.members.all())


def test_refusals_and_failures_lead_back_to_the_console(boss, client, django_assert_num_queries):
    kim = Member.objects.create_user("kim@example.com", "Kim", language="zh-hans")
    client.force_login(kim)
    answer = client.get(reverse("admin:mapping_member_add"))
    assert answer.status_code == 403 and 'lang="zh-hans"' in answer.content.decode() and 'href="/"' in answer.content.decode()
    answer = client.get("/nothing/here/")
    assert answer.status_code == 404 and 'href="/"' in answer.content.decode()
    with django_assert_num_queries(0):
        failure = server_error(RequestFactory().get("/"))
        assert failure.status_code == 500 and "It has been logged" in failure.content.decode()
    stale = Client(enforce_csrf_checks=True).post("/admin/login/", {"username": "x"})
    assert stale.status_code == 403 and "out of date" in stale.content.decode()


def test_the_history_speaks_the_installations_language_whoever_wrote_it(boss, client):
    Member.objects.filter(pk=boss.pk).update(language="zh-hans")
    team = Team.objects.create(name="Web")
    data = {"name": "Web shop", "status": "disabled", "description": "", "members": []}
    assert client.post(reverse("admin:mapping_team_change", args=[team.pk]), data).status_code == 302
    client.post(reverse("admin:mapping_team_changelist"), {"action": "retire", "_selected_action": [team.pk]})
    said = [line for entry in LogEntry.objects.order_by("id") for line in json.loads(entry.change_message)[0]["changed"]["fields"]]
    assert said == ["name: Web → Web shop", "status: Enabled → Disabled", "status: Disabled → Deleted"]
    site = Installation.get()
    data = {"name": site.name, "language": "zh-hans", "support_contact": "", "retention_days": site.retention_days}
    assert client.post(reverse("admin:mapping_installation_change", args=[site.pk]), data).status_code == 302
    (line,) = json.loads(LogEntry.objects.latest("id").change_message)[0]["changed"]["fields"]
    assert line == "default language: English → Chinese (simplified)"


def test_whoever_cannot_be_reached_is_said_where_they_are_chosen(world, client):
    lee = world.person("Lee", ["sandbox_voice"], role="administrator")
    kim = world.person("Kim", ["email"])
    rule = world.rule(layer(lee), layer(kim, lee))
    world.workspace.catch_all_members.add(kim)
    Installation.get().catch_all_members.add(kim)
    client.force_login(lee)
    pages = [
        reverse("admin:escalation_escalationrule_change", args=[rule.pk]),
        reverse("admin:escalation_workspace_change", args=[world.workspace.pk]),
        reverse("admin:mapping_installation_change", args=[1]),
    ]
    said = "The e-mail address is not verified."

    def told(html: str) -> int:
        return sum(said in line and "Kim" in line for line in html.replace("<br>", "\n").splitlines())

    assert [told(client.get(page).content.decode()) for page in pages] == [0, 0, 0]
    ContactPoint.objects.filter(member=kim).update(verified_at=None)
    assert [told(client.get(page).content.decode()) for page in pages] == [1, 1, 1]
    world.alert("down")
    page = reverse("admin:escalation_incident_do", args=[world.incident().pk, "assign"])
    assert told(client.post(page, {"assign-member_ids": [lee.pk, kim.pk]}, follow=True).content.decode())
    create = {"workspace": world.workspace.pk, "title": "by hand", "severity": "Critical", "member_ids": [kim.pk]}
    assert told(client.post(reverse("admin:escalation_incident_add"), create, follow=True).content.decode())
    world.fresh()


def test_of_whom_a_layer_names_it_is_said_truly_who_is_not_told(world):
    lee, kim = world.person("Lee"), world.person("Kim", is_active=False)
    off, empty = world.team("Off", lee), world.team("Empty", kim)
    Team.objects.filter(pk=off.pk).update(status="disabled")
    kims, offs = "Kim cannot be reached. The person is not active.", "Off: the team is not enabled, so nobody in it is told."
    by_no_way = ["The layer chooses no way for Warning, Info: then its people are not told."]
    by_severity = {"follow_preference": False, "critical": ["sandbox_app"]}
    rule = world.rule(
        layer(kim), layer(teams=[off, empty]), layer(lee, kim, teams=[off]), layer(lee, **by_severity), layer(lee),
        layer(supervisors=True), layer(groups=[world.group()], **by_severity), layer(supervisors=True, **by_severity),
    )  # fmt: skip
    assert reach.unreached_of(rule.pk, db_now()) == [
        [kims],
        ["Empty: nobody in the team is active.", offs],
        [kims, offs],
        by_no_way,
        [],
        None,
        None,
        by_no_way,
    ]
    assert reach.shown([]) == "nobody of those who are named here" and reach.shown(None) == "-"
    site = Installation.get()
    assert reach.unreached_by_catch_all(world.workspace.pk, db_now()) is reach.unreached_by_installation(db_now()) is None
    world.workspace.catch_all_channels.add(world.group())
    site.catch_all_teams.add(off)
    assert reach.unreached_by_catch_all(world.workspace.pk, db_now()) == reach.unreached_by_installation(db_now()) == [offs]
    world.workspace.catch_all_members.add(kim)
    assert reach.unreached_by_catch_all(world.workspace.pk, db_now()) == [kims, offs]


def test_why_an_event_was_not_taken_is_said_in_the_readers_language(world, client):
    client.force_login(world.person("Lee", role="administrator", language="zh-hans"))
    type(world.workspace).objects.update(status="disabled")
    world.alert("down")
    page = client.get(reverse("admin:escalation_event_changelist")).content.decode()
    assert "协作空间已停用。" in page and "The workspace is disabled." not in page


def test_where_a_call_was_not_answered_it_is_said_what_may_block_it(world, client):
    lee = world.person("Lee", ["sandbox_voice"], role="administrator")
    world.rule(layer(lee))
    world.alert("down")
    world.fresh()
    client.force_login(lee)
    delivery = Delivery.objects.get()
    url = reverse("admin:channels_app_delivery_change", args=[delivery.pk])
    page = f"/i/{explain.hex_id(world.incident().created_at, world.incident().pk)}/"
    words = "Why a call may not have reached the phone"

    def is_said() -> list[bool]:
        return [words in client.get(address).content.decode() for address in (url, page)]

    assert is_said() == [False, False]
    taken = delivery.sent_at
    Delivery.objects.update(state="failed", sent_at=None, reason="the vendor refused the call")
    assert is_said() == [False, False]
    Delivery.objects.update(state="unknown", sent_at=taken)
    assert is_said() == [True, True]
    Delivery.objects.update(state="failed", reason="nobody picked up")
    # A card can be had only where numbers call, and one's own only by whoever is signed in, as the reader of a message's link seldom is.
    link = links.person_link(world.incident().pk, lee.pk, db_now()).removeprefix("http://testserver")
    for html in (client.get(page).content.decode(), Client().get(link).content.decode()):
        assert words in html and f'href="{reverse("me")}#points"' in html and "download>" not in html
    card = reverse("admin:mapping_member_contacts", args=[lee.pk])
    assert card not in client.get(url).content.decode()
    ContactPoint.objects.create(member=lee, kind="phone", value="+8613800138000", verified_at=db_now())
    Channel.objects.create(kind="aliyun_voice", name="Ali", settings=ALI)
    assert card in client.get(url).content.decode()
    assert words in client.get(url).content.decode() and words in client.get(page).content.decode()
    assert "ported" in client.get(url).content.decode()
    world.do("close")


def test_a_failed_mail_has_no_word_about_calls(boss, client):
    now, mail = db_now(), Channel.objects.create(kind="email", name="Mail")
    said = Notification.objects.create(event="triggered", severity="Critical", created_at=now)
    delivery = Delivery.objects.create(
        notification=said, channel=mail, address=Address.objects.create(channel=mail, target="a@example.com"), state="failed",
        created_at=now, not_before=now, deadline_at=now, give_up_at=now,
    )  # fmt: skip
    assert "Why a call" not in client.get(reverse("admin:channels_app_delivery_change", args=[delivery.pk])).content.decode()
