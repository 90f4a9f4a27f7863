-- migrate:up
-- Organisations and memberships as Clerk tells them: who owns one, what role was granted and when,
-- and who was removed, so that no token that is older brings him back.

ALTER TABLE identity.users ADD COLUMN locked_until timestamptz;
COMMENT ON COLUMN identity.users.locked_until IS 'Clerk locked him after failed sign-ins; infinity where it says no end.';

ALTER TABLE tenancy.organizations ADD COLUMN owner_clerk_id text;
COMMENT ON COLUMN tenancy.organizations.owner_clerk_id
    IS 'Who owns it as long as he is a member: its creator. Clerk has no owners.';

ALTER TABLE tenancy.organization_members ADD COLUMN granted_role tenancy.member_role;
ALTER TABLE tenancy.organization_members ADD COLUMN changed_at timestamptz;
COMMENT ON COLUMN tenancy.organization_members.granted_role
    IS 'The role at Clerk, where role may say owner. NULL: not of Clerk''s making, role stands.';
COMMENT ON COLUMN tenancy.organization_members.changed_at
    IS 'When Clerk changed it last: a token issued before does not know.';
UPDATE tenancy.organization_members AS m
SET granted_role = CASE m.role WHEN 'owner' THEN 'admin' ELSE m.role END
FROM tenancy.organizations AS o
WHERE o.id = m.organization_id AND o.clerk_id IS NOT NULL;

-- Who was a member, until he is one again.
CREATE TABLE tenancy.former_members (
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    user_id uuid NOT NULL REFERENCES identity.users (id),
    removed_at timestamptz NOT NULL,
    as_of text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (organization_id, user_id)
);
CREATE INDEX former_members_user ON tenancy.former_members (user_id);
CALL platform.protect('tenancy.former_members', 'organization_id');
GRANT INSERT, UPDATE, DELETE ON tenancy.former_members TO backplane_system;

