"""What attackers tried: strangers at every address, members and managers with forms that they were never shown, keys, links and spellings."""

import io
import json
import logging
import logging.config
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.core.exceptions import ValidationError
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.db import models
from django.test import Client, RequestFactory
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from channels_app import addresses, outbox, transport, verification
from channels_app.compose import without_address
from channels_app.models import Channel, Delivery, Verification
from channels_app.sockets import DeliveryError, Guard
from escalation import engine, targets
from escalation.ids import hex_id
from escalation.models import EscalationRule, Event, Incident, Integration, Layer, LayerChannel, TimelineEntry, Workspace
from flashduty.console.base import changeable
from flashduty.console.channels import kinds_of
from flashduty.console.incidents import VERBS
from flashduty.models import Classic, Hook, ImApp, ImBot, Play
from flashduty.web import pages
from mapping.clock import db_now
from mapping.models import ApiKey, ContactPoint, MappingEntry, MappingTable, Member, Team, Throttle
from templates_app.models import Template, TemplateSet
from tests.test_console import MODELS, House, page, rule_data

pytestmark = pytest.mark.django_db


@pytest.fixture
def house(db: None) -> House:
    return House()


# ---- strangers -----------------------------------------------------------------------------------------------------------------------

# What a stranger gets anything from; everything else sends them to the sign-in page or refuses them.
PUBLIC = {"/healthz", "/readyz", "schema", "login", "jsi18n", "incident_personal"}


def addresses_of(resolver: URLResolver, before: str = "") -> Iterator[tuple[str, str]]:
    """(name, an address) of every door there is."""
    for pattern in resolver.url_patterns:
        here = before + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from addresses_of(pattern, here)
        elif isinstance(pattern, URLPattern):
            path = re.sub(r"\(\?P<wire_id>[^)]*\)", "0" * 24, here)
            path = re.sub(r"\(\?P<\w+>[^)]*\)|<[^>]+>", "1", path)
            yield str(pattern.name or ""), "/" + re.sub(r"[\^$]|/\*|\\Z", "", path).replace("/?", "/").lstrip("/")


@pytest.mark.parametrize("method", ["get", "post", "put", "delete"])
def test_a_stranger_gets_nothing_from_any_address(house: House, method: str):
    client = Client()
    doors = list(addresses_of(get_resolver()))
    assert len(doors) > 150
    open_ones = set()
    for name, path in doors:
        answer = getattr(client, method)(path)
        if method == "get" and name == "admin:password_change":
            continue
        if answer.status_code not in (301, 302, 400, 401, 403, 404, 405):
            open_ones.add(name or path)
        elif answer.status_code in (301, 302):
            assert answer["Location"].startswith(("/admin/", settings.LOGIN_URL)), (path, answer["Location"])
            assert not answer.content, path
    assert open_ones <= PUBLIC, open_ones - PUBLIC
    assert not LogEntry.objects.exists()


def test_no_address_may_be_guessed_and_nobody_may_try_many(house: House):
    incident = Incident.objects.get(workspace__team=None)
    Workspace.objects.filter(pk=incident.workspace_id).update(group_may_act=True)
    client = Client()
    for second in range(pages.MOST_LOOKS):  # the number is easy to guess, the second of its creation can be tried
        assert client.get(f"/i/{second:08x}{incident.pk:016x}/").status_code == 302
    right, wrong = (client.get(f"/i/{wire}/") for wire in (hex_id(incident.created_at, incident.pk), f"{1:08x}{incident.pk:016x}"))
    assert right.status_code == wrong.status_code == 429
    assert "next=" in right.content.decode()  # whoever has an account goes on with it
    assert incident.title not in right.content.decode()


def test_forms_of_strangers_cannot_be_large(client: Client):
    answer = client.post("/admin/login/", "username=" + "a" * 2_700_000, content_type="application/x-www-form-urlencoded")
    assert answer.status_code == 400


