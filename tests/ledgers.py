"""Accounts, grants and debits for tests, and the rules that their books must keep.

`give` and `debit` go through the layer, whose connection must be backplane_system's (system_db);
what looks behind it is the owner's.
"""

import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import DictRow
from tests.databases import Database

from backplane import db, holds, ledger

_numbers = itertools.count(1)


class Owned(Protocol):
    """What gives the owner's connection: a Database, or a Kept one where there is much to look at."""

    def connect(self) -> AbstractContextManager[psycopg.Connection[DictRow]]: ...


@dataclass
class Kept:
    connection: psycopg.Connection[DictRow]

    @contextmanager
    def connect(self) -> Iterator[psycopg.Connection[DictRow]]:
        yield self.connection


def rows(database: Owned, query: str, *params: Any) -> list[dict[str, Any]]:
    """What stands behind row-level security."""
    with database.connect() as connection:
        cursor = connection.execute(query.encode(), params)
        return cursor.fetchall() if cursor.description else []


def new_account(database: Database, *amounts: int, debt: int = 0) -> UUID:
    """An organisation with its account, a pack of each amount, and what it owes."""
    organization_id = uuid4()
    rows(database, "INSERT INTO tenancy.organizations (id, name) VALUES (%s, 'Acme')", organization_id)
    rows(
        database,
        "INSERT INTO credits.accounts (organization_id, debt, version) VALUES (%s, %s, %s)",
        organization_id,
        debt,
        int(debt > 0),
    )
    if debt:
        rows(
            database,
            """
            INSERT INTO credits.entries
                (organization_id, version, kind, amount, available_after, held_after, debt_after, actor)
            VALUES (%s, 1, 'claw_back', %s, 0, 0, %s, 'stripe')
            """,
            organization_id,
            -debt,
            debt,
        )
    if amounts:
        with database.as_role("backplane_system"):
            for amount in amounts:
                give(organization_id, amount)
    return organization_id


def make_grant(
    organization_id: UUID,
    amount: int,
    *,
    source: Any = "pack",
    source_key: str | None = None,
    subscription: str | None = None,
    period_end: datetime | None = None,
    expires_at: datetime | None = None,
    plan_id: UUID | None = None,
) -> ledger.Grant:
    return ledger.Grant(
        organization_id=organization_id,
        source=source,
        source_key=source_key or f"test:{next(_numbers)}",
        amount=amount,
        actor="system",
        expires_at=expires_at,
        plan_id=plan_id,
        provider="stripe" if subscription else None,
        provider_subscription_id=subscription,
        period_end=period_end,
    )


def give(organization_id: UUID, amount: int, **fields: Any) -> UUID:
    return db.run(lambda tx: ledger.grant(tx, make_grant(organization_id, amount, **fields)))[0]


def give_in_disorder(organization_id: UUID) -> list[UUID]:
    """Seven grants of 10 credits that come in another order than they burn in. Answers them as they burn."""

    def give_one(source: str, *, hours: int | None = None) -> UUID:
        expires_at = None if hours is None else datetime.now(UTC) + timedelta(hours=hours)
        return give(organization_id, 10, source=source, expires_at=expires_at)

    pack = give_one("pack", hours=1)
    older = give_one("sign_up")
    newer = give_one("sign_up")
    late_plan = give_one("plan", hours=4)
    early_plan = give_one("plan", hours=3)
    promotion = give_one("promotion", hours=2)
    endless_plan = give_one("plan")
    return [early_plan, late_plan, endless_plan, promotion, older, newer, pack]


def debit(
    organization_id: UUID,
    operation: str = "ai_text_chat",
    *,
    quantity: int = 1,
    key: str | None = "",
    details: dict[str, Any] | None = None,
) -> tuple[ledger.Debit, bool]:
    """One unit for one credit, under a key of its own unless one is given."""
    return ledger.debit(
        organization_id,
        operation,
        quantity,
        key=f"test-{next(_numbers)}" if key == "" else key,  # type: ignore[arg-type]
        actor="user:1",
        details=details,
    )


def hold(
    organization_id: UUID,
    quantity: int = 1,
    operation: str = "ai_text_chat",
    *,
    key: str | None = None,
    expires_in: int = 900,
) -> UUID:
    """A hold of so many units, under a key of its own unless one is given."""
    key = key or f"test-{next(_numbers)}"
    return holds.hold(organization_id, operation, quantity, expires_in=expires_in, key=key, actor="user:1")[
        0
    ].id


def settle(
    organization_id: UUID,
    hold_id: UUID,
    *,
    key: str | None = None,
    quantity: int | None = None,
    amount: int | None = None,
) -> tuple[holds.Settlement, bool]:
    key = key or f"test-{next(_numbers)}"
    return holds.settle(organization_id, hold_id, quantity=quantity, amount=amount, key=key, actor="key:1")


def release(organization_id: UUID, hold_id: UUID, *, key: str | None = None) -> tuple[holds.Release, bool]:
    return holds.release(organization_id, hold_id, key=key or f"test-{next(_numbers)}", actor="key:1")


