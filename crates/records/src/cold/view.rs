//! What the owner of pins sees of them in the cold half: where each part is, and every attempt for it.
//!
//! One look is one statement for all pins of a page, up to [`limits::PLACES_PER_STATEMENT`]; a page whose pins ask for no
//! replicas is not looked up at all, which is its caller's to see to. What is damaged is left out, and named in the log: a
//! page shows what it can.

use std::collections::BTreeMap;

use floe_core::{AccountId, AggregateState, PieceCid, RequestId};
use sqlx::QueryBuilder;
use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::DealRow;
use super::deals::row::deal_columns;
use crate::pins::row::{intact, key, uuid, uuid_of};
use crate::{Error, Records, limits};

/// A pin in the cold half.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinCold {
    /// Some of it is in no piece yet.
    pub waits: bool,
    /// The aggregates that it is in, by id: one, or one for each part of what is larger than a piece.
    pub parts: Vec<ColdPart>,
}

/// An aggregate that holds a pin or a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColdPart {
    /// Which.
    pub aggregate: Uuid,
    /// Where it stands.
    pub state: AggregateState,
    /// Its piece, once it is packed.
    pub piece: Option<PieceCid>,
    /// Every attempt for it, the newest first.
    pub deals: Vec<DealRow>,
}

impl PinCold {
    /// Where the pin stands: where the part of it stands that is worst off. One that nothing is known of waits.
    pub fn state(&self) -> AggregateState {
        let worst = self.parts.iter().map(|part| part.state).max_by_key(|state| badness(*state));
        match worst {
            Some(state) if !self.waits || state == AggregateState::Lost => state,
            _ => AggregateState::Open,
        }
    }
}

/// How far a part is from being stored; what is gone is worst.
fn badness(state: AggregateState) -> u8 {
    match state {
        AggregateState::Stored => 0,
        AggregateState::Degraded => 1,
        AggregateState::Placing => 2,
        AggregateState::Packed => 3,
        AggregateState::Open => 4,
        AggregateState::Lost => 5,
    }
}

impl Records {
    /// Where these pins are. Those that are in no aggregate are not among the answers: they wait.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cold_of_pins(&self, pins: &[RequestId]) -> Result<BTreeMap<RequestId, PinCold>, Error> {
        let mut seen: BTreeMap<RequestId, PinCold> = BTreeMap::new();
        if pins.is_empty() {
            return Ok(seen);
        }
        let mut conn = self.reader().await?;
        for some in pins.chunks(limits::PLACES_PER_STATEMENT) {
            let mut sql = QueryBuilder::new(concat!(
                "SELECT p.pin AS of_pin, a.id AS of_aggregate, a.state AS of_state, a.piece AS of_piece, \
                 w.pin AS waiting, ",
                deal_columns!(),
                " FROM aggregate_pins p JOIN aggregates a ON a.id = p.aggregate \
                 LEFT JOIN cold_waits w ON w.pin = p.pin LEFT JOIN deals d ON d.aggregate = a.id WHERE p.pin IN ("
            ));
            let mut list = sql.separated(", ");
            some.iter().for_each(|pin| {
                list.push_bind(key(pin.0));
            });
            sql.push(")");
            for row in sql.build().fetch_all(&mut *conn).await? {
                if let Some((pin, waits, part, deal)) = intact(read(&row)) {
                    let pin = seen.entry(pin).or_default();
                    pin.waits |= waits;
                    merge(&mut pin.parts, part, deal);
                }
            }
        }
        for part in seen.values_mut().flat_map(|pin| &mut pin.parts) {
            part.deals.sort_unstable_by_key(|deal| std::cmp::Reverse((deal.created, deal.uuid)));
        }
        Ok(seen)
    }

    /// Pins of an aggregate, all or those of one account, by segment and id; at most `most`. Also those that were removed
    /// since.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn pins_in_aggregate(
        &self,
        id: Uuid,
        account: Option<AccountId>,
        most: u32,
    ) -> Result<Vec<RequestId>, Error> {
        let mut sql = QueryBuilder::new("SELECT pin FROM aggregate_pins WHERE aggregate = ");
        sql.push_bind(key(id));
        if let Some(account) = account {
            sql.push(" AND account = ").push_bind(account.0);
        }
        sql.push(" ORDER BY n, pin LIMIT ").push_bind(i64::from(most));
        let rows: Vec<Vec<u8>> = sql.build_query_scalar().fetch_all(&mut *self.reader().await?).await?;
        let mut pins: Vec<RequestId> = rows.into_iter().map(|pin| RequestId(uuid_of(pin))).collect();
        // A pin whose parts are in one aggregate is there once for each.
        pins.sort_unstable();
        pins.dedup();
        Ok(pins)
    }

    /// Whose a pin is, or was, that is in an aggregate.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn owner_in_aggregates(&self, pin: RequestId) -> Result<Option<AccountId>, Error> {
        let owner: Option<i64> =
            sqlx::query_scalar("SELECT account FROM aggregate_pins WHERE pin = $1 LIMIT 1")
                .bind(key(pin.0))
                .fetch_optional(&mut *self.reader().await?)
                .await?;
        Ok(owner.map(AccountId))
    }

    /// How many aggregates are in each state.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn aggregate_counts(&self) -> Result<BTreeMap<AggregateState, u64>, Error> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT state, COUNT(*) FROM aggregates GROUP BY state ORDER BY state")
                .fetch_all(&mut *self.reader().await?)
                .await?;
        let mut counts: BTreeMap<_, _> = AggregateState::ALL.into_iter().map(|state| (state, 0)).collect();
        let known = rows.into_iter();
        counts.extend(
            known.filter_map(|(word, n)| Some((AggregateState::parse(&word)?, u64::try_from(n).ok()?))),
        );
        Ok(counts)
    }
}

