//! Any bytes as a bitswap message. What is parsed is written and read back the same, in every version.
#![no_main]

use bytes::{Bytes, BytesMut};
use floe_bitswap::limits::ENTRIES_PER_MESSAGE;
use floe_bitswap::message::{Message, Payload, Presence, Version, WantEntry};
use floe_core::Cid;
use floe_fuzz::{BASE, within};
use libfuzzer_sys::fuzz_target;

const WANT: usize = size_of::<WantEntry>();
const PAYLOAD: usize = size_of::<Payload>();
const PRESENCE: usize = size_of::<(Cid, Presence)>();
const LARGEST: usize = {
    let larger = if WANT > PRESENCE { WANT } else { PRESENCE };
    if larger > PAYLOAD { larger } else { PAYLOAD }
};

/// Entries are larger in memory than on the wire. The three lists have each as many as the limit says, which is a
/// power of two as the room of a list that grows is; the one that grows holds its old half while it is moved. Copies
/// of payloads come after that, and are no more than the input.
const ENTRIES: usize = ENTRIES_PER_MESSAGE * (WANT + PAYLOAD + PRESENCE) + ENTRIES_PER_MESSAGE / 2 * LARGEST;
const _: () = assert!(ENTRIES_PER_MESSAGE.is_power_of_two());

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
