//! The conformance suite of the back ends, and the front over each of them.

use std::path::Path;

use super::*;
use crate::disk::RealDisk;

type Opener = fn(&Path) -> Arc<dyn BlockIndex>;

fn redb(dir: &Path) -> Arc<dyn BlockIndex> {
    Arc::new(redb_index::RedbIndex::open(Arc::new(RealDisk), dir).unwrap())
}

#[cfg(feature = "sled")]
fn sled(dir: &Path) -> Arc<dyn BlockIndex> {
    Arc::new(sled_index::SledIndex::open(dir).unwrap())
}

fn every(suite: fn(Opener)) {
    suite(redb);
    #[cfg(feature = "sled")]
    suite(sled);
}

fn front_over(index: Arc<dyn BlockIndex>, dir: &Path) -> Layered {
    Layered::new(index, Arc::new(Mark::new(Arc::new(RealDisk), dir)))
}

fn batch(pairs: &[(&str, Option<&str>)]) -> Batch {
    pairs.iter().map(|(k, v)| (k.as_bytes().into(), v.map(|v| v.as_bytes().into()))).collect()
}

fn names(pairs: Vec<Pair>) -> Vec<String> {
    pairs.into_iter().map(|(k, v)| String::from_utf8([&k[..], b"=", &v].concat()).unwrap()).collect()
}

fn pair(k: &str, v: &str) -> (Box<[u8]>, Option<Box<[u8]>>) {
    (k.as_bytes().into(), Some(v.as_bytes().into()))
}

#[test]
fn what_was_checkpointed_is_there_after_reopening() {
    every(|open| {
        let dir = tempfile::tempdir().unwrap();
        let index = open(dir.path());
        assert_eq!(index.get(b"b1").unwrap(), None);
        index.checkpoint(&batch(&[("b1", Some("x")), ("b2", Some("y")), ("c1", Some("z"))])).unwrap();
        index.checkpoint(&batch(&[("b1", None), ("b3", Some("w"))])).unwrap();
        index.reopen().unwrap();
        assert_eq!(index.get(b"b1").unwrap(), None);
        assert_eq!(index.get(b"b3").unwrap().unwrap()[..], *b"w");
        index.close();
        assert!(index.get(b"b3").is_err());
        drop(index);
        let index = open(dir.path());
        assert_eq!(names(index.scan(b"b", Bound::Unbounded, 10).unwrap()), ["b2=y", "b3=w"]);
        assert_eq!(names(index.scan(b"b", Bound::Excluded(b"b2"), 10).unwrap()), ["b3=w"]);
        assert_eq!(names(index.scan(b"b", Bound::Unbounded, 1).unwrap()), ["b2=y"]);
        assert_eq!(names(index.scan(b"", Bound::Unbounded, 10).unwrap()), ["b2=y", "b3=w", "c1=z"]);
    });
}

#[test]
fn the_front_hides_and_shows_before_the_index_knows() {
    every(|open| {
        let dir = tempfile::tempdir().unwrap();
        let front = front_over(open(dir.path()), dir.path());
        for (k, v) in [pair("b1", "x"), pair("b2", "y"), pair("b4", "v")] {
            front.set(k, v);
        }
        let frozen = front.freeze().unwrap();
        assert!(front.freeze().is_none(), "one checkpoint at a time");
        front.set(b"b2".as_slice().into(), None);
        front.set(b"b3".as_slice().into(), Some(b"w".as_slice().into()));
        let want = ["b1=x", "b3=w", "b4=v"];
        assert_eq!(names(front.scan(b"b", Bound::Unbounded, 9).unwrap()), want);
        front.index().checkpoint(&frozen).unwrap();
        assert_eq!(names(front.scan(b"b", Bound::Unbounded, 9).unwrap()), want);
        front.thaw();
        assert_eq!(names(front.scan(b"b", Bound::Unbounded, 9).unwrap()), want);
        assert_eq!(names(front.scan(b"b", Bound::Unbounded, 2).unwrap()), want[..2]);
        assert_eq!((front.get(b"b2").unwrap(), front.get(b"b1").unwrap().is_some()), (None, true));
    });
}

#[cfg(feature = "sled")]
#[test]
fn r03_a_sled_checkpoint_that_was_cut_off_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    sled(dir.path()).checkpoint(&batch(&[("\0checkpoint", Some(""))])).unwrap();
    // The mark is removed by the checkpoint that wrote it, so it is put back the way a crash leaves it.
    let db = sled::open(dir.path().join(sled_index::DIR)).unwrap();
    db.insert(b"\0checkpoint", b"").unwrap();
    db.flush().unwrap();
    drop(db);
    assert!(sled_index::SledIndex::open(dir.path()).is_err());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(24))]
    #[test]
    fn back_ends_and_front_are_a_map(
        ops in proptest::collection::vec((0u8..4, 0u8..24, proptest::prelude::any::<u8>()), 0..60)
    ) {
        every_case(&ops);
    }
}

/// Sets, removals, freezes and thaws in any order, compared with one map.
fn every_case(ops: &[(u8, u8, u8)]) {
    let dir = tempfile::tempdir().unwrap();
    let front = front_over(redb(dir.path()), dir.path());
    let mut model = BTreeMap::new();
    let mut frozen: Option<Arc<Batch>> = None;
    for (op, k, v) in ops {
        let key: Box<[u8]> = [b'b', *k].into();
        match op {
            0 => {
                model.insert(key.clone(), *v);
                front.set(key, Some([*v].into()));
            }
            1 => {
                model.remove(&key);
                front.set(key, None);
            }
            2 if frozen.is_none() => frozen = front.freeze(),
            _ => {
                if let Some(batch) = frozen.take() {
                    front.index().checkpoint(&batch).unwrap();
                    front.thaw();
                }
            }
        }
    }
    let all: Vec<_> = model.iter().map(|(k, v)| (k.clone(), Box::from([*v]))).collect();
    assert_eq!(front.scan(b"b", Bound::Unbounded, 100).unwrap(), all);
    for k in 0..24 {
        let key = [b'b', k];
        assert_eq!(front.get(&key).unwrap().map(|v| v[0]), model.get(&key[..]).copied());
    }
}
