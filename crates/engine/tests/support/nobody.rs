//! A chain that cannot be reached, no providers, and no key: what is packed stays packed.

use std::collections::BTreeMap;
use std::sync::Arc;

use floe_core::clock::BoxFuture;
use floe_core::cold::*;
use floe_core::place::Ask;
use floe_core::{ActorId, AttoFil, Epoch, FailureCode, PaddedSize};
use floe_engine::cold::Components;

struct Nobody;

pub(crate) fn components() -> Components {
    Components { chain: Arc::new(Nobody), market: Arc::new(Nobody), proposer: Arc::new(Nobody) }
}

fn away<T: Send + 'static>() -> BoxFuture<'static, Result<T, Fault>> {
    Box::pin(async { Err(Fault::new(FailureCode::ALL[0], "nobody is there")) })
}

impl Chain for Nobody {
    fn look(&self) -> BoxFuture<'_, Result<ChainView, Fault>> {
        away()
    }
    fn provider(&self, _: ActorId) -> BoxFuture<'_, Result<Option<ChainProvider>, Fault>> {
        away()
    }
    fn collateral(&self, _: PaddedSize) -> BoxFuture<'_, Result<AttoFil, Fault>> {
        away()
    }
    fn funds(&self) -> BoxFuture<'_, Result<FundsView, Fault>> {
        away()
    }
    fn published(&self, _: Epoch, _: Epoch) -> BoxFuture<'_, Result<Option<Vec<PublishedDeal>>, Fault>> {
        away()
    }
    fn deal<'a>(&'a self, _: u64, _: &'a SignedDeal) -> BoxFuture<'a, Result<Option<DealOnChain>, Fault>> {
        away()
    }
    fn own_deal(&self, _: u64) -> BoxFuture<'_, Result<Option<OwnDeal>, Fault>> {
        away()
    }
    fn max_fee(&self) -> AttoFil {
        AttoFil::ZERO
    }
    fn message<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<Sent>, Fault>> {
        away()
    }
    fn send<'a>(&'a self, _: &'a str, _: &'a FundsCall) -> BoxFuture<'a, Result<Sent, Fault>> {
        away()
    }
    fn tick<'a>(
        &'a self,
        _: bool,
        _: &'a BTreeMap<String, AttoFil>,
    ) -> BoxFuture<'a, Result<Vec<Sent>, Fault>> {
        away()
    }
}

impl Market for Nobody {
    fn ask<'a>(&'a self, _: &'a Contact) -> BoxFuture<'a, Result<Ask, Fault>> {
        away()
    }
    fn propose<'a>(&'a self, _: &'a Contact, _: &'a SignedDeal) -> BoxFuture<'a, Result<Answer, Fault>> {
        away()
    }
    fn status<'a>(&'a self, _: &'a Contact, _: DealUuid) -> BoxFuture<'a, Result<ProviderWord, Fault>> {
        away()
    }
}

impl Proposer for Nobody {
    fn wallet(&self) -> String {
        "t1nobody".to_owned()
    }
    fn sign<'a>(&'a self, _: &'a DealTerms) -> BoxFuture<'a, Result<SignedDeal, Fault>> {
        away()
    }
}
