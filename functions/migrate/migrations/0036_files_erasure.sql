-- migrate:up
-- Versions of files never change, and go with the person whose they are.
GRANT DELETE ON projects.file_versions TO backplane_system;

-- migrate:down
REVOKE DELETE ON projects.file_versions FROM backplane_system;
