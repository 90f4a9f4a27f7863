-- migrate:up
-- What goes on in the database, for whoever keeps it running: numbers, names of objects and roles, and
-- statements without their values. Nothing here reads a row of a tenant's, or shows what a session says.
--
-- Of other roles' sessions and statements PostgreSQL shows everybody next to nothing: backplane_system
-- sees them where it is a member of pg_read_all_stats (monitoring.py sees to it, where it may).

CREATE SCHEMA ops;
GRANT USAGE ON SCHEMA ops TO backplane_system;

-- Connections to this database, by who holds them, what they do and what they wait for.
CREATE VIEW ops.connections WITH (security_invoker = true) AS
SELECT coalesce(usename::text, '?') AS role,
       coalesce(application_name, '') AS application,
       coalesce(state, '?') AS state,
       -- An idle session waits for its client, which is no news.
       CASE WHEN state IS DISTINCT FROM 'idle' THEN concat_ws(': ', wait_event_type, wait_event) END AS waiting_for,
       count(*) AS connections,
       extract(epoch FROM clock_timestamp() - min(backend_start))::bigint AS oldest_seconds,
       extract(epoch FROM clock_timestamp() - min(state_change))::bigint AS longest_in_state_seconds
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
GROUP BY 1, 2, 3, 4;

-- Open transactions, the oldest first.
CREATE VIEW ops.transactions WITH (security_invoker = true) AS
SELECT pid,
       coalesce(usename::text, '?') AS role,
       coalesce(application_name, '') AS application,
       state,
       concat_ws(': ', wait_event_type, wait_event) AS waiting_for,
       extract(epoch FROM clock_timestamp() - xact_start)::bigint AS seconds,
       extract(epoch FROM clock_timestamp() - state_change)::bigint AS in_state_seconds,
       greatest(age(backend_xmin), age(backend_xid))::bigint AS xid_age
FROM pg_stat_activity
WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid();

-- Who waits for a lock, on what, and who is in his way.
CREATE VIEW ops.lock_waits WITH (security_invoker = true) AS
SELECT l.pid,
       coalesce(a.usename::text, '?') AS role,
       coalesce(a.application_name, '') AS application,
       l.mode,
       coalesce(format('%s.%s', n.nspname, c.relname), l.locktype) AS waits_for,
       extract(epoch FROM clock_timestamp() - l.waitstart)::bigint AS seconds,
       pg_blocking_pids(l.pid) AS blocked_by
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
LEFT JOIN pg_class AS c ON c.oid = l.relation
LEFT JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE NOT l.granted
  AND (l.database IS NULL OR l.database = (SELECT oid FROM pg_database WHERE datname = current_database()));

-- Tables, and partitions each by itself: what they take, what is dead in them, how they are read. To ask for
-- a size takes a lock; a table that somebody has locked whole has the size of its last VACUUM or ANALYZE
-- instead, or the report would wait for just what it is to tell of.
CREATE VIEW ops.tables WITH (security_invoker = true) AS
SELECT format('%s.%s', s.schemaname, s.relname) AS name,
       greatest(s.n_live_tup, c.reltuples::bigint, 0) AS live_rows, -- an estimate
       s.n_dead_tup AS dead_rows,
       CASE WHEN l.locked THEN c.relpages::bigint * b.size ELSE pg_relation_size(c.oid) END AS heap_bytes,
       CASE WHEN l.locked THEN 0 ELSE coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0)
           END AS toast_bytes,
       CASE WHEN l.locked THEN 0 ELSE pg_indexes_size(c.oid) END AS index_bytes,
       CASE WHEN l.locked THEN c.relpages::bigint * b.size ELSE pg_total_relation_size(c.oid) END AS total_bytes,
       greatest(s.last_vacuum, s.last_autovacuum) AS last_vacuum,
       greatest(s.last_analyze, s.last_autoanalyze) AS last_analyze,
       s.n_mod_since_analyze AS changed_since_analyze,
       s.seq_scan AS sequential_scans,
       s.seq_tup_read AS rows_read_sequentially,
       coalesce(s.idx_scan, 0) AS index_scans,
       age(c.relfrozenxid)::bigint AS xid_age
