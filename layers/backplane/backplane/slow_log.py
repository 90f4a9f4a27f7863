"""Statements in the log with their duration: those slower than a second, or all at DEBUG."""

import logging
import time
from typing import Any, Final, Self

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

SLOW: Final = 1.0  # seconds

_logger = logging.getLogger("backplane.db")


class TimedCursor(psycopg.Cursor[DictRow]):
    """Logs a statement with its text and never its parameters, which are people's data."""

    def execute(self, query: Any, params: Any = None, **options: Any) -> Self:
        began = time.monotonic()
        try:
            return super().execute(query, params, **options)
        finally:
            log(query, time.monotonic() - began)

    def executemany(self, query: Any, params_seq: Any, **options: Any) -> None:
        began = time.monotonic()
        try:
            super().executemany(query, params_seq, **options)
        finally:
            log(query, time.monotonic() - began)


def log(query: Any, seconds: float) -> None:
    if seconds > SLOW:
        _logger.warning("slow statement", extra={"seconds": round(seconds, 3), "sql": _text(query)})
    elif _logger.isEnabledFor(logging.DEBUG):
        _logger.debug("statement", extra={"seconds": round(seconds, 6), "sql": _text(query)})


def _text(query: Any) -> str:
    """The statement without values: composed literals are left out too."""
    match query:
        case str():
            return query
        case bytes():
            return query.decode(errors="replace")
        case sql.Composed():
            return "".join(_text(part) for part in query)
        case sql.SQL() | sql.Identifier() | sql.Placeholder():
            return query.as_string(None)
        case _:
            return "?"
