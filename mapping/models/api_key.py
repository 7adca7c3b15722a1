"""An APP key: it carries the rights of its member. Shown once, stored hashed."""

from datetime import datetime

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _

from mapping.crypto import fingerprint, new_secret
from mapping.visibility import VisibleQuerySet

MOST_KEYS = 5


class ApiKey(models.Model):
    member = models.ForeignKey(settings.AUTH_USER_MODEL, verbose_name=_("member"), on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(_("name"), max_length=100)
    hint = models.CharField(_("begins with"), max_length=8, editable=False)
    key_hash = models.CharField(max_length=64, unique=True, editable=False)
    read_only = models.BooleanField(_("read only"), default=False)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    last_used_at = models.DateTimeField(_("last used"), null=True, blank=True, editable=False)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("APP key")
        verbose_name_plural = _("APP keys")
        ordering = ["member_id", "id"]

    def __str__(self) -> str:
        return f"{self.name} ({self.hint}…)"

    @classmethod
    def visible_q(cls, member) -> models.Q:
        return models.Q(member=member)

    @classmethod
    def issue(
        cls, member, name: str, *, read_only: bool = False, expires_at: datetime | None = None, secret: str = ""
    ) -> tuple["ApiKey", str]:
        """A new key and its secret, which nobody can read again. ValidationError when the member has five already."""
        # The member's row is locked so that two tabs cannot both make the fifth.
        type(member).objects.select_for_update().filter(pk=member.pk).first()
        if cls.objects.filter(member=member).count() >= MOST_KEYS:
            raise ValidationError(_("You have %(most)d APP keys already: delete one first."), params={"most": MOST_KEYS})
        secret = secret or new_secret(40)
        key = cls.objects.create(
            member=member, name=name, hint=secret[:6], key_hash=fingerprint(secret), read_only=read_only, expires_at=expires_at
        )
        return key, secret

    @classmethod
    def find(cls, secret: str, now: datetime) -> "ApiKey | None":
        """The live key of an active member that has this secret. Found by hash, so the time taken says nothing about the secret."""
        key = cls.objects.select_related("member").filter(key_hash=fingerprint(secret)).first()
        if key is None or not key.member.is_active or (key.expires_at and key.expires_at <= now):
            return None
        return key
