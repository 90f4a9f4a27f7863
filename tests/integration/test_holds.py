"""Holds: set aside, settled below, at and above, released, expired; whoever races, one wins."""

import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg
import pytest
from tests import kills
from tests.databases import Database
from tests.ledgers import (
    assert_books_balance,
    debit,
    entries,
    give,
    give_in_disorder,
    grants,
    held,
    hold,
    new_account,
    pass_expiry,
    pass_holds_expiry,
    release,
    rows,
    settle,
)
from tests.processes import race

from backplane import audits, corrections, db, holds, ledger
from backplane.problems import (
    Conflict,
    IdempotencyConflict,
    InsufficientCredits,
    NotFound,
    Problem,
    Unprocessable,
)

RACERS = 12


def soon(hours: float = 1) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


def balance(organization_id: UUID) -> tuple[int, int, int]:
    seen = db.run(lambda tx: ledger.balance(tx, organization_id))
    assert seen.available == sum(grant.remaining for grant in seen.grants)
    return seen.available, seen.held, seen.debt


def remaining(database: Database, organization_id: UUID) -> list[int]:
    return [grant["remaining"] for grant in grants(database, organization_id)]


def claw_back(grant_id: UUID, amount: int | None = None, *, key: str = "refund:re_1") -> corrections.ClawBack:
    return db.run(lambda tx: corrections.claw_back(tx, grant_id, key=key, amount=amount, actor="stripe"))[0]


# ---- holding ----


