"""Partitions: made before they are needed, dropped when their time is over, whatever stands in the way."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import maintenance
import partition_upkeep
import psycopg
import pytest
from psycopg.rows import DictRow
from tests.databases import Database, await_waiting
from tests.ledgers import rows
from tests.rows import ONE, OTHER, populate
from tests.senders import invoke

from backplane import db, maintenance_lock
from backplane.problems import Unavailable

Connection = psycopg.Connection[DictRow]
LOG = "platform.audit_log"
FOREVER = float("inf")


@pytest.fixture
def owner(system_db: Database) -> Iterator[Connection]:
    with system_db.connect() as connection:
        yield connection


def partitions(owner: Connection, parent: str = LOG) -> list[str]:
    found = owner.execute(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = %s::regclass ORDER BY 1",
        [parent],
    ).fetchall()
    return [row["name"].removeprefix(f"{parent}_") for row in found]


def month(back: int = 0) -> str:
    """The name of a month's partition, so many months ago."""
    now = datetime.now(UTC)
    count = now.year * 12 + now.month - 1 - back
    return f"p{count // 12:04d}{count % 12 + 1:02d}01"


def note(owner: Connection, action: str, months_ago: int = 0) -> str:
    """A row of the audit log whose id says that it is so old. Answers the partition it went to."""
    row = owner.execute(
        f"""
        INSERT INTO {LOG} (id, actor, action, target)
        SELECT overlay(gen_random_uuid()::text
                       PLACING left(platform.partition_bound('uuid', %(at)s), 13) FROM 1)::uuid,
               'system', %(action)s, 'user:1'
        RETURNING tableoid::regclass::text AS place
        """.encode(),
        {"action": action, "at": datetime.now(UTC) - timedelta(days=30 * months_ago)},
    ).fetchone()
    assert row is not None
    return str(row["place"].removeprefix(f"{LOG}_"))


def make(connection: Connection) -> str | None:
    row = connection.execute("SELECT platform.make_partition(%s) AS name", [LOG]).fetchone()
    assert row is not None
    name: str | None = row["name"]
    return name


def places(owner: Connection) -> dict[str, str]:
    found = owner.execute(f"SELECT action, tableoid::regclass::text AS place FROM {LOG}".encode()).fetchall()
    return {row["action"]: row["place"].removeprefix(f"{LOG}_") for row in found}


def test_the_months_ahead_are_there_after_a_night_and_the_next_makes_no_more(
    system_db: Database, owner: Connection
) -> None:
    answer = invoke(maintenance.handler, {})
    assert (answer["ok"], answer["done"]["partitions"]) == (True, 4)
    assert partitions(owner) == ["default", *sorted(month(-ahead) for ahead in range(4))]
    assert note(owner, "user.noted") == month()
    assert invoke(maintenance.handler, {})["done"]["partitions"] == 0
    for table in partitions(owner):
        rights = rows(
            system_db,
            """
            SELECT c.relforcerowsecurity, count(p.polname) AS policies,
                   has_any_column_privilege('backplane_app', c.oid, 'SELECT, INSERT, UPDATE') AS app
            FROM pg_class AS c
            LEFT JOIN pg_policy AS p ON p.polrelid = c.oid
            WHERE c.oid = %s::regclass
            GROUP BY c.oid
            """,
            f"{LOG}_{table}",
        )
        assert rights == [{"relforcerowsecurity": True, "policies": 3, "app": False}], table


def test_rows_in_the_default_partition_move_into_theirs_and_none_is_lost(owner: Connection) -> None:
    for months_ago in (0, 1, 5):
        assert note(owner, f"of.{'abcdef'[months_ago]}", months_ago) == "default"
    note(owner, "from.future", -1200)  # an id that is none of ours: random
    note(owner, "from.past", 600)
    before = owner.execute(f"SELECT * FROM {LOG} ORDER BY id".encode()).fetchall()
    changed, finished = partition_upkeep.keep_up(FOREVER)
    assert finished
    assert changed == 6, "this month and three ahead, and two behind"
    assert owner.execute(f"SELECT * FROM {LOG} ORDER BY id".encode()).fetchall() == before
    found = places(owner)
    assert found["of.a"] == month()
    assert "default" not in {found["of.b"], found["of.f"]}
    assert (found["from.future"], found["from.past"]) == ("default", "default")
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        owner.execute(f"DELETE FROM {LOG}".encode())
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        owner.execute(f"UPDATE {LOG} SET actor = 'x'".encode())


def test_two_at_once_make_each_partition_once(system_db: Database, owner: Connection) -> None:
    note(owner, "of.default")
    made: list[str | None] = []
    with system_db.connect("backplane_system") as first, system_db.connect("backplane_system") as second:
        first.execute("BEGIN")
        made.append(make(first))
        thread = threading.Thread(target=lambda: made.append(make(second)))
        thread.start()
        await_waiting(owner, 1)
        first.execute("COMMIT")
        thread.join(60)
    assert made == [f"{LOG}_{month()}"] * 2
    assert places(owner) == {"of.default": month()}


