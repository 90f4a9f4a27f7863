"""`make db-report`: how the database is (the running stack's, or DATABASE_URL's), and what to do about it."""

import textwrap
from collections.abc import Iterator, Sequence

import psycopg
from psycopg.rows import dict_row

from backplane import database_report
from backplane.database_report import Report
from local.database import owner_url
from local.progress import MIB
from local.refusal import Refusal, exits

WIDTH = 80  # columns
LINES = 12  # of a table
PATIENCE = 30_000  # ms a statement may take: the report must not be what the database suffers from
LOCK_PATIENCE = 2_000  # ms, too
MINUTE, HOUR, DAY = 60, 3600, 86_400  # seconds


def main() -> int:
    report = read(owner_url())
    print("\n".join(lines(report)))
    return 0


def read(url: str) -> Report:
    """Changes nothing. Raises Refusal."""
    try:
        with psycopg.connect(url, row_factory=dict_row, connect_timeout=10) as connection:
            connection.read_only = True
            connection.execute(f"SET statement_timeout = {PATIENCE}; SET lock_timeout = {LOCK_PATIENCE}")
            return database_report.read(connection)
    except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable):
        raise Refusal(
            "the database lacks the operations views. Bring it up to date: `make migrate`."
        ) from None
    except psycopg.Error as error:
        raise Refusal(f"the database can't be asked: {str(error).strip()}") from None


def lines(report: Report) -> Iterator[str]:
    """Eighty columns wide."""
    database = report.database
    yield f"Database {database.name}, PostgreSQL {database.server}, {_size(database.bytes)}"
    read = database.blocks_hit + database.blocks_read
    yield (
        f"{database.connections} of {database.max_connections} connections, "
        f"{database.blocks_hit / max(read, 1):.1%} of reads from memory, {database.deadlocks} deadlocks"
    )
    yield f"Counted since {database.counted_since:%Y-%m-%d %H:%M}"
    yield from _findings(report)
    for section in (_tables, _indexes, _statements, _connections, _open_transactions, _waiting_for_locks):
        yield from section(report)


def _tables(report: Report) -> Iterator[str]:
    return _table(
        "Tables",
        ("size", "rows", "dead", "vacuumed", "seq scans", "name"),
        [
            (
                _size(each.total_bytes),
                f"{each.live_rows:,}",
                f"{each.dead_rows:,}",
                f"{each.last_vacuum:%Y-%m-%d}" if each.last_vacuum else "never",
                f"{each.sequential_scans:,}",
                each.name,
            )
            for each in report.tables
        ],
    )


def _indexes(report: Report) -> Iterator[str]:
    return _table(
        "Indexes",
        ("size", "scans", "name"),
        [(_size(each.bytes), f"{each.scans:,}", each.name) for each in report.indexes],
    )


def _statements(report: Report) -> Iterator[str]:
    return _table(
        "Statements",
        ("total", "mean ms", "calls", "role", "text"),
        [
            (
                _age(each.total_ms / 1000),
                f"{each.mean_ms:,.1f}",
                f"{each.calls:,}",
                each.role,
                each.text or "(withheld)",
            )
            for each in report.statements
        ],
    )


def _connections(report: Report) -> Iterator[str]:
    return _table(
        "Connections",
        ("number", "oldest", "role", "state", "waits for", "application"),
        [
            (
                str(each.connections),
                _age(each.oldest_seconds),
                each.role,
                each.state,
                each.waiting_for or "",
                each.application,
            )
            for each in report.connections
        ],
    )


def _open_transactions(report: Report) -> Iterator[str]:
    return _table(
        "Open transactions",
        ("pid", "for", "role", "state", "waits for"),
        [
            (str(each.pid), _age(each.seconds), each.role, each.state or "?", each.waiting_for)
            for each in report.transactions
        ],
    )


def _waiting_for_locks(report: Report) -> Iterator[str]:
    return _table(
        "Waiting for locks",
        ("pid", "for", "role", "held by", "on"),
        [
            (
                str(each.pid),
                _age(each.seconds),
                each.role,
                " ".join(map(str, each.blocked_by)),
                each.waits_for,
            )
            for each in report.lock_waits
        ],
    )


def _findings(report: Report) -> Iterator[str]:
    yield ""
    if not report.findings:
        yield "Nothing asks for you."
    for finding in report.findings:
        mark = "!" if finding.severity == "act" else "?"
        yield from textwrap.wrap(
            f"{mark} {finding.subject}: {finding.what}", WIDTH, subsequent_indent="  ", break_on_hyphens=False
        )
        yield from textwrap.wrap(
            finding.do, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False
        )


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Numbers and short words at the right of their columns, the last column cut at the edge."""
    if not rows:
        return
    shown = [heads, *rows[:LINES]]
    widths = [max(len(row[n]) for row in shown) for n in range(len(heads) - 1)]
    yield ""
    yield title
    for row in shown:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()[:WIDTH]
    if len(rows) > LINES:
        yield f"… and {len(rows) - LINES} more"


def _size(count: int) -> str:
    return f"{count / MIB:,.1f} MB"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for size, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


if __name__ == "__main__":
    exits(main)
