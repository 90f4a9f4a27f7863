-- migrate:up
-- Holds, refunds, claw-backs, adjustments, and the proof of the books. As in 0007, each is one call,
-- one round trip and exact at READ COMMITTED: the first statement takes the account's row lock, and
-- what follows sees all that was committed before. A key is looked up under the lock, so that a
-- repetition which waited finds what the first call made.

CREATE TYPE credits.hold_state AS ENUM ('open', 'settled', 'released', 'expired');

CREATE TABLE credits.holds (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES credits.accounts (organization_id),
    operation text NOT NULL,
    quantity bigint NOT NULL CHECK (quantity > 0),
    unit_cost bigint NOT NULL CHECK (unit_cost >= 0), -- the price when it was held: a settle by quantity pays this
    amount bigint NOT NULL CHECK (amount >= 0),
    allocations credits.allocation[] NOT NULL, -- which grants the amount came from, in burn order
    state credits.hold_state NOT NULL DEFAULT 'open',
    expires_at timestamptz NOT NULL,
    amount_settled bigint CHECK (amount_settled >= 0),
    debit_id uuid REFERENCES credits.entries (id), -- the settle's entry, which can be refunded
    idempotency_key text NOT NULL,
    request_hash bytea NOT NULL,
    actor text NOT NULL,
    details jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at timestamptz,
    UNIQUE (organization_id, idempotency_key),
    CHECK ((state = 'open') = (closed_at IS NULL)),
    CHECK ((state = 'settled') = (debit_id IS NOT NULL)),
    CHECK ((state = 'settled') = (amount_settled IS NOT NULL))
);
CREATE INDEX holds_open ON credits.holds (organization_id, expires_at) WHERE state = 'open';

-- One row a refund, beside its entry: what came back of a debit until then.
CREATE TABLE credits.refunds (
    id uuid PRIMARY KEY REFERENCES credits.entries (id),
    organization_id uuid NOT NULL REFERENCES credits.accounts (organization_id),
    debit_id uuid NOT NULL REFERENCES credits.entries (id),
    amount bigint NOT NULL CHECK (amount > 0),
    refunded_total bigint NOT NULL, -- of the debit, this refund included
    reason text NOT NULL,
    CHECK (refunded_total >= amount),
    UNIQUE (debit_id, refunded_total)
);
CREATE INDEX refunds_organization ON credits.refunds (organization_id);

ALTER TABLE credits.grants ADD COLUMN ended_at timestamptz;
ALTER TABLE credits.grants ADD COLUMN lapsed bigint NOT NULL DEFAULT 0;
ALTER TABLE credits.grants ADD COLUMN clawed_back bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN credits.grants.ended_at IS 'When it was ended before its time or by it: what comes back to it later lapses.';
COMMENT ON COLUMN credits.grants.lapsed IS 'What was left when it ended. Nobody used it, so a claw-back makes no debt of it.';
COMMENT ON COLUMN credits.grants.clawed_back IS 'By claw-backs, less what was restored.';
UPDATE credits.grants AS g
SET ended_at = e.created_at,
    lapsed = -e.amount
FROM credits.entries AS e
WHERE e.source_id = g.id AND e.kind IN ('expire', 'claw_back');

CALL platform.protect('credits.holds', 'organization_id');
CALL platform.protect('credits.refunds', 'organization_id');
GRANT SELECT ON credits.holds, credits.refunds TO backplane_app;

-- ---- the parts that operations are made of; internal: the caller holds the account's lock ----

-- Whether a grant's time is over: ended, past its expiry, or followed by a later period's.
CREATE FUNCTION credits.is_over(p_grant credits.grants, p_at timestamptz) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT p_grant.ended_at IS NOT NULL
        OR coalesce(p_grant.expires_at <= p_at, false)
        OR (p_grant.period_end IS NOT NULL AND EXISTS (
            SELECT 1
            FROM credits.grants AS later
            WHERE later.organization_id = p_grant.organization_id
              AND later.provider = p_grant.provider
              AND later.provider_subscription_id = p_grant.provider_subscription_id
              AND later.period_end > p_grant.period_end
        ))
$$;

-- A stretch of a list of allocations, counted in credits from its beginning.
CREATE FUNCTION credits.part(p_allocations credits.allocation[], p_skip bigint, p_take bigint)
RETURNS credits.allocation[]
    LANGUAGE sql IMMUTABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(array_agg((cut.grant_id, cut.amount)::credits.allocation ORDER BY cut.n), '{}')
    FROM (
        SELECT a.grant_id, a.n,
               (least(a.until, p_skip + p_take) - greatest(a.until - a.amount, p_skip))::bigint AS amount
        FROM (
            SELECT u.grant_id, u.amount, u.n, sum(u.amount) OVER (ORDER BY u.n) AS until
            FROM unnest(p_allocations) WITH ORDINALITY AS u (grant_id, amount, n)
        ) AS a
    ) AS cut
    WHERE cut.amount > 0
