"""The numbers a channel calls from: as people write them, and which one is used for whom."""

import pytest

from channels_app.transport import NumbersField, number_for, parse_numbers

LINES = """
+1 (415) 555-0100
+1 415 555 0199
cn: +86 571 8888 1234
CN: 0571-8888 1235

HK:+852 2123 4567
"""


def test_a_line_is_a_number_and_a_region_may_come_first():
    assert parse_numbers(LINES) == {
        "": ["+14155550100", "+14155550199"],
        "CN": ["+8657188881234", "+8657188881235"],
        "HK": ["+85221234567"],
    }
    assert parse_numbers("") == {}
    assert parse_numbers("+14155550100\n+1 415 555 0100") == {"": ["+14155550100"]}


@pytest.mark.parametrize(
    "line", ["415 555 0100", "XX: +14155550100", "China: +86 571 88881234", "CN:", "CN: call me", "+1", "+" + "9" * 40]
)
def test_a_line_that_is_neither_is_named(line):
    with pytest.raises(ValueError, match="“"):
        parse_numbers(line)
    assert "“" in " ".join(_errors(line))


def _errors(text):
    from django.core.exceptions import ValidationError

    try:
        NumbersField().clean(text)
    except ValidationError as error:
        return error.messages
    return []


@pytest.mark.parametrize(
    ("to", "number"),
    [("+8613800000000", "+8657188881234"), ("+85251234567", "+85221234567"), ("+15005550006", "+14155550100"), ("+447700900123", "+14155550100"), ("junk", "+14155550100")],
)  # fmt: skip
def test_the_number_of_the_region_is_used_and_the_first_elsewhere(to, number):
    assert number_for(parse_numbers(LINES), to) == number


def test_nothing_to_call_from():
    assert number_for({}, "+15005550006") == ""
    assert number_for({"CN": ["+8657188881234"]}, "+15005550006") == ""
