"""One rule at work on one incident; the timer is its next_at."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from escalation.models.incident import Incident
from escalation.models.rule import RuleSnapshot


class Run(models.Model):
    class Kind(models.TextChoices):
        RULE = "rule", _("Rule")
        ASSIGN = "assign", _("Assign")  # directly to people: their preferences, no escalation
        CATCH_ALL = "catch_all", _("Catch-all")  # the workspace's, then the installation's

    incident = models.ForeignKey(Incident, on_delete=models.CASCADE, related_name="runs")
    snapshot = models.ForeignKey(RuleSnapshot, on_delete=models.PROTECT, related_name="runs")
    kind = models.CharField(max_length=12, choices=Kind.choices, default=Kind.RULE)
    state = models.JSONField(default=dict)  # escalation.plan.State without `due`
    layer_idx = models.SmallIntegerField(default=-1)  # state's, for lists; -1 = in the delay window
    next_at = models.DateTimeField(null=True)  # NULL = nothing more to do
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    end_reason = models.CharField(max_length=200, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["incident"], name="run_live_once", condition=models.Q(ended_at__isnull=True))]
        indexes = [models.Index(fields=["next_at"], name="run_due", condition=models.Q(ended_at__isnull=True, next_at__isnull=False))]
