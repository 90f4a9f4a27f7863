"""Backups in S3: how they are named, what their manifests say, and how they are read back.

A backup is two objects, `backups/backup_YYYYmmdd_HHMMSS.dump.zst` and the same with `.json`, its manifest,
which is written last: a dump without one is not a backup. A cluster snapshot is in RDS, and its backup is
the manifest alone.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import psycopg
import zstandard
from botocore.config import Config
from psycopg.rows import DictRow
from pydantic import BaseModel, ValidationError

from backplane.contents import Contents

FOLDER: Final = "backups/"
DUMP: Final = ".dump.zst"
MANIFEST: Final = ".json"
BLOCK: Final = 1024 * 1024  # bytes read from S3 at once
PIECE: Final = 4096  # bytes decompressed at once
MAX_MANIFEST: Final = 32 * 1024**2  # bytes

_NAME: Final = re.compile(r"backup_(\d{8}_\d{6})")
_TIME: Final = "%Y%m%d_%H%M%S"

Report = Callable[[int], None]  # hears how many bytes are done


class ArchiveError(RuntimeError):
    """A backup is not there, or is not what its manifest says; the message says which."""


class Role(BaseModel):
    name: str
    can_login: bool
    member_of: list[str]


class Snapshot(BaseModel):
    identifier: str
    arn: str
    cluster: str
    status: str  # as RDS says it: available, or creating where the time did not suffice to see its end


class Manifest(Contents):
    """What a backup is, and what the database held in the dump's own snapshot.

    `bytes` and `sha256` are the stored object's. A cluster snapshot's contents are empty: nobody counted.
    """

    format: Literal[1] = 1
    kind: Literal["dump", "cluster_snapshot"]
    key: str  # of the dump; of a snapshot, its ARN
    manifest_key: str
    version_id: str | None = None  # of the dump, where the bucket keeps versions
    started_at: datetime
    finished_at: datetime
    bytes: int
    sha256: str | None
    dump_bytes: int  # before compression
    database: str
    server_version: str
    tool_version: str | None  # pg_dump's
    roles: list[Role]
    snapshot: Snapshot | None = None

    @property
    def name(self) -> str:
        return name_in(self.manifest_key)

    def as_json(self) -> str:
        """For people, too: what it is comes before what was in the database."""
        contents = set(Contents.model_fields)
        about = self.model_dump(mode="json", exclude=contents)
        return json.dumps(about | self.model_dump(mode="json", include=contents), indent=1)

    @property
    def seconds(self) -> float:
        return round((self.finished_at - self.started_at).total_seconds(), 3)


def name_at(moment: datetime) -> str:
    return f"backup_{moment.astimezone(UTC).strftime(_TIME)}"


def name_in(key: str) -> str:
    """The backup's name in a key, a file's name or the name itself. Raises ArchiveError."""
    found = _NAME.search(key.rpartition("/")[2])
    if not found:
        raise ArchiveError(f"{key} is no backup's name: those are like backup_20260131_034500")
    return found[0]


def time_of(name: str) -> datetime:
    found = _NAME.fullmatch(name)
    if not found:
        raise ArchiveError(f"{name} is no backup's name")
    return datetime.strptime(found[1], _TIME).replace(tzinfo=UTC)


def parse(text: bytes) -> Manifest:
    """Raises ArchiveError where it is no manifest."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        where = ", ".join(".".join(map(str, each["loc"])) or "all of it" for each in error.errors()[:3])
        raise ArchiveError(f"the manifest can't be read: {where} is damaged") from None


def record(connection: psycopg.Connection[DictRow], manifest: Manifest) -> None:
    """The backup's row, unless it is there."""
    fields = {"kind", "key", "manifest_key", "bytes", "sha256", "started_at", "finished_at"}
    connection.execute(
        """
        SELECT platform.record_backup(
            %(name)s, %(kind)s, %(key)s, %(manifest_key)s, %(bytes)s, %(row_count)s, %(sha256)s,
            %(started_at)s, %(finished_at)s
        )
        """,
        manifest.model_dump(include=fields)
        | {"name": manifest.name, "row_count": sum(manifest.rows.values())},
    )


