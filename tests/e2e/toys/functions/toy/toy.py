"""Does what the event says: over HTTP its JSON body's `do`, else the event's own."""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def handler(event: dict[str, Any], context: Any) -> Any:
    is_http = "requestContext" in event
    order = _order(event) if is_http else event
    if order.get("do") in ANSWERS:
        return ANSWERS[order["do"]](order)
    match order.get("do"):
        case "raise":
            raise ValueError("the secret detail")
        case "exit":
            os._exit(3)
        case "sleep":
            time.sleep(order["seconds"])
        case "pid":
            Path(order["file"]).write_text(f"{os.getpid()}\n")
            time.sleep(order["seconds"])
        case "import":
            importlib.import_module(order["module"])
        case "print":
            sys.stdout.write(json.dumps({"printed": order["text"]}) + "\n")
            sys.stdout.flush()
    report = {
        "event": event,
        "pid": os.getpid(),
        "environment": dict(os.environ),
        "path": sys.path,
        "memory": context.memory_limit_in_mb,
        "remaining": context.get_remaining_time_in_millis(),
        "arn": context.invoked_function_arn,
    }
    return {"statusCode": 200, "body": json.dumps(report)} if is_http else report


def _count(order: dict[str, Any]) -> int:
    """Write the time into the file; the first so many times it is a failure."""
    file = Path(order["file"])
    with file.open("a") as stream:
        stream.write(f"{time.monotonic()}\n")
    count = len(file.read_text().splitlines())
    if count <= order.get("failures", 0):
        raise ValueError(f"failure {count}")
    return count


def _invoke(order: dict[str, Any]) -> Any:
    import boto3  # late: half a second

    client = boto3.client("lambda")
    answer = client.invoke(FunctionName=order["function"], Payload=json.dumps(order["payload"]))
    queues = boto3.client("sqs").list_queues()["QueueUrls"]
    return {"answer": json.loads(answer["Payload"].read()), "queues": queues}


def _order(event: dict[str, Any]) -> dict[str, Any]:
    try:
        order = json.loads(event.get("body") or "{}")
    except ValueError:
        return {}
    return order if isinstance(order, dict) else {}


ANSWERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "answer": lambda order: order["answer"],
    "repeat": lambda order: order["text"] * order["times"],
    "count": _count,
    "invoke": _invoke,
}
