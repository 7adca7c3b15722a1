"""One person's own address at a channel: a private chat with a bot, or a webhook that writes to one reader. Proved by a code sent to it."""

from typing import Any

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from channels_app.models.channel import Channel
from mapping.visibility import VisibleQuerySet


class Account(models.Model):
    member = models.ForeignKey(settings.AUTH_USER_MODEL, verbose_name=_("member"), on_delete=models.CASCADE, related_name="accounts")
    channel = models.ForeignKey(Channel, verbose_name=_("channel"), on_delete=models.CASCADE, related_name="accounts")
    target = models.CharField(
        _("address at the channel"), max_length=300, blank=True, help_text=_("A chat id; empty where the channel itself is the address.")
    )
    label = models.CharField(_("label"), max_length=100, blank=True)
    verified_at = models.DateTimeField(_("verified"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("IM account")
        verbose_name_plural = _("IM accounts")
        ordering = ["member_id", "id"]
        constraints = [models.UniqueConstraint(fields=["member", "channel", "target"], name="account_once")]

    def __str__(self) -> str:
        return self.label or self.target or self.channel.name

    @classmethod
    def visible_q(cls, member: Any) -> models.Q:
        return models.Q(member=member)
