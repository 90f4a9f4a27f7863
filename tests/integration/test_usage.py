"""Usage: the same numbers as the entries, by the organisation's days, from an index."""

import re
import time
from collections import Counter
from datetime import date, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.counters import live_in
from tests.databases import Database
from tests.ledgers import new_account, rows
from tests.query_plans import plan_of

from backplane import db, usage
from backplane.problems import NotFound

ZONES = [
    "UTC",
    "America/New_York",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "Africa/Cairo",
]
KINDS = ["debit", "settle", "refund", "hold", "release"]
OPERATIONS = ["ai_text_chat", "ai_image_generation", "prd_generation"]


def book(database: Database, organization_id: UUID, entries: list[dict[str, Any]]) -> None:
    """Entries as mutations leave them, as long ago as each says."""
    rows(
        database,
        """
        INSERT INTO credits.entries
            (organization_id, version, kind, amount, available_after, held_after, debt_after, operation,
             actor, created_at)
        SELECT %s, row_number() OVER (), e.kind::credits.entry_kind, e.amount, 0, 0, 0, e.operation,
               'user:1', clock_timestamp() - e.ago
        FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::interval[]) AS e (kind, amount, operation, ago)
        """,
        organization_id,
        *([entry[field] for entry in entries] for field in ("kind", "amount", "operation", "ago")),
    )


def read(organization_id: UUID, days: int) -> usage.Usage:
    return db.run(lambda tx: usage.usage(tx, organization_id, days=days), organization_id=organization_id)


def signed(entry: dict[str, Any]) -> dict[str, Any]:
    signs = {"debit": -1, "settle": -1, "refund": 1}  # a hold and a release change nothing
    return entry | {"amount": entry["amount"] * signs.get(entry["kind"], 0)}


entry = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "operation": st.sampled_from(OPERATIONS),
        "amount": st.integers(min_value=0, max_value=50),
        "ago": st.timedeltas(timedelta(0), timedelta(days=12)),
    }
).map(signed)


@given(st.lists(entry, max_size=40), st.sampled_from(ZONES), st.integers(min_value=1, max_value=10))
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)
def test_usage_is_what_the_entries_say(
    app_db: Database, entries: list[dict[str, Any]], zone: str, days: int
) -> None:
    organization_id = new_account(app_db)
    live_in(app_db, organization_id, zone)
    book(app_db, organization_id, entries)
    seen = read(organization_id, days)
    by_operation: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    by_day: Counter[date] = Counter()
    for stored in rows(app_db, "SELECT * FROM credits.entries WHERE organization_id = %s", organization_id):
        if stored["kind"] in {"debit", "settle", "refund"} and seen.from_ <= stored["created_at"] <= seen.to:
            by_operation[stored["operation"]] -= stored["amount"]
            counts[stored["operation"]] += stored["kind"] != "refund"
            by_day[stored["created_at"].astimezone(ZoneInfo(zone)).date()] -= stored["amount"]
    assert {row.operation: row.credits for row in seen.by_operation} == by_operation
    assert {row.operation: row.count for row in seen.by_operation} == counts
    assert {row.day: row.credits for row in seen.by_day} == by_day
    assert seen.to - seen.from_ == timedelta(days=days)
    assert [row.day for row in seen.by_day] == sorted(by_day)
    assert [row.credits for row in seen.by_operation] == sorted(by_operation.values(), reverse=True)


def test_a_day_is_the_organisations(app_db: Database) -> None:
    organization_id = new_account(app_db)
    book(app_db, organization_id, [{"kind": "debit", "operation": "a", "amount": -5, "ago": timedelta(0)}])
    for zone in ("Pacific/Kiritimati", "Etc/GMT+12"):  # 26 hours apart
        live_in(app_db, organization_id, zone)
        at = rows(app_db, "SELECT created_at FROM credits.entries")[0]["created_at"]
        assert [row.day for row in read(organization_id, 1).by_day] == [at.astimezone(ZoneInfo(zone)).date()]


def test_a_refund_lowers_the_day_it_is_made_on_and_is_no_use(app_db: Database) -> None:
    organization_id = new_account(app_db)
    book(
        app_db,
        organization_id,
        [
            {"kind": "debit", "operation": "a", "amount": -9, "ago": timedelta(days=2)},
            {"kind": "refund", "operation": "a", "amount": 9, "ago": timedelta(0)},
        ],
    )
    seen = read(organization_id, 7)
    assert [(row.operation, row.credits, row.count) for row in seen.by_operation] == [("a", 0, 1)]
    assert [row.credits for row in seen.by_day] == [9, -9]


def test_an_unknown_organisation_has_no_usage(app_db: Database) -> None:
    with app_db.as_role("backplane_system"), pytest.raises(NotFound):
        read(UUID(int=0), 1)


def vacuum(database: Database) -> None:
    """Until every page is known to be visible: the last commits must have reached the disk before."""
    for _ in range(300):
        rows(database, "VACUUM ANALYZE credits.entries")
        table = (
            "SELECT relallvisible >= relpages AS done FROM pg_class WHERE oid = 'credits.entries'::regclass"
        )
        if rows(database, table)[0]["done"]:
            return
        time.sleep(0.1)
    raise AssertionError("the table's pages stay invisible")


def test_an_index_serves_it_among_everybody_elses_entries(app_db: Database) -> None:
    accounts = [new_account(app_db) for _ in range(20)]
    rows(
        app_db,
        """
        INSERT INTO credits.entries
            (organization_id, version, kind, amount, available_after, held_after, debt_after, operation,
             actor, created_at)
        SELECT a.id, n, 'debit', -1, 0, 0, 0, 'ai_text_chat', 'user:1',
               clock_timestamp() - n * interval '1 hour'
        FROM generate_series(1, 1000) AS n
        CROSS JOIN unnest(%s::uuid[]) AS a (id)
        ORDER BY n DESC
        """,
        accounts,
    )
    vacuum(app_db)
    with db.transaction(organization_id=accounts[0]) as tx:
        plan = plan_of(tx, lambda tx: usage.usage(tx, accounts[0], days=7))
    assert "Index Only Scan using entries_used on entries" in plan, plan
    assert "Heap Fetches: 0" in plan, plan
    assert re.search(r"entries_used on entries e \(actual rows=16[78]\.", plan), plan  # a week's and no more
