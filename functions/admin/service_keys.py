"""Keys for the SaaS's own servers: made by platform admins, shown once, kept as a hash."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from pydantic import BaseModel, Field, field_validator

from backplane import api, audit_log, auth, db
from backplane.problems import NotFound
from backplane.scopes import SCOPES_OF_KEY, of_key


class NewServiceKey(api.Body):
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
    scopes: Annotated[list[str], Field(min_length=1, max_length=len(SCOPES_OF_KEY["service"]))]

    @field_validator("scopes")
    @classmethod
    def _known(cls, scopes: list[str]) -> list[str]:
        return of_key("service", scopes)


class ServiceKey(BaseModel):
    id: UUID
    name: str
    prefix: str  # bp_<prefix>_…: which one it is
    scopes: list[str]
    created_by: UUID | None
    created_at: datetime
    revoked_at: datetime | None


class CreatedServiceKey(ServiceKey):
    key: str  # shown this once


def create(tx: db.Tx, wanted: NewServiceKey, caller: api.Caller) -> CreatedServiceKey:
    material = auth.mint_key("service")
    row = tx.execute(
        """
        INSERT INTO platform.api_keys (kind, name, prefix, secret_hash, scopes, created_by)
        VALUES ('service', %(name)s, %(prefix)s, %(secret_hash)s, %(scopes)s, %(created_by)s)
        RETURNING id, name, prefix, scopes, created_by, created_at, revoked_at
        """,
        {
            "name": wanted.name,
            "prefix": material.prefix,
            "secret_hash": material.secret_hash,
            "scopes": wanted.scopes,
            "created_by": caller.user_id,
        },
    ).fetchone()
    if row is None:
        raise RuntimeError("an insert answers its row")
    audit_log.write(
        tx,
        "service_key.created",
        actor=caller.actor,
        target=f"key:{row['id']}",
        details={"name": wanted.name, "scopes": wanted.scopes},
    )
    return CreatedServiceKey.model_validate(row | {"key": material.key})


def newest(tx: db.Tx, *, before: UUID | None, limit: int) -> list[ServiceKey]:
    rows = tx.execute(
        """
        SELECT id, name, prefix, scopes, created_by, created_at, revoked_at
        FROM platform.api_keys
        WHERE kind = 'service' AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """,
        {"before": before, "limit": limit},
    ).fetchall()
    return [ServiceKey.model_validate(row) for row in rows]


def revoke(tx: db.Tx, key_id: UUID, caller: api.Caller) -> None:
    """Refused from the next request on. Once is enough; twice is no error. Raises NotFound."""
    row = tx.execute(
        "SELECT revoked_at FROM platform.api_keys WHERE id = %s AND kind = 'service' FOR UPDATE", [key_id]
    ).fetchone()
    if row is None:
        raise NotFound("There is no such service key. GET /v1/admin/service-keys lists them.")
    if row["revoked_at"] is None:
        tx.execute("UPDATE platform.api_keys SET revoked_at = clock_timestamp() WHERE id = %s", [key_id])
        audit_log.write(tx, "service_key.revoked", actor=caller.actor, target=f"key:{key_id}")
