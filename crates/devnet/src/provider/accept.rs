//! Whether a provider takes a proposal: the rules of Boost and of Curio, in their order, with their texts.

use super::{Book, Manner, Terms};
use crate::chain::{Chain, FIRST_MINER};
use crate::faults::ProviderFaults;
use crate::limits::{PIECE_BYTES, PROVIDER_DEALS, STAGING_BYTES};
use crate::rpc::collateral_bound;
use crate::wire::address::Address;
use crate::wire::commp;
use crate::wire::deal::{DealParams, Proposal, uuid_text};

/// The refusal, as it is sent.
pub(super) fn check(
    terms: &Terms,
    book: &Book,
    chain: &Chain,
    faults: &ProviderFaults,
    params: &DealParams,
) -> Result<(), String> {
    let prefixed = |why: String| match terms.manner {
        Manner::Boost => format!("failed validation: {why}"),
        Manner::Curio => why,
    };
    validate(terms, chain, params).map_err(prefixed)?;
    duplicate(terms, book, params)?;
    match terms.manner {
        Manner::Boost => boost(terms, book, chain, params)?,
        Manner::Curio => curio(book, params)?,
    }
    match &faults.reject {
        Some(reason) => Err(reason.text(terms.manner)),
        None => Ok(()),
    }
}

/// What both check first. The order of the checks is that of the recording: the price before the size.
fn validate(terms: &Terms, chain: &Chain, params: &DealParams) -> Result<(), String> {
    let deal = &params.deal.proposal;
    signature(chain, params)?;
    if deal.provider != terms.miner {
        return Err(format!(
            "incorrect provider for deal; proposal.Provider: {}; provider.Address: {}",
            deal.provider, terms.miner
        ));
    }
    if deal.label.len() > 256 {
        return Err(format!("deal label can be at most 256 bytes, is {}", deal.label.len()));
    }
    if deal.piece_size < 128 {
        return Err("proposal piece size is invalid: minimum padded piece size is 128 bytes".into());
    }
    if !deal.piece_size.is_power_of_two() {
        return Err("proposal piece size is invalid: padded piece size must be a power of 2".into());
    }
    if commp::root_of(&deal.piece_cid).is_none() {
        return Err("proposal PieceCID had wrong prefix".into());
    }
    epochs(chain, deal)?;
    money(terms, chain, deal)
}

/// A signature that has not the form of one is the server's error, one of somebody else's is the client's.
fn signature(chain: &Chain, params: &DealParams) -> Result<(), String> {
    let deal = &params.deal;
    let Some(key) = chain.latest().key(deal.proposal.client) else {
        return Err("server error: validating signature".into());
    };
    let signed = deal.signature.verify(key, &deal.proposal.to_cbor().encode());
    signed.map_err(|_| "server error: validating signature".into())
}

fn epochs(chain: &Chain, deal: &Proposal) -> Result<(), String> {
    let (head, rules) = (chain.head().height, chain.rules());
    let (start, end) = (deal.start, deal.end);
    if end <= start {
        return Err(format!("proposal end {end} before proposal start {start}"));
    }
    if start < head {
        return Err(format!("deal start epoch {start} has already elapsed (current epoch: {head})"));
    }
    let (min, max, duration) = (rules.min_duration, rules.max_duration, deal.duration());
    if !(min..=max).contains(&duration) {
        return Err(format!("deal duration out of bounds (min, max, provided): {min}, {max}, {duration}"));
    }
    if end > head.saturating_add(max) {
        return Err(format!(
            "invalid deal end epoch {end}: cannot be more than {max} past current epoch {head}"
        ));
    }
    Ok(())
}

fn money(terms: &Terms, chain: &Chain, deal: &Proposal) -> Result<(), String> {
    let (collateral, min) = (deal.provider_collateral, collateral_bound(chain, deal.piece_size));
    if collateral < min {
        return Err(format!("proposed provider collateral {collateral} below minimum {min}"));
    }
    if collateral > 2 * min {
        return Err(format!("proposed provider collateral {collateral} above maximum {}", 2 * min));
    }
    let (price, least) = (deal.price_per_epoch, terms.price.saturating_mul(deal.piece_size.into()) >> 30);
    if price < least {
        return Err(format!("storage price per epoch less than asking price: {price} < {least}"));
    }
    let (size, min, max) = (deal.piece_size, terms.min_piece_size, terms.max_piece_size);
    if size < min {
        return Err(format!("piece size less than minimum required size: {size} < {min}"));
    }
    if size > max {
        return Err(format!("piece size more than maximum allowed size: {size} > {max}"));
    }
    let state = chain.latest();
    let balance = state.id(deal.client).map(|id| state.market.balance(id)).unwrap_or_default();
    let (have, cost) = (balance.escrow - balance.locked, deal.client_requirement());
    if have < cost {
        return Err(format!(
            "client available funds in escrow {have} not enough to meet storage cost for deal {cost}"
        ));
    }
    if deal.verified {
        return Err("client is not a verified client".into());
    }
    Ok(())
}

