-- Aggregates: pins that go to Filecoin together, what is in each piece, and who waits for one.

-- A DAG that waits to be packed, for all pins of one root, policy and number of replicas. What is larger than a piece is
-- cut into parts; `todo` is those that no aggregate holds, as JSON. capacity: what it was measured for; 0: not measured.
-- packed: nothing is left to do but to tell its pins which aggregates they are in.
CREATE TABLE cold_lots (
    id BYTEA NOT NULL PRIMARY KEY,
    policy TEXT NOT NULL,
    replicas BIGINT NOT NULL,
    root BYTEA NOT NULL,
    dag BYTEA NOT NULL,
    account BIGINT NOT NULL,
    since BIGINT NOT NULL,
    due BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    reason TEXT,
    capacity BIGINT NOT NULL,
    parts BIGINT NOT NULL,
    todo TEXT NOT NULL,
    packed BIGINT NOT NULL,
    digest BYTEA NOT NULL
);
CREATE UNIQUE INDEX cold_lots_root ON cold_lots (root, policy, replicas);
CREATE INDEX cold_lots_turn ON cold_lots (policy, replicas, account, since, id);
CREATE INDEX cold_lots_measure ON cold_lots (capacity, due);
CREATE INDEX cold_lots_packed ON cold_lots (id) WHERE packed = 1;

-- Pinned pins that wait for a lot to be packed.
CREATE TABLE cold_waits (
    pin BYTEA NOT NULL PRIMARY KEY,
    lot BYTEA NOT NULL REFERENCES cold_lots (id),
    account BIGINT NOT NULL,
    since BIGINT NOT NULL
);
CREATE INDEX cold_waits_lot ON cold_waits (lot, since, pin);

-- The number of the last aggregate that took something of an account: who was served longest ago comes first.
CREATE TABLE cold_turns (
    policy TEXT NOT NULL,
    replicas BIGINT NOT NULL,
    account BIGINT NOT NULL,
    nr BIGINT NOT NULL,
    PRIMARY KEY (policy, replicas, account)
);
INSERT INTO sequences (name, value) VALUES ('aggregate', 0);

-- nr: a short name, for the index of blocks. align: how it is laid out. fillers: the commitments of what lies between
-- segments. piece, size, root and packed are there from `packed` on.
CREATE TABLE aggregates (
    id BYTEA NOT NULL PRIMARY KEY,
    nr BIGINT NOT NULL UNIQUE,
    policy TEXT NOT NULL,
    replicas BIGINT NOT NULL,
    state TEXT NOT NULL,
    align BIGINT NOT NULL,
    least BIGINT NOT NULL,
    piece BYTEA,
    size BIGINT,
    car_bytes BIGINT NOT NULL,
    root BYTEA,
    fillers BYTEA,
    created BIGINT NOT NULL,
    packed BIGINT,
    digest BYTEA NOT NULL
);
CREATE INDEX aggregates_state ON aggregates (state, id);

-- What an aggregate holds of a DAG: all of it, or one of its parts. start: where its first section is in the CAR, in bytes.
-- place, size: its segment, in padded bytes.
CREATE TABLE aggregate_segments (
    aggregate BYTEA NOT NULL REFERENCES aggregates (id),
    n BIGINT NOT NULL,
    lot BYTEA NOT NULL,
    root BYTEA NOT NULL,
    dag BYTEA NOT NULL,
    account BIGINT NOT NULL,
    part BIGINT NOT NULL,
    parts BIGINT NOT NULL,
    first BIGINT NOT NULL,
    sections BIGINT NOT NULL,
    bytes BIGINT NOT NULL,
    start BIGINT NOT NULL,
    place BIGINT NOT NULL,
    size BIGINT NOT NULL,
    commitment BYTEA,
    digest BYTEA NOT NULL,
    PRIMARY KEY (aggregate, n)
);
CREATE INDEX aggregate_segments_root ON aggregate_segments (root);
CREATE INDEX aggregate_segments_lot ON aggregate_segments (lot);

-- The pins of a segment, also those that were removed since.
CREATE TABLE aggregate_pins (
    aggregate BYTEA NOT NULL,
    n BIGINT NOT NULL,
    pin BYTEA NOT NULL,
    account BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (aggregate, n, pin)
);
CREATE INDEX aggregate_pins_pin ON aggregate_pins (pin);
CREATE INDEX aggregate_pins_account ON aggregate_pins (account, aggregate, n, pin);

-- DAGs that an aggregate protects.
CREATE TABLE aggregate_holds (
    aggregate BYTEA NOT NULL,
    dag BYTEA NOT NULL REFERENCES dags (id),
    PRIMARY KEY (aggregate, dag)
);
CREATE INDEX aggregate_holds_dag ON aggregate_holds (dag);

-- Aggregates that need their blocks no longer, and have holds left: the writer's follow-up lets go of them.
CREATE TABLE aggregate_releases (aggregate BYTEA NOT NULL PRIMARY KEY);

-- The sections of a segment, in order, some thousand to a row. at: bytes of the segment's sections before these.
CREATE TABLE aggregate_sections (
    aggregate BYTEA NOT NULL,
    n BIGINT NOT NULL,
    chunk BIGINT NOT NULL,
    at BIGINT NOT NULL,
    sections BYTEA NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (aggregate, n, chunk)
);

-- Which rows of aggregate_sections have a block. key: the first eight bytes of its digest; the row has the whole.
CREATE TABLE cold_index (
    key BIGINT NOT NULL,
    nr BIGINT NOT NULL,
    n BIGINT NOT NULL,
    chunk BIGINT NOT NULL,
    PRIMARY KEY (key, nr, n, chunk)
);
