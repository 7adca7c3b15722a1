"""Stories of what once went wrong: moves made faster than the engine acts, pages that reach nobody, rows that are broken."""

import re
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from channels_app import verification
from channels_app.models import Channel, Delivery, Notification, Preference
from escalation import engine, explain, lifecycle, plan, rules
from escalation.models import Incident, Layer, RuleSnapshot, Run, TimelineEntry
from flashduty.api.incidents import feed
from mapping.models import ContactPoint, Installation
from tests.world import Stranger, layer

pytestmark = pytest.mark.django_db


def kinds() -> list[str]:
    return list(TimelineEntry.objects.order_by("id").values_list("type", flat=True))


# ---- moves that the engine finds together ----


def test_assigned_to_one_and_then_to_another_before_the_engine_acted(world):
    lee, kim = world.person("Lee"), world.person("Kim")
    world.rule(layer(lee))
    world.alert("hot potato")
    world.expect(("Lee", "app", "triggered"))
    incident = world.incident().id
    lifecycle.assign(incident, actor=None, via="api", now=world.now, member_ids=[lee.id])
    lifecycle.reassign(incident, actor=None, via="api", now=world.now, member_ids=[kim.id])
    world.settle()
    world.expect(("Kim", "app", "triggered"))
    assert Run.objects.get(ended_at=None).kind == "assign" and "i_failed" not in kinds()


def test_reopened_acknowledged_and_taken_back_before_the_engine_acted(world):
    lee = world.person("Lee")
    world.rule(layer(lee))
    world.alert("back and forth")
    world.expect(("Lee", "app", "triggered"))
    incident = world.do("close").id
    lifecycle.reopen(incident, actor=None, via="api", now=world.now, reason="not fixed")
    lifecycle.acknowledge(incident, actor=lee, via="api", now=world.now)
    lifecycle.unacknowledge(incident, actor=lee, via="api", now=world.now)
    world.settle()
    world.expect(("Lee", "app", "triggered"))
    assert Run.objects.filter(ended_at=None).count() == 1 and "i_failed" not in kinds()


