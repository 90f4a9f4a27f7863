-- migrate:up
-- Tables in parts by time, so that what is old goes by dropping a part. docs/decisions/partitions.md says which
-- tables are, and which cannot be.

-- Kept up each night: a partition for each period from this one to `ahead` periods on, and none that ended more
-- than `keep` periods ago.
CREATE TABLE platform.partitioned_tables (
    parent text PRIMARY KEY CHECK (parent ~ '^[a-z_]+\.[a-z0-9_]{1,53}$'),
    period text NOT NULL CHECK (period IN ('day', 'week', 'month')), -- in UTC
    ahead bigint NOT NULL CHECK (ahead BETWEEN 1 AND 60),
    keep bigint CHECK (keep > 0) -- NULL: for ever
);
CALL platform.protect('platform.partitioned_tables');

-- A moment as the least value of a partition key: of a time itself, of an id (UUIDv7) the first of that millisecond.
CREATE FUNCTION platform.partition_bound(p_type regtype, p_at timestamptz) RETURNS text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE p_type
        WHEN 'uuid'::regtype THEN
            rpad(lpad(to_hex((extract(epoch FROM p_at) * 1000)::bigint), 12, '0'), 32, '0')::uuid::text
        ELSE p_at::text
    END
$$;

CREATE FUNCTION platform.moment_of(p_type regtype, p_key text) RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE p_type
        WHEN 'uuid'::regtype THEN
            to_timestamp(('x' || left(replace(p_key, '-', ''), 12))::bit(48)::bigint / 1000.0)
        ELSE p_key::timestamptz
    END
$$;

-- Makes the next partition that is missing: one ahead, else one behind for rows that went to the default
-- partition because theirs was not there; those move into it. NULL: none is missing.
--
-- The default partition is locked first: a row that came into it between the move and the attachment would make
-- the latter fail. Nobody is kept waiting for long: a lock that is not had soon is given up, and tried the next night.
CREATE FUNCTION platform.make_partition(p_parent text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '2s'
    SET timezone = 'UTC'
    AS $$
DECLARE
    BEHIND CONSTANT bigint := 240; -- periods: what claims to be older stays where it is
    v_table platform.partitioned_tables;
    v_key name;
    v_type regtype;
    v_default regclass;
    v_length interval;
    v_current timestamptz;
    v_start timestamptz;
    v_oldest text;
    v_columns text;
    v_name text;
BEGIN
    SELECT * INTO STRICT v_table FROM platform.partitioned_tables WHERE parent = p_parent;
    SELECT nullif(p.partdefid, 0), a.attname, a.atttypid INTO STRICT v_default, v_key, v_type
    FROM pg_partitioned_table AS p
    JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
    WHERE p.partrelid = p_parent::regclass AND p.partstrat = 'r' AND p.partnatts = 1;
    v_length := ('1 ' || v_table.period)::interval;
    v_current := date_trunc(v_table.period, clock_timestamp());

    SELECT min(start) INTO v_start
    FROM generate_series(v_current, v_current + v_table.ahead * v_length, v_length) AS periods (start)
    WHERE to_regclass(p_parent || to_char(start, '"_p"YYYYMMDD')) IS NULL;
    IF v_start IS NULL AND v_default IS NOT NULL THEN
        EXECUTE format('SELECT %1$I::text FROM ONLY %2$s WHERE %1$I >= %3$L AND %1$I < %4$L ORDER BY %1$I LIMIT 1',
                       v_key, v_default, platform.partition_bound(v_type, v_current - BEHIND * v_length),
                       platform.partition_bound(v_type, v_current))
            INTO v_oldest;
        v_start := date_trunc(v_table.period, platform.moment_of(v_type, v_oldest));
    END IF;
    IF v_start IS NULL THEN
        RETURN NULL;
    END IF;

    v_name := p_parent || to_char(v_start, '"_p"YYYYMMDD');
    IF v_default IS NOT NULL THEN
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', v_default);
    END IF;
    IF to_regclass(v_name) IS NOT NULL THEN
        RETURN v_name; -- somebody else has made it meanwhile
    END IF;
    EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY EXCLUDING INDEXES EXCLUDING STATISTICS)',
                   v_name, p_parent);
    CALL platform.protect(v_name::regclass);
    IF v_default IS NOT NULL THEN
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO v_columns
        FROM pg_attribute
        WHERE attrelid = p_parent::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
        EXECUTE format(
            'WITH moved AS (DELETE FROM ONLY %1$s WHERE %2$I >= %3$L AND %2$I < %4$L RETURNING %5$s)
             INSERT INTO %6$s (%5$s) SELECT %5$s FROM moved',
            v_default, v_key, platform.partition_bound(v_type, v_start),
            platform.partition_bound(v_type, v_start + v_length), v_columns, v_name);
    END IF;
    EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%L) TO (%L)', p_parent, v_name,
                   platform.partition_bound(v_type, v_start), platform.partition_bound(v_type, v_start + v_length));
    RETURN v_name;