def test_no_file_of_a_stranger_reaches_the_disk(client: Client, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a file was begun")

    monkeypatch.setattr(TemporaryFileUploadHandler, "new_file", refuse)
    file = io.BytesIO(b"x" * 3_000_000)
    file.name = "big.bin"
    assert client.post("/admin/login/", {"username": "a@example.com", "password": "x", "file": file}).status_code == 200


def test_readyz_says_nothing_of_what_an_error_stumbled_over(world, client: Client):
    world.alert("db down")
    engine._set_aside("timeline", world.incident().pk, db_now(), "DataError: the value is lee@example.com")
    told = json.loads(client.get("/readyz").content)["alarms"]
    assert len(told) == 1 and "could not go on" in told[0] and "lee@example.com" not in told[0]
    assert TimelineEntry.objects.filter(type="i_failed", detail__text__icontains="lee@example.com").exists()
    world.settle()
    world.fresh()


# ---- signing in ----------------------------------------------------------------------------------------------------------------------


def test_each_spelling_of_an_address_shares_the_tries_of_its_account(client: Client):
    """A database with a Unicode collation takes "ı" for "i" where it compares without case; each spelling had ten tries of its own."""
    Member.objects.create_user("ivy@example.com", "Ivy", "right-password-1")
    for spelling in ("ivy@example.com", "IVY@example.com", "\u0131vy@example.com", " Ivy@EXAMPLE.com ", "\u2170vy@example.com"):
        for _turn in range(2):
            client.post("/admin/login/", {"username": spelling, "password": "wrong"})
    answer = client.post("/admin/login/", {"username": "ivy@example.com", "password": "right-password-1"})
    assert answer.status_code == 200 and "Too many tries" in answer.content.decode()


def test_nobody_is_sent_elsewhere_after_signing_in(client: Client):
    Member.objects.create_user("a@example.com", "A", "right-password-1")
    for where in ("//evil.example.com", "https://evil.example.com/", "/\\evil.example.com", "http:evil.example.com", "javascript:alert(1)"):
        answer = client.post(f"/admin/login/?next={where}", {"username": "a@example.com", "password": "right-password-1", "next": where})
        assert answer["Location"] == "/admin/", where


def test_sessions_end_with_the_password_and_with_the_account(house: House):
    for change in ({"password": "!"}, {"is_active": False}):
        house.people["member"].refresh_from_db()
        client = house.client("member")
        assert client.get("/admin/").status_code == 200
        Member.objects.filter(pk=house.people["member"].pk).update(**change)
        assert client.get("/admin/").status_code == 302
        assert client.get("/me/").status_code == 302


def test_a_forwarded_address_counts_only_behind_a_proxy_of_ours(house: House, rf: RequestFactory, settings: Any):
    request = rf.get("/", REMOTE_ADDR="192.0.2.9", headers={"X-Forwarded-For": "203.0.113.1, 203.0.113.2"})
    assert pages.address_of(request) == "192.0.2.9"
    for one, other, same in (
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True), ("2001:db8:1:2::1", "2001:db8:1:3::1", False), ("::ffff:192.0.2.9", "192.0.2.9", True),
    ):  # fmt: skip
        assert (pages.address_of(rf.get("/", REMOTE_ADDR=one)) == pages.address_of(rf.get("/", REMOTE_ADDR=other))) is same
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    assert pages.address_of(request) == "203.0.113.2"  # what the proxy saw, and not what the client wrote before it


# ---- forms that were never shown -----------------------------------------------------------------------------------------------------


