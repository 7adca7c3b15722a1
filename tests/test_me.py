"""A page of one's own, and signing in."""

import re
import time
from datetime import timedelta

import pytest
from django.test import Client

from channels_app import links
from channels_app.models import Channel, Preference
from flashduty.web import login
from mapping.clock import db_now
from mapping.models import ApiKey, ContactPoint, Device, Member, Throttle
from tests.world import layer

pytestmark = pytest.mark.django_db


@pytest.fixture
def lee(client):
    lee = Member.objects.create_user("lee@example.com", "Lee", "correct horse battery")
    client.force_login(lee)
    return lee


def do(client, verb, **fields):
    answer = client.post("/me/", {"do": verb, **fields})
    assert answer.status_code in (200, 302), answer.content
    return (client.get("/me/") if answer.status_code == 302 else answer).content.decode()


# ---- the page ------------------------------------------------------------------------------------------------------------------------


def test_it_is_for_whoever_is_signed_in(client):
    assert client.get("/me/")["Location"].startswith("/admin/login/?next=/me/")
    assert client.post("/me/", {"do": "cut_links"}).status_code == 302


def test_a_forged_form_changes_nothing(lee):
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(lee)
    assert browser.post("/me/", {"do": "cut_links"}).status_code == 403
    assert Member.objects.get(pk=lee.pk).links_valid_from is None


def test_a_get_changes_nothing(lee, client):
    client.get("/me/?do=cut_links")
    assert Member.objects.get(pk=lee.pk).links_valid_from is None


def test_name_language_and_zone(lee, client):
    text = do(client, "profile", name="李雷", language="zh-hans", time_zone="Asia/Shanghai")
    assert 'lang="zh-hans"' in text and "李雷" in text
    text = do(client, "profile", name="Lee", language="zh-hans", time_zone="Mars/Olympus")
    assert "Mars/Olympus" in text
    assert Member.objects.get(pk=lee.pk).time_zone == "Asia/Shanghai"


def test_what_is_wrong_comes_back_as_it_was_typed(lee, client):
    text = do(client, "profile", name="Lei", language="zh-hans", time_zone="Mars/Base")
    profile = text[text.index('id="profile"') :]
    assert 'value="Lei"' in profile and 'value="zh-hans" selected' in profile and 'value="Mars/Base"' in profile and "note bad" in profile
    assert "<h1>Lee</h1>" in text  # nothing of it is saved
    text = do(client, "point_add", kind="phone", value="138 0013 8000")
    assert 'value="phone" selected' in text and 'value="138 0013 8000"' in text
    assert "“138 0013 8000” is not a phone number: write it with + and the country code, such as +86 138 0013 8000." in text
    text = do(client, "quiet", quiet_start="20:00", quiet_end="20:00", quiet_days=["2"], quiet_breaks=["Warning"])
    quiet = text[text.index('id="quiet"') : text.index('id="devices"')]
    assert quiet.count('value="20:00"') == 2 and "would never end" in quiet and 'value="2" checked' in quiet and quiet.count("checked") == 2
    assert "Switch off" not in quiet and Member.objects.get(pk=lee.pk).quiet is None


def test_a_page_of_ones_own_cannot_raise_a_role_or_change_the_sign_in(lee, client):
    do(client, "profile", name="Lee", language="en", time_zone="UTC", role="administrator", email="x@example.com", is_active="")
    member = Member.objects.get(pk=lee.pk)
    assert (member.role, member.email, member.is_active) == ("member", "lee@example.com", True)


# ---- numbers and addresses -----------------------------------------------------------------------------------------------------------


def test_a_number_is_bound_unverified_and_said_to_be_so(lee, client):
    text = do(client, "point_add", kind="phone", value=" +86 138 0013 8000 ")
    point = ContactPoint.objects.get()
    assert (point.member, point.value, point.verified_at) == (lee, "+8613800138000", None)
    assert "not verified" in text and "It is not paged" in text


@pytest.mark.parametrize(
    ("kind", "value"), [("phone", "12"), ("phone", "a@example.com"), ("email", "+8613800138000"), ("fax", "1"), ("email", "")]
)
def test_what_is_no_number_and_no_address_is_refused(lee, client, kind, value):
    text = do(client, "point_add", kind=kind, value=value)
    assert not ContactPoint.objects.exists() and "note bad" in text


