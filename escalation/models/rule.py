"""An escalation rule and its layers, and the frozen copy a run follows."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from channels_app.models import Channel
from escalation.models.workspace import InWorkspace
from mapping.models import MappingTable, Team
from mapping.visibility import Status, VisibleQuerySet


class EscalationRule(InWorkspace):
    name = models.CharField(_("name"), max_length=39)
    description = models.TextField(_("description"), max_length=500, blank=True)
    priority = models.IntegerField(_("priority"), default=0, help_text=_("Lower first; the first rule that matches is used."))
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.ENABLED)
    filters = models.JSONField(_("filters"), default=list, blank=True, help_text=_("Empty: every incident."))
    time_filters = models.JSONField(_("time windows"), default=list, blank=True, help_text=_("Empty: always."))
    time_zone = models.CharField(_("time zone of the windows"), max_length=64, default="UTC")
    aggr_window = models.PositiveIntegerField(
        _("delay window in seconds"),
        default=0,
        validators=[MaxValueValidator(3600)],
        help_text=_("Nobody is told of what recovers within it."),
    )
    template_set_id = models.BigIntegerField(_("template set"), null=True, blank=True)
    version = models.PositiveIntegerField(default=1, editable=False)  # raised by every saved change; runs keep the version they began with
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    class Meta:
        verbose_name = _("escalation rule")
        verbose_name_plural = _("escalation rules")
        ordering = ["workspace_id", "priority", "id"]

    def __str__(self) -> str:
        return self.name


class Layer(models.Model):
    rule = models.ForeignKey(EscalationRule, on_delete=models.CASCADE, related_name="layers")
    idx = models.PositiveSmallIntegerField(_("layer"))  # from 0
    escalate_window = models.PositiveSmallIntegerField(_("minutes until the next layer"), default=30, validators=[MaxValueValidator(720)])
    force_escalate = models.BooleanField(_("even if acknowledged"), default=False, help_text=_("Escalates until the incident is closed."))
    notify_step = models.DecimalField(
        _("minutes between loops"), max_digits=4, decimal_places=1, default=10, validators=[MinValueValidator(0.5), MaxValueValidator(120)]
    )
    max_times = models.PositiveSmallIntegerField(_("loops"), default=0, validators=[MaxValueValidator(6)])
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, verbose_name=_("members"), blank=True, related_name="+")
    teams = models.ManyToManyField(Team, verbose_name=_("teams"), blank=True, related_name="+")
    supervisors = models.BooleanField(_("supervisors of those told before"), default=False)
    emails = models.JSONField(_("e-mail addresses"), default=list, blank=True)
    follow_preference = models.BooleanField(_("each person's own preference"), default=True)
    # Unified settings, used where follow_preference is off: kinds of channels per severity.
    critical = models.JSONField(_("for Critical"), default=list, blank=True)
    warning = models.JSONField(_("for Warning"), default=list, blank=True)
    info = models.JSONField(_("for Info"), default=list, blank=True)

    class Meta:
        verbose_name = _("layer")
        verbose_name_plural = _("layers")
        ordering = ["rule_id", "idx"]
        constraints = [models.UniqueConstraint(fields=["rule", "idx"], name="layer_once", deferrable=models.Deferrable.DEFERRED)]

    def __str__(self) -> str:
        return gettext("layer %(idx)d") % {"idx": self.idx + 1}


class LayerChannel(models.Model):
    """A group chat told by a layer, with what the guide sets there."""

    layer = models.ForeignKey(Layer, on_delete=models.CASCADE, related_name="channels")
    channel = models.ForeignKey(Channel, verbose_name=_("channel"), on_delete=models.PROTECT, related_name="+")
    severities = models.JSONField(_("severities"), default=list, blank=True, help_text=_("Empty: all."))
    events = models.JSONField(
        _("events to send"), default=list, blank=True, help_text=_("Empty: all.")
    )  # triggered, refire, escalated, acknowledged, closed
    mention = models.BooleanField(_("@ the people of the layer"), default=False)
    mapping_table = models.ForeignKey(
        MappingTable, verbose_name=_("mapping table"), null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    class Meta:
        verbose_name = _("group channel")
        verbose_name_plural = _("group channels")
        constraints = [models.UniqueConstraint(fields=["layer", "channel"], name="layer_channel_once")]

    def __str__(self) -> str:
        return str(self.channel)


class RuleSnapshot(models.Model):
    """A rule as it was when runs began to follow it; made once a version."""

    rule = models.ForeignKey(
        EscalationRule, null=True, on_delete=models.CASCADE, related_name="snapshots"
    )  # NULL: a catch-all or a direct assignment
    version = models.PositiveIntegerField()
    body = models.JSONField()
    body_hash = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField()

    objects = VisibleQuerySet.as_manager()
