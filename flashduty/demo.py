"""Demo data for `make run`: people, a team, a rule whose every channel is played by the sandbox, and what DEMO_WEBHOOK and DEMO_SMTP add."""

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.db import transaction

from channels_app.models import Channel, Preference
from escalation import rules
from escalation.models import EscalationRule, Integration, Layer, LayerChannel, Workspace
from mapping.clock import db_now
from mapping.crypto import new_secret
from mapping.models import ApiKey, ContactPoint, Installation, Member, Team

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
PREFERRED = {"Critical": ["sandbox_app", "sandbox_im"], "Warning": ["sandbox_app"], "Info": ["sandbox_email"]}


@transaction.atomic
def seed(data: Path, base_url: str, webhook: str | None, smtp: str | None) -> dict[str, Any]:
    """Makes the demo once and sets its outside channels to what the variables say now; returns what demo.json says.

    The administrator's password and APP key are hashed in the database, so they are kept beside the data (mode 0600) to be shown again.
    """
    path = data / "demo-login.json"
    login = json.loads(path.read_text()) if path.exists() else {}
    admin = Member.objects.filter(email="admin@demo.example").first()
    if admin is None or not login:
        login = {"admin_password": new_secret(14), "app_key": new_secret(40)}
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(login, file)
        if admin is None:
            _make(login)
        else:  # the file was removed: a new login for the same administrator
            admin.set_password(login["admin_password"])
            admin.save(update_fields=["password"])
            ApiKey.objects.filter(member=admin, name="demo").delete()
            ApiKey.issue(admin, "demo", secret=login["app_key"])
    _outside_channels(webhook or "", smtp or "")
    keys = {
        row.kind: row.key
        for row in Integration.objects.filter(workspace__name="Demo", status="enabled", kind__in=["standard", "prometheus"]).order_by("-id")
    }
    push = f"{base_url}/event/push/alert/{{}}?integration_key={{}}"
    return {
        "base_url": base_url,
        "push_url": push.format("standard", keys["standard"]),
        "prometheus_url": push.format("prometheus", keys["prometheus"]),
        "admin_email": "admin@demo.example",
        "admin_password": login["admin_password"],
        "app_key": login["app_key"],
    }


def _make(login: dict[str, Any]) -> None:
    now = db_now()
    admin = Member.objects.create_user(
        "admin@demo.example", "Ada Admin", login["admin_password"], role="administrator", may_use_sandbox=True, time_zone="UTC"
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
        Integration.objects.create(workspace=space, kind=kind, name=name)
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


def _outside_channels(webhook: str, smtp: str) -> None:
    """DEMO_WEBHOOK and DEMO_SMTP: exactly that host and port are permitted, on that channel, and only as long as the variable says so."""
    first = Layer.objects.filter(rule__name="Demo rule", rule__workspace__name="Demo", idx=0).select_related("rule").first()
    if first is None:
        return  # the demo's rule was renamed or removed: the operator has moved on
    before = set(first.channels.values_list("channel_id", flat=True)) | set(first.emails)
    parts = urlsplit(webhook) if webhook else None
    hook = Channel.objects.filter(is_demo="webhook").first()
    if parts is not None:
        host = f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        hook = hook or Channel(kind="webhook", is_demo="webhook")
        hook.name, hook.status, hook.settings, hook.allowed_hosts = "Demo webhook", "enabled", {"url": webhook}, [host]
        hook.save()
        LayerChannel.objects.get_or_create(layer=first, channel=hook, defaults={"events": []})
    elif hook is not None:
        LayerChannel.objects.filter(channel=hook).delete()
        Channel.objects.filter(id=hook.id).update(status="disabled", allowed_hosts=[])

    mail = Channel.objects.filter(is_demo="smtp").first()
    address = "oncall@demo.example"
    if smtp:
        host, _colon, port = smtp.rpartition(":")
        mail = mail or Channel(kind="email", is_demo="smtp")
        mail.name, mail.status = "Demo mail", "enabled"
        mail.settings = {"host": host, "port": int(port), "security": "none", "from_email": "Flashduty <flashduty@demo.example>"}
        mail.allowed_hosts = [f"{host}:{port}"]
        mail.save()
        first.emails = sorted({*first.emails, address})
    else:
        first.emails = [email for email in first.emails if email != address]
        if mail is not None:
            Channel.objects.filter(id=mail.id).update(status="disabled", allowed_hosts=[])
    first.save(update_fields=["emails"])
    if before != set(first.channels.values_list("channel_id", flat=True)) | set(first.emails):
        rules.changed([first.rule_id])
