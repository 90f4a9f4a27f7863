-- migrate:up
-- Every change of credits, each one call and so one round trip. The functions see every row
-- (security definer) and take the organisation as an argument. They are exact at READ COMMITTED
-- because each statement of a volatile function sees a fresh snapshot: the first update takes the
-- account's row lock, and what follows sees all that was committed before the lock was given.
-- No EXCEPTION blocks: an error rolls the whole call back.

-- Writes one entry with the account's new state. Internal: the caller holds the account's lock
-- and has set the account's row, version included, to what the entry says.
CREATE FUNCTION credits.book(
    p_account credits.accounts,
    p_kind credits.entry_kind,
    p_amount bigint,
    p_actor text,
    p_source_id uuid
) RETURNS uuid
    LANGUAGE sql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, source_id, actor)
    VALUES
        (p_account.organization_id, p_account.version, p_kind, p_amount,
         p_account.available, p_account.held, p_account.debt, p_source_id, p_actor)
    RETURNING id
$$;

-- Ends a grant: what remains of it leaves the balance under an entry of the given kind.
-- Internal: the caller holds the account's lock.
CREATE FUNCTION credits.end_grant(p_grant_id uuid, p_kind credits.entry_kind, p_actor text) RETURNS bigint
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

-- Books what is due to expire and says when to look again. Internal: the caller holds the lock.
CREATE FUNCTION credits.settle_due(p_organization_id uuid) RETURNS void
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

-- Grants credits once per (organisation, source key). A debt is paid first. A plan grant ends the
-- grants of earlier periods of its subscription, and is itself ended if a later one exists.
-- Answers the grant, and whether this call made it.
CREATE FUNCTION credits.grant_credits(
    p_organization_id uuid,
    p_source credits.grant_source,
    p_source_key text,
    p_amount bigint,
    p_actor text,
    p_priority bigint,
    p_expires_at timestamptz DEFAULT NULL,
    p_plan_id uuid DEFAULT NULL,
    p_provider billing.provider DEFAULT NULL,
    p_provider_subscription_id text DEFAULT NULL,
    p_period_end timestamptz DEFAULT NULL,
    p_checkout_session_id text DEFAULT NULL,
    p_invoice_id text DEFAULT NULL,
    p_payment_intent_id text DEFAULT NULL,
    p_charge_id text DEFAULT NULL
) RETURNS TABLE (grant_id uuid, granted boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_account credits.accounts;
    v_grant_id uuid;
    v_debt_paid bigint;
BEGIN
    SELECT least(debt, p_amount) INTO v_debt_paid
    FROM credits.accounts
    WHERE organization_id = p_organization_id
    FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'organisation % has no credit account', p_organization_id
            USING ERRCODE = 'foreign_key_violation';
    END IF;

    SELECT id INTO v_grant_id
    FROM credits.grants
    WHERE organization_id = p_organization_id AND source_key = p_source_key;
    IF FOUND THEN
        RETURN QUERY SELECT v_grant_id, false;
        RETURN;
    END IF;

    UPDATE credits.accounts
    SET debt = debt - v_debt_paid,
        available = available + p_amount - v_debt_paid,
        version = version + 1,
        updated_at = clock_timestamp()
    WHERE organization_id = p_organization_id
    RETURNING * INTO STRICT v_account;

    INSERT INTO credits.grants
        (organization_id, source, source_key, amount, remaining, live, priority, expires_at,
         plan_id, provider, provider_subscription_id, period_end,
         checkout_session_id, invoice_id, payment_intent_id, charge_id)
    VALUES
        (p_organization_id, p_source, p_source_key, p_amount, p_amount - v_debt_paid, p_amount > v_debt_paid,
         p_priority, p_expires_at,
         p_plan_id, p_provider, p_provider_subscription_id, p_period_end,
         p_checkout_session_id, p_invoice_id, p_payment_intent_id, p_charge_id)
    RETURNING id INTO v_grant_id;
    PERFORM credits.book(v_account, 'grant', p_amount, p_actor, v_grant_id);
    INSERT INTO platform.outbox (organization_id, type, payload)
    VALUES (p_organization_id, 'credits.granted', jsonb_build_object(
        'grant_id', v_grant_id, 'source', p_source, 'amount', p_amount, 'available_after', v_account.available));

    IF p_period_end IS NOT NULL THEN
        PERFORM credits.end_grant(earlier.id, 'expire', p_actor)
        FROM (
            SELECT g.id
            FROM credits.grants AS g
            WHERE g.organization_id = p_organization_id
              AND g.provider = p_provider
              AND g.provider_subscription_id = p_provider_subscription_id
              AND g.live
              AND g.period_end < (
                  SELECT max(later.period_end)
                  FROM credits.grants AS later
                  WHERE later.organization_id = p_organization_id
                    AND later.provider = p_provider
                    AND later.provider_subscription_id = p_provider_subscription_id
              )
            ORDER BY g.period_end, g.id
        ) AS earlier;
    END IF;
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT v_grant_id, true;
END
$$;

-- Ends the plan credits of a subscription that is over. Answers how many credits expired.
CREATE FUNCTION credits.end_subscription(
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

-- The price list: the operator's override where it is a sane number (finite, not negative; rounded
-- down), else the default. An override may also name an operation that has no default.
CREATE FUNCTION credits.costs() RETURNS TABLE (operation text, unit_cost bigint)
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

-- Debits an organisation once per idempotency key.
--   outcome: 'debited', or 'replayed' with the first call's values, or 'conflict' (the key was used
--   for another request), 'insufficient' (available_after says what there is), 'unknown_account',
--   'unknown_operation' (it has no price).
-- Raises unique_violation if the same key commits while this call waits for the account's lock:
-- everything is rolled back, and calling once more answers 'replayed'.
CREATE FUNCTION credits.debit(
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

GRANT EXECUTE ON FUNCTION credits.debit(uuid, text, bytea, text, bigint, text, jsonb), credits.costs()
    TO backplane_app, backplane_system;
GRANT EXECUTE ON FUNCTION
    credits.grant_credits(uuid, credits.grant_source, text, bigint, text, bigint, timestamptz, uuid,
                          billing.provider, text, timestamptz, text, text, text, text),
    credits.end_subscription(uuid, billing.provider, text, text)
    TO backplane_system;

-- migrate:down
DROP FUNCTION credits.debit(uuid, text, bytea, text, bigint, text, jsonb);
DROP FUNCTION credits.costs();
DROP FUNCTION credits.end_subscription(uuid, billing.provider, text, text);
DROP FUNCTION credits.grant_credits(uuid, credits.grant_source, text, bigint, text, bigint, timestamptz, uuid,
                                    billing.provider, text, timestamptz, text, text, text, text);
DROP FUNCTION credits.settle_due(uuid);
DROP FUNCTION credits.end_grant(uuid, credits.entry_kind, text);
DROP FUNCTION credits.book(credits.accounts, credits.entry_kind, bigint, text, uuid);
