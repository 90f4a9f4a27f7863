-- migrate:up
-- Webhooks in, events out, keys, settings and the audit log.

CREATE TYPE platform.webhook_provider AS ENUM ('stripe', 'clerk', 'eas', 'vercel', 'github');
CREATE TYPE platform.inbox_status AS ENUM (
    'processed', 'ignored', 'stale', 'parked', 'quarantined', 'failed', 'dead'
);

CREATE TABLE platform.webhook_inbox (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    provider platform.webhook_provider NOT NULL,
    event_id text NOT NULL,
    event_type text NOT NULL,
    -- The bytes as signed: jsonb would refuse some valid JSON (\u0000, lone surrogates).
    body bytea NOT NULL,
    status platform.inbox_status NOT NULL,
    reason text,
    waiting_for text, -- parked: the subject whose arrival replays it, e.g. stripe.customer:cus_…
    organization_id uuid REFERENCES tenancy.organizations (id),
    occurred_at timestamptz NOT NULL,
    attempts bigint NOT NULL DEFAULT 1,
    next_attempt_at timestamptz,
    error text, -- the last failure's traceback
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    processed_at timestamptz,
    UNIQUE (provider, event_id),
    CHECK ((status = 'parked') = (waiting_for IS NOT NULL))
);
CREATE INDEX webhook_inbox_waiting ON platform.webhook_inbox (waiting_for) WHERE status = 'parked';
CREATE INDEX webhook_inbox_due ON platform.webhook_inbox (next_attempt_at) WHERE status IN ('parked', 'failed');
CREATE INDEX webhook_inbox_received ON platform.webhook_inbox (received_at);
CREATE INDEX webhook_inbox_organization ON platform.webhook_inbox (organization_id);

CREATE TABLE platform.outbox (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid REFERENCES tenancy.organizations (id),
    type text NOT NULL CHECK (type ~ '^[a-z_]+\.[a-z_]+$'),
    payload jsonb NOT NULL,
    sequence bigint, -- 1, 2, 3 … within the organisation, in the order in which they go out
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz,
    attempts bigint NOT NULL DEFAULT 0, -- how often the bus refused it
    next_attempt_at timestamptz,
    error text,
    UNIQUE (organization_id, sequence)
);
CREATE INDEX outbox_unpublished ON platform.outbox (created_at, id) WHERE published_at IS NULL;

CREATE TABLE platform.outbox_sequences (
    organization_id uuid PRIMARY KEY REFERENCES tenancy.organizations (id),
    last bigint NOT NULL CHECK (last > 0)
);

CREATE TYPE platform.api_key_kind AS ENUM ('organization', 'service');

CREATE TABLE platform.api_keys (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    kind platform.api_key_kind NOT NULL,
    organization_id uuid REFERENCES tenancy.organizations (id),
    name text NOT NULL,
    prefix text NOT NULL UNIQUE,
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32), -- SHA-256 of a 256-bit random secret
    scopes text[] NOT NULL,
    created_by uuid REFERENCES identity.users (id),
    expires_at timestamptz,
    revoked_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK ((kind = 'service') = (organization_id IS NULL))
);
CREATE INDEX api_keys_organization ON platform.api_keys (organization_id);

CREATE TABLE platform.audit_log (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid REFERENCES tenancy.organizations (id),
    actor text NOT NULL, -- user:<id>, key:<id>, clerk, stripe, system
    action text NOT NULL CHECK (action ~ '^[a-z_]+\.[a-z_]+$'),
    target text NOT NULL, -- user:<id>, subscription:<id>, …
    details jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX audit_log_organization ON platform.audit_log (organization_id, created_at DESC);

CREATE TABLE platform.admin_settings (
    id text PRIMARY KEY DEFAULT 'singleton' CHECK (id = 'singleton'),
    feature_costs jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(feature_costs) = 'object'),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TRIGGER admin_settings_touch BEFORE UPDATE ON platform.admin_settings
    FOR EACH ROW EXECUTE FUNCTION platform.touch();
INSERT INTO platform.admin_settings (id) VALUES ('singleton');

CREATE FUNCTION platform.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: its rows are append-only', TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER audit_log_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON platform.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();

CALL platform.protect('platform.webhook_inbox');
CALL platform.protect('platform.outbox', 'organization_id');
CALL platform.protect('platform.outbox_sequences', 'organization_id');
CALL platform.protect('platform.api_keys', 'organization_id');
CALL platform.protect('platform.audit_log', 'organization_id');
CALL platform.protect('platform.admin_settings');
CREATE POLICY app_read ON platform.admin_settings FOR SELECT TO backplane_app USING (true);
GRANT SELECT ON platform.admin_settings TO backplane_app;
GRANT INSERT ON platform.outbox, platform.audit_log TO backplane_app;
GRANT INSERT, UPDATE
    ON platform.webhook_inbox, platform.outbox, platform.outbox_sequences, platform.api_keys,
       platform.admin_settings
    TO backplane_system;
GRANT INSERT ON platform.audit_log TO backplane_system;

-- The runner's own table, which stands before any migration.
GRANT SELECT ON public.schema_migrations TO backplane_system, backplane_backup;

-- migrate:down
REVOKE SELECT ON public.schema_migrations FROM backplane_system, backplane_backup;
DROP TABLE platform.admin_settings;
DROP TABLE platform.audit_log;
DROP FUNCTION platform.refuse_change();
DROP TABLE platform.api_keys;
DROP TYPE platform.api_key_kind;
DROP TABLE platform.outbox_sequences;
DROP TABLE platform.outbox;
DROP TABLE platform.webhook_inbox;
DROP TYPE platform.inbox_status;
DROP TYPE platform.webhook_provider;