def pass_holds_expiry(database: Owned, hold_id: UUID) -> None:
    """Lets the clock reach a hold's expiry."""
    rows(database, "UPDATE credits.holds SET expires_at = clock_timestamp() WHERE id = %s", hold_id)
    rows(
        database,
        """
        UPDATE credits.accounts AS a
        SET next_due_at = least(a.next_due_at, h.expires_at)
        FROM credits.holds AS h
        WHERE h.id = %s AND a.organization_id = h.organization_id
        """,
        hold_id,
    )


def held(database: Owned, hold_id: UUID) -> dict[str, Any]:
    """A hold's row."""
    return rows(database, "SELECT * FROM credits.holds WHERE id = %s", hold_id)[0]


def pass_expiry(database: Owned, grant_id: UUID) -> None:
    """Lets the clock reach a grant's expiry."""
    rows(database, "UPDATE credits.grants SET expires_at = clock_timestamp() WHERE id = %s", grant_id)
    rows(
        database,
        """
        UPDATE credits.accounts AS a
        SET next_due_at = least(a.next_due_at, g.expires_at)
        FROM credits.grants AS g
        WHERE g.id = %s AND a.organization_id = g.organization_id
        """,
        grant_id,
    )


def roll_over(database: Owned, plan: str, carry: int) -> None:
    """Lets a plan's credits go over into the next period: so many at most, all (-1) or none (0)."""
    rows(
        database,
        "UPDATE billing.plans SET rollover = %s, rollover_cap = %s WHERE key = %s",
        {-1: "all", 0: "none"}.get(carry, "capped"),
        carry if carry > 0 else None,
        plan,
    )


def grants(database: Owned, organization_id: UUID) -> list[dict[str, Any]]:
    """Oldest first."""
    query = "SELECT * FROM credits.grants WHERE organization_id = %s ORDER BY created_at, id"
    return rows(database, query, organization_id)


def entries(database: Owned, organization_id: UUID) -> list[dict[str, Any]]:
    """Oldest first, allocations as (grant, amount)."""
    found = rows(
        database,
        """
        SELECT e.*,
               ARRAY(SELECT a.grant_id FROM unnest(e.allocations) AS a) AS grant_ids,
               ARRAY(SELECT a.amount FROM unnest(e.allocations) AS a) AS amounts
        FROM credits.entries AS e
        WHERE e.organization_id = %s
        ORDER BY e.version
        """,
        organization_id,
    )
    for entry in found:
        entry["allocations"] = list(zip(entry.pop("grant_ids"), entry.pop("amounts"), strict=True))
    return found


def assert_books_balance(database: Owned, organization_id: UUID) -> None:
    """The rules that hold after anything that may happen to an account."""
    account = rows(database, "SELECT * FROM credits.accounts WHERE organization_id = %s", organization_id)[0]
    booked = entries(database, organization_id)
    given = grants(database, organization_id)
    assert account["available"] == sum(grant["remaining"] for grant in given if grant["live"])
    assert not any(grant["remaining"] for grant in given if not grant["live"])
    assert all(grant["remaining"] > 0 for grant in given if grant["live"])
    assert (
        sum(entry["amount"] for entry in booked) == account["available"] + account["held"] - account["debt"]
    )
    assert min(account["available"], account["held"], account["debt"]) >= 0
    assert [entry["version"] for entry in booked] == list(range(1, account["version"] + 1))
    total = 0
    for entry in booked:
        total += entry["amount"]
        assert entry["available_after"] + entry["held_after"] - entry["debt_after"] == total
        if entry["kind"] in {"debit", "settle"}:
            assert sum(amount for _, amount in entry["allocations"]) == -entry["amount"]
    if booked:
        last = booked[-1]
        assert (last["available_after"], last["held_after"], last["debt_after"]) == (
            account["available"],
            account["held"],
            account["debt"],
        )
    open_holds = rows(
        database,
        """
        SELECT amount, expires_at,
               (SELECT coalesce(sum(a.amount), 0) FROM unnest(allocations) AS a) AS allocated
        FROM credits.holds
        WHERE organization_id = %s AND state = 'open'
        """,
        organization_id,
    )
    assert account["held"] == sum(hold["amount"] for hold in open_holds)
    assert all(hold["allocated"] == hold["amount"] for hold in open_holds)
    refunded: dict[UUID, int] = {}
    for entry in booked:
        if entry["kind"] == "refund":
            refunded[entry["source_id"]] = refunded.get(entry["source_id"], 0) + entry["amount"]
    assert all(refunded.get(entry["id"], 0) <= -entry["amount"] for entry in booked if entry["amount"] < 0)
    due = [grant["expires_at"] for grant in given if grant["live"] and grant["expires_at"]]
    due += [hold["expires_at"] for hold in open_holds]
    assert not due or account["next_due_at"] <= min(due)
    proof = rows(database, "SELECT * FROM credits.audit(%s)", organization_id)[0]
    assert (proof["ok"], proof["faults"]) == (True, [])
