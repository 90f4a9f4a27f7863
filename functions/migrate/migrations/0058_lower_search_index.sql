-- migrate:up transaction:false
-- pg_trgm makes letters small by the database's locale, ILIKE by its collation's provider: where they differ, as for İ
-- and the Kelvin sign, the index lacks what a plain search finds. Of a text that is small already both say the same.
CREATE INDEX CONCURRENTLY IF NOT EXISTS messages_trigrams
    ON projects.messages USING gin (organization_id, lower(content) public.gin_trgm_ops) WITH (fastupdate = off);

-- migrate:down transaction:false
DROP INDEX CONCURRENTLY IF EXISTS projects.messages_trigrams;
