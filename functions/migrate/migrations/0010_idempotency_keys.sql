-- migrate:up
-- Answers to repeat: what a POST under /v1 answered to an Idempotency-Key, for a day. (The ledger remembers
-- its own keys, for ever.) The functions are all that backplane_app may do with them.

CREATE TABLE platform.idempotency_keys (
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    route text NOT NULL, -- POST /v1/projects
    key text NOT NULL,
    request_hash bytea NOT NULL CHECK (octet_length(request_hash) = 32),
    claim uuid NOT NULL, -- the request that works under the key, or did
    claimed_until timestamptz NOT NULL, -- when that request is over, whatever became of it
    status_code bigint, -- NULL: under way
    body text, -- as answered, without what is shown once
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (organization_id, route, key)
);
CREATE INDEX idempotency_keys_expiry ON platform.idempotency_keys (expires_at);
CALL platform.protect('platform.idempotency_keys', 'organization_id');
GRANT DELETE ON platform.idempotency_keys TO backplane_system;

-- Takes a key for a request. outcome:
--   'claimed'   go on, then remember or release it
--   'replayed'  the first answer, in status_code and body
--   'conflict'  the key belongs to another request
--   'busy'      the same request is under way
CREATE FUNCTION platform.claim_key(
    p_organization_id uuid, p_route text, p_key text, p_request_hash bytea, p_claim uuid, p_seconds double precision
) RETURNS TABLE (outcome text, status_code bigint, body text)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_now timestamptz := clock_timestamp();
    v_key platform.idempotency_keys;
BEGIN
    INSERT INTO platform.idempotency_keys AS k
        (organization_id, route, key, request_hash, claim, claimed_until, expires_at)
    VALUES
        (p_organization_id, p_route, p_key, p_request_hash, p_claim,
         v_now + make_interval(secs => p_seconds), v_now + interval '24 hours')
    ON CONFLICT (organization_id, route, key) DO UPDATE
    SET request_hash = EXCLUDED.request_hash,
        claim = EXCLUDED.claim,
        claimed_until = EXCLUDED.claimed_until,
        status_code = NULL,
        body = NULL,
        expires_at = EXCLUDED.expires_at
    WHERE k.expires_at <= v_now -- forgotten
       OR (k.status_code IS NULL AND k.claimed_until <= v_now); -- cut off before it answered
    IF FOUND THEN
        RETURN QUERY SELECT 'claimed', NULL::bigint, NULL::text;
        RETURN;
    END IF;
    SELECT * INTO v_key
    FROM platform.idempotency_keys
    WHERE organization_id = p_organization_id AND route = p_route AND key = p_key;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'busy', NULL::bigint, NULL::text; -- released a moment ago: ask again
    ELSIF v_key.request_hash <> p_request_hash THEN
        RETURN QUERY SELECT 'conflict', NULL::bigint, NULL::text;
    ELSIF v_key.status_code IS NULL THEN
        RETURN QUERY SELECT 'busy', NULL::bigint, NULL::text;
    ELSE
        RETURN QUERY SELECT 'replayed', v_key.status_code, v_key.body;
    END IF;
END
$$;

-- Keeps a claimed key's answer for a day from now.
CREATE FUNCTION platform.remember_answer(
    p_organization_id uuid, p_route text, p_key text, p_claim uuid, p_status_code bigint, p_body text
) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    WITH kept AS (
        UPDATE platform.idempotency_keys
        SET status_code = p_status_code, body = p_body, expires_at = clock_timestamp() + interval '24 hours'
        WHERE organization_id = p_organization_id AND route = p_route AND key = p_key AND claim = p_claim
        RETURNING 1
    )
    SELECT EXISTS (SELECT 1 FROM kept)
$$;

-- Gives a claimed key back: the request was refused, and may come again changed.
CREATE FUNCTION platform.release_key(p_organization_id uuid, p_route text, p_key text, p_claim uuid) RETURNS boolean
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    WITH released AS (
        DELETE FROM platform.idempotency_keys
        WHERE organization_id = p_organization_id
          AND route = p_route
          AND key = p_key
          AND claim = p_claim
          AND status_code IS NULL
        RETURNING 1
    )
    SELECT EXISTS (SELECT 1 FROM released)
$$;

GRANT EXECUTE ON FUNCTION
    platform.claim_key(uuid, text, text, bytea, uuid, double precision),
    platform.remember_answer(uuid, text, text, uuid, bigint, text),
    platform.release_key(uuid, text, text, uuid)
    TO backplane_app, backplane_system;

-- migrate:down
DROP FUNCTION platform.release_key(uuid, text, text, uuid);
DROP FUNCTION platform.remember_answer(uuid, text, text, uuid, bigint, text);
DROP FUNCTION platform.claim_key(uuid, text, text, bytea, uuid, double precision);
DROP TABLE platform.idempotency_keys;