class Form(HTMLParser):
    """What a browser would send back of a page's largest form."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.data: dict[str, list[str]] = {}
        self.select: str | None = None
        self.area: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        name = found.get("name") or ""
        if tag == "input" and name and found.get("type") not in ("submit", "file", "button"):
            if found.get("type") not in ("checkbox", "radio") or "checked" in found:
                self.data.setdefault(name, []).append(found.get("value") or "")
        elif tag == "select":
            self.select = name
        elif tag == "option" and self.select and "selected" in found:
            self.data.setdefault(self.select, []).append(found.get("value") or "")
        elif tag == "textarea":
            self.area = name
            self.data.setdefault(name, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "select":
            self.select = None
        elif tag == "textarea":
            self.area = None

    def handle_data(self, data: str) -> None:
        if self.area:
            self.data[self.area][-1] += data


def everything() -> dict[Any, Any]:
    """Every row of ours, without what a look at a page may write."""
    houses = ("mapping", "templates_app", "channels_app", "escalation")
    found: dict[Any, Any] = {}
    for label in houses:
        for model in apps.get_app_config(label).get_models(include_auto_created=True):
            if model is not Throttle:
                names = [f.attname for f in model._meta.concrete_fields if f.attname not in ("last_login", "updated_at", "last_used_at")]
                found |= {(model._meta.label, row[0]): row[1:] for row in model._default_manager.values_list("pk", *names)}
    return found


def differing(before: dict[Any, Any], after: dict[Any, Any]) -> list[Any]:
    return [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]


@pytest.mark.slow
@pytest.mark.parametrize("role", ["manager", "member", "viewer"])
def test_forms_of_rows_that_are_not_ones_own_change_nothing(house: House, role: str):
    """The administrator's own form of every row, changed a little and sent by somebody who may not."""
    boss, client, person = house.client("administrator"), house.client(role), house.people[role]
    client.raise_request_exception = False
    before, sent = everything(), 0
    for model in MODELS:
        own = set(changeable(model, person).values_list("pk", flat=True))
        if model is Delivery:  # whoever configures an incident's workspace has its messages tried again
            own = set(Delivery.objects.filter(topic__in=changeable(Incident, person).values("pk")).values_list("pk", flat=True))
        rows = [pk for pk in model._default_manager.values_list("pk", flat=True)[:12] if pk not in own]
        for pk in rows:
            for name in ("change", "delete", "history"):
                url = page(model, name, pk)
                shown = boss.get(url)
                data: dict[str, Any] = Form(shown.content.decode()).data if shown.status_code == 200 else {}
                data.pop("csrfmiddlewaretoken", None)
                for key, value in (
                    ("name", "Mine now"),
                    ("title", "Mine now"),
                    ("role", "viewer"),
                    ("is_active", ""),
                    ("value", "+8613999999999"),
                ):
                    if key in data:
                        data[key] = [value]
                status = client.post(url, data | {"post": ["yes"]}).status_code
                looks = name == "history" or (model is Incident and name == "change")  # a look, whatever the method
                assert status in (302, 403, 404, 405) or (looks and status == 200), (url, status)
                sent += 1
        for action in admin.site._registry[model].actions or ():
            if role != "viewer" and model is Incident:  # whoever is on call handles incidents that they see
                rows = list(Incident.objects.filter(workspace__team=house.other).values_list("pk", flat=True))
            verb = action if isinstance(action, str) else action.__name__
            client.post(page(model, "changelist"), {"action": verb, "_selected_action": rows, "post": "yes"})
            sent += 1
    buttons = [("mapping_member_password", (one.pk,)) for one in Member.objects.all()]
    buttons += [("escalation_integration_rotate", (one.pk,)) for one in Integration.objects.filter(workspace__team=house.other)]
    buttons += [
        ("escalation_incident_do", (one.pk, verb)) for one in Incident.objects.filter(workspace__team=house.other) for verb in VERBS
    ]
    for group in (ImApp, ImBot, Classic, Hook, Play):
        theirs = Channel.objects.filter(team=house.other, kind__in=kinds_of(group))
        buttons += [(f"flashduty_{group._meta.model_name}_test", (one.pk,)) for one in theirs]
    for name, args in buttons:
        assert client.post(reverse(f"admin:{name}", args=args), {"password1": "thief-pw-12", "password2": "thief-pw-12"}).status_code in (
            403,
            404,
        ), name
    assert len(buttons) > 15
    changed = differing(before, everything())
    assert sent > 150
    assert not changed


