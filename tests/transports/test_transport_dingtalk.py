"""The DingTalk group bot against a bot as strict as the real one, and that bot against a client that is not ours."""

import json
from types import SimpleNamespace
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from apprise.plugins import dingtalk

from channels_app.http import DeliveryError, Http
from channels_app.transports.dingtalk import CODES, DingTalk, cut, mobile, security, sign
from templates_app.formats import format_named
from tests.fakes.dingtalk import OK, SECRET, SECURITY, TOKEN, DingTalkBot
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply

NOW = SENT_AT.timestamp()

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(200, OK)
REFUSED_IN_200 = Reply(200, {"errcode": 300005, "errmsg": "token is not exist"})
NEEDS_THE_BODY = True


def stage(base: str) -> dict:
    return {"url": f"{base}/robot/send?access_token={TOKEN}", "keyword": "#", "secret": SECRET}


@pytest.fixture
def bot():
    with DingTalkBot(secret=SECRET, keywords=("#",), now=NOW) as running:
        yield running


def transport(bot, **settings) -> DingTalk:
    return DingTalk({"url": bot.hook, "secret": bot.secret, **settings}, Http(allowed_hosts=[bot.host]))


def refused(bot, message, **settings) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(bot, **settings).send(message, "")
    return caught.value


def test_the_signature_is_the_providers(bot):
    # Computed independently; with key and message the other way round (as Feishu has it) it would be another one.
    assert sign("1700000000000", SECRET) == "C16sERNiVxJgP0IXlAk7lgksjefh7RmWrlbqfDbbPnA="
    transport(bot).send(page(), "")
    assert bot.seen[0].path.endswith("&timestamp=1700000000000&sign=C16sERNiVxJgP0IXlAk7lgksjefh7RmWrlbqfDbbPnA%3D"), "encoded exactly once"


def test_without_a_secret_nothing_is_signed(bot):
    bot.secret = ""
    transport(bot).send(page(), "")
    assert set(parse_qs(urlsplit(bot.seen[0].path).query)) == {"access_token"}


def test_a_page_is_a_card_with_link_buttons(bot):
    receipt = transport(bot).send(page(), "")
    assert (receipt.state, receipt.detail) == ("sent", "")
    assert bot.said[0] == {
        "msgtype": "actionCard",
        "actionCard": {
            "title": "Database is down",
            "text": "**Database is down**\n#A1B2C3 Critical",
            "btnOrientation": "1",
            "btns": [
                {"title": "Acknowledge", "actionURL": "https://oncall.example.com/i/a1b2c3?ack=1"},
                {"title": "Detail", "actionURL": "https://oncall.example.com/i/a1b2c3"},
            ],
        },
    }


def test_only_an_open_incident_offers_acknowledge(bot):
    for event in ("acknowledged", "closed", "test"):
        transport(bot).send(page(event=event), "")
        card = bot.said[-1]["actionCard"]
        assert (card["singleTitle"], card["singleURL"]) == ("Detail", "https://oncall.example.com/i/a1b2c3") and "btns" not in card
    transport(bot).send(page(incidents=page().incidents * 2), "")
    assert bot.said[-1]["msgtype"] == "markdown", "which of two would a button acknowledge?"
    transport(bot).send(page(url=""), "")
    assert bot.said[-1]["msgtype"] == "markdown"


def test_people_are_called_by_phone(bot):
    receipt = transport(bot).send(page(mentions=("+8613800000000", "+85261234567", "ou_1", "+8613800000000")), "")
    body = bot.said[0]
    assert body["msgtype"] == "markdown" and body["at"] == {"atMobiles": ["13800000000", "+852-61234567"], "isAtAll": False}
    assert bot.called(body) == ["13800000000", "+852-61234567"], "listed, and named in the text"
    assert "[Detail](https://oncall.example.com/i/a1b2c3)" in bot.words(body), "a message without buttons keeps its link"
    assert receipt.detail == "not mentioned: …ou_1"


def test_at_most_fifty_people_are_called(bot):
    phones = tuple(f"+8613800{number:06}" for number in range(60))
    receipt = transport(bot).send(page(mentions=phones), "")
    assert len(bot.said[0]["at"]["atMobiles"]) == 50 == len(bot.called(bot.said[0]))
    assert receipt.detail.count("…") == 10 and "13800" not in receipt.detail


@pytest.mark.parametrize(
    ("phone", "name"), [("+8613800000000", "13800000000"), ("+14155550100", "+1-4155550100"), ("13800000000", ""), ("@all", "")]
)
def test_a_phone_as_the_platform_has_it(phone, name):
    assert mobile(phone) == name


@pytest.mark.parametrize(
    "title", ["<@all> @all @everyone", "<at id=all></at>", "*_[]()`~#", "![x](http://evil.example/x.png)", "‮evil", "🔥" * 40]
)
def test_a_hostile_title_calls_nobody(bot, title):
    text = f"#1 {format_named('dingtalk').escape(title)}"
    transport(bot).send(page(subject=title, text=text, mentions=("+8613800000000",)), "")
    body = bot.said[0]
    assert bot.called(body) == ["13800000000"] and body["at"]["isAtAll"] is False
    assert text in bot.words(body), "the words arrive, escaped by the format and not again"