END
$$;

-- Drops the oldest partition that ended more than `keep` periods ago. NULL: there is none.
CREATE FUNCTION platform.drop_partition(p_parent text) RETURNS text
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '2s'
    SET timezone = 'UTC'
    AS $$
DECLARE
    v_table platform.partitioned_tables;
    v_length interval;
    v_name text;
BEGIN
    SELECT * INTO STRICT v_table FROM platform.partitioned_tables WHERE parent = p_parent;
    v_length := ('1 ' || v_table.period)::interval;
    SELECT format('%I.%I', n.nspname, c.relname) INTO v_name
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE i.inhparent = p_parent::regclass
      AND format('%s.%s', n.nspname, c.relname) ~ ('^' || replace(p_parent, '.', '\.') || '_p\d{8}$') -- ours
      AND format('%s.%s', n.nspname, c.relname) COLLATE "C" <= p_parent || to_char(
          date_trunc(v_table.period, clock_timestamp()) - (v_table.keep + 1) * v_length, '"_p"YYYYMMDD') COLLATE "C"
    ORDER BY c.relname
    LIMIT 1;
    IF v_name IS NOT NULL THEN
        EXECUTE format('DROP TABLE IF EXISTS %s', v_name);
    END IF;
    RETURN v_name;
END
$$;

-- Tables of which the planner's picture is old: a fifth of the rows or more are new or changed; and those in parts,
-- of which autovacuum analyses the parts alone.
CREATE FUNCTION platform.tables_to_analyze() RETURNS SETOF text
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT format('%I.%I', s.schemaname, s.relname)
    FROM pg_stat_user_tables AS s
    JOIN pg_class AS c ON c.oid = s.relid
    WHERE c.relowner = 'backplane_migrator'::regrole
      AND CASE c.relkind
          WHEN 'r' THEN s.n_mod_since_analyze > 1000 + 0.2 * greatest(c.reltuples, 0)
          WHEN 'p' THEN coalesce(s.last_analyze, '-infinity') < clock_timestamp() - interval '7 days'
      END
    ORDER BY s.n_mod_since_analyze DESC, 1
$$;

CREATE FUNCTION platform.analyze_table(p_table text) RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '2s'
    AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(p_table) AND relowner = 'backplane_migrator'::regrole) THEN
        EXECUTE format('ANALYZE (SKIP_LOCKED) %s', to_regclass(p_table));
    END IF;
END
$$;

GRANT EXECUTE ON FUNCTION
    platform.partition_bound(regtype, timestamptz), platform.moment_of(regtype, text), platform.make_partition(text),
    platform.drop_partition(text), platform.tables_to_analyze(), platform.analyze_table(text)
    TO backplane_system;

-- The audit log, by its ids: they begin with their time, so the key stays what it was. What is there becomes the
-- default partition as it stands; the nights after move it into its months.
DROP TRIGGER audit_log_append_only ON platform.audit_log;
DROP TRIGGER audit_log_unchanged ON platform.audit_log;
DROP TRIGGER audit_log_erased ON platform.audit_log;
REVOKE INSERT ON platform.audit_log FROM backplane_app, backplane_system;
DROP POLICY app_tenant ON platform.audit_log;
-- The new parent has its name; the functions of the release before write into that.
-- squawk-ignore renaming-table, renaming-object
ALTER TABLE platform.audit_log RENAME TO audit_log_default;
-- squawk-ignore renaming-object
ALTER INDEX platform.audit_log_pkey RENAME TO audit_log_default_pkey;
-- squawk-ignore renaming-object
ALTER INDEX platform.audit_log_organization RENAME TO audit_log_default_organization;

