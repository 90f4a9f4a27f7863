"""The database's report: what goes on in it is seen and named, and of tenants there is nothing in it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from local import db_report
from local.refusal import Refusal
from tests.callers import ROOT, send, sign_up, token, trust_our_tokens
from tests.databases import Database, await_waiting
from tests.rows import ONE, OTHER, populate

from backplane import database_report, database_state, db
from backplane.database_report import Report


def report() -> Report:
    return db.run(database_report.read)


def whats(found: Report, subject: str) -> list[str]:
    return [finding.what for finding in found.findings if finding.subject == subject]


def test_statements_of_every_role_are_counted_without_their_values(system_db: Database) -> None:
    with system_db.connect("backplane_app") as app:
        for name in ("Ada's secret", "Bob's secret"):
            app.execute("SELECT id FROM projects.projects WHERE title = %s", [name])
            app.execute(
                f"SELECT id FROM projects.projects WHERE slug = '{name.replace(chr(39), '')}'".encode()
            )
    found = report()
    of_app = {each.text: each.calls for each in found.statements if each.role == "backplane_app"}
    assert of_app["SELECT id FROM projects.projects WHERE slug = $1"] == 2
    assert of_app["SELECT id FROM projects.projects WHERE title = $1"] == 2
    assert "secret" not in found.model_dump_json()


def test_a_text_that_was_stored_with_its_values_is_withheld(system_db: Database) -> None:
    with system_db.connect() as owner:
        owner.execute(
            """
            CREATE SCHEMA counted;
            CREATE TABLE counted.texts (query text);
            INSERT INTO counted.texts VALUES
                ('SELECT 1 WHERE $1 = ''ada@example.com'''), ('SELECT $$ada$$'),
                (E'-- whose?\\n SELECT $2 -- the caller''s\\n WHERE $1'), ('SET x = ''ada''');
            CREATE VIEW counted.pg_stat_statements AS
            SELECT (SELECT oid FROM pg_roles WHERE rolname = 'backplane_app') AS userid,
                   (SELECT oid FROM pg_database WHERE datname = current_database()) AS dbid,
                   query, 1::bigint AS calls, 1.0::float8 AS total_exec_time, 1.0::float8 AS mean_exec_time,
                   1.0::float8 AS max_exec_time, 1::bigint AS rows, 1::bigint AS shared_blks_hit,
                   0::bigint AS shared_blks_read, 0::bigint AS temp_blks_written
            FROM counted.texts;
            GRANT USAGE ON SCHEMA counted TO backplane_system;
            GRANT SELECT ON counted.pg_stat_statements TO backplane_system;
            UPDATE pg_extension
            SET extnamespace = 'counted'::regnamespace
            WHERE extname = 'pg_stat_statements';
            """
        )
    found = report()
    assert sorted(each.text or "" for each in found.statements) == ["", "", "SELECT $2 WHERE $1"]
    assert "ada" not in found.model_dump_json()


def test_nothing_of_a_tenant_is_in_it(system_db: Database) -> None:
    with system_db.connect() as owner, system_db.connect("backplane_app") as busy:
        populate(owner)
        with busy.transaction():  # its session's last words hold an id
            busy.execute(f"SET LOCAL app.organization_id = '{ONE.organization}'".encode())
            busy.execute("SELECT 'ada@example.com'")
            told = report().model_dump_json()
    for trace in (ONE.organization, OTHER.organization, ONE.user, ONE.project):
        assert str(trace) not in told
    assert "example.com" not in told
    assert "Project 1" not in told


@contextmanager
def waiting(database: Database) -> Iterator[tuple[int, int]]:
    """A session that waits for another one's lock: (who waits, who holds)."""
    with database.connect() as holder, database.connect("backplane_system") as waiter:
        holder.execute("BEGIN; LOCK TABLE platform.backups")

        def wait() -> None:
            waiter.execute("SELECT count(*) FROM platform.backups")

        thread = threading.Thread(target=wait)
        thread.start()
        with database.connect() as watcher:
            await_waiting(watcher, 1)
        try:
            yield waiter.info.backend_pid, holder.info.backend_pid
        finally:
            holder.execute("ROLLBACK")
            thread.join(60)


