//! Chain messages: CBOR, CIDs and the JSON that Lotus shows.

use crate::wire::Cid;
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::address::Address;
use super::cbor::{Cbor, decode};
use super::key::{Key, Signature};
use super::{Malformed, chain_cid};

/// A message, unsigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) version: u64,
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) nonce: u64,
    /// attoFIL.
    pub(crate) value: i128,
    pub(crate) gas_limit: i64,
    /// attoFIL for a unit of gas.
    pub(crate) gas_fee_cap: i128,
    /// attoFIL for a unit of gas.
    pub(crate) gas_premium: i128,
    pub(crate) method: u64,
    pub(crate) params: Vec<u8>,
}

impl Message {
    /// Whether another does the same at another price: what may replace it.
    pub(crate) fn same_call(&self, other: &Self) -> bool {
        let unpriced =
            |message: &Self| Self { gas_limit: 0, gas_fee_cap: 0, gas_premium: 0, ..message.clone() };
        unpriced(self) == unpriced(other)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        Cbor::Array(vec![
            Cbor::Unsigned(self.version),
            Cbor::Bytes(self.to.to_bytes()),
            Cbor::Bytes(self.from.to_bytes()),
            Cbor::Unsigned(self.nonce),
            Cbor::amount(self.value),
            Cbor::int(self.gas_limit),
            Cbor::amount(self.gas_fee_cap),
            Cbor::amount(self.gas_premium),
            Cbor::Unsigned(self.method),
            Cbor::Bytes(self.params.clone()),
        ])
        .encode()
    }

    /// Reads the bytes of [`Message::encode`].
    #[cfg(test)]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let item = decode(bytes)?;
        let [version, to, from, nonce, value, limit, cap, premium, method, params] =
            item.as_tuple::<10>("Message")?;
        Ok(Self {
            version: version.as_u64("Version")?,
            to: Address::from_bytes(to.as_bytes("To")?)?,
            from: Address::from_bytes(from.as_bytes("From")?)?,
            nonce: nonce.as_u64("Nonce")?,
            value: value.as_amount("Value")?,
            gas_limit: limit.as_i64("GasLimit")?,
            gas_fee_cap: cap.as_amount("GasFeeCap")?,
            gas_premium: premium.as_amount("GasPremium")?,
            method: method.as_u64("Method")?,
            params: params.as_bytes("Params")?.to_vec(),
        })
    }

    pub(crate) fn cid(&self) -> Cid {
        chain_cid(&self.encode())
    }

    /// What the sender may have to pay for gas.
    pub(crate) fn required_funds(&self) -> i128 {
        self.gas_fee_cap.saturating_mul(self.gas_limit.into())
    }

    /// The JSON form, with the CID that Lotus adds.
    pub(crate) fn json(&self) -> Value {
        json!({
            "Version": self.version, "To": self.to, "From": self.from, "Nonce": self.nonce,
            "Value": self.value.to_string(), "GasLimit": self.gas_limit,
            "GasFeeCap": self.gas_fee_cap.to_string(), "GasPremium": self.gas_premium.to_string(),
            "Method": self.method, "Params": base64_or_null(&self.params), "CID": link(&self.cid()),
        })
    }
}

/// A message and its signature over the bytes of its CID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignedMessage {
    pub(crate) message: Message,
    pub(crate) signature: Signature,
}

impl SignedMessage {
    pub(crate) fn sign(message: Message, key: &Key) -> Result<Self, Malformed> {
        let signature = key.sign(&message.cid().to_bytes())?;
        Ok(Self { message, signature })
    }

    /// BLS messages go by the CID of what is signed, the others by that of message and signature.
    pub(crate) fn cid(&self) -> Cid {
        if self.signature.kind == 2 {
            return self.message.cid();
        }
        // array(2), the message's own bytes, the signature.
        let signature = self.signature.to_cbor().encode();
        chain_cid(&[&[0x82][..], &self.message.encode(), &signature].concat())
    }

