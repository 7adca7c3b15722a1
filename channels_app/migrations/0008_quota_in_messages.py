"""Words only: a monthly quota counts messages, and vendors charge parts of them."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("channels_app", "0007_fewer_indexes"),
    ]

    operations = [
        migrations.AlterField(
            model_name="channel",
            name="monthly_quota",
            field=models.PositiveIntegerField(
                blank=True,
                help_text="How many messages may leave in a calendar month (UTC): messages, not the parts of a long text message that vendors charge. Empty: no limit.",
                null=True,
                verbose_name="monthly quota",
            ),
        ),
    ]
