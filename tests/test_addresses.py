"""Where a person is reached: every way that is there, and of every way that is not, why."""

from datetime import UTC, datetime
from typing import Any

import pytest

from channels_app import addresses, transport
from channels_app.addresses import Missing, Target
from channels_app.models import Channel, Preference
from channels_app.transport import Transport
from mapping.models import ContactPoint, Device, Member

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)


def style(kind: str, reach: Any, **fields: Any) -> type[Transport]:
    return type(kind.title(), (Transport,), {"kind": kind, "reach": reach, "person": reach != "group", "group": reach == "group", **fields})


@pytest.fixture
def lee(db: None, monkeypatch: pytest.MonkeyPatch) -> Member:
    for kind, reach in (("voice", "phone"), ("sms", "phone"), ("email", "email"), ("push", "device"), ("im", "account"), ("room", "group")):
        monkeypatch.setitem(transport.transports(), kind, style(kind, reach))
    return Member.objects.create_user("lee@example.com", "Lee")


def channel(kind: str, name: str = "", **fields: Any) -> Channel:
    return Channel.objects.create(kind=kind, name=name or kind, **fields)


def point(member: Member, kind: str, value: str, **fields: Any) -> ContactPoint:
    return ContactPoint.objects.create(member=member, kind=kind, value=value, **({"verified_at": NOW} | fields))


def ways(member: Member, severity: str = "Critical", kinds: Any = None) -> list[Target | Missing]:
    return addresses.reach([member.id], severity, NOW, kinds=kinds)[member.id]


def reasons(found: list[Target | Missing]) -> list[str]:
    return [item.reason for item in found if isinstance(item, Missing)]


def test_the_first_enabled_channel_of_a_kind_by_position(lee):
    channel("sms", "late", position=2)
    channel("sms", "off", position=0, status="disabled")
    first = channel("sms", "first", position=1)
    point(lee, "phone", "+8613800138000")
    assert ways(lee, kinds=["sms"]) == [Target(first.id, "+8613800138000", 0, "sms")]


@pytest.mark.parametrize(
    ("make", "kind", "why"),
    [
        (lambda lee: None, "sms", "no phone number"),
        (lambda lee: point(lee, "phone", "+8613800138000", verified_at=None), "sms", "not verified"),
        (lambda lee: point(lee, "email", "a@example.com", verified_at=None), "email", "not verified"),
        (lambda lee: point(lee, "email", "a@example.com", bounced_at=NOW), "email", "came back"),
        (lambda lee: None, "push", "No device is linked"),
        (lambda lee: Device.objects.create(member=lee, name="x", platform="ios", push_token="t", enabled=False), "push", "switched on"),
        (lambda lee: None, "im", "not linked"),
        (lambda lee: None, "room", "groups and not persons"),
        (lambda lee: Channel.objects.filter(kind="sms").update(status="disabled"), "sms", "no enabled channel"),
        (lambda lee: None, "pigeon", "does not exist"),
    ],
)
def test_what_is_missing_says_why(lee, make, kind, why):
    for each in ("sms", "email", "push", "im", "room"):
        channel(each)
    make(lee)
    assert len(reasons(ways(lee, kinds=[kind]))) == 1 and why in reasons(ways(lee, kinds=[kind]))[0]


def test_the_second_point_is_used_when_the_first_is_not_verified(lee):
    mail = channel("email")
    point(lee, "email", "first@example.com", verified_at=None, position=0)
    point(lee, "email", "second@example.com", position=1)
    assert ways(lee, kinds=["email"]) == [Target(mail.id, "second@example.com", 0, "email")]


def test_every_linked_device_rings(lee):
    push = channel("push")
    devices = [Device.objects.create(member=lee, name=name, platform="ios", push_token=name) for name in ("one", "two")]
    assert [item.target for item in ways(lee, kinds=["push"])] == [f"device:{device.id}" for device in devices]
    assert {item.channel_id for item in ways(lee, kinds=["push"])} == {push.id}


