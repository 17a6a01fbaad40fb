//! CARs: the published files (`vectors/cars`, `CARS.tsv` says what each must do), what strangers may send, and layouts.
//!
//! Of go-car's samples of half a megabyte only those are here that hold something the others do not.
#![expect(clippy::unwrap_used, reason = "a test's helpers may")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::{Block, Cid};
use floe_dag::car::{CarError, Decoder, Layout, Part, Reader, Section, Writer, Zeros, section_len};
use floe_dag::limits::{
    FILLER_BYTES, MAX_CAR_HEADER_BYTES, MAX_CAR_ROOTS, MAX_CAR_SECTION_BYTES, MAX_CAR_V2_PADDING_BYTES,
    MAX_LAYOUT_SECTIONS,
};
use proptest::prelude::*;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cars")
}

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(vectors().join(name)).unwrap()
}

/// All of a CAR, fed in parts of `part` bytes, as far as it can be read.
fn decode(bytes: &[u8], zeros: Zeros, part: usize) -> (Decoder, Vec<Section>, Result<(), CarError>) {
    let (mut decoder, mut sections) = (Decoder::new(zeros), Vec::new());
    for part in bytes.chunks(part) {
        decoder.feed(part);
        loop {
            match decoder.next_section() {
                Ok(Some(section)) => sections.push(section),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_section(), Err(error.clone()), "an error is the last thing");
                    assert_eq!(decoder.finish(), Err(error.clone()));
                    return (decoder, sections, Err(error));
                }
            }
        }
    }
    let end = decoder.finish();
    (decoder, sections, end)
}

fn refused(bytes: &[u8]) -> CarError {
    decode(bytes, Zeros::Refused, bytes.len().max(1)).2.unwrap_err()
}

#[test]
fn published_cars_are_what_their_list_says() {
    let mut cases = 0;
    for line in String::from_utf8(vector("CARS.tsv")).unwrap().lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let (name, version, roots, blocks, expected) =
            (fields[0], fields[2], fields[3], fields[4], fields[8]);
        let Ok(bytes) = std::fs::read(vectors().join(name)) else { continue };
        cases += 1;
        let (decoder, sections, end) = decode(&bytes, Zeros::Refused, 1_000);
        assert_eq!(end.is_ok(), expected.starts_with("ok"), "{name}: {end:?}, and it must be: {expected}");
        if let Ok(blocks) = blocks.parse::<usize>() {
            assert_eq!(sections.len(), blocks, "{name}");
        }
        if decoder.roots().is_some() && version != "-" {
            let read: Vec<String> = decoder.roots().unwrap().iter().map(Cid::to_string).collect();
            assert_eq!(read.join(" ").as_str(), if roots == "-" { "" } else { roots }, "{name}");
            assert_eq!(decoder.version().unwrap().to_string(), version, "{name}");
        }
        if expected.contains("zero-length section") {
            assert!(matches!(end, Err(CarError::EmptySection(_))), "{name}");
            let (padded, again, end) = decode(&bytes, Zeros::End, 1_000);
            assert_eq!((end, again, padded.is_done()), (Ok(()), sections.clone(), true), "{name}");
        }
        // The other way to read gives the same.
        let read = Reader::new(&bytes[..], Zeros::Refused);
        let read: Result<Vec<Section>, CarError> = read.and_then(Iterator::collect);
        assert_eq!(read.is_ok(), expected.starts_with("ok"), "{name}");
        if let Ok(read) = read {
            assert_eq!(read, sections, "{name}");
        }
    }
    assert!(cases >= 20, "only {cases} of the files are here");
}

/// The offsets that the specification's fixtures give for each section.
#[test]
fn sections_are_where_the_specification_says() {
    for name in ["carv1-basic", "carv2-basic"] {
        let bytes = vector(&format!("ipld/{name}/{name}.car"));
        let json: serde_json::Value =
            serde_json::from_slice(&vector(&format!("ipld/{name}/{name}.json"))).unwrap();
        let blocks = json.get("blocks").or_else(|| json["payload"].get("blocks")).unwrap();
        let sections = decode(&bytes, Zeros::Refused, 7).1;
        // Those of version 2 are counted from where its data begins.
        let data =
            json["v2"]["dataOffset"].as_u64().or_else(|| json["header"]["dataOffset"].as_u64()).unwrap_or(0);
        for (section, block) in sections.iter().zip(blocks.as_array().unwrap()) {
            let (offset, len) = (block["offset"].as_u64().unwrap(), block["length"].as_u64().unwrap());
            assert!(section.offset == offset || section.offset == offset + data, "{name}: {block}");
            assert_eq!(section.len, len, "{name}: {block}");
        }
    }
}

