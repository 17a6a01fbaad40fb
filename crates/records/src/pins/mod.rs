//! Pins: how they come, change, go and are found.

pub(crate) mod add;
pub(crate) mod change;
pub(crate) mod list;
pub(crate) mod row;
