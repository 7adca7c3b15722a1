"""An address that its provider has renamed: what waits for it, the settings that name it and the accounts that are it follow."""

import logging
from datetime import datetime

from django.db import DatabaseError, transaction

from channels_app import transport
from channels_app.models import Account, Address, Channel, Delivery

log = logging.getLogger(__name__)


def move(channel_id: int, old: str, new: str, now: datetime) -> None:
    """From now on `new` instead of `old`, as the provider of this channel said.

    In a transaction of its own after the record of the message that was told so: where it fails, the next message is told the same.
    """
    try:
        with transaction.atomic():
            _move_address(channel_id, old, new, now)
            _move_accounts(channel_id, old, new)
            _move_settings(channel_id, old, new)
        log.info("an address of channel %d has become another one, says its provider", channel_id)
    except (DatabaseError, ValueError):  # two drains at once, or settings that no key opens
        log.warning("an address of channel %d has become another one, which could not be written yet", channel_id, exc_info=True)


def _move_address(channel_id: int, old: str, new: str, now: datetime) -> None:
    rows = Address.objects.select_for_update(no_key=True).filter(channel_id=channel_id, target__in=[old, new]).order_by("id")
    places = {row.target: row for row in rows}
    was, becomes = places.get(old), places.get(new)
    if was is None:
        return
    if becomes is None:
        was.target = new
        was.save(update_fields=["target"])
        return
    # There are messages to both: what waits at the old one goes on at the new one, and what was sent stays where it was sent to.
    ids = list(
        Delivery.objects.select_for_update(no_key=True).filter(address=was, state="queued").order_by("id").values_list("id", flat=True)
    )
    Delivery.objects.filter(id__in=ids).update(address=becomes)
    becomes.next_at = min(now, becomes.next_at or now) if ids else becomes.next_at
    becomes.priority = min(becomes.priority, was.priority)
    becomes.save(update_fields=["next_at", "priority"])
    was.next_at = None
    was.save(update_fields=["next_at"])


def _move_accounts(channel_id: int, old: str, new: str) -> None:
    for account in Account.objects.select_for_update(of=("self",)).filter(channel_id=channel_id, target=old).order_by("id"):
        twin = Account.objects.filter(channel_id=channel_id, member_id=account.member_id, target=new).first()
        if twin is None:
            account.target = new
            account.save(update_fields=["target"])
            continue
        if twin.verified_at is None and account.verified_at is not None:
            twin.verified_at = account.verified_at
            twin.save(update_fields=["verified_at"])
        account.delete()


def _move_settings(channel_id: int, old: str, new: str) -> None:
    channel = Channel.objects.select_for_update(no_key=True, of=("self",)).get(id=channel_id)
    settings = dict(transport.get(channel.kind).moved(channel.settings, old, new))
    if settings != channel.settings:
        channel.settings = settings
        channel.save(update_fields=["settings", "updated_at"])
