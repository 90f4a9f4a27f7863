"""The ledger against the real database: exact in what it burns, whoever races and whatever dies."""

import itertools
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from tests import kills
from tests.databases import Database, await_waiting
from tests.ledgers import (
    assert_books_balance,
    debit,
    entries,
    give,
    give_in_disorder,
    grants,
    make_grant,
    new_account,
    pass_expiry,
    rows,
)
from tests.processes import race

from backplane import db, idempotency, ledger, usage
from backplane.problems import (
    IdempotencyConflict,
    InsufficientCredits,
    NotFound,
    Unavailable,
    Unprocessable,
)

HOUR = timedelta(hours=1)
WORKERS = 32
SAME_KEY = 16
EACH = 40  # debits of a worker whose sessions are killed


def soon(hours: int = 1) -> datetime:
    return datetime.now(UTC) + hours * HOUR


# ---- what burns ----


def test_credits_burn_by_priority_then_expiry_then_age(system_db: Database) -> None:
    organization_id = new_account(system_db)
    order = give_in_disorder(organization_id)
    burned = []
    for number in range(14):
        debit(organization_id, quantity=5, key=f"key-{number}")
        burned.append(entries(system_db, organization_id)[-1]["allocations"])
        assert_books_balance(system_db, organization_id)
    assert burned == [[(grant, 5)] for grant in order for _ in range(2)]
    assert [grant["live"] for grant in grants(system_db, organization_id)] == [False] * 7


def test_a_debit_over_several_grants_says_what_it_took_from_each(system_db: Database) -> None:
    organization_id = new_account(system_db)
    first = give(organization_id, 3, source="plan")
    second = give(organization_id, 3, source="promotion")
    third = give(organization_id, 3, source="pack")
    made, replayed = debit(organization_id, quantity=7)
    assert (made.amount, made.available_after, replayed) == (7, 2, False)
    entry = entries(system_db, organization_id)[-1]
    assert entry["allocations"] == [(first, 3), (second, 3), (third, 1)]
    assert [grant["remaining"] for grant in grants(system_db, organization_id)] == [0, 0, 2]
    assert_books_balance(system_db, organization_id)


def test_what_has_expired_is_left_out_of_reads_and_booked_by_the_next_mutation(system_db: Database) -> None:
    organization_id = new_account(system_db)
    expiring = give(organization_id, 10, source="pack", expires_at=soon())
    kept = give(organization_id, 5, source="plan")  # which burns first
    pass_expiry(system_db, expiring)

    seen = db.run(lambda tx: ledger.balance(tx, organization_id))
    assert (seen.available, [grant.id for grant in seen.grants]) == (5, [kept])
    assert [entry["kind"] for entry in entries(system_db, organization_id)] == ["grant", "grant"]

    made, _ = debit(organization_id, quantity=1)
    assert made.available_after == 4
    assert [(entry["kind"], entry["amount"]) for entry in entries(system_db, organization_id)[2:]] == [
        ("expire", -10),
        ("debit", -1),
    ]
    assert entries(system_db, organization_id)[2]["source_id"] == expiring
    assert_books_balance(system_db, organization_id)


def test_a_refusal_books_what_has_expired_too(system_db: Database) -> None:
    organization_id = new_account(system_db)
    pass_expiry(system_db, give(organization_id, 10, source="plan", expires_at=soon()))
    with pytest.raises(InsufficientCredits, match="0 are available"):
        debit(organization_id, quantity=1)
    assert [entry["kind"] for entry in entries(system_db, organization_id)] == ["grant", "expire"]
    assert_books_balance(system_db, organization_id)


def test_what_comes_expired_is_booked_in_and_out(system_db: Database) -> None:
    organization_id = new_account(system_db)
    give(organization_id, 10, source="plan", expires_at=soon(-1))
    assert [entry["amount"] for entry in entries(system_db, organization_id)] == [10, -10]
    assert_books_balance(system_db, organization_id)


def test_an_expiry_that_lies_ahead_does_not_stop_a_debit(system_db: Database) -> None:
    organization_id = new_account(system_db)
    give(organization_id, 10, source="plan", expires_at=soon())
    debit(organization_id, quantity=10)
    assert rows(system_db, "SELECT next_due_at IS NOT NULL AS waits FROM credits.accounts") == [
        {"waits": True}
    ]
    assert_books_balance(system_db, organization_id)


