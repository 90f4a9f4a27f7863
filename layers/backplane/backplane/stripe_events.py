"""Stripe's events read with care: the envelope, which every event must have, and the object in it."""

from datetime import UTC, datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from backplane import requests
from backplane.config import settings
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


def foreign(event: Event) -> str | None:
    """Why an event is not this stage's: a test event in prod, a live one elsewhere, a connected account's."""
    livemode = event.data.get("livemode", False)
    if livemode is not settings().livemode:
        return f"livemode is {livemode}, this stage takes {settings().livemode}"
    if event.data.get("account") is not None:
        return "the event is a connected account's"
    return None


def told(event: Event) -> Any:
    """The event's object, whatever it is."""
    data = event.data.get("data")
    return data.get("object") if isinstance(data, dict) else None


def read(model: type[M], event: Event) -> M:
    """The event's object. Raises Quarantine where it is not of Stripe's shape."""
    return _validated(model, told(event), "data.object")


def current(model: type[M], event: Event) -> M:
    """The object as it was fetched for the event, or else as the event tells it. Raises Quarantine."""
    if event.fetched is None:
        return read(model, event)
    return _validated(model, event.fetched.data, "what Stripe's API answers")


def told_and_current(model: type[M], event: Event) -> tuple[M, M]:
    """What `read` and `current` answer: one and the same where nothing was fetched, and validated once."""
    told = read(model, event)
    return told, told if event.fetched is None else current(model, event)


def _validated(model: type[M], data: object, name: str) -> M:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise Quarantine(f"{name} is not a {model.__name__}: {faults}") from error


def text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value or len(value) > requests.MAX_ENVELOPE_TEXT:
        raise Quarantine(f"{name} is not a text of 1 to {requests.MAX_ENVELOPE_TEXT} characters")
    return value


def as_of(event: Event, *, final: bool) -> str:
    """A text that sorts as the states of a refund or a dispute succeed each other: what is final, last."""
    return f"{int(final)}.{int(event.occurred_at.timestamp()):012d}.{event.id}"
