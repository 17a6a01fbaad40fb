//! The wallet of the cold half, for its operator: what there is, top-ups, and what is taken out.
//!
//! Each call carries an `Idempotency-Key`: money that is sent twice because an answer was lost is gone.

use axum::Json;
use axum::extract::State;
use floe_core::AttoFil;
use floe_core::cold::FundsCall;
use floe_engine::cold::{Wallet, WalletCall};
use serde::Deserialize;

use crate::access::{Admin, Caller};
use crate::body::Sent;
use crate::error::ApiError;
use crate::limits;
use crate::router::ApiState;

type Answer<T> = Result<Json<T>, ApiError>;

pub(crate) async fn show(State(state): State<ApiState>, _: Caller<Admin>) -> Answer<Wallet> {
    Ok(Json(state.engine.wallet().await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Amount {
    amount: AttoFil,
}

pub(crate) async fn fund(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    sent: Sent<Amount>,
) -> Answer<WalletCall> {
    let amount = positive(sent.value.amount)?;
    call(&state, sent.key, FundsCall::TopUp(amount)).await
}

pub(crate) async fn withdraw(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    sent: Sent<Amount>,
) -> Answer<WalletCall> {
    let amount = positive(sent.value.amount)?;
    call(&state, sent.key, FundsCall::Withdraw(amount)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Transfer {
    to: String,
    amount: AttoFil,
}

pub(crate) async fn send(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    sent: Sent<Transfer>,
) -> Answer<WalletCall> {
    let Transfer { to, amount } = sent.value;
    if to.len() > limits::ADDRESS_BYTES {
        limits::hit("address_bytes");
        return Err(ApiError::bad_request("to: this is no address"));
    }
    call(&state, sent.key, FundsCall::Send { to, amount: positive(amount)? }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Deals {
    /// None: all that came to nothing and still lock their price.
    #[serde(default)]
    deals: Vec<u64>,
}

pub(crate) async fn settle(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    sent: Sent<Deals>,
) -> Answer<WalletCall> {
    let deals = sent.value.deals;
    if deals.len() > limits::DEALS_SETTLED {
        limits::hit("deals_settled");
        let most = limits::DEALS_SETTLED;
        return Err(ApiError::bad_request(format!(
            "deals: name at most {most} deals by their numbers on the chain, or none for all that lock their price for nothing"
        )));
    }
    call(&state, sent.key, FundsCall::Settle(deals)).await
}

fn positive(amount: AttoFil) -> Result<AttoFil, ApiError> {
    if amount.is_zero() { Err(ApiError::bad_request("amount: it is above 0")) } else { Ok(amount) }
}

async fn call(
    state: &ApiState,
    key: Option<floe_engine::IdempotencyKey>,
    call: FundsCall,
) -> Answer<WalletCall> {
    let Some(key) = key else {
        return Err(ApiError::bad_request(
            "Idempotency-Key: what is paid needs one, so that it is not paid twice where an answer is lost",
        ));
    };
    Ok(Json(state.engine.wallet_call(&key.key, &call).await?.into()))
}
