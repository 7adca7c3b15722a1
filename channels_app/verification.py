"""Proof that a phone, a mailbox or an account at an IM platform is its owner's: six digits, ten minutes, five tries, and limits on how often a code may be sent.

The code travels as a notification of the event "code" through the outbox, like everything that leaves; what carries it is encrypted and
wiped when the message has left."""

import secrets
from datetime import datetime, timedelta
from typing import Any, Final

from django.conf import settings
from django.contrib.auth.hashers import check_password, make_password
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from channels_app import addresses, outbox, transport
from channels_app.models import Account, Channel, Verification
from mapping.crypto import fingerprint
from mapping.models import ContactPoint, Throttle
from templates_app import events

MINUTES: Final = 10
TRIES: Final = 5
RESEND_AFTER: Final = timedelta(seconds=60)
# (whose, how many, in what time). Each code to a phone costs money, and a thief of an account would spend ours.
LIMITS: Final = (("member", 10, timedelta(hours=1)), ("target", 5, timedelta(hours=1)), ("installation", 200, timedelta(hours=1)))


def send_code(of: ContactPoint | Account, now: datetime) -> None:
    """Sends a new code to the contact point or the account; the one before is void. ValidationError with a sentence when it cannot or may not
    be sent now. To an account it goes through its own channel, so that whoever reads it there has it."""
    channel, target = _way(of, now)
    with transaction.atomic():
        # The row is locked, so that two tabs cannot both send.
        locked = type(of)._default_manager.select_for_update(of=("self",)).get(pk=of.pk)
        last = Verification.objects.filter(**_owner(locked)).first()
        if last is not None and now < last.sent_at + RESEND_AFTER:
            wait = int((last.sent_at + RESEND_AFTER - now).total_seconds()) + 1
            raise ValidationError(_("A code was sent a moment ago. Wait %(seconds)d seconds.") % {"seconds": wait}, code="too_soon")
        place = locked.value if isinstance(locked, ContactPoint) else f"{locked.channel_id} {locked.target}"
        for whose, most, window in LIMITS:
            name = {"member": f"{locked.member_id}", "target": fingerprint(place)[:32], "installation": "1"}[whose]
            if not Throttle.hit(f"code {whose} {name}", most, window, now):
                raise ValidationError(_("Too many codes were sent. Try again in an hour."), code="too_many")
        code = f"{secrets.randbelow(1_000_000):06d}"
        Verification.objects.update_or_create(
            **_owner(locked),
            defaults={"code_hash": make_password(code), "tries": 0, "sent_at": now, "expires_at": now + timedelta(minutes=MINUTES)},
        )
        context = dict(events.build_code(code, MINUTES))
        secret = {"code": context.pop("code")}
        to = outbox.To(channel.id, target, locked.member_id)
        outbox.post(
            [outbox.Notice(event=events.CODE, severity="Info", context=context, secret_context=secret, to=(to,), is_page=False)], now
        )


def verify(of: ContactPoint | Account, code: str, now: datetime) -> None:
    """Marks the contact point or the account as verified when `code` is the one that was sent; else ValidationError with a sentence."""
    wrong = None
    with transaction.atomic():
        row = Verification.objects.select_for_update(of=("self",)).filter(**_owner(of)).first()
        if row is None or now >= row.expires_at:
            wrong = ValidationError(_("This code is not valid any more. Ask for a new one."), code="expired")
        elif row.tries >= TRIES:
            wrong = ValidationError(_("Too many wrong codes. Ask for a new one."), code="tries")
        elif not check_password("".join(code.split()), row.code_hash):
            # Counted in the same transaction as the look, and committed although we refuse.
            Verification.objects.filter(pk=row.pk).update(tries=row.tries + 1)
            wrong = ValidationError(
                _("This is not the code that was sent. Tries left: %(left)d.") % {"left": TRIES - row.tries - 1}, code="wrong"
            )
        else:
            row.delete()
            if isinstance(of, ContactPoint):
                ContactPoint.objects.filter(pk=of.pk).update(verified_at=now, bounced_at=None, bounce_reason="")
            else:
                Account.objects.filter(pk=of.pk).update(verified_at=now)
    if wrong is not None:
        raise wrong
    of.refresh_from_db()


def _owner(of: ContactPoint | Account) -> dict[str, Any]:
    return {"contact_point": of} if isinstance(of, ContactPoint) else {"account": of}


def _way(of: ContactPoint | Account, now: datetime) -> tuple[Channel, str]:
    """The channel that carries the code, and its address there."""
    if isinstance(of, Account):
        channel = Channel.objects.only("id", "kind", "status", "owner_id", "targets").get(pk=of.channel_id)
        if channel.status != "enabled" or channel.owner_id not in (None, of.member_id) or not addresses.is_for_people(channel.kind):
            raise ValidationError(_("No code can be sent to this account: its channel is switched off."), code="no_channel")
        if not addresses.is_private(channel, of):
            raise ValidationError(_("This is where the channel writes to its groups: an account has an address of its own."), code="group")
        return channel, of.target
    found = _channel(of, now)
    if found is not None:
        return found, f"member:{of.member_id}" if transport.get(found.kind).demo else of.value
    if of.kind == ContactPoint.Kind.EMAIL:
        raise ValidationError(_("No e-mail can be sent: an administrator has to set up an e-mail channel first."), code="no_channel")
    raise ValidationError(
        _("No code can be sent to a phone: an administrator has to set up an SMS or voice channel first."), code="no_channel"
    )


def _channel(point: ContactPoint, now: datetime) -> Channel | None:
    """The first vendor that carries a code: e-mail to a mailbox; to a phone an SMS rather than a call, and of those for its region.

    Only of those that administrators keep: by a channel of their own, a team's managers could read the codes and so prove any address theirs.

    Beside a demo, where no real one can, the sandbox's phone or mailbox plays it. In production a played code would prove nothing.
    """
    known = transport.transports()
    played = {"phone": "sandbox_sms", "email": "sandbox_email"}[point.kind] if settings.MODE != "production" else ""
    fitting = [
        row
        for row in Channel.objects.filter(status="enabled", team=None, owner=None).only(*addresses.FIELDS).order_by("position", "id")
        if row.kind in known and (known[row.kind].reach == point.kind or row.kind == played)
    ]
    phone = point.value if point.kind == ContactPoint.Kind.PHONE else ""
    resting = addresses.resting(fitting, "Info", now)
    ordered = [
        row
        for family in dict.fromkeys(addresses.family(row.kind) for row in fitting)
        for row in addresses.vendors(fitting, family, now, member=point.member_id, phone=phone, resting=resting)
    ]
    return min(ordered, key=lambda row: (known[row.kind].demo, known[row.kind].format == "voice"), default=None)