$$;

-- What would lapse on its return comes first: it is used first, and pays a debt first.
CREATE FUNCTION credits.perishable_first(p_allocations credits.allocation[]) RETURNS credits.allocation[]
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT coalesce(
        array_agg((u.grant_id, u.amount)::credits.allocation
                  ORDER BY credits.is_over(g, clock_timestamp()) DESC, u.n),
        '{}')
    FROM unnest(p_allocations) WITH ORDINALITY AS u (grant_id, amount, n)
    JOIN credits.grants AS g ON g.id = u.grant_id
$$;

-- Takes an amount out of the live grants in burn order and says which. The account's row says
-- already that it is taken.
CREATE FUNCTION credits.burn(p_organization_id uuid, p_amount bigint) RETURNS credits.allocation[]
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_grant record;
    v_taken bigint;
    v_left bigint := p_amount;
    v_allocations credits.allocation[] := '{}';
BEGIN
    FOR v_grant IN
        SELECT id, remaining
        FROM credits.grants
        WHERE organization_id = p_organization_id AND live
        ORDER BY priority, expires_at NULLS LAST, created_at, id
    LOOP
        EXIT WHEN v_left = 0;
        v_taken := least(v_left, v_grant.remaining);
        UPDATE credits.grants
        SET remaining = remaining - v_taken,
            live = remaining > v_taken
        WHERE id = v_grant.id;
        v_allocations := v_allocations || (v_grant.id, v_taken)::credits.allocation;
        v_left := v_left - v_taken;
    END LOOP;
    IF v_left > 0 THEN
        RAISE EXCEPTION 'the live grants of organisation % are % short of its balance', p_organization_id, v_left
            USING ERRCODE = 'data_corrupted';
    END IF;
    RETURN v_allocations;
END
$$;

-- As in 0007, and remembers that the grant has ended, also where nothing is left of it: what is held
-- of it, or refunded later, must not bring it back to life.
CREATE OR REPLACE FUNCTION credits.end_grant(p_grant_id uuid, p_kind credits.entry_kind, p_actor text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_grant credits.grants;
    v_account credits.accounts;
BEGIN
    SELECT * INTO STRICT v_grant FROM credits.grants WHERE id = p_grant_id;
    UPDATE credits.grants
    SET remaining = 0,
        live = false,
        ended_at = coalesce(ended_at, clock_timestamp()),
        lapsed = lapsed + v_grant.remaining
    WHERE id = p_grant_id;
    IF v_grant.remaining > 0 THEN
        UPDATE credits.accounts
        SET available = available - v_grant.remaining,
            version = version + 1,
            updated_at = clock_timestamp()
        WHERE organization_id = v_grant.organization_id
        RETURNING * INTO STRICT v_account;
        PERFORM credits.book(v_account, p_kind, -v_grant.remaining, p_actor, p_grant_id);
    END IF;
    RETURN v_grant.remaining;
END
$$;

-- Puts credits back into their grants. The account's row says already that they are available;
-- what returned to a grant whose time is over lapses at once, under an entry of its own.
CREATE FUNCTION credits.give_back(p_allocations credits.allocation[]) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_back credits.allocation;
    v_grant credits.grants;
BEGIN
    FOREACH v_back IN ARRAY p_allocations LOOP
        UPDATE credits.grants
        SET remaining = remaining + v_back.amount,
            live = true
        WHERE id = v_back.grant_id
        RETURNING * INTO STRICT v_grant;
        IF credits.is_over(v_grant, clock_timestamp()) THEN
            PERFORM credits.end_grant(v_grant.id, 'expire', 'system');
        END IF;
    END LOOP;
END
$$;

-- Ends an open hold without a debit: a debt is paid first, the rest returns to its grants.
CREATE FUNCTION credits.free_hold(
    p_hold credits.holds, p_state credits.hold_state, p_idempotency_key text, p_request_hash bytea, p_actor text
) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_account credits.accounts;
    v_paid bigint;
    v_back credits.allocation[] := credits.perishable_first(p_hold.allocations);
BEGIN
    SELECT least(debt, p_hold.amount) INTO STRICT v_paid
    FROM credits.accounts
    WHERE organization_id = p_hold.organization_id;
    UPDATE credits.accounts
    SET held = held - p_hold.amount,
        available = available + p_hold.amount - v_paid,
        debt = debt - v_paid,
        version = version + 1,
        updated_at = clock_timestamp()
    WHERE organization_id = p_hold.organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, source_id, idempotency_key, request_hash, actor)
    VALUES
        (v_account.organization_id, v_account.version, 'release', 0, v_account.available, v_account.held,
         v_account.debt, p_hold.operation, p_hold.quantity, p_hold.unit_cost, p_hold.id, p_idempotency_key,
         p_request_hash, p_actor);
    UPDATE credits.holds SET state = p_state, closed_at = clock_timestamp() WHERE id = p_hold.id;
    PERFORM credits.give_back(credits.part(v_back, v_paid, p_hold.amount - v_paid));
