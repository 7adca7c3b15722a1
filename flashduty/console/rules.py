"""Console pages of who must know and when: workspaces, integrations with their push URL, escalation rules with layers and group channels."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models, transaction
from django.db.models import Count, Prefetch, Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.forms import PaginationInlineFormSet
from unfold.widgets import UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminSelectWidget

from channels_app import addresses, transport
from channels_app.models import Channel
from escalation import match, rules, sources
from escalation.models import EscalationRule, Integration, Layer, LayerChannel, RuleSnapshot, Workspace
from escalation.models.workspace import SEVERITIES
from flashduty.console import reach, testing
from flashduty.console.base import (
    ChoicesField,
    JsonField,
    LinesField,
    MachineAdmin,
    StatusFilter,
    VisibleAdmin,
    VisibleForm,
    VisibleRelatedFilter,
    VisibleStacked,
    asking,
    deny_unless,
    log,
    offered,
)  # fmt: skip
from flashduty.console.people import ZoneField
from flashduty.console.templates import template_sets
from mapping.clock import db_now
from mapping.visibility import Status
from templates_app.models import TemplateSet

EVENTS = [
    ("triggered", gettext_lazy("first page")),
    ("refire", gettext_lazy("loop")),
    ("escalated", gettext_lazy("escalated")),
    ("acknowledged", gettext_lazy("acknowledged")),
    ("closed", gettext_lazy("closed")),
]
FILTER_EXAMPLE = gettext_lazy(
    "A JSON list of groups: all conditions of one group must hold, any one group is enough. Empty: every incident. Example: "
    '[[{"key": "severity", "oper": "IN", "vals": ["Critical"]}, {"key": "labels.env", "oper": "IN", "vals": ["prod", "/^eu-/"]}]]'
)
TIME_EXAMPLE = gettext_lazy(
    "A JSON list of weekly windows, days from 0 (Sunday). Empty: always. Example, nights: "
    '[{"start": "22:00", "end": "06:00", "repeat": [1, 2, 3, 4, 5]}]'
)


def group_kinds() -> list[str]:
    """Kinds whose channels are group chats or endpoints: they may be named in a layer."""
    return [kind for kind, style in transport.transports().items() if style.group]


def person_choices() -> list[tuple[str, str]]:
    """By what a layer may reach its people: families, and within them the kinds of which there is a channel; the others would reach nobody."""
    used = set(filter(addresses.is_for_people, Channel.objects.exclude(status="deleted").values_list("kind", flat=True).distinct()))
    several = {name for name in map(addresses.family, used) if sum(addresses.family(kind) == name for kind in used) > 1}
    known = transport.transports()
    return [
        (name, words)
        for name, words in addresses.choices_for_people()
        if name not in known or addresses.family(name) == name or (name in used and addresses.family(name) in several)
    ]


def mention_words(style: type[transport.Transport]) -> str:
    """How a group channel of this kind names whom to @."""
    return {
        (): _("Messages of this kind cannot @ anybody."),
        ("table",): _("It can @ people by a mapping table."),
        ("phone",): _("It can @ people by their phone numbers; no table is needed."),
    }.get(tuple(style.mentions_by)) or _("It can @ people by a mapping table, and whoever is not in it by phone number.")


# ---- workspaces ----------------------------------------------------------------------------------------------------------------------


class WorkspaceForm(VisibleForm):
    def clean_managing_teams(self) -> Any:
        teams = self.cleaned_data["managing_teams"]
        if len(teams) > 3:
            raise ValidationError(_("At most three teams; %(count)d are chosen.") % {"count": len(teams)})
        return teams


@admin.register(Workspace)
class WorkspaceAdmin(VisibleAdmin):
    form = WorkspaceForm
    list_display = ("name", "team", "is_private", "integrations_count", "rules_count", "open_incidents", "status")
    list_select_related = ("team",)
    list_filter = (StatusFilter, "is_private", ("team", VisibleRelatedFilter))
    search_fields = ("name", "description")
    autocomplete_fields = ("managing_teams", "catch_all_members", "catch_all_teams")
    readonly_fields = ("unreached",)
    fieldsets = (
        (None, {"fields": ("name", "description", ("team", "status"), "managing_teams", ("is_private", "group_may_act"))}),
        (
            gettext_lazy("Catch-all: who is told when no rule matches or a rule reaches nobody"),
            {"fields": ("catch_all_members", "catch_all_teams", "unreached", "catch_all_channels")},
        ),
        (gettext_lazy("Closing by itself"), {"fields": (("auto_resolve_timeout", "auto_resolve_mode"), "disable_auto_close")}),
    )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        def count(model: type[models.Model], **where: Any) -> Any:
            rows = model._default_manager.filter(workspace=models.OuterRef("pk"), **where).order_by().values("workspace")
            return models.functions.Coalesce(models.Subquery(rows.annotate(n=Count("pk")).values("n")), 0)

        return (
            super()
            .get_queryset(request)
            .annotate(
                _integrations=count(Integration, status="enabled"),
                _rules=count(EscalationRule, status="enabled"),
                _open=count(Workspace.incidents.rel.related_model, progress__in=["Triggered", "Processing"]),  # type: ignore[attr-defined]
            )
        )

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "catch_all_channels":
            kwargs["queryset"] = offered(db_field, request.user).filter(kind__in=group_kinds())
            kwargs["widget"] = UnfoldAdminCheckboxSelectMultipleWidget()
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if not change:
            obj.created_by = request.user
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        reach.warn(request, reach.unreached_by_catch_all(form.instance.pk, db_now()) or ())

    @display(description=gettext_lazy("cannot be reached"))
    def unreached(self, row: Workspace) -> str:
        return reach.shown(reach.unreached_by_catch_all(row.pk, db_now())) if row.pk else "-"

    @display(description=gettext_lazy("integrations"), ordering="_integrations")
    def integrations_count(self, row: Any) -> int:
        return row._integrations

    @display(description=gettext_lazy("rules"), ordering="_rules")
    def rules_count(self, row: Any) -> int:
        return row._rules

    @display(description=gettext_lazy("open incidents"), ordering="_open")
    def open_incidents(self, row: Any) -> int:
        return row._open


# ---- integrations --------------------------------------------------------------------------------------------------------------------


class IntegrationForm(VisibleForm):
    kind = forms.ChoiceField(
        label=gettext_lazy("kind"), choices=lambda: [(name, name) for name in sources.SOURCES], widget=UnfoldAdminSelectWidget()
    )

    class Meta:
        model = Integration
        fields = ("name", "workspace", "kind", "status", "limit_per_second", "limit_per_minute")


@admin.register(Integration)
class IntegrationAdmin(VisibleAdmin):
    form = IntegrationForm
    list_display = ("name", "workspace", "kind", "event_count", "last_event_at", "status")
    list_select_related = ("workspace",)
    list_filter = (StatusFilter, "kind", ("workspace", VisibleRelatedFilter))
    search_fields = ("name",)
    readonly_fields = ("push_url", "old_key_until", "event_count", "last_event_at")
    change_form_template = "admin/escalation/integration/change_form.html"

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        basics = (None, {"fields": ("name", ("workspace", "kind"), "status")})
        words = gettext_lazy(
            "For the whole installation. Every web process allows its share of them and none for the others: "
            "set FLASHDUTY_WEB_PROCESSES to the number of nodes with a web server."
        )
        limits = (gettext_lazy("Limits"), {"fields": (("limit_per_second", "limit_per_minute"),), "description": words})
        if obj is None:
            return (basics, limits)
        # The push URL is a key: only for whoever may change the integration.
        secret = ("push_url", "old_key_until") if self.has_change_permission(request, obj) else ()
        return (basics, (gettext_lazy("Where to send"), {"fields": (*secret, ("event_count", "last_event_at"))}), limits)

    @display(description=gettext_lazy("push URL"))
    def push_url(self, integration: Integration) -> SafeString:
        url = f"{settings.BASE_URL}/event/push/alert/{integration.kind}?integration_key={integration.key}"
        return format_html(
            '<div class="flex items-center gap-2"><code id="push-url" class="break-all">{}</code> <button type="button" '
            'class="border border-base-200 rounded-default px-3 py-2 cursor-pointer dark:border-base-700" '
            "onclick=\"const url = document.getElementById('push-url'); getSelection().selectAllChildren(url); "
            'if (navigator.clipboard) navigator.clipboard.writeText(url.textContent).then(() => this.textContent = this.dataset.done)" '
            'data-done="{}">{}</button></div>',
            url,
            _("Copied"),
            _("Copy"),
        )

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.rotate))
        return [path("<int:pk>/rotate/", view, name="escalation_integration_rotate"), *super().get_urls()]

    def rotate(self, request: HttpRequest, pk: int) -> HttpResponse:
        """A new key now; the old one works for the time of grace, so that senders can be changed one after the other."""
        with transaction.atomic():
            integration = get_object_or_404(self.get_queryset(request).select_related(None).select_for_update(of=("self",)), pk=pk)
            deny_unless(self.has_change_permission(request, integration))
            integration.rotate(db_now())
            log(request, integration, gettext_noop("key: rotated"))
        self.message_user(request, _("There is a new key. The old one works until the time shown below."), messages.SUCCESS)
        return HttpResponseRedirect(reverse("admin:escalation_integration_change", args=[pk]))


# ---- rules ---------------------------------------------------------------------------------------------------------------------------


class LayerChannelForm(VisibleForm):
    severities = ChoicesField(label=gettext_lazy("severities"), choices=SEVERITIES, required=False, help_text=gettext_lazy("None: all."))
    events = ChoicesField(label=gettext_lazy("events to send"), choices=EVENTS, required=False, help_text=gettext_lazy("None: all."))

    class Meta:
        model = LayerChannel
        fields = ("channel", "severities", "events", "mention", "mapping_table")

    def clean(self) -> Any:
        data = super().clean()
        channel = self.cleaned_data.get("channel")
        style = transport.transports().get(channel.kind) if channel is not None else None
        # Where nobody can be called at all the page says so, and it does no harm; without its table a kind that needs one would call nobody.
        mentions = self.cleaned_data.get("mention")
        if style is not None and mentions and tuple(style.mentions_by) == ("table",) and self.cleaned_data.get("mapping_table") is None:
            self.add_error("mapping_table", _("%(kind)s knows people only by a mapping table: choose one.") % {"kind": style.label})
        return data


class LayerChannelInline(VisibleStacked):
    model = LayerChannel
    form = LayerChannelForm
    fields = (("channel", "try_out"), ("mention", "mapping_table"), ("severities", "events"))
    readonly_fields = ("try_out",)
    verbose_name = gettext_lazy("group channel")
    verbose_name_plural = gettext_lazy("Group channels of this layer")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).select_related("channel", "mapping_table").order_by("id")

    @display(description=gettext_lazy("test"))
    def try_out(self, use: LayerChannel) -> str:
        """A button that sends a test to the channel chosen beside it; console.js presses it and shows what it can @."""
        return format_html(
            '<div data-asks class="flex flex-col gap-2"><div><button type="button" data-ask="{}" data-fields="channel" class="border border-base-200 '
            'font-medium rounded-default px-3 py-2 cursor-pointer hover:text-primary-600 disabled:opacity-50 dark:border-base-700">{}</button></div>'
            '<div data-answer role="status" data-wait="{}" data-lost="{}"></div><p class="text-xs" data-mentions></p></div>',
            reverse("admin:escalation_escalationrule_try"),
            _("Send a test"),
            _("Asking the provider…"),
            _("There was no answer from this server. Reload the page and try again."),
        )

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "channel":
            kwargs["queryset"] = offered(db_field, request.user).filter(kind__in=group_kinds())
        return super().formfield_for_foreignkey(db_field, request, **kwargs)


class LayerForm(VisibleForm):
    idx = forms.IntegerField(widget=forms.HiddenInput(), required=False)
    emails = LinesField(
        label=gettext_lazy("e-mail addresses"), help_text=gettext_lazy("One a line. They are told by e-mail and need no account.")
    )
    critical = ChoicesField(
        label=gettext_lazy("for Critical"),
        required=False,
        help_text=gettext_lazy("Used where each person's own preference is off."),
    )
    warning = ChoicesField(label=gettext_lazy("for Warning"), required=False)
    info = ChoicesField(label=gettext_lazy("for Info"), required=False)
    offered: ClassVar[list[tuple[str, str]]] = []  # set once a request, by the inline

    class Meta:
        model = Layer
        fields = (
            "idx", "members", "teams", "supervisors", "emails", "escalate_window", "notify_step", "max_times", "force_escalate",
            "follow_preference", "critical", "warning", "info",
        )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in ("critical", "warning", "info"):
            if name in self.fields:
                kept = [kind for kind in getattr(self.instance, name) or () if kind not in dict(self.offered)]
                field: Any = self.fields[name]
                field.choices = [*self.offered, *((kind, addresses.label(kind)) for kind in kept)]

    def has_changed(self) -> bool:
        """A layer that was added is meant, although all in it stands as it stood at first: it may have nothing but a group channel."""
        return self.instance.pk is None or super().has_changed()

    def clean_emails(self) -> list[str]:
        found = self.cleaned_data["emails"]
        for address in found:
            try:
                validate_email(address)
            except ValidationError:
                raise ValidationError(_("“%(address)s” is not an e-mail address.") % {"address": address}) from None
        return found

    def clean(self) -> Any:
        data = super().clean()
        if not self.cleaned_data.get("follow_preference", True):
            empty = [name for name in ("critical", "warning", "info") if not self.cleaned_data.get(name)]
            if len(empty) == 3:
                raise ValidationError(_("Choose by what these people are told, or switch each person's own preference on."))
        return data

    def _get_validation_exclusions(self) -> set[str]:
        # Layers are numbered by their order on the page, after all of them are saved (the constraint is deferred).
        return {*super()._get_validation_exclusions(), "idx"}  # type: ignore[misc]


class LayerFormSet(PaginationInlineFormSet):
    """Layers in the order in which they stand on the page."""

    def clean(self) -> None:
        super().clean()
        for place, form in enumerate(self.forms):
            given = form.cleaned_data.get("idx") if hasattr(form, "cleaned_data") else None
            form.instance.idx = given if given is not None else 1000 + place


class LayerInline(VisibleStacked):
    model = Layer
    form = LayerForm
    formset = LayerFormSet
    inlines = (LayerChannelInline,)
    ordering_field = "idx"
    hide_ordering_field = True
    autocomplete_fields = ("members", "teams")
    readonly_fields = ("unreached",)
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "idx",
                    ("members", "teams"),
                    "unreached",
                    ("supervisors", "force_escalate"),
                    ("escalate_window", "notify_step", "max_times"),
                    ("emails", "follow_preference"),
                    ("critical", "warning", "info"),
                )
            },
        ),
    )

    def get_formset(self, request: HttpRequest, obj: Any = None, **kwargs: Any) -> Any:
        kwargs["form"] = type("LayerForm", (LayerForm,), {"offered": person_choices(), "Meta": LayerForm.Meta})
        return super().get_formset(request, obj, **kwargs)

    @display(description=gettext_lazy("cannot be reached"))
    def unreached(self, layer: Layer) -> str:
        """Asked once for the whole rule."""
        if layer.pk is None:
            return "-"
        known = asking().__dict__
        if "_console_unreached" not in known:
            known["_console_unreached"] = reach.unreached_of(layer.rule_id, db_now())
        found: list[list[str] | None] = known["_console_unreached"]
        return reach.shown(found[layer.idx] if layer.idx < len(found) else None)

    verbose_name = gettext_lazy("layer")
    verbose_name_plural = gettext_lazy("Layers, from the first to the last")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).prefetch_related("members", "teams").order_by("idx", "id")


class RuleForm(VisibleForm):
    filters = JsonField(label=gettext_lazy("filters"), empty=[], help_text=FILTER_EXAMPLE)
    time_filters = JsonField(label=gettext_lazy("time windows"), empty=[], rows=4, help_text=TIME_EXAMPLE)
    time_zone = ZoneField(label=gettext_lazy("time zone of the windows"), initial="UTC")
    template_set = forms.ModelChoiceField(
        label=gettext_lazy("template set"), queryset=TemplateSet.objects.none(), required=False, widget=UnfoldAdminSelectWidget(),
        empty_label=gettext_lazy("The default texts"),
    )  # fmt: skip

    class Meta:
        model = EscalationRule
        fields = ("workspace", "name", "description", "priority", "status", "filters", "time_filters", "time_zone", "aggr_window")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if "template_set" in self.fields and self.instance.template_set_id:
            self.initial["template_set"] = self.instance.template_set_id
            field: Any = self.fields["template_set"]
            permitted = field.queryset.order_by().values("pk")
            field.queryset = TemplateSet.objects.filter(Q(pk__in=permitted) | Q(pk=self.instance.template_set_id))

    def clean_filters(self) -> Any:
        return _checked(self.cleaned_data["filters"], match.check(self.cleaned_data["filters"]))

    def clean_time_filters(self) -> Any:
        return _checked(self.cleaned_data["time_filters"], match.check_time(self.cleaned_data["time_filters"]))

    def clean(self) -> Any:
        data = super().clean()
        if "template_set" in self.cleaned_data:
            chosen = self.cleaned_data["template_set"]
            self.instance.template_set_id = chosen.pk if chosen else None
        return data


def _checked(value: Any, problems: list[match.FilterError]) -> Any:
    """The value, or every problem with the place where it is: `filters[0][1].vals[2]: what to do`."""
    if problems:
        raise ValidationError([str(problem) for problem in problems])
    return value


def empty_words(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What an operator has to know of a rule whose layers, as `rules.rule_body` has them, tell nobody."""
    if not layers:
        return [_("The rule has no layer, so it is passed over: the next rule that matches decides, or the catch-all.")]
    return [
        _("Layer %(idx)d names nobody and no group channel: it is skipped.") % {"idx": idx}
        for idx, layer in enumerate(layers, 1)
        if not any(layer[who] for who in ("members", "teams", "supervisors", "emails", "channels"))
    ]


