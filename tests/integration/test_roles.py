"""roles.py: the four roles, made by a superuser or by a master user that is none."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from local.postgres import Postgres
from psycopg.rows import DictRow, dict_row

from backplane import roles

PASSWORDS = {role: f"{role}'s password" for role in roles.LOGINS}
ALL = (roles.MIGRATOR, *roles.LOGINS)


@pytest.fixture(scope="module")
def cluster(new_server_folder: Callable[[], Path]) -> Iterator[Postgres]:
    """A server of its own: roles are the whole server's, and these tests begin without any."""
    server = Postgres(new_server_folder(), settings={"fsync": "off", "log_statement": "all"})
    yield server.start()
    server.forget()


@pytest.fixture
def superuser(cluster: Postgres) -> Iterator[psycopg.Connection[DictRow]]:
    with psycopg.connect(cluster.url(), autocommit=True, row_factory=dict_row) as connection:
        connection.execute("CREATE DATABASE backplane")
        with connect(cluster) as inside:
            yield inside
        connection.execute("DROP DATABASE backplane WITH (FORCE)")
        for role in (*ALL, "master", "stranger"):
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone():
                connection.execute(f"DROP ROLE {role}".encode())


@pytest.fixture
def master(
    cluster: Postgres, superuser: psycopg.Connection[DictRow]
) -> Iterator[psycopg.Connection[DictRow]]:
    """A login like Amazon's master user: CREATEROLE and the database, but no superuser."""
    superuser.execute("CREATE ROLE master LOGIN CREATEROLE CREATEDB PASSWORD 'master'")
    superuser.execute("ALTER DATABASE backplane OWNER TO master")
    with connect(cluster, "master", "master") as connection:
        yield connection


def connect(
    cluster: Postgres, user: str = "postgres", password: str | None = None
) -> psycopg.Connection[DictRow]:
    return psycopg.connect(cluster.url("backplane", user, password), autocommit=True, row_factory=dict_row)


def value(connection: psycopg.Connection[DictRow], query: str, *params: object) -> object:
    row = connection.execute(query.encode(), params).fetchone()
    return next(iter(row.values())) if row else None


def test_a_superuser_makes_four_roles_without_powers(superuser: psycopg.Connection[DictRow]) -> None:
    roles.ensure_roles(superuser, PASSWORDS)
    found = superuser.execute(
        """
        SELECT rolname, rolcanlogin, rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb AS powers
        FROM pg_roles WHERE rolname LIKE 'backplane%' ORDER BY rolname
        """
    ).fetchall()
    assert [(row["rolname"], row["rolcanlogin"], row["powers"]) for row in found] == [
        ("backplane_app", True, False),
        ("backplane_backup", True, False),
        ("backplane_migrator", False, False),
        ("backplane_system", True, False),
    ]


def test_a_master_user_without_superuser_makes_them_and_becomes_the_owner(
    cluster: Postgres, master: psycopg.Connection[DictRow]
) -> None:
    roles.ensure_roles(master, PASSWORDS)
    master.execute("SET ROLE backplane_migrator")
    master.execute("CREATE SCHEMA room")
    master.execute("CREATE TABLE public.things ()")
    assert (
        value(master, "SELECT tableowner FROM pg_tables WHERE tablename = 'things'") == "backplane_migrator"
    )
    for role, password in PASSWORDS.items():
        with connect(cluster, role, password) as connection:
            assert value(connection, "SELECT current_user") == role


@pytest.mark.parametrize("login", ["superuser", "master"])
def test_repeating_it_changes_nothing_and_sets_new_passwords(
    cluster: Postgres, login: str, request: pytest.FixtureRequest
) -> None:
    connection = request.getfixturevalue(login)
    roles.ensure_roles(connection, PASSWORDS)
    roles.ensure_roles(connection, {"backplane_app": "another"})
    connect(cluster, "backplane_app", "another").close()
    connect(cluster, "backplane_system", PASSWORDS["backplane_system"]).close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(cluster, "backplane_app", PASSWORDS["backplane_app"])


def test_two_at_once_both_succeed(cluster: Postgres, master: psycopg.Connection[DictRow]) -> None:
    failures: list[BaseException] = []
    ready = threading.Barrier(4)

    def ensure() -> None:
        try:
            with connect(cluster, "master", "master") as connection:
                ready.wait(10)
                for _ in range(3):
                    roles.ensure_roles(connection, PASSWORDS)
        except BaseException as error:  # noqa: BLE001  handed to the test's thread
            failures.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert value(master, "SELECT count(*) FROM pg_roles WHERE rolname LIKE 'backplane%%'") == 4


def test_passwords_reach_no_log(cluster: Postgres, superuser: psycopg.Connection[DictRow]) -> None:
    roles.ensure_roles(superuser, {"backplane_app": "correct-horse-battery"})
    log = cluster.log.read_text()
    assert 'ALTER ROLE "backplane_app" PASSWORD \'SCRAM-SHA-256$' in log
    assert "correct-horse-battery" not in log


