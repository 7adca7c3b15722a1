"""What is wrong with this installation before a page finds out: a list of checks, each of which says what to do. `manage.py doctor` runs them.

A check is a function of `now` that yields findings and changes nothing. To add one, write it here (or beside what it knows) and put it into
CHECKS."""

import ipaddress
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr
from typing import Final, Literal
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ValidationError
from django.db.models import TextField
from django.db.models.functions import Cast
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from channels_app import addresses, book, policy, transport
from channels_app import numbers as numbers_of
from channels_app.models import Channel, ChannelHealth
from flashduty import mail_domain
from mapping.crypto import EncryptedJSONField, EncryptedTextField, decrypt
from mapping.models import ContactPoint, Installation, Member
from mapping.models.contact_point import check_region
from mapping.visibility import Role

Level = Literal["error", "warning"]

RINGS: Final = frozenset({"app", "push", "voice", "sms"})  # families that somebody who sleeps may hear
PROGRAMS: Final = {"sip": ("espeak-ng",)}  # by a word of a kind's name: what has to be on this machine
MOST_NAMES: Final = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong. An error: somebody will not be told. A warning: somebody may not be, or something is harder than it need be."""

    level: Level
    what: str
    fix: str


Check = Callable[[datetime], Iterable[Finding]]


def examine(now: datetime) -> list[Finding]:
    """Every finding of every check, errors first. A check that fails is a finding itself, and the others go on."""
    found: list[Finding] = []
    for check in CHECKS:
        try:
            found += check(now)
        except Exception as error:
            found.append(
                Finding(
                    "error",
                    _("The check “%(name)s” failed: %(error)s")
                    % {"name": check.__name__, "error": f"{type(error).__name__}: {error}"[:300]},
                    _("Mend what it says; if it says nothing of this installation, report it."),
                )
            )
    return sorted(found, key=lambda finding: finding.level)


# ---- the checks ----------------------------------------------------------------------------------------------------------------------


def is_public(url: str) -> bool:
    """Whether others on the internet can open this address, as far as its spelling says; names are not looked up."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(
            (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".test", ".example", ".invalid")
        )


def base_url(_now: datetime) -> Iterator[Finding]:
    """BASE_URL stands in every link that people get, and providers call it."""
    if not is_public(settings.BASE_URL):
        yield Finding(
            "warning",
            _("BASE_URL is %(url)s, which nobody outside this network can open: links in messages work in here only.") % {"url": settings.BASE_URL},
            _("Set BASE_URL to the address people open from their phones, such as https://oncall.example.com, or give them a VPN."),
        )  # fmt: skip
    elif urlsplit(settings.BASE_URL).scheme != "https":
        yield Finding(
            "warning",
            _("BASE_URL is %(url)s: links that act for a person travel unencrypted.") % {"url": settings.BASE_URL},
            _("Put a proxy with a certificate before the server and set BASE_URL to its https:// address."),
        )


def callbacks(_now: datetime) -> Iterator[Finding]:
    """Providers that report by calling us need to be able to."""
    if is_public(settings.BASE_URL):
        return
    rows = [row for row in _channels() if hasattr(transport.transports()[row.kind], "receive")]
    polled = {row.pk for row in rows if hasattr(transport.transports()[row.kind], "poll")}
    deaf = [row for row in rows if row.pk not in polled]
    if deaf:
        yield Finding(
            "warning",
            _("The providers of these channels cannot report what became of a message, because BASE_URL is not public: %(names)s.")
            % {"names": _named(row.name for row in deaf)},
            _("Make %(url)s/callback/ reachable from the internet, or live with messages that stay “sent”.") % {"url": settings.BASE_URL},
        )


def channels(_now: datetime) -> Iterator[Finding]:
    """There is something to tell people by, and for Critical something that rings."""
    families = {style.family or kind for kind, style in _styles()}
    if not families:
        yield Finding(
            "error",
            _("No enabled channel reaches a person: nobody can be paged."),
            _("Add one in the console under Notifications, such as e-mail, and send a test."),
        )
    elif not families & RINGS:
        yield Finding(
            "warning",
            _("Critical incidents have nothing that rings: there is no enabled channel for the app, voice or SMS."),
            _("Add a voice or SMS channel in the console under Notifications."),
        )


