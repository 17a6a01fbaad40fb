//! `/deals`: every attempt to have a provider keep a replica.
//!
//! With the scope `pins:read` one sees those for the pins of one's account, with `admin` all of them. What is listed for
//! a pin is, word for word, its `info.deals`.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use floe_core::cold::{DealUuid, Fault};
use floe_core::{AccountId, AttoFil, DealState, RequestId};
use floe_engine::cold::{CostsBy, DEALS, DealQuery, DealRow, Retried, SeenDeal, Sum, Viewer};
use floe_engine::{Principal, Scope};
use serde::Serialize;
use tokio::time::Instant;
use uuid::Uuid;

use crate::access::{Admin, Caller, DealsRead};
use crate::admin::Segment;
use crate::error::ApiError;
use crate::limits;
use crate::pins::query::{Pairs, items, once, pairs, shown};
use crate::router::ApiState;

type Answer<T> = Result<Json<T>, ApiError>;

/// An attempt, as it is listed.
#[derive(Debug, Serialize)]
pub(crate) struct DealBody {
    provider: String,
    state: &'static str,
    deal_uuid: String,
    deal_id: Option<u64>,
    piece_cid: String,
    pins: Vec<RequestId>,
    start_epoch: i64,
    end_epoch: i64,
    cost_attofil: AttoFil,
    error: Option<ErrorBody>,
}

/// What went wrong: its class, and the words that were said.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorBody {
    code: &'static str,
    text: String,
}

impl ErrorBody {
    /// Without addresses: providers repeat where they were to pull from, and that is signed for them alone.
    fn listed(fault: &Fault) -> Self {
        let word = |word: &str| if word.contains("://") { "(address)".to_owned() } else { word.to_owned() };
        let text: Vec<String> = fault.text.split(' ').map(word).collect();
        Self { code: fault.code.as_str(), text: text.join(" ") }
    }

    pub(crate) fn raw(fault: &Fault) -> Self {
        Self { code: fault.code.as_str(), text: fault.text.clone() }
    }
}

impl DealBody {
    pub(crate) fn new(deal: &DealRow, pins: Vec<RequestId>) -> Self {
        Self {
            provider: deal.provider.to_string(),
            state: deal.state.word(),
            deal_uuid: deal.uuid.to_string(),
            deal_id: deal.deal_id,
            piece_cid: deal.piece.to_string(),
            pins,
            start_epoch: deal.start.get(),
            end_epoch: deal.end.get(),
            cost_attofil: deal.cost,
            error: deal.error.as_ref().map(ErrorBody::listed),
        }
    }
}

/// An attempt by itself.
#[derive(Serialize)]
pub(crate) struct DealDetails {
    #[serde(flatten)]
    deal: DealBody,
    aggregate: Uuid,
    policy: String,
    slot: u32,
    generation: u32,
    piece_size: u64,
    car_bytes: u64,
    price_attofil_epoch: AttoFil,
    collateral_attofil: AttoFil,
    ipni: bool,
    sector: Option<u64>,
    faulty: bool,
    /// It came to nothing, and the market still holds its price: `floe wallet settle` frees it.
    locked: bool,
    created: u64,
    sent: Option<u64>,
    updated: u64,
    tries: u32,
    pulled_bytes: u64,
    /// What the provider said last. Nothing is decided on it.
    provider_says: Option<WordBody>,
}

#[derive(Serialize)]
struct WordBody {
    status: String,
    error: Option<String>,
    deal_id: Option<u64>,
    received_bytes: u64,
    at: u64,
}

impl DealDetails {
    fn new(seen: SeenDeal, viewer: Viewer) -> Self {
        let SeenDeal { deal: row, pins } = seen;
        let mut deal = DealBody::new(&row, pins);
        if viewer == Viewer::Operator {
            deal.error = row.error.as_ref().map(ErrorBody::raw);
        }
        // What a provider says is in its own words, and for whoever has to talk to it.
        let word = row.word.filter(|_| viewer == Viewer::Operator);
        Self {
            deal,
            aggregate: row.aggregate,
            policy: row.policy,
            slot: row.slot,
            generation: row.generation,
            piece_size: row.size.bytes(),
            car_bytes: row.car_bytes,
            price_attofil_epoch: row.price,
            collateral_attofil: row.collateral,
            ipni: row.ipni,
            sector: row.sector,
            faulty: row.is_faulty,
            locked: row.is_locked,
            created: row.created.as_millis(),
            sent: row.sent.map(|(at, _)| at.as_millis()),
            updated: row.updated.as_millis(),
            tries: row.tries,
            pulled_bytes: row.pulled,
            provider_says: word.map(|word| WordBody {
                status: word.status,
                error: word.error,
                deal_id: word.deal_id,
                received_bytes: word.received,
                at: word.at.as_millis(),
            }),
        }
    }
}

