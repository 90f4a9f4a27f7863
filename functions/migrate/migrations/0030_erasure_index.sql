-- migrate:up transaction:false
-- The bodies that tell of a person, found when he is erased.
CREATE INDEX CONCURRENTLY IF NOT EXISTS webhook_inbox_person
    ON platform.webhook_inbox (person)
    WHERE person IS NOT NULL;

-- migrate:down transaction:false
DROP INDEX CONCURRENTLY IF EXISTS platform.webhook_inbox_person;
