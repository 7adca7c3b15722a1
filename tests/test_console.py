"""The console: every page for every role, lists that ask the same number of questions whatever they show, and nothing seen sideways."""

import contextvars
import json
import re
from functools import partial
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

import flashduty.urls  # noqa: F401  the console is loaded with them
from channels_app import outbox
from channels_app.models import Account, Address, Channel, ChannelHealth, Delivery, Notification, Preference
from escalation import lifecycle, plan, rules
from escalation.models import (
    Alert,
    EscalationRule,
    Event,
    Incident,
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
from flashduty.console.templates import kinds as template_kinds
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
            Account.objects.create(member=person, channel=channels["feishu"], target=f"chat{n}")
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
                reason="refused", is_page=True, created_at=now, not_before=now, deadline_at=now, give_up_at=now, log=[[1, now.timestamp(), 0.1, "failed", "no"]],
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
    inside = {Layer, LayerChannel, MappingEntry, ChannelHealth}  # edited or shown on the page of another row
    # Shown by its proxies; codes nobody may read; part of the incident's page; and two rows of the machine's own, the second kept for ten minutes.
    without = {"Channel", "Verification", "Responder", "Pulse", "EarlyReceipt"}
    named = {model.__name__ for model in [*MODELS, *inside]} | without
    ours = {
        m.__name__
        for label in ("mapping", "templates_app", "channels_app", "escalation", "flashduty")
        for m in apps.get_app_config(label).get_models()
    }
    assert ours - named == set()


def first_of_its_thread(call: Any, *args: Any) -> Any:
    """Nothing is remembered of a page that the same thread served before."""
    return contextvars.Context().run(call, *args)


def test_a_form_may_be_the_first_page_that_a_thread_serves(house: House):
    client = house.client("administrator")
    assert first_of_its_thread(client.get, page(Member, "add")).status_code == 200
    assert first_of_its_thread(client.post, page(Member, "add"), {"email": "no"}).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_every_page_opens_or_refuses(house: House, role: str):
    client = house.client(role)
    client.get = partial(first_of_its_thread, client.get)  # type: ignore[method-assign]
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


@pytest.mark.slow
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


# ---- who sees and changes what -------------------------------------------------------------------------------------------------------


def test_a_manager_sees_and_changes_what_their_teams_own_and_nothing_else(house: House):
    client = house.client("manager")
    for team, sees in ((house.own, 200), (house.other, 302), (None, 302)):
        hook = Channel.objects.get(team=team, kind="webhook")
        answer = client.get(page(Hook, "change", hook.pk))
        assert answer.status_code == sees, team  # 302: "doesn't exist", as Django says of rows outside the query set
        space = Workspace.objects.get(team=team)
        rule = space.escalationrules.get()
        if team == house.other:  # private: not even its name
            assert client.get(page(EscalationRule, "change", rule.pk)).status_code == 302
            for model in (EscalationRule, Incident, Delivery, TimelineEntry, Run, Event, Alert, Notification):
                body = client.get(page(model, "changelist")).content.decode()
                assert space.name not in body and f"Trouble {space.name.split()[1]}" not in body, model
    shared = Workspace.objects.get(team=None).escalationrules.get()
    assert client.get(page(EscalationRule, "change", shared.pk)).status_code == 200
    refused = client.post(page(EscalationRule, "change", shared.pk), {"name": "Mine now"})
    assert refused.status_code == 403


def test_shared_channels_can_be_chosen_in_a_layer_although_their_settings_are_closed(house: House):
    own = Workspace.objects.get(team=house.own).escalationrules.get()
    body = house.client("manager").get(page(EscalationRule, "change", own.pk)).content.decode()
    assert f">{Channel.objects.get(team=None, kind='sandbox_group').name}<" in body
    assert f">{Channel.objects.get(team=house.own, kind='sandbox_group').name}<" in body
    assert f">{Channel.objects.get(team=house.other, kind='sandbox_group').name}<" not in body
    assert f">{Channel.objects.get(team=house.own, kind='sandbox_app').name}<" not in body  # a person's kind is no group


def test_members_and_viewers_change_nothing(house: House):
    for role in ("member", "viewer"):
        client = house.client(role)
        for model in MODELS:
            for pk in model._default_manager.values_list("pk", flat=True)[:3]:
                if model is Incident:
                    continue
                assert client.post(page(model, "change", pk), {"name": "x"}).status_code in (302, 403), (role, model)
    assert not EscalationRule.objects.filter(name="x").exists() and not Channel.objects.filter(name="x").exists()


def test_no_address_filters_by_what_a_page_does_not_offer(house: House):
    client = house.client("member")
    for model, lookup in (
        (Member, "password__startswith=pbkdf2"), (Member, "teams__members__password__startswith=p"), (Integration, "key_hash__startswith=a"),
        (Delivery, "address__target__startswith=%2B86"), (ContactPoint, "value__startswith=%2B86"),
    ):  # fmt: skip
        assert client.get(f"{page(model, 'changelist')}?{lookup}").status_code == 400, lookup


def test_autocomplete_and_filters_name_only_what_may_be_seen(house: House):
    client = house.client("manager")
    other = Workspace.objects.get(team=house.other)
    assert other.name not in client.get(page(Incident, "changelist")).content.decode()
    url = reverse("admin:autocomplete") + "?app_label=escalation&model_name=layer&field_name=members&term="
    Member.objects.create_user("gone@example.com", "Gone", is_active=False)
    names = {item["text"] for item in client.get(url).json()["results"]}
    assert "Stranger" in names and "Gone" not in names


# ---- secrets -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, group", [("webhook", Hook), ("feishu", ImBot), ("email", Classic)])
def test_secrets_are_written_and_never_read(house: House, kind: str, group: Any):
    client = house.client("manager")
    channel = Channel.objects.get(team=house.own, kind=kind)
    url = page(group, "change", channel.pk)
    body = client.get(url).content.decode()
    secret = {"webhook": "hooks.example.com", "feishu": "topsecret", "email": "topsecret"}[kind]
    assert secret not in body and 'placeholder="unchanged"' in body
    before = dict(channel.settings)
    data = {"name": "Renamed", "team": house.own.pk, "status": "enabled", "position": 0}
    data |= {f"set_{name}": value for name, value in before.items() if name not in ("password", "secret", "headers") and kind != "webhook"}
    answer = client.post(url, data)
    assert answer.status_code == 302, re.findall(r"errorlist.*?</ul>", answer.content.decode(), re.S)
    channel.refresh_from_db()
    assert channel.name == "Renamed"
    for name, value in before.items():
        assert channel.settings[name] == value
    history = client.get(page(group, "history", channel.pk)).content.decode()
    assert "→ Renamed" in history and secret not in history


def test_a_stored_password_does_not_follow_the_server_to_another_place(house: House):
    channel = Channel.objects.get(team=house.own, kind="email")
    data = {
        "name": "M",
        "team": house.own.pk,
        "status": "enabled",
        "position": 0,
        "set_port": 25,
        "set_security": "none",
        "set_from_email": "a@example.com",
    }
    answer = house.client("manager").post(page(Classic, "change", channel.pk), data | {"set_host": "evil.example.com", "set_username": "x"})
    assert answer.status_code == 200 and "enter it again" in answer.content.decode()
    channel.refresh_from_db()
    assert channel.settings["host"] == "mail.example.com"


def test_each_password_of_a_mail_channel_stays_at_its_own_server(house: House):
    mailbox = {"protocol": "imap", "host": "box.example.com", "port": 993, "security": "tls", "username": "box", "password": "boxsecret"}
    relay = {"host": "mail.example.com", "port": 25, "security": "none", "from_email": "a@example.com"}
    stored = relay | {"username": "relay", "password": "topsecret"} | {f"bounce_{name}": value for name, value in mailbox.items()}
    stored |= {"bounce_token": "t" * 16, "bounce_key": "k" * 20}  # what is posted to us is checked by these: they go nowhere
    channel = Channel.objects.get(team=house.own, kind="email")
    Channel.objects.filter(pk=channel.pk).update(settings=stored)
    data = {"name": "M", "team": house.own.pk, "status": "enabled", "position": 0}
    data |= {f"set_{name}": value for name, value in stored.items() if not name.endswith(("password", "token", "key"))}
    client, url = house.client("manager"), page(Classic, "change", channel.pk)
    for name, value in {"host": "evil.example.com", "port": 1143, "security": "none", "protocol": "pop3"}.items():
        answer = client.post(url, data | {f"set_bounce_{name}": value})
        assert answer.status_code == 200, name
        assert list(answer.context["adminform"].form.errors) == ["set_bounce_password"], name
    answer = client.post(url, data | {"set_host": "evil.example.com"})
    assert list(answer.context["adminform"].form.errors) == ["set_password"]
    channel.refresh_from_db()
    assert channel.settings == stored
    assert client.post(url, data | {"set_host": "evil.example.com", "set_password": "another"}).status_code == 302
    channel.refresh_from_db()
    assert (channel.settings["password"], channel.settings["bounce_password"]) == ("another", "boxsecret")


def test_a_secret_does_not_follow_a_secret_address_to_another_place(house: House):
    """The webhook address is write-only as well: typed anew it may be anybody's."""
    channel = Channel.objects.get(team=house.own, kind="feishu")
    data = {"name": "F", "team": house.own.pk, "status": "enabled", "position": 0, "set_keyword": "#"}
    evil = "https://evil.example.com/open-apis/bot/v2/hook/aaaaaaaaaaaa"
    answer = house.client("manager").post(page(ImBot, "change", channel.pk), data | {"set_url": evil})
    assert answer.status_code == 200 and "enter it again" in answer.content.decode()
    channel.refresh_from_db()
    assert channel.settings["url"] != evil
    answer = house.client("manager").post(page(ImBot, "change", channel.pk), data | {"set_url": evil, "set_secret": "another"})
    assert answer.status_code == 302


def test_a_secret_in_a_form_that_comes_back_is_asked_for_again(house: House):
    """Saved without it, a signed bot would send unsigned."""
    client, url = house.client("administrator"), page(ImBot, "add") + "?kind=dingtalk"
    typed = {"set_url": "https://oapi.dingtalk.com/robot/send?access_token=" + "a" * 64, "set_secret": "SEC" + "b" * 64}
    typed |= {"proxy": "http://me:hidden@proxy.example.com:3128"}
    data = {"name": "", "team": "", "status": "enabled", "position": 0, "weight": 0, "limits": "", "allowed_hosts": "", "ca_bundle": ""}
    answer = client.post(url, data | typed)
    errors = answer.context["adminform"].form.errors
    assert errors.keys() == {"name", *typed}
    assert all("enter it again" in errors[name][0] for name in typed) and answer.content.decode().count("enter it again") == len(typed)
    assert not any(value in answer.content.decode() for value in typed.values())
    answer = client.post(url, data | {"set_url": typed["set_url"]})
    assert answer.context["adminform"].form.errors.keys() == {"name", "set_url"}
    assert client.post(url, data | typed | {"name": "Signed"}).status_code == 302
    assert Channel.objects.get(name="Signed").settings["secret"] == typed["set_secret"]


def test_a_bot_with_several_chats_is_set_up_and_its_token_stays_at_its_server(house: House):
    token = "6453328900:" + "A" * 35
    client = house.client("manager")
    data = {"name": "T", "team": house.own.pk, "status": "enabled", "position": 0, "set_chats": "-1001234567890:45, @ops_channel"}
    answer = client.post(page(ImBot, "add") + "?kind=telegram", data | {"set_token": token, "set_api_base": ""})
    assert answer.status_code == 302, re.findall(r"errorlist.*?</ul>", answer.content.decode(), re.S)
    channel = Channel.objects.get(kind="telegram")
    assert channel.targets == ["-1001234567890:45", "@ops_channel"] and channel.settings["token"] == token
    url = page(ImBot, "change", channel.pk)
    shown = client.get(url).content.decode()
    assert token not in shown and "fallback_kinds" in shown and "fallback_channel" in shown
    answer = client.post(url, data | {"set_api_base": "https://evil.example.com"})
    assert answer.status_code == 200 and "enter it again" in answer.content.decode()
    channel.refresh_from_db()
    assert channel.settings["api_base"] == "https://api.telegram.org"


def test_a_webhook_of_ones_own_is_pointed_elsewhere_only_where_the_new_place_proves_itself(house: House):
    owner = house.people["manager"]
    settings = {"url": "https://open.feishu.cn/open-apis/bot/v2/hook/mine", "secret": "", "keyword": "pages"}
    channel = Channel.objects.create(kind="feishu", name="Mine", owner=owner, settings=settings)
    Account.objects.create(member=owner, channel=channel, verified_at=db_now())
    evil = {"set_url": "https://open.feishu.cn/open-apis/bot/v2/hook/evil", "set_secret": "x", "set_keyword": "evil", "team": house.own.pk}
    for role in ("administrator", "manager"):
        client, url = house.client(role), page(ImBot, "change", channel.pk)
        shown = client.get(url).content.decode()
        assert "set_url" not in shown and 'name="team"' not in shown and "keyword: pages" in shown and owner.name in shown
        data = {"name": "Mine", "position": 0, "status": "disabled" if role == "manager" else "enabled"}
        assert client.post(url, data | evil).status_code == 302
        assert client.post(reverse("admin:flashduty_imbot_try_saved", args=[channel.pk]), data | evil).status_code == 403
    channel.refresh_from_db()
    assert (channel.settings, channel.team_id, channel.status) == (settings, None, "disabled")


def test_only_administrators_open_the_network(house: House):
    channel = Channel.objects.get(team=house.own, kind="webhook")
    data = {"name": "W", "team": house.own.pk, "status": "enabled", "position": 0, "allowed_hosts": "10.0.0.1:80", "proxy": "http://p:1"}
    assert house.client("manager").post(page(Hook, "change", channel.pk), data).status_code == 302
    channel.refresh_from_db()
    assert (channel.allowed_hosts, channel.proxy) == ([], "")
    assert house.client("administrator").post(page(Hook, "change", channel.pk), data).status_code == 302
    channel.refresh_from_db()
    assert (channel.allowed_hosts, channel.proxy) == (["10.0.0.1:80"], "http://p:1")


def test_the_push_url_is_for_whoever_may_configure_and_rotating_keeps_the_old_key_a_while(house: House):
    own = Integration.objects.get(workspace__team=house.own)
    old = own.key_hash
    assert own.key in house.client("manager").get(page(Integration, "change", own.pk)).content.decode()
    assert own.key not in house.client("member").get(page(Integration, "change", own.pk)).content.decode()
    url = reverse("admin:escalation_integration_rotate", args=[own.pk])
    assert house.client("member").post(url).status_code == 403
    assert house.client("manager").get(url).status_code == 405
    assert house.client("manager").post(url).status_code == 302
    own.refresh_from_db()
    assert own.key_hash != old and own.old_key_hash == old and own.old_key_until and own.old_key_until > db_now()


def test_an_app_key_is_shown_once_and_is_ones_own(house: House):
    client = house.client("member")
    answer = client.post(page(ApiKey, "add"), {"name": "ci", "read_only": "on"})
    (secret,) = re.findall(r'id="secret"[^>]*>([^<]+)<', answer.content.decode())
    key = ApiKey.find(secret, db_now())
    assert key is not None and key.member == house.people["member"] and key.read_only and "no-store" in answer["Cache-Control"]
    assert secret not in client.get(page(ApiKey, "change", key.pk)).content.decode()
    assert (
        client.get(page(ApiKey, "change", ApiKey.objects.filter(member=house.stranger).values_list("pk", flat=True)[0])).status_code == 302
    )
    for n in range(4):
        client.post(page(ApiKey, "add"), {"name": f"k{n}"})
    assert "delete one first" in client.post(page(ApiKey, "add"), {"name": "sixth"}).content.decode()
    assert ApiKey.objects.filter(member=house.people["member"]).count() == 5


def test_phones_are_masked_for_those_who_may_not_see_them(house: House):
    shared = Delivery.objects.get(topic=Incident.objects.get(workspace__team=None).pk)  # to a stranger, in a public workspace
    target = shared.address.target
    for role, full in (("administrator", True), ("manager", False), ("member", False)):
        for url in (page(Delivery, "change", shared.pk), page(Delivery, "changelist"), page(Incident, "change", shared.topic)):
            assert (target in house.client(role).get(url).content.decode()) is full, (role, url)


# ---- what the pages do ---------------------------------------------------------------------------------------------------------------


def rule_data(rule: EscalationRule, **changes: Any) -> dict[str, Any]:
    """The form of a rule with one layer and one group channel, as a browser sends it back."""
    layer = rule.layers.get()
    use = layer.channels.get()
    return {
        "name": rule.name, "workspace": rule.workspace_id, "priority": 0, "status": "enabled", "aggr_window": 0, "time_zone": "UTC", "filters": "",
        "time_filters": "", "template_set": "",
        "layers-TOTAL_FORMS": 1, "layers-INITIAL_FORMS": 1, "layers-MIN_NUM_FORMS": 0, "layers-MAX_NUM_FORMS": 1000,
        "layers-0-id": layer.pk, "layers-0-rule": rule.pk, "layers-0-idx": 0, "layers-0-members": [m.pk for m in layer.members.all()],
        "layers-0-escalate_window": 30, "layers-0-notify_step": "10", "layers-0-max_times": 0, "layers-0-follow_preference": "on",
        "layers-0-channels-TOTAL_FORMS": 1, "layers-0-channels-INITIAL_FORMS": 1, "layers-0-channels-MIN_NUM_FORMS": 0,
        "layers-0-channels-MAX_NUM_FORMS": 1000, "layers-0-channels-0-id": use.pk, "layers-0-channels-0-layer": layer.pk,
        "layers-0-channels-0-channel": use.channel_id,
    } | changes  # fmt: skip


def test_a_rule_its_layers_and_groups_are_saved_on_one_page_with_a_new_version_and_a_history(house: House):
    client = house.client("manager")
    rule = Workspace.objects.get(team=house.own).escalationrules.get()
    version = rule.version
    group = Channel.objects.get(team=None, kind="sandbox_group")
    answer = client.post(
        page(EscalationRule, "change", rule.pk),
        rule_data(
            rule,
            filters='[[{"key": "severity", "oper": "IN", "vals": ["Critical"]}]]',
            **{
                "layers-TOTAL_FORMS": 2,
                "layers-0-escalate_window": 5,
                "layers-0-channels-0-events": ["closed"],
                "layers-1-idx": "",
                "layers-1-rule": rule.pk,
                "layers-1-members": [house.people["member"].pk],
                "layers-1-escalate_window": 7,
                "layers-1-notify_step": "0.5",
                "layers-1-max_times": 6,
                "layers-1-follow_preference": "on",
                "layers-1-emails": "a@example.com\nb@example.com",
                "layers-1-channels-TOTAL_FORMS": 1,
                "layers-1-channels-INITIAL_FORMS": 0,
                "layers-1-channels-MIN_NUM_FORMS": 0,
                "layers-1-channels-MAX_NUM_FORMS": 1000,
                "layers-1-channels-0-channel": group.pk,
                "layers-1-channels-0-mention": "on",
            },
        ),
    )
    assert answer.status_code == 302, re.findall(r"<li>.*?</li>", answer.content.decode())[:5]
    rule.refresh_from_db()
    assert rule.version == version + 1 and rule.filters[0][0]["vals"] == ["Critical"]
    first, second = rule.layers.order_by("idx")
    assert (first.idx, second.idx, first.escalate_window, second.escalate_window) == (0, 1, 5, 7)
    assert first.channels.get().events == ["closed"] and second.channels.get().channel_id == group.pk and second.channels.get().mention
    assert second.emails == ["a@example.com", "b@example.com"]
    history = client.get(page(EscalationRule, "history", rule.pk)).content.decode()
    assert "minutes until the next layer: 30 → 5" in history and "Stranger" not in history


def test_a_new_rule_takes_group_channels_at_once_and_says_which_layers_tell_nobody(house: House):
    client, url = house.client("manager"), page(EscalationRule, "add")
    assert "Add another Group channel" in re.sub(r"&quot;.*?&quot;", "", client.get(url).content.decode())
    old = Workspace.objects.get(team=house.own).escalationrules.get()
    data = {name: value for name, value in rule_data(old).items() if not name.endswith(("-id", "-rule", "-layer", "-members"))}
    data |= {"name": "New", "layers-TOTAL_FORMS": 0, "layers-INITIAL_FORMS": 0, "layers-0-channels-INITIAL_FORMS": 0}

    def said(**changes: Any) -> str:
        answer = client.post(url, data | changes, follow=True)
        assert answer.redirect_chain, re.findall(r"<li>.*?</li>", answer.content.decode())[:5]
        return " ".join(str(message) for message in answer.context["messages"])

    assert "The rule has no layer, so it is passed over" in said()
    assert "passed over" not in said(status="disabled")
    layers = {"layers-TOTAL_FORMS": 2} | {
        name.replace("s-0", "s-1", 1): value for name, value in data.items() if name.startswith("layers-0")
    }
    words = said(**layers | {"layers-0-idx": "", "layers-1-idx": "", "layers-1-channels-TOTAL_FORMS": 0})
    assert "Layer 2 names nobody and no group channel: it is skipped." in words and "Layer 1" not in words
    assert EscalationRule.objects.latest("id").layers.get(idx=0).channels.get().channel_id == old.layers.get().channels.get().channel_id


def test_layers_change_places_and_a_removed_one_closes_the_gap(house: House):
    rule = Workspace.objects.get(team=house.own).escalationrules.get()
    first, data = rule.layers.get(), rule_data(rule)
    second = Layer.objects.create(rule=rule, idx=1, escalate_window=11)
    extra = {
        "layers-TOTAL_FORMS": 2, "layers-INITIAL_FORMS": 2, "layers-0-idx": 1, "layers-1-id": second.pk, "layers-1-rule": rule.pk, "layers-1-idx": 0,
        "layers-1-escalate_window": 11, "layers-1-notify_step": "10", "layers-1-max_times": 0, "layers-1-follow_preference": "on",
        "layers-1-channels-TOTAL_FORMS": 0, "layers-1-channels-INITIAL_FORMS": 0, "layers-1-channels-MIN_NUM_FORMS": 0, "layers-1-channels-MAX_NUM_FORMS": 9,
    }  # fmt: skip
    client = house.client("manager")
    assert client.post(page(EscalationRule, "change", rule.pk), data | extra).status_code == 302
    assert list(rule.layers.order_by("idx").values_list("pk", flat=True)) == [second.pk, first.pk]
    assert client.post(page(EscalationRule, "change", rule.pk), data | extra | {"layers-1-DELETE": "on"}).status_code == 302
    assert list(rule.layers.values_list("pk", "idx")) == [(first.pk, 0)]


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("filters", '[[{"key": "severity", "oper": "IN", "vals": ["/[/"]}]]', "filters[0][0].vals[0]"),
        ("filters", "{not json", "JSON"),
        ("time_filters", '[{"start": "9", "end": "18:00"}]', "time_filters[0].start"),
    ],
)
def test_a_filter_that_cannot_be_used_is_refused_with_its_place(house: House, field: str, value: str, says: str):
    rule = Workspace.objects.get(team=house.own).escalationrules.get()
    answer = house.client("manager").post(page(EscalationRule, "change", rule.pk), rule_data(rule, **{field: value}))
    assert answer.status_code == 200 and says in answer.content.decode()
    assert EscalationRule.objects.get(pk=rule.pk).version == rule.version


