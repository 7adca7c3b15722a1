"""Console pages of what we say: template sets with their texts, each checked against sample data when it is saved."""

import copy
from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin
from django.db import models
from django.db.models import Count, Q
from django.http import HttpRequest
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import TEXTAREA_CLASSES, UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget

from channels_app import transport
from flashduty.console.base import StatusFilter, VisibleAdmin, VisibleForm, VisibleRelatedFilter, VisibleStacked, offered, visible
from mapping.models import Team
from templates_app.models import Template, TemplateSet

FAMILIES = {
    "voice": gettext_lazy("All voice calls"),
    "sms": gettext_lazy("All SMS"),
    "im": gettext_lazy("All IM bots and apps"),
    "app": gettext_lazy("The app"),
}


def kinds() -> list[tuple[str, Any]]:
    """What a text may be written for: families of channel kinds, the kinds there are, and whole formats. A name stands in one list only."""
    known = transport.transports()
    families = dict.fromkeys(style.family for style in known.values() if style.family and style.family not in known)
    formats = sorted({style.format for style in known.values()} - set(known) - set(families))
    return [
        (str(gettext_lazy("Families of channels")), [(name, FAMILIES.get(name, name)) for name in families]),
        (str(gettext_lazy("Channel kinds")), [(kind, style.label) for kind, style in known.items()]),
        (str(gettext_lazy("Formats")), [(name, name) for name in formats]),
    ]


class TemplateForm(VisibleForm):
    kind = forms.ChoiceField(label=gettext_lazy("channel kind"), choices=kinds, widget=UnfoldAdminSelectWidget())
    body = forms.CharField(
        label=gettext_lazy("text"),
        help_text=gettext_lazy("A Jinja2 template, such as: [{{ severity }}] {{ title }}. It is tried with sample data when you save."),
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 8, "spellcheck": "false", "class": " ".join([*TEXTAREA_CLASSES, "font-mono"])}),
    )

    class Meta:
        model = Template
        fields = ("event", "kind", "language", "subject", "body")


class TemplateInline(VisibleStacked):
    model = Template
    form = TemplateForm
    fields = (("event", "kind", "language"), "subject", "body", "last_error")
    readonly_fields = ("last_error",)
    collapsible = True


class TemplateSetForm(VisibleForm):
    team = forms.ModelChoiceField(
        label=gettext_lazy("team"), queryset=Team.objects.none(), required=False, widget=UnfoldAdminSelectWidget(),
        help_text=gettext_lazy("Empty: everybody may use it."),
    )  # fmt: skip

    class Meta:
        model = TemplateSet
        fields = ("name", "description", "status")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "team" in self.fields:
            self.initial["team"] = self.instance.team_id

    def clean(self) -> Any:
        data = super().clean()
        if "team" in self.cleaned_data:
            team = self.cleaned_data["team"]
            self.instance.team_id = team.pk if team else None
        return data


@admin.register(TemplateSet)
class TemplateSetAdmin(VisibleAdmin):
    form = TemplateSetForm
    list_display = ("name", "description", "shown_team", "templates_count", "failing", "status")
    list_filter = (StatusFilter,)
    search_fields = ("name", "description")
    inlines = (TemplateInline,)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        team = "team" if self.has_change_permission(request, obj) or obj is None else "shown_team"
        return ((None, {"fields": ("name", "description", (team, "status"))}),)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("shown_team",)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        if "team" in form.base_fields:
            # A field that a class declares is one object for all forms and threads: what one person may choose goes into a copy.
            form.base_fields["team"] = copy.deepcopy(form.base_fields["team"])
            user: Any = request.user
            teams = Team.objects.exclude(status="deleted")
            form.base_fields["team"].queryset = teams if user.is_administrator else teams.filter(pk__in=user.team_ids())
            form.base_fields["team"].required = not user.is_administrator
        return form

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        owner = Team.objects.filter(pk=models.OuterRef("team_id")).values("name")[:1]
        return (
            super()
            .get_queryset(request)
            .annotate(
                _team=models.Subquery(owner),
                _count=Count("templates"),
                _failing=Count("templates", filter=Q(templates__last_error_at__isnull=False)),
            )
        )

    def parts(self, obj: Any) -> Iterator[tuple[str, models.Model]]:
        for text in obj.templates.all():
            yield f"{text} · ", text

    def story_of(self, obj: Any) -> Any:
        found = super().story_of(obj)
        label = str(TemplateSet._meta.get_field("team_id").verbose_name)
        name = Team.objects.filter(pk=obj.team_id).values_list("name", flat=True).first() or "-"
        return found | {label: (obj.team_id, name)}

    @display(description=gettext_lazy("team"), ordering="_team")
    def shown_team(self, row: Any) -> str:
        return getattr(row, "_team", None) or "-"

    @display(description=gettext_lazy("texts"), ordering="_count")
    def templates_count(self, row: Any) -> int:
        return row._count

    @display(description=gettext_lazy("failed when sent"), ordering="_failing")
    def failing(self, row: Any) -> int:
        return row._failing


@admin.register(Template)
class TemplateAdmin(VisibleAdmin):
    """All texts in one list, to find the one that fails; they are written in their set."""

    form = TemplateForm
    list_display = ("__str__", "template_set", "event", "kind", "language", "last_error_at")
    list_select_related = ("template_set",)
    list_filter = ("event", "language", ("template_set", VisibleRelatedFilter))
    search_fields = ("subject", "body", "template_set__name")
    fields = ("template_set", ("event", "kind", "language"), "subject", "body", "last_error", "last_error_at")
    readonly_fields = ("last_error", "last_error_at")

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "template_set":
            from_mine = offered(db_field, request.user)
            kwargs["queryset"] = from_mine if request.user.is_administrator else from_mine.filter(team_id__in=request.user.team_ids())  # type: ignore[union-attr]
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


def template_sets(member: Any) -> models.QuerySet:
    """The sets a rule of `member`'s may name."""
    return visible(TemplateSet, member).exclude(status="deleted")
