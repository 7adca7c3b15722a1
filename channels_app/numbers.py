"""The numbers that really call a person: which they are, the card to import them by, and telling people when they have changed.

Only what the voice channels say in their setting `numbers` counts, as the channels' own parser reads it; the guide's numbers are its vendor's."""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final

import phonenumbers
from django.conf import settings
from django.db import transaction
from django.db.models import TextField
from django.db.models.functions import Cast
from django.utils.translation import gettext as _
from django.utils.translation import override

from channels_app import addresses, outbox, transport
from channels_app.models import Channel
from mapping import voice_regions
from mapping.clock import db_now
from mapping.crypto import decrypt
from mapping.models import ContactPoint, Installation, Member, Team
from mapping.vcard import card
from templates_app.events import NUMBERS, build_numbers

# An operator who changes numbers changes several: nobody is told before the channels have been left alone for so long.
SETTLED: Final = timedelta(minutes=5)
PATH: Final = "/me/contacts.vcf"


def calling(member_ids: Iterable[int]) -> dict[int, tuple[str, ...]]:
    """For each member the numbers (E.164) that may call their phones, in the order of the channels: of enabled voice channels that are shared
    or their teams', for the regions of their phones. Empty for whoever has no phone."""
    ids = sorted(set(member_ids))
    regions: dict[int, list[str]] = defaultdict(list)
    for member, value in (
        ContactPoint.objects.filter(member_id__in=ids, kind="phone").order_by("position", "id").values_list("member_id", "value")
    ):
        regions[member].append(voice_regions.region_of(value))
    teams: dict[int, set[int]] = defaultdict(set)
    for team, member in (
        Team.members.through.objects.filter(member_id__in=ids).exclude(team__status="deleted").values_list("team_id", "member_id")
    ):
        teams[member].add(team)
    channels = by_channel()
    found = {}
    for member in ids:
        mine = [
            number
            for channel, numbers in channels
            if channel.team_id is None or channel.team_id in teams[member]
            for region in regions[member]
            if not channel.regions or region in channel.regions
            for number in numbers.get(region) or numbers.get("") or ()
        ]
        found[member] = tuple(dict.fromkeys(mine))
    return found


def card_of(member: Member, now: datetime) -> str:
    """The contact card for `member`, in both languages, theirs first; "" where no number calls them."""
    numbers = calling([member.pk])[member.pk]
    if not numbers:
        return ""
    home = Installation.get()
    names, notes = [], []
    for language in sorted(dict(settings.LANGUAGES), key=lambda code: code != member.language):
        with override(language):
            names.append((_TAGS.get(language, language), _("%(name)s calls") % {"name": home.name}))
            notes.append((_TAGS.get(language, language), _("Calls about incidents come from these numbers. Do not block them.")))
    uid = uuid.uuid5(uuid.NAMESPACE_URL, f"{settings.BASE_URL}{PATH}")
    return card(names, numbers, notes=notes, url=f"{settings.BASE_URL}/me/", uid=str(uid), now=now)


_TAGS: Final[Mapping[str, str]] = {"zh-hans": "zh-Hans"}


def announce(now: datetime | None = None) -> int:
    """Tells members with a verified phone by e-mail when the numbers that call them are others than they were told last; once for each change,
    whatever changed them, and later those who have no mailbox yet. Run every few minutes. Returns how many were told."""
    now = now or db_now()
    if any(channel.updated_at > now - SETTLED for channel, _numbers in by_channel()):
        return 0
    with transaction.atomic():
        reachable = ContactPoint.objects.filter(kind="phone", verified_at__isnull=False, bounced_at=None).values("member_id")
        members = Member.objects.select_for_update(no_key=True).filter(is_active=True, pk__in=reachable).order_by("pk")
        before = dict(members.values_list("pk", "numbers_told"))
        current = calling(before)
        changed = [pk for pk in before if list(current[pk]) != (before[pk] or [])]
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for pk in changed:
            groups[current[pk]].append(pk)
        notices, told = [], 0
        for numbers, people in groups.items():
            ways = addresses.reach(people, "Info", now, kinds=("email",)) if numbers else {}
            to = tuple(
                outbox.To(way.channel_id, way.target, pk)
                for pk, found in ways.items()
                for way in found
                if isinstance(way, addresses.Target)
            )
            # Who cannot be told now, for want of a mailbox or of a channel, is told as soon as they can.
            heard = {item.member_id for item in to} if numbers else set(people)
            Member.objects.filter(pk__in=heard).update(numbers_told=list(numbers))
            if to:
                told += len(heard)
                context = build_numbers([shown(number) for number in numbers], f"{settings.BASE_URL}{PATH}")
                notices.append(outbox.Notice(event=NUMBERS, severity="Info", context=context, to=to, is_page=False, rank=3))
        outbox.post(notices, now)
    return told


def shown(number: str) -> str:
    """A number as people read it: +86 571 8888 1234."""
    return phonenumbers.format_number(phonenumbers.parse(number), phonenumbers.PhoneNumberFormat.INTERNATIONAL)


def by_channel() -> list[tuple[Channel, dict[str, list[str]]]]:
    """The enabled voice channels that say by which numbers they call, with these; one whose numbers or settings cannot be read has none."""
    kinds = [kind for kind, style in transport.transports().items() if style.family == "voice" and "numbers" in style.Settings.base_fields]
    found: list[tuple[Channel, dict[str, list[str]]]] = []
    rows = Channel.objects.filter(status="enabled", owner=None, kind__in=kinds).order_by("position", "id")
    # With the settings as the database keeps them: a channel that no key opens must not stop the others, nor anybody's page.
    for channel in rows.only("id", "kind", "team_id", "regions", "updated_at").annotate(sealed=Cast("settings", TextField())):
        try:
            values = json.loads(decrypt(channel.sealed)) if channel.sealed else {}
            numbers = transport.parse_numbers(str(values.get("numbers") or ""))
        except ValueError:
            continue
        if numbers:
            found.append((channel, numbers))
    return found
