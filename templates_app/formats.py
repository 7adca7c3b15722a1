"""What each message format does to plain words: how they are escaped, made bold, coloured and linked.

A transport names its format. Values in a template are plain words and come out as plain words in every format, whatever they hold:
a title `<at id=all>` must not wake a whole group, and `*_[x](y)` must not turn into markup. Where the provider documents an
escape it is used (Feishu: HTML entities; Slack: three entities; Telegram and e-mail: HTML; Discord, Teams and Mattermost: backslash).
DingTalk, WeCom, Google Chat and Zoom document none, and Slack none for emphasis: there the few characters that would start markup are replaced by
characters that look the same. Formats are open: `register` adds one.
"""

import html
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlsplit

SEVERITY_COLORS: Final = {"Critical": "#d93026", "Warning": "#c25400", "Info": "#1a73e8", "Ok": "#188038"}
_GREY: Final = "#5f6368"

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u2028\u2029]")
# Invisible characters that turn the direction of text around make `gnp.exe` of `exe.png`.
_TURNING: Final = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Format:
    """One message format; every function takes plain words except where said.

    `base` names the family of default texts that serves it: plain, markdown, html, voice, or json, which has no
    default text: the sender makes its own body.
    `bold`, `link` and `color` take words that are escaped already and, for a link, an address that is encoded already.
    """

    name: str
    base: str
    escape: Callable[[str], str]
    bold: Callable[[str], str] = lambda words: words
    link: Callable[[str, str], str] = lambda words, url: f"{words}: {url}" if words else url
    color: Callable[[str, str], str] = lambda words, severity: words
    newline: str = "\n"  # what it takes to start a new line


_FORMATS: dict[str, Format] = {}
# Which format a channel kind speaks; a transport registers its own with `register_kind`.
_KINDS: dict[str, str] = {
    "email": "html",
    "sms": "plain",
    "push": "plain",
    "sandbox": "plain",
    "voice": "voice",
    "feishu_app": "feishu",
    "dingtalk_app": "dingtalk",
    "wecom_app": "wecom",
    "slack_app": "slack",
    "teams_app": "teams",
    "zoom_app": "zoom",
}


def register(fmt: Format) -> None:
    """Adds a format (a transport that has one of its own does so when it is loaded); a second one of the same name is a ValueError."""
    if fmt.name in _FORMATS and _FORMATS[fmt.name] != fmt:
        raise ValueError(f"format {fmt.name!r} exists already")
    _FORMATS[fmt.name] = fmt


def register_kind(kind: str, fmt: str) -> None:
    """Says which format a channel kind speaks, so that a template for the kind is checked in that format."""
    _KINDS[kind] = fmt


def format_named(name: str) -> Format:
    """The format of that name; an unknown name is plain text, since an unformatted page is better than none."""
    return _FORMATS.get(name) or _FORMATS["plain"]


def format_names() -> tuple[str, ...]:
    """All formats that are known, in the order they were registered."""
    return tuple(_FORMATS)


def format_of(kind: str) -> str:
    """The format a channel kind speaks; the name of a format stands for itself, an unknown kind is plain."""
    return _KINDS.get(kind) or (kind if kind in _FORMATS else "plain")


def safe_url(url: str) -> str:
    """The address with every character encoded that could end a link early, or `""` where it is not http(s)."""
    try:
        scheme = urlsplit(url).scheme
    except ValueError:
        return ""
    # Percent signs stay: the address is encoded already, only what breaks out of a link is encoded again.
    return quote(url, safe=":/?#@!$&+,;=%-._~") if scheme in ("http", "https") else ""


def _plain(text: str) -> str:
    return _TURNING.sub("", _CONTROL.sub("", text))


def _html(text: str) -> str:
    return html.escape(_plain(text))


_LARK: Final = {ord(char): f"&#{ord(char)};" for char in "&<>*_~[]()`#\\!|$"}
_LINE_MARK: Final = re.compile(r"[ \t]*(?=[-+>=#|]|\d{1,9}[.)])")


