"""Cursors for the statements that run for every message."""

import contextlib
import re
import threading
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import psycopg
from django.db import connections
from psycopg.adapt import Dumper, Loader

_SPECIAL: Final = re.compile(r'(["\\])')


class _Array(Dumper):
    """Lists as the text of an array whose type the statement says: to find out the type of each anew was a sixth of what an alert costs us."""

    def dump(self, obj: Any) -> bytes:
        text = "{" + ",".join([self._item(item) for item in obj]) + "}"
        if "\x00" in text:
            raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
        return text.encode()

    def _item(self, item: Any) -> str:
        kind = type(item)
        if kind is int:
            return str(item)
        if item is None:
            return "NULL"
        if kind is str:
            return '"' + _SPECIAL.sub(r"\\\1", item) + '"'
        if kind is bool:
            return "t" if item else "f"
        if kind is datetime:
            return f'"{item.isoformat()}"'
        if isinstance(item, str):
            return self._item(str.__str__(item))
        raise psycopg.ProgrammingError(f"no list of {kind.__name__} in a statement that is planned once")


class _Instant(Loader):
    """Instants as the server writes them in a session of ours (UTC), in a fifth of the time that the general reading takes."""

    def load(self, data: Any) -> datetime:
        return datetime.fromisoformat(bytes(data).decode())


_mine = threading.local()


@contextlib.contextmanager
def planned_once() -> Iterator[Any]:
    """A cursor whose statements the server plans once for a connection. Django's binds on the client's side, so each is planned anew: half
    of the work of a claim. Parameters have the types of their Python values; lists are arrays of whatever the statement makes of them (`%s::text[]`,
    `id = ANY(%s)`)."""
    django = connections["default"]
    django.ensure_connection()
    raw = django.connection
    if getattr(_mine, "connection", None) is not raw:
        _mine.connection, _mine.cursor = raw, None
    # A cursor knows its parameters' types from the last time; within another's `with` there is a second one.
    cursor, _mine.cursor = _mine.cursor, None
    if cursor is None:
        cursor = psycopg.Cursor(raw)
        cursor.adapters.register_dumper(list, _Array)
        cursor.adapters.register_loader("timestamptz", _Instant)
    with django.wrap_database_errors:
        yield cursor
    if _mine.connection is raw:
        _mine.cursor = cursor


def dicts(cursor: Any) -> list[dict[str, Any]]:
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
