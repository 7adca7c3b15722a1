"""The demo of `make run`: it starts again whatever became of it, and its outside channels are what the variables say now."""

import json
from typing import Any

import pytest

from channels_app.models import Channel
from channels_app.sockets import DeliveryError, Guard
from escalation.models import EscalationRule, Integration, Layer, LayerChannel, Workspace
from flashduty import demo, run
from mapping.models import ApiKey, Member

pytestmark = pytest.mark.django_db

BASE = "http://127.0.0.1:8000"
HOOK, OTHER = "http://127.0.0.1:9000/page", "http://10.1.2.3/page"


def start(login: dict[str, Any] | None = None, webhook: str = "", smtp: str = "") -> demo.Seeded:
    done = demo.seed(json.loads(json.dumps(login or {})), BASE, webhook, smtp)  # it travels through a file
    run.welcome(done.shown)
    return done


@pytest.fixture
def made() -> demo.Seeded:
    return start()


def test_a_second_start_changes_nothing(made):
    assert start(made.login) == made and not made.notes
    assert set(made.shown) == {"base_url", "push_url", "prometheus_url", "admin_email", "admin_password", "app_key"}
    assert Member.objects.get(email=demo.ADMIN).check_password(made.shown["admin_password"])
    assert made.shown["push_url"].endswith(Integration.objects.get(kind="standard").key)
    assert made.shown["push_url"] in run.welcome(made.shown) and made.shown["admin_password"] in run.welcome(made.shown)


def test_what_was_renamed_is_still_the_demos(made):
    Workspace.objects.update(name="Payments")
    Integration.objects.update(name="Mine")
    Member.objects.filter(email=demo.ADMIN).update(email="ada@corp.example")
    EscalationRule.objects.update(name="Everything")
    done = start(made.login, webhook=HOOK)
    assert done.shown == made.shown | {"admin_email": "ada@corp.example"} and not done.notes
    assert LayerChannel.objects.filter(channel__is_demo="webhook", layer__rule__name="Everything", layer__idx=0).exists()


def test_what_is_gone_is_left_out(made):
    Integration.objects.filter(kind="prometheus").update(status="deleted")
    ApiKey.objects.all().delete()
    left = {"base_url", "push_url", "admin_email", "admin_password"}
    assert set(start(made.login).shown) == left
    Workspace.objects.update(status="disabled")
    Member.objects.filter(email=demo.ADMIN).update(is_active=False)
    done = start(made.login)
    assert set(done.shown) == {"base_url"} and "/sandbox/" in run.welcome(done.shown) and "curl" not in run.welcome(done.shown)


def test_a_login_that_was_lost_is_made_anew_for_the_demos_account_only(made):
    again = start()
    assert set(again.shown) == set(made.shown) and again.shown["admin_password"] != made.shown["admin_password"]
    assert Member.objects.get(email=demo.ADMIN).check_password(again.shown["admin_password"])
    assert start(again.login) == again
    Member.objects.filter(email=demo.ADMIN).update(email="ada@corp.example")
    assert set(start().shown) == {"base_url", "push_url", "prometheus_url"}
    assert Member.objects.get(email="ada@corp.example").check_password(again.shown["admin_password"])


def test_a_login_from_before_there_were_ids_stays(made):
    old = {name: made.login[name] for name in ("admin_password", "app_key")}
    assert start(old) == made


def test_the_login_of_another_database_is_not_taken_for_ours(made):
    other = made.login | {"made": "2026-01-01T00:00:00+00:00", "admin_password": "of-the-other", "app_key": "of-the-other"}
    done = start(other)
    assert done.shown["admin_password"] != "of-the-other" and done.shown["app_key"] != "of-the-other"
    assert Member.objects.get(email=demo.ADMIN).check_password(done.shown["admin_password"])


def hook() -> Channel:
    return Channel.objects.get(is_demo="webhook")


def test_the_webhook_is_what_the_variable_says_and_no_more(made):
    rule = EscalationRule.objects.get()
    begun = rule.version
    start(made.login, webhook=HOOK)
    assert (hook().status, hook().allowed_hosts, hook().settings) == ("enabled", ["127.0.0.1:9000"], {"url": HOOK})
    start(made.login, webhook=OTHER)
    assert (hook().allowed_hosts, hook().settings) == (["10.1.2.3:80"], {"url": OTHER})
    rule.refresh_from_db()
    assert rule.version == begun + 1  # the rule says "this channel", whatever its address

    # The operator renames the rule, and uses the channel in another one too.
    EscalationRule.objects.update(name="Everything")
    mine = EscalationRule.objects.create(workspace=rule.workspace, name="Mine")
    LayerChannel.objects.create(layer=Layer.objects.create(rule=mine, idx=0), channel=hook())
    start(made.login)
    assert (hook().status, hook().allowed_hosts) == ("disabled", [])
    assert not LayerChannel.objects.filter(channel=hook()).exists()
    rule.refresh_from_db()
    assert rule.version == begun + 2
    mine.refresh_from_db()
    assert mine.version == 2


def test_a_channel_that_has_no_rule_to_go_to_is_told_of(made):
    EscalationRule.objects.update(status="deleted")
    done = start(made.login, webhook=HOOK, smtp="127.0.0.1:1025")
    assert len(done.notes) == 2 and "DEMO_WEBHOOK" in done.notes[0] and "DEMO_SMTP" in done.notes[1]
    mine = Layer.objects.create(
        rule=EscalationRule.objects.create(workspace=Workspace.objects.get(), name="Mine"), idx=0, emails=[demo.MAIL_TO]
    )
    LayerChannel.objects.create(layer=mine, channel=hook())
    assert not start(made.login, webhook=HOOK, smtp="127.0.0.1:1025").notes


@pytest.mark.parametrize(
    ("smtp", "host", "place"),
    [("127.0.0.1:1025", "127.0.0.1", "127.0.0.1:1025"), ("[::1]:1025", "::1", "[::1]:1025"), ("[0:0::1]:1025", "0:0::1", "[::1]:1025"),
     ("Mail.corp:25", "Mail.corp", "mail.corp:25")],
)  # fmt: skip
def test_mail_goes_to_what_the_variable_says_and_no_longer(made, monkeypatch, smtp, host, place):
    monkeypatch.setenv("DEMO_SMTP", smtp)
    run.check_variables()
    start(made.login, smtp=smtp)
    mail = Channel.objects.get(is_demo="smtp")
    assert (mail.status, mail.settings["host"], mail.allowed_hosts) == ("enabled", host, [place])
    if host != "Mail.corp":
        Guard(frozenset(mail.allowed_hosts)).judge_literal(host, 1025)  # does not raise
        with pytest.raises(DeliveryError):
            Guard(frozenset(mail.allowed_hosts)).judge_literal(host, 1026)
    layer = Layer.objects.get(idx=0)
    assert layer.emails == [demo.MAIL_TO]
    EscalationRule.objects.update(name="Everything")
    start(made.login)
    mail.refresh_from_db()
    layer.refresh_from_db()
    assert (mail.status, mail.allowed_hosts, layer.emails) == ("disabled", [], [])
