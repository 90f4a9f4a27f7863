"""Health: what a monitor reads, and what it must never tell."""

import json
import socket
from typing import Any

import health
import pytest
from tests.databases import Database
from tests.ledgers import rows
from tests.senders import Answer, Context, http_event

from backplane import config, db
from backplane.schema import LATEST_MIGRATION

handler: Any = health.handler  # with a stand-in for Lambda's context


def get(seconds: float = 15) -> Answer:
    response = handler(http_event("GET", "/health"), Context(seconds=seconds))
    return Answer(response["statusCode"], response["headers"], json.loads(response["body"]))


def receive(database: Database, status: str, *, minutes_ago: int = 0, due_minutes_ago: int = -60) -> None:
    """An event that came, and was settled or tried, so many minutes ago; it is tried again in an hour."""
    waits = status in {"parked", "failed"}
    rows(
        database,
        f"""
        INSERT INTO platform.webhook_inbox
            (provider, event_id, event_type, body, status, waiting_for, occurred_at, received_at,
             processed_at, next_attempt_at)
        VALUES ('stripe', 'evt_' || gen_random_uuid(), 'invoice.paid', '{{}}', '{status}',
                {"'stripe.customer:cus_1'" if status == "parked" else "NULL"}, clock_timestamp(),
                clock_timestamp() - interval '{minutes_ago} minutes',
                {"NULL" if waits else f"clock_timestamp() - interval '{minutes_ago} minutes'"},
                {f"clock_timestamp() - interval '{due_minutes_ago} minutes'" if waits else "NULL"})
        """,
    )


def assert_unhealthy(answer: Answer) -> None:
    assert (answer.status, answer.body["status"]) == (503, "unhealthy")
    assert set(answer.body) == {"status", "timestamp", "checks"}
    assert set(answer.body["checks"]) == {"database"}
    assert set(answer.body["checks"]["database"]) == {"error"}
    told = json.dumps(answer.body)
    for secret in ("postgresql://", "backplane_", "schema_migrations", "127.0.0.1", "password"):
        assert secret not in told


@pytest.mark.usefixtures("system_db")
def test_a_migrated_database_with_an_empty_inbox_is_healthy() -> None:
    answer = get()
    assert (answer.status, answer.body["status"]) == (200, "healthy")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-request-id"].startswith("req-")
    checks = answer.body["checks"]
    assert checks["database"]["latency_ms"] > 0
    assert checks["migrations"] == {"current": LATEST_MIGRATION, "latest": LATEST_MIGRATION}
    assert checks["backup"] == {"age_hours": None, "verified_at": None}
    assert checks["inbox"] == {
        "parked": 0,
        "failed": 0,
        "dead": 0,
        "quarantined": 0,
        "oldest_seconds": None,
        "overdue_seconds": 0,
    }
    assert answer.body["timestamp"].endswith("+00:00")


@pytest.mark.usefixtures("system_db")
def test_an_invocation_answers_the_report_itself() -> None:
    report = handler({}, Context())
    assert report["status"] == "healthy"
    assert set(report) == {"status", "timestamp", "checks"}
    json.dumps(report)


def test_what_is_parked_for_a_moment_is_healthy_and_counted(system_db: Database) -> None:
    receive(system_db, "parked", minutes_ago=5)
    receive(system_db, "processed", minutes_ago=500)
    answer = get()
    assert answer.body["status"] == "healthy"
    inbox = answer.body["checks"]["inbox"]
    assert (inbox["parked"], inbox["failed"]) == (1, 0)
    assert 300 <= inbox["oldest_seconds"] < 600


DAY = 24 * 60


@pytest.mark.parametrize(
    ("event", "verdict"),
    [
        ({"status": "failed"}, "degraded"),
        ({"status": "dead", "minutes_ago": DAY - 10}, "degraded"),
        ({"status": "dead", "minutes_ago": DAY + 10}, "healthy"),
        # Another product's customer, say: it waits for ever, and is none of our health.
        ({"status": "parked", "minutes_ago": 400 * DAY}, "healthy"),
        ({"status": "parked", "due_minutes_ago": 10}, "healthy"),
        ({"status": "parked", "due_minutes_ago": 20}, "degraded"),
        ({"status": "quarantined"}, "healthy"),
    ],
    ids=str,
)
def test_the_inbox_is_well_while_events_get_through_and_the_worker_works(
    system_db: Database, event: dict[str, Any], verdict: str
) -> None:
    receive(system_db, **event)
    answer = get()
    assert (answer.status, answer.body["status"]) == (200, verdict)
    assert answer.body["checks"]["inbox"][event["status"]] == 1


