-- migrate:up
-- The search, as in 0017 but in one go: it walks through the projects from the one changed last, a few
-- messages at a time, and looks the rest up in the index as soon as the word turns out to be rare. Nothing
-- is read twice, and no plan depends on a guess at how frequent a word is.

CREATE OR REPLACE FUNCTION projects.search_messages(
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
    CHUNK CONSTANT bigint := 40; -- messages of a walk's step; a word in fewer than one of so many is rare
    v_project record;
    v_at bigint; -- the sequence up to which the project is walked
    v_walked bigint := 0;
    v_count bigint;
    v_wanted bigint := p_limit;
    v_rare boolean := false;
BEGIN
    <<walk>>
    FOR v_project IN
        SELECT p.id, p.title, p.updated_at, p.message_count
        FROM projects.projects AS p
        WHERE p.organization_id = p_organization_id
          AND p.deleted_at IS NULL
          AND (p_after_updated_at IS NULL OR (p.updated_at, p.id) <= (p_after_updated_at, p_after_project_id))
        ORDER BY p.updated_at DESC, p.id DESC
    LOOP
        v_at := CASE WHEN v_project.id = p_after_project_id THEN p_after_sequence ELSE 0 END;
        WHILE v_at < v_project.message_count LOOP
            RETURN QUERY
                SELECT v_project.id, v_project.title, v_project.updated_at,
                       m.id, m.sequence, m.role, m.content, m.parts, m.created_at
                FROM (
                    SELECT id, sequence, role, content, parts, created_at
                    FROM projects.messages
                    WHERE project_id = v_project.id AND sequence > v_at
                    ORDER BY sequence
                    LIMIT CHUNK -- which also keeps the pattern out of the choice of an index
                ) AS m
                WHERE m.content ILIKE p_pattern
                LIMIT v_wanted;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            v_wanted := v_wanted - v_count;
            v_at := v_at + CHUNK;
            v_walked := v_walked + CHUNK;
            v_rare := (p_limit - v_wanted) * CHUNK < v_walked;
            EXIT walk WHEN v_wanted = 0 OR v_rare;
        END LOOP;
    END LOOP;

    IF v_wanted > 0 AND v_rare THEN
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
              AND ((p.updated_at, p.id) < (v_project.updated_at, v_project.id)
                   OR (p.id = v_project.id AND m.sequence > v_at))
            ORDER BY p.updated_at DESC, p.id DESC, m.sequence
            LIMIT v_wanted;
    END IF;
END
$$;

-- migrate:down
CREATE OR REPLACE FUNCTION projects.search_messages(
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
