-- migrate:up
-- What is kept in the bucket, and the versions of projects' files. An object's row is written before the object
-- and counts against the organisation's storage from then on, so that a cut anywhere leaves nothing that
-- nobody knows of: what was granted and never became stored expires, and its object is taken away.

CREATE SCHEMA storage;
GRANT USAGE ON SCHEMA storage TO backplane_app, backplane_system, backplane_backup;

CREATE TYPE storage.kind AS ENUM ('files', 'upload', 'bundle');
CREATE TYPE storage.state AS ENUM ('granted', 'stored', 'expired', 'rejected', 'deleted');

CREATE TABLE storage.objects (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL,
    project_id uuid NOT NULL,
    kind storage.kind NOT NULL,
    state storage.state NOT NULL DEFAULT 'granted',
    s3_key text COLLATE "C" NOT NULL UNIQUE, -- in the order in which S3 lists
    s3_version text, -- of what was stored; reads name it, so that nothing put over it is ever read
    name text NOT NULL,
    content_type text NOT NULL,
    bytes bigint NOT NULL CHECK (bytes >= 0), -- reserved while granted, then what is stored; counted in both
    reason text, -- why it was rejected
    created_by uuid REFERENCES identity.users (id), -- NULL: by a key
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at timestamptz NOT NULL, -- of the grant
    stored_at timestamptz,
    deleted_at timestamptz, -- it counts no longer, whether expired, rejected or deleted
    purged_at timestamptz, -- its object is taken away
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id),
    UNIQUE (organization_id, project_id, id),
    CHECK ((state = 'stored') = (stored_at IS NOT NULL AND deleted_at IS NULL)),
    CHECK ((deleted_at IS NULL) = (state IN ('granted', 'stored'))),
    CHECK (purged_at IS NULL OR deleted_at IS NOT NULL)
);
CREATE INDEX objects_stored ON storage.objects (organization_id, id DESC) WHERE state = 'stored';
CREATE INDEX objects_granted ON storage.objects (expires_at) WHERE state = 'granted';
CREATE INDEX objects_granted_organization ON storage.objects (organization_id, expires_at) WHERE state = 'granted';
CREATE INDEX objects_unpurged ON storage.objects (deleted_at) WHERE deleted_at IS NOT NULL AND purged_at IS NULL;
CREATE INDEX objects_created_by ON storage.objects (created_by);

-- One row a version, never changed: what others made is there to be restored.
CREATE TABLE projects.file_versions (
    project_id uuid NOT NULL,
    organization_id uuid NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    object_id uuid NOT NULL UNIQUE,
    s3_key text NOT NULL,
    s3_version text NOT NULL,
    epoch_ms bigint NOT NULL, -- in its key, and greater than its predecessor's
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'), -- of the object
    total_bytes bigint NOT NULL CHECK (total_bytes >= 0), -- of the contents
    files jsonb NOT NULL CHECK (jsonb_typeof(files) = 'array'), -- [{path, bytes, sha256}], by path
    base_version bigint NOT NULL CHECK (base_version = version - 1),
    restored_from bigint CHECK (restored_from < version),
    message text,
    created_by uuid REFERENCES identity.users (id), -- NULL: by a key
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, version),
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id),
    FOREIGN KEY (organization_id, project_id, object_id) REFERENCES storage.objects (organization_id, project_id, id)
);
CREATE INDEX file_versions_project ON projects.file_versions (organization_id, project_id);
CREATE INDEX file_versions_created_by ON projects.file_versions (created_by);

-- The version in force; 0: nothing was saved yet. Moves by compare-and-swap only.
ALTER TABLE projects.projects ADD COLUMN files_version bigint NOT NULL DEFAULT 0;
-- Every row has the default.
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE projects.projects ADD CONSTRAINT projects_files_version CHECK (files_version >= 0);

CALL platform.protect('storage.objects', 'organization_id');
CALL platform.protect('projects.file_versions', 'organization_id');
GRANT SELECT, INSERT, UPDATE ON storage.objects TO backplane_app;
GRANT UPDATE ON storage.objects TO backplane_system;
GRANT SELECT, INSERT ON projects.file_versions TO backplane_app;

-- migrate:down
ALTER TABLE projects.projects DROP COLUMN files_version;
DROP TABLE projects.file_versions;
DROP TABLE storage.objects;
DROP TYPE storage.state;
DROP TYPE storage.kind;
DROP SCHEMA storage;
