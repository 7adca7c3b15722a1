"""What a channel is to the program: the base every transport extends, the values that go in and come out, and the registry.

A new channel is one file in `channels_app/transports/` with one subclass of `Transport`, and one test. What it can do is data (the class
attributes); how it sends is one verb. Who retries, when and how often is written once, in the outbox, and never here. Abilities that only
some have are the protocols at the end: the caller asks `isinstance(transport, Receives)` and moves on if not."""

import functools
import importlib
import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import phonenumbers
from django import forms
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.forms.fields import InvalidJSONInput
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import transports as package
from channels_app.http import DeliveryError, Http, sendable_header

__all__ = [
    "Callback", "Command", "DeliveryError", "Format", "HeadersField", "Heard", "Http", "JsonField", "Limit", "Message", "NumbersField", "Polls", "Reach", "Receipt", "Receives",
    "Settings", "Suggests", "Transport", "Update", "Updates", "as_many", "get", "number_for", "parse_numbers", "transports",
]  # fmt: skip

Reach = Literal["member", "phone", "email", "device", "account", "group"]
Format = str  # which default text it wants: "plain", "html", "voice", "webhook", "feishu", ... (templates_app lists them)


@dataclass(frozen=True, slots=True)
class Limit:
    """The provider takes at most `count` messages in any `seconds`: at one address (a chat, a phone), or of the whole channel (an account)."""

    count: int
    seconds: float
    scope: Literal["address", "channel"] = "address"


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it leaves: rendered already, in the transport's own format. Only plain values; a transport never sees a row."""

    delivery_id: str  # constant over all attempts
    event: str  # triggered | escalated | refire | acknowledged | closed | code | test
    severity: str  # Critical | Warning | Info | Ok | ""
    subject: str
    text: str
    sent_at: datetime  # aware UTC: the clock that timestamps and signatures use
    attempt: int = 1
    possible_repeat: bool = False  # an earlier attempt ended unknown
    html: str | None = None
    title: str = ""
    url: str = ""  # where to read more; "" where there is nothing to open
    incident_id: str = ""
    num: str = ""
    layer_idx: int | None = None
    # Every incident the message names: {"id", "title", "severity", "event", "possible_repeat", "url", "num"}.
    incidents: tuple[Mapping[str, Any], ...] = ()
    mentions: tuple[str, ...] = ()  # whom to @ in a group, as the platform names them
    language: str = "en"
    idempotency_key: str = (
        ""  # for providers that know a repeat by it: the delivery id, or for several incidents a UUID of exactly these deliveries
    )
    context: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """The provider took the message: `sent`; or a device or mailbox has it: `delivered`. `message_id` is the provider's, if it gives one."""

    message_id: str = ""
    state: Literal["sent", "delivered"] = "sent"
    detail: str = ""  # one line for the log, such as what was cut
    moved: str = ""  # the address has become this one, says the provider: it is kept and used from now on


class JsonField(forms.JSONField):
    """JSON that a person wrote: what Python's parser dies of, and what PostgreSQL or a later reader could not take, is invalid as well."""

    DEEPEST = 20

    def to_python(self, value: Any) -> Any:
        try:
            found = super().to_python(value)
            sound = _is_sound(found, self.DEEPEST)
        except (RecursionError, ValueError):  # thousands of brackets, thousands of digits; ValidationError is neither
            sound = False
        if not sound:
            raise ValidationError(self.error_messages["invalid"], code="invalid", params={"value": str(value)[:100]})
        return found

    def bound_data(self, data: Any, initial: Any) -> Any:
        """What the page shows again; here, too, the parser may die of it."""
        try:
            found = super().bound_data(data, initial)
            return found if _is_sound(found, self.DEEPEST) else InvalidJSONInput(data)
        except (RecursionError, ValueError):
            return InvalidJSONInput(data)


