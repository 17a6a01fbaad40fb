-- Deals, the money that is set aside for them, providers, and events.

-- One row for each attempt to have one provider keep one replica of one piece. Amounts are decimal texts: attoFIL do
-- not fit into a BIGINT. due: when it is sent or asked after again, in ms; watch: the final epoch at which the chain is
-- asked next. forgiven: the operator lets its provider be asked for this piece again.
CREATE TABLE deals (
    id BYTEA NOT NULL PRIMARY KEY,
    aggregate BYTEA NOT NULL,
    slot BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    provider BIGINT NOT NULL,
    owner BIGINT NOT NULL,
    state TEXT NOT NULL,
    policy TEXT NOT NULL,
    piece BYTEA NOT NULL,
    size BIGINT NOT NULL,
    car_bytes BIGINT NOT NULL,
    root BYTEA NOT NULL,
    ipni BIGINT NOT NULL,
    price TEXT NOT NULL,
    collateral TEXT NOT NULL,
    cost TEXT NOT NULL,
    chosen_epoch BIGINT NOT NULL,
    start_epoch BIGINT NOT NULL,
    end_epoch BIGINT NOT NULL,
    signed BYTEA,
    signed_cid BYTEA,
    deal_id BIGINT,
    sector BIGINT,
    faulty BIGINT NOT NULL,
    locked BIGINT NOT NULL,
    forgiven BIGINT NOT NULL,
    missing_since BIGINT,
    code TEXT,
    error TEXT,
    created BIGINT NOT NULL,
    sent BIGINT,
    sent_epoch BIGINT,
    updated BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    -- Not in the digest: what others say, and when to look again.
    tries BIGINT NOT NULL,
    due BIGINT NOT NULL,
    watch BIGINT,
    word_status TEXT,
    word_error TEXT,
    word_deal_id BIGINT,
    word_received BIGINT,
    word_at BIGINT,
    pulled BIGINT NOT NULL,
    pulled_whole BIGINT NOT NULL
);
CREATE UNIQUE INDEX deals_slot ON deals (aggregate, slot, generation);
CREATE UNIQUE INDEX deals_piece ON deals (piece, slot, generation);
CREATE UNIQUE INDEX deals_signed ON deals (signed_cid);
-- Money once: two attempts for one slot are never on their way at the same time.
CREATE UNIQUE INDEX deals_one_open ON deals (aggregate, slot)
    WHERE state IN ('chosen', 'proposed', 'unknown', 'accepted');
-- For deals that are on the chain and in no row.
CREATE INDEX aggregates_piece ON aggregates (piece) WHERE piece IS NOT NULL;
CREATE INDEX deals_created ON deals (created, id);
CREATE INDEX deals_provider ON deals (provider, created, id);
CREATE INDEX deals_open ON deals (provider, id)
    WHERE deal_id IS NULL AND state IN ('proposed', 'unknown', 'accepted', 'refused');
CREATE INDEX deals_state ON deals (state, due, id);
CREATE INDEX deals_watch ON deals (watch, id) WHERE watch IS NOT NULL;
CREATE INDEX deals_on_chain ON deals (deal_id) WHERE deal_id IS NOT NULL;

-- How many deals there are in each state, and what they cost together: every change of a deal takes it along.
CREATE TABLE deal_counts (
    state TEXT NOT NULL PRIMARY KEY,
    deals BIGINT NOT NULL,
    cost TEXT NOT NULL
);

-- What was set aside under the caps: for a deal (its uuid) one row for each account that bears a share, for a message
-- (its intent) one row of account 0. taken = reserved + spent + released, in every row and every sum.
CREATE TABLE reservations (
    id TEXT NOT NULL,
    account BIGINT NOT NULL,
    provider BIGINT NOT NULL,
    day BIGINT NOT NULL,
    month BIGINT NOT NULL,
    taken TEXT NOT NULL,
    reserved TEXT NOT NULL,
    spent TEXT NOT NULL,
    released TEXT NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (id, account)
);

-- kind: 0 all, 1 a day, 2 an account, 3 an account's day, 4 a provider, 5 a month. who: the account or provider;
-- span: the day since 1970, or the month as 202612. What is released comes back to the day it was taken on.
CREATE TABLE sums (
    kind BIGINT NOT NULL,
    who BIGINT NOT NULL,
    span BIGINT NOT NULL,
    taken TEXT NOT NULL,
    reserved TEXT NOT NULL,
    spent TEXT NOT NULL,
    released TEXT NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (kind, who, span)
);

-- Providers that the operator knows. addresses and regions are the operator's, chain_addresses are the chain's word;
-- all three are JSON lists.
CREATE TABLE providers (
    id BIGINT NOT NULL PRIMARY KEY,
    source TEXT NOT NULL,
    addresses TEXT NOT NULL,
    regions TEXT NOT NULL,
    suspended BIGINT NOT NULL,
    suspended_why TEXT,
    owner BIGINT,
    peer TEXT,
    chain_addresses TEXT NOT NULL,
    sector_bytes BIGINT,
    chain_at BIGINT,
    ask_price TEXT,
    ask_min BIGINT,
    ask_max BIGINT,
    ask_expires BIGINT,
    ask_at BIGINT,
    score BIGINT NOT NULL,
    failures BIGINT NOT NULL,
    rests_until BIGINT,
    code TEXT,
    error TEXT,
    created BIGINT NOT NULL
);

-- What happened, for webhooks and streams. body is a JSON object.
CREATE TABLE events (
    id BIGINT NOT NULL PRIMARY KEY,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    account BIGINT,
    subject TEXT NOT NULL,
    body TEXT NOT NULL
);
INSERT INTO sequences (name, value) VALUES ('event', 0);

-- Single facts: the network's name, the highest head, the switch of spending, and the like.
CREATE TABLE facts (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL,
    at BIGINT NOT NULL,
    digest BYTEA NOT NULL
);
