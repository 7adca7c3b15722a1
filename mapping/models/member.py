"""A person: the user model. Signs in with an e-mail address."""

import zoneinfo
from typing import Any

from django.conf import settings
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Lower
from django.utils.crypto import salted_hmac
from django.utils.translation import gettext_lazy as _

from mapping.quiet import Quiet
from mapping.visibility import Role, VisibleQuerySet


def check_time_zone(value: str) -> None:
    if value not in zoneinfo.available_timezones():
        raise ValidationError(
            _("%(value)s is not an IANA time zone. Write one such as Asia/Shanghai or Europe/Berlin."), params={"value": value}
        )


def check_days(value: Any) -> None:
    if not isinstance(value, list) or any(type(day) is not int or day not in range(7) for day in value):
        raise ValidationError(_("Write weekdays as a list of numbers from 0 (Monday) to 6 (Sunday)."))


def check_severities(value: Any) -> None:
    if not isinstance(value, list) or any(item not in ("Critical", "Warning", "Info") for item in value):
        raise ValidationError(_("Write severities as a list: Critical, Warning, Info."))


def critical_only() -> list[str]:
    return ["Critical"]


class MemberManager(BaseUserManager.from_queryset(VisibleQuerySet)):  # type: ignore[misc]
    def create_user(self, email: str, name: str = "", password: str | None = None, **fields: Any) -> "Member":
        """A new member; without a password they cannot sign in with one."""
        member = self.model(email=self.normalize_email(email).strip(), name=name or email.split("@")[0], **fields)
        member.set_password(password)
        member.save(using=self._db)
        return member

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "Member":
        return self.create_user(email, password=password, role=Role.ADMINISTRATOR, **fields)

    def get_by_natural_key(self, username: str) -> "Member":
        return self.get(email__iexact=username.strip())


class Member(AbstractBaseUser):
    email = models.EmailField(
        _("e-mail"), unique=True, help_text=_("Used to sign in. To be paged by e-mail, the address must be verified as a contact point.")
    )
    name = models.CharField(_("name"), max_length=100)
    time_zone = models.CharField(_("time zone"), max_length=64, default="UTC", validators=[check_time_zone])
    language = models.CharField(_("language"), max_length=10, choices=settings.LANGUAGES, default=settings.LANGUAGE_CODE)
    role = models.CharField(_("role"), max_length=20, choices=Role.choices, default=Role.MEMBER)
    # Quiet hours, by the clock of time_zone: see mapping/quiet.py. Both empty: none.
    quiet_start = models.TimeField(_("quiet from"), null=True, blank=True)
    quiet_end = models.TimeField(_("quiet until"), null=True, blank=True)
    quiet_days = models.JSONField(
        _("quiet on"), default=list, blank=True, db_default=models.Value([], models.JSONField()), validators=[check_days],
        help_text=_("The weekdays on which quiet hours begin, 0 for Monday to 6 for Sunday. Empty: every day."),
    )  # fmt: skip
    quiet_breaks = models.JSONField(
        _("breaks through"), default=critical_only, blank=True, db_default=models.Value(["Critical"], models.JSONField()), validators=[check_severities],
        help_text=_("The severities that reach the person in quiet hours all the same."),
    )  # fmt: skip
    # Machine-kept: by which numbers the person was last told that they are called.
    numbers_told = models.JSONField(null=True, editable=False)
    supervisor = models.ForeignKey(
        "self", verbose_name=_("supervisor"), null=True, blank=True, on_delete=models.SET_NULL, related_name="supervises",
        help_text=_("A rule can say: the supervisor of whoever was told before."),
    )  # fmt: skip
    ref_id = models.CharField(_("external id"), max_length=191, blank=True, db_index=True)
    is_active = models.BooleanField(_("active"), default=True, help_text=_("Switch off instead of deleting: history stays, pages stop."))
    may_use_sandbox = models.BooleanField(
        _("may use the sandbox"), default=False, help_text=_("The sandbox shows messages of other people and presses keys as them.")
    )
    # Links and sessions from before this instant are dead: "sign out everywhere" on a member's own page sets it.
    links_valid_from = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = MemberManager()
    USERNAME_FIELD = EMAIL_FIELD = "email"
    REQUIRED_FIELDS = ["name"]

    class Meta:
        verbose_name = _("member")
        verbose_name_plural = _("members")
        ordering = ["name", "id"]
        constraints = [
            models.UniqueConstraint(Lower("email"), name="member_email_ci", violation_error_message=_("A member with this e-mail exists."))
        ]

    def __str__(self) -> str:
        return self.name or self.email

    def clean(self) -> None:
        super().clean()
        if (self.quiet_start is None) != (self.quiet_end is None):
            raise ValidationError(_("Quiet hours need both a beginning and an end."))
        if self.quiet_start is not None and self.quiet_start == self.quiet_end:
            raise ValidationError(_("Quiet hours from a time to the same time would never end: leave a minute at least."))
        seen, boss = {self.pk}, self.supervisor
        while self.pk and boss is not None:
            if boss.pk in seen:
                raise ValidationError(
                    {"supervisor": _("This closes a circle of supervisors: choose somebody who does not report to this member.")}
                )
            seen.add(boss.pk)
            boss = boss.supervisor

    @property
    def quiet(self) -> Quiet | None:
        """This member's quiet hours; None where there are none."""
        if self.quiet_start is None or self.quiet_end is None:
            return None
        try:
            zone = zoneinfo.ZoneInfo(self.time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            return None  # this machine does not know it: a page now is better than no page
        return Quiet(self.quiet_start, self.quiet_end, zone, frozenset(self.quiet_days), frozenset(self.quiet_breaks))

    @property
    def is_administrator(self) -> bool:
        return self.is_active and self.role == Role.ADMINISTRATOR

    @classmethod
    def lock_administrators(cls) -> set[int]:
        """Ids of the active administrators, locked to the end of the transaction: two of them cannot take each other's rights at once."""
        rows = cls.objects.select_for_update(no_key=True).filter(role=Role.ADMINISTRATOR, is_active=True)
        return set(rows.order_by("id").values_list("id", flat=True))

    # What django.contrib.admin asks of a user model. What each role may do is decided by visibility, not by permission rows.
    @property
    def is_staff(self) -> bool:
        return self.is_active

    @property
    def is_superuser(self) -> bool:
        return self.is_administrator

    def has_perm(self, perm: str, obj: Any = None) -> bool:
        return self.is_administrator

    def has_perms(self, perms: list[str], obj: Any = None) -> bool:
        return self.is_administrator

    def has_module_perms(self, app_label: str) -> bool:
        return self.is_active

    def _get_session_auth_hash(self, secret: str | None = None) -> str:
        """Sessions die with a new password (Django's rule) and with "sign out everywhere"."""
        since = f"{self.password}{self.links_valid_from.isoformat() if self.links_valid_from else ''}"
        return salted_hmac("flashduty.session", since, secret=secret, algorithm="sha256").hexdigest()

    def team_ids(self) -> list[int]:
        """Ids of this member's teams, looked up once per instance."""
        if not hasattr(self, "_team_ids"):
            self._team_ids = list(self.teams.exclude(status="deleted").values_list("id", flat=True))
        return self._team_ids

    @classmethod
    def visible_q(cls, member: "Member") -> models.Q:
        """Everybody sees who works here; their addresses are another matter (ContactPoint)."""
        return models.Q()

    @classmethod
    def changeable_q(cls, member: "Member") -> models.Q:
        return models.Q(teams__in=member.team_ids()) & ~models.Q(role=Role.ADMINISTRATOR)
