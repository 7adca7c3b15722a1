"""Any other service through the Apprise library: one channel for one service address, such as `ntfys://topic` or `jsons://host/path`.

Apprise's plugins call `requests` by themselves, follow redirects and know local services too. So a plugin is let in only when the source of its
modules (read once, `_admit`) imports nothing that could reach the network or this machine in another way than `requests`, and then the names
`requests`, `open` and `AppriseAttachment` in these modules are replaced: by a door to `Http`, and by refusals. Every request of a plugin thus passes
the same guard, time (8 s over all of them), size and proxy as those of every other channel, and outside of a `send` there is no door at all. Who
changes what a plugin imports (a new version of the library) loses the plugin, not the guard. Plugins from files, configuration files,
attachments and templates from files are not loaded. Source of facts: the library's own code, 2.3."""

import ast
import contextvars
import functools
import inspect
import io
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import unquote

import requests
from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from requests.structures import CaseInsensitiveDict

from channels_app import http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport


@functools.cache
def _library() -> SimpleNamespace:
    """What we use of Apprise, loaded when the first address is looked at: it takes a quarter of a second, and every process of ours loads this file."""
    from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType, OverflowMode, PersistentStoreMode
    from apprise.conversion import convert_between
    from apprise.manager_plugins import NotificationManager
    from apprise.plugins import url_to_dict

    return SimpleNamespace(
        Apprise=Apprise,
        NotifyFormat=NotifyFormat,
        NotifyType=NotifyType,
        OverflowMode=OverflowMode,
        NotificationManager=NotificationManager,
        convert_between=convert_between,
        url_to_dict=url_to_dict,
        types={"Critical": NotifyType.FAILURE, "Warning": NotifyType.WARNING, "Info": NotifyType.INFO, "Ok": NotifyType.SUCCESS},
        # async_mode off: in this thread. secure_logging: what it logs has no secrets (and is cleaned again). Nothing is kept on disk, no
        # plugin is read from it.
        asset=AppriseAsset(
            async_mode=False,
            secure_logging=True,
            interpret_escapes=False,
            interpret_emojis=False,
            http_redirects=False,
            storage_mode=PersistentStoreMode.MEMORY,
            pem_autogen=False,
            pgp_autogen=False,
        ),
    )


_TAIL = 40  # characters for “… shortened” and its line
_TITLE = 36  # characters for our title and its markup, where a service has it in the body


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("service address"),
        max_length=2000,
        help_text=gettext_lazy(
            "One address as Apprise's documentation gives it for the service, such as ntfys://topic or gotifys://host/token. "
            "For several services make several channels."
        ),
    )

    def clean_url(self) -> str:
        url = str(self.cleaned_data["url"]).strip()
        if not url.isprintable() or any(char.isspace() for char in url):
            raise ValidationError(_("Enter one address, without spaces and line breaks."))
        try:
            _opened(url)
        except DeliveryError as error:
            raise ValidationError(error.text) from None
        return url


