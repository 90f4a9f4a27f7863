"""A PostgreSQL server to measure on: on the disk, durable as it comes, with databases of Backplane's."""

import itertools
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from local.checkout import ROOT
from local.postgres import Postgres
from psycopg.rows import dict_row
from tests.databases import ROLES, Database, create_database, drop_database, on

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Scratch:
    url: str  # a superuser's
    passwords: dict[str, str] = field(default_factory=lambda: {role: secrets.token_hex(16) for role in ROLES})

    def migrated(self) -> Database:
        """A new database as the migrations leave it."""
        sys.path.append(str(ROOT / "functions" / "migrate"))
        import migrate

        made = self._named()
        create_database(self.url, made.name)
        with psycopg.connect(made.owner, autocommit=True, row_factory=dict_row) as connection:
            migrate.migrate(connection, self.passwords)
        return made

    @contextmanager
    def copy(self, template: Database) -> Iterator[Database]:
        """A copy of a database nobody is connected to, dropped at the end."""
        made = self._named()
        create_database(self.url, made.name, template.name)
        try:
            yield made
        finally:
            drop_database(self.url, made.name)

    def _named(self) -> Database:
        name = f"bench_{next(_numbers)}"
        app, system, backup = (on(self.url, name, user=role, password=self.passwords[role]) for role in ROLES)
        return Database(name, on(self.url, name), app, system, backup)


@contextmanager
def server() -> Iterator[Scratch]:
    """Runs until the end, and leaves nothing. PostgreSQL's own settings, but for more connections."""
    folder = ROOT / ".local"
    folder.mkdir(exist_ok=True)
    data = Path(tempfile.mkdtemp(prefix=f"bench-{os.getpid()}-", dir=folder))
    postgres = Postgres(data, settings={"max_connections": "150"})
    try:
        postgres.start()
        yield Scratch(postgres.url())
    finally:
        postgres.forget()
        shutil.rmtree(data, ignore_errors=True)
