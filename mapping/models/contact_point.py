"""Where a person is reached: a phone or a mailbox. One that is not verified is never paged."""

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import models
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _
from phonenumber_field.phonenumber import to_python
from phonenumber_field.validators import validate_international_phonenumber

from mapping import voice_regions
from mapping.models.installation import Installation
from mapping.models.member import Member
from mapping.visibility import Role, VisibleQuerySet


class ContactPoint(models.Model):
    class Kind(models.TextChoices):
        PHONE = "phone", _("Phone")
        EMAIL = "email", _("E-mail")

    member = models.ForeignKey(settings.AUTH_USER_MODEL, verbose_name=_("member"), on_delete=models.CASCADE, related_name="contact_points")
    kind = models.CharField(_("kind"), max_length=10, choices=Kind.choices)
    value = models.CharField(
        _("number or address"), max_length=254, help_text=_("A phone in international form, such as +8613800138000, or an e-mail address.")
    )
    verified_at = models.DateTimeField(_("verified"), null=True, blank=True, editable=False)
    bounced_at = models.DateTimeField(_("bounced"), null=True, blank=True, editable=False)
    bounce_reason = models.CharField(max_length=300, blank=True, editable=False)
    position = models.PositiveSmallIntegerField(_("position"), default=0, help_text=_("The first verified one of a kind is used."))
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    objects = VisibleQuerySet.as_manager()

    class Meta:
        verbose_name = _("contact point")
        verbose_name_plural = _("contact points")
        ordering = ["member_id", "kind", "position", "id"]
        constraints = [models.UniqueConstraint(fields=["member", "kind", "value"], name="contact_point_once")]

    def __str__(self) -> str:
        return self.masked

    def clean(self) -> None:
        super().clean()
        self.value = self.value.strip()
        try:
            if self.kind == self.Kind.PHONE:
                try:
                    validate_international_phonenumber(self.value)
                except ValidationError:  # its sentence does not say what is missing
                    words = _("“%(value)s” is not a phone number: write it with + and the country code, such as +86 138 0013 8000.")
                    raise ValidationError(words, params={"value": self.value}) from None
                self.value = str(to_python(self.value))
                check_region(self.value)
            else:
                validate_email(self.value)
        except ValidationError as error:
            raise ValidationError({"value": error.messages}) from None

    @property
    def is_usable(self) -> bool:
        """May it be paged?"""
        return self.verified_at is not None and self.bounced_at is None

    @property
    def masked(self) -> str:
        """The value as people see it who may not see it whole: +86****8000, z***@example.com."""
        return mask(self.value)

    def shown_to(self, viewer: "Member") -> str:
        """In full to the owner, the managers of the owner's teams and administrators; masked to everybody else."""
        if viewer.pk == self.member_id or viewer.is_administrator:
            return self.value
        if viewer.role == Role.MANAGER and set(viewer.team_ids()) & set(self.member.team_ids()):
            return self.value
        return self.masked

    @classmethod
    def visible_q(cls, member) -> models.Q:
        own = models.Q(member=member)
        return own | models.Q(member__teams__in=member.team_ids()) if member.role == Role.MANAGER else own

    @classmethod
    def changeable_q(cls, member) -> models.Q:
        """As with members themselves: whoever manages a team does not decide where an administrator is reached."""
        return models.Q(member=member) | (cls.visible_q(member) & ~models.Q(member__role=Role.ADMINISTRATOR))


def check_region(phone: str) -> None:
    """ValidationError with a sentence for people when `phone` (E.164) is in no region that can be called, or costs whoever calls it: see
    voice_regions."""
    if voice_regions.is_premium(phone):
        raise ValidationError(_("This is a premium-rate number: whoever calls it pays for it. Use another number."), code="premium")
    region = voice_regions.find(phone)
    if region is not None and region.called:
        return
    contact = Installation.get().support_contact or _("an administrator of this installation")
    if region is None:
        raise ValidationError(
            _("This number belongs to no region that can be called. Use another number, or contact %(contact)s."),
            code="region", params={"contact": contact},
        )  # fmt: skip
    raise ValidationError(
        _("Numbers in %(region)s (+%(code)s) cannot be called. Use a number of another region, or contact %(contact)s."),
        code="region", params={"region": region.name(get_language() or "en"), "code": region.codes[0], "contact": contact},
    )  # fmt: skip


def mask(value: str) -> str:
    """+8613800138000 -> +861****8000; zhang@example.com -> z***@example.com; anything else keeps its last four characters."""
    if "@" in value:
        name, _at, domain = value.rpartition("@")
        return f"{name[:1]}***@{domain}"
    if value.startswith("+") and len(value) > 8:
        return f"{value[:4]}****{value[-4:]}"
    return f"****{value[-4:]}" if len(value) > 4 else "****"
