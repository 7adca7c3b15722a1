"""Console pages of channels: by group, each with a form made from its transport's settings, to be tried out before it is saved."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.formats import localize
from django.utils.html import conditional_escape, format_html
from django.utils.timezone import localtime
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop, ngettext
from django.views.decorators.http import require_POST
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminEmailInputWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminTextareaWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)  # fmt: skip

from channels_app import addresses, book, limits, transport
from channels_app.http import Http
from channels_app.models import Channel, ChannelHealth, Delivery
from flashduty.console import testing
from flashduty.console.base import (
    ChoicesField,
    JsonField,
    LinesField,
    Shown,
    StatusFilter,
    VisibleAdmin,
    VisibleForm,
    VisibleRelatedFilter,
    asking,
    deny_unless,
    log,
)  # fmt: skip
from flashduty.models import Classic, Hook, ImApp, ImBot, Play
from mapping import voice_regions
from mapping.clock import db_now

PREFIX = "set_"
CLEAR = "clear_"
NO_FALLBACK = "-"
# Where a stored secret would be sent to: when one of these changes, the secret has to be typed again.
PLACES = frozenset({"host", "port", "security", "tls", "protocol", "url", "server", "endpoint", "api_base"})


def places_of(secret: str, known: Iterable[str]) -> set[str]:
    """The fields, among `known`, that say where a secret goes: those that begin as it does, as `bounce_host` with `bounce_password`."""
    found: dict[str, set[str]] = {}
    for name in known:
        for place in PLACES:
            if name == place or name.endswith(f"_{place}"):
                found.setdefault(name.removesuffix(place), set()).add(name)
    nearest = max((prefix for prefix in found if secret.startswith(prefix)), key=len, default="")
    return found.get(nearest, set())


# How the guide calls what there is, in its order.
SECTIONS = {
    "im_bot": gettext_lazy("IM bots"),
    "im_app": gettext_lazy("IM apps"),
    "voice": gettext_lazy("Voice"),
    "sms": gettext_lazy("SMS"),
    "email": gettext_lazy("E-mail"),
    "webhook": gettext_lazy("Webhook"),
    "other": gettext_lazy("Other services"),
    "play": gettext_lazy("Sandbox"),
}
_GROUPS: dict[str, type[Channel]] = {
    "im_bot": ImBot, "im_app": ImApp, "voice": Classic, "sms": Classic, "email": Classic, "webhook": Hook, "other": Hook, "play": Play,
}  # fmt: skip


def section_of(style: type[transport.Transport]) -> str:
    """The key of SECTIONS under which a kind is offered, from what it can do."""
    if style.demo:
        return "play"
    if style.format == "webhook":
        return "webhook"
    if style.family in ("voice", "sms", "email"):
        return style.family
    if style.family in ("im", "app", "push"):
        return "im_bot" if style.group else "im_app"
    return "other"


def group_of(style: type[transport.Transport]) -> type[Channel]:
    """The menu group of a transport."""
    return _GROUPS[section_of(style)]


def kinds_of(group: type[Channel]) -> list[str]:
    """The kinds of a menu group."""
    return [kind for kind, style in transport.transports().items() if group_of(style) is group]


def about(style: type[transport.Transport]) -> str:
    """What a kind does, in one line made of what its transport declares."""
    words = []
    if style.demo:
        words.append(_("plays it on the sandbox page; nothing leaves this installation"))
    elif style.format == "webhook":
        words.append(_("sends each event to an address of yours"))
    elif style.group and not style.family:
        words.append(_("hands messages on to one of many other services"))
    elif style.group:
        words.append(_("writes to group chats and to single persons") if style.personal else _("writes to a group chat"))
    elif style.family in ("voice", "sms", "email"):
        words.append(
            {"voice": _("calls people"), "sms": _("writes to people's phones"), "email": _("writes to people's mailboxes")}[style.family]
        )
    else:
        words.append(_("reaches people"))
    calls: dict[tuple[str, ...], str] = {
        ("table",): _("can @ people by a mapping table"),
        ("phone",): _("can @ people by their phone numbers"),
    }
    if style.mentions_by:
        words.append(calls.get(tuple(style.mentions_by), _("can @ people by a mapping table or their phone numbers")))
    if issubclass(style, transport.Receives | transport.Polls):
        words.append(_("tells what became of each message"))
    text = "; ".join(words)
    return text[:1].upper() + text[1:] + "."


def limit_words(found: Sequence[transport.Limit], style: type[transport.Transport]) -> str:
    """Limits as people say them, such as "at most 95 in 1 minute and 4 in 1 second to each chat"; "" where there are none."""
    spans = {1: _("a second"), 60: _("a minute"), 3600: _("an hour"), 86400: _("a day")}
    other = _("in %(seconds)g s")
    place = {"phone": _("to each phone"), "email": _("to each mailbox")}.get(style.reach, _("to each chat"))
    words = []
    for scope, where in (("address", place), ("channel", _("altogether"))):
        counts = [
            f"{limit.count} {spans.get(int(limit.seconds)) or other % {'seconds': limit.seconds}}"
            for limit in found
            if limit.scope == scope
        ]
        if counts:
            words.append(f"{', '.join(counts)} {where}")
    return "; ".join(words)


def page_of(channel: Channel) -> str:
    """The address of a channel's page in the console."""
    style = transport.transports().get(channel.kind)
    group = group_of(style) if style else ImBot
    return reverse(f"admin:{group._meta.app_label}_{group._meta.model_name}_change", args=[channel.pk])


