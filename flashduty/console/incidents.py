"""Console pages of what happened: the incident with its story and its buttons, alerts, events, runs, the timeline."""

import json
from collections.abc import Callable
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminSelect2MultipleWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
)  # fmt: skip

from escalation import explain, lifecycle, targets
from escalation.ids import hex_id
from escalation.models import Alert, Event, Incident, Run, TimelineEntry, Workspace
from escalation.models.workspace import SEVERITIES
from flashduty.console import reach
from flashduty.console.base import JsonField, MachineAdmin, VisibleRelatedFilter, asking, deny_unless, may, visible
from mapping.clock import db_now
from mapping.models import Member
from mapping.visibility import Role

SEVERITY_COLOURS = {"Critical": "danger", "Warning": "warning", "Info": "info", "Ok": "success"}
PROGRESS_COLOURS = {"Triggered": "danger", "Processing": "warning", "Closed": "success"}


def may_act(request: HttpRequest, incident: Incident | None = None) -> bool:
    """Whoever sees an incident may handle it, except viewers: those on call are members."""
    user: Any = request.user
    if not isinstance(user, Member) or not user.is_active or user.role == Role.VIEWER:
        return False
    return incident is None or may(request, incident, change=False)


# ---- what each button asks -----------------------------------------------------------------------------------------------------------


