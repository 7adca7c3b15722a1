"""Approved templates: vendors that send only what they have reviewed, a fixed text whose few variables we fill with words of a message.

What Alibaba Cloud and Tencent Cloud have in common: which words there are, how each is made fit to be a variable (no links, no signs that the
vendors forbid, no longer than they take), two groups of phones (the mainland of China and elsewhere, with a template each), and what carriers
report of a message. Pure; both transports use it and know nothing of each other."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, pgettext

from channels_app import http, transport
from channels_app.transport import DeliveryError, JsonField, Message, Receipt, Transport

Style = Literal["sms", "voice"]

# What a variable may be: the word, and what it says, for those who write the mapping.
WORDS: Final = {
    "title": gettext_lazy("what happened; several incidents: how many, and their titles"),
    "num": gettext_lazy("the incident's short code; several: all of them"),
    "severity": gettext_lazy("Critical, Warning or Info, as it is"),
    "severity_name": gettext_lazy("the severity in the language of the template"),
    "event": gettext_lazy("triggered, escalated, acknowledged, closed, in the language of the template"),
    "workspace": gettext_lazy("the workspace's name"),
    "time": gettext_lazy("when it began, in the reader's time zone: 2026-01-31 15:04"),
    "count": gettext_lazy("how many alerts, or incidents where there are several"),
    "name": gettext_lazy("the reader's name"),
    "text": gettext_lazy("the whole text of the notification template"),
    "path": gettext_lazy("the link's part after the host, for a template that ends with https://your-host/ and the variable"),
    "url": gettext_lazy("the whole link; only for templates that are not for the mainland"),
}
# Shortening starts anew at these when a vendor says that a variable is too long: what an account may use is nowhere to be asked.
SHORTER: Final = (35, 20, 12, 6)

_SPEC: Final = re.compile(r"([a-z_]+)(?::([1-9][0-9]{0,2}))?")
_LINK: Final = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
# Vendors take a host name or an IP address for a link, too: only the dots in it have to go. A number such as 93.5 keeps its own.
_DOT: Final = re.compile(r"(?<=[A-Za-z0-9_-])\.(?=[A-Za-z])")
_IP: Final = re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?!\d|\.\d)")
_MOST: Final = 5000  # characters that are looked at; no variable holds a tenth of it
_BRACKETS: Final = str.maketrans({**dict.fromkeys("[{【｛［〔「『《<＜", "("), **dict.fromkeys("]}】｝］〕」』》>＞", ")")})
_UNWANTED: Final = {"sms": frozenset("$¥￥^~`|\\&*★☆※√"), "voice": frozenset("#/:-%$¥￥^~`|\\&*★☆※√()（）\"'_=+@：")}
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")
_BREAK: Final = re.compile(r"[\s,;.!?，；。！？、)）][^\s,;.!?，；。！？、)）]*$")


class Settings(transport.Settings):
    """What both vendors ask for: templates for the two groups of phones, what fills their variables, how long a value may be."""

    official: str = ""  # hosts that end so are never spoken to in the clear
    named: bool = True  # variables have names; else they are numbered from 1
    starts: Mapping[str, Any] = {}  # what a new channel begins with: variables, variable_limit, api_base

    template = forms.CharField(
        label=gettext_lazy("template, mainland"),
        required=False,
        max_length=64,
        help_text=gettext_lazy("The code of the approved notification template for phones that begin with +86. Empty: none are reached."),
    )
    variables = JsonField(
        label=gettext_lazy("variables"),
        help_text=gettext_lazy(
            "What fills the variables of the template: title, num, severity, severity_name, event, workspace, time, count, name, text, path. "
            "A word takes a limit of its own like this: title:20."
        ),
    )
    code_template = forms.CharField(
        label=gettext_lazy("template for codes, mainland"),
        required=False,
        max_length=64,
        help_text=gettext_lazy(
            "The approved template for verification codes; its only variable is the code. Empty: no code is sent by this channel."
        ),
    )
    template_elsewhere = forms.CharField(
        label=gettext_lazy("template, elsewhere"),
        required=False,
        max_length=64,
        help_text=gettext_lazy("For phones outside of the mainland, Hong Kong, Macao and Taiwan included. Empty: none are reached."),
    )
    variables_elsewhere = JsonField(
        label=gettext_lazy("variables, elsewhere"),
        required=False,
        help_text=gettext_lazy("Empty: the same as for the mainland. Here url may be used, too."),
    )
    code_template_elsewhere = forms.CharField(label=gettext_lazy("template for codes, elsewhere"), required=False, max_length=64)
    variable_limit = forms.IntegerField(
        label=gettext_lazy("longest variable"),
        required=False,
        min_value=4,
        max_value=300,
        help_text=gettext_lazy(
            "Characters that the vendor takes in one variable; longer values are shortened. Should it refuse one as too long, shorter ones are tried."
        ),
    )
    api_base = forms.CharField(
        label=gettext_lazy("API address"), required=False, max_length=300, help_text=gettext_lazy("Only for another region or a proxy.")
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, value in self.starts.items():
            self.fields[name].initial = value

    def clean_variables(self) -> Any:
        return self._variables(self.cleaned_data["variables"], mainland=True)

    def clean_variables_elsewhere(self) -> Any:
        value = self.cleaned_data["variables_elsewhere"]
        return self._variables(value, mainland=False) if value else value

    def clean_variable_limit(self) -> int:
        return int(self.cleaned_data["variable_limit"] or self.starts["variable_limit"])

    def clean_api_base(self) -> str:
        text = str(self.cleaned_data["api_base"] or self.starts["api_base"]).strip().rstrip("/")
        parts = http.split_url(text)
        if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.path or parts.query:
            raise ValidationError(_("Enter the address without a path, such as %(example)s.") % {"example": self.starts["api_base"]})
        if parts.scheme == "http" and parts.hostname.endswith(self.official):
            raise ValidationError(_("The address must begin with https://."))
        return text

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        if not (cleaned.get("template") or cleaned.get("template_elsewhere")) and not {"template", "template_elsewhere"} & set(self.errors):
            self.add_error("template", _("Enter a template: for the mainland, for elsewhere, or both."))
        return cleaned

    def _variables(self, value: Any, *, mainland: bool) -> Any:
        if self.named and not (isinstance(value, dict) and all(_NAME.fullmatch(name) for name in value)):
            raise ValidationError(
                _('Write the names of the template\'s variables with our words, like this: {"title": "title", "level": "severity_name"}.')
            )
        if not self.named and not isinstance(value, list):
            raise ValidationError(
                _('Write our words in the order of the template\'s variables {1}, {2}, like this: ["title", "severity_name"].')
            )
        if len(value) > 20:
            raise ValidationError(_("A template has at most twenty variables."))
        for spec in value.values() if self.named else value:
            try:
                word, _own = parse(spec)
            except ValueError as error:
                raise ValidationError(str(error)) from None
            if word == "url" and mainland:
                raise ValidationError(
                    _(
                        "Carriers of the mainland refuse links in variables: end the template with https://your-host/ and a variable, and write path."
                    )
                )
        return value


class SignedSettings(Settings):
    """For SMS, which the mainland takes only with an approved signature: the fields `sign_name` and `sign_name_elsewhere` are the vendor's own."""

    def clean_sign_name(self) -> str:
        return str(self.cleaned_data["sign_name"] or "").strip("【】[] \t")

    def clean_sign_name_elsewhere(self) -> str:
        return str(self.cleaned_data["sign_name_elsewhere"] or "").strip("【】[] \t")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean()
        if (cleaned.get("template") or cleaned.get("code_template")) and not cleaned.get("sign_name") and "sign_name" not in self.errors:
            self.add_error("sign_name", _("SMS to the mainland need an approved signature: enter its name."))
        return cleaned


