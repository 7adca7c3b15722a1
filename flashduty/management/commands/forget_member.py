"""`manage.py forget_member ada@example.com`: erases a person who has left; the history keeps their id."""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from escalation import forgetting
from escalation.models import EscalationRule, Workspace
from mapping.clock import db_now
from mapping.models import Installation, Member


class Command(BaseCommand):
    help = "Erases a person's addresses, devices, keys and what was sent to them, and deactivates them. It cannot be undone."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("email", help="the e-mail the member signs in with")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *args: Any, **options: Any) -> None:
        member = Member.objects.filter(email__iexact=options["email"].strip()).first()
        if member is None:
            raise CommandError(_("There is no member with the e-mail %(email)s.") % {"email": options["email"]})
        if not options["yes"]:
            self._ask(member)
        try:
            gone = forgetting.forget(member, db_now())
        except forgetting.LastAdministrator:
            raise CommandError(_("This is the last administrator: make somebody else one first.")) from None
        in_flight = gone.pop("in flight", 0)
        names = {
            "contact points": _("contact points"), "devices": _("devices"), "accounts": _("IM accounts"), "keys": _("APP keys"),
            "preferences": _("preferences"), "entries of mapping tables": _("entries of mapping tables"), "own channels": _("channels of their own"),
            "addresses": _("addresses"), "messages": _("messages to them"), "texts": _("texts about them"),
        }  # fmt: skip
        member.refresh_from_db()
        what = ", ".join(f"{gone[name]} {word}" for name, word in names.items() if gone[name]) or _("nothing was left")
        self.stdout.write(_("%(member)s is erased: %(what)s.") % {"member": member.name, "what": what})
        if in_flight:
            again = _("%(count)d messages to them were on their way: run this again in a minute, with %(email)s.")
            self.stdout.write(again % {"count": in_flight, "email": member.email})
        if places := self._still_named(member):
            self.stdout.write(_("Still chosen there, and never told: %(places)s.") % {"places": ", ".join(places)})

    def _ask(self, member: Member) -> None:
        self.stdout.write(
            _(
                "This erases %(name)s <%(email)s>: addresses, devices, keys, preferences, and the texts of messages to them. It cannot be undone."
            )
            % {"name": member.name, "email": member.email}
        )
        if not sys.stdin.isatty():
            raise CommandError(_("Nobody is there to confirm it: give --yes."))
        if input(_("Write the e-mail again to confirm: ")).strip().lower() != member.email.lower():
            raise CommandError(_("Nothing was erased."))

    def _still_named(self, member: Member) -> list[str]:
        chosen = EscalationRule.objects.filter(layers__members=member).exclude(status="deleted").distinct()
        places = [_("rule “%(name)s”") % {"name": rule.name} for rule in chosen]
        spaces = Workspace.objects.filter(catch_all_members=member).exclude(status="deleted")
        places += [_("catch-all of “%(name)s”") % {"name": space.name} for space in spaces]
        if Installation.get().catch_all_members.filter(pk=member.pk).exists():
            places.append(_("catch-all of the installation"))
        return places
