"""Plan credits that go over into the next period: none, so many, or all, in every order of the grants."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from tests.callers import send
from tests.counters import plan_id
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
    roll_over,
    rows,
)

from backplane import corrections, db, ledger

NOW = datetime.now(UTC)
GRACE = timedelta(days=3)


def end_of(period: int) -> datetime:
    return NOW + period * timedelta(days=30)


def give_period(
    database: Database, organization_id: UUID, period: int, amount: int = 10, **fields: Any
) -> UUID:
    """Credits of a period of a subscription to the plan pro."""
    values: dict[str, Any] = {
        "source": "plan",
        "subscription": "sub_1",
        "period_end": end_of(period),
        "expires_at": end_of(period) + GRACE,
        "plan_id": plan_id(database, "pro"),
    }
    return give(organization_id, amount, **(values | fields))


def remaining(database: Database, organization_id: UUID) -> dict[int, int]:
    """What is left of each period's grants."""
    left: dict[int, int] = {}
    for grant in grants(database, organization_id):
        period = round((grant["period_end"] - NOW) / timedelta(days=30))
        left[period] = left.get(period, 0) + grant["remaining"]
    return left


def available(organization_id: UUID) -> int:
    return db.run(lambda tx: ledger.balance(tx, organization_id)).available


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
@pytest.mark.parametrize(
    ("carry", "left"),
    [
        (0, {1: 0, 2: 0, 3: 10}),
        (4, {1: 0, 2: 4, 3: 10}),
        (13, {1: 3, 2: 10, 3: 10}),
        (100, {1: 10, 2: 10, 3: 10}),
        (-1, {1: 10, 2: 10, 3: 10}),
    ],
)
def test_what_goes_over_is_the_same_in_every_order(
    system_db: Database, order: tuple[int, ...], carry: int, left: dict[int, int]
) -> None:
    roll_over(system_db, "pro", carry)
    organization_id = new_account(system_db)
    for period in order:
        give_period(system_db, organization_id, period)
        assert_books_balance(system_db, organization_id)
    assert remaining(system_db, organization_id) == left
    assert available(organization_id) == sum(left.values())
    for grant in grants(system_db, organization_id):
        if grant["live"]:
            assert grant["expires_at"] == end_of(3) + GRACE


def test_what_is_left_goes_over_and_what_was_used_does_not(system_db: Database) -> None:
    roll_over(system_db, "pro", 5)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 1)
    debit(organization_id, quantity=7)
    give_period(system_db, organization_id, 2)
    assert remaining(system_db, organization_id) == {1: 3, 2: 10}
    debit(organization_id, quantity=4)  # the older first
    assert remaining(system_db, organization_id) == {1: 0, 2: 9}


def test_every_grant_of_a_period_counts_against_the_cap(system_db: Database) -> None:
    roll_over(system_db, "pro", 5)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 1, 4)
    give_period(system_db, organization_id, 1, 4)  # a proration
    give_period(system_db, organization_id, 2, 1)
    assert remaining(system_db, organization_id) == {1: 5, 2: 1}
    expired = [entry["amount"] for entry in entries(system_db, organization_id) if entry["kind"] == "expire"]
    assert expired == [-3]


def test_each_grant_goes_over_as_its_own_plan_says(system_db: Database) -> None:
    roll_over(system_db, "pro", -1)
    organization_id = new_account(system_db)
    starter = plan_id(system_db, "starter")
    give_period(system_db, organization_id, 1)
    give_period(system_db, organization_id, 2, plan_id=starter)  # a downgrade
    give_period(system_db, organization_id, 3)
    assert remaining(system_db, organization_id) == {1: 10, 2: 0, 3: 10}


def test_a_plan_that_is_changed_keeps_its_word_for_what_it_gave(system_db: Database) -> None:
    roll_over(system_db, "pro", -1)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 1)
    roll_over(system_db, "pro", 0)
    give_period(system_db, organization_id, 2)
    give_period(system_db, organization_id, 3)
    assert remaining(system_db, organization_id) == {1: 10, 2: 0, 3: 10}
    assert available(organization_id) == 20


def test_other_subscriptions_and_packs_are_not_touched(system_db: Database) -> None:
    roll_over(system_db, "pro", 5)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 1, subscription="sub_2")
    give(organization_id, 7)
    give_period(system_db, organization_id, 1)
    give_period(system_db, organization_id, 2)
    assert available(organization_id) == 10 + 7 + 5 + 10


