"""What a debit costs, against limits and peers, and whether every one of them is accounted for.

Contestants take turns in short rounds on one server, each on accounts of its own, so that what else
the machine does falls on all alike; a ratio is the median of the rounds' ratios. After each cell of the
table a judge recomputes the contestants' books and compares them with what was acknowledged.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from tests.databases import Database

from benchmarks import debit_handler, pgbench, results, scratch
from benchmarks.debit_books import (
    CONTESTANTS,
    CORRECTED,
    L2,
    LEDGER,
    Contestant,
    Verdict,
    judge,
    open_accounts,
)
from benchmarks.debit_clients import Clients, Task


@dataclass(frozen=True)
class Cell:
    accounts: int
    clients: int
    rounds: int = 2


# The cells with a goal get more rounds.
CELLS = tuple(
    Cell(accounts, clients, 5 if clients == 8 and accounts != 8 else 2)  # noqa: PLR2004
    for accounts in (1, 8, 10_000)
    for clients in (1, 8, 32)
)
GOALS = {1: 0.90, 10_000: 0.75}  # of L2, by accounts, at 8 clients
SECONDS = 1


@dataclass(frozen=True)
class Measured:
    """A contestant's in a cell: debits a second in each round, and how many were acknowledged in all."""

    rates: list[float]
    acknowledged: int


def main() -> None:
    with Clients(max(cell.clients for cell in CELLS)) as clients, scratch.server() as server:
        rows: list[list[str]] = []
        verdicts: dict[Contestant, list[Verdict]] = defaultdict(list)
        for accounts, cells in by_accounts(CELLS).items():
            template = open_accounts(server.migrated(), accounts)
            for cell in cells:
                print(f"{accounts:,} accounts, {cell.clients} clients, {cell.rounds} rounds …", flush=True)
                with server.copy(template) as database:
                    measured = measure(database, cell, clients)
                    acknowledged = {one: found.acknowledged for one, found in measured.items()}
                    for contestant, verdict in judge(database, acknowledged, accounts).items():
                        verdicts[contestant].append(verdict)
                rows.append(row(cell, measured))
        print("the handler …", flush=True)
        with server.copy(template) as database:
            latencies = debit_handler.measure(database)
    write(rows, verdicts, latencies)


def by_accounts(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    found: dict[int, list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell.accounts].append(cell)
    return found


def measure(
    database: Database, cell: Cell, clients: Clients, *, seconds: float = SECONDS
) -> dict[Contestant, Measured]:
    clients.connect(database)
    try:
        rates: dict[Contestant, list[float]] = {contestant: [] for contestant in CONTESTANTS}
        acknowledged = dict.fromkeys(CONTESTANTS, 0)
        for number in range(cell.rounds + 1):
            for contestant in CONTESTANTS:
                warming = number == 0
                if warming and contestant.script:
                    continue  # it warms up in each of its runs
                debits, rate = run(contestant, database, cell, clients, seconds / 4 if warming else seconds)
                acknowledged[contestant] += debits
                rates[contestant] += [] if warming else [rate]
    finally:
        clients.connect(None)
    return {contestant: Measured(rates[contestant], acknowledged[contestant]) for contestant in CONTESTANTS}


def run(
    contestant: Contestant, database: Database, cell: Cell, clients: Clients, seconds: float
) -> tuple[int, float]:
    """How many debits were acknowledged, and how many a second."""
    if contestant.script:
        # Only the ledger's functions are open to the application's role, as it should be.
        url = database.app if contestant.books == "ledger" else database.owner
        variables = {"contestant": contestant.number, "accounts": cell.accounts}
        timed = pgbench.run(
            contestant.script, url, cell.clients, seconds=int(seconds) + 1, variables=variables
        )
        return timed.transactions, timed.rate
    done = clients.run(Task(contestant.way, contestant.number, cell.accounts, seconds), cell.clients)
    return sum(each.debits for each in done), sum(each.debits / each.seconds for each in done)


# ---- the tables ----


def row(cell: Cell, measured: dict[Contestant, Measured]) -> list[str]:
    rates = [f"{statistics.median(measured[contestant].rates):,.0f}" for contestant in CONTESTANTS]
    goal = GOALS.get(cell.accounts) if cell.clients == 8 else None  # noqa: PLR2004
    of_l2 = ratio(measured, L2)
    of_peer = ratio(measured, CORRECTED)
    return [
        f"{cell.accounts:,}",
        str(cell.clients),
        *rates,
        f"{of_l2:.2f}" + (f" (goal {goal:.2f})" if goal else ""),
        f"{of_peer:.1f}×",  # noqa: RUF001  a ratio
    ]


def ratio(measured: dict[Contestant, Measured], other: Contestant) -> float:
    """The ledger's rate by another's, in the same round."""
    pairs = zip(measured[LEDGER].rates, measured[other].rates, strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def write(
    rows: list[list[str]],
    verdicts: dict[Contestant, list[Verdict]],
    latencies: dict[str, list[float]],
) -> None:
    results.write(
        "Debits a second",
        "One credit at a time; the median round. L0 is a bare `UPDATE` of the balance's row, L1 a guarded "
        "`UPDATE` with its entry, L2 the SQL call of `ledger.debit`, each by pgbench, prepared. The others "
        "go through psycopg, a process a client. The peers are the Clerk and credits template's "
        "deduction (read, check, write, in a transaction), and its corrections: by a guarded `UPDATE`, by "
        "`SELECT FOR UPDATE`. Those have no keys, grants or versions. Of 10,000 accounts some are debited "
        "more than others (Zipf, 1.1).",
        [
            "accounts",
            "clients",
            *(contestant.title for contestant in CONTESTANTS),
            "of L2",
            "of corrected",
        ],
        rows,
    )
    results.write(
        "Debits accounted for",
        "What the clients were told, over all the cells above, and what the books say afterwards: sums, "
        "balances, grants, and versions without a gap.",
        ["", "acknowledged", "recorded", "taken from a balance", "lost"],
        [account_of(contestant, found) for contestant, found in verdicts.items()],
        notes="Lost debits were acknowledged and recorded, and paid by nobody.",
    )
    bare = statistics.median(latencies[debit_handler.BARE])
    results.write(
        "Debit by the whole handler",
        "One client, one after the other, in turns; median / 99th percentile in ms. The handler is called in "
        "this process with the gateway's event.",
        ["way", "ms", "added at the median (goal 1.5)"],
        [
            [way, results.milliseconds(seconds), f"{(statistics.median(seconds) - bare) * 1000:.2f}"]
            for way, seconds in latencies.items()
        ],
    )


def account_of(contestant: Contestant, found: Sequence[Verdict]) -> list[str]:
    acknowledged = sum(verdict.acknowledged for verdict in found)
    lost = sum(verdict.lost for verdict in found)
    recorded = [verdict.recorded for verdict in found if verdict.recorded is not None]
    return [
        contestant.title,
        f"{acknowledged:,}",
        f"{sum(recorded):,}" if recorded else "none kept",
        f"{sum(verdict.taken for verdict in found):,}",
        f"{lost:,} ({lost / acknowledged:.0%})" if lost else "0",
    ]
