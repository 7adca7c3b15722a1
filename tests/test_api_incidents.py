"""The Open API of incidents: answers hold against the reference's own description, and the traps its clients fall into are minded."""

import copy
import io
import json
import pathlib
import time

import jsonschema
import pytest
from django.core.handlers.wsgi import WSGIRequest
from django.test import RequestFactory
from django.urls import resolve

from escalation.ids import hex_id
from escalation.models import Incident, Workspace
from mapping.models import ApiKey
from templates_app.models import Template, TemplateSet
from tests.world import layer

pytestmark = pytest.mark.django_db
SPEC = json.loads((pathlib.Path(__file__).parent / "openapi" / "incidents.json").read_text())


def holds(path: str, answer: dict) -> None:
    """Raises unless `answer` is what the reference's description promises for 200 on `path`."""
    schema = copy.deepcopy(SPEC["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"])
    components = copy.deepcopy(SPEC["components"])
    # JSON Schema knows no discriminator: by `oneOf` alone a detail whose fields are all optional would be every kind of detail at once.
    detail = components["schemas"].get("IncidentFeedItem", {}).get("properties", {}).pop("detail")
    check(answer, schema, components)
    for item in answer["data"].get("items", ()) if path.endswith("/feed") else ():
        check(item["detail"], {"$ref": detail["discriminator"]["mapping"][item["type"]]}, components)


def check(value: object, schema: dict, components: dict) -> None:
    jsonschema.validate(value, {**schema, "components": components}, cls=jsonschema.Draft202012Validator)


@pytest.fixture
def api(world, client):
    lee = world.person("Lee", role="administrator")
    _key, secret = ApiKey.issue(lee, "test")
    world.rule(layer(lee))

    def call(path: str, body: object = None, *, status: int = 200, key: str = secret) -> dict:
        response = client.post(
            f"{path}?app_key={key}", json.dumps(body or {}).replace("Infinity", "1e999"), content_type="application/json"
        )
        assert response.status_code == status, response.content
        answer = response.json()
        assert answer["request_id"]
        if status == 200:
            assert "error" not in answer
            holds(path, answer)
            return answer["data"]
        assert answer["error"]["code"] and answer["error"]["message"]
        return answer["error"]

    world.lee, world.api = lee, call
    yield call
    world.do("close") if Incident.objects.exclude(progress="Closed").exists() else None
    world.fresh()


def whole(**extra: object) -> dict:
    now = int(time.time())
    return {"start_time": 1, "end_time": now + 10**6, **extra}


def test_an_incident_from_list_to_closed(world, api):
    world.alert("checkout is down", labels={"service": "checkout"})
    (item,) = api("/incident/list", whole())["items"]
    pk = item["incident_id"]
    assert item["title"] == "checkout is down" and item["progress"] == "Triggered" and item["num"]
    assert item["responders"][0]["person_id"] == world.lee.id
    assert item["assigned_to"]["escalate_rule_name"] == "Rule 0"
    assert api("/incident/info", {"incident_id": pk})["alerts"][0]["labels"] == {"service": "checkout"}
    assert api("/incident/info", {"num": item["num"]})["incident_id"] == pk
    assert api("/incident/ack", {"incident_ids": [pk]}) == {}
    assert api("/incident/info", {"incident_id": pk})["progress"] == "Processing"
    api("/incident/unack", {"incident_ids": [pk]})
    assert api("/incident/info", {"incident_id": pk})["progress"] == "Triggered"
    api("/incident/resolve", {"incident_ids": [pk], "root_cause": "a bad deploy"})
    info = api("/incident/info", {"incident_id": pk})
    assert (info["progress"], info["root_cause"], info["closer_id"]) == ("Closed", "a bad deploy", world.lee.id)


def test_the_feed_tells_who_was_told_and_what_became_of_it(world, api):
    world.alert("db down")
    world.ack(actor=world.lee)
    pk = hex_id(world.incident().created_at, world.incident().id)
    feed = api("/incident/feed", {"incident_id": pk, "asc": True, "limit": 100})
    kinds = [item["type"] for item in feed["items"]]
    assert kinds[0] == "i_new" and {"i_assign", "i_notify", "i_ack"} <= set(kinds)
    told = next(item["detail"] for item in feed["items"] if item["type"] == "i_notify")
    assert told["persons"] == [{"person_id": world.lee.id, "failed_reason": "", "by": "sandbox_app", "state": "delivered"}]
    assert feed["items"][0]["created_at"] > 10**12  # milliseconds
    assert [item["type"] for item in api("/incident/feed", {"incident_id": pk, "types": ["i_ack"]})["items"]] == ["i_ack"]


