"""SMS by HTTP: templates that no text can break, success as the operator defines it, receipts in the gateway's own words; Kannel's sendsms."""

import base64
import json
from datetime import UTC, datetime
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transport import Callback
from channels_app.transports.sms_http import SmsHttp
from tests.fakes.message import page
from tests.fakes.server import Reply, Server
from tests.fakes.sms_http import Sendsms

ADDRESS = PHONE = "+8613800000000"
CALLBACK = "https://oncall.example.com/callback/c0ffee/"
ACCEPTED = Reply(200, {"status": "ok", "messages": [{"id": "m-17", "status": 0}]})
REFUSED_IN_200 = Reply(200, {"status": "error", "text": "no credit"})
NEEDS_THE_BODY = True
HOSTILE = '{to}{password}"\\&to=+1999;%00 %d\r\n<@all> 数据库 😀 \u202egnp'


def stage(base: str) -> dict:
    return {
        "url": f"{base}/send",
        "method": "json",
        "template": '{"to": ["{to}"], "body": {"text": "{text}", "key": "{password}"}, "ref": "{id}", "n": 1}',
        "password": "a-long-secret-key",
        "headers": {"X-Api-Key": "another-secret-key"},
        "success_rule": "json",
        "success_value": "messages.0.status = 0",
        "message_id": "$.messages.0.id",
        "final_pattern": "(?i)invalid number|blacklist",
    }


def cleaned(**settings) -> dict:
    form = SmsHttp.Settings(data=settings)
    assert form.is_valid(), form.errors
    return form.cleaned_data


def sender(base: str, callback: str = CALLBACK, **settings) -> SmsHttp:
    return SmsHttp(cleaned(**{**stage(base), **settings}), Http(allowed_hosts=[urlsplit(base).netloc]), callback)


def kannel(centre: Sendsms, **settings) -> SmsHttp:
    wanted = {"preset": "kannel", "url": centre.place, "user": centre.user, "password": centre.password, "sender": "10690", **settings}
    return SmsHttp(cleaned(**wanted), Http(allowed_hosts=[centre.host]), CALLBACK)


@pytest.fixture
def gateway():
    with Server(ACCEPTED) as server:
        yield server


@pytest.fixture
def centre():
    with Sendsms() as server:
        yield server


def refusal(channel: SmsHttp, **changes) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        channel.send(page(**changes), PHONE)
    return caught.value


# --- templates ---------------------------------------------------------------------------------------------------------------------


def test_json_keeps_its_structure_whatever_the_text(gateway):
    receipt = sender(gateway.url).send(page(text=HOSTILE), PHONE)
    assert receipt.message_id == "m-17" and receipt.state == "sent"
    assert gateway.seen[0].json() == {
        "to": [PHONE], "body": {"text": HOSTILE, "key": "a-long-secret-key"}, "ref": page().delivery_id, "n": 1,
    }  # fmt: skip
    assert gateway.seen[0].headers["x-api-key"] == "another-secret-key"


@pytest.mark.parametrize("method", ["query", "form"])
def test_query_and_form_keep_their_fields_whatever_the_text(gateway, method):
    template = "phone={to}&msg={text}&from={from}&ref={id}&c={coding}"
    sender(gateway.url, method=method, template=template, sender="A&B", number_format="digits").send(page(text=HOSTILE), PHONE)
    seen = gateway.seen[0]
    sent = urlsplit(seen.path).query if method == "query" else seen.body.decode("ascii")
    assert parse_qsl(sent, keep_blank_values=True, strict_parsing=True) == [
        ("phone", "8613800000000"), ("msg", HOSTILE), ("from", "A&B"), ("ref", page().delivery_id), ("c", "2"),
    ]  # fmt: skip
    assert seen.method == ("GET" if method == "query" else "POST")
    assert method == "query" or seen.headers["content-type"] == "application/x-www-form-urlencoded"


def test_the_path_takes_placeholders_too(gateway):
    sender(gateway.url, url=f"{gateway.url}/v1/{{user}}/to/{{to}}/", user="a/../b", template='{"t": "{text}"}').send(page(), PHONE)
    assert gateway.seen[0].path == "/v1/a%2F..%2Fb/to/%2B8613800000000/"


