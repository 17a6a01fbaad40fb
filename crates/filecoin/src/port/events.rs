//! Deals that came onto the chain, from the market's events.

use floe_core::cold::{Fault, PublishedDeal};
use floe_core::{ActorId, FailureCode};

use crate::limits::{self, EVENT_WINDOW, MAX_PUBLISHED};
use crate::rpc::answers::{ActorEvent, EventFilter};
use crate::rpc::{Fault as Refusal, Lotus, RpcError};
use crate::types::{Address, Epoch};

/// The deals that were published for `client` from one height to another, both included, in the order of the chain.
/// `None` where the node keeps no events, or a gateway does not look back so far.
pub(super) async fn published(
    lotus: &Lotus,
    client: u64,
    from: Epoch,
    to: Epoch,
) -> Result<Option<Vec<PublishedDeal>>, Fault> {
    let mut found = Vec::new();
    let mut start = from.max(Epoch::default());
    while start <= to {
        let end = start.plus(EVENT_WINDOW - 1).min(to);
        let events = match lotus.actor_events(&EventFilter::published(client, start, end)).await {
            Ok(events) => events,
            Err(error) if keeps_none(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().filter(|event| !event.reverted) {
            found.push(deal(event, client, start, end)?);
        }
        if found.len() > MAX_PUBLISHED {
            limits::hit("published_deals");
            let text =
                format!("the node has more than {MAX_PUBLISHED} events of our deals from {from} to {to}");
            return Err(Fault::new(FailureCode::ChainUnreachable, text));
        }
        start = end.plus(1);
    }
    found.sort_by_key(|deal| (deal.height, deal.deal_id));
    found.dedup();
    Ok(Some(found))
}

fn keeps_none(error: &RpcError) -> bool {
    matches!(error, RpcError::UnknownMethod { .. })
        || matches!(error.fault(), Some(Refusal::NoEvents | Refusal::TooFarBack))
}

/// An event must be what was asked for: a node that answers with others' deals is not believed at all.
fn deal(event: &ActorEvent, client: u64, from: Epoch, to: Epoch) -> Result<PublishedDeal, Fault> {
    let ours = event.emitter == Address::STORAGE_MARKET
        && event.is_deal_published()
        && event.number("client") == Some(client)
        && (from..=to).contains(&event.height);
    let deal = ours.then(|| event.number("id").zip(event.number("provider"))).flatten();
    let (deal_id, provider) = deal.ok_or_else(|| {
        let text =
            "Filecoin.GetActorEventsRaw: the Lotus node answered with another event than was asked for";
        Fault::new(FailureCode::ChainUnreachable, text)
    })?;
    Ok(PublishedDeal { deal_id, provider: ActorId::new(provider), piece: None, height: event.height })
}