fn duplicate(terms: &Terms, book: &Book, params: &DealParams) -> Result<(), String> {
    let cid = params.deal.proposal.cid();
    let known = book.deals.values().filter(|known| !known.refused);
    for known in known {
        let same_uuid = known.params.uuid == params.uuid;
        let same = known.params.deal.proposal.cid() == cid;
        match terms.manner {
            Manner::Curio if same => {
                return Err(format!(
                    "market deal with the same proposalCID {} already exists",
                    params.deal.cid()
                ));
            }
            // The row of the uuid is there: Curio's insert says so.
            Manner::Curio if same_uuid => return Err("expected to insert 1 row, updated 0 rows".into()),
            Manner::Boost if same || same_uuid => {
                let what =
                    if same_uuid { "deal has the same uuid as" } else { "deal proposal is identical to" };
                return Err(format!(
                    "{what} deal {} (proposed at {})",
                    uuid_text(&known.params.uuid),
                    go_time(known.accepted_time)
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn boost(terms: &Terms, book: &Book, chain: &Chain, params: &DealParams) -> Result<(), String> {
    let (head, start) = (chain.head().height, params.deal.proposal.start);
    let earliest = head.saturating_add(terms.seal_lead);
    if start < earliest {
        return Err(format!("cannot seal a sector before {earliest}"));
    }
    // Boost's MaxDealStartDelay is 14 days of 2880 epochs.
    let latest = earliest.saturating_add(14 * 2880);
    if !params.offline && start > latest {
        return Err(format!("deal start epoch is too far in the future: {start} > {latest}"));
    }
    if params.offline {
        return Ok(());
    }
    let transfer = &params.transfer;
    if !matches!(transfer.kind.as_str(), "http" | "libp2p") {
        return Err(format!(
            "server error: get deal transfer host: cannot parse params for unrecognized transfer type '{}'",
            transfer.kind
        ));
    }
    if transfer.params.is_empty() {
        return Err(
            "server error: get deal transfer host: failed to de-serialize transport params bytes '': \
                    unexpected end of JSON input"
                .into(),
        );
    }
    if !has_space(book, params) {
        return Err("server error: provider has no space left for storage deals".into());
    }
    let state = chain.latest();
    let own = state.id(terms.miner).unwrap_or(FIRST_MINER);
    let balance = state.market.balance(own);
    if balance.escrow - balance.locked < params.deal.proposal.provider_collateral {
        return Err("server error: provider has insufficient funds to accept deal".into());
    }
    Ok(())
}

fn curio(book: &Book, params: &DealParams) -> Result<(), String> {
    if params.offline {
        return Err("offline deals are not allowed on this provider".into());
    }
    if params.transfer.kind == "libp2p" {
        return Err("libp2p URLs are not supported by this provider".into());
    }
    if !has_space(book, params) {
        return Err("deal rejected due to backpressure. Please retry in some time.".into());
    }
    let (size, padded) = (params.deal.proposal.piece_size, commp::padded_size(params.transfer.size));
    if size != padded {
        return Err(format!("deal proposal piece size {size} doesn't match padded piece size {padded}"));
    }
    Ok(())
}

fn has_space(book: &Book, params: &DealParams) -> bool {
    let size = params.transfer.size;
    size <= PIECE_BYTES
        && book.staged.saturating_add(size) <= STAGING_BYTES
        && book.deals.len() < PROVIDER_DEALS
}

/// Seconds and nanoseconds since 1970 as Go prints a time.
fn go_time((seconds, nanos): (u64, usize)) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let fraction = format!(".{:09}", nanos % 1_000_000_000);
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}{fraction} +0000 UTC",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The date of a day since 1970, counted in years that begin in March.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

/// The client of a deal as an address that can sign.
pub(super) fn client_key(chain: &Chain, client: Address) -> Option<Address> {
    chain.latest().key(client)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_printed_as_go_does() {
        assert_eq!(go_time((0, 0)), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(go_time((1_709_210_096, 1)), "2024-02-29 12:34:56.000000001 +0000 UTC");
        assert_eq!(go_time((1_785_252_725, 500_000_000)), "2026-07-28 15:32:05.5 +0000 UTC");
    }
}
