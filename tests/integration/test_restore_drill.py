"""The drill: a good backup is proven, a bad one found out, and the live database is never written to."""

import hashlib
import json
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import restore_drill
import zstandard
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from tests import rows as sample
from tests.backups import settings, take
from tests.databases import Database, create_database, drop_database, on
from tests.ledgers import rows
from tests.senders import invoke

import scratch
from backplane import archives, config, pgtools, restores
from backplane.archives import ArchiveError, Bucket, Manifest


@pytest.fixture
def backed_up(database: Database, bucket: Bucket) -> Manifest:
    with database.connect() as owner:
        sample.populate(owner)
    return take(database, bucket)


def drill(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, event: dict[str, Any], **more: float
) -> Any:
    monkeypatch.setenv("BACKUP_BUCKET", bucket.name)
    monkeypatch.setenv("DRILL_DATABASE_URL", database.owner)
    with database.as_role("backplane_system"):
        config.settings.cache_clear()
        return invoke(restore_drill.handler, event, seconds=more.get("seconds", 120))


def verdict(database: Database, manifest: Manifest) -> dict[str, Any]:
    (row,) = rows(
        database,
        "SELECT differences, verified_at, drilled_at, drill_seconds FROM platform.backups WHERE name = %s",
        manifest.name,
    )
    return row


def databases(database: Database) -> set[str]:
    found = rows(database, "SELECT datname FROM pg_database WHERE datname ~ '^backplane_drill_'")
    return {row["datname"] for row in found}


def replace(bucket: Bucket, key: str, data: bytes) -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=key, Body=data)


def stored(bucket: Bucket, key: str) -> bytes:
    body: bytes = bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read()
    return body


# ---- a good one ----


