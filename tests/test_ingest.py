"""The ingest doors as senders meet them: every answer in the envelope, everything accepted durable, never a 5xx of ours whatever the bytes."""

import gzip
import json
import re
import zlib
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from escalation import intake
from escalation.models import Alert, Event, Integration, Workspace
from flashduty.api import auth, ingest
from mapping.models import ApiKey, Member

STANDARD = "/event/push/alert/standard"
PROMETHEUS = "/event/push/alert/prometheus"
GOOD = {"title_rule": "disk full", "event_status": "Critical", "alert_key": "disk", "labels": {"host": "a"}}


@pytest.fixture
def integration(db):
    auth.forget()
    return Integration.objects.create(workspace=Workspace.objects.create(name="w"), name="i")


@pytest.fixture
def push(integration):
    return Push(integration)


class Push:
    """A sender with the integration's key."""

    def __init__(self, integration) -> None:
        self.key = integration.key
        self.client = Client(raise_request_exception=False)

    def __call__(self, body, path=STANDARD, key=None, content_type="application/json", **headers):
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode("utf-8", "surrogatepass")
        path = f"http://testserver{path}"
        url = f"{path}?integration_key={self.key if key is None else key}" if key != "" else path
        response = self.client.generic("POST", url, data, content_type=content_type, headers=headers)
        envelope = response.json()
        assert response["Content-Length"] == str(len(response.content)) and response["Content-Type"] == "application/json"
        assert re.fullmatch("[0-9a-f]{32}", envelope["request_id"])
        assert ("data" in envelope) == (response.status_code == 200) and ("error" in envelope) == (response.status_code != 200)
        return response.status_code, envelope.get("data") or envelope["error"]


def test_an_event_is_durable_and_its_key_answered(push):
    assert push(GOOD) == (200, {"alert_key": "disk"})
    event = Event.objects.get()
    assert (event.alert_key, event.status, event.outcome) == ("disk", "Critical", None)
    assert event.payload["title_rule"] == "disk full" and json.loads(bytes(event.raw)) == GOOD


def test_a_missing_key_is_made_up_and_returned(push):
    code, data = push({"title": "as Uptime Kuma sends it", "event_status": "Info", "alert_key": None, "description": None})
    assert code == 200 and Event.objects.get().alert_key == data["alert_key"] != ""


def test_the_integration_key_may_be_in_the_body(push):
    assert push(GOOD | {"integration_key": push.key}, key="")[0] == 200
    assert "integration_key" not in Event.objects.get().payload


@pytest.mark.parametrize("key", ["wrong", "x" * 5000, "\u4e2d", "%00"])
def test_a_wrong_key_is_refused(push, key):
    assert push(GOOD, key=key) == (
        401,
        {"code": "Unauthorized", "message": "integration_key is not valid: copy the push URL from the integration's page again."},
    )


def test_no_key_is_refused(push):
    assert push(GOOD, key="")[0] == 401 and push([GOOD], key="")[0] == 401 and push(GOOD | {"integration_key": 5}, key="")[0] == 401


def test_a_replaced_key_works_for_its_grace_period(push, integration):
    integration.rotate(timezone.now())
    auth.forget()
    assert push(GOOD)[0] == 200
    Integration.objects.update(old_key_until=timezone.now() - timedelta(seconds=1))
    auth.forget()
    assert push(GOOD)[0] == 401


def test_a_disabled_integration_says_so(push):
    Integration.objects.update(status="disabled")
    auth.forget()
    code, error = push(GOOD)
    assert (code, error["code"]) == (403, "AccessDenied") and "disabled" in error["message"]
    Integration.objects.update(status="deleted")
    auth.forget()
    assert push(GOOD)[0] == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"event_status": "Info"}, "title_rule"),
        ({"title_rule": "t"}, "event_status"),
        ({"title_rule": "t", "event_status": "critical"}, "event_status"),
        ({"title_rule": "t", "event_status": "Ok"}, "alert_key"),
        ({"title_rule": "t", "event_status": "Info", "labels": 5}, "labels"),
        ([], "body"),
        ([{}], "title_rule"),
        ([GOOD] * 501, "body"),
        ("{", "body"),
        ("", "body"),
        ("[" * 100_000, "body"),
        ("5", "body"),
        (b"\xff\xfe", "body"),
    ],
)
def test_what_is_wrong_is_named(push, body, field):
    code, error = push(body)
    assert (code, error["code"]) == (400, "InvalidParameter") and field in error["message"]
    assert not Event.objects.exists()


