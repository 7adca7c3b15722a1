#!/usr/bin/env python
"""Runs a management command: `python manage.py explain 3f2a1c`."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "flashduty.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
