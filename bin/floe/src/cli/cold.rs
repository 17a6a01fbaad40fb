//! The commands of the cold half: deals, providers, spending, the plan, events.

use clap::{Subcommand, ValueEnum};
use floe_core::ActorId;

use crate::config::values::{Setting as _, contact};

/// What to do with deals.
#[derive(Debug, Subcommand)]
pub(crate) enum DealsCommand {
    /// List attempts to place replicas, newest first
    #[command(
        long_about = "List attempts to place replicas, newest first.\n\nOne line for each provider that was asked to keep \
        one replica of one piece, whatever came of it. A token with the scope pins:read sees those for its account's own \
        pins, one with the scope admin all."
    )]
    Ls {
        /// Only those for this pin
        #[arg(long, value_name = "REQUEST ID")]
        pin: Option<String>,
        /// Only those with this provider
        #[arg(long, value_name = "ID", value_parser = ActorId::read)]
        provider: Option<ActorId>,
        /// Only those in this state
        #[arg(long = "state", value_enum, value_name = "STATE")]
        states: Vec<DealStateArg>,
        /// The most to list
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
        limit: u64,
    },
    /// Show one attempt
    Show {
        /// Its uuid
        uuid: String,
    },
    /// Let an attempt that came to nothing, or a piece's open replicas, be tried again at once
    #[command(
        long_about = "Let an attempt that came to nothing, or a piece's open replicas, be tried again at once.\n\nThe \
        provider of a failed attempt may be asked for the piece again, and one that waits for an answer is sent the same \
        bytes again. Nothing is signed a second time, and no cap is lifted."
    )]
    Retry {
        /// The uuid of an attempt, or the id of an aggregate
        id: String,
    },
    /// Show what deals cost
    Cost {
        /// Summed up by what
        #[arg(long, value_enum, default_value = "account", value_name = "WHAT")]
        by: CostByArg,
    },
}

/// The words of a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DealStateArg {
    /// A provider is chosen and the money set aside
    Chosen,
    /// Being sent
    Proposed,
    /// Sent, and the answer was lost
    Unknown,
    /// The provider says that it takes it
    Accepted,
    /// On the chain
    Published,
    /// In a sector that is proven
    Active,
    /// It ran to its end
    Expired,
    /// The chain ended it early
    Terminated,
    /// Nothing came of it
    Failed,
}

/// What costs are summed up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CostByArg {
    /// Who pays
    Account,
    /// Who is paid
    Provider,
    /// When it was committed
    Month,
}

/// What to do with providers.
#[derive(Debug, Subcommand)]
pub(crate) enum ProvidersCommand {
    /// List providers, with what they ask for and how they did
    Ls,
    /// Make a provider known, or give it other addresses and tags
    Add {
        /// Its id, such as f01000
        #[arg(value_parser = ActorId::read)]
        id: ActorId,
        /// Where it is reached: a URL, or a multiaddr. What the chain says is tried behind these
        #[arg(long = "addr", value_name = "ADDR", value_parser = contact)]
        addrs: Vec<String>,
        /// A tag for where it is, which policies can ask for
        #[arg(long = "region", value_name = "TAG", value_parser = region)]
        regions: Vec<String>,
    },
    /// Ask a provider for nothing more; its deals go on
    Suspend {
        /// Its id
        #[arg(value_parser = ActorId::read)]
        id: ActorId,
        /// Why, for those who list it
        #[arg(long, value_name = "TEXT")]
        why: Option<String>,
    },
    /// Ask it again
    Resume {
        /// Its id
        #[arg(value_parser = ActorId::read)]
        id: ActorId,
    },
}

fn region(text: &str) -> Result<String, String> {
    let fits = floe_core::policy::is_region(text);
    fits.then(|| text.to_owned()).ok_or_else(|| "a tag is a word of letters, digits, - and _".into())
}

/// Whether money may be spent.
#[derive(Debug, Subcommand)]
pub(crate) enum SpendingCommand {
    /// Let deals be made, within the caps
    On,
    /// Sign and send nothing more, at once and until it is on again
    #[command(
        long_about = "Sign and send nothing more, at once and until it is on again.\n\nWhat was signed before cannot be \
        recalled: whoever has a proposal can publish it until its start epoch. These are listed. Your own `floe wallet` \
        commands go all the same."
    )]
    Off,
    /// Show caps, what is committed, and what is left
    Status,
    /// Say that nothing was signed that a backup, put back, does not know
    #[command(
        long_about = "Say that nothing was signed that a backup, put back, does not know.\n\nAfter a data directory was put \
        back or copied, no replica is placed until nothing that was signed since can be published any more: the longest \
        start lead and finality. Whoever knows that nothing was signed ends the wait with this. Said wrongly, a replica is \
        paid for twice."
    )]
    TrustBackup,
}

/// Looking ahead.
#[derive(Debug, Subcommand)]
pub(crate) enum ColdCommand {
    /// Show which deals would be made now, with padding and price; spends nothing
    Plan,
}