def test_escalated_closed_and_reopened_before_the_engine_acted(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(layer(lee), layer(boss))
    world.alert("which way")
    world.expect(("Lee", "app", "triggered"))
    incident = world.incident().id
    lifecycle.escalate(incident, actor=None, via="api", now=world.now)
    lifecycle.close(incident, actor=None, via="api", now=world.now)
    lifecycle.reopen(incident, actor=None, via="api", now=world.now, reason="not fixed")
    world.settle()
    world.expect(("Lee", "app", "triggered"))
    assert Run.objects.filter(ended_at=None).count() == 1 and "i_failed" not in kinds()


def test_a_responder_who_was_added_is_not_paged_about_what_was_closed_meanwhile(world):
    lee, kim = world.person("Lee"), world.person("Kim")
    world.rule(layer(lee))
    world.alert("over already")
    world.expect(("Lee", "app", "triggered"))
    incident = world.incident().id
    lifecycle.add_responder(incident, actor=None, via="api", now=world.now, member_ids=[kim.id])
    lifecycle.close(incident, actor=None, via="api", now=world.now)
    world.settle()
    world.silence()


def test_reopened_the_rule_starts_again_with_all_its_layers(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(layer(lee, escalate_window=5), layer(boss))
    world.alert("not fixed")
    world.do("close")
    world.fresh()
    world.do("reopen", reason="not fixed")
    world.expect(("Lee", "app", "triggered"))
    world.pass_time(minutes=5)
    world.expect(("Boss", "app", "escalated"), at=300)
    world.ack()


def test_reopened_whoever_it_was_assigned_to_has_it_again(world):
    lee, kim = world.person("Lee"), world.person("Kim")
    world.rule(layer(lee))
    world.alert("yours")
    world.do("assign", member_ids=[kim.id])
    world.do("close")
    world.fresh()
    world.do("reopen", reason="not fixed")
    world.expect(("Kim", "app", "triggered"))
    world.ack()


@pytest.mark.parametrize("ends", ["unacknowledge", "snooze"])
def test_whoever_acknowledged_and_took_it_over_is_the_only_one_told_when_that_ends(world, ends):
    """The rule was left: neither the others of its layer nor the boss behind it hear of it again, nor does the plan ahead say so."""
    lee, kim, boss = world.person("Lee"), world.person("Kim", ["sandbox_sms"]), world.person("Boss")
    world.rule(layer(lee, kim, escalate_window=10), layer(boss))
    world.alert("mine now")
    world.fresh()
    world.ack(actor=lee)
    world.do("assign", actor=lee, member_ids=[lee.id])
    world.silence()
    if ends == "snooze":
        world.do("snooze", actor=lee, minutes=30)
        assert [item.who for item in explain.ahead(world.incident(), world.now)] == [("Lee",)]
        world.pass_time(minutes=30)
    else:
        world.do("unacknowledge", actor=lee)
    world.expect(("Lee", "app", "triggered"))
    world.pass_time(hours=2)
    world.silence()
    assert world.incident().rule is None
    world.ack()


def test_a_snooze_is_quiet_also_where_it_was_acknowledged_before(world):
    """Pages of a layer that escalates in spite of acknowledgements survive those, but not a snooze."""
    lee = world.person("Lee", ["sandbox_app", ("sandbox_voice", 300)])
    world.rule(layer(lee, force_escalate=True, escalate_window=60))
    world.alert("let me sleep")
    world.pass_time(minutes=1)
    world.ack(actor=lee)
    world.pass_time(minutes=1)
    world.do("snooze", actor=lee, minutes=120)
    world.expect(("Lee", "app", "triggered"), at=0)
    world.pass_time(minutes=110)
    world.silence()
    world.do("close")


def test_whoever_was_asked_to_help_is_called_no_more_once_they_answer_but_the_others_are(world):
    lee = world.person("Lee")
    kim, bo = (world.person(name, ["sandbox_app", ("sandbox_voice", 300)]) for name in ("Kim", "Bo"))
    world.rule(layer(lee))
    world.alert("all hands")
    world.ack(actor=lee)
    world.do("add_responder", actor=lee, member_ids=[kim.id, bo.id])
    world.fresh()
    world.ack(actor=kim)
    world.pass_time(minutes=5)
    world.expect(("Bo", "voice", "triggered"), at=300)


def test_given_to_one_of_those_who_acknowledged_the_others_are_called_no_more(world):
    lee, kim = world.person("Lee"), world.person("Kim", ["sandbox_app", ("sandbox_voice", 300)])
    world.rule(layer(lee, kim, force_escalate=True, escalate_window=60))
    world.alert("one is enough")
    world.fresh()
    world.ack(actor=lee)
    world.do("reassign", actor=lee, member_ids=[lee.id])
    world.pass_time(minutes=30)
    world.silence()
    assert set(Delivery.objects.filter(state="cancelled").values_list("reason", flat=True)) == {"superseded"}


# ---- silence ----


def test_what_gets_worse_after_the_run_has_ended_is_paged(world):
    lee = world.person("Lee", [])
    for severity, kind in (("Info", "sandbox_email"), ("Critical", "sandbox_voice")):
        world.channel(kind)
        Preference.objects.create(member=lee, severity=severity, kind=kind)
    world.alert("creeping", "Info")
    world.do("assign", member_ids=[lee.id])
    world.expect(("Lee", "email", "triggered"))
    world.pass_time(minutes=20)
    assert not Run.objects.filter(ended_at=None).exists()
    world.alert("creeping", "Critical")
    world.expect(("Lee", "voice", "triggered"))
    world.ack()


def test_a_group_that_wants_no_loops_is_not_a_layer_that_reaches_nobody(world):
    lee = world.person("Lee")
    world.rule(layer(groups=[(world.group(), {"events": ["triggered"]})], escalate_window=30, notify_step=10, max_times=2), layer(lee))
    world.alert("once is enough")
    world.expect(("#ops", "group", "triggered"))
    world.pass_time(minutes=29)
    world.silence()
    world.pass_time(minutes=1)
    world.expect(("Lee", "app", "escalated"), at=1800)
    world.ack()


def test_a_last_layer_that_reaches_nobody_is_no_alarm_where_somebody_has_answered(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    world.rule(layer(lee, force_escalate=True, escalate_window=5), layer(supervisors=True))
    world.alert("answered")
    world.ack(actor=lee)
    world.fresh()
    world.pass_time(hours=1)
    world.silence()
    assert not TimelineEntry.objects.filter(detail__result__in=["catch_all", "nobody"]).exists() and not Installation.get().alarm
    assert Run.objects.get().end_reason == "acknowledged"


def test_the_catch_all_hears_whether_nobody_answered_or_nobody_could_be_reached(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    world.rule(layer(lee, escalate_window=5), layer(supervisors=True))
    world.alert("why me")
    world.pass_time(minutes=5)
    world.expect(("Lee", "app", "triggered"), ("Boss", "app", "triggered"))
    assert TimelineEntry.objects.get(detail__result="catch_all").detail["reason"] == "the last layer could reach nobody"
    world.ack()


def test_a_layer_whose_groups_take_none_of_it_is_not_said_to_name_nobody(world):
    boss = world.person("Boss")
    quiet, late = (world.group("#info"), {"severities": ["Info"]}), (world.group("#late"), {"events": ["closed"]})
    world.rule(layer(groups=[quiet, late]), layer(boss, groups=[quiet]))
    world.alert("not for us")
    world.expect(("Boss", "app", "escalated"), at=0)
    said = [line.text for line in explain.explain(world.incident(), world.now).happened if line.kind == "i_layer"]
    assert said == [
        "Layer 1 could reach nobody: channel #info does not take this severity; channel #late does not take this kind of message"
    ]
    world.ack()


def test_a_group_of_two_layers_hears_what_it_chose_where_it_was_told(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    group = world.group()
    world.rule(
        layer(lee, groups=[(group, {"events": ["triggered", "acknowledged"]})], escalate_window=30),
        layer(boss, groups=[(group, {"events": ["escalated", "closed"]})]),
    )
    world.alert("first layer only")
    world.fresh()
    world.ack(actor=lee)
    world.expect(("#ops", "group", "acknowledged"))
    world.do("close")
    world.silence()
    world.alert("both layers", key="both")
    world.pass_time(minutes=30)
    world.fresh()
    world.do("close")
    world.expect(("#ops", "group", "closed"))


def test_a_group_that_was_told_hears_the_end_whatever_the_severity_is_by_then(world):
    lee = world.person("Lee")
    world.rule(layer(lee, groups=[(world.group(), {"severities": ["Warning"]})], escalate_window=30))
    world.alert("rising", "Warning")
    world.expect(("Lee", "app", "triggered"), ("#ops", "group", "triggered"))
    world.alert("rising", "Critical")
    world.expect(("Lee", "app", "triggered"))
    world.ack(actor=lee)
    world.expect(("#ops", "group", "acknowledged"))
    world.recover("rising")
    world.expect(("#ops", "group", "closed"))


def test_a_mail_that_stands_in_for_a_message_is_the_detailed_report_too(world):
    """By way of an SMS even; what cannot become a mail carries none of it."""
    lee, kim = world.person("Lee", ["sandbox_im"]), world.person("Kim", ["sandbox_app"])
    world.channel("sandbox_sms", fallback_kinds=["email"])
    Channel.objects.filter(kind="sandbox_im").update(fallback_kinds=["sms"])
    world.rule(layer(lee, escalate_window=5), layer(kim))
    world.alert("db down")
    assert [item["event"] for item in Notification.objects.latest("id").context["plan"]] == ["escalated", "catch_all"]
    world.pass_time(minutes=5)
    context = Notification.objects.latest("id").context
    assert context["timeline"] == context["told"] == context["plan"] == []
    world.do("escalate", layer_idx=0)
    assert Notification.objects.latest("id").context["timeline"]
    world.fresh()
    world.ack()


def test_supervisors_behind_a_layer_of_groups_are_those_of_whoever_was_told_before_it(world):
    boss = world.person("Boss")
    lee = world.person("Lee", supervisor=boss)
    world.rule(layer(lee, escalate_window=5), layer(groups=[world.group()], escalate_window=5), layer(supervisors=True))
    world.alert("checkout is down")
    foretold = [item.who for item in explain.ahead(world.incident(), world.now) if item.what == "page"]
    assert foretold == [(), ("Boss",)]
    world.pass_time(minutes=10)
    world.expect(("Lee", "app", "triggered"), ("#ops", "group", "escalated"), ("Boss", "app", "escalated"))
    world.ack()
    world.expect(("#ops", "group", "acknowledged"))


def test_supervisors_behind_a_layer_that_reached_nobody_are_not_those_of_whom_it_names(world):
    boss, other = world.person("Boss"), world.person("Other")
    lee, bob = world.person("Lee", supervisor=boss), world.person("Bob", [], supervisor=other)
    Preference.objects.create(member=bob, severity="Critical", kind="gone")
    world.rule(layer(lee, escalate_window=5), layer(bob), layer(supervisors=True))
    world.alert("checkout is down")
    assert [item.who for item in explain.ahead(world.incident(), world.now) if item.what == "page"] == [("Boss",)]
    world.pass_time(minutes=5)
    world.expect(("Lee", "app", "triggered"), ("Boss", "app", "escalated"))
    world.ack()


def test_what_starts_a_later_layer_again_is_for_the_groups_it_told_first(world):
    """Texts call it "triggered", and the group chose "escalated": it is no reason to go on to the boss at once."""
    lee, boss = world.person("Lee"), world.person("Boss")
    world.rule(
        layer(lee, escalate_window=5),
        layer(groups=[(world.group(), {"events": ["escalated", "acknowledged"]})], escalate_window=30, notify_step=10, max_times=2),
        layer(boss),
    )
    world.alert("load", "Warning")
    world.pass_time(minutes=5)
    world.expect(("Lee", "app", "triggered"), ("#ops", "group", "escalated"))
    # Nor does the plan ahead foretell the loops that this group does not want.
    assert [(item.event, item.who) for item in explain.ahead(world.incident(), world.now) if item.what == "page"] == [
        ("escalated", ("Boss",))
    ]
    world.alert("load", "Critical")
    world.expect(("#ops", "group", "triggered"), at=300)
    world.do("snooze", actor=lee, minutes=10)
    world.expect(("#ops", "group", "acknowledged"))
    world.pass_time(minutes=10)
    world.expect(("#ops", "group", "triggered"), at=900)
    world.pass_time(minutes=30)
    world.expect(("Boss", "app", "escalated"), at=2700)
    world.ack()
    world.expect(("#ops", "group", "acknowledged"))


def test_a_group_of_a_later_layer_that_chose_first_pages_hears_the_first_page_of_its_layer(world):
    """Texts call it "escalated": that is no reason to go on to the boss at once."""
    lee, boss = world.person("Lee"), world.person("Boss")
    chose = {"events": ["triggered"]}
    world.rule(layer(lee, escalate_window=5), layer(groups=[(world.group(), chose)], escalate_window=30, max_times=1), layer(boss))
    world.alert("load")
    assert [(item.event, item.who) for item in explain.ahead(world.incident(), world.now) if item.what == "page"] == [
        ("escalated", ()),
        ("escalated", ("Boss",)),
    ]
    world.pass_time(minutes=5)
    world.expect(("Lee", "app", "triggered"), ("#ops", "group", "escalated"))
    world.do("snooze", actor=lee, minutes=10)
    world.pass_time(minutes=10)
    world.expect(("#ops", "group", "triggered"), at=900)
    world.pass_time(minutes=30)
    world.expect(("Boss", "app", "escalated"), at=2700)
    world.ack()


def test_whoever_it_was_assigned_to_cannot_be_reached_within_minutes_so_the_catch_all_is_told(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    world.rule(layer(boss))
    world.alert("nobody home")
    world.do("assign", member_ids=[lee.id])
    world.fresh()
    Notification.objects.filter(run=Run.objects.get(ended_at=None).id).update(exhausted_at=world.now)
    world.settle()
    world.expect(("Boss", "app", "triggered"))
    assert Run.objects.get(ended_at=None).kind == "catch_all" and "i_failed" not in kinds()
    world.ack()


def test_pages_of_two_layers_fail_in_one_pass_and_the_last_layer_gives_way(world):
    lee, kim, boss = world.person("Lee"), world.person("Kim"), world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    world.rule(layer(lee, escalate_window=5), layer(kim, escalate_window=60))
    world.alert("both lines are dead")
    world.pass_time(minutes=5)
    world.fresh()
    Notification.objects.update(exhausted_at=world.now)
    world.settle()
    world.expect(("Boss", "app", "triggered"), at=300)
    world.ack()


def test_an_added_responder_who_could_not_be_told_is_named_on_the_timeline(world):
    lee, kim = world.person("Lee"), world.person("Kim")
    world.rule(layer(lee))
    world.alert("help")
    world.do("add_responder", member_ids=[kim.id])
    world.fresh()
    Notification.objects.filter(run=None).update(exhausted_at=world.now)
    world.settle()
    said = [line.text for line in explain.explain(world.incident(), world.now).happened if line.kind == "i_layer"]
    assert said == [
        "Added, but could not be reached: Kim (no message could be delivered, by any channel)"
    ]  # and not "layer 1 reached nobody"
    world.ack()


def test_an_added_responder_who_has_no_way_to_be_told_is_said_in_words(world):
    lee, nobody = world.person("Lee"), world.person("Nobody", [])
    Preference.objects.create(member=nobody, severity="Critical", kind="gone")
    world.rule(layer(lee))
    world.alert("help")
    world.do("add_responder", member_ids=[nobody.id])
    said = [line.text for line in explain.explain(world.incident(), world.now).happened]
    assert "Added, but could not be reached: Nobody (This kind of channel does not exist any more.)" in said
    world.fresh()
    world.ack()


# ---- rows that are broken ----


def test_a_rule_that_has_no_layer_yet_does_not_stand_before_the_next_one(world):
    lee = world.person("Lee")
    world.rule()
    world.rule(layer(lee))
    world.alert("heard all the same")
    world.expect(("Lee", "app", "triggered"))
    world.ack()


def test_a_rule_that_cannot_be_read_tells_the_catch_all_and_stops_nobody_else(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    world.rule(layer(lee), filters=of("Critical"))
    world.rule(layer(lee))
    Layer.objects.filter(rule__priority=0).update(emails=5)
    for title, severity in (("broken", "Critical"), ("fine", "Warning")):
        world.alert(title, severity, settle=False)
    world.settle()
    world.expect(("Boss", "app", "triggered"), ("Lee", "app", "triggered"))
    assert kinds().count("i_failed") == 1 and "could not go on" in Installation.get().alarm
    world.ack("broken")
    world.ack("fine")


def test_a_run_whose_frozen_rule_is_broken_tells_the_catch_all_and_stops_nobody_else(world):
    lee, boss = world.person("Lee"), world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    rule = world.rule(layer(lee, notify_step=1, max_times=1))
    world.alert("broken")
    Layer.objects.update(notify_step=2)
    rules.changed([rule.id])
    world.alert("fine")
    world.fresh()
    RuleSnapshot.objects.filter(id=Run.objects.order_by("id").first().snapshot_id).update(body={"layers": 5})
    engine.fresh()
    world.pass_time(minutes=2)
    world.expect(("Boss", "app", "triggered"), ("Lee", "app", "refire"))
    ended = Run.objects.order_by("id").first()
    assert ended.end_reason and kinds().count("i_failed") == 1
    world.ack("broken")
    world.ack("fine")


def test_a_channel_whose_secret_no_key_opens_stops_no_other(world, client):
    lee = world.person("Lee")
    group = world.group("#sealed")
    world.channel("sandbox_email")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE channels_app_channel SET settings = 'garbage', proxy = 'garbage' WHERE id = %s", [group.id])
    world.rule(layer(lee, groups=[group]))
    world.alert("locked out")
    world.expect(("Lee", "app", "triggered"))
    failed = Delivery.objects.get(state="failed")
    assert "ENCRYPTION_KEYS" in failed.reason or "cannot be used" in failed.reason
    assert any(line.who == "#sealed" for line in explain.explain(world.incident(), world.now).not_told)
    assert feed(world.incident())
    verification.send_code(ContactPoint.objects.get(member=lee), world.now)
    world.settle()
    world.fresh()
    world.ack()


@pytest.mark.parametrize(
    "fields",
    [
        {"limits": {"per_second": "x"}},
        {"limits": {"per_second": -1}},
        {"limits": {"per_second": 0.5}},
        {"limits": [1]},
        {"fallback_kinds": 5},
        {"fallback_kinds": [["a"]]},
        {"allowed_hosts": 5},
    ],
)
def test_a_channel_with_settings_that_no_form_lets_in_stops_no_other(world, fields):
    lee = world.person("Lee")
    odd = world.channel("sandbox_group", "#odd")
    Channel.objects.filter(id=odd.id).update(**fields)
    world.rule(layer(lee, groups=[odd]))
    world.alert("odd one out")
    world.pass_time(minutes=3)
    assert {"Lee"} <= {heard.who for heard in world.fresh()}
    world.ack()
    world.fresh()


def test_a_code_that_no_key_opens_fails_and_stops_no_page(world):
    lee = world.person("Lee")
    world.channel("sandbox_email")
    verification.send_code(ContactPoint.objects.get(member=lee), world.now)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE channels_app_notification SET secret_context = 'garbage'")
    world.rule(layer(lee))
    world.alert("still heard")
    world.expect(("Lee", "app", "triggered"))
    assert Delivery.objects.get(notification__event="code").state == "failed"
    world.ack()


# ---- the clock ----


def test_a_clock_that_goes_back_changes_no_distance_of_any_run_and_costs_no_statement_a_run(world, django_assert_max_num_queries):
    lee = world.person("Lee")
    world.rule(layer(lee, escalate_window=10, notify_step=2, max_times=2), layer(lee), filters=of("Critical"))
    world.rule(layer(lee, escalate_window=5), filters=of("Warning"), aggr_window=600)
    for number in range(30):
        world.alert(f"loops {number}", settle=False)
        world.alert(f"delayed {number}", "Warning", settle=False)
    world.settle()
    world.pass_time(minutes=3)
    world.fresh()
    some = Run.objects.filter(layer_idx=0).first()
    some.state["repage_at"] = world.now.isoformat()  # its severity has just risen
    some.save()

    def ahead() -> list[list[plan.Planned]]:
        runs = Run.objects.select_related("snapshot").order_by("id")
        triggered = plan.Facts("Triggered")
        return [
            plan.future(rules.thaw(run.snapshot).timing, plan.State.from_json(run.state, run.next_at), triggered, world.now) for run in runs
        ]

    before, lost = ahead(), timedelta(hours=3)
    world.now -= lost
    with django_assert_max_num_queries(40):
        engine._due(world.now)
    assert [[replace(item, at=item.at + lost) for item in items] for items in ahead()] == before
    assert kinds().count("i_clock") == 60
    world.settle()
    world.fresh()
    for incident in Incident.objects.all():
        lifecycle.close(incident.id, actor=None, via="api", now=world.now)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("away", [timedelta(hours=2), timedelta(hours=-2)], ids=["after an outage", "with the clock set back"])
def test_timers_move_when_all_incidents_can_be_locked_and_until_then_nothing_else_waits(world, away):
    lee = world.person("Lee")
    world.workspace.auto_resolve_timeout = 3600
    world.workspace.save()
    world.rule(layer(lee, escalate_window=30), layer(lee))
    world.alert("locked")
    world._was_awake()
    world.fresh()
    incident, run, was_seen = world.incident(), Run.objects.get(), world.now
    world.now += away
    with connection.cursor() as cursor:
        cursor.execute("SET lock_timeout = 0")  # who waits for a lock and does not say how long never comes back
    with Stranger("escalation_incident", incident.id):
        world.alert("fresh")
        world.expect(("Lee", "app", "triggered"), at=away.total_seconds())
        incident.refresh_from_db()
        assert incident.progress == "Triggered" and Installation.get().last_pass_at == was_seen
    with connection.cursor() as cursor:
        cursor.execute("RESET lock_timeout")
    engine.fresh()
    with CaptureQueriesContext(connection) as asked:
        engine._due(world.now)
    moved = Incident.objects.get(id=incident.id)
    assert moved.auto_resolve_at == incident.auto_resolve_at + away and Installation.get().last_pass_at == world.now
    assert away > timedelta(0) or Run.objects.get(id=run.id).next_at == run.next_at + away
    tables = ("escalation_incident", "escalation_run", "channels_app_address", "channels_app_delivery", "mapping_installation")
    locked = [next(i for i, name in enumerate(tables) if f'{name}' in q["sql"].split("WHERE")[0]) for q in asked
              if re.match("UPDATE|WITH moved|.*FOR NO KEY UPDATE", q["sql"], re.DOTALL) and "channelhealth" not in q["sql"]]  # fmt: skip
    assert len(locked) >= 3 and locked == sorted(locked), "incidents, runs, addresses, deliveries; the installation last"
    world.fresh()
    for row in Incident.objects.exclude(progress="Closed"):
        lifecycle.close(row.id, actor=None, via="api", now=world.now)


def of(name: str) -> list:
    return [[{"key": "severity", "oper": "IN", "vals": [name]}]]


def test_what_was_sent_to_a_layer_and_closed_before_the_engine_looked_is_reopened_by_its_rule(world):
    lee, kim = world.person("Lee"), world.person("Kim")
    world.rule(layer(lee, escalate_window=30))
    world.alert("back and forth")
    world.do("assign", actor=lee, member_ids=[kim.id])
    world.fresh()
    incident = world.incident()
    lifecycle.escalate(incident.id, actor=lee, via="api", now=world.now, layer_idx=0)
    lifecycle.close(incident.id, actor=lee, via="api", now=world.now)
    world.settle()
    world.silence()
    world.do("reopen", actor=lee, reason="it is back")
    world.expect(("Lee", "app", "triggered"))
    world.do("close")
