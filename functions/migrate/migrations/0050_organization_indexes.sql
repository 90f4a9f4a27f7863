-- migrate:up transaction:false
-- The deleted organisations that the sweeper asks for each minute.
CREATE INDEX CONCURRENTLY IF NOT EXISTS organizations_to_erase
    ON tenancy.organizations (deleted_at)
    WHERE deleted_at IS NOT NULL AND erased_at IS NULL;

-- migrate:down transaction:false
DROP INDEX CONCURRENTLY IF EXISTS tenancy.organizations_to_erase;
