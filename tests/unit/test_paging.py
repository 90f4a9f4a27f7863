"""Lists in parts, of which none may be larger than what Lambda answers."""

import json
from typing import NamedTuple

import pytest
from pydantic import BaseModel

from backplane import paging


class Said(BaseModel):
    sequence: int
    content: str


class Part(NamedTuple):
    sequences: list[int]
    goes_on: bool


def part(*sizes: int, limit: int = 100) -> Part:
    items = [Said(sequence=number, content="x" * size) for number, size in enumerate(sizes, 1)]
    found = paging.page(items, limit, lambda last: last.sequence)
    shown = [item.sequence for item in found.items]
    assert found.next_cursor is None or paging.decode_cursor(found.next_cursor, int) == shown[-1]
    return Part(shown, found.next_cursor is not None)


def test_a_part_ends_where_no_more_fits_an_answer() -> None:
    assert part(2_000_000, 2_000_000, 2_000_000, 1) == ([1, 2], True)
    assert part(2_000_000, 2_000_000, 1_000_000) == ([1, 2, 3], False)
    assert part(2_000_000, 2_000_000, 2_000_000, limit=1) == ([1], True)


def test_what_is_too_large_by_itself_holds_up_nothing_behind_it() -> None:
    assert part(paging.MAX_SENT, 1) == ([1], True)
    assert part(paging.MAX_SENT) == ([1], False)
    assert part() == ([], False)


@pytest.mark.parametrize("content", ["plain", 'said "so"', "a\\b", "two\nlines", "\x01", "ü€😀"])
def test_the_bytes_of_an_item_are_those_it_takes_of_lambdas_answer(content: str) -> None:
    item = {"content": content}
    body = json.dumps(item, ensure_ascii=False, separators=(",", ":"))
    quotes = 2  # the answer's around its body
    assert paging.bytes_sent(item) == len(json.dumps(body, ensure_ascii=False).encode()) - quotes
