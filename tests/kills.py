"""Deaths at a chosen statement, of the session and of the process with it; and deaths amid a crowd."""

import random
import threading
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
from tests.databases import Database
from tests.overheard import hearing

from backplane import db


class Killed(BaseException):
    """The process is gone: nothing of ours runs any more."""


@contextmanager
def at_statement(number: int, strike: Callable[[], None]) -> Iterator[list[str]]:
    """Strikes before the n-th statement of what runs inside. Yields the statements."""
    said: list[str] = []

    def counted(query: Any, _: Any) -> None:
        said.append(query.decode() if isinstance(query, bytes) else str(query))
        if len(said) == number:
            strike()

    with hearing(counted):
        yield said


def end_the_session(database: Database) -> None:
    pid = db.connection().info.backend_pid
    with database.connect() as other:
        other.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])


def amid(database: Database, role: str, done: Sized, over: threading.Event, luck: random.Random) -> int:
    """Ends one of the role's sessions, at random, each time a few more things are done, until it is over.

    Answers how many. By what is done and not by the clock, so that a slow machine has no more to repeat.
    """
    killed = 0
    with database.connect() as killer:
        while not over.is_set():
            enough = len(done) + luck.randint(1, 8)
            while len(done) < enough and not over.wait(0.001):
                pass
            over.wait(luck.uniform(0, 0.003))
            killed += killer.execute(
                """
                SELECT pg_terminate_backend(pid)
                FROM (
                    SELECT pid
                    FROM pg_stat_activity
                    WHERE datname = current_database() AND usename = %s
                    ORDER BY random()
                    LIMIT 1
                ) AS victim
                """,
                [role],
            ).rowcount
    return killed


def until_through(database: Database, organization_id: UUID, work: Any) -> int:
    """Runs `work(tx)` again and again, its session killed before the first statement, the second …, until it
    gets through. Answers after how many.
    """
    for allowed in range(1, 100):
        with database.connect("backplane_app") as connection:
            left = iter(range(allowed))
            execute = connection.execute

            def dying(*args: Any, left: Any = left, execute: Any = execute, **kwargs: Any) -> Any:
                if next(left, None) is None:
                    raise psycopg.OperationalError("killed")
                return execute(*args, **kwargs)

            execute("BEGIN")
            execute(f"SET LOCAL app.organization_id = '{organization_id}'".encode())
            connection.execute = dying  # type: ignore[method-assign]
            try:
                work(connection)
            except psycopg.OperationalError:
                connection.close()
                continue
            execute("COMMIT")
            return allowed
    raise AssertionError("it must get through in the end")
