//! What an operator promises for a pin: how many replicas on Filecoin, where, for how long, at most at what price.

use serde::{Deserialize, Serialize};

use crate::ids::ActorId;
use crate::units::AttoFil;

/// One `[policy.<name>]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its name, as in `/p/<name>/pins` and `meta.policy`.
    pub name: String,
    /// Deals with different providers, each of a different owner. 0: hot only.
    pub replicas: u8,
    /// The operator's tags, one of which each provider has. Empty: any provider.
    pub regions: Vec<String>,
    /// The most that is signed, for a GiB and epoch.
    pub max_price: AttoFil,
    /// How long a deal runs, in epochs.
    pub duration_epochs: u64,
    /// What happens to the blocks here once they are stored cold.
    pub hot: Hot,
    /// Only these. Empty: all that the operator knows.
    pub providers: Vec<ActorId>,
    /// Whether providers announce the content to the network's indexers.
    pub ipni: bool,
    /// After so many epochs without a transfer one extra replica may be placed. `None`: never.
    pub spare_after_epochs: Option<u64>,
}

/// What a pin was given when it was made: whatever the policy says later, this pin keeps its replicas.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyChoice {
    /// The policy's name; empty where there was none to choose.
    pub name: String,
    /// How many replicas go to Filecoin. 0: none.
    pub replicas: u8,
}

/// Whether the blocks of a pin stay here once all its replicas are active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hot {
    /// They stay.
    #[default]
    Always,
    /// What is read stays, the rest leaves when space is short.
    Auto,
    /// They leave.
    Never,
}
