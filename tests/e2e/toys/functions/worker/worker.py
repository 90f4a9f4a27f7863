"""Writes down what it is given, and does what the messages in it say."""

import json
import os
import time
from pathlib import Path
from typing import Any


def handler(event: dict[str, Any], context: Any) -> Any:
    began = time.time()
    orders = [_order(record["body"]) for record in event.get("Records", [])]
    for order in orders:
        time.sleep(order.get("sleep", 0))
    _write_down({"event": event, "began": began, "ended": time.time(), "pid": os.getpid()})
    if any(order.get("do") == "raise" for order in orders):
        raise ValueError("a poisoned message")
    reports = [order["report"] for order in orders if "report" in order]
    if reports:
        return reports[0]
    failed = [
        record["messageId"]
        for record, order in zip(event.get("Records", []), orders, strict=True)
        if order.get("do") == "fail"
    ]
    return {"batchItemFailures": [{"itemIdentifier": each} for each in failed]}


def _order(body: str) -> dict[str, Any]:
    try:
        order = json.loads(body)
    except ValueError:
        return {}
    return order if isinstance(order, dict) else {}


def _write_down(line: dict[str, Any]) -> None:
    with (Path(os.environ["SEEN"]) / f"{os.environ['ROLE']}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
