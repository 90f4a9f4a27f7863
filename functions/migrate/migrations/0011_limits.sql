-- migrate:up
-- What an organisation has used of its plan, counted exactly: the functions below are the only way
-- to the counters. docs/decisions/quotas.md says why a counter remembers a calendar day or month.

-- The day or month that a key counts by, from its name; NULL: a stock, which no calendar resets.
CREATE FUNCTION billing.unit_of(p_key text) RETURNS text
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT CASE WHEN p_key LIKE '%\_per\_day' THEN 'day' WHEN p_key LIKE '%\_per\_month' THEN 'month' END
$$;

-- The first instant of a date somewhere. A midnight that a clock change skips is the change itself
-- (PostgreSQL reads such a time by the clock before). Of a midnight that comes twice it takes the later
-- one, so what the clock ran ahead by then is taken off again.
CREATE FUNCTION billing.beginning_of(p_date date, p_timezone text) RETURNS timestamptz
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT m.at - greatest((m.at - interval '1 microsecond') AT TIME ZONE p_timezone
                               + interval '1 microsecond' - p_date::timestamp,
                           interval '0')
    FROM (SELECT p_date::timestamp AT TIME ZONE p_timezone AS at) AS m
$$;

ALTER TABLE billing.usage_counters ADD COLUMN period date;
ALTER TABLE billing.usage_counters ADD COLUMN period_end timestamptz;
COMMENT ON COLUMN billing.usage_counters.period IS
    'The calendar day, or the month by its first, that the row counts for. A date counts once, whatever zones it is seen from.';
COMMENT ON COLUMN billing.usage_counters.period_end IS
    'Its end in the timezone in which it began: before it no other begins, whatever the timezone becomes.';
UPDATE billing.usage_counters AS u
SET period = date_trunc(billing.unit_of(u.key), u.period_start AT TIME ZONE o.timezone)::date
FROM tenancy.organizations AS o
WHERE o.id = u.organization_id AND u.period_start <> '-infinity';
UPDATE billing.usage_counters AS u
SET period_end = billing.beginning_of((u.period + ('1 ' || billing.unit_of(u.key))::interval)::date, o.timezone)
FROM tenancy.organizations AS o
WHERE o.id = u.organization_id AND u.period IS NOT NULL;
-- Checked at once: nothing counted before this migration, so the table is as good as empty.
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE billing.usage_counters ADD CONSTRAINT usage_counters_period CHECK (
    (period IS NULL) = (period_start = '-infinity') AND (period_end IS NULL) = (period_start = '-infinity')
);

-- The counter that a moment counts in, there already or still to be made. The newest one goes on until
-- its end has come and the organisation's calendar shows a later date: a period is never counted twice,
-- and none begins inside another.
CREATE FUNCTION billing.counter_at(p_organization_id uuid, p_key text, p_timezone text, p_at timestamptz)
RETURNS TABLE (period date, period_start timestamptz, period_end timestamptz, used bigint, resets_at timestamptz)
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_unit text := billing.unit_of(p_key);
    v_length interval := '1 ' || v_unit;
    v_date date := date_trunc(v_unit, p_at AT TIME ZONE p_timezone);
    v_newest billing.usage_counters;
BEGIN
    SELECT * INTO v_newest
    FROM billing.usage_counters AS u
    WHERE u.organization_id = p_organization_id AND u.key = p_key
    ORDER BY u.period_start DESC
    LIMIT 1;
    IF v_unit IS NULL THEN
        RETURN QUERY SELECT NULL::date, '-infinity'::timestamptz, NULL::timestamptz,
                            coalesce(v_newest.used, 0), NULL::timestamptz;
    ELSIF p_at < v_newest.period_end OR v_date <= v_newest.period THEN
        RETURN QUERY SELECT
            v_newest.period, v_newest.period_start, v_newest.period_end, v_newest.used,
            greatest(v_newest.period_end,
                     billing.beginning_of((v_newest.period + v_length)::date, p_timezone));
    ELSE
        RETURN QUERY SELECT
            v_date, greatest(billing.beginning_of(v_date, p_timezone), v_newest.period_end), e.ends, 0::bigint, e.ends
        FROM (SELECT billing.beginning_of((v_date + v_length)::date, p_timezone) AS ends) AS e;
    END IF;
END
$$;

