-- migrate:up
-- What becomes of a sender's event, as functions: a subscription's event, which is most of what Stripe
-- sends, is then one call that locks, compares, stores, tells and records, and commits by itself
-- (docs/decisions/one-call-events.md). Each of them is also called for itself.

-- The plan behind the prices of a subscription's items, the highest; no row where none is a plan's.
CREATE FUNCTION billing.plan_of_prices(p_price_ids text[])
    RETURNS TABLE (
        id uuid,
        key text,
        tier billing.tier,
        credits bigint,
        trial_credits bigint,
        "interval" billing.price_interval,
        price_id text
    )
    LANGUAGE sql STABLE
    AS $$
    SELECT p.id, p.key, p.tier, p.credits, p.trial_credits, pp."interval", pp.price_id
    FROM billing.plan_prices AS pp
    JOIN billing.plans AS p ON p.id = pp.plan_id
    WHERE pp.price_id = ANY(p_price_ids)
    ORDER BY p.tier DESC, p.credits DESC, pp.price_id
    LIMIT 1
$$;

-- Stores a state unless a newer one stands, and tells it; adds what was told to the history, stale or not.
-- The caller holds the lock under which the subscription's events apply one after the other.
CREATE FUNCTION billing.save_subscription(
    p_state billing.subscriptions,
    p_payload jsonb, -- of the domain event
    p_told billing.subscription_events DEFAULT NULL
)
    RETURNS boolean -- whether it was stored
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    v_id uuid;
BEGIN
    INSERT INTO billing.subscriptions AS s
        (organization_id, provider, provider_subscription_id, provider_customer_id, plan_id, price_id,
         status, current_period_start, current_period_end, cancel_at_period_end, cancel_at, canceled_at,
         ended_at, trial_end, as_of, fetched_at)
    VALUES
        (p_state.organization_id, p_state.provider, p_state.provider_subscription_id,
         p_state.provider_customer_id, p_state.plan_id, p_state.price_id, p_state.status,
         p_state.current_period_start, p_state.current_period_end, p_state.cancel_at_period_end,
         p_state.cancel_at, p_state.canceled_at, p_state.ended_at, p_state.trial_end, p_state.as_of,
         p_state.fetched_at)
    ON CONFLICT (provider, provider_subscription_id) DO UPDATE
    SET provider_customer_id = EXCLUDED.provider_customer_id,
        plan_id = EXCLUDED.plan_id,
        price_id = EXCLUDED.price_id,
        status = EXCLUDED.status,
        current_period_start = EXCLUDED.current_period_start,
        current_period_end = EXCLUDED.current_period_end,
        cancel_at_period_end = EXCLUDED.cancel_at_period_end,
        cancel_at = EXCLUDED.cancel_at,
        canceled_at = EXCLUDED.canceled_at,
        ended_at = EXCLUDED.ended_at,
        trial_end = EXCLUDED.trial_end,
        as_of = greatest(s.as_of, EXCLUDED.as_of),
        fetched_at = EXCLUDED.fetched_at
    WHERE CASE
              WHEN left(s.as_of, 1) = left(EXCLUDED.as_of, 1) AND s.fetched_at IS NOT NULL
                   AND EXCLUDED.fetched_at IS NOT NULL
              THEN s.fetched_at < EXCLUDED.fetched_at
              ELSE s.as_of < EXCLUDED.as_of
          END
    RETURNING s.id INTO v_id;
    IF v_id IS NOT NULL THEN
        INSERT INTO platform.outbox (organization_id, type, payload)
        VALUES (p_state.organization_id, 'subscription.changed',
                p_payload || jsonb_build_object('subscription_id', v_id, 'plan_id', p_state.plan_id));
    END IF;
    IF p_told.provider_event_id IS NOT NULL THEN
        INSERT INTO billing.subscription_events
            (organization_id, subscription_id, provider, provider_event_id, event_type, plan_key, status,
             occurred_at, metadata)
        VALUES
            (p_state.organization_id,
             coalesce(v_id, (
                 SELECT s.id
                 FROM billing.subscriptions AS s
                 WHERE s.provider = p_state.provider
                   AND s.provider_subscription_id = p_state.provider_subscription_id
             )),
             p_state.provider, p_told.provider_event_id, p_told.event_type, p_told.plan_key, p_told.status,
             p_told.occurred_at, p_told.metadata)
        ON CONFLICT (provider, provider_event_id) DO NOTHING;
    END IF;
    RETURN v_id IS NOT NULL;
END
$$;

-- How long an event rests after its n-th attempt: a minute, doubled each time, six hours at most, less up to
-- a half by chance, so that what failed together does not come back together.
CREATE FUNCTION platform.rest_after(p_attempts bigint)
    RETURNS interval
    LANGUAGE sql VOLATILE
    RETURN least(interval '6 hours', interval '1 minute' * 2 ^ least(p_attempts - 1, 20)) * (1 - random() / 2);

-- Records what became of an event. NULL, and nothing is changed, where that stands already.
CREATE FUNCTION platform.record_event(
    p_event platform.webhook_inbox,
    p_body bytea,
    p_anew boolean, -- its attempts are counted anew
    p_changeable platform.inbox_status[], -- what may still be changed
    p_most bigint -- attempts: whatever fails as often is dead
)
    RETURNS platform.inbox_status
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    v_waits CONSTANT boolean := p_event.status IN ('parked', 'failed');
    v_body bytea := p_body;
    v_status platform.inbox_status;
