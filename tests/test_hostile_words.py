"""Words that would be markup, mentions or code somewhere, through the real default texts and the real transports into each provider's fake.

For every kind of channel, event and language: what the fake received is read as the provider's readers see it (by an independent parser where there
is one: markdown-it, html.parser; else by the fake's own reading of its provider), and must hold the words plainly, call nobody, and lead nowhere but
to our own pages. A kind whose format is a dialect must have a place below; kinds of plain text and speech have no markup, so their text is looked at
as it was rendered."""

import html
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import pytest
from markdown_it import MarkdownIt

from channels_app.http import Http
from channels_app.transport import Message, Transport, get, transports
from templates_app import events
from templates_app.choose import Rendered, render_bundle, render_or_default
from templates_app.formats import format_named
from templates_app.samples import SAMPLE_NOW, sample
from tests.fakes.dingtalk import DingTalkBot
from tests.fakes.discord import DiscordHook
from tests.fakes.feishu import FeishuBot
from tests.fakes.google_chat import ChatSpace
from tests.fakes.mattermost import MattermostServer
from tests.fakes.message import SENT_AT, page
from tests.fakes.server import Reply, Server
from tests.fakes.slack import SlackHook
from tests.fakes.smtp import Mailbox
from tests.fakes.teams import TeamsFlow
from tests.fakes.telegram import Chat, TelegramApi
from tests.fakes.wecom import WeComBot
from tests.fakes.zoom import ZoomHook
from tests.transports import test_transport_email as mail

URL = "https://oncall.example.com/i/a1b2c3"
WORDS = [
    "<@U1>", "<!channel>", "@everyone", "*_[]()", "<at id=all></at>", "</b><script>", "🔥💥", "exe.\u202egnp", "[x](http://evil.example)",
    "${jndi:ldap://e}", "_@all @here", "<users/all>", "**b** __i__ `c` ~~s~~", "&lt;i&gt; &amp;", "<http://evil.example|y>", "![p](http://evil.example/p)",
    "# h", "- l", "> q", "1. n", "\\* \\\\", "<#C1> <!here|here>", "@[x](user:1)", "|a|b|", ":tada:x",
]  # fmt: skip
EVENTS = [events.TRIGGERED, events.REFIRE, events.ESCALATED, events.ACKNOWLEDGED, events.CLOSED, events.BUNDLE]
NONSENSE = "".join(WORDS) * 40


@dataclass
class Heard:
    """What arrived: as a reader sees it, where its links lead, and whom or what it called (mentions, tags that act)."""

    words: str
    links: list[str] = field(default_factory=list)
    called: list[str] = field(default_factory=list)


# --- how each dialect is read ------------------------------------------------------------------------------------------------------------


def markdown(*texts: str, tags: tuple[str, ...] = ()) -> Heard:
    """CommonMark with tables and strikethrough, by markdown-it; HTML is a call unless it is one of `tags`."""
    heard = Heard("")
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    for text in texts:
        for token in (inner for block in reader.parse(text) for inner in (block.children or [block])):
            if token.type in ("html_inline", "html_block"):
                heard.called += [] if re.fullmatch(rf"</?({'|'.join(tags) or '-'})\b[^<>]*>\s*", token.content) else [token.content]
            elif token.type == "image" or token.type in (
                "fence",
                "code_block",
                "code_inline",
                "hr",
                "blockquote_open",
                "heading_open",
                "table_open",
            ):
                heard.called.append(token.type)
            heard.links += [str(token.attrs["href"])] if "href" in token.attrs else []
            heard.words += (
                token.content if token.type in ("text", "text_special", "code_inline") else "\n" if token.type.endswith("break") else ""
            )
    return heard


def angles(text: str) -> Heard:
    """Slack's, Zoom's and Google Chat's own: <address|words>, or <address> that is its own words; anything else in angle brackets is a call."""
    found = re.findall(r"<([^<>|]*)(?:\|([^<>]*))?>", text)
    words = re.sub(r"<([^<>|]*)(?:\|([^<>]*))?>", lambda match: match[2] or match[1], text).replace("*", "")
    assert not set("<>") & set(re.sub(r"<([^<>|]*)(?:\|([^<>]*))?>", "", text)), "half a link"
    links = [address for address, shown in found if address.startswith("http") and shown]
    return Heard(html.unescape(words), links, [address for address, _shown in found if not address.startswith("http")])


