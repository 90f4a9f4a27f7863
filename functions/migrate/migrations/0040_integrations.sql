-- migrate:up
-- What an organisation, one of its projects or one of its users has set up at other services. What is not
-- secret stands in `config`; secrets are ciphertexts that KMS alone opens (backplane/field_encryption.py).

CREATE TYPE deploys.integration_type AS ENUM (
    'expo', 'app_store_connect', 'google_play', 'vercel', 'github', 'stripe', 'google_analytics', 'supabase',
    'custom'
);
CREATE TYPE deploys.integration_scope AS ENUM ('user', 'organization', 'project');
CREATE TYPE deploys.integration_state AS ENUM ('active', 'needs_reconnect', 'disabled');

CREATE TABLE deploys.integrations (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    project_id uuid,
    user_id uuid,
    scope deploys.integration_scope NOT NULL,
    type deploys.integration_type NOT NULL,
    state deploys.integration_state NOT NULL DEFAULT 'active',
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    secrets bytea, -- a JSON object, encrypted
    webhook_secrets bytea, -- [{secret, until}], the newest first, encrypted
    encryption_key text, -- the ARN of the KMS key that both are under; the elder one where they differ
    secret_name text UNIQUE, -- of a private key in Secrets Manager, which never comes in here
    tokens_expire_at timestamptz, -- of OAuth's access token
    refresh_lease uuid, -- of the one process that refreshes it
    refresh_leased_until timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id),
    -- A user's own end with his membership.
    FOREIGN KEY (organization_id, user_id)
        REFERENCES tenancy.organization_members (organization_id, user_id) ON DELETE CASCADE,
    CHECK ((scope = 'project') = (project_id IS NOT NULL)),
    CHECK ((scope = 'user') = (user_id IS NOT NULL)),
    CHECK (encryption_key IS NOT NULL OR (secrets IS NULL AND webhook_secrets IS NULL)),
    CHECK ((refresh_lease IS NULL) = (refresh_leased_until IS NULL)),
    -- One of a type in a scope.
    UNIQUE NULLS NOT DISTINCT (organization_id, type, project_id, user_id)
);
CREATE INDEX integrations_newest ON deploys.integrations (organization_id, id DESC);
CREATE INDEX integrations_project ON deploys.integrations (organization_id, project_id);
CREATE INDEX integrations_user ON deploys.integrations (organization_id, user_id);
CREATE INDEX integrations_encryption_key
    ON deploys.integrations (encryption_key, id) WHERE encryption_key IS NOT NULL;
CREATE TRIGGER integrations_touch BEFORE UPDATE ON deploys.integrations
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CALL platform.protect('deploys.integrations', 'organization_id');
-- What is a user's own, others of his organisation do not see.
CREATE POLICY app_own ON deploys.integrations AS RESTRICTIVE TO backplane_app
    USING (user_id IS NULL OR user_id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid));
GRANT SELECT, INSERT, UPDATE, DELETE ON deploys.integrations TO backplane_app, backplane_system;

-- migrate:down
DROP TABLE deploys.integrations;
DROP TYPE deploys.integration_state;
DROP TYPE deploys.integration_scope;
DROP TYPE deploys.integration_type;
