"""Integrations in the database: found, listed, written and deleted, one of a type in a scope."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from integration_configs import NAMES, STORED, AnyName
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb
from pydantic import BaseModel

from backplane import access, audit_log, db, integrations, limits
from backplane.auth import Caller
from backplane.problems import Forbidden, NotFound

FEATURE = "integrations"

Scope = Literal["organization", "user", "project"]
# What a request chooses between; a project's is chosen by naming the project.
ChosenScope = Literal["organization", "user"]


class Integration(BaseModel):
    """Never with a secret, but for a new `webhook_secret` in the answer that made it."""

    id: UUID
    type: AnyName
    scope: Scope
    project_id: UUID | None
    state: integrations.State
    config: dict[str, Any]
    webhook_url: str | None = None
    webhook_secret: str | None = None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Target:
    """Which integration of an organisation: there is one of a type in each scope, or none."""

    organization_id: UUID
    type: integrations.Type
    project_id: UUID | None
    user_id: UUID | None

    @property
    def scope(self) -> Scope:
        if self.project_id is not None:
            return "project"
        return "organization" if self.user_id is None else "user"


@dataclass(frozen=True, slots=True)
class Columns:
    """What is written of an integration. Ciphertexts are bound to its id already."""

    config: dict[str, Any]
    secrets: bytes | None
    secret_name: str | None
    webhook_secrets: bytes | None  # None: those that stand
    state: integrations.State
    encryption_key: str | None  # None: nothing is encrypted
    tokens_expire_in: int | None = None  # seconds


class RacedError(Exception):
    """Somebody else wrote it since it was read."""


def target(
    tx: db.Tx, caller: Caller, name: AnyName, project_id: UUID | None, scope: ChosenScope = "organization"
) -> Target:
    """Raises NotFound where there is no such project here, Forbidden where the caller is no member."""
    if project_id is not None:
        known = tx.execute(
            """
            SELECT 1
            FROM projects.projects
            WHERE id = %(project_id)s AND organization_id = %(organization_id)s AND deleted_at IS NULL
            """,
            {"project_id": project_id, "organization_id": caller.organization_id},
        ).fetchone()
        if known is None:
            raise access.missing()
        return Target(caller.organization_id, STORED[name], project_id, None)
    if scope == "organization":
        return Target(caller.organization_id, STORED[name], None, None)
    if caller.user_id is None or caller.role is None:
        raise Forbidden("Only a member of the organisation has integrations of his own there.")
    return Target(caller.organization_id, STORED[name], None, caller.user_id)


def require_feature(tx: db.Tx, caller: Caller) -> None:
    """Raises FeatureNotInPlan."""
    limits.require_feature(tx, caller.organization_id, FEATURE)


_COLUMNS = """
    id, organization_id, project_id, user_id, type::text, scope::text, state::text, config, secrets,
    webhook_secrets, secret_name, created_at, updated_at, clock_timestamp() AS now
"""


def find(tx: db.Tx, target: Target) -> DictRow | None:
    return tx.execute(
        f"""
        SELECT {_COLUMNS}
        FROM deploys.integrations
        WHERE organization_id = %(organization_id)s
          AND type::text = %(type)s
          AND project_id IS NOT DISTINCT FROM %(project_id)s
          AND user_id IS NOT DISTINCT FROM %(user_id)s
        """.encode(),
        _named(target),
    ).fetchone()


def newest(
    tx: db.Tx,
    organization_id: UUID,
    *,
    type_: integrations.Type | None,
    project_id: UUID | None,
    before: UUID | None,
    limit: int,
) -> list[DictRow]:
    """The organisation's, its projects', and those of the transaction's user himself."""
    return tx.execute(
        f"""
        SELECT {_COLUMNS}
        FROM deploys.integrations
        WHERE organization_id = %(organization_id)s
          AND (%(type)s::text IS NULL OR type::text = %(type)s)
          AND (%(project_id)s::uuid IS NULL OR project_id = %(project_id)s)
          AND (%(before)s::uuid IS NULL OR id < %(before)s)
        ORDER BY id DESC
        LIMIT %(limit)s
        """.encode(),
        {
            "organization_id": organization_id,
            "type": type_,
            "project_id": project_id,
            "before": before,
            "limit": limit,
        },
    ).fetchall()


def new_id(tx: db.Tx) -> UUID:
    row = tx.execute("SELECT platform.new_id() AS id").fetchone()
    if row is None:
        raise RuntimeError("platform.new_id answers one row")
    found: UUID = row["id"]
    return found