def brackets(text: str) -> Heard:
    """Lark's: [words](address), tags; entities are decoded last."""
    links = re.findall(r"\[[^\[\]]*\]\(([^()]*)\)", text)
    called = [tag for tag in re.findall(r"<[^<>]*>", text) if not re.fullmatch(r"</?font[^<>]*>", tag)]
    words = re.sub(r"<[^<>]*>", "", re.sub(r"\[([^\[\]]*)\]\([^()]*\)", r"\1", text)).replace("*", "")
    return Heard(html.unescape(words), links, called)


class _Page(HTMLParser):
    ACTS = ("script", "iframe", "object", "form", "img", "link", "svg", "base")

    def __init__(self) -> None:
        super().__init__()
        self.heard, self.style = Heard(""), False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.style = tag in ("style", "title")
        values = dict(attrs)
        if tag in self.ACTS and not (values.get("src") or "").startswith("https://flashduty.example.com/"):
            self.heard.called.append(tag)
        self.heard.called += [name for name in values if name.startswith("on")]
        self.heard.links += [value for name, value in attrs if name == "href" and value]

    def handle_endtag(self, tag: str) -> None:
        self.style = False

    def handle_data(self, data: str) -> None:
        self.heard.words += "" if self.style else data


def page_of(text: str) -> Heard:
    reader = _Page()
    reader.feed(text)
    return reader.heard


def together(*parts: Heard) -> Heard:
    return Heard("\n".join(p.words for p in parts), [link for p in parts for link in p.links], [call for p in parts for call in p.called])


# --- a place for each kind: the transport, an address, and what its provider heard last -----------------------------------------------------

Place = tuple[Transport, str, Callable[[], Heard]]


def plain(server: Server, at: Callable[[Any], str]) -> Heard:
    text = at(server.seen[-1].json())
    return Heard(text, [], re.findall(r"<[^<>]*>|(?<!\w)@\w+|\]\(", text))


def feishu(stack: ExitStack) -> Place:
    bot = stack.enter_context(FeishuBot())
    return (*opened("feishu", bot, url=bot.hook), lambda: together(*(brackets(e["text"]["content"]) for e in bot.said[-1]["elements"] if "text" in e), Heard(bot.said[-1]["header"]["title"]["content"])))  # fmt: skip


def dingtalk(stack: ExitStack) -> Place:
    bot = stack.enter_context(DingTalkBot(secret="", keywords=("#",), now=SENT_AT.timestamp()))
    return (
        *opened("dingtalk", bot, url=bot.hook),
        lambda: together(markdown(bot.words(bot.said[-1]), tags=("font",)), Heard("", [], bot.called(bot.said[-1]))),
    )


def wecom(stack: ExitStack) -> Place:
    bot = stack.enter_context(WeComBot())
    return (
        *opened("wecom", bot, url=bot.hook),
        lambda: together(markdown(bot.words(bot.said[-1]), tags=("font",)), Heard("", [], bot.called(bot.said[-1]))),
    )


def zoom(stack: ExitStack) -> Place:
    hook = stack.enter_context(ZoomHook())
    return (
        *opened("zoom", hook, url=hook.hook, token=hook.token),
        lambda: together(*(angles(item["text"]) for item in hook.said[-1]["body"])),
    )


def slack(stack: ExitStack) -> Place:
    hook = stack.enter_context(SlackHook())

    def heard() -> Heard:
        body = hook.said[-1]
        return together(angles(body["text"]), *(angles(b["text"]["text"]) for b in body.get("blocks", []) if b["type"] == "section"))

    return (*opened("slack", hook, url=hook.hook), heard)


def telegram(stack: ExitStack) -> Place:
    api = stack.enter_context(TelegramApi(Chat(-1001), token="110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0"))
    opening = opened("telegram", api, address="-1001", token=api.token, chats="-1001", api_base=api.url)

    def heard() -> Heard:
        said = api.said[-1]
        return Heard(said.text, [e["url"] for e in said.entities if e["type"] == "text_link"], said.mentions())

    return (*opening, heard)


def discord(stack: ExitStack) -> Place:
    hook = stack.enter_context(DiscordHook())

    def heard() -> Heard:
        body = hook.said[-1]
        return together(markdown(body["content"], *(e["description"] for e in body["embeds"])), Heard("", [], hook.called(body)))

    return (*opened("discord", hook, url=hook.hook, thread=""), heard)


