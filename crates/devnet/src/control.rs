//! The control port: what tests turn and look at. Not part of any Filecoin.
//!
//! | request | |
//! |---|---|
//! | `POST /faults` `{node?, providers?: {f01000: ..}}` | replaces the scripts that are named |
//! | `GET /faults` | all of them |
//! | `POST /epochs/step` `{n}` | so many epochs, each with a block |
//! | `POST /epochs/skip` `{n}` | a block that many epochs on; those between are null rounds |
//! | `POST /epochs/run` `{ms}` | an epoch each so many milliseconds; 0 stops |
//! | `POST /base_fee` `{atto}` | what a unit of gas costs from the next epoch on; who pays less waits, providers too |
//! | `POST /pool/forget` | whatever waits in the pool is gone, as after a restart |
//! | `POST /reorg` `{depth, keep}` | other blocks; what was included comes back (`keep`) or is lost |
//! | `GET /head` | height and name of the head, and of the last final tipset |
//! | `GET /deals` | by piece: the deals on the chain, and what is paid for each |
//! | `GET /providers` | by provider: every proposal, where it stands, every request made for its data |
//! | `GET /balances` | by account: balance, nonce, escrow, locked |

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::chain::BASE_FEE;
use crate::faults::{NodeFaults, ProviderFaults};
use crate::limits::{CONTROL_BODY_BYTES, STEP_EPOCHS};
use crate::node::Node;
use crate::provider::Provider;
use crate::wire::address::Address;

/// What the handlers share.
pub(crate) struct Control {
    pub(crate) node: Arc<Node>,
    pub(crate) providers: Vec<Arc<Provider>>,
    /// Milliseconds of an epoch; 0 stops the chain.
    pub(crate) epoch_ms: watch::Sender<u64>,
}

type Shared = State<Arc<Control>>;

/// All routes.
pub(crate) fn router(control: Arc<Control>) -> axum::Router {
    axum::Router::new()
        .route("/faults", get(faults).post(set_faults))
        .route("/epochs/step", post(step))
        .route("/epochs/skip", post(skip))
        .route("/epochs/run", post(run))
        .route("/base_fee", post(base_fee))
        .route(
            "/pool/forget",
            post(|State(c): Shared| async move {
                c.node.forget_pool();
                StatusCode::NO_CONTENT
            }),
        )
        .route("/reorg", post(reorg))
        .route("/head", get(head))
        .route("/deals", get(deals))
        .route(
            "/providers",
            get(|State(c): Shared| async move {
                Json(c.providers.iter().map(|provider| provider.introspect()).collect::<Vec<_>>())
            }),
        )
        .route("/balances", get(balances))
        .layer(DefaultBodyLimit::max(CONTROL_BODY_BYTES))
        .with_state(control)
}

fn refuse(why: impl Into<String>) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": why.into()}))).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scripts {
    #[serde(default)]
    node: Option<NodeFaults>,
    #[serde(default)]
    providers: BTreeMap<String, ProviderFaults>,
}

async fn set_faults(State(control): Shared, Json(scripts): Json<Scripts>) -> Response {
    let known = |name: &str| {
        let address: Option<Address> = name.parse().ok();
        control.providers.iter().find(|provider| Some(provider.terms.miner) == address)
    };
    if let Some(name) = scripts.providers.keys().find(|name| known(name).is_none()) {
        return refuse(format!("there is no provider {name}"));
    }
    if scripts.node.as_ref().is_some_and(|faults| !faults.fits()) {
        return refuse("too many rules");
    }
    if !scripts.providers.values().all(ProviderFaults::fits) {
        return refuse("ask_price is attoFIL as text, and not below 0");
    }
    for (name, faults) in scripts.providers {
        if let Some(provider) = known(&name) {
            provider.set_faults(faults);
        }
    }
    if let Some(faults) = scripts.node {
        control.node.set_faults(faults);
    }
    faults(State(control)).await.into_response()
}

