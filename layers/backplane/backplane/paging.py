"""Lists in parts: how many items, from where on, and where the next part begins.

    def things(tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None) -> paging.Page[Thing]:
        before = paging.decode_cursor(cursor, UUID)
        return paging.page(newest(tx, before=before, limit=limit + 1), limit, lambda last: last.id)

A cursor stands for the last item's position: new items before it move nothing. A part ends before `limit`
where its items are so large that no more of them fit an answer.
"""

import base64
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, TypeVar

from aws_lambda_powertools.event_handler.openapi.params import Query
from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from backplane import requests
from backplane.problems import Unprocessable

T = TypeVar("T")

MAX_SENT = 5_500_000  # bytes that an answer's items have at most; Lambda answers 6 MB

Limit = Annotated[int, Query(ge=1, le=100, description="How many items at most; fewer where they are large.")]
Cursor = Annotated[str | None, Query(max_length=200, description="next_cursor of the part before.")]


class Page(BaseModel, Generic[T]):
    """A part of a list, newest first. `next_cursor` is null on the last part."""

    items: list[T]
    next_cursor: str | None


def page(items: Sequence[T], limit: int, position: Callable[[T], Any]) -> Page[T]:
    """The first `limit` of the items that were asked for with one more. `position` of the last is where
    the next part begins.
    """
    shown = _fitting(items[:limit])
    more = len(items) > len(shown)
    return Page(items=shown, next_cursor=encode_cursor(position(shown[-1])) if more else None)


def _fitting(items: Sequence[T]) -> list[T]:
    """Those that fit an answer together, the first in any case."""
    room = MAX_SENT
    for count, item in enumerate(items):
        room -= bytes_sent(item)
        if room < 0 < count:
            return list(items[:count])
    return list(items)


def bytes_sent(value: Any) -> int:
    """What a value takes of Lambda's answer, in which the body's JSON is a text within JSON again."""
    data = to_json(value)
    return len(data) + data.count(b'"') + data.count(b"\\")


def encode_cursor(position: Any) -> str:
    return base64.urlsafe_b64encode(to_json(position)).decode().rstrip("=")


def decode_cursor(cursor: str | None, kind: type[T]) -> T | None:
    """The position a cursor stands for: an int, a UUID, or a tuple of what JSON can carry. Raises
    Unprocessable where it is not one of ours.
    """
    if cursor is None:
        return None
    try:
        position = TypeAdapter(kind).validate_json(
            base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), strict=True
        )
    except ValueError:  # of base64 and of pydantic
        position = None
    too_large = isinstance(position, int) and not 0 <= position < 2**63
    if position is None or too_large or requests.unstorable(position):
        raise Unprocessable(
            "The cursor is not valid. Send the next_cursor of the list's previous part, or none.",
            errors=[{"loc": ["query", "cursor"], "msg": "Invalid cursor", "type": "invalid_cursor"}],
        )
    return position