END
$$;

-- As in 0007, for holds too: books what is due, and says when to look again.
CREATE OR REPLACE FUNCTION credits.settle_due(p_organization_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_hold credits.holds;
    v_next_due_at timestamptz;
BEGIN
    FOR v_hold IN
        SELECT *
        FROM credits.holds
        WHERE organization_id = p_organization_id
          AND state = 'open'
          AND expires_at <= clock_timestamp()
        ORDER BY expires_at, id
    LOOP
        PERFORM credits.free_hold(v_hold, 'expired', NULL, NULL, 'system');
    END LOOP;

    PERFORM credits.end_grant(due.id, 'expire', 'system')
    FROM (
        SELECT id
        FROM credits.grants
        WHERE organization_id = p_organization_id
          AND live
          AND expires_at <= clock_timestamp()
        ORDER BY expires_at, id
    ) AS due;

    SELECT least(
        (SELECT min(expires_at) FROM credits.grants WHERE organization_id = p_organization_id AND live),
        (SELECT min(expires_at) FROM credits.holds WHERE organization_id = p_organization_id AND state = 'open')
    ) INTO v_next_due_at;
    UPDATE credits.accounts
    SET next_due_at = v_next_due_at
    WHERE organization_id = p_organization_id AND next_due_at IS DISTINCT FROM v_next_due_at;
END
$$;

-- The account as it stands once what is due is booked.
CREATE FUNCTION credits.current_account(p_organization_id uuid) RETURNS credits.accounts
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_account credits.accounts;
BEGIN
    SELECT * INTO STRICT v_account FROM credits.accounts WHERE organization_id = p_organization_id;
    IF v_account.next_due_at <= clock_timestamp() THEN
        PERFORM credits.settle_due(p_organization_id);
        SELECT * INTO STRICT v_account FROM credits.accounts WHERE organization_id = p_organization_id;
    END IF;
    RETURN v_account;
END
$$;

-- As in 0007, and ends also those grants of the subscription whose credits are all spent or held.
CREATE OR REPLACE FUNCTION credits.end_subscription(
    p_organization_id uuid, p_provider billing.provider, p_provider_subscription_id text, p_actor text
) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_expired bigint;
BEGIN
    PERFORM 1 FROM credits.accounts WHERE organization_id = p_organization_id FOR UPDATE;
    SELECT coalesce(sum(credits.end_grant(g.id, 'expire', p_actor)), 0) INTO v_expired
    FROM (
        SELECT id
        FROM credits.grants
        WHERE organization_id = p_organization_id
          AND provider = p_provider
          AND provider_subscription_id = p_provider_subscription_id
          AND ended_at IS NULL
        ORDER BY period_end, id
    ) AS g;
    PERFORM credits.settle_due(p_organization_id);
    RETURN v_expired;
END
$$;

-- ---- holds ----

-- Sets credits aside for what is about to be done, once per key.
--   outcome: 'held', or 'replayed' with the first call's values, 'conflict', 'insufficient',
--   'unknown_account', 'unknown_operation'; as in credits.debit.
CREATE FUNCTION credits.hold(
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

-- Turns a hold into a debit of what was used: p_amount, or p_quantity at the hold's price, or all of
-- it. Less than was held: the rest returns to its grants. More: the rest comes from what is available.
--   outcome: 'settled', 'replayed' (by key, or because it is settled at this amount already),
--   'conflict', 'insufficient' (the hold stays open; missing says what), 'invalid_state' (state says
--   which), 'unknown_hold'.
CREATE FUNCTION credits.settle(
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

-- Gives a hold's credits back.
--   outcome: 'released', 'replayed' (by key, or because they are back already: state says whether
--   released or expired), 'conflict', 'invalid_state' (it is settled), 'unknown_hold'.
CREATE FUNCTION credits.release(
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

-- ---- what puts an earlier entry right ----

-- Gives credits of a debit (or of a settle) back to the grants they came from, last taken first.
-- What belongs to a grant whose time is over comes back as a grant of its own, good for 72 h: whoever
-- is refunded must be able to try again. A debt is paid first.
--   outcome: 'refunded', 'replayed', 'conflict', 'invalid_state' (more than remains to be refunded,
--   which refundable says), 'unknown_debit'.
CREATE FUNCTION credits.refund(
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

-- Takes a grant back, whole or in part, once per key (the business fact: refund:re_…, dispute:dp_…):
-- first what is left of it, then as a debt what was spent of it or is held. At most the grant, less
-- what was clawed back before and what lapsed unused. Nothing left to take: no entry, and no id.
CREATE FUNCTION credits.claw_back(p_grant_id uuid, p_idempotency_key text, p_amount bigint, p_actor text)
RETURNS TABLE (id uuid, amount bigint, owed bigint, clawed_back boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_grant credits.grants;
    v_account credits.accounts;
    v_entry credits.entries;
    v_amount bigint;
    v_taken bigint;
BEGIN
    IF (p_idempotency_key IS NOT NULL AND coalesce(p_amount, 1) >= 1) IS NOT TRUE THEN
        RAISE EXCEPTION 'a claw-back needs an amount of at least 1 and an idempotency key'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1
    FROM credits.accounts AS a
    WHERE a.organization_id = (SELECT g.organization_id FROM credits.grants AS g WHERE g.id = p_grant_id)
    FOR UPDATE;
    SELECT * INTO STRICT v_grant FROM credits.grants AS g WHERE g.id = p_grant_id;
    SELECT * INTO v_entry
    FROM credits.entries AS e
    WHERE e.organization_id = v_grant.organization_id
      AND e.idempotency_key = p_idempotency_key
      AND e.kind = 'claw_back';
    IF FOUND THEN
        RETURN QUERY
            SELECT v_entry.id, -v_entry.amount, -v_entry.amount - coalesce(sum(u.amount), 0)::bigint, false
            FROM unnest(v_entry.allocations) AS u;
        RETURN;
    END IF;

    PERFORM credits.current_account(v_grant.organization_id);
    SELECT * INTO STRICT v_grant FROM credits.grants AS g WHERE g.id = p_grant_id;
    v_amount := least(coalesce(p_amount, v_grant.amount), v_grant.amount - v_grant.clawed_back - v_grant.lapsed);
    IF v_amount <= 0 THEN
        RETURN QUERY SELECT NULL::uuid, 0::bigint, 0::bigint, false;
        RETURN;
    END IF;
    v_taken := least(v_amount, v_grant.remaining);
    UPDATE credits.grants AS g
    SET remaining = g.remaining - v_taken,
        live = g.live AND g.remaining > v_taken,
        clawed_back = g.clawed_back + v_amount
    WHERE g.id = p_grant_id;
    UPDATE credits.accounts AS a
    SET available = a.available - v_taken,
        debt = a.debt + v_amount - v_taken,
        version = a.version + 1,
        updated_at = clock_timestamp()
    WHERE a.organization_id = v_grant.organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, source_id,
         allocations, idempotency_key, actor)
    VALUES
        (v_grant.organization_id, v_account.version, 'claw_back', -v_amount, v_account.available, v_account.held,
         v_account.debt, p_grant_id,
         CASE WHEN v_taken > 0 THEN ARRAY[(p_grant_id, v_taken)::credits.allocation] ELSE '{}' END,
         p_idempotency_key, p_actor)
    RETURNING * INTO STRICT v_entry;
    PERFORM credits.settle_due(v_grant.organization_id);
    RETURN QUERY SELECT v_entry.id, v_amount, v_amount - v_taken, true;
END
$$;

-- Undoes a claw-back, once (a dispute was won): the debt goes down first; what was taken from the
-- grant returns to it, and lapses where its time is over; what other credits have paid of the debt
-- since comes back as a grant without an end.
CREATE FUNCTION credits.restore_claw_back(p_claw_back_id uuid, p_actor text)
RETURNS TABLE (id uuid, amount bigint, restored boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
#variable_conflict use_column
DECLARE
    v_claw_back credits.entries;
    v_account credits.accounts;
    v_entry credits.entries;
    v_taken bigint;
    v_paid bigint;
    v_back bigint;
    v_key text := 'restore:' || p_claw_back_id;
BEGIN
    SELECT * INTO STRICT v_claw_back
    FROM credits.entries AS e
    WHERE e.id = p_claw_back_id AND e.kind = 'claw_back' AND e.amount < 0;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = v_claw_back.organization_id FOR UPDATE;
    SELECT * INTO v_entry
    FROM credits.entries AS e
    WHERE e.organization_id = v_claw_back.organization_id AND e.idempotency_key = v_key AND e.kind = 'claw_back';
    IF FOUND THEN
        RETURN QUERY SELECT v_entry.id, v_entry.amount, false;
        RETURN;
    END IF;

    v_account := credits.current_account(v_claw_back.organization_id);
    v_paid := least(v_account.debt, -v_claw_back.amount);
    v_back := -v_claw_back.amount - v_paid;
    SELECT least(v_back, coalesce(sum(u.amount), 0)) INTO v_taken FROM unnest(v_claw_back.allocations) AS u;
    UPDATE credits.accounts AS a
    SET available = a.available + v_back,
        debt = a.debt - v_paid,
        version = a.version + 1,
        updated_at = clock_timestamp()
    WHERE a.organization_id = v_claw_back.organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, source_id,
         idempotency_key, actor)
    VALUES
        (v_account.organization_id, v_account.version, 'claw_back', -v_claw_back.amount, v_account.available,
         v_account.held, v_account.debt, v_claw_back.source_id, v_key, p_actor)
    RETURNING * INTO STRICT v_entry;
    UPDATE credits.grants AS g
    SET clawed_back = g.clawed_back + v_claw_back.amount
    WHERE g.id = v_claw_back.source_id;
    IF v_back > v_taken THEN
        INSERT INTO credits.grants (organization_id, source, source_key, amount, remaining, priority)
        VALUES (v_account.organization_id, 'adjustment', v_key, v_back - v_taken, v_back - v_taken, 40);
    END IF;
    IF v_taken > 0 THEN
        PERFORM credits.give_back(ARRAY[(v_claw_back.source_id, v_taken)::credits.allocation]);
    END IF;
    PERFORM credits.settle_due(v_account.organization_id);
    RETURN QUERY SELECT v_entry.id, v_entry.amount, true;
END
$$;

-- Gives or takes credits by hand, once per key, with a reason and a row in the audit log. Above 0: a
-- grant without an end, which pays a debt first. Below 0: from what is available; what is missing
-- becomes debt where p_allow_debt says so.
--   outcome: 'adjusted', 'replayed', 'conflict', 'insufficient', 'unknown_account'.
CREATE FUNCTION credits.adjust(
    p_organization_id uuid,
    p_idempotency_key text,
    p_request_hash bytea,
    p_amount bigint,
    p_reason text,
    p_allow_debt boolean,
    p_actor text
) RETURNS TABLE (
    outcome text, id uuid, amount bigint, available_after bigint, debt_after bigint, created_at timestamptz
)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
#variable_conflict use_column
DECLARE
    v_account credits.accounts;
    v_entry credits.entries;
    v_grant_id uuid;
    v_paid bigint := 0; -- of a debt
    v_burned bigint := 0;
    v_owed bigint := 0; -- anew
BEGIN
    IF (p_idempotency_key IS NOT NULL AND p_request_hash IS NOT NULL AND p_reason <> '' AND p_amount <> 0)
        IS NOT TRUE
    THEN
        RAISE EXCEPTION 'an adjustment needs an amount, a reason, an idempotency key and a request hash'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM 1 FROM credits.accounts AS a WHERE a.organization_id = p_organization_id FOR UPDATE;
    IF NOT FOUND THEN
        outcome := 'unknown_account';
        RETURN NEXT;
        RETURN;
    END IF;
    SELECT * INTO v_entry
    FROM credits.entries AS e
    WHERE e.organization_id = p_organization_id
      AND e.idempotency_key = p_idempotency_key
      AND e.kind = 'adjustment';
    IF FOUND THEN
        RETURN QUERY SELECT
            CASE WHEN v_entry.request_hash = p_request_hash THEN 'replayed' ELSE 'conflict' END,
            v_entry.id, v_entry.amount, v_entry.available_after, v_entry.debt_after, v_entry.created_at;
        RETURN;
    END IF;

    v_account := credits.current_account(p_organization_id);
    IF p_amount > 0 THEN
        v_paid := least(v_account.debt, p_amount);
        INSERT INTO credits.grants (organization_id, source, source_key, amount, remaining, live, priority)
        VALUES (p_organization_id, 'adjustment', 'adjustment:' || p_idempotency_key, p_amount, p_amount - v_paid,
                p_amount > v_paid, 40)
        RETURNING grants.id INTO STRICT v_grant_id;
    ELSE
        v_burned := least(v_account.available, -p_amount);
        v_owed := -p_amount - v_burned;
        IF v_owed > 0 AND p_allow_debt IS NOT TRUE THEN
            RETURN QUERY SELECT 'insufficient', NULL::uuid, p_amount, v_account.available, v_account.debt,
                                NULL::timestamptz;
            RETURN;
        END IF;
    END IF;
    UPDATE credits.accounts AS a
    SET available = a.available + greatest(p_amount, 0) - v_paid - v_burned,
        debt = a.debt - v_paid + v_owed,
        version = a.version + 1,
        updated_at = clock_timestamp()
    WHERE a.organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, source_id, allocations,
         idempotency_key, request_hash, actor, details)
    VALUES
        (p_organization_id, v_account.version, 'adjustment', p_amount, v_account.available, v_account.held,
         v_account.debt, v_grant_id,
         CASE WHEN p_amount < 0 THEN credits.burn(p_organization_id, v_burned) END,
         p_idempotency_key, p_request_hash, p_actor, jsonb_build_object('reason', p_reason))
    RETURNING * INTO STRICT v_entry;
    INSERT INTO platform.audit_log (organization_id, actor, action, target, details)
    VALUES (p_organization_id, p_actor, 'credits.adjusted', 'entry:' || v_entry.id,
            jsonb_build_object('amount', p_amount, 'reason', p_reason, 'available_after', v_account.available,
                               'debt_after', v_account.debt));
    IF p_amount > 0 THEN
        INSERT INTO platform.outbox (organization_id, type, payload)
        VALUES (p_organization_id, 'credits.granted', jsonb_build_object(
            'grant_id', v_grant_id, 'source', 'adjustment', 'amount', p_amount,
            'available_after', v_account.available));
    END IF;
    RETURN QUERY SELECT 'adjusted', v_entry.id, v_entry.amount, v_entry.available_after, v_entry.debt_after,
                        v_entry.created_at;
END
$$;

-- ---- the proof ----

-- Books what is due in one account, and says whether anything was. For the sweep, and before an audit.
CREATE FUNCTION credits.book_due(p_organization_id uuid) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    SET lock_timeout = '10s'
    AS $$
BEGIN
    PERFORM 1
    FROM credits.accounts
    WHERE organization_id = p_organization_id AND next_due_at <= clock_timestamp()
    FOR UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM credits.settle_due(p_organization_id);
    RETURN true;
END
$$;

-- Recomputes an account from its entries, live grants and open holds, in one statement and so of one
-- moment. faults names what does not add up; no row: no account.
CREATE FUNCTION credits.audit(p_organization_id uuid) RETURNS TABLE (
    ok boolean, available bigint, held bigint, debt bigint, entries_sum bigint, entries bigint,
    versions_gapless boolean, faults text[]
)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT cardinality(f.faults) = 0, g.credits, h.credits, a.debt, e.credits, e.count,
           e.gapless, f.faults
    FROM credits.accounts AS a
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(x.amount), 0)::bigint AS credits,
               count(*) AS count,
               count(*) = a.version AND coalesce(min(x.version), 1) = 1
                   AND coalesce(max(x.version), 0) = a.version AS gapless,
               coalesce(bool_and(x.running = x.available_after + x.held_after - x.debt_after), true) AS in_step
        FROM (
            SELECT *, sum(amount) OVER (ORDER BY version) AS running
            FROM credits.entries
            WHERE organization_id = a.organization_id
        ) AS x
    ) AS e
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(x.remaining), 0)::bigint AS credits
        FROM credits.grants AS x
        WHERE x.organization_id = a.organization_id AND x.live
    ) AS g
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(x.amount), 0)::bigint AS credits,
               coalesce(bool_and(x.amount = (SELECT coalesce(sum(u.amount), 0) FROM unnest(x.allocations) AS u)),
                        true) AS allocated
        FROM credits.holds AS x
        WHERE x.organization_id = a.organization_id AND x.state = 'open'
    ) AS h
    LEFT JOIN credits.entries AS newest ON newest.organization_id = a.organization_id AND newest.version = a.version
    CROSS JOIN LATERAL (
        SELECT array_remove(ARRAY[
            CASE WHEN g.credits <> a.available THEN 'available is not what live grants hold' END,
            CASE WHEN h.credits <> a.held THEN 'held is not what open holds hold' END,
            CASE WHEN NOT h.allocated THEN 'a hold is not what its allocations say' END,
            CASE WHEN e.credits <> a.available + a.held - a.debt THEN 'the balance is not the sum of the entries' END,
            CASE WHEN NOT e.gapless THEN 'versions have a gap' END,
            CASE WHEN NOT e.in_step THEN 'an entry is out of step with the one before' END,
            CASE WHEN a.version > 0
                  AND (newest.available_after, newest.held_after, newest.debt_after)
                      IS DISTINCT FROM (a.available, a.held, a.debt)
                 THEN 'the balance is not what the newest entry says' END,
            CASE WHEN EXISTS (
                     SELECT 1
                     FROM credits.refunds AS r
                     JOIN credits.entries AS d ON d.id = r.debit_id
                     WHERE r.organization_id = a.organization_id
                     GROUP BY d.id
                     HAVING sum(r.amount) > -d.amount)
                 THEN 'more was refunded than debited' END
        ], NULL) AS faults
    ) AS f
    WHERE a.organization_id = p_organization_id
