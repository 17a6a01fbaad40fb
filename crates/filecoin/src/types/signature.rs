//! Signatures: a kind and its bytes. Made and checked in `signer`; here only their forms.

use serde::{Deserialize, Serialize};

use super::cbor::{Cbor, CborError, Reader, Writer};

/// What made a signature. The numbers are the chain's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum SignatureKind {
    /// secp256k1 over BLAKE2b-256: r, s and v, 65 bytes.
    Secp256k1 = 1,
    /// BLS over the bytes: 96 bytes.
    Bls = 2,
    /// An Ethereum account's: 65 bytes.
    Delegated = 3,
}

impl SignatureKind {
    const fn bytes(self) -> usize {
        match self {
            Self::Secp256k1 | Self::Delegated => 65,
            Self::Bls => 96,
        }
    }
}

impl From<SignatureKind> for u8 {
    fn from(kind: SignatureKind) -> Self {
        kind as Self
    }
}

impl TryFrom<u8> for SignatureKind {
    type Error = &'static str;

    fn try_from(byte: u8) -> Result<Self, &'static str> {
        match byte {
            1 => Ok(Self::Secp256k1),
            2 => Ok(Self::Bls),
            3 => Ok(Self::Delegated),
            _ => Err("an unknown kind of signature"),
        }
    }
}

/// A signature. Its length is that of its kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Json", into = "Json")]
pub struct Signature {
    kind: SignatureKind,
    data: Vec<u8>,
}

impl Signature {
    /// A signature of `kind`; `None` where `data` has not its length.
    pub fn new(kind: SignatureKind, data: Vec<u8>) -> Option<Self> {
        (data.len() == kind.bytes()).then_some(Self { kind, data })
    }

    /// What made it.
    pub fn kind(&self) -> SignatureKind {
        self.kind
    }

    /// Its bytes, without the kind.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Json {
    #[serde(rename = "Type")]
    kind: SignatureKind,
    #[serde(with = "base64")]
    data: Vec<u8>,
}

impl From<Signature> for Json {
    fn from(signature: Signature) -> Self {
        Self { kind: signature.kind, data: signature.data }
    }
}

impl TryFrom<Json> for Signature {
    type Error = &'static str;

    fn try_from(json: Json) -> Result<Self, &'static str> {
        Self::new(json.kind, json.data).ok_or("a signature of another length than its kind has")
    }
}

impl Cbor for Signature {
    fn write(&self, to: &mut Writer) {
        to.bytes(&[&[self.kind.into()], self.data.as_slice()].concat());
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (kind, data) =
            from.bytes()?.split_first().ok_or_else(|| from.malformed("a signature of no bytes"))?;
        let kind = SignatureKind::try_from(*kind).map_err(|what| from.malformed(what))?;
        Self::new(kind, data.to_vec()).ok_or_else(|| from.malformed("a signature of another length"))
    }
}

/// Bytes in JSON: standard base64, `null` for none. For fields: `#[serde(with = "base64")]`.
pub(crate) mod base64 {
    use data_encoding::BASE64;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::borrow::Cow;

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        if bytes.is_empty() { to.serialize_none() } else { to.serialize_str(&BASE64.encode(bytes)) }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = Option::<Cow<'de, str>>::deserialize(from)?.unwrap_or_default();
        BASE64.decode(text.as_bytes()).map_err(|_| serde::de::Error::custom("bytes that are not base64"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_signature_has_the_length_of_its_kind() {
        for (kind, len) in [(1, 65), (2, 96), (3, 65)] {
            for (given, fits) in [(len - 1, false), (len, true), (len + 1, false)] {
                let json = format!(
                    "{{\"Type\":{kind},\"Data\":\"{}\"}}",
                    data_encoding::BASE64.encode(&vec![7; given])
                );
                assert_eq!(serde_json::from_str::<Signature>(&json).is_ok(), fits, "{json}");
            }
        }
        assert!(serde_json::from_str::<Signature>("{\"Type\":4,\"Data\":null}").is_err());
        assert!(Signature::from_cbor(&[0x40]).is_err());
        assert!(Signature::from_cbor(&[0x42, 1, 0]).is_err());
    }

    proptest! {
        #[test]
        fn signatures_come_back(data in proptest::collection::vec(any::<u8>(), 96)) {
            for (kind, len) in [(SignatureKind::Secp256k1, 65), (SignatureKind::Bls, 96)] {
                let signature = Signature::new(kind, data[..len].to_vec()).unwrap();
                prop_assert_eq!(Signature::from_cbor(&signature.to_cbor()), Ok(signature.clone()));
                let json = serde_json::to_string(&signature).unwrap();
                prop_assert_eq!(serde_json::from_str::<Signature>(&json).unwrap(), signature);
            }
        }
    }
}
