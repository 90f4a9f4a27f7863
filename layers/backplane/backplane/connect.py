"""How to reach the database: address, TLS, password, and whose session may serve.

A URL is used as given (the laptop, tests). From parts (AWS), the password comes from Secrets
Manager or is an IAM token, and TLS verifies the server's certificate and name.
"""

import logging
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow, dict_row

from backplane import secrets
from backplane.slow_log import TimedCursor

if TYPE_CHECKING:
    from backplane.config import Settings

CONNECT_TIMEOUT: Final = 5  # seconds

# psycopg's wheels bring an OpenSSL that looks for authorities where no distribution keeps them, so
# that sslrootcert=system finds none: name the distribution's bundle. PGSSLROOTCERT replaces it, as
# it must for RDS and Aurora, whose authority is Amazon's own bundle (RDS Proxy's is a public one).
_AUTHORITIES: Final = (
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # Amazon Linux
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Alpine
    Path("/etc/ssl/cert.pem"),
)

_logger = logging.getLogger("backplane.db")
_checked: set[tuple[str, int, str]] = set()  # (host, port, user) that check_role has passed in this process


def connect(
    settings: "Settings",
    *,
    kind: type[psycopg.Connection[DictRow]] = psycopg.Connection,
    direct: bool = False,
    allow_owner: bool = False,
    timeout: float = CONNECT_TIMEOUT,
) -> psycopg.Connection[DictRow]:
    """A new connection in autocommit, rows as dicts.

    `direct` goes around a pooler, `allow_owner` is for migrations only, `timeout` is in seconds (libpq
    takes whole ones, two at least, for each address of the host; a BoundedConnection has its own bound).
    The host's name is resolved anew each time, so that a failover is followed. Raises psycopg's
    OperationalError where the server can't be had, and RuntimeError where `check_role` refuses.
    """
    try:
        connection = _open(kind, settings, direct, timeout, refresh=False)
    except psycopg.OperationalError as error:
        if not (settings.database_secret_arn and _password_refused(error)):
            raise
        _logger.warning("the database refused the password: reading the secret again")
        connection = _open(kind, settings, direct, timeout, refresh=True)
    if not allow_owner:
        try:
            check_role(connection)
        except BaseException:
            connection.close()
            raise
    return connection


def check_role(connection: psycopg.Connection[DictRow]) -> None:
    """Refuse a session that row-level security does not bind, or that could leave it behind.

    Asked once a process and login; a superuser is known without asking, on every connection.
    """
    info = connection.info
    login = (info.host, info.port, info.user)
    if info.parameter_status("is_superuser") == "on":
        raise _refusal(info.user, "is a superuser")
    if login in _checked:
        return
    found = connection.execute(
        """
        SELECT role.rolname, role.rolsuper, role.rolbypassrls
        FROM pg_catalog.pg_roles AS role
        WHERE (role.rolsuper OR role.rolbypassrls OR role.rolname = 'backplane_migrator')
          AND pg_has_role(current_user, role.oid, 'MEMBER')
        ORDER BY role.rolname
        LIMIT 1
        """,
        prepare=False,
    ).fetchone()
    if found:
        power = (
            "owns the tables" if found["rolname"] == "backplane_migrator" else "bypasses row-level security"
        )
        raise _refusal(info.user, f"can act as {found['rolname']}, which {power}")
    _checked.add(login)


def _refusal(user: str, why: str) -> RuntimeError:
    return RuntimeError(
        f"refusing to serve: the database login {user} {why}. Tenants would see each other's rows. "
        f"Connect as backplane_app or backplane_system."
    )


def _open(
    kind: type[psycopg.Connection[DictRow]],
    settings: "Settings",
    direct: bool,
    timeout: float,
    *,
    refresh: bool,
) -> psycopg.Connection[DictRow]:
    return kind.connect(
        autocommit=True,
        row_factory=dict_row,
        prepare_threshold=settings.database_prepare_threshold,
        cursor_factory=TimedCursor,
        **parameters(settings, direct=direct, timeout=timeout, refresh=refresh),
    )


def parameters(
    settings: "Settings", *, direct: bool = False, timeout: float = CONNECT_TIMEOUT, refresh: bool = False
) -> dict[str, Any]:
    """Connection parameters in libpq's names. `refresh` reads the password's secret anew."""
    url = (settings.database_direct_url if direct else None) or settings.database_url
    if url:
        return _defaults(timeout) | _from_url(url.get_secret_value())
    # The way around a pooler is the owner's and the backup's, who have passwords.
    by_token = settings.database_iam_resource_id is not None and not direct
    return _defaults(timeout) | _from_parts(settings, refresh, by_token=by_token)


def _from_url(url: str) -> dict[str, Any]:
    return dict(conninfo_to_dict(url))


def _from_parts(settings: "Settings", refresh: bool, *, by_token: bool) -> dict[str, Any]:
    secret: dict[str, str] = {}
    if by_token:
        secret = {"password": _token(settings)}
    elif settings.database_secret_arn:
        secret = secrets.get(settings.database_secret_arn, refresh=refresh)
    found = {
        "host": settings.database_host,
        "port": settings.database_port,
        "dbname": settings.database_name,
        "user": settings.database_user or secret.get("username"),
        "password": secret.get("password"),
        "sslmode": settings.database_sslmode,
        "sslrootcert": _authorities() if settings.database_sslmode == "verify-full" else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _token(settings: "Settings") -> str:
    """A password for 15 minutes, signed here with the function's credentials: nothing is asked for it.

    Raises RuntimeError where it could fall into others' hands, or would be nobody's.
    """
    if settings.database_sslmode != "verify-full":
        raise RuntimeError(
            "an IAM token goes to the database that proves who it is, and to no other:"
            f" set DATABASE_SSLMODE to verify-full, it is {settings.database_sslmode}"
        )
    if settings.database_user is None:
        raise RuntimeError("an IAM token is for one login: set DATABASE_USER")
    token: str = _rds().generate_db_auth_token(
        DBHostname=settings.database_host, Port=settings.database_port, DBUsername=settings.database_user
    )
    return token


@cache
def _rds() -> Any:
    import boto3  # for those alone who sign in by token

    return boto3.client("rds")


def _defaults(timeout: float) -> dict[str, Any]:
    return {
        "application_name": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "backplane"),
        "connect_timeout": max(2, int(timeout)),
        # A server that vanished without a word (a failover, a frozen process) is noticed by the
        # kernel: unacknowledged bytes end the connection after 10 s, silence after 30 + 3 x 5 s.
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 30,
        "keepalives_interval": 5,
        "keepalives_count": 3,
    }


def _authorities() -> str | None:
    if "PGSSLROOTCERT" in os.environ:
        return None  # libpq reads it itself
    return next((str(path) for path in _AUTHORITIES if path.exists()), "system")


def _password_refused(error: psycopg.OperationalError) -> bool:
    # libpq gives no SQLSTATE for a failed login, and its message is in the server's language;
    # that it was asked for a password and sent one is as near as one gets.
    return error.pgconn is not None and error.pgconn.used_password
