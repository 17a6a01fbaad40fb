//! The published piece CIDs: of go-fil-commp-hashhash (`vectors/commp`), of FRC-0069's text, and of the JavaScript
//! library of Filecoin Onchain Cloud.
#![expect(clippy::unwrap_used, reason = "a test's helpers may")]

use std::path::Path;

use floe_piece::{CommP, PaddedSize, PieceCid, PieceCidV2};

struct Row {
    payload_bytes: u64,
    padded_bytes: u64,
    cid: PieceCid,
}

fn vectors(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/commp").join(name))
        .unwrap()
}

fn rows(name: &str) -> Vec<Row> {
    let row = |line: &str| {
        let mut fields = line.split(',');
        let mut next = || fields.next().unwrap();
        Row {
            payload_bytes: next().parse().unwrap(),
            padded_bytes: next().parse().unwrap(),
            cid: next().parse().unwrap(),
        }
    };
    let mut rows: Vec<Row> = vectors(name).lines().map(row).collect();
    rows.sort_by_key(|row| row.payload_bytes);
    rows
}

/// Feeds a stream once and looks at the piece of each prefix that has a row.
fn prefixes(rows: &[Row], mut fill: impl FnMut(&mut [u8])) -> usize {
    let mut commp = CommP::new();
    let mut buffer = vec![0; 1 << 20];
    for row in rows {
        while commp.payload_bytes() < row.payload_bytes {
            let left = row.payload_bytes - commp.payload_bytes();
            let part = usize::try_from(left).unwrap().min(buffer.len());
            fill(&mut buffer[..part]);
            commp.update(&buffer[..part]).unwrap();
        }
        let piece = commp.clone().finish().unwrap();
        assert_eq!(piece.cid, row.cid, "{} bytes", row.payload_bytes);
        assert_eq!(piece.size.bytes(), row.padded_bytes, "{} bytes", row.payload_bytes);
        let v2: PieceCidV2 = piece.v2().unwrap().to_string().parse().unwrap();
        assert_eq!((v2.piece(), v2.payload_bytes()), (row.cid, row.payload_bytes));
    }
    rows.len()
}

/// The stream of `random.csv`, made as the README beside it says.
struct RandomStream {
    state: Vec<u64>,
    at: usize,
    /// The last number, and how many of its bytes are still to come.
    last: [u8; 4],
    left: usize,
}

impl RandomStream {
    fn new() -> Self {
        let state = vectors("random_stream_first607.txt").lines().map(|n| n.parse().unwrap()).collect();
        Self { state, at: 0, last: [0; 4], left: 0 }
    }

    fn next(&mut self) -> [u8; 4] {
        if self.at == 607 {
            for n in 0..607 {
                let before = self.state[(n + 607 - 273) % 607];
                self.state[n] = (self.state[n] + before) & (u64::MAX >> 1);
            }
            self.at = 0;
        }
        self.at += 1;
        ((self.state[self.at - 1] >> 31) as u32).to_le_bytes()
    }

    fn fill(&mut self, out: &mut [u8]) {
        let (cut, rest) = out.split_at_mut(self.left.min(out.len()));
        cut.copy_from_slice(&self.last[4 - self.left..][..cut.len()]);
        self.left -= cut.len();
        let (numbers, rest) = rest.as_chunks_mut::<4>();
        for number in numbers {
            *number = self.next();
        }
        if !rest.is_empty() {
            self.last = self.next();
            self.left = 4 - rest.len();
            rest.copy_from_slice(&self.last[..rest.len()]);
        }
    }
}

#[test]
fn constant_payloads() {
    assert_eq!(prefixes(&rows("zero.csv"), |out| out.fill(0)), 18);
    assert_eq!(prefixes(&rows("0xCC.csv"), |out| out.fill(0xcc)), 18);
}

#[test]
fn the_random_stream_is_the_published_one() {
    let mut start = [0; 16];
    RandomStream::new().fill(&mut start);
    assert_eq!(start, 0x5402_f5a0_8d63_9b57_0e2f_dd6a_961a_d8f5_u128.to_be_bytes());
}