class PeopleField(forms.ModelMultipleChoiceField):
    """Members who can be told."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            queryset=Member.objects.filter(is_active=True).order_by("name"), widget=UnfoldAdminSelect2MultipleWidget(), **kwargs
        )


class ReopenForm(forms.Form):
    reason = forms.CharField(label=gettext_lazy("Why"), max_length=lifecycle.MAX_TEXT, widget=UnfoldAdminTextInputWidget())


class SnoozeForm(forms.Form):
    minutes = forms.IntegerField(
        label=gettext_lazy("Minutes"), min_value=1, max_value=1440, initial=30, widget=UnfoldAdminIntegerFieldWidget()
    )


class EscalateForm(forms.Form):
    layer_idx = forms.IntegerField(
        label=gettext_lazy("Layer"), min_value=1, max_value=99, required=False, widget=UnfoldAdminIntegerFieldWidget(),
        help_text=gettext_lazy("Empty: the next one. The first layer is 1."),
    )  # fmt: skip

    def clean_layer_idx(self) -> int | None:
        number: int | None = self.cleaned_data["layer_idx"]
        return None if number is None else number - 1  # people count from 1, rows from 0


class AssignForm(forms.Form):
    member_ids = PeopleField(label=gettext_lazy("To"))

    def clean_member_ids(self) -> list[int]:
        return [member.pk for member in self.cleaned_data["member_ids"]]


class CommentForm(forms.Form):
    text = forms.CharField(
        label=gettext_lazy("Comment"), max_length=lifecycle.MAX_TEXT, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2})
    )


class EditForm(forms.Form):
    title = forms.CharField(label=gettext_lazy("title"), max_length=lifecycle.MAX_TITLE, widget=UnfoldAdminTextInputWidget())
    severity = forms.ChoiceField(label=gettext_lazy("severity"), choices=SEVERITIES, widget=UnfoldAdminSelectWidget())
    description = forms.CharField(label=gettext_lazy("description"), required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}))
    impact = forms.CharField(label=gettext_lazy("impact"), required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}))
    root_cause = forms.CharField(label=gettext_lazy("root cause"), required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}))
    resolution = forms.CharField(label=gettext_lazy("resolution"), required=False, widget=UnfoldAdminTextareaWidget(attrs={"rows": 2}))


# verb -> its words, what it asks, where it can be pressed. lifecycle decides; this only keeps useless buttons off the page.
OPEN = ("Triggered", "Processing")
VERBS: dict[str, tuple[Any, type[forms.Form], tuple[str, ...]]] = {
    "acknowledge": (gettext_lazy("Acknowledge"), forms.Form, OPEN),
    "unacknowledge": (gettext_lazy("Take the acknowledgement back"), forms.Form, ("Processing",)),
    "close": (gettext_lazy("Close"), forms.Form, OPEN),
    "reopen": (gettext_lazy("Reopen"), ReopenForm, ("Closed",)),
    "snooze": (gettext_lazy("Snooze"), SnoozeForm, OPEN),
    "wake": (gettext_lazy("End the snooze"), forms.Form, ("Processing",)),
    "escalate": (gettext_lazy("Escalate"), EscalateForm, OPEN),
    "assign": (gettext_lazy("Assign"), AssignForm, OPEN),
    "comment": (gettext_lazy("Comment"), CommentForm, (*OPEN, "Closed")),
    "edit": (gettext_lazy("Edit"), EditForm, (*OPEN, "Closed")),
}


class CreateForm(forms.Form):
    workspace = forms.ModelChoiceField(label=gettext_lazy("workspace"), queryset=Workspace.objects.none(), widget=UnfoldAdminSelectWidget())
    title = forms.CharField(label=gettext_lazy("title"), max_length=lifecycle.MAX_TITLE, widget=UnfoldAdminTextInputWidget())
    severity = forms.ChoiceField(label=gettext_lazy("severity"), choices=SEVERITIES, initial="Warning", widget=UnfoldAdminSelectWidget())
    description = forms.CharField(
        label=gettext_lazy("description"),
        required=False,
        max_length=lifecycle.MAX_TEXT,
        widget=UnfoldAdminTextareaWidget(attrs={"rows": 4}),
    )
    labels = JsonField(
        label=gettext_lazy("labels"), empty={}, rows=3, help_text=gettext_lazy('A JSON object of texts, such as {"env": "prod"}.')
    )
    member_ids = PeopleField(
        label=gettext_lazy("assign to"), required=False, help_text=gettext_lazy("Nobody: the workspace's escalation rules decide.")
    )

    def clean_labels(self) -> dict[str, str]:
        labels = self.cleaned_data["labels"]
        if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
            raise forms.ValidationError(_('Labels are a JSON object of texts, such as {"env": "prod"}.'))
        return labels

    def clean_member_ids(self) -> list[int]:
        return [member.pk for member in self.cleaned_data["member_ids"]]


# ---- incidents -----------------------------------------------------------------------------------------------------------------------


@admin.register(Incident)
class IncidentAdmin(MachineAdmin):
    list_display = (
        "shown_num",
        "title",
        "shown_severity",
        "shown_progress",
        "workspace",
        "start_time",
        "ack_time",
        "close_time",
        "alert_count",
    )
    list_display_links = ("shown_num", "title")
    list_select_related = ("workspace",)
    list_filter = ("progress", "severity", ("workspace", VisibleRelatedFilter))
    search_fields = ("title", "num", "description")
    ordering = ("-id",)
    actions: ClassVar[list[str]] = ["acknowledge_selected", "close_selected"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return may_act(request)

    def has_act_permission(self, request: HttpRequest) -> bool:
        return may_act(request)

    @display(description=gettext_lazy("number"), ordering="id")
    def shown_num(self, row: Incident) -> str:
        return f"#{row.num}"

    @display(description=gettext_lazy("severity"), ordering="severity", label=SEVERITY_COLOURS)
    def shown_severity(self, row: Incident) -> tuple[str, str]:
        return row.severity, row.get_severity_display()

    @display(description=gettext_lazy("progress"), ordering="progress", label=PROGRESS_COLOURS)
    def shown_progress(self, row: Incident) -> tuple[str, str]:
        return row.progress, row.get_progress_display()

    # ---- by hand ----

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        deny_unless(self.has_add_permission(request))
        form = CreateForm(request.POST if request.method == "POST" else None)
        form.fields["workspace"].queryset = visible(Workspace, request.user).filter(status="enabled")  # type: ignore[attr-defined]
        if form.is_valid():
            data = dict(form.cleaned_data)
            try:
                incident = lifecycle.create(
                    actor=request.user, via="console", now=db_now(), workspace_id=data.pop("workspace").pk, **data  # type: ignore[arg-type]
                )  # fmt: skip
            except lifecycle.Refused as refused:
                form.add_error(refused.field if refused.field in form.fields else None, refused.message)
            else:
                self.message_user(request, _("Incident #%(num)s is open.") % {"num": incident.num}, messages.SUCCESS)
                reach.warn(request, reach.unreached(data["member_ids"], db_now(), {incident.severity: None}).values())
                return HttpResponseRedirect(reverse("admin:escalation_incident_change", args=[incident.pk]))
        context = self.admin_site.each_context(request) | {
            "title": _("Open an incident by hand"), "form": form, "opts": self.opts, "button": _("Open"),
            "back": reverse("admin:escalation_incident_changelist"), "media": form.media,
        }  # fmt: skip
        return TemplateResponse(request, "admin/console/form.html", context)

    # ---- the page ----

    def change_view(self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        incident = self._incident(request, object_id)
        return self._page(request, incident, {})

    def _incident(self, request: HttpRequest, object_id: str) -> Incident:
        found = self.get_object(request, object_id)
        if found is None:
            raise Http404(_("There is no such incident, or you may not see it."))
        deny_unless(self.has_view_permission(request, found))
        return found

    def _page(self, request: HttpRequest, incident: Incident, bound: dict[str, forms.Form]) -> HttpResponse:
        now = db_now()
        buttons = []
        forms_used = []
        if may_act(request, incident):
            holders = set(incident.responders.filter(acknowledged_at__isnull=False).values_list("member_id", flat=True))
            useless = {
                "wake": incident.snoozed_until is None,
                "acknowledge": request.user.pk in holders,
                "unacknowledge": bool(holders) and request.user.pk not in holders,
            }
            for verb, (words, form_class, where) in VERBS.items():
                if incident.progress not in where or useless.get(verb):
                    continue
                form = bound.get(verb) or form_class(initial=_initial(verb, incident), prefix=verb)
                forms_used.append(form)
                buttons.append({"verb": verb, "words": words, "form": form, "asks": bool(form.fields), "open": verb in bound})
        media = forms.Media()
        for form in forms_used:
            media += form.media
        story = explain.explain(incident, now, request.user)  # type: ignore[arg-type]
        alerts = incident.alerts.select_related("integration").order_by("-id")
        context = self.admin_site.each_context(request) | {
            "title": f"#{incident.num} {incident.title}", "opts": self.opts, "original": incident, "incident": incident, "story": story,
            "buttons": buttons, "media": media, "hex_id": hex_id(incident.created_at, incident.pk), "labels": sorted(incident.labels.items()),
            "responders": incident.responders.select_related("member").order_by("id"), "alerts": alerts[:20],
            "severity_colour": SEVERITY_COLOURS.get(incident.severity, "info"), "progress_colour": PROGRESS_COLOURS[incident.progress],
            "now": now, "has_view_permission": True,
        }  # fmt: skip
        return TemplateResponse(request, "admin/escalation/incident/page.html", context, status=422 if bound else 200)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.press)
        return [path("<int:pk>/do/<str:verb>/", view, name="escalation_incident_do"), *super().get_urls()]

    def press(self, request: HttpRequest, pk: int, verb: str) -> HttpResponse:
        """One button: the verb of lifecycle with what its form asks; a refusal is shown and changes nothing. Opened again, it is the incident's page."""
        if request.method != "POST":
            return HttpResponseRedirect(reverse("admin:escalation_incident_change", args=[pk]))
        incident = self._incident(request, str(pk))
        deny_unless(may_act(request, incident))
        if verb not in VERBS:
            raise Http404
        words, form_class, _where = VERBS[verb]
        form = form_class(request.POST, prefix=verb, initial=_initial(verb, incident))
        if not form.is_valid():
            return self._page(request, incident, {verb: form})
        data = dict(form.cleaned_data)
        if verb == "edit":
            data = {name: data[name] for name in form.changed_data}
        if verb == "assign" and incident.assigned_type in ("assign", "reassign"):
            verb = "reassign"
        try:
            _verb(verb)(pk, actor=request.user, via="console", now=db_now(), **data)
        except lifecycle.Refused as refused:
            self.message_user(request, refused.message, messages.ERROR)
        else:
            self.message_user(request, _("Done: %(what)s.") % {"what": words}, messages.SUCCESS)
            reach.warn(request, reach.unreached(data.get("member_ids", ()), db_now(), {incident.severity: None}).values())
        return HttpResponseRedirect(reverse("admin:escalation_incident_change", args=[pk]))

    # ---- several at once ----

    @admin.action(description=gettext_lazy("Acknowledge"), permissions=["act"])
    def acknowledge_selected(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        self._several(request, queryset, "acknowledge")

    @admin.action(description=gettext_lazy("Close"), permissions=["act"])
    def close_selected(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        self._several(request, queryset, "close")

    def _several(self, request: HttpRequest, queryset: models.QuerySet, verb: str) -> None:
        done = 0
        refusals: dict[str, int] = {}
        now = db_now()
        for pk in list(queryset.order_by("pk").values_list("pk", flat=True)):
            try:
                _verb(verb)(pk, actor=request.user, via="console", now=now)
                done += 1
            except lifecycle.Refused as refused:
                refusals[refused.message] = refusals.get(refused.message, 0) + 1
        self.message_user(request, _("Done: %(count)d.") % {"count": done}, messages.SUCCESS if done else messages.WARNING)
        for message, count in refusals.items():
            self.message_user(request, f"{count} × {message}", messages.WARNING)


def _verb(name: str) -> Callable[..., Incident]:
    return getattr(lifecycle, name)


def _initial(verb: str, incident: Incident) -> dict[str, Any]:
    if verb == "edit":
        return {name: getattr(incident, name) for name in EditForm.base_fields}
    return {}


# ---- what sources said ---------------------------------------------------------------------------------------------------------------


@admin.register(Alert)
class AlertAdmin(MachineAdmin):
    list_display = ("title", "shown_severity", "status", "workspace", "integration", "event_count", "start_time", "last_time", "is_open")
    list_select_related = ("workspace", "integration")
    list_filter = ("severity", "is_open", ("workspace", VisibleRelatedFilter), ("integration", VisibleRelatedFilter))
    lookups = ("incident",)
    search_fields = ("title", "alert_key")
    ordering = ("-id",)
    fields = (
        "title", ("severity", "status", "is_open"), ("workspace", "integration", "incident"), "alert_key", "description", "labels", "links", "images",
        ("start_time", "last_time", "end_time", "close_time"), "event_count",
    )  # fmt: skip
    readonly_fields = (
        "title", "severity", "status", "is_open", "workspace", "integration", "incident", "alert_key", "description", "labels", "links", "images",
        "start_time", "last_time", "end_time", "close_time", "event_count",
    )  # fmt: skip

    @display(description=gettext_lazy("severity"), ordering="severity", label=SEVERITY_COLOURS)
    def shown_severity(self, row: Alert) -> tuple[str, str]:
        return row.severity, row.get_severity_display()


@admin.register(Event)
class EventAdmin(MachineAdmin):
    """Everything a source said, and what became of it: nothing vanishes without a word."""

    list_display = ("id", "received_at", "integration", "alert_key", "status", "shown_outcome", "shown_detail")
    list_select_related = ("integration",)
    list_filter = ("outcome", "status", ("integration", VisibleRelatedFilter))
    lookups = ("alert",)
    search_fields = ("alert_key",)
    ordering = ("-id",)
    fields = ("integration", ("received_at", "processed_at"), "alert_key", "status", "explained", "alert", "payload", "raw_text")
    readonly_fields = ("integration", "received_at", "processed_at", "alert_key", "status", "explained", "alert", "payload", "raw_text")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).defer("raw")

    @display(description=gettext_lazy("outcome"), ordering="outcome")
    def shown_outcome(self, row: Event) -> str:
        return row.get_outcome_display() or _("waits")

    @display(description=gettext_lazy("more about it"))
    def shown_detail(self, row: Event) -> str:
        return targets.in_words(row.outcome_detail) or "-"

    @display(description=gettext_lazy("what became of it"))
    def explained(self, row: Event) -> str:
        return explain.explain_event(row)

    @display(description=gettext_lazy("as received"))
    def raw_text(self, row: Event) -> str:
        return bytes(row.raw).decode("utf-8", "replace")[:65536] if row.raw else "-"


# ---- what the engine did -------------------------------------------------------------------------------------------------------------


@admin.register(Run)
class RunAdmin(MachineAdmin):
    list_display = ("id", "incident", "shown_rule", "kind", "layer_idx", "next_at", "started_at", "ended_at", "shown_end")
    list_select_related = ("incident", "snapshot__rule")
    list_filter = ("kind", ("ended_at", admin.EmptyFieldListFilter))
    lookups = ("incident", "snapshot")
    ordering = ("-id",)
    fields = ("incident", "shown_rule", "kind", "layer_idx", ("started_at", "next_at", "ended_at"), "shown_end", "state", "snapshot")
    readonly_fields = (
        "incident",
        "shown_rule",
        "kind",
        "layer_idx",
        "started_at",
        "next_at",
        "ended_at",
        "shown_end",
        "state",
        "snapshot",
    )

    @display(description=gettext_lazy("why it ended"))
    def shown_end(self, run: Run) -> str:
        return targets.in_words(run.end_reason)

    @display(description=gettext_lazy("follows"))
    def shown_rule(self, run: Run) -> str:
        return _("%(name)s, version %(version)s") % {"name": run.snapshot.body.get("name", "-"), "version": run.snapshot.version}


def _names() -> dict[tuple[str, Any], str]:
    """Names of members for sentences, read once a request."""
    request = asking()
    if "_console_names" not in request.__dict__:
        request.__dict__["_console_names"] = {("member", pk): name for pk, name in Member.objects.values_list("pk", "name")}
    return request.__dict__["_console_names"]


@admin.register(TimelineEntry)
class TimelineAdmin(MachineAdmin):
    list_display = ("id", "created_at", "incident", "type", "said", "actor", "via", "handled_at")
    list_select_related = ("incident", "actor")
    list_filter = ("type", "via", ("handled_at", admin.EmptyFieldListFilter))
    lookups = ("incident",)
    ordering = ("-id",)
    fields = ("incident", ("type", "via", "actor"), "said", "detail_json", ("created_at", "handled_at"))
    readonly_fields = ("incident", "type", "via", "actor", "said", "detail_json", "created_at", "handled_at")

    @display(description=gettext_lazy("in words"))
    def said(self, row: TimelineEntry) -> str:
        return explain.sentence(row, _names())

    @display(description=gettext_lazy("detail"))
    def detail_json(self, row: TimelineEntry) -> str:
        return json.dumps(row.detail, ensure_ascii=False, indent=2)
