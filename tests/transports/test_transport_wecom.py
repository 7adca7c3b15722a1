"""The WeCom group bot against a bot as strict as the real one, and that bot against a client that is not ours."""

import json
from datetime import timedelta

import pytest
from apprise.plugins.wecombot import NotifyWeComBot

from channels_app.http import DeliveryError, Http
from channels_app.transports.wecom import CODES, WeCom, cut
from templates_app.formats import format_named
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply
from tests.fakes.wecom import KEY, OK, WeComBot, no

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(200, OK)
REFUSED_IN_200 = no(93000, "invalid webhook url")
NEEDS_THE_BODY = True


def stage(base: str) -> dict:
    return {"url": f"{base}/cgi-bin/webhook/send?key={KEY}"}


@pytest.fixture
def bot():
    with WeComBot(now=SENT_AT.timestamp()) as running:
        yield running


def transport(bot, **settings) -> WeCom:
    return WeCom({"url": bot.hook, **settings}, Http(allowed_hosts=[bot.host]))


def refused(bot, message, **settings) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        transport(bot, **settings).send(message, "")
    return caught.value


def test_a_page_is_markdown_with_links(bot):
    receipt = transport(bot).send(page(), "")
    assert (receipt.state, receipt.detail) == ("sent", "")
    assert bot.said == [
        {
            "msgtype": "markdown",
            "markdown": {
                "content": "**Database is down**\n#A1B2C3 Critical\n"
                "[Acknowledge](https://oncall.example.com/i/a1b2c3?ack=1) | [Detail](https://oncall.example.com/i/a1b2c3)"
            },
        }
    ]


def test_a_link_that_the_template_has_is_not_there_twice(bot):
    transport(bot).send(page(text="x [Details](https://oncall.example.com/i/a1b2c3)"), "")
    assert bot.words(bot.said[0]).count("(https://oncall.example.com/i/a1b2c3)") == 1


def test_only_an_open_incident_offers_acknowledge(bot):
    for event in ("acknowledged", "closed", "test"):
        transport(bot).send(page(event=event), "")
        assert "Acknowledge" not in bot.words(bot.said[-1]) and "[Detail]" in bot.words(bot.said[-1])
    transport(bot).send(page(incidents=page().incidents * 2), "")
    assert "](" not in bot.words(bot.said[-1]), "which of two would it acknowledge?"


# --- calling people ----------------------------------------------------------------------------------------------------------------


def test_people_of_the_mapping_table_are_called_within_the_message(bot):
    receipt = transport(bot).send(page(mentions=("zhang.san", "li_si@corp", "x><@all", "@all")), "")
    assert bot.called(bot.said[0]) == ["zhang.san", "li_si@corp"] and len(bot.said) == 1
    assert receipt.detail == "not mentioned: x><@all, @all"


def test_phones_need_a_second_message(bot):
    receipt = transport(bot, by_phone=True).send(page(mentions=("zhang", "+8613800000000", "+85261234567")), "")
    assert receipt.detail == ""
    first, second = bot.said
    assert bot.called(first) == ["zhang"]
    assert second == {
        "msgtype": "text",
        "text": {"content": "#A1B2C3: please look at the message above.", "mentioned_mobile_list": ["13800000000", "+85261234567"]},
    }


def test_phones_are_called_only_where_the_channel_says_so(bot):
    receipt = transport(bot).send(page(mentions=("+8613800001234",)), "")
    assert len(bot.said) == 1 and receipt.detail == "not mentioned: …1234"


def test_two_messages_a_page_are_half_as_many_pages():
    per_minute = {settings: WeCom.limits_of({"by_phone": settings})[0] for settings in (False, True)}
    assert per_minute[False].count < 20 and per_minute[True].count * 2 < 20 and per_minute[True].seconds == 60


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(500, "down"), "answered 500"),
        (Reply(raw=b"", end="reset"), "closed the connection"),
        (no(45009, "api freq out of limit"), "20 messages in a minute"),
        (no(40058, "text.mentioned_mobile_list is invalid"), "not as WeCom wants it"),
        (Reply(200, b"<html>"), "not"),
    ],
)
def test_a_call_that_fails_does_not_send_the_page_again(bot, reply, words):
    replies = [Reply(200, OK), reply]
    bot.answer = lambda seen: replies.pop(0)
    receipt = transport(bot, by_phone=True).send(page(mentions=("+8613800000000",)), "")
    assert receipt.state == "sent" and receipt.detail.startswith("nobody was called by phone: ") and words in receipt.detail
    assert KEY not in receipt.detail and len(bot.seen) == 2