fn viewer(who: &Principal) -> Viewer {
    if who.scopes.contains(&Scope::Admin) { Viewer::Operator } else { Viewer::Account(who.account.id) }
}

pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller<DealsRead>,
    RawQuery(text): RawQuery,
) -> Result<Response, ApiError> {
    state.rates.list(&caller.who, Instant::now())?;
    let query = query(&pairs(text.as_deref())?)?;
    let room = state.memory.take(caller.payer(), query.most as usize * limits::DEAL_BYTES).await?;
    let deals = state.engine.seen_deals(viewer(&caller.who), query).await?;
    let bodies: Vec<DealBody> = deals.into_iter().map(|seen| DealBody::new(&seen.deal, seen.pins)).collect();
    Ok(room.kept_by(Json(bodies).into_response()))
}

pub(crate) async fn show(
    State(state): State<ApiState>,
    caller: Caller<DealsRead>,
    Segment(id): Segment,
) -> Answer<DealDetails> {
    let viewer = viewer(&caller.who);
    let seen = state.engine.seen_deal(viewer, DealUuid(uuid(&id)?)).await?;
    Ok(Json(DealDetails::new(seen, viewer)))
}

pub(crate) async fn retry(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    Segment(id): Segment,
) -> Answer<Retried> {
    Ok(Json(state.engine.retry(uuid(&id)?).await?))
}

/// A UUID in the one spelling that we give out. What is none names nothing.
fn uuid(text: &str) -> Result<Uuid, ApiError> {
    Uuid::parse_str(text).ok().filter(|id| id.to_string() == text).ok_or_else(ApiError::not_found)
}

fn query(pairs: &Pairs) -> Result<DealQuery, ApiError> {
    let wrong = |key: &str, text: &str, wanted: &str| {
        ApiError::bad_request(format!("{key}: {} is no {wanted}", shown(text)))
    };
    let pin = once(pairs, "pin")?;
    let provider = once(pairs, "provider")?;
    let before = once(pairs, "before")?;
    let limit = once(pairs, "limit")?;
    let limit = match limit.as_deref() {
        None => DEALS,
        Some(text) => text
            .parse()
            .ok()
            .filter(|n| (1..=DEALS).contains(n))
            .ok_or_else(|| wrong("limit", text, &format!("number from 1 to {DEALS}")))?,
    };
    Ok(DealQuery {
        pin: match pin {
            Some(text) => Some(text.parse().map_err(|_| wrong("pin", &text, "request id"))?),
            None => None,
        },
        provider: match provider {
            Some(text) => {
                Some(text.parse().map_err(|_| wrong("provider", &text, "provider such as f01000"))?)
            }
            None => None,
        },
        states: states(pairs)?,
        before: match before {
            Some(text) => Some(DealUuid(text.parse().map_err(|_| wrong("before", &text, "deal's uuid"))?)),
            None => None,
        },
        most: limit,
    })
}

/// The states behind the words that are shown: what was refused is shown as failed.
fn states(pairs: &Pairs) -> Result<Vec<DealState>, ApiError> {
    let mut states = Vec::new();
    for word in items(pairs, "state") {
        let of_word = DealState::ALL.into_iter().filter(|state| state.word() == word.trim());
        let before = states.len();
        states.extend(of_word);
        if states.len() == before {
            let mut words: Vec<&str> = DealState::ALL.iter().map(|state| state.word()).collect();
            words.dedup();
            words.sort_unstable();
            words.dedup();
            let (given, known) = (shown(word), words.join(", "));
            return Err(ApiError::bad_request(format!("state: {given} is none of {known}")));
        }
    }
    states.sort_unstable();
    states.dedup();
    Ok(states)
}

/// What was committed by an account, to a provider, or in a month.
#[derive(Serialize)]
pub(crate) struct CostBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    account: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    provider: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    month: Option<String>,
    committed_attofil: AttoFil,
    reserved_attofil: AttoFil,
    spent_attofil: AttoFil,
    released_attofil: AttoFil,
}

impl CostBody {
    fn new(sum: &Sum) -> Result<Self, ApiError> {
        Ok(Self {
            account: None,
            provider: None,
            month: None,
            committed_attofil: sum.committed().map_err(ApiError::internal)?,
            reserved_attofil: sum.reserved,
            spent_attofil: sum.spent,
            released_attofil: sum.released,
        })
    }
}

