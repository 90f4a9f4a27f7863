"""Stripe's events read with care: the envelope, which every event must have, and the object in it."""

from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from backplane import requests
from backplane.inbox import Event, Quarantine
from backplane.periods import YEAR_9999

M = TypeVar("M", bound=BaseModel)


def parse(event_id: str | None, body: bytes) -> Event:
    """A verified body as an event. Raises InvalidPayload where it has no envelope to record it by."""
    data, defect = requests.parse_event(body)
    identifier = requests.envelope_text(data, "id") if event_id is None else event_id
    created = data.get("created")
    if type(created) is not int or not 0 <= created < YEAR_9999:
        created, defect = 0, "created is not a time in whole seconds"
    return Event(
        provider="stripe",
        id=identifier,
        type=requests.envelope_text(data, "type"),
        occurred_at=datetime.fromtimestamp(created, UTC),
        data=data,
        body=body,
        defect=defect,
    )


def read(model: type[M], event: Event) -> M:
    """The event's object. Raises Quarantine where it is not of Stripe's shape."""
    data = event.data.get("data")
    try:
        return model.model_validate(data.get("object") if isinstance(data, dict) else None)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise Quarantine(f"data.object is not a {model.__name__}: {faults}") from error


def text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value or len(value) > requests.MAX_ENVELOPE_TEXT:
        raise Quarantine(f"{name} is not a text of 1 to {requests.MAX_ENVELOPE_TEXT} characters")
    return value


def as_of(event: Event, *, final: bool) -> str:
    """A text that sorts as the states of a refund or a dispute succeed each other: what is final, last."""
    return f"{int(final)}.{int(event.occurred_at.timestamp()):012d}.{event.id}"
