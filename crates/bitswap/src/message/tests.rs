//! The wire: what is written is read, damage is an error, and nothing is kept for more than it counts for.

use floe_core::Multihash;
use proptest::prelude::*;

use super::*;
use crate::testing::{block, large};

fn joined(frame: &Frame) -> Bytes {
    let mut all = BytesMut::new();
    frame.parts().iter().for_each(|part| all.extend_from_slice(part));
    assert_eq!(all.len(), frame.len());
    let (len, rest) = take_varint(&all).unwrap();
    assert_eq!(len as usize, rest.len());
    Bytes::copy_from_slice(rest)
}

fn cid_of(seed: u32, v0: bool, long: bool) -> Cid {
    let hash = if long {
        Multihash::wrap(code::SHA2_512, &[seed as u8; 64]).unwrap()
    } else {
        *block(seed).cid().hash()
    };
    if v0 && !long { Cid::new_v0(hash).unwrap() } else { Cid::new_v1(code::DAG_CBOR, hash) }
}

prop_compose! {
    fn any_cid()(seed in 0u32..50, v0: bool, long: bool) -> Cid {
        cid_of(seed, v0, long)
    }
}

prop_compose! {
    fn any_want()(cid in any_cid(), priority: i32, cancel: bool, have: bool, send_dont_have: bool) -> WantEntry {
        let kind = if have { WantKind::Have } else { WantKind::Block };
        WantEntry { cid, priority, cancel, kind, send_dont_have }
    }
}

prop_compose! {
    fn any_payload()(cid in any_cid(), data in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        Just(vec![3; SLICE_PAYLOAD_FROM]),
        Just(vec![4; SLICE_PAYLOAD_FROM - 1]),
    ]) -> Payload {
        Payload::new(&cid, Bytes::from(data))
    }
}

prop_compose! {
    fn any_message()(
        full: bool,
        wants in prop::collection::vec(any_want(), 0..8),
        payloads in prop::collection::vec(any_payload(), 0..4),
        presences in prop::collection::vec((any_cid(), any::<bool>()), 0..8),
        pending_bytes: i32,
    ) -> Message {
        let presences = presences
            .into_iter()
            .map(|(cid, have)| (cid, if have { Presence::Have } else { Presence::DontHave }))
            .collect();
        Message { full, wants, payloads, presences, pending_bytes }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(message in any_message()) {
        prop_assert_eq!(Message::decode(&joined(&message.encode(Version::V1_2))), Ok(message));
    }

    #[test]
    fn older_versions_leave_out_what_they_lack(message in any_message()) {
        let v1_1 = Message::decode(&joined(&message.encode(Version::V1_1))).unwrap();
        prop_assert_eq!(&v1_1.payloads, &message.payloads);
        prop_assert!(v1_1.presences.is_empty());
        let v1_0 = Message::decode(&joined(&message.encode(Version::V1_0))).unwrap();
        prop_assert_eq!(v1_0.payloads.len(), message.payloads.len());
        prop_assert!(v1_0.payloads.iter().all(|payload| payload.prefix == Prefix::V0));
    }

    #[test]
    fn t03_arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Message::decode(&Bytes::from(bytes));
    }

    #[test]
    fn t03_damaged_messages_never_panic(
        message in any_message(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = joined(&message.encode(Version::V1_2)).to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = Message::decode(&Bytes::from(bytes));
    }

    #[test]
    fn varints_agree_with_their_length(value: u64) {
        let mut out = BytesMut::new();
        put_varint(&mut out, value);
        prop_assert_eq!(out.len(), varint_len(value));
        prop_assert_eq!(take_varint(&out), Ok((value, &[][..])));
    }
}

#[test]
fn t03_a_message_without_a_wantlist_is_read() {
    // boxo#961: a message without a wantlist was a nil pointer there.
    assert_eq!(Message::decode(&Bytes::new()), Ok(Message::default()));
    let only_pending = Message::decode(&Bytes::from_static(&[PENDING_BYTES, 7])).unwrap();
    assert_eq!(only_pending.pending_bytes, 7);
}

#[test]
fn the_bytes_are_those_of_the_protobuf() {
    // Made by hand from the schema, so that both directions being wrong alike would show.
    let block = block(1);
    let cid = block.cid().to_bytes();
    let mut entry = vec![0x0a, 36];
    entry.extend(&cid);
    entry.extend([0x10, 1, 0x20, 1, 0x28, 1]);
    let mut wantlist = vec![0x0a, u8::try_from(entry.len()).unwrap()];
    wantlist.extend(entry);
    wantlist.extend([0x10, 1]);
    let mut bytes = vec![0x0a, u8::try_from(wantlist.len()).unwrap()];
    bytes.extend(wantlist);
    bytes.extend([0x22, 40, 0x0a, 36]);
    bytes.extend(&cid);
    bytes.extend([0x10, 1]);
    bytes.extend([0x1a, 12, 0x0a, 4, 1, 0x55, 0x12, 32, 0x12, 4]);
    bytes.extend(block.data());
    let message = Message {
        full: true,
        wants: vec![WantEntry {
            cid: *block.cid(),
            priority: 1,
            cancel: false,
            kind: WantKind::Have,
            send_dont_have: true,
        }],
        payloads: vec![Payload::new(block.cid(), block.data().clone())],
        presences: vec![(*block.cid(), Presence::DontHave)],
        pending_bytes: 0,
    };
    assert_eq!(Message::decode(&Bytes::from(bytes.clone())).unwrap(), message);
    assert_eq!(joined(&message.encode(Version::V1_2)), bytes);
}

#[test]
fn payloads_are_slices_of_the_frame_and_go_out_uncopied() {
    let block = large(1, 100_000);
    let payload = Payload::new(block.cid(), block.data().clone());
    let frame = Message { payloads: vec![payload], ..Message::default() }.encode(Version::V1_2);
    assert!(frame.parts().iter().any(|part| part.as_ptr() == block.data().as_ptr()));
    let bytes = joined(&frame);
    let read = Message::decode(&bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&read.payloads[0].data.as_ptr()));
    assert_eq!(read.payloads[0].clone().hashed().unwrap(), block);
}

