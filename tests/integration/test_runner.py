"""runner.py: scratch migrations, applied, refused and undone on a real database."""

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import runner
from migration_file import MigrationError
from psycopg.rows import DictRow
from tests.databases import Database

from backplane import maintenance_lock, roles

Connection = psycopg.Connection[DictRow]
PATIENCE = 20.0  # seconds; only a failing test waits that long


@pytest.fixture
def owner(empty_database: Database) -> Iterator[Connection]:
    with empty_database.connect() as connection:
        roles.ensure_roles(connection, {})
        yield connection


def write(folder: Path, version: int, up: str, down: str = "", *, options: str = "") -> Path:
    path = folder / f"{version:04}_step.sql"
    path.write_text(f"-- migrate:up{options}\n{up}\n-- migrate:down{options}\n{down}\n")
    return path


def column(connection: Connection, query: str) -> list[object]:
    return [next(iter(row.values())) for row in connection.execute(query.encode())]


def tables(connection: Connection) -> list[object]:
    return column(
        connection,
        "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 't_' ORDER BY 1",
    )


def test_pending_migrations_are_applied_in_order_and_once(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 2, "ALTER TABLE public.t1 ADD COLUMN b int;")
    write(tmp_path, 1, "CREATE TABLE public.t1 (a int);")
    assert runner.status(owner, folder=tmp_path).pending == ("0001", "0002")
    assert runner.up(owner, folder=tmp_path) == ["0001", "0002"]
    assert runner.up(owner, folder=tmp_path) == []
    status = runner.status(owner, folder=tmp_path)
    assert (status.ok, status.current, status.latest) == (True, "0002", "0002")