# ---- what is given ----


def test_a_source_key_grants_once_and_answers_the_first_grant_again(system_db: Database) -> None:
    organization_id = new_account(system_db)
    first = db.run(lambda tx: ledger.grant(tx, make_grant(organization_id, 10, source_key="invoice:in_1")))
    again = db.run(lambda tx: ledger.grant(tx, make_grant(organization_id, 99, source_key="invoice:in_1")))
    assert (first[1], again) == (True, (first[0], False))
    other = new_account(system_db)
    assert db.run(lambda tx: ledger.grant(tx, make_grant(other, 10, source_key="invoice:in_1")))[1]
    assert_books_balance(system_db, organization_id)
    assert len(entries(system_db, organization_id)) == 1


@pytest.mark.parametrize("periods", list(itertools.permutations([1, 2, 3])))
def test_only_the_latest_period_keeps_its_credits_in_whatever_order_they_come(
    system_db: Database, periods: tuple[int, ...]
) -> None:
    organization_id = new_account(system_db)
    other = give(organization_id, 7, source="plan", subscription="sub_other", period_end=soon(1))
    for period in periods:
        give(organization_id, 10 * period, source="plan", subscription="sub_1", period_end=soon(24 * period))
    live = [grant for grant in grants(system_db, organization_id) if grant["live"]]
    assert [(grant["id"], grant["remaining"]) for grant in live if grant["id"] == other] == [(other, 7)]
    assert [grant["remaining"] for grant in live if grant["id"] != other] == [30]
    assert_books_balance(system_db, organization_id)


def test_a_proration_within_a_period_stays_beside_itsmake_grant(system_db: Database) -> None:
    organization_id = new_account(system_db)
    end = soon(24)
    give(organization_id, 10, source="plan", subscription="sub_1", period_end=end)
    give(organization_id, 5, source="plan", subscription="sub_1", period_end=end)
    assert db.run(lambda tx: ledger.balance(tx, organization_id)).available == 15


def test_the_end_of_a_subscription_takes_its_plan_credits_only(system_db: Database) -> None:
    organization_id = new_account(system_db)
    give(organization_id, 10, source="plan", subscription="sub_1", period_end=soon())
    give(organization_id, 20, source="plan", subscription="sub_2", period_end=soon())
    give(organization_id, 40, source="pack")
    debit(organization_id, quantity=3)

    def end(provider: str, subscription: str) -> None:
        db.run(lambda tx: ledger.end_subscription(tx, organization_id, provider, subscription, actor="it"))

    end("clerk", "sub_2")  # Stripe's is another one
    end("stripe", "sub_1")
    end("stripe", "sub_1")
    assert db.run(lambda tx: ledger.balance(tx, organization_id)).available == 60
    assert [entry["amount"] for entry in entries(system_db, organization_id)] == [10, 20, 40, -3, -7]
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize(("amount", "available", "debt"), [(20, 0, 10), (30, 0, 0), (50, 20, 0)])
def test_a_grant_pays_the_debt_first(system_db: Database, amount: int, available: int, debt: int) -> None:
    organization_id = new_account(system_db, debt=30)
    give(organization_id, amount)
    seen = db.run(lambda tx: ledger.balance(tx, organization_id))
    assert (seen.available, seen.debt) == (available, debt)
    assert [grant.remaining for grant in seen.grants] == [20] * (available > 0)
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize("amount", [0, -1])
def test_nothing_and_less_cannot_be_granted(system_db: Database, amount: int) -> None:
    organization_id = new_account(system_db)
    with pytest.raises(psycopg.errors.CheckViolation):
        give(organization_id, amount)
    assert entries(system_db, organization_id) == []
    assert_books_balance(system_db, organization_id)


def test_an_organisation_without_an_account_is_told_apart(system_db: Database) -> None:
    with pytest.raises(NotFound):
        debit(uuid4())
    with pytest.raises(NotFound):
        db.run(lambda tx: ledger.balance(tx, uuid4()))
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        give(uuid4(), 1)


