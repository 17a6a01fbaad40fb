//! CIDs, multihashes and blocks against published vectors, and which hashes count as integrity (threat T18).

use bytes::Bytes;
use floe_core::block::{MAX_BLOCK_BYTES, digest};
use floe_core::cid::{self, Cid, CidError, Multihash, code};
use floe_core::{Block, BlockError};

const MULTIHASHES: &str = include_str!("vectors/multihash/test_cases.csv");
const BASES: [&str; 3] = [
    include_str!("vectors/multibase/basic.csv"),
    include_str!("vectors/multibase/leading_zero.csv"),
    include_str!("vectors/multibase/two_leading_zeros.csv"),
];

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("the vectors are hex"))
        .collect()
}

/// The digest lengths of each function that counts: written out again, so that a slip in the code shows.
fn accepted_lengths(hash: u64) -> Option<(usize, usize)> {
    Some(match hash {
        0x00 => (0, 128),
        0x12 | 0x56 => (20, 32),
        0x13 => (20, 64),
        0x14 | 0x1d => (64, 64),
        0x15 | 0x1c => (48, 48),
        0x16 | 0x1b => (32, 32),
        0x17 | 0x1a => (28, 28),
        0x1e => (20, 128),
        0xb214..=0xb240 => ((hash - 0xb200) as usize, (hash - 0xb200) as usize),
        0xb254..=0xb260 => ((hash - 0xb240) as usize, (hash - 0xb240) as usize),
        _ => return None,
    })
}

#[test]
fn t18_every_multihash_code_and_digest_length() {
    // All one- and two-byte codes and those around the widest ranges in use, skein and poseidon among them.
    for hash in (0..0xc000u64).chain([0xb401, 0xf101, 0xf102, 0x1012, 0x1100, u64::from(u32::MAX), u64::MAX])
    {
        let lengths: &[usize] = &[0, 1, 19, 20, 21, 27, 28, 29, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128];
        for len in lengths {
            let checked = cid::check(&Multihash::wrap(hash, &[0; 128][..*len]).unwrap());
            match accepted_lengths(hash) {
                None => assert_eq!(checked, Err(CidError::HashNotAllowed(hash))),
                Some((min, max)) if (min..=max).contains(len) => {
                    assert_eq!(checked, Ok(()), "0x{hash:x} {len}")
                }
                Some((min, max)) => {
                    assert_eq!(checked, Err(CidError::DigestLength { code: hash, got: *len, min, max }));
                }
            }
        }
    }
}

#[test]
fn t18_what_is_accepted_is_what_can_be_computed() {
    for hash in 0..0xc000 {
        let computed = digest(hash, b"floe");
        assert_eq!(computed.is_some(), accepted_lengths(hash).is_some(), "0x{hash:x}");
        let Some(full) = computed else { continue };
        let data = Bytes::from_static(b"floe");
        let named = Cid::new_v1(code::RAW, full);
        assert!(Block::new(named, data).is_ok(), "0x{hash:x}");
        assert_eq!(Block::new(named, Bytes::from_static(b"flow")), Err(BlockError::Mismatch(named)));
    }
}

#[test]
fn multihash_vectors_are_checked_to_the_byte() {
    let (mut accepted, mut refused) = (0, 0);
    for row in MULTIHASHES.lines().skip(1) {
        let columns: Vec<&str> = row.split(',').collect();
        let (name, data) = (columns[0], Bytes::from(columns[2].as_bytes().to_vec()));
        let hash = Multihash::from_bytes(&unhex(columns[3])).unwrap();
        let short = hash.digest().len() < cid::MIN_DIGEST_BYTES;
        // SHA3 has a code for each length: a truncated digest under SHA3-512's is none of them.
        let good = name != "sha1" && !short && (name != "sha3" || hash.digest().len() == 64);
        let named = Cid::new_v1(code::RAW, hash);
        assert_eq!(Block::new(named, data.clone()).is_ok(), good, "{row}");
        if good {
            let flipped = Bytes::from([&data[..data.len() - 1], &[!data[data.len() - 1]]].concat());
            assert_eq!(Block::new(named, flipped), Err(BlockError::Mismatch(named)), "{row}");
            accepted += 1;
        } else {
            assert!(matches!(Block::new(named, data), Err(BlockError::Cid(_))), "{row}");
            refused += 1;
        }
    }
    assert_eq!((accepted, refused), (120, 140));
}

