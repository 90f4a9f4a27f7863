"""SQS event sources: a function is invoked with the messages of a queue, as Lambda's own pollers do it.

docs.aws.amazon.com/lambda/latest/dg/with-sqs.html. The queues are moto's, and so is what they do by
themselves: visibility, receive counts and the way to the dead-letter queue.
"""

import base64
import json
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from local import event_pattern
from local.aws import REGION, Client
from local.environment import Outcome, Status
from local.event_pattern import BadPattern, Pattern
from local.function import name_in
from local.intrinsics import Resource
from local.refusal import Refusal
from local.runtime import Runtime, Throttled, UnknownFunction
from local.terminal import say

KIND = "AWS::Lambda::EventSourceMapping"

AT_ONCE = 10  # messages that SQS hands out or deletes in one request
MAX_PAYLOAD = 6 * 1024 * 1024  # bytes
CONCURRENCY = 4  # batches at a time, unless the mapping says fewer: the default pool's environments
LONG_POLL = 5  # seconds
RETRY = 1.0  # seconds, where moto does not answer

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Mapped:
    """One event source mapping."""

    logical_id: str
    function: str
    queue_arn: str
    batch_size: int = 10
    window: float = 0  # seconds to gather a batch
    concurrency: int = CONCURRENCY
    reports_failures: bool = False  # ReportBatchItemFailures
    filters: Sequence[Pattern] = ()


def mappings(resources: Iterable[Resource], runtime: Runtime, client: Client) -> list[Mapped]:
    """The enabled ones. Raises Refusal where one can't be played."""
    found = [_mapping(each) for each in resources if each.kind == KIND and _is_on(each.properties)]
    for each in found:
        _check(each, runtime, client)
    return found


def _is_on(properties: Mapping[str, Any]) -> bool:
    return str(properties.get("Enabled", True)).lower() == "true"


def _mapping(resource: Resource) -> Mapped:
    given = resource.properties
    source = str(given.get("EventSourceArn", ""))
    if ":sqs:" not in source:
        raise Refusal(
            f"{resource.logical_id}: the local cloud polls SQS queues, not {source or 'this source'}."
        )
    concurrency = given.get("ScalingConfig", {}).get("MaximumConcurrency", CONCURRENCY)
    return Mapped(
        logical_id=resource.logical_id,
        function=name_in(given["FunctionName"]),
        queue_arn=source,
        batch_size=int(given.get("BatchSize", 10)),
        window=float(given.get("MaximumBatchingWindowInSeconds", 0)),
        concurrency=min(int(concurrency), CONCURRENCY),
        reports_failures="ReportBatchItemFailures" in given.get("FunctionResponseTypes", ()),
        filters=tuple(_filters(resource.logical_id, given.get("FilterCriteria") or {})),
    )


def _filters(logical_id: str, criteria: Mapping[str, Any]) -> Iterator[Pattern]:
    for each in criteria.get("Filters", ()):
        try:
            pattern = json.loads(each["Pattern"])
            event_pattern.check(pattern)
        except (BadPattern, ValueError, LookupError) as error:
            raise Refusal(f"{logical_id}: its filter can't be used: {error}.") from None
        yield pattern


def _check(mapped: Mapped, runtime: Runtime, client: Client) -> None:
    """What Lambda refuses too. Raises Refusal."""
    try:
        function = runtime.find(mapped.function)
        queue = _Queue(mapped.queue_arn, client)
    except UnknownFunction:
        raise Refusal(f"{mapped.logical_id}: {mapped.function} is no function of this template.") from None
    except ClientError as error:
        raise Refusal(f"{mapped.logical_id}: the queue {mapped.queue_arn} can't be read: {error}") from None
    if queue.visibility < function.timeout:
        raise Refusal(
            f"{mapped.logical_id}: the queue's VisibilityTimeout is {queue.visibility} s, less than the "
            f"{function.timeout} s of {function.folder}'s Timeout. AWS refuses that; six times it is usual."
        )
    if mapped.batch_size > AT_ONCE and not mapped.window:
        raise Refusal(
            f"{mapped.logical_id}: a BatchSize of {mapped.batch_size} needs "
            f"MaximumBatchingWindowInSeconds of at least 1."
        )


class Pollers:
    """Every mapping's. A batch under way when they stop is not taken from its queue."""

    def __init__(self, mapped: Iterable[Mapped], runtime: Runtime, client: Client) -> None:
        self._pollers = [_Poller(each, runtime, client) for each in mapped]

    def start(self) -> None:
        for each in self._pollers:
            each.start()

    def stop(self) -> None:
        for each in self._pollers:
            each.stopping.set()


class _Queue:
    """Raises ClientError and BotoCoreError."""

    def __init__(self, arn: str, client: Client) -> None:
        self._sqs = client("sqs")
        self.arn = arn
        self._url = self._sqs.get_queue_url(QueueName=arn.rpartition(":")[2])["QueueUrl"]
        found = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["VisibilityTimeout"])
        self.visibility = int(found["Attributes"]["VisibilityTimeout"])

    def receive(self, count: int, wait: float) -> list[Message]:
        answer = self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=min(count, AT_ONCE),
            WaitTimeSeconds=int(wait),
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        messages: list[Message] = answer.get("Messages", [])
        return messages

    def delete(self, messages: Sequence[Message]) -> None:
        for start in range(0, len(messages), AT_ONCE):
            entries = [
                {"Id": str(number), "ReceiptHandle": each["ReceiptHandle"]}
                for number, each in enumerate(messages[start : start + AT_ONCE])
            ]
            self._sqs.delete_message_batch(QueueUrl=self._url, Entries=entries)


