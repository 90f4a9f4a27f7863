-- L0: what one row's update costs, and nothing else. No debit: nothing is checked or recorded.
\set account case when :accounts > 100 then random_zipfian(1, :accounts, 1.1) else random(1, :accounts) end
UPDATE credits.accounts
SET available = available - 1, version = version + 1, updated_at = clock_timestamp()
WHERE organization_id = bench.account(:contestant, :account);
