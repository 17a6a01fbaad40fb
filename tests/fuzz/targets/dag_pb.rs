//! Any bytes as a dag-pb block, with its UnixFS and HAMT checks: links or an error, in bounded memory.
#![no_main]

use bytes::Bytes;
use floe_core::Block;
use floe_core::cid::code;
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let scanned = within(data.len(), BASE, || floe_dag::scan(code::DAG_PB, data, &mut |_| {}));
    let Ok(block) = Block::of(code::DAG_PB, Bytes::copy_from_slice(data)) else { return };
    let read = within(data.len(), BASE, || floe_dag::links(&block).map(Iterator::count));
    assert!(scanned.is_ok() || read.is_err(), "links of what does not scan");
});
