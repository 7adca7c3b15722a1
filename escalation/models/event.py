"""One message accepted from a source. The payload is immutable; intake writes the outcome once."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from escalation.models.integration import Integration


class Event(models.Model):
    class Outcome(models.TextChoices):
        CREATED = "created", _("opened an alert")
        MERGED = "merged", _("merged into an open alert")
        DUPLICATE = "duplicate", _("identical to the alert's last event")
        RECOVERED = "recovered", _("recovered its alert")
        NOTHING = "nothing", _("nothing to recover")
        DROPPED = "dropped", _("not taken")  # outcome_detail says why: its workspace is disabled
        FAILED = "failed", _("could not be processed")

    integration = models.ForeignKey(Integration, on_delete=models.PROTECT, related_name="events", db_index=False)
    received_at = models.DateTimeField()
    alert_key = models.CharField(max_length=255)
    status = models.CharField(max_length=10)  # Critical | Warning | Info | Ok
    payload = models.JSONField()  # normalised: title_rule, description, labels, images, links
    raw = models.BinaryField(null=True)  # as received, for events that came alone
    outcome = models.CharField(max_length=12, choices=Outcome.choices, null=True)  # noqa: DJ001  NULL = due
    outcome_detail = models.CharField(max_length=300, blank=True)
    alert = models.ForeignKey("escalation.Alert", null=True, on_delete=models.SET_NULL, related_name="events", db_index=False)
    processed_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["id"], name="event_due", condition=models.Q(outcome__isnull=True)),
            models.Index(fields=["integration", "received_at"], name="event_received"),
            models.Index(fields=["alert"], name="event_alert", condition=models.Q(alert__isnull=False)),
        ]
