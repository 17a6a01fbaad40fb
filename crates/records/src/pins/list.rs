//! Pages of pins: keyset on `(account, created)`, never an offset.
//!
//! What the API filters by is turned into ranges, one for each combination of root (or name) and status, and
//! each range is read in order from one index and cut at the page's size. So a page costs what it shows, however
//! many pins there are; a sort over several statuses would read them all. Parts of names and meta have no index:
//! they scan the account in short steps, under a deadline, and compare here rather than by LIKE, whose folding
//! and wildcards differ between databases.
//!
//! A row that is damaged is left out of its page and of the count that comes with it, and named in the log: whoever
//! lists wants to see the others. Asked for by its id it is an error.

use std::collections::HashMap;
use std::time::Duration;

use floe_core::{AccountId, Clock, PinStatus, cid};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool};
use uuid::Uuid;

use super::counts;
use super::row::{Stored, code, db, intact, key, num, select_pins};
use crate::fold::fold;
use crate::{Error, NameMatch, PinFilter, PinPage, PinRow, limits};

/// One page.
pub(crate) async fn page(
    pool: &SqlitePool,
    clock: &dyn Clock,
    account: AccountId,
    filter: &PinFilter,
) -> Result<PinPage, Error> {
    if filter.cids.len() > limits::CIDS_PER_FILTER {
        limits::hit("cids_per_filter");
        return Err(Error::Conflict(format!("a filter has at most {} CIDs", limits::CIDS_PER_FILTER)));
    }
    let query = Query::of(account, filter);
    match Scan::of(filter) {
        Some(scan) => scan.run(pool, clock, &query).await,
        None => {
            // One snapshot for both, so that a pager never sees a count that its page contradicts.
            let mut tx = pool.begin().await?;
            let count = query.count(&mut tx).await?;
            let (pins, damaged) = query.page(&mut tx).await?;
            tx.commit().await?;
            Ok(PinPage { count: count.saturating_sub(damaged), pins })
        }
    }
}

struct Query {
    account: i64,
    roots: Vec<Vec<u8>>,
    name: Option<String>,
    statuses: Vec<PinStatus>,
    before: Option<i64>,
    after: Option<i64>,
    ascending: bool,
    limit: u32,
}

/// The time that is left to read, without its ends.
#[derive(Clone, Copy)]
struct Window {
    before: Option<i64>,
    after: Option<i64>,
}

/// Some rows in their order.
struct Step {
    rows: Vec<Stored>,
    /// How many there were with those that are left out.
    found: usize,
    /// What is left behind them; `None` where there was no row.
    rest: Option<Window>,
}

/// The equal part of an index.
#[derive(Clone, Copy)]
struct Range<'a> {
    root: Option<&'a [u8]>,
    status: PinStatus,
}

impl Query {
    fn of(account: AccountId, filter: &PinFilter) -> Self {
        let mut roots: Vec<Vec<u8>> = filter.cids.iter().map(|cid| cid::canonical(cid).to_bytes()).collect();
        roots.sort();
        roots.dedup();
        let mut statuses = filter.statuses.clone();
        statuses.sort();
        statuses.dedup();
        if statuses.is_empty() {
            statuses.push(PinStatus::Pinned);
        }
        if filter.limit > limits::PAGE {
            limits::hit("page");
        }
        Self {
            account: account.0,
            roots,
            name: match &filter.name {
                Some((NameMatch::Exact, name)) => Some(name.clone()),
                _ => None,
            },
            statuses,
            before: filter.before.map(|at| db(at.as_millis())),
            after: filter.after.map(|at| db(at.as_millis())),
            ascending: filter.after.is_some() && filter.before.is_none(),
            limit: filter.limit.clamp(1, limits::PAGE),
        }
    }

