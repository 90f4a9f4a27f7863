-- migrate:up
-- When the asking began that a subscription's state came from; NULL where an event's own word stands.
-- Of two fetched states the one asked for later is the newer.
ALTER TABLE billing.subscriptions ADD COLUMN fetched_at timestamptz;

-- migrate:down
ALTER TABLE billing.subscriptions DROP COLUMN fetched_at;
