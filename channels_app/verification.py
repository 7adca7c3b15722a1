"""Proof that a phone or a mailbox is its owner's: six digits, ten minutes, five tries, and limits on how often a code may be sent.

The code travels as a notification of the event "code" through the outbox, like everything that leaves; what carries it is encrypted and
wiped when the message has left."""

import secrets
from datetime import datetime, timedelta
from typing import Final

from django.conf import settings
from django.contrib.auth.hashers import check_password, make_password
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from channels_app import outbox, transport
from channels_app.models import Channel, Verification
from mapping.crypto import fingerprint
from mapping.models import ContactPoint, Throttle
from templates_app import events

MINUTES: Final = 10
TRIES: Final = 5
RESEND_AFTER: Final = timedelta(seconds=60)
# (whose, how many, in what time). Each code to a phone costs money, and a thief of an account would spend ours.
LIMITS: Final = (("member", 10, timedelta(hours=1)), ("target", 5, timedelta(hours=1)), ("installation", 200, timedelta(hours=1)))


def send_code(point: ContactPoint, now: datetime) -> None:
    """Sends a new code to the contact point; the one before is void. ValidationError with a sentence when it cannot or may not be sent now."""
    channel = _channel(point.kind)
    if channel is None:
        if point.kind == ContactPoint.Kind.EMAIL:
            raise ValidationError(_("No e-mail can be sent: an administrator has to set up an e-mail channel first."), code="no_channel")
        raise ValidationError(
            _("No code can be sent to a phone: an administrator has to set up an SMS or voice channel first."), code="no_channel"
        )
    with transaction.atomic():
        # The point's row is locked, so that two tabs cannot both send.
        locked = ContactPoint.objects.select_for_update().get(pk=point.pk)
        last = Verification.objects.filter(contact_point=locked).first()
        if last is not None and now < last.sent_at + RESEND_AFTER:
            wait = int((last.sent_at + RESEND_AFTER - now).total_seconds()) + 1
            raise ValidationError(_("A code was sent a moment ago. Wait %(seconds)d seconds.") % {"seconds": wait}, code="too_soon")
        for whose, most, window in LIMITS:
            name = {"member": f"{locked.member_id}", "target": fingerprint(locked.value)[:32], "installation": "1"}[whose]
            if not Throttle.hit(f"code {whose} {name}", most, window, now):
                raise ValidationError(_("Too many codes were sent. Try again in an hour."), code="too_many")
        code = f"{secrets.randbelow(1_000_000):06d}"
        Verification.objects.update_or_create(
            contact_point=locked,
            defaults={"code_hash": make_password(code), "tries": 0, "sent_at": now, "expires_at": now + timedelta(minutes=MINUTES)},
        )
        context = dict(events.build_code(code, MINUTES))
        secret = {"code": context.pop("code")}
        played = transport.get(channel.kind).demo
        to = outbox.To(channel.id, f"member:{locked.member_id}" if played else locked.value, locked.member_id)
        outbox.post(
            [outbox.Notice(event=events.CODE, severity="Info", context=context, secret_context=secret, to=(to,), is_page=False)], now
        )


def verify(point: ContactPoint, code: str, now: datetime) -> None:
    """Marks the contact point as verified when `code` is the one that was sent; else ValidationError with a sentence."""
    wrong = None
    with transaction.atomic():
        row = Verification.objects.select_for_update().filter(contact_point=point).first()
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
            ContactPoint.objects.filter(pk=point.pk).update(verified_at=now, bounced_at=None, bounce_reason="")
    if wrong is not None:
        raise wrong
    point.refresh_from_db()


def _channel(kind: str) -> Channel | None:
    """The first enabled channel that carries a code: e-mail to a mailbox; to a phone an SMS rather than a call.

    Only of those that administrators keep: by a channel of their own, a team's managers could read the codes and so prove any address theirs.

    Beside a demo, where no real one can, the sandbox's phone or mailbox plays it. In production a played code would prove nothing.
    """
    known = transport.transports()
    played = {"phone": "sandbox_sms", "email": "sandbox_email"}[kind] if settings.MODE != "production" else ""
    fitting = [
        row
        for row in Channel.objects.filter(status="enabled", team=None).only("id", "kind").order_by("position", "id")
        if row.kind in known and (known[row.kind].reach == kind or row.kind == played)
    ]
    return min(fitting, key=lambda row: (known[row.kind].demo, known[row.kind].format == "voice"), default=None)