    fn ranges(&self) -> Vec<Range<'_>> {
        let roots: Vec<Option<&[u8]>> = match self.roots.as_slice() {
            [] => vec![None],
            roots => roots.iter().map(|root| Some(root.as_slice())).collect(),
        };
        let of_root = |root| self.statuses.iter().map(move |status| Range { root, status: *status });
        roots.into_iter().flat_map(of_root).collect()
    }

    /// All that match, `before` and `after` included (M14).
    async fn count(&self, conn: &mut SqliteConnection) -> Result<u64, Error> {
        if self.roots.is_empty() && self.name.is_none() {
            return counts::between(conn, self.account, &self.statuses, self.after, self.before).await;
        }
        let mut sql = QueryBuilder::new("SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) FROM (");
        for (i, range) in self.ranges().into_iter().enumerate() {
            sql.push(if i > 0 { " UNION ALL " } else { "" }).push("SELECT COUNT(*) AS n FROM pins p");
            self.push_where(&mut sql, range, Window { before: self.before, after: self.after });
        }
        sql.push(") counts");
        let count: i64 = sql.build_query_scalar().fetch_one(conn).await?;
        Ok(num(count))
    }

    /// The page, and how many damaged rows were passed over. It is full while there are pins to fill it with: a pager
    /// takes a short page for the last one.
    async fn page(&self, conn: &mut SqliteConnection) -> Result<(Vec<PinRow>, u64), Error> {
        let (mut pins, mut damaged) = (Vec::new(), 0);
        let mut window = Window { before: self.before, after: self.after };
        loop {
            let wanted = self.limit - u32::try_from(pins.len()).expect("a page is small");
            let step = self.step(conn, window, wanted).await?;
            let (found, known) = (step.found, pins.len());
            pins.extend(step.rows.into_iter().filter_map(|row| intact(row.into_row())));
            let left_out = (known + found - pins.len()) as u64;
            damaged += left_out;
            match step.rest {
                Some(rest) if left_out > 0 => window = rest,
                _ => return Ok((pins, damaged)),
            }
            if damaged > limits::DAMAGED_PER_PAGE {
                limits::hit("damaged_per_page");
                return Err(Error::Damaged(format!(
                    "more than {} rows of this page are damaged: restore the database from a backup",
                    limits::DAMAGED_PER_PAGE
                )));
            }
        }
    }

    /// The next rows of a window, up to `limit`.
    async fn step(&self, conn: &mut SqliteConnection, window: Window, limit: u32) -> Result<Step, Error> {
        let found = self.select(window, limit).build().fetch_all(conn).await?;
        let rest = found.iter().rev().find_map(|row| self.behind(window, row));
        if rest.is_none() && !found.is_empty() {
            return Err(Error::Damaged(
                "an index of the pins is damaged: restore the database from a backup".into(),
            ));
        }
        let rows: Vec<Stored> = found.iter().filter_map(|row| intact(Stored::read(row))).collect();
        Ok(Step { found: found.len(), rows, rest })
    }

    fn select(&self, window: Window, limit: u32) -> QueryBuilder<Sqlite> {
        let order = if self.ascending { " ORDER BY created ASC" } else { " ORDER BY created DESC" };
        // Ids first, so that rows are read for one page alone, however many ranges there are.
        let mut sql = QueryBuilder::new(select_pins!("WHERE p.id IN (SELECT id FROM ("));
        for (i, range) in self.ranges().into_iter().enumerate() {
            sql.push(if i > 0 { " UNION ALL " } else { "" });
            sql.push("SELECT * FROM (SELECT p.id, p.created FROM pins p");
            self.push_where(&mut sql, range, window);
            sql.push(order).push(" LIMIT ").push_bind(i64::from(limit)).push(") r");
        }
        sql.push(") ids").push(order).push(" LIMIT ").push_bind(i64::from(limit)).push(")");
        sql.push(if self.ascending { " ORDER BY p.created ASC" } else { " ORDER BY p.created DESC" });
        sql
    }

    /// What is left of a window behind a row. `None` where the row says another time than the index that it was found
    /// by: going on from there could go round in a circle.
    fn behind(&self, window: Window, row: &SqliteRow) -> Option<Window> {
        let at: i64 = row.try_get("created").ok()?;
        let inside =
            window.before.is_none_or(|before| at < before) && window.after.is_none_or(|after| at > after);
        inside.then_some(if self.ascending {
            Window { after: Some(at), ..window }
        } else {
            Window { before: Some(at), ..window }
        })
    }

    fn push_where(&self, sql: &mut QueryBuilder<Sqlite>, range: Range<'_>, window: Window) {
        sql.push(" WHERE p.account = ").push_bind(self.account);
        sql.push(" AND p.status = ").push_bind(code(range.status));
        if let Some(root) = range.root {
            sql.push(" AND p.root = ").push_bind(root.to_vec());
        }
        if let Some(name) = &self.name {
            sql.push(" AND p.name = ").push_bind(name.clone());
        }
        if let Some(before) = window.before {
            sql.push(" AND p.created < ").push_bind(before);
        }
        if let Some(after) = window.after {
            sql.push(" AND p.created > ").push_bind(after);
        }
    }
}

