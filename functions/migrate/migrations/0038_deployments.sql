-- migrate:up
-- Deployments: what is built of a project and where it runs, from the start to an end that is never left.
-- The states are ours; what a provider calls its own is translated before it comes here.

CREATE SCHEMA deploys;
GRANT USAGE ON SCHEMA deploys TO backplane_app, backplane_system, backplane_backup;

CREATE TYPE deploys.status AS ENUM ('pending', 'in_progress', 'successful', 'failed', 'aborted');
CREATE TYPE deploys.type AS ENUM ('expo', 'eas-build', 'manual', 'web');
CREATE TYPE deploys.platform AS ENUM ('ios', 'android', 'web', 'all');
CREATE TYPE deploys.provider AS ENUM (
    'eas', 'vercel', 'github', 'netlify', 'aws', 'docker', 'railway', 'dokploy', 'render', 'fly', 'custom'
);
CREATE TYPE deploys.job_kind AS ENUM ('build', 'submission');
CREATE TYPE deploys.event_kind AS ENUM (
    'started', 'linked', 'reported', 'completed', 'canceled', 'went_stale', 'given_up', 'deleted'
);
CREATE TYPE deploys.artifact_kind AS ENUM ('android', 'ios', 'archive', 'logs');
CREATE TYPE deploys.artifact_state AS ENUM ('pending', 'copying', 'stored', 'failed');

CREATE TABLE deploys.deployments (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL,
    project_id uuid NOT NULL,
    created_by uuid REFERENCES identity.users (id), -- NULL: by a key
    type deploys.type NOT NULL,
    platform deploys.platform NOT NULL,
    provider deploys.provider, -- NULL: not said, and nobody has reported yet
    environment text NOT NULL DEFAULT 'production',
    status deploys.status NOT NULL DEFAULT 'pending',
    config jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(config) = 'object'),
    project_name text NOT NULL, -- as it was called when this began
    app_version text,
    build_number text,
    git_commit text,
    web_url text,
    android_build_url text,
    ios_build_url text,
    application_archive_url text,
    build_details_url text,
    logs_url text,
    build_log text,
    error_log text,
    started_at timestamptz, -- in progress since
    deployed_at timestamptz, -- successful since
    finished_at timestamptz,
    next_poll_at timestamptz, -- when silence becomes suspicious, and is asked about again
    polls bigint NOT NULL DEFAULT 0 CHECK (polls >= 0), -- since news came by itself
    unheard bigint NOT NULL DEFAULT 0 CHECK (unheard >= 0), -- polls in a row that told nothing
    stale_at timestamptz, -- since then nobody knows what has become of it
    stale_reason text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleted_at timestamptz,
    UNIQUE (organization_id, id),
    UNIQUE (organization_id, project_id, id),
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id),
    CHECK ((status IN ('successful', 'failed', 'aborted')) = (finished_at IS NOT NULL)),
    CHECK ((status = 'successful') = (deployed_at IS NOT NULL)),
    CHECK ((finished_at IS NULL) = (next_poll_at IS NOT NULL)),
    CHECK ((stale_at IS NULL) = (stale_reason IS NULL)),
    CHECK (finished_at IS NULL OR stale_at IS NULL),
    CHECK (deleted_at IS NULL OR finished_at IS NOT NULL)
);
CREATE INDEX deployments_project ON deploys.deployments (organization_id, project_id, id DESC);
CREATE INDEX deployments_live ON deploys.deployments (organization_id, id DESC) WHERE deleted_at IS NULL;
CREATE INDEX deployments_status ON deploys.deployments (organization_id, status) WHERE deleted_at IS NULL;
CREATE INDEX deployments_created_by ON deploys.deployments (created_by, status);
CREATE INDEX deployments_open ON deploys.deployments (project_id) WHERE finished_at IS NULL;
CREATE INDEX deployments_due ON deploys.deployments (next_poll_at) WHERE finished_at IS NULL;
CREATE TRIGGER deployments_touch BEFORE UPDATE ON deploys.deployments
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

-- What runs at a provider for a deployment: a build a platform, and what is submitted to a store of it.
-- A provider's callback finds its deployment by this name.
CREATE TABLE deploys.provider_jobs (
    organization_id uuid NOT NULL,
    external_id text NOT NULL CHECK (external_id ~ '\S'),
    deployment_id uuid NOT NULL,
    kind deploys.job_kind NOT NULL,
    platform deploys.platform,
    status deploys.status NOT NULL DEFAULT 'pending',
    told_at timestamptz, -- of the newest report, on the provider's clock
    details_url text,
    error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (organization_id, external_id),
    FOREIGN KEY (organization_id, deployment_id) REFERENCES deploys.deployments (organization_id, id)
);
CREATE INDEX provider_jobs_deployment ON deploys.provider_jobs (organization_id, deployment_id);