def foreign_ids(house: House) -> list[tuple[type[models.Model], str, dict[str, Any]]]:
    """(model, field, the rows of the other team that a manager must not be able to name in a row of their own)."""
    other = house.other
    return [
        (EscalationRule, "workspace", {"team": other}), (Integration, "workspace", {"team": other}), (Workspace, "team", {"pk": other.pk}),
        (MappingTable, "team", {"pk": other.pk}), (TemplateSet, "team", {"pk": other.pk}), (Template, "template_set", {"team_id": other.pk}),
        (EscalationRule, "template_set", {"team_id": other.pk}), (Workspace, "catch_all_channels", {"team": other, "kind": "sandbox_group"}),
        (EscalationRule, "layers-0-channels-0-channel", {"team": other, "kind": "sandbox_group"}),
        (EscalationRule, "layers-0-channels-0-mapping_table", {"team": other}), (EscalationRule, "layers-0-id", {"rule__workspace__team": other}),
        (EscalationRule, "layers-0-channels-0-id", {"layer__rule__workspace__team": other}), (MappingTable, "entries-0-id", {"table__team": other}),
        (TemplateSet, "templates-0-id", {"template_set__team_id": other.pk}), (Play, "team", {"pk": other.pk}),
        (Hook, "fallback_channel", {"team": other, "kind": "sandbox_group"}), (ContactPoint, "member", {"pk": house.stranger.pk}),
    ]  # fmt: skip


NAMED: dict[str, type[models.Model]] = {
    "workspace": Workspace, "team": Team, "template_set": TemplateSet, "catch_all_channels": Channel, "layers-0-channels-0-channel": Channel,
    "layers-0-channels-0-mapping_table": MappingTable, "layers-0-id": Layer, "layers-0-channels-0-id": LayerChannel, "entries-0-id": MappingEntry,
    "templates-0-id": Template, "fallback_channel": Channel, "member": Member,
}  # fmt: skip


@pytest.mark.slow
def test_a_manager_cannot_name_what_belongs_to_another_team_in_a_row_of_their_own(house: House):
    client, person = house.client("manager"), house.people["manager"]
    tried = 0
    for model, field, where in foreign_ids(house):
        foreign = NAMED[field]._default_manager.filter(**where)[:1].get()
        rows = model._default_manager.filter(pk__in=changeable(Channel if issubclass(model, Channel) else model, person).values("pk"))
        if issubclass(model, Channel):
            rows = rows.filter(kind="webhook" if model is Hook else "sandbox_group")
        own = rows[:1].get()
        url = page(model, "change", own.pk)
        data = Form(client.get(url).content.decode()).data
        data.pop("csrfmiddlewaretoken", None)
        before = everything()
        answer = client.post(url, data | {field: [str(foreign.pk)]})
        assert answer.status_code in (200, 302), (model, field)
        keys = differing(before, everything())
        touched = [key for key in keys if key[0] == foreign._meta.label and key[1] == foreign.pk]
        assert not touched, (model, field, touched)
        own.refresh_from_db()
        assert foreign.pk not in named_by(own, field), (model, field, answer.status_code)
        if answer.status_code == 302:  # nothing of it was taken: then the field is not one that can be sent
            assert field in ("member", "fallback_channel") or field.endswith("-id"), (model, field)
        tried += 1
    assert tried == len(foreign_ids(house))


def named_by(row: Any, field: str) -> set[Any]:
    """The keys of all that `row` names, itself or in the rows below it, under this field."""
    if field.endswith("-id"):
        return set()  # told by what was touched
    last = field.rpartition("-")[2]
    if isinstance(row, EscalationRule) and field.startswith("layers-"):
        return set(LayerChannel.objects.filter(layer__rule=row).values_list(last, flat=True))
    if isinstance(row, TemplateSet | EscalationRule) and last in ("team", "template_set"):
        return {getattr(row, f"{last}_id")}
    value = getattr(row, last)
    return set(value.values_list("pk", flat=True)) if hasattr(value, "values_list") else {value.pk if value else None}


