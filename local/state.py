"""What outlives a run of the local AWS: S3 objects, KMS keys and functions' own secrets, as files.

    index.json   buckets with their objects' metadata, keys with their material, secrets
    objects/     what the objects hold, each under its SHA-256

Contents are written before the index that names them, and the index is replaced as a whole, so that
whatever moment a run is killed in, what is found is one moment's state.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from local.credentials import write_private

VERSION = 1
BLOCK = 1024 * 1024  # bytes


@dataclass(frozen=True)
class Index:
    """JSON values; what they mean is local.aws_store's."""

    buckets: Mapping[str, Any] = field(default_factory=dict)  # by name
    keys: Mapping[str, Any] = field(default_factory=dict)  # by id
    secrets: Mapping[str, str] = field(default_factory=dict)  # by name

    @property
    def objects(self) -> Iterator[Mapping[str, Any]]:
        """Every object's every version that has content."""
        for bucket in self.buckets.values():
            yield from (each for each in bucket["objects"] if "sha256" in each)

    @property
    def summary(self) -> str:
        count, size = len(list(self.objects)), sum(each["bytes"] for each in self.objects)
        objects = f"{count} object{'' if count == 1 else 's'} ({size / 1e6:.1f} MB)"
        return f"{objects} and {len(self.keys)} key{'' if len(self.keys) == 1 else 's'}"


class State:
    """One process writes it. Raises OSError where the disk fails."""

    def __init__(self, folder: Path) -> None:
        self._index = folder / "index.json"
        self._objects = folder / "objects"
        self.folder = folder

    def load(self) -> Index:
        """Raises ValueError where the index is damaged."""
        try:
            written = json.loads(self._index.read_text())
        except FileNotFoundError:
            return Index()
        if not isinstance(written, dict) or written.get("version") != VERSION:
            raise ValueError(f"{self._index} is not of this version")
        try:
            index = Index(written["buckets"], written["keys"], written.get("secrets", {}))
            _ = index.summary  # reads each object's size
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{self._index} lacks what it must have") from None
        return index

    def save(self, index: Index) -> None:
        """Make this the state. Every content it names must have been put."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = {
            "version": VERSION,
            "buckets": index.buckets,
            "keys": index.keys,
            "secrets": index.secrets,
        }
        write_private(self._index, json.dumps(written))

    def put(self, blocks: Iterator[bytes]) -> str:
        """Keep a content; its SHA-256."""
        self._objects.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self._objects / f"{os.getpid()}.partial"
        digest = hashlib.sha256()
        with partial.open("wb") as file:
            for block in blocks:
                digest.update(block)
                file.write(block)
        partial.rename(self._objects / digest.hexdigest())
        return digest.hexdigest()

    def has(self, sha256: str) -> bool:
        return (self._objects / sha256).exists()

    def read_into(self, sha256: str, target: IO[bytes]) -> int:
        """Copy a content; its length. Raises OSError, and ValueError where it is not what was put."""
        digest, length = hashlib.sha256(), 0
        with (self._objects / sha256).open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
                length += target.write(block)
        if digest.hexdigest() != sha256:
            raise ValueError(f"the content {sha256} is damaged")
        return length

    def sweep(self, index: Index) -> None:
        """Delete the contents that a saved index doesn't name."""
        named = {each["sha256"] for each in index.objects}
        with suppress(FileNotFoundError):
            for file in self._objects.iterdir():
                if file.name not in named:
                    file.unlink(missing_ok=True)


def prepare(folder: Path) -> str:
    """Make sure the state can be loaded, setting aside what can't; a line to the person who starts a run."""
    kept = f"S3 objects and KMS keys are kept in {folder} (queues are not; a kill -9 loses the last seconds)"
    try:
        index = State(folder).load()
    except ValueError as error:
        aside = folder.with_name(f"{folder.name}.damaged-{int(time.time())}")
        folder.rename(aside)
        return f"{kept}. What the last run left can't be read ({error}): it is set aside as {aside}."
    return f"{kept}: {index.summary} of the last run." if index.buckets or index.keys else f"{kept}."