-- Every step of a deployment, append-only.
CREATE TABLE deploys.deployment_events (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL,
    deployment_id uuid NOT NULL,
    kind deploys.event_kind NOT NULL,
    status deploys.status NOT NULL, -- the deployment's after the step
    source text NOT NULL CHECK (source IN ('user', 'callback', 'poll', 'sweeper')),
    actor text NOT NULL,
    external_id text,
    detail text,
    occurred_at timestamptz NOT NULL, -- on the clock of whoever told of it
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    FOREIGN KEY (organization_id, deployment_id) REFERENCES deploys.deployments (organization_id, id)
);
CREATE INDEX deployment_events_deployment ON deploys.deployment_events (organization_id, deployment_id, id);

-- What a build left at its provider, which takes it away after a while, and our copy of it.
CREATE TABLE deploys.artifacts (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL,
    project_id uuid NOT NULL,
    deployment_id uuid NOT NULL,
    kind deploys.artifact_kind NOT NULL,
    source_url text NOT NULL, -- whoever has it has the artefact: never logged
    expires_at timestamptz, -- at the provider
    state deploys.artifact_state NOT NULL DEFAULT 'pending',
    attempts bigint NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    next_attempt_at timestamptz DEFAULT clock_timestamp(),
    object_id uuid, -- our copy
    bytes bigint CHECK (bytes >= 0),
    error text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (organization_id, deployment_id, kind),
    FOREIGN KEY (organization_id, project_id, deployment_id)
        REFERENCES deploys.deployments (organization_id, project_id, id),
    FOREIGN KEY (organization_id, project_id, object_id)
        REFERENCES storage.objects (organization_id, project_id, id),
    CHECK ((state IN ('stored', 'failed')) = (next_attempt_at IS NULL)),
    CHECK (state <> 'stored' OR (object_id IS NOT NULL AND bytes IS NOT NULL)),
    CHECK (state <> 'failed' OR error IS NOT NULL)
);
CREATE INDEX artifacts_due ON deploys.artifacts (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
CREATE INDEX artifacts_deployment ON deploys.artifacts (organization_id, project_id, deployment_id);
CREATE INDEX artifacts_object ON deploys.artifacts (organization_id, project_id, object_id);
CREATE TRIGGER artifacts_touch BEFORE UPDATE ON deploys.artifacts
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CALL platform.protect('deploys.deployments', 'organization_id');
CALL platform.protect('deploys.provider_jobs', 'organization_id');
CALL platform.protect('deploys.deployment_events', 'organization_id');
CALL platform.protect('deploys.artifacts', 'organization_id');
CREATE POLICY app_shared ON deploys.deployments FOR SELECT TO backplane_app
    USING (project_id IN (
        SELECT s.project_id
        FROM projects.shares AS s
        WHERE s.user_id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid)
    ));

GRANT SELECT, INSERT, UPDATE ON deploys.deployments, deploys.provider_jobs TO backplane_app;
GRANT SELECT, INSERT ON deploys.deployment_events TO backplane_app;
-- What opens an artefact at its provider is not for callers.
GRANT SELECT (id, organization_id, project_id, deployment_id, kind, expires_at, state, object_id, bytes, error, created_at)
    ON deploys.artifacts TO backplane_app;
-- DELETE: erasure.
GRANT UPDATE, DELETE ON deploys.deployments TO backplane_system;
GRANT INSERT, UPDATE, DELETE ON deploys.provider_jobs TO backplane_system;
GRANT INSERT, DELETE ON deploys.deployment_events TO backplane_system;
GRANT INSERT, UPDATE, DELETE ON deploys.artifacts TO backplane_system;

-- Deployments as the first source calls them. It knows three states.
CREATE VIEW deploys.deployed_apps WITH (security_invoker = true) AS
SELECT d.id,
       d.organization_id,
       d.created_by AS "userId",
       d.project_id AS "projectId",
       CASE d.status
           WHEN 'successful' THEN 'successful'
           WHEN 'failed' THEN 'aborted'
           WHEN 'aborted' THEN 'aborted'
           ELSE 'in_progress'
       END AS status,
       d.type::text AS "deploymentType",
       d.web_url AS "webUrl",
       d.android_build_url AS "androidBuildUrl",
       d.ios_build_url AS "iosBuildUrl",
       d.application_archive_url AS "applicationArchiveUrl",
       d.build_details_url AS "buildDetailsPageUrl",
       d.app_version AS "appVersion",
       d.project_name AS "projectName",
       coalesce(d.deployed_at, d.created_at) AS "deployedAt",
       d.created_at AS "createdAt",
       d.updated_at AS "updatedAt"
FROM deploys.deployments AS d
WHERE d.deleted_at IS NULL;
GRANT SELECT ON deploys.deployed_apps TO backplane_app, backplane_system;

-- migrate:down
DROP VIEW deploys.deployed_apps;
DROP TABLE deploys.artifacts;
DROP TABLE deploys.deployment_events;
DROP TABLE deploys.provider_jobs;
DROP TABLE deploys.deployments;
DROP TYPE deploys.artifact_state;
DROP TYPE deploys.artifact_kind;
DROP TYPE deploys.event_kind;
DROP TYPE deploys.job_kind;
DROP TYPE deploys.provider;
DROP TYPE deploys.platform;
DROP TYPE deploys.type;
DROP TYPE deploys.status;
DROP SCHEMA deploys;