class AppriseUrl(Transport):
    kind = "apprise"
    label = gettext_lazy("Another service (Apprise)")
    reach = "group"
    group = True
    format = "apprise"
    limits = (Limit(1, 1),)
    concurrency = 1
    max_chars = 1_500  # what nearly all services take; a bundle must not be cut
    secret = frozenset({"url"})
    Settings = Settings

    def __init__(self, settings: Mapping[str, Any], http: transport.Http, callback_url: str = "") -> None:
        super().__init__(settings, http, callback_url)
        http.hide(_pieces(str(settings["url"])))
        try:
            self._takes: _Takes | None = _Takes.by(_opened(str(settings["url"])))
        except DeliveryError:
            self._takes = None  # `send` says why

    def holds(self, text: str) -> bool:
        return self._takes is None or self._takes.whole(text)

    def send(self, message: Message, address: str) -> Receipt:
        lib = _library()
        with _heard(self.http) as visit:
            plugin = _opened(str(self.settings["url"]))
            plugin.throttle = _no_wait  # the outbox keeps limits; a plugin would sleep
            if plugin.overflow_mode == lib.OverflowMode.UPSTREAM:
                # What grows over the service's length when it is escaped comes as a second message.
                plugin.overflow_mode = lib.OverflowMode.SPLIT
            name = str(plugin.service_name)
            takes = _Takes.by(plugin)
            text, detail = shortened(message, takes.chars)
            try:
                taken = plugin.notify(
                    body=takes.written(text),
                    # No title of others' words: services read titles with their own markup.
                    title=f"#{message.num} {message.severity}".strip("# ") if message.num else "Flashduty",
                    notify_type=lib.NotifyType.SUCCESS
                    if message.event == "closed"
                    else lib.types.get(message.severity, lib.NotifyType.INFO),
                    body_format=takes.format,
                )
            except Exception as error:
                # A plugin is foreign code: what it dies of is one kind of error here.
                visit.lines.append(type(error).__name__)
                taken = False
        if visit.error is not None or not taken:
            raise self._refusal(visit, name)
        if not visit.answers:
            raise DeliveryError(_("%(service)s was not called: nothing left.") % {"service": name}, permanent=True, config=True)
        return Receipt(detail="; ".join(filter(None, [name, detail])))

    def _refusal(self, visit: "_Visit", name: str) -> DeliveryError:
        """What happened as an error: the door's own, else the last answer's status, else what the plugin logged."""
        said = self.http.clean(" ".join(" ".join(visit.lines).split()))[:300]
        earlier = any(answer.status < 300 for answer in visit.answers)
        try:
            if visit.error is not None:
                raise visit.error
            if visit.answers:
                http.by_status(visit.answers[-1])
        except DeliveryError as error:
            # One address may name several receivers: the first of them may have the message.
            error.left = error.left or (earlier and not error.permanent)
            error.text = " ".join(filter(None, [f"{name}:", error.text, said]))
            error.args = (error.text,)
            return error
        if not visit.answers:
            return DeliveryError(
                _("%(service)s was not called: %(said)s") % {"service": name, "said": said or _("the address is not complete.")},
                permanent=True,
                config=True,
            )
        last = visit.answers[-1]
        return DeliveryError(
            _("%(service)s did not take the message: %(said)s (%(body)s)")
            % {"service": name, "said": said or _("no reason given"), "body": self.http.clean(last.quote())},
            permanent=False,
            left=not last.body.lstrip().startswith(b"{"),  # a JSON object that the plugin understood as a refusal is an answer
        )


@dataclass(frozen=True, slots=True)
class _Takes:
    """What a service takes as the text of one message; 0: as much as there is."""

    chars: int
    lines: int
    format: Any

    @classmethod
    def by(cls, plugin: Any) -> "_Takes":
        inside = plugin.title_maxlen <= 0 or plugin.overflow_amalgamate_title
        chars, lines = int(plugin.body_maxlen), int(plugin.body_max_line_count)
        if inside:
            chars, lines = chars and max(chars - _TITLE, 1), lines and max(lines - 1, 1)
        return cls(chars, lines, plugin.resolve_format(_library().NotifyFormat.TEXT))

    def written(self, text: str) -> str:
        """`text` as the service reads it: HTML and Markdown make it longer."""
        return str(_library().convert_between(_library().NotifyFormat.TEXT, self.format, text))

    def whole(self, text: str) -> bool:
        body = self.written(text)
        return (not self.chars or len(body) <= self.chars) and (not self.lines or body.count("\n") < self.lines)


def shortened(message: Message, size: int) -> tuple[str, str]:
    """The text within `size` characters, at the end of a line where that costs little and with the link to the rest, and a line on what was cut."""
    text = message.text or message.subject
    if size <= 0 or len(text) <= size:
        return text, ""
    with translation.override(message.language):
        rest = "\n" + _("… shortened")
        if message.url and len(message.url) + _TAIL < size // 2:
            rest += f"\n{message.url}"
    kept = text[: max(size - len(rest), 0)]
    line, _newline, last = kept.rpartition("\n")
    kept = line if line and len(last) < len(kept) // 4 else kept
    return (kept + rest)[:size], _("shortened to %(size)d characters") % {"size": size}


# --- which plugins ---------------------------------------------------------------------------------------------------------------


def _opened(url: str) -> Any:
    """Apprise's plugin for an address; DeliveryError with the reason and the remedy when there is none that may be used."""
    lib = _library()
    plain = lib.url_to_dict(url, secure_logging=True)
    scheme = str((plain or {}).get("schema") or url.partition("://")[0]).lower()[:30]
    if not scheme.replace("+", "").replace("-", "").isalnum() or scheme not in lib.NotificationManager():
        raise DeliveryError(
            _("Apprise knows no service for this address; it begins with the service's name, such as ntfys:// or gotifys://."),
            permanent=True,
            config=True,
        )
    cls = lib.NotificationManager()[scheme]
    if not _admit(cls):
        raise DeliveryError(
            _("“%(scheme)s://” is not allowed: it reaches this machine, or the network by a way that cannot be guarded here.")
            % {"scheme": scheme},
            permanent=True,
            config=True,
        )
    plugin = lib.Apprise.instantiate(url, asset=lib.asset) if plain else None
    if plugin is None:
        form = next(iter(getattr(cls, "templates", ())), "")
        raise DeliveryError(
            _("The address is not complete for %(service)s. Its form is %(form)s.") % {"service": str(cls.service_name), "form": form},
            permanent=True,
            config=True,
        )
    return plugin


