"""The four database roles: who owns the tables, and who may use them.

    backplane_migrator  owns every schema and table; cannot log in, the owner's login becomes it
    backplane_app       user-facing functions; row-level security shows it one organisation
    backplane_system    webhooks and jobs; sees every organisation by policy
    backplane_backup    reads everything by policy, writes nothing

None of them is a superuser or bypasses row-level security. Works for a superuser and, from
PostgreSQL 16, for a login with CREATEROLE that owns the database (Amazon's master user).
"""

import logging
import random
import time
from collections.abc import Mapping
from typing import Final, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

MIGRATOR: Final = "backplane_migrator"
LOGINS: Final = ("backplane_app", "backplane_system", "backplane_backup")
TOKEN_LOGINS: Final = ("backplane_app", "backplane_system")  # those that may sign in by IAM token
IAM_ROLE: Final = "rds_iam"  # Amazon's

# Bounds for what sets none of its own: single statements, and a process that was frozen or cut
# off in the middle of a transaction, whose row locks would otherwise stay. And UTC, whatever the
# server's zone: times leave in answers as the session reads them.
SETTINGS: Final[Mapping[str, Mapping[str, str]]] = {
    role: {
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "60s",
        "TimeZone": "UTC",
    }
    for role in ("backplane_app", "backplane_system")
}

MINIMUM_SERVER: Final = 160000  # GRANT … WITH SET, and CREATEROLE without being a superuser
ATTEMPTS: Final = 10

_logger = logging.getLogger("backplane.migrate")


class RolesError(RuntimeError):
    """The roles can't be made as they must be; the message says what to do."""


def ensure_roles(connection: psycopg.Connection[DictRow], passwords: Mapping[str, str]) -> None:
    """Make the roles and their rights on this database as they should be; repeating it is harmless.

    `passwords` by role name; a role without one keeps what it has. They travel as SCRAM verifiers,
    so that no log of the server can show them. Raises RolesError.
    """
    if connection.info.server_version < MINIMUM_SERVER:
        raise RolesError(
            f"PostgreSQL 16 or newer is needed; this is {connection.info.server_version // 10000}"
        )
    if unknown := set(passwords) - set(LOGINS):
        raise RolesError(f"no such login roles: {', '.join(sorted(unknown))}")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            with connection.transaction():
                _ensure(connection, passwords)
        except (
            psycopg.errors.DuplicateObject,
            psycopg.errors.UniqueViolation,
            psycopg.errors.DeadlockDetected,
            psycopg.errors.InternalError_,  # "tuple concurrently updated"
        ):
            # Roles are the whole cluster's and advisory locks one database's: another run may be
            # at it next door, and the catalogue's way to say so is an error.
            if attempt == ATTEMPTS:
                raise
            time.sleep(random.uniform(0, 0.05 * attempt))  # noqa: S311  jitter, not a secret
        except psycopg.errors.InsufficientPrivilege as error:
            raise RolesError(
                f"{connection.info.user} may not set up Backplane's roles ({error.diag.message_primary}). "
                f"Use a superuser, or a login with CREATEROLE that owns the database "
                f"{connection.info.dbname} and created these roles."
            ) from error
        else:
            return


def ensure_tokens(connection: psycopg.Connection[DictRow], resource_id: str | None) -> None:
    """Let the functions' logins sign in by IAM token where they come straight to the cluster, and only so.

    Who is in Amazon's role for it can use no password any more: RDS Proxy, which takes tokens from the
    functions and signs in with passwords itself, needs them out of it. Raises RolesError.
    """
    by_token = resource_id is not None and resource_id.startswith("cluster-")
    there = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [IAM_ROLE]).fetchone()
    if there is None and by_token:
        raise RolesError(
            f"the server has no role {IAM_ROLE}, so it takes no IAM tokens: leave DatabaseIamResourceId empty"
        )
    if there is None:
        return
    for login in TOKEN_LOGINS:
        members = connection.execute(
            "SELECT pg_has_role(%(login)s, %(role)s, 'MEMBER') AS found", {"login": login, "role": IAM_ROLE}
        ).fetchone()
        if members is None or members["found"] == by_token:
            continue
        command = "GRANT {iam} TO {login}" if by_token else "REVOKE {iam} FROM {login}"
        _execute(connection, command, iam=IAM_ROLE, login=login)


