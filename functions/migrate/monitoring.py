"""What lets the operations' views (schema ops) see other roles' sessions and statements.

Both are a superuser's to give, or Amazon's master user's. A login that may not goes on without: the
views then show less, and the database report says what is missing and how it is had.
"""

import logging
from collections.abc import Mapping
from typing import Final

import psycopg
from psycopg.rows import DictRow

from backplane import catalogue

# To see all sessions and statements, without a right to read a table or to end a session.
_WANTED: Final[Mapping[str, str]] = {
    "SELECT pg_has_role('backplane_system', 'pg_read_all_stats', 'USAGE') AS there": (
        "GRANT pg_read_all_stats TO backplane_system"
    ),
    f"SELECT EXISTS (SELECT FROM pg_extension WHERE extname = '{catalogue.COUNTING}') AS there": (
        f"CREATE EXTENSION {catalogue.COUNTING} SCHEMA public"
    ),
}

_logger = logging.getLogger("backplane.migrate")


def ensure(connection: psycopg.Connection[DictRow]) -> None:
    """Give what is missing, as far as the connection's login may."""
    for question, statement in _WANTED.items():
        found = connection.execute(question.encode()).fetchone()
        if found and found["there"]:
            continue
        try:
            connection.execute(statement.encode())
        except (
            psycopg.errors.InsufficientPrivilege,
            psycopg.errors.FeatureNotSupported,  # the server has no such extension
            psycopg.errors.UndefinedFile,
        ) as error:
            _logger.info("the database report will show less: %s: %s", statement, error.diag.message_primary)
        except (
            psycopg.errors.DuplicateObject,
            psycopg.errors.UniqueViolation,
            psycopg.errors.InternalError_,  # "tuple concurrently updated"
        ):
            _logger.info("another run has done it at the same time: %s", statement)
