"""The console: every page for every role, lists that ask the same number of questions whatever they show, and nothing seen sideways."""

from typing import Any

import pytest
from django.contrib import admin
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from channels_app.models import Address, Channel, ChannelHealth, Delivery, Notification, Preference
from escalation import lifecycle, plan, rules
from escalation.models import (
    Alert,
    EscalationRule,
    Event,
    Integration,
    Layer,
    LayerChannel,
    RuleSnapshot,
    Run,
    TimelineEntry,
    Workspace,
)
from flashduty.console.base import StatusFilter
from flashduty.console.channels import kinds_of
from flashduty.models import Classic, Hook, ImApp, ImBot, Play
from mapping.clock import db_now
from mapping.models import ApiKey, ContactPoint, Device, Installation, MappingEntry, MappingTable, Member, Team, Throttle
from templates_app.models import Template, TemplateSet

pytestmark = pytest.mark.django_db
ROLES = ("administrator", "manager", "member", "viewer")


class House:
    """Two teams and what they own; `own` is the side the manager, the member and the viewer belong to."""

    def __init__(self) -> None:
        self.people = {role: Member.objects.create_user(f"{role}@example.com", role.title(), "pw-" + role, role=role) for role in ROLES}
        self.stranger = Member.objects.create_user("stranger@example.com", "Stranger")
        self.own, self.other = Team.objects.create(name="Own"), Team.objects.create(name="Other")
        self.own.members.set([self.people[role] for role in ROLES if role != "administrator"])
        self.other.members.set([self.stranger])
        self.serial = 0
        for team in (self.own, self.other, None):
            self.grow(1, team)

    def grow(self, count: int, team: Team | None = None) -> None:
        """`count` more rows of every model, of a team (None: shared, in a public workspace)."""
        now = db_now()
        for _turn in range(count):
            self.serial += 1
            n = self.serial
            if team is not None:
                person = Member.objects.create_user(f"p{n}@example.com", f"Person {n}", supervisor=self.stranger)
                person.teams.add(team)
            else:
                person = self.stranger
            space = Workspace.objects.create(name=f"Space {n}", team=team, is_private=team is not None)
            source = Integration.objects.create(workspace=space, name=f"Source {n}")
            table = MappingTable.objects.create(name=f"Table {n}", team=team)
            MappingEntry.objects.create(table=table, email=f"p{n}@example.com", external_id="u1")
            texts = TemplateSet.objects.create(name=f"Texts {n}", team_id=team.pk if team else None)
            Template.objects.create(template_set=texts, event="triggered", kind="plain", body="{{ title }}")
            point = ContactPoint.objects.create(member=person, kind="phone", value=f"+86138{n:08d}", verified_at=now)
            assert point.pk
            Device.objects.create(member=person, name=f"Phone {n}", platform="ios")
            ApiKey.objects.create(member=person, name=f"Key {n}", hint="abcdef", key_hash=f"hash{n}")
            Throttle.objects.create(key=f"login:{n}", window_end=now)
            channels = {
                kind: Channel.objects.create(kind=kind, name=f"{kind} {n}", team=team, settings=settings)
                for kind, settings in (
                    ("sandbox_group", {}),
                    ("sandbox_app", {}),
                    ("webhook", {"url": "http://hooks.example.com/topsecret"}),
                    ("feishu", {"url": "https://open.feishu.cn/open-apis/bot/v2/hook/aaaaaaaaaaaa", "secret": "topsecret"}),
                    (
                        "email",
                        {
                            "host": "mail.example.com",
                            "port": 25,
                            "security": "none",
                            "from_email": "a@example.com",
                            "password": "topsecret",
                        },
                    ),
                )
            }
            ChannelHealth.objects.create(channel=channels["webhook"], failures=3, last_error="refused")
            Preference.objects.create(member=person, severity="Critical", kind="sandbox_app", channel=channels["sandbox_app"])
            rule = EscalationRule.objects.create(workspace=space, name=f"Rule {n}", template_set_id=texts.pk)
            layer = Layer.objects.create(rule=rule, idx=0)
            layer.members.add(person)
            LayerChannel.objects.create(layer=layer, channel=channels["sandbox_group"], mapping_table=table)
            rules.changed([rule.pk])
            incident = lifecycle.create(
                actor=person, via="console", now=now, workspace_id=space.pk, title=f"Trouble {n}", severity="Critical"
            )
            alert = Alert.objects.create(
                workspace=space, integration=source, incident=incident, alert_key=f"k{n}", title=f"Alert {n}", severity="Critical",
                status="Critical", start_time=now, last_time=now,
            )  # fmt: skip
            Event.objects.create(
                integration=source, received_at=now, alert_key=f"k{n}", status="Critical", payload={"title_rule": "x"}, raw=b"{}", alert=alert, outcome="created",
            )  # fmt: skip
            frozen = RuleSnapshot.objects.create(rule=rule, version=1, body=rules.current_body(rule.pk), body_hash=f"{n}", created_at=now)
            begun = plan.begin(rules.thaw(frozen).timing, now)
            run = Run.objects.create(incident=incident, snapshot=frozen, state=begun.to_json(), started_at=now, next_at=begun.due)
            TimelineEntry.objects.create(
                incident=incident, type="i_comm", actor=person, detail={"comment": "hello"}, created_at=now, handled_at=now
            )
            said = Notification.objects.create(
                event="triggered", is_page=True, severity="Critical", topic=incident.pk, run=run.pk, layer_idx=0, created_at=now
            )
            place = Address.objects.create(channel=channels["sandbox_app"], target=f"+86139{n:08d}")
            Delivery.objects.create(
                notification=said, topic=incident.pk, channel=channels["sandbox_app"], address=place, member=person, state="failed",
                reason="refused", is_page=True, created_at=now, not_before=now, deadline_at=now, give_up_at=now, log=[[1, "t", 0.1, "failed", "no"]],
            )  # fmt: skip
        Installation.get()

    def client(self, role: str) -> Client:
        client = Client()
        client.force_login(self.people[role])
        return client