def test_pages_of_the_list_are_obeyed(world, api):
    for number in range(5):
        world.alert(f"alert {number}")
    first = api("/incident/list", whole(limit=2, p=0))  # p = 0 is the first page
    assert [item["title"] for item in first["items"]] == ["alert 4", "alert 3"] and first["has_next_page"] and first["total"] == 5
    assert [item["title"] for item in api("/incident/list", whole(limit=2, p=3))["items"]] == ["alert 0"]
    assert api("/incident/list", whole(limit=2, p=9))["items"] == []
    after = api("/incident/list", whole(limit=2, search_after_ctx=first["search_after_ctx"]))
    assert [item["title"] for item in after["items"]] == ["alert 2", "alert 1"]
    assert len(api("/incident/list", whole(limit=1000))["items"]) == 5
    assert [i["title"] for i in api("/incident/list", whole(incident_severity="Critical,Warning", query="ALERT 3"))["items"]] == ["alert 3"]
    for incident in Incident.objects.all():
        api("/incident/resolve", {"incident_ids": [hex_id(incident.created_at, incident.id)]})


def test_an_incident_made_by_hand(world, api):
    made = api("/incident/create", {"title": "by hand", "incident_severity": "Warning", "channel_id": world.workspace.id})
    world.settle()
    assert api("/incident/info", {"incident_id": made["incident_id"]})["creator"]["person_name"] == "Lee"
    world.expect(("Lee", "app", "triggered"))


def test_whom_an_incident_made_by_hand_is_given_to(world, api):
    """By id or e-mail and by which channels; or to a layer of a rule."""
    mary, boss = world.person("Mary", ["sandbox_app"]), world.person("Boss", ["sandbox_app"])
    world.channel("sandbox_voice")
    rule = world.rule(layer(mary), layer(boss))
    base = {"title": "by hand", "incident_severity": "Warning", "channel_id": world.workspace.id}

    def made(**to):
        api("/incident/create", base | {"assigned_to": to})
        world.settle()

    made(emails=["MARY@example.com"])
    world.expect(("Mary", "app", "triggered"))
    made(person_ids=[mary.id], emails=["boss@example.com"], notify={"personal_channels": ["voice"]})
    world.expect(("Mary", "voice", "triggered"), ("Boss", "voice", "triggered"))
    made(person_ids=[mary.id], notify={"personal_channels": ["voice"], "follow_preference": True})
    world.expect(("Mary", "app", "triggered"))
    made(escalate_rule_id=f"{rule.id:024x}", layer_idx=1)
    world.expect(("Boss", "app", "escalated"))
    texts = TemplateSet.objects.create(name="ours")
    Template.objects.create(template_set=texts, event="triggered", kind="plain", body="in our words")
    made(person_ids=[mary.id], notify={"template_id": f"{texts.id:024x}"})
    (page,) = world.expect(("Mary", "app", "triggered"))
    assert "in our words" in page.text


@pytest.mark.parametrize(
    ("to", "status", "names"),
    [
        ({"emails": ["nobody@example.com"]}, 400, "emails"),
        ({"person_ids": "x"}, 400, "person_ids"),
        ({"person_ids": [10**9]}, 400, "member"),
        ({"escalate_rule_id": "f" * 24}, 400, "escalate_rule_id"),
        ({"escalate_rule_id": f"{10**9:024x}"}, 400, "rule"),
        ({"notify": {"personal_channels": ["pigeon"]}}, 400, "pigeon"),
        ({"notify": {"template_id": f"{10**9:024x}"}}, 404, "template"),
        ({"notify": 5}, 400, "notify"),
        (7, 400, "assigned_to"),
    ],
)
def test_who_cannot_be_given_an_incident(world, api, to, status, names):
    body = {"title": "by hand", "incident_severity": "Warning", "channel_id": world.workspace.id, "assigned_to": to}
    assert names in api("/incident/create", body, status=status)["message"]
    assert not Incident.objects.exists()


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "names"),
    [
        ("/incident/info", {"incident_id": "0" * 24}, 404, "ResourceNotFound", "incident"),
        ("/incident/info", {"incident_id": "zz"}, 400, "InvalidParameter", "incident_id"),
        ("/incident/ack", {"incident_ids": ["f" * 24]}, 400, "InvalidParameter", "incident_ids"),
        ("/incident/ack", {"incident_ids": []}, 400, "InvalidParameter", "incident_ids"),
        ("/incident/ack", {}, 400, "InvalidParameter", "incident_ids"),
        ("/incident/list", {}, 400, "InvalidParameter", "start_time"),
        ("/incident/list", {"start_time": "x", "end_time": 5}, 400, "InvalidParameter", "start_time"),
        ("/incident/list", {"start_time": float("inf"), "end_time": 5}, 400, "InvalidParameter", "start_time"),
        ("/incident/list", {"start_time": 1, "end_time": 5, "limit": -float("inf")}, 400, "InvalidParameter", "limit"),
        ("/incident/create", {"incident_severity": "Huge", "title": "t"}, 400, "InvalidParameter", "severity"),
        ("/incident/create", {"incident_severity": "Info", "title": "t", "channel_id": 10**9}, 404, "ResourceNotFound", "channel"),
        ("/incident/feed", {"incident_id": "0" * 24}, 404, "ResourceNotFound", "incident"),
    ],
)
def test_bad_input_names_its_field(world, api, path, body, status, code, names):
    error = api(path, body, status=status)
    assert error["code"] == code and names in error["message"]


