"""The daily job that removes what is older than the installation keeps: see escalation/retention.py."""

from datetime import timedelta

from django.db import migrations
from django.utils import timezone


def plan(apps, schema_editor):
    Schedule = apps.get_model("django_q", "Schedule")
    # In the small hours of most places where it is used, and not at the minute at which everything else runs.
    first = (timezone.now() + timedelta(days=1)).replace(hour=19, minute=17, second=0, microsecond=0)
    Schedule.objects.get_or_create(name="prune", defaults={"func": "escalation.tasks.prune", "schedule_type": "D", "next_run": first})


def forget(apps, schema_editor):
    apps.get_model("django_q", "Schedule").objects.filter(name="prune").delete()


class Migration(migrations.Migration):
    dependencies = [
        ("escalation", "0002_queue_storage"),
        ("django_q", "0019_alter_task_options_alter_ormq_key_alter_ormq_lock_and_more"),
    ]

    operations = [migrations.RunPython(plan, forget)]