def test_status_of_a_fresh_database_changes_nothing(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    status = runner.status(owner, folder=tmp_path)
    assert (status.ok, status.current, status.pending) == (False, None, ("0001",))
    assert column(owner, "SELECT to_regclass('public.schema_migrations')") == [None]


def test_what_is_made_belongs_to_the_migrator(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    runner.up(owner, folder=tmp_path)
    assert set(column(owner, "SELECT tableowner FROM pg_tables WHERE schemaname = 'public'")) == {
        "backplane_migrator"
    }
    assert column(owner, "SELECT current_user = session_user") == [True]  # and the login is itself again


def test_up_may_stop_at_a_version(owner: Connection, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write(tmp_path, version, f"CREATE TABLE public.t{version} ();")
    assert runner.up(owner, "0002", folder=tmp_path) == ["0001", "0002"]
    assert tables(owner) == ["t1", "t2"]
    with pytest.raises(MigrationError, match="there is no migration 0009; the last is 0003"):
        runner.up(owner, "0009", folder=tmp_path)


def test_down_undoes_the_newest_first(owner: Connection, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        write(tmp_path, version, f"CREATE TABLE public.t{version} ();", f"DROP TABLE public.t{version};")
    runner.up(owner, folder=tmp_path)
    assert runner.down(owner, folder=tmp_path) == ["0003"]
    assert runner.down(owner, 5, folder=tmp_path) == ["0002", "0001"]
    assert tables(owner) == []
    assert runner.up(owner, folder=tmp_path) == ["0001", "0002", "0003"]


def test_an_empty_down_section_means_there_is_no_way_back(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    runner.up(owner, folder=tmp_path)
    with pytest.raises(MigrationError, match="can't be undone"):
        runner.down(owner, folder=tmp_path)


def test_a_failure_in_the_middle_leaves_nothing_of_its_file(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    write(tmp_path, 2, "CREATE TABLE public.t2 ();\nCREATE TABLE public.t2 ();")
    with pytest.raises(MigrationError, match=r'0002_step\.sql:3: relation "t2" already exists'):
        runner.up(owner, folder=tmp_path)
    assert tables(owner) == ["t1"]
    assert runner.status(owner, folder=tmp_path).applied == ("0001",)
    write(tmp_path, 2, "CREATE TABLE public.t2 ();")  # mended: it was never applied
    assert runner.up(owner, folder=tmp_path) == ["0002"]


def test_an_error_names_the_line_inside_a_long_statement(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "SELECT 1;\n\nCREATE TABLE public.t1 (\n    a int,\n    b nonsense\n);")
    with pytest.raises(MigrationError, match=r'0001_step\.sql:6: type "nonsense" does not exist'):
        runner.up(owner, folder=tmp_path)


def test_a_changed_file_is_refused_with_the_way_out(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    runner.up(owner, folder=tmp_path)
    write(tmp_path, 1, "CREATE TABLE public.t1 (a int);")
    write(tmp_path, 2, "CREATE TABLE public.t2 ();")
    assert runner.status(owner, folder=tmp_path).drifted == ("0001",)
    with pytest.raises(MigrationError, match="was changed after it was applied") as refused:
        runner.up(owner, folder=tmp_path)
    assert tables(owner) == ["t1"]
    owner.execute(str(refused.value).partition("as the file now says: ")[2].encode())
    assert runner.up(owner, folder=tmp_path) == ["0002"]


def test_a_late_comer_with_an_old_number_is_refused(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 2, "CREATE TABLE public.t2 ();")
    runner.up(owner, folder=tmp_path)
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    assert runner.status(owner, folder=tmp_path).out_of_order == ("0001",)
    with pytest.raises(MigrationError, match=r"0001_step\.sql is new but 0002 is applied already"):
        runner.up(owner, folder=tmp_path)


def test_an_older_release_runs_on_and_says_what_it_does_not_know(
    owner: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    newer = write(tmp_path, 2, "CREATE TABLE public.t2 ();", "DROP TABLE public.t2;")
    runner.up(owner, folder=tmp_path)
    newer.unlink()
    with caplog.at_level(logging.WARNING, logger="backplane.migrate"):
        assert runner.up(owner, folder=tmp_path) == []
    assert "applied by another release: 0002" in caplog.text
    assert runner.status(owner, folder=tmp_path).unknown == ("0002",)
    with pytest.raises(MigrationError, match="0002 is applied but its file is gone"):
        runner.down(owner, folder=tmp_path)


def test_dbmates_table_is_taken_over(owner: Connection, tmp_path: Path) -> None:
    owner.execute("SET ROLE backplane_migrator")
    owner.execute("CREATE TABLE public.schema_migrations (version varchar(128) PRIMARY KEY)")
    owner.execute("INSERT INTO public.schema_migrations VALUES ('0001')")
    owner.execute("RESET ROLE")
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    write(tmp_path, 2, "CREATE TABLE public.t2 ();")
    assert runner.status(owner, folder=tmp_path).pending == ("0002",)
    assert runner.up(owner, folder=tmp_path) == ["0002"]
    assert tables(owner) == ["t2"]


def test_a_setting_of_one_file_does_not_reach_the_next(owner: Connection, tmp_path: Path) -> None:
    owner.execute("CREATE SCHEMA room AUTHORIZATION backplane_migrator")
    write(tmp_path, 1, "SET search_path = room;")
    write(tmp_path, 2, "CREATE TABLE t2 ();")
    runner.up(owner, folder=tmp_path)
    assert tables(owner) == ["t2"]


def test_an_index_is_built_concurrently_outside_a_transaction(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 (a int);", "DROP TABLE public.t1;")
    write(
        tmp_path,
        2,
        "CREATE INDEX CONCURRENTLY t1_a ON public.t1 (a);\nCREATE INDEX CONCURRENTLY t1_b ON public.t1 (a);",
        "DROP INDEX CONCURRENTLY public.t1_a;\nDROP INDEX CONCURRENTLY public.t1_b;",
        options=" transaction:false",
    )
    assert runner.up(owner, folder=tmp_path) == ["0001", "0002"]
    assert column(owner, "SELECT count(*) FROM pg_index WHERE indrelid = 'public.t1'::regclass") == [2]
    assert runner.down(owner, folder=tmp_path) == ["0002"]


def test_an_index_left_invalid_is_not_taken_for_built(owner: Connection, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 (a int);\nINSERT INTO public.t1 VALUES (1), (1);")
    runner.up(owner, folder=tmp_path)
    index = "CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS t1_a ON public.t1 (a);"
    write(tmp_path, 2, index, options=" transaction:false")
    with pytest.raises(MigrationError, match="could not create unique index"):
        runner.up(owner, folder=tmp_path)
    with pytest.raises(MigrationError, match="DROP INDEX CONCURRENTLY t1_a, then run it again"):
        runner.up(owner, folder=tmp_path)  # IF NOT EXISTS alone would have called it done
    assert runner.status(owner, folder=tmp_path).pending == ("0002",)


def test_two_runners_at_once_apply_everything_once(
    owner: Connection, empty_database: Database, tmp_path: Path
) -> None:
    for version in range(1, 6):
        write(tmp_path, version, f"CREATE TABLE public.t{version} ();\nSELECT pg_sleep(0.02);")
    applied: list[str] = []
    ready = threading.Barrier(3)

    def migrate() -> None:
        with empty_database.connect() as connection:
            ready.wait(10)
            applied.extend(runner.up(connection, folder=tmp_path))

    threads = [threading.Thread(target=migrate) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(applied) == ["0001", "0002", "0003", "0004", "0005"]
    assert runner.status(owner, folder=tmp_path).ok


def test_it_waits_for_a_backup_no_longer_than_told(
    owner: Connection, empty_database: Database, tmp_path: Path
) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    with empty_database.connect() as backup:
        backup.execute("SELECT pg_advisory_lock(%s)", [maintenance_lock.LOCK])
        with pytest.raises(MigrationError, match="has held the maintenance lock"):
            runner.up(owner, folder=tmp_path, wait=0.1)
    assert runner.up(owner, folder=tmp_path) == ["0001"]


def test_a_table_in_use_is_tried_again_until_it_is_free(
    owner: Connection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LOCK_TIMEOUT", 0.05)
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    runner.up(owner, folder=tmp_path)
    write(tmp_path, 2, "CREATE TABLE public.t2 ();\nALTER TABLE public.t1 ADD COLUMN a int;")
    tries: list[float] = []
    with empty_database.connect() as reader:
        reader.execute("BEGIN; LOCK TABLE public.t1 IN ACCESS SHARE MODE")

        def pause(seconds: float) -> None:
            tries.append(seconds)
            if len(tries) == 2:
                reader.execute("COMMIT")

        monkeypatch.setattr(time, "sleep", pause)
        assert runner.up(owner, folder=tmp_path) == ["0002"]
    assert len(tries) == 2


def test_a_table_that_stays_in_use_is_given_up_and_nothing_is_left(
    owner: Connection, empty_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LOCK_TIMEOUT", 0.01)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    runner.up(owner, folder=tmp_path)
    write(tmp_path, 2, "CREATE TABLE public.t2 ();\nALTER TABLE public.t1 ADD COLUMN a int;")
    with empty_database.connect() as reader:
        reader.execute("BEGIN; LOCK TABLE public.t1 IN ACCESS SHARE MODE")
        with pytest.raises(MigrationError, match=r"0002_step\.sql: a table that it changes stayed in use"):
            runner.up(owner, folder=tmp_path)
        assert tables(owner) == ["t1"]


def test_without_the_roles_it_says_what_to_do_first(empty_database: Database, tmp_path: Path) -> None:
    write(tmp_path, 1, "CREATE TABLE public.t1 ();")
    with (
        empty_database.connect() as connection,
        pytest.raises(MigrationError, match=r"can't become nobody_yet .*make the roles first"),
    ):
        runner.up(connection, folder=tmp_path, owner="nobody_yet")
