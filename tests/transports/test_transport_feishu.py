"""The Feishu group bot against a bot as strict as the real one."""

import pytest
from apprise.plugins.feishu import NotifyFeishu

from channels_app.http import DeliveryError, Http
from channels_app.transports.feishu import CODES, Feishu, cut, sign
from tests.fakes.feishu import OK, FeishuBot
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply

NOW = SENT_AT.timestamp()

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(200, OK)
REFUSED_IN_200 = Reply(200, {"code": 19001, "data": {}, "msg": "param invalid: incoming webhook access token invalid"})
NEEDS_THE_BODY = True


def stage(base: str) -> dict:
    return {"url": f"{base}/open-apis/bot/v2/hook/c0ffee00-1234-5678-9abc-def012345678", "keyword": "#", "secret": "demo-feishu-secret"}


@pytest.fixture
def bot():
    with FeishuBot(secret="demo-feishu-secret", keyword="#", now=NOW) as running:
        yield running


def transport(bot, **settings) -> Feishu:
    return Feishu({"url": bot.hook, "secret": bot.secret, **settings}, Http(allowed_hosts=[bot.host]))


def refused(bot, message, **settings) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(bot, **settings).send(message, "")
    return caught.value


def text_of(card) -> str:
    return card["elements"][0]["text"]["content"]


def test_the_signature_is_the_providers():
    # providers.md 1.1: computed independently; with key and message the other way round (as DingTalk has it) it would be Hc2PaR...
    assert sign("1700000000", "demo-feishu-secret") == "V3Wp8znUoP+7XezI+6p/Lp2Uyk2BLceZJJbP1KE87hk="


def test_a_page_is_a_card_with_links(bot):
    receipt = transport(bot).send(page(), "")
    assert (receipt.state, receipt.detail) == ("sent", "")
    card = bot.said[0]
    assert card["header"] == {"template": "red", "title": {"tag": "plain_text", "content": "Database is down"}}
    assert text_of(card) == "**Database is down**\n#A1B2C3 Critical"
    buttons = card["elements"][1]["actions"]
    assert [(b["text"]["content"], b["url"]) for b in buttons] == [
        ("Acknowledge", "https://oncall.example.com/i/a1b2c3?ack=1"),
        ("Detail", "https://oncall.example.com/i/a1b2c3"),
    ]


def test_only_an_open_incident_offers_acknowledge(bot):
    for event in ("acknowledged", "closed", "test"):
        transport(bot).send(page(event=event), "")
        assert [b["text"]["content"] for b in bot.said[-1]["elements"][1]["actions"]] == ["Detail"]
    two = page().incidents * 2
    transport(bot).send(page(incidents=two), "")
    assert [b["text"]["content"] for b in bot.said[-1]["elements"][1]["actions"]] == ["Detail"], "which of two would it acknowledge?"


@pytest.mark.parametrize(
    ("event", "severity", "colour"),
    [("triggered", "Warning", "orange"), ("refire", "Info", "blue"), ("closed", "Critical", "green"), ("acknowledged", "Critical", "turquoise"), ("test", "", "grey")],
)  # fmt: skip
def test_the_colour_says_how_bad_it_is(bot, event, severity, colour):
    transport(bot).send(page(event=event, severity=severity), "")
    assert bot.said[0]["header"]["template"] == colour


def test_a_missing_keyword_is_added(bot):
    transport(bot).send(page(text="no keyword here"), "")
    assert text_of(bot.said[0]) == "no keyword here\n#"
    bot.keyword = "告警"
    transport(bot, keyword="告警").send(page(text="no keyword here"), "")
    assert text_of(bot.said[1]) == "no keyword here\n告警"


def test_an_escaped_character_is_no_keyword(bot):
    """`&#60;` has a # for us and none for Feishu, which reads `<`."""
    transport(bot).send(page(subject="a", text="1 &#60; 2"), "")
    assert text_of(bot.said[0]) == "1 &#60; 2\n#"


