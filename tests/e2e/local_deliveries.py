"""Queues, a bus and schedules in front of toys, in this process; moto in its own."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import application, aws, ports
from local.async_invoke import AsynchronousInvocations
from local.children import Children
from local.credentials import Credentials
from local.deliveries import Deliveries
from local.invoke_api import InvokeApi
from local.runtime import Runtime
from local.server import Server
from tests.e2e.local_cloud import until

TEMPLATE = Path(__file__).parent / "toys" / "deliveries.yaml"


@dataclass
class Toys:
    client: aws.Client
    folder: Path
    runtime: Runtime
    deliveries: Deliveries

    def url(self, queue: str) -> str:
        """Of the queue with this logical id."""
        urls = self.client("sqs").list_queues(QueueNamePrefix=f"{aws.STACK_NAME}-{queue}-")["QueueUrls"]
        (url,) = urls
        return str(url)

    def arn(self, queue: str) -> str:
        found = self.client("sqs").get_queue_attributes(QueueUrl=self.url(queue), AttributeNames=["QueueArn"])
        return str(found["Attributes"]["QueueArn"])

    def send(self, queue: str, *bodies: Any, **options: Any) -> list[str]:
        """Messages with these bodies as JSON; their ids."""
        sqs, url = self.client("sqs"), self.url(queue)
        return [
            sqs.send_message(QueueUrl=url, MessageBody=json.dumps(body), **options)["MessageId"]
            for body in bodies
        ]

    def receive(self, queue: str) -> dict[str, Any]:
        """The next message, taken from the queue."""
        sqs, url = self.client("sqs"), self.url(queue)

        def take() -> Any:
            return sqs.receive_message(
                QueueUrl=url, WaitTimeSeconds=1, MessageSystemAttributeNames=["All"]
            ).get("Messages")

        (message,) = until(take, f"a message comes to {queue}")
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        found: dict[str, Any] = message
        return found

    def count(self, queue: str) -> int:
        """Messages that wait or are under way."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.client("sqs").get_queue_attributes(QueueUrl=self.url(queue), AttributeNames=names)
        return sum(int(found["Attributes"][name]) for name in names)

    def seen(self, role: str) -> list[dict[str, Any]]:
        """What the function of that role has written down, oldest first."""
        file = self.folder / f"{role}.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def batches(self, role: str, ids: set[str]) -> list[list[str]]:
        """The ids of each batch it has been given, of these messages."""
        batches = [
            [each["messageId"] for each in entry["event"].get("Records", [])] for entry in self.seen(role)
        ]
        return [batch for batch in batches if ids & set(batch)]


@contextmanager
def start_toys(folder: Path, template: Path = TEMPLATE, state: Path | None = None) -> Iterator[Toys]:
    with ExitStack() as cleanup:
        children = Children(folder / "processes")
        cleanup.callback(children.close)
        url = aws.start(children, ports.listen(0), folder / "aws.log", state=state, cleanup=cleanup)
        client = aws.clients(url)
        app = application.create(
            template, {"Seen": str(folder)}, client, Credentials(folder / "secrets.json")
        )
        runtime = Runtime(app.functions, children, folder)
        cleanup.callback(runtime.close)
        asynchronous = AsynchronousInvocations(app.triggers, runtime, client)
        cleanup.callback(asynchronous.close)
        invoke = Server(ports.listen(0), InvokeApi(runtime, asynchronous))
        invoke.start()
        cleanup.callback(invoke.stop)
        deliveries = Deliveries(app.triggers, runtime, client, aws.clients(invoke.url))
        cleanup.callback(deliveries.stop)
        deliveries.start()
        yield Toys(client, folder, runtime, deliveries)
