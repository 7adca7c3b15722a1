"""Member e-mail <-> user id in an IM platform, so that a bot can @-mention people."""

from django.db import models
from django.utils.translation import gettext_lazy as _

from mapping.models.team import Team
from mapping.visibility import Status, VisibleQuerySet


class MappingTable(models.Model):
    name = models.CharField(_("name"), max_length=100, unique=True)
    description = models.TextField(_("description"), max_length=500, blank=True)
    team = models.ForeignKey(
        Team, verbose_name=_("team"), null=True, blank=True, on_delete=models.PROTECT, help_text=_("Empty: everybody may use it.")
    )
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.ENABLED)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("mapping table")
        verbose_name_plural = _("mapping tables")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def visible_q(cls, member) -> models.Q:
        return models.Q(team__isnull=True) | models.Q(team__in=member.team_ids())

    @classmethod
    def changeable_q(cls, member) -> models.Q:
        return models.Q(team__in=member.team_ids())


class MappingEntry(models.Model):
    table = models.ForeignKey(MappingTable, on_delete=models.CASCADE, related_name="entries")
    email = models.EmailField(_("member e-mail"))
    external_id = models.CharField(_("user id on the IM platform"), max_length=191)

    class Meta:
        verbose_name = _("mapping entry")
        verbose_name_plural = _("mapping entries")
        ordering = ["email"]
        constraints = [models.UniqueConstraint(fields=["table", "email"], name="mapping_entry_once")]

    def __str__(self) -> str:
        return self.email

    def save(self, *args, **kwargs) -> None:
        self.email = self.email.strip().lower()
        super().save(*args, **kwargs)