def test_a_list_takes_the_good_and_reports_the_bad(push):
    code, data = push([GOOD, {"title_rule": "no status"}, GOOD | {"alert_key": "two"}])
    assert code == 200 and [item.get("alert_key") for item in data["items"]] == ["disk", None, "two"]
    assert data["items"][1]["index"] == 1 and "event_status" in data["items"][1]["error"]
    assert list(Event.objects.order_by("id").values_list("alert_key", "raw")) == [("disk", None), ("two", None)]


def test_a_list_of_one_is_answered_as_a_list(push):
    assert push([GOOD]) == (200, {"items": [{"alert_key": "disk"}]})


def test_alertmanager_is_understood_from_firing_to_resolved(push):
    alert = {
        "status": "firing",
        "labels": {"alertname": "Up", "severity": "critical"},
        "annotations": {"summary": "down"},
        "fingerprint": "f1",
    }
    group = {"version": "4", "status": "firing", "alerts": [alert, alert | {"fingerprint": "f2"}]}
    assert push(group, PROMETHEUS) == (200, {"items": [{"alert_key": "f1"}, {"alert_key": "f2"}]})
    push({"version": "4", "alerts": [alert | {"status": "resolved"}]}, PROMETHEUS)
    assert intake.run_once(timezone.now()) == 3
    assert list(Alert.objects.order_by("id").values_list("alert_key", "title", "status")) == [
        ("f1", "down", "Ok"),
        ("f2", "down", "Critical"),
    ]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)])
def test_packed_bodies_are_unpacked(push, encoding, pack):
    assert push(pack(json.dumps(GOOD).encode()), **{"Content-Encoding": encoding})[0] == 200
    assert push(pack(json.dumps([GOOD] * 3).encode()), **{"Content-Encoding": encoding})[0] == 200


def test_bodies_have_caps(push):
    big = GOOD | {"description": "x" * (1 << 20)}
    assert push(big)[0] == 413
    assert push(gzip.compress(json.dumps(big).encode()), **{"Content-Encoding": "gzip"})[0] == 413
    assert push([big, big])[0] == 200  # a list may be larger; its texts are cut
    assert push(gzip.compress(json.dumps([big]).encode()), **{"Content-Encoding": "gzip"})[0] == 200
    assert push(b"[" + b" " * (16 << 20) + b"]")[0] == 413
    assert push(gzip.compress(b"[" + b" " * (100 << 20)), **{"Content-Encoding": "gzip"})[0] == 413
    assert Event.objects.count() == 3


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/json; charset=utf-8"])
def test_json_is_read_whatever_it_is_called(push, content_type):
    assert push(GOOD, content_type=content_type)[0] == 200


def test_a_form_is_refused_as_a_form(push):
    body = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    assert push(body, content_type="multipart/form-data; boundary=x")[1]["code"] == "InvalidContentType"


def test_only_post_and_no_redirect_ever(push):
    for path in (STANDARD + "/", "/" + STANDARD, "//" + STANDARD, STANDARD):
        assert push(GOOD, path)[0] == 200
        response = push.client.get(f"http://testserver{path}?integration_key={push.key}")
        assert (response.status_code, response.json()["error"]["code"]) == (400, "MethodNotAllowed")


def test_whatever_name_its_sender_knows_this_host_by(push):
    assert push(GOOD, Host="10.0.0.7:8000")[0] == 200


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(ingest, "time", clock)
    ingest._buckets.clear()
    return clock


def test_a_request_is_taken_whole_while_a_token_is_left(push, clock):
    Integration.objects.update(limit_per_second=10)
    assert push([GOOD] * 35)[0] == 200
    code, error = push(GOOD)
    assert (code, error["code"]) == (429, "RequestTooFrequently")
    response = push.client.post(f"{STANDARD}?integration_key={push.key}", json.dumps(GOOD), content_type="application/json")
    assert response["Retry-After"] == "3"
    clock.now += 2.4
    assert push(GOOD)[0] == 429
    clock.now += 0.2
    assert push(GOOD)[0] == 200 and push(GOOD)[0] == 429
    assert Event.objects.count() == 36


def test_both_limits_hold_and_the_prometheus_door_says_503(push, clock):
    Integration.objects.update(limit_per_second=100, limit_per_minute=120)
    assert push([GOOD] * 100)[0] == 200
    clock.now += 1
    assert push([GOOD] * 50)[0] == 200
    clock.now += 1
    code, error = push({"version": "4", "alerts": [{"status": "firing"}]}, PROMETHEUS)
    assert (code, error["code"]) == (503, "RequestTooFrequently")


