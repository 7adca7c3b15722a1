"""The Telegram bot against an API as strict as the real one; the fake itself against TDLib's cases and python-telegram-bot."""

import asyncio
import re
from datetime import UTC, datetime

import pytest
import telegram as ptb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from telegram.constants import FloodLimit, MessageLimit

from channels_app import addresses, http, outbox
from channels_app.http import DeliveryError, Http
from channels_app.models import Account, Channel, Delivery
from channels_app.transport import Suggests
from channels_app.transports.telegram import MAX_TEXT, Telegram, compose
from escalation.ids import hex_id
from mapping.models import Installation, Member
from templates_app import events
from templates_app.choose import render_or_default
from templates_app.events import EVENTS
from templates_app.formats import format_named
from templates_app.samples import SAMPLE_NOW, VARIANTS, sample
from tests.fakes.message import page
from tests.fakes.server import Reply
from tests.fakes.telegram import TOKEN, BadHtml, Chat, TelegramApi, parse_html

GROUP, PRIVATE, FORUM = -1001234567890, 4242, -1009876543210
LINK = "https://oncall.example.com/i/a1b2c3"
ATTACK = "@everyone @admin <b>x</b> *_[a](b)_* </a></pre> &lt;b&gt; &#64;admin <at id=all></at> \"' ‮evil 🔥🏟 مرحبا"

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(200, {"ok": True, "result": {"message_id": 7, "chat": {"id": GROUP}}})
REFUSED_IN_200 = Reply(200, {"ok": False, "error_code": 403, "description": "Forbidden: bot was kicked from the supergroup chat"})
NEEDS_THE_BODY = True
ADDRESS = str(GROUP)


def stage(base: str) -> dict:
    return {"token": TOKEN, "chats": ADDRESS, "api_base": base}


@pytest.fixture
def api():
    chats = Chat(GROUP, members={77}), Chat(PRIVATE, "private", "Li"), Chat(FORUM, title="forum", topics={45})
    with TelegramApi(*chats, now=1_700_000_000) as running:
        yield running


def bot(api, chats=ADDRESS, **changes) -> Telegram:
    return Telegram({"token": TOKEN, "chats": chats, "api_base": api.url, **changes}, Http(allowed_hosts=[api.host]))


def refused(api, message=None, address=ADDRESS, **changes) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        bot(api, **changes).send(message or page(), address)
    assert TOKEN not in caught.value.text and TOKEN[-35:] not in caught.value.text
    return caught.value


# --- the fake ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("🏟 🏟&lt;<abac aba>", 'Unsupported start tag "abac" at byte offset 13'),
        ("🏟 🏟&lt;<abacaba", "Unclosed start tag at byte offset 13"),
        ("🏟 🏟&lt;<i   =aba>", 'Empty attribute name in the tag "i" at byte offset 13'),
        ("🏟 🏟&lt;<i    aba>", 'Can\'t find end tag corresponding to start tag "i"'),
        ("🏟 🏟&lt;<i    aba  =  ", 'Unclosed start tag "i" at byte offset 13'),
        ("🏟 🏟&lt;<i    aba  =  190azAz-.,", "Unexpected end of name token at byte offset 27"),
        ('🏟 🏟&lt;<i    aba  =  "&lt;&gt;&quot;>', "Unclosed start tag at byte offset 13"),
        ("🏟 🏟&lt;</", "Unexpected end tag at byte offset 13"),
        ("🏟 🏟&lt;<b></b></", "Unexpected end tag at byte offset 20"),
        ("🏟 🏟&lt;<i>a</i   ", "Unclosed end tag at byte offset 17"),
        ("🏟 🏟&lt;<i>a</em   >", 'Unmatched end tag at byte offset 17, expected "</i>", found "</em>"'),
        ("&#57311;", "Text contains invalid Unicode characters after decoding HTML entities, check for unmatched surrogate code units"),
    ],
)
def test_the_fake_refuses_what_tdlib_refuses(source, error):
    with pytest.raises(BadHtml) as caught:
        parse_html(source)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("source", "text", "entities"),
    [
        ('&ge;&lt;&gt;&amp;&quot;&laquo;&raquo;&#12345678;', '&ge;<>&"&laquo;&raquo;&#12345678;', []),
        ("➡️ ➡️<strong>➡️ ➡️</strong>", "➡️ ➡️➡️ ➡️", [("bold", 5, 5)]),
        ("🏟 🏟<i>🏟 &gt;<b aba   =   caba>&lt🏟</b></i>", "🏟 🏟🏟 ><🏟", [("italic", 5, 7), ("bold", 9, 3)]),
        ("🏟 🏟&lt;<i>🏟 🏟&lt;</>", "🏟 🏟<🏟 🏟<", [("italic", 6, 6)]),
        ("🏟 🏟&lt;<b></b>", "🏟 🏟<", []),
        ('➡️ ➡️<span class = "tg-spoiler">➡️ ➡️</span>', "➡️ ➡️➡️ ➡️", [("spoiler", 5, 5)]),
        ("<a   href=  'telegram.org?&lt;'   > </a>", " ", [("text_link", 0, 1)]),
    ],
)  # fmt: skip
def test_the_fake_reads_what_tdlib_reads(source, text, entities):
    said, found = parse_html(source)
    assert said == text and [(e["type"], e["offset"], e["length"]) for e in found] == entities