class _Poller(threading.Thread):
    def __init__(self, mapped: Mapped, runtime: Runtime, client: Client) -> None:
        super().__init__(name=f"poll {mapped.logical_id}", daemon=True)
        self._mapped = mapped
        self._runtime = runtime
        self._queue = _Queue(mapped.queue_arn, client)
        self._slots = threading.Semaphore(mapped.concurrency)
        self._workers = ThreadPoolExecutor(mapped.concurrency, thread_name_prefix=self.name)
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            # Before receiving: a message's visibility must not run out while it waits for its turn.
            self._slots.acquire()
            batch: list[Message] = []
            try:
                batch = self._gather()
            except (BotoCoreError, ClientError) as error:
                if not self.stopping.is_set():
                    say(f"{self._mapped.logical_id}: the queue does not answer ({error}); trying again.")
                    self.stopping.wait(RETRY)
            if batch and not self.stopping.is_set():
                self._workers.submit(self._work, batch)
            else:
                self._slots.release()
        self._workers.shutdown(wait=False)

    def _gather(self) -> list[Message]:
        """A batch: full, or what has come until its window closes."""
        mapped = self._mapped
        # By id: one whose visibility is shorter than the window comes again meanwhile.
        batch = {each["MessageId"]: each for each in self._queue.receive(mapped.batch_size, LONG_POLL)}
        closes = time.monotonic() + mapped.window
        while batch and len(batch) < mapped.batch_size and not self.stopping.is_set():
            left = closes - time.monotonic()
            if left <= 0:
                break
            more = self._queue.receive(mapped.batch_size - len(batch), min(left, LONG_POLL))
            batch |= {each["MessageId"]: each for each in more}
            if not more:
                time.sleep(min(left, 0.1))  # to SQS a wait of less than a second is none
        return list(batch.values())

    def _work(self, batch: list[Message]) -> None:
        try:
            wanted = [each for each in batch if _passes(each, self._mapped)]
            dropped = [each for each in batch if each not in wanted]
            self._queue.delete(dropped)
            for part in _parts(wanted, self._mapped.queue_arn):
                self._queue.delete(self._done(part))
        except (BotoCoreError, ClientError) as error:
            if not self.stopping.is_set():
                say(f"{self._mapped.logical_id}: a batch can't be taken from the queue: {error}")
        except Exception:  # noqa: BLE001  the thread's end: nobody else would hear of a defect
            say(f"{self._mapped.logical_id}: a batch stays in the queue:\n{traceback.format_exc()}")
        finally:
            self._slots.release()

    def _done(self, batch: Sequence[Message]) -> Sequence[Message]:
        """Invoke the function; which messages are done with. The others come again, by and by."""
        payload = json.dumps({"Records": [record(each, self._mapped.queue_arn) for each in batch]}).encode()
        try:
            outcome = self._runtime.invoke(self._mapped.function, payload)
        except (Throttled, UnknownFunction, OSError):  # the terminal has a line about it
            return []
        if outcome.status is not Status.OK:
            return []
        if not self._mapped.reports_failures:
            return batch
        failed = failures(outcome, [each["MessageId"] for each in batch])
        if failed:
            say(f"          {len(failed)} of {len(batch)} messages failed and stay in {_name(self._mapped)}")
        return [each for each in batch if each["MessageId"] not in failed]


def _name(mapped: Mapped) -> str:
    return mapped.queue_arn.rpartition(":")[2]


def record(message: Message, queue_arn: str) -> dict[str, Any]:
    """A message as it stands in the event."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": dict(message.get("Attributes", {})),
        "messageAttributes": {
            name: _attribute(value) for name, value in message.get("MessageAttributes", {}).items()
        },
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": REGION,
    }


def _attribute(value: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {"stringListValues": [], "binaryListValues": [], "dataType": value["DataType"]}
    if "StringValue" in value:
        told["stringValue"] = value["StringValue"]
    if "BinaryValue" in value:
        told["binaryValue"] = base64.b64encode(value["BinaryValue"]).decode()
    return told


def failures(outcome: Outcome, message_ids: Sequence[str]) -> set[str]:
    """Which messages have failed, as the function reports it; all, where the report is not understood.

    docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html#services-sqs-batchfailurereporting
    """
    everything = set(message_ids)
    answer = json.loads(outcome.payload)
    if answer is None or answer == {}:
        return set()
    if not isinstance(answer, dict):
        return everything
    items = answer.get("batchItemFailures")
    if not items:
        return set() if items is None or items == [] else everything
    try:
        failed = {each["itemIdentifier"] for each in items}
    except (TypeError, KeyError):
        return everything
    return everything if failed - everything else failed


def _passes(message: Message, mapped: Mapped) -> bool:
    """Whether a filter lets the message through; one that none does is deleted, as Lambda does."""
    if not mapped.filters:
        return True
    event = record(message, mapped.queue_arn)
    event["body"] = _parsed(event["body"])
    return any(event_pattern.matches(each, event) for each in mapped.filters)


def _parsed(body: str) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body


def _parts(batch: Sequence[Message], queue_arn: str) -> Iterator[list[Message]]:
    """The batch in parts that fit into a payload."""
    part: list[Message] = []
    size = 0
    for each in batch:
        length = len(json.dumps(record(each, queue_arn))) + 2
        if part and size + length > MAX_PAYLOAD - 100:
            yield part
            part, size = [], 0
        part.append(each)
        size += length
    if part:
        yield part