/// What no index answers.
struct Scan<'a> {
    name: Option<(NameMatch, String)>,
    filter: &'a PinFilter,
}

impl<'a> Scan<'a> {
    fn of(filter: &'a PinFilter) -> Option<Self> {
        let name = match &filter.name {
            Some((NameMatch::Exact, _)) | None => None,
            Some((NameMatch::Partial, part)) => Some((NameMatch::Partial, part.clone())),
            Some((how, text)) => Some((*how, fold(text))),
        };
        (name.is_some() || !filter.meta.is_empty()).then_some(Self { name, filter })
    }

    /// Steps through the account's pins. Each step is a read of its own, so that no long reader holds up the
    /// WAL; pins that come and go meanwhile may be seen or not.
    async fn run(&self, pool: &SqlitePool, clock: &dyn Clock, query: &Query) -> Result<PinPage, Error> {
        let until = clock.monotonic() + limits::SCAN_DEADLINE;
        self.run_until(pool, clock, query, until).await
    }

    async fn run_until(
        &self,
        pool: &SqlitePool,
        clock: &dyn Clock,
        query: &Query,
        until: Duration,
    ) -> Result<PinPage, Error> {
        let mut window = Window { before: query.before, after: query.after };
        let mut page = PinPage { count: 0, pins: Vec::new() };
        loop {
            if clock.monotonic() >= until {
                limits::hit("scan_deadline");
                return Err(Error::Deadline);
            }
            let mut conn = pool.acquire().await?;
            let limit = u32::try_from(limits::SCAN_STEP).expect("a step is small");
            let step = query.step(&mut conn, window, limit).await?;
            drop(conn);
            let Some(rest) = step.rest else { return Ok(page) };
            window = rest;
            let named = step.rows.into_iter().filter(|row| self.name_matches(row));
            for row in named.filter_map(|row| intact(row.into_row())) {
                if self.filter.meta.iter().all(|(key, value)| row.spec.meta.get(key) == Some(value)) {
                    page.count += 1;
                    if page.pins.len() < query.limit as usize {
                        page.pins.push(row);
                    }
                }
            }
        }
    }

    fn name_matches(&self, row: &Stored) -> bool {
        let Some((how, text)) = &self.name else { return true };
        let (name, folded) = (row.name.as_deref(), row.folded.as_deref());
        match how {
            NameMatch::Exact => name == Some(text),
            NameMatch::Partial => name.is_some_and(|name| name.contains(text)),
            NameMatch::IExact => folded == Some(text),
            NameMatch::IPartial => folded.is_some_and(|folded| folded.contains(text)),
        }
    }
}

/// One pin. While it is queued, with how many DAGs of its account are before its own, as far as that is counted.
pub(crate) async fn one(conn: &mut SqliteConnection, account: i64, id: Uuid) -> Result<PinRow, Error> {
    let row = sqlx::query(select_pins!(
        ", CASE p.status WHEN 0 THEN (SELECT COUNT(*) FROM (SELECT 1 FROM waits w \
         JOIN waits me ON me.account = w.account AND me.lane = w.lane WHERE me.account = p.account AND me.dag = p.dag \
         AND (w.next_at, w.dag) < (me.next_at, me.dag) LIMIT $3) b) END AS place",
        "WHERE p.id = $1 AND p.account = $2"
    ))
    .bind(key(id))
    .bind(account)
    .bind(limits::QUEUE_POSITION)
    .fetch_optional(conn)
    .await?;
    let row = row.ok_or(Error::NotFound)?;
    let mut pin = Stored::read(&row)?.into_row()?;
    pin.progress.queue_position = row.try_get::<Option<i64>, _>("place")?.map(num);
    Ok(pin)
}

