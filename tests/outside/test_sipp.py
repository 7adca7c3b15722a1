"""Calls that Debian's sipp answers, refuses or lets ring, with speech of the real espeak-ng: an independent judge of our SIP and a real voice.

What comes as sound is received here, so that it can be listened to: that it is there, on time, speech and not silence, and said twice."""

import array
import re
import shutil
import socket
import subprocess
import threading
import time
import wave
from pathlib import Path

import pytest

from channels_app import http, speech
from channels_app.http import DeliveryError, Http
from channels_app.transports.sip import Sip
from tests.fakes import server
from tests.fakes.message import page
from tests.fakes.sip import Heard
from tests.fakes.smtp import free_port
from tests.outside.product import until

pytestmark = pytest.mark.outside

PHONE = "+8613800000000"
HEAD = '<?xml version="1.0" encoding="ISO-8859-1" ?>\n<!DOCTYPE scenario SYSTEM "sipp.dtd">\n<scenario name="phone">\n'
COMMON = "[last_Via:]\n[last_From:]\n[last_To:];tag=[pid]phone[call_number]\n[last_Call-ID:]\n[last_CSeq:]\n"
CONTACT = "Contact: <sip:phone@[local_ip]:[local_port];transport=[transport]>\n"


def send(status: str, more: str = "", body: str = "", retrans: bool = False) -> str:
    length = "[len]" if body else "0"
    text = f"SIP/2.0 {status}\n{COMMON}{more}Content-Length: {length}\n\n{body}"
    again = ' retrans="500"' if retrans else ""
    return f"<send{again}><![CDATA[\n{text}\n]]></send>\n"


def receive(method: str) -> str:
    return f'<recv request="{method}" crlf="true"/>\n'


def answered(port: int) -> str:
    sdp = f"v=0\no=phone 1 1 IN IP4 [local_ip]\ns=-\nc=IN IP4 [local_ip]\nt=0 0\nm=audio {port} RTP/AVP 8 0\na=rtpmap:8 PCMA/8000\n"
    ok = "SIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]\nContent-Length: 0\n"
    return (
        send("180 Ringing", CONTACT)
        + '<pause milliseconds="200"/>\n'
        + send("200 OK", f"{CONTACT}Content-Type: application/sdp\n", sdp, retrans=True)
        + receive("ACK")
        + receive("BYE")
        + f"<send><![CDATA[\n{ok}\n]]></send>\n"
    )


WHO = (
    send(
        "401 Unauthorized",
        'WWW-Authenticate: Digest realm="office", nonce="47ebe028cda119c35d4877b383027d28da013815", algorithm=MD5, qop="auth"\n',
    )
    + receive("ACK")
    + '<recv request="INVITE" crlf="true"><action><verifyauth assign_to="known" username="1001" password="open sesame"/></action></recv>\n'
    + '<nop hide="true" test="known" next="known"/>\n'
    + send("403 Forbidden")
    + receive("ACK")
    + '<nop next="end"/>\n<label id="known"/>\n'
)
SCENARIOS = {
    "answers": lambda port: receive("INVITE") + answered(port),
    "asks who we are": lambda port: receive("INVITE") + WHO + answered(port) + '<label id="end"/>\n',
    "is busy": lambda port: receive("INVITE") + send("100 Trying") + send("486 Busy Here") + receive("ACK"),
    "declines after a while": lambda port: receive("INVITE") + send("180 Ringing") + "<pause milliseconds=\"600\"/>\n" + send("603 Decline") + receive("ACK"),
    "rings on": lambda port: (
        receive("INVITE")
        + send("180 Ringing")
        + receive("CANCEL")
        + "<send><![CDATA[\nSIP/2.0 200 OK\n[last_Via:]\n[last_From:]\n[last_To:]\n[last_Call-ID:]\n[last_CSeq:]\nContent-Length: 0\n]]></send>\n"
        + "<send><![CDATA[\nSIP/2.0 487 Request Terminated\n[last_Via:]\n[last_From:]\n[last_To:];tag=[pid]phone[call_number]\n[last_Call-ID:]\n"
        + "CSeq: 1 INVITE\nContent-Length: 0\n]]></send>\n"
        + receive("ACK")
    ),
}  # fmt: skip