/// Where it belongs to nobody: gas.
const NOBODY: &str = "gas";

pub(crate) async fn cost(
    State(state): State<ApiState>,
    caller: Caller<DealsRead>,
    RawQuery(text): RawQuery,
) -> Answer<Vec<CostBody>> {
    let pairs = pairs(text.as_deref())?;
    let by = match once(&pairs, "by")?.as_deref() {
        None | Some("account") => CostsBy::Account,
        Some("provider") => CostsBy::Provider,
        Some("month") => CostsBy::Month,
        Some(_) => return Err(ApiError::bad_request("by: it is account, provider or month")),
    };
    if let Viewer::Account(account) = viewer(&caller.who) {
        if by != CostsBy::Account {
            return Err(ApiError::forbidden("what others pay is for a token with the scope admin"));
        }
        let body = CostBody::new(&state.engine.cost_of(account).await?)?;
        return Ok(Json(vec![CostBody { account: Some(caller.who.account.name.clone()), ..body }]));
    }
    let names = if by == CostsBy::Account { state.engine.accounts().await? } else { Vec::new() };
    let name_of = |key: i64| {
        let known = names.iter().find(|account| account.id == AccountId(key));
        known.map_or_else(|| if key == 0 { NOBODY.to_owned() } else { key.to_string() }, |a| a.name.clone())
    };
    let mut bodies = Vec::new();
    let mut after = None;
    loop {
        let page = state.engine.costs(by, after, limits::COSTS_PER_READ).await?;
        let is_last = page.len() < limits::COSTS_PER_READ as usize;
        after = page.last().map(|cost| cost.key);
        for cost in page {
            let body = CostBody::new(&cost.sum)?;
            bodies.push(match by {
                CostsBy::Provider if cost.key == 0 => CostBody { provider: Some(NOBODY.to_owned()), ..body },
                CostsBy::Provider => CostBody { provider: Some(format!("f0{}", cost.key)), ..body },
                CostsBy::Month | CostsBy::Day => CostBody { month: Some(month(cost.key)), ..body },
                CostsBy::Account => CostBody { account: Some(name_of(cost.key)), ..body },
            });
        }
        if is_last || bodies.len() >= limits::COSTS {
            return Ok(Json(bodies));
        }
    }
}

/// `202612` as `2026-12`.
fn month(key: i64) -> String {
    format!("{:04}-{:02}", key / 100, key % 100)
}

#[cfg(test)]
mod tests {
    use floe_core::FailureCode;

    use super::*;

    fn states_of(text: &str) -> Result<Vec<DealState>, ApiError> {
        states(&pairs(Some(text)).unwrap())
    }

    #[test]
    fn states_are_the_words_that_are_shown() {
        use DealState as S;
        assert_eq!(states_of("").unwrap(), []);
        assert_eq!(states_of("state=active").unwrap(), [S::Active]);
        assert_eq!(
            states_of("state=failed,active&state=active").unwrap(),
            [S::Refused, S::Active, S::Failed]
        );
        for bad in ["state=refused", "state=", "state=Active", "state=active,x"] {
            let error = format!("{:?}", states_of(bad).unwrap_err());
            assert!(
                error.contains("none of accepted, active, chosen, expired, failed, proposed"),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_query_names_what_is_wrong_with_it() {
        let of = |text: &str| query(&pairs(Some(text)).unwrap());
        for (text, wanted) in [
            ("pin=x", "pin: "),
            ("provider=1000", "provider: "),
            ("before=x", "before: "),
            ("limit=0", "limit: "),
            ("limit=101", "limit: "),
            ("pin=x&pin=y", "pin: given more than once"),
        ] {
            assert!(format!("{:?}", of(text).unwrap_err()).contains(wanted), "{text}");
        }
        let query = of("provider=t01000&limit=100").unwrap();
        assert_eq!((query.provider, query.most), (Some(floe_core::ActorId::new(1_000)), 100));
    }

    #[test]
    fn t45_where_a_provider_was_to_pull_from_is_not_listed() {
        let text = "failed to fetch \"https://pull.example/pull/x?sig=secret\": dial tcp: no route";
        let fault = Fault::new(FailureCode::TransferUnreachable, text);
        assert_eq!(ErrorBody::listed(&fault).text, "failed to fetch (address) dial tcp: no route");
        assert_eq!(ErrorBody::raw(&fault).text, text);
    }

    #[test]
    fn a_month_has_two_digits() {
        assert_eq!((month(202_601), month(202_612)), ("2026-01".into(), "2026-12".into()));
    }
}
