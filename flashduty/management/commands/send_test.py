"""`manage.py send_test "Ops mail" --as ada@example.com`: sends a real test message by a channel and says what the provider answered."""

import time
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from channels_app.models import Channel, Delivery
from escalation.targets import in_words
from flashduty.console.testing import may_test, send_test
from mapping.models import Member

WAITING = (Delivery.State.QUEUED, Delivery.State.SENDING)


class Command(BaseCommand):
    help = "Sends a test message by a channel, as the console's button does, and waits for the result. The workers must be running."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("channel", help="the channel's id or alias")
        parser.add_argument(
            "--as", dest="member", metavar="EMAIL", required=True, help="who sends it; a channel that reaches persons tests to this one"
        )
        parser.add_argument("--wait", type=float, default=30.0, metavar="SECONDS", help="how long to wait for the result (30)")

    def handle(self, *args: Any, **options: Any) -> None:
        member = Member.objects.filter(email__iexact=options["member"], is_active=True).first()
        if member is None:
            raise CommandError(_("--as: there is no active member with the e-mail %(email)s.") % {"email": options["member"]})
        channel = self._channel(options["channel"], member)
        try:
            delivery_id = send_test(channel, member)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        delivery = self._result(delivery_id, options["wait"])
        attempts = "".join(f"\n  {line}" for line in delivery.log)
        if delivery.state in WAITING and not delivery.attempts:
            raise CommandError(
                _("Nothing has taken the message within %(seconds).0f s. Are the workers running?") % {"seconds": options["wait"]}
            )
        said = f"{delivery.get_state_display()} {in_words(delivery.reason)}{attempts}".strip()
        if delivery.state in (Delivery.State.SENT, Delivery.State.DELIVERED, Delivery.State.ANSWERED):
            self.stdout.write(self.style.SUCCESS(said))
        else:
            raise CommandError(said)

    def _channel(self, what: str, member: Member) -> Channel:
        rows = Channel.objects.exclude(status="deleted")
        found = list((rows.filter(id=int(what)) if what.isdigit() else rows.filter(name=what))[:2])
        if len(found) > 1:
            raise CommandError(_("Several channels have the alias %(name)s: give the id.") % {"name": what})
        if not found or not may_test(member, found[0]):
            raise CommandError(_("There is no channel %(name)s that this member may test.") % {"name": what})
        return found[0]

    def _result(self, delivery_id: int, seconds: float) -> Delivery:
        until = time.monotonic() + seconds
        while True:
            delivery = Delivery.objects.get(id=delivery_id)
            failed_once = delivery.state == Delivery.State.QUEUED and delivery.attempts > 0
            if delivery.state not in WAITING or failed_once or time.monotonic() > until:
                return delivery
            time.sleep(0.2)