class Ear:
    """Hears the sound of a call, and when each packet came."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.settimeout(0.1)
        self.port = self.sock.getsockname()[1]
        self.heard, self.at = Heard(), list[float]()
        self.open = True
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while self.open:
            try:
                self.heard.packets.append(self.sock.recv(4096))
                self.at.append(time.monotonic())
            except TimeoutError:
                continue
            except OSError:
                return

    def close(self) -> None:
        self.open = False
        self.sock.close()


class Sipp:
    """`with Sipp("answers", folder) as phone:`; `verdict()` is what sipp thinks of our side of the call."""

    def __init__(self, scenario: str, folder: Path, protocol: str = "udp") -> None:
        self.ear = Ear()
        self.port = free_port()
        self.folder, self.protocol = folder, protocol
        file = folder / "scenario.xml"
        file.write_text(HEAD + SCENARIOS[scenario](self.ear.port) + "</scenario>\n")
        self.command = [
            "sipp", "-sf", str(file), "-i", "127.0.0.1", "-p", str(self.port), "-t", {"udp": "u1", "tcp": "t1"}[protocol],
            "-m", "1", "-nostdin", "-timeout", "300s", "-trace_err", "-trace_msg", "-error_file", str(folder / "errors"),
            "-message_file", str(folder / "messages"),
        ]  # fmt: skip

    def __enter__(self) -> "Sipp":
        with open(self.folder / "out", "wb") as out:
            self.process = subprocess.Popen(self.command, stdout=out, stderr=out, cwd=self.folder)
        until(self._listens, 10, "sipp listens")
        return self

    def _listens(self) -> bool:
        """Whether its port is taken: what it prints comes late. (Who tried to take it would be in its way, now and then.)"""
        assert self.process.poll() is None, self.verdict()
        taken = Path(f"/proc/{self.process.pid}/net/{self.protocol}").read_text().splitlines()[1:]
        return any(line.split()[1].endswith(f":{self.port:04X}") for line in taken)

    def __exit__(self, *args: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.ear.close()

    def verdict(self) -> tuple[int, str]:
        """(0 where the call went as the scenario says, what it complains about)."""
        code = self.process.wait(120)
        errors = self.folder / "errors"
        return code, errors.read_text(errors="replace") if errors.exists() else ""

    def messages(self) -> str:
        file = self.folder / "messages"
        return file.read_text(errors="replace") if file.exists() else ""


@pytest.fixture(autouse=True)
def programs(settings, tmp_path):
    if missing := [name for name in ("sipp", "espeak-ng") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install sip-tester espeak-ng)")
    settings.RUN_DIR = tmp_path / "run"


def channel(phone: Sipp, **changes) -> Sip:
    form = Sip.Settings(data={"host": "127.0.0.1", "port": phone.port, "numbers": "+86 571 8888 1234", **changes})
    assert form.is_valid(), form.errors
    return Sip(form.cleaned_data, Http(allowed_hosts=[f"127.0.0.1:{phone.port}"]))


def end_of(sender: Sip, call: str, seconds: float = 60) -> tuple[str, str]:
    told = until(lambda: [one for one in sender.poll([call]) if one.message_id == call], seconds, "the call has ended")
    return told[0].state, told[0].reason


def loudness(samples: list[int]) -> list[float]:
    """The mean size of each 20 ms."""
    return [sum(map(abs, samples[at : at + 160])) / 160 for at in range(0, len(samples), 160)]


@pytest.mark.parametrize(
    ("protocol", "language", "text"),
    [
        ("udp", "en", "Critical. Database is down."),
        ("tcp", "zh-hans", "严重告警。数据库不可用。"),
        ("udp", "zh-hans", "严重告警。数据库不可用。"),
    ],
)
def test_the_phone_is_answered_and_the_text_heard_twice(tmp_path, protocol, language, text):
    with Sipp("answers", tmp_path, protocol) as phone:
        sender = channel(phone, protocol=protocol)
        sent = sender.send(page(text=text, language=language), PHONE)
        assert sent.state == "sent"
        assert end_of(sender, sent.message_id) == ("delivered", "")
        assert phone.verdict() == (0, "")
        voice = "cmn" if language.startswith("zh") else "en-us"
        spoken = speech.spoken(text, voice, 150)
        expected = sum(1 for _frame in speech.frames(spoken, 8))
        heard = phone.ear.heard
        server.until(lambda: len(heard.packets) >= expected, 60)  # the ear's thread may have some left to read
        assert len(heard.packets) == expected and heard.faults() == []
        # As fast as it is spoken: in half of all its seconds at least. Where the machine stood still, the rest is late and then made up for.
        seconds = sorted(later - at for at, later in zip(phone.ear.at, phone.ear.at[50:], strict=False))
        assert 0.97 < seconds[len(seconds) // 2] < 1.2
        # Speech: loud in most of its time, and the second reading is the first one again.
        loud = loudness(heard.samples)
        lead, pause, length = round(speech.LEAD / 0.02), round(speech.PAUSE / 0.02), -(-len(spoken) // 160)
        first, second = loud[lead : lead + length], loud[lead + length + pause : lead + 2 * length + pause]
        assert first == second and max(loud[: lead - 1]) < 20
        assert sum(one > 300 for one in first) > length / 2 and max(first) > 3000
        assert length > 60, "more than a second"


@pytest.mark.parametrize(("password", "state"), [("open sesame", "delivered"), ("wrong", None)])
def test_sipp_checks_our_password(tmp_path, password, state):
    with Sipp("asks who we are", tmp_path) as phone:
        sender = channel(phone, username="1001", password=password)
        if state is None:
            with pytest.raises(DeliveryError) as caught:
                sender.send(page(text="down"), PHONE)
            assert caught.value.config and "403" in caught.value.text
            return
        assert end_of(sender, sender.send(page(text="down"), PHONE).message_id)[0] == state
        assert phone.verdict()[0] == 0 and phone.ear.heard.packets


def test_the_line_is_busy(tmp_path):
    with Sipp("is busy", tmp_path) as phone:
        with pytest.raises(DeliveryError, match=r"the line was busy \(SIP 486 Busy Here\)") as caught:
            channel(phone).send(page(text="down"), PHONE)
        assert caught.value.permanent and not caught.value.config
        assert phone.verdict() == (0, "")


def test_the_call_is_declined_while_it_rings(tmp_path):
    with Sipp("declines after a while", tmp_path) as phone:
        sender = channel(phone)
        state, reason = end_of(sender, sender.send(page(text="down"), PHONE).message_id)
        assert state == "failed" and "declined" in reason and phone.verdict() == (0, "")


def test_nobody_answers(tmp_path, monkeypatch):
    with Sipp("rings on", tmp_path) as phone:
        sender = channel(phone, ring_seconds=10)
        began = time.monotonic()
        with monkeypatch.context() as patient:
            patient.setattr(http, "TOTAL_SECONDS", 60.0)
            sent = sender.send(page(text="down"), PHONE)
        assert time.monotonic() - began < 10, "ringing is enough for `sent`"
        state, reason = end_of(sender, sent.message_id)
        assert state == "failed" and "Nobody answered the phone within 10 s" in reason and 9.5 < time.monotonic() - began < 100
        assert phone.verdict() == (0, "")
        assert re.search(r"^CANCEL sip:", phone.messages(), re.MULTILINE)


BARESIP = """poll_method select
sip_listen 127.0.0.1:{port}
net_interface 127.0.0.1
audio_player aubridge,a
audio_source aubridge,a
module_path /usr/lib/baresip/modules
module g711.so
module aubridge.so
module sndfile.so
snd_path {folder}
module_tmp account.so
module_app menu.so
"""


def test_a_soft_phone_records_what_we_say(tmp_path):
    """Debian's baresip picks up by itself and writes down the sound as it decoded it: another reader of our SIP, SDP, RTP and G.711."""
    if shutil.which("baresip") is None:
        pytest.skip("not installed: baresip (apt-get install baresip-core)")
    text = "Critical. Database is down."
    expected = loudness(list(speech.spoken(text, "en-us", 150)))
    likeness: list[float] = []
    for turn in range(5):  # the phone leaves out what came too late for its buffer: on a busy machine it is called again
        (tmp_path / str(turn)).mkdir()
        recorded = recording(tmp_path / str(turn), text)
        likeness = [correlation(expected, recorded[at : at + len(expected)]) for at in range(len(recorded) - len(expected) + 1)]
        if found_twice(likeness, len(expected)):
            break
    assert found_twice(likeness, len(expected))


