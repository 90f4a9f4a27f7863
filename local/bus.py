"""Event bus rules with a function as their target: moto's process picks the events, we invoke.

What is picked waits in a queue of moto's, and goes to Lambda as EventBridge sends it: asynchronously.
"""

import json
import threading
from collections.abc import Iterable

from botocore.exceptions import BotoCoreError, ClientError

from local import event_pattern
from local.aws import INVOCATIONS, Client
from local.event_pattern import BadPattern
from local.intrinsics import Resource
from local.refusal import Refusal
from local.schedules import RULE
from local.terminal import say

SERVICES = ("sqs", "lambda", "logs", "events")
LONG_POLL = 5  # seconds


def check(resources: Iterable[Resource]) -> None:
    """Raises Refusal where a rule says what would not be done here."""
    for rule in resources:
        if rule.kind == RULE and "EventPattern" in rule.properties:
            try:
                event_pattern.check(rule.properties["EventPattern"])
            except BadPattern as error:
                raise Refusal(
                    f"{rule.logical_id}: its EventPattern can't be matched here: {error}."
                ) from None
            for target in rule.properties.get("Targets", []):
                if target["Arn"].split(":")[2] not in SERVICES:
                    raise Refusal(f"{rule.logical_id}: the local cloud can't deliver to {target['Arn']}.")


class Carrier(threading.Thread):
    """Invokes functions with the events picked for them."""

    def __init__(self, aws: Client, functions: Client) -> None:
        super().__init__(name="bus", daemon=True)
        self._sqs = aws("sqs")
        self._lambda = functions("lambda")
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        try:
            url = self._sqs.get_queue_url(QueueName=INVOCATIONS)["QueueUrl"]
            while not self._stopping.is_set():
                self._deliver(url)
        except (BotoCoreError, ClientError) as error:
            if not self._stopping.is_set():
                say(f"The bus has stopped delivering to functions: {error}")

    def _deliver(self, url: str) -> None:
        answer = self._sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=LONG_POLL)
        for message in answer.get("Messages", []):
            told = json.loads(message["Body"])
            try:
                self._lambda.invoke(
                    FunctionName=told["function"], InvocationType="Event", Payload=told["event"].encode()
                )
            except (BotoCoreError, ClientError) as error:
                say(f"An event can't be delivered to {told['function']}: {error}")
            self._sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
