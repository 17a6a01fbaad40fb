//! Any bytes as a CID of a piece, v1 or v2: what is read is written the same.
#![no_main]

use floe_core::{Cid, PieceCid, PieceCidV2};
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(cid) = Cid::try_from(data) else { return };
    if let Ok(v1) = within(data.len(), BASE, || PieceCid::from_cid(&cid)) {
        assert_eq!(v1.to_cid(), cid);
    }
    if let Ok(v2) = within(data.len(), BASE, || PieceCidV2::from_cid(&cid)) {
        assert_eq!(v2.to_cid(), cid);
    }
});
