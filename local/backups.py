"""`make backup` and `make backups`: of the running stack, or what is in a bucket of your account."""

import argparse
import json
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from botocore.exceptions import BotoCoreError, ClientError
from psycopg.rows import dict_row

from backplane.archives import ArchiveError, Bucket, Manifest
from local import backup_place, checkout, running
from local.invoke import Answer, invoke
from local.progress import MIB, Bar
from local.refusal import Refusal, exits

POLL = 0.2  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("take", "list"))
    parser.add_argument("source", nargs="?", default="", help="s3://bucket; omitted: the running stack's")
    arguments = parser.parse_args()
    return take() if arguments.command == "take" else show(arguments.source)


def take() -> int:
    """Invoke the function that the schedule invokes, and show what its log says of its progress."""
    stack = running.find()
    answers: list[Answer] = []
    calling = threading.Thread(target=lambda: answers.append(invoke(stack, "backup", {})), daemon=True)
    bar = Bar("Backing up")
    progress = _progress(checkout.data().logs / "backup.log")
    calling.start()
    while calling.is_alive():
        for step in progress:
            if step is None:
                break
            bar.show(step["dumped_bytes"], step["database_bytes"])
        calling.join(POLL)
    bar.end()
    if not answers:
        raise Refusal("the function backup can't be invoked. What it says is in `make logs F=backup`.")
    (answer,) = answers
    if answer.failed:
        raise Refusal(f"no backup was made: {answer.value.get('errorMessage', answer.value)}")
    print(json.dumps(answer.value, indent=2))
    return 0 if answer.value["ok"] else 1


def _progress(log: Path) -> Iterator[dict[str, Any] | None]:
    """What the log says from now on; None where there is nothing new yet."""
    place = log.stat().st_size if log.exists() else 0
    while True:
        if log.exists():
            with log.open(errors="replace") as lines:
                lines.seek(place)
                for line in lines:
                    if '"progress"' in line and "dumped_bytes" in line:
                        yield json.loads(line)
                place = lines.tell()
        yield None


def show(source: str) -> int:
    """A line a backup, newest first. Raises Refusal."""
    try:
        if source:
            bucket, verdicts = backup_place.account_bucket(source), {}
        else:
            stack = running.find()
            bucket, verdicts = backup_place.stack_bucket(stack), _verdicts(stack.admin_database_url)
        stored = bucket.backups()
    except (BotoCoreError, ClientError) as error:
        raise Refusal(f"the backups can't be listed: {error}") from None
    if not stored:
        print(f"There is no backup in {bucket.name}. Take one: `make backup`.", file=sys.stderr)
    for each in stored:
        if not each.has_dump and (manifest := _manifest(bucket, each.name)) and manifest.kind == "dump":
            print(f"{each.name}  its dump is missing")
            continue
        print(_line(_manifest(bucket, each.name), each.name, verdicts))
    return 0


def _manifest(bucket: Bucket, name: str) -> Manifest | None:
    try:
        return bucket.manifest(name)
    except ArchiveError:
        return None


def _line(manifest: Manifest | None, name: str, verdicts: dict[str, str]) -> str:
    if manifest is None:
        return f"{name}  its manifest can't be read"
    hours = (datetime.now(UTC) - manifest.finished_at).total_seconds() / 3600
    age = f"{hours:.0f} h" if hours < 72 else f"{hours / 24:.0f} days"  # noqa: PLR2004  three days
    what = (
        f"{manifest.bytes / MIB:10.1f} MB  {sum(manifest.rows.values()):>12,} rows"
        if manifest.kind == "dump"
        else f"cluster snapshot {manifest.key}"
    )
    return f"{name}  {age:>8} ago  {what}  {verdicts.get(name, '')}".rstrip()


def _verdicts(url: str) -> dict[str, str]:
    """What the drills have found, by backup."""
    with psycopg.connect(url, row_factory=dict_row) as connection:
        rows = connection.execute(
            "SELECT name, differences, verified_at FROM platform.backups WHERE drilled_at IS NOT NULL"
        ).fetchall()
    return {
        row["name"]: f"proven {row['verified_at']:%Y-%m-%d %H:%M}"
        if row["verified_at"]
        else f"REFUTED: {row['differences'][0]}"
        for row in rows
    }


if __name__ == "__main__":
    exits(main)
