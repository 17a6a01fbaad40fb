//! Pins: how they come, change, go, are counted and are found.

pub(crate) mod add;
pub(crate) mod change;
pub(crate) mod counts;
pub(crate) mod keys;
pub(crate) mod list;
pub(crate) mod replace;
pub(crate) mod row;
