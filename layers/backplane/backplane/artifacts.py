"""What builds leave at their providers for a while, and our copies of it.

pending → copying → stored, or failed in the end; a copy that fails in passing is pending again and rests. An
artefact is copied by whoever claimed it last: what an earlier one finds out afterwards no longer counts.
None of this changes a deployment's state. But for `stored`, the functions take a transaction that sees every
organisation.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Literal
from uuid import UUID

from backplane import db, limits, outbox, stored_objects
from backplane.deployment_reports import Report
from backplane.stored_objects import Granted

Kind = Literal["android", "ios", "archive", "logs"]
State = Literal["pending", "copying", "stored", "failed"]

MAX_ATTEMPTS: Final = 12  # about a day
LEASE: Final = timedelta(minutes=16)  # longer than a function may run


@dataclass(frozen=True, slots=True)
class Artifact:
    id: UUID
    organization_id: UUID
    project_id: UUID
    deployment_id: UUID
    kind: Kind


@dataclass(frozen=True, slots=True)
class Claim(Artifact):
    """One to copy now, and by which attempt."""

    source_url: str
    attempts: int
    app_version: str | None
    build_number: str | None
    deleted: bool  # its deployment is

    def __repr__(self) -> str:  # whoever has the URL has the artefact
        return f"Claim(id={self.id}, kind={self.kind}, attempts={self.attempts})"


@dataclass(frozen=True, slots=True)
class Copy:
    """What was put into the bucket."""

    granted: Granted
    s3_version: str
    bytes: int
    sha256: str


# ---- offered ----


def offer(tx: db.Tx, deployment_id: UUID, report: Report) -> None:
    """Takes down what a build that ended well left at its provider, for the copier; each once."""
    if report.provider != "eas" or report.job != "build" or report.status != "successful":
        return
    if report.source not in {"callback", "poll"}:  # what people tell of is theirs to keep
        return
    urls: dict[Kind, str | None] = {"android": report.urls.android, "ios": report.urls.ios}
    if not any(urls.values()):
        urls = {"archive": report.urls.archive}
    for kind, url in urls.items():
        if url is not None:
            _offer(tx, deployment_id, kind, url, report.artifact_expires_at)


def _offer(tx: db.Tx, deployment_id: UUID, kind: Kind, url: str, expires_at: datetime | None) -> None:
    row = tx.execute(
        """
        INSERT INTO deploys.artifacts
            (organization_id, project_id, deployment_id, kind, source_url, expires_at)
        SELECT organization_id, project_id, id, %(kind)s, %(url)s, %(expires_at)s
        FROM deploys.deployments
        WHERE id = %(deployment_id)s
        ON CONFLICT (organization_id, deployment_id, kind) DO NOTHING
        RETURNING id, organization_id, project_id, deployment_id, kind
        """,
        {"deployment_id": deployment_id, "kind": kind, "url": url, "expires_at": expires_at},
    ).fetchone()
    if row is not None:
        _tell(tx, "artifact.offered", Artifact(**row))


# ---- claimed ----


def due(tx: db.Tx) -> UUID | None:
    """One whose rest is over, or whose copier was never heard of again."""
    row = tx.execute(
        """
        SELECT id
        FROM deploys.artifacts
        WHERE next_attempt_at <= clock_timestamp()
        ORDER BY next_attempt_at
        LIMIT 1
        """
    ).fetchone()
    return None if row is None else row["id"]


def claim(tx: db.Tx, artifact_id: UUID) -> Claim | None:
    """The artefact, for LEASE, if it is to be copied now."""
    row = tx.execute(
        """
        UPDATE deploys.artifacts AS a
        SET state = 'copying', attempts = a.attempts + 1, next_attempt_at = clock_timestamp() + %(lease)s
        FROM deploys.deployments AS d
        WHERE a.id = %(id)s AND a.next_attempt_at <= clock_timestamp() AND d.id = a.deployment_id
        RETURNING a.id, a.organization_id, a.project_id, a.deployment_id, a.kind, a.source_url, a.attempts,
                  d.app_version, d.build_number, d.deleted_at IS NOT NULL AS deleted
        """,
        {"id": artifact_id, "lease": LEASE},
    ).fetchone()
    return None if row is None else Claim(**row)


def reserve(tx: db.Tx, claim: Claim, *, name: str, content_type: str, size: int) -> Granted:
    """A place in the bucket for a copy of so many bytes. Raises PlanLimitReached."""
    stored_objects.make_room(tx, claim.organization_id, size)
    row = tx.execute(
        """
        INSERT INTO storage.objects
            (organization_id, project_id, kind, s3_key, name, content_type, bytes, expires_at, id)
        SELECT %(organization_id)s, %(project_id)s, 'artifact',
               'artifacts/' || %(project_id)s::text || '/' || new.id,
               %(name)s, %(content_type)s, %(size)s, clock_timestamp() + %(lease)s, new.id
        FROM (SELECT platform.new_id() AS id) AS new
        RETURNING id, s3_key
        """,
        {
            "organization_id": claim.organization_id,
            "project_id": claim.project_id,
            "name": name,
            "content_type": content_type,
            "size": size,
            "lease": LEASE,
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("an inserted row is returned")
    return Granted(row["id"], claim.organization_id, row["s3_key"], size)


def stored(tx: db.Tx, deployment_id: UUID) -> list[UUID]:
    """Our copies of what a deployment's builds left."""
    rows = tx.execute(
        "SELECT object_id FROM deploys.artifacts WHERE deployment_id = %s AND state = 'stored'",
        [deployment_id],
    ).fetchall()
    return [row["object_id"] for row in rows]


