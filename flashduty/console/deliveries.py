"""Console pages of what became of messages: each delivery with its attempts, what was to be told, and the addresses where something waits."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db import models, transaction
from django.db.models import OuterRef, Subquery
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display

from channels_app import addresses, numbers, outbox
from channels_app.models import Address, Channel, Delivery, Notification
from escalation import explain
from escalation.models import Incident
from escalation.targets import CANCELLED_BY, in_words
from flashduty.console import testing
from flashduty.console.base import MachineAdmin, VisibleRelatedFilter, asking, changeable
from mapping.clock import db_now
from mapping.models import Member
from mapping.models.contact_point import mask
from mapping.visibility import Role
from templates_app.models import Template

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
    list_select_related = ("notification", "channel__health", "address", "member")
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
        return explain.reason_of(row)

    @display(description=gettext_lazy("text"))
    def shown_text(self, row: Delivery) -> str:
        return format_html('<span style="white-space: pre-wrap">{}</span>', row.text or "-")

    @display(description=gettext_lazy("event"))
    def event(self, row: Delivery) -> str:
        layer = row.notification.layer_idx
        return _event_words(row.notification) + (f" · L{layer + 1}" if layer is not None else "")

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
        if not target or target.startswith("member:"):  # the group itself, or the person's own place on the sandbox page
            return "-"
        return target if shows_in_full(asking(), row.member_id) else mask(target)

    @display(description=gettext_lazy("took"))
    def took(self, row: Delivery) -> str:
        return f"{(row.sent_at - row.created_at).total_seconds():.1f} s" if row.sent_at else "-"

    @display(description=gettext_lazy("attempts and reports"))
    def attempt_log(self, row: Delivery) -> str:
        return format_html('<span style="white-space: pre-wrap">{}</span>', "\n".join(testing.attempts(row)) or "-")

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        context["moving"] = obj is not None and obj.state in ("queued", "sending")
        context["topic"] = obj.topic if obj is not None else None
        # A call that the vendor took: what never left has its reason, and it is not at the phone.
        call = obj if obj is not None and obj.sent_at is not None and addresses.family(obj.channel.kind) == "voice" else None
        context["unanswered"] = call is not None and call.state in ("failed", "unknown")
        has_card = call is not None and call.member_id is not None and bool(numbers.calling([call.member_id])[call.member_id])
        context["card"] = reverse("admin:mapping_member_contacts", args=[call.member_id]) if call and has_card else ""
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
