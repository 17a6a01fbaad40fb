//! Any payload in parts of any size: the same piece, and its piece CID v2 names it.
#![no_main]

use floe_fuzz::{BASE, within};
use floe_piece::{CommP, PieceCidV2};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, &[u8])| {
    let (part, data) = input;
    let hash = |part: usize| {
        let mut commp = CommP::new();
        data.chunks(part).for_each(|part| commp.update(part).expect("it is far below 64 GiB"));
        commp.finish().expect("it is far below 64 GiB")
    };
    let whole = within(data.len(), BASE, || hash(data.len().max(1)));
    let parts = within(data.len(), BASE, || hash(usize::from(part).max(1)));
    assert_eq!(whole, parts);
    let v2 = whole.v2().expect("the smallest size of a payload names it");
    assert_eq!(PieceCidV2::from_cid(&v2.to_cid()), Ok(v2));
    assert_eq!(v2.payload_bytes(), data.len() as u64);
});
