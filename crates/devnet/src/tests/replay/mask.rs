//! What two runs of the same software may differ in is left out: numbers, CIDs, addresses, keys, signatures.

use std::collections::BTreeMap;

use data_encoding::BASE64;
use serde_json::Value;

use crate::wire::cbor::Cbor;

/// Fields of bytes, however short.
const BYTES: [&str; 6] = ["VRFProof", "ProofBytes", "Data", "Params", "Return", "Value"];

/// A value with its variable parts left out. Of several alike in an array, one.
pub(super) fn json(value: &Value) -> Value {
    field("", value)
}

fn field(key: &str, value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(key, value)| (key.clone(), field(key, value))).collect())
        }
        Value::Array(items) => {
            let mut masked: Vec<Value> = Vec::new();
            for item in items.iter().map(json) {
                if !masked.contains(&item) {
                    masked.push(item);
                }
            }
            Value::Array(masked)
        }
        Value::Number(_) => "#".into(),
        Value::String(words) if is_bytes(key, words) => "<bytes>".into(),
        Value::String(words) => text(words).into(),
        other => other.clone(),
    }
}

fn is_bytes(key: &str, text: &str) -> bool {
    let decoded = BASE64.decode(text.as_bytes());
    let is_amount = text.bytes().all(|byte| byte.is_ascii_digit());
    let named = BYTES.contains(&key) && !is_amount;
    decoded.is_ok() && (named || (text.len() >= 40 && !is_name(text)))
}

/// Text with its variable parts left out.
pub(super) fn text(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        if word == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        match name(&rest[..word]) {
            Some(name) => out.push_str(name),
            None => push_digits(&rest[..word], &mut out),
        }
        rest = &rest[word..];
    }
    out
}

fn push_digits(word: &str, out: &mut String) {
    for c in word.chars() {
        if !c.is_ascii_digit() {
            out.push(c);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
}

/// What a word names, if it is a name.
fn name(word: &str) -> Option<&'static str> {
    let is_id = |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
    match word.as_bytes() {
        [b'b', b'a', ..] if word.len() >= 40 => Some("<cid>"),
        [b'f', b'0', ..] if is_id(&word[2..]) => Some("<address>"),
        [b'f', b'1'..=b'4', ..] if word.len() >= 40 => Some("<address>"),
        [b'1', b'2', b'D', b'3', ..] if word.len() >= 40 => Some("<peer>"),
        _ => None,
    }
}

fn is_name(word: &str) -> bool {
    name(word).is_some()
}

/// The form of an item: keys in their order, texts, links or none, booleans. Of several alike in a row, one.
pub(super) fn cbor(item: &Cbor) -> String {
    match item {
        Cbor::Unsigned(_) => "#".into(),
        Cbor::Negative(_) => "-#".into(),
        Cbor::Bytes(bytes) if bytes.is_empty() => "<none>".into(),
        Cbor::Bytes(_) => "<bytes>".into(),
        Cbor::Text(words) => format!("{:?}", text(words)),
        Cbor::Link(_) => "<cid>".into(),
        Cbor::Bool(value) => value.to_string(),
        Cbor::Null => "null".into(),
        Cbor::Array(items) => {
            let mut items: Vec<String> = items.iter().map(cbor).collect();
            items.dedup();
            format!("[{}]", items.join(","))
        }
        Cbor::Map(entries) => {
            let entries: Vec<String> =
                entries.iter().map(|(key, value)| format!("{key}:{}", cbor(value))).collect();
            format!("{{{}}}", entries.join(","))
        }
    }
}

/// What the devnet calls what the recording calls otherwise: addresses, CIDs, signatures, learnt from answers that
/// stand beside each other.
#[derive(Default)]
pub(super) struct Names(BTreeMap<String, String>);

impl Names {
    pub(super) fn set(&mut self, theirs: &str, ours: &str) {
        self.0.insert(theirs.to_owned(), ours.to_owned());
    }

    /// The names in two answers to the same request. A name keeps its first meaning.
    pub(super) fn learn(&mut self, theirs: &Value, ours: &Value) {
        match (theirs, ours) {
            (Value::Object(theirs), Value::Object(ours)) => {
                theirs
                    .iter()
                    .for_each(|(key, value)| self.learn(value, ours.get(key).unwrap_or(&Value::Null)));
            }
            (Value::Array(theirs), Value::Array(ours)) => {
                theirs.iter().zip(ours).for_each(|(theirs, ours)| self.learn(theirs, ours));
            }
            (Value::String(theirs), Value::String(ours)) if is_name(theirs) || is_bytes("", theirs) => {
                self.0.entry(theirs.clone()).or_insert_with(|| ours.clone());
            }
            _ => {}
        }
    }

    /// A request in the devnet's names; the very bytes where it has none.
    pub(super) fn translate(&self, request: &str) -> String {
        let Ok(parsed) = serde_json::from_str::<Value>(request) else { return request.to_owned() };
        let translated = self.value(&parsed);
        if translated == parsed { request.to_owned() } else { translated.to_string() }
    }

    fn value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => self.0.get(text).map_or(value.clone(), |ours| ours.as_str().into()),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(fields) => {
                Value::Object(fields.iter().map(|(key, value)| (key.clone(), self.value(value))).collect())
            }
            other => other.clone(),
        }
    }
}

#[test]
fn only_what_varies_is_masked() {
    assert_eq!(text("deal 17 not found - or f01000"), "deal # not found - or <address>");
    assert_eq!(text("minimum expected nonce is 3, got -1"), "minimum expected nonce is #, got -#");
    assert_eq!(text("2026-11-21 08:30:55.65 +0000 UTC"), "#-#-# #:#:#.# +# UTC");
    let cid = "bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg";
    assert_eq!(text(&format!("could not find {cid}")), "could not find <cid>");
    assert_ne!(text("actor not found"), text("actor not  found"));
    let (a, b) = (serde_json::json!({"Type": 1, "X": null}), serde_json::json!({"Type": 2, "X": "0"}));
    assert_ne!(json(&a), json(&b));
    let mut names = Names::default();
    names.learn(&serde_json::json!([{"/": cid}, "testing"]), &serde_json::json!([{"/": "ours"}, "devnet"]));
    assert_eq!(
        names.translate(&format!("{{\"/\": \"{cid}\", \"a\": \"testing\"}}")),
        r#"{"/":"ours","a":"testing"}"#
    );
    assert_eq!(names.translate("{ \"a\":  1 }"), "{ \"a\":  1 }", "untouched");
}
