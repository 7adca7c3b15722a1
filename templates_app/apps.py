"""The Django application of the templates house."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class TemplatesConfig(AppConfig):
    name = "templates_app"
    verbose_name = _("Templates")
    default_auto_field = "django.db.models.BigAutoField"
