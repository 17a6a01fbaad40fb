-- Messages that were signed, and what is known of the chain.

-- What was signed for an intent: a number of the wallet's is used once. A row is never deleted: it is what keeps a
-- restored node from paying twice.
CREATE TABLE messages (
    intent TEXT NOT NULL PRIMARY KEY,
    wallet TEXT NOT NULL,
    nonce BIGINT NOT NULL,
    -- The head when it was signed.
    since BIGINT NOT NULL,
    -- 0 signed, 1 pooled, 2 refused, 3 included, 4 final, 5 missing.
    step BIGINT NOT NULL,
    -- Of 3 and 4: which version, and where; of 4: what came of it.
    version BIGINT,
    height BIGINT,
    exit_code BIGINT,
    -- Of 2: what the node said.
    reason TEXT,
    digest BYTEA NOT NULL,
    UNIQUE (wallet, nonce)
);
-- Those that are not final, which are few.
CREATE INDEX messages_open ON messages (wallet, nonce) WHERE step <> 4;

-- The signed bytes, from the first to the last replacement.
CREATE TABLE message_versions (
    intent TEXT NOT NULL REFERENCES messages (intent),
    number BIGINT NOT NULL,
    cid BYTEA NOT NULL UNIQUE,
    bytes BYTEA NOT NULL,
    -- The head when it was last pushed.
    pushed_at BIGINT,
    digest BYTEA NOT NULL,
    PRIMARY KEY (intent, number)
);

-- The network that this node belongs to, and the highest head that it saw. One row.
CREATE TABLE chain (
    id BIGINT NOT NULL PRIMARY KEY,
    network TEXT NOT NULL,
    genesis BYTEA NOT NULL,
    highest BIGINT NOT NULL,
    digest BYTEA NOT NULL
);
