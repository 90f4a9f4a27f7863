-- migrate:up
-- Generations: a model at work on a project. One at a time has the project's lease, a token with an end,
-- and holds its credits until it is over.

CREATE TYPE projects.agent_type AS ENUM (
    'orchestrator', 'backend', 'frontend', 'database', 'auth', 'integrations', 'devops', 'designer'
);
CREATE TYPE projects.generation_status AS ENUM ('pending', 'in_progress', 'completed', 'failed');

CREATE TABLE projects.generations (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL,
    project_id uuid NOT NULL,
    user_id uuid REFERENCES identity.users (id), -- NULL: by a key
    agent_type projects.agent_type NOT NULL,
    prompt text NOT NULL,
    response text,
    status projects.generation_status NOT NULL DEFAULT 'pending',
    tokens_used bigint NOT NULL DEFAULT 0 CHECK (tokens_used >= 0),
    duration_ms bigint CHECK (duration_ms >= 0),
    error_message text,
    hold_id uuid NOT NULL REFERENCES credits.holds (id),
    counted_at timestamptz NOT NULL, -- the moment its messages count for
    lock_token_hash bytea NOT NULL CHECK (octet_length(lock_token_hash) = 32), -- SHA-256 of a 256-bit random secret
    lock_expires_at timestamptz NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    completed_at timestamptz,
    FOREIGN KEY (organization_id, project_id) REFERENCES projects.projects (organization_id, id),
    CHECK ((status IN ('completed', 'failed')) = (completed_at IS NOT NULL)),
    CHECK ((status = 'failed') = (error_message IS NOT NULL))
);
CREATE UNIQUE INDEX generations_lease ON projects.generations (project_id) WHERE status = 'in_progress';
CREATE INDEX generations_expiry ON projects.generations (lock_expires_at) WHERE status = 'in_progress';
CREATE INDEX generations_project ON projects.generations (organization_id, project_id, id DESC);
CREATE INDEX generations_user ON projects.generations (user_id);
CREATE INDEX generations_status ON projects.generations (organization_id, status);
CREATE INDEX generations_hold ON projects.generations (hold_id);

CALL platform.protect('projects.generations', 'organization_id');
CREATE POLICY app_shared ON projects.generations FOR SELECT TO backplane_app
    USING (project_id IN (
        SELECT s.project_id
        FROM projects.shares AS s
        WHERE s.user_id = (SELECT nullif(current_setting('app.user_id', true), '')::uuid)
    ));
GRANT SELECT, INSERT, UPDATE ON projects.generations TO backplane_app;
GRANT UPDATE ON projects.generations TO backplane_system;

-- migrate:down
DROP TABLE projects.generations;
DROP TYPE projects.generation_status;
DROP TYPE projects.agent_type;
