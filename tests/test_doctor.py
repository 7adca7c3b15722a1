"""`manage.py doctor`: each thing that would keep a page from arriving is found, with what to do about it, and nothing else is."""

import io

import pytest
from cryptography.fernet import Fernet
from django.core.management import call_command
from django.utils import timezone

from channels_app.models import Channel, ChannelHealth
from flashduty import doctor
from mapping.clock import db_now
from mapping.models import ContactPoint, Device, Installation, Member

pytestmark = pytest.mark.django_db


@pytest.fixture
def sound(settings):
    """An installation with nothing wrong: Lee, with a verified phone, an SMS and an e-mail channel."""
    settings.BASE_URL = "https://oncall.example.com"
    lee = Member.objects.create_user("lee@example.com", "Lee")
    ContactPoint.objects.create(member=lee, kind="phone", value="+8613800138000", verified_at=timezone.now())
    ContactPoint.objects.create(member=lee, kind="email", value="lee@example.com", verified_at=timezone.now())
    Installation.get().catch_all_members.add(lee)
    Channel.objects.create(kind="http_sms", name="Text")
    Channel.objects.create(kind="email", name="Mail", settings={"host": "mail.example.com", "password": "topsecret"})
    return lee


def found(check) -> list[str]:
    return [f"{item.level}: {item.what} {item.fix}" for item in check(db_now())]


def run(*args: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("doctor", *args, stdout=out, no_color=True)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_nothing_is_wrong(sound):
    assert doctor.examine(db_now()) == []
    assert run("--strict") == (0, f"{len(doctor.CHECKS)} checks, nothing to say.\n")


def test_an_empty_installation_is_told_what_to_do():
    code, text = run()
    assert code == 1 and "No enabled channel reaches a person" in text and "names no catch-all" in text


def test_one_webhook_in_two_channels(sound):
    hook = {"url": "https://oapi.dingtalk.com/robot/send?access_token=1"}
    for name, settings in (("Ops", hook), ("Ops again", hook | {"keyword": "x"}), ("Dev", {"url": hook["url"] + "2"})):
        Channel.objects.create(kind="dingtalk", name=name, settings=settings)
    Channel.objects.create(kind="wecom", name="Other", settings=hook)
    for thread in ("1", "2"):
        Channel.objects.create(kind="discord", name=thread, settings={"url": "https://discord.com/x", "thread": thread})
    (line,) = found(doctor.shared_places)
    assert "Ops, Ops again" in line and "Dev" not in line and "access_token" not in line
    Channel.objects.filter(name="Ops").update(status="disabled")
    assert found(doctor.shared_places) == []


def test_warnings_end_with_one_only_when_asked(sound, settings):
    settings.BASE_URL = "http://oncall.example.com"
    assert run()[0] == 0 and run("--strict")[0] == 1
    assert "unencrypted" in run()[1]


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://oncall.example.com", True), ("https://8.8.8.8", True), ("http://localhost:8000", False), ("http://127.0.0.1:8000", False),
        ("https://10.0.0.5", False), ("https://192.168.1.2:8443", False), ("https://[::1]:8000", False), ("https://oncall", False),
        ("https://oncall.corp.internal", False), ("https://oncall.local", False), ("http://testserver", False),
    ],
)  # fmt: skip
def test_who_can_open_an_address(url, public):
    assert doctor.is_public(url) is public


def test_a_local_address_keeps_links_and_callbacks_in_the_house(sound, settings):
    settings.BASE_URL = "http://127.0.0.1:8000"
    (text,) = found(doctor.base_url)
    assert text.startswith("warning: ") and "http://127.0.0.1:8000" in text
    (text,) = found(doctor.callbacks)
    assert "Text" in text and "Mail" not in text and "/callback/" in text
    settings.BASE_URL = "https://oncall.example.com"
    assert found(doctor.callbacks) == []


def test_only_e_mail_does_not_ring(sound):
    Channel.objects.filter(name="Text").update(status="disabled")
    (text,) = found(doctor.channels)
    assert "nothing that rings" in text


