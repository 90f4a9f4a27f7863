-- migrate:up
-- Look-ups by index from the first call on, and a refund of one moment.

-- As in 0019, by the row's key: the functions below find no table worth reading whole.
CREATE OR REPLACE FUNCTION credits.unit_cost(p_operation text) RETURNS bigint
    LANGUAGE plpgsql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_override jsonb;
BEGIN
    SELECT s.feature_costs -> p_operation INTO v_override FROM platform.admin_settings AS s WHERE s.id = 'singleton';
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

-- As in 0009, but a hold is looked up by its id alone. Given its organisation too, a session that planned while
-- there were few took the organisation's index, and went through every hold it ever made.
CREATE OR REPLACE FUNCTION credits.settle(
    p_organization_id uuid,
    p_hold_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_quantity bigint,
    p_amount bigint,
    p_actor text
) RETURNS TABLE (
    outcome text, id uuid, state credits.hold_state, amount_settled bigint, amount_released bigint,
    debit_id uuid, available bigint, missing bigint
)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_account credits.accounts;
    v_earlier credits.entries;
    v_hold credits.holds;
    v_used bigint;
    v_rest bigint;
    v_more bigint;
    v_paid bigint;
    v_ordered credits.allocation[];
    v_debit_id uuid;
BEGIN
    IF (p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL
        AND coalesce(p_quantity, 0) >= 0 AND coalesce(p_amount, 0) >= 0) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a settle needs an idempotency key and a request hash, and nothing below 0'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    SELECT * INTO v_earlier
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'settle';
    IF FOUND AND v_earlier.request_hash <> p_request_hash THEN
        outcome := 'conflict';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT * INTO v_hold FROM credits.holds AS h WHERE h.id = p_hold_id;
    IF v_hold.organization_id IS DISTINCT FROM p_organization_id THEN
        outcome := 'unknown_hold';
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_earlier.id IS NULL THEN
        v_account := credits.current_account(p_organization_id);
        SELECT * INTO STRICT v_hold FROM credits.holds AS h WHERE h.id = p_hold_id; -- it may be over by now
    END IF;
    v_used := coalesce(p_amount, p_quantity * v_hold.unit_cost, v_hold.amount);
    IF v_hold.state <> 'open' THEN
        RETURN QUERY SELECT
            CASE WHEN v_hold.state = 'settled' AND v_hold.amount_settled = v_used
                 THEN 'replayed' ELSE 'invalid_state' END,
            v_hold.id, v_hold.state, v_hold.amount_settled, greatest(v_hold.amount - v_hold.amount_settled, 0),
            v_hold.debit_id, NULL::bigint, NULL::bigint;
        RETURN;
    END IF;
    v_rest := greatest(v_hold.amount - v_used, 0);
    v_more := greatest(v_used - v_hold.amount, 0);
    IF v_more > v_account.available THEN
        RETURN QUERY SELECT 'insufficient', v_hold.id, v_hold.state, NULL::bigint, NULL::bigint, NULL::uuid,
                            v_account.available, v_more;
        RETURN;
    END IF;

    v_ordered := credits.perishable_first(v_hold.allocations);
    v_paid := least(v_account.debt, v_rest);
    UPDATE credits.accounts AS a
    SET held = a.held - v_hold.amount,
        available = a.available + v_rest - v_paid - v_more,
        debt = a.debt - v_paid,
        version = a.version + 1,
        updated_at = clock_timestamp()
    WHERE a.organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, source_id, allocations, idempotency_key, request_hash, actor, details)
    VALUES
        (p_organization_id, v_account.version, 'settle', -v_used, v_account.available, v_account.held,
         v_account.debt, v_hold.operation,
         CASE WHEN p_amount IS NULL THEN coalesce(p_quantity, v_hold.quantity) END, v_hold.unit_cost, v_hold.id,
         credits.part(v_ordered, 0, v_used) || credits.burn(p_organization_id, v_more),
         p_idempotency_key, p_request_hash, p_actor, v_hold.details)
    RETURNING entries.id INTO STRICT v_debit_id;
    UPDATE credits.holds AS h
    SET state = 'settled',
        amount_settled = v_used,
        debit_id = v_debit_id,
        closed_at = clock_timestamp()
    WHERE h.id = p_hold_id;
    PERFORM credits.give_back(credits.part(v_ordered, v_used + v_paid, v_rest - v_paid));
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT 'settled', v_hold.id, 'settled'::credits.hold_state, v_used, v_rest, v_debit_id,
                        v_account.available, NULL::bigint;
