"""Where Lambda sends the record of an asynchronous invocation: a queue, a topic, a bus or a function.

Lambda developer guide, "Capturing records of Lambda asynchronous invocations".
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from local.aws import ACCOUNT, REGION, Client

SERVICES = frozenset({"sqs", "sns", "events", "lambda"})


@dataclass(frozen=True)
class Result:
    """An asynchronous invocation that is over."""

    request_id: str
    function: str  # its name
    condition: str  # Success, RetriesExhausted, EventAgeExceeded
    attempts: int
    payload: bytes
    answer: bytes | None  # None: it was never run

    @property
    def succeeded(self) -> bool:
        return self.condition == "Success"

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{self.function}"


def record(result: Result, now: datetime) -> dict[str, Any]:
    context: dict[str, Any] = {"statusCode": 200, "executedVersion": "$LATEST"}
    if not result.succeeded:
        context["functionError"] = "Unhandled"
    told = {
        "version": "1.0",
        "timestamp": now.strftime("%Y-%m-%dT%H:%M:%S.") + f"{now.microsecond // 1000:03d}Z",
        "requestContext": {
            "requestId": result.request_id,
            "functionArn": f"{result.arn}:$LATEST",
            "condition": result.condition,
            "approximateInvokeCount": result.attempts,
        },
        "requestPayload": json.loads(result.payload),
    }
    if result.answer is not None:
        told |= {"responseContext": context, "responsePayload": json.loads(result.answer or b"null")}
    return told


def send(
    destination: str, result: Result, now: datetime, aws: Client, invoke: Callable[[str, bytes], object]
) -> None:
    """Raises what the client of its service raises."""
    text = json.dumps(record(result, now))
    service, name = destination.split(":")[2], destination.split(":", 5)[5]
    if service == "sqs":
        queues = aws("sqs")
        queues.send_message(QueueUrl=queues.get_queue_url(QueueName=name)["QueueUrl"], MessageBody=text)
    elif service == "sns":
        aws("sns").publish(TopicArn=destination, Message=text)
    elif service == "events":
        end = "Success" if result.succeeded else "Failure"
        entry = {
            "Source": "lambda",
            "DetailType": f"Lambda Function Invocation Result - {end}",
            "Detail": text,
            "EventBusName": name.removeprefix("event-bus/"),
            "Resources": [destination, f"{result.arn}:$LATEST"],
        }
        aws("events").put_events(Entries=[entry])
    else:
        invoke(destination, text.encode())