@pytest.fixture
def house(db) -> House:
    return House()


def page(model: Any, name: str, *args: Any) -> str:
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_{name}", args=args)


MODELS = list(admin.site._registry)


def test_every_model_of_ours_has_a_page():
    from django.apps import apps

    inside = {Layer, LayerChannel, MappingEntry, ChannelHealth}  # edited or shown on the page of another row
    named = {model.__name__ for model in MODELS} | {model.__name__ for model in inside} | {"Channel", "Verification", "Responder"}
    ours = {
        m.__name__
        for label in ("mapping", "templates_app", "channels_app", "escalation", "flashduty")
        for m in apps.get_app_config(label).get_models()
    }
    assert ours - named == set()


@pytest.mark.parametrize("role", ROLES)
def test_every_page_opens_or_refuses(house: House, role: str):
    client = house.client(role)
    seen = 0
    for model in MODELS:
        answer = client.get(page(model, "changelist"))
        assert answer.status_code in (200, 302, 403), (model, answer.status_code)
        retired = "&status=all" if StatusFilter in admin.site._registry[model].list_filter else ""
        assert client.get(page(model, "changelist") + f"?q=x{retired}").status_code in (200, 302, 403), model
        answer = client.get(page(model, "add"))
        assert answer.status_code in (200, 302, 403), (model, answer.status_code)
        for group, row in ((model, pk) for pk in model._default_manager.values_list("pk", flat=True)[:4]):
            for name in ("change", "history"):
                answer = client.get(page(group, name, row))
                assert answer.status_code in (200, 302, 403, 404), (model, name, answer.status_code)
                seen += answer.status_code == 200
            assert client.get(page(group, "delete", row)).status_code in (200, 302, 403, 404), model
    assert client.get("/admin/").status_code == 200
    assert seen > 20
    for group in (ImApp, ImBot, Classic, Hook, Play):
        for kind in kinds_of(group):
            assert client.get(page(group, "add") + f"?kind={kind}").status_code == (200 if role in ("administrator", "manager") else 403)


@pytest.mark.parametrize("role", ["administrator", "manager"])
def test_lists_ask_the_same_number_of_questions_whatever_they_show(house: House, role: str):
    client = house.client(role)
    for model in MODELS:
        client.get(page(model, "changelist"))  # content types and the like are remembered
    house.grow(4, house.own)
    few = {model: _count(client, model) for model in MODELS}
    house.grow(45, house.own)
    many = {model: _count(client, model) for model in MODELS}
    worse = {model.__name__: (few[model], many[model]) for model in MODELS if many[model] > few[model]}
    assert not worse


def _count(client: Client, model: Any) -> int:
    with CaptureQueriesContext(
        connection,
    ) as asked:
        client.get(page(model, "changelist"))
    return len(asked)
