"""A Slack incoming webhook: blocks with mrkdwn and link buttons into one channel, or into one person's own chat; it tells no message id.

Source: docs.slack.dev, "Sending messages using incoming webhooks" and the Block Kit reference. Success is the word "ok"; refusals are a word as well."""

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

SECTION = 3000  # characters of one section's text
TEXT = 12_000  # of all of it; Slack takes about 13,200 over all blocks ("msg_blocks_too_long")
HEADER = 150
LINK = 3000  # of a button's address
HOSTS = ("slack.com", "slack-gov.com")

_PATH = re.compile(r"(?:/[^?#]*)?/services/T[A-Za-z0-9]+/B[A-Za-z0-9]+/[A-Za-z0-9]+/?")
_USER = re.compile(r"[UW][A-Z0-9]{4,20}")
_GROUP = re.compile(r"S[A-Z0-9]{4,20}")
_WORD = re.compile(r"[a-z][a-z0-9_]{2,60}")
_HALF = re.compile(r"(&#?\w{0,8}|<[^<>]{0,3000})$")
_BARE = re.compile(r"<[^<>]*>|(?<!\w)https?://[^\s<>|*`]*[^\s<>|*`.,;:!?)\]'\"]")
_SIGNS = {"Critical": "🔴", "Warning": "🟠", "Info": "🔵", "Ok": "🟢"}

# What Slack has against the body: the same words without blocks are tried at once.
CONTENT = frozenset(
    {"invalid_payload", "invalid_blocks", "invalid_blocks_format", "msg_blocks_too_long", "too_many_attachments", "no_text"}
)
_NEW = gettext_lazy("in the Slack app open Incoming Webhooks, add a webhook to the channel and paste its address")
_ADMIN = gettext_lazy("ask a Slack administrator to allow it, or make a webhook for another channel")

# word: (what it means, what to do); all of them are for an operator, and no other try helps.
REFUSALS = {
    "invalid_payload": (gettext_lazy("the message is malformed"), gettext_lazy("tell your administrator")),
    "invalid_blocks": (gettext_lazy("the message is malformed"), gettext_lazy("tell your administrator")),
    "invalid_blocks_format": (gettext_lazy("the message is malformed"), gettext_lazy("tell your administrator")),
    "msg_blocks_too_long": (gettext_lazy("the message is too long"), gettext_lazy("shorten the template")),
    "too_many_attachments": (gettext_lazy("the message has too many attachments"), gettext_lazy("tell your administrator")),
    "no_text": (gettext_lazy("the message is empty"), gettext_lazy("check the template")),
    "invalid_token": (gettext_lazy("the webhook is not valid any more, because who made it has left or the app was removed"), _NEW),
    "no_service": (gettext_lazy("the webhook does not exist any more or is switched off"), _NEW),
    "no_service_id": (gettext_lazy("the address is not whole"), _NEW),
    "no_active_hooks": (gettext_lazy("the webhook is switched off"), _NEW),
    "no_team": (gettext_lazy("the workspace does not exist, or the address is not whole"), _NEW),
    "team_disabled": (gettext_lazy("the workspace is switched off"), _NEW),
    "action_prohibited": (gettext_lazy("an administrator has restricted posting here"), _ADMIN),
    "posting_to_general_channel_denied": (gettext_lazy("an administrator has restricted posting to #general"), _ADMIN),
    "channel_not_found": (gettext_lazy("the channel does not exist any more"), _NEW),
    "channel_is_archived": (gettext_lazy("the channel was archived"), gettext_lazy("unarchive it, or make a webhook for another channel")),
    "user_not_found": (gettext_lazy("the person whom the webhook writes to is not there any more"), _NEW),
    "invalid_channel": (gettext_lazy("the channel does not exist any more"), _NEW),
}  # fmt: skip
WAITS = frozenset(
    {"rollup_error", "rate_limited", "ratelimited", "service_unavailable", "internal_error", "fatal_error", "request_timeout"}
)


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("webhook address"),
        max_length=500,
        help_text=gettext_lazy(
            "The whole address that the Slack app shows under Incoming Webhooks: https://hooks.slack.com/services/T…/B…/…"
        ),
    )

    def clean_url(self) -> str:
        url, parts = chat.webhook(
            self.cleaned_data["url"], _("Paste the whole webhook address; it begins with https://hooks.slack.com/services/."), HOSTS
        )
        if parts.path.startswith(("/triggers/", "/workflows/")):
            raise ValidationError(_("This is the address of a workflow, which takes no messages: add an incoming webhook to a Slack app."))
        if not _PATH.fullmatch(parts.path):
            raise ValidationError(_("An incoming webhook's address has the form https://hooks.slack.com/services/T…/B…/ and a long key."))
        return url


