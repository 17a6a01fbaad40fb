-- Portable to PostgreSQL: BIGINT, TEXT, BYTEA, partial indexes; no rowid, no triggers.
CREATE TABLE sequences (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO sequences (name, value) VALUES ('account', 0), ('token', 0), ('job', 0);

CREATE TABLE accounts (
    id BIGINT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    max_bytes BIGINT,
    max_pins BIGINT,
    suspended BIGINT NOT NULL,
    used_bytes BIGINT NOT NULL,
    used_pins BIGINT NOT NULL,
    last_created BIGINT NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE tokens (
    id BIGINT NOT NULL PRIMARY KEY,
    account BIGINT NOT NULL REFERENCES accounts (id),
    lookup TEXT NOT NULL,
    hash BYTEA NOT NULL,
    scopes TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT,
    revoked BIGINT NOT NULL,
    digest BYTEA NOT NULL
);
CREATE INDEX tokens_lookup ON tokens (lookup);
CREATE INDEX tokens_account ON tokens (account, revoked);

-- state: 0 waiting, 1 claimed, 2 complete, 3 idle (kept, wanted by no pin), 4 gone (its rows are history).
-- refs: pins that are not failed, and keeps.
CREATE TABLE dags (
    id BYTEA NOT NULL PRIMARY KEY,
    root BYTEA NOT NULL,
    state BIGINT NOT NULL,
    refs BIGINT NOT NULL,
    claimed_for BIGINT,
    blocks BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    next_at BIGINT,
    progress_at BIGINT NOT NULL,
    last_error TEXT,
    announced BIGINT NOT NULL
);
CREATE UNIQUE INDEX dags_live ON dags (root) WHERE state < 4;
CREATE INDEX dags_claimed ON dags (claimed_for) WHERE state = 1;
CREATE INDEX dags_parked ON dags (progress_at) WHERE state = 0 AND next_at IS NOT NULL;

-- status: 0 queued, 1 pinning, 2 pinned, 3 failed.
CREATE TABLE pins (
    id BYTEA NOT NULL PRIMARY KEY,
    account BIGINT NOT NULL REFERENCES accounts (id),
    created BIGINT NOT NULL,
    status BIGINT NOT NULL,
    cid_text TEXT NOT NULL,
    root BYTEA NOT NULL,
    name TEXT,
    folded TEXT,
    origins TEXT NOT NULL,
    meta TEXT NOT NULL,
    local_request BIGINT NOT NULL,
    dag BYTEA NOT NULL REFERENCES dags (id),
    reason TEXT,
    charged BIGINT NOT NULL,
    kept BIGINT NOT NULL,
    digest BYTEA NOT NULL
);
CREATE UNIQUE INDEX pins_created ON pins (account, created);
CREATE INDEX pins_status ON pins (account, status, created);
CREATE INDEX pins_root ON pins (account, root, status, created);
CREATE INDEX pins_name ON pins (account, name, status, created);
CREATE INDEX pins_dag ON pins (dag, status);

-- DAGs that a pin protects besides its own, until it is pinned. solid: the replaced pin was pinned.
CREATE TABLE keeps (
    pin BYTEA NOT NULL,
    dag BYTEA NOT NULL REFERENCES dags (id),
    solid BIGINT NOT NULL,
    PRIMARY KEY (pin, dag)
);
CREATE INDEX keeps_dag ON keeps (dag);

-- One row for each account that waits for a DAG. lane: 0 fresh, 1 retry, 2 woken.
CREATE TABLE waits (
    account BIGINT NOT NULL,
    dag BYTEA NOT NULL,
    lane BIGINT NOT NULL,
    next_at BIGINT NOT NULL,
    PRIMARY KEY (account, dag)
);
CREATE INDEX waits_turn ON waits (account, lane, next_at, dag);
CREATE INDEX waits_due ON waits (next_at);
CREATE INDEX waits_dag ON waits (dag);

-- Complete DAGs that a pin has joined since: settled by the writer's follow-up.
CREATE TABLE settles (dag BYTEA NOT NULL PRIMARY KEY);

CREATE TABLE origin_peers (
    peer TEXT NOT NULL,
    dag BYTEA NOT NULL,
    PRIMARY KEY (peer, dag)
);
CREATE INDEX origin_peers_dag ON origin_peers (dag);

-- Account 0 is the sum over all accounts.
CREATE TABLE pin_counts (
    account BIGINT NOT NULL,
    status BIGINT NOT NULL,
    pins BIGINT NOT NULL,
    PRIMARY KEY (account, status)
);

CREATE TABLE jobs (
    id BIGINT NOT NULL PRIMARY KEY,
    kind BIGINT NOT NULL,
    payload BYTEA NOT NULL
);

CREATE TABLE idempotency_keys (
    account BIGINT NOT NULL,
    key TEXT NOT NULL,
    body_hash BYTEA NOT NULL,
    answer TEXT NOT NULL,
    expires BIGINT NOT NULL,
    PRIMARY KEY (account, key)
);
CREATE INDEX idempotency_expires ON idempotency_keys (expires);
