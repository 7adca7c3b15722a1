"""One occasion to tell somebody something: a page, a loop, an acknowledged or closed notice, a code, a test."""

from django.db import models

from mapping.crypto import EncryptedJSONField


class Notification(models.Model):
    event = models.CharField(max_length=20)  # triggered | refire | escalated | acknowledged | closed | code | test
    is_page = models.BooleanField(default=False)  # pages are cancelled by an acknowledgement, fall back and exhaust; notices do not
    severity = models.CharField(max_length=10)
    # What it is about, in the words of the house above, which alone knows what they mean: the incident's id, the run's id, the layer.
    topic = models.BigIntegerField(null=True)
    run = models.BigIntegerField(null=True)
    layer_idx = models.SmallIntegerField(null=True)
    context = models.JSONField(default=dict)  # frozen, bounded to 32 kB (templates_app.events)
    secret_context = EncryptedJSONField(default=dict)  # a code; wiped when its delivery ends
    template_set = models.BigIntegerField(null=True)
    survives_ack = models.BooleanField(default=False)  # force_escalate layers
    created_at = models.DateTimeField()
    # Every delivery of this page has failed for good and there is nothing left to try: a row that is due for the house above.
    exhausted_at = models.DateTimeField(null=True)
    exhausted_handled_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["topic", "id"], name="notification_topic", condition=models.Q(topic__isnull=False)),
            models.Index(
                fields=["exhausted_at"],
                name="notification_exhausted",
                condition=models.Q(exhausted_at__isnull=False, exhausted_handled_at__isnull=True),
            ),
        ]