def _unmarked(text: str) -> str:
    """No line begins with a sign that makes it a heading, list or quotation: an invisible space stands before the sign."""
    # Only the beginnings of lines are looked at; a search for them with a regular expression looks at every character.
    return "\n".join(f"{mark[0]}\u200b{line[mark.end() :]}" if (mark := _LINE_MARK.match(line)) else line for line in text.split("\n"))


def _feishu(text: str) -> str:
    return _unmarked(_plain(text)).translate(_LARK)


_EDGE_UNDERSCORE: Final = re.compile(r"_(?:(?<![^\W_]_)|(?![^\W_]))")
_ALIKE: Final = str.maketrans({"*": "∗", "`": "'", "~": "∼"})


def _without_emphasis(text: str) -> str:
    # `db_host` reads the same everywhere; only an underscore at the edge of a word starts emphasis.
    return _EDGE_UNDERSCORE.sub("＿", text.translate(_ALIKE))


# A reader of HTML behind the dialect would make `<` of `&lt;`.
_ENTITY: Final = re.compile(r"&(?=#?\w{1,31};)")


# And one of Markdown would take a backslash before a sign for an escape and drop it.
_ESCAPING: Final = re.compile(r"\\(?=[!-/:-@\[-`{-~])")


def _neutral(text: str) -> str:
    """For dialects without a documented escape: looks the same, starts nothing."""
    text = _ENTITY.sub("&\u200b", _without_emphasis(_unmarked(_plain(text))).replace("<", "‹").replace(">", "›"))
    text = _ESCAPING.sub("\\\\\u200b", text)
    return text.replace("](", "]\u200b(").replace("![", "!\u200b[")


def _slack(text: str) -> str:
    return _without_emphasis(_unmarked(_plain(text))).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_MENTION: Final = re.compile(r"(?<!\w)@(?=\w)")


def _telegram(text: str) -> str:
    # HTML mode has no escape for @name; a word joiner behind the sign leaves the words and takes the mention. E-mail addresses stay.
    return _MENTION.sub("@\u2060", _html(text))


# As few as do: where a message is shown raw (a phone's notification), each of these is seen.
_BACKSLASHED: Final = {ord(char): f"\\{char}" for char in "\\`*_[]<>|~&"}


_BEGINNING: Final = re.compile(r"[ \t]*(\d{1,9}[.)](?=\s|$)|[-+=#])|[ \t]{2,}")


def _begun(text: str) -> str:
    """No line is a list, a heading, an underline or code (in which backslashes would be seen)."""
    lines = text.split("\n")
    return "\n".join(f"\u200b{line.lstrip()}" if _BEGINNING.match(line) else line for line in lines)


# An address without what could end it or begin markup; with a backslash in it, it would lead elsewhere.
_ADDRESS: Final = re.compile(r"(https?://[^\s<>()\[\]{}\"'`*|\\]+)")


def _escaped(text: str, table: dict[int, str]) -> str:
    """Backslashes by `table` everywhere but in addresses, where what could be markup is percent-encoded instead."""
    parts = _ADDRESS.split(text)
    for number, part in enumerate(parts):
        parts[number] = _EDGE_UNDERSCORE.sub("%5F", part).replace("~", "%7E") if number % 2 else part.translate(table)
    return "".join(parts)


def _backslash(text: str) -> str:
    return _MENTION.sub("@\u2060", _escaped(_begun(_plain(text)), _BACKSLASHED))


# The server splits words at anything but letters, digits and `.-_:@`, and forgets leading `.-_:`; `_@all` is a mention, `li@all` is none.
_AT: Final = re.compile(r"(?<![^\W_])@(?=\w)")
_NOT_SLACKS: Final = {**_BACKSLASHED, ord("<"): "‹", ord(">"): "›"}


