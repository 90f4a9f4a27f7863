"""`make restore`: into what is empty, beside what is not, and compared row by row."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from local import backup_place, restore
from local.postgres import Postgres
from local.refusal import Refusal
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from tests import rows as sample
from tests.backups import take
from tests.databases import Database, drop_database, on

from backplane.archives import Bucket, Manifest


@pytest.fixture
def backed_up(database: Database, bucket: Bucket) -> Manifest:
    with database.connect() as owner:
        sample.populate(owner)
    return take(database, bucket)


@pytest.fixture
def target(server_url: str, database: Database) -> Iterator[restore.Target]:
    """A database that is not there yet."""
    name = f"{database.name}_copy"
    yield restore.Target(dict(conninfo_to_dict(server_url)), name)
    with psycopg.connect(server_url) as connection:
        made = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [name])
        names = [row[0] for row in made.fetchall()]
    for each in names:
        drop_database(server_url, each)


def contents(url: str) -> dict[str, list[str]]:
    """Every row of every table, as text."""
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        tables = connection.execute(
            "SELECT schemaname, relname FROM pg_stat_user_tables ORDER BY 1, 2"
        ).fetchall()
        found = {}
        for table in tables:
            query = sql.SQL("SELECT t::text AS row FROM {} AS t ORDER BY 1").format(
                sql.Identifier(table["schemaname"], table["relname"])
            )
            found[f"{table['schemaname']}.{table['relname']}"] = [
                each["row"] for each in connection.execute(query).fetchall()
            ]
        return found


def schema(url: str, pg_tools: Path) -> list[str]:
    """pg_dump's own word for it, but for the token of each run and the server's own counting."""
    said = subprocess.run(
        [pg_tools / "pg_dump", "--schema-only", "--exclude-extension=pg_stat_statements", f"--dbname={url}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line for line in said.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def names(target: restore.Target) -> set[str]:
    with target.connect("postgres") as connection:
        found = connection.execute(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", [target.name]
        ).fetchall()
    return {row["datname"] for row in found}


def from_bucket(bucket: Bucket, manifest: Manifest) -> backup_place.Backup:
    return backup_place.Backup(manifest, bucket=bucket)


def test_a_database_that_is_not_there_is_made_and_is_the_same_row_by_row(
    database: Database, bucket: Bucket, backed_up: Manifest, target: restore.Target, pg_tools: Path
) -> None:
    before = contents(database.owner)
    restore.restore(from_bucket(bucket, backed_up), target, replace=False)
    copy = on(database.owner, target.name)
    restored = contents(copy)
    assert before.pop("platform.backups") != restored.pop("platform.backups"), "it does not know of itself"
    assert restored == before
    assert sum(map(len, restored.values())) > 50
    assert schema(copy, pg_tools) == schema(database.owner, pg_tools)


def test_an_empty_server_gets_the_roles_too(
    bucket: Bucket, backed_up: Manifest, database: Database, tmp_path: Path
) -> None:
    with Postgres(tmp_path / "server", settings={"fsync": "off"}) as server:
        target = restore.Target(dict(conninfo_to_dict(server.url())), "backplane")
        restore.restore(from_bucket(bucket, backed_up), target, replace=False)
        before = contents(database.owner)
        restored = contents(server.url("backplane"))
        before.pop("platform.backups")
        restored.pop("platform.backups")
        assert restored == before
        server.forget()


def test_a_database_that_holds_something_is_refused_untouched(
    database: Database, bucket: Bucket, backed_up: Manifest, server_url: str
) -> None:
    target = restore.Target(dict(conninfo_to_dict(server_url)), database.name)
    before = contents(database.owner)
    with pytest.raises(Refusal, match="is not empty, and nothing of it was touched"):
        restore.restore(from_bucket(bucket, backed_up), target, replace=False)
    assert contents(database.owner) == before
    assert names(target) == {database.name}


def test_with_the_flag_it_is_replaced_and_what_was_there_is_kept(
    database: Database, bucket: Bucket, backed_up: Manifest, target: restore.Target, server_url: str
) -> None:
    restore.restore(from_bucket(bucket, backed_up), target, replace=False)
    copy = on(server_url, target.name)
    with psycopg.connect(copy, autocommit=True) as somebody:  # who is connected is sent away
        somebody.execute("UPDATE identity.users SET email = 'wrong@example.com'")
        restore.restore(from_bucket(bucket, backed_up), target, replace=True)
    assert "wrong@example.com" not in str(contents(copy)["identity.users"])
    (old,) = names(target) - {target.name}
    assert old.startswith(f"{target.name}_before_")
    assert "wrong@example.com" in str(contents(on(server_url, old))["identity.users"])


def test_a_damaged_backup_makes_no_database(
    bucket: Bucket, backed_up: Manifest, target: restore.Target
) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=backed_up.key, Body=b"not an archive")
    with pytest.raises(Exception, match="damaged"):
        restore.restore(from_bucket(bucket, backed_up), target, replace=False)
    assert names(target) == set()


def test_a_backup_that_is_not_what_it_says_is_told_and_does_not_replace(
    bucket: Bucket, backed_up: Manifest, target: restore.Target
) -> None:
    restore.restore(from_bucket(bucket, backed_up), target, replace=False)
    lying = backed_up.model_copy(update={"rows": {**backed_up.rows, "identity.users": 7}})
    with pytest.raises(Refusal, match="is not what the manifest says"):
        restore.restore(from_bucket(bucket, lying), target, replace=True)
    assert len(names(target)) == 2
    assert not any("before" in name for name in names(target))


def test_two_files_are_a_backup_and_one_is_not(
    bucket: Bucket, backed_up: Manifest, target: restore.Target, tmp_path: Path
) -> None:
    dump = tmp_path / f"{backed_up.name}.dump.zst"
    dump.write_bytes(b"".join(bucket.read(backed_up)))
    with pytest.raises(Refusal, match="A backup is two files: download both"):
        backup_place.find(str(dump))
    (tmp_path / f"{backed_up.name}.json").write_text(backed_up.as_json())
    restore.restore(backup_place.find(str(dump)), target, replace=False)
    assert names(target) == {target.name}


def test_a_bucket_of_an_account_is_named_by_its_url(bucket: Bucket, backed_up: Manifest) -> None:
    for source in (
        f"s3://{bucket.name}",
        f"s3://{bucket.name}/{backed_up.key}",
        f"s3://{bucket.name}/latest",
    ):
        assert backup_place.find(source).manifest.name == backed_up.name
    with pytest.raises(Refusal, match="there is no backups/backup_20200101_000000"):
        backup_place.find(f"s3://{bucket.name}/backups/backup_20200101_000000.dump.zst")
    with pytest.raises(Refusal, match="is no backup's name"):
        backup_place.find(f"s3://{bucket.name}/dump.sql")


@pytest.mark.parametrize("to", ["postgresql://owner@127.0.0.1:5432", "host=x dbname="])
def test_a_target_without_a_name_is_refused(to: str) -> None:
    with pytest.raises(Refusal, match="TO names no database"):
        restore._target(to)