def test_nobody_else_may_connect_or_leave_objects(
    cluster: Postgres, superuser: psycopg.Connection[DictRow]
) -> None:
    superuser.execute("GRANT CREATE ON SCHEMA public TO PUBLIC")
    superuser.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    roles.ensure_roles(superuser, PASSWORDS)
    with pytest.raises(psycopg.OperationalError, match='permission denied for database "backplane"'):
        connect(cluster, "stranger", "stranger")
    with connect(cluster, "backplane_system", PASSWORDS["backplane_system"]) as system:
        for statement in ("CREATE TABLE public.x ()", "CREATE TEMPORARY TABLE x ()", "CREATE SCHEMA x"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                system.execute(statement.encode())


def test_application_logins_have_time_limits_of_their_own(
    cluster: Postgres, superuser: psycopg.Connection[DictRow]
) -> None:
    roles.ensure_roles(superuser, PASSWORDS)
    with connect(cluster, "backplane_app", PASSWORDS["backplane_app"]) as app:
        assert value(app, "SHOW statement_timeout") == "30s"
        assert value(app, "SHOW idle_in_transaction_session_timeout") == "1min"
    with connect(cluster, "backplane_backup", PASSWORDS["backplane_backup"]) as backup:
        assert value(backup, "SHOW statement_timeout") == "0"  # a dump takes what it takes


def test_a_login_without_createrole_is_told_what_it_lacks(
    cluster: Postgres, superuser: psycopg.Connection[DictRow]
) -> None:
    superuser.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    superuser.execute("ALTER DATABASE backplane OWNER TO stranger")
    with (
        connect(cluster, "stranger", "stranger") as connection,
        pytest.raises(roles.RolesError, match="ALTER ROLE stranger CREATEROLE"),
    ):
        roles.ensure_roles(connection, PASSWORDS)


def test_a_login_that_does_not_own_the_database_is_told_so(
    cluster: Postgres, superuser: psycopg.Connection[DictRow]
) -> None:
    superuser.execute("CREATE ROLE stranger LOGIN CREATEROLE PASSWORD 'stranger'")
    with (
        connect(cluster, "stranger", "stranger") as connection,
        pytest.raises(roles.RolesError, match="run ALTER DATABASE backplane OWNER TO stranger"),
    ):
        roles.ensure_roles(connection, PASSWORDS)


def test_roles_of_another_creator_are_not_taken_over(
    master: psycopg.Connection[DictRow], superuser: psycopg.Connection[DictRow]
) -> None:
    superuser.execute("CREATE ROLE backplane_app LOGIN")
    with pytest.raises(roles.RolesError, match="created these roles"):
        roles.ensure_roles(master, PASSWORDS)


@pytest.mark.parametrize("power", ["SUPERUSER", "BYPASSRLS", "CREATEROLE", "CREATEDB"])
def test_a_role_with_a_power_it_must_not_have_is_refused(
    superuser: psycopg.Connection[DictRow], power: str
) -> None:
    superuser.execute(f"CREATE ROLE backplane_app LOGIN {power}".encode())
    with pytest.raises(roles.RolesError, match=f"run ALTER ROLE backplane_app NO{power}"):
        roles.ensure_roles(superuser, PASSWORDS)


def test_an_older_server_is_refused(
    superuser: psycopg.Connection[DictRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roles, "MINIMUM_SERVER", superuser.info.server_version + 1)
    with pytest.raises(roles.RolesError, match=r"PostgreSQL 16 or newer is needed"):
        roles.ensure_roles(superuser, PASSWORDS)


def test_a_password_for_an_unknown_role_is_a_mistake(superuser: psycopg.Connection[DictRow]) -> None:
    with pytest.raises(roles.RolesError, match="no such login roles: backplane_migrator"):
        roles.ensure_roles(superuser, {"backplane_migrator": "x"})


def test_tokens_are_taken_from_the_functions_logins_by_the_cluster_and_from_nobody_behind_a_proxy(
    superuser: psycopg.Connection[DictRow],
) -> None:
    roles.ensure_roles(superuser, PASSWORDS)
    roles.ensure_tokens(superuser, None)
    with pytest.raises(roles.RolesError, match="no role rds_iam"):
        roles.ensure_tokens(superuser, "cluster-ABC")
    superuser.execute("CREATE ROLE rds_iam NOLOGIN")
    try:
        for resource, members in (
            ("cluster-ABC", ["backplane_app", "backplane_system"]),
            ("cluster-ABC", ["backplane_app", "backplane_system"]),
            ("prx-ABC", []),
            ("cluster-ABC", ["backplane_app", "backplane_system"]),
            (None, []),
        ):
            roles.ensure_tokens(superuser, resource)
            found = superuser.execute(
                """
                SELECT member::regrole::text
                FROM pg_auth_members
                WHERE roleid = 'rds_iam'::regrole
                ORDER BY member::regrole::text
                """
            )
            assert [row["member"] for row in found] == members
    finally:
        superuser.execute("DROP ROLE rds_iam")
