"""A backup of a database of about 500 MB into moto's S3: wall time and memory, beside two other ways.

The limit is pg_dump through the zstd program to nowhere: no storing, no hashing, no counting, no manifest.
The peer is what most scripts do: dump to a file, gzip it, upload it.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from local.aws import CREDENTIALS
from local.checkout import ROOT
from local.owner import as_role
from local.pgtools import ensure
from local.postgres import Postgres
from psycopg.rows import DictRow, dict_row

from benchmarks import results

MEGABYTES = (60, 500)  # of the database; the small one shows that memory does not grow
REPEATED = 3
BUCKET = "backups"
PASSWORD = "benchmark"  # noqa: S105  of a role on a server that is gone when this ends
MIB = 1024**2
BATCH = 2000  # events
EVENTS = """
    INSERT INTO platform.webhook_inbox
        (provider, event_id, event_type, body, status, occurred_at)
    SELECT 'stripe', 'evt_' || n, 'invoice.paid',
           convert_to(format(
               '{"id": "evt_%%s", "object": "event", "data": {"object": '
               '{"id": "in_%%s", "customer": "cus_%%s", "lines": {"data": [%%s]}}}}',
               n, md5(n::text), md5((n / 7)::text),
               (SELECT string_agg(format(
                   '{"id": "il_%%s", "amount": %%s, "currency": "usd", "description": "Pro, %%s"}',
                   md5((n * 8 + line)::text), n %% 9999, line), ', ')
                FROM generate_series(1, 8) AS line)
           ), 'UTF8'),
           'processed', now()
    FROM generate_series(%(first)s::bigint, %(last)s) AS n
"""
PUBLISHED = """
    INSERT INTO platform.outbox (type, payload, published_at)
    SELECT 'credits.debited', jsonb_build_object('id', gen_random_uuid(), 'amount', n), now()
    FROM generate_series(1, %(events)s) AS n
