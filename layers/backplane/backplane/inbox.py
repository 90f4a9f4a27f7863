"""The webhook inbox: every event once, in whatever order and however often it is delivered.

`receive` inserts the row and applies the event's effect in one transaction, so a 2xx means
durable and a repetition finds the row. An effect is a function of (tx, event) that answers what
became of it, or raises:

    Park        its subject is not there yet; replayed when an outcome says it arrived, or by the worker
    Quarantine  validly signed, impossible to apply, however often it is tried
    any other   a passing cause: rolled back, recorded as failed, answered 500, tried again
"""

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg

from backplane import db
from backplane.problems import Unavailable

logger = logging.getLogger("backplane.inbox")

Provider = Literal["stripe", "clerk", "eas", "vercel", "github"]
Status = Literal["processed", "duplicate", "ignored", "stale", "parked", "quarantined", "failed"]

# What a repetition may still change, the sender's or the worker's; every other row answers `duplicate`.
OPEN = ("parked", "failed", "dead")

# A failed event is given up after about a day of the worker's tries. A parked one waits for ever.
MAX_ATTEMPTS = 12

# How long an event rests after its n-th attempt: a minute, doubled each time, six hours at most, less
# up to a half by chance, so that what failed together does not come back together.
_BACKOFF = "least(interval '6 hours', interval '1 minute' * 2 ^ least(attempts - 1, 20)) * (1 - random() / 2)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A verified event. `data` is the parsed body, `body` the bytes that were signed."""

    provider: Provider
    id: str
    type: str
    occurred_at: datetime
    data: Mapping[str, Any]
    body: bytes
    defect: str | None = None  # why it can never be applied, where its envelope shows that already


@dataclass(frozen=True, slots=True)
class Outcome:
    status: Literal["processed", "stale", "ignored"] = "processed"
    reason: str | None = None
    organization_id: UUID | None = None
    arrived: tuple[str, ...] = ()  # subjects this effect made: what is parked for them is replayed


Effect = Callable[[db.Tx, Event], Outcome]


@dataclass(frozen=True, slots=True)
class Sender:
    """How a provider's recorded events are read back and applied. `parse(id, body)`."""

    parse: Callable[[str, bytes], Event]
    effects: Mapping[str, Effect]


Senders = Mapping[Provider, Sender]


class Park(Exception):  # noqa: N818  an outcome, not an error
    """The event's subject is missing. `waiting_for` names it, e.g. `stripe.customer:cus_…`."""

    def __init__(self, waiting_for: str, reason: str) -> None:
        super().__init__(reason)
        self.waiting_for = waiting_for
        self.reason = reason


class Quarantine(Exception):  # noqa: N818
    """The event can never be applied."""


def receive(event: Event, senders: Senders) -> Status:
    """Records the event and applies it, once.

    Raises Unavailable where the database is not there (nothing is recorded then), and whatever
    the effect raised, after recording it: the sender must hear a 5xx to try again.
    """
    try:
        return db.run(lambda tx: _receive(tx, event, senders))
    except Unavailable:
        raise
    except Exception as error:  # the edge of an effect: recorded, then passed on
        _record_failure(event, error)
        raise


def _receive(tx: db.Tx, event: Event, senders: Senders) -> Status:
    inserted = tx.execute(
        """
        INSERT INTO platform.webhook_inbox
            (provider, event_id, event_type, body, status, occurred_at, processed_at)
        VALUES
            (%(provider)s, %(id)s, %(type)s, %(body)s, 'processed', %(occurred_at)s, clock_timestamp())
        ON CONFLICT (provider, event_id) DO NOTHING
        """,
        {
            "provider": event.provider,
            "id": event.id,
            "type": event.type,
            "body": event.body,
            "occurred_at": event.occurred_at,
        },
    )
    if inserted.rowcount == 0:
        reopened = tx.execute(
            """
            UPDATE platform.webhook_inbox
            SET attempts = attempts + 1
            WHERE provider = %(provider)s
              AND event_id = %(id)s
              AND status = ANY (%(open)s::platform.inbox_status[])
            """,
            {"provider": event.provider, "id": event.id, "open": list(OPEN)},
        )
        if reopened.rowcount == 0:
            return "duplicate"
    return _apply(tx, event, senders)