class Approved(Transport):
    """A transport whose messages are approved templates, sent to phones."""

    reach = "phone"
    person = True
    style: ClassVar[Style] = "sms"

    @classmethod
    def measure(cls, text: str) -> str:
        return _("Not sent as it stands: the approved template is, its variables filled from the incident.")


class TooLong(DeliveryError):
    """A variable is longer than the vendor takes for this account; a shorter one may go through."""


def parse(spec: Any) -> tuple[str, int | None]:
    """`"title"` or `"title:20"` as (word, own limit in characters or None); ValueError with a sentence for people."""
    found = _SPEC.fullmatch(spec.strip()) if isinstance(spec, str) else None
    if found is None or found[1] not in WORDS:
        raise ValueError(
            _("“%(spec)s” is none of our words. Write one of: %(words)s; with a limit of its own like this: title:20.")
            % {"spec": str(spec)[:60], "words": ", ".join(WORDS)}
        )
    return found[1], int(found[2]) if found[2] else None


def is_mainland(phone: str) -> bool:
    """Whether a phone (E.164) is of the mainland of China: no other country code begins with +86."""
    return phone.startswith("+86")


def choose(settings: Mapping[str, Any], address: str, event: str) -> tuple[str, Any, bool]:
    """The template for a phone, the variables as they were written in the settings, and whether it is the one for the mainland."""
    mainland = is_mainland(address)
    group = "" if mainland else "_elsewhere"
    template = settings.get(f"{'code_template' if event == 'code' else 'template'}{group}")
    if template:
        return str(template), settings.get(f"variables{group}") or settings["variables"], mainland
    if event == "code":
        text = _(
            "This channel has no template for verification codes: enter one in its settings, or verify the phone through another channel."
        )
    elif mainland:
        text = _(
            "This channel has no template for phones of the mainland (+86): enter one in its settings, or add a channel that reaches them."
        )
    else:
        text = _(
            "This channel has no template for phones outside of the mainland: enter one in its settings, or add a channel that reaches them."
        )
    raise DeliveryError(text, permanent=True)