# ---- debits as functions call them ----


def test_a_debit_in_a_transaction_goes_with_it(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)

    def spend_and_fail(tx: db.Tx) -> None:
        ledger.debit(organization_id, "ai_text_chat", 4, key="key-1", actor="user:1", tx=tx)
        raise LookupError

    with pytest.raises(LookupError):
        db.run(spend_and_fail)
    assert db.run(lambda tx: ledger.balance(tx, organization_id)).available == 10
    made, replayed = debit(organization_id, key="key-1", quantity=4)
    assert (made.available_after, replayed) == (6, False)
    assert_books_balance(system_db, organization_id)


def test_the_same_key_repeats_and_another_request_under_it_conflicts(system_db: Database) -> None:
    organization_id = new_account(system_db, 5)
    first, _ = debit(organization_id, quantity=5, key="key-1", details={"a": [1, {"b": "é"}], "c": None})
    again, replayed = debit(
        organization_id, quantity=5, key="key-1", details={"c": None, "a": [1, {"b": "é"}]}
    )
    assert (again, replayed) == (first, True)
    for other in ({"quantity": 4}, {"quantity": 5}, {"quantity": 5, "details": {}}):
        with pytest.raises(IdempotencyConflict):
            debit(organization_id, key="key-1", **other)
    with pytest.raises(IdempotencyConflict):
        debit(organization_id, "ai_image_generation", quantity=5, key="key-1")
    assert_books_balance(system_db, organization_id)


