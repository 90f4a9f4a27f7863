"""Refunds, claw-backs, their restoration, adjustments, and the views of what was used."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from tests.databases import Database
from tests.ledgers import (
    assert_books_balance,
    debit,
    entries,
    give,
    grants,
    hold,
    new_account,
    pass_expiry,
    release,
    rows,
    settle,
)

from backplane import corrections, db, ledger, usage
from backplane.problems import Conflict, IdempotencyConflict, InsufficientCredits, NotFound

RACERS = 12


def soon(hours: float = 1) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


def balance(organization_id: UUID) -> tuple[int, int, int]:
    seen = db.run(lambda tx: ledger.balance(tx, organization_id))
    assert seen.available == sum(grant.remaining for grant in seen.grants)
    return seen.available, seen.held, seen.debt


def remaining(database: Database, organization_id: UUID) -> list[int]:
    return [grant["remaining"] for grant in grants(database, organization_id)]


def spend(organization_id: UUID, quantity: int) -> UUID:
    return debit(organization_id, quantity=quantity)[0].id


def refund(
    organization_id: UUID,
    debit_id: UUID,
    amount: int | None = None,
    *,
    key: str | None = None,
    reason: str = "it failed",
) -> tuple[corrections.Refund, bool]:
    return corrections.refund(
        organization_id, debit_id, amount=amount, reason=reason, key=key or str(uuid4()), actor="key:1"
    )


def claw_back(grant_id: UUID, amount: int | None = None, *, key: str | None = None) -> corrections.ClawBack:
    key = key or str(uuid4())
    return db.run(lambda tx: corrections.claw_back(tx, grant_id, key=key, amount=amount, actor="stripe"))[0]


def restore(claw_back_id: UUID | None) -> tuple[corrections.Restoration, bool]:
    assert claw_back_id is not None
    return db.run(lambda tx: corrections.restore(tx, claw_back_id, actor="stripe"))


def adjust(
    organization_id: UUID, amount: int, *, key: str | None = None, allow_debt: bool = False
) -> tuple[corrections.Adjustment, bool]:
    return corrections.adjust(
        organization_id,
        amount,
        reason="a gift",
        key=key or str(uuid4()),
        actor="user:1",
        allow_debt=allow_debt,
    )


# ---- refunds ----


def test_a_refund_returns_to_the_grants_the_debit_burned_the_last_first(system_db: Database) -> None:
    organization_id = new_account(system_db)
    give(organization_id, 10, source="plan")
    give(organization_id, 10, source="promotion")
    give(organization_id, 10, source="pack")
    debit_id = spend(organization_id, 25)
    assert remaining(system_db, organization_id) == [0, 0, 5]

    for amount, total, left in ((7, 7, [0, 2, 10]), (11, 18, [3, 10, 10]), (7, 25, [10, 10, 10])):
        made, replayed = refund(organization_id, debit_id, amount)
        assert (made.debit_id, made.amount, made.refunded_total, replayed) == (debit_id, amount, total, False)
        assert remaining(system_db, organization_id) == left
        assert_books_balance(system_db, organization_id)
    entry = entries(system_db, organization_id)[-1]
    assert (entry["kind"], entry["amount"], entry["operation"]) == ("refund", 7, "ai_text_chat")
    assert (entry["source_id"], entry["details"]) == (debit_id, {"reason": "it failed"})


def test_a_refund_without_an_amount_is_of_all_that_is_left(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    debit_id = spend(organization_id, 8)
    refund(organization_id, debit_id, 3)
    assert refund(organization_id, debit_id)[0].amount == 5
    assert balance(organization_id) == (10, 0, 0)
    with pytest.raises(Conflict):
        refund(organization_id, debit_id)


@pytest.mark.parametrize(("first", "beyond"), [(None, 11), (4, 7), (10, 1), (10, None)])
def test_more_than_the_debit_is_never_refunded(
    system_db: Database, first: int | None, beyond: int | None
) -> None:
    organization_id = new_account(system_db, 10)
    debit_id = spend(organization_id, 10)
    if first:
        refund(organization_id, debit_id, first)
    before = balance(organization_id)
    with pytest.raises(Conflict, match="cannot be more") as refused:
        refund(organization_id, debit_id, beyond)
    assert refused.value.code == "invalid_state"
    assert balance(organization_id) == before
    assert_books_balance(system_db, organization_id)


def test_a_settled_hold_is_refunded_like_a_debit(system_db: Database) -> None:
    organization_id = new_account(system_db, 10, 10)
    made, _ = settle(organization_id, hold(organization_id, 8), amount=12)
    refund(organization_id, made.debit_id, 11)
    assert balance(organization_id) == (19, 0, 0)
    with pytest.raises(Conflict):
        refund(organization_id, made.debit_id, 2)
    assert_books_balance(system_db, organization_id)


def test_the_same_key_refunds_once_and_another_request_under_it_conflicts(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    debit_id, other_id = spend(organization_id, 5), spend(organization_id, 5)
    first, _ = refund(organization_id, debit_id, 2, key="key-1")
    refund(organization_id, debit_id, 3)
    assert refund(organization_id, debit_id, 2, key="key-1") == (first, True)
    assert first.refunded_total == 2
    for request in ((debit_id, 1), (other_id, 2), (debit_id, None)):
        with pytest.raises(IdempotencyConflict):
            refund(organization_id, *request, key="key-1")
    with pytest.raises(IdempotencyConflict):
        refund(organization_id, debit_id, 2, key="key-1", reason="another")
    assert_books_balance(system_db, organization_id)


def test_only_an_organisations_own_debits_are_refunded(system_db: Database) -> None:
    organization_id, other = new_account(system_db, 10), new_account(system_db, 10)
    theirs = spend(other, 5)
    granted = entries(system_db, organization_id)[0]["id"]
    for debit_id in (theirs, granted, uuid4()):
        with pytest.raises(NotFound):
            refund(organization_id, debit_id)
    assert balance(other) == (5, 0, 0)


def test_a_refund_pays_a_debt_first(system_db: Database) -> None:
    organization_id = new_account(system_db)
    pack = give(organization_id, 10)
    debit_id = spend(organization_id, 10)
    claw_back(pack, 4)
    assert balance(organization_id) == (0, 0, 4)
    refund(organization_id, debit_id, 3)
    assert balance(organization_id) == (0, 0, 1)
    refund(organization_id, debit_id, 5)
    assert balance(organization_id) == (4, 0, 0)
    assert_books_balance(system_db, organization_id)


def test_what_is_refunded_of_expired_credits_is_good_for_three_days(system_db: Database) -> None:
    organization_id = new_account(system_db)
    plan = give(organization_id, 10, source="plan", expires_at=soon())
    give(organization_id, 10, source="pack")
    debit_id = spend(organization_id, 15)
    pass_expiry(system_db, plan)
    made, _ = refund(organization_id, debit_id, 12)

    assert balance(organization_id) == (17, 0, 0)
    late = next(g for g in grants(system_db, organization_id) if g["source"] == "adjustment")
    assert (late["amount"], late["remaining"], late["source_key"]) == (7, 7, f"refund:{made.id}")
    assert timedelta(hours=71) < late["expires_at"] - datetime.now(UTC) < timedelta(hours=73)
    spend(organization_id, 7)
    assert remaining(system_db, organization_id) == [0, 10, 0]  # it burns before what lasts
    assert_books_balance(system_db, organization_id)
    pass_expiry(system_db, late["id"])
    assert balance(organization_id) == (10, 0, 0)


def test_a_refund_of_an_ended_period_comes_back_too(system_db: Database) -> None:
    organization_id = new_account(system_db)
    plan: dict[str, Any] = {"source": "plan", "subscription": "sub_1"}
    give(organization_id, 10, period_end=soon(24), **plan)
    debit_id = spend(organization_id, 10)
    give(organization_id, 50, period_end=soon(48), **plan)
    refund(organization_id, debit_id)
    assert balance(organization_id) == (60, 0, 0)
    db.run(lambda tx: ledger.end_subscription(tx, organization_id, "stripe", "sub_1", actor="stripe"))
    assert balance(organization_id) == (10, 0, 0)
    assert_books_balance(system_db, organization_id)


def test_credits_that_expire_amid_a_refund_are_given_back_or_replaced_and_not_lost(
    system_db: Database,
) -> None:
    """Whether a grant is over takes so long to find out that it is, by the next look at the clock."""
    organization_id = new_account(system_db)
    over = give(organization_id, 5, source="plan", expires_at=soon())
    expiring = give(organization_id, 5, source="promotion", expires_at=soon())
    debit_id = spend(organization_id, 10)
    pass_expiry(system_db, over)
    rows(
        system_db,
        """
        CREATE OR REPLACE FUNCTION credits.is_over(p_grant credits.grants, p_at timestamptz) RETURNS boolean
            LANGUAGE plpgsql
            AS $$
        DECLARE
            v_over boolean := p_grant.ended_at IS NOT NULL OR p_grant.expires_at <= p_at;
        BEGIN
            PERFORM pg_sleep_until(p_grant.expires_at);
            RETURN v_over;
        END
        $$
        """,
    )
    rows(
        system_db,
        "UPDATE credits.grants SET expires_at = clock_timestamp() + interval '1 second' WHERE id = %s",
        expiring,
    )
    refund(organization_id, debit_id)
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize(("each", "wins"), [(1, 10), (3, 3), (10, 1), (None, 1)])
def test_refunds_that_race_never_exceed_their_debit(system_db: Database, each: int | None, wins: int) -> None:
    organization_id = new_account(system_db, 10)
    debit_id = spend(organization_id, 10)
    begin = Barrier(RACERS)

    def one(number: int) -> str:
        with system_db.connect("backplane_app") as connection:
            begin.wait(timeout=30)
            try:
                corrections.refund(
                    organization_id,
                    debit_id,
                    amount=each,
                    reason="it failed",
                    key=f"key-{number}",
                    actor="key:1",
                    tx=connection,
                )
            except Conflict as conflict:
                return conflict.code
            return "refunded"

    with ThreadPoolExecutor(RACERS) as pool:
        answers = Counter(pool.map(one, range(RACERS)))
    assert answers == {"refunded": wins, "invalid_state": RACERS - wins}
    assert balance(organization_id) == (wins * (each or 10), 0, 0)
    assert_books_balance(system_db, organization_id)


def test_usage_is_less_by_what_was_refunded(system_db: Database) -> None:
    organization_id = new_account(system_db, 50)
    refund(organization_id, spend(organization_id, 10), 4)
    settle(organization_id, hold(organization_id, 10), amount=7)
    used = db.run(lambda tx: usage.usage(tx, organization_id, days=1))
    assert [(row.operation, row.credits) for row in used.by_operation] == [("ai_text_chat", 13)]
    assert sum(day.credits for day in used.by_day) == 13


# ---- claw-backs ----


@pytest.mark.parametrize(
    ("used", "amount", "taken", "owed"),
    [
        ((0, 0), None, 10, 0),
        ((0, 0), 4, 4, 0),
        ((3, 0), None, 7, 3),
        ((3, 0), 7, 7, 0),
        ((10, 0), None, 0, 10),
        ((2, 5), None, 3, 7),
        ((0, 10), 6, 0, 6),
        ((0, 0), 99, 10, 0),
    ],
)
def test_a_claw_back_takes_what_is_left_and_the_rest_is_owed(
    system_db: Database, used: tuple[int, int], amount: int | None, taken: int, owed: int
) -> None:
    spent, held = used
    organization_id = new_account(system_db)
    grant_id = give(organization_id, 10, source="promotion")
    for quantity, use in ((spent, spend), (held, hold)):
        if quantity:
            use(organization_id, quantity)
    give(organization_id, 20)  # another grant is not touched
    made = claw_back(grant_id, amount)
    assert (made.amount, made.owed) == (taken + owed, owed)
    assert balance(organization_id) == (30 - spent - held - taken, held, owed)
    entry = entries(system_db, organization_id)[-1]
    assert (entry["kind"], entry["amount"], entry["source_id"]) == ("claw_back", -taken - owed, grant_id)
    assert_books_balance(system_db, organization_id)


def test_claw_backs_of_a_grant_are_never_more_than_it(system_db: Database) -> None:
    organization_id = new_account(system_db)
    grant_id = give(organization_id, 10)
    spend(organization_id, 10)
    assert [claw_back(grant_id, 4).amount for _ in range(3)] == [4, 4, 2]
    nothing = claw_back(grant_id)
    assert (nothing.id, nothing.amount) == (None, 0)
    assert balance(organization_id) == (0, 0, 10)
    assert_books_balance(system_db, organization_id)


def test_a_claw_back_happens_once_per_key(system_db: Database) -> None:
    organization_id = new_account(system_db)
    grant_id = give(organization_id, 10)
    spend(organization_id, 8)
    first = claw_back(grant_id, 5, key="refund:re_1")
    assert claw_back(grant_id, 5, key="refund:re_1") == first
    assert (first.amount, first.owed) == (5, 3)
    assert balance(organization_id) == (0, 0, 3)


def test_what_lapsed_unused_is_not_owed(system_db: Database) -> None:
    organization_id = new_account(system_db)
    grant_id = give(organization_id, 10, source="plan", expires_at=soon())
    spend(organization_id, 3)
    pass_expiry(system_db, grant_id)
    made = claw_back(grant_id)
    assert (made.amount, made.owed) == (3, 3)
    assert balance(organization_id) == (0, 0, 3)
    assert_books_balance(system_db, organization_id)


def test_claw_backs_that_race_take_the_grant_once(system_db: Database) -> None:
    organization_id = new_account(system_db)
    grant_id = give(organization_id, 10)
    spend(organization_id, 6)
    begin = Barrier(RACERS)

    def one(number: int) -> int:
        with system_db.connect("backplane_system") as connection:
            begin.wait(timeout=30)
            made, _ = corrections.claw_back(
                connection, grant_id, key=f"refund:re_{number % 4}", amount=3, actor="stripe"
            )
            return made.amount if made.id else 0

    with ThreadPoolExecutor(RACERS) as pool:
        list(pool.map(one, range(RACERS)))
    assert balance(organization_id) == (0, 0, 6)
    assert_books_balance(system_db, organization_id)


# ---- a dispute won ----


def test_a_restored_claw_back_leaves_things_as_they_were_and_happens_once(system_db: Database) -> None:
    organization_id = new_account(system_db)
    grant_id = give(organization_id, 10)
    spend(organization_id, 4)
    taken = claw_back(grant_id)
    assert balance(organization_id) == (0, 0, 4)
    first, restored = restore(taken.id)
    assert (first.amount, restored) == (10, True)
    assert balance(organization_id) == (6, 0, 0)
    assert restore(taken.id) == (first, False)
    assert balance(organization_id) == (6, 0, 0)
    assert claw_back(grant_id).amount == 10  # and may be taken again for another reason
    assert_books_balance(system_db, organization_id)


def test_what_others_have_paid_of_the_debt_comes_back_without_an_end(system_db: Database) -> None:
    organization_id = new_account(system_db)
    plan = give(organization_id, 10, source="plan", expires_at=soon())
    spend(organization_id, 7)
    taken = claw_back(plan)
    give(organization_id, 5)
    assert balance(organization_id) == (0, 0, 2)
    pass_expiry(system_db, plan)
    restore(taken.id)
    # 2 of the debt are gone; 3 returned to a plan whose time is over; 5 replace what the pack paid.
    assert balance(organization_id) == (5, 0, 0)
    live = [grant for grant in grants(system_db, organization_id) if grant["live"]]
    assert [(grant["source"], grant["expires_at"]) for grant in live] == [("adjustment", None)]
    assert_books_balance(system_db, organization_id)


def test_only_a_claw_back_is_restored(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    taken = claw_back(grants(system_db, organization_id)[0]["id"])
    restored, _ = restore(taken.id)
    for entry_id in (spend(organization_id, 1), restored.id, uuid4()):
        with pytest.raises(psycopg.errors.NoDataFound):
            restore(entry_id)
    assert_books_balance(system_db, organization_id)


def test_a_hold_released_after_a_claw_back_settles_what_is_owed(system_db: Database) -> None:
    organization_id = new_account(system_db)
    grant_id = give(organization_id, 10)
    hold_id = hold(organization_id, 10)
    assert claw_back(grant_id).owed == 10
    release(organization_id, hold_id)
    assert balance(organization_id) == (0, 0, 0)
    assert_books_balance(system_db, organization_id)


# ---- adjustments ----


def test_an_adjustment_gives_credits_without_an_end(system_db: Database) -> None:
    organization_id = new_account(system_db, debt=4)
    made, replayed = adjust(organization_id, 10)
    assert (made.amount, made.available_after, made.debt_after, replayed) == (10, 6, 0, False)
    grant = grants(system_db, organization_id)[-1]
    assert (grant["source"], grant["remaining"], grant["expires_at"]) == ("adjustment", 6, None)
    assert_books_balance(system_db, organization_id)


def test_an_adjustment_takes_at_most_what_is_there_unless_told_otherwise(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    assert adjust(organization_id, -4)[0].available_after == 6
    with pytest.raises(InsufficientCredits, match="6 are available"):
        adjust(organization_id, -7, key="key-1")
    made, _ = adjust(organization_id, -9, key="key-1", allow_debt=True)
    assert (made.available_after, made.debt_after) == (0, 3)
    assert_books_balance(system_db, organization_id)


def test_an_adjustment_is_on_the_record(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    made, _ = adjust(organization_id, -4)
    entry = entries(system_db, organization_id)[-1]
    assert (entry["kind"], entry["amount"], entry["actor"]) == ("adjustment", -4, "user:1")
    assert entry["details"] == {"reason": "a gift"}
    log = rows(system_db, "SELECT * FROM platform.audit_log WHERE organization_id = %s", organization_id)
    assert [(row["action"], row["actor"], row["target"]) for row in log] == [
        ("credits.adjusted", "user:1", f"entry:{made.id}")
    ]
    assert log[0]["details"] == {"amount": -4, "reason": "a gift", "available_after": 6, "debt_after": 0}


def test_the_same_key_adjusts_once_and_another_request_under_it_conflicts(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    for amount in (5, -5):
        first, _ = adjust(organization_id, amount, key=f"key{amount}")
        assert adjust(organization_id, amount, key=f"key{amount}") == (first, True)
        with pytest.raises(IdempotencyConflict):
            adjust(organization_id, amount + 1, key=f"key{amount}")
    with pytest.raises(NotFound):
        adjust(uuid4(), 5)
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        adjust(organization_id, 0)
    assert balance(organization_id) == (10, 0, 0)
    assert_books_balance(system_db, organization_id)


# ---- the views ----


@pytest.fixture
def user(system_db: Database) -> dict[str, UUID]:
    """A user and his personal organisation's account."""
    organization_id = new_account(system_db, 100)
    user_id = rows(system_db, "INSERT INTO identity.users (clerk_id) VALUES ('user_ada') RETURNING id")[0][
        "id"
    ]
    rows(
        system_db,
        "UPDATE tenancy.organizations SET personal_user_id = %s WHERE id = %s",
        user_id,
        organization_id,
    )
    return {"user": user_id, "organization": organization_id}


