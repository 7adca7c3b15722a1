"""The Zoom incoming webhook against a fake of what is known of it."""

import re

import pytest

from channels_app.http import DeliveryError, Http
from channels_app.transports.zoom import TEXT, Zoom, compose, cut
from templates_app.choose import render_or_default
from templates_app.events import EVENTS
from templates_app.formats import format_named
from templates_app.samples import SAMPLE_NOW, VARIANTS, sample
from tests.fakes.message import page
from tests.fakes.server import Reply, Server
from tests.fakes.zoom import ZoomHook

LINK = "https://oncall.example.com/i/a1b2c3"
ATTACK = "<!all> <!abc@xmpp.zoom.us> <@x> *bold* _it_ ~s~ `c` <https://evil.example|x> # head\n> quote @here 🔥 مرحبا ‮evil"

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(204)
REFUSED_IN_200 = Reply(200, {"result": False, "code": 7010, "message": "can not find any user"})
NEEDS_THE_BODY = False
KNOWS_A_PAGE = True


def stage(base: str) -> dict:
    return {"url": f"{base}/chat/webhooks/incomingwebhook/demoZoomEndpointKey01", "token": "demoZoomTokenABC123"}


@pytest.fixture
def hook():
    with ZoomHook(now=1_700_000_000) as running:
        yield running


def zoom(hook, **changes) -> Zoom:
    return Zoom({"url": hook.hook, "token": hook.token, **changes}, Http(allowed_hosts=[hook.host]))


def refused(hook, message=None, **changes) -> DeliveryError:
    channel = zoom(hook, **changes)
    with pytest.raises(DeliveryError) as caught:
        channel.send(message or page(), "")
    assert "demoZoom" not in caught.value.text
    return caught.value


def test_a_page_is_a_card_with_links(hook):
    receipt = zoom(hook).send(page(text="*Database is down*\n#A1B2C3 Critical"), "")
    assert (receipt.state, receipt.message_id, receipt.detail) == ("sent", "", "")
    assert hook.seen[0].path.endswith("?format=full") and hook.seen[0].headers["authorization"] == "demoZoomTokenABC123"
    assert hook.said == [{
        "settings": {"default_sidebar_color": "#d93026"},
        "head": {"text": "Database is down"},
        "body": [
            {"type": "message", "text": "*Database is down*\n#A1B2C3 Critical", "is_markdown_support": True},
            {"type": "message", "text": "Acknowledge", "link": f"{LINK}?ack=1"},
            {"type": "message", "text": "Detail", "link": LINK},
        ],
    }]  # fmt: skip


def test_only_an_open_incident_offers_acknowledge():
    for message in (page(event="acknowledged"), page(event="closed"), page(incidents=page().incidents * 2)):
        assert [item["text"] for item in compose(message)[0]["content"]["body"][1:]] == ["Detail"]
    assert compose(page(event="closed"))[0]["content"]["settings"] == {"default_sidebar_color": "#188038"}
    assert len(compose(page(url=""))[0]["content"]["body"]) == 1


def test_the_apps_own_chat_needs_no_address(hook):
    assert Zoom.personal and Zoom.targets({}) == [""]
    assert zoom(hook).send(page(event="code", url=""), "").state == "sent"


def test_mentions_by_user_id_or_jid(hook):
    mentions = ("KDcuGIm1QgePTO8WbOqwIQ", "abc-def_1@xmpp.zoom.us", "li@example.com", "all>", "all")
    receipt = zoom(hook).send(page(text="down", mentions=mentions), "")
    assert hook.said[0]["body"][0]["text"] == "down\n<!kdcugim1qgepto8wboqwiq@xmpp.zoom.us> <!abc-def_1@xmpp.zoom.us>"
    assert receipt.detail == "not mentioned (no Zoom user id): li@example.com, all>, all"


