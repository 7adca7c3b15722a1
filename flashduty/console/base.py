"""What every page of the console obeys: who sees which row, who may change it, which rows a field offers, and what the history keeps.

Django's admin leaks sideways: through choices of a foreign key, filters, autocomplete, pop-ups, history and `?field__startswith=` in an
address. All of these ask `visible` and `changeable` here, and these ask the models (`visible_to`, `changeable_by`).
"""

import json
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.filters import RelatedFieldListFilter, SimpleListFilter
from django.contrib.admin.models import LogEntry
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import models, transaction
from django.http import HttpRequest
from django.utils import timezone, translation
from django.utils.formats import date_format
from django.utils.html import conditional_escape
from django.utils.text import capfirst
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.admin import ModelAdmin, StackedInline, TabularInline
from unfold.paginator import InfinitePaginator
from unfold.widgets import TEXTAREA_CLASSES, UnfoldAdminCheckboxSelectMultipleWidget, UnfoldAdminTextareaWidget

from channels_app import transport
from channels_app.models import Address, Channel, ChannelHealth, Delivery, Notification
from escalation.models import Event, Incident, Integration, Layer, LayerChannel, Responder, RuleSnapshot, Run, TimelineEntry, Workspace
from escalation.models.rule import EscalationRule
from escalation.models.workspace import InWorkspace
from mapping.crypto import EncryptedJSONField, EncryptedTextField
from mapping.models import Installation, MappingEntry, MappingTable, Member, Team
from mapping.visibility import Role, Status
from templates_app.models import Template, TemplateSet

# Rows that belong to another row are seen and changed by whoever sees and changes that one: model -> (field, owner).
THROUGH: dict[type[models.Model], tuple[str, type[models.Model]]] = {
    Event: ("integration", Integration),
    Run: ("incident", Incident),
    TimelineEntry: ("incident", Incident),
    Responder: ("incident", Incident),
    Layer: ("rule", EscalationRule),
    LayerChannel: ("layer", Layer),
    RuleSnapshot: ("rule", EscalationRule),
    MappingEntry: ("table", MappingTable),
    Address: ("channel", Channel),
    ChannelHealth: ("channel", Channel),
    Notification: ("topic", Incident),
    Template: ("template_set", TemplateSet),
}


_asking: ContextVar[HttpRequest] = ContextVar("flashduty_console_request")


def asking() -> HttpRequest:
    """The request that is being answered, for columns that depend on who looks. A ModelAdmin is shared by threads and must not keep it."""
    return _asking.get()


def visible(model: type[models.Model], member: Any) -> models.QuerySet:
    """The rows of `model` that `member` may see; never joined to anything, so that it can be narrowed, counted and annotated freely."""
    rows = model._default_manager.all()
    if not isinstance(member, Member) or not member.is_active:
        return rows.none()
    if member.is_administrator:
        return rows
    if model in THROUGH:
        field, owner = THROUGH[model]
        return rows.filter(**{f"{field}__in": visible(owner, member).values("pk")})
    if issubclass(model, InWorkspace):  # its rule, without a DISTINCT over a table of millions
        return rows.filter(workspace__in=Workspace.objects.visible_to(member).values("pk"))
    if model is Delivery:
        tests = models.Q(notification__event="test", channel__in=visible(Channel, member).values("pk"))
        return rows.filter(models.Q(topic__in=visible(Incident, member).values("pk")) | models.Q(member=member) | tests)
    if hasattr(rows, "visible_to"):
        return rows.filter(pk__in=rows.visible_to(member).values("pk"))
    return rows.none()


def changeable(model: type[models.Model], member: Any) -> models.QuerySet:
    """The rows of `model` that `member` may configure."""
    rows = model._default_manager.all()
    if not isinstance(member, Member) or not member.is_active:
        return rows.none()
    if member.is_administrator:
        return rows
    if model in THROUGH:
        field, owner = THROUGH[model]
        return rows.filter(**{f"{field}__in": changeable(owner, member).values("pk")})
    if model is TemplateSet:  # its house knows no roles
        return rows.filter(team_id__in=member.team_ids()) if member.role == Role.MANAGER else rows.none()
    if hasattr(rows, "changeable_by"):
        return rows.filter(pk__in=rows.changeable_by(member).values("pk"))
    return rows.none()


