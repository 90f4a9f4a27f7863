"""Event patterns: what matches, by EventBridge's documentation."""

from typing import Any

import pytest
from local.event_pattern import BadPattern, check, matches

EVENT = {
    "source": "backplane",
    "detail-type": "credits.granted",
    "resources": ["arn:a", "arn:b"],
    "detail": {
        "amount": 500,
        "paid": True,
        "note": None,
        "address": "10.0.0.7",
        "file": "photos/Cat.PNG",
        "items": [{"sku": "a", "count": 1}, {"sku": "b", "count": 9}],
        "empty": [],
    },
}


@pytest.mark.parametrize(
    "pattern",
    [
        {"source": ["other", "backplane"]},
        {"source": ["backplane"], "detail": {"amount": [500.0]}},
        {"resources": ["arn:b"]},
        {"detail": {"paid": [True], "note": [None]}},
        {"detail": {"amount": [{"numeric": [">", 0, "<=", 500]}]}},
        {"detail-type": [{"prefix": "credits."}]},
        {"detail": {"file": [{"suffix": ".PNG"}]}},
        {"detail": {"file": [{"suffix": {"equals-ignore-case": ".png"}}]}},
        {"detail": {"file": [{"wildcard": "photos/*.PNG"}]}},
        {"detail": {"file": [{"equals-ignore-case": "PHOTOS/CAT.png"}]}},
        {"detail": {"address": [{"cidr": "10.0.0.0/24"}]}},
        {"detail": {"amount": [{"anything-but": [1, 2]}]}},
        {"detail": {"file": [{"anything-but": {"prefix": "videos/"}}]}},
        {"detail": {"colour": [{"exists": False}], "amount": [{"exists": True}]}},
        {"nothing": {"below": [{"exists": False}]}},
        {"$or": [{"source": ["other"]}, {"detail": {"amount": [500]}}]},
        {"detail": {"items": {"sku": ["b"], "count": [9]}}},
        {"detail": {"empty": [{"exists": False}]}},
    ],
)
def test_a_pattern_that_matches(pattern: dict[str, Any]) -> None:
    check(pattern)
    assert matches(pattern, EVENT)


@pytest.mark.parametrize(
    "pattern",
    [
        {"source": ["Backplane"]},
        {"detail": {"amount": ["500"]}},
        {"detail": {"paid": [1]}},
        {"detail": {"note": [{"exists": False}]}},
        {"detail": {"amount": [{"numeric": ["<", 500]}]}},
        {"detail": {"paid": [{"numeric": ["=", 1]}]}},
        {"detail": {"amount": [{"prefix": "5"}]}},
        {"detail": {"file": [{"wildcard": "photos/?at.PNG"}]}},
        {"detail": {"file": [{"anything-but": {"suffix": [".PNG", ".JPG"]}}]}},
        {"detail": {"colour": [{"anything-but": "red"}]}},
        {"detail": {"address": [{"cidr": "10.0.1.0/24"}]}},
        {"detail": {"file": [{"cidr": "10.0.0.0/24"}]}},
        {"$or": [{"source": ["other"]}, {"detail": {"amount": [1]}}]},
        {"detail": {"items": {"sku": ["a"], "count": [9]}}},
        {"detail": ["a leaf"]},
        {"source": ["backplane"], "account": ["1"]},
    ],
)
def test_a_pattern_that_does_not_match(pattern: dict[str, Any]) -> None:
    check(pattern)
    assert not matches(pattern, EVENT)


@pytest.mark.parametrize(
    "pattern",
    [
        {},
        [],
        {"source": "backplane"},
        {"source": []},
        {"source": [{"regex": "b.*"}]},
        {"source": [{"prefix": "a", "suffix": "b"}]},
        {"detail": {"amount": [{"numeric": ["about", 5]}]}},
        {"detail": {"address": [{"cidr": "everywhere"}]}},
        {"$or": {"source": ["a"]}},
    ],
)
def test_a_pattern_that_is_not_understood_is_refused(pattern: Any) -> None:
    with pytest.raises(BadPattern):
        check(pattern)
