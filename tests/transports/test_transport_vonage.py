"""Vonage against an application as strict as the real one; tokens in both directions against PyJWT."""

import base64
import hashlib
import hmac
from datetime import datetime

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from channels_app import outbox
from channels_app.http import DeliveryError, Http
from channels_app.models import Channel, Delivery
from channels_app.transport import Callback, Polls, Receives, Update
from channels_app.transports.vonage import VonageVoice, check_token, signed, spoken
from mapping.clock import db_now
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply
from tests.fakes.vonage import APPLICATION, KEY, PEM, SECRET, FakeVonage, token_for
from tests.test_outbox import scene  # noqa: F401  (a fixture)

NOW = SENT_AT.timestamp()
PHONE = "+15005550006"
HOOK = "https://oncall.example.com/callback/Zm9vYmFyYmF6cXV4/"
SETTINGS = {
    "application_id": APPLICATION,
    "private_key": PEM,
    "signature_secret": SECRET,
    "numbers": "+1 415 555 0100\nCN: +86 571 8888 1234",
}

ACCEPTED = Reply(
    201, {"uuid": "63f61863-4a51-4f6b-86e1-46edebcf9356", "status": "started", "direction": "outbound", "conversation_uuid": "CON-1"}
)
REFUSED_IN_200 = Reply(200, {"title": "Unauthorized", "detail": "You did not provide correct credentials."})
NEEDS_THE_BODY = True
ADDRESS = PHONE


def stage(base: str) -> dict:
    return {**SETTINGS, "api_base": base}


@pytest.fixture(scope="module")
def running():
    with FakeVonage(now=NOW) as account:
        yield account


@pytest.fixture
def account(running):
    running.__dict__.update(now=NOW, used=set(), calls=[], states={}, seen=[], answer=running._judge)
    return running


def voice(account, hook=HOOK, **settings) -> VonageVoice:
    return VonageVoice({**stage(account.url), **settings}, Http(allowed_hosts=[account.host]), hook)


def refused(channel, message=None, to=PHONE) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        channel.send(message or page(), to)
    return caught.value


# ---- a call ----------------------------------------------------------------------------------------------------------------------------


def test_a_call_says_its_text_twice_in_the_persons_language(account):
    receipt = voice(account).send(page(text="您有一个严重故障", language="zh-hans"), "+8613800000000")
    assert (receipt.state, receipt.message_id) == ("sent", next(iter(account.states)))
    (call,) = account.calls
    assert call["ncco"] == [{"action": "talk", "text": "您有一个严重故障", "language": "cmn-CN", "loop": 2}]
    assert (call["to"], call["from"]) == ([{"type": "phone", "number": "8613800000000"}], {"type": "phone", "number": "8657188881234"})
    assert call["event_url"] == [HOOK] and "machine_detection" not in call


def test_reports_are_asked_for_only_where_they_can_be_proven(account):
    voice(account, signature_secret="").send(page(), PHONE)
    voice(account, "https://10.0.0.1/callback/x/").send(page(), PHONE)
    voice(account, machine_detection=True).send(page(), PHONE)
    assert ["event_url" in call for call in account.calls] == [False, False, True]
    assert account.calls[2]["machine_detection"] == "continue"


@pytest.mark.parametrize("words", ["<speak><break time='9s'/>x</speak>", "a\x00b\ud800c", "字" * 5000, "alarm " * 1000, "😀 & \"'", ""])
def test_any_text_is_spoken_as_words(account, words):
    voice(account).send(page(text=words), PHONE)
    assert len(account.calls) == 1


def test_a_long_text_ends_at_a_word():
    assert spoken("alarm number " * 300).endswith(("alarm", "number")) and len(spoken("字" * 5000)) == 1500


# ---- refusals --------------------------------------------------------------------------------------------------------------------------


def test_what_the_application_refuses_comes_with_advice(account):
    other = rsa.generate_private_key(65537, 2048)
    pem = other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    error = refused(voice(account, private_key=pem))
    assert (error.permanent, error.config) == (True, True) and "do not belong together" in error.text
    account.now = NOW + 3600
    assert "clock" in refused(voice(account)).text
    account.now = NOW
    assert "may not call this country" in refused(voice(account), to="+99912345678").text
    assert "rented from Vonage" in refused(voice(account, numbers="+1 415 555 0199")).text
    assert "no number" in refused(voice(account, numbers="CN: +86 571 8888 1234")).text
    assert "paste it anew" in refused(voice(account, private_key="gone")).text
    assert account.calls == []


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(402, {"title": "Payment required"}), True, False),
        (Reply(429, {"title": "Too many requests"}), False, False),
        (Reply(500, {"title": "Internal"}), False, False),
        (Reply(201, {"status": "started"}), False, True),
        (Reply(201, {"uuid": None}), False, True),
    ],
)
def test_answers_nobody_expected(account, reply, permanent, left):
    account.answer = reply
    error = refused(voice(account))
    assert (error.permanent, error.left) == (permanent, left)


