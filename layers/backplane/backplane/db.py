"""The database: one connection a process, transactions bound to an organisation, retries.

Lambda runs one invocation at a time in a process and freezes it in between, so there is no pool:
one connection is kept, checked without a round trip, and replaced when it is dead. No session
state is ever set, so poolers may stand in front.

`run` is the way in for work that may be repeated; `transaction` is one attempt; `call` is one
statement. Errors that pass by themselves leave here as problems.Unavailable, all others as
psycopg's own.
"""

import atexit
import logging
import random
import re
import select
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, Never, TypeAlias, TypeVar, cast
from uuid import UUID

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.rows import DictRow

from backplane import bounded, connect, deadline, failures
from backplane.config import settings
from backplane.deadline import MARGIN, remaining
from backplane.failures import Decision, Verdict
from backplane.problems import Unavailable
from backplane.session import Query, Session

__all__ = [
    "ATTEMPTS",
    "MARGIN",
    "CommitUnknown",
    "Tx",
    "answer",
    "call",
    "connection",
    "containing",
    "enter",
    "remaining",
    "reset",
    "run",
    "set_deadline",
    "transaction",
]

Tx: TypeAlias = psycopg.Connection[DictRow]
T = TypeVar("T")

MIN_BUDGET: Final = 0.05  # seconds; with less it is not worth beginning
LOCK_TIMEOUT: Final = 5.0  # seconds to wait for a row; more would only queue the next ones
IDLE_TIMEOUT: Final = 60.0  # seconds a transaction may be silent, whatever time there is
ATTEMPTS: Final = 6

_logger = logging.getLogger("backplane.db")
_connection: Session | None = None


class _Unreachable(Unavailable):
    """Ours to repeat, unlike an Unavailable that the work itself raises."""


class CommitUnknown(Unavailable):
    """The connection was lost while a commit was on its way: it may or may not have happened.

    Never repeated here. Work with an idempotency key may be repeated by whoever holds the key.
    """

    def __init__(self) -> None:
        super().__init__(
            "The database connection was lost while saving. Repeat the request with the same "
            "Idempotency-Key: it takes effect once.",
            retry_after=1,
        )


def set_deadline(seconds_remaining: float) -> None:
    """Say how long this invocation may still run. The edge calls it first thing, every time.

    What an invocation that was cut off has left open is dropped here.
    """
    deadline.begin(seconds_remaining)
    if _connection is not None and _connection.info.transaction_status is not TransactionStatus.IDLE:
        _drop()


def reset() -> None:
    """Forget the connection and the deadline."""
    _drop()
    deadline.forget()


atexit.register(reset)  # a farewell, where the process is let go by itself


def connection() -> Session:
    """The process's connection, in autocommit, made anew where it has died since.

    Raises Unavailable where the database can't be reached, RuntimeError where the login may not serve.
    """
    global _connection  # noqa: PLW0603
    if _connection is not None and _alive(_connection):
        return _connection
    _drop()
    try:
        made = connect.connect(settings(), kind=Session, timeout=min(connect.CONNECT_TIMEOUT, remaining()))
    except psycopg.OperationalError as error:
        _logger.warning("the database can't be reached: %s", str(error).strip())
        raise _Unreachable("The database can't be reached at the moment. Repeat the request.") from error
    _connection = cast("Session", made)
    return _connection


@contextmanager
def transaction(*, organization_id: UUID | None = None, user_id: UUID | None = None) -> Iterator[Tx]:
    """One transaction, READ COMMITTED, seeing the organisation's rows (system roles: every row).

    Committed at the end, rolled back by any exception. Raises CommitUnknown, Unavailable for what
    passes by itself, psycopg's own errors for the rest. It does not nest: pass the Tx on.
    """
    try:
        with _attempt(organization_id, user_id) as tx:
            yield tx
    except psycopg.Error as error:
        _give_up(error, _decided(error))


def run(work: Callable[[Tx], T], *, organization_id: UUID | None = None, user_id: UUID | None = None) -> T:
    """What `work` returns, run in a transaction and repeated whole where that fails in passing.

    So `work` must have no effect outside the transaction. Raises as `transaction` does.
    """

    def attempt() -> T:
        with _attempt(organization_id, user_id) as tx:
            return work(tx)

    return _repeated(attempt)


def call(
    query: Query,
    params: Mapping[str, Any] | None = None,
    *,
    repeatable: bool = False,
) -> DictRow | None:
    """The first row of `query`'s answer."""
    found = answer(query, params, repeatable=repeatable)
    return found[0] if found else None


def answer(
    query: Query,
    params: Mapping[str, Any] | None = None,
    *,
    repeatable: bool = False,
) -> list[DictRow]:
    """The rows of one statement that commits by itself: one round trip.

    For what needs no transaction and no organisation: security-definer functions and look-ups.
    The server bounds it by the role's statement_timeout. Repeated only where the server said it did
    nothing, or where it is `repeatable`: it changes nothing, or nothing more the second time.
    """

    def attempt() -> list[DictRow]:
        session = _idle_connection()
        try:
            return session.ask(query, params)
        except psycopg.Error as error:
            if failures.is_lost(error) and not repeatable:
                _drop()
                raise CommitUnknown from error
            raise
        except BaseException:  # Ctrl-C, say, while the server is at work
            _roll_back(session)
            raise

    return _repeated(attempt)


def enter(tx: Tx, organization_id: UUID) -> None:
    """Lets the rest of a transaction see another organisation's rows instead.

    Only after it was found that the caller may: see access.py.
    """
    tx.execute(_setting("organization_id", organization_id).encode(), prepare=False)


