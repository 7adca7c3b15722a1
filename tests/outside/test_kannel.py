"""SMS end to end through Debian's Kannel: our HTTP gateway channel, its smsbox and bearerbox, and an SMPP centre that is not Kannel's.

Kannel reads what our channel writes by HTTP, and writes SMPP that our centre reads: so the centre of tests/fakes/smsc.py, which was written
from the specification, is held against another implementation, and with it the SMPP channel that is tested against that centre. The other way
round, Kannel's own test centre (drive_smpp, in kannel-extras) reads the PDUs of our SMPP channel."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transport import Callback
from channels_app.transports import smpp
from channels_app.transports.smpp import Smpp
from channels_app.transports.sms_http import SmsHttp
from tests.fakes import server
from tests.fakes.message import page
from tests.fakes.server import Reply, Server
from tests.fakes.smsc import BIND_TRANSCEIVER, Smsc
from tests.fakes.smtp import free_port
from tests.outside.product import until

pytestmark = pytest.mark.outside

DRIVE = "/usr/lib/kannel/test/drive_smpp"
PHONE = "+8613800000000"
TEXTS = [
    "Database is down: {x} [y] | ~ € @ £ & + % = #",
    "数据库不可用😀 & 请处理 50%",
    "Disk is full on db-1; " * 20,
    "磁盘已满，请立即处理。😀" * 15,
]

CONF = """
group = core
admin-port = {admin}
smsbox-port = {box}
admin-password = bar
log-file = {folder}/bearerbox.log
log-level = 0
box-allow-ip = 127.0.0.1
dlr-storage = internal

group = smsc
smsc = smpp
smsc-id = centre
host = 127.0.0.1
port = {smsc}
transceiver-mode = true
smsc-username = flashduty
smsc-password = s3cret!
system-type = ""
reconnect-delay = 1

group = smsbox
bearerbox-host = 127.0.0.1
sendsms-port = {sendsms}
log-file = {folder}/smsbox.log
log-level = 0

