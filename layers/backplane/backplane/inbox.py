"""The webhook inbox: every event once, in whatever order and however often it is delivered.

`receive` applies the event's effect and records it in one transaction, so a 2xx means durable. A
repetition cannot record the event again, and is undone with all that its effect did. An effect is a
function of (tx, event) that answers what became of it, or raises:

    Park        its subject is not there yet; replayed when an outcome says it arrived, or by the worker
    Quarantine  validly signed, impossible to apply, however often it is tried
    any other   a passing cause: rolled back, recorded as failed, answered 500, tried again
"""

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import psycopg
from psycopg.types.json import Jsonb

from backplane import db
from backplane.problems import InvalidPayload, Unavailable

logger = logging.getLogger("backplane.inbox")

Provider = Literal["stripe", "clerk", "eas", "vercel", "github"]
Status = Literal["processed", "duplicate", "ignored", "stale", "parked", "quarantined", "failed", "dead"]

# What a repetition may still change, the sender's or the worker's; every other row answers `duplicate`.
OPEN = ("parked", "failed", "dead")
# What a person may have tried anew: a poison event whose cure was deployed, a kind that has an effect since.
REPLAYABLE = (*OPEN, "quarantined", "ignored")

# A failed event is given up after about a day of the worker's tries. A parked one waits for ever.
MAX_ATTEMPTS = 12
MAX_ERROR = 10_000  # characters of a traceback, its end


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a sender's API said of an event's subject, asked for outside of any transaction."""

    began_at: datetime  # on the database's clock, before asking: what is said is not older
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A verified event. `data` is the parsed body, `body` what is kept of it to apply it again."""

    provider: Provider
    id: str
    type: str
    occurred_at: datetime
    data: Mapping[str, Any]
    body: bytes | None
    person: str | None = None  # Clerk's id of the user whom the body tells of
    defect: str | None = None  # why it can never be applied, where its envelope shows that already
    fetched: Fetched | None = None  # None: the event's own word is all there is


@dataclass(frozen=True, slots=True)
class Outcome:
    status: Literal["processed", "stale", "ignored", "parked"] = "processed"
    reason: str | None = None
    organization_id: UUID | None = None
    arrived: tuple[str, ...] = ()  # subjects this effect made: what is parked for them is replayed
    waiting_for: str | None = None  # parked with a part of its effect standing; its lock is held


Effect = Callable[[db.Tx, Event], Outcome]


@dataclass(frozen=True, slots=True)
class Sender:
    """How a provider's recorded events are read back and applied. `parse(id, body)`.

    `fetch` asks the sender what an event is about before its transaction begins. Parked events that an
    arrival replays do without, as they are in a transaction already: for what is parked still it comes after.

    `at_once` applies and records an event by one statement that commits by itself, and answers what became
    of it; or None, having changed nothing, where it takes its effect. For kinds that come by the thousand.
    """

    parse: Callable[[str, bytes], Event]
    effects: Mapping[str, Effect]
    fetch: Callable[[Event], Fetched | None] = lambda _: None
    at_once: Mapping[str, Callable[[Event], Status | None]] = field(default_factory=dict)


Senders = Mapping[Provider, Sender]


class Park(Exception):  # noqa: N818  an outcome, not an error
    """The event's subject is missing. `waiting_for` names it, e.g. `stripe.customer:cus_…`."""

    def __init__(self, waiting_for: str, reason: str) -> None:
        super().__init__(reason)
        self.waiting_for = waiting_for
        self.reason = reason


class Quarantine(Exception):  # noqa: N818
    """The event can never be applied."""

    def __init__(self, reason: str, organization_id: UUID | None = None) -> None:
        super().__init__(reason)
        self.organization_id = organization_id


class _Settled(Exception):  # noqa: N818
    """The event was recorded meanwhile, and what became of it stands."""


def receive(event: Event, senders: Senders, *, anew: bool = False) -> Status:
    """Records the event and applies it, once. With `anew`, also what was put aside (REPLAYABLE), as if
    it had just come.

    Raises Unavailable where the database is not there (nothing is recorded then), and whatever
    the effect raised, after recording it: the sender must hear a 5xx to try again.
    """
    unfetched: list[Event] = []
    try:
        if event.defect is None:
            event = replace(event, fetched=senders[event.provider].fetch(event))
        status = _receive(event, senders, anew, unfetched)
    except Unavailable:
        raise
    except _Settled:
        return "duplicate"
    except Exception as error:  # the edge of an effect: recorded, then passed on
        try:
            _record_failure(event, error, anew)
        except _Settled:
            return "duplicate"  # applied by another delivery, whose effect was in this one's way
        raise
    _fetch_and_apply(unfetched, senders)
    return status


