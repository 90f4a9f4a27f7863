-- L1: a guarded relative update and its entry, on the ledger's tables and indexes, in one statement. It has
-- no price, no grants, no replay.
\set account case when :accounts > 100 then random_zipfian(1, :accounts, 1.1) else random(1, :accounts) end
WITH taken AS (
    UPDATE credits.accounts
    SET available = available - 1, version = version + 1, updated_at = clock_timestamp()
    WHERE organization_id = bench.account(:contestant, :account) AND available >= 1
    RETURNING *
)
INSERT INTO credits.entries
    (organization_id, version, kind, amount, available_after, held_after, debt_after, operation, quantity,
     unit_cost, idempotency_key, request_hash, actor)
SELECT organization_id, version, 'debit', -1, available, held, debt, 'ai_text_chat', 1,
       1, gen_random_uuid()::text, sha256('a request'), 'bench'
FROM taken
RETURNING id, available_after, created_at;