def test_who_waits_for_a_lock_is_told_with_who_holds_it(
    system_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_report, "LOCK_WAIT", -1)
    monkeypatch.setattr(database_report, "IDLE_IN_TRANSACTION", -1)
    with waiting(system_db) as (waiter, holder):
        found = report()
    (wait,) = found.lock_waits
    assert (wait.pid, wait.blocked_by, wait.waits_for) == (waiter, [holder], "platform.backups")
    assert {each.pid: each.state for each in found.transactions}[holder] == "idle in transaction"
    (what,) = whats(found, f"session {waiter}")
    assert what.endswith(f"for platform.backups (AccessShareLock), held by {holder}")
    assert "does nothing" in whats(found, f"session {holder}")[0]


def covered() -> dict[str, str]:
    return {each.name: each.covered_by for each in db.run(database_state.read).indexes if each.covered_by}


def test_an_index_that_is_broken_or_done_by_another_is_told(system_db: Database) -> None:
    assert covered() == {}, "a migration's index does what another does: drop it"
    with system_db.connect() as owner:
        owner.execute(
            """
            CREATE TABLE platform.indexed (a bigint, b bigint, c text);
            INSERT INTO platform.indexed VALUES (1, 1, 'x'), (1, 1, 'x');
            CREATE UNIQUE INDEX i_unique ON platform.indexed (b, c, a) WHERE b > 1;
            CREATE INDEX i_two ON platform.indexed (a, b);
            CREATE INDEX i_prefix ON platform.indexed (a);
            CREATE INDEX i_other_order ON platform.indexed (a DESC);
            CREATE INDEX i_partial ON platform.indexed (a) WHERE b = 1;
            CREATE INDEX i_same ON platform.indexed (a, b);
            """
        )
        with pytest.raises(psycopg.errors.UniqueViolation):  # and leaves an invalid index behind
            owner.execute("CREATE UNIQUE INDEX CONCURRENTLY i_broken ON platform.indexed (a)")
    assert covered() == {"platform.i_prefix": "platform.i_same", "platform.i_same": "platform.i_two"}
    assert "was cut off" in whats(report(), "platform.i_broken")[0]


def test_a_login_that_sees_less_is_told_what_is_missing(database: Database) -> None:
    with database.connect() as owner:
        owner.execute("DROP EXTENSION pg_stat_statements")
        owner.execute("REVOKE pg_read_all_stats FROM backplane_system")
        try:
            with database.as_role("backplane_system"):
                found = report()
        finally:
            owner.execute("GRANT pg_read_all_stats TO backplane_system")
    assert found.statements == []
    assert len(whats(found, "report")) == 2
    assert "GRANT pg_read_all_stats" in found.findings[0].do + found.findings[1].do


def test_platform_admins_read_it(app_db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    trust_our_tokens(monkeypatch)
    sign_up(ROOT)
    with app_db.as_role("backplane_system"):
        answer = send("GET", "/v1/admin/database", token(ROOT))
    assert answer.status == 200, answer.body
    assert answer.body["database"]["name"] == app_db.name
    assert set(answer.body) == set(Report.model_fields)
    assert {"name", "live_rows", "dead_rows", "total_bytes"} <= set(answer.body["tables"][0])


def test_the_printed_report_fits_eighty_columns(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_report, "SLOW", 0.0)
    with database.connect("backplane_app") as app:
        app.execute("SELECT id FROM projects.projects WHERE title = %s" + " OR title = 'x'" * 50, ["x"])
    with waiting(database) as (waiter, _):
        printed = list(db_report.lines(db_report.read(database.owner)))
    assert max(map(len, printed)) <= db_report.WIDTH
    assert {"Tables", "Indexes", "Statements", "Connections", "Open transactions"} <= set(printed)
    assert any(line.split()[:1] == [str(waiter)] for line in printed)


def test_a_database_without_the_views_is_refused_with_the_way_out(empty_database: Database) -> None:
    with pytest.raises(Refusal, match="make migrate"):
        db_report.read(empty_database.owner)
