"""`manage.py explain 3f2a1c`: what happened to an incident, who was told and who was not and why, and what will happen next.

An event is explained too: `manage.py explain 4711`, the id that its page in the console shows."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from escalation import explain
from escalation.ids import hex_id, parse_hex
from escalation.models import Event, Incident, Workspace
from mapping.clock import db_now
from mapping.models import Member


class Command(BaseCommand):
    help = "Tells the whole story of an incident, or what became of an event and of the incident it belongs to."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("what", help="an incident's number (six hex digits) or 24-digit id, or an event's id (the console shows it)")
        parser.add_argument("--event", action="store_true", help="the id is an event's, where an incident has the same")
        parser.add_argument("--as", dest="viewer", metavar="EMAIL", help="show what this member may see; without it addresses are masked")

    def handle(self, *args: Any, **options: Any) -> None:
        viewer = None
        if options["viewer"]:
            viewer = Member.objects.filter(email__iexact=options["viewer"], is_active=True).first()
            if viewer is None:
                raise CommandError(_("--as: there is no active member with the e-mail %(email)s.") % {"email": options["viewer"]})
        what = options["what"].strip().lstrip("#").lower()
        incident = None if options["event"] else self._incident(what, viewer)
        if incident is None:
            event = self._event(what)
            incident = event.alert.incident if event is not None and event.alert is not None else None
            if incident is not None and not self._sees(viewer, Incident, incident.pk):
                incident = None
            if event is None or (incident is None and not self._sees(viewer, Workspace, event.integration.workspace_id)):
                if options["event"]:
                    raise CommandError(_("There is no event %(id)s.") % {"id": what})
                raise CommandError(
                    _("There is no incident or event %(id)s. Give an incident's number (as in #3f2a1c) or 24-digit id, or an event's id.")
                    % {"id": what}
                )
            self.stdout.write(explain.explain_event(event))
        if incident is not None:
            self.stdout.write(explain.as_text(explain.explain(incident, db_now(), viewer)))

    def _sees(self, viewer: Member | None, model: type[Incident] | type[Workspace], pk: int) -> bool:
        return viewer is None or model.objects.visible_to(viewer).filter(pk=pk).exists()

    def _incident(self, what: str, viewer: Member | None) -> Incident | None:
        rows = Incident.objects.select_related("workspace")
        pk = parse_hex(what)
        # A number is unique while its incident is open; of closed ones the newest is meant.
        found = rows.filter(id=pk).first() if pk is not None else rows.filter(num=what).order_by("-id").first()
        if found is None or (pk is not None and hex_id(found.created_at, found.pk) != what) or not self._sees(viewer, Incident, found.pk):
            return None
        return found

    def _event(self, what: str) -> Event | None:
        rows = Event.objects.select_related("integration", "alert__incident__workspace").defer("raw")
        if (pk := parse_hex(what)) is not None:
            found = rows.filter(id=pk).first()
            return found if found is not None and hex_id(found.received_at, found.pk) == what else None
        return rows.filter(id=int(what)).first() if what.isdecimal() and len(what) < 19 else None
