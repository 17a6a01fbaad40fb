//! The crate against what is outside of it: published bytes, and recorded traffic of real software.

mod bytes_of_others;
mod recordings;
mod signatures;