@pytest.mark.filterwarnings("ignore::telegram.warnings.PTBDeprecationWarning")
def test_an_independent_client_understands_the_fake_and_the_same_limits(api):
    """python-telegram-bot sends forms where we send JSON, and raises by what it reads in the answers."""

    async def talk():
        async with ptb.Bot(TOKEN, base_url=f"{api.url}/bot") as client:
            assert (await client.send_message(GROUP, "<b>hello</b>", parse_mode="HTML")).message_id == 1
            with pytest.raises(ptb.error.RetryAfter):
                await client.send_message(GROUP, "again")
            api.chats[PRIVATE].refuses = (403, "Forbidden: bot was blocked by the user")
            with pytest.raises(ptb.error.Forbidden):
                await client.send_message(PRIVATE, "x")
            api.chats[FORUM].migrated = GROUP
            with pytest.raises(ptb.error.ChatMigrated) as moved:
                await client.send_message(FORUM, "x")
            assert moved.value.new_chat_id == GROUP
            api.updates = [update_of(private := {"id": 5, "type": "private", "first_name": "Li"})]
            (seen,) = await client.get_updates()
            assert seen.effective_chat.id == private["id"]

    asyncio.run(talk())
    assert MAX_TEXT == MessageLimit.MAX_TEXT_LENGTH
    assert [(limit.count, limit.seconds, limit.scope) for limit in Telegram.limits] == [
        (FloodLimit.MESSAGES_PER_SECOND_PER_CHAT, 1, "address"),
        (FloodLimit.MESSAGES_PER_MINUTE_PER_GROUP, 60, "address"),
        (FloodLimit.MESSAGES_PER_SECOND, 1, "channel"),
    ]


# --- what is sent ------------------------------------------------------------------------------------------------------------------


def test_a_page_is_html_with_link_buttons(api):
    receipt = bot(api).send(page(text="<b>Database is down</b>\n#A1B2C3 Critical"), ADDRESS)
    assert (receipt.state, receipt.message_id, receipt.detail, receipt.moved) == ("sent", "1", "", "")
    (said,) = api.said
    assert said.text == "Database is down\n#A1B2C3 Critical" and said.entities == [{"type": "bold", "offset": 0, "length": 16}]
    assert said.buttons == [{"text": "Acknowledge", "url": f"{LINK}?ack=1"}, {"text": "Detail", "url": LINK}]
    assert api.seen[0].json()["link_preview_options"] == {"is_disabled": True}


def test_only_an_open_incident_offers_acknowledge(api):
    for event, chat in (("acknowledged", GROUP), ("closed", PRIVATE), ("test", FORUM)):
        bot(api).send(page(event=event), str(chat))
        assert [button["text"] for button in api.said[-1].buttons] == ["Detail"]
    api.now += 1
    bot(api).send(page(incidents=page().incidents * 2), ADDRESS)
    assert [button["text"] for button in api.said[-1].buttons] == ["Detail"], "which of two would it acknowledge?"


