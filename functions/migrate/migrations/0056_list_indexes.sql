-- migrate:up transaction:false
-- Lists whose order no index had: a project's generations and deployments (which others may see whom it is shared
-- with, so that the organisation is no condition of theirs), service keys among all keys, and users by the
-- beginning of their address.
CREATE INDEX CONCURRENTLY IF NOT EXISTS generations_newest ON projects.generations (project_id, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS deployments_newest ON deploys.deployments (project_id, id DESC);
CREATE INDEX CONCURRENTLY IF NOT EXISTS api_keys_service ON platform.api_keys (id DESC) WHERE kind = 'service';
CREATE INDEX CONCURRENTLY IF NOT EXISTS users_email_prefix
    ON identity.users (lower(email) text_pattern_ops)
    WHERE email IS NOT NULL;

-- migrate:down transaction:false
DROP INDEX CONCURRENTLY IF EXISTS identity.users_email_prefix;
DROP INDEX CONCURRENTLY IF EXISTS platform.api_keys_service;
DROP INDEX CONCURRENTLY IF EXISTS deploys.deployments_newest;
DROP INDEX CONCURRENTLY IF EXISTS projects.generations_newest;
