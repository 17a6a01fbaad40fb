//! Blocks for unit tests.

use std::collections::HashMap;

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::ports::{LocalBlocks, ReadError};
use floe_core::{Block, Cid};

use crate::key::Key;

/// Blocks in a map.
#[derive(Default)]
pub(crate) struct Store(HashMap<Cid, Bytes>);

impl Store {
    pub(crate) fn extend<'a>(&mut self, blocks: impl IntoIterator<Item = &'a Block>) {
        self.0.extend(blocks.into_iter().map(|block| (*block.cid(), block.data().clone())));
    }
}

impl LocalBlocks for Store {
    fn size(&self, cid: &Cid) -> Result<Option<u32>, ReadError> {
        Ok(self.0.get(cid).map(|data| u32::try_from(data.len()).unwrap()))
    }

    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, ReadError> {
        Ok(self.0.get(cid).cloned())
    }
}

/// The block that number `i` makes.
pub(crate) fn block(i: u32) -> Block {
    Block::of(code::RAW, Bytes::copy_from_slice(&i.to_be_bytes())).unwrap()
}

/// A block of `len` bytes that number `i` makes.
pub(crate) fn large(i: u32, len: usize) -> Block {
    let mut data = vec![7; len];
    data[..4].copy_from_slice(&i.to_be_bytes());
    Block::of(code::RAW, Bytes::from(data)).unwrap()
}

/// Its key.
pub(crate) fn key(i: u32) -> Key {
    Key::new(*block(i).cid())
}
