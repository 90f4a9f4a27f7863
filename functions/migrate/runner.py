"""Applies migration files, each once, in order, one runner at a time.

What is applied stands in public.schema_migrations, dbmate's table with three columns more, so
that dbmate reads and writes it too.
"""

import logging
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from migration_file import Migration, MigrationError, Section, Statement, read_folder
from psycopg import sql
from psycopg.rows import DictRow

from backplane import maintenance_lock

FOLDER: Final = Path(__file__).parent / "migrations"
OWNER: Final = "backplane_migrator"

LOCK_TIMEOUT: Final = 2.0  # seconds a statement waits for a table; readers queue behind it meanwhile
LOCK_ATTEMPTS: Final = 10
MAINTENANCE_WAIT: Final = 60.0  # seconds to wait for another runner or a backup

Connection = psycopg.Connection[DictRow]

_logger = logging.getLogger("backplane.migrate")


@dataclass(frozen=True)
class Status:
    """Versions, in order. Of what is applied: `drifted` files have changed since, `unknown` ones are gone."""

    applied: tuple[str, ...]
    pending: tuple[str, ...]
    drifted: tuple[str, ...]
    out_of_order: tuple[str, ...]  # pending, but older than something applied
    unknown: tuple[str, ...]
    latest: str | None

    @property
    def current(self) -> str | None:
        return self.applied[-1] if self.applied else None

    @property
    def ok(self) -> bool:
        return not (self.pending or self.drifted or self.out_of_order or self.unknown)


def status(connection: Connection, *, folder: Path = FOLDER) -> Status:
    """What is applied and what is not; changes nothing."""
    exists = connection.execute(
        "SELECT to_regclass('public.schema_migrations') IS NOT NULL AS yes"
    ).fetchone()
    applied = _applied(connection) if exists and exists["yes"] else {}
    return _status(read_folder(folder), applied)


def up(
    connection: Connection,
    to: str | None = None,
    *,
    folder: Path = FOLDER,
    wait: float = MAINTENANCE_WAIT,
    owner: str = OWNER,
) -> list[str]:
    """Apply what is pending, up to and with version `to`; the versions applied, in order.

    `wait` is how many seconds to wait for the maintenance lock. Raises MigrationError; what was
    applied before it stays, the failed one leaves nothing (unless it is transaction:false).
    """
    with _maintenance(connection, wait, owner):
        _make_table(connection)
        migrations = read_folder(folder)
        found = _status(migrations, _applied(connection))
        _refuse(found, migrations)
        if to is not None and to not in {migration.version for migration in migrations}:
            raise MigrationError(f"there is no migration {to}; the last is {found.latest}")
        wanted = [m for m in migrations if m.version in found.pending and (to is None or m.version <= to)]
        for migration in wanted:
            _logger.info("applying %s", migration.file)
            _apply(connection, migration, migration.up, _RECORD)
        return [migration.version for migration in wanted]


def down(
    connection: Connection,
    steps: int = 1,
    *,
    folder: Path = FOLDER,
    wait: float = MAINTENANCE_WAIT,
    owner: str = OWNER,
) -> list[str]:
    """Undo the newest `steps` migrations; the versions undone, newest first. Raises MigrationError."""
    with _maintenance(connection, wait, owner):
        _make_table(connection)
        files = {migration.version: migration for migration in read_folder(folder)}
        undone = sorted(_applied(connection), reverse=True)[:steps]
        for version in undone:
            if not (migration := files.get(version)):
                raise MigrationError(f"{version} is applied but its file is gone: restore it to undo it")
            if not migration.down.statements:
                raise MigrationError(f"{migration.file} can't be undone: its down section is empty")
            _logger.info("undoing %s", migration.file)
            _apply(connection, migration, migration.down, _UNRECORD)
        return undone


def _status(migrations: list[Migration], applied: Mapping[str, str | None]) -> Status:
    files = {migration.version: migration.checksum for migration in migrations}
    pending = tuple(version for version in files if version not in applied)
    newest = max(applied, default="")
    return Status(
        applied=tuple(sorted(applied)),
        pending=pending,
        # No checksum: dbmate applied it.
        drifted=tuple(
            v for v, checksum in sorted(applied.items()) if checksum and files.get(v, checksum) != checksum
        ),
        out_of_order=tuple(version for version in pending if version < newest),
        unknown=tuple(sorted(set(applied) - set(files))),
        latest=max(files, default=None),
    )


def _refuse(found: Status, migrations: list[Migration]) -> None:
    """Stop before anything is applied where history and files disagree."""
    files = {migration.version: migration for migration in migrations}
    for version in found.drifted:
        migration = files[version]
        raise MigrationError(
            f"{migration.file} was changed after it was applied. Restore it from version control and put the "
            f"change in a new migration. If the database already is as the file now says: UPDATE "
            f"public.schema_migrations SET checksum = '{migration.checksum}' WHERE version = '{version}'"
        )
    for version in found.out_of_order:
        raise MigrationError(
            f"{files[version].file} is new but {found.current} is applied already: renumber it to come last"
        )
    if found.unknown:  # an older release, deployed again: its functions run on the newer schema
        _logger.warning("applied by another release: %s", ", ".join(found.unknown))