def test_the_credit_balance_is_what_its_user_can_spend(system_db: Database, user: dict[str, UUID]) -> None:
    expiring = give(user["organization"], 50, source="plan", expires_at=soon())
    hold(user["organization"], 20)
    pass_expiry(system_db, expiring)
    seen = rows(system_db, "SELECT * FROM credits.credit_balance")
    assert len(seen) == 1
    assert list(seen[0]) == [
        "id",
        "userId",
        "clerkUserId",
        "creditsRemaining",
        "lastSyncedAt",
        "createdAt",
        "updatedAt",
    ]
    assert (seen[0]["userId"], seen[0]["clerkUserId"]) == (user["user"], "user_ada")
    assert seen[0]["creditsRemaining"] == balance(user["organization"])[0] == 100


def test_the_usage_history_has_a_row_a_use_and_refunds_are_negative(
    system_db: Database, user: dict[str, UUID]
) -> None:
    organization_id = user["organization"]
    debit_id = spend(organization_id, 10)
    refund(organization_id, debit_id, 4)
    made, _ = settle(organization_id, hold(organization_id, 2, "ai_image_generation"), quantity=1)
    release(organization_id, hold(organization_id, 5))
    adjust(organization_id, 7)
    adjust(organization_id, -2)
    claw_back(grants(system_db, organization_id)[0]["id"], 1)

    seen = rows(system_db, 'SELECT * FROM credits.usage_history ORDER BY "timestamp", id')
    assert list(seen[0]) == [
        "id",
        "userId",
        "creditBalanceId",
        "operationType",
        "creditsUsed",
        "details",
        "timestamp",
    ]
    assert [(row["operationType"], row["creditsUsed"]) for row in seen] == [
        ("AI_TEXT_CHAT", 10),
        ("AI_TEXT_CHAT", -4),
        ("AI_IMAGE_GENERATION", 5),
        ("ADMIN_ADJUSTMENT", -7),
        ("ADMIN_ADJUSTMENT", 2),
    ]
    assert {(row["userId"], row["creditBalanceId"]) for row in seen} == {(user["user"], organization_id)}
    assert [row["details"] for row in seen[:3]] == [None, {"reason": "it failed"}, None]
    assert seen[2]["id"] == made.debit_id
    sums = rows(
        system_db,
        """
        SELECT "operationType" AS operation, sum("creditsUsed") AS credits, count(*) AS count
        FROM credits.usage_history
        WHERE "timestamp" > now() - interval '30 days'
        GROUP BY "operationType"
        ORDER BY 1
        """,
    )
    assert [(row["operation"], row["credits"], row["count"]) for row in sums] == [
        ("ADMIN_ADJUSTMENT", -5, 2),
        ("AI_IMAGE_GENERATION", 5, 1),
        ("AI_TEXT_CHAT", 6, 2),
    ]


def test_the_views_name_who_did_it_and_show_each_organisation_its_own(
    system_db: Database, user: dict[str, UUID]
) -> None:
    debit(new_account(system_db, 10))  # another one's
    team = new_account(system_db, 10)
    ledger.debit(team, "ai_text_chat", 1, key="key-1", actor=f"user:{user['user']}")
    ledger.debit(team, "ai_text_chat", 1, key="key-2", actor="key:1")
    with system_db.connect("backplane_app") as connection, connection.transaction():
        connection.execute(f"SET LOCAL app.organization_id = '{team}'".encode())
        used = connection.execute('SELECT * FROM credits.usage_history ORDER BY "timestamp"').fetchall()
        balances = connection.execute("SELECT * FROM credits.credit_balance").fetchall()
    assert [row["userId"] for row in used] == [user["user"], None]
    assert [(row["id"], row["userId"], row["creditsRemaining"]) for row in balances] == [(team, None, 8)]
