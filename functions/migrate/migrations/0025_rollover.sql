-- migrate:up
-- Plans whose credits go over into the next period: all of them, or so many at most.

CREATE TYPE billing.rollover AS ENUM ('none', 'capped', 'all');
ALTER TABLE billing.plans ADD COLUMN rollover billing.rollover NOT NULL DEFAULT 'none';
ALTER TABLE billing.plans ADD COLUMN rollover_cap bigint CHECK (rollover_cap > 0);
COMMENT ON COLUMN billing.plans.rollover_cap IS 'Capped: how many credits of earlier periods a subscription keeps.';
-- Checked at once: a handful of rows, all of them 'none'.
-- squawk-ignore constraint-missing-not-valid
ALTER TABLE billing.plans ADD CONSTRAINT plans_rollover CHECK ((rollover = 'capped') = (rollover_cap IS NOT NULL));

ALTER TABLE credits.grants ADD COLUMN carry bigint NOT NULL DEFAULT 0 CHECK (carry >= -1);
COMMENT ON COLUMN credits.grants.carry IS
    'How many credits of earlier periods go over, by the plan as it was when they were granted; -1: all.';

-- Whether a grant's time is over, so that what returns to it lapses: ended, past its expiry, or followed by a
-- later period's. What was taken along under a cap is live still, but nothing is added to it.
CREATE OR REPLACE FUNCTION credits.is_over(p_grant credits.grants, p_at timestamptz) RETURNS boolean
    LANGUAGE sql STABLE
    SET search_path = pg_catalog, pg_temp
    AS $$
    SELECT p_grant.ended_at IS NOT NULL
        OR coalesce(p_grant.expires_at <= p_at, false)
        OR (p_grant.period_end IS NOT NULL AND p_grant.carry <> -1 AND EXISTS (
            SELECT 1
            FROM credits.grants AS later
            WHERE later.organization_id = p_grant.organization_id
              AND later.provider = p_grant.provider
              AND later.provider_subscription_id = p_grant.provider_subscription_id
              AND later.period_end > p_grant.period_end
        ))
$$;

-- Expires a part of a grant. Internal: the caller holds the account's lock.
CREATE FUNCTION credits.lapse(p_grant_id uuid, p_amount bigint, p_actor text) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_account credits.accounts;
BEGIN
    UPDATE credits.accounts
    SET available = available - p_amount,
        version = version + 1,
        updated_at = clock_timestamp()
    WHERE organization_id = (SELECT organization_id FROM credits.grants WHERE id = p_grant_id)
    RETURNING * INTO STRICT v_account;
    UPDATE credits.grants
    SET remaining = remaining - p_amount,
        live = remaining > p_amount,
        lapsed = lapsed + p_amount
    WHERE id = p_grant_id;
    PERFORM credits.book(v_account, 'expire', -p_amount, p_actor, p_grant_id);
END
$$;

-- As in 0009; of a grant that was taken along under a cap, only what returns lapses.
CREATE OR REPLACE FUNCTION credits.give_back(p_allocations credits.allocation[]) RETURNS void
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
        IF v_grant.carry > 0
            AND v_grant.ended_at IS NULL
            AND coalesce(v_grant.expires_at > clock_timestamp(), true)
            AND credits.is_over(v_grant, clock_timestamp())
        THEN
            PERFORM credits.lapse(v_grant.id, v_back.amount, 'system');
        ELSIF credits.is_over(v_grant, clock_timestamp()) THEN
            PERFORM credits.end_grant(v_grant.id, 'expire', 'system');
        END IF;
    END LOOP;
END
$$;

-- Ends a subscription's grants of earlier periods, or takes them along: they last as long as the latest
-- period's. Of capped ones the newest stay, so many credits in all. The outcome depends on which grants
-- there are and not on the order in which they came. Internal: the caller holds the account's lock and has
-- booked what was due before p_grant_id came.
CREATE FUNCTION credits.roll_over(
    p_organization_id uuid, p_provider billing.provider, p_subscription text, p_grant_id uuid, p_actor text
) RETURNS void
    LANGUAGE plpgsql VOLATILE
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_grant credits.grants;
    v_latest timestamptz;
    v_expires_at timestamptz;
    v_kept bigint := 0;
    v_excess bigint;