def broken(now: datetime) -> Iterator[Finding]:
    """Channels that are left alone because they failed again and again."""
    rows = ChannelHealth.objects.filter(channel__status="enabled", failures__gte=policy.BREAKER_FAILURES).select_related("channel")
    sentences = {
        "all": _("Channel “%(name)s” failed %(count)d times in a row, so its pages take the fallback: %(error)s"),
        "some": _(
            "Channel “%(name)s” failed %(count)d times in a row; where there is a fallback its pages take it, the others wait: %(error)s"
        ),
        "none": _("Channel “%(name)s” failed %(count)d times in a row; it has no fallback, so its pages wait: %(error)s"),
    }
    backing = addresses.backing()
    for row in rows.defer("channel__settings", "channel__proxy").order_by("channel__name"):
        yield Finding(
            "error",
            sentences[backing.get(row.channel_id, "none")] % {"name": row.channel.name, "count": row.failures, "error": row.last_error},
            _("Do what the error says, then send a test from the channel's page; the first success closes the matter."),
        )


def numbers(_now: datetime) -> Iterator[Finding]:
    """People can only keep calls from being blocked when they know the numbers."""
    known, told = transport.transports(), {channel.pk for channel, _numbers in numbers_of.by_channel()}
    silent = [
        row.name
        for row in _channels()
        if known[row.kind].family == "voice" and "numbers" in known[row.kind].Settings.base_fields and row.pk not in told
    ]
    if silent:
        yield Finding(
            "warning",
            _("These voice channels do not say which numbers call, so no contact card can hold them: %(names)s.")
            % {"names": _named(silent)},
            _("Enter the numbers on the channel's page; members are told and can import them, so that calls are not blocked."),
        )


def shared_places(_now: datetime) -> Iterator[Finding]:
    """A webhook belongs to one channel, or its provider's limits are counted twice."""
    for rows in book.places().values():
        if len(rows) > 1:
            yield Finding(
                "warning",
                _("These channels write to the same address, so together they may send more than its provider allows: %(names)s.")
                % {"names": _named(name for _pk, name in rows)},
                _("Use one of them everywhere and disable the others; a provider blocks an address that gets too much."),
            )


def mail_domains(_now: datetime) -> Iterator[Finding]:
    """Receivers believe that mail of the sending domain is ours."""
    asked = set()
    for row in Channel.objects.filter(status="enabled", kind="email").order_by("name"):
        sender, back = (
            parseaddr(str(row.settings.get(name) or ""))[1].rpartition("@")[2].lower() for name in ("from_email", "envelope_from")
        )
        key = (sender, back or sender, str(row.settings.get("host") or ""), str(row.settings.get("dkim_selector") or ""))
        if key in asked or not is_public(f"https://{sender}/"):
            continue
        asked.add(key)
        found = mail_domain.problems(sender, envelope=key[1], relay=key[2], selector=key[3], dns_=mail_domain.Dns())
        for problem in found:
            yield Finding("warning", _("E-mail channel “%(name)s”: %(what)s") % {"name": row.name, "what": problem.what}, problem.fix)


def people(now: datetime) -> Iterator[Finding]:
    """Everybody who may be paged has a verified way for Critical, and one that rings."""
    members = dict(Member.objects.filter(is_active=True).exclude(role=Role.VIEWER).order_by("name").values_list("pk", "name"))
    reached = addresses.reach(members, "Critical", now)
    ways = {pk: [way for way in reached.get(pk, ()) if isinstance(way, addresses.Target)] for pk in members}
    nowhere = [members[pk] for pk in members if not ways[pk]]
    if nowhere:
        yield Finding(
            "error",
            ngettext(
                "%(count)d person has no verified way to be told of a Critical incident: %(names)s.",
                "%(count)d people have no verified way to be told of a Critical incident: %(names)s.",
                len(nowhere),
            )
            % {"count": len(nowhere), "names": _named(nowhere)},
            _("Ask them to open %(url)s/me/, add a phone or an address and verify it.") % {"url": settings.BASE_URL},
        )
    kinds = dict(Channel.objects.values_list("pk", "kind"))
    known = transport.transports()
    asleep = [
        members[pk]
        for pk in members
        if ways[pk]
        and all((style := known.get(kinds[way.channel_id])) is not None and style.family == "email" for way in ways[pk])
    ]  # fmt: skip
    if asleep and any(style.family in RINGS for _kind, style in _styles()):
        yield Finding(
            "warning",
            ngettext(
                "%(count)d person is told of Critical incidents by e-mail only: %(names)s.",
                "%(count)d people are told of Critical incidents by e-mail only: %(names)s.",
                len(asleep),
            )
            % {"count": len(asleep), "names": _named(asleep)},
            _("Ask them to verify a phone on %(url)s/me/ and to choose SMS or voice for Critical.") % {"url": settings.BASE_URL},
        )