def insert(tx: db.Tx, integration_id: UUID, target: Target, columns: Columns) -> DictRow:
    """Raises RacedError where there is one already."""
    row = tx.execute(
        f"""
        INSERT INTO deploys.integrations
            (id, organization_id, project_id, user_id, scope, type, state, config, secrets, webhook_secrets,
             encryption_key, secret_name, tokens_expire_at)
        VALUES
            (%(id)s, %(organization_id)s, %(project_id)s, %(user_id)s, %(scope)s, %(type)s, %(state)s,
             %(config)s, %(secrets)s, %(webhook_secrets)s, %(encryption_key)s, %(secret_name)s,
             clock_timestamp() + make_interval(secs => %(tokens_expire_in)s))
        ON CONFLICT DO NOTHING
        RETURNING {_COLUMNS}
        """.encode(),
        {"id": integration_id, "scope": target.scope, **_named(target), **_values(columns)},
    ).fetchone()
    return _written(row)


def update(tx: db.Tx, read: DictRow, columns: Columns) -> DictRow:
    """Raises RacedError where it is not as it was read. Who refreshes its tokens meanwhile has lost them."""
    row = tx.execute(
        f"""
        UPDATE deploys.integrations
        SET state = %(state)s,
            config = %(config)s,
            secrets = %(secrets)s,
            webhook_secrets = coalesce(%(webhook_secrets)s, webhook_secrets),
            -- The elder key where one of two ciphertexts stays: it is found when that key is left.
            encryption_key = CASE WHEN %(webhook_secrets)s::bytea IS NULL AND webhook_secrets IS NOT NULL
                                  THEN encryption_key ELSE %(encryption_key)s END,
            secret_name = %(secret_name)s,
            tokens_expire_at = clock_timestamp() + make_interval(secs => %(tokens_expire_in)s),
            refresh_lease = NULL,
            refresh_leased_until = NULL
        WHERE id = %(id)s AND updated_at = %(updated_at)s
        RETURNING {_COLUMNS}
        """.encode(),
        {"id": read["id"], "updated_at": read["updated_at"], **_values(columns)},
    ).fetchone()
    return _written(row)


def rotate(tx: db.Tx, read: DictRow, webhook_secrets: bytes, encryption_key: str) -> DictRow:
    """Raises RacedError where it is not as it was read."""
    row = tx.execute(
        f"""
        UPDATE deploys.integrations
        SET webhook_secrets = %(webhook_secrets)s,
            encryption_key = CASE WHEN secrets IS NULL THEN %(encryption_key)s ELSE encryption_key END
        WHERE id = %(id)s AND updated_at = %(updated_at)s
        RETURNING {_COLUMNS}
        """.encode(),
        {
            "id": read["id"],
            "updated_at": read["updated_at"],
            "webhook_secrets": webhook_secrets,
            "encryption_key": encryption_key,
        },
    ).fetchone()
    return _written(row)


def delete(tx: db.Tx, target: Target, caller: Caller) -> str | None:
    """Answers the name of its private key's secret, which is to be deleted after. Raises NotFound."""
    row = tx.execute(
        """
        DELETE FROM deploys.integrations
        WHERE organization_id = %(organization_id)s
          AND type::text = %(type)s
          AND project_id IS NOT DISTINCT FROM %(project_id)s
          AND user_id IS NOT DISTINCT FROM %(user_id)s
        RETURNING id, secret_name
        """,
        _named(target),
    ).fetchone()
    if row is None:
        raise missing()
    note(tx, "deleted", caller, row["id"], target)
    name: str | None = row["secret_name"]
    return name


def note(tx: db.Tx, what: str, caller: Caller, integration_id: UUID, target: Target) -> None:
    """Who did it, in the audit log."""
    audit_log.write(
        tx,
        f"integration.{what}",
        actor=caller.actor,
        target=f"integration:{integration_id}",
        organization_id=target.organization_id,
        details={"type": target.type, "scope": target.scope},
    )


def missing() -> NotFound:
    return NotFound("There is no such integration. GET /v1/integrations lists those there are.")


def shown(row: DictRow, base_url: str, *, webhook_secret: str | None = None) -> Integration:
    paths = {type_: provider for provider, type_ in integrations.TYPE_OF_PROVIDER.items()}
    provider = paths.get(row["type"])
    return Integration(
        id=row["id"],
        type=NAMES[row["type"]],
        scope=row["scope"],
        project_id=row["project_id"],
        state=row["state"],
        config=row["config"],
        webhook_url=None if provider is None else f"{base_url}/webhooks/{provider}/{row['id']}",
        webhook_secret=webhook_secret,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _named(target: Target) -> dict[str, Any]:
    return {
        "organization_id": target.organization_id,
        "type": target.type,
        "project_id": target.project_id,
        "user_id": target.user_id,
    }


def _values(columns: Columns) -> dict[str, Any]:
    return {
        "state": columns.state,
        "config": Jsonb(columns.config),
        "secrets": columns.secrets,
        "webhook_secrets": columns.webhook_secrets,
        "encryption_key": columns.encryption_key,
        "secret_name": columns.secret_name,
        "tokens_expire_in": columns.tokens_expire_in,
    }


def _written(row: DictRow | None) -> DictRow:
    if row is None:
        raise RacedError
    return row
