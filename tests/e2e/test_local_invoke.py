"""Lambda's Invoke API: answers, errors, logs, and asynchronous invocation to its end."""

import base64
import itertools
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from local import aws
from tests.e2e.local_cloud import TOYS, Toys, request, start_toys, until

pytestmark = pytest.mark.xdist_group("toys")

ASYNCHRONOUS = TOYS.with_name("asynchronous.yaml")
FUNCTION_ARN = f"arn:aws:lambda:us-east-1:{aws.ACCOUNT}:function"


@pytest.fixture(scope="module")
def senders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toys]:
    with start_toys(tmp_path_factory.mktemp("senders"), ASYNCHRONOUS) as toys:
        yield toys


def invoke(toys: Toys, name: str = "toy", /, *, kind: str = "RequestResponse", **order: Any) -> Any:
    payload = json.dumps(order).encode()
    return toys.lambda_client.invoke(FunctionName=name, InvocationType=kind, Payload=payload)


def tail(toys: Toys, **order: Any) -> list[str]:
    payload = json.dumps(order).encode()
    answer = toys.lambda_client.invoke(FunctionName="toy", LogType="Tail", Payload=payload)
    log = base64.b64decode(answer["LogResult"])
    assert len(log) <= 4096
    return log.decode().splitlines()


def receive(toys: Toys, queue: str) -> dict[str, Any]:
    """The next message's body, taken from the queue with this logical id."""
    sqs = toys.client("sqs")
    (url,) = sqs.list_queues(QueueNamePrefix=f"{aws.STACK_NAME}-{queue}-")["QueueUrls"]
    (message,) = until(
        lambda: sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1).get("Messages"), f"{queue} has a message"
    )
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    body: dict[str, Any] = json.loads(message["Body"])
    return body


# ---- answers and errors ----


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "{}:$LATEST",
        f"{aws.ACCOUNT}:function:{{}}",
        f"{FUNCTION_ARN}:{{}}",
        f"{FUNCTION_ARN}:{{}}:$LATEST",
    ],
)
def test_a_function_is_invoked_by_name_partial_arn_or_arn(toys: Toys, form: str) -> None:
    answer = invoke(toys, form.format(toys.function.name), do="answer", answer=[1])

    assert (answer["StatusCode"], answer["ExecutedVersion"]) == (200, "$LATEST")
    assert "FunctionError" not in answer
    assert json.loads(answer["Payload"].read()) == [1]


def test_an_exception_is_a_function_error_with_its_trace(toys: Toys) -> None:
    answer = invoke(toys, do="raise")
    told = json.loads(answer["Payload"].read())

    assert (answer["StatusCode"], answer["FunctionError"]) == (200, "Unhandled")
    assert (told["errorType"], told["errorMessage"]) == ("ValueError", "the secret detail")
    assert "toy.py" in told["stackTrace"][0]
    assert told["requestId"] == answer["ResponseMetadata"]["RequestId"]


def test_a_process_that_ends_is_a_function_error(toys: Toys) -> None:
    answer = invoke(toys, do="exit")

    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"].read())["errorType"] == "Runtime.ExitError"


def test_a_timeout_is_a_function_error_of_lambdas(toys: Toys) -> None:
    answer = invoke(toys, do="sleep", seconds=30)
    request_id = answer["ResponseMetadata"]["RequestId"]

    assert answer["FunctionError"] == "Unhandled"
    assert json.loads(answer["Payload"].read()) == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {request_id} Error: Task timed out after 2.00 seconds",
    }


def test_an_answer_over_the_limit_is_a_function_error(toys: Toys) -> None:
    order: dict[str, Any] = {"do": "repeat", "text": "x" * 1000, "times": 7000}
    told = json.loads(invoke(toys, **order)["Payload"].read())

    assert told["errorType"] == "Function.ResponseSizeTooLarge"


def test_a_payload_over_the_limit_is_refused(toys: Toys) -> None:
    exceptions = toys.lambda_client.exceptions
    for size in (6 * 1024 * 1024 + 1, 20 * 1024 * 1024):
        with pytest.raises(exceptions.RequestTooLargeException, match="smaller than 6291456 bytes"):
            toys.lambda_client.invoke(FunctionName="toy", Payload=b'"' + b"x" * size + b'"')
    with pytest.raises(exceptions.RequestTooLargeException, match="smaller than 262144 bytes"):
        toys.lambda_client.invoke(
            FunctionName="toy", InvocationType="Event", Payload=b'"' + b"x" * 262144 + b'"'
        )