-- Makes a Clerk organisation with its credit account, once. Answers whether this call made it.
CREATE FUNCTION tenancy.open_organization(p_clerk_org_id text, p_name text)
RETURNS TABLE (organization_id uuid, state text, created boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_organization_id uuid;
BEGIN
    INSERT INTO tenancy.organizations (clerk_id, name)
    VALUES (p_clerk_org_id, p_name)
    ON CONFLICT (clerk_id) DO NOTHING
    RETURNING id INTO v_organization_id;
    IF v_organization_id IS NULL THEN
        RETURN QUERY
            SELECT o.id, CASE WHEN o.deleted_at IS NULL THEN 'active' ELSE 'deleted' END, false
            FROM tenancy.organizations AS o
            WHERE o.clerk_id = p_clerk_org_id
            FOR UPDATE;
        RETURN;
    END IF;
    INSERT INTO credits.accounts (organization_id) VALUES (v_organization_id);
    INSERT INTO platform.outbox (organization_id, type, payload)
    VALUES (v_organization_id, 'organization.created', jsonb_build_object('organization_id', v_organization_id));
    RETURN QUERY SELECT v_organization_id, 'active', true;
END
$$;

-- Gives a Clerk organisation its owner: its creator while he is a member, else the admin who has been one
-- the longest. Everybody else has the role he was granted. Answers whose role changed.
CREATE FUNCTION tenancy.settle_owner(p_organization_id uuid)
RETURNS TABLE (user_id uuid, role tenancy.member_role)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_owner_clerk_id text;
    v_owner uuid;
BEGIN
    SELECT owner_clerk_id INTO v_owner_clerk_id
    FROM tenancy.organizations
    WHERE id = p_organization_id AND personal_user_id IS NULL
    FOR UPDATE; -- one owner, however many admins come at once
    IF NOT FOUND THEN
        RETURN;
    END IF;

    SELECT m.user_id INTO v_owner
    FROM tenancy.organization_members AS m
    JOIN identity.users AS u ON u.id = m.user_id
    WHERE m.organization_id = p_organization_id
      AND (u.clerk_id = v_owner_clerk_id OR coalesce(m.granted_role, m.role) IN ('owner', 'admin'))
    ORDER BY u.clerk_id IS NOT DISTINCT FROM v_owner_clerk_id DESC, m.created_at, u.clerk_id
    LIMIT 1;

    RETURN QUERY
        UPDATE tenancy.organization_members AS m
        SET role = CASE WHEN m.user_id = v_owner THEN 'owner' ELSE coalesce(m.granted_role, m.role) END
        WHERE m.organization_id = p_organization_id
          AND m.role <> CASE WHEN m.user_id = v_owner THEN 'owner' ELSE coalesce(m.granted_role, m.role) END
        RETURNING m.user_id, m.role;
END
$$;

-- As in 0008, but not for a deleted organisation, nor for a member who was removed since the token was
-- issued: he stays out until a newer token, or Clerk's event, says that he is in again.
CREATE FUNCTION tenancy.provision_organization(
    p_clerk_org_id text,
    p_name text,
    p_user_id uuid,
    p_role tenancy.member_role,
    p_issued_at timestamptz
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_organization record;
BEGIN
    SELECT * INTO STRICT v_organization FROM tenancy.open_organization(p_clerk_org_id, p_name);
    -- The lock: a deletion of the user comes before this or after, and then removes what this inserts.
    PERFORM 1 FROM identity.users WHERE id = p_user_id AND deleted_at IS NULL FOR SHARE;
    IF NOT FOUND OR v_organization.state = 'deleted' THEN
        RETURN v_organization.organization_id;
    END IF;
    INSERT INTO tenancy.organization_members (organization_id, user_id, role, granted_role)
    SELECT v_organization.organization_id, p_user_id, p_role, p_role
    WHERE NOT EXISTS (
          SELECT 1
          FROM tenancy.former_members
          WHERE organization_id = v_organization.organization_id
            AND user_id = p_user_id
            AND (p_issued_at IS NULL OR p_issued_at <= removed_at)
      )
    ON CONFLICT (organization_id, user_id) DO NOTHING;
    PERFORM tenancy.settle_owner(v_organization.organization_id);
    RETURN v_organization.organization_id;
END
$$;

-- The form without the token's time stays for functions that were deployed before this migration.
CREATE OR REPLACE FUNCTION tenancy.provision_organization(
    p_clerk_org_id text, p_name text, p_user_id uuid, p_role tenancy.member_role
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    RETURN tenancy.provision_organization(p_clerk_org_id, p_name, p_user_id, p_role, NULL);
END
$$;

-- As in 0008, and says whether the membership changed after the token was issued. The form with two
-- arguments stays for functions that were deployed before this migration.
CREATE FUNCTION identity.resolve_caller(p_clerk_user_id text, p_clerk_org_id text, p_issued_at timestamptz)
RETURNS TABLE (
    user_id uuid,
    user_state text, -- unknown, active, inactive, deleted
    platform_role text,
    organization_id uuid, -- NULL: not provisioned yet
    organization_state text, -- unknown, active, deleted
    member_role text, -- NULL: no membership yet
    role_is_newer boolean -- than the token
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT u.id,
           CASE WHEN u.id IS NULL THEN 'unknown'
                WHEN u.deleted_at IS NOT NULL THEN 'deleted'
                WHEN NOT u.is_active OR u.locked_until > statement_timestamp() THEN 'inactive'
                ELSE 'active' END,
           u.role::text,
           o.id,
           CASE WHEN o.id IS NULL THEN 'unknown'
                WHEN o.deleted_at IS NOT NULL THEN 'deleted'
                ELSE 'active' END,
           m.role::text,
           coalesce(m.changed_at >= p_issued_at, false)
    FROM (SELECT 1) AS one
    LEFT JOIN identity.users AS u ON u.clerk_id = p_clerk_user_id
    LEFT JOIN tenancy.organizations AS o
        ON CASE WHEN p_clerk_org_id IS NULL THEN o.personal_user_id = u.id ELSE o.clerk_id = p_clerk_org_id END
    LEFT JOIN tenancy.organization_members AS m ON m.organization_id = o.id AND m.user_id = u.id
$$;

GRANT EXECUTE ON FUNCTION
    identity.resolve_caller(text, text, timestamptz),
    tenancy.provision_organization(text, text, uuid, tenancy.member_role, timestamptz)
    TO backplane_app, backplane_system;
GRANT EXECUTE ON FUNCTION
    tenancy.open_organization(text, text), tenancy.settle_owner(uuid)
    TO backplane_system;

-- migrate:down
CREATE OR REPLACE FUNCTION tenancy.provision_organization(
    p_clerk_org_id text, p_name text, p_user_id uuid, p_role tenancy.member_role
) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_organization_id uuid;
BEGIN
    INSERT INTO tenancy.organizations (clerk_id, name)
    VALUES (p_clerk_org_id, p_name)
    ON CONFLICT (clerk_id) DO NOTHING
    RETURNING id INTO v_organization_id;
    IF v_organization_id IS NOT NULL THEN
        INSERT INTO platform.outbox (organization_id, type, payload)
        VALUES (v_organization_id, 'organization.created', jsonb_build_object('organization_id', v_organization_id));
    END IF;
    SELECT id INTO STRICT v_organization_id
    FROM tenancy.organizations
    WHERE clerk_id = p_clerk_org_id
    FOR UPDATE; -- one owner, however many admins come at once
    INSERT INTO credits.accounts (organization_id)
    VALUES (v_organization_id)
    ON CONFLICT (organization_id) DO NOTHING;
    INSERT INTO tenancy.organization_members (organization_id, user_id, role)
    SELECT v_organization_id, p_user_id,
           CASE WHEN p_role = 'admin' AND NOT EXISTS (
                    SELECT 1
                    FROM tenancy.organization_members
                    WHERE organization_id = v_organization_id AND role = 'owner')
                THEN 'owner' ELSE p_role END
    ON CONFLICT (organization_id, user_id) DO NOTHING;
    RETURN v_organization_id;
END
$$;

DROP FUNCTION identity.resolve_caller(text, text, timestamptz);
DROP FUNCTION tenancy.provision_organization(text, text, uuid, tenancy.member_role, timestamptz);
DROP FUNCTION tenancy.settle_owner(uuid);
DROP FUNCTION tenancy.open_organization(text, text);
DROP TABLE tenancy.former_members;
ALTER TABLE tenancy.organization_members DROP COLUMN changed_at;
ALTER TABLE tenancy.organization_members DROP COLUMN granted_role;
ALTER TABLE tenancy.organizations DROP COLUMN owner_clerk_id;
ALTER TABLE identity.users DROP COLUMN locked_until;
