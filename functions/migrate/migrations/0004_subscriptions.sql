-- migrate:up
-- Who pays for what: the senders' customers, one subscription state for Stripe and Clerk, its
-- history, and the counters that plan limits of a period are held against.

CREATE TYPE billing.subscription_status AS ENUM (
    'incomplete', 'incomplete_expired', 'trialing', 'active', 'past_due', 'unpaid', 'paused', 'canceled'
);

CREATE TABLE billing.customers (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    provider billing.provider NOT NULL,
    provider_customer_id text NOT NULL, -- cus_…
    deleted_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (provider, provider_customer_id)
);
CREATE INDEX customers_organization ON billing.customers (organization_id);
CREATE TRIGGER customers_touch BEFORE UPDATE ON billing.customers
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TABLE billing.subscriptions (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    provider billing.provider NOT NULL,
    provider_subscription_id text NOT NULL, -- sub_… or csub_item_…
    provider_customer_id text,
    plan_id uuid NOT NULL REFERENCES billing.plans (id),
    price_id text,
    status billing.subscription_status NOT NULL,
    current_period_start timestamptz,
    current_period_end timestamptz,
    cancel_at_period_end boolean NOT NULL DEFAULT false,
    cancel_at timestamptz, -- flexible billing sets this instead of the flag
    canceled_at timestamptz,
    ended_at timestamptz,
    trial_end timestamptz,
    -- How new the state is (see identity.users). A canceled subscription sorts after every other
    -- state of itself, so no late event reopens it, whatever the order of arrival.
    as_of text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (provider, provider_subscription_id)
);
CREATE INDEX subscriptions_organization ON billing.subscriptions (organization_id);
CREATE TRIGGER subscriptions_touch BEFORE UPDATE ON billing.subscriptions
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TABLE billing.subscription_events (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    subscription_id uuid REFERENCES billing.subscriptions (id),
    provider billing.provider NOT NULL,
    provider_event_id text NOT NULL,
    event_type text NOT NULL,
    plan_key text,
    status text NOT NULL,
    occurred_at timestamptz NOT NULL,
    metadata jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (provider, provider_event_id)
);
CREATE INDEX subscription_events_organization ON billing.subscription_events (organization_id, occurred_at DESC);
CREATE INDEX subscription_events_subscription ON billing.subscription_events (subscription_id);

-- A new period is a new row: nothing resets, nothing can be reset twice.
CREATE TABLE billing.usage_counters (
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    key text NOT NULL,
    period_start timestamptz NOT NULL, -- midnight in the organisation's timezone; -infinity: a stock, not a flow
    used bigint NOT NULL DEFAULT 0 CHECK (used >= 0),
    PRIMARY KEY (organization_id, key, period_start)
) WITH (fillfactor = 80);

CALL platform.protect('billing.customers', 'organization_id');
CALL platform.protect('billing.subscriptions', 'organization_id');
CALL platform.protect('billing.subscription_events', 'organization_id');
CALL platform.protect('billing.usage_counters', 'organization_id');
GRANT SELECT ON billing.customers, billing.subscriptions, billing.subscription_events, billing.usage_counters
    TO backplane_app;
GRANT INSERT, UPDATE ON billing.customers, billing.subscriptions, billing.usage_counters TO backplane_system;
GRANT INSERT ON billing.subscription_events TO backplane_system;

-- migrate:down
DROP TABLE billing.usage_counters;
DROP TABLE billing.subscription_events;
DROP TABLE billing.subscriptions;
DROP TABLE billing.customers;
DROP TYPE billing.subscription_status;
