"""Where a backup is: in the running stack's bucket, in one of your account's, or in a file."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from backplane import archives
from backplane.archives import ArchiveError, Bucket, Manifest
from local import running
from local.aws import CREDENTIALS, clients
from local.refusal import Refusal

LATEST = "latest"


@dataclass(frozen=True)
class Backup:
    manifest: Manifest
    bucket: Bucket | None = None
    file: Path | None = None

    def read(self, report: archives.Report) -> Iterator[bytes]:
        """The stored bytes, checked against the manifest."""
        if self.bucket:
            return self.bucket.read(self.manifest, report)
        assert self.file is not None  # noqa: S101  it is in one of the two
        return archives.check(self.manifest, _blocks(self.file, report))


def stack_bucket(stack: running.Stack) -> Bucket:
    """The running stack's; the environment's AWS is the stack's from then on."""
    configuration = clients(stack.aws_endpoint_url)("lambda").get_function_configuration(
        FunctionName=stack.functions["backup"]
    )
    os.environ |= {**CREDENTIALS, "AWS_ENDPOINT_URL": stack.aws_endpoint_url}
    return Bucket(archives.client(), configuration["Environment"]["Variables"]["BACKUP_BUCKET"])


def account_bucket(url: str) -> Bucket:
    """The bucket of an s3:// URL, with the shell's AWS credentials."""
    return Bucket(archives.client(), urlsplit(url).netloc)


def find(source: str) -> Backup:
    """What FROM names: latest, a backup's name, s3://bucket[/key], or a file. Raises Refusal."""
    try:
        if source.startswith("s3://"):
            bucket = account_bucket(source)
            return _in_bucket(bucket, urlsplit(source).path.strip("/") or LATEST)
        if Path(source).suffix in {".zst", ".json"} and not source.startswith(archives.FOLDER):
            return _in_file(Path(source))
        return _in_bucket(stack_bucket(running.find()), source or LATEST)
    except (ArchiveError, BotoCoreError, ClientError) as error:
        raise Refusal(f"{source or LATEST}: {error}") from None


def _in_bucket(bucket: Bucket, name: str) -> Backup:
    if name in {LATEST, archives.FOLDER.rstrip("/")}:
        dumps = (each.name for each in bucket.backups() if each.has_dump)
        if (newest := next(dumps, None)) is None:
            raise Refusal(f"there is no backup in {bucket.name}. Take one: `make backup`.")
        name = newest
    return Backup(bucket.manifest(archives.name_in(name)), bucket=bucket)


def _in_file(file: Path) -> Backup:
    """A dump with its manifest beside it, under the names that they have in the bucket."""
    stem = str(file).removesuffix(archives.DUMP).removesuffix(archives.MANIFEST)
    dump, manifest = Path(f"{stem}{archives.DUMP}"), Path(f"{stem}{archives.MANIFEST}")
    if missing := [path for path in (dump, manifest) if not path.is_file()]:
        raise Refusal(f"{missing[0]} is not there. A backup is two files: download both.")
    return Backup(archives.parse(manifest.read_bytes()), file=dump)


def _blocks(file: Path, report: archives.Report) -> Iterator[bytes]:
    done = 0
    with file.open("rb") as stream:
        for block in iter(partial(stream.read, archives.BLOCK), b""):
            yield block
            done += len(block)
            report(done)