CREATE TABLE platform.audit_log (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid CONSTRAINT audit_log_organization_id_fkey REFERENCES tenancy.organizations (id),
    actor text NOT NULL, -- user:<id>, key:<id>, clerk, stripe, system
    action text NOT NULL CONSTRAINT audit_log_action_check CHECK (action ~ '^[a-z_]+\.[a-z_]+$'),
    target text NOT NULL, -- user:<id>, subscription:<id>, …
    details jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) PARTITION BY RANGE (id);
CREATE INDEX audit_log_organization ON platform.audit_log (organization_id, created_at DESC);
ALTER TABLE platform.audit_log ATTACH PARTITION platform.audit_log_default DEFAULT;
CREATE TRIGGER audit_log_append_only BEFORE DELETE OR TRUNCATE ON platform.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER audit_log_unchanged BEFORE UPDATE ON platform.audit_log
    FOR EACH STATEMENT
    WHEN (current_setting('backplane.erasing', true) IS DISTINCT FROM 'details')
    EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER audit_log_erased BEFORE UPDATE ON platform.audit_log
    FOR EACH ROW EXECUTE FUNCTION platform.keep_all_but_details();
CALL platform.protect('platform.audit_log', 'organization_id');
GRANT INSERT ON platform.audit_log TO backplane_app;
GRANT INSERT ON platform.audit_log TO backplane_system;
INSERT INTO platform.partitioned_tables (parent, period, ahead) VALUES ('platform.audit_log', 'month', 3);

-- What is invited, and what is counted by the day, is forgotten some time after its end.
GRANT DELETE ON billing.usage_counters TO backplane_system;

-- migrate:down
REVOKE DELETE ON billing.usage_counters FROM backplane_system;
CREATE TEMPORARY TABLE audit_log_kept ON COMMIT DROP AS SELECT * FROM platform.audit_log;
DROP TABLE platform.audit_log;
CREATE TABLE platform.audit_log (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid REFERENCES tenancy.organizations (id),
    actor text NOT NULL, -- user:<id>, key:<id>, clerk, stripe, system
    action text NOT NULL CHECK (action ~ '^[a-z_]+\.[a-z_]+$'),
    target text NOT NULL, -- user:<id>, subscription:<id>, …
    details jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO platform.audit_log (id, organization_id, actor, action, target, details, created_at)
SELECT id, organization_id, actor, action, target, details, created_at
FROM audit_log_kept;
CREATE INDEX audit_log_organization ON platform.audit_log (organization_id, created_at DESC);
CREATE TRIGGER audit_log_append_only BEFORE DELETE OR TRUNCATE ON platform.audit_log
    FOR EACH STATEMENT EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER audit_log_unchanged BEFORE UPDATE ON platform.audit_log
    FOR EACH STATEMENT
    WHEN (current_setting('backplane.erasing', true) IS DISTINCT FROM 'details')
    EXECUTE FUNCTION platform.refuse_change();
CREATE TRIGGER audit_log_erased BEFORE UPDATE ON platform.audit_log
    FOR EACH ROW EXECUTE FUNCTION platform.keep_all_but_details();
CALL platform.protect('platform.audit_log', 'organization_id');
GRANT INSERT ON platform.audit_log TO backplane_app;
GRANT INSERT ON platform.audit_log TO backplane_system;
DROP FUNCTION platform.analyze_table(text);
DROP FUNCTION platform.tables_to_analyze();
DROP FUNCTION platform.drop_partition(text);
DROP FUNCTION platform.make_partition(text);
DROP FUNCTION platform.moment_of(regtype, text);
DROP FUNCTION platform.partition_bound(regtype, timestamptz);
DROP TABLE platform.partitioned_tables;
