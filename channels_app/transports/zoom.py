"""A Zoom Team Chat incoming webhook: a card with markdown and links into the channel, or the person's chat, where /inc connect was entered.

Source: Zoom support KB0067640 and developers.zoom.us, "Customize chatbot messages". Zoom tells no message id, documents neither limits nor the
answers, and gives no escape: templates_app replaces what would start markup."""

import re
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.utils import translation
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from channels_app import chat, http, transport
from channels_app.transport import DeliveryError, Limit, Message, Receipt, Transport

TEXT = 4000
HEAD = 250
SHORT = 1000  # what is tried once where Zoom has something against the message itself
WAIT = 30.0  # after "too many", where Zoom does not say how long
HOSTS = ("zoom.us", "zoomgov.com")

_PATH = re.compile(r"(?:/[^?#]*)?/(?:chat/webhooks/incomingwebhook|incoming/hook)/[A-Za-z0-9_.~%-]{8,}/?")
_TOKEN = re.compile(r"[!-~]{6,200}")
_JID = re.compile(r"[A-Za-z0-9_.-]{6,100}@xmpp\.zoom(?:gov)?\.(?:us|com)")
_ID = re.compile(r"[A-Za-z0-9_-]{16,40}")
_HALF = re.compile(r"<[^<>]{0,2000}$")
_COLOURS = {"Critical": "#d93026", "Warning": "#e8710a", "Info": "#1a73e8", "Ok": "#188038"}


class Settings(transport.Settings):
    url = forms.CharField(
        label=gettext_lazy("endpoint"),
        max_length=500,
        help_text=gettext_lazy(
            "What the Incoming Webhook app answers to “/inc connect flashduty”: https://integrations.zoom.us/chat/webhooks/incomingwebhook/…"
        ),
    )
    token = forms.CharField(
        label=gettext_lazy("verification token"), max_length=200, help_text=gettext_lazy("The verification token of the same answer.")
    )

    def clean_url(self) -> str:
        url, parts = chat.webhook(
            self.cleaned_data["url"], _("Paste the whole endpoint; it begins with https://integrations.zoom.us/."), HOSTS
        )
        if not _PATH.fullmatch(parts.path):
            raise ValidationError(_("An endpoint has the form https://integrations.zoom.us/chat/webhooks/incomingwebhook/ and a long key."))
        return url.partition("?")[0].rstrip("/")  # the format is ours to choose

    def clean_token(self) -> str:
        token = str(self.cleaned_data["token"]).strip().removeprefix("Bearer ").strip()
        if not _TOKEN.fullmatch(token):
            raise ValidationError(_("Paste the verification token as Zoom shows it: letters and digits without spaces."))
        return token


class Zoom(Transport):
    kind = "zoom"
    label = gettext_lazy("Zoom incoming webhook")
    family = "im"
    reach = "group"
    group = True
    personal = True  # /inc connect in the app's own chat makes a webhook that writes to one person
    mentions_by = ("table",)
    format = "zoom"
    limits = (Limit(1, 1),)  # a guess: Zoom documents none and answers 429
    concurrency = 1
    max_chars = 3500  # of the text: mentions and notice need the rest, and a bundle must not be cut
    secret = frozenset({"url", "token"})
    Settings = Settings

    def send(self, message: Message, address: str) -> Receipt:
        body, detail = compose(message)
        answer = self._post(body)
        if answer.status == 400 and not _advice(answer):
            # Zoom refuses a message as a whole for its length or its markup, and does not say so; what it refused went nowhere.
            second = self._post(compose(message, SHORT, markdown=False)[0])
            if second.status != 400:  # of two such refusals the first says more
                answer = second
                detail = _("sent without markup and shortened to %(count)d characters, as Zoom did not take the whole") % {"count": SHORT}
        _judge(answer)
        return Receipt(detail=detail)

    def _post(self, body: dict[str, Any]) -> http.Answer:
        # The token stands there bare, without "Bearer".
        return self.http.post(
            f"{self.settings['url']}?format=full", json=body, headers={"Authorization": self.settings["token"]}, status_only=True
        )