/// Inputs that once broke go-car: a value or an error, whatever they are fed in.
#[test]
fn inputs_that_broke_go_car_are_no_panic() {
    let mut cases = 0;
    for folder in std::fs::read_dir(vectors().join("go-car/fuzz")).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for part in [1, 7, 4_096] {
                let _ = decode(&bytes, Zeros::End, part);
            }
            cases += 1;
        }
    }
    assert_eq!(cases, 6);
}

fn block(n: u64, bytes: usize) -> Block {
    let mut data = vec![n as u8; bytes];
    data.iter_mut().zip(n.to_le_bytes()).for_each(|(to, byte)| *to = byte);
    Block::of(code::RAW, Bytes::from(data)).unwrap()
}

fn car(roots: &[Cid], blocks: &[Block]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), roots).unwrap();
    for block in blocks {
        let at = writer.written();
        assert_eq!(writer.write(block), Ok(at));
        assert_eq!(writer.written() - at, section_len(block.cid(), block.data().len()));
    }
    writer.finish().unwrap()
}

fn varint(n: u64) -> Vec<u8> {
    unsigned_varint::encode::u64(n, &mut unsigned_varint::encode::u64_buffer()).to_vec()
}

/// A published CAR, read and written again, is the same bytes.
#[test]
fn what_go_car_wrote_is_written_the_same() {
    for name in ["go-car/sample-v1.car", "ipld/carv1-basic/carv1-basic.car", "car-fixtures/headers-test.car"]
    {
        let bytes = vector(name);
        let (decoder, sections, _) = decode(&bytes, Zeros::Refused, 4_096);
        let blocks: Vec<Block> = sections.into_iter().map(|section| section.block).collect();
        assert!(car(decoder.roots().unwrap(), &blocks) == bytes, "{name}");
    }
}

/// iroh-car 0.5.1 took the end of the bytes for the end of the file, wherever it was: half an upload was a whole one.
#[test]
fn t17_a_car_that_is_cut_is_refused_at_each_byte() {
    let blocks = [block(1, 50), block(2, 200)];
    let bytes = car(&[*blocks[0].cid()], &blocks);
    let ends: Vec<u64> = decode(&bytes, Zeros::Refused, 1).1.iter().map(|section| section.offset).collect();
    for cut in 0..bytes.len() {
        let is_end = ends.contains(&(cut as u64));
        let end = decode(&bytes[..cut], Zeros::Refused, 64).2;
        assert_eq!(end.is_ok(), is_end, "cut at {cut}: {end:?}");
        if !is_end {
            assert_eq!(end, Err(CarError::Truncated(cut as u64)));
        }
    }
    let v2 = vector("go-car/sample-unixfs-v2.car");
    for cut in 0..51 + 284 {
        assert_eq!(
            decode(&v2[..cut], Zeros::Refused, 64).2,
            Err(CarError::Truncated(cut as u64)),
            "cut at {cut}"
        );
    }
}

