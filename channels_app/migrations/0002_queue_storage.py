"""Storage settings of the tables that are queues: room for updates in place, and a vacuum that comes early."""

from django.db import migrations

TABLES = ['channels_app_address', 'channels_app_delivery']
SET = "ALTER TABLE %s SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01)"
RESET = "ALTER TABLE %s RESET (fillfactor, autovacuum_vacuum_scale_factor)"


class Migration(migrations.Migration):
    dependencies = [('channels_app', "0001_initial")]

    operations = [migrations.RunSQL([SET % table for table in TABLES], [RESET % table for table in TABLES])]
