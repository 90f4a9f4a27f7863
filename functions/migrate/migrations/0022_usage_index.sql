-- migrate:up transaction:false
-- Usage is summed from the index alone, however many entries a month has. The predicate stays what it
-- was: one that follows from a look-up by key would tempt the planner (see 0006). Each statement may be
-- run again after a run that broke off.
DROP INDEX CONCURRENTLY IF EXISTS credits.entries_used;
-- squawk-ignore ban-concurrent-index-creation-in-transaction, prefer-robust-stmts
CREATE INDEX CONCURRENTLY entries_used
    ON credits.entries (organization_id, created_at) INCLUDE (kind, operation, amount)
    WHERE operation IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS credits.entries_usage;

-- migrate:down transaction:false
DROP INDEX CONCURRENTLY IF EXISTS credits.entries_usage;
CREATE INDEX CONCURRENTLY entries_usage ON credits.entries (organization_id, created_at) WHERE operation IS NOT NULL;
DROP INDEX CONCURRENTLY IF EXISTS credits.entries_used;