def test_a_manager_takes_over_no_account(house: House):
    client, victim = house.client("manager"), house.people["member"]
    before = Member.objects.filter(pk=victim.pk).values().get()
    data = Form(client.get(page(Member, "change", victim.pk)).content.decode()).data
    data.pop("csrfmiddlewaretoken", None)
    stolen = {
        "email": "thief@example.com", "role": "administrator", "is_active": "", "may_use_sandbox": "on", "ref_id": "thief", "password": "x",
        "password1": "thief-password-1", "password2": "thief-password-1", "links_valid_from": "2000-01-01",
    }  # fmt: skip
    assert client.post(page(Member, "change", victim.pk), data | {"name": ["Renamed"]} | stolen).status_code == 302
    after = Member.objects.filter(pk=victim.pk).values().get()
    assert {name for name in before if before[name] != after[name]} == {"name", "updated_at"}
    assert client.post(reverse("admin:mapping_member_password", args=[victim.pk]), stolen).status_code == 403
    boss = house.people["administrator"]
    house.own.members.add(boss)
    assert client.post(page(Member, "change", boss.pk), data).status_code == 403


def team_form(team: Team, members: list[Member], **changes: Any) -> dict[str, Any]:
    return {"name": team.name, "description": "", "status": "enabled", "members": [one.pk for one in members]} | changes


def test_managing_a_team_opens_no_phone_of_somebody_who_is_not_in_it(house: House):
    client, inside = house.client("manager"), list(house.own.members.all())
    url = page(Team, "change", house.own.pk)
    answer = client.post(url, team_form(house.own, [*inside, house.stranger]))
    assert answer.status_code == 200 and "Only administrators add people" in answer.content.decode()
    assert house.stranger not in house.own.members.all()
    left = [one for one in inside if one.role != "viewer"]
    assert client.post(url, team_form(house.own, left, name="Renamed", ref_id="sso-admins")).status_code == 302
    house.own.refresh_from_db()
    assert (house.own.name, house.own.ref_id, set(house.own.members.all())) == ("Renamed", "", set(left))
    assert client.post(page(Team, "add"), team_form(Team(name="Mine"), [house.stranger])).status_code == 403
    assert client.post(page(Team, "change", house.other.pk), team_form(house.other, [house.people["manager"]])).status_code == 403
    assert house.client("administrator").post(url, team_form(house.own, [*left, house.stranger])).status_code == 302
    assert house.stranger in house.own.members.all()


def test_a_verified_phone_does_not_move_to_another_person_and_its_code_proves_no_other(house: House, monkeypatch: pytest.MonkeyPatch):
    client, me, victim = house.client("manager"), house.people["manager"], house.people["member"]
    mine = ContactPoint.objects.create(member=me, kind="phone", value="+8613800138000", verified_at=db_now())
    form = {"kind": "phone", "value": "+8613800138000", "position": 0}
    client.post(page(ContactPoint, "change", mine.pk), form | {"member": victim.pk})
    mine.refresh_from_db()
    assert mine.member == me  # else the pages of the victim, and links that act as the victim, went to this phone
    ContactPoint.objects.filter(pk=mine.pk).update(verified_at=None)
    mine.refresh_from_db()
    monkeypatch.setattr(verification.secrets, "randbelow", lambda _most: 123456)
    Channel.objects.create(kind="sandbox_sms", name="Sandbox SMS")
    verification.send_code(mine, db_now())
    client.post(page(ContactPoint, "change", mine.pk), form | {"value": "+8613911112222"})
    with pytest.raises(ValidationError):
        verification.verify(mine, "123456", db_now())
    mine.refresh_from_db()
    assert (mine.value, mine.verified_at, Verification.objects.count()) == ("+8613911112222", None, 0)


def test_a_manager_does_not_decide_where_an_administrator_is_reached(house: House):
    boss = house.people["administrator"]
    house.own.members.add(boss)
    point = ContactPoint.objects.create(member=boss, kind="phone", value="+8613800138000", verified_at=db_now())
    client = house.client("manager")
    assert (
        client.post(page(ContactPoint, "change", point.pk), {"kind": "phone", "value": "+8613911112222", "position": 0}).status_code == 403
    )
    assert client.post(page(ContactPoint, "delete", point.pk), {"post": "yes"}).status_code == 403
    client.post(page(ContactPoint, "changelist"), {"action": "delete_selected", "_selected_action": [point.pk], "post": "yes"})
    point.refresh_from_db()
    assert (point.value, bool(point.verified_at)) == ("+8613800138000", True)


