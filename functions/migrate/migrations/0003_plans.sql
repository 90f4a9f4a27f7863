-- migrate:up
-- What is for sale: plans, their prices, limits and features, and credit packs. The rows below
-- are a fresh stack's; afterwards they are the operator's to change.

CREATE TYPE billing.tier AS ENUM ('free', 'starter', 'pro', 'super', 'enterprise');
CREATE TYPE billing.provider AS ENUM ('stripe', 'clerk');
CREATE TYPE billing.price_interval AS ENUM ('month', 'year');

CREATE TABLE billing.plans (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    key text NOT NULL UNIQUE CHECK (key ~ '^[a-z][a-z0-9_]{0,62}$'),
    tier billing.tier NOT NULL,
    clerk_plan_id text UNIQUE, -- cplan_…
    clerk_slug text UNIQUE,
    name text NOT NULL,
    description text,
    credits bigint NOT NULL CHECK (credits >= 0), -- a month; on the free plan once, at sign-up
    trial_credits bigint NOT NULL DEFAULT 0 CHECK (trial_credits >= 0), -- for a trial's zero invoice
    features text[] NOT NULL DEFAULT '{}',
    currency text NOT NULL DEFAULT 'usd' CHECK (currency ~ '^[a-z]{3}$'),
    price_monthly_minor bigint CHECK (price_monthly_minor >= 0),
    price_yearly_minor bigint CHECK (price_yearly_minor >= 0),
    active boolean NOT NULL DEFAULT true,
    sort_order bigint NOT NULL DEFAULT 0,
    badge text,
    highlight boolean NOT NULL DEFAULT false,
    cta_type text NOT NULL DEFAULT 'checkout',
    cta_label text,
    cta_url text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TRIGGER plans_touch BEFORE UPDATE ON billing.plans
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TABLE billing.plan_prices (
    price_id text PRIMARY KEY, -- Stripe's price_…
    plan_id uuid NOT NULL REFERENCES billing.plans (id) ON DELETE CASCADE,
    "interval" billing.price_interval NOT NULL
);
CREATE INDEX plan_prices_plan ON billing.plan_prices (plan_id);

CREATE TABLE billing.plan_limits (
    plan_id uuid NOT NULL REFERENCES billing.plans (id) ON DELETE CASCADE,
    key text NOT NULL CHECK (key ~ '^[a-z]+\.[a-z_]+$'),
    value bigint NOT NULL CHECK (value >= -1), -- -1: unlimited
    PRIMARY KEY (plan_id, key)
);

CREATE TABLE billing.credit_packs (
    id text PRIMARY KEY CHECK (id ~ '^pack_[a-z0-9_]{1,60}$'),
    name text NOT NULL,
    credits bigint NOT NULL CHECK (credits > 0),
    price_id text UNIQUE,
    active boolean NOT NULL DEFAULT true,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TRIGGER credit_packs_touch BEFORE UPDATE ON billing.credit_packs
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CALL platform.protect('billing.plans');
CALL platform.protect('billing.plan_prices');
CALL platform.protect('billing.plan_limits');
CALL platform.protect('billing.credit_packs');
-- The price list is public.
CREATE POLICY app_read ON billing.plans FOR SELECT TO backplane_app USING (true);
CREATE POLICY app_read ON billing.plan_prices FOR SELECT TO backplane_app USING (true);
CREATE POLICY app_read ON billing.plan_limits FOR SELECT TO backplane_app USING (true);
CREATE POLICY app_read ON billing.credit_packs FOR SELECT TO backplane_app USING (true);
GRANT SELECT ON billing.plans, billing.plan_prices, billing.plan_limits, billing.credit_packs TO backplane_app;
GRANT INSERT, UPDATE, DELETE
    ON billing.plans, billing.plan_prices, billing.plan_limits, billing.credit_packs TO backplane_system;

INSERT INTO billing.plans
    (key, tier, clerk_plan_id, clerk_slug, name, credits, price_monthly_minor, sort_order, features)
VALUES
    ('free', 'free', 'cplan_free', 'free', 'Free', 100, 0, 0,
     '{basic-templates,public-sharing}'),
    ('starter', 'starter', 'cplan_starter', 'starter', 'Starter', 500, 2900, 1,
     '{basic-templates,public-sharing}'),
    ('pro', 'pro', 'cplan_pro', 'pro', 'Pro', 1000, 4900, 2,
     '{basic-templates,public-sharing,all-templates,private-projects,integrations,priority-support}'),
    ('super', 'super', 'cplan_super', 'super', 'Super', 10000, 9900, 3,
     '{basic-templates,public-sharing,all-templates,private-projects,integrations,priority-support,everything,white-label,custom-templates,dedicated-support}'),
    ('enterprise', 'enterprise', 'cplan_enterprise', 'enterprise', 'Enterprise', 50000, 29900, 4,
     '{basic-templates,public-sharing,all-templates,private-projects,integrations,priority-support,everything,white-label,custom-templates,dedicated-support}');

INSERT INTO billing.plan_prices (price_id, plan_id, "interval")
SELECT format('price_%s_%sly', p.key, i."interval"), p.id, i."interval"
FROM billing.plans AS p
CROSS JOIN unnest(enum_range(NULL::billing.price_interval)) AS i ("interval")
WHERE p.key <> 'free';

-- Where a source does not name a tier for a product, the next lower named one's value stands.
INSERT INTO billing.plan_limits (plan_id, key, value)
SELECT p.id, l.key, l.value
FROM (VALUES
    ('free', 'app.messages_per_day', 10), ('free', 'app.messages_per_month', 100),
    ('free', 'app.projects', 3), ('free', 'app.deployments', 1),
    ('free', 'site.projects', 1), ('free', 'site.storage_bytes', 100 * 1024^2),
    ('free', 'workflow.workflows', 5), ('free', 'workflow.executions_per_month', 1000),
    ('free', 'workflow.storage_bytes', 100 * 1024^2),

    ('starter', 'app.messages_per_day', 10), ('starter', 'app.messages_per_month', 100),
    ('starter', 'app.projects', 3), ('starter', 'app.deployments', 1),
    ('starter', 'site.projects', 3), ('starter', 'site.storage_bytes', 5 * 1024^3),
    ('starter', 'workflow.workflows', 5), ('starter', 'workflow.executions_per_month', 1000),
    ('starter', 'workflow.storage_bytes', 100 * 1024^2),

    ('pro', 'app.messages_per_day', 100), ('pro', 'app.messages_per_month', 1000),
    ('pro', 'app.projects', 50), ('pro', 'app.deployments', 10),
    ('pro', 'site.projects', 10), ('pro', 'site.storage_bytes', 50 * 1024^3),
    ('pro', 'workflow.workflows', 50), ('pro', 'workflow.executions_per_month', 50000),
    ('pro', 'workflow.storage_bytes', 10 * 1024^3),

    ('super', 'app.messages_per_day', 1000), ('super', 'app.messages_per_month', 10000),
    ('super', 'app.projects', -1), ('super', 'app.deployments', -1),
    ('super', 'site.projects', 10), ('super', 'site.storage_bytes', 50 * 1024^3),
    ('super', 'workflow.workflows', 50), ('super', 'workflow.executions_per_month', 50000),
    ('super', 'workflow.storage_bytes', 10 * 1024^3),

    ('enterprise', 'app.messages_per_day', 1000), ('enterprise', 'app.messages_per_month', 10000),
    ('enterprise', 'app.projects', -1), ('enterprise', 'app.deployments', -1),
    ('enterprise', 'site.projects', -1), ('enterprise', 'site.storage_bytes', -1),
    ('enterprise', 'workflow.workflows', -1), ('enterprise', 'workflow.executions_per_month', -1),
    ('enterprise', 'workflow.storage_bytes', -1)
) AS l (plan_key, key, value)
JOIN billing.plans AS p ON p.key = l.plan_key;

INSERT INTO billing.credit_packs (id, name, credits, price_id)
VALUES ('pack_500', '500 credits', 500, 'price_pack_500'),
       ('pack_2000', '2,000 credits', 2000, 'price_pack_2000');

-- migrate:down
DROP TABLE billing.credit_packs;
DROP TABLE billing.plan_limits;
DROP TABLE billing.plan_prices;
DROP TABLE billing.plans;
DROP TYPE billing.price_interval;
DROP TYPE billing.provider;
DROP TYPE billing.tier;