def test_a_missing_keyword_is_added(bot):
    transport(bot).send(page(text="no keyword here"), "")
    assert bot.words(bot.said[0]) == "no keyword here\n\n#"
    bot.keywords = ("告警", "alarm")
    transport(bot, keyword="告警").send(page(text="no keyword here"), "")
    assert bot.words(bot.said[1]) == "no keyword here\n\n告警"


@pytest.mark.parametrize(
    "line", ["label = **数据库** ‹x›  \n", "长", "a∗", '<font color="#d93026">Critical</font> x  \n', "[w](https://example.com/x)"]
)
@pytest.mark.parametrize("mentions", [(), ("+8613800000000",)])
def test_long_texts_are_cut_to_what_the_provider_takes(bot, line, mentions):
    receipt = transport(bot).send(page(text=(line * 30_000)[:60_000], mentions=mentions), "")
    assert receipt.detail == "shortened to 20,000 bytes"
    words = bot.words(bot.said[0])
    assert "… shortened" in words and words.endswith("#")
    assert mentions == () or "[Detail](https://oncall.example.com/i/a1b2c3)" in words, "the link to the rest"
    assert words.count("<font") == words.count("</font>") and bot.called(bot.said[0]) == [mobile(name) for name in mentions]
    assert len(bot.seen[0].body) > 19_000, "as much as fits"


def test_a_cut_never_leaves_half_a_mark():
    assert cut("a" * 50 + "[words](https://example.com/x)", 70) == "a" * 50
    assert cut("a" * 50 + '<font color="#d93026">Critical</font>', 60) == "a" * 50
    assert cut("a" * 50 + '<font color="#d93026">Critical</font>', 80).endswith("</font>")
    assert cut("**" + "a" * 50, 40).endswith("a**")
    assert cut("first line is long enough to stay\nsec", 37) == "first line is long enough to stay"


@pytest.mark.parametrize("quote", ["", '"', "\\"])
def test_a_text_of_the_declared_length_is_not_cut(bot, quote):
    """The outbox fills a bundle up to max_bytes: what would be cut off is an incident nobody reads."""
    text = "".join(f"#{number:06X} {quote * 60}disk of host-{number} is full  \n\n" for number in range(1000))[: DingTalk.max_bytes]
    mentions = tuple(f"+8613800{number:06}" for number in range(50))
    message = page(text=text, subject="标" * 200, mentions=mentions, incidents=page().incidents * 2)
    assert transport(bot).send(message, "").detail == ""
    assert bot.words(bot.said[0]).startswith(text.replace('"', "'").replace("\\", "/") if quote else text)


# --- refusals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": "0" * 64}, "paste the new webhook address"),
        ({"secret": "SECanother"}, "sign secret"),
        ({"now": NOW + 3601}, "clock"),
        ({"keywords": ("§",)}, "keyword"),
        ({"whitelisted": False}, "this installation calls from 203.0.113.7"),
    ],
)
@pytest.mark.parametrize("chinese", [False, True])
def test_a_refusal_in_a_200_says_what_to_do(bot, change, words, chinese):
    channel = transport(bot)
    bot.chinese = chinese
    for name, value in change.items():
        setattr(bot, name, value)
    with pytest.raises(DeliveryError) as caught:
        channel.send(page(), "")
    error = caught.value
    assert (error.permanent, error.config, error.left) == (True, True, False)
    assert words in error.text and TOKEN not in error.text and SECRET not in error.text
    assert bot.said == []


def test_the_four_causes_of_310000_are_told_apart_in_both_languages():
    for language in (0, 1):
        assert len({security(said[language]) for said in SECURITY.values()}) == 4
    assert "compare keyword, sign secret and IP list" in security("something new")


def test_the_rate_limit_silences_the_bot_for_ten_minutes(bot):
    for _ in range(20):
        transport(bot).send(page(), "")
    error = refused(bot, page())
    assert (error.permanent, error.retry_after, error.blocked) == (False, 600, 600)
    assert "ten minutes" in error.text and len(bot.blocks) == 1
    bot.now += 599
    assert refused(bot, page()).blocked == 600
    bot.now += 2
    message = page(sent_at=SENT_AT.fromtimestamp(bot.now, SENT_AT.tzinfo))
    transport(bot).send(message, "")
    [limit] = DingTalk.limits
    assert limit.seconds == 60 and limit.count < 20


def test_a_throttle_without_a_code_is_the_same(bot):
    bot.answer = Reply(200, {"status": 1111, "wait": 5, "source": "x5", "punish": "deny", "uuid": "24ce64f6"})
    error = refused(bot, page())
    assert (error.permanent, error.blocked, error.left) == (False, 600, False)


@pytest.mark.parametrize("code", CODES)
def test_every_code_of_the_table(bot, code):
    bot.answer = Reply(200, {"errcode": code, "errmsg": "whatever it says"})
    error = refused(bot, page())
    sentence, permanent, wait = CODES[code]
    assert (error.permanent, error.retry_after, error.blocked, error.left) == (permanent, wait, wait, False)
    assert str(sentence) in error.text and str(code) in error.text