# ---- the form of a channel -----------------------------------------------------------------------------------------------------------


class SecretText(UnfoldAdminPasswordWidget):
    """Write-only: what is stored never comes back to the page."""

    def __init__(self, stored: bool) -> None:
        super().__init__(attrs={"autocomplete": "new-password", **({"placeholder": _("unchanged")} if stored else {})}, render_value=False)


class SecretArea(UnfoldAdminTextareaWidget):
    """Write-only, of several lines."""

    def __init__(self, stored: bool) -> None:
        super().__init__(attrs={"rows": 4, "spellcheck": "false", **({"placeholder": _("unchanged")} if stored else {})})

    def format_value(self, value: Any) -> str:
        return ""


class ChannelForm(VisibleForm):
    """A channel's own fields; `channel_form` adds those of its transport's Settings. `typed`: of those, what is valid by itself."""

    typed: dict[str, Any]
    style: ClassVar[type[transport.Transport]] = transport.Transport

    fallback_kinds = ChoicesField(label=gettext_lazy("fallback"), required=False)
    limits = JsonField(
        label=gettext_lazy("limits"), rows=2, help_text=gettext_lazy('Own limits instead of the provider\'s: {"per_second": 5, "per_minute": 100}.')
    )  # fmt: skip
    allowed_hosts = LinesField(
        label=gettext_lazy("allowed private addresses"),
        help_text=gettext_lazy("host:port pairs in private ranges that this channel may reach, one a line, such as 10.0.0.5:8443."),
    )
    regions = LinesField(
        label=gettext_lazy("regions"),
        help_text=gettext_lazy(
            "The regions of the phones that this channel is for, two letters a line, such as CN. None: all of them, after the channels that name one."
        ),
    )
    proxy = forms.CharField(
        label=gettext_lazy("proxy"), required=False, help_text=gettext_lazy("Such as http://user:password@proxy.example.com:3128.")
    )
    clear_proxy = forms.BooleanField(label=gettext_lazy("remove the proxy"), required=False, widget=UnfoldBooleanSwitchWidget())

    class Meta:
        model = Channel
        fields = (
            "name", "team", "status", "position", "regions", "weight", "monthly_quota", "fallback_kinds", "fallback_channel", "limits", "proxy",
            "ca_bundle", "allowed_hosts",
        )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.instance.kind = self.instance.kind or self.style.kind
        stored = self.instance.settings if self.instance.pk else {}
        if "fallback_kinds" in self.fields:
            self._offer_fallbacks(self.fields["fallback_kinds"])
            if self.instance.fallback_kinds == []:
                self.initial["fallback_kinds"] = [NO_FALLBACK]
        if "limits" in self.fields and (declared := limit_words(self.style.limits, self.style)):
            said = conditional_escape(_("What the provider takes: %(limits)s.") % {"limits": declared})
            self.fields["limits"].help_text = format_html("{} {}", said, self.fields["limits"].help_text)
        if "regions" in self.fields:
            self.fields["regions"].widget.attrs["rows"] = 2
        if "weight" in self.fields:
            self.fields["weight"].required = False
        if "proxy" in self.fields:
            self.fields["proxy"].widget = SecretText(bool(self.instance.proxy))
            self.initial["proxy"] = ""
        for name, field in self.style.Settings.base_fields.items():
            shown = self.fields.get(PREFIX + name)
            if shown is None:
                continue
            if name in self.style.secret:
                kept = stored.get(name) not in (None, "", {}, [])
                wide = isinstance(field.widget, forms.Textarea)
                shown.widget = SecretArea(kept) if wide else SecretText(kept)
                shown.widget.is_required = False
                shown.required = field.required and not kept
                if not kept and CLEAR + name in self.fields:
                    del self.fields[CLEAR + name]
            elif name in stored:
                self.initial[PREFIX + name] = stored[name]

    def as_typed(self) -> Channel:
        """The channel with what stands in the form, although something else in it may be wrong; never to be saved."""
        self.instance.settings = self.typed
        return self.instance

    def ask_again(self) -> None:
        """Of a form that comes back with errors: a secret that was sent with it is not on the page, as nothing shows one; says so beside it."""
        for name, field in self.fields.items():
            if isinstance(field.widget, SecretText | SecretArea) and name not in self.errors and self[name].data:
                self.add_error(name, _("What you typed was not saved and is never shown: enter it again."))

    def _offer_fallbacks(self, field: Any) -> None:
        """Families, and what is chosen already; with what happens where nothing is."""
        kept = [kind for kind in self.instance.fallback_kinds or () if isinstance(kind, str)]
        mine = self.style.family or self.style.kind
        families = [
            name
            for name in addresses.FAMILIES
            if name != mine and name in {addresses.family(kind) for kind in addresses.kinds_for_people()}
        ]
        field.choices = [(name, addresses.label(name)) for name in dict.fromkeys([*families, *kept])]
        if self.style.fallback_kinds:
            field.choices = [*field.choices, (NO_FALLBACK, _("no fallback"))]
        otherwise = ", ".join(addresses.label(name) for name in self.style.fallback_kinds)
        words = _("Tried for the same person, at once, when this channel fails.")
        more = _("None chosen: %(kinds)s.") % {"kinds": otherwise} if otherwise else _("None chosen: nothing else is tried.")
        field.help_text = conditional_escape(f"{words} {more}")

    def clean_fallback_kinds(self) -> list[str] | None:
        """None: what the kind has by itself; an empty list: nothing at all."""
        chosen = self.cleaned_data["fallback_kinds"]
        if NO_FALLBACK not in chosen:
            return chosen or None
        if chosen != [NO_FALLBACK]:
            raise ValidationError(_("Choose either what is tried, or no fallback."))
        return []

    def clean_weight(self) -> int:
        return self.cleaned_data["weight"] or 0

    def clean_regions(self) -> list[str]:
        regions = list(dict.fromkeys(region.upper() for line in self.cleaned_data["regions"] for region in line.split()))
        for region in regions:
            if not any(region in row.regions for row in voice_regions.table()):
                raise ValidationError(_("“%(region)s” is not a region: write two letters, such as CN or US.") % {"region": region})
        return regions

    def clean_proxy(self) -> str:
        if self.data.get(CLEAR + "proxy"):
            return ""
        return str(self.cleaned_data["proxy"]).strip() or self.instance.proxy

    def clean_allowed_hosts(self) -> list[str]:
        hosts = self.cleaned_data["allowed_hosts"]
        for host in hosts:
            if Http.check(allowed_hosts=[host]):
                raise ValidationError(_("“%(host)s” must be written as host:port, such as 10.0.0.5:8443.") % {"host": host})
        return hosts

    def clean(self) -> Any:
        data = super().clean()
        known = self.style.Settings.base_fields
        if not any(PREFIX + name in self.fields for name in known) and known:
            return data
        before: dict[str, Any] = self.instance.settings if self.instance.pk else {}
        values: dict[str, Any] = {}
        kept: list[str] = []
        for name in known:
            typed = self.cleaned_data.get(PREFIX + name)
            if name in self.style.secret and typed in (None, "", {}, []):
                typed = None if self.cleaned_data.get(CLEAR + name) else before.get(name)
                if typed not in (None, ""):
                    kept.append(name)
            values[name] = typed
        inner = self.style.Settings(data={name: value for name, value in values.items() if value is not None})
        for name, lines in inner.errors.items():
            target = PREFIX + name if PREFIX + name in self.fields else None
            if target is None or target not in self.errors:
                for line in lines:
                    self.add_error(target, line)
        for name in sorted(set(kept) - self.style.unsent):
            if any((values[place] or "") != (before.get(place) or "") for place in places_of(name, known) - set(kept)):
                self.add_error(PREFIX + name, _("It would be sent to another place than before: enter it again."))
        self.typed = inner.cleaned_data
        kind = self.style.kind
        # The instance has its old status until this is over. One that was switched off may have had its address taken since.
        is_new = not self.errors and (self.instance.status != "enabled" or book.place_of(kind, self.typed) != book.place_of(kind, before))
        if is_new and self.cleaned_data.get("status") == "enabled" and book.is_taken(kind, self.typed, besides=self.instance.pk):
            self.add_error(
                PREFIX + "url",
                _(
                    "Another channel writes to this address already, and the provider's limits hold for both together: use that one, or disable it."
                ),
            )
        if not self.errors:
            self.instance.settings = self.typed
        return data


