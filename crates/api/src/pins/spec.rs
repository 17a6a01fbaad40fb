//! The `Pin` that a client sends.
//!
//! Strict where a mistake would lose something (CID, name, meta), lenient about origins: Kubo sends every
//! address of its host, and they are hints. Fields that nobody knows are ignored.

use std::collections::{BTreeMap, HashSet};

use floe_core::PolicyChoice;
use floe_engine::PinSpec;
use serde::Deserialize;
use serde_json::Value;

use super::policy::Choosing;
use crate::error::ApiError;
use crate::limits;

/// The body of `POST /pins` and `POST /pins/{requestid}`.
#[derive(Clone, Deserialize)]
pub(crate) struct PinBody {
    cid: String,
    name: Option<String>,
    origins: Option<Vec<Value>>,
    meta: Option<BTreeMap<String, String>>,
}

/// The body of `POST /pins/batch`.
#[derive(Deserialize)]
pub(crate) struct BatchBody {
    pins: Vec<PinBody>,
}

impl PinBody {
    pub(crate) fn check(self, choosing: &Choosing<'_>) -> Result<PinSpec, ApiError> {
        self.checked(choosing).map_err(ApiError::bad_request)
    }

    /// What it says by itself, under no policy. `None` where something is wrong with it.
    pub(crate) fn said(&self) -> Option<PinSpec> {
        self.clone().read().ok()
    }

    fn checked(self, choosing: &Choosing<'_>) -> Result<PinSpec, String> {
        let spec = self.read()?;
        let policy = choosing.choose(&spec.meta)?;
        Ok(PinSpec { policy, ..spec })
    }

    fn read(self) -> Result<PinSpec, String> {
        let cid = floe_core::cid::parse(&self.cid).map_err(|error| format!("cid: {error}"))?;
        let meta = self.meta.unwrap_or_default();
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        check_meta(&meta)?;
        let policy = PolicyChoice::default();
        let origins = origins(self.origins.unwrap_or_default());
        Ok(PinSpec { cid_text: self.cid, cid, name: self.name, origins, meta, policy })
    }
}

impl BatchBody {
    /// What its pins say by themselves, under no policy. `None` where something is wrong with one.
    pub(crate) fn said(&self) -> Option<Vec<PinSpec>> {
        self.pins.iter().map(PinBody::said).collect()
    }

    /// All or none: the first pin that is wrong is named.
    pub(crate) fn check(self, choosing: &Choosing<'_>) -> Result<Vec<PinSpec>, ApiError> {
        let (count, most) = (self.pins.len(), limits::BATCH_PINS);
        if count > most {
            limits::hit("batch_pins");
        }
        if !(1..=most).contains(&count) {
            return Err(ApiError::bad_request(format!(
                "pins: a batch has 1 to {most} pins, this one {count}"
            )));
        }
        let name_it = |index: usize| move |error| ApiError::bad_request(format!("pins[{index}].{error}"));
        let numbered = self.pins.into_iter().enumerate();
        numbered.map(|(index, pin)| pin.checked(choosing).map_err(name_it(index))).collect()
    }
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    let count = name.chars().count();
    if count > limits::NAME_CHARS {
        limits::hit("name_chars");
        return Err(format!("name: {count} characters; the most is {}", limits::NAME_CHARS));
    }
    Ok(())
}

pub(super) fn check_meta(meta: &BTreeMap<String, String>) -> Result<(), String> {
    let bytes: usize = meta.iter().map(|(key, value)| key.len() + value.len()).sum();
    if meta.len() > limits::META_ENTRIES {
        limits::hit("meta_entries");
        return Err(format!("meta: {} entries; the most is {}", meta.len(), limits::META_ENTRIES));
    }
    if bytes > limits::META_BYTES {
        limits::hit("meta_bytes");
        return Err(format!("meta: {bytes} bytes of keys and values; the most is {}", limits::META_BYTES));
    }
    Ok(())
}