def may(request: HttpRequest, obj: models.Model, *, change: bool) -> bool:
    """Whether the person at the console may see or change this row; asked of the database once a request."""
    known: dict[Any, bool] = request.__dict__.setdefault("_console_may", {})
    key = (type(obj), obj.pk, change)
    if key not in known:
        rule = changeable if change else visible
        known[key] = obj.pk is not None and rule(type(obj), request.user).filter(pk=obj.pk).exists()
    return known[key]


def offered(field: models.Field, member: Any) -> models.QuerySet:
    """What a form may offer for a relation: rows the member may choose, without retired ones."""
    target: Any = field.remote_field.model  # type: ignore[union-attr]
    rows: models.QuerySet[Any]
    if target is Channel:
        rows = Channel.objects.filter(Channel.for_groups_q(member))
    elif target is Workspace:
        rows = changeable(Workspace, member)
    elif target is Team and field.name == "team" and not member.is_administrator:
        rows = Team.objects.filter(id__in=member.team_ids())  # what a manager makes belongs to a team of theirs
    else:
        rows = visible(target, member)
    names = {f.name for f in target._meta.get_fields()}
    if "status" in names:
        rows = rows.exclude(status=Status.DELETED)
    if "is_active" in names:
        rows = rows.filter(models.Q(("is_active", True)))
    return rows


# ---- forms ---------------------------------------------------------------------------------------------------------------------------


ROWS = {"description": 2, "ca_bundle": 4}  # lines of text that such a field usually has


class VisibleForm(forms.ModelForm):
    """A form whose relations keep what is chosen already, although it was retired since or belongs to somebody else."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, field in self.fields.items():
            field.label = capfirst(field.label) if field.label else field.label
            # The admin prints help as HTML, and ours is text: `On-call <oncall@example.com>` would lose its address.
            field.help_text = conditional_escape(field.help_text)
            if name in ROWS:
                field.widget.attrs["rows"] = ROWS[name]
        if self.instance.pk is None:
            return
        for name, field in self.fields.items():
            if not isinstance(field, forms.ModelChoiceField) or name not in self.initial or field.queryset is None:
                continue
            chosen = self.initial[name]
            if isinstance(field, forms.ModelMultipleChoiceField):
                keys = [row.pk for row in chosen] if isinstance(chosen, list) else []
            else:
                keys = [chosen] if chosen is not None else []
            if not keys:
                continue
            permitted = field.queryset.order_by().values("pk")
            shown = getattr(field, "_choices", None)
            field.queryset = field.queryset.model._default_manager.filter(models.Q(pk__in=permitted) | models.Q(pk__in=keys))
            if isinstance(shown, list):
                missing = [key for key in keys if all(str(value) != str(key) for value, _label in shown)]
                rows = field.queryset.model._default_manager.filter(pk__in=missing) if missing else []
                field.choices = shown + [(row.pk, str(row)) for row in rows]


class ChoicesField(forms.MultipleChoiceField):
    """Several of a few words, kept as a JSON list in the order of the choices."""

    widget = UnfoldAdminCheckboxSelectMultipleWidget

    def prepare_value(self, value: Any) -> Any:
        return [] if value is None else value

    def clean(self, value: Any) -> list[str]:
        return list(super().clean(value))


class LinesField(forms.CharField):
    """A JSON list of strings, written one a line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(widget=UnfoldAdminTextareaWidget(attrs={"rows": 3}), required=False, **kwargs)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        lines = value if isinstance(value, list) else str(value or "").replace(",", "\n").splitlines()
        return [line.strip() for line in lines if str(line).strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return (initial or []) != self.to_python(data)


class _Indented(json.JSONEncoder):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**(kwargs | {"indent": 2}))


class JsonField(transport.JsonField):
    """JSON written by hand: indented, in Chinese as Chinese, empty meaning `empty`."""

    def __init__(self, *, empty: Any = None, rows: int = 8, **kwargs: Any) -> None:
        self.empty = empty
        widget = UnfoldAdminTextareaWidget(attrs={"rows": rows, "spellcheck": "false", "class": " ".join([*TEXTAREA_CLASSES, "font-mono"])})
        super().__init__(**({"required": False, "encoder": _Indented, "widget": widget} | kwargs))

    def prepare_value(self, value: Any) -> Any:
        if value == self.empty or value in (None, [], {}):
            return ""
        return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)

    def clean(self, value: Any) -> Any:
        found = super().clean(value)
        return self.empty if found is None else found

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return (initial if initial not in (None, "") else self.empty) != self.clean(data)
        except ValidationError:
            return True


