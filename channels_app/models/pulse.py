"""When a drain last worked in this installation: time without one counts against no deadline."""

from django.db import models


class Pulse(models.Model):
    seen_at = models.DateTimeField()

    class Meta:
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="pulse_is_one_row")]
