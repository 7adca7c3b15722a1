from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("channels_app", "0003_channels_of_every_kind")]

    operations = [
        # Defaults of the database: the old code, which may still run, knows nothing of these columns.
        migrations.AddField("channelhealth", "buckets", models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()))),
        migrations.AddField("channelhealth", "month", models.DateField(null=True)),
        migrations.AddField("channelhealth", "month_count", models.PositiveIntegerField(default=0, db_default=0)),
        migrations.AlterField(
            "channel",
            "limits",
            models.JSONField(
                blank=True,
                help_text='Own limits instead of the provider\'s: {"per_second": 5, "per_minute": 100} for each address, {"total_per_second": 30} for the whole channel.',
                null=True,
                verbose_name="limits",
            ),
        ),
    ]
