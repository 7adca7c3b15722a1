"""Console pages of how it travels: channels by group with a form made from their transport, "send a test", and what became of each message."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import OuterRef, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminEmailInputWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)  # fmt: skip

from channels_app import addresses, outbox, transport
from channels_app.models import Address, Channel, ChannelHealth, Delivery, Notification
from escalation.models import Incident
from escalation.targets import CANCELLED_BY, in_words
from flashduty.console.base import (
    ChoicesField,
    JsonField,
    LinesField,
    MachineAdmin,
    StatusFilter,
    VisibleAdmin,
    VisibleForm,
    VisibleRelatedFilter,
    asking,
    changeable,
    deny_unless,
    log,
)  # fmt: skip
from flashduty.models import Classic, Hook, ImApp, ImBot, Play
from mapping.clock import db_now
from mapping.models import Member
from mapping.models.contact_point import mask
from mapping.visibility import Role
from templates_app.events import build_test
from templates_app.models import Template

PREFIX = "set_"
CLEAR = "clear_"
# Where a stored secret would be sent to: when one of these changes, the secret has to be typed again.
PLACES = frozenset({"host", "port", "security", "url", "server", "endpoint", "api_base"})


def group_of(style: type[transport.Transport]) -> type[Channel]:
    """The menu group of a transport, from what it can do."""
    if style.demo:
        return Play
    if style.format == "webhook":
        return Hook
    if style.reach in ("phone", "email"):
        return Classic
    return ImBot if style.group else ImApp


def kinds_of(group: type[Channel]) -> list[str]:
    """The kinds of a menu group."""
    return [kind for kind, style in transport.transports().items() if group_of(style) is group]


def page_of(channel: Channel) -> str:
    """The address of a channel's page in the console."""
    style = transport.transports().get(channel.kind)
    group = group_of(style) if style else ImBot
    return reverse(f"admin:{group._meta.app_label}_{group._meta.model_name}_change", args=[channel.pk])


# ---- the form of a channel -----------------------------------------------------------------------------------------------------------


class SecretText(UnfoldAdminPasswordWidget):
    """Write-only: what is stored never comes back to the page."""

    def __init__(self, stored: bool) -> None:
        super().__init__(attrs={"autocomplete": "new-password", **({"placeholder": _("unchanged")} if stored else {})}, render_value=False)


class SecretArea(UnfoldAdminTextareaWidget):
    """Write-only, of several lines."""

    def __init__(self, stored: bool) -> None:
        super().__init__(attrs={"rows": 4, "spellcheck": "false", **({"placeholder": _("unchanged")} if stored else {})})

    def format_value(self, value: Any) -> str:
        return ""