def containing(text: str) -> str:
    """The ILIKE pattern for what contains a text, in which wildcards mean themselves."""
    return "%" + re.sub(r"([\\%_])", r"\\\1", text) + "%"


# ---- attempts ----


@contextmanager
def _attempt(organization_id: UUID | None, user_id: UUID | None) -> Iterator[Tx]:
    session = _idle_connection()
    try:
        session.command(_begin(organization_id, user_id))
        yield session
    except BaseException:
        _roll_back(session)
        raise
    _commit(session)


def _begin(organization_id: UUID | None, user_id: UUID | None) -> bytes:
    """BEGIN and the transaction's settings as one message: one round trip.

    Literals, because a pooler pins a session that sets them by parameters or outlives the
    transaction with them.
    """
    milliseconds = int(_budget() * 1000)
    parts = [
        "BEGIN ISOLATION LEVEL READ COMMITTED",
        f"SET LOCAL statement_timeout = {milliseconds}",
        f"SET LOCAL lock_timeout = {min(milliseconds, int(LOCK_TIMEOUT * 1000))}",
        # A process that was frozen or lost in the middle keeps its row locks no longer than its time.
        f"SET LOCAL idle_in_transaction_session_timeout = {min(milliseconds, int(IDLE_TIMEOUT * 1000))}",
    ]
    for name, value in (("organization_id", organization_id), ("user_id", user_id)):
        if value is not None:
            parts.append(_setting(name, value))
    return "; ".join(parts).encode()


def _setting(name: str, value: UUID) -> str:
    return f"SET LOCAL app.{name} = '{UUID(str(value))}'"  # nothing but a UUID gets in


def _commit(session: Session) -> None:
    status = session.info.transaction_status
    if status is not TransactionStatus.INTRANS:
        _roll_back(session)
        # COMMIT would answer ROLLBACK without an error, and the work would be lost in silence.
        raise RuntimeError(
            "the transaction failed and its error was swallowed: let it pass, or use a savepoint"
            if status is TransactionStatus.INERROR
            else f"the transaction was ended by someone else (its status is {status.name})"
        )
    if bounded.left() < MIN_BUDGET:  # nobody would be here to hear whether it happened
        _roll_back(session)
        raise Unavailable("The request ran out of time before its work was saved. Repeat it.", retry_after=1)
    try:
        session.command(b"COMMIT")
    except psycopg.Error as error:
        if failures.is_lost(error):
            _drop()
            raise CommitUnknown from error
        _roll_back(session)  # a deferred constraint: the server says that it did not commit
        raise


def _roll_back(session: Session) -> None:
    status = session.info.transaction_status
    if status in {TransactionStatus.INTRANS, TransactionStatus.INERROR}:
        with suppress(psycopg.Error):
            session.command(b"ROLLBACK")
            return
    if status is not TransactionStatus.IDLE:
        _drop()  # lost, or in the middle of a statement: the server rolls back by itself


def _repeated(attempt: Callable[[], T]) -> T:
    for count in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except _Unreachable:
            if not _pause(count):
                raise
        except psycopg.Error as error:
            decision = _decided(error)
            if decision.verdict is Verdict.REFUSE or not _pause(count):
                _give_up(error, decision)
            cause = error.sqlstate or "a lost connection"
            _logger.info("repeating after %s", cause, extra={"attempt": count})
    raise AssertionError("_pause refuses after the last attempt")


def _pause(attempt: int) -> bool:
    """Sleep a random while, longer each time, if there is time and an attempt left."""
    pause = random.uniform(0, min(2.0, 0.05 * 2**attempt))  # noqa: S311  jitter, not a secret
    if attempt >= ATTEMPTS or pause + MIN_BUDGET > remaining():
        return False
    time.sleep(pause)
    return True


def _decided(error: psycopg.Error) -> Decision:
    """What the error means for the work. Raises it where it is the work's own; drops a session of no use."""
    decision = failures.decide(error)
    if decision.verdict is Verdict.RECONNECT or failures.is_lost(error):
        _drop()
    if decision.verdict is Verdict.RAISE:
        raise error
    return decision


def _give_up(error: psycopg.Error, decision: Decision) -> Never:
    _logger.warning("giving up on the database: %s", error.sqlstate or "connection lost", exc_info=error)
    raise Unavailable(
        "The database is too busy at the moment. Repeat the request.", retry_after=decision.retry_after
    ) from error


# ---- the connection ----


def _idle_connection() -> Session:
    _budget()
    session = connection()
    if session.pgconn.transaction_status != TransactionStatus.IDLE:
        raise RuntimeError("a transaction is open already: transactions don't nest, pass the Tx on")
    return session


def _alive(session: Tx) -> bool:
    """Whether the server is still there, without asking it.

    After the server closes, `closed` stays False; but an idle socket has nothing to read unless
    the end has come (or a notice, which is taken in).
    """
    if session.closed:
        return False
    poll = select.poll()
    poll.register(session.fileno(), select.POLLIN)
    for _ in range(3):  # a farewell message, then the end of the stream
        if not poll.poll(0):
            return True
        try:
            session.pgconn.consume_input()
        except psycopg.OperationalError:
            return False
        if session.pgconn.status != ConnStatus.OK:
            return False
    return True


def _drop() -> None:
    global _connection  # noqa: PLW0603
    if _connection is not None:
        _connection.close()
    _connection = None


def _budget() -> float:
    """Seconds the next unit of work may take."""
    if (seconds := remaining()) < MIN_BUDGET:
        raise Unavailable("The request ran out of time before its work began. Repeat it.", retry_after=1)
    return seconds
