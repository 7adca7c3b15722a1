"""The sandbox page: who may open it, what it shows, and what its keys and buttons do."""

import json
import re

import pytest
from django.test import Client

from channels_app.models import Delivery
from escalation.models import Event, TimelineEntry
from flashduty.web import sandbox as page
from mapping.clock import db_now
from mapping.models import Member
from tests.world import layer

pytestmark = pytest.mark.django_db


@pytest.fixture
def player(client):
    """A member who may use the sandbox, signed in."""
    member = Member.objects.create_user("ada@example.com", "Ada", role="administrator", may_use_sandbox=True)
    client.force_login(member)
    return member


@pytest.fixture
def lee(world, player):
    """Lee has an app, a chat, a phone and a mailbox, and an alert has paged him through all of them."""
    lee = world.person("Lee", ["sandbox_app", "sandbox_im", "sandbox_voice", "sandbox_email", "sandbox_sms"])
    boss = world.person("Boss", ["sandbox_app"])
    world.rule(layer(lee, groups=[world.channel("sandbox_group")]), layer(boss))
    world.alert("checkout is down")
    yield lee
    world.settle()
    world.fresh()


def shown(client, after="", **headers):
    answer = client.get("/sandbox/messages", {"after": after} if after else {}, headers=headers)
    assert answer.status_code == 200, answer
    return answer.json()["messages"]


def one(client, kind):
    return next(message for message in shown(client) if message["kind"] == kind)


def press(client, message, do):
    return client.post("/sandbox/press", {"delivery": message["id"], "do": do})


# ---- who may -------------------------------------------------------------------------------------------------------------------------

DOORS = [("get", "/sandbox/"), ("get", "/sandbox/messages"), ("post", "/sandbox/press"), ("post", "/sandbox/alert")]


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_it_is_for_members_with_the_permission_only(world, lee, method, path):
    stranger = Client()
    assert getattr(stranger, method)(path).status_code == (302 if path == "/sandbox/" else 403)
    for role in ("administrator", "member"):
        other = Member.objects.create_user(f"{role}@example.com", role=role)
        stranger.force_login(other)
        answer = getattr(stranger, method)(path)
        assert answer.status_code == 403 and "checkout" not in answer.content.decode()


@pytest.mark.parametrize(("method", "path"), DOORS)
def test_it_is_not_there_where_it_is_switched_off(settings, client, player, method, path):
    settings.SANDBOX = False
    assert getattr(client, method)(path).status_code == 404


def test_presses_need_the_pages_own_token(world, lee, player):
    forger = Client(enforce_csrf_checks=True)
    forger.force_login(player)
    message = one(forger, "app")
    assert press(forger, message, "acknowledge").status_code == 403
    assert world.incident().progress == "Triggered"
    (token,) = re.findall(r'csrfmiddlewaretoken" value="(\w+)', forger.get("/sandbox/").content.decode())
    answer = forger.post("/sandbox/press", {"delivery": message["id"], "do": "acknowledge"}, headers={"X-CSRFToken": token})
    assert answer.status_code == 200


def test_a_real_channels_message_is_neither_shown_nor_answered(world, lee, client):
    """Its channel's kind is what decides, whatever else is true of the row."""
    delivery = Delivery.objects.filter(channel__kind="sandbox_app").earliest("id")
    seen = len(shown(client))
    real = world.channel("email")
    Delivery.objects.filter(pk=delivery.pk).update(channel=real)
    assert len(shown(client)) == seen - 1
    assert press(client, {"id": delivery.pk}, "acknowledge").status_code == 404
    assert world.incident().progress == "Triggered"


# ---- what it shows -------------------------------------------------------------------------------------------------------------------


def test_every_phone_mailbox_and_group_has_its_messages(world, lee, client):
    text = client.get("/sandbox/").content.decode()
    assert "Lee" in text and "Boss" in text and world.channel("sandbox_group").name in text
    found = {message["kind"]: message for message in shown(client)}
    assert set(found) == {"app", "im", "voice", "email", "sms", "group"}
    assert all("checkout is down" in message["text"] for message in found.values())
    assert found["app"]["buttons"] == ["acknowledge", "snooze", "escalate", "close"]
    assert found["sms"]["buttons"] == found["email"]["buttons"] == found["group"]["buttons"] == []


