//! Administration of the cold half: providers, and whether money may be spent.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use floe_core::{ActorId, AttoFil, Policy};
use floe_engine::Engine;
use floe_engine::cold::{
    LeftOut, NewProvider, PackingPlan, Plan, PlannedDag, PlannedDeal, PlannedPiece, ProviderRow, Spending,
    Sum, Unplaced,
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::access::{Admin, Caller};
use crate::admin::Segment;
use crate::body::Sent;
use crate::deals::{DealBody, ErrorBody};
use crate::error::ApiError;
use crate::limits;
use crate::pins::query::shown;
use crate::router::ApiState;

type Answer<T> = Result<Json<T>, ApiError>;

/// A provider.
#[derive(Serialize)]
pub(crate) struct ProviderBody {
    id: String,
    source: String,
    addresses: Vec<String>,
    regions: Vec<String>,
    suspended: Option<String>,
    owner: Option<String>,
    peer_id: Option<String>,
    chain_addresses: Vec<String>,
    sector_bytes: Option<u64>,
    ask: Option<AskBody>,
    score: u16,
    failures: u32,
    rests_until_epoch: Option<i64>,
    error: Option<ErrorBody>,
    created: u64,
}

#[derive(Serialize)]
struct AskBody {
    price_attofil_gib_epoch: AttoFil,
    min_piece_size: u64,
    max_piece_size: u64,
    expires_epoch: i64,
    at: u64,
}

impl From<ProviderRow> for ProviderBody {
    fn from(row: ProviderRow) -> Self {
        let chain = row.chain.map(|(chain, _)| chain);
        Self {
            id: row.id.to_string(),
            source: row.source,
            addresses: row.addresses,
            regions: row.regions,
            suspended: row.suspended,
            owner: chain.as_ref().map(|chain| chain.owner.to_string()),
            peer_id: chain.as_ref().and_then(|chain| chain.peer_id.clone()),
            sector_bytes: chain.as_ref().map(|chain| chain.sector_bytes),
            chain_addresses: chain.map(|chain| chain.addresses).unwrap_or_default(),
            ask: row.ask.map(|(ask, at)| AskBody {
                price_attofil_gib_epoch: ask.price,
                min_piece_size: ask.min_size.bytes(),
                max_piece_size: ask.max_size.bytes(),
                expires_epoch: ask.expires.get(),
                at: at.as_millis(),
            }),
            score: row.standing.score,
            failures: row.standing.failures,
            rests_until_epoch: row.standing.rests_until.map(floe_core::Epoch::get),
            error: row.error.as_ref().map(ErrorBody::raw),
            created: row.created.as_millis(),
        }
    }
}

pub(crate) async fn providers(State(state): State<ApiState>, _: Caller<Admin>) -> Answer<Vec<ProviderBody>> {
    Ok(Json(state.engine.providers().await?.into_iter().map(ProviderBody::from).collect()))
}

/// A provider to add.
#[derive(Deserialize)]
pub(crate) struct ProviderToAdd {
    id: String,
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    regions: Vec<String>,
}

pub(crate) async fn add_provider(
    State(state): State<ApiState>,
    caller: Caller<Admin>,
    sent: Sent<ProviderToAdd>,
) -> Result<(StatusCode, Json<ProviderBody>), ApiError> {
    let ProviderToAdd { id, addresses, regions } = sent.value;
    let id = actor(&id).map_err(|error| ApiError::bad_request(format!("id: {error}")))?;
    check_addresses(&addresses).and_then(|()| check_regions(&regions)).map_err(ApiError::bad_request)?;
    let new = NewProvider { id, source: caller.who.account.name.clone(), addresses, regions };
    let row = state.engine.put_provider(new).await?;
    Ok((StatusCode::CREATED, Json(row.into())))
}

fn actor(text: &str) -> Result<ActorId, String> {
    text.parse().map_err(|error: floe_core::ids::NoActorId| error.to_string())
}

/// A URL or a multiaddr each; what is behind them is the business of whoever dials.
fn check_addresses(addresses: &[String]) -> Result<(), String> {
    if addresses.len() > limits::PROVIDER_ADDRESSES {
        limits::hit("provider_addresses");
        return Err(format!("addresses: the most is {}", limits::PROVIDER_ADDRESSES));
    }
    let plain =
        |a: &&String| a.len() <= limits::ORIGIN_BYTES && !a.chars().any(|c| c.is_control() || c == ' ');
    let formed = |a: &&String| ["http://", "https://", "/"].iter().any(|start| a.starts_with(start));
    match addresses.iter().find(|a| !plain(a) || !formed(a)) {
        Some(wrong) => {
            Err(format!("addresses: {} is neither a URL (http, https) nor a multiaddr", shown(wrong)))
        }
        None => Ok(()),
    }
}

fn check_regions(regions: &[String]) -> Result<(), String> {
    if regions.len() > limits::PROVIDER_REGIONS {
        limits::hit("provider_regions");
        return Err(format!("regions: the most is {}", limits::PROVIDER_REGIONS));
    }
    match regions.iter().find(|region| !floe_core::policy::is_region(region)) {
        Some(wrong) => {
            Err(format!("regions: {} is no word of 1 to 64 letters, digits, - and _", shown(wrong)))
        }
        None => Ok(()),
    }
}

#[derive(Deserialize)]
pub(crate) struct ProviderSuspension {
    suspended: bool,
    why: Option<String>,
}

pub(crate) async fn suspend_provider(
    State(state): State<ApiState>,
    caller: Caller<Admin>,
    Segment(id): Segment,
    sent: Sent<ProviderSuspension>,
) -> Answer<ProviderBody> {
    let id = actor(&id).map_err(|_| ApiError::not_found())?;
    let by = || format!("by {}", caller.who.account.name);
    let why = sent.value.suspended.then(|| sent.value.why.unwrap_or_else(by));
    state.engine.suspend_provider(id, why.as_deref()).await?;
    let known = state.engine.providers().await?;
    known.into_iter().find(|row| row.id == id).map(|row| Json(row.into())).ok_or_else(ApiError::not_found)
}

/// Caps or sums, in attoFIL.
#[derive(Serialize)]
struct CapsBody {
    deal: AttoFil,
    account_day: AttoFil,
    day: AttoFil,
    lifetime: AttoFil,
}

#[derive(Serialize)]
struct CommittedBody {
    day: AttoFil,
    lifetime: AttoFil,
    reserved: AttoFil,
    spent: AttoFil,
    released: AttoFil,
}

#[derive(Serialize)]
struct MovedBody {
    by: String,
    at: u64,
}

#[derive(Serialize)]
struct RestoredBody {
    at: u64,
    safe_from_epoch: Option<i64>,
}

/// How spending stands. Amounts are decimal texts of attoFIL.
#[derive(Serialize)]
pub(crate) struct SpendingBody {
    /// Configuration and switch together.
    spending: bool,
    enabled: bool,
    switch: &'static str,
    moved: Option<MovedBody>,
    /// Why nothing is spent now, where that is so.
    paused: Option<String>,
    restored: Option<RestoredBody>,
    caps_attofil: CapsBody,
    committed_attofil: CommittedBody,
    left_attofil: AttoFil,
    /// Signed proposals that nobody can recall: their providers may still publish them.
    signed: Vec<DealBody>,
    signed_is_cut: bool,
}

impl SpendingBody {
    async fn now(engine: &Engine) -> Result<Self, ApiError> {
        let spending = engine.spending().await?;
        let (out, is_cut) = engine.signed_out().await?;
        let Spending { enabled, switch, paused, caps, totals, left, restored, .. } = spending;
        let sum = |sum: &Sum| sum.committed().map_err(ApiError::internal);
        Ok(Self {
            spending: enabled && switch.on,
            enabled,
            switch: if switch.on { "on" } else { "off" },
            moved: switch.moved.map(|(by, at)| MovedBody { by, at: at.as_millis() }),
            paused,
            restored: restored.map(|restored| RestoredBody {
                at: restored.at.as_millis(),
                safe_from_epoch: restored.safe_from.map(floe_core::Epoch::get),
            }),
            caps_attofil: CapsBody {
                deal: caps.deal,
                account_day: caps.account_day,
                day: caps.day,
                lifetime: caps.lifetime,
            },
            committed_attofil: CommittedBody {
                day: sum(&totals.day)?,
                lifetime: sum(&totals.lifetime)?,
                reserved: totals.lifetime.reserved,
                spent: totals.lifetime.spent,
                released: totals.lifetime.released,
            },
            left_attofil: left,
            signed: out.iter().map(|deal| DealBody::new(deal, Vec::new())).collect(),
            signed_is_cut: is_cut,
        })
    }
}

pub(crate) async fn spending(State(state): State<ApiState>, _: Caller<Admin>) -> Answer<SpendingBody> {
    Ok(Json(SpendingBody::now(&state.engine).await?))
}

#[derive(Deserialize)]
pub(crate) struct SpendingSwitch {
    on: bool,
}

pub(crate) async fn switch_spending(
    State(state): State<ApiState>,
    caller: Caller<Admin>,
    sent: Sent<SpendingSwitch>,
) -> Answer<SpendingBody> {
    state.engine.switch_spending(sent.value.on, &by(&caller)).await?;
    Ok(Json(SpendingBody::now(&state.engine).await?))
}

/// Who says so, for the record.
fn by(caller: &Caller<Admin>) -> String {
    format!("{}, token {}", caller.who.account.name, caller.who.token.0)
}

pub(crate) async fn trust_backup(
    State(state): State<ApiState>,
    caller: Caller<Admin>,
) -> Answer<SpendingBody> {
    state.engine.settle_restore(&by(&caller)).await?;
    Ok(Json(SpendingBody::now(&state.engine).await?))
}

/// What would be done now.
#[derive(Serialize)]
pub(crate) struct PlanBody {
    paused: Option<String>,
    deals: Vec<PlannedBody>,
    unplaced: Vec<UnplacedBody>,
    /// What the deals of the plan cost.
    cost_attofil: AttoFil,
    /// Pieces that are packed next; deals are planned for what is packed.
    pieces: Vec<PieceBody>,
    left_out: Vec<LeftOutBody>,
    cut: bool,
}

#[derive(Serialize)]
struct PieceBody {
    policy: String,
    replicas: u8,
    piece_size: u64,
    data_bytes: u64,
    padding_bytes: u64,
    /// Full, or else it waits for others.
    full: bool,
    /// All replicas at the most that the policy allows; null where that is no amount, or the policy is gone.
    cost_at_most_attofil: Option<AttoFil>,
    dags: Vec<DagBody>,
}

#[derive(Serialize)]
struct DagBody {
    root: String,
    part: u32,
    parts: u32,
    bytes: u64,
    segment_bytes: u64,
    offset: u64,
}

#[derive(Serialize)]
struct LeftOutBody {
    root: String,
    reason: Option<String>,
}

impl PieceBody {
    fn new(piece: PlannedPiece, policies: &BTreeMap<String, Policy>) -> Self {
        let most = policies.get(&piece.policy).and_then(|policy| {
            let epochs = u128::from(policy.duration_epochs).checked_mul(u128::from(piece.replicas))?;
            policy.max_price.for_piece(piece.size)?.checked_mul(epochs)
        });
        let dag = |dag: PlannedDag| DagBody {
            root: dag.root.to_string(),
            part: dag.part,
            parts: dag.parts,
            bytes: dag.bytes,
            segment_bytes: dag.segment.bytes(),
            offset: dag.offset,
        };
        Self {
            policy: piece.policy,
            replicas: piece.replicas,
            piece_size: piece.size.bytes(),
            data_bytes: piece.bytes,
            padding_bytes: piece.padding,
            full: piece.is_full,
            cost_at_most_attofil: most,
            dags: piece.dags.into_iter().map(dag).collect(),
        }
    }
}

#[derive(Serialize)]
struct PlannedBody {
    aggregate: Uuid,
    slot: u32,
    provider: String,
    piece_cid: String,
    piece_size: u64,
    segment_bytes: u64,
    padding_bytes: u64,
    ask_attofil_gib_epoch: AttoFil,
    price_attofil_epoch: AttoFil,
    collateral_attofil: AttoFil,
    start_epoch: i64,
    end_epoch: i64,
    cost_attofil: AttoFil,
}

#[derive(Serialize)]
struct UnplacedBody {
    aggregate: Uuid,
    slot: u32,
    why: String,
}

impl PlanBody {
    fn new(plan: Plan, packing: PackingPlan, policies: &BTreeMap<String, Policy>) -> Self {
        let planned = |deal: PlannedDeal| PlannedBody {
            aggregate: deal.aggregate,
            slot: deal.slot,
            provider: deal.provider.to_string(),
            piece_cid: deal.piece.to_string(),
            piece_size: deal.size.bytes(),
            segment_bytes: deal.segments,
            padding_bytes: deal.padding,
            ask_attofil_gib_epoch: deal.ask,
            price_attofil_epoch: deal.price,
            collateral_attofil: deal.collateral,
            start_epoch: deal.start.get(),
            end_epoch: deal.end.get(),
            cost_attofil: deal.cost,
        };
        let unplaced =
            |slot: Unplaced| UnplacedBody { aggregate: slot.aggregate, slot: slot.slot, why: slot.why };
        let left_out = |dag: LeftOut| LeftOutBody { root: dag.root.to_string(), reason: dag.reason };
        Self {
            paused: plan.paused,
            deals: plan.deals.into_iter().map(planned).collect(),
            unplaced: plan.unplaced.into_iter().map(unplaced).collect(),
            cost_attofil: plan.cost,
            pieces: packing.pieces.into_iter().map(|piece| PieceBody::new(piece, policies)).collect(),
            left_out: packing.left_out.into_iter().map(left_out).collect(),
            cut: plan.is_cut || packing.is_cut,
        }
    }
}

pub(crate) async fn plan(State(state): State<ApiState>, _: Caller<Admin>) -> Answer<PlanBody> {
    let (plan, packing) = (state.engine.cold_plan().await?, state.engine.packing_plan().await?);
    Ok(Json(PlanBody::new(plan, packing, state.engine.policies())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_urls_or_multiaddrs_and_bounded() {
        let of = |text: &str| check_addresses(&[text.to_owned()]);
        for good in
            ["http://sp.example", "https://sp.example:1/x", "/dns4/sp.example/tcp/443/wss/p2p/12D3KooW"]
        {
            assert!(of(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "sp.example",
            "ftp://sp.example",
            "http://a b",
            "/ip4/\u{1b}",
            &format!("/{}", "x".repeat(2_000)),
        ] {
            assert!(of(bad).unwrap_err().starts_with("addresses: "), "{bad}");
        }
        let many = |n: usize| vec!["http://sp.example".to_owned(); n];
        let most = limits::PROVIDER_ADDRESSES;
        assert_eq!(
            [most - 1, most, most + 1].map(|n| check_addresses(&many(n)).is_ok()),
            [true, true, false]
        );
    }

    #[test]
    fn regions_are_words_and_bounded() {
        assert!(check_regions(&["eu".into(), "us-west_2".into()]).is_ok());
        assert!(check_regions(&["the moon".into()]).is_err() && check_regions(&[String::new()]).is_err());
        let many = |n: usize| (0..n).map(|n| format!("r{n}")).collect::<Vec<_>>();
        let most = limits::PROVIDER_REGIONS;
        assert_eq!([most - 1, most, most + 1].map(|n| check_regions(&many(n)).is_ok()), [true, true, false]);
    }
}