def test_a_writer_in_the_midst_is_not_waited_for_long_and_his_row_moves_the_next_time(
    system_db: Database, owner: Connection
) -> None:
    with system_db.connect("backplane_system") as writer:
        writer.execute("BEGIN")
        writer.execute(
            f"INSERT INTO {LOG} (actor, action, target) VALUES ('system', 'of.writer', 'x')".encode()
        )
        with pytest.raises(Unavailable):
            partition_upkeep.keep_up(FOREVER)
        assert partitions(owner) == ["default"], "nothing is half done"
        writer.execute("COMMIT")
    partition_upkeep.keep_up(FOREVER)
    assert places(owner) == {"of.writer": month()}


def test_a_writer_who_comes_while_rows_move_writes_into_the_new_partition(
    system_db: Database, owner: Connection
) -> None:
    query = f"INSERT INTO {LOG} (actor, action, target) VALUES ('system', 'of.writer', 'x')"
    with system_db.connect("backplane_system") as mover:
        mover.execute("BEGIN")
        make(mover)
        writer = threading.Thread(target=lambda: db.call(query))
        writer.start()
        await_waiting(owner, 1)
        mover.execute("COMMIT")
        writer.join(60)
    assert places(owner) == {"of.writer": month()}


def test_while_a_backup_is_on_nothing_changes_and_it_is_told_only_where_none_is_ahead(
    system_db: Database, owner: Connection
) -> None:
    with system_db.connect() as backup:
        maintenance_lock.take(backup, 1)
        with pytest.raises(Unavailable, match="no partition for its next period"):
            partition_upkeep.keep_up(FOREVER)
        maintenance_lock.release(backup)
    partition_upkeep.keep_up(FOREVER)
    owner.execute(f"DROP TABLE {LOG}_{month(-3)}".encode())
    with system_db.connect() as backup:
        maintenance_lock.take(backup, 1)
        assert partition_upkeep.keep_up(FOREVER) == (0, True)
        maintenance_lock.release(backup)
    assert partition_upkeep.keep_up(FOREVER) == (1, True)


def test_without_time_nothing_is_begun(owner: Connection) -> None:
    assert partition_upkeep.keep_up(0.0) == (0, False)
    assert partitions(owner) == ["default"]


def test_partitions_by_time_are_dropped_when_they_are_older_than_is_kept(
    system_db: Database, owner: Connection
) -> None:
    owner.execute("UPDATE platform.partitioned_tables SET ahead = 1")
    owner.execute(
        """
        CREATE SCHEMA views AUTHORIZATION backplane_migrator;
        SET ROLE backplane_migrator;
        CREATE TABLE views.page_views (
            id bigint GENERATED ALWAYS AS IDENTITY, seen_at timestamptz NOT NULL, path text DEFAULT '/',
            size bigint GENERATED ALWAYS AS (length(path)) STORED, PRIMARY KEY (id, seen_at)
        ) PARTITION BY RANGE (seen_at);
        CREATE TABLE views.page_views_default PARTITION OF views.page_views DEFAULT;
        CALL platform.protect('views.page_views_default');
        CREATE TABLE views.page_views_by_hand PARTITION OF views.page_views
            FOR VALUES FROM ('2020-01-01Z') TO ('2020-01-02Z');
        INSERT INTO views.page_views (seen_at)
        SELECT now() - n * interval '1 day' FROM generate_series(0, 9) AS n;
        RESET ROLE;
        INSERT INTO platform.partitioned_tables VALUES ('views.page_views', 'day', 2, 3);
        """
    )
    changed, finished = partition_upkeep.keep_up(FOREVER)
    assert (changed, finished) == (2 + 12 + 6, True), "the log's; ten days behind and two ahead; six too old"
    today = datetime.now(UTC).date()
    kept = [f"p{today - timedelta(days=back):%Y%m%d}" for back in range(3, -3, -1)]
    assert partitions(owner, "views.page_views") == ["by_hand", "default", *kept]
    left: Any = rows(system_db, "SELECT count(*) AS n, max(size) AS size FROM views.page_views")
    assert left == [{"n": 4, "size": 1}]
    assert partition_upkeep.keep_up(FOREVER) == (0, True)


def test_tenants_stay_apart_in_a_table_in_parts(system_db: Database, owner: Connection) -> None:
    populate(owner)
    partition_upkeep.keep_up(FOREVER)
    insert = f"INSERT INTO {LOG} (organization_id, actor, action, target) VALUES (%s, 'system', 'a.b', 'c')"
    with system_db.connect("backplane_app") as app, app.transaction():
        app.execute(f"SET LOCAL app.organization_id = '{ONE.organization}'".encode())
        app.execute(insert.encode(), [ONE.organization])
        with pytest.raises(psycopg.errors.InsufficientPrivilege), app.transaction():
            app.execute(insert.encode(), [OTHER.organization])
        with pytest.raises(psycopg.errors.InsufficientPrivilege), app.transaction():
            app.execute(f"SELECT * FROM {LOG}_{month()}".encode())
