-- migrate:up transaction:false
-- What the nightly upkeep looks for: invitations that nobody has accepted, and counters of days long past.
CREATE INDEX CONCURRENTLY IF NOT EXISTS shares_unaccepted ON projects.shares (expires_at) WHERE accepted_at IS NULL;
CREATE INDEX CONCURRENTLY IF NOT EXISTS usage_counters_ended
    ON billing.usage_counters (period_end)
    WHERE period_end IS NOT NULL;

-- migrate:down transaction:false
DROP INDEX CONCURRENTLY IF EXISTS billing.usage_counters_ended;
DROP INDEX CONCURRENTLY IF EXISTS projects.shares_unaccepted;
