"""TemplateSet and Template: the texts an operator wrote, checked when saved, and what went wrong with them when sent."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Protocol

from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator
from django.db import models
from django.utils.translation import gettext, pgettext_lazy
from django.utils.translation import gettext_lazy as _

from templates_app.choose import TemplateRow
from templates_app.events import LANGUAGES
from templates_app.formats import format_of
from templates_app.meter import MAX_SOURCE
from templates_app.render import TemplateFailed, preview
from templates_app.samples import VARIANTS

# A storm fails one template thousands of times; its row is written once in this time (design §5: no row once per event).
REPORT_EVERY: Final = timedelta(minutes=1)


class Viewer(Protocol):
    """Who looks: a member, of whom this house knows only these two things."""

    role: Any

    def team_ids(self) -> Collection[int]: ...


class TemplateSetQuerySet(models.QuerySet["TemplateSet"]):
    def visible_to(self, member: Viewer) -> "TemplateSetQuerySet":
        """Sets the member may see: administrators all, others those that belong to everybody or to a team of theirs; deleted ones nobody."""
        kept = self.exclude(status=TemplateSet.Status.DELETED)
        if member.role == "administrator":
            return kept
        return kept.filter(models.Q(team_id__isnull=True) | models.Q(team_id__in=list(member.team_ids())))


class TemplateSet(models.Model):
    """Texts that are chosen together: an escalation rule names one set, or none for the default texts."""

    class Status(models.TextChoices):
        ENABLED = "enabled", _("Enabled")
        DISABLED = "disabled", _("Disabled")
        DELETED = "deleted", _("Deleted")

    name = models.CharField(_("name"), max_length=100)
    description = models.CharField(_("description"), max_length=500, blank=True)
    # The id of a team, without a foreign key: teams live in a house beside this one, and neither imports the other.
    team_id = models.BigIntegerField(_("team"), null=True, blank=True, db_index=True, help_text=_("Empty: everybody may use it."))
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.ENABLED)
    created_at = models.DateTimeField(_("created at"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated at"), auto_now=True)

    objects = TemplateSetQuerySet.as_manager()

    class Meta:
        verbose_name = _("template set")
        verbose_name_plural = _("template sets")
        ordering: ClassVar[list[str]] = ["name", "id"]

    def __str__(self) -> str:
        return self.name

    def rows(self) -> list[TemplateRow]:
        """The set's texts as plain values for `choose.render_or_default`; none while the set is disabled."""
        if self.status != self.Status.ENABLED:
            return []
        return [
            {"id": t.pk, "event": t.event, "kind": t.kind, "language": t.language, "subject": t.subject, "body": t.body}
            for t in self.templates.all()
        ]


class TemplateQuerySet(models.QuerySet["Template"]):
    def visible_to(self, member: Viewer) -> "TemplateQuerySet":
        """Texts of the sets the member may see."""
        return self.filter(template_set__in=TemplateSet.objects.visible_to(member))


class Template(models.Model):
    """The text for one event, channel kind (or format) and language."""

    class Event(models.TextChoices):
        TRIGGERED = "triggered", pgettext_lazy("event of a text", "Triggered")
        REFIRE = "refire", _("Loop")
        ESCALATED = "escalated", _("Escalated")
        ACKNOWLEDGED = "acknowledged", _("Acknowledged")
        CLOSED = "closed", _("Closed")

    class Language(models.TextChoices):
        ANY = "", _("Any language")
        ZH_HANS = "zh-hans", _("Chinese")
        EN = "en", _("English")

    template_set = models.ForeignKey(TemplateSet, models.CASCADE, related_name="templates", verbose_name=_("template set"))
    event = models.CharField(_("event"), max_length=20, choices=Event.choices)
    kind = models.CharField(
        _("channel kind"),
        max_length=40,
        help_text=_("A kind of channel (feishu, email, sms, ...) or a format (markdown dialect, html, plain, voice)."),
    )
    language = models.CharField(_("language"), max_length=10, choices=Language.choices, blank=True, default="")
    subject = models.CharField(
        _("subject"), max_length=500, blank=True, help_text=_("Subject or title where the channel has one. Empty: the default one.")
    )
    body = models.TextField(_("text"), validators=[MaxLengthValidator(MAX_SOURCE)], help_text=_("A Jinja2 template."))
    last_error = models.TextField(_("last error"), blank=True, editable=False)
    last_error_at = models.DateTimeField(_("last error at"), null=True, editable=False)

    objects = TemplateQuerySet.as_manager()

    class Meta:
        verbose_name = _("template")
        verbose_name_plural = _("templates")
        ordering: ClassVar[list[str]] = ["template_set", "event", "kind", "language"]
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(
                fields=["template_set", "event", "kind", "language"],
                name="template_once",
                violation_error_message=_("The set has a text for this event, channel kind and language already."),
            )
        ]

    def __str__(self) -> str:
        return f"{self.event} / {self.kind}" + (f" / {self.language}" if self.language else "")

    def clean(self) -> None:
        """Renders subject and text against all sample data in the languages they serve; a failure names field, line and sample.

        What passes has no last error any more: that belonged to the text before.
        """
        problems: dict[str, ValidationError] = {}
        for field, fmt in (("subject", "plain"), ("body", format_of(self.kind))):
            source = getattr(self, field)
            if source and (problem := _problem(source, fmt, self.language, self.event)):
                problems[field] = ValidationError(problem, code="template")
        if problems:
            raise ValidationError(problems)
        self.last_error, self.last_error_at = "", None


def _problem(source: str, fmt: str, language: str, event: str) -> str:
    written = False
    for spoken in (language,) if language else LANGUAGES:
        for variant in VARIANTS:
            try:
                written = bool(preview(source, fmt=fmt, language=spoken, variant=variant, event=event).strip()) or written
            except TemplateFailed as error:
                advice = gettext(
                    "It was tried with the sample “%(variant)s”. If a value can be missing, ask first: {%% if labels.x %%}…{%% endif %%}."
                ) % {"variant": variant}
                return str(error) if error.always else f"{error} {advice}"
    return "" if written else gettext("The text is empty for every sample; write something that is always there, such as {{ title }}.")


def report_failure(template_id: int, error: str, now: datetime) -> bool:
    """Notes on a template that its text failed when sent; at most once a minute, and True when it was written."""
    recent = models.Q(last_error_at__gt=now - REPORT_EVERY)
    written = Template.objects.filter(pk=template_id).exclude(recent).update(last_error=error[:2000], last_error_at=now)
    return written > 0