def test_the_same_twice_and_too_many(lee, client):
    do(client, "point_add", kind="email", value="a@example.com")
    assert "already" in do(client, "point_add", kind="email", value="a@example.com")
    for n in range(12):
        do(client, "point_add", kind="email", value=f"a{n}@example.com")
    assert ContactPoint.objects.count() == 10


def test_a_bounced_address_says_so(lee, client):
    ContactPoint.objects.create(
        member=lee, kind="email", value="a@example.com", verified_at=db_now(), bounced_at=db_now(), bounce_reason="550 no such user"
    )
    text = client.get("/me/").content.decode()
    assert "Messages came back" in text and "550 no such user" in text


def test_a_mail_that_waits_for_its_code_says_where_to_look(lee, client):
    Channel.objects.create(kind="sandbox_email", name="mail")
    mail = ContactPoint.objects.create(member=lee, kind="email", value="a@example.com")
    assert "mark it as “not spam”" not in client.get("/me/").content.decode()
    assert "mark it as “not spam”" in do(client, "point_code", point=mail.pk)


def test_the_first_one_is_chosen(lee, client):
    now = db_now()
    first, second = (
        ContactPoint.objects.create(member=lee, kind="email", value=f"{n}@example.com", verified_at=now, position=n) for n in (0, 1)
    )
    do(client, "point_first", point=second.pk)
    assert ContactPoint.objects.filter(member=lee).order_by("position").first() == second
    do(client, "point_remove", point=second.pk)
    assert list(ContactPoint.objects.all()) == [first]


@pytest.fixture
def phone(world, client):
    """Lee's unverified phone, in a demo that plays SMS."""
    lee = world.person("Lee", ["sandbox_sms"])
    client.force_login(lee)
    Member.objects.filter(pk=lee.pk).update(may_use_sandbox=True)
    return ContactPoint.objects.create(member=lee, kind="phone", value="+8613800138000")


def code_of(world, client):
    world.now = db_now()
    world.settle()
    world.fresh()
    (message,) = (m for m in client.get("/sandbox/messages").json()["messages"] if m["event"] == "code")
    (code,) = re.findall(r"\d{6}", message["text"])
    return code


def test_a_code_arrives_in_the_sandbox_and_verifies(world, client, phone):
    text = do(client, "point_code", point=phone.pk)
    assert "A code is on its way" in text and "one-time-code" in text
    code = code_of(world, client)
    assert code not in text
    assert "is verified" in do(client, "point_verify", point=phone.pk, code=f" {code[:3]} {code[3:]} ")
    phone.refresh_from_db()
    assert phone.is_usable


def test_wrong_codes_are_counted_although_they_are_refused(world, client, phone):
    do(client, "point_code", point=phone.pk)
    code = code_of(world, client)
    wrong = "000000" if code != "000000" else "111111"
    for left in (4, 3, 2, 1, 0):
        assert f"Tries left: {left}" in do(client, "point_verify", point=phone.pk, code=wrong)
    assert "Too many wrong codes" in do(client, "point_verify", point=phone.pk, code=code)
    phone.refresh_from_db()
    assert phone.verified_at is None
    assert "A code was sent a moment ago" in do(client, "point_code", point=phone.pk)


def test_in_production_the_sandbox_proves_nothing(world, client, phone, settings):
    settings.MODE = "production"
    assert "No code can be sent to a phone" in do(client, "point_code", point=phone.pk)


def test_nobody_elses_rows_can_be_touched(lee, client):
    other = Member.objects.create_user("o@example.com")
    point = ContactPoint.objects.create(member=other, kind="email", value="o@example.com")
    key, _secret = ApiKey.issue(other, "theirs")
    device = Device.objects.create(member=other, name="phone", platform="ios")
    for verb in ("point_code", "point_verify", "point_first", "point_remove"):
        assert "You have no such" in do(client, verb, point=point.pk, code="123456")
    assert "You have no such" in do(client, "key_revoke", key=key.pk)
    assert "You have no such" in do(client, "device_remove", device=device.pk)
    assert "You have no such" in do(client, "device_switch", device=device.pk)
    assert ContactPoint.objects.exists() and ApiKey.objects.exists() and Device.objects.get().enabled
    assert "o@example.com" not in client.get("/me/").content.decode()


