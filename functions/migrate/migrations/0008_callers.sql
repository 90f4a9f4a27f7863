-- migrate:up
-- What must see beyond one organisation before a caller's organisation is known: finding the
-- caller, and making him on first sight. Security definer, so that backplane_app can call them.

CREATE FUNCTION identity.resolve_caller(p_clerk_user_id text, p_clerk_org_id text)
RETURNS TABLE (
    user_id uuid,
    user_state text, -- unknown, active, inactive, deleted
    platform_role text,
    organization_id uuid, -- NULL: not provisioned yet
    organization_state text, -- unknown, active, deleted
    member_role text -- NULL: no membership yet
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT u.id,
           CASE WHEN u.id IS NULL THEN 'unknown'
                WHEN u.deleted_at IS NOT NULL THEN 'deleted'
                WHEN NOT u.is_active THEN 'inactive'
                ELSE 'active' END,
           u.role::text,
           o.id,
           CASE WHEN o.id IS NULL THEN 'unknown'
                WHEN o.deleted_at IS NOT NULL THEN 'deleted'
                ELSE 'active' END,
           m.role::text
    FROM (SELECT 1) AS one
    LEFT JOIN identity.users AS u ON u.clerk_id = p_clerk_user_id
    LEFT JOIN tenancy.organizations AS o
        ON CASE WHEN p_clerk_org_id IS NULL THEN o.personal_user_id = u.id ELSE o.clerk_id = p_clerk_org_id END
    LEFT JOIN tenancy.organization_members AS m ON m.organization_id = o.id AND m.user_id = u.id
$$;

CREATE FUNCTION tenancy.find_organization(p_id uuid) RETURNS TABLE (id uuid, state text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT o.id, CASE WHEN o.deleted_at IS NULL THEN 'active' ELSE 'deleted' END
    FROM tenancy.organizations AS o
    WHERE o.id = p_id
$$;

CREATE FUNCTION platform.find_api_key(p_prefix text)
RETURNS TABLE (
    id uuid, kind text, organization_id uuid, secret_hash bytea, scopes text[],
    expires_at timestamptz, revoked_at timestamptz, organization_state text
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT k.id, k.kind::text, k.organization_id, k.secret_hash, k.scopes, k.expires_at, k.revoked_at,
           CASE WHEN o.id IS NULL THEN NULL WHEN o.deleted_at IS NULL THEN 'active' ELSE 'deleted' END
    FROM platform.api_keys AS k
    LEFT JOIN tenancy.organizations AS o ON o.id = k.organization_id
    WHERE k.prefix = p_prefix
$$;

-- Claims an email address for an organisation's sign-up credits. An address that another
-- organisation claimed before takes the credits away again, unless this organisation proved a
-- claim with an earlier address. Answers whether the organisation may have sign-up credits.
CREATE FUNCTION credits.claim_sign_up(p_organization_id uuid, p_email_hash bytea) RETURNS boolean
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

-- Makes a user with his personal organisation, its owner membership, its credit account and the
-- sign-up credits, all or nothing, once: the second of two racing calls waits for the first at the
-- unique index and then finds the user. Answers whether this call made him.
CREATE FUNCTION identity.provision_user(
    p_clerk_user_id text,
    p_email text,
    p_email_hash bytea,
    p_first_name text,
    p_last_name text
) RETURNS TABLE (user_id uuid, organization_id uuid, created boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_user_id uuid;
    v_organization_id uuid;
    v_plan billing.plans;
BEGIN
    INSERT INTO identity.users (clerk_id, email, first_name, last_name)
    VALUES (p_clerk_user_id, p_email, p_first_name, p_last_name)
    ON CONFLICT (clerk_id) DO NOTHING
    RETURNING id INTO v_user_id;
    IF v_user_id IS NULL THEN
        RETURN QUERY
            SELECT u.id, o.id, false
            FROM identity.users AS u
            LEFT JOIN tenancy.organizations AS o ON o.personal_user_id = u.id
            WHERE u.clerk_id = p_clerk_user_id;
        RETURN;
    END IF;

    INSERT INTO tenancy.organizations (personal_user_id, name)
    VALUES (v_user_id, coalesce(nullif(trim(concat_ws(' ', p_first_name, p_last_name)), ''), 'Personal'))
    RETURNING id INTO v_organization_id;
    INSERT INTO tenancy.organization_members (organization_id, user_id, role)
    VALUES (v_organization_id, v_user_id, 'owner');
    INSERT INTO credits.accounts (organization_id) VALUES (v_organization_id);

    IF p_email_hash IS NULL OR credits.claim_sign_up(v_organization_id, p_email_hash) THEN
        SELECT * INTO v_plan FROM billing.plans WHERE tier = 'free' AND active ORDER BY sort_order LIMIT 1;
        IF v_plan.credits > 0 THEN
            PERFORM credits.grant_credits(
                v_organization_id, 'sign_up', 'sign_up', v_plan.credits, 'system', 30,
                p_plan_id => v_plan.id);
        END IF;
    END IF;
    INSERT INTO platform.outbox (organization_id, type, payload)
    VALUES (v_organization_id, 'user.created',
            jsonb_build_object('user_id', v_user_id, 'organization_id', v_organization_id));
    RETURN QUERY SELECT v_user_id, v_organization_id, true;
END
$$;

-- Makes the organisation that a session token names, and the caller's membership in it. The first
-- admin to come is its owner until the sender of organisations says who created it.
CREATE FUNCTION tenancy.provision_organization(
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

GRANT EXECUTE ON FUNCTION
    identity.resolve_caller(text, text),
    tenancy.find_organization(uuid),
    platform.find_api_key(text),
    identity.provision_user(text, text, bytea, text, text),
    tenancy.provision_organization(text, text, uuid, tenancy.member_role)
    TO backplane_app, backplane_system;
GRANT EXECUTE ON FUNCTION credits.claim_sign_up(uuid, bytea) TO backplane_system;

-- migrate:down
DROP FUNCTION tenancy.provision_organization(text, text, uuid, tenancy.member_role);
DROP FUNCTION identity.provision_user(text, text, bytea, text, text);
DROP FUNCTION credits.claim_sign_up(uuid, bytea);
DROP FUNCTION platform.find_api_key(text);
DROP FUNCTION tenancy.find_organization(uuid);
DROP FUNCTION identity.resolve_caller(text, text);
