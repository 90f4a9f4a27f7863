"""Deaths at a chosen statement: of the session, and of the process with it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.databases import Database

from backplane import db
from backplane.slow_log import TimedCursor


class Killed(BaseException):
    """The process is gone: nothing of ours runs any more."""


@contextmanager
def at_statement(number: int, strike: Callable[[], None], patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Strikes before the n-th statement of what runs inside. Yields the statements."""
    said: list[str] = []
    execute = TimedCursor.execute

    def counted(self: TimedCursor, query: Any, params: Any = None, **options: Any) -> TimedCursor:
        said.append(str(query))
        if len(said) == number:
            strike()
        return execute(self, query, params, **options)

    with patch.context() as patched:
        patched.setattr(TimedCursor, "execute", counted)
        yield said


def end_the_session(database: Database) -> None:
    pid = db.connection().info.backend_pid
    with database.connect() as other:
        other.execute("SELECT pg_terminate_backend(%s, 60000)", [pid])
