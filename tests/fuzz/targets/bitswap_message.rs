//! Any bytes as a bitswap message. What is parsed is written and read back the same, in every version.
#![no_main]

use bytes::{Bytes, BytesMut};
use floe_bitswap::limits::ENTRIES_PER_MESSAGE;
use floe_bitswap::message::{Message, Payload, Version, WantEntry};
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

/// Entries are larger in memory than on the wire, and as many are kept as the limit says; a list that grows holds
/// its old half for a moment.
const ENTRIES: usize =
    2 * ENTRIES_PER_MESSAGE * (2 * std::mem::size_of::<WantEntry>() + std::mem::size_of::<Payload>());

fuzz_target!(|data: &[u8]| {
    let input = Bytes::copy_from_slice(data);
    let Ok(message) = within(data.len(), BASE + ENTRIES, || Message::decode(&input)) else { return };
    for version in [Version::V1_0, Version::V1_1, Version::V1_2] {
        let frame = message.encode(version);
        let mut bytes = BytesMut::with_capacity(frame.len());
        frame.parts().iter().for_each(|part| bytes.extend_from_slice(part));
        assert_eq!(bytes.len(), frame.len());
        // The length comes first.
        let prefix = bytes.iter().position(|byte| byte & 0x80 == 0).expect("a varint ends") + 1;
        let read = Message::decode(&bytes.split_off(prefix).freeze()).expect("what was written is read");
        if version == Version::V1_2 {
            assert_eq!(read, message);
        }
    }
});
