"""A database of the drill's own: made empty, guarded, dropped. The live one is never written to."""

import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from backplane import restores

PATTERN: Final = re.compile(r"backplane_drill_\d{14}_[0-9a-f]{8}")
MARK: Final = "a restore drill's: dropped when it ends, or when the next one begins"
LOCK: Final = 0x6472696C6C  # "drill" in ASCII; held in the server's database postgres
MAINTENANCE: Final = "postgres"  # the database that every server has

Connection = psycopg.Connection[DictRow]
Parameters = Mapping[str, Any]

_logger = logging.getLogger("backplane.drill")


class DrillError(RuntimeError):
    """The drill could not be held; it says nothing about the backup."""


@contextmanager
def database(server: Parameters, live: str) -> Iterator[Parameters]:
    """Connection parameters of a new, empty database on the server, dropped at the end.

    `live` is the name of the database that is backed up. Raises DrillError.
    """
    with _connect(server, MAINTENANCE) as connection:
        held = connection.execute("SELECT pg_try_advisory_lock(%s) AS held", [LOCK]).fetchone()
        if not held or not held["held"]:
            raise DrillError("another restore drill is under way on this server: let it finish")
        for left_over in _marked(connection):
            _drop(connection, left_over)
        name = f"backplane_drill_{datetime.now(UTC):%Y%m%d%H%M%S}_{secrets.token_hex(4)}"
        _create(connection, name)
        try:
            with _connect(server, name) as made:
                guard(made, live)
            yield {**server, "dbname": name}
        finally:
            _drop(connection, name)


def guard(connection: Connection, live: str) -> None:
    """Refuse to restore into anything but a scratch database. Raises DrillError.

    Asked of the server itself, on a connection made as pg_restore's will be: whatever a URL, a service
    file or a pooler makes of a name, this is where it leads.
    """
    found = connection.execute(
        """
        SELECT current_database() AS name, shobj_description(oid, 'pg_database') AS mark
        FROM pg_database
        WHERE datname = current_database()
        """
    ).fetchone()
    name = found["name"] if found else ""
    if name == live or not PATTERN.fullmatch(name) or not found or found["mark"] != MARK:
        raise DrillError(
            f"refusing to restore into {name}: a drill's database is called backplane_drill_… and is made by "
            f"the drill itself. Let no pooler stand before the drill's server."
        )
    try:
        restores.refuse_unless_empty(connection)
    except restores.NotEmptyError as error:
        raise DrillError(f"refusing to restore: {error}") from error


def _connect(server: Parameters, name: str) -> Connection:
    return psycopg.connect(
        autocommit=True, row_factory=dict_row, prepare_threshold=None, **{**server, "dbname": name}
    )


def _create(connection: Connection, name: str) -> None:
    try:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    except psycopg.errors.InsufficientPrivilege as error:
        raise DrillError(
            f"{connection.info.user} may not create databases: run ALTER ROLE {connection.info.user} "
            f"CREATEDB as an administrator, or give the drill another server (DrillDatabaseHost)"
        ) from error
    connection.execute(
        sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(name), sql.Literal(MARK))
    )


def _marked(connection: Connection) -> list[str]:
    """What killed drills have left."""
    rows = connection.execute(
        "SELECT datname FROM pg_database WHERE shobj_description(oid, 'pg_database') = %s", [MARK]
    ).fetchall()
    return [row["datname"] for row in rows]


def _drop(connection: Connection, name: str) -> None:
    if not PATTERN.fullmatch(name):
        raise DrillError(f"refusing to drop {name}: it has the mark of a drill's database, and not its name")
    try:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
    except psycopg.Error:
        _logger.exception("%s could not be dropped: the next drill tries again", name)
