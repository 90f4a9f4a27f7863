"""How the database is, by what the views of schema ops say of it.

Numbers and names of objects and roles; no row of a tenant's, no statement's values, no session's words.
"""

from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel

from backplane import db

STATEMENTS = 100  # the most costly; the others are noise

Row = TypeVar("Row", bound=BaseModel)


class Database(BaseModel):
    name: str
    server: str
    bytes: int
    connections: int  # of the whole server
    max_connections: int
    blocks_hit: int
    blocks_read: int
    temporary_bytes: int  # written by sorts and hashes that memory did not hold
    deadlocks: int
    checksum_failures: int
    counted_since: datetime
    sees_other_roles: bool
    sees_statements: bool


class Connections(BaseModel):
    role: str
    application: str
    state: str
    waiting_for: str | None
    connections: int
    oldest_seconds: int | None
    longest_in_state_seconds: int | None


class Transaction(BaseModel):
    pid: int
    role: str
    application: str
    state: str | None
    waiting_for: str
    seconds: int
    in_state_seconds: int | None
    xid_age: int | None


class LockWait(BaseModel):
    pid: int
    role: str
    application: str
    mode: str
    waits_for: str  # a table, or a kind of lock
    seconds: int | None
    blocked_by: list[int]


class Table(BaseModel):
    name: str
    live_rows: int  # an estimate
    dead_rows: int
    heap_bytes: int
    toast_bytes: int
    index_bytes: int
    total_bytes: int
    last_vacuum: datetime | None
    last_analyze: datetime | None
    changed_since_analyze: int
    sequential_scans: int
    rows_read_sequentially: int
    index_scans: int
    xid_age: int


class Index(BaseModel):
    name: str
    table_name: str
    bytes: int
    scans: int
    last_scan: datetime | None
    is_unique: bool
    is_valid: bool
    covered_by: str | None  # another index that does the same


class Statement(BaseModel):
    role: str
    text: str | None  # normalised; null: withheld, because values are left in it
    calls: int
    total_ms: float
    mean_ms: float
    max_ms: float
    row_count: int
    hit_ratio: float | None
    temporary_blocks: int


class TransactionIds(BaseModel):
    database: str
    xid_age: int
    multixact_age: int


class VacuumBlocker(BaseModel):
    kind: str
    name: str
    xid_age: int | None
    active: bool


class Key(BaseModel):
    name: str
    used: float | None  # of a sequence, the part of its numbers; null: a column, by its type
    last: int


class State(BaseModel):
    """Each list the largest, slowest or oldest first."""

    database: Database
    connections: list[Connections]
    transactions: list[Transaction]
    lock_waits: list[LockWait]
    tables: list[Table]
    indexes: list[Index]
    statements: list[Statement]
    transaction_ids: list[TransactionIds]
    vacuum_blockers: list[VacuumBlocker]
    key_headroom: list[Key]


def read(tx: db.Tx) -> State:
    """As the transaction's role sees it."""
    (database,) = _rows(tx, Database, "SELECT * FROM ops.database")
    return State(
        database=database,
        connections=_rows(tx, Connections, "SELECT * FROM ops.connections ORDER BY connections DESC"),
        transactions=_rows(tx, Transaction, "SELECT * FROM ops.transactions ORDER BY seconds DESC"),
        lock_waits=_rows(tx, LockWait, "SELECT * FROM ops.lock_waits ORDER BY seconds DESC NULLS LAST"),
        tables=_rows(tx, Table, "SELECT * FROM ops.tables ORDER BY total_bytes DESC, name"),
        indexes=_rows(tx, Index, "SELECT * FROM ops.indexes ORDER BY bytes DESC, name"),
        statements=_rows(
            tx, Statement, f"SELECT * FROM ops.statements ORDER BY total_ms DESC LIMIT {STATEMENTS}"
        ),
        transaction_ids=_rows(tx, TransactionIds, "SELECT * FROM ops.transaction_ids ORDER BY xid_age DESC"),
        vacuum_blockers=_rows(
            tx, VacuumBlocker, "SELECT * FROM ops.vacuum_blockers ORDER BY xid_age DESC NULLS LAST"
        ),
        key_headroom=_rows(tx, Key, "SELECT * FROM ops.key_headroom ORDER BY used DESC NULLS LAST, name"),
    )


def _rows(tx: db.Tx, model: type[Row], query: str) -> list[Row]:
    return [model.model_validate(row) for row in tx.execute(query.encode()).fetchall()]
