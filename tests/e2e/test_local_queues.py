"""Queues and the bus: what a function is given, what becomes of its messages, and what is refused."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from local import bus, queues
from local.intrinsics import Resource
from local.refusal import Refusal
from tests.e2e.local_cloud import until
from tests.e2e.local_deliveries import Toys, start_toys

pytestmark = pytest.mark.xdist_group("deliveries")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    with start_toys(tmp_path_factory.mktemp("queues")) as toys:
        yield toys


# ---- what a function is given ----


def test_a_message_comes_as_lambda_describes_it(toys: Toys) -> None:
    body = {"hello": "wörld"}
    attributes = {
        "colour": {"DataType": "String", "StringValue": "red"},
        "raw": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
    }
    (message_id,) = toys.send("PlainJobs", body, MessageAttributes=attributes)
    until(lambda: toys.batches("plain", {message_id}), "the function is invoked")
    (event,) = [entry["event"] for entry in toys.seen("plain") if message_id in json.dumps(entry)]
    (record,) = event["Records"]
    receipt, system = record.pop("receiptHandle"), record.pop("attributes")

    assert receipt
    assert system["ApproximateReceiveCount"] == "1"
    assert {"SenderId", "SentTimestamp", "ApproximateFirstReceiveTimestamp"} <= system.keys()
    assert record.pop("eventSourceARN").startswith(
        "arn:aws:sqs:us-east-1:123456789012:backplane-local-PlainJobs-"
    )
    assert record == {
        "messageId": message_id,
        "body": json.dumps(body),
        "md5OfBody": hashlib.md5(json.dumps(body).encode(), usedforsecurity=False).hexdigest(),
        "messageAttributes": {
            "colour": {
                "stringValue": "red",
                "stringListValues": [],
                "binaryListValues": [],
                "dataType": "String",
            },
            "raw": {
                "binaryValue": "AP8=",
                "stringListValues": [],
                "binaryListValues": [],
                "dataType": "Binary",
            },
        },
        "eventSource": "aws:sqs",
        "awsRegion": "us-east-1",
    }


def test_a_window_gathers_more_than_one_receive_can(toys: Toys) -> None:
    ids = set(toys.send("ManyJobs", *({"n": number} for number in range(25))))
    until(lambda: {i for batch in toys.batches("windowed", ids) for i in batch} == ids, "all are delivered")

    assert max(len(batch) for batch in toys.batches("windowed", ids)) > 10
    until(lambda: toys.count("ManyJobs") == 0, "the queue is empty")


def test_no_more_batches_are_under_way_than_the_mapping_allows(toys: Toys) -> None:
    ids = set(toys.send("NarrowJobs", *({"sleep": 0.2} for _ in range(8))))
    until(lambda: len(toys.batches("narrow", ids)) == 8, "all are delivered")
    spans = [(entry["began"], entry["ended"]) for entry in toys.seen("narrow")]
    overlapping = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]

    assert max(overlapping) == 2


def test_messages_that_no_filter_lets_through_are_deleted_unseen(toys: Toys) -> None:
    unwanted = set(toys.send("FilteredJobs", {"kind": "other"}, "a text", ["wanted"]))
    wanted = set(toys.send("FilteredJobs", {"kind": "wanted"}))
    until(lambda: toys.batches("filtered", wanted), "what passes is delivered")
    until(lambda: toys.count("FilteredJobs") == 0, "the others are deleted")

    assert toys.batches("filtered", unwanted) == []


def test_a_disabled_mapping_leaves_its_queue_alone(toys: Toys) -> None:
    (idle,) = toys.send("IdleJobs", {})
    (other,) = toys.send("PlainJobs", {})
    until(lambda: toys.batches("plain", {other}), "another mapping has polled meanwhile")

    assert toys.count("IdleJobs") == 1
    assert toys.batches("idle", {idle}) == []


# ---- what becomes of a message ----


def test_only_reported_messages_come_again_and_then_go_to_the_dead_letter_queue(toys: Toys) -> None:
    good, bad, other = toys.send("Jobs", {"n": 1}, {"do": "fail"}, {"n": 2})
    dead = toys.receive("DeadLetters")

    assert dead["MessageId"] == bad
    assert len(toys.batches("reporting", {bad})) == 2, "maxReceiveCount"
    assert len(toys.batches("reporting", {good})) == len(toys.batches("reporting", {other})) == 1
    until(lambda: toys.count("Jobs") == 0, "the queue is empty")


def test_a_report_that_is_not_understood_fails_the_whole_batch(toys: Toys) -> None:
    (message_id,) = toys.send(
        "Jobs", {"report": {"batchItemFailures": [{"itemIdentifier": "of no message"}]}}
    )

    assert toys.receive("DeadLetters")["MessageId"] == message_id
    assert len(toys.batches("reporting", {message_id})) == 2


def test_a_poisoned_message_is_tried_again_then_set_aside_and_blocks_no_other(toys: Toys) -> None:
    (poisoned,) = toys.send("PlainJobs", {"do": "raise"})
    others = set(toys.send("PlainJobs", *({"n": number} for number in range(6))))
    dead = toys.receive("PlainDeadLetters")
    until(lambda: len(toys.batches("plain", others)) == len(others), "the others are delivered, once each")

    assert dead["MessageId"] == poisoned
    assert len(toys.batches("plain", {poisoned})) == 2
    until(lambda: toys.count("PlainJobs") == 0, "the queue is empty")


def test_a_function_that_ends_or_is_too_slow_gets_its_message_again(toys: Toys) -> None:
    (slow,) = toys.send("PlainJobs", {"sleep": 60})

    assert toys.receive("PlainDeadLetters")["MessageId"] == slow
    until(lambda: toys.count("PlainJobs") == 0, "the queue is empty")


def test_no_message_is_lost_while_many_send_and_many_are_deleted(toys: Toys) -> None:
    with ThreadPoolExecutor(8) as threads:
        sent = threads.map(lambda _: toys.send("ManyJobs", *({"n": n} for n in range(25))), range(8))
        ids = {each for batch in sent for each in batch}
    until(lambda: {i for b in toys.batches("windowed", ids) for i in b} == ids, "each is delivered")
    until(lambda: toys.count("ManyJobs") == 0, "each is deleted")


# ---- the bus ----


def put(toys: Toys, detail: dict[str, Any], kind: str = "order.paid") -> None:
    entry = {"Source": "toys", "DetailType": kind, "Detail": json.dumps(detail), "EventBusName": "toys"}
    assert toys.client("events").put_events(Entries=[entry])["FailedEntryCount"] == 0


def test_an_event_that_matches_a_rule_is_in_its_queue_whole(toys: Toys) -> None:
    put(toys, {"amount": 100})
    put(toys, {"amount": 101, "who": 'say "hi"'})
    event = json.loads(toys.receive("Heard")["Body"])

    assert event["detail"] == {"amount": 101, "who": 'say "hi"'}
    assert (event["source"], event["detail-type"], event["version"]) == ("toys", "order.paid", "0")
    assert (event["account"], event["region"], event["resources"]) == ("123456789012", "us-east-1", [])
    assert event["time"].endswith("Z")
    assert set(event) == {
        *("version", "id", "detail-type", "source", "account", "time", "region", "resources", "detail")
    }
    assert toys.count("Heard") == 0, "not the other event, and not from the disabled rule"


def test_an_input_transformer_inserts_text_and_json(toys: Toys) -> None:
    put(toys, {"amount": 7, "name": 'Ada "the first"', "items": [{"sku": "a"}]}, "credits.granted")

    assert json.loads(toys.receive("HeardShort")["Body"]) == {
        "text": 'Ada "the first" got 7',
        "amount": 7,
        "first": "a",
    }


def test_a_rule_with_a_function_invokes_it(toys: Toys) -> None:
    put(toys, {"amount": 8, "listener": True}, "credits.granted")
    heard = until(
        lambda: [e["event"] for e in toys.seen("listener") if e["event"]["detail"].get("listener")],
        "the function is invoked",
    )

    assert heard[0]["detail-type"] == "credits.granted"
    assert heard[0]["detail"]["amount"] == 8


def test_an_object_that_lands_is_told_to_the_queue_of_its_rule(toys: Toys) -> None:
    s3 = toys.client("s3")
    s3.put_object(Bucket="backplane-local-scratch", Key="a", Body=b"not watched")
    stored = s3.put_object(Bucket="backplane-local-uploads", Key="photos/ä b.png", Body=b"12345")
    event = json.loads(toys.receive("Landed")["Body"])

    assert (event["source"], event["detail-type"]) == ("aws.s3", "Object Created")
    assert event["resources"] == ["arn:aws:s3:::backplane-local-uploads"]
    assert event["detail"]["bucket"] == {"name": "backplane-local-uploads"}
    assert event["detail"]["reason"] == "PutObject"
    landed = event["detail"]["object"]
    assert landed.pop("sequencer")
    assert landed == {
        "key": "photos/ä b.png",
        "size": 5,
        "etag": stored["ETag"].strip('"'),
        "version-id": stored["VersionId"],
    }
    assert toys.count("Landed") == 0


# ---- what is refused ----


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        (
            {"EventSourceArn": "arn:aws:kinesis:us-east-1:123456789012:stream/a"},
            "polls SQS queues, not arn:aws:kin",
        ),
        ({"EventSourceArn": "arn:aws:sqs:us-east-1:123456789012:nowhere"}, "can't be read"),
        ({"FunctionName": "nothing"}, "nothing is no function of this template"),
        ({"BatchSize": 11}, "a BatchSize of 11 needs"),
        (
            {"FilterCriteria": {"Filters": [{"Pattern": '{"body": [{"regex": "a"}]}'}]}},
            "its filter can't be used",
        ),
        ({"FilterCriteria": {"Filters": [{"Pattern": "{"}]}}, "its filter can't be used"),
    ],
)
def test_a_mapping_that_can_not_be_played_is_refused(toys: Toys, properties: Any, told: str) -> None:
    good = {"EventSourceArn": toys.arn("IdleJobs"), "FunctionName": toys.runtime.find("Idle").name}
    resource = Resource("Mapping", queues.KIND, good | properties)

    assert queues.mappings([Resource("Mapping", queues.KIND, good)], toys.runtime, toys.client)
    with pytest.raises(Refusal, match=told):
        queues.mappings([resource], toys.runtime, toys.client)


def test_a_queue_that_shows_a_message_again_too_soon_is_refused(toys: Toys) -> None:
    sqs = toys.client("sqs")
    url = sqs.create_queue(QueueName="hasty", Attributes={"VisibilityTimeout": "0"})["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    properties = {"EventSourceArn": arn, "FunctionName": toys.runtime.find("Idle").name}

    with pytest.raises(Refusal, match="VisibilityTimeout is 0 s, less than the 2 s of worker's Timeout"):
        queues.mappings([Resource("Mapping", queues.KIND, properties)], toys.runtime, toys.client)


@pytest.mark.parametrize(
    ("properties", "told"),
    [
        ({"EventPattern": {"detail": {"amount": [{"numeric": ["about", 1]}]}}}, "can't be matched here"),
        (
            {"Targets": [{"Id": "a", "Arn": "arn:aws:kinesis:us-east-1:1:stream/a"}]},
            "can't deliver to arn:aws:kin",
        ),
    ],
)
def test_a_rule_that_can_not_be_played_is_refused(properties: Any, told: str) -> None:
    rule = {"EventPattern": {"source": ["a"]}, "Targets": []} | properties

    with pytest.raises(Refusal, match=told):
        bus.check([Resource("Rule", "AWS::Events::Rule", rule)])
