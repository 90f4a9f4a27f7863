"""Who debits, on which accounts, and the judge who recomputes their books afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import DictRow
from tests.databases import Database

SCRIPTS = Path(__file__).with_name("debit")
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


# ---- the judge ----


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


def judge(
    database: Database, acknowledged: Mapping[Contestant, int], accounts: int
) -> dict[Contestant, Verdict]:
    """Recomputes every contestant's books. Raises RuntimeError where any but a peer's are unsound."""
    with database.connect() as owner:
        verdicts = {
            contestant: _verdict(owner, contestant, accounts, count)
            for contestant, count in acknowledged.items()
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
