"""Every secret of the database under the newest key, so that an old one can go: whatever field of whatever model is encrypted."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from django.apps import apps
from django.db import connection, models, transaction

from mapping import crypto

WINDOW: Final = 500


@dataclass
class Rotated:
    renewed: int = 0  # encrypted anew
    current: int = 0  # were under the newest key already
    missed: int = 0  # changed by somebody meanwhile
    unreadable: list[str] = field(default_factory=list)  # no key opens them: which row and field


def encrypted_fields() -> Iterator[tuple[type[models.Model], "models.Field[Any, Any]"]]:
    for model in apps.get_models():
        if not model._meta.proxy:
            for item in model._meta.local_concrete_fields:
                if isinstance(item, crypto.EncryptedTextField | crypto.EncryptedJSONField):
                    yield model, item


def rotate() -> Rotated:
    """Encrypts anew what is not under the newest key. Short transactions: it may be interrupted and run again at any time, and what somebody
    saves meanwhile is under the newest key by itself."""
    result = Rotated()
    for model, item in encrypted_fields():
        last = 0
        while (after := _window(model, item, last, result)) is not None:
            last = after
    return result


def _window(model: type[models.Model], item: "models.Field[Any, Any]", last: int, result: Rotated) -> int | None:
    """The key of the last row that was looked at; None after the last one."""
    meta = model._meta
    table, column, named = meta.db_table, item.column, any(other.name == "name" for other in meta.fields)
    old, new, ids = [], [], []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SELECT id, {column}, {'name' if named else 'NULL'} FROM {table} WHERE id > %s ORDER BY id LIMIT {WINDOW}", [last])
        rows = cursor.fetchall()
        for pk, sealed, name in rows:
            if not sealed:
                continue
            try:
                fresh = crypto.renewed(sealed)
            except ValueError:
                what = f"{meta.verbose_name} {pk}" + (f" ({name})" if name else "")
                result.unreadable.append(f"{what}: {item.verbose_name}")
                continue
            if fresh is None:
                result.current += 1
            else:
                ids.append(pk)
                old.append(sealed)
                new.append(fresh)
        if ids:
            cursor.execute(
                f"""UPDATE {table} t SET {column} = w.fresh FROM unnest(%s::bigint[], %s::text[], %s::text[]) AS w(id, old, fresh)
                    WHERE t.id = w.id AND t.{column} = w.old""",
                [ids, old, new],
            )
            result.renewed += cursor.rowcount
            result.missed += len(ids) - cursor.rowcount
    return rows[-1][0] if rows else None
