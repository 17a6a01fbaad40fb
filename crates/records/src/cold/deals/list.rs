//! Deals by what they are looked for.

use std::collections::{BTreeMap, BTreeSet};

use floe_core::cold::{DealUuid, ProviderWord};
use floe_core::{
    AccountId, ActorId, AggregateEvent, AttoFil, DealState, Epoch, PieceCid, RequestId, Timestamp,
};
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, QueryBuilder, SqliteConnection};
use uuid::Uuid;

use super::row::{DealRow, SELECT};
use super::{PullTarget, id_of, steps};
use crate::cold::{aggregates, events};
use crate::pins::row::{db, intact, key, num};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, limits};

/// What deals are listed by. All conditions hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DealFilter {
    /// Of these aggregates; `None`: of any.
    pub aggregates: Option<Vec<Uuid>>,
    /// Of aggregates that a pin of this account is, or was, in.
    pub account: Option<AccountId>,
    /// With this provider.
    pub provider: Option<ActorId>,
    /// In one of these states; empty: in any.
    pub states: Vec<DealState>,
    /// Older than this one.
    pub before: Option<(Timestamp, DealUuid)>,
    /// 1 to [`limits::PAGE`].
    pub most: u32,
}

/// What deals will lock in escrow once they are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpublished {
    /// Not published at finality: those that are signed and that a slot waits for.
    pub signed: AttoFil,
    /// All that a slot waits for.
    pub waited_for: AttoFil,
    /// With those that were refused, and that may be published all the same.
    pub all: AttoFil,
}

/// Each given what the market locks already for deals that are published and not yet final: it is in no row.
impl Unpublished {
    /// What of escrow is signed away.
    pub fn signed(&self, underway: AttoFil) -> AttoFil {
        self.signed.checked_sub(underway).unwrap_or_default()
    }

    /// What free escrow may be locked for yet, by those too that were refused: it must not leave.
    pub fn spoken_for(&self, underway: AttoFil) -> AttoFil {
        self.all.checked_sub(underway).unwrap_or_default()
    }

    /// What free escrow is needed for.
    pub fn needed(&self, underway: AttoFil) -> AttoFil {
        self.waited_for.checked_sub(underway).unwrap_or_default()
    }
}

impl Records {
    /// One deal.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] if its digest does not hold.
    pub async fn deal(&self, deal: DealUuid) -> Result<DealRow, Error> {
        steps::one(&mut *self.reader().await?, deal).await
    }