class Slack(Transport):
    kind = "slack"
    label = gettext_lazy("Slack webhook")
    family = "im"
    reach = "group"
    group = True
    personal = True  # a webhook may have been made for one's own chat
    mentions_by = ("table",)
    format = "slack"
    limits = (Limit(1, 1),)
    concurrency = 1
    max_chars = 11_500  # of the text: a bundle must not be cut
    secret = frozenset({"url"})
    Settings = Settings

    def send(self, message: Message, address: str) -> Receipt:
        body, detail = compose(message)
        try:
            self._post(body)
        except _ContentRefused:
            # A refused message has gone nowhere: the words alone still say everything.
            plain = {"text": body["plain"], "unfurl_links": False, "unfurl_media": False}
            detail = "; ".join(filter(None, [detail, _("sent without blocks, which Slack did not take")]))
            self._post(plain)
        return Receipt(detail=detail)

    def _post(self, body: dict[str, Any]) -> None:
        answer = self.http.post(self.settings["url"], json={name: value for name, value in body.items() if name != "plain"})
        said = _said(answer)
        if answer.status == 200 and said == "ok":
            return
        if answer.status < 300 or answer.status >= 400:
            _judge(said, answer, last="blocks" not in body)
        http.by_status(answer)
        text = _("%(host)s answered %(status)d, and not “ok”: %(body)s")
        known = _WORD.fullmatch(said) is not None  # one word is an answer of Slack's, whichever; anything else may be from anybody
        raise DeliveryError(
            text % {"host": answer.host, "status": answer.status, "body": answer.quote() or "-"},
            permanent=False,
            left=not known or said == "ok",
        )


class _ContentRefused(Exception):
    """Slack takes the webhook, and not this body."""


def _said(answer: http.Answer) -> str:
    """The word of the answer: plain text, or the error of a JSON object, as some of Slack's doors have it."""
    try:
        reply = answer.json()
    except DeliveryError:
        return answer.body[:200].decode("utf-8", "replace").strip()
    return str(reply.get("error") or "")


def _judge(said: str, answer: http.Answer, last: bool) -> None:
    """Raise what a word of Slack's table means; nothing where it is none."""
    if answer.status == 429 or said in WAITS:
        wait = answer.retry_after()
        raise DeliveryError(
            _("Slack takes no message for now (%(status)d: %(said)s).") % {"status": answer.status, "said": answer.quote(60) or "-"},
            permanent=False,
            retry_after=wait,
            blocked=wait,
        )
    if said in CONTENT and not last:
        raise _ContentRefused
    if said in REFUSALS:
        why, advice = REFUSALS[said]
        raise DeliveryError(
            _("Slack refused the message (%(word)s): %(why)s; %(advice)s.") % {"word": said, "why": why, "advice": advice},
            permanent=True,
            config=said not in CONTENT,
        )


# --- the message --------------------------------------------------------------------------------------------------------------------