def teams(stack: ExitStack) -> Place:
    flow = stack.enter_context(TeamsFlow())

    def heard() -> Heard:
        assert flow.failed == []
        card = flow.posted[-1]
        title = "".join(run["text"] for block in card["body"] for run in block.get("inlines", []))
        return together(Heard(title, [], flow.mentioned(card)), markdown(*(b["text"] for b in card["body"] if b["type"] == "TextBlock")))

    return (*opened("teams", flow, url=flow.hook), heard)


def google_chat(stack: ExitStack) -> Place:
    space = stack.enter_context(ChatSpace())
    return (*opened("google_chat", space, url=space.hook), lambda: angles(space.said[-1]["text"]))


def mattermost(stack: ExitStack) -> Place:
    server = stack.enter_context(MattermostServer())
    return (
        *opened("mattermost", server, url=server.hook),
        lambda: together(markdown(server.posts[-1]), Heard("", [], server.mentioned(server.posts[-1]))),
    )


def apprise(stack: ExitStack) -> Place:
    server = stack.enter_context(Server(Reply(200)))
    return (
        *opened("apprise", server, url=f"json://{server.host}/x"),
        lambda: plain(server, lambda body: body["title"] + "\n" + body["message"]),
    )


def webhook(stack: ExitStack) -> Place:
    server = stack.enter_context(Server(Reply(200)))
    return (
        *opened("webhook", server, url=server.url),
        lambda: Heard("\n".join(one["title"] for one in [server.seen[-1].json(), *server.seen[-1].json()["incidents"]])),
    )


def email(stack: ExitStack) -> Place:
    box = stack.enter_context(Mailbox())

    def heard() -> Heard:
        letter = box.mails[-1]
        text, page_ = letter.get_body(("plain",)), letter.get_body(("html",))
        assert text is not None and page_ is not None
        return together(Heard(str(letter["Subject"])), page_of(page_.get_content()))

    return mail.transport(box), mail.LI, heard


PLACES = {
    place.__name__: place
    for place in (apprise, dingtalk, discord, email, feishu, google_chat, mattermost, slack, teams, telegram, webhook, wecom, zoom)
}


def opened(kind: str, server: Server, *, address: str = "", **settings: Any) -> tuple[Transport, str]:
    return get(kind)(settings, Http(allowed_hosts=[server.host])), address


@pytest.fixture(scope="module")
def places() -> Iterator[Callable[[str], Place]]:
    made: dict[str, Place] = {}
    with ExitStack() as stack:
        yield lambda kind: made.get(kind) or made.setdefault(kind, PLACES[kind](stack))


# --- the messages ----------------------------------------------------------------------------------------------------------------------------


def said(kind: str, event: str, language: str, title: str, body: str) -> tuple[Message, Rendered]:
    """The message of the outbox for an incident whose every text is hostile."""
    style = get(kind)
    shared = {
        "kind": kind,
        "family": style.family,
        "fmt": style.format,
        "language": language,
        "default": style.default_texts or None,
        "now": SAMPLE_NOW,
    }
    incident = {
        "id": "69559ab0",
        "num": "a1b2c3",
        "title": title,
        "severity": "Critical",
        "event": "triggered",
        "possible_repeat": True,
        "url": URL,
    }
    if event == events.BUNDLE:
        room = min(style.max_bytes or 20_000, style.max_chars or 20_000)
        rendered, count = render_bundle([incident] * 3, limit=room, **shared)
        incidents = (incident,) * count
    else:
        person = {"id": 1, "name": body[:40], "email": "li@example.com"}
        ok = event == events.CLOSED
        context = events.build(
            event, id="69559ab0", num="a1b2c3", title=title, description=body, detail_url=URL, severity="Critical", status="Ok" if ok else "Critical",
            progress="Closed" if ok else "Triggered", start_time=SAMPLE_NOW - 4000, ack_time=SAMPLE_NOW - 100, close_time=SAMPLE_NOW - 10 if ok else 0,
            closer=person if ok else None, acknowledger=person, workspace={"id": 3, "name": body}, resolution=body if ok else "",
            labels={"resource": body, "k<b>": body}, responders=[{**person, "assigned_at": 0, "acknowledged_at": 0}],
            links=[{"title": body[:60], "url": "javascript:alert(1)"}, {"title": body[:60], "url": "https://grafana.example.com/d?a=1&b=)<x>"}],
            alerts=[{**sample("en")["alerts"][0], "title": title, "labels": {"resource": body}}] * 2,
        )  # fmt: skip
        rendered = render_or_default([], event, events.addressed(context, recipient=None, actions_url="", possible_repeat=False), **shared)
        incidents = (incident,)
    assert rendered.error is None
    return page(
        event=event if event != events.BUNDLE else "triggered", subject=rendered.subject, text=rendered.text, html=rendered.html, title=title, url=URL,
        incidents=incidents, language=language, delivery_id=str(uuid4()), idempotency_key=str(uuid4()),
    ), rendered  # fmt: skip


