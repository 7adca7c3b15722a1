"""A person's own addresses at IM platforms, on their own page: a private chat with a shared bot, or a webhook that writes to them alone.

Whatever is added is told nothing until a code that was sent to it has come back. A webhook of one's own is a Channel that belongs to its owner:
no rule can choose it, nobody else is told by it, and the guard of the network holds for it as for any other."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import transport
from channels_app.models import Account, Channel
from channels_app.transport import DeliveryError, Http, Suggests
from mapping.models import Member, Throttle
from mapping.visibility import Status

MOST_OWN: Final = 5
MOST_ACCOUNTS: Final = 20
PREFIX: Final = "set_"
# Each search asks the provider.
SEARCHES: Final = (10, timedelta(minutes=10))
SHORTEST: Final = 3  # letters of a search: the names of everybody who ever wrote to the bot are nobody's business


class AccountForm(forms.Form):
    """A private chat with a bot that is there for everybody."""

    channel = forms.IntegerField(label=gettext_lazy("Bot"))
    target = forms.CharField(label=gettext_lazy("Chat id"), max_length=300)
    label = forms.CharField(label=gettext_lazy("Label"), max_length=100, required=False)


@dataclass(frozen=True, slots=True)
class Own:
    """A kind of which somebody may have a webhook of their own, and its form."""

    kind: str
    label: str
    form: forms.Form


def bots(member: Member) -> list[Channel]:
    """The channels at which this member can have a private chat."""
    kinds = [kind for kind, style in transport.transports().items() if style.personal and style.reach == "account"]
    rows = Channel.objects.filter(Channel.usable_q(member), status=Status.ENABLED, owner=None, kind__in=kinds)
    return list(rows.only("id", "name", "kind").order_by("kind", "position", "id").distinct())


def own_kinds() -> list[tuple[str, str]]:
    """The kinds of which somebody may have a webhook of their own: (kind, label)."""
    found = transport.transports().items()
    return [(kind, str(style.label)) for kind, style in found if style.personal and style.reach == "group"]


def own_form(kind: str, data: Any = None) -> Own | None:
    """The form of a webhook of one's own; None where there is no such kind. Field names have a prefix, so that none meets a button's."""
    if kind not in dict(own_kinds()):
        return None
    style = transport.get(kind)
    return Own(kind, str(style.label), style.Settings(data, prefix=PREFIX.rstrip("_"), use_required_attribute=True))


@transaction.atomic
def add(member: Member, data: Any) -> Account:
    """A private chat at a shared bot, not verified yet; ValidationError with a sentence when it cannot be one."""
    _alone(member)
    form = AccountForm(data)
    if not form.is_valid():
        raise ValidationError([f"{form.fields[name].label}: {line}" for name, lines in form.errors.items() for line in lines])
    channel = next((row for row in bots(member) if row.pk == form.cleaned_data["channel"]), None)
    if channel is None:
        raise ValidationError(_("There is no such bot."))
    target = form.cleaned_data["target"].strip()
    style = transport.get(channel.kind)
    if wrong := style.check_account(target):
        raise ValidationError(wrong)
    if member.accounts.count() >= MOST_ACCOUNTS:
        raise ValidationError(_("You have %(most)d accounts already: remove one first.") % {"most": MOST_ACCOUNTS})
    account, is_new = Account.objects.get_or_create(
        member=member, channel=channel, target=target, defaults={"label": form.cleaned_data["label"]}
    )
    if not is_new:
        raise ValidationError(_("You have added this one already."))
    return account


@transaction.atomic
def add_own(member: Member, kind: str, data: Any) -> Account:
    """A webhook of one's own, not verified yet; ValidationError with sentences when its settings are wrong or there are too many."""
    _alone(member)
    own = own_form(kind, data)
    if own is None:
        raise ValidationError(_("There is no such kind of webhook."))
    if member.own_channels.exclude(status=Status.DELETED).count() >= MOST_OWN:
        raise ValidationError(_("You have %(most)d webhooks of your own already: remove one first.") % {"most": MOST_OWN})
    form = own.form
    if not form.is_valid():
        raise ValidationError(
            [f"{form.fields[name].label}: {line}" if name in form.fields else line for name, lines in form.errors.items() for line in lines]
        )
    label = str(data.get("label", "")).strip()[:100] or own.label
    channel = Channel.objects.create(kind=kind, name=label, owner=member, settings=form.cleaned_data)
    return Account.objects.create(member=member, channel=channel, label=label)


@transaction.atomic
def remove(account: Account) -> None:
    """Unlinks it. A webhook of one's own is retired with it: past messages point to it, but its address is forgotten."""
    channel = account.channel
    account.delete()
    if channel.owner_id is not None:
        Channel.objects.filter(pk=channel.pk).update(status=Status.DELETED, settings={})


def search(member: Member, channel_id: int, text: str, now: datetime) -> Sequence[tuple[str, str]]:
    """The chats at a bot that match what somebody is called there, as (chat id, name); ValidationError with the reason when there are none to show."""
    channel = next((row for row in bots(member) if row.pk == channel_id), None)
    style = transport.get(channel.kind) if channel is not None else None
    if channel is None or style is None or not hasattr(style, "suggest"):
        raise ValidationError(_("This bot cannot look for chats: enter the chat's id."))
    if len(text.strip()) < SHORTEST:
        raise ValidationError(_("Write at least %(count)d letters of your name there.") % {"count": SHORTEST})
    if not Throttle.hit(f"chats {member.pk}", *SEARCHES, now):
        raise ValidationError(_("You have looked often enough for now. Try again in ten minutes."))
    try:
        row = Channel.objects.get(pk=channel.pk)
    except ValueError:  # no key opens its settings
        raise ValidationError(_("This bot cannot be used now: an administrator has to look at it.")) from None
    opened = style(row.settings, Http(row.proxy, row.ca_bundle, row.allowed_hosts))
    assert isinstance(opened, Suggests)
    try:
        found = [(chat, name) for chat, name in opened.suggest(text) if not style.check_account(chat)]
    except DeliveryError as error:
        raise ValidationError(error.text) from None
    if not found:
        raise ValidationError(_("The bot knows no such chat. Open it, press Start or write to it, and look again."))
    return found[:10]


def _alone(member: Member) -> None:
    Member.objects.select_for_update(no_key=True).get(pk=member.pk)