/// `message` with so many bytes of a field that nobody knows.
fn padded(message: &Message, padding: usize) -> Bytes {
    const UNKNOWN: u8 = 0x7a;
    let mut bytes = BytesMut::from(&joined(&message.encode(Version::V1_2))[..]);
    put_len(&mut bytes, UNKNOWN, padding);
    bytes.put_bytes(0, padding);
    bytes.freeze()
}

/// Payloads with so many bytes each, in a frame with so many that nobody knows.
fn frame_of(payloads: &[usize], padding: usize) -> Bytes {
    let blocks = payloads.iter().zip(0..).map(|(len, i)| large(i, *len));
    let payloads = blocks.map(|block| Payload::new(block.cid(), block.data().clone())).collect();
    padded(&Message { payloads, ..Message::default() }, padding)
}

/// The story: a payload was a slice of its frame whatever else the frame held, and counted for its own bytes: a
/// provider that padded each message kept 4 MiB in memory for every block of 100 bytes. Then what the payloads of a frame
/// have together decided, and a small one kept the frame when large ones beside it, not wanted, had been dropped.
#[test]
fn t07_no_payload_keeps_more_than_four_times_itself() {
    const MIB: usize = 1 << 20;
    for (payloads, padding) in [
        (vec![100], 4 * MIB - 1_000),
        (vec![2 * MIB - 10_000, 8 << 10, 2 * MIB - 10_000], 0),
        (vec![1_900_000, 100], 1_900_000),
        (vec![MIB, MIB / 2, MIB / 4, MIB / 8], 2 * MIB),
        (vec![100; ENTRIES_PER_MESSAGE], 0),
    ] {
        let frame = frame_of(&payloads, padding);
        for (i, len) in payloads.iter().enumerate().take(5) {
            let kept = Message::decode(&frame).unwrap().payloads.swap_remove(i).data;
            assert_eq!(kept.len(), *len);
            let keeps = if frame.is_unique() { kept.len() } else { frame.len() };
            assert!(kept.is_unique() || !frame.is_unique(), "or it keeps what the others were copied to");
            assert!(keeps <= SLICE_KEEPS * len, "{len} bytes of {payloads:?} keep {keeps}");
        }
    }
}

#[test]
fn a_quarter_of_a_frame_is_still_a_slice() {
    const LEN: usize = 100_000;
    let around = frame_of(&[LEN], 1 << 17).len() - LEN - (1 << 17);
    let exact = (SLICE_KEEPS - 1) * LEN - around;
    for (padding, slice) in [(exact - 1, true), (exact, true), (exact + 1, false)] {
        let frame = frame_of(&[LEN], padding);
        let read = Message::decode(&frame).unwrap();
        assert_eq!(!frame.is_unique(), slice, "{LEN} of {}", frame.len());
        assert_eq!(read.payloads[0].clone().hashed().unwrap(), large(0, LEN));
    }
}