def backed_up(database: Database, hours_ago: int, *, refuted: bool | None = None) -> None:
    """A backup so old, and what a drill has found of it; None: there was no drill."""
    rows(
        database,
        f"""
        INSERT INTO platform.backups
            (name, kind, key, manifest_key, bytes, row_count, sha256, started_at, finished_at, drilled_at,
             differences, verified_at)
        SELECT 'backup_20260101_' || lpad({hours_ago}::text, 6, '0'), 'dump', 'k', 'm', 1, 1, repeat('0', 64),
               at, at, CASE WHEN {refuted is not None} THEN at + interval '1 hour' END,
               {"NULL" if refuted is None else f"ARRAY[{'1' if refuted else ''}]::text[]"},
               CASE WHEN {refuted is False} THEN at + interval '1 hour' END
        FROM (SELECT clock_timestamp() - make_interval(hours => {hours_ago}) AS at) AS times
        """,
    )


def age_the_stack(database: Database, hours: int) -> None:
    rows(
        database,
        f"UPDATE public.schema_migrations SET applied_at = now() - make_interval(hours => {hours})",
    )


def test_a_backup_is_told_with_its_age_and_its_proof(system_db: Database) -> None:
    age_the_stack(system_db, 1000)
    backed_up(system_db, 30, refuted=False)
    backed_up(system_db, 6)
    answer = get()
    assert answer.body["status"] == "healthy"
    backup = answer.body["checks"]["backup"]
    assert backup["age_hours"] == 6.0
    assert backup["verified_at"].endswith("+00:00")


@pytest.mark.parametrize(("hours", "status"), [(47, "healthy"), (49, "degraded")])
def test_a_stack_has_two_days_for_its_first_backup(system_db: Database, hours: int, status: str) -> None:
    age_the_stack(system_db, hours)
    assert get().body["status"] == status


def test_a_backup_that_is_too_old_or_was_refuted_degrades(system_db: Database) -> None:
    backed_up(system_db, 49, refuted=False)
    assert get().body["status"] == "degraded"
    backed_up(system_db, 5)
    assert get().body["status"] == "healthy"
    backed_up(system_db, 4, refuted=True)
    assert get().body["status"] == "degraded"


def test_what_retention_took_away_is_no_backup(system_db: Database) -> None:
    backed_up(system_db, 5)
    rows(system_db, "UPDATE platform.backups SET deleted_at = now()")
    assert get().body["checks"]["backup"]["age_hours"] is None


def test_a_database_from_before_backups_is_behind_and_not_unhealthy(system_db: Database) -> None:
    """Between a deployment and its migrations."""
    rows(system_db, "ALTER TABLE platform.backups RENAME TO elsewhere")
    answer = get()
    assert answer.status == 200
    assert answer.body["checks"]["backup"] == {"age_hours": None, "verified_at": None}


@pytest.mark.usefixtures("system_db")
def test_migrations_that_were_not_run_degrade(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LATEST_MIGRATION", "9999")
    answer = get()
    assert (answer.status, answer.body["status"]) == (200, "degraded")
    assert answer.body["checks"]["migrations"] == {"current": LATEST_MIGRATION, "latest": "9999"}


@pytest.mark.usefixtures("system_db")
def test_a_database_that_is_ahead_of_the_code_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for a moment in every deployment: migrations come before the new code."""
    monkeypatch.setattr(health, "LATEST_MIGRATION", "0001")
    assert get().body["status"] == "healthy"


def test_a_database_that_cannot_be_reached_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = taken.getsockname()[1]
        monkeypatch.setenv("DATABASE_URL", f"postgresql://backplane_system:password@127.0.0.1:{port}/x")
        config.settings.cache_clear()
        db.reset()
        assert_unhealthy(get(seconds=1.5))
    config.settings.cache_clear()


@pytest.mark.parametrize("role", ["backplane_app", "owner"])
def test_a_login_that_may_not_look_is_unhealthy_and_said_in_the_log(
    database: Database, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    with database.as_role(role):
        assert_unhealthy(get())
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]


def test_a_database_without_our_tables_is_unhealthy(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    rows(database, "ALTER TABLE public.schema_migrations RENAME TO elsewhere")
    with database.as_role("backplane_system"):
        assert_unhealthy(get())
    assert any(record.exc_info for record in caplog.records)


def test_health_comes_back_with_the_database(system_db: Database) -> None:
    rows(system_db, "ALTER TABLE public.schema_migrations RENAME TO elsewhere")
    assert get().status == 503
    rows(system_db, "ALTER TABLE public.elsewhere RENAME TO schema_migrations")
    healthy: dict[str, Any] = get().body
    assert healthy["status"] == "healthy"
