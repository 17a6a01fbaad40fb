//! Helpers for the suites that drive the built binary.