def test_what_one_person_may_choose_does_not_leak_into_the_form_of_another(house: House, rf: RequestFactory):
    """Two requests at a time: each thread gets its form class before either makes its form."""
    requests = []
    for role in ("manager", "administrator"):
        request = rf.get("/")
        request.user = house.people[role]
        requests.append(request)
    for model, field in ((TemplateSet, "team"), (EscalationRule, "template_set")):
        page_of = admin.site._registry[model]
        first, second = (page_of.get_form(request, None) for request in requests)
        assert first().fields[field].queryset.count() < second().fields[field].queryset.count(), model


# ---- another team's channel ------------------------------------------------------------------------------------------------------------


def test_a_teams_channel_carries_nothing_of_people_who_are_not_in_the_team(house: House):
    """Else a manager's mail server got everybody's pages, with the links that act as them, and every code that proves an address."""
    Channel.objects.filter(kind="email").exclude(team=house.own).update(status="disabled")
    theirs = Channel.objects.get(kind="email", team=house.own)
    now = db_now()
    for person in (house.stranger, house.people["member"]):
        ContactPoint.objects.create(member=person, kind="email", value=person.email, verified_at=now)
    ids = [house.stranger.pk, house.people["member"].pk]
    found = addresses.reach(ids, "Critical", now, kinds=["email"])
    assert isinstance(found[ids[0]][0], addresses.Missing)
    assert isinstance(found[ids[1]][0], addresses.Target) and found[ids[1]][0].channel_id == theirs.pk
    to, missing = targets._emails(["oncall@example.com"], now)
    assert not to and missing
    with pytest.raises(ValidationError, match="administrator"):
        verification.send_code(ContactPoint.objects.get(member=house.people["member"], kind="email"), now)


@pytest.mark.parametrize(
    "ip", ["fec0::1", "64:ff9b:1::a9fe:a9fe", "::ffff:0:7f00:1", "192.0.0.192", "192.88.99.1", "5f00::1", "3fff::1", "0.0.0.0", "fe80::1%lo"]
)  # fmt: skip
def test_no_notation_of_a_private_address_is_taken_for_a_public_one(ip: str):
    with pytest.raises(DeliveryError):
        Guard().judge("h.example.com", ip, 80)
    Guard().judge("h.example.com", "2606:4700::1111", 80)
    with pytest.raises(DeliveryError):
        Guard(allow_private=True).judge("h.example.com", "::ffff:0:a9fe:a9fe", 80)  # metadata, translated


# ---- keys ----------------------------------------------------------------------------------------------------------------------------


def ask(verb: str, secret: str, **body: Any) -> int:
    return Client().post(f"/incident/{verb}", json.dumps(body), content_type="application/json", headers={"App-Key": secret}).status_code


def test_a_viewers_key_looks_and_does_nothing(house: House):
    _key, secret = ApiKey.issue(house.people["viewer"], "k")
    incident = Incident.objects.get(workspace__team=house.own)
    wire = hex_id(incident.created_at, incident.pk)
    assert ask("info", secret, incident_id=wire) == 200
    before = everything()
    assert {verb: ask(verb, secret, incident_ids=[wire]) for verb in ("ack", "unack", "resolve")} == {
        "ack": 403,
        "unack": 403,
        "resolve": 403,
    }
    assert ask("create", secret, channel_id=incident.workspace_id, title="x", incident_severity="Info") == 403
    assert not differing(before, everything())


