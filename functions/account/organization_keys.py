"""An organisation's own API keys: made by its admins, shown once, kept as a hash, revoked at once.

A key belongs to the organisation, not to who made it, and outlives his membership.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, Field, computed_field, field_validator

from backplane import api, audit_log, auth, db
from backplane.problems import Forbidden, NotFound, Unprocessable
from backplane.scopes import SCOPES_OF_KEY, of_key

SCOPES = SCOPES_OF_KEY["organization"]

# What a key may do in the words of products that know three rights only. The second are what deletes.
WRITING = SCOPES - {"read"}
DELETING = frozenset({"projects:write", "files:write", "deployments:write"})

LAST = datetime(9999, 1, 1, tzinfo=UTC)  # whatever its offset, the database and Python both have it


def _rfc_3339(value: Any) -> str:
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[Tt ]", value):
        return value
    raise ValueError("send a time in RFC 3339, such as 2030-01-31T12:00:00Z")


class NewKey(api.Body):
    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"\S")]
    scopes: Annotated[list[str], Field(min_length=1, max_length=len(SCOPES))] = Field(default=["read"])
    expires_at: Annotated[AwareDatetime, Field(strict=False, lt=LAST), BeforeValidator(_rfc_3339)] | None = (
        None
    )

    @field_validator("scopes")
    @classmethod
    def _known(cls, scopes: list[str]) -> list[str]:
        return of_key("organization", scopes)


class Key(BaseModel):
    id: UUID
    name: str
    prefix: str  # bp_<prefix>_…: which one it is
    scopes: list[str]
    state: Literal["active", "expired", "revoked"]
    created_by: UUID | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None  # to the minute
    use_count: int  # at least so often

    @computed_field  # type: ignore[prop-decorator]
    @property
    def can_read(self) -> bool:
        return "read" in self.scopes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def can_write(self) -> bool:
        return not WRITING.isdisjoint(self.scopes)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def can_delete(self) -> bool:
        return not DELETING.isdisjoint(self.scopes)


class CreatedKey(Key):
    key: str  # shown this once


_COLUMNS = """
    id, name, prefix, scopes, created_by, created_at, expires_at, revoked_at, last_used_at, use_count,
    CASE WHEN revoked_at IS NOT NULL THEN 'revoked'
         WHEN expires_at <= clock_timestamp() THEN 'expired'
         ELSE 'active' END AS state
"""


def create(tx: db.Tx, wanted: NewKey, caller: auth.Caller) -> CreatedKey:
    """Raises Forbidden where the caller lacks a scope that he gives, Unprocessable for a past expiry."""
    if lacking := sorted(set(wanted.scopes) - caller.scopes):
        raise Forbidden(f"You lack {', '.join(lacking)} yourself. Leave it out of the key's scopes.")
    material = auth.mint_key("organization")
    row = tx.execute(
        f"""
        INSERT INTO platform.api_keys
            (kind, organization_id, name, prefix, secret_hash, scopes, created_by, expires_at)
        SELECT 'organization', %(organization_id)s, %(name)s, %(prefix)s, %(secret_hash)s, %(scopes)s,
               %(created_by)s, %(expires_at)s
        WHERE coalesce(%(expires_at)s::timestamptz > clock_timestamp(), true)
        RETURNING {_COLUMNS}
        """.encode(),
        {
            "organization_id": caller.organization_id,
            "name": wanted.name,
            "prefix": material.prefix,
            "secret_hash": material.secret_hash,
            "scopes": wanted.scopes,
            "created_by": caller.user_id,
            "expires_at": wanted.expires_at,
        },
    ).fetchone()
    if row is None:
        raise Unprocessable(
            "The key would have expired already. Send an expires_at that is still to come, or none.",
            errors=[{"loc": ["body", "expires_at"], "msg": "The time is past", "type": "past"}],
        )
    audit_log.write(
        tx,
        "api_key.created",
        actor=caller.actor,
        target=f"key:{row['id']}",
        organization_id=caller.organization_id,
        details={"name": wanted.name, "scopes": wanted.scopes},
    )
    return CreatedKey.model_validate(row | {"key": material.key})


def newest(tx: db.Tx, organization_id: UUID, *, before: UUID | None, limit: int) -> list[Key]:
    """The revoked ones too: the audit log names them."""
    rows = tx.execute(
        f"""
        SELECT {_COLUMNS}
        FROM platform.api_keys
        WHERE organization_id = %(organization_id)s AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """.encode(),
        {"organization_id": organization_id, "before": before, "limit": limit},
    ).fetchall()
    return [Key.model_validate(row) for row in rows]


def revoke(tx: db.Tx, key_id: UUID, caller: auth.Caller) -> None:
    """Refused from the next request on. Once is enough; twice is no error. Raises NotFound."""
    row = tx.execute(
        "SELECT revoked_at FROM platform.api_keys WHERE id = %s AND organization_id = %s FOR UPDATE",
        [key_id, caller.organization_id],
    ).fetchone()
    if row is None:
        raise NotFound("This organisation has no such key. GET /v1/api-keys lists those it has.")
    if row["revoked_at"] is None:
        tx.execute("UPDATE platform.api_keys SET revoked_at = clock_timestamp() WHERE id = %s", [key_id])
        audit_log.write(
            tx,
            "api_key.revoked",
            actor=caller.actor,
            target=f"key:{key_id}",
            organization_id=caller.organization_id,
        )
