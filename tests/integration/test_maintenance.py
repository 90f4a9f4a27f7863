"""The nightly upkeep: what is old is made small, in batches, and what is still of use stays."""

import json
from typing import Any

import maintenance
import psycopg
import pytest
from tests.databases import Database
from tests.ledgers import rows
from tests.rows import ONE, OTHER, populate
from tests.senders import checkout_session, invoke, post_stripe, stripe_event

from backplane import db, inbox_upkeep
from backplane.problems import Conflict
from backplane.senders import SENDERS

STATUSES = ("processed", "ignored", "stale", "parked", "failed", "dead", "quarantined")


def run(seconds: float = 60.0) -> Any:
    return invoke(maintenance.handler, {}, seconds=seconds)


def receive(database: Database, status: str, *, days_ago: int, count: int = 1) -> None:
    rows(
        database,
        f"""
        INSERT INTO platform.webhook_inbox
            (provider, event_id, event_type, body, status, waiting_for, occurred_at, received_at)
        SELECT 'stripe', '{status}_{days_ago}_' || n, 'invoice.paid', '{{}}', '{status}',
               {"'subject'" if status == "parked" else "NULL"}, clock_timestamp(),
               clock_timestamp() - interval '{days_ago} days'
        FROM generate_series(1, {count}) AS n
        """,
    )


def bodies(database: Database) -> dict[str, bool]:
    """Whether each event still has its body."""
    found = rows(database, "SELECT event_id, body IS NOT NULL AS kept FROM platform.webhook_inbox")
    return {row["event_id"]: row["kept"] for row in found}


def test_bodies_of_settled_events_are_forgotten_after_a_month_and_their_ids_are_not(
    system_db: Database,
) -> None:
    for status in STATUSES:
        receive(system_db, status, days_ago=29)
        receive(system_db, status, days_ago=31)
    answer = run()
    assert (answer["ok"], answer["complete"], answer["failed"]) == (True, True, [])
    assert list(answer["done"]) == [task.name for task in maintenance.TASKS]
    assert answer["done"]["webhook_bodies"] == 3
    gone = {event_id for event_id, kept in bodies(system_db).items() if not kept}
    assert gone == {"processed_31_1", "ignored_31_1", "stale_31_1"}
    assert len(bodies(system_db)) == 2 * len(STATUSES)
    assert run()["done"]["webhook_bodies"] == 0


def test_poison_that_nobody_replayed_for_a_month_loses_its_body_and_what_is_dead_keeps_it(
    system_db: Database,
) -> None:
    for status in ("quarantined", "dead"):
        receive(system_db, status, days_ago=60)
    rows(system_db, "UPDATE platform.webhook_inbox SET processed_at = clock_timestamp() - interval '29 days'")
    assert run()["done"]["quarantined_bodies"] == 0
    rows(system_db, "UPDATE platform.webhook_inbox SET processed_at = clock_timestamp() - interval '31 days'")
    assert run()["done"]["quarantined_bodies"] == 1
    assert bodies(system_db) == {"quarantined_60_1": False, "dead_60_1": True}


def test_a_repetition_of_a_forgotten_event_is_a_duplicate_and_brings_no_body_back(
    system_db: Database, webhook_secrets: None
) -> None:
    event = stripe_event("customer.created", checkout_session(), event_id="evt_1")
    assert post_stripe(event).body["status"] == "ignored"
    rows(system_db, "UPDATE platform.webhook_inbox SET received_at = clock_timestamp() - interval '31 days'")
    run()
    assert post_stripe(event).body["status"] == "duplicate"
    assert bodies(system_db) == {"evt_1": False}


def test_a_forgotten_event_cannot_be_replayed_and_the_answer_says_why(system_db: Database) -> None:
    receive(system_db, "ignored", days_ago=31)
    run()
    (row,) = rows(system_db, "SELECT id FROM platform.webhook_inbox")
    with pytest.raises(Conflict, match="body is not kept"):
        inbox_upkeep.retry(row["id"], SENDERS, anew=True)


