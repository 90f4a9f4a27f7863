"""The real migrations: up, down and up again on a database with rows in it, and by the function."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import migrate
import moto
import psycopg
import pytest
import runner
from local.postgres import bin_dir
from migration_file import read_folder
from tests.databases import ROLES, Database
from tests.rows import populate
from tests.senders import Context

from backplane import config, roles, secrets

VERSIONS = [migration.version for migration in read_folder(runner.FOLDER)]


def schema(database: Database) -> str:
    """The whole schema as SQL: tables, functions, policies, owners and rights."""
    dump = subprocess.run(
        [bin_dir() / "pg_dump", "--schema-only", database.owner], check=True, capture_output=True, text=True
    )
    # pg_dump frames a script with a random word, against injection.
    return re.sub(r"^\\(un)?restrict .*$", "", dump.stdout, flags=re.MULTILINE)


def test_every_migration_goes_up_down_and_up_again_on_a_populated_database(
    empty_database: Database, tmp_path: Path
) -> None:
    with empty_database.connect() as owner:
        roles.ensure_roles(owner, {})
        runner.up(owner, folder=tmp_path)  # nothing but the runner's own table
        expected = {"none": schema(empty_database)}
        for version in VERSIONS:
            assert runner.up(owner, version) == [version]
            expected[version] = schema(empty_database)
        populate(owner)
        for version, before in zip(reversed(VERSIONS), [*reversed(VERSIONS[:-1]), "none"], strict=True):
            assert runner.down(owner) == [version]
            assert schema(empty_database) == expected[before], f"down of {version} left something else"
        for version in VERSIONS:
            assert runner.up(owner, version) == [version]
        assert schema(empty_database) == expected[VERSIONS[-1]], "a migration is different the second time"
        populate(owner)


def test_a_master_user_that_is_no_superuser_can_migrate(
    empty_database: Database, role_passwords: dict[str, str]
) -> None:
    """As Amazon's master user: CREATEROLE, owner of the database, member of the migrator."""
    master = f"master_{empty_database.name}"
    with empty_database.connect() as admin:
        roles.ensure_roles(admin, {})
        admin.execute(f"CREATE ROLE {master} LOGIN CREATEROLE PASSWORD 'master'".encode())
        admin.execute(f"ALTER DATABASE {empty_database.name} OWNER TO {master}".encode())
        for role in (roles.MIGRATOR, *roles.LOGINS):
            admin.execute(f"GRANT {role} TO {master} WITH ADMIN TRUE, SET TRUE".encode())
        try:
            url = re.sub(r"//[^@]*@", f"//{master}:master@", empty_database.owner)
            with psycopg.connect(url, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
                outcome = migrate.migrate(connection, role_passwords)
                assert outcome.applied == VERSIONS
                # It sees every row through the migrator's policy, though row-level security is forced.
                plans = connection.execute("SELECT count(*) AS n FROM billing.plans").fetchone()
                assert plans == {"n": 5}
        finally:
            admin.execute(f"ALTER DATABASE {empty_database.name} OWNER TO CURRENT_USER".encode())
            admin.execute(f"DROP OWNED BY {master} CASCADE; DROP ROLE {master}".encode())


# ---- the function ----


@pytest.fixture
def password_secrets(
    role_passwords: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The roles' passwords in Secrets Manager, as template.yaml names them."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    secrets._client.cache_clear()
    secrets._values.clear()
    with moto.mock_aws():
        client = boto3.client("secretsmanager")
        for role in ROLES:
            name = role.removeprefix("backplane_")
            created = client.create_secret(
                Name=role, SecretString=json.dumps({"password": role_passwords[role]})
            )
            monkeypatch.setenv(f"{name.upper()}_DATABASE_SECRET_ARN", created["ARN"])
        yield role_passwords
    secrets._client.cache_clear()
    secrets._values.clear()


def test_the_function_makes_roles_and_tables_and_says_so_in_json(
    empty_database: Database, password_secrets: dict[str, str]
) -> None:
    with empty_database.connect() as owner:
        roles.ensure_roles(owner, dict.fromkeys(ROLES, "yesterday's"))
    with empty_database.as_role("owner"):
        config.settings.cache_clear()
        answer = migrate.handler({}, Context())
        assert json.loads(json.dumps(answer)) == {
            "ok": True,
            "applied": VERSIONS,
            "current": VERSIONS[-1],
            "latest": VERSIONS[-1],
            "pending": [],
            "drifted": [],
            "out_of_order": [],
            "unknown": [],
        }
        assert migrate.handler({"action": "up"}, Context())["applied"] == []
    for role in password_secrets:
        empty_database.connect(role).close()  # with the password of its secret


def test_the_functions_status_changes_nothing(empty_database: Database) -> None:
    with empty_database.as_role("owner"):
        answer = migrate.handler({"action": "status"}, Context())
    assert (answer["ok"], answer["current"], answer["pending"]) == (False, None, VERSIONS)


def test_an_unknown_action_fails_the_invocation() -> None:
    with pytest.raises(ValueError, match="unknown action 'sideways'"):
        migrate.handler({"action": "sideways"}, Context())


def test_the_function_goes_around_a_pooler(empty_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with empty_database.as_role("owner"):
        monkeypatch.setenv("DATABASE_DIRECT_URL", os.environ["DATABASE_URL"])
        monkeypatch.setenv("DATABASE_URL", "postgresql://pooler.invalid/nowhere")
        config.settings.cache_clear()
        assert migrate.handler({"action": "status"}, Context())["latest"] == VERSIONS[-1]


def test_projects_from_before_slugs_get_theirs_and_keep_their_time_of_change(
    empty_database: Database,
) -> None:
    slugs = next(runner.FOLDER.glob("*_project_slugs.sql")).name.partition("_")[0]
    with empty_database.connect() as owner:
        roles.ensure_roles(owner, {})
        for version in VERSIONS[: VERSIONS.index(slugs)]:
            runner.up(owner, version)
        organization = {"organization": "01890a5d-ac96-774b-bcce-b302099a0001"}
        owner.execute(
            "INSERT INTO tenancy.organizations (id, name) VALUES (%(organization)s, 'Acme')", organization
        )
        titles = (
            ("Fitness Tracker!", None),
            ("Ünïcode & more", None),
            ("Named", "own"),
            ("Fitness Tracker!", None),
        )
        for number, (title, slug) in enumerate(titles):
            owner.execute(
                """
                INSERT INTO projects.projects (id, organization_id, kind, title, slug, updated_at)
                VALUES (%(id)s, %(organization)s, 'web', %(title)s, %(slug)s, '2026-01-01Z')
                """,
                organization
                | {"id": f"01890a5d-ac96-774b-bcce-b30{number}09abcdef", "title": title, "slug": slug},
            )
        runner.up(owner, slugs)
        filled = owner.execute(
            "SELECT slug, updated_at::date::text AS changed FROM projects.projects ORDER BY id"
        )
        assert [(row["slug"], row["changed"]) for row in filled] == [
            ("fitness-tracker-abcdef", "2026-01-01"),
            ("n-code-more-abcdef", "2026-01-01"),
            ("own", "2026-01-01"),
            ("fitness-tracker-01890a5dac96774bbcceb30309abcdef", "2026-01-01"),
        ]