def test_a_payload_that_is_not_json_is_refused(toys: Toys) -> None:
    for kind in ("RequestResponse", "Event"):
        with pytest.raises(toys.lambda_client.exceptions.InvalidRequestContentException):
            toys.lambda_client.invoke(FunctionName="toy", InvocationType=kind, Payload=b"{not json")


def test_a_dry_run_runs_nothing(toys: Toys, tmp_path: Path) -> None:
    answer = invoke(toys, kind="DryRun", do="count", file=str(tmp_path / "runs"))

    assert answer["StatusCode"] == 204
    assert not (tmp_path / "runs").exists()


def test_an_unknown_function_is_named_in_the_error(toys: Toys) -> None:
    with pytest.raises(toys.lambda_client.exceptions.ResourceNotFoundException) as refused:
        invoke(toys, "nothing")

    assert refused.value.response["Error"]["Message"] == f"Function not found: {FUNCTION_ARN}:nothing"


def test_an_unknown_invocation_type_is_refused(toys: Toys) -> None:
    path = "/2015-03-31/functions/toy/invocations"
    answer = request(toys.lambda_url, "POST", path, b"{}", {"X-Amz-Invocation-Type": "Later"})

    assert answer.status == 400
    assert answer.headers["x-amzn-errortype"] == "InvalidParameterValueException"


def test_who_finds_no_environment_in_time_is_throttled(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("local.pool.MAX_WAITING", 0)
    with ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(invoke, toys, do="sleep", seconds=1) for _ in range(12)]
    refused = [error for each in asked if (error := each.exception())]

    assert 0 < len(refused) < len(asked)
    for error in refused:
        assert isinstance(error, ClientError)
        assert error.response["Error"]["Code"] == "TooManyRequestsException"
        assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 429


# ---- the log ----


def test_the_log_of_an_invocation_is_framed_as_lambda_does(toys: Toys) -> None:
    lines = tail(toys, do="print", text="hello")
    request_id = lines[0].removeprefix("START RequestId: ").removesuffix(" Version: $LATEST")

    assert json.dumps({"printed": "hello"}) in lines
    assert lines[-2] == f"END RequestId: {request_id}"
    assert lines[-1].startswith(f"REPORT RequestId: {request_id}\tDuration: ")
    assert "\tMemory Size: 256 MB\tMax Memory Used: " in lines[-1]


def test_only_the_last_4_kb_of_a_log_are_returned(toys: Toys) -> None:
    lines = tail(toys, do="print", text="x" * 5000)

    assert not lines[0].startswith("START")
    assert lines[-1].startswith("REPORT")


def test_the_log_has_nothing_of_another_invocation(toys: Toys) -> None:
    words = [f"word-{number}" for number in range(16)]
    with ThreadPoolExecutor(4) as threads:
        logs = list(threads.map(lambda word: tail(toys, do="print", text=word), words))

    for word, log in zip(words, logs, strict=True):
        assert [line for line in log if "printed" in line] == [json.dumps({"printed": word})]


def test_the_log_of_a_failure_has_its_traceback(toys: Toys) -> None:
    assert any("the secret detail" in line for line in tail(toys, do="raise"))


def test_without_being_asked_no_log_is_returned(toys: Toys) -> None:
    assert "LogResult" not in invoke(toys)


# ---- from inside a function ----


def test_a_function_invokes_another_here_and_reaches_the_rest_of_aws(toys: Toys) -> None:
    order: dict[str, Any] = {
        "do": "invoke",
        "function": toys.function.name,
        "payload": {"do": "answer", "answer": "hi"},
    }
    invoke(toys, do="import", module="boto3")  # its import alone may take the toy's two seconds
    told = json.loads(invoke(toys, **order)["Payload"].read())

    assert told["answer"] == "hi"
    assert any("-Queue-" in url for url in told["queues"])


