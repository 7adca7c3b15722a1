"""When a drain last worked in this installation: time without one counts against no deadline."""

from django.db import models
from django.db.models import Value


class Pulse(models.Model):
    seen_at = models.DateTimeField()
    # Absences that are being taken off the deadlines of what waited, the oldest first: [from, to (Unix seconds), the last row that was moved
    # (address, priority and id of the delivery), or None after the last of all]. A storm that waited is more than one transaction can move.
    absences = models.JSONField(default=list, db_default=Value([], output_field=models.JSONField()))

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="pulse_is_one_row")]
