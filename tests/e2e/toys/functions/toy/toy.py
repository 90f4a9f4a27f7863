"""Does what the event says: over HTTP its JSON body's `do`, else the event's own."""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def handler(event: dict[str, Any], context: Any) -> Any:
    is_http = "requestContext" in event
    order = _order(event) if is_http else event
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
        case "answer":
            return order["answer"]
        case "repeat":
            return order["text"] * order["times"]
        case "count":
            return _count(Path(order["file"]), order.get("failures", 0))
        case "invoke":
            return _invoke(order)
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


def _count(file: Path, failures: int) -> int:
    """Write the time into the file; the first so many times it is a failure."""
    with file.open("a") as stream:
        stream.write(f"{time.monotonic()}\n")
    count = len(file.read_text().splitlines())
    if count <= failures:
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
