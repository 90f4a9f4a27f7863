-- migrate:up
-- Consents that users have begun at another service: by the hash of `state`, for ten minutes and one use.

CREATE TABLE deploys.oauth_states (
    id uuid PRIMARY KEY,
    state_hash bytea NOT NULL UNIQUE CHECK (octet_length(state_hash) = 32), -- SHA-256 of 256 random bits
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    user_id uuid NOT NULL REFERENCES identity.users (id),
    project_id uuid,
    is_users_own boolean NOT NULL,
    verifier bytea NOT NULL, -- PKCE's, encrypted
    expires_at timestamptz NOT NULL,
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id)
);
CREATE INDEX oauth_states_organization ON deploys.oauth_states (organization_id, project_id);
CREATE INDEX oauth_states_user ON deploys.oauth_states (user_id);
CREATE INDEX oauth_states_expires_at ON deploys.oauth_states (expires_at);

CALL platform.protect('deploys.oauth_states', 'organization_id');
GRANT SELECT, INSERT, DELETE ON deploys.oauth_states TO backplane_app;
GRANT DELETE ON deploys.oauth_states TO backplane_system;

-- migrate:down
DROP TABLE deploys.oauth_states;
