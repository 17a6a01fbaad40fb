//! Rows of the cold half: what waits for a piece, what is in each piece, the deals for it, and the money.
//!
//! Each file holds the statements of one matter and adds its calls to [`crate::Records`]. Amounts are decimal text:
//! SQL's integers end below the FIL that there is.

mod messages;

pub use messages::{ChainRow, MessageRow, MessageStep, MessageVersion};
