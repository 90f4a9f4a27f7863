"""Debits in the orders of statements that look right and are not, beside the product's, before one judge.

Two sessions are brought to the same account's lock and let go. What they were told is then compared
with the books: the judge must find the fault of each popular order, and none in the product's.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import UUID

import psycopg
import pytest
from psycopg.rows import DictRow
from tests.databases import Database, await_waiting
from tests.ledgers import assert_books_balance, entries, grants, new_account, rows

from backplane import db, ledger
from backplane.problems import InsufficientCredits

Spend = Callable[[db.Tx, UUID, str], str]  # account, key: what the caller is told

# A copy of the ledger's tables with what a debit of one credit needs of them.
TABLES = """
    CREATE SCHEMA toy;
    CREATE TABLE toy.accounts (id uuid PRIMARY KEY, available bigint NOT NULL CHECK (available >= 0));
    CREATE TABLE toy.grants (
        account_id uuid NOT NULL REFERENCES toy.accounts (id),
        number bigint NOT NULL, -- burns in this order
        remaining bigint NOT NULL CHECK (remaining >= 0),
        PRIMARY KEY (account_id, number)
    );
    CREATE TABLE toy.entries (
        account_id uuid NOT NULL REFERENCES toy.accounts (id),
        idempotency_key text NOT NULL,
        amount bigint NOT NULL,
        PRIMARY KEY (account_id, idempotency_key)
    );
"""


# ---- the orders ----


def read_check_write(tx: db.Tx, account: UUID, key: str) -> str:
    """The balance is read, checked by the program, and written back as a number."""
    with tx.transaction():
        row = tx.execute("SELECT available FROM toy.accounts WHERE id = %s", [account]).fetchone()
        assert row is not None
        if row["available"] < 1:
            return "insufficient"
        left = row["available"] - 1
        tx.execute("UPDATE toy.accounts SET available = %s WHERE id = %s", [left, account])
        tx.execute("INSERT INTO toy.entries VALUES (%s, %s, -1)", [account, key])
    return "debited"


def update_unless_the_key_exists(tx: db.Tx, account: UUID, key: str) -> str:
    """The update looks for the key itself, and a key that is there when it is written is no error."""
    with tx.transaction():
        updated = tx.execute(
            """
            UPDATE toy.accounts AS a
            SET available = a.available - 1
            WHERE a.id = %(account)s
              AND a.available >= 1
              AND NOT EXISTS (
                  SELECT 1 FROM toy.entries WHERE account_id = %(account)s AND idempotency_key = %(key)s)
            """,
            {"account": account, "key": key},
        )
        if not updated.rowcount:
            return "insufficient"
        inserted = tx.execute(
            "INSERT INTO toy.entries VALUES (%s, %s, -1) ON CONFLICT DO NOTHING", [account, key]
        )
    return "debited" if inserted.rowcount else "replayed"


def key_first(tx: db.Tx, account: UUID, key: str) -> str:
    """The key is taken before the credits, whose only test is the update's WHERE."""
    with tx.transaction():
        inserted = tx.execute(
            "INSERT INTO toy.entries VALUES (%s, %s, -1) ON CONFLICT DO NOTHING", [account, key]
        )
        if not inserted.rowcount:
            return "replayed"
        tx.execute(
            "UPDATE toy.accounts SET available = available - 1 WHERE id = %s AND available >= 1", [account]
        )
    return "debited"


def burn_in_one_statement(tx: db.Tx, account: UUID, key: str) -> str:
    """Balance, grants and entry in one statement, and so by one snapshot, from before the wait."""
    try:
        booked = tx.execute(
            """
            WITH taken AS (
                UPDATE toy.accounts SET available = available - 1
                WHERE id = %(account)s AND available >= 1
                RETURNING id
            ), burnt AS (
                UPDATE toy.grants AS g SET remaining = g.remaining - part.amount
                FROM taken, (
                    SELECT number,
                           least(remaining, greatest(
                               1 - (sum(remaining) OVER (ORDER BY number) - remaining), 0)) AS amount
                    FROM toy.grants
                    WHERE account_id = %(account)s AND remaining > 0
                ) AS part
                WHERE g.account_id = taken.id AND g.number = part.number AND part.amount > 0
            )
            INSERT INTO toy.entries SELECT id, %(key)s, -1 FROM taken
            """,
            {"account": account, "key": key},
        )
    except psycopg.errors.CheckViolation:
        return "failed"
    return "debited" if booked.rowcount else "insufficient"


def the_product(tx: db.Tx, account: UUID, key: str) -> str:
    """As ledger.debit does on its own connection: a key that came during the wait is asked for again."""
    try:
        made = _debit(tx, account, key)
    except psycopg.errors.UniqueViolation:
        made = _debit(tx, account, key)
    return made


def _debit(tx: db.Tx, account: UUID, key: str) -> str:
    try:
        _, replayed = ledger.debit(account, "ai_text_chat", 1, key=key, actor="user:1", tx=tx)
    except InsufficientCredits:
        return "insufficient"
    return "replayed" if replayed else "debited"


# ---- the judge ----


@dataclass(frozen=True)
class Books:
    available: int
    granted: int | None  # what the grants still hold; None: they are not burned
    entries: Mapping[str, int]  # the change of each key