FROM pg_stat_user_tables AS s
JOIN pg_class AS c ON c.oid = s.relid
CROSS JOIN (SELECT current_setting('block_size')::bigint AS size) AS b
CROSS JOIN LATERAL (
    SELECT EXISTS (
        SELECT FROM pg_locks AS k WHERE k.relation = c.oid AND k.mode = 'AccessExclusiveLock'
    ) AS locked
) AS l
WHERE c.relkind = 'r';

-- Indexes: how often they are used, whether they are whole, and which other one does the same: one of the
-- same rows that begins with the same columns, compared alike (of two equal ones, the unique or older one).
CREATE VIEW ops.indexes WITH (security_invoker = true) AS
WITH described AS (
    SELECT i.indexrelid, i.indrelid, i.indisunique, i.indisvalid AND i.indisready AS whole,
           m.amname, i.indnatts = i.indnkeyatts AS without_more,
           concat(i.indpred::text, ' on ', i.indexprs::text) AS rows_and_expressions,
           ARRAY(
               SELECT concat_ws(' ', i.indkey[k.n - 1], i.indclass[k.n - 1], i.indcollation[k.n - 1],
                                i.indoption[k.n - 1])
               FROM generate_series(1, i.indnkeyatts) AS k (n)
               ORDER BY k.n
           ) AS keys
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS m ON m.oid = c.relam
)
SELECT format('%s.%s', s.schemaname, s.indexrelname) AS name,
       format('%s.%s', s.schemaname, s.relname) AS table_name,
       CASE
           WHEN EXISTS (
               SELECT FROM pg_locks AS k WHERE k.relation = s.indexrelid AND k.mode = 'AccessExclusiveLock'
           ) THEN 0
           ELSE pg_relation_size(s.indexrelid)
       END AS bytes,
       s.idx_scan AS scans,
       s.last_idx_scan AS last_scan,
       d.indisunique AS is_unique,
       d.whole AS is_valid,
       (
           SELECT min(format('%s.%s', s.schemaname, o.relname))
           FROM described AS other
           JOIN pg_class AS o ON o.oid = other.indexrelid
           WHERE other.indrelid = d.indrelid
             AND other.indexrelid <> d.indexrelid
             AND other.whole
             AND other.amname = d.amname
             AND other.rows_and_expressions = d.rows_and_expressions
             AND d.without_more
             AND (NOT d.indisunique OR (other.indisunique AND other.keys = d.keys))
             AND CASE
                 WHEN other.keys = d.keys THEN
                     (other.indisunique AND NOT d.indisunique)
                     OR (other.indisunique = d.indisunique AND other.indexrelid < d.indexrelid)
                 ELSE d.amname = 'btree' AND other.keys[1:cardinality(d.keys)] = d.keys
             END
       ) AS covered_by
FROM pg_stat_user_indexes AS s
JOIN described AS d ON d.indexrelid = s.indexrelid;

-- What pg_stat_statements has counted in this database, without a value: a text that was stored before it
-- could be normalised (its documentation says when) has quotes left in it, and is withheld. No rows where
-- the extension or its library is missing.
CREATE FUNCTION ops.statements() RETURNS TABLE (
    role text, text text, calls bigint, total_ms double precision, mean_ms double precision,
    max_ms double precision, row_count bigint, hit_ratio double precision, temporary_blocks bigint
)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_schema text;
BEGIN
    SELECT quote_ident(n.nspname) INTO v_schema
    FROM pg_extension AS e
    JOIN pg_namespace AS n ON n.oid = e.extnamespace
    WHERE e.extname = 'pg_stat_statements';
    IF v_schema IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        $query$
        SELECT coalesce(r.rolname::text, '?'),
               CASE WHEN regexp_replace(t.text, '\$[0-9]+', '', 'g') !~ '[''$]' THEN t.text END,
               s.calls, s.total_exec_time, s.mean_exec_time, s.max_exec_time, s.rows,
               s.shared_blks_hit / nullif(s.shared_blks_hit + s.shared_blks_read, 0)::double precision,
               s.temp_blks_written
        FROM %1$s.pg_stat_statements AS s
        LEFT JOIN pg_roles AS r ON r.oid = s.userid
        CROSS JOIN LATERAL (
            SELECT trim(regexp_replace(regexp_replace(s.query, '--[^\n]*', '', 'g'), '\s+', ' ', 'g')) AS text
        ) AS t
        WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND s.query ~* '^\s*(--[^\n]*\s*)*(select|insert|update|delete|merge|with|call)\M'
        $query$, v_schema);
