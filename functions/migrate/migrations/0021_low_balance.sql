-- migrate:up
-- An event when credits run low, once per crossing, whatever took them: debit, hold, settle, claw-back,
-- adjustment or expiry.

ALTER TABLE credits.accounts ADD COLUMN low_balance_threshold bigint NOT NULL DEFAULT 20
    CHECK (low_balance_threshold >= 0);
ALTER TABLE credits.accounts ADD COLUMN is_low boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN credits.accounts.low_balance_threshold IS 'Less available than this is low; 0: never.';
COMMENT ON COLUMN credits.accounts.is_low IS 'As of the last commit; true at first, so that an empty account is no news.';
UPDATE credits.accounts
SET is_low = available < low_balance_threshold
WHERE is_low <> (available < low_balance_threshold);

CREATE FUNCTION credits.watch_balance() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
DECLARE
    v_account credits.accounts;
BEGIN
    UPDATE credits.accounts AS a
    SET is_low = NOT a.is_low
    WHERE a.organization_id = NEW.organization_id AND a.is_low <> (a.available < a.low_balance_threshold)
    RETURNING * INTO v_account;
    IF v_account.is_low THEN
        INSERT INTO platform.outbox (organization_id, type, payload)
        VALUES (v_account.organization_id, 'credits.low_balance', jsonb_build_object(
            'available', v_account.available, 'threshold', v_account.low_balance_threshold));
    END IF;
    RETURN NULL;
END
$$;
-- At the commit, so that what rises and falls inside an operation is no crossing. The condition is
-- evaluated with the update itself: nothing runs and nothing is queued where nothing was crossed.
CREATE CONSTRAINT TRIGGER accounts_low_balance
    AFTER UPDATE ON credits.accounts
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW
    WHEN (NEW.is_low <> (NEW.available < NEW.low_balance_threshold))
    EXECUTE FUNCTION credits.watch_balance();

CREATE FUNCTION credits.set_low_balance_threshold(p_organization_id uuid, p_threshold bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
    AS $$
BEGIN
    PERFORM tenancy.check_organization(p_organization_id);
    UPDATE credits.accounts AS a
    SET low_balance_threshold = p_threshold
    WHERE a.organization_id = p_organization_id;
    RETURN FOUND;
END
$$;
GRANT EXECUTE ON FUNCTION credits.set_low_balance_threshold(uuid, bigint) TO backplane_app, backplane_system;

-- migrate:down
DROP FUNCTION credits.set_low_balance_threshold(uuid, bigint);
DROP TRIGGER accounts_low_balance ON credits.accounts;
DROP FUNCTION credits.watch_balance();
ALTER TABLE credits.accounts DROP COLUMN is_low;
ALTER TABLE credits.accounts DROP COLUMN low_balance_threshold;
