"""The database's report: its state, what of it asks for somebody, and what he should do about it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from pydantic import BaseModel

from backplane import database_state, db
from backplane.database_state import State

LISTED: Final = 20  # of a kind
MOST: Final = 10  # findings of one kind: where there are more, they have one cause

FULL: Final = 0.8  # of max_connections
LONG_TRANSACTION: Final = 300  # seconds
IDLE_IN_TRANSACTION: Final = 60  # seconds; the roles' own timeout ends what is ours
LOCK_WAIT: Final = 5  # seconds
MANY_ROWS: Final = 10_000
LARGE: Final = 100_000  # rows that nobody should read from first to last, again and again
DEAD: Final = 0.2  # of a table's rows
UNUSED_BYTES: Final = 10 * 1024**2
UNUSED_SINCE: Final = timedelta(days=7)  # counted for so long, an index that served nobody serves nobody
SLOW: Final = 1000.0  # ms, the slow log's second
CACHED: Final = 0.95
CACHE_READS: Final = 100_000  # blocks; fewer say nothing of the cache
# PostgreSQL vacuums by itself at 200 million and stops writing at 2.1 billion.
XID_LOOK: Final = 500_000_000
XID_ACT: Final = 1_200_000_000
HELD_BACK: Final = 10_000_000  # transactions that VACUUM may not clean up behind
KEYS_USED: Final = 0.5


class Finding(BaseModel):
    severity: Literal["act", "look"]  # act: it gets worse by itself
    subject: str
    what: str
    do: str


class Report(State):
    findings: list[Finding]  # what is to be done first comes first


def read(tx: db.Tx) -> Report:
    """As the transaction's role sees it, each list cut; what the role may not see is a finding."""
    state = database_state.read(tx)
    lists = {name: value[:LISTED] for name, value in state if isinstance(value, list)}
    return Report(**dict(state) | lists, findings=judge(state))


def judge(state: State) -> list[Finding]:
    """What gets worse by itself first."""
    found: list[Finding] = []
    for rule in RULES:
        found += list(rule(state))[:MOST]
    return sorted(found, key=lambda finding: finding.severity)


def _act(subject: str, what: str, do: str) -> Finding:
    return Finding(severity="act", subject=subject, what=what, do=do)


def _look(subject: str, what: str, do: str) -> Finding:
    return Finding(severity="look", subject=subject, what=what, do=do)


def _missing(state: State) -> Iterator[Finding]:
    if not state.database.sees_other_roles:
        yield _look(
            "report",
            "other roles' sessions and statements are hidden from this login",
            "As the owner (a superuser, or Amazon's master user): "
            "GRANT pg_read_all_stats TO backplane_system. `make migrate` does it where it may.",
        )
    if not state.database.sees_statements:
        yield _look(
            "report",
            "statements are not counted: pg_stat_statements is missing",
            "Put it into shared_preload_libraries (infra/database.yaml has it), restart the server, then "
            "run `make migrate` as the owner.",
        )


def _connections(state: State) -> Iterator[Finding]:
    database = state.database
    if database.connections >= FULL * database.max_connections:
        yield _act(
            "connections",
            f"{database.connections} of {database.max_connections} are taken",
            "Look below for who holds them. Put RDS Proxy or PgBouncer in front, raise MaxCapacity, or "
            "lower the functions' concurrency.",
        )


def _transactions(state: State) -> Iterator[Finding]:
    for each in state.transactions:
        who = f"{each.role} ({each.application})" if each.application else each.role
        if each.state == "idle in transaction" and (each.in_state_seconds or 0) > IDLE_IN_TRANSACTION:
            yield _act(
                f"session {each.pid}",
                f"{who} has left a transaction open for {each.seconds:,} s and does nothing",
                f"End it: SELECT pg_terminate_backend({each.pid}); it is rolled back.",
            )
        elif each.seconds > LONG_TRANSACTION and each.role != "backplane_backup":
            yield _look(
                f"session {each.pid}",
                f"{who} has been in a transaction for {each.seconds:,} s",
                f"If nobody waits for its result: SELECT pg_cancel_backend({each.pid}).",
            )


def _lock_waits(state: State) -> Iterator[Finding]:
    for each in state.lock_waits:
        if (each.seconds or 0) > LOCK_WAIT:
            blockers = ", ".join(map(str, each.blocked_by)) or "nobody any longer"
            yield _act(
                f"session {each.pid}",
                f"{each.role} has waited {each.seconds:,} s for {each.waits_for} ({each.mode}), "
                f"held by {blockers}",
                "Look at the holder among the transactions below. If it is stuck: "
                f"SELECT pg_terminate_backend({each.blocked_by[0] if each.blocked_by else 'pid'}).",
            )


