-- migrate:up
-- How far a comparison of Stripe's list of events with the inbox has come.

CREATE TABLE billing.stripe_reconciliations (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    since timestamptz NOT NULL,
    until timestamptz NOT NULL,
    last_event_id text, -- the last of the pages that are done; NULL: none is
    listed bigint NOT NULL DEFAULT 0,
    replayed bigint NOT NULL DEFAULT 0, -- that the inbox had never seen
    late bigint NOT NULL DEFAULT 0, -- of these, the ones that should have come long before
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz
);
-- One at a time: runs at once share it.
CREATE UNIQUE INDEX stripe_reconciliations_open ON billing.stripe_reconciliations ((true)) WHERE finished_at IS NULL;
CALL platform.protect('billing.stripe_reconciliations');
GRANT INSERT, UPDATE ON billing.stripe_reconciliations TO backplane_system;

-- migrate:down
DROP TABLE billing.stripe_reconciliations;