/// Lengths are claims. Neither a header nor a section is waited for beyond its limit, and nothing is sized by one.
#[test]
fn t17_lengths_end_at_their_limits() {
    let header = |len: u64| decode(&varint(len), Zeros::Refused, 1).2.unwrap_err();
    let most = MAX_CAR_HEADER_BYTES as u64;
    for len in [most - 1, most] {
        assert!(matches!(header(len), CarError::Truncated(_)), "{len}");
    }
    for len in [most + 1, 1 << 32, 1 << 63, u64::MAX] {
        assert_eq!(header(len), CarError::HeaderTooLarge(len));
    }
    let empty = car(&[], &[]);
    let section = |len: u64| refused(&[&empty[..], &varint(len)].concat());
    let most = MAX_CAR_SECTION_BYTES as u64;
    for len in [most - 1, most] {
        assert!(matches!(section(len), CarError::Truncated(_)), "{len}");
    }
    for len in [most + 1, 1 << 32, 1 << 63, u64::MAX] {
        assert_eq!(section(len), CarError::SectionTooLarge { at: empty.len() as u64, len });
    }
    for bad in [&[0x80, 0x00][..], &[0xff; 11]] {
        assert!(matches!(refused(&[&empty[..], bad].concat()), CarError::Length(_)), "{bad:?}");
    }
    let roots = vec![*block(1, 1).cid(); MAX_CAR_ROOTS + 1];
    assert_eq!(decode(&car(&roots[1..], &[]), Zeros::Refused, 99).0.roots().unwrap().len(), MAX_CAR_ROOTS);
    assert!(matches!(Writer::new(Vec::new(), &roots), Err(CarError::TooManyRoots)));
    // One more in the header's list than may be, by hand: 128 is 0x98 0x80.
    let mut many = car(&roots[1..], &[]);
    let at = many.windows(2).position(|pair| pair == [0x98, 0x80]).unwrap();
    many[at + 1] = 0x81;
    assert_eq!(refused(&many), CarError::TooManyRoots);
}

#[test]
fn t17_headers_and_sections_that_lie_are_refused() {
    let map = |body: &[u8]| refused(&[&varint(body.len() as u64), body].concat());
    for (what, body) in [
        ("nothing", &b""[..]),
        ("a list", &[0x80]),
        ("no version", b"\xa1\x65roots\x80"),
        ("no roots", b"\xa1\x67version\x01"),
        ("another key", b"\xa3\x61a\x00\x65roots\x80\x67version\x01"),
        ("keys out of order", b"\xa2\x67version\x01\x65roots\x80"),
        ("a key twice", b"\xa2\x65roots\x80\x65roots\x80"),
        ("bytes behind", b"\xa2\x65roots\x80\x67version\x01\x00"),
        ("a version in text", b"\xa2\x65roots\x80\x67version\x611"),
        ("a root that is no link", b"\xa2\x65roots\x81\x00\x67version\x01"),
        ("more roots than bytes", b"\xa2\x65roots\x98\x40\x67version\x01"),
        ("roots outside of a version 2", b"\xa2\x65roots\x80\x67version\x02"),
    ] {
        assert!(matches!(map(body), CarError::Header(_)), "{what}");
    }
    for version in [0, 3, 23] {
        let body = [&b"\xa2\x65roots\x80\x67version"[..], &[version]].concat();
        assert_eq!(map(&body), CarError::Version(version.into()));
    }
    let good = block(1, 100);
    let mut wrong = car(&[], &[good]);
    *wrong.last_mut().unwrap() ^= 1;
    assert!(matches!(refused(&wrong), CarError::Block { .. }), "a block that is not its CID");
    let no_cid = [&car(&[], &[])[..], &[3, 1, 2, 3]].concat();
    assert!(matches!(refused(&no_cid), CarError::Cid { .. }));
}

/// A CARv2 of this data, with its numbers changed by hand.
fn v2(data: &[u8], change: impl Fn(&mut [u64; 3])) -> Vec<u8> {
    let mut numbers = [51, data.len() as u64, 0];
    change(&mut numbers);
    let mut out = b"\x0a\xa1\x67version\x02".to_vec();
    out.extend([0; 16]);
    out.extend(numbers.iter().flat_map(|n| n.to_le_bytes()));
    out.extend_from_slice(data);
    out
}

