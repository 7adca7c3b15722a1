"""Console pages of the house of people: members, teams, where they are reached, their keys, mapping tables, the installation."""

from collections.abc import Iterator
from typing import Any, ClassVar
from zoneinfo import available_timezones

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.auth.forms import SetPasswordMixin
from django.db import models, transaction
from django.db.models import Count, Prefetch, Q
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, gettext_noop
from django.views.decorators.debug import sensitive_post_parameters
from unfold.decorators import display
from unfold.widgets import (
    UnfoldAdminPasswordWidget,
    UnfoldAdminSelectWidget,
    UnfoldAdminSplitDateTimeWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanSwitchWidget,
)

from channels_app import numbers
from channels_app.models import Account, Preference, Verification
from flashduty.console import reach
from flashduty.console.base import (
    MachineAdmin,
    StatusFilter,
    VisibleAdmin,
    VisibleForm,
    VisibleRelatedFilter,
    VisibleTabular,
    asking,
    changeable,
    deny_unless,
    log,
)  # fmt: skip
from flashduty.web import wishes
from flashduty.web.me import card_response
from mapping.clock import db_now
from mapping.models import ApiKey, ContactPoint, Device, Installation, MappingEntry, MappingTable, Member, Team, Throttle
from mapping.models.contact_point import mask
from mapping.visibility import Role, Status


def zones() -> list[tuple[str, str]]:
    """Every time zone by its IANA name, for a select."""
    return [(name, name) for name in sorted(available_timezones()) if "/" in name or name == "UTC"]