/// Each payload is a prefix of one stream. As many as are quick by default; `FLOE_TEST_COMMP=1` hashes all 32 GiB, which in
/// a release build takes some minutes.
#[test]
fn random_payloads() {
    let (most, count) =
        if std::env::var_os("FLOE_TEST_COMMP").is_some() { (u64::MAX, 143) } else { (64 << 20, 98) };
    let rows: Vec<Row> = rows("random.csv").into_iter().filter(|row| row.payload_bytes <= most).collect();
    let mut stream = RandomStream::new();
    assert_eq!(prefixes(&rows, |out| stream.fill(out)), count);
}

/// What FRC-0069 and synapse-core 0.5.2 say of small payloads and of padding.
#[test]
fn piece_cids_v2() {
    let groups = |zeros: usize| {
        let mut payload: Vec<u8> = (0..4).flat_map(|i| [i; 127]).collect();
        payload.resize(508 + zeros, 0);
        payload
    };
    let bytes = (0..=255u8).cycle().take(256_000).collect();
    let cases: [(Vec<u8>, u64, &str); 9] = [
        (vec![], 127, "bafkzcibcp4bdomn3tgwgrh3g532zopskstnbrd2n3sxfqbze7rxt7vqn7veigmy"),
        (vec![0; 127], 0, "bafkzcibcaabdomn3tgwgrh3g532zopskstnbrd2n3sxfqbze7rxt7vqn7veigmy"),
        (vec![0; 128], 126, "bafkzcibcpybwiktap34inmaex4wbs6cghlq5i2j2yd2bb2zndn5ep7ralzphkdy"),
        (groups(0), 0, "bafkzcibcaaces3nobte6ezpp4wqan2age2s5yxcatzotcvobhgcmv5wi2xh5mbi"),
        (groups(508), 0, "bafkzcibcaac542av3szurbbscwuu3zjssvfwbpsvbjf6y3tukvlgl2nf5rha6pa"),
        (groups(4), 504, "bafkzcibd7abqlxticxolgseegik2stpfgkkuwyf6kufex3doorkvmzpjuxwe4dz4"),
        (groups(5), 503, "bafkzcibd64bqlxticxolgseegik2stpfgkkuwyf6kufex3doorkvmzpjuxwe4dz4"),
        (bytes, 4_096, "bafkzcibdqaqa3n6ts7kctxmsna5huarlm4vmupoqowf3bdbh67z7mthmvybxv2iz"),
        (
            vec![0x5a; 1 << 20],
            1_032_192,
            "bafkzcibeqcad6efgyhafg7dihrjogu7t4n3rx5zy5aa3yihxds5ucp5qha6hcbplha",
        ),
    ];
    for (payload, padding, text) in cases {
        let mut commp = CommP::new();
        commp.update(&payload).unwrap();
        let v2 = commp.finish().unwrap().v2().unwrap();
        assert_eq!((v2.to_string().as_str(), v2.padding_bytes()), (text, padding), "{} bytes", payload.len());
        assert_eq!(text.parse(), Ok(v2));
    }
    // Of this one the 31 bytes of payload are not published.
    let text = "bafkzcibcmabfx3gu6jht45r5wzfr6gb2f3wxnukpk6swpx2ceit7iiep6xb6ici";
    let v2: PieceCidV2 = text.parse().unwrap();
    assert_eq!((v2.size(), v2.payload_bytes(), v2.to_string().as_str()), (PaddedSize::MIN, 31, text));
}

/// The empty pieces of FRC-0069: 32 and 64 GiB of zeros that nobody has to hash.
#[test]
fn empty_sectors() {
    for (bytes, v1, v2) in [
        (
            32u64 << 30,
            "baga6ea4seaqao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq",
            "bafkzcibcaapao7s73y24kcutaosvacpdjgfe5pw76ooefnyqw4ynr3d2y6x2mpq",
        ),
        (
            64 << 30,
            "baga6ea4seaqomqafu276g53zko4k23xzh4h4uecjwicbmvhsuqi7o4bhthhm4aq",
            "bafkzcibcaap6mqafu276g53zko4k23xzh4h4uecjwicbmvhsuqi7o4bhthhm4aq",
        ),
    ] {
        let size = PaddedSize::from_bytes(bytes).unwrap();
        let piece = CommP::new().finish_padded(size).unwrap();
        assert_eq!((piece.cid.to_string().as_str(), piece.v2().unwrap().to_string().as_str()), (v1, v2));
    }
}