# ---- the table ----


_RECORD: Final = """
    INSERT INTO public.schema_migrations (version, name, checksum)
    VALUES (%(version)s, %(name)s, %(checksum)s)
"""
_UNRECORD: Final = "DELETE FROM public.schema_migrations WHERE version = %(version)s"


def _make_table(connection: Connection) -> None:
    columns = connection.execute(
        """
        SELECT attname
        FROM pg_attribute
        WHERE attrelid = to_regclass('public.schema_migrations')
          AND attnum > 0
          AND NOT attisdropped
        """
    ).fetchall()
    if {"version", "name", "checksum", "applied_at"} <= {column["attname"] for column in columns}:
        return
    connection.execute(
        """
        CREATE TABLE IF NOT EXISTS public.schema_migrations (version varchar PRIMARY KEY);
        ALTER TABLE public.schema_migrations
            ADD COLUMN IF NOT EXISTS name text,
            ADD COLUMN IF NOT EXISTS checksum text,
            ADD COLUMN IF NOT EXISTS applied_at timestamptz DEFAULT now();
        """,
        prepare=False,  # several statements in one message: one implicit transaction
    )


def _applied(connection: Connection) -> dict[str, str | None]:
    """Checksums by version; None where dbmate applied it."""
    rows = connection.execute("SELECT * FROM public.schema_migrations").fetchall()
    return {row["version"]: row.get("checksum") for row in rows}


# ---- applying ----


def _apply(connection: Connection, migration: Migration, section: Section, record: LiteralString) -> None:
    if section.in_transaction:
        _all_or_nothing(connection, migration, section, record)
    else:
        _one_by_one(connection, migration, section)
        connection.execute(record, vars(migration))
    # A file may SET what the next one must not inherit. (The role is not reset by this.)
    connection.execute("RESET ALL")


def _all_or_nothing(
    connection: Connection, migration: Migration, section: Section, record: LiteralString
) -> None:
    """Apply a section in one transaction.

    A lock that is not had soon is given up and tried again: while a statement waits for a table,
    everybody who comes later queues behind it.
    """
    for attempt in range(1, LOCK_ATTEMPTS + 1):
        try:
            with connection.transaction():
                connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}s'", prepare=False)
                for statement in section.statements:
                    _execute(connection, migration, statement)
                connection.execute(record, vars(migration))
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            _logger.info("%s: a table is in use, attempt %d of %d", migration.file, attempt, LOCK_ATTEMPTS)
            if attempt == LOCK_ATTEMPTS:
                raise MigrationError(
                    f"{migration.file}: a table that it changes stayed in use through {attempt} attempts: "
                    f"look for long transactions in pg_stat_activity, then run it again"
                ) from error
            time.sleep(random.uniform(0, min(5.0, 0.1 * 2**attempt)))  # noqa: S311  jitter, not a secret
        else:
            return


def _one_by_one(connection: Connection, migration: Migration, section: Section) -> None:
    """Apply a transaction:false section: CREATE INDEX CONCURRENTLY and its like, which block nobody."""
    connection.execute("SET lock_timeout = 0")
    for statement in section.statements:
        _execute(connection, migration, statement)
    invalid = connection.execute(
        "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE NOT indisvalid ORDER BY 1"
    ).fetchone()
    if invalid:
        raise MigrationError(
            f"{migration.file}: the index {invalid['name']} is invalid: "
            f"DROP INDEX CONCURRENTLY {invalid['name']}, then run it again"
        )


def _execute(connection: Connection, migration: Migration, statement: Statement) -> None:
    try:
        connection.execute(statement.sql.encode(), prepare=False)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
        raise
    except psycopg.Error as error:
        raise MigrationError(_explained(migration, statement, error)) from error


def _explained(migration: Migration, statement: Statement, error: psycopg.Error) -> str:
    line = statement.line
    if position := error.diag.statement_position:  # in characters, from 1
        line += statement.sql.count("\n", 0, int(position) - 1)
    parts = [
        error.diag.message_primary or str(error),
        error.diag.message_detail,
        error.diag.message_hint and f"hint: {error.diag.message_hint}",
        error.diag.context,
    ]
    return f"{migration.file}:{line}: " + "\n  ".join(part for part in parts if part)


# ---- the session ----


@contextmanager
def _maintenance(connection: Connection, wait: float, owner: str) -> Iterator[None]:
    """Hold the maintenance lock, as the owner of the tables."""
    try:
        maintenance_lock.take(connection, wait)
    except maintenance_lock.BusyError as error:
        raise MigrationError(f"{error}: let it finish and run this again") from error
    try:
        try:
            connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(owner)))
        except psycopg.Error as error:
            raise MigrationError(
                f"{connection.info.user} can't become {owner} ({error.diag.message_primary}): "
                f"make the roles first, with the login that owns the database"
            ) from error
        yield
    finally:
        if not connection.closed:
            connection.execute("RESET ROLE")
            maintenance_lock.release(connection)
