"""The database's owner: a DATABASE_URL that is checked before anything is built on it."""

from collections.abc import Mapping
from urllib.parse import quote, urlencode

import psycopg
from psycopg import errors, sql
from psycopg.conninfo import conninfo_to_dict

from local.refusal import Refusal

MIN_VERSION = 160_000  # GRANT … WITH SET, which the roles take
CONNECT_TIMEOUT = 5  # seconds


def check(url: str) -> None:
    """Raises Refusal with the way out where the URL can't carry Backplane."""
    out = "Mend DATABASE_URL (in your shell or in .env), or unset it to use the embedded PostgreSQL."
    try:
        target = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        raise Refusal(f"DATABASE_URL is not a connection URL: {str(error).strip()}. {out}") from None
    where = f"{target.get('host', 'localhost')}:{target.get('port', 5432)}"
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT) as connection:
            version = connection.info.server_version
            name = connection.info.user
            may_create_roles = connection.execute(
                "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
            ).fetchone()
    except psycopg.OperationalError as error:
        raise Refusal(f"{_cause(error, where, target)} {out}") from None
    if version < MIN_VERSION:
        raise Refusal(
            f"The server at {where} is PostgreSQL {version // 10_000}; 16 or newer is needed. {out}"
        )
    if may_create_roles != (True,):
        raise Refusal(
            f"{name} at {where} may not create roles: "
            f"run `ALTER ROLE {name} CREATEROLE` there as an administrator. {out}"
        )


def as_role(url: str, user: str, password: str) -> str:
    """The same database for another role, as a URL."""
    target = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    for taken in ("user", "password", "passfile"):
        target.pop(taken, None)
    host, port = target.pop("host", ""), target.pop("port", "")
    database = target.pop("dbname", user)
    if "/" in host or "," in host or "," in port:  # a socket's folder, or several servers
        target |= {"host": host} | ({"port": port} if port else {})
        host = port = ""
    address = f"[{host}]" if ":" in host else host
    login = f"{quote(user, safe='')}:{quote(password, safe='')}@{address}{f':{port}' if port else ''}"
    options = f"?{urlencode(target)}" if target else ""
    return f"postgresql://{login}/{quote(database, safe='')}{options}"


def _cause(error: psycopg.OperationalError, where: str, target: Mapping[str, object]) -> str:
    text = str(error).strip()
    if isinstance(error, errors.InvalidPassword) or "password authentication failed" in text:
        return f"The server at {where} refuses the password of {target.get('user')}."
    if "no password supplied" in text:
        return f"The server at {where} wants a password, and DATABASE_URL has none."
    if "does not exist" in text and "database" in text:
        return f"The server at {where} has no database {target.get('dbname')}: run `createdb` there."
    if "does not exist" in text and "role" in text:
        return f"The server at {where} knows no role {target.get('user')}."
    return f"No PostgreSQL server answers at {where} ({text.splitlines()[-1].strip()})."


def ensure_database(server_url: str, name: str) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %(name)s", {"name": name})
        if found.fetchone() is None:
            connection.execute(sql.SQL("CREATE DATABASE {name}").format(name=sql.Identifier(name)))