def _apply(tx: db.Tx, event: Event, senders: Senders) -> Status:
    """Applies one event inside a savepoint and writes what became of it to its row."""
    if event.defect is not None:
        return _settle(tx, event, "quarantined", reason=event.defect)
    effect = senders[event.provider].effects.get(event.type)
    if effect is None:
        return _settle(tx, event, "ignored", reason=f"{event.type} has no effect here")
    try:
        outcome = _attempt(tx, event, effect)
    except Park as park:
        return _settle(tx, event, "parked", reason=park.reason, waiting_for=park.waiting_for)
    except Quarantine as quarantine:
        return _settle(tx, event, "quarantined", reason=str(quarantine))
    for subject in outcome.arrived:
        _replay_parked(tx, subject, senders)
    return _settle(tx, event, outcome.status, reason=outcome.reason, organization_id=outcome.organization_id)


def _attempt(tx: db.Tx, event: Event, effect: Effect) -> Outcome:
    """The effect's outcome, its writes undone where it raises. Raises Park under the subject's lock.

    Rolling back to a savepoint lets go of the locks taken since, the missing subject's too: it may
    arrive before the row says `parked`, find nothing to replay, and leave the event waiting. So the
    lock is taken again outside of the savepoint, and the effect looks once more.
    """
    locked: set[str] = set()
    while True:
        try:
            with tx.transaction():
                return effect(tx, event)
        except Park as park:
            if park.waiting_for in locked:
                raise
            lock(tx, park.waiting_for)
            locked.add(park.waiting_for)


def _replay_parked(tx: db.Tx, subject: str, senders: Senders) -> None:
    """Replays the events parked for a subject, oldest first, in the transaction that made it.

    The effect holds the subject's lock. A replay that fails must not undo the arrival: the event
    stays parked for the worker.
    """
    rows = tx.execute(
        """
        SELECT provider, event_id, body
        FROM platform.webhook_inbox
        WHERE waiting_for = %(subject)s AND status = 'parked'
        ORDER BY occurred_at, event_id
        FOR UPDATE
        """,
        {"subject": subject},
    ).fetchall()
    for row in rows:
        try:
            with tx.transaction():
                event = senders[row["provider"]].parse(row["event_id"], bytes(row["body"]))
                _apply(tx, event, senders)
        except psycopg.OperationalError:
            raise  # the connection, a deadlock, a timeout: the whole is tried again
        except Exception:  # the edge of an effect: the row stays parked, the worker retries and records it
            logger.exception("replaying %s %s failed", row["provider"], row["event_id"])


def _settle(
    tx: db.Tx,
    event: Event,
    status: Status,
    *,
    reason: str | None = None,
    waiting_for: str | None = None,
    organization_id: UUID | None = None,
) -> Status:
    tx.execute(
        f"""
        UPDATE platform.webhook_inbox
        SET status = %(status)s::platform.inbox_status,
            reason = %(reason)s,
            waiting_for = %(waiting_for)s,
            organization_id = coalesce(%(organization_id)s, organization_id),
            error = NULL,
            processed_at = CASE WHEN %(waiting_for)s::text IS NULL THEN clock_timestamp() END,
            next_attempt_at = CASE WHEN %(waiting_for)s::text IS NOT NULL
                                   THEN clock_timestamp() + {_BACKOFF} END
        WHERE provider = %(provider)s AND event_id = %(id)s
        """,
        {
            "status": status,
            "reason": reason,
            "waiting_for": waiting_for,
            "organization_id": organization_id,
            "provider": event.provider,
            "id": event.id,
        },
    )
    return status