BEGIN
    -- What is settled about a person who was erased, or about his own organisation, is kept without its body.
    IF NOT v_waits AND (
        EXISTS (
            SELECT FROM identity.users AS u WHERE u.clerk_id = p_event.person AND u.deleted_at IS NOT NULL
        )
        OR EXISTS (
            SELECT
            FROM tenancy.organizations AS o
            WHERE o.id = p_event.organization_id AND o.personal_user_id IS NOT NULL AND o.deleted_at IS NOT NULL
        )
    ) THEN
        v_body := NULL;
    END IF;
    INSERT INTO platform.webhook_inbox AS inbox
        (provider, event_id, event_type, body, person, status, reason, waiting_for, organization_id, error,
         occurred_at, received_at, processed_at, next_attempt_at)
    VALUES
        (p_event.provider, p_event.event_id, p_event.event_type, v_body, p_event.person, p_event.status,
         p_event.reason, p_event.waiting_for, p_event.organization_id, p_event.error, p_event.occurred_at, now(),
         CASE WHEN NOT v_waits THEN clock_timestamp() END,
         CASE WHEN v_waits THEN clock_timestamp() + platform.rest_after(1) END)
    ON CONFLICT (provider, event_id) DO UPDATE
    SET status = CASE WHEN EXCLUDED.status = 'failed' AND NOT p_anew AND inbox.attempts + 1 >= p_most
                      THEN 'dead' ELSE EXCLUDED.status END,
        body = CASE WHEN EXCLUDED.body IS NOT NULL THEN inbox.body END,
        reason = EXCLUDED.reason,
        waiting_for = EXCLUDED.waiting_for,
        organization_id = coalesce(EXCLUDED.organization_id, inbox.organization_id),
        error = EXCLUDED.error,
        attempts = CASE WHEN p_anew THEN 1 ELSE inbox.attempts + 1 END,
        processed_at = CASE WHEN EXCLUDED.status = 'failed' AND NOT p_anew AND inbox.attempts + 1 >= p_most
                            THEN clock_timestamp() ELSE EXCLUDED.processed_at END,
        next_attempt_at = CASE
            WHEN NOT v_waits OR EXCLUDED.status = 'failed' AND NOT p_anew AND inbox.attempts + 1 >= p_most
            THEN NULL
            ELSE clock_timestamp() + platform.rest_after(CASE WHEN p_anew THEN 1 ELSE inbox.attempts + 1 END)
        END
    WHERE inbox.status = ANY (p_changeable)
    RETURNING inbox.status INTO v_status;
    RETURN v_status;
END
$$;

-- Applies and records what is told of a subscription that goes on, for a customer who is linked, at a price we
-- know. NULL, and nothing is changed, where any of that is not so, or the event was recorded before: then it
-- takes more than this.
CREATE FUNCTION billing.tell_subscription(
    p_state billing.subscriptions, -- without organisation, plan and price
    p_price_ids text[],
    p_payload jsonb,
    p_told billing.subscription_events, -- without plan
    p_event platform.webhook_inbox, -- its reason is why it is stale, if it is
    p_body bytea,
    p_subject text -- the customer's lock
)
    RETURNS platform.inbox_status
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    v_customer record;
    v_plan record;
    v_status platform.inbox_status;
BEGIN
    SELECT * INTO v_customer
    FROM billing.lock_customer(p_state.provider, p_state.provider_customer_id, p_subject);
    IF v_customer.organization_id IS NULL OR v_customer.deleted THEN
        RETURN NULL;
    END IF;
    SELECT * INTO v_plan FROM billing.plan_of_prices(p_price_ids);
    IF v_plan.id IS NULL OR EXISTS (
        SELECT FROM platform.webhook_inbox AS i WHERE i.provider = p_event.provider AND i.event_id = p_event.event_id
    ) THEN
        RETURN NULL;
    END IF;
    p_state.organization_id := v_customer.organization_id;
    p_state.plan_id := v_plan.id;
    p_state.price_id := v_plan.price_id;
    p_told.plan_key := v_plan.key;
    p_event.organization_id := v_customer.organization_id;
    IF billing.save_subscription(p_state, p_payload, p_told) THEN
        p_event.status := 'processed';
        p_event.reason := NULL;
    ELSE
        p_event.status := 'stale';
    END IF;
    v_status := platform.record_event(p_event, p_body, false, '{}', 0);
    IF v_status IS NULL THEN
        -- Another customer's event of the same id got in between: this one's effect must not stand.
        RAISE EXCEPTION 'event % was recorded meanwhile', p_event.event_id USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN v_status;
END
$$;
GRANT EXECUTE ON FUNCTION
    billing.plan_of_prices(text[]),
    billing.save_subscription(billing.subscriptions, jsonb, billing.subscription_events),
    platform.rest_after(bigint),
    platform.record_event(platform.webhook_inbox, bytea, boolean, platform.inbox_status[], bigint),
    billing.tell_subscription(
        billing.subscriptions, text[], jsonb, billing.subscription_events, platform.webhook_inbox, bytea, text
    )
    TO backplane_system;

-- migrate:down
DROP FUNCTION billing.tell_subscription(
    billing.subscriptions, text[], jsonb, billing.subscription_events, platform.webhook_inbox, bytea, text
);
DROP FUNCTION platform.record_event(platform.webhook_inbox, bytea, boolean, platform.inbox_status[], bigint);
DROP FUNCTION platform.rest_after(bigint);
DROP FUNCTION billing.save_subscription(billing.subscriptions, jsonb, billing.subscription_events);
DROP FUNCTION billing.plan_of_prices(text[]);
