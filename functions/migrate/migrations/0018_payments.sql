-- migrate:up
-- What was bought, which payments paid for it, and what of them was taken back: refunds and disputes.
-- A claw-back is computed from these facts, not from the event that brought one of them, so that every
-- order of arrival ends alike.

-- In the order in which a purchase may still change: a later one is never undone by an earlier one.
CREATE TYPE billing.purchase_status AS ENUM ('pending', 'failed', 'expired', 'uncollectible', 'void', 'paid');

CREATE TABLE billing.purchases (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    organization_id uuid NOT NULL REFERENCES tenancy.organizations (id),
    provider billing.provider NOT NULL,
    provider_purchase_id text NOT NULL, -- in_… or cs_…
    status billing.purchase_status NOT NULL,
    amount bigint CHECK (amount >= 0), -- minor units
    currency text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (provider, provider_purchase_id)
);
CREATE INDEX purchases_organization ON billing.purchases (organization_id);
CREATE TRIGGER purchases_touch BEFORE UPDATE ON billing.purchases
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TABLE billing.payments (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    provider billing.provider NOT NULL,
    provider_payment_id text NOT NULL, -- pi_…, or the charge's id where there is no intent
    provider_charge_id text,
    provider_purchase_id text NOT NULL, -- may be told before the purchase is: no reference
    amount bigint CHECK (amount >= 0), -- minor units, as the purchase tells it
    charged bigint CHECK (charged >= 0), -- as the charge tells it, which counts
    refunded bigint NOT NULL DEFAULT 0 CHECK (refunded >= 0), -- cumulative, as the charge told it last
    refunded_as_of timestamptz, -- when it told so
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (provider, provider_payment_id)
);
CREATE INDEX payments_charge ON billing.payments (provider, provider_charge_id);
CREATE INDEX payments_purchase ON billing.payments (provider, provider_purchase_id);
CREATE TRIGGER payments_touch BEFORE UPDATE ON billing.payments
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TABLE billing.payment_refunds (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    payment_id uuid NOT NULL REFERENCES billing.payments (id),
    provider_refund_id text NOT NULL UNIQUE, -- re_…
    amount bigint NOT NULL CHECK (amount >= 0),
    status text, -- the sender's word, as told last
    as_of text COLLATE "C" NOT NULL,
    requested_at timestamptz NOT NULL,
    failed_at timestamptz, -- the money came back to us: the refund counts no longer
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX payment_refunds_payment ON billing.payment_refunds (payment_id);
CREATE TRIGGER payment_refunds_touch BEFORE UPDATE ON billing.payment_refunds
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CREATE TABLE billing.disputes (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    payment_id uuid NOT NULL REFERENCES billing.payments (id),
    provider_dispute_id text NOT NULL UNIQUE, -- du_… or dp_…
    amount bigint NOT NULL CHECK (amount >= 0),
    status text NOT NULL, -- the sender's word, as told last
    as_of text COLLATE "C" NOT NULL,
    withdrawn boolean NOT NULL, -- what any of its events has told
    reinstated boolean NOT NULL,
    lost boolean NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX disputes_payment ON billing.disputes (payment_id);
CREATE TRIGGER disputes_touch BEFORE UPDATE ON billing.disputes
    FOR EACH ROW EXECUTE FUNCTION platform.touch();

CALL platform.protect('billing.purchases', 'organization_id');
CALL platform.protect('billing.payments');
CALL platform.protect('billing.payment_refunds');
CALL platform.protect('billing.disputes');
GRANT INSERT, UPDATE ON billing.purchases, billing.payments, billing.payment_refunds, billing.disputes
    TO backplane_system;

-- What was paid before this table stood can be refunded too.
INSERT INTO billing.purchases (organization_id, provider, provider_purchase_id, status)
SELECT organization_id, provider, coalesce(checkout_session_id, invoice_id), 'paid'
FROM credits.grants
WHERE provider = 'stripe' AND coalesce(checkout_session_id, invoice_id) IS NOT NULL
ON CONFLICT DO NOTHING;
INSERT INTO billing.payments (provider, provider_payment_id, provider_charge_id, provider_purchase_id)
SELECT provider, coalesce(payment_intent_id, charge_id), charge_id, coalesce(checkout_session_id, invoice_id)
FROM credits.grants
WHERE provider = 'stripe'
  AND coalesce(checkout_session_id, invoice_id) IS NOT NULL
  AND coalesce(payment_intent_id, charge_id) IS NOT NULL
ON CONFLICT DO NOTHING;

-- A customer may be deleted before we ever heard of him: his tombstone names no organisation.
-- squawk-ignore ban-drop-not-null
ALTER TABLE billing.customers ALTER COLUMN organization_id DROP NOT NULL;

-- migrate:down
DELETE FROM billing.customers WHERE organization_id IS NULL;
ALTER TABLE billing.customers ALTER COLUMN organization_id SET NOT NULL;
DROP TABLE billing.disputes;
DROP TABLE billing.payment_refunds;
DROP TABLE billing.payments;
DROP TABLE billing.purchases;
DROP TYPE billing.purchase_status;