/// A second source for each function: the digests of `abc` that the standards and reference codes print.
#[test]
fn each_hash_function_gives_its_standards_digest_of_abc() {
    for (hash, expected) in [
        (0x12, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (0x56, "4f8b42c22dd3729b519ba6f68d2da7cc5b2d606d05daed5ad5128cc03e6c6358"),
        (0x16, "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),
        (0x17, "e642824c3f8cf24ad09234ee7d3c766fc9a3a5168d0c94ad73b46fdf"),
        (0x1b, "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
        (0x1e, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        (0xb220, "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"),
        (0xb260, "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"),
    ] {
        assert_eq!(digest(hash, b"abc").unwrap().digest(), unhex(expected), "0x{hash:x}");
    }
}

#[test]
fn a_block_of_2_mib_is_the_largest() {
    for (len, fits) in [(MAX_BLOCK_BYTES - 1, true), (MAX_BLOCK_BYTES, true), (MAX_BLOCK_BYTES + 1, false)] {
        let data = Bytes::from(vec![7; len]);
        let named = Cid::new_v1(code::RAW, digest(code::SHA2_256, &data).unwrap());
        let too_large = BlockError::TooLarge { cid: named, len };
        assert_eq!(
            Block::of(code::RAW, data.clone()).map(drop),
            if fits { Ok(()) } else { Err(too_large.clone()) }
        );
        assert_eq!(Block::new(named, data).map(drop), if fits { Ok(()) } else { Err(too_large) });
    }
}

#[test]
fn a_cid_parses_from_every_base_people_paste() {
    let v0 = cid::parse("QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1n").unwrap();
    assert_eq!((v0.version(), v0.codec()), (::cid::Version::V0, code::DAG_PB));
    let v1 = cid::parse("bafybeihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku").unwrap();
    assert_eq!(cid::canonical(&v0), v1, "the same block");
    let upper = v1.to_string().to_uppercase();
    assert_eq!(cid::parse(&upper), Ok(v1));
    let inline = cid::parse("bafkqaaa").unwrap();
    assert!(cid::is_identity(&inline) && inline.hash().digest().is_empty());
    assert_eq!(Block::inline(&inline).unwrap().data().len(), 0);
    for base in [
        multibase("base36", 'k'),
        multibase("base58btc", 'z'),
        multibase("base16", 'f'),
        multibase("base64url", 'u'),
        multibase("base2", '0'),
    ] {
        let text = v1.to_string_of_base(base).unwrap();
        assert_eq!(cid::parse(&text), Ok(v1), "{text}");
    }
}

fn multibase(name: &str, prefix: char) -> ::cid::multibase::Base {
    let base = ::cid::multibase::Base::from_code(prefix).expect("a prefix of the table");
    assert!(BASES[0].contains(name), "{name} has a published vector");
    base
}

#[test]
fn multibase_vectors_decode() {
    let mut decoded = 0;
    for (file, expected) in BASES.iter().zip([&b"yes mani !"[..], b"\0yes mani !", b"\0\0yes mani !"]) {
        for row in file.lines().skip(1) {
            let (name, text) = row.split_once(',').unwrap();
            let text = text.trim().trim_matches('"');
            match ::cid::multibase::decode(text) {
                Ok((_, bytes)) => assert_eq!(bytes, expected, "{name}"),
                // Drafts that the library leaves out.
                Err(e) => assert!(["base45", "proquint", "base256emoji"].contains(&name), "{name}: {e}"),
            }
            decoded += 1;
        }
    }
    assert_eq!(decoded, 69);
}

#[test]
fn what_is_no_cid_is_refused_in_words() {
    for text in [
        "",
        "Q",
        "bafy",
        "b",
        "not a cid",
        "QmdfTbBqBPQ7VNxZEYEj14VmRuZBkqFbiwReogJgS1zR1",
        "/ipfs/bafkqaaa",
        "https://a.example/ipfs/bafkqaaa",
    ] {
        assert!(matches!(cid::parse(text), Err(CidError::Malformed(_))), "{text:?}");
    }
    let long = "b".repeat(4 * cid::MAX_CID_BYTES + 1);
    assert!(matches!(cid::parse(&long), Err(CidError::Malformed(_))));
    let mut bytes = cid::parse("bafkqaaa").unwrap().to_bytes();
    bytes.push(0);
    assert!(matches!(cid::parse_bytes(&bytes), Err(CidError::Malformed(_))));
}
