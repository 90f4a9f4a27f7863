"""What moto lacks or gets wrong of what the template may use, mended in moto's process.

moto is a public package and these are its own classes, so its version is locked, and
tests/e2e/test_local_queues.py and test_local_state.py hold it to what is mended here.
"""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from moto.core.exceptions import JsonRESTError
from moto.events.models import EventBus
from moto.kms.models import Key, KmsBackend
from moto.s3.models import FakeBucket
from moto.sqs.models import Queue, SQSBackend


def mend() -> None:
    _lock_queues()
    _make_whole_buckets()
    _make_whole_keys()
    _obey_the_state_of_keys()
    # A rule's `EventBusName: !Ref Bus` is the name.
    EventBus.physical_resource_id = property(lambda bus: bus.name)  # type: ignore[attr-defined]


def put_around(owner: type, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a method, or a class method, by one that is given the original to call."""
    original = getattr(owner, name)
    if isinstance(owner.__dict__[name], classmethod | staticmethod):
        setattr(owner, name, staticmethod(partial(wrapper, original)))
    else:
        setattr(owner, name, lambda *args, **named: wrapper(original, *args, **named))


def _lock_queues() -> None:
    """Queues are lists without a lock in moto: a message sent while another is deleted is lost."""
    lock = threading.RLock()

    def initialize(original: Any, queue: Queue, *args: Any, **named: Any) -> None:
        original(queue, *args, **named)
        # One for all, as a queue hands over to its dead-letter queue; who waits for messages lets go of it.
        queue._messages_lock = threading.Condition(lock)  # noqa: SLF001

    def locked(original: Any, *args: Any, **named: Any) -> Any:
        with lock:
            return original(*args, **named)

    put_around(Queue, "__init__", initialize)
    for name in ("add_message", "delete_message"):
        put_around(Queue, name, locked)
    for name in ("receive_message", "change_message_visibility", "purge_queue", "get_queue_attributes"):
        put_around(SQSBackend, name, locked)


def _make_whole_buckets() -> None:
    """CloudFormation in moto passes over a bucket's versioning and its notifications."""

    def create(original: Any, name: str, resource: Any, *args: Any, **named: Any) -> FakeBucket:
        bucket: FakeBucket = original(name, resource, *args, **named)
        properties = resource.get("Properties", {})
        if versioning := properties.get("VersioningConfiguration"):
            bucket.versioning_status = versioning["Status"]
        bridge = properties.get("NotificationConfiguration", {}).get("EventBridgeConfiguration")
        if bridge is not None and str(bridge.get("EventBridgeEnabled", True)).lower() == "true":
            bucket.set_notification_configuration({"EventBridgeConfiguration": {}})
        return bucket

    put_around(FakeBucket, "create_from_cloudformation_json", create)


def _make_whole_keys() -> None:
    """CloudFormation in moto wants every key to have a policy, which is optional."""

    def create(original: Any, name: str, resource: Any, *args: Any, **named: Any) -> Key:
        resource["Properties"].setdefault("KeyPolicy", None)
        key: Key = original(name, resource, *args, **named)
        return key

    put_around(Key, "create_from_cloudformation_json", create)


def _obey_the_state_of_keys() -> None:
    """In moto keys that are disabled, or wait for their deletion, go on working."""

    def usable(original: Any, backend: KmsBackend, *args: Any, **named: Any) -> Any:
        answer = original(backend, *args, **named)
        key = backend.keys[answer[-1].rpartition("/")[2]]  # the last is its ARN
        if key.key_state == "PendingDeletion":
            raise JsonRESTError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
        if not key.enabled:
            raise JsonRESTError("DisabledException", f"{key.arn} is disabled.")
        return answer

    for name in ("encrypt", "decrypt", "generate_data_key"):
        put_around(KmsBackend, name, usable)