$$;

-- What can be spent now, as if what is due were booked: credits past their expiry are gone, and holds
-- past theirs are back (where they pay a debt first, by the same order as free_hold).
CREATE VIEW credits.balances WITH (security_invoker = true) AS
SELECT a.organization_id,
       (a.available - lapsing.credits + back.credits)::bigint AS available,
       (a.held - back.held)::bigint AS held,
       (a.debt - back.paid)::bigint AS debt,
       a.updated_at
FROM credits.accounts AS a
CROSS JOIN LATERAL (
    SELECT coalesce(sum(g.remaining), 0) AS credits
    FROM credits.grants AS g
    WHERE g.organization_id = a.organization_id AND g.live AND g.expires_at <= statement_timestamp()
) AS lapsing
CROSS JOIN LATERAL (
    SELECT coalesce(sum(due.amount), 0) AS held,
           coalesce(sum(due.paid), 0) AS paid,
           coalesce(sum(due.amount - greatest(due.paid, due.perished)), 0) AS credits
    FROM (
        SELECT h.amount,
               least(h.amount, greatest(
                   a.debt + h.amount - sum(h.amount) OVER (ORDER BY h.expires_at, h.id), 0)) AS paid,
               (SELECT coalesce(sum(u.amount), 0)
                FROM unnest(h.allocations) AS u
                JOIN credits.grants AS g ON g.id = u.grant_id
                WHERE credits.is_over(g, statement_timestamp())) AS perished
        FROM credits.holds AS h
        WHERE h.organization_id = a.organization_id
          AND h.state = 'open'
          AND h.expires_at <= statement_timestamp()
    ) AS due
) AS back;

