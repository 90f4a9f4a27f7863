"""Erasing a person: what is personal in every table, and how it goes. docs/privacy.md tells operators.

PERSONAL lists each column that may hold something of a person; a test compares it with the catalogue, so
that a new column is either listed here or called impersonal there. What was the person's own organisation
goes whole. In organisations that live on without him, his name goes; what he made there is theirs.

Pseudonymous ids stay (ours, Clerk's, Stripe's), and with them the ledger's numbers; so does the keyed
hash by which sign-up credits come once per email address.
"""

from dataclasses import dataclass
from typing import Any, LiteralString
from uuid import UUID

from psycopg.types.json import Jsonb

from backplane import db, outbox


@dataclass(frozen=True, slots=True)
class Person:
    user_id: UUID
    clerk_id: str
    own_organization_id: UUID | None  # his personal one


@dataclass(frozen=True, slots=True)
class Personal:
    """What of a table is personal. The statement erases it, of `own` (his organisation, or NULL), `user_id`,
    `email`, `clerk_id`, `actor` (as ledger and audit log name him) and `organizations` (all he is or was in).
    Of an organisation that is erased by itself there are `own` and `organizations` only. It touches only
    rows that still have something, so that its count is what was erased.
    """

    table: str
    columns: tuple[str, ...]
    statement: LiteralString


