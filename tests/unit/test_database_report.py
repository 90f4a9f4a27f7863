"""What a database's state makes the report say: each trouble with what to do, and none of a healthy one."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from local import db_report

from backplane.database_report import Report, judge
from backplane.database_state import State

NOW = datetime.now(UTC)
DATABASE = {
    "name": "backplane",
    "server": "18.3",
    "bytes": 10**9,
    "connections": 20,
    "max_connections": 100,
    "blocks_hit": 10**7,
    "blocks_read": 10**3,
    "temporary_bytes": 0,
    "deadlocks": 0,
    "checksum_failures": 0,
    "counted_since": NOW - timedelta(days=30),
    "sees_other_roles": True,
    "sees_statements": True,
}
SESSION = {"pid": 7, "role": "backplane_app", "application": "projects", "waiting_for": ""}
TRANSACTION = SESSION | {"state": "active", "seconds": 1, "in_state_seconds": 1, "xid_age": 1}
TABLE = {
    "name": "projects.messages",
    "live_rows": 10**6,
    "dead_rows": 100,
    "heap_bytes": 10**8,
    "toast_bytes": 0,
    "index_bytes": 10**8,
    "total_bytes": 2 * 10**8,
    "last_vacuum": NOW,
    "last_analyze": NOW,
    "changed_since_analyze": 0,
    "sequential_scans": 0,
    "rows_read_sequentially": 0,
    "index_scans": 10**6,
    "xid_age": 10**6,
}
INDEX = {
    "name": "projects.messages_project",
    "table_name": "projects.messages",
    "bytes": 10**8,
    "scans": 10**6,
    "last_scan": NOW,
    "is_unique": False,
    "is_valid": True,
    "covered_by": None,
}
STATEMENT = {
    "role": "backplane_app",
    "text": "SELECT $1",
    "calls": 10,
    "total_ms": 100,
    "mean_ms": 10,
    "max_ms": 20,
    "row_count": 10,
    "hit_ratio": 1,
    "temporary_blocks": 0,
}
HEALTHY: dict[str, Any] = {
    "database": DATABASE,
    "connections": [],
    "transactions": [TRANSACTION],
    "lock_waits": [],
    "tables": [TABLE],
    "indexes": [INDEX],
    "statements": [STATEMENT],
    "transaction_ids": [{"database": "backplane", "xid_age": 10**8, "multixact_age": 10}],
    "vacuum_blockers": [{"kind": "transaction", "name": "7", "xid_age": 1, "active": True}],
    "key_headroom": [{"name": "public.numbers", "used": 0.1, "last": 2**63 - 1}],
}


def test_a_healthy_database_asks_for_nothing() -> None:
    assert judge(State.model_validate(HEALTHY)) == []


@pytest.mark.parametrize(
    ("kind", "change", "severity", "says", "do"),
    [
        ("database", {"sees_other_roles": False}, "look", "hidden", "GRANT pg_read_all_stats"),
        ("database", {"sees_statements": False}, "look", "not counted", "shared_preload_libraries"),
        ("database", {"connections": 80}, "act", "80 of 100", "RDS Proxy"),
        ("database", {"blocks_read": 10**7}, "look", "50.0%", "MinCapacity"),
        ("database", {"checksum_failures": 1}, "act", "checksums", "restore.md"),
        (
            "transactions",
            {"state": "idle in transaction", "in_state_seconds": 61},
            "act",
            "does nothing",
            "pg_terminate_backend(7)",
        ),
        ("transactions", {"seconds": 301}, "look", "301 s", "pg_cancel_backend(7)"),
        ("tables", {"dead_rows": 10**6}, "act", "1,000,000 of its rows are dead", "VACUUM"),
        ("tables", {"last_analyze": None}, "act", "never analysed", "ANALYZE projects.messages"),
        (
            "tables",
            {"sequential_scans": 20_000, "rows_read_sequentially": 2 * 10**10},
            "look",
            "20,000 times",
            "EXPLAIN",
        ),
        ("indexes", {"is_valid": False}, "act", "invalid", "DROP INDEX CONCURRENTLY"),
        ("indexes", {"covered_by": "projects.other"}, "look", "projects.other does the same", "Drop it"),
        ("indexes", {"scans": 0}, "look", "unused since", "drop it"),
        ("statements", {"mean_ms": 1500}, "look", "1,500 ms on average", "EXPLAIN"),
        ("transaction_ids", {"xid_age": 6 * 10**8}, "look", "writes stop", "VACUUM FREEZE"),
        ("transaction_ids", {"multixact_age": 15 * 10**8}, "act", "writes stop", "VACUUM FREEZE"),
        ("vacuum_blockers", {"xid_age": 10**8}, "act", "holds back", "pg_terminate_backend(7)"),
        (
            "vacuum_blockers",
            {"kind": "replication slot", "name": "old", "active": False},
            "act",
            "inactive",
            "pg_drop_replication_slot('old')",
        ),
        ("key_headroom", {"used": 0.6}, "act", "60%", "bigint"),
        ("key_headroom", {"used": None, "last": 2**31 - 1}, "look", "ends at 2,147,483,647", "bigint"),
    ],
)
def test_a_trouble_is_told_with_what_to_do(
    kind: str, change: dict[str, Any], severity: str, says: str, do: str
) -> None:
    part = HEALTHY[kind]
    changed = part | change if isinstance(part, dict) else [part[0] | change]
    (finding,) = judge(State.model_validate(HEALTHY | {kind: changed}))
    assert finding.severity == severity
    assert says in finding.what
    assert do in finding.do


def test_a_backups_transaction_may_be_long_and_a_new_servers_indexes_unused() -> None:
    backup = TRANSACTION | {"role": "backplane_backup", "seconds": 9000}
    fresh = DATABASE | {"counted_since": NOW}
    state = HEALTHY | {"transactions": [backup], "database": fresh, "indexes": [INDEX | {"scans": 0}]}
    assert judge(State.model_validate(state)) == []


def test_what_gets_worse_by_itself_comes_first_and_many_of_a_kind_are_cut() -> None:
    tables = [TABLE | {"name": f"t.t{n}", "dead_rows": 10**6} for n in range(30)]
    state = State.model_validate(HEALTHY | {"tables": tables, "statements": [STATEMENT | {"mean_ms": 5000}]})
    assert [finding.severity for finding in judge(state)] == ["act"] * 10 + ["look"]


def test_it_is_printed_in_eighty_columns_whatever_it_holds() -> None:
    long = "x" * 200
    state = HEALTHY | {
        "tables": [TABLE | {"name": f"s.{long}", "last_analyze": None, "last_vacuum": None}] * 20,
        "statements": [STATEMENT | {"text": long, "role": "r" * 63, "mean_ms": 9000}, STATEMENT],
        "lock_waits": [
            SESSION
            | {"mode": "RowShareLock", "waits_for": long, "seconds": 90_000, "blocked_by": list(range(40))}
        ],
    }
    state |= {"findings": judge(State.model_validate(state))}
    printed = list(db_report.lines(Report.model_validate(state)))
    assert max(map(len, printed)) <= db_report.WIDTH
    assert "… and 8 more" in printed
    assert any(line.startswith("! s.xxx") for line in printed)