@pytest.mark.parametrize("title", [ATTACK, "<" * 5000, "🔥" * 5000, "*" * 5000, "<!all> " * 900, "\ud800", "a\x00b"])
def test_hostile_titles_arrive_as_words_and_call_nobody(hook, title):
    zoom_format = format_named("zoom")
    escaped = zoom_format.escape(title)
    zoom(hook).send(page(subject=title, title=title, text=f"{zoom_format.bold(escaped)}\n{zoom_format.link(escaped, LINK)}"), "")
    assert len(hook.seen) == 1, "nothing had to be mended"
    said = hook.said[0]["head"]["text"] + hook.said[0]["body"][0]["text"]
    assert all(found.startswith(LINK) for found in re.findall(r"<([^<>]*)", said))


def test_links_are_in_zooms_own_syntax():
    """developers.zoom.us, "Chatbot message cards": <https://google.com|this is a link>."""
    assert format_named("zoom").link("words", LINK) == f"<{LINK}|words>"


@pytest.mark.parametrize("line", ["*one* line of text that is long\n", "长", "word ", f"<{LINK}|x> "])
def test_long_texts_are_cut(hook, line):
    receipt = zoom(hook).send(page(text=line * (10_000 // len(line)), mentions=("KDcuGIm1QgePTO8WbOqwIQ",)), "")
    text = hook.said[0]["body"][0]["text"]
    assert receipt.detail == "shortened to 4000 characters" and "\n… shortened\n<!kdc" in text and 3000 < len(text) <= TEXT
    assert text.count("<") == text.count(">") and text.count("*") % 2 == 0
    assert hook.said[0]["body"][2]["link"] == LINK, "the link to the rest is kept"


def test_a_cut_breaks_no_markup():
    assert cut("a" * 50 + f"<{LINK}|words>", 70) == "a" * 50
    assert cut("*" + "a" * 50 + "*", 40) == "*" + "a" * 38 + "*"
    assert cut("first line is long enough to stay\nsec", 37) == "first line is long enough to stay"


def test_a_text_of_the_declared_length_is_not_cut(hook):
    text = "".join(f'#{number:06X} "disk" of host-{number} is full\n' for number in range(1000))[: Zoom.max_chars]
    assert zoom(hook).send(page(text=text, subject="标" * 300, mentions=("KDcuGIm1QgePTO8WbOqwIQ",) * 10), "").detail == ""


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_default_texts_of_all_events_arrive_whole(language, variant):
    for event in EVENTS:
        context = sample(language, variant, event)
        said = render_or_default([], event, context, kind="zoom", fmt="zoom", language=language, now=SAMPLE_NOW)
        assert not said.error
        message = page(event=event, subject=said.subject, title=said.subject, text=said.text, language=language)
        body, detail = compose(message)
        item = body["content"]["body"][0]
        assert (
            detail == "" and len(item["text"]) <= TEXT and all(found.startswith("http") for found in re.findall(r"<([^<>]*)", item["text"]))
        )


# --- refusals ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": "another-token"}, "verification token does not belong"),
        ({"path": "/chat/webhooks/incomingwebhook/another"}, "does not exist any more"),
        ({"signed": True}, "made with “-s”"),
        ({"orphan": True}, "an account that stays"),
    ],
)
def test_refusals_say_what_to_do(hook, change, words):
    settings = {"url": hook.hook, "token": hook.token}
    for name, value in change.items():
        setattr(hook, name, value)
    error = refused(hook, **settings)
    assert (error.permanent, error.config, error.left) == (True, True, False)
    assert words in error.text and len(hook.seen) == 1


def test_what_zoom_does_not_take_goes_out_short_and_plain(hook):
    strict = hook.answer
    hook.answer = lambda seen: Reply(400, {"message": "Invalid request body format"}) if b"markdown" in seen.body else strict(seen)
    receipt = zoom(hook).send(page(text="word " * 700, mentions=("KDcuGIm1QgePTO8WbOqwIQ",)), "")
    assert "shortened to 1000" in receipt.detail
    assert len(hook.said[0]["body"][0]["text"]) <= 1000 and hook.said[0]["body"][2]["link"] == LINK
    hook.answer = Reply(400, {"message": "Invalid request body format"})
    error = refused(hook)
    assert error.permanent and not error.config and "Invalid request body" in error.text and len(hook.seen) == 4


def test_the_limit_rests_half_a_minute(hook):
    zoom(hook).send(page(), "")
    error = refused(hook)
    assert (error.permanent, error.retry_after, error.blocked) == (False, None, 30)
    hook.answer = Reply(429, headers={"Retry-After": "7"})
    assert refused(hook).blocked == 7


@pytest.mark.parametrize(
    ("body", "permanent"),
    [
        ({"result": False, "message": "no"}, False),
        ({"code": 7010, "message": "no"}, False),
        ({"code": 401, "message": "no"}, True),
        ({"code": 429, "message": "no"}, False),
        ({"error": "invalid_token"}, False),
    ],
)
def test_a_refusal_in_a_200_is_a_refusal(hook, body, permanent):
    hook.answer = Reply(200, body)
    error = refused(hook)
    assert (error.permanent, error.left) == (permanent, False)


@pytest.mark.parametrize(
    "reply", [Reply(200), Reply(204), Reply(200, "success"), Reply(200, {"code": 200}), Reply(201, {"message_id": "x"})]
)
def test_success_is_the_status(hook, reply):
    hook.answer = reply
    assert zoom(hook).send(page(), "").state == "sent"


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        (" https://integrations.zoom.us/chat/webhooks/incomingwebhook/abc-DEF_123?format=message ", "https://integrations.zoom.us/chat/webhooks/incomingwebhook/abc-DEF_123"),
        ("https://inbots.zoom.us/incoming/hook/abcDEF_123", "https://inbots.zoom.us/incoming/hook/abcDEF_123"),
        ("http://proxy.internal:8080/zoom/chat/webhooks/incomingwebhook/abcDEF_123/", "http://proxy.internal:8080/zoom/chat/webhooks/incomingwebhook/abcDEF_123"),
    ],
)  # fmt: skip
def test_endpoints_that_are_taken(url, kept):
    form = Zoom.Settings(data={"url": url, "token": " Bearer demoZoomTokenABC123 "})
    assert form.is_valid() and form.cleaned_data == {"url": kept, "token": "demoZoomTokenABC123"}


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"token": "demoZoomTokenABC123"}, "url", "required"),
        ({"url": "abc-DEF_123"}, "url", "whole endpoint"),
        ({"url": "https://integrations.zoom.us/chat/abcDEF_123"}, "url", "has the form"),
        ({"url": "http://integrations.zoom.us/chat/webhooks/incomingwebhook/abcDEF_123"}, "url", "https"),
        ({}, "token", "required"),
        ({"token": "two words"}, "token", "without spaces"),
        ({"token": "中文令牌中文令牌"}, "token", "without spaces"),
    ],
)
def test_settings_that_are_not_taken(given, field, words):
    assert words in " ".join(Zoom.check(given)[field])


@pytest.mark.parametrize(
    ("second", "permanent", "left", "wait"),
    [(Reply(400, b"shorter, and no"), True, False, None), (Reply(500), False, False, None), (Reply(504), False, True, None), (Reply(429), False, False, 30.0)],
)  # fmt: skip
def test_what_the_shorter_message_is_answered_counts(second, permanent, left, wait):
    """A fault of Zoom's between the two is no reason to give the page up, and an answer that never came no reason to call it refused."""
    answers = [Reply(400, b"no"), second]
    with Server(lambda _seen: answers.pop(0)) as server, pytest.raises(DeliveryError) as caught:
        Zoom(stage(server.url), Http(allowed_hosts=[server.host])).send(page(), "")
    assert (caught.value.permanent, caught.value.left, caught.value.blocked) == (permanent, left, wait)
