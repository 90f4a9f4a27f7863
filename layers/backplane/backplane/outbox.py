"""Domain events, written in the caller's transaction: an event stands if and only if its cause does.

The outbox_publisher function puts them on the bus. docs/events.md lists them.
"""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from backplane import db
from backplane.config import settings

_logger = logging.getLogger("backplane.outbox")
_written = False


def append(tx: db.Tx, event_type: str, *, organization_id: UUID | None, payload: Mapping[str, Any]) -> None:
    """Writes one event, e.g. `subscription.changed`, for the publisher to put on the bus."""
    tx.execute(
        """
        INSERT INTO platform.outbox (organization_id, type, payload)
        VALUES (%(organization_id)s, %(type)s, %(payload)s)
        """,
        {"organization_id": organization_id, "type": event_type, "payload": Jsonb(dict(payload))},
    )
    written()


def written() -> None:
    """Says that this invocation wrote events, here or in an SQL function, so that `poke` has a reason."""
    global _written  # noqa: PLW0603  one invocation at a time in a process
    _written = True


def poke() -> None:
    """Asks the publisher to run now instead of at its next minute. The edges call it after the commit.

    Never raises: the events stand, and the schedule publishes them.
    """
    global _written  # noqa: PLW0603
    function = settings().outbox_publisher_function
    if not _written or function is None:
        return
    _written = False
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        _lambda().invoke(FunctionName=function, InvocationType="Event", Payload=b"{}")
    except (BotoCoreError, ClientError) as error:
        _logger.warning("the outbox publisher could not be poked: %s", error)


def purge(tx: db.Tx, *, days: int, limit: int) -> int:
    """Forgets events that were published so long ago. Answers how many, `limit` at most."""
    return tx.execute(
        """
        DELETE FROM platform.outbox
        WHERE id IN (
            SELECT id
            FROM platform.outbox
            WHERE published_at < statement_timestamp() - make_interval(days => %(days)s)
            ORDER BY published_at
            LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED
        )
        """,
        {"days": days, "limit": limit},
    ).rowcount


@cache
def _lambda() -> Any:
    # boto3 costs more to import than the rest of a function: only invocations that wrote events pay.
    import boto3
    from botocore.config import Config

    config = Config(connect_timeout=1, read_timeout=2, retries={"total_max_attempts": 1})
    return boto3.client("lambda", config=config)