def test_an_incident_is_handled_from_its_page(house: House):
    incident = Incident.objects.get(workspace__team=house.own)
    client, viewer = house.client("member"), house.client("viewer")

    def press(who: Client, verb: str, **data: Any) -> Any:
        data = {f"{verb}-{name}": value for name, value in data.items()}
        answer = who.post(reverse("admin:escalation_incident_do", args=[incident.pk, verb]), data)
        incident.refresh_from_db()
        return answer

    assert press(viewer, "acknowledge").status_code == 403 and incident.progress == "Triggered"
    # A form with a mistake stays at the button's address: opened again, it is the incident's page, and that is what it looks at for news.
    mistake = press(client, "snooze", minutes=0)
    assert mistake.status_code == 422 and f"fetch('{page(Incident, 'change', incident.pk)}'" in mistake.content.decode()
    assert client.get(reverse("admin:escalation_incident_do", args=[incident.pk, "snooze"]))["Location"] == page(
        Incident, "change", incident.pk
    )
    press(client, "acknowledge")
    assert incident.progress == "Processing" and incident.responders.get(acknowledged_at__isnull=False).member == house.people["member"]
    press(client, "unacknowledge")
    assert incident.progress == "Triggered"
    press(client, "snooze", minutes=20)
    assert incident.snoozed_until is not None
    press(client, "wake")
    assert incident.snoozed_until is None
    press(client, "comment", text="looking")
    press(client, "edit", title="Better words", severity="Warning", description="", impact="", root_cause="", resolution="")
    assert (incident.title, incident.severity, incident.manual_overrides) == ("Better words", "Warning", ["title", "severity"])
    press(client, "escalate", layer_idx=1)
    press(client, "assign", member_ids=[house.people["manager"].pk])
    assert incident.responders.filter(assigned_at__isnull=False).get().member == house.people["manager"]
    press(client, "close")
    assert incident.progress == "Closed"
    answer = press(client, "reopen", reason="")
    assert answer.status_code == 422 and incident.progress == "Closed"
    press(client, "reopen", reason="not yet")
    assert incident.progress == "Triggered"
    kinds = list(
        TimelineEntry.objects.filter(incident=incident, actor=house.people["member"], via="console").values_list("type", flat=True)
    )
    assert kinds == [
        "i_ack",
        "i_unack",
        "i_snooze",
        "i_wake",
        "i_comm",
        "i_r_title",
        "i_r_severity",
        "i_escalate",
        "i_assign",
        "i_rslv",
        "i_reopen",
    ]
    other = Incident.objects.get(workspace__team=house.other)
    assert client.post(reverse("admin:escalation_incident_do", args=[other.pk, "close"])).status_code == 404