# ---- tokens ----------------------------------------------------------------------------------------------------------------------------


def test_our_tokens_are_read_by_an_independent_library():
    claims = {"application_id": APPLICATION, "iat": 1, "exp": 2, "jti": "x"}
    token = signed(claims, PEM)
    assert jwt.decode(token, KEY.public_key(), algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}) == claims
    assert jwt.get_unverified_header(token) == {"alg": "RS256", "typ": "JWT"}


def heard(body: bytes, token: str, at: datetime = SENT_AT) -> Callback:
    return Callback("POST", HOOK, {}, {"authorization": f"Bearer {token}"}, body, at)


def test_the_vector_of_another_implementation_holds():
    body = b'{"dtmf":{"digits":"1","timed_out":false},"uuid":"u-1"}'
    token = (
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpYXQiOjE3MDAwMDAwMDAsImp0aSI6ImoxIiwiaXNzIjoiVm9uYWdlIiwicGF5bG9hZF9oYXNoIjoiMjk2YWYyODBhMjg1N"
        "GQzZGI0NWM5MzA3NGE1ODM1NGE5MzRmZTU0YTM2YjYwODZiMTJhOTU4ZjZiOGU5NWQ5MCIsImFwaV9rZXkiOiJhYmNkMTIzNCIsImFwcGxpY2F0aW9uX2lkIjoiMDAwMDAwMDAtMD"
        "AwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwIn0.I7n6kVr98SWjJ1cQnvBPGPBpjrOLPPMi1iZfAWnkurA"
    )
    check_token(heard(body, token), "demo_vonage_signature_secret", APPLICATION)
    for secret, application, said in (("x", APPLICATION, body), ("demo_vonage_signature_secret", "1" * 36, body), ("demo_vonage_signature_secret", APPLICATION, body + b" ")):  # fmt: skip
        with pytest.raises(PermissionError):
            check_token(heard(said, token), secret, application)


@pytest.mark.parametrize(
    ("token", "words"),
    [
        (lambda body: token_for(body, NOW - 301), "five minutes"),
        (lambda body: token_for(body, NOW + 301), "five minutes"),
        (lambda body: token_for(body, NOW, iat=float("nan")), "five minutes"),
        (lambda body: token_for(body, NOW, iat="soon"), "malformed"),
        (lambda body: token_for(body, NOW, payload_hash=""), "another body"),
        (lambda body: token_for(body, NOW, application_id="x"), "another application"),
        (lambda body: token_for(body, NOW, "another_secret_of_at_least_32_bytes"), "does not hold"),
        (lambda body: jwt.encode({"iat": int(NOW)}, SECRET * 2, algorithm="HS512"), "does not hold"),
        (lambda body: jwt.encode({"iat": int(NOW)}, None, algorithm="none"), "does not hold"),
        (lambda body: "a.b.c", "does not hold"), (lambda body: "", "does not hold"), (lambda body: "é.ü.ß", "does not hold"),
    ],
)  # fmt: skip
def test_a_token_that_is_not_vonages_is_refused(account, token, words):
    body = b'{"uuid":"u-1","status":"answered"}'
    with pytest.raises(PermissionError, match=words):
        voice(account).receive(heard(body, token(body)))


def test_without_a_secret_nobody_is_believed(account):
    """Whoever signs with the empty secret is nobody."""
    body = b'{"uuid":"u-1","status":"answered"}'
    head = token_for(body, NOW).rpartition(".")[0]
    mac = base64.urlsafe_b64encode(hmac.new(b"", head.encode(), hashlib.sha256).digest()).rstrip(b"=").decode()
    with pytest.raises(PermissionError):
        voice(account, signature_secret="").receive(heard(body, f"{head}.{mac}"))


def test_an_event_may_be_five_minutes_old(account):
    body = b'{"uuid":"u-1","status":"answered"}'
    for seconds in (-299, 299):
        assert voice(account).receive(heard(body, token_for(body, NOW + seconds))).status == 204


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"uuid":1,"status":"x"}', b"\xff", b'"x"', b"[" * 100_000])
def test_what_is_signed_but_no_event_makes_no_sense(account, body):
    with pytest.raises(ValueError):
        voice(account).receive(heard(body, token_for(body, NOW)))


