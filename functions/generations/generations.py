"""Generations: a model at work on a project, started by its people and ended by the servers that run it."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Self
from uuid import UUID

from pydantic import BaseModel, Field, model_validator

from backplane import access, api, db, files, leases, paging, sent_files
from backplane import generations as stored
from backplane.auth import Caller
from backplane.file_changes import Operation
from backplane.messages import NewMessage
from backplane.problems import (
    Conflict,
    GenerationInProgress,
    InsufficientCredits,
    InvalidState,
    PlanLimitReached,
    QuotaExhausted,
)

MAX_TOKENS = 1_000_000_000
MAX_MESSAGES = 100
FINISH = "generations:finish"

router = api.Router()

LockToken = Annotated[str, Field(min_length=1, max_length=200)]


class NewGeneration(api.Body):
    agent_type: stored.AgentType
    prompt: str = Field(min_length=1, max_length=100_000, pattern=r"\S")
    operation: str = Field(min_length=1, max_length=63)
    quantity: int = Field(default=1, ge=1, le=1_000_000)


class Completion(api.Body):
    lock_token: LockToken
    response: str = Field(max_length=500_000)
    tokens_used: int = Field(ge=0, le=MAX_TOKENS)
    messages: list[NewMessage] = Field(default_factory=list, max_length=MAX_MESSAGES)
    files: list[sent_files.File] | None = sent_files.NOT_LOGGED
    bundle_id: sent_files.BundleId | None = None  # instead of files: a bundle of them that was uploaded
    files_operation: Operation = "upsert"
    base_version: sent_files.Base | None = None  # of the files

    @model_validator(mode="after")
    def _whole(self) -> Self:
        sent_files.check(self.files_operation, self.files, self.bundle_id)
        return self

    @property
    def brings_files(self) -> bool:
        """An empty list changes nothing, unless it is to replace all there is."""
        return (
            bool(self.files)
            or self.bundle_id is not None
            or (self.files is not None and self.files_operation == "replace")
        )


class Failure(api.Body):
    lock_token: LockToken
    error_message: str = Field(min_length=1, max_length=10_000, pattern=r"\S")


class Heartbeat(api.Body):
    lock_token: LockToken
    last_entry_id: Annotated[str, Field(min_length=1, max_length=200)] | None = None


class Lease(BaseModel):
    lock_expires_at: datetime


@router.post(
    "/v1/projects/<project_id>/generations",
    scope="credits:spend",
    status_code=201,
    shown_once=("lock_token",),
    raises=(GenerationInProgress, InsufficientCredits, InvalidState, QuotaExhausted),
)
def start(project_id: UUID, body: NewGeneration, caller: api.Caller, tx: api.Tx) -> leases.Started:
    """Takes a project for a model to work on: locks it and holds the credits.

    `lock_token` is shown this once. Whoever has it can end the generation, and send heartbeats so that
    the lock does not expire.
    """
    found = access.enter(tx, caller, project_id, "credits:spend")
    work = leases.Work(**body.model_dump())
    return leases.start(tx, found, caller, work)


@router.get("/v1/projects/<project_id>/generations", scope="read")
def generations(
    project_id: UUID, caller: api.Caller, tx: api.Tx, limit: paging.Limit = 20, cursor: paging.Cursor = None
) -> paging.Page[stored.Generation]:
    """A project's generations, newest first."""
    access.enter(tx, caller, project_id, "read")
    before = paging.decode_cursor(cursor, UUID)
    found = stored.newest(tx, project_id, before=before, limit=limit + 1)
    return paging.page(found, limit, lambda last: last.id)


@router.get("/v1/generations/<generation_id>", scope="read")
def generation(generation_id: UUID, caller: api.Caller, tx: api.Tx) -> stored.Generation:
    """A generation: how it goes, or how it ended."""
    access.enter(tx, caller, stored.project_of(tx, generation_id), "read", deleted=True)
    return stored.read(tx, generation_id)


@router.post("/v1/generations/<generation_id>/heartbeat", scope=FINISH, raises=(InvalidState,))
def heartbeat(generation_id: UUID, body: Heartbeat, caller: api.Caller, tx: api.Tx) -> Lease:
    """Says that work goes on: the lock lasts longer."""
    expires_at = leases.heartbeat(
        tx, caller, generation_id, body.lock_token, last_entry_id=body.last_entry_id
    )
    return Lease(lock_expires_at=expires_at)


@router.post(
    "/v1/generations/<generation_id>/complete",
    scope=FINISH,
    raises=(Conflict, InsufficientCredits, InvalidState, PlanLimitReached, files.VersionConflict),
)
def complete(
    generation_id: UUID, body: Completion, caller: api.Caller, commit: api.Commit
) -> stored.Generation:
    """Ends a generation with its result: settles the hold, saves the files, appends the messages, unlocks the
    project.

    Files of more than 6 MB in all come as a bundle: `POST /v1/projects/{id}/files/bundles`, upload it, then
    complete with its `bundle_id`.
    """

    def end(tx: db.Tx, save: Callable[[db.Tx], files.Saved] | None = None) -> stored.Generation:
        result = leases.Result(
            response=body.response,
            tokens_used=body.tokens_used,
            messages=body.messages,
            save=save and (lambda tx: save(tx).version),
        )
        return leases.complete(tx, caller, generation_id, body.lock_token, result)

    running = leases.read(caller, generation_id, body.lock_token) if body.brings_files else None
    if running is None or running.status == "completed":
        ended: stored.Generation = commit(end)
        return ended
    return _save(caller, running, body, lambda save: commit(lambda tx: end(tx, save)))


def _save(
    caller: Caller,
    running: stored.Row,
    body: Completion,
    commit_with: Callable[[Callable[[db.Tx], files.Saved]], stored.Generation],
) -> stored.Generation:
    change = files.Change(
        operation=body.files_operation,
        files=sent_files.named(caller, running.project_id, body.files, body.bundle_id, FINISH),
        base_version=body.base_version,
        bundle_id=body.bundle_id,
    )
    author = files.Author(running.user_id, FINISH)
    return files.save(caller, running.project_id, change, commit_with, author=author)


@router.post("/v1/generations/<generation_id>/fail", scope=FINISH, raises=(InvalidState,))
def fail(generation_id: UUID, body: Failure, caller: api.Caller, tx: api.Tx) -> stored.Generation:
    """Ends a generation without a result: its credits are available again, the project is unlocked."""
    return leases.fail(tx, caller, generation_id, body.lock_token, body.error_message)


handler = api.lambda_handler(router)
