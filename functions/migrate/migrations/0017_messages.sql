-- migrate:up
-- A project's conversation: one row a message, numbered 1, 2, 3 … in its project, never changed.

CREATE EXTENSION IF NOT EXISTS pg_trgm;
CREATE EXTENSION IF NOT EXISTS btree_gin;

CREATE TYPE projects.message_role AS ENUM ('user', 'assistant', 'system', 'tool');

CREATE TABLE projects.messages (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL,
    project_id uuid NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    role projects.message_role NOT NULL,
    content text NOT NULL, -- of a message in parts: their text, for the search
    parts jsonb CHECK (jsonb_typeof(parts) = 'array'),
    created_by uuid REFERENCES identity.users (id), -- NULL: by a key
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (project_id, sequence),
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id)
);
-- Both in one index: a word that is common elsewhere costs an organisation nothing. Without a list of
-- pending entries, which every search would have to walk.
CREATE INDEX messages_search
    ON projects.messages USING gin (organization_id, content gin_trgm_ops) WITH (fastupdate = off);
CREATE INDEX messages_project ON projects.messages (organization_id, project_id);

CALL platform.protect('projects.messages', 'organization_id');
GRANT SELECT, INSERT ON projects.messages TO backplane_app;

-- The conversation as one JSON array, the form in which the first app builders kept it.
CREATE VIEW projects.conversations WITH (security_invoker = true) AS
SELECT p.organization_id,
       p.id AS project_id,
       coalesce(
           jsonb_agg(
               jsonb_build_object('id', m.id, 'role', m.role, 'content', coalesce(m.parts, to_jsonb(m.content)),
                                  'createdAt', m.created_at)
               ORDER BY m.sequence)
           FILTER (WHERE m.id IS NOT NULL),
           '[]') AS messages
FROM projects.projects AS p
LEFT JOIN projects.messages AS m ON m.project_id = p.id
GROUP BY p.id;
GRANT SELECT ON projects.conversations TO backplane_app, backplane_system;

-- Messages of an organisation's live projects whose text matches an ILIKE pattern: those of the project
-- changed last come first, within a project in their order. At most p_limit, after the position given.
--
-- Two ways lead there, and each is slow where the other is fast. A common word stands in the first few
-- messages of a walk through the projects; a rare one is looked up in the index and sorted. The first
-- PROBE messages tell which it is. Security definer, because an operator that is not leakproof cannot use
-- its index under row-level security; so the function filters by the organisation itself.
CREATE FUNCTION projects.search_messages(
    p_organization_id uuid,
    p_pattern text,
    p_limit bigint,
    p_after_updated_at timestamptz DEFAULT NULL,
    p_after_project_id uuid DEFAULT NULL,
    p_after_sequence bigint DEFAULT NULL
) RETURNS TABLE (
    project_id uuid, project_title text, project_updated_at timestamptz,
    id uuid, sequence bigint, role projects.message_role, content text, parts jsonb, created_at timestamptz
)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    PROBE CONSTANT bigint := 200;
    ENOUGH CONSTANT bigint := 5;
    v_found bigint;
BEGIN
    SELECT count(*) INTO v_found
    FROM (
        SELECT 1
        FROM (
            SELECT m.content
            FROM (
                SELECT p.id
                FROM projects.projects AS p
                WHERE p.organization_id = p_organization_id AND p.deleted_at IS NULL
                ORDER BY p.updated_at DESC, p.id DESC
                LIMIT PROBE
            ) AS p
            CROSS JOIN LATERAL (
                SELECT content FROM projects.messages WHERE project_id = p.id ORDER BY sequence LIMIT PROBE
            ) AS m
            LIMIT PROBE
        ) AS newest
        WHERE newest.content ILIKE p_pattern
        LIMIT ENOUGH
    ) AS found;

    IF v_found = ENOUGH THEN
        RETURN QUERY
            SELECT p.id, p.title, p.updated_at, m.*
            FROM projects.projects AS p
            CROSS JOIN LATERAL (
                SELECT id, sequence, role, content, parts, created_at
                FROM projects.messages
                WHERE project_id = p.id
                  AND content ILIKE p_pattern
                  AND (p_after_project_id IS DISTINCT FROM p.id OR sequence > p_after_sequence)
                ORDER BY sequence
                LIMIT p_limit
            ) AS m
            WHERE p.organization_id = p_organization_id
              AND p.deleted_at IS NULL
              AND (p_after_updated_at IS NULL OR (p.updated_at, p.id) <= (p_after_updated_at, p_after_project_id))
            ORDER BY p.updated_at DESC, p.id DESC, m.sequence
            LIMIT p_limit;
    ELSE
        RETURN QUERY
            WITH found AS MATERIALIZED (
                SELECT project_id, id, sequence, role, content, parts, created_at
                FROM projects.messages
                WHERE organization_id = p_organization_id AND content ILIKE p_pattern
            )
            SELECT p.id, p.title, p.updated_at, m.id, m.sequence, m.role, m.content, m.parts, m.created_at
            FROM found AS m
            JOIN projects.projects AS p ON p.id = m.project_id
            WHERE p.deleted_at IS NULL
              AND (p_after_updated_at IS NULL
                   OR (p.updated_at, p.id) < (p_after_updated_at, p_after_project_id)
                   OR (p.id = p_after_project_id AND m.sequence > p_after_sequence))
            ORDER BY p.updated_at DESC, p.id DESC, m.sequence
            LIMIT p_limit;
    END IF;
END
$$;
GRANT EXECUTE ON FUNCTION projects.search_messages(uuid, text, bigint, timestamptz, uuid, bigint) TO backplane_app;

-- migrate:down
DROP FUNCTION projects.search_messages(uuid, text, bigint, timestamptz, uuid, bigint);
DROP VIEW projects.conversations;
DROP TABLE projects.messages;
DROP TYPE projects.message_role;
DROP EXTENSION btree_gin;
DROP EXTENSION pg_trgm;