# ---- what changed --------------------------------------------------------------------------------------------------------------------


def kept_language(request: HttpRequest) -> Any:
    """A context in the installation's language: the history is for everybody, whatever whoever made the change reads."""
    # Asked once a request: before and after a change are told in one language, although it may be the language that is changed.
    if "_console_language" not in request.__dict__:
        request._console_language = Installation.get().language  # type: ignore[attr-defined]
    return translation.override(request._console_language)  # type: ignore[attr-defined]


Shown = dict[str, tuple[Any, str]]  # label -> (what is compared, what the history says)


def describe(obj: models.Model, prefix: str = "") -> Shown:
    """The configuration of a row as the history writes it; secrets are compared and never written."""
    found: Shown = {}
    for field in obj._meta.concrete_fields:
        if field.primary_key or not field.editable or field.name in ("password", "version"):
            continue
        if prefix and field.name in ("rule", "layer", "table", "template_set", "idx"):
            continue  # the prefix says it
        value = field.value_from_object(obj)
        if isinstance(field, EncryptedJSONField | EncryptedTextField):
            shown = _("(secret)") if value else "-"
        elif field.choices:
            shown = str(dict(field.flatchoices).get(value, value))
        elif field.is_relation:
            shown = str(getattr(obj, field.name) or "-")
        else:
            shown = _short(value)
        found[prefix + str(field.verbose_name)] = (value, shown)
    for field in obj._meta.many_to_many:
        names = sorted(str(row) for row in getattr(obj, field.name).all())
        found[prefix + str(field.verbose_name)] = (names, ", ".join(names) or "-")
    return found


def _short(value: Any) -> str:
    if value in (None, "", [], {}):
        return "-"
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if hasattr(value, "tzinfo"):
        return date_format(timezone.localtime(value), "DATETIME_FORMAT")
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return text if len(text) <= 300 else text[:299] + "…"


def differences(before: Shown, after: Shown) -> list[str]:
    """`label: before → after` for everything that changed."""
    nothing = (None, "-")
    lines = []
    for label in [*after, *(label for label in before if label not in after)]:
        old, new = before.get(label, nothing), after.get(label, nothing)
        if old[0] != new[0] and (old[1], new[1]) != ("-", "-"):
            changed = _("changed") if old[1] == new[1] else f"{old[1]} → {new[1]}"
            lines.append(f"{label}: {changed}")
    return lines


# ---- filters -------------------------------------------------------------------------------------------------------------------------


class VisibleRelatedFilter(RelatedFieldListFilter):
    """The filter of a relation, which names only rows that the person may see."""

    def field_choices(self, field: Any, request: HttpRequest, model_admin: Any) -> Any:
        return [(row.pk, str(row)) for row in visible(field.remote_field.model, request.user)[:200]]


