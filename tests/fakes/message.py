"""A message as the outbox hands it to a transport."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from channels_app.transport import Message

SENT_AT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)  # Unix 1700000000

_PAGE = Message(
    delivery_id="0d0f1b5e-5a43-4b52-9f0c-2f1d2a0c9f11",
    event="triggered",
    severity="Critical",
    subject="Database is down",
    text="**Database is down**\n#A1B2C3 Critical",
    sent_at=SENT_AT,
    title="Database is down",
    url="https://oncall.example.com/i/a1b2c3",
    incident_id="6553f0c00000000000000001",
    num="A1B2C3",
    layer_idx=0,
    incidents=(
        {
            "id": "6553f0c00000000000000001", "title": "Database is down", "severity": "Critical", "event": "triggered",
            "possible_repeat": False, "url": "https://oncall.example.com/i/a1b2c3", "num": "A1B2C3",
        },
    ),
)  # fmt: skip


def page(**changes: Any) -> Message:
    """The first page of a critical incident, with `changes`."""
    return replace(_PAGE, **changes)