async fn faults(State(control): Shared) -> Json<Value> {
    let providers: BTreeMap<String, ProviderFaults> =
        control.providers.iter().map(|p| (p.terms.miner.to_string(), p.faults())).collect();
    Json(json!({"node": control.node.faults(), "providers": providers}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Epochs {
    n: u64,
}

async fn step(State(control): Shared, Json(epochs): Json<Epochs>) -> Response {
    if epochs.n > STEP_EPOCHS {
        return refuse(format!("at most {STEP_EPOCHS} epochs at once; /epochs/skip goes further"));
    }
    // In parts, so that others get their turn.
    let mut left = epochs.n;
    while left > 0 {
        let part = left.min(100);
        control.node.advance(part);
        left -= part;
        tokio::task::yield_now().await;
    }
    head(State(control)).await.into_response()
}

async fn skip(State(control): Shared, Json(epochs): Json<Epochs>) -> Response {
    if epochs.n > u64::from(u32::MAX) {
        return refuse("so far no deal reaches");
    }
    control.node.skip(epochs.n);
    head(State(control)).await.into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Run {
    ms: u64,
}

async fn run(State(control): Shared, Json(run): Json<Run>) -> StatusCode {
    control.epoch_ms.send_replace(run.ms);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fee {
    atto: u64,
}

async fn base_fee(State(control): Shared, Json(fee): Json<Fee>) -> Response {
    let atto = i128::from(fee.atto);
    if atto < BASE_FEE {
        return refuse(format!("no network's base fee is under {BASE_FEE}"));
    }
    control.node.set_base_fee(atto);
    StatusCode::NO_CONTENT.into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reorg {
    depth: usize,
    #[serde(default)]
    keep: bool,
}

async fn reorg(State(control): Shared, Json(reorg): Json<Reorg>) -> Response {
    if !control.node.reorg(reorg.depth, reorg.keep) {
        return refuse(format!("the state {} tipsets ago is not kept", reorg.depth));
    }
    head(State(control)).await.into_response()
}

async fn head(State(control): Shared) -> Json<Value> {
    Json(control.node.chain(|chain| {
        let finalized = chain.finalized().ok().map(|tipset| tipset.height);
        json!({"height": chain.head().height, "cid": chain.head().cid.to_string(), "finalized": finalized})
    }))
}

async fn deals(State(control): Shared) -> Json<Value> {
    let mut pieces: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    control.node.chain(|chain| {
        let market = &chain.latest().market;
        for (id, deal) in &market.deals {
            let proposal = &deal.proposal;
            pieces.entry(proposal.piece_cid.to_string()).or_default().push(json!({
                "deal_id": id, "client": proposal.client, "provider": proposal.provider,
                "label": proposal.label.shown(), "start": proposal.start, "end": proposal.end,
                "price_per_epoch": proposal.price_per_epoch.to_string(),
                "cost": proposal.storage_fee().to_string(), "paid": deal.paid.to_string(),
                "active": deal.sector_start >= 0, "sector": deal.sector,
            }));
        }
        let gone: BTreeMap<String, String> =
            market.paid.iter().map(|(id, paid)| (format!("f0{id}"), paid.to_string())).collect();
        Json(json!({"pieces": pieces, "published": market.next, "paid_for_ended": gone}))
    })
}

async fn balances(State(control): Shared) -> Json<Value> {
    control.node.chain(|chain| {
        let state = chain.latest();
        let of = |(id, actor): (&u64, &crate::chain::Actor)| {
            let balance = state.market.balance(*id);
            let key = state.key(Address::Id(*id));
            let shown = json!({
                "kind": actor.kind.name(), "key": key, "balance": actor.balance.to_string(), "nonce": actor.nonce,
                "escrow": balance.escrow.to_string(), "locked": balance.locked.to_string(),
            });
            (format!("f0{id}"), shown)
        };
        Json(json!(state.actors.iter().map(of).collect::<BTreeMap<String, Value>>()))
    })
}
