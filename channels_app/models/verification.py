"""A six-digit code on its way to a contact point, or to an account at an IM platform."""

from django.db import models

from channels_app.models.account import Account
from mapping.models import ContactPoint


class Verification(models.Model):
    contact_point = models.OneToOneField(ContactPoint, null=True, on_delete=models.CASCADE, related_name="verification")
    account = models.OneToOneField(Account, null=True, on_delete=models.CASCADE, related_name="verification")
    code_hash = models.CharField(max_length=128)
    tries = models.PositiveSmallIntegerField(default=0)
    sent_at = models.DateTimeField()
    expires_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(contact_point__isnull=False, account__isnull=True)
                | models.Q(contact_point__isnull=True, account__isnull=False),
                name="verification_of_one",
            )
        ]
