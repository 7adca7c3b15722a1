"""The series of events with one alert_key while it is open."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from escalation.models.integration import Integration
from escalation.models.workspace import SEVERITIES, InWorkspace


class Alert(InWorkspace):
    integration = models.ForeignKey(Integration, on_delete=models.PROTECT, related_name="alerts")
    incident = models.ForeignKey("escalation.Incident", null=True, on_delete=models.SET_NULL, related_name="alerts", db_index=False)
    alert_key = models.CharField(max_length=255)
    title = models.CharField(_("title"), max_length=512)
    description = models.TextField(_("description"), blank=True)
    severity = models.CharField(_("severity"), max_length=10, choices=SEVERITIES)  # highest of its events
    status = models.CharField(_("status"), max_length=10)  # latest from the source; Ok = recovered
    labels = models.JSONField(_("labels"), default=dict)
    images = models.JSONField(default=list)
    links = models.JSONField(default=list)
    start_time = models.DateTimeField(_("started"))
    last_time = models.DateTimeField(_("last event"))
    end_time = models.DateTimeField(_("recovered"), null=True)
    close_time = models.DateTimeField(_("closed"), null=True)  # closed by hand or timeout: detached, the same key opens a new alert
    is_open = models.BooleanField(default=True)  # more events of the key go here; with disable_auto_close also after a recovery
    event_count = models.IntegerField(_("events"), default=1)

    class Meta:
        verbose_name = _("alert")
        verbose_name_plural = _("alerts")
        ordering = ["-id"]
        constraints = [
            models.UniqueConstraint(fields=["integration", "alert_key"], name="alert_open_once", condition=models.Q(is_open=True))
        ]
        indexes = [
            models.Index(fields=["incident"], name="alert_incident"),
            models.Index(fields=["workspace", "-id"], name="alert_workspace"),
        ]
