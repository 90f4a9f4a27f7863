"""A save of a project of 200 files and 2 MB, through the whole function, beside what it cannot do without:
putting an object of that size and updating one row.
"""

import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from uuid import UUID

import psycopg
from local.aws import CREDENTIALS
from local.checkout import ROOT
from tests.databases import Database

from benchmarks import results, scratch
from benchmarks.debit_clients import use

FILES = 200
BYTES = 10_000  # of each
WARM = 5
ROUNDS = 100
BUCKET = "files"
LIMIT = "limit: PutObject, one UPDATE"


def main() -> None:
    sys.path[:0] = [str(folder) for folder in sorted((ROOT / "functions").iterdir()) if folder.is_dir()]
    from tests import backups

    with scratch.server() as server, backups.moto() as aws_url:
        os.environ |= {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": aws_url,
            "FILES_BUCKET": BUCKET,
            "MAX_BODY_BYTES": str(6 * 1024**2),
        }
        taken = measure(server.migrated())
    limit = sorted(taken[LIMIT])[ROUNDS // 2]
    results.write(
        "Files",
        f"One save of a project of {FILES} files and {FILES * BYTES / 1e6:.0f} MB, the ways in turns, "
        f"{ROUNDS} rounds; S3 is moto, on the same machine.",
        ["way", "ms (p50 / p99)", "of the limit (p50)"],
        [
            [way, results.milliseconds(seconds), f"{sorted(seconds)[ROUNDS // 2] / limit:.2f}"]
            for way, seconds in taken.items()
        ],
        notes="A save also reads the version that it begins from, unless it sends all files; reserves its "
        "bytes, hashes every file, records the version with its index, and tells of it.",
    )


def measure(database: Database) -> dict[str, list[float]]:
    """Seconds that each way took."""
    from tests import callers

    os.environ |= {
        "CLERK_ISSUER": callers.ISSUER,
        "CLERK_JWT_KEY": callers.PEM,
        "POWERTOOLS_LOG_LEVEL": "ERROR",
    }
    use(database)
    token = callers.token()
    project = callers.send("POST", "/v1/projects", token, body={"title": "Bench"}).body["id"]
    with psycopg.connect(database.owner, autocommit=True) as connection:
        connection.execute("UPDATE billing.plan_limits SET value = -1 WHERE key = 'site.storage_bytes'")
        ways = {
            LIMIT: _limit(connection, UUID(project)),
            "one file changed": _one(token, project),
            "every file sent": _all(token, project),
        }
        taken: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(WARM + ROUNDS):
            for way, work in ways.items():
                began = time.perf_counter()
                work()
                if number >= WARM:
                    taken[way].append(time.perf_counter() - began)
    return taken


def _limit(connection: psycopg.Connection, project_id: UUID) -> Callable[[], None]:
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})

    def work() -> None:
        body = json.dumps({"files": _contents()}).encode()
        client.put_object(Bucket=BUCKET, Key=f"limit/{uuid.uuid4()}", Body=body)
        connection.execute("UPDATE projects.projects SET updated_at = now() WHERE id = %s", [project_id])

    return work


def _one(token: str, project: str) -> Callable[[], None]:
    def work() -> None:
        changed = {"path": "src/100.tsx", "content": uuid.uuid4().hex * (BYTES // 32)}
        _save(token, project, {"files": [changed]})

    return work


def _all(token: str, project: str) -> Callable[[], None]:
    def work() -> None:
        files = [{"path": path, "content": content} for path, content in _contents().items()]
        _save(token, project, {"files": files, "operation": "replace"})

    work()
    return work


def _contents() -> dict[str, str]:
    return {f"src/{number}.tsx": uuid.uuid4().hex * (BYTES // 32) for number in range(FILES)}


def _save(token: str, project: str, body: dict[str, Any]) -> None:
    from tests import callers

    answer = callers.send("POST", f"/v1/projects/{project}/files", token, body=body)
    if answer.status != HTTPStatus.CREATED:
        raise RuntimeError(f"a save was refused: {answer.body}")