EXCEPTION
    WHEN object_not_in_prerequisite_state THEN -- the library is not in shared_preload_libraries
        RETURN;
END
$$;
GRANT EXECUTE ON FUNCTION ops.statements() TO backplane_system;
CREATE VIEW ops.statements WITH (security_invoker = true) AS SELECT * FROM ops.statements();

-- How near each database is to the end of its transaction numbers, which VACUUM gives back.
CREATE VIEW ops.transaction_ids WITH (security_invoker = true) AS
SELECT datname::text AS database,
       age(datfrozenxid)::bigint AS xid_age,
       mxid_age(datminmxid)::bigint AS multixact_age
FROM pg_database
WHERE datallowconn;

-- What keeps VACUUM from taking dead rows away, the oldest first.
CREATE VIEW ops.vacuum_blockers WITH (security_invoker = true) AS
SELECT 'transaction' AS kind, pid::text AS name, greatest(age(backend_xmin), age(backend_xid))::bigint AS xid_age,
       true AS active
FROM pg_stat_activity
WHERE coalesce(backend_xmin, backend_xid) IS NOT NULL AND pid <> pg_backend_pid()
UNION ALL
SELECT 'prepared transaction', gid, age(transaction)::bigint, true
FROM pg_prepared_xacts
UNION ALL
SELECT 'replication slot', slot_name::text, greatest(age(xmin), age(catalog_xmin))::bigint, active
FROM pg_replication_slots
UNION ALL
SELECT 'standby', application_name, age(backend_xmin)::bigint, true
FROM pg_stat_replication
WHERE backend_xmin IS NOT NULL;

-- Numbers that can run out: sequences, and keys in 32 bits or fewer.
CREATE VIEW ops.key_headroom WITH (security_invoker = true) AS
SELECT format('%s.%s', n.nspname, c.relname) AS name,
       coalesce(pg_sequence_last_value(c.oid), 0) / s.seqmax::double precision AS used,
       s.seqmax AS last
FROM pg_sequence AS s
JOIN pg_class AS c ON c.oid = s.seqrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE s.seqincrement > 0
UNION ALL
SELECT format('%s.%s.%s', n.nspname, c.relname, a.attname), NULL,
       CASE a.atttypid WHEN 'int2'::regtype THEN 32767 ELSE 2147483647 END
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indrelid AND c.relkind IN ('r', 'p')
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
WHERE i.indisprimary
  AND a.atttypid IN ('int2'::regtype, 'int4'::regtype)
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema';

-- The database as a whole.
CREATE VIEW ops.database WITH (security_invoker = true) AS
SELECT d.datname::text AS name,
       current_setting('server_version') AS server,
       pg_database_size(d.oid) AS bytes,
       (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
       current_setting('max_connections')::bigint AS max_connections,
       s.blks_hit AS blocks_hit,
       s.blks_read AS blocks_read,
       s.temp_bytes AS temporary_bytes,
       s.deadlocks,
       coalesce(s.checksum_failures, 0) AS checksum_failures,
       coalesce(s.stats_reset, pg_postmaster_start_time()) AS counted_since,
       pg_has_role('pg_read_all_stats', 'USAGE') AS sees_other_roles,
       EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements')
           AND current_setting('pg_stat_statements.max', true) IS NOT NULL AS sees_statements
FROM pg_database AS d
JOIN pg_stat_database AS s ON s.datid = d.oid
WHERE d.datname = current_database();

GRANT SELECT
    ON ops.connections, ops.transactions, ops.lock_waits, ops.tables, ops.indexes, ops.statements,
       ops.transaction_ids, ops.vacuum_blockers, ops.key_headroom, ops.database
    TO backplane_system;

-- migrate:down
DROP VIEW ops.database;
DROP VIEW ops.key_headroom;
DROP VIEW ops.vacuum_blockers;
DROP VIEW ops.transaction_ids;
DROP VIEW ops.statements;
DROP FUNCTION ops.statements();
DROP VIEW ops.indexes;
DROP VIEW ops.tables;
DROP VIEW ops.lock_waits;
DROP VIEW ops.transactions;
DROP VIEW ops.connections;
DROP SCHEMA ops;
