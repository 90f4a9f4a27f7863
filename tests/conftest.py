"""What every test may use: the project's modules, and a PostgreSQL server.

Each test process (xdist's workers too) starts a server of its own from the wheel, when its first
test asks for one, and forgets it at the end: roles are the whole server's, so sharing one would
let the tests of two workers meet. With TEST_DATABASE_URL in the environment that server is used
instead; its login must be a superuser, or have CREATEDB and CREATEROLE, and the passwords of
Backplane's roles there are changed.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "layers" / "backplane"),
    *(str(folder) for folder in sorted((ROOT / "functions").iterdir()) if folder.is_dir()),
]

from local.postgres import Postgres, PostgresError  # noqa: E402  the path is set above

from backplane.config import Settings  # noqa: E402

# The shell's settings and credentials are not the tests': nothing here may reach a real account.
for name in [*os.environ]:
    if name.startswith("AWS_") or name.lower() in Settings.model_fields:
        del os.environ[name]
os.environ["AWS_DEFAULT_REGION"] = "us-east-1"

SERVERS = ROOT / ".local" / "test-servers"  # a folder a process id


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The URL of a login that may create roles and databases."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        yield given
        return
    _forget_the_dead()
    data = SERVERS / str(os.getpid())
    data.mkdir(parents=True)
    server = Postgres(data, settings={"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
    try:
        yield server.start().url()
    finally:
        server.forget()
        _remove(data)


def _forget_the_dead() -> None:
    """What a killed run could not take away: its server died with it, its data did not."""
    SERVERS.mkdir(parents=True, exist_ok=True)
    for data in SERVERS.iterdir():
        try:
            os.kill(int(data.name), 0)
        except ProcessLookupError:
            # Another worker may be at it too.
            with suppress(OSError, PostgresError):
                Postgres(data).forget()
                _remove(data)
        except PermissionError:
            continue


def _remove(data: Path) -> None:
    """As root a server's data is elsewhere, and the folder stands empty for it."""
    with suppress(FileNotFoundError):
        data.rmdir()
