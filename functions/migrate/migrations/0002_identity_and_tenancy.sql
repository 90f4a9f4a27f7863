-- migrate:up
-- Users (Clerk's, kept in step by its webhook) and the organisations everything belongs to.

CREATE TYPE identity.platform_role AS ENUM ('user', 'admin', 'super_admin');

CREATE TABLE identity.users (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    clerk_id text NOT NULL UNIQUE,
    -- Not unique: after a deletion the same address signs up under a new id, and Clerk's events
    -- come in any order. Clerk keeps addresses unique among its live users.
    email text,
    username text,
    first_name text,
    last_name text,
    image_url text,
    -- Only for a product that signs its users in itself (S1); Clerk users have none.
    password_hash text CHECK (password_hash ~ '^\$2[aby]\$\d\d\$.{53}$'),
    role identity.platform_role NOT NULL DEFAULT 'user',
    is_active boolean NOT NULL DEFAULT true,
    last_login_at timestamptz,
    -- How new the state is: a sortable key made of the event's time, kind and id ('' = no event
    -- yet, provisioned by a token). An event that does not sort after it is stale.
    as_of text COLLATE "C" NOT NULL DEFAULT '',
    deleted_at timestamptz, -- a tombstone: personal data gone, clerk_id kept so nothing revives it
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX users_email ON identity.users (lower(email)) WHERE deleted_at IS NULL;
CREATE INDEX users_created_at ON identity.users (created_at);
CREATE TRIGGER users_touch BEFORE UPDATE ON identity.users
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TYPE tenancy.member_role AS ENUM ('owner', 'admin', 'editor', 'member', 'viewer');

CREATE TABLE tenancy.organizations (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    clerk_id text UNIQUE,
    personal_user_id uuid UNIQUE REFERENCES identity.users (id), -- set: this user's personal one
    name text NOT NULL,
    slug text,
    description text,
    logo_url text,
    timezone text NOT NULL DEFAULT 'UTC', -- IANA name; quota days and months turn by it
    as_of text COLLATE "C" NOT NULL DEFAULT '',
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (clerk_id IS NULL OR personal_user_id IS NULL)
);
CREATE UNIQUE INDEX organizations_slug ON tenancy.organizations (slug) WHERE deleted_at IS NULL;
CREATE TRIGGER organizations_touch BEFORE UPDATE ON tenancy.organizations
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TABLE tenancy.organization_members (
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    user_id uuid NOT NULL REFERENCES identity.users (id),
    role tenancy.member_role NOT NULL DEFAULT 'viewer',
    as_of text COLLATE "C" NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX organization_members_user ON tenancy.organization_members (user_id);
CREATE TRIGGER organization_members_touch BEFORE UPDATE ON tenancy.organization_members
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CALL platform.protect('identity.users');
CALL platform.protect('tenancy.organizations', 'id');
CALL platform.protect('tenancy.organization_members', 'organization_id');

-- A caller sees himself and, inside an organisation, its members.
CREATE POLICY app_self ON identity.users FOR SELECT TO backplane_app
    USING (id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid));
CREATE POLICY app_members ON identity.users FOR SELECT TO backplane_app
    USING (id IN (
        SELECT m.user_id
        FROM tenancy.organization_members AS m
        WHERE m.organization_id = (SELECT nullif(current_setting('app.organization_id', true), '')::uuid)
    ));

-- Columns, not rows, keep password hashes from the application.
GRANT SELECT (id, clerk_id, email, username, first_name, last_name, image_url, role, is_active,
              last_login_at, deleted_at, created_at, updated_at)
    ON identity.users TO backplane_app;
GRANT SELECT ON tenancy.organizations, tenancy.organization_members TO backplane_app;
GRANT INSERT, UPDATE ON identity.users, tenancy.organizations TO backplane_system;
GRANT INSERT, UPDATE, DELETE ON tenancy.organization_members TO backplane_system;

-- migrate:down
DROP POLICY app_members ON identity.users;
DROP TABLE tenancy.organization_members;
DROP TABLE tenancy.organizations;
DROP TYPE tenancy.member_role;
DROP TABLE identity.users;
DROP TYPE identity.platform_role;
