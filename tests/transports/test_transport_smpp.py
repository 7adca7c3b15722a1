"""SMPP against a centre written from the specification: what a phone would show, what each refusal means, receipts across processes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from channels_app import http
from channels_app.http import DeliveryError, Http
from channels_app.outcomes import Outcomes
from channels_app.transport import Update
from channels_app.transports import smpp
from channels_app.transports.smpp import GSM, Smpp
from tests.fakes import smsc
from tests.fakes.message import page
from tests.fakes.server import until
from tests.fakes.smsc import Smsc, settings_for
from tests.fakes.tls import authority

PHONE = "+8613800000000"
LONG = "Datenbank „Köln“ ist nicht erreichbar: {replica} [a|b] ~ 5 € ^ \\ " * 9
CHINESE = "数据库不可用😀，请立即处理。" * 20


@pytest.fixture(autouse=True)
def fresh(settings, tmp_path):
    settings.RUN_DIR = tmp_path
    yield
    for session in list(smpp._sessions.values()):
        session.close()
    smpp._forget()


@pytest.fixture
def centre():
    with Smsc() as running:
        yield running


def channel(centre: Smsc, door: dict | None = None, **changes) -> Smpp:
    form = Smpp.Settings(data=settings_for(centre, **changes))
    assert form.is_valid(), form.errors
    return Smpp(form.cleaned_data, Http(allowed_hosts=[centre.host], **(door or {})))


def refusal(sender: Smpp, address: str = PHONE, **changes) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        sender.send(page(**changes), address)
    assert "s3cret" not in caught.value.text
    return caught.value


# --- texts -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["udh", "sar", "payload"])
@pytest.mark.parametrize(
    ("text", "coding", "parts"),
    [("Database is down @ £5_{x}", 0, 1), ("数据库 is down", 8, 1), (GSM.replace("\x1b", "") + "".join(smpp.EXTENSION), 0, 1), (LONG, 0, 5), (CHINESE, 8, 5)],
)  # fmt: skip
def test_the_phone_shows_the_text(centre, way, text, coding, parts):
    receipt = channel(centre, long_messages=way, most_parts=20).send(page(text=text), PHONE)
    shown = text.replace("„", '"').replace("“", '"')
    assert centre.texts() == [shown]
    assert {one.data_coding for one in centre.said} == {coding}
    assert len(centre.said) == (1 if way == "payload" else parts)
    assert receipt.message_id == centre.said[-1].message_id and receipt.state == "sent"
    assert {(one.dest, one.dest_ton, one.dest_npi, one.source, one.source_ton) for one in centre.said} == {
        ("8613800000000", 1, 1, "10690", 0)
    }
    assert [one.registered for one in centre.said] == [0] * (len(centre.said) - 1) + [1]


def test_latin_1_where_the_centre_has_another_alphabet(centre):
    sender = channel(centre, alphabet="latin1")
    sender.send(page(text="Köln @ $5_"), PHONE)
    sender.send(page(text="Ω"), PHONE)
    channel(centre, alphabet="ucs2").send(page(text="plain"), PHONE)
    assert [(one.data_coding, one.text) for one in centre.said] == [(3, "Köln @ $5_"), (8, "Ω"), (8, "plain")]


def test_a_second_try_completes_the_first(centre):
    sender = channel(centre)
    centre.refuse = [0, 0x08]
    assert not refusal(sender, text=CHINESE[:100]).permanent
    sender.send(page(text=CHINESE[:100], attempt=2), PHONE)
    assert len(centre.said) == 3 and centre.texts()[0] == CHINESE[:100], "the part that was there already fits"


def test_a_text_beyond_all_parts_keeps_its_link(centre):
    assert channel(centre, most_parts=2).send(page(text=LONG * 5), PHONE).detail == "shortened to 2 parts"
    assert len(centre.said) == 2 and centre.texts()[0].endswith(f"... {page().url}")
    assert "2 SMS parts" in Smpp.measure("x" * 200)


@pytest.mark.parametrize(("alphabet", "letters"), [("ucs2", "plain "), ("latin1", "Ω and $ "), ("latin1", "plain ")])
def test_the_parts_are_those_of_the_alphabet_that_is_sent(centre, alphabet, letters):
    sender = channel(centre, alphabet=alphabet, most_parts=2)
    assert sender.send(page(text=letters * 200), PHONE).detail == "shortened to 2 parts"
    assert len(centre.said) == 2 and centre.texts()[0].endswith(f"... {page().url}")
    most = 134 if centre.said[0].data_coding == 8 else 306
    assert most - 12 <= len(centre.texts()[0]) <= most
    assert sender.holds((letters * 200)[:most]) and not sender.holds((letters * 200)[: most + 1])


@pytest.mark.parametrize(("sender", "ton", "npi", "source"), [("+4915112345", 1, 1, "4915112345"), ("10690", 0, 0, "10690"), ("Flashduty", 5, 0, "Flashduty")])  # fmt: skip
def test_senders(centre, sender, ton, npi, source):
    channel(centre, sender=sender).send(page(), PHONE)
    one = centre.said[0]
    assert (one.source_ton, one.source_npi, one.source) == (ton, npi, source)


def test_fields_as_set(centre):
    channel(centre, source_ton=3, source_npi=8, service_type="CMT", valid_minutes=1500, no_receipts=True).send(page(), PHONE[1:])
    one = centre.said[0]
    assert (one.source_ton, one.source_npi, one.service_type, one.registered) == (3, 8, "CMT", 0)
    assert one.validity == "000001010000000R", "one day and one hour"


# --- the session -------------------------------------------------------------------------------------------------------------------


def test_all_threads_share_one_session(centre):
    senders = [channel(centre) for _thread in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: senders[number % 8].send(page(text=f"page {number}"), PHONE), range(80)))
    assert sorted(centre.texts()) == sorted(f"page {number}" for number in range(80))
    assert centre.binds == [smsc.BIND_TRANSCEIVER]


def test_a_closed_session_is_opened_again(centre):
    sender = channel(centre)
    sender.send(page(), PHONE)
    centre.bound[0].close()
    assert until(lambda: not any(session._open for session in smpp._sessions.values()))
    sender.send(page(), PHONE)
    assert len(centre.binds) == 2 and len(centre.said) == 2


def test_an_idle_session_makes_room(centre, monkeypatch):
    channel(centre).send(page(), PHONE)
    with monkeypatch.context() as soon:
        soon.setattr(smpp, "IDLE", 0.05)
        assert until(lambda: centre.unbinds == 1 and not centre.bound)
    channel(centre).send(page(), PHONE)
    assert len(centre.said) == 2


def test_signs_of_life(centre, monkeypatch):
    monkeypatch.setattr(smpp, "ENQUIRE", 0.01)
    channel(centre).send(page(), PHONE)
    assert until(lambda: centre.enquiries >= 1) and centre.bound
    centre.bound[0].send(smsc.ENQUIRE_LINK, 0, 7)
    centre.bound[0].send(0x103, 0, 8)  # data_sm is nothing we take
    assert until(lambda: centre.nacks == 1) and centre.bound
    monkeypatch.setattr(smpp, "SILENT", 0.3)
    centre.mute = {smsc.ENQUIRE_LINK}
    assert until(lambda: not centre.bound), "a centre that is silent is left"


def test_the_centre_ends_the_session(centre):
    sender = channel(centre)
    sender.send(page(), PHONE)
    centre.bound[0].send(smsc.UNBIND, 0, 9)
    assert until(lambda: not centre.bound)
    sender.send(page(), PHONE)


def test_tls(tmp_path):
    ca = authority(tmp_path)
    with Smsc(context=ca.server) as centre:
        assert not refusal(channel(centre, tls=True)).left
        sender = channel(centre, {"ca_bundle": ca.pem}, tls=True)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: sender.send(page(text=f"page {number}"), PHONE), range(20)))
        assert len(centre.said) == 20 and centre.receipt("mid-1") == (1, 0)
    with Smsc() as plain:
        plain.cut = {smsc.BIND_TRANSCEIVER}
        assert not refusal(channel(plain)).left


# --- what goes wrong ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [*smpp.STATUS, 0x404, 0xFF])
def test_every_refusal_is_one(centre, status):
    sender = channel(centre)
    centre.refuse = [status] * 20
    error = refusal(sender)
    _why, permanent, config, wait = smpp.STATUS.get(status, ("", False, False, None))
    assert (error.permanent, error.config, error.retry_after, error.left) == (permanent, config, wait, False)
    assert f"({status:#x})" in error.text and "127.0.0.1" in error.text and centre.said == []


def test_throttled_in_the_middle_of_a_message(centre):
    centre.refuse = [0, smsc.THROTTLED, 0]
    channel(centre).send(page(text="x" * 300), PHONE)
    assert centre.texts() == ["x" * 300] and len(centre.said) == 2


def test_the_bind_is_refused(centre):
    error = refusal(channel(centre, password="wrong"))
    assert error.permanent and error.config and "password" in error.text
    error = refusal(channel(centre, system_id="nobody"))
    assert error.permanent and error.config
    centre.most = 0
    error = refusal(channel(centre))
    assert not error.permanent and error.retry_after and "binds" in error.text


def test_many_threads_and_a_centre_that_refuses_them(centre, monkeypatch):
    monkeypatch.setattr(smpp, "SHARED_REFUSAL", 60.0)
    sender = channel(centre, password="wrong")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _number: refusal(sender), range(8)))
    assert len(centre.connections) == 1, "one asked, the others heard"


@pytest.mark.parametrize("how", ["mute", "cut"])
def test_no_answer_means_that_nobody_knows(centre, how, monkeypatch):
    sender = channel(centre)
    sender.send(page(), PHONE)
    if how == "mute":
        monkeypatch.setattr(http, "TOTAL_SECONDS", 1.5)
    setattr(centre, how, {smsc.SUBMIT_SM})
    assert refusal(sender).left


@pytest.mark.parametrize(
    "garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\x11\x80\0\0\x04\0\0\0\0\0\0\0\x02", b"\0\0\0\x20" + b"\0" * 12]
)
def test_a_centre_that_speaks_another_language(centre, garbage, monkeypatch):
    sender = channel(centre)
    sender.send(page(), PHONE)
    monkeypatch.setattr(http, "TOTAL_SECONDS", 1.5)
    centre.mute = {smsc.SUBMIT_SM}
    session, before = centre.bound[0], centre.bound[0].last

    def answer() -> None:
        if until(lambda: session.last > before):
            session.sock.sendall(garbage)

    threading.Thread(target=answer, daemon=True).start()
    assert refusal(sender).left


def test_addresses_that_are_none_or_that_nobody_may_reach(centre):
    assert refusal(channel(centre), "nobody").permanent
    form = Smpp.Settings(data=settings_for(centre))
    assert form.is_valid()
    error = refusal(Smpp(form.cleaned_data, Http()))
    assert error.permanent and error.config and centre.connections == []
    centre.refuse_connections()
    error = refusal(channel(centre))
    assert not error.permanent and error.is_network and not error.left


# --- receipts ----------------------------------------------------------------------------------------------------------------------


def test_receipts_come_by_poll_in_any_process(centre):
    ids = [channel(centre).send(page(), PHONE).message_id for _turn in range(3)]
    other = channel(centre)  # as a drain elsewhere has it: nothing in common but the run folder
    assert list(other.poll(ids)) == []
    assert centre.receipt("mid-1")[1] == 0 and centre.receipt("mid-2", "EXPIRED", "069")[1] == 0
    centre.receipt("mid-3", "ACCEPTD")
    centre.receipt("mid-3", "DELIVRD", esm_class=0x20)
    centre.receipt("mid-3", "DELIVRD", esm_class=0, text="id:mid-3 stat:DELIVRD said a person")
    found = {update.message_id: update for update in other.poll(ids)}
    assert found.keys() == {"mid-1", "mid-2"}
    assert found["mid-1"].state == "delivered" and found["mid-2"].state == "failed"
    assert "switched off" in found["mid-2"].reason and "069" in found["mid-2"].reason
    assert len(channel(centre).poll([])) == 2, "whoever told it may have died before it was kept"
    assert list(other.poll(["mid-3"])) == [], "who asks again has kept it"
    assert centre.receipt("mid-3", "DELIVRD")[1] == 0
    assert [update.message_id for update in other.poll([])] == ["mid-3"], "one that comes late is told without being asked for"


def test_what_is_said_ahead_is_told_when_its_time_has_come(settings, tmp_path):
    kept = Outcomes("account")
    assert kept.take() == []
    kept.write("call-1", "failed", "lost", not_before=time.time() + 60)
    kept.write("call-2", "failed", "lost", not_before=time.time() - 1)
    assert kept.take() == [Update("call-2", "failed", "lost")]
    kept.write("call-2", "delivered")  # between the two looks: it is no news that was told already
    kept.write("call-1", "delivered")
    assert sorted(update.message_id for update in kept.take() if update.state == "delivered") == ["call-1", "call-2"]
    assert kept.take() == [] and list(kept.folder.iterdir()) == []


def test_receipts_by_their_parameters(centre):
    sent = channel(centre).send(page(), PHONE).message_id
    centre.receipt("", text="", tlvs={0x001E: sent.encode() + b"\0", 0x0427: b"\5", 0x1500: b"vendor"})
    assert [update.state for update in channel(centre).poll([sent])] == ["failed"]


@pytest.mark.parametrize(
    ("rule", "answered", "in_receipt"), [("hex_answer", "1A2F", "0000006703"), ("hex_receipt", "6703", "00001a2F"), ("", "01AF", "01AF")]
)  # fmt: skip
def test_ids_in_two_notations(centre, rule, answered, in_receipt):
    centre.answer_id = lambda number: answered
    sender = channel(centre, receipt_ids=rule)
    sent = sender.send(page(), PHONE).message_id
    centre.receipt(in_receipt)
    assert [update.state for update in sender.poll([sent])] == ["delivered"]


def test_waiting_for_a_receipt_binds(centre):
    sender = channel(centre)
    assert list(sender.poll([])) == [] and centre.binds == []
    assert list(sender.poll(["mid-9"])) == [] and centre.binds == [smsc.BIND_TRANSCEIVER]
    assert list(channel(centre, bind="transmitter").poll(["mid-9"])) == [], "it has nothing to hear"
    centre.refuse_connections()
    with pytest.raises(DeliveryError):
        channel(centre, system_type="other").poll(["mid-9"])


def test_sending_only(centre):
    channel(centre, bind="transmitter").send(page(), PHONE)
    assert centre.binds == [smsc.BIND_TRANSMITTER] and centre.said[0].registered == 0


def test_a_receipt_that_cannot_be_kept_is_brought_again(centre, settings, tmp_path):
    (tmp_path / "outcomes").write_text("a file where a folder should be")
    channel(centre).send(page(), PHONE)
    assert centre.receipt("mid-1")[1] == 0x64


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("host", "smpp://smsc.example"), ("port", 0), ("system_id", ""), ("system_id", "中"), ("password", "nine char"), ("sender", "a name that is too long"), ("sender", "中"), ("most_parts", 99)],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(field, value):
    good = {"host": "smsc.example", "port": 2775, "system_id": "me", "password": "secret", "sender": "+4915112345"}
    assert Smpp.check(good) == {}
    assert field in Smpp.check({**good, field: value})
