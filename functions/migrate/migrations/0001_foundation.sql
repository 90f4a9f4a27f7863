-- migrate:up
-- The rooms, the ids, and what every table must have. The four roles exist already: roles.py
-- makes them, because a migration runs as one of them (backplane_migrator).

CREATE SCHEMA platform;
CREATE SCHEMA identity;
CREATE SCHEMA tenancy;
CREATE SCHEMA billing;
CREATE SCHEMA credits;

GRANT USAGE ON SCHEMA platform, identity, tenancy, billing, credits
    TO backplane_app, backplane_system, backplane_backup;

-- A new function is nobody's until it is granted: security-definer functions see every row.
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- Time-ordered ids (UUIDv7) keep index inserts on the right-hand page. PostgreSQL 18 has them
-- built in, ascending within a session; on 16 and 17 the 48-bit millisecond clock is laid over a
-- random uuid, so that two of one millisecond may come in either order.
DO $$
BEGIN
    IF to_regprocedure('pg_catalog.uuidv7()') IS NOT NULL THEN
        CREATE FUNCTION platform.new_id() RETURNS uuid
            LANGUAGE sql VOLATILE PARALLEL SAFE
            AS 'SELECT pg_catalog.uuidv7()';
    ELSE
        CREATE FUNCTION platform.new_id() RETURNS uuid
            LANGUAGE sql VOLATILE PARALLEL SAFE
            AS $fn$
                SELECT encode(
                    set_bit(set_bit(
                        overlay(uuid_send(gen_random_uuid())
                            PLACING substring(int8send((extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3)
                            FROM 1 FOR 6),
                        52, 1), 53, 1),
                    'hex')::uuid
            $fn$;
    END IF;
END
$$;
GRANT EXECUTE ON FUNCTION platform.new_id() TO backplane_app, backplane_system;

CREATE FUNCTION platform.touch() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;

-- The organisation of the transaction (db.transaction sets it). After SET LOCAL ends a custom
-- setting is '', not NULL, hence the nullif.
-- Policies spell the expression out instead of calling a function: a function in a policy runs
-- per row, a scalar sub-select once per statement.

-- Forces row-level security on a table and gives every role that must see all rows its policy:
-- FORCE binds the owner too, and nobody has BYPASSRLS (Aurora's master cannot grant it).
-- With a tenant column, backplane_app sees and writes the rows of its organisation only;
-- without one it sees nothing until the migration adds a policy of its own.
CREATE PROCEDURE platform.protect(p_table regclass, p_tenant_column name DEFAULT NULL)
    LANGUAGE plpgsql
    AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', p_table);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', p_table);
    EXECUTE format('CREATE POLICY migrator_all ON %s TO backplane_migrator USING (true) WITH CHECK (true)', p_table);
    EXECUTE format('CREATE POLICY system_all ON %s TO backplane_system USING (true) WITH CHECK (true)', p_table);
    EXECUTE format('CREATE POLICY backup_read ON %s FOR SELECT TO backplane_backup USING (true)', p_table);
    EXECUTE format('GRANT SELECT ON %s TO backplane_system, backplane_backup', p_table);
    IF p_tenant_column IS NOT NULL THEN
        EXECUTE format(
            'CREATE POLICY app_tenant ON %1$s TO backplane_app USING (%2$I = (%3$s)) WITH CHECK (%2$I = (%3$s))',
            p_table, p_tenant_column,
            'SELECT nullif(current_setting(''app.organization_id'', true), '''')::uuid');
    END IF;
END
$$;

-- migrate:down
DROP PROCEDURE platform.protect(regclass, name);
DROP FUNCTION platform.touch();
DROP FUNCTION platform.new_id();
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO PUBLIC;
DROP SCHEMA credits;
DROP SCHEMA billing;
DROP SCHEMA tenancy;
DROP SCHEMA identity;
DROP SCHEMA platform;
