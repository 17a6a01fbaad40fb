//! Who is meant on the chain: an id, a key, an actor's hash, or a name below another actor.
//!
//! The same actor has up to four addresses, so two that differ may be one: compare after the node resolved both to
//! ids. The text begins with `f` on mainnet and `t` elsewhere; Lotus writes whichever it was built for, and both are
//! read everywhere. All forms are strict: one text and one byte string for each address.

use std::fmt;
use std::str::FromStr;

use data_encoding::{Encoding, Specification};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::sync::LazyLock;

use super::cbor::{Cbor, CborError, Reader, Writer};

/// Bytes of a hash in an address.
const HASH: usize = 20;
/// Bytes of a BLS public key.
const BLS_KEY: usize = 48;
/// Bytes of a checksum.
const CHECKSUM: usize = 4;
/// Bytes that an address may name below another actor.
const MAX_SUBADDRESS: usize = 54;
/// Characters of the longest text: `f4`, an id of 20 digits, `f`, and 58 bytes in base32.
const MAX_TEXT: usize = 2 + 20 + 1 + 93;

/// Bits at the end of a base32 text that mean nothing must be zero, or one address would have many texts.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    // A constant specification: it is right or no test passes.
    specification.encoding().unwrap_or(data_encoding::BASE32_NOPAD)
});

/// Not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a Filecoin address: {what}")]
pub struct AddressError {
    /// What was given, cut.
    pub text: String,
    /// What is wrong with it.
    pub what: &'static str,
}

/// The first letter of an address' text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// `f`.
    #[default]
    Mainnet,
    /// `t`.
    Testnet,
}

/// An address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// `f0`: the number the chain gave to an actor.
    Id(u64),
    /// `f1`: BLAKE2b-160 of a secp256k1 public key.
    Secp256k1([u8; HASH]),
    /// `f2`: BLAKE2b-160 of what made an actor.
    Actor([u8; HASH]),
    /// `f3`: a BLS public key.
    Bls([u8; BLS_KEY]),
    /// `f4`: a name that another actor gives.
    Delegated(Delegated),
}

/// The parts of an `f4` address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Delegated {
    namespace: u64,
    len: u8,
    bytes: [u8; MAX_SUBADDRESS],
}

impl Delegated {
    fn new(namespace: u64, name: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_SUBADDRESS];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        let namespace = i64::try_from(namespace).ok()?.unsigned_abs();
        Some(Self { namespace, len: u8::try_from(name.len()).ok()?, bytes })
    }

    fn name(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Address {
    /// The storage market, f05.
    pub const STORAGE_MARKET: Self = Self::Id(5);

    /// The address of a secp256k1 key: `key` is its uncompressed form of 65 bytes.
    pub fn of_secp256k1(key: &[u8; 65]) -> Self {
        Self::Secp256k1(blake2b::<HASH>(&[key]))
    }

    fn protocol(&self) -> u8 {
        match self {
            Self::Id(_) => 0,
            Self::Secp256k1(_) => 1,
            Self::Actor(_) => 2,
            Self::Bls(_) => 3,
            Self::Delegated(_) => 4,
        }
    }

    /// The protocol byte and the payload, as in CBOR and in hashes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![self.protocol()];
        let mut buffer = unsigned_varint::encode::u64_buffer();
        match self {
            Self::Id(id) => out.extend(unsigned_varint::encode::u64(*id, &mut buffer)),
            Self::Secp256k1(hash) | Self::Actor(hash) => out.extend(hash),
            Self::Bls(key) => out.extend(key),
            Self::Delegated(name) => {
                out.extend(unsigned_varint::encode::u64(name.namespace, &mut buffer));
                out.extend(name.name());
            }
        }
        out
    }

    /// Reads the byte form; it must fill `bytes`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        let (protocol, payload) = bytes.split_first().ok_or("an address of no bytes")?;
        let number =
            |bytes| unsigned_varint::decode::u64(bytes).map_err(|_| "an id that is no shortest varint");
        match protocol {
            0 => match number(payload)? {
                (id, []) if i64::try_from(id).is_ok() => Ok(Self::Id(id)),
                (_, []) => Err("an id of more than 63 bits"),
                _ => Err("bytes behind the id"),
            },
            1 => Ok(Self::Secp256k1(payload.try_into().map_err(|_| "a hash that has not 20 bytes")?)),
            2 => Ok(Self::Actor(payload.try_into().map_err(|_| "a hash that has not 20 bytes")?)),
            3 => Ok(Self::Bls(payload.try_into().map_err(|_| "a BLS key that has not 48 bytes")?)),
            4 => {
                let (namespace, name) = number(payload)?;
                Delegated::new(namespace, name)
                    .map(Self::Delegated)
                    .ok_or("a delegated name that is too long")
            }
            _ => Err("an unknown protocol"),
        }
    }

    /// The text, with the letter of `network`.
    pub fn to_text(&self, network: Network) -> String {
        let letter = match network {
            Network::Mainnet => 'f',
            Network::Testnet => 't',
        };
        let bytes = self.to_bytes();
        let checked = |payload: &[u8]| BASE32.encode(&[payload, &blake2b::<CHECKSUM>(&[&bytes])].concat());
        match self {
            Self::Id(id) => format!("{letter}0{id}"),
            Self::Delegated(name) => format!("{letter}4{}f{}", name.namespace, checked(name.name())),
            _ => format!("{letter}{}{}", self.protocol(), checked(&bytes[1..])),
        }
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.len() > MAX_TEXT {
            return Err("it is too long");
        }
        let rest = text.strip_prefix(['f', 't']).ok_or("it does not begin with f or t")?;
        let protocol = rest.bytes().next().filter(u8::is_ascii_digit).ok_or("it names no protocol")? - b'0';
        let payload = &rest[1..];
        if protocol == 0 {
            return id(payload).map(Self::Id);
        }
        let (namespace, encoded) = match protocol {
            4 => {
                let (namespace, encoded) = payload.split_once('f').ok_or("it names no namespace")?;
                (Some(id(namespace)?), encoded)
            }
            _ => (None, payload),
        };
        let decoded = BASE32.decode(encoded.as_bytes()).map_err(|_| "it is not lower-case base32")?;
        let at = decoded.len().checked_sub(CHECKSUM).ok_or("it has no checksum")?;
        let (name, checksum) = decoded.split_at(at);
        let mut buffer = unsigned_varint::encode::u64_buffer();
        let namespace = namespace.map(|id| unsigned_varint::encode::u64(id, &mut buffer)).unwrap_or_default();
        let bytes = [&[protocol], namespace, name].concat();
        let address = Self::from_bytes(&bytes)?;
        if blake2b::<CHECKSUM>(&[&bytes]) != checksum {
            return Err("its checksum does not match: a character is wrong");
        }
        Ok(address)
    }
}

