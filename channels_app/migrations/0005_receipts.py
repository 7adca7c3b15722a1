from django.db import migrations, models
import django.db.models.deletion


class Migration(migrations.Migration):

    dependencies = [
        ("channels_app", "0004_limits_of_channels"),
    ]

    operations = [
        migrations.AddField(model_name="delivery", name="poll_at", field=models.DateTimeField(null=True)),
        migrations.AddIndex(
            model_name="delivery",
            index=models.Index(condition=models.Q(("poll_at__isnull", False)), fields=["poll_at"], name="delivery_poll"),
        ),
        migrations.CreateModel(
            name="EarlyReceipt",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("message_id", models.CharField(max_length=200)),
                ("state", models.CharField(max_length=10)),
                ("reason", models.CharField(blank=True, max_length=500)),
                ("received_at", models.DateTimeField()),
                (
                    "channel",
                    models.ForeignKey(
                        db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="+", to="channels_app.channel",
                    ),
                ),
            ],
        ),
    ]
