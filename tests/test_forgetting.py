"""Somebody who has left is erased from where they were reached and from what was said; the incidents' stories stay whole."""

import json
import re
from datetime import timedelta
from io import StringIO

import pytest
from django.apps import apps
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.management import CommandError, call_command
from django.db import connection

from channels_app.models import Account, Address, Channel, Delivery, Preference
from escalation import explain, forgetting
from escalation.models import Incident, Layer, Run
from mapping.models import ApiKey, ContactPoint, Device, MappingEntry, MappingTable, Member
from tests.world import START, World, layer

pytestmark = pytest.mark.django_db
PHONE, CHAT, BOT = "+8613912345678", "777000777", "webhook-of-grace"
CIPHER = re.compile(r"gAAAAA[\w=-]+")  # what is encrypted says nothing, but for five letters of a name by chance
TRACES = ("grace", "hopper", PHONE, CHAT, BOT)


@pytest.fixture
def played(world: World) -> World:
    """Grace was paged, answered, and a group was told of it; what she owns is everywhere."""
    Member.objects.create_superuser("root@example.com")
    grace = world.person("Grace Hopper", ["sandbox_voice"], email="grace@example.com")
    lee = world.person("Lee")
    ContactPoint.objects.create(member=grace, kind="phone", value=PHONE, verified_at=START)
    Device.objects.create(member=grace, name="Grace's phone", platform="ios", push_token="t")
    ApiKey.issue(grace, "Grace's key")
    Account.objects.create(member=grace, channel=world.channel("sandbox_app"), target=CHAT, verified_at=START)
    Channel.objects.create(kind="sandbox_app", name="Grace's bot", owner=grace, settings={"url": BOT}, proxy=BOT)
    table = MappingTable.objects.create(name="t")
    MappingEntry.objects.create(table=table, email="grace@example.com", external_id="u-grace")
    world.team("Team", grace, lee)
    rule = world.rule(layer(grace, groups=[world.group()], escalate_window=5, emails=["grace@example.com", "ops@example.com"]), layer(lee))
    world.alert("db down")
    world.ack(actor=grace)
    world.do("close", actor=grace)
    Delivery.objects.filter(channel__name="#ops").update(mentions=["u-grace", "other"])
    world.fresh()
    LogEntry.objects.create(
        user=lee, content_type=ContentType.objects.get_for_model(Member), object_id=str(grace.pk), object_repr="Grace Hopper",
        action_flag=CHANGE, change_message='[{"changed": {"fields": ["grace@example.com"]}}]',
    )  # fmt: skip
    assert rule and any("Grace Hopper" in row.text for row in Delivery.objects.filter(channel__name="#ops")), "the group was told who"
    return world


def everything() -> str:
    """All text of all our tables, decrypted where it has to be."""
    found = []
    for model in apps.get_models():
        if not model._meta.proxy:
            with connection.cursor() as cursor:
                cursor.execute(f'SELECT row_to_json(t)::text FROM "{model._meta.db_table}" t')
                found += [f"{model.__name__}: {CIPHER.sub('', row)}" for (row,) in cursor.fetchall()]
    found += [json.dumps([row.settings, row.proxy]) for row in Channel.objects.all()]
    return "\n".join(found).lower()


def test_nothing_of_a_person_is_left_and_the_story_stays_readable(played):
    grace = Member.objects.get(email="grace@example.com")
    states = list(Delivery.objects.order_by("id").values_list("id", "state", "sent_at", "member_id"))
    assert all(trace in everything() for trace in TRACES)
    forgetting.forget(grace, played.now)
    left = everything()
    assert [line for line in left.splitlines() if any(trace in line for trace in TRACES)] == []
    grace.refresh_from_db()
    assert grace.name == f"former member {grace.pk}" and not grace.is_active and not grace.has_usable_password()
    for model in (ContactPoint, Device, Account, ApiKey, Preference):
        assert not model.objects.filter(member=grace).exists()
    own = Channel.objects.get(owner=grace)
    assert own.status == "deleted" and own.settings == {} and own.targets == []
    assert Layer.objects.get(idx=0).emails == ["ops@example.com"] and not grace.teams.exists()
    assert list(Delivery.objects.order_by("id").values_list("id", "state", "sent_at", "member_id")) == states
    story = explain.as_text(explain.explain(played.incident(), played.now))
    assert f"former member {grace.pk}" in story and "#ops" in story
    assert any(f"former member {grace.pk}" in row.text for row in Delivery.objects.filter(channel__name="#ops"))
    assert "other" in Delivery.objects.filter(channel__name="#ops").first().mentions
    again = forgetting.forget(grace, played.now)
    assert not again["contact points"] and not again["addresses"] and not again["texts"], "a second run finds nothing"