def test_an_incident_is_opened_by_hand(house: House):
    client = house.client("member")
    space = Workspace.objects.get(team=house.own)
    data = {"workspace": space.pk, "title": "Smoke in the room", "severity": "Critical", "labels": '{"room": "3"}'}
    assert client.post(page(Incident, "add"), data).status_code == 302
    incident = Incident.objects.get(title="Smoke in the room")
    assert (incident.creator, incident.labels, incident.severity) == (house.people["member"], {"room": "3"}, "Critical")
    hidden = Workspace.objects.get(team=house.other)
    assert client.post(page(Incident, "add"), data | {"workspace": hidden.pk, "title": "No"}).status_code == 200
    assert house.client("viewer").get(page(Incident, "add")).status_code == 403


def test_a_test_goes_through_the_outbox_and_its_page_says_what_became_of_it(house: House):
    client = house.client("manager")
    for kind, target in (("sandbox_group", ""), ("sandbox_app", f"member:{house.people['manager'].pk}")):
        channel = Channel.objects.get(team=house.own, kind=kind)
        button = reverse("admin:flashduty_play_test", args=[channel.pk])
        assert f'action="{button}"' in client.get(page(Play, "change", channel.pk)).content.decode()
        answer = client.post(button)
        delivery = Delivery.objects.filter(channel=channel, notification__event="test").get()
        assert answer["Location"] == page(Delivery, "change", delivery.pk) and delivery.address.target == target
        outbox.run_once(db_now())
        assert "delivered" in client.get(answer["Location"]).content.decode()
    other = Channel.objects.get(team=house.other, kind="sandbox_group")
    assert client.post(reverse("admin:flashduty_play_test", args=[other.pk])).status_code == 404
    mine = Channel.objects.get(team=house.own, kind="sandbox_group")
    assert house.client("member").post(reverse("admin:flashduty_play_test", args=[mine.pk])).status_code == 403


