-- L2: the call that ledger.debit makes.
\set account case when :accounts > 100 then random_zipfian(1, :accounts, 1.1) else random(1, :accounts) end
SELECT *
FROM credits.debit(bench.account(:contestant, :account), gen_random_uuid()::text, sha256('a request'),
                   'ai_text_chat', 1, 'bench', NULL);