def publish(database: Database, *, days_ago: int | None, count: int = 1) -> None:
    at = "NULL" if days_ago is None else f"clock_timestamp() - interval '{days_ago} days'"
    rows(
        database,
        f"""
        INSERT INTO platform.outbox (type, payload, created_at, published_at)
        SELECT 'test.happened', '{{}}', clock_timestamp() - interval '90 days', {at}
        FROM generate_series(1, {count})
        """,
    )


def test_published_events_are_forgotten_after_a_month_and_unpublished_ones_never(system_db: Database) -> None:
    for days_ago in (None, 29, 31):
        publish(system_db, days_ago=days_ago)
    assert run()["done"]["published_events"] == 1
    left = rows(system_db, "SELECT published_at FROM platform.outbox ORDER BY published_at")
    assert [row["published_at"] is None for row in left] == [False, True]


def test_idempotency_keys_are_forgotten_after_their_day(system_db: Database) -> None:
    rows(system_db, "INSERT INTO tenancy.organizations (name) VALUES ('Acme')")
    rows(
        system_db,
        """
        INSERT INTO platform.idempotency_keys
            (organization_id, route, key, request_hash, claim, claimed_until, expires_at)
        SELECT id, 'POST /v1/projects', key, sha256('request'), id, now(), now() + age::interval
        FROM tenancy.organizations
        CROSS JOIN (VALUES ('old', '-1 minute'), ('new', '1 minute')) AS keys (key, age)
        """,
    )
    assert run()["done"]["idempotency_keys"] == 1
    assert [row["key"] for row in rows(system_db, "SELECT key FROM platform.idempotency_keys")] == ["new"]


def test_invitations_that_nobody_accepted_are_forgotten_a_month_after_their_end(system_db: Database) -> None:
    with system_db.connect() as owner:
        populate(owner)
        owner.execute(
            """
            UPDATE projects.shares
            SET expires_at = now() - interval '31 days',
                user_id = CASE WHEN organization_id = %(one)s THEN %(user)s END,
                accepted_at = CASE WHEN organization_id = %(one)s THEN now() END
            """,
            {"one": ONE.organization, "user": OTHER.user},
        )
        owner.execute(
            """
            INSERT INTO projects.shares (organization_id, project_id, email, role, token_hash, expires_at)
            SELECT organization_id, project_id, 'late@example.com', role, sha256(token_hash),
                   now() - interval '29 days'
            FROM projects.shares
            WHERE organization_id = %s
            """,
            [OTHER.organization],
        )
    assert run()["done"]["invitations"] == 1
    left = rows(system_db, "SELECT email, accepted_at FROM projects.shares ORDER BY email")
    assert [(row["email"], row["accepted_at"] is None) for row in left] == [
        ("eve@example.com", False),
        ("late@example.com", True),
    ]


def test_counters_of_days_long_past_are_forgotten_but_the_newest_and_stocks(system_db: Database) -> None:
    rows(
        system_db,
        """
        WITH o AS (INSERT INTO tenancy.organizations (name) VALUES ('Acme') RETURNING id)
        INSERT INTO billing.usage_counters (organization_id, key, period_start, period, period_end, used)
        SELECT id, key, now() - age, (now() - age)::date, now() - age + interval '1 day', 1
        FROM o
        CROSS JOIN (VALUES
            ('app.messages_per_day', interval '500 days'), ('app.messages_per_day', interval '450 days'),
            ('app.messages_per_day', interval '399 days'), ('app.messages_per_month', interval '500 days')
        ) AS counters (key, age)
        UNION ALL
        SELECT id, 'app.projects', '-infinity', NULL, NULL, 1 FROM o
        """,
    )
    assert run()["done"]["daily_counters"] == 2
    left = rows(system_db, "SELECT key FROM billing.usage_counters ORDER BY key")
    assert [row["key"] for row in left] == ["app.messages_per_day", "app.messages_per_month", "app.projects"]