def test_a_preference_has_its_order_its_delay_and_its_own_channel(lee):
    point(lee, "phone", "+8613800138000")
    point(lee, "email", "lee@example.com")
    sms, mail, other = channel("sms"), channel("email"), channel("email", "other")
    Preference.objects.create(member=lee, severity="Critical", kind="sms", position=2, delay=120)
    Preference.objects.create(member=lee, severity="Critical", kind="email", channel=other, position=1)
    Preference.objects.create(member=lee, severity="Info", kind="email", position=0)
    assert ways(lee) == [Target(other.id, "lee@example.com", 0, "email"), Target(sms.id, "+8613800138000", 120, "sms")]
    assert ways(lee, "Info") == [Target(mail.id, "lee@example.com", 0, "email")]
    Channel.objects.filter(id=other.id).update(status="disabled")
    assert reasons(ways(lee)) == ["The channel of the preference is switched off."]


def test_the_same_place_is_told_once_at_the_shortest_delay(lee):
    point(lee, "email", "lee@example.com")
    mail = channel("email")
    Preference.objects.create(member=lee, severity="Critical", kind="email", position=0, delay=60)
    Preference.objects.create(member=lee, severity="Critical", kind="email", channel=mail, position=1)
    assert ways(lee) == [Target(mail.id, "lee@example.com", 0, "email")]


def test_without_a_preference_a_critical_rings_wherever_it_can_and_an_info_is_a_mail(lee):
    for kind in ("sandbox_app", "sandbox_voice", "sandbox_sms", "sandbox_email", "sandbox_group", "sms", "push"):
        channel(kind)
    assert [item.kind for item in ways(lee)] == ["sandbox_app", "sandbox_voice", "sandbox_sms", "sandbox_email"]
    assert [item.kind for item in ways(lee, "Warning")] == ["sandbox_app", "sandbox_email"]
    assert [item.kind for item in ways(lee, "Info")] == ["sandbox_email"]
    assert {item.target for item in ways(lee)} == {f"member:{lee.id}"}


def test_without_a_preference_something_is_better_than_nothing(lee):
    point(lee, "phone", "+8613800138000")
    sms = channel("sms")
    assert ways(lee, "Info") == [Target(sms.id, "+8613800138000", 0, "sms")]


def test_nobody_is_silently_left_out(lee):
    gone = Member.objects.create_user("gone@example.com", is_active=False)
    channel("sandbox_app")
    found = addresses.reach([lee.id, gone.id], "Critical", NOW)
    assert isinstance(found[lee.id][0], Target) and reasons(found[gone.id]) == ["The person is not active."]
    Channel.objects.all().delete()
    assert len(reasons(ways(lee))) == 1
    assert addresses.reach([], "Critical", NOW) == {}


def test_many_people_cost_no_query_each(lee, django_assert_max_num_queries):
    channel("sandbox_app")
    members = [Member.objects.create_user(f"m{number}@example.com") for number in range(30)]
    with django_assert_max_num_queries(6):
        assert len(addresses.reach([member.id for member in members], "Critical", NOW)) == 30


def test_whether_another_channel_takes_over_pages(lee, monkeypatch, django_assert_num_queries):
    both = style("both", "account", person=False, personal=True, group=True, fallback_kinds=("sms",), targets=lambda settings: ["chat"])
    monkeypatch.setitem(transport.transports(), "both", both)
    spare = channel("room", "spare")
    made = {
        "mail": channel("email"),
        "call": channel("voice", fallback_kinds=["sms"]),
        "room": channel("room"),
        "led": channel("room", "led", fallback_channel=spare),
        "both": channel("both"),
    }

    def said() -> dict[str, str]:
        with django_assert_num_queries(1):
            found = addresses.backing()
        return {name: found[row.id] for name, row in made.items()}

    assert said() == {"mail": "none", "call": "none", "room": "none", "led": "all", "both": "none"}
    channel("sms")
    channel("email", "another vendor")
    assert said() == {"mail": "all", "call": "all", "room": "none", "led": "all", "both": "some"}
    Channel.objects.filter(kind__in=("sms", "email")).update(status="disabled")
    Channel.objects.filter(id=spare.id).update(status="disabled")
    assert said() == {"mail": "none", "call": "none", "room": "none", "led": "none", "both": "none"}
