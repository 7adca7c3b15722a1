"""Cursors for the statements that run for every message."""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
from django.db import connection


@contextlib.contextmanager
def planned_once() -> Iterator[Any]:
    """A cursor whose statements the server plans once for a connection. Django's binds on the client's side, so each is planned anew: half
    of the work of a claim. Parameters have the types of their Python values."""
    connection.ensure_connection()
    with connection.wrap_database_errors, psycopg.Cursor(connection.connection) as cursor:
        yield cursor


def dicts(cursor: Any) -> list[dict[str, Any]]:
    names = [column.name for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
