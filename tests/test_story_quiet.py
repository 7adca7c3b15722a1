"""Quiet hours, as a person lives them: what may wait waits for the morning, escalates meanwhile, and is never lost."""

from datetime import time

from channels_app import addresses
from channels_app.models import Delivery
from escalation import explain
from tests.world import layer

NIGHT = {"quiet_start": time(22), "quiet_end": time(7)}  # by UTC, and the stories begin at three in the morning
MORNING = 4 * 3600


def test_a_warning_waits_for_the_morning_and_the_mail_does_not(world):
    lee = world.person("Lee", ["sandbox_app", ("sandbox_voice", 300), "sandbox_email"], **NIGHT)
    world.rule(layer(lee, escalate_window=600))
    world.alert("disk is filling", "Warning")
    world.expect(("Lee", "email", "triggered"), at=0)
    story = explain.explain(world.incident(), world.now)
    assert [told.reason for told in story.told if told.state == "queued"] == ["quiet hours until 07:00 UTC"] * 2
    assert any("quiet hours until 07:00" in line.text for line in story.happened)
    world.pass_time(hours=4)
    world.expect(("Lee", "app", "triggered"), at=MORNING)
    world.pass_time(minutes=5)
    world.expect(("Lee", "voice", "triggered"), at=MORNING + 300)
    assert not Delivery.objects.exclude(reason="").exists()
    world.ack(actor=lee)


def test_the_escalation_goes_on_meanwhile_and_an_answer_spares_the_morning(world):
    lee, kim = world.person("Lee", **NIGHT), world.person("Kim")
    world.rule(layer(lee, escalate_window=30), layer(kim, escalate_window=600))
    world.alert("disk is filling", "Warning")
    world.silence()
    ahead = explain.ahead(world.incident(), world.now)
    assert [item.text for item in ahead if item.what != "exhausted"] == [
        "Layer 2, escalated: Kim", "Lee by sandbox_app (quiet hours until 07:00 UTC)",
    ]  # fmt: skip
    world.pass_time(minutes=30)
    world.expect(("Kim", "app", "escalated"), at=1800)
    world.ack(actor=kim)
    world.pass_time(hours=6)
    world.silence()


def test_what_breaks_through_rings_at_once(world):
    lee = world.person("Lee", **NIGHT)
    world.rule(layer(lee))
    world.alert("all is down")
    world.expect(("Lee", "app", "triggered"), at=0)
    world.do("close")


def test_a_layer_that_says_how_overrides_the_quiet_hours(world):
    lee = world.person("Lee", **NIGHT)
    world.rule(layer(lee, follow_preference=False, warning=["sandbox_app"]))
    world.alert("disk is filling", "Warning")
    world.expect(("Lee", "app", "triggered"), at=0)
    world.do("close")


def test_the_plan_ahead_says_who_will_not_be_woken(world):
    lee, kim = world.person("Lee"), world.person("Kim", **NIGHT)
    world.rule(layer(lee, escalate_window=30), layer(kim, escalate_window=600))
    world.alert("disk is filling", "Warning")
    world.fresh()
    (planned,) = [item for item in explain.ahead(world.incident(), world.now) if item.what == "page"]
    assert planned.text == "Layer 2, escalated: Kim (quiet hours until 07:00 UTC)" and planned.who == ("Kim",)
    world.do("close")


def test_without_a_preference_they_hold_as_well(world):
    lee = world.person("Lee", [], **NIGHT)
    world.channel("sandbox_app")
    world.channel("sandbox_email")
    waits = {item.kind: (item.delay, item.reason) for item in addresses.reach([lee.pk], "Warning", world.now)[lee.pk]}
    assert waits == {"sandbox_app": (MORNING, "quiet hours until 07:00 UTC"), "sandbox_email": (0, "")}


def test_loops_of_the_night_are_one_message_in_the_morning(world):
    lee = world.person("Lee", **NIGHT)
    world.rule(layer(lee, max_times=3, notify_step=10, escalate_window=600))
    world.alert("disk is filling", "Warning")
    world.pass_time(hours=4)
    world.expect(("Lee", "app", "refire"), at=MORNING)
    world.ack(actor=lee)
