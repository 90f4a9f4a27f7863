"""A stream of unknown length into one S3 object, part by part: all of it or nothing.

Parts go up in the background while the next one fills, a few at a time, so that memory stays flat.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

MIN_PART: Final = 5 * 1024**2  # bytes: S3 takes no smaller ones
MAX_PART: Final = 12 * 1024**2  # bytes; with it 10,000 parts are 117 GiB, more than 15 minutes carry
MAX_PARTS: Final = 10_000
AT_ONCE: Final = 2  # parts on their way
GRACE: Final = 5.0  # seconds that parts on their way are given when all is given up


T = TypeVar("T")


class UploadError(RuntimeError):
    """The object could not be stored; the message says at which step."""


class Bucket(Protocol):
    """Where objects go: boto3's client for S3, and the bucket's name."""

    @property
    def client(self) -> Any: ...

    @property
    def name(self) -> str: ...


def part_size(most: int) -> int:
    """Bytes a part for an object of so many bytes at most."""
    needed = -(-most // (MAX_PARTS - 1))
    return min(MAX_PART, max(MIN_PART, needed))


def bounded(ends: float, work: Callable[[], T]) -> T:
    """What `work` returns. Raises TimeoutError where it hangs until then; its thread goes on alone."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, name="bounded", daemon=True).start()
    try:
        return future.result(max(0.0, ends - time.monotonic()))
    except TimeoutError:
        raise TimeoutError("the time was up while S3 was asked") from None


class Upload:
    """A multipart upload. `write`, then `complete`; or `abort`. Raises UploadError, TimeoutError.

    `ends`, on time.monotonic's clock, is when to stop waiting for S3.
    """

    def __init__(self, bucket: Bucket, key: str, content_type: str, *, size: int, ends: float) -> None:
        self._bucket = bucket
        self._key = key
        self._size = size
        self._ends = ends
        self._blocks: list[bytes] = []  # of the next part
        self._pending = 0  # bytes in them
        self._parts: list[Future[dict[str, Any]]] = []
        self._flying: set[Future[dict[str, Any]]] = set()
        self._sender = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="part")
        self.bytes = 0
        self._id = self._asked("begun", "create_multipart_upload", ContentType=content_type)["UploadId"]

    @property
    def sent(self) -> int:
        """Bytes that S3 has."""
        return sum(self._size for part in self._parts if part.done())

    def write(self, block: bytes) -> None:
        self._blocks.append(block)
        self._pending += len(block)
        self.bytes += len(block)
        if self._pending >= self._size:
            self._send()

    def complete(self) -> str | None:
        """Make the object of the parts; its version, where the bucket keeps versions."""
        if self._blocks or not self._parts:
            self._send()
        while self._flying:
            self._land()
        parts = [part.result() for part in self._parts]
        try:
            done = self._asked(
                "completed", "complete_multipart_upload", UploadId=self._id, MultipartUpload={"Parts": parts}
            )
        except UploadError:
            # The answer may have been lost, and not the request.
            return self._found()
        finally:
            self._sender.shutdown(wait=False)
        version: str | None = done.get("VersionId")
        return version

    def abort(self) -> None:
        """Give up what was uploaded; what that can't reach, the bucket's lifecycle takes away."""
        self._sender.shutdown(wait=False, cancel_futures=True)
        wait(self._flying, timeout=GRACE)
        self._ends = time.monotonic() + GRACE
        with suppress(UploadError, TimeoutError):
            self._asked("aborted", "abort_multipart_upload", UploadId=self._id)

    def _send(self) -> None:
        if len(self._parts) == MAX_PARTS:
            raise UploadError(f"{self._key} has outgrown {MAX_PARTS} parts of {self._size} bytes")
        while len(self._flying) >= AT_ONCE:
            self._land()
        body = b"".join(self._blocks)
        self._blocks.clear()
        self._pending = 0
        part = self._sender.submit(self._put, len(self._parts) + 1, body)
        self._parts.append(part)
        self._flying.add(part)

    def _put(self, number: int, body: bytes) -> dict[str, Any]:
        answer = self._call("sent", "upload_part", UploadId=self._id, PartNumber=number, Body=body)
        # A checksum that S3 keeps of a part has to be named again at the end.
        sums = {
            name: answer[name] for name in answer if name.startswith("Checksum") and name != "ChecksumType"
        }
        return {"PartNumber": number, "ETag": answer["ETag"], **sums}

    def _land(self) -> None:
        landed, self._flying = wait(
            self._flying, timeout=max(0, self._ends - time.monotonic()), return_when=FIRST_COMPLETED
        )
        if not landed:
            raise TimeoutError("the time was up while S3 took a part")
        for part in landed:
            part.result()

    def _found(self) -> str | None:
        """The version of the object, if it is there and whole. Raises UploadError."""
        head = self._asked("found", "head_object")
        if head["ContentLength"] != self.bytes:
            raise UploadError(f"{self._key} has {head['ContentLength']} bytes instead of {self.bytes}")
        version: str | None = head.get("VersionId")
        return version

    def _asked(self, done: str, operation: str, **arguments: Any) -> dict[str, Any]:
        return bounded(self._ends, lambda: self._call(done, operation, **arguments))

    def _call(self, done: str, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._bucket.client, operation)(
                Bucket=self._bucket.name, Key=self._key, **arguments
            )
        except (BotoCoreError, ClientError) as error:
            raise UploadError(f"{self._key} could not be {done}: {error}") from error
        return answer