def test_processes_share_a_limit(push, clock, settings):
    settings.WEB_PROCESSES = 4
    Integration.objects.update(limit_per_second=8)
    assert [push(GOOD)[0] for _n in range(4)] == [200, 200, 429, 429]
    clock.now += 0.5
    assert push(GOOD)[0] == 200


def test_one_accept_is_one_write_and_one_notify(push, tmp_path):
    push(GOOD)
    wire = connection.connection.pgconn
    with (tmp_path / "wire").open("w+") as seen:  # what really goes to the server: these statements pass Django's own cursors by
        wire.trace(seen.fileno())
        try:
            push(GOOD)
        finally:
            wire.untrace()
        seen.seek(0)
        statements = [line for line in seen if line.split("\t")[1:2] == ["F"] and line.split("\t")[3].split()[0] in ("Query", "Execute")]
    assert len(statements) == 1, statements  # the NOTIFY comes after the commit, which a test never reaches


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
names = st.sampled_from(
    ["title_rule", "title", "event_status", "alert_key", "description", "labels", "images", "alerts", "status", "annotations"]
)
bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(json.dumps),
    st.dictionaries(names, json_values | st.sampled_from(["Critical", "Ok", "firing", "\x00", "\ud800", 10**400]), max_size=8).map(
        json.dumps
    ),
    st.lists(st.dictionaries(names, json_values, max_size=5), max_size=4).map(json.dumps),
    st.dictionaries(names, json_values, max_size=5).map(
        lambda alert: json.dumps({"alerts": [alert, {"status": "firing", "labels": alert}]})
    ),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=bodies,
    path=st.sampled_from([STANDARD, PROMETHEUS]),
    encoding=st.sampled_from(["", "gzip", "deflate", "br", "\x7f"]),
    pack=st.booleans(),
    content_type=st.sampled_from(
        ["application/json", "text/xml", "multipart/form-data", "application/x-www-form-urlencoded", "a/b; charset=nope", ";"]
    ),
)
def test_never_a_5xx_whatever_the_bytes(push, body, path, encoding, pack, content_type):
    if pack and encoding == "gzip":
        body = gzip.compress(body if isinstance(body, bytes) else body.encode())
    headers = {"Content-Encoding": encoding} if encoding else {}
    code, _answer = push(body, path, content_type=content_type, **headers)
    assert code in (200, 400, 413)
    if code == 200:
        before = Event.objects.filter(outcome=None).count()
        assert before and intake.run_once(timezone.now()) == before
        assert not Event.objects.filter(outcome="failed").exists()


def test_an_app_key_is_found_in_query_and_headers(db, rf):
    member = Member.objects.create_user("a@example.com")
    _key, secret = ApiKey.issue(member, "k")
    for request in (
        rf.post(f"/x?app_key={secret}"),
        rf.post("/x", headers={"App-Key": secret}),
        rf.post("/x", headers={"Authorization": f"Bearer {secret}"}),
    ):
        assert auth.app_key(request, writes=True) == member
    first = ApiKey.objects.get().last_used_at
    assert first is not None and auth.app_key(request, writes=True) and ApiKey.objects.get().last_used_at == first
    for request in (rf.post("/x"), rf.post("/x?app_key=no"), rf.post("/x", headers={"Authorization": f"Basic {secret}"})):
        with pytest.raises(auth.ApiError) as caught:
            auth.app_key(request, writes=False)
        assert caught.value.status == 401
    ApiKey.objects.update(read_only=True)
    request = rf.post(f"/x?app_key={secret}")
    assert auth.app_key(request, writes=False) == member
    with pytest.raises(auth.ApiError) as caught:
        auth.app_key(request, writes=True)
    assert caught.value.status == 403
    Member.objects.update(is_active=False)
    with pytest.raises(auth.ApiError):
        auth.app_key(request, writes=False)


def test_a_probe_that_knows_only_our_address_is_answered(client, db):
    assert client.get("/healthz", headers={"Host": "10.1.2.3:8000"}).content == b"ok\n"
    assert client.get("/readyz", headers={"Host": "10.1.2.3:8000"}).json()["reasons"]  # no worker runs in this test, and it says so
    assert client.get("/admin/login/", headers={"Host": "10.1.2.3:8000"}).status_code == 400