group = sendsms-user
username = flashduty
password = "{password}"
max-messages = 20
concatenation = true
"""
PASSWORD = "a&b+c%d"


@pytest.fixture(scope="module")
def centre():
    with Smsc() as running:
        yield running


@pytest.fixture(scope="module")
def sendsms(tmp_path_factory, centre):
    if missing := [name for name in ("bearerbox", "smsbox") if shutil.which(name, path=PATH) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install kannel)")
    folder = tmp_path_factory.mktemp("kannel")
    port = free_port()
    conf = folder / "kannel.conf"
    conf.write_text(CONF.format(admin=free_port(), box=free_port(), smsc=centre.port, sendsms=port, folder=folder, password=PASSWORD))
    started: list[subprocess.Popen] = []
    try:
        for name in ("bearerbox", "smsbox"):
            with open(folder / f"{name}.out", "wb") as out:
                started.append(subprocess.Popen([str(shutil.which(name, path=PATH)), str(conf)], stdout=out, stderr=out, cwd=folder))
            if name == "bearerbox":
                until(lambda: centre.bound, 20, "bearerbox has bound")
        until(lambda: "Connected to bearerbox" in log(folder / "smsbox.log"), 20, "smsbox has connected")
        yield f"http://127.0.0.1:{port}/cgi-bin/sendsms"
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"


def log(file: Path) -> str:
    return file.read_text(errors="replace") if file.exists() else ""


def channel(url: str, callback: str, password: str = PASSWORD) -> SmsHttp:
    form = SmsHttp.Settings(data={"preset": "kannel", "url": url, "user": "flashduty", "password": password, "sender": "10690"})
    assert form.is_valid(), form.errors
    return SmsHttp(form.cleaned_data, Http(allowed_hosts=[urlsplit(url).netloc]), callback)


@pytest.mark.parametrize("text", TEXTS)
def test_the_phone_shows_what_we_wrote(sendsms, centre, text):
    del centre.said[:]
    channel(sendsms, "").send(page(text=text), PHONE)
    until(lambda: centre.texts(), 10, "the message is at the centre")
    assert centre.texts() == [text]
    assert centre.binds[0] == BIND_TRANSCEIVER
    assert {(one.dest, one.source) for one in centre.said} == {("8613800000000", "10690")}
    # The parts are as many as we counted for the preview.
    assert SmsHttp.measure(text).startswith(f"{len(centre.said)} SMS part")


@pytest.mark.parametrize(("stat", "state"), [("DELIVRD", "delivered"), ("UNDELIV", "failed"), ("EXPIRED", "failed")])
def test_a_receipt_comes_back(sendsms, centre, stat, state):
    with Server(Reply(200, "ok")) as us:
        sender = channel(sendsms, f"{us.url}/callback/c0ffee/")
        del centre.said[:]
        told = sender.send(page(text=f"Database is down ({stat})"), PHONE)
        until(lambda: centre.said, 10, "the message is at the centre")

        def called() -> bool:
            # Kannel notes the message's id after the centre's answer; a receipt that overtakes that is lost, and said again here.
            centre.receipt(centre.said[0].message_id, stat)
            return server.until(lambda: us.seen, 1)

        until(called, 10, "Kannel has called us")
        seen = us.seen[0]
        query = dict(parse_qsl(urlsplit(seen.path).query))
        heard = sender.receive(Callback(seen.method, us.url + seen.path, query, seen.headers, seen.body, datetime.now(UTC)))
        assert [(update.message_id, update.state) for update in heard.said] == [(told.message_id, state)]


def test_a_wrong_password_is_the_operators_to_mend(sendsms):
    with pytest.raises(DeliveryError) as caught:
        channel(sendsms, "", "wrong-password").send(page(), PHONE)
    assert caught.value.permanent and caught.value.config and "wrong-password" not in caught.value.text


def test_kannels_own_centre_reads_our_pdus(tmp_path, settings):
    if not Path(DRIVE).exists():
        pytest.skip("not installed: drive_smpp (apt-get install kannel-extras)")
    settings.RUN_DIR = tmp_path
    # It takes messages until it finds that it has no bearerbox, after three seconds: too few, now and then, on a busy machine.
    for turn in range(5):
        said = tmp_path / f"drive{turn}.log"
        if read_by_drive(said):
            break
    assert "submit_sm: short_message = <Database is down>" in log(said)
    assert log(said).count("submit_sm: short_message") == 5
    assert len(re.findall(r"Handling SMPP PDU of type submit_sm", log(said))) == 5 and "ERROR: SMPP" not in log(said)


def read_by_drive(said: Path) -> bool:
    """Whether a centre of its own took our five PDUs before it ended; what it says goes to `said`."""
    port = free_port()
    with open(said, "wb") as out:
        process = subprocess.Popen([DRIVE, "-v", "0", "-p", str(port)], stdout=out, stderr=out, cwd=said.parent)
    try:
        until(lambda: "accept_thread" in log(said) or process.poll() is not None, 10, "drive_smpp listens")
        form = Smpp.Settings(
            data={"host": "127.0.0.1", "port": port, "system_id": "foo", "password": "bar", "sender": "10690", "bind": "transmitter"}
        )
        assert form.is_valid(), form.errors
        sender = Smpp(form.cleaned_data, Http(allowed_hosts=[f"127.0.0.1:{port}"]))
        try:
            assert sender.send(page(text="Database is down"), PHONE).state == "sent"
            sender.send(page(text="Disk is full on db-1; " * 20), PHONE)
            sender.send(page(text="数据库"), PHONE)
        except DeliveryError:
            if server.until(lambda: process.poll() is not None, 3):
                return False
            raise
        until(lambda: log(said).count("submit_sm: short_message") == 5 or process.poll() is not None, 10, "it has read all")
        return log(said).count("submit_sm: short_message") == 5
    finally:
        process.terminate()
        process.wait(60)
        for session in list(smpp._sessions.values()):
            session.close()
