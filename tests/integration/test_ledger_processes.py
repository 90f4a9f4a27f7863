"""Processes that race through the layer, each with a connection of its own, as on Lambda."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta

from tests.databases import Database
from tests.ledgers import assert_books_balance, debit, entries, hold, new_account, rows
from tests.processes import race

PROCESSES = 4
HOLDS = 12

# Refunds a debit by one credit, again and again, and repeats each as if its answer was lost.
REFUNDER = """
import sys
from uuid import UUID
from backplane import corrections, db
from backplane.problems import Conflict
organization_id, debit_id, name = UUID(sys.argv[1]), UUID(sys.argv[2]), sys.argv[3]
db.connection()
print("ready", flush=True)
sys.stdin.readline()
for number in range(5):
    request = dict(amount=1, reason="it failed", key=f"{name}-{number}", actor="key:1")
    try:
        made, _ = corrections.refund(organization_id, debit_id, **request)
    except Conflict as conflict:
        print(conflict.code)
        continue
    assert corrections.refund(organization_id, debit_id, **request) == (made, True)
    print(made.refunded_total)
"""


def test_refunds_from_many_processes_give_a_debit_back_exactly_once(database: Database) -> None:
    with database.as_role("backplane_app"):
        organization_id = new_account(database, 20)
        made, _ = debit(organization_id, quantity=12)
        racers = [[str(organization_id), str(made.id), f"refunder-{n}"] for n in range(PROCESSES)]
        said = Counter(itertools.chain(*race(REFUNDER, *racers)))
    assert said == {str(total): 1 for total in range(1, 13)} | {"invalid_state": PROCESSES * 5 - 12}
    assert rows(database, "SELECT available FROM credits.accounts")[0]["available"] == 20
    assert_books_balance(database, organization_id)


# Closes holds its own way, in an order of its own, and says which it has closed.
CLOSER = """
import random, sys
from uuid import UUID
from backplane import audits, db, holds
from backplane.problems import Conflict
organization_id, way, *hold_ids = UUID(sys.argv[1]), *sys.argv[2:]
random.Random(way).shuffle(hold_ids)
db.connection()
print("ready", flush=True)
sys.stdin.readline()
for hold_id in hold_ids:
    request = dict(key=f"{way}-{hold_id}", actor="key:1")
    try:
        if way == "sweep":
            audits.book_due(organization_id)
            continue
        if way == "settle":
            made, again = holds.settle(organization_id, UUID(hold_id), amount=2, **request)
        else:
            made, again = holds.release(organization_id, UUID(hold_id), **request)
    except Conflict:
        continue
    if not again and made.state != "expired":
        print(hold_id)
"""


def test_processes_that_settle_release_and_sweep_close_each_hold_one_way(database: Database) -> None:
    with database.as_role("backplane_app"):
        organization_id = new_account(database, 5 * HOLDS)
        held = [hold(organization_id, 5) for _ in range(HOLDS)]
        # A third is over already, a third is over at about the time they are at it, a third is not.
        now = datetime.now(UTC)
        for number, hold_id in enumerate(held):
            moment = now + (timedelta(0), timedelta(seconds=1), timedelta(hours=1))[number % 3]
            rows(database, "UPDATE credits.holds SET expires_at = %s WHERE id = %s", moment, hold_id)
        rows(database, "UPDATE credits.accounts SET next_due_at = %s", now)
        ways = [[str(organization_id), way, *map(str, held)] for way in ("settle", "release", "sweep")]
        settled, released, swept = map(set, race(CLOSER, *ways))
    states = {str(row["id"]): row["state"] for row in rows(database, "SELECT id, state FROM credits.holds")}
    assert not swept
    assert settled == {hold_id for hold_id, state in states.items() if state == "settled"}
    assert released == {hold_id for hold_id, state in states.items() if state == "released"}
    assert all(states[str(hold_id)] == "expired" for hold_id in held[::3])
    closing = Counter(
        str(entry["source_id"])
        for entry in entries(database, organization_id)
        if entry["kind"] in {"settle", "release"}
    )
    assert closing == dict.fromkeys(states, 1)
    assert "open" not in states.values()
    assert_books_balance(database, organization_id)


# Debits two accounts in one transaction. The first time it waits in between until both have begun.
BATCH = """
import sys
from uuid import UUID
from backplane import db, ledger
from backplane.problems import Unavailable
first, second = UUID(sys.argv[1]), UUID(sys.argv[2])
attempts = 0
def work(tx):
    global attempts
    attempts += 1
    ledger.debit(first, "ai_text_chat", 1, key=sys.argv[3], actor="user:1", tx=tx)
    if attempts == 1:
        print("ready", flush=True)
        sys.stdin.readline()
    ledger.debit(second, "ai_text_chat", 1, key=sys.argv[3], actor="user:1", tx=tx)
while True:
    try:
        db.run(work)
        break
    except Unavailable:  # on a machine so slow that the lock's timeout comes before the deadlock's
        continue
print(attempts)
"""


def test_batches_in_opposite_orders_are_both_booked_though_they_deadlock(database: Database) -> None:
    with database.as_role("backplane_app"):
        one, other = new_account(database, 5), new_account(database, 5)
        said = race(BATCH, [str(one), str(other), "batch-1"], [str(other), str(one), "batch-2"])
    assert sum(int(attempts) for (attempts,) in said) > 2, "one of them had to be repeated"
    for organization_id in (one, other):
        keys = [entry["idempotency_key"] for entry in entries(database, organization_id)]
        assert sorted(filter(None, keys)) == ["batch-1", "batch-2"]
        assert_books_balance(database, organization_id)
