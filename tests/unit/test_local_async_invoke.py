"""Settings of asynchronous invocation, and the records of its end."""

import base64
import json
from datetime import UTC, datetime

import pytest
from local.async_invoke import KIND, Settings, settings
from local.destinations import Result, record
from local.intrinsics import Resource
from local.invocation_log import log_result
from local.log_stream import Report
from local.refusal import Refusal

QUEUE = "arn:aws:sqs:us-east-1:123456789012:failures"


def test_settings_are_by_function_and_the_rest_are_lambdas() -> None:
    config = {
        "FunctionName": "toy",
        "Qualifier": "$LATEST",
        "MaximumRetryAttempts": 0,
        "MaximumEventAgeInSeconds": 60,
        "DestinationConfig": {"OnFailure": {"Destination": QUEUE}},
    }
    found = settings([Resource("Toy", KIND, config), Resource("Rule", "AWS::Events::Rule", {})])

    assert found == {"toy": Settings(retries=0, max_age=60, on_failure=QUEUE)}
    assert Settings() == Settings(retries=2, max_age=21_600, on_success=None, on_failure=None)


def test_a_destination_that_is_not_played_here_is_refused() -> None:
    config = {
        "FunctionName": "toy",
        "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:s3:::bucket"}},
    }

    with pytest.raises(Refusal, match="Toy has the destination arn:aws:s3"):
        settings([Resource("Toy", KIND, config)])


def test_a_record_has_lambdas_members() -> None:
    result = Result("the-id", "toy", "RetriesExhausted", 3, b'{"a": 1}', b'{"errorMessage": "no"}')

    assert record(result, datetime(2026, 11, 14, 18, 16, 5, 568_000, tzinfo=UTC)) == {
        "version": "1.0",
        "timestamp": "2026-11-14T18:16:05.568Z",
        "requestContext": {
            "requestId": "the-id",
            "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:toy:$LATEST",
            "condition": "RetriesExhausted",
            "approximateInvokeCount": 3,
        },
        "requestPayload": {"a": 1},
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "responsePayload": {"errorMessage": "no"},
    }


def test_an_event_that_was_never_run_has_no_response() -> None:
    told = record(Result("the-id", "toy", "EventAgeExceeded", 0, b"{}", None), datetime.now(UTC))

    assert not {"responseContext", "responsePayload"} & told.keys()
    json.dumps(told)


def test_a_report_line_is_lambdas() -> None:
    log = base64.b64decode(log_result("the-id", Report(3.05, 110.87, 36, ("hello",)), 128)).decode()

    assert log == (
        "START RequestId: the-id Version: $LATEST\n"
        "hello\n"
        "END RequestId: the-id\n"
        "REPORT RequestId: the-id\tDuration: 3.05 ms\tBilled Duration: 4 ms\tMemory Size: 128 MB\t"
        "Max Memory Used: 36 MB\tInit Duration: 110.87 ms\t\n"
    )
