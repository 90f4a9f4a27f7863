"""What a debit costs, against limits and peers, and whether every one of them is accounted for.

Contestants take turns in short rounds on one server, each on accounts of its own, so that what else
the machine does falls on all alike; a ratio is the median of the rounds' ratios. After each cell of the
table a judge recomputes the contestants' books and compares them with what was acknowledged.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow
from tests.databases import Database

from benchmarks import debit_handler, pgbench, results, scratch
from benchmarks.debit_clients import Clients, Task

SCRIPTS = Path(__file__).with_suffix("")
OPENING = 10**12  # credits, more than can be spent
HISTORY = 5_000  # entries of a contestant before it begins


@dataclass(frozen=True)
class Contestant:
    """Debits by a script of pgbench's, or by a function of debit_clients. Its number names its accounts."""

    number: int
    title: str
    way: str
    books: str  # what it keeps: balance, entries, ledger (entries and grants), or the peers' own tables

    @property
    def script(self) -> Path | None:
        path = SCRIPTS / f"{self.way}.sql"
        return path if self.number in LIMITS else None


LIMITS = (1, 2, 3)
LEDGER = Contestant(4, "`ledger.debit`", "ledger_debit", "ledger")
L2 = Contestant(3, "L2", "ledger_debit", "ledger")
CORRECTED = Contestant(6, "corrected", "guarded_update", "peer")
CONTESTANTS = (
    Contestant(1, "L0", "bare_update", "balance"),
    Contestant(2, "L1", "guarded_insert", "entries"),
    L2,
    LEDGER,
    Contestant(5, "template's", "read_check_write", "peer"),
    CORRECTED,
    Contestant(7, "FOR UPDATE", "select_for_update", "peer"),
)


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


@dataclass(frozen=True)
class Verdict:
    acknowledged: int
    taken: int  # from the balances
    recorded: int | None  # None: it keeps no record
    unsound: int  # accounts whose books do not add up

    @property
    def lost(self) -> int:
        """Acknowledged, and not taken from a balance."""
        return self.acknowledged - self.taken

    @property
    def is_sound(self) -> bool:
        return self.lost == 0 and self.unsound == 0 and self.recorded in {None, self.acknowledged}


def main() -> None:
    with Clients(max(cell.clients for cell in CELLS)) as clients, scratch.server() as server:
        rows: list[list[str]] = []
        lost: dict[Contestant, list[Verdict]] = defaultdict(list)
        for accounts, cells in by_accounts(CELLS).items():
            template = open_accounts(server.migrated(), accounts)
            for cell in cells:
                print(f"{accounts:,} accounts, {cell.clients} clients, {cell.rounds} rounds …", flush=True)
                with server.copy(template) as database:
                    measured = measure(database, cell, clients)
                    for contestant, verdict in judge(database, measured, accounts).items():
                        lost[contestant].append(verdict)
                rows.append(row(cell, measured))
        print("the handler …", flush=True)
        with server.copy(template) as database:
            latencies = debit_handler.measure(database)
    write(rows, lost, latencies)


def by_accounts(cells: Sequence[Cell]) -> dict[int, list[Cell]]:
    found: dict[int, list[Cell]] = defaultdict(list)
    for cell in cells:
        found[cell.accounts].append(cell)
    return found


def open_accounts(database: Database, accounts: int, *, history: int = HISTORY) -> Database:
    """So many accounts for each contestant, full."""
    with database.connect() as owner:
        owner.execute((SCRIPTS / "accounts.sql").read_bytes())
        owner.execute(
            "CALL bench.open(%s, %s, %s, %s)",
            [len(CONTESTANTS), accounts, OPENING, max(history // accounts, 1)],
        )
        owner.execute("VACUUM ANALYZE")
    return database


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


# ---- the judge ----


def judge(
    database: Database, measured: dict[Contestant, Measured], accounts: int
) -> dict[Contestant, Verdict]:
    """Recomputes every contestant's books. Raises RuntimeError where any but a peer's are unsound."""
    with database.connect() as owner:
        verdicts = {
            contestant: _verdict(owner, contestant, accounts, found.acknowledged)
            for contestant, found in measured.items()
        }
    for contestant, verdict in verdicts.items():
        if contestant.books != "peer" and not verdict.is_sound:
            raise RuntimeError(f"{contestant.title} ({contestant.way}) does not add up: {verdict}")
    return verdicts


def _verdict(
    owner: psycopg.Connection[DictRow], contestant: Contestant, accounts: int, acknowledged: int
) -> Verdict:
    query = PEERS_BOOKS if contestant.books == "peer" else LEDGERS_BOOKS
    found: dict[str, Any] | None = owner.execute(
        query, {"contestant": contestant.number, "accounts": accounts, "opening": OPENING}
    ).fetchone()
    if found is None:
        raise RuntimeError("a sum has one row")
    unsound = {
        "balance": 0,
        "entries": found["entries_off"],
        "ledger": found["entries_off"] + found["grants_off"],
        "peer": 0,
    }
    return Verdict(
        acknowledged=acknowledged,
        taken=int(found["taken"]),
        recorded=None if contestant.books == "balance" else int(found["recorded"]),
        unsound=unsound[contestant.books],
    )


LEDGERS_BOOKS = b"""
    SELECT sum(%(opening)s - a.available) AS taken,
           sum(e.debits) AS recorded,
           count(*) FILTER (
               WHERE (e.sum, e.count, e.newest) IS DISTINCT FROM (a.available, a.version, a.version)
           ) AS entries_off,
           count(*) FILTER (WHERE g.remaining IS DISTINCT FROM a.available) AS grants_off
    FROM credits.accounts AS a
    CROSS JOIN LATERAL (
        SELECT sum(amount)::bigint AS sum, count(*) AS count, max(version) AS newest,
               count(*) FILTER (WHERE kind = 'debit' AND amount < 0) AS debits
        FROM credits.entries
        WHERE organization_id = a.organization_id
    ) AS e
    LEFT JOIN credits.grants AS g ON g.organization_id = a.organization_id
    WHERE a.organization_id BETWEEN bench.account(%(contestant)s, 1)
                                AND bench.account(%(contestant)s, %(accounts)s)
"""
PEERS_BOOKS = b"""
    SELECT sum(%(opening)s - b.credits_remaining) AS taken,
           (SELECT count(*)
            FROM bench.usage_history AS u
            WHERE u.credits_used > 0
              AND u.user_id BETWEEN bench.account(%(contestant)s, 1)
                                AND bench.account(%(contestant)s, %(accounts)s)
           ) AS recorded,
           0 AS entries_off, 0 AS grants_off
    FROM bench.credit_balances AS b
    WHERE b.user_id BETWEEN bench.account(%(contestant)s, 1)
                        AND bench.account(%(contestant)s, %(accounts)s)
"""


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
