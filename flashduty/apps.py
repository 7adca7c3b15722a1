"""The doors: console, API, pages, commands."""

from django.apps import AppConfig


class FlashdutyConfig(AppConfig):
    name = "flashduty"
    verbose_name = "Flashduty"
