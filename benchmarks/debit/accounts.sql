-- Accounts for each contestant, so that each is judged by its own, and the peers' tables: the Clerk and
-- credits template's balance and history, with its keys.
CREATE SCHEMA bench;
CREATE FUNCTION bench.account(contestant bigint, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT ('00000000-0000-7000-8' || lpad(to_hex(contestant), 3, '0') || '-' || lpad(to_hex(number), 12, '0'))::uuid
$$;
CREATE TABLE bench.credit_balances (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL UNIQUE,
    clerk_user_id text NOT NULL UNIQUE,
    credits_remaining bigint NOT NULL,
    last_synced_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE bench.usage_history (
    id uuid PRIMARY KEY DEFAULT platform.new_id(),
    user_id uuid NOT NULL,
    credit_balance_id uuid NOT NULL REFERENCES bench.credit_balances (id),
    operation_type text NOT NULL,
    credits_used bigint NOT NULL,
    details jsonb,
    "timestamp" timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT USAGE ON SCHEMA bench TO PUBLIC;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA bench TO PUBLIC;

-- Each account has a grant and so many debits of something free behind it: on a table of a few rows a session
-- plans to read it all, and keeps to that plan while it grows.
CREATE PROCEDURE bench.open(contestants bigint, accounts bigint, opening bigint, history bigint) LANGUAGE sql AS $$
    INSERT INTO tenancy.organizations (id, name)
    SELECT bench.account(c, n), 'bench' FROM generate_series(1, contestants) AS c, generate_series(1, accounts) AS n;
    INSERT INTO credits.accounts (organization_id, available, version)
    SELECT id, opening, 1 + history FROM tenancy.organizations WHERE name = 'bench';
    INSERT INTO credits.grants (organization_id, source, source_key, amount, remaining, priority)
    SELECT id, 'pack', 'bench', opening, opening, 50 FROM tenancy.organizations WHERE name = 'bench';
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, actor)
    SELECT id, 1, 'grant', opening, opening, 0, 0, 'system' FROM tenancy.organizations WHERE name = 'bench';
    INSERT INTO credits.entries
        (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
         unit_cost, allocations, idempotency_key, request_hash, actor)
    SELECT o.id, 1 + n, 'debit', 0, opening, 0, 0, 'ai_text_chat', 1,
           0, '{}', gen_random_uuid()::text, sha256('a request'), 'bench'
    FROM tenancy.organizations AS o, generate_series(1, history) AS n
    WHERE o.name = 'bench';
    INSERT INTO bench.credit_balances (id, user_id, clerk_user_id, credits_remaining)
    SELECT id, id, id::text, opening FROM tenancy.organizations WHERE name = 'bench';
    INSERT INTO bench.usage_history (user_id, credit_balance_id, operation_type, credits_used)
    SELECT o.id, o.id, 'AI_TEXT_CHAT', 0
    FROM tenancy.organizations AS o, generate_series(1, history) AS n
    WHERE o.name = 'bench';
$$;
