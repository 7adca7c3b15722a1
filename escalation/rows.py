"""Models read by statements that the server plans once: what a pass reads each time, without building the query anew."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

from django.db import models
from django.db.models.base import ModelState

from channels_app.outbox.statements import planned_once

M = TypeVar("M", bound=models.Model)


@cache
def _shape(model: type[models.Model]) -> tuple[str, list[str], frozenset[int]]:
    fields = model._meta.concrete_fields
    columns = ", ".join(f't."{field.column}"' for field in fields)
    return columns, [field.attname for field in fields], frozenset(n for n, f in enumerate(fields) if isinstance(f, models.JSONField))


def read(model: type[M], rest: str, values: Sequence[Any]) -> list[M]:
    """`SELECT <all columns of t> <rest>` as instances; `rest` begins with FROM and calls the model's table `t`. Not for encrypted fields."""
    return [row for row, _also in read_also(model, "NULL", rest, values)]


def read_also(model: type[M], also: str, rest: str, values: Sequence[Any]) -> list[tuple[M, Any]]:
    """As `read`, each row with the value of one more expression."""
    columns, names, in_json = _shape(model)
    with planned_once() as cursor:
        cursor.execute(f"SELECT {columns}, {also} {rest}", values)
        return [
            (_made(model, names, [json.loads(v) if n in in_json and v is not None else v for n, v in enumerate(row)]), more)
            for *row, more in cursor.fetchall()
        ]


def _made(model: type[M], names: Sequence[str], values: Sequence[Any]) -> M:
    """`Model.from_db` for all columns at once: set one by one they cost more than to read them. (No model of ours listens to its making.)"""
    row = model.__new__(model)
    row._state = ModelState()
    row._state.adding, row._state.db = False, "default"
    row.__dict__.update(zip(names, values, strict=True))
    return row
