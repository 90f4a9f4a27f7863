"""Backups in tests: a bucket of moto's, taking one, and looking at what the bucket then holds."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import taking
from local.aws import CREDENTIALS
from local.children import dies_with
from tests.databases import Database

from backplane import archives, restores
from backplane.archives import Bucket, Manifest
from backplane.config import Settings

ROOT = Path(__file__).parents[1]


@contextmanager
def moto() -> Iterator[str]:
    """The URL of an AWS that lasts as long as the block."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen(
            dies_with(os.getpid(), [sys.executable, "-m", "local.aws_server", str(listener.fileno())]),
            env={**CREDENTIALS, "PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT)},
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield url
    finally:
        process.terminate()
        process.wait(30)


def settings(database: Database, bucket: Bucket, **others: Any) -> Settings:
    return Settings(database_url=database.backup, backup_bucket=bucket.name, **others)  # type: ignore[arg-type]


def take(database: Database, bucket: Bucket, *, seconds: float = 60, **others: Any) -> Manifest:
    return taking.take(settings(database, bucket, **others), ends=time.monotonic() + seconds)


def dumps(bucket: Bucket) -> list[str]:
    """The names of what looks like a finished backup, with a manifest or without."""
    return sorted({archives.name_in(key) for key in bucket.objects() if key.endswith(archives.DUMP)})


def uploads(bucket: Bucket) -> list[str]:
    """What was begun, and neither completed nor aborted."""
    answer = bucket.client.list_multipart_uploads(Bucket=bucket.name)
    return [upload["Key"] for upload in answer.get("Uploads", ())]


def read_whole(bucket: Bucket, name: str) -> None:
    """Raises unless the backup can be read to its end, and is what its manifest says."""
    manifest = bucket.manifest(name)
    restores.verify(manifest, bucket.read(manifest), ends=time.monotonic() + 60)