def _mattermost(text: str) -> str:
    # Angle brackets are looked at before Markdown is (Slack's <!channel> and <address|words> are translated), so no backslash helps there.
    return _AT.sub("@\u2060", _escaped(_begun(_plain(text)), _NOT_SLACKS))


_UNSPOKEN: Final = re.compile(r"[<>*_#\[\]{}|\\~^=`\"&/@()]+")


def _voice(text: str) -> str:
    return " ".join(_UNSPOKEN.sub(" ", _plain(text)).split())


def _json(text: str) -> str:
    # For use inside quotes: "title": "{{ title }}".
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _color_of(severity: str) -> str:
    return SEVERITY_COLORS.get(severity, _GREY)


def _markdown_link(words: str, url: str) -> str:
    return f"[{words}]({url})"


_BRACKETS: Final = str.maketrans("[]", "［］")


def _neutral_link(words: str, url: str) -> str:
    # A bracket in the words would end them early, and there is no escape.
    return f"[{words.translate(_BRACKETS)}]({url})"


def _angle_link(words: str, url: str) -> str:
    return f"<{url}|{words.replace('|', '¦')}>"


_LARK_COLORS: Final = {"Critical": "red", "Ok": "green"}
_WECOM_COLORS: Final = {"Critical": "warning", "Warning": "warning", "Ok": "info"}

for _format in (
    Format("plain", "plain", _plain),
    Format(
        "html",
        "html",
        _html,
        bold=lambda words: f"<strong>{words}</strong>",
        link=lambda words, url: f'<a href="{html.escape(url)}">{words or html.escape(url)}</a>',
        color=lambda words, severity: f'<span style="color:{_color_of(severity)}">{words}</span>',
    ),
    Format(
        "feishu",
        "markdown",
        _feishu,
        bold=lambda words: f"**{words}**",
        link=_markdown_link,
        color=lambda words, severity: f"<font color='{_LARK_COLORS.get(severity, 'grey')}'>{words}</font>",
    ),
    Format(
        "dingtalk",
        "markdown",
        _neutral,
        bold=lambda words: f"**{words}**",
        link=_neutral_link,
        color=lambda words, severity: f'<font color="{_color_of(severity)}">{words}</font>',
        newline="  \n",
    ),
    Format(
        "wecom",
        "markdown",
        _neutral,
        bold=lambda words: f"**{words}**",
        link=_neutral_link,
        color=lambda words, severity: f'<font color="{_WECOM_COLORS.get(severity, "comment")}">{words}</font>',
    ),
    Format(
        "slack", "markdown", _slack, bold=lambda words: f"*{words}*", link=lambda words, url: _angle_link(words, url.replace("&", "&amp;"))
    ),
    Format(
        "telegram",
        "markdown",
        _telegram,
        bold=lambda words: f"<b>{words}</b>",
        link=lambda words, url: f'<a href="{html.escape(url)}">{words}</a>',
    ),
    Format("teams", "markdown", _backslash, bold=lambda words: f"**{words}**", link=_markdown_link, newline="\n\n"),
    Format("discord", "markdown", _backslash, bold=lambda words: f"**{words}**", link=_markdown_link),
    Format("mattermost", "markdown", _mattermost, bold=lambda words: f"**{words}**", link=_markdown_link),
    Format(
        "google_chat",
        "markdown",
        _neutral,
        bold=lambda words: f"*{words}*",
        link=_angle_link,
    ),
    # Which dialect a service behind Apprise reads is not known: no markup of ours, and none of others.
    Format("apprise", "plain", lambda text: _AT.sub("@\u2060", _neutral(text))),
    Format("zoom", "markdown", _neutral, bold=lambda words: f"*{words}*", link=_angle_link),
    Format("voice", "voice", _voice, link=lambda words, url: words),
    Format("json", "json", _json),
    Format("webhook", "json", _json),
):
    register(_format)
