"""Who may see and do what: four roles and teams, asked in one place by lists, lookups, autocomplete, exports, API and commands alike."""

from typing import Any

from django.db import models
from django.utils.translation import gettext_lazy as _


class Role(models.TextChoices):
    ADMINISTRATOR = "administrator", _("Administrator")
    MANAGER = "manager", _("Manager")
    MEMBER = "member", _("Member")
    VIEWER = "viewer", _("Viewer")


class Status(models.TextChoices):
    """Configuration that history points to is retired, never deleted."""

    ENABLED = "enabled", _("Enabled")
    DISABLED = "disabled", _("Disabled")
    DELETED = "deleted", _("Deleted")


class VisibleQuerySet(models.QuerySet):
    """A query set that can be narrowed to what one member may see, and to what that member may change."""

    def visible_to(self, member: Any) -> "VisibleQuerySet":
        """The rows `member` may see. Nobody (None, anonymous, inactive) sees nothing."""
        if not getattr(member, "is_authenticated", False) or not member.is_active:
            return self.none()
        if member.is_administrator:
            return self
        rule = getattr(self.model, "visible_q", None)
        return self.filter(rule(member)).distinct() if rule else self.none()

    def changeable_by(self, member: Any) -> "VisibleQuerySet":
        """The rows `member` may configure: everything for an administrator, what their own teams own for a manager, else nothing."""
        if not getattr(member, "is_authenticated", False) or not member.is_active:
            return self.none()
        if member.is_administrator:
            return self
        rule = getattr(self.model, "changeable_q", None)
        if member.role != Role.MANAGER or rule is None:
            return self.none()
        return self.filter(rule(member)).distinct()
