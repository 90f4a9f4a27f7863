-- migrate:up
-- As in 0008, and what was spent of sign-up credits that came twice for an address is owed: otherwise
-- whoever spends them before his address is known has them for nothing.
CREATE OR REPLACE FUNCTION credits.claim_sign_up(p_organization_id uuid, p_email_hash bytea) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_grant_id uuid;
BEGIN
    INSERT INTO credits.sign_up_claims (email_hash, organization_id)
    VALUES (p_email_hash, p_organization_id)
    ON CONFLICT (email_hash) DO NOTHING;
    IF EXISTS (SELECT 1 FROM credits.sign_up_claims WHERE organization_id = p_organization_id) THEN
        RETURN true;
    END IF;

    SELECT id INTO v_grant_id
    FROM credits.grants
    WHERE organization_id = p_organization_id AND source_key = 'sign_up';
    IF FOUND THEN
        PERFORM credits.claw_back(v_grant_id, 'sign_up:' || v_grant_id, NULL, 'system');
    END IF;
    RETURN false;
END
$$;

-- migrate:down
CREATE OR REPLACE FUNCTION credits.claim_sign_up(p_organization_id uuid, p_email_hash bytea) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_grant_id uuid;
BEGIN
    INSERT INTO credits.sign_up_claims (email_hash, organization_id)
    VALUES (p_email_hash, p_organization_id)
    ON CONFLICT (email_hash) DO NOTHING;
    IF EXISTS (SELECT 1 FROM credits.sign_up_claims WHERE organization_id = p_organization_id) THEN
        RETURN true;
    END IF;

    PERFORM 1 FROM credits.accounts WHERE organization_id = p_organization_id FOR UPDATE;
    SELECT id INTO v_grant_id
    FROM credits.grants
    WHERE organization_id = p_organization_id AND source_key = 'sign_up';
    IF FOUND THEN
        PERFORM credits.end_grant(v_grant_id, 'claw_back', 'system');
    END IF;
    RETURN false;
END
$$;