-- A plan's limit: what it says, or where it does not name the key, the next lower tier's plan that does.
CREATE FUNCTION billing.limit_of(p_plan_id uuid, p_key text) RETURNS bigint
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT l.value
    FROM billing.plans AS own
    JOIN billing.plans AS p ON p.id = own.id OR (p.active AND p.tier < own.tier)
    JOIN billing.plan_limits AS l ON l.plan_id = p.id
    WHERE own.id = p_plan_id AND l.key = p_key
    ORDER BY p.id = own.id DESC, p.tier DESC, p.sort_order DESC, p.key
    LIMIT 1
$$;

-- Each limit of a plan with what an organisation has used of it, and when it counts anew.
CREATE FUNCTION billing.usage_of(p_organization_id uuid, p_plan_id uuid)
RETURNS TABLE (key text, "limit" bigint, used bigint, resets_at timestamptz)
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT k.key, k.value, c.used, c.resets_at
    FROM tenancy.organizations AS o
    CROSS JOIN LATERAL (
        SELECT named.key, billing.limit_of(p_plan_id, named.key) AS value
        FROM (SELECT DISTINCT l.key FROM billing.plan_limits AS l) AS named
    ) AS k
    CROSS JOIN LATERAL billing.counter_at(o.id, k.key, o.timezone, clock_timestamp()) AS c
    WHERE o.id = p_organization_id AND k.value IS NOT NULL
    ORDER BY k.key
$$;

-- The application works for the organisation of its transaction and no other; jobs work for any.
CREATE FUNCTION tenancy.check_organization(p_organization_id uuid) RETURNS void
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    IF session_user = 'backplane_app'
        AND p_organization_id IS DISTINCT FROM nullif(current_setting('app.organization_id', true), '')::uuid
    THEN
        RAISE EXCEPTION 'the transaction is not organisation %''s', p_organization_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- Counts a quantity on each of the keys, or on none where one of them has not enough left: then it
-- answers that key (of several, the one that counts anew last) with its limit and what is used.
-- Internal, the clock as an argument; the next function is the way in. A shared lock on the
-- organisation keeps its timezone still; counters are locked in the order of their keys.
CREATE FUNCTION billing.take_at(
    p_organization_id uuid, p_plan_id uuid, p_keys text[], p_quantity bigint, p_at timestamptz
) RETURNS TABLE (refused_key text, "limit" bigint, used bigint, resets_at timestamptz, counted_at timestamptz)
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_timezone text;
    v_at timestamptz;
    v_key text;
    v_limit bigint;
    v_used bigint;
    v_counter record;
    v_starts timestamptz[] := '{}';
    v_keys text[] := ARRAY(SELECT DISTINCT k.key FROM unnest(p_keys) AS k (key) ORDER BY k.key);
BEGIN
    IF (p_quantity >= 0) IS NOT TRUE THEN
        RAISE EXCEPTION 'a quantity is 0 or more' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT o.timezone INTO STRICT v_timezone FROM tenancy.organizations AS o WHERE o.id = p_organization_id FOR SHARE;
    v_at := coalesce(p_at, clock_timestamp());

    FOREACH v_key IN ARRAY v_keys LOOP
        v_limit := billing.limit_of(p_plan_id, v_key);
        IF v_limit IS NULL THEN
            RAISE EXCEPTION 'no plan names the limit %', v_key USING ERRCODE = 'invalid_parameter_value';
        END IF;
        SELECT * INTO STRICT v_counter FROM billing.counter_at(p_organization_id, v_key, v_timezone, v_at);
        v_starts := v_starts || v_counter.period_start;
        INSERT INTO billing.usage_counters (organization_id, key, period_start, period, period_end)
        VALUES (p_organization_id, v_key, v_counter.period_start, v_counter.period, v_counter.period_end)
        ON CONFLICT DO NOTHING;
        SELECT u.used INTO STRICT v_used
        FROM billing.usage_counters AS u
        WHERE u.organization_id = p_organization_id AND u.key = v_key AND u.period_start = v_counter.period_start
        FOR UPDATE;
        IF v_limit >= 0 AND v_used > v_limit - p_quantity
            AND (refused_key IS NULL OR v_counter.resets_at IS NULL OR v_counter.resets_at > resets_at)
        THEN
            refused_key := v_key;
            "limit" := v_limit;
            used := v_used;
            resets_at := v_counter.resets_at;
        END IF;
    END LOOP;

    IF refused_key IS NULL THEN
        UPDATE billing.usage_counters AS u
        SET used = u.used + p_quantity,
            -- It covers all that is counted in it, also after a change of timezone drew it out.
            period_end = CASE WHEN u.period_end <= v_at THEN v_at + interval '1 microsecond' ELSE u.period_end END
        FROM unnest(v_keys, v_starts) AS t (key, period_start)
        WHERE u.organization_id = p_organization_id AND u.key = t.key AND u.period_start = t.period_start;
    END IF;
    counted_at := v_at;
    RETURN NEXT;
