"""Channels as the console's menu groups them, in the guide's words. The same rows as Channel; what belongs where follows from the transport."""

from django.utils.translation import gettext_lazy as _

from channels_app.models import Channel


class ImApp(Channel):
    class Meta:
        proxy = True
        verbose_name = _("IM app")
        verbose_name_plural = _("IM apps")


class ImBot(Channel):
    class Meta:
        proxy = True
        verbose_name = _("IM bot")
        verbose_name_plural = _("IM bots")


class Classic(Channel):
    class Meta:
        proxy = True
        verbose_name = _("voice, SMS or e-mail channel")
        verbose_name_plural = _("Voice, SMS, e-mail")


class Hook(Channel):
    class Meta:
        proxy = True
        verbose_name = _("webhook or other service")
        verbose_name_plural = _("Webhooks, other services")


class Play(Channel):
    class Meta:
        proxy = True
        verbose_name = _("sandbox channel")
        verbose_name_plural = _("Sandbox")
