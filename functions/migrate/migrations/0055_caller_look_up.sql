-- migrate:up
-- Who calls, as in 0013, by index alone: the plan of a function is made for all of its arguments' values, and a
-- condition that depends on one of them had every organisation read at each request with a session token.
CREATE OR REPLACE FUNCTION identity.resolve_caller(p_clerk_user_id text, p_clerk_org_id text, p_issued_at timestamptz)
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
    LEFT JOIN LATERAL (
        SELECT id, deleted_at
        FROM tenancy.organizations
        WHERE p_clerk_org_id IS NULL AND personal_user_id = u.id
        UNION ALL
        SELECT id, deleted_at
        FROM tenancy.organizations
        WHERE clerk_id = p_clerk_org_id
    ) AS o ON true
    LEFT JOIN tenancy.organization_members AS m ON m.organization_id = o.id AND m.user_id = u.id
$$;

-- The audit log in parts has two orders: an organisation's own, and everybody's by the id.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX audit_log_newest ON platform.audit_log (organization_id, id DESC);

-- migrate:down
DROP INDEX platform.audit_log_newest;
CREATE OR REPLACE FUNCTION identity.resolve_caller(p_clerk_user_id text, p_clerk_org_id text, p_issued_at timestamptz)
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
