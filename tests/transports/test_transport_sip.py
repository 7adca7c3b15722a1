"""Calls to a trunk that is strict about RFC 3261: what is heard, how each call ends, and who may be sent sound."""

import array
import math
import re
import threading
import time
import wave

import pytest

from channels_app import http, speech
from channels_app.http import DeliveryError, Http
from channels_app.transports import sip
from channels_app.transports.sip import ENDS, Sip
from tests.fakes.message import page
from tests.fakes.server import until
from tests.fakes.sip import Trunk, settings_for
from tests.fakes.tls import authority

PHONE = "+8613800000000"
SAYS = '#!/bin/sh\ncat > $0.text\necho "$2 $4" > $0.voice\ncp $0.wav "$8"\n'


@pytest.fixture(autouse=True)
def fresh(settings, tmp_path, monkeypatch):
    """A run folder, an espeak-ng that hums for a moment, and less patience."""
    settings.RUN_DIR = tmp_path / "run"
    hum(tmp_path, monkeypatch)
    for name in ("LEAD", "PAUSE", "TAIL"):
        monkeypatch.setattr(speech, name, 0.02)
    monkeypatch.setattr(sip, "T1", 2.0)  # what is sent again because a busy machine answers late counts as a second request
    speech.spoken.cache_clear()
    yield

    def calls():
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("call ")]

    assert until(lambda: not calls()), calls()


