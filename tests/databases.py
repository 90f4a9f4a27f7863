"""Databases to test on: made, dropped, and seen as each of Backplane's roles sees them."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from psycopg.rows import DictRow, dict_row

from backplane import config, db

ROLES = ("backplane_app", "backplane_system", "backplane_backup")


@dataclass(frozen=True)
class Database:
    """One database by the URL of each role; `owner` is the login that migrates."""

    name: str
    owner: str
    app: str
    system: str
    backup: str

    def url(self, role: str) -> str:
        return {
            "owner": self.owner,
            "backplane_app": self.app,
            "backplane_system": self.system,
            "backplane_backup": self.backup,
        }[role]

    def connect(self, role: str = "owner") -> psycopg.Connection[DictRow]:
        """A connection of its own, in autocommit, rows as dicts. Close it (`with` does)."""
        return psycopg.connect(self.url(role), autocommit=True, row_factory=dict_row)

    @contextmanager
    def as_role(self, role: str) -> Iterator["Database"]:
        """`config.settings()` and `backplane.db` as a function that connects as this role has them."""
        before = os.environ.get("DATABASE_URL")
        _settle(self.url(role))
        try:
            yield self
        finally:
            _settle(before)


def _settle(url: str | None) -> None:
    if url is None:
        os.environ.pop("DATABASE_URL", None)
    else:
        os.environ["DATABASE_URL"] = url
    config.settings.cache_clear()
    db.reset()


def await_waiting(watcher: psycopg.Connection[DictRow], count: int) -> None:
    """Until so many sessions wait for a row."""
    for _ in range(1000):
        row = watcher.execute(
            """
            SELECT count(*) AS n
            FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'
            """
        ).fetchone()
        if row is not None and row["n"] == count:
            return
        time.sleep(0.01)
    raise AssertionError(f"{count} sessions must wait")


_kept: dict[str, psycopg.Connection] = {}


@contextmanager
def one_connection(server: str) -> Iterator[None]:
    """Meanwhile databases are made and dropped there over one connection, not over two of each one's own."""
    with psycopg.connect(server, autocommit=True) as connection:
        _kept[server] = connection
        try:
            yield
        finally:
            del _kept[server]


@contextmanager
def _connection(server: str) -> Iterator[psycopg.Connection]:
    kept = _kept.get(server)
    if kept and not kept.closed:
        yield kept
    else:
        with psycopg.connect(server, autocommit=True) as own:
            yield own


def create_database(server: str, name: str, template: str = "template0") -> None:
    with _connection(server) as connection:
        connection.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )


def drop_database(server: str, name: str) -> None:
    with _connection(server) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def on(server: str, database: str, *, user: str | None = None, password: str | None = None) -> str:
    """The server's URL with another database, and another login where one is given."""
    parts = urlsplit(server)
    place = parts.netloc.rpartition("@")[2]
    login = f"{user}:{password}@" if user else parts.netloc.removesuffix(place)
    return urlunsplit(parts._replace(netloc=f"{login}{place}", path=f"/{database}"))
