-- migrate:up
-- Projects that were deleted so long ago that nobody may restore them. Their rows stay, for the deployments and
-- generations that were of them and the forks that came from them; what was in them is gone.
ALTER TABLE projects.projects ADD COLUMN purged_at timestamptz;
-- Every row has NULL.
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE projects.projects ADD CONSTRAINT projects_purged CHECK (purged_at IS NULL OR deleted_at IS NOT NULL);
-- Deleted projects are few.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX projects_unpurged ON projects.projects (deleted_at) WHERE deleted_at IS NOT NULL AND purged_at IS NULL;

-- migrate:down
ALTER TABLE projects.projects DROP COLUMN purged_at;
