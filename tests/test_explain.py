"""`manage.py explain`: an incident or an event by any id that people have, for those who may see it."""

import io

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from channels_app.models import Channel, Preference
from escalation import lifecycle, rules
from escalation.explain import ahead, as_text
from escalation.explain import explain as whole
from escalation.ids import hex_id
from escalation.models import Event, Layer
from mapping.models import ContactPoint, Member
from tests.world import World, layer

pytestmark = pytest.mark.django_db

DOWN = ("Lee", "app", "triggered")


def explain(*args: str) -> str:
    out = io.StringIO()
    call_command("explain", *args, stdout=out)
    return out.getvalue()


@pytest.fixture
def down(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("flashduty.management.commands.explain.db_now", lambda: world.now)
    world.rule(layer(world.person("Lee")))
    world.alert("checkout is down")
    world.expect(DOWN)
    return world


def test_an_incident_is_found_by_number_and_by_id(down: World):
    incident = down.incident()
    story = explain(incident.num)
    assert "checkout is down" in story and "Lee" in story
    assert explain(f"#{incident.num.upper()}") == explain(hex_id(incident.created_at, incident.pk)) == story


def test_an_event_is_found_by_the_id_that_the_console_shows(down: World):
    event = Event.objects.get()
    Event.objects.filter(pk=event.pk).update(received_at=down.now)
    wire_id = hex_id(down.now, event.pk)
    story = explain("--event", str(event.pk))
    assert story.startswith("It opened a new alert.") and "Lee" in story
    assert explain(str(event.pk)) == explain("--event", wire_id) == story
    # The first event and the first incident of a second may share all 24 digits: then the incident is meant.
    assert "Lee" in explain(wire_id)


def test_an_event_that_opened_nothing_is_explained_too(world: World):
    world.recover("never seen")
    assert explain(str(Event.objects.get().pk)).strip() == "It says Ok, and there was no open alert of its key: nothing to recover."


def test_nobody_is_told_what_they_may_not_see(down: World):
    Member.objects.create_user("guest@example.com", "Guest", role="viewer")
    incident, event = down.incident(), Event.objects.get()
    assert "Lee" in explain(incident.num, "--as", "Guest@example.com") and explain(str(event.pk), "--as", "guest@example.com")
    down.workspace.is_private = True
    down.workspace.team = down.team("Owners")
    down.workspace.save()
    for what in ([incident.num], [str(event.pk)], ["--event", str(event.pk)]):
        with pytest.raises(CommandError, match=f"^There is no (incident or )?event {what[-1]}\\."):
            explain(*what, "--as", "guest@example.com")
    Event.objects.update(alert=None)  # of the event alone nothing is said either
    with pytest.raises(CommandError, match=r"^There is no event"):
        explain("--event", str(event.pk), "--as", "guest@example.com")


@pytest.mark.parametrize("what", ["3f2a1c", "0" * 24, "f" * 24, "999999", "9" * 30, "checkout", "²"])
def test_what_is_not_there_is_said_in_one_sentence(down: World, what: str):
    with pytest.raises(CommandError, match=r"^There is no incident or event .*Give an incident's number"):
        explain(what)
    with pytest.raises(CommandError, match=r"^There is no event \S+\.$"):
        explain("--event", what)
    with pytest.raises(CommandError, match="no active member"):
        explain(what, "--as", "nobody@example.com")


def test_the_plan_ahead_says_who_will_not_be_reached_and_why(world: World):
    lee, kim = world.person("Lee"), world.person("Kim", kinds=("email",))
    ContactPoint.objects.filter(member=kim).update(verified_at=None)
    world.rule(layer(lee, escalate_window=5), layer(lee, kim, escalate_window=5))
    world.alert("checkout is down")
    world.expect(DOWN)
    [escalated, *_end] = ahead(world.incident(), world.now)
    assert "Lee, Kim (cannot be reached: The e-mail address is not verified.)" in escalated.text and escalated.who == ("Lee",)
    world.pass_time(minutes=5)
    world.expect(("Lee", "app", "escalated"))


def test_the_plan_ahead_of_a_direct_assignment_ends_with_the_catch_all_where_nobody_can_be_reached(world: World):
    """Who was told and does not answer is the end of it; who cannot be told when the snooze is over is not."""
    lee, boss = world.person("Lee"), world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    world.rule(layer(boss))
    world.alert("checkout is down")
    world.do("assign", member_ids=[lee.id])
    world.expect(("Boss", "app", "triggered"), DOWN)
    world.do("snooze", actor=lee, minutes=10)
    assert world.foretell() == [(600, "triggered", {"Lee"})]
    Preference.objects.filter(member=lee).update(kind="gone")
    assert [item.text for item in ahead(world.incident(), world.now)] == ["Nobody can be reached: the catch-all is told"]
    world.foretell()
    world.pass_time(minutes=10)
    world.expect(("Boss", "app", "triggered"), at=600)
    world.ack()


def test_a_layer_with_loops_is_looked_up_once_for_the_plan_ahead(world: World):
    """Its loops are for the same people and groups, unless a group chose what it wants to hear."""
    rule = world.rule(layer(world.person("Lee"), groups=[world.group()], max_times=0))
    world.alert("once")
    with CaptureQueriesContext(connection) as once:
        assert len(ahead(world.incident(), world.now)) == 1
    world.ack()
    Layer.objects.update(max_times=2)
    rules.changed([rule.id])
    world.alert("three times")
    with CaptureQueriesContext(connection) as loops:
        assert len(ahead(world.incident(), world.now)) == 3
    assert len(loops) == len(once)
    world.ack()
    world.fresh()


def test_the_plan_ahead_names_each_way_that_a_person_wanted_only_later(world: World):
    olga = world.person("Olga", [("sandbox_email", 30), ("sandbox_sms", 60), ("sandbox_voice", 300)])
    Channel.objects.filter(kind="sandbox_voice").update(name="voice call")
    world.rule(layer(olga, escalate_window=4), layer(world.person("Lee"), escalate_window=30))
    world.alert("checkout is down")
    assert world.foretell() == [
        (30, "triggered", {"Olga"}), (60, "triggered", {"Olga"}), (240, "escalated", {"Lee"}), (300, "triggered", {"Olga"}),
        (2040, "exhausted", set()),
    ]  # fmt: skip
    assert [item.text for item in ahead(world.incident(), world.now)] == [
        "Olga by sandbox_email", "Olga by sandbox_sms", "Layer 2, escalated: Lee", "Olga by voice call",
        "Nobody has answered: the catch-all is told",
    ]  # fmt: skip
    assert "Olga by voice call" in as_text(whole(world.incident(), world.now)).partition("What will happen next")[2]
    world.pass_time(30)
    world.expect(("Olga", "email", "triggered"), at=30)
    world.pass_time(30)
    world.expect(("Olga", "sms", "triggered"), at=60)
    world.foretell()
    world.pass_time(240)
    world.expect(("Lee", "app", "escalated"), ("Olga", "voice", "triggered"))
    world.ack()
    assert ahead(world.incident(), world.now) == []


def test_a_reopening_that_the_engine_has_not_seen_yet_is_no_end(world: World):
    lee = world.person("Lee")
    world.rule(layer(lee))
    world.alert("checkout is down")
    world.do("snooze", actor=lee, minutes=1)
    assert any(line.text == "Lee snoozed it for 1 minute" for line in whole(world.incident(), world.now).happened)
    world.do("close", actor=lee)
    assert whole(world.incident(), world.now).nothing_ahead == "the escalation has ended: closed"
    lifecycle.reopen(world.incident().id, actor=lee, via="api", now=world.now, reason="not yet")
    assert whole(world.incident(), world.now).nothing_ahead == "the engine is about to take it up again"
    world.settle()
    assert ahead(world.incident(), world.now)
    world.fresh()
