"""The Discord webhook against one as strict as the real one."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels_app.http import DeliveryError, Http
from channels_app.transports.discord import BODY, CODES, EMBED, Discord, compose, cut, plain
from templates_app.choose import render_or_default
from templates_app.events import EVENTS
from templates_app.formats import format_named
from templates_app.samples import SAMPLE_NOW, VARIANTS, sample
from tests.fakes.discord import PATH, DiscordHook, problems
from tests.fakes.message import page
from tests.fakes.server import Reply, Server

LINK = "https://oncall.example.com/i/a1b2c3"
LI, HAN, ROLE, THREAD = "174000000000000001", "174000000000000002", "174000000000000003", "174000000000000004"
ATTACK = f"@everyone @here <@{LI}> <@&{ROLE}> **bold** _it_ ~~s~~ ||sp|| `c` [x](https://evil.example) # head\n> q\n- l 🔥 مرحبا ‮evil \\"

# What the contract test needs to know of an HTTP transport (tests/test_transport_contract.py).
ACCEPTED = Reply(200, {"id": "1174000000000000001", "type": 0})
REFUSED_IN_200 = Reply(200, {"message": "Unknown Webhook", "code": 10015})
NEEDS_THE_BODY = True


def stage(base: str) -> dict:
    return {"url": base + PATH, "thread": ""}


@pytest.fixture
def hook():
    with DiscordHook(now=1_700_000_000) as running:
        yield running


def discord(hook, **changes) -> Discord:
    return Discord({"url": hook.hook, "thread": "", **changes}, Http(allowed_hosts=[hook.host]))


def refused(hook, message=None, **changes) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        discord(hook, **changes).send(message or page(), "")
    assert "Discord-Secret" not in caught.value.text
    return caught.value


def test_a_page_is_a_headline_an_embed_and_link_buttons(hook):
    receipt = discord(hook).send(page(), "")
    assert (receipt.state, receipt.message_id, receipt.detail) == ("sent", "1174000000000000001", "")
    assert hook.seen[0].path.endswith("?wait=true&with_components=true")
    assert hook.said == [{
        "content": "Database is down",
        "embeds": [{"description": "**Database is down**\n#A1B2C3 Critical", "color": 0xD93026}],
        "components": [{"type": 1, "components": [
            {"type": 2, "style": 5, "label": "Acknowledge", "url": f"{LINK}?ack=1"},
            {"type": 2, "style": 5, "label": "Detail", "url": LINK},
        ]}],
        "allowed_mentions": {"parse": [], "users": [], "roles": []},
        "thread": None,
    }]  # fmt: skip


def test_only_an_open_incident_offers_acknowledge():
    for message in (page(event="acknowledged"), page(event="closed"), page(incidents=page().incidents * 2)):
        assert [b["label"] for b in compose(message)[0]["components"][0]["components"]] == ["Detail"]
    assert compose(page(event="closed"))[0]["embeds"][0]["color"] == 0x188038
    assert "components" not in compose(page(url=""))[0]


def test_an_address_too_long_for_a_button_is_written_out(hook):
    url = "https://oncall.example.com/" + "x" * 600
    discord(hook).send(page(url=url), "")
    assert hook.said[0]["content"].endswith(f"\n<{url}>") and "components" not in hook.said[0]


def test_mentions_are_users_and_roles_of_the_table(hook):
    receipt = discord(hook).send(page(mentions=(LI, f"&{ROLE}", HAN, LI, "li@example.com", "everyone")), "")
    assert hook.said[0]["content"].startswith(f"<@{LI}> <@&{ROLE}> <@{HAN}>\nDatabase")
    assert DiscordHook.called(hook.said[0]) == [LI, HAN, f"&{ROLE}"]
    assert receipt.detail == "not mentioned (no Discord id): li@example.com, everyone"


@pytest.mark.parametrize("title", [ATTACK, "<" * 5000, "🔥" * 5000, "*" * 5000, "@everyone " * 900, "\\" * 5001, "\ud800", "a\x00b"])
@pytest.mark.parametrize("make", [lambda message: compose(message)[0], plain])
def test_hostile_titles_arrive_as_words_and_call_nobody(title, make):
    style = format_named("discord")
    escaped = style.escape(title)
    body = make(page(subject=title, title=title, text=f"{style.bold(escaped)}\n{style.link(escaped, LINK)}", mentions=(HAN,)))
    assert problems(body, True) == {} and DiscordHook.called(body) == [HAN]
    assert "@everyone" not in str(body) and "@here" not in str(body)


@pytest.mark.parametrize("line", ["**one** line of text that is long\n", "长", "🔥", "word ", f"[x]({LINK}) ", "\\*"])
def test_long_texts_are_cut(hook, line):
    receipt = discord(hook).send(page(text=line * (10_000 // len(line)), mentions=(LI,)), "")
    text = hook.said[0]["embeds"][0]["description"]
    assert receipt.detail == "shortened to 4096 characters" and text.endswith("\n… shortened")
    assert 3000 < len(text.encode("utf-16-le")) // 2 <= EMBED and text.count("[") == text.count(")")
    assert hook.said[0]["components"][0]["components"][1]["url"] == LINK, "the link to the rest is kept"


def test_a_cut_breaks_no_markup():
    assert cut("a" * 50 + "\\*" + "b" * 50, 53) == "a" * 50
    assert cut("a" * 50 + f"[words]({LINK})", 70) == "a" * 50
    assert cut("\\[prod\\] " + "a" * 50, 40) == "\\[prod\\] " + "a" * 29, "an escaped bracket begins no link"
    assert cut("**" + "a" * 50 + "**", 40) == "**" + "a" * 36 + "**"
    assert cut("first line is long enough to stay\nsec", 38) == "first line is long enough to stay"


@given(st.lists(st.sampled_from(["**", "word ", "\\*", "\\\\", f"[x]({LINK})", "[", "](", "\n", "🔥", "long" * 100])), st.integers(1, 60))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_the_text_the_sizes_hold(parts, times):
    message = page(text="".join(parts) * times, mentions=(LI, HAN))
    assert problems(compose(message)[0], True) == {} and problems(plain(message), True) == {}


def test_a_text_of_the_declared_length_is_not_cut(hook):
    text = "".join(f'#{number:06X} "disk" of host-{number} is full\n' for number in range(1000))[: Discord.max_chars]
    assert discord(hook).send(page(text=text, subject="标" * 300, mentions=(LI,) * 30), "").detail == ""


def test_a_thread_is_named_in_the_query(hook):
    hook.threads, hook.is_forum = {THREAD}, True
    discord(hook, thread=THREAD).send(page(), "")
    assert hook.said[0]["thread"] == THREAD
    error = refused(hook)
    assert error.config and "enter the id of one of its posts" in error.text
    assert "enter another thread" in refused(hook, thread=LI).text


@pytest.mark.parametrize("language", ["en", "zh-hans"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_default_texts_of_all_events_arrive_whole(language, variant):
    for event in EVENTS:
        context = sample(language, variant, event)
        said = render_or_default([], event, context, kind="discord", fmt="discord", language=language, now=SAMPLE_NOW)
        assert not said.error
        message = page(event=event, subject=said.subject, title=said.subject, text=said.text, language=language)
        body, detail = compose(message)
        assert detail == "" and problems(body, True) == {} and DiscordHook.called(body) == []


# --- refusals ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 200])
@pytest.mark.parametrize("code", sorted(CODES))
def test_every_code_is_advice_whatever_the_status(hook, code, status):
    hook.answer = Reply(status, {"message": "No", "code": code})
    error = refused(hook)
    _words, permanent, config = CODES[code]
    assert (error.permanent, error.config, error.left) == (permanent, config, False)
    assert str(code) in error.text
    assert len(hook.seen) == (2 if code in BODY else 1), "what Discord has against the body is tried once as plain content"


def test_a_wrong_address_stops_at_once(hook):
    """Ten thousand refusals of this sort get the machine's address banned."""
    assert "deleted" in refused(hook, url=hook.hook.replace("1174022233344455566", "1174022233344455567")).text
    assert "not whole" in refused(hook, url=hook.hook[:-3]).text
    assert all(refused(hook, url=url).permanent for url in (hook.hook[:-3], hook.hook.replace("66/", "67/")))


