//! How the client names a block: by its multihash, because that is what bytes prove, with the CID that was
//! asked for at hand.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use floe_core::{Cid, Multihash};

/// A shared CID that compares by its multihash: eight bytes in each of the maps that hold it.
#[derive(Debug, Clone)]
pub(crate) struct Key(Arc<Cid>);

impl Key {
    pub(crate) fn new(cid: Cid) -> Self {
        Self(Arc::new(cid))
    }

    pub(crate) fn cid(&self) -> &Cid {
        &self.0
    }

    pub(crate) fn multihash(&self) -> &Multihash {
        self.cid().hash()
    }
}

impl Borrow<Multihash> for Key {
    fn borrow(&self) -> &Multihash {
        self.multihash()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.multihash() == other.multihash()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The same as the multihash's, as `Borrow` demands.
        Hash::hash(self.multihash(), state);
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        fn of(key: &Key) -> (u64, &[u8]) {
            (key.multihash().code(), key.multihash().digest())
        }
        of(self).cmp(&of(other))
    }
}
