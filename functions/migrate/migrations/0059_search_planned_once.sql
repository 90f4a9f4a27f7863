-- migrate:up
-- The search, as in 0057, planned once: planning took longer than searching. A plan for any pattern must not let a
-- pattern without trigrams reach the trigram index, which then reads all of itself, every organisation's part; so
-- such a pattern is held against the organisation's messages instead.
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
    SET plan_cache_mode = force_generic_plan
    AS $$
#variable_conflict use_column
DECLARE
    CHUNK CONSTANT bigint := 40; -- messages of a walk's step; a word in fewer than one of so many is rare
    c_projects CURSOR FOR
        SELECT p.id, p.title, p.updated_at, p.message_count
        FROM projects.projects AS p
        WHERE p.organization_id = p_organization_id
          AND p.deleted_at IS NULL
          AND (p.updated_at, p.id) <= (
              coalesce(p_after_updated_at, 'infinity'),
              coalesce(p_after_project_id, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
        ORDER BY p.updated_at DESC, p.id DESC;
    v_project record;
    v_at bigint; -- the sequence up to which the project is walked
    v_walked bigint := 0;
    v_count bigint;
    v_wanted bigint := p_limit;
    v_rare boolean := false;
    v_lower CONSTANT text := lower(p_pattern);
    v_has_trigram boolean;
BEGIN
    OPEN c_projects;
    <<walk>>
    LOOP
        FETCH c_projects INTO v_project;
        EXIT WHEN NOT FOUND;
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
    CLOSE c_projects;

    IF v_wanted > 0 AND v_rare THEN
        -- Three letters in a row, of which one or two may be the edge of a word. What counts as a letter outside
        -- of ASCII is known to pg_trgm alone: it depends on the database's locale.
        v_has_trigram := v_lower ~ '[a-z0-9]{3}' OR (
            SELECT string_agg(CASE WHEN character IN ('%', '_') THEN ' ' -- if not a wildcard, then no letter
                                   WHEN public.show_trgm(character) = '{}' THEN '-'
                                   ELSE 'w' END, '' ORDER BY position)
            FROM regexp_split_to_table(substr(v_lower, 2, length(v_lower) - 2), '')
                WITH ORDINALITY AS split (character, position)
        ) ~ 'www|-w|ww-';
        RETURN QUERY
            WITH found AS MATERIALIZED (
                SELECT project_id, id, sequence, role, content, parts, created_at
                FROM projects.messages
                WHERE v_has_trigram AND organization_id = p_organization_id AND lower(content) LIKE v_lower
                UNION ALL
                SELECT project_id, id, sequence, role, content, parts, created_at
                FROM projects.messages
                WHERE NOT v_has_trigram AND organization_id = p_organization_id AND content ILIKE p_pattern
            )
            SELECT p.id, p.title, p.updated_at, m.id, m.sequence, m.role, m.content, m.parts, m.created_at
            FROM found AS m
            CROSS JOIN LATERAL ( -- each by its key, whatever is guessed of how many there are
                SELECT id, title, updated_at
                FROM projects.projects
                WHERE id = m.project_id AND deleted_at IS NULL
                LIMIT 1
            ) AS p
            WHERE (p.updated_at, p.id) < (v_project.updated_at, v_project.id)
               OR (p.id = v_project.id AND m.sequence > v_at)
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
    CHUNK CONSTANT bigint := 40; -- messages of a walk's step; a word in fewer than one of so many is rare
    c_projects CURSOR FOR
        SELECT p.id, p.title, p.updated_at, p.message_count
        FROM projects.projects AS p
        WHERE p.organization_id = p_organization_id
          AND p.deleted_at IS NULL
          AND (p_after_updated_at IS NULL OR (p.updated_at, p.id) <= (p_after_updated_at, p_after_project_id))
        ORDER BY p.updated_at DESC, p.id DESC;
    v_project record;
    v_at bigint; -- the sequence up to which the project is walked
    v_walked bigint := 0;
    v_count bigint;
    v_wanted bigint := p_limit;
    v_rare boolean := false;
BEGIN
    OPEN c_projects;
    <<walk>>
    LOOP
        FETCH c_projects INTO v_project;
        EXIT WHEN NOT FOUND;
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
    CLOSE c_projects;

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
