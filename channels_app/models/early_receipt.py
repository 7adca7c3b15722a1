"""What a provider said of a message before our own record of its id was written: a call can be busy within milliseconds of its request."""

from django.db import models

from channels_app.models.channel import Channel


class EarlyReceipt(models.Model):
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="+", db_index=False)
    message_id = models.CharField(max_length=200)
    state = models.CharField(max_length=10)
    reason = models.CharField(max_length=500, blank=True)
    received_at = models.DateTimeField()
