"""What must not stand in a log: Django writes the path of a request that failed, the path of a person's link lets its reader act as them,
and that of a provider's callback lets its reader speak for a provider that signs nothing."""

import logging
import re

_LINK = re.compile(r"(/i/)[^\s/?\"'<>]*\.[^\s/?\"'<>]*|(/callback/)[^\s/?\"'<>]+")


class WithoutLinks(logging.Filter):
    """Cuts the token out of every link in a record; the rest of it stays, so that a failure is still found by its page."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = _without(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_without(value) for value in record.args)
        return True


def _without(value: object) -> object:
    return _LINK.sub(r"\1\2…", value) if isinstance(value, str) and ("/i/" in value or "/callback/" in value) else value
