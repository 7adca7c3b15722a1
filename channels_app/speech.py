"""A text as sound for a telephone: spoken by Debian's espeak-ng, brought to 8 kHz and G.711, in packets of 20 ms, twice.

Source of the coding: ITU-T G.711. Nothing of the text stands on a command line, where other users of the machine could read it."""

import array
import functools
import itertools
import shutil
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from pathlib import Path

from django.utils.translation import gettext as _

from channels_app.sockets import DeliveryError

PROGRAM = "espeak-ng"
RATE, FRAME = 8000, 160  # G.711; 20 ms in a packet
LEAD, PAUSE, TAIL = 0.8, 1.2, 0.6  # seconds without speech: before it (a hand goes to an ear), between the two readings, at the end
SPEECH_SECONDS = 4.0  # that espeak-ng may take for a text; it needs a tenth of one
LONGEST = 120.0  # seconds of sound in one reading


def missing() -> str:
    """What to do before anything can be spoken on this machine; "" where all is there."""
    if shutil.which(PROGRAM):
        return ""
    return _("%(program)s is not installed on this machine: run apt-get install %(program)s.") % {"program": PROGRAM}


def seconds(sound: "array.array[int]") -> float:
    """How long `frames` of it take."""
    return LEAD + PAUSE + TAIL + 2 * len(sound) / RATE


@functools.lru_cache(maxsize=16)
def spoken(text: str, voice: str, speed: int) -> "array.array[int]":
    """`text` as speech: 16-bit samples at 8 kHz. Raises DeliveryError where espeak-ng is missing, has no such voice or is stuck."""
    # [[ ]] would be read as phonemes; a text of signs only says nothing.
    words = text.replace("[[", "[ [").replace("\0", " ").strip()
    with tempfile.TemporaryDirectory(prefix="call-") as folder:
        file = Path(folder) / "speech.wav"
        try:
            done = subprocess.run(
                [PROGRAM, "-v", voice, "-s", str(speed), "-b", "1", "-w", str(file), "--stdin"],
                input=words.encode("utf-8", "replace"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=SPEECH_SECONDS, check=False,
            )  # fmt: skip
        except FileNotFoundError:
            raise DeliveryError(missing() or PROGRAM, permanent=True, config=True) from None
        except subprocess.TimeoutExpired:
            raise DeliveryError(_("%(program)s took too long to speak the text.") % {"program": PROGRAM}, permanent=False) from None
        try:
            with wave.open(str(file), "rb") as found:
                rate, shape = found.getframerate(), (found.getnchannels(), found.getsampwidth())
                samples = array.array("h", found.readframes(min(found.getnframes(), int(LONGEST * rate))))
        except (OSError, EOFError, wave.Error, ValueError):
            shape = (0, 0)
    if shape != (1, 2) or not any(samples):
        said = " ".join(done.stderr.decode("utf-8", "replace").split())[:200]
        raise DeliveryError(
            _("%(program)s gave no speech (voice %(voice)s): %(said)s")
            % {"program": PROGRAM, "voice": voice, "said": said or done.returncode},
            permanent=True,
            config=True,
        )
    if sys.byteorder == "big":
        samples.byteswap()
    return _narrowed(samples, rate)


def _narrowed(samples: "array.array[int]", rate: int) -> "array.array[int]":
    """The same sound at 8 kHz, each new sample the mean of those it replaces (a phone carries nothing above 3.4 kHz), at a fair volume."""
    sums = [0, *itertools.accumulate(samples)]
    step = rate / RATE
    edges = [min(len(samples), round(number * step)) for number in range(int(len(samples) / step) + 1)]
    means = [(sums[end] - sums[begin]) // max(1, end - begin) for begin, end in itertools.pairwise(edges)]
    loudest = max(map(abs, means), default=0) or 1
    return array.array("h", [mean * 23_000 // loudest for mean in means])


@functools.lru_cache(maxsize=2)
def law(payload: int) -> bytes:
    """G.711 as a table over the upper 14 bits of a sample: payload type 0 is µ-law, 8 is A-law."""
    return bytes((_ulaw if payload == 0 else _alaw)((number if number < 8192 else number - 16384) << 2) for number in range(16384))


def _ulaw(sample: int) -> int:
    sign, size = (0x80, -sample) if sample < 0 else (0, sample)
    size = min(size, 32_635) + 0x84
    exponent = size.bit_length() - 8
    return ~(sign | exponent << 4 | size >> exponent + 3 & 0x0F) & 0xFF


def _alaw(sample: int) -> int:
    sign, size = (0xD5, sample >> 3) if sample >= 0 else (0x55, (-sample - 1) >> 3)
    segment = max(0, size.bit_length() - 5)
    return (segment << 4 | size >> max(1, segment) & 0x0F) ^ sign


def frames(sound: "array.array[int]", payload: int) -> Iterator[bytes]:
    """The whole call in packets of 20 ms: the text twice."""
    table = law(payload)
    silence = bytes([table[0]]) * FRAME
    speech = bytes(table[sample >> 2 & 0x3FFF] for sample in sound)
    speech += silence[: -len(speech) % FRAME]

    def quiet(seconds: float) -> Iterator[bytes]:
        return itertools.repeat(silence, round(seconds * RATE / FRAME))

    def words() -> Iterator[bytes]:
        return (speech[at : at + FRAME] for at in range(0, len(speech), FRAME))

    return itertools.chain(quiet(LEAD), words(), quiet(PAUSE), words(), quiet(TAIL))
