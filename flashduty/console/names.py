"""What the console calls rows that the product writes for itself, and their fields: their houses need no words for them."""

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _

from channels_app.models import Address, Delivery, Notification, Preference
from escalation.models import Alert, EscalationRule, Event, RuleSnapshot, Run, TimelineEntry
from mapping.models import Throttle

_TIMES = {"created_at": _("created"), "started_at": _("started"), "ended_at": _("ended"), "next_at": _("due next")}
_COMMON: dict[str, Any] = {
    **_TIMES,
    "event": _("event"), "severity": _("severity"), "state": _("state"), "reason": _("reason"), "member": _("member"), "channel": _("channel"),
    "address": _("address"), "incident": _("incident"), "integration": _("integration"), "rule": _("rule"), "version": _("version"),
    "layer_idx": _("layer"), "kind": _("kind"), "type": _("type"), "status": _("status"), "detail": _("detail"), "via": _("by way of"),
    "actor": _("who"), "handled_at": _("handled by the engine"), "snapshot": _("frozen rule"), "body": _("content"), "alert": _("alert"),
    "is_page": _("is a page"), "survives_ack": _("even if acknowledged"), "context": _("what the texts are made of"),
    "alert_key": _("alert key"), "images": _("images"), "links": _("links"), "is_open": _("is open"),
}  # fmt: skip

# Fields without a name in models that have one.
UNNAMED: dict[type[models.Model], tuple[str, ...]] = {
    Alert: ("alert_key", "images", "incident", "integration", "is_open", "links"),
    EscalationRule: ("version",),
}

NAMES: dict[type[models.Model], tuple[Any, Any, dict[str, Any]]] = {
    Delivery: (_("delivery"), _("deliveries"), {
        "uid": _("delivery id"), "not_before": _("not before"), "deadline_at": _("fallback at the latest"), "give_up_at": _("tried until"),
        "fallback_at": _("fallback starts"), "fallback_of": _("fallback of"), "bundled_by": _("went out inside"), "attempts": _("attempts"),
        "tries": _("tries that count"), "possible_repeat": _("possible repeat"), "first_request_at": _("first request"), "sent_at": _("sent"),
        "delivered_at": _("delivered"), "answered_at": _("answered"), "message_id": _("provider's message id"), "subject": _("subject"),
        "text": _("text"),
    }),
    Notification: (_("notification"), _("notifications"), {
        "exhausted_at": _("everything failed"), "exhausted_handled_at": _("handed to the engine"),
    }),
    Address: (_("address"), _("addresses"), {
        "target": _("address"), "buckets": _("messages of the last while"), "blocked_until": _("blocked until"), "blocked_reason": _("why blocked"),
    }),
    Event: (_("event"), _("events"), {
        "received_at": _("received"), "alert_key": _("alert key"), "payload": _("as understood"), "outcome": _("outcome"),
        "outcome_detail": _("more about it"), "processed_at": _("processed"),
    }),
    Run: (_("run"), _("runs"), {"end_reason": _("why it ended"), "state": _("where it is")}),
    TimelineEntry: (_("timeline entry"), _("timeline"), {}),
    RuleSnapshot: (_("frozen rule"), _("frozen rules"), {}),
    Throttle: (_("limit that was met"), _("limits that were met"), {"key": _("of what"), "count": _("tries"), "window_end": _("until")}),
}  # fmt: skip


def _called(row: models.Model) -> str:
    return f"{row._meta.verbose_name} {row.pk}"


def give() -> None:
    """Gives the names. On the classes and not in their files, so that words of the console are no migrations of other houses."""
    Alert.__str__ = lambda alert: alert.title  # type: ignore[method-assign,assignment,attr-defined]
    Preference.__str__ = _called  # type: ignore[method-assign,assignment]
    for model, unnamed in UNNAMED.items():
        for field_name in unnamed:
            model._meta.get_field(field_name).verbose_name = _COMMON[field_name]  # type: ignore[union-attr]
    for model, (one, many, fields) in NAMES.items():
        model._meta.verbose_name, model._meta.verbose_name_plural = one, many
        model.__str__ = _called  # type: ignore[method-assign,assignment]
        for field in model._meta.concrete_fields:
            name = fields.get(field.name) or _COMMON.get(field.name)
            if name is not None:
                field.verbose_name = name