def test_topics_names_and_private_chats(api):
    bot(api).send(page(), f"{FORUM}:45")
    bot(api).send(page(), str(PRIVATE))
    api.chats[1] = Chat(1, "channel", "ops_channel")
    bot(api).send(page(), "@ops_channel")
    assert [(said.chat.id, said.thread) for said in api.said] == [(FORUM, 45), (PRIVATE, None), (1, None)]


def test_without_an_address_it_is_the_only_chat(api):
    bot(api).send(page(), "")
    assert api.said[0].chat.id == GROUP
    assert "several chats" in refused(api, address="", chats=f"{GROUP}\n{FORUM}").text
    error = refused(api, address="", chats="")
    assert error.config and error.permanent and "No chat is set" in error.text
    assert refused(api, address="general").permanent


def test_a_host_that_telegram_takes_for_none_is_written_out(api):
    """http://localhost or http://pager/ as a button refuses the whole message, and as a link vanishes."""
    for place, url in ((GROUP, "http://localhost:8000/i/1"), (PRIVATE, "http://pager/i/1?a=1&b=2")):
        assert bot(api).send(page(url=url), str(place)).detail == ""
        assert api.said[-1].text.endswith(f"\n{url}") and not api.said[-1].buttons
    assert len(api.seen) == 2


def test_mentions_by_name_and_by_number(api):
    receipt = bot(api).send(page(text="down", mentions=("li_lei", "@han_mm", "77", "+8613800138000", "<b>")), ADDRESS)
    assert api.said[0].text == "down\n@li_lei @han_mm @77"
    assert api.said[0].mentions() == ["@li_lei", "@han_mm", "77"]
    assert receipt.detail == "not mentioned (no Telegram name or id): +8613800138000, <b>"


@pytest.mark.parametrize(
    "title", [ATTACK, "<" * 3000, "&" * 3000, "🔥" * 3000, "@admin " * 700, "</b></a></code>" * 300, "\ud800", "a\x00b"]
)
def test_hostile_titles_arrive_as_words_and_notify_nobody(api, title):
    escaped = format_named("telegram").escape(title)
    bot(api).send(page(text=f'<b>{escaped}</b>\n<a href="{LINK}">{escaped}</a>'), ADDRESS)
    assert len(api.seen) == 1, "nothing had to be mended"
    assert api.said[0].mentions() == []
    if title == ATTACK:
        assert "<b>x</b> *_[a](b)_* </a></pre> &lt;b&gt; &#64;admin <at id=all></at> \"'" in api.said[0].text
        assert [entity["type"] for entity in api.said[0].entities] == ["bold", "text_link"]