/// The origins that are kept: texts, each once. The node skips what does not parse or may not be dialled.
fn origins(sent: Vec<Value>) -> Vec<String> {
    let mut met = HashSet::new();
    let texts = sent.into_iter().filter_map(|origin| match origin {
        Value::String(text) if text.len() <= limits::ORIGIN_BYTES => Some(text),
        Value::String(_) => {
            limits::hit("origin_bytes");
            None
        }
        _ => None,
    });
    let mut kept: Vec<String> = texts.filter(|text| !text.is_empty() && met.insert(text.clone())).collect();
    if kept.len() > limits::ORIGINS_KEPT {
        limits::hit("origins");
        kept.truncate(limits::ORIGINS_KEPT);
    }
    let mut bytes = 0;
    let fit = kept.iter().take_while(|text| {
        bytes += text.len();
        bytes <= limits::ORIGINS_BYTES
    });
    let fit = fit.count();
    if fit < kept.len() {
        limits::hit("origins_bytes");
        kept.truncate(fit);
    }
    kept
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{BatchBody, PinBody};
    use crate::limits::{
        BATCH_PINS, META_BYTES, META_ENTRIES, NAME_CHARS, ORIGIN_BYTES, ORIGINS_BYTES, ORIGINS_KEPT,
    };
    use crate::pins::policy::tests::unsaid;

    const CID: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

    fn checked(body: Value) -> Result<floe_engine::PinSpec, String> {
        let body: PinBody = serde_json::from_value(body).map_err(|e| e.to_string())?;
        body.checked(&unsaid())
    }

    fn fits(body: Value) -> bool {
        checked(body).is_ok()
    }

    #[test]
    fn m03_a_name_has_up_to_255_characters() {
        for (len, ok) in [(0, true), (NAME_CHARS - 1, true), (NAME_CHARS, true), (NAME_CHARS + 1, false)] {
            assert_eq!(fits(json!({ "cid": CID, "name": "ä".repeat(len) })), ok, "{len}");
        }
    }

    #[test]
    fn m03_meta_is_bounded_in_entries_and_bytes() {
        let entries =
            |n: usize| (0..n).map(|i| (format!("{i:04}"), json!("v"))).collect::<serde_json::Map<_, _>>();
        for (n, ok) in [(META_ENTRIES - 1, true), (META_ENTRIES, true), (META_ENTRIES + 1, false)] {
            assert_eq!(fits(json!({ "cid": CID, "meta": entries(n) })), ok, "{n}");
        }
        for (n, ok) in [(META_BYTES - 1, true), (META_BYTES, true), (META_BYTES + 1, false)] {
            assert_eq!(fits(json!({ "cid": CID, "meta": { "k": "v".repeat(n - 1) } })), ok, "{n}");
        }
        for bad in [json!({ "k": 1 }), json!({ "k": null }), json!(["k"]), json!("k")] {
            assert!(!fits(json!({ "cid": CID, "meta": bad })), "{bad}");
        }
    }

    #[test]
    fn m03_what_is_optional_may_be_null_and_what_is_unknown_is_ignored() {
        let spec =
            checked(json!({ "cid": CID, "name": null, "origins": null, "meta": null, "x": { "y": 1 } }))
                .unwrap();
        assert_eq!((spec.name, spec.origins.len(), spec.meta.len()), (None, 0, 0));
    }

    #[test]
    fn a_policy_in_meta_is_one_that_exists() {
        let with = |policy: &str| checked(json!({ "cid": CID, "meta": { "policy": policy } }));
        assert_eq!(with("default").unwrap().meta["policy"], "default", "M6: it is kept as it is");
        for unknown in ["gold", "", "Default", "default "] {
            let error = with(unknown).unwrap_err();
            assert!(
                error.starts_with("meta.policy: ") && error.contains("\"default\""),
                "{unknown}: {error}"
            );
        }
        assert!(with(&"x".repeat(1000)).unwrap_err().len() < 200, "it is not repeated at length");
    }

    #[test]
    fn m07_the_cid_is_kept_as_it_was_sent() {
        let upper = "BAFKREIGH2AKISCAILDCQABSYG3DFR6CHU3FGPREGIYMSCK7E7AQA4S52ZY";
        let spec = checked(json!({ "cid": upper })).unwrap();
        assert_eq!(spec.cid_text, upper);
        assert_eq!(spec.cid, floe_core::cid::parse(CID).unwrap());
        for bad in ["", "x", "bafy", &CID[..20], "bafkqabiaaebagbax!"] {
            let error = checked(json!({ "cid": bad })).unwrap_err();
            assert!(error.starts_with("cid: "), "{bad}: {error}");
        }
    }

    #[test]
    fn t18_a_weak_hash_is_refused_with_words() {
        // sha1 of nothing, raw.
        let error =
            checked(json!({ "cid": "f01551114da39a3ee5e6b4b0d3255bfef95601890afd80709" })).unwrap_err();
        assert!(error.contains("0x11") && error.contains("sha2-256"), "{error}");
    }

    #[test]
    fn kubo_origins_are_hints_and_never_an_error() {
        let mut sent: Vec<Value> =
            vec![json!(1), json!(null), json!(""), json!("not a multiaddr"), json!({ "a": 1 })];
        sent.push(json!("x".repeat(ORIGIN_BYTES + 1)));
        sent.push(json!("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWx"));
        sent.push(json!("/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWx"));
        let spec = checked(json!({ "cid": CID, "origins": sent })).unwrap();
        assert_eq!(spec.origins, ["not a multiaddr", "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWx"]);
        for (n, kept) in [
            (ORIGINS_KEPT - 1, ORIGINS_KEPT - 1),
            (ORIGINS_KEPT, ORIGINS_KEPT),
            (ORIGINS_KEPT + 1, ORIGINS_KEPT),
        ] {
            let many: Vec<String> = (0..n).map(|i| format!("/ip4/1.2.3.4/tcp/{i}")).collect();
            assert_eq!(checked(json!({ "cid": CID, "origins": many })).unwrap().origins.len(), kept);
        }
        let longest = json!({ "cid": CID, "origins": ["x".repeat(ORIGIN_BYTES)] });
        assert_eq!(checked(longest).unwrap().origins.len(), 1);
    }

    #[test]
    fn the_origins_of_a_pin_are_bounded_in_bytes() {
        let full = ORIGINS_BYTES / ORIGIN_BYTES;
        for (last, more, kept) in
            [(ORIGIN_BYTES, 0, full), (ORIGIN_BYTES - 1, 1, full + 1), (ORIGIN_BYTES, 1, full)]
        {
            let mut sent: Vec<String> = (1..full).map(|i| format!("{i:0>ORIGIN_BYTES$}")).collect();
            sent.extend(["x".repeat(last), "y".repeat(more)]);
            let spec = checked(json!({ "cid": CID, "origins": sent })).unwrap();
            assert_eq!(spec.origins.len(), kept, "{last} and {more}");
        }
    }

    #[test]
    fn a_batch_is_bounded_and_names_the_pin_that_is_wrong() {
        let batch = |n: usize| {
            let pins: Vec<Value> = (0..n).map(|_| json!({ "cid": CID })).collect();
            serde_json::from_value::<BatchBody>(json!({ "pins": pins }))
                .unwrap()
                .check(&unsaid())
                .map(|specs| specs.len())
        };
        assert!(batch(0).is_err());
        for n in [1, BATCH_PINS - 1, BATCH_PINS] {
            assert_eq!(batch(n).ok(), Some(n));
        }
        assert_eq!(batch(BATCH_PINS + 1).unwrap_err().into_response().status(), 400);
        let pins = json!({ "pins": [{ "cid": CID }, { "cid": "x" }] });
        let error =
            format!("{:?}", serde_json::from_value::<BatchBody>(pins).unwrap().check(&unsaid()).unwrap_err());
        assert!(error.contains("pins[1].cid"), "{error}");
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = serde_json::from_slice::<PinBody>(&bytes).map(|body| body.checked(&unsaid()));
        }

        #[test]
        fn no_cid_makes_it_panic(cid in "\\PC{0,80}") {
            let _ = checked(json!({ "cid": cid }));
        }
    }
}
