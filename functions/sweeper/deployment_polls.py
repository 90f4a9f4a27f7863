"""Deployments of which nothing was heard for too long: their providers are asked, and what they say goes the
same way as a callback. docs/deployments.md tells the deadlines.

Each is taken by one sweeper, for the time until it is due again: a sweeper that dies leaves it to the next
one. The provider is asked outside of any transaction.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias
from uuid import UUID

import eas_api
import github_api
import psycopg
import vercel_api
from aws_lambda_powertools import Logger
from provider_http import Unheard

from backplane import db, deployment_rows, deployments, integrations
from backplane.deployment_reports import TERMINAL, EventKind, Report, Status
from backplane.field_encryption import UnreadableFieldError
from backplane.integrations import Credentials, Type
from backplane.problems import Problem, Unavailable

# Until the next question, longer each time, with a part by chance so that what came together parts.
REST: Final = "least(interval '1 hour', interval '2 minutes' * 2 ^ least(polls, 10)) * (1 + random() / 4)"
TROUBLE: Final = 5  # polls in a row that a provider may be in trouble for, before people are told
GIVE_UP: Final = "interval '24 hours'"  # of not knowing

Ask: TypeAlias = Callable[[Credentials, str], Report | None]
ASK: Final[Mapping[str, tuple[Type, Ask]]] = {
    "eas": ("expo", eas_api.ask),
    "vercel": ("vercel", vercel_api.ask),
    "github": ("github", github_api.ask),
}

logger = Logger(child=True)


@dataclass(frozen=True, slots=True)
class Due:
    id: UUID
    organization_id: UUID
    project_id: UUID
    created_by: UUID | None
    provider: str | None
    builds: list[str]  # that are not over


def sweep(*, most: int, ends: float) -> list[bool | None]:
    """Asks about what is due, until `ends` on time.monotonic's clock. Answers of each whether its provider
    told; None: ours is the trouble. A provider that can't be reached is left alone for the rest of the
    sweep, so that others' users do not wait for it.
    """
    told: list[bool | None] = []
    unreachable: set[str] = set()
    while len(told) < most and time.monotonic() < ends:
        due = db.run(lambda tx: claim(tx, sorted(unreachable)))
        if due is None:
            break
        try:
            silence = _poll(due, ends)
        except (psycopg.Error, Problem):
            logger.exception("a deployment could not be asked about", deployment_id=str(due.id))
            told.append(None)
            continue
        if silence is not None and silence.unreachable and due.provider is not None:
            unreachable.add(due.provider)
        told.append(silence is None)
    return told


def _poll(due: Due, ends: float) -> Unheard | None:
    """Asks about one, and stores what was told. Answers why not all was."""
    reports: list[Report] = []
    silence: Unheard | None = None
    try:
        credentials, ask = _way(due)
        for external_id in due.builds:
            if (report := ask(credentials, external_id)) is not None:
                reports.append(report)
            if time.monotonic() > ends:
                break  # the others when it is due again
    except Unheard as unheard_of:
        silence = unheard_of
    for report in reports:  # a step a transaction: each takes its locks in their order
        _advance(due, report)
    db.run(lambda tx: heard(tx, due.id) if silence is None else unheard(tx, due.id, silence))
    logger.info("polled", deployment_id=str(due.id), told=len(reports), silence=silence and silence.reason)
    return silence


def _advance(due: Due, report: Report) -> None:
    db.run(lambda tx: deployments.advance(tx, due.id, report))


def claim(tx: db.Tx, avoided: list[str]) -> Due | None:
    """The one that is due first, that no other sweeper is taking, and of none of these providers."""
    row = tx.execute(
        f"""
        UPDATE deploys.deployments AS d
        SET polls = polls + 1,
            next_poll_at = clock_timestamp() + {REST}
        WHERE id = (
            SELECT id
            FROM deploys.deployments
            WHERE finished_at IS NULL
              AND next_poll_at <= clock_timestamp()
              AND (provider IS NULL OR provider::text <> ALL (%(avoided)s))
            ORDER BY next_poll_at
            LIMIT 1
            FOR NO KEY UPDATE SKIP LOCKED
        )
        RETURNING id, organization_id, project_id, created_by, provider::text,
                  ARRAY(
                      SELECT j.external_id
                      FROM deploys.provider_jobs AS j
                      WHERE j.organization_id = d.organization_id
                        AND j.deployment_id = d.id
                        AND j.kind = 'build'
                        AND j.status IN ('pending', 'in_progress')
                      ORDER BY j.external_id
                  ) AS builds
        """.encode(),
        {"avoided": avoided},
    ).fetchone()
    return None if row is None else Due(**row)


def _way(due: Due) -> tuple[Credentials, Ask]:
    """How to ask about it. Raises Unheard."""
    if due.provider is None or due.provider not in ASK:
        raise Unheard("nobody knows a provider who could be asked")
    if not due.builds:
        raise Unheard("no build was named to ask about")
    type_, ask = ASK[due.provider]
    row = db.run(
        lambda tx: integrations.find_credentials(
            tx, due.organization_id, type_, due.project_id, user_id=due.created_by
        )
    )
    if row is None:
        raise Unheard(f"no integration of type {type_} is set up to ask with")
    try:
        return integrations.read_credentials(row), ask
    except UnreadableFieldError as error:
        logger.exception("credentials can't be read", integration_id=str(row["id"]))
        raise Unheard("the integration's credentials can't be read: set it up again") from error
    except Unavailable as error:
        raise Unheard("the integration's credentials can't be read at the moment", passing=True) from error


# ---- what became of it ----


def heard(tx: db.Tx, deployment_id: UUID) -> None:
    """The provider told, if only that nothing has changed."""
    tx.execute(
        """
        UPDATE deploys.deployments
        SET unheard = 0, stale_at = NULL, stale_reason = NULL
        WHERE id = %s AND (unheard > 0 OR stale_at IS NOT NULL)
        """,
        [deployment_id],
    )


def unheard(tx: db.Tx, deployment_id: UUID, silence: Unheard) -> None:
    """People are told once, and after a day of it the deployment is given up."""
    deployment = deployment_rows.lock(tx, deployment_id, counts=True)
    if deployment is None or deployment.status in TERMINAL:
        return
    row = tx.execute(
        f"""
        UPDATE deploys.deployments
        SET unheard = unheard + 1,
            next_poll_at = greatest(next_poll_at, clock_timestamp() + make_interval(secs => %(rest)s))
        WHERE id = %(id)s
        RETURNING unheard, stale_at < clock_timestamp() - {GIVE_UP} AS over
        """.encode(),
        {"id": deployment_id, "rest": silence.retry_after},
    ).fetchone()
    if row is None or (silence.passing and deployment.stale_at is None and row["unheard"] < TROUBLE):
        return
    if row["over"]:
        why = f"Given up: nothing was heard of it for more than a day. Last, {silence.reason}."
        deployments.advance(tx, deployment_id, _said("failed", "given_up", why))
    elif deployment.stale_at is None:
        _go_stale(tx, deployment, silence.reason)


def _go_stale(tx: db.Tx, deployment: deployment_rows.Deployment, reason: str) -> None:
    tx.execute(
        "UPDATE deploys.deployments SET stale_at = clock_timestamp(), stale_reason = %s WHERE id = %s",
        [reason, deployment.id],
    )
    status = deployment.status
    deployment_rows.record(
        tx, deployment, "went_stale", status, _said(status, "went_stale", reason), detail=reason
    )
    deployments.announce(tx, "deployment.stale", deployment, status)


def _said(status: Status, kind: EventKind, why: str) -> Report:
    return Report(status=status, source="sweeper", kind=kind, actor="system", error=why)
