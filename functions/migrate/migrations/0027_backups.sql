-- migrate:up
-- What backups there are and whether a drill has proven them. The bucket's manifests say it in full.

CREATE TYPE platform.backup_kind AS ENUM ('dump', 'cluster_snapshot');

CREATE TABLE platform.backups (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    name text NOT NULL UNIQUE CHECK (name ~ '^backup_\d{8}_\d{6}$'),
    kind platform.backup_kind NOT NULL,
    key text NOT NULL, -- of a cluster snapshot, its ARN
    manifest_key text NOT NULL,
    bytes bigint NOT NULL CHECK (bytes >= 0), -- stored
    row_count bigint NOT NULL CHECK (row_count >= 0),
    sha256 text CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    started_at timestamptz NOT NULL,
    finished_at timestamptz NOT NULL CHECK (finished_at >= started_at),
    deleted_at timestamptz, -- retention took it away
    drilled_at timestamptz, -- the last drill with it
    drill_seconds double precision CHECK (drill_seconds >= 0),
    differences text[], -- what that drill found; none: it is proven
    verified_at timestamptz, -- the last drill, where it found none
    CHECK ((drilled_at IS NULL) = (differences IS NULL)),
    CHECK (kind = 'cluster_snapshot' OR sha256 IS NOT NULL)
);
CREATE INDEX backups_finished ON platform.backups (finished_at);
CREATE INDEX backups_verified ON platform.backups (verified_at) WHERE verified_at IS NOT NULL;

CALL platform.protect('platform.backups');
GRANT INSERT, UPDATE ON platform.backups TO backplane_system;

-- The backup's role reads only: these two are all that it may leave behind.
CREATE FUNCTION platform.record_backup(
    p_name text, p_kind platform.backup_kind, p_key text, p_manifest_key text, p_bytes bigint, p_row_count bigint,
    p_sha256 text, p_started_at timestamptz, p_finished_at timestamptz
) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO platform.backups
        (name, kind, key, manifest_key, bytes, row_count, sha256, started_at, finished_at)
    VALUES
        (p_name, p_kind, p_key, p_manifest_key, p_bytes, p_row_count, p_sha256, p_started_at, p_finished_at)
    ON CONFLICT (name) DO NOTHING
$$;

CREATE FUNCTION platform.record_backups_deleted(p_names text[]) RETURNS void
    LANGUAGE sql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    UPDATE platform.backups
    SET deleted_at = clock_timestamp()
    WHERE name = ANY (p_names) AND deleted_at IS NULL
$$;

GRANT EXECUTE ON FUNCTION
    platform.record_backup(text, platform.backup_kind, text, text, bigint, bigint, text, timestamptz, timestamptz)
    TO backplane_backup, backplane_system;
GRANT EXECUTE ON FUNCTION platform.record_backups_deleted(text[]) TO backplane_backup;

-- migrate:down
DROP FUNCTION platform.record_backups_deleted(text[]);
DROP FUNCTION platform.record_backup(
    text, platform.backup_kind, text, text, bigint, bigint, text, timestamptz, timestamptz
);
DROP TABLE platform.backups;
DROP TYPE platform.backup_kind;
