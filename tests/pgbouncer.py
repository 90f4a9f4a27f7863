"""PgBouncer in transaction mode before a test's server: one server connection for each database and login."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.debian import program

PACKAGES = ("pgbouncer", "libc-ares2", "libevent-2.1-7")
PATIENCE = 60.0  # seconds: a bound, never a measure


@dataclass(frozen=True)
class PgBouncer:
    port: int
    folder: Path

    def url(self, direct: str) -> str:
        """The same login and database, by way of it."""
        parts = urlsplit(direct)
        return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self.port}"))


@contextmanager
def pgbouncer(
    server: str, passwords: Mapping[str, str], proof: tuple[Path, Path] | None = None
) -> Iterator[PgBouncer]:
    """Before the server of that URL, for the logins whose passwords it is given, and nobody else.

    With a certificate and its key it speaks TLS, and nothing else.
    """
    installed = program("pgbouncer", PACKAGES)
    folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
    try:
        folder.chmod(0o755)
        ours = installed.copied_to(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        _configure(folder, server, port, passwords, proof)
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None  # it refuses to be root
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [ours.path, folder / "pgbouncer.ini"],
                env=ours.environment,
                stdout=log,
                stderr=log,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        try:
            _await(process, port, folder / "log")
            yield PgBouncer(port, folder)
        finally:
            process.terminate()
            process.wait(PATIENCE)
    finally:
        shutil.rmtree(folder)


def _configure(
    folder: Path, server: str, port: int, passwords: Mapping[str, str], proof: tuple[Path, Path] | None
) -> None:
    place = urlsplit(server)
    (folder / "users").write_text("".join(f'"{login}" "{word}"\n' for login, word in passwords.items()))
    settings = {
        "listen_addr": "127.0.0.1",
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": folder / "users",
        "pool_mode": "transaction",
        "default_pool_size": 1,
        "max_client_conn": 100,
        "server_login_retry": 1,
    }
    if proof:
        certificate, key = (shutil.copy(path, folder) for path in proof)
        settings |= {
            "client_tls_sslmode": "require",
            "client_tls_cert_file": certificate,
            "client_tls_key_file": key,
        }
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={place.hostname} port={place.port}\n[pgbouncer]\n"
        + "".join(f"{name} = {value}\n" for name, value in settings.items())
    )


def _await(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    ends = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError(f"PgBouncer does not listen: {log.read_text()}")
