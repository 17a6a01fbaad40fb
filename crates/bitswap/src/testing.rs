//! Blocks for unit tests.

use bytes::Bytes;
use floe_core::Block;
use floe_core::cid::code;

use crate::key::Key;

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
