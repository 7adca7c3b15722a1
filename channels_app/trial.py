"""A test of a channel as it stands, saved or not: one real message, sent at once by whoever asks, and the provider's own answer.

The outbox is left out, since an unsaved channel has no row that a delivery could point to; the message is made and sent by the same code."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

from django.conf import settings as site
from django.db import transaction
from django.utils.translation import gettext as _

from channels_app import compose, limits, transport
from channels_app.book import Open, Person, place_of
from channels_app.compose import Claimed, Result, Said
from channels_app.http import redact
from channels_app.models import Address, Channel
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

    `to_sender`: the target is `sender`'s own, so it speaks their language; else that of the installation. Nothing is kept in the database
    but the instant, which counts for the limits of a saved channel's address: where these allow no message now, none is sent.
    """
    style, provider = transport.get(channel.kind), opened(channel)
    language = sender.language if to_sender else Installation.get().language
    claimed = Claimed(
        id=0, uid=uuid4(), attempt=1, tries=1, possible_repeat=False, is_page=False,
        said=Said(0, TEST, "Info", None, None, build_test(channel.name or str(style.label), sender.name, now), (), has_secret=False),
        channel=Open(
            id=channel.pk or 0, kind=channel.kind, name=channel.name, style=style, transport=provider, trouble="", limits=(),
            fallback_kinds=(), fallback_channel=None,
        ),
        address_id=0, target=target, member=Person(sender.pk, sender.name, sender.language, sender.time_zone) if to_sender else None,
        mentions=(), language=language, deadline_at=now, give_up_at=now, at=now,
    )  # fmt: skip
    if (until := _count(channel, provider, target, now)) is not None:
        seconds = math.ceil((until - now).total_seconds())
        words = _("As many messages as this address takes have just been sent to it. Try again in %(seconds)d seconds.") % {
            "seconds": seconds
        }
        return Result(claimed, now, 0, DeliveryError(words, permanent=False))
    result = compose.send(claimed, now)
    if isinstance(result.said, DeliveryError):
        result.said.text = redact(result.said.text, secrets(style, channel.settings))
    return result


def _count(channel: Channel, provider: Transport, target: str, now: datetime) -> datetime | None:
    """Counts one message to an address of a saved channel, as the drain counts its own; or when the next may leave. Where it is being set up
    for another place there is nothing to count yet."""
    saved = Channel.objects.filter(pk=channel.pk).first() if channel.pk else None
    if saved is None or place_of(saved.kind, saved.settings) != place_of(channel.kind, channel.settings):
        return None
    own = [one for one in limits.own(channel.limits, provider.limits_of(provider.settings)) if one.scope == "address"]
    if not own:
        return None
    with transaction.atomic():
        Address.objects.bulk_create([Address(channel_id=channel.pk, target=target)], ignore_conflicts=True)
        address = Address.objects.select_for_update(no_key=True).get(channel_id=channel.pk, target=target)
        free, until = limits.look(address.buckets, own, now)
        if address.blocked_until is not None and address.blocked_until > now:
            free, until = 0, address.blocked_until
        if free:
            address.buckets = limits.taken(address.buckets, own, now, 1)
            address.save(update_fields=["buckets"])
    return None if free else until


def secrets(style: type[Transport], settings: Mapping[str, Any]) -> set[str]:
    """The secret values among `settings`, those of headers included, for cutting them from a text; short ones would cut ordinary words."""
    found: set[str] = set()
    for name in style.secret:
        value = settings.get(name)
        found |= {str(part) for part in (value.values() if isinstance(value, dict) else [value]) if part and len(str(part)) >= 4}
    return found
