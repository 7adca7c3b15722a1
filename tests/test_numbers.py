"""The numbers that really call: whose they are, the contact card as an independent reader and the standard's grammar take it, and who is told."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import vobject
from cryptography.fernet import Fernet
from django_q.models import Schedule
from hypothesis import given
from hypothesis import strategies as st

from channels_app import numbers
from channels_app.models import Channel, Delivery, Notification
from mapping.clock import db_now
from mapping.models import ContactPoint, Installation, Member, Team
from mapping.vcard import card
from templates_app.choose import render_or_default
from templates_app.samples import sample

NOW = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
VOICE = "aliyun_voice"


# ---- the card ------------------------------------------------------------------------------------------------------------------------

# RFC 6350, section 3.3, as far as a card of ours uses it: contentline = name *(";" param) ":" value CRLF, after unfolding.
_PARAM = r'[A-Z-]+=(?:"[^"\x00-\x1f\x7f]*"|[^";:,\x00-\x1f\x7f]*)(?:,(?:"[^"\x00-\x1f\x7f]*"|[^";:,\x00-\x1f\x7f]*))*'
_LINE = re.compile(rf"([A-Z-]+)((?:;{_PARAM})*):([^\x00-\x08\x0a-\x1f\x7f]*)")
_TEXT = re.compile(r"(?:[^\\,;\x00-\x1f\x7f]|\\[\\,;n])*")


def read(text: str) -> list[tuple[str, str, str]]:
    """The lines of a card, each checked: (name, parameters, value)."""
    assert text.endswith("\r\n") and "\n" not in text.replace("\r\n", "")
    for line in text.split("\r\n"):
        assert len(line.encode()) <= 75, line
    found = []
    for line in text[:-2].replace("\r\n ", "").split("\r\n"):
        match = _LINE.fullmatch(line)
        assert match, line
        found.append((match[1], match[2], match[3]))
        if match[1] in ("FN", "NOTE", "ORG", "TEL"):
            assert _TEXT.fullmatch(match[3]), line
    names = [name for name, _params, _value in found]
    # Section 6.1.1, 6.7.9 and 6.2.1: where BEGIN, VERSION and END stand, and that there is a name.
    assert names[0] == "BEGIN" and found[1] == ("VERSION", "", "4.0") and names[-1] == "END" and "FN" in names
    return found


def made(name: str = "Flashduty", note: str = "Do not block them.") -> str:
    return card(
        [("zh-Hans", "值班电话"), ("en", name)], ["+8657188881234", "+14155550100"], notes=[("zh-Hans", "请勿拦截"), ("en", note)],
        url="https://oncall.example.com/me/", uid="6ba7b810-9dad-11d1-80b4-00c04fd430c8", now=NOW,
    )  # fmt: skip


def test_a_card_is_what_the_standard_says():
    lines = read(made())
    assert [value for name, _params, value in lines if name == "TEL"] == ["+8657188881234", "+14155550100"]
    assert [(params, value) for name, params, value in lines if name == "FN"] == [
        (";ALTID=1;LANGUAGE=zh-Hans;PREF=1", "值班电话"), (";ALTID=1;LANGUAGE=en;PREF=2", "Flashduty"),
    ]  # fmt: skip
    assert ("REV", "", "20260302T030000Z") in lines and ("KIND", "", "org") in lines


@given(st.text(max_size=200), st.text(max_size=400))
def test_whatever_an_installation_is_called_it_stays_one_card(name, note):
    text = made(name, note)
    assert [item[0] for item in read(text)].count("END") == 1
    # An independent reader (vobject) unfolds and unescapes to the same words.
    found = vobject.readOne(text)
    plain = "".join(char for char in name.replace("\r\n", "\n") if char == "\n" or (char >= " " and char != "\x7f"))
    assert found.fn_list[1].value == plain
    assert [tel.value for tel in found.tel_list] == ["+8657188881234", "+14155550100"]


# ---- whose numbers -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def lee(db):
    lee = Member.objects.create_user("lee@example.com", "Lee")
    ContactPoint.objects.create(member=lee, kind="phone", value="+8613800138000", verified_at=NOW)
    ContactPoint.objects.create(member=lee, kind="email", value="lee@example.com", verified_at=NOW)
    return lee


def voice(name: str, text: str, **fields) -> Channel:
    made = Channel.objects.create(kind=VOICE, name=name, settings={"numbers": text}, **fields)
    Channel.objects.filter(pk=made.pk).update(updated_at=NOW - timedelta(hours=1))
    return made


def calls(member) -> tuple[str, ...]:
    return numbers.calling([member.pk])[member.pk]


def test_only_what_may_call_this_person_by_this_phone(lee):
    voice("A", "+1 415 555 0100\nCN: +86 571 8888 1234\nCN: +86 571 8888 1235")
    voice("Other region", "+44 20 7946 0000", regions=["GB"])
    voice("Off", "+86 10 8888 0000", status="disabled")
    voice("Another team's", "+86 10 8888 0001", team=Team.objects.create(name="Other"))
    mine = Team.objects.create(name="Mine")
    mine.members.add(lee)
    voice("My team's", "+86 10 8888 0002", team=mine, position=5)
    Channel.objects.create(kind="sandbox_voice", name="Played")
    assert calls(lee) == ("+8657188881234", "+8657188881235", "+861088880002")
    abroad = Member.objects.create_user("kim@example.com", "Kim")
    assert calls(abroad) == ()
    ContactPoint.objects.create(member=abroad, kind="phone", value="+6591234567")
    assert calls(abroad) == ("+14155550100",)


def test_numbers_nobody_can_read_are_left_out(lee):
    voice("A", "nonsense")
    assert calls(lee) == () and numbers.card_of(lee, NOW) == ""


def test_a_channel_whose_key_is_gone_stops_nobodys_page(lee, client, settings):
    voice("A", "+86 571 8888 1234")
    settings.ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    client.force_login(lee)
    assert calls(lee) == () and client.get("/me/").status_code == 200


def test_the_card_of_a_person_is_in_both_languages_theirs_first(lee):
    voice("A", "+86 571 8888 1234")
    Installation.get()
    Installation.objects.update(name="Acme; Ops, Ltd")
    lee.language = "zh-hans"
    names = [(params, value) for name, params, value in read(numbers.card_of(lee, NOW)) if name == "FN"]
    assert [params for params, _value in names] == [";ALTID=1;LANGUAGE=zh-Hans;PREF=1", ";ALTID=1;LANGUAGE=en;PREF=2"]
    assert names[1][1] == "Acme\\; Ops\\, Ltd calls"


# ---- who is told ---------------------------------------------------------------------------------------------------------------------


def told() -> list[tuple[str, list[str]]]:
    rows = Delivery.objects.filter(notification__event="numbers").select_related("notification", "member").order_by("id")
    return [(row.member.name, row.notification.context["numbers"]) for row in rows]


def test_members_are_told_once_for_each_change_and_only_those_whose_phone_is_verified(lee):
    mail = Channel.objects.create(kind="email", name="Mail", settings={"host": "mail.example.com"})
    kim = Member.objects.create_user("kim@example.com", "Kim")
    ContactPoint.objects.create(member=kim, kind="phone", value="+8613800138001")
    ContactPoint.objects.create(member=kim, kind="email", value="kim@example.com", verified_at=NOW)
    assert numbers.announce(NOW) == 0
    a = voice("A", "+86 571 8888 1234")
    assert numbers.announce(NOW) == 1 and numbers.announce(NOW) == 0
    assert told() == [("Lee", ["+86 571 8888 1234"])]
    assert Delivery.objects.get().channel == mail and not Notification.objects.get().is_page
    # Two channels are changed one after the other: nobody is told before the operator has done, and then once.
    voice("B", "+86 10 8888 0000")
    a.settings = {"numbers": "+86 571 8888 9999"}
    a.save()
    assert numbers.announce(db_now()) == 0
    later = db_now() + numbers.SETTLED + timedelta(seconds=1)
    assert numbers.announce(later) == 1 and numbers.announce(later) == 0
    assert told()[1:] == [("Lee", ["+86 571 8888 9999", "+86 10 8888 0000"])]
    # When no number calls any more there is nothing to say; the next one is news again.
    Channel.objects.filter(kind=VOICE).update(status="disabled")
    assert numbers.announce(later) == 0
    Channel.objects.filter(name="B").update(status="enabled")
    assert numbers.announce(later) == 1


def test_who_cannot_be_told_yet_is_told_as_soon_as_they_can(lee):
    voice("A", "+86 571 8888 1234")
    assert numbers.announce(NOW) == 0  # there is no channel for mail yet
    Channel.objects.create(kind="email", name="Mail", settings={"host": "mail.example.com"})
    ContactPoint.objects.filter(kind="email").update(verified_at=None)
    assert numbers.announce(NOW) == 0
    ContactPoint.objects.filter(kind="email").update(verified_at=NOW)
    assert numbers.announce(NOW) == 1 and numbers.announce(NOW) == 0


def test_the_job_is_planned(db):
    assert Schedule.objects.get(name="numbers").func == "channels_app.numbers.announce"


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("fmt", ["plain", "html", "markdown", "voice"])
def test_the_word_of_it_in_both_languages(language, fmt):
    made = render_or_default([], "numbers", sample(language, event="numbers"), kind="email", fmt=fmt, language=language)
    assert made.error is None and made.subject
    if fmt != "voice":
        assert "+86 571 8888 1234" in (made.html or made.text) and "contacts.vcf" in (made.html or made.text)
