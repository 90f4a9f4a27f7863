-- migrate:up
-- The credit ledger's tables: one balance row an organisation, the grants it burns down, and
-- append-only entries whose sum the balance is. Only the functions of the next migration write.

CREATE TYPE credits.grant_source AS ENUM ('sign_up', 'plan', 'pack', 'promotion', 'adjustment');
CREATE TYPE credits.entry_kind AS ENUM (
    'grant', 'debit', 'hold', 'release', 'settle', 'refund', 'expire', 'claw_back', 'adjustment'
);

-- No index but the key on this table and room in each page: an update stays in its page (HOT).
CREATE TABLE credits.accounts (
    organization_id uuid PRIMARY KEY REFERENCES tenancy.organizations (id),
    available bigint NOT NULL DEFAULT 0 CHECK (available >= 0),
    held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),
    debt bigint NOT NULL DEFAULT 0 CHECK (debt >= 0),
    version bigint NOT NULL DEFAULT 0, -- the newest entry's; gapless
    next_due_at timestamptz, -- when the next live grant expires; NULL: none ever does
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

CREATE TABLE credits.grants (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES credits.accounts (organization_id),
    source credits.grant_source NOT NULL,
    source_key text NOT NULL, -- the business fact that grants once: invoice:in_…, session:cs_…
    amount bigint NOT NULL CHECK (amount > 0),
    remaining bigint NOT NULL,
    live boolean NOT NULL DEFAULT true, -- false once spent, expired or clawed back; keeps `remaining` out of the index
    priority bigint NOT NULL, -- lower burns first
    expires_at timestamptz,
    plan_id uuid REFERENCES billing.plans (id),
    provider billing.provider,
    provider_subscription_id text,
    period_end timestamptz, -- plan grants: one of a later period ends this one; a proration shares its period's end
    checkout_session_id text,
    invoice_id text,
    payment_intent_id text,
    charge_id text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (organization_id, source_key),
    CHECK (remaining BETWEEN 0 AND amount),
    CHECK (live OR remaining = 0)
) WITH (fillfactor = 80);
CREATE INDEX grants_burn_order
    ON credits.grants (organization_id, priority, expires_at NULLS LAST, created_at, id) WHERE live;
CREATE INDEX grants_subscription
    ON credits.grants (provider, provider_subscription_id) WHERE provider_subscription_id IS NOT NULL;

CREATE TYPE credits.allocation AS (grant_id uuid, amount bigint);

CREATE TABLE credits.entries (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES credits.accounts (organization_id),
    version bigint NOT NULL, -- 1, 2, 3 … within the organisation
    kind credits.entry_kind NOT NULL,
    amount bigint NOT NULL, -- the change of available + held - debt
    available_after bigint NOT NULL,
    held_after bigint NOT NULL,
    debt_after bigint NOT NULL,
    operation text,
    quantity bigint,
    unit_cost bigint,
    source_id uuid, -- the grant of a grant, expire or claw_back; the debit of a refund; the hold of a settle
    allocations credits.allocation[], -- which grants a debit burned, so that a refund finds its way back
    idempotency_key text,
    request_hash bytea,
    actor text NOT NULL, -- pseudonymous: user:<id>, key:<id>, stripe, clerk, system
    details jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (organization_id, version)
);
CREATE UNIQUE INDEX entries_idempotency
    ON credits.entries (organization_id, idempotency_key, kind) WHERE idempotency_key IS NOT NULL;
-- Its predicate must not follow from a look-up by key: while the table has no statistics, a smaller
-- partial index on the organisation looks cheaper than the unique one, and reads every entry.
CREATE INDEX entries_usage ON credits.entries (organization_id, created_at) WHERE operation IS NOT NULL;
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON credits.entries
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();

-- What an operation costs unless platform.admin_settings.feature_costs says otherwise.
CREATE TABLE credits.operations (
    operation text PRIMARY KEY CHECK (operation ~ '^[a-z][a-z0-9_]{0,62}$' AND operation <> 'admin_adjustment'),
    default_cost bigint NOT NULL CHECK (default_cost >= 0)
);
INSERT INTO credits.operations (operation, default_cost)
VALUES ('ai_text_chat', 1), ('ai_image_generation', 5),
       ('project_creation', 1), ('prd_generation', 1), ('schema_generation', 1), ('flowchart_generation', 1),
       ('task_generation', 1), ('plan_generation', 1), ('workspace_blueprint', 1), ('feature_segmentation', 1);

-- Sign-up credits come once per email address, also after its user is erased: keyed hashes only.
CREATE TABLE credits.sign_up_claims (
    email_hash bytea PRIMARY KEY CHECK (octet_length(email_hash) = 32),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX sign_up_claims_organization ON credits.sign_up_claims (organization_id);

CALL platform.protect('credits.accounts', 'organization_id');
CALL platform.protect('credits.grants', 'organization_id');
CALL platform.protect('credits.entries', 'organization_id');
CALL platform.protect('credits.operations');
CALL platform.protect('credits.sign_up_claims');
CREATE POLICY app_read ON credits.operations FOR SELECT TO backplane_app USING (true);
GRANT SELECT ON credits.accounts, credits.grants, credits.entries, credits.operations TO backplane_app;
GRANT INSERT, UPDATE, DELETE ON credits.operations TO backplane_system;

-- migrate:down
DROP TABLE credits.sign_up_claims;
DROP TABLE credits.operations;
DROP TABLE credits.entries;
DROP TYPE credits.allocation;
DROP TABLE credits.grants;
DROP TABLE credits.accounts;
DROP TYPE credits.entry_kind;
DROP TYPE credits.grant_source;