BEGIN
    SELECT g.period_end, max(coalesce(g.expires_at, 'infinity'))
    INTO v_latest, v_expires_at
    FROM credits.grants AS g
    WHERE g.organization_id = p_organization_id
      AND g.provider = p_provider
      AND g.provider_subscription_id = p_subscription
      AND g.period_end IS NOT NULL
    GROUP BY g.period_end
    ORDER BY g.period_end DESC
    LIMIT 1;
    FOR v_grant IN
        SELECT *
        FROM credits.grants AS g
        WHERE g.organization_id = p_organization_id
          AND g.provider = p_provider
          AND g.provider_subscription_id = p_subscription
          AND g.period_end < v_latest
          AND (g.live OR g.carry = -1)
          AND g.ended_at IS NULL
        ORDER BY g.period_end DESC, g.created_at DESC, g.id DESC
    LOOP
        IF v_grant.carry = 0 THEN
            PERFORM credits.end_grant(v_grant.id, 'expire', p_actor);
            CONTINUE;
        ELSIF v_grant.carry > 0 THEN
            v_excess := greatest(v_grant.remaining - greatest(v_grant.carry - v_kept, 0), 0);
            v_kept := v_kept + v_grant.remaining - v_excess;
            IF v_excess > 0 THEN
                PERFORM credits.lapse(v_grant.id, v_excess, p_actor);
            END IF;
        END IF;
        UPDATE credits.grants
        SET expires_at = nullif(v_expires_at, 'infinity')
        WHERE id = v_grant.id
          AND expires_at < v_expires_at
          AND (expires_at > clock_timestamp() OR id = p_grant_id);
    END LOOP;
END
$$;

-- As in 0007, and plan credits may go over.
CREATE OR REPLACE FUNCTION credits.grant_credits(
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
    v_carry bigint;
BEGIN
    PERFORM 1 FROM credits.accounts WHERE organization_id = p_organization_id FOR UPDATE;
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

    -- What is over by now is not taken along.
    v_account := credits.current_account(p_organization_id);
    v_debt_paid := least(v_account.debt, p_amount);
    SELECT CASE p.rollover WHEN 'all' THEN -1 WHEN 'capped' THEN p.rollover_cap ELSE 0 END INTO v_carry
    FROM billing.plans AS p
    WHERE p.id = p_plan_id;
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
         checkout_session_id, invoice_id, payment_intent_id, charge_id, carry)
    VALUES
        (p_organization_id, p_source, p_source_key, p_amount, p_amount - v_debt_paid, p_amount > v_debt_paid,
         p_priority, p_expires_at,
         p_plan_id, p_provider, p_provider_subscription_id, p_period_end,
         p_checkout_session_id, p_invoice_id, p_payment_intent_id, p_charge_id, coalesce(v_carry, 0))
    RETURNING id INTO v_grant_id;
    PERFORM credits.book(v_account, 'grant', p_amount, p_actor, v_grant_id);
    INSERT INTO platform.outbox (organization_id, type, payload)
    VALUES (p_organization_id, 'credits.granted', jsonb_build_object(
        'grant_id', v_grant_id, 'source', p_source, 'amount', p_amount, 'available_after', v_account.available));

    IF p_period_end IS NOT NULL THEN
        PERFORM credits.roll_over(p_organization_id, p_provider, p_provider_subscription_id, v_grant_id, p_actor);
    END IF;
    PERFORM credits.settle_due(p_organization_id);
    RETURN QUERY SELECT v_grant_id, true;
END
$$;

-- migrate:down
CREATE OR REPLACE FUNCTION credits.grant_credits(
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

DROP FUNCTION credits.roll_over(uuid, billing.provider, text, uuid, text);
CREATE OR REPLACE FUNCTION credits.give_back(p_allocations credits.allocation[]) RETURNS void
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

DROP FUNCTION credits.lapse(uuid, bigint, text);
CREATE OR REPLACE FUNCTION credits.is_over(p_grant credits.grants, p_at timestamptz) RETURNS boolean
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

ALTER TABLE credits.grants DROP COLUMN carry;
ALTER TABLE billing.plans DROP COLUMN rollover_cap;
ALTER TABLE billing.plans DROP COLUMN rollover;
DROP TYPE billing.rollover;