def test_a_key_is_remembered_as_long_as_its_entry(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    first, _ = debit(organization_id, quantity=5, key="key-1")
    with system_db.connect() as owner:
        owner.execute("ALTER TABLE credits.entries DISABLE TRIGGER USER")
        owner.execute("UPDATE credits.entries SET created_at = created_at - interval '10 years'")
    again, replayed = debit(organization_id, quantity=5, key="key-1")
    assert (again, replayed) == (first.model_copy(update={"created_at": again.created_at}), True)
    assert_books_balance(system_db, organization_id)


def test_one_organisations_keys_are_not_anothers(system_db: Database) -> None:
    first, second = new_account(system_db, 5), new_account(system_db, 5)
    assert debit(first, key="key-1")[0].id != debit(second, key="key-1")[0].id


@pytest.mark.parametrize(
    ("quantity", "key"),
    [(0, "key-1"), (-1, "key-1"), (None, "key-1"), (1, None)],
)
def test_the_database_itself_refuses_a_debit_that_would_give(
    system_db: Database, quantity: int | None, key: str | None
) -> None:
    organization_id = new_account(system_db, 5)
    with pytest.raises(psycopg.errors.InvalidParameterValue):
        debit(organization_id, quantity=quantity, key=key)  # type: ignore[arg-type]
    assert_books_balance(system_db, organization_id)


def test_an_amount_that_no_number_holds_is_refused_by_the_database(system_db: Database) -> None:
    organization_id = new_account(system_db, 5)
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        debit(organization_id, "ai_image_generation", quantity=2**62)
    assert_books_balance(system_db, organization_id)


def test_what_has_no_price_is_not_for_sale(system_db: Database) -> None:
    organization_id = new_account(system_db, 5)
    for operation in ("nothing", "admin_adjustment", "AI_TEXT_CHAT", ""):
        with pytest.raises(Unprocessable, match="no operation"):
            debit(organization_id, operation)
    assert len(entries(system_db, organization_id)) == 1


def test_a_job_that_sees_everybody_reads_one_organisation_at_a_time(system_db: Database) -> None:
    first, second = new_account(system_db, 10), new_account(system_db, 20)
    debit(first, quantity=3)
    debit(second, quantity=4)
    with db.transaction() as tx:
        assert ledger.balance(tx, first).available == 7
        assert [entry.amount for entry in ledger.entries(tx, first, before_version=None, limit=9)] == [-3, 10]
        used = usage.usage(tx, first, days=1)
    assert [(row.operation, row.credits, row.count) for row in used.by_operation] == [("ai_text_chat", 3, 1)]
    assert [row.credits for row in used.by_day] == [3]


# ---- append-only ----

TABLES = ("entries", "accounts", "grants", "holds", "refunds")


@pytest.mark.parametrize(
    "statement", ["UPDATE credits.entries SET amount = 0", "DELETE FROM credits.entries"]
)
@pytest.mark.parametrize("count", [0, 1])
def test_not_even_the_owner_changes_an_entry(system_db: Database, statement: str, count: int) -> None:
    new_account(system_db, *[1] * count)
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        rows(system_db, statement)


def test_not_even_the_owner_empties_the_entries(system_db: Database) -> None:
    new_account(system_db, 1)
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        rows(system_db, "TRUNCATE credits.entries CASCADE")


@pytest.mark.parametrize("role", ["backplane_app", "backplane_system", "backplane_backup"])
@pytest.mark.parametrize("table", TABLES)
def test_no_role_writes_the_ledgers_tables_itself(system_db: Database, role: str, table: str) -> None:
    organization_id = new_account(system_db, 10)
    statements = (
        f"INSERT INTO credits.{table} SELECT * FROM credits.{table} WHERE false",  # of rights, not of rows
        f"UPDATE credits.{table} SET organization_id = organization_id",
        f"DELETE FROM credits.{table}",
        f"TRUNCATE credits.{table}",
    )
    with system_db.connect(role) as connection:
        connection.execute(f"SET app.organization_id = '{organization_id}'".encode())
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    assert_books_balance(system_db, organization_id)


def test_only_jobs_and_senders_grant_and_claw_back(system_db: Database) -> None:
    """And nobody calls the functions that trust their caller to hold the account's lock."""
    callable_by = {
        row["name"]: {role for role in ("app", "system", "backup") if row[role]}
        for row in rows(
            system_db,
            """
            SELECT p.proname AS name,
                   has_function_privilege('backplane_app', p.oid, 'EXECUTE') AS app,
                   has_function_privilege('backplane_system', p.oid, 'EXECUTE') AS system,
                   has_function_privilege('backplane_backup', p.oid, 'EXECUTE') AS backup
            FROM pg_proc AS p
            WHERE p.pronamespace = 'credits'::regnamespace
            """,
        )
    }
    everyone, jobs, nobody = {"app", "system"}, {"system"}, set[str]()
    assert callable_by == {
        "debit": everyone,
        "hold": everyone,
        "settle": everyone,
        "release": everyone,
        "refund": everyone,
        "adjust": everyone,
        "costs": everyone,
        "is_over": everyone,
        "set_low_balance_threshold": everyone,
        "audit": everyone,
        "book_due": everyone,
        "grant_credits": jobs,
        "end_subscription": jobs,
        "claim_sign_up": jobs,
        "claw_back": jobs,
        "restore_claw_back": jobs,
        "erase_details": jobs,
        "book": nobody,
        "burn": nobody,
        "current_account": nobody,
        "end_grant": nobody,
        "free_hold": nobody,
        "give_back": nobody,
        "lapse": nobody,
        "part": nobody,
        "perishable_first": nobody,
        "roll_over": nobody,
        "settle_due": nobody,
        "unit_cost": nobody,
        "watch_balance": nobody,
    }


# ---- many at once ----

DEBIT = "SELECT * FROM credits.debit(%s, %s, %s, 'ai_text_chat', 1, 'user:1', NULL)"


def all_at_once(
    database: Database, count: int, work: Callable[[psycopg.Connection[Any], int], Any]
) -> list[Any]:
    """What `work` answers on `count` connections that begin together."""
    begin = threading.Barrier(count)

    def one(number: int) -> Any:
        with database.connect("backplane_system") as connection:
            begin.wait(timeout=30)
            return work(connection, number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.parametrize("balance", [0, 1, 20, WORKERS])
def test_of_many_at_once_exactly_as_many_succeed_as_are_paid_for(system_db: Database, balance: int) -> None:
    organization_id = new_account(system_db, *[balance] * (balance > 0))

    def spend(connection: psycopg.Connection[Any], number: int) -> str:
        row = connection.execute(DEBIT, [organization_id, f"key-{number}", b"hash"]).fetchone()
        assert row is not None
        outcome: str = row["outcome"]
        return outcome

    outcomes = all_at_once(system_db, WORKERS, spend)
    assert outcomes.count("debited") == balance
    assert outcomes.count("insufficient") == WORKERS - balance
    assert_books_balance(system_db, organization_id)


@pytest.mark.parametrize("balance", [1, 100])
def test_the_same_key_from_many_at_once_debits_once_even_the_last_credit(
    system_db: Database, balance: int
) -> None:
    organization_id = new_account(system_db, balance)

    def spend(connection: psycopg.Connection[Any], _: int) -> tuple[str, UUID]:
        # As ledger.debit does: a unique violation rolled everything back, so call once more.
        for _ in range(2):
            try:
                row = connection.execute(DEBIT, [organization_id, "key-1", b"hash"]).fetchone()
            except psycopg.errors.UniqueViolation:
                continue
            assert row is not None
            return row["outcome"], row["id"]
        raise AssertionError("the second call must answer")

    answers = all_at_once(system_db, SAME_KEY, spend)
    assert sorted(outcome for outcome, _ in answers) == ["debited"] + ["replayed"] * (SAME_KEY - 1)
    assert len({entry for _, entry in answers}) == 1
    assert_books_balance(system_db, organization_id)


def test_a_debit_that_waited_while_its_key_was_used_is_answered_as_a_replay(system_db: Database) -> None:
    organization_id = new_account(system_db, 10)
    with (
        system_db.connect() as owner,
        system_db.connect() as watcher,  # a transaction sees the sessions' state as it first saw it
        system_db.connect("backplane_system") as first,
        ThreadPoolExecutor(2) as pool,
    ):
        with owner.transaction():
            owner.execute(
                "SELECT 1 FROM credits.accounts WHERE organization_id = %s FOR UPDATE", [organization_id]
            )
            earlier = pool.submit(lambda: spend_under(first, organization_id, "key-1"))
            await_waiting(watcher, 1)
            later = pool.submit(lambda: debit(organization_id, key="key-1"))
            await_waiting(watcher, 2)
        assert earlier.result(timeout=30) == "debited"
        made, replayed = later.result(timeout=30)
    assert (made.available_after, replayed) == (9, True)
    assert_books_balance(system_db, organization_id)


def spend_under(connection: psycopg.Connection[Any], organization_id: UUID, key: str) -> str:
    request = idempotency.request_hash("ai_text_chat", 1, None)
    row = connection.execute(DEBIT, [organization_id, key, request]).fetchone()
    assert row is not None
    outcome: str = row["outcome"]
    return outcome


def test_grants_that_race_for_one_source_key_are_one(system_db: Database) -> None:
    organization_id = new_account(system_db)

    def give_once(connection: psycopg.Connection[Any], _: int) -> tuple[UUID, bool]:
        with connection.transaction():
            return ledger.grant(connection, make_grant(organization_id, 10, source_key="invoice:in_1"))

    answers = all_at_once(system_db, SAME_KEY, give_once)
    assert sorted(granted for _, granted in answers) == [False] * (SAME_KEY - 1) + [True]
    assert len({grant_id for grant_id, _ in answers}) == 1
    assert_books_balance(system_db, organization_id)


def test_debits_grants_and_ends_at_once_leave_the_books_balanced(system_db: Database) -> None:
    organization_id = new_account(system_db, 20)

    def work(connection: psycopg.Connection[Any], number: int) -> int:
        spent = 0
        for turn in range(6):
            if number % 4 == 0:
                with connection.transaction():
                    given = make_grant(
                        organization_id,
                        5,
                        source="plan",
                        subscription=f"sub_{number}",
                        period_end=soon(24 * (turn + 1)),
                    )
                    ledger.grant(connection, given)
            elif number % 4 == 1 and turn % 3 == 2:
                with connection.transaction():
                    ledger.end_subscription(
                        connection, organization_id, "stripe", f"sub_{number - 1}", actor="stripe"
                    )
            else:
                row = connection.execute(DEBIT, [organization_id, f"{number}-{turn}", b"hash"]).fetchone()
                assert row is not None
                spent += row["outcome"] == "debited"
        return spent

    spent = sum(all_at_once(system_db, 12, work))
    booked = [entry for entry in entries(system_db, organization_id) if entry["kind"] == "debit"]
    assert len(booked) == spent > 0
    assert_books_balance(system_db, organization_id)


def test_a_balance_read_amid_debits_is_that_of_one_moment(system_db: Database) -> None:
    organization_id = new_account(system_db, 5000)
    over = threading.Event()

    def spend() -> int:
        with system_db.connect("backplane_system") as connection:
            for number in itertools.count():
                connection.execute(DEBIT, [organization_id, f"key-{number}", b"hash"])
                if over.is_set():
                    return number + 1
        raise AssertionError("count never ends")

    with ThreadPoolExecutor(1) as pool:
        spending = pool.submit(spend)
        try:
            for _ in range(300):
                seen = db.run(lambda tx: ledger.balance(tx, organization_id))
                assert seen.available == sum(grant.remaining for grant in seen.grants)
        finally:
            over.set()
        assert spending.result(timeout=30) > 1


# A process each, as on Lambda: backplane.db keeps one connection a process.
SPENDER = """
import sys
from uuid import UUID
from backplane import db, ledger
from backplane.problems import InsufficientCredits
organization_id, name = UUID(sys.argv[1]), sys.argv[2]
db.connection()
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    try:
        made, _ = ledger.debit(organization_id, "ai_text_chat", 1, key=f"{name}-{number}", actor="user:1")
    except InsufficientCredits:
        print("short")
    else:
        print(made.id)
"""


def test_processes_that_spend_through_the_layer_spend_what_is_there(database: Database) -> None:
    with database.as_role("backplane_app"):
        organization_id = new_account(database, 50)
        racers = [[str(organization_id), f"spender-{number}"] for number in range(4)]
        said = list(itertools.chain(*race(SPENDER, *racers)))
    assert (len(said), said.count("short"), len(set(said))) == (80, 30, 51)
    assert_books_balance(database, organization_id)


# ---- whatever dies ----


def test_killed_backends_lose_no_debit_and_make_none_twice(system_db: Database) -> None:
    organization_id = new_account(system_db, 1000)
    over = threading.Event()
    done: list[str] = []

    def spend(worker: int) -> dict[str, UUID]:
        """Repeats each key until it is answered."""
        answered: dict[str, UUID] = {}
        connection = system_db.connect("backplane_system")
        for number in range(EACH):
            key = f"{worker}-{number}"
            for _ in range(1000):
                try:
                    row = connection.execute(DEBIT, [organization_id, key, b"hash"]).fetchone()
                except psycopg.OperationalError:
                    connection.close()
                    connection = reconnect(system_db)
                except psycopg.errors.UniqueViolation:
                    continue
                else:
                    assert row is not None
                    answered[key] = row["id"]
                    done.append(key)
                    break
        connection.close()
        return answered

    with ThreadPoolExecutor(7) as pool:
        killing = pool.submit(kills.amid, system_db, "backplane_system", done, over, random.Random(7))
        spending = [pool.submit(spend, worker) for worker in range(5)]
        try:
            # And one through the layer, which knows what may be repeated and says what it does not know.
            through_the_layer = {
                f"layer-{number}": _insist(organization_id, f"layer-{number}") for number in range(EACH)
            }
            answered = through_the_layer | {
                key: entry for future in spending for key, entry in future.result(timeout=200).items()
            }
        finally:
            over.set()
        assert killing.result(timeout=30) > 3

    booked = [entry for entry in entries(system_db, organization_id) if entry["kind"] == "debit"]
    assert {entry["idempotency_key"]: entry["id"] for entry in booked} == answered
    assert len(booked) == len(answered) == 6 * EACH
    assert db.run(lambda tx: ledger.balance(tx, organization_id)).available == 1000 - 6 * EACH
    assert_books_balance(system_db, organization_id)


def reconnect(database: Database) -> psycopg.Connection[Any]:
    for _ in range(1000):
        try:
            return database.connect("backplane_system")
        except psycopg.OperationalError:
            continue
    raise AssertionError("the server must take connections")


def _insist(organization_id: UUID, key: str) -> UUID:
    for _ in range(1000):
        try:
            return debit(organization_id, key=key)[0].id
        except Unavailable:
            continue
    raise AssertionError("an unknown debit must be resolved by its key")
