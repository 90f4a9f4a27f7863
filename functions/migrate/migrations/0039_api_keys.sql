-- migrate:up
-- Organisations make and revoke their own keys, and see when each was last used and how often.

ALTER TABLE platform.api_keys ADD COLUMN last_used_at timestamptz;
ALTER TABLE platform.api_keys ADD COLUMN use_count bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN platform.api_keys.last_used_at IS 'Written once a minute at most.';
COMMENT ON COLUMN platform.api_keys.use_count IS 'At least so many: a process that ends takes along what it had not written yet.';

-- Columns, not rows, keep the hashes of secrets from the application.
GRANT SELECT (id, kind, organization_id, name, prefix, scopes, created_by, expires_at, revoked_at, created_at,
              last_used_at, use_count)
    ON platform.api_keys TO backplane_app;
GRANT INSERT (kind, organization_id, name, prefix, secret_hash, scopes, created_by, expires_at)
    ON platform.api_keys TO backplane_app;
GRANT UPDATE (revoked_at) ON platform.api_keys TO backplane_app;

-- The look-up says as well whether the key's use is to be written: callers that come in a burst ask nothing more.
-- (Functions of the release before go on with the look-up they know.)
CREATE FUNCTION platform.find_api_key(p_prefix text, p_rest interval)
RETURNS TABLE (
    id uuid, kind text, organization_id uuid, secret_hash bytea, scopes text[],
    expires_at timestamptz, revoked_at timestamptz, organization_state text, use_is_due boolean
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT k.id, k.kind::text, k.organization_id, k.secret_hash, k.scopes, k.expires_at, k.revoked_at,
           CASE WHEN o.id IS NULL THEN NULL WHEN o.deleted_at IS NULL THEN 'active' ELSE 'deleted' END,
           coalesce(k.last_used_at <= clock_timestamp() - p_rest, true)
    FROM platform.api_keys AS k
    LEFT JOIN tenancy.organizations AS o ON o.id = k.organization_id
    WHERE k.prefix = p_prefix
$$;

-- Writes that a key was used so often, unless that was written less than `p_rest` ago or is being written:
-- it waits for nobody. Answers whether it did.
CREATE FUNCTION platform.count_key_uses(p_id uuid, p_uses bigint, p_rest interval) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    WITH due AS (
        SELECT id
        FROM platform.api_keys
        WHERE id = p_id AND coalesce(last_used_at <= clock_timestamp() - p_rest, true)
        FOR UPDATE SKIP LOCKED
    ), counted AS (
        UPDATE platform.api_keys AS k
        SET last_used_at = clock_timestamp(), use_count = k.use_count + p_uses
        FROM due
        WHERE k.id = due.id
        RETURNING 1
    )
    SELECT EXISTS (SELECT 1 FROM counted)
$$;

GRANT EXECUTE ON FUNCTION platform.find_api_key(text, interval), platform.count_key_uses(uuid, bigint, interval)
    TO backplane_app, backplane_system;

-- migrate:down
DROP FUNCTION platform.count_key_uses(uuid, bigint, interval);
DROP FUNCTION platform.find_api_key(text, interval);
REVOKE UPDATE (revoked_at) ON platform.api_keys FROM backplane_app;
REVOKE INSERT (kind, organization_id, name, prefix, secret_hash, scopes, created_by, expires_at)
    ON platform.api_keys FROM backplane_app;
REVOKE SELECT (id, kind, organization_id, name, prefix, scopes, created_by, expires_at, revoked_at, created_at,
               last_used_at, use_count)
    ON platform.api_keys FROM backplane_app;
ALTER TABLE platform.api_keys DROP COLUMN use_count;
ALTER TABLE platform.api_keys DROP COLUMN last_used_at;