def test_a_hold_moves_credits_from_available_to_held(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    made, replayed = holds.hold(
        organization_id,
        "ai_image_generation",
        3,
        expires_in=60,
        key="key-1",
        actor="user:1",
        details={"a": 1},
    )
    assert (made.amount, made.state, replayed) == (15, "open", False)
    assert timedelta(seconds=30) < made.expires_at - datetime.now(UTC) < timedelta(seconds=90)
    assert balance(organization_id) == (85, 15, 0)
    entry = entries(system_db, organization_id)[-1]
    assert (entry["kind"], entry["amount"], entry["available_after"], entry["held_after"]) == (
        "hold",
        0,
        85,
        15,
    )
    assert (entry["source_id"], entry["details"]) == (made.id, {"a": 1})
    assert_books_balance(system_db, organization_id)


def test_a_hold_takes_grants_in_burn_order(system_db: Database) -> None:
    organization_id = new_account(system_db)
    order = give_in_disorder(organization_id)
    hold(organization_id, 65)
    allocations = rows(system_db, "SELECT a.* FROM credits.holds CROSS JOIN unnest(allocations) AS a")
    assert [each["grant_id"] for each in allocations] == order
    assert [each["amount"] for each in allocations] == [10] * 6 + [5]
    assert sorted(remaining(system_db, organization_id)) == [0] * 6 + [5]
    with pytest.raises(InsufficientCredits, match="5 are available"):
        debit(organization_id, quantity=6)
    assert_books_balance(system_db, organization_id)


def test_a_hold_beyond_the_balance_is_refused_and_not_remembered(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    with pytest.raises(InsufficientCredits, match="11 credits and 10 are available"):
        hold(organization_id, 11, key="key-1")
    give(organization_id, 1)
    assert held(system_db, hold(organization_id, 11, key="key-1"))["amount"] == 11
    assert_books_balance(system_db, organization_id)


def test_the_same_key_holds_once_and_another_request_under_it_conflicts(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    first = holds.hold(organization_id, "ai_text_chat", 10, key="key-1", actor="user:1")
    again = holds.hold(organization_id, "ai_text_chat", 10, key="key-1", actor="user:1")
    assert again == (first[0], True)
    settle(organization_id, first[0].id)
    assert holds.hold(organization_id, "ai_text_chat", 10, key="key-1", actor="user:1") == again
    for other in ({"quantity": 9}, {"quantity": 10, "expires_in": 60}, {"quantity": 10, "details": {}}):
        with pytest.raises(IdempotencyConflict):
            holds.hold(organization_id, "ai_text_chat", key="key-1", actor="user:1", **other)
    assert_books_balance(system_db, organization_id)


def test_what_has_no_price_cannot_be_held_and_what_is_free_can(system_db: Database) -> None:
    organization_id = new_account(system_db, 1)
    with pytest.raises(Unprocessable, match="no operation"):
        hold(organization_id, operation="nothing")
    rows(system_db, """UPDATE platform.admin_settings SET feature_costs = '{"ai_text_chat": 0}'""")
    made = hold(organization_id, 7)
    assert settle(organization_id, made)[0].amount_settled == 0
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize(("quantity", "expires_in"), [(0, 1), (-1, 1), (1, 0), (1, -1)])
def test_the_database_itself_refuses_a_hold_that_would_give(
    system_db: Database, quantity: int, expires_in: int
) -> None:
    organization_id = new_account(system_db, 5)
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        hold(organization_id, quantity, expires_in=expires_in)
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        settle(organization_id, hold(organization_id, 5), amount=-1)
    assert_books_balance(system_db, organization_id)


def test_what_is_not_there_is_not_found(system_db: Database) -> None:
    organization_id, other = new_account(system_db, 5), new_account(system_db, 5)
    theirs = hold(other, 5)
    for hold_id in (theirs, uuid4()):
        with pytest.raises(NotFound):
            settle(organization_id, hold_id)
        with pytest.raises(NotFound):
            release(organization_id, hold_id)
    with pytest.raises(NotFound):
        hold(uuid4())
    assert held(system_db, theirs)["state"] == "open"


# ---- settling ----


@pytest.mark.parametrize(
    ("used", "settled", "released", "available"),
    [
        ({}, 10, 0, 90),
        ({"amount": 10}, 10, 0, 90),
        ({"quantity": 2}, 10, 0, 90),
        ({"amount": 4}, 4, 6, 96),
        ({"quantity": 1}, 5, 5, 95),
        ({"amount": 0}, 0, 10, 100),
        ({"quantity": 0}, 0, 10, 100),
        ({"amount": 33}, 33, 0, 67),
        ({"quantity": 20}, 100, 0, 0),
    ],
)
def test_a_settle_takes_what_was_used_and_returns_the_rest(
    system_db: Database, used: dict[str, Any], settled: int, released: int, available: int
) -> None:
    organization_id = new_account(system_db, 60, 40)
    hold_id = hold(organization_id, 2, "ai_image_generation")
    made, replayed = settle(organization_id, hold_id, **used)
    assert (made.id, made.state, replayed) == (hold_id, "settled", False)
    assert (made.amount_settled, made.amount_released) == (settled, released)
    assert balance(organization_id) == (available, 0, 0)
    entry = entries(system_db, organization_id)[-1]
    assert (entry["kind"], entry["amount"], entry["id"]) == ("settle", -settled, made.debit_id)
    assert (entry["operation"], entry["source_id"]) == ("ai_image_generation", hold_id)
    assert_books_balance(system_db, organization_id)


def test_a_settle_beyond_what_is_there_leaves_the_hold_open(system_db: Database) -> None:
    organization_id = new_account(system_db, 30)
    hold_id = hold(organization_id, 20)
    with pytest.raises(InsufficientCredits, match=r"11 credits more .* 10 are"):
        settle(organization_id, hold_id, amount=31, key="key-1")
    assert held(system_db, hold_id)["state"] == "open"
    assert balance(organization_id) == (10, 20, 0)
    give(organization_id, 1)
    assert settle(organization_id, hold_id, amount=31, key="key-1")[0].amount_settled == 31
    assert balance(organization_id) == (0, 0, 0)
    assert_books_balance(system_db, organization_id)


def test_a_settle_pays_the_price_of_when_it_was_held(system_db: Database) -> None:
    organization_id = new_account(system_db, 100)
    hold_id = hold(organization_id, 10)
    rows(system_db, """UPDATE platform.admin_settings SET feature_costs = '{"ai_text_chat": 7}'""")
    assert settle(organization_id, hold_id, quantity=4)[0].amount_settled == 4


def test_a_settle_repeats_by_key_and_by_outcome(system_db: Database) -> None:
    organization_id = new_account(system_db, 30)
    hold_id = hold(organization_id, 10)
    first, _ = settle(organization_id, hold_id, amount=4, key="key-1")
    debit(organization_id, quantity=26)
    assert settle(organization_id, hold_id, amount=4, key="key-1") == (first, True)
    assert settle(organization_id, hold_id, quantity=4, key="key-2") == (first, True)
    with pytest.raises(Conflict, match="another amount") as refused:
        settle(organization_id, hold_id, amount=5, key="key-3")
    assert refused.value.code == "invalid_state"
    with pytest.raises(IdempotencyConflict):
        settle(organization_id, hold_id, amount=5, key="key-1")
    with pytest.raises(NotFound):
        settle(organization_id, uuid4(), amount=4)
    assert_books_balance(system_db, organization_id)


def test_a_key_of_one_hold_is_not_for_another(system_db: Database) -> None:
    organization_id = new_account(system_db, 30)
    first, second = hold(organization_id, 10), hold(organization_id, 10)
    settle(organization_id, first, key="key-1")
    with pytest.raises(IdempotencyConflict):
        settle(organization_id, second, key="key-1")
    release(organization_id, second, key="key-1")  # another route's keys are others
    with pytest.raises(IdempotencyConflict):
        release(organization_id, hold(organization_id, 5), key="key-1")
    assert_books_balance(system_db, organization_id)


# ---- releasing ----


def test_a_release_gives_everything_back_to_where_it_came_from(system_db: Database) -> None:
    organization_id = new_account(system_db, 10, 10)
    hold_id = hold(organization_id, 15)
    made, replayed = release(organization_id, hold_id)
    assert (made.id, made.state, made.amount_released, replayed) == (hold_id, "released", 15, False)
    assert balance(organization_id) == (20, 0, 0)
    assert remaining(system_db, organization_id) == [10, 10]
    entry = entries(system_db, organization_id)[-1]
    assert (entry["kind"], entry["amount"], entry["source_id"]) == ("release", 0, hold_id)
    assert_books_balance(system_db, organization_id)


def test_a_release_repeats_by_key_and_by_state(system_db: Database) -> None:
    organization_id = new_account(system_db, 30)
    hold_id = hold(organization_id, 10)
    first, _ = release(organization_id, hold_id, key="key-1")
    assert release(organization_id, hold_id, key="key-1") == (first, True)
    assert release(organization_id, hold_id, key="key-2") == (first, True)
    assert balance(organization_id) == (30, 0, 0)
    with pytest.raises(IdempotencyConflict):
        release(organization_id, hold(organization_id, 1), key="key-1")


def test_what_is_settled_is_not_released_and_what_is_released_is_not_settled(system_db: Database) -> None:
    organization_id = new_account(system_db, 30)
    settled, released = hold(organization_id, 10), hold(organization_id, 10)
    settle(organization_id, settled)
    release(organization_id, released)
    with pytest.raises(Conflict, match="is settled") as refused:
        release(organization_id, settled)
    assert refused.value.code == "invalid_state"
    with pytest.raises(Conflict, match="was released") as refused:
        settle(organization_id, released)
    assert refused.value.code == "invalid_state"
    assert balance(organization_id) == (20, 0, 0)
    assert_books_balance(system_db, organization_id)


# ---- expiring ----


def test_a_hold_past_its_time_is_back_for_reads_and_booked_by_the_next_mutation(system_db: Database) -> None:
    organization_id = new_account(system_db, 20)
    hold_id = hold(organization_id, 15)
    pass_holds_expiry(system_db, hold_id)
    assert balance(organization_id) == (20, 0, 0)
    assert held(system_db, hold_id)["state"] == "open"

    debit(organization_id, quantity=20)
    assert held(system_db, hold_id)["state"] == "expired"
    booked = entries(system_db, organization_id)[-2:]
    assert [(entry["kind"], entry["amount"], entry["actor"]) for entry in booked] == [
        ("release", 0, "system"),
        ("debit", -20, "user:1"),
    ]
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize("mutation", ["hold", "settle", "release", "grant", "sweep"])
def test_every_mutation_frees_holds_past_their_time(system_db: Database, mutation: str) -> None:
    organization_id = new_account(system_db, 30)
    other, expired = hold(organization_id, 5), hold(organization_id, 10)
    pass_holds_expiry(system_db, expired)
    match mutation:
        case "hold":
            hold(organization_id, 25)
        case "settle":
            settle(organization_id, other)
        case "release":
            release(organization_id, other)
        case "grant":
            give(organization_id, 1)
        case "sweep":
            assert audits.book_due(organization_id)
    assert held(system_db, expired)["state"] == "expired"
    assert_books_balance(system_db, organization_id)


def test_at_the_instant_of_its_expiry_a_hold_is_over(system_db: Database) -> None:
    organization_id = new_account(system_db, 30)
    hold_id = hold(organization_id, 10)
    pass_holds_expiry(system_db, hold_id)
    with pytest.raises(Conflict, match="has expired") as refused:
        settle(organization_id, hold_id)
    assert refused.value.code == "invalid_state"
    made, replayed = release(organization_id, hold_id)
    assert (made.state, made.amount_released, replayed) == ("expired", 10, True)
    assert balance(organization_id) == (30, 0, 0)
    assert_books_balance(system_db, organization_id)


def test_held_credits_do_not_expire_and_lapse_when_they_come_back_late(system_db: Database) -> None:
    organization_id = new_account(system_db)
    expiring = give(organization_id, 10, source="plan", expires_at=soon())
    give(organization_id, 10, source="pack")
    hold_id = hold(organization_id, 8)
    pass_expiry(system_db, expiring)
    debit(organization_id)
    assert balance(organization_id) == (9, 8, 0)  # 2 of the plan's lapsed, 8 are held

    assert release(organization_id, hold_id)[0].amount_released == 8
    assert balance(organization_id) == (9, 0, 0)
    assert [(e["kind"], e["amount"]) for e in entries(system_db, organization_id)[-2:]] == [
        ("release", 0),
        ("expire", -8),
    ]
    assert_books_balance(system_db, organization_id)


def test_a_settle_uses_first_what_would_lapse(system_db: Database) -> None:
    organization_id = new_account(system_db)
    give(organization_id, 10, source="plan")
    lapsing = give(organization_id, 10, source="promotion", expires_at=soon())
    hold_id = hold(organization_id, 20)
    pass_expiry(system_db, lapsing)
    made, _ = settle(organization_id, hold_id, amount=12)
    assert balance(organization_id) == (8, 0, 0)
    settled = next(e for e in entries(system_db, organization_id) if e["id"] == made.debit_id)
    assert settled["allocations"][0] == (lapsing, 10)
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize("ended_by", ["a later period", "the subscription's end"])
def test_what_a_hold_kept_of_an_ended_period_lapses_on_its_return(system_db: Database, ended_by: str) -> None:
    organization_id = new_account(system_db)
    plan: dict[str, Any] = {"source": "plan", "subscription": "sub_1"}
    give(organization_id, 10, period_end=soon(24), **plan)
    hold_id = hold(organization_id, 10)
    if ended_by == "a later period":
        give(organization_id, 50, period_end=soon(48), **plan)
    else:
        db.run(lambda tx: ledger.end_subscription(tx, organization_id, "stripe", "sub_1", actor="stripe"))
    left = balance(organization_id)[0]
    release(organization_id, hold_id)
    assert balance(organization_id) == (left, 0, 0)
    assert entries(system_db, organization_id)[-1]["amount"] == -10
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize("closed_by", ["release", "settle", "expiry", "read"])
def test_what_comes_back_pays_a_debt_first(system_db: Database, closed_by: str) -> None:
    organization_id = new_account(system_db)
    pack = give(organization_id, 100)
    hold_id = hold(organization_id, 60)
    assert claw_back(pack, 70).owed == 30
    assert balance(organization_id) == (0, 60, 30)
    match closed_by:
        case "release":
            release(organization_id, hold_id)
        case "settle":
            settle(organization_id, hold_id, amount=0)
        case "expiry":
            pass_holds_expiry(system_db, hold_id)
            give(organization_id, 1)
            debit(organization_id)
        case "read":
            pass_holds_expiry(system_db, hold_id)
    assert balance(organization_id) == (30, 0, 0)
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize("closed_by", ["release", "settle"])
def test_a_debt_is_paid_with_what_would_lapse_then_in_burn_order(system_db: Database, closed_by: str) -> None:
    organization_id = new_account(system_db)
    spent = give(organization_id, 6, source="plan", expires_at=soon(1))
    debit(organization_id, quantity=6)
    give(organization_id, 10, source="promotion", expires_at=soon(2))
    lapsing = give(organization_id, 10, source="promotion", expires_at=soon(3))
    give(organization_id, 10, source="pack")
    hold_id = hold(organization_id, 30)
    pass_expiry(system_db, lapsing)
    debt = claw_back(spent).owed + claw_back(lapsing, 8, key="refund:re_2").owed
    assert debt == 14
    if closed_by == "release":
        release(organization_id, hold_id)
        assert remaining(system_db, organization_id) == [0, 6, 0, 10]
    else:
        settle(organization_id, hold_id, amount=3)  # 3 of what lapses, then the debt: 7 of it and 7 more
        assert remaining(system_db, organization_id) == [0, 3, 0, 10]
    assert balance(organization_id)[1:] == (0, 0)
    assert_books_balance(system_db, organization_id)


def test_a_read_of_due_holds_says_what_booking_them_will(system_db: Database) -> None:
    """Several holds past their time, a debt, and credits that lapse on their return."""
    organization_id = new_account(system_db)
    spent = give(organization_id, 20, source="plan", expires_at=soon(1))
    lapsing = give(organization_id, 20, source="plan", expires_at=soon(2))
    give(organization_id, 30)
    debit(organization_id, quantity=15)
    due = [hold(organization_id, 12), hold(organization_id, 13), hold(organization_id, 20)]
    assert claw_back(spent).owed == 20
    pass_expiry(system_db, lapsing)
    for hold_id in due:
        pass_holds_expiry(system_db, hold_id)
    foreseen = balance(organization_id)
    assert audits.book_due(organization_id)
    assert balance(organization_id) == foreseen
    assert not audits.book_due(organization_id)
    assert_books_balance(system_db, organization_id)


# ---- in a caller's transaction ----


def test_a_hold_and_its_settle_go_with_the_callers_transaction(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)

    def work_and_fail(tx: db.Tx) -> None:
        made, _ = holds.hold(organization_id, "ai_text_chat", 4, key="key-1", actor="user:1", tx=tx)
        holds.settle(organization_id, made.id, amount=9, key="key-1", actor="key:1", tx=tx)
        raise LookupError

    with pytest.raises(LookupError):
        db.run(work_and_fail)
    assert balance(organization_id) == (10, 0, 0)
    assert_books_balance(system_db, organization_id)


# ---- races ----


def at_once(database: Database, works: Sequence[Callable[[db.Tx], str]]) -> list[str]:
    """What each work answers on a connection of its own, all begun together; a refusal by its code."""
    begin = threading.Barrier(len(works))

    def one(work: Callable[[db.Tx], str]) -> str:
        with database.connect("backplane_app") as connection:
            begin.wait(timeout=30)
            try:
                return work(connection)
            except Problem as problem:
                return problem.code

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(one, works))


@pytest.mark.parametrize("round_", range(5))
def test_of_settles_releases_and_the_expiry_of_one_hold_exactly_one_wins(
    system_db: Database, round_: int
) -> None:
    organization_id = new_account(system_db, 10)
    hold_id = hold(organization_id, 10)

    def settling(tx: db.Tx) -> str:
        made, replayed = holds.settle(
            organization_id, hold_id, amount=6, key=str(uuid4()), actor="key:1", tx=tx
        )
        return f"{made.state}{' again' * replayed}"

    def releasing(tx: db.Tx) -> str:
        made, replayed = holds.release(organization_id, hold_id, key=str(uuid4()), actor="key:1", tx=tx)
        return f"{made.state}{' again' * replayed}"

    def expiring(tx: db.Tx) -> str:
        del tx
        pass_holds_expiry(system_db, hold_id)
        with system_db.connect("backplane_system") as sweeper:
            sweeper.execute("SELECT credits.book_due(%s)", [organization_id])
        return "swept"

    works = [settling, releasing] * (RACERS // 2) + [expiring] * (round_ % 2)
    answers = Counter(at_once(system_db, works))
    state = held(system_db, hold_id)["state"]
    assert answers["settled"] + answers["released"] == (state != "expired")
    closing = [e for e in entries(system_db, organization_id) if e["kind"] in {"settle", "release"}]
    assert len(closing) == 1
    if state == "settled":
        assert answers["settled again"] == RACERS // 2 - 1
        assert answers["invalid_state"] == RACERS // 2
        assert balance(organization_id) == (4, 0, 0)
    else:
        assert answers["invalid_state"] == RACERS // 2
        assert balance(organization_id) == (10, 0, 0)
    assert_books_balance(system_db, organization_id)


def test_holds_that_race_for_a_balance_get_exactly_what_it_pays_for(system_db: Database) -> None:
    organization_id = new_account(system_db, 3, 4)

    def holding(tx: db.Tx) -> str:
        holds.hold(organization_id, "ai_text_chat", 2, key=str(uuid4()), actor="user:1", tx=tx)
        return "held"

    answers = Counter(at_once(system_db, [holding] * RACERS))
    assert answers == {"held": 3, "insufficient_credits": RACERS - 3}
    assert balance(organization_id) == (1, 6, 0)
    assert_books_balance(system_db, organization_id)


def test_one_key_from_many_at_once_holds_once_even_the_last_credit(system_db: Database) -> None:
    organization_id = new_account(system_db, 5)

    def holding(tx: db.Tx) -> str:
        made, _ = holds.hold(organization_id, "ai_text_chat", 5, key="key-1", actor="user:1", tx=tx)
        return str(made.id)

    assert len(set(at_once(system_db, [holding] * RACERS))) == 1
    assert balance(organization_id) == (0, 5, 0)


# A process each, as on Lambda. It holds, settles a part, and repeats each call as if its answer was lost.
WORKER = """
import sys
from uuid import UUID
from backplane import db, holds
from backplane.problems import InsufficientCredits
organization_id, name = UUID(sys.argv[1]), sys.argv[2]
db.connection()
print("ready", flush=True)
sys.stdin.readline()
for number in range(10):
    key = f"{name}-{number}"
    try:
        made, _ = holds.hold(organization_id, "ai_text_chat", 5, key=key, actor="user:1")
    except InsufficientCredits:
        print("short")
        continue
    assert holds.hold(organization_id, "ai_text_chat", 5, key=key, actor="user:1") == (made, True)
    if number % 3 == 0:
        done, _ = holds.release(organization_id, made.id, key=key, actor="key:1")
        assert holds.release(organization_id, made.id, key=key, actor="key:1") == (done, True)
        print(0)
    else:
        done, _ = holds.settle(organization_id, made.id, amount=number % 5, key=key, actor="key:1")
        again, replayed = holds.settle(organization_id, made.id, amount=number % 5, key=key, actor="key:1")
        assert (again, replayed) == (done, True)
        print(done.amount_settled)
"""


def test_processes_that_hold_settle_and_repeat_use_what_they_say(database: Database) -> None:
    with database.as_role("backplane_app"):
        organization_id = new_account(database, 40, 15)
        racers = [[str(organization_id), f"worker-{number}"] for number in range(4)]
        said = list(itertools.chain(*race(WORKER, *racers)))
    assert len(said) == 40
    used = sum(int(line) for line in said if line != "short")
    with database.as_role("backplane_app"), db.transaction(organization_id=organization_id) as tx:
        seen = ledger.balance(tx, organization_id)
    assert (seen.available, seen.held) == (55 - used, 0)
    assert_books_balance(database, organization_id)


# ---- whatever dies ----

T = TypeVar("T")


class Insistent:
    """A caller whose sessions are killed: he asks again, under the same key, until he is answered."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: db.Tx | None = None

    def ask(self, function: Callable[..., T], *args: Any, **request: Any) -> T:
        for _ in range(1000):
            try:
                if self._connection is None:
                    self._connection = self._database.connect("backplane_app")
                return function(*args, tx=self._connection, **request)
            except psycopg.OperationalError:
                self.leave()
        raise AssertionError("a caller must be answered in the end")

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


def test_killed_backends_lose_no_hold_and_close_none_twice(system_db: Database) -> None:
    organization_id = new_account(system_db, 300, 300, 400)
    over = threading.Event()
    begun: list[UUID] = []

    def work(worker: int) -> int:
        """Holds, settles a part, refunds some of that; or holds and releases. Answers what it used."""
        used = 0
        caller = Insistent(system_db)
        for number in range(20):
            common = {"key": f"{worker}-{number}", "actor": "key:1"}
            made, _ = caller.ask(holds.hold, organization_id, "ai_text_chat", 4, **common)
            begun.append(made.id)
            if number % 4 == 0:
                caller.ask(holds.release, organization_id, made.id, **common)
                continue
            done, _ = caller.ask(holds.settle, organization_id, made.id, amount=3, **common)
            caller.ask(
                corrections.refund, organization_id, done.debit_id, amount=1, reason="it failed", **common
            )
            used += 2
        caller.leave()
        return used

    with ThreadPoolExecutor(5) as pool:
        killing = pool.submit(kills.amid, system_db, "backplane_app", begun, over, random.Random(11))
        try:
            used = sum(pool.map(work, range(4)))
        finally:
            over.set()
        assert killing.result(timeout=30) > 3
    assert used == 4 * 15 * 2
    assert balance(organization_id) == (1000 - used, 0, 0)
    kinds = Counter(entry["kind"] for entry in entries(system_db, organization_id))
    assert kinds == {"grant": 3, "hold": 80, "release": 20, "settle": 60, "refund": 60}
    assert_books_balance(system_db, organization_id)
