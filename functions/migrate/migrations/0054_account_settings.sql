-- migrate:up
-- A user's own settings: everybody has a row from the beginning, and those who came before get theirs here.

CREATE TYPE identity.theme AS ENUM ('light', 'dark', 'system');

CREATE TABLE identity.settings (
    user_id uuid PRIMARY KEY REFERENCES identity.users (id),
    theme identity.theme NOT NULL DEFAULT 'light',
    language text NOT NULL DEFAULT 'en', -- BCP 47
    timezone text NOT NULL DEFAULT 'UTC', -- IANA name; his personal organisation's, too
    email_notifications boolean NOT NULL DEFAULT true,
    default_project_template text,
    last_workspace_id uuid REFERENCES tenancy.organizations (id),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX settings_last_workspace ON identity.settings (last_workspace_id);
CREATE TRIGGER settings_touch BEFORE UPDATE ON identity.settings
    FOR EACH ROW EXECUTE FUNCTION platform.touch();
CALL platform.protect('identity.settings');
CREATE POLICY app_own ON identity.settings TO backplane_app
    USING (user_id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid))
    WITH CHECK (user_id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid));
GRANT SELECT, UPDATE (theme, language, timezone, email_notifications, default_project_template, last_workspace_id)
    ON identity.settings TO backplane_app;
GRANT DELETE ON identity.settings TO backplane_system;

CREATE FUNCTION identity.add_settings() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    INSERT INTO identity.settings (user_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER users_settings AFTER INSERT ON identity.users
    FOR EACH ROW WHEN (NEW.deleted_at IS NULL) EXECUTE FUNCTION identity.add_settings();

INSERT INTO identity.settings (user_id, timezone)
SELECT u.id, coalesce(o.timezone, 'UTC')
FROM identity.users AS u
LEFT JOIN tenancy.organizations AS o ON o.personal_user_id = u.id
WHERE u.deleted_at IS NULL;

-- Whether there is such a timezone: by its exact name in the IANA database. What a server's own folders hold
-- beside those names is not the same on the next server.
CREATE FUNCTION tenancy.is_timezone(p_timezone text) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT p_timezone !~ '^(posix|right)/|^(posixrules|localtime|Factory)$'
        AND EXISTS (SELECT 1 FROM pg_timezone_names WHERE name = p_timezone)
$$;

-- As before.
CREATE OR REPLACE FUNCTION tenancy.change_timezone(p_organization_id uuid, p_timezone text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    IF NOT tenancy.is_timezone(p_timezone) THEN
        RETURN false;
    END IF;
    UPDATE tenancy.organizations
    SET timezone = p_timezone
    WHERE id = p_organization_id AND timezone <> p_timezone;
    RETURN true;
END
$$;

-- A user's personal organisation. NULL: it is gone, or he is nobody.
CREATE FUNCTION tenancy.personal_organization(p_user_id uuid) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT id FROM tenancy.organizations WHERE personal_user_id = p_user_id AND deleted_at IS NULL
$$;
GRANT EXECUTE ON FUNCTION tenancy.is_timezone(text), tenancy.personal_organization(uuid)
    TO backplane_app, backplane_system;

-- migrate:down
DROP FUNCTION tenancy.personal_organization(uuid);
CREATE OR REPLACE FUNCTION tenancy.change_timezone(p_organization_id uuid, p_timezone text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    -- What a server's own folders hold beside IANA's names is not the same on the next server.
    IF p_timezone ~ '^(posix|right)/|^(posixrules|localtime|Factory)$'
        OR NOT EXISTS (SELECT 1 FROM pg_timezone_names WHERE name = p_timezone)
    THEN
        RETURN false;
    END IF;
    UPDATE tenancy.organizations
    SET timezone = p_timezone
    WHERE id = p_organization_id AND timezone <> p_timezone;
    RETURN true;
END
$$;
DROP FUNCTION tenancy.is_timezone(text);
DROP TRIGGER users_settings ON identity.users;
DROP FUNCTION identity.add_settings();
DROP TABLE identity.settings;
DROP TYPE identity.theme;
