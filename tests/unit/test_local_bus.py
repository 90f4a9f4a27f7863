"""What a rule makes of an event before its target gets it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from local.aws_bus import fill_template, target_input, value_at

EVENT: dict[str, Any] = {
    "id": "1",
    "detail-type": "order.paid",
    "time": "2026-03-01T00:00:00Z",
    "detail": {"amount": 7, "name": 'Ada "A"', "items": [{"sku": "a"}], "none": None, "deep": {"x": [1, 2]}},
}
RULE = SimpleNamespace(name="often", arn="arn:aws:events:us-east-1:123456789012:rule/toys/often")


def given(**target: Any) -> str:
    return target_input(target, EVENT, RULE)  # type: ignore[arg-type]  # its name and its ARN are all


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("$", EVENT),
        ("$.detail-type", "order.paid"),
        ("$.detail.items[0].sku", "a"),
        ("$.detail.deep.x[1]", 2),
        ("$.detail.items[3].sku", None),
        ("$.detail.amount.cents", None),
        ("$.nothing", None),
    ],
)
def test_a_path_leads_to_a_value_or_to_none(path: str, value: Any) -> None:
    assert value_at(EVENT, path) == value


def test_without_an_input_the_whole_event_is_given() -> None:
    assert json.loads(given()) == EVENT


def test_an_input_is_given_as_it_stands() -> None:
    assert given(Input='{"constant": true}') == '{"constant": true}'


def test_an_input_path_gives_a_part() -> None:
    assert json.loads(given(InputPath="$.detail.deep")) == {"x": [1, 2]}


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ('{"amount": <amount>}', {"amount": 7}),
        ('{"text": "<name> paid <amount>"}', {"text": 'Ada "A" paid 7'}),
        ('{"name": <name>, "deep": <deep>}', {"name": 'Ada "A"', "deep": {"x": [1, 2]}}),
        ('{"deep": "as text <deep>"}', {"deep": 'as text {"x": [1, 2]}'}),
        ('{"nothing": <missing>, "text": "(<missing>)"}', {"nothing": None, "text": "()"}),
        ('{"rule": "<aws.events.rule-name>"}', {"rule": "often"}),
        ('{"all": <aws.events.event.json>}', {"all": EVENT}),
        ('"<name>"', 'Ada "A"'),
        ('{"kept": "<unknown>"}', {"kept": "<unknown>"}),
        ('{"quoted": "\\"<amount>\\""}', {"quoted": '"7"'}),
    ],
)
def test_a_template_is_filled_with_json_and_with_text(template: str, filled: Any) -> None:
    paths = {
        "amount": "$.detail.amount",
        "name": "$.detail.name",
        "deep": "$.detail.deep",
        "missing": "$.detail.missing",
    }
    transformer = {"InputPathsMap": paths, "InputTemplate": template}

    assert json.loads(given(InputTransformer=transformer)) == filled


def test_a_value_that_looks_like_a_variable_is_not_filled_again() -> None:
    assert fill_template('{"a": "<x>"}', {"x": "<y>", "y": "inserted"}) == '{"a": "<y>"}'