def _record_failure(event: Event, error: BaseException) -> None:
    """A transaction of its own: the effect's was rolled back, the row with it."""
    recorded = db.run(
        lambda tx: tx.execute(
            f"""
            WITH counted AS (
                SELECT coalesce(max(attempts), 0) + 1 AS attempts
                FROM platform.webhook_inbox
                WHERE provider = %(provider)s AND event_id = %(id)s
            )
            INSERT INTO platform.webhook_inbox AS inbox
                (provider, event_id, event_type, body, status, reason, error, occurred_at, attempts,
                 next_attempt_at)
            SELECT %(provider)s, %(id)s, %(type)s, %(body)s,
                   CASE WHEN attempts >= %(most)s THEN 'dead' ELSE 'failed' END::platform.inbox_status,
                   %(reason)s, %(error)s, %(occurred_at)s, attempts,
                   CASE WHEN attempts < %(most)s THEN clock_timestamp() + {_BACKOFF} END
            FROM counted
            ON CONFLICT (provider, event_id) DO UPDATE
            SET status = EXCLUDED.status,
                reason = EXCLUDED.reason,
                error = EXCLUDED.error,
                waiting_for = NULL,
                attempts = EXCLUDED.attempts,
                next_attempt_at = EXCLUDED.next_attempt_at
            WHERE inbox.status = ANY (%(open)s::platform.inbox_status[])
            RETURNING status
            """,
            {
                "provider": event.provider,
                "id": event.id,
                "type": event.type,
                "body": event.body,
                "reason": type(error).__name__,
                "error": "".join(traceback.format_exception(error)),
                "occurred_at": event.occurred_at,
                "most": MAX_ATTEMPTS,
                "open": list(OPEN),
            },
        ).fetchone()
    )
    if recorded is not None and recorded["status"] == "dead":
        logger.error("%s %s is given up after %d attempts", event.provider, event.id, MAX_ATTEMPTS)


# ---- repetition ----


def due(limit: int) -> list[UUID]:
    """The rows whose next attempt is due, the longest waiting first."""
    rows = db.run(
        lambda tx: tx.execute(
            """
            SELECT id
            FROM platform.webhook_inbox
            WHERE status IN ('parked', 'failed') AND next_attempt_at <= clock_timestamp()
            ORDER BY next_attempt_at
            LIMIT %s
            """,
            [limit],
        ).fetchall()
    )
    return [row["id"] for row in rows]


def retry(inbox_id: UUID, senders: Senders) -> Status:
    """Applies a recorded event once more. `duplicate` where it is settled already.

    A failure is recorded and answered, not raised. Raises Unavailable where the database is not there.
    """
    row = db.run(
        lambda tx: tx.execute(
            "SELECT provider, event_id, body FROM platform.webhook_inbox WHERE id = %s", [inbox_id]
        ).fetchone()
    )
    if row is None:
        return "duplicate"
    event = senders[row["provider"]].parse(row["event_id"], bytes(row["body"]))
    try:
        return receive(event, senders)
    except Unavailable:
        raise
    except Exception:  # the edge of an effect: `receive` has recorded it
        logger.exception("%s %s failed again", event.provider, event.id)
        return "failed"


def replay(subject: str, senders: Senders) -> None:
    """Replays what is parked for a subject that arrived without an event, as by a user's first token."""

    def work(tx: db.Tx) -> None:
        lock(tx, subject)
        _replay_parked(tx, subject, senders)

    db.run(work)


# ---- subjects ----


def lock(tx: db.Tx, subject: str) -> None:
    """Takes a subject's lock until the transaction ends, whether or not it has a row yet.

    An effect that looks for a subject and one that makes it both lock it first: so an event
    parks either before its subject arrives, and is then replayed, or after, and is not parked.
    """
    tx.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [subject])