def test_links_open_the_persons_signed_page_and_in_a_group_carry_no_identity(world, lee, client):
    for kind in ("app", "sms", "email"):
        message = one(client, kind)
        assert "…" not in message["text"] and message["incidents"][0]["url"] + "?ack=1" in message["text"]
        assert "Lee" in Client().get(message["incidents"][0]["url"]).content.decode()
    group = one(client, "group")
    assert re.fullmatch(r"/i/[0-9a-f]{24}/", group["incidents"][0]["url"])
    assert Client().get(group["incidents"][0]["url"]).status_code == 302


def test_nothing_new_is_304_and_news_comes_alone(world, lee, client):
    world.do("close")
    first = client.get("/sandbox/messages")
    assert client.get("/sandbox/messages", headers={"If-None-Match": first["ETag"]}).status_code == 304
    world.now = db_now()  # long after: the first messages are old by now
    world.alert("another one")
    news = client.get("/sandbox/messages", {"after": world.now.isoformat()}, headers={"If-None-Match": first["ETag"]})
    assert news.status_code == 200 and news["ETag"] != first["ETag"]
    assert {message["incidents"][0]["title"] for message in news.json()["messages"]} == {"another one"}
    # A move changes the cards that are out already.
    press(client, next(m for m in news.json()["messages"] if m["kind"] == "app"), "acknowledge")
    changed = client.get("/sandbox/messages", {"after": news.json()["cursor"]}, headers={"If-None-Match": news["ETag"]})
    assert {m["incidents"][0]["progress"] for m in changed.json()["messages"] if m["kind"] == "im"} == {"Processing"}


def test_a_poll_is_a_handful_of_queries_however_many_messages(world, lee, client, django_assert_max_num_queries):
    tag = client.get("/sandbox/messages")["ETag"]
    with django_assert_max_num_queries(7):
        client.get("/sandbox/messages")
    with django_assert_max_num_queries(6):
        assert client.get("/sandbox/messages", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize(
    "after", ["", "x", "2026-03-02T03:00:00", "9" * 400, "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00", "\x00"]
)
def test_any_cursor_is_answered(world, lee, client, after):
    assert client.get("/sandbox/messages", {"after": after}).status_code == 200


def test_texts_are_data_and_turn_nothing_around(world, player, client):
    lee = world.person("Lee<script>1</script>", ["sandbox_app"])
    world.rule(layer(lee))
    world.alert("<script>alert(1)</script>\u202egnp.exe", key="k")
    text = client.get("/sandbox/").content.decode()
    assert "<script>1" not in text
    answer = client.get("/sandbox/messages")
    assert answer["Content-Type"] == "application/json" and "\\u202e" not in answer.content.decode()
    assert "script-src 'self'" in client.get("/sandbox/")["Content-Security-Policy"]
    world.fresh()


# ---- what its keys do ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "do", "entry", "via"),
    [
        ("app", "acknowledge", "i_ack", "card"),
        ("im", "snooze", "i_snooze", "card"),
        ("im", "escalate", "i_escalate", "card"),
        ("app", "close", "i_rslv", "card"),
        ("voice", "1", "i_ack", "voice"),
        ("voice", "2", "i_escalate", "voice"),
        ("voice", "3", "i_rslv", "voice"),
    ],
)
def test_a_key_acts_as_the_person_and_marks_the_message_answered(world, lee, client, kind, do, entry, via):
    message = one(client, kind)
    assert press(client, message, do).status_code == 200
    made = TimelineEntry.objects.get(type=entry)
    assert (made.actor, made.via) == (lee, via)
    assert Delivery.objects.get(pk=message["id"]).state == "answered"


