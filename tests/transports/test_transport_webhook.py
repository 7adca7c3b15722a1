"""The webhook against a sink that reads it as the documentation tells a receiver to."""

import hashlib
import hmac
import json

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transports.webhook import Webhook
from tests.fakes.message import page
from tests.fakes.server import Reply, Server

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(200, b"thanks")
REFUSED_IN_200 = None  # a 2xx of one's own endpoint is success, whatever it says
NEEDS_THE_BODY = False


def stage(base: str) -> dict:
    return {"url": f"{base}/hook/key-in-the-path?token=key-in-the-query", "method": "POST", "headers": {"Authorization": "Bearer key-in-a-header"}, "secret": "signing-key-1"}  # fmt: skip


@pytest.fixture
def sink():
    with Server() as running:
        yield running


def transport(sink, **settings) -> Webhook:
    return Webhook({"url": f"{sink.url}/hook", **settings}, Http(allowed_hosts=[sink.host]))


def test_the_default_body_is_the_documented_object(sink):
    assert transport(sink).send(page(text="", attempt=2, possible_repeat=True), "").state == "sent"
    seen = sink.seen[0]
    assert (seen.method, seen.path, seen.headers["content-type"]) == ("POST", "/hook", "application/json; charset=utf-8")
    assert seen.json() == {
        "delivery_id": "0d0f1b5e-5a43-4b52-9f0c-2f1d2a0c9f11",
        "attempt": 2,
        "possible_repeat": True,
        "event": "triggered",
        "title": "Database is down",
        "incident_id": "6553f0c00000000000000001",
        "num": "A1B2C3",
        "severity": "Critical",
        "layer_idx": 0,
        "url": "https://oncall.example.com/i/a1b2c3",
        "incidents": [
            {
                "id": "6553f0c00000000000000001",
                "title": "Database is down",
                "severity": "Critical",
                "event": "triggered",
                "possible_repeat": False,
            }
        ],
    }


def test_every_attempt_of_a_delivery_has_the_same_key(sink):
    for attempt in (1, 2):
        transport(sink).send(page(attempt=attempt), "")
    assert {seen.headers["idempotency-key"] for seen in sink.seen} == {"0d0f1b5e-5a43-4b52-9f0c-2f1d2a0c9f11"}
    assert [seen.headers["x-flashduty-attempt"] for seen in sink.seen] == ["1", "2"]


def test_the_signature_covers_time_and_body(sink):
    transport(sink, secret="s3cret-键").send(page(text="", title="数据库"), "")
    seen = sink.seen[0]
    assert seen.headers["x-flashduty-timestamp"] == "1700000000"
    expected = hmac.new("s3cret-键".encode(), b"1700000000." + seen.body, hashlib.sha256).hexdigest()
    assert seen.headers["x-flashduty-signature"] == f"v1={expected}"
    transport(sink).send(page(), "")
    assert "x-flashduty-signature" not in sink.seen[1].headers


def test_method_headers_and_a_body_of_ones_own(sink):
    channel = transport(sink, method="PUT", headers={"X-Team": "db", "content-type": "application/xml"}, body="<a>{{ title }}</a>")
    channel.send(page(text="<a>Database is down</a>"), "")
    seen = sink.seen[0]
    assert (seen.method, seen.body) == ("PUT", b"<a>Database is down</a>")
    assert (seen.headers["x-team"], seen.headers["content-type"]) == ("db", "application/xml")


@pytest.mark.parametrize(("text", "kind"), [('{"a": 1}', "application/json"), ("a=1", "text/plain")])
def test_the_content_type_follows_the_body(sink, text, kind):
    transport(sink).send(page(text=text), "")
    assert sink.seen[0].headers["content-type"].startswith(kind)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_is_success(sink, status):
    sink.answer = Reply(status, b"" if status == 204 else b"<html>")
    assert transport(sink).send(page(), "").detail == str(status)


def test_the_answer_of_a_refusal_is_told_without_secrets(sink):
    sink.answer = lambda seen: Reply(422, f"no field x in {seen.path} for {seen.headers['authorization']}")
    channel = Webhook(stage(sink.url), Http(allowed_hosts=[sink.host]))
    with pytest.raises(DeliveryError) as caught:
        channel.send(page(), "")
    assert caught.value.permanent and "no field x" in caught.value.text and "key-in" not in caught.value.text


def test_settings():
    good = {"url": "http://sink:9000/x", "headers": {"Authorization": "Bearer 1"}}
    form = Webhook.Settings(data=good)
    assert form.is_valid() and form.cleaned_data["method"] == "POST"
    assert Webhook.check({**good, "headers": '{"X-A": "1"}'}) == {}
    for name, value in {"url": "sink.example/x", "method": "DELETE", "headers": "[1]"}.items():
        assert name in Webhook.check({**good, name: value})


@pytest.mark.parametrize(
    "headers",
    [
        {"X-A": 1},
        {"X A": "1"},
        {"X-A": "1\r\nX-B: 2"},
        {"Content-Length": "3"},
        {"X-Flashduty-Signature": "v1=0"},
        {"": "x"},
        {"X-A": "中"},
    ],
)
def test_headers_that_cannot_be_sent_are_refused_when_saved(headers):
    assert "headers" in Webhook.check({"url": "https://sink.example/", "headers": json.dumps(headers)})
