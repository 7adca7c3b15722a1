"""Codes: who gets one, how often, and what is left of it afterwards."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from channels_app import addresses, outbox, transport, verification
from channels_app.models import Account, Channel, Delivery, Notification, Verification
from channels_app.transport import Message, Receipt, Transport
from mapping.models import ContactPoint, Installation, Member

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)


class Mail(Transport):
    kind = "email"
    reach = "email"
    person = True
    got: list[tuple[Message, str]] = []

    def send(self, message: Message, address: str) -> Receipt:
        Mail.got.append((message, address))
        return Receipt()


class Sms(Mail):
    kind = "sms"
    reach = "phone"


class Voice(Sms):
    kind = "voice"
    format = "voice"


@pytest.fixture
def point(db: None, monkeypatch: pytest.MonkeyPatch) -> ContactPoint:
    for style in (Mail, Sms, Voice):
        monkeypatch.setitem(transport.transports(), style.kind, style)
    monkeypatch.setattr(Mail, "got", [])
    Installation.get()
    for kind in ("voice", "email", "sms"):
        Channel.objects.create(name=kind, kind=kind)
    member = Member.objects.create_user("lee@example.com", "Lee")
    return ContactPoint.objects.create(member=member, kind="email", value="lee@example.com")


def code(now: datetime = NOW) -> str:
    outbox.run_once(now)
    found = re.search(r"\d{6}", Mail.got[-1][0].text.replace(" ", ""))
    assert found is not None
    return found[0]


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(ValidationError) as error:
        call(*args)
    return str(error.value.code)


def test_the_right_code_verifies_and_works_once(point):
    verification.send_code(point, NOW)
    right = code()
    assert Mail.got[0][1] == "lee@example.com" and not point.is_usable
    verification.verify(point, f" {right[:3]} {right[3:]} ", NOW + timedelta(minutes=9))
    assert point.is_usable
    assert refused(verification.verify, point, right, NOW) == "expired"


def test_a_code_is_stored_only_hashed_and_its_message_is_wiped(point):
    verification.send_code(point, NOW)
    right = code()
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT string_agg(v::text, '') FROM channels_app_verification v)"
            " || (SELECT string_agg(d::text, '') FROM channels_app_delivery d) || (SELECT string_agg(n::text, '') FROM channels_app_notification n)"
        )
        assert right not in cursor.fetchone()[0].replace(" ", "")
    assert Delivery.objects.get().state == "sent" and Notification.objects.get().secret_context == {}


def test_five_tries_ten_minutes(point):
    verification.send_code(point, NOW)
    right = code()
    wrong = "000000" if right != "000000" else "111111"
    assert [refused(verification.verify, point, wrong, NOW) for _turn in range(5)] == ["wrong"] * 5
    assert refused(verification.verify, point, right, NOW) == "tries"
    later = NOW + timedelta(minutes=2)
    verification.send_code(point, later)
    second = code(later)
    assert refused(verification.verify, point, second, later + timedelta(minutes=10)) == "expired"
    verification.verify(point, second, later + timedelta(minutes=9, seconds=59))


def test_a_new_code_makes_the_old_one_void(point):
    verification.send_code(point, NOW)
    first = code()
    later = NOW + timedelta(seconds=61)
    verification.send_code(point, later)
    second = code(later)
    assert first == second or refused(verification.verify, point, first, later) == "wrong"


def test_codes_are_not_sent_faster_than_once_a_minute_and_five_an_hour(point):
    verification.send_code(point, NOW)
    assert refused(verification.send_code, point, NOW + timedelta(seconds=59)) == "too_soon"
    for minute in range(2, 6):
        verification.send_code(point, NOW + timedelta(minutes=minute))
    assert refused(verification.send_code, point, NOW + timedelta(minutes=10)) == "too_many"
    verification.send_code(point, NOW + timedelta(minutes=61))
    assert Verification.objects.count() == 1


def test_the_installation_has_a_limit_of_its_own(point, monkeypatch):
    monkeypatch.setattr(verification, "LIMITS", (("installation", 2, timedelta(hours=1)),))
    for number in range(2):
        other = Member.objects.create_user(f"m{number}@example.com")
        verification.send_code(ContactPoint.objects.create(member=other, kind="email", value=other.email), NOW)
    assert refused(verification.send_code, point, NOW) == "too_many"


def test_a_phone_gets_an_sms_rather_than_a_call(point):
    phone = ContactPoint.objects.create(member=point.member, kind="phone", value="+8613800138000")
    verification.send_code(phone, NOW)
    code()
    assert Delivery.objects.get().channel.kind == "sms" and Mail.got[0][1] == "+8613800138000"
    Channel.objects.update(status="disabled")
    assert refused(verification.send_code, phone, NOW + timedelta(minutes=5)) == "no_channel"


def test_a_bounced_mailbox_is_used_again_after_it_was_verified_anew(point):
    ContactPoint.objects.update(verified_at=NOW, bounced_at=NOW, bounce_reason="full")
    verification.send_code(point, NOW)
    verification.verify(point, code(), NOW)
    assert point.is_usable and point.bounce_reason == ""


# ---- accounts at IM platforms --------------------------------------------------------------------------------------------------------


class Chat(Mail):
    kind = "chat"
    reach = "group"
    group = True
    personal = True


@pytest.fixture
def account(point: ContactPoint, monkeypatch: pytest.MonkeyPatch) -> Account:
    monkeypatch.setitem(transport.transports(), "chat", Chat)
    return Account.objects.create(member=point.member, channel=Channel.objects.create(name="bot", kind="chat"), target="100")


def test_an_account_is_proved_by_a_code_that_its_own_channel_sends_to_it(account):
    def ways() -> Any:
        return addresses.reach([account.member_id], "Info", NOW, kinds=["chat"])[account.member_id]

    assert isinstance(ways()[0], addresses.Missing)
    verification.send_code(account, NOW)
    right = code()
    assert Delivery.objects.get().channel == account.channel and Mail.got[-1][1] == "100"
    assert refused(verification.verify, account, "1", NOW) == "wrong"
    verification.verify(account, right, NOW)
    assert account.verified_at == NOW and ways() == [addresses.Target(account.channel_id, "100", 0, "chat")]
    assert refused(verification.verify, account, right, NOW) == "expired"


def test_the_limits_of_codes_hold_for_accounts_too(account):
    verification.send_code(account, NOW)
    assert refused(verification.send_code, account, NOW + timedelta(seconds=59)) == "too_soon"
    for minute in range(2, 6):
        verification.send_code(account, NOW + timedelta(minutes=minute))
    assert refused(verification.send_code, account, NOW + timedelta(minutes=10)) == "too_many"


def test_a_code_goes_by_no_channel_of_somebody_else_nor_by_one_that_is_off(account, point):
    other = Member.objects.create_user("kim@example.com")
    Channel.objects.filter(pk=account.channel_id).update(owner=other)
    assert refused(verification.send_code, account, NOW) == "no_channel"
    Channel.objects.filter(pk=account.channel_id).update(owner=point.member)
    verification.send_code(account, NOW)
    Channel.objects.filter(pk=account.channel_id).update(status="disabled")
    assert refused(verification.send_code, account, NOW + timedelta(minutes=2)) == "no_channel"


def test_no_code_goes_to_where_a_group_reads(account):
    Account.objects.update(target="")
    account.refresh_from_db()
    assert refused(verification.send_code, account, NOW) == "group"


def test_a_code_to_a_phone_goes_by_the_vendor_of_its_region(point):
    phone = ContactPoint.objects.create(member=point.member, kind="phone", value="+14155552671")
    Channel.objects.filter(kind="sms").update(regions=["CN"])
    anywhere = Channel.objects.create(name="anywhere", kind="sms", position=9)
    verification.send_code(phone, NOW)
    assert Delivery.objects.get().channel == anywhere