    /// A page of deals, the newest first. Damaged rows are left out, and named in the log.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn deals(&self, filter: DealFilter) -> Result<Vec<DealRow>, Error> {
        page(&mut *self.reader().await?, &filter).await
    }

    /// All attempts for an aggregate, by slot and generation.
    ///
    /// # Errors
    /// [`Error::Damaged`]: what is decided on them needs all of them.
    pub async fn deals_of_aggregate(&self, id: Uuid) -> Result<Vec<DealRow>, Error> {
        of_aggregate(&mut *self.reader().await?, id).await
    }

    /// All attempts for the aggregates that a pin is in, those of one after those of another.
    ///
    /// # Errors
    /// As [`Records::deals_of_aggregate`].
    pub async fn deals_of_pin(&self, pin: RequestId) -> Result<Vec<DealRow>, Error> {
        let mut deals = Vec::new();
        for aggregate in self.aggregates_of_pin(pin).await? {
            deals.extend(self.deals_of_aggregate(aggregate).await?);
        }
        Ok(deals)
    }

    /// Gives an aggregate up that no replica is left of, none on its way, and whose blocks are gone.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn aggregate_lost(&self, id: Uuid) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| {
            Box::pin(async move {
                let row = aggregates::load(&mut tx.conn, id).await?;
                let deals = of_aggregate(&mut tx.conn, id).await?;
                let waits = deals.iter().any(|deal| deal.state.holds_slot());
                if waits || row.state.after(AggregateEvent::NoneLeft).is_err() {
                    return Ok(());
                }
                aggregates::step(tx, id, AggregateEvent::NoneLeft).await?;
                let body = serde_json::json!({ "replicas": row.replicas, "policy": row.policy });
                events::insert(tx, "aggregate.lost", None, &id.to_string(), &body).await
            })
        })
        .await
    }

    /// What is pulled for a deal, and whether it may be.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn pull_target(&self, deal: DealUuid) -> Result<Option<PullTarget>, Error> {
        let row = match self.deal(deal).await {
            Ok(row) => row,
            Err(Error::NotFound) => return Ok(None),
            Err(error) => return Err(error),
        };
        let waits = row.state.is_exposed() && row.signed.is_some() && row.deal_id.is_none();
        let head = self.highest_head().await?;
        let is_live = waits && head.is_none_or(|head| head < row.start);
        Ok(Some(PullTarget { aggregate: row.aggregate, is_live }))
    }

    /// Our own log of what was pulled: how far, and whether to the end.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn note_pull(&self, deal: DealUuid, sent_to: u64, whole: bool) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| Box::pin(steps::note_pull(tx, deal, sent_to, whole))).await
    }

    /// What the provider says, and when it is asked again.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn note_word(&self, deal: DealUuid, word: ProviderWord, due: Timestamp) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let word = word.clone();
            Box::pin(async move { note_word(tx, deal, &word, due).await })
        })
        .await
    }

    /// When a deal is sent, or asked after, again.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn deal_due(&self, deal: DealUuid, due: Timestamp) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                sqlx::query("UPDATE deals SET due = $2 WHERE id = $1")
                    .bind(id_of(deal))
                    .bind(db(due.as_millis()))
                    .execute(&mut tx.conn)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// The chain is asked about a deal again from this final epoch on.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn watch_deal(&self, deal: DealUuid, from: Epoch) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                sqlx::query("UPDATE deals SET watch = $2 WHERE id = $1 AND watch IS NOT NULL")
                    .bind(id_of(deal))
                    .bind(from.get())
                    .execute(&mut tx.conn)
                    .await?;
                Ok(())
            })
        })
        .await
    }

    /// Deals in a state that are due, those that waited longest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn deals_due(
        &self,
        state: DealState,
        now: Timestamp,
        most: u32,
    ) -> Result<Vec<DealRow>, Error> {
        in_state(&mut *self.reader().await?, state, now, most.min(limits::PAGE)).await
    }

    /// Deals that the chain is to be asked about at this final epoch.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn deals_to_watch(&self, final_epoch: Epoch, most: u32) -> Result<Vec<DealRow>, Error> {
        let sql =
            format!("{SELECT} WHERE d.watch IS NOT NULL AND d.watch <= $1 ORDER BY d.watch, d.id LIMIT $2");
        let rows = sqlx::query(AssertSqlSafe(sql))
            .bind(final_epoch.get())
            .bind(i64::from(most.min(limits::PAGE)))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        Ok(whole(&rows))
    }

    /// Deals with a provider whose bytes are out and that the chain does not have yet: those for this piece, where it is
    /// known which. No piece has as many as a page; of all pieces a provider may have more.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn unpublished_of(
        &self,
        provider: ActorId,
        piece: Option<&PieceCid>,
    ) -> Result<Vec<DealRow>, Error> {
        let mut sql = QueryBuilder::new(SELECT);
        sql.push("WHERE d.provider = ").push_bind(db(provider.get()));
        if let Some(piece) = piece {
            sql.push(" AND d.piece = ").push_bind(piece.commitment().to_vec());
        }
        sql.push(
            " AND d.deal_id IS NULL AND d.state IN ('proposed', 'unknown', 'accepted', 'refused') \
             ORDER BY d.id LIMIT ",
        );
        let rows =
            sql.push_bind(i64::from(limits::PAGE)).build().fetch_all(&mut *self.reader().await?).await?;
        Ok(whole(&rows))
    }

    /// The deals of this number on the chain, as these rows know them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn deals_on_chain(&self, deal_id: u64) -> Result<Vec<DealRow>, Error> {
        let sql = format!("{SELECT} WHERE d.deal_id = $1 ORDER BY d.id");
        let rows =
            sqlx::query(AssertSqlSafe(sql)).bind(db(deal_id)).fetch_all(&mut *self.reader().await?).await?;
        Ok(whole(&rows))
    }

    /// What deals will lock in escrow once they are published.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub async fn unpublished_cost(&self) -> Result<Unpublished, Error> {
        let mut conn = self.reader().await?;
        let states: Vec<(String, String)> =
            sqlx::query_as("SELECT state, cost FROM deal_counts").fetch_all(&mut *conn).await?;
        // Few: they wait for escrow.
        let unsigned: Vec<String> =
            sqlx::query_scalar("SELECT cost FROM deals WHERE state = 'chosen' AND signed_cid IS NULL")
                .fetch_all(&mut *conn)
                .await?;
        drop(conn);
        let of = |wanted: &[DealState]| {
            let costs = states.iter().filter(|(state, _)| wanted.iter().any(|w| w.as_str() == state));
            sum(costs.map(|(_, cost)| cost))
        };
        let waits = [DealState::Chosen, DealState::Proposed, DealState::Unknown, DealState::Accepted];
        let waited_for = of(&waits)?;
        Ok(Unpublished {
            signed: waited_for.checked_sub(sum(&unsigned)?).unwrap_or_default(),
            waited_for,
            all: plus(waited_for, of(&[DealState::Refused])?)?,
        })
    }

    /// Whether all DAGs of an aggregate are here: only then can a provider pull it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn is_aggregate_here(&self, id: Uuid) -> Result<bool, Error> {
        let missing: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM aggregate_segments s WHERE s.aggregate = $1 AND NOT EXISTS \
             (SELECT 1 FROM dags d WHERE d.root = s.root AND d.state < 4 AND d.state = 2)",
        )
        .bind(key(id))
        .fetch_one(&mut *self.reader().await?)
        .await?;
        Ok(missing == 0)
    }

    /// Numbers of deals that failed after they were published, or ran to their end, and of whose price the market still
    /// locks what is left, for `floe wallet settle`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn locked_deals(&self) -> Result<Vec<u64>, Error> {
        let ids: Vec<Option<i64>> =
            sqlx::query_scalar("SELECT deal_id FROM deals WHERE locked = 1 ORDER BY id LIMIT $1")
                .bind(i64::from(limits::PAGE))
                .fetch_all(&mut *self.reader().await?)
                .await?;
        Ok(ids.into_iter().flatten().map(num).collect())
    }

    /// How many deals there are in each state.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn deal_counts(&self) -> Result<BTreeMap<DealState, u64>, Error> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT state, deals FROM deal_counts")
            .fetch_all(&mut *self.reader().await?)
            .await?;
        let mut counts: BTreeMap<_, _> = DealState::ALL.into_iter().map(|state| (state, 0)).collect();
        let known = rows.into_iter().filter_map(|(word, n)| Some((DealState::parse(&word)?, num(n))));
        counts.extend(known);
        Ok(counts)
    }
}