    pub(crate) fn json(&self) -> Value {
        json!({"Message": self.message.json(), "Signature": signature_json(&self.signature), "CID": link(&self.cid())})
    }
}

/// `{"/": cid}`.
pub(crate) fn link(cid: &Cid) -> Value {
    json!({"/": cid.to_string()})
}

/// Bytes in base64; null for none, as Go shows an empty slice that was never made.
pub(crate) fn base64_or_null(bytes: &[u8]) -> Value {
    if bytes.is_empty() { Value::Null } else { Value::String(BASE64.encode(bytes)) }
}

pub(crate) fn signature_json(signature: &Signature) -> Value {
    json!({"Type": signature.kind, "Data": BASE64.encode(&signature.data)})
}

/// CBOR of one byte string, as `AddBalance` takes an address.
pub(crate) fn address_param(address: Address) -> Vec<u8> {
    Cbor::Bytes(address.to_bytes()).encode()
}

/// Reads [`address_param`].
pub(crate) fn read_address_param(params: &[u8]) -> Result<Address, Malformed> {
    Address::from_bytes(decode(params)?.as_bytes("address")?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(json: &Value) -> Message {
        let text = |key: &str| json[key].as_str().unwrap().to_owned();
        Message {
            version: json["Version"].as_u64().unwrap(),
            to: text("To").parse().unwrap(),
            from: text("From").parse().unwrap(),
            nonce: json["Nonce"].as_u64().unwrap(),
            value: text("Value").parse().unwrap(),
            gas_limit: json["GasLimit"].as_i64().unwrap(),
            gas_fee_cap: text("GasFeeCap").parse().unwrap(),
            gas_premium: text("GasPremium").parse().unwrap(),
            method: json["Method"].as_u64().unwrap(),
            params: json["Params"].as_str().map_or(vec![], |p| BASE64.decode(p.as_bytes()).unwrap()),
        }
    }

    #[test]
    fn published_messages() {
        let cases: Value =
            serde_json::from_str(include_str!("../../../filecoin/tests/vectors/unsigned_messages.json"))
                .unwrap();
        for case in cases.as_array().unwrap() {
            let message = message(&case["message"]);
            assert_eq!(data_encoding::HEXLOWER.encode(&message.encode()), case["hex_cbor"]);
            assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        }
        let cases: Value =
            serde_json::from_str(include_str!("../../../filecoin/tests/vectors/message_signing.json"))
                .unwrap();
        for case in cases.as_array().unwrap() {
            assert_eq!(message(&case["Unsigned"]).cid().to_string(), case["Cid"]);
        }
    }

    /// What a real node signed and pushed: the CIDs are its own, and the signature is checked here.
    #[test]
    fn recorded_messages() {
        let calls: Value =
            serde_json::from_str(include_str!("../../../filecoin/tests/vectors/lotus-http.json")).unwrap();
        let mut seen = 0;
        for call in calls.as_array().unwrap().iter().filter(|c| c["label"] == "WalletSignMessage") {
            let answer: Value = serde_json::from_str(call["response"].as_str().unwrap()).unwrap();
            let signed = &answer["result"];
            let inner = message(&signed["Message"]);
            assert_eq!(inner.cid().to_string(), signed["Message"]["CID"]["/"]);
            let data = BASE64.decode(signed["Signature"]["Data"].as_str().unwrap().as_bytes()).unwrap();
            let signed_message = SignedMessage { message: inner, signature: Signature { kind: 1, data } };
            assert_eq!(signed_message.cid().to_string(), signed["CID"]["/"]);
            let bytes = signed_message.message.cid().to_bytes();
            assert_eq!(signed_message.signature.verify(signed_message.message.from, &bytes), Ok(()));
            assert_eq!(&signed_message.json(), signed);
            seen += 1;
        }
        assert_eq!(seen, 4);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