class ZoneField(forms.TypedChoiceField):
    """A time zone by its IANA name; one that this machine does not list, but that is kept already, stays choosable."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(choices=zones, widget=UnfoldAdminSelectWidget(), **kwargs)


class MemberForm(VisibleForm):
    time_zone = ZoneField(label=gettext_lazy("time zone"), initial="UTC")

    class Meta:
        model = Member
        fields = ("email", "name", "role", "supervisor", "time_zone", "language", "ref_id", "is_active", "may_use_sandbox")

    def clean(self) -> Any:
        data = super().clean() or self.cleaned_data
        stays = data.get("role", self.instance.role) == Role.ADMINISTRATOR and data.get("is_active", self.instance.is_active)
        if self.instance.is_administrator and not stays and Member.lock_administrators() <= {self.instance.pk}:
            raise forms.ValidationError(_("This is the last administrator: make somebody else one first."))
        return data


class PasswordForm(SetPasswordMixin, forms.Form):
    """A new password for a member, typed twice."""

    password1, password2 = SetPasswordMixin.create_password_fields(
        label1=gettext_lazy("New password"), label2=gettext_lazy("New password again")
    )

    def __init__(self, member: Member, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.member = member
        for field in self.fields.values():
            field.widget = UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})

    def clean(self) -> dict[str, Any]:
        self.validate_passwords("password1", "password2")
        self.validate_password_for_user(self.member, "password2")
        return super().clean() or self.cleaned_data


@admin.register(Member)
class MemberAdmin(VisibleAdmin):
    form = MemberForm
    managers_add = False
    list_display = ("name", "email", "shown_role", "shown_teams", "supervisor", "is_active", "last_login")
    list_display_links = ("name", "email")
    list_select_related = ("supervisor",)
    list_filter = ("role", "is_active", ("teams", VisibleRelatedFilter))
    search_fields = ("name", "email", "ref_id")
    autocomplete_fields = ("supervisor",)
    fieldsets = (
        (None, {"fields": (("name", "email"), ("role", "supervisor"), "is_active")}),
        (gettext_lazy("Language and time"), {"fields": (("language", "time_zone"),)}),
        (gettext_lazy("More"), {"fields": ("may_use_sandbox", "ref_id", "shown_teams", "shown_points", "shown_quiet", "last_login")}),
    )
    readonly_fields = ("shown_teams", "shown_points", "shown_quiet", "last_login")
    actions: ClassVar[list[str]] = ["deactivate"]
    change_form_template = "admin/mapping/member/change_form.html"

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).prefetch_related(Prefetch("teams", Team.objects.exclude(status=Status.DELETED)))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        fields = tuple(super().get_readonly_fields(request, obj))
        if request.user.is_administrator:  # type: ignore[union-attr]
            return fields
        # An address to sign in with, a role or an external identity in the hands of a team's manager would be somebody else's account.
        return (*fields, "email", "role", "is_active", "may_use_sandbox", "ref_id")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {"language": Installation.get().language, **super().get_changeform_initial_data(request)}

    @display(description=gettext_lazy("role"), ordering="role", label={"administrator": "danger", "manager": "warning", "member": "info"})
    def shown_role(self, member: Member) -> tuple[str, str]:
        return member.role, member.get_role_display()

    @display(description=gettext_lazy("teams"))
    def shown_teams(self, member: Member) -> str:
        return ", ".join(team.name for team in member.teams.all()) or "-"

    @display(description=gettext_lazy("quiet hours"))
    def shown_quiet(self, member: Member) -> str:
        return wishes.hours(member.quiet) if member.quiet else "-"

    @display(description=gettext_lazy("contact points"))
    def shown_points(self, member: Member) -> str:
        viewer: Any = asking().user
        return "; ".join(f"{point.shown_to(viewer)} ({state_of(point)})" for point in member.contact_points.all()) or "-"

    def has_administer_permission(self, request: HttpRequest) -> bool:
        """Whether an action for administrators alone is offered and carried out."""
        return request.user.is_administrator  # type: ignore[union-attr]

    @admin.action(description=gettext_lazy("Deactivate"), permissions=["administer"])
    def deactivate(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        with transaction.atomic():
            deny_unless(request.user.pk in Member.lock_administrators())  # one remains, whoever else is at it
            mine = list(changeable(Member, request.user).filter(pk__in=queryset.values("pk"), is_active=True).exclude(pk=request.user.pk))
            Member.objects.filter(pk__in=[row.pk for row in mine]).update(is_active=False)
            for row in mine:
                log(request, row, gettext_noop("active: yes → no"))
        self.message_user(request, _("Deactivated: %(count)d.") % {"count": len(mine)}, messages.SUCCESS)

    def get_urls(self) -> list[URLPattern]:
        own = path("<int:pk>/password/", self.admin_site.admin_view(self.password), name="mapping_member_password")
        card = path("<int:pk>/contacts.vcf", self.admin_site.admin_view(self.contacts), name="mapping_member_contacts")
        return [own, card, *super().get_urls()]

    def contacts(self, request: HttpRequest, pk: int) -> HttpResponse:
        """The contact card of the numbers that call this member, for whoever hands phones out."""
        member = get_object_or_404(self.get_queryset(request), pk=pk)
        deny_unless(self.has_view_permission(request, member))
        return card_response(member, db_now())

    def render_change_form(self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        obj = kwargs.get("obj")
        context["called_by"] = [numbers.shown(number) for number in numbers.calling([obj.pk])[obj.pk]] if obj is not None else []
        return super().render_change_form(request, context, *args, **kwargs)

    @method_decorator(sensitive_post_parameters())
    def password(self, request: HttpRequest, pk: int) -> HttpResponse:
        """A new password for somebody else: administrators only; everybody changes their own under their name."""
        deny_unless(request.user.is_administrator)  # type: ignore[union-attr]
        member = get_object_or_404(self.get_queryset(request), pk=pk)
        form = PasswordForm(member, request.POST if request.method == "POST" else None)
        if form.is_valid():
            member.set_password(form.cleaned_data["password1"])
            member.save(update_fields=["password"])
            log(request, member, gettext_noop("password: changed"))
            self.message_user(request, _("%(name)s has a new password; their sessions are over.") % {"name": member.name}, messages.SUCCESS)
            return HttpResponseRedirect(reverse("admin:mapping_member_change", args=[member.pk]))
        context = self.admin_site.each_context(request) | {
            "title": _("A new password for %(name)s") % {"name": member.name}, "form": form, "opts": self.opts, "original": member,
            "back": reverse("admin:mapping_member_change", args=[member.pk]), "button": _("Set the password"),
        }  # fmt: skip
        return TemplateResponse(request, "admin/console/form.html", context)


class TeamForm(VisibleForm):
    """A team. `viewer` is set by its page: whom an administrator puts in, a manager may only take out again."""

    viewer: ClassVar[Any] = None

    def clean_members(self) -> Any:
        members = self.cleaned_data["members"]
        if self.viewer.is_administrator:
            return members
        # Managing somebody's team shows their phone numbers in full: nobody may open those by naming people.
        inside = set(self.instance.members.values_list("pk", flat=True)) if self.instance.pk else set()
        added = [member.name for member in members if member.pk not in inside]
        if added:
            raise forms.ValidationError(_("Only administrators add people to a team: %(names)s.") % {"names": ", ".join(added)})
        return members


@admin.register(Team)
class TeamAdmin(VisibleAdmin):
    form = TeamForm
    managers_add = False
    list_display = ("name", "description", "members_count", "status")
    list_filter = (StatusFilter,)
    search_fields = ("name", "ref_id")
    autocomplete_fields = ("members",)
    fields = ("name", "description", "members", "status", "ref_id")

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        return type("TeamForm", (super().get_form(request, obj, change, **kwargs),), {"viewer": request.user})

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        fields = tuple(super().get_readonly_fields(request, obj))
        return fields if request.user.is_administrator else (*fields, "ref_id")  # type: ignore[union-attr]

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).annotate(_members=Count("members", filter=Q(members__is_active=True)))

    @display(description=gettext_lazy("members"), ordering="_members")
    def members_count(self, team: Any) -> int:
        return team._members


def state_of(point: ContactPoint) -> str:
    """In a word, whether a contact point may be paged."""
    if point.bounced_at is not None:
        return _("bounced: %(reason)s") % {"reason": point.bounce_reason or "-"}
    return _("verified") if point.verified_at is not None else _("not verified: never paged")


@admin.register(ContactPoint)
class ContactPointAdmin(VisibleAdmin):
    list_display = ("shown_value", "member", "kind", "state", "position")
    list_filter = ("kind", ("member__teams", VisibleRelatedFilter))
    # Not by the value: whoever sees it masked could find it out by searching.
    search_fields = ("member__name", "member__email")
    autocomplete_fields = ("member",)
    actions: ClassVar[list[str]] = ["delete_selected"]
    readonly_fields = ("state", "verified_at")
    fields = ("member", "kind", "value", "position", "state", "verified_at")

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).select_related("member").prefetch_related("member__teams")

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        # A verified phone given to somebody else would get their pages, and with them links that act as them.
        return (*super().get_readonly_fields(request, obj), *(["member"] if obj is not None else []))

    def formfield_for_foreignkey(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "member" and not request.user.is_administrator:  # type: ignore[union-attr]
            kwargs["queryset"] = Member.objects.filter(is_active=True, teams__in=request.user.team_ids()).distinct()  # type: ignore[union-attr]
        return super().formfield_for_foreignkey(db_field, request, **kwargs)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change and "value" in form.changed_data:
            obj.verified_at = obj.bounced_at = None  # another address was never verified
            obj.bounce_reason = ""
            Verification.objects.filter(contact_point=obj).delete()  # a code on its way was sent to the address before
        super().save_model(request, obj, form, change)

    def story_of(self, obj: Any) -> Any:
        found = super().story_of(obj)
        label = str(ContactPoint._meta.get_field("value").verbose_name)
        return found | {label: (obj.value, mask(obj.value))}

    @display(description=gettext_lazy("number or address"))
    def shown_value(self, point: ContactPoint) -> str:
        # The teams were fetched for the whole page; team_ids would ask once a row.
        point.member._team_ids = [team.pk for team in point.member.teams.all() if team.status != Status.DELETED]
        return point.shown_to(asking().user)  # type: ignore[arg-type]

    @display(description=gettext_lazy("state"))
    def state(self, point: ContactPoint) -> str:
        return state_of(point)


@admin.register(Device)
class DeviceAdmin(VisibleAdmin):
    list_display = ("name", "member", "platform", "os_version", "enabled", "last_seen_at")
    list_select_related = ("member",)
    list_filter = ("platform", "enabled")
    search_fields = ("name", "member__name")
    fields = ("member", "name", "platform", "os_version", "enabled", "last_seen_at", "created_at")
    readonly_fields = ("member", "platform", "os_version", "last_seen_at", "created_at")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # the app links a device; a token typed by hand would be nobody's

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)


class KeyForm(forms.Form):
    name = forms.CharField(label=gettext_lazy("name"), max_length=100, widget=UnfoldAdminTextInputWidget())
    read_only = forms.BooleanField(label=gettext_lazy("read only"), required=False, widget=UnfoldBooleanSwitchWidget())
    expires_at = forms.SplitDateTimeField(
        label=gettext_lazy("expires"), required=False, widget=UnfoldAdminSplitDateTimeWidget(), help_text=gettext_lazy("Empty: never.")
    )

    def clean_expires_at(self) -> Any:
        at = self.cleaned_data["expires_at"]
        if at is not None and at <= db_now():
            raise forms.ValidationError(_("This moment is past: choose a later one, or none."))
        return at


@admin.register(ApiKey)
class ApiKeyAdmin(VisibleAdmin):
    """Keys are issued once and shown once, for oneself: a key carries the rights of its member."""

    list_display = ("name", "shown_hint", "member", "read_only", "expires_at", "last_used_at", "created_at")
    list_select_related = ("member",)
    list_filter = ("read_only",)
    search_fields = ("name", "member__name")
    readonly_fields = ("member", "name", "shown_hint", "read_only", "expires_at", "last_used_at", "created_at")
    fields = readonly_fields
    actions: ClassVar[list[str]] = ["delete_selected"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return isinstance(request.user, Member) and request.user.is_active

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_view_permission(request, obj)

    @display(description=gettext_lazy("begins with"))
    def shown_hint(self, key: ApiKey) -> str:
        return f"{key.hint}…"

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        deny_unless(self.has_add_permission(request))
        form = KeyForm(request.POST if request.method == "POST" else None)
        secret = ""
        if form.is_valid():
            try:
                with transaction.atomic():
                    key, secret = ApiKey.issue(Member.objects.get(pk=request.user.pk), **form.cleaned_data)
                    self.log_addition(request, key, [{"added": {}}])
            except forms.ValidationError as error:
                form.add_error(None, error)
        context = self.admin_site.each_context(request) | {
            "title": _("Your new APP key") if secret else _("Issue an APP key"), "form": form, "opts": self.opts, "secret": secret,
            "back": reverse("admin:mapping_apikey_changelist"), "button": _("Issue"),
            "secret_note": _("Copy it now: it is stored hashed and nobody can show it again."),
        }  # fmt: skip
        answer = TemplateResponse(request, "admin/console/form.html", context)
        answer["Cache-Control"] = "no-store"
        return answer


class EntryInline(VisibleTabular):
    model = MappingEntry
    fields = ("email", "external_id")
    verbose_name = gettext_lazy("entry")
    verbose_name_plural = gettext_lazy("entries")
    per_page = 100


@admin.register(MappingTable)
class MappingTableAdmin(VisibleAdmin):
    list_display = ("name", "team", "entries_count", "status", "updated_at")
    list_select_related = ("team",)
    list_filter = (StatusFilter, ("team", VisibleRelatedFilter))
    search_fields = ("name",)
    fields = ("name", "description", "team", "status")
    inlines = (EntryInline,)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        return super().get_queryset(request).annotate(_entries=Count("entries"))

    def parts(self, obj: Any) -> Iterator[tuple[str, models.Model]]:
        for entry in obj.entries.all()[:1000]:
            yield f"{entry.email} · ", entry

    @display(description=gettext_lazy("entries"), ordering="_entries")
    def entries_count(self, table: Any) -> int:
        return table._entries


@admin.register(Installation)
class InstallationAdmin(VisibleAdmin):
    only_administrators = True
    list_display = ("name", "language", "support_contact", "retention_days", "shown_alarm")
    autocomplete_fields = ("catch_all_members", "catch_all_teams")
    fields = (
        "name", "base_url", "language", "support_contact", "catch_all_members", "catch_all_teams", "unreached", "retention_days", "shown_alarm",
    )  # fmt: skip
    readonly_fields = ("base_url", "unreached", "shown_alarm")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False  # the one row is made on first use

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        deny_unless(self.has_view_permission(request))
        return HttpResponseRedirect(reverse("admin:mapping_installation_change", args=[Installation.get().pk]))

    @display(description=gettext_lazy("address people open"))
    def base_url(self, installation: Installation) -> str:
        return _("%(url)s (set by BASE_URL in the environment)") % {"url": settings.BASE_URL}

    @display(description=gettext_lazy("cannot be reached"))
    def unreached(self, installation: Installation) -> str:
        return reach.shown(reach.unreached_by_installation(db_now()))

    @display(description=gettext_lazy("alarm"))
    def shown_alarm(self, installation: Installation) -> str:
        return _(installation.alarm) if installation.alarm else _("none")


@admin.register(Throttle)
class ThrottleAdmin(MachineAdmin):
    """Who was stopped from trying again; an administrator may lift it."""

    only_administrators = True
    list_display = ("key", "count", "window_end")
    search_fields = ("key",)
    actions: ClassVar[list[str]] = ["forget"]

    @admin.action(description=gettext_lazy("Lift the limit"))
    def forget(self, request: HttpRequest, queryset: models.QuerySet) -> None:
        deny_unless(request.user.is_administrator)  # type: ignore[union-attr]
        for key in list(queryset.values_list("key", flat=True)):
            Throttle.clear(key)
        self.message_user(request, _("Lifted."), messages.SUCCESS)


@admin.register(Preference)
class PreferenceAdmin(VisibleAdmin):
    list_display = ("member", "severity", "kind", "channel", "position", "delay")
    list_select_related = ("member", "channel")
    list_filter = ("severity", "kind")
    search_fields = ("member__name", "member__email")
    autocomplete_fields = ("member",)
    managers_add = False
    actions: ClassVar[list[str]] = ["delete_selected"]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self.has_change_permission(request, obj)


@admin.register(Account)
class AccountAdmin(VisibleAdmin):
    """Chats and webhooks that are one person's own. They add and prove them on their own page; here they can be seen and unlinked."""

    machine = True  # a chat that nobody proved would get somebody else's pages
    list_display = ("member", "channel", "label", "target", "state")
    list_select_related = ("member", "channel")
    search_fields = ("member__name", "member__email")
    fields = readonly_fields = ("member", "channel", "label", "target", "state", "verified_at", "created_at")
    actions: ClassVar[list[str]] = ["delete_selected"]

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_administrator  # type: ignore[union-attr]

    @display(description=gettext_lazy("state"))
    def state(self, account: Account) -> str:
        return _("verified") if account.verified_at is not None else _("not verified: never paged")
