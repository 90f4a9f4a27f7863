-- migrate:up
-- Organisations that Backplane itself makes and manages: their members, invitations and end.

CREATE TABLE tenancy.invitations (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    email text NOT NULL CHECK (email = lower(email)),
    role tenancy.member_role NOT NULL CHECK (role <> 'owner'),
    token_hash bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32), -- SHA-256 of a 256-bit random secret
    expires_at timestamptz NOT NULL,
    invited_by uuid REFERENCES identity.users (id),
    user_id uuid REFERENCES identity.users (id), -- who accepted
    accepted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (organization_id, email),
    CHECK ((user_id IS NULL) = (accepted_at IS NULL))
);
CREATE INDEX invitations_user ON tenancy.invitations (user_id);
CREATE INDEX invitations_unaccepted ON tenancy.invitations (expires_at) WHERE accepted_at IS NULL;
CALL platform.protect('tenancy.invitations', 'organization_id');
GRANT SELECT (id, organization_id, email, role, expires_at, invited_by, user_id, accepted_at, created_at)
    ON tenancy.invitations TO backplane_app;
GRANT INSERT (organization_id, email, role, token_hash, expires_at, invited_by) ON tenancy.invitations TO backplane_app;
GRANT UPDATE (role, token_hash, expires_at, invited_by, user_id, accepted_at) ON tenancy.invitations TO backplane_app;
GRANT DELETE ON tenancy.invitations TO backplane_app, backplane_system;

-- What an organisation's admins change, in the organisation of the transaction. Whoever changes members or
-- ends the organisation holds its row.
GRANT UPDATE (name, slug, description, logo_url) ON tenancy.organizations TO backplane_app;
GRANT UPDATE (role), DELETE ON tenancy.organization_members TO backplane_app;

-- Admins read what was done in their organisation.
GRANT SELECT ON platform.audit_log TO backplane_app;

-- What a deleted organisation leaves is erased by the sweeper, once.
ALTER TABLE tenancy.organizations ADD COLUMN erased_at timestamptz;
UPDATE tenancy.organizations SET erased_at = deleted_at WHERE personal_user_id IS NOT NULL AND deleted_at IS NOT NULL;
-- Nobody reads the column but who lists what was erased.
-- squawk-ignore ban-drop-not-null
ALTER TABLE platform.erasures ALTER COLUMN user_id DROP NOT NULL;
COMMENT ON COLUMN platform.erasures.user_id IS 'NULL: an organisation was erased, and nobody with it.';

-- The slug of a name, as projects have theirs: with the id's last six characters, or in the rare case that
-- this one is taken, with all of it.
CREATE FUNCTION tenancy.free_slug(p_name text, p_id uuid) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN EXISTS (SELECT 1 FROM tenancy.organizations WHERE slug = s.short AND deleted_at IS NULL)
                THEN projects.slug_of(left(p_name, 60), replace(p_id::text, '-', ''))
                ELSE s.short END
    FROM (SELECT projects.slug_of(left(p_name, 60), right(p_id::text, 6)) AS short) AS s
$$;

-- Makes an organisation with its credit account, owned by a user. NULL where he owns as many as he may.
CREATE FUNCTION tenancy.create_organization(p_name text, p_slug text, p_user_id uuid, p_most bigint) RETURNS uuid
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_id uuid := platform.new_id();
BEGIN
    -- The lock: of two creations at once one counts the other, and a deletion of the user comes before or after.
    PERFORM 1 FROM identity.users WHERE id = p_user_id AND deleted_at IS NULL FOR UPDATE;
    IF NOT FOUND OR p_most <= (
        SELECT count(*)
        FROM tenancy.organization_members AS m
        JOIN tenancy.organizations AS o ON o.id = m.organization_id
        WHERE m.user_id = p_user_id
          AND m.role = 'owner'
          AND o.clerk_id IS NULL
          AND o.personal_user_id IS NULL
          AND o.deleted_at IS NULL
    ) THEN
        RETURN NULL;
    END IF;
    INSERT INTO tenancy.organizations (id, name, slug)
    VALUES (v_id, p_name, coalesce(p_slug, tenancy.free_slug(p_name, v_id)));
    INSERT INTO tenancy.organization_members (organization_id, user_id, role) VALUES (v_id, p_user_id, 'owner');
    INSERT INTO credits.accounts (organization_id) VALUES (v_id);
    INSERT INTO platform.outbox (organization_id, type, payload)
    VALUES (v_id, 'organization.created', jsonb_build_object('organization_id', v_id));
    RETURN v_id;
