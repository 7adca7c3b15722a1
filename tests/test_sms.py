"""The length of an SMS: 3GPP TS 23.038 and 23.040."""

import pytest

from channels_app.sms import EXTENSION, GSM, Segments, fit, measure, segments, simplify


def test_the_alphabet_is_whole():
    assert len(GSM) == 127, "128 places, one of them the escape"
    assert len(EXTENSION) == 10 and not GSM & EXTENSION


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Segments(1, "GSM-7", 0)),
        ("a" * 160, Segments(1, "GSM-7", 160)),
        ("a" * 161, Segments(2, "GSM-7", 161)),
        ("a" * 306, Segments(2, "GSM-7", 306)),
        ("a" * 307, Segments(3, "GSM-7", 307)),
        ("€" * 80, Segments(1, "GSM-7", 160)),
        ("€" * 81, Segments(2, "GSM-7", 162)),
        # 76 escaped characters and a half would fill 153: the half is not begun.
        ("€" * 152, Segments(2, "GSM-7", 304)),
        ("€" * 153, Segments(3, "GSM-7", 306)),
        ("中" * 70, Segments(1, "UCS-2", 70)),
        ("中" * 71, Segments(2, "UCS-2", 71)),
        ("中" * 135, Segments(3, "UCS-2", 135)),
        ("😀" * 35, Segments(1, "UCS-2", 70)),
        ("😀" * 66, Segments(2, "UCS-2", 132)),
        ("😀" * 67, Segments(3, "UCS-2", 134)),
        ("`", Segments(1, "UCS-2", 1)),
        ("ç", Segments(1, "UCS-2", 1)),
        ("Ç", Segments(1, "GSM-7", 1)),
    ],
)
def test_parts(text, expected):
    assert segments(text) == expected


def test_typography_is_made_plain_only_where_that_helps():
    assert simplify("“disk” – 95…") == '"disk" - 95...'
    assert simplify("“磁盘” – 95…") == "“磁盘” – 95…"


@pytest.mark.parametrize("text", ["word " * 200, "字" * 500, "€" * 500, "😀" * 300])
@pytest.mark.parametrize("keep", ["", "https://oncall.example.com/i/a1b2c3"])
def test_what_is_too_long_keeps_its_link(text, keep):
    cut = fit(text, 3, keep)
    assert segments(cut).count == 3 and cut.endswith(f"... {keep}" if keep else "...")
    assert cut.startswith(text[:20])
    assert fit("short", 1, keep) == "short"


def test_the_preview_says_what_a_message_costs():
    assert measure("a" * 170) == "2 SMS parts (GSM-7, 170 of 306 characters)"
    assert measure("磁盘").startswith("1 SMS part (UCS-2, 2 of 70 characters)")
