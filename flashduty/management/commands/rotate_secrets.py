"""`manage.py rotate_secrets`: encrypts every secret of the database with the newest of FLASHDUTY_ENCRYPTION_KEYS, so that the others can go."""

import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils.translation import gettext as _

from mapping import rotation


class Command(BaseCommand):
    help = "Encrypts every secret anew with the first of FLASHDUTY_ENCRYPTION_KEYS. Ends with 1 when there are secrets that no key opens."

    def handle(self, *args: Any, **options: Any) -> None:
        done = rotation.rotate()
        again = rotation.rotate() if done.missed else done  # somebody saved one in the moment in which we did
        self.stdout.write(
            _("%(renewed)d secrets were encrypted with the newest key; %(current)d were already.")
            % {"renewed": done.renewed, "current": done.current}
        )
        for what in again.unreadable:
            self.stdout.write(self.style.ERROR(_("No key opens %(what)s.") % {"what": what}))
        if again.unreadable:
            self.stdout.write(_("Bring back the key these were written with, after the new one, and run this again; or enter them again."))
            sys.exit(1)
        if len(settings.ENCRYPTION_KEYS) > 1:
            self.stdout.write(_("The keys after the first one may go, once all nodes have the first."))
