"""Demo data for `make run`: people, a team, a rule whose every channel is played by the sandbox, and what DEMO_WEBHOOK and DEMO_SMTP add.

People go on to use what they tried out: they rename the workspace, delete an integration, put their own address into the administrator. So
the demo's rows are known by ids, which the login keeps, and what is gone is left out."""

import ipaddress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import transaction

from channels_app.models import Channel, Preference
from escalation import rules
from escalation.models import EscalationRule, Integration, Layer, LayerChannel, Workspace
from mapping.clock import db_now
from mapping.crypto import fingerprint, new_secret
from mapping.models import ApiKey, ContactPoint, Installation, Member, Team

ADMIN = "admin@demo.example"
PEOPLE = [
    # e-mail, name, language, time zone, role
    ("wang@demo.example", "王芳 (director)", "zh-hans", "Asia/Shanghai", "manager"),
    ("lee@demo.example", "Sam Lee (on call)", "en", "Europe/Berlin", "member"),
    ("zhang@demo.example", "张伟 (on call)", "zh-hans", "Asia/Shanghai", "member"),
]
SANDBOX = [
    ("sandbox_app", "Sandbox app"),
    ("sandbox_voice", "Sandbox phone calls"),
    ("sandbox_sms", "Sandbox SMS"),
    ("sandbox_email", "Sandbox mail"),
    ("sandbox_im", "Sandbox chat"),
    ("sandbox_group", "Sandbox group: #oncall"),
]
MAIL_TO = "oncall@demo.example"  # whom the first layer tells besides, while DEMO_SMTP is set
PREFERRED = {"Critical": ["sandbox_app", "sandbox_im"], "Warning": ["sandbox_app"], "Info": ["sandbox_email"]}


class Seeded(NamedTuple):
    login: dict[str, Any]  # to be kept until the next start, in a file that only its owner can read
    shown: dict[str, str]  # what demo.json says
    notes: list[str]  # sentences for whoever started it


@transaction.atomic
def seed(login: dict[str, Any], base_url: str, webhook: str, smtp: str) -> Seeded:
    """Makes the demo once and sets its outside channels to what the variables say now.

    `login` is what the last call returned, {} at first. The administrator's password and APP key are hashed in the database, so it holds
    them, to be shown again, and the demo's ids. It is to be written after this has returned: by then the demo is committed.
    """
    if _admin(login) is None:
        login = _found(login) if Channel.objects.filter(is_demo="sandbox").exists() else _make()
    notes = _outside_channels(login.get("rule"), webhook, smtp)
    shown = {"base_url": base_url}
    alive = Integration.objects.filter(status="enabled", workspace__status="enabled")
    for name, kind in (("push_url", "standard"), ("prometheus_url", "prometheus")):
        if (row := alive.filter(id=login.get(kind) or 0).first()) is not None:
            shown[name] = f"{base_url}/event/push/alert/{kind}?integration_key={row.key}"
    admin = _admin(login)
    if admin is not None and admin.is_active:
        shown |= {"admin_email": admin.email, "admin_password": login["admin_password"]}
    if _has_key(login):
        shown["app_key"] = login["app_key"]
    return Seeded(login, shown, notes)


def _admin(login: dict[str, Any]) -> Member | None:
    """The demo's administrator, under whatever address; None when this login was written for another database."""
    member = Member.objects.filter(id=login.get("admin")).first()
    return member if member is not None and member.created_at.isoformat() == login.get("made") else None


def _has_key(login: dict[str, Any]) -> bool:
    return ApiKey.objects.filter(key_hash=fingerprint(login.get("app_key", ""))).exists()


def _found(login: dict[str, Any]) -> dict[str, Any]:
    """The login of a demo that is there already, where its file was removed or knows no ids yet: by the names things had at first.

    The administrator gets a new password and APP key, unless the account has become a person's own by another address.
    """
    in_demo = {"workspace__name": "Demo"}
    ids: dict[str, Any] = {
        kind: Integration.objects.filter(kind=kind, **in_demo).order_by("id").values_list("id", flat=True).first()
        for kind in ("standard", "prometheus")
    }
    ids["rule"] = EscalationRule.objects.filter(name="Demo rule", **in_demo).values_list("id", flat=True).first()
    admin = Member.objects.filter(email=ADMIN).first()
    if admin is None:
        return ids
    if not _has_key(login):
        login = {"admin_password": new_secret(14), "app_key": new_secret(40)}
        admin.set_password(login["admin_password"])
        admin.save(update_fields=["password"])
        ApiKey.objects.filter(member=admin, name="demo").delete()
        try:
            ApiKey.issue(admin, "demo", secret=login["app_key"])
        except ValidationError:  # five keys of their own: they need none of ours
            del login["app_key"]
    return login | ids | {"admin": admin.id, "made": admin.created_at.isoformat()}


