"""A migrated database for each test that asks for one.

    def test_…(database):   URLs of every role: database.owner, .app, .system, .backup
    def test_…(app_db):     the same, and backplane.db connects as backplane_app
    def test_…(system_db):  … as backplane_system

All are migrated once per process into a template and cloned from it, so every test begins with
what the migrations make (plans, packs, limits) and nothing else. In a test, change sides with
`with database.as_role("backplane_system"): …`, and look behind the scenes with
`database.connect()`, the owner's connection, which sees every row. The type of these fixtures is
tests.databases.Database.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import migrate
import psycopg
import pytest
from local import aws, pgtools
from local.aws import CREDENTIALS
from psycopg.rows import dict_row
from tests import backups, events_page
from tests.databases import ROLES, Database, create_database, drop_database, on
from tests.keys import make_key
from tests.stripe_api import KEY as STRIPE_KEY
from tests.stripe_api import FakeStripe

from backplane import archives, config, field_encryption
from backplane.archives import Bucket

if TYPE_CHECKING:
    from tests.world import World

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def role_passwords(server_url: str) -> dict[str, str]:
    """The same in every process that shares the server."""
    return {role: hashlib.sha256(f"{role} {server_url}".encode()).hexdigest() for role in ROLES}


@pytest.fixture(scope="session")
def template(server_url: str, role_passwords: dict[str, str]) -> Iterator[str]:
    """The name of a migrated database to clone. Nobody may stay connected to it."""
    name = f"template_{os.getpid()}"
    create_database(server_url, name)
    with psycopg.connect(on(server_url, name), autocommit=True, row_factory=dict_row) as connection:
        migrate.migrate(connection, role_passwords)
    yield name
    drop_database(server_url, name)


@pytest.fixture
def empty_database(server_url: str, role_passwords: dict[str, str]) -> Iterator[Database]:
    """A database without a migration, for tests that bring their own. It has no roles' rights yet."""
    yield from _database(server_url, role_passwords)


