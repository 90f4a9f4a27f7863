-- migrate:up
-- Tags, and a slug for every project: those that came without one get theirs from their titles.

ALTER TABLE projects.projects ADD COLUMN tags text[] NOT NULL DEFAULT '{}';

CREATE FUNCTION projects.slug_of(p_title text, p_suffix text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT trim(LEADING '-' FROM
                trim(BOTH '-' FROM regexp_replace(lower(p_title), '[^a-z0-9]+', '-', 'g')) || '-' || p_suffix)
$$;

-- The title and the id's last six characters; in the rare case that those are taken, all of the id.
CREATE FUNCTION projects.free_slug(p_organization_id uuid, p_title text, p_id uuid) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE
               WHEN EXISTS (
                   SELECT 1
                   FROM projects.projects
                   WHERE organization_id = p_organization_id
                     AND slug = projects.slug_of(p_title, right(p_id::text, 6)))
               THEN projects.slug_of(p_title, replace(p_id::text, '-', ''))
               ELSE projects.slug_of(p_title, right(p_id::text, 6))
           END
$$;

CREATE FUNCTION projects.fill_slug() RETURNS trigger
    LANGUAGE plpgsql
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    NEW.slug := projects.free_slug(NEW.organization_id, NEW.title, NEW.id);
    RETURN NEW;
END
$$;
CREATE TRIGGER projects_slug BEFORE INSERT ON projects.projects
    FOR EACH ROW WHEN (NEW.slug IS NULL) EXECUTE FUNCTION projects.fill_slug();
GRANT EXECUTE ON FUNCTION projects.slug_of(text, text), projects.free_slug(uuid, text, uuid)
    TO backplane_app, backplane_system;

-- One after the other, so that each sees which slugs are taken. Nobody changed these projects: their
-- time of change stays.
ALTER TABLE projects.projects DISABLE TRIGGER projects_touch;
DO $$
DECLARE
    v_project projects.projects;
BEGIN
    FOR v_project IN SELECT * FROM projects.projects WHERE slug IS NULL ORDER BY id LOOP
        UPDATE projects.projects
        SET slug = projects.free_slug(v_project.organization_id, v_project.title, v_project.id)
        WHERE id = v_project.id;
    END LOOP;
END
$$;
ALTER TABLE projects.projects ENABLE TRIGGER projects_touch;
-- Not validated, which would block the table: the rows that are there were filled a moment ago.
ALTER TABLE projects.projects ADD CONSTRAINT projects_slug_given CHECK (slug IS NOT NULL) NOT VALID;

-- migrate:down
ALTER TABLE projects.projects DROP CONSTRAINT projects_slug_given;
DROP TRIGGER projects_slug ON projects.projects;
DROP FUNCTION projects.fill_slug();
DROP FUNCTION projects.free_slug(uuid, text, uuid);
DROP FUNCTION projects.slug_of(text, text);
ALTER TABLE projects.projects DROP COLUMN tags;
