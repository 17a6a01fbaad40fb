//! Pages of pins: keyset on `(account, created)`, never an offset.
//!
//! What the API filters by is turned into ranges, one for each combination of root (or name) and status, and
//! each range is read in order from one index and cut at the page's size. So a page costs what it shows, however
//! many pins there are; a sort over several statuses would read them all. Parts of names and meta have no index:
//! they scan the account in short steps, under a deadline, and compare here rather than by LIKE, whose folding
//! and wildcards differ between databases.

use std::time::Duration;

use floe_core::{AccountId, Clock, PinStatus, cid};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool};

use super::row::{Stored, code, db, num, pin_columns};
use crate::fold::fold;
use crate::{Error, NameMatch, PinFilter, PinPage, limits};

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
            let count = query.count(&mut tx, filter).await?;
            let pins = query.rows(&mut tx, query.before, query.after, query.limit).await?;
            tx.commit().await?;
            let pins = pins.into_iter().map(Stored::into_row).collect::<Result<_, _>>()?;
            Ok(PinPage { count, pins })
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
    async fn count(&self, conn: &mut SqliteConnection, filter: &PinFilter) -> Result<u64, Error> {
        let by_status_alone =
            self.roots.is_empty() && filter.name.is_none() && self.before.is_none() && self.after.is_none();
        let mut sql = QueryBuilder::new("SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) FROM (");
        if by_status_alone {
            sql.push("SELECT pins AS n FROM pin_counts WHERE account = ").push_bind(self.account);
            sql.push(" AND status IN (");
            let mut list = sql.separated(", ");
            self.statuses.iter().for_each(|status| {
                list.push_bind(code(*status));
            });
            sql.push(")");
        } else {
            for (i, range) in self.ranges().into_iter().enumerate() {
                sql.push(if i > 0 { " UNION ALL " } else { "" }).push("SELECT COUNT(*) AS n FROM pins p");
                self.push_where(&mut sql, range, self.before, self.after);
            }
        }
        sql.push(") counts");
        let count: i64 = sql.build_query_scalar().fetch_one(conn).await?;
        Ok(num(count))
    }

    async fn rows(
        &self,
        conn: &mut SqliteConnection,
        before: Option<i64>,
        after: Option<i64>,
        limit: u32,
    ) -> Result<Vec<Stored>, Error> {
        let order = if self.ascending { " ORDER BY created ASC" } else { " ORDER BY created DESC" };
        // Ids first, from the indexes alone; then the rows of one page.
        let mut sql = QueryBuilder::new(concat!(
            "SELECT ",
            pin_columns!(),
            "FROM pins p JOIN dags d ON d.id = p.dag WHERE p.id IN (SELECT id FROM ("
        ));
        for (i, range) in self.ranges().into_iter().enumerate() {
            sql.push(if i > 0 { " UNION ALL " } else { "" });
            sql.push("SELECT * FROM (SELECT p.id, p.created FROM pins p");
            self.push_where(&mut sql, range, before, after);
            sql.push(order).push(" LIMIT ").push_bind(i64::from(limit)).push(") r");
        }
        sql.push(") ids").push(order).push(" LIMIT ").push_bind(i64::from(limit)).push(")");
        sql.push(if self.ascending { " ORDER BY p.created ASC" } else { " ORDER BY p.created DESC" });
        let rows = sql.build().fetch_all(conn).await?;
        rows.iter().map(Stored::read).collect()
    }

    fn push_where(
        &self,
        sql: &mut QueryBuilder<Sqlite>,
        range: Range<'_>,
        before: Option<i64>,
        after: Option<i64>,
    ) {
        sql.push(" WHERE p.account = ").push_bind(self.account);
        sql.push(" AND p.status = ").push_bind(code(range.status));
        if let Some(root) = range.root {
            sql.push(" AND p.root = ").push_bind(root.to_vec());
        }
        if let Some(name) = &self.name {
            sql.push(" AND p.name = ").push_bind(name.clone());
        }
        if let Some(before) = before {
            sql.push(" AND p.created < ").push_bind(before);
        }
        if let Some(after) = after {
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
        let (mut before, mut after) = (query.before, query.after);
        let mut page = PinPage { count: 0, pins: Vec::new() };
        loop {
            if clock.monotonic() >= until {
                limits::hit("scan_deadline");
                return Err(Error::Deadline);
            }
            let mut conn = pool.acquire().await?;
            let step = u32::try_from(limits::SCAN_STEP).expect("a step is small");
            let rows = query.rows(&mut conn, before, after, step).await?;
            drop(conn);
            let Some(last) = rows.last().map(|row| row.created) else { return Ok(page) };
            if query.ascending {
                after = Some(last)
            } else {
                before = Some(last)
            }
            for row in rows.into_iter().filter(|row| self.name_matches(row)) {
                let row = row.into_row()?;
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

/// How many DAGs of the account are before this one, as far as it is counted.
pub(crate) async fn queue_position(conn: &mut SqliteConnection, pin: &Stored) -> Result<Option<u64>, Error> {
    if pin.status != PinStatus::Queued {
        return Ok(None);
    }
    let before = sqlx::query(
        "SELECT COUNT(*) FROM (SELECT 1 FROM waits w JOIN waits me ON me.account = w.account AND me.lane = w.lane \
         WHERE me.account = $1 AND me.dag = $2 AND (w.next_at < me.next_at OR (w.next_at = me.next_at AND w.dag < me.dag)) \
         LIMIT $3) b",
    )
    .bind(pin.account)
    .bind(super::row::key(pin.dag))
    .bind(limits::QUEUE_POSITION)
    .fetch_one(conn)
    .await?;
    Ok(Some(num(before.try_get(0)?)))
}
