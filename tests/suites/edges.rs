//! The allowed edges between crates, and the shape of the top level: what lets the simulator run the real
//! engine on the real stores, and a newcomer find things by the folder names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Who may name whom. `engine` never names `ipfs`, `api` or `gateway`; the adapters never name `engine`, but for
/// `api`, whose one call it is.
const ALLOWED: &[(&str, &[&str])] = &[
    ("floe-core", &[]),
    ("floe-dag", &["floe-core"]),
    ("floe-blockstore", &["floe-core"]),
    ("floe-records", &["floe-core"]),
    ("floe-bitswap", &["floe-core"]),
    ("floe-ipfs", &["floe-bitswap", "floe-core"]),
    ("floe-engine", &["floe-blockstore", "floe-core", "floe-dag", "floe-records"]),
    ("floe-api", &["floe-core", "floe-engine"]),
    ("floe", &["floe-api", "floe-blockstore", "floe-core", "floe-engine", "floe-ipfs", "floe-records"]),
    ("floe-tests", &["floe-core", "floe-ipfs"]),
];

/// Top-level names that may be there. Nothing else.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "crates",
    "bin",
    "docs",
    "tests",
    "deny.toml",
    "README.md",
    "CHANGELOG.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "target",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is in the workspace")
}

/// The `floe-*` names in the `[dependencies]` table of a manifest, dev-dependencies left out.
fn edges(manifest: &str) -> (String, BTreeSet<String>) {
    let mut section = "";
    let mut name = String::new();
    let mut found = BTreeSet::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
            if let Some(dep) = line.strip_prefix("[dependencies.") {
                found.insert(dep.trim_end_matches(']').to_owned());
            }
        } else if section == "[package]" && line.starts_with("name") {
            name = line.split('"').nth(1).unwrap_or_default().to_owned();
        } else if section == "[dependencies]" {
            let key: String =
                line.chars().take_while(|c| c.is_alphanumeric() || *c == '-' || *c == '_').collect();
            found.insert(key);
        }
    }
    found.retain(|dep| dep == "floe" || dep.starts_with("floe-"));
    (name, found)
}

#[test]
fn crates_name_only_whom_they_may() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        ALLOWED.iter().map(|(name, deps)| (*name, deps.iter().copied().collect())).collect();
    let mut seen = BTreeSet::new();
    let folders = ["crates", "bin"].iter().flat_map(|d| std::fs::read_dir(root().join(d)).unwrap());
    let manifests =
        folders.map(|e| e.unwrap().path().join("Cargo.toml")).chain([root().join("tests/Cargo.toml")]);
    for manifest in manifests.filter(|m| m.exists()) {
        let (name, found) = edges(&std::fs::read_to_string(&manifest).unwrap());
        let may = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the list of crates"));
        for dep in &found {
            assert!(may.contains(dep.as_str()), "{name} must not name {dep}");
        }
        seen.insert(name);
    }
    assert_eq!(seen.len(), ALLOWED.len(), "the list names crates that are not there");
}

#[test]
fn the_top_level_holds_nothing_else() {
    for entry in std::fs::read_dir(root()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            name.starts_with('.') || TOP.contains(&name.as_str()),
            "{name} does not belong at the top level"
        );
    }
    assert!(!root().join("rust-toolchain").exists() && !root().join("rust-toolchain.toml").exists());
}
