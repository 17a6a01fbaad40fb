//! Any bytes as the data segment index of a piece: entries that are sound and fit, in bounded memory.
#![no_main]

use floe_fuzz::{BASE, within};
use floe_piece::PaddedSize;
use floe_piece::segment::{Index, index_start, max_entries};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (height, data) = input;
    let Some(of) = PaddedSize::from_height(height) else { return };
    let Ok(index) = within(data.len(), BASE, || Index::read(of, data)) else { return };
    assert!(index.segments().len() as u64 <= max_entries(of));
    for segment in index.segments() {
        assert!(Some(segment.offset + segment.size.bytes()) <= index_start(of));
    }
});
