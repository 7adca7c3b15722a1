"""The Slack webhook against one as strict as the real one; Slack's own SDK judges our blocks and the fake."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slack_sdk.models.blocks import Block
from slack_sdk.webhook import WebhookClient

from channels_app.http import DeliveryError, Http
from channels_app.transports.slack import CONTENT, REFUSALS, SECTION, WAITS, Slack, compose, cut, sections
from templates_app.choose import render_or_default
from templates_app.events import EVENTS
from templates_app.formats import format_named
from templates_app.samples import SAMPLE_NOW, VARIANTS, sample
from tests.fakes.message import page
from tests.fakes.server import Reply
from tests.fakes.slack import STATUS, SlackHook

LINK = "https://oncall.example.com/i/a1b2c3"
ATTACK = "<!channel> <@U012345> *bold* _it_ ~s~ `c` &lt;!here&gt; <https://evil.example|x> :fire: @here 🔥 مرحبا ‮evil"

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(200, "ok", {"Content-Type": "text/html"})
REFUSED_IN_200 = Reply(200, "channel_is_archived", {"Content-Type": "text/html"})
NEEDS_THE_BODY = True


def stage(base: str) -> dict:
    return {"url": f"{base}/services/T0DEMO/B0DEMO/XXdemoSecretXXdemoSecret"}


@pytest.fixture
def hook():
    with SlackHook(now=1_700_000_000) as running:
        yield running


def slack(hook) -> Slack:
    return Slack({"url": hook.hook}, Http(allowed_hosts=[hook.host]))


def refused(hook, message=None) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        slack(hook).send(message or page(), "")
    assert "XXdemoSecret" not in caught.value.text and "T0DEMO" not in caught.value.text
    return caught.value


def judged(body) -> None:
    """Slack's own classes check each block and element; their to_dict() raises what the API would."""
    for block in Block.parse_all(body["blocks"]):
        assert block.to_dict()["type"] == block.type


def test_slacks_own_client_and_the_fake_agree(hook):
    client = WebhookClient(hook.hook)
    answer = client.send(text="hello")
    assert (answer.status_code, answer.body) == (200, "ok")
    assert client.send(text="again").status_code == 429
    hook.now += 1
    assert client.send(blocks=[{"type": "section", "text": {"type": "mrkdwn", "text": "x" * 3001}}]).body == "invalid_blocks"


def test_a_page_is_blocks_with_link_buttons(hook):
    receipt = slack(hook).send(page(text="*Database is down*\n#A1B2C3 Critical"), "")
    assert (receipt.state, receipt.message_id, receipt.detail) == ("sent", "", "")
    (body,) = hook.said
    judged(body)
    assert (
        body["text"] == "🔴 Database is down"
        and not body["unfurl_links"]
        and set(body) == {"text", "blocks", "unfurl_links", "unfurl_media"}
    )
    header, section, actions = body["blocks"]
    assert header["text"] == {"type": "plain_text", "text": "🔴 Database is down", "emoji": False}
    assert section["text"]["verbatim"] is True, "no name in the words is looked up"
    assert section["text"]["text"] == "*Database is down*\n#A1B2C3 Critical"
    assert [(b["text"]["text"], b["url"]) for b in actions["elements"]] == [("Acknowledge", f"{LINK}?ack=1"), ("Detail", LINK)]


def test_only_an_open_incident_offers_acknowledge(hook):
    for message in (page(event="acknowledged"), page(event="closed"), page(incidents=page().incidents * 2)):
        assert [b["text"]["text"] for b in compose(message)[0]["blocks"][-1]["elements"]] == ["Detail"]
    assert compose(page(event="closed"))[0]["text"].startswith("🟢")
    assert all(block["type"] != "actions" for block in compose(page(url=""))[0]["blocks"])


