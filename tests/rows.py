"""A row in every table for each of two organisations: what tenants must not see of each other.

A migration that adds a table adds its row here; test_row_level_security.py insists.
"""

from dataclasses import asdict, dataclass
from uuid import UUID

import psycopg
from psycopg.rows import DictRow

# Tables whose rows the migrations bring along.
SEEDED = frozenset(
    {
        "billing.credit_packs",
        "billing.plan_limits",
        "billing.plan_prices",
        "billing.plans",
        "credits.operations",
        "platform.admin_settings",
        "platform.partitioned_tables",
    }
)

# In an order that foreign keys allow. %(n)s tells the organisations apart: 1 and 2.
INSERTS = {
    "identity.users": """
        INSERT INTO identity.users (id, clerk_id, email)
        VALUES (%(user)s, 'user_' || %(n)s, %(n)s || '@example.com')
    """,
    "tenancy.organizations": """
        INSERT INTO tenancy.organizations (id, clerk_id, name)
        VALUES (%(organization)s, 'org_' || %(n)s, 'Organisation ' || %(n)s)
    """,
    # The user's own insert makes it.
    "identity.settings": "SELECT 1",
    "tenancy.organization_members": """
        INSERT INTO tenancy.organization_members (organization_id, user_id, role)
        VALUES (%(organization)s, %(user)s, 'owner')
    """,
    "tenancy.former_members": """
        INSERT INTO tenancy.former_members (organization_id, user_id, removed_at, as_of)
        VALUES (%(organization)s, %(user)s, now(), '1')
    """,
    "tenancy.invitations": """
        INSERT INTO tenancy.invitations (organization_id, email, role, token_hash, expires_at)
        VALUES (%(organization)s, 'eve@example.com', 'viewer', sha256(convert_to(%(n)s::text, 'UTF8')), now())
    """,
    "billing.customers": """
        INSERT INTO billing.customers (organization_id, provider, provider_customer_id)
        VALUES (%(organization)s, 'stripe', 'cus_' || %(n)s)
    """,
    "billing.subscriptions": """
        INSERT INTO billing.subscriptions
            (organization_id, provider, provider_subscription_id, plan_id, status, as_of)
        SELECT %(organization)s, 'stripe', 'sub_' || %(n)s, id, 'active', '1'
        FROM billing.plans
        WHERE key = 'pro'
    """,
    "billing.subscription_events": """
        INSERT INTO billing.subscription_events
            (organization_id, provider, provider_event_id, event_type, status, occurred_at)
        VALUES (%(organization)s, 'stripe', 'evt_' || %(n)s, 'customer.subscription.created', 'active', now())
    """,
    "billing.purchases": """
        INSERT INTO billing.purchases (organization_id, provider, provider_purchase_id, status)
        VALUES (%(organization)s, 'stripe', 'in_' || %(n)s, 'paid')
    """,
    "billing.payments": """
        INSERT INTO billing.payments (provider, provider_payment_id, provider_purchase_id)
        VALUES ('stripe', 'pi_' || %(n)s, 'in_' || %(n)s)
    """,
    "billing.payment_refunds": """
        INSERT INTO billing.payment_refunds (payment_id, provider_refund_id, amount, as_of, requested_at)
        SELECT id, 're_' || %(n)s, 100, '1', now()
        FROM billing.payments
        WHERE provider_payment_id = 'pi_' || %(n)s
    """,
    "billing.disputes": """
        INSERT INTO billing.disputes
            (payment_id, provider_dispute_id, amount, status, as_of, withdrawn, reinstated, lost)
        SELECT id, 'du_' || %(n)s, 100, 'needs_response', '1', true, false, false
        FROM billing.payments
        WHERE provider_payment_id = 'pi_' || %(n)s
    """,
    "billing.stripe_reconciliations": """
        INSERT INTO billing.stripe_reconciliations (since, until, finished_at)
        VALUES (now(), now(), now())
    """,
    "billing.usage_counters": """
        INSERT INTO billing.usage_counters (organization_id, key, period_start, period, period_end, used)
        VALUES (%(organization)s, 'app.messages_per_day', '2026-01-01Z', '2026-01-01', '2026-01-02Z', 1)
    """,
    "credits.accounts": """
        INSERT INTO credits.accounts (organization_id)
        VALUES (%(organization)s)
    """,
    "credits.grants": """
        INSERT INTO credits.grants (organization_id, source, source_key, amount, remaining, priority)
        VALUES (%(organization)s, 'promotion', 'promotion:spring', 100, 100, 10)
    """,
    "credits.entries": """
        INSERT INTO credits.entries
            (organization_id, version, kind, amount, available_after, held_after, debt_after, actor)
        VALUES (%(organization)s, 1, 'grant', 100, 100, 0, 0, 'system')
    """,
    "credits.holds": """
        INSERT INTO credits.holds
            (organization_id, operation, quantity, unit_cost, amount, allocations, expires_at,
             idempotency_key, request_hash, actor)
        VALUES (%(organization)s, 'ai_text_chat', 1, 0, 0, '{}', now(), 'key', sha256('request'), 'user:1')
    """,
    "credits.refunds": """
        INSERT INTO credits.refunds (id, organization_id, debit_id, amount, refunded_total, reason)
        SELECT id, organization_id, id, 1, 1, 'failed'
        FROM credits.entries
        WHERE organization_id = %(organization)s
    """,
    "credits.sign_up_claims": """
        INSERT INTO credits.sign_up_claims (email_hash, organization_id)
        VALUES (sha256(convert_to(%(n)s::text, 'UTF8')), %(organization)s)
    """,
    "projects.projects": """
        INSERT INTO projects.projects (id, organization_id, created_by, kind, title)
        VALUES (%(project)s, %(organization)s, %(user)s, 'mobile', 'Project ' || %(n)s)
    """,
    "projects.settings": """
        INSERT INTO projects.settings (project_id, organization_id)
        VALUES (%(project)s, %(organization)s)
    """,
    "projects.app_settings": """
        INSERT INTO projects.app_settings (project_id, organization_id)
        VALUES (%(project)s, %(organization)s)
    """,
    "projects.site_settings": """
        INSERT INTO projects.site_settings (project_id, organization_id)
        VALUES (%(project)s, %(organization)s)
    """,
    "projects.favorites": """
        INSERT INTO projects.favorites (user_id, project_id, organization_id)
        VALUES (%(user)s, %(project)s, %(organization)s)
    """,
    "projects.messages": """
        INSERT INTO projects.messages (organization_id, project_id, sequence, role, content)
        VALUES (%(organization)s, %(project)s, 1, 'user', 'Hello')
    """,
    "projects.shares": """
        INSERT INTO projects.shares (organization_id, project_id, email, role, token_hash, expires_at)
        VALUES (%(organization)s, %(project)s, 'eve@example.com', 'viewer',
                sha256(convert_to(%(n)s::text, 'UTF8')), now())
    """,
    "projects.generations": """
        INSERT INTO projects.generations
            (organization_id, project_id, agent_type, prompt, hold_id, counted_at, lock_token_hash,
             lock_expires_at)
        SELECT %(organization)s, %(project)s, 'frontend', 'Make it blue', id, now(), sha256('token'), now()
        FROM credits.holds
        WHERE organization_id = %(organization)s
    """,
    "storage.objects": """
        INSERT INTO storage.objects
            (organization_id, project_id, kind, state, s3_key, s3_version, name, content_type, bytes,
             expires_at, stored_at)
        VALUES (%(organization)s, %(project)s, 'files', 'stored', 'projects/' || %(n)s || '/files-v1.json',
                'v1', 'version 1', 'application/json', 1, now(), now())
    """,
    "storage.unknown_objects": """
        INSERT INTO storage.unknown_objects (s3_key, s3_version, bytes) VALUES ('uploads/' || %(n)s, 'v1', 1)
    """,
    "projects.file_versions": """
        INSERT INTO projects.file_versions
            (project_id, organization_id, version, object_id, s3_key, s3_version, epoch_ms, sha256,
             total_bytes, files, base_version)
        SELECT project_id, organization_id, 1, id, s3_key, s3_version, 1, repeat('0', 64), 0, '[]', 0
        FROM storage.objects
        WHERE project_id = %(project)s
    """,
    "deploys.deployments": """
        INSERT INTO deploys.deployments
            (id, organization_id, project_id, type, platform, project_name, next_poll_at)
        VALUES (%(deployment)s, %(organization)s, %(project)s, 'eas-build', 'android', 'Project', now())
    """,
    "deploys.provider_jobs": """
        INSERT INTO deploys.provider_jobs (organization_id, external_id, deployment_id, kind)
        VALUES (%(organization)s, 'build', %(deployment)s, 'build')
    """,
    "deploys.deployment_events": """
        INSERT INTO deploys.deployment_events
            (organization_id, deployment_id, kind, status, source, actor, occurred_at)
        VALUES (%(organization)s, %(deployment)s, 'started', 'pending', 'user', 'user:1', now())
    """,
    "deploys.artifacts": """
        INSERT INTO deploys.artifacts (organization_id, project_id, deployment_id, kind, source_url)
        VALUES (%(organization)s, %(project)s, %(deployment)s, 'android', 'https://expo.dev/artifacts/1.aab')
    """,
    "platform.webhook_inbox": """
        INSERT INTO platform.webhook_inbox
            (provider, event_id, event_type, body, status, organization_id, occurred_at)
        VALUES ('stripe', 'evt_' || %(n)s, 'invoice.paid', '{}', 'processed', %(organization)s, now())
    """,
    "platform.outbox": """
        INSERT INTO platform.outbox (organization_id, type, payload)
        VALUES (%(organization)s, 'test.happened', '{}')
    """,
    "platform.outbox_sequences": """
        INSERT INTO platform.outbox_sequences (organization_id, last)
        VALUES (%(organization)s, 1)
    """,
    "platform.api_keys": """
        INSERT INTO platform.api_keys (kind, organization_id, name, prefix, secret_hash, scopes)
        VALUES ('organization', %(organization)s, 'key', 'prefix' || %(n)s, sha256('secret'), '{read}')
    """,
    "platform.idempotency_keys": """
        INSERT INTO platform.idempotency_keys
            (organization_id, route, key, request_hash, claim, claimed_until, expires_at)
        VALUES (%(organization)s, 'POST /v1/projects', 'key', sha256('request'), %(user)s, now(), now())
    """,
    "deploys.oauth_states": """
        INSERT INTO deploys.oauth_states
            (id, state_hash, organization_id, user_id, is_users_own, verifier, expires_at)
        VALUES (platform.new_id(), sha256(convert_to('state' || %(n)s, 'UTF8')), %(organization)s, %(user)s,
                false, '', now())
    """,
    "deploys.private_keys": """
        INSERT INTO deploys.private_keys (secret_name, organization_id)
        VALUES ('stack/integrations/' || %(n)s, %(organization)s)
    """,
    "deploys.integrations": """
        INSERT INTO deploys.integrations (organization_id, scope, type, config)
        VALUES (%(organization)s, 'organization', 'google_analytics', '{"measurement_id": "G-ABCDEF1234"}')
    """,
    "platform.backups": """
        INSERT INTO platform.backups
            (name, kind, key, manifest_key, bytes, row_count, sha256, started_at, finished_at)
        VALUES ('backup_20260101_00000' || %(n)s, 'dump', 'backups/a.dump.zst', 'backups/a.json', 1, 1,
                repeat('0', 64), now(), now())
    """,
    "platform.erasures": """
        INSERT INTO platform.erasures (user_id, organization_id, actor, erased)
        VALUES (%(user)s, %(organization)s, 'clerk', '{}')
    """,
    "platform.audit_log": """
        INSERT INTO platform.audit_log (organization_id, actor, action, target)
        VALUES (%(organization)s, 'system', 'user.created', 'user:1')
    """,
}


@dataclass(frozen=True)
class Tenant:
    organization: UUID
    user: UUID
    project: UUID
    deployment: UUID


ONE = Tenant(*(UUID(f"01890a5d-ac96-774b-bcce-b302099a{n}001") for n in range(4)))
OTHER = Tenant(*(UUID(f"01890a5d-ac96-774b-bcce-b302099a{n}002") for n in range(4)))


def populate(owner: psycopg.Connection[DictRow]) -> None:
    """Insert the rows of both, as the owner."""
    with owner.transaction():
        for number, tenant in enumerate((ONE, OTHER), start=1):
            values = {"n": number, **asdict(tenant)}
            for insert in INSERTS.values():
                owner.execute(insert.encode(), values)