@given(st.text("<>&/ab=\"' \n;#x6🔥@pre", max_size=60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_template_gives_html_that_telegram_reads(source):
    text = compose(page(text=source, subject="s"))[0]["text"]
    assert parse_html(text)[0].strip()


@given(
    st.lists(
        st.sampled_from(["<b>", "</b>", '<a href="https://a.b/?x=1&amp;y">', "</a>", "<pre>", "</pre>", "word ", "🔥", "\n", "&lt;", "e"])
    ),
    st.integers(60, 400),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_cut_keeps_the_count_and_the_tags(parts, room):
    body, detail = compose(page(text="".join(parts) * 20, mentions=("li_lei",)), room)
    said, _entities = parse_html(body["text"])
    assert len(said.encode("utf-16-le")) // 2 <= room
    assert said.endswith("@li_lei") and bool(detail) == ("… shortened" in said)


@pytest.mark.parametrize("line", ["<b>one</b> line of &lt;text&gt; that is long\n", "长", "🔥", "&amp;", "word "])
def test_long_texts_are_cut_as_telegram_counts(api, line):
    text = line * (10_000 // len(line.replace("&amp;", "&")))
    receipt = bot(api).send(page(text=text, mentions=("li_lei",)), ADDRESS)
    (said,) = api.said
    assert receipt.detail == "shortened to 4096 characters" and said.text.endswith("\n… shortened\n@li_lei")
    assert 3000 < len(said.text.encode("utf-16-le")) // 2 <= 4096 and len(api.seen) == 1
    assert said.buttons[1]["url"] == LINK, "the link to the rest is kept"


def test_a_text_of_the_declared_length_is_not_cut(api):
    text = "".join(f"#{number:06X} “disk” of host-{number} is full\n" for number in range(1000))[: Telegram.max_chars]
    message = page(text=text, url="http://pager/" + "x" * 100, mentions=("li_lei", "han_mm"))
    assert bot(api).send(message, ADDRESS).detail == ""


def test_browser_tags_and_forgotten_ends_still_arrive(api):
    bot(api).send(page(text="<p>one<br>two</p> <b><i>three</b> a < b <a>link</a> <span style=x>y</span>"), ADDRESS)
    assert api.said[0].text == "<p>one\ntwo</p> three a < b <a>link <span style=x>y</span>"
    assert sorted(entity["type"] for entity in api.said[0].entities) == ["bold", "italic"]


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_default_texts_of_all_events_arrive_whole(language, variant):
    for event in EVENTS:
        context = sample(language, variant, event)
        said = render_or_default([], event, context, kind="telegram", fmt="telegram", language=language, now=SAMPLE_NOW)
        assert not said.error
        message = page(event=event, subject=said.subject, title=said.subject, text=said.text, language=language)
        body, detail = compose(message)
        text, entities = parse_html(body["text"])
        assert detail == "" and len(text) > 10 and not re.search(r"(?<![\w/@])@[A-Za-z]\w{3,31}", text)
        assert all(entity["url"].startswith("http") for entity in entities if entity["type"] == "text_link")


# --- refusals ----------------------------------------------------------------------------------------------------------------------


def test_a_group_that_became_a_supergroup_gets_it_at_once_and_its_new_id_is_told(api):
    api.chats[-55] = Chat(-55, "group", migrated=GROUP)
    receipt = bot(api).send(page(), "-55")
    assert receipt.moved == str(GROUP) and [said.chat.id for said in api.said] == [GROUP]
    assert "new id" in receipt.detail
    saved = Telegram.moved({"token": TOKEN, "chats": f"-55\n{FORUM}:45"}, "-55", receipt.moved)
    assert saved == {"token": TOKEN, "chats": f"{GROUP}\n{FORUM}:45"} and Telegram.check(saved) == {}
    assert Telegram.moved(saved, "-55", str(GROUP)) == saved, "told twice"
    assert Telegram.moved({"chats": "-55"}, "", str(GROUP)) == {"chats": str(GROUP)}
    assert Telegram.moved({"chats": ""}, "-55", str(GROUP)) == {"chats": ""}, "it was one person's"


def test_a_circle_of_migrations_ends(api):
    api.chats[-55], api.chats[-56] = Chat(-55, migrated=-56), Chat(-56, migrated=-55)
    assert refused(api, address="-55").permanent and len(api.seen) == 2


def test_a_topic_that_is_gone_sends_to_the_group(api):
    receipt = bot(api).send(page(), f"{FORUM}:46")
    assert api.said[0].thread is None and "topic is gone" in receipt.detail and receipt.moved == ""


@pytest.mark.parametrize(
    ("description", "sent", "detail"),
    [
        ("Bad Request: can't parse entities: Unsupported start tag", lambda b: "parse_mode" not in b and "<" not in b["text"], "without markup"),
        ("Bad Request: message is too long", lambda b: len(b["text"]) <= 2100, "shortened to 2000"),
        ("Bad Request: BUTTON_URL_INVALID", lambda b: "reply_markup" not in b and b["text"].endswith(LINK), "without buttons"),
        ("Bad Request: inline keyboard button URL 'x' is invalid: Wrong HTTP URL", lambda b: "reply_markup" not in b, "without buttons"),
    ],
)  # fmt: skip
def test_what_can_be_mended_is_sent_again_mended(api, description, sent, detail):
    strict = api.answer
    api.answer = lambda seen: (
        Reply(400, {"ok": False, "error_code": 400, "description": description}) if len(api.seen) == 1 else strict(seen)
    )
    receipt = bot(api).send(page(text="<b>" + "word " * 1000 + "</b>"), ADDRESS)
    assert detail in receipt.detail and sent(api.seen[1].json()) and len(api.said) == 1


def test_what_stays_ill_is_refused_and_not_tried_forever(api):
    api.answer = Reply(400, {"ok": False, "error_code": 400, "description": "Bad Request: can't parse entities: x"})
    assert refused(api).permanent and len(api.seen) == 2


def test_what_there_is_no_time_to_mend_is_for_the_next_attempt(api, monkeypatch):
    api.chats[-55] = Chat(-55, "group", migrated=GROUP)
    strict = api.answer

    def slow(seen):
        monkeypatch.setattr(http, "TOTAL_SECONDS", 0.9)  # as if the answer had taken all but this
        return strict(seen)

    api.answer = slow
    assert not refused(api, address="-55").permanent and api.said == []


@pytest.mark.parametrize(
    ("code", "description", "words"),
    [
        (403, "Forbidden: bot was blocked by the user", "press Start"),
        (403, "Forbidden: bot was kicked from the group chat", "add it again"),
        (403, "Forbidden: bot was kicked from the supergroup chat", "add it again"),
        (403, "Forbidden: bot was kicked from the channel chat", "add it again"),
        (403, "Forbidden: the group chat was deleted", "deleted"),
        (403, "Forbidden: user is deactivated", "deleted"),
        (403, "Forbidden: bot is not a member of the channel chat", "administrator"),
        (403, "Forbidden: bot can't initiate conversation with a user", "pressed Start"),
        (400, "Bad Request: chat not found", "check the id"),
        (400, "Bad Request: group chat was upgraded to a supergroup chat", "new id"),
        (400, "Bad Request: not enough rights to send text messages to the chat", "right to send"),
        (400, "Bad Request: have no write access to the chat", "right to send"),
        (400, "Bad Request: CHAT_WRITE_FORBIDDEN", "right to send"),
        (400, "Bad Request: TOPIC_CLOSED", "topic is closed"),
        (401, "Unauthorized", "check the token"),
        (404, "Not Found", "check the token"),
        (421, "Misdirected Request", "check the token"),
        (400, "Bad Request: something new", "something new"),
    ],
)
@pytest.mark.parametrize("status", [None, 200])
def test_refusals_say_what_to_do(api, code, description, words, status):
    """Also where a proxy makes a 200 of them, and whatever the case of the first letter."""
    said = description if status is None else description[0].lower() + description[1:]
    api.answer = Reply(status or code, {"ok": False, "error_code": code, "description": said})
    error = refused(api)
    assert (error.permanent, error.left, error.retry_after) == (True, False, None)
    assert words in error.text and len(api.seen) == 1


def test_a_private_chat_is_no_matter_of_the_operators(api):
    api.chats[PRIVATE].refuses = api.chats[GROUP].refuses = (403, "Forbidden: bot was blocked by the user")
    assert not refused(api, address=str(PRIVATE)).config and refused(api).config


def test_a_wrong_token_and_a_wrong_address(api):
    assert refused(api, token=TOKEN.replace("6", "7", 1)).config
    assert refused(api, api_base=f"{api.url}/nothing").config


def test_the_limits_are_said_in_the_body(api):
    bot(api).send(page(), ADDRESS)
    error = refused(api)
    assert (error.permanent, error.retry_after, error.blocked) == (False, 1, 1)
    api.now += 1
    bot(api).send(page(), ADDRESS)
    api.answer = Reply(
        429, {"ok": False, "error_code": 429, "description": "Too Many Requests: retry after 35", "parameters": {"retry_after": 35}}
    )
    assert refused(api).retry_after == 35
    api.answer = Reply(429, {"ok": False, "error_code": 429, "description": "Too Many Requests"}, {"Retry-After": "7"})
    assert refused(api).blocked == 7


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(500, {"ok": False, "error_code": 500, "description": "Internal Server Error: restart"}), False, False),
        (Reply(200, {"ok": False, "error_code": 502, "description": "Bad Gateway"}), False, True),
        (Reply(200, {"ok": "true"}), False, True),
        (Reply(200, {"result": {}}), False, True),
        (Reply(403, {"error": "blocked by the proxy"}), True, False),
        (Reply(400, {"ok": False, "error_code": 400, "description": "", "parameters": {"migrate_to_chat_id": "x"}}), True, False),
        (Reply(400, {"ok": False}), True, False),
        (Reply(400, {"ok": True}), True, False),
    ],
)
def test_answers_nobody_expected(api, reply, permanent, left):
    api.answer = reply
    error = refused(api)
    assert (error.permanent, error.left) == (permanent, left)


# --- settings ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "token", "base"),
    [
        ({"token": f" {TOKEN} "}, TOKEN, "https://api.telegram.org"),
        ({"token": f"https://tg.example.com/x/bot{TOKEN}/sendMessage"}, TOKEN, "https://tg.example.com/x"),
        ({"token": TOKEN, "api_base": "http://10.0.0.5:8081/"}, TOKEN, "http://10.0.0.5:8081"),
        ({"api_base": "https://worker.example.com/secret-path"}, "", "https://worker.example.com/secret-path"),
    ],
)
def test_a_token_an_address_or_both(given, token, base):
    form = Telegram.Settings(data=given)
    assert form.is_valid(), form.errors
    assert (form.cleaned_data["token"], form.cleaned_data["api_base"]) == (token, base)
    again = Telegram.Settings(data=form.cleaned_data)
    assert again.is_valid() and again.cleaned_data == form.cleaned_data, "what is stored is what it cleans to"


