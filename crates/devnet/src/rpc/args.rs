//! Positional parameters, decoded with the errors of Go.

use std::sync::Arc;

use crate::wire::Cid;
use data_encoding::BASE64;
use serde_json::Value;

use crate::chain::{Chain, Tipset};
use crate::wire::address::Address;
use crate::wire::key::Signature;
use crate::wire::message::{Message, SignedMessage};

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A parameter is not of its type: the Go type, and the complaint.
    Param(&'static str, String),
    /// The method failed.
    Call(i64, String),
}

/// An ordinary error of a method: code 1, only the text says what.
pub(crate) fn fail<T>(text: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Call(1, text.into()))
}

/// The parameters of a call. Their number was checked.
pub(crate) struct Args(pub(crate) Vec<Value>);

type Decoded<T> = Result<T, Fault>;

fn wrong<T>(value: &Value, go: &'static str, wanted: &str) -> Decoded<T> {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    Err(Fault::Param(go, format!("json: cannot unmarshal {kind} into Go value of type {wanted}")))
}

impl Args {
    fn at(&self, at: usize) -> &Value {
        self.0.get(at).unwrap_or(&Value::Null)
    }

    pub(crate) fn address(&self, at: usize) -> Decoded<Address> {
        address(self.at(at))
    }

    pub(crate) fn int(&self, at: usize) -> Decoded<i64> {
        match self.at(at) {
            Value::Null => Ok(0),
            value => value.as_i64().map_or_else(|| wrong(value, "*int64", "int64"), Ok),
        }
    }

    pub(crate) fn uint(&self, at: usize) -> Decoded<u64> {
        match self.at(at) {
            Value::Null => Ok(0),
            value => value.as_u64().map_or_else(|| wrong(value, "*uint64", "uint64"), Ok),
        }
    }

    pub(crate) fn boolean(&self, at: usize) -> Decoded<bool> {
        match self.at(at) {
            Value::Null => Ok(false),
            value => value.as_bool().map_or_else(|| wrong(value, "*bool", "bool"), Ok),
        }
    }

    pub(crate) fn text(&self, at: usize) -> Decoded<&str> {
        let value = self.at(at);
        value.as_str().map_or_else(|| wrong(value, "*string", "string"), Ok)
    }

    pub(crate) fn texts(&self, at: usize) -> Decoded<Vec<String>> {
        let value = self.at(at);
        serde_json::from_value(value.clone()).or_else(|_| wrong(value, "*[]string", "[]string"))
    }

    pub(crate) fn value(&self, at: usize) -> &Value {
        self.at(at)
    }

    pub(crate) fn bytes(&self, at: usize) -> Decoded<Vec<u8>> {
        bytes(self.at(at))
    }

    pub(crate) fn amount(&self, at: usize) -> Decoded<i128> {
        amount(self.at(at))
    }

    pub(crate) fn cid(&self, at: usize) -> Decoded<Cid> {
        cid(self.at(at))
    }

    pub(crate) fn signature(&self, at: usize) -> Decoded<Signature> {
        signature(self.at(at))
    }

    /// The tipset of a key; the head for `[]` and null.
    pub(crate) fn tipset(&self, at: usize, chain: &Chain) -> Decoded<Arc<Tipset>> {
        let value = self.at(at);
        let cids = match value {
            Value::Null => return Ok(Arc::clone(chain.head())),
            Value::Array(cids) => cids.iter().map(cid).collect::<Decoded<Vec<_>>>()?,
            other => return wrong(other, "*types.TipSetKey", "[]cid.Cid"),
        };
        match cids.as_slice() {
            [] => Ok(Arc::clone(chain.head())),
            [cid] if chain.by_cid(cid).is_some() => {
                Ok(Arc::clone(chain.by_cid(cid).unwrap_or_else(|| chain.head())))
            }
            [cid, ..] => fail(format!("loading tipset {{{cid}}}: ipld: could not find {cid}")),
        }
    }

    pub(crate) fn message(&self, at: usize) -> Decoded<Message> {
        message(self.at(at))
    }

    pub(crate) fn signed_message(&self, at: usize) -> Decoded<SignedMessage> {
        let value = self.at(at);
        if !value.is_object() {
            return wrong(value, "*types.SignedMessage", "types.RawSignedMessage");
        }
        Ok(SignedMessage { message: message(&value["Message"])?, signature: signature(&value["Signature"])? })
    }
}

fn address(value: &Value) -> Decoded<Address> {
    let go = "*address.Address";
    match value.as_str() {
        Some(text) => text.parse().map_err(|why: crate::wire::Malformed| Fault::Param(go, why.0)),
        None => wrong(value, go, "string"),
    }
}

fn bytes(value: &Value) -> Decoded<Vec<u8>> {
    let go = "*[]uint8";
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => BASE64.decode(text.as_bytes()).map_err(|error| {
            Fault::Param(go, format!("illegal base64 data at input byte {}", error.position))
        }),
        other => wrong(other, go, "[]uint8"),
    }
}

fn amount(value: &Value) -> Decoded<i128> {
    let go = "*big.Int";
    match value {
        Value::String(text) if text.is_empty() => Ok(0),
        Value::String(text) => {
            text.parse().map_err(|_| Fault::Param(go, format!("failed to parse bigint string: '\"{text}\"'")))
        }
        Value::Null => Ok(0),
        other => wrong(other, go, "string"),
    }
}

fn cid(value: &Value) -> Decoded<Cid> {
    let go = "*cid.Cid";
    let Some(text) = value["/"].as_str() else { return wrong(value, go, "cid.Cid") };
    text.parse().map_err(|error| Fault::Param(go, format!("invalid cid: {error}")))
}

fn signature(value: &Value) -> Decoded<Signature> {
    let kind = value["Type"].as_u64().and_then(|kind| u8::try_from(kind).ok());
    match kind {
        Some(kind) => Ok(Signature { kind, data: bytes(&value["Data"])? }),
        None => wrong(value, "*crypto.Signature", "crypto.Signature"),
    }
}

fn message(value: &Value) -> Decoded<Message> {
    let go = "*types.Message";
    if !value.is_object() {
        return wrong(value, go, "types.RawMessage");
    }
    let uint = |key: &str| match &value[key] {
        Value::Null => Ok(0),
        number => number.as_u64().map_or_else(|| wrong(number, go, "uint64"), Ok),
    };
    Ok(Message {
        version: uint("Version")?,
        to: address(&value["To"])?,
        from: address(&value["From"])?,
        nonce: uint("Nonce")?,
        value: amount(&value["Value"])?,
        gas_limit: i64::try_from(uint("GasLimit")?).unwrap_or(i64::MAX),
        gas_fee_cap: amount(&value["GasFeeCap"])?,
        gas_premium: amount(&value["GasPremium"])?,
        method: uint("Method")?,
        params: bytes(&value["Params"])?,
    })
}
