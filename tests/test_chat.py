"""What transports of group chats share: links, cuts, pasted addresses, answers with a code."""

import re
from datetime import UTC, datetime

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from channels_app import chat
from channels_app.http import Answer
from channels_app.transport import DeliveryError, Message

HALF = re.compile(r"(\\+|<[^<>]{0,200}|\[[^\[\]]*(\](\([^()]*)?)?)\Z")
URL = "https://pages.example.com/i/1"


def page(event="triggered", url=URL, incidents=1):
    return Message(
        delivery_id="d", event=event, severity="Critical", subject="", title="Disk", text="", url=url, num="A1", incident_id="i",
        incidents=tuple({"num": str(number)} for number in range(incidents)), sent_at=datetime(2026, 1, 31, tzinfo=UTC),
    )  # fmt: skip


@pytest.mark.parametrize("event", ["triggered", "escalated", "refire"])
def test_what_is_open_may_be_acknowledged(event):
    assert chat.links(page(event)) == [("Acknowledge", f"{URL}?ack=1"), ("Detail", URL)]
    assert chat.links(page(event, url=f"{URL}?r=2")) == [("Acknowledge", f"{URL}?r=2&ack=1"), ("Detail", f"{URL}?r=2")]
    assert chat.links(page(event, incidents=2)) == [("Detail", URL)], "which one would be acknowledged?"
    assert chat.links(page(event, url="")) == []


@pytest.mark.parametrize("event", ["acknowledged", "closed", "test"])
def test_what_is_not_open_has_its_page_only(event):
    assert chat.links(page(event)) == [("Detail", URL)]
    assert chat.line(chat.links(page(event))) == f"[Detail]({URL})"


@given(st.text(alphabet="ab *\\<>[]()\n/font中😀", max_size=120), st.integers(0, 150))
def test_a_cut_is_a_beginning_within_its_size(text, size):
    kept = chat.cut_markdown(text, size, lambda part: len(part.encode()), HALF)
    bare = kept if text.startswith(kept) else kept.removesuffix("**")
    assert text.startswith(bare) and len(bare.encode()) <= size


def test_a_cut_closes_what_is_open():
    text = '**bold <font color="red">' + "a" * 50
    assert chat.cut_markdown(text, 40, len, HALF, tags=("font",)) == text[:40] + "</font>**"
    assert chat.cut_markdown("\\*\\*" + "a" * 50, 40, len, HALF, escapes=True) == "\\*\\*" + "a" * 36, "escaped stars open nothing"
    assert chat.cut_markdown("*bold " + "a" * 50, 40, len, HALF, bold="*") == "*bold " + "a" * 34 + "*"
    assert chat.cut_markdown("**two lines of\nbold**", 16, len, HALF) == "**two lines of**"
    assert chat.cut_markdown("one\n* item " + "a" * 50, 40, len, HALF, bold="*").endswith("aa"), "a star before an item is no bold"


def test_a_pasted_address():
    assert chat.webhook(f" {URL}\n", "no", ("chat.example",))[0] == URL
    assert chat.webhook("http://proxy.example.com/x", "no", ("chat.example",))[1].hostname == "proxy.example.com"
    for pasted in ("", "chat.example/x", "ftp://chat.example/x", "https://", "https://chat.example:port/x", "https://chat.example/a b"):
        with pytest.raises(ValidationError, match="no"):
            chat.webhook(pasted, "no")
    with pytest.raises(ValidationError, match="must begin with https"):
        chat.webhook("http://api.chat.example/x", "no", ("chat.example",))


def answer(status, body):
    return Answer(status, {}, body, "chat.example")


def test_a_code_is_asked_before_the_status_and_its_lack_is_no_success():
    def judge(found):
        if b"7" in found.body:
            raise DeliveryError("known", permanent=True)

    def read(reply):
        return reply.get("code")

    assert chat.code_of(answer(200, b'{"code": 0}'), judge, read) == 0
    assert chat.code_of(answer(200, b'{"code": 8}'), judge, read) == 8, "for the platform to word"
    for status in (200, 400, 500):
        with pytest.raises(DeliveryError, match="known"):
            chat.code_of(answer(status, b'{"code": 7}'), judge, read)
    with pytest.raises(DeliveryError, match="without a code") as caught:
        chat.code_of(answer(200, b"{}"), judge, read)
    assert caught.value.left and not caught.value.permanent


def test_sizes_are_those_of_the_wire():
    assert chat.json_size({"a": '中"\n'}) == len('{"a":"中\\"\\n"}'.encode())