-- ---- as the Clerk and credits template names them ----

-- One balance a user, his personal organisation's; other organisations' stand without a user.
CREATE VIEW credits.credit_balance WITH (security_invoker = true) AS
SELECT b.organization_id AS id,
       o.personal_user_id AS "userId",
       u.clerk_id AS "clerkUserId",
       b.available AS "creditsRemaining",
       b.updated_at AS "lastSyncedAt",
       o.created_at AS "createdAt",
       b.updated_at AS "updatedAt"
FROM credits.balances AS b
JOIN tenancy.organizations AS o ON o.id = b.organization_id
LEFT JOIN identity.users AS u ON u.id = o.personal_user_id;

-- What was used, of what, and by whom: the user who did it, else the one whose organisation it is. A
-- refund is negative, and so is an adjustment that gives.
CREATE VIEW credits.usage_history WITH (security_invoker = true) AS
SELECT e.id,
       CASE WHEN e.actor ~ '^user:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN substr(e.actor, 6)::uuid
            ELSE o.personal_user_id END AS "userId",
       e.organization_id AS "creditBalanceId",
       CASE e.kind WHEN 'adjustment' THEN 'ADMIN_ADJUSTMENT' ELSE upper(e.operation) END AS "operationType",
       -e.amount AS "creditsUsed",
       e.details,
       e.created_at AS "timestamp"
