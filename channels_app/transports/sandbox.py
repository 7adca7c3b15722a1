"""The sandbox: a phone, a mailbox and group chats inside the product, for a demo without any account and for trying a rule on nobody.

Nothing leaves the house. The delivery's row is the message: the sandbox page shows the rows of these kinds, and its keys answer them."""

import re
from typing import ClassVar

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app.transport import DeliveryError, Format, Message, Reach, Receipt, Transport

_MEMBER = re.compile(r"member:[1-9][0-9]{0,18}")


class Sandbox(Transport):
    """To one person. The address is "member:<id>"."""

    reach: ClassVar[Reach] = "member"
    person = True
    demo = True
    concurrency = 64

    def send(self, message: Message, address: str) -> Receipt:
        """`delivered` at once, since the page that shows it is the device; a message without words or for nobody is refused."""
        if not _MEMBER.fullmatch(address):
            raise DeliveryError(_('A sandbox address is "member:<id>", not "%(address)s".') % {"address": address}, permanent=True)
        return self._taken(message)

    def _taken(self, message: Message) -> Receipt:
        if not (message.text or message.html or "").strip():
            raise DeliveryError(_("There is nothing to show: the message is empty."), permanent=True)
        return Receipt(message_id=f"sandbox-{message.delivery_id}", state="delivered")


class SandboxApp(Sandbox):
    kind = "sandbox_app"
    family = "app"
    label = gettext_lazy("Sandbox: app")


class SandboxVoice(Sandbox):
    """A phone that rings until somebody picks up: nobody has heard the message before, so it is only `sent`."""

    kind = "sandbox_voice"
    family = "voice"
    label = gettext_lazy("Sandbox: voice call")
    format = "voice"

    def _taken(self, message: Message) -> Receipt:
        return Receipt(message_id=super()._taken(message).message_id, state="sent", detail=_("ringing"))


class SandboxSms(Sandbox):
    kind = "sandbox_sms"
    family = "sms"
    label = gettext_lazy("Sandbox: SMS")


class SandboxEmail(Sandbox):
    kind = "sandbox_email"
    family = "email"
    label = gettext_lazy("Sandbox: e-mail")
    format: ClassVar[Format] = "html"


class SandboxIm(Sandbox):
    kind = "sandbox_im"
    family = "im"
    label = gettext_lazy("Sandbox: IM app")
    fallback_kinds = ("sandbox_sms", "sandbox_email")


class SandboxGroup(Sandbox):
    """To a group chat, which is the channel itself: the address is empty."""

    kind = "sandbox_group"
    label = gettext_lazy("Sandbox: group chat")
    reach = "group"
    person = False
    group = True
    concurrency = 1

    def send(self, message: Message, address: str) -> Receipt:
        if address:
            raise DeliveryError(_("A group chat has no addresses; it is the channel itself."), permanent=True)
        return self._taken(message)
