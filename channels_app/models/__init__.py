"""Channels, the addresses they reach, what is to be said (Notification), every message (Delivery), and what people prefer."""

from channels_app.models.account import Account
from channels_app.models.address import Address
from channels_app.models.channel import Channel, ChannelHealth
from channels_app.models.delivery import Delivery
from channels_app.models.early_receipt import EarlyReceipt
from channels_app.models.notification import Notification
from channels_app.models.preference import Preference
from channels_app.models.pulse import Pulse
from channels_app.models.verification import Verification

__all__ = [
    "Account",
    "Address",
    "Channel",
    "ChannelHealth",
    "Delivery",
    "EarlyReceipt",
    "Notification",
    "Preference",
    "Pulse",
    "Verification",
]