def test_configuration_is_retired_and_never_deleted(house: House):
    client = house.client("manager")
    rule = Workspace.objects.get(team=house.own).escalationrules.get()
    shared = Workspace.objects.get(team=None).escalationrules.get()
    assert client.post(page(EscalationRule, "delete", rule.pk), {"post": "yes"}).status_code == 403
    client.post(page(EscalationRule, "changelist"), {"action": "retire", "_selected_action": [rule.pk, shared.pk]})
    rule.refresh_from_db()
    shared.refresh_from_db()
    assert (rule.status, shared.status) == ("deleted", "enabled")
    assert rule.name not in client.get(page(EscalationRule, "changelist")).content.decode()
    assert rule.name in client.get(page(EscalationRule, "changelist") + "?status=all").content.decode()
    assert "Enabled → Deleted" in client.get(page(EscalationRule, "history", rule.pk)).content.decode()


def test_deliveries_are_tried_again_and_cancelled_through_the_outbox(house: House):
    mine = Delivery.objects.get(topic=Incident.objects.get(workspace__team=house.own).pk)
    shared = Delivery.objects.get(topic=Incident.objects.get(workspace__team=None).pk)
    client = house.client("manager")
    client.post(page(Delivery, "changelist"), {"action": "retry", "_selected_action": [mine.pk, shared.pk]})
    mine.refresh_from_db()
    shared.refresh_from_db()
    assert (mine.state, shared.state) == ("queued", "failed")
    client.post(page(Delivery, "changelist"), {"action": "cancel", "_selected_action": [mine.pk]})
    mine.refresh_from_db()
    assert mine.state == "cancelled" and "Manager" in mine.reason