def test_a_page_that_is_refused_calls_nobody(bot):
    bot.answer = no(93008, "bot not in chat")
    assert refused(bot, page(mentions=("+8613800000000",)), by_phone=True).config
    assert len(bot.seen) == 1


def test_the_call_holds_nothing_of_the_alert(bot):
    transport(bot, by_phone=True).send(page(subject="<@all>", title="<@all>", num="<@all>", mentions=("+8613800000000",)), "")
    assert bot.called(bot.said[1]) == ["13800000000"] and "<" not in bot.words(bot.said[1])


@pytest.mark.parametrize(
    "title", ["<@all>", "<@zhang.san>", "@all", '<font color="info">fine</font>', "[x](http://evil.example)", "*_`~", "‮evil"]
)
def test_a_hostile_title_calls_nobody(bot, title):
    text = f"#1 {format_named('wecom').escape(title)}"
    transport(bot).send(page(subject=title, text=text), "")
    assert bot.called(bot.said[0]) == [] and bot.words(bot.said[0]).startswith(text)


def test_many_names_never_push_the_text_out(bot):
    text = "".join(f"#{number:06X} disk of host-{number} is full\n" for number in range(1000))[: WeCom.max_bytes]
    names = tuple(f"member-{number:04}" for number in range(200))
    receipt = transport(bot).send(page(text=text, mentions=names, incidents=page().incidents * 3), "")
    assert bot.words(bot.said[0]).startswith(text) and 0 < len(bot.called(bot.said[0])) < 200
    assert "shortened" not in receipt.detail and "member-0199" in receipt.detail


# --- length ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["label = **数据库** ‹x›\n", "长", '<font color="warning">Critical</font> x\n', "[w](https://example.com/x)", '"']
)
def test_long_texts_are_cut_to_what_the_provider_takes(bot, line):
    receipt = transport(bot).send(page(text=(line * 30_000)[:60_000], mentions=("zhang",)), "")
    assert receipt.detail == "shortened to 4,096 bytes"
    words = bot.words(bot.said[0])
    assert "… shortened\n[Acknowledge](" in words and words.endswith("[Detail](https://oncall.example.com/i/a1b2c3)\n<@zhang>")
    assert words.count("<font") == words.count("</font>") and len(words.encode()) > 3900, "as much as fits"


def test_a_cut_never_leaves_half_a_mark():
    assert cut("a" * 50 + "[words](https://example.com/x)", 70) == "a" * 50
    assert cut("a" * 50 + '<font color="info">Ok</font>', 60) == "a" * 50
    assert cut("a" * 50 + '<font color="info">Ok</font>', 71).endswith("</font>")
    assert cut("**" + "a" * 50, 40).endswith("a**")
    assert cut("长" * 10, 10) == "长" * 3
    assert cut("first line is long enough to stay\nsec", 37) == "first line is long enough to stay"


@pytest.mark.parametrize(
    "refusal",
    [
        no(40058, "markdown.content exceed max length 4096. Invalid input invalid Request Parameter"),
        no(93000, "Invalid input : content exceed max length. invalid Request Parameter"),
        no(45002, "content size out of limit"),
    ],
)
def test_what_is_too_long_goes_once_more_in_half(bot, refusal):
    bot.answer = lambda seen: Reply(200, OK) if len(seen.body) < 3000 else refusal
    receipt = transport(bot).send(page(text="word\n" * 4000), "")
    assert receipt.detail == "shortened to 2,048 bytes" and len(bot.seen) == 2
    bot.answer = refusal
    error = refused(bot, page())
    assert error.permanent and not error.config and "4,096 bytes" in error.text


