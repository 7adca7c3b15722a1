"""Messages whose end comes on a connection of our own, the whole way: posted, sent by one drain, and told by the one after it."""

import pytest

from channels_app import outbox, speech
from channels_app.models import Channel, Delivery
from channels_app.transports import smpp
from mapping.clock import db_now
from tests.fakes import sip, smsc
from tests.test_drain import Running
from tests.test_outbox import Scene
from tests.transports.test_transport_sip import hum

pytestmark = pytest.mark.django_db(transaction=True)
PHONE = "+8613800000000"


@pytest.fixture
def scene(transactional_db, settings, tmp_path, monkeypatch):
    settings.RUN_DIR = tmp_path / "run"
    hum(tmp_path, monkeypatch)
    for name in ("LEAD", "PAUSE", "TAIL"):
        monkeypatch.setattr(speech, name, 0.02)
    scene = Scene()
    scene.now = db_now()
    yield scene
    for session in list(smpp._sessions.values()):
        session.close()
    smpp._forget()


def states() -> dict[str, str]:
    return dict(Delivery.objects.values_list("channel__name", "state"))


@pytest.mark.slow
def test_sent_by_one_drain_and_told_by_the_next(scene):
    with smsc.Smsc() as centre, sip.Trunk() as trunk:
        form = smpp.Settings(data=smsc.settings_for(centre))
        assert form.is_valid(), form.errors
        sms = Channel.objects.create(name="sms", kind="smpp_sms", settings=form.cleaned_data, allowed_hosts=[centre.host])
        call = Channel.objects.create(name="call", kind="sip_voice", settings=sip.settings_for(trunk), allowed_hosts=[trunk.host])
        first = Running("drain-0", threads=4)
        for topic, channel in enumerate((sms, call), 1):
            scene.page(outbox.To(channel.id, PHONE), topic=topic)
        first.until(lambda: states().keys() == {"sms", "call"} and set(states().values()) <= {"sent", "delivered"})
        first.end()
        assert states()["sms"] == "sent", "nobody has told its end yet"
        assert centre.receipt(centre.said[0].message_id)[1] == 0
        second = Running("drain-1", threads=4)
        second.until(lambda: states() == {"sms": "delivered", "call": "delivered"})
        second.end()
        assert trunk.faults == []
