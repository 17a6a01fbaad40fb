//! What an operator promises for a pin: how many replicas on Filecoin, where, for how long, at most at what price.

use serde::{Deserialize, Serialize};

use crate::ids::ActorId;
use crate::units::AttoFil;

/// The policy of pins that choose none. Where it is not configured, these are kept hot and nowhere else.
pub const DEFAULT_POLICY: &str = "default";

/// The most characters of a policy's name: it is part of URLs, and repeated in errors and rows.
pub const MAX_NAME: usize = 64;

/// The most replicas: each has an owner of its own, and who knows so many that he wants to pay all of them for one piece
/// means something else.
pub const MAX_REPLICAS: u8 = 16;

/// Epochs that a deal may run for, as the network has it: 180 to 1278 days.
pub const DURATION: std::ops::RangeInclusive<u64> = 518_400..=3_680_640;

/// Whether a policy may be called so: its name is a segment of a path, as it is.
pub fn is_policy_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(plain)
}

/// Whether a word may be the tag of a region: it is the operator's own, and stands in lists and tables.
pub fn is_region(tag: &str) -> bool {
    is_policy_name(tag)
}

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

impl Policy {
    /// Whether a provider is one of those that it names, where it names any.
    pub fn lists(&self, provider: ActorId) -> bool {
        self.providers.is_empty() || self.providers.contains(&provider)
    }

    /// Whether one of a provider's tags is a region that it asks for, where it asks for any.
    pub fn is_within(&self, regions: &[String]) -> bool {
        self.regions.is_empty() || regions.iter().any(|region| self.regions.contains(region))
    }

    /// The most replicas that a pin may ask for under this policy, whose account may have `account` of each pin. The
    /// account's bound goes before the policy's own number, upwards too; but what goes nowhere gets no terms to go
    /// under, and where providers are listed there are no others.
    pub fn most_replicas(&self, account: Option<u8>) -> u8 {
        if self.replicas == 0 {
            return 0;
        }
        let listed = if self.providers.is_empty() { usize::MAX } else { self.providers.len() };
        let most = account.unwrap_or(self.replicas).min(MAX_REPLICAS);
        most.min(u8::try_from(listed).unwrap_or(MAX_REPLICAS))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(replicas: u8, providers: u64) -> Policy {
        Policy {
            name: "gold".into(),
            replicas,
            regions: Vec::new(),
            max_price: AttoFil::ZERO,
            duration_epochs: 1_555_200,
            hot: Hot::Always,
            providers: (0..providers).map(ActorId::new).collect(),
            ipni: true,
            spare_after_epochs: None,
        }
    }

    #[test]
    fn the_accounts_bound_goes_before_the_policys_number() {
        for (replicas, providers, account, most) in [
            (3, 0, None, 3),
            (3, 0, Some(2), 2),
            (3, 0, Some(0), 0),
            (3, 0, Some(5), 5),
            (3, 4, Some(5), 4),
            (3, 300, Some(5), 5),
            (3, 0, Some(17), 16),
            (0, 0, None, 0),
            (0, 0, Some(5), 0),
        ] {
            let got = policy(replicas, providers).most_replicas(account);
            assert_eq!(got, most, "{replicas} of {providers}, account {account:?}");
        }
    }

    #[test]
    fn a_name_is_a_segment_of_a_path() {
        for good in ["a", "default", "eu-3_x", "Gold", &"x".repeat(MAX_NAME)] {
            assert!(is_policy_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a.b", "ä", "a%20", &"x".repeat(MAX_NAME + 1)] {
            assert!(!is_policy_name(bad), "{bad}");
        }
    }
}