_WIDGETS: list[tuple[type[forms.Widget], type[forms.Widget]]] = [
    (forms.Textarea, UnfoldAdminTextareaWidget),
    (forms.Select, UnfoldAdminSelectWidget),
    (forms.CheckboxInput, UnfoldBooleanSwitchWidget),
    (forms.NumberInput, UnfoldAdminIntegerFieldWidget),
    (forms.EmailInput, UnfoldAdminEmailInputWidget),
    (forms.TextInput, UnfoldAdminTextInputWidget),
]


def channel_form(kind: str) -> type[ChannelForm]:
    """The form class of a kind: a channel's own fields and those of the transport's Settings, secrets write-only."""
    style = transport.get(kind)
    fields: dict[str, Any] = {"style": style}
    for name, original in style.Settings().fields.items():
        field = original
        for plain, ours in _WIDGETS:
            if isinstance(field.widget, plain):
                choices = getattr(field.widget, "choices", None)
                # Django's ten lines are more than anything here needs at first; a field that wants so many can be pulled open.
                attrs = field.widget.attrs | (
                    {"rows": 4} if plain is forms.Textarea and str(field.widget.attrs.get("rows")) == "10" else {}
                )
                field.widget = ours(attrs=attrs)
                if choices is not None:
                    field.widget.choices = choices
                break
        fields[PREFIX + name] = field
        if name in style.secret and not original.required:
            fields[CLEAR + name] = forms.BooleanField(
                label=_("remove: %(field)s") % {"field": original.label}, required=False, widget=UnfoldBooleanSwitchWidget()
            )
    return type("KindForm", (ChannelForm,), fields)