def test_mentions_are_ids_of_the_platform(bot):
    receipt = transport(bot).send(page(mentions=("ou_1a2b", "all", "li@example.com", "x></at><at id=all")), "")
    assert text_of(bot.said[0]).endswith("\n<at id=ou_1a2b></at><at id=all></at>")
    assert "li@example.com" in receipt.detail
    assert text_of(bot.said[0]).count("<at ") == 2


@pytest.mark.parametrize("line", ["label = **数据库** 的值 &#60;x&#62;\n", "长", '\\"', "a&#42;"])
def test_long_texts_are_cut_to_what_the_provider_takes(bot, line):
    receipt = transport(bot).send(page(text=(line * 30_000)[:60_000], mentions=("ou_1",)), "")
    assert receipt.detail == "shortened to 20,000 bytes"
    text = text_of(bot.said[0])
    assert "… shortened" in text and text.endswith("<at id=ou_1></at> #")
    assert len(bot.seen[0].body) > 19_000, "as much as fits"


def test_a_cut_never_leaves_half_a_tag():
    assert cut("a" * 50 + "&#60;" + "b" * 50, 55) == "a" * 50
    assert cut("a" * 50 + "<at id=ou_1></at>", 58) == "a" * 50
    assert cut("a" * 50 + "[words](https://example.com/x)", 70) == "a" * 50
    assert cut("**" + "a" * 50, 40).endswith("a**")
    assert cut("first line is long enough to stay\nsec", 37) == "first line is long enough to stay"


@pytest.mark.parametrize(
    ("change", "permanent", "config", "words"),
    [
        ({"key": "00000000-0000"}, True, True, "removed from the group"),
        ({"secret": "another"}, True, True, "sign secret"),
        ({"now": NOW + 3601}, True, True, "clock"),
        ({"keyword": "§"}, True, True, "keyword"),
        ({"whitelisted": False}, True, True, "IP list"),
    ],
)  # fmt: skip
def test_a_refusal_in_a_200_is_a_refusal(bot, change, permanent, config, words):
    channel = transport(bot)
    for name, value in change.items():
        setattr(bot, name, value)
    with pytest.raises(DeliveryError) as caught:
        channel.send(page(), "")
    error = caught.value
    assert (error.permanent, error.config, error.left) == (permanent, config, False)
    assert words in error.text and "c0ffee00" not in error.text
    assert bot.said == []


def test_the_rate_limit_blocks_the_bot_for_a_minute(bot):
    for _ in range(5):
        transport(bot).send(page(), "")
    error = refused(bot, page())
    assert (error.permanent, error.retry_after, error.blocked) == (False, 60, 60)
    assert [(limit.seconds, limit.count < most) for limit, most in zip(Feishu.limits, (100, 5), strict=True)] == [(60, True), (1, True)]
    bot.now += 1
    transport(bot).send(page(), "")


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("code", CODES)
def test_every_code_of_the_table_whatever_the_status(bot, code, status):
    bot.answer = Reply(status, {"code": code, "msg": "whatever it says"})
    error = refused(bot, page())
    sentence, permanent, wait = CODES[code]
    assert (error.permanent, error.retry_after, error.blocked, error.left) == (permanent, wait, wait, False)
    assert str(sentence) in error.text


def test_what_may_be_too_long_goes_once_more_in_half(bot):
    bot.answer = lambda seen: Reply(200, OK) if len(seen.body) < 12_000 else Reply(200, {"code": 9499, "msg": "Bad Request"})
    receipt = transport(bot).send(page(text="word\n" * 4000), "")
    assert receipt.detail == "shortened to 10,000 bytes" and len(bot.seen) == 2
    bot.answer = Reply(200, {"code": 9499, "msg": "Bad Request"})
    assert refused(bot, page()).permanent
    assert len(bot.seen) == 3, "what is short already cannot be too long"


