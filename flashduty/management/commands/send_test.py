"""`manage.py send_test "Ops mail" --as ada@example.com`: sends a real test message by a channel and says what the provider answered.

`manage.py send_test --kind dingtalk --set url=https://... --set keyword=# --as ada@example.com` does so for a channel that is not saved."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from channels_app import transport
from channels_app.models import Channel, Delivery
from escalation.targets import in_words
from flashduty.console import testing
from mapping.clock import db_now
from mapping.models import Member

WAITING = (Delivery.State.QUEUED, Delivery.State.SENDING)


class Command(BaseCommand):
    help = (
        "Sends a test message by a channel and says what the provider answered; the exit code is 0 when it was accepted and 1 when it was not. "
        "A saved channel goes through the outbox, as the console's button does, and the workers must be running; with --now, or for --kind, "
        "the provider is asked at once."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("channel", nargs="?", default="", help="the channel's id or alias")
        parser.add_argument(
            "--as", dest="member", metavar="EMAIL", required=True, help="who sends it; a channel that reaches persons tests to this one"
        )
        parser.add_argument("--wait", type=float, default=30.0, metavar="SECONDS", help="how long to wait for the result (30)")
        parser.add_argument("--now", action="store_true", help="ask the provider at once, without the outbox")
        parser.add_argument("--to", default="", metavar="ADDRESS", help="a phone or mailbox instead of one's own; at once")
        parser.add_argument("--kind", default="", help="a channel that is not saved: its kind, such as dingtalk")
        parser.add_argument(
            "--set", dest="values", action="append", default=[], metavar="NAME=VALUE", help="a setting of it; repeat as needed"
        )
        parser.add_argument(
            "--from",
            dest="source",
            default="",
            metavar="FILE",
            help="its settings as a JSON object in a file (-: standard input), so that no secret is typed",
        )
        parser.add_argument("--allow", action="append", default=[], metavar="HOST:PORT", help="a private address that it may reach")
        parser.add_argument("--proxy", default="", help="its proxy, such as http://proxy.example.com:3128")

    def handle(self, *args: Any, **options: Any) -> None:
        member = Member.objects.filter(email__iexact=options["member"], is_active=True).first()
        if member is None:
            raise CommandError(_("--as: there is no active member with the e-mail %(email)s.") % {"email": options["member"]})
        if bool(options["channel"]) == bool(options["kind"]):
            raise CommandError(_("Give the id or alias of a channel, or --kind for one that is not saved."))
        if options["kind"]:
            self._at_once(self._unsaved(options, member), member, options["to"])
            return
        channel = self._channel(options["channel"], member)
        if options["now"] or options["to"]:
            self._at_once(channel, member, options["to"])
            return
        try:
            delivery_id = testing.send_test(channel, member)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        delivery = self._result(delivery_id, options["wait"])
        attempts = "".join(f"\n  {line}" for line in testing.attempts(delivery))
        if delivery.state in WAITING and not delivery.attempts:
            raise CommandError(
                _("Nothing has taken the message within %(seconds).0f s. Are the workers running?") % {"seconds": options["wait"]}
            )
        said = f"{delivery.get_state_display()} {in_words(delivery.reason)}{attempts}".strip()
        if delivery.state in (Delivery.State.SENT, Delivery.State.DELIVERED, Delivery.State.ANSWERED):
            self.stdout.write(self.style.SUCCESS(said))
        else:
            raise CommandError(said)

    def _at_once(self, channel: Channel, member: Member, to: str) -> None:
        try:
            said = testing.connection(channel, member, db_now(), to=to)
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from None
        for one in said:
            place = f" [{one.place}]" if one.place else ""
            text = f"{_('Accepted') if one.accepted else _('Refused')}{place}: {one.text} ({'; '.join(one.details)})"
            self.stdout.write(self.style.SUCCESS(text) if one.accepted else self.style.ERROR(text))
        if not all(one.accepted for one in said):
            raise CommandError(_("Not accepted."))

    def _unsaved(self, options: dict[str, Any], member: Member) -> Channel:
        if not member.is_administrator:
            raise CommandError(_("--as: only an administrator tries a channel that is not saved."))
        try:
            style = transport.get(options["kind"])
        except LookupError as error:
            raise CommandError(str(error)) from None
        values: dict[str, Any] = {}
        if options["source"]:
            try:
                values = json.loads(sys.stdin.read() if options["source"] == "-" else Path(options["source"]).read_text())
            except (OSError, ValueError) as error:
                raise CommandError(_("--from: it cannot be read: %(why)s") % {"why": type(error).__name__}) from None
            if not isinstance(values, dict):
                raise CommandError(_('--from: a JSON object is needed, such as {"url": "https://..."}.'))
        for pair in options["values"]:
            name, equals, value = pair.partition("=")
            if not equals:
                raise CommandError(_("--set: write NAME=VALUE, such as keyword=alarm."))
            values[name] = value
        known = style.Settings().fields
        if unknown := sorted(values.keys() - known.keys()):
            raise CommandError(
                _("%(kind)s has no setting %(name)s; there are: %(names)s.")
                % {"kind": style.kind, "name": unknown[0], "names": ", ".join(known)}
            )
        # What a form would show as its first value stands for what is not given.
        form = style.Settings(data={name: field.initial for name, field in known.items() if field.initial is not None} | values)
        if not form.is_valid():
            raise CommandError(" ".join(f"{name}: {line}" for name, lines in form.errors.items() for line in lines))
        return Channel(
            name=str(style.label), kind=style.kind, settings=form.cleaned_data, allowed_hosts=options["allow"], proxy=options["proxy"]
        )

    def _channel(self, what: str, member: Member) -> Channel:
        rows = Channel.objects.exclude(status="deleted")
        found = list((rows.filter(id=int(what)) if what.isdigit() else rows.filter(name=what))[:2])
        if len(found) > 1:
            raise CommandError(_("Several channels have the alias %(name)s: give the id.") % {"name": what})
        if not found or not testing.may_test(member, found[0]):
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