def catch_all(_now: datetime) -> Iterator[Finding]:
    """Somebody is told when nobody else could be."""
    home = Installation.get()
    if not home.catch_all_members.filter(is_active=True).exists() and not home.catch_all_teams.filter(status="enabled").exists():
        yield Finding(
            "error",
            _("The installation names no catch-all: an incident that nobody else can be told of is told to nobody."),
            _("Name people or a team on the installation's page in the console."),
        )


def regions(_now: datetime) -> Iterator[Finding]:
    """Phones that the form would refuse: saved before the table said so, or written past it."""
    for value, name in (
        ContactPoint.objects.filter(kind="phone", member__is_active=True)
        .order_by("member__name", "id")
        .values_list("value", "member__name")
    ):
        try:
            check_region(value)
        except ValidationError as refused:
            yield Finding(
                "error",
                _("%(person)s has a phone that is not called. %(why)s") % {"person": name, "why": " ".join(refused.messages)},
                _("Ask them for a number of another region, or for another way such as an IM account."),
            )


def programs(_now: datetime) -> Iterator[Finding]:
    """What some channels run on this machine."""
    words = {word for kind, _style in _styles() for word in kind.split("_")}
    missing = [name for word, names in PROGRAMS.items() if word in words for name in names if shutil.which(name) is None]
    if missing:
        yield Finding(
            "error",
            _("Programs that the SIP channel needs are not on this machine: %(names)s.") % {"names": _named(missing)},
            _("Install them (Debian: apt-get install %(names)s) on every machine that runs workers.") % {"names": " ".join(missing)},
        )


def secrets(_now: datetime) -> Iterator[Finding]:
    """Everything that is stored encrypted can be read with the keys this process has."""
    for model in apps.get_models():
        for field in model._meta.concrete_fields:
            if not isinstance(field, EncryptedTextField | EncryptedJSONField):
                continue
            rows = model._base_manager.annotate(_sealed=Cast(field.name, TextField())).exclude(_sealed="").order_by("pk")
            lost = [pk for pk, sealed in rows.values_list("pk", "_sealed").iterator() if sealed and not _opens(sealed)]
            if lost:
                yield Finding(
                    "error",
                    _("%(count)d of “%(what)s” (%(field)s) cannot be decrypted, ids: %(ids)s.")
                    % {"count": len(lost), "what": model._meta.verbose_name_plural, "field": field.name, "ids": _named(map(str, lost))},
                    _("Put the key they were written with back into FLASHDUTY_ENCRYPTION_KEYS, after the new one; or enter them again."),
                )


CHECKS: list[Check] = [
    base_url,
    callbacks,
    channels,
    broken,
    numbers,
    shared_places,
    mail_domains,
    people,
    catch_all,
    regions,
    programs,
    secrets,
]


# ---- what several of them ask --------------------------------------------------------------------------------------------------------


def _channels() -> list[Channel]:
    """Enabled channels that are not one person's own and whose kind exists, without their secrets."""
    rows = Channel.objects.filter(status="enabled", owner=None).only("id", "name", "kind").order_by("name")
    return [row for row in rows if row.kind in transport.transports()]


def _styles() -> list[tuple[str, type[transport.Transport]]]:
    """The kinds of enabled channels that reach persons."""
    known = transport.transports()
    return [(kind, known[kind]) for kind in sorted({row.kind for row in _channels()}) if known[kind].person or known[kind].personal]


def _opens(sealed: str) -> bool:
    try:
        decrypt(sealed)
    except ValueError:
        return False
    return True


def _named(names: Iterable[str]) -> str:
    """The first few names, and how many there are besides."""
    listed = list(names)
    text = pgettext("between names", ", ").join(listed[:MOST_NAMES])
    left = len(listed) - MOST_NAMES
    return (
        ngettext("%(names)s and %(left)d more", "%(names)s and %(left)d more", left) % {"names": text, "left": left} if left > 0 else text
    )
