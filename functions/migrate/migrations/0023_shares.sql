-- migrate:up
-- A project shared with somebody of another organisation: invited by email, open once the invitation is
-- accepted.

CREATE TYPE projects.share_role AS ENUM ('viewer', 'editor', 'admin');

CREATE TABLE projects.shares (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL,
    project_id uuid NOT NULL,
    email text NOT NULL CHECK (email = lower(email)),
    role projects.share_role NOT NULL,
    token_hash bytea NOT NULL UNIQUE CHECK (octet_length(token_hash) = 32), -- SHA-256 of a 256-bit random secret
    expires_at timestamptz NOT NULL, -- of the invitation; a share that was accepted stands until it is deleted
    invited_by uuid REFERENCES identity.users (id), -- NULL: by a key
    user_id uuid REFERENCES identity.users (id), -- who accepted
    accepted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (project_id, email),
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id),
    CHECK ((user_id IS NULL) = (accepted_at IS NULL))
);
CREATE INDEX shares_project ON projects.shares (organization_id, project_id, id DESC);
CREATE INDEX shares_user ON projects.shares (user_id, project_id);

CALL platform.protect('projects.shares', 'organization_id');
-- What is shared with somebody he finds in any organisation he works in.
CREATE POLICY app_own ON projects.shares FOR SELECT TO backplane_app
    USING (user_id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid));
CREATE POLICY app_shared ON projects.projects FOR SELECT TO backplane_app
    USING (id IN (
        SELECT s.project_id
        FROM projects.shares AS s
        WHERE s.user_id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid)
    ));
GRANT SELECT, INSERT, UPDATE, DELETE ON projects.shares TO backplane_app;

-- As in 0012, and knows of shares: the highest role that was shared with the user, above merely public.
CREATE OR REPLACE FUNCTION projects.find_access(p_project_id uuid, p_organization_id uuid, p_user_id uuid)
RETURNS TABLE (organization_id uuid, standing text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT found.organization_id, found.standing
    FROM (
        SELECT p.organization_id,
               CASE WHEN p.organization_id = p_organization_id THEN 'member'
                    ELSE coalesce(
                        (SELECT max(s.role)::text
                         FROM projects.shares AS s
                         WHERE s.project_id = p.id AND s.user_id = p_user_id AND p.deleted_at IS NULL),
                        CASE WHEN p.is_public AND p.deleted_at IS NULL THEN 'public' END)
               END AS standing
        FROM projects.projects AS p
        JOIN tenancy.organizations AS o ON o.id = p.organization_id
        WHERE p.id = p_project_id AND o.deleted_at IS NULL
    ) AS found
    WHERE found.standing IS NOT NULL
$$;

-- Accepts an invitation for a user, once. outcome:
--   'accepted'  also where the same user had accepted it before
--   'expired'
--   'unknown'   no such invitation, or of a project that is gone, or accepted by somebody else
CREATE FUNCTION projects.accept_share(p_token_hash bytea, p_user_id uuid)
RETURNS TABLE (outcome text, organization_id uuid, project_id uuid, role projects.share_role)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_share projects.shares;
BEGIN
    SELECT s.* INTO v_share
    FROM projects.shares AS s
    JOIN projects.projects AS p ON p.id = s.project_id
    JOIN tenancy.organizations AS o ON o.id = s.organization_id
    WHERE s.token_hash = p_token_hash
      AND p.deleted_at IS NULL
      AND o.deleted_at IS NULL
      AND (s.user_id IS NULL OR s.user_id = p_user_id)
    FOR UPDATE OF s;
    IF NOT FOUND THEN
        outcome := 'unknown';
    ELSIF v_share.user_id IS NULL AND v_share.expires_at <= clock_timestamp() THEN
        outcome := 'expired';
    ELSE
        UPDATE projects.shares
        SET user_id = p_user_id,
            accepted_at = coalesce(accepted_at, clock_timestamp())
        WHERE id = v_share.id;
        RETURN QUERY SELECT 'accepted', v_share.organization_id, v_share.project_id, v_share.role;
        RETURN;
    END IF;
    RETURN NEXT;
END
$$;
GRANT EXECUTE ON FUNCTION projects.accept_share(bytea, uuid) TO backplane_app;

-- migrate:down
DROP FUNCTION projects.accept_share(bytea, uuid);
CREATE OR REPLACE FUNCTION projects.find_access(p_project_id uuid, p_organization_id uuid, p_user_id uuid)
RETURNS TABLE (organization_id uuid, standing text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT p.organization_id,
           CASE WHEN p.organization_id = p_organization_id THEN 'member' ELSE 'public' END
    FROM projects.projects AS p
    JOIN tenancy.organizations AS o ON o.id = p.organization_id
    WHERE p.id = p_project_id
      AND (p.organization_id = p_organization_id
           OR (p.is_public AND p.deleted_at IS NULL AND o.deleted_at IS NULL))
$$;
DROP POLICY app_shared ON projects.projects;
DROP TABLE projects.shares;
DROP TYPE projects.share_role;
