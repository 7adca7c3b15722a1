"""`manage.py prune`: deletes closed incidents that are older than the installation keeps, and what machines left behind; `--dry-run` only counts."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils.translation import gettext as _

from escalation import retention
from mapping.clock import db_now
from mapping.models import Installation


class Command(BaseCommand):
    help = "Deletes incidents that were closed longer ago than the installation keeps them, with all that belongs to them. Runs daily by itself."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")

    def handle(self, *args: Any, **options: Any) -> None:
        dry = options["dry_run"]
        gone, whole = retention.prune(db_now(), dry=dry)
        said = retention.in_words(gone)
        days = max(1, Installation.get().retention_days)
        if not said:
            self.stdout.write(_("Nothing is older than %(days)d days.") % {"days": days})
        else:
            self.stdout.write((_("Would be removed: %(what)s.") if dry else _("Removed: %(what)s.")) % {"what": said})
        if not whole:
            self.stdout.write(_("Stopped before the end; the next run goes on from here."))