def test_a_webhook_into_ones_own_chat_needs_no_address(hook):
    assert Slack.personal and Slack.targets({"url": hook.hook}) == [""]
    assert slack(hook).send(page(event="code", url="", severity=""), "").state == "sent"
    assert hook.said[0]["text"] == "Database is down"


def test_mentions_are_ids_of_slack(hook):
    receipt = slack(hook).send(page(mentions=("U0123ABCD", "W0123ABCD", "S0123ABCD", "here", "li@example.com", "U1><!channel")), "")
    assert SlackHook.calls(hook.said[0]) == ["@U0123ABCD", "@W0123ABCD", "!subteam^S0123ABCD", "!here"]
    assert receipt.detail == "not mentioned (no Slack id): li@example.com, U1><!channel"
    judged(hook.said[0])


@pytest.mark.parametrize("title", [ATTACK, "<" * 5000, "&" * 3001, "🔥" * 5000, "*" * 4000, "<!channel> " * 900, "\ud800", "a\x00b"])
def test_hostile_titles_arrive_as_words_and_call_nobody(hook, title):
    escaped = format_named("slack").escape(title)
    slack(hook).send(page(subject=title, title=title, text=f"*{escaped}*\n<{LINK}|{escaped}>"), "")
    (body,) = hook.said
    judged(body)
    assert len(hook.seen) == 1, "nothing had to be mended"
    assert all(found.startswith((LINK, "https://evil.example")) for found in SlackHook.calls(body)), (
        "an address in the words is a link, and no more"
    )


def test_addresses_in_the_words_are_links(hook):
    words = "see https://wiki.example.com/a_b?x=1&amp;y=2. *https://a.example* (http://b.example) <https://c.example|https://d.example> xhttps://e"
    slack(hook).send(page(text=words), "")
    assert SlackHook.calls(hook.said[0]) == [
        "https://wiki.example.com/a_b?x=1&amp;y=2", "https://a.example", "http://b.example", "https://c.example|https://d.example",
    ]  # fmt: skip


def test_long_texts_become_sections_and_then_are_cut(hook):
    text = "".join(f"*line {number}* &lt;value&gt; of a disk\n" for number in range(2000))
    receipt = slack(hook).send(page(text=text), "")
    judged(hook.said[0])
    said = [b["text"]["text"] for b in hook.said[0]["blocks"] if b["type"] == "section"]
    assert receipt.detail == "shortened to 12000 characters" and said[-1].endswith("\n… shortened")
    assert sum(map(len, said)) > 11_000 and all(
        part.startswith("*line ") and part.rstrip().endswith(("disk", "shortened")) for part in said
    )
    assert hook.said[0]["blocks"][-1]["elements"][1]["url"] == LINK, "the link to the rest is kept"


def test_a_text_of_the_declared_length_is_not_cut(hook):
    text = "".join(f'#{number:06X} "disk" of host-{number} is full\n' for number in range(1000))[: Slack.max_chars]
    assert slack(hook).send(page(text=text, subject="标" * 300, mentions=("U0123ABCD",) * 30), "").detail == ""
    assert "\n".join(b["text"]["text"] for b in hook.said[0]["blocks"][1:-2]) == text.strip()


def test_a_cut_breaks_no_markup():
    assert cut("a" * 50 + "&lt;" + "b" * 50, 54) == ("a" * 50, "&lt;" + "b" * 50)
    assert cut("a" * 50 + "<https://example.com/x|words>", 70) == ("a" * 50, "<https://example.com/x|words>")
    assert cut("*" + "a" * 50 + "*", 40) == ("*" + "a" * 38 + "*", "*" + "a" * 12 + "*")
    assert cut("*<" + "a" * 50, 40) == ("*<" + "a" * 37 + "*", "*" + "a" * 13)
    assert cut("first line is long enough to stay\nsec", 36) == ("first line is long enough to stay", "sec")