@pytest.fixture
def database(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """A database as the migrations leave it."""
    yield from _database(server_url, role_passwords, template)


@pytest.fixture(scope="module")
def module_database(server_url: str, role_passwords: dict[str, str], template: str) -> Iterator[Database]:
    """As `database`, for a module's tests that all read what one of them has loaded."""
    yield from _database(server_url, role_passwords, template)


@pytest.fixture
def app_db(database: Database) -> Iterator[Database]:
    """`database`, with backplane.db connecting as backplane_app."""
    with database.as_role("backplane_app"):
        yield database


@pytest.fixture
def system_db(database: Database) -> Iterator[Database]:
    """`database`, with backplane.db connecting as backplane_system."""
    with database.as_role("backplane_system"):
        yield database


def _database(server: str, passwords: dict[str, str], template: str = "template0") -> Iterator[Database]:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    create_database(server, name, template)
    app, system, backup = (on(server, name, user=role, password=passwords[role]) for role in ROLES)
    made = Database(name, on(server, name), app, system, backup)
    yield made
    told = _events_told(made)
    drop_database(server, name)
    assert not (wrong := [fault for event in told for fault in events_page.faults(*event)]), wrong


def _events_told(database: Database) -> list[tuple[str, dict[str, Any]]]:
    """The domain events that the test's code wrote: docs/events.md promises their form."""
    with database.connect() as connection:
        there = connection.execute("SELECT to_regclass('platform.outbox') AS outbox").fetchone()
        if there is None or there["outbox"] is None:
            return []
        rows = connection.execute(
            """
            SELECT DISTINCT type, payload
            FROM platform.outbox
            WHERE type NOT LIKE 'test.%'
              AND payload <> '{}' -- of somebody who was erased
            LIMIT 1000
            """
        ).fetchall()
    return [(row["type"], row["payload"]) for row in rows]


@pytest.fixture
def webhook_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets Manager's answers, in the process: the senders' secrets and the hash key."""
    from tests.senders import CLERK_SECRET, STRIPE_SECRET

    from backplane import config, secrets

    values = {"stripe": [STRIPE_SECRET], "clerk": [CLERK_SECRET], "hash": {"key": "a key for hashes"}}
    monkeypatch.setattr(secrets, "get", lambda arn, *, refresh=False: values[arn])
    monkeypatch.setenv("STRIPE_WEBHOOK_SECRET_ARN", "stripe")
    monkeypatch.setenv("CLERK_WEBHOOK_SECRET_ARN", "clerk")
    monkeypatch.setenv("HASH_KEY_SECRET_ARN", "hash")
    config.settings.cache_clear()


@pytest.fixture
def stripe(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStripe]:
    """A Stripe API of our own, and a key for it. Ask for it after `webhook_secrets`, which it adds to."""
    from backplane import config, secrets

    others = secrets.get

    def get(arn: str, *, refresh: bool = False) -> Any:
        return {"key": STRIPE_KEY} if arn == "stripe-api-key" else others(arn, refresh=refresh)

    monkeypatch.setattr(secrets, "get", get)
    monkeypatch.setenv("STRIPE_API_KEY_SECRET_ARN", "stripe-api-key")
    with FakeStripe() as fake:
        monkeypatch.setenv("STRIPE_API_BASE", fake.url)
        config.settings.cache_clear()
        yield fake
    config.settings.cache_clear()


@pytest.fixture(params=["the events' word", "refetch"])
def stripe_path(
    request: pytest.FixtureRequest, webhook_secrets: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeStripe | None]:
    """The test twice: without a Stripe API key, and with one and an API that knows what events have told."""
    from backplane import inbox

    if request.param != "refetch":
        yield None
        return
    fake: FakeStripe = request.getfixturevalue("stripe")
    ask = inbox.unapplied_at

    def learn_and_ask(event: inbox.Event) -> Any:
        fake.learn(event.data)
        return ask(event)

    monkeypatch.setattr(inbox, "unapplied_at", learn_and_ask)
    yield fake


@pytest.fixture(scope="session")
def pg_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of pg_dump and pg_restore, as the pgtools layer has them."""
    return pgtools.ensure(tmp_path_factory.mktemp("pgtools"))


@pytest.fixture(scope="session")
def aws_url() -> Iterator[str]:
    with backups.moto() as url:
        yield url


@pytest.fixture
def files_bucket(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty one for projects' files and uploads, with versions, and the environment that finds it."""
    made = _bucket("files", aws_url, monkeypatch)
    monkeypatch.setenv("FILES_BUCKET", made.name)
    config.settings.cache_clear()
    return made


@pytest.fixture
def bucket(aws_url: str, pg_tools: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty one for backups, with versions, and the environment that finds it and the programs."""
    monkeypatch.setenv("PG_TOOLS", str(pg_tools))
    return _bucket("backups", aws_url, monkeypatch)


@pytest.fixture
def kms(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """KMS's client, in the environment that finds the same."""
    _use_aws(aws_url, monkeypatch)
    return aws.clients(aws_url)("kms")


@pytest.fixture
def field_key(kms: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The ARN of a new key, which the environment names as the one that encrypts fields."""
    arn = make_key(kms)
    monkeypatch.setenv("FIELD_KEY_ARN", arn)
    config.settings.cache_clear()
    yield arn
    config.settings.cache_clear()
    field_encryption.forget()


def _use_aws(aws_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": aws_url}.items():
        monkeypatch.setenv(name, value)


def _bucket(kind: str, aws_url: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    _use_aws(aws_url, monkeypatch)
    made = Bucket(archives.client(), f"{kind}-{os.getpid()}-{next(_numbers)}")
    made.client.create_bucket(Bucket=made.name)
    made.client.put_bucket_versioning(Bucket=made.name, VersioningConfiguration={"Status": "Enabled"})
    return made


@pytest.fixture
def world(
    app_db: Database,
    *,
    files_bucket: Bucket,
    field_key: str,
    webhook_secrets: None,
    stripe: FakeStripe,
    monkeypatch: pytest.MonkeyPatch,
) -> "World":
    """An organisation with one of everything, for walks over every operation."""
    from tests.callers import trust_our_tokens
    from tests.world import World

    trust_our_tokens(monkeypatch)
    return World(app_db, stripe)