ALIKE = str.maketrans(
    {
        "‹": "<",
        "›": ">",
        "∗": "*",
        "＿": "_",
        "∼": "~",
        "¦": "|",
        "［": "[",
        "］": "]",
        "`": "'",
        "’": "'",
        "\u200b": "",
        "\u2060": "",
        "\u202e": "",
    }
)


def seen(words: str) -> str:
    """Words as they look: look-alikes are what they look like, the invisible is not there, and spaces do not count."""
    return "".join(words.translate(ALIKE).split())


def chosen(number: int, count: int = 5) -> list[str]:
    return [WORDS[(number * count + step) % len(WORDS)] for step in range(count)]


def check(heard: Heard, words: list[str]) -> None:
    assert heard.called == []
    ours = ("https://oncall.example.com/", "https://flashduty.example.com/", "https://grafana.example.com/")
    assert [link for link in heard.links if not link.startswith(ours)] == []
    text = seen(heard.words)
    for word in words:
        assert seen(word) in text, f"{word!r} is not to be read"


CASES = [(event, language) for event in EVENTS for language in ("en", "zh-hans")]


@pytest.mark.parametrize("kind", PLACES)
def test_words_are_words(kind, places):
    """Every hostile word comes first, last and beside every other once over the events and languages of a kind."""
    transport, address, heard = places(kind)
    for number, (event, language) in enumerate(CASES):
        title, body = chosen(number), chosen(number + 3)
        message, _rendered = said(kind, event, language, " ".join(title), "\n".join([*body, "", *reversed(body)]))
        tick(heard)
        transport.send(message, address)
        is_page = event in (events.TRIGGERED, events.REFIRE, events.ESCALATED) and format_named(get(kind).format).base in (
            "markdown",
            "html",
        )
        check(heard(), title + (body if is_page else []))


@pytest.mark.parametrize("kind", PLACES)
def test_ten_kilobytes_of_nonsense_arrive_shortened(kind, places):
    transport, address, heard = places(kind)
    message, _rendered = said(kind, events.TRIGGERED, "en", NONSENSE[:10_000], NONSENSE)
    tick(heard)
    transport.send(message, address)
    check(heard(), WORDS[:1])


def tick(heard: Callable[[], Heard]) -> None:
    """The provider has forgotten what it took before, so that no rate is met."""
    for cell in heard.__closure__ or ():
        fake = cell.cell_contents
        for holder in (fake, *getattr(fake, "chats", {}).values()):
            if hasattr(holder, "taken_at"):
                holder.taken_at = []


@pytest.mark.parametrize("kind", transports())
def test_a_kind_with_a_dialect_has_a_place(kind):
    assert kind in PLACES or format_named(get(kind).format).base in ("plain", "voice") or get(kind).demo


@pytest.mark.parametrize("kind", [kind for kind in transports() if kind not in PLACES])
@pytest.mark.parametrize(("event", "language"), CASES[::3])
def test_plain_text_and_speech_have_no_markup(kind, event, language):
    for number in range(len(WORDS) // 3):
        title = chosen(number, 3)
        _message, rendered = said(kind, event, language, " ".join(title), "\n".join(title))
        text = (rendered.html and page_of(rendered.html).words) or rendered.text
        if get(kind).format == "voice":
            assert not re.search(r"[<>*_#\[\]{}|\\~^=`\"&/@()]", text)
            assert "".join(re.findall(r"\w", title[0].replace("_", " "))) in "".join(re.findall(r"\w", text))
        else:
            assert seen(title[0]) in seen(text)
