-- migrate:up
-- A debit asks for one price and no longer makes the whole price list for it.

-- What one unit costs: the operator's override where it is a sane number (finite, not negative; rounded
-- down), else the default; NULL: not for sale. An override may also name an operation without a default.
CREATE FUNCTION credits.unit_cost(p_operation text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_override jsonb;
BEGIN
    SELECT s.feature_costs -> p_operation INTO v_override FROM platform.admin_settings AS s;
    IF jsonb_typeof(v_override) = 'number'
        AND (v_override #>> '{}')::numeric BETWEEN 0 AND 1000000000
        AND length(p_operation) BETWEEN 1 AND 63 -- what a debit can name
        AND p_operation <> 'admin_adjustment'
    THEN
        RETURN floor((v_override #>> '{}')::numeric);
    END IF;
    RETURN (SELECT o.default_cost FROM credits.operations AS o WHERE o.operation = p_operation);
END
$$;

-- The price list.
CREATE OR REPLACE FUNCTION credits.costs() RETURNS TABLE (operation text, unit_cost bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT priced.operation, priced.unit_cost
    FROM (
        SELECT named.operation, credits.unit_cost(named.operation) AS unit_cost
        FROM (
            SELECT o.operation FROM credits.operations AS o
            UNION
            SELECT jsonb_object_keys(s.feature_costs) FROM platform.admin_settings AS s
        ) AS named
    ) AS priced
    WHERE priced.unit_cost IS NOT NULL
$$;

-- As in 0007 but for the price.
CREATE OR REPLACE FUNCTION credits.debit(
    p_organization_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_operation text,
    p_quantity bigint,
    p_actor text,
    p_details jsonb
) RETURNS TABLE (
    outcome text, id uuid, operation text, quantity bigint, unit_cost bigint, amount bigint,
    available_after bigint, created_at timestamptz
)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_unit_cost bigint;
    v_amount bigint;
    v_entry credits.entries;
    v_account credits.accounts;
    v_grant record;
    v_left bigint;
    v_allocations credits.allocation[] := '{}';
BEGIN
    IF (p_quantity >= 1 AND p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL)
        IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a debit needs a quantity of at least 1, an idempotency key and a request hash'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT * INTO v_entry
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'debit';

    IF v_entry.id IS NULL THEN
        v_unit_cost := credits.unit_cost(p_operation);
        IF v_unit_cost IS NULL THEN
            outcome := 'unknown_operation';
            RETURN NEXT;
            RETURN;
        END IF;
        v_amount := p_quantity * v_unit_cost;
        UPDATE credits.accounts AS a
        SET available = a.available - v_amount,
            version = a.version + 1,
            updated_at = clock_timestamp()
        WHERE a.organization_id = p_organization_id
          AND a.available >= v_amount
          AND (a.next_due_at IS NULL OR a.next_due_at > clock_timestamp())
        RETURNING * INTO v_account;

        IF v_account.organization_id IS NULL THEN
            PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
            IF NOT FOUND THEN
                outcome := 'unknown_account';
                RETURN NEXT;
                RETURN;
            END IF;
            -- The balance may be short because this very key was debited while we waited.
            SELECT * INTO v_entry
            FROM credits.entries AS e
            WHERE e.organization_id = p_organization_id
              AND e.idempotency_key = p_idempotency_key
              AND e.kind = 'debit';
            IF v_entry.id IS NULL THEN
                PERFORM credits.settle_due(p_organization_id);
                UPDATE credits.accounts AS a
                SET available = a.available - v_amount,
                    version = a.version + 1,
                    updated_at = clock_timestamp()
                WHERE a.organization_id = p_organization_id
                  AND a.available >= v_amount
                RETURNING * INTO v_account;
                IF v_account.organization_id IS NULL THEN
                    RETURN QUERY
                        SELECT 'insufficient', NULL::uuid, p_operation, p_quantity, v_unit_cost, v_amount,
                               a.available, NULL::timestamptz
                        FROM credits.accounts AS a
                        WHERE a.organization_id = p_organization_id;
                    RETURN;
                END IF;
            END IF;
        END IF;
    END IF;

    IF v_entry.id IS NOT NULL THEN
        RETURN QUERY SELECT
            CASE WHEN v_entry.request_hash = p_request_hash THEN 'replayed' ELSE 'conflict' END,
            v_entry.id, v_entry.operation, v_entry.quantity, v_entry.unit_cost, -v_entry.amount,
            v_entry.available_after, v_entry.created_at;
        RETURN;
    END IF;

    v_left := v_amount;
    FOR v_grant IN
        SELECT g.id, g.remaining
        FROM credits.grants AS g
        WHERE g.organization_id = p_organization_id AND g.live
        ORDER BY g.priority, g.expires_at NULLS LAST, g.created_at, g.id
    LOOP
        EXIT WHEN v_left = 0;
        UPDATE credits.grants AS g
        SET remaining = g.remaining - least(v_left, v_grant.remaining),
            live = g.remaining > v_left
        WHERE g.id = v_grant.id;
        v_allocations := v_allocations || (v_grant.id, least(v_left, v_grant.remaining))::credits.allocation;
        v_left := v_left - least(v_left, v_grant.remaining);
    END LOOP;
    IF v_left > 0 THEN
        RAISE EXCEPTION 'the live grants of organisation % are % short of its balance', p_organization_id, v_left
            USING ERRCODE = 'data_corrupted';
    END IF;

    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, allocations, idempotency_key, request_hash, actor, details)
    VALUES
        (p_organization_id, v_account.version, 'debit', -v_amount, v_account.available, v_account.held,
         v_account.debt, p_operation, p_quantity, v_unit_cost, v_allocations, p_idempotency_key,
         p_request_hash, p_actor, p_details)
    RETURNING * INTO v_entry;
    RETURN QUERY SELECT 'debited', v_entry.id, v_entry.operation, v_entry.quantity, v_entry.unit_cost, v_amount,
                        v_entry.available_after, v_entry.created_at;
END
$$;

-- As in 0009 but for the price.
CREATE OR REPLACE FUNCTION credits.hold(
    p_organization_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_operation text,
    p_quantity bigint,
    p_expires_in bigint, -- seconds
    p_actor text,
    p_details jsonb
) RETURNS TABLE (outcome text, id uuid, amount bigint, expires_at timestamptz, available bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_unit_cost bigint;
    v_amount bigint;
    v_hold credits.holds;
    v_account credits.accounts;
    v_expires_at timestamptz;
BEGIN
    IF (p_quantity >= 1 AND p_expires_in >= 1 AND p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL)
        IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a hold needs a quantity and a length of at least 1, an idempotency key and a request hash'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'unknown_account';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT * INTO v_hold
    FROM credits.holds AS h
    WHERE h.organization_id = p_organization_id AND h.idempotency_key = p_idempotency_key;
    IF FOUND THEN
        RETURN QUERY SELECT
            CASE WHEN v_hold.request_hash = p_request_hash THEN 'replayed' ELSE 'conflict' END,
            v_hold.id, v_hold.amount, v_hold.expires_at, NULL::bigint;
        RETURN;
    END IF;
    v_unit_cost := credits.unit_cost(p_operation);
    IF v_unit_cost IS NULL THEN
        outcome := 'unknown_operation';
        RETURN NEXT;
        RETURN;
    END IF;
    v_amount := p_quantity * v_unit_cost;
    v_account := credits.current_account(p_organization_id);
    IF v_account.available < v_amount THEN
        RETURN QUERY SELECT 'insufficient', NULL::uuid, v_amount, NULL::timestamptz, v_account.available;
        RETURN;
    END IF;

    v_expires_at := clock_timestamp() + p_expires_in * interval '1 second';
    UPDATE credits.accounts AS a
    SET available = a.available - v_amount,
        held = a.held + v_amount,
        version = a.version + 1,
        next_due_at = least(a.next_due_at, v_expires_at),
        updated_at = clock_timestamp()
    WHERE a.organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.holds
        (organization_id, operation, quantity, unit_cost, amount, allocations, expires_at, idempotency_key,
         request_hash, actor, details)
    VALUES
        (p_organization_id, p_operation, p_quantity, v_unit_cost, v_amount,
         credits.burn(p_organization_id, v_amount), v_expires_at, p_idempotency_key, p_request_hash, p_actor,
         p_details)
    RETURNING * INTO STRICT v_hold;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, source_id, actor, details)
    VALUES
        (p_organization_id, v_account.version, 'hold', 0, v_account.available, v_account.held, v_account.debt,
         p_operation, p_quantity, v_unit_cost, v_hold.id, p_actor, p_details);
    RETURN QUERY SELECT 'held', v_hold.id, v_amount, v_hold.expires_at, v_account.available;
END
$$;

-- migrate:down
CREATE OR REPLACE FUNCTION credits.hold(
    p_organization_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_operation text,
    p_quantity bigint,
    p_expires_in bigint, -- seconds
    p_actor text,
    p_details jsonb
) RETURNS TABLE (outcome text, id uuid, amount bigint, expires_at timestamptz, available bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_unit_cost bigint;
    v_amount bigint;
    v_hold credits.holds;
    v_account credits.accounts;
    v_expires_at timestamptz;
BEGIN
    IF (p_quantity >= 1 AND p_expires_in >= 1 AND p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL)
        IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a hold needs a quantity and a length of at least 1, an idempotency key and a request hash'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'unknown_account';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT * INTO v_hold
    FROM credits.holds AS h
    WHERE h.organization_id = p_organization_id AND h.idempotency_key = p_idempotency_key;
    IF FOUND THEN
        RETURN QUERY SELECT
            CASE WHEN v_hold.request_hash = p_request_hash THEN 'replayed' ELSE 'conflict' END,
            v_hold.id, v_hold.amount, v_hold.expires_at, NULL::bigint;
        RETURN;
    END IF;
    SELECT c.unit_cost INTO v_unit_cost FROM credits.costs() AS c WHERE c.operation = p_operation;
    IF v_unit_cost IS NULL THEN
        outcome := 'unknown_operation';
        RETURN NEXT;
        RETURN;
    END IF;
    v_amount := p_quantity * v_unit_cost;
    v_account := credits.current_account(p_organization_id);
    IF v_account.available < v_amount THEN
        RETURN QUERY SELECT 'insufficient', NULL::uuid, v_amount, NULL::timestamptz, v_account.available;
        RETURN;
    END IF;

    v_expires_at := clock_timestamp() + p_expires_in * interval '1 second';
    UPDATE credits.accounts AS a
    SET available = a.available - v_amount,
        held = a.held + v_amount,
        version = a.version + 1,
        next_due_at = least(a.next_due_at, v_expires_at),
        updated_at = clock_timestamp()
    WHERE a.organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.holds
        (organization_id, operation, quantity, unit_cost, amount, allocations, expires_at, idempotency_key,
         request_hash, actor, details)
    VALUES
        (p_organization_id, p_operation, p_quantity, v_unit_cost, v_amount,
         credits.burn(p_organization_id, v_amount), v_expires_at, p_idempotency_key, p_request_hash, p_actor,
         p_details)
    RETURNING * INTO STRICT v_hold;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, source_id, actor, details)
    VALUES
        (p_organization_id, v_account.version, 'hold', 0, v_account.available, v_account.held, v_account.debt,
         p_operation, p_quantity, v_unit_cost, v_hold.id, p_actor, p_details);
    RETURN QUERY SELECT 'held', v_hold.id, v_amount, v_hold.expires_at, v_account.available;
END
$$;

CREATE OR REPLACE FUNCTION credits.debit(
    p_organization_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_operation text,
    p_quantity bigint,
    p_actor text,
    p_details jsonb
) RETURNS TABLE (
    outcome text, id uuid, operation text, quantity bigint, unit_cost bigint, amount bigint,
    available_after bigint, created_at timestamptz
)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_unit_cost bigint;
    v_amount bigint;
    v_entry credits.entries;
    v_account credits.accounts;
    v_grant record;
    v_left bigint;
    v_allocations credits.allocation[] := '{}';
BEGIN
    IF (p_quantity >= 1 AND p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL)
        IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a debit needs a quantity of at least 1, an idempotency key and a request hash'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;

    SELECT * INTO v_entry
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'debit';

    IF v_entry.id IS NULL THEN
        SELECT c.unit_cost INTO v_unit_cost FROM credits.costs() AS c WHERE c.operation = p_operation;
        IF v_unit_cost IS NULL THEN
            outcome := 'unknown_operation';
            RETURN NEXT;
            RETURN;
        END IF;
        v_amount := p_quantity * v_unit_cost;
        UPDATE credits.accounts AS a
        SET available = a.available - v_amount,
            version = a.version + 1,
            updated_at = clock_timestamp()
        WHERE a.organization_id = p_organization_id
          AND a.available >= v_amount
          AND (a.next_due_at IS NULL OR a.next_due_at > clock_timestamp())
        RETURNING * INTO v_account;

        IF v_account.organization_id IS NULL THEN
            PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
            IF NOT FOUND THEN
                outcome := 'unknown_account';
                RETURN NEXT;
                RETURN;
            END IF;
            -- The balance may be short because this very key was debited while we waited.
            SELECT * INTO v_entry
            FROM credits.entries AS e
            WHERE e.organization_id = p_organization_id
              AND e.idempotency_key = p_idempotency_key
              AND e.kind = 'debit';
            IF v_entry.id IS NULL THEN
                PERFORM credits.settle_due(p_organization_id);
                UPDATE credits.accounts AS a
                SET available = a.available - v_amount,
                    version = a.version + 1,
                    updated_at = clock_timestamp()
                WHERE a.organization_id = p_organization_id
                  AND a.available >= v_amount
                RETURNING * INTO v_account;
                IF v_account.organization_id IS NULL THEN
                    RETURN QUERY
                        SELECT 'insufficient', NULL::uuid, p_operation, p_quantity, v_unit_cost, v_amount,
                               a.available, NULL::timestamptz
                        FROM credits.accounts AS a
                        WHERE a.organization_id = p_organization_id;
                    RETURN;
                END IF;
            END IF;
        END IF;
    END IF;

    IF v_entry.id IS NOT NULL THEN
        RETURN QUERY SELECT
            CASE WHEN v_entry.request_hash = p_request_hash THEN 'replayed' ELSE 'conflict' END,
            v_entry.id, v_entry.operation, v_entry.quantity, v_entry.unit_cost, -v_entry.amount,
            v_entry.available_after, v_entry.created_at;
        RETURN;
    END IF;

    v_left := v_amount;
    FOR v_grant IN
        SELECT g.id, g.remaining
        FROM credits.grants AS g
        WHERE g.organization_id = p_organization_id AND g.live
        ORDER BY g.priority, g.expires_at NULLS LAST, g.created_at, g.id
    LOOP
        EXIT WHEN v_left = 0;
        UPDATE credits.grants AS g
        SET remaining = g.remaining - least(v_left, v_grant.remaining),
            live = g.remaining > v_left
        WHERE g.id = v_grant.id;
        v_allocations := v_allocations || (v_grant.id, least(v_left, v_grant.remaining))::credits.allocation;
        v_left := v_left - least(v_left, v_grant.remaining);
    END LOOP;
    IF v_left > 0 THEN
        RAISE EXCEPTION 'the live grants of organisation % are % short of its balance', p_organization_id, v_left
            USING ERRCODE = 'data_corrupted';
    END IF;

    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, allocations, idempotency_key, request_hash, actor, details)
    VALUES
        (p_organization_id, v_account.version, 'debit', -v_amount, v_account.available, v_account.held,
         v_account.debt, p_operation, p_quantity, v_unit_cost, v_allocations, p_idempotency_key,
         p_request_hash, p_actor, p_details)
    RETURNING * INTO v_entry;
    RETURN QUERY SELECT 'debited', v_entry.id, v_entry.operation, v_entry.quantity, v_entry.unit_cost, v_amount,
                        v_entry.available_after, v_entry.created_at;
END
$$;

CREATE OR REPLACE FUNCTION credits.costs() RETURNS TABLE (operation text, unit_cost bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(o.operation, f.operation), coalesce(f.unit_cost, o.default_cost)
    FROM credits.operations AS o
    FULL JOIN (
        SELECT e.key AS operation, floor((e.value #>> '{}')::numeric)::bigint AS unit_cost
        FROM platform.admin_settings AS s
        CROSS JOIN jsonb_each(s.feature_costs) AS e
        WHERE CASE jsonb_typeof(e.value)
                  WHEN 'number' THEN (e.value #>> '{}')::numeric BETWEEN 0 AND 1000000000
              END
          AND length(e.key) BETWEEN 1 AND 63 -- what a debit can name
          AND e.key <> 'admin_adjustment'
    ) AS f ON f.operation = o.operation
$$;

DROP FUNCTION credits.unit_cost(text);