def _make() -> dict[str, Any]:
    login: dict[str, Any] = {"admin_password": new_secret(14), "app_key": new_secret(40)}
    now = db_now()
    admin = Member.objects.create_user(
        ADMIN, "Ada Admin", login["admin_password"], role="administrator", may_use_sandbox=True, time_zone="UTC"
    )
    people = {
        email: Member.objects.create_user(email, name, language=lang, time_zone=zone, role=role) for email, name, lang, zone, role in PEOPLE
    }
    boss = people["wang@demo.example"]
    oncall = [people["lee@demo.example"], people["zhang@demo.example"]]
    for member in oncall:
        member.supervisor = boss
        member.save(update_fields=["supervisor"])
    team = Team.objects.create(name="Demo team", description="The people of the demo")
    team.members.set([boss, *oncall])
    for member in (admin, *people.values()):
        ContactPoint.objects.create(member=member, kind="email", value=member.email, verified_at=now)
        for severity, kinds in PREFERRED.items():
            for position, kind in enumerate(kinds):
                Preference.objects.create(member=member, severity=severity, kind=kind, position=position)
    ApiKey.issue(admin, "demo", secret=login["app_key"])
    channels = {kind: Channel.objects.create(kind=kind, name=name, is_demo="sandbox") for kind, name in SANDBOX}

    installation = Installation.get()
    installation.catch_all_members.add(admin)
    space = Workspace.objects.create(name="Demo", description="Where the demo's alerts become incidents", team=team)
    space.catch_all_teams.add(team)
    for kind, name in (("standard", "Demo alerts"), ("prometheus", "Demo Alertmanager")):
        login[kind] = Integration.objects.create(workspace=space, kind=kind, name=name).id
    rule = EscalationRule.objects.create(
        workspace=space, name="Demo rule", description="Loops every 30 s; calls the supervisor after 5 minutes"
    )
    first = Layer.objects.create(rule=rule, idx=0, escalate_window=5, notify_step=0.5, max_times=6)
    first.members.set(oncall)
    LayerChannel.objects.create(layer=first, channel=channels["sandbox_group"])
    second = Layer.objects.create(
        rule=rule, idx=1, escalate_window=10, notify_step=5, max_times=1, supervisors=True, follow_preference=False,
        critical=["sandbox_voice", "sandbox_sms"], warning=["sandbox_sms"], info=["sandbox_email"],
    )  # fmt: skip
    LayerChannel.objects.create(layer=second, channel=channels["sandbox_group"])
    return login | {"admin": admin.id, "made": admin.created_at.isoformat(), "rule": rule.id}


def _outside_channels(rule_id: int | None, webhook: str, smtp: str) -> list[str]:
    """DEMO_WEBHOOK and DEMO_SMTP: exactly that host and port are permitted, on that channel, and only as long as the variable says so.

    What is withdrawn is withdrawn wherever it was used; what is given is added to the first layer of the demo's rule. Returns a sentence
    for each that is nowhere in use, because that rule is gone.
    """
    first = Layer.objects.filter(rule_id=rule_id).exclude(rule__status="deleted").order_by("idx").first()
    touched: set[int] = set()
    notes = []

    hook = Channel.objects.filter(is_demo="webhook").first()
    if webhook:
        parts = urlsplit(webhook)
        place = _place(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        hook = hook or Channel(kind="webhook", is_demo="webhook")
        hook.name, hook.status, hook.settings, hook.allowed_hosts = "Demo webhook", "enabled", {"url": webhook}, [place]
        hook.save()
        if first is not None and LayerChannel.objects.get_or_create(layer=first, channel=hook, defaults={"events": []})[1]:
            touched.add(first.rule_id)
        elif not LayerChannel.objects.filter(channel=hook).exclude(layer__rule__status="deleted").exists():
            notes.append(f"DEMO_WEBHOOK is told nothing: the demo's rule is gone. Add the channel “{hook.name}” to a rule of yours.")
    elif hook is not None:
        uses = LayerChannel.objects.filter(channel=hook)
        touched |= set(uses.values_list("layer__rule_id", flat=True))
        uses.delete()
        Channel.objects.filter(id=hook.id).update(status="disabled", allowed_hosts=[])

    mail = Channel.objects.filter(is_demo="smtp").first()
    told = Layer.objects.filter(emails__contains=[MAIL_TO])
    if smtp:
        host, _colon, port = smtp.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")  # as a URL writes an IPv6 address; a socket wants it bare
        mail = mail or Channel(kind="email", is_demo="smtp")
        mail.name, mail.status, mail.allowed_hosts = "Demo mail", "enabled", [_place(host, int(port))]
        mail.settings = {"host": host, "port": int(port), "security": "none", "from_email": "Flashduty <flashduty@demo.example>"}
        mail.save()
        if first is not None and MAIL_TO not in first.emails:
            first.emails = sorted({*first.emails, MAIL_TO})
            first.save(update_fields=["emails"])
            touched.add(first.rule_id)
        elif not told.exclude(rule__status="deleted").exists():
            notes.append(f"DEMO_SMTP is sent nothing: the demo's rule is gone. Add {MAIL_TO} to a rule of yours.")
    else:
        for layer in told:
            layer.emails = [email for email in layer.emails if email != MAIL_TO]
            layer.save(update_fields=["emails"])
            touched.add(layer.rule_id)
        if mail is not None:
            Channel.objects.filter(id=mail.id).update(status="disabled", allowed_hosts=[])
    rules.changed(touched)
    return notes


def _place(host: str, port: int) -> str:
    """host:port as the guard of the network spells it: an IPv6 address in its short form, in brackets."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host.lower()}:{port}"
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
