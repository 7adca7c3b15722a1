"""What people handle: one or more alerts, or made by hand."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from escalation.models.workspace import SEVERITIES, InWorkspace


class Incident(InWorkspace):
    class Progress(models.TextChoices):
        TRIGGERED = "Triggered", _("Triggered")
        PROCESSING = "Processing", _("Processing")
        CLOSED = "Closed", _("Closed")

    num = models.CharField(_("number"), max_length=6)  # six hex digits of the id; unique while it is open
    title = models.CharField(_("title"), max_length=512)
    description = models.TextField(_("description"), blank=True)
    severity = models.CharField(_("severity"), max_length=10, choices=SEVERITIES)
    status = models.CharField(_("status"), max_length=10)  # Ok only when every alert is Ok
    progress = models.CharField(_("progress"), max_length=10, choices=Progress.choices, default=Progress.TRIGGERED)
    labels = models.JSONField(_("labels"), default=dict)
    impact = models.TextField(_("impact"), blank=True)
    root_cause = models.TextField(_("root cause"), blank=True)
    resolution = models.TextField(_("resolution"), blank=True)
    manual_overrides = models.JSONField(default=list)  # title, severity, description that a person set: alerts no longer change them
    group_key = models.CharField(max_length=255, blank=True)  # seam of grouping; empty = one open alert is one incident
    start_time = models.DateTimeField(_("started"))
    last_time = models.DateTimeField(_("last alert"))
    end_time = models.DateTimeField(_("recovered"), null=True)
    ack_time = models.DateTimeField(_("acknowledged"), null=True)
    close_time = models.DateTimeField(_("closed"), null=True)
    closed_by = models.CharField(max_length=10, blank=True)  # auto | timeout | manually
    creator = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    closer = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+")
    snoozed_until = models.DateTimeField(null=True)
    # Due rows of the engine.
    wake_at = models.DateTimeField(null=True)
    auto_resolve_at = models.DateTimeField(null=True)
    # Who has it: people it was assigned to directly, or the rule that assigns it.
    assigned_type = models.CharField(max_length=10, blank=True)  # assign | reassign | escalate | reopen
    # No index: the first page writes it, and a row whose indexed columns stay is written without touching any of its indexes.
    rule = models.ForeignKey("escalation.EscalationRule", null=True, on_delete=models.SET_NULL, related_name="+", db_index=False)
    layer_idx = models.SmallIntegerField(null=True)
    alert_count = models.IntegerField(_("alerts"), default=0)
    version = models.IntegerField(default=0)  # counts moves: two people acting in the same millisecond leave one truth
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()

    class Meta:
        verbose_name = _("incident")
        verbose_name_plural = _("incidents")
        ordering = ["-id"]
        constraints = [models.UniqueConstraint(fields=["num"], name="incident_num_open", condition=~models.Q(progress="Closed"))]
        indexes = [
            models.Index(fields=["wake_at"], name="incident_wake", condition=models.Q(wake_at__isnull=False)),
            models.Index(fields=["auto_resolve_at"], name="incident_auto_resolve", condition=models.Q(auto_resolve_at__isnull=False)),
            models.Index(fields=["workspace", "-id"], name="incident_workspace"),
            models.Index(
                fields=["workspace", "group_key"],
                name="incident_group",
                condition=models.Q(progress__in=["Triggered", "Processing"]) & ~models.Q(group_key=""),
            ),
            models.Index(fields=["-start_time"], name="incident_start"),
            models.Index(fields=["progress", "-id"], name="incident_progress"),
        ]

    def __str__(self) -> str:
        return f"#{self.num} {self.title}"


class Responder(models.Model):
    """A person an incident was assigned to, or who acknowledged it."""

    incident = models.ForeignKey(Incident, on_delete=models.CASCADE, related_name="responders")
    member = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    assigned_at = models.DateTimeField(null=True)
    acknowledged_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["incident", "member"], name="responder_once")]
