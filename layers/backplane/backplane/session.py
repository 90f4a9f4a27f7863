"""A connection that asks single statements over psycopg's lower half: libpq's calls, psycopg's generators and
adapters, no cursor.

A cursor is ready for all that might be asked of it, which costs a client more processor time than libpq
does. What every request asks goes without one: docs/decisions/statements.md has the figures.
"""

import functools
import hashlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from psycopg import abc, adapt, errors, generators, sql, waiting
from psycopg._preparing import Prepare, PrepareManager
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult
from psycopg.rows import DictRow

from backplane import bounded, slow_log
from backplane.bounded import BoundedConnection

MOST: Final = 100  # statements that are kept, and prepared; the code has fewer
_PARAMETER: Final = re.compile(rb"%(?:\((\w+)\)s|%)")

Query = str | bytes | sql.Composable
Types = tuple[int, ...]  # of the parameters, as OIDs


@dataclass(slots=True)
class _Prepared:
    name: bytes
    columns: list[str] | None = (
        None  # once it was answered; the server refuses to run it where they have changed
    )


@dataclass(slots=True)
class _Statement:
    """One text, with what psycopg has found out about its parameters and its columns."""

    text: bytes
    names: tuple[str, ...]
    adapted: abc.Transformer
    formats: list[adapt.PyFormat]
    uses: dict[Types, int] = field(default_factory=dict)
    prepared: dict[Types, _Prepared] = field(default_factory=dict)


class _ByContent(PrepareManager):
    """What cursors prepare, which psycopg would number, under names that say what it is: see `_name`."""

    def get(self, query: Any, prepare: bool | None = None) -> tuple[Prepare, bytes]:
        verdict, name = super().get(query, prepare)
        return verdict, _name(b"_pg3_", *self.key(query)) if verdict is Prepare.SHOULD else name


class Session(BoundedConnection):
    """What it is asked is prepared once it has come as often as its `prepare_threshold` says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._prepared = _ByContent()
        self._statements: dict[tuple[bytes, bool], _Statement] = {}
        self._names = 0

    def ask(self, query: Query, params: Mapping[str, Any] | None = None) -> list[DictRow]:
        """The rows of a statement's answer. `params` by name, as `%(name)s`.

        Raises KeyError where one is missing, otherwise what a cursor raises.
        """
        began = time.monotonic()
        try:
            key = _bytes(query), params is not None
            statement = self._statements.get(key) or self._new(*key)
            return self._ask(statement, [] if params is None else [params[name] for name in statement.names])
        finally:
            slow_log.log(query, time.monotonic() - began)

    def command(self, text: bytes) -> None:
        """Statements that answer nothing, several with semicolons between them, as one message."""
        began = time.monotonic()
        try:
            self.pgconn.send_query(text)
            self._result()
        finally:
            slow_log.log(text, time.monotonic() - began)

    def _new(self, text: bytes, with_params: bool) -> _Statement:
        numbered, names = _numbered(text) if with_params else (text, ())
        made = _Statement(numbered, names, adapt.Transformer(self), [adapt.PyFormat.AUTO] * len(names))
        if len(self._statements) < MOST:
            self._statements[text, with_params] = made
        return made

    def _ask(self, statement: _Statement, params: list[Any]) -> list[DictRow]:
        adapted = statement.adapted
        values = adapted.dump_sequence(params, statement.formats)
        types = adapted.types or ()
        prepared = statement.prepared.get(types)
        if prepared is None and self._is_due(statement, types):
            prepared = self._prepare(statement, types)
        if prepared is None:
            self.pgconn.send_query_params(statement.text, values, types, adapted.formats)
        else:
            self.pgconn.send_query_prepared(prepared.name, values, adapted.formats)
        result = self._result()
        adapted.set_pgresult(result)
        columns = (prepared and prepared.columns) or _columns(result)
        if prepared is not None:
            prepared.columns = columns
        return adapted.load_rows(0, result.ntuples, lambda row: dict(zip(columns, row, strict=True)))

    def _is_due(self, statement: _Statement, types: Types) -> bool:
        threshold = self.prepare_threshold
        if threshold is None or self._names == MOST:
            return False
        uses = statement.uses[types] = statement.uses.get(types, 0) + 1
        return uses > threshold

    def _prepare(self, statement: _Statement, types: Types) -> _Prepared:
        self._names += 1
        name = _name(b"backplane_", statement.text, types)
        self.pgconn.send_prepare(name, statement.text, types)
        self._result()
        made = statement.prepared[types] = _Prepared(name)
        return made

    def _result(self) -> PGresult:
        """The last result of what was sent, or the error that took its place."""
        # Not self.wait, which stops the server's work on Ctrl-C: db.py drops a session that is not idle.
        results: list[PGresult] = waiting.wait(
            generators.execute(self.pgconn), self.pgconn.socket, bounded.INTERVAL, bounded.left()
        )
        if results[-1].status == ExecStatus.FATAL_ERROR:
            raise errors.error_from_result(results[-1])
        return results[-1]


def _name(prefix: bytes, text: bytes, types: Types) -> bytes:
    """The same name is the same statement, whoever prepared it.

    A pooler that does not know prepared statements gives us a server connection on which another client has
    prepared his: numbered, we would run his third for ours. The prefix keeps a cursor's apart from ours, for
    a session would prepare a name twice.
    """
    return prefix + hashlib.sha256(b"%b %r" % (text, types)).hexdigest()[:32].encode()


@functools.cache
def _numbered(text: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The text with $1, $2 … for its named parameters, and their names in that order."""
    numbers: dict[bytes, int] = {}

    def number(found: re.Match[bytes]) -> bytes:
        name: bytes | None = found[1]
        return b"%" if name is None else b"$%d" % numbers.setdefault(name, len(numbers) + 1)

    return _PARAMETER.sub(number, text), tuple(name.decode() for name in numbers)


def _columns(result: PGresult) -> list[str]:
    names = (result.fname(number) for number in range(result.nfields))
    return [name.decode() for name in names if name is not None]


def _bytes(query: Query) -> bytes:
    match query:
        case bytes():
            return query
        case str():
            return query.encode()
        case _:
            return query.as_bytes(None)
