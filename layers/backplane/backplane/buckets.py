"""The bucket of projects' files and uploads: put once, read what was put, and let browsers up and down.

Whatever fails in passing leaves here as problems.Unavailable.
"""

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

from backplane.config import settings
from backplane.problems import Unavailable

DOWNLOAD_SECONDS = 900
GRANT_SECONDS = 900  # an upload may begin within

JSON = "application/json"


class BrokenObjectError(RuntimeError):
    """An object is not what the database says was put there."""


@dataclass(frozen=True)
class Landed:
    """An object as it is, with its first bytes."""

    version: str
    size: int
    content_type: str
    head: bytes


@dataclass(frozen=True)
class Place:
    """The bucket, for what streams into it: see multipart."""

    client: Any
    name: str


@dataclass(frozen=True)
class PresignedPost:
    url: str
    fields: dict[str, str]


def put_once(key: str, body: bytes, sha256: str, content_type: str = JSON) -> str:
    """Stores what must not be there yet. Answers S3's id of the version.

    A put whose answer was lost is tried again by boto3 and finds itself there.
    """
    with _passing():
        try:
            answer = _client().put_object(
                Bucket=name(),
                Key=key,
                Body=body,
                ContentType=content_type,
                ChecksumSHA256=base64.b64encode(bytes.fromhex(sha256)).decode(),
                Metadata={"sha256": sha256},
                IfNoneMatch="*",
            )
        except _client_error() as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 412:  # noqa: PLR2004  precondition failed
                raise
            answer = _client().head_object(Bucket=name(), Key=key)
            if answer["Metadata"].get("sha256") != sha256:
                raise BrokenObjectError(f"{key} is taken by something else") from error
    version: str = answer["VersionId"]
    return version


def copy(key: str, version: str, to: str) -> str:
    """Stores a version of an object under a second key, within S3. Answers S3's id of the new version.

    Raises BrokenObjectError where it is gone.
    """
    with _passing():
        try:
            answer = _client().copy_object(
                Bucket=name(), Key=to, CopySource={"Bucket": name(), "Key": key, "VersionId": version}
            )
        except _client_error() as error:
            if error.response["Error"]["Code"] in {"NoSuchKey", "NoSuchVersion"}:
                raise BrokenObjectError(f"{key} is gone from the bucket") from error
            raise
    copied: str = answer["VersionId"]
    return copied


def read(key: str, version: str, sha256: str) -> bytes:
    """What was put there. Raises BrokenObjectError where it is gone or is something else."""
    with _passing():
        try:
            body: bytes = _client().get_object(Bucket=name(), Key=key, VersionId=version)["Body"].read()
        except _client_error() as error:
            if error.response["Error"]["Code"] in {"NoSuchKey", "NoSuchVersion"}:
                raise BrokenObjectError(f"{key} is gone from the bucket") from error
            raise
    if hashlib.sha256(body).hexdigest() != sha256:
        raise BrokenObjectError(f"{key} has another SHA-256 than was put there")
    return body


def read_bounded(key: str, limit: int) -> bytes | None:
    """What was uploaded there, at most so many bytes of it; None where there is nothing."""
    with _passing():
        try:
            body: bytes = _client().get_object(Bucket=name(), Key=key)["Body"].read(limit)
        except _client_error() as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise
    return body


def look(key: str, version: str, length: int) -> Landed | None:
    """A version of an object with its first `length` bytes; None where it is gone."""
    with _passing():
        try:
            whole = _client().head_object(Bucket=name(), Key=key, VersionId=version)
            head = b""
            if whole["ContentLength"]:
                part = _client().get_object(
                    Bucket=name(), Key=key, VersionId=version, Range=f"bytes=0-{length - 1}"
                )
                head = part["Body"].read()
        except _client_error() as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] in {404, 405}:  # gone, a delete marker
                return None
            raise
    return Landed(version, whole["ContentLength"], whole["ContentType"], head)


def delete_version(key: str, version: str) -> None:
    """For ever, unlike `purge`."""
    with _passing():
        _client().delete_object(Bucket=name(), Key=key, VersionId=version)


def purge(keys: list[str]) -> list[str]:
    """Takes at most 1,000 objects away; the bucket keeps their versions for a while. Answers which."""
    with _passing():
        answer = _client().delete_objects(
            Bucket=name(), Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
    failed = {error["Key"] for error in answer.get("Errors", ())}
    return [key for key in keys if key not in failed]


def listing(prefix: str) -> Iterator[list[tuple[str, int]]]:
    """The keys that begin so, with their sizes, in parts, in the order of their bytes."""
    with _passing():
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=name(), Prefix=prefix):
            yield [(each["Key"], each["Size"]) for each in page.get("Contents", ())]


def presigned_post(key: str, content_type: str, size: int) -> PresignedPost:
    """What a browser needs to upload one object of 1 to `size` bytes and exactly this type."""
    post = _client().generate_presigned_post(
        name(),
        key,
        Fields={"Content-Type": content_type},
        Conditions=[{"Content-Type": content_type}, ["content-length-range", 1, size]],
        ExpiresIn=GRANT_SECONDS,
    )
    return PresignedPost(post["url"], post["fields"])


def download_url(key: str, version: str, file_name: str) -> str:
    """Where whoever is given it may fetch the object for a quarter of an hour, as a file of that name."""
    url: str = _client().generate_presigned_url(
        "get_object",
        Params={
            "Bucket": name(),
            "Key": key,
            "VersionId": version,
            "ResponseContentDisposition": _attachment(file_name),
        },
        ExpiresIn=DOWNLOAD_SECONDS,
    )
    return url


def _attachment(file_name: str) -> str:
    """RFC 6266: what knows no `filename*` takes the name before it."""
    plain = re.sub(r"[^ !#-\[\]-~]", "_", file_name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(file_name, safe='')}"


def place() -> Place:
    return Place(_client(), name())


def name() -> str:
    if not (bucket := settings().files_bucket):
        raise RuntimeError("there is no bucket for files: set FILES_BUCKET")
    return bucket


@contextmanager
def _passing() -> Iterator[None]:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise Unavailable("The storage can't be reached at the moment. Repeat the request.") from error


def _client_error() -> Any:
    from botocore.exceptions import ClientError

    return ClientError


def _client() -> Any:
    # By address too: tests start an AWS of their own, one after another.
    return _made(os.environ.get("AWS_ENDPOINT_URL"))


@cache
def _made(_: str | None) -> Any:
    # A quarter of a second, which only those who reach S3 pay. Presigned URLs of KMS-encrypted objects need
    # version 4 of the signature, and the region's own address, which new buckets answer under from the start.
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=2,
        read_timeout=10,
        retries={"mode": "standard", "total_max_attempts": 3},
        signature_version="s3v4",
        s3={"addressing_style": "virtual", "us_east_1_regional_endpoint": "regional"},
    )
    return boto3.client("s3", config=config)