# ---- how one is told -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def channels(db):
    return {
        kind: Channel.objects.create(kind=kind, name=kind, settings={"host": "127.0.0.1", "port": 25} if kind == "email" else {})
        for kind in ("sandbox_app", "sandbox_sms", "email")
    }


def ways(member, severity="Critical"):
    return list(member.preferences.filter(severity=severity).order_by("position").values_list("kind", "delay"))


def test_channels_in_order_with_a_delay_and_a_sentence_about_them(lee, client, channels):
    text = do(client, "ways:save", severity="Critical", way=["sandbox_app", "sandbox_sms", ""], delay=["0", "120", "0"])
    assert ways(lee) == [("sandbox_app", 0), ("sandbox_sms", 120)]
    assert "App at once, SMS after 2 minutes, until somebody has acknowledged." in text
    do(client, "ways:up:1", severity="Critical", way=["sandbox_app", "sandbox_sms"], delay=["0", "120"])
    assert ways(lee) == [("sandbox_sms", 120), ("sandbox_app", 0)]
    do(client, "ways:remove:0", severity="Critical", way=["sandbox_sms", "sandbox_app"], delay=["120", "0"])
    assert ways(lee) == [("sandbox_app", 0)]
    assert ways(lee, "Warning") == []


def test_a_way_that_does_not_work_is_not_passed_over(lee, client, channels):
    ContactPoint.objects.create(member=lee, kind="email", value="a@example.com")
    text = do(client, "ways:save", severity="Info", way=["email"], delay=["0"])
    assert "The e-mail address is not verified." in text and "Nobody can tell you anything at this severity." in text


def test_channels_of_others_and_of_groups_cannot_be_chosen(lee, client, channels):
    Channel.objects.create(kind="sandbox_group", name="g")
    for way in ("sandbox_group", "webhook", "nonsense", "sandbox_app:999999", "sandbox_app:x"):
        assert "You cannot choose this channel." in do(client, "ways:save", severity="Critical", way=[way], delay=["0"])
    assert "There is no such severity." in do(client, "ways:save", severity="Ok", way=["sandbox_app"], delay=["0"])
    assert not Preference.objects.exists()


def test_the_same_channel_twice_counts_once_and_a_delay_has_an_end(lee, client, channels):
    do(client, "ways:save", severity="Critical", way=["sandbox_app", "sandbox_app"], delay=["99999999", "0"])
    assert ways(lee) == [("sandbox_app", 86400)]


# ---- keys and devices ----------------------------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_works(lee, client):
    answer = client.post("/me/", {"do": "key_add", "name": "ci", "days": "30", "read_only": "on"})
    (secret,) = re.findall(r"<code>([\w-]{40})</code>", answer.content.decode())
    assert answer["Cache-Control"] == "no-store"
    key = ApiKey.find(secret, db_now())
    assert key is not None and key.expires_at is not None
    assert key.member == lee and key.read_only and timedelta(days=29) < key.expires_at - db_now() < timedelta(days=31)
    assert secret not in client.get("/me/").content.decode()
    do(client, "key_revoke", key=key.pk)
    assert ApiKey.find(secret, db_now()) is None


def test_at_most_five_keys(lee, client):
    for n in range(5):
        assert client.post("/me/", {"do": "key_add", "name": f"k{n}", "days": "0"}).status_code == 200
    assert "delete one first" in do(client, "key_add", name="k6", days="0")
    assert ApiKey.objects.count() == 5


def test_devices_are_switched_and_unlinked(lee, client):
    device = Device.objects.create(member=lee, name="Lee's phone", platform="ios")
    do(client, "device_switch", device=device.pk)
    assert not Device.objects.get().enabled
    do(client, "device_remove", device=device.pk)
    assert not Device.objects.exists()


# ---- cutting links -------------------------------------------------------------------------------------------------------------------