def test_a_proxy_that_adds_the_token_gets_none(api):
    api.answer = ACCEPTED
    bot(api, token="", api_base=f"{api.url}/secret-path").send(page(), ADDRESS)
    assert api.seen[0].path == "/secret-path/sendMessage"


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({}, "token", "BotFather"),
        ({"token": "6453328900"}, "token", "not a bot token"),
        ({"token": "https://tg.example.com/"}, "token", "must end in /bot"),
        ({"token": TOKEN, "api_base": "http://api.telegram.org"}, "api_base", "https"),
        ({"token": TOKEN, "api_base": "tg.example.com"}, "api_base", "https://host"),
        ({"token": TOKEN, "chats": "-100123 ops"}, "chats", "“ops” is no chat"),
        ({"token": TOKEN, "chats": "https://example.com/c/1"}, "chats", "is no chat"),
    ],
)
def test_settings_that_are_not_taken(given, field, words):
    assert words in " ".join(Telegram.check(given)[field])


def test_chats_in_every_form_people_have_them():
    text = (
        "-1001234567890, -1001234567890:45\n-1001234567890:1；@ops_channel https://t.me/c/1234567890/45/678 "
        "https://t.me/c/1234567890/9 https://t.me/other_name/12 4242 -1001234567890"
    )
    form = Telegram.Settings(data={"token": TOKEN, "chats": text})
    assert form.is_valid(), form.errors
    chats = ["-1001234567890", "-1001234567890:45", "@ops_channel", "@other_name", "4242"]
    assert Telegram.targets(form.cleaned_data) == chats
    assert Telegram.targets({"token": TOKEN}) == [""]