def test_the_newest_backup_is_proven_and_its_verdict_recorded(
    database: Database,
    bucket: Bucket,
    backed_up: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    newest = take(database, bucket)
    answer = drill(database, bucket, monkeypatch, {})
    assert answer == {
        "ok": True,
        "key": newest.key,
        "seconds": pytest.approx(answer["seconds"]),
        "differences": [],
    }
    found = verdict(database, newest)
    assert found["differences"] == []
    assert found["verified_at"] is not None
    assert found["drill_seconds"] == answer["seconds"] > 0
    assert verdict(database, backed_up)["drilled_at"] is None
    assert databases(database) == set(), "the scratch database is dropped"
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert record["RestoreDrillSucceeded"] == [1.0]


def test_one_that_is_named_is_drilled(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(database, bucket)
    assert drill(database, bucket, monkeypatch, {"name": backed_up.key})["key"] == backed_up.key
    assert verdict(database, backed_up)["verified_at"] is not None


def test_a_backup_that_nobody_recorded_is_recorded_with_its_verdict(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows(database, "DELETE FROM platform.backups")
    assert drill(database, bucket, monkeypatch, {})["ok"] is True
    assert verdict(database, backed_up)["verified_at"] is not None


def test_a_login_like_amazons_master_can_hold_it(
    server_url: str, database: Database, bucket: Bucket, backed_up: Manifest
) -> None:
    """No superuser: CREATEROLE and CREATEDB, the owner of its databases, and ADMIN of the roles."""
    master = f"master_{database.name}"
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {master} LOGIN CREATEROLE CREATEDB PASSWORD 'pw'".encode())
        for role in ("backplane_migrator", "backplane_app", "backplane_system", "backplane_backup"):
            admin.execute(f"GRANT {role} TO {master} WITH ADMIN TRUE, INHERIT TRUE, SET TRUE".encode())
    try:
        url = on(server_url, database.name, user=master, password="pw")
        found = restore_drill.drill(
            settings(database, bucket, drill_database_url=url), None, ends=time.monotonic() + 100
        )
        assert found.differences == []
    finally:
        with psycopg.connect(server_url, autocommit=True) as admin:
            admin.execute(f"DROP OWNED BY {master}".encode())
            admin.execute(f"DROP ROLE {master}".encode())


def test_a_login_that_may_not_create_databases_is_told_how(
    database: Database, bucket: Bucket, backed_up: Manifest
) -> None:
    with pytest.raises(scratch.DrillError, match="ALTER ROLE backplane_system CREATEDB"):
        restore_drill.drill(
            settings(database, bucket, drill_database_url=on_postgres(database.system)),
            None,
            ends=time.monotonic() + 100,
        )


def on_postgres(url: str) -> str:
    return on(url, "postgres")


# ---- a bad one ----


def damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Ways in which an archive's bytes go wrong."""
    yield "cut to half", data[: len(data) // 2]
    yield "cut by a byte", data[:-1]
    yield "empty", b""
    yield "longer", data + b"\0"
    for place in (0, len(data) // 3, len(data) // 2, len(data) - 3):
        yield f"a bit flipped at {place}", data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]
    yield "a frame after it", data + data


def is_refused(manifest: Manifest, bucket: Bucket) -> bool:
    try:
        restores.verify(manifest, bucket.read(manifest), ends=time.monotonic() + 60)
    except (ArchiveError, pgtools.ToolError):
        return True
    return False


def test_every_damage_is_found_by_reading_it(bucket: Bucket, backed_up: Manifest) -> None:
    data = stored(bucket, backed_up.key)
    for damage, bad in damaged(data):
        replace(bucket, backed_up.key, bad)
        assert is_refused(backed_up, bucket), damage


def test_damage_is_found_even_where_the_manifest_agrees_with_it(bucket: Bucket, backed_up: Manifest) -> None:
    """As if the bytes had been wrong before they were hashed: compression and archive tell by themselves."""
    data = stored(bucket, backed_up.key)
    for damage, bad in damaged(data):
        replace(bucket, backed_up.key, bad)
        lying = backed_up.model_copy(update={"bytes": len(bad), "sha256": hashlib.sha256(bad).hexdigest()})
        assert is_refused(lying, bucket), damage


def test_an_archive_of_pg_dump_that_is_cut_short_is_refused_by_pg_restore_itself(
    bucket: Bucket, backed_up: Manifest
) -> None:
    dump = b"".join(archives.decompress(backed_up, bucket.read(backed_up)))
    for length in (len(dump) - 1, len(dump) // 2, 5000):
        packed = zstandard.ZstdCompressor().compress(dump[:length])
        replace(bucket, backed_up.key, packed)
        lying = backed_up.model_copy(
            update={
                "bytes": len(packed),
                "sha256": hashlib.sha256(packed).hexdigest(),
                "dump_bytes": length,
            }
        )
        with pytest.raises(pgtools.ToolError):
            restores.verify(lying, bucket.read(lying), ends=time.monotonic() + 60)


def test_a_damaged_backup_fails_the_drill_and_loses_its_verdict(
    database: Database,
    bucket: Bucket,
    backed_up: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert drill(database, bucket, monkeypatch, {})["ok"] is True
    capsys.readouterr()
    data = bytearray(stored(bucket, backed_up.key))
    data[len(data) // 2] ^= 1
    replace(bucket, backed_up.key, bytes(data))
    answer = drill(database, bucket, monkeypatch, {})
    assert answer["ok"] is False
    assert backed_up.name in answer["differences"][0]
    found = verdict(database, backed_up)
    assert (found["verified_at"], found["differences"]) == (None, answer["differences"])
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert record["RestoreDrillSucceeded"] == [0.0]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 2}'])
def test_a_manifest_that_cannot_be_read_fails_the_drill(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    replace(bucket, backed_up.manifest_key, text)
    answer = drill(database, bucket, monkeypatch, {})
    assert (answer["ok"], answer["key"]) == (False, backed_up.key)
    assert "the manifest can't be read" in answer["differences"][0]
    assert verdict(database, backed_up)["differences"] == answer["differences"]


def test_a_manifest_without_its_dump_fails_the_drill(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.client.delete_object(Bucket=bucket.name, Key=backed_up.key)
    answer = drill(database, bucket, monkeypatch, {})
    assert answer["differences"] == [f"there is no {backed_up.key} in {bucket.name}"]


def test_what_is_not_as_the_manifest_says_is_told(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying = backed_up.model_copy(
        update={
            "rows": {**backed_up.rows, "identity.users": 3, "shop.orders": 1},
            "migrations": [*backed_up.migrations, "9999"],
            "extensions": {**backed_up.extensions, "vector": "0.8.0"},
            "sequences": {"shop.numbers": 4},
            "row_security": {**backed_up.row_security, "identity.users": "disabled"},
            "privileges": {**backed_up.privileges, "identity.users": "nobody"},
        }
    )
    replace(bucket, backed_up.manifest_key, lying.as_json().encode())
    answer = drill(database, bucket, monkeypatch, {})
    assert answer["ok"] is False
    told = {line.split(":")[0] for line in answer["differences"]}
    assert told == {"rows", "migrations", "extensions", "sequences", "row_security", "privileges"}
    assert "rows: identity.users was 3, is 2" in answer["differences"]
    assert databases(database) == set()


def test_without_a_backup_no_drill_is_held(
    database: Database, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(scratch.DrillError, match="invoke backup first"):
        drill(database, bucket, monkeypatch, {})
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"_aws"' in line]
    assert record["RestoreDrillSucceeded"] == [0.0]


def test_an_s3_that_does_not_answer_says_nothing_of_the_backup(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Exception, match="Could not connect"):
        drill(database, bucket, monkeypatch, {})
    assert verdict(database, backed_up)["drilled_at"] is None


def test_a_drill_that_runs_out_of_time_leaves_no_database(
    database: Database, bucket: Bucket, backed_up: Manifest
) -> None:
    with pytest.raises(TimeoutError):
        restore_drill.drill(
            settings(database, bucket, drill_database_url=database.owner), None, ends=time.monotonic()
        )
    assert databases(database) == set()


# ---- the guard ----


def test_the_live_database_is_refused_however_it_is_called(database: Database) -> None:
    with (
        database.connect() as live,
        pytest.raises(scratch.DrillError, match="refusing to restore into test_"),
    ):
        scratch.guard(live, database.name)
    with (
        database.connect() as live,
        pytest.raises(scratch.DrillError, match="refusing to restore into test_"),
    ):
        scratch.guard(live, "another")


@pytest.mark.parametrize(
    ("mark", "told"), [(scratch.MARK, "is not empty"), ("a person's", "refusing to restore into")]
)
def test_a_database_with_a_drills_name_is_refused_unless_it_is_marked_and_empty(
    server_url: str, template: str, mark: str, told: str
) -> None:
    """As if the live database had that name: the mark, and what is in it, tell."""
    name = "backplane_drill_20260101000000_00000000"
    create_database(server_url, name, template)
    try:
        with psycopg.connect(on(server_url, name), autocommit=True, row_factory=dict_row) as connection:
            connection.execute(comment(name, mark))
            with pytest.raises(scratch.DrillError, match=told):
                scratch.guard(connection, "live")
    finally:
        drop_database(server_url, name)


def comment(database: str, mark: str) -> sql.Composed:
    return sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(database), sql.Literal(mark))


def test_a_pooler_that_leads_elsewhere_is_noticed_before_anything_is_restored(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever database is asked for, one gets the live one."""
    connect = scratch._connect
    monkeypatch.setattr(
        scratch, "_connect", lambda server, name: connect(server, database.name if "drill" in name else name)
    )
    restored: list[Any] = []
    monkeypatch.setattr(restores, "restore", lambda *args, **named: restored.append(args))
    with pytest.raises(scratch.DrillError, match="Let no pooler stand before"):
        restore_drill.drill(
            settings(database, bucket, drill_database_url=database.owner), None, ends=time.monotonic() + 60
        )
    assert restored == []


def test_a_drill_changes_nothing_in_the_live_database_but_its_verdict(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def live() -> list[dict[str, Any]]:
        return rows(
            database,
            """
            SELECT relname, n_tup_ins, n_tup_upd, n_tup_del
            FROM pg_stat_user_tables
            WHERE relname <> 'backups'
            ORDER BY schemaname, relname
            """,
        )

    before = live()
    assert drill(database, bucket, monkeypatch, {})["ok"] is True
    assert live() == before


def test_what_a_killed_drill_left_is_dropped_by_the_next_and_nothing_else(
    server_url: str, database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, alike = "backplane_drill_20260101000000_0000000a", "backplane_drill_20260101000000_0000000b"
    create_database(server_url, left)
    create_database(server_url, alike)
    try:
        with database.connect() as owner:
            owner.execute(comment(left, scratch.MARK))
        assert drill(database, bucket, monkeypatch, {})["ok"] is True
        assert databases(database) == {alike}
    finally:
        drop_database(server_url, left)
        drop_database(server_url, alike)


def test_a_marked_database_with_another_name_is_not_dropped(
    database: Database, bucket: Bucket, backed_up: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.connect() as owner:
        owner.execute(comment(database.name, scratch.MARK))
    with pytest.raises(scratch.DrillError, match="refusing to drop"):
        drill(database, bucket, monkeypatch, {})
    assert verdict(database, backed_up)["drilled_at"] is None


def test_two_drills_at_once_are_refused(database: Database, bucket: Bucket, backed_up: Manifest) -> None:
    other = conninfo_to_dict(database.owner)
    with scratch.database(other, "live"), pytest.raises(scratch.DrillError, match="another restore drill"):
        restore_drill.drill(
            settings(database, bucket, drill_database_url=database.owner), None, ends=time.monotonic() + 60
        )
