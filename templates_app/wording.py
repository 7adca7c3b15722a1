"""The fixed words of messages in the languages we write: severities, progress, events, and lengths of time.

A message is written in its reader's language, not in that of the process that sends it: so these are tables and not gettext.
"""

from typing import Final

from templates_app.events import language_of

_WORDS: Final[dict[str, dict[str, str]]] = {
    "zh-hans": {
        "Critical": "严重",
        "Warning": "警告",
        "Info": "提醒",
        "Ok": "恢复",
        "Triggered": "待处理",
        "Processing": "处理中",
        "Closed": "已关闭",
        "triggered": "触发",
        "refire": "循环通知",
        "escalated": "升级",
        "acknowledged": "已认领",
        "closed": "已关闭",
        "possible_repeat": "可能重复",
        "queued": "等待发送",
        "sending": "发送中",
        "sent": "已发送",
        "delivered": "已送达",
        "answered": "已响应",
        "failed": "失败",
        "unknown": "结果未知",
        "cancelled": "已取消",
        "bundled": "已合并发送",
    },
    "en": {
        "Critical": "Critical",
        "Warning": "Warning",
        "Info": "Info",
        "Ok": "Recovered",
        "Triggered": "Triggered",
        "Processing": "Processing",
        "Closed": "Closed",
        "triggered": "Triggered",
        "refire": "Reminder",
        "escalated": "Escalated",
        "acknowledged": "Acknowledged",
        "closed": "Closed",
        "possible_repeat": "possible repeat",
        "queued": "waiting",
        "sending": "being sent",
        "sent": "sent",
        "delivered": "delivered",
        "answered": "answered",
        "failed": "failed",
        "unknown": "outcome unknown",
        "cancelled": "cancelled",
        "bundled": "bundled with others",
    },
}
_UNITS: Final[tuple[tuple[int, str, str], ...]] = ((86_400, "天", "d"), (3_600, "小时", "h"), (60, "分钟", "min"), (1, "秒", "s"))


def word(key: str, language: str) -> str:
    """The word for a severity, progress, event or state of a message in the language; an unknown key is its own word."""
    return _WORDS[language_of(language)].get(key, key)


def duration_text(seconds: int, language: str) -> str:
    """A length of time in its two largest units: `1 h 5 min`, `2 天 3 小时`; under a second is `0 s`."""
    chinese = language_of(language) == "zh-hans"
    left = max(0, seconds)
    parts: list[str] = []
    for size, zh, en in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {zh if chinese else en}")
        elif parts:
            break  # "1 d 4 s" would be a precision nobody asked for
        if len(parts) == 2:
            break
    return " ".join(parts) or ("0 秒" if chinese else "0 s")


def ago_text(seconds: int, language: str) -> str:
    """How long ago, in words; a moment that is still to come says so."""
    length = duration_text(abs(seconds), language)
    if language_of(language) == "zh-hans":
        return f"{length}前" if seconds >= 0 else f"{length}后"
    return f"{length} ago" if seconds >= 0 else f"in {length}"