# ---- asynchronously ----


def test_an_event_is_accepted_at_once_and_runs(senders: Toys, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    accepted = invoke(senders, "ToQueue", kind="Event", do="count", file=str(file))

    assert accepted["StatusCode"] == 202
    assert accepted["Payload"].read() == b""
    until(file.exists, "it runs")


def test_a_success_is_told_to_its_destination(senders: Toys, tmp_path: Path) -> None:
    order = {"do": "count", "file": str(tmp_path / "runs")}
    accepted = invoke(senders, "ToQueue", kind="Event", **order)
    request_id = accepted["ResponseMetadata"]["RequestId"]
    record: dict[str, Any] = until(
        lambda: next((r for r in [receive(senders, "Successes")] if r["requestPayload"] == order), None),
        "the record comes",
    )
    name = senders.runtime.find("ToQueue").name

    assert record["version"] == "1.0"
    assert record["requestContext"] == {
        "requestId": request_id,
        "functionArn": f"{FUNCTION_ARN}:{name}:$LATEST",
        "condition": "Success",
        "approximateInvokeCount": 1,
    }
    assert record["responseContext"] == {"statusCode": 200, "executedVersion": "$LATEST"}
    assert record["responsePayload"] == 1


def test_a_failure_is_tried_twice_more_with_growing_delays_and_then_told(
    senders: Toys, tmp_path: Path
) -> None:
    file = tmp_path / "runs"
    order = {"do": "count", "file": str(file), "failures": 99}
    invoke(senders, "ToQueue", kind="Event", **order)
    record = receive(senders, "Failures")
    times = [float(line) for line in file.read_text().splitlines()]
    delays = [after - before for before, after in itertools.pairwise(times)]

    assert len(times) == 3
    assert delays[0] >= 0.1
    assert delays[1] >= 0.2
    assert record["requestContext"]["condition"] == "RetriesExhausted"
    assert record["requestContext"]["approximateInvokeCount"] == 3
    assert record["requestPayload"] == order
    assert record["responseContext"]["functionError"] == "Unhandled"
    assert record["responsePayload"]["errorMessage"] == "failure 3"


def test_an_event_that_succeeds_at_last_is_a_success(senders: Toys, tmp_path: Path) -> None:
    order = {"do": "count", "file": str(tmp_path / "runs"), "failures": 2}
    invoke(senders, "ToQueue", kind="Event", **order)
    record: dict[str, Any] = until(
        lambda: next((r for r in [receive(senders, "Successes")] if r["requestPayload"] == order), None),
        "the record comes",
    )

    assert record["requestContext"]["approximateInvokeCount"] == 3
    assert record["responsePayload"] == 3


def test_the_attempts_are_the_templates_and_a_bus_is_told(senders: Toys, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    invoke(senders, "ToBus", kind="Event", do="count", file=str(file), failures=99)
    event = receive(senders, "FromBus")

    assert len(file.read_text().splitlines()) == 1
    assert event["source"] == "lambda"
    assert event["detail-type"] == "Lambda Function Invocation Result - Failure"
    assert event["detail"]["requestContext"]["condition"] == "RetriesExhausted"
    assert event["detail"]["requestContext"]["approximateInvokeCount"] == 1


def test_another_function_is_told_and_its_own_destination_after_it(senders: Toys, tmp_path: Path) -> None:
    invoke(senders, "ToFunction", kind="Event", do="count", file=str(tmp_path / "runs"), failures=99)
    told: dict[str, Any] = until(
        lambda: next(
            (r for r in [receive(senders, "Successes")] if "requestContext" in r["requestPayload"]), None
        ),
        "the other function has run",
    )

    assert told["requestPayload"]["requestContext"]["approximateInvokeCount"] == 2
    assert told["requestPayload"]["responsePayload"]["errorMessage"] == "failure 2"


def test_many_events_all_run_once(senders: Toys, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(40)]
    threads = [
        threading.Thread(
            target=invoke, args=(senders, "ToBus"), kwargs={"kind": "Event", "do": "count", "file": str(file)}
        )
        for file in files
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: all(file.exists() for file in files), "all have run")

    assert [len(file.read_text().splitlines()) for file in files] == [1] * 40
