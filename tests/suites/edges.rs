//! The allowed edges between crates, and the shape of the top level: what lets the simulator run the real
//! engine on the real stores, and a newcomer find things by the folder names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

/// Who may name whom. `engine` never names `ipfs`, `filecoin`, `api` or `gateway`; the adapters never name `engine`,
/// but for `api`, whose one call it is.
const ALLOWED: &[(&str, &[&str])] = &[
    ("floe-core", &[]),
    ("floe-dag", &["floe-core"]),
    ("floe-piece", &["floe-core"]),
    ("floe-blockstore", &["floe-core"]),
    ("floe-records", &["floe-core"]),
    // The judge shares no code with whom it judges.
    ("floe-devnet", &[]),
    ("floe-bitswap", &["floe-core"]),
    ("floe-ipfs", &["floe-bitswap", "floe-core"]),
    ("floe-filecoin", &["floe-core"]),
    ("floe-engine", &["floe-blockstore", "floe-core", "floe-dag", "floe-piece", "floe-records"]),
    ("floe-api", &["floe-core", "floe-engine"]),
    (
        "floe",
        &[
            "floe-api",
            "floe-blockstore",
            "floe-core",
            "floe-devnet",
            "floe-engine",
            "floe-filecoin",
            "floe-ipfs",
            "floe-records",
        ],
    ),
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

/// Crates that have time from a `floe_core::Clock` alone, so that a test's clock moves all of it. The adapters are not
/// among them: their sockets and their clients live in real time.
const TIMELESS: &[&str] = &["core", "dag", "blockstore", "records", "bitswap", "engine"];

/// What waits, or tells the time, without a `Clock`. The wall clock and `std::time::Instant` are clippy's to find.
const REAL_TIME: &[&str] = &["tokio::time", "thread::sleep"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests crate is in the workspace")
}

/// The name of a manifest, and the `floe-*` names among its dependencies: of every target, and of the build script.
/// What only tests need is left out.
fn edges(manifest: &str) -> (String, BTreeSet<String>) {
    let manifest: DocumentMut = manifest.parse().expect("a manifest is TOML");
    let targets = manifest.get("target").and_then(Item::as_table_like);
    let targets = targets.into_iter().flat_map(|all| all.iter().map(|(_, target)| target));
    let tables = std::iter::once(manifest.as_item()).chain(targets).flat_map(|of| {
        ["dependencies", "build-dependencies"].map(|kind| of.get(kind).and_then(Item::as_table_like))
    });
    // A dependency may have another name here than its package.
    let named =
        |(key, item): (&str, &Item)| item.get("package").and_then(Item::as_str).unwrap_or(key).to_owned();
    let mut found: BTreeSet<String> = tables.flatten().flat_map(|table| table.iter().map(named)).collect();
    found.retain(|dep| dep == "floe" || dep.starts_with("floe-"));
    (manifest["package"]["name"].as_str().expect("a package has a name").to_owned(), found)
}

/// Only `[dependencies]` was read: an edge of one platform, or of a build script, was no edge.
#[test]
fn every_kind_of_dependency_is_an_edge() {
    let manifest = r#"
        [package]
        name = "floe-x"
        [dependencies]
        floe-a.workspace = true
        other = "1"
        [dependencies.floe-b]
        workspace = true
        [dev-dependencies]
        floe-no.workspace = true
        [dev-dependencies.floe-nor]
        workspace = true
        [build-dependencies]
        floe-c = { path = "c" }
        [target.'cfg(target_os = "linux")'.dependencies]
        floe-d = { path = "d" }
        [target.x86_64-unknown-linux-gnu.build-dependencies.floe-e]
        path = "e"
        [target.'cfg(unix)'.dependencies.floe-f]
        path = "f"
        [target.'cfg(unix)'.dev-dependencies]
        floe-neither = { path = "n" }
        [target.'cfg(unix)'.build-dependencies]
        renamed = { package = "floe-g", path = "g" }
        [features]
        floe-feature = []
    "#;
    let (name, found) = edges(manifest);
    assert_eq!(name, "floe-x");
    assert_eq!(Vec::from_iter(found), ["floe-a", "floe-b", "floe-c", "floe-d", "floe-e", "floe-f", "floe-g"]);
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

/// The line on which code that is not a test waits in real time.
fn real_time(source: &str) -> Option<&str> {
    let code = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.into_iter().find(|line| REAL_TIME.iter().any(|name| line.contains(name)))
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a folder of sources is read");
    let entries = entries.map(|entry| entry.expect("its entries are read").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

#[test]
fn what_decides_and_what_holds_has_time_from_its_clock() {
    assert_eq!(real_time("use tokio::time::sleep;"), Some("use tokio::time::sleep;"));
    assert_eq!(real_time("/// As tokio::time does.\n#[cfg(test)]\nmod tests {\ntokio::time::sleep()"), None);
    let mut looked_at = 0;
    for name in TIMELESS {
        for path in sources(&root().join("crates").join(name).join("src")) {
            let is_test =
                path.components().any(|part| ["tests", "tests.rs"].iter().any(|t| part.as_os_str() == *t));
            if is_test || path.extension().is_none_or(|ext| ext != "rs") {
                continue;
            }
            let source = std::fs::read_to_string(&path).unwrap();
            assert_eq!(real_time(&source), None, "{}: take a floe_core::Clock", path.display());
            looked_at += 1;
        }
    }
    assert!(looked_at > 50, "only {looked_at} files");
}

/// The names of the crash points in a source.
fn points(source: &str) -> impl Iterator<Item = &str> {
    let calls = source.split("fail_point!(").skip(1);
    calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next())
}

/// A crash point that no test arms says that a step survives a crash, and nobody has seen it: nine did.
#[test]
fn each_crash_point_is_armed_by_a_test() {
    let texts = |folder: &str| -> Vec<String> {
        let files = sources(&root().join(folder)).into_iter();
        let rust = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
        rust.map(|path| std::fs::read_to_string(path).unwrap()).collect()
    };
    let code = [texts("crates"), texts("bin")].concat();
    let named: BTreeSet<&str> = code.iter().flat_map(|text| points(text)).collect();
    assert!(named.len() > 30, "{named:?}");
    let suites = texts("tests/suites");
    let arms = |text: &&String| text.contains("fail::cfg") || text.contains("\"FAILPOINTS\"");
    let arming: Vec<&String> = code.iter().chain(&suites).filter(arms).collect();
    for point in named {
        // A string of its own, or the beginning of what the variable says.
        let forms = [format!("\"{point}\""), format!("\"{point}=")];
        let is_armed = arming.iter().any(|text| forms.iter().any(|form| text.contains(form)));
        assert!(is_armed, "no test arms the crash point {point}");
    }
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
