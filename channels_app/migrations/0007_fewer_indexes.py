"""An address is looked up by channel and target: an index of the channel alone made the server read all addresses of it."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("channels_app", "0006_tell_numbers"),
    ]

    operations = [
        migrations.AlterField(
            model_name="address",
            name="channel",
            field=models.ForeignKey(
                db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name="addresses", to="channels_app.channel"
            ),
        ),
    ]
