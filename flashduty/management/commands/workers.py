"""`manage.py workers`: one tree of django-q2 processes, as the supervisor starts it."""

from typing import Any

from django_q.management.commands.qcluster import Command as Cluster

from flashduty import broker


class Command(Cluster):
    help = "One tree of django-q2 processes; `supervise` starts it, and starts it again."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        broker.preload()
        super().handle(*args, **options)
