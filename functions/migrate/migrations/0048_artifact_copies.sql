-- migrate:up
-- Our copies of what builds left at their providers: objects of the bucket like others, which count.
ALTER TYPE storage.kind ADD VALUE 'artifact' AFTER 'bundle';
GRANT INSERT ON storage.objects TO backplane_system;

ALTER TABLE deploys.artifacts ADD COLUMN sha256 text;
ALTER TABLE deploys.artifacts ADD COLUMN copied_at timestamptz;
ALTER TABLE deploys.artifacts
    ADD CONSTRAINT artifacts_copied
    CHECK ((state = 'stored') = (sha256 IS NOT NULL AND copied_at IS NOT NULL)) NOT VALID;
GRANT SELECT (sha256, copied_at) ON deploys.artifacts TO backplane_app;

ALTER TYPE deploys.event_kind ADD VALUE 'artifact_stored' AFTER 'deleted';
ALTER TYPE deploys.event_kind ADD VALUE 'artifact_failed' AFTER 'artifact_stored';
-- It comes back at once, with one source more.
-- squawk-ignore ban-drop-constraint
ALTER TABLE deploys.deployment_events DROP CONSTRAINT deployment_events_source_check;
ALTER TABLE deploys.deployment_events
    ADD CONSTRAINT deployment_events_source_check
    CHECK (source IN ('user', 'callback', 'poll', 'sweeper', 'copier')) NOT VALID;

-- migrate:down
ALTER TABLE deploys.deployment_events DROP CONSTRAINT deployment_events_source_check;
DELETE FROM deploys.deployment_events WHERE source = 'copier' OR kind IN ('artifact_stored', 'artifact_failed');
ALTER TABLE deploys.deployment_events
    ADD CONSTRAINT deployment_events_source_check CHECK (source IN ('user', 'callback', 'poll', 'sweeper'));
ALTER TABLE deploys.deployment_events ALTER COLUMN kind TYPE text;
DROP TYPE deploys.event_kind;
CREATE TYPE deploys.event_kind AS ENUM (
    'started', 'linked', 'reported', 'completed', 'canceled', 'went_stale', 'given_up', 'deleted'
);
ALTER TABLE deploys.deployment_events ALTER COLUMN kind TYPE deploys.event_kind USING kind::deploys.event_kind;

ALTER TABLE deploys.artifacts DROP COLUMN copied_at;
ALTER TABLE deploys.artifacts DROP COLUMN sha256;

REVOKE INSERT ON storage.objects FROM backplane_system;
ALTER TABLE storage.objects ALTER COLUMN kind TYPE text;
-- They go on being stored and counted.
UPDATE storage.objects SET kind = 'upload' WHERE kind = 'artifact';
DROP TYPE storage.kind;
CREATE TYPE storage.kind AS ENUM ('files', 'upload', 'bundle');
ALTER TABLE storage.objects ALTER COLUMN kind TYPE storage.kind USING kind::storage.kind;
