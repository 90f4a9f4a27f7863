"""`SET=path=value,…`: what is changed, and what is refused."""

import json
from typing import Any

import pytest
from local.assignment import Assignment, parse
from local.refusal import Refusal


def changed(text: str) -> Any:
    document = {"data": {"object": {"amount": 1, "items": [{"price": "a"}, {"price": "b"}], "note": None}}}
    for each in parse(text):
        each.apply(document)
    return document["data"]["object"]


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("data.object.amount=5", "amount", 5),
        ("data.object.amount=-2.5", "amount", -2.5),
        ('data.object.amount="5"', "amount", "5"),
        ("data.object.amount=five", "amount", "five"),
        ("data.object.amount=", "amount", ""),
        ("data.object.note=true", "note", True),
        ("data.object.amount=null", "amount", None),
        ("data.object.note=a=b", "note", "a=b"),
        ('data.object.note={"a": [1, 2], "b": "c=d"}', "note", {"a": [1, 2], "b": "c=d"}),
        ("data.object.note=one, two", "note", "one, two"),
    ],
)
def test_a_value_is_json_or_else_a_text(text: str, field: str, value: Any) -> None:
    assert changed(text)[field] == value


@pytest.mark.parametrize("path", ["data.object.items[1].price", "data.object.items.1.price"])
def test_a_path_goes_through_lists(path: str) -> None:
    assert changed(f"{path}=c")["items"] == [{"price": "a"}, {"price": "c"}]


def test_several_stand_with_commas_between() -> None:
    after = changed('data.object.amount=5,data.object.note={"a": "b,c=d"}, data.object.items[0].price=x')

    assert (after["amount"], after["note"], after["items"][0]["price"]) == (5, {"a": "b,c=d"}, "x")


def test_a_plus_adds_what_is_not_there() -> None:
    after = changed('+data.object.metadata.pack_id=pack_500,+data.object.items[2]={"price": "c"}')

    assert after["metadata"] == {"pack_id": "pack_500"}
    assert after["items"][2] == {"price": "c"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("data.object.amuont=5", r"there is no data\.object\.amuont: data\.object has amount, items, note"),
        ("data.objekt.amount=5", r"there is no data\.objekt: data has object"),
        ("date.object.amount=5", r"there is no date: the body has data"),
        (
            "data.object.items[2].price=c",
            r"there is no data\.object\.items\[2\]: data\.object\.items is a list of 2",
        ),
        ("data.object.items[2]=c", r"there is no data\.object\.items\[2\]"),
        ("data.object.items.first=c", r"is a list of 2"),
        ("data.object.amount.value=5", r"data\.object\.amount is 1"),
        ("data.object.amuont=5", r"To add it: SET=\+data\.object\.amuont=…"),
        ("+data.object.items[7]=c", r"there is no data\.object\.items\[7\]"),
        ("data.object.amount", "sets nothing"),
        ("=5", "sets nothing"),
        ("data..amount=5", "sets nothing"),
    ],
)
def test_a_path_that_does_not_exist_is_refused_with_what_does(text: str, told: str) -> None:
    with pytest.raises(Refusal, match=told):
        changed(text)


def test_nothing_to_set_is_nothing() -> None:
    assert parse("") == parse("  ") == []


def test_an_assignment_to_no_body_is_refused() -> None:
    with pytest.raises(Refusal, match="the body is null"):
        Assignment("a", 1).apply(json.loads("null"))
