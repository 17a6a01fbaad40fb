-- Digests of rows that had none: SQLite's pages carry no checksum. Those of rows that are there already are filled in
-- by the migration; a row without one is believed.
-- Of an account: what only its operator changes. What it uses is sums, which are compared with what they sum.
ALTER TABLE accounts ADD COLUMN digest BYTEA;
-- Of a complete DAG: its root and what it holds.
ALTER TABLE dags ADD COLUMN digest BYTEA;
ALTER TABLE jobs ADD COLUMN digest BYTEA;
