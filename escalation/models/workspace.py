"""The space incidents, rules and noise settings belong to (the reference product's channel or collaboration space)."""

from typing import Any

from django.conf import settings
from django.core.validators import MaxValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from channels_app.models import Channel
from mapping.models import Team
from mapping.visibility import Status, VisibleQuerySet

SEVERITIES = [("Critical", _("Critical")), ("Warning", _("Warning")), ("Info", _("Info"))]


class Workspace(models.Model):
    class AutoResolve(models.TextChoices):
        TRIGGER = "trigger", _("from the start of the incident")
        UPDATE = "update", _("from its last alert")

    name = models.CharField(_("name"), max_length=59, unique=True)
    description = models.TextField(_("description"), max_length=500, blank=True)
    team = models.ForeignKey(Team, verbose_name=_("team"), null=True, blank=True, on_delete=models.PROTECT, related_name="workspaces")
    managing_teams = models.ManyToManyField(
        Team, verbose_name=_("managing teams"), blank=True, related_name="+", help_text=_("Up to three teams that may configure it too.")
    )
    is_private = models.BooleanField(_("private"), default=False, help_text=_("Only the members of its teams see it."))
    group_may_act = models.BooleanField(
        _("groups may act"),
        default=False,
        help_text=_(
            "Anybody who has the link in a group message may see a summary and acknowledge as “somebody in <group>”, without signing in."
        ),
    )
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.ENABLED)
    auto_resolve_timeout = models.PositiveIntegerField(
        _("auto-resolve after seconds"),
        default=0,
        validators=[MaxValueValidator(30 * 86400)],
        help_text=_("0 switches it off; at most 30 days."),
    )
    auto_resolve_mode = models.CharField(_("auto-resolve counts"), max_length=10, choices=AutoResolve.choices, default=AutoResolve.TRIGGER)
    disable_auto_close = models.BooleanField(_("keep open after recovery"), default=False)
    catch_all_members = models.ManyToManyField(settings.AUTH_USER_MODEL, verbose_name=_("catch-all members"), blank=True, related_name="+")
    catch_all_teams = models.ManyToManyField(Team, verbose_name=_("catch-all teams"), blank=True, related_name="+")
    catch_all_channels = models.ManyToManyField(Channel, verbose_name=_("catch-all group channels"), blank=True, related_name="+")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("workspace")
        verbose_name_plural = _("workspaces")
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def visible_q(cls, member: Any, prefix: str = "") -> models.Q:
        """Everything but private workspaces of teams one is not in. `prefix` reaches the workspace from another model ("workspace__")."""
        teams = member.team_ids()
        return models.Q(**{f"{prefix}is_private": False}) | cls.changeable_q(member, prefix, teams)

    @classmethod
    def changeable_q(cls, member: Any, prefix: str = "", teams: list[int] | None = None) -> models.Q:
        teams = member.team_ids() if teams is None else teams
        return models.Q(**{f"{prefix}team__in": teams}) | models.Q(**{f"{prefix}managing_teams__in": teams})


class InWorkspace(models.Model):
    """What is seen and configured by whoever sees and configures its workspace."""

    workspace = models.ForeignKey(Workspace, verbose_name=_("workspace"), on_delete=models.PROTECT, related_name="%(class)ss")

    objects = VisibleQuerySet.as_manager()

    class Meta:
        abstract = True

    @classmethod
    def visible_q(cls, member: Any) -> models.Q:
        return Workspace.visible_q(member, "workspace__")

    @classmethod
    def changeable_q(cls, member: Any) -> models.Q:
        return Workspace.changeable_q(member, "workspace__")
