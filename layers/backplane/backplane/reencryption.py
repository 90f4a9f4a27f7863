"""Encrypted fields brought under the present key, row by row, where another one encrypted them.

Each row names the key it is under, so a run that is cut off goes on where it was, and a second one finds
nothing to do. A row is read, sealed outside of any transaction, and written if nobody changed it meanwhile:
then it is under the present key already, or found the next time.
"""

import logging
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from psycopg import sql
from psycopg.rows import DictRow

from backplane import db, field_encryption
from backplane.field_encryption import Place, UnreadableFieldError

_logger = logging.getLogger("backplane.reencryption")


@dataclass(frozen=True, slots=True)
class Fields:
    """A table's encrypted columns. It has `id`, `organization_id` and `encryption_key`, a key's ARN."""

    table: str
    columns: tuple[str, ...]


FIELDS: Final = (Fields("deploys.integrations", ("secrets", "webhook_secrets")),)


@dataclass(frozen=True, slots=True)
class Batch:
    reencrypted: int
    unreadable: int
    last: UUID | None  # where the next batch begins; None: that was all


def reencrypt(fields: Fields, *, after: UUID | None, limit: int) -> Batch:
    """So many rows from `after` on. Raises FieldKeyError without a key, Unavailable without KMS."""
    key = field_encryption.key_arn()
    rows = db.run(
        lambda tx: tx.execute(
            sql.SQL(
                """
                SELECT id, organization_id, {columns}
                FROM {table}
                WHERE encryption_key <> %(key)s AND (%(after)s::uuid IS NULL OR id > %(after)s)
                ORDER BY id
                LIMIT %(limit)s
                """
            ).format(table=_table(fields), columns=sql.SQL(", ").join(map(sql.Identifier, fields.columns))),
            {"key": key, "after": after, "limit": limit},
        ).fetchall()
    )
    done = unreadable = 0
    for row in rows:
        try:
            sealed = {name: _sealed(fields, row, name) for name in fields.columns if row[name] is not None}
        except UnreadableFieldError:
            _logger.exception("a field can't be read, and stays under the key it is under")
            unreadable += 1
            continue
        done += _write(fields, row, sealed, key)
    return Batch(done, unreadable, rows[-1]["id"] if len(rows) == limit else None)


def left(fields: Fields) -> int:
    """How many rows are under another key than the present."""
    row = db.call(
        sql.SQL("SELECT count(*) AS rows FROM {} WHERE encryption_key <> %(key)s").format(_table(fields)),
        {"key": field_encryption.key_arn()},
    )
    return 0 if row is None else int(row["rows"])


def _sealed(fields: Fields, row: DictRow, column: str) -> bytes:
    place = Place(fields.table, column, row["id"], row["organization_id"])
    return field_encryption.encrypt(field_encryption.decrypt(bytes(row[column]), place), place)


def _write(fields: Fields, row: DictRow, sealed: dict[str, bytes], key: str) -> int:
    """1, or 0 where somebody changed the row since it was read."""
    written = {**sealed, "encryption_key": key}
    new = sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(n), sql.Placeholder(n)) for n in written
    )
    unchanged = sql.SQL(" AND ").join(
        sql.SQL("{} IS NOT DISTINCT FROM {}").format(sql.Identifier(n), sql.Placeholder(f"old_{n}"))
        for n in fields.columns
    )
    values: dict[str, Any] = {**written, **{f"old_{n}": row[n] for n in fields.columns}, "id": row["id"]}
    statement = sql.SQL("UPDATE {table} SET {new} WHERE id = %(id)s AND {unchanged}").format(
        table=_table(fields), new=new, unchanged=unchanged
    )
    return db.run(lambda tx: tx.execute(statement, values).rowcount)


def _table(fields: Fields) -> sql.Identifier:
    return sql.Identifier(*fields.table.split("."))
