-- migrate:up
-- The version of files that was in force when a generation that brought files was done, so that its repetition
-- answers the same. No reference: versions go when their project is purged or their person erased.
ALTER TABLE projects.generations ADD COLUMN files_version bigint;

-- migrate:down
ALTER TABLE projects.generations DROP COLUMN files_version;