FROM credits.entries AS e
JOIN tenancy.organizations AS o ON o.id = e.organization_id
WHERE e.kind IN ('debit', 'settle', 'refund', 'adjustment');

GRANT SELECT ON credits.balances, credits.credit_balance, credits.usage_history TO backplane_app, backplane_system;
GRANT EXECUTE ON FUNCTION
    credits.is_over(credits.grants, timestamptz),
    credits.hold(uuid, text, bytea, text, bigint, bigint, text, jsonb),
    credits.settle(uuid, uuid, text, bytea, bigint, bigint, text),
    credits.release(uuid, uuid, text, bytea, text),
    credits.refund(uuid, uuid, text, bytea, bigint, text, text),
    credits.adjust(uuid, text, bytea, bigint, text, boolean, text),
    credits.book_due(uuid),
    credits.audit(uuid)
    TO backplane_app, backplane_system;
GRANT EXECUTE ON FUNCTION
    credits.claw_back(uuid, text, bigint, text), credits.restore_claw_back(uuid, text)
    TO backplane_system;

-- migrate:down
DROP VIEW credits.usage_history;
DROP VIEW credits.credit_balance;
DROP VIEW credits.balances;
DROP FUNCTION credits.audit(uuid);
DROP FUNCTION credits.book_due(uuid);
DROP FUNCTION credits.adjust(uuid, text, bytea, bigint, text, boolean, text);
DROP FUNCTION credits.restore_claw_back(uuid, text);
DROP FUNCTION credits.claw_back(uuid, text, bigint, text);
DROP FUNCTION credits.refund(uuid, uuid, text, bytea, bigint, text, text);
DROP FUNCTION credits.release(uuid, uuid, text, bytea, text);
DROP FUNCTION credits.settle(uuid, uuid, text, bytea, bigint, bigint, text);
DROP FUNCTION credits.hold(uuid, text, bytea, text, bigint, bigint, text, jsonb);
DROP FUNCTION credits.current_account(uuid);
DROP FUNCTION credits.free_hold(credits.holds, credits.hold_state, text, bytea, text);
DROP FUNCTION credits.give_back(credits.allocation[]);
DROP FUNCTION credits.burn(uuid, bigint);
DROP FUNCTION credits.perishable_first(credits.allocation[]);
DROP FUNCTION credits.part(credits.allocation[], bigint, bigint);
DROP FUNCTION credits.is_over(credits.grants, timestamptz);

