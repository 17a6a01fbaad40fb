//! The names and the counts of parameters, against what Lotus v1.36.2 says of itself.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::rpc::METHODS;

/// From `rpc.discover` of Lotus v1.36.2: name, tab, parameters.
const COUNTS: &str = include_str!("lotus-v1.36.2-params.tsv");

/// What that document leaves out: the methods of `Common`, and those that return a channel.
const UNLISTED: [&str; 4] = ["Version", "AuthVerify", "AuthNew", "ChainNotify"];

fn counts() -> BTreeMap<String, usize> {
    let line = |line: &str| line.split_once('\t').map(|(name, n)| (name.to_owned(), n.parse().unwrap()));
    COUNTS.lines().filter_map(line).collect()
}

#[test]
fn every_method_is_one_of_lotus() {
    let counts = counts();
    for method in METHODS {
        let wanted = counts.get(method.name).copied();
        assert_eq!(wanted.is_none(), UNLISTED.contains(&method.name), "{}", method.name);
        assert!(wanted.is_none_or(|count| count == method.params), "{}: {wanted:?}", method.name);
    }
}

/// The list is that of the document, where the document is at hand.
#[test]
fn the_counts_are_those_of_the_document() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("../../../shared/vectors/lotus-openrpc/lotus-v1.36.2-full-v1.json");
    let Ok(text) = std::fs::read(&path) else { return eprintln!("skipped: no {}", path.display()) };
    let document: Value = serde_json::from_slice(&text).unwrap();
    let methods = document["methods"].as_array().unwrap().iter();
    let counted = methods.map(|method| {
        let name = method["name"].as_str().unwrap().strip_prefix("Filecoin.").unwrap().to_owned();
        (name, method["params"].as_array().unwrap().len())
    });
    assert_eq!(counted.collect::<BTreeMap<_, _>>(), counts());
}