def check(manifest: Manifest, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The stored bytes as they come; raises ArchiveError at the end if they are not the manifest's."""
    digest, size = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
        yield block
    if size != manifest.bytes:
        raise ArchiveError(f"{manifest.name} has {size} bytes, and its manifest says {manifest.bytes}")
    if digest.hexdigest() != manifest.sha256:
        raise ArchiveError(f"{manifest.name} has another SHA-256 than its manifest says: it was changed")


def decompress(manifest: Manifest, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The dump inside, in small blocks. Raises ArchiveError where it is cut short or damaged."""
    inflater = zstandard.ZstdDecompressor().decompressobj()
    size = 0
    try:
        for piece in _pieces(blocks):
            if inflater.eof:
                raise ArchiveError(f"{manifest.name} goes on after its end")
            unfolded = inflater.decompress(piece)
            size += len(unfolded)
            yield unfolded
    except zstandard.ZstdError as error:
        raise ArchiveError(f"{manifest.name} is damaged: {error}") from None
    if not inflater.eof:
        raise ArchiveError(f"{manifest.name} is cut short")
    if inflater.unused_data:
        raise ArchiveError(f"{manifest.name} goes on after its end")
    if size != manifest.dump_bytes:
        raise ArchiveError(
            f"{manifest.name} unfolds to {size} bytes, and its manifest says {manifest.dump_bytes}"
        )


def _pieces(blocks: Iterator[bytes]) -> Iterator[memoryview]:
    """Small ones: a piece of zeros unfolds to 30,000 times its size, and memory is to stay flat."""
    for block in blocks:
        whole = memoryview(block)
        for start in range(0, len(whole), PIECE):
            yield whole[start : start + PIECE]


@dataclass(frozen=True)
class Stored:
    """A backup as the bucket lists it."""

    name: str
    manifest_key: str
    has_dump: bool


class Bucket:
    """Where backups are kept. `client` is boto3's for S3."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name

    def backups(self) -> list[Stored]:
        """Those with a manifest, newest first."""
        keys = set(self.objects())
        manifests = (key for key in keys if key.endswith(MANIFEST))
        found = [
            Stored(name_in(key), key, f"{key.removesuffix(MANIFEST)}{DUMP}" in keys) for key in manifests
        ]
        return sorted(found, key=lambda each: each.name, reverse=True)

    def objects(self) -> Iterator[str]:
        """Every object that is named as a backup's are."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=FOLDER)
        for page in pages:
            for each in page.get("Contents", ()):
                key: str = each["Key"]
                stem = key.removesuffix(DUMP) if key.endswith(DUMP) else key.removesuffix(MANIFEST)
                if stem != key and _NAME.fullmatch(stem.removeprefix(FOLDER)):
                    yield key

    def manifest(self, name: str) -> Manifest:
        """Raises ArchiveError where there is none, or a damaged one, and botocore's errors."""
        key = f"{FOLDER}{name}{MANIFEST}"
        return parse(self._open(key).read(MAX_MANIFEST))

    def read(self, manifest: Manifest, report: Report = lambda _: None) -> Iterator[bytes]:
        """The dump's stored bytes, checked against its manifest. Raises ArchiveError and botocore's."""
        return check(manifest, self._blocks(manifest, report))

    def _blocks(self, manifest: Manifest, report: Report) -> Iterator[bytes]:
        done = 0
        body = self._open(manifest.key)
        while block := body.read(BLOCK):
            yield block
            done += len(block)
            report(done)

    def _open(self, key: str) -> Any:
        try:
            return self.client.get_object(Bucket=self.name, Key=key)["Body"]
        except self.client.exceptions.NoSuchKey:
            raise ArchiveError(f"there is no {key} in {self.name}") from None


def client(*, read_timeout: float = 30) -> Any:
    """boto3's client for S3, patient with passing errors, and with no call that hangs for ever."""
    import boto3  # a quarter of a second, which only those who reach S3 pay

    config = Config(
        connect_timeout=5,
        read_timeout=read_timeout,
        retries={"mode": "standard", "total_max_attempts": 4},
    )
    return boto3.client("s3", config=config)