fn sum<'a>(costs: impl IntoIterator<Item = &'a String>) -> Result<AttoFil, Error> {
    costs.into_iter().try_fold(AttoFil::ZERO, |sum, cost| {
        plus(sum, cost.parse().map_err(|odd| Error::Damaged(format!("what a deal costs: {odd}")))?)
    })
}

fn plus(sum: AttoFil, cost: AttoFil) -> Result<AttoFil, Error> {
    sum.checked_add(cost).ok_or_else(|| Error::Damaged("deals cost more than all FIL that there is".into()))
}

async fn page(conn: &mut SqliteConnection, filter: &DealFilter) -> Result<Vec<DealRow>, Error> {
    let mut sql = QueryBuilder::new(SELECT);
    sql.push("WHERE 1 = 1");
    if let Some(aggregates) = &filter.aggregates {
        if aggregates.is_empty() {
            return Ok(Vec::new());
        }
        sql.push(" AND d.aggregate IN (");
        let mut list = sql.separated(", ");
        aggregates.iter().take(limits::AGGREGATES_PER_FILTER).for_each(|id| {
            list.push_bind(key(*id));
        });
        sql.push(")");
    }
    if let Some(account) = filter.account {
        sql.push(
            " AND EXISTS (SELECT 1 FROM aggregate_pins p WHERE p.aggregate = d.aggregate AND p.account = ",
        );
        sql.push_bind(account.0).push(")");
    }
    if let Some(provider) = filter.provider {
        sql.push(" AND d.provider = ").push_bind(db(provider.get()));
    }
    if !filter.states.is_empty() {
        sql.push(" AND d.state IN (");
        let mut list = sql.separated(", ");
        filter.states.iter().for_each(|state| {
            list.push_bind(state.as_str());
        });
        sql.push(")");
    }
    if let Some((created, id)) = filter.before {
        sql.push(" AND (d.created < ").push_bind(db(created.as_millis()));
        sql.push(" OR (d.created = ").push_bind(db(created.as_millis()));
        sql.push(" AND d.id < ").push_bind(id_of(id)).push("))");
    }
    sql.push(" ORDER BY d.created DESC, d.id DESC LIMIT ");
    sql.push_bind(i64::from(filter.most.clamp(1, limits::PAGE)));
    Ok(whole(&sql.build().fetch_all(conn).await?))
}

pub(in crate::cold) async fn of_aggregate(
    conn: &mut SqliteConnection,
    id: Uuid,
) -> Result<Vec<DealRow>, Error> {
    let sql = format!("{SELECT} WHERE d.aggregate = $1 ORDER BY d.slot, d.generation");
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(key(id)).fetch_all(conn).await?;
    rows.iter().map(DealRow::read).collect()
}

pub(super) async fn in_state(
    conn: &mut SqliteConnection,
    state: DealState,
    now: Timestamp,
    most: u32,
) -> Result<Vec<DealRow>, Error> {
    let sql = format!("{SELECT} WHERE d.state = $1 AND d.due <= $2 ORDER BY d.due, d.id LIMIT $3");
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(state.as_str())
        .bind(db(now.as_millis()))
        .bind(i64::from(most))
        .fetch_all(conn)
        .await?;
    Ok(whole(&rows))
}

