"""`make restore FROM=… TO=…`: a backup into a database that is empty or not there yet, and compared.

With REPLACE=1 a database that holds something is replaced: the backup goes into a new one beside it, and
only when that is as it should be do the two change names. The old one stays, under another name.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
from botocore.exceptions import BotoCoreError, ClientError
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row

from backplane import pgtools, restores, roles
from backplane.archives import ArchiveError
from local import backup_place, checkout, running
from local.backup_place import Backup
from local.pgtools import ensure
from local.progress import Bar
from local.refusal import Refusal, exits

MAINTENANCE = "postgres"  # the database that every server has
HOURS = 24 * 3600.0  # seconds: a person watches, and can stop it

Connection = psycopg.Connection[DictRow]


@dataclass(frozen=True)
class Target:
    server: dict[str, Any]  # libpq's parameters of a login that may create databases and roles
    name: str  # of the database

    def connect(self, database: str) -> Connection:
        return psycopg.connect(autocommit=True, row_factory=dict_row, **{**self.server, "dbname": database})


def main() -> int:
    parser = argparse.ArgumentParser(prog="make restore", description=__doc__)
    parser.add_argument("source", help="latest, a backup's name, s3://bucket/key, or a file")
    parser.add_argument("target", help="a database's URL, or its name on the running stack's server")
    parser.add_argument("--replace", action="store_true")
    arguments = parser.parse_args()
    if not arguments.target:
        raise Refusal(
            "where to? `make restore FROM=latest TO=copy` restores into a new database `copy` of the running "
            "stack's server; TO= also takes a URL. docs/runbooks/restore.md goes through it."
        )
    target = _target(arguments.target)
    os.environ.setdefault("PG_TOOLS", str(ensure(checkout.data().pgtools)))
    try:
        restore(backup_place.find(arguments.source), target, replace=arguments.replace)
    except (ArchiveError, pgtools.ToolError, roles.RolesError, TimeoutError) as error:
        raise Refusal(f"the backup was not restored: {error}") from None
    except (BotoCoreError, ClientError, psycopg.Error) as error:
        raise Refusal(f"the backup was not restored: {str(error).strip()}") from None
    return 0


def restore(backup: Backup, target: Target, *, replace: bool) -> None:
    """Read the backup to its end, restore it, compare, and say where it is. Raises Refusal and the causes."""
    holds_something = _holds_something(target)
    if holds_something and not replace:
        raise Refusal(
            f"the database {target.name} is not empty, and nothing of it was touched. Restore into another "
            f"one (TO=…), or give REPLACE=1: the backup is restored beside it, and takes its name once it is "
            f"whole."
        )
    _say(f"{backup.manifest.name}: {backup.manifest.database}, {sum(backup.manifest.rows.values()):,} rows.")
    _pass(backup, "Checking ", lambda blocks: restores.verify(backup.manifest, blocks, ends=_ends()))
    beside = f"{target.name}_restored_{datetime.now(UTC):%Y%m%d%H%M%S}" if holds_something else target.name
    made = _make(target, beside)
    try:
        found = _fill(backup, target, beside)
    except BaseException:
        if made:
            _drop(target, beside)
        else:
            _say(f"The database {beside}, which was empty, may hold a part of the backup: drop it.")
        raise
    if found:
        for line in found:
            _say(f"  {line}")
        raise Refusal(f"{beside} is not what the manifest says (above). It stays, for you to look at.")
    if holds_something:
        _exchange(target, beside)
    _say(f"Restored into {target.name}, and it is what the manifest says. Invoke `migrate` now: the roles'")
    _say("passwords are not in a backup, nor are migrations that are newer than it.")


def _fill(backup: Backup, target: Target, name: str) -> list[str]:
    """What differs in the database that it was restored into."""
    with target.connect(name) as connection:
        roles.ensure_roles(connection, {})
    parameters = {**target.server, "dbname": name}
    _pass(
        backup,
        "Restoring",
        lambda blocks: restores.restore(backup.manifest, blocks, parameters, ends=_ends()),
    )
    _say("Comparing.")
    with target.connect(name) as connection:
        return restores.compare(connection, backup.manifest)


def _pass(backup: Backup, what: str, work: Any) -> None:
    bar = Bar(what)
    try:
        work(backup.read(lambda done: bar.show(done, backup.manifest.bytes)))
    finally:
        bar.end()


# ---- the target ----


def _target(given: str) -> Target:
    """Raises Refusal."""
    if "://" not in given and "=" not in given:
        return Target(dict(conninfo_to_dict(running.find().admin_database_url)), given)
    try:
        server = dict(conninfo_to_dict(given))
    except psycopg.ProgrammingError as error:
        raise Refusal(f"TO is not a database's URL: {str(error).strip()}") from None
    if not server.get("dbname"):
        raise Refusal("TO names no database: end the URL with /its_name.")
    return Target(server, str(server["dbname"]))


def _holds_something(target: Target) -> bool:
    """Whether it is there and not empty. Raises Refusal where the server can't be reached."""
    if not _exists(target, target.name):
        return False
    with target.connect(target.name) as connection:
        try:
            restores.refuse_unless_empty(connection)
        except restores.NotEmptyError:
            return True
    return False


def _exists(target: Target, name: str) -> bool:
    with target.connect(MAINTENANCE) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name])
        return found.fetchone() is not None


def _make(target: Target, name: str) -> bool:
    """Whether it had to be made."""
    if _exists(target, name):
        return False
    with target.connect(MAINTENANCE) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(name)))
    return True


def _drop(target: Target, name: str) -> None:
    with target.connect(MAINTENANCE) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _exchange(target: Target, beside: str) -> None:
    """The new one takes the name, in one transaction; sessions on the old one are ended, or none could."""
    old = f"{target.name}_before_{datetime.now(UTC):%Y%m%d%H%M%S}"
    rename = sql.SQL("ALTER DATABASE {} RENAME TO {}")
    with target.connect(MAINTENANCE) as connection:
        # Nobody comes back between the two steps: the door is shut first.
        shut = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        connection.execute(shut.format(sql.Identifier(target.name), sql.SQL("false")))
        try:
            connection.execute(
                """
                SELECT pg_terminate_backend(pid, 5000)
                FROM pg_stat_activity
                WHERE datname = %s AND pid <> pg_backend_pid()
                """,
                [target.name],
            )
            with connection.transaction():
                connection.execute(rename.format(sql.Identifier(target.name), sql.Identifier(old)))
                connection.execute(rename.format(sql.Identifier(beside), sql.Identifier(target.name)))
        except BaseException:
            connection.execute(shut.format(sql.Identifier(target.name), sql.SQL("true")))
            _say(f"The restored database is whole, and called {beside}; {target.name} is as it was.")
            raise
        connection.execute(shut.format(sql.Identifier(old), sql.SQL("true")))
    _say(f"What was there before is now called {old}. Drop it when you are sure.")


def _ends() -> float:
    return time.monotonic() + HOURS


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    exits(main)
