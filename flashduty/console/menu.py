"""The console's menu, in the guide's words; a page somebody may not open is not in it."""

from typing import Any

from django.contrib import admin
from django.db import models
from django.http import HttpRequest
from django.urls import reverse
from django.utils.translation import gettext_lazy as _

from channels_app.models import Account, Address, Channel, ChannelHealth, Delivery, Notification, Preference
from escalation.models import Alert, EscalationRule, Event, Incident, Integration, RuleSnapshot, Run, TimelineEntry, Workspace
from flashduty.console.base import visible
from flashduty.console.channels import kinds_of, page_of
from flashduty.models import Classic, Hook, ImApp, ImBot, Play
from mapping.models import ApiKey, ContactPoint, Device, Installation, MappingTable, Member, Team, Throttle
from templates_app.models import Template, TemplateSet

# group -> (page, icon of Material Symbols); a group that opens and closes is marked.
MENU: list[tuple[Any, bool, list[tuple[type[models.Model], str]]]] = [
    (_("Incidents"), False, [(Incident, "emergency"), (Alert, "notifications_active"), (Event, "input")]),
    (
        _("Configure On-call"),
        False,
        [
            (Workspace, "workspaces"), (Integration, "webhook"), (EscalationRule, "stairs"), (TemplateSet, "description"), (MappingTable, "alternate_email"),
        ],
    ),
    (_("Notifications"), False, [(ImApp, "forum"), (ImBot, "smart_toy"), (Classic, "call"), (Hook, "link"), (Play, "science")]),
    (_("People"), False, [(Member, "person"), (Team, "groups"), (ContactPoint, "contact_phone"), (Account, "alternate_email"), (Preference, "tune"), (ApiKey, "key")]),
    (
        _("What the machine did"),
        True,
        [
            (Delivery, "send"), (Notification, "campaign"), (Run, "directions_run"), (TimelineEntry, "timeline"), (Address, "pin_drop"),
            (RuleSnapshot, "history"), (Template, "text_snippet"), (Device, "smartphone"),
        ],
    ),
    (_("Installation"), True, [(Installation, "settings"), (Throttle, "speed")]),
]  # fmt: skip


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """unfold's sidebar for the person who asks."""
    groups: list[dict[str, Any]] = []
    for title, closed, pages in MENU:
        items = [
            {
                "title": model._meta.verbose_name_plural[:1].upper() + model._meta.verbose_name_plural[1:],  # type: ignore[index]
                "icon": icon,
                "link": reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist"),
            }
            for model, icon in pages
            if admin.site._registry[model].has_view_permission(request) and not _is_empty(model)
        ]
        if items:
            groups.append({"title": title, "separator": True, "collapsible": closed, "items": items})
    return groups


def _is_empty(model: type[models.Model]) -> bool:
    """A group of channels of which there is no kind."""
    return issubclass(model, Channel) and not kinds_of(model)


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What the first page shows: the alarm, channels that fail and incidents that are open, as far as the person may see them."""
    user: Any = request.user
    failing = (
        visible(ChannelHealth, user).filter(failures__gt=0, channel__status="enabled").select_related("channel").order_by("-last_error_at")
    )
    context["failing"] = [{"name": row.channel.name, "error": row.last_error, "link": page_of(row.channel)} for row in failing[:10]]
    open_ones = visible(Incident, user).exclude(progress=Incident.Progress.CLOSED).select_related("workspace").order_by("-id")
    context["incidents"] = open_ones[:15]
    context["alarm"] = Installation.get().alarm if user.is_administrator else ""
    return context