def test_keys_that_are_read_only_or_over_or_of_somebody_who_left_write_nothing(house: House):
    member = house.people["member"]
    incident = Incident.objects.get(workspace__team=house.own)
    wire = hex_id(incident.created_at, incident.pk)
    now = db_now()
    _key, only = ApiKey.issue(member, "r", read_only=True)
    _key, over = ApiKey.issue(member, "e", expires_at=now)
    _key, good = ApiKey.issue(member, "g")
    before = everything()
    for verb in ("ack", "unack", "resolve"):
        assert (ask(verb, only, incident_ids=[wire]), ask(verb, over, incident_ids=[wire])) == (403, 401)
    assert (ask("create", only, channel_id=incident.workspace_id, title="x"), ask("info", only, incident_id=wire)) == (403, 200)
    hidden = Incident.objects.get(workspace__team=house.other)
    away = hex_id(hidden.created_at, hidden.pk)
    assert [ask(verb, good, incident_ids=[away]) for verb in ("ack", "unack", "resolve")] == [404, 404, 404]
    assert (ask("info", good, incident_id=away), ask("feed", good, incident_id=away), ask("info", good, num=hidden.num)) == (404, 404, 404)
    client = Client()
    client.force_login(member)  # a session opens no door of the API
    answer = client.post("/incident/info", json.dumps({"incident_id": wire}), content_type="application/json")
    assert answer.status_code == 401
    Member.objects.filter(pk=member.pk).update(is_active=False)
    assert ask("info", good, incident_id=wire) == 401
    after = {key: value for key, value in everything().items() if key[0] != "mapping.Member"}
    assert not [key for key in differing(before, after) if key[0] != "mapping.Member"]


def test_a_key_that_came_in_the_body_is_not_kept_for_everybody_to_read(house: House):
    source = Integration.objects.get(workspace__team=house.own)
    escaped = "".join(f"\\u{ord(char):04x}" for char in source.key)
    event = '{"integration_key": "%s", "title_rule": "Disk full", "event_status": "Critical"}'
    for key in (source.key, escaped):
        answer = Client().post("/event/push/alert/standard", event % key, content_type="application/json")
        assert answer.status_code == 200
        row = Event.objects.latest("pk")
        for role in ("viewer", "manager", "administrator"):
            text = house.client(role).get(page(Event, "change", row.pk)).content.decode()
            assert "Disk full" in text and source.key not in text and escaped not in text, role
        assert source.key.encode() not in bytes(row.raw or b"") and escaped.encode() not in bytes(row.raw or b"")


# ---- what is shown -------------------------------------------------------------------------------------------------------------------

NASTY = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7|add:7 }}"


@pytest.mark.slow
def test_no_text_of_anybody_becomes_a_tag(house: House):
    """Every column of text of every row, as long as it holds the attack, and every page of the console as the administrator sees it."""
    written = 0
    for label in ("mapping", "templates_app", "channels_app", "escalation"):
        for model in apps.get_app_config(label).get_models():
            if model is Throttle:
                continue
            for field in model._meta.concrete_fields:
                kept = (
                    "kind",
                    "event",
                    "type",
                    "language",
                    "time_zone",
                    "via",
                    "email",
                    "password",
                    "progress",
                    "key_hash",
                    "hint",
                    "body_hash",
                )
                text = type(field) in (models.CharField, models.TextField) and not field.choices
                if not text or field.primary_key or field.name in kept or (field.max_length or 99) < len(NASTY) or field.unique:
                    continue
                model._default_manager.update(**{field.name: NASTY})
                written += 1
    for model, field in ((Workspace, "name"), (Team, "name"), (TemplateSet, "name"), (MappingTable, "name")):
        for row in model._default_manager.all():
            setattr(row, field, f"<script>{row.pk}"[:39])
            row.save(update_fields=[field])
    Incident.objects.update(labels={NASTY: NASTY})
    links = [{"text": NASTY, "href": "javascript:alert(1)"}]
    for incident in Incident.objects.all():
        incident.alerts.update(labels={NASTY: NASTY}, links=links)
    Event.objects.update(payload={"title_rule": NASTY, "links": links}, raw=NASTY.encode())
    TimelineEntry.objects.update(detail={"comment": NASTY, "as": NASTY})
    assert written > 25
    client, opened = house.client("administrator"), 0
    for model in MODELS:
        urls = [page(model, "changelist")]
        for pk in model._default_manager.values_list("pk", flat=True)[:3]:
            urls += [page(model, "change", pk), page(model, "history", pk), page(model, "delete", pk)]
        for url in (*urls, "/admin/", "/me/", "/sandbox/"):
            answer = client.get(url)
            if answer.status_code == 200:
                text = answer.content.decode()
                opened += 1
                assert "<script>alert" not in text and "<img src=x" not in text and not re.search(r"<script>\d", text), url
                assert 'href="javascript:' not in text, url
    assert opened > 60
    for incident in Incident.objects.all():
        text = client.get(f"/i/{hex_id(incident.created_at, incident.pk)}/").content.decode()
        assert "<script>alert" not in text and "<img src=x" not in text and "javascript:" not in text


