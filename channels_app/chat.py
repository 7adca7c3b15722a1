"""What transports of group chats have in common: the links of a message, its text cut without breaking markup, the webhook address that somebody
pasted, the answers in which only a code tells success from refusal.

Pure; each transport brings what its platform alone has (how it counts, what its markup looks like, what its codes mean) and knows nothing of the
others."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import SplitResult

from django.core.exceptions import ValidationError
from django.utils.translation import gettext as _

from channels_app import http
from channels_app.transport import DeliveryError, Message

_OPEN: Final = ("triggered", "escalated", "refire")
_ESCAPE: Final = re.compile(r"\\.")
_BULLET: Final = re.compile(r"^\s*\* ")


def links(message: Message) -> list[tuple[str, str]]:
    """The links below a message as (label, address), in the language that is in force; none where it has no address.

    Acknowledge comes first and stands only where there is one incident to acknowledge, and it is open; its address is never `message.url`.
    """
    if not message.url:
        return []
    found = [(_("Detail"), message.url)]
    if message.event in _OPEN and len(message.incidents) <= 1:
        # Only preselects the button of the page behind: link scanners open addresses too.
        found.insert(0, (_("Acknowledge"), f"{message.url}{'&' if '?' in message.url else '?'}ack=1"))
    return found


def line(found: Sequence[tuple[str, str]]) -> str:
    """`links` as a line of Markdown, for messages that have no buttons."""
    return " | ".join(f"[{label}]({url})" for label, url in found)


def cut_markdown(
    text: str,
    size: int,
    measure: Callable[[str], int],
    half: re.Pattern[str],
    *,
    bold: str = "**",
    escapes: bool = False,
    tags: Sequence[str] = (),
) -> str:
    """The beginning of a text that measures at most `size`, at the end of a line where that costs less than a quarter of it.

    `half` matches, up to the end, markup whose end was cut off (a link, a tag, an escape): it goes altogether. What closes bold, and `tags`
    (names) that are open, is added after that: the caller leaves room for it. `escapes`: a backslash takes the meaning of what follows it.
    `measure` never falls as a text grows.
    """
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(text[:middle]) <= size else (low, middle - 1)
    kept = text[:low]
    whole, _newline, rest = kept.rpartition("\n")
    kept = whole.rstrip() if whole and len(rest) < low // 4 else half.sub("", kept)
    for tag in tags:
        kept += f"</{tag}>" * (kept.count(f"<{tag}") > kept.count(f"</{tag}>"))
    last = _BULLET.sub("", kept.rpartition("\n")[2])
    is_open = (_ESCAPE.sub("", last) if escapes else last).count(bold) % 2
    return kept + bold if is_open else kept


def json_size(value: Any) -> int:
    """The bytes that `value` takes in the body of a request."""
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))


def webhook(pasted: Any, otherwise: str, hosts: tuple[str, ...] = ()) -> tuple[str, SplitResult]:
    """A pasted webhook address without blanks around it, and its parts. ValidationError with the sentence `otherwise` where it is no address.

    Other hosts than `hosts` may be spoken to in the clear: a proxy of one's own, or the platform in one's own data centre.
    """
    url = str(pasted).strip()
    parts = http.split_url(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or any(char.isspace() for char in url):
        raise ValidationError(otherwise)
    if parts.scheme == "http" and parts.hostname.endswith(hosts):
        raise ValidationError(_("The address must begin with https://."))
    return url, parts


def code_of(answer: http.Answer, judge: Callable[[http.Answer], None], read: Callable[[Mapping[str, Any]], int | None]) -> int:
    """The code of an answer that says success and refusal in its body; DeliveryError where it is none of the platform's.

    `judge` raises for the codes that are known, whatever the status, as they say more; `read` finds the code in the object.
    """
    if answer.status >= 300:
        judge(answer)
    http.by_status(answer)
    code = read(answer.json())
    judge(answer)
    if code is None:
        raise DeliveryError(
            _("%(host)s answered without a code: %(body)s") % {"host": answer.host, "body": answer.quote()}, permanent=False, left=True
        )
    return code
