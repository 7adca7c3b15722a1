"""Console pages of what we say: template sets with their texts, each checked against sample data when it is saved."""

import copy
from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin
from django.db import models
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.translation import get_language, gettext_lazy
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.widgets import TEXTAREA_CLASSES, UnfoldAdminSelectWidget, UnfoldAdminTextareaWidget

from channels_app import transport
from flashduty.console.base import (
    StatusFilter,
    VisibleAdmin,
    VisibleForm,
    VisibleRelatedFilter,
    VisibleStacked,
    deny_unless,
    offered,
    visible,
)
from mapping.models import Team
from templates_app.formats import format_named
from templates_app.models import Template, TemplateSet
from templates_app.render import TemplateFailed, preview

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


def styles_for(name: str) -> list[type[transport.Transport]]:
    """The kinds that a text written for `name` (a family, a kind or a format) may go out by; those of the sandbox only where there are no others."""
    found = [style for kind, style in transport.transports().items() if name in (kind, style.family, style.format)]
    return [style for style in found if not style.demo] or found


def length_words(style: type[transport.Transport], text: str) -> str:
    """How long `text` is for this kind: segments of an SMS, or its length against what the provider takes."""
    if measured := style.measure(text):
        return measured
    if style.max_chars:
        return _("%(count)d of %(most)d characters") % {"count": len(text), "most": style.max_chars}
    if style.max_bytes:
        return _("%(count)d of %(most)d bytes") % {"count": len(text.encode()), "most": style.max_bytes}
    return _("%(count)d characters, no limit of the provider's") % {"count": len(text)}


def is_too_long(style: type[transport.Transport], text: str) -> bool:
    """Whether it will be shortened on its way."""
    return bool((style.max_chars and len(text) > style.max_chars) or (style.max_bytes and len(text.encode()) > style.max_bytes))


def answer_preview(request: HttpRequest) -> HttpResponse:
    """The part of a page that shows what becomes of a text with sample data: in each format that it may go out in, and how long it is there."""
    sent = request.POST
    event, body = sent.get("event", ""), sent.get("body", "")
    language = sent.get("language") or str(get_language() or "en")
    parts: list[dict[str, Any]] = []
    problem = ""
    if event in Template.Event.values and len(body) <= 100_000 and "\x00" not in body:
        for style in styles_for(sent.get("kind", "")):
            part = next((part for part in parts if part["format"] == style.format), None)
            if part is None:
                try:
                    text = preview(body, fmt=style.format, language=language, event=event)
                except TemplateFailed as error:
                    problem = str(error)
                    break
                part = {"format": style.format, "text": text, "html": format_named(style.format).base == "html", "kinds": []}
                parts.append(part)
            part["kinds"].append(
                {"label": style.label, "length": length_words(style, part["text"]), "too_long": is_too_long(style, part["text"])}
            )
    return render(request, "admin/console/preview.html", {"parts": parts, "problem": problem})


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


def preview_button() -> str:
    """The button that shows what the text beside it becomes; console.js presses it."""
    return format_html(
        '<div data-asks class="flex flex-col gap-3"><div><button type="button" data-ask="{}" data-fields="event kind language subject body" '
        'class="border border-base-200 font-medium rounded-default px-3 py-2 cursor-pointer hover:text-primary-600 disabled:opacity-50 '
        'dark:border-base-700">{}</button></div><div data-answer role="status" data-wait="{}" data-lost="{}"></div></div>',
        reverse("admin:templates_app_template_preview"),
        _("Show with sample data"),
        _("One moment…"),
        _("There was no answer from this server. Reload the page and try again."),
    )


class TemplateInline(VisibleStacked):
    model = Template
    form = TemplateForm
    fields = (("event", "kind", "language"), "subject", "body", "shown_preview", "last_error")
    readonly_fields = ("shown_preview", "last_error")
    collapsible = True

    @display(description=gettext_lazy("preview"))
    def shown_preview(self, row: Template) -> str:
        return preview_button()


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

    class Media:
        js = ("web/console.js",)

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
    fields = ("template_set", ("event", "kind", "language"), "subject", "body", "shown_preview", "last_error", "last_error_at")
    readonly_fields = ("shown_preview", "last_error", "last_error_at")

    class Media:
        js = ("web/console.js",)

    @display(description=gettext_lazy("preview"))
    def shown_preview(self, row: Template) -> str:
        return preview_button()

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.preview))
        return [path("preview/", view, name="templates_app_template_preview"), *super().get_urls()]

    def preview(self, request: HttpRequest) -> HttpResponse:
        """What a text as it stands in a form becomes; only for those who write texts."""
        deny_unless(self.has_change_permission(request))
        return answer_preview(request)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "template_set":
            from_mine = offered(db_field, request.user)
            kwargs["queryset"] = from_mine if request.user.is_administrator else from_mine.filter(team_id__in=request.user.team_ids())  # type: ignore[union-attr]
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


def template_sets(member: Any) -> models.QuerySet:
    """The sets a rule of `member`'s may name."""
    return visible(TemplateSet, member).exclude(status="deleted")