def hum(folder, monkeypatch, seconds=0.04, script=SAYS) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "espeak-ng"
    program.write_text(script)
    program.chmod(0o755)
    with wave.open(f"{program}.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(22_050)
        file.writeframes(
            array.array("h", [round(12_000 * math.sin(2 * math.pi * 440 * at / 22_050)) for at in range(int(22_050 * seconds))]).tobytes()
        )
    monkeypatch.setenv("PATH", f"{folder}/bin:/usr/bin:/bin")


@pytest.fixture
def trunk():
    with Trunk() as running:
        yield running
        assert running.faults == [] and running.heard.faults() == []


def channel(trunk: Trunk, door: dict | None = None, **changes) -> Sip:
    form = Sip.Settings(data=settings_for(trunk, **changes))
    assert form.is_valid(), form.errors
    return Sip(form.cleaned_data, Http(**{"allowed_hosts": [trunk.host], **(door or {})}))


def refusal(phone: Sip, address: str = PHONE, **changes) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        phone.send(page(**changes), address)
    assert "open sesame" not in caught.value.text
    return caught.value


def end_of(phone: Sip, call: str) -> tuple[str, str]:
    """(state, reason) that `poll` tells of a call, once it has ended."""
    told: list = []
    assert until(lambda: told.extend(one for one in phone.poll([call]) if one.message_id == call) or told), "no end of the call"
    return told[0].state, told[0].reason


def tone(samples: list[int]) -> float:
    """How much of the sound is 440 Hz."""
    re_, im = (sum(one * f(2 * math.pi * 440 * at / 8000) for at, one in enumerate(samples)) for f in (math.cos, math.sin))
    return 2 * (re_**2 + im**2) / max(1, len(samples) * sum(one * one for one in samples))


# --- calls -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payloads", ["8 0", "0", "18 8 101"])
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_call_that_is_heard(protocol, payloads, tmp_path, monkeypatch):
    hum(tmp_path, monkeypatch, 0.1)
    with Trunk(protocol) as trunk:
        trunk.payloads = payloads
        phone = channel(trunk)
        call = phone.send(page(text="数据库不可用", language="zh-hans"), PHONE)
        assert call.state == "sent" and trunk.answered.wait(60)
        assert end_of(phone, call.message_id) == ("delivered", "")
        assert trunk.ended.wait(60) and trunk.faults == [] and trunk.heard.faults() == []
        assert [one.method for one in trunk.requests] == ["INVITE", "ACK", "BYE"]
        invite = trunk.requests[0]
        assert invite.uri == f"sip:{PHONE}@127.0.0.1" and invite.get("from").startswith("<sip:+8657188881234@127.0.0.1>")
        # A tenth of a second twice, in packets of 20 ms with silence around: 1 + 5 + 1 + 5 + 1.
        assert len(trunk.heard.packets) == 13
        assert tone(trunk.heard.samples[160:960]) > 0.9 < tone(trunk.heard.samples[1120:1920])
        assert max(map(abs, trunk.heard.samples[:160])) <= 8, "it begins with silence"
        assert max(trunk.heard.samples) > 15_000


def test_over_tls(tmp_path):
    ca = authority(tmp_path)
    with Trunk("tcp", context=ca.server) as trunk:
        assert not refusal(channel(trunk)).left
        phone = channel(trunk, {"ca_bundle": ca.pem})
        assert end_of(phone, phone.send(page(), PHONE).message_id) == ("delivered", "")
        assert trunk.faults == []


def test_the_text_is_spoken_in_the_persons_language(trunk, tmp_path):
    phone = channel(trunk, speed=120)
    for language, voice in (("zh-hans", "cmn 120"), ("en", "en-us 120")):
        call = phone.send(page(text="[[h@l'oU]] -v x; 数据库 `rm`", language=language), PHONE)
        assert end_of(phone, call.message_id)[0] == "delivered"
        assert (tmp_path / "bin" / "espeak-ng.voice").read_text().strip() == voice
    assert (tmp_path / "bin" / "espeak-ng.text").read_text() == "[ [h@l'oU]] -v x; 数据库 `rm`", (
        "its own notation for sounds means nothing here"
    )


def test_packets_that_are_lost_are_sent_again(trunk, monkeypatch):
    monkeypatch.setattr(sip, "T1", 0.05)
    trunk.deaf, trunk.loses_ack = 2, True
    phone = channel(trunk)
    assert end_of(phone, phone.send(page(), PHONE).message_id)[0] == "delivered"
    assert trunk.acks == 2 and len({one.branch for one in trunk.requests if one.method == "INVITE"}) == 1


def test_the_far_end_hangs_up(trunk):
    trunk.hangs_up_after = 3
    phone = channel(trunk)
    assert end_of(phone, phone.send(page(), PHONE).message_id)[0] == "delivered"
    assert until(lambda: trunk.responses == ["SIP/2.0 200 OK"]) and "BYE" not in [one.method for one in trunk.requests]


def test_what_the_far_end_asks_during_the_call(trunk, tmp_path, monkeypatch):
    hum(tmp_path, monkeypatch, 0.3)
    phone = channel(trunk)
    call = phone.send(page(), PHONE)
    assert trunk.answered.wait(60) and until(lambda: trunk.heard.packets)
    for method, body, foreign in (("OPTIONS", "", ""), ("INVITE", trunk._sdp(), ""), ("REFER", "", ""), ("BYE", "", "another-call")):
        trunk.ask(method, body, call_id=foreign)
    assert end_of(phone, call.message_id)[0] == "delivered"
    assert [line[8:11] for line in trunk.responses] == ["200", "200", "405", "481"]


def test_routes_and_the_contact_of_the_answer(trunk):
    trunk.extra = ["Record-Route: <sip:inner.example;lr>", "Record-Route: <sip:outer.example;lr>"]
    phone = channel(trunk)
    assert end_of(phone, phone.send(page(), PHONE).message_id)[0] == "delivered"
    for one in trunk.requests[1:]:
        assert one.all("route") == ["<sip:outer.example;lr>", "<sip:inner.example;lr>"] and one.uri.startswith("sip:phone@")


def test_sound_described_before_the_answer(trunk):
    trunk.early = True
    phone = channel(trunk)
    assert end_of(phone, phone.send(page(), PHONE).message_id)[0] == "delivered" and len(trunk.heard.packets) == 7


# --- who we are --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "qop", "challenge"), [("MD5", True, 401), ("MD5", False, 407), ("SHA-256", True, 407)])
def test_the_trunk_asks_who_we_are(algorithm, qop, challenge):
    with Trunk(user="1001", password="open sesame") as trunk:
        trunk.algorithm, trunk.qop, trunk.challenge = algorithm, qop, challenge
        phone = channel(trunk, register=True, numbers="")
        assert end_of(phone, phone.send(page(), PHONE).message_id)[0] == "delivered" and trunk.faults == []
        assert [one.method for one in trunk.requests] == ["REGISTER", "REGISTER", "INVITE", "ACK", "INVITE", "ACK", "BYE"]
        assert trunk.requests[2].get("from").startswith("<sip:1001@")
        trunk.requests.clear()
        error = refusal(channel(trunk, password="wrong"))
        assert error.permanent and error.config and "password" in error.text and until(lambda: len(trunk.requests) == 4), (
            "asked twice and no more"
        )
        assert refusal(channel(trunk, username="", password="")).config


@pytest.mark.parametrize(
    ("form", "prefix", "address", "dialled", "caller"),
    [
        ("plus", "", PHONE, PHONE, "+8657188881234"),
        ("digits", "", PHONE, "8613800000000", "8657188881234"),
        ("zeros", "9", PHONE, "9008613800000000", "8657188881234"),
        ("national", "0", "+8657112345678", "0057112345678", "8657188881234"),
        ("national", "", "+14155550100", "0014155550100", "8657188881234"),
    ],
)
def test_numbers_as_the_trunk_wants_them(form, prefix, address, dialled, caller):
    with Trunk() as trunk:
        phone = channel(trunk, number_format=form, dial_prefix=prefix)
        assert phone._numbers(address) == (dialled, caller)


def test_behind_nat_and_with_a_domain(trunk):
    phone = channel(trunk, public_address="203.0.113.7", domain="pbx.example.com")
    trunk.plan = "486 Busy Here"
    refusal(phone)
    invite = trunk.requests[0]
    assert (
        "c=IN IP4 203.0.113.7" in invite.body and "@203.0.113.7:" in invite.get("contact") and invite.uri == f"sip:{PHONE}@pbx.example.com"
    )
    assert until(lambda: len(trunk.faults) == 2), "the trunk wonders about both"
    assert {fault.partition(": ")[2].rpartition(":")[0] for fault in [one.partition(";")[0] for one in trunk.faults]} == {
        "Via of another transport: SIP/2.0/UDP 203.0.113.7"
    }
    trunk.faults.clear()


# --- calls that end otherwise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [*ENDS, 302, 420, 500, 503, 699])
def test_every_refusal_is_one(trunk, status):
    trunk.plan = f"{status} No open sesame"
    error = refusal(channel(trunk, username="1001", password="open sesame"))
    _why, permanent, config = ENDS.get(status, ("", status != 500 and status != 503, status == 302))
    assert (error.permanent, error.config, error.left) == (permanent, config, False)
    assert error.retry_after == (None if permanent else 7.0)
    assert f"SIP {status}" in error.text and until(lambda: trunk.acks == 1)


def test_nobody_answers(trunk):
    trunk.plan = "ring"
    phone = channel(trunk, ring_seconds=10)
    phone.settings = {**phone.settings, "ring_seconds": 0.4}
    sent = phone.send(page(), PHONE)
    state, reason = end_of(phone, sent.message_id)
    assert state == "failed" and "Nobody answered" in reason and trunk.ended.wait(60) and until(lambda: trunk.acks == 1)


def test_a_trunk_that_works_on_it_for_long(trunk, monkeypatch):
    monkeypatch.setattr(http, "TOTAL_SECONDS", 2.0)
    trunk.plan = "trying"
    phone = channel(trunk, ring_seconds=10)
    phone.settings = {**phone.settings, "ring_seconds": 3.0}
    sent = phone.send(page(), PHONE)
    assert sent.state == "sent" and end_of(phone, sent.message_id)[0] == "failed"


def test_a_trunk_that_says_nothing(trunk, monkeypatch):
    monkeypatch.setattr(http, "TOTAL_SECONDS", 0.8)
    trunk.plan = "silent"
    error = refusal(channel(trunk))
    assert error.left and not error.permanent


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_nobody_is_there(protocol, monkeypatch):
    monkeypatch.setattr(sip, "T1", 0.1)  # over UDP the first packet is answered by the kernel, and the second one hears of it
    with Trunk(protocol) as trunk:
        phone = channel(trunk)
    error = refusal(phone)
    assert not error.permanent and not error.left


def test_a_process_that_ends_in_the_middle_of_a_call(trunk, monkeypatch):
    trunk.plan = "ring"
    phone = channel(trunk, ring_seconds=10)
    phone.settings = {**phone.settings, "ring_seconds": 0.3}
    monkeypatch.setattr(sip._Call, "longest", lambda call: -1)
    sent = phone.send(page(), PHONE)
    assert [(one.message_id, one.state) for one in phone.poll([])] == [(sent.message_id, "failed")]
    assert trunk.ended.wait(60)


# --- sound -------------------------------------------------------------------------------------------------------------------------


def test_no_sound_that_we_have(trunk):
    trunk.payloads = "18 101"
    phone = channel(trunk)
    state, reason = end_of(phone, phone.send(page(), PHONE).message_id)
    assert state == "failed" and "G.711" in reason and trunk.ended.wait(60)


@pytest.mark.parametrize("host", ["10.1.2.3", "169.254.169.254", "127.0.0.2", "media.example.com"])
def test_sound_goes_nowhere_that_the_guard_forbids(trunk, host):
    trunk.media_host = host
    phone = channel(trunk)
    state, reason = end_of(phone, phone.send(page(), PHONE).message_id)
    assert state == "failed" and reason and trunk.ended.wait(60) and trunk.heard.packets == []


def test_addresses_that_nobody_may_reach(trunk):
    error = refusal(channel(trunk, {"allowed_hosts": []}))
    assert error.permanent and error.config and trunk.requests == []
    assert refusal(channel(trunk), "nobody").permanent


@pytest.mark.parametrize(
    ("script", "word"),
    [(None, "apt-get install espeak-ng"), ("#!/bin/sh\necho no such voice >&2\nexit 1\n", "no such voice"), ("#!/bin/sh\nexec sleep 5\n", "too long")],
)  # fmt: skip
def test_no_speech(trunk, tmp_path, monkeypatch, script, word):
    phone = channel(trunk)
    monkeypatch.setattr(speech, "SPEECH_SECONDS", 0.2)
    if script is None:
        (tmp_path / "bin" / "espeak-ng").unlink()
        monkeypatch.setenv("PATH", str(tmp_path))
        assert word in " ".join(Sip.check(settings_for(trunk))["__all__"])
    else:
        hum(tmp_path, monkeypatch, script=script)
    error = refusal(phone)
    assert word in error.text and trunk.requests == []
    assert error.config == (word != "too long")


def test_g711_is_that_of_the_standard():
    audioop = pytest.importorskip("audioop")  # Python's own, until 3.12
    for payload, reference in ((0, audioop.lin2ulaw), (8, audioop.lin2alaw)):
        table = speech.law(payload)
        every = array.array("h", range(-32_768, 32_768))
        assert bytes(table[one >> 2 & 0x3FFF] for one in every) == reference(every.tobytes(), 2)


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("host", {"host": "sip:pbx.example.com"}),
        ("domain", {"domain": "a>b"}),
        ("username", {"username": "me@pbx", "password": "x"}),
        ("username", {"register": True}),
        ("password", {"username": "1001"}),
        ("numbers", {"numbers": ""}),
        ("numbers", {"numbers": "a number"}),
        ("dial_prefix", {"dial_prefix": "9;"}),
        ("voice_zh", {"voice_zh": "--path=/tmp"}),
        ("ring_seconds", {"ring_seconds": 1}),
        ("public_address", {"public_address": "here"}),
    ],
)
def test_settings_that_cannot_work_are_refused(field, change):
    good = {"host": "pbx.example.com", "port": 5060, "numbers": "+86 571 8888 1234"}
    assert Sip.check(good) == {}
    assert field in Sip.check({**good, **change})