@pytest.mark.parametrize(("form", "number"), [("plus", PHONE), ("digits", PHONE[1:]), ("zeros", f"00{PHONE[1:]}")])
@pytest.mark.parametrize("address", [PHONE, PHONE[1:]])
def test_numbers_as_the_gateway_wants_them(gateway, form, number, address):
    sender(gateway.url, number_format=form).send(page(), address)
    assert gateway.seen[0].json()["to"] == [number]


def test_user_and_password_as_basic_authentication(gateway):
    sender(gateway.url, basic_auth=True, user="us:er", password="pä ss").send(page(), PHONE)
    assert gateway.seen[0].headers["authorization"] == "Basic " + base64.b64encode("us:er:pä ss".encode()).decode()


def test_a_long_text_is_shortened_and_keeps_its_link(gateway):
    channel = sender(gateway.url, most_parts=2)
    assert channel.send(page(text="Disk is full. " * 100), PHONE).detail == "shortened to 2 parts"
    text = gateway.seen[0].json()["body"]["text"]
    assert len(text) <= 306 and text.endswith(f"... {page().url}")
    assert channel.send(page(text="short"), PHONE).detail == ""
    assert "1 SMS part" in SmsHttp.measure("short")


# --- success and refusal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "value", "good", "bad"),
    [
        ("contains", "OK", "0 OK 17", "ERR 1"),
        ("regex", r"^OK \d+$", "OK 17", "NOT OK 17"),
        ("json", "status = ok", '{"status": "ok"}', '{"status": "failed"}'),
        ("json", 'a.1.code = "0"', '{"a": [{}, {"code": "0"}]}', '{"a": [{"code": "0"}]}'),
        ("json", "$.success = true", '{"success": true}', '{"success": "yes"}'),
        ("json", "0.sent = 1", '[{"sent": 1}]', "[]"),
    ],
)
def test_what_success_is(gateway, rule, value, good, bad):
    channel = sender(gateway.url, success_rule=rule, success_value=value, message_id="")
    gateway.answer = Reply(200, good)
    assert channel.send(page(), PHONE).message_id == page().delivery_id
    gateway.answer = Reply(200, bad)
    error = refusal(channel)
    assert not error.permanent and not error.left and bad[:6] in error.text and "success" in error.text


def test_only_the_named_statuses_are_success(gateway):
    channel = sender(gateway.url, success_status="202, 210-219", success_rule="")
    for status, good in ((202, True), (215, True), (200, False), (201, False)):
        gateway.answer = Reply(status, ACCEPTED.body)
        if good:
            channel.send(page(), PHONE)
        else:
            assert not refusal(channel).permanent
    gateway.answer = Reply(400, "bad number")
    assert refusal(channel).permanent
    odd = sender(gateway.url, success_status="400", success_rule="contains", success_value="bad", message_id="")
    assert odd.send(page(), PHONE).state == "sent", "who calls a 400 success, has it"


@pytest.mark.parametrize("status", [200, 500])
def test_a_refusal_that_no_other_try_can_help(gateway, status):
    gateway.answer = Reply(status, {"error": "Invalid number +8613800000000"})
    error = refusal(sender(gateway.url))
    assert error.permanent and "Invalid number" in error.text


@pytest.mark.parametrize(
    ("rule", "body", "found"),
    [
        ("$.id", '{"id": 4711}', "4711"),
        (r"ID:\s*(\S+)", "Status: OK\nID: a-b-中", "a-b-中"),
        (r"ID:\s*(\S+)", "no id here", None),
        ("$.a.b", '{"a": 1}', None),
    ],
)
def test_the_id_in_the_answer(gateway, rule, body, found):
    gateway.answer = Reply(200, body)
    assert sender(gateway.url, success_rule="", message_id=rule).send(page(), PHONE).message_id == (found or page().delivery_id)


# --- receipts ----------------------------------------------------------------------------------------------------------------------


def receipt(method="GET", query=None, body=b"", **headers) -> Callback:
    return Callback(method, CALLBACK, query or {}, headers, body, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    "callback",
    [
        receipt(query={"mid": "m-17", "st": "UNDELIV", "reason": "absent subscriber"}),
        receipt("POST", body=b"mid=m-17&st=undeliv&reason=absent+subscriber"),
        receipt("POST", {"mid": "m-17"}, json.dumps({"st": "UNDELIV", "reason": "absent subscriber"}).encode()),
        receipt("POST", body=json.dumps([{"mid": "m-17", "st": "UNDELIV", "reason": "absent subscriber"}]).encode()),
    ],
)
def test_a_receipt_in_every_form(gateway, callback):
    heard = sender(gateway.url, receipt_id="mid", receipt_status="st").receive(callback)
    (update,) = heard.said
    assert (update.message_id, update.state) == ("m-17", "failed") and "absent subscriber" in update.reason and heard.status == 200


