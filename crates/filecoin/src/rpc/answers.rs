//! What the calls answer. Only the fields that are used; nodes add more from version to version.

use std::collections::BTreeMap;

use floe_core::Cid;
use serde::{Deserialize, Deserializer, Serialize};

use super::Permission;
use crate::market::DealProposal;
use crate::types::cbor::{Reader, Writer};
use crate::types::cid::json;
use crate::types::signature::base64;
use crate::types::{Address, AttoFil, Epoch, TipSetKey};

/// `Version`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeVersion {
    /// In words.
    pub version: String,
    /// Seconds of one epoch.
    pub block_delay: u64,
}

/// The blocks of one height that count together.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "RawTipSet")]
pub struct TipSet {
    /// Which blocks.
    pub key: TipSetKey,
    /// Its height.
    pub height: Epoch,
    /// When it was made by the producers' clocks, in seconds since the Unix epoch.
    pub timestamp: u64,
    /// The tipset before it.
    pub parents: TipSetKey,
    /// What one unit of gas costs in it, at least.
    pub base_fee: AttoFil,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawTipSet {
    cids: TipSetKey,
    blocks: Vec<RawBlock>,
    height: Epoch,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawBlock {
    parents: TipSetKey,
    height: Epoch,
    timestamp: u64,
    parent_base_fee: AttoFil,
}

impl TryFrom<RawTipSet> for TipSet {
    type Error = &'static str;

    fn try_from(raw: RawTipSet) -> Result<Self, &'static str> {
        let Some(first) = raw.blocks.first() else { return Err("a tipset without blocks") };
        if raw.blocks.len() != raw.cids.blocks().len() {
            return Err("a tipset with more names than blocks, or fewer");
        }
        let one = |b: &RawBlock| b.height == raw.height && b.parents == first.parents;
        if raw.height < Epoch::default() || !raw.blocks.iter().all(one) {
            return Err("a tipset whose blocks do not belong together");
        }
        Ok(Self {
            height: raw.height,
            timestamp: first.timestamp,
            base_fee: first.parent_base_fee,
            parents: first.parents.clone(),
            key: raw.cids,
        })
    }
}

/// One step of the head, from the subscription.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HeadChange {
    /// Which step.
    #[serde(rename = "Type")]
    pub kind: HeadChangeKind,
    /// The tipset that came or went.
    pub val: TipSet,
}

/// What happened to a tipset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadChangeKind {
    /// The head when the subscription began.
    Current,
    /// It is the head now.
    Apply,
    /// It is no longer part of the chain.
    Revert,
}

/// `StateGetActor`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Actor {
    /// The nonce its next message must have.
    pub nonce: u64,
    /// What it has.
    pub balance: AttoFil,
}

/// `StateMinerInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MinerInfo {
    /// Who owns it: replicas go to distinct owners.
    pub owner: Address,
    /// Who signs for it.
    pub worker: Address,
    /// Where it is reached; `None` where it does not say.
    pub peer_id: Option<String>,
    /// Multiaddrs, as bytes; often none. A stranger's word: they pass the dial filter before anything is dialled.
    #[serde(default, deserialize_with = "multiaddrs")]
    pub multiaddrs: Vec<Vec<u8>>,
    /// In bytes.
    pub sector_size: u64,
}

#[derive(Deserialize)]
struct Base64(#[serde(with = "base64")] Vec<u8>);

fn multiaddrs<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Vec<u8>>, D::Error> {
    Ok(Option::<Vec<Base64>>::deserialize(from)?.unwrap_or_default().into_iter().map(|a| a.0).collect())
}

/// `StateMinerPower`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MinerPower {
    /// This provider's.
    pub miner_power: Power,
    /// Whether it has enough to produce blocks.
    pub has_min_power: bool,
}

/// An amount of storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Power {
    /// In bytes.
    #[serde(deserialize_with = "decimal")]
    pub raw_byte_power: u128,
    /// In bytes, weighed.
    #[serde(deserialize_with = "decimal")]
    pub quality_adj_power: u128,
}

/// Lotus writes every big number in the form of an amount.
fn decimal<'de, D: Deserializer<'de>>(from: D) -> Result<u128, D::Error> {
    AttoFil::deserialize(from).map(AttoFil::get)
}

/// `StateSectorGetInfo`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SectorInfo {
    /// Its number.
    pub sector_number: u64,
    /// When it was proven first.
    pub activation: Epoch,
    /// When it ends.
    pub expiration: Epoch,
}

/// `StateSectorExpiration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SectorExpiration {
    /// When it ends by plan.
    pub on_time: Epoch,
    /// When it ends early; 0 for never.
    pub early: Epoch,
}

/// `StateMarketBalance`: what lies in escrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MarketBalance {
    /// All of it.
    pub escrow: AttoFil,
    /// What published deals hold.
    pub locked: AttoFil,
}

/// `StateMarketStorageDeal`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MarketDeal {
    /// As the chain holds it: the parties are ids.
    pub proposal: DealProposal,
    /// How it goes.
    pub state: DealState,
}