def _fetch_and_apply(events: list[Event], senders: Senders) -> None:
    """What an arrival replayed in its transaction, where nothing is fetched, and what is parked still: now
    its sender is asked. Whatever fails is the worker's to try again: the arrival itself stands.
    """
    for event in events:
        try:
            if (fetched := senders[event.provider].fetch(event)) is not None:
                _receive(replace(event, fetched=fetched), senders, anew=False, unfetched=[])
        except _Settled:
            continue
        except Exception:  # the edge of an effect
            logger.exception("replaying %s %s failed", event.provider, event.id)


def unapplied_at(event: Event) -> datetime | None:
    """The database's time, or None where the event was applied before and need not be fetched for."""
    row = db.call(
        """
        SELECT clock_timestamp() AS now, EXISTS (
            SELECT 1
            FROM platform.webhook_inbox
            WHERE provider = %(provider)s AND event_id = %(id)s AND status IN ('processed', 'stale')
        ) AS applied
        """,
        {"provider": event.provider, "id": event.id},
        repeatable=True,
    )
    return None if row is None or row["applied"] else row["now"]


def _receive(event: Event, senders: Senders, anew: bool, unfetched: list[Event]) -> Status:
    """Most events apply, many at once: the first try has no savepoint to return to, which costs two round
    trips. What cannot be applied is undone whole, and tried again with one. `unfetched` gets what it
    replayed in vain.
    """
    sender = senders[event.provider]
    effect = sender.effects.get(event.type)
    if event.defect is not None or effect is None:
        return db.run(lambda tx: _apply(tx, event, senders, anew=anew, unfetched=unfetched))
    at_once = sender.at_once.get(event.type)

    def work(tx: db.Tx) -> Status:
        return _conclude(tx, event, effect(tx, event), senders, anew=anew, unfetched=unfetched)

    try:
        if at_once is not None and not anew and (status := at_once(event)) is not None:
            return status
        return db.run(work)
    except (Park, Quarantine):
        return db.run(lambda tx: _apply(tx, event, senders, anew=anew, unfetched=unfetched))


def _apply(
    tx: db.Tx, event: Event, senders: Senders, *, anew: bool = False, unfetched: list[Event]
) -> Status:
    """Applies one event, or undoes its effect, and records what became of it. Raises _Settled."""
    if event.defect is not None:
        return _record(tx, event, "quarantined", reason=event.defect, anew=anew)
    effect = senders[event.provider].effects.get(event.type)
    if effect is None:
        return _record(tx, event, "ignored", reason=f"{event.type} has no effect here", anew=anew)
    try:
        outcome = _attempt(tx, event, effect)
    except Park as park:
        return _record(tx, event, "parked", reason=park.reason, waiting_for=park.waiting_for, anew=anew)
    except Quarantine as quarantine:
        return _record(
            tx,
            event,
            "quarantined",
            reason=str(quarantine),
            organization_id=quarantine.organization_id,
            anew=anew,
        )
    return _conclude(tx, event, outcome, senders, anew=anew, unfetched=unfetched)


def _conclude(
    tx: db.Tx, event: Event, outcome: Outcome, senders: Senders, *, anew: bool, unfetched: list[Event]
) -> Status:
    status = _record(
        tx,
        event,
        outcome.status,
        reason=outcome.reason,
        waiting_for=outcome.waiting_for,
        organization_id=outcome.organization_id,
        anew=anew,
    )
    for subject in outcome.arrived:
        unfetched += _replay_parked(tx, subject, senders)
    return status


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


