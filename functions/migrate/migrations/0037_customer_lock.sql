-- migrate:up
-- A customer under his lock in one round trip: a volatile function's statements see what was committed
-- while it waited, where those of a plain statement would see what stood before.
CREATE FUNCTION billing.lock_customer(
    p_provider billing.provider,
    p_customer_id text,
    p_subject text, -- the lock's name
    OUT organization_id uuid, -- all NULL: he is not known
    OUT deleted boolean
)
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_subject, 0));
    SELECT c.organization_id, c.deleted_at IS NOT NULL
    INTO lock_customer.organization_id, lock_customer.deleted
    FROM billing.customers AS c
    WHERE c.provider = p_provider AND c.provider_customer_id = p_customer_id;
END
$$;
GRANT EXECUTE ON FUNCTION billing.lock_customer(billing.provider, text, text) TO backplane_system;

-- migrate:down
DROP FUNCTION billing.lock_customer(billing.provider, text, text);
