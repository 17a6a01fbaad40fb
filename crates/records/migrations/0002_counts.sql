-- Counters by account and stretch of time (width in milliseconds; 0: all time, account 0: all accounts) take the
-- place of those by account and status: a list that is cut by time is counted without reading its pins.
CREATE TABLE counts (
    account BIGINT NOT NULL,
    width BIGINT NOT NULL,
    start BIGINT NOT NULL,
    queued BIGINT NOT NULL,
    pinning BIGINT NOT NULL,
    pinned BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    PRIMARY KEY (account, width, start)
);

INSERT INTO counts (account, width, start, queued, pinning, pinned, failed)
SELECT account, 16384, created - created % 16384,
    SUM(CASE status WHEN 0 THEN 1 ELSE 0 END), SUM(CASE status WHEN 1 THEN 1 ELSE 0 END),
    SUM(CASE status WHEN 2 THEN 1 ELSE 0 END), SUM(CASE status WHEN 3 THEN 1 ELSE 0 END)
FROM pins GROUP BY account, created - created % 16384;

INSERT INTO counts (account, width, start, queued, pinning, pinned, failed)
SELECT account, 33554432, start - start % 33554432, SUM(queued), SUM(pinning), SUM(pinned), SUM(failed)
FROM counts WHERE width = 16384 GROUP BY account, start - start % 33554432;

INSERT INTO counts (account, width, start, queued, pinning, pinned, failed)
SELECT account, 0, 0, SUM(queued), SUM(pinning), SUM(pinned), SUM(failed)
FROM counts WHERE width = 33554432 GROUP BY account;

INSERT INTO counts (account, width, start, queued, pinning, pinned, failed)
SELECT 0, 0, 0, COALESCE(SUM(queued), 0), COALESCE(SUM(pinning), 0), COALESCE(SUM(pinned), 0), COALESCE(SUM(failed), 0)
FROM counts WHERE width = 0;

DROP TABLE pin_counts;

-- What only keeps moments apart must not look like a way to find pins: SQLite took (account, created) for lists with
-- both `before` and `after`, and read every pin between them.
DROP INDEX pins_created;
CREATE UNIQUE INDEX pins_created ON pins (created, account);
