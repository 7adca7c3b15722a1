#!/usr/bin/env python
"""Runs a management command: `python manage.py explain 3f2a1c`.

Where no environment is configured, and `make run` has been here, its demo is meant (DATA=/srv/demo where its data is not in .data)."""

import os
import sys

from django.core.exceptions import ImproperlyConfigured
from django.core.management import execute_from_command_line

from flashduty import run

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flashduty.settings")
    try:
        os.environ.update(run.demo_environment(sys.argv[1:]))
        execute_from_command_line(sys.argv)
    except (ImproperlyConfigured, run.Wrong, run.postgres.PostgresError) as wrong:
        sys.exit(str(wrong))