def test_the_fake_takes_what_another_client_sends(bot, monkeypatch):
    """Apprise frames cards by its own reading of the guide."""
    monkeypatch.setattr(NotifyFeishu, "notify_url", f"{bot.url}/open-apis/bot/v2/hook/{{token}}")
    bot.secret = ""
    other = NotifyFeishu(token=bot.key)
    other.request_rate_per_sec = 0
    assert other.send("**数据库** is down #", "Title", body_format="markdown") and len(bot.said) == 1
    assert other.send("no keyword", "Title", body_format="markdown") is False and len(bot.said) == 1


@pytest.mark.parametrize("change", [{"template": "pink"}, {"title": {"tag": "lark_md", "content": "x"}}, {"subtitle": "x"}])
def test_the_fake_knows_the_vendors_cards(bot, change):
    body, _detail = transport(bot).compose(page())
    body["card"]["header"] |= change
    bot.secret = ""
    answer = Http(allowed_hosts=[bot.host]).post(bot.hook, json=body)
    assert answer.json()["code"] == 9499 and bot.said == []


def test_people_are_named_by_the_mapping_table():
    assert Feishu.mentions_by == ("table",), "the guide's mapping table; a bot of this kind takes no phone and no e-mail"


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(200, {"code": 77777, "msg": "new"}), False, False),
        (Reply(200, {"StatusCode": 19024}), True, False),
        (Reply(200, {"msg": "success"}), False, True),
        (Reply(200, {"code": "0"}), False, True),
        (Reply(200, {"code": False}), False, True),
        (Reply(200, b"[]"), False, True),
        (Reply(418, {"code": 77777}), True, False),
    ],
)
def test_answers_nobody_expected(bot, reply, permanent, left):
    bot.answer = reply
    error = refused(bot, page())
    assert (error.permanent, error.left) == (permanent, left)


def test_an_older_installation_says_statuscode(bot):
    bot.answer = Reply(200, {"StatusCode": 0, "StatusMessage": "success"})
    assert transport(bot).send(page(), "").state == "sent"


def test_labels_speak_the_message_language(bot):
    """The catalogue may not have the words yet; what counts is that another thread's language does not leak in."""
    from django.utils import translation

    with translation.override("en"):
        transport(bot).send(page(language="zh-hans"), "")
        assert translation.get_language() == "en"


@pytest.mark.parametrize(
    "url",
    [
        "https://open.feishu.cn/open-apis/bot/v2/hook/c0ffee00-1234-5678-9abc-def012345678",
        " https://open.larksuite.com/open-apis/bot/v2/hook/c0ffee00-1234-5678-9abc-def012345678 ",
        "https://feishu.works.example/open-apis/bot/v2/hook/c0ffee00-1234",
    ],
)
def test_addresses_that_are_taken(url):
    assert Feishu.check({"url": url}) == {}


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "required"),
        ("c0ffee00-1234-5678-9abc-def012345678", "whole webhook address"),
        ("https://open.feishu.cn/open-apis/bot/hook/c0ffee001234", "old kind"),
        ("https://oapi.dingtalk.com/robot/send?access_token=1", "has the form"),
        ("http://open.feishu.cn/open-apis/bot/v2/hook/c0ffee00-1234", "https"),
    ],
)
def test_addresses_that_are_not(url, words):
    assert words in " ".join(Feishu.check({"url": url})["url"])


def test_the_keyword_is_a_hash_unless_said_otherwise():
    form = Feishu.Settings(data={"url": "https://open.feishu.cn/open-apis/bot/v2/hook/c0ffee00-1234"})
    assert form.is_valid() and form.cleaned_data["keyword"] == "#"


@pytest.mark.parametrize("quotes", [1, 60])
def test_a_text_of_the_declared_length_is_not_cut(bot, quotes):
    """The outbox fills a bundle up to max_bytes: what the card cut off would be an incident nobody reads."""
    text = "".join(f'#{number:06X} {quotes * chr(34)}disk" of host-{number} is full\n' for number in range(1000))[: Feishu.max_bytes]
    assert transport(bot).send(page(text=text, subject="标" * 200, url="https://oncall.example.com/" + "x" * 500), "").detail == ""
    assert text_of(bot.said[0]) in (text, text.replace('"', "'"))