/// The same for the pins of a page: one look at the account's queue, as far as positions are counted.
pub(crate) async fn queue_positions(
    conn: &mut SqliteConnection,
    account: AccountId,
    pins: &mut [PinRow],
) -> Result<(), Error> {
    let queued: Vec<Vec<u8>> =
        pins.iter().filter(|pin| pin.status == PinStatus::Queued).map(|pin| key(pin.dag)).collect();
    let mut places = HashMap::new();
    for some in queued.chunks(limits::PLACES_PER_STATEMENT) {
        // Only the places that are asked for leave the database: handing over a thousand rows costs more than all the rest
        // of a page.
        let mut sql = QueryBuilder::<Sqlite>::new(
            "SELECT dag, place FROM (SELECT dag, ROW_NUMBER() OVER (ORDER BY next_at, dag) AS place FROM waits \
             WHERE account = ",
        );
        sql.push_bind(account.0).push(" AND lane = ").push_bind(crate::dags::FRESH);
        sql.push(" ORDER BY next_at, dag LIMIT ")
            .push_bind(limits::QUEUE_POSITION)
            .push(") q WHERE dag IN (");
        let mut list = sql.separated(", ");
        some.iter().for_each(|dag| {
            list.push_bind(dag.clone());
        });
        sql.push(")");
        let rows: Vec<(Vec<u8>, i64)> = sql.build_query_as().fetch_all(&mut *conn).await?;
        places.extend(rows.into_iter().map(|(dag, place)| (dag, num(place - 1))));
    }
    // One behind those that are counted, or just being taken up, is queued and no more is said.
    for pin in pins.iter_mut().filter(|pin| pin.status == PinStatus::Queued) {
        pin.progress.queue_position = places.get(&key(pin.dag)[..]).copied();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use floe_core::{Cid, Timestamp};
    use sqlx::{AssertSqlSafe, Connection as _};

    use super::*;

    /// With both ends given, SQLite took the index that only keeps moments apart and looked at every pin between them:
    /// a page of the failed pins of a busy month read all of the month.
    #[tokio::test]
    async fn every_range_is_read_from_the_index_made_for_it() {
        let mut conn = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        crate::migrate::migrate(&mut conn).await.unwrap();
        let moments = [None, Some(Timestamp::from_millis(9))];
        let cids: Vec<Cid> = vec![cid::parse("bafkqaaa").unwrap()];
        let kinds = [
            ("pins_status", PinFilter::default()),
            ("pins_root", PinFilter { cids, ..PinFilter::default() }),
            ("pins_name", PinFilter { name: Some((NameMatch::Exact, "x".into())), ..PinFilter::default() }),
        ];
        for (index, kind) in kinds {
            for (before, after) in moments.into_iter().flat_map(|b| moments.map(|a| (b, a))) {
                for statuses in [vec![PinStatus::Failed], PinStatus::ALL.to_vec()] {
                    let filter = PinFilter { before, after, statuses, limit: 10, ..kind.clone() };
                    let query = Query::of(AccountId(1), &filter);
                    let window = Window { before: query.before, after: query.after };
                    let explain = format!("EXPLAIN QUERY PLAN {}", query.select(window, 10).sql().as_str());
                    let plan = sqlx::query(AssertSqlSafe(explain)).fetch_all(&mut conn).await.unwrap();
                    let lines: Vec<String> = plan.iter().map(|row| row.get(3)).collect();
                    let read = lines.iter().filter(|line| line.contains("account=?"));
                    let (made_for, others): (Vec<_>, Vec<_>) = read.partition(|line| line.contains(index));
                    assert_eq!((made_for.len(), others), (filter.statuses.len(), Vec::new()), "{filter:?}");
                    assert!(!lines.iter().any(|line| line.contains("SCAN p")), "{filter:?}: {lines:?}");
                }
            }
        }
    }
}
