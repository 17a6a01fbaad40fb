//! Any bytes as each of the CBOR values that providers and the chain give: a value or an error, in bounded memory; what is read
//! is written in one form, and that is read as the same.
#![no_main]

use floe_filecoin::market::mk12::{AskResponse, DealParams, DealResponse, DealStatusResponse, Transports};
use floe_filecoin::market::{ClientDealProposal, DealProposal};
use floe_filecoin::types::cbor::Cbor;
use floe_filecoin::types::{Message, SignedMessage};
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

fn read<T: Cbor + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let Ok(value) = within(data.len(), BASE, || T::from_cbor(data)) else { return };
    assert_eq!(T::from_cbor(&value.to_cbor()).as_ref(), Ok(&value));
}

fuzz_target!(|input: (u8, &[u8])| {
    let (which, data) = input;
    match which % 9 {
        0 => read::<DealResponse>(data),
        1 => read::<DealStatusResponse>(data),
        2 => read::<AskResponse>(data),
        3 => read::<Transports>(data),
        4 => read::<DealProposal>(data),
        5 => read::<ClientDealProposal>(data),
        6 => read::<DealParams>(data),
        7 => read::<Message>(data),
        _ => read::<SignedMessage>(data),
    }
});