def _tables(state: State) -> Iterator[Finding]:
    for each in state.tables:
        if each.dead_rows > MANY_ROWS and each.dead_rows > DEAD * (each.live_rows + each.dead_rows):
            yield _act(
                each.name,
                f"{each.dead_rows:,} of its rows are dead",
                f"VACUUM (ANALYZE) {each.name}. If it does not help, look for what holds VACUUM back.",
            )
        if each.live_rows > MANY_ROWS and each.last_analyze is None:
            yield _act(
                each.name,
                f"about {each.live_rows:,} rows, never analysed: plans are guesses",
                f"ANALYZE {each.name}. The function maintenance does it at night.",
            )
        scanned = each.rows_read_sequentially / max(each.sequential_scans, 1)
        if each.live_rows > LARGE and scanned > LARGE and each.sequential_scans > each.index_scans / 100:
            yield _look(
                each.name,
                f"read from first to last {each.sequential_scans:,} times",
                "Find the statement below and EXPLAIN (ANALYZE, BUFFERS) it: it lacks an index.",
            )


def _indexes(state: State) -> Iterator[Finding]:
    counted_long = datetime.now(UTC) - state.database.counted_since > UNUSED_SINCE
    for each in state.indexes:
        if not each.is_valid:
            yield _act(
                each.name,
                "invalid: it costs writes and serves nobody; its making was cut off",
                f"DROP INDEX CONCURRENTLY {each.name}, then run the migration that makes it again.",
            )
        elif each.covered_by:
            yield _look(each.name, f"{each.covered_by} does the same", "Drop it in a migration.")
        elif counted_long and not each.scans and not each.is_unique and each.bytes > UNUSED_BYTES:
            yield _look(
                each.name,
                f"{each.bytes / 1024**2:.0f} MB, unused since {state.database.counted_since:%Y-%m-%d}",
                "If no reader uses it either, drop it in a migration.",
            )


def _statements(state: State) -> Iterator[Finding]:
    for each in state.statements:
        if each.mean_ms >= SLOW:
            text = (each.text or "(text withheld)")[:160]
            yield _look(
                "statement",
                f"{each.mean_ms:,.0f} ms on average, {each.calls:,} calls by {each.role}: {text}",
                "EXPLAIN (ANALYZE, BUFFERS) it as that role, with values that are slow.",
            )


def _transaction_ids(state: State) -> Iterator[Finding]:
    for each in state.transaction_ids:
        worst = max(each.xid_age, each.multixact_age)
        if worst > XID_LOOK:
            finding = _act if worst > XID_ACT else _look
            yield finding(
                f"database {each.database}",
                f"its oldest transaction number is {worst:,} back; at 2.1 billion writes stop",
                "Remove what holds VACUUM back (below), then VACUUM FREEZE the tables with the highest age.",
            )


def _vacuum_blockers(state: State) -> Iterator[Finding]:
    for each in state.vacuum_blockers:
        if (each.xid_age or 0) > HELD_BACK or (each.kind == "replication slot" and not each.active):
            ways = {
                "transaction": f"SELECT pg_terminate_backend({each.name}).",
                "prepared transaction": f"ROLLBACK PREPARED '{each.name}'.",
                "replication slot": f"If nobody reads it: SELECT pg_drop_replication_slot('{each.name}').",
                "standby": "Look at the reader's long queries, or turn hot_standby_feedback off.",
            }
            yield _act(
                f"{each.kind} {each.name}",
                f"holds back VACUUM, {each.xid_age or 0:,} transactions behind"
                + ("" if each.active else ", and is inactive"),
                ways[each.kind],
            )


def _keys(state: State) -> Iterator[Finding]:
    for each in state.key_headroom:
        if each.used is None:
            yield _look(each.name, f"a key that ends at {each.last:,}", "Make it bigint in a migration.")
        elif each.used > KEYS_USED:
            yield _act(
                each.name, f"{each.used:.0%} of its numbers are used", "Make it bigint in a migration."
            )


def _whole(state: State) -> Iterator[Finding]:
    database = state.database
    read = database.blocks_hit + database.blocks_read
    if database.blocks_read > CACHE_READS and database.blocks_hit < CACHED * read:
        yield _look(
            "cache",
            f"{database.blocks_hit / read:.1%} of the blocks were in memory",
            "Raise MinCapacity, or look for statements that read too much.",
        )
    if database.checksum_failures:
        yield _act(
            "storage",
            f"{database.checksum_failures} blocks failed their checksums",
            "Restore: docs/runbooks/restore.md. Keep the damaged database for the provider.",
        )


RULES: Final[tuple[Callable[[State], Iterator[Finding]], ...]] = (
    _missing,
    _whole,
    _connections,
    _lock_waits,
    _transactions,
    _transaction_ids,
    _vacuum_blockers,
    _keys,
    _tables,
    _indexes,
    _statements,
)
