"""A push endpoint of a member: a phone or a browser that was linked."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from mapping.crypto import EncryptedTextField
from mapping.visibility import VisibleQuerySet


class Device(models.Model):
    member = models.ForeignKey(settings.AUTH_USER_MODEL, verbose_name=_("member"), on_delete=models.CASCADE, related_name="devices")
    name = models.CharField(_("name"), max_length=100)
    platform = models.CharField(_("platform"), max_length=20, help_text=_("ios, android, web, ..."))
    os_version = models.CharField(_("system version"), max_length=50, blank=True)
    push_token = EncryptedTextField(_("push token"), blank=True)
    push_token_hash = models.CharField(max_length=64, blank=True, db_index=True, editable=False)
    enabled = models.BooleanField(_("enabled"), default=True)
    last_seen_at = models.DateTimeField(_("last seen"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("linked"), auto_now_add=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("device")
        verbose_name_plural = _("devices")
        ordering = ["member_id", "id"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def visible_q(cls, member) -> models.Q:
        return models.Q(member=member)