# --- find my chats -----------------------------------------------------------------------------------------------------------------


def update_of(chat, kind="message", **more):
    return {"update_id": 1, kind: {"message_id": 1, "date": 1_700_000_000, "chat": chat, **more}}


def test_find_my_chats_offers_ids_with_names(api):
    forum, group = {"id": FORUM, "type": "supergroup", "title": "Ops forum"}, {"id": GROUP, "type": "supergroup", "title": "On-call"}
    api.updates = [
        update_of({"id": PRIVATE, "type": "private", "first_name": "Li", "last_name": "Lei", "username": "li_lei"}, text="/start"),
        update_of(group, "my_chat_member", new_chat_member={"status": "member"}),
        update_of(forum, message_thread_id=45, is_topic_message=True, reply_to_message={"forum_topic_created": {"name": "Database"}}),
        update_of(forum, message_thread_id=45, is_topic_message=True),
        update_of(group, message_thread_id=9, text="a reply, not a topic"),
        update_of({"id": -9, "type": "channel", "title": "News", "username": "ops_news"}, "channel_post"),
        update_of({"id": -3, "type": "group", "title": "Old"}),
        update_of({"id": -3, "type": "group", "title": "Old"}, migrate_to_chat_id=GROUP),
        update_of({"id": -4, "type": "group", "title": "Left"}),
        update_of({"id": -4, "type": "group", "title": "Left"}, "my_chat_member", new_chat_member={"status": "kicked"}),
        {"update_id": 2, "callback_query": {"id": "1", "message": {"chat": {"id": 8, "type": "private", "first_name": "Han"}}}},
        {"update_id": 3, "poll": {"id": "1"}},
    ]
    channel = bot(api)
    assert isinstance(channel, Suggests)
    assert channel.suggest("") == [
        ("4242", "Li Lei @li_lei (private chat)"),
        (str(GROUP), "On-call (group)"),
        (str(FORUM), "Ops forum (group)"),
        (f"{FORUM}:45", "Ops forum (group) › Database"),
        ("-9", "News @ops_news (channel)"),
        ("8", "Han (private chat)"),
    ]
    assert channel.suggest(" OPS ") == [found for found in channel.suggest("") if "ps" in found[1]]
    assert Telegram.check({"token": TOKEN, "chats": "\n".join(address for address, _name in channel.suggest(""))}) == {}