PERSONAL: tuple[Personal, ...] = (
    Personal(
        "deploys.oauth_states",
        (),
        "DELETE FROM deploys.oauth_states WHERE organization_id = %(own)s OR user_id = %(user_id)s",
    ),
    Personal(
        "deploys.integrations",
        ("config", "secrets", "webhook_secrets"),
        # secrets_upkeep takes their private keys out of Secrets Manager, within the hour.
        "DELETE FROM deploys.integrations WHERE organization_id = %(own)s OR user_id = %(user_id)s",
    ),
    Personal(
        "projects.shares",
        ("email", "token_hash"),
        """
        DELETE FROM projects.shares
        WHERE user_id = %(user_id)s OR organization_id = %(own)s OR email = lower(%(email)s)
        """,
    ),
    Personal(
        "identity.users",
        ("email", "username", "first_name", "last_name", "image_url", "password_hash", "last_login_at"),
        """
        UPDATE identity.users
        SET email = NULL, username = NULL, first_name = NULL, last_name = NULL, image_url = NULL,
            password_hash = NULL, last_login_at = NULL, locked_until = NULL
        WHERE id = %(user_id)s
          AND num_nonnulls(email, username, first_name, last_name, image_url, password_hash,
                           last_login_at) > 0
        """,
    ),
    Personal(
        "identity.settings",
        ("language", "timezone", "default_project_template"),
        "DELETE FROM identity.settings WHERE user_id = %(user_id)s",
    ),
    Personal(
        "tenancy.organizations",
        ("name", "slug", "description", "logo_url", "timezone"),
        """
        UPDATE tenancy.organizations
        SET name = 'Deleted', slug = NULL, description = NULL, logo_url = NULL, timezone = 'UTC',
            erased_at = clock_timestamp()
        WHERE id = %(own)s
        """,
    ),
    Personal(
        "tenancy.invitations",
        ("email", "token_hash"),
        """
        DELETE FROM tenancy.invitations
        WHERE user_id = %(user_id)s OR organization_id = %(own)s OR email = lower(%(email)s)
        """,
    ),
    Personal(
        "billing.subscription_events",
        ("metadata",),
        """
        UPDATE billing.subscription_events
        SET metadata = '{}'
        WHERE organization_id = %(own)s AND metadata <> '{}'
        """,
    ),
    Personal(
        "platform.api_keys",
        ("name",),
        "UPDATE platform.api_keys SET name = '' WHERE organization_id = %(own)s AND name <> ''",
    ),
    Personal(
        "platform.idempotency_keys",
        ("key", "body"),
        "DELETE FROM platform.idempotency_keys WHERE organization_id = %(own)s",
    ),
    Personal(
        "platform.outbox",
        ("payload",),
        # What is still to be published has ids only; it keeps them until it is.
        """
        UPDATE platform.outbox
        SET payload = '{}'
        WHERE organization_id = %(own)s AND published_at IS NOT NULL AND payload <> '{}'
        """,
    ),
    Personal(
        "platform.webhook_inbox",
        ("body", "reason", "error"),
        # Of Stripe's events for his organisation, those that are not settled keep their bodies until
        # they are: see `inbox`.
        """
        UPDATE platform.webhook_inbox
        SET body = NULL,
            error = NULL,
            reason = CASE WHEN status IN ('processed', 'ignored') THEN NULL ELSE 'the user was erased' END,
            status = CASE WHEN status IN ('processed', 'ignored') THEN status ELSE 'stale' END,
            waiting_for = NULL,
            next_attempt_at = NULL,
            processed_at = coalesce(processed_at, clock_timestamp())
        WHERE body IS NOT NULL
          AND (person = %(clerk_id)s OR organization_id = %(own)s AND status NOT IN ('parked', 'failed'))
        """,
    ),
    Personal(
        "projects.messages",
        ("content", "parts"),
        "DELETE FROM projects.messages WHERE organization_id = %(own)s",
    ),
    Personal(
        "projects.generations",
        ("prompt", "response", "error_message"),
        """
        UPDATE projects.generations
        SET prompt = '', response = NULL,
            error_message = CASE WHEN status = 'failed' THEN '' END
        WHERE organization_id = %(own)s
        """,
    ),
    Personal(
        "projects.settings",
        (
            "config",
            "last_entry_id",
            "generated_path",
            "repository_url",
            "supabase_project_ref",
            "supabase_url",
            "supabase_anon_key",
        ),
        "DELETE FROM projects.settings WHERE organization_id = %(own)s",
    ),
    Personal(
        "projects.app_settings",
        (
            "app_icon_url",
            "android_app_icon_url",
            "android_package_name",
            "ios_app_icon_url",
            "ios_bundle_id",
            "ios_app_id",
        ),
        "DELETE FROM projects.app_settings WHERE organization_id = %(own)s",
    ),
    Personal(
        "projects.site_settings",
        (
            "subdomain",
            "custom_domain",
            "meta_title",
            "meta_description",
            "favicon_url",
            "ai_prompt",
            "business_type",
        ),
        "DELETE FROM projects.site_settings WHERE organization_id = %(own)s",
    ),
    Personal(
        "projects.favorites",
        (),
        "DELETE FROM projects.favorites WHERE user_id = %(user_id)s OR organization_id = %(own)s",
    ),
    Personal(
        "projects.file_versions",
        ("files", "message"),
        "DELETE FROM projects.file_versions WHERE organization_id = %(own)s",
    ),
    Personal(
        "deploys.artifacts",
        ("source_url", "error"),
        "DELETE FROM deploys.artifacts WHERE organization_id = %(own)s",
    ),
    Personal(
        "deploys.deployment_events",
        ("detail",),
        "DELETE FROM deploys.deployment_events WHERE organization_id = %(own)s",
    ),
    Personal(
        "deploys.provider_jobs",
        ("details_url", "error"),
        "DELETE FROM deploys.provider_jobs WHERE organization_id = %(own)s",
    ),
    Personal(
        "deploys.deployments",
        (
            "environment",
            "config",
            "project_name",
            "app_version",
            "build_number",
            "git_commit",
            "web_url",
            "android_build_url",
            "ios_build_url",
            "application_archive_url",
            "build_details_url",
            "logs_url",
            "build_log",
            "error_log",
        ),
        "DELETE FROM deploys.deployments WHERE organization_id = %(own)s",
    ),
    Personal(
        "storage.objects",
        ("name",),
        # storage_upkeep takes the objects themselves away, within the hour.
        """
        UPDATE storage.objects
        SET name = '',
            state = CASE WHEN state IN ('granted', 'stored') THEN 'deleted' ELSE state END,
            deleted_at = coalesce(deleted_at, clock_timestamp()),
            expires_at = least(expires_at, clock_timestamp())
        WHERE organization_id = %(own)s AND name <> ''
        """,
    ),
    Personal(
        "projects.projects",
        ("title", "description", "slug", "deployment_url", "tags"),
        # The row stays for those who forked it.
        """
        UPDATE projects.projects
        SET title = 'Deleted', description = NULL, slug = 'deleted-' || replace(id::text, '-', ''),
            deployment_url = NULL, tags = '{}', is_public = false,
            deleted_at = coalesce(deleted_at, clock_timestamp())
        WHERE organization_id = %(own)s
        """,
    ),
)

# These go by functions that alone may change their tables.
LEDGER = {
    "credits.entries": ("details",),
    "credits.holds": ("details",),
    "credits.refunds": ("reason",),
    "platform.audit_log": ("details",),
}


def erase(tx: db.Tx, person: Person, *, actor: str) -> dict[str, int]:
    """Erases what is personal of a user who is deleted, reports it, and answers the rows by table.

    To be called before he is taken out of his organisations: what he did there is found by them.
    """
    values = {
        "user_id": person.user_id,
        "email": _email(tx, person),
        "clerk_id": person.clerk_id,
        "own": person.own_organization_id,
        "actor": f"user:{person.user_id}",
        "organizations": _organizations(tx, person),
    }
    erased = _erase(tx, values, asked_by=actor)
    payload = {"user_id": str(person.user_id), "erased": erased}
    outbox.append(tx, "user.erased", organization_id=person.own_organization_id, payload=payload)
    return erased