def test_what_is_too_long_goes_once_more_in_half(bot):
    """The provider may count otherwise than we; what it refused for its size it has not shown."""
    sizes = []

    def strict(seen):
        sizes.append(len(seen.body))
        return (
            Reply(200, OK)
            if len(seen.body) <= 15_000
            else Reply(200, {"errcode": 460101, "errmsg": "message too long, exceed 20000 bytes"})
        )

    bot.answer = strict
    receipt = transport(bot).send(page(text="word  \n" * 4000), "")
    assert receipt.detail == "shortened to 10,000 bytes" and len(sizes) == 2
    bot.answer = Reply(200, {"errcode": 460101, "errmsg": "message too long, exceed 20000 bytes"})
    assert refused(bot, page()).permanent


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(200, {"errcode": 77777, "errmsg": "new"}), False, False),
        (Reply(200, {"errcode": "310000", "errmsg": "sign not match"}), True, False),
        (Reply(200, {"errmsg": "ok"}), False, True),
        (Reply(200, {"errcode": None}), False, True),
        (Reply(200, {"errcode": False}), False, True),
        (Reply(200, b"[]"), False, True),
        (Reply(400, {"errcode": 660026, "errmsg": "sending too many messages per minute"}), False, False),
        (Reply(418, {"errcode": 77777}), True, False),
    ],
)
def test_answers_nobody_expected(bot, reply, permanent, left):
    bot.answer = reply
    error = refused(bot, page())
    assert (error.permanent, error.left) == (permanent, left)


def test_the_documentations_own_example_is_a_success(bot):
    bot.answer = Reply(200, {"errcode": "0", "errmsg": "ok"})
    assert transport(bot).send(page(), "").state == "sent"


# --- settings ----------------------------------------------------------------------------------------------------------------------


def test_the_whole_address_is_pasted_and_an_old_signature_dropped():
    form = DingTalk.Settings(data={"url": f" https://oapi.dingtalk.com/robot/send?access_token={TOKEN}&timestamp=1600000000000&sign=OLD "})
    assert form.is_valid()
    assert form.cleaned_data == {"url": f"https://oapi.dingtalk.com/robot/send?access_token={TOKEN}", "keyword": "#", "secret": ""}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("url", "", "required"),
        ("url", TOKEN, "whole webhook address"),
        ("url", "https://open.feishu.cn/open-apis/bot/v2/hook/c0ffee00-1234", "has the form"),
        ("url", "https://oapi.dingtalk.com/robot/send?access_token=", "key is missing"),
        ("url", f"http://oapi.dingtalk.com/robot/send?access_token={TOKEN}", "https"),
        ("secret", TOKEN, "begins with SEC"),
    ],
)
def test_settings_that_are_not_taken_say_how(field, value, words):
    errors = DingTalk.check({"url": f"https://oapi.dingtalk.com/robot/send?access_token={TOKEN}", field: value})
    assert words in " ".join(errors[field])


# --- the fake itself ---------------------------------------------------------------------------------------------------------------


def test_the_fake_takes_what_another_client_sends(bot, monkeypatch):
    """Apprise frames messages and signs by its own reading of the documentation. (Its request encodes the signature a second time and is
    refused for it, which it takes for a success: so the two are compared one by one.)"""
    monkeypatch.setattr(dingtalk.NotifyDingTalk, "notify_url", f"{bot.url}/robot/send?access_token={{token}}")
    monkeypatch.setattr(dingtalk, "time", SimpleNamespace(time=lambda: NOW))
    assert dingtalk.NotifyDingTalk(token=TOKEN, secret=SECRET).get_signature() == (
        "1700000000000",
        quote(sign("1700000000000", SECRET), safe=""),
    )
    bot.secret = ""
    other = dingtalk.NotifyDingTalk(token=TOKEN, targets=["13800000000"])
    other.request_rate_per_sec = 0
    for style in ("markdown", "text"):
        assert other.send("**down** # @13800000000", "Title", body_format=style)
        assert bot.called(bot.said[-1]) == ["13800000000"]
    assert len(bot.said) == 2


@pytest.mark.parametrize(
    ("method", "query", "body", "code"),
    [
        ("GET", f"?access_token={TOKEN}", {}, 43002),
        ("POST", "", {}, 40035),
        ("POST", f"?access_token={TOKEN}", {"msgtype": "markdown", "markdown": {"text": "# no title"}}, 40035),
        ("POST", f"?access_token={TOKEN}", {"msgtype": "sonnet"}, 400105),
        ("POST", f"?access_token={TOKEN}", {"msgtype": "text", "text": {"content": "x" * 20_000}}, 460101),
    ],
)
def test_the_fake_refuses_what_the_provider_refuses(bot, method, query, body, code):
    answer = Http(allowed_hosts=[bot.host]).request(method, f"{bot.url}/robot/send{query}", json=body)
    assert answer.status == 200 and json.loads(answer.body)["errcode"] == code and bot.said == []
