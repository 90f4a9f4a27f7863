"""A user whose name stands in every column that may hold something of a person."""

import json
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

import psycopg
from tests.databases import Database
from tests.senders import clerk_item, clerk_membership, clerk_organization, clerk_user, post_clerk

from backplane import db, erasure, ledger

MARK = "Lovelace"
CONFIG = "jsonb_build_object('name', %(mark)s)"


@dataclass(frozen=True)
class Traced:
    user_id: UUID
    own: UUID  # his personal organisation
    shared: UUID  # one that he is in
    mark: str  # his own: some columns are unique


def plant(database: Database, clerk_id: str = "user_1") -> UUID:
    """Answers the user's id."""
    come(clerk_id)
    with database.connect() as connection:
        row = connection.execute(
            """
            SELECT u.id AS user_id, o.id AS own, s.id AS shared
            FROM identity.users AS u
            JOIN tenancy.organizations AS o ON o.personal_user_id = u.id
            JOIN tenancy.organizations AS s ON s.clerk_id = 'org_1'
            WHERE u.clerk_id = %s
            """,
            [clerk_id],
        ).fetchone()
    assert row is not None
    traced = Traced(mark=f"{MARK}-{clerk_id[-1]}", **row)
    for organization_id in (traced.own, traced.shared):
        spend(database, traced, organization_id)
    write(database, traced, ROWS)
    write(database, traced, PROJECTS)
    for table in ("projects.settings", "projects.app_settings", "projects.site_settings"):
        names = [name for part in erasure.PERSONAL if part.table == table for name in part.columns]
        values = [CONFIG if n == "config" else "lower(%(mark)s)" for n in names]
        write(
            database,
            traced,
            f"""
            INSERT INTO {table} (project_id, organization_id, {", ".join(names)})
            SELECT id, organization_id, {", ".join(values)}
            FROM projects.projects
            WHERE organization_id = %(own)s
            """,
        )
    return traced.user_id


def come(clerk_id: str) -> None:
    """By Clerk's events, which all carry the name."""
    known_as: dict[str, Any] = {
        "first_name": MARK,
        "username": MARK.lower(),
        "image_url": f"https://x/{MARK}",
    }
    address = f"{MARK}@{clerk_id}.example"
    for event in (
        clerk_user(clerk_id, email=address, **known_as),
        clerk_organization("org_1", created_by="user_other"),
        clerk_membership(clerk_id, "org_1", public_user_data={"user_id": clerk_id, "first_name": MARK}),
        clerk_item(f"csub_item_{clerk_id}", payer=clerk_id, seats={"name": MARK}),
    ):
        assert post_clerk(event).body["status"] in {"processed", "stale"}


def spend(database: Database, traced: Traced, organization_id: UUID) -> None:
    """A debit, a hold and a refund, each with a word about what for."""
    actor, details = f"user:{traced.user_id}", {"prompt": MARK}
    pack = ledger.Grant(
        organization_id=organization_id, source="pack", source_key="p", amount=50, actor="system"
    )
    db.run(lambda tx: ledger.grant(tx, pack))
    debit, _ = ledger.debit(organization_id, "ai_text_chat", 2, key=actor, actor=actor, details=details)
    with database.connect("backplane_system") as connection:
        connection.execute(
            """
            SELECT credits.hold(%(organization)s, %(actor)s, sha256('h'), 'ai_text_chat', 1, 900, %(actor)s,
                                %(details)s),
                   credits.refund(%(organization)s, %(debit)s, %(actor)s, sha256('r'), 1, %(reason)s,
                                  %(actor)s)
            """,
            {
                "organization": organization_id,
                "actor": actor,
                "details": json.dumps(details),
                "debit": debit.id,
                "reason": f"for {MARK}",
            },
        )


def write(database: Database, traced: Traced, statement: str) -> None:
    """As literals: what is a value here and an operand there has no one type."""
    with database.connect() as connection:
        cursor = psycopg.ClientCursor(connection)
        for part in filter(str.strip, statement.split(";")):
            cursor.execute(part.encode(), asdict(traced))