class ChannelForm(VisibleForm):
    """A channel's own fields; `channel_form` adds those of its transport's Settings."""

    style: ClassVar[type[transport.Transport]] = transport.Transport

    fallback_kinds = ChoicesField(
        label=gettext_lazy("fallback kinds"), required=False,
        choices=lambda: [(kind, transport.get(kind).label) for kind in addresses.kinds_for_people()],
        help_text=gettext_lazy("Tried for the same person, at once, when this channel fails."),
    )  # fmt: skip
    limits = JsonField(
        label=gettext_lazy("limits"), rows=2, help_text=gettext_lazy('Own limits instead of the provider\'s: {"per_second": 5, "per_minute": 100}.')
    )  # fmt: skip
    allowed_hosts = LinesField(
        label=gettext_lazy("allowed private addresses"),
        help_text=gettext_lazy("host:port pairs in private ranges that this channel may reach, one a line, such as 10.0.0.5:8443."),
    )
    proxy = forms.CharField(
        label=gettext_lazy("proxy"), required=False, help_text=gettext_lazy("Such as http://user:password@proxy.example.com:3128.")
    )
    clear_proxy = forms.BooleanField(label=gettext_lazy("remove the proxy"), required=False, widget=UnfoldBooleanSwitchWidget())

    class Meta:
        model = Channel
        fields = (
            "name", "team", "status", "position", "fallback_kinds", "fallback_channel", "limits", "proxy", "ca_bundle", "allowed_hosts",
        )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instance.kind = self.instance.kind or self.style.kind
        stored = self.instance.settings if self.instance.pk else {}
        if "proxy" in self.fields:
            self.fields["proxy"].widget = SecretText(bool(self.instance.proxy))
            self.initial["proxy"] = ""
        for name, field in self.style.Settings.base_fields.items():
            shown = self.fields.get(PREFIX + name)
            if shown is None:
                continue
            if name in self.style.secret:
                kept = stored.get(name) not in (None, "", {}, [])
                wide = isinstance(field.widget, forms.Textarea)
                shown.widget = SecretArea(kept) if wide else SecretText(kept)
                shown.widget.is_required = False
                shown.required = field.required and not kept
                if not kept and CLEAR + name in self.fields:
                    del self.fields[CLEAR + name]
            elif name in stored:
                self.initial[PREFIX + name] = stored[name]

    def clean_fallback_kinds(self) -> list[str] | None:
        return self.cleaned_data["fallback_kinds"] or None

    def clean_proxy(self) -> str:
        if self.data.get(CLEAR + "proxy"):
            return ""
        return str(self.cleaned_data["proxy"]).strip() or self.instance.proxy

    def clean_allowed_hosts(self) -> list[str]:
        hosts = self.cleaned_data["allowed_hosts"]
        for host in hosts:
            name, colon, port = host.rpartition(":")
            if not (name and colon and port.isdigit() and 0 < int(port) < 65536):
                raise ValidationError(_("“%(host)s” must be written as host:port, such as 10.0.0.5:8443.") % {"host": host})
        return hosts

    def clean(self) -> Any:
        data = super().clean()
        known = self.style.Settings.base_fields
        if not any(PREFIX + name in self.fields for name in known) and known:
            return data
        before: dict[str, Any] = self.instance.settings if self.instance.pk else {}
        values: dict[str, Any] = {}
        kept: list[str] = []
        for name in known:
            typed = self.cleaned_data.get(PREFIX + name)
            if name in self.style.secret and typed in (None, "", {}, []):
                typed = None if self.cleaned_data.get(CLEAR + name) else before.get(name)
                if typed not in (None, ""):
                    kept.append(name)
            values[name] = typed
        inner = self.style.Settings(data={name: value for name, value in values.items() if value is not None})
        for name, lines in inner.errors.items():
            target = PREFIX + name if PREFIX + name in self.fields else None
            if target is None or target not in self.errors:
                for line in lines:
                    self.add_error(target, line)
        moved = [name for name in PLACES & set(known) - set(kept) if before and values[name] != before.get(name)]
        if moved and kept:
            for name in kept:
                self.add_error(PREFIX + name, _("It would be sent to another place than before: enter it again."))
        if not self.errors:
            self.instance.settings = inner.cleaned_data
        return data


_WIDGETS: list[tuple[type[forms.Widget], type[forms.Widget]]] = [
    (forms.Textarea, UnfoldAdminTextareaWidget),
    (forms.Select, UnfoldAdminSelectWidget),
    (forms.CheckboxInput, UnfoldBooleanSwitchWidget),
    (forms.NumberInput, UnfoldAdminIntegerFieldWidget),
    (forms.EmailInput, UnfoldAdminEmailInputWidget),
    (forms.TextInput, UnfoldAdminTextInputWidget),
]


def channel_form(kind: str) -> type[ChannelForm]:
    """The form class of a kind: a channel's own fields and those of the transport's Settings, secrets write-only."""
    style = transport.get(kind)
    fields: dict[str, Any] = {"style": style}
    for name, original in style.Settings().fields.items():
        field = original
        for plain, ours in _WIDGETS:
            if isinstance(field.widget, plain):
                choices = getattr(field.widget, "choices", None)
                field.widget = ours(attrs=field.widget.attrs)
                if choices is not None:
                    field.widget.choices = choices
                break
        fields[PREFIX + name] = field
        if name in style.secret and not original.required:
            fields[CLEAR + name] = forms.BooleanField(
                label=_("remove: %(field)s") % {"field": original.label}, required=False, widget=UnfoldBooleanSwitchWidget()
            )
    return type("KindForm", (ChannelForm,), fields)


# ---- channels ------------------------------------------------------------------------------------------------------------------------