END
$$;

-- What a user is in a live organisation, and whether Clerk manages it. No row: he is no member, or there is none.
CREATE FUNCTION tenancy.find_membership(p_user_id uuid, p_organization_id uuid)
RETURNS TABLE (role text, is_clerks boolean)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT m.role::text, o.clerk_id IS NOT NULL
    FROM tenancy.organization_members AS m
    JOIN tenancy.organizations AS o ON o.id = m.organization_id
    WHERE m.user_id = p_user_id AND m.organization_id = p_organization_id AND o.deleted_at IS NULL
$$;

-- The organisations that a user is a member of, newest first, from one on.
CREATE FUNCTION tenancy.organizations_of(p_user_id uuid, p_before uuid, p_limit bigint)
RETURNS TABLE (
    id uuid, clerk_id text, personal_user_id uuid, name text, slug text, description text, logo_url text,
    timezone text, created_at timestamptz, role tenancy.member_role
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT o.id, o.clerk_id, o.personal_user_id, o.name, o.slug, o.description, o.logo_url, o.timezone,
           o.created_at, m.role
    FROM tenancy.organization_members AS m
    JOIN tenancy.organizations AS o ON o.id = m.organization_id
    WHERE m.user_id = p_user_id AND o.deleted_at IS NULL AND (p_before IS NULL OR o.id < p_before)
    ORDER BY o.id DESC
    LIMIT p_limit
$$;

-- The live organisation that an invitation is to.
CREATE FUNCTION tenancy.find_invitation(p_token_hash bytea) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT o.id
    FROM tenancy.invitations AS i
    JOIN tenancy.organizations AS o ON o.id = i.organization_id
    WHERE i.token_hash = p_token_hash AND o.deleted_at IS NULL
$$;

-- Makes a user a member. outcome:
--   'joined'    he is one from now on
--   'member'    he is one already, in the role that is answered
--   'unknown'   withdrawn, used by somebody else, or by himself before he left
--   'expired'
--   'address'   his address is known, and is not the one that was invited
--   'full'      the plan allows no more members; most says how many
CREATE FUNCTION tenancy.accept_invitation(p_token_hash bytea, p_user_id uuid, p_organization_id uuid, p_plan_id uuid)
RETURNS TABLE (outcome text, invitation_id uuid, role tenancy.member_role, most bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_invitation tenancy.invitations;
    v_email text;
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    PERFORM 1 FROM tenancy.organizations WHERE id = p_organization_id AND deleted_at IS NULL FOR UPDATE;
    SELECT i.* INTO v_invitation
    FROM tenancy.invitations AS i
    JOIN tenancy.organizations AS o ON o.id = i.organization_id
    WHERE i.token_hash = p_token_hash AND o.id = p_organization_id AND o.deleted_at IS NULL;
    invitation_id := v_invitation.id;
    -- A user who is being deleted is removed from what this inserts, or this finds him deleted.
    SELECT lower(email) INTO v_email FROM identity.users WHERE id = p_user_id AND deleted_at IS NULL FOR SHARE;
    IF v_invitation.id IS NULL OR NOT FOUND OR v_invitation.user_id <> p_user_id THEN
        outcome := 'unknown';
        RETURN NEXT;
        RETURN;
    END IF;

    SELECT m.role INTO role
    FROM tenancy.organization_members AS m
    WHERE m.organization_id = p_organization_id AND m.user_id = p_user_id;
    most := billing.limit_of(p_plan_id, 'team.members');
    outcome := CASE
        WHEN role IS NOT NULL THEN 'member'
        WHEN v_invitation.accepted_at IS NOT NULL THEN 'unknown'
        WHEN v_invitation.expires_at <= clock_timestamp() THEN 'expired'
        WHEN v_email <> v_invitation.email THEN 'address'
        WHEN most >= 0 AND most <= (
            SELECT count(*) FROM tenancy.organization_members AS m WHERE m.organization_id = p_organization_id
        ) THEN 'full'
        ELSE 'joined'
    END;
    IF outcome = 'joined' THEN
        role := v_invitation.role;
        INSERT INTO tenancy.organization_members (organization_id, user_id, role)
        VALUES (p_organization_id, p_user_id, role);
        UPDATE tenancy.invitations
        SET user_id = p_user_id, accepted_at = clock_timestamp()
        WHERE id = v_invitation.id;
    END IF;
    RETURN NEXT;
END
$$;

-- Ends an organisation that Backplane made: nobody enters it any more, by membership, invitation or key.
CREATE FUNCTION tenancy.close_organization(p_organization_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    UPDATE tenancy.organizations
    SET deleted_at = clock_timestamp()
    WHERE id = p_organization_id AND clerk_id IS NULL AND personal_user_id IS NULL AND deleted_at IS NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    DELETE FROM tenancy.organization_members WHERE organization_id = p_organization_id;
    DELETE FROM tenancy.invitations WHERE organization_id = p_organization_id;
    UPDATE platform.api_keys
    SET revoked_at = clock_timestamp()
    WHERE organization_id = p_organization_id AND revoked_at IS NULL;
    INSERT INTO platform.outbox (organization_id, type, payload)
    VALUES (p_organization_id, 'organization.deleted', jsonb_build_object('organization_id', p_organization_id));
END
$$;

GRANT EXECUTE ON FUNCTION
    tenancy.create_organization(text, text, uuid, bigint),
    tenancy.organizations_of(uuid, uuid, bigint),
    tenancy.find_membership(uuid, uuid),
    tenancy.find_invitation(bytea),
    tenancy.accept_invitation(bytea, uuid, uuid, uuid),
    tenancy.close_organization(uuid)
    TO backplane_app, backplane_system;

-- As before for Clerk's organisations. One that Backplane made may have several owners, and keeps those it
-- has; where the last one is gone, the member of the highest role, and of those the one of longest standing,
-- owns it.
CREATE OR REPLACE FUNCTION tenancy.settle_owner(p_organization_id uuid)
RETURNS TABLE (user_id uuid, role tenancy.member_role)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_organization tenancy.organizations;
    v_owner uuid;
BEGIN
    SELECT * INTO v_organization
    FROM tenancy.organizations
    WHERE id = p_organization_id AND personal_user_id IS NULL
    FOR UPDATE; -- one owner, however many admins come at once
    IF NOT FOUND THEN
        RETURN;
    END IF;

    IF v_organization.clerk_id IS NULL THEN
        RETURN QUERY
            UPDATE tenancy.organization_members AS m
            SET role = 'owner'
            WHERE m.organization_id = p_organization_id
              AND m.user_id = (
                  SELECT heir.user_id
                  FROM tenancy.organization_members AS heir
                  WHERE heir.organization_id = p_organization_id
                  ORDER BY heir.role, heir.created_at, heir.user_id
                  LIMIT 1)
              AND m.role <> 'owner'
            RETURNING m.user_id, m.role;
        RETURN;
    END IF;

    SELECT m.user_id INTO v_owner
    FROM tenancy.organization_members AS m
    JOIN identity.users AS u ON u.id = m.user_id
    WHERE m.organization_id = p_organization_id
      AND (u.clerk_id = v_organization.owner_clerk_id OR coalesce(m.granted_role, m.role) IN ('owner', 'admin'))
    ORDER BY u.clerk_id IS NOT DISTINCT FROM v_organization.owner_clerk_id DESC, m.created_at, u.clerk_id
    LIMIT 1;

    RETURN QUERY
        UPDATE tenancy.organization_members AS m
        SET role = CASE WHEN m.user_id = v_owner THEN 'owner' ELSE coalesce(m.granted_role, m.role) END
        WHERE m.organization_id = p_organization_id
          AND m.role <> CASE WHEN m.user_id = v_owner THEN 'owner' ELSE coalesce(m.granted_role, m.role) END
        RETURNING m.user_id, m.role;
END
$$;

-- As before; members are counted where they stand.
CREATE OR REPLACE FUNCTION billing.usage_of(p_organization_id uuid, p_plan_id uuid)
RETURNS TABLE (key text, "limit" bigint, used bigint, resets_at timestamptz)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT k.key, k.value,
           CASE k.key WHEN 'team.members' THEN (
                    SELECT count(*) FROM tenancy.organization_members AS m WHERE m.organization_id = o.id)
                ELSE c.used END,
           c.resets_at
    FROM tenancy.organizations AS o
    CROSS JOIN LATERAL (
        SELECT named.key, billing.limit_of(p_plan_id, named.key) AS value
        FROM (SELECT DISTINCT l.key FROM billing.plan_limits AS l) AS named
    ) AS k
    CROSS JOIN LATERAL billing.counter_at(o.id, k.key, o.timezone, clock_timestamp()) AS c
    WHERE o.id = p_organization_id AND k.value IS NOT NULL
    ORDER BY k.key
$$;

-- migrate:down
CREATE OR REPLACE FUNCTION billing.usage_of(p_organization_id uuid, p_plan_id uuid)
RETURNS TABLE (key text, "limit" bigint, used bigint, resets_at timestamptz)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT k.key, k.value, c.used, c.resets_at
    FROM tenancy.organizations AS o
    CROSS JOIN LATERAL (
        SELECT named.key, billing.limit_of(p_plan_id, named.key) AS value
        FROM (SELECT DISTINCT l.key FROM billing.plan_limits AS l) AS named
    ) AS k
    CROSS JOIN LATERAL billing.counter_at(o.id, k.key, o.timezone, clock_timestamp()) AS c
    WHERE o.id = p_organization_id AND k.value IS NOT NULL
    ORDER BY k.key
$$;
CREATE OR REPLACE FUNCTION tenancy.settle_owner(p_organization_id uuid)
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
DROP FUNCTION tenancy.close_organization(uuid);
DROP FUNCTION tenancy.accept_invitation(bytea, uuid, uuid, uuid);
DROP FUNCTION tenancy.find_invitation(bytea);
DROP FUNCTION tenancy.organizations_of(uuid, uuid, bigint);
DROP FUNCTION tenancy.find_membership(uuid, uuid);
DROP FUNCTION tenancy.create_organization(text, text, uuid, bigint);
DROP FUNCTION tenancy.free_slug(text, uuid);
DELETE FROM platform.erasures WHERE user_id IS NULL;
ALTER TABLE platform.erasures ALTER COLUMN user_id SET NOT NULL;
COMMENT ON COLUMN platform.erasures.user_id IS NULL;
ALTER TABLE tenancy.organizations DROP COLUMN erased_at;
REVOKE SELECT ON platform.audit_log FROM backplane_app;
REVOKE UPDATE (role), DELETE ON tenancy.organization_members FROM backplane_app;
REVOKE UPDATE (name, slug, description, logo_url) ON tenancy.organizations FROM backplane_app;
DROP TABLE tenancy.invitations;