def _ensure(connection: psycopg.Connection[DictRow], passwords: Mapping[str, str]) -> None:
    login = _row(connection, "SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user")
    existing = _attributes(connection)
    missing = [role for role in (MIGRATOR, *LOGINS) if role not in existing]
    if (missing or passwords) and not (login["rolsuper"] or login["rolcreaterole"]):
        raise RolesError(
            f"{connection.info.user} lacks CREATEROLE, which {', '.join(missing or passwords)} take: "
            f"run ALTER ROLE {connection.info.user} CREATEROLE as an administrator"
        )
    for role in missing:
        _execute(connection, f"CREATE ROLE {{role}} {_can_login(role)}", role=role)
    for role, attributes in _attributes(connection).items():
        _refuse_powers(role, attributes)
        for name, value in SETTINGS.get(role, {}).items():
            if f"{name}={value}" not in (attributes["rolconfig"] or []):
                _execute(connection, f"ALTER ROLE {{role}} SET {name} = '{value}'", role=role)
    _set_passwords(connection, passwords)
    if not login["rolsuper"]:
        # Its creator has ADMIN on it but is not of it: SET to become it, INHERIT to see its tables.
        _execute(connection, "GRANT {role} TO CURRENT_USER WITH SET TRUE, INHERIT TRUE", role=MIGRATOR)
    _grant_on_database(connection)


def _can_login(role: str) -> str:
    return "NOLOGIN" if role == MIGRATOR else "LOGIN"


def _attributes(connection: psycopg.Connection[DictRow]) -> dict[str, DictRow]:
    rows = connection.execute(
        """
        SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolcanlogin, rolconfig
        FROM pg_roles
        WHERE rolname = ANY(%(roles)s)
        """,
        {"roles": [MIGRATOR, *LOGINS]},
    )
    return {row["rolname"]: row for row in rows}


def _refuse_powers(role: str, attributes: DictRow) -> None:
    """A role that somebody made before us may have more than it should: not ours to take away."""
    powers = {
        "rolsuper": "SUPERUSER",
        "rolbypassrls": "BYPASSRLS",
        "rolcreaterole": "CREATEROLE",
        "rolcreatedb": "CREATEDB",
    }
    if found := [name for column, name in powers.items() if attributes[column]]:
        take_away = " ".join(f"NO{name}" for name in found)
        raise RolesError(f"the role {role} has {', '.join(found)}: run ALTER ROLE {role} {take_away}")
    if attributes["rolcanlogin"] != (role != MIGRATOR):
        raise RolesError(f"the role {role} is wrong: run ALTER ROLE {role} {_can_login(role)}")


def _set_passwords(connection: psycopg.Connection[DictRow], passwords: Mapping[str, str]) -> None:
    for role, password in passwords.items():
        verifier = connection.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256")
        connection.execute(
            sql.SQL("ALTER ROLE {role} PASSWORD {verifier}").format(
                role=sql.Identifier(role), verifier=sql.Literal(verifier.decode())
            )
        )


def _grant_on_database(connection: psycopg.Connection[DictRow]) -> None:
    statements = [
        # Only ours may connect, and nobody may leave an object where a search_path finds it.
        "REVOKE CONNECT, TEMPORARY ON DATABASE {database} FROM PUBLIC",
        "REVOKE CREATE ON SCHEMA public FROM PUBLIC",
        "GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {database} TO {role}",
        "GRANT USAGE, CREATE ON SCHEMA public TO {role}",  # for schema_migrations
        *(f"GRANT CONNECT ON DATABASE {{database}} TO {login}" for login in LOGINS),
    ]
    for statement in statements:
        _execute(connection, statement, role=MIGRATOR, database=connection.info.dbname)
    # Without the right to grant, GRANT only warns.
    granted = _row(
        connection,
        f"""
        SELECT has_database_privilege('{MIGRATOR}', current_database(), 'CREATE') AS database,
               has_schema_privilege('{MIGRATOR}', 'public', 'CREATE') AS schema
        """,
    )
    if not (granted["database"] and granted["schema"]):
        raise RolesError(
            f"{connection.info.user} may not grant rights on the database {connection.info.dbname}: "
            f"run ALTER DATABASE {connection.info.dbname} OWNER TO {connection.info.user} as an administrator"
        )


def _execute(connection: psycopg.Connection[DictRow], statement: LiteralString, **identifiers: str) -> None:
    names = {name: sql.Identifier(value) for name, value in identifiers.items()}
    connection.execute(sql.SQL(statement).format(**names))


def _row(connection: psycopg.Connection[DictRow], query: str) -> DictRow:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None  # noqa: S101  each of these queries has exactly one
    return row
