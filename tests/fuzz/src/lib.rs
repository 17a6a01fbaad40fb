//! What the targets share: an allocator that counts, and the bound that every parser keeps.
//!
//! A target fails where a parser panics, and where it holds more than its input explains: a length that was read
//! must never size a buffer (limits.md, "parser memory").

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that are allocated now, and the most since [`within`] began.
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, with a counter.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What a parser may hold beside four times its input.
pub const BASE: usize = 64 << 10;

/// Runs a parser over an input of `len` bytes.
///
/// # Panics
/// Where it allocated more than four times the input and `more` bytes at one time.
pub fn within<T>(len: usize, more: usize, parse: impl FnOnce() -> T) -> T {
    let before = HELD.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let parsed = parse();
    let grown = MOST.load(Ordering::Relaxed).saturating_sub(before);
    assert!(grown <= 4 * len + more, "{grown} bytes for an input of {len}");
    parsed
}
