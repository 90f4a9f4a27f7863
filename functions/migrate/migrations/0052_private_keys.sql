-- migrate:up
-- The private keys that are in Secrets Manager, by the names of their secrets: noted before a key is stored and
-- forgotten after it is deleted, so that one that no integration names is found and deleted.

CREATE TABLE deploys.private_keys (
    secret_name text PRIMARY KEY,
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX private_keys_organization ON deploys.private_keys (organization_id);

CALL platform.protect('deploys.private_keys', 'organization_id');
GRANT SELECT, INSERT, DELETE ON deploys.private_keys TO backplane_app;
GRANT DELETE ON deploys.private_keys TO backplane_system;

-- migrate:down
DROP TABLE deploys.private_keys;
