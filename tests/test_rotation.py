"""Secrets move to the newest key, whatever field they are in; one that no key opens is named and stops nobody."""

from datetime import UTC, datetime
from io import StringIO

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.db import connection

from channels_app.models import Channel, Notification
from escalation.models import Integration, Workspace
from mapping import rotation
from mapping.models import Device, Member

pytestmark = pytest.mark.django_db
HIDDEN = "hidden-words"


@pytest.fixture
def secrets() -> None:
    member = Member.objects.create_user("a@example.com")
    Device.objects.create(member=member, name="phone", platform="web", push_token=HIDDEN)
    for n in range(3):
        Channel.objects.create(kind="x", name=f"Bot {n}", settings={"token": HIDDEN}, proxy=f"http://u:{HIDDEN}@p" if n else "")
    Notification.objects.create(event="code", severity="Info", secret_context={"code": HIDDEN}, created_at=datetime(2026, 1, 1, tzinfo=UTC))
    Integration.objects.create(workspace=Workspace.objects.create(name="w"), name="i")


def run() -> str:
    out = StringIO()
    call_command("rotate_secrets", stdout=out)
    return out.getvalue()


def test_after_a_rotation_the_old_key_can_go(secrets, settings, monkeypatch):
    monkeypatch.setattr(rotation, "WINDOW", 2)
    assert {f"{model.__name__}.{field.name}" for model, field in rotation.encrypted_fields()} >= {
        "Channel.settings", "Channel.proxy", "Device.push_token", "Integration.key", "Notification.secret_context",
    }  # fmt: skip
    key = Integration.objects.get().key
    settings.ENCRYPTION_KEYS = [new := Fernet.generate_key().decode(), *settings.ENCRYPTION_KEYS]
    said = run()
    assert said.startswith("8 secrets were encrypted with the newest key; 0 were already.") and "may go" in said
    settings.ENCRYPTION_KEYS = [new]
    assert Integration.objects.get().key == key and Device.objects.get().push_token == HIDDEN
    assert [row.settings for row in Channel.objects.all()] == [{"token": HIDDEN}] * 3
    assert Channel.objects.order_by("id").values_list("proxy", flat=True)[0] == "", "what is empty stays empty"
    assert Notification.objects.get().secret_context == {"code": HIDDEN}
    assert run() == "0 secrets were encrypted with the newest key; 8 were already.\n"


def test_what_no_key_opens_is_named_and_stays_and_the_rest_is_rotated(secrets, settings):
    lost = Channel.objects.order_by("id")[1]
    sealed = Fernet(Fernet.generate_key()).encrypt(HIDDEN.encode()).decode()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE channels_app_channel SET settings = %s WHERE id = %s", [sealed, lost.id])
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode(), *settings.ENCRYPTION_KEYS]
    out = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("rotate_secrets", stdout=out)
    assert ended.value.code == 1
    assert f"No key opens channel {lost.id} (Bot 1): settings." in out.getvalue() and HIDDEN not in out.getvalue()
    assert "7 secrets" in out.getvalue() and "may go" not in out.getvalue()
    with connection.cursor() as cursor:
        cursor.execute("SELECT settings FROM channels_app_channel WHERE id = %s", [lost.id])
        assert cursor.fetchone()[0] == sealed


def test_what_somebody_saves_meanwhile_wins(secrets, settings):
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode(), *settings.ENCRYPTION_KEYS]

    def save(execute, sql, params, many, context):
        if sql.startswith("UPDATE mapping_device t"):
            Device.objects.update(push_token="newer words")
        return execute(sql, params, many, context)

    with connection.execute_wrapper(save):
        done = rotation.rotate()
    assert done.missed == 1 and Device.objects.get().push_token == "newer words"