def until_it_fits(limit: int, send: Callable[[int], Receipt]) -> Receipt:
    """`send(limit)`, and again with shorter ones as long as the vendor says that a variable is too long: a page is not refused for its size."""
    *longer, shortest = [limit, *(shorter for shorter in SHORTER if shorter < limit)]
    for characters in longer:
        try:
            return send(characters)
        except TooLong:
            continue
    return send(shortest)


def language(message: Message, mainland: bool) -> str:
    """The language of the words: templates for the mainland are Chinese, those for elsewhere are in the reader's language."""
    return "zh-hans" if mainland else message.language


def fill(specs: Sequence[str], message: Message, style: Style, *, limit: int, total: int, mainland: bool) -> tuple[list[str], list[str]]:
    """The values of the variables in the order of `specs`, and the words that had to be shortened.

    `limit`: of each value, in characters; `total`: of all together, for which the longest gives way. No value is empty, since vendors refuse
    that, and none holds a link, a sign outside of Unicode's basic plane or one that the vendors forbid (`url` and `path` excepted).
    """
    with translation.override(language(message, mainland)):
        words = _words(message)
        values, cut = [], []
        wanted = [parse(spec) for spec in specs]
        for word, own in wanted:
            room = min(own or limit, limit)
            if word in ("url", "path"):
                values.append(_link(word, message, room))
            else:
                full = clean(words[word], style)
                values.append(shorten(full, room, style))
                cut += [word] if values[-1] != full else []
        while sum(map(len, values)) > total:
            longest = max(range(len(values)), key=lambda index: len(values[index]))
            over = sum(map(len, values)) - total
            values[longest] = shorten(values[longest], max(len(values[longest]) - over, 1), style)
            cut.append(wanted[longest][0])
        nothing = _("none") if style == "voice" else "-"
    return [value or nothing for value in values], list(dict.fromkeys(cut))


def clean(text: str, style: Style) -> str:
    """`text` on one line without what vendors refuse in a variable: links, brackets, emoji and special signs. For a call also what is not spoken."""
    joint = " " if style == "voice" else "-"
    text = _LINK.sub(" ", unicodedata.normalize("NFC", text[:_MOST])).translate(_BRACKETS)
    text = _IP.sub(lambda found: found[0].replace(".", joint), _DOT.sub(joint, text))
    if style == "voice":
        text = text.replace("%", pgettext("spoken", " percent")).replace("％", pgettext("spoken", " percent"))
    unwanted = _UNWANTED[style]
    kept = (char if char not in unwanted and ord(char) < 0x10000 and _is_plain(char) else " " for char in text)
    return " ".join("".join(kept).split())


def shorten(text: str, limit: int, style: Style) -> str:
    """At most `limit` characters of `text`, cut where a word or a clause ends if one does in the last third; dots follow where they are not read out."""
    if len(text) <= limit:
        return text
    dots = "…" if style == "sms" and limit >= 10 else ""
    kept = text[: limit - len(dots)]
    if not text[len(kept)].isspace() and (found := _BREAK.search(kept)) and found.start() >= len(kept) * 2 // 3:
        kept = kept[: found.start()]
    return kept.rstrip(" ,;，；、(（") + dots


def shortened(cut: Sequence[str]) -> str:
    """One line on the words that had to be shortened; "" where none had to be."""
    return _("shortened: %(words)s") % {"words": ", ".join(cut)} if cut else ""


def verification_code(message: Message) -> str:
    """The code of a message that proves an address; nothing else is said with it, so that it cannot be mistaken."""
    code = str(message.context.get("code") or "")
    if not code:
        raise DeliveryError(_("There is no code in this message."), permanent=True)
    return code


def phone(address: str) -> str:
    """`address` as an E.164 number; DeliveryError where it is none."""
    if not re.fullmatch(r"\+[1-9][0-9]{6,14}", address):
        raise DeliveryError(
            _("This is not a phone number with its country code, such as +86 138 0000 0000: correct it in the member's contact details."),
            permanent=True,
        )
    return address


@dataclass(frozen=True, slots=True)
class No:
    """What a refusal code means: the sentence, whether another try of the same can help and after how many seconds, whose turn it is.

    `blocked`: for so long nothing reaches this phone; `left`: the message may have gone out all the same; `length`: a variable was too long.
    """

    text: Any
    permanent: bool = True
    wait: float | None = None
    blocked: float | None = None
    config: bool = False
    left: bool = False
    length: bool = False

    def error(self, code: str, vendor: str) -> DeliveryError:
        """The DeliveryError for it; `code` is the vendor's own, for those who search for it in the vendor's documentation."""
        return (TooLong if self.length else DeliveryError)(
            _("%(vendor)s refused the message: %(why)s (%(code)s).") % {"vendor": vendor, "why": self.text, "code": code},
            permanent=self.permanent, retry_after=self.wait, blocked=self.blocked, config=self.config, left=self.left,
        )  # fmt: skip