def test_a_batch_moves_all_of_its_incidents_or_none(world, api):
    """Of three, the one in the middle is closed."""
    for number in range(3):
        world.alert(f"alert {number}")
    ids = [hex_id(row.created_at, row.id) for row in Incident.objects.order_by("id")]
    api("/incident/resolve", {"incident_ids": ids[1:2]})
    error = api("/incident/ack", {"incident_ids": ids}, status=400)
    assert ids[1] in error["message"] and "closed" in error["message"]
    assert [row.progress for row in Incident.objects.order_by("id")] == ["Triggered", "Closed", "Triggered"]
    assert api("/incident/ack", {"incident_ids": [ids[2], ids[0], ids[2]]}) == {}
    api("/incident/resolve", {"incident_ids": ids})


def test_a_body_that_comes_in_chunks_is_read(world, api):
    world.alert("checkout is down")
    incident = world.incident()
    sent = json.dumps({"incident_ids": [hex_id(incident.created_at, incident.id)]}).encode()

    def push(sent: bytes) -> dict:
        _key, secret = ApiKey.issue(world.lee, "chunks")
        environ = RequestFactory(HTTP_TRANSFER_ENCODING="chunked", HTTP_APP_KEY=secret)._base_environ(REQUEST_METHOD="POST")
        return json.loads(resolve("/incident/ack").func(WSGIRequest(environ | {"wsgi.input": io.BytesIO(sent)})).content)

    assert push(sent)["data"] == {}
    assert world.incident().progress == "Processing"
    assert push(sent + b" " * (1 << 20))["error"]["code"] == "RequestEntityTooLarge"


def test_keys_and_what_their_members_may_see(world, api, client):
    assert api("/incident/list", whole(), status=401, key="wrong")["code"] == "Unauthorized"
    kim = world.person("Kim", [])
    _key, reads = ApiKey.issue(kim, "reads", read_only=True)
    world.alert("secret things")
    pk = hex_id(world.incident().created_at, world.incident().id)
    assert api("/incident/ack", {"incident_ids": [pk]}, status=403, key=reads)["code"] == "AccessDenied"
    assert len(api("/incident/list", whole(), key=reads)["items"]) == 1
    Workspace.objects.update(is_private=True, team=world.team("Others"))
    assert api("/incident/list", whole(), key=reads)["items"] == []
    assert api("/incident/info", {"incident_id": pk}, status=404, key=reads)
    client.force_login(kim)
    assert client.post("/incident/list", whole(), content_type="application/json").status_code == 401  # a session opens nothing here
    assert (
        client.post(f"http://testserver//incident/list/?app_key={reads}", json.dumps(whole()), content_type="application/json").status_code
        == 200
    )


def test_the_description_names_every_door_as_clients_call_it(client):
    answer = client.get("/api/schema/", headers={"Accept": "application/vnd.oai.openapi+json"})
    paths = answer.json()["paths"]
    assert {"/incident/list", "/incident/feed", "/event/push/alert/standard", "/event/push/alert/prometheus"} <= set(paths)
    assert paths["/incident/ack"]["post"]["requestBody"] and not any(path.endswith("/") for path in paths)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800"])
@pytest.mark.parametrize("field", ["query", "nums", "progress", "incident_severity"])
def test_text_that_the_database_cannot_hold_finds_nothing(api, field, text):
    for value in (text, [text]) if field != "query" else (text,):
        assert api("/incident/list", whole(**{field: value}))["items"] == []
    assert api("/incident/info", {"num": text}, status=404)["code"] == "ResourceNotFound"


def test_a_page_beyond_every_number_is_empty(api):
    for page in (2**62, 1e18):
        assert api("/incident/list", whole(p=page))["items"] == []


def test_a_description_that_is_too_long_is_cut_and_not_refused(api, world):
    api("/incident/create", {"title": "t", "incident_severity": "Info", "channel_id": world.workspace.id, "description": "d" * 6000})
    assert len(Incident.objects.get().description) == 4096
