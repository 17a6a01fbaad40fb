//! Dies at each durable step of the table of announced roots, and goes on with what was acknowledged, with and without
//! a restart. Needs the feature `failpoints`; the points are the process's, so this is one test.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use floe_core::clock::BoxFuture;
use floe_core::ports::{Entropy, LocalBlocks, Network as _, ReadError};
use floe_core::{Block, Cid, Clock, Timestamp};
use floe_ipfs::{Components, Identity, Keypair, Node, Settings};

/// No blocks, the system's clock, and bytes that need not be random.
struct World(Instant);

impl LocalBlocks for World {
    fn size(&self, _: &Cid) -> Result<Option<u32>, ReadError> {
        Ok(None)
    }

    fn read(&self, _: &Cid) -> Result<Option<bytes::Bytes>, ReadError> {
        Ok(None)
    }
}

impl Clock for World {
    #[expect(clippy::disallowed_methods, reason = "the tests' own adapter")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Timestamp::from_millis(since.as_millis() as u64)
    }

    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }

    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(for_))
    }
}

impl Entropy for World {
    fn fill(&self, out: &mut [u8]) {
        out.fill(7);
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests' own adapter")]
async fn start(dir: &Path) -> Node {
    let world = Arc::new(World(Instant::now()));
    let settings = Settings::local(dir.to_owned(), Identity::Keypair(Keypair::generate_ed25519()));
    let components = Components { blocks: world.clone(), clock: world.clone(), entropy: world };
    Node::start(settings, components).await.unwrap()
}

fn root(byte: u8) -> Cid {
    *Block::of(floe_core::cid::code::RAW, vec![byte].into()).unwrap().cid()
}

/// What passes the point.
async fn change(node: &Node, point: &str) -> Result<(), ReadError> {
    match point {
        "provides.added" => node.provide(&[root(3)]).await,
        _ => node.unprovide(&[root(1)]).await,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_a_death_at_each_change_of_the_table_acknowledges_nothing_and_loses_nothing() {
    for (point, after) in [("provides.added", 3), ("provides.removed", 1)] {
        for restarted in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let mut node = start(dir.path()).await;
            node.provide(&[root(1), root(2)]).await.unwrap();
            fail::cfg(point, "panic").unwrap();
            let error = change(&node, point).await.unwrap_err();
            assert!(error.to_string().contains("panicked"), "{point}: {error}");
            fail::remove(point);
            if restarted {
                node.stop().await;
                node = start(dir.path()).await;
            }
            assert_eq!(node.status().provided, 2, "{point}: as before");
            change(&node, point).await.unwrap();
            assert_eq!(node.status().provided, after, "{point}");
            node.stop().await;
            let node = start(dir.path()).await;
            assert_eq!(node.status().provided, after, "{point}, and after a restart");
            node.stop().await;
        }
    }
}
