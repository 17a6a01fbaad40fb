//! Addresses: bytes and text. The node prints `f`; it reads `f` and `t`.

use std::fmt;
use std::str::FromStr;

use data_encoding::{Encoding, Specification};
use serde::{Serialize, Serializer};

use super::{Malformed, malformed};

/// The actors whose id is the protocol's.
pub(crate) const MARKET: Address = Address::Id(5);

/// An address. `Hash` protocols carry their payload; which kinds can sign is `key`'s matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Address {
    /// f0: an actor's id.
    Id(u64),
    /// f1: the hash of a secp256k1 key.
    Secp([u8; 20]),
    /// f2: the hash of an actor's creation.
    Actor([u8; 20]),
    /// f3: a BLS key.
    Bls([u8; 48]),
    /// f410: an Ethereum address.
    Eth([u8; 20]),
}

/// Base32 of RFC 4648 in lower case, without padding. A constant specification is a valid one.
fn base32() -> Encoding {
    let mut spec = Specification::new();
    spec.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    spec.encoding().unwrap_or(data_encoding::BASE32_NOPAD)
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    let mut out = [0; 4];
    out.copy_from_slice(blake2b_simd::Params::new().hash_length(4).hash(bytes).as_bytes());
    out
}

fn leb128(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn unleb128(bytes: &[u8]) -> Option<u64> {
    let (last, more) = bytes.split_last()?;
    if bytes.len() > 9 || *last >= 0x80 || (*last == 0 && !more.is_empty()) {
        return None;
    }
    more.iter()
        .all(|byte| *byte >= 0x80)
        .then(|| bytes.iter().rev().fold(0, |sum, byte| sum << 7 | u64::from(byte & 0x7f)))
}

impl Address {
    /// Protocol byte and payload.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Id(id) => [vec![0], leb128(id)].concat(),
            Self::Secp(hash) => [&[1][..], &hash].concat(),
            Self::Actor(hash) => [&[2][..], &hash].concat(),
            Self::Bls(key) => [&[3][..], &key].concat(),
            Self::Eth(payload) => [&[4, 10][..], &payload].concat(),
        }
    }

    /// Reads protocol byte and payload.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Malformed> {
        let read = match bytes.split_first() {
            Some((0, id)) => unleb128(id).map(Self::Id),
            Some((1, hash)) => hash.try_into().ok().map(Self::Secp),
            Some((2, hash)) => hash.try_into().ok().map(Self::Actor),
            Some((3, key)) => key.try_into().ok().map(Self::Bls),
            Some((4, [10, payload @ ..])) => payload.try_into().ok().map(Self::Eth),
            _ => None,
        };
        read.ok_or_else(|| Malformed("invalid address payload".into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.to_bytes();
        let (prefix, payload) = match self {
            Self::Id(id) => return write!(f, "f0{id}"),
            Self::Eth(_) => ("410f".to_owned(), &bytes[2..]),
            _ => (bytes[0].to_string(), &bytes[1..]),
        };
        let text = base32().encode(&[payload, &checksum(&bytes)].concat());
        write!(f, "f{prefix}{text}")
    }
}

impl FromStr for Address {
    type Err = Malformed;

    /// Errors are worded as Lotus words them.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() < 3 {
            return malformed("invalid address length");
        }
        let Some(rest) = text.strip_prefix('f').or_else(|| text.strip_prefix('t')) else {
            return malformed("unknown address network");
        };
        if let Some(digits) = rest.strip_prefix('0') {
            let canonical = digits.parse::<u64>().ok().filter(|id| id.to_string() == digits);
            return canonical
                .filter(|id| i64::try_from(*id).is_ok())
                .map(Self::Id)
                .ok_or_else(|| Malformed("invalid address payload".into()));
        }
        let (head, text) = match rest.split_at_checked(1) {
            Some(("1", text)) => (vec![1], text),
            Some(("2", text)) => (vec![2], text),
            Some(("3", text)) => (vec![3], text),
            Some(("4", text)) => match text.strip_prefix("10f") {
                Some(text) => (vec![4, 10], text),
                None => return malformed("invalid address payload"),
            },
            _ => return malformed("unknown address protocol"),
        };
        let bytes = base32().decode(text.as_bytes()).map_err(|e| Malformed(e.to_string()))?;
        let Some((payload, sum)) = bytes.split_last_chunk::<4>() else {
            return malformed("invalid address length");
        };
        let bytes = [&head, payload].concat();
        let address = Self::from_bytes(&bytes)?;
        if checksum(&bytes) != *sum {
            return malformed("invalid address checksum");
        }
        Ok(address)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn addresses() -> impl Strategy<Value = Address> {
        prop_oneof![
            (0..u64::MAX / 2).prop_map(Address::Id),
            any::<[u8; 20]>().prop_map(Address::Secp),
            any::<[u8; 20]>().prop_map(Address::Actor),
            (any::<[u8; 32]>(), any::<[u8; 16]>()).prop_map(|(a, b)| {
                let mut key = [0; 48];
                key[..32].copy_from_slice(&a);
                key[32..].copy_from_slice(&b);
                Address::Bls(key)
            }),
            any::<[u8; 20]>().prop_map(Address::Eth),
        ]
    }

    proptest! {
        #[test]
        fn bytes_and_text_round_trip(address in addresses()) {
            prop_assert_eq!(Address::from_bytes(&address.to_bytes()).unwrap(), address);
            prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
            let testnet = address.to_string().replacen('f', "t", 1);
            prop_assert_eq!(testnet.parse::<Address>().unwrap(), address);
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,90}") {
            let _ = text.parse::<Address>();
        }
    }

    #[test]
    fn recorded_addresses_and_refusals() {
        for text in [
            "f05",
            "f01000",
            "f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy",
            "f3w27lmvh35ysezgggzctk57bkvwx7twqk67jbjjfcx5k3kgfu3ugudc7skynnlsbzicxzc4rn5sfrz7kzchgq",
            "f410fwlkqzhyihmn7c5tdwlxdva2tuos53aw5ev5nkwy",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let refused = |text: &str| text.parse::<Address>().unwrap_err().0;
        assert_eq!(refused("f1wxjaqxngcxkqz3qqmgpqdxqxfqvqr4ldhtfgnha"), "invalid address checksum");
        assert_eq!(refused("notanaddress"), "unknown address network");
        assert_eq!(refused("f0007"), "invalid address payload");
    }
}
