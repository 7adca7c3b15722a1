"""A configured way to deliver: a kind plus its settings (one Feishu bot, one SMTP account)."""

from datetime import datetime
from typing import Any

from django.conf import settings as django_settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from channels_app import limits, transport
from mapping.crypto import EncryptedJSONField, EncryptedTextField, new_secret
from mapping.models import Team
from mapping.visibility import Status, VisibleQuerySet


def new_callback_key() -> str:
    return new_secret(24)


class Channel(models.Model):
    name = models.CharField(_("alias"), max_length=100)
    kind = models.CharField(_("kind"), max_length=40)
    team = models.ForeignKey(
        Team, verbose_name=_("team"), null=True, blank=True, on_delete=models.PROTECT, related_name="channels",
        help_text=_("The team that owns it. Empty: only administrators configure it, everybody may use it."),
    )  # fmt: skip
    status = models.CharField(_("status"), max_length=10, choices=Status.choices, default=Status.ENABLED)
    position = models.PositiveSmallIntegerField(
        _("position"), default=0, help_text=_("Where a person chose only a kind, the first enabled channel of the kind is used.")
    )
    # Several vendors behind one kind or family: by country, by share, then by position.
    regions = models.JSONField(
        _("regions"), default=list, blank=True,
        help_text=_('For phones: the regions this channel is for, such as ["CN", "HK"]. Empty: all of them, after the channels that name one.'),
    )  # fmt: skip
    weight = models.PositiveSmallIntegerField(
        _("share"), default=0,
        help_text=_("Channels at the same position share the messages in this proportion. 0: by position alone."),
    )  # fmt: skip
    # A bot that writes to one person (a webhook into their own chat): only they and administrators see it, and no rule can choose it.
    owner = models.ForeignKey(
        django_settings.AUTH_USER_MODEL, verbose_name=_("belongs to"), null=True, blank=True, editable=False, on_delete=models.CASCADE,
        related_name="own_channels",
    )  # fmt: skip
    monthly_quota = models.PositiveIntegerField(
        _("monthly quota"), null=True, blank=True,
        help_text=_(
            "How many messages may leave in a calendar month (UTC): messages, not the parts of a long text message that vendors charge. Empty: no limit."
        ),
    )  # fmt: skip
    settings = EncryptedJSONField(_("settings"), default=dict, blank=True)
    # None: what the transport says. A list of kinds tried for the same person, at once, when this channel fails.
    fallback_kinds = models.JSONField(
        _("fallback kinds"),
        null=True,
        blank=True,
        help_text=_('Tried for the same person when this channel fails, such as ["sms", "email"].'),
    )
    fallback_channel = models.ForeignKey(
        "self", verbose_name=_("fallback channel"), null=True, blank=True, on_delete=models.SET_NULL, related_name="+",
        help_text=_("For a group: the group channel that takes over when this one fails."),
    )  # fmt: skip
    limits = models.JSONField(
        _("limits"), null=True, blank=True,
        help_text=_(
            'Own limits instead of the provider\'s: {"per_second": 5, "per_minute": 100} for each address, {"total_per_second": 30} for the whole channel.'
        ),
    )  # fmt: skip
    proxy = EncryptedTextField(_("proxy"), blank=True)
    ca_bundle = models.TextField(_("CA certificates (PEM)"), blank=True)
    allowed_hosts = models.JSONField(
        _("allowed private addresses"),
        default=list,
        blank=True,
        help_text=_('host:port pairs in private ranges that this channel may reach, such as ["10.0.0.5:8443"].'),
    )
    # The addresses a group channel writes to, as its transport reads them from the settings: here, so that nobody has to decrypt those.
    targets = models.JSONField(default=list, editable=False)
    callback_key = models.CharField(max_length=32, unique=True, default=new_callback_key, editable=False)
    is_demo = models.CharField(max_length=20, blank=True, editable=False)  # set by `make run`: the channels its variables switch
    created_at = models.DateTimeField(_("created"), auto_now_add=True)
    updated_at = models.DateTimeField(_("updated"), auto_now=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("channel")
        verbose_name_plural = _("channels")
        ordering = ["kind", "position", "id"]

    def __str__(self) -> str:
        return self.name

    def save(self, *args: Any, **kwargs: Any) -> None:
        known = transport.transports().get(self.kind)
        if known is not None:
            self.targets = list(known.targets(self.settings))
            if kwargs.get("update_fields") is not None:
                kwargs["update_fields"] = {*kwargs["update_fields"], "targets"}
        super().save(*args, **kwargs)

    @classmethod
    def visible_q(cls, member: Any) -> models.Q:
        """One's teams' channels and one's own. Those that no team owns are shared in use, but only administrators see their settings."""
        return models.Q(team__in=member.team_ids(), owner__isnull=True) | models.Q(owner=member)

    @classmethod
    def changeable_q(cls, member: Any) -> models.Q:
        return models.Q(team__in=member.team_ids(), owner__isnull=True) | models.Q(owner=member)

    @classmethod
    def usable_q(cls, member: Any) -> models.Q:
        """Which channels `member` may choose for themselves or send a test to: shared ones, their teams' and their own."""
        return cls.for_groups_q(member) | models.Q(owner=member)

    @classmethod
    def for_groups_q(cls, member: Any) -> models.Q:
        """Which channels `member` may choose in a rule: never one that writes to a single person, their own included."""
        rule = models.Q() if member.is_administrator else models.Q(team__isnull=True) | models.Q(team__in=member.team_ids())
        return rule & models.Q(owner__isnull=True)


class ChannelHealth(models.Model):
    """What the drains keep of a channel: its circuit breaker, its limits, its month. A row of its own, so that no machine writes the configuration."""

    channel = models.OneToOneField(Channel, on_delete=models.CASCADE, primary_key=True, related_name="health")
    failures = models.PositiveIntegerField(default=0)  # in a row
    open_until = models.DateTimeField(null=True)  # until then pages take the fallback; then one probe
    is_network = models.BooleanField(default=False)  # the last failure was on our side of the line: no name, no connection, no proxy
    last_error = models.CharField(max_length=500, blank=True)
    last_error_at = models.DateTimeField(null=True)
    last_success_at = models.DateTimeField(null=True)
    # Of limits that hold for the whole channel: when its last messages left, as in Address.buckets.
    buckets = models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()))
    # For a monthly quota: how many messages were claimed in the calendar month (UTC) that began on `month`.
    month = models.DateField(null=True)
    month_count = models.PositiveIntegerField(default=0, db_default=0)

    def quota(self, now: datetime) -> limits.Quota | None:
        """How far the channel is through its month; None where it has no quota."""
        return limits.quota(self.channel.monthly_quota, self.month, self.month_count, now)

    @classmethod
    def short_of_messages(cls, now: datetime) -> list[str]:
        """A sentence for each enabled channel that has used four fifths of its month or more: for the console, and `/readyz` counts them."""
        rows = (
            cls.objects.filter(channel__status=Status.ENABLED, channel__monthly_quota__isnull=False, month=limits.month_of(now))
            .select_related("channel")
            .defer("channel__settings", "channel__proxy")
            .order_by("channel__name", "channel_id")
        )
        found = [(row.channel.name, row.quota(now)) for row in rows]
        return [f"{name}: {quota.words()}" for name, quota in found if quota is not None and quota.level]
