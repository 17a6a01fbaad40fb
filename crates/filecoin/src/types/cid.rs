//! CIDs as the chain has them: in JSON `{"/": "bafy…"}`, hashed with BLAKE2b-256 over dag-cbor.
//!
//! The chain also uses hash functions that `floe_core::cid` does not take for content (Poseidon for sectors,
//! SHA2-256 cut to 254 bits for pieces): here a CID is a name, so only its length is bounded.

use std::borrow::Cow;

use floe_core::cid::code;
use floe_core::{Cid, Multihash};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::limits::{MAX_CID_BYTES, MAX_TIPSET_BLOCKS};

/// BLAKE2b with 32 bytes of digest.
const BLAKE2B_256: u64 = 0xb220;

/// The dag-cbor CID with BLAKE2b-256: of messages, blocks and proposals.
pub fn blake2b_cid(cbor: &[u8]) -> Cid {
    dag_cbor(BLAKE2B_256, &super::address::blake2b::<32>(&[cbor]))
}

/// The dag-cbor CID with SHA2-256: of signed proposals.
pub fn sha2_cid(cbor: &[u8]) -> Cid {
    dag_cbor(code::SHA2_256, &sha2::Sha256::digest(cbor))
}

fn dag_cbor(hash: u64, digest: &[u8]) -> Cid {
    // 32 bytes fit a multihash of up to 128.
    let hash = Multihash::wrap(hash, digest).unwrap_or_default();
    Cid::new_v1(code::DAG_CBOR, hash)
}

/// A CID that fills `bytes` and is written in their form.
pub(crate) fn parse_bytes(bytes: &[u8]) -> Option<Cid> {
    let cid = Cid::try_from(bytes).ok().filter(|_| bytes.len() <= MAX_CID_BYTES)?;
    (cid.to_bytes() == bytes).then_some(cid)
}

fn parse_text(text: &str) -> Option<Cid> {
    // The library takes what stands behind `/ipfs/` in whatever text.
    let plain = text.len() <= 4 * MAX_CID_BYTES && !text.contains('/');
    Cid::try_from(text).ok().filter(|_| plain)
}

#[derive(Serialize, Deserialize)]
struct Link<'a> {
    #[serde(rename = "/", borrow)]
    text: Cow<'a, str>,
}

/// A CID in JSON. For fields: `#[serde(with = "json")]`.
pub(crate) mod json {
    use super::{Cid, Cow, Deserialize, Deserializer, Link, Serialize, Serializer, parse_text};

    pub(crate) fn serialize<S: Serializer>(cid: &Cid, to: S) -> Result<S::Ok, S::Error> {
        Link { text: Cow::Owned(cid.to_string()) }.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Cid, D::Error> {
        let link = Link::deserialize(from)?;
        parse_text(&link.text).ok_or_else(|| serde::de::Error::custom("a CID that cannot be read"))
    }
}

/// A CID in JSON, as a parameter or a result of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonCid(#[serde(with = "json")] pub Cid);

/// Which blocks make a tipset. Empty means "the head", wherever a call takes a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct TipSetKey(Vec<Cid>);

impl TipSetKey {
    /// The head, whatever it is when the node reads this.
    pub const HEAD: Self = Self(Vec::new());

    /// Of these blocks; `None` where they are too many.
    pub fn new(blocks: Vec<Cid>) -> Option<Self> {
        (blocks.len() <= MAX_TIPSET_BLOCKS).then_some(Self(blocks))
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Cid] {
        &self.0
    }
}

impl Serialize for TipSetKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(|cid| JsonCid(*cid)))
    }
}

impl<'de> Deserialize<'de> for TipSetKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let blocks = Option::<Vec<JsonCid>>::deserialize(from)?.unwrap_or_default();
        Self::new(blocks.into_iter().map(|cid| cid.0).collect())
            .ok_or_else(|| serde::de::Error::custom("a tipset of too many blocks"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cids_in_json_are_what_lotus_writes() {
        // A sealed sector (Poseidon), a piece (SHA2-256 cut to 254 bits), a message, a root with its data inline.
        for text in [
            "bagboea4b5abcao3nnhd752u5kkwfgmwnrz7c7ya5gcczn6gum7lowkau4wfku2om",
            "baga6ea4seaqe5krkbimondjjfz5cthytf64ikgnneo44n2otbfbl5ymgcruvmli",
            "bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg",
        ] {
            let json = format!("{{\"/\":\"{text}\"}}");
            let cid: JsonCid = serde_json::from_str(&json).unwrap();
            assert_eq!(serde_json::to_string(&cid).unwrap(), json);
        }
        for bad in [
            "{\"/\":\"\"}",
            "{\"/\":1}",
            "\"bafy\"",
            "{}",
            "{\"/\":\"http://x/ipfs/QmQg1v4o9xdT3Q14wh4S7dxZkDjyZ9ssFzFzyep1YrVJBY\"}",
        ] {
            assert!(serde_json::from_str::<JsonCid>(bad).is_err(), "{bad}");
        }
        let long = format!("{{\"/\":\"b{}\"}}", "a".repeat(5 * MAX_CID_BYTES));
        assert!(serde_json::from_str::<JsonCid>(&long).is_err());
    }

    #[test]
    fn a_key_has_a_bounded_number_of_blocks() {
        let key = |blocks| serde_json::to_string(&vec![JsonCid(blake2b_cid(b"")); blocks]).unwrap();
        assert!(serde_json::from_str::<TipSetKey>(&key(MAX_TIPSET_BLOCKS)).is_ok());
        assert!(serde_json::from_str::<TipSetKey>(&key(MAX_TIPSET_BLOCKS + 1)).is_err());
        assert_eq!(serde_json::from_str::<TipSetKey>("null").unwrap(), TipSetKey::HEAD);
        assert_eq!(serde_json::to_string(&TipSetKey::HEAD).unwrap(), "[]");
    }
}
