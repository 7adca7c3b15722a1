"""One destination at one channel: the unit of limits, order and bundling. Shared by all nodes as a row."""

from django.db import models

from channels_app.models.channel import Channel


class Address(models.Model):
    channel = models.ForeignKey(Channel, on_delete=models.CASCADE, related_name="addresses", db_index=False)
    target = models.CharField(max_length=300, blank=True)  # a phone, a mailbox, a chat id; "" = the channel itself (a group bot, a webhook)
    # When the last messages were sent, one list of Unix seconds per limit that applies: {"20/60": [t, ...]} (channels_app.limits).
    buckets = models.JSONField(default=dict)
    blocked_until = models.DateTimeField(null=True)  # the provider said: not before
    blocked_reason = models.CharField(max_length=300, blank=True)
    next_at = models.DateTimeField(null=True)  # when something here is due; NULL = nothing waits
    priority = models.SmallIntegerField(default=0)  # about the best Delivery.priority of what waits: which address goes first

    class Meta:
        constraints = [models.UniqueConstraint(fields=["channel", "target"], name="address_once")]
        indexes = [models.Index(fields=["next_at"], name="address_due", condition=models.Q(next_at__isnull=False))]
