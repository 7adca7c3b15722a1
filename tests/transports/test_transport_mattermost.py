"""Mattermost against a server that refuses, translates and mentions as the real one."""

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transports.mattermost import IDS, Mattermost, cut
from tests.fakes.mattermost import MattermostServer, no
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply

NOW = SENT_AT.timestamp()

ACCEPTED = Reply(200, b"ok", {"Content-Type": "text/plain"})
REFUSED_IN_200 = Reply(200, no(400, "web.incoming_webhook.invalid.app_error", "Invalid webhook.").body)
NEEDS_THE_BODY = True


def stage(base: str) -> dict:
    return {"url": f"{base}/hooks/xc0ffee01234567890123456ab"}


@pytest.fixture
def server():
    with MattermostServer(now=NOW) as running:
        yield running


def transport(server) -> Mattermost:
    return Mattermost({"url": server.hook}, Http(allowed_hosts=[server.host]))


def refused(server, message=None) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(server).send(message or page(), "")
    assert "c0ffee" not in caught.value.text
    return caught.value


def test_a_page_is_a_post(server):
    receipt = transport(server).send(page(), "")
    assert (receipt.state, receipt.message_id, receipt.detail) == ("sent", "", "")
    assert server.posts == [page().text] and server.seen[0].json() == {"text": page().text}


def test_mentions_are_user_names(server):
    receipt = transport(server).send(page(mentions=("li.lei", "@Han_Mei", "channel", "Li Lei", "x @all")), "")
    assert MattermostServer.mentioned(server.posts[0]) == ["li.lei", "han_mei", "channel"], "what the table says is meant"
    assert receipt.detail == "not mentioned (no Mattermost user name): Li Lei, x @all"


def test_the_fake_mentions_as_the_server_does():
    assert MattermostServer.mentioned("a @all. (@here) _@channel x@all :smile: @li.lei, foo.@han @⁠all @ @.") == [
        "all",
        "here",
        "channel",
        "li.lei",
        "han",
    ]
    assert MattermostServer.translated("<!channel> <@u1> <http://a|b>") == "@channel @u1 [b](http://a)"


@pytest.mark.parametrize("line", ["label = **数据库** 的值 1 ‹ 2\n", "长", "a\\*"])
def test_long_texts_are_one_post_all_the_same(server, line):
    receipt = transport(server).send(page(text=(line * 30_000)[:60_000], mentions=("li.lei",)), "")
    (text,) = server.posts
    assert receipt.detail == "shortened to 16,383 characters" and 15_000 < len(text) <= 16_383
    assert text.endswith(f"\n\n… shortened [Detail]({page().url})\n\n@li.lei")


def test_a_text_of_the_declared_length_is_not_cut(server):
    assert transport(server).send(page(text="x" * Mattermost.max_chars, mentions=("li.lei",) * 50), "").detail == ""


def test_a_cut_never_leaves_half_a_mark():
    assert cut("a" * 50 + "\\<" + "b" * 50, 53) == "a" * 50
    assert cut("a" * 50 + "[words](https://example.com/x)", 70) == "a" * 50
    assert cut("**" + "a" * 50, 40).endswith("a**")
    assert cut("first line is long enough to stay\n\nsec", 39) == "first line is long enough to stay"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "another"}, "was deleted"),
        ({"enabled": False}, "system administrator"),
        ({"channel_deleted": True}, "does not exist any more"),
        ({"owner_left": True}, "member of it"),
    ],
)
def test_a_refusal_says_what_to_do(server, change, words):
    channel = transport(server)
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(DeliveryError, match=words) as caught:
        channel.send(page(), "")
    assert (caught.value.permanent, caught.value.config, caught.value.left) == (True, True, False)


def test_the_servers_rate_limit_rests_the_channel(server):
    server.per_second = 1
    transport(server).send(page(), "")
    error = refused(server)
    assert (error.permanent, error.retry_after, error.blocked) == (False, 1, 1)
    server.answer = Reply(429, b"limit exceeded")
    assert (refused(server).retry_after, refused(server).blocked) == (None, 10)


@pytest.mark.parametrize("status", [200, 400, 501])
@pytest.mark.parametrize("code", IDS)
def test_the_id_counts_whatever_the_status(server, code, status):
    server.answer = Reply(status, no(400, code, "…").body)
    error = refused(server)
    assert (error.permanent, error.config) == (True, True) and str(IDS[code]) in error.text


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (no(400, "web.incoming_webhook.parse.app_error", "Unable to parse incoming data."), True, False),
        (no(500, "api.post.create_webhook_post.creating.app_error", "Error creating post."), False, False),
        (Reply(200, b"okay"), False, True),
        (Reply(200, {"id": 7}), False, True),
    ],
)
def test_answers_nobody_expected(server, reply, permanent, left):
    server.answer = reply
    error = refused(server)
    assert (error.permanent, error.left) == (permanent, left)


@pytest.mark.parametrize(
    "url",
    ["https://mattermost.example.com/hooks/xc0ffee0", " http://chat:8065/hooks/xc0ffee0 ", "https://example.com/team/chat/hooks/xc0ffee0"],
)
def test_addresses_that_are_taken(url):
    assert Mattermost.check({"url": url}) == {}


@pytest.mark.parametrize(
    ("url", "words"),
    [("", "required"), ("xc0ffee0", "whole webhook address"), ("https://mattermost.example.com/team/channels/town-square", "has the form")],
)
def test_addresses_that_are_not(url, words):
    assert words in " ".join(Mattermost.check({"url": url})["url"])