class StatusFilter(SimpleListFilter):
    """Retired rows are out of the way until they are asked for."""

    title = gettext_lazy("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [*Status.choices, ("all", gettext_lazy("All with retired ones"))]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
        value = self.value()
        if value in Status.values:
            return queryset.filter(status=value)
        return queryset if value == "all" else queryset.exclude(status=Status.DELETED)


# ---- pages ---------------------------------------------------------------------------------------------------------------------------


class VisibleAdmin(ModelAdmin):
    """A page of configuration: seen by whoever may see the row, changed by whoever may configure it, retired and never deleted."""

    form = VisibleForm
    machine: ClassVar[bool] = False  # written by the product: nobody adds or changes it by hand
    only_administrators: ClassVar[bool] = False
    managers_add: ClassVar[bool] = True
    lookups: ClassVar[tuple[str, ...]] = ()  # further names that an address may filter by, from links between pages
    list_filter_submit = False
    compressed_fields = False
    warn_unsaved_form = True
    list_per_page = 50
    actions: ClassVar[list[str]] = ["retire"]

    # ---- who ----

    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        _asking.set(request)  # an empty form asks for no rows
        return super().changeform_view(request, *args, **kwargs)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        _asking.set(request)
        rows = super().get_queryset(request)
        user: Any = request.user
        if getattr(user, "is_administrator", False):
            return rows
        return rows.filter(pk__in=visible(self.model, user).order_by().values("pk"))

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        user: Any = request.user
        if not isinstance(user, Member) or not user.is_active or (self.only_administrators and not user.is_administrator):
            return False
        return obj is None or may(request, obj, change=False)

    def has_change_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        user: Any = request.user
        if self.machine or not isinstance(user, Member) or not user.is_active:
            return False
        if self.only_administrators or obj is None:
            return user.is_administrator or (not self.only_administrators and user.role == Role.MANAGER)
        return may(request, obj, change=True)

    def has_add_permission(self, request: HttpRequest) -> bool:
        user: Any = request.user
        if self.machine or not isinstance(user, Member) or not user.is_active:
            return False
        if user.is_administrator:
            return True
        return self.managers_add and not self.only_administrators and user.role == Role.MANAGER and bool(user.team_ids())

    def has_delete_permission(self, request: HttpRequest, obj: models.Model | None = None) -> bool:
        return False

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Only what the page itself offers: with Django's rule `?password__startswith=` on members is an oracle."""
        known = {"pk", "id", *self.lookups}
        if self.date_hierarchy:
            known.add(self.date_hierarchy)
        for item in self.list_filter:
            name = item[0] if isinstance(item, tuple | list) else getattr(item, "parameter_name", item)
            known.add(str(name))
        parts = lookup.split("__")
        ends = {"exact", "in", "isnull", "gte", "gt", "lte", "lt", "range", "id", "pk", "year", "month", "day"}
        while len(parts) > 1 and parts[-1] in ends:
            parts.pop()
        return "__".join(parts) in known

    # ---- what is offered ----

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs.setdefault("queryset", offered(db_field, request.user))
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)
        if field is not None and db_field.name == "team" and not request.user.is_administrator:  # type: ignore[union-attr]
            field.required = True
        return _read_once(field, request, db_field, self.get_autocomplete_fields(request))

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs.setdefault("queryset", offered(db_field, request.user))
        return super().formfield_for_manytomany(db_field, request, **kwargs)

    def get_search_results(self, request: HttpRequest, queryset: models.QuerySet, search_term: str) -> tuple[models.QuerySet, bool]:
        if request.path.endswith("/autocomplete/"):
            names = {f.name for f in self.model._meta.get_fields()}
            if "status" in names:
                queryset = queryset.exclude(status=Status.DELETED)
            if "is_active" in names:
                queryset = queryset.filter(is_active=True)
        return super().get_search_results(request, queryset, search_term.replace("\x00", ""))

    # ---- what is kept ----

    def parts(self, obj: Any) -> Iterator[tuple[str, models.Model]]:
        """Rows below `obj` that are edited on its page, each with the words that stand before its fields in the history."""
        yield from ()

    def story_of(self, obj: models.Model) -> Shown:
        found = describe(obj)
        for prefix, part in self.parts(obj):
            found |= describe(part, prefix)
        return found

    def history_of(self, request: HttpRequest, obj: models.Model) -> Shown:
        """`story_of` in the language in which the history is kept."""
        with kept_language(request):
            return self.story_of(obj)

    def save_model(self, request: HttpRequest, obj: models.Model, form: Any, change: bool) -> None:
        if change:
            request._console_before = self.history_of(request, self.model._default_manager.get(pk=obj.pk))  # type: ignore[attr-defined]
        super().save_model(request, obj, form, change)

    def construct_change_message(self, request: HttpRequest, form: Any, formsets: Any, add: bool = False) -> Any:
        if add:
            return super().construct_change_message(request, form, formsets, add)
        before = getattr(request, "_console_before", None)
        if before is None:
            return super().construct_change_message(request, form, formsets, add)
        after = self.history_of(request, self.model._default_manager.get(pk=form.instance.pk))
        with kept_language(request):
            lines = differences(before, after)
        return [{"changed": {"fields": lines}}] if lines else []

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> Any:
        answer = super().history_view(request, object_id, extra_context)
        for entry in (getattr(answer, "context_data", None) and answer.context_data["action_list"]) or ():
            entry.lines = _lines(entry)
        return answer

    @admin.action(description=gettext_lazy("Retire"), permissions=["change"])
    def retire(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        """Takes configuration out of use; history goes on pointing to it."""
        with transaction.atomic():
            mine = list(queryset.filter(pk__in=changeable(self.model, request.user).values("pk")).exclude(status=Status.DELETED))
            for row in mine:
                with kept_language(request):
                    old = str(row.get_status_display())
                    row.status = Status.DELETED
                    line = f"{row._meta.get_field('status').verbose_name}: {old} → {row.get_status_display()}"
                row.save(update_fields=["status"])
                self.log_change(request, row, [{"changed": {"fields": [line]}}])
            self.retired(mine)
        left = queryset.exclude(status=Status.DELETED).count()
        self.message_user(request, _("Retired: %(count)d.") % {"count": len(mine)}, messages.SUCCESS if mine else messages.WARNING)
        if left:
            self.message_user(request, _("%(count)d are not yours to change.") % {"count": left}, messages.WARNING)

    def retired(self, rows: Iterable[Any]) -> None:
        """Called in the transaction that retired `rows`."""

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions = super().get_actions(request)
        if all(field.name != "status" for field in self.model._meta.concrete_fields) or not issubclass(
            type(self.model._meta.get_field("status")), models.CharField
        ):
            actions.pop("retire", None)
        return actions


class MachineAdmin(VisibleAdmin):
    """What the product wrote: read, filtered, and acted on only through the functions that wrote it."""

    machine = True
    actions: ClassVar[list[str]] = []
    show_full_result_count = False
    paginator = InfinitePaginator
    list_per_page = 50
    warn_unsaved_form = False

    def has_act_permission(self, request: HttpRequest) -> bool:
        """Whether the person may press buttons on such rows at all; each button asks for its rows besides."""
        user: Any = request.user
        return isinstance(user, Member) and user.is_active and user.role in (Role.ADMINISTRATOR, Role.MANAGER)


class _VisibleInline:
    """Rows edited on the page of the row they belong to: whoever may change that one may change these."""

    form = VisibleForm
    extra = 0

    def _parent(self, request: HttpRequest, obj: Any) -> bool:
        user: Any = request.user
        if obj is None or obj.pk is None:
            return user.is_administrator or user.role == Role.MANAGER
        return may(request, obj, change=True)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_active

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._parent(request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._parent(request, obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._parent(request, obj)

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs.setdefault("queryset", offered(db_field, request.user))
        field = super().formfield_for_foreignkey(db_field, request, **kwargs)  # type: ignore[misc]
        return _read_once(field, request, db_field, self.get_autocomplete_fields(request))  # type: ignore[attr-defined]

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        kwargs.setdefault("queryset", offered(db_field, request.user))
        return super().formfield_for_manytomany(db_field, request, **kwargs)  # type: ignore[misc]


class VisibleTabular(_VisibleInline, TabularInline):
    pass


class VisibleStacked(_VisibleInline, StackedInline):
    pass


def _read_once(field: Any, request: HttpRequest, db_field: Any, searched: Iterable[str]) -> Any:
    """A select reads its choices once a request, not once for each row of a formset."""
    if field is None or db_field.name in searched:
        return field
    known: dict[Any, list] = request.__dict__.setdefault("_console_choices", {})
    if db_field not in known:
        known[db_field] = list(field.choices)
    field.choices = known[db_field]
    return field


def _lines(entry: LogEntry) -> list[str]:
    """What one entry of the history says, a line for each thing that changed."""
    try:
        said = json.loads(entry.change_message)
        if len(said) == 1 and isinstance(said[0]["changed"]["fields"], list) and "name" not in said[0]["changed"]:
            return said[0]["changed"]["fields"]
    except (ValueError, KeyError, TypeError):
        pass
    return [entry.get_change_message()]


def deny_unless(condition: bool) -> None:
    if not condition:
        raise PermissionDenied


def log(request: HttpRequest, obj: models.Model, text: str) -> None:
    """One line in the history of a row, for a button that is no form; `text` is marked for translation and not translated yet."""
    with kept_language(request):
        text = _(text)
    LogEntry.objects.log_actions(request.user.pk or 0, [obj], 2, [{"changed": {"fields": [text]}}], single_object=True)