def _replay_parked(tx: db.Tx, subject: str, senders: Senders) -> list[Event]:
    """Replays the events parked for a subject, oldest first, in the transaction that made it. Answers those
    that are parked still.

    The effect holds the subject's lock. A replay that fails must not undo the arrival: the event
    stays parked for the worker.
    """
    rows = tx.execute(
        """
        SELECT provider, event_id, event_type, occurred_at, body
        FROM platform.webhook_inbox
        WHERE waiting_for = %(subject)s AND status = 'parked' AND body IS NOT NULL
        ORDER BY occurred_at, event_id
        FOR UPDATE
        """,
        {"subject": subject},
    ).fetchall()
    parked: list[Event] = []
    for row in rows:
        event = read_back(row, senders)
        try:
            with tx.transaction():
                if _apply(tx, event, senders, unfetched=parked) == "parked":
                    parked.append(event)
        except _Settled:
            continue  # by an arrival further down
        except psycopg.OperationalError:
            raise  # the connection, a deadlock, a timeout: the whole is tried again
        except Exception:  # the edge of an effect: the row stays parked, the worker retries and records it
            logger.exception("replaying %s %s failed", row["provider"], row["event_id"])
    return parked


def read_back(row: Mapping[str, Any], senders: Senders) -> Event:
    """A recorded event from its provider, event_id, event_type, occurred_at and body."""
    body = bytes(row["body"])
    try:
        return senders[row["provider"]].parse(row["event_id"], body)
    except InvalidPayload as refusal:  # it was let in by a reader that was less strict
        return Event(
            provider=row["provider"],
            id=row["event_id"],
            type=row["event_type"],
            occurred_at=row["occurred_at"],
            data={},
            body=body,
            defect=refusal.detail,
        )


def _record(
    tx: db.Tx,
    event: Event,
    status: Status,
    *,
    reason: str | None = None,
    waiting_for: str | None = None,
    organization_id: UUID | None = None,
    error: str | None = None,
    anew: bool = False,
) -> Status:
    """Writes what became of an event. Raises _Settled where that stands already: the row is what makes
    an event apply once, so the caller's transaction must not commit then.
    """
    told = row(event) | {
        "status": status,
        "reason": reason,
        "waiting_for": waiting_for,
        "organization_id": None if organization_id is None else str(organization_id),
        "error": error,
    }
    recorded = tx.execute(
        _RECORD,
        {
            "event": Jsonb(told),
            "body": event.body,
            "anew": anew,
            "changeable": list(REPLAYABLE if anew else OPEN),
            "most": MAX_ATTEMPTS,
        },
    ).fetchone()
    if recorded is None or recorded["status"] is None:
        raise _Settled
    became: Status = recorded["status"]
    return became


_RECORD = """
    SELECT platform.record_event(
        jsonb_populate_record(NULL::platform.webhook_inbox, %(event)s), %(body)s, %(anew)s,
        %(changeable)s::platform.inbox_status[], %(most)s
    ) AS status
"""


def row(event: Event) -> dict[str, Any]:
    """What the inbox keeps of an event besides its body, as JSON has it."""
    return {
        "provider": event.provider,
        "event_id": event.id,
        "event_type": event.type,
        "person": event.person,
        "occurred_at": event.occurred_at.isoformat(),
    }


def _record_failure(event: Event, error: BaseException, anew: bool = False) -> None:
    """In a transaction of its own: the effect's was rolled back. Raises _Settled."""
    told = "".join(traceback.format_exception(error))[-MAX_ERROR:]
    recorded = db.run(
        lambda tx: _record(
            tx,
            event,
            "failed",
            reason=type(error).__name__,
            # An error may quote what PostgreSQL's text cannot hold.
            error=told.replace("\x00", "").encode(errors="replace").decode(),
            anew=anew,
        )
    )
    if recorded == "dead":
        logger.error("%s %s is given up after %d attempts", event.provider, event.id, MAX_ATTEMPTS)


# ---- subjects ----


def replay(subject: str, senders: Senders) -> None:
    """Replays what is parked for a subject that arrived without an event, as by a user's first token."""

    def work(tx: db.Tx) -> list[Event]:
        lock(tx, subject)
        return _replay_parked(tx, subject, senders)

    _fetch_and_apply(db.run(work), senders)


def lock(tx: db.Tx, subject: str) -> None:
    """Takes a subject's lock until the transaction ends, whether or not it has a row yet.

    An effect that looks for a subject and one that makes it both lock it first: so an event
    parks either before its subject arrives, and is then replayed, or after, and is not parked.
    """
    tx.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [subject])
