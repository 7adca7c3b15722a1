"""The one row of site-wide settings."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from mapping.models.team import Team


class Installation(models.Model):
    name = models.CharField(_("name"), max_length=100, default="Flashduty")
    language = models.CharField(_("default language"), max_length=10, choices=settings.LANGUAGES, default=settings.LANGUAGE_CODE)
    support_contact = models.CharField(
        _("support contact"),
        max_length=200,
        blank=True,
        help_text=_("Shown where people are told that something cannot be done, such as a region that cannot be called."),
    )
    catch_all_members = models.ManyToManyField(
        settings.AUTH_USER_MODEL, verbose_name=_("catch-all members"), blank=True, related_name="+",
        help_text=_("Told when nobody else could be: an incident without a rule, a layer that reaches nobody, a workspace without a catch-all of its own."),
    )  # fmt: skip
    catch_all_teams = models.ManyToManyField(Team, verbose_name=_("catch-all teams"), blank=True, related_name="+")
    retention_days = models.PositiveIntegerField(_("keep closed incidents for days"), default=180)
    # Machine-kept: the latest instant the engine has seen, to notice a clock that went back, and an outage of ours.
    last_pass_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Machine-kept: how often people were erased; processes that remember what may have named them compare it.
    erasures = models.PositiveIntegerField(default=0, db_default=0, editable=False)
    # Machine-kept: what `/readyz` and the console raise until somebody answers it.
    alarm = models.TextField(blank=True, editable=False)
    alarm_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("installation")
        verbose_name_plural = _("installation")
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="installation_is_one_row")]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def get(cls) -> "Installation":
        """The one row, made on first use."""
        return cls.objects.get_or_create(pk=1)[0]