# --- refusals ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("status", [200, 400])
def test_every_code_of_the_table(bot, code, status):
    bot.answer = Reply(status, {"errcode": code, "errmsg": "whatever it says"})
    error = refused(bot, page())
    sentence, permanent, wait = CODES[code]
    assert (error.permanent, error.retry_after, error.left) == (permanent, wait, False)
    assert str(sentence) in error.text and KEY not in error.text


def test_a_key_that_is_not_known(bot):
    channel = transport(bot)
    bot.key = "another"
    with pytest.raises(DeliveryError) as caught:
        channel.send(page(), "")
    assert caught.value.config and "paste the new address" in caught.value.text


def test_the_rate_limit_blocks_the_bot_for_a_minute(bot):
    for _ in range(20):
        transport(bot).send(page(), "")
    error = refused(bot, page())
    assert (error.permanent, error.retry_after, error.blocked) == (False, 60, 60)
    bot.now += 60
    transport(bot).send(page(sent_at=SENT_AT + timedelta(seconds=60)), "")


def test_a_part_that_was_left_out_is_told(bot):
    """It has arrived, so it is not sent again; but somebody should know."""
    bot.answer = Reply(200, {"errcode": 0, "errmsg": "ok. Warning: wrong json format. "})
    assert transport(bot).send(page(), "").detail == "WeCom left out a part of the message"


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(200, {"errcode": 77777, "errmsg": "new"}), False, False),
        (Reply(200, {"errmsg": "ok"}), False, True),
        (Reply(200, {"errcode": "0"}), False, True),
        (Reply(200, {"errcode": False}), False, True),
        (Reply(200, b"[]"), False, True),
        (Reply(418, {"errcode": 77777}), True, False),
    ],
)
def test_answers_nobody_expected(bot, reply, permanent, left):
    bot.answer = reply
    error = refused(bot, page())
    assert (error.permanent, error.left) == (permanent, left)


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "required"),
        (KEY, "whole webhook address"),
        (f"https://oapi.dingtalk.com/robot/send?access_token={KEY}", "has the form"),
        ("https://qyapi.weixin.qq.com/cgi-bin/webhook/send", "key is missing"),
        (f"http://qyapi.weixin.qq.com/cgi-bin/webhook/send?key={KEY}", "https"),
    ],
)
def test_addresses_that_are_not_taken_say_why(url, words):
    assert words in " ".join(WeCom.check({"url": url})["url"])


def test_the_whole_address_is_pasted():
    form = WeCom.Settings(data={"url": f" https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key={KEY}&debug=1 "})
    assert form.is_valid() and form.cleaned_data == {
        "url": f"https://qyapi.weixin.qq.com/cgi-bin/webhook/send?key={KEY}",
        "by_phone": False,
    }


# --- the fake itself ---------------------------------------------------------------------------------------------------------------


def test_the_fake_takes_what_another_client_sends(bot, monkeypatch):
    """Apprise frames messages by its own reading of the documentation."""
    monkeypatch.setattr(NotifyWeComBot, "notify_url", f"{bot.url}/cgi-bin/webhook/send?key={{key}}")
    other = NotifyWeComBot(key=KEY)
    other.request_rate_per_sec = 0
    assert other.send("数据库 is down") and bot.said == [{"msgtype": "text", "text": {"content": "数据库 is down"}}]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ([], 40008),
        ({"msgtype": "sonnet"}, 40008),
        ({"msgtype": "markdown", "markdown": {"content": ""}}, 44004),
        ({"msgtype": "markdown", "markdown": {"content": "长" * 1366}}, 40058),
        ({"msgtype": "text", "text": {"content": "x" * 2049}}, 40058),
        ({"msgtype": "text", "text": {"content": "x", "mentioned_mobile_list": "13800000000"}}, 40058),
    ],
)
def test_the_fake_refuses_what_the_provider_refuses(bot, body, code):
    answer = Http(allowed_hosts=[bot.host]).post(bot.hook, json=body)
    assert answer.status == 200 and json.loads(answer.body)["errcode"] == code and bot.said == []
