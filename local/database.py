"""`make migrate` and `make psql`: on the running stack's database, or on DATABASE_URL."""

import argparse
import importlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

from psycopg.conninfo import conninfo_to_dict

from local import checkout, owner, running
from local.refusal import Refusal, exits

# libpq's variables: a password in an argument would be there for every `ps` to see.
VARIABLES = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "channel_binding": "PGCHANNELBINDING",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("migrate", "psql"))
    if parser.parse_args().command == "psql":
        psql(owner_url())
    return migrate()


def migrate() -> int:
    """Apply what is pending, by the function that a deployment invokes."""
    if running.is_running():
        from local.invoke import invoke

        called = invoke(running.find(), "migrate", {})
        failed, answer = called.failed, called.value
    else:
        url = owner_url()
        owner.check(url)
        failed, answer = False, _migrate_directly(url)
    if failed:
        raise Refusal(f"the migrations failed: {answer.get('errorMessage', answer)}")
    print(json.dumps(answer, indent=2))
    return 0


def psql(url: str) -> NoReturn:
    """Become psql, seeing every row. Raises Refusal."""
    target = {key: str(value) for key, value in conninfo_to_dict(url).items() if value is not None}
    if unknown := target.keys() - VARIABLES.keys():
        raise Refusal(f"psql can't be given {', '.join(sorted(unknown))} of DATABASE_URL: run it yourself.")
    program = _psql()
    os.execve(  # noqa: S606  a terminal program takes our place
        program, [program], os.environ | {VARIABLES[key]: value for key, value in target.items()}
    )


def owner_url() -> str:
    """The running stack's database, else DATABASE_URL. Raises Refusal."""
    if running.is_running():
        return running.find().admin_database_url
    if url := checkout.overrides().get("DATABASE_URL"):
        return url
    raise Refusal("no local cloud is running here and DATABASE_URL is not set. Start one with `make dev`.")


def _migrate_directly(url: str) -> dict[str, object]:
    """Without a stack, in this process. Roles that stand keep their passwords."""
    os.environ["DATABASE_URL"] = url
    sys.path.insert(0, str(checkout.ROOT / "functions" / "migrate"))
    function = importlib.import_module("migrate")  # its folder is on the path only now
    from backplane.config import settings
    from backplane.connect import connect

    with connect(settings(), direct=True, allow_owner=True) as connection:
        answer: dict[str, object] = function.migrate(connection, {}).as_json()
    return answer


def _psql() -> str:
    """The system's psql, which knows the person's ~/.psqlrc and has readline; else the wheel's."""
    if found := shutil.which("psql"):
        return found
    from local.postgres import PostgresError, bin_dir

    try:
        program: Path = bin_dir() / "psql"
    except PostgresError:
        program = Path("psql")
    if not os.access(program, os.X_OK):
        raise Refusal("there is no psql here. Install PostgreSQL's client (`apt install postgresql-client`).")
    return str(program)


if __name__ == "__main__":
    exits(main)