#[test]
fn the_common_leaves_of_an_answer_are_slices() {
    let leaf = 256 << 10;
    let frame = frame_of(&[leaf, leaf], 0);
    let slices = |payload: &Payload| frame.as_ptr_range().contains(&payload.data.as_ptr());
    assert!(Message::decode(&frame).unwrap().payloads.iter().all(slices));
}

#[test]
fn t07_small_payloads_do_not_keep_large_ones() {
    let frame = frame_of(&[20_000, SLICE_PAYLOAD_FROM, SLICE_PAYLOAD_FROM - 1, 4], 0);
    let read = Message::decode(&frame).unwrap();
    let slices = |payload: &Payload| frame.as_ptr_range().contains(&payload.data.as_ptr());
    assert_eq!(read.payloads.iter().map(slices).collect::<Vec<_>>(), [true, false, false, false]);
    let frame = frame_of(&[SLICE_PAYLOAD_FROM, SLICE_PAYLOAD_FROM - 1], 0);
    let read = Message::decode(&frame).unwrap();
    let slices = |payload: &Payload| frame.as_ptr_range().contains(&payload.data.as_ptr());
    assert_eq!(read.payloads.iter().map(slices).collect::<Vec<_>>(), [true, false]);
}

#[test]
fn entries_are_bounded() {
    let want = |i| WantEntry {
        cid: *block(i).cid(),
        priority: 0,
        cancel: false,
        kind: WantKind::Block,
        send_dont_have: false,
    };
    for (sent, kept) in [
        (ENTRIES_PER_MESSAGE - 1, ENTRIES_PER_MESSAGE - 1),
        (ENTRIES_PER_MESSAGE, ENTRIES_PER_MESSAGE),
        (ENTRIES_PER_MESSAGE + 1, ENTRIES_PER_MESSAGE),
    ] {
        let wants = (0..u32::try_from(sent).unwrap()).map(want).collect();
        let bytes = joined(&Message { wants, ..Message::default() }.encode(Version::V1_2));
        assert_eq!(Message::decode(&bytes).unwrap().wants.len(), kept);
    }
}

fn presence(cid: &[u8]) -> Bytes {
    let mut bytes = vec![PRESENCE];
    let mut field = vec![PRESENCE_CID];
    let mut buffer = unsigned_varint::encode::u64_buffer();
    field.extend(unsigned_varint::encode::u64(cid.len() as u64, &mut buffer));
    field.extend(cid);
    bytes.extend(unsigned_varint::encode::u64(field.len() as u64, &mut buffer));
    bytes.extend(field);
    Bytes::from(bytes)
}

#[test]
fn cids_are_bounded_and_inline_or_weak_ones_left_out() {
    let sha3 = |len: u8| {
        let mut cid = vec![1, 0x55, 0x1e, len, 1];
        cid.splice(3..4, if len < 128 { vec![len] } else { vec![len, 1] });
        cid.truncate(cid.len() - 1);
        cid.extend(vec![9; usize::from(len)]);
        cid
    };
    assert_eq!(Message::decode(&presence(&sha3(127))).unwrap().presences.len(), 1);
    assert_eq!(Message::decode(&presence(&sha3(128))).unwrap().presences.len(), 1);
    assert!(matches!(Message::decode(&presence(&sha3(129))), Err(DecodeError::Cid(_))));
    assert!(matches!(Message::decode(&presence(&[1; 169])), Err(DecodeError::Cid(_))));
    let inline = [1, 0x55, 0, 2, 7, 7];
    assert!(Message::decode(&presence(&inline)).unwrap().presences.is_empty());
    let mut sha1 = vec![1, 0x55, 0x11, 20];
    sha1.extend([5; 20]);
    assert!(Message::decode(&presence(&sha1)).unwrap().presences.is_empty());
    let mut tail = block(1).cid().to_bytes();
    tail.push(0);
    assert!(matches!(Message::decode(&presence(&tail)), Err(DecodeError::Cid(_))));
}

#[test]
fn t02_field_lengths_beyond_the_end_are_cut_off_fields() {
    for len in [1u64, 4 << 20, 1 << 32, 1 << 63, u64::MAX] {
        let mut bytes = BytesMut::from(&[PAYLOAD][..]);
        put_varint(&mut bytes, len);
        assert_eq!(Message::decode(&bytes.freeze()), Err(DecodeError::Truncated), "{len}");
    }
}
