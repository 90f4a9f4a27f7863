"""Reports of batch item failures, as Lambda reads them."""

import json
from typing import Any

import pytest
from local.environment import Outcome, Status
from local.queues import failures

IDS = ["a", "b", "c"]


def reported(answer: Any) -> set[str]:
    return failures(Outcome(Status.OK, json.dumps(answer).encode()), IDS)


def test_the_messages_that_are_named_have_failed() -> None:
    assert reported({"batchItemFailures": [{"itemIdentifier": "b"}]}) == {"b"}


@pytest.mark.parametrize("answer", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}])
def test_an_empty_report_is_success(answer: Any) -> None:
    assert reported(answer) == set()


@pytest.mark.parametrize(
    "answer",
    [
        {"batchItemFailures": [{"itemIdentifier": ""}]},
        {"batchItemFailures": [{"itemIdentifier": None}]},
        {"batchItemFailures": [{"itemIdentifier": ["a"]}]},
        {"batchItemFailures": [{"identifier": "a"}]},
        {"batchItemFailures": [{"itemIdentifier": "a"}, {"itemIdentifier": "of no message"}]},
        {"batchItemFailures": "a"},
        {"batchItemFailures": {"itemIdentifier": "a"}},
        {"batchItemFailures": 7},
        "a text",
        ["a"],
    ],
)
def test_a_report_that_is_not_understood_fails_the_whole_batch(answer: Any) -> None:
    assert reported(answer) == set(IDS)