# ---- channels ------------------------------------------------------------------------------------------------------------------------


def _is_own(channel: Channel | None) -> bool:
    """Whether it is somebody's own webhook, which writes to them alone."""
    return channel is not None and channel.owner_id is not None


class ChannelAdmin(VisibleAdmin):
    """One menu group of channels."""

    form = ChannelForm
    list_display = ("name", "shown_kind", "team", "health_state", "last_success", "position", "status")
    list_select_related = ("team", "health")
    list_filter = (StatusFilter, "kind", ("team", VisibleRelatedFilter))
    search_fields = ("name",)
    readonly_fields = ("shown_kind", "shown_settings", "health_words", "last_success", "callback_url", "this_month", "owner")
    change_form_template = "admin/channels_app/channel/change_form.html"

    class Media:
        js = ("web/console.js",)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).filter(kind__in=kinds_of(self.model))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return bool(kinds_of(self.model)) and super().has_add_permission(request)

    def _kind(self, request: HttpRequest, obj: Any) -> str:
        if obj is not None:
            return obj.kind
        wanted = request.GET.get("kind", "")
        known = kinds_of(self.model)
        return wanted if wanted in known else (known[0] if known else "")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        kind = self._kind(request, obj)
        # A webhook of one's own is only ever pointed somewhere on its owner's page, where the new place has to prove itself.
        kwargs["form"] = type("OwnForm", (ChannelForm,), {"style": transport.get(kind)}) if _is_own(obj) else channel_form(kind)
        return super().get_form(request, obj, change, **kwargs)

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        style = transport.get(self._kind(request, obj))
        basics: list[Any] = ["shown_kind", "name", ("team", "status"), "position"]
        if obj is not None and not self.has_change_permission(request, obj):
            return ((None, {"fields": (*basics, "shown_settings", "health_state", "last_success")}),)
        inner: list[str] = []
        if _is_own(obj):
            basics = ["shown_kind", "name", "owner", "status"]
            inner = ["shown_settings"]
        # The address of an API is for the few whom the usual one does not suit.
        for name, field in () if inner else sorted(style.Settings.base_fields.items(), key=lambda item: item[0] == "api_base"):
            inner.append(PREFIX + name)
            if name in style.secret and not field.required and obj is not None and obj.settings.get(name):
                inner.append(CLEAR + name)
        after = [*(["fallback_kinds"] if style.person or style.personal else []), *(["fallback_channel"] if style.group else [])]
        network = ["limits"] if style.demo else ["limits", "monthly_quota"]
        if obj is not None and not style.demo:
            network.append("this_month")
        if request.user.is_administrator:  # type: ignore[union-attr]
            # Whoever sets these decides what our network lets out, and who reads it on the way.
            network += ["allowed_hosts", "proxy", *(["clear_proxy"] if obj is not None and obj.proxy else []), "ca_bundle"]
        sets: list[Any] = [(None, {"fields": basics})]
        if inner:
            sets.append((style.label, {"fields": inner}))
        if issubclass(style, transport.Receives):
            sets.append((gettext_lazy("Where the provider reports"), {"fields": ["callback_url"]}))
        if addresses.has_vendors(style.kind) and not style.demo:
            share = ["weight", "regions"] if style.reach == "phone" else ["weight"]
            sets.append((gettext_lazy("Beside other vendors"), {"fields": [tuple(share)]}))
        sets.append((gettext_lazy("When it fails"), {"fields": after}))
        # Closed, as hardly anybody needs it; Django opens it where something in it is wrong.
        sets.append((gettext_lazy("Limits and network"), {"fields": network, "classes": ["collapse"]}))
        if obj is not None:
            sets.append((gettext_lazy("State"), {"fields": ["health_words", "last_success"]}))
        return sets

    def story_of(self, obj: Any) -> Shown:
        found = super().story_of(obj)
        if obj.fallback_kinds == []:  # not the same as None, which is what the kind has by itself
            found[str(obj._meta.get_field("fallback_kinds").verbose_name)] = ([], _("no fallback"))
        return found

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "fallback_channel":
            groups = [kind for kind, style in transport.transports().items() if style.group]
            rows = Channel.objects.filter(Channel.for_groups_q(request.user), kind__in=groups).exclude(status="deleted")
            kwargs["queryset"] = rows.exclude(pk=request.resolver_match.kwargs.get("object_id") or 0) if request.resolver_match else rows
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        deny_unless(self.has_add_permission(request))
        known = kinds_of(self.model)
        if request.GET.get("kind") in known:
            return super().add_view(request, form_url, extra_context)
        if len(known) == 1 and request.method == "GET":
            return HttpResponseRedirect(f"{request.path}?kind={known[0]}")
        context = self.admin_site.each_context(request) | {
            "title": _("Which kind of channel?"), "opts": self.opts, "sections": self._sections(),
        }  # fmt: skip
        return TemplateResponse(request, "admin/channels_app/channel/kinds.html", context)

    def _sections(self) -> list[dict[str, Any]]:
        """All kinds as the guide groups them; those of this menu group come first."""
        found: dict[str, dict[str, Any]] = {}
        for name in sorted(SECTIONS, key=lambda name: _GROUPS[name] is not self.model):
            found[name] = {"title": SECTIONS[name], "mine": _GROUPS[name] is self.model, "kinds": []}
        for kind, style in transport.transports().items():
            name = section_of(style)
            opts = _GROUPS[name]._meta
            link = reverse(f"admin:{opts.app_label}_{opts.model_name}_add")
            found[name]["kinds"].append({"label": style.label, "about": about(style), "link": f"{link}?kind={kind}"})
        for section in found.values():
            section["kinds"].sort(key=lambda item: str(item["label"]))
        return [section for section in found.values() if section["kinds"]]

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        style = transport.get(self._kind(request, obj))
        form = context["adminform"].form
        if form.errors:
            form.ask_again()
        if obj is not None:
            rows = Delivery.objects.filter(channel=obj.pk, notification__event="test").select_related("member").order_by("-id")
            context["tests"] = rows[:5]
            context["may_test"] = testing.may_test(request.user, obj)
        if self._may_try(request, obj):
            ids, query = ([obj.pk], "") if obj is not None else ([], f"?kind={style.kind}")
            context["try_url"] = reverse(self._name("try_saved" if ids else "try"), args=ids) + query
            if issubclass(style, transport.Suggests):
                context["chats_url"] = reverse(self._name("chats_saved" if ids else "chats"), args=ids) + query
                context["chats_field"] = f"id_{PREFIX}{style.suggested}"
            if testing.takes_address(style):
                context["to"] = testing.own_address(style, request.user)
                context["to_kind"] = style.reach
        return super().render_change_form(request, context, *args, **kwargs)

    def _name(self, view: str) -> str:
        return f"admin:{self.opts.app_label}_{self.opts.model_name}_{view}"

    def get_urls(self) -> list[URLPattern]:
        views = (
            ("<int:pk>/test/", "test", self.test), ("try/", "try", self.try_out), ("<int:pk>/try/", "try_saved", self.try_out),
            ("chats/", "chats", self.chats), ("<int:pk>/chats/", "chats_saved", self.chats),
        )  # fmt: skip
        return [
            *(
                path(route, self.admin_site.admin_view(require_POST(view)), name=self._name(name).partition(":")[2])
                for route, name, view in views
            ),
            *super().get_urls(),
        ]

    def _may_try(self, request: HttpRequest, obj: Channel | None) -> bool:
        """Whether the person may send by what stands in the form: who may save it may try it."""
        if obj is None:
            return self.has_add_permission(request)
        return not _is_own(obj) and self.has_change_permission(request, obj) and testing.may_test(request.user, obj)

    def _form_as_sent(self, request: HttpRequest, pk: int | None) -> ChannelForm:
        """The form as it stands in the browser, bound; of a saved channel its secrets that were left empty are the stored ones."""
        obj = None if pk is None else get_object_or_404(self.get_queryset(request), pk=pk)
        deny_unless(self._may_try(request, obj) and (obj is not None or request.GET.get("kind") in kinds_of(self.model)))
        form = self.get_form(request, obj, change=obj is not None)(request.POST, instance=obj)
        form.is_valid()
        return form

    def try_out(self, request: HttpRequest, pk: int | None = None) -> HttpResponse:
        """Sends a real message with the settings as they stand in the form, and answers with what the provider said."""
        form = self._form_as_sent(request, pk)
        trouble = testing.answer_problems(request, form, besides=("name", "team"))
        if trouble is not None:
            return trouble
        channel = form.as_typed()
        answer = testing.answer_test(request, channel, request.POST.get("test_to", ""))
        if pk is not None:
            log(request, channel, gettext_noop("test of the connection"))
        return answer

    def chats(self, request: HttpRequest, pk: int | None = None) -> HttpResponse:
        """Asks the provider which chats it knows, with the settings as they stand in the form."""
        form = self._form_as_sent(request, pk)
        field = PREFIX + form.style.suggested
        trouble = testing.answer_problems(request, form, besides=("name", "team", field))
        return trouble if trouble is not None else testing.answer_chats(request, form.as_typed(), f"id_{field}")

    def test(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Sends a test: to the group itself, or to whoever presses the button."""
        channel = get_object_or_404(self.get_queryset(request), pk=pk)
        deny_unless(testing.may_test(request.user, channel))
        back = HttpResponseRedirect(reverse(self._name("change"), args=[pk]))
        try:
            delivery = testing.send_test(channel, request.user)
        except ValidationError as error:
            self.message_user(request, " ".join(error.messages), messages.ERROR)
            return back
        log(request, channel, gettext_noop("test: sent"))
        return HttpResponseRedirect(reverse("admin:channels_app_delivery_change", args=[delivery]))

    @display(description=gettext_lazy("kind"))
    def shown_kind(self, channel: Channel) -> str:
        kind = channel.kind or ""
        style = transport.transports().get(kind)
        return str(style.label) if style else kind or "-"

    @display(description=gettext_lazy("settings"))
    def shown_settings(self, channel: Channel) -> str:
        style = transport.get(channel.kind)
        return "; ".join(
            f"{field.label}: {_('(secret)') if name in style.secret else channel.settings.get(name) or '-'}"
            for name, field in style.Settings.base_fields.items()
        ) or "-"  # fmt: skip

    @display(description=gettext_lazy("works"), label={"good": "success", "bad": "danger", "new": "info"})
    def health_state(self, channel: Channel) -> tuple[str, str]:
        health: ChannelHealth | None = getattr(channel, "health", None)
        if health is None:
            return "new", _("not used yet")
        if health.open_until is not None and health.failures:
            if "_console_backing" not in (seen := asking().__dict__):  # one query for all rows of the list
                seen["_console_backing"] = addresses.backing()
            words = {
                "all": _("failing, its pages take the fallback: %(error)s"),
                "some": _("failing; where there is a fallback its pages take it, the others wait: %(error)s"),
                "none": _("failing; it has no fallback, so its pages wait: %(error)s"),
            }[seen["_console_backing"].get(channel.pk, "none")]
            return "bad", words % {"error": health.last_error}
        if health.failures:
            return "bad", _("failed %(count)d times in a row: %(error)s") % {"count": health.failures, "error": health.last_error}
        return "good", _("works")

    @display(description=gettext_lazy("works"))
    def health_words(self, channel: Channel) -> str:
        return self.health_state(channel)[1]

    @display(description=gettext_lazy("last success"))
    def last_success(self, channel: Channel) -> str:
        health: ChannelHealth | None = getattr(channel, "health", None)
        return localize(localtime(health.last_success_at)) if health and health.last_success_at else "-"

    @display(description=gettext_lazy("this month"))
    def this_month(self, channel: Channel) -> str:
        """How many messages went out, how many it will be by the end of the month, and whether the quota is nearly used up."""
        health: ChannelHealth | None = getattr(channel, "health", None)
        now = db_now()
        used = health.month_count if health is not None and health.month == limits.month_of(now) else 0
        words = ngettext("%(used)d message", "%(used)d messages", used) % {"used": used}
        found = limits.quota(channel.monthly_quota, health.month if health else None, used, now)
        if found is None:
            return words
        words = _("%(used)d of %(most)d, %(forecast)d by the end of the month if it goes on like this.") % {
            "used": found.used, "most": found.most, "forecast": found.forecast,
        }  # fmt: skip
        warning = {
            "warning": _("More than 80 % are used."),
            "reserve": _("Only Critical still goes out by it; everything else takes the fallback."),
            "over": _("It is used up: everything takes the fallback until the month ends (UTC)."),
        }.get(found.level) or (_("At this rate it will not last.") if found.forecast > found.most else "")
        return format_html('{} <strong class="text-red-600 dark:text-red-500">{}</strong>', words, warning) if warning else words

    @display(description=gettext_lazy("callback URL"))
    def callback_url(self, channel: Channel) -> str:
        if channel.pk is None:
            return _("There is one when the channel has been saved.")
        url = f"{settings.BASE_URL}/callback/{channel.callback_key}/"
        return format_html(
            '<code class="break-all">{}</code><br><span class="text-xs">{}</span>',
            url,
            _(
                "Enter it at the provider as the address for delivery reports (status callback), where it does not learn it from each message."
            ),
        )


for _group in (ImApp, ImBot, Classic, Hook, Play):
    admin.site.register(_group, ChannelAdmin)
