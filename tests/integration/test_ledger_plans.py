"""The ledger's functions look their rows up by index, whatever the tables were when a session planned."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.databases import Database
from tests.ledgers import assert_books_balance, make_grant, new_account, rows

from backplane import corrections, db, holds, ledger

GROWN = 2000  # rows that come after a session has planned


def debit(tx: db.Tx, organization_id: UUID) -> UUID:
    return ledger.debit(organization_id, "ai_text_chat", 1, key=str(uuid4()), actor="user:1", tx=tx)[0].id


def hold(tx: db.Tx, organization_id: UUID) -> UUID:
    return holds.hold(organization_id, "ai_text_chat", 2, key=str(uuid4()), actor="user:1", tx=tx)[0].id


def settle(tx: db.Tx, organization_id: UUID) -> None:
    hold_id = hold(tx, organization_id)
    holds.settle(organization_id, hold_id, amount=3, key=str(uuid4()), actor="user:1", tx=tx)


def release(tx: db.Tx, organization_id: UUID) -> None:
    holds.release(organization_id, hold(tx, organization_id), key=str(uuid4()), actor="user:1", tx=tx)


def refund(tx: db.Tx, organization_id: UUID) -> None:
    debit_id = debit(tx, organization_id)
    corrections.refund(organization_id, debit_id, reason="it failed", key=str(uuid4()), actor="key:1", tx=tx)


def adjust(tx: db.Tx, organization_id: UUID) -> None:
    for amount in (3, -2):
        key = str(uuid4())
        corrections.adjust(organization_id, amount, reason="by hand", key=key, actor="user:1", tx=tx)


def grant(tx: db.Tx, organization_id: UUID) -> UUID:
    ends = datetime.now(UTC) + timedelta(days=1)
    given = make_grant(organization_id, 2, source="plan", subscription="sub_1", period_end=ends)
    return ledger.grant(tx, given)[0]


def grant_and_end(tx: db.Tx, organization_id: UUID) -> None:
    grant(tx, organization_id)
    ledger.end_subscription(tx, organization_id, "stripe", "sub_1", actor="stripe")


def claw_back(tx: db.Tx, organization_id: UUID) -> None:
    made, _ = corrections.claw_back(tx, grant(tx, organization_id), key=str(uuid4()), actor="stripe")
    assert made.id is not None
    corrections.restore(tx, made.id, actor="stripe")


def book(tx: db.Tx, organization_id: UUID) -> None:
    """A grant that was over before it came is booked in and out."""
    ledger.grant(tx, make_grant(organization_id, 1, expires_at=datetime.now(UTC)))
    tx.execute("SELECT credits.book_due(%s)", [organization_id])


OPERATIONS = [debit, hold, settle, release, refund, adjust, grant_and_end, claw_back, book]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_session_that_planned_on_tiny_tables_looks_up_by_index_when_they_have_grown(
    system_db: Database, operation: Callable[[db.Tx, UUID], Any]
) -> None:
    organization_id = new_account(system_db, 500)
    for table in ("accounts", "grants", "entries", "holds", "refunds"):
        rows(system_db, f"ALTER TABLE credits.{table} SET (autovacuum_enabled = false)")
        rows(system_db, f"VACUUM ANALYZE credits.{table}")  # known to be tiny: reading it whole is cheapest
    for _ in range(8):  # more than it takes until a statement's plan is kept
        db.run(lambda tx: operation(tx, organization_id))
    grow(system_db, organization_id)

    def watched(tx: db.Tx) -> dict[str, dict[str, int]]:
        operation(tx, organization_id)
        read = tx.execute(
            """
            SELECT relname, coalesce(seq_tup_read, 0) AS whole, coalesce(idx_tup_fetch, 0) AS looked_up
            FROM pg_stat_xact_all_tables
            WHERE schemaname = 'credits'
            """
        ).fetchall()
        return {row["relname"]: row for row in read}

    read = db.run(watched)
    assert {name: row["whole"] for name, row in read.items() if row["whole"]} == {}
    # By the key or the id, and not by the organisation.
    assert {name: row["looked_up"] for name, row in read.items() if row["looked_up"] >= GROWN} == {}
    assert_books_balance(system_db, organization_id)


def grow(database: Database, organization_id: UUID) -> None:
    """Many more entries and closed holds of the account, of nothing, each under a key of its own."""
    rows(
        database,
        """
        WITH grown AS (
            UPDATE credits.accounts
            SET version = version + %s
            WHERE organization_id = %s
            RETURNING *
        )
        INSERT INTO credits.entries
            (organization_id, version, kind, amount, available_after, held_after, debt_after,
             allocations, idempotency_key, request_hash, actor)
        SELECT g.organization_id, g.version - n, 'debit', 0, g.available, g.held, g.debt,
               '{}', gen_random_uuid()::text, 'hash', 'user:1'
        FROM grown AS g
        CROSS JOIN generate_series(0, %s - 1) AS n
        """,
        GROWN,
        organization_id,
        GROWN,
    )
    rows(
        database,
        """
        INSERT INTO credits.holds
            (organization_id, operation, quantity, unit_cost, amount, allocations, state, expires_at,
             idempotency_key, request_hash, actor, closed_at)
        SELECT %s, 'ai_text_chat', 1, 0, 0, '{}', 'released', clock_timestamp(),
               gen_random_uuid()::text, 'hash', 'user:1', clock_timestamp()
        FROM generate_series(1, %s)
        """,
        organization_id,
        GROWN,
    )


def test_every_function_that_changes_credits_and_may_be_called_plans_by_index(database: Database) -> None:
    """CREATE OR REPLACE forgets a function's settings where they are not said again."""
    found = rows(
        database,
        """
        SELECT proname, proconfig @> '{enable_seqscan=off}' AS by_index
        FROM pg_proc
        WHERE pronamespace = 'credits'::regnamespace
          AND provolatile = 'v'
          AND prosecdef
        """,
    )
    otherwise = {row["proname"] for row in found if not row["by_index"]}
    assert otherwise == {"set_low_balance_threshold", "erase_details"}, "which plan anew with each call"