class ChannelAdmin(VisibleAdmin):
    """One menu group of channels."""

    form = ChannelForm
    list_display = ("name", "shown_kind", "team", "health_state", "last_success", "position", "status")
    list_select_related = ("team", "health")
    list_filter = (StatusFilter, "kind", ("team", VisibleRelatedFilter))
    search_fields = ("name",)
    readonly_fields = ("shown_kind", "shown_settings", "health_words", "last_success", "callback_url")
    change_form_template = "admin/channels_app/channel/change_form.html"

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).filter(kind__in=kinds_of(self.model))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(kinds_of(self.model)) and super().has_add_permission(request)

    def _kind(self, request: HttpRequest, obj: Any) -> str:
        if obj is not None:
            return obj.kind
        wanted = request.GET.get("kind", "")
        known = kinds_of(self.model)
        return wanted if wanted in known else (known[0] if known else "")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        kwargs["form"] = channel_form(self._kind(request, obj))
        return super().get_form(request, obj, change, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        style = transport.get(self._kind(request, obj))
        basics: list[Any] = ["shown_kind", "name", ("team", "status"), "position"]
        if obj is not None and not self.has_change_permission(request, obj):
            return ((None, {"fields": (*basics, "shown_settings", "health_state", "last_success")}),)
        inner: list[str] = []
        for name, field in style.Settings.base_fields.items():
            inner.append(PREFIX + name)
            if name in style.secret and not field.required and obj is not None and obj.settings.get(name):
                inner.append(CLEAR + name)
        after = [*(["fallback_kinds"] if style.person or style.personal else []), *(["fallback_channel"] if style.group else [])]
        network = ["limits"]
        if request.user.is_administrator:  # type: ignore[union-attr]
            # Whoever sets these decides what our network lets out, and who reads it on the way.
            network += ["allowed_hosts", "proxy", *(["clear_proxy"] if obj is not None and obj.proxy else []), "ca_bundle"]
        sets: list[Any] = [(None, {"fields": basics})]
        if inner:
            sets.append((style.label, {"fields": inner}))
        sets.append((gettext_lazy("When it fails"), {"fields": after}))
        sets.append((gettext_lazy("Limits and network"), {"fields": network}))
        if obj is not None:
            callback = ["callback_url"] if hasattr(style, "receive") else []
            sets.append((gettext_lazy("State"), {"fields": ["health_words", "last_success", *callback]}))
        return sets

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "fallback_channel":
            groups = [kind for kind, style in transport.transports().items() if style.group]
            rows = Channel.objects.filter(Channel.for_groups_q(request.user), kind__in=groups).exclude(status="deleted")
            kwargs["queryset"] = rows.exclude(pk=request.resolver_match.kwargs.get("object_id") or 0) if request.resolver_match else rows
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        deny_unless(self.has_add_permission(request))
        known = kinds_of(self.model)
        if request.GET.get("kind") in known:
            return super().add_view(request, form_url, extra_context)
        if len(known) == 1 and request.method == "GET":
            return HttpResponseRedirect(f"{request.path}?kind={known[0]}")
        context = self.admin_site.each_context(request) | {
            "title": _("Which kind of channel?"), "opts": self.opts, "kinds": [(kind, transport.get(kind).label) for kind in known],
        }  # fmt: skip
        return TemplateResponse(request, "admin/channels_app/channel/kinds.html", context)

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        if obj is not None:
            rows = Delivery.objects.filter(channel=obj.pk, notification__event="test").select_related("member").order_by("-id")
            context["tests"] = rows[:5]
            context["may_test"] = may_test(request.user, obj)
        return super().render_change_form(request, context, *args, **kwargs)

    def get_urls(self) -> list[URLPattern]:
        name = f"{self.opts.app_label}_{self.opts.model_name}_test"
        return [path("<int:pk>/test/", self.admin_site.admin_view(require_POST(self.test)), name=name), *super().get_urls()]

    def test(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Sends a test: to the group itself, or to whoever presses the button."""
        channel = get_object_or_404(self.get_queryset(request), pk=pk)
        deny_unless(may_test(request.user, channel))
        back = HttpResponseRedirect(reverse(f"admin:{self.opts.app_label}_{self.opts.model_name}_change", args=[pk]))
        try:
            delivery = send_test(channel, request.user)
        except ValidationError as error:
            self.message_user(request, " ".join(error.messages), messages.ERROR)
            return back
        log(request, channel, _("test: sent"))
        return HttpResponseRedirect(reverse("admin:channels_app_delivery_change", args=[delivery]))

    @display(description=gettext_lazy("kind"))
    def shown_kind(self, channel: Channel) -> str:
        kind = channel.kind or ""
        style = transport.transports().get(kind)
        return str(style.label) if style else kind or "-"

    @display(description=gettext_lazy("settings"))
    def shown_settings(self, channel: Channel) -> str:
        style = transport.get(channel.kind)
        return "; ".join(
            f"{field.label}: {_('(secret)') if name in style.secret else channel.settings.get(name) or '-'}"
            for name, field in style.Settings.base_fields.items()
        ) or "-"  # fmt: skip

    @display(description=gettext_lazy("works"), label={"good": "success", "bad": "danger", "new": "info"})
    def health_state(self, channel: Channel) -> tuple[str, str]:
        health: ChannelHealth | None = getattr(channel, "health", None)
        if health is None:
            return "new", _("not used yet")
        if health.open_until is not None and health.failures:
            return "bad", _("failing, its pages take the fallback: %(error)s") % {"error": health.last_error}
        if health.failures:
            return "bad", _("failed %(count)d times in a row: %(error)s") % {"count": health.failures, "error": health.last_error}
        return "good", _("works")

    @display(description=gettext_lazy("works"))
    def health_words(self, channel: Channel) -> str:
        return self.health_state(channel)[1]

    @display(description=gettext_lazy("last success"))
    def last_success(self, channel: Channel) -> Any:
        health: ChannelHealth | None = getattr(channel, "health", None)
        return health.last_success_at if health else None

    @display(description=gettext_lazy("callback URL"))
    def callback_url(self, channel: Channel) -> str:
        return f"{settings.BASE_URL}/callback/{channel.callback_key}/"


for _group in (ImApp, ImBot, Classic, Hook, Play):
    admin.site.register(_group, ChannelAdmin)


def may_test(member: Any, channel: Channel) -> bool:
    """Whether `member` may send a test by this channel: it is their teams' or shared, and they configure things at all."""
    if not isinstance(member, Member) or member.role not in (Role.ADMINISTRATOR, Role.MANAGER):
        return False
    return Channel.objects.filter(Channel.usable_q(member), pk=channel.pk).exists()


def send_test(channel: Channel, member: Any) -> int:
    """Posts a test by `channel`, to the channel itself or to `member`; the id of the delivery that shows what becomes of it."""
    now = db_now()
    style = transport.get(channel.kind)
    if channel.status != "enabled":
        raise ValidationError(_("The channel is not enabled: enable it first."))
    if style.group:
        to = outbox.To(channel_id=channel.pk, target="")
    else:
        to = outbox.To(channel_id=channel.pk, target=_own_target(style, member, now), member_id=member.pk)
    with transaction.atomic():
        notice = outbox.Notice(
            event="test", severity="Info", context=build_test(channel.name, member.name, now), to=(to,), is_page=False, rank=0
        )  # fmt: skip
        (posted,) = outbox.post([notice], now)
        return Delivery.objects.filter(notification=posted).values_list("pk", flat=True).get()


def _own_target(style: type[transport.Transport], member: Any, now: Any) -> str:
    """Where `member` is reached by this kind; ValidationError with the reason when they cannot be."""
    ways = addresses.reach([member.pk], "Info", now, kinds=[style.kind])[member.pk]
    for way in ways:
        if isinstance(way, addresses.Target):
            return way.target
    reasons = [_(way.reason) for way in ways if isinstance(way, addresses.Missing)]
    raise ValidationError(
        _("A test by this channel goes to you, and you cannot be reached by it: %(reason)s") % {"reason": " ".join(reasons)}
    )


# ---- what became of each message -----------------------------------------------------------------------------------------------------

STATE_COLOURS = {
    "queued": "info", "sending": "info", "sent": "success", "delivered": "success", "answered": "success", "failed": "danger",
    "unknown": "warning", "cancelled": "", "bundled": "",
}  # fmt: skip


def shows_in_full(request: HttpRequest, member_id: int | None) -> bool:
    """Whether the viewer sees this member's addresses whole: ContactPoint.shown_to's rule, with one query for a page."""
    viewer: Any = request.user
    if viewer.is_administrator:
        return True
    if "_console_mine" not in request.__dict__:
        mine = {viewer.pk}
        if viewer.role == Role.MANAGER:
            mine |= set(Member.objects.filter(teams__in=viewer.team_ids()).values_list("pk", flat=True))
        request.__dict__["_console_mine"] = mine
    return member_id in request.__dict__["_console_mine"]


@admin.register(Delivery)
class DeliveryAdmin(MachineAdmin):
    list_display = ("id", "created_at", "shown_state", "event", "who", "channel_name", "shown_target", "took", "attempts", "shown_reason")
    list_select_related = ("notification", "channel", "address", "member")
    list_filter = ("state", "is_page", ("channel", VisibleRelatedFilter), ("member", VisibleRelatedFilter))
    lookups = ("topic", "channel", "notification", "member")
    search_fields = ("uid", "message_id", "reason")
    ordering = ("-id",)
    actions: ClassVar[list[str]] = ["retry", "cancel"]
    readonly_fields = (
        "state_words", "shown_reason", "event", "incident", "who", "channel_name", "shown_target", "is_page", "survives_ack", "created_at",
        "not_before", "deadline_at", "give_up_at", "fallback_at", "fallback_of", "bundled_by", "attempts", "tries", "possible_repeat",
        "first_request_at", "sent_at", "delivered_at", "answered_at", "ended_at", "message_id", "uid", "subject", "shown_text", "attempt_log",
    )  # fmt: skip
    fieldsets = (
        (None, {"fields": (("state_words", "shown_reason"), ("event", "incident"), ("who", "channel_name", "shown_target"))}),
        (gettext_lazy("The message as sent"), {"fields": ("subject", "shown_text")}),
        (gettext_lazy("Attempts"), {"fields": ("attempt_log", ("attempts", "tries", "possible_repeat"), ("message_id", "uid"))}),
        (
            gettext_lazy("Times"),
            {
                "fields": (
                    ("created_at", "not_before", "first_request_at"),
                    ("sent_at", "delivered_at", "answered_at"),
                    ("fallback_at", "deadline_at", "give_up_at"),
                    "ended_at",
                )
            },
        ),
        (gettext_lazy("Connections"), {"fields": (("fallback_of", "bundled_by"), ("is_page", "survives_ack"))}),
    )
    change_form_template = "admin/channels_app/delivery/change_form.html"

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        incident = Incident.objects.filter(pk=OuterRef("topic"))
        return (
            super().get_queryset(request).annotate(_num=Subquery(incident.values("num")[:1]), _title=Subquery(incident.values("title")[:1]))
        )

    @display(description=gettext_lazy("state"), ordering="state", label=STATE_COLOURS)
    def shown_state(self, row: Delivery) -> tuple[str, str]:
        return row.state, row.get_state_display()

    @display(description=gettext_lazy("state"))
    def state_words(self, row: Delivery) -> str:
        return row.get_state_display()

    @display(description=gettext_lazy("reason"), ordering="reason")
    def shown_reason(self, row: Delivery) -> str:
        return in_words(row.reason)

    @display(description=gettext_lazy("text"))
    def shown_text(self, row: Delivery) -> str:
        return format_html('<span style="white-space: pre-wrap">{}</span>', row.text or "-")

    @display(description=gettext_lazy("event"))
    def event(self, row: Delivery) -> str:
        layer = row.notification.layer_idx
        return _event_words(row.notification) + (f" · L{layer}" if layer is not None else "")

    @display(description=gettext_lazy("incident"))
    def incident(self, row: Any) -> str:
        return f"#{row._num} {row._title}" if row._num else "-"

    @display(description=gettext_lazy("to"))
    def who(self, row: Delivery) -> str:
        return row.member.name if row.member else _("the group")

    @display(description=gettext_lazy("channel"))
    def channel_name(self, row: Delivery) -> str:
        return row.channel.name

    @display(description=gettext_lazy("address"))
    def shown_target(self, row: Delivery) -> str:
        target = row.address.target
        if not target or target.startswith("member:"):
            return target or "-"
        return target if shows_in_full(asking(), row.member_id) else mask(target)

    @display(description=gettext_lazy("took"))
    def took(self, row: Delivery) -> str:
        return f"{(row.sent_at - row.created_at).total_seconds():.1f} s" if row.sent_at else "-"

    @display(description=gettext_lazy("one line an attempt"))
    def attempt_log(self, row: Delivery) -> str:
        lines = []
        for number, started, seconds, result, text in row.log:
            at = timezone.localtime(datetime.fromtimestamp(started, UTC)).strftime("%H:%M:%S")
            lines.append(" · ".join(filter(None, [str(number), at, f"{seconds:.3f} s", str(result), str(text)])))
        return format_html('<span style="white-space: pre-wrap">{}</span>', "\n".join(lines) or "-")

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        context["moving"] = obj is not None and obj.state in ("queued", "sending")
        context["topic"] = obj.topic if obj is not None else None
        return super().render_change_form(request, context, *args, **kwargs)

    @admin.action(description=gettext_lazy("Try again"), permissions=["act"])
    def retry(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        """Through the outbox, which alone knows what may be tried again."""
        now = db_now()
        rows = list(_mine(request, queryset).values_list("pk", flat=True))
        done = sum(1 for pk in rows if outbox.retry(pk, now))
        self.message_user(request, _("To be tried again: %(count)d.") % {"count": done}, messages.SUCCESS if done else messages.WARNING)

    @admin.action(description=gettext_lazy("Cancel what waits about the same incidents"), permissions=["act"])
    def cancel(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        topics = list(_mine(request, queryset).exclude(topic=None).values_list("topic", flat=True).distinct())
        with transaction.atomic():
            done = outbox.cancel(topics, CANCELLED_BY % {"name": request.user}, db_now(), keep_forced=False)
        self.message_user(request, _("Cancelled: %(count)d.") % {"count": done}, messages.SUCCESS if done else messages.WARNING)


def _event_words(notification: Notification) -> str:
    names = dict(Template.Event.choices)
    return str(names.get(notification.event, notification.event))


def _mine(request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
    """Of these deliveries, those of incidents and channels that the person configures."""
    user: Any = request.user
    rows = Delivery.objects.filter(pk__in=queryset.order_by().values("pk"))
    if user.is_administrator:
        return rows
    return rows.filter(
        models.Q(topic__in=changeable(Incident, user).values("pk"))
        | models.Q(topic=None, channel__in=changeable(Channel, user).values("pk"))
    )


@admin.register(Notification)
class NotificationAdmin(MachineAdmin):
    list_display = ("id", "created_at", "shown_event", "shown_severity", "layer_idx", "is_page", "incident", "told", "exhausted_at")
    list_filter = ("event", "severity", "is_page")
    lookups = ("topic", "run")
    ordering = ("-id",)
    fields = (
        ("shown_event", "shown_severity", "layer_idx"), "incident", "created_at", ("is_page", "survives_ack"), ("exhausted_at", "exhausted_handled_at"), "context",
    )  # fmt: skip
    readonly_fields = (
        "shown_event", "shown_severity", "layer_idx", "incident", "created_at", "is_page", "survives_ack", "exhausted_at", "exhausted_handled_at", "context",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        incident = Incident.objects.filter(pk=OuterRef("topic"))
        told = (
            Delivery.objects.filter(notification=OuterRef("pk"))
            .order_by()
            .values("notification")
            .annotate(n=models.Count("pk"))
            .values("n")
        )
        return super().get_queryset(request).annotate(
            _num=Subquery(incident.values("num")[:1]), _title=Subquery(incident.values("title")[:1]), _told=Subquery(told)
        )  # fmt: skip

    @display(description=gettext_lazy("event"), ordering="event")
    def shown_event(self, row: Notification) -> str:
        return _event_words(row)

    @display(description=gettext_lazy("severity"), ordering="severity")
    def shown_severity(self, row: Notification) -> str:
        return in_words(row.severity)

    @display(description=gettext_lazy("incident"))
    def incident(self, row: Any) -> str:
        return f"#{row._num} {row._title}" if row._num else "-"

    @display(description=gettext_lazy("messages"))
    def told(self, row: Any) -> int:
        return row._told or 0


@admin.register(Address)
class AddressAdmin(MachineAdmin):
    """Destinations with what waits there: why a page is held back."""

    list_display = ("channel", "shown_target", "next_at", "blocked_until", "blocked_reason")
    list_select_related = ("channel",)
    list_filter = (("channel", VisibleRelatedFilter),)
    ordering = ("next_at", "id")
    fields = ("channel", "shown_target", "next_at", "blocked_until", "blocked_reason", "buckets")
    readonly_fields = fields

    @display(description=gettext_lazy("address"))
    def shown_target(self, row: Address) -> str:
        full = asking().user.is_administrator or row.target.startswith("member:")  # type: ignore[union-attr]
        return (row.target if full else mask(row.target)) if row.target else _("the channel itself")
