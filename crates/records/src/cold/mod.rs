//! The rows of the cold half: pins that wait for Filecoin, aggregates, deals and their money, messages, providers, facts.
//!
//! Money moves in one transaction with what it is for: [`deals`] knows the life of an attempt, [`ledger`] what was set
//! aside for it and whether the caps permit it.

pub mod deals;
pub mod events;
pub mod facts;
pub mod ledger;
pub mod providers;
