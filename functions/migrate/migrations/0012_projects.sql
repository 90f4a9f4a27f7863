-- migrate:up
-- Projects of every kind, and what is private of them. A project's own row holds what others may see
-- when it is public; configuration and keys stand in tables of their own, which they never can.

CREATE SCHEMA projects;
GRANT USAGE ON SCHEMA projects TO backplane_app, backplane_system, backplane_backup;

CREATE TYPE projects.kind AS ENUM ('mobile', 'web', 'site');
CREATE TYPE projects.status AS ENUM (
    'draft', 'generating', 'ready', 'deploying', 'deployed', 'error', 'published', 'archived'
);
CREATE TYPE projects.template_category AS ENUM ('saas', 'ecommerce', 'blog', 'api', 'custom');

CREATE TABLE projects.projects (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    created_by uuid REFERENCES identity.users (id), -- NULL: by a key
    kind projects.kind NOT NULL,
    title text NOT NULL CHECK (title ~ '\S'),
    description text,
    slug text CHECK (slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$'),
    status projects.status NOT NULL DEFAULT 'draft',
    template_name text,
    template_version text,
    template_category projects.template_category,
    features text[] NOT NULL DEFAULT '{}',
    is_public boolean NOT NULL DEFAULT false,
    message_count bigint NOT NULL DEFAULT 0 CHECK (message_count >= 0), -- also the newest message's sequence
    forked_from uuid REFERENCES projects.projects (id),
    deployment_url text,
    deployed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at timestamptz,
    -- What belongs to a project refers to both, so that no row of one organisation can name a project
    -- of another: foreign keys look past row-level security.
    UNIQUE (organization_id, id),
    UNIQUE (organization_id, slug),
    CHECK ((template_name IS NULL) = (template_version IS NULL))
);
CREATE INDEX projects_live ON projects.projects (organization_id, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX projects_live_updated
    ON projects.projects (organization_id, updated_at DESC, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX projects_status ON projects.projects (organization_id, status);
CREATE INDEX projects_created_by ON projects.projects (created_by);
CREATE INDEX projects_forked_from ON projects.projects (forked_from) WHERE forked_from IS NOT NULL;
CREATE TRIGGER projects_touch BEFORE UPDATE ON projects.projects
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

-- One row a project: what its own people see and nobody else.
CREATE TABLE projects.settings (
    project_id uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    last_entry_id text, -- from where an interrupted stream resumes
    generated_path text,
    repository_url text,
    supabase_project_ref text,
    supabase_url text,
    supabase_anon_key text, -- the key that clients carry; a secret one is refused before it comes here
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id)
);
CREATE INDEX settings_project ON projects.settings (organization_id, project_id);

-- One row a project of kind mobile or web.
CREATE TABLE projects.app_settings (
    project_id uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    app_icon_url text,
    android_app_icon_url text,
    android_package_name text,
    ios_app_icon_url text,
    ios_bundle_id text,
    ios_app_id text,
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id)
);
CREATE INDEX app_settings_project ON projects.app_settings (organization_id, project_id);

-- One row a project of kind site.
CREATE TABLE projects.site_settings (
    project_id uuid PRIMARY KEY,
    organization_id uuid NOT NULL,
    subdomain text UNIQUE CHECK (subdomain ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(subdomain) <= 63),
    custom_domain text UNIQUE CHECK (custom_domain = lower(custom_domain)),
    meta_title text,
    meta_description text,
    favicon_url text,
    ai_prompt text,
    business_type text,
    published_at timestamptz,
    published_version bigint,
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id)
);
CREATE INDEX site_settings_project ON projects.site_settings (organization_id, project_id);

-- A favourite is a person's, not the organisation's.
CREATE TABLE projects.favorites (
    user_id uuid NOT NULL REFERENCES identity.users (id),
    project_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (user_id, project_id),
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id)
);
CREATE INDEX favorites_project ON projects.favorites (organization_id, project_id);

CALL platform.protect('projects.projects', 'organization_id');
CALL platform.protect('projects.settings', 'organization_id');
CALL platform.protect('projects.app_settings', 'organization_id');
CALL platform.protect('projects.site_settings', 'organization_id');
CALL platform.protect('projects.favorites', 'organization_id');
-- Others read a public project. They never write it: this policy is for SELECT alone.
CREATE POLICY app_public ON projects.projects FOR SELECT TO backplane_app
    USING (is_public AND deleted_at IS NULL);

GRANT SELECT, INSERT, UPDATE
    ON projects.projects, projects.settings, projects.app_settings, projects.site_settings
    TO backplane_app;
GRANT SELECT, INSERT, DELETE ON projects.favorites TO backplane_app;
GRANT UPDATE ON projects.projects TO backplane_system;

-- What a caller is to a project: the organisation it belongs to and 'member' where that is the caller's
-- own, 'public' for anybody else where it is public, no row where he may not know of it.
CREATE FUNCTION projects.find_access(p_project_id uuid, p_organization_id uuid, p_user_id uuid)
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
GRANT EXECUTE ON FUNCTION projects.find_access(uuid, uuid, uuid) TO backplane_app;

-- migrate:down
DROP FUNCTION projects.find_access(uuid, uuid, uuid);
DROP TABLE projects.favorites;
DROP TABLE projects.site_settings;
DROP TABLE projects.app_settings;
DROP TABLE projects.settings;
DROP TABLE projects.projects;
DROP TYPE projects.template_category;
DROP TYPE projects.status;
DROP TYPE projects.kind;
DROP SCHEMA projects;