def test_revoking_kills_links_and_other_browsers_but_not_this_one(world, client):
    lee = world.person("Lee", ["sandbox_app"])
    world.rule(layer(lee))
    world.alert("db down")
    world.fresh()
    here, elsewhere = client, Client()
    here.force_login(lee)
    elsewhere.force_login(lee)
    path = links.person_link(world.incident().pk, lee.pk, db_now() - timedelta(seconds=2)).removeprefix("http://testserver")
    assert elsewhere.get(path).status_code == elsewhere.get("/me/").status_code == 200
    do(here, "cut_links")
    assert elsewhere.get(path).status_code == 410
    assert elsewhere.get("/me/").status_code == 302
    assert here.get("/me/").status_code == 200


# ---- signing in ----------------------------------------------------------------------------------------------------------------------


def sign_in(email, password, address="192.0.2.1"):
    return Client(REMOTE_ADDR=address).post("/admin/login/?next=/me/", {"username": email, "password": password, "next": "/me/"})


def refusal(answer):
    assert answer.status_code == 200
    return " ".join(str(line) for line in answer.context["form"].non_field_errors())


def test_signing_in(lee):
    answer = sign_in("LEE@example.com ", "correct horse battery")
    assert (answer.status_code, answer["Location"]) == (302, "/me/")


def test_an_account_that_does_not_exist_is_answered_alike(lee):
    Member.objects.create_user("gone@example.com", password="correct horse battery", is_active=False)
    wrong, unknown, inactive = (
        sign_in("lee@example.com", "x"),
        sign_in("nobody@example.com", "x"),
        sign_in("gone@example.com", "correct horse battery"),
    )
    assert refusal(wrong) == refusal(unknown) == refusal(inactive) == "E-mail and password do not match an active account."


def test_ten_tries_an_account_and_the_right_password_waits_too(lee):
    for _turn in range(10):
        assert "do not match" in refusal(sign_in("lee@example.com", "x"))
    assert "Try again in 10 minutes." in refusal(sign_in("Lee@example.com", "correct horse battery", "192.0.2.2"))
    for _turn in range(10):
        sign_in("nobody@example.com", "x", "192.0.2.3")
    assert "Try again in 10 minutes." in refusal(sign_in("nobody@example.com", "x", "192.0.2.3"))  # as if it existed
    Throttle.objects.update(window_end=db_now() - timedelta(seconds=1))
    assert sign_in("lee@example.com", "correct horse battery").status_code == 302


def test_thirty_tries_an_address(lee):
    for n in range(30):
        sign_in(f"{n}@example.com", "x", "192.0.2.9")
    assert "Too many tries" in refusal(sign_in("lee@example.com", "correct horse battery", "192.0.2.9"))
    assert sign_in("lee@example.com", "correct horse battery", "192.0.2.8").status_code == 302


def test_a_success_clears_the_account_and_does_not_wear_out_an_office(lee):
    for _turn in range(9):
        sign_in("lee@example.com", "x")
    assert sign_in("lee@example.com", "correct horse battery").status_code == 302
    for _turn in range(40):
        assert sign_in("lee@example.com", "correct horse battery").status_code == 302
    assert Throttle.objects.get(key="login:address:192.0.2.1").count == 9


def test_an_address_written_by_the_client_is_not_believed(lee, settings, rf):
    request = rf.get("/", REMOTE_ADDR="192.0.2.1", headers={"X-Forwarded-For": "1.1.1.1, 2.2.2.2"})
    assert login.address_of(request) == "192.0.2.1"
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    assert login.address_of(request) == "2.2.2.2"


@pytest.mark.slow
def test_the_answer_takes_as_long_for_an_account_that_does_not_exist(lee, settings):
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.PBKDF2PasswordHasher"]
    lee.set_password("correct horse battery")
    lee.save()
    Member.objects.create_user("unset@example.com")  # signs in by no password

    def quickest(email):
        times = []
        for n in range(3):
            started = time.process_time()
            sign_in(email, "x", f"192.0.2.{n}")
            times.append(time.process_time() - started)
        return min(times)

    known, unknown, unset = quickest("lee@example.com"), quickest("nobody@example.com"), quickest("unset@example.com")
    assert 0.5 < unknown / known < 2 and 0.5 < unset / known < 2, (known, unknown, unset)