def compose(message: Message) -> tuple[dict[str, Any], str]:
    """The body, with the whole as mrkdwn in "plain" for where blocks are refused, and one line on what could not be kept."""
    mentions = [mention for name in message.mentions if (mention := _mention(name))]
    unknown = [name for name in message.mentions if not _mention(name)]
    title = " ".join((message.subject or message.title).split())
    detail = ""
    with translation.override(message.language):
        # Not within what is a link already: its words may hold another address.
        text = _BARE.sub(lambda found: found[0] if found[0][0] == "<" else f"<{found[0]}>", message.text.strip() or _escape(title) or "-")
        if len(text) > TEXT:
            text = cut(text, TEXT - 40)[0] + "\n" + _("… shortened")
            detail = _("shortened to %(count)d characters") % {"count": TEXT}
        tail = " ".join(mentions[:80])  # a section full
        sign = _SIGNS["Ok"] if message.event == "closed" else _SIGNS.get(message.severity, "")
        head = f"{sign} {title}".strip()[:HEADER]
        # verbatim: only what stands between < and > is a mention or a link. Otherwise Slack looks for names and addresses in the words, and
        # a title could call somebody; so addresses in the words are put between < and > here.
        # plain_text is read as it stands: neither mentions nor links nor :names: of emoji are looked for in it.
        blocks: list[dict[str, Any]] = [{"type": "header", "text": {"type": "plain_text", "text": head, "emoji": False}}] if head else []
        blocks += [
            {"type": "section", "text": {"type": "mrkdwn", "text": part, "verbatim": True}}
            for part in filter(None, [*sections(text), tail])
        ]
        buttons = _buttons(message)
        if buttons:
            blocks.append({"type": "actions", "elements": buttons})
        link = f"<{message.url.replace('&', '&amp;')}|{_('Detail')}>" if message.url else ""
        if unknown:
            detail = "; ".join(filter(None, [detail, _("not mentioned (no Slack id): %(names)s") % {"names": ", ".join(unknown)}]))
    return {
        "text": _escape(head or title) or "-",  # what the phone's notification shows
        "blocks": blocks,
        "unfurl_links": False,
        "unfurl_media": False,
        "plain": "\n".join(filter(None, [f"*{_escape(head)}*" if head else "", text, tail, link])),
    }, detail


def sections(text: str) -> list[str]:
    """mrkdwn in parts of at most 3,000 characters, between lines where that is possible."""
    parts: list[str] = []
    while len(text) > SECTION:
        part, text = cut(text, SECTION)
        parts.append(part)
    return [part for part in [*parts, text] if part.strip()]


def cut(text: str, size: int) -> tuple[str, str]:
    """(the beginning of a mrkdwn text with at most `size` characters, the rest), at the end of a line where that costs little.

    No entity, link or pair of stars is broken: bold that was open goes on in the rest.
    """
    kept = text[: size - 1]  # one for a star
    line, _newline, rest = kept.rpartition("\n")
    if line and len(rest) < size // 4:
        return line, text[len(line) + 1 :]
    whole, kept = kept, _HALF.sub("", kept)
    if not kept.strip("* "):
        kept = whole  # one half of a link fills it all: with an open star alone before it, the rest would be what was to be cut, for ever
    words, _space, rest = kept.rpartition(" ")
    if words and len(rest) < size // 10 and "<" not in rest:
        kept = words
    rest = text[len(kept) :]
    return (f"{kept}*", f"*{rest.lstrip()}") if kept.rpartition("\n")[2].count("*") % 2 else (kept, rest)


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _mention(name: str) -> str:
    """A person, a user group, or "here" and "channel"; "" for what is none of them: a plain @name calls nobody."""
    if _USER.fullmatch(name):
        return f"<@{name}>"
    if _GROUP.fullmatch(name):
        return f"<!subteam^{name}>"
    return f"<!{name}>" if name in ("here", "channel") else ""


def _buttons(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "button", "action_id": "detail", "text": {"type": "plain_text", "text": label[:75]}, "url": url}
        | ({} if url == message.url else {"action_id": "ack", "style": "primary"})
        for label, url in chat.links(message)
        if len(url) <= LINK
    ]
