"""A six-digit code on its way to a contact point."""

from django.db import models

from mapping.models import ContactPoint


class Verification(models.Model):
    contact_point = models.OneToOneField(ContactPoint, on_delete=models.CASCADE, related_name="verification")
    code_hash = models.CharField(max_length=128)
    tries = models.PositiveSmallIntegerField(default=0)
    sent_at = models.DateTimeField()
    expires_at = models.DateTimeField()
