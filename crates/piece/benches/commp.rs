//! How many bytes CommP hashes in a second of processor time, beside plain SHA-256 of the same bytes in the same run.
//!
//! `cargo bench -p floe-piece --bench commp [-- MEBIBYTES]`: from memory, the median of rounds in turns. With
//! `--features portable` it is the fall-back, which goes through the `sha2` crate; that uses the SHA extensions too, one
//! hash at a time, unless it is built with `RUSTFLAGS='--cfg sha2_256_backend="soft"'`. Ratios count, not absolute
//! figures.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program for the terminal that stops at what is wrong, and measures time"
)]

use std::num::NonZeroUsize;
use std::time::Instant;

use floe_piece::{CommP, ParallelCommP};
use sha2::Digest as _;

const ROUNDS: usize = 5;

fn main() {
    let mebibytes: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(256);
    let threads = std::thread::available_parallelism().unwrap();
    let payload = payload(mebibytes << 20);
    let mut rounds: [Vec<Cost>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let (sha, _) = measure(|| sha2::Sha256::digest(&payload).to_vec());
        let (one, piece) = measure(|| commp(&payload));
        let (all, same) = measure(|| parallel(&payload, threads));
        assert_eq!(piece, same);
        rounds.iter_mut().zip([sha, one, all]).for_each(|(list, cost)| list.push(cost));
    }
    let [sha, one, all] = rounds.map(Cost::median);
    println!("{mebibytes} MiB, MiB in a second of processor time (of the clock), and over SHA-256:");
    for (name, cost) in [("SHA-256", sha), ("CommP", one), ("CommP, all threads", all)] {
        let rate = |seconds: f64| mebibytes as f64 / seconds;
        println!("{name:20} {:6.0} ({:6.0})  {:.2}", rate(cost.cpu), rate(cost.seconds), sha.cpu / cost.cpu);
    }
}

fn commp(payload: &[u8]) -> String {
    let mut commp = CommP::new();
    payload.chunks(1 << 20).for_each(|part| commp.update(part).unwrap());
    commp.finish().unwrap().cid.to_string()
}

fn parallel(payload: &[u8], threads: NonZeroUsize) -> String {
    let mut commp = ParallelCommP::new(threads).unwrap();
    payload.chunks(1 << 20).for_each(|part| commp.update(part).unwrap());
    commp.finish().unwrap().cid.to_string()
}

fn payload(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// What a round took.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    /// Seconds of processor time of all threads. On a busy machine it is steadier than the clock.
    cpu: f64,
}

impl Cost {
    fn median(rounds: Vec<Self>) -> Self {
        let middle = |of: fn(&Self) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Self { seconds: middle(|cost| cost.seconds), cpu: middle(|cost| cost.cpu) }
    }
}

fn measure<T>(round: impl FnOnce() -> T) -> (Cost, T) {
    let (from, before) = (Instant::now(), cpu_seconds());
    let result = round();
    (Cost { seconds: from.elapsed().as_secs_f64(), cpu: cpu_seconds() - before }, result)
}

/// User and system time of this process, from Linux's procfs in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
