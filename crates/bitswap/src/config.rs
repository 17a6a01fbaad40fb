//! Settings. Everything else that bounds the crate is in `limits.rs`.

/// Plain settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Bytes of blocks sent to all peers together; `None`: as fast as they take them.
    pub egress: Option<EgressLimit>,
    /// Bytes of blocks sent to one peer; `None`: as fast as it takes them.
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