# ---- what became of it -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "plain", "detecting"),
    [
        ("started", None, None), ("ringing", None, None), ("something-new", None, None), ("answered", "delivered", None),
        ("human", "delivered", "delivered"), ("machine", "failed", "failed"), ("completed", "delivered", None), ("busy", "failed", "failed"),
        ("rejected", "failed", "failed"), ("unanswered", "failed", "failed"), ("timeout", "failed", "failed"),
        ("cancelled", "failed", "failed"), ("failed", "failed", "failed"),
    ],
)  # fmt: skip
def test_what_became_of_a_call(account, status, plain, detecting):
    body = f'{{"uuid":"u-1","status":"{status}"}}'.encode()
    for channel, state in ((voice(account), plain), (voice(account, machine_detection=True), detecting)):
        said = channel.receive(heard(body, token_for(body, NOW))).said
        assert [(one.message_id, one.state, bool(one.reason)) for one in said] == ([("u-1", state, state == "failed")] if state else [])


def test_vonage_is_asked_where_it_cannot_call(account):
    channel = voice(account, machine_detection=True)
    for _turn in range(4):
        channel.send(page(), PHONE)
    ids = list(account.states)
    account.states.update(zip(ids, ("ringing", "completed", "busy", "machine"), strict=True))
    said = channel.poll([*ids, "u-unknown"])
    assert [(one.message_id, one.state) for one in said] == [(ids[1], "delivered"), (ids[2], "failed"), (ids[3], "failed")]
    assert channel.poll([]) == []
    account.answer = Reply(503)
    with pytest.raises(DeliveryError):
        channel.poll(ids)
    assert isinstance(channel, Polls) and isinstance(channel, Receives)
    assert isinstance(said[0], Update)


@pytest.mark.parametrize(
    ("status", "state"), [("answered", "delivered"), ("busy", "failed"), ("unanswered", "failed"), ("machine", "failed")]
)
def test_from_the_page_to_the_row_through_the_door(scene, account, client, settings, status, state):  # noqa: F811
    settings.BASE_URL = "https://oncall.example.com"
    scene.now, account.now = db_now(), None
    channel = Channel.objects.create(kind="vonage_voice", name="calls", settings=stage(account.url), allowed_hosts=[account.host], fallback_kinds=["sandbox_sms"])  # fmt: skip
    play = Channel.objects.create(kind="sandbox_sms", name="play")
    scene.page(outbox.To(channel.id, PHONE, scene.lee.id))
    scene.run()
    (url,) = account.calls[0]["event_url"]
    event = account.event(url, scene.now.timestamp(), uuid=next(iter(account.states)), status=status)
    assert client.post(event.pop("path"), **event).status_code == 204
    assert Delivery.objects.get(channel=channel).state == state
    stranger = account.event(url, scene.now.timestamp(), secret="a_secret_that_is_not_the_accounts", uuid="u", status="answered")
    assert client.post(stranger.pop("path"), **stranger).status_code == 403
    scene.run(60)
    assert Delivery.objects.filter(channel=play).exists() == (state == "failed")


# ---- settings --------------------------------------------------------------------------------------------------------------------------


def _pem(key, *, password: bytes = b"") -> str:
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock).decode()


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"application_id": "abcd1234"}, "application_id", "API key is something else"),
        ({"private_key": "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----"}, "private_key", "whole file"),
        ({"private_key": _pem(ec.generate_private_key(ec.SECP256R1()))}, "private_key", "whole file"),
        ({"private_key": _pem(KEY, password=b"x")}, "private_key", "without a password"),
        ({"numbers": "abc"}, "numbers", "country code"),
        ({"api_base": "http://api.nexmo.com"}, "api_base", "https"),
    ],
)
def test_settings_that_cannot_work_say_what_to_enter(change, field, words):
    assert words in " ".join(VonageVoice.check({**SETTINGS, **change})[field])


def test_settings_that_work():
    form = VonageVoice.Settings(data={**SETTINGS, "private_key": PEM.replace("\n", "\r\n"), "application_id": APPLICATION.upper()})
    assert form.is_valid() and form.cleaned_data["api_base"] == "https://api.nexmo.com"
    assert VonageVoice.check({**SETTINGS, "signature_secret": ""}) == {}
