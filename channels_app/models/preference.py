"""How one person wants to be told, per severity: kinds of channels in order, each with an optional delay."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from channels_app.models.channel import Channel
from mapping.visibility import VisibleQuerySet


class Preference(models.Model):
    member = models.ForeignKey(settings.AUTH_USER_MODEL, verbose_name=_("member"), on_delete=models.CASCADE, related_name="preferences")
    severity = models.CharField(
        _("severity"), max_length=10, choices=[("Critical", _("Critical")), ("Warning", _("Warning")), ("Info", _("Info"))]
    )
    kind = models.CharField(_("kind"), max_length=40)
    channel = models.ForeignKey(
        Channel,
        verbose_name=_("channel"),
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="+",
        help_text=_("Empty: the first enabled channel of the kind."),
    )
    position = models.PositiveSmallIntegerField(_("position"), default=0)
    delay = models.PositiveIntegerField(
        _("delay in seconds"), default=0, help_text=_("Sent this much later, unless somebody has acknowledged by then.")
    )

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("preference")
        verbose_name_plural = _("preferences")
        ordering = ["member_id", "severity", "position", "id"]
        constraints = [
            models.UniqueConstraint(fields=["member", "severity", "kind", "channel"], name="preference_once", nulls_distinct=False)
        ]

    @classmethod
    def visible_q(cls, member) -> models.Q:
        return models.Q(member=member)
