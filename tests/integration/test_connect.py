"""connect.py: whose session may serve, and how a password is rotated."""

from uuid import uuid4

import psycopg
import pytest
from pydantic import SecretStr
from tests.databases import Database, on

from backplane import config, connect, secrets


def serve_as(url: str) -> None:
    connect.connect(config.Settings(database_url=SecretStr(url))).close()


def test_the_applications_roles_may_serve(database: Database) -> None:
    for url in (database.app, database.system):
        serve_as(url)


def test_a_superuser_is_refused(database: Database) -> None:
    with database.connect() as owner:
        if owner.info.parameter_status("is_superuser") != "on":
            pytest.skip("TEST_DATABASE_URL's login is no superuser")
    with pytest.raises(RuntimeError, match=r"refusing to serve: .* is a superuser"):
        serve_as(database.owner)


@pytest.mark.parametrize(
    ("grant", "why"),
    [
        ("ALTER ROLE {login} BYPASSRLS", "bypasses row-level security"),
        ("GRANT backplane_migrator TO {login}", "backplane_migrator, which owns the tables"),
        ("CREATE ROLE {login}_admin BYPASSRLS; GRANT {login}_admin TO {login}", "can act as .*_admin"),
    ],
)
def test_a_login_that_could_leave_row_level_security_behind_is_refused(
    database: Database, grant: str, why: str
) -> None:
    login = f"test_{uuid4().hex[:12]}"
    with database.connect() as owner:
        owner.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'x'; {grant.format(login=login)}".encode())
        try:
            with pytest.raises(RuntimeError, match=f"refusing to serve: .*{why}"):
                serve_as(on(database.owner, database.name, user=login, password="x"))
        finally:
            owner.execute(f"DROP ROLE IF EXISTS {login}_admin; DROP ROLE {login}".encode())


def test_a_migration_may_connect_as_the_owner(database: Database) -> None:
    settings = config.Settings(database_url=SecretStr(database.owner))
    connect.connect(settings, allow_owner=True).close()


def test_a_rotated_password_is_read_anew_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    info = psycopg.conninfo.conninfo_to_dict(database.app)
    reads: list[bool] = []

    def get(arn: str, *, refresh: bool = False) -> dict[str, str]:
        assert arn == "arn:secret"
        reads.append(refresh)
        return {"username": "backplane_app", "password": str(info["password"]) if refresh else "yesterday's"}

    monkeypatch.setattr(secrets, "get", get)
    settings = config.Settings(
        database_url=None,
        database_host=str(info["host"]),
        database_port=int(str(info["port"])),
        database_name=str(info["dbname"]),
        database_secret_arn="arn:secret",
        database_sslmode="disable",
    )
    with connect.connect(settings) as session:
        assert session.info.user == "backplane_app"
    assert reads == [False, True]


def test_a_password_that_stays_wrong_is_read_anew_once_only(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = psycopg.conninfo.conninfo_to_dict(database.app)
    reads: list[bool] = []

    def get(_: str, *, refresh: bool = False) -> dict[str, str]:
        reads.append(refresh)
        return {"password": "wrong"}

    monkeypatch.setattr(secrets, "get", get)
    settings = config.Settings(
        database_url=None,
        database_host=str(info["host"]),
        database_port=int(str(info["port"])),
        database_name=str(info["dbname"]),
        database_user="backplane_app",
        database_secret_arn="arn:secret",
        database_sslmode="disable",
    )
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect.connect(settings)
    assert reads == [False, True]
