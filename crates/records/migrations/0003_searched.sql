-- For how long a DAG was searched for in vain, in milliseconds: what `pin.give_up_after` is held against, in place of
-- the time that went by. It only grows.
ALTER TABLE dags ADD COLUMN searched BIGINT NOT NULL DEFAULT 0;
-- Of that, what came before its last progress.
ALTER TABLE dags ADD COLUMN searched_before BIGINT NOT NULL DEFAULT 0;
-- When its last attempt ended.
ALTER TABLE dags ADD COLUMN tried_at BIGINT;
-- What the DAG had been searched for when the pin joined it: no time of its own.
ALTER TABLE pins ADD COLUMN searched_before BIGINT NOT NULL DEFAULT 0;