def test_only_an_administrator_sets_somebody_elses_password_and_nobody_reads_a_hash(house: House):
    member = house.people["member"]
    url = reverse("admin:mapping_member_password", args=[member.pk])
    assert house.client("manager").get(url).status_code == 403
    client = house.client("administrator")
    assert member.password not in client.get(page(Member, "change", member.pk)).content.decode()
    assert client.post(url, {"password1": "short", "password2": "short"}).status_code == 200
    assert client.post(url, {"password1": "correct horse battery", "password2": "correct horse battery"}).status_code == 302
    member.refresh_from_db()
    assert member.check_password("correct horse battery")


def test_a_manager_cannot_make_an_administrator(house: House):
    member = house.people["member"]
    data = {
        "name": "New name",
        "email": "evil@example.com",
        "role": "administrator",
        "time_zone": "UTC",
        "language": "en",
        "is_active": "on",
    }
    assert house.client("manager").post(page(Member, "change", member.pk), data).status_code == 302
    member.refresh_from_db()
    assert (member.name, member.email, member.role) == ("New name", "member@example.com", "member")
    boss = house.people["administrator"]
    assert house.client("manager").post(page(Member, "change", boss.pk), data).status_code == 403


def test_another_number_was_never_verified(house: House):
    point = ContactPoint.objects.filter(member__teams=house.own)[0]
    data = {"member": point.member_id, "kind": "phone", "value": "+8613912345678", "position": 0}
    assert house.client("manager").post(page(ContactPoint, "change", point.pk), data).status_code == 302
    old = point.value
    point.refresh_from_db()
    assert point.value == "+8613912345678" and point.verified_at is None
    entry = LogEntry.objects.latest("id")
    assert old not in entry.change_message and "+861****5678" in json.loads(entry.change_message)[0]["changed"]["fields"][0]


def test_pages_speak_the_members_language_and_zone(house: House):
    Member.objects.filter(pk=house.people["member"].pk).update(language="zh-hans", time_zone="Asia/Shanghai")
    incident = Incident.objects.get(workspace__team=house.own)
    Incident.objects.filter(pk=incident.pk).update(start_time="2026-03-02T03:00:00Z")
    answer = house.client("member").get(page(Incident, "change", incident.pk))
    assert answer["Content-Language"] == "zh-hans" and "2026-03-02 11:00:00" in answer.content.decode()
    assert "2026-03-02 03:00:00" in house.client("manager").get(page(Incident, "change", incident.pk)).content.decode()
    # To the second and by 24 hours, where Django would say "3 a.m.".
    for person, time in (("member", "2026-03-02 11:00:00"), ("manager", "2026-03-02 03:00:00")):
        assert time in house.client(person).get(page(Incident, "changelist")).content.decode()


def test_a_text_is_for_a_family_a_kind_or_a_format_and_each_is_named_once():
    groups = dict(template_kinds())
    names = [name for choices in groups.values() for name, _label in choices]
    assert len(names) == len(set(names)) and {"sms", "voice", "im", "email", "feishu", "html"} <= set(names)
