"""Where Django looks for the console: the pages are in flashduty/console/, one file a house."""

from django.contrib import admin
from django.contrib.auth.models import Group
from django_q.models import Failure, Schedule, Success

from flashduty.console import channels, deliveries, incidents, names, people, rules, templates

__all__ = ["channels", "deliveries", "incidents", "people", "rules", "templates"]

# Roles and teams decide who may do what, and our own rows are the record of the work: pages about groups and queue results would mislead.
for _model in (Group, Failure, Schedule, Success):
    if admin.site.is_registered(_model):
        admin.site.unregister(_model)
names.give()
