//! How many bytes of a CAR are read with each block checked, and written, in a second of processor time, beside plain SHA-256
//! of the same bytes; and what packing costs: a CAR read and checked, laid out, written, and hashed to its CommP.
//!
//! `cargo bench -p floe-dag --bench car [-- MEBIBYTES]`: the median of rounds in turns, from a file that was just written, so
//! from the page cache. Where `FLOE_BENCH_GO` names the program of `tests/bench/go`, packing stands beside the same with
//! go-car and go-fil-commp-hashhash over the same file, to the same commitment. Ratios count, not absolute figures.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for the terminal that stops at what is wrong, and measures time"
)]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::{Block, Cid};
use floe_dag::car::{Layout, Part, Reader, Writer, Zeros};
use floe_piece::CommP;
use rustix::time::{ClockId, clock_gettime};
use sha2::Digest as _;

const ROUNDS: usize = 7;
/// Blocks that are written are read before, so many bytes of them.
const HELD_BYTES: usize = 32 << 20;

fn main() {
    let mebibytes = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(512);
    println!("{mebibytes} MiB, MiB in a second of processor time, and over SHA-256:");
    for block_bytes in [256 << 10, 1 << 20, 1 << 10] {
        rows(mebibytes, block_bytes);
    }
}

fn rows(mebibytes: usize, block_bytes: usize) {
    let file = Car::write(mebibytes, block_bytes);
    let mut other = std::env::var_os("FLOE_BENCH_GO").map(|program| Other::start(&program, &file.0));
    let count = (mebibytes << 20) / block_bytes;
    let held: Vec<Block> = blocks(&file.0).take(HELD_BYTES / block_bytes).collect();
    let mut room = Room(Vec::with_capacity(2 * HELD_BYTES));
    let mut rounds: [Vec<f64>; 5] = Default::default();
    for _ in 0..ROUNDS {
        let (sha, _) = measure(|| sha256(&file.0));
        let (read, blocks) = measure(|| blocks(&file.0).map(|block| block.data().len()).sum::<usize>());
        assert_eq!(blocks, mebibytes << 20);
        let (write, _) = measure(|| write(&mut room, held.iter().cycle().take(count)));
        let (pack, commitment) = measure(|| pack(&file.0));
        let go = other.as_mut().map_or(f64::NAN, |other| other.round(&commitment));
        rounds.iter_mut().zip([sha, read, write, pack, go]).for_each(|(list, cpu)| list.push(cpu));
    }
    let [sha, read, write, pack, go] = rounds.map(median);
    println!("blocks of {} KiB", block_bytes >> 10);
    for (name, cpu) in [
        ("SHA-256 of the file", sha),
        ("read, each block checked", read),
        ("write, into memory", write),
        ("pack and CommP", pack),
        ("the same in Go", go),
    ] {
        println!("  {name:26} {:6.0}  {:.2}", mebibytes as f64 / cpu, sha / cpu);
    }
    println!("  packing: {:.2} of Go's processor time", pack / go);
}

fn sha256(path: &Path) -> Vec<u8> {
    let (mut file, mut hash, mut buffer) =
        (File::open(path).unwrap(), sha2::Sha256::new(), vec![0; 64 << 10]);
    loop {
        let read = file.read(&mut buffer).unwrap();
        if read == 0 {
            return hash.finalize().to_vec();
        }
        hash.update(&buffer[..read]);
    }
}

fn blocks(path: &Path) -> impl Iterator<Item = Block> {
    let reader = Reader::new(File::open(path).unwrap(), Zeros::Refused).unwrap();
    reader.map(|section| section.unwrap().block)
}

fn write<'a>(room: &mut Room, blocks: impl Iterator<Item = &'a Block>) -> u64 {
    let mut writer = Writer::new(room, &[]).unwrap();
    blocks.for_each(|block| {
        writer.write(block).unwrap();
    });
    writer.written()
}

/// Memory that is written over and over.
struct Room(Vec<u8>);

impl std::io::Write for Room {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > self.0.capacity() {
            self.0.clear();
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// As a deal's CAR is made: laid out from CIDs and sizes, then put together from blocks, each checked as it is read.
fn pack(path: &Path) -> [u8; 32] {
    let reader = Reader::new(File::open(path).unwrap(), Zeros::Refused).unwrap();
    let mut layout = Layout::new(reader.roots()).unwrap();
    let mut commp = CommP::new();
    let mut at = 0;
    for section in reader {
        let block = section.unwrap().block;
        layout.push(block.cid(), block.data().len()).unwrap();
        for part in layout.parts(at..layout.len()) {
            match part {
                Part::Bytes(bytes) => commp.update(bytes).unwrap(),
                Part::Block { range, .. } => commp.update(&block.data()[range]).unwrap(),
                Part::Zeros(_) => unreachable!("nothing was filled"),
            }
        }
        at = layout.len();
    }
    *commp.finish().unwrap().cid.commitment()
}

/// A CAR in the temporary folder, removed at the end.
struct Car(PathBuf);

impl Car {
    fn write(mebibytes: usize, block_bytes: usize) -> Self {
        let path = std::env::temp_dir().join(format!("floe-bench-{}.car", std::process::id()));
        let file = std::io::BufWriter::new(File::create(&path).unwrap());
        let mut state = 7u64;
        let mut block = |_| {
            let mut data = vec![0; block_bytes];
            for word in data.as_chunks_mut::<8>().0 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *word = state.to_le_bytes();
            }
            Block::of(code::RAW, Bytes::from(data)).unwrap()
        };
        let root: Cid = *block(0).cid();
        let mut writer = Writer::new(file, &[root]).unwrap();
        (0..(mebibytes << 20) / block_bytes).map(block).for_each(|block| {
            writer.write(&block).unwrap();
        });
        writer.finish().unwrap();
        Self(path)
    }
}

impl Drop for Car {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The program of `tests/bench/go`: a round for each line it gets.
struct Other {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Other {
    fn start(program: &std::ffi::OsStr, car: &Path) -> Self {
        let mut command = Command::new(program);
        command.arg("pack").arg(car).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, to, from: BufReader::new(from) }
    }

    /// Seconds of its processor time, for the same commitment.
    fn round(&mut self, commitment: &[u8; 32]) -> f64 {
        self.to.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        let (seconds, other) = line.trim().split_once(' ').unwrap();
        let ours: String = commitment.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(other, ours, "the two pack to different commitments");
        seconds.parse().unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Processor time of this process, which on a busy machine is steadier than the clock.
fn measure<T>(round: impl FnOnce() -> T) -> (f64, T) {
    let now = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let before = now();
    let result = round();
    (now() - before, result)
}
