"""A named set of members. Teams own workspaces, channels, templates and mapping tables."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from mapping.visibility import Status, VisibleQuerySet


class Team(models.Model):
    name = models.CharField(_("name"), max_length=39, unique=True)
    description = models.TextField(_("description"), max_length=500, blank=True)
    ref_id = models.CharField(_("external id"), max_length=191, blank=True, db_index=True)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, verbose_name=_("members"), related_name="teams", blank=True)
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.ENABLED)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("team")
        verbose_name_plural = _("teams")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def visible_q(cls, member: "models.Model") -> models.Q:
        return models.Q()

    @classmethod
    def changeable_q(cls, member) -> models.Q:
        return models.Q(id__in=member.team_ids())
