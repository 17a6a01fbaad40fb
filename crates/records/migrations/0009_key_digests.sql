-- A digest of what is kept for an Idempotency-Key, like those of step 8. Rows that are older have none and are believed:
-- they are gone within a day.
ALTER TABLE idempotency_keys ADD COLUMN digest BYTEA;
