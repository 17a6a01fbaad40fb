-- What is asked of Filecoin for a pin: the policy's name and how many replicas; '' and 0 for a pin that is only hot.
ALTER TABLE pins ADD COLUMN policy TEXT NOT NULL DEFAULT '';
ALTER TABLE pins ADD COLUMN replicas BIGINT NOT NULL DEFAULT 0;
-- The policy of pins that are made with this token, where neither path nor meta names one.
ALTER TABLE tokens ADD COLUMN policy TEXT;
-- The most replicas that a pin of the account may ask for; none: what its policy says is the most.
ALTER TABLE accounts ADD COLUMN max_replicas BIGINT;