class HeadersField(JsonField):
    """HTTP headers as a JSON object of texts. `reserved`: names in lower case that are ours to set; one that ends in "-" stands for all that begin so."""

    def __init__(self, *, reserved: Sequence[str], **options: Any) -> None:
        super().__init__(**options)
        self.reserved = tuple(reserved)

    def clean(self, value: Any) -> dict[str, str]:
        headers = super().clean(value) or {}
        if not isinstance(headers, dict):
            raise ValidationError(_('Headers are a JSON object, such as {"Authorization": "Bearer …"}.'))
        for name, text in headers.items():
            if not isinstance(text, str) or not sendable_header(name, text):
                raise ValidationError(
                    _("The header “%(name)s” needs a plain name and a value that is Latin text on one line."), params={"name": name}
                )
            low = name.lower()
            if any(low == ours or (ours.endswith("-") and low.startswith(ours)) for ours in self.reserved):
                raise ValidationError(_("The header “%(name)s” is set by us."), params={"name": name})
        return headers


def _is_sound(value: Any, levels: int) -> bool:
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= char <= "\udfff" for char in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return levels > 0 and all(_is_sound(part, levels - 1) for pair in value.items() for part in pair)
    return not isinstance(value, list) or (levels > 0 and all(_is_sound(part, levels - 1) for part in value))


def parse_numbers(text: str) -> dict[str, list[str]]:
    """The numbers a channel calls or writes from, out of a setting with a line for each: {region or "": [E.164, ...]}, in the order of the lines.

    "+1 415 555 0100" is for every region that has no line of its own, "CN: +86 571 8888 1234" for calls to that region (ISO 3166, two letters);
    under a region a national number is read as one of that region. A line that is neither raises ValueError with a sentence for people.
    """
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        region, colon, number = line.rpartition(":")
        region = region.strip().upper()
        if colon and region not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(
                _("“%(line)s”: write the region as two letters before the colon, such as CN: +86 571 8888 1234.") % {"line": line}
            )
        try:
            parsed = phonenumbers.parse(number, region or None)
        except phonenumbers.NumberParseException:
            parsed = None
        if parsed is None or not phonenumbers.is_possible_number(parsed):
            raise ValueError(
                _("“%(line)s” is not a phone number: write it with + and the country code, such as +1 415 555 0100.") % {"line": line}
            )
        e164 = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)
        if e164 not in found.setdefault(region, []):
            found[region].append(e164)
    return found


def number_for(numbers: Mapping[str, Sequence[str]], to: str) -> str:
    """Of `parse_numbers`, the number to use for a phone `to` (E.164): the first of its region, else the first for everywhere; "" where neither is."""
    try:
        parsed = phonenumbers.parse(to)
        region = phonenumbers.region_code_for_number(parsed) or phonenumbers.region_code_for_country_code(parsed.country_code or 0)
    except phonenumbers.NumberParseException:
        region = ""
    return next(iter([*numbers.get(region or "", ()), *numbers.get("", ())]), "")


def as_many(mentions: Sequence[str], room: int) -> tuple[list[str], list[str]]:
    """(the first of the mentions that fit `room` characters with a space between, the others). What calls people must never push an incident
    out of a message that names several: the room for it is kept beside `max_chars`."""
    used = -1
    for position, mention in enumerate(mentions):
        used += 1 + len(mention)
        if used > room:
            return list(mentions[:position]), list(mentions[position:])
    return list(mentions), []


class NumbersField(forms.CharField):
    """The setting `numbers`: see parse_numbers."""

    widget = forms.Textarea(attrs={"rows": 3})

    def __init__(self, **kwargs: Any) -> None:
        wording = {
            "label": gettext_lazy("our numbers"),
            "help_text": gettext_lazy(
                "A number in each line, such as +1 415 555 0100. Where another one is used for a region, its two letters before it: "
                "CN: +86 571 8888 1234. Contact cards for members hold exactly these."
            ),
        }
        super().__init__(**{"max_length": 4000, **wording, **kwargs})

    def clean(self, value: Any) -> str:
        text = str(super().clean(value))
        try:
            parse_numbers(text)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        return text