def found_twice(likeness: list[float], length: int) -> bool:
    """Whether the reading is found twice in the recording, wherever the phone's buffer has moved it to."""
    best = max(range(len(likeness)), key=likeness.__getitem__)
    elsewhere = [one for at, one in enumerate(likeness) if abs(at - best) > length / 2]
    return likeness[best] > 0.9 and max(elsewhere) > 0.9


def recording(folder: Path, text: str) -> list[float]:
    """What the phone wrote down of a call, as loudness."""
    port, said = free_port(), folder / "out"
    (folder / "config").write_text(BARESIP.format(port=port, folder=folder))
    (folder / "accounts").write_text(f"<sip:{PHONE}@127.0.0.1>;regint=0;answermode=auto;audio_codecs=pcmu\n")
    with open(said, "wb") as out:
        process = subprocess.Popen(["baresip", "-f", str(folder), "-v"], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder)
    try:
        until(lambda: "baresip is ready" in said.read_text(errors="replace"), 10, "the phone is switched on")
        form = Sip.Settings(data={"host": "127.0.0.1", "port": port, "numbers": "+86 571 8888 1234"})
        assert form.is_valid(), form.errors
        sender = Sip(form.cleaned_data, Http(allowed_hosts=[f"127.0.0.1:{port}"]))
        assert end_of(sender, sender.send(page(text=text, language="en"), PHONE).message_id) == ("delivered", "")
        until(lambda: "terminated (duration" in said.read_text(errors="replace"), 5, "the phone has hung up")
    finally:
        process.terminate()
        process.wait(60)
    assert "Call established: sip:+8657188881234@127.0.0.1" in said.read_text(errors="replace")
    with wave.open(str(next(folder.glob("dump-*-dec.wav"))), "rb") as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        return loudness(list(array.array("h", file.readframes(file.getnframes()))))


def correlation(left: list[float], right: list[float]) -> float:
    middle = sum(left) / len(left), sum(right) / len(right)
    pairs = [(one - middle[0], other - middle[1]) for one, other in zip(left, right, strict=True)]
    size = (sum(one * one for one, _other in pairs) * sum(other * other for _one, other in pairs)) ** 0.5
    return sum(one * other for one, other in pairs) / size if size else 0.0