END
$$;

CREATE FUNCTION billing.take(p_organization_id uuid, p_plan_id uuid, p_keys text[], p_quantity bigint)
RETURNS TABLE (refused_key text, "limit" bigint, used bigint, resets_at timestamptz, counted_at timestamptz)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    RETURN QUERY SELECT * FROM billing.take_at(p_organization_id, p_plan_id, p_keys, p_quantity, NULL);
END
$$;

-- Changes what is counted on each of the keys in the period of that moment, whatever the limit, and not
-- below 0: what was taken is given back, or was more or less than it turned out to be.
CREATE FUNCTION billing.correct_count(p_organization_id uuid, p_keys text[], p_by bigint, p_at timestamptz)
RETURNS void
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_key text;
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    FOR v_key IN SELECT DISTINCT k.key FROM unnest(p_keys) AS k (key) ORDER BY k.key LOOP
        IF billing.unit_of(v_key) IS NULL THEN
            INSERT INTO billing.usage_counters (organization_id, key, period_start)
            VALUES (p_organization_id, v_key, '-infinity')
            ON CONFLICT DO NOTHING;
        ELSIF p_by > 0 THEN
            RAISE EXCEPTION 'a quota is counted by billing.take only' USING ERRCODE = 'invalid_parameter_value';
        END IF;
        UPDATE billing.usage_counters AS u
        SET used = greatest(u.used + p_by, 0)
        WHERE u.organization_id = p_organization_id
          AND u.key = v_key
          AND u.period_start = (
              SELECT max(covering.period_start)
              FROM billing.usage_counters AS covering
              WHERE covering.organization_id = p_organization_id
                AND covering.key = v_key
                AND covering.period_start <= coalesce(p_at, clock_timestamp())
          );
    END LOOP;
END
$$;

-- Moves an organisation to a timezone of the IANA database, by its exact name. Answers whether there is
-- such a one. Waits for those who are counting in the old one.
CREATE FUNCTION tenancy.change_timezone(p_organization_id uuid, p_timezone text) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    -- What a server's own folders hold beside IANA's names is not the same on the next server.
    IF p_timezone ~ '^(posix|right)/|^(posixrules|localtime|Factory)$'
        OR NOT EXISTS (SELECT 1 FROM pg_timezone_names WHERE name = p_timezone)
    THEN
        RETURN false;
    END IF;
    UPDATE tenancy.organizations
    SET timezone = p_timezone
    WHERE id = p_organization_id AND timezone <> p_timezone;
    RETURN true;
END
$$;

REVOKE INSERT, UPDATE ON billing.usage_counters FROM backplane_system;
GRANT EXECUTE ON FUNCTION
    billing.unit_of(text),
    billing.beginning_of(date, text),
    billing.counter_at(uuid, text, text, timestamptz),
    billing.limit_of(uuid, text),
    billing.usage_of(uuid, uuid),
    billing.take(uuid, uuid, text[], bigint),
    billing.correct_count(uuid, text[], bigint, timestamptz),
    tenancy.change_timezone(uuid, text)
    TO backplane_app, backplane_system;

-- migrate:down
GRANT INSERT, UPDATE ON billing.usage_counters TO backplane_system;
DROP FUNCTION tenancy.change_timezone(uuid, text);
DROP FUNCTION billing.correct_count(uuid, text[], bigint, timestamptz);
DROP FUNCTION billing.take(uuid, uuid, text[], bigint);
DROP FUNCTION billing.take_at(uuid, uuid, text[], bigint, timestamptz);
DROP FUNCTION tenancy.check_organization(uuid);
DROP FUNCTION billing.usage_of(uuid, uuid);
DROP FUNCTION billing.limit_of(uuid, text);
DROP FUNCTION billing.counter_at(uuid, text, text, timestamptz);
ALTER TABLE billing.usage_counters DROP COLUMN period_end;
ALTER TABLE billing.usage_counters DROP COLUMN period;
DROP FUNCTION billing.beginning_of(date, text);
DROP FUNCTION billing.unit_of(text);