def test_junk_is_no_sip():
    for junk in (b"", b"\r\n\r\n", b"\0" * 50, b"SIP/2.0", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "SIP/2.0 200 中\r\n".encode()):
        assert sip._packet(junk) is None
    found = sip._packet(b"SIP/2.0 180 Ringing\r\nv: a\r\n ,b\r\nt: <sip:x>;tag=1\r\nX\r\n\r\nbody")
    assert found and (found.status, found.get("via"), found.body) == (180, "a ,b", b"body")
    assert re.fullmatch(r"Digest username=.*", sip._credentials(['Digest realm="a, b", nonce="c"'], "u", "p", "INVITE", "sip:x"))
    assert time.monotonic() > 0 and sip._media(b"m=audio 5000 RTP/AVP 0") is None


def test_a_call_that_breaks_in_a_way_nobody_thought_of_is_not_taken_for_one_that_rings(trunk, tmp_path, monkeypatch):
    """Its thread would be gone, and the page wait for its time to be over."""
    hum(tmp_path, monkeypatch)

    def breaks(*_args) -> None:
        raise KeyError("strange")

    monkeypatch.setattr(sip._Call, "_invite", breaks)
    monkeypatch.setattr(http, "TOTAL_SECONDS", 60.0)
    began = time.monotonic()
    error = refusal(channel(trunk))
    assert time.monotonic() - began < 30 and error.left and not error.permanent and "KeyError" in error.text
