"""The sandbox: what its devices take, and what each says has become of the message."""

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transport import get, transports
from tests.fakes.message import page

PERSONS = ["sandbox_app", "sandbox_voice", "sandbox_sms", "sandbox_email", "sandbox_im"]


def send(kind, address, **changes):
    return get(kind)({}, Http()).send(page(**changes), address)


@pytest.mark.parametrize("kind", PERSONS)
def test_a_person_has_the_message_at_once_but_a_phone_rings(kind):
    receipt = send(kind, "member:7")
    assert receipt.state == ("sent" if kind == "sandbox_voice" else "delivered")
    assert receipt.message_id == "sandbox-0d0f1b5e-5a43-4b52-9f0c-2f1d2a0c9f11"
    assert (get(kind).person, get(kind).group, get(kind).reach) == (True, False, "member")


@pytest.mark.parametrize("kind", PERSONS)
@pytest.mark.parametrize("address", ["", "7", "member:", "member:0", "member:x", "+8613800000000", "member:7\n"])
def test_only_members_are_reached(kind, address):
    with pytest.raises(DeliveryError) as caught:
        send(kind, address)
    assert caught.value.permanent


def test_the_group_chat_is_the_channel():
    assert send("sandbox_group", "").state == "delivered"
    with pytest.raises(DeliveryError):
        send("sandbox_group", "member:7")
    assert (get("sandbox_group").person, get("sandbox_group").group, get("sandbox_group").reach) == (False, True, "group")


@pytest.mark.parametrize("kind", ["sandbox_app", "sandbox_group", "sandbox_voice"])
def test_an_empty_message_is_an_error_one_sees(kind):
    with pytest.raises(DeliveryError):
        send(kind, "" if kind == "sandbox_group" else "member:7", text=" ", html=None)


def test_all_six_are_marked_as_demo():
    assert [kind for kind, cls in transports().items() if cls.demo] == sorted([*PERSONS, "sandbox_group"])
