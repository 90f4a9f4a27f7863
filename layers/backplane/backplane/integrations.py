"""What an organisation has set up at other services, for those who use it: webhook secrets and credentials.

The routes that write it are functions/integrations. Of each type there is one a scope: the organisation's,
a project's, a user's own. docs/integrations.md tells users what is stored where.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from psycopg.rows import DictRow

from backplane import db, field_encryption, private_keys
from backplane.field_encryption import Place

Type = Literal[
    "expo",
    "app_store_connect",
    "google_play",
    "vercel",
    "github",
    "stripe",
    "google_analytics",
    "supabase",
    "custom",
]
State = Literal["active", "needs_reconnect", "disabled"]

TABLE: Final = "deploys.integrations"

# The types whose services call us, by what the path /webhooks/<provider>/<integration id> calls them.
TYPE_OF_PROVIDER: Final[Mapping[str, Type]] = {"eas": "expo", "vercel": "vercel", "github": "github"}
ROTATION: Final = timedelta(hours=24)  # that a webhook secret is honoured after there is a newer one


@dataclass(frozen=True, slots=True)
class WebhookSecret:
    secret: str = field(repr=False)
    until: datetime | None  # None: the present one


@dataclass(frozen=True, slots=True)
class WebhookIntegration:
    """Whose webhook it is, and the secrets that may have signed it, the newest first."""

    id: UUID
    organization_id: UUID
    project_id: UUID | None
    type: Type
    secrets: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Credentials:
    """How to call a service for an organisation: docs/integrations.md names the fields of each type."""

    integration_id: UUID
    organization_id: UUID
    project_id: UUID | None
    user_id: UUID | None
    type: Type
    config: Mapping[str, Any]  # what is not secret
    secrets: Mapping[str, Any] = field(repr=False)


def webhook_of(tx: db.Tx, provider: str, integration_id: UUID) -> WebhookIntegration | None:
    """The integration that a webhook's path names; None where there is none of this provider, or it is
    disabled. Raises field_encryption's errors.
    """
    row = tx.execute(
        """
        SELECT i.id, i.organization_id, i.project_id, i.type::text, i.webhook_secrets,
               clock_timestamp() AS now
        FROM deploys.integrations AS i
        JOIN tenancy.organizations AS o ON o.id = i.organization_id AND o.deleted_at IS NULL
        WHERE i.id = %(id)s
          AND i.type::text = %(type)s
          AND i.state <> 'disabled'
          AND i.webhook_secrets IS NOT NULL
        """,
        {"id": integration_id, "type": TYPE_OF_PROVIDER.get(provider)},
    ).fetchone()
    if row is None:
        return None
    return WebhookIntegration(
        id=row["id"],
        organization_id=row["organization_id"],
        project_id=row["project_id"],
        type=row["type"],
        secrets=tuple(each.secret for each in webhook_secrets(row)),
    )


def credentials(
    tx: db.Tx,
    organization_id: UUID,
    type_: Type,
    project_id: UUID | None = None,
    *,
    user_id: UUID | None = None,
) -> Credentials | None:
    """The project's, else the organisation's, else the user's own; None where none is active.

    In a personal organisation the user is its person, without being named. Supabase's access token may be
    over: supabase_tokens.access_token renews it. Raises field_encryption's errors and private_keys'.
    """
    row = find_credentials(tx, organization_id, type_, project_id, user_id=user_id)
    return None if row is None else read_credentials(row)


def find_credentials(
    tx: db.Tx,
    organization_id: UUID,
    type_: Type,
    project_id: UUID | None = None,
    *,
    user_id: UUID | None = None,
) -> DictRow | None:
    """As `credentials`, still encrypted: for read_credentials, once the transaction is over."""
    return tx.execute(
        """
        SELECT i.id, i.organization_id, i.project_id, i.user_id, i.type::text, i.config, i.secrets,
               i.secret_name
        FROM deploys.integrations AS i
        JOIN tenancy.organizations AS o ON o.id = i.organization_id AND o.deleted_at IS NULL
        WHERE i.organization_id = %(organization_id)s
          AND i.type::text = %(type)s
          AND i.state = 'active'
          AND (i.project_id IS NULL OR i.project_id = %(project_id)s)
          AND (i.user_id IS NULL OR i.user_id = coalesce(%(user_id)s, o.personal_user_id))
        ORDER BY i.project_id IS NULL, i.user_id IS NOT NULL
        LIMIT 1
        """,
        {"organization_id": organization_id, "type": type_, "project_id": project_id, "user_id": user_id},
    ).fetchone()


def read_credentials(row: DictRow) -> Credentials:
    """Of a row with `id, organization_id, project_id, user_id, type, config, secrets, secret_name`."""
    secrets: dict[str, Any] = {}
    if row["secrets"] is not None:
        secrets = json.loads(field_encryption.decrypt(bytes(row["secrets"]), place(row, "secrets")))
    if row["secret_name"] is not None:
        secrets["private_key"] = private_keys.read(row["secret_name"])
    return Credentials(
        integration_id=row["id"],
        organization_id=row["organization_id"],
        project_id=row["project_id"],
        user_id=row["user_id"],
        type=row["type"],
        config=row["config"],
        secrets=secrets,
    )


def webhook_secrets(row: DictRow) -> list[WebhookSecret]:
    """Those that are honoured now, the newest first, of a row with `id, organization_id, webhook_secrets` and
    the database's `now`.
    """
    if row["webhook_secrets"] is None:
        return []
    stored = json.loads(
        field_encryption.decrypt(bytes(row["webhook_secrets"]), place(row, "webhook_secrets"))
    )
    known = [
        WebhookSecret(each["secret"], datetime.fromisoformat(each["until"]) if each["until"] else None)
        for each in stored
    ]
    return [each for each in known if each.until is None or each.until > row["now"]]


def purge_of_the_deleted(tx: db.Tx, *, limit: int) -> int:
    """Deletes what organisations had that are deleted. Answers how many, `limit` at most."""
    return tx.execute(
        """
        DELETE FROM deploys.integrations
        WHERE id IN (
            SELECT i.id
            FROM deploys.integrations AS i
            JOIN tenancy.organizations AS o ON o.id = i.organization_id
            WHERE o.deleted_at IS NOT NULL
            LIMIT %(limit)s
        )
        """,
        {"limit": limit},
    ).rowcount


def place(row: Mapping[str, Any], column: str) -> Place:
    return Place(TABLE, column, row["id"], row["organization_id"])
