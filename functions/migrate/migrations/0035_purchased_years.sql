-- migrate:up
-- Which time an invoice paid for. A year's credits come month by month, long after its invoice: what is
-- refunded of the invoice is taken back of those months too.
ALTER TABLE billing.purchases
    ADD COLUMN provider_subscription_id text,
    ADD COLUMN period_start timestamptz,
    ADD COLUMN period_end timestamptz;

-- migrate:down
ALTER TABLE billing.purchases
    DROP COLUMN provider_subscription_id,
    DROP COLUMN period_start,
    DROP COLUMN period_end;
