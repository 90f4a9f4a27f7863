"""credits.low_balance: once per crossing, whatever crosses."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.callers import ROOT, Customer, send, sign_up, token, trust_our_tokens
from tests.counters import at_once, transaction
from tests.databases import Database
from tests.ledgers import (
    debit,
    give,
    hold,
    new_account,
    pass_expiry,
    pass_holds_expiry,
    release,
    rows,
    settle,
)

from backplane import audits, corrections, db, ledger, low_balance
from backplane.problems import NotFound

THRESHOLD = 20  # unless it is set


def told(database: Database, organization_id: UUID) -> list[dict[str, Any]]:
    """The events' payloads, oldest first."""
    return [
        row["payload"]
        for row in rows(
            database,
            """
            SELECT payload
            FROM platform.outbox
            WHERE organization_id = %s AND type = 'credits.low_balance'
            ORDER BY id
            """,
            organization_id,
        )
    ]


def set_threshold(organization_id: UUID, value: int) -> None:
    db.run(lambda tx: low_balance.set_threshold(tx, organization_id, value))


def adjust(organization_id: UUID, amount: int) -> None:
    corrections.adjust(organization_id, amount, reason="why", key=f"key{amount}", actor="user:1")


def test_a_crossing_is_told_once_until_the_balance_has_risen_again(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    debit(organization_id, quantity=80)
    assert told(system_db, organization_id) == []  # 20 are not less than 20
    debit(organization_id)
    assert told(system_db, organization_id) == [{"available": 19, "threshold": THRESHOLD}]
    debit(organization_id, quantity=10)
    give(organization_id, 10)
    debit(organization_id)
    assert len(told(system_db, organization_id)) == 1  # it was low all the time
    give(organization_id, 2)
    assert len(told(system_db, organization_id)) == 1
    debit(organization_id, quantity=20)
    assert told(system_db, organization_id)[1:] == [{"available": 0, "threshold": THRESHOLD}]


def test_an_account_that_begins_empty_is_no_news(system_db: Database) -> None:
    organization_id = new_account(system_db, 5)
    debit(organization_id, quantity=5)
    assert told(system_db, organization_id) == []


# ---- whatever crosses ----


def crossed_by_a_hold(organization_id: UUID, _: Database) -> None:
    hold(organization_id, 81)


def crossed_by_settling_more(organization_id: UUID, _: Database) -> None:
    settle(organization_id, hold(organization_id, 1), amount=81)


def crossed_by_an_adjustment(organization_id: UUID, _: Database) -> None:
    adjust(organization_id, -81)


def crossed_by_a_claw_back(organization_id: UUID, database: Database) -> None:
    grant = rows(database, "SELECT id FROM credits.grants WHERE organization_id = %s", organization_id)[0]
    db.run(lambda tx: corrections.claw_back(tx, grant["id"], key="refund:re_1", amount=81, actor="stripe"))


def crossed_by_expiry(organization_id: UUID, database: Database) -> None:
    grant = rows(database, "SELECT id FROM credits.grants WHERE organization_id = %s", organization_id)[0]
    pass_expiry(database, grant["id"])
    assert told(database, organization_id) == []  # booked by the next mutation, or by the sweep
    audits.book_due(organization_id)


def crossed_by_the_end_of_a_subscription(organization_id: UUID, _: Database) -> None:
    set_threshold(organization_id, 150)
    give(
        organization_id,
        100,
        source="plan",
        subscription="sub_1",
        period_end=datetime.now(UTC) + timedelta(days=1),
    )
    db.run(lambda tx: ledger.end_subscription(tx, organization_id, "stripe", "sub_1", actor="stripe"))


@pytest.mark.parametrize(
    "cross",
    [
        crossed_by_a_hold,
        crossed_by_settling_more,
        crossed_by_an_adjustment,
        crossed_by_a_claw_back,
        crossed_by_expiry,
    ],
    ids=lambda cross: cross.__name__,
)
def test_every_operation_that_takes_credits_tells(
    system_db: Database, cross: Callable[[UUID, Database], None]
) -> None:
    organization_id = new_account(system_db, 100)
    cross(organization_id, system_db)
    assert len(told(system_db, organization_id)) == 1
    assert told(system_db, organization_id)[0]["available"] < THRESHOLD


def test_the_end_of_a_subscription_tells_too(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    crossed_by_the_end_of_a_subscription(organization_id, system_db)
    # Once when the threshold was set above the balance, once when the plan's credits went.
    assert [event["threshold"] for event in told(system_db, organization_id)] == [150, 150]


def test_what_returns_from_a_hold_counts(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    held = hold(organization_id, 90)
    release(organization_id, held)
    hold(organization_id, 90)
    assert len(told(system_db, organization_id)) == 2


def test_what_rises_and_falls_inside_one_operation_is_no_crossing(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    plan = give(
        organization_id,
        90,
        source="plan",
        subscription="sub_1",
        period_end=datetime.now(UTC) + timedelta(days=1),
    )
    held = hold(organization_id, 90)
    assert len(told(system_db, organization_id)) == 1
    pass_expiry(system_db, plan)
    pass_holds_expiry(system_db, held)
    audits.book_due(organization_id)  # 90 come back, and lapse
    kinds = rows(
        system_db, "SELECT kind, amount FROM credits.entries WHERE organization_id = %s", organization_id
    )
    assert {"kind": "expire", "amount": -90} in kinds
    assert len(told(system_db, organization_id)) == 1


def test_what_is_rolled_back_was_not_crossed(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)

    def spend_and_fail(tx: db.Tx) -> None:
        ledger.debit(organization_id, "ai_text_chat", 90, key="key-1", actor="user:1", tx=tx)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        db.run(spend_and_fail)
    assert told(system_db, organization_id) == []
    debit(organization_id, quantity=90)
    assert len(told(system_db, organization_id)) == 1


def test_of_many_debits_at_once_one_crosses(system_db: Database) -> None:
    organization_id = new_account(system_db, 30)

    def one(number: int) -> None:
        with transaction(system_db, organization_id) as tx:
            ledger.debit(organization_id, "ai_text_chat", 2, key=f"key-{number}", actor="user:1", tx=tx)

    at_once(15, one)
    assert told(system_db, organization_id) == [{"available": 18, "threshold": THRESHOLD}]


def test_a_debit_that_crosses_nothing_updates_the_account_once(system_db: Database) -> None:
    """What a crossing costs is paid by the crossing."""
    organization_id = new_account(system_db, 100)

    def updates(tx: psycopg.Connection[Any], quantity: int) -> int:
        """Of accounts, by this session until now."""
        with tx.transaction():
            ledger.debit(organization_id, "ai_text_chat", quantity, key=f"key-{quantity}", actor="u", tx=tx)
            tx.execute("SET CONSTRAINTS ALL IMMEDIATE")
            row = tx.execute(
                "SELECT n_tup_upd FROM pg_stat_xact_user_tables WHERE relid = 'credits.accounts'::regclass"
            ).fetchone()
        assert row is not None
        count: int = row["n_tup_upd"]
        return count

    with system_db.connect("backplane_system") as connection:
        assert [updates(connection, quantity) for quantity in (79, 2, 3)] == [1, 1 + 2, 1 + 2 + 1]


# ---- the threshold ----


def test_a_threshold_is_the_organisations_own(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    other = new_account(system_db, 100)
    set_threshold(organization_id, 90)
    debit(organization_id, quantity=11)
    debit(other, quantity=11)
    assert told(system_db, organization_id) == [{"available": 89, "threshold": 90}]
    assert told(system_db, other) == []


def test_none_at_all_is_never_low(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    set_threshold(organization_id, 0)
    debit(organization_id, quantity=100)
    assert told(system_db, organization_id) == []


def test_a_threshold_that_is_set_above_the_balance_is_crossed_by_that(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    set_threshold(organization_id, 101)
    assert told(system_db, organization_id) == [{"available": 100, "threshold": 101}]
    set_threshold(organization_id, 102)
    assert len(told(system_db, organization_id)) == 1


def test_an_account_that_is_not_there_has_none(system_db: Database) -> None:
    for ask in (
        lambda tx: low_balance.threshold(tx, UUID(int=0)),
        lambda tx: low_balance.set_threshold(tx, UUID(int=0), 5),
    ):
        with pytest.raises(NotFound):
            db.run(ask)


# ---- the routes ----


@pytest.fixture
def ada(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> Customer:
    trust_our_tokens(monkeypatch)
    return sign_up()


PATH = "/v1/credits/low-balance"


def test_an_owner_sets_the_threshold_and_everybody_sees_it(app_db: Database, ada: Customer) -> None:
    assert send("GET", PATH, ada.token).body == {"threshold": THRESHOLD}
    answer = send("PUT", PATH, ada.token, body={"threshold": 150})
    assert (answer.status, answer.body) == (200, {"threshold": 150})
    assert send("GET", PATH, ada.token).body == {"threshold": 150}
    assert told(app_db, ada.organization_id) == [{"available": 100, "threshold": 150}]


@pytest.mark.parametrize("threshold", [-1, 1_000_000_001, "many", None, 1.5])
def test_a_threshold_is_a_number_of_credits(ada: Customer, threshold: object) -> None:
    assert send("PUT", PATH, ada.token, body={"threshold": threshold}).status == 422


def test_a_member_does_not_set_it(ada: Customer) -> None:
    session = token(org_id="org_acme", org_slug="acme", org_role="org:member")
    assert send("PUT", PATH, session, body={"threshold": 5}).status == 403
    assert (
        send("PUT", PATH, token(ROOT), organization=ada.organization_id, body={"threshold": 5}).status == 200
    )


@pytest.mark.usefixtures("ada")
def test_the_application_sets_its_own_organisations_only(app_db: Database) -> None:
    other = new_account(app_db, 1)
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="is not organisation"),
        db.transaction(organization_id=UUID(int=1)) as tx,
    ):
        low_balance.set_threshold(tx, other, 5)
