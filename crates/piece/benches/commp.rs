//! How many bytes CommP hashes in a second of processor time, and in how much memory.
//!
//! `cargo bench -p floe-piece --bench commp [-- MEBIBYTES]`: from memory, the median of rounds in turns, beside plain SHA-256 of
//! the same bytes, and beside go-fil-commp-hashhash where `FLOE_BENCH_GO` names the program of `tests/bench/go`. Then the
//! peak of a process that hashes a stream of 64 MiB, 1 GiB and 4 GiB.
//!
//! With `--features portable` it is the fall-back, which goes through the `sha2` crate; that uses the SHA extensions too, one
//! hash at a time, unless it is built with `RUSTFLAGS='--cfg sha2_256_backend="soft"'`. Ratios count, not absolute
//! figures.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for the terminal that stops at what is wrong, and measures time"
)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroUsize;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use floe_piece::{CommP, ParallelCommP};
use rustix::time::{ClockId, clock_gettime};
use sha2::Digest as _;

const ROUNDS: usize = 7;
/// Streams whose peak is looked at, in MiB.
const STREAMS: [usize; 3] = [64, 1024, 4096];

fn main() {
    let mut numbers = std::env::args().filter_map(|arg| arg.parse().ok());
    let mebibytes: usize = numbers.next().unwrap_or(256);
    if std::env::args().any(|arg| arg == "stream") {
        return stream(mebibytes, numbers.next().unwrap_or(0));
    }
    speed(mebibytes);
    memory();
}

fn speed(mebibytes: usize) {
    let threads = std::thread::available_parallelism().unwrap();
    let payload = payload(mebibytes << 20);
    let mut other = std::env::var_os("FLOE_BENCH_GO").map(|program| Other::start(&program, mebibytes));
    let mut rounds: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let (sha, _) = measure(|| sha2::Sha256::digest(&payload).to_vec());
        let (one, commitment) = measure(|| commp(&payload));
        let (all, same) = measure(|| parallel(&payload, threads));
        assert_eq!(commitment, same);
        let go = other.as_mut().map_or(f64::NAN, |other| other.round(&commitment));
        rounds.iter_mut().zip([sha, one, all, go]).for_each(|(list, cpu)| list.push(cpu));
    }
    let [sha, one, all, go] = rounds.map(median);
    println!(
        "{mebibytes} MiB, MiB in a second of processor time, over SHA-256, and over go-fil-commp-hashhash:"
    );
    for (name, cpu) in
        [("SHA-256", sha), ("CommP", one), ("CommP, all threads", all), ("go-fil-commp-hashhash", go)]
    {
        println!("{name:22} {:6.0}  {:.2}  {:.2}", mebibytes as f64 / cpu, sha / cpu, go / cpu);
    }
}

/// Each in a process of its own, because a peak never falls.
fn memory() {
    println!("peak MiB of a process that hashes a stream, on one thread and with two beside it:");
    for mebibytes in STREAMS {
        let peak = |threads: usize| {
            let this = std::env::current_exe().unwrap();
            let out =
                Command::new(this).args(["stream", &mebibytes.to_string(), &threads.to_string()]).output();
            String::from_utf8(out.unwrap().stdout).unwrap().trim().to_owned()
        };
        println!("{mebibytes:5} MiB  {}  {}", peak(0), peak(2));
    }
}

/// Hashes a stream, with `threads` beside this one or without, and prints the most memory that was resident.
fn stream(mebibytes: usize, threads: usize) {
    let part = payload(1 << 20);
    match NonZeroUsize::new(threads) {
        None => {
            let mut commp = CommP::new();
            (0..mebibytes).for_each(|_| commp.update(&part).unwrap());
            commp.finish().unwrap();
        }
        Some(threads) => {
            let mut commp = ParallelCommP::new(threads).unwrap();
            (0..mebibytes).for_each(|_| commp.update(&part).unwrap());
            commp.finish().unwrap();
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kibibytes: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("{:.1}", kibibytes / 1024.0);
}

fn commp(payload: &[u8]) -> [u8; 32] {
    let mut commp = CommP::new();
    payload.chunks(1 << 20).for_each(|part| commp.update(part).unwrap());
    *commp.finish().unwrap().cid.commitment()
}

fn parallel(payload: &[u8], threads: NonZeroUsize) -> [u8; 32] {
    let mut commp = ParallelCommP::new(threads).unwrap();
    payload.chunks(1 << 20).for_each(|part| commp.update(part).unwrap());
    *commp.finish().unwrap().cid.commitment()
}

/// The bytes that `tests/bench/go` makes too.
fn payload(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// The program of `tests/bench/go`: a round for each line it gets.
struct Other {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Other {
    fn start(program: &std::ffi::OsStr, mebibytes: usize) -> Self {
        let mut command = Command::new(program);
        command.arg("commp").arg(mebibytes.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
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
        assert_eq!(other, ours, "the two hash to different commitments");
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

/// Processor time of all threads of this process, which on a busy machine is steadier than the clock.
fn measure<T>(round: impl FnOnce() -> T) -> (f64, T) {
    let now = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let before = now();
    let result = round();
    (now() - before, result)
}