CREATE OR REPLACE FUNCTION credits.end_subscription(
    p_organization_id uuid, p_provider billing.provider, p_provider_subscription_id text, p_actor text
) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_expired bigint;
BEGIN
    PERFORM 1 FROM credits.accounts WHERE organization_id = p_organization_id FOR UPDATE;
    SELECT coalesce(sum(credits.end_grant(g.id, 'expire', p_actor)), 0) INTO v_expired
    FROM (
        SELECT id
        FROM credits.grants
        WHERE organization_id = p_organization_id
          AND provider = p_provider
          AND provider_subscription_id = p_provider_subscription_id
          AND live
        ORDER BY period_end, id
    ) AS g;
    PERFORM credits.settle_due(p_organization_id);
    RETURN v_expired;
END
$$;

CREATE OR REPLACE FUNCTION credits.settle_due(p_organization_id uuid) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM credits.end_grant(due.id, 'expire', 'system')
    FROM (
        SELECT id
        FROM credits.grants
        WHERE organization_id = p_organization_id
          AND live
          AND expires_at <= clock_timestamp()
        ORDER BY expires_at, id
    ) AS due;

    UPDATE credits.accounts
    SET next_due_at = (
        SELECT min(expires_at)
        FROM credits.grants
        WHERE organization_id = p_organization_id AND live
    )
    WHERE organization_id = p_organization_id;
END
$$;

CREATE OR REPLACE FUNCTION credits.end_grant(p_grant_id uuid, p_kind credits.entry_kind, p_actor text) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_grant credits.grants;
    v_account credits.accounts;
BEGIN
    SELECT * INTO STRICT v_grant FROM credits.grants WHERE id = p_grant_id;
    IF NOT v_grant.live THEN
        RETURN 0;
    END IF;
    UPDATE credits.grants SET remaining = 0, live = false WHERE id = p_grant_id;
    IF v_grant.remaining > 0 THEN
        UPDATE credits.accounts
        SET available = available - v_grant.remaining,
            version = version + 1,
            updated_at = clock_timestamp()
        WHERE organization_id = v_grant.organization_id
        RETURNING * INTO STRICT v_account;
        PERFORM credits.book(v_account, p_kind, -v_grant.remaining, p_actor, p_grant_id);
    END IF;
    RETURN v_grant.remaining;
END
$$;

ALTER TABLE credits.grants DROP COLUMN clawed_back;
ALTER TABLE credits.grants DROP COLUMN lapsed;
ALTER TABLE credits.grants DROP COLUMN ended_at;
DROP TABLE credits.refunds;
DROP TABLE credits.holds;
DROP TYPE credits.hold_state;