END
$$;

CREATE OR REPLACE FUNCTION credits.release(
    p_organization_id uuid, p_hold_id uuid, p_idempotency_key text, p_request_hash bytea, p_actor text
) RETURNS TABLE (outcome text, id uuid, state credits.hold_state, amount_released bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_earlier credits.entries;
    v_hold credits.holds;
BEGIN
    IF p_idempotency_key IS NULL OR p_request_hash IS NULL THEN
        RAISE EXCEPTION 'a release needs an idempotency key and a request hash'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    SELECT * INTO v_earlier
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'release';
    IF FOUND AND v_earlier.request_hash <> p_request_hash THEN
        outcome := 'conflict';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT * INTO v_hold FROM credits.holds AS h WHERE h.id = p_hold_id;
    IF v_hold.organization_id IS DISTINCT FROM p_organization_id THEN
        outcome := 'unknown_hold';
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_earlier.id IS NULL THEN
        PERFORM credits.current_account(p_organization_id);
        SELECT * INTO STRICT v_hold FROM credits.holds AS h WHERE h.id = p_hold_id; -- it may be over by now
    END IF;
    IF v_hold.state <> 'open' THEN
        RETURN QUERY SELECT
            CASE v_hold.state WHEN 'settled' THEN 'invalid_state' ELSE 'replayed' END,
            v_hold.id, v_hold.state, v_hold.amount;
        RETURN;
    END IF;
    PERFORM credits.free_hold(v_hold, 'released', p_idempotency_key, p_request_hash, p_actor);
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT 'released', v_hold.id, 'released'::credits.hold_state, v_hold.amount;
END
$$;

-- As in 0009, but the debit is looked up by its id alone, and what is over is decided once: credits that expired
-- between two looks at the clock came back neither to the grants they were from nor in the new one.
CREATE OR REPLACE FUNCTION credits.refund(
    p_organization_id uuid,
    p_debit_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_amount bigint, -- NULL: all that remains
    p_reason text,
    p_actor text
) RETURNS TABLE (outcome text, id uuid, debit_id uuid, amount bigint, refunded_total bigint, refundable bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_refund_id uuid := platform.new_id();
    v_account credits.accounts;
    v_earlier credits.entries;
    v_debit credits.entries;
    v_refunded bigint;
    v_amount bigint;
    v_paid bigint;
    v_back credits.allocation[];
    v_late bigint;
    v_late_grant_id uuid;
    v_now timestamptz;
BEGIN
    IF (p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL AND p_reason IS NOT NULL
        AND coalesce(p_amount, 1) >= 1) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a refund needs an amount of at least 1, an idempotency key, a request hash and a reason'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    SELECT * INTO v_earlier
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'refund';
    IF FOUND THEN
        RETURN QUERY
            SELECT CASE WHEN v_earlier.request_hash = p_request_hash THEN 'replayed' ELSE 'conflict' END,
                   r.id, r.debit_id, r.amount, r.refunded_total, NULL::bigint
            FROM credits.refunds AS r
            WHERE r.id = v_earlier.id;
        RETURN;
    END IF;
    SELECT * INTO v_debit
    FROM credits.entries AS e
    WHERE e.id = p_debit_id;
    IF NOT FOUND OR v_debit.organization_id <> p_organization_id OR v_debit.kind NOT IN ('debit', 'settle') THEN
        outcome := 'unknown_debit';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT coalesce(max(r.refunded_total), 0) INTO v_refunded
    FROM credits.refunds AS r
    WHERE r.debit_id = p_debit_id;
    v_amount := coalesce(p_amount, -v_debit.amount - v_refunded);
    IF v_amount < 1 OR v_amount > -v_debit.amount - v_refunded THEN
        RETURN QUERY SELECT 'invalid_state', NULL::uuid, p_debit_id, v_amount, v_refunded, -v_debit.amount - v_refunded;
        RETURN;
    END IF;

    v_account := credits.current_account(p_organization_id);
    v_now := clock_timestamp();
    v_paid := least(v_account.debt, v_amount);
    -- The part of the debit's allocations that comes back, read from its end.
    SELECT credits.part(array_agg((u.grant_id, u.amount)::credits.allocation ORDER BY u.n DESC),
                        v_refunded + v_paid, v_amount - v_paid)
    INTO v_back
    FROM unnest(v_debit.allocations) WITH ORDINALITY AS u (grant_id, amount, n);
    UPDATE credits.accounts AS a
    SET available = a.available + v_amount - v_paid,
        debt = a.debt - v_paid,
        version = a.version + 1,
        updated_at = clock_timestamp()
    WHERE a.organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;

    SELECT sum(u.amount) INTO v_late
    FROM unnest(v_back) AS u
    JOIN credits.grants AS g ON g.id = u.grant_id
    WHERE credits.is_over(g, v_now);
    IF v_late > 0 THEN
        SELECT coalesce(array_agg((u.grant_id, u.amount)::credits.allocation ORDER BY u.n), '{}') INTO v_back
        FROM unnest(v_back) WITH ORDINALITY AS u (grant_id, amount, n)
        JOIN credits.grants AS g ON g.id = u.grant_id
        WHERE NOT credits.is_over(g, v_now);
        INSERT INTO credits.grants
            (organization_id, source, source_key, amount, remaining, priority, expires_at)
        VALUES
            (p_organization_id, 'adjustment', 'refund:' || v_refund_id, v_late, v_late, 10,
             v_now + interval '72 hours')
        RETURNING grants.id INTO STRICT v_late_grant_id;
    END IF;
    PERFORM credits.give_back(v_back);
    IF v_late > 0 THEN
        v_back := v_back || (v_late_grant_id, v_late)::credits.allocation;
    END IF;
    INSERT INTO credits.entries
        (id, organization_id, version, kind, amount, available_after, held_after, debt_after, operation,
         source_id, allocations, idempotency_key, request_hash, actor, details)
    VALUES
        (v_refund_id, p_organization_id, v_account.version, 'refund', v_amount, v_account.available,
         v_account.held, v_account.debt, v_debit.operation, p_debit_id, v_back, p_idempotency_key,
         p_request_hash, p_actor, jsonb_build_object('reason', p_reason));
    INSERT INTO credits.refunds (id, organization_id, debit_id, amount, refunded_total, reason)
    VALUES (v_refund_id, p_organization_id, p_debit_id, v_amount, v_refunded + v_amount, p_reason);
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT 'refunded', v_refund_id, p_debit_id, v_amount, v_refunded + v_amount, NULL::bigint;
END
$$;

-- A session keeps the plans it makes, and on a table of a page or two the cheapest plan is to read it all. Kept
-- while the table grew, that made each look-up of a key slower than the one before, until the next ANALYZE.
-- Whoever replaces one of these functions says so again: CREATE OR REPLACE forgets it.
ALTER FUNCTION credits.debit(uuid, text, bytea, text, bigint, text, jsonb) SET enable_seqscan = off;
ALTER FUNCTION credits.hold(uuid, text, bytea, text, bigint, bigint, text, jsonb) SET enable_seqscan = off;
ALTER FUNCTION credits.settle(uuid, uuid, text, bytea, bigint, bigint, text) SET enable_seqscan = off;
ALTER FUNCTION credits.release(uuid, uuid, text, bytea, text) SET enable_seqscan = off;
ALTER FUNCTION credits.refund(uuid, uuid, text, bytea, bigint, text, text) SET enable_seqscan = off;
ALTER FUNCTION credits.adjust(uuid, text, bytea, bigint, text, boolean, text) SET enable_seqscan = off;
ALTER FUNCTION credits.claw_back(uuid, text, bigint, text) SET enable_seqscan = off;
ALTER FUNCTION credits.restore_claw_back(uuid, text) SET enable_seqscan = off;
ALTER FUNCTION credits.grant_credits(uuid, credits.grant_source, text, bigint, text, bigint, timestamptz, uuid,
                                     billing.provider, text, timestamptz, text, text, text, text)
    SET enable_seqscan = off;
ALTER FUNCTION credits.end_subscription(uuid, billing.provider, text, text) SET enable_seqscan = off;
ALTER FUNCTION credits.claim_sign_up(uuid, bytea) SET enable_seqscan = off;
ALTER FUNCTION credits.book_due(uuid) SET enable_seqscan = off;
ALTER FUNCTION credits.watch_balance() SET enable_seqscan = off;

-- migrate:down
ALTER FUNCTION credits.debit(uuid, text, bytea, text, bigint, text, jsonb) RESET enable_seqscan;
ALTER FUNCTION credits.hold(uuid, text, bytea, text, bigint, bigint, text, jsonb) RESET enable_seqscan;
ALTER FUNCTION credits.settle(uuid, uuid, text, bytea, bigint, bigint, text) RESET enable_seqscan;
ALTER FUNCTION credits.release(uuid, uuid, text, bytea, text) RESET enable_seqscan;
ALTER FUNCTION credits.refund(uuid, uuid, text, bytea, bigint, text, text) RESET enable_seqscan;
ALTER FUNCTION credits.adjust(uuid, text, bytea, bigint, text, boolean, text) RESET enable_seqscan;
ALTER FUNCTION credits.claw_back(uuid, text, bigint, text) RESET enable_seqscan;
ALTER FUNCTION credits.restore_claw_back(uuid, text) RESET enable_seqscan;
ALTER FUNCTION credits.grant_credits(uuid, credits.grant_source, text, bigint, text, bigint, timestamptz, uuid,
                                     billing.provider, text, timestamptz, text, text, text, text)
    RESET enable_seqscan;
ALTER FUNCTION credits.end_subscription(uuid, billing.provider, text, text) RESET enable_seqscan;
ALTER FUNCTION credits.claim_sign_up(uuid, bytea) RESET enable_seqscan;
ALTER FUNCTION credits.book_due(uuid) RESET enable_seqscan;
ALTER FUNCTION credits.watch_balance() RESET enable_seqscan;

CREATE OR REPLACE FUNCTION credits.refund(
    p_organization_id uuid,
    p_debit_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_amount bigint, -- NULL: all that remains
    p_reason text,
    p_actor text
) RETURNS TABLE (outcome text, id uuid, debit_id uuid, amount bigint, refunded_total bigint, refundable bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_refund_id uuid := platform.new_id();
    v_account credits.accounts;
    v_earlier credits.entries;
    v_debit credits.entries;
    v_refunded bigint;
    v_amount bigint;
    v_paid bigint;
    v_back credits.allocation[];
    v_late bigint;
    v_late_grant_id uuid;
BEGIN
    IF (p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL AND p_reason IS NOT NULL
        AND coalesce(p_amount, 1) >= 1) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a refund needs an amount of at least 1, an idempotency key, a request hash and a reason'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    SELECT * INTO v_earlier
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'refund';
    IF FOUND THEN
        RETURN QUERY
            SELECT CASE WHEN v_earlier.request_hash = p_request_hash THEN 'replayed' ELSE 'conflict' END,
                   r.id, r.debit_id, r.amount, r.refunded_total, NULL::bigint
            FROM credits.refunds AS r
            WHERE r.id = v_earlier.id;
        RETURN;
    END IF;
    SELECT * INTO v_debit
    FROM credits.entries AS e
    WHERE e.id = p_debit_id AND e.organization_id = p_organization_id AND e.kind IN ('debit', 'settle');
    IF NOT FOUND THEN
        outcome := 'unknown_debit';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT coalesce(max(r.refunded_total), 0) INTO v_refunded
    FROM credits.refunds AS r
    WHERE r.debit_id = p_debit_id;
    v_amount := coalesce(p_amount, -v_debit.amount - v_refunded);
    IF v_amount < 1 OR v_amount > -v_debit.amount - v_refunded THEN
        RETURN QUERY SELECT 'invalid_state', NULL::uuid, p_debit_id, v_amount, v_refunded, -v_debit.amount - v_refunded;
        RETURN;
    END IF;

    v_account := credits.current_account(p_organization_id);
    v_paid := least(v_account.debt, v_amount);
    -- The part of the debit's allocations that comes back, read from its end.
    SELECT credits.part(array_agg((u.grant_id, u.amount)::credits.allocation ORDER BY u.n DESC),
                        v_refunded + v_paid, v_amount - v_paid)
    INTO v_back
    FROM unnest(v_debit.allocations) WITH ORDINALITY AS u (grant_id, amount, n);
    UPDATE credits.accounts AS a
    SET available = a.available + v_amount - v_paid,
        debt = a.debt - v_paid,
        version = a.version + 1,
        updated_at = clock_timestamp()
    WHERE a.organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;

    SELECT sum(u.amount) INTO v_late
    FROM unnest(v_back) AS u
    JOIN credits.grants AS g ON g.id = u.grant_id
    WHERE credits.is_over(g, clock_timestamp());
    IF v_late > 0 THEN
        SELECT coalesce(array_agg((u.grant_id, u.amount)::credits.allocation ORDER BY u.n), '{}') INTO v_back
        FROM unnest(v_back) WITH ORDINALITY AS u (grant_id, amount, n)
        JOIN credits.grants AS g ON g.id = u.grant_id
        WHERE NOT credits.is_over(g, clock_timestamp());
        INSERT INTO credits.grants
            (organization_id, source, source_key, amount, remaining, priority, expires_at)
        VALUES
            (p_organization_id, 'adjustment', 'refund:' || v_refund_id, v_late, v_late, 10,
             clock_timestamp() + interval '72 hours')
        RETURNING grants.id INTO STRICT v_late_grant_id;
    END IF;
    PERFORM credits.give_back(v_back);
    IF v_late > 0 THEN
        v_back := v_back || (v_late_grant_id, v_late)::credits.allocation;
    END IF;
    INSERT INTO credits.entries
        (id, organization_id, version, kind, amount, available_after, held_after, debt_after, operation,
         source_id, allocations, idempotency_key, request_hash, actor, details)
    VALUES
        (v_refund_id, p_organization_id, v_account.version, 'refund', v_amount, v_account.available,
         v_account.held, v_account.debt, v_debit.operation, p_debit_id, v_back, p_idempotency_key,
         p_request_hash, p_actor, jsonb_build_object('reason', p_reason));
    INSERT INTO credits.refunds (id, organization_id, debit_id, amount, refunded_total, reason)
    VALUES (v_refund_id, p_organization_id, p_debit_id, v_amount, v_refunded + v_amount, p_reason);
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT 'refunded', v_refund_id, p_debit_id, v_amount, v_refunded + v_amount, NULL::bigint;
END
$$;

CREATE OR REPLACE FUNCTION credits.release(
    p_organization_id uuid, p_hold_id uuid, p_idempotency_key text, p_request_hash bytea, p_actor text
) RETURNS TABLE (outcome text, id uuid, state credits.hold_state, amount_released bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_earlier credits.entries;
    v_hold credits.holds;
BEGIN
    IF p_idempotency_key IS NULL OR p_request_hash IS NULL THEN
        RAISE EXCEPTION 'a release needs an idempotency key and a request hash'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    SELECT * INTO v_earlier
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'release';
    IF FOUND AND v_earlier.request_hash <> p_request_hash THEN
        outcome := 'conflict';
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_earlier.id IS NULL
        AND EXISTS (SELECT 1 FROM credits.holds AS h WHERE h.organization_id = p_organization_id AND h.id = p_hold_id)
    THEN
        PERFORM credits.current_account(p_organization_id);
    END IF;
    SELECT * INTO v_hold FROM credits.holds AS h WHERE h.organization_id = p_organization_id AND h.id = p_hold_id;
    IF NOT FOUND THEN
        outcome := 'unknown_hold';
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_hold.state <> 'open' THEN
        RETURN QUERY SELECT
            CASE v_hold.state WHEN 'settled' THEN 'invalid_state' ELSE 'replayed' END,
            v_hold.id, v_hold.state, v_hold.amount;
        RETURN;
    END IF;
    PERFORM credits.free_hold(v_hold, 'released', p_idempotency_key, p_request_hash, p_actor);
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT 'released', v_hold.id, 'released'::credits.hold_state, v_hold.amount;
END
$$;

CREATE OR REPLACE FUNCTION credits.settle(
    p_organization_id uuid,
    p_hold_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_quantity bigint,
    p_amount bigint,
    p_actor text
) RETURNS TABLE (
    outcome text, id uuid, state credits.hold_state, amount_settled bigint, amount_released bigint,
    debit_id uuid, available bigint, missing bigint
)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_account credits.accounts;
    v_earlier credits.entries;
    v_hold credits.holds;
    v_used bigint;
    v_rest bigint;
    v_more bigint;
    v_paid bigint;
    v_ordered credits.allocation[];
    v_debit_id uuid;
BEGIN
    IF (p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL
        AND coalesce(p_quantity, 0) >= 0 AND coalesce(p_amount, 0) >= 0) IS NOT TRUE
    THEN
        RAISE EXCEPTION 'a settle needs an idempotency key and a request hash, and nothing below 0'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    SELECT * INTO v_earlier
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id AND e.idempotency_key = p_idempotency_key AND e.kind = 'settle';
    IF FOUND AND v_earlier.request_hash <> p_request_hash THEN
        outcome := 'conflict';
        RETURN NEXT;
        RETURN;
    END IF;
    IF v_earlier.id IS NULL
        AND EXISTS (SELECT 1 FROM credits.holds AS h WHERE h.organization_id = p_organization_id AND h.id = p_hold_id)
    THEN
        v_account := credits.current_account(p_organization_id);
    END IF;
    SELECT * INTO v_hold FROM credits.holds AS h WHERE h.organization_id = p_organization_id AND h.id = p_hold_id;
    IF NOT FOUND THEN
        outcome := 'unknown_hold';
        RETURN NEXT;
        RETURN;
    END IF;
    v_used := coalesce(p_amount, p_quantity * v_hold.unit_cost, v_hold.amount);
    IF v_hold.state <> 'open' THEN
        RETURN QUERY SELECT
            CASE WHEN v_hold.state = 'settled' AND v_hold.amount_settled = v_used
                 THEN 'replayed' ELSE 'invalid_state' END,
            v_hold.id, v_hold.state, v_hold.amount_settled, greatest(v_hold.amount - v_hold.amount_settled, 0),
            v_hold.debit_id, NULL::bigint, NULL::bigint;
        RETURN;
    END IF;
    v_rest := greatest(v_hold.amount - v_used, 0);
    v_more := greatest(v_used - v_hold.amount, 0);
    IF v_more > v_account.available THEN
        RETURN QUERY SELECT 'insufficient', v_hold.id, v_hold.state, NULL::bigint, NULL::bigint, NULL::uuid,
                            v_account.available, v_more;
        RETURN;
    END IF;

    v_ordered := credits.perishable_first(v_hold.allocations);
    v_paid := least(v_account.debt, v_rest);
    UPDATE credits.accounts AS a
    SET held = a.held - v_hold.amount,
        available = a.available + v_rest - v_paid - v_more,
        debt = a.debt - v_paid,
        version = a.version + 1,
        updated_at = clock_timestamp()
    WHERE a.organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, source_id, allocations, idempotency_key, request_hash, actor, details)
    VALUES
        (p_organization_id, v_account.version, 'settle', -v_used, v_account.available, v_account.held,
         v_account.debt, v_hold.operation,
         CASE WHEN p_amount IS NULL THEN coalesce(p_quantity, v_hold.quantity) END, v_hold.unit_cost, v_hold.id,
         credits.part(v_ordered, 0, v_used) || credits.burn(p_organization_id, v_more),
         p_idempotency_key, p_request_hash, p_actor, v_hold.details)
    RETURNING entries.id INTO STRICT v_debit_id;
    UPDATE credits.holds AS h
    SET state = 'settled',
        amount_settled = v_used,
        debit_id = v_debit_id,
        closed_at = clock_timestamp()
    WHERE h.id = p_hold_id;
    PERFORM credits.give_back(credits.part(v_ordered, v_used + v_paid, v_rest - v_paid));
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT 'settled', v_hold.id, 'settled'::credits.hold_state, v_used, v_rest, v_debit_id,
                        v_account.available, NULL::bigint;
END
$$;

CREATE OR REPLACE FUNCTION credits.unit_cost(p_operation text) RETURNS bigint
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