class Settings(forms.Form):
    """The settings of one channel of a kind, as a form: the console, the API and `check` all use it. A stored value is what it cleans to."""


# What reaches a person where nothing is heard of them: of a vendor that nobody thought of, too.
FALLBACKS: Mapping[str, tuple[str, ...]] = {"voice": ("sms", "email"), "sms": ("email",), "im": ("sms", "email")}


class Transport:
    """One kind of delivery. Instances are made per channel and shared by sender threads, so they keep no state of a message."""

    kind: ClassVar[str] = ""
    label: ClassVar[str | Promise] = ""
    # What people and rules ask for ("voice", "sms", "email", "im", ...) where several kinds do the same: vendors of one thing. "": the kind alone.
    family: ClassVar[str] = ""
    reach: ClassVar[Reach] = "group"  # what an address of it is; "group": the channel itself, and the address is ""
    person: ClassVar[bool] = False  # may be chosen to reach a person
    group: ClassVar[bool] = False  # may be chosen in a layer as a group channel
    # An address here may be one person's own (a private chat, a webhook that writes to one reader): models.Account, proved by a code sent to it.
    personal: ClassVar[bool] = False
    # How a group message names whom to @: ids of a mapping table, or phones in E.164, or both (whoever the table does not know by phone).
    mentions_by: ClassVar[tuple[Literal["table", "phone"], ...]] = ()
    format: ClassVar[Format] = "plain"
    limits: ClassVar[tuple[Limit, ...]] = ()
    concurrency: ClassVar[int] = 1  # requests at once to one address; 1 where messages of a chat must keep their order
    max_bytes: ClassVar[int | None] = None  # of the text, UTF-8; None: no limit of the provider's
    max_chars: ClassVar[int | None] = None
    # Tried for the same person when this one fails; a kind that does not say has those of its family (FALLBACKS).
    fallback_kinds: ClassVar[tuple[str, ...]] = ()
    default_texts: ClassVar[Mapping[str, Any]] = {}  # own texts instead of the format's, keyed as in templates_app
    suggested: ClassVar[str] = ""  # the setting, addresses one a line, that takes what `suggest` finds
    asks_each: ClassVar[bool] = (
        True  # where it `Polls`: about each message. False: what there is to hear comes all at once, whoever is asked about
    )
    listens: bool = False  # where it `Polls`: also without a message to ask about, for what comes on its own
    # No two accounts give messages the same id: what a channel hears may be of a message of another channel of its kind (of the same account, with the
    # same mailbox), and counts.
    unique_ids: ClassVar[bool] = False
    demo: ClassVar[bool] = False  # plays inside the product: nothing leaves the house
    secret: ClassVar[frozenset[str]] = frozenset()  # settings that are write-only in forms and cut from every error
    # Of `secret`, those that only check what is posted to us. They are never sent, so another server in the settings gets nothing of them; all
    # others have to be typed anew for it.
    unsent: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type[Settings]] = Settings

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.fallback_kinds and "fallback_kinds" not in vars(cls) and (cls.person or cls.personal) and not cls.demo:
            cls.fallback_kinds = FALLBACKS.get(cls.family, ())

    def __init__(self, settings: Mapping[str, Any], http: Http, callback_url: str = "") -> None:
        self.settings = settings
        self.http = http
        self.callback_url = callback_url  # where the provider reports to this channel (see Receives); "" where nobody can reach us
        http.hide(str(settings[name]) for name in self.secret if settings.get(name))

    def send(self, message: Message, address: str) -> Receipt:
        """Hand `message` to the provider for `address`; what is not accepted raises DeliveryError, success is never guessed."""
        raise NotImplementedError

    def holds(self, text: str) -> bool:
        """Whether a text that names several incidents goes out whole. For providers that count in another way than `max_bytes` and `max_chars`
        (parts of an SMS, bytes of JSON): what were cut off, its incidents would be recorded as told."""
        return True

    @classmethod
    def targets(cls, settings: Mapping[str, Any]) -> Sequence[str]:
        """The addresses that a group channel with these settings writes to, a message each; [""] is the channel itself."""
        return [""]

    @classmethod
    def limits_of(cls, settings: Mapping[str, Any]) -> tuple[Limit, ...]:
        """The provider's limits for a channel with these settings, where they decide how many requests a message takes."""
        return cls.limits

    @classmethod
    def check_account(cls, address: str) -> str:
        """Why `address` cannot be one person's own (a group has several readers), in a sentence; "" where it may be."""
        return "" if address else _("An address is needed.")

    @classmethod
    def moved(cls, settings: Mapping[str, Any], old: str, new: str) -> Mapping[str, Any]:
        """The settings with the address `old` replaced, after the provider said that it has become `new` (Receipt.moved)."""
        return settings

    @classmethod
    def measure(cls, text: str) -> str:
        """What a preview adds about the length of `text`, in a sentence (segments of an SMS); "" where there is nothing to say."""
        return ""

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> dict[str, list[str]]:
        """What is wrong with `settings`, as sentences per field ("__all__" for the whole); empty when they can be used."""
        form = cls.Settings(data=settings)
        return {name: [str(line) for line in lines] for name, lines in form.errors.items()}


