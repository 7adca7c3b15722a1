"""Stories of escalation: who is told, when, and what stops it."""

from datetime import timedelta

import pytest

from channels_app.models import Notification
from escalation import explain, intake, rules
from escalation.models import Incident, Run, TimelineEntry
from mapping.models import Installation
from tests.world import START, layer

pytestmark = pytest.mark.django_db


def test_the_guides_own_example(world):
    """P1: the person on call by app and IM; nobody acknowledges in five minutes; a phone call to the supervisor, who presses 1."""
    boss = world.person("Boss", ["sandbox_email"])
    lee = world.person("Lee", ["sandbox_app", "sandbox_im"], supervisor=boss)
    world.channel("sandbox_voice")
    world.rule(
        layer(lee, escalate_window=5),
        layer(supervisors=True, follow_preference=False, critical=["sandbox_voice"]),
        filters=[[{"key": "severity", "oper": "IN", "vals": ["Critical"]}]],
    )
    world.alert("checkout is down")
    world.expect(("Lee", "app", "triggered"), ("Lee", "im", "triggered"), at=0)
    world.pass_time(minutes=4, seconds=59)
    world.silence()
    world.pass_time(seconds=1)
    world.expect(("Boss", "voice", "escalated"), at=300)
    world.ack(actor=boss, via="voice")
    world.pass_time(hours=3)
    world.silence()
    assert world.incident().progress == "Processing"


def test_an_alert_that_recovers_within_the_delay_window_wakes_nobody(world):
    lee = world.person("Lee")
    world.rule(layer(lee), aggr_window=60)
    world.alert("blip")
    world.pass_time(seconds=40)
    world.recover("blip")
    world.pass_time(hours=1)
    world.silence()
    assert world.incident().progress == "Closed"


def test_the_delay_window_ends_to_the_second(world):
    lee = world.person("Lee")
    world.rule(layer(lee), aggr_window=60)
    world.alert("stays")
    assert world.foretell()[0] == (60, "triggered", {"Lee"})
    world.pass_time(seconds=59)
    world.silence()
    world.pass_time(seconds=1)
    world.expect(("Lee", "app", "triggered"), at=60)
    world.ack()


def test_loops_are_exact_to_the_second_and_then_stop(world):
    lee = world.person("Lee")
    world.rule(layer(lee, notify_step=0.5, max_times=3, escalate_window=10))
    world.alert("db down")
    world.expect(("Lee", "app", "triggered"), at=0)
    for at in (30, 60, 90):
        world.pass_time(seconds=30)
        world.expect(("Lee", "app", "refire"), at=at)
    world.pass_time(minutes=8)
    world.silence()
    world.do("close")


def test_lateness_of_a_pass_does_not_add_up(world):
    lee = world.person("Lee")
    world.rule(layer(lee, notify_step=1, max_times=3, escalate_window=10))
    world.alert("db down")
    world.fresh()
    world.pass_time(seconds=59)
    world.sleep(seconds=21)  # we look twenty seconds late
    world.settle()
    world.expect(("Lee", "app", "refire"), at=80)
    world.pass_time(seconds=40)
    world.expect(("Lee", "app", "refire"), at=120)
    world.ack()