def test_who_cannot_be_told_is_named(sound):
    Member.objects.create_user("kim@example.com", "Kim")
    Member.objects.create_user("guest@example.com", "Guest", role="viewer")
    Member.objects.create_user("gone@example.com", "Gone", is_active=False)
    (text,) = found(doctor.people)
    assert text.startswith("error: 1 person") and "Kim" in text and "/me/" in text and "Guest" not in text and "Gone" not in text


def test_who_is_told_by_mail_only_is_named(sound):
    kim = Member.objects.create_user("kim@example.com", "Kim")
    ContactPoint.objects.create(member=kim, kind="email", value="kim@example.com", verified_at=timezone.now())
    (text,) = found(doctor.people)
    assert text.startswith("warning: ") and "Kim" in text and "Lee" not in text


def test_many_names_are_counted(sound):
    for n in range(13):
        Member.objects.create_user(f"p{n}@example.com", f"Person {n:02d}")
    (text,) = found(doctor.people)
    assert "13 people" in text and "Person 09 and 3 more" in text


def test_a_phone_that_cannot_be_called(sound):
    ContactPoint.objects.create(member=sound, kind="phone", value="+5351234567")
    ContactPoint.objects.create(member=sound, kind="phone", value="+80012345678")
    ContactPoint.objects.create(member=sound, kind="phone", value="+442079460000")
    ContactPoint.objects.create(member=sound, kind="phone", value="+19002345678")  # a premium-rate number
    Installation.objects.update(support_contact="the duty desk")
    cuba, nowhere, dear = found(doctor.regions)
    assert "Numbers in Cuba (+53) cannot be called" in cuba and "Lee" in cuba and "+5351234567" not in cuba
    assert "belongs to no region" in nowhere and all("contact the duty desk" in text for text in (cuba, nowhere))
    assert "premium-rate" in dear


def test_a_channel_that_failed_again_and_again(sound):
    mail = Channel.objects.get(name="Mail")
    health = ChannelHealth.objects.create(channel=mail, failures=4, last_error="refused")
    assert found(doctor.broken) == []
    ChannelHealth.objects.filter(pk=health.pk).update(failures=5)
    (text,) = found(doctor.broken)
    assert "Mail" in text and "refused" in text
    assert "it has no fallback, so its pages wait" in text
    Channel.objects.create(kind="email", name="Another")
    assert "its pages take the fallback" in found(doctor.broken)[0]


def test_no_catch_all(sound):
    Member.objects.filter(pk=sound.pk).update(is_active=False)
    assert "no catch-all" in found(doctor.catch_all)[0]


def test_secrets_whose_key_is_gone(sound, settings):
    Device.objects.create(member=sound, name="Phone", platform="ios", push_token="token")
    assert found(doctor.secrets) == []
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    texts = found(doctor.secrets)
    assert any("settings" in text for text in texts) and any("push_token" in text for text in texts)
    assert all("FLASHDUTY_ENCRYPTION_KEYS" in text and "topsecret" not in text for text in texts)


def test_voice_channels_that_do_not_say_their_numbers(sound):
    voice = Channel.objects.create(kind="aliyun_voice", name="Ali", settings={})
    (text,) = found(doctor.numbers)
    assert "Ali" in text and text.startswith("warning: ")
    voice.settings = {"numbers": "+86 571 8888 1234"}
    voice.save()
    assert found(doctor.numbers) == []


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(sound, monkeypatch):
    def explodes(_now):
        raise RuntimeError("boom")
        yield

    monkeypatch.setattr(doctor, "CHECKS", [explodes, *doctor.CHECKS])
    (finding,) = doctor.examine(db_now())
    assert "explodes" in finding.what and "boom" in finding.what and finding.level == "error"


def test_programs_of_a_sip_channel(sound, monkeypatch):
    assert found(doctor.programs) == []
    monkeypatch.setattr(doctor, "PROGRAMS", {"sms": ("no-such-program-here",)})
    (text,) = found(doctor.programs)
    assert "no-such-program-here" in text
