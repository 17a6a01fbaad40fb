//! What the suites share: the built binary as a child process, a real Kubo as one, and a peer of our own that
//! serves blocks from memory.
//!
//! A suite knows Floe only by what a user knows: the command line, the ports, the files of the data directory.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "suites and benches speak to a person")]

pub mod dag;
pub mod delay;
pub mod filecoin;
pub mod floe;
pub mod kubo;
pub mod process;
pub mod raw;
pub mod seeder;

/// Prints why a suite was not run, in the form that CI collects.
pub fn skipped(suite: &str, reason: &str) {
    println!("skipped: {suite}: {reason}");
}

/// Bytes that repeat nowhere and are the same in each run.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(len);
    out
}