def test_a_call_rings_until_it_is_picked_up(world, lee, client):
    message = one(client, "voice")
    assert message["state"] == "sent"
    press(client, message, "pick_up")
    assert one(client, "voice")["state"] == "delivered"
    press(client, message, "hang_up")  # after listening: heard is heard
    assert one(client, "voice")["state"] == "delivered"


def test_a_declined_call_is_a_failure_with_a_reason(world, lee, client):
    press(client, one(client, "voice"), "hang_up")
    message = one(client, "voice")
    assert (message["state"], message["reason"]) == ("failed", "the call was declined")
    assert world.incident().progress == "Triggered"


def test_a_refused_key_says_why(world, lee, client):
    world.do("close")
    answer = press(client, one(client, "app"), "acknowledge")
    assert (answer.status_code, answer.json()["error"]) == (409, "This incident is closed: reopen it first.")


def test_keys_that_are_none(world, lee, client):
    message = one(client, "app")
    for do in ("", "9", "comment", "reopen", "unacknowledge", "delete"):
        assert press(client, message, do).status_code == 400
    for number in ("", "x", "-1", "0", "9" * 30, "²"):
        assert press(client, {"id": number}, "acknowledge").status_code == 404
    assert press(client, one(client, "group"), "acknowledge").status_code == 404  # nobody in particular holds a group's message
    Member.objects.filter(pk=lee.pk).update(is_active=False)
    assert press(client, message, "acknowledge").status_code == 404
    assert world.incident().progress == "Triggered"


def test_a_bundles_key_answers_for_every_incident_it_names(world, lee, client):
    world.alert("second")
    rows = {row.topic: row for row in Delivery.objects.filter(channel__kind="sandbox_app", member=lee)}
    first, second = rows[world.incident("checkout is down").pk], rows[world.incident("second").pk]
    Delivery.objects.filter(pk=second.pk).update(state="bundled", bundled_by=first)
    message = next(m for m in shown(client) if m["id"] == first.pk)
    assert [incident["title"] for incident in message["incidents"]] == ["checkout is down", "second"]
    press(client, message, "acknowledge")
    assert {world.incident(title).progress for title in ("checkout is down", "second")} == {"Processing"}


# ---- its own alert -------------------------------------------------------------------------------------------------------------------


def test_an_alert_from_the_page_goes_the_way_of_every_alert(world, lee, client):
    assert client.post("/sandbox/alert", {"title": "from the page", "status": "Warning"}).status_code == 200
    Event.objects.filter(outcome=None).update(received_at=world.now)
    world.settle()
    assert world.incident("from the page").severity == "Warning"
    client.post("/sandbox/alert", {"title": "from the page", "status": "Ok"})
    world.settle()
    assert world.incident("from the page").progress == "Closed"


def test_a_bad_alert_names_the_field(world, lee, client):
    for fields, name in (({"title": "", "status": "Critical"}, "title_rule"), ({"title": "x", "status": "loud"}, "event_status")):
        answer = client.post("/sandbox/alert", fields)
        assert answer.status_code == 400 and answer.json()["error"].startswith(name)


def test_no_alert_from_the_page_in_production(world, lee, client, settings):
    settings.MODE = "production"
    assert client.post("/sandbox/alert", {"title": "x", "status": "Critical"}).status_code == 404
    assert 'id="fire"' not in client.get("/sandbox/").content.decode()


def test_who_may_not_configure_the_source_cannot_send_from_it(world, lee, client):
    member = Member.objects.create_user("m@example.com", "M", role="member", may_use_sandbox=True)
    client.force_login(member)
    assert client.post("/sandbox/alert", {"title": "x", "status": "Critical"}).status_code == 404


def test_the_words_of_the_script_are_all_there():
    """The script asks for its words by name; a word it lacks would show as "undefined"."""
    script = (page.settings.BASE_DIR / "static" / "web" / "sandbox.js").read_text()
    assert set(re.findall(r"words\.(\w+)", script)) <= set(page._words())
    assert json.dumps(page._words())


def test_answering_stops_a_fallback(world, lee, client):
    message = one(client, "im")
    press(client, message, "acknowledge")
    assert Delivery.objects.get(pk=message["id"]).fallback_at is None