def test_find_my_chats_looks_at_the_newest_of_many(api):
    api.updates = [update_of({"id": n, "type": "private", "first_name": f"P{n}"}) | {"update_id": n} for n in range(1, 251)]
    assert bot(api).suggest("P250") == [("250", "P250 (private chat)")]


def test_find_my_chats_says_why_it_cannot(api):
    api.webhook = "https://example.com/hook"
    with pytest.raises(DeliveryError, match="Another program reads"):
        bot(api).suggest("")
    api.answer = Reply(200, {"ok": True, "result": [{"message": {"chat": {"id": "x"}}}, 3, {"message": 3}]})
    assert bot(api).suggest("") == []


# --- through the outbox ------------------------------------------------------------------------------------------------------------


def test_a_page_by_a_bot_that_serves_groups_and_people(db, api):
    """A group that moved is followed and saved; a person who blocked the bot gets an SMS at once."""
    now = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
    Installation.get()
    lee = Member.objects.create_user("lee@example.com", "Lee")
    api.chats[-55] = Chat(-55, "group", migrated=GROUP)
    api.chats[PRIVATE].refuses = (403, "Forbidden: bot was blocked by the user")
    channel = Channel.objects.create(
        name="bot", kind="telegram", settings={"token": TOKEN, "chats": f"-55\n{FORUM}:45", "api_base": api.url}, allowed_hosts=[api.host]
    )
    Channel.objects.create(name="phones", kind="sandbox_sms")
    Account.objects.create(member=lee, channel=channel, target=str(PRIVATE), verified_at=now)
    (way,) = addresses.reach([lee.id], "Critical", now, kinds=["im"])[lee.id]
    to = [outbox.To(channel.id, target) for target in channel.targets] + [outbox.To(way.channel_id, way.target, lee.id)]
    context = events.build("triggered", id=hex_id(now, 1), num="000001", title=ATTACK, severity="Critical", progress="Triggered", detail_url="http://testserver/i/1/", start_time=now)  # fmt: skip
    outbox.post(
        [outbox.Notice(event="triggered", severity="Critical", context=context, to=tuple(to), is_page=True, topic=1, layer_idx=0)], now
    )
    outbox.run_once(now)
    outbox.run_once(now)
    assert {said.chat.id: (said.thread, said.mentions()) for said in api.said} == {GROUP: (None, []), FORUM: (45, [])}
    assert len(api.said) == 2
    channel.refresh_from_db()
    assert channel.targets == [str(GROUP), f"{FORUM}:45"]
    failed = Delivery.objects.get(address__target=str(PRIVATE))
    assert failed.state == "failed" and "press Start" in failed.reason
    instead = Delivery.objects.get(channel__name="phones")
    assert instead.fallback_of == failed and instead.state == "delivered"