def test_tables_that_changed_much_are_analysed_and_what_is_not_ours_is_left_alone(
    system_db: Database,
) -> None:
    def due() -> set[str]:
        return {row["name"] for row in rows(system_db, "SELECT platform.tables_to_analyze() AS name")}

    with system_db.connect() as owner:
        owner.execute("CREATE TABLE public.strangers AS SELECT FROM generate_series(1, 5000)")
        receive(system_db, "processed", days_ago=1, count=2000)
        owner.execute("SELECT pg_stat_force_next_flush()")
    assert {"platform.webhook_inbox", "platform.audit_log"} <= due()
    assert "public.strangers" not in due()
    assert run()["done"]["statistics"] >= 2
    assert due() == set()
    assert run()["done"]["statistics"] == 0
    rows(system_db, "SELECT platform.analyze_table('public.strangers')")
    analysed = rows(system_db, "SELECT relname FROM pg_stat_user_tables WHERE last_analyze IS NOT NULL")
    assert "strangers" not in {row["relname"] for row in analysed}


def test_how_long_is_a_setting(system_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_BODY_DAYS", "7")
    monkeypatch.setenv("PUBLISHED_EVENT_DAYS", "7")
    with system_db.as_role("backplane_system"):
        receive(system_db, "processed", days_ago=8)
        publish(system_db, days_ago=8)
        done = run()["done"]
        assert (done["webhook_bodies"], done["published_events"]) == (1, 1)


def test_many_rows_are_done_in_batches_each_a_transaction(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "BATCH", 10)
    receive(system_db, "processed", days_ago=31, count=25)
    sizes: list[int] = []

    def counted(tx: db.Tx, limit: int) -> int:
        sizes.append(inbox_upkeep.trim_bodies(tx, days=30, limit=limit))
        return sizes[-1]

    monkeypatch.setattr(
        maintenance, "TASKS", (maintenance.Task("webhook_bodies", maintenance.in_batches(counted)),)
    )
    assert run()["done"] == {"webhook_bodies": 25}
    assert sizes == [10, 10, 5]


def test_what_the_time_does_not_suffice_for_is_said(
    system_db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    receive(system_db, "processed", days_ago=31)
    answer = run(seconds=maintenance.MARGIN)
    assert (answer["ok"], answer["complete"]) == (False, False)
    assert bodies(system_db) == {"processed_31_1": True}
    assert metric(capsys) == [1.0]


def test_one_tasks_defect_does_not_stop_the_others(
    system_db: Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(tx: db.Tx, limit: int) -> int:
        tx.execute("SELECT 1 / 0")
        return 0

    task = maintenance.Task("broken", maintenance.in_batches(broken))
    monkeypatch.setattr(maintenance, "TASKS", (task, *maintenance.TASKS))
    receive(system_db, "processed", days_ago=31)
    answer = run()
    assert (answer["ok"], answer["failed"], answer["done"]["webhook_bodies"]) == (False, ["broken"], 1)
    assert metric(capsys) == [1.0]


def metric(capsys: pytest.CaptureFixture[str]) -> list[float]:
    lines = [
        json.loads(line) for line in capsys.readouterr().out.splitlines() if "MaintenanceFailures" in line
    ]
    value: list[float] = lines[-1]["MaintenanceFailures"]
    return value


@pytest.mark.parametrize(
    ("index", "query"),
    [
        (
            "webhook_inbox_trimmable",
            """
            SELECT id FROM platform.webhook_inbox
            WHERE body IS NOT NULL AND status IN ('processed', 'ignored', 'stale') AND received_at < now()
            ORDER BY received_at LIMIT 1000
            """,
        ),
        (
            "outbox_published",
            "SELECT id FROM platform.outbox WHERE published_at < now() ORDER BY published_at LIMIT 1000",
        ),
        (
            "webhook_inbox_unsettled",
            """
            SELECT count(*) FROM platform.webhook_inbox
            WHERE status IN ('parked', 'quarantined', 'failed', 'dead')
            """,
        ),
    ],
)
def test_an_index_serves_each_look(database: Database, index: str, query: str) -> None:
    with psycopg.connect(database.owner) as connection:
        connection.execute("SET enable_seqscan = off")
        plan = connection.execute(f"EXPLAIN {query}".encode()).fetchall()
    assert index in str(plan)