def faults(opening: int, books: Books, told: Sequence[tuple[str, str]]) -> set[str]:
    """What does not add up: the books with themselves, or with what each key's caller was told."""
    paid = {key for key, answer in told if answer in {"debited", "replayed"}}
    refused = {key for key, _ in told} - paid
    debited = Counter(key for key, answer in told if answer == "debited")
    found = {
        "the balance is not the sum of the entries": opening + sum(books.entries.values()) != books.available,
        "the balance is not what the grants hold": books.granted not in {books.available, None},
        "more was spent than there was": opening + sum(books.entries.values()) < 0,
        "a key was debited twice": any(count > 1 for count in debited.values()),
        "what was acknowledged is not what is booked": paid != books.entries.keys(),
        "a debit was refused that was paid for": bool(refused) and books.available > 0,
    }
    return {fault for fault, is_so in found.items() if is_so}


# ---- the trial ----


@dataclass(frozen=True)
class Case:
    """Two requests that meet at an account."""

    packs: tuple[int, ...]
    keys: tuple[str, str]


ONE_KEY_TWICE = Case((10,), ("key-1", "key-1"))
THE_LAST_CREDIT_UNDER_ONE_KEY = Case((1,), ("key-1", "key-1"))
THE_LAST_CREDIT = Case((1,), ("key-1", "key-2"))
ENOUGH_FOR_BOTH = Case((10,), ("key-1", "key-2"))
A_CREDIT_IN_EACH_OF_TWO_GRANTS = Case((1, 1), ("key-1", "key-2"))


@pytest.fixture
def toys(database: Database) -> Iterator[psycopg.Connection[DictRow]]:
    """The owner's connection to a database with the copy of the tables."""
    with database.connect() as owner:
        owner.execute(TABLES.encode())
        yield owner


def meet(database: Database, lock: str, account: UUID, spend: Spend, keys: tuple[str, str]) -> list[str]:
    """Lets two sessions begin a debit and come to wait for the account's row; then lets both go on."""
    with ExitStack() as stack:
        watcher, owner, *sessions = (stack.enter_context(database.connect()) for _ in range(4))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        with owner.transaction():
            owner.execute(lock.encode(), [account])
            told = [
                pool.submit(spend, session, account, key) for session, key in zip(sessions, keys, strict=True)
            ]
            await_waiting(watcher, 2)
        return [answer.result(timeout=60) for answer in told]


def judge_toy(database: Database, owner: psycopg.Connection[DictRow], case: Case, spend: Spend) -> set[str]:
    account = UUID(int=1)
    owner.execute("INSERT INTO toy.accounts VALUES (%s, %s)", [account, sum(case.packs)])
    for number, amount in enumerate(case.packs):
        owner.execute("INSERT INTO toy.grants VALUES (%s, %s, %s)", [account, number, amount])
    told = meet(database, "SELECT 1 FROM toy.accounts WHERE id = %s FOR UPDATE", account, spend, case.keys)
    held = rows(database, "SELECT sum(remaining)::bigint AS n FROM toy.grants")[0]["n"]
    books = Books(
        available=rows(database, "SELECT available FROM toy.accounts")[0]["available"],
        granted=held if spend is burn_in_one_statement else None,
        entries={
            row["idempotency_key"]: row["amount"] for row in rows(database, "SELECT * FROM toy.entries")
        },
    )
    return faults(sum(case.packs), books, list(zip(case.keys, told, strict=True)))


@pytest.mark.parametrize(
    ("spend", "case", "found"),
    [
        (
            read_check_write,
            ENOUGH_FOR_BOTH,
            {"the balance is not the sum of the entries"},
        ),
        (
            read_check_write,
            THE_LAST_CREDIT,
            {"the balance is not the sum of the entries", "more was spent than there was"},
        ),
        (update_unless_the_key_exists, ONE_KEY_TWICE, {"the balance is not the sum of the entries"}),
        (
            key_first,
            THE_LAST_CREDIT,
            {"the balance is not the sum of the entries", "more was spent than there was"},
        ),
        (burn_in_one_statement, A_CREDIT_IN_EACH_OF_TWO_GRANTS, {"a debit was refused that was paid for"}),
    ],
)
def test_the_fault_of_each_popular_order_is_found(
    database: Database, toys: psycopg.Connection[DictRow], spend: Spend, case: Case, found: set[str]
) -> None:
    assert judge_toy(database, toys, case, spend) == found


@pytest.mark.parametrize(
    "case",
    [
        ONE_KEY_TWICE,
        THE_LAST_CREDIT_UNDER_ONE_KEY,
        THE_LAST_CREDIT,
        ENOUGH_FOR_BOTH,
        A_CREDIT_IN_EACH_OF_TWO_GRANTS,
    ],
)
def test_no_fault_is_found_in_the_products_order(database: Database, case: Case) -> None:
    account = new_account(database, *case.packs)
    lock = "SELECT 1 FROM credits.accounts WHERE organization_id = %s FOR UPDATE"
    told = meet(database, lock, account, the_product, case.keys)
    books = Books(
        available=rows(database, "SELECT available FROM credits.accounts")[0]["available"],
        granted=sum(grant["remaining"] for grant in grants(database, account)),
        entries={
            entry["idempotency_key"]: entry["amount"]
            for entry in entries(database, account)
            if entry["kind"] == "debit"
        },
    )
    assert faults(sum(case.packs), books, list(zip(case.keys, told, strict=True))) == set()
    assert_books_balance(database, account)