fn id(text: &str) -> Result<u64, &'static str> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return Err("its id is not a number without leading zeros");
    }
    let id: i64 = text.parse().map_err(|_| "its id has more than 63 bits")?;
    Ok(id.unsigned_abs())
}

/// BLAKE2b with `N` bytes of digest.
pub(crate) fn blake2b<const N: usize>(parts: &[&[u8]]) -> [u8; N] {
    let mut state = blake2b_simd::Params::new().hash_length(N).to_state();
    for part in parts {
        state.update(part);
    }
    let mut out = [0; N];
    out.copy_from_slice(state.finalize().as_bytes());
    out
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text(Network::Mainnet))
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text).map_err(|what| AddressError { text: text.chars().take(MAX_TEXT).collect(), what })
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Cbor for Address {
    fn write(&self, to: &mut Writer) {
        to.bytes(&self.to_bytes());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        Self::from_bytes(from.bytes()?).map_err(|what| from.malformed(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_address() -> impl Strategy<Value = Address> {
        let name = proptest::collection::vec(any::<u8>(), 0..=MAX_SUBADDRESS);
        prop_oneof![
            (0..=i64::MAX as u64).prop_map(Address::Id),
            any::<[u8; HASH]>().prop_map(Address::Secp256k1),
            any::<[u8; HASH]>().prop_map(Address::Actor),
            proptest::collection::vec(any::<u8>(), BLS_KEY)
                .prop_map(|key| Address::Bls(key.try_into().unwrap())),
            (0..=i64::MAX as u64, name)
                .prop_map(|(n, name)| Address::Delegated(Delegated::new(n, &name).unwrap())),
        ]
    }

    /// Texts that a real Lotus wrote.
    #[test]
    fn texts_of_every_protocol_come_back() {
        for text in [
            "f05",
            "f01000",
            "f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy",
            "f2ch7krq7l35i74rebqbjdsp3ucl47t24e3juxjfa",
            "f3w27lmvh35ysezgggzctk57bkvwx7twqk67jbjjfcx5k3kgfu3ugudc7skynnlsbzicxzc4rn5sfrz7kzchgq",
            "f410fwlkqzhyihmn7c5tdwlxdva2tuos53aw5ev5nkwy",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), text);
            let test = text.replacen('f', "t", 1);
            assert_eq!(test.parse(), Ok(address), "the letter names the network and not the actor");
            assert_eq!(address.to_text(Network::Testnet), test);
        }
    }

    #[test]
    fn texts_that_are_not_the_only_one_are_refused() {
        for (text, what) in [
            ("", "begin"),
            ("x05", "begin"),
            ("f", "protocol"),
            ("f5aaaaaaaaaaaaaaaa", "unknown"),
            ("f0", "number"),
            ("f005", "leading zeros"),
            ("f0-1", "number"),
            ("f09223372036854775808", "63 bits"),
            // What the recorded Lotus calls `invalid address checksum`.
            ("f1wxjaqxngcxkqz3qqmgpqdxqxfqvqr4ldhtfgnha", "checksum"),
            ("f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhz", "base32"),
            ("f1M2UTKKEDRYX7S56KYQEPHGAV2GR225XXRPEGYHY", "base32"),
            ("f1m2utkkedryx7s56kyqephgav2gr225xx", "20 bytes"),
            ("f4wlkqzhyihmn", "namespace"),
            ("<empty>", "begin"),
        ] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().contains(what), "{error}");
        }
        assert!("f1".repeat(200).parse::<Address>().unwrap_err().text.len() <= MAX_TEXT);
    }

    #[test]
    fn ids_beyond_63_bits_and_long_varints_are_refused() {
        assert!(Address::from_bytes(&[0, 0x80, 0]).is_err());
        assert!(Address::from_bytes(&[0, 5, 0]).is_err());
        assert!(Address::from_bytes(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
        assert!(Address::from_bytes(&[4, 10].iter().copied().chain([7; 55]).collect::<Vec<_>>()).is_err());
        assert!(Address::from_bytes(&[]).is_err());
    }

    proptest! {
        #[test]
        fn addresses_come_back(address in any_address()) {
            prop_assert_eq!(address.to_string().parse(), Ok(address));
            prop_assert_eq!(Address::from_cbor(&address.to_cbor()), Ok(address));
        }

        #[test]
        fn bytes_that_are_read_are_written_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(address) = Address::from_bytes(&bytes) {
                prop_assert_eq!(address.to_bytes(), bytes);
            }
        }
    }
}
