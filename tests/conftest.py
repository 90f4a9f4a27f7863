"""What every test may use: the project's modules, and a PostgreSQL server.

Each test process (xdist's workers too) starts a server of its own from the wheel, when its first
test asks for one, and forgets it at the end: roles are the whole server's, so sharing one would
let the tests of two workers meet. With TEST_DATABASE_URL in the environment that server is used
instead; its login must be a superuser, or have CREATEDB and CREATEROLE, and the passwords of
Backplane's roles there are changed.
"""

import hashlib
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from psycopg import sql

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "layers" / "backplane"),
    *(str(folder) for folder in sorted((ROOT / "functions").iterdir()) if folder.is_dir()),
]

from backplane.config import Settings  # noqa: E402  the path is set above

# The shell's settings and credentials are not the tests': nothing here may reach a real account.
for name in [*os.environ]:
    if name.startswith("AWS_") or name.lower() in Settings.model_fields:
        del os.environ[name]
os.environ["AWS_DEFAULT_REGION"] = "us-east-1"

# Tests make and drop a database each, which is file work: in memory it is ten times as fast where
# the disk is busy.
MEMORY = Path("/dev/shm")  # noqa: S108  Linux's file system in memory
LEAST_MEMORY = 2 * 1024**3  # bytes


def _servers() -> Path:
    """Where the servers' data is: a folder a process id, in it one a server."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < LEAST_MEMORY:
        return ROOT / ".local" / "test-servers"
    ours = MEMORY / f"backplane-{os.getuid()}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
    os.environ["BACKPLANE_ROOT_HOME"] = str(ours / "as-root")  # the servers that tests' processes start, too
    return ours / "servers"


SERVERS = _servers()

from local.postgres import Postgres, PostgresError  # noqa: E402  it reads where to keep data as root
from tests.databases import one_connection  # noqa: E402  the path is set above


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Half as many again as processors: a worker is idle a third of its time, while what a test has
    killed ends, or what hangs is given up.
    """
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None  # xdist's own way takes it from there
    return len(os.sched_getaffinity(0)) * 3 // 2


@pytest.fixture(scope="session")
def new_server_folder() -> Iterator[Callable[[], Path]]:
    """Makes data folders for servers; what a killed run left in its own is taken away."""
    _forget_the_dead()
    mine = SERVERS / str(os.getpid())
    numbers = itertools.count(1)

    def make() -> Path:
        folder = mine / str(next(numbers))
        folder.mkdir(parents=True)  # as root it stays empty, and says that there are data elsewhere
        return folder

    yield make
    _forget(mine)


@pytest.fixture(scope="session")
def server_url(new_server_folder: Callable[[], Path]) -> Iterator[str]:
    """The URL of a login that may create roles and databases."""
    if given := os.environ.get("TEST_DATABASE_URL"):
        with one_connection(given):
            yield given
        return
    settings = {
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "scram_iterations": "1",
    }
    with Postgres(new_server_folder(), settings=settings) as server:
        _hash_quickly(server.url())
        with one_connection(server.url()):
            yield server.url()


def _hash_quickly(server: str) -> None:
    """Give the superuser its password anew: to sign in by initdb's hash takes 2 ms, thousands of times."""
    with psycopg.connect(server) as connection:
        connection.execute(
            sql.SQL("ALTER ROLE CURRENT_USER PASSWORD {}").format(unquote(urlsplit(server).password or ""))
        )


def _forget_the_dead() -> None:
    """What a killed run could not take away: its servers died with it, their data did not."""
    SERVERS.mkdir(parents=True, exist_ok=True)
    for folder in SERVERS.iterdir():
        try:
            os.kill(int(folder.name), 0)
        except ProcessLookupError:
            with suppress(OSError, PostgresError):  # another worker may be at it too
                _forget(folder)
        except PermissionError:
            continue


def _forget(folder: Path) -> None:
    if folder.exists():
        for data in folder.iterdir():
            Postgres(data).forget()
        shutil.rmtree(folder)
