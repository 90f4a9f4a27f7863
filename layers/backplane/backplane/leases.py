"""The lease of a generation: a model at work on a project, one at a time.

Starting takes the project's lease, a message of the day's and the month's, and a hold of credits, in one
transaction; completing settles the hold, appends the messages, saves the files and lets the project go, in
one. A failure, told or by silence, costs nothing: the credits and the messages go back where they came from.

Locks are taken in one order everywhere: the organisation's counts, the project, its credits.
"""

import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from pydantic import BaseModel

from backplane import access, db, generations, holds, limits, messages, outbox, project_status
from backplane.auth import Caller
from backplane.generations import AgentType, Generation, Row
from backplane.keys import ALPHABET, SECRET_LENGTH, hash_secret
from backplane.messages import NewMessage
from backplane.problems import Conflict, GenerationInProgress, InvalidState

LEASE_SECONDS: Final = 300  # from the start, and from each heartbeat on
LONGEST_SECONDS: Final = 7200  # from the start on, whatever heartbeats say
HOLD_SECONDS: Final = LONGEST_SECONDS + 600  # a hold outlives its lease

QUOTAS: Final = ("app.messages_per_day", "app.messages_per_month")
LAPSED: Final = "The generation was given up: nothing was heard of it until its lock expired."


class Started(BaseModel):
    id: UUID
    status: Literal["in_progress"]
    lock_token: str | None = None  # opens complete, fail and heartbeat; shown once
    lock_expires_at: datetime
    hold_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done, and what it costs."""

    agent_type: AgentType
    prompt: str
    operation: str
    quantity: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    response: str
    tokens_used: int
    messages: Sequence[NewMessage] = ()
    save: Callable[[db.Tx], int] | None = None  # puts the files it made in force and answers their version


# ---- start ----


def start(tx: db.Tx, found: access.Access, caller: Caller, work: Work) -> Started:
    """Raises NotFound, QuotaExhausted (429), InsufficientCredits (402), Unprocessable (no such
    operation), Conflict (409 generation_in_progress, with when to try again).
    """
    organization_id = found.organization_id
    counted_at = limits.take_together(tx, organization_id, QUOTAS)
    generation_id = project_status.lock(tx, found.project_id, live=True)
    _make_way(tx, found.project_id)
    hold, _ = holds.hold(
        organization_id,
        work.operation,
        work.quantity,
        key=_key(generation_id),
        actor=caller.actor,
        expires_in=HOLD_SECONDS,
        tx=tx,
    )
    token = "".join(secrets.choice(ALPHABET) for _ in range(SECRET_LENGTH))
    row = tx.execute(
        """
        INSERT INTO projects.generations
            (id, organization_id, project_id, user_id, agent_type, prompt, status, hold_id, counted_at,
             lock_token_hash, lock_expires_at)
        VALUES
            (%(id)s, %(organization_id)s, %(project_id)s, %(user_id)s, %(agent_type)s, %(prompt)s,
             'in_progress', %(hold_id)s, %(counted_at)s, %(lock_token_hash)s,
             clock_timestamp() + make_interval(secs => %(lease)s))
        RETURNING id, status, lock_expires_at, hold_id
        """,
        {
            "id": generation_id,
            "organization_id": organization_id,
            "project_id": found.project_id,
            "user_id": caller.user_id,
            "agent_type": work.agent_type,
            "prompt": work.prompt,
            "hold_id": hold.id,
            "counted_at": counted_at,
            "lock_token_hash": hash_secret(token),
            "lease": LEASE_SECONDS,
        },
    ).fetchone()
    project_status.generated(tx, found.project_id, "generating")
    return Started.model_validate({**(row or {}), "lock_token": token})


def _make_way(tx: db.Tx, project_id: UUID) -> None:
    """Raises Conflict where another generation has the lease; ends one whose lease is over."""
    running = generations.running(tx, project_id)
    if running is None:
        return
    if running.seconds_left > 0:
        raise GenerationInProgress(
            "A generation is in progress on this project. Wait for its end, or until its lock expires.",
            retry_after=max(1, math.ceil(running.seconds_left)),
        )
    _fail(tx, running, LAPSED, actor="system")


# ---- the end ----


def heartbeat(
    tx: db.Tx, caller: Caller, generation_id: UUID, lock_token: str, *, last_entry_id: str | None
) -> datetime:
    """Prolongs the lease and answers its new end; notes where the stream may resume. Raises NotFound,
    Conflict (409 invalid_state: the lease is lost).
    """
    running = generations.of_token(tx, caller, generation_id, lock_token)
    row = tx.execute(
        """
        UPDATE projects.generations
        SET lock_expires_at = least(clock_timestamp() + make_interval(secs => %(lease)s),
                                    created_at + make_interval(secs => %(longest)s))
        WHERE id = %(id)s AND status = 'in_progress' AND lock_expires_at > clock_timestamp()
        RETURNING lock_expires_at
        """,
        {"id": generation_id, "lease": LEASE_SECONDS, "longest": LONGEST_SECONDS},
    ).fetchone()
    if row is None:
        raise _stale(generations.of_token(tx, caller, generation_id, lock_token))
    if last_entry_id is not None:
        tx.execute(
            "UPDATE projects.settings SET last_entry_id = %s WHERE project_id = %s",
            [last_entry_id, running.project_id],
        )
    expires_at: datetime = row["lock_expires_at"]
    return expires_at


def read(caller: Caller, generation_id: UUID, lock_token: str) -> Row:
    """A generation that may be completed, or is: for whoever has work to do before. Raises NotFound, Conflict
    (409 invalid_state: the lease is lost).
    """
    return db.run(
        lambda tx: _completable(tx, caller, generation_id, lock_token), organization_id=caller.organization_id
    )


def _completable(tx: db.Tx, caller: Caller, generation_id: UUID, lock_token: str) -> Row:
    running = generations.of_token(tx, caller, generation_id, lock_token)
    if running.status != "completed" and (running.status != "in_progress" or running.seconds_left <= 0):
        raise _stale(running)
    return running


def complete(tx: db.Tx, caller: Caller, generation_id: UUID, lock_token: str, result: Result) -> Generation:
    """Settles, appends the messages, saves the files and lets the project go; a repetition answers the same.
    Raises NotFound, Conflict (409 invalid_state: the lease is lost) and what saving raises.
    """
    running = generations.of_token(tx, caller, generation_id, lock_token)
    project_status.lock(tx, running.project_id)
    running = _completable(tx, caller, generation_id, lock_token)
    if running.status == "completed":
        return generations.read(tx, generation_id)
    files_version = None if result.save is None else result.save(tx)
    if running.hold_state != "settled":  # by the server itself, at an amount of its own
        holds.settle(
            running.organization_id, running.hold_id, key=_key(generation_id), actor=caller.actor, tx=tx
        )
    messages.append(tx, running.project_id, result.messages, created_by=running.user_id)
    tx.execute(
        """
        UPDATE projects.generations
        SET status = 'completed',
            response = %(response)s,
            tokens_used = %(tokens_used)s,
            files_version = %(files_version)s,
            completed_at = clock_timestamp(),
            duration_ms = extract(epoch FROM clock_timestamp() - created_at) * 1000
        WHERE id = %(id)s
        """,
        {
            "id": generation_id,
            "response": result.response,
            "tokens_used": result.tokens_used,
            "files_version": files_version,
        },
    )
    project_status.generated(tx, running.project_id, "ready")
    outbox.append(
        tx,
        "generation.completed",
        organization_id=running.organization_id,
        payload={
            "generation_id": str(generation_id),
            "project_id": str(running.project_id),
            "tokens_used": result.tokens_used,
        },
    )
    return generations.read(tx, generation_id)


def fail(tx: db.Tx, caller: Caller, generation_id: UUID, lock_token: str, error_message: str) -> Generation:
    """Gives everything back; a repetition answers the same. Raises NotFound, Conflict (409
    invalid_state: it is completed).
    """
    running = _locked(tx, generations.of_token(tx, caller, generation_id, lock_token))
    if running.status == "completed":
        raise _stale(running)
    if running.status == "in_progress":
        _fail(tx, running, error_message, actor=caller.actor)
    return generations.read(tx, generation_id)


def abandon(tx: db.Tx, project_id: UUID, why: str, *, actor: str) -> None:
    """Ends what is in progress on a project, and keeps others from starting until the transaction ends."""
    running = generations.running(tx, project_id)
    if running is not None:
        _locked(tx, running)
    else:
        project_status.lock(tx, project_id)
    running = generations.running(tx, project_id)
    if running is not None:
        _fail(tx, running, why, actor=actor)


def lapsed(tx: db.Tx, *, limit: int) -> list[UUID]:
    """Generations whose lease is over and which nobody has ended, the oldest first."""
    rows = tx.execute(
        """
        SELECT id
        FROM projects.generations
        WHERE status = 'in_progress' AND lock_expires_at <= statement_timestamp()
        ORDER BY lock_expires_at
        LIMIT %s
        """,
        [limit],
    ).fetchall()
    return [row["id"] for row in rows]


def give_up(tx: db.Tx, generation_id: UUID) -> bool:
    """Ends a generation whose lease is over. Answers whether it still was in progress."""
    found = generations.find(tx, "g.id = %(id)s", id=generation_id)
    running = None if found is None else _locked(tx, found)
    if running is None or running.status != "in_progress" or running.seconds_left > 0:
        return False
    _fail(tx, running, LAPSED, actor="system")
    return True


def _fail(tx: db.Tx, running: Row, error_message: str, *, actor: str) -> None:
    limits.give_back_together(tx, running.organization_id, QUOTAS, at=running.counted_at)
    if running.hold_state == "open":
        holds.release(running.organization_id, running.hold_id, key=_key(running.id), actor=actor, tx=tx)
    tx.execute(
        """
        UPDATE projects.generations
        SET status = 'failed',
            error_message = %(error_message)s,
            completed_at = clock_timestamp(),
            duration_ms = extract(epoch FROM clock_timestamp() - created_at) * 1000
        WHERE id = %(id)s
        """,
        {"id": running.id, "error_message": error_message},
    )
    project_status.generated(tx, running.project_id, "error")
    outbox.append(
        tx,
        "generation.failed",
        organization_id=running.organization_id,
        payload={"generation_id": str(running.id), "project_id": str(running.project_id)},
    )


# ---- locks ----


def _locked(tx: db.Tx, running: Row) -> Row:
    """The generation as it stands once the counts and the project are ours."""
    limits.give_back_together(
        tx, running.organization_id, QUOTAS, 0, at=running.counted_at
    )  # only their lock
    project_status.lock(tx, running.project_id)
    again = generations.find(tx, "g.id = %(id)s", id=running.id)
    if again is None:
        raise generations.missing()
    return again


def _key(generation_id: UUID) -> str:
    return f"generation:{generation_id}"


def _stale(row: Row) -> Conflict:
    why = {"completed": "is completed", "failed": "has failed"}.get(row.status, "lost its lock to time")
    return InvalidState(f"The generation {why}: its lock token opens nothing any more.")