def test_what_discord_does_not_take_goes_out_as_content(hook):
    """A base URL without a dot is "not a well formed URL" in a button."""
    url = "http://pager:8000/i/1"
    receipt = discord(hook).send(page(url=url, text="**text** " * 500, mentions=(LI,)), "")
    assert receipt.detail == "sent without embed and buttons, which Discord did not take"
    body = hook.said[0]
    assert set(body) == {"content", "allowed_mentions", "thread"} and body["content"].endswith(f"… shortened\n<@{LI}>\n<{url}>")
    assert DiscordHook.called(body) == [LI]


def test_the_limits_are_said_in_the_body(hook):
    for _ in range(5):
        discord(hook).send(page(), "")
    error = refused(hook)
    assert (error.permanent, error.retry_after, error.blocked) == (False, 2.0, 2.0)
    assert [(limit.count, limit.seconds) for limit in Discord.limits] == [(5, 2), (30, 60)]
    hook.answer = Reply(429, {"message": "You are being rate limited.", "retry_after": 0.65, "global": True}, {"Retry-After": "1"})
    error = refused(hook)
    assert error.retry_after == 0.65 and "from this installation's address" in error.text
    hook.answer = Reply(429, "<html>error 1015</html>", {"Retry-After": "120", "Content-Type": "text/html"})
    assert refused(hook).blocked == 120
    hook.answer = Reply(429, {"message": "x"}, {"X-RateLimit-Reset-After": "1.5"})
    assert refused(hook).blocked == 1.5


