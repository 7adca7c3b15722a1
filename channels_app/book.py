"""What sending needs to know beforehand, read from rows and kept as plain values: channels with their transports opened, their circuit
breakers, the texts of template sets, whose language. Sender threads use it, and they never touch the database."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.conf import settings as site
from django.db.models import TextField
from django.db.models.functions import Cast
from django.utils.translation import gettext as _

from channels_app import limits, transport
from channels_app.models import Channel, ChannelHealth
from channels_app.transport import Http, Limit, Transport
from mapping.crypto import decrypt
from mapping.models import Installation, Member
from templates_app.choose import TemplateRow
from templates_app.models import TemplateSet

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Person:
    id: int
    name: str
    language: str
    time_zone: str


@dataclass(slots=True)
class Open:
    """A channel ready to send. `transport` is None where it cannot be used, and `trouble` says why."""

    id: int
    kind: str
    name: str
    style: type[Transport]
    transport: Transport | None
    trouble: str
    limits: tuple[Limit, ...]  # of each address
    fallback_kinds: tuple[str, ...]
    fallback_channel: int | None
    shared_limits: tuple[Limit, ...] = ()  # of the channel as a whole
    monthly_quota: int | None = None
    targets: tuple[str, ...] = ("",)  # the addresses of a group channel
    failures: int = 0
    open_until: datetime | None = None
    last_success_at: datetime | None = None

    @property
    def concurrency(self) -> int:
        return max(1, self.style.concurrency)


@dataclass(slots=True)
class Book:
    """Read anew by `refresh`; between two reads at most a second old in a drain."""

    channels: dict[int, Open] = field(default_factory=dict)
    texts: dict[int, Sequence[TemplateRow]] = field(default_factory=dict)
    language: str = "en"
    read_at: datetime | None = None
    _known: dict[int, tuple[Any, Open]] = field(default_factory=dict)

    def refresh(self, now: datetime) -> None:
        """Reads all channels and their breakers. A transport whose channel did not change stays open, with its connections."""
        self.language = Installation.objects.filter(id=1).values_list("language", flat=True).first() or Installation.get().language
        health = {row.channel_id: row for row in ChannelHealth.objects.all()}
        self.channels = {}
        for row in _channels():
            seen = (
                row.kind, row.name, row.status, row.sealed_settings, row.sealed_proxy, row.ca_bundle, row.allowed_hosts, row.limits, row.fallback_kinds,
                row.fallback_channel_id, row.monthly_quota, row.targets,
            )  # fmt: skip
            known = self._known.get(row.id)
            entry = known[1] if known is not None and known[0] == seen else _opened(row)
            self._known[row.id] = (seen, entry)
            if row.id in health:
                state = health[row.id]
                entry.failures, entry.open_until, entry.last_success_at = state.failures, state.open_until, state.last_success_at
            else:
                entry.failures, entry.open_until, entry.last_success_at = 0, None, None
            self.channels[row.id] = entry
        self.texts = {}
        self.read_at = now

    def add_texts(self, set_ids: Iterable[int]) -> None:
        """Reads the template sets that are not known yet; one that does not exist any more has no texts."""
        wanted = set(set_ids) - self.texts.keys()
        if wanted:
            found = {row.id: row.rows() for row in TemplateSet.objects.filter(id__in=wanted).prefetch_related("templates")}
            self.texts |= {pk: found.get(pk, ()) for pk in wanted}


def people(ids: Iterable[int]) -> dict[int, Person]:
    """Members as the texts need them."""
    wanted = sorted(set(ids))
    rows = Member.objects.filter(id__in=wanted).values_list("id", "name", "language", "time_zone") if wanted else ()
    return {row[0]: Person(*row) for row in rows}


def _channels() -> Any:
    """All channels with their secrets as the database keeps them: one that no key opens must not stop the others."""
    sealed = {f"sealed_{name}": Cast(name, TextField()) for name in ("settings", "proxy")}
    return Channel.objects.defer("settings", "proxy").annotate(**sealed)


def place_of(kind: str, settings: Mapping[str, Any]) -> tuple[str, str] | None:
    """What says where a channel writes that has one address, a webhook; None for other kinds. Threads are places of their own."""
    style = transport.transports().get(kind)
    url = str(settings.get("url") or "").strip() if style is not None and "url" in style.secret and style.limits else ""
    return (url, str(settings.get("thread") or "")) if url else None


def places() -> dict[tuple[str, str, str], list[tuple[int, str]]]:
    """The enabled channels, as (id, name), of each webhook and thread (kind, webhook, thread). Where there are two the provider counts the
    messages of both together, and each of them counts only its own."""
    found: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    for row in _channels().filter(status="enabled").order_by("name", "id"):
        try:
            place = place_of(row.kind, json.loads(decrypt(row.sealed_settings)) if row.sealed_settings else {})
        except ValueError:
            continue  # no key opens it
        if place is not None:
            found.setdefault((row.kind, *place), []).append((row.id, row.name))
    return found


def is_taken(kind: str, settings: Mapping[str, Any], besides: int | None) -> bool:
    """Whether an enabled channel, other than that with the id `besides`, writes to the same webhook."""
    place = place_of(kind, settings)
    return place is not None and any(pk != besides for pk, _name in places().get((kind, *place), ()))


def by_callback_key(key: str) -> Open | None:
    """The channel whose provider calls `/callback/<key>/`, opened although it may be switched off: what it sent before may still be reported on."""
    row = _channels().filter(callback_key=key).first()
    return None if row is None else _opened(row, to_listen=True)


def _opened(row: Any, *, to_listen: bool = False) -> Open:
    opened: Transport | None = None
    trouble = ""
    try:
        style = transport.get(row.kind)
        if row.status != "enabled" and not to_listen:
            trouble = _("The channel %(name)s is switched off.") % {"name": row.name}
        else:
            settings = json.loads(decrypt(row.sealed_settings)) if row.sealed_settings else {}
            proxy = decrypt(row.sealed_proxy) if row.sealed_proxy else ""
            opened = style(settings, Http(proxy, row.ca_bundle, row.allowed_hosts), f"{site.BASE_URL}/callback/{row.callback_key}/")
    except Exception as error:
        # A channel that cannot be opened must not stop the others; its messages fail with this sentence.
        log.warning("channel %s (%s) cannot be opened: %s", row.id, row.kind, type(error).__name__)
        style = transport.transports().get(row.kind, Transport)
        trouble = _("The channel %(name)s cannot be used: %(why)s") % {
            "name": row.name,
            "why": str(error) if isinstance(error, LookupError) else type(error).__name__,
        }
    both = limits.own(row.limits, opened.limits_of(opened.settings) if opened is not None else style.limits)
    return Open(
        id=row.id,
        kind=row.kind,
        name=row.name,
        style=style,
        transport=opened,
        trouble=trouble,
        limits=tuple(limit for limit in both if limit.scope == "address"),
        shared_limits=tuple(limit for limit in both if limit.scope == "channel"),
        monthly_quota=row.monthly_quota,
        fallback_kinds=_texts(row.fallback_kinds, style.fallback_kinds),
        fallback_channel=row.fallback_channel_id,
        targets=_texts(row.targets, ()) or ("",),
    )


def _texts(value: Any, otherwise: Sequence[str]) -> tuple[str, ...]:
    good = isinstance(value, list) and all(isinstance(item, str) for item in value)
    return tuple(value if good else otherwise)
