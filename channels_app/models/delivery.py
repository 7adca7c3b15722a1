"""One message to one address through one channel, with its attempts, the text as sent and the provider's message id."""

import uuid

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from channels_app.models.address import Address
from channels_app.models.channel import Channel
from channels_app.models.notification import Notification


class Delivery(models.Model):
    class State(models.TextChoices):
        """Named by what they mean to the person who waits."""

        QUEUED = "queued", _("waiting")  # not sent yet, or to be tried again at not_before
        SENDING = "sending", _("being sent")  # a request may be out; leased until lease_until by holder
        SENT = "sent", _("sent")  # the provider took it; nobody has said that a device has it
        DELIVERED = "delivered", _("delivered")  # a device or mailbox has it
        ANSWERED = "answered", _("answered")  # a person reacted to it
        FAILED = "failed", _("failed")  # reason says why; permanent, or the tries are used up
        UNKNOWN = (
            "unknown",
            _("unknown"),
        )  # we crashed or timed out after the request left: nobody can know; sent again as a possible repeat
        CANCELLED = "cancelled", _("cancelled")  # reason: acknowledged, closed, muted, superseded
        BUNDLED = "bundled", _("bundled")  # its text went out inside the message named in bundled_by

    uid = models.UUIDField(default=uuid.uuid4, unique=True)  # goes out as delivery_id and as idempotency key
    notification = models.ForeignKey(Notification, on_delete=models.CASCADE, related_name="deliveries", db_index=False)
    topic = models.BigIntegerField(null=True)  # the notification's, here so that cancelling needs no join
    channel = models.ForeignKey(Channel, on_delete=models.PROTECT, related_name="deliveries", db_index=False)
    address = models.ForeignKey(Address, on_delete=models.PROTECT, related_name="deliveries", db_index=False)
    member = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="deliveries")
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    reason = models.CharField(max_length=500, blank=True)
    # 0 first. severity (Critical 0, Warning 1, Info 2) * 4 + (first page of an incident 0, escalation 1, loop 2, status notice 3)
    priority = models.SmallIntegerField(default=0)
    is_page = models.BooleanField(default=False)
    survives_ack = models.BooleanField(default=False)
    # Cancelled while a request was out or after it: what was sent stays sent, but nothing more leaves on its account.
    withdrawn = models.BooleanField(default=False)
    mentions = models.JSONField(default=list)  # ids on the IM platform, or phones, to @ in a group
    created_at = models.DateTimeField()
    not_before = models.DateTimeField()  # preference delay, retry back-off
    deadline_at = models.DateTimeField()  # what would wait past it takes the fallback now; it never ends the page
    give_up_at = models.DateTimeField()  # a page that nothing can deliver is tried with back-off until then (24 h)
    fallback_at = models.DateTimeField(null=True)  # when the fallback starts unless this was sent before; NULL = started, or not needed
    poll_at = models.DateTimeField(null=True)  # sent, and nothing heard of it: when to ask the provider what became of it
    fallback_of = models.ForeignKey("self", null=True, on_delete=models.CASCADE, related_name="fallbacks", db_index=False)
    bundled_by = models.ForeignKey("self", null=True, on_delete=models.SET_NULL, related_name="bundled", db_index=False)
    attempts = models.SmallIntegerField(default=0)  # requests that may have left, counted before they leave
    tries = models.SmallIntegerField(default=0)  # of these, those that count against the budget (our own crashes do not)
    possible_repeat = models.BooleanField(default=False)  # an earlier attempt ended unknown
    holder = models.CharField(max_length=40, blank=True)
    lease_until = models.DateTimeField(null=True)
    first_request_at = models.DateTimeField(null=True)
    sent_at = models.DateTimeField(null=True)
    delivered_at = models.DateTimeField(null=True)
    answered_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    message_id = models.CharField(max_length=200, blank=True)  # the provider's
    subject = models.CharField(max_length=300, blank=True)
    text = models.TextField(blank=True)  # as sent; codes and link tokens cut out
    log = models.JSONField(default=list)  # one line an attempt: [attempt, started, seconds, result, text]

    # What nobody who shows deliveries needs: secrets, which a lost key would make unreadable.
    SEALED = ("channel__settings", "channel__proxy", "notification__secret_context")

    class Meta:
        indexes = [
            models.Index(fields=["address", "priority", "id"], name="delivery_queued", condition=models.Q(state="queued")),
            models.Index(fields=["fallback_at"], name="delivery_fallback", condition=models.Q(fallback_at__isnull=False)),
            models.Index(fields=["poll_at"], name="delivery_poll", condition=models.Q(poll_at__isnull=False)),
            # Few at any time: it finds what a holder has out, too.
            models.Index(fields=["address"], name="delivery_in_flight", condition=models.Q(state="sending")),
            models.Index(fields=["topic"], name="delivery_topic", condition=models.Q(topic__isnull=False)),
            models.Index(fields=["fallback_of"], name="delivery_fallback_of", condition=models.Q(fallback_of__isnull=False)),
            models.Index(fields=["bundled_by"], name="delivery_bundled_by", condition=models.Q(bundled_by__isnull=False)),
            models.Index(fields=["notification"], name="delivery_notification"),
            models.Index(fields=["message_id"], name="delivery_message_id", condition=~models.Q(message_id="")),
        ]
