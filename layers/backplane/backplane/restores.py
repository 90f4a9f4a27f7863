"""A backup's way back: read to its end first, then into a database that holds nothing, then compared."""

import os
import select
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any

import psycopg
from psycopg.rows import DictRow

from backplane import archives, contents, pgtools
from backplane.archives import Manifest


class NotEmptyError(RuntimeError):
    """The target database holds something, which a restore would mix with."""


def verify(manifest: Manifest, blocks: Iterator[bytes], *, ends: float) -> None:
    """Read a whole archive without a database: its bytes, its compression, and each of its entries.

    Listing is not enough: pg_restore --list takes an archive that is cut short. Raises archives.ArchiveError,
    pgtools.ToolError, and TimeoutError at `ends` on time.monotonic's clock.
    """
    _feed(manifest, blocks, ["--file=/dev/null"], {}, ends)


def restore(
    manifest: Manifest, blocks: Iterator[bytes], parameters: Mapping[str, Any], *, ends: float
) -> None:
    """Restore into the database of these connection parameters, which must be empty, with its roles made.

    Stops at the first error. Raises as `verify` does; the database then has a part of it.
    """
    conninfo, secret = pgtools.connection(parameters)
    _feed(manifest, blocks, ["--exit-on-error", "--no-password", f"--dbname={conninfo}"], secret, ends)


def compare(connection: psycopg.Connection[DictRow], manifest: Manifest) -> list[str]:
    """Where the connection's database is not what the manifest says, one sentence each."""
    with connection.transaction():
        return contents.differences(manifest, contents.read(connection))


def refuse_unless_empty(connection: psycopg.Connection[DictRow]) -> None:
    """Raises NotEmptyError."""
    found = connection.execute(
        """
        SELECT count(*) AS count, min(format('%s.%s', n.nspname, c.relname)) AS one
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND NOT EXISTS (
              SELECT FROM pg_depend
              WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e'
          )
        """
    ).fetchone()
    if found and found["count"]:
        raise NotEmptyError(
            f"the database {connection.info.dbname} is not empty: it has {found['one']} and "
            f"{found['count'] - 1} more tables, indexes and views"
        )


def _feed(
    manifest: Manifest, blocks: Iterator[bytes], options: list[str], secret: Mapping[str, str], ends: float
) -> None:
    """Run pg_restore on the archive, which comes through its standard input."""
    if manifest.kind != "dump":
        raise archives.ArchiveError(
            f"{manifest.name} is a snapshot of the cluster: it is restored into a new cluster, by RDS"
        )
    command = [pgtools.program("pg_restore"), "--format=custom", *options]
    with pgtools.Tool(command, environment=secret, takes_input=True) as tool:
        try:
            for block in archives.decompress(manifest, blocks):
                _write(tool.stdin, block, ends)
            tool.stdin.close()
        except BrokenPipeError:
            tool.finish(_left(ends))  # what it says of its end is the cause
            raise archives.ArchiveError(f"{manifest.name} goes on after the archive's end") from None
        tool.finish(_left(ends))


def _write(pipe: IO[bytes], block: bytes, ends: float) -> None:
    os.set_blocking(pipe.fileno(), False)
    waiting = select.poll()
    waiting.register(pipe, select.POLLOUT)
    rest = memoryview(block)
    while rest:
        if not waiting.poll(_left(ends) * 1000):
            raise TimeoutError("the time was up while the archive was being restored")
        rest = rest[os.write(pipe.fileno(), rest) :]


def _left(ends: float) -> float:
    return max(0.0, ends - time.monotonic())
