"""What happened to an incident, by whom and by which way in. A row not handled yet is work for the engine."""

from django.conf import settings
from django.db import models

from escalation.models.incident import Incident


class TimelineEntry(models.Model):
    incident = models.ForeignKey(Incident, on_delete=models.CASCADE, related_name="timeline", db_index=False)
    type = models.CharField(max_length=20)  # the reference's: i_new, i_assign, i_ack, i_rslv, ...
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )  # NULL: the system, or a source
    via = models.CharField(max_length=20, blank=True)  # api | console | link | group | voice | event | timeout | escalation | system
    detail = models.JSONField(default=dict)
    created_at = models.DateTimeField()
    handled_at = models.DateTimeField(null=True)  # NULL = due: the engine has yet to act on it

    class Meta:
        ordering = ["id"]
        indexes = [
            models.Index(fields=["id"], name="timeline_due", condition=models.Q(handled_at__isnull=True)),
            models.Index(fields=["incident", "id"], name="timeline_incident"),
        ]