/// Whether a slot has a deal that it waits for.
pub(super) async fn slot_waits(
    conn: &mut SqliteConnection,
    aggregate: Uuid,
    slot: u32,
) -> Result<bool, Error> {
    let sql = format!("{SELECT} WHERE d.aggregate = $1 AND d.slot = $2 ORDER BY d.generation");
    let rows =
        sqlx::query(AssertSqlSafe(sql)).bind(key(aggregate)).bind(i64::from(slot)).fetch_all(conn).await?;
    // A row that is damaged may be one that waits: then no other is made.
    let rows: Result<Vec<DealRow>, Error> = rows.iter().map(DealRow::read).collect();
    Ok(rows?.iter().any(|row| row.state.holds_slot()))
}

/// A provider is chosen for a slot of the aggregate.
pub(super) async fn placing(tx: &mut Tx, aggregate: Uuid) -> Result<(), Error> {
    let state = aggregates::load(&mut tx.conn, aggregate).await?.state;
    if state.after(AggregateEvent::Placing).is_ok() {
        aggregates::step(tx, aggregate, AggregateEvent::Placing).await?;
    }
    Ok(())
}

/// Counts the replicas that are active, each provider once, and says to the aggregate whether they are enough.
pub(super) async fn settle(tx: &mut Tx, aggregate: Uuid) -> Result<(), Error> {
    let row = aggregates::load(&mut tx.conn, aggregate).await?;
    let deals = of_aggregate(&mut tx.conn, aggregate).await?;
    let active = deals.iter().filter(|deal| deal.state == DealState::Active).map(|deal| deal.provider);
    let active = active.collect::<BTreeSet<_>>().len();
    let enough = active >= usize::from(row.replicas);
    let event = if enough { AggregateEvent::Enough } else { AggregateEvent::TooFew };
    if row.state.after(event).is_err() {
        return Ok(());
    }
    let state = aggregates::step(tx, aggregate, event).await?;
    let body = serde_json::json!({ "active": active, "replicas": row.replicas, "policy": row.policy });
    let kind = format!("aggregate.{}", state.as_str());
    events::insert(tx, &kind, None, &aggregate.to_string(), &body).await
}

async fn note_word(tx: &mut Tx, deal: DealUuid, word: &ProviderWord, due: Timestamp) -> Result<(), Error> {
    let (status, error, deal_id, received) = match word {
        ProviderWord::Known { status, error, deal_id, received } => {
            (status.as_str(), error.as_deref(), *deal_id, *received)
        }
        ProviderWord::Unknown(text) => ("unknown", Some(text.as_str()), None, 0),
    };
    let cut = |text: &str| text.chars().take(floe_core::cold::Fault::MAX_TEXT).collect::<String>();
    sqlx::query(
        "UPDATE deals SET word_status = $2, word_error = $3, word_deal_id = COALESCE($4, word_deal_id), \
         word_received = $5, word_at = $6, due = $7 WHERE id = $1",
    )
    .bind(id_of(deal))
    .bind(cut(status))
    .bind(error.map(cut))
    .bind(deal_id.map(db))
    .bind(db(received))
    .bind(db(tx.now.as_millis()))
    .bind(db(due.as_millis()))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

/// The rows that are whole; the others are named in the log.
fn whole(rows: &[SqliteRow]) -> Vec<DealRow> {
    rows.iter().filter_map(|row| intact(DealRow::read(row))).collect()
}

/// What is wrong with the deals that are damaged, and with the counters.
pub(crate) async fn damaged(conn: &mut SqliteConnection) -> Result<Vec<String>, Error> {
    let rows = sqlx::query(AssertSqlSafe(format!("{SELECT} ORDER BY d.id"))).fetch_all(&mut *conn).await?;
    let mut findings = Vec::new();
    let mut costs: BTreeMap<DealState, AttoFil> = BTreeMap::new();
    for row in &rows {
        match DealRow::read(row) {
            Err(error) => findings.push(error.to_string()),
            Ok(deal) => {
                let cost = costs.entry(deal.state).or_default();
                *cost = plus(*cost, deal.cost)?;
            }
        }
    }
    let kept: Vec<(String, String)> =
        sqlx::query_as("SELECT state, cost FROM deal_counts").fetch_all(&mut *conn).await?;
    for (state, cost) in kept {
        let summed =
            DealState::parse(&state).and_then(|state| costs.get(&state)).copied().unwrap_or_default();
        if cost != summed.to_string() {
            findings.push(format!("what {state} deals cost together is wrong"));
        }
    }
    let wrong: Vec<String> = sqlx::query_scalar(
        "SELECT c.state FROM deal_counts c WHERE c.deals <> (SELECT COUNT(*) FROM deals d WHERE d.state = c.state)",
    )
    .fetch_all(conn)
    .await?;
    findings.extend(wrong.into_iter().map(|state| format!("the counter of {state} deals is wrong")));
    Ok(findings)
}