def erase_organization(tx: db.Tx, organization_id: UUID, *, actor: str) -> bool:
    """Erases what a deleted organisation left, reports it, and answers whether there was anything to do.

    Its numbers stay under pseudonymous ids, as an erased person's do.
    """
    found = tx.execute(
        """
        SELECT 1
        FROM tenancy.organizations
        WHERE id = %s AND deleted_at IS NOT NULL AND erased_at IS NULL
        FOR UPDATE
        """,
        [organization_id],
    ).fetchone()
    if found is None:
        return False
    values = {
        "user_id": None,
        "email": None,
        "clerk_id": None,
        "own": organization_id,
        "actor": None,
        "organizations": [organization_id],
    }
    erased = _erase(tx, values, asked_by=actor)
    payload = {"organization_id": str(organization_id), "erased": erased}
    outbox.append(tx, "organization.erased", organization_id=organization_id, payload=payload)
    return True


def organizations_to_erase(tx: db.Tx, *, limit: int) -> list[UUID]:
    """Deleted organisations that are not erased yet, the first deleted first."""
    rows = tx.execute(
        """
        SELECT id
        FROM tenancy.organizations
        WHERE deleted_at IS NOT NULL AND erased_at IS NULL
        ORDER BY deleted_at
        LIMIT %s
        """,
        [limit],
    ).fetchall()
    return [row["id"] for row in rows]


def _erase(tx: db.Tx, values: dict[str, Any], *, asked_by: str) -> dict[str, int]:
    erased = {part.table: tx.execute(part.statement, values).rowcount for part in PERSONAL}
    erased |= _erase_ledger(tx, values)
    erased = {table: rows for table, rows in sorted(erased.items()) if rows}
    tx.execute(
        """
        INSERT INTO platform.erasures (user_id, organization_id, actor, erased)
        VALUES (%s, %s, %s, %s)
        """,
        [values["user_id"], values["own"], asked_by, Jsonb(erased)],
    )
    return erased


def _email(tx: db.Tx, person: Person) -> str | None:
    """His address, before it goes: invitations that he has not accepted are found by it."""
    row = tx.execute("SELECT email FROM identity.users WHERE id = %s", [person.user_id]).fetchone()
    return None if row is None else row["email"]


def _organizations(tx: db.Tx, person: Person) -> list[UUID]:
    rows = tx.execute(
        """
        SELECT organization_id FROM tenancy.organization_members WHERE user_id = %(user_id)s
        UNION
        SELECT organization_id FROM tenancy.former_members WHERE user_id = %(user_id)s
        UNION
        SELECT id FROM tenancy.organizations WHERE personal_user_id = %(user_id)s
        """,
        {"user_id": person.user_id},
    ).fetchall()
    return [row["organization_id"] for row in rows]


def _erase_ledger(tx: db.Tx, values: dict[str, Any]) -> dict[str, int]:
    row = tx.execute(
        """
        SELECT l.*, platform.erase_audit_details(%(own)s, %(organizations)s::uuid[], %(actor)s) AS audit_log
        FROM credits.erase_details(%(own)s, %(organizations)s::uuid[], %(actor)s) AS l
        """,
        values,
    ).fetchone()
    if row is None:
        raise RuntimeError("credits.erase_details answers one row")
    return {
        "credits.entries": row["entries"],
        "credits.holds": row["holds"],
        "credits.refunds": row["refunds"],
        "platform.audit_log": row["audit_log"],
    }


def forget_late_bodies(tx: db.Tx, *, limit: int) -> int:
    """Forgets what came of erased people while they were erased, which the erasure could not see yet.

    For a sweep by night. Answers how many bodies, `limit` at most.
    """
    return tx.execute(
        """
        UPDATE platform.webhook_inbox
        SET body = NULL, error = NULL
        WHERE id IN (
            SELECT i.id
            FROM platform.erasures AS e
            LEFT JOIN identity.users AS u ON u.id = e.user_id
            JOIN platform.webhook_inbox AS i ON i.person = u.clerk_id OR i.organization_id = e.organization_id
            WHERE e.created_at > clock_timestamp() - interval '7 days'
              AND i.body IS NOT NULL
              AND i.status NOT IN ('parked', 'failed')
            LIMIT %(limit)s
            FOR UPDATE OF i SKIP LOCKED
        )
        """,
        {"limit": limit},
    ).rowcount
