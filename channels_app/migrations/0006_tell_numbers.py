"""The job that tells members when other numbers call them: see channels_app/numbers.py."""

from django.db import migrations


def plan(apps, schema_editor):
    Schedule = apps.get_model("django_q", "Schedule")
    Schedule.objects.get_or_create(name="numbers", defaults={"func": "channels_app.numbers.announce", "schedule_type": "I", "minutes": 10})


def forget(apps, schema_editor):
    apps.get_model("django_q", "Schedule").objects.filter(name="numbers").delete()


class Migration(migrations.Migration):
    dependencies = [
        ("channels_app", "0005_receipts"),
        ("django_q", "0019_alter_task_options_alter_ormq_key_alter_ormq_lock_and_more"),
        ("mapping", "0003_numbers_told"),
    ]

    operations = [migrations.RunPython(plan, forget)]
