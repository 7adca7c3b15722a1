"""A test of a channel as it stands, saved or not: one real message, sent at once by whoever asks, and the provider's own answer.

The outbox is left out, since an unsaved channel has no row that a delivery could point to; the message is made and sent by the same code."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

from django.conf import settings as site

from channels_app import compose, transport
from channels_app.book import Open, Person
from channels_app.compose import Claimed, Result, Said
from channels_app.http import redact
from channels_app.models import Channel
from channels_app.transport import DeliveryError, Http, Transport
from mapping.models import Installation, Member
from templates_app.events import TEST, build_test


def opened(channel: Channel) -> Transport:
    """The transport of a channel that may never have been saved. What a provider reports about a test finds only a saved one."""
    door = Http(channel.proxy, channel.ca_bundle, channel.allowed_hosts)
    callback = f"{site.BASE_URL}/callback/{channel.callback_key}/" if channel.pk else ""
    return transport.get(channel.kind)(channel.settings, door, callback)


def send(channel: Channel, target: str, sender: Member, now: datetime, *, to_sender: bool) -> Result:
    """Sends a test to `target` and says how it went, within the time that http.py allows a message; never raises for what a provider says.

    `to_sender`: the target is `sender`'s own, so it speaks their language; else that of the installation. Nothing is kept in the database.
    """
    style = transport.get(channel.kind)
    language = sender.language if to_sender else Installation.get().language
    claimed = Claimed(
        id=0, uid=uuid4(), attempt=1, tries=1, possible_repeat=False, is_page=False,
        said=Said(0, TEST, "Info", None, None, build_test(channel.name or str(style.label), sender.name, now), (), has_secret=False),
        channel=Open(
            id=channel.pk or 0, kind=channel.kind, name=channel.name, style=style, transport=opened(channel), trouble="", limits=(),
            fallback_kinds=(), fallback_channel=None,
        ),
        address_id=0, target=target, member=Person(sender.pk, sender.name, sender.language, sender.time_zone) if to_sender else None,
        mentions=(), language=language, deadline_at=now, give_up_at=now, at=now,
    )  # fmt: skip
    result = compose.send(claimed, now)
    if isinstance(result.said, DeliveryError):
        result.said.text = redact(result.said.text, secrets(style, channel.settings))
    return result


def secrets(style: type[Transport], settings: Mapping[str, Any]) -> set[str]:
    """The secret values among `settings`, those of headers included, for cutting them from a text; short ones would cut ordinary words."""
    found: set[str] = set()
    for name in style.secret:
        value = settings.get(name)
        found |= {str(part) for part in (value.values() if isinstance(value, dict) else [value]) if part and len(str(part)) >= 4}
    return found
