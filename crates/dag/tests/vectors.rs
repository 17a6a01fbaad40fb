//! The published codec fixtures: what is good scans, and gives the same links in every codec; what is bad is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use floe_core::cid::{self, code};
use floe_core::{Block, Cid};
use floe_dag::{links, scan};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

#[test]
fn good_fixtures_scan_to_the_same_links_in_each_codec() {
    let mut cases = 0;
    for entry in std::fs::read_dir(vectors().join("codec-fixtures/fixtures")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let mut found: BTreeSet<Vec<Cid>> = BTreeSet::new();
        for file in std::fs::read_dir(&folder).unwrap() {
            let file = file.unwrap().path();
            let name = file.file_stem().unwrap().to_str().unwrap();
            let cid = cid::parse(name).unwrap();
            let block = Block::new(cid, Bytes::from(std::fs::read(&file).unwrap())).unwrap();
            // Not `links`: a few fixtures link to what no walk follows (a sha1 git commit, other chains).
            let mut these = Vec::new();
            scan(cid.codec(), block.data(), &mut |link| these.push(link.cid)).expect(name);
            these.sort();
            found.insert(these);
        }
        assert!(found.len() <= 1, "{}: the codecs disagree: {found:?}", folder.display());
        cases += 1;
    }
    assert_eq!(cases, 128);
}

#[test]
fn bad_fixtures_are_refused() {
    let mut cases = 0;
    for (folder, codec) in
        [("dag-cbor", code::DAG_CBOR), ("dag-json", code::DAG_JSON), ("dag-pb", code::DAG_PB)]
    {
        for file in
            std::fs::read_dir(vectors().join("codec-fixtures/negative-fixtures").join(folder).join("decode"))
                .unwrap()
        {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for case in serde_json::from_str::<Vec<serde_json::Value>>(&text).unwrap() {
                let hex = case["hex"].as_str().unwrap();
                let bytes: Vec<u8> = (0..hex.len() / 2)
                    .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap())
                    .collect();
                let block = Block::of(codec, Bytes::from(bytes)).unwrap();
                assert!(links(&block).is_err(), "{folder}: {case} was accepted");
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 11);
}
