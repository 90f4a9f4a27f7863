-- migrate:up
-- A fork's files are copied before there is a project that they are of: the object's row comes first, as with
-- every object, and names its project as soon as it is stored.
-- Nobody reads a NULL here before a fork writes one.
-- squawk-ignore ban-drop-not-null
ALTER TABLE storage.objects ALTER COLUMN project_id DROP NOT NULL;
-- Every row names its project.
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE storage.objects ADD CONSTRAINT objects_stored_project CHECK (project_id IS NOT NULL OR state <> 'stored');

-- migrate:down
ALTER TABLE storage.objects DROP CONSTRAINT objects_stored_project;
-- What names no project was never stored.
DELETE FROM storage.objects WHERE project_id IS NULL;
ALTER TABLE storage.objects ALTER COLUMN project_id SET NOT NULL;