@functools.cache
def transports() -> Mapping[str, type[Transport]]:
    """All kinds: {kind: class}, sorted. Two classes of one kind, or a module that cannot be imported, stop the program."""
    found: dict[str, type[Transport]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for item in vars(module).values():
            if not (isinstance(item, type) and issubclass(item, Transport) and item.__module__ == module.__name__ and item.kind):
                continue
            twin = found.setdefault(item.kind, item)
            if twin is not item:
                raise ImproperlyConfigured(
                    f"Two transports call themselves {item.kind!r}: {twin.__module__}.{twin.__name__} and {item.__module__}.{item.__name__}."
                )
    return dict(sorted(found.items()))


def get(kind: str) -> type[Transport]:
    """The transport of `kind`; LookupError with the kinds there are when nobody answers to it."""
    try:
        return transports()[kind]
    except KeyError:
        raise LookupError(f"There is no channel kind {kind!r}; there are: {', '.join(transports())}.") from None


# --- abilities that only some have ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Callback:
    """A provider's request to `/callback/<channel key>/...`, raw: signatures are checked over these bytes and nothing parsed from them."""

    method: str
    url: str  # the whole public address as the provider called it: BASE_URL, path and query; signatures cover it
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    received_at: datetime


@dataclass(frozen=True, slots=True)
class Command:
    """A person pressed something on a message: `verb` ("ack", "close", ...) by `account`, as the platform names that person."""

    verb: str
    account: str
    message_id: str = ""
    delivery_id: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """The provider says what became of a message: `state` is one of Delivery's (delivered, answered, failed), or "bounced": it failed, and the
    address takes nothing any more, so it is not used again until it is verified anew."""

    message_id: str
    state: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a callback said, and the answer the provider wants to it."""

    said: tuple[Command | Update, ...] = ()
    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


@runtime_checkable
class Receives(Protocol):
    def receive(self, callback: Callback) -> Heard:
        """What the provider says, after its signature was checked; PermissionError when it does not hold, ValueError when it makes no sense."""


@runtime_checkable
class Polls(Protocol):
    """For providers that cannot call us, or that report on a connection of ours (SMPP, SIP)."""

    def poll(self, message_ids: Sequence[str]) -> Sequence[Update]:
        """What became of messages that were sent and have no end yet (and of any others that this instance heard of); raises as `send` does."""


@runtime_checkable
class Updates(Protocol):
    def update(self, message: Message, address: str, message_id: str) -> Receipt:
        """Change a message that is out already; raises as `send` does."""


@runtime_checkable
class Suggests(Protocol):
    def suggest(self, text: str) -> Sequence[tuple[str, str]]:
        """Addresses at the provider that match `text`, as (address, label)."""