def _advice(answer: http.Answer) -> str:
    """What to do about a refusal that is known; "" for any other."""
    said = answer.quote().lower()
    if "timestamp" in said or "signature" in said:
        return _("the connection was made with “-s”: make a new one with /inc connect and a name alone, and enter its endpoint and token")
    if "failed to send bot message" in said:
        return _("who made the connection has left Zoom, or the app was removed: enter /inc connect again, with an account that stays")
    if answer.status in (401, 403):
        return _("the verification token does not belong to the endpoint: enter both from one answer of /inc connect")
    return (
        _("the connection does not exist any more: enter /inc connect again and paste endpoint and token") if answer.status == 404 else ""
    )


def _judge(answer: http.Answer) -> None:
    values = {"status": answer.status, "said": answer.quote() or "-"}
    if answer.status == 429:
        wait = answer.retry_after()
        raise DeliveryError(
            _("Zoom takes no message for now (%(status)d: %(said)s).") % values, permanent=False, retry_after=wait, blocked=wait or WAIT
        )
    if 400 <= answer.status < 500 and (advice := _advice(answer)):
        raise DeliveryError(
            _("Zoom refused the message (%(status)d: %(said)s): %(advice)s.") % {**values, "advice": advice}, permanent=True, config=True
        )
    http.by_status(answer)
    try:
        reply = answer.json()
    except DeliveryError:
        if answer.body.lstrip().startswith(b"<"):  # a page: of a proxy or a portal on the way, or of another address
            raise DeliveryError(
                _("%(host)s answered with a page, so it was not Zoom: check the endpoint, and the proxy if there is one.")
                % {"host": answer.host},
                permanent=False,
                left=True,
            ) from None
        return  # 200 and 204 are success, and what stands in the body is not documented
    # An error of Zoom's API is {"result": false, "code": 7010, "message": ...}: should one come in a 200, it is none the less a refusal.
    code = reply.get("code", 0)
    if reply.get("result") is False or reply.get("error") or (isinstance(code, int) and code and not 200 <= code < 300):
        raise DeliveryError(
            _("Zoom refused the message (%(status)d: %(said)s).") % values,
            permanent=isinstance(code, int) and 400 <= code < 500 and code != 429,
        )


# --- the message --------------------------------------------------------------------------------------------------------------------


def compose(message: Message, room: int = TEXT, markdown: bool = True) -> tuple[dict[str, Any], str]:
    """The body in the format "full" with a text of at most `room` characters, and one line on what could not be kept."""
    named = [mention for name in message.mentions if (mention := _mention(name))] if markdown else []
    mentions, more = transport.as_many(named, TEXT - Zoom.max_chars - 1)
    unknown = [name for name in message.mentions if not _mention(name)]
    title = " ".join((message.subject or message.title).split()).replace("<", "‹").replace(">", "›")
    detail = ""
    with translation.override(message.language):
        text, end = message.text.strip() or title or "-", [" ".join(mentions)]
        if len(text) + sum(map(len, end)) + 1 > room:
            end.insert(0, _("… shortened"))
            text = cut(text, room - sum(map(len, end)) - 2)
            detail = _("shortened to %(count)d characters") % {"count": room}
        items: list[dict[str, Any]] = [{"type": "message", "text": "\n".join(filter(None, [text, *end]))}]
        if markdown:
            items[0]["is_markdown_support"] = True
        items += [{"type": "message", "text": label, "link": url} for label, url in chat.links(message)]
        if more:
            detail = "; ".join(filter(None, [detail, _("not mentioned: %(names)s") % {"names": ", ".join(more)}]))
        if unknown:
            detail = "; ".join(filter(None, [detail, _("not mentioned (no Zoom user id): %(names)s") % {"names": ", ".join(unknown)}]))
    content: dict[str, Any] = {"settings": {"default_sidebar_color": _colour(message)}, "body": items}
    if title:
        content["head"] = {"text": title[:HEAD]}
    return {"content": content}, detail


def cut(text: str, size: int) -> str:
    """The beginning of a text in Zoom's markdown with at most `size` characters."""
    return chat.cut_markdown(text, size - 1, len, _HALF, bold="*")


def _mention(name: str) -> str:
    """A person by JID, or by user id, which in lower case is the JID's beginning; "" for what is neither."""
    if _JID.fullmatch(name):
        return f"<!{name}>"
    return f"<!{name.lower()}@xmpp.zoom.us>" if _ID.fullmatch(name) else ""


def _colour(message: Message) -> str:
    return _COLOURS["Ok"] if message.event == "closed" else _COLOURS.get(message.severity, "#5f6368")
