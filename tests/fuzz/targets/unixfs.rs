//! Any bytes as UnixFS fields and as a HAMT shard over any number of links.
#![no_main]

use floe_dag::unixfs::{Hamt, decode};
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u64, u32, &[u8], &[u8])| {
    let (links, above, name, data) = input;
    within(data.len(), BASE, || {
        let Some(fields) = decode(data) else { return };
        let Ok(shard) = Hamt::of(&fields) else { return };
        let _ = shard.check_links(links);
        let _ = shard.check_depth(above);
        let _ = shard.is_shard_link(name);
    });
});