# ---- what became of it ----


def store(tx: db.Tx, claim: Claim, copy: Copy) -> bool:
    """It is copied. Answers False where somebody else claimed it since, or it is gone: the copy goes then.

    Raises PlanLimitReached where it turned out larger than was reserved, Unavailable where it came too late.
    """
    more = copy.bytes - copy.granted.bytes
    if more > 0:
        limits.take(tx, claim.organization_id, stored_objects.LIMIT, more)
    elif more < 0:
        limits.correct(tx, claim.organization_id, stored_objects.LIMIT, more)
    tx.execute(
        "UPDATE storage.objects SET bytes = %s WHERE id = %s AND state = 'granted'",
        [copy.bytes, copy.granted.id],
    )
    stored = tx.execute(
        """
        UPDATE deploys.artifacts
        SET state = 'stored', next_attempt_at = NULL, object_id = %(object_id)s, bytes = %(bytes)s,
            sha256 = %(sha256)s, copied_at = clock_timestamp(), error = NULL
        WHERE id = %(id)s AND state = 'copying' AND attempts = %(attempts)s
        """,
        {
            "id": claim.id,
            "attempts": claim.attempts,
            "object_id": copy.granted.id,
            "bytes": copy.bytes,
            "sha256": copy.sha256,
        },
    ).rowcount
    if not stored:
        stored_objects.release(tx, copy.granted.id, of="granted", reason="another copy was made")
        return False
    stored_objects.store(tx, copy.granted, copy.s3_version, claim.project_id)
    _record(tx, claim, "artifact_stored", f"{claim.kind}: {copy.bytes} bytes")
    _tell(tx, "artifact.stored", claim, bytes=copy.bytes, sha256=copy.sha256)
    return True


def put_off(tx: db.Tx, claim: Claim, reason: str, *, told: bool = False) -> State:
    """It failed and is tried again later, or given up after MAX_ATTEMPTS.

    With `told`, it is announced already, once: something can be done about it until the last time.
    """
    if claim.attempts >= MAX_ATTEMPTS:
        give_up(tx, claim, reason)
        return "failed"
    row = tx.execute(
        """
        UPDATE deploys.artifacts
        SET state = 'pending', error = %(reason)s,
            next_attempt_at = clock_timestamp()
                + least(interval '6 hours', interval '1 minute' * 2 ^ (attempts - 1)) * (1 - random() / 2)
        WHERE id = %(id)s AND state = 'copying' AND attempts = %(attempts)s
        RETURNING next_attempt_at
        """,
        {"id": claim.id, "attempts": claim.attempts, "reason": reason},
    ).fetchone()
    if row is not None and told and not _is_told(tx, claim):
        _record(tx, claim, "artifact_failed", f"{claim.kind}: {reason}")
        retried_at = row["next_attempt_at"].isoformat()
        _tell(tx, "artifact.failed", claim, reason=reason, next_attempt_at=retried_at)
    return "pending"


def _is_told(tx: db.Tx, claim: Claim) -> bool:
    row = tx.execute(
        """
        SELECT 1
        FROM deploys.deployment_events
        WHERE deployment_id = %s AND kind = 'artifact_failed' AND detail LIKE %s
        LIMIT 1
        """,
        [claim.deployment_id, f"{claim.kind}: %"],
    ).fetchone()
    return row is not None


def give_up(tx: db.Tx, claim: Claim, reason: str) -> None:
    given_up = tx.execute(
        """
        UPDATE deploys.artifacts
        SET state = 'failed', error = %(reason)s, next_attempt_at = NULL
        WHERE id = %(id)s AND state = 'copying' AND attempts = %(attempts)s
        """,
        {"id": claim.id, "attempts": claim.attempts, "reason": reason},
    ).rowcount
    if given_up:
        _record(tx, claim, "artifact_failed", f"{claim.kind}: {reason}")
        _tell(tx, "artifact.failed", claim, reason=reason, next_attempt_at=None)


def _record(
    tx: db.Tx, claim: Claim, kind: Literal["artifact_stored", "artifact_failed"], detail: str
) -> None:
    tx.execute(
        """
        INSERT INTO deploys.deployment_events
            (organization_id, deployment_id, kind, status, source, actor, detail, occurred_at)
        SELECT organization_id, id, %(kind)s, status, 'copier', 'system', %(detail)s, clock_timestamp()
        FROM deploys.deployments
        WHERE id = %(deployment_id)s
        """,
        {"deployment_id": claim.deployment_id, "kind": kind, "detail": detail},
    )


def _tell(tx: db.Tx, event_type: str, artifact: Artifact, **more: object) -> None:
    payload = {
        "artifact_id": str(artifact.id),
        "deployment_id": str(artifact.deployment_id),
        "project_id": str(artifact.project_id),
        "kind": artifact.kind,
    }
    outbox.append(tx, event_type, organization_id=artifact.organization_id, payload=payload | more)
