"""The ways to debit through psycopg: the ledger's, and its peers'. A client is a process, as on Lambda."""

import functools
import itertools
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import psycopg
from psycopg.rows import DictRow, dict_row
from tests.databases import Database

from backplane import config, db, ledger

PREPARE = 5  # the template's DATABASE_PREPARE_THRESHOLD
ZIPF = 1.1  # as in the scripts for pgbench,
FEW = 100  # where so many accounts or fewer are debited alike

Session = psycopg.Connection[DictRow]


# ---- a debit of one credit ----


def ledger_debit(_: Session, account: UUID) -> None:
    # As unlike as a UUID: L2's keys are made by the server.
    ledger.debit(account, "ai_text_chat", 1, key=f"{random.getrandbits(128):032x}", actor="bench")


def read_check_write(session: Session, account: UUID) -> None:
    """The template's own deduction: read, check, write the number back, record."""
    session.execute("BEGIN", prepare=False)
    row = session.execute("SELECT * FROM bench.credit_balances WHERE user_id = %s", [account]).fetchone()
    if row is None or row["credits_remaining"] < 1:
        raise RuntimeError("insufficient credits")
    write_back(session, account, row)


def write_back(session: Session, account: UUID, row: DictRow) -> None:
    """One less than was read."""
    session.execute(
        """
        UPDATE bench.credit_balances
        SET credits_remaining = %s, last_synced_at = clock_timestamp()
        WHERE user_id = %s
        RETURNING *
        """,
        [row["credits_remaining"] - 1, account],
    )
    _record(session, account, row["id"])


def guarded_update(session: Session, account: UUID) -> None:
    """The same, corrected: the update itself checks and subtracts."""
    session.execute("BEGIN", prepare=False)
    row = session.execute(
        """
        UPDATE bench.credit_balances
        SET credits_remaining = credits_remaining - 1, last_synced_at = clock_timestamp()
        WHERE user_id = %s AND credits_remaining >= 1
        RETURNING *
        """,
        [account],
    ).fetchone()
    if row is None:
        raise RuntimeError("insufficient credits")
    _record(session, account, row["id"])


def select_for_update(session: Session, account: UUID) -> None:
    """The same, corrected the other way: the row is locked when it is read."""
    session.execute("BEGIN", prepare=False)
    row = session.execute(
        "SELECT * FROM bench.credit_balances WHERE user_id = %s FOR UPDATE", [account]
    ).fetchone()
    if row is None or row["credits_remaining"] < 1:
        raise RuntimeError("insufficient credits")
    write_back(session, account, row)


def _record(session: Session, account: UUID, balance_id: UUID) -> None:
    session.execute(
        """
        INSERT INTO bench.usage_history (user_id, credit_balance_id, operation_type, credits_used)
        VALUES (%s, %s, 'AI_TEXT_CHAT', 1)
        RETURNING *
        """,
        [account, balance_id],
    )
    session.execute("COMMIT", prepare=False)


DEBITS: dict[str, Callable[[Session, UUID], None]] = {
    debit.__name__: debit for debit in (ledger_debit, read_check_write, guarded_update, select_for_update)
}


# ---- the processes ----


@dataclass(frozen=True)
class Task:
    debit: str  # of DEBITS
    contestant: int
    accounts: int
    seconds: float


@dataclass(frozen=True)
class Done:
    debits: int
    seconds: float


class Clients:
    """So many processes, started before anything is connected, that debit when they are told to."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self.processes = []
        for number in range(count):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(target=_serve, args=(theirs, self._pipes, number), daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()  # the end of its tasks
        for process in self.processes:
            process.join(10)
            process.kill()

    def connect(self, database: Database | None) -> None:
        """To another database, or to none: it is dropped then."""
        self._ask(self._pipes, database)

    def run(self, task: Task, clients: int) -> list[Done]:
        return self._ask(self._pipes[:clients], task)

    def _ask(self, pipes: Sequence[Connection], request: object) -> list[Any]:
        for pipe in pipes:
            pipe.send(request)
        answers = [pipe.recv() for pipe in pipes]
        for answer in answers:
            if isinstance(answer, str):
                raise RuntimeError(f"a client failed: {answer}")  # noqa: TRY004  it is a message
        return answers


def _serve(pipe: Connection, inherited: Sequence[Connection], number: int) -> None:
    for other in inherited:
        other.close()  # else the end of the process that gives the tasks would go unnoticed
    random.seed(number)
    session: Session | None = None
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            match request:
                case Task() if session is not None:
                    pipe.send(_work(session, request))
                case database:
                    session = _connect(session, database)
                    pipe.send(None)
        except Exception as error:  # noqa: BLE001  the edge of the process: it is reported
            pipe.send(repr(error))


def _connect(session: Session | None, database: Database | None) -> Session | None:
    if session is not None:
        session.close()
        db.reset()
    if database is None:
        return None
    use(database)
    db.connection()
    return psycopg.connect(database.app, autocommit=True, row_factory=dict_row, prepare_threshold=PREPARE)


def use(database: Database) -> None:
    """backplane.db connects as a function of the template's does."""
    os.environ |= {"DATABASE_URL": database.app, "DATABASE_PREPARE_THRESHOLD": str(PREPARE)}
    config.settings.cache_clear()
    db.reset()


def _work(session: Session, task: Task) -> Done:
    debit = DEBITS[task.debit]
    accounts = chosen(task.contestant, task.accounts)
    began = time.perf_counter()
    until = began + task.seconds
    for count, account in enumerate(itertools.cycle(accounts), 1):
        debit(session, account)
        if (now := time.perf_counter()) >= until:
            return Done(count, now - began)
    raise AssertionError("a cycle never ends")


@functools.cache
def chosen(contestant: int, accounts: int) -> list[UUID]:
    """Whom to debit, one after the other, as the scripts for pgbench choose."""
    skew = ZIPF if accounts > FEW else 0
    weights = list(itertools.accumulate(n**-skew for n in range(1, accounts + 1)))
    ids = [UUID(f"00000000-0000-7000-8{contestant:03x}-{n:012x}") for n in range(1, accounts + 1)]
    return random.choices(ids, cum_weights=weights, k=10_000)  # noqa: S311  not a secret