_CARRIERS: Final = {
    "UNDELIV": gettext_lazy("the phone is switched off, suspended or out of reach"),
    "EXPIRED": gettext_lazy("the phone was switched off or without a network for too long"),
    "REJECTD": gettext_lazy("the carrier refused it; the number may be on its block list"),
    "REJECT": gettext_lazy("the carrier refused it; the number may be on its block list"),
    "DELETED": gettext_lazy("the carrier deleted it"),
    "UNKNOWN": gettext_lazy("the carrier does not know what became of it"),
    "MBBLACK": gettext_lazy("the number is on a block list: its owner has to ask the carrier to take it off"),
    "MK:0000": gettext_lazy("the number does not exist"),
    "MK:0001": gettext_lazy("the number does not exist"),
    "MK:0005": gettext_lazy("the number is suspended; its bill may be unpaid"),
    "MK:0013": gettext_lazy("the number is suspended; its bill may be unpaid"),
    "MK:0010": gettext_lazy("the phone was switched off or without a network for too long"),
    "MK:0023": gettext_lazy("the phone is switched off"),
}


def carrier(code: str, said: str) -> str:
    """Why an SMS did not arrive, from the carrier's `code` and the words that came with it: a reason somebody can act on."""
    known = _CARRIERS.get(code.strip().upper())
    why = str(known) if known else clean(said, "sms")[:100] or _("the carrier gave no reason")
    return f"{why} ({code[:40]})" if code and code not in why else why


def _words(message: Message) -> Mapping[str, str]:
    incidents = message.incidents
    context = message.context
    several = len(incidents) > 1
    count = len(incidents) + _int(context.get("left")) if several else max(_int(context.get("alert_count")), 1)
    title = message.title or message.subject
    if several:
        titles = "; ".join(str(one.get("title") or "") for one in incidents)
        title = ngettext("%(count)d incident: %(titles)s", "%(count)d incidents: %(titles)s", count) % {"count": count, "titles": titles}
    workspace = context.get("workspace")
    reader = context.get("recipient")
    return {
        "title": title,
        "num": ", ".join(str(one.get("num") or "") for one in incidents) if several else message.num,
        "severity": message.severity,
        "severity_name": _severity(message.severity),
        "event": _event(message.event),
        "workspace": str(workspace.get("name") or "") if isinstance(workspace, Mapping) else "",
        "time": _time(message, str(reader.get("time_zone") or "") if isinstance(reader, Mapping) else ""),
        "count": str(count),
        "name": str(reader.get("name") or "") if isinstance(reader, Mapping) else "",
        "text": message.text,
    }


def _severity(severity: str) -> str:
    return {"Critical": _("Critical"), "Warning": _("Warning"), "Info": _("Info"), "Ok": _("Ok")}.get(severity, severity)


def _event(event: str) -> str:
    names = {
        "triggered": pgettext("event", "triggered"), "escalated": pgettext("event", "escalated"), "refire": pgettext("event", "still open"),
        "acknowledged": pgettext("event", "acknowledged"), "closed": pgettext("event", "closed"), "test": pgettext("event", "test"),
    }  # fmt: skip
    return names.get(event, event)


def _time(message: Message, zone: str) -> str:
    began = _int(message.context.get("start_time"))
    at = datetime.fromtimestamp(began, UTC) if began > 0 else message.sent_at
    try:
        at = at.astimezone(ZoneInfo(zone or "UTC"))
    except (KeyError, ValueError, OSError):  # a name that this machine's time zones do not have
        at = at.astimezone(UTC)
    return at.strftime("%Y-%m-%d %H:%M")


def _link(word: str, message: Message, room: int) -> str:
    """The first of the message's addresses that fits whole, the reader's own before the one without identity; half a link leads nowhere."""
    for url in (message.url, str(message.context.get("detail_url") or "")):
        parts = urlsplit(url)
        link = url if word == "url" else f"{parts.path}{'?' if parts.query else ''}{parts.query}".strip("/")
        if link and len(link) <= room:
            return link
    return ""


def _is_plain(char: str) -> bool:
    # Kept: letters, marks, digits, punctuation, currency and mathematical signs, spaces. Gone: controls, formats, emoji and other pictures.
    kind = unicodedata.category(char)
    return char in "\t\n " or (kind[0] in "LMNPZ" and not "\ufe00" <= char <= "\ufe0f") or kind in ("Sc", "Sm")


def _int(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
