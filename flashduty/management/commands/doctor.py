"""`manage.py doctor`: what is wrong with this installation, and what to do about it."""

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from flashduty import doctor
from mapping.clock import db_now


class Command(BaseCommand):
    help = "Looks for what would keep a page from arriving, and says how to mend it. Ends with 1 when there is an error."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--strict", action="store_true", help="end with 1 for warnings, too")

    def handle(self, *args: Any, **options: Any) -> None:
        findings = doctor.examine(db_now())
        for finding in findings:
            label, style = (_("ERROR"), self.style.ERROR) if finding.level == "error" else (_("WARNING"), self.style.WARNING)
            self.stdout.write(f"{style(label)}  {finding.what}\n       {finding.fix}")
        if not findings:
            self.stdout.write(self.style.SUCCESS(ngettext("%(count)d check, nothing to say.", "%(count)d checks, nothing to say.", len(doctor.CHECKS)) % {"count": len(doctor.CHECKS)}))  # fmt: skip
        if any(finding.level == "error" or options["strict"] for finding in findings):
            sys.exit(1)