#[test]
fn t17_envelopes_that_cannot_be_are_refused() {
    let data = car(&[], &[block(1, 100)]);
    assert_eq!(decode(&v2(&data, |_| {}), Zeros::Refused, 5).2, Ok(()));
    let envelope = |change: &dyn Fn(&mut [u64; 3])| refused(&v2(&data, change));
    for (what, change) in [
        ("data inside of the header", (|n| n[0] = 50) as fn(&mut [u64; 3])),
        ("no data", |n| n[1] = 0),
        ("data beyond numbers", |n| n[1] = u64::MAX),
        ("far away data", |n| n[0] = 52 + MAX_CAR_V2_PADDING_BYTES),
        ("an index inside of the data", |n| n[2] = 60),
    ] {
        assert!(matches!(envelope(&change), CarError::V2(_)), "{what}");
    }
    assert!(matches!(envelope(&|n| n[0] = 51 + MAX_CAR_V2_PADDING_BYTES), CarError::Truncated(_)));
    assert!(matches!(envelope(&|n| n[1] += 1), CarError::Truncated(_)), "less data than it says");
    // At the end of the header alone, the data is a CAR without blocks.
    let header = car(&[], &[]).len() as u64;
    for short in (1..data.len() as u64).filter(|short| *short != header) {
        let error = envelope(&|n| n[1] = short);
        assert!(matches!(error, CarError::BeyondData(_)), "{short} bytes of data: {error:?}");
    }
    // What follows the data is never read, whatever it is.
    let index = [v2(&data, |n| n[2] = 51 + n[1]), vec![0xff; 10_000]].concat();
    let (decoder, sections, end) = decode(&index, Zeros::Refused, 100);
    assert_eq!((end, sections.len(), decoder.is_done()), (Ok(()), 1, true));
    // A version 2 inside of a version 2 is no way to nest for ever.
    assert_eq!(refused(&v2(&v2(&data, |_| {}), |_| {})), CarError::Version(2));
}

/// The bytes of a range, as who streams a deal would put them together.
fn assemble(layout: &Layout, blocks: &[Block], range: std::ops::Range<u64>) -> Vec<u8> {
    let mut out = Vec::new();
    for part in layout.parts(range) {
        assert!(!part.is_empty());
        match part {
            Part::Bytes(bytes) => out.extend_from_slice(bytes),
            Part::Zeros(zeros) => out.resize(out.len() + zeros, 0),
            Part::Block { cid, range } => {
                let block = blocks.iter().find(|block| *block.cid() == cid).unwrap();
                out.extend_from_slice(&block.data()[range]);
            }
        }
    }
    out
}

/// Each gap is filled to the byte by sections that any reader takes, also around those lengths that no section has.
#[test]
fn gaps_are_filled_to_the_byte() {
    let whole = section_len(block(0, 1).cid(), FILLER_BYTES);
    let around = |n: u64| n - 40..n + 40;
    let gaps =
        (37..400).chain(around(16_386)).chain(around(whole)).chain(around(2 * whole)).chain([0, 3 * whole]);
    for gap in gaps {
        let mut layout = Layout::new(&[]).unwrap();
        let before = layout.len();
        layout.fill(gap).unwrap();
        assert_eq!(layout.len() - before, gap);
        let car = assemble(&layout, &[], 0..u64::MAX);
        assert_eq!(
            (car.len() as u64, decode(&car, Zeros::Refused, 1 << 20).2),
            (layout.len(), Ok(())),
            "{gap}"
        );
    }
    for gap in 1..37 {
        let mut layout = Layout::new(&[]).unwrap();
        let before = layout.len();
        assert_eq!((layout.fill(gap), layout.len()), (Err(CarError::Gap(gap)), before));
    }
}

/// A gap of more bytes than there are numbers was laid out modulo 2^64, and one of more sections than a layout may hold stayed
/// half filled.
#[test]
fn a_gap_too_wide_leaves_the_layout_as_it_was() {
    let mut layout = Layout::new(&[]).unwrap();
    let place = layout.push(block(1, 9).cid(), 9).unwrap();
    let before = (layout.len(), assemble(&layout, &[block(1, 9)], 0..u64::MAX));
    for gap in [u64::MAX, u64::MAX - place.end + 1, MAX_LAYOUT_SECTIONS as u64 * (FILLER_BYTES as u64 + 39)] {
        assert_eq!(layout.fill(gap), Err(CarError::TooManySections), "{gap}");
        assert_eq!((layout.len(), assemble(&layout, &[block(1, 9)], 0..u64::MAX)), before, "{gap}");
    }
    layout.fill(37).unwrap();
}

#[test]
fn blocks_that_no_reader_takes_are_not_laid_out() {
    let mut layout = Layout::new(&[]).unwrap();
    let before = layout.len();
    assert!(layout.push(block(1, 1).cid(), (2 << 20) + 1).is_err());
    assert!(layout.push(block(1, 1).cid(), usize::MAX).is_err());
    let sha1 = Cid::new_v1(code::RAW, floe_core::Multihash::wrap(code::SHA1, &[0; 20]).unwrap());
    assert!(layout.push(&sha1, 10).is_err());
    assert_eq!(layout.len(), before);
}