type Seen = (RequestId, bool, ColdPart, Option<DealRow>);

fn read(row: &SqliteRow) -> Result<Seen, Error> {
    let aggregate = uuid(row, "of_aggregate")?;
    let damaged =
        || Error::Damaged(format!("the row of aggregate {aggregate} is damaged: restore it from a backup"));
    let state: String = row.try_get("of_state")?;
    let piece: Option<Vec<u8>> = row.try_get("of_piece")?;
    let piece = match piece.map(<[u8; 32]>::try_from) {
        None => None,
        Some(Ok(bytes)) => Some(PieceCid::from_commitment(bytes).ok_or_else(damaged)?),
        Some(Err(_)) => return Err(damaged()),
    };
    let part = ColdPart {
        aggregate,
        state: AggregateState::parse(&state).ok_or_else(damaged)?,
        piece,
        deals: Vec::new(),
    };
    let waits = row.try_get::<Option<Vec<u8>>, _>("waiting")?.is_some();
    let deal = match row.try_get::<Option<Vec<u8>>, _>("id")? {
        Some(_) => intact(DealRow::read(row)),
        None => None,
    };
    Ok((RequestId(uuid(row, "of_pin")?), waits, part, deal))
}

/// Parts by id, each once, and each attempt once: two parts of a pin may be in one aggregate.
fn merge(parts: &mut Vec<ColdPart>, part: ColdPart, deal: Option<DealRow>) {
    let at = match parts.binary_search_by_key(&part.aggregate, |known| known.aggregate) {
        Ok(at) => at,
        Err(at) => {
            parts.insert(at, part);
            at
        }
    };
    let deals = &mut parts[at].deals;
    deals.extend(deal.filter(|deal| deals.iter().all(|known| known.uuid != deal.uuid)));
}

#[cfg(test)]
mod tests {
    use AggregateState as S;

    use super::*;

    fn pin(waits: bool, states: &[S]) -> PinCold {
        let part =
            |state: &S| ColdPart { aggregate: Uuid::nil(), state: *state, piece: None, deals: Vec::new() };
        PinCold { waits, parts: states.iter().map(part).collect() }
    }

    #[test]
    fn a_pin_is_where_its_worst_part_is() {
        for (waits, states, want) in [
            (false, &[][..], S::Open),
            (true, &[], S::Open),
            (false, &[S::Stored], S::Stored),
            (false, &[S::Stored, S::Degraded], S::Degraded),
            (false, &[S::Placing, S::Degraded], S::Placing),
            (false, &[S::Packed, S::Placing], S::Packed),
            (false, &[S::Packed, S::Open], S::Open),
            (true, &[S::Stored], S::Open),
            (true, &[S::Lost], S::Lost),
            (false, &[S::Open, S::Lost, S::Stored], S::Lost),
        ] {
            assert_eq!(pin(waits, states).state(), want, "{waits} {states:?}");
        }
    }
}