@pytest.mark.parametrize(
    ("reply", "permanent", "left"),
    [
        (Reply(200, {"message": "New", "code": 999999}), False, False),
        (Reply(200, {"message": "Success"}), False, True),
        (Reply(204), False, True),
        (Reply(200, {"id": 7}), False, True),
        (Reply(403, {"message": "New", "code": 999999}), True, False),
        (Reply(503, {"message": "upstream", "code": 0}), False, False),
    ],
)
def test_answers_nobody_expected(hook, reply, permanent, left):
    hook.answer = reply
    error = refused(hook)
    assert (error.permanent, error.left) == (permanent, left)


# --- settings ----------------------------------------------------------------------------------------------------------------------

KEY = "1174022233344455566/" + "k" * 68


@pytest.mark.parametrize(
    ("given", "kept", "thread"),
    [
        ({"url": f" https://discord.com/api/webhooks/{KEY} "}, f"https://discord.com/api/webhooks/{KEY}", ""),
        ({"url": f"https://discordapp.com/api/webhooks/{KEY}/slack"}, f"https://discord.com/api/webhooks/{KEY}", ""),
        ({"url": f"https://ptb.discord.com/api/v10/webhooks/{KEY}?wait=true&thread_id={THREAD}"}, f"https://ptb.discord.com/api/v10/webhooks/{KEY}", THREAD),
        ({"url": f"https://discord.com/api/webhooks/{KEY}?thread_id={LI}", "thread": THREAD}, f"https://discord.com/api/webhooks/{KEY}", THREAD),
        ({"url": f"http://proxy.internal:8080/discord/api/webhooks/{KEY}"}, f"http://proxy.internal:8080/discord/api/webhooks/{KEY}", ""),
    ],
)  # fmt: skip
def test_addresses_that_are_taken(given, kept, thread):
    form = Discord.Settings(data=given)
    assert form.is_valid(), form.errors
    assert form.cleaned_data == {"url": kept, "thread": thread}


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({}, "url", "required"),
        ({"url": KEY}, "url", "whole webhook address"),
        ({"url": "https://discord.com/channels/1/2"}, "url", "has the form"),
        ({"url": "https://discord.com/api/webhooks/1174022233344455566/short"}, "url", "has the form"),
        ({"url": f"http://discord.com/api/webhooks/{KEY}"}, "url", "https"),
        ({"url": f"https://discord.com/api/webhooks/{KEY}", "thread": "general"}, "thread", "19 digits"),
    ],
)
def test_settings_that_are_not_taken(given, field, words):
    assert words in " ".join(Discord.check(given)[field])


@pytest.mark.parametrize("status", [200, 400])
def test_a_code_that_is_no_number_is_no_fault_of_ours(status):
    with Server(Reply(status, {"code": [50035]})) as server, pytest.raises(DeliveryError):
        Discord(stage(server.url), Http(allowed_hosts=[server.host])).send(page(), "")
