//! Any bytes as a CAR of version 1 or 2, in parts of any size: checked blocks or an error, the same ones however they are
//! fed, in bounded memory.
#![no_main]

use floe_dag::car::{CarError, Decoder, Zeros};
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

fn read(data: &[u8], part: usize, zeros: Zeros) -> (usize, u64, Result<(), CarError>) {
    let (mut decoder, mut blocks, mut bytes) = (Decoder::new(zeros), 0, 0);
    for part in data.chunks(part) {
        decoder.feed(part);
        loop {
            match decoder.next_section() {
                Ok(Some(section)) => (blocks, bytes) = (blocks + 1, bytes + section.len),
                Ok(None) => break,
                Err(error) => return (blocks, bytes, Err(error)),
            }
        }
    }
    (blocks, bytes, decoder.finish())
}

fuzz_target!(|input: (u16, bool, &[u8])| {
    let (part, padded, data) = input;
    let zeros = if padded { Zeros::End } else { Zeros::Refused };
    let whole = within(data.len(), BASE, || read(data, data.len().max(1), zeros));
    let parts = within(data.len(), BASE, || read(data, usize::from(part).max(1), zeros));
    assert_eq!(whole, parts, "how it is fed makes a difference");
    assert!(whole.1 <= data.len() as u64);
});
