"""The ids of the reference's wire format: 24 hex digits, eight of the creation second and sixteen of the key. Reversible, sortable, no second column."""

import re
from datetime import datetime

_HEX = re.compile(r"^[0-9a-f]{24}$")


def hex_id(created: datetime, pk: int) -> str:
    """The wire id of a row made at `created` with key `pk`."""
    return f"{int(created.timestamp()) & 0xFFFFFFFF:08x}{pk:016x}"


def parse_hex(text: object) -> int | None:
    """The key in a wire id; None when it is not one. The caller compares the creation second by building the id again."""
    if not isinstance(text, str) or not _HEX.match(text):
        return None
    pk = int(text[8:], 16)
    return pk if pk < 2**63 else None


def num(pk: int) -> str:
    """An incident's short number: six hex digits, unique among any sixteen million neighbours."""
    return f"{pk & 0xFFFFFF:06x}"