fn any_blocks() -> impl Strategy<Value = Vec<Block>> {
    prop::collection::vec((any::<u64>(), 0..400usize), 0..12)
        .prop_map(|all| all.into_iter().map(|(n, len)| block(n, len)).collect())
}

proptest! {
    #[test]
    fn blocks_come_back_however_they_are_fed(blocks in any_blocks(), part in 1..700usize, roots in 0..3usize) {
        let roots: Vec<Cid> = blocks.iter().take(roots).map(|block| *block.cid()).collect();
        let bytes = car(&roots, &blocks);
        for wrapped in [bytes.clone(), v2(&bytes, |_| {})] {
            let (decoder, sections, end) = decode(&wrapped, Zeros::Refused, part);
            prop_assert_eq!(end, Ok(()));
            prop_assert_eq!(decoder.roots(), Some(&roots[..]));
            for section in &sections {
                prop_assert_eq!(section_len(section.block.cid(), section.block.data().len()), section.len);
            }
            let read: Vec<Block> = sections.into_iter().map(|section| section.block).collect();
            prop_assert_eq!(&read, &blocks);
        }
        // In a piece, zeros follow.
        let padded = [&bytes[..], &[0; 500]].concat();
        let (_, sections, end) = decode(&padded, Zeros::End, part);
        prop_assert_eq!((end, sections.len()), (Ok(()), blocks.len()));
    }

    /// A layout, made of CIDs and sizes alone, is the writer's file: its length, its offsets, and each range of it.
    #[test]
    fn a_layout_is_the_file(
        blocks in any_blocks(), gaps in prop::collection::vec(prop_oneof![Just(0u64), 37..300u64], 12),
        ranges in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 8),
    ) {
        let root = [*block(1, 1).cid()];
        let mut layout = Layout::new(&root).unwrap();
        let mut places = Vec::new();
        for (block, gap) in blocks.iter().zip(gaps) {
            layout.fill(gap).unwrap();
            places.push(layout.push(block.cid(), block.data().len()).unwrap());
        }
        let whole = assemble(&layout, &blocks, 0..u64::MAX);
        prop_assert_eq!(whole.len() as u64, layout.len());
        for (block, place) in blocks.iter().zip(places) {
            prop_assert_eq!(&whole[place.start as usize..place.end as usize], &block.data()[..]);
        }
        let (_, sections, end) = decode(&whole, Zeros::Refused, 4_096);
        prop_assert_eq!(end, Ok(()));
        let written: Vec<Block> = sections.into_iter().map(|section| section.block).collect();
        prop_assert!(car(&root, &written) == whole, "the writer and the layout differ");
        for (from, to) in ranges {
            let (from, to) = (from.index(whole.len() + 1), to.index(whole.len() + 2));
            let to = to.max(from);
            let range = assemble(&layout, &blocks, from as u64..to as u64);
            prop_assert_eq!(&range[..], &whole[from..to.min(whole.len())]);
        }
    }

    /// Any byte of a good file changed, and the file cut: blocks that are right, or an error.
    #[test]
    fn t17_a_mutated_car_is_no_panic(
        blocks in any_blocks(), at in any::<prop::sample::Index>(), to in any::<u8>(),
        cut in any::<prop::sample::Index>(), version_2 in any::<bool>(), part in 1..300usize,
    ) {
        let bytes = car(&[], &blocks);
        let mut bytes = if version_2 { v2(&bytes, |_| {}) } else { bytes };
        let at = at.index(bytes.len());
        bytes[at] = to;
        bytes.truncate(cut.index(bytes.len()) + 1);
        let (_, sections, _) = decode(&bytes, Zeros::End, part);
        for section in sections {
            prop_assert!(Block::new(*section.block.cid(), section.block.data().clone()).is_ok());
        }
    }

    #[test]
    fn t17_any_bytes_are_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), part in 1..100usize) {
        let _ = decode(&bytes, Zeros::End, part);
        let _ = decode(&[&car(&[], &[])[..], &bytes].concat(), Zeros::Refused, part);
    }
}
