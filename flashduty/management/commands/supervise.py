"""`manage.py supervise`: web server and workers of this node, kept alive; `--no-web` for a node of workers only."""

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from flashduty import supervisor


class Command(BaseCommand):
    help = "Runs the web server and the workers of this node, and starts again whatever ends. Ctrl-C or SIGTERM ends everything."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=8000)
        parser.add_argument("--no-web", action="store_true", help="workers only")

    def handle(self, *args: Any, **options: Any) -> None:
        raise SystemExit(supervisor.supervise(host=options["host"], port=options["port"], web=not options["no_web"]))
