"""Indexes that another one holds the beginning of, and the one that made the first page of an incident write to all of its indexes."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("escalation", "0003_daily_prune"),
    ]

    operations = [
        migrations.AlterField(
            model_name="alert",
            name="incident",
            field=models.ForeignKey(
                db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="alerts", to="escalation.incident"
            ),
        ),
        migrations.AlterField(
            model_name="event",
            name="alert",
            field=models.ForeignKey(
                db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="events", to="escalation.alert"
            ),
        ),
        migrations.AlterField(
            model_name="event",
            name="integration",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.PROTECT, related_name="events", to="escalation.integration"
            ),
        ),
        migrations.AlterField(
            model_name="incident",
            name="rule",
            field=models.ForeignKey(
                db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="+", to="escalation.escalationrule"
            ),
        ),
        migrations.AlterField(
            model_name="timelineentry",
            name="incident",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="timeline", to="escalation.incident"
            ),
        ),
    ]