/// How a deal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DealState {
    /// Where it is stored.
    #[serde(default)]
    pub sector_number: u64,
    /// When it became active; not above 0 before.
    pub sector_start_epoch: Epoch,
    /// When the market last settled it.
    pub last_updated_epoch: Epoch,
    /// Never set since FIP-0074: a terminated deal is gone.
    pub slash_epoch: Epoch,
}

impl DealState {
    /// Whether the deal is active at the tipset that was asked for.
    pub fn is_active(&self) -> bool {
        self.sector_start_epoch > Epoch::default()
    }
}

/// `StateDealProviderCollateralBounds`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CollateralBounds {
    /// The least. Lotus' is the chain's and a tenth more.
    pub min: AttoFil,
    /// The most.
    pub max: AttoFil,
}

/// `StateSearchMsg` and `StateWaitMsg`: a message on the chain.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MessageLookup {
    /// Which message; another than was asked for where it was replaced.
    #[serde(with = "json")]
    pub message: Cid,
    /// What came of it.
    pub receipt: Receipt,
    /// The tipset that executed it.
    pub tip_set: TipSetKey,
    /// Its height.
    pub height: Epoch,
}

/// What came of a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Receipt {
    /// 0 where it did what it should.
    pub exit_code: i64,
    /// In CBOR.
    #[serde(rename = "Return", with = "base64")]
    pub result: Vec<u8>,
    /// How much gas it took.
    pub gas_used: u64,
}

/// What `GetActorEventsRaw` is asked for: events of the market, of one type, about one client, from one height to
/// another, both included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventFilter {
    addresses: [Address; 1],
    fields: BTreeMap<&'static str, [Wanted; 1]>,
    from_height: Epoch,
    to_height: Epoch,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Wanted {
    codec: u64,
    #[serde(serialize_with = "base64::serialize")]
    value: Vec<u8>,
}

/// CBOR, among the codecs of an event's values.
const CBOR: u64 = 0x51;

impl EventFilter {
    /// Deals that were published for the actor with the id `client`.
    pub fn published(client: u64, from_height: Epoch, to_height: Epoch) -> Self {
        let wanted = |write: &dyn Fn(&mut Writer)| {
            let mut value = Writer::default();
            write(&mut value);
            [Wanted { codec: CBOR, value: value.into_bytes() }]
        };
        let fields =
            [("$type", wanted(&|to| to.text(DEAL_PUBLISHED))), ("client", wanted(&|to| to.uint(client)))];
        Self { addresses: [Address::STORAGE_MARKET], fields: fields.into(), from_height, to_height }
    }
}

/// The type of the event that says that a deal came onto the chain.
const DEAL_PUBLISHED: &str = "deal-published";

/// One of the answers of `GetActorEventsRaw`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ActorEvent {
    entries: Vec<EventEntry>,
    /// Whose it is.
    pub emitter: Address,
    /// Whether a reorg took it back.
    pub reverted: bool,
    /// The tipset with its message.
    pub height: Epoch,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EventEntry {
    key: String,
    codec: u64,
    #[serde(with = "base64")]
    value: Vec<u8>,
}

impl ActorEvent {
    /// Whether it says that a deal was published.
    pub fn is_deal_published(&self) -> bool {
        let is_it =
            |value: &[u8]| Reader::new(value).and_then(|mut from| from.text().map(|t| t == DEAL_PUBLISHED));
        self.value("$type").is_some_and(|value| is_it(value).unwrap_or(false))
    }

    /// The number under `key`.
    pub fn number(&self, key: &str) -> Option<u64> {
        let mut from = Reader::new(self.value(key)?).ok()?;
        let number = from.uint().ok()?;
        from.end().ok().map(|()| number)
    }

    fn value(&self, key: &str) -> Option<&[u8]> {
        let entry = self.entries.iter().find(|entry| entry.key == key && entry.codec == CBOR);
        entry.map(|entry| entry.value.as_slice())
    }
}

/// `AuthVerify`: what a token allows.
pub type Permissions = Vec<Permission>;

#[cfg(test)]
mod tests {
    use super::*;

    const CID: &str = r#"{"/":"bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg"}"#;

    fn tipset(cids: &str, blocks: &[(i64, &str)], height: i64) -> Result<TipSet, serde_json::Error> {
        let block = |(height, parents): &(i64, &str)| {
            format!(r#"{{"Parents":[{parents}],"Height":{height},"Timestamp":7,"ParentBaseFee":"100"}}"#)
        };
        let blocks = blocks.iter().map(block).collect::<Vec<_>>().join(",");
        serde_json::from_str(&format!(r#"{{"Cids":[{cids}],"Blocks":[{blocks}],"Height":{height}}}"#))
    }

    #[test]
    fn a_tipset_whose_parts_do_not_fit_is_refused() {
        assert!(tipset(CID, &[(5, CID)], 5).is_ok());
        assert!(tipset("", &[], 5).is_err(), "no blocks");
        assert!(tipset(CID, &[(5, CID), (5, CID)], 5).is_err(), "more blocks than names");
        assert!(tipset(CID, &[(6, CID)], 5).is_err(), "a block of another height");
        assert!(tipset(CID, &[(-1, CID)], -1).is_err(), "a negative height");
        assert!(tipset(&format!("{CID},{CID}"), &[(5, CID), (5, "")], 5).is_err(), "other parents");
    }
}
