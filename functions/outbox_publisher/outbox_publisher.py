"""Puts the outbox's events on the EventBridge bus: at least once, each organisation's in order.

Poked after a commit that wrote events, and run each minute for what a poke missed. Only one runs at
a time. docs/events.md tells consumers what to expect.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

import boto3
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from backplane import db
from backplane.config import settings

SOURCE = "backplane"
MAX_ENTRIES = 10  # of one PutEvents call
MAX_BYTES = 240_000  # of one call; EventBridge takes 256 KB, its own envelope included
ROUND = 200  # events a transaction
MARGIN = 10.0  # seconds kept back to finish a round in
PATIENCE = 2.0  # seconds to wait for a publisher that is at it
LOCK = 0x6F7574626F78  # "outbox" in ASCII

logger = Logger()


@dataclass(frozen=True, slots=True)
class Event:
    id: UUID
    type: str
    entry: Mapping[str, Any]  # of PutEvents

    @property
    def size(self) -> int:
        """Bytes, counted as EventBridge does: time, source, detail type and detail."""
        return 14 + len(SOURCE) + len(self.type) + len(self.entry["Detail"].encode())


def handler(event: Mapping[str, Any], context: LambdaContext) -> dict[str, Any]:  # noqa: ARG001  a poke says nothing
    """Answers {ok, published, failed}: what this run put on the bus, and what the bus refused."""
    remaining = context.get_remaining_time_in_millis() / 1000
    ends = time.monotonic() + remaining - MARGIN
    db.set_deadline(remaining)
    published = failed = 0
    with suppress(_Busy):
        while time.monotonic() < ends:
            db.run(_number)
            done, refused = db.run(_publish)
            published, failed = published + done, failed + refused
            if done + refused < ROUND:
                break
    if failed:
        logger.error("the bus refused events; they are tried again", failed=failed)
    return {"ok": failed == 0, "published": published, "failed": failed}


def _lock(tx: db.Tx) -> None:
    """One publisher at a time, and the next one waits: what was committed just before it was poked
    may have come after the other's last look.
    """
    patient_until = time.monotonic() + PATIENCE
    while True:
        row = tx.execute("SELECT pg_try_advisory_xact_lock(%s) AS taken", [LOCK]).fetchone()
        if row is not None and row["taken"]:
            return
        if time.monotonic() > patient_until:
            # It has been at it since before this run began, and looks once more before it ends.
            raise _Busy
        time.sleep(0.05)


class _Busy(Exception):  # noqa: N818  not an error: the other publisher sees our events too
    pass


def _number(tx: db.Tx) -> None:
    """Counts each organisation's new events on. In a transaction of its own: a repetition after a crash
    must not count anew.
    """
    _lock(tx)
    tx.execute(
        """
        WITH new AS (
            SELECT id, organization_id, row_number() OVER by_age AS n, count(*) OVER of_organization AS total
            FROM platform.outbox
            WHERE sequence IS NULL AND published_at IS NULL AND organization_id IS NOT NULL
            WINDOW of_organization AS (PARTITION BY organization_id),
                   by_age AS (PARTITION BY organization_id ORDER BY created_at, id)
        ), counted AS (
            INSERT INTO platform.outbox_sequences AS s (organization_id, last)
            SELECT DISTINCT organization_id, total
            FROM new
            ON CONFLICT (organization_id) DO UPDATE
            SET last = s.last + EXCLUDED.last
            RETURNING organization_id, last
        )
        UPDATE platform.outbox AS o
        SET sequence = counted.last - new.total + new.n
        FROM new
        JOIN counted ON counted.organization_id = new.organization_id
        WHERE o.id = new.id
        """
    )


def _publish(tx: db.Tx) -> tuple[int, int]:
    """Puts one round on the bus and records it. Answers how many went out and how many did not."""
    _lock(tx)
    rows = tx.execute(
        """
        SELECT id, organization_id, type, payload, sequence, created_at
        FROM platform.outbox
        WHERE published_at IS NULL
          AND (sequence IS NOT NULL OR organization_id IS NULL)
          AND (next_attempt_at IS NULL OR next_attempt_at <= clock_timestamp())
        ORDER BY created_at, id
        LIMIT %(round)s
        FOR UPDATE
        """,
        {"round": ROUND},
    ).fetchall()
    events = [_event(row) for row in rows]
    failures: dict[UUID, str] = {}
    for batch in batches(events):
        failures |= _put(batch)
    tx.execute(
        "UPDATE platform.outbox SET published_at = clock_timestamp(), error = NULL WHERE id = ANY(%s)",
        [[event.id for event in events if event.id not in failures]],
    )
    for event_id, error in failures.items():
        tx.execute(
            """
            UPDATE platform.outbox
            SET attempts = attempts + 1,
                error = %(error)s,
                next_attempt_at = clock_timestamp()
                    + least(interval '1 hour', interval '5 seconds' * 2 ^ least(attempts, 20))
            WHERE id = %(id)s
            """,
            {"id": event_id, "error": error},
        )
    return len(events) - len(failures), len(failures)


def _event(row: Mapping[str, Any]) -> Event:
    detail = {
        "id": str(row["id"]),
        "type": row["type"],
        "organization_id": None if row["organization_id"] is None else str(row["organization_id"]),
        "sequence": row["sequence"],
        "created_at": row["created_at"].isoformat(),
        "data": row["payload"],
    }
    entry = {
        "Time": row["created_at"],
        "Source": SOURCE,
        "DetailType": row["type"],
        "Detail": json.dumps(detail, separators=(",", ":")),
        "EventBusName": settings().event_bus_name,
    }
    return Event(row["id"], row["type"], entry)


def batches(events: Sequence[Event]) -> Iterator[list[Event]]:
    """Parts that one PutEvents call takes, by count and by bytes. Too large an event goes alone."""
    batch: list[Event] = []
    size = 0
    for event in events:
        if batch and (len(batch) == MAX_ENTRIES or size + event.size > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += event.size
    if batch:
        yield batch


def _put(batch: Sequence[Event]) -> dict[UUID, str]:
    """Puts a batch on the bus. Answers why each refused event was refused."""
    try:
        answer = _bus().put_events(Entries=[dict(event.entry) for event in batch])
    except (BotoCoreError, ClientError) as error:
        return {event.id: f"{type(error).__name__}: {error}" for event in batch}
    results = answer[
        "Entries"
    ]  # one for each event, in their order; FailedEntryCount says how many have an error
    return {
        event.id: f"{result['ErrorCode']}: {result.get('ErrorMessage', '')}"
        for event, result in zip(batch, results, strict=True)
        if "ErrorCode" in result
    }


@cache
def _bus() -> Any:
    return boto3.client(
        "events", config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 2})
    )
