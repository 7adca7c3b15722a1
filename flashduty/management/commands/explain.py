"""`manage.py explain 3f2a1c`: what happened to an incident, who was told and who was not and why, and what will happen next."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from escalation import explain
from escalation.ids import parse_hex
from escalation.models import Event, Incident
from mapping.clock import db_now
from mapping.models import Member


class Command(BaseCommand):
    help = "Tells the whole story of an incident (number or 24-digit id), or what became of an event (24-digit id or key with --event)."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("what", help="an incident's number (six hex digits), its 24-digit id, or with --event an event's")
        parser.add_argument("--event", action="store_true", help="the id is an event's")
        parser.add_argument("--as", dest="viewer", metavar="EMAIL", help="show what this member may see; without it addresses are masked")

    def handle(self, *args: Any, **options: Any) -> None:
        now, viewer = db_now(), None
        if options["viewer"]:
            viewer = Member.objects.filter(email__iexact=options["viewer"], is_active=True).first()
            if viewer is None:
                raise CommandError(_("--as: there is no active member with the e-mail %(email)s.") % {"email": options["viewer"]})
        what = options["what"].strip().lstrip("#").lower()
        if options["event"]:
            event = Event.objects.select_related("alert__incident__workspace").filter(id=self._key(what)).first()
            if event is None:
                raise CommandError(_("There is no event %(id)s.") % {"id": what})
            self.stdout.write(explain.explain_event(event))
            incident = event.alert.incident if event.alert is not None else None
            if incident is None:
                return
        else:
            incident = self._incident(what)
        if viewer is not None and not Incident.objects.visible_to(viewer).filter(id=incident.id).exists():
            raise CommandError(_("There is no incident %(id)s.") % {"id": what})
        self.stdout.write(explain.as_text(explain.explain(incident, now, viewer)))

    def _incident(self, what: str) -> Incident:
        rows = Incident.objects.select_related("workspace")
        pk = parse_hex(what)
        # A number is unique while its incident is open; of closed ones the newest is meant.
        found = rows.filter(id=pk).first() if pk is not None else rows.filter(num=what).order_by("-id").first()
        if found is None:
            raise CommandError(
                _("There is no incident %(id)s. Give its number (six hex digits, as in #3f2a1c) or its 24-digit id.") % {"id": what}
            )
        return found

    def _key(self, what: str) -> int:
        pk = parse_hex(what)
        if pk is None and what.isdigit():
            pk = int(what)
        if pk is None:
            raise CommandError(_("%(id)s is not an event's id.") % {"id": what})
        return pk