def test_a_renewal_that_comes_too_late_finds_nothing_to_take_along(system_db: Database) -> None:
    roll_over(system_db, "pro", -1)
    organization_id = new_account(system_db)
    pass_expiry(system_db, give_period(system_db, organization_id, 1))
    give_period(system_db, organization_id, 2)
    assert remaining(system_db, organization_id) == {1: 0, 2: 10}


def test_a_grant_that_is_told_late_goes_over_though_its_own_end_has_passed(system_db: Database) -> None:
    roll_over(system_db, "pro", -1)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 2)
    give_period(system_db, organization_id, 1, expires_at=NOW - GRACE)
    assert remaining(system_db, organization_id) == {1: 10, 2: 10}


def test_the_end_of_the_subscription_ends_what_went_over(system_db: Database) -> None:
    roll_over(system_db, "pro", -1)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 1)
    give_period(system_db, organization_id, 2)
    db.run(lambda tx: ledger.end_subscription(tx, organization_id, "stripe", "sub_1", actor="stripe"))
    assert available(organization_id) == 0
    assert_books_balance(system_db, organization_id)


# ---- what is held while the period turns ----


@pytest.mark.parametrize(("carry", "left"), [(0, {1: 0, 2: 10}), (5, {1: 4, 2: 10}), (-1, {1: 10, 2: 10})])
def test_what_is_held_goes_over_with_all_and_not_under_a_cap(
    system_db: Database, carry: int, left: dict[int, int]
) -> None:
    """Otherwise whoever holds everything before the period turns has no cap."""
    roll_over(system_db, "pro", carry)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 1)
    held = hold(organization_id, 6)
    give_period(system_db, organization_id, 2)
    release(organization_id, held)
    assert remaining(system_db, organization_id) == left
    assert available(organization_id) == sum(left.values())
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize(("carry", "days"), [(0, 3), (5, 3), (-1, 63)])
def test_what_is_refunded_of_an_earlier_period_is_good_for_three_days_or_with_the_rest(
    system_db: Database, carry: int, days: int
) -> None:
    roll_over(system_db, "pro", carry)
    organization_id = new_account(system_db)
    give_period(system_db, organization_id, 1)
    made, _ = debit(organization_id, quantity=10)
    give_period(system_db, organization_id, 2)
    corrections.refund(organization_id, made.id, amount=4, reason="failed", key="key-1", actor="key:1")
    [back] = [grant for grant in grants(system_db, organization_id) if grant["remaining"] == 4]
    assert back["expires_at"] - NOW < timedelta(days=days, hours=1)
    assert back["expires_at"] - NOW > timedelta(days=days, hours=-1)
    assert available(organization_id) == 14
    assert_books_balance(system_db, organization_id)


def test_a_claw_back_takes_what_went_over_and_owes_no_more_than_was_used(system_db: Database) -> None:
    roll_over(system_db, "pro", 4)
    organization_id = new_account(system_db)
    first = give_period(system_db, organization_id, 1)
    debit(organization_id, quantity=3)
    give_period(system_db, organization_id, 2)
    taken, _ = db.run(lambda tx: corrections.claw_back(tx, first, key="refund:re_1", actor="stripe"))
    assert (taken.amount, taken.owed) == (7, 3)  # 3 lapsed unused, 4 had gone over
    assert_books_balance(system_db, organization_id)


# ---- the plan ----


def test_a_price_list_says_what_goes_over(app_db: Database) -> None:
    roll_over(app_db, "pro", 250)
    shown = {plan["key"]: plan for plan in send("GET", "/v1/plans").body["plans"]}
    assert (shown["pro"]["rollover"], shown["pro"]["rollover_cap"]) == ("capped", 250)
    assert (shown["free"]["rollover"], shown["free"]["rollover_cap"]) == ("none", None)


@pytest.mark.parametrize(("rollover", "cap"), [("capped", None), ("capped", 0), ("all", 5), ("none", 5)])
def test_a_cap_is_a_capped_plans_and_no_others(database: Database, rollover: str, cap: int | None) -> None:
    with pytest.raises(psycopg.errors.CheckViolation):
        rows(database, "UPDATE billing.plans SET rollover = %s, rollover_cap = %s", rollover, cap)