_PURE = frozenset(
    [
        "__future__",
        "base64",
        "binascii",
        "calendar",
        "collections",
        "collections.abc",
        "contextlib",
        "copy",
        "dataclasses",
        "datetime",
        "enum",
        "functools",
        "gzip",
        "hashlib",
        "hmac",
        "html",
        "io",
        "itertools",
        "json",
        "json.decoder",
        "logging",
        "math",
        "os",
        "os.path",
        "random",
        "re",
        "requests",
        "requests.auth",
        "requests_oauthlib",
        "secrets",
        "string",
        "struct",
        "time",
        "typing",
        "urllib.parse",
        "uuid",
        "xml.sax.saxutils",
        "zoneinfo",
    ]
)
_PURE_TREES = ("email.", "cryptography.")
_OWN = frozenset(
    [
        "apprise.attachment.base",
        "apprise.attachment.memory",
        "apprise.apprise_attachment",
        "apprise.common",
        "apprise.compat.py39",
        "apprise.conversion",
        "apprise.exception",
        "apprise.locale",
        "apprise.logger",
        "apprise.plugins.base",
        "apprise.url",
        "apprise.utils.base64",
        "apprise.utils.cwe312",
        "apprise.utils.format",
        "apprise.utils.logic",
        "apprise.utils.parse",
        "apprise.utils.sanitize",
        "apprise.utils.templates",
        "apprise.utils.time",
        "apprise.utils.xml",
    ]
)
_OF = {
    "os": {"path", "linesep", "urandom", "sep"},
    "os.path": {"basename", "splitext", "join", "isfile", "exists"},
    "gzip": {"compress"},
    "io": {"BytesIO", "StringIO"},
    "requests.auth": {"HTTPBasicAuth", "HTTPDigestAuth"},
    "requests_oauthlib": {"OAuth1"},  # signs a request; its session would send one
    "apprise": {"exception", "__title__", "__version__"},
}
_CALLS = {"eval", "exec", "compile", "__import__", "getattr_static", "sleep", "globals", "vars"}


@functools.cache
def _admit(cls: type) -> bool:
    """Whether every way out of a plugin is a `requests` that can be replaced; if so, it is replaced now."""
    start = sys.modules.get(cls.__module__)
    if start is None or not start.__name__.startswith("apprise.plugins."):
        return False  # a plugin that somebody decorated or loaded from a file
    modules: dict[str, ModuleType] = {}
    try:
        if not _is_pure(start, modules) or not any(hasattr(module, "requests") for module in modules.values()):
            return False
    except (OSError, TypeError, SyntaxError, KeyError):  # no source to read
        return False
    for module in modules.values():
        for name, instead in (("requests", _REQUESTS), ("AppriseAttachment", _NoAttachment)):
            if hasattr(module, name):
                setattr(module, name, instead)
        module.open = _refuse  # type: ignore[attr-defined]
    return True


def _is_pure(module: ModuleType, seen: dict[str, ModuleType]) -> bool:
    """Whether a plugin's module, and those of the plugins it builds on (gathered in `seen`), hold to the lists above."""
    if module.__name__ in seen:
        return True
    seen[module.__name__] = module
    tree = ast.parse(inspect.getsource(module))
    late = {id(node) for outer in ast.walk(tree) if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)) for node in ast.walk(outer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            if not all(_is_allowed(alias.name) and alias.asname is None for alias in node.names):
                return False
            if id(node) in late and any(alias.name.startswith("requests") for alias in node.names):
                return False  # it would be the real one again
        elif isinstance(node, ast.ImportFrom):
            source = _source(module, node)
            names = {alias.name for alias in node.names}
            if source in _OF and not names <= _OF[source]:
                return False
            if source == "requests" or "*" in names:
                return False  # a name of its own would not be replaced
            if source == "apprise.plugins":
                if not all(_is_pure(sys.modules[f"{source}.{name}"], seen) for name in names):
                    return False
            elif source.startswith("apprise.plugins.") and source not in _OWN:
                if not _is_pure(sys.modules[source], seen):
                    return False
            elif not (_is_allowed(source) or source in _OWN or source == "apprise"):
                return False
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "requests" and not hasattr(_REQUESTS, node.attr):
                return False
            if node.value.id in _OF and node.attr not in _OF[node.value.id]:
                return False
            if node.attr == "sleep":
                return False
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _CALLS:
            return False
    return True


def _is_allowed(name: str) -> bool:
    return name in _PURE or f"{name}.".startswith(_PURE_TREES)


def _source(module: ModuleType, node: ast.ImportFrom) -> str:
    """The absolute name of the module that is imported from."""
    if not node.level:
        return node.module or ""
    package = str(module.__package__).split(".")
    return ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))


