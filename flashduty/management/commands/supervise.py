"""`manage.py supervise`: web server and workers of this node, kept alive; `--no-web` for a node of workers only."""

import os
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from flashduty import run


class Command(BaseCommand):
    help = "Runs the web server and the workers of this node, and starts again whatever ends. Ctrl-C or SIGTERM ends everything."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--no-web", action="store_true", help="workers only")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            address = run.listening(options["host"], options["port"])[1][0]
        except run.Wrong as wrong:
            raise CommandError(str(wrong)) from None
        command = [sys.executable, "-m", "flashduty.supervisor", "--host", address, "--port", str(options["port"])]
        # The same process, without all that manage.py has loaded: the supervisor needs none of it.
        os.chdir(settings.BASE_DIR)
        os.execv(sys.executable, [*command, *(["--no-web"] if options["no_web"] else [])])