def test_a_refusal_that_repeats_the_address_does_not_open_it_to_everybody(house: House):
    assert without_address("550 <Zhang@Example.com>: no such user", "zhang@example.com") == "550 <z***@example.com>: no such user"
    assert without_address("1234: 8613800138000 is barred", "+8613800138000") == "1234: +861****8000 is barred"
    assert without_address("member:7 is away", "member:7") == "member:7 is away"

    class Mail(transport.Transport):
        kind = "email"
        reach = "email"
        person = True
        format = "plain"

        def send(self, message: Any, address: str) -> Any:
            raise transport.DeliveryError(f"mail.example.com:25 refused the recipient: 550 {address} is unknown", permanent=True)

    now = db_now()
    incident = Incident.objects.get(workspace__team=house.own)
    channel = Channel.objects.create(kind="email", name="Mail", settings={})
    known = transport.transports()
    real = known["email"]
    known["email"] = Mail
    try:
        to = outbox.To(channel_id=channel.pk, target="secret.person@example.com", member_id=house.stranger.pk)
        with_title = {"title": "t", "id": hex_id(incident.created_at, incident.pk)}
        outbox.post(
            [outbox.Notice(event="triggered", severity="Info", context=with_title, to=(to,), is_page=False, topic=incident.pk)], now
        )
        outbox.run_once(now)
    finally:
        known["email"] = real
    row = Delivery.objects.get(channel=channel)
    assert row.state == "failed" and "s***@example.com is unknown" in row.reason and "secret.person" not in json.dumps(row.log)
    for url in (page(Incident, "change", incident.pk), page(Delivery, "change", row.pk), page(Delivery, "changelist")):
        assert "secret.person" not in house.client("viewer").get(url).content.decode(), url


def test_the_log_of_a_failure_names_the_page_and_not_the_link():
    handler = logging.config.DictConfigurator(dict(settings.LOGGING)).configure()
    del handler
    console = next(one for one in logging.getLogger().handlers if one.get_name() == "console" or one.filters)
    record = logging.LogRecord("django.request", 40, "x", 1, "%s: %s", ("Internal Server Error", "/i/1-2-3.abc:def.ghi/"), None)
    assert console.filter(record)
    assert record.getMessage() == "Internal Server Error: /i/…/"
    group = logging.LogRecord("django.request", 40, "x", 1, "%s", (f"/i/{'0' * 24}/",), None)
    assert console.filter(group) and group.getMessage() == f"/i/{'0' * 24}/"


# ---- what parsers die of -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"a": "\\u0000"}', '{"a": NaN}', '{"a": "\\ud800"}', "9" * 5000, "[" * 500 + "]" * 500]
)  # fmt: skip
def test_json_by_hand_is_refused_and_never_an_error_of_ours(house: House, text: str):
    space = Workspace.objects.get(team=house.own)
    rule, hook = space.escalationrules.get(), Channel.objects.get(team=house.own, kind="webhook")
    client = house.client("manager")
    incident = {"workspace": space.pk, "title": "Smoke", "severity": "Critical", "labels": text}
    form = {"name": "W", "team": house.own.pk, "status": "enabled", "position": 0}
    count = Incident.objects.count()
    assert client.post(page(Incident, "add"), incident).status_code == 200 and Incident.objects.count() == count
    assert client.post(page(EscalationRule, "change", rule.pk), rule_data(rule, filters=text)).status_code == 200
    assert client.post(page(Hook, "change", hook.pk), form | {"limits": text}).status_code == 200
    assert client.post(page(Hook, "change", hook.pk), form | {"set_headers": text}).status_code == 200
