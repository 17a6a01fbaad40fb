//! Settings. Everything else that bounds the crate is in `limits.rs`.

/// Plain settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Bytes of answers to all peers together; `None`: as fast as they take them.
    pub egress: Option<EgressLimit>,
    /// Bytes of answers to one peer; `None`: as fast as it takes them.
    pub egress_per_peer: Option<EgressLimit>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressLimit {
    /// Bytes a second in the long run.
    pub bytes_per_second: u64,
    /// Bytes that may go out at once after a pause.
    pub burst_bytes: u64,
}

impl EgressLimit {
    /// So many bytes a second, with a burst of a twentieth: more than what comes in between two looks at the
    /// bucket, and what leaves in a second is above the limit by no more than 5 % and the rest of one answer.
    pub fn per_second(bytes: u64) -> Self {
        Self { bytes_per_second: bytes, burst_bytes: bytes / 20 }
    }
}