@given(st.lists(st.sampled_from(["*", "word ", "&amp;", f"<{LINK}|x>", "\n", "🔥", "<", "long" * 200])), st.integers(1, 60))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_sections_are_never_too_long_and_always_end(parts, times):
    found = sections("".join(parts) * times)
    assert all(0 < len(part) <= SECTION for part in found)


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_default_texts_of_all_events_arrive_whole(language, variant):
    for event in EVENTS:
        context = sample(language, variant, event)
        said = render_or_default([], event, context, kind="slack", fmt="slack", language=language, now=SAMPLE_NOW)
        assert not said.error
        message = page(event=event, subject=said.subject, title=said.subject, text=said.text, language=language)
        body, detail = compose(message)
        judged(body)
        assert detail == "" and all(found.startswith("http") for found in SlackHook.calls(body))


# --- refusals ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [None, 200])
@pytest.mark.parametrize("word", sorted(REFUSALS))
def test_every_word_of_refusal_is_advice_whatever_the_status(hook, word, status):
    hook.answer = Reply(status or STATUS.get(word, 400), word, {"Content-Type": "text/html"})
    error = refused(hook)
    assert (error.permanent, error.left, error.config) == (True, False, word not in CONTENT)
    assert word in error.text and "; " in error.text
    assert len(hook.seen) == (2 if word in CONTENT else 1), "what Slack has against the body is tried once without blocks"


@pytest.mark.parametrize("word", sorted(WAITS))
@pytest.mark.parametrize("status", [200, 500])
def test_words_that_mean_later(hook, word, status):
    hook.answer = Reply(status, word)
    error = refused(hook)
    assert (error.permanent, error.left, error.config) == (False, False, False)


def test_the_limit_is_one_a_second(hook):
    slack(hook).send(page(), "")
    error = refused(hook)
    assert (error.permanent, error.retry_after, error.blocked) == (False, 1, 1)
    assert [(limit.count, limit.seconds) for limit in Slack.limits] == [(1, 1)]
    hook.now += 1
    slack(hook).send(page(), "")


def test_what_has_blocks_that_slack_does_not_take_still_arrives(hook):
    strict = hook.answer
    hook.answer = lambda seen: Reply(400, "invalid_blocks") if "blocks" in seen.json() else strict(seen)
    receipt = slack(hook).send(page(text="*text*", mentions=("U0123ABCD",)), "")
    assert hook.said[0]["text"] == f"*🔴 Database is down*\n*text*\n<@U0123ABCD>\n<{LINK}|Detail>"
    assert receipt.detail == "sent without blocks, which Slack did not take"


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(200, "something_new"), False, False),
        (Reply(200, {"ok": False, "error": "no_service"}), True, False),
        (Reply(200, {"ok": True}), False, True),
        (Reply(200, "OK"), False, True),
        (Reply(201, "ok"), False, True),
        (Reply(418, "something_new"), True, False),
        (Reply(200, "<html>ok</html>"), False, True),
    ],
)
def test_answers_nobody_expected(hook, reply, permanent, left):
    hook.answer = reply
    error = refused(hook)
    assert (error.permanent, error.left) == (permanent, left)


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        " https://hooks.slack.com/services/T012/B345/abcDEF678 ",
        "https://hooks.slack-gov.com/services/T012/B345/abcDEF678",
        "http://proxy.internal:8080/slack/services/T012/B345/abcDEF678",
    ],
)
def test_addresses_that_are_taken(url):
    assert Slack.check({"url": url}) == {}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "required"),
        ("T012/B345/abc", "whole webhook address"),
        ("https://hooks.slack.com/services/T012/B345", "has the form"),
        ("https://hooks.slack.com/triggers/T012/345/abc", "workflow"),
        ("https://hooks.slack.com/workflows/T012/345/abc", "workflow"),
        ("http://hooks.slack.com/services/T012/B345/abc", "https"),
    ],
)
def test_addresses_that_are_not(url, words):
    assert words in " ".join(Slack.check({"url": url})["url"])
