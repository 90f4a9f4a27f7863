-- migrate:up transaction:false
-- Nothing asks it any more: the search asks messages_trigrams.
DROP INDEX CONCURRENTLY IF EXISTS projects.messages_search;

-- migrate:down transaction:false
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_search
    ON projects.messages USING gin (organization_id, content public.gin_trgm_ops) WITH (fastupdate = off);
