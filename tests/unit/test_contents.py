"""Contents compared: every kind of difference is told, and told in bounds."""

from typing import Any

import pytest

from backplane.contents import MOST_TOLD, Contents, differences

WHOLE = Contents(
    rows={"shop.orders": 3, "shop.items": 0},
    sequences={"shop.numbers": 7, "shop.unused": None},
    migrations=["0001", "0002"],
    extensions={"plpgsql": "1.0"},
    row_security={"shop.orders": "enabled; forced"},
    privileges={"shop.orders": "owner; app=SELECT"},
    definitions={"index shop.orders_pkey": "abc"},
)


def changed(**fields: Any) -> Contents:
    return WHOLE.model_copy(update=fields)


def test_the_same_has_no_differences() -> None:
    assert differences(WHOLE, changed()) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"rows": {"shop.orders": 2, "shop.items": 0}}, "rows: shop.orders was 3, is 2"),
        ({"rows": {"shop.orders": 3}}, "rows: shop.items is missing"),
        ({"rows": {"shop.orders": 3, "shop.items": 0, "x.y": 1}}, "rows: x.y was not there"),
        ({"migrations": ["0001"]}, "migrations: 2 up to 0002 were applied, 1 up to 0001 are"),
        ({"migrations": []}, "migrations: 2 up to 0002 were applied, none are"),
        ({"extensions": {}}, "extensions: plpgsql is missing"),
        (
            {"row_security": {"shop.orders": "disabled"}},
            "row_security: shop.orders was enabled; forced, is disabled",
        ),
        (
            {"privileges": {"shop.orders": "owner"}},
            "privileges: shop.orders was owner; app=SELECT, is owner",
        ),
        ({"definitions": {"index shop.orders_pkey": "abd"}}, "definitions: index shop.orders_pkey differs"),
        ({"sequences": {"shop.unused": None}}, "sequences: shop.numbers is missing"),
        (
            {"sequences": {"shop.numbers": 6, "shop.unused": None}},
            "sequences: shop.numbers was at 7, is at 6",
        ),
        (
            {"sequences": {"shop.numbers": None, "shop.unused": None}},
            "sequences: shop.numbers was at 7, is at None",
        ),
    ],
)
def test_each_kind_of_difference_is_told(found: dict[str, Any], told: str) -> None:
    assert differences(WHOLE, changed(**found)) == [told]


def test_a_sequence_may_have_run_on_while_the_dump_was_taken() -> None:
    assert differences(WHOLE, changed(sequences={"shop.numbers": 9, "shop.unused": 1})) == []


def test_a_thousand_differences_are_told_in_a_few_lines() -> None:
    many = changed(rows={**WHOLE.rows, **{f"x.t{n}": n for n in range(1000)}})
    told = differences(WHOLE, many)
    assert len(told) == MOST_TOLD + 1
    assert told[-1] == f"rows: and {1000 - MOST_TOLD} more"