ROWS = """
    UPDATE tenancy.organizations
    SET slug = lower(%(mark)s), description = %(mark)s, logo_url = %(mark)s, timezone = 'Europe/London'
    WHERE id = %(own)s;

    UPDATE identity.users
    SET password_hash = '$2b$12$' || repeat('x', 53), last_login_at = now()
    WHERE id = %(user_id)s;

    UPDATE identity.settings
    SET language = 'en-x-' || %(mark)s, timezone = %(mark)s, default_project_template = %(mark)s
    WHERE user_id = %(user_id)s;

    INSERT INTO billing.subscription_events
        (organization_id, provider, provider_event_id, event_type, status, occurred_at, metadata)
    VALUES (%(own)s, 'clerk', 'evt_' || right(%(mark)s, 1), 'x', 'active', now(),
            jsonb_build_object('name', %(mark)s));

    INSERT INTO tenancy.invitations (organization_id, email, role, token_hash, expires_at)
    VALUES (%(own)s, lower(%(mark)s) || '@example.com', 'viewer', sha256(%(mark)s), now());

    INSERT INTO platform.api_keys (kind, organization_id, name, prefix, secret_hash, scopes)
    VALUES ('organization', %(own)s, %(mark)s, 'prefix' || right(%(mark)s, 1), sha256('x'), '{read}');

    INSERT INTO platform.idempotency_keys
        (organization_id, route, key, request_hash, claim, claimed_until, body, expires_at)
    VALUES (%(own)s, 'POST /x', %(mark)s, sha256('x'), %(own)s, now(), %(mark)s, now());

    INSERT INTO platform.outbox (organization_id, type, payload, published_at)
    VALUES (%(own)s, 'test.trace', jsonb_build_object('name', %(mark)s), now());

    INSERT INTO platform.webhook_inbox
        (provider, event_id, event_type, body, status, reason, error, organization_id, occurred_at)
    VALUES ('stripe', 'evt_' || right(%(mark)s, 1), 'x', convert_to(%(mark)s, 'UTF8'), 'dead', %(mark)s,
            %(mark)s, %(own)s, now());

    INSERT INTO platform.audit_log (organization_id, actor, action, target, details)
    SELECT id, 'system', 'a.b', 'user:' || %(user_id)s::text, jsonb_build_object('name', %(mark)s)
    FROM (VALUES (%(own)s::uuid), (%(shared)s), (NULL)) AS of (id)
"""
PROJECTS = """
    INSERT INTO projects.projects
        (organization_id, kind, title, description, slug, deployment_url, tags, is_public)
    VALUES (%(own)s, 'site', %(mark)s, %(mark)s, lower(%(mark)s), %(mark)s, ARRAY[%(mark)s], true);

    INSERT INTO projects.messages (organization_id, project_id, sequence, role, content, parts)
    SELECT organization_id, id, 1, 'user', %(mark)s, jsonb_build_array(%(mark)s)
    FROM projects.projects
    WHERE organization_id = %(own)s;

    INSERT INTO storage.objects
        (organization_id, project_id, kind, state, s3_key, s3_version, name, content_type, bytes,
         expires_at, stored_at)
    SELECT organization_id, id, 'files', 'stored', 'projects/' || id || '/files-v1.json', 'v1', %(mark)s,
           'application/json', 1, now(), now()
    FROM projects.projects
    WHERE organization_id = %(own)s;

    INSERT INTO projects.file_versions
        (project_id, organization_id, version, object_id, s3_key, s3_version, epoch_ms, sha256, total_bytes,
         files, base_version, message)
    SELECT project_id, organization_id, 1, id, s3_key, s3_version, 1, repeat('0', 64), 1,
           jsonb_build_array(jsonb_build_object('path', %(mark)s)), 0, %(mark)s
    FROM storage.objects
    WHERE organization_id = %(own)s;

    INSERT INTO deploys.oauth_states
        (id, state_hash, organization_id, user_id, is_users_own, verifier, expires_at)
    VALUES (platform.new_id(), sha256(%(mark)s), %(own)s, %(user_id)s, false, '', now());

    INSERT INTO deploys.integrations
        (organization_id, project_id, scope, type, config, secrets, webhook_secrets, encryption_key)
    SELECT organization_id, id, 'project', 'expo', jsonb_build_object('username', %(mark)s),
           convert_to(%(mark)s, 'UTF8'), convert_to(%(mark)s, 'UTF8'), 'arn'
    FROM projects.projects
    WHERE organization_id = %(own)s;

    INSERT INTO projects.shares (organization_id, project_id, email, role, token_hash, expires_at)
    SELECT organization_id, id, lower(%(mark)s) || '@example.com', 'viewer', sha256(%(mark)s), now()
    FROM projects.projects
    WHERE organization_id = %(own)s;

    INSERT INTO projects.generations
        (organization_id, project_id, agent_type, prompt, response, status, error_message, hold_id,
         counted_at, lock_token_hash, lock_expires_at, completed_at)
    SELECT p.organization_id, p.id, 'frontend', %(mark)s, %(mark)s, 'failed', %(mark)s, h.id,
           now(), sha256('x'), now(), now()
    FROM projects.projects AS p
    JOIN credits.holds AS h ON h.organization_id = p.organization_id
    WHERE p.organization_id = %(own)s;

    INSERT INTO projects.favorites (user_id, project_id, organization_id)
    SELECT %(user_id)s, id, organization_id
    FROM projects.projects
    WHERE organization_id = %(own)s;

    INSERT INTO deploys.deployments
        (organization_id, project_id, type, platform, environment, config, project_name, app_version,
         build_number, git_commit, web_url, android_build_url, ios_build_url, application_archive_url,
         build_details_url, logs_url, build_log, error_log, next_poll_at)
    SELECT organization_id, id, 'web', 'web', %(mark)s, jsonb_build_object('name', %(mark)s), %(mark)s,
           %(mark)s, %(mark)s, %(mark)s, %(mark)s, %(mark)s, %(mark)s, %(mark)s, %(mark)s, %(mark)s, %(mark)s,
           %(mark)s, now()
    FROM projects.projects
    WHERE organization_id = %(own)s;

    INSERT INTO deploys.provider_jobs
        (organization_id, external_id, deployment_id, kind, details_url, error)
    SELECT organization_id, 'build', id, 'build', %(mark)s, %(mark)s
    FROM deploys.deployments
    WHERE organization_id = %(own)s;

    INSERT INTO deploys.deployment_events
        (organization_id, deployment_id, kind, status, source, actor, detail, occurred_at)
    SELECT organization_id, id, 'reported', 'pending', 'callback', 'system', %(mark)s, now()
    FROM deploys.deployments
    WHERE organization_id = %(own)s;

    INSERT INTO deploys.artifacts
        (organization_id, project_id, deployment_id, kind, source_url, state, next_attempt_at, error)
    SELECT organization_id, project_id, id, 'android', %(mark)s, 'failed', NULL, %(mark)s
    FROM deploys.deployments
    WHERE organization_id = %(own)s
"""
