"""Google Chat against a space as strict as the real one."""

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transports.google_chat import STATUSES, GoogleChat, cut
from tests.fakes.google_chat import CODES, ChatSpace, no
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply

NOW = SENT_AT.timestamp()
OK = {"name": "spaces/AAAAc0ffee0/messages/m0.m0", "thread": {"name": "spaces/AAAAc0ffee0/threads/m0"}}

ACCEPTED = Reply(200, OK)
REFUSED_IN_200 = Reply(200, no(403, "The API is called without a valid token.").body)
NEEDS_THE_BODY = True


def stage(base: str) -> dict:
    return {"url": f"{base}/v1/spaces/AAAAc0ffee0/messages?key=AIzaSyC0ffee-0123456789&token=t0kenC0ffee_0123456789%3D"}


@pytest.fixture
def space():
    with ChatSpace(now=NOW) as running:
        yield running


def transport(space, **settings) -> GoogleChat:
    return GoogleChat({"url": space.hook, **settings}, Http(allowed_hosts=[space.host]))


def refused(space, message=None) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(space).send(message or page(), "")
    assert "c0ffee" not in caught.value.text.lower()
    return caught.value


def test_a_page_is_a_text_with_the_messages_name(space):
    receipt = transport(space).send(page(), "")
    assert (receipt.state, receipt.message_id, receipt.detail) == ("sent", "spaces/AAAAc0ffee0/messages/m0", "")
    assert space.said[0]["text"] == page().text


def test_an_incident_has_one_thread(space):
    first, second = page(), page(delivery_id="2", idempotency_key="2", event="closed")
    other = page(incident_id="6553f0c00000000000000002", delivery_id="3", idempotency_key="3")
    for message in (first, second, other):
        transport(space).send(message, "")
        space.now += 1
    threads = [message["thread"]["name"] for message in space.said]
    assert threads[0] == threads[1] != threads[2]


def test_what_belongs_to_no_incident_or_to_many_is_no_reply(space):
    for number, change in enumerate(({"incident_id": "", "incidents": ()}, {"incidents": page().incidents * 2})):
        transport(space).send(page(idempotency_key=str(number), **change), "")
        space.now += 1
    transport(space, threads=False).send(page(), "")
    assert [message["thread"]["name"].rpartition("/")[2] for message in space.said] == ["new0", "new1", "new2"]


def test_a_repeat_gives_the_message_that_is_there(space):
    names = {transport(space).send(page(attempt=attempt, possible_repeat=attempt > 1), "").message_id for attempt in (1, 2, 3)}
    assert len(names) == 1 and len(space.said) == 1


def test_mentions_are_ids_of_the_platform(space):
    receipt = transport(space).send(page(mentions=("123456789012345678901", "users/all", "Li Lei", "1><users/all")), "")
    assert ChatSpace.mentioned(space.said[0]["text"]) == ["123456789012345678901", "all"]
    assert "Li Lei" in receipt.detail


@pytest.mark.parametrize("line", ["label = *数据库* 的值 1 ‹ 2\n", "长", "a_"])
def test_long_texts_are_cut_to_what_the_api_takes(space, line):
    receipt = transport(space).send(page(text=(line * 5_000)[:60_000], mentions=("123456789012345678901",)), "")
    text = space.said[0]["text"]
    assert receipt.detail == "shortened to 4,096 characters" and 3900 < len(text) <= 4096
    assert f"… shortened <{page().url}|Detail>" in text, "the way to the rest is kept"
    assert text.endswith("<users/123456789012345678901>")


def test_a_text_of_the_declared_length_is_not_cut(space):
    text = "x" * GoogleChat.max_chars
    assert transport(space).send(page(text=text, mentions=("123456789012345678901",) * 10), "").detail == ""


def test_a_cut_never_leaves_half_a_link():
    assert cut("a" * 50 + "<https://example.com/x|words>", 70) == "a" * 50
    assert cut("*" + "a" * 50, 40).endswith("a*")
    assert cut("first line is long enough to stay\nsec", 37) == "first line is long enough to stay"


@pytest.mark.parametrize(
    ("change", "words", "config"),
    [
        ({"token": "another"}, "add a webhook to the space again", True),
        ({"key": "another"}, "key in the address", True),
        ({"space": "BBBB"}, "was deleted", True),
    ],
)
def test_a_wrong_address_says_what_to_do(space, change, words, config):
    channel = transport(space)
    for name, value in change.items():
        setattr(space, name, value)
    with pytest.raises(DeliveryError, match=words) as caught:
        channel.send(page(), "")
    assert (caught.value.permanent, caught.value.config, caught.value.left) == (True, config, False)


def test_one_message_a_second(space):
    transport(space).send(page(), "")
    error = refused(space, page(idempotency_key="2"))
    assert (error.permanent, error.retry_after, error.blocked) == (False, None, 30)
    assert (GoogleChat.limits[0].count, GoogleChat.limits[0].seconds) == (1, 1)


@pytest.mark.parametrize("http_status", [200, 400, 503])
@pytest.mark.parametrize("status", STATUSES)
def test_the_status_in_the_body_counts(space, status, http_status):
    space.answer = Reply(http_status, {"error": {"code": 400, "message": "…", "status": status}})
    error = refused(space)
    sentence, permanent, config = STATUSES[status]
    assert (error.permanent, error.config, error.left) == (permanent, config, False) and str(sentence) in error.text


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(400, {"error": {"status": "NEW"}}), True, False),
        (Reply(400, {"error": "x"}), True, False),
        (Reply(200, {"text": "x"}), False, True),
        (Reply(200, {"name": 7}), False, True),
    ],
)
def test_answers_nobody_expected(space, reply, permanent, left):
    space.answer = reply
    error = refused(space)
    assert (error.permanent, error.left) == (permanent, left)
    assert set(CODES.values()) <= set(STATUSES)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "required"),
        ("spaces/AAAA", "whole webhook address"),
        ("https://chat.google.com/room/AAAA", "has the form"),
        ("https://chat.googleapis.com/v1/spaces/AAAA/messages?key=a", "must end with"),
        ("http://chat.googleapis.com/v1/spaces/AAAA/messages?key=a&token=b", "https"),
    ],
)
def test_addresses_that_are_not(url, words):
    assert words in " ".join(GoogleChat.check({"url": url})["url"])


def test_addresses_that_are():
    assert GoogleChat.check({"url": " https://chat.googleapis.com/v1/spaces/AAAA_-1/messages?key=a&token=b%3D "}) == {}
