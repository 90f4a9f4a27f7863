-- migrate:up transaction:false
-- What health, the worker's report and the admin's list look at: few rows among many settled ones.
CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_inbox_unsettled
    ON platform.webhook_inbox (status, id)
    WHERE status IN ('parked', 'quarantined', 'failed', 'dead');
CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_inbox_trimmable
    ON platform.webhook_inbox (received_at)
    WHERE body IS NOT NULL AND status IN ('processed', 'ignored', 'stale');
DROP INDEX CONCURRENTLY IF EXISTS platform.webhook_inbox_received;
CREATE INDEX CONCURRENTLY IF NOT EXISTS outbox_published
    ON platform.outbox (published_at)
    WHERE published_at IS NOT NULL;

-- migrate:down transaction:false
DROP INDEX CONCURRENTLY IF EXISTS platform.outbox_published;
CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_inbox_received ON platform.webhook_inbox (received_at);
DROP INDEX CONCURRENTLY IF EXISTS platform.webhook_inbox_trimmable;
DROP INDEX CONCURRENTLY IF EXISTS platform.webhook_inbox_unsettled;