# --- the door ----------------------------------------------------------------------------------------------------------------------


@dataclass
class _Visit:
    """What one `send` is about: the door it may use, until when, and what came of it."""

    door: transport.Http
    until: float  # of the monotonic clock
    answers: list[http.Answer] = field(default_factory=list)
    error: DeliveryError | None = None
    lines: list[str] = field(default_factory=list)


_visit: contextvars.ContextVar[_Visit | None] = contextvars.ContextVar("apprise_visit", default=None)


class _heard:
    """Within it, this thread's plugins have a door, and what Apprise logs is gathered."""

    def __init__(self, door: transport.Http) -> None:
        self.visit = _Visit(door, time.monotonic() + http.TOTAL_SECONDS)

    def __enter__(self) -> _Visit:
        self.token = _visit.set(self.visit)
        return self.visit

    def __exit__(self, *args: object) -> None:
        _visit.reset(self.token)


def _request(method: str, url: str, **wanted: Any) -> requests.Response:
    """`requests.request` for plugins: through the visit's Http, no redirects, TLS always verified, in what is left of the visit's time."""
    visit = _visit.get()
    if visit is None:
        raise requests.ConnectionError("there is no way out but within a delivery")
    known = {name: wanted.get(name) for name in ("params", "data", "headers", "cookies", "files", "auth", "json")}
    prepared = requests.Request(method, url, **known).prepare()
    names = {str(name): _text(value) for name, value in prepared.headers.items()}
    for name in ("Content-Length", "Transfer-Encoding"):
        names.pop(name, None)
    try:
        seconds = visit.until - time.monotonic()
        if seconds <= 0:
            raise DeliveryError(_("The service did not finish within %(seconds)g s.") % {"seconds": http.TOTAL_SECONDS}, permanent=False)
        answer = visit.door.request(
            str(prepared.method), str(prepared.url), data=_whole(prepared.body), headers=names, timeout=seconds, status_only=True
        )  # fmt: skip
    except DeliveryError as error:
        visit.error = error
        raise requests.ConnectionError(error.text) from None
    visit.error = None
    visit.answers.append(answer)
    response = requests.Response()
    response.status_code, response.url, response.request = answer.status, str(prepared.url), prepared
    response.headers = CaseInsensitiveDict(answer.headers)
    response.encoding = requests.utils.get_encoding_from_headers(response.headers)
    response.raw = io.BytesIO(answer.body)
    return response


def _whole(body: Any) -> bytes | str | None:
    if body is None or isinstance(body, (bytes, str)):
        return body
    pieces: Iterator[Any] = iter([body.read()]) if hasattr(body, "read") else iter(body)
    return b"".join(piece if isinstance(piece, bytes) else str(piece).encode() for piece in pieces)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise OSError("files and attachments are not used")


class _NoAttachment:
    """A list of attachments that stays empty: a template or a picture in an address is a file of this machine, or a download beside the door."""

    def __init__(self, paths: Any = None, *args: Any, **kwargs: Any) -> None:
        if paths:
            _refuse()

    def add(self, *args: Any, **kwargs: Any) -> bool:
        return bool(_refuse())

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())


def _no_wait(*args: Any, **kwargs: Any) -> None:
    """Instead of a plugin's own pauses."""


_VERBS = {verb: functools.partial(_request, verb.upper()) for verb in ("get", "post", "put", "patch", "delete", "head", "options")}
# What plugins find under the name `requests`: what is not here does not exist for them.
_REQUESTS = SimpleNamespace(
    request=_request, **_VERBS, codes=requests.codes, exceptions=requests.exceptions, auth=requests.auth, Response=requests.Response,
    RequestException=requests.RequestException, ConnectionError=requests.ConnectionError, HTTPError=requests.HTTPError, Timeout=requests.Timeout,
)  # fmt: skip


class _Ear(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        visit = _visit.get()
        if visit is not None:
            visit.lines.append(record.getMessage()[:300])


# What plugins log belongs to the delivery it is about and not to the program's log: it may quote messages and addresses.
_log = logging.getLogger("apprise")
_log.setLevel(logging.WARNING)
_log.addHandler(_Ear())
_log.propagate = False


def _pieces(url: str) -> set[str]:
    """The parts of an address that may be secret, as written and decoded."""
    rest = url.partition("://")[2]
    for sign in "/?&=@:#,":
        rest = rest.replace(sign, " ")
    return {form for piece in rest.split() if len(piece) >= 6 for form in (piece, unquote(piece))}
