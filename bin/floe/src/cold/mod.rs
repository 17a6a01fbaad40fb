//! The cold half, joined: the rows, the node, the key and the providers become what the engine asks for.
//!
//! A Lotus node that is away keeps nobody from starting: nothing is asked of it before the engine looks.

mod journal;
