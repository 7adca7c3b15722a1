"""A contact card of the numbers that call people, as vCard 4.0 (RFC 6350), to be imported into a phone so that their calls are let through. Pure.

Numbers are text values and not `tel:` addresses: both are valid in 4.0, and phones that read 4.0 with their parser of 3.0 understand the former."""

from collections.abc import Sequence
from datetime import UTC, datetime

_LINE = 75  # octets, RFC 6350 section 3.2; a line that goes on begins with a space


def card(
    names: Sequence[tuple[str, str]], numbers: Sequence[str], *, notes: Sequence[tuple[str, str]], url: str, uid: str, now: datetime
) -> str:
    """The card of an organisation. `names` and `notes` are (language, text), the reader's language first; `numbers` are E.164; `uid` stays the
    same for the same card, so that importing it again replaces it."""
    lines = ["BEGIN:VCARD", "VERSION:4.0", "KIND:org", "PRODID:-//Flashduty self-hosted//Contact card//EN", f"UID:urn:uuid:{uid}"]
    for name, texts in (("FN", names), ("ORG", names[:1]), ("NOTE", notes)):
        for place, (language, text) in enumerate(texts):
            # The same property in several languages: one of them is to be shown.
            alternative = f";ALTID=1;LANGUAGE={language};PREF={place + 1}" if len(texts) > 1 else ""
            lines.append(f"{name}{alternative}:{_text(text)}")
    for place, number in enumerate(numbers):
        lines.append(f'TEL;TYPE="voice,work";PREF={min(place + 1, 100)}:{_text(number)}')
    lines += [f"URL:{url}", f"REV:{now.astimezone(UTC):%Y%m%dT%H%M%SZ}", "END:VCARD"]
    return "".join(_folded(line) + "\r\n" for line in lines)


def _text(value: str) -> str:
    """A text value: backslash, comma, semicolon and line breaks escaped, other control characters left out."""
    value = value.replace("\\", "\\\\").replace(",", "\\,").replace(";", "\\;").replace("\r\n", "\n").replace("\n", "\\n")
    return "".join(char for char in value if char >= " " and char != "\x7f")


def _folded(line: str) -> str:
    """A line of at most 75 octets each, never cut within a character."""
    parts, room = [""], _LINE
    for char in line:
        size = len(char.encode())
        if size > room:
            parts.append("")
            room = _LINE - 1
        parts[-1] += char
        room -= size
    return "\r\n ".join(parts)
