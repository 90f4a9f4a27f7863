"""local/postgres.py: a server that starts on its data whatever happened to the last one."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from local.postgres import ROOT_HOME, Postgres, PostgresError

FAST = {"fsync": "off"}
PATIENCE = 20.0  # seconds; only a failing test waits that long


@pytest.fixture
def data(new_server_folder: Callable[[], Path]) -> Path:
    return new_server_folder()


@pytest.fixture
def server(data: Path) -> Iterator[Postgres]:
    server = Postgres(data, settings=FAST)
    yield server
    server.forget()


@pytest.fixture(scope="module")
def running(new_server_folder: Callable[[], Path]) -> Iterator[Postgres]:
    """One that no test stops or breaks."""
    server = Postgres(new_server_folder(), settings=FAST)
    yield server.start()
    server.forget()


def ask(url: str, query: bytes) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
        return row[0] if row else None


def tell(url: str, statement: bytes) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(statement)


def alive(pid: int) -> bool:
    """Whether it runs. A zombie does not: it only waits for its parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def test_it_serves_utf8_in_utc(running: Postgres) -> None:
    assert ask(running.url(), b"SHOW server_encoding") == "UTF8"
    assert ask(running.url(), b"SHOW timezone") == "UTC"
    assert ask(running.url(), "SELECT lower('ÀÉ') = 'àé'".encode()) is True


def test_settings_reach_the_server(running: Postgres) -> None:
    assert ask(running.url(), b"SHOW fsync") == "off"


def test_it_listens_on_loopback_only_and_has_no_socket_file(running: Postgres) -> None:
    assert ask(running.url(), b"SHOW listen_addresses") == "127.0.0.1"
    assert ask(running.url(), b"SHOW unix_socket_directories") == ""


def test_a_wrong_password_is_refused(running: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(running.url(password="wrong"))


def test_starting_twice_is_once(running: Postgres) -> None:
    pid = running.pid
    assert running.start().pid == pid


def test_the_password_is_the_owners_alone(running: Postgres) -> None:
    assert stat.S_IMODE((running.home / "password").stat().st_mode) == 0o600
    assert stat.S_IMODE((running.home / "cluster").stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user and another place")
def test_as_root_the_server_runs_as_another_user_outside_the_home(running: Postgres) -> None:
    assert running.home.parent == ROOT_HOME
    assert Path(f"/proc/{running.pid}").stat().st_uid != 0


def test_data_password_and_port_survive_a_stop(server: Postgres) -> None:
    url = server.start().url()
    tell(url, b"CREATE TABLE kept AS SELECT 42 AS n")
    server.stop()
    assert server.pid is None
    assert server.start().url() == url
    assert ask(url, b"SELECT n FROM kept") == 42


def test_it_takes_another_port_where_its_own_is_in_use(
    server: Postgres, new_server_folder: Callable[[], Path]
) -> None:
    port = server.start().port
    server.stop()
    (server.home / "port").write_text(str(port))
    other = Postgres(new_server_folder(), settings=FAST)
    try:
        other._make_home()
        (other.home / "port").write_text(str(port))
        assert other.start().port == port
        assert server.start().port != port
        assert ask(server.url(), b"SELECT 1") == 1
    finally:
        other.forget()


def test_a_killed_server_recovers_what_was_committed(data: Path) -> None:
    server = Postgres(data)  # with fsync: this is what it is for
    try:
        pid = server.start().pid
        assert pid is not None
        assert ask(server.url(), b"SHOW fsync") == "on"
        with psycopg.connect(server.url()) as connection:
            connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
            connection.commit()
            os.kill(pid, signal.SIGKILL)  # its backends notice and leave
        server.stop()
        assert ask(server.start().url(), b"SELECT count(*) FROM kept") == 1000
    finally:
        server.forget()


def test_a_pid_file_that_names_a_stranger_does_not_stop_it(server: Postgres) -> None:
    server.start()
    server.stop()
    # After a crash and a reboot the number may be anybody's: here, this very process's.
    stale = server.home / "cluster" / "postmaster.pid"
    stale.write_text(f"{os.getpid()}\n{server.home / 'cluster'}\n0\n5432\n\n127.0.0.1\n\nready\n")
    assert ask(server.start().url(), b"SELECT 1") == 1


def test_a_second_server_on_the_same_data_is_refused(
    server: Postgres, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.postgres.LOCK_TIMEOUT", 0.1)
    server.start()
    second = Postgres(data)
    with pytest.raises(PostgresError, match="already running"):
        second.start()
    with pytest.raises(PostgresError, match="already running"):
        second.forget()
    assert ask(server.url(), b"SELECT 1") == 1


def test_it_dies_with_its_parent_and_starts_again(server: Postgres, data: Path) -> None:
    script = """
        import sys, time
        from pathlib import Path
        from local.postgres import Postgres
        server = Postgres(Path(sys.argv[1])).start()
        print(server.pid, server.url(), flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), data],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as parent:
        assert parent.stdout is not None
        try:
            pid, url = parent.stdout.readline().split()
            tell(url, b"CREATE TABLE kept AS SELECT 42 AS n")
            assert alive(int(pid))
        finally:
            parent.kill()
    wait_until_gone(int(pid))
    assert ask(server.start().url(), b"SELECT n FROM kept") == 42


def test_a_start_that_was_cut_off_during_initdb_is_begun_anew(server: Postgres) -> None:
    server._make_home()
    partial = server.home / "partial-cluster"
    partial.mkdir()
    (partial / "PG_VERSION").write_text("18")
    assert ask(server.start().url(), b"SELECT 1") == 1


def test_a_bad_setting_is_reported_with_the_servers_own_words(data: Path) -> None:
    server = Postgres(data, settings={"shared_buffers": "much"})
    try:
        with pytest.raises(PostgresError, match='invalid value for parameter "shared_buffers"'):
            server.start()
    finally:
        server.forget()


def test_data_of_another_major_version_is_refused_with_a_way_out(server: Postgres) -> None:
    server.start()
    server.stop()
    (server.home / "cluster" / "PG_VERSION").write_text("13\n")
    with pytest.raises(PostgresError, match="make clean-local"):
        server.start()


def test_forget_leaves_nothing(server: Postgres) -> None:
    pid = server.start().pid
    server.forget()
    assert pid is not None
    assert not alive(pid)
    assert not server.home.exists()
    server.forget()  # and may be asked for again


def test_a_private_parent_folder_stays_private(data: Path) -> None:
    private = data / "private"
    private.mkdir(mode=0o700)
    server = Postgres(private / "deep", settings=FAST)
    try:
        assert ask(server.start().url(), b"SELECT 1") == 1
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
    finally:
        server.forget()


@pytest.mark.skipif(os.geteuid() == 0, reason="root keeps the data elsewhere")
def test_the_data_are_where_one_said(server: Postgres, data: Path) -> None:
    server.start()
    assert server.home == data
    assert (data / "cluster").is_dir()