"""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="backplane-bench-") as folder, _moto() as aws_url:
        tools = ensure(Path(folder) / "pgtools")
        os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": aws_url, "PG_TOOLS": str(tools)}
        _client().create_bucket(Bucket=BUCKET)
        with Postgres(Path(folder) / "data") as server:
            rows = [row for size in MEGABYTES for row in _measure(server, size, tools, Path(folder))]
    results.write(
        "Backup",
        "The whole database into S3 (moto, on the same machine); the best of "
        f"{REPEATED} runs each, in turns. Memory is the sum of the processes' peaks, pg_dump's among them.",
        ["database", "way", "seconds", "of the limit", "MB stored", "peak MB"],
        rows,
        notes="Goal: at most 1.7 times the limit, and 150 MB whatever the size. moto, PostgreSQL and the "
        f"backup share the machine's cores. {_which_zstd()}",
    )


def _measure(server: Postgres, megabytes: int, tools: Path, folder: Path) -> list[list[str]]:
    database = f"bench_{megabytes}"
    size = _fill(server, database, megabytes)
    url = as_role(server.url(database), "backplane_backup", PASSWORD)
    ways = {
        "limit: pg_dump, zstd -1, nowhere": "limit",
        "the function": "function",
        "peer: file, gzip, upload": "peer",
    }
    best: dict[str, dict[str, float]] = {}
    for attempt in range(REPEATED):
        for way, run in ways.items():
            if attempt and run == "peer":  # once is enough of that
                continue
            found = _run(run, url, tools, folder)
            if way not in best or found["seconds"] < best[way]["seconds"]:
                best[way] = found
    limit = next(iter(best.values()))["seconds"]
    return [
        [
            f"{size / MIB:.0f} MB",
            way,
            f"{found['seconds']:.2f}",
            f"{found['seconds'] / limit:.2f}",
            f"{found['bytes'] / MIB:.0f}" if found["bytes"] else "-",
            f"{found['memory'] / MIB:.0f}",
        ]
        for way, found in best.items()
    ]


def _run(way: str, url: str, tools: Path, folder: Path) -> dict[str, float]:
    """One run in a process of its own, whose memory is measured."""
    process = subprocess.Popen(  # noqa: S603  ourselves
        [sys.executable, "-m", "benchmarks.backup", way, str(folder)],
        env=os.environ
        | {
            "PYTHONPATH": f"{ROOT}/layers/backplane:{ROOT}/functions/backup:{ROOT}",
            "DATABASE_URL": url,
            "BACKUP_BUCKET": BUCKET,
            "PG_TOOLS": str(tools),
        },
        stdout=subprocess.PIPE,
    )
    memory: dict[int, int] = {}
    while process.poll() is None:
        for pid in _family(process.pid):
            memory[pid] = max(memory.get(pid, 0), _peak(pid))
        time.sleep(0.05)
    assert process.stdout is not None  # noqa: S101  a pipe was asked for
    with process.stdout as said:
        lines = said.read().splitlines()
    if process.returncode:
        raise RuntimeError(f"the {way} failed")
    measured: dict[str, float] = json.loads(lines[-1])
    return measured | {"memory": sum(memory.values())}


def _family(pid: int) -> Iterator[int]:
    """A process and the programs that it has started, and theirs.

    A child that runs no program of its own yet shares its parent's memory, which counts once.
    """
    yield pid
    with suppress(OSError):
        ours = Path(f"/proc/{pid}/exe").readlink()
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/exe").readlink() != ours:
                    yield from _family(int(child))


def _peak(pid: int) -> int:
    """The most memory a process has had, in bytes; what its parent had when it was forked does not count."""
    with suppress(OSError):
        if found := re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            return int(found[1]) * 1024
    return 0


# ---- in a process of its own ----


def once(way: str, folder: Path) -> None:
    began = time.monotonic()
    match way:
        case "function":
            stored = _function()
        case "limit":
            stored = _limit()
        case _:
            stored = _peer(folder)
    print(json.dumps({"seconds": time.monotonic() - began, "bytes": stored}))


def _function() -> int:
    """The handler as Lambda calls it, imports and all."""
    import backup

    class Context:
        function_name = memory_limit_in_mb = invoked_function_arn = aws_request_id = "bench"

        def get_remaining_time_in_millis(self) -> int:
            return 900_000

    handler: Any = backup.handler
    stored: int = handler({}, Context())["bytes"]
    return stored


def _limit() -> int:
    url = os.environ["DATABASE_URL"]
    dump = subprocess.Popen(_pg_dump(url), stdout=subprocess.PIPE)  # noqa: S603
    zstd = subprocess.Popen(_zstd(), stdin=dump.stdout, stdout=subprocess.DEVNULL)  # noqa: S603
    assert dump.stdout is not None  # noqa: S101  a pipe was asked for
    dump.stdout.close()
    if dump.wait() or zstd.wait():
        raise RuntimeError("the limit could not be measured")
    return 0


def _peer(folder: Path) -> int:
    file = folder / "peer.dump"
    subprocess.run([*_pg_dump(os.environ["DATABASE_URL"]), f"--file={file}"], check=True)  # noqa: S603
    subprocess.run(["gzip", "--force", str(file)], check=True)  # noqa: S603, S607
    packed = file.with_suffix(".dump.gz")
    _client().upload_file(str(packed), BUCKET, packed.name)
    size = packed.stat().st_size
    packed.unlink()
    return size


def _pg_dump(url: str) -> list[str]:
    program = f"{os.environ['PG_TOOLS']}/pg_dump"
    return [program, "--format=custom", "--compress=none", "--enable-row-security", f"--dbname={url}"]


def _zstd() -> list[str]:
    """The program, or the same library in a small process."""
    if found := shutil.which("zstd"):
        return [found, "-1", "--quiet", "--stdout"]
    code = "import sys, zstandard as z; z.ZstdCompressor(1).copy_stream(sys.stdin.buffer, sys.stdout.buffer)"
    return [sys.executable, "-c", code]


def _which_zstd() -> str:
    return "" if shutil.which("zstd") else "There is no zstd program here: a small process uses the library."


# ---- what it is measured on ----


@contextmanager
def _moto() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(  # noqa: S603  ourselves
            [sys.executable, "-m", "local.aws_server", str(listener.fileno())],
            env=os.environ | CREDENTIALS | {"PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.wait()


def _client() -> Any:
    import boto3

    return boto3.client("s3")


def _fill(server: Postgres, database: str, megabytes: int) -> int:
    """A migrated database with webhook bodies, which are most of a busy one's bytes, and outbox rows."""
    sys.path[:0] = [str(ROOT / "functions" / "migrate")]
    import migrate

    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {database}".encode())
    with psycopg.connect(server.url(database), autocommit=True, row_factory=dict_row) as connection:
        migrate.migrate(connection, {"backplane_backup": PASSWORD})
        events = 0
        while _size(connection) < megabytes * MIB:
            connection.execute(EVENTS, {"first": events + 1, "last": events + BATCH})
            connection.execute(PUBLISHED, {"events": BATCH * 2})
            events += BATCH
        connection.execute("VACUUM ANALYZE")
        return _size(connection)


def _size(connection: psycopg.Connection[DictRow]) -> int:
    found = connection.execute("SELECT pg_database_size(current_database()) AS size").fetchone()
    assert found is not None  # noqa: S101
    size: int = found["size"]
    return size


if __name__ == "__main__":
    if len(sys.argv) > 1:
        once(sys.argv[1], Path(sys.argv[2]))
    else:
        main()
