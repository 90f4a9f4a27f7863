"""What a database holds, in a form that can be written down and compared: the manifest's heart."""

from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import psycopg
from psycopg import sql
from psycopg.rows import DictRow
from pydantic import BaseModel

from backplane import catalogue

MOST_TOLD: Final = 50  # differences of one kind


class Contents(BaseModel):
    """Each by the object's name with its schema."""

    rows: dict[str, int]
    sequences: dict[str, int | None]  # the last value; None: never called
    migrations: list[str]
    extensions: dict[str, str]  # version
    row_security: dict[str, str]  # "enabled, forced", and the policies
    privileges: dict[str, str]  # owner, and who may do what
    definitions: dict[str, str]  # hashes of columns, constraints, indexes, triggers, functions, views, types

    @classmethod
    def empty(cls) -> Self:
        return cls(
            rows={},
            sequences={},
            migrations=[],
            extensions={},
            row_security={},
            privileges={},
            definitions={},
        )


def read(
    connection: psycopg.Connection[DictRow], *, counted: Callable[[str, int], None] = lambda *_: None
) -> Contents:
    """What the connection's database holds, as its open transaction sees it.

    `counted` hears each table's name and rows. The login must see every row.
    """
    sequences = _pairs(connection, catalogue.SEQUENCES)  # first: a dump that begins later can only be ahead
    migrations = connection.execute("SELECT to_regclass('public.schema_migrations') AS found").fetchone()
    return Contents(
        sequences=sequences,
        extensions=_pairs(connection, catalogue.EXTENSIONS),
        row_security=_pairs(connection, catalogue.ROW_SECURITY),
        privileges=_pairs(connection, catalogue.PRIVILEGES),
        definitions=_hashed(connection, catalogue.DEFINITIONS),
        migrations=_migrations(connection) if migrations and migrations["found"] else [],
        rows=_rows(connection, counted),
    )


def differences(expected: Contents, found: Contents) -> list[str]:
    """Where a restored database is not what was backed up, one sentence each; none: it is the same."""
    told: list[str] = []
    if expected.migrations != found.migrations:
        told.append(f"migrations: {_ends(expected.migrations)} were applied, {_ends(found.migrations)} are")
    for kind in ("rows", "extensions", "row_security", "privileges", "definitions"):
        told += _cut(kind, list(_unequal(kind, getattr(expected, kind), getattr(found, kind))))
    told += _cut("sequences", list(_behind(expected.sequences, found.sequences)))
    return told


def _unequal(kind: str, expected: dict[str, Any], found: dict[str, Any]) -> Iterator[str]:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            yield f"{kind}: {name} is missing"
        elif name not in expected:
            yield f"{kind}: {name} was not there"
        elif expected[name] != found[name]:
            hashed = kind == "definitions"
            yield f"{kind}: {name} {'differs' if hashed else f'was {expected[name]}, is {found[name]}'}"


def _behind(expected: dict[str, int | None], found: dict[str, int | None]) -> Iterator[str]:
    """Sequences run on while a dump is taken, so that its own may be ahead, and never behind."""
    for name, value in sorted(expected.items()):
        if name not in found:
            yield f"sequences: {name} is missing"
        elif value is not None and (found[name] is None or (found[name] or 0) < value):
            yield f"sequences: {name} was at {value}, is at {found[name]}"


def _cut(kind: str, told: list[str]) -> list[str]:
    more = len(told) - MOST_TOLD
    return [*told[:MOST_TOLD], f"{kind}: and {more} more"] if more > 0 else told


def _ends(versions: list[str]) -> str:
    return f"{len(versions)} up to {versions[-1]}" if versions else "none"


# ---- reading ----


def _rows(connection: psycopg.Connection[DictRow], counted: Callable[[str, int], None]) -> dict[str, int]:
    tables = connection.execute(catalogue.TABLES).fetchall()
    rows: dict[str, int] = {}
    for table in tables:
        if not table["partitioned"]:
            count = sql.SQL("SELECT count(*) AS n FROM ONLY {}").format(
                sql.Identifier(table["schema"], table["table"])
            )
            rows[table["name"]] = _one(connection, count)
            counted(table["name"], rows[table["name"]])
    for table in tables:
        if table["partitioned"]:
            rows[table["name"]] = sum(rows[leaf] for leaf in table["leaves"] if leaf in rows)
    return dict(sorted(rows.items()))


def _one(connection: psycopg.Connection[DictRow], query: sql.Composed) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None  # noqa: S101  an aggregate has one row
    count: int = row["n"]
    return count


def _pairs(connection: psycopg.Connection[DictRow], query: str) -> dict[str, Any]:
    return {row["name"]: row["value"] for row in connection.execute(query.encode()).fetchall()}


def _hashed(connection: psycopg.Connection[DictRow], query: str) -> dict[str, str]:
    shortened = f"SELECT name, md5(value) AS value FROM ({query}) AS defined ORDER BY 1"
    return _pairs(connection, shortened)


def _migrations(connection: psycopg.Connection[DictRow]) -> list[str]:
    rows = connection.execute("SELECT version FROM public.schema_migrations ORDER BY 1").fetchall()
    return [row["version"] for row in rows]