def test_words_of_receipts(gateway):
    channel = sender(gateway.url, receipt_id="d.id", receipt_status="d.s", delivered_words="1, done", failed_words="2")
    for word, state in ((1, "delivered"), ("DONE", "delivered"), (2, "failed"), ("4", None), (None, None)):
        said = channel.receive(receipt("POST", body=json.dumps({"d": {"id": 7, "s": word}}).encode())).said
        assert [update.state for update in said] == [state] * bool(state)


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"[]", b"[1]", b"[" * 5000, b'{"id": {}}', b"status=DELIVRD"])
def test_a_receipt_of_nothing(gateway, body):
    with pytest.raises(ValueError):
        sender(gateway.url).receive(receipt("POST", body=body))


# --- Kannel ------------------------------------------------------------------------------------------------------------------------


def test_kannel_by_its_preset(centre):
    told = kannel(centre).send(page(text="数据库 is down & {to}"), PHONE)
    (said,) = centre.said
    assert said["text"] == "数据库 is down & {to}" and said["to"] == PHONE and said["coding"] == "2" and said["from"] == "10690"
    # What Kannel calls back: its own escapes come through both encodings, and our id is the id of the receipt.
    assert said["dlr-url"] == f"{CALLBACK}?id={page().delivery_id}&status=%d&reason=%A" and said["dlr-mask"] == "19"
    assert told.message_id == page().delivery_id


@pytest.mark.parametrize(("mask", "state"), [("1", "delivered"), ("2", "failed"), ("16", "failed"), ("8", None)])
def test_kannels_receipts(centre, mask, state):
    url = f"{CALLBACK}?id={page().delivery_id}&status={mask}&reason=id%3A1+stat%3AUNDELIV"
    said = kannel(centre).receive(receipt(query={name: values[0] for name, values in parse_qs(urlsplit(url).query).items()})).said
    assert [(update.message_id, update.state) for update in said] == [(page().delivery_id, state)] * bool(state)


def test_kannels_answers(centre):
    centre.queued = True
    assert kannel(centre).send(page(text="plain"), PHONE).state == "sent"
    assert centre.said[0]["coding"] == "0"
    centre.full = True
    assert not refusal(kannel(centre)).permanent
    error = refusal(kannel(centre, password="wrong"))
    assert error.permanent and error.config and "Authorization failed" in error.text


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("url", {"url": "gateway.example/x"}),
        ("url", {"url": "http://{user}.example/x"}),
        ("url", {"url": "https://gateway.example/x?to=1"}),
        ("url", {"url": "https://gateway.example/{nobody}"}),
        ("template", {"template": "to={to}"}),
        ("template", {"template": '{"to": "{to}", "text": {text}}'}),
        ("template", {"template": '{"to": "{to}"}'}),
        ("template", {"template": '{"to": "{to}", "text": "{text}", "x": "{number}"}'}),
        ("template", {"method": "form", "template": "to={to}&text={text}&x=a b"}),
        ("template", {"template": ""}),
        ("user", {"template": '{"to": "{to}", "text": "{text}", "u": "{user}"}'}),
        ("password", {"password": ""}),
        ("headers", {"headers": '{"Host": "x"}'}),
        ("headers", {"headers": "[1]"}),
        ("success_status", {"success_status": "OK"}),
        ("success_value", {"success_value": ""}),
        ("success_value", {"success_value": "status"}),
        ("success_value", {"success_rule": "regex", "success_value": "("}),
        ("final_pattern", {"final_pattern": "(?=x)"}),
        ("message_id", {"message_id": r"ID: \d+"}),
        ("receipt_query", {"receipt_query": "id={text}"}),
    ],
)
def test_settings_that_cannot_work_are_refused(field, change):
    assert field in SmsHttp.check({**stage("https://gateway.example"), **change})


def test_settings_that_work():
    assert SmsHttp.check(stage("http://gateway:8080")) == {}
    assert SmsHttp.check({"preset": "kannel", "url": "http://kannel:13013/cgi-bin/sendsms", "user": "u", "password": "p"}) == {}
    assert SmsHttp.check({"url": "https://gateway.example/{to}/{text}", "template": "", "method": "query"}) == {}
