"""How long an SMS is: the alphabet it needs, the parts it is sent in, and a text brought to what a number of parts can hold.

Source: 3GPP TS 23.038 (alphabets) and 23.040 (concatenation). A part holds 160 septets of the GSM alphabet or 70 UTF-16 units, and 7 septets
or 3 units less where a message has several; neither an escaped character nor a surrogate pair is ever divided between two parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

GSM: Final = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿abcdefghijklmnopqrstuvwxyzäöñüà"
)
EXTENSION: Final = frozenset("\f^{}\\[~]|€")  # an escape and a septet each
SINGLE: Final = {"GSM-7": 160, "UCS-2": 70}
PART: Final = {"GSM-7": 153, "UCS-2": 67}
# What a phone writes nearly alike, but which would make the whole message UCS-2: less than half as much in a part.
_PLAIN: Final = str.maketrans(
    {
        "‘": "'", "’": "'", "‚": "'", "‛": "'", "`": "'", "´": "'", "′": "'", "“": '"', "”": '"', "„": '"', "″": '"', "«": '"', "»": '"',
        "‐": "-", "‑": "-", "‒": "-", "–": "-", "—": "-", "−": "-", "…": "...", "•": "-", "·": "-", "→": "->", "←": "<-", "\t": " ",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "\ufeff": "",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segments:
    """`count` parts in `encoding`; `units` are septets (GSM-7) or UTF-16 units (UCS-2) of the text, without the headers of the parts."""

    count: int
    encoding: Literal["GSM-7", "UCS-2"]
    units: int


def segments(text: str) -> Segments:
    """The parts in which `text` is sent as it is. An empty text is one part."""
    encoding: Literal["GSM-7", "UCS-2"] = "GSM-7" if all(char in GSM or char in EXTENSION for char in text) else "UCS-2"
    sizes = [_units(char, encoding) for char in text]
    total = sum(sizes)
    if total <= SINGLE[encoding]:
        return Segments(1, encoding, total)
    count, used = 1, 0
    for size in sizes:
        if used + size > PART[encoding]:
            count, used = count + 1, 0
        used += size
    return Segments(count, encoding, total)


def simplify(text: str) -> str:
    """`text` with typographic quotes, dashes, dots and spaces replaced by plain ones, if that lets it be sent in the GSM alphabet; else as it is."""
    plain = text.translate(_PLAIN)
    return plain if segments(plain).encoding == "GSM-7" else text


def parts(text: str) -> int:
    """How many parts `text` is sent in, where it goes in the GSM alphabet if it can."""
    return segments(text).count


def fit(text: str, most: int, keep: str = "", count: Callable[[str], int] = parts) -> str:
    """`text` in at most `most` parts: what is too much is cut at the end, at a space where one is near, and `keep` (a link to the rest) follows
    the dots. `keep` is never cut; a text that fits is returned as it is. `count` says how many parts a text has, where that is not for the
    text alone to decide (an alphabet that somebody has chosen)."""
    if count(text) <= most:
        return text
    tail = f"... {keep}" if keep else "..."
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle] + tail) <= most else (low, middle - 1)
    head = text[:low].rstrip()
    word = head.rfind(" ")
    if word > len(head) * 3 // 4:
        head = head[:word].rstrip()
    return head + tail


def measure(text: str) -> str:
    """What a preview says of the length of `text` as an SMS."""
    found = segments(text)
    room = SINGLE[found.encoding] if found.count == 1 else PART[found.encoding] * found.count
    return ngettext(
        "%(count)d SMS part (%(encoding)s, %(units)d of %(room)d characters)",
        "%(count)d SMS parts (%(encoding)s, %(units)d of %(room)d characters)",
        found.count,
    ) % {
        "count": found.count,
        "encoding": found.encoding,
        "units": found.units,
        "room": room,
    } + ("" if found.encoding == "GSM-7" else " " + _("Characters outside the GSM alphabet (Chinese, emoji) make the parts shorter."))


def _units(char: str, encoding: str) -> int:
    if encoding == "GSM-7":
        return 2 if char in EXTENSION else 1
    return 2 if ord(char) > 0xFFFF else 1