def test_an_engine_that_knows_the_rule_writes_to_nobody_who_is_erased(world):
    lee, pat = world.person("Lee"), world.person("Pat", email="pat@example.com")
    world.rule(layer(lee, emails=["pat@example.com"], max_times=3, notify_step=10))
    world.alert("again and again")
    world.expect(("Lee", "app", "triggered"))
    forgetting.forget(pat, world.now)
    Channel.objects.create(kind="email", name="mail")  # from now on plain addresses would be written to
    world.pass_time(minutes=10)
    world.expect(("Lee", "app", "refire"))
    assert "pat@example.com" not in everything()


def test_what_others_share_stays_theirs(played):
    grace, lee = Member.objects.get(email="grace@example.com"), Member.objects.get(name="Lee")
    ContactPoint.objects.create(member=lee, kind="phone", value=PHONE, verified_at=START)
    place = Address.objects.create(channel=played.channel("sandbox_voice"), target=PHONE)
    forgetting.forget(grace, played.now)
    place.refresh_from_db()
    assert place.target == PHONE and ContactPoint.objects.filter(value=PHONE).get().member == lee
    assert MappingTable.objects.count() == 1 and ContactPoint.objects.filter(member=lee).count() == 2


def test_a_page_that_waits_for_somebody_who_is_erased_goes_to_whoever_comes_next(world):
    boss = world.person("Boss")
    world.workspace.catch_all_members.add(boss)
    lee = world.person("Lee", [("sandbox_voice", 600)])
    world.rule(layer(lee, escalate_window=60))
    world.alert("who now")
    assert Delivery.objects.get().state == "queued"
    forgetting.forget(lee, world.now)
    world.settle()
    world.expect(("Boss", "app", "triggered"))
    assert Delivery.objects.get(member=lee).reason == forgetting.GONE
    assert Run.objects.filter(ended_at=None).get().kind == "catch_all" and Incident.objects.get().progress == "Triggered"
    world.ack()


def test_the_command_asks_and_keeps_the_last_administrator(played, monkeypatch):
    def run(*args: str) -> str:
        out = StringIO()
        call_command("forget_member", *args, stdout=out)
        return out.getvalue()

    with pytest.raises(CommandError, match="last administrator"):
        run("root@example.com", "--yes")
    with pytest.raises(CommandError, match="no member"):
        run("nobody@example.com", "--yes")
    monkeypatch.setattr("sys.stdin", StringIO("grace@example.com\n"))
    with pytest.raises(CommandError, match="give --yes"):
        run("grace@example.com")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _question: "no")
    with pytest.raises(CommandError, match="Nothing was erased"):
        run("grace@example.com")
    assert Member.objects.filter(email="grace@example.com", is_active=True).exists()
    said = run("grace@example.com", "--yes")
    assert "2 contact points, 1 devices, 1 IM accounts, 1 APP keys, 3 preferences" in said and "rule “Rule 0”" in said
    Member.objects.create_superuser("second@example.com")
    assert "is erased" in run("root@example.com", "--yes")
    played.pass_time(minutes=1)


def test_what_is_on_its_way_wants_a_second_run(world):
    lee = world.person("Lee", ["sandbox_voice"])
    world.rule(layer(lee))
    world.alert("moment")
    world.fresh()
    Delivery.objects.update(state="sending", holder="x", lease_until=world.now + timedelta(minutes=1))
    assert forgetting.forget(lee, world.now)["in flight"] == 1
    Delivery.objects.update(state="sent", text="to Lee", subject="Lee")
    assert forgetting.forget(Member.objects.get(pk=lee.pk), world.now)["messages"] == 1
    assert Delivery.objects.get().text == ""