def test_force_escalate_goes_on_although_somebody_acknowledged(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(layer(lee, escalate_window=5, force_escalate=True), layer(boss))
    world.alert("money is lost")
    world.expect(("Lee", "app", "triggered"))
    world.pass_time(minutes=1)
    world.ack(actor=lee)
    assert (300, "escalated", {"Boss"}) in world.foretell()
    world.pass_time(minutes=4)
    world.expect(("Boss", "app", "escalated"), at=300)
    world.do("close")
    assert world.foretell() == []
    world.pass_time(hours=1)
    world.silence()


def test_the_end_of_a_snooze_starts_the_same_layer_again(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(layer(lee, escalate_window=5), layer(boss, escalate_window=20))
    world.alert("slow")
    world.pass_time(minutes=5)
    world.expect(("Lee", "app", "triggered"), ("Boss", "app", "escalated"))
    world.do("snooze", actor=boss, minutes=30)
    world.pass_time(minutes=29)
    world.silence()
    world.pass_time(minutes=1)
    heard = world.expect(("Boss", "app", "triggered"))
    assert heard[0].at == 35 * 60
    assert world.incident().progress == "Triggered"
    world.do("close")


def test_reopened_it_starts_over(world):
    lee = world.person("Lee")
    world.rule(layer(lee))
    world.alert("flaps")
    world.expect(("Lee", "app", "triggered"))
    world.do("close", actor=lee)
    world.pass_time(minutes=10)
    world.do("reopen", actor=lee, reason="not fixed after all")
    world.expect(("Lee", "app", "triggered"), at=600)
    world.ack()


def test_reassigned_it_leaves_the_rule(world):
    lee, kim, boss = world.person("Lee"), world.person("Kim", ["sandbox_sms"]), world.person("Boss")
    world.rule(layer(lee, escalate_window=5), layer(boss))
    world.alert("disk full")
    world.expect(("Lee", "app", "triggered"))
    world.do("reassign", actor=lee, member_ids=[kim.id])
    world.expect(("Kim", "sms", "triggered"))
    world.pass_time(hours=2)
    world.silence()  # the boss is not told: it left the rule


def test_an_acknowledgement_taken_back_starts_the_layer_again(world):
    lee = world.person("Lee")
    world.rule(layer(lee, escalate_window=60))
    world.alert("queue")
    world.fresh()
    world.ack(actor=lee)
    world.pass_time(minutes=7)
    world.do("unacknowledge", actor=lee)
    world.expect(("Lee", "app", "triggered"), at=420)
    world.ack(actor=lee)


def test_escalated_by_hand_pages_that_layer(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(layer(lee, escalate_window=30), layer(boss, escalate_window=30))
    world.alert("odd")
    world.fresh()
    world.ack(actor=lee)
    world.do("escalate", actor=lee, layer_idx=1)
    world.expect(("Boss", "app", "escalated"))
    assert world.incident().progress == "Triggered"
    world.do("close")


def test_a_layer_that_reaches_nobody_gives_way_at_once(world):
    nobody = world.person("Nobody", [])
    world.installation.catch_all_members.clear()
    boss = world.person("Boss")
    for channel in list(world.channels.values()):
        assert channel.kind == "sandbox_app"
    nobody.is_active = False
    nobody.save()
    world.rule(layer(nobody, escalate_window=30), layer(boss))
    world.alert("who hears me", settle=False)
    intake.run_once(world.now)
    assert world.foretell()[0] == (0, "escalated", {"Boss"})
    world.settle()
    world.expect(("Boss", "app", "escalated"), at=0)
    why = TimelineEntry.objects.get(type="i_layer", detail__result="unreachable")
    assert "active" in why.detail["reason"]
    world.ack()


def test_without_a_rule_the_catch_all_is_told(world):
    boss = world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    world.alert("unmatched")
    world.expect(("Boss", "app", "triggered"), at=0)
    assert world.foretell()[0] == (600, "refire", {"Boss"})
    world.pass_time(minutes=10)
    world.expect(("Boss", "app", "refire"), at=600)
    world.ack()


def test_after_the_last_layer_the_catch_all_is_told_then_the_alarm_is_raised(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.installation.catch_all_members.add(boss)
    world.rule(layer(lee, escalate_window=5))
    world.alert("deaf ears")
    world.expect(("Lee", "app", "triggered"))
    assert [item[:2] for item in world.foretell()] == [(300, "exhausted")]
    world.pass_time(minutes=5)
    world.expect(("Boss", "app", "triggered"), at=300)
    world.pass_time(hours=3)
    assert [item.event for item in world.fresh()] == ["refire"] * 6
    assert "nobody answered" in Installation.get().alarm


def test_with_nobody_named_anywhere_the_alarm_is_raised(world):
    world.alert("into the void")
    world.silence()
    assert world.incident().num in Installation.get().alarm


def test_severity_that_rises_pages_the_layer_once_more(world):
    lee = world.person("Lee", [])
    world.channel("sandbox_voice")
    world.channel("sandbox_sms")
    world.rule(layer(lee, escalate_window=30, follow_preference=False, critical=["sandbox_voice"], warning=["sandbox_sms"]))
    world.alert("load", "Warning")
    world.expect(("Lee", "sms", "triggered"))
    world.pass_time(minutes=3)
    world.alert("load", "Critical")
    world.expect(("Lee", "voice", "triggered"), at=180)
    world.ack()


def test_a_group_is_told_what_it_chose(world):
    lee = world.person("Lee")
    everything, pages_only, quiet = world.group("#all"), world.group("#pages"), world.group("#info-only")
    world.rule(layer(lee, groups=[everything, (pages_only, {"events": ["triggered", "escalated"]}), (quiet, {"severities": ["Info"]})]))
    world.alert("cart")
    world.expect(("Lee", "app", "triggered"), ("#all", "group", "triggered"), ("#pages", "group", "triggered"))
    world.ack(actor=lee)
    world.expect(("#all", "group", "acknowledged"))
    world.recover("cart")
    world.expect(("#all", "group", "closed"))


def test_delays_of_a_preference_end_with_an_acknowledgement(world):
    lee = world.person("Lee", ["sandbox_app", ("sandbox_sms", 120), ("sandbox_voice", 300)])
    world.rule(layer(lee, escalate_window=30))
    world.alert("slow lane")
    world.expect(("Lee", "app", "triggered"), at=0)
    world.pass_time(minutes=2)
    world.expect(("Lee", "sms", "triggered"), at=120)
    world.pass_time(minutes=1)
    world.ack(actor=lee)
    world.pass_time(hours=1)
    world.silence()


def test_after_an_outage_of_two_hours_every_layer_keeps_its_window(world):
    lee, boss, chief = world.person("Lee"), world.person("Boss"), world.person("Chief")
    world.rule(layer(lee, escalate_window=10, notify_step=2, max_times=3), layer(boss, escalate_window=10), layer(chief))
    world.alert("before the flood")
    world.expect(("Lee", "app", "triggered"))
    world.pass_time(minutes=1)
    world.sleep(hours=2)
    world.settle()
    # The loop that was due is sent now, once; the boss and the chief are not called in the same second.
    world.expect(("Lee", "app", "refire"), at=7260)
    assert TimelineEntry.objects.filter(type="i_outage").count() == 1
    assert [item[1] for item in world.foretell()][:3] == ["refire", "refire", "escalated"]
    world.pass_time(minutes=4)
    world.expect(*[("Lee", "app", "refire")] * 2)
    world.pass_time(minutes=4)
    world.expect(("Boss", "app", "escalated"))
    world.ack()


def test_a_recovery_that_waited_during_an_outage_stops_its_page(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(layer(lee, escalate_window=5), layer(boss))
    world.alert("gone already")
    world.expect(("Lee", "app", "triggered"))
    world.pass_time(minutes=1)
    world.sleep(hours=1)
    world.alert("gone already", "Ok", settle=False)
    world.settle()
    world.silence()
    assert world.incident().progress == "Closed"


def test_a_clock_that_goes_back_makes_nothing_late(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(layer(lee, escalate_window=10), layer(boss))
    world.alert("time machine")
    world.expect(("Lee", "app", "triggered"))
    world.pass_time(minutes=4)
    world.now -= timedelta(hours=3)  # somebody set the database's clock
    world.settle()
    world.silence()
    world.pass_time(minutes=6)  # ten minutes of real time after the alert
    world.expect(("Boss", "app", "escalated"))
    assert "clock went back" in Installation.get().alarm
    world.ack()


def test_auto_resolve_counts_from_the_trigger(world):
    lee = world.person("Lee")
    world.workspace.auto_resolve_timeout = 3600
    world.workspace.save()
    world.rule(layer(lee, escalate_window=720))
    world.alert("forgotten")
    world.expect(("Lee", "app", "triggered"))
    world.pass_time(minutes=59)
    assert world.incident().progress == "Triggered"
    world.pass_time(minutes=1)
    assert world.incident().progress == "Closed"
    assert world.incident().closed_by == "timeout"


def test_editing_a_rule_does_not_touch_what_is_under_way(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    rule = world.rule(layer(lee, escalate_window=5), layer(boss))
    world.alert("under way")
    world.fresh()
    rule.layers.all().delete()
    rules.changed([rule.id])
    world.pass_time(minutes=5)
    world.expect(("Boss", "app", "escalated"))
    assert explain.explain(world.incident(), world.now).edited_since
    world.ack()


@pytest.mark.parametrize("react", ["nothing", "ack", "snooze"])
def test_what_is_foretold_happens(world, react):
    """The plan ahead on the incident page, compared with what then happens."""
    lee, boss = world.person("Lee"), world.person("Boss")
    world.installation.catch_all_members.add(boss)
    world.rule(
        layer(lee, escalate_window=7, notify_step=2.5, max_times=2),
        layer(boss, escalate_window=4, notify_step=1, max_times=1),
        aggr_window=30,
    )
    world.alert("prophecy")
    world.pass_time(seconds=31)
    world.fresh()
    if react == "ack":
        world.ack(actor=lee)
    if react == "snooze":
        world.do("snooze", actor=lee, minutes=20)
    foretold = explain.ahead(world.incident(), world.now)
    pages = [((item.at - world.now).total_seconds(), item.event) for item in foretold if item.what == "page"]
    assert bool(pages) == (react != "ack")
    began = world.now
    world.pass_time(minutes=32)
    came = [(item.at - (began - START).total_seconds(), item.event) for item in world.fresh()]
    assert came[: len(pages)] == pages
    assert [item.what for item in foretold][-1:] == ([] if react == "ack" else ["exhausted"])
    world.do("close")
    world.fresh()


def test_two_people_named_by_two_layers_are_told_once_each(world):
    lee = world.person("Lee")
    team = world.team("Team", lee)
    world.rule(layer(lee, teams=[team]))
    world.alert("both")
    world.expect(("Lee", "app", "triggered"))
    world.ack()


def test_one_live_run_and_it_ends_with_the_incident(world):
    lee = world.person("Lee")
    world.rule(layer(lee))
    world.alert("short")
    world.fresh()
    world.recover("short")
    assert not Run.objects.filter(ended_at=None).exists()
    assert Incident.objects.get().closed_by == "auto"


def test_a_layer_of_supervisors_goes_on_to_the_same_supervisors(world):
    """Its loops and its restart after a snooze are for the supervisors of whoever was told before, not for the supervisors' own."""
    director = world.person("Director")
    boss = world.person("Boss", supervisor=director)
    lee = world.person("Lee", supervisor=boss)
    world.rule(
        layer(lee, escalate_window=5),
        layer(supervisors=True, notify_step=5, max_times=1, escalate_window=30),
        layer(supervisors=True, escalate_window=30),
    )
    world.alert("checkout is down")
    world.expect(("Lee", "app", "triggered"), at=0)
    world.pass_time(minutes=5)
    world.expect(("Boss", "app", "escalated"), at=300)
    assert [item.who for item in explain.ahead(world.incident(), world.now) if item.what == "page"] == [("Boss",), ("Director",)]
    world.pass_time(minutes=5)
    world.expect(("Boss", "app", "refire"), at=600)
    world.do("snooze", actor=boss, minutes=30)
    world.pass_time(minutes=30)
    world.expect(("Boss", "app", "triggered"), at=2400)
    world.pass_time(minutes=30)
    world.expect(("Boss", "app", "refire"), ("Director", "app", "escalated"))
    world.do("close")


def test_what_recovers_within_the_delay_window_wakes_nobody_even_where_incidents_stay_open(world):
    world.workspace.disable_auto_close = True
    world.workspace.save()
    lee = world.person("Lee")
    world.rule(layer(lee), aggr_window=60)
    world.alert("blip")
    world.pass_time(seconds=30)
    world.recover("blip")
    world.pass_time(minutes=10)
    world.silence()
    assert (world.incident().progress, world.incident().status) == ("Triggered", "Ok")
    world.alert("blip")  # and this time it stays
    world.pass_time(seconds=60)
    world.expect(("Lee", "app", "triggered"))
    world.do("close")


def test_a_mail_says_what_happened_who_was_told_and_what_comes_next(world):
    lee, wang = world.person("Lee", ["sandbox_app"]), world.person("Wang", ["sandbox_email"])
    world.rule(layer(lee, escalate_window=5), layer(wang, notify_step=2, max_times=1, escalate_window=10))
    world.alert("db down")
    world.expect(("Lee", "app", "triggered"), at=0)
    first = Notification.objects.get()
    assert first.context["timeline"] == first.context["told"] == first.context["plan"] == [], "nobody reads it there"
    world.pass_time(minutes=5)
    world.expect(("Wang", "email", "escalated"), at=300)
    context = Notification.objects.latest("id").context
    assert [line["texts"]["en"] for line in context["timeline"]] == ["Incident opened: Critical, db down", "Rule “Rule 0”, layer 1: Lee"]
    assert context["timeline"][0]["texts"]["zh-hans"].startswith("故障触发")
    assert [(line["name"], line["by"], line["state"]) for line in context["told"]] == [("Lee", "sandbox_app", "delivered")]
    start = int(START.timestamp())
    assert [(line["at"] - start, line["event"], line["layer_idx"]) for line in context["plan"]] == [
        (420, "refire", 1),
        (900, "catch_all", 1),
    ]
    world.ack()