@admin.register(EscalationRule)
class RuleAdmin(VisibleAdmin):
    form = RuleForm
    list_display = ("name", "workspace", "priority", "layers_count", "applies", "version", "status", "updated_at")
    list_select_related = ("workspace",)
    list_filter = (StatusFilter, ("workspace", VisibleRelatedFilter))
    search_fields = ("name", "description", "workspace__name")
    readonly_fields = ("version", "shown_template_set")
    inlines = (LayerInline,)
    change_form_template = "admin/escalation/escalationrule/change_form.html"

    class Media:
        js = ("web/console.js",)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(require_POST(self.try_channel))
        return [path("channels/test/", view, name="escalation_escalationrule_try"), *super().get_urls()]

    def try_channel(self, request: HttpRequest) -> HttpResponse:
        """Sends a real message by a saved group channel, which whoever makes a rule may choose, and answers with what the provider said."""
        wanted = request.POST.get("channel", "")
        if not wanted.isdecimal():
            return testing.answer_sentence(request, _("Choose a channel first."))
        channel = get_object_or_404(Channel.objects.exclude(status="deleted"), pk=int(wanted[:18]), kind__in=group_kinds())
        deny_unless(testing.may_test(request.user, channel))
        return testing.answer_test(request, channel)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # Of each channel that may be chosen: what it can @, and what is said about it.
        known = transport.transports()
        rows = Channel.objects.filter(Channel.for_groups_q(request.user), kind__in=group_kinds()).values_list("pk", "kind")
        context["mentions"] = {str(pk): {"by": list(known[kind].mentions_by), "words": mention_words(known[kind])} for pk, kind in rows}
        return super().render_change_form(request, context, *args, **kwargs)

    def _nested_inline_permissions(self, request: HttpRequest, inline: Any, inline_formset: Any, obj: Any) -> dict[str, bool]:
        # On the page of a new rule Unfold asks whether the rule that is not saved yet may be changed, which nobody may: its layers had no group channels.
        return super()._nested_inline_permissions(request, inline, inline_formset, obj if obj is not None and obj.pk else None)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        chosen = "template_set" if obj is None or self.has_change_permission(request, obj) else "shown_template_set"
        return (
            (None, {"fields": ("name", ("workspace", "priority", "status"), "description", (chosen, "aggr_window"))}),
            (gettext_lazy("When it applies"), {"fields": ("filters", ("time_filters", "time_zone"))}),
        )

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        name = TemplateSet.objects.filter(pk=models.OuterRef("template_set_id")).values("name")[:1]
        return super().get_queryset(request).annotate(_layers=Count("layers"), _template_set=models.Subquery(name))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        form = super().get_form(request, obj, change, **kwargs)
        if "template_set" in form.base_fields:
            # A field that a class declares is one object for all forms and threads: what one person may choose goes into a copy.
            form.base_fields["template_set"] = copy.deepcopy(form.base_fields["template_set"])
            form.base_fields["template_set"].queryset = template_sets(request.user)
        return form

    def parts(self, obj: Any) -> Iterator[tuple[str, models.Model]]:
        uses = Prefetch("channels", LayerChannel.objects.select_related("channel", "mapping_table").order_by("id"))
        for layer in obj.layers.prefetch_related("members", "teams", uses).order_by("idx"):
            words = _("layer %(idx)d · ") % {"idx": layer.idx + 1}
            yield words, layer
            for use in layer.channels.all():
                yield f"{words}{use.channel} · ", use

    def story_of(self, obj: Any) -> Any:
        found = super().story_of(obj)
        label = str(EscalationRule._meta.get_field("template_set_id").verbose_name)
        name = TemplateSet.objects.filter(pk=obj.template_set_id).values_list("name", flat=True).first() or "-"
        return found | {label: (obj.template_set_id, name)}

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if not change:
            return super().save_model(request, obj, form, change)
        request._console_before = self.history_of(request, EscalationRule.objects.get(pk=obj.pk))  # type: ignore[attr-defined]
        # Never the version: two people who save at once would both write the number after the one they read, and runs keep rules by it.
        written = [field.name for field in obj._meta.concrete_fields if field.name not in ("id", "version", "created_at")]
        obj.save(update_fields=written)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        super().save_related(request, form, formsets, change)
        for place, layer in enumerate(Layer.objects.filter(rule=form.instance).order_by("idx", "id").only("idx")):
            if layer.idx != place:
                Layer.objects.filter(pk=layer.pk).update(idx=place)
        rules.changed([form.instance.pk])
        layers = rules.current_body(form.instance.pk)["layers"]
        lines = empty_words(layers) if form.instance.status == Status.ENABLED else []
        reach.warn(request, [*lines, *(line for layer in reach.unreached_by(layers, db_now()) for line in layer or ())])

    def retired(self, rows: Any) -> None:
        rules.changed([row.pk for row in rows])

    @display(description=gettext_lazy("layers"), ordering="_layers")
    def layers_count(self, rule: Any) -> int:
        return rule._layers

    @display(description=gettext_lazy("applies to"))
    def applies(self, rule: EscalationRule) -> str:
        words = [_("filtered") if rule.filters else _("every incident"), _("at certain times") if rule.time_filters else _("always")]
        return ", ".join(words)

    @display(description=gettext_lazy("template set"))
    def shown_template_set(self, rule: Any) -> str:
        return getattr(rule, "_template_set", None) or _("The default texts")


@admin.register(RuleSnapshot)
class RuleSnapshotAdmin(MachineAdmin):
    """A rule as runs follow it: what was in force, whatever was edited since."""

    list_display = ("id", "rule", "version", "created_at")
    list_select_related = ("rule",)
    fields = ("rule", "version", "created_at", "body")
    readonly_fields = fields
    lookups: ClassVar[tuple[str, ...]] = ("rule",)
