"""EventBridge in moto's process: what becomes of an event on a bus, as AWS does it.

moto's own delivery knows no disabled rules, takes a schedule for a rule that matches everything, leaves
`account` out, does not escape what it inserts into an InputTransformer's template and fails on Lambda
targets. Ours replaces it. An event for a function goes into a queue that the stack reads (local.bus).
"""

import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from moto.core.exceptions import JsonRESTError, ServiceException
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.events.models import Rule, events_backends
from moto.s3 import notifications
from moto.s3.models import FakeBucket
from moto.sqs.models import sqs_backends
from moto.utilities.arns import parse_arn

from local import event_pattern
from local.aws import INVOCATIONS, REGION

log = logging.getLogger(__name__)

_VARIABLE = re.compile(r"<([\w.-]+)>")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")

# docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
REASONS = {
    "Put": "PutObject",
    "Post": "POST Object",
    "Copy": "CopyObject",
    "CompleteMultipartUpload": "CompleteMultipartUpload",
    "Delete": "DeleteObject",
    "DeleteMarkerCreated": "DeleteObject",
}


def replace_delivery() -> None:
    Rule.send_to_targets = _deliver  # type: ignore[method-assign,assignment]
    notifications._send_event_bridge_message = _tell_of_object  # noqa: SLF001  moto's name
    sqs_backends[DEFAULT_ACCOUNT_ID][REGION].create_queue(INVOCATIONS)


def _deliver(rule: Rule, original: dict[str, Any], transform_input: bool = True) -> None:  # noqa: ARG001  moto passes it
    pattern = rule.event_pattern._pattern  # noqa: SLF001
    event = {name: value for name, value in original.items() if name != "ingestion-time"}
    event["time"] = _timestamp(event["time"])
    if not pattern or rule.state != "ENABLED" or not event_pattern.matches(pattern, event):
        return
    for target in rule.targets:
        body = target_input(target, event, rule)
        try:
            _send(rule, target, event, body)
        except (ServiceException, JsonRESTError, LookupError):
            log.exception("%s could not deliver to %s", rule.name, target["Arn"])
            if dead_letters := target.get("DeadLetterConfig", {}).get("Arn"):
                _send_to_queue(dead_letters, body, None)


def _send(rule: Rule, target: dict[str, Any], event: dict[str, Any], body: str) -> None:
    arn = parse_arn(target["Arn"])
    if arn.service == "sqs":
        _send_to_queue(target["Arn"], body, target.get("SqsParameters", {}).get("MessageGroupId"))
    elif arn.service == "lambda":
        told = json.dumps({"function": target["Arn"], "event": body})
        sqs_backends[DEFAULT_ACCOUNT_ID][REGION].send_message(INVOCATIONS, told)
    elif arn.service == "logs":
        rule._send_to_cw_log_group(arn.resource_id, dict(event))  # noqa: SLF001
    elif arn.service == "events":
        forwarded = {
            "Source": event["source"],
            "DetailType": event["detail-type"],
            "Detail": json.dumps(event["detail"]),
            "Resources": event["resources"],
            "EventBusName": target["Arn"],
        }
        events_backends[arn.account][arn.region].put_events([forwarded])


def _send_to_queue(arn: str, body: str, group_id: str | None) -> None:
    queue = parse_arn(arn)
    sqs_backends[queue.account][queue.region].send_message(queue.resource_id, body, group_id=group_id)


def target_input(target: dict[str, Any], event: dict[str, Any], rule: Rule) -> str:
    """The text that a target is given: all of the event, or what its rule makes of it."""
    if "Input" in target:
        return str(target["Input"])
    if "InputPath" in target:
        return json.dumps(value_at(event, target["InputPath"]))
    if "InputTransformer" in target:
        transformer = target["InputTransformer"]
        paths = transformer.get("InputPathsMap") or {}
        values = {name: value_at(event, path) for name, path in paths.items()}
        values |= {
            "aws.events.rule-arn": rule.arn,
            "aws.events.rule-name": rule.name,
            "aws.events.event.ingestion-time": event["time"],
            "aws.events.event": {name: value for name, value in event.items() if name != "detail"},
            "aws.events.event.json": event,
        }
        return fill_template(transformer["InputTemplate"], values)
    return json.dumps(event, separators=(",", ":"))


def value_at(event: Any, path: str) -> Any:
    """The value at a path as `$.detail.items[0].id`; None where there is none."""
    for name, position in _STEP.findall(path.removeprefix("$")):
        try:
            event = event[int(position)] if position else event[name]
        except (LookupError, TypeError):
            return None
    return event


def fill_template(template: str, values: dict[str, Any]) -> str:
    """Put values where their `<name>` stands: in a JSON string as text, elsewhere as JSON."""
    filled, end, in_string = "", 0, False
    for variable in _VARIABLE.finditer(template):
        between = template[end : variable.start()]
        in_string ^= len(re.findall(r'(?<!\\)"', between)) % 2 == 1
        filled, end = filled + between, variable.end()
        if variable[1] not in values:
            filled += variable[0]
        elif in_string:
            value = values[variable[1]]
            text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
            filled += json.dumps(text)[1:-1]
        else:
            filled += json.dumps(values[variable[1]])
    return filled + template[end:]


def _timestamp(moment: float | str) -> str:
    """As events have it: to the second."""
    if isinstance(moment, str):
        return moment
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _tell_of_object(account_id: str, bucket: FakeBucket, event_name: str, key: Any) -> None:
    """S3's event about an object, on the default bus."""
    kind = event_name.rpartition(":")[2]
    removed = "ObjectRemoved" in event_name
    stored: dict[str, Any] = {"key": key.name, "sequencer": f"{time.time_ns():016X}"}
    if not removed:
        stored |= {"size": key.size, "etag": key.etag.strip('"')}
    if bucket.is_versioned:
        stored["version-id"] = key.version_id
    event = {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": notifications._detail_type(event_name),  # noqa: SLF001
        "source": "aws.s3",
        "account": account_id,
        "time": datetime.now(UTC).timestamp(),
        "region": bucket.region_name,
        "resources": [bucket.arn],
        "detail": {
            "version": "0",
            "bucket": {"name": bucket.name},
            "object": stored,
            "request-id": "LOCAL",
            "requester": account_id,
            "source-ip-address": "127.0.0.1",
            "reason": REASONS.get(kind, kind),
            **({"deletion-type": "Permanently Deleted"} if removed else {}),
        },
    }
    for rule in list(events_backends[account_id][bucket.region_name].event_buses["default"].rules.values()):
        _deliver(rule, event)
