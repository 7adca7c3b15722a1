"""The signed page and the group's link: who gets in, what the buttons do, and that nobody else moves anything."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import translation

from channels_app import links
from escalation.explain import sentence
from escalation.ids import hex_id
from escalation.models import Incident, Run, TimelineEntry
from mapping.clock import db_now
from mapping.crypto import sign
from mapping.models import Member, Team
from tests.world import layer

pytestmark = pytest.mark.django_db


@pytest.fixture
def lee(world):
    """Lee is on call, and an alert has paged him."""
    lee = world.person("Lee", ["sandbox_app"])
    world.rule(layer(lee), layer(world.person("Boss", ["sandbox_app"])))
    world.alert("checkout is down")
    yield lee
    world.settle()
    world.fresh()


def path_of(member: Member, incident: Incident) -> str:
    return links.person_link(incident.pk, member.pk, db_now()).removeprefix("http://testserver")


def group_path(incident: Incident) -> str:
    return f"/i/{hex_id(incident.created_at, incident.pk)}/"


def facts(incident: Incident) -> tuple:
    """Everything a page could have changed."""
    return (
        Incident.objects.filter(pk=incident.pk).values().get(),
        list(TimelineEntry.objects.order_by("id").values_list("id", "type", "handled_at")),
        list(Run.objects.order_by("id").values_list("id", "next_at", "ended_at")),
    )


def guard(response) -> None:
    """The headers that every page here must have."""
    assert response["Cache-Control"] == "no-store"
    assert "noindex" in response["X-Robots-Tag"]
    assert response["X-Frame-Options"] == "DENY"
    policy = response["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe-inline" not in policy


# ---- the signed page -----------------------------------------------------------------------------------------------------------------


def test_the_link_of_a_message_opens_the_page_without_a_password(world, lee, client):
    page = client.get(path_of(lee, world.incident()))
    assert page.status_code == 200
    guard(page)
    assert page["Referrer-Policy"] == "no-referrer"
    text = page.content.decode()
    assert "checkout is down" in text and "Acknowledge" in text and "Boss" in text  # the plan ahead names who is next
    assert "csrftoken" not in client.cookies and not client.cookies


def test_a_mail_scanner_opens_everything_and_nothing_happens(world, lee, client):
    incident = world.incident()
    before = facts(incident)
    for address in (path_of(lee, incident), group_path(incident)):
        for query in ("", "?ack=1", "?done=close", "?do=acknowledge", "?do=close&ack=1"):
            for method in (client.get, client.head, client.options, client.put, client.delete, client.patch):
                method(address + query)
    assert facts(incident) == before


def test_ack_1_only_puts_the_button_forward(world, lee, client):
    path = path_of(lee, world.incident())
    assert "put-forward" not in client.get(path).content.decode()
    assert "put-forward" in client.get(path + "?ack=1").content.decode()
    assert world.incident().progress == "Triggered"


def test_acknowledge_acts_as_the_holder_by_the_way_link(world, lee, client):
    path = path_of(lee, world.incident())
    answer = client.post(path, {"do": "acknowledge"})
    assert answer.status_code == 302 and answer["Location"] == path + "?done=acknowledge"
    entry = TimelineEntry.objects.get(type="i_ack")
    assert (entry.actor, entry.via) == (lee, "link")
    assert world.incident().progress == "Processing"
    assert "Acknowledged. It is yours." in client.get(answer["Location"]).content.decode()


def test_the_sentence_after_a_button_cannot_be_forged_by_an_address(world, lee, client):
    assert "Acknowledged. It is yours." not in client.get(path_of(lee, world.incident()) + "?done=acknowledge").content.decode()


@pytest.mark.parametrize(
    ("do", "fields", "entry", "progress"),
    [
        ("escalate", {}, "i_escalate", "Triggered"),
        ("close", {}, "i_rslv", "Closed"),
        ("snooze", {"minutes": "60"}, "i_snooze", "Processing"),
        ("comment", {"text": "on it"}, "i_comm", "Triggered"),
    ],
)
def test_the_other_buttons(world, lee, client, do, fields, entry, progress):
    assert client.post(path_of(lee, world.incident()), {"do": do, **fields}).status_code == 302
    assert TimelineEntry.objects.get(type=entry).actor == lee
    assert world.incident().progress == progress


def test_a_refused_move_shows_the_sentence_and_the_state_as_it_is(world, lee, client):
    path = path_of(lee, world.incident())
    client.post(path, {"do": "close"})
    answer = client.post(path, {"do": "acknowledge"})
    assert answer.status_code == 409
    guard(answer)
    assert "This incident is closed: reopen it first." in answer.content.decode() and "Reopen" in answer.content.decode()
    for fields in (
        {"do": "snooze", "minutes": "-1"},
        {"do": "snooze", "minutes": "9" * 40},
        {"do": "delete"},
        {},
        {"do": "reopen", "reason": " "},
    ):
        assert client.post(path, fields).status_code == 409


def test_the_page_says_304_while_nothing_changes(world, lee, client):
    path = path_of(lee, world.incident())
    tag = client.get(path)["ETag"]
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    client.post(path, {"do": "acknowledge"})
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 200


def test_it_speaks_the_holders_language_and_zone(world, lee, client):
    Member.objects.filter(pk=lee.pk).update(language="zh-hans", time_zone="Asia/Shanghai")
    text = client.get(path_of(lee, world.incident()), headers={"Accept-Language": "en"}).content.decode()
    assert 'lang="zh-hans"' in text and "11:00:00" in text  # 03:00 UTC


def test_a_zone_this_machine_does_not_know_opens_the_page_in_utc(world, lee, client):
    Member.objects.filter(pk=lee.pk).update(time_zone="Mars/Olympus")
    assert "03:00:00" in client.get(path_of(lee, world.incident())).content.decode()


def test_a_viewer_looks_and_does_not_touch(world, lee, client):
    Member.objects.filter(pk=lee.pk).update(role="viewer")
    path = path_of(lee, world.incident())
    assert 'value="acknowledge"' not in client.get(path).content.decode()
    assert client.post(path, {"do": "acknowledge"}).status_code == 409
    assert world.incident().progress == "Triggered"


# ---- links that open nothing ---------------------------------------------------------------------------------------------------------


def dead(response) -> bool:
    guard(response)
    return response.status_code in (404, 410) and "checkout" not in response.content.decode()


def test_a_forged_or_broken_token_opens_nothing(world, lee, client):
    incident = world.incident()
    good = path_of(lee, incident)
    stamp = int(db_now().timestamp())
    for path in (
        good[:-3] + "x/",
        good.replace(f"/i/{incident.pk}-", f"/i/{incident.pk + 1}-"),
        f"/i/{sign(f'{incident.pk}-{lee.pk}-{stamp}', 'other')}/",  # signed by us for something else
        f"/i/{sign('nonsense', 'page')}/",
        f"/i/{sign('1-2-3-4', 'page')}/",
        "/i/x/",
        f"/i/{'0' * 23}/",
    ):
        assert dead(client.get(path)), path
        assert dead(client.post(path, {"do": "close"})), path
    assert world.incident().progress == "Triggered"


def test_a_token_acts_on_its_own_incident_and_as_its_own_member_only(world, lee, client):
    boss = Member.objects.get(name="Boss")
    world.alert("another")
    first, second = world.incident("checkout is down"), world.incident("another")
    client.force_login(boss)  # a session of somebody else changes nothing about whom the link is for
    client.post(path_of(lee, first), {"do": "acknowledge", "incident": second.pk, "member": boss.pk})
    assert TimelineEntry.objects.get(type="i_ack").actor == lee
    assert world.incident("another").progress == "Triggered"


def test_a_deactivated_members_link_dies(world, lee, client):
    path = path_of(lee, world.incident())
    Member.objects.filter(pk=lee.pk).update(is_active=False)
    assert dead(client.get(path)) and dead(client.post(path, {"do": "acknowledge"}))


def test_a_link_dies_a_day_after_the_incident_closed(world, lee, client):
    path = path_of(lee, world.incident())
    client.post(path, {"do": "close"})
    assert client.get(path).status_code == 200
    Incident.objects.update(close_time=db_now() - timedelta(hours=23, minutes=59))
    assert client.get(path).status_code == 200
    Incident.objects.update(close_time=db_now() - timedelta(hours=24, seconds=1))
    assert dead(client.get(path)) and dead(client.post(path, {"do": "reopen", "reason": "again"}))


def test_links_from_before_a_revocation_are_dead_and_later_ones_are_good(world, lee, client):
    incident = world.incident()
    now = db_now()
    old = links.person_link(incident.pk, lee.pk, now - timedelta(seconds=5)).removeprefix("http://testserver")
    new = links.person_link(incident.pk, lee.pk, now + timedelta(seconds=5)).removeprefix("http://testserver")
    Member.objects.filter(pk=lee.pk).update(links_valid_from=now)
    assert dead(client.get(old)) and dead(client.post(old, {"do": "acknowledge"}))
    assert client.get(new).status_code == 200


# ---- the group's link ----------------------------------------------------------------------------------------------------------------


def test_a_stranger_learns_nothing_from_a_groups_link(world, lee, client):
    incident = world.incident()
    real, made_up = client.get(group_path(incident)), client.get(f"/i/{'a' * 24}/")
    assert (real.status_code, made_up.status_code) == (302, 302)
    assert real["Location"] == f"/admin/login/?next={group_path(incident).replace('/', '%2F')}"
    guard(real)
    assert client.post(group_path(incident), {"do": "acknowledge"}).status_code == 302
    assert world.incident().progress == "Triggered"


def test_a_signed_in_member_acts_as_themselves_through_a_groups_link(world, lee, client):
    incident = world.incident()
    boss = Member.objects.get(name="Boss")
    client.force_login(boss)
    assert "checkout is down" in client.get(group_path(incident)).content.decode()
    assert client.post(group_path(incident), {"do": "acknowledge"}).status_code == 302
    entry = TimelineEntry.objects.get(type="i_ack")
    assert (entry.actor, entry.via) == (boss, "console")


def test_a_groups_link_does_not_open_a_private_workspace(world, lee, client):
    world.workspace.team = Team.objects.create(name="Secret")
    world.workspace.is_private = True
    world.workspace.save()
    client.force_login(lee)
    assert dead(client.get(group_path(world.incident())))
    assert dead(client.post(group_path(world.incident()), {"do": "acknowledge"}))
    # The id's first half is part of it: a right key with a wrong second is nothing.
    client.force_login(Member.objects.create_user("root@example.com", role="administrator"))
    assert client.get(group_path(world.incident())).status_code == 200
    assert dead(client.get(f"/i/00000000{group_path(world.incident())[11:]}"))


def test_a_forged_form_does_not_act_for_a_signed_in_member(world, lee):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(lee)
    path = group_path(world.incident())
    assert browser.post(path, {"do": "close"}, headers={"Origin": "https://evil.example"}).status_code == 403
    assert world.incident().progress == "Triggered"
    browser.get(path)
    form = {"do": "acknowledge", "csrfmiddlewaretoken": browser.cookies["flashduty_csrf"].value}
    assert browser.post(path, form).status_code == 302
    assert world.incident().progress == "Processing"


def test_the_signed_page_needs_no_cookie_as_its_token_is_what_a_forger_lacks(world, lee):
    browser = Client(enforce_csrf_checks=True)
    # "null" is what a browser sends from a page whose policy is no-referrer.
    assert browser.post(path_of(lee, world.incident()), {"do": "acknowledge"}, headers={"Origin": "null"}).status_code == 302


def test_where_the_workspace_allows_it_somebody_in_the_group_acknowledges(world, lee, client):
    world.workspace.group_may_act = True
    world.workspace.save()
    incident = world.incident()
    page = client.get(group_path(incident))
    text = page.content.decode()
    guard(page)
    assert "checkout is down" in text and "Lee" not in text and "Boss" not in text
    assert client.post(group_path(incident), {"do": "close"}).status_code == 409  # acknowledging is all a group may do
    assert client.post(group_path(incident), {"do": "acknowledge"}).status_code == 302
    entry = TimelineEntry.objects.get(type="i_ack")
    assert (entry.actor, entry.via, entry.detail["as"]) == (None, "group", "somebody in a group")
    assert world.incident().progress == "Processing"


def test_the_timeline_names_the_group_that_was_told(world, client):
    lee = world.person("Lee", ["sandbox_app"])
    world.rule(layer(lee, groups=[world.channel("sandbox_group")]))
    world.workspace.group_may_act = True
    world.workspace.save()
    world.alert("db down")
    client.post(group_path(world.incident()), {"do": "acknowledge"}, headers={"Accept-Language": "zh-hans"})
    group = world.channel("sandbox_group").name
    entry = TimelineEntry.objects.get(type="i_ack")
    assert (
        entry.detail["as"] == f"somebody in {group}"
    )  # whatever language they read it in: whoever reads the timeline has one of their own
    with translation.override("zh-hans"):
        assert sentence(entry).startswith(f"{group} 中的某人 ")
        entry.detail = {"as": "somebody in a group"}
        assert sentence(entry).startswith("群聊 中的某人 ")
    entry.detail = {"as": f"{group} 中的某人"}  # as it was stored before
    assert sentence(entry).startswith(f"{group} 中的某人 ")
    world.settle()
    world.fresh()


def test_ids_of_groups_links_cannot_be_tried_one_by_one(world, lee, client):
    world.workspace.group_may_act = True
    world.workspace.save()
    path = group_path(world.incident())
    codes = [client.get(path).status_code for _turn in range(121)]
    assert codes[0] == 200 and codes[-1] == 429
    assert int(client.get(path)["Retry-After"]) > 0


# ---- texts from strangers ------------------------------------------------------------------------------------------------------------


def test_titles_cannot_carry_scripts_or_turn_the_text_around(world, client):
    lee = world.person("Lee", ["sandbox_app"])
    world.rule(layer(lee))
    nasty = '<script>alert(1)</script>\u202egnp.exe\u2066"><img src=x onerror=alert(1)>'
    world.alert(nasty, key="k", labels={"<b>": "</dd><script>1</script>"}, description="\u202e<script>2</script>")
    path = path_of(lee, world.incident())
    client.post(path, {"do": "comment", "text": "<script>3</script>\u202e"})
    world.workspace.group_may_act = True
    world.workspace.save()
    for address in (path, group_path(world.incident())):
        text = client.get(address).content.decode()
        assert text.count("<script") == text.count("<script src=")  # only our own files
        assert "<img src=x" not in text and "\u202e" not in text and "\u2066" not in text
        assert "&lt;script&gt;alert(1)" in text
    world.settle()
    world.fresh()


def test_the_door_leads_to_the_console(client):
    assert client.get("/")["Location"] == "/admin/"
