"""The guide's table of regions that can be called, and how a phone finds its row."""

import phonenumbers
import pytest
from django.core.exceptions import ValidationError
from django.utils.translation import override

from mapping import voice_regions
from mapping.models import ContactPoint, Installation, Member

ROWS = voice_regions.table()


def row(name):
    (found,) = (item for item in ROWS if item.en == name)
    return found


def test_the_table_has_the_guides_rows():
    assert [item.called for item in ROWS] == [True] * (1 + 218) + [False] * 13  # mainland China, outside it, and what the guide leaves out
    assert ROWS[0].en == "Mainland China" and ROWS[0].sample.split() == [
        "(010)21364727", "(010)21364713", "(010)21364708", "(0571)23675454", "(0571)23675496"
    ]  # fmt: skip


def test_every_row_is_whole_and_no_code_is_twice():
    for item in ROWS:
        assert item.zh and item.en and item.regions and item.codes, item
        for code in item.codes:
            # Every code begins with one that libphonenumber knows, as the regions of the row do.
            known = {str(phonenumbers.country_code_for_region(region)) for region in item.regions}
            assert any(code.startswith(begin) for begin in known) or item.en == "Vatican City", item
    codes = [code for item in ROWS for code in item.codes]
    assert len(codes) == len(set(codes))


def test_every_region_there_is_has_a_row():
    placed = {region for item in ROWS for region in item.regions}
    assert placed == set(phonenumbers.SUPPORTED_REGIONS)


@pytest.mark.parametrize(
    ("name", "zh", "codes", "sample"),
    [
        ("El Salvador", "萨尔瓦多", ("503",), "164"),
        ("Turkish Republic of Northern Cyprus", "北塞浦路斯土耳其共和国", ("90392",), "16465861127"),
        ("Dominican Republic", "多米尼加共和国", ("1829", "1809", "1849"), "16465861127"),
        ("Puerto Rico", "波多黎各", ("1787", "1939"), "16465861127"),
        ("Anguilla", "安圭拉", ("1264",), "16465861127"),
        ("United States/Canada", "美国/加拿大", ("1",), "16465861127"),
        ("Korea, Dem People's Rep", "朝鲜", ("850",), "16465861127"),
        ("French Guiana", "法属圭亚那", ("594",), "16465861127"),
        ("Vanuatu", "瓦努阿图", ("678",), "16465861127"),
    ],
)
def test_odd_rows(name, zh, codes, sample):
    found = row(name)
    assert (found.zh, found.codes, found.sample, found.called) == (zh, codes, sample, True)
    assert (found.name("zh-hans"), found.name("en")) == (zh, name)


@pytest.mark.parametrize(
    ("phone", "name"),
    [
        ("+8613800138000", "Mainland China"),
        ("+85291234567", "Hong Kong"),
        ("+903922281234", "Turkish Republic of Northern Cyprus"),
        ("+905331234567", "Turkey"),
        ("+12642351234", "Anguilla"),
        ("+14155550123", "United States/Canada"),
        ("+16582345678", "Jamaica"),  # an area code that is newer than the table
        ("+18095551234", "Dominican Republic"),
        ("+77012345678", "Russia/Kazakhstan"),
        ("+441481960000", "United Kingdom"),  # Guernsey
        ("+390669812345", "Vatican City"),
        ("+17215205678", "Sint Maarten"),
        ("+5351234567", "Cuba"),
        ("+870301234567", None),  # a satellite phone
        ("+80012345678", None),  # an international free number
        ("nonsense", None),
        ("", None),
    ],
)
def test_a_phone_finds_its_row(phone, name):
    found = voice_regions.find(phone)
    assert (found and found.en) == name


def test_an_example_of_every_region_is_found_there():
    for region in phonenumbers.SUPPORTED_REGIONS:
        example = phonenumbers.example_number(region)
        found = voice_regions.find(phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164))
        assert found is not None and region in found.regions, region


@pytest.mark.django_db
def test_a_phone_that_cannot_be_called_is_refused_with_whom_to_ask():
    lee = Member.objects.create_user("lee@example.com", "Lee")
    point = ContactPoint(member=lee, kind="phone", value="+53 5 1234567")
    with pytest.raises(ValidationError) as wrong:
        point.full_clean()
    assert wrong.value.message_dict == {
        "value": [
            "Numbers in Cuba (+53) cannot be called. Use a number of another region, or contact an administrator of this installation."
        ]
    }
    Installation.get()
    Installation.objects.update(support_contact="oncall@example.com")
    with override("zh-hans"), pytest.raises(ValidationError) as wrong:
        point.full_clean()
    assert "古巴" in str(wrong.value) and "oncall@example.com" in str(wrong.value)
    with pytest.raises(ValidationError, match="no region that can be called"):
        ContactPoint(member=lee, kind="phone", value="+80012345678").full_clean()
    ContactPoint(member=lee, kind="phone", value="+86 138 0013 8000").full_clean()


@pytest.mark.django_db
@pytest.mark.parametrize("phone", ["+19005551234", "+449098790000", "+33899123456"])
def test_a_number_that_costs_whoever_calls_it_is_nobodys_contact_point(phone):
    with pytest.raises(ValidationError, match="premium-rate"):
        ContactPoint(kind="phone", value=phone).clean()
