"""The debit benchmark's own judge: it passes what is sound, and sees what is not."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from benchmarks import debit_books, debit_clients, pgbench
from benchmarks.debit_books import CONTESTANTS, LEDGER, Contestant
from tests.databases import Database
from tests.ledgers import rows

ACCOUNTS = 2
TIMES = 3


@pytest.fixture
def opened(database: Database) -> Iterator[Database]:
    """A database with two full accounts for each contestant; backplane.db connects as the application."""
    with database.as_role("backplane_app"):
        yield debit_books.open_accounts(database, ACCOUNTS, history=2)


def compete(opened: Database) -> dict[Contestant, int]:
    """Each contestant debits a few times, alone."""
    acknowledged = {}
    for contestant in CONTESTANTS:
        if contestant.script:
            url = opened.app if contestant.books == "ledger" else opened.owner
            variables = {"contestant": contestant.number, "accounts": ACCOUNTS}
            ran = pgbench.run(contestant.script, url, 1, transactions=TIMES, variables=variables)
            acknowledged[contestant] = ran.transactions
            continue
        with opened.connect("backplane_app") as session:
            for account in debit_clients.chosen(contestant.number, ACCOUNTS)[:TIMES]:
                debit_clients.DEBITS[contestant.way](session, account)
        acknowledged[contestant] = TIMES
    return acknowledged


def test_every_contestant_takes_what_it_acknowledges_when_alone(opened: Database) -> None:
    verdicts = debit_books.judge(opened, compete(opened), ACCOUNTS)
    assert [verdict.taken for verdict in verdicts.values()] == [TIMES] * len(CONTESTANTS)
    assert all(verdict.is_sound for verdict in verdicts.values())


def test_the_templates_deduction_loses_debits_when_two_meet(opened: Database) -> None:
    template = next(one for one in CONTESTANTS if one.way == "read_check_write")
    account = debit_clients.chosen(template.number, 1)[0]
    with opened.connect("backplane_app") as first, opened.connect("backplane_app") as second:
        read = first.execute("SELECT * FROM bench.credit_balances WHERE user_id = %s", [account]).fetchone()
        assert read is not None
        debit_clients.read_check_write(second, account)
        debit_clients.write_back(first, account, read)
    verdict = debit_books.judge(opened, {template: 2}, ACCOUNTS)[template]
    assert (verdict.lost, verdict.recorded) == (1, 2)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE credits.accounts SET available = available + 1",
        "UPDATE credits.accounts SET version = version + 1",
        "UPDATE credits.grants SET remaining = remaining - 1",
        "ALTER TABLE credits.entries DISABLE TRIGGER ALL; DELETE FROM credits.entries WHERE version = 2",
    ],
)
def test_books_of_the_ledgers_that_do_not_add_up_stop_the_benchmark(opened: Database, damage: str) -> None:
    acknowledged = compete(opened)
    rows(opened, damage)
    with pytest.raises(RuntimeError, match="does not add up"):
        debit_books.judge(opened, {LEDGER: acknowledged[LEDGER]}, ACCOUNTS)


def test_a_debit_that_was_acknowledged_and_not_taken_stops_the_benchmark(opened: Database) -> None:
    acknowledged = compete(opened)[LEDGER]
    with pytest.raises(RuntimeError, match="does not add up"):
        debit_books.judge(opened, {LEDGER: acknowledged + 1}, ACCOUNTS)


# A process of its own: the clients are forked, which a test's threads do not bear.
BRIEF = """
from benchmarks.debit_clients import Clients
with Clients(3) as clients:
    processes = clients.processes
print(*[process.exitcode for process in processes])
"""


def test_clients_end_by_themselves_when_nobody_gives_them_tasks() -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    ended = subprocess.run(
        [sys.executable, "-c", BRIEF],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert ended.stdout.split() == ["0", "0", "0"]
